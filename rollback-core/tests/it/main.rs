//! All integration tests of the crate in one binary: linking is what two cores feel.

mod backends;
mod bad_input;
mod engine;
mod gates;
#[cfg(feature = "mock")]
mod mocks;
#[cfg(all(feature = "sql", unix))]
mod processes;
mod properties;
mod records;
#[cfg(all(feature = "http", feature = "prometheus"))]
mod http;
#[cfg(all(feature = "http", feature = "prometheus"))]
mod prometheus;
#[cfg(all(feature = "http", feature = "prometheus", feature = "compare"))]
mod prometheus_source;
#[cfg(feature = "receiver")]
mod receiver;
mod search;
mod served;
mod stores;
mod support;
mod sweeps;
mod transcripts;
