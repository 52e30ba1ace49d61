//! The driver of one rollout: a task that owns its record, and never waits for anything but news.
//!
//! Every call (a look, a shift, a judgement, a hook, a save) runs in a task of its own and comes back as an [`Answer`].
//! So an abort, a deadline or a trip is served while any of them hangs.

mod gates;
mod looks;
mod preflight;
mod requests;
mod saving;

use std::{sync::Arc, time::Duration};

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use jiff::{SignedDuration, Timestamp};
use tokio::{
    task::{AbortHandle, JoinSet},
    time::{Instant, sleep_until},
};

use super::{
    Inner, Target,
    live::{Asking, Live, Phase, Status},
};
use crate::{
    backend::Readiness,
    error::{Error, ErrorKind, Result},
    gate::Verdict,
    model::{Goal, Nonce, Note, Observed, Serial, Serves},
    rollout::{Entry, Kind, Rollout, Tries, What},
    state::{Event, Hold, Interrupted, State, only},
    store::Record,
    wake::Bell,
};

/// How often the same effect may be due within one state before it counts as failed.
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
    Looked { goal: Goal, turn: u64, begun: Timestamp, result: Result<Observed> },
    Shifted { nonce: Nonce, goal: Goal, result: Result<()> },
    Judged { gate: usize, verdict: Verdict },
    Hooked { hook: usize, last: bool, missed: bool, result: Result<()> },
    Saved { rollout: Arc<Rollout>, edition: u64, begun: Instant, result: Result<Serial> },
    Loaded { result: Result<(Record, Serial)> },
}

/// An attempt in the record that is still to be sent.
struct Pending {
    /// The edition of the rollout that holds it.
    edition: u64,
    since: Instant,
}

/// When a gate is asked next.
struct Turns {
    due: Option<Instant>,
    running: Option<AbortHandle>,
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
    /// The serial of this driver's first save, by which its nonces differ from those of the drivers before.
    since: Serial,
    last_nonce: u64,
    save_backoff: Backoff,
    /// Events that are told once the record holds them.
    untold: Vec<(u64, Entry)>,
    answers: Vec<(u64, Asking, Result<Note>)>,

    /// Raised by every state entered: answers of older looks are not heeded.
    turn: u64,
    looking: bool,
    /// Something happened during the look: look once more.
    look_again: bool,
    look_at: Option<Instant>,
    look_backoff: Backoff,
    seen: Option<Observed>,
    shifting: Option<(Nonce, Goal)>,
    pending: Option<Pending>,
    /// What was asked for in this state, as effects that take turns in being due are no progress either.
    asked: Vec<Tries>,
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

/// Pauses from 50 milliseconds up to `most`, spread by chance. Made with the first pause: a driver that bakes for an hour
/// takes none.
struct Backoff {
    most: Duration,
    begun: Option<Box<ExponentialBackoff>>,
}

impl Backoff {
    const fn to(most: Duration) -> Self {
        Self { most, begun: None }
    }

    fn reset(&mut self) {
        self.begun = None;
    }

    fn next(&mut self) -> Duration {
        // The jitter adds up to as much again.
        let most = self.most / 2;
        let begin = || {
            let pauses = ExponentialBuilder::new()
                .with_min_delay(Duration::from_millis(50).min(most))
                .with_max_delay(most)
                .with_factor(2.0)
                .without_max_times()
                .with_jitter();
            Box::new(pauses.build())
        };
        self.begun.get_or_insert_with(begin).next().unwrap_or(self.most)
    }
}

impl Driver {
    /// The most events that wait for the store.
    const MAX_UNTOLD: usize = 1024;

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
        let gates = target.gates.iter().map(|_| Turns { due: Some(now), running: None }).collect();
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
            since: serial,
            last_nonce: serial.0,
            save_backoff: Backoff::to(Duration::from_secs(5)),
            untold: Vec::new(),
            answers: Vec::new(),
            turn: 0,
            looking: false,
            look_again: false,
            look_at: Some(now),
            look_backoff: Backoff::to(busy),
            seen: None,
            shifting: None,
            pending: None,
            asked: Vec::new(),
            turned_away: false,
            proving: false,
            prove_at: Some(now),
            hook: None,
            gates,
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

    /// Boxed: a future keeps what it is called on twice, as it was given and as it is used.
    pub(super) async fn run(mut self: Box<Self>) {
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
    }

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
            self.look(now, wall);
            self.send(now, wall);
            self.confirm(now, wall);
        }
        self.save(now);
        self.show();
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
        if self.watches() {
            for (gate, slot) in self.gates.iter().zip(&self.rollout.gates) {
                at(gate.due.filter(|_| gate.running.is_none() && slot.counts()));
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
            for gate in 0..self.gates.len() {
                self.ask_now(gate);
            }
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
        let why = self.overdue();
        if only_candidate && let Some(left) = self.unfinished() {
            self.change().not_restored.push(Note::new(format!("left over: {left}")));
        }
        if self.rollout.kind == Kind::Return
            && let State::Holding { why: Hold::Unhealthy { .. }, .. } = &self.rollout.state
        {
            // P15: a rollback of a rollback does not turn round by itself, whoever failed to come.
            return self.feed(Event::Stopped(why), wall);
        }
        self.feed(Event::Expired { only_candidate, why }, wall);
    }

    /// What this state did not get done, in how long, and what was last seen of it.
    fn overdue(&self) -> Note {
        let state = self.rollout.state.describe(&self.rollout.plan);
        let mut why = match self.rollout.state.allowance(&self.rollout.plan).map(SignedDuration::try_from) {
            Some(Ok(time)) if matches!(self.rollout.state, State::RollingBack { .. }) => {
                format!("the baseline was not back after {time:#}")
            }
            Some(Ok(time)) => format!("{state} was not done after {time:#}"),
            _ => format!("nobody decided in time; {state}"),
        };
        if let Some(left) = self.unfinished() {
            why = format!("{why}; {left}");
        }
        if let Some((_, trouble)) = &self.trouble {
            why = format!("{why}; last trouble: {trouble}");
        }
        Note::new(why)
    }

    /// What is still waited for or due, or which gates have not passed.
    fn unfinished(&self) -> Option<String> {
        if let State::Baking { .. } = self.rollout.state {
            let end = self.bake_end.unwrap_or(Timestamp::MAX);
            let guards = self.target.gates.iter().zip(&self.rollout.gates);
            let open = guards.filter(|(guard, slot)| slot.counts() && !slot.is_healthy(&guard.policy, end));
            let open: Vec<&str> = open.map(|(_, slot)| slot.name.as_str()).collect();
            return (!open.is_empty()).then(|| format!("not passed by: {}", open.join(", ")));
        }
        match (&self.rollout.waiting_for, &self.rollout.tries) {
            (Some(waiting), _) => Some(format!("still waiting: {waiting}")),
            (None, Some(tries)) => Some(format!("still due: {}", tries.effect)),
            (None, None) => None,
        }
    }

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
            // A rollback that was stuck was decided on before.
            State::RollingBack { .. }
                if !matches!(before, State::Stuck { from: Interrupted::RollingBack { .. }, .. }) =>
            {
                rollout.times.decision = Some(wall);
            }
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
        self.look_backoff.reset();
        self.seen = None;
        self.asked.clear();
        self.turned_away = false;
        self.bake_end = None;
        self.last_tick = now;
        self.trouble = None;
        match self.rollout.state {
            State::Preflight => self.prove_at = Some(now),
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
        if self.untold.len() >= Self::MAX_UNTOLD {
            // The store has been away for long: the log has it all, and listeners hear the latest.
            self.untold.remove(0);
        }
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
        self.look_backoff.next()
    }

    fn wait(&mut self, e: &Error) -> Duration {
        self.next_backoff().max(e.retry_after().unwrap_or_default())
    }

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
            Answer::Saved { rollout, edition, begun, result } => self.saved(rollout, edition, begun, result, wall),
            Answer::Loaded { result } => self.loaded(result, wall),
            Answer::Shifted { nonce, goal, result } => self.shifted(&nonce, goal, result, wall),
            // Who is leaving saves and learns whether its shift was heard, and begins nothing more.
            _ if self.stopping => {}
            Answer::Proved(result) => self.proved(result, wall),
            Answer::Looked { goal, turn, begun, result } => self.looked(goal, turn, begun, result, wall),
            Answer::Judged { gate, verdict } => self.judged(gate, verdict, wall),
            Answer::Hooked { hook, last, missed, result } => self.hooked(hook, last, missed, result, wall),
        }
    }
}

/// However the task ends, by its loop, by a panic or with its runtime: whoever waits for it is told.
impl Drop for Driver {
    fn drop(&mut self) {
        let phase = self.gone.take().unwrap_or(Phase::Released);
        for (_, asking, _) in self.answers.drain(..) {
            // What was granted was never saved, and whoever drives the rollout now knows nothing of it.
            let lost = "this process lost the rollout before the request was saved; ask through the store";
            asking.answer(Err(Error::new(ErrorKind::Conflict, lost)));
        }
        self.inner.forget(self.rollout.id());
        // What it saw and could not save is not how the rollout ended, whoever drives it now.
        self.live.publish(Status { rollout: self.live.saved(), phase });
    }
}

fn later(wall: Timestamp, time: Duration) -> Timestamp {
    wall.checked_add(time).unwrap_or(Timestamp::MAX)
}

fn until(wall: Timestamp, deadline: Timestamp) -> Duration {
    Duration::try_from(deadline.duration_since(wall)).unwrap_or(Duration::ZERO)
}
