//! The quickstart's parts, and the quickstart.

mod proxy;
