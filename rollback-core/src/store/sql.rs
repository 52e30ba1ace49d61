//! Records in SQLite or PostgreSQL.

mod place;
mod postgres;
mod schema;
mod session;
mod sqlite;
mod work;

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use sqlx::pool::PoolConnection;

use self::{
    place::Place,
    postgres::Postgres,
    session::Session,
    sqlite::Sqlite,
    work::{Answer, Export, Write},
};
use super::{Asked, Claim, Record, Standing, Store};
use crate::{
    error::{Error, ErrorKind, Result},
    model::{DriverId, RolloutId, Serial, TargetId},
    request::Request,
};

/// Keeps records in SQLite or PostgreSQL: the URL decides.
///
/// | URL | where |
/// |---|---|
/// | `sqlite:path/to/file.db`, `sqlite:///var/lib/deploy/rollouts.db` | one file, created with mode 0600 when it is missing |
/// | `postgres://user@host:5432/database` | tables named `rollback_…` in the first schema of the search path, created when they are missing |
///
/// Several processes may use one file or one database at once. What a call said is saved is on disk: SQLite runs with a
/// write-ahead log and `synchronous=FULL`, PostgreSQL with at least `synchronous_commit=on`. Writes that come in
/// together share one commit on SQLite. Every call ends within 10 seconds, if need be with `Unavailable`, which leaves
/// open whether it landed. Clones share the connections.
///
/// Records hold what backends seal, in clear text: guard the file or the database accordingly, backups too. SQLite
/// needs a disk of the machine itself; a network file system cannot carry it.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> rollback_core::Result<()> {
/// # let folder = tempfile::tempdir().expect("a folder for temporary files");
/// # let path = folder.path().join("rollouts.db");
/// # let url = format!("sqlite:{}", path.display());
/// use rollback_core::store::{Sql, Store};
///
/// let store = Sql::connect(&url).await?.keep(20); // such as "sqlite:rollouts.db"
/// assert!(store.open().await?.is_empty());
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Sql {
    dialect: Dialect,
    place: Arc<Place>,
    keep: i64,
}

#[derive(Clone)]
enum Dialect {
    Sqlite(Sqlite),
    Postgres(Postgres),
}

impl Sql {
    /// Connects, and brings the tables up to date. It keeps the last 50 finished records of a subject; see
    /// [`keep`](Self::keep). Call it in the tokio runtime that is to outlive the store.
    ///
    /// # Errors
    /// `Invalid` when the URL cannot be read, or the file or database is corrupt or not ours; `Unsupported` when its
    /// tables are newer than this library; `Denied` when it is read-only or the credentials are refused; `Unavailable`
    /// when it cannot be reached. Nothing was changed then. No error shows the URL of a server.
    ///
    /// # Cancel safety
    /// Drop it whenever you like; at worst an empty store was created.
    pub async fn connect(url: &str) -> Result<Self> {
        let scheme = url.split(':').next().unwrap_or_default();
        let (dialect, place) = match scheme {
            "sqlite" => {
                let (options, place) = Sqlite::parse(url)?;
                (Dialect::Sqlite(bounded(&place, Sqlite::open(options, &place)).await?), place)
            }
            "postgres" | "postgresql" => {
                let (options, place) = Postgres::parse(url)?;
                (Dialect::Postgres(bounded(&place, Postgres::connect(options, &place)).await?), place)
            }
            // Not even the scheme is quoted: what stands before a stray colon may be a password.
            _ => {
                return Err(Error::invalid(
                    "the store URL has an unknown scheme; expected sqlite:path/to/file.db or postgres://host/database",
                ));
            }
        };
        Ok(Self { dialect, place: Arc::new(place), keep: 50 })
    }

    /// Keeps so many finished records of a subject, at least 1, and whatever happens its last promoted one and those
    /// that are open. The rest is deleted whenever a rollout of the subject ends.
    #[must_use]
    pub fn keep(mut self, records: usize) -> Self {
        self.keep = i64::try_from(records.max(1)).unwrap_or(i64::MAX);
        self
    }

    /// All records as JSON, for a copy or a move to another store: `{"rollback_export":1,"records":[…]}`, oldest first.
    ///
    /// **An export holds what backends seal, in clear text**: keep it as private as the store. Requests that nobody has
    /// heard yet, and beats, are not in it.
    ///
    /// # Errors
    /// Only when the store cannot be reached or is broken.
    pub async fn export(&self) -> Result<String> {
        let all = async { work::all(&mut self.reader().await?.session(&self.place)).await };
        let records = bounded(&self.place, all).await?;
        serde_json::to_string(&Export::new(records))
            .map_err(|e| Error::new(ErrorKind::Internal, "the records cannot be written as JSON").because(e))
    }

    /// Adds the records of an [`export`](Self::export), all or none, and returns how many were new. What is here
    /// already is left alone, so the same export may be imported twice.
    ///
    /// Do not let two stores go on with the same open rollouts: shut the engines of the old one down first.
    ///
    /// # Errors
    /// `Conflict` when an id is taken by a different record or a subject has another open rollout here, `Invalid` when
    /// it is not an export, `Unsupported` when it is newer than this library. Nothing was added then.
    pub async fn import(&self, export: &str) -> Result<usize> {
        let export: Export = serde_json::from_str(export).map_err(|e| {
            // The words of the JSON error may quote what is sealed: keep the place only.
            Error::invalid(format!("what is imported is not an export (line {}, column {})", e.line(), e.column()))
        })?;
        match self.write(Write::Import(export.records()?)).await? {
            Answer::Count(new) => Ok(new),
            _ => unreachable!("an import is answered with a count"),
        }
    }

    /// Finishes what is under way and closes all connections. Calls after that are `Unavailable`, on clones too.
    ///
    /// Dropping the store is as safe; this one tells when the file may be moved.
    pub async fn close(self) {
        match self.dialect {
            Dialect::Postgres(postgres) => postgres.close().await,
            Dialect::Sqlite(sqlite) => sqlite.close().await,
        }
    }

    /// Runs statements where writes run, for tests: to fill a disk, or to play a newer version.
    ///
    /// # Errors
    /// As the statements.
    #[cfg(feature = "testing")]
    #[doc(hidden)]
    pub async fn batch(&self, statements: impl Into<String>) -> Result<()> {
        self.write(Write::Batch(statements.into())).await.map(drop)
    }

    async fn write(&self, write: Write) -> Result<Answer> {
        bounded(&self.place, async {
            match &self.dialect {
                Dialect::Sqlite(sqlite) => sqlite.write(write, self.keep, &self.place).await,
                Dialect::Postgres(postgres) => postgres.write(&write, self.keep, &self.place).await,
            }
        })
        .await
    }
}

impl Sql {
    /// A connection to read with.
    async fn reader(&self) -> Result<Reader> {
        Ok(match &self.dialect {
            Dialect::Sqlite(sqlite) => Reader::Sqlite(sqlite.reader(&self.place).await?),
            Dialect::Postgres(postgres) => Reader::Postgres(postgres.reader(&self.place).await?),
        })
    }
}

enum Reader {
    Sqlite(PoolConnection<sqlx::Sqlite>),
    Postgres(PoolConnection<sqlx::Postgres>),
}

impl Reader {
    fn session<'c>(&'c mut self, place: &'c Place) -> Session<'c> {
        match self {
            Self::Sqlite(connection) => Session::sqlite(connection, place),
            Self::Postgres(connection) => Session::postgres(connection, place),
        }
    }
}

#[async_trait]
impl Store for Sql {
    async fn create(&self, record: &Record) -> Result<Serial> {
        self.write(Write::Create(record.clone())).await.map(serial)
    }

    async fn load(&self, id: &RolloutId) -> Result<(Record, Serial)> {
        let load = async { work::load(&mut self.reader().await?.session(&self.place), id).await };
        bounded(&self.place, load).await?.ok_or_else(|| super::unknown(id))
    }

    async fn update(&self, record: &Record, expected: Serial) -> Result<Serial> {
        self.write(Write::Update(record.clone(), expected)).await.map(serial)
    }

    async fn open(&self) -> Result<Vec<Claim>> {
        bounded(&self.place, async { work::open(&mut self.reader().await?.session(&self.place)).await }).await
    }

    async fn history(&self, subject: &TargetId, limit: usize) -> Result<Vec<Record>> {
        let history = async { work::history(&mut self.reader().await?.session(&self.place), subject, limit).await };
        bounded(&self.place, history).await
    }

    async fn beat(&self, driver: &DriverId) -> Result<Vec<(RolloutId, Asked)>> {
        match self.write(Write::Beat(driver.clone())).await? {
            Answer::Asked(asked) => Ok(asked),
            _ => unreachable!("a beat is answered with what was asked"),
        }
    }

    async fn ask(&self, id: &RolloutId, request: &Request) -> Result<()> {
        self.write(Write::Ask(id.clone(), request.clone())).await.map(drop)
    }
}

impl fmt::Debug for Sql {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sql").field("place", &self.place).field("keep", &self.keep).finish_non_exhaustive()
    }
}

fn serial(answer: Answer) -> Serial {
    match answer {
        Answer::Serial(serial) => serial,
        _ => unreachable!("a record that is saved is answered with its serial"),
    }
}

/// No call waits for ever: a disk or a server may hang without a word.
async fn bounded<T>(place: &Place, call: impl Future<Output = Result<T>> + Send) -> Result<T> {
    match tokio::time::timeout(LIMIT, call).await {
        Ok(done) => done,
        Err(_) => Err(place.silent(LIMIT)),
    }
}

const LIMIT: Duration = Duration::from_secs(10);
