//! All integration tests of the crate in one binary: linking is what two cores feel.

#[cfg(all(feature = "alertmanager", feature = "http", feature = "prometheus", feature = "receiver"))]
mod alertmanager;
mod backends;
mod engine;
mod gates;
#[cfg(all(feature = "http", feature = "prometheus"))]
mod http;
#[cfg(all(feature = "http", feature = "prometheus"))]
mod prometheus;
#[cfg(all(feature = "http", feature = "prometheus", feature = "compare"))]
mod prometheus_source;
#[cfg(feature = "receiver")]
mod receiver;
mod search;
mod stores;
mod support;
