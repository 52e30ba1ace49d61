//! What people and tools may ask of a rollout, from this process or, through the store, from another.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{
    error::{Error, Result},
    model::{Actor, GateName, Note},
};

/// A request: what, by whom, and why. Every request is in the record with what came of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// What is asked.
    pub ask: Ask,
    /// Who asks.
    pub by: Actor,
    /// Why.
    pub reason: Note,
}

impl Request {
    /// A request.
    ///
    /// # Errors
    /// `Invalid` when the actor is not 1 to 128 bytes of printable text.
    pub fn new(ask: Ask, by: impl AsRef<str>, reason: impl Into<Note>) -> Result<Self> {
        let by = Actor::try_from(by.as_ref()).map_err(|e: Error| e.during("who asks must be named"))?;
        Ok(Self { ask, by, reason: reason.into() })
    }
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} by {} ({})", self.ask, self.by, self.reason)
    }
}

/// What may be asked of a rollout.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Ask {
    /// Go back, also from `Stuck`. Before anything changed: refuse.
    Abort,
    /// Stay where it is until somebody resumes; after the plan's hold deadline it rolls back.
    Pause,
    /// Go on from a pause, from a person's decision about a tripped gate, or from `Stuck`.
    Resume,
    /// Agree that the rollout leaves its step.
    Approve,
    /// Take hands off a rollout that is held or stuck, and leave the target as it is.
    GiveUp,
    /// Break the glass: promote without the rest of the plan, whatever the gates say.
    PromoteNow,
    /// Take a gate out of the guard for the rest of the rollout.
    SkipGate(GateName),
}

impl fmt::Display for Ask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Abort => f.write_str("abort"),
            Self::Pause => f.write_str("pause"),
            Self::Resume => f.write_str("resume"),
            Self::Approve => f.write_str("approve"),
            Self::GiveUp => f.write_str("give up"),
            Self::PromoteNow => f.write_str("promote now"),
            Self::SkipGate(name) => write!(f, "skip gate {name}"),
        }
    }
}
