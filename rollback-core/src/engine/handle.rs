//! A rollout in the hand of whoever started it.

use std::{fmt, sync::Arc};

use tokio::sync::{oneshot, watch};

use super::{
    Phase,
    live::{Asking, Live, Status},
};
use crate::{
    error::{Error, ErrorKind, Result},
    model::{GateName, Note, RolloutId},
    request::{Ask, Request},
    rollout::Rollout,
    state::{Refusal, State},
};

/// A rollout that this process drives. Dropping it stops nothing.
#[derive(Clone, Debug)]
pub struct Handle {
    id: RolloutId,
    live: Arc<Live>,
    seen: watch::Receiver<Status>,
}

impl Handle {
    pub(super) fn new(live: Arc<Live>) -> Self {
        let seen = live.watch();
        let id = seen.borrow().rollout.id().clone();
        Self { id, live, seen }
    }

    /// Its id.
    pub const fn id(&self) -> &RolloutId {
        &self.id
    }

    /// The rollout as last saved.
    pub fn status(&self) -> Arc<Rollout> {
        Arc::clone(&self.seen.borrow().rollout)
    }

    /// Waits for the next save and returns the rollout; `None` when this process will not change it any more.
    ///
    /// # Cancel safety
    /// Drop it whenever you like: a save that was not returned is returned by the next call.
    pub async fn changed(&mut self) -> Option<Arc<Rollout>> {
        if self.seen.borrow_and_update().phase != Phase::Driven && !self.seen.has_changed().unwrap_or(false) {
            return None;
        }
        self.seen.changed().await.ok()?;
        Some(Arc::clone(&self.seen.borrow_and_update().rollout))
    }

    /// Waits until the rollout comes to rest (over or stuck), or until this process no longer drives it.
    ///
    /// # Cancel safety
    /// Drop it whenever you like.
    pub async fn finished(&self) -> Outcome {
        let mut seen = self.seen.clone();
        let rests = |status: &Status| status.phase != Phase::Driven || status.rollout.state.is_at_rest();
        let status = match seen.wait_for(rests).await {
            Ok(status) => status.clone(),
            // The driver went with its runtime: what was saved last is what is known.
            Err(_) => self.seen.borrow().clone(),
        };
        Outcome { rollout: status.rollout, phase: status.phase }
    }

    /// Goes back. Before anything changed the rollout is refused; when it is over already, nothing happens. Returns once
    /// the request and its answer are saved.
    ///
    /// # Errors
    /// As [`Handle::ask`].
    pub async fn abort(&self, by: impl AsRef<str>, reason: impl Into<Note>) -> Result<Note> {
        self.ask(Ask::Abort, by, reason).await
    }

    /// Stays where it is until somebody resumes it, at most for the plan's hold deadline.
    ///
    /// # Errors
    /// As [`Handle::ask`]; `Conflict` too when the target cannot be held.
    pub async fn pause(&self, by: impl AsRef<str>, reason: impl Into<Note>) -> Result<Note> {
        self.ask(Ask::Pause, by, reason).await
    }

    /// Goes on after a pause, a tripped gate that waits for a person, or from stuck.
    ///
    /// # Errors
    /// As [`Handle::ask`].
    pub async fn resume(&self, by: impl AsRef<str>, reason: impl Into<Note>) -> Result<Note> {
        self.ask(Ask::Resume, by, reason).await
    }

    /// Agrees that the rollout leaves its step.
    ///
    /// # Errors
    /// As [`Handle::ask`]; `Denied` when this person's approval does not count.
    pub async fn approve(&self, by: impl AsRef<str>, reason: impl Into<Note>) -> Result<Note> {
        self.ask(Ask::Approve, by, reason).await
    }

    /// Takes hands off a held or stuck rollout.
    ///
    /// # Errors
    /// As [`Handle::ask`].
    pub async fn give_up(&self, by: impl AsRef<str>, reason: impl Into<Note>) -> Result<Note> {
        self.ask(Ask::GiveUp, by, reason).await
    }

    /// Breaks the glass: promotes without the rest of the plan, whatever the gates say. The record shows who and why.
    ///
    /// # Errors
    /// As [`Handle::ask`].
    pub async fn promote_now(&self, by: impl AsRef<str>, reason: impl Into<Note>) -> Result<Note> {
        self.ask(Ask::PromoteNow, by, reason).await
    }

    /// Takes a gate out of the guard for the rest of the rollout. The record shows who and why.
    ///
    /// # Errors
    /// As [`Handle::ask`]; `Invalid` when there is no such gate.
    pub async fn skip_gate(&self, gate: GateName, by: impl AsRef<str>, reason: impl Into<Note>) -> Result<Note> {
        self.ask(Ask::SkipGate(gate), by, reason).await
    }

    /// Asks, and returns once the request and its answer are saved.
    ///
    /// # Errors
    /// `Conflict` when the rollout's state does not admit it, or when this process no longer drives it; the message says
    /// what it is doing instead. `Invalid` when the actor is not 1 to 128 bytes of printable text.
    ///
    /// # Cancel safety
    /// When dropped, the request is heard all the same.
    pub async fn ask(&self, ask: Ask, by: impl AsRef<str>, reason: impl Into<Note>) -> Result<Note> {
        self::ask(&self.live, Request::new(ask, by, reason)?).await
    }
}

pub(super) async fn ask(live: &Live, request: Request) -> Result<Note> {
    {
        let status = live.watch().borrow().clone();
        match status.phase {
            Phase::Driven => {}
            Phase::Over => return Ok(Note::new(format!("nothing to do: {}", status.rollout))),
            Phase::Released | Phase::TakenUp(_) => return Err(not_ours()),
        }
    }
    let (reply, answer) = oneshot::channel();
    live.ask(Asking { number: None, request, reply: Some(reply) });
    answer.await.unwrap_or_else(|_| Err(not_ours()))
}

fn not_ours() -> Error {
    Error::new(ErrorKind::Conflict, "this process no longer drives the rollout; ask through the store")
}

/// How a rollout came to rest, as far as this process saw it. `Display` is for people: what happened, what serves now,
/// what to do next.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The rollout as last saved.
    pub rollout: Arc<Rollout>,
    phase: Phase,
}

impl Outcome {
    /// Whether the candidate serves, alone.
    pub fn is_success(&self) -> bool {
        matches!(self.rollout.state, State::Promoted | State::Refused { why: Refusal::AlreadyServes })
    }

    /// The exit status that every tool of ours ends with: 0 promoted or serving already, 1 rolled back, 3 refused before
    /// anything changed, 4 stuck, 5 hands off, 130 not over: resumable, or driven elsewhere.
    pub fn exit_code(&self) -> u8 {
        match &self.rollout.state {
            _ if self.is_success() => 0,
            State::RolledBack { .. } => 1,
            State::Refused { .. } => 3,
            State::Stuck { .. } => 4,
            State::Abandoned { .. } => 5,
            _ => 130,
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rollout = &self.rollout;
        let change = &rollout.change;
        let (target, baseline, candidate) = (&change.target, &change.baseline.id, &change.candidate.id);
        let state = rollout.state.describe(&rollout.plan);
        writeln!(f, "{target}: {candidate} {state}")?;
        match &rollout.state {
            State::Promoted => write!(f, "{candidate} serves, alone")?,
            State::Refused { why: Refusal::AlreadyServes } => write!(f, "nothing was changed")?,
            State::RolledBack { .. } => write!(f, "{baseline} serves, alone, as a look has shown")?,
            State::Refused { .. } => write!(f, "nothing was changed: {baseline} serves")?,
            State::Stuck { .. } => {
                write!(f, "{}; a person decides: resume rollout {}, or give it up", serving(rollout), rollout.id())?;
            }
            State::Abandoned { .. } => {
                write!(f, "{}; hands off: look at the target, then start a rollout", serving(rollout))?;
            }
            _ => match &self.phase {
                Phase::TakenUp(Some(driver)) => {
                    write!(f, "{}; process {driver} drives rollout {} now", serving(rollout), rollout.id())?;
                }
                _ => write!(f, "{}; rollout {} is open: resume it", serving(rollout), rollout.id())?,
            },
        }
        for note in &rollout.not_restored {
            write!(f, "\nnot brought back: {note}")?;
        }
        Ok(())
    }
}

fn serving(rollout: &Rollout) -> String {
    match rollout.weight {
        Some(weight) => format!("the candidate had {weight} of the traffic when last seen"),
        None => "what serves now was not seen".into(),
    }
}
