//! The state machine of a rollout: pure, without clock, I/O or `async`.
//!
//! [`State::next`] says where an event leads, [`State::goal`] what the state wants to be in front of users, and
//! [`State::heed`] what a look means for it. The engine is a loop around these three, and the exhaustive search in the
//! tests runs exactly them.
//!
//! ```text
//! Preflight ─► Shifting{step} ─► Baking{step} ─► … ─► Promoting ─► Promoted
//!     │            │    ▲             │                   │
//!     │            ▼    └── next ─────┘                   │
//!     │         Holding (waits for a person) ◄────────────┤
//!     ▼            │                                      ▼
//!  Refused         └──────────────────────────────► RollingBack ─► RolledBack
//!                                                         │
//!                              Abandoned ◄── drift        └─► Stuck (a person) ─► resumed, aborted, given up
//! ```

use std::{fmt, time::Duration};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    model::{Actor, Attempt, Effect, GateName, Goal, Note, Observed, Progress, RolloutId, Serves, Weight},
    plan::{Plan, Step},
};

/// What a rollout is attempting. Saved on entry, so it is also the write-ahead intent.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
#[must_use]
pub enum State {
    /// Proving that the way forward and the way back are open. Nothing has changed.
    Preflight,
    /// Giving the candidate this step's weight.
    Shifting {
        /// Index into the plan's steps.
        step: usize,
    },
    /// Watching this step.
    Baking {
        /// Index into the plan's steps.
        step: usize,
        /// How much of the bake has been watched.
        watched: Duration,
    },
    /// Clearing the baseline away; the candidate is to stand alone.
    Promoting,
    /// Bringing the baseline back. Hears no gate, strategy, pause or abort.
    RollingBack {
        /// Why.
        cause: Cause,
    },
    /// Waiting for a person.
    Holding {
        /// What was being attempted.
        from: Interrupted,
        /// What for.
        why: Hold,
        /// When the default exit is taken.
        until: Timestamp,
    },
    /// Cannot go on by itself: a person resumes it, aborts it (it goes back, where there is a way back), or gives it up.
    Stuck {
        /// What was being attempted.
        from: Interrupted,
        /// Why it cannot go on.
        why: Note,
    },
    /// Only the candidate serves.
    Promoted,
    /// Only the baseline serves.
    RolledBack {
        /// Why.
        cause: Cause,
    },
    /// Nothing was changed.
    Refused {
        /// Why.
        why: Refusal,
    },
    /// Hands off: the target is as somebody else left it.
    Abandoned {
        /// Why.
        why: Abandonment,
    },
}

/// A state that can be taken up again.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum Interrupted {
    /// [`State::Preflight`].
    Preflight,
    /// [`State::Shifting`].
    Shifting {
        /// Index into the plan's steps.
        step: usize,
    },
    /// [`State::Baking`].
    Baking {
        /// Index into the plan's steps.
        step: usize,
        /// How much of the bake had been watched.
        watched: Duration,
    },
    /// [`State::Promoting`].
    Promoting,
    /// [`State::RollingBack`].
    RollingBack {
        /// Why.
        cause: Cause,
    },
}

impl Interrupted {
    /// Whether it led to the candidate.
    pub(crate) const fn goes_forward(&self) -> bool {
        !matches!(self, Self::RollingBack { .. })
    }
}

impl From<Interrupted> for State {
    fn from(from: Interrupted) -> Self {
        match from {
            Interrupted::Preflight => Self::Preflight,
            Interrupted::Shifting { step } => Self::Shifting { step },
            Interrupted::Baking { step, watched } => Self::Baking { step, watched },
            Interrupted::Promoting => Self::Promoting,
            Interrupted::RollingBack { cause } => Self::RollingBack { cause },
        }
    }
}

/// Why a rollout goes back.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "cause", rename_all = "snake_case")]
pub enum Cause {
    /// A gate tripped.
    Unhealthy {
        /// Which.
        gate: GateName,
        /// Its evidence in a sentence.
        why: Note,
    },
    /// A gate had no data for longer than its policy bears.
    NoData {
        /// Which.
        gate: GateName,
        /// Why there was none.
        why: Note,
    },
    /// The platform said that the candidate cannot be put in place, or a hook failed.
    Failed {
        /// What it said.
        why: Note,
    },
    /// A state took too long.
    Deadline {
        /// Which, and how long.
        why: Note,
    },
    /// A person or tool asked for it.
    Aborted {
        /// Who.
        by: Actor,
        /// Why.
        why: Note,
    },
    /// Somebody else changed the target, and the caller had asked to take it back then.
    Drifted {
        /// What was there instead.
        why: Note,
    },
}

impl Cause {
    /// Whether it says that the candidate is bad, so that it is not tried again by itself.
    pub const fn condemns_the_candidate(&self) -> bool {
        matches!(self, Self::Unhealthy { .. } | Self::Failed { .. })
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unhealthy { gate, why } => write!(f, "gate {gate} is unhealthy: {why}"),
            Self::NoData { gate, why } => write!(f, "gate {gate} has no data: {why}"),
            Self::Failed { why } => write!(f, "failed: {why}"),
            Self::Deadline { why } => write!(f, "out of time: {why}"),
            Self::Aborted { by, why } => write!(f, "aborted by {by}: {why}"),
            Self::Drifted { why } => write!(f, "somebody else changed the target: {why}"),
        }
    }
}

/// What a rollout waits for.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "hold", rename_all = "snake_case")]
pub enum Hold {
    /// Somebody paused it.
    Paused {
        /// Who.
        by: Actor,
        /// Why.
        why: Note,
    },
    /// The step's approval.
    Approval,
    /// A person's decision about a tripped gate.
    Unhealthy {
        /// Which gate.
        gate: GateName,
        /// Its evidence in a sentence.
        why: Note,
    },
    /// A gate's data. Ends by itself when the gate is healthy again.
    NoData {
        /// Which gate.
        gate: GateName,
        /// Why there is none.
        why: Note,
    },
}

impl Hold {
    /// The cause of the rollback when nobody came.
    fn expired(self) -> Cause {
        match self {
            Self::Paused { by, why } => {
                Cause::Deadline { why: Note::new(format!("paused by {by} ({why}), and nobody resumed it")) }
            }
            Self::Approval => Cause::Deadline { why: Note::new("nobody approved it") },
            Self::Unhealthy { gate, why } => Cause::Unhealthy { gate, why },
            Self::NoData { gate, why } => Cause::NoData { gate, why },
        }
    }
}

impl fmt::Display for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Paused { by, why } => write!(f, "paused by {by}: {why}"),
            Self::Approval => f.write_str("waiting for approval"),
            Self::Unhealthy { gate, why } => write!(f, "gate {gate} is unhealthy, a person decides: {why}"),
            Self::NoData { gate, why } => write!(f, "gate {gate} has no data: {why}"),
        }
    }
}

/// Why nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "refusal", rename_all = "snake_case")]
pub enum Refusal {
    /// The candidate serves already, alone: a success to the caller.
    AlreadyServes,
    /// The candidate was rolled back before, because it was unhealthy or failed.
    Quarantined {
        /// The rollout that found it bad.
        by: RolloutId,
        /// What it found.
        why: Note,
    },
    /// Preflight found a way closed.
    NotReady {
        /// Which, and what to do instead.
        why: Note,
    },
    /// It was aborted before anything changed.
    Aborted {
        /// Who.
        by: Actor,
        /// Why.
        why: Note,
    },
    /// Preflight took too long.
    Deadline,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AlreadyServes => f.write_str("the candidate already serves, alone"),
            Self::Quarantined { by, why } => write!(f, "the candidate is quarantined since rollout {by}: {why}"),
            Self::NotReady { why } => why.fmt(f),
            Self::Aborted { by, why } => write!(f, "aborted by {by} before anything changed: {why}"),
            Self::Deadline => f.write_str("preflight had no answer in time"),
        }
    }
}

/// Why a rollout took its hands off.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "abandonment", rename_all = "snake_case")]
pub enum Abandonment {
    /// Somebody else changed the target.
    Drifted {
        /// What is there instead.
        why: Note,
    },
    /// A person gave it up.
    GivenUp {
        /// Who.
        by: Actor,
        /// Why.
        why: Note,
    },
}

impl fmt::Display for Abandonment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Drifted { why } => write!(f, "somebody else changed the target: {why}"),
            Self::GivenUp { by, why } => write!(f, "given up by {by}: {why}"),
        }
    }
}

/// What the machine needs to know of the rollout, fixed when it is created.
#[derive(Clone, Copy, Debug)]
pub struct Terms<'a> {
    /// Its plan.
    pub plan: &'a Plan,
    /// Whether preflight proves a way back. Without one, what would roll back is stuck instead.
    pub way_back: bool,
    /// Whether drift is taken back instead of left alone.
    pub retake: bool,
}

/// What happened to a rollout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Preflight found both ways open.
    Proved,
    /// Preflight found a way closed.
    Refused(Refusal),
    /// A look saw the state's goal reached, on every part.
    Reached,
    /// The platform or a hook says that the goal cannot be reached.
    Failed(Note),
    /// Somebody else changed the target.
    Drifted(Note),
    /// So much more of the bake was watched.
    Watched(Duration),
    /// The whole bake was watched, and each gate is healthy on data that reaches its end.
    Passed,
    /// A gate tripped, or has been without data for too long, and the answer is to go back.
    Tripped(Cause),
    /// A gate tripped, and the answer is to stop where it is.
    Stopped(Note),
    /// Something must be waited for.
    Held {
        /// What.
        why: Hold,
        /// When the default exit is taken.
        until: Timestamp,
    },
    /// What was waited for is here: the approvals, the data.
    Cleared,
    /// The state's deadline has passed.
    Expired {
        /// Whether the last look saw that only the candidate serves.
        only_candidate: bool,
        /// What took too long.
        why: Note,
    },
    /// Somebody asked to go back.
    Aborted {
        /// Who.
        by: Actor,
        /// Why.
        why: Note,
    },
    /// Somebody asked to go on.
    Resumed,
    /// Somebody asked to take hands off.
    GivenUp {
        /// Who.
        by: Actor,
        /// Why.
        why: Note,
    },
    /// Somebody broke the glass: promote without the rest of the plan.
    PromoteNow,
}

/// An event that a state does not hear. The state is handed back unchanged.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{event:?} means nothing while {}", .state.name())]
pub struct Unheard {
    /// The state, as it was.
    pub state: State,
    /// The event.
    pub event: Event,
}

impl State {
    /// Where this event leads.
    ///
    /// # Errors
    /// [`Unheard`], with the state unchanged, when this state does not hear this event.
    pub fn next(self, terms: Terms<'_>, event: Event) -> Result<Self, Box<Unheard>> {
        use Event as E;
        Ok(match (self, event) {
            (Self::Preflight, E::Proved) => Self::Shifting { step: 0 },
            (Self::Preflight, E::Refused(why)) => Self::Refused { why },
            (Self::Preflight, E::Failed(why) | E::Drifted(why)) => Self::Refused { why: Refusal::NotReady { why } },
            (Self::Preflight, E::Aborted { by, why }) => Self::Refused { why: Refusal::Aborted { by, why } },
            (Self::Preflight, E::Expired { .. }) => Self::Refused { why: Refusal::Deadline },

            (Self::Shifting { step }, E::Reached) => Self::Baking { step, watched: Duration::ZERO },
            (Self::Baking { step, watched }, E::Watched(more)) => {
                Self::Baking { step, watched: watched.saturating_add(more).min(terms.plan.steps()[step].bake) }
            }
            (state @ Self::Baking { .. }, E::Reached) => state,
            (Self::Baking { step, watched }, E::Passed)
                if watched >= terms.plan.steps()[step].bake && terms.plan.steps()[step].approval.is_none() =>
            {
                Self::after(terms, step)
            }
            (Self::Promoting, E::Reached | E::Expired { only_candidate: true, .. }) => Self::Promoted,
            (Self::Shifting { .. } | Self::Baking { .. } | Self::Promoting, E::PromoteNow) => Self::Promoting,

            // A pause or a hold from any forward state; a newer hold replaces an older one.
            (state, E::Held { why, until }) if state.may_wait(terms, &why) => {
                Self::Holding { from: state.interrupted().expect("what may wait can be taken up again"), why, until }
            }
            (Self::Holding { from: Interrupted::Baking { step, .. }, why: Hold::Approval, .. }, E::Cleared) => {
                Self::after(terms, step)
            }
            (Self::Holding { from, why: Hold::NoData { .. }, .. }, E::Cleared) => from.into(),
            (Self::Holding { from, why, .. }, E::Resumed) if why != Hold::Approval => from.into(),
            (Self::Holding { from, .. }, E::PromoteNow) if from != Interrupted::Preflight => Self::Promoting,
            (Self::Holding { from: Interrupted::Preflight, .. }, E::GivenUp { by, why } | E::Aborted { by, why }) => {
                Self::Refused { why: Refusal::Aborted { by, why } }
            }
            (Self::Holding { from: Interrupted::Preflight, why, .. }, E::Expired { .. }) => {
                let why = Note::new(format!("{why}, and nobody came in time"));
                Self::Refused { why: Refusal::NotReady { why } }
            }
            (Self::Holding { from: Interrupted::Preflight, .. }, E::Failed(why) | E::Drifted(why)) => {
                Self::Refused { why: Refusal::NotReady { why } }
            }
            (Self::Holding { from, why, .. }, E::Expired { .. }) => Self::from(from).back(terms, why.expired()),
            (Self::Holding { .. } | Self::Stuck { .. }, E::GivenUp { by, why }) => {
                Self::Abandoned { why: Abandonment::GivenUp { by, why } }
            }
            (Self::Stuck { from, .. }, E::Resumed) => from.into(),
            (Self::Stuck { from: from @ Interrupted::RollingBack { .. }, .. }, E::Aborted { .. }) => from.into(),
            (Self::Stuck { .. }, E::Aborted { by, why }) if terms.way_back => {
                Self::RollingBack { cause: Cause::Aborted { by, why } }
            }

            (Self::RollingBack { cause }, E::Reached) => Self::RolledBack { cause },
            (Self::RollingBack { cause }, E::Failed(why) | E::Expired { why, .. }) => {
                Self::Stuck { from: Interrupted::RollingBack { cause }, why }
            }
            (Self::RollingBack { .. }, E::Drifted(why)) => Self::Abandoned { why: Abandonment::Drifted { why } },

            (state, E::Drifted(why)) if state.is_under_way() => {
                if terms.retake {
                    state.back(terms, Cause::Drifted { why })
                } else {
                    Self::Abandoned { why: Abandonment::Drifted { why } }
                }
            }
            (state, E::Failed(why)) if state.is_under_way() => state.back(terms, Cause::Failed { why }),
            (state, E::Tripped(cause)) if state.is_under_way() => state.back(terms, cause),
            (state, E::Stopped(why)) if state.is_under_way() => {
                Self::Stuck { from: state.interrupted().expect("states under way can be taken up again"), why }
            }
            (state, E::Aborted { by, why }) if state.is_under_way() => state.back(terms, Cause::Aborted { by, why }),
            (state, E::Expired { why, .. }) if state.is_under_way() => state.back(terms, Cause::Deadline { why }),
            (state, event) => return Err(Box::new(Unheard { state, event })),
        })
    }

    /// What this state wants to be in front of users; `None` where it wants nothing.
    pub fn goal(&self, plan: &Plan) -> Option<Goal> {
        match self {
            Self::Shifting { step } | Self::Baking { step, .. } => Some(Goal::Split(plan.steps()[*step].weight)),
            Self::Promoting => Some(Goal::Candidate),
            Self::RollingBack { .. } => Some(Goal::Baseline),
            Self::Holding { from, .. } => match from {
                Interrupted::Shifting { step } | Interrupted::Baking { step, .. } => {
                    Some(Goal::Split(plan.steps()[*step].weight))
                }
                Interrupted::Promoting => Some(Goal::Candidate),
                Interrupted::RollingBack { .. } => Some(Goal::Baseline),
                Interrupted::Preflight => None,
            },
            Self::Preflight
            | Self::Stuck { .. }
            | Self::Promoted
            | Self::RolledBack { .. }
            | Self::Refused { .. }
            | Self::Abandoned { .. } => None,
        }
    }

    /// What a look at this state's [`goal`](Self::goal) means for it.
    pub fn heed(&self, terms: Terms<'_>, look: &Observed, past: &Past<'_>) -> Turn {
        let rolls_back = matches!(self, Self::RollingBack { .. });
        let acts = matches!(self, Self::Shifting { .. } | Self::Promoting | Self::RollingBack { .. });
        let bakes = matches!(self, Self::Baking { .. } | Self::Holding { from: Interrupted::Baking { .. }, .. });
        match &look.progress {
            // What is to be taken back is asked for over whatever stands there.
            Progress::Drifted(what) if rolls_back && terms.retake => {
                self.ask(terms, look, past, &Note::new(format!("bring the baseline back over what is there: {what}")))
            }
            // A failure from before the rollback is no answer to it: ask at least once.
            Progress::Failed(why) if rolls_back && !past.asked => {
                self.ask(terms, look, past, &Note::new(format!("bring the baseline back, although: {why}")))
            }
            Progress::Drifted(what) => Turn::Tell(Event::Drifted(what.clone())),
            Progress::Failed(why) => Turn::Tell(Event::Failed(why.clone())),
            Progress::Underway(what) => Turn::Wait(Some(what.clone())),
            Progress::Due(effect) if acts => self.ask(terms, look, past, effect),
            // The driver before may have begun to go back when it could not save, and died: what it began is finished, not
            // left half way. Why it went back is lost with it, so the candidate is not condemned.
            Progress::Due(effect) if bakes && past.came_with_the_takeover() => {
                let why =
                    format!("the driver before may have gone back without a save: it died, and due again is: {effect}");
                Turn::Tell(Event::Tripped(Cause::Drifted { why: Note::new(why) }))
            }
            Progress::Due(effect) if bakes => {
                Turn::Tell(Event::Drifted(Note::new(format!("while baking, this became due again: {effect}"))))
            }
            Progress::Due(_) => Turn::Wait(None),
            Progress::Reached if !acts => Turn::Wait(None),
            Progress::Reached => match past.may_still_land(look) {
                // Rule 3: whoever still holds the current version could spend it after we called it a day.
                Landing::SpendVersion => Turn::Shift(Note::new("spend the version of an unanswered call")),
                Landing::Settle => Turn::Wait(Some(Note::new("an earlier call may still land"))),
                Landing::Settled => match self.goal_borne_out(look) {
                    Ok(()) => Turn::Tell(Event::Reached),
                    Err(mixed) => Turn::Wait(Some(mixed)),
                },
            },
        }
    }

    /// P6: on an API that checks no versions, the same wish is not sent twice before the first is seen. P12: unless it is one
    /// of the way back that has its effect once, however often it is sent.
    fn ask(&self, terms: Terms<'_>, look: &Observed, past: &Past<'_>, effect: &Effect) -> Turn {
        if past.repeats_the_unknown(self.goal(terms.plan), look) {
            Turn::Wait(Some(Note::new("an earlier call may still land")))
        } else {
            Turn::Shift(effect.clone())
        }
    }

    /// P2 and P3: `Reached` is believed only if the parts say so too.
    fn goal_borne_out(&self, look: &Observed) -> Result<(), Note> {
        match self {
            Self::RollingBack { .. } => only(Serves::Baseline, look),
            Self::Promoting => only(Serves::Candidate, look),
            _ => Ok(()),
        }
    }

    /// Whether anything can still happen to it: every state but the four ends.
    pub const fn is_open(&self) -> bool {
        !matches!(self, Self::Promoted | Self::RolledBack { .. } | Self::Refused { .. } | Self::Abandoned { .. })
    }

    /// Whether nothing happens any more without a person: the four ends, and `Stuck`.
    pub const fn is_at_rest(&self) -> bool {
        !self.is_open() || matches!(self, Self::Stuck { .. })
    }

    /// The state's name: `shifting`, `rolled_back`.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Preflight => "preflight",
            Self::Shifting { .. } => "shifting",
            Self::Baking { .. } => "baking",
            Self::Promoting => "promoting",
            Self::RollingBack { .. } => "rolling_back",
            Self::Holding { .. } => "holding",
            Self::Stuck { .. } => "stuck",
            Self::Promoted => "promoted",
            Self::RolledBack { .. } => "rolled_back",
            Self::Refused { .. } => "refused",
            Self::Abandoned { .. } => "abandoned",
        }
    }

    /// The step of the plan it is at, where it is at one.
    pub const fn step(&self) -> Option<usize> {
        match self {
            Self::Shifting { step }
            | Self::Baking { step, .. }
            | Self::Holding { from: Interrupted::Shifting { step } | Interrupted::Baking { step, .. }, .. }
            | Self::Stuck { from: Interrupted::Shifting { step } | Interrupted::Baking { step, .. }, .. } => {
                Some(*step)
            }
            _ => None,
        }
    }

    /// How long this state may take from its entry; `None` where it waits for nothing, or says itself until when.
    pub fn allowance(&self, plan: &Plan) -> Option<Duration> {
        let deadlines = plan.deadlines();
        match self {
            Self::Preflight => Some(deadlines.preflight),
            Self::Shifting { .. } => Some(deadlines.shift),
            Self::Baking { step, .. } => Some(plan.steps()[*step].bake.saturating_add(deadlines.overtime)),
            Self::Promoting => Some(deadlines.promote),
            Self::RollingBack { .. } => Some(deadlines.roll_back),
            _ => None,
        }
    }

    /// Whether gates are watched: from the first shift to the end of the promotion.
    pub const fn watches_gates(&self) -> bool {
        match self {
            Self::Shifting { .. } | Self::Baking { .. } | Self::Promoting => true,
            Self::Holding { from, .. } => !matches!(from, Interrupted::Preflight),
            _ => false,
        }
    }

    /// Preflight, or under way and not holding.
    const fn is_forward(&self) -> bool {
        matches!(self, Self::Preflight | Self::Shifting { .. } | Self::Baking { .. } | Self::Promoting)
    }

    /// Between the first change and the decision to go back.
    const fn is_under_way(&self) -> bool {
        self.watches_gates()
    }

    fn may_wait(&self, terms: Terms<'_>, why: &Hold) -> bool {
        match (self, why) {
            // An approval leads on to the next step, so it must not cut a bake or a person's decision short.
            (Self::Baking { step, watched }, Hold::Approval) => {
                let step = &terms.plan.steps()[*step];
                step.approval.is_some() && *watched >= step.bake
            }
            (_, Hold::Approval) => false,
            // This hold ends by itself: what waits for a person would go on without one, or a deadline be put off.
            (Self::Holding { .. }, Hold::NoData { .. }) => false,
            _ => self.is_forward() || matches!(self, Self::Holding { .. }),
        }
    }

    fn after(terms: Terms<'_>, step: usize) -> Self {
        if step + 1 < terms.plan.steps().len() { Self::Shifting { step: step + 1 } } else { Self::Promoting }
    }

    fn back(self, terms: Terms<'_>, cause: Cause) -> Self {
        if terms.way_back {
            return Self::RollingBack { cause };
        }
        let why = Note::new(format!("there is no way back, so it stops where it is; {cause}"));
        Self::Stuck { from: self.interrupted().expect("states under way can be taken up again"), why }
    }

    /// This state as one to be taken up again. A holding state is what it holds.
    fn interrupted(self) -> Option<Interrupted> {
        match self {
            Self::Preflight => Some(Interrupted::Preflight),
            Self::Shifting { step } => Some(Interrupted::Shifting { step }),
            Self::Baking { step, watched } => Some(Interrupted::Baking { step, watched }),
            Self::Promoting => Some(Interrupted::Promoting),
            Self::RollingBack { cause } => Some(Interrupted::RollingBack { cause }),
            Self::Holding { from, .. } | Self::Stuck { from, .. } => Some(from),
            Self::Promoted | Self::RolledBack { .. } | Self::Refused { .. } | Self::Abandoned { .. } => None,
        }
    }
}

/// Whether this revision alone serves, as far as the look tells.
///
/// # Errors
/// The parts or the weight that say otherwise.
pub fn only(wanted: Serves, look: &Observed) -> Result<(), Note> {
    let weight = if wanted == Serves::Candidate { Weight::ALL } else { Weight::NONE };
    if let Some(seen) = look.weight.filter(|seen| *seen != weight) {
        return Err(Note::new(format!("the candidate has {seen} of the traffic instead of {weight}")));
    }
    let others: Vec<&str> = look
        .parts
        .iter()
        .filter(|part| part.serves != wanted && part.serves != Serves::Nothing)
        .map(|part| part.name.as_str())
        .collect();
    if others.is_empty() {
        Ok(())
    } else {
        Err(Note::new(format!("mixed: {} serve something else", others.join(", "))))
    }
}

/// What may still be on its way to the target.
#[derive(Clone, Copy, Debug)]
pub struct Past<'a> {
    /// The last attempt, if any.
    pub last: Option<&'a Attempt>,
    /// Whether the last attempt is known to have landed or to have been refused.
    pub closed: bool,
    /// When all attempts before the last are past landing; only on APIs that check no versions.
    pub unsettled: Option<Timestamp>,
    /// Since when a call towards the baseline may be on its way that is not the last attempt. Either the rollout was taken
    /// over then from a driver that did not release it, and may have gone ahead with a rollback that no record shows; or an
    /// attempt of then was not waited for, because what was due could be repeated. `None` for neither and, where versions
    /// are checked, from the first attempt after the takeover on.
    pub inherited: Option<Timestamp>,
    /// How the target treats versions.
    pub versions: Versions,
    /// Whether anything was asked for since this state was entered.
    pub asked: bool,
    /// When the look was begun: it shows nothing that landed later.
    pub now: Timestamp,
}

/// Whether the target refuses a shift that carries a version it no longer has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Versions {
    /// It does: a late or second driver changes nothing.
    Checked,
    /// It does not: after this time an unanswered call is taken as never to land. A window remains.
    Unchecked {
        /// The settle time.
        settle: Duration,
    },
}

enum Landing {
    SpendVersion,
    Settle,
    Settled,
}

impl Past<'_> {
    fn may_still_land(&self, look: &Observed) -> Landing {
        match self.versions {
            Versions::Checked => match self.last {
                _ if self.inherited.is_some() => Landing::SpendVersion,
                Some(last) if last.version == look.version => Landing::SpendVersion,
                _ => Landing::Settled,
            },
            Versions::Unchecked { settle } => {
                let last = self.last.filter(|_| !self.closed && !look.landed).map(|last| settles(last, settle));
                let unsaved = self.inherited.map(|at| past_landing(at, settle));
                if last.max(self.unsettled).max(unsaved).is_some_and(|at| self.now < at) {
                    Landing::Settle
                } else {
                    Landing::Settled
                }
            }
        }
    }

    /// Whether what a look sees may be the unsaved work of the driver before: nothing was attempted since.
    fn came_with_the_takeover(&self) -> bool {
        self.inherited.is_some_and(|at| self.last.is_none_or(|last| last.at <= at))
    }

    fn repeats_the_unknown(&self, goal: Option<Goal>, look: &Observed) -> bool {
        let Versions::Unchecked { settle } = self.versions else { return false };
        let back = goal == Some(Goal::Baseline);
        if back && look.repeatable {
            return false;
        }
        // The only goal that is ever asked for without a save.
        let unsaved = self.inherited.filter(|_| back).map(|at| past_landing(at, settle));
        let last = self.last.filter(|last| Some(last.goal) == goal && !self.closed && !look.landed);
        last.map(|last| settles(last, settle)).max(unsaved).is_some_and(|at| self.now < at)
    }
}

/// When an attempt on an API that checks no versions is past landing.
pub fn settles(attempt: &Attempt, settle: Duration) -> Timestamp {
    past_landing(attempt.at, settle)
}

fn past_landing(at: Timestamp, settle: Duration) -> Timestamp {
    at.checked_add(settle).unwrap_or(Timestamp::MAX)
}

/// What the engine is to do after a look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Look again later; what is being waited for, if anything.
    Wait(Option<Note>),
    /// Save an attempt on the version just seen, then ask for this effect.
    Shift(Effect),
    /// Tell the machine.
    Tell(Event),
}

impl State {
    /// This state in a few words for people: `shifting to 25 % (step 2 of 4)`.
    pub fn describe(&self, plan: &Plan) -> String {
        let at = |step: usize| match plan.steps().get(step) {
            Some(Step { weight, .. }) => format!("{weight} (step {} of {})", step + 1, plan.steps().len()),
            // Only in the log of a record that was damaged.
            None => format!("step {}, which the plan lacks", step.saturating_add(1)),
        };
        match self {
            Self::Preflight => "proving both ways".into(),
            Self::Shifting { step } => format!("shifting to {}", at(*step)),
            Self::Baking { step, .. } => format!("baking at {}", at(*step)),
            Self::Promoting => "promoting the candidate".into(),
            Self::RollingBack { cause } => format!("rolling back: {cause}"),
            Self::Holding { why, .. } => format!("holding: {why}"),
            Self::Stuck { why, .. } => format!("stuck: {why}"),
            Self::Promoted => "promoted".into(),
            Self::RolledBack { cause } => format!("rolled back: {cause}"),
            Self::Refused { why } => format!("refused: {why}"),
            Self::Abandoned { why } => format!("abandoned: {why}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::{
        model::{Part, Version},
        plan::{Approval, Step},
    };

    const BAKE: Duration = Duration::from_secs(10);

    /// 50 %, then 100 % with an approval.
    fn plan() -> Plan {
        let step = |percent: u8| Step::new(Weight::try_from(percent).unwrap(), BAKE);
        Plan::new([step(50), step(100).approved_by(Approval::anyone())]).unwrap()
    }

    fn terms(plan: &Plan) -> Terms<'_> {
        Terms { plan, way_back: true, retake: false }
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 + seconds).unwrap()
    }

    fn ana() -> Actor {
        "ana".parse().unwrap()
    }

    fn holds() -> [Hold; 4] {
        let (gate, why): (GateName, Note) = ("g".parse().unwrap(), "w".into());
        [
            Hold::Paused { by: ana(), why: why.clone() },
            Hold::Approval,
            Hold::Unhealthy { gate: gate.clone(), why: why.clone() },
            Hold::NoData { gate, why },
        ]
    }

    fn events() -> Vec<Event> {
        let why = || Note::from("w");
        let held = |why| Event::Held { why, until: at(9) };
        let mut all = vec![
            Event::Proved,
            Event::Refused(Refusal::AlreadyServes),
            Event::Reached,
            Event::Failed(why()),
            Event::Drifted(why()),
            Event::Watched(Duration::from_secs(4)),
            Event::Watched(Duration::MAX),
            Event::Passed,
            Event::Tripped(Cause::Unhealthy { gate: "g".parse().unwrap(), why: why() }),
            Event::Stopped(why()),
            Event::Cleared,
            Event::Expired { only_candidate: false, why: why() },
            Event::Expired { only_candidate: true, why: why() },
            Event::Aborted { by: ana(), why: why() },
            Event::Resumed,
            Event::GivenUp { by: ana(), why: why() },
            Event::PromoteNow,
        ];
        all.extend(holds().map(held));
        all
    }

    /// Whatever can be come to from preflight by any events, and by what.
    fn graph(terms: Terms<'_>) -> Vec<(State, Event, State)> {
        let (mut known, mut edges, mut next) = (vec![State::Preflight], Vec::new(), 0);
        while next < known.len() {
            for event in events() {
                let Ok(to) = known[next].clone().next(terms, event.clone()) else { continue };
                if !known.contains(&to) {
                    known.push(to.clone());
                    assert!(known.len() < 1_000, "no end of states: {to:?}");
                }
                edges.push((known[next].clone(), event, to));
            }
            next += 1;
        }
        edges
    }

    fn short(state: &State) -> String {
        let cause = |cause: &Cause| match cause {
            Cause::Unhealthy { .. } => "unhealthy",
            Cause::NoData { .. } => "no data",
            Cause::Failed { .. } => "failed",
            Cause::Deadline { .. } => "deadline",
            Cause::Aborted { .. } => "aborted",
            Cause::Drifted { .. } => "drifted",
        };
        match state {
            State::Shifting { step } => format!("shifting {step}"),
            State::Baking { step, watched } => format!("baking {step} {watched:?}"),
            State::Holding { from, why, until } => {
                let why = format!("{why:?}").split([' ', '(']).next().unwrap_or_default().to_owned();
                format!("{} held, {why} until {}", short(&from.clone().into()), until.as_second() - 1_000_000)
            }
            State::Stuck { from, .. } => format!("{} stuck", short(&from.clone().into())),
            State::RollingBack { cause: why } => format!("rolling back, {}", cause(why)),
            State::RolledBack { cause: why } => format!("rolled back, {}", cause(why)),
            State::Refused { why } => format!("refused, {why}"),
            State::Abandoned { why } => format!("abandoned, {why}"),
            State::Preflight | State::Promoting | State::Promoted => state.name().into(),
        }
    }

    fn shown(event: &Event) -> String {
        match event {
            Event::Watched(Duration::MAX) => "Watched for ever".into(),
            Event::Watched(more) => format!("Watched {more:?}"),
            Event::Held { why: Hold::NoData { .. }, .. } => "Held NoData".into(),
            Event::Held { why: Hold::Approval, .. } => "Held Approval".into(),
            Event::Held { .. } => "Held".into(),
            Event::Expired { only_candidate: true, .. } => "Expired with only the candidate".into(),
            _ => format!("{event:?}").split(['(', ' ']).next().unwrap_or_default().into(),
        }
    }

    fn samples() -> Vec<State> {
        let full = Interrupted::Baking { step: 1, watched: BAKE };
        let half = Interrupted::Baking { step: 0, watched: Duration::from_secs(3) };
        let cause = Cause::Failed { why: "c".into() };
        let hold =
            |from: &Interrupted, why: &Hold| State::Holding { from: from.clone(), why: why.clone(), until: at(5) };
        let [paused, approval, unhealthy, no_data] = holds();
        vec![
            State::Preflight,
            State::Shifting { step: 1 },
            half.clone().into(),
            State::Baking { step: 0, watched: BAKE },
            full.clone().into(),
            State::Promoting,
            State::RollingBack { cause: cause.clone() },
            hold(&Interrupted::Preflight, &paused),
            hold(&Interrupted::Shifting { step: 0 }, &no_data),
            hold(&half, &unhealthy),
            hold(&full, &approval),
            hold(&Interrupted::Promoting, &paused),
            State::Stuck { from: half, why: "s".into() },
            State::Stuck { from: Interrupted::RollingBack { cause: cause.clone() }, why: "s".into() },
            State::Promoted,
            State::RolledBack { cause },
            State::Refused { why: Refusal::Deadline },
            State::Abandoned { why: Abandonment::Drifted { why: "w".into() } },
        ]
    }

    /// What each sample does with each event; events with the same outcome on one line, events that are not heard left
    /// out.
    fn table(terms: Terms<'_>) -> String {
        let mut table = String::new();
        for state in samples() {
            let mut rows: Vec<(String, Vec<String>)> = Vec::new();
            for event in events() {
                match state.clone().next(terms, event.clone()) {
                    Ok(to) => {
                        let (to, event) = (short(&to), shown(&event));
                        match rows.iter_mut().find(|row| row.0 == to) {
                            Some(row) => row.1.push(event),
                            None => rows.push((to, vec![event])),
                        }
                    }
                    Err(unheard) => assert_eq!(*unheard, Unheard { state: state.clone(), event }),
                }
            }
            table += &format!("{}\n", short(&state));
            for (to, events) in rows {
                table += &format!("  {}: {to}\n", events.join(", "));
            }
        }
        table
    }

    #[test]
    fn every_state_hears_these_events_and_no_others() {
        let plan = plan();
        let table = table(terms(&plan));
        assert!(table == TABLE, "{table}");
    }

    #[test]
    fn without_a_way_back_whatever_would_go_back_is_stuck_where_it_is() {
        let plan = plan();
        let there = Terms { way_back: false, ..terms(&plan) };
        for state in samples() {
            for event in events() {
                let back = state.clone().next(terms(&plan), event.clone());
                let stays = state.clone().next(there, event.clone());
                match back {
                    Ok(State::RollingBack { cause: Cause::Aborted { .. } }) if matches!(state, State::Stuck { .. }) => {
                        assert!(stays.is_err(), "{state:?}, {event:?}: {stays:?}");
                    }
                    Ok(State::RollingBack { .. }) if !matches!(state, State::Stuck { .. }) => {
                        let Ok(State::Stuck { from, .. }) = stays else { panic!("{state:?}, {event:?}: {stays:?}") };
                        assert_eq!(Some(from), state.clone().interrupted());
                    }
                    same => assert_eq!(stays, same, "{state:?}, {event:?}"),
                }
            }
        }
    }

    #[test]
    fn drift_is_taken_back_only_where_that_was_asked_for() {
        let plan = plan();
        let retake = Terms { retake: true, ..terms(&plan) };
        for state in samples() {
            let drift = Event::Drifted("w".into());
            let to = state.clone().next(retake, drift.clone());
            if state.is_under_way() {
                assert_eq!(to, Ok(State::RollingBack { cause: Cause::Drifted { why: "w".into() } }));
            } else {
                assert_eq!(to, state.next(terms(&plan), drift));
            }
        }
    }

    /// P8 and P17: from wherever one can come to, default exits alone lead to rest, without a circle.
    #[test]
    fn every_open_state_comes_to_rest_by_its_deadlines_alone() {
        let plan = plan();
        let expired = Event::Expired { only_candidate: false, why: "w".into() };
        for way_back in [true, false] {
            let terms = Terms { way_back, ..terms(&plan) };
            for (_, _, mut state) in graph(terms) {
                let mut exits = 0;
                while !state.is_at_rest() {
                    assert!(state.allowance(&plan).is_some() || matches!(state, State::Holding { .. }), "{state:?}");
                    state = state.next(terms, expired.clone()).unwrap();
                    exits += 1;
                    assert!(exits <= 2, "no rest after two deadlines: {state:?}");
                }
            }
        }
    }

    /// P17: without people and without failures, no circle of guards: each step leads further.
    #[test]
    fn no_two_states_lead_to_each_other_by_themselves() {
        let plan = plan();
        let rank = |state: &State| match state {
            State::Preflight => 0,
            State::Shifting { step } => 1 + 20 * step,
            State::Baking { step, watched } => 2 + 20 * step + watched.as_secs() as usize,
            State::Promoting => 100,
            State::RollingBack { .. } => 101,
            State::Stuck { .. } => 102,
            _ => 103,
        };
        let mut seen = BTreeSet::new();
        for (from, event, to) in graph(terms(&plan)) {
            // A hold, and whoever ends it, is a circle on purpose: it has a deadline of its own.
            let by_people = matches!(event, Event::Resumed | Event::PromoteNow | Event::Held { .. } | Event::Cleared);
            if !by_people && !matches!(from, State::Holding { .. } | State::Stuck { .. }) && from != to {
                assert!(rank(&from) < rank(&to), "{from:?} by {event:?} to {to:?}");
                seen.insert((from.name(), to.name()));
            }
        }
        assert!(seen.len() > 15, "only {seen:?}");
    }

    #[test]
    fn preflight_leads_only_forward_to_a_hold_or_to_a_refusal() {
        let plan = plan();
        for (from, event, to) in graph(terms(&plan)) {
            let nothing_changed =
                |state: &State| matches!(state, State::Preflight | State::Holding { from: Interrupted::Preflight, .. });
            if nothing_changed(&from) {
                let fine = nothing_changed(&to) || matches!(to, State::Shifting { step: 0 } | State::Refused { .. });
                assert!(fine, "{from:?} by {event:?} to {to:?}");
            }
        }
    }

    #[test]
    fn what_waits_for_a_person_does_not_go_on_by_itself() {
        let plan = plan();
        for (from, event, to) in graph(terms(&plan)) {
            let State::Holding { why, .. } = &from else { continue };
            let by_itself = matches!(event, Event::Cleared | Event::Watched(_) | Event::Passed | Event::Reached);
            let may = matches!(why, Hold::NoData { .. } | Hold::Approval);
            assert!(may || !by_itself, "{from:?} by {event:?} to {to:?}");
            if let State::Holding { why: Hold::NoData { .. }, .. } = to {
                panic!("{from:?} became one that ends by itself");
            }
        }
    }

    fn look(progress: Progress, version: &str) -> Observed {
        Observed::new(progress, Version::try_from(version).unwrap())
    }

    /// An attempt at 0 seconds, on version v1.
    fn attempt(goal: Goal) -> Attempt {
        let version = Version::try_from("v1").unwrap();
        Attempt { nonce: "n".parse().unwrap(), goal, version, at: at(0) }
    }

    fn past(last: Option<&Attempt>, now: i64) -> Past<'_> {
        Past {
            last,
            closed: false,
            unsettled: None,
            inherited: None,
            versions: Versions::Checked,
            asked: true,
            now: at(now),
        }
    }

    fn unchecked(last: Option<&Attempt>, now: i64) -> Past<'_> {
        Past { versions: Versions::Unchecked { settle: Duration::from_secs(30) }, ..past(last, now) }
    }

    fn turn(turn: &Turn) -> &'static str {
        match turn {
            Turn::Wait(_) => "wait",
            Turn::Shift(_) => "shift",
            Turn::Tell(Event::Reached) => "reached",
            Turn::Tell(Event::Failed(_)) => "failed",
            Turn::Tell(Event::Drifted(_)) => "drifted",
            Turn::Tell(_) => "else",
        }
    }

    #[test]
    fn a_look_means_this_for_each_state() {
        let plan = plan();
        let w = || Note::from("w");
        let progress = [
            Progress::Reached,
            Progress::Due(w()),
            Progress::Underway(w()),
            Progress::Failed(w()),
            Progress::Drifted(w()),
        ];
        for state in samples().into_iter().filter(|state| state.goal(&plan).is_some()) {
            let turns: Vec<_> = progress
                .iter()
                .map(|p| turn(&state.heed(terms(&plan), &look(p.clone(), "v2"), &past(None, 0))))
                .collect();
            let acts = matches!(state, State::Shifting { .. } | State::Promoting | State::RollingBack { .. });
            let bakes = matches!(state, State::Baking { .. } | State::Holding { from: Interrupted::Baking { .. }, .. });
            let (reached, due) = match (acts, bakes) {
                (true, _) => ("reached", "shift"),
                (_, true) => ("wait", "drifted"),
                _ => ("wait", "wait"),
            };
            assert_eq!(turns, [reached, due, "wait", "failed", "drifted"], "{state:?}");
        }
    }

    #[test]
    fn what_came_undone_with_the_driver_before_is_its_rollback_and_is_finished() {
        let (plan, baking) = (plan(), State::Baking { step: 0, watched: Duration::ZERO });
        let due = look(Progress::Due("w".into()), "v2");
        let last = attempt(Goal::Split(Weight::ALL));
        let before = Past { inherited: Some(last.at), ..past(Some(&last), 9) };
        let Turn::Tell(event) = baking.heed(terms(&plan), &due, &before) else { panic!("nothing is told") };
        let back = baking.clone().next(terms(&plan), event).unwrap();
        assert!(matches!(&back, State::RollingBack { cause } if !cause.condemns_the_candidate()), "{back:?}");
        // What came undone later, or for a driver of its own, is somebody else's doing.
        let since = Past { inherited: last.at.checked_sub(Duration::from_secs(1)).ok(), ..before };
        assert_eq!(turn(&baking.heed(terms(&plan), &due, &since)), "drifted");
        assert_eq!(turn(&baking.heed(terms(&plan), &due, &past(Some(&last), 9))), "drifted");
    }

    #[test]
    fn reached_is_not_believed_while_the_version_of_an_attempt_is_still_the_targets() {
        let (plan, back) = (plan(), State::RollingBack { cause: Cause::Failed { why: "c".into() } });
        let last = attempt(Goal::Candidate);
        let heed =
            |version: &str, past: Past<'_>| turn(&back.heed(terms(&plan), &look(Progress::Reached, version), &past));
        assert_eq!(heed("v1", past(Some(&last), 99)), "shift");
        assert_eq!(heed("v2", past(Some(&last), 0)), "reached");
        assert_eq!(heed("v1", past(None, 0)), "reached");
        assert_eq!(heed("v2", Past { inherited: Some(at(0)), ..past(Some(&last), 99) }), "shift");
    }

    #[test]
    fn reached_is_not_believed_before_every_call_is_settled_where_versions_are_not_checked() {
        let (plan, back) = (plan(), State::RollingBack { cause: Cause::Failed { why: "c".into() } });
        let last = attempt(Goal::Candidate);
        let heed = |landed: bool, past: Past<'_>| {
            turn(&back.heed(terms(&plan), &look(Progress::Reached, "v1").landed(landed), &past))
        };
        assert_eq!(heed(false, unchecked(Some(&last), 29)), "wait");
        assert_eq!(heed(false, unchecked(Some(&last), 30)), "reached");
        assert_eq!(heed(true, unchecked(Some(&last), 1)), "reached");
        assert_eq!(heed(false, Past { closed: true, ..unchecked(Some(&last), 1) }), "reached");
        // Earlier calls count, whatever is known of the last one.
        let earlier = |now| Past { closed: true, unsettled: Some(at(40)), ..unchecked(Some(&last), now) };
        assert_eq!((heed(true, earlier(39)), heed(true, earlier(40))), ("wait", "reached"));
        let inherited = |now| Past { inherited: Some(at(20)), ..unchecked(None, now) };
        assert_eq!((heed(false, inherited(49)), heed(false, inherited(50))), ("wait", "reached"));
    }

    #[test]
    fn the_same_goal_is_not_asked_for_again_before_the_first_call_is_seen_or_settled() {
        let (plan, back) = (plan(), State::RollingBack { cause: Cause::Failed { why: "c".into() } });
        let (forward, same) = (attempt(Goal::Candidate), attempt(Goal::Baseline));
        let heed = |state: &State, landed: bool, past: Past<'_>| {
            turn(&state.heed(terms(&plan), &look(Progress::Due("w".into()), "v1").landed(landed), &past))
        };
        assert_eq!(heed(&back, false, unchecked(Some(&same), 29)), "wait");
        assert_eq!(heed(&back, false, unchecked(Some(&same), 30)), "shift");
        assert_eq!(heed(&back, true, unchecked(Some(&same), 1)), "shift");
        assert_eq!(heed(&back, false, Past { closed: true, ..unchecked(Some(&same), 1) }), "shift");
        // A rollback waits for no forward call, and where versions are checked for nothing.
        let earlier = Past { unsettled: Some(at(99)), ..unchecked(Some(&forward), 1) };
        assert_eq!(heed(&back, false, earlier), "shift");
        assert_eq!(heed(&back, false, past(Some(&same), 1)), "shift");
        // The driver before may have asked for the baseline unsaved, and for nothing else.
        let inherited = |now| Past { inherited: Some(at(0)), ..unchecked(None, now) };
        assert_eq!((heed(&back, false, inherited(29)), heed(&back, false, inherited(30))), ("wait", "shift"));
        assert_eq!(heed(&State::Promoting, false, inherited(1)), "shift");
        // What has its effect once is not waited with; on the way back.
        let due = || look(Progress::Due("w".into()), "v1").repeatable(true);
        for past in [unchecked(Some(&same), 1), inherited(1)] {
            assert_eq!(turn(&back.heed(terms(&plan), &due(), &past)), "shift");
        }
        let again = unchecked(Some(&forward), 1);
        assert_eq!(turn(&State::Promoting.heed(terms(&plan), &due(), &again)), "wait");
        // That it is over is not said before all calls are past landing.
        let over = look(Progress::Reached, "v1").repeatable(true);
        assert_eq!(turn(&back.heed(terms(&plan), &over, &unchecked(Some(&same), 1))), "wait");
    }

    #[test]
    fn a_rollback_asks_at_least_once_whatever_failed_before_it_and_over_drift_if_it_is_to_be_taken_back() {
        let (plan, back) = (plan(), State::RollingBack { cause: Cause::Failed { why: "c".into() } });
        let unasked = Past { asked: false, ..past(None, 0) };
        let failed = look(Progress::Failed("w".into()), "v1");
        assert_eq!(turn(&back.heed(terms(&plan), &failed, &unasked)), "shift");
        assert_eq!(turn(&back.heed(terms(&plan), &failed, &past(None, 0))), "failed");
        assert_eq!(turn(&State::Promoting.heed(terms(&plan), &failed, &unasked)), "failed");
        let drifted = look(Progress::Drifted("w".into()), "v1");
        let retake = Terms { retake: true, ..terms(&plan) };
        assert_eq!(turn(&back.heed(retake, &drifted, &past(None, 0))), "shift");
        assert_eq!(turn(&State::Promoting.heed(retake, &drifted, &past(None, 0))), "drifted");
    }

    #[test]
    fn a_mixed_target_is_neither_rolled_back_nor_promoted() {
        let plan = plan();
        let back = State::RollingBack { cause: Cause::Failed { why: "c".into() } };
        let none = past(None, 0);
        for (state, good, bad, all, other) in [
            (&back, Serves::Baseline, Serves::Candidate, Weight::NONE, Weight::ALL),
            (&State::Promoting, Serves::Candidate, Serves::Baseline, Weight::ALL, Weight::NONE),
        ] {
            let heed = |parts: &[Serves], weight| {
                let parts = parts.iter().map(|serves| Part::new("web", *serves)).collect();
                turn(&state.heed(terms(&plan), &look(Progress::Reached, "v1").parts(parts).weight(weight), &none))
            };
            assert_eq!(heed(&[good, Serves::Nothing], all), "reached");
            assert_eq!(heed(&[good], other), "wait");
            for mixed in [bad, Serves::Both, Serves::Other] {
                assert_eq!(heed(&[good, mixed], all), "wait");
            }
        }
    }

    fn plans() -> impl Strategy<Value = Plan> {
        let step = (0_u8..=100, 0_u64..20, any::<bool>());
        prop::collection::vec(step, 1..6).prop_map(|mut steps| {
            steps.sort_unstable_by_key(|step| step.0);
            let last = steps.len() - 1;
            let steps = steps.into_iter().enumerate().map(|(at, (percent, bake, approved))| {
                let weight = Weight::try_from(if at == last { 100 } else { percent }).unwrap();
                let step = Step::new(weight, Duration::from_secs(bake));
                if approved { step.approved_by(Approval::anyone()) } else { step }
            });
            Plan::new(steps.collect::<Vec<_>>()).unwrap()
        })
    }

    proptest! {
        #[test]
        fn whatever_happens_a_state_fits_its_plan_and_nobody_turns_a_rollback_round(
            plan in plans(),
            events in prop::collection::vec(prop::sample::select(events()), 0..60),
            way_back: bool,
            retake: bool,
        ) {
            let terms = Terms { plan: &plan, way_back, retake };
            let (mut state, mut went_back) = (State::Preflight, false);
            for event in events {
                let before = state.clone();
                state = state.next(terms, event.clone()).unwrap_or_else(|unheard| unheard.state);
                prop_assert!(before.is_open() || state == before, "{before:?} by {event:?} to {state:?}");
                prop_assert!(state.step().is_none_or(|step| step < plan.steps().len()));
                if let Some(Interrupted::Baking { step, watched }) = state.clone().interrupted() {
                    prop_assert!(watched <= plan.steps()[step].bake);
                }
                went_back |= matches!(state, State::RollingBack { .. });
                prop_assert!(way_back || !went_back);
                let forward = state.goal(&plan).is_some_and(Goal::is_forward) || state == State::Promoted;
                prop_assert!(!(went_back && forward), "{before:?} by {event:?} to {state:?}");
                let json = serde_json::to_string(&state).unwrap();
                prop_assert_eq!(&serde_json::from_str::<State>(&json).unwrap(), &state, "{}", json);
                prop_assert!(!state.describe(&plan).is_empty());
            }
        }
    }

    const TABLE: &str = "\
preflight
  Proved: shifting 0
  Refused: refused, the candidate already serves, alone
  Failed, Drifted: refused, w
  Expired, Expired with only the candidate: refused, preflight had no answer in time
  Aborted: refused, aborted by ana before anything changed: w
  Held: preflight held, Paused until 9
  Held: preflight held, Unhealthy until 9
  Held NoData: preflight held, NoData until 9
shifting 1
  Reached: baking 1 0ns
  Failed: rolling back, failed
  Drifted: abandoned, somebody else changed the target: w
  Tripped: rolling back, unhealthy
  Stopped: shifting 1 stuck
  Expired, Expired with only the candidate: rolling back, deadline
  Aborted: rolling back, aborted
  PromoteNow: promoting
  Held: shifting 1 held, Paused until 9
  Held: shifting 1 held, Unhealthy until 9
  Held NoData: shifting 1 held, NoData until 9
baking 0 3s
  Reached: baking 0 3s
  Failed: rolling back, failed
  Drifted: abandoned, somebody else changed the target: w
  Watched 4s: baking 0 7s
  Watched for ever: baking 0 10s
  Tripped: rolling back, unhealthy
  Stopped: baking 0 3s stuck
  Expired, Expired with only the candidate: rolling back, deadline
  Aborted: rolling back, aborted
  PromoteNow: promoting
  Held: baking 0 3s held, Paused until 9
  Held: baking 0 3s held, Unhealthy until 9
  Held NoData: baking 0 3s held, NoData until 9
baking 0 10s
  Reached, Watched 4s, Watched for ever: baking 0 10s
  Failed: rolling back, failed
  Drifted: abandoned, somebody else changed the target: w
  Passed: shifting 1
  Tripped: rolling back, unhealthy
  Stopped: baking 0 10s stuck
  Expired, Expired with only the candidate: rolling back, deadline
  Aborted: rolling back, aborted
  PromoteNow: promoting
  Held: baking 0 10s held, Paused until 9
  Held: baking 0 10s held, Unhealthy until 9
  Held NoData: baking 0 10s held, NoData until 9
baking 1 10s
  Reached, Watched 4s, Watched for ever: baking 1 10s
  Failed: rolling back, failed
  Drifted: abandoned, somebody else changed the target: w
  Tripped: rolling back, unhealthy
  Stopped: baking 1 10s stuck
  Expired, Expired with only the candidate: rolling back, deadline
  Aborted: rolling back, aborted
  PromoteNow: promoting
  Held: baking 1 10s held, Paused until 9
  Held Approval: baking 1 10s held, Approval until 9
  Held: baking 1 10s held, Unhealthy until 9
  Held NoData: baking 1 10s held, NoData until 9
promoting
  Reached, Expired with only the candidate: promoted
  Failed: rolling back, failed
  Drifted: abandoned, somebody else changed the target: w
  Tripped: rolling back, unhealthy
  Stopped: promoting stuck
  Expired: rolling back, deadline
  Aborted: rolling back, aborted
  PromoteNow: promoting
  Held: promoting held, Paused until 9
  Held: promoting held, Unhealthy until 9
  Held NoData: promoting held, NoData until 9
rolling back, failed
  Reached: rolled back, failed
  Failed, Expired, Expired with only the candidate: rolling back, failed stuck
  Drifted: abandoned, somebody else changed the target: w
preflight held, Paused until 5
  Failed, Drifted: refused, w
  Expired, Expired with only the candidate: refused, paused by ana: w, and nobody came in time
  Aborted, GivenUp: refused, aborted by ana before anything changed: w
  Resumed: preflight
  Held: preflight held, Paused until 9
  Held: preflight held, Unhealthy until 9
shifting 0 held, NoData until 5
  Failed: rolling back, failed
  Drifted: abandoned, somebody else changed the target: w
  Tripped: rolling back, unhealthy
  Stopped: shifting 0 stuck
  Cleared, Resumed: shifting 0
  Expired, Expired with only the candidate: rolling back, no data
  Aborted: rolling back, aborted
  GivenUp: abandoned, given up by ana: w
  PromoteNow: promoting
  Held: shifting 0 held, Paused until 9
  Held: shifting 0 held, Unhealthy until 9
baking 0 3s held, Unhealthy until 5
  Failed: rolling back, failed
  Drifted: abandoned, somebody else changed the target: w
  Tripped, Expired, Expired with only the candidate: rolling back, unhealthy
  Stopped: baking 0 3s stuck
  Aborted: rolling back, aborted
  Resumed: baking 0 3s
  GivenUp: abandoned, given up by ana: w
  PromoteNow: promoting
  Held: baking 0 3s held, Paused until 9
  Held: baking 0 3s held, Unhealthy until 9
baking 1 10s held, Approval until 5
  Failed: rolling back, failed
  Drifted: abandoned, somebody else changed the target: w
  Tripped: rolling back, unhealthy
  Stopped: baking 1 10s stuck
  Cleared, PromoteNow: promoting
  Expired, Expired with only the candidate: rolling back, deadline
  Aborted: rolling back, aborted
  GivenUp: abandoned, given up by ana: w
  Held: baking 1 10s held, Paused until 9
  Held: baking 1 10s held, Unhealthy until 9
promoting held, Paused until 5
  Failed: rolling back, failed
  Drifted: abandoned, somebody else changed the target: w
  Tripped: rolling back, unhealthy
  Stopped: promoting stuck
  Expired, Expired with only the candidate: rolling back, deadline
  Aborted: rolling back, aborted
  Resumed, PromoteNow: promoting
  GivenUp: abandoned, given up by ana: w
  Held: promoting held, Paused until 9
  Held: promoting held, Unhealthy until 9
baking 0 3s stuck
  Aborted: rolling back, aborted
  Resumed: baking 0 3s
  GivenUp: abandoned, given up by ana: w
rolling back, failed stuck
  Aborted, Resumed: rolling back, failed
  GivenUp: abandoned, given up by ana: w
promoted
rolled back, failed
refused, preflight had no answer in time
abandoned, somebody else changed the target: w
";
}
