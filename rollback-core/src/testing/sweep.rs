//! Sweeps: whole rollouts by the real engine on your backend, with one thing going wrong at each side effect in turn.
//!
//! A side effect is a shift, or a write of the record. For each scenario (canary, blue/green, all at once, a bad candidate,
//! an abort, a rollback that itself fails for a while) the rollout runs once undisturbed; then once more for each side
//! effect and each way in which it can go wrong. Every run must come to the same rest as the undisturbed one, the target
//! must serve what the record says, and what was seen on the way must keep the properties P1 to P18 of the design. The
//! first run that does not is a panic with the scenario, the fault and the whole trace.
//!
//! What is needed is a [`Bench`], as for the conformance suite. Run it with tokio's time paused: a rollout bakes for
//! minutes, a crash waits for the lease, and there are hundreds of each.
//!
//! ```
//! # use rollback_core::testing::{fakes::Fake, sweep::{Scenario, Sweep}};
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() {
//! # let my_bench = Fake::new("v1", "v2");
//! # let blue_green = Scenario::ready_made(&my_bench).await.into_iter().filter(|it| it.name() == "blue/green");
//! let summary = Sweep::of(&my_bench)
//! #   .scenarios(blue_green)
//!     .crashes()
//!     .await;
//! println!("crashes: {summary}");
//! # }
//! ```

mod tap;
mod trace;

use std::{collections::BTreeMap, fmt, ops::AddAssign, sync::Arc, time::Duration};

use tokio::{task::JoinSet, time::timeout};

use self::{
    tap::{Link, Tapped, World},
    trace::{Facts, Trace, What},
};
use super::{
    backend::{Bench, PATIENCE},
    gates::Scripted,
};
use crate::{
    backend::{Capabilities, DeploymentBackend},
    engine::{Engine, Handle, NewRollout, Target},
    error::{Error, ErrorKind, Result},
    gate::{HealthGate, Policy},
    model::{Goal, Progress, RolloutId, Serves, Weight},
    plan::Plan,
    rollout::Rollout,
    state::{Cause, State, only},
    store::{Memory, Store},
};

/// Sweeps over a bench: set up, then asked for one kind of trouble or for [`all`](Self::all).
#[must_use = "a sweep does nothing until it is asked for one kind of trouble or for all"]
pub struct Sweep<'a> {
    bench: &'a dyn Bench,
    store: Box<dyn Fn() -> Arc<dyn Store> + Send + Sync + 'a>,
    scenarios: Option<Vec<Scenario>>,
    looks_take: Duration,
}

/// What was run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// How many rollouts ran, the undisturbed ones included.
    pub runs: usize,
    /// How many side effects they had in all.
    pub effects: usize,
}

/// A rollout to be disturbed.
#[derive(Clone)]
pub struct Scenario {
    name: String,
    plan: Plan,
    gates: Gates,
    abort: Option<Moment>,
    refusals: Vec<ErrorKind>,
}

type Gates = Arc<dyn Fn() -> Vec<(Arc<dyn HealthGate>, Policy)> + Send + Sync>;

/// A point in the course of a rollout: reached, and not yet over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Moment {
    /// The step's weight is being asked for.
    Shifting(usize),
    /// The step is being watched.
    Baking(usize),
}

/// One thing that goes wrong, at the side effect of this number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Disturbance {
    at: usize,
    fault: Fault,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// The process is gone before the call leaves it.
    CrashBefore,
    /// The process is gone before the answer reaches it.
    CrashAfter,
    /// The call answers with this kind of error, and nothing lands.
    Fail(ErrorKind),
    /// The call lands, and its answer is lost.
    LoseAnswer,
    /// The answer is lost, and the call lands at this later point; without one, when all is over.
    LandLate(Option<usize>),
    /// The call lands twice, and is answered as the second time.
    Repeat,
    /// The store cannot be reached for so long, from this side effect on.
    StoreAway(Duration),
    /// The same, and the process is gone right after its so many-th shift meanwhile, or right before.
    StoreAwayThenCrash { shifts: usize, landed: bool },
    /// The process is stopped for so long, this call half way out, and another process is there meanwhile.
    Stopped(Duration),
}

impl Scenario {
    /// A rollout by this plan, without gates.
    pub fn new(name: impl Into<String>, plan: Plan) -> Self {
        Self { name: name.into(), plan, gates: Arc::new(Vec::new), abort: None, refusals: Vec::new() }
    }

    /// With these gates, made anew for each process. A gate must judge by what it sees and not by how often it is asked, or
    /// a disturbed run differs from the undisturbed one for no fault of the engine.
    #[must_use]
    pub fn gates(mut self, gates: impl Fn() -> Vec<(Arc<dyn HealthGate>, Policy)> + Send + Sync + 'static) -> Self {
        self.gates = Arc::new(gates);
        self
    }

    /// Somebody aborts it as soon as this step of the plan, from 0, is asked for.
    #[must_use]
    pub const fn aborted_while_shifting(mut self, step: usize) -> Self {
        self.abort = Some(Moment::Shifting(step));
        self
    }

    /// Somebody aborts it as soon as this step of the plan, from 0, bakes.
    #[must_use]
    pub const fn aborted_while_baking(mut self, step: usize) -> Self {
        self.abort = Some(Moment::Baking(step));
        self
    }

    /// The first shifts back to the baseline are answered with these kinds of errors, and do not land.
    #[must_use]
    pub fn rollback_fails_first(mut self, kinds: impl IntoIterator<Item = ErrorKind>) -> Self {
        self.refusals = kinds.into_iter().collect();
        self
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The scenarios that every backend is swept over, as far as it can express them.
    pub async fn ready_made(bench: &dyn Bench) -> Vec<Self> {
        Self::made_for(&bench.connect().await.capabilities())
    }

    fn made_for(capabilities: &Capabilities) -> Vec<Self> {
        let bake = Duration::from_secs(20);
        let share = |percent: u8| Weight::try_from(percent).expect("at most 100");
        let ladder = || [10, 50, 100].into_iter().filter(|percent| capabilities.weights.contains(share(*percent)));
        let canary = || Plan::canary(ladder(), bake).expect("rising, up to 100");
        let steps = ladder().count();
        let watched = |scenario: Self, unhealthy_from: Option<u8>| {
            scenario.gates(move || {
                let gate = match unhealthy_from {
                    Some(percent) => Scripted::unhealthy_from("errors", share(percent)),
                    None => Scripted::healthy("errors"),
                };
                vec![(Arc::new(gate) as Arc<dyn HealthGate>, Policy::default())]
            })
        };
        let all_at_once = || Plan::all_at_once(bake).expect("a short bake");
        let blue_green = Plan::blue_green(bake, bake).expect("short bakes");
        let unlucky = [ErrorKind::Throttled, ErrorKind::Unavailable, ErrorKind::Denied];
        let made = [
            watched(Self::new("canary", canary()), None),
            watched(Self::new("bad canary", canary()), Some(50)),
            watched(Self::new("blue/green", blue_green), None),
            watched(Self::new("all at once", all_at_once()), None),
            watched(Self::new("bad all at once", all_at_once()), Some(100)),
            watched(Self::new("aborted while baking", canary()), None).aborted_while_baking(steps / 2),
            watched(Self::new("aborted while shifting", canary()), None).aborted_while_shifting(0),
            watched(Self::new("bad canary whose rollback fails for a while", canary()), Some(50))
                .rollback_fails_first(unlucky),
        ];
        made.into_iter().filter(|scenario| capabilities.admit(&scenario.plan).is_ok()).collect()
    }
}

impl fmt::Debug for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scenario").field("name", &self.name).field("plan", &self.plan).finish_non_exhaustive()
    }
}

impl fmt::Debug for Sweep<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sweep").field("scenarios", &self.scenarios).finish_non_exhaustive()
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} runs, {} side effects", self.runs, self.effects)
    }
}

impl AddAssign for Summary {
    fn add_assign(&mut self, other: Self) {
        self.runs += other.runs;
        self.effects += other.effects;
    }
}

impl fmt::Display for Disturbance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = self.at;
        match self.fault {
            Fault::CrashBefore => write!(f, "a crash before side effect {at}"),
            Fault::CrashAfter => write!(f, "a crash after side effect {at}"),
            Fault::Fail(kind) => write!(f, "side effect {at} fails: {kind}"),
            Fault::LoseAnswer => write!(f, "the answer to side effect {at} is lost"),
            Fault::LandLate(Some(point)) => write!(f, "side effect {at} lands late, at point {point}"),
            Fault::LandLate(None) => write!(f, "side effect {at} lands when all is over"),
            Fault::Repeat => write!(f, "side effect {at} lands twice"),
            Fault::StoreAway(time) => write!(f, "the store is away for {time:?} from side effect {at} on"),
            Fault::StoreAwayThenCrash { shifts, landed } => {
                let when = if landed { "after" } else { "before" };
                write!(f, "the store is away from side effect {at} on, and a crash {when} shift {shifts} from there")
            }
            Fault::Stopped(time) => write!(f, "the process is stopped for {time:?} at side effect {at}"),
        }
    }
}

impl<'a> Sweep<'a> {
    /// Sweeps over this bench: the ready-made scenarios, on a store in memory.
    pub fn of(bench: &'a dyn Bench) -> Self {
        Self { bench, store: Box::new(|| Arc::new(Memory::new())), scenarios: None, looks_take: Duration::ZERO }
    }

    /// With these scenarios instead.
    pub fn scenarios(mut self, scenarios: impl IntoIterator<Item = Scenario>) -> Self {
        self.scenarios = Some(scenarios.into_iter().collect());
        self
    }

    /// On this store instead: an empty one for each run, that outlives the crashes in it.
    pub fn store<S: Store>(mut self, store: impl Fn() -> S + Send + Sync + 'a) -> Self {
        self.store = Box::new(move || Arc::new(store()));
        self
    }

    /// So long passes between a look and its being heard of, so that calls land meanwhile. By default no time.
    pub const fn looks_take(mut self, time: Duration) -> Self {
        self.looks_take = time;
        self
    }

    /// Everything that follows, one after the other.
    ///
    /// # Panics
    /// At the first run that ends elsewhere or breaks a property.
    pub async fn all(&self) -> Summary {
        let mut summary = Summary::default();
        summary += self.crashes().await;
        summary += self.failures().await;
        summary += self.lost_answers().await;
        summary += self.late().await;
        summary += self.repeats().await;
        summary += self.store_away().await;
        summary += self.takeovers().await;
        summary
    }

    /// The process crashes before and after every side effect, and another one takes up what it left.
    ///
    /// # Panics
    /// As [`all`](Self::all).
    pub async fn crashes(&self) -> Summary {
        self.each(|_, _| vec![Fault::CrashBefore, Fault::CrashAfter]).await
    }

    /// Every side effect fails once, with every kind of error that may pass by itself; every shift also as one that can
    /// never work, which ends at the baseline.
    ///
    /// # Panics
    /// As [`all`](Self::all).
    pub async fn failures(&self) -> Summary {
        use ErrorKind as K;
        self.each(|calm, at| {
            let kinds: &[K] = match calm.shifts.contains_key(&at) {
                true => &[K::Throttled, K::Unavailable, K::Internal, K::Conflict, K::Denied, K::Invalid],
                false => &[K::Unavailable, K::Conflict, K::Denied],
            };
            kinds.iter().copied().map(Fault::Fail).collect()
        })
        .await
    }

    /// Every side effect lands, and its answer is lost.
    ///
    /// # Panics
    /// As [`all`](Self::all).
    pub async fn lost_answers(&self) -> Summary {
        self.each(|_, _| vec![Fault::LoseAnswer]).await
    }

    /// Every side effect goes unanswered and lands late: before every later side effect, after every later look, and
    /// when all is over. Of long rollouts the nearest points and a sample of the rest. Where no versions are checked,
    /// only within the settle time, which is all that can be promised there.
    ///
    /// # Panics
    /// As [`all`](Self::all).
    pub async fn late(&self) -> Summary {
        self.each(|calm, at| {
            let (near, far) = if calm.shifts.contains_key(&at) { (16, 8) } else { (2, 1) };
            let next = calm.points[at] + 1;
            // A disturbed run has a few more points than the undisturbed one.
            let last = calm.all_points + 4;
            let rest = last.saturating_sub(next + near);
            let stride = (rest / far).max(1);
            let points = (next..last.min(next + near)).chain((next + near..last).step_by(stride));
            points.map(Some).chain([None]).map(Fault::LandLate).collect()
        })
        .await
    }

    /// Every side effect lands twice, as when a client repeats a request by itself.
    ///
    /// # Panics
    /// As [`all`](Self::all).
    pub async fn repeats(&self) -> Summary {
        self.each(|_, _| vec![Fault::Repeat]).await
    }

    /// The store goes away at every side effect, for less and for more than the lease; and the process crashes meanwhile,
    /// around a shift that no record may show.
    ///
    /// # Panics
    /// As [`all`](Self::all).
    pub async fn store_away(&self) -> Summary {
        let crash = |shifts, landed| Fault::StoreAwayThenCrash { shifts, landed };
        self.each(|_, _| {
            let away = [4, 25].map(|seconds| Fault::StoreAway(Duration::from_secs(seconds)));
            away.into_iter().chain([crash(1, false), crash(1, true), crash(2, true)]).collect()
        })
        .await
    }

    /// The process is stopped at every side effect for longer than the lease, another one takes over, and then the first
    /// goes on.
    ///
    /// # Panics
    /// As [`all`](Self::all).
    pub async fn takeovers(&self) -> Summary {
        self.each(|_, _| vec![Fault::Stopped(Duration::from_secs(25))]).await
    }

    /// Each scenario undisturbed, then with each of these faults at each of its side effects.
    async fn each(&self, faults: impl Fn(&Ran, usize) -> Vec<Fault>) -> Summary {
        let ready_made;
        let scenarios = match &self.scenarios {
            Some(scenarios) => scenarios,
            None => {
                ready_made = Scenario::ready_made(self.bench).await;
                &ready_made
            }
        };
        let mut summary = Summary::default();
        for scenario in scenarios {
            let calm = self.run(scenario, None, None).await;
            summary += Summary { runs: 1, effects: calm.effects };
            for at in 0..calm.effects {
                for fault in faults(&calm, at) {
                    let ran = self.run(scenario, Some(Disturbance { at, fault }), Some(&calm)).await;
                    summary += Summary { runs: 1, effects: ran.effects };
                }
            }
        }
        summary
    }

    /// What an undisturbed run looks like.
    #[cfg(test)]
    async fn undisturbed(&self, scenario: &Scenario) -> (Trace, Facts) {
        let ran = self.run(scenario, None, None).await;
        let capabilities = self.bench.connect().await.capabilities();
        (ran.trace, Facts { capabilities, plan: scenario.plan.clone(), lease: LEASE, disturbance: None })
    }

    /// One whole rollout, and everything that must hold of it.
    async fn run(&self, scenario: &Scenario, disturbance: Option<Disturbance>, calm: Option<&Ran>) -> Ran {
        let running = Running { scenario, disturbance };
        self.bench.reset().await;
        let capabilities = self.bench.connect().await.capabilities();
        let (world, mut fallen) =
            World::new((self.store)(), &capabilities, disturbance, &scenario.refusals, self.looks_take);
        let limit = patience(&scenario.plan);
        let rested = timeout(limit, self.processes(scenario, &world, &mut fallen)).await;
        let facts = Facts { capabilities, plan: scenario.plan.clone(), lease: LEASE, disturbance };
        let judge = |found: Result<(), String>| {
            if let Err(broken) = found {
                panic!("{running}: {broken}\n{}", world.trace());
            }
        };
        let Ok((rollout, processes)) = rested else {
            panic!("{running}: P8: no rest within {limit:?}\n{}", world.trace());
        };
        world.tell(processes, What::Rested { rollout: Arc::clone(&rollout) });
        world.land_the_rest().await;
        // Whatever were still to come by itself would come now.
        tokio::time::sleep(2 * LEASE).await;
        judge(self.serves_what_the_record_says(&rollout).await);
        judge(self.once_more_is_harmless(scenario, &world, processes + 1, &rollout).await);
        judge(world.trace().check(&facts));
        judge(self.prints_nothing_sealed(&rollout, &world.trace()));
        if let Some(calm) = calm {
            let asked = world.trace().is_asked();
            judge(same_rest(calm, &rollout, disturbance, asked));
        }
        let ran = world.ran(rollout);
        world.over();
        ran
    }

    /// Runs one process after the other until the rollout comes to rest. Returns it, and the number of the last process.
    async fn processes(
        &self,
        scenario: &Scenario,
        world: &Arc<World>,
        fallen: &mut tap::Fallen,
    ) -> (Arc<Rollout>, usize) {
        let mut lives = JoinSet::new();
        let mut handles = Vec::new();
        loop {
            let link = world.process(handles.len());
            let engine = self.engine(scenario, &link).await;
            let new = self.rollout(scenario);
            handles.push(lives.spawn(live(engine, new, scenario.abort, link)));
            loop {
                tokio::select! {
                    Some(lived) = lives.join_next() => match lived {
                        Ok(rollout) => return (rollout, handles.len() - 1),
                        Err(e) if e.is_panic() => std::panic::resume_unwind(e.into_panic()),
                        Err(_) => {}
                    },
                    Some(gone) = fallen.recv() => {
                        if let tap::Gone::Dead(process) = gone {
                            handles[process].abort();
                        }
                        break;
                    }
                }
            }
        }
    }

    /// An engine as a new process makes it.
    async fn engine(&self, scenario: &Scenario, link: &Link) -> Engine {
        let backend = Tapped::new(link.clone(), self.bench.connect().await);
        let mut target = Target::new(TARGET, backend).expect("a good id");
        for (gate, policy) in (scenario.gates)() {
            target = target.gate(gate, policy);
        }
        let store = Tapped::new(link.clone(), link.store());
        let engine = Engine::builder(store).clock(link.clock()).lease(LEASE).build().expect("a good lease");
        engine.register(target).unwrap_or_else(|e| panic!("scenario {}: {}", scenario.name, e.chain()));
        engine
    }

    fn rollout(&self, scenario: &Scenario) -> NewRollout {
        let new = NewRollout::new(TARGET, self.bench.candidate(), scenario.plan.clone()).expect("a good id");
        new.id(rollout_id()).by("ana").expect("a good name").because(scenario.name.as_str())
    }

    /// P2, P3: the target serves what the record says, as a new process sees it.
    async fn serves_what_the_record_says(&self, rollout: &Rollout) -> Result<(), String> {
        let (goal, serves) = match &rollout.state {
            State::Promoted => (Goal::Candidate, Serves::Candidate),
            State::RolledBack { .. } | State::Refused { .. } => (Goal::Baseline, Serves::Baseline),
            other => return Err(format!("P8: it rests as {}, and needs a person", other.describe(&rollout.plan))),
        };
        let backend = self.bench.connect().await;
        let look = async || {
            let look = backend.observe(&rollout.change, goal, rollout.attempt.as_ref()).await;
            look.map_err(|e| format!("after the end a look fails: {}", e.chain()))
        };
        let mut seen = look().await?;
        let mut left = if self.bench.tells_at_once() { 0 } else { PATIENCE };
        while left > 0 && matches!(seen.progress, Progress::Underway(_)) {
            self.bench.settle().await;
            (seen, left) = (look().await?, left - 1);
        }
        let look = seen;
        let says = rollout.state.name();
        if look.progress != Progress::Reached {
            return Err(format!("P2, P3: the record says {says}, and a look at the target {:?}", look.progress));
        }
        only(serves, &look).map_err(|why| format!("P2, P3: the record says {says}, and a look at the target {why}"))?;
        let serving = backend.baseline().await.map_err(|e| format!("P2, P3: it rests, but {}", e.chain()))?;
        let wanted = if goal == Goal::Candidate { &rollout.change.candidate } else { &rollout.change.baseline };
        if serving.id != wanted.id {
            return Err(format!("P2, P3: the record says {says}, and the target serves {}", serving.id));
        }
        Ok(())
    }

    /// P16: whoever starts the same rollout again finds it as it ended, and nothing is done.
    async fn once_more_is_harmless(
        &self,
        scenario: &Scenario,
        world: &Arc<World>,
        process: usize,
        rollout: &Arc<Rollout>,
    ) -> Result<(), String> {
        let before = world.effects();
        let engine = self.engine(scenario, &world.process(process)).await;
        let again = engine.start(self.rollout(scenario)).await;
        let again = again.map_err(|e| format!("P16: started again: {}", e.chain()))?.finished().await;
        if again.rollout.state != rollout.state || world.effects() != before {
            return Err(format!("P16: started again it is {} and does something", again.rollout));
        }
        Ok(())
    }

    /// P10.
    fn prints_nothing_sealed(&self, rollout: &Rollout, trace: &Trace) -> Result<(), String> {
        let Some(secret) = self.bench.secret() else { return Ok(()) };
        let log: String = rollout.log.iter().map(|entry| entry.what.describe(&rollout.plan)).collect();
        if format!("{rollout:?} {log} {trace}").contains(&secret) {
            return Err("P10: what is sealed is printed".into());
        }
        Ok(())
    }
}

/// One process, as its user sees it: takes up what is there, else starts the rollout; comes back when that has failed.
async fn live(engine: Engine, new: NewRollout, abort: Option<Moment>, link: Link) -> Arc<Rollout> {
    loop {
        match go(&engine, &new, abort, &link).await {
            Ok(rollout) if rollout.state.is_at_rest() => return rollout,
            Ok(_) => {}
            Err(e) => link.tell(What::Troubled { why: e.chain() }),
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

async fn go(engine: &Engine, new: &NewRollout, abort: Option<Moment>, link: &Link) -> Result<Arc<Rollout>> {
    let mut resumed = engine.resume_all().await?;
    let handle = match (resumed.handles.pop(), resumed.refused.pop(), resumed.elsewhere.pop()) {
        (Some(handle), ..) => handle,
        (None, Some((_, e)), _) => return Err(e),
        (None, None, Some(_)) => return Err(Error::new(ErrorKind::Conflict, "another process drives it")),
        (None, None, None) => engine.start(new.clone()).await?,
    };
    tokio::select! {
        outcome = handle.finished() => Ok(outcome.rollout),
        Some(never) = ask_back(handle.clone(), abort, link) => never,
    }
}

/// The person who aborts it. Has nothing to say in the end.
async fn ask_back(mut handle: Handle, abort: Option<Moment>, link: &Link) -> Option<Result<Arc<Rollout>>> {
    let abort = abort?;
    loop {
        let status = handle.status();
        if moment(&status).is_some_and(|now| now >= abort) {
            link.tell(What::Asked);
            // Whoever is told that this process no longer drives it asks the next one.
            return handle.abort("ben", "it is not what we wanted").await.err().and(None);
        }
        handle.changed().await?;
    }
}

fn moment(rollout: &Rollout) -> Option<Moment> {
    match rollout.state {
        // Entered is not yet asked for.
        State::Shifting { step } => rollout.attempt.is_some().then_some(Moment::Shifting(step)),
        State::Baking { step, .. } => Some(Moment::Baking(step)),
        State::Promoting => Some(Moment::Baking(usize::MAX)),
        _ => None,
    }
}

/// The same rest as undisturbed. After an error that cannot pass the baseline will do; so it will when the process died
/// with its decision unsaved. Who is to abort it goes by what is saved: while the store is away, the moment can pass unseen.
fn same_rest(calm: &Ran, rollout: &Rollout, disturbance: Option<Disturbance>, asked: bool) -> Result<(), String> {
    let (wanted, got) = (rest(&calm.rollout.state), rest(&rollout.state));
    let baseline_will_do = disturbance.is_some_and(|it| match it.fault {
        Fault::Fail(kind) => kind == ErrorKind::Invalid,
        Fault::StoreAwayThenCrash { .. } => !matches!(calm.rollout.state, State::Promoted),
        _ => false,
    });
    let away = disturbance.is_some_and(|it| matches!(it.fault, Fault::StoreAway(_) | Fault::StoreAwayThenCrash { .. }));
    let was_to_be_aborted = matches!(calm.rollout.state, State::RolledBack { cause: Cause::Aborted { .. } });
    let unseen = away && was_to_be_aborted && !asked && rollout.state == State::Promoted;
    if wanted == got || unseen || (baseline_will_do && matches!(rollout.state, State::RolledBack { .. })) {
        return Ok(());
    }
    Err(format!("it comes to rest as {got}; undisturbed as {wanted}"))
}

fn rest(state: &State) -> String {
    let cause = match state {
        State::RolledBack { cause: Cause::Unhealthy { .. } } => " because a gate is unhealthy",
        State::RolledBack { cause: Cause::NoData { .. } } => " because a gate has no data",
        State::RolledBack { cause: Cause::Failed { .. } } => " because it failed",
        State::RolledBack { cause: Cause::Deadline { .. } } => " because of a deadline",
        State::RolledBack { cause: Cause::Aborted { .. } } => " because it was aborted",
        State::RolledBack { cause: Cause::Drifted { .. } } => " because of drift",
        _ => "",
    };
    format!("{}{cause}", state.name())
}

/// As long as a run may take: every state to its deadline, and what a fault adds.
fn patience(plan: &Plan) -> Duration {
    let deadlines = plan.deadlines();
    let steps = plan.steps().iter().map(|step| deadlines.shift + step.bake + deadlines.overtime);
    deadlines.preflight + steps.sum::<Duration>() + deadlines.promote + deadlines.roll_back + 60 * LEASE
}

fn rollout_id() -> RolloutId {
    RolloutId::try_from("swept").expect("a good id")
}

const TARGET: &str = "target";
const LEASE: Duration = Duration::from_secs(10);

/// What a run was like: where the side effects were, how it ended.
struct Ran {
    rollout: Arc<Rollout>,
    effects: usize,
    /// The side effects that are shifts, and their goals.
    shifts: BTreeMap<usize, Goal>,
    /// The point at which each side effect was entered.
    points: Vec<usize>,
    all_points: usize,
    #[cfg(test)]
    trace: Trace,
}

/// Names the run in a panic.
struct Running<'a> {
    scenario: &'a Scenario,
    disturbance: Option<Disturbance>,
}

impl fmt::Display for Running<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.disturbance {
            Some(disturbance) => write!(f, "{}, {disturbance}", self.scenario.name),
            None => write!(f, "{}, undisturbed", self.scenario.name),
        }
    }
}

/// A panic of somebody else in a run: which run it was.
impl Drop for Running<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("broken: the sweep over {self}");
        }
    }
}
