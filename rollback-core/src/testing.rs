//! What a backend author needs to trust a backend: fakes, scripted gates, a clock that obeys, conformance suites, sweeps.

pub mod backend;
pub mod clock;
pub mod fakes;
pub mod gates;
#[cfg(feature = "compare")]
pub mod source;
pub mod store;
pub mod sweep;
