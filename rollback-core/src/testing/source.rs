//! A metric source that tells what the test wants it to tell.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use async_trait::async_trait;
use jiff::Timestamp;

use crate::{
    error::{Error, ErrorKind, Result},
    gate::source::{Count, MetricSource, Query, Reading, Samples},
};

/// Even traffic of a candidate and a baseline, by the clock of the query: the same times give the same counts, however
/// often they are asked. Clones are the same traffic, so a test keeps one and hands out another.
///
/// ```
/// # use rollback_core::testing::source::Traffic;
/// // 100 requests a second, of which the candidate has 10; it fails a fifth of them, the baseline one in two hundred.
/// let traffic = Traffic::new(100.0, 0.1).failing(0.2, 0.005);
/// ```
#[derive(Clone, Debug)]
pub struct Traffic(Arc<Mutex<Flow>>);

#[derive(Debug)]
struct Flow {
    per_second: f64,
    share: f64,
    candidate_fails: f64,
    baseline_fails: f64,
    fault: Option<ErrorKind>,
    /// Since when the process counts, where the source has no history.
    counts_since: Option<Timestamp>,
    asked: Vec<Query>,
}

impl Traffic {
    /// So many requests a second, of which the candidate has this share. None of them fails.
    pub fn new(per_second: f64, share: f64) -> Self {
        Self(Arc::new(Mutex::new(Flow {
            per_second,
            share,
            candidate_fails: 0.0,
            baseline_fails: 0.0,
            fault: None,
            counts_since: None,
            asked: Vec::new(),
        })))
    }

    /// From the next question on these parts fail, of the candidate's and of the baseline's.
    #[must_use]
    pub fn failing(self, candidate: f64, baseline: f64) -> Self {
        self.fail(candidate, baseline);
        self
    }

    /// As [`failing`](Self::failing).
    pub fn fail(&self, candidate: f64, baseline: f64) {
        let mut flow = self.flow();
        (flow.candidate_fails, flow.baseline_fails) = (candidate, baseline);
    }

    /// From the next question on the candidate has this share of so many requests.
    pub fn flow_at(&self, per_second: f64, share: f64) {
        let mut flow = self.flow();
        (flow.per_second, flow.share) = (per_second, share);
    }

    /// From now on it fails like this; `None` ends that.
    pub fn fault(&self, fault: Option<ErrorKind>) {
        self.flow().fault = fault;
    }

    /// From now on it has no history: counters as they stand, of a process that started then.
    pub fn counts_since(&self, start: Timestamp) {
        self.flow().counts_since = Some(start);
    }

    /// What it was asked.
    pub fn asked(&self) -> Vec<Query> {
        self.flow().asked.clone()
    }

    fn flow(&self) -> MutexGuard<'_, Flow> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Flow {
    fn samples(&self, since: Timestamp, until: Timestamp) -> Samples {
        // Whole events up to each end, so that what one interval misses the next one has.
        let between = |rate: f64| {
            let events = |at: Timestamp| (at.as_millisecond() as f64 / 1000.0 * rate).floor();
            (events(until) - events(since)).max(0.0) as u64
        };
        let arm = |share: f64, fails: f64| {
            let rate = self.per_second * share;
            Count::new(between(rate), between(rate * fails))
        };
        Samples::counts(arm(self.share, self.candidate_fails), arm(1.0 - self.share, self.baseline_fails))
    }
}

#[async_trait]
impl MetricSource for Traffic {
    async fn read(&self, query: &Query) -> Result<Reading> {
        let mut flow = self.flow();
        flow.asked.push(query.clone());
        if let Some(kind) = flow.fault {
            return Err(Error::new(kind, "the traffic is not counted, by script"));
        }
        Ok(match flow.counts_since {
            Some(start) => Reading::totals(query.now, flow.samples(start, query.now)),
            None => Reading::since(query.now, flow.samples(query.since, query.now)),
        })
    }
}

/// Readings made by hand, one a question, then the last for ever.
///
/// # Panics
/// It panics when there are none.
pub fn readings(readings: impl IntoIterator<Item = Result<Reading>>) -> Readings {
    let next: VecDeque<_> = readings.into_iter().collect();
    assert!(!next.is_empty(), "a script without readings");
    Readings(Mutex::new(next))
}

/// What [`readings`] makes.
#[derive(Debug)]
pub struct Readings(Mutex<VecDeque<Result<Reading>>>);

#[async_trait]
impl MetricSource for Readings {
    async fn read(&self, _: &Query) -> Result<Reading> {
        let mut next = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match (next.len(), next.front()) {
            (1, Some(Ok(last))) => Ok(last.clone()),
            (1, Some(Err(e))) => Err(Error::new(e.kind(), e.to_string())),
            _ => next.pop_front().expect("readings() refuses none"),
        }
    }
}
