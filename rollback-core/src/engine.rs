//! The engine: reads a rollout's record, looks at the world, does the one thing that is due, and saves what it learned.
//!
//! # Crash safety
//! Everything is written down before it is attempted. Kill the process at any instant, start it again, call
//! [`Engine::resume_all`]: each rollout ends in the same place.
//!
//! # Cancel safety
//! A rollout runs in a task of its own. Dropping a [`Handle`], a future returned here, or the last [`Engine`] stops
//! nothing and loses nothing; [`Engine::shutdown`] stops, and leaves everything resumable.

mod call;
mod driver;
mod handle;
mod live;
mod pulse;
mod target;

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::Semaphore,
    task::{JoinHandle, JoinSet},
    time::Instant,
};
use tracing::Instrument as _;

use self::{
    call::bounded,
    driver::Driver,
    live::{Asking, Live, Phase},
    pulse::Pulse,
};
pub use self::{
    handle::{Handle, Outcome},
    target::Target,
};
use crate::{
    clock::{Clock, SystemClock},
    error::{Error, ErrorKind, Result},
    gate::Slot,
    listener::{Listener, Post, RolloutEvent},
    model::{Actor, Change, DriverId, Note, Revision, RevisionId, RolloutId, Serial, TargetId},
    plan::{Plan, Step},
    request::{Ask, Request},
    rollout::{BaselineFrom, Entry, Kind, Log, Rollout, Times, What},
    state::{Refusal, State},
    store::{Claim, Record, Standing, Store},
};

/// Runs rollouts: many at once, each in a task of its own. Cheap to clone; clones are one engine.
#[derive(Clone)]
pub struct Engine {
    inner: Arc<Inner>,
}

/// How an engine is set up; see [`Engine::builder`].
#[derive(Debug)]
pub struct Builder {
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    lease: Duration,
    driver: DriverId,
    listeners: Vec<Arc<dyn Listener>>,
}

/// What is shared by the engine, its handles and its drivers.
pub(crate) struct Inner {
    store: Arc<dyn Store>,
    clock: Arc<dyn Clock>,
    driver: DriverId,
    pulse: Pulse,
    targets: Mutex<BTreeMap<TargetId, Arc<Target>>>,
    /// The rollouts driven here; `None` while one is being created or claimed.
    live: Mutex<HashMap<RolloutId, Option<Arc<Live>>>>,
    posts: Mutex<Vec<Post>>,
    /// The tasks that beat and that look for orphans; they end with the runtime they were started on.
    beating: Mutex<Option<JoinHandle<()>>>,
    looking_for_orphans: Mutex<Option<JoinHandle<()>>>,
    stopping: AtomicBool,
}

/// A rollout to be started.
#[derive(Clone, Debug)]
pub struct NewRollout {
    target: TargetId,
    candidate: Revision,
    plan: Plan,
    author: Actor,
    reason: Note,
    id: Option<RolloutId>,
    irreversible: Option<Note>,
    despite_quarantine: Option<Note>,
    retake: bool,
    busy: Busy,
    kind: Kind,
}

/// What to do when the target has an open rollout.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Busy {
    /// Refuse with `Conflict`, naming the open rollout. The default.
    #[default]
    Refuse,
    /// Roll the open rollout back first, then start.
    Supersede,
}

/// What [`Engine::resume_all`] found.
#[derive(Debug, Default)]
pub struct Resumed {
    /// Rollouts that this process drives now.
    pub handles: Vec<Handle>,
    /// Rollouts that another living process drives. Watched from now on, and taken up when that process dies.
    pub elsewhere: Vec<Claim>,
    /// Open rollouts of targets that are not registered here: nobody drives them until somebody registers the target.
    pub unregistered: Vec<Claim>,
    /// Open rollouts that cannot be taken up, and why. Their records are left as they are.
    pub refused: Vec<(RolloutId, Error)>,
}

/// What [`Engine::roll_back`] did.
#[derive(Debug)]
pub enum WayBack {
    /// The target has an open rollout, which was asked to go back.
    Aborting(RolloutId),
    /// A rollout to the revision before the last promoted one was started.
    Started(Handle),
    /// There is nothing to take back: why.
    Nothing(Note),
}

impl NewRollout {
    /// A rollout that replaces what serves on `target` with `candidate`, by this plan. The author is `unknown` until
    /// [`by`](Self::by) names one.
    ///
    /// # Errors
    /// `Invalid` when the target id is not 1 to 128 bytes of printable text.
    pub fn new(target: impl AsRef<str>, candidate: Revision, plan: Plan) -> Result<Self> {
        Ok(Self {
            target: TargetId::try_from(target.as_ref())?,
            candidate,
            plan,
            author: Actor::try_from("unknown").expect("a printable name"),
            reason: Note::default(),
            id: None,
            irreversible: None,
            despite_quarantine: None,
            retake: false,
            busy: Busy::default(),
            kind: Kind::default(),
        })
    }

    /// Who starts it. This person's approval does not count unless the plan says so.
    ///
    /// # Errors
    /// `Invalid` when the name is not 1 to 128 bytes of printable text.
    pub fn by(mut self, author: impl AsRef<str>) -> Result<Self> {
        self.author = Actor::try_from(author.as_ref())?;
        Ok(self)
    }

    /// Why.
    #[must_use]
    pub fn because(mut self, reason: impl Into<Note>) -> Self {
        self.reason = reason.into();
        self
    }

    /// With this id instead of a fresh one: starting the same id again finds the same rollout, and starts no second.
    #[must_use]
    pub fn id(mut self, id: RolloutId) -> Self {
        self.id = Some(id);
        self
    }

    /// Start even if preflight finds no way back. What would roll back is stuck then, and a person decides. The record
    /// shows the reason.
    #[must_use]
    pub fn allow_irreversible(mut self, reason: impl Into<Note>) -> Self {
        self.irreversible = Some(reason.into());
        self
    }

    /// Try the candidate although an earlier rollout found it bad. The record shows the reason.
    #[must_use]
    pub fn despite_quarantine(mut self, reason: impl Into<Note>) -> Self {
        self.despite_quarantine = Some(reason.into());
        self
    }

    /// When somebody else changes the target meanwhile: bring the baseline back over it, instead of hands off.
    #[must_use]
    pub const fn retake_after_drift(mut self) -> Self {
        self.retake = true;
        self
    }

    /// What to do when the target has an open rollout.
    #[must_use]
    pub const fn if_busy(mut self, busy: Busy) -> Self {
        self.busy = busy;
        self
    }
}

impl Builder {
    /// With this clock instead of the machine's.
    #[must_use]
    pub fn clock(mut self, clock: impl Clock) -> Self {
        self.clock = Arc::new(clock);
        self
    }

    /// How long this process may be silent before others take its rollouts over: 100 milliseconds to an hour, default
    /// 10 seconds. All processes of one store should agree on it; the one that takes over goes by its own.
    #[must_use]
    pub const fn lease(mut self, lease: Duration) -> Self {
        self.lease = lease;
        self
    }

    /// Tells this listener about all rollouts of this engine.
    #[must_use]
    pub fn listener(mut self, listener: impl Listener) -> Self {
        self.listeners.push(Arc::new(listener));
        self
    }

    /// The engine. Needs no runtime yet.
    ///
    /// # Errors
    /// `Invalid` when the lease is out of range; `Internal` when a listener's thread cannot be started.
    pub fn build(self) -> Result<Engine> {
        let range = Duration::from_millis(100)..=Duration::from_secs(3600);
        if !range.contains(&self.lease) {
            return Err(Error::invalid(format!("the lease is {:?}; 100ms to 1h is accepted", self.lease)));
        }
        let inner = Inner {
            store: self.store,
            clock: self.clock,
            driver: self.driver,
            pulse: Pulse::new(self.lease),
            targets: Mutex::default(),
            live: Mutex::default(),
            posts: Mutex::new(posts(self.listeners)?),
            beating: Mutex::default(),
            looking_for_orphans: Mutex::default(),
            stopping: AtomicBool::new(false),
        };
        Ok(Engine { inner: Arc::new(inner) })
    }
}

impl Engine {
    /// How often a call that failed for a passing reason is made before a start is given up.
    const START_TRIES: u32 = 4;
    /// How many rollouts are taken up side by side.
    const CLAIMS: usize = 256;

    /// An engine on this store, to be set up.
    pub fn builder(store: impl Store) -> Builder {
        Builder {
            store: Arc::new(store),
            clock: Arc::new(SystemClock),
            lease: Duration::from_secs(10),
            driver: DriverId::fresh(),
            listeners: Vec::new(),
        }
    }

    /// An engine on this store with the defaults.
    ///
    /// # Errors
    /// As [`Builder::build`].
    pub fn new(store: impl Store) -> Result<Self> {
        Self::builder(store).build()
    }

    /// Registers a target, or replaces it for rollouts that start later.
    ///
    /// # Errors
    /// `Invalid`, naming the gate or hook, when a policy cannot work or a name is used twice.
    pub fn register(&self, mut target: Target) -> Result<()> {
        target.check()?;
        target.posts = posts(std::mem::take(&mut target.listeners))?;
        lock(&self.inner.targets).insert(target.id.clone(), Arc::new(target));
        Ok(())
    }

    /// Starts a rollout. Returns once it is recorded; nothing has changed yet then, and the ways are still to be proved.
    ///
    /// # Errors
    /// All before anything changed. `NotFound`: the target is not registered, or does not exist. `Unsupported`: the
    /// backend cannot express the plan. `Mixed`: its parts serve different revisions, and none was ever promoted here.
    /// `Conflict`: the target has an open rollout, which is named. Else what kept the backend or the store from
    /// answering.
    pub async fn start(&self, new: NewRollout) -> Result<Handle> {
        let inner = Arc::clone(&self.inner);
        // In a task of its own: a caller that stops waiting must not leave a recorded rollout without a driver.
        tokio::spawn(async move { inner.start(new).await })
            .await
            .map_err(|e| Error::new(ErrorKind::Internal, "starting the rollout broke off").because(e))?
    }

    /// Takes up every open rollout of the registered targets that no living process drives. Waits at most one lease, to
    /// see which other processes live. From then on this engine also takes up rollouts whose process dies.
    ///
    /// # Errors
    /// What kept the store from answering.
    pub async fn resume_all(&self) -> Result<Resumed> {
        self.inner.ensure_beating().await?;
        let begun = Instant::now();
        let lease = self.inner.pulse.lease();
        let first = self.inner.open().await?;
        let (mut waiting, mut free, mut resumed) = (Vec::new(), Vec::new(), Resumed::default());
        for claim in first {
            if self.inner.target(&claim.subject).is_none() {
                resumed.unregistered.push(claim);
            } else if claim.driver.as_ref().is_some_and(|driver| *driver != self.inner.driver) {
                waiting.push(claim);
            } else {
                free.push(claim);
            }
        }
        self.claim_all(free, &mut resumed).await;
        while !waiting.is_empty() {
            tokio::time::sleep(self.inner.pulse.interval()).await;
            let now: HashMap<RolloutId, Claim> =
                self.inner.open().await?.into_iter().map(|claim| (claim.id.clone(), claim)).collect();
            waiting.retain(|seen| match now.get(&seen.id) {
                Some(claim) if (&claim.driver, claim.beat) == (&seen.driver, seen.beat) => true,
                Some(claim) => {
                    resumed.elsewhere.push(claim.clone());
                    false
                }
                None => false,
            });
            if begun.elapsed() >= lease {
                self.claim_all(std::mem::take(&mut waiting), &mut resumed).await;
            }
        }
        // Last, because it takes up the same rollouts; an earlier call may have begun it, and then it may have been faster.
        self.inner.look_for_orphans();
        for claim in std::mem::take(&mut resumed.elsewhere) {
            match self.inner.taken_up_here(&claim.id).await {
                Some(live) => resumed.handles.push(Handle::new(live)),
                None => resumed.elsewhere.push(claim),
            }
        }
        resumed.handles.sort_by(|a, b| a.id().cmp(b.id()));
        Ok(resumed)
    }

    /// Takes back what the target's last promoted rollout put there: a rollout with the target's gates to the revision
    /// before it, at once. An open rollout is asked to go back instead. Saying it twice is harmless.
    ///
    /// # Errors
    /// As [`start`](Self::start) and [`ask`](Self::ask).
    pub async fn roll_back(&self, target: &TargetId, by: impl AsRef<str>, reason: impl Into<Note>) -> Result<WayBack> {
        let reason = reason.into();
        let request = Request::new(Ask::Abort, by.as_ref(), reason.clone())?;
        let history = self.inner.store.history(target, Inner::HISTORY).await?;
        if let Some(open) = history.iter().find(|record| record.standing == Standing::Open) {
            self.ask(&open.id, request).await?;
            return Ok(WayBack::Aborting(open.id.clone()));
        }
        let Some(last) = history.iter().find(|record| record.standing == Standing::Promoted) else {
            return Ok(WayBack::Nothing(Note::new(format!("no rollout to {target} was ever promoted"))));
        };
        let last = Rollout::from_record(last)?;
        if last.kind == Kind::Return {
            let why = format!("{target} was taken back to {} already", last.change.candidate.id);
            return Ok(WayBack::Nothing(Note::new(why)));
        }
        let bake = last.plan.steps().last().map_or(Duration::ZERO, |step| step.bake);
        let plan =
            Plan::new([Step::new(crate::model::Weight::ALL, bake)])?.with_deadlines(last.plan.deadlines().clone())?;
        let new = NewRollout {
            author: request.by,
            reason,
            kind: Kind::Return,
            despite_quarantine: Some(Note::new("a person takes the target back to it")),
            ..NewRollout::new(target.as_str(), last.change.baseline.clone(), plan)?
        };
        Ok(WayBack::Started(self.start(new).await?))
    }

    /// Leaves a request for a rollout, wherever it is driven. Driven here, the answer says what came of it; else the
    /// process that drives it hears it within a second or so, and the rollout's log has the answer.
    ///
    /// # Errors
    /// `NotFound` when there is no such rollout; `Conflict` or `Denied` when it was heard and refused.
    pub async fn ask(&self, id: &RolloutId, request: Request) -> Result<Note> {
        if let Some(live) = self.inner.live_one(id) {
            return handle::ask(&live, request).await;
        }
        match self.inner.store.ask(id, &request).await {
            Ok(()) => Ok(Note::new("left in the store; the process that drives the rollout hears it")),
            Err(e) if e.kind() == ErrorKind::Conflict => Ok(Note::new(format!("nothing to do: {e}"))),
            Err(e) => Err(e),
        }
    }

    /// The handle of a rollout that this process drives.
    pub fn handle(&self, id: &RolloutId) -> Option<Handle> {
        self.inner.live_one(id).map(Handle::new)
    }

    /// The rollout as last saved, wherever it is driven.
    ///
    /// # Errors
    /// `NotFound` when there is none of this id; else what kept the store from answering, or its record from being read.
    pub async fn rollout(&self, id: &RolloutId) -> Result<Arc<Rollout>> {
        if let Some(handle) = self.handle(id) {
            return Ok(handle.status());
        }
        let (record, _) = bounded(self.inner.patience(), self.inner.store.load(id)).await?;
        Ok(Arc::new(Rollout::from_record(&record)?))
    }

    /// The open rollout of this target, as last saved, and whether this process drives it. Asks the store only where no
    /// rollout of the target is driven here.
    #[cfg(feature = "receiver")]
    pub(crate) async fn open_rollout(&self, target: &TargetId) -> Result<Option<(Arc<Rollout>, bool)>> {
        let here = || {
            let live = lock(&self.inner.live);
            let mut driven = live.values().flatten().filter(|live| live.target == *target).map(|live| live.saved());
            driven.find(|rollout| rollout.state.is_open())
        };
        if let Some(rollout) = here() {
            return Ok(Some((rollout, true)));
        }
        let Some(claim) = self.inner.open().await?.into_iter().find(|claim| claim.subject == *target) else {
            return Ok(None);
        };
        // It may have been started here while the store was asked.
        match here() {
            Some(rollout) => Ok(Some((rollout, true))),
            None => Ok(Some((self.rollout(&claim.id).await?, claim.driver.as_ref() == Some(&self.inner.driver)))),
        }
    }

    /// The time now, by the engine's clock.
    #[cfg(feature = "receiver")]
    pub(crate) fn now(&self) -> jiff::Timestamp {
        self.inner.clock.now()
    }

    /// How many events listeners were too slow to be told, by this engine and its targets.
    pub fn dropped_events(&self) -> u64 {
        let targets: u64 = lock(&self.inner.targets).values().flat_map(|target| &target.posts).map(Post::dropped).sum();
        targets + lock(&self.inner.posts).iter().map(Post::dropped).sum::<u64>()
    }

    /// Begins nothing more, waits for shifts under way, saves every rollout and lets it go, tells listeners what is
    /// queued; all within `deadline`. Whatever is left then is as after a crash: resumable.
    pub async fn shutdown(&self, deadline: Duration) {
        let until = Instant::now() + deadline;
        self.inner.stopping.store(true, Ordering::Release);
        for live in lock(&self.inner.live).values().flatten() {
            live.bell.ring(crate::wake::Bell::INBOX);
        }
        while !lock(&self.inner.live).is_empty() && Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(10).min(deadline)).await;
        }
        let mut threads: Vec<_> = lock(&self.inner.posts).iter().filter_map(Post::close).collect();
        threads.extend(lock(&self.inner.targets).values().flat_map(|target| &target.posts).filter_map(Post::close));
        // On a thread of its own and not the runtime's: a runtime that ends waits for its threads, and so for a listener
        // that blocks for ever.
        let (told, all_told) = tokio::sync::oneshot::channel();
        let waiting = std::thread::Builder::new().name("rollback-shutdown".into()).spawn(move || {
            for thread in threads {
                // A listener that panics is caught in its thread; a join error has nothing more to say.
                let _ = thread.join();
            }
            let _ = told.send(());
        });
        if waiting.is_ok() {
            let _ = tokio::time::timeout_at(until, all_told).await;
        }
    }

    async fn claim_all(&self, claims: Vec<Claim>, resumed: &mut Resumed) {
        let room = Arc::new(Semaphore::new(Self::CLAIMS));
        let mut claiming = JoinSet::new();
        for claim in claims {
            let (inner, room) = (Arc::clone(&self.inner), Arc::clone(&room));
            claiming.spawn(async move {
                let _place = room.acquire_owned().await;
                let taken = inner.claim(&claim).await;
                (claim, taken)
            });
        }
        while let Some(taken) = claiming.join_next().await {
            match taken {
                Ok((_, Ok(Some(handle)))) => resumed.handles.push(handle),
                Ok((claim, Ok(None))) => resumed.elsewhere.push(claim),
                Ok((claim, Err(e))) => resumed.refused.push((claim.id, e)),
                Err(e) => tracing::error!("taking a rollout up broke off: {e}"),
            }
        }
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").field("inner", &self.inner).finish()
    }
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inner").field("driver", &self.driver).field("store", &self.store).finish_non_exhaustive()
    }
}

/// An id that is reserved while its rollout is created or claimed, so that it gets one driver.
struct Reserved<'a> {
    inner: &'a Inner,
    id: RolloutId,
    kept: bool,
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        if !self.kept {
            lock(&self.inner.live).remove(&self.id);
        }
    }
}

impl Inner {
    /// How much of a target's history is read for quarantine and the last promoted revision.
    const HISTORY: usize = 100;

    pub(crate) fn stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    pub(crate) fn forget(&self, id: &RolloutId) {
        lock(&self.live).remove(id);
    }

    pub(crate) fn tell(&self, target: &Target, event: &RolloutEvent) {
        for post in target.posts.iter().chain(lock(&self.posts).iter()) {
            post.send(event.clone());
        }
    }

    fn target(&self, id: &TargetId) -> Option<Arc<Target>> {
        lock(&self.targets).get(id).cloned()
    }

    fn live_one(&self, id: &RolloutId) -> Option<Arc<Live>> {
        lock(&self.live).get(id).cloned().flatten()
    }

    /// The rollout, if this process drives it or is just taking it up.
    async fn taken_up_here(&self, id: &RolloutId) -> Option<Arc<Live>> {
        loop {
            let entry = lock(&self.live).get(id).cloned()?;
            if entry.is_some() {
                return entry;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn open(&self) -> Result<Vec<Claim>> {
        bounded(self.patience(), self.store.open()).await
    }

    /// How long the store may take to answer a question that no rollout waits for.
    fn patience(&self) -> Duration {
        self.pulse.lease().max(Duration::from_secs(10))
    }

    // ---------------------------------------------------------------------------------------------------------- start

    async fn start(self: Arc<Self>, new: NewRollout) -> Result<Handle> {
        if self.stopping() {
            return Err(Error::new(ErrorKind::Unavailable, "the engine is shutting down"));
        }
        let Some(target) = self.target(&new.target) else {
            let known: Vec<String> = lock(&self.targets).keys().map(TargetId::to_string).collect();
            let known = if known.is_empty() { "none".into() } else { known.join(", ") };
            let why = format!("target {} is not registered; registered are: {known}", new.target);
            return Err(Error::new(ErrorKind::NotFound, why));
        };
        target.capabilities.admit(&new.plan)?;
        self.ensure_beating().await?;
        let give_up = Instant::now() + new.plan.deadlines().roll_back;
        loop {
            match self.try_start(&target, &new).await {
                Err(Started::Busy(open)) if new.busy == Busy::Supersede && Instant::now() < give_up => {
                    self.supersede(&open, &new).await?;
                }
                Err(Started::Busy(open)) => {
                    let why = format!("{} is busy with rollout {open}", new.target);
                    return Err(Error::new(ErrorKind::Conflict, why));
                }
                Err(Started::Failed(e)) => return Err(e),
                Ok(handle) => return Ok(handle),
            }
        }
    }

    async fn try_start(self: &Arc<Self>, target: &Arc<Target>, new: &NewRollout) -> Result<Handle, Started> {
        let history = self.retried("reading the history", || self.store.history(&new.target, Self::HISTORY)).await?;
        if let Some(handle) = self.same(new, &history)? {
            return Ok(handle);
        }
        if let Some(open) = history.iter().find(|record| record.standing == Standing::Open) {
            return Err(Started::Busy(open.id.clone()));
        }
        let past = read(&history);
        let serving =
            self.retried("reading the baseline", || bounded(target.limits.look, target.backend.baseline())).await;
        let (baseline, baseline_from) = way_back(serving, &past)?;
        let refusal = refusal(new, &baseline, baseline_from, &past);
        let rollout = self.rollout(target, new, baseline, baseline_from, refusal);
        self.create(target, rollout).await
    }

    /// The rollout that was started with this id before, if there is one.
    fn same(self: &Arc<Self>, new: &NewRollout, history: &[Record]) -> Result<Option<Handle>> {
        let Some(id) = &new.id else { return Ok(None) };
        if let Some(live) = self.live_one(id) {
            return Ok(Some(Handle::new(live)));
        }
        let Some(record) = history.iter().find(|record| record.id == *id) else { return Ok(None) };
        let rollout = Rollout::from_record(record)?;
        if rollout.state.is_open() {
            let why = format!("rollout {id} was started before and is open: resume it instead of starting it again");
            return Err(Error::new(ErrorKind::Conflict, why));
        }
        Ok(Some(Handle::new(Live::new(Arc::new(rollout)))))
    }

    fn rollout(
        &self,
        target: &Target,
        new: &NewRollout,
        baseline: Revision,
        baseline_from: BaselineFrom,
        refusal: Option<Refusal>,
    ) -> Rollout {
        let wall = self.clock.now();
        let change = Change {
            rollout: new.id.clone().unwrap_or_else(|| RolloutId::fresh(&new.target)),
            target: new.target.clone(),
            baseline,
            candidate: new.candidate.clone(),
        };
        let state = refusal.map_or(State::Preflight, |why| State::Refused { why });
        let deadline = state.allowance(&new.plan).and_then(|time| wall.checked_add(time).ok());
        let mut rollout = Rollout {
            change: Arc::new(change),
            plan: Arc::new(new.plan.clone()),
            author: new.author.clone(),
            reason: new.reason.clone(),
            irreversible: new.irreversible.clone(),
            baseline_from,
            despite_quarantine: new.despite_quarantine.clone(),
            kind: new.kind,
            retake: new.retake,
            created: wall,
            state: state.clone(),
            entered: wall,
            deadline,
            since: wall,
            attempt: None,
            attempt_closed: false,
            unsettled: None,
            inherited: None,
            tries: None,
            weight: None,
            weights: Vec::new(),
            waiting_for: None,
            gates: target.gates.iter().map(|guard| Slot::new(guard.gate.name().clone())).collect(),
            approvals: Vec::new(),
            hooks: BTreeMap::new(),
            readiness: Arc::default(),
            not_restored: Vec::new(),
            times: Times::default(),
            log: Log::default(),
        };
        rollout.note(wall, What::Created);
        rollout.note(wall, What::Entered { to: state });
        rollout
    }

    async fn create(self: &Arc<Self>, target: &Arc<Target>, rollout: Rollout) -> Result<Handle, Started> {
        let record = rollout.to_record(Some(&self.driver), 0)?;
        let Some(mut reserved) = self.reserve(rollout.id()) else {
            let why = format!("rollout {} is being started already", rollout.id());
            return Err(Started::Failed(Error::new(ErrorKind::Conflict, why)));
        };
        let begun = Instant::now();
        // Creating the same record twice is harmless, so a lost answer is simply asked for again.
        let serial = match self.retried("recording the rollout", || self.store.create(&record)).await {
            Ok(serial) => serial,
            Err(e) if e.kind() == ErrorKind::Conflict => {
                let history = self.store.history(&record.subject, Self::HISTORY).await?;
                let open = history.into_iter().find(|other| other.standing == Standing::Open && other.id != record.id);
                return Err(open.map_or_else(|| Started::Failed(e), |open| Started::Busy(open.id)));
            }
            Err(e) => return Err(Started::Failed(e)),
        };
        for Entry { at, what } in rollout.log.iter().cloned() {
            self.tell(target, &RolloutEvent { rollout: Arc::new(rollout.clone()), at, what });
        }
        reserved.kept = true;
        Ok(self.drive(target, rollout, serial, 0, begun))
    }

    /// Asks the open rollout to go back, and waits until it is over. One that is stuck waits for a person, who is not
    /// overruled by the next in line.
    async fn supersede(&self, open: &RolloutId, new: &NewRollout) -> Result<()> {
        let (record, _) = self.retried("reading the open rollout", || self.store.load(open)).await?;
        if Rollout::from_record(&record).is_ok_and(|rollout| matches!(rollout.state, State::Stuck { .. })) {
            let why = format!("rollout {open} is stuck and needs a person: abort it, resume it or give it up first");
            return Err(Error::new(ErrorKind::Conflict, why));
        }
        let reason = format!("superseded by {} of {}", new.candidate.id, new.author);
        let request = Request { ask: Ask::Abort, by: new.author.clone(), reason: Note::new(reason) };
        if let Some(live) = self.live_one(open) {
            handle::ask(&live, request).await?;
        } else {
            match self.store.ask(open, &request).await {
                Err(e) if e.kind() != ErrorKind::Conflict => return Err(e),
                _ => {}
            }
        }
        let give_up = Instant::now() + new.plan.deadlines().roll_back;
        loop {
            let (record, _) = self.retried("waiting for the open rollout", || self.store.load(open)).await?;
            if record.standing != Standing::Open {
                return Ok(());
            }
            let stuck = Rollout::from_record(&record).is_ok_and(|rollout| rollout.state.is_at_rest());
            if stuck || Instant::now() >= give_up {
                let why = format!("rollout {open} could not be rolled back first; it needs a person");
                return Err(Error::new(ErrorKind::Conflict, why));
            }
            tokio::time::sleep(self.pulse.interval() / 4).await;
        }
    }

    /// A call that changes nothing when repeated, made again after a passing failure.
    async fn retried<T, F: Future<Output = Result<T>> + Send>(
        &self,
        what: &str,
        call: impl Fn() -> F + Send + Sync,
    ) -> Result<T> {
        let mut pause = Duration::from_millis(100);
        let mut tries = 1;
        loop {
            match bounded(Duration::from_secs(30), call()).await {
                Err(e) if (e.is_transient() || e.kind() == ErrorKind::Internal) && tries < Engine::START_TRIES => {
                    tokio::time::sleep(pause.max(e.retry_after().unwrap_or_default())).await;
                    tries += 1;
                    pause *= 4;
                }
                Err(e) if e.kind() == ErrorKind::Conflict => return Err(e),
                Err(e) => return Err(e.during(what)),
                Ok(done) => return Ok(done),
            }
        }
    }

    // ---------------------------------------------------------------------------------------------------------- drive

    fn reserve(&self, id: &RolloutId) -> Option<Reserved<'_>> {
        let mut live = lock(&self.live);
        if live.contains_key(id) {
            return None;
        }
        live.insert(id.clone(), None);
        Some(Reserved { inner: self, id: id.clone(), kept: false })
    }

    fn drive(
        self: &Arc<Self>,
        target: &Arc<Target>,
        rollout: Rollout,
        serial: Serial,
        heard: u64,
        proof: Instant,
    ) -> Handle {
        let rollout = Arc::new(rollout);
        let live = Live::new(Arc::clone(&rollout));
        let handle = Handle::new(Arc::clone(&live));
        if !rollout.state.is_open() {
            self.forget(rollout.id());
            return handle;
        }
        lock(&self.live).insert(rollout.id().clone(), Some(Arc::clone(&live)));
        let span = tracing::info_span!("rollout", rollout = %rollout.id(), target = %target.id);
        let driver = Driver::new(Arc::clone(self), Arc::clone(target), live, rollout, serial, heard, proof);
        tokio::spawn(Box::new(driver).run().instrument(span));
        handle
    }

    /// Takes up a rollout whose driver is gone. `None` when somebody else was faster, or it is over.
    async fn claim(self: &Arc<Self>, claim: &Claim) -> Result<Option<Handle>> {
        let Some(target) = self.target(&claim.subject) else { return Ok(None) };
        let Some(mut reserved) = self.reserve(&claim.id) else {
            return Ok(self.live_one(&claim.id).map(Handle::new));
        };
        let (record, serial) = self.retried("reading the rollout", || self.store.load(&claim.id)).await?;
        if record.standing != Standing::Open || record.driver != claim.driver {
            return Ok(None);
        }
        let mut rollout = Rollout::from_record(&record)?;
        align(&mut rollout, &target)?;
        let wall = self.clock.now();
        rollout.note(wall, What::Claimed { driver: self.driver.clone() });
        if record.driver.is_some() {
            rollout.inherited = Some(wall);
        }
        let begun = Instant::now();
        let mine = rollout.to_record(Some(&self.driver), record.heard)?;
        let serial = match bounded(Duration::from_secs(30), self.store.update(&mine, serial)).await {
            Ok(serial) => serial,
            Err(e) if e.kind() == ErrorKind::Conflict => return Ok(None),
            // It may have landed: the record then names us, and the next search for orphans takes it up.
            Err(e) => return Err(e.during("taking the rollout up")),
        };
        let what = What::Claimed { driver: self.driver.clone() };
        self.tell(&target, &RolloutEvent { rollout: Arc::new(rollout.clone()), at: wall, what });
        reserved.kept = true;
        Ok(Some(self.drive(&target, rollout, serial, record.heard, begun)))
    }

    // ---------------------------------------------------------------------------------------------------------- pulse

    /// The first beat, and the task that goes on with it.
    async fn ensure_beating(self: &Arc<Self>) -> Result<()> {
        if is_running(&lock(&self.beating)) {
            return Ok(());
        }
        self.retried("telling the store that this process lives", || self.beat()).await?;
        let mut beating = lock(&self.beating);
        if !is_running(&beating) {
            *beating = Some(tokio::spawn(Self::go_on_beating(Arc::downgrade(self))));
        }
        Ok(())
    }

    async fn go_on_beating(inner: Weak<Self>) {
        while let Some(inner) = inner.upgrade().filter(|inner| !inner.is_done()) {
            if let Err(e) = inner.beat().await {
                tracing::warn!("the store did not hear that this process lives: {}", e.chain());
            }
            let pause = inner.pulse.interval();
            drop(inner);
            tokio::time::sleep(pause).await;
        }
    }

    /// In a task of its own: however long it takes to take a rollout up, the beat goes on.
    fn look_for_orphans(self: &Arc<Self>) {
        let mut looking = lock(&self.looking_for_orphans);
        if !is_running(&looking) {
            *looking = Some(tokio::spawn(Self::go_on_looking(Arc::downgrade(self))));
        }
    }

    async fn go_on_looking(inner: Weak<Self>) {
        let mut seen = HashMap::new();
        while let Some(inner) = inner.upgrade().filter(|inner| !inner.stopping()) {
            inner.adopt(&mut seen).await;
            let pause = inner.pulse.lease() / 4;
            drop(inner);
            tokio::time::sleep(pause).await;
        }
    }

    fn is_done(&self) -> bool {
        self.stopping() && lock(&self.live).is_empty()
    }

    async fn beat(&self) -> Result<()> {
        let (begun, wall) = (Instant::now(), self.clock.now());
        let asked = bounded(self.pulse.lease() / 2, self.store.beat(&self.driver)).await?;
        if self.pulse.heard(begun, wall) {
            // Others may have taken for dead what was silent: every driver asks its record.
            for live in lock(&self.live).values().flatten() {
                live.bell.ring(crate::wake::Bell::INBOX);
            }
        }
        for (id, asked) in asked {
            if let Some(live) = self.live_one(&id) {
                live.ask(Asking { number: Some(asked.number), request: asked.request, reply: None });
            }
        }
        Ok(())
    }

    /// Takes up rollouts whose driver has not beaten for the lease, by our own clock. `seen` holds the claims of others
    /// and since when their driver has not beaten.
    async fn adopt(self: &Arc<Self>, seen: &mut HashMap<RolloutId, (Claim, Instant)>) {
        let open = match self.open().await {
            Ok(open) => open,
            Err(e) => return tracing::warn!("the store did not list the open rollouts: {}", e.chain()),
        };
        let now = Instant::now();
        let mut before = std::mem::take(seen);
        for claim in open {
            if lock(&self.live).contains_key(&claim.id) || self.target(&claim.subject).is_none() {
                continue;
            }
            let mine = claim.driver.as_ref().is_none_or(|driver| *driver == self.driver);
            let since = match before.remove(&claim.id) {
                Some((same, since)) if same == claim => since,
                _ => now,
            };
            if !mine && now.saturating_duration_since(since) < self.pulse.lease() {
                seen.insert(claim.id.clone(), (claim, since));
                continue;
            }
            match self.claim(&claim).await {
                Ok(Some(_)) => tracing::info!(rollout = %claim.id, "taken up after its driver went silent"),
                Ok(None) => {}
                Err(e) => tracing::warn!(rollout = %claim.id, "cannot be taken up: {}", e.chain()),
            }
        }
    }
}

fn is_running(task: &Option<JoinHandle<()>>) -> bool {
    task.as_ref().is_some_and(|task| !task.is_finished())
}

/// Why a rollout was not started.
enum Started {
    Busy(RolloutId),
    Failed(Error),
}

impl From<Error> for Started {
    fn from(e: Error) -> Self {
        Self::Failed(e)
    }
}

/// The history that can be read, newest first. A record of an unknown format cannot condemn or restore anything.
fn read(history: &[Record]) -> Vec<Rollout> {
    let readable = history.iter().map(Rollout::from_record);
    readable
        .filter_map(|rollout| rollout.inspect_err(|e| tracing::warn!("passed over in the history: {}", e.chain())).ok())
        .collect()
}

/// The rollout that found this revision bad, unless it was promoted since.
fn quarantine<'a>(revision: &RevisionId, past: &'a [Rollout]) -> Option<(&'a Rollout, Note)> {
    for rollout in past.iter().filter(|rollout| rollout.change.candidate.id == *revision) {
        match &rollout.state {
            State::Promoted => return None,
            State::RolledBack { cause } if cause.condemns_the_candidate() => {
                return Some((rollout, Note::new(cause.to_string())));
            }
            _ => {}
        }
    }
    None
}

/// P11: the way back is what serves alone; if that is mixed or quarantined, the last one promoted.
fn way_back(serving: Result<Revision>, past: &[Rollout]) -> Result<(Revision, BaselineFrom)> {
    let promoted =
        || past.iter().find(|rollout| rollout.state == State::Promoted).map(|rollout| &rollout.change.candidate);
    match serving {
        Ok(baseline) => match quarantine(&baseline.id, past).and_then(|_| promoted()) {
            Some(last) if last.id != baseline.id => Ok((last.clone(), BaselineFrom::LastPromoted)),
            _ => Ok((baseline, BaselineFrom::Target)),
        },
        Err(e) if e.kind() == ErrorKind::Mixed => match promoted() {
            Some(last) => Ok((last.clone(), BaselineFrom::LastPromoted)),
            None => {
                Err(e.during("there is no revision to go back to: none was promoted here, and the target is mixed"))
            }
        },
        Err(e) => Err(e),
    }
}

fn refusal(new: &NewRollout, baseline: &Revision, from: BaselineFrom, past: &[Rollout]) -> Option<Refusal> {
    if from == BaselineFrom::Target && baseline.id == new.candidate.id {
        return Some(Refusal::AlreadyServes);
    }
    if new.despite_quarantine.is_some() {
        return None;
    }
    quarantine(&new.candidate.id, past).map(|(found, why)| Refusal::Quarantined { by: found.id().clone(), why })
}

/// Brings the record's gates in line with the target's. A gate that guarded the rollout and is gone is an error, unless
/// nothing is to be judged any more.
fn align(rollout: &mut Rollout, target: &Target) -> Result<()> {
    let mut recorded = std::mem::take(&mut rollout.gates);
    for guard in &target.gates {
        let at = recorded.iter().position(|slot| slot.name == *guard.gate.name());
        rollout.gates.push(at.map_or_else(|| Slot::new(guard.gate.name().clone()), |at| recorded.swap_remove(at)));
    }
    let judged = !matches!(rollout.state, State::RollingBack { .. });
    if let Some(gone) = recorded.iter().find(|slot| slot.counts() && judged) {
        return Err(Error::invalid(format!(
            "rollout {} is guarded by gate {}, which target {} no longer has; register the target with it, and skip it \
             there if it is not wanted",
            rollout.id(),
            gone.name,
            target.id
        )));
    }
    Ok(())
}

fn posts(listeners: Vec<Arc<dyn Listener>>) -> Result<Vec<Post>> {
    listeners
        .into_iter()
        .map(|listener| {
            Post::new(listener)
                .map_err(|e| Error::new(ErrorKind::Internal, "a listener's thread cannot be started").because(e))
        })
        .collect()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
