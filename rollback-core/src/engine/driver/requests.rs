//! What people ask of the rollout.

use jiff::Timestamp;
use tokio::time::Instant;

use super::{Driver, GATHER};
use crate::engine::live::Asking;
use crate::error::{Error, ErrorKind, Result};
use crate::model::Note;
use crate::request::{Ask, Request};
use crate::rollout::What;
use crate::state::{Event, Hold, Interrupted, State};
use crate::wake::Bell;

impl Driver {
    pub(super) fn rung(&mut self) {
        let lines = self.live.bell.take();
        let now = Instant::now();
        let wall = self.inner.clock.now();
        if lines & 1 << Bell::BACKEND != 0 {
            self.look_at = Some(now);
            self.look_again = self.looking;
        }
        for index in 0..self.gates.len() {
            if lines & 1 << Bell::gate_line(index) != 0 {
                self.ask_now(index);
            }
        }
        for asking in self.live.take_inbox() {
            self.asked(asking, wall);
        }
    }

    pub(super) fn asked(&mut self, asking: Asking, wall: Timestamp) {
        if asking.number.is_some_and(|number| number <= self.heard) {
            return;
        }
        let answer = self.grant(&asking.request, wall);
        let words = match &answer {
            Ok(note) => note.clone(),
            Err(e) => Note::new(format!("refused: {e}")),
        };
        if let Some(number) = asking.number {
            self.heard = number;
        }
        self.log(wall, What::Asked { request: asking.request.clone(), answer: words });
        self.answers.push((self.edition, asking, answer));
        if self.pending.is_none() && matches!(self.rollout.state, State::RollingBack { .. }) {
            self.save_by(GATHER);
        } else {
            self.save_now();
        }
    }

    /// Does what is asked, or says why not.
    pub(super) fn grant(&mut self, request: &Request, wall: Timestamp) -> Result<Note> {
        let Request { ask, by, reason } = request.clone();
        let no = |why: String| Err(Error::new(ErrorKind::Conflict, why));
        let state = self.rollout.state.describe(&self.rollout.plan);
        match ask {
            Ask::Abort => {
                if matches!(self.rollout.state, State::RollingBack { .. }) {
                    return Ok(Note::new("it is rolling back already"));
                }
                if self.try_feed(Event::Aborted { by, why: reason }, wall) {
                    return Ok(match &self.rollout.state {
                        State::RollingBack { .. } => Note::new("it goes back"),
                        State::Refused { .. } => Note::new("it ends here; nothing was changed"),
                        other => Note::new(other.describe(&self.rollout.plan)),
                    });
                }
                if matches!(self.rollout.state, State::Stuck { .. }) {
                    return no(format!("there is no way back, and it is {state}; resume it or give it up"));
                }
                Ok(Note::new(format!("nothing to abort: it is {state}")))
            }
            Ask::Pause => match &self.rollout.state {
                State::Holding { why: Hold::Paused { .. }, .. } => Ok(Note::new("it is paused already")),
                State::Preflight => self.hold_for(Hold::Paused { by, why: reason }, wall, &state),
                _ if !self.can_hold() => no("this target cannot be held once it moves; abort it instead".into()),
                _ => self.hold_for(Hold::Paused { by, why: reason }, wall, &state),
            },
            Ask::Resume => match &self.rollout.state {
                State::Holding { why: Hold::Approval, .. } => no("it waits for approval, not for a resume".into()),
                State::Holding { .. } | State::Stuck { .. } => {
                    self.forgive();
                    self.feed(Event::Resumed, wall);
                    Ok(Note::new("it goes on"))
                }
                _ => Ok(Note::new(format!("nothing to resume: it is {state}"))),
            },
            Ask::Approve => self.approve(&by, wall, &state),
            Ask::GiveUp => {
                if self.try_feed(Event::GivenUp { by, why: reason }, wall) {
                    Ok(Note::new("given up; the target is left as it is"))
                } else {
                    no(format!("only what is held or stuck can be given up, and it is {state}"))
                }
            }
            Ask::PromoteNow => {
                if self.try_feed(Event::PromoteNow, wall) {
                    // Whatever the gates say: they are watched while promoting, so each must be told.
                    let skip = Box::new(crate::gate::Skip { by, why: reason, at: wall });
                    for slot in &mut self.change().gates {
                        slot.skipped.get_or_insert_with(|| skip.clone());
                    }
                    Ok(Note::new("promoting without the rest of the plan"))
                } else {
                    no(format!("it cannot be promoted while it is {state}"))
                }
            }
            Ask::SkipGate(name) => {
                let Some(index) = self.rollout.gates.iter().position(|slot| slot.name == name) else {
                    let names: Vec<&str> = self.rollout.gates.iter().map(|slot| slot.name.as_str()).collect();
                    return Err(Error::invalid(format!("there is no gate {name}; there are: {}", names.join(", "))));
                };
                let slot = &mut self.change().gates[index];
                slot.skipped.get_or_insert_with(|| Box::new(crate::gate::Skip { by, why: reason, at: wall }));
                if let State::Holding { why: Hold::NoData { gate, .. }, .. } = &self.rollout.state
                    && *gate == name
                {
                    self.feed(Event::Cleared, wall);
                }
                Ok(Note::new(format!("gate {name} no longer counts")))
            }
        }
    }

    pub(super) fn hold_for(&mut self, why: Hold, wall: Timestamp, state: &str) -> Result<Note> {
        if self.try_feed(Event::Held { why, until: self.hold_until(wall) }, wall) {
            Ok(Note::new(format!("holding; it was {state}")))
        } else {
            Err(Error::new(ErrorKind::Conflict, format!("it cannot be paused while it is {state}")))
        }
    }

    pub(super) fn approve(&mut self, by: &crate::model::Actor, wall: Timestamp, state: &str) -> Result<Note> {
        let State::Holding { why: Hold::Approval, from: Interrupted::Baking { step, .. }, .. } = self.rollout.state
        else {
            return Err(Error::new(ErrorKind::Conflict, format!("no approval is waited for: it is {state}")));
        };
        let approval = self.rollout.plan.steps()[step].approval.clone().expect("an approval is waited for");
        approval.admits(by, &self.rollout.author)?;
        if !self.rollout.approvals.contains(by) {
            self.change().approvals.push(by.clone());
        }
        let have = self.rollout.approvals.len();
        if have >= approval.need {
            self.change().approvals.clear();
            self.feed(Event::Cleared, wall);
            return Ok(Note::new("approved; it goes on"));
        }
        Ok(Note::new(format!("{have} of {} approvals", approval.need)))
    }

    /// A person has looked: what the gates counted against the candidate is forgotten.
    pub(super) fn forgive(&mut self) {
        for slot in &mut self.change().gates {
            slot.forgive();
        }
        // A rollback goes on for the reason it began with, and its times are measured from there.
        if !matches!(self.rollout.state, State::Stuck { from: Interrupted::RollingBack { .. }, .. }) {
            self.change().times.breach = None;
        }
    }
}
