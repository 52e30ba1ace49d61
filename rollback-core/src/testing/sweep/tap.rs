//! The taps: a backend and a store between the engine and the real ones, where every call is seen and can go wrong.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};

use super::{
    Disturbance, Fault, Ran, rollout_id,
    trace::{Line, Trace, What},
};
use crate::{
    backend::{Capabilities, DeploymentBackend, Readiness},
    clock::Clock as _,
    error::{Error, ErrorKind, Result},
    model::{Attempt, Change, DriverId, Goal, Observed, Revision, RolloutId, Serial, TargetId, Version},
    plan::Plan,
    request::Request,
    rollout::Rollout,
    state::{Versions, settles},
    store::{Asked, Claim, Record, Store},
    testing::clock::TestClock,
    wake::Wake,
};

/// What all processes of a run share: the store, the clock, the trouble and the trace.
pub(super) struct World {
    store: Arc<dyn Store>,
    versions: Versions,
    clock: TestClock,
    born: Instant,
    disturbance: Option<Disturbance>,
    /// How the first shifts to the baseline are answered.
    refusals: Vec<ErrorKind>,
    looks_take: Duration,
    seen: Mutex<Seen>,
    gone: mpsc::UnboundedSender<Gone>,
    over: watch::Sender<bool>,
}

/// A process that needs a successor.
#[derive(Clone, Copy, Debug)]
pub(super) enum Gone {
    Dead(usize),
    Stopped,
}

pub(super) type Fallen = mpsc::UnboundedReceiver<Gone>;

#[derive(Default)]
struct Seen {
    trace: Vec<Line>,
    /// The point at which each side effect was entered.
    points: Vec<usize>,
    /// Side effects entered and looks made.
    all_points: usize,
    looks_begun: usize,
    refused: usize,
    late: Option<(Option<usize>, usize, usize, Call)>,
    away_until: Option<Instant>,
    /// Shifts since the store went away.
    shifts_away: usize,
}

/// A process's way to the world: cut when it dies, held up while it is stopped.
#[derive(Clone)]
pub(super) struct Link {
    world: Arc<World>,
    number: usize,
    life: Arc<watch::Sender<Life>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Life {
    Lives,
    StoppedUntil(Instant),
    Dead,
}

/// A side effect that can be made at any time, once or twice, by whoever holds it.
#[derive(Clone)]
enum Call {
    Shift { backend: Arc<dyn DeploymentBackend>, change: Change, goal: Goal, attempt: Attempt },
    Create { record: Record },
    Update { record: Record, expected: Serial },
}

impl World {
    pub(super) fn new(
        store: Arc<dyn Store>,
        capabilities: &Capabilities,
        disturbance: Option<Disturbance>,
        refusals: &[ErrorKind],
        looks_take: Duration,
    ) -> (Arc<Self>, Fallen) {
        let (gone, fallen) = mpsc::unbounded_channel();
        let world = Self {
            store,
            versions: capabilities.versions,
            clock: TestClock::new(),
            born: Instant::now(),
            disturbance,
            refusals: refusals.to_vec(),
            looks_take,
            seen: Mutex::default(),
            gone,
            over: watch::Sender::new(false),
        };
        (Arc::new(world), fallen)
    }

    /// A new process.
    pub(super) fn process(self: &Arc<Self>, number: usize) -> Link {
        self.tell(number, What::Began);
        Link { world: Arc::clone(self), number, life: Arc::new(watch::Sender::new(Life::Lives)) }
    }

    pub(super) fn tell(&self, process: usize, what: What) {
        let at = self.born.elapsed();
        self.seen().trace.push(Line { at, process, what });
    }

    pub(super) fn trace(&self) -> Trace {
        Trace(self.seen().trace.clone())
    }

    /// Looks of several calls may end in another order than they began.
    fn look_begins(&self) -> usize {
        let mut seen = self.seen();
        seen.looks_begun += 1;
        seen.looks_begun
    }

    pub(super) fn effects(&self) -> usize {
        self.seen().points.len()
    }

    pub(super) fn ran(&self, rollout: Arc<Rollout>) -> Ran {
        let seen = self.seen();
        let shifts = seen.trace.iter().filter_map(|line| match line.what {
            What::Entered { number, goal, .. } => Some((number, goal)),
            _ => None,
        });
        Ran {
            rollout,
            effects: seen.points.len(),
            shifts: shifts.collect(),
            points: seen.points.clone(),
            all_points: seen.all_points,
            #[cfg(test)]
            trace: Trace(seen.trace.clone()),
        }
    }

    /// Lets the dead go: their calls, which hang, end.
    pub(super) fn over(&self) {
        self.over.send_replace(true);
    }

    /// What has not landed yet lands now.
    pub(super) async fn land_the_rest(&self) {
        let late = self.seen().late.take();
        self.land(late).await;
    }

    /// A point in time at which a late call may land.
    async fn point(&self) -> usize {
        let (point, late) = {
            let mut seen = self.seen();
            let point = seen.all_points;
            seen.all_points += 1;
            let due = seen.late.as_ref().is_some_and(|(at, ..)| at.is_some_and(|at| at <= point));
            (point, if due { seen.late.take() } else { None })
        };
        self.land(late).await;
        point
    }

    async fn land(&self, late: Option<(Option<usize>, usize, usize, Call)>) {
        let Some((_, number, process, call)) = late else { return };
        if let (Call::Shift { attempt, .. }, Versions::Unchecked { settle }) = (&call, self.versions)
            && self.clock.now() >= settles(attempt, settle)
        {
            // The window that remains on such a platform: what it says never to land does not.
            return;
        }
        // Nobody waits for the answer.
        let _ = self.make(number, process, &call, true).await;
    }

    /// Makes the call, and writes down what came of it.
    async fn make(&self, number: usize, process: usize, call: &Call, late: bool) -> Result<Serial> {
        match call {
            Call::Shift { backend, change, goal, attempt } => {
                let before = self.version(&**backend, change, *goal).await;
                let answer = backend.shift(change, *goal, attempt).await;
                let stale = before.is_some_and(|before| before != attempt.version);
                let told = answer.as_ref().copied().map_err(Error::kind);
                let (goal, nonce) = (*goal, attempt.nonce.clone());
                self.tell(process, What::Landed { number, goal, nonce, late, stale, answer: told });
                answer.map(|()| Serial(0))
            }
            Call::Create { record } => {
                let answer = self.store.create(record).await;
                self.saved(number, process, record, None, None, late, &answer);
                answer
            }
            Call::Update { record, expected } => {
                let current = self.store.load(&record.id).await.ok().map(|(_, serial)| serial);
                let answer = self.store.update(record, *expected).await;
                self.saved(number, process, record, Some(*expected), current, late, &answer);
                answer
            }
        }
    }

    #[expect(clippy::too_many_arguments, reason = "one line of the trace")]
    fn saved(
        &self,
        number: usize,
        process: usize,
        record: &Record,
        expected: Option<Serial>,
        current: Option<Serial>,
        late: bool,
        answer: &Result<Serial>,
    ) {
        let what = match answer {
            Ok(serial) => {
                let rollout =
                    Rollout::from_record(record).unwrap_or_else(|e| panic!("the engine wrote: {}", e.chain()));
                What::Saved { number, serial: *serial, expected, current, late, rollout: Arc::new(rollout) }
            }
            Err(e) => What::NotSaved { number, late, why: e.kind() },
        };
        self.tell(process, what);
    }

    /// The target's version, where it means something.
    async fn version(&self, backend: &dyn DeploymentBackend, change: &Change, goal: Goal) -> Option<Version> {
        if self.versions != Versions::Checked {
            return None;
        }
        backend.observe(change, goal, None).await.ok().map(|look| look.version)
    }

    fn is_away(&self) -> bool {
        self.seen().away_until.is_some_and(|until| Instant::now() < until)
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Link {
    pub(super) fn clock(&self) -> TestClock {
        self.world.clock.clone()
    }

    pub(super) fn store(&self) -> Arc<dyn Store> {
        Arc::clone(&self.world.store)
    }

    pub(super) fn tell(&self, what: What) {
        if *self.life.borrow() != Life::Dead {
            self.world.tell(self.number, what);
        }
    }

    /// What every call of a process must get through. A dead process's calls hang until the run is over.
    async fn pass(&self) -> Result<()> {
        self.lives().await?;
        let stopped = match *self.life.borrow() {
            Life::StoppedUntil(until) => Some(until),
            Life::Lives | Life::Dead => None,
        };
        if let Some(until) = stopped {
            tokio::time::sleep_until(until).await;
            self.life.send_if_modified(|life| {
                let wakes = *life == Life::StoppedUntil(until);
                if wakes {
                    *life = Life::Lives;
                }
                wakes
            });
            self.lives().await?;
        }
        Ok(())
    }

    async fn lives(&self) -> Result<()> {
        if *self.life.borrow() == Life::Dead {
            return Err(self.hang().await);
        }
        Ok(())
    }

    async fn hang(&self) -> Error {
        // The sender is in the world, which we hold.
        let _ = self.world.over.subscribe().wait_for(|over| *over).await;
        Error::new(ErrorKind::NotFound, "the run is over")
    }

    async fn die(&self) -> Error {
        self.world.tell(self.number, What::Died);
        self.life.send_replace(Life::Dead);
        // Nobody hears it only when the run is over.
        let _ = self.world.gone.send(Gone::Dead(self.number));
        self.hang().await
    }

    fn stop(&self, time: Duration) {
        self.world.tell(self.number, What::Stopped);
        self.life.send_replace(Life::StoppedUntil(Instant::now() + time));
        let _ = self.world.gone.send(Gone::Stopped);
    }

    /// An effect-free call of the store.
    async fn read<T>(&self, call: impl Future<Output = Result<T>> + Send) -> Result<T> {
        self.pass().await?;
        if self.world.is_away() {
            return Err(away());
        }
        let answer = call.await;
        self.pass().await?;
        answer
    }

    /// A side effect, with whatever goes wrong with it.
    async fn effect(&self, call: Call) -> Result<Serial> {
        self.lives().await?;
        let world = &self.world;
        let point = world.point().await;
        let number = {
            let mut seen = world.seen();
            seen.points.push(point);
            seen.points.len() - 1
        };
        self.tell(match &call {
            Call::Shift { goal, attempt, .. } => What::Entered { number, goal: *goal, attempt: attempt.clone() },
            Call::Create { .. } | Call::Update { .. } => What::Writing { number },
        });
        let fault = world.disturbance.filter(|it| it.at == number).map(|it| it.fault);
        match fault {
            Some(Fault::CrashBefore) => return Err(self.die().await),
            Some(Fault::Stopped(time)) => self.stop(time),
            Some(Fault::StoreAway(time)) => world.seen().away_until = Some(Instant::now() + time),
            Some(Fault::StoreAwayThenCrash { .. }) => {
                world.seen().away_until = Some(Instant::now() + Duration::from_secs(25));
            }
            _ => {}
        }
        self.pass().await?;
        let answer = match fault {
            Some(Fault::Fail(kind)) => Err(Error::new(kind, "it fails, by the sweep")),
            Some(Fault::LandLate(at)) => {
                world.seen().late = Some((at, number, self.number, call));
                Err(lost())
            }
            _ => self.reach(number, &call, fault).await,
        };
        self.pass().await?;
        self.tell(What::Answered { number, answer: answer.as_ref().map(|_| ()).map_err(Error::kind) });
        answer
    }

    /// The call reaches the other side, unless that is away or refuses it by script.
    async fn reach(&self, number: usize, call: &Call, fault: Option<Fault>) -> Result<Serial> {
        let world = &self.world;
        let is_shift = matches!(call, Call::Shift { .. });
        let mut dies_after = fault == Some(Fault::CrashAfter);
        if world.is_away() {
            if !is_shift {
                return Err(away());
            }
            if let Some(Disturbance { fault: Fault::StoreAwayThenCrash { shifts, landed }, .. }) = world.disturbance {
                let nth = {
                    let mut seen = world.seen();
                    seen.shifts_away += 1;
                    seen.shifts_away
                };
                if nth == shifts && !landed {
                    return Err(self.die().await);
                }
                dies_after |= nth == shifts;
            }
        }
        if let Call::Shift { goal: Goal::Baseline, .. } = call {
            let refusal = {
                let mut seen = world.seen();
                seen.refused += 1;
                world.refusals.get(seen.refused - 1).copied()
            };
            if let Some(kind) = refusal {
                if dies_after {
                    return Err(self.die().await);
                }
                return Err(Error::new(kind, "the rollback fails for a while, by the scenario"));
            }
        }
        let mut answer = world.make(number, self.number, call, false).await;
        if fault == Some(Fault::Repeat) {
            answer = world.make(number, self.number, call, false).await;
        }
        if dies_after {
            return Err(self.die().await);
        }
        if fault == Some(Fault::LoseAnswer) { Err(lost()) } else { answer }
    }
}

/// A backend or a store with a tap on it.
pub(super) struct Tapped<T: ?Sized> {
    link: Link,
    inner: Arc<T>,
}

impl<T: ?Sized> Tapped<T> {
    pub(super) const fn new(link: Link, inner: Arc<T>) -> Self {
        Self { link, inner }
    }
}

impl<T: fmt::Debug + ?Sized> fmt::Debug for Tapped<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tapped").field("process", &self.link.number).field("inner", &self.inner).finish()
    }
}

#[async_trait]
impl DeploymentBackend for Tapped<dyn DeploymentBackend> {
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    async fn baseline(&self) -> Result<Revision> {
        self.link.pass().await?;
        let answer = self.inner.baseline().await;
        self.link.pass().await?;
        answer
    }

    async fn preflight(&self, change: &Change, plan: &Plan) -> Result<Readiness> {
        self.link.pass().await?;
        let answer = self.inner.preflight(change, plan).await;
        self.link.pass().await?;
        answer
    }

    async fn observe<'a>(&self, change: &Change, goal: Goal, last: Option<&'a Attempt>) -> Result<Observed> {
        self.link.pass().await?;
        let begun = self.link.world.look_begins();
        let look = self.inner.observe(change, goal, last).await;
        self.link.lives().await?;
        self.link.tell(What::Looked {
            begun,
            goal,
            progress: look.as_ref().map(|look| look.progress.clone()).map_err(Error::kind),
            weight: look.as_ref().ok().and_then(|look| look.weight),
            repeatable: look.as_ref().is_ok_and(|look| look.repeatable),
            landed: last.filter(|_| look.as_ref().is_ok_and(|look| look.landed)).map(|last| last.nonce.clone()),
        });
        // The worst that a late call can do: land when the look is over and not yet heard of.
        self.link.world.point().await;
        if !self.link.world.looks_take.is_zero() {
            tokio::time::sleep(self.link.world.looks_take).await;
        }
        self.link.pass().await?;
        look
    }

    async fn shift(&self, change: &Change, goal: Goal, attempt: &Attempt) -> Result<()> {
        let backend = Arc::clone(&self.inner);
        let call = Call::Shift { backend, change: change.clone(), goal, attempt: attempt.clone() };
        self.link.effect(call).await.map(|_| ())
    }

    fn attach(&self, wake: Wake) {
        self.inner.attach(wake);
    }
}

#[async_trait]
impl Store for Tapped<dyn Store> {
    async fn create(&self, record: &Record) -> Result<Serial> {
        debug_assert_eq!(record.id, rollout_id(), "a sweep runs one rollout");
        self.link.effect(Call::Create { record: record.clone() }).await
    }

    async fn load(&self, id: &RolloutId) -> Result<(Record, Serial)> {
        self.link.read(self.inner.load(id)).await
    }

    async fn update(&self, record: &Record, expected: Serial) -> Result<Serial> {
        self.link.effect(Call::Update { record: record.clone(), expected }).await
    }

    async fn open(&self) -> Result<Vec<Claim>> {
        self.link.read(self.inner.open()).await
    }

    async fn history(&self, subject: &TargetId, limit: usize) -> Result<Vec<Record>> {
        self.link.read(self.inner.history(subject, limit)).await
    }

    async fn beat(&self, driver: &DriverId) -> Result<Vec<(RolloutId, Asked)>> {
        self.link.read(self.inner.beat(driver)).await
    }

    async fn ask(&self, id: &RolloutId, request: &Request) -> Result<()> {
        self.link.read(self.inner.ask(id, request)).await
    }
}

fn lost() -> Error {
    Error::new(ErrorKind::Unavailable, "the answer was lost, by the sweep")
}

fn away() -> Error {
    Error::new(ErrorKind::Unavailable, "the store is away, by the sweep")
}
