//! All integration tests of the crate in one binary: linking is what two cores feel.

mod backends;
mod engine;
mod gates;
#[cfg(all(feature = "sql", unix))]
mod processes;
mod search;
mod stores;
mod support;
mod sweeps;
mod transcripts;
