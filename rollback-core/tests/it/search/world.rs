//! The world that is searched: two drivers, one record with compare-and-swap, one target, calls under way.
//!
//! What is asked and what a look means is decided by the real [`State::next`] and [`State::heed`]; what is here is the
//! engine's loop around them (load, look, save, act), the store, the network and the target.

use std::{collections::HashMap, time::Duration};

use jiff::Timestamp;
use rollback_core::{
    model::{Actor, Attempt, Goal, Note, Observed, Part, Progress, Serves, Version, Weight},
    plan::Plan,
    state::{Cause, Event, Hold, Interrupted, Past, State, Terms, Turn, Versions},
};

/// How many ticks a call may be late on a target that checks no versions: two, so that one may be late when the next
/// is not yet.
const SETTLE: u8 = 2;
/// A version that the target no longer has. The one it has is 0: versions are equal or not, so no more are needed.
const OLD: u8 = u8::MAX;

/// What is true of the world that is searched; [`Rules::DESIGN`] is what ours should be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rules {
    /// Whether the target refuses stale versions.
    pub(super) checked: bool,
    /// Rule 2.
    pub(super) spends: Spends,
    /// Rule 3. Without it, `Reached` is believed whatever is still under way.
    pub(super) rule_3: bool,
    /// The last part of rule 9. Without it, a driver goes ahead unsaved although another one may have taken over.
    pub(super) lease: bool,
    /// Whether a driver that took over reckons with a rollback that the one before it did not save.
    pub(super) inherits: bool,
    /// Whether "landed" is read off the effect instead of the nonce.
    pub(super) seen_by_effect: bool,
    /// Whether a look that saw the last attempt land closes it for good.
    pub(super) seeing_closes: bool,
    /// Whether what returns the traffic names what it is for, on a target that checks no versions: it lands on nothing else,
    /// and may be repeated.
    pub(super) named: bool,
    /// Whether a call that was not waited for, because what was due could be repeated, is reckoned with later.
    pub(super) carries: bool,
}

/// When an accepted shift changes the target's version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spends {
    /// Always, and no version comes back: rule 2.
    Always,
    /// Only if something changed.
    OnChange,
    /// The version is a hash of what serves, without a nonce in it.
    Content,
}

impl Rules {
    /// What the design asks for, where versions are checked.
    pub(super) const DESIGN: Self = Self {
        checked: true,
        spends: Spends::Always,
        rule_3: true,
        lease: true,
        inherits: true,
        seen_by_effect: false,
        seeing_closes: true,
        named: false,
        carries: true,
    };
}

impl Rules {
    /// Whether this effect names what it is for.
    pub(super) fn names(self, goal: Goal, effect: Serving) -> bool {
        self.named && goal == Goal::Baseline && effect == Serving::Split(0)
    }

    /// Whether a call has its effect on what serves, where versions are not checked.
    pub(super) fn lets_land(self, call: &Call, serving: Serving) -> bool {
        !self.names(call.goal, call.effect) || call.version == serving.rank()
    }
}

/// How often each kind of trouble may strike in one history.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Budget {
    pub(super) takeovers: u8,
    pub(super) crashes: u8,
    pub(super) trips: u8,
    pub(super) aborts: u8,
    pub(super) persons: u8,
    pub(super) expiries: u8,
    pub(super) outages: u8,
    pub(super) bad_saves: u8,
}

impl Budget {
    pub(super) const NONE: Self =
        Self { takeovers: 0, crashes: 0, trips: 0, aborts: 0, persons: 0, expiries: 0, outages: 0, bad_saves: 0 };
}

/// What is in front of users.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Serving {
    Baseline,
    Split(u8),
    Candidate,
}

impl Serving {
    /// The more, the more candidate.
    const fn rank(self) -> u8 {
        match self {
            Self::Baseline => 0,
            Self::Split(weight) => 1 + weight,
            Self::Candidate => 102,
        }
    }
}

/// An attempt, and the call that carries it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Call {
    pub(super) goal: Goal,
    pub(super) effect: Serving,
    version: u8,
    nonce: u8,
    age: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Record {
    pub(super) state: u8,
    last: Option<Call>,
    closed: bool,
    unsettled: u8,
    heard: bool,
    pub(super) driver: u8,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Driver {
    /// Its copy of the record; none: it is down, or has stopped.
    pub(super) local: Option<Record>,
    /// Whether the serial of that copy is the record's.
    current: bool,
    /// How long ago it took over from a driver that may have gone ahead unsaved.
    inherited: Option<u8>,
    /// Whether it went ahead without a save.
    ahead: bool,
    /// What it is about to save, and whether a call goes out then.
    pub(super) doing: Option<(Record, bool)>,
    /// Whether it cannot reach the store.
    away: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct World {
    pub(super) serving: Serving,
    nonce: u8,
    pub(super) record: Record,
    pub(super) drivers: [Driver; 2],
    pub(super) under_way: [Option<Call>; 4],
    /// A save whose driver gave up on it; it lands if the serial is still the one it expects.
    late_save: Option<Record>,
    asked: bool,
    /// Whether a rollback went ahead unsaved and its driver never got to save it.
    pub(super) ahead: bool,
    left: Budget,
}

/// One thing that can happen. The number is the driver's, or the call's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Start,
    Claim(usize),
    TakeOver(usize),
    Crash(usize),
    Look(usize),
    Hear(usize, Heard),
    Save(usize),
    SaveAndLoseTheAnswer(usize),
    SaveLate(usize),
    LateSaveLands,
    FindTheRecordChanged(usize),
    GoAheadUnsaved(usize),
    LandAndAnswer(usize),
    Land(usize),
    NeverLand(usize),
    Tick,
    LoseTheStore(usize),
    ReachTheStore(usize),
    AskAbort,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Heard {
    Proved,
    Passed,
    Resumed,
    Tripped,
    Aborted,
    PromoteNow,
    Paused,
    Stopped,
    Expired,
}

impl Step {
    /// Whether the step is trouble, or somebody's wish: what a rollout must not depend on to come to rest.
    pub(super) const fn is_fault(self) -> bool {
        !matches!(
            self,
            Self::Claim(_)
                | Self::Look(_)
                | Self::Hear(_, Heard::Proved | Heard::Passed | Heard::Resumed)
                | Self::Save(_)
                | Self::LateSaveLands
                | Self::FindTheRecordChanged(_)
                | Self::GoAheadUnsaved(_)
                | Self::LandAndAnswer(_)
                | Self::Land(_)
                | Self::Tick
                | Self::ReachTheStore(_)
        )
    }
}

#[derive(Clone, Copy)]
enum Do {
    Wait,
    Shift,
    Become(u8),
}

/// The real machine, its states numbered, its answers remembered.
pub(super) struct Machine {
    pub(super) rules: Rules,
    pub(super) plan: Plan,
    states: Vec<State>,
    next: HashMap<(u8, Heard), Option<u8>>,
    heed: HashMap<(Record, Option<u8>, Serving, bool), Do>,
}

impl Machine {
    pub(super) fn new(rules: Rules, percents: &[u8]) -> Self {
        let plan = Plan::canary(percents.iter().copied(), Duration::ZERO).expect("the plans of the tests are valid");
        Self { rules, plan, states: vec![State::Preflight], next: HashMap::new(), heed: HashMap::new() }
    }

    pub(super) fn start(left: Budget) -> World {
        let record = Record { state: 0, last: None, closed: false, unsettled: 0, heard: false, driver: 0 };
        let owner = Driver { local: Some(record), current: true, ..Driver::default() };
        World {
            serving: Serving::Baseline,
            nonce: 0,
            record,
            drivers: [owner, Driver::default()],
            under_way: [None; 4],
            late_save: None,
            asked: false,
            ahead: false,
            left,
        }
    }

    pub(super) fn state(&self, id: u8) -> &State {
        &self.states[usize::from(id)]
    }

    /// Whether this state, or what it was interrupted in, is on the way back.
    pub(super) fn is_back(&self, id: u8) -> bool {
        matches!(
            self.state(id),
            State::RollingBack { .. }
                | State::RolledBack { .. }
                | State::Stuck { from: Interrupted::RollingBack { .. }, .. }
        )
    }

    fn number(&mut self, state: State) -> u8 {
        let at = self.states.iter().position(|known| *known == state).unwrap_or_else(|| {
            self.states.push(state);
            self.states.len() - 1
        });
        u8::try_from(at).expect("a small plan has few states")
    }

    fn next(&mut self, from: u8, event: Event) -> Option<u8> {
        let terms = Terms { plan: &self.plan, way_back: true, retake: false };
        let to = self.states[usize::from(from)].clone().next(terms, event).ok()?;
        Some(self.number(to))
    }

    fn hear(&mut self, from: u8, heard: Heard) -> Option<u8> {
        if let Some(known) = self.next.get(&(from, heard)) {
            return *known;
        }
        let ana = || Actor::try_from("ana").expect("a name");
        let why = Note::new(format!("{heard:?}"));
        let event = match heard {
            Heard::Proved => Event::Proved,
            Heard::Passed => Event::Passed,
            Heard::Resumed => Event::Resumed,
            Heard::Tripped => Event::Tripped(Cause::Failed { why }),
            Heard::Aborted => Event::Aborted { by: ana(), why },
            Heard::PromoteNow => Event::PromoteNow,
            Heard::Paused => Event::Held { why: Hold::Paused { by: ana(), why }, until: Timestamp::MAX },
            Heard::Stopped => Event::Stopped(why),
            Heard::Expired => Event::Expired { only_candidate: false, why },
        };
        let to = self.next(from, event);
        self.next.insert((from, heard), to);
        to
    }

    /// What the target does next for a goal; none: it is reached.
    fn due(goal: Goal, serving: Serving) -> Option<Serving> {
        let (whole, first) = match goal {
            Goal::Split(weight) => (Serving::Split(weight.percent()), None),
            // Traffic first, then what is left over: two effects.
            Goal::Candidate => (Serving::Candidate, Some(Serving::Split(100))),
            Goal::Baseline => (Serving::Baseline, Some(Serving::Split(0))),
        };
        match first {
            _ if serving == whole => None,
            Some(first) if serving != first => Some(first),
            _ => Some(whole),
        }
    }

    fn version(&self, serving: Serving) -> u8 {
        if self.rules.spends == Spends::Content { serving.rank() } else { 0 }
    }

    fn has_landed(&self, world: &World, record: &Record) -> bool {
        record
            .last
            .is_some_and(|last| last.nonce == world.nonce || self.rules.seen_by_effect && last.effect == world.serving)
    }

    /// A look, as the real machine heeds it.
    fn look(&mut self, world: &World, record: &Record, inherited: Option<u8>) -> Do {
        let key = (*record, inherited, world.serving, self.has_landed(world, record));
        if let Some(known) = self.heed.get(&key) {
            return *known;
        }
        let (state, rules) = (self.state(record.state).clone(), self.rules);
        let goal = state.goal(&self.plan).expect("only states with a goal look");
        let name = |version: u8| Version::try_from(version.to_string()).expect("a number is a version");
        let at = |ticks: i64| Timestamp::from_second(1_000_000 + ticks).expect("a time");
        let last = record.last.map(|call| Attempt {
            nonce: "n".parse().expect("a nonce"),
            goal: call.goal,
            version: name(call.version),
            at: at(-i64::from(call.age)),
        });
        let progress = Self::due(goal, world.serving)
            .map_or(Progress::Reached, |effect| Progress::Due(format!("{effect:?}").into()));
        let believe = !rules.rule_3 && progress == Progress::Reached;
        let (weight, parts) = match world.serving {
            Serving::Baseline => (0, vec![Part::new("old", Serves::Baseline)]),
            Serving::Split(w) => (w, vec![Part::new("old", Serves::Baseline), Part::new("new", Serves::Candidate)]),
            Serving::Candidate => (100, vec![Part::new("new", Serves::Candidate)]),
        };
        let look = Observed::new(progress, name(self.version(world.serving)))
            .weight(Weight::try_from(weight).expect("a weight"))
            .parts(parts)
            .landed(key.3)
            .repeatable(Self::due(goal, world.serving).is_some_and(|effect| rules.names(goal, effect)));
        let past = Past {
            last: last.as_ref().filter(|_| !believe),
            closed: record.closed,
            unsettled: (record.unsettled > 0 && !believe).then(|| at(record.unsettled.into())),
            inherited: inherited.map(|age| at(-i64::from(age))),
            versions: if rules.checked {
                Versions::Checked
            } else {
                Versions::Unchecked { settle: Duration::from_secs(SETTLE.into()) }
            },
            asked: true,
            now: at(0),
        };
        let terms = Terms { plan: &self.plan, way_back: true, retake: false };
        let what = match state.heed(terms, &look, &past) {
            Turn::Wait(_) => Do::Wait,
            Turn::Shift(_) => Do::Shift,
            Turn::Tell(event) => self.next(record.state, event).map_or(Do::Wait, Do::Become),
        };
        self.heed.insert(key, what);
        what
    }

    /// The record with an attempt on what was just seen.
    fn attempt(&self, world: &World, mut record: Record) -> Record {
        let goal = self.state(record.state).goal(&self.plan).expect("only states with a goal shift");
        if let Some(old) = record.last.filter(|old| !self.rules.checked && !record.closed && old.age < SETTLE) {
            record.unsettled = record.unsettled.max(SETTLE - old.age);
        }
        let spend = match goal {
            Goal::Split(weight) => Serving::Split(weight.percent()),
            Goal::Candidate => Serving::Candidate,
            Goal::Baseline => Serving::Baseline,
        };
        let effect = Self::due(goal, world.serving).unwrap_or(spend);
        let named = self.rules.names(goal, effect);
        let nonce = if self.rules.checked || named {
            // Calls that name the same thing are one.
            OLD - world.serving.rank() * u8::from(named)
        } else {
            (1..).find(|n| world.nonce != *n && world.calls().all(|c| c.nonce != *n)).expect("few are in use")
        };
        let version = if named { world.serving.rank() } else { self.version(world.serving) };
        record.last = Some(Call { goal, effect, version, nonce, age: 0 });
        record.closed = false;
        record
    }

    /// Everything that can happen next.
    pub(super) fn steps(&mut self, world: &World) -> Vec<(Step, World)> {
        let mut out = Vec::with_capacity(16);
        let w = *world;
        for d in 0..2 {
            match w.drivers[d].local {
                None => self.claims(w, d, &mut out),
                Some(local) => self.drives(w, d, local, &mut out),
            }
            let mut then = w;
            then.drivers[d].away = !w.drivers[d].away;
            if w.drivers[d].away {
                out.push((Step::ReachTheStore(d), then));
            } else if w.left.outages > 0 && w.drivers[d].local.is_some() {
                then.left.outages -= 1;
                out.push((Step::LoseTheStore(d), then));
            }
        }
        if let Some(saved) = w.late_save {
            let mut then = w;
            then.save(saved);
            out.push((Step::LateSaveLands, then));
        }
        for (at, call) in w.under_way.iter().enumerate() {
            let Some(call) = call else { continue };
            let mut never = w;
            never.under_way[at] = None;
            let mut lands = never;
            if !self.rules.checked {
                // What names something else than what is there is taken, and has no effect.
                if self.rules.lets_land(call, w.serving) {
                    (lands.serving, lands.nonce) = (call.effect, call.nonce);
                }
                let mut answered = lands;
                answered.close(call.nonce);
                out.push((Step::LandAndAnswer(at), answered));
                // Refused, and said so. One that never lands is one that waits until it is settled.
                never.close(call.nonce);
            } else if call.version == self.version(w.serving) {
                let changes = w.serving != call.effect;
                lands.serving = call.effect;
                if self.rules.spends == Spends::Always || self.rules.spends == Spends::OnChange && changes {
                    lands.each_call(|c| c.version = OLD);
                }
            }
            out.push((Step::Land(at), lands));
            out.push((Step::NeverLand(at), never));
        }
        if !self.rules.checked {
            let mut then = w;
            then.each_call(|c| c.age = SETTLE.min(c.age + 1));
            then.each_record(|r| r.unsettled = r.unsettled.saturating_sub(1));
            for driver in &mut then.drivers {
                driver.inherited = driver.inherited.map(|age| age + 1).filter(|age| *age < SETTLE);
            }
            out.push((Step::Tick, then));
        }
        if w.left.aborts > 0 && self.state(w.record.state).is_open() {
            let mut then = w;
            then.left.aborts -= 1;
            then.asked = true;
            out.push((Step::AskAbort, then));
        }
        for (_, then) in &mut out {
            then.tidy(self.rules);
        }
        out.retain(|(_, then)| then != world);
        out
    }

    fn claims(&self, w: World, d: usize, out: &mut Vec<(Step, World)>) {
        if w.drivers[d].away || !self.state(w.record.state).is_open() {
            return;
        }
        let owner_is_up = w.drivers[usize::from(w.record.driver)].local.is_some();
        if owner_is_up && w.left.takeovers == 0 {
            return;
        }
        let mut then = w;
        then.left.takeovers -= u8::from(owner_is_up);
        then.save(Record { driver: d as u8, ..w.record });
        let inherited = self.rules.inherits.then_some(0);
        then.drivers[d] = Driver { local: Some(then.record), current: true, inherited, ..Driver::default() };
        out.push((if owner_is_up { Step::TakeOver(d) } else { Step::Claim(d) }, then));
    }

    fn drives(&mut self, w: World, d: usize, local: Record, out: &mut Vec<(Step, World)>) {
        let me = w.drivers[d];
        if w.left.crashes > 0 {
            let mut then = w;
            then.left.crashes -= 1;
            then.drivers[d] = Driver::default();
            out.push((Step::Crash(d), then));
        }
        if me.doing.is_none() && self.state(local.state).goal(&self.plan).is_some() {
            let mut seen = local;
            seen.closed |= self.rules.seeing_closes && self.has_landed(&w, &local);
            let mut then = w;
            match self.look(&w, &local, me.inherited) {
                Do::Wait => then.drivers[d].local = Some(seen),
                Do::Shift => then.drivers[d].shift(&seen, self.attempt(&w, seen), self.rules),
                Do::Become(state) => then.drivers[d].doing = Some((Record { state, ..seen }, false)),
            }
            out.push((Step::Look(d), then));
        }
        self.hears(w, d, local, out);
        let Some((record, sends)) = me.doing.or_else(|| me.ahead.then_some((local, false))) else { return };
        let mut done = w;
        let inherited = me.inherited.filter(|_| !(self.rules.checked && sends));
        done.drivers[d] = Driver { local: Some(record), current: true, inherited, away: me.away, ..Driver::default() };
        if !self.state(record.state).is_open() {
            done.drivers[d].local = None;
        }
        if sends {
            done.send(record.last.expect("what is sent is in the record"));
        }
        if me.away {
            // Rule 9. A driver whose rollout was taken over had a dead lease first, and its own clock told it.
            let lease = usize::from(w.record.driver) == d || !self.rules.lease;
            if lease && me.doing.is_some() && matches!(self.state(record.state), State::RollingBack { .. }) {
                done.drivers[d].current = me.current;
                done.drivers[d].ahead = true;
                done.ahead = true;
                out.push((Step::GoAheadUnsaved(d), done));
            }
        } else if me.current {
            let mut lost = w;
            done.save(record);
            done.drivers[d].current = true;
            done.ahead &= !me.ahead;
            out.push((Step::Save(d), done));
            if w.left.bad_saves > 0 {
                lost.left.bad_saves -= 1;
                let mut late = lost;
                lost.save(record);
                out.push((Step::SaveAndLoseTheAnswer(d), lost));
                late.late_save = Some(record);
                out.push((Step::SaveLate(d), late));
            }
        } else {
            let mut then = w;
            if usize::from(w.record.driver) != d || !self.state(w.record.state).is_open() {
                // A stale record stops the driver.
                then.drivers[d] = Driver::default();
            } else if w.record == record {
                // Body and driver ours: it has landed.
                then = done;
            } else if self.is_back(record.state)
                && (self.is_back(w.record.state) || self.state(w.record.state).watches_gates())
            {
                // An earlier save of ours came late. What was decided since stands.
                then.drivers[d].current = true;
            } else {
                let inherited = me.inherited;
                then.drivers[d] = Driver { local: Some(w.record), current: true, inherited, ..Driver::default() };
            }
            out.push((Step::FindTheRecordChanged(d), then));
        }
    }

    /// Whatever else a driver may hear of: gates, people, deadlines.
    fn hears(&mut self, w: World, d: usize, local: Record, out: &mut Vec<(Step, World)>) {
        let (busy, left) = (w.drivers[d].doing.is_some(), w.left);
        // Once an end is on its way into the record, nothing more is heard: it may be there already.
        if w.drivers[d].doing.is_some_and(|(record, _)| !self.state(record.state).is_open()) {
            return;
        }
        let abort = w.asked && !local.heard && !w.drivers[d].away;
        for (heard, may) in [
            (Heard::Proved, !busy),
            (Heard::Passed, !busy),
            (Heard::Resumed, !busy),
            (Heard::Tripped, left.trips > 0),
            (Heard::Aborted, abort),
            (Heard::PromoteNow, left.persons > 0),
            (Heard::Paused, left.persons > 0),
            (Heard::Stopped, left.persons > 0),
            (Heard::Expired, left.expiries > 0),
        ] {
            let Some(state) = may.then(|| self.hear(local.state, heard)).flatten() else { continue };
            let mut then = w;
            match heard {
                Heard::Tripped => then.left.trips -= 1,
                Heard::PromoteNow | Heard::Paused | Heard::Stopped => then.left.persons -= 1,
                Heard::Expired => then.left.expiries -= 1,
                _ => {}
            }
            let record = Record { state, heard: local.heard || heard == Heard::Aborted, ..local };
            then.drivers[d].doing = Some((record, false));
            out.push((Step::Hear(d, heard), then));
            // Rule 4: with the attempt in the same save, where a look came in time.
            if matches!(self.state(state), State::RollingBack { .. })
                && let Do::Shift = self.look(&w, &record, w.drivers[d].inherited)
            {
                then.drivers[d].shift(&record, self.attempt(&w, record), self.rules);
                out.push((Step::Hear(d, heard), then));
            }
        }
    }
}

impl Driver {
    /// It is about to save this attempt, and to send it.
    fn shift(&mut self, before: &Record, attempt: Record, rules: Rules) {
        let back = |call: &Call| call.goal == Goal::Baseline;
        let old = before.last.filter(|old| !before.closed && back(old) && attempt.last.as_ref().is_some_and(back));
        if let Some(old) = old.filter(|_| rules.carries && !rules.checked) {
            self.inherited = Some(self.inherited.map_or(old.age, |age| age.min(old.age)));
        }
        self.doing = Some((attempt, true));
    }
}

impl World {
    /// A save that lands: whoever else has the record, or has a save on its way, has an old serial now.
    fn save(&mut self, record: Record) {
        self.record = record;
        self.late_save = None;
        for driver in &mut self.drivers {
            driver.current = false;
        }
    }

    fn send(&mut self, call: Call) {
        let same = |it: &&mut Call| Call { age: call.age, ..**it } == call;
        if let Some(earlier) = self.under_way.iter_mut().flatten().find(same) {
            earlier.age = earlier.age.min(call.age);
        } else if call.age < SETTLE {
            let free = self.under_way.iter_mut().find(|slot| slot.is_none());
            *free.expect("few calls are under way at once") = Some(call);
        }
    }

    fn close(&mut self, nonce: u8) {
        for driver in &mut self.drivers {
            for record in driver.local.iter_mut().chain(driver.doing.as_mut().map(|(record, _)| record)) {
                record.closed |= record.last.is_some_and(|last| last.nonce == nonce);
            }
        }
    }

    fn each_record(&mut self, mut f: impl FnMut(&mut Record)) {
        f(&mut self.record);
        self.late_save.iter_mut().for_each(&mut f);
        for driver in &mut self.drivers {
            driver.local.iter_mut().for_each(&mut f);
            driver.doing.iter_mut().for_each(|(record, _)| f(record));
        }
    }

    fn each_call(&mut self, mut f: impl FnMut(&mut Call)) {
        self.under_way.iter_mut().flatten().for_each(&mut f);
        self.each_record(|record| record.last.iter_mut().for_each(&mut f));
    }

    fn calls(&self) -> impl Iterator<Item = Call> {
        let records = self.drivers.into_iter().flat_map(|d| [d.local, d.doing.map(|(record, _)| record)]);
        let records = records.chain([Some(self.record), self.late_save]);
        self.under_way.into_iter().flatten().chain(records.flatten().filter_map(|record| record.last))
    }

    /// Forgets what can make no difference any more, so that equal worlds are equal.
    fn tidy(&mut self, rules: Rules) {
        let dead = |call: &Call| if rules.checked { call.version == OLD } else { call.age >= SETTLE };
        for slot in &mut self.under_way {
            *slot = slot.filter(|call| !dead(call));
        }
        let forget = |record: &mut Record| {
            let over = |last: &Call| dead(last) || !rules.checked && record.closed;
            if record.last.as_ref().is_some_and(over) {
                (record.last, record.closed) = (None, false);
            }
        };
        forget(&mut self.record);
        self.late_save.iter_mut().for_each(forget);
        for (d, driver) in self.drivers.iter_mut().enumerate() {
            driver.local.iter_mut().for_each(forget);
            if usize::from(self.record.driver) != d && rules.lease {
                // Taken over: what it would save is refused, so only what it has sent can matter. That it does try is
                // searched where versions are checked, which has fewer worlds.
                driver.inherited = None;
                if !rules.checked {
                    *driver = Driver { away: driver.away, ..Driver::default() };
                } else if let Some(local) = &mut driver.local {
                    local.last = None;
                    driver.doing = driver.doing.map(|(next, _)| (Record { state: next.state, ..*local }, false));
                }
            }
        }
        self.under_way.sort_unstable_by_key(|slot| {
            slot.map_or((u8::MAX, 0, 0, 0), |c| (c.effect.rank(), c.nonce, c.version, c.age))
        });
    }

    /// How much candidate it serves.
    pub(super) const fn rank(&self) -> u8 {
        self.serving.rank()
    }
}
