//! What the crate promises, on a Platform API in memory that keeps to the public schema.

mod app;
mod bad_input;
mod client;
mod gates;
mod promotion;
mod real;
mod schema;
mod secrets;
mod support;
mod sweeps;
mod webhook;
