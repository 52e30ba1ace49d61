//! Sweeps over the fakes, and what they must find.

use std::{
    collections::HashSet,
    fmt,
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex},
    time::Duration,
};

use async_trait::async_trait;
use rollback_core::{
    Result,
    backend::{Capabilities, DeploymentBackend, Readiness},
    model::{Attempt, Change, DriverId, Goal, Observed, Progress, Revision, RolloutId, Serial, TargetId},
    plan::Plan,
    request::Request,
    store::{Asked, Claim, Memory, Record, Standing, Store},
    testing::{
        backend::Bench,
        fakes::Fake,
        sweep::{Scenario, Summary, Sweep},
    },
};

const SETTLE: Duration = Duration::from_secs(15);

fn report(what: &str, summary: Summary) {
    eprintln!("{what}: {summary}");
    assert!(summary.runs > 100, "{what}: {summary}");
}

#[tokio::test(start_paused = true)]
async fn every_disturbance_is_got_over_where_versions_are_checked() {
    report("checked", Sweep::of(&Fake::new("v1", "v2")).all().await);
}

#[tokio::test(start_paused = true)]
async fn every_disturbance_is_got_over_where_versions_are_not_checked() {
    report("unchecked", Sweep::of(&Fake::new("v1", "v2").unchecked(SETTLE)).all().await);
}

#[tokio::test(start_paused = true)]
async fn every_disturbance_is_got_over_at_the_providers_pace() {
    let fake = Fake::new("v1", "v2").providers_pace(25, Duration::from_secs(5));
    report("provider's pace", Sweep::of(&fake).all().await);
}

#[tokio::test(start_paused = true)]
async fn every_disturbance_is_got_over_where_a_goal_takes_several_effects() {
    let fake = Fake::new("v1", "v2").several_effects();
    let sweep = Sweep::of(&fake);
    let mut summary = sweep.crashes().await;
    summary += sweep.late().await;
    summary += sweep.store_away().await;
    report("several effects", summary);

    let fake = Fake::new("v1", "v2").several_effects().unchecked(SETTLE);
    let sweep = Sweep::of(&fake);
    let mut summary = sweep.lost_answers().await;
    summary += sweep.repeats().await;
    summary += sweep.takeovers().await;
    report("several effects, unchecked", summary);
}

#[tokio::test(start_paused = true)]
async fn every_late_call_is_got_over_where_looks_are_slow_and_parts_lag_behind() {
    let slow = Duration::from_millis(1500);
    let fake = Fake::new("v1", "v2").unchecked(SETTLE);
    report("slow looks, unchecked", Sweep::of(&fake).looks_take(slow).late().await);
    let fake = Fake::new("v1", "v2").parts(2, Duration::from_secs(3));
    report("slow looks, parts", Sweep::of(&fake).looks_take(slow).crashes().await);
}

// -------------------------------------------------------------------------------------------------- what must be found

/// What the sweep says when it breaks off.
async fn found(sweep: impl Future<Output = Summary>) -> String {
    // A panic that is caught elsewhere is still printed: the test's output holds a trace, and the test passes.
    let mut sweep = std::pin::pin!(sweep);
    let caught =
        std::future::poll_fn(|cx| match std::panic::catch_unwind(AssertUnwindSafe(|| sweep.as_mut().poll(cx))) {
            Ok(polled) => polled.map(Ok),
            Err(panic) => std::task::Poll::Ready(Err(panic)),
        })
        .await;
    match caught {
        Ok(summary) => panic!("nothing was found in {summary}"),
        Err(panic) => panic.downcast_ref::<String>().expect("a text").clone(),
    }
}

#[tokio::test(start_paused = true)]
async fn a_backend_that_does_not_spend_versions_is_found_by_late_calls() {
    let bent = Bent::new(Fake::new("v1", "v2"), Bend::SpendsNothing);
    let text = found(Sweep::of(&bent).late()).await;
    assert!(text.contains("aborted while shifting, side effect 2 lands"), "{text}");
}

#[tokio::test(start_paused = true)]
async fn a_backend_that_claims_to_check_versions_and_does_not_is_found_by_repeats() {
    let bent = Bent::new(Fake::new("v1", "v2").unchecked(SETTLE), Bend::ClaimsToCheck);
    let text = found(Sweep::of(&bent).repeats()).await;
    assert!(text.contains("P5: ") && text.contains("no longer has, and is accepted"), "{text}");
}

#[tokio::test(start_paused = true)]
async fn a_backend_that_arrives_too_early_is_found() {
    let bent = Bent::new(Fake::new("v1", "v2").several_effects(), Bend::ArrivesTooEarly);
    let text = found(Sweep::of(&bent).crashes()).await;
    assert!(text.contains("bad canary, undisturbed: P2, P3: "), "{text}");
}

#[tokio::test(start_paused = true)]
async fn a_backend_that_returns_the_traffic_last_is_found() {
    let bent = Bent::new(Fake::new("v1", "v2"), Bend::TrafficLast(Arc::default()));
    let text = found(Sweep::of(&bent).crashes()).await;
    assert!(text.contains("P12: "), "{text}");
}

#[tokio::test(start_paused = true)]
async fn a_store_that_loses_a_write_that_it_acknowledged_is_found_by_crashes() {
    let fake = Fake::new("v1", "v2");
    let text = found(Sweep::of(&fake).store(|| Faithless::new(Sin::LosesTheLastWriteInACrash)).crashes()).await;
    assert!(text.contains("P7: ") || text.contains("P5: "), "{text}");
}

#[tokio::test(start_paused = true)]
async fn a_store_that_compares_no_serials_is_found() {
    let fake = Fake::new("v1", "v2");
    let text = found(Sweep::of(&fake).store(|| Faithless::new(Sin::ComparesNothing)).repeats()).await;
    assert!(text.contains("P5: the store is at"), "{text}");
}

#[tokio::test(start_paused = true)]
async fn a_scenario_that_cannot_end_by_itself_is_found() {
    let fake = Fake::new("v1", "v2");
    let refused = std::iter::repeat_n(rollback_core::ErrorKind::Denied, 10_000);
    let scenario = Scenario::new("never", Plan::all_at_once(Duration::from_secs(20)).unwrap())
        .aborted_while_baking(0)
        .rollback_fails_first(refused);
    let text = found(Sweep::of(&fake).scenarios([scenario]).crashes()).await;
    assert!(text.contains("never, undisturbed: P8: it rests as stuck"), "{text}");
}

/// A fake that is not what it says.
struct Bent {
    fake: Fake,
    bend: Bend,
}

#[derive(Clone, Debug)]
enum Bend {
    /// Against rule 2: a shift to a goal that is reached leaves no trace.
    SpendsNothing,
    /// Takes whatever version it is given.
    ClaimsToCheck,
    /// Takes an accepted rollback for one that has arrived.
    ArrivesTooEarly,
    /// The first shift back only spends its version.
    TrafficLast(Arc<Mutex<HashSet<String>>>),
}

impl Bent {
    const fn new(fake: Fake, bend: Bend) -> Self {
        Self { fake, bend }
    }
}

#[async_trait]
impl Bench for Bent {
    async fn reset(&self) {
        self.fake.reset().await;
        if let Bend::TrafficLast(asked) = &self.bend {
            asked.lock().unwrap().clear();
        }
    }
    async fn connect(&self) -> Arc<dyn DeploymentBackend> {
        Arc::new(BentBackend { inner: self.fake.connect().await, bend: self.bend.clone() })
    }
    fn candidate(&self) -> Revision {
        self.fake.candidate()
    }
    async fn settle(&self) {
        self.fake.settle().await;
    }
    fn secret(&self) -> Option<String> {
        self.fake.secret()
    }
}

#[derive(Debug)]
struct BentBackend {
    inner: Arc<dyn DeploymentBackend>,
    bend: Bend,
}

#[async_trait]
impl DeploymentBackend for BentBackend {
    fn capabilities(&self) -> Capabilities {
        match self.bend {
            Bend::ClaimsToCheck => {
                Capabilities { versions: rollback_core::state::Versions::Checked, ..self.inner.capabilities() }
            }
            _ => self.inner.capabilities(),
        }
    }
    async fn baseline(&self) -> Result<Revision> {
        self.inner.baseline().await
    }
    async fn preflight(&self, change: &Change, plan: &Plan) -> Result<Readiness> {
        self.inner.preflight(change, plan).await
    }
    async fn observe<'a>(&self, change: &Change, goal: Goal, last: Option<&'a Attempt>) -> Result<Observed> {
        let mut look = self.inner.observe(change, goal, last).await?;
        if let (Bend::ArrivesTooEarly, Goal::Baseline, Progress::Due(_)) = (&self.bend, goal, &look.progress) {
            look.progress = Progress::Reached;
            look.weight = None;
        }
        Ok(look)
    }
    async fn shift(&self, change: &Change, goal: Goal, attempt: &Attempt) -> Result<()> {
        match &self.bend {
            Bend::SpendsNothing => {
                let look = self.inner.observe(change, goal, None).await?;
                if look.progress == Progress::Reached && look.version == attempt.version {
                    return Ok(());
                }
            }
            Bend::TrafficLast(asked)
                if goal == Goal::Baseline && asked.lock().unwrap().insert(change.rollout.to_string()) =>
            {
                return Ok(());
            }
            _ => {}
        }
        self.inner.shift(change, goal, attempt).await
    }
}

/// A store that breaks its word.
#[derive(Clone)]
struct Faithless {
    memory: Memory,
    sin: Sin,
    seen: Arc<Mutex<Cached>>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Sin {
    LosesTheLastWriteInACrash,
    ComparesNothing,
}

#[derive(Default)]
struct Cached {
    drivers: HashSet<DriverId>,
    /// Acknowledged and not on disk.
    unwritten: Option<(Record, Serial)>,
}

impl Faithless {
    fn new(sin: Sin) -> Self {
        Self { memory: Memory::new(), sin, seen: Arc::default() }
    }

    /// The disk catches up.
    async fn flush(&self) -> Result<()> {
        let unwritten = self.seen.lock().unwrap().unwritten.take();
        if let Some((record, expected)) = unwritten {
            self.memory.update(&record, expected).await?;
        }
        Ok(())
    }
}

impl fmt::Debug for Faithless {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Faithless").field("sin", &self.sin).finish_non_exhaustive()
    }
}

#[async_trait]
impl Store for Faithless {
    async fn create(&self, record: &Record) -> Result<Serial> {
        self.memory.create(record).await
    }
    async fn load(&self, id: &RolloutId) -> Result<(Record, Serial)> {
        let cached = self.seen.lock().unwrap().unwritten.clone();
        match cached {
            Some((record, expected)) => Ok((record, expected.next())),
            None => self.memory.load(id).await,
        }
    }
    async fn update(&self, record: &Record, expected: Serial) -> Result<Serial> {
        self.flush().await?;
        let expected = match self.sin {
            Sin::LosesTheLastWriteInACrash => expected,
            Sin::ComparesNothing => self.memory.load(&record.id).await?.1,
        };
        if self.sin == Sin::ComparesNothing
            || record.standing != Standing::Open
            || self.memory.load(&record.id).await?.1 != expected
        {
            return self.memory.update(record, expected).await;
        }
        self.seen.lock().unwrap().unwritten = Some((record.clone(), expected));
        Ok(expected.next())
    }
    async fn open(&self) -> Result<Vec<Claim>> {
        self.memory.open().await
    }
    async fn history(&self, subject: &TargetId, limit: usize) -> Result<Vec<Record>> {
        self.memory.history(subject, limit).await
    }
    async fn beat(&self, driver: &DriverId) -> Result<Vec<(RolloutId, Asked)>> {
        {
            // Another process: the machine was down, and what was not on disk is gone.
            let mut seen = self.seen.lock().unwrap();
            if seen.drivers.insert(driver.clone()) {
                seen.unwritten = None;
            }
        }
        self.memory.beat(driver).await
    }
    async fn ask(&self, id: &RolloutId, request: &Request) -> Result<()> {
        self.memory.ask(id, request).await
    }
}
