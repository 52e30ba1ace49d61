//! All integration tests of the crate in one binary: linking is what two cores feel.

#[cfg(all(feature = "alertmanager", feature = "http", feature = "prometheus", feature = "receiver"))]
mod alertmanager;
mod backends;
mod bad_input;
#[cfg(feature = "compare")]
mod compare;
mod engine;
mod gates;
#[cfg(all(feature = "http", feature = "prometheus"))]
mod http;
#[cfg(feature = "email")]
mod mail;
#[cfg(feature = "webhook")]
mod messages;
#[cfg(feature = "mock")]
mod mocks;
#[cfg(all(feature = "sql", unix))]
mod processes;
#[cfg(all(feature = "http", feature = "prometheus"))]
mod prometheus;
#[cfg(all(feature = "http", feature = "prometheus", feature = "compare"))]
mod prometheus_source;
mod properties;
#[cfg(feature = "receiver")]
mod receiver;
mod records;
#[cfg(feature = "report")]
mod reports;
mod search;
#[cfg(all(
    feature = "alertmanager",
    feature = "compare",
    feature = "email",
    feature = "http",
    feature = "prometheus",
    feature = "receiver",
    feature = "report",
    feature = "webhook"
))]
mod secrets;
mod served;
mod stores;
mod support;
mod sweeps;
#[cfg(all(
    feature = "alertmanager",
    feature = "http",
    feature = "prometheus",
    feature = "receiver",
    feature = "webhook"
))]
mod tls;
mod transcripts;
