//! See the binaries.
