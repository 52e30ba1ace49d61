//! Where a comparison gets its numbers: what happened to the requests of the candidate and of the baseline.

use std::{collections::BTreeMap, fmt, sync::Arc};

use async_trait::async_trait;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    error::Result,
    model::{RevisionId, TargetId},
};

/// Reads one metric of both revisions, for the gate `Compare`.
///
/// One value stands for one metric: which one, and how the revisions are told apart, is settled when it is made. It
/// keeps nothing between calls: the same query may be asked again, by another process after a restart.
///
/// No data is an error or an empty map, never zeros: an arm that was not measured must not look like one that had no
/// failures. An arm that was measured and had no requests has zero requests.
///
/// # Cancel safety
/// A call may be dropped at any time: reading has no effects.
#[cfg_attr(feature = "mock", mockall::automock)]
#[async_trait]
pub trait MetricSource: fmt::Debug + Send + Sync + 'static {
    /// What was counted after [`Query::since`].
    ///
    /// # Errors
    /// Whatever kept it from reading, said for the person on call: it becomes the gate's reason for having no data.
    async fn read(&self, query: &Query) -> Result<Reading>;
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl<T: MetricSource + ?Sized> MetricSource for Arc<T> {
    async fn read(&self, query: &Query) -> Result<Reading> {
        (**self).read(query).await
    }
}

/// What a source is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    /// The target of the rollout.
    pub target: TargetId,
    /// The revision to keep.
    pub baseline: RevisionId,
    /// The revision to judge.
    pub candidate: RevisionId,
    /// Which of them serve, and so must have data.
    pub serving: Serving,
    /// Only what happened after this counts: where the last reading ended, or when the step began.
    pub since: Timestamp,
    /// The time now. A source may stop earlier, where its data is complete, and says so in [`Reading::until`].
    pub now: Timestamp,
}

/// Which revisions serve. One that does must have data; of one that does not there may be some, and its absence is no
/// trouble.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Serving {
    /// Before the start: the candidate has never been there.
    Baseline,
    /// Both have traffic, or may have.
    Both,
    /// The candidate has all the traffic, and the baseline is cleared away sooner or later.
    Candidate,
}

impl Serving {
    /// Whether the candidate must have data.
    pub const fn candidate(self) -> bool {
        matches!(self, Self::Both | Self::Candidate)
    }

    /// Whether the baseline must have data.
    pub const fn baseline(self) -> bool {
        matches!(self, Self::Both | Self::Baseline)
    }
}

/// What a source answers.
#[derive(Clone, Debug, PartialEq)]
pub struct Reading {
    /// How far the data reaches. Never guess: data that is still coming in must come with the next reading.
    pub until: Timestamp,
    /// From when on it was counted.
    pub span: Span,
    /// The numbers.
    pub samples: Samples,
}

impl Reading {
    /// What was counted after [`Query::since`] and up to `until`: for sources that keep a history. Counters that began
    /// again in between are theirs to mend: see [`rise`].
    pub const fn since(until: Timestamp, samples: Samples) -> Self {
        Self { until, span: Span::Since, samples }
    }

    /// Counters as they stand at `until`, from a start of their own: for sources without a history. The gate takes the
    /// differences, and where a counter has gone back, as it does when its process restarts, begins again from there.
    pub const fn totals(until: Timestamp, samples: Samples) -> Self {
        Self { until, span: Span::Total, samples }
    }
}

/// From when on the numbers of a [`Reading`] were counted. Gauges have no span: they are as they were at its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Span {
    /// From [`Query::since`] on.
    Since,
    /// From whenever the counters began.
    Total,
}

/// The numbers of a [`Reading`], by label where the source was made to tell labels apart (routes, say), else under one
/// empty label. Labels are short and few: the gate keeps the busiest of the first
/// reading (9 of counts, 3 of latencies) and sums up the others.
#[derive(Clone, Debug, PartialEq)]
pub enum Samples {
    /// Requests, and how many of them failed.
    Counts(BTreeMap<String, Pair<Count>>),
    /// How long requests took.
    Buckets {
        /// Upper bounds of the buckets, ascending and finite, in the unit the source was made for.
        bounds: Vec<f64>,
        /// Requests in each bucket alone: up to and including its bound, over the bound before. One more than there
        /// are bounds: the last bucket has what is over the last bound.
        counts: BTreeMap<String, Pair<Vec<u64>>>,
    },
    /// One value a revision, as the processor time of an instance or the length of a queue. More is worse.
    Gauges(BTreeMap<String, Pair<f64>>),
}

impl Samples {
    /// Requests and failures without labels.
    pub fn counts(candidate: Count, baseline: Count) -> Self {
        Self::Counts(BTreeMap::from([(String::new(), Pair { candidate, baseline })]))
    }

    /// Latency buckets without labels; for the bounds and counts see [`Samples::Buckets`].
    pub fn buckets(bounds: Vec<f64>, candidate: Vec<u64>, baseline: Vec<u64>) -> Self {
        Self::Buckets { bounds, counts: BTreeMap::from([(String::new(), Pair { candidate, baseline })]) }
    }

    /// One value a revision, without labels.
    pub fn gauges(candidate: f64, baseline: f64) -> Self {
        Self::Gauges(BTreeMap::from([(String::new(), Pair { candidate, baseline })]))
    }
}

/// The same of both revisions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pair<T> {
    /// Of the revision to judge.
    #[serde(rename = "c")]
    pub candidate: T,
    /// Of the revision to keep.
    #[serde(rename = "b")]
    pub baseline: T,
}

/// Requests, and how many of them were bad.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "(u64, u64)", into = "(u64, u64)")]
pub struct Count {
    /// All of them.
    pub requests: u64,
    /// Those that failed, or were too slow.
    pub failures: u64,
}

impl Count {
    /// So many requests, of which so many failed.
    pub const fn new(requests: u64, failures: u64) -> Self {
        Self { requests, failures }
    }
}

impl From<(u64, u64)> for Count {
    fn from((requests, failures): (u64, u64)) -> Self {
        Self { requests, failures }
    }
}

impl From<Count> for (u64, u64) {
    fn from(count: Count) -> Self {
        (count.requests, count.failures)
    }
}

/// How far a counter rose over these samples of it, in order; where it fell its process had restarted, and it counts
/// from zero. `None` with fewer than two samples, or with one that is no number.
///
/// This is what Prometheus' `increase` does, without its extrapolation: a test that counts needs what was counted.
///
/// ```
/// # use rollback_core::gate::source::rise;
/// assert_eq!(rise([10.0, 14.0, 3.0, 5.0]), Some(4 + 3 + 2));
/// assert_eq!(rise([10.0]), None);
/// assert_eq!(rise([10.0, f64::NAN]), None);
/// ```
pub fn rise(samples: impl IntoIterator<Item = f64>) -> Option<u64> {
    let mut samples = samples.into_iter();
    let mut before = samples.next().filter(|first| first.is_finite())?;
    let (mut sum, mut any) = (0.0, false);
    for sample in samples {
        if !sample.is_finite() {
            return None;
        }
        sum += if sample < before { sample.max(0.0) } else { sample - before };
        (before, any) = (sample, true);
    }
    // Counters of requests are whole; what is not whole is the rounding of a float.
    any.then_some(sum.round() as u64)
}
