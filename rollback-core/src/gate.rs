//! Health gates: what judges a candidate, how its verdicts count, and the built-in combinations.

mod combine;
mod policy;
mod signal;

use std::{collections::BTreeMap, fmt, sync::Arc};

use async_trait::async_trait;
use jiff::Timestamp;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;

pub use self::{
    combine::{All, Any, AtLeast, DryRun, FromFn, all, any, at_least, dry_run, from_fn},
    policy::{Finding, NoData, Policy, Skip, Slot, Standing, Trip},
    signal::{Signal, SignalGate, signal},
};
use crate::{
    backend::Readiness,
    error::{Error, Result},
    model::{Change, GateName, RevisionId, RolloutId, TargetId, Weight},
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
}

/// Why a gate says what it says: enough to explain the decision later.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evidence {
    /// How far the data reaches, in wall time. A bake passes only on data that reaches its end.
    pub until: Timestamp,
    /// One sentence for people.
    pub summary: String,
    /// Counts, statistic, threshold, query, what would have tripped it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub facts: BTreeMap<String, Value>,
    /// What the gate wants to have back in [`Window::last`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Value>,
}

impl Evidence {
    /// The most bytes of JSON that evidence may have. More is cut to its summary; more memory than that is an error.
    pub const MAX_LEN: usize = 8 * 1024;

    /// Evidence on data that reaches this far.
    pub fn new(until: Timestamp, summary: impl Into<String>) -> Self {
        Self { until, summary: summary.into(), facts: BTreeMap::new(), memory: None }
    }

    /// With a fact.
    #[must_use]
    pub fn fact(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        self.facts.insert(name.into(), value.into());
        self
    }

    /// With something to remember until the next verdict.
    #[must_use]
    pub fn remember(mut self, memory: Value) -> Self {
        self.memory = Some(memory);
        self
    }

    /// What the gate remembered.
    ///
    /// # Errors
    /// `Invalid` when it cannot be read: answer [`Verdict::Inconclusive`] then, never start afresh.
    pub fn recall<T: DeserializeOwned>(&self) -> Result<Option<T>> {
        self.memory
            .as_ref()
            .map(T::deserialize)
            .transpose()
            .map_err(|e| Error::invalid("the gate's memory is not what this gate writes").because(e))
    }

    /// Cut to [`Self::MAX_LEN`], the facts first.
    pub(crate) fn bounded(mut self) -> Result<Self> {
        let len = |evidence: &Self| serde_json::to_string(evidence).map_or(usize::MAX, |json| json.len());
        if len(&self) <= Self::MAX_LEN {
            return Ok(self);
        }
        if self.summary.len() > 1024 {
            let end = (0..=1024).rev().find(|at| self.summary.is_char_boundary(*at)).unwrap_or_default();
            self.summary.truncate(end);
            self.summary.push('…');
        }
        if len(&self) > Self::MAX_LEN {
            self.facts = BTreeMap::from([("cut".into(), "the facts were longer than 8 KiB".into())]);
        }
        if len(&self) > Self::MAX_LEN {
            return Err(Error::invalid("the gate keeps more than 8 KiB of memory"));
        }
        Ok(self)
    }
}
