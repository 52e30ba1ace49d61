//! What to do about a gate that tripped.

use std::fmt;

use crate::{gate::Verdict, model::Note, rollout::Rollout};

/// Decides what a tripped gate means for the rollout. Synchronous and pure: it sees the record and the verdict, and
/// nothing else, so that the decision can be explained from them.
#[cfg_attr(feature = "mock", mockall::automock)]
pub trait RollbackStrategy: fmt::Debug + Send + Sync + 'static {
    /// What to do now that a gate's policy has made this verdict final.
    fn decide(&self, rollout: &Rollout, verdict: &Verdict) -> Decision;
}

/// What a strategy answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Carry on. The gate stays tripped, so the step cannot pass before a person resumes or skips the gate.
    Continue,
    /// Stop where it is and wait for a person, for this reason.
    Hold(Note),
    /// Stop where it is, for this reason: stuck until a person resumes it, aborts it or gives it up.
    Stop(Note),
    /// Bring the baseline back. Without a way back the rollout is stuck, and says so.
    RollBack,
}

/// Rolls back as soon as a gate trips. The default.
#[derive(Clone, Copy, Debug, Default)]
pub struct FirstFailure;

impl RollbackStrategy for FirstFailure {
    fn decide(&self, _: &Rollout, _: &Verdict) -> Decision {
        Decision::RollBack
    }
}

/// Holds where it is until a person decides; when nobody comes in time, rolls back.
#[derive(Clone, Copy, Debug, Default)]
pub struct AskPerson;

impl RollbackStrategy for AskPerson {
    fn decide(&self, _: &Rollout, verdict: &Verdict) -> Decision {
        Decision::Hold(Note::new(&verdict.evidence().summary))
    }
}

/// Never goes back by itself: for a change whose way back does more harm than the fault (a migrated schema, a queue that
/// only the new code reads). Stops where it is, says so, and waits for a person without a deadline.
#[derive(Clone, Debug)]
pub struct Never {
    why: Note,
}

impl Never {
    /// Never, for this reason; people read it when they are woken.
    pub fn because(why: impl Into<Note>) -> Self {
        Self { why: why.into() }
    }
}

impl RollbackStrategy for Never {
    fn decide(&self, _: &Rollout, verdict: &Verdict) -> Decision {
        Decision::Stop(Note::new(format!("{}; not rolled back, because {}", verdict.evidence().summary, self.why)))
    }
}
