//! Look, save, act.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::{Answer, Driver, Pending, SAVE_EVERY, TRIES, TRIES_BACK, UNSAVED_AFTER, later};
use crate::engine::call::{bounded, kept};
use crate::error::{ErrorKind, Result};
use crate::model::{Attempt, Effect, Goal, Nonce, Note, Observed, Progress, Serial, Version, Weight};
use crate::rollout::{Tries, What};
use crate::state::{Event, Past, State, Turn, Versions, settles};

impl Driver {
    pub(super) fn looks(&self) -> bool {
        self.rollout.state.goal(&self.rollout.plan).is_some() && self.pending.is_none() && !self.waits_for_shift()
    }

    /// A shift for the goal of this state is under way: its answer comes first.
    pub(super) fn waits_for_shift(&self) -> bool {
        let goal = self.rollout.state.goal(&self.rollout.plan);
        self.shifting.as_ref().is_some_and(|(_, under_way)| Some(*under_way) == goal)
    }

    pub(super) fn look(&mut self, now: Instant, begun: Timestamp) {
        if self.looking || !self.looks() || self.look_at.is_none_or(|at| now < at) {
            return;
        }
        let goal = self.rollout.state.goal(&self.rollout.plan).expect("looks() asked for it");
        self.looking = true;
        let (turn, limit) = (self.turn, self.target.limits.look);
        let backend = Arc::clone(&self.target.backend);
        let rollout = Arc::clone(&self.rollout);
        self.calls.spawn(async move {
            let look = async move { backend.observe(&rollout.change, goal, rollout.attempt.as_ref()).await };
            Answer::Looked { goal, turn, begun, result: bounded(limit, look).await }
        });
    }

    pub(super) fn looked(
        &mut self,
        goal: Goal,
        turn: u64,
        begun: Timestamp,
        result: Result<Observed>,
        wall: Timestamp,
    ) {
        if turn != self.turn || self.rollout.state.goal(&self.rollout.plan) != Some(goal) {
            return;
        }
        self.looking = false;
        let now = Instant::now();
        let look = match result {
            Ok(look) => look,
            Err(e) => {
                self.look_at = Some(now + self.wait(&e));
                self.troubled("looking", &e, wall);
                return;
            }
        };
        self.learn(goal, &look, wall);
        let past = Past {
            last: self.rollout.attempt.as_ref(),
            closed: self.rollout.attempt_closed,
            unsettled: self.rollout.unsettled,
            inherited: self.rollout.inherited,
            versions: self.target.capabilities.versions,
            asked: self.rollout.tries.is_some(),
            // What landed while the look was on its way, the look has not seen.
            now: begun,
        };
        let turn = self.rollout.state.heed(self.rollout.terms(), &look, &past);
        let version = look.version.clone();
        self.seen = Some(look);
        let again = std::mem::take(&mut self.look_again);
        match turn {
            Turn::Wait(what) => {
                if self.rollout.waiting_for != what {
                    self.change().waiting_for = what;
                    self.save_by(SAVE_EVERY);
                }
                let acts =
                    matches!(self.rollout.state, State::Shifting { .. } | State::Promoting | State::RollingBack { .. });
                let pause = match acts {
                    _ if again => Duration::ZERO,
                    true => self.next_backoff(),
                    false => self.target.pace.idle,
                };
                self.look_at = Some(now + pause);
            }
            Turn::Shift(effect) => self.attempt(effect, version, goal, wall),
            Turn::Tell(event) => self.feed(event, wall),
        }
    }

    /// Keeps what a look tells whatever comes of it.
    pub(super) fn learn(&mut self, goal: Goal, look: &Observed, wall: Timestamp) {
        let weight = look.weight.or(match (&look.progress, goal) {
            (Progress::Reached, Goal::Split(weight)) => Some(weight),
            (Progress::Reached, Goal::Candidate) => Some(Weight::ALL),
            (Progress::Reached, Goal::Baseline) => Some(Weight::NONE),
            _ => None,
        });
        let restored = matches!(self.rollout.state, State::RollingBack { .. })
            && weight == Some(Weight::NONE)
            && self.rollout.times.restored.is_none();
        let closed = look.landed && !self.rollout.attempt_closed && self.rollout.attempt.is_some();
        let fresh: Vec<Note> =
            look.not_restored.iter().filter(|note| !self.rollout.not_restored.contains(note)).cloned().collect();
        let moved = weight.filter(|weight| self.rollout.weight != Some(*weight));
        if !(restored || closed || moved.is_some()) && fresh.is_empty() {
            return;
        }
        let rollout = self.change();
        if let Some(weight) = moved {
            rollout.weigh(wall, weight);
        }
        rollout.attempt_closed |= closed;
        rollout.not_restored.extend(fresh);
        if restored {
            rollout.times.restored = Some(wall);
        }
        self.save_by(SAVE_EVERY);
    }

    /// Writes an attempt on the version just seen into the record; [`Self::send`] sends it once that is saved.
    pub(super) fn attempt(&mut self, effect: Effect, version: Version, goal: Goal, wall: Timestamp) {
        if self.waits_for_shift() {
            return;
        }
        let known = self.asked.iter().chain(&self.rollout.tries).filter(|tries| tries.effect == effect);
        let again = known.map(|tries| tries.count).max().unwrap_or(0);
        let count = if self.turned_away { again.max(1) } else { again + 1 };
        let most = if goal.is_forward() { TRIES } else { TRIES_BACK };
        if count > most {
            let why = format!("asked {most} times and still due: {effect}");
            return self.feed(Event::Failed(Note::new(why)), wall);
        }
        self.turned_away = false;
        self.last_nonce = self.last_nonce.max(self.serial.0) + 1;
        let nonce = Nonce::by_driver(self.rollout.id(), self.since, Serial(self.last_nonce), goal);
        let attempt = Attempt { nonce, goal, version, at: wall };
        let versions = self.target.capabilities.versions;
        let rollout = self.change();
        if let (Versions::Unchecked { settle }, Some(old), false) = (versions, &rollout.attempt, rollout.attempt_closed)
        {
            rollout.unsettled = rollout.unsettled.max(Some(settles(old, settle)));
            if !(old.goal.is_forward() || goal.is_forward()) {
                // What could be repeated came before it was settled. The next that cannot be waits for it all the same.
                rollout.inherited = rollout.inherited.max(Some(old.at));
            }
        }
        if versions == Versions::Checked {
            // This attempt spends whatever version an unsaved call of the driver before may carry.
            rollout.inherited = None;
        }
        rollout.attempt = Some(attempt.clone());
        rollout.attempt_closed = false;
        let tries = Tries { effect: effect.clone(), count };
        rollout.tries = Some(tries.clone());
        rollout.waiting_for = None;
        match self.asked.iter_mut().find(|tries| tries.effect == effect) {
            Some(known) => *known = tries,
            None => self.asked.push(tries),
        }
        if count == 1 {
            self.log(wall, What::Attempted { effect, attempt });
        }
        self.pending = Some(Pending { edition: self.edition, since: Instant::now() });
        self.save_now();
    }

    /// Sends the pending attempt, if it is saved and the rollout is still ours (P4, P5, rule 9).
    pub(super) fn send(&mut self, now: Instant, wall: Timestamp) {
        let Some(pending) = &self.pending else { return };
        let attempt = self.rollout.attempt.clone().expect("a pending attempt is in the record");
        if let Versions::Unchecked { settle } = self.target.capabilities.versions
            && attempt.goal.is_forward()
            && wall >= later(attempt.at, settle / 4)
        {
            // The settle time runs from the decision. A call that goes out late in it could land when it counts as
            // settled; this one never went out, so look again.
            self.pending = None;
            self.change().attempt_closed = true;
            self.look_at = Some(now);
            return self.save_by(SAVE_EVERY);
        }
        let saved = self.saved >= pending.edition;
        let proven = self.proof.is_some_and(|proof| self.inner.pulse.proves(proof, now, wall));
        let unsaved = attempt.goal == Goal::Baseline && now >= pending.since + UNSAVED_AFTER;
        if !(proven && (saved || unsaved)) {
            return;
        }
        self.pending = None;
        let nonce = attempt.nonce.clone();
        let goal = attempt.goal;
        self.shifting = Some((nonce.clone(), goal));
        let (backend, limit) = (Arc::clone(&self.target.backend), self.target.limits.shift);
        let change = Arc::clone(&self.rollout.change);
        self.calls.spawn(async move {
            let shift = async move { backend.shift(&change, goal, &attempt).await };
            Answer::Shifted { nonce, goal, result: kept(limit, shift).await }
        });
    }

    pub(super) fn shifted(&mut self, nonce: &Nonce, goal: Goal, result: Result<()>, wall: Timestamp) {
        if self.shifting.as_ref().is_some_and(|(under_way, _)| under_way == nonce) {
            self.shifting = None;
        }
        let current = self.rollout.attempt.as_ref().is_some_and(|attempt| attempt.nonce == *nonce);
        let wanted = self.rollout.state.goal(&self.rollout.plan) == Some(goal);
        let now = Instant::now();
        let Err(e) = result else {
            if wanted && self.rollout.tries.as_ref().is_none_or(|tries| tries.count == 1) {
                self.look_backoff.reset();
                self.look_at = Some(now);
            } else if wanted {
                // Accepted, and due all the same: asking faster than the target can follow uses up all tries at once.
                self.look_at = Some(now + self.next_backoff());
            }
            return;
        };
        // A client that repeats requests by itself can be told `Conflict` by its own call that landed.
        let refused = e.changed_nothing() && e.kind() != ErrorKind::Conflict;
        if current && refused && !self.rollout.attempt_closed {
            self.change().attempt_closed = true;
            self.save_by(SAVE_EVERY);
        }
        self.troubled("shifting", &e, wall);
        if !current || !wanted {
            return;
        }
        let hopeless = matches!(e.kind(), ErrorKind::Invalid | ErrorKind::Unsupported | ErrorKind::NotFound);
        if hopeless && goal.is_forward() {
            return self.feed(Event::Failed(Note::new(e.chain())), wall);
        }
        self.turned_away = matches!(e.kind(), ErrorKind::Throttled | ErrorKind::Denied);
        // The first may be for a look that was old. After that somebody is at it, who should get to the end of it.
        let first = self.rollout.tries.as_ref().is_none_or(|tries| tries.count == 1);
        let pause = if e.kind() == ErrorKind::Conflict && first { Duration::ZERO } else { self.wait(&e) };
        self.look_at = Some(now + pause);
    }
}
