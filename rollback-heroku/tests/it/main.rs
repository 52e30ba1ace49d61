//! What the crate promises, on a Platform API in memory that keeps to the public schema.

mod app;
mod schema;
mod support;
