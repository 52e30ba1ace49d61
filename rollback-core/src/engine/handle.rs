//! A rollout in the hand of whoever started it.

use std::{fmt, sync::Arc};

use jiff::{SignedDuration, Timestamp};
use tokio::sync::{oneshot, watch};

use super::{
    Phase,
    live::{Asking, Live, Status},
};
use crate::{
    error::{Error, ErrorKind, Result},
    model::{GateName, Note, RolloutId, Weight},
    request::{Ask, Request},
    rollout::{Kind, Rollout, Times, What},
    state::{Cause, Interrupted, Refusal, State},
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

    /// The rollout as last saved; watched time and evidence may be ahead of the record, by 15 seconds at most while the
    /// store answers.
    pub fn status(&self) -> Arc<Rollout> {
        Arc::clone(&self.seen.borrow().rollout)
    }

    /// Waits until something has changed, and returns the rollout as [`Self::status`] does; `None` when this process will not change it any more.
    ///
    /// # Cancel safety
    /// Drop it whenever you like: a change that was not returned is returned by the next call.
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

    /// Goes back, also from stuck. Before anything changed the rollout is refused; when it is over already, nothing
    /// happens. Returns once the request and its answer are saved.
    ///
    /// # Errors
    /// As [`Handle::ask`]; `Conflict` too when it is stuck and there is no way back.
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

/// How a rollout came to rest, as far as this process saw it. `Display` is for people.
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

/// Line by line: what happened and why, what serves now, how long users were exposed, what is left to do.
impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rollout = &self.rollout;
        let change = &rollout.change;
        let (baseline, candidate) = (&change.baseline.id, &change.candidate.id);
        write!(f, "{}: ", change.target)?;
        match &rollout.state {
            State::Promoted => write!(f, "{candidate} is promoted, in place of {baseline}")?,
            State::RolledBack { cause } => write!(f, "rolled back from {candidate} to {baseline}: {cause}")?,
            State::Refused { why: Refusal::AlreadyServes } => write!(f, "nothing to do")?,
            State::Refused { why } => write!(f, "{candidate} was refused: {why}")?,
            State::Stuck { from: Interrupted::RollingBack { cause }, why } => {
                write!(
                    f,
                    "stuck on the way back from {candidate} to {baseline}: {why}\nit went back because: {cause}"
                )?;
            }
            state => write!(f, "{candidate} is {}", state.describe(&rollout.plan))?,
        }
        match &rollout.state {
            State::Promoted | State::Refused { why: Refusal::AlreadyServes } => {
                write!(f, "\n{candidate} serves, alone")?
            }
            State::RolledBack { .. } => write!(f, "\n{baseline} serves, alone: a look has shown it")?,
            State::Refused { .. } => write!(f, "\nnothing was changed: {baseline} serves")?,
            _ => match rollout.weight {
                Some(weight) => write!(f, "\nwhen last seen, {candidate} had {weight} of the traffic")?,
                None => write!(f, "\nwhat serves was not seen yet")?,
            },
        }
        self.exposure(f)?;
        for slot in &rollout.gates {
            if let Some(skip) = &slot.skipped {
                write!(f, "\nnot guarded by gate {}: skipped by {} ({})", slot.name, skip.by, skip.why)?;
            }
        }
        for note in &rollout.not_restored {
            let left = if rollout.state == State::Promoted { "" } else { "not brought back: " };
            write!(f, "\n{left}{note}")?;
        }
        write!(f, "\nnext: {}", self.next())
    }
}

impl Outcome {
    /// How long users had the candidate, and how fast it was taken from them.
    fn exposure(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rollout = &self.rollout;
        let Times { breach, decision: Some(decision), restored, verified } = rollout.times else { return Ok(()) };
        let candidate = &rollout.change.candidate.id;
        let steps = rollout.plan.steps();
        let exposed = rollout.log.iter().find(|entry| match &entry.what {
            What::Entered { to: State::Shifting { step } } => {
                steps.get(*step).is_some_and(|step| step.weight > Weight::NONE)
            }
            What::Entered { to } => *to == State::Promoting,
            _ => false,
        });
        match (exposed, restored) {
            (None, _) => write!(f, "\nusers never had {candidate}")?,
            (Some(begun), Some(end)) => write!(f, "\nusers had {candidate} for at most {}", brief(begun.at, end))?,
            (Some(begun), None) => write!(f, "\nusers have had {candidate} since {}", second(begun.at))?,
        }
        let from = breach.unwrap_or(decision);
        match breach {
            Some(breach) => {
                write!(
                    f,
                    "\nfirst unhealthy verdict at {}; decided after {}",
                    second(breach),
                    brief(breach, decision)
                )?;
            }
            None => write!(f, "\ndecided at {}", second(decision))?,
        }
        if let Some(restored) = restored {
            write!(f, "; traffic back after {}", brief(from, restored))?;
        }
        if let Some(verified) = verified {
            write!(f, "; seen on every part after {}", brief(from, verified))?;
        }
        Ok(())
    }

    /// What the person on call does next.
    fn next(&self) -> String {
        let rollout = &self.rollout;
        let (id, change) = (rollout.id(), &rollout.change);
        let (target, baseline, candidate) = (&change.target, &change.baseline.id, &change.candidate.id);
        match &rollout.state {
            State::Promoted if rollout.kind == Kind::Return => format!("find out what was wrong with {baseline}"),
            State::Promoted => format!("nothing; rolling {target} back brings {baseline} back"),
            State::RolledBack { cause } if cause.condemns_the_candidate() => {
                format!("{candidate} is quarantined here: mend it, and start the new revision")
            }
            State::RolledBack { cause: Cause::Aborted { .. } } => {
                format!("{candidate} is not quarantined: start it again when it is wanted")
            }
            State::RolledBack { .. } => format!("{candidate} is not quarantined: put that right, then start it again"),
            State::Refused { why: Refusal::AlreadyServes } => "nothing".into(),
            State::Refused { why: Refusal::Quarantined { .. } } => {
                format!(
                    "mend {candidate} and start the new revision, or start it despite the quarantine, with a reason"
                )
            }
            State::Refused { why: Refusal::Aborted { .. } } => "start it again when it is wanted".into(),
            State::Refused { .. } => "put that right, then start it again".into(),
            State::Stuck { from, .. } if from.goes_forward() && rollout.terms().way_back => {
                format!(
                    "a person decides: abort rollout {id} and {baseline} is brought back, resume it and it goes on, or \
                     give it up and the target stays as it is"
                )
            }
            State::Stuck { .. } => {
                format!(
                    "a person puts that right and resumes rollout {id}, or gives it up and the target stays as it is"
                )
            }
            State::Abandoned { .. } => format!("look at {target}, then start a rollout to what should serve"),
            _ => match &self.phase {
                Phase::TakenUp(Some(driver)) => format!("nothing here: process {driver} drives rollout {id} now"),
                Phase::TakenUp(None) => format!("find out who took rollout {id} away: its record was changed"),
                _ => format!("resume rollout {id}: it is open, and nothing is lost"),
            },
        }
    }
}

/// An instant, to the second.
fn second(at: Timestamp) -> Timestamp {
    Timestamp::from_second(at.as_second()).unwrap_or(at)
}

/// From one instant to another, as exact as people care.
fn brief(from: Timestamp, to: Timestamp) -> String {
    let time = to.duration_since(from);
    let time = match time.as_secs() {
        ..10 => SignedDuration::from_millis_i128(time.as_millis()),
        more => SignedDuration::from_secs(more),
    };
    format!("{time:#}")
}
