//! Records in SQLite or PostgreSQL.

/// Keeps records in SQLite or PostgreSQL.
#[derive(Debug)]
pub struct Sql;
