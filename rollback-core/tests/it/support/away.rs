//! A store that goes away and comes back when the test says so, for the process that holds it.

use std::sync::{
    Arc,
    atomic::{AtomicU8, Ordering},
};

use async_trait::async_trait;
use rollback_core::{
    Error, ErrorKind, Result,
    model::{DriverId, RolloutId, Serial, TargetId},
    request::Request,
    store::{Asked, Claim, Memory, Record, Store},
};

/// One process's way to a shared memory. Clones are the same way.
#[derive(Clone, Debug, Default)]
pub(crate) struct Away {
    memory: Memory,
    way: Arc<AtomicU8>,
}

/// What comes of a call to the store.
#[derive(Clone, Copy, Debug)]
#[repr(u8)]
pub(crate) enum Way {
    Open,
    /// `Unavailable`, at once.
    Fails,
    /// No answer, ever, and nothing lands.
    Hangs,
    /// Saves have no answer; beats and loads do.
    HangsOnSaves,
}

impl Away {
    pub(crate) fn to(memory: &Memory) -> Self {
        Self { memory: memory.clone(), way: Arc::default() }
    }

    /// What comes of calls from now on. A call that hangs already is not answered any more.
    pub(crate) fn set(&self, way: Way) {
        self.way.store(way as u8, Ordering::Release);
    }

    async fn reach(&self, saves: bool) -> Result<()> {
        let way = self.way.load(Ordering::Acquire);
        match way {
            _ if way == Way::Fails as u8 => Err(Error::new(ErrorKind::Unavailable, "the store is away")),
            _ if way == Way::Hangs as u8 || (way == Way::HangsOnSaves as u8 && saves) => std::future::pending().await,
            _ => Ok(()),
        }
    }
}

#[async_trait]
impl Store for Away {
    async fn create(&self, record: &Record) -> Result<Serial> {
        self.reach(true).await?;
        self.memory.create(record).await
    }
    async fn load(&self, id: &RolloutId) -> Result<(Record, Serial)> {
        self.reach(false).await?;
        self.memory.load(id).await
    }
    async fn update(&self, record: &Record, expected: Serial) -> Result<Serial> {
        self.reach(true).await?;
        self.memory.update(record, expected).await
    }
    async fn open(&self) -> Result<Vec<Claim>> {
        self.reach(false).await?;
        self.memory.open().await
    }
    async fn history(&self, subject: &TargetId, limit: usize) -> Result<Vec<Record>> {
        self.reach(false).await?;
        self.memory.history(subject, limit).await
    }
    async fn beat(&self, driver: &DriverId) -> Result<Vec<(RolloutId, Asked)>> {
        self.reach(false).await?;
        self.memory.beat(driver).await
    }
    async fn ask(&self, id: &RolloutId, request: &Request) -> Result<()> {
        self.reach(true).await?;
        self.memory.ask(id, request).await
    }
}
