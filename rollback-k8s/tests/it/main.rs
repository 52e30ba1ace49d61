//! Backends, gates and store, on an API server in memory and on a real one, and over a line that is ill.

mod client;
mod configuration;
mod flux;
mod gates;
mod kubectl;
mod line;
mod pair;
mod partition;
mod place;
mod real;
mod replicas;
mod roles;
mod rollouts;
mod room;
mod route;
mod service;
mod store;
mod support;
mod sweeps;
mod watched;
mod workload;
