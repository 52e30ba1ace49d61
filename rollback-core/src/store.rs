//! Where rollouts are recorded: an envelope that a store reads, and a body that it never reads.

mod memory;
#[cfg(feature = "sql")]
mod sql;

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

pub use self::memory::Memory;
#[cfg(feature = "sql")]
pub use self::sql::Sql;
use crate::{
    error::{Error, ErrorKind, Result},
    model::{DriverId, RolloutId, Serial, TargetId},
    request::Request,
};

/// Keeps the records of rollouts, with compare-and-swap on one serial a record.
///
/// Everything a caller was told is saved survives a crash at the next instant. A failed or dropped call may have
/// landed: load and compare.
#[cfg_attr(feature = "mock", mockall::automock)]
#[async_trait]
pub trait Store: fmt::Debug + Send + Sync + 'static {
    /// Saves a new record and returns its first serial. The same record twice is harmless.
    ///
    /// # Errors
    /// `Conflict`, naming the open rollout, when its subject has one; `Conflict` too when the id is taken by another
    /// record.
    async fn create(&self, record: &Record) -> Result<Serial>;

    /// Loads a record.
    ///
    /// # Errors
    /// `NotFound` when there is none of this id.
    async fn load(&self, id: &RolloutId) -> Result<(Record, Serial)>;

    /// Replaces a record that still has the serial `expected`, and returns the next one. Claiming a rollout is an
    /// update that writes our driver. Requests up to the record's `heard` are forgotten.
    ///
    /// # Errors
    /// `Conflict` when the record has another serial, or when it is to be opened again while its subject has another
    /// open rollout; `NotFound` when there is none; `Invalid` when its subject is another than at first. Nothing was
    /// changed then.
    async fn update(&self, record: &Record, expected: Serial) -> Result<Serial>;

    /// All open rollouts, with the beats of their drivers.
    ///
    /// # Errors
    /// Only when the store cannot be reached or is broken.
    async fn open(&self) -> Result<Vec<Claim>>;

    /// The subject's records, newest first, at most `limit`.
    ///
    /// # Errors
    /// Only when the store cannot be reached or is broken.
    async fn history(&self, subject: &TargetId, limit: usize) -> Result<Vec<Record>>;

    /// "I live; what was asked of mine?" Raises the driver's beat, and returns the requests for the open rollouts it
    /// drives that their records have not heard, each rollout's oldest first.
    ///
    /// # Errors
    /// Only when the store cannot be reached or is broken.
    async fn beat(&self, driver: &DriverId) -> Result<Vec<(RolloutId, Asked)>>;

    /// Leaves a request for a rollout, from any process. It is kept until the rollout's record has heard it.
    ///
    /// # Errors
    /// `NotFound` when there is no such rollout; `Conflict` when it is over, so that nobody will hear it.
    async fn ask(&self, id: &RolloutId, request: &Request) -> Result<()>;
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl<T: Store + ?Sized> Store for Arc<T> {
    async fn create(&self, record: &Record) -> Result<Serial> {
        (**self).create(record).await
    }
    async fn load(&self, id: &RolloutId) -> Result<(Record, Serial)> {
        (**self).load(id).await
    }
    async fn update(&self, record: &Record, expected: Serial) -> Result<Serial> {
        (**self).update(record, expected).await
    }
    async fn open(&self) -> Result<Vec<Claim>> {
        (**self).open().await
    }
    async fn history(&self, subject: &TargetId, limit: usize) -> Result<Vec<Record>> {
        (**self).history(subject, limit).await
    }
    async fn beat(&self, driver: &DriverId) -> Result<Vec<(RolloutId, Asked)>> {
        (**self).beat(driver).await
    }
    async fn ask(&self, id: &RolloutId, request: &Request) -> Result<()> {
        (**self).ask(id, request).await
    }
}

/// A rollout as a store sees it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The rollout.
    pub id: RolloutId,
    /// What it is about: at most one open rollout a subject.
    pub subject: TargetId,
    /// The process that drives it; none when it was released.
    pub driver: Option<DriverId>,
    /// Whether it is open, and if not, whether it was promoted. History never trims a subject's last promoted record.
    pub standing: Standing,
    /// The format of the body. An unknown one is an error to whoever reads the body, never a guess.
    pub format: u32,
    /// The number of the last request that is in the body.
    pub heard: u64,
    /// The rollout itself, as JSON text (without NUL, which JSON escapes). Private: it holds what backends seal.
    pub body: Arc<str>,
}

/// Without the body, which is private.
impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Record")
            .field("id", &self.id)
            .field("subject", &self.subject)
            .field("driver", &self.driver)
            .field("standing", &self.standing)
            .field("format", &self.format)
            .field("heard", &self.heard)
            .field("body", &format_args!("{} bytes", self.body.len()))
            .finish()
    }
}

/// Whether a record is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// Something can still happen to it.
    Open,
    /// It is over, and the candidate was promoted.
    Promoted,
    /// It is over in another way.
    Over,
}

impl Standing {
    /// In a word: `open`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Promoted => "promoted",
            Self::Over => "over",
        }
    }
}

/// An open rollout and who drives it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The rollout.
    pub id: RolloutId,
    /// What it is about.
    pub subject: TargetId,
    /// Who drives it; none when it was released.
    pub driver: Option<DriverId>,
    /// The driver's last beat. It changes with every beat and means nothing else; a driver is dead when it has not
    /// changed for the lease, by the watcher's own clock. None when the driver never beat.
    pub beat: Option<u64>,
}

/// A request with the number under which the store keeps it. Numbers rise within a rollout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// The number, from 1.
    pub number: u64,
    /// The request.
    pub request: Request,
}

fn busy(subject: &TargetId, open: &RolloutId) -> Error {
    Error::new(ErrorKind::Conflict, format!("{subject} is busy with rollout {open}"))
}

fn taken(id: &RolloutId) -> Error {
    Error::new(ErrorKind::Conflict, format!("the rollout id {id} is taken"))
}

fn elsewhere(id: &RolloutId, subject: &TargetId) -> Error {
    Error::invalid(format!("rollout {id} is about {subject}, which cannot be changed"))
}

fn unknown(id: &RolloutId) -> Error {
    Error::new(ErrorKind::NotFound, format!("there is no rollout {id}"))
}

fn stale(id: &RolloutId, seen: Serial, expected: Serial) -> Error {
    Error::new(ErrorKind::Conflict, format!("the record of rollout {id} has serial {seen}, not {expected}"))
}

fn over(id: &RolloutId) -> Error {
    Error::new(ErrorKind::Conflict, format!("rollout {id} is over"))
}
