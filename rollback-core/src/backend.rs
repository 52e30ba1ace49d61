//! The deployment backend: the trait a platform implements, and what it says of itself.

use std::{fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::{
    error::{Error, ErrorKind, Result},
    model::{Attempt, Change, Goal, Note, Observed, Revision, Weight},
    plan::Plan,
    state::Versions,
    wake::Wake,
};

/// Puts a revision in front of users, and says what is in front of them now.
///
/// One value stands for one target. A backend keeps no state of its own between calls: what it must find again it
/// writes on the target, with the attempt's nonce. Any call may be repeated, made by another process after a crash, or
/// arrive late.
#[cfg_attr(feature = "mock", mockall::automock)]
#[async_trait]
pub trait DeploymentBackend: fmt::Debug + Send + Sync + 'static {
    /// What the platform can do: static facts, asked before anything else.
    fn capabilities(&self) -> Capabilities;

    /// What serves now, complete enough to bring it back. Has no effects.
    ///
    /// # Errors
    /// `Mixed`, naming the parts, when they serve different revisions; `NotFound` when the target does not exist;
    /// `Denied` when it may not be read.
    async fn baseline(&self) -> Result<Revision>;

    /// Proves, without changing anything, that the way forward *and* the way back are open: permissions, history kept,
    /// artefacts still there, dry runs. What cannot be proved is listed, not passed over.
    ///
    /// # Errors
    /// Only when it could not look. What is closed is [`Readiness::refused`] or [`Readiness::no_way_back`].
    async fn preflight(&self, change: &Change, plan: &Plan) -> Result<Readiness>;

    /// How far the target is from `goal`, and what is due next. Has no effects.
    ///
    /// `last` is the last attempt in the record: while its version is still the target's, an answer may be on its way,
    /// and [`Observed::landed`] says whether it is known to have landed.
    ///
    /// # Errors
    /// Whatever kept it from looking. The engine looks again until the state's deadline.
    async fn observe<'a>(&self, change: &Change, goal: Goal, last: Option<&'a Attempt>) -> Result<Observed>;

    /// Asks for the one effect that [`observe`](Self::observe) called due, unless the target has moved on from the
    /// attempt's version.
    ///
    /// An accepted shift **spends its version even if nothing else changes**: it leaves the nonce on the target. The
    /// engine may ask for a shift towards a goal that is reached already, only to spend the version; a late call that
    /// carries it is refused from then on.
    ///
    /// Returns once the change is accepted; a later look tells when it has arrived. The engine never drops this call,
    /// but it may stop waiting.
    ///
    /// # Errors
    /// `Conflict` when the target has moved on: nothing was changed. With `Unavailable` and `Internal` assume nothing:
    /// the call may have landed.
    async fn shift(&self, change: &Change, goal: Goal, attempt: &Attempt) -> Result<()>;

    /// Takes a [`Wake`] that a watch or a pushed event may use to make the engine look early. Keep it or drop it; a
    /// needless wake costs a look.
    fn attach(&self, _wake: Wake) {}
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl<T: DeploymentBackend + ?Sized> DeploymentBackend for Arc<T> {
    fn capabilities(&self) -> Capabilities {
        (**self).capabilities()
    }
    async fn baseline(&self) -> Result<Revision> {
        (**self).baseline().await
    }
    async fn preflight(&self, change: &Change, plan: &Plan) -> Result<Readiness> {
        (**self).preflight(change, plan).await
    }
    async fn observe<'a>(&self, change: &Change, goal: Goal, last: Option<&'a Attempt>) -> Result<Observed> {
        (**self).observe(change, goal, last).await
    }
    async fn shift(&self, change: &Change, goal: Goal, attempt: &Attempt) -> Result<()> {
        (**self).shift(change, goal, attempt).await
    }
    fn attach(&self, wake: Wake) {
        (**self).attach(wake);
    }
}

/// Static facts about a platform.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// Which shares of traffic it can give.
    pub weights: Weights,
    /// Whether it refuses a shift that carries a version it no longer has.
    pub versions: Versions,
    /// Whether the baseline stands at full size until the promotion, so that going back is one effect.
    pub baseline_stands: bool,
    /// Whether a change that has begun can be held where it is, for approvals and pauses.
    pub can_hold: bool,
}

impl Capabilities {
    /// Any weight, versions checked, the baseline stands, can be held: as a Lambda alias or an HTTPRoute.
    pub const fn full() -> Self {
        Self { weights: Weights::Any, versions: Versions::Checked, baseline_stands: true, can_hold: true }
    }

    /// With these shares of traffic.
    #[must_use]
    pub fn weights(mut self, weights: Weights) -> Self {
        self.weights = weights;
        self
    }

    /// On a platform that checks no versions: after `settle` an unanswered call is taken as never to land.
    #[must_use]
    pub const fn unchecked(mut self, settle: Duration) -> Self {
        self.versions = Versions::Unchecked { settle };
        self
    }

    /// Whether the platform can express this plan.
    ///
    /// # Errors
    /// `Unsupported`, naming the step and what would be accepted.
    pub fn admit(&self, plan: &Plan) -> Result<()> {
        for (at, step) in plan.steps().iter().enumerate() {
            let name = || format!("step {} of {} in the plan", at + 1, plan.steps().len());
            if !self.weights.contains(step.weight) {
                return Err(Error::new(
                    ErrorKind::Unsupported,
                    format!("{} asks for {}; this target can give {}", name(), step.weight, self.weights),
                ));
            }
            if step.approval.is_some() && !self.can_hold {
                return Err(Error::new(
                    ErrorKind::Unsupported,
                    format!("{} waits for approval, but this target cannot be held once it moves", name()),
                ));
            }
        }
        Ok(())
    }
}

/// Which shares of traffic a platform can give the candidate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Weights {
    /// Every percentage.
    Any,
    /// These, ascending; 100 is always possible.
    Only(Box<[Weight]>),
    /// The platform moves the traffic at its own pace: 100 is asked for, and shares in between are seen, not chosen.
    ProvidersPace,
}

impl Weights {
    /// Only these percentages besides 100.
    ///
    /// # Errors
    /// `Invalid` for a percentage over 100.
    pub fn only(percents: impl IntoIterator<Item = u8>) -> Result<Self> {
        let mut weights = percents.into_iter().map(Weight::try_from).collect::<Result<Vec<_>>>()?;
        weights.push(Weight::ALL);
        weights.sort_unstable();
        weights.dedup();
        Ok(Self::Only(weights.into()))
    }

    pub(crate) fn contains(&self, weight: Weight) -> bool {
        match self {
            Self::Any => true,
            Self::Only(these) => weight == Weight::ALL || these.contains(&weight),
            Self::ProvidersPace => weight == Weight::ALL,
        }
    }
}

impl fmt::Display for Weights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("any weight"),
            Self::Only(these) => {
                let list: Vec<String> = these.iter().map(Weight::to_string).collect();
                write!(f, "only {}", list.join(", "))
            }
            Self::ProvidersPace => f.write_str("only 100 %, at the platform's own pace"),
        }
    }
}

/// What preflight found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Readiness {
    /// What was proved, as in "may write the alias".
    pub proved: Vec<Note>,
    /// What cannot be proved on this platform, and so remains a risk.
    pub not_provable: Vec<Note>,
    /// What speaks against the start: which, and what to do instead. One is enough to refuse the rollout.
    pub refused: Vec<Note>,
    /// Why a rollback would not be possible. One is enough to refuse the rollout, unless its author allowed it to be
    /// irreversible.
    pub no_way_back: Vec<Note>,
    /// What a rollback would not bring back (configuration, add-ons, schema), and what going back costs here.
    pub not_restored: Vec<Note>,
}

impl Readiness {
    /// With something proved.
    #[must_use]
    pub fn proved(mut self, what: impl Into<Note>) -> Self {
        self.proved.push(what.into());
        self
    }

    /// With something that cannot be proved.
    #[must_use]
    pub fn not_provable(mut self, what: impl Into<Note>) -> Self {
        self.not_provable.push(what.into());
        self
    }

    /// With a reason why a rollback would not be possible.
    #[must_use]
    pub fn no_way_back(mut self, why: impl Into<Note>) -> Self {
        self.no_way_back.push(why.into());
        self
    }

    /// With something that speaks against the start.
    #[must_use]
    pub fn refused(mut self, why: impl Into<Note>) -> Self {
        self.refused.push(why.into());
        self
    }

    /// With something a rollback would not bring back.
    #[must_use]
    pub fn not_restored(mut self, what: impl Into<Note>) -> Self {
        self.not_restored.push(what.into());
        self
    }

    /// This and that.
    #[must_use]
    pub fn and(mut self, other: Self) -> Self {
        self.proved.extend(other.proved);
        self.not_provable.extend(other.not_provable);
        self.refused.extend(other.refused);
        self.no_way_back.extend(other.no_way_back);
        self.not_restored.extend(other.not_restored);
        self
    }
}
