//! See the benches.
