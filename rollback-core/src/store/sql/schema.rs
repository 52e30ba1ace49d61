//! The tables: one schema in two dialects, with numbered migrations.

use super::session::Session;
use crate::error::{Error, ErrorKind, Result};

/// What marks a database as ours: a row in `rollback_meta`.
const APPLICATION: &str = "rollback";

/// The same on the header of a SQLite file, where `file` and `PRAGMA application_id` find it: "Rlbk".
const APPLICATION_ID: i64 = 0x526c_626b;

/// Each brings the tables from the version of its index to the next one. Never edit one that was released: add one.
///
/// `{key}` is a number that rises with every row, `{int}` a 64-bit integer, `{strict}` makes SQLite check types. The
/// body is the last column, so that SQLite reads an envelope without it.
const MIGRATIONS: &[&str] = &["
CREATE TABLE rollback_meta (
    application TEXT NOT NULL PRIMARY KEY,
    version     {int} NOT NULL
){strict};
CREATE TABLE rollback_rollouts (
    seq      {key},
    id       TEXT NOT NULL UNIQUE,
    subject  TEXT NOT NULL,
    driver   TEXT,
    standing TEXT NOT NULL CHECK (standing IN ('open', 'promoted', 'over')),
    format   {int} NOT NULL,
    serial   {int} NOT NULL,
    heard    {int} NOT NULL,
    asked    {int} NOT NULL,
    body     TEXT NOT NULL
){strict};
CREATE UNIQUE INDEX rollback_rollouts_open ON rollback_rollouts (subject) WHERE standing = 'open';
CREATE INDEX rollback_rollouts_subject ON rollback_rollouts (subject, seq);
CREATE TABLE rollback_requests (
    rollout TEXT NOT NULL REFERENCES rollback_rollouts (id) ON DELETE CASCADE,
    number  {int} NOT NULL,
    request TEXT NOT NULL,
    PRIMARY KEY (rollout, number)
){strict};
CREATE TABLE rollback_drivers (
    driver  TEXT NOT NULL PRIMARY KEY,
    beat    {int} NOT NULL,
    changed {int} NOT NULL
){strict};
INSERT INTO rollback_meta (application, version) VALUES ('rollback', 0);
"];

/// The version of the tables that this version of the library reads and writes.
pub(super) const VERSION: i64 = MIGRATIONS.len() as i64;

/// The version of the tables that are there; 0 when there is nothing yet. Changes nothing.
///
/// # Errors
/// `Invalid` when the database is not ours, `Unsupported` when its tables are newer than this library.
pub(super) async fn version(session: &mut Session<'_>) -> Result<i64> {
    let found = if session.is_sqlite() { sqlite_version(session).await? } else { postgres_version(session).await? };
    if found > VERSION {
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!("{} has tables of version {found}; this version reads {VERSION} and older", session.place()),
        ));
    }
    Ok(found)
}

/// Brings the tables to [`VERSION`], if they are not there yet. To be run in a transaction that keeps others out.
pub(super) async fn migrate(session: &mut Session<'_>) -> Result<()> {
    let found = version(session).await?;
    if found == VERSION {
        return Ok(());
    }
    let sqlite = session.is_sqlite();
    for migration in &MIGRATIONS[usize::try_from(found).unwrap_or(0)..] {
        session.batch(in_dialect(migration, sqlite)).await?;
    }
    session.batch(format!("UPDATE rollback_meta SET version = {VERSION} WHERE application = '{APPLICATION}'")).await?;
    if sqlite {
        let marks = format!("PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {VERSION}");
        session.batch(marks).await?;
    }
    Ok(())
}

fn in_dialect(migration: &str, sqlite: bool) -> String {
    let (key, int, strict) = if sqlite {
        ("INTEGER PRIMARY KEY", "INTEGER", " STRICT")
    } else {
        ("BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY", "BIGINT", "")
    };
    migration.replace("{key}", key).replace("{int}", int).replace("{strict}", strict)
}

async fn sqlite_version(session: &mut Session<'_>) -> Result<i64> {
    // First: it begins the transaction's view of the file, which the pragmas then share.
    let things = session.number("SELECT count(*) FROM sqlite_schema").await?;
    let application = session.number("PRAGMA application_id").await?;
    let version = session.number("PRAGMA user_version").await?;
    match application {
        0 if version == 0 && things == 0 => Ok(0),
        // A newer library may have other tables: what the header says is enough to stay away.
        APPLICATION_ID if version > VERSION => Ok(version),
        APPLICATION_ID => told_version(session).await,
        _ => Err(foreign(session)),
    }
}

async fn postgres_version(session: &mut Session<'_>) -> Result<i64> {
    const EXISTS: &str = "SELECT count(*) FROM pg_class WHERE oid = to_regclass('rollback_meta')";
    match session.number(EXISTS).await? {
        0 => Ok(0),
        _ => told_version(session).await,
    }
}

async fn told_version(session: &mut Session<'_>) -> Result<i64> {
    const TOLD: &str = "SELECT version FROM rollback_meta WHERE application = 'rollback'";
    let rows = session.rows(TOLD, &[]).await?;
    let row = rows.first().ok_or_else(|| foreign(session))?;
    row.int(0)
}

fn foreign(session: &Session<'_>) -> Error {
    Error::invalid(format!(
        "{} belongs to another program; a store needs a database of its own, or an empty one",
        session.place()
    ))
}
