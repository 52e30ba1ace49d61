//! The default store: this process's memory. For tests, and for tools that run one rollout and end.

use std::{
    collections::{BTreeSet, HashMap},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;

use super::{Asked, Claim, Record, Standing, Store};
use crate::{
    error::Result,
    model::{DriverId, RolloutId, Serial, TargetId},
    request::Request,
};

/// Keeps records in memory. What it keeps is gone with the process, so nothing can be resumed: use `Sql`, of the feature `sql`,
/// for anything that matters. Clones share one memory.
#[derive(Clone)]
pub struct Memory {
    inner: Arc<Mutex<Inner>>,
    keep: usize,
}

#[derive(Default)]
struct Inner {
    rows: HashMap<RolloutId, Row>,
    subjects: HashMap<TargetId, Subject>,
    open: BTreeSet<RolloutId>,
    beats: HashMap<DriverId, u64>,
    asked: HashMap<RolloutId, Vec<Asked>>,
}

#[derive(Default)]
struct Subject {
    /// Oldest first.
    rollouts: Vec<RolloutId>,
    open: Option<RolloutId>,
}

struct Row {
    record: Record,
    serial: Serial,
    last_asked: u64,
}

impl Default for Memory {
    fn default() -> Self {
        Self::new()
    }
}

impl Memory {
    /// An empty memory that keeps the last 50 records of a subject.
    pub fn new() -> Self {
        Self { inner: Arc::default(), keep: 50 }
    }

    /// Keeps so many finished records of a subject, at least 1, and always the last promoted one and the open one.
    #[must_use]
    pub fn keep(mut self, records: usize) -> Self {
        self.keep = records.max(1);
        self
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Memory").field("keep", &self.keep).finish_non_exhaustive()
    }
}

#[async_trait]
impl Store for Memory {
    async fn create(&self, record: &Record) -> Result<Serial> {
        let mut inner = self.lock();
        if let Some(row) = inner.rows.get(&record.id) {
            if row.record == *record && row.serial == Serial(1) {
                return Ok(row.serial);
            }
            return Err(super::taken(&record.id));
        }
        inner.check_free(record)?;
        let row = Row { record: record.clone(), serial: Serial(1), last_asked: 0 };
        inner.rows.insert(record.id.clone(), row);
        inner.subjects.entry(record.subject.clone()).or_default().rollouts.push(record.id.clone());
        inner.settle(record);
        inner.trim(record, self.keep);
        Ok(Serial(1))
    }

    async fn load(&self, id: &RolloutId) -> Result<(Record, Serial)> {
        let inner = self.lock();
        let row = inner.rows.get(id).ok_or_else(|| super::unknown(id))?;
        Ok((row.record.clone(), row.serial))
    }

    async fn update(&self, record: &Record, expected: Serial) -> Result<Serial> {
        let mut inner = self.lock();
        let row = inner.rows.get(&record.id).ok_or_else(|| super::unknown(&record.id))?;
        if row.serial != expected {
            return Err(super::stale(&record.id, row.serial, expected));
        }
        if row.record.subject != record.subject {
            return Err(super::elsewhere(&record.id, &row.record.subject));
        }
        inner.check_free(record)?;
        let row = inner.rows.get_mut(&record.id).expect("it was there a few lines above");
        row.record = record.clone();
        row.serial = expected.next();
        if let Some(asked) = inner.asked.get_mut(&record.id) {
            asked.retain(|asked| asked.number > record.heard);
        }
        inner.settle(record);
        inner.trim(record, self.keep);
        Ok(expected.next())
    }

    async fn open(&self) -> Result<Vec<Claim>> {
        let inner = self.lock();
        let claim = |id: &RolloutId| {
            let record = &inner.rows[id].record;
            let beat = record.driver.as_ref().and_then(|driver| inner.beats.get(driver)).copied();
            Claim { id: id.clone(), subject: record.subject.clone(), driver: record.driver.clone(), beat }
        };
        Ok(inner.open.iter().map(claim).collect())
    }

    async fn history(&self, subject: &TargetId, limit: usize) -> Result<Vec<Record>> {
        let inner = self.lock();
        let ids = inner.subjects.get(subject).map(|subject| subject.rollouts.as_slice()).unwrap_or_default();
        Ok(ids.iter().rev().take(limit).map(|id| inner.rows[id].record.clone()).collect())
    }

    async fn beat(&self, driver: &DriverId) -> Result<Vec<(RolloutId, Asked)>> {
        let mut inner = self.lock();
        match inner.beats.get_mut(driver) {
            Some(beat) => *beat += 1,
            None => drop(inner.beats.insert(driver.clone(), 1)),
        }
        let mut mine = Vec::new();
        for (id, asked) in &inner.asked {
            let record = &inner.rows[id].record;
            if record.driver.as_ref() == Some(driver) && record.standing == Standing::Open {
                mine.extend(asked.iter().map(|asked| (id.clone(), asked.clone())));
            }
        }
        mine.sort_by(|(a, x), (b, y)| (a, x.number).cmp(&(b, y.number)));
        Ok(mine)
    }

    async fn ask(&self, id: &RolloutId, request: &Request) -> Result<()> {
        let mut inner = self.lock();
        let row = inner.rows.get_mut(id).ok_or_else(|| super::unknown(id))?;
        if row.record.standing != Standing::Open {
            return Err(super::over(id));
        }
        // A record may have heard more than was asked here, when it came from another store.
        row.last_asked = row.last_asked.max(row.record.heard) + 1;
        let asked = Asked { number: row.last_asked, request: request.clone() };
        inner.asked.entry(id.clone()).or_default().push(asked);
        Ok(())
    }
}

impl Inner {
    /// Brings the indexes in line with a record.
    fn settle(&mut self, record: &Record) {
        let subject = self.subjects.entry(record.subject.clone()).or_default();
        if record.standing == Standing::Open {
            self.open.insert(record.id.clone());
            subject.open = Some(record.id.clone());
        } else {
            self.open.remove(&record.id);
            self.asked.remove(&record.id);
            if subject.open.as_ref() == Some(&record.id) {
                subject.open = None;
            }
        }
    }

    /// Forgets a subject's oldest finished records: all but the newest `keep`, the last promoted and the one just saved.
    fn trim(&mut self, saved: &Record, keep: usize) {
        if saved.standing == Standing::Open {
            return;
        }
        let Some(history) = self.subjects.get_mut(&saved.subject) else { return };
        let (mut finished, mut promoted) = (0, false);
        let mut kept = Vec::with_capacity(history.rollouts.len());
        for id in std::mem::take(&mut history.rollouts).into_iter().rev() {
            let standing = self.rows[&id].record.standing;
            let last_promoted = standing == Standing::Promoted && !std::mem::replace(&mut promoted, true);
            finished += usize::from(standing != Standing::Open);
            if standing == Standing::Open || last_promoted || finished <= keep || id == saved.id {
                kept.push(id);
            } else {
                self.rows.remove(&id);
                self.asked.remove(&id);
            }
        }
        kept.reverse();
        history.rollouts = kept;
    }

    /// Whether the record may be open as far as its subject goes.
    fn check_free(&self, record: &Record) -> Result<()> {
        let open = self.subjects.get(&record.subject).and_then(|subject| subject.open.as_ref());
        match open.filter(|open| record.standing == Standing::Open && **open != record.id) {
            Some(open) => Err(super::busy(&record.subject, open)),
            None => Ok(()),
        }
    }
}
