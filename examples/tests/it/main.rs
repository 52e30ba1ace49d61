//! The programs, and their parts.

#[cfg(feature = "compare")]
mod backtest;
mod proxy;
mod quickstart;
