//! Health gates: what judges a candidate, how its verdicts count, and the built-in combinations.

#[cfg(feature = "alertmanager")]
mod alertmanager;
mod combine;
#[cfg(feature = "compare")]
mod compare;
mod facts;
#[cfg(feature = "http")]
pub mod http;
mod policy;
#[cfg(feature = "prometheus")]
pub mod prometheus;
#[cfg(feature = "compare")]
pub mod sequential;
mod signal;
#[cfg(feature = "compare")]
pub mod source;
#[cfg(feature = "compare")]
pub mod stats;

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use jiff::Timestamp;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;

#[cfg(feature = "alertmanager")]
pub use self::alertmanager::{Alertmanager, Preexisting};
#[cfg(feature = "compare")]
pub use self::compare::{Budget, Compare, Share};
#[cfg(feature = "http")]
pub use self::http::Http;
#[cfg(feature = "prometheus")]
pub use self::prometheus::Prometheus;
pub use self::{
    combine::{All, Any, AtLeast, DryRun, FromFn, all, any, at_least, dry_run, from_fn},
    facts::Facts,
    policy::{Finding, NoData, Policy, Skip, Slot, Standing, Trip},
    signal::{Signal, SignalGate, signal},
};
use crate::{
    backend::Readiness,
    error::{Error, Result},
    model::{Change, GateName, Note, RevisionId, RolloutId, TargetId, Weight},
    plan::Plan,
    wake::Wake,
};

/// Judges whether the candidate is fit to go on.
///
/// `judge` is a fold: what the gate learned before comes in as [`Window::last`], what it learned now goes out as the
/// verdict's [`Evidence`]. The gate itself keeps nothing, so a restart forgets nothing. It may be called again for the
/// same window, and may be dropped half way.
#[cfg_attr(feature = "mock", mockall::automock)]
#[async_trait]
pub trait HealthGate: fmt::Debug + Send + Sync + 'static {
    /// Its name in records, logs and messages; unique within its target.
    fn name(&self) -> &GateName;

    /// Judges what happened in this window.
    ///
    /// # Errors
    /// Whatever kept it from judging. An error counts as [`Verdict::Inconclusive`], never as health.
    async fn judge(&self, window: &Window) -> Result<Verdict>;

    /// Checks before the start that it can judge at all: the server answers, the metric exists, the alarm is not firing
    /// already. Proves nothing where nothing can go wrong.
    ///
    /// # Errors
    /// Only when it could not look. What speaks against the start is [`Readiness::refused`].
    async fn preflight(&self, _change: &Change, _plan: &Plan) -> Result<Readiness> {
        Ok(Readiness::default())
    }

    /// Takes a [`Wake`] that makes the engine ask this gate at once, as for a pushed event.
    fn attach(&self, _wake: Wake) {}
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl<T: HealthGate + ?Sized> HealthGate for Arc<T> {
    fn name(&self) -> &GateName {
        (**self).name()
    }
    async fn judge(&self, window: &Window) -> Result<Verdict> {
        (**self).judge(window).await
    }
    async fn preflight(&self, change: &Change, plan: &Plan) -> Result<Readiness> {
        (**self).preflight(change, plan).await
    }
    fn attach(&self, wake: Wake) {
        (**self).attach(wake);
    }
}

/// What a gate is asked about.
#[derive(Clone, Debug)]
pub struct Window {
    /// The rollout.
    pub rollout: RolloutId,
    /// Its target.
    pub target: TargetId,
    /// The revision to keep.
    pub baseline: RevisionId,
    /// The revision to judge.
    pub candidate: RevisionId,
    /// When the rollout was created: what was wrong before cannot be the candidate's fault.
    pub created: Timestamp,
    /// Index of the plan's step.
    pub step: usize,
    /// The candidate's share of traffic, as last observed.
    pub weight: Weight,
    /// When this step's weight was reached, in wall time; while shifting, when the shift began.
    pub since: Timestamp,
    /// The time now.
    pub now: Timestamp,
    /// What this gate said last in this rollout.
    pub last: Option<Evidence>,
}

impl Window {
    /// [`Verdict::Inconclusive`] for this reason, with everything the gate remembers kept as it was: what to answer when
    /// there is no data, or when the memory cannot be read.
    pub fn no_data(&self, why: impl Into<String>) -> Verdict {
        let (until, memory) = match &self.last {
            Some(last) => (last.until, last.memory.clone()),
            None => (self.since, None),
        };
        Verdict::Inconclusive(Evidence { until, summary: why.into(), facts: Facts::new(), memory })
    }
}

/// What a gate says. Closed: whoever answers a verdict answers all three.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// The data shows that the candidate is fit.
    Healthy(Evidence),
    /// The data shows that it is not.
    Unhealthy(Evidence),
    /// There is no data, or not enough, or it cannot be trusted. Never a pass.
    Inconclusive(Evidence),
}

impl Verdict {
    /// Why.
    pub const fn evidence(&self) -> &Evidence {
        match self {
            Self::Healthy(evidence) | Self::Unhealthy(evidence) | Self::Inconclusive(evidence) => evidence,
        }
    }

    /// The verdict without its evidence.
    pub const fn standing(&self) -> Standing {
        match self {
            Self::Healthy(_) => Standing::Healthy,
            Self::Unhealthy(_) => Standing::Unhealthy,
            Self::Inconclusive(_) => Standing::Inconclusive,
        }
    }

    /// With its evidence cut to [`Evidence::MAX_LEN`].
    pub(crate) fn bounded(self) -> Result<Self> {
        match self {
            Self::Healthy(evidence) => evidence.bounded().map(Self::Healthy),
            Self::Unhealthy(evidence) => evidence.bounded().map(Self::Unhealthy),
            Self::Inconclusive(evidence) => evidence.bounded().map(Self::Inconclusive),
        }
    }
}

/// Why a gate says what it says: enough to explain the decision later.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evidence {
    /// How far the data reaches, in wall time. A bake passes only on data that reaches its end.
    pub until: Timestamp,
    /// One sentence for people.
    pub summary: String,
    /// Counts, statistic, threshold, query, what would have tripped it.
    #[serde(default, skip_serializing_if = "Facts::is_empty")]
    pub facts: Facts,
    /// What the gate wants to have back in [`Window::last`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Value>,
}

impl Evidence {
    /// The most bytes of JSON that evidence may have. Where it has more, a summary is cut to 1 KiB, then the facts are
    /// left out. Memory is never cut: what does not fit then is an error, and so no data.
    pub const MAX_LEN: usize = 8 * 1024;

    /// Evidence on data that reaches this far.
    pub fn new(until: Timestamp, summary: impl Into<String>) -> Self {
        Self { until, summary: summary.into(), facts: Facts::new(), memory: None }
    }

    /// With a fact.
    #[must_use]
    pub fn fact(mut self, name: impl Into<Box<str>>, value: impl Into<Value>) -> Self {
        self.facts.insert(name, value);
        self
    }

    /// With something to remember until the next verdict. `Null` is nothing: a record could not tell them apart.
    #[must_use]
    pub fn remember(mut self, memory: Value) -> Self {
        self.memory = Some(memory).filter(|memory| !memory.is_null());
        self
    }

    /// What the gate remembered.
    ///
    /// # Errors
    /// `Invalid` when it cannot be read: answer [`Window::no_data`] then, which keeps it; never start afresh.
    pub fn recall<T: DeserializeOwned>(&self) -> Result<Option<T>> {
        self.memory
            .as_ref()
            .map(T::deserialize)
            .transpose()
            .map_err(|e| Error::invalid("the gate's memory is not what this gate writes").because(e))
    }

    /// Cut to [`Self::MAX_LEN`].
    pub(crate) fn bounded(mut self) -> Result<Self> {
        if self.len() <= Self::MAX_LEN {
            return Ok(self);
        }
        self.summary = Note::new(&self.summary).into();
        if self.len() > Self::MAX_LEN {
            self.facts = Facts::from_iter([("cut", "the facts were longer than 8 KiB".into())]);
        }
        match self.len() {
            ..=Self::MAX_LEN => Ok(self),
            len => Err(Error::invalid(format!(
                "the gate's evidence has {len} bytes without its facts, most of them memory; at most {} are accepted",
                Self::MAX_LEN
            ))),
        }
    }

    /// Bytes of JSON.
    fn len(&self) -> usize {
        serde_json::to_string(self).map_or(usize::MAX, |json| json.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn evidence() -> Evidence {
        Evidence::new(Timestamp::UNIX_EPOCH, "2 of 100 requests failed").fact("failed", 2)
    }

    #[test]
    fn evidence_that_fits_is_left_alone() {
        let memory = "m".repeat(Evidence::MAX_LEN - evidence().remember("".into()).len());
        let full = evidence().remember(memory.into());
        assert_eq!(full.len(), Evidence::MAX_LEN);
        assert_eq!(full.clone().bounded().unwrap(), full);
    }

    #[test]
    fn a_long_summary_is_cut_before_any_fact_is_left_out() {
        // Of several bytes each, so that cutting at a byte would split one.
        let long = Evidence { summary: "žluťoučký ".repeat(2000), ..evidence() }.bounded().unwrap();
        assert!(long.summary.len() <= Note::MAX_LEN && long.summary.ends_with('…'), "{}", long.summary);
        assert_eq!(long.facts, evidence().facts);
    }

    #[test]
    fn facts_are_left_out_for_the_sake_of_the_memory() {
        let long = evidence().fact("query", "q".repeat(5000)).remember("m".repeat(5000).into()).bounded().unwrap();
        assert_eq!((long.summary.as_str(), long.facts.len()), ("2 of 100 requests failed", 1));
        assert!(long.facts.get("cut").is_some());
        assert_eq!(long.memory, Some("m".repeat(5000).into()));
        assert!(long.len() <= Evidence::MAX_LEN);
    }

    #[test]
    fn too_much_memory_is_an_error_and_never_cut() {
        let error = evidence().remember("m".repeat(Evidence::MAX_LEN).into()).bounded().unwrap_err();
        assert_eq!(
            error.to_string(),
            format!(
                "the gate's evidence has {} bytes without its facts, most of them memory; at most 8192 are accepted",
                evidence().remember("m".repeat(Evidence::MAX_LEN).into()).len() - r#"{"failed":2}"#.len()
                    + r#"{"cut":"the facts were longer than 8 KiB"}"#.len()
            )
        );
    }

    #[test]
    fn six_kib_of_memory_always_fit() {
        // Every character of this summary takes six bytes of JSON.
        let worst = Evidence { summary: "\u{1}".repeat(9000), ..evidence() }.fact("query", "q".repeat(9000));
        let kept = worst.remember("m".repeat(6 * 1024).into()).bounded().unwrap();
        assert_eq!(kept.memory, Some("m".repeat(6 * 1024).into()));
        let quotes = Evidence { summary: "\"".repeat(9000), ..evidence() }.remember("m".repeat(6000).into());
        assert_eq!(quotes.bounded().unwrap().memory, Some("m".repeat(6000).into()));
    }

    #[test]
    fn remembering_nothing_is_the_same_before_and_after_a_restart() {
        let nothing = evidence().remember(Value::Null);
        let json = serde_json::to_string(&nothing).unwrap();
        assert_eq!(serde_json::from_str::<Evidence>(&json).unwrap(), nothing);
    }
}
