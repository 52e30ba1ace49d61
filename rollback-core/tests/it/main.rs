//! All integration tests of the crate in one binary: linking is what two cores feel.

mod backends;
mod engine;
mod gates;
#[cfg(all(feature = "http", feature = "prometheus"))]
mod http;
#[cfg(all(feature = "http", feature = "prometheus"))]
mod prometheus;
#[cfg(all(feature = "http", feature = "prometheus", feature = "compare"))]
mod prometheus_source;
mod search;
mod stores;
mod support;
