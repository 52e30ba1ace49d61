//! Preflight and hooks: proving both ways before anything changes.

use std::sync::Arc;

use jiff::Timestamp;
use tokio::time::Instant;

use super::{Answer, Driver};
use crate::backend::Readiness;
use crate::engine::Target;
use crate::engine::call::bounded;
use crate::error::{ErrorKind, Result};
use crate::hook::{Exit, Hook};
use crate::model::{Goal, Note, Progress, Serves};
use crate::rollout::{BaselineFrom, Rollout, What};
use crate::state::{Event, Refusal, State, only};

impl Driver {
    pub(super) fn prove(&mut self, now: Instant) {
        if !matches!(self.rollout.state, State::Preflight) || self.proving || self.prove_at.is_none_or(|at| now < at) {
            return;
        }
        self.proving = true;
        let target = Arc::clone(&self.target);
        let rollout = Arc::clone(&self.rollout);
        let limit = target.limits.prove;
        self.calls.spawn(async move { Answer::Proved(bounded(limit, prove(target, rollout)).await) });
    }

    pub(super) fn proved(&mut self, result: Result<Readiness>, wall: Timestamp) {
        self.proving = false;
        if !matches!(self.rollout.state, State::Preflight) {
            return;
        }
        let readiness = match result {
            Ok(readiness) => readiness,
            Err(e) if e.is_transient() || e.kind() == ErrorKind::Conflict || e.kind() == ErrorKind::Internal => {
                self.prove_at = Some(Instant::now() + self.wait(&e));
                self.troubled("preflight", &e, wall);
                return;
            }
            Err(e) => {
                let why = Note::new(format!("preflight: {}", e.chain()));
                self.feed(Event::Refused(Refusal::NotReady { why }), wall);
                return;
            }
        };
        self.prove_at = None;
        let irreversible = self.rollout.irreversible.is_some();
        let mut closed: Vec<&str> = readiness.refused.iter().map(Note::as_str).collect();
        if !irreversible {
            closed.extend(readiness.no_way_back.iter().map(Note::as_str));
        }
        let closed = (!closed.is_empty()).then(|| Note::new(closed.join("; ")));
        self.change().readiness = readiness;
        match closed {
            Some(why) => self.feed(Event::Refused(Refusal::NotReady { why }), wall),
            None => self.next_hook(false, wall),
        }
    }

    /// Runs the next hook that is not done, or goes on when there is none.
    pub(super) fn next_hook(&mut self, last: bool, wall: Timestamp) {
        if self.hook.is_some() {
            return;
        }
        let hooks = if last { &self.target.after } else { &self.target.before };
        let Some(index) = hooks.iter().position(|hook| !self.rollout.hooks.contains_key(&hook.name)) else {
            if !last {
                self.feed(Event::Proved, wall);
            }
            return;
        };
        self.hook = Some(index);
        let hook: Hook = hooks[index].clone();
        let rollout = Arc::clone(&self.rollout);
        self.calls.spawn(async move {
            let limit = hook.deadline;
            let begun = Instant::now();
            let result = bounded(limit, async move { hook.call(rollout).await }).await;
            let missed = result.is_err() && begun.elapsed() >= limit;
            Answer::Hooked { hook: index, last, missed, result }
        });
    }

    pub(super) fn hooked(&mut self, index: usize, last: bool, missed: bool, result: Result<()>, wall: Timestamp) {
        self.hook = None;
        let still = if last { self.bake_end.is_some() } else { matches!(self.rollout.state, State::Preflight) };
        if !still {
            return;
        }
        let hook = if last { &self.target.after[index] } else { &self.target.before[index] };
        let (name, at_deadline) = (hook.name.clone(), hook.at_deadline);
        let (outcome, failed) = match result {
            Ok(()) => (Note::new("passed"), false),
            Err(_) if missed && at_deadline == Exit::GoOn => {
                (Note::new("did not answer in time; going on, as it says"), false)
            }
            Err(e) => (Note::new(e.chain()), true),
        };
        self.log(wall, What::Hook { name: name.clone(), outcome: outcome.clone() });
        if failed {
            self.feed(Event::Failed(Note::new(format!("hook {name}: {outcome}"))), wall);
        } else {
            self.change().hooks.insert(name, outcome);
            self.save_now();
            if !last {
                self.next_hook(false, wall);
            }
        }
    }
}

/// Proves both ways: the backend, the gates, and that the target still serves what the record calls its baseline.
async fn prove(target: Arc<Target>, rollout: Arc<Rollout>) -> Result<Readiness> {
    let (change, plan) = (&rollout.change, &rollout.plan);
    let mut found = target.backend.preflight(change, plan).await?;
    if rollout.baseline_from == BaselineFrom::Target {
        let look = target.backend.observe(change, Goal::Baseline, None).await?;
        let changed = match &look.progress {
            Progress::Reached => only(Serves::Baseline, &look).err(),
            Progress::Due(effect) => Some(Note::new(format!("to serve only the baseline it would need: {effect}"))),
            Progress::Underway(what) => Some(Note::new(format!("something is under way: {what}"))),
            Progress::Failed(why) | Progress::Drifted(why) => Some(why.clone()),
        };
        match changed {
            None => found = found.proved(format!("{} serves alone", change.baseline.id)),
            Some(why) => {
                found = found.refused(format!("the target does not serve {} alone: {why}", change.baseline.id));
            }
        }
    }
    if !target.capabilities.baseline_stands {
        found = found.not_restored("the baseline does not keep standing here: going back installs it again");
    }
    for guard in &target.gates {
        let gate = guard.gate.preflight(change, plan).await;
        found = found.and(gate.map_err(|e| e.during(format_args!("gate {}", guard.gate.name())))?);
    }
    Ok(found)
}
