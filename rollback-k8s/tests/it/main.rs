<<<<<<< HEAD
//! Everything about the crate that needs more than a function: on a real API server, and over a line that is ill.

mod cluster;
mod gates;
mod line;
mod replicas;
mod skip;
mod store;
=======
//! Backends, gates and store, on an API server in memory and on a real one.

mod support;
mod workload;
>>>>>>> k8s
