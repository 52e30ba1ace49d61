//! What the benches have in common: a fleet of live rollouts on backends that cost nothing, and figures of what was timed.

use std::{
    collections::BTreeMap,
    future::ready,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use rollback_core::{
    Error, ErrorKind, Result,
    backend::{Capabilities, DeploymentBackend, Readiness},
    engine::{Engine, Handle, NewRollout, Target},
    gate::{self, Evidence, HealthGate, Policy, Signal, Verdict},
    model::{Attempt, Change, Effect, Goal, Observed, Progress, Revision, RolloutId, TargetId, Version, Weight},
    plan::Plan,
    rollout::Rollout,
    state::State,
    store::Store,
};
use tokio::{
    runtime::Runtime,
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    task::JoinSet,
    time::Instant,
};

/// Two workers, whatever the machine has: the promises are about two cores.
///
/// # Panics
/// When the system gives no threads.
pub fn two_cores() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime")
}

/// Whether cargo asked for figures. `cargo test --benches` runs the benches too, only to see that they run.
pub fn measures() -> bool {
    std::env::args().any(|arg| arg == "--bench")
}

/// Whether a short run was asked for, with fewer and smaller measurements: `cargo bench -p rollback-benches -- --quick`.
pub fn quick() -> bool {
    std::env::args().any(|arg| arg == "--quick")
}

/// A snapshot with 1 KiB of JSON, as text of a deployment: keys and short values.
pub fn snapshot() -> BTreeMap<String, String> {
    let mut snapshot: BTreeMap<_, _> = (0..24).map(|n| (format!("SETTING_{n:02}"), "v".repeat(24))).collect();
    let rest = 1024 - serde_json::to_string(&snapshot).expect("a map of texts is JSON").len();
    snapshot.entry("SETTING_00".into()).and_modify(|value| value.extend(std::iter::repeat_n('v', rest)));
    snapshot
}

/// When a shift back to the baseline was entered, and on which target.
pub type Entered = (TargetId, Instant);

/// A target in memory that checks versions, and moves as soon as it is asked to.
#[derive(Debug)]
struct Plain {
    stands: Mutex<Stands>,
    entered: UnboundedSender<Entered>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Stands {
    version: u32,
    weight: u8,
}

impl Plain {
    fn stands(&self) -> MutexGuard<'_, Stands> {
        self.stands.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn version(number: u32) -> Version {
    Version::try_from(number.to_string()).expect("digits")
}

fn weight_of(goal: Goal) -> u8 {
    match goal {
        Goal::Split(weight) => weight.percent(),
        Goal::Candidate => 100,
        Goal::Baseline => 0,
    }
}

#[async_trait]
impl DeploymentBackend for Plain {
    fn capabilities(&self) -> Capabilities {
        Capabilities::full()
    }

    async fn baseline(&self) -> Result<Revision> {
        Revision::new("v1")?.with_spec(&snapshot())
    }

    async fn preflight(&self, _: &Change, _: &Plan) -> Result<Readiness> {
        Ok(Readiness::default().proved("may be shifted"))
    }

    async fn observe<'a>(&self, _: &Change, goal: Goal, last: Option<&'a Attempt>) -> Result<Observed> {
        let now = *self.stands();
        let current = version(now.version);
        let unspent = last.is_some_and(|last| last.version == current);
        let progress = if now.weight == weight_of(goal) && !unspent {
            Progress::Reached
        } else {
            Progress::Due(Effect::new(format!("set weight to {} %", weight_of(goal))))
        };
        Ok(Observed::new(progress, current).weight(Weight::try_from(now.weight)?).landed(last.is_some() && !unspent))
    }

    async fn shift(&self, change: &Change, goal: Goal, attempt: &Attempt) -> Result<()> {
        let at = Instant::now();
        if goal == Goal::Baseline {
            // Nobody listens where only starts are measured.
            let _ = self.entered.send((change.target.clone(), at));
        }
        let mut stands = self.stands();
        if attempt.version != version(stands.version) {
            return Err(Error::new(ErrorKind::Conflict, "the target has moved on"));
        }
        *stands = Stands { version: stands.version + 1, weight: weight_of(goal) };
        Ok(())
    }
}

/// Targets with three gates each, one of them a signal, and an engine that may run a rollout on every one of them.
#[derive(Debug)]
pub struct Fleet {
    /// Runs them.
    pub engine: Engine,
    entered: UnboundedReceiver<Entered>,
    told: UnboundedSender<Entered>,
    targets: Vec<(Arc<Plain>, Signal)>,
    tripped: usize,
    policy: Policy,
    beside: Option<Beside>,
}

/// Makes one more gate for the target of this name.
type Beside = fn(&str) -> Arc<dyn HealthGate>;

impl Fleet {
    /// None yet, recorded in this store. Gates are asked as by default.
    ///
    /// # Panics
    /// When the engine cannot be set up.
    pub fn new(store: impl Store) -> Self {
        let (told, entered) = unbounded_channel();
        let engine = Engine::new(store).expect("an engine");
        Self { engine, entered, told, targets: Vec::new(), tripped: 0, policy: Policy::default(), beside: None }
    }

    /// With one gate more a target.
    #[must_use]
    pub const fn beside(mut self, gate: Beside) -> Self {
        self.beside = Some(gate);
        self
    }

    /// With gates that are asked this often.
    #[must_use]
    pub fn asked_every(mut self, interval: Duration) -> Self {
        self.policy = self.policy.every(interval);
        self
    }

    /// Registers so many more targets.
    ///
    /// # Panics
    /// When a target is refused.
    pub fn register(&mut self, targets: usize) {
        for _ in 0..targets {
            let plain = Plain { stands: Mutex::default(), entered: self.told.clone() };
            self.enlist(Arc::new(plain));
        }
    }

    /// The same targets as another process sees them, whose engine uses this store.
    ///
    /// # Panics
    /// As [`Self::new`] and [`Self::register`].
    #[must_use]
    pub fn restarted(self, store: impl Store) -> Self {
        let mut again = Self { policy: self.policy, beside: self.beside, ..Self::new(store) };
        for (plain, _) in self.targets {
            again.enlist(plain);
        }
        again
    }

    fn enlist(&mut self, plain: Arc<Plain>) {
        let (alarms, signal) = gate::signal("alarms").expect("a gate");
        let name = name(self.targets.len());
        let mut target = Target::new(name.as_str(), Arc::clone(&plain))
            .expect("a target")
            .gate(alarms.silence_is_healthy(), self.policy)
            .gate(cheap("errors"), self.policy)
            .gate(cheap("latency"), self.policy);
        if let Some(beside) = self.beside {
            target = target.gate(beside(&name), self.policy);
        }
        self.engine.register(target).expect("a target that can work");
        self.targets.push((plain, signal));
    }

    /// Registers so many targets and starts a rollout on each, for [`Self::trip_oldest`].
    ///
    /// # Panics
    /// As [`Self::start`].
    pub async fn live(&mut self, targets: usize) {
        let first = self.targets.len();
        self.register(targets);
        self.start(first..first + targets).await;
        self.judged(first..first + targets).await;
    }

    /// Trips the rollout that has been live for longest, and starts another one in its place. Says how long it took from
    /// the push until the shift back was entered.
    ///
    /// # Panics
    /// When the rollout does not go back, or none can be started.
    pub async fn trip_oldest(&mut self) -> Duration {
        let took = self.trip(self.tripped).await;
        self.tripped += 1;
        // Not `live`: what a gate says without changing its mind is seen only with the next save, up to 15 seconds later.
        let next = self.targets.len();
        self.register(1);
        self.start(next..next + 1).await;
        took
    }

    /// The rollout on this target.
    ///
    /// # Panics
    /// When it has none.
    pub fn status(&self, target: usize) -> Arc<Rollout> {
        self.engine.handle(&id(target)).expect("a live rollout").status()
    }

    /// Starts rollouts on these targets, some at a time, and waits until all of them bake. Their gates have been judged
    /// then, and the record says so.
    ///
    /// # Panics
    /// When one of them is refused or ends.
    pub async fn start(&self, targets: std::ops::Range<usize>) {
        let mut starting = JoinSet::new();
        for target in targets {
            if starting.len() == 64 {
                starting.join_next().await.expect("64 are starting").expect("it started");
            }
            let engine = self.engine.clone();
            starting.spawn(async move { baking(engine.start(rollout(target)).await.expect("it starts")).await });
        }
        while let Some(started) = starting.join_next().await {
            started.expect("it started");
        }
    }

    /// Waits until the records of these targets' rollouts hold a verdict of each gate.
    ///
    /// # Panics
    /// When a target has no rollout.
    pub async fn judged(&self, targets: std::ops::Range<usize>) {
        for target in targets {
            let mut handle = self.engine.handle(&id(target)).expect("a live rollout");
            while !handle.status().gates.iter().all(|slot| slot.judged > 0) {
                handle.changed().await.expect("it goes on");
            }
        }
    }

    async fn trip(&mut self, target: usize) -> Duration {
        let begun = Instant::now();
        self.targets[target].1.unhealthy("the error rate is 4.2 %, at most 1 % may fail");
        let (entered, at) = self.entered().await;
        assert_eq!(entered.as_str(), name(target), "only the tripped target goes back");
        at.saturating_duration_since(begun)
    }

    /// The next shift back that is entered.
    ///
    /// # Panics
    /// Never: the fleet itself could tell of one.
    pub async fn entered(&mut self) -> Entered {
        self.entered.recv().await.expect("the fleet holds a sender")
    }

    /// The signals, by the names of their targets.
    pub fn signals(&self) -> impl Iterator<Item = (String, Signal)> + '_ {
        self.targets.iter().enumerate().map(|(target, (_, signal))| (name(target), signal.clone()))
    }
}

/// What the target of this number is called.
pub fn name(target: usize) -> String {
    format!("service-{target:06}")
}

fn id(target: usize) -> RolloutId {
    RolloutId::try_from(format!("{}-release-42", name(target))).expect("printable")
}

/// A gate that has an opinion at once.
fn cheap(name: &str) -> impl HealthGate + use<> {
    gate::from_fn(name, |window| {
        let healthy = Evidence::new(window.now, "12 of 4,800 requests failed; at most 48 may");
        ready(Ok(Verdict::Healthy(healthy.fact("failed", 12).fact("requests", 4800))))
    })
    .expect("a gate")
}

/// To a candidate of 1 KiB, in two steps; the first bakes for an hour.
fn rollout(target: usize) -> NewRollout {
    let plan = Plan::canary([10, 100], Duration::from_secs(3600)).expect("a plan");
    let candidate = Revision::new("v2").and_then(|v2| v2.with_spec(&snapshot())).expect("a revision");
    NewRollout::new(name(target), candidate, plan)
        .and_then(|new| new.by("ana"))
        .expect("a rollout")
        .because("release 42")
        .id(id(target))
}

async fn baking(mut handle: Handle) {
    while !matches!(handle.status().state, State::Baking { .. }) {
        handle.changed().await.expect("it bakes before anything else happens");
    }
}

/// Durations that were measured.
#[derive(Clone, Debug, Default)]
pub struct Figures(Vec<Duration>);

impl Figures {
    /// One more.
    pub fn push(&mut self, time: Duration) {
        let at = self.0.partition_point(|other| *other <= time);
        self.0.insert(at, time);
    }

    /// The time that this share of them, in percent, did not exceed.
    ///
    /// # Panics
    /// When there are none.
    pub fn percentile(&self, percent: usize) -> Duration {
        self.0[(self.0.len() * percent / 100).min(self.0.len() - 1)]
    }

    /// Half of them took longer.
    pub fn median(&self) -> Duration {
        self.percentile(50)
    }
}

/// `median 143.2 µs, 99 % within 1.9 ms, worst 3.1 ms (1000 times)`.
impl std::fmt::Display for Figures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (median, most, worst) = (self.median(), self.percentile(99), self.percentile(100));
        write!(f, "median {median:.1?}, 99 % within {most:.1?}, worst {worst:.1?} ({} times)", self.0.len())
    }
}
