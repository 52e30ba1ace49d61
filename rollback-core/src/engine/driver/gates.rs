//! Gates: asked side by side, counted by their policies, acted on by the strategy.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::{Answer, Driver, SAVE_EVERY, Turns, later};
use crate::engine::call::bounded;
use crate::gate::{Finding, NoData, Verdict, Window};
use crate::model::{GateName, Note, Weight};
use crate::rollout::{Kind, What};
use crate::state::{Cause, Event, Hold, State};
use crate::strategy::{AskPerson, Decision, RollbackStrategy as _};

impl Driver {
    pub(super) fn ask_gates(&mut self, now: Instant, wall: Timestamp) {
        if !self.watches() {
            return;
        }
        for index in 0..self.gates.len() {
            let ask = &self.gates[index];
            if ask.running.is_some() || ask.due.is_none_or(|due| now < due) || !self.rollout.gates[index].counts() {
                continue;
            }
            let guard = &self.target.gates[index];
            let due = Some(now + guard.policy.interval);
            let window = self.window(index, wall);
            let gate = Arc::clone(&guard.gate);
            let limit = guard.policy.timeout;
            let running = self.calls.spawn(async move {
                let judgement = bounded(limit, gate.judge(&window)).await.and_then(Verdict::bounded);
                // An error is no data, and keeps the memory that the gate had.
                let verdict = judgement.unwrap_or_else(|e| window.no_data(e.chain()));
                Answer::Judged { gate: index, verdict }
            });
            self.gates[index] = Turns { due, running: Some(running) };
        }
    }

    /// Before the first attempt there is no candidate to judge.
    pub(super) fn watches(&self) -> bool {
        let untouched = matches!(self.rollout.state, State::Shifting { step: 0 }) && self.rollout.attempt.is_none();
        self.rollout.state.watches_gates() && !untouched
    }

    fn window(&self, gate: usize, wall: Timestamp) -> Window {
        let change = &self.rollout.change;
        let step = self.rollout.state.step().unwrap_or_else(|| self.rollout.plan.steps().len() - 1);
        Window {
            rollout: change.rollout.clone(),
            target: change.target.clone(),
            baseline: change.baseline.id.clone(),
            candidate: change.candidate.id.clone(),
            created: self.rollout.created,
            step,
            weight: self.rollout.weight.unwrap_or(Weight::NONE),
            since: self.rollout.since,
            now: wall,
            last: self.rollout.gates[gate].evidence.clone(),
        }
    }

    pub(super) fn judged(&mut self, index: usize, verdict: Verdict, wall: Timestamp) {
        self.gates[index].running = None;
        if !self.rollout.state.watches_gates() || !self.rollout.gates[index].counts() {
            return;
        }
        let policy = self.target.gates[index].policy;
        let name = self.rollout.gates[index].name.clone();
        let before = (self.rollout.gates[index].standing, self.rollout.gates[index].judged > 0);
        let shifting = matches!(self.rollout.state, State::Shifting { .. } | State::Promoting);
        let slot = &mut self.change().gates[index];
        let finding = slot.heed(&policy, verdict, wall);
        if shifting {
            // A candidate that does not stand yet has no data, and the shift's deadline is bound enough.
            slot.blind_since = None;
        }
        let (standing, why) = (slot.standing, Note::new(&slot.evidence.as_ref().expect("just judged").summary));
        if (standing, true) != before {
            self.log(wall, What::Judged { gate: name.clone(), standing, why });
        }
        self.save_by(SAVE_EVERY);
        match finding {
            Finding::Trips(why) => self.tripped(index, name, why, wall),
            Finding::Blind(why) if !shifting => self.blinded(&policy.no_data, name, why, wall),
            Finding::Blind(_) | Finding::Open => {
                if let State::Holding { why: Hold::NoData { gate, .. }, .. } = &self.rollout.state
                    && self.rollout.gate(gate).is_none_or(|slot| !slot.counts() || !slot.is_blind())
                {
                    self.feed(Event::Cleared, wall);
                }
            }
        }
    }

    pub(super) fn tripped(&mut self, index: usize, gate: GateName, why: Note, wall: Timestamp) {
        let breach = self.rollout.gates[index].unhealthy_since.unwrap_or(wall);
        self.change().times.breach.get_or_insert(breach);
        self.log(wall, What::Tripped { gate: gate.clone(), why: why.clone() });
        let verdict = Verdict::Unhealthy(self.rollout.gates[index].evidence.clone().expect("just judged"));
        let decide = || match self.rollout.kind {
            // P15: a rollback of a rollback is a person's decision.
            Kind::Return => AskPerson.decide(&self.rollout, &verdict),
            Kind::Deploy => self.target.strategy.decide(&self.rollout, &verdict),
        };
        // A strategy that panics has decided nothing, and a tripped gate without a decision goes back.
        let decision = catch_unwind(AssertUnwindSafe(decide)).unwrap_or(Decision::RollBack);
        match decision {
            Decision::Continue => self.save_now(),
            Decision::Hold(why) if self.can_hold() => {
                let hold = Hold::Unhealthy { gate, why };
                self.feed(Event::Held { why: hold, until: self.hold_until(wall) }, wall);
            }
            Decision::Stop(why) => self.feed(Event::Stopped(why), wall),
            Decision::Hold(_) | Decision::RollBack => {
                self.feed(Event::Tripped(Cause::Unhealthy { gate, why }), wall);
            }
        }
    }

    pub(super) fn blinded(&mut self, no_data: &NoData, gate: GateName, why: Note, wall: Timestamp) {
        match no_data {
            NoData::Hold { .. } if self.can_hold() => {
                if !matches!(self.rollout.state, State::Holding { .. }) {
                    let hold = Hold::NoData { gate, why };
                    self.feed(Event::Held { why: hold, until: self.hold_until(wall) }, wall);
                }
            }
            NoData::Hold { .. } | NoData::RollBack { .. } => {
                self.feed(Event::Tripped(Cause::NoData { gate, why }), wall);
            }
        }
    }

    /// When the bake is over and every gate is healthy on data that reaches its end: the hooks, the approval, the next
    /// step.
    pub(super) fn pass(&mut self, now: Instant, wall: Timestamp) {
        let (State::Baking { step, .. }, Some(end)) = (&self.rollout.state, self.bake_end) else { return };
        let step = *step;
        let mut guards = self.target.gates.iter().zip(&self.rollout.gates);
        if !guards.all(|(guard, slot)| !slot.counts() || slot.is_healthy(&guard.policy, end)) {
            return;
        }
        let is_last = step + 1 == self.rollout.plan.steps().len();
        if is_last && self.target.after.iter().any(|hook| !self.rollout.hooks.contains_key(&hook.name)) {
            return self.next_hook(true, wall);
        }
        if self.rollout.plan.steps()[step].approval.is_some() {
            return self.feed(Event::Held { why: Hold::Approval, until: self.hold_until(wall) }, wall);
        }
        self.feed(Event::Passed, wall);
        self.look_at = Some(now);
    }

    pub(super) fn is_blind(&self) -> bool {
        self.rollout.gates.iter().any(|slot| slot.counts() && slot.is_blind())
    }

    pub(super) fn longest_tick(&self) -> Duration {
        let counting = self.target.gates.iter().zip(&self.rollout.gates).filter(|(_, slot)| slot.counts());
        counting.map(|(guard, _)| guard.policy.interval).max().unwrap_or(self.target.pace.idle)
    }

    /// Asks a gate now. A judgement under way is dropped: it began before what there is to be judged.
    pub(super) fn ask_now(&mut self, gate: usize) {
        let ask = &mut self.gates[gate];
        if let Some(running) = ask.running.take() {
            running.abort();
        }
        ask.due = Some(Instant::now());
    }

    pub(super) fn can_hold(&self) -> bool {
        self.target.capabilities.can_hold
    }

    pub(super) fn hold_until(&self, wall: Timestamp) -> Timestamp {
        later(wall, self.rollout.plan.deadlines().hold)
    }
}
