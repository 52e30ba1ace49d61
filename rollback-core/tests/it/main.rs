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
#[cfg(feature = "receiver")]
mod receiver;
#[cfg(all(feature = "http", feature = "prometheus", feature = "compare"))]
mod prometheus_source;
mod search;
mod stores;
mod support;
