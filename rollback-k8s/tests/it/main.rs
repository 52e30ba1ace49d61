//! Backends, gates and store, on an API server in memory and on a real one.

mod pair;
mod real;
mod route;
mod service;
mod support;
mod workload;
