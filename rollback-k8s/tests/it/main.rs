//! Backends, gates and store, on an API server in memory and on a real one.

mod support;
mod workload;
