//! Everything about the crate that needs more than a function: on a real API server, and on one that is away or slow.

mod store;
