//! A deployment target in memory, and a backend for it that obeys, stumbles and lies dead on demand.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, future, mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use tokio::{sync::watch, time::Instant};

use super::backend::Bench;
use crate::{
    backend::{Capabilities, DeploymentBackend, Readiness, Weights},
    error::{Error, ErrorKind, Result},
    model::{
        Attempt, Change, Effect, Goal, Nonce, Note, Observed, Part, Progress, Revision, RevisionId, Serves, Version,
        Weight,
    },
    plan::Plan,
    state::Versions,
    wake::Wake,
};

/// A target in memory and the backend for it.
///
/// Clones are handles to the same world: several clones are several processes that look at one target. By default any
/// weight can be given, versions are checked, each goal takes one effect, and what is asked for arrives at once; the
/// methods that take and return `self` make other platforms of it. Time is tokio's: pause it.
///
/// Every call is written into a [trace](Self::trace), and side effects are numbered from 0 in the order in which they are
/// asked for, so that a sweep can run once undisturbed, count the [calls](Self::calls), and run again with a
/// [`Fault`] at each of them in turn.
///
/// ```
/// # use rollback_core::testing::{backend, fakes::Fake};
/// # use std::time::Duration;
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() {
/// let heroku_like = Fake::new("v1", "v2").several_effects().unchecked(Duration::from_secs(30));
/// backend::all(&heroku_like).await;
/// # }
/// ```
#[derive(Clone)]
pub struct Fake {
    shared: Arc<Shared>,
}

struct Shared {
    world: Mutex<World>,
    entered: watch::Sender<usize>,
}

/// What goes wrong with one side effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Answers with this kind of error; nothing lands.
    Fail(ErrorKind),
    /// Lands, and the answer is lost: `Unavailable`.
    LoseAnswer,
    /// Is accepted and spends its version, and nothing else comes of it.
    NoEffect,
    /// Never answers.
    Hang {
        /// Whether it lands all the same.
        landed: bool,
    },
    /// Answers `Unavailable` now, and lands later, with the version it carried then.
    LandLate(Until),
    /// Lands twice, and answers as the second did: with versions checked, `Conflict` though it landed.
    Repeat,
    /// Panics; nothing lands.
    Panic,
}

/// When a late call lands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// When the test calls [`Fake::land_late`].
    Told,
    /// Just before the side effect of this number, or the first one after it.
    Call(usize),
    /// Just before the effect-free call of this number, or the first one after it.
    Read(usize),
}

/// One line of the world's trace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// When, counted from the making of the world.
    pub at: Duration,
    /// What.
    pub what: Happened,
}

/// Something that happened in the world.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Happened {
    /// Somebody looked.
    Looked {
        /// Which goal it asked about.
        goal: Goal,
        /// What it was told.
        progress: Progress,
        /// The target's version.
        version: Version,
        /// The candidate's share of traffic, told or not.
        weight: Weight,
    },
    /// A shift was asked for. What came of it is a line of its own, unless it never landed.
    Asked(Call),
    /// A shift was accepted.
    Landed {
        /// Which.
        call: Call,
        /// Whether its caller had stopped waiting.
        late: bool,
        /// The candidate's share of traffic that the target is set to now.
        weight: Weight,
    },
    /// A shift was refused and changed nothing.
    Refused {
        /// Which.
        call: Call,
        /// Whether its caller had stopped waiting.
        late: bool,
        /// Why.
        why: ErrorKind,
    },
    /// The platform or somebody else moved the target: the revisions that stand now and their shares.
    Moved(Vec<(RevisionId, Weight)>),
}

/// A shift as the world sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// Its number among the side effects, from 0.
    pub number: usize,
    /// What it works towards.
    pub goal: Goal,
    /// The attempt's nonce.
    pub nonce: Nonce,
    /// The version it carries.
    pub version: Version,
}

impl Fake {
    /// A target that serves `baseline` alone, and for which `candidate` has been built.
    ///
    /// # Panics
    /// When one of them is not a revision's id.
    pub fn new(baseline: &str, candidate: &str) -> Self {
        let (baseline, candidate) = (id(baseline), id(candidate));
        let world = World {
            capabilities: Capabilities::full(),
            several: false,
            pace: None,
            own_rollback_at: None,
            lag: Duration::ZERO,
            tells_weight: true,
            watched: false,
            not_restored: Vec::new(),
            artefacts: BTreeSet::from([baseline.clone(), candidate.clone()]),
            mix: alone(&baseline),
            baseline,
            candidate,
            version: 1,
            writes: Vec::new(),
            moving: None,
            reverting: None,
            parts: Vec::new(),
            changed_at: Instant::now(),
            calls: 0,
            reads: 0,
            faults: BTreeMap::new(),
            read_faults: BTreeMap::new(),
            late: Vec::new(),
            failing: Vec::new(),
            refusal: None,
            wakes: Vec::new(),
            born: Instant::now(),
            trace: Vec::new(),
        };
        Self { shared: Arc::new(Shared { world: Mutex::new(world), entered: watch::Sender::new(0) }) }
    }

    /// Checks no versions: whatever is asked for lands. After `settle` an unanswered call is taken as never to land.
    #[must_use]
    pub fn unchecked(self, settle: Duration) -> Self {
        self.with(|world| world.capabilities = world.capabilities.clone().unchecked(settle))
    }

    /// Each goal takes several effects: place, then give weight; return the traffic, then clear what is left.
    #[must_use]
    pub fn several_effects(self) -> Self {
        self.with(|world| world.several = true)
    }

    /// Can give these shares of traffic besides 100.
    ///
    /// # Panics
    /// When one is over 100.
    #[must_use]
    pub fn weights(self, percents: impl IntoIterator<Item = u8>) -> Self {
        let weights = Weights::only(percents).unwrap_or_else(|e| panic!("{e}"));
        self.with(|world| world.capabilities.weights = weights)
    }

    /// Moves the traffic forward by itself: `increment` percent at once, and as much again after each `every`. Going back
    /// is immediate.
    ///
    /// # Panics
    /// When the increment or the time is zero.
    #[must_use]
    pub fn providers_pace(self, increment: u8, every: Duration) -> Self {
        assert!(increment > 0 && !every.is_zero(), "a pace of zero never arrives");
        self.with(|world| {
            world.capabilities.weights = Weights::ProvidersPace;
            world.capabilities.can_hold = false;
            world.pace = Some(Pace { increment, every });
        })
    }

    /// With [`providers_pace`](Self::providers_pace): once the candidate has this share, the platform goes back by itself,
    /// every time.
    #[must_use]
    pub fn goes_back_by_itself_at(self, weight: Weight) -> Self {
        self.with(|world| world.own_rollback_at = Some(weight.percent()))
    }

    /// Has this many parts, `web-1` and so on, that take over a change one after the other, `lag` apart.
    #[must_use]
    pub fn parts(self, count: usize, lag: Duration) -> Self {
        self.with(|world| {
            let mix = world.mix.clone();
            world.lag = lag;
            world.parts =
                (1..=count).map(|n| Instance { name: format!("web-{n}"), mix: mix.clone(), stuck: 0 }).collect();
        })
    }

    /// Does not tell the candidate's share of traffic.
    #[must_use]
    pub fn tells_no_weight(self) -> Self {
        self.with(|world| world.tells_weight = false)
    }

    /// Wakes the engine whenever something changes, as a watch does.
    #[must_use]
    pub fn watched(self) -> Self {
        self.with(|world| world.watched = true)
    }

    /// Does not bring this back in a rollback.
    #[must_use]
    pub fn does_not_restore(self, what: impl Into<Note>) -> Self {
        self.with(|world| world.not_restored.push(what.into()))
    }

    /// The fault that the side effect of this number will suffer. One number, one fault; the last one said counts.
    pub fn fault(&self, call: usize, fault: Fault) {
        self.world().faults.insert(call, fault);
    }

    /// The effect-free call (`baseline`, `preflight`, `observe`) of this number will fail with this kind of error.
    pub fn fail_read(&self, read: usize, kind: ErrorKind) {
        self.world().read_faults.insert(read, Some(kind));
    }

    /// The effect-free call of this number will never answer.
    pub fn hang_read(&self, read: usize) {
        self.world().read_faults.insert(read, None);
    }

    /// The next `times` looks at this goal say that the platform has failed.
    pub fn fail_goal(&self, goal: Goal, times: usize) {
        self.world().failing.push((goal, times));
    }

    /// From now on preflight refuses, for this reason.
    pub fn refuse_preflight(&self, reason: impl Into<Note>) {
        self.world().refusal = Some(reason.into());
    }

    /// Builds a revision, so that it can be deployed.
    ///
    /// # Panics
    /// When it is not a revision's id.
    pub fn build(&self, revision: &str) {
        self.world().artefacts.insert(id(revision));
    }

    /// Deletes what was built of a revision: what stands keeps standing, and cannot be placed again.
    pub fn delete_artefact(&self, revision: &str) {
        self.world().artefacts.retain(|artefact| artefact.as_str() != revision);
    }

    /// Somebody else changes the target: these revisions stand from now on, with these shares of traffic.
    ///
    /// # Panics
    /// When the shares do not add up to 100.
    pub fn drift(&self, stands: &[(&str, u8)]) {
        assert_eq!(stands.iter().map(|(_, share)| u32::from(*share)).sum::<u32>(), 100, "the shares of {stands:?}");
        let mut world = self.world();
        let mix = stands.iter().map(|(revision, share)| (id(revision), *share)).collect();
        world.set(mix, Writer::Somebody);
        world.tell_moved();
    }

    /// The part of this index, from 0, keeps serving this revision until it was restarted `restarts` times; with
    /// `usize::MAX`, for ever.
    ///
    /// # Panics
    /// When there is no such part.
    pub fn stick(&self, part: usize, revision: &str, restarts: usize) {
        let mut world = self.world();
        world.parts[part].mix = alone(&id(revision));
        world.parts[part].stuck = restarts;
        world.tell_moved();
    }

    /// Lands all late calls now, oldest first. How many there were.
    pub fn land_late(&self) -> usize {
        self.world().land_late(|_| true)
    }

    /// How many late calls have not landed yet.
    pub fn on_their_way(&self) -> usize {
        self.world().late.len()
    }

    /// Waits until the side effect of this number has been asked for. Cancel safe.
    pub async fn entered(&self, call: usize) {
        let mut entered = self.shared.entered.subscribe();
        entered.wait_for(|calls| *calls > call).await.expect("the sender lives as long as the world");
    }

    /// How many side effects have been asked for.
    pub fn calls(&self) -> usize {
        self.world().calls
    }

    /// How many effect-free calls have been made.
    pub fn reads(&self) -> usize {
        self.world().reads
    }

    /// What has happened, oldest first.
    pub fn trace(&self) -> Vec<Seen> {
        self.world().trace.clone()
    }

    /// The target's version.
    pub fn version(&self) -> Version {
        self.world().version()
    }

    /// The revisions that stand, and the share of traffic that each is set to.
    pub fn stands(&self) -> Vec<(RevisionId, Weight)> {
        shares(&self.world().mix)
    }

    /// Whether this revision alone stands, on every part.
    ///
    /// # Panics
    /// When it is not a revision's id.
    pub fn only(&self, revision: &str) -> bool {
        let world = self.world();
        let wanted = alone(&id(revision));
        world.mix == wanted && world.parts.iter().all(|part| same(&part.mix, &wanted))
    }

    fn world(&self) -> MutexGuard<'_, World> {
        let mut world = self.shared.world.lock().unwrap_or_else(PoisonError::into_inner);
        world.catch_up(Instant::now());
        world
    }

    fn with(self, change: impl FnOnce(&mut World)) -> Self {
        change(&mut self.world());
        self
    }

    async fn read(&self) -> Result<()> {
        let fault = {
            let mut world = self.world();
            let read = world.reads;
            world.reads += 1;
            world.land_late(|until| matches!(until, Until::Read(at) if *at <= read));
            world.read_faults.remove(&read).map(|kind| (read, kind))
        };
        match fault {
            None => Ok(()),
            Some((read, Some(kind))) => Err(Error::new(kind, format!("read {read} of the target fails by script"))),
            Some((_, None)) => future::pending().await,
        }
    }
}

/// What stands and its share; nothing that is sealed.
impl fmt::Debug for Fake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let world = self.world();
        f.debug_struct("Fake").field("stands", &world.mix).field("version", &world.version).finish_non_exhaustive()
    }
}

#[async_trait]
impl DeploymentBackend for Fake {
    fn capabilities(&self) -> Capabilities {
        self.world().capabilities.clone()
    }

    async fn baseline(&self) -> Result<Revision> {
        self.read().await?;
        self.world().serving_alone()
    }

    async fn preflight(&self, change: &Change, plan: &Plan) -> Result<Readiness> {
        self.read().await?;
        Ok(self.world().readiness(change, plan))
    }

    async fn observe<'a>(&self, change: &Change, goal: Goal, last: Option<&'a Attempt>) -> Result<Observed> {
        self.read().await?;
        self.world().look(change, goal, last)
    }

    async fn shift(&self, change: &Change, goal: Goal, attempt: &Attempt) -> Result<()> {
        let (shift, fault) = {
            let mut world = self.world();
            let number = world.calls;
            world.calls += 1;
            world.land_late(|until| matches!(until, Until::Call(at) if *at <= number));
            let shift = Shift { number, change: change.clone(), goal, attempt: attempt.clone() };
            world.tell(Happened::Asked(shift.call()));
            (shift, world.faults.remove(&number))
        };
        self.shared.entered.send_replace(shift.number + 1);
        let lost = || Err(Error::new(ErrorKind::Unavailable, format!("the answer to call {} was lost", shift.number)));
        match fault {
            None => self.world().land(&shift, false),
            Some(Fault::Fail(kind)) => {
                self.world().tell(Happened::Refused { call: shift.call(), late: false, why: kind });
                Err(Error::new(kind, format!("call {} fails by script", shift.number)))
            }
            Some(Fault::LoseAnswer) => {
                // Refused or not, nobody hears of it.
                let _ = self.world().land(&shift, false);
                lost()
            }
            Some(Fault::NoEffect) => self.world().spend(&shift),
            Some(Fault::Hang { landed }) => {
                if landed {
                    let _ = self.world().land(&shift, false);
                }
                future::pending().await
            }
            Some(Fault::LandLate(until)) => {
                self.world().late.push((until, shift.clone()));
                lost()
            }
            Some(Fault::Repeat) => {
                let mut world = self.world();
                let _ = world.land(&shift, false);
                world.land(&shift, false)
            }
            Some(Fault::Panic) => panic!("call {} panics by script", shift.number),
        }
    }

    fn attach(&self, wake: Wake) {
        self.world().wakes.push(wake);
    }
}

/// The fake runs the conformance suite on itself: `settle` lets a second pass, and drift is somebody deploying a
/// revision of their own.
#[async_trait]
impl Bench for Fake {
    async fn reset(&self) {
        self.world().reset();
    }

    async fn connect(&self) -> Arc<dyn DeploymentBackend> {
        Arc::new(self.clone())
    }

    fn candidate(&self) -> Revision {
        Revision { id: self.world().candidate.clone(), spec: crate::model::Sealed::empty() }
    }

    async fn settle(&self) {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }

    async fn drift(&self) -> bool {
        Self::drift(self, &[("somebody-elses", 100)]);
        true
    }

    fn secret(&self) -> Option<String> {
        Some(SECRET.into())
    }
}

/// The revisions that stand and their shares of traffic in percent.
type Mix = BTreeMap<RevisionId, u8>;

struct World {
    // What kind of platform it is.
    capabilities: Capabilities,
    several: bool,
    pace: Option<Pace>,
    own_rollback_at: Option<u8>,
    lag: Duration,
    tells_weight: bool,
    watched: bool,
    not_restored: Vec<Note>,
    baseline: RevisionId,
    candidate: RevisionId,

    // The target.
    artefacts: BTreeSet<RevisionId>,
    mix: Mix,
    version: u64,
    writes: Vec<Writer>,
    moving: Option<Moving>,
    reverting: Option<Instant>,
    parts: Vec<Instance>,
    changed_at: Instant,

    // The script.
    calls: usize,
    reads: usize,
    faults: BTreeMap<usize, Fault>,
    read_faults: BTreeMap<usize, Option<ErrorKind>>,
    late: Vec<(Until, Shift)>,
    failing: Vec<(Goal, usize)>,
    refusal: Option<Note>,

    wakes: Vec<Wake>,
    born: Instant,
    trace: Vec<Seen>,
}

#[derive(Clone, Copy)]
struct Pace {
    increment: u8,
    every: Duration,
}

/// A deployment that moves the traffic by itself.
struct Moving {
    since: Instant,
    from: RevisionId,
    to: RevisionId,
}

/// Who wrote on the target.
enum Writer {
    Attempt(Nonce),
    Platform,
    Somebody,
}

struct Instance {
    name: String,
    mix: Mix,
    /// How many restarts it takes before it serves what the target is set to.
    stuck: usize,
}

#[derive(Clone)]
struct Shift {
    number: usize,
    change: Change,
    goal: Goal,
    attempt: Attempt,
}

/// The one effect that is due.
enum Deed {
    Set(Mix),
    Start,
    Restart(usize),
}

/// What a revision of the fake seals.
#[derive(Serialize, Deserialize)]
struct Snapshot {
    revision: RevisionId,
    password: String,
}

impl Shift {
    fn call(&self) -> Call {
        Call {
            number: self.number,
            goal: self.goal,
            nonce: self.attempt.nonce.clone(),
            version: self.attempt.version.clone(),
        }
    }
}

impl World {
    /// Lets the platform do what it has done by itself since the last time anybody asked.
    fn catch_up(&mut self, now: Instant) {
        if let (Some(pace), Some(moving)) = (self.pace, &self.moving) {
            let increments = now.duration_since(moving.since).as_nanos() / pace.every.as_nanos() + 1;
            let increment = u128::from(pace.increment);
            let share = increments.saturating_mul(increment).min(100) as u8;
            let before = share_of(&self.mix, &moving.to);
            let turns = self.own_rollback_at.map(|at| at.max(1)).filter(|at| share >= *at);
            if let Some(at) = turns {
                let turned = u32::try_from(u128::from(at.div_ceil(pace.increment)) - 1).expect("at most 99");
                self.reverting = Some(moving.since + pace.every * (turned + 1));
                let mix = split(&moving.from, &moving.to, 0);
                let reverting = self.reverting;
                self.set(mix, Writer::Platform);
                self.reverting = reverting;
                self.tell_moved();
            } else if share != before {
                self.mix = split(&moving.from, &moving.to, share);
                if share == 100 {
                    self.moving = None;
                }
                self.tell_moved();
            }
        }
        if self.reverting.is_some_and(|until| now >= until) {
            self.reverting = None;
            self.mix.retain(|_, share| *share > 0);
            self.tell_moved();
        }
        for at in 0..self.parts.len() {
            if self.parts[at].stuck == 0 && now >= self.takes_over(at) {
                self.parts[at].mix = self.mix.clone();
            }
        }
    }

    /// When this part takes over what the target is set to.
    fn takes_over(&self, part: usize) -> Instant {
        self.changed_at + self.lag * u32::try_from(part + 1).expect("few parts")
    }

    fn reset(&mut self) {
        self.moving = None;
        self.set(alone(&self.baseline), Writer::Somebody);
        for part in &mut self.parts {
            part.mix = self.mix.clone();
            part.stuck = 0;
        }
        self.writes.clear();
        self.late.clear();
    }

    /// Every way to change the target comes through here: it spends the version and names the writer.
    fn set(&mut self, mix: Mix, writer: Writer) {
        self.mix = mix;
        self.moving = None;
        self.reverting = None;
        self.changed_at = Instant::now();
        self.sign(writer);
        self.catch_up(self.changed_at);
    }

    fn sign(&mut self, writer: Writer) {
        self.version += 1;
        self.writes.push(writer);
    }

    fn land(&mut self, shift: &Shift, late: bool) -> Result<()> {
        let result = self.apply(shift);
        self.tell(match &result {
            Ok(()) => {
                let weight = self.set_weight(&shift.change.candidate.id);
                Happened::Landed { call: shift.call(), late, weight }
            }
            Err(e) => Happened::Refused { call: shift.call(), late, why: e.kind() },
        });
        result
    }

    fn land_late(&mut self, due: impl Fn(&Until) -> bool) -> usize {
        let (land, keep): (Vec<_>, Vec<_>) = mem::take(&mut self.late).into_iter().partition(|(until, _)| due(until));
        self.late = keep;
        for (_, shift) in &land {
            // Its caller has given up: nobody hears the answer, the trace has it.
            let _ = self.land(shift, true);
        }
        land.len()
    }

    /// Accepts a shift and does nothing else.
    fn spend(&mut self, shift: &Shift) -> Result<()> {
        let result = self.admit(shift);
        if result.is_ok() {
            self.sign(Writer::Attempt(shift.attempt.nonce.clone()));
        }
        let weight = self.set_weight(&shift.change.candidate.id);
        self.tell(match &result {
            Ok(()) => Happened::Landed { call: shift.call(), late: false, weight },
            Err(e) => Happened::Refused { call: shift.call(), late: false, why: e.kind() },
        });
        result
    }

    fn admit(&self, shift: &Shift) -> Result<()> {
        self.expressible(shift.goal)?;
        let current = self.version();
        if self.capabilities.versions == Versions::Checked && shift.attempt.version != current {
            let carried = &shift.attempt.version;
            return Err(Error::new(ErrorKind::Conflict, format!("the target is at {current}, not at {carried}")));
        }
        Ok(())
    }

    fn apply(&mut self, shift: &Shift) -> Result<()> {
        self.admit(shift)?;
        let change = &shift.change;
        let writer = Writer::Attempt(shift.attempt.nonce.clone());
        if shift.goal == Goal::Baseline {
            let snapshot: Option<Snapshot> = change.baseline.spec.open()?;
            if snapshot.is_some_and(|snapshot| snapshot.revision != change.baseline.id) {
                return Err(Error::invalid(format!("the spec of {} is another revision's", change.baseline.id)));
            }
        }
        match self.due(change, shift.goal) {
            None => self.sign(writer),
            Some((_, Deed::Set(mix))) => {
                for revision in mix.keys() {
                    self.available(revision)?;
                }
                self.set(mix, writer);
            }
            Some((_, Deed::Start)) => {
                self.available(&change.candidate.id)?;
                let (from, to) = (change.baseline.id.clone(), change.candidate.id.clone());
                self.set(split(&from, &to, 0), writer);
                self.moving = Some(Moving { since: self.changed_at, from, to });
                self.catch_up(self.changed_at);
            }
            Some((_, Deed::Restart(part))) => {
                self.sign(writer);
                let stuck = &mut self.parts[part].stuck;
                *stuck = if *stuck == usize::MAX { usize::MAX } else { *stuck - 1 };
                self.catch_up(Instant::now());
            }
        }
        Ok(())
    }

    /// Whether it stands or was built.
    fn available(&self, revision: &RevisionId) -> Result<()> {
        if self.artefacts.contains(revision) || self.mix.contains_key(revision) {
            return Ok(());
        }
        Err(Error::new(ErrorKind::NotFound, format!("revision {revision} was never built, or deleted since")))
    }

    fn expressible(&self, goal: Goal) -> Result<()> {
        let Goal::Split(weight) = goal else { return Ok(()) };
        let can = &self.capabilities.weights;
        if can.contains(weight) {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Unsupported, format!("this target cannot give {weight}, {can}")))
    }

    fn look(&mut self, change: &Change, goal: Goal, last: Option<&Attempt>) -> Result<Observed> {
        self.expressible(goal)?;
        let progress = self.progress(change, goal);
        let weight = self.weight(&change.candidate.id);
        self.tell(Happened::Looked { goal, progress: progress.clone(), version: self.version(), weight });
        let landed = last.is_some_and(|last| {
            self.writes.iter().any(|writer| matches!(writer, Writer::Attempt(nonce) if *nonce == last.nonce))
        });
        let parts = self.parts.iter().map(|part| Part::new(&part.name, serves(&part.mix, change))).collect();
        let mut seen = Observed::new(progress, self.version()).parts(parts).landed(landed);
        seen.weight = self.tells_weight.then_some(weight);
        if goal == Goal::Baseline {
            seen = seen.not_restored(self.not_restored.clone());
        }
        Ok(seen)
    }

    fn progress(&mut self, change: &Change, goal: Goal) -> Progress {
        if let Some(at) = self.failing.iter().position(|(failing, times)| *failing == goal && *times > 0) {
            self.failing[at].1 -= 1;
            return Progress::Failed(Note::new(format!("the platform fails to reach {goal}, by script")));
        }
        let foreign = |revision: &RevisionId| *revision != change.baseline.id && *revision != change.candidate.id;
        if let Some((revision, share)) = self.mix.iter().find(|(revision, share)| **share > 0 && foreign(revision)) {
            return Progress::Drifted(Note::new(format!("{revision} has {share} % of the traffic")));
        }
        let ours = format!("{}/", change.rollout);
        let is_ours = |writer: &Writer| matches!(writer, Writer::Attempt(nonce) if nonce.as_str().starts_with(&ours));
        match self.writes.last() {
            // Whatever was here before this rollout wrote anything is none of its business.
            _ if !self.writes.iter().any(is_ours) => {}
            Some(Writer::Platform) if goal.is_forward() => {
                return Progress::Failed("the platform went back to the baseline by itself".into());
            }
            Some(Writer::Platform) if self.reverting.is_some() => {
                return Progress::Underway("the platform is going back by itself".into());
            }
            // Weights that somebody else set are drift on the way forward; the way back takes them along.
            Some(writer) if goal.is_forward() && !is_ours(writer) => {
                return Progress::Drifted(Note::new(format!("somebody set it to {}", describe(&self.mix))));
            }
            _ => {}
        }
        if let Some((effect, _)) = self.due(change, goal) {
            return Progress::Due(effect);
        }
        if self.moving.is_some() {
            return Progress::Underway(Note::new(format!("the platform is at {}", describe(&self.mix))));
        }
        match self.parts.iter().find(|part| !same(&part.mix, &self.mix)) {
            Some(part) => Progress::Underway(Note::new(format!("{} still serves {}", part.name, describe(&part.mix)))),
            None => Progress::Reached,
        }
    }

    /// The next effect on the way to a goal. None while the platform moves by itself, and when the goal is set.
    fn due(&self, change: &Change, goal: Goal) -> Option<(Effect, Deed)> {
        let (baseline, candidate) = (&change.baseline.id, &change.candidate.id);
        if self.pace.is_some() && goal.is_forward() {
            if self.moving.as_ref().is_some_and(|moving| moving.to == *candidate) {
                return None;
            }
            if share_of(&self.mix, candidate) < 100 {
                return Some((Note::new(format!("start the deployment of {candidate}")), Deed::Start));
            }
        }
        let step = if self.several {
            several_effects(&self.mix, baseline, candidate, goal)
        } else {
            one_effect(&self.mix, baseline, candidate, goal)
        };
        if let Some((effect, mix)) = step {
            return Some((effect.into(), Deed::Set(mix)));
        }
        // A part that has had its time is not going to follow by itself.
        let now = Instant::now();
        let stuck = self.parts.iter().position(|part| part.stuck > 0 && !same(&part.mix, &self.mix))?;
        (now >= self.takes_over(self.parts.len() - 1))
            .then(|| (Note::new(format!("restart {}", self.parts[stuck].name)), Deed::Restart(stuck)))
    }

    fn serving_alone(&self) -> Result<Revision> {
        let mut views: Vec<(&str, &Mix)> = self.parts.iter().map(|part| (part.name.as_str(), &part.mix)).collect();
        if views.is_empty() {
            views.push(("the target", &self.mix));
        }
        let first = views[0].1.iter().find(|(_, share)| **share == 100).map(|(revision, _)| revision);
        match first {
            Some(revision) if views.iter().all(|(_, mix)| share_of(mix, revision) == 100) => {
                Revision::new(revision)?.with_spec(&Snapshot { revision: revision.clone(), password: SECRET.into() })
            }
            _ => {
                let each: Vec<String> =
                    views.iter().map(|(name, mix)| format!("{name} serves {}", describe(mix))).collect();
                Err(Error::new(ErrorKind::Mixed, format!("no one revision serves: {}", each.join(", "))))
            }
        }
    }

    fn readiness(&self, change: &Change, plan: &Plan) -> Readiness {
        let mut found = Readiness { not_restored: self.not_restored.clone(), ..Readiness::default() };
        for (way, revision) in [("forward", &change.candidate.id), ("back", &change.baseline.id)] {
            found = match self.artefacts.contains(revision) {
                true => found.proved(format!("{revision}, the way {way}, has been built")),
                false => found.refused(format!("{revision}, the way {way}, is not there: build it")),
            };
        }
        if let Err(e) = self.capabilities.admit(plan) {
            found = found.refused(e.to_string());
        }
        if self.capabilities.versions != Versions::Checked {
            found = found.not_provable("that no late call lands: this platform checks no versions");
        }
        match &self.refusal {
            Some(reason) => found.refused(reason.clone()),
            None => found,
        }
    }

    fn version(&self) -> Version {
        Version::try_from(format!("v{}", self.version)).expect("a short name")
    }

    /// The candidate's share of the traffic that users see: the mean over the parts, never rounded to nothing or all.
    fn weight(&self, candidate: &RevisionId) -> Weight {
        let shares: Vec<u32> = self.parts.iter().map(|part| u32::from(share_of(&part.mix, candidate))).collect();
        let (sum, all) = (shares.iter().sum::<u32>(), 100 * shares.len() as u32);
        match sum {
            _ if shares.is_empty() => self.set_weight(candidate),
            0 => Weight::NONE,
            sum if sum == all => Weight::ALL,
            sum => percent(((sum + shares.len() as u32 / 2) / shares.len() as u32).clamp(1, 99) as u8),
        }
    }

    /// The share that the target is set to.
    fn set_weight(&self, candidate: &RevisionId) -> Weight {
        percent(share_of(&self.mix, candidate))
    }

    fn tell_moved(&mut self) {
        self.tell(Happened::Moved(shares(&self.mix)));
    }

    fn tell(&mut self, what: Happened) {
        let changed = matches!(what, Happened::Landed { .. } | Happened::Moved(_));
        self.trace.push(Seen { at: self.born.elapsed(), what });
        if changed && self.watched {
            self.wakes.retain(|wake| !wake.is_dead());
            self.wakes.iter().for_each(Wake::wake);
        }
    }
}

/// The whole goal in one call, as a Lambda alias takes it.
fn one_effect(mix: &Mix, baseline: &RevisionId, candidate: &RevisionId, goal: Goal) -> Option<(String, Mix)> {
    let (effect, wanted) = match goal {
        Goal::Split(weight) => (format!("set weight to {weight}"), split(baseline, candidate, weight.percent())),
        Goal::Candidate => ("let only the candidate serve".into(), alone(candidate)),
        Goal::Baseline => ("let only the baseline serve".into(), alone(baseline)),
    };
    (*mix != wanted).then_some((effect, wanted))
}

/// One effect after the other, traffic first, as a pair of workloads takes it.
fn several_effects(mix: &Mix, baseline: &RevisionId, candidate: &RevisionId, goal: Goal) -> Option<(String, Mix)> {
    let leave = |revision: &RevisionId, give: &str, clear: &str| {
        if share_of(mix, revision) != 100 {
            let mut mix: Mix = mix.keys().map(|other| (other.clone(), 0)).collect();
            mix.insert(revision.clone(), 100);
            return Some((give.into(), mix));
        }
        (mix.len() > 1).then(|| (clear.into(), alone(revision)))
    };
    match goal {
        Goal::Split(weight) => {
            let both = [(candidate, "candidate"), (baseline, "baseline")];
            if let Some((revision, which)) = both.into_iter().find(|(revision, _)| !mix.contains_key(*revision)) {
                let mut mix = mix.clone();
                mix.insert(revision.clone(), 0);
                return Some((format!("place the {which}"), mix));
            }
            let wanted = split(baseline, candidate, weight.percent());
            (!same(mix, &wanted)).then(|| (format!("set weight to {weight}"), wanted))
        }
        Goal::Candidate => leave(candidate, "give the candidate all traffic", "clear the baseline"),
        Goal::Baseline => leave(baseline, "return the traffic", "clear the candidate"),
    }
}

fn alone(revision: &RevisionId) -> Mix {
    Mix::from([(revision.clone(), 100)])
}

fn split(baseline: &RevisionId, candidate: &RevisionId, share: u8) -> Mix {
    Mix::from([(baseline.clone(), 100 - share), (candidate.clone(), share)])
}

fn share_of(mix: &Mix, revision: &RevisionId) -> u8 {
    mix.get(revision).copied().unwrap_or_default()
}

/// Whether users see the same of both.
fn same(one: &Mix, other: &Mix) -> bool {
    let within = |a: &Mix, b: &Mix| a.iter().all(|(revision, share)| share_of(b, revision) == *share);
    within(one, other) && within(other, one)
}

fn serves(mix: &Mix, change: &Change) -> Serves {
    let (baseline, candidate) = (share_of(mix, &change.baseline.id), share_of(mix, &change.candidate.id));
    match (baseline, candidate) {
        (100, 0) => Serves::Baseline,
        (0, 100) => Serves::Candidate,
        (b, c) if b + c == 100 => Serves::Both,
        _ => Serves::Other,
    }
}

fn shares(mix: &Mix) -> Vec<(RevisionId, Weight)> {
    mix.iter().map(|(revision, share)| (revision.clone(), percent(*share))).collect()
}

/// `v1 75 %, v2 25 %`.
fn describe(mix: &Mix) -> String {
    mix.iter().map(|(revision, share)| format!("{revision} {share} %")).collect::<Vec<_>>().join(", ")
}

fn percent(share: u8) -> Weight {
    Weight::try_from(share).expect("shares are at most 100")
}

fn id(revision: &str) -> RevisionId {
    RevisionId::try_from(revision).unwrap_or_else(|e| panic!("{e}"))
}

/// What a fake's revisions seal; it must appear nowhere.
const SECRET: &str = "the-sealed-password-of-the-fake";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{testing::backend::Driver, wake::Bell};

    #[tokio::test]
    async fn a_watched_target_wakes_the_engine_when_it_changes_and_not_when_it_is_looked_at() {
        for watched in [true, false] {
            let bell = Arc::new(Bell::default());
            let fake = Fake::new("v1", "v2");
            let fake = if watched { fake.watched() } else { fake };
            fake.attach(Wake::new(Arc::downgrade(&bell), Bell::BACKEND));
            let mut driver = Driver::new(&fake).await;
            let look = driver.look(Goal::Candidate).await;
            assert_eq!(bell.take(), 0);
            let attempt = driver.save(Goal::Candidate, &look.version);
            driver.send(&attempt).await.unwrap();
            assert_eq!(bell.take() == 1 << Bell::BACKEND, watched);
            fake.drift(&[("v3", 100)]);
            assert_eq!(bell.take() == 1 << Bell::BACKEND, watched);
        }
    }
}
