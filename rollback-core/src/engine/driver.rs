//! The driver of one rollout: a task that owns its record, and never waits for anything but news.
//!
//! Every call (a look, a shift, a judgement, a hook, a save) runs in a task of its own and comes back as an [`Answer`].
//! So an abort, a deadline or a trip is served while any of them hangs.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use jiff::{SignedDuration, Timestamp};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep_until},
};

use super::{
    Inner, Target,
    call::{bounded, kept},
    live::{Asking, Live, Phase, Status},
};
use crate::{
    backend::Readiness,
    error::{Error, ErrorKind, Result},
    gate::{Evidence, Finding, NoData, Verdict, Window},
    hook::{Exit, Hook},
    listener::RolloutEvent,
    model::{Attempt, Effect, GateName, Goal, Nonce, Note, Observed, Progress, Serial, Serves, Version, Weight},
    request::{Ask, Request},
    rollout::{BaselineFrom, Entry, Kind, Rollout, Tries, What},
    state::{Cause, Event, Hold, Interrupted, Past, Refusal, State, Turn, Versions, only, settles},
    store::Record,
    strategy::{AskPerson, Decision, RollbackStrategy},
    wake::Bell,
};

/// How often the same effect may be due running before it counts as failed.
const TRIES: u32 = 8;
/// A rollback keeps trying longer: its deadline is the real bound.
const TRIES_BACK: u32 = 64;
/// A transition waits this long for the attempt that follows it, so that both are one save.
const GATHER: Duration = Duration::from_millis(200);
/// A rollback waits this long for its save before it goes ahead without.
const UNSAVED_AFTER: Duration = Duration::from_secs(1);
/// Gate memory and watched time are saved at least this often.
const SAVE_EVERY: Duration = Duration::from_secs(15);
/// A trouble that goes on is repeated in the log this often.
const REPEAT_TROUBLE: SignedDuration = SignedDuration::from_secs(60);

/// What comes back from a call.
enum Answer {
    Proved(Result<Readiness>),
    Looked { goal: Goal, turn: u64, result: Result<Observed> },
    Shifted { nonce: Nonce, goal: Goal, result: Result<()> },
    Judged { gate: usize, result: Result<Verdict> },
    Hooked { hook: usize, last: bool, missed: bool, result: Result<()> },
    Saved { edition: u64, begun: Instant, result: Result<Serial> },
    Loaded { result: Result<(Record, Serial)> },
}

/// An attempt in the record that is still to be sent.
struct Pending {
    /// The edition of the rollout that holds it.
    edition: u64,
    since: Instant,
}

/// When a gate is asked next.
#[derive(Clone, Copy)]
struct Turns {
    due: Option<Instant>,
    running: bool,
    /// Ask again as soon as the running judgement is back.
    again: bool,
}

enum Saving {
    /// Nothing under way.
    No,
    /// A save is under way.
    Under,
    /// Its answer was lost, or it was refused: load and compare, at this time.
    Compare(Instant),
    /// The load is under way.
    Comparing,
}

pub(super) struct Driver {
    inner: Arc<Inner>,
    target: Arc<Target>,
    live: Arc<Live>,
    calls: JoinSet<Answer>,

    /// The rollout as it is; the record may be behind.
    rollout: Arc<Rollout>,
    /// Raised by every change of the rollout.
    edition: u64,
    /// The edition that the record holds.
    saved: u64,
    serial: Serial,
    heard: u64,
    saving: Saving,
    /// When the next save is to begin, if there is something to save.
    save_at: Option<Instant>,
    /// When the last landed save was begun: it proves that the rollout was ours then.
    proof: Option<Instant>,
    last_nonce: u64,
    save_backoff: ExponentialBackoff,
    /// Events that are told once the record holds them.
    untold: Vec<(u64, Entry)>,
    answers: Vec<(u64, Asking, Result<Note>)>,

    /// Raised by every state entered: answers of older looks are not heeded.
    turn: u64,
    looking: bool,
    /// Something happened during the look: look once more.
    look_again: bool,
    look_at: Option<Instant>,
    look_backoff: ExponentialBackoff,
    seen: Option<Observed>,
    shifting: Option<(Nonce, Goal)>,
    pending: Option<Pending>,
    /// The last shift was turned away for a passing reason: asking again is no new try.
    turned_away: bool,

    proving: bool,
    prove_at: Option<Instant>,
    hook: Option<usize>,
    gates: Box<[Turns]>,
    last_tick: Instant,
    /// When the bake was over, by its watched time: the gates' data must reach it.
    bake_end: Option<Timestamp>,
    trouble: Option<(Timestamp, Note)>,
    stopping: bool,
    gone: Option<Phase>,
}

fn backoff(most: Duration) -> ExponentialBackoff {
    let least = Duration::from_millis(50).min(most);
    ExponentialBuilder::new()
        .with_min_delay(least)
        .with_max_delay(most)
        .with_factor(2.0)
        .without_max_times()
        .with_jitter()
        .build()
}

impl Driver {
    pub(super) fn new(
        inner: Arc<Inner>,
        target: Arc<Target>,
        live: Arc<Live>,
        rollout: Arc<Rollout>,
        serial: Serial,
        heard: u64,
        proof: Instant,
    ) -> Self {
        let now = Instant::now();
        let gates = vec![Turns { due: Some(now), running: false, again: false }; target.gates.len()];
        for (index, guard) in target.gates.iter().enumerate() {
            guard.gate.attach(live.wake(Bell::gate_line(index)));
        }
        target.backend.attach(live.wake(Bell::BACKEND));
        let busy = target.pace.busy;
        let mut driver = Self {
            calls: JoinSet::new(),
            edition: 1,
            saved: 1,
            serial,
            heard,
            saving: Saving::No,
            save_at: None,
            proof: Some(proof),
            last_nonce: serial.0,
            save_backoff: backoff(Duration::from_secs(5)),
            untold: Vec::new(),
            answers: Vec::new(),
            turn: 0,
            looking: false,
            look_again: false,
            look_at: Some(now),
            look_backoff: backoff(busy),
            seen: None,
            shifting: None,
            pending: None,
            turned_away: false,
            proving: false,
            prove_at: Some(now),
            hook: None,
            gates: gates.into(),
            last_tick: now,
            bake_end: None,
            trouble: None,
            stopping: false,
            gone: None,
            inner,
            target,
            live,
            rollout,
        };
        driver.take_up();
        driver
    }

    pub(super) async fn run(mut self) {
        while self.gone.is_none() {
            let next = self.turn();
            if self.gone.is_some() {
                break;
            }
            tokio::select! {
                Some(answer) = self.calls.join_next(), if !self.calls.is_empty() => {
                    // The calls catch their own panics; a join error is a runtime that is going away.
                    if let Ok(answer) = answer {
                        self.heard(answer);
                    }
                }
                () = self.live.bell.heard() => self.rung(),
                () = sleep_until(next) => {}
            }
        }
        self.leave();
    }

    // ------------------------------------------------------------------------------------------- one turn of the loop

    /// Starts whatever is due and says when to come again.
    fn turn(&mut self) -> Instant {
        let now = Instant::now();
        let wall = self.inner.clock.now();
        if self.inner.stopping() {
            self.stop();
        }
        if self.stopping {
            return self.turn_to_leave(now);
        }
        self.tick(now, wall);
        self.expire(wall);
        if self.rollout.state.is_open() {
            self.prove(now);
            self.ask_gates(now, wall);
            self.pass(now, wall);
            self.look(now);
            self.send(now, wall);
        }
        self.save(now);
        self.conclude();
        self.next_wake(now, wall)
    }

    fn next_wake(&self, now: Instant, wall: Timestamp) -> Instant {
        let mut next = now + Duration::from_secs(3600);
        let mut at = |instant: Option<Instant>| {
            if let Some(instant) = instant {
                next = next.min(instant);
            }
        };
        if let Some(deadline) = self.rollout.deadline {
            at(Some(now + until(wall, deadline)));
        }
        match self.saving {
            Saving::No => at(self.save_at),
            Saving::Compare(when) => at(Some(when)),
            Saving::Under | Saving::Comparing => {}
        }
        if !self.looking && self.looks() {
            at(self.look_at);
        }
        if matches!(self.rollout.state, State::Preflight) && !self.proving {
            at(self.prove_at);
        }
        if self.rollout.state.watches_gates() {
            for gate in &self.gates {
                at(gate.due.filter(|_| !gate.running));
            }
        }
        if let State::Baking { step, watched } = self.rollout.state {
            let left = self.rollout.plan.steps()[step].bake.saturating_sub(watched);
            if !left.is_zero() && !self.is_blind() {
                at(Some(self.last_tick + left.min(self.longest_tick())));
            }
        }
        if let Some(pending) = &self.pending {
            // A rollback goes ahead after a second; then, as any attempt, it waits for the next beat.
            let ahead = pending.since + UNSAVED_AFTER;
            at(Some(if now < ahead { ahead } else { now + self.inner.pulse.interval() / 2 }));
        }
        next.max(now)
    }

    /// Counts watched time: at most one gate interval a tick, and none while a gate has no data.
    fn tick(&mut self, now: Instant, wall: Timestamp) {
        let passed = now.saturating_duration_since(self.last_tick).min(self.longest_tick());
        self.last_tick = now;
        let State::Baking { step, watched } = self.rollout.state else { return };
        let bake = self.rollout.plan.steps()[step].bake;
        if watched < bake && !passed.is_zero() && !self.is_blind() {
            self.feed(Event::Watched(passed), wall);
        }
        if let State::Baking { watched, .. } = self.rollout.state
            && watched >= bake
            && self.bake_end.is_none()
        {
            self.bake_end = Some(wall);
            self.gates_now(now);
        }
    }

    fn expire(&mut self, wall: Timestamp) {
        if self.rollout.deadline.is_none_or(|deadline| wall < deadline) {
            return;
        }
        // A look that tells neither weight nor parts shows nothing.
        let shows = |look: &Observed| look.weight.is_some() || !look.parts.is_empty();
        let only_candidate = matches!(self.rollout.state, State::Promoting)
            && self.seen.as_ref().is_some_and(|look| shows(look) && only(Serves::Candidate, look).is_ok());
        let leftovers = self.rollout.waiting_for.clone();
        let mut why = self.rollout.state.describe(&self.rollout.plan);
        if let Some(waiting) = &leftovers {
            why = format!("{why}; still waiting: {waiting}");
        }
        if only_candidate && let Some(waiting) = leftovers {
            let note = Note::new(format!("promoted with leftovers: {waiting}"));
            self.change().not_restored.push(note);
        }
        self.feed(Event::Expired { only_candidate, why: Note::new(why) }, wall);
    }

    // ------------------------------------------------------------------------------------------------------ preflight

    fn prove(&mut self, now: Instant) {
        if !matches!(self.rollout.state, State::Preflight) || self.proving || self.prove_at.is_none_or(|at| now < at) {
            return;
        }
        self.proving = true;
        let target = Arc::clone(&self.target);
        let rollout = Arc::clone(&self.rollout);
        let limit = target.limits.prove;
        self.calls.spawn(async move { Answer::Proved(bounded(limit, prove(target, rollout)).await) });
    }

    fn proved(&mut self, result: Result<Readiness>, wall: Timestamp) {
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
    fn next_hook(&mut self, last: bool, wall: Timestamp) {
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

    fn hooked(&mut self, index: usize, last: bool, missed: bool, result: Result<()>, wall: Timestamp) {
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

    // ---------------------------------------------------------------------------------------------------------- gates

    fn ask_gates(&mut self, now: Instant, wall: Timestamp) {
        if !self.rollout.state.watches_gates() {
            return;
        }
        for index in 0..self.gates.len() {
            let ask = self.gates[index];
            if ask.running || ask.due.is_none_or(|due| now < due) || !self.rollout.gates[index].counts() {
                continue;
            }
            let guard = &self.target.gates[index];
            self.gates[index] = Turns { due: Some(now + guard.policy.interval), running: true, again: false };
            let window = self.window(index, wall);
            let gate = Arc::clone(&guard.gate);
            let limit = guard.policy.timeout;
            self.calls.spawn(async move {
                let result = bounded(limit, async move { gate.judge(&window).await }).await;
                Answer::Judged { gate: index, result }
            });
        }
    }

    fn window(&self, gate: usize, wall: Timestamp) -> Window {
        let change = &self.rollout.change;
        let step = self.rollout.state.step().unwrap_or(self.rollout.plan.steps().len() - 1);
        Window {
            rollout: change.rollout.clone(),
            target: change.target.clone(),
            baseline: change.baseline.id.clone(),
            candidate: change.candidate.id.clone(),
            step,
            weight: self.rollout.weight.unwrap_or(self.rollout.plan.steps()[step].weight),
            since: self.rollout.since,
            now: wall,
            last: self.rollout.gates[gate].evidence.clone(),
        }
    }

    fn judged(&mut self, index: usize, result: Result<Verdict>, wall: Timestamp) {
        let now = Instant::now();
        self.gates[index].running = false;
        if std::mem::take(&mut self.gates[index].again) {
            self.gates[index].due = Some(now);
        }
        if !self.rollout.state.watches_gates() || !self.rollout.gates[index].counts() {
            return;
        }
        let policy = self.target.gates[index].policy;
        let name = self.rollout.gates[index].name.clone();
        let before = (self.rollout.gates[index].standing, self.rollout.gates[index].judged > 0);
        let verdict = self.sound(index, result, wall);
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

    /// An error is no data, and keeps the memory the gate had; evidence is bounded.
    fn sound(&self, index: usize, result: Result<Verdict>, wall: Timestamp) -> Verdict {
        let blind = |why: String| {
            let mut evidence = Evidence::new(wall, why);
            evidence.memory = self.rollout.gates[index].evidence.as_ref().and_then(|last| last.memory.clone());
            Verdict::Inconclusive(evidence)
        };
        match result {
            Err(e) => blind(e.chain()),
            Ok(verdict) => {
                let rewrap = match &verdict {
                    Verdict::Healthy(_) => Verdict::Healthy,
                    Verdict::Unhealthy(_) => Verdict::Unhealthy,
                    Verdict::Inconclusive(_) => Verdict::Inconclusive,
                };
                let (Verdict::Healthy(evidence) | Verdict::Unhealthy(evidence) | Verdict::Inconclusive(evidence)) =
                    verdict;
                evidence.bounded().map_or_else(|e| blind(e.chain()), rewrap)
            }
        }
    }

    fn tripped(&mut self, index: usize, gate: GateName, why: Note, wall: Timestamp) {
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

    fn blinded(&mut self, no_data: &NoData, gate: GateName, why: Note, wall: Timestamp) {
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
    fn pass(&mut self, now: Instant, wall: Timestamp) {
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

    fn is_blind(&self) -> bool {
        self.rollout.gates.iter().any(|slot| slot.counts() && slot.is_blind())
    }

    fn longest_tick(&self) -> Duration {
        let counting = self.target.gates.iter().zip(&self.rollout.gates).filter(|(_, slot)| slot.counts());
        counting.map(|(guard, _)| guard.policy.interval).max().unwrap_or(self.target.pace.idle)
    }

    fn gates_now(&mut self, now: Instant) {
        for ask in &mut self.gates {
            ask.again = ask.running;
            ask.due = Some(now);
        }
    }

    fn can_hold(&self) -> bool {
        self.target.capabilities.can_hold
    }

    fn hold_until(&self, wall: Timestamp) -> Timestamp {
        later(wall, self.rollout.plan.deadlines().hold)
    }

    // ------------------------------------------------------------------------------------------------- look, save, act

    fn looks(&self) -> bool {
        self.rollout.state.goal(&self.rollout.plan).is_some() && self.pending.is_none() && !self.waits_for_shift()
    }

    /// A shift for the goal of this state is under way: its answer comes first.
    fn waits_for_shift(&self) -> bool {
        let goal = self.rollout.state.goal(&self.rollout.plan);
        self.shifting.as_ref().is_some_and(|(_, under_way)| Some(*under_way) == goal)
    }

    fn look(&mut self, now: Instant) {
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
            Answer::Looked { goal, turn, result: bounded(limit, look).await }
        });
    }

    fn looked(&mut self, goal: Goal, turn: u64, result: Result<Observed>, wall: Timestamp) {
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
            versions: self.target.capabilities.versions,
            now: wall,
        };
        let turn = self.rollout.state.heed(&self.rollout.plan, &look, &past);
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
    fn learn(&mut self, goal: Goal, look: &Observed, wall: Timestamp) {
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
        let moved = weight.is_some() && weight != self.rollout.weight;
        if !(restored || closed || moved) && fresh.is_empty() {
            return;
        }
        let rollout = self.change();
        if moved {
            rollout.weight = weight;
        }
        rollout.attempt_closed |= closed;
        rollout.not_restored.extend(fresh);
        if restored {
            rollout.times.restored = Some(wall);
        }
        self.save_by(SAVE_EVERY);
    }

    /// Writes an attempt on the version just seen into the record; [`Self::send`] sends it once that is saved.
    fn attempt(&mut self, effect: Effect, version: Version, goal: Goal, wall: Timestamp) {
        if self.waits_for_shift() {
            return;
        }
        let again = self.rollout.tries.as_ref().filter(|tries| tries.effect == effect).map_or(0, |tries| tries.count);
        let count = if self.turned_away { again.max(1) } else { again + 1 };
        let most = if goal.is_forward() { TRIES } else { TRIES_BACK };
        if count > most {
            let why = format!("asked {most} times and still due: {effect}");
            return self.feed(Event::Failed(Note::new(why)), wall);
        }
        self.turned_away = false;
        self.last_nonce = self.last_nonce.max(self.serial.0) + 1;
        let nonce = Nonce::new(self.rollout.id(), Serial(self.last_nonce), goal);
        let attempt = Attempt { nonce, goal, version, at: wall };
        let versions = self.target.capabilities.versions;
        let rollout = self.change();
        if let (Versions::Unchecked { settle }, Some(old), false) = (versions, &rollout.attempt, rollout.attempt_closed)
        {
            rollout.unsettled = rollout.unsettled.max(Some(settles(old, settle)));
        }
        rollout.attempt = Some(attempt.clone());
        rollout.attempt_closed = false;
        rollout.tries = Some(Tries { effect: effect.clone(), count });
        rollout.waiting_for = None;
        if count == 1 {
            self.log(wall, What::Attempted { effect, attempt });
        }
        self.pending = Some(Pending { edition: self.edition, since: Instant::now() });
        self.save_now();
    }

    /// Sends the pending attempt, if it is saved and the rollout is still ours (P4, P5, rule 9).
    fn send(&mut self, now: Instant, wall: Timestamp) {
        let Some(pending) = &self.pending else { return };
        let attempt = self.rollout.attempt.clone().expect("a pending attempt is in the record");
        let saved = self.saved >= pending.edition;
        let proven = self.proof.is_some_and(|proof| self.inner.pulse.proves(proof, now, wall));
        let unsaved = attempt.goal == Goal::Baseline && now >= pending.since + UNSAVED_AFTER;
        if !(proven && (saved || unsaved)) {
            if saved && self.inner.pulse.is_fresh(now, wall) {
                // A beat was missed since the save: ask the record once more whether the rollout is ours.
                self.pending.as_mut().expect("just seen").edition = self.edition + 1;
                self.change();
                self.save_now();
            }
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

    fn shifted(&mut self, nonce: &Nonce, goal: Goal, result: Result<()>, wall: Timestamp) {
        if self.shifting.as_ref().is_some_and(|(under_way, _)| under_way == nonce) {
            self.shifting = None;
        }
        let current = self.rollout.attempt.as_ref().is_some_and(|attempt| attempt.nonce == *nonce);
        let wanted = self.rollout.state.goal(&self.rollout.plan) == Some(goal);
        let now = Instant::now();
        let Err(e) = result else {
            if wanted {
                self.look_backoff = backoff(self.target.pace.busy);
                self.look_at = Some(now);
            }
            return;
        };
        if current && e.changed_nothing() && !self.rollout.attempt_closed {
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
        let pause = if e.kind() == ErrorKind::Conflict { Duration::ZERO } else { self.wait(&e) };
        self.look_at = Some(now + pause);
    }

    // ------------------------------------------------------------------------------------------------------- requests

    fn rung(&mut self) {
        let lines = self.live.bell.take();
        let now = Instant::now();
        let wall = self.inner.clock.now();
        if lines & 1 << Bell::BACKEND != 0 {
            self.look_at = Some(now);
            self.look_again = self.looking;
        }
        for index in 0..self.gates.len() {
            if lines & 1 << Bell::gate_line(index) != 0 {
                self.gates[index].due = Some(now);
                self.gates[index].again = self.gates[index].running;
            }
        }
        for asking in self.live.take_inbox() {
            self.asked(asking, wall);
        }
    }

    fn asked(&mut self, asking: Asking, wall: Timestamp) {
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
    fn grant(&mut self, request: &Request, wall: Timestamp) -> Result<Note> {
        let Request { ask, by, reason } = request.clone();
        let no = |why: String| Err(Error::new(ErrorKind::Conflict, why));
        let state = self.rollout.state.describe(&self.rollout.plan);
        match ask {
            Ask::Abort => {
                if matches!(self.rollout.state, State::RollingBack { .. }) {
                    return Ok(Note::new("it is rolling back already"));
                }
                if matches!(self.rollout.state, State::Stuck { .. }) {
                    return no(format!("it is {state}; resume it or give it up"));
                }
                if self.try_feed(Event::Aborted { by, why: reason }, wall) {
                    return Ok(Note::new(self.rollout.state.describe(&self.rollout.plan)));
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
                    Ok(Note::new(self.rollout.state.describe(&self.rollout.plan)))
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
                    let skip = crate::gate::Skip { by, why: reason, at: wall };
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
                slot.skipped.get_or_insert(crate::gate::Skip { by, why: reason, at: wall });
                if let State::Holding { why: Hold::NoData { gate, .. }, .. } = &self.rollout.state
                    && *gate == name
                {
                    self.feed(Event::Cleared, wall);
                }
                Ok(Note::new(format!("gate {name} no longer counts")))
            }
        }
    }

    fn hold_for(&mut self, why: Hold, wall: Timestamp, state: &str) -> Result<Note> {
        if self.try_feed(Event::Held { why, until: self.hold_until(wall) }, wall) {
            Ok(Note::new(format!("holding; it was {state}")))
        } else {
            Err(Error::new(ErrorKind::Conflict, format!("it cannot be paused while it is {state}")))
        }
    }

    fn approve(&mut self, by: &crate::model::Actor, wall: Timestamp, state: &str) -> Result<Note> {
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
    fn forgive(&mut self) {
        for slot in &mut self.change().gates {
            slot.forgive();
        }
        self.change().times.breach = None;
    }

    // ---------------------------------------------------------------------------------------------------- the machine

    /// Tells the machine; an event that it does not hear changes nothing.
    fn feed(&mut self, event: Event, wall: Timestamp) {
        self.try_feed(event, wall);
    }

    fn try_feed(&mut self, event: Event, wall: Timestamp) -> bool {
        let before = self.rollout.state.clone();
        let next = match before.clone().next(self.rollout.terms(), event) {
            Ok(next) => next,
            Err(unheard) => {
                tracing::debug!(rollout = %self.rollout.id(), "{unheard}");
                return false;
            }
        };
        if next == before {
            return true;
        }
        if let (State::Baking { step: old, .. }, State::Baking { step: new, .. }) = (&before, &next)
            && old == new
        {
            self.change().state = next;
            self.save_by(SAVE_EVERY);
            return true;
        }
        self.enter(&before, next, wall);
        true
    }

    fn enter(&mut self, before: &State, next: State, wall: Timestamp) {
        let deadline = match &next {
            State::Holding { until, .. } => Some(*until),
            other => other.allowance(&self.rollout.plan).map(|time| later(wall, time)),
        };
        let rollout = self.change();
        rollout.state = next.clone();
        rollout.entered = wall;
        rollout.deadline = deadline;
        rollout.tries = None;
        rollout.waiting_for = None;
        match &next {
            State::Shifting { .. } => rollout.since = wall,
            State::Baking { watched, .. } => {
                if watched.is_zero() {
                    rollout.since = wall;
                }
                for slot in &mut rollout.gates {
                    slot.blind_since = None;
                }
            }
            State::RollingBack { .. } if !matches!(before, State::Stuck { .. }) => rollout.times.decision = Some(wall),
            State::RolledBack { .. } => rollout.times.verified = Some(wall),
            _ => {}
        }
        if !matches!(next, State::Holding { .. }) {
            rollout.approvals.clear();
        }
        // An attempt that was never sent cannot land.
        if self.pending.take().is_some() {
            self.change().attempt_closed = true;
        }
        self.log(wall, What::Entered { to: next.clone() });
        self.take_up();
        let gathers = matches!(next, State::Shifting { .. } | State::Promoting | State::RollingBack { .. });
        if gathers { self.save_by(GATHER) } else { self.save_now() }
    }

    /// Begins a state: also after a restart.
    fn take_up(&mut self) {
        let now = Instant::now();
        self.turn += 1;
        self.looking = false;
        self.look_at = Some(now);
        self.look_backoff = backoff(self.target.pace.busy);
        self.seen = None;
        self.turned_away = false;
        self.bake_end = None;
        self.last_tick = now;
        self.trouble = None;
        match self.rollout.state {
            State::Baking { watched, .. } => {
                for (ask, guard) in self.gates.iter_mut().zip(&self.target.gates) {
                    let delay = if watched.is_zero() { guard.policy.initial_delay } else { Duration::ZERO };
                    ask.due = Some(now + delay);
                }
            }
            State::Shifting { step: 0 } => {
                for (ask, guard) in self.gates.iter_mut().zip(&self.target.gates) {
                    ask.due = guard.policy.initial_delay.is_zero().then_some(now);
                }
            }
            _ => {}
        }
    }

    /// The rollout, to be changed.
    fn change(&mut self) -> &mut Rollout {
        self.edition += 1;
        Arc::make_mut(&mut self.rollout)
    }

    fn log(&mut self, at: Timestamp, what: What) {
        self.change().note(at, what.clone());
        self.untold.push((self.edition, Entry { at, what }));
    }

    fn troubled(&mut self, doing: &str, e: &Error, wall: Timestamp) {
        let why = Note::new(format!("{doing} {}: {}", self.rollout.change.target, e.chain()));
        tracing::debug!(rollout = %self.rollout.id(), kind = %e.kind(), "{why}");
        let known =
            self.trouble.as_ref().is_some_and(|(at, last)| *last == why && wall.duration_since(*at) < REPEAT_TROUBLE);
        if !known {
            self.trouble = Some((wall, why.clone()));
            self.log(wall, What::Troubled { why });
            self.save_by(SAVE_EVERY);
        }
    }

    fn next_backoff(&mut self) -> Duration {
        self.look_backoff.next().unwrap_or(self.target.pace.busy)
    }

    fn wait(&mut self, e: &Error) -> Duration {
        self.next_backoff().max(e.retry_after().unwrap_or_default())
    }

    // --------------------------------------------------------------------------------------------------------- saving

    fn save_now(&mut self) {
        self.save_by(Duration::ZERO);
    }

    fn save_by(&mut self, time: Duration) {
        let at = Instant::now() + time;
        self.save_at = Some(self.save_at.map_or(at, |earlier| earlier.min(at)));
    }

    fn save(&mut self, now: Instant) {
        match self.saving {
            Saving::No if self.edition > self.saved && self.save_at.is_some_and(|at| now >= at) => {
                self.save_at = None;
                self.begin_save(now);
            }
            Saving::Compare(at) if now >= at => {
                self.saving = Saving::Comparing;
                let (store, id, limit) = (Arc::clone(&self.inner.store), self.rollout.id().clone(), self.limit());
                self.calls.spawn(async move {
                    let result = bounded(limit, async move { store.load(&id).await }).await;
                    Answer::Loaded { result }
                });
            }
            _ => {}
        }
    }

    fn begin_save(&mut self, begun: Instant) {
        let driver = (!self.stopping || !self.rollout.state.is_open()).then_some(&self.inner.driver);
        let record = match self.rollout.to_record(driver, self.heard) {
            Ok(record) => record,
            Err(e) => {
                tracing::error!(rollout = %self.rollout.id(), "{}", e.chain());
                self.save_at = Some(begun + Duration::from_secs(5));
                return;
            }
        };
        self.saving = Saving::Under;
        let (store, edition, expected) = (Arc::clone(&self.inner.store), self.edition, self.serial);
        let limit = self.limit();
        self.calls.spawn(async move {
            let result = bounded(limit, async move { store.update(&record, expected).await }).await;
            Answer::Saved { edition, begun, result }
        });
    }

    fn saved(&mut self, edition: u64, begun: Instant, result: Result<Serial>, wall: Timestamp) {
        match result {
            Ok(serial) => {
                self.saving = Saving::No;
                self.save_backoff = backoff(Duration::from_secs(5));
                self.serial = serial;
                self.saved = edition;
                self.proof = Some(begun);
                if self.edition > self.saved {
                    self.save_by(SAVE_EVERY);
                }
                self.tell();
            }
            Err(e) => {
                // Lost or refused: what the record holds decides, at once after a refusal.
                let pause = if e.kind() == ErrorKind::Conflict { Duration::ZERO } else { self.save_pause(&e) };
                self.saving = Saving::Compare(Instant::now() + pause);
                if e.kind() != ErrorKind::Conflict {
                    self.away(&e, wall);
                }
            }
        }
    }

    fn loaded(&mut self, result: Result<(Record, Serial)>, wall: Timestamp) {
        match result {
            Ok((record, serial)) if record.driver.as_ref() == Some(&self.inner.driver) => {
                // Nobody else writes for this driver: a save of ours landed after all, or none did.
                self.serial = serial;
                self.saving = Saving::No;
                self.save_now();
            }
            Ok((record, _)) => {
                if self.stopping && record.driver.is_none() {
                    self.gone = Some(Phase::Released);
                } else {
                    tracing::warn!(rollout = %self.rollout.id(), by = ?record.driver, "another process took this rollout up");
                    self.gone = Some(Phase::TakenUp(record.driver));
                }
            }
            Err(e) if e.kind() == ErrorKind::NotFound => {
                tracing::error!(rollout = %self.rollout.id(), "the record of this rollout is gone: hands off");
                self.gone = Some(Phase::TakenUp(None));
            }
            Err(e) => {
                let pause = self.save_pause(&e);
                self.saving = Saving::Compare(Instant::now() + pause);
                self.away(&e, wall);
            }
        }
    }

    fn save_pause(&mut self, e: &Error) -> Duration {
        let pause = self.save_backoff.next().unwrap_or(Duration::from_secs(5));
        pause.max(e.retry_after().unwrap_or_default())
    }

    fn away(&mut self, e: &Error, wall: Timestamp) {
        self.troubled("saving the rollout of", e, wall);
    }

    /// Tells what the record holds now.
    fn tell(&mut self) {
        let saved = self.saved;
        let told = self.untold.iter().take_while(|(edition, _)| *edition <= saved).count();
        for (_, Entry { at, what }) in self.untold.drain(..told) {
            self.inner.tell(&self.target, &RolloutEvent { rollout: Arc::clone(&self.rollout), at, what });
        }
        let answered = self.answers.iter().take_while(|(edition, ..)| *edition <= saved).count();
        for (_, asking, answer) in self.answers.drain(..answered) {
            asking.answer(answer);
        }
        let phase = if self.rollout.state.is_open() { Phase::Driven } else { Phase::Over };
        if self.edition == self.saved || phase == Phase::Driven {
            self.live.publish(Status { rollout: Arc::clone(&self.rollout), phase });
        }
    }

    fn limit(&self) -> Duration {
        (self.inner.pulse.lease() / 2).min(Duration::from_secs(10))
    }

    // -------------------------------------------------------------------------------------------------------- leaving

    /// It is over once its end is saved.
    fn conclude(&mut self) {
        if !self.rollout.state.is_open() && self.edition == self.saved {
            self.gone = Some(Phase::Over);
        }
    }

    fn stop(&mut self) {
        if !self.stopping {
            self.stopping = true;
            if self.pending.take().is_some() {
                self.change().attempt_closed = true;
            }
            self.change();
            self.save_now();
        }
    }

    /// Waits for the shift under way, saves the rollout without a driver, and goes.
    fn turn_to_leave(&mut self, now: Instant) -> Instant {
        if self.shifting.is_none() {
            if matches!(self.saving, Saving::No) && self.edition == self.saved {
                self.gone = Some(if self.rollout.state.is_open() { Phase::Released } else { Phase::Over });
            } else {
                self.save(now);
            }
        }
        match self.saving {
            Saving::Compare(at) => at,
            _ => now + Duration::from_secs(1),
        }
    }

    fn heard(&mut self, answer: Answer) {
        let wall = self.inner.clock.now();
        match answer {
            Answer::Saved { edition, begun, result } => self.saved(edition, begun, result, wall),
            Answer::Loaded { result } => self.loaded(result, wall),
            Answer::Shifted { nonce, goal, result } => self.shifted(&nonce, goal, result, wall),
            // Who is leaving saves and learns whether its shift was heard, and begins nothing more.
            _ if self.stopping => {}
            Answer::Proved(result) => self.proved(result, wall),
            Answer::Looked { goal, turn, result } => self.looked(goal, turn, result, wall),
            Answer::Judged { gate, result } => self.judged(gate, result, wall),
            Answer::Hooked { hook, last, missed, result } => self.hooked(hook, last, missed, result, wall),
        }
    }

    fn leave(self) {
        let phase = self.gone.expect("the loop ends when it is set");
        for (_, asking, answer) in self.answers {
            asking.answer(answer);
        }
        self.inner.forget(self.rollout.id());
        self.live.publish(Status { rollout: self.rollout, phase });
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

fn later(wall: Timestamp, time: Duration) -> Timestamp {
    wall.checked_add(time).unwrap_or(Timestamp::MAX)
}

fn until(wall: Timestamp, deadline: Timestamp) -> Duration {
    Duration::try_from(deadline.duration_since(wall)).unwrap_or(Duration::ZERO)
}
