//! Backends, gates and store, on an API server in memory and on a real one.

mod kubectl;
mod real;
mod support;
mod workload;
