//! All integration tests of the crate in one binary: linking is what two cores feel.

mod backends;
#[cfg(feature = "compare")]
mod compare;
mod engine;
mod gates;
mod search;
mod stores;
mod support;
