//! All integration tests of the crate in one binary: linking is what two cores feel.

mod backends;
mod engine;
mod gates;
#[cfg(feature = "email")]
mod mail;
#[cfg(feature = "webhook")]
mod messages;
#[cfg(feature = "report")]
mod reports;
mod search;
mod stores;
mod support;
