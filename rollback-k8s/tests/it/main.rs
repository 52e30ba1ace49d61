//! Backends, gates and store, on an API server in memory and on a real one.

mod real;
mod route;
mod support;
mod workload;
