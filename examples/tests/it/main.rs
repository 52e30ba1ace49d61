//! The quickstart, and its parts.

mod proxy;
mod quickstart;
