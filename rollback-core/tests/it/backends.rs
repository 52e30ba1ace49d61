//! The fake keeps every promise of a backend, a broken backend is found out, and faults strike where they are said to.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use rollback_core::{
    Error, ErrorKind, Result,
    backend::{Capabilities, DeploymentBackend, Readiness, Weights},
    clock::Clock as _,
    model::{Attempt, Change, Goal, Note, Observed, Progress, Revision, Serves, Version, Weight},
    plan::Plan,
    testing::{
        backend::{self, Bench, Driver, Outcome, PROMISES},
        clock::TestClock,
        fakes::{Fake, Fault, Happened, Until},
    },
};

const LATE: &str = "a_call_from_before_a_rollback_is_refused_after_it";
const SETTLE: Duration = Duration::from_secs(30);

/// Every kind of platform that the fake can be.
fn fakes() -> Vec<(String, Fake)> {
    let mut all = Vec::new();
    for checked in [true, false] {
        for several in [false, true] {
            for shape in ["any weight", "some weights", "provider's pace", "slow parts", "no weights told"] {
                let mut fake = Fake::new("v1", "v2");
                if !checked {
                    fake = fake.unchecked(SETTLE);
                }
                if several {
                    fake = fake.several_effects();
                }
                fake = match shape {
                    "some weights" => fake.weights([0, 20, 60]),
                    "provider's pace" => fake.providers_pace(30, Duration::from_secs(7)),
                    "slow parts" => fake.parts(3, Duration::from_secs(4)),
                    "no weights told" => fake.tells_no_weight(),
                    _ => fake,
                };
                all.push((format!("checked: {checked}, several effects: {several}, {shape}"), fake));
            }
        }
    }
    all
}

#[tokio::test(start_paused = true)]
async fn the_fake_keeps_every_promise_on_every_platform_it_can_be() {
    for (platform, fake) in fakes() {
        for (promise, _) in PROMISES {
            let outcome = attempt(&fake, promise).await.unwrap_or_else(|why| panic!("{platform}: {promise}: {why}"));
            // Each skip is one that this platform explains: nothing is passed over by accident.
            let Outcome::Skipped(why) = outcome else { continue };
            let explained = match why {
                "the platform checks no versions" => platform.contains("checked: false"),
                "every weight can be given here" => !platform.contains("pace") && !platform.contains("some weights"),
                "the platform does not tell the candidate's share" => platform.contains("no weights told"),
                _ => false,
            };
            assert!(explained, "{platform}: {promise} was skipped: {why}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn all_runs_every_promise_once() {
    let outcomes = backend::all(&Fake::new("v1", "v2")).await;
    assert_eq!(outcomes.len(), PROMISES.len());
    let skipped: Vec<_> = outcomes.iter().filter(|(_, outcome)| *outcome != Outcome::Kept).collect();
    assert_eq!(
        skipped,
        [&("an_inexpressible_weight_is_unsupported", Outcome::Skipped("every weight can be given here"))]
    );
}

#[tokio::test(start_paused = true)]
async fn an_honest_wrapper_breaks_no_promise() {
    let honest = Liar::bench(Fake::new("v1", "v2"), Lie::None);
    for (promise, _) in PROMISES {
        attempt(&honest, promise).await.unwrap_or_else(|why| panic!("{promise}: {why}"));
    }
}

#[tokio::test(start_paused = true)]
async fn every_lie_is_found_out_by_the_promise_it_breaks() {
    let any = || Fake::new("v1", "v2");
    let some = || any().weights([20]);
    let slow = || any().parts(3, Duration::from_secs(4));
    let fast = || any().parts(3, Duration::from_millis(900));
    let paced = || any().providers_pace(20, SETTLE);
    let loose = || any().unchecked(SETTLE);
    let cases = [
        (Lie::LooksWrite, any(), "a_look_has_no_effects", "a look has effects"),
        (Lie::LooksAct, any(), "a_look_has_no_effects", "a look has effects"),
        (Lie::NeverAnswers, any(), "a_look_has_no_effects", "no answer within 60 s"),
        (Lie::BaselineIsNeverTwiceTheSame, any(), "the_baseline_is_what_serves", "has two specs"),
        (Lie::MixedIsPassedOver, any(), "the_baseline_is_what_serves", "it must fail as Mixed"),
        (Lie::PreflightActs, any(), "preflight_changes_nothing", "preflight changed the target"),
        (Lie::PreflightProvesNothing, any(), "preflight_changes_nothing", "neither proves anything"),
        (Lie::PreflightRefusesNothing, any(), "a_missing_revision_is_refused", "refuses nothing"),
        (Lie::OtherWeightsAreRoundedUp, some(), "an_inexpressible_weight_is_unsupported", "is Ok"),
        (Lie::WeightsAreOffByOne, any(), "every_weight_arrives_and_then_the_candidate", "1 % is reached, but"),
        (Lie::ReachedBeforeEveryPart, slow(), "every_weight_arrives_and_then_the_candidate", "is reached, but"),
        (Lie::BackBeforeEveryPart, slow(), "the_baseline_comes_back_from_every_weight", "no one revision serves"),
        (Lie::BackBeforeEveryPart, fast(), "the_baseline_comes_back_from_half_way", "no one revision serves"),
        (Lie::BackOnlyFromRest, paced(), "the_baseline_comes_back_from_half_way", "a deployment is running"),
        (Lie::TrafficLast, any(), "the_first_effect_back_returns_the_traffic", "leaves the candidate traffic"),
        (Lie::RemembersInMemory, any(), "a_new_process_goes_back_from_the_record_alone", "knows of no way back"),
        (Lie::SaysReachedIsInvalid, any(), "reaching_a_goal_twice_is_harmless", "one more shift"),
        (Lie::EverythingHasLanded, any(), "a_lost_answer_is_seen_by_the_next_look", "never sent"),
        (Lie::NothingHasLanded, loose(), "a_lost_answer_is_seen_by_the_next_look", "no look sees it"),
        (Lie::VersionIsTheContent, any(), "an_accepted_shift_spends_its_version", "did not spend its version"),
        (Lie::VersionIsTheContent, any(), LATE, "baseline is not reached"),
        (Lie::VersionsAreIgnored, any(), "an_accepted_shift_spends_its_version", "the second time"),
        (Lie::VersionsAreIgnored, any(), "a_stale_version_moves_nothing", "was accepted"),
        (Lie::VersionsAreIgnored, any(), "of_two_drivers_one_is_refused", "one must be refused"),
        (Lie::VersionsAreIgnored, any(), LATE, "after the rollback, was accepted"),
        (Lie::ConflictIsUnavailable, any(), "a_stale_version_moves_nothing", "must be refused as Conflict"),
        (Lie::ChecksThenActs, any(), "of_two_drivers_one_is_refused", "one must be refused"),
        (Lie::UndoesTheUndone, loose(), "what_is_repeatable_has_its_effect_once", "undid the rollback"),
        (Lie::DriftIsPatience, any(), "drift_is_told", "somebody changed the target"),
        (Lie::DebugTellsAll, any(), "nothing_sealed_is_printed", "Debug of the backend prints"),
        (Lie::ErrorsTellAll, any(), "nothing_sealed_is_printed", "an error prints"),
    ];
    for (lie, fake, promise, because) in &cases {
        let why = match attempt(&Liar::bench(fake.clone(), *lie), promise).await {
            Err(why) => why,
            Ok(outcome) => panic!("{lie:?} must break {promise}; it is {outcome:?}"),
        };
        assert!(why.contains(because), "{lie:?} broke {promise}, but not because {because:?}: {why}");
    }
    // Every promise has a lie that it finds out.
    for (promise, _) in PROMISES {
        assert!(cases.iter().any(|(_, _, broken, _)| broken == promise), "no lie breaks {promise}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_backend_that_goes_back_by_itself_is_failed_forward_and_comes_to_rest_at_the_baseline() {
    for fake in [Fake::new("v1", "v2"), Fake::new("v1", "v2").several_effects().unchecked(SETTLE)] {
        let fake = fake.providers_pace(10, SETTLE).goes_back_by_itself_at(percent(40));
        let mut driver = Driver::new(&fake).await;
        let all = Goal::Split(Weight::ALL);
        let attempt = driver.save(all, &fake.version());
        driver.send(&attempt).await.unwrap();
        tokio::time::sleep(2 * SETTLE).await;
        let look = driver.look(all).await;
        assert_eq!((look.weight, is_underway(&look)), (Some(percent(30)), true), "{look:?}");
        tokio::time::sleep(SETTLE).await;
        let look = driver.look(all).await;
        assert!(matches!(look.progress, Progress::Failed(_)), "{look:?}");
        let look = driver.look(Goal::Baseline).await;
        assert!(is_underway(&look), "its own rollback is under way, never drift: {look:?}");
        tokio::time::sleep(SETTLE).await;
        driver.drive(Goal::Baseline).await;
        assert!(fake.only("v1"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_fault_strikes_the_call_it_was_given_to_and_no_other() {
    let half = Goal::Split(percent(50));
    // What the caller hears, and whether it has landed then.
    let cases = [
        (Fault::Fail(ErrorKind::Throttled), Some(ErrorKind::Throttled), false),
        (Fault::Fail(ErrorKind::Unavailable), Some(ErrorKind::Unavailable), false),
        (Fault::LoseAnswer, Some(ErrorKind::Unavailable), true),
        (Fault::LandLate(Until::Told), Some(ErrorKind::Unavailable), false),
        (Fault::Repeat, Some(ErrorKind::Conflict), true),
    ];
    for (fault, heard, landed) in cases {
        let fake = Fake::new("v1", "v2");
        fake.fault(1, fault);
        let mut driver = Driver::new(&fake).await;
        driver.drive(half).await;
        assert_eq!(fake.calls(), 1, "{fault:?} struck too early");
        let attempt = driver.save(Goal::Candidate, &fake.version());
        assert_eq!(driver.send(&attempt).await.err().map(|e| e.kind()), heard, "{fault:?}");
        assert_eq!(fake.only("v2"), landed, "{fault:?}");
        assert_eq!(driver.look(Goal::Candidate).await.landed, landed, "{fault:?}");
        fake.land_late();
        driver.drive(Goal::Candidate).await;
        assert!(fake.only("v2"), "{fault:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_shift_without_effect_spends_its_version_all_the_same() {
    let fake = Fake::new("v1", "v2");
    fake.fault(0, Fault::NoEffect);
    let mut driver = Driver::new(&fake).await;
    let attempt = driver.save(Goal::Candidate, &fake.version());
    driver.send(&attempt).await.unwrap();
    assert!(fake.only("v1"));
    assert_ne!(fake.version(), attempt.version);
    assert_eq!(driver.send(&attempt).await.unwrap_err().kind(), ErrorKind::Conflict);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_hangs_is_heard_of_when_it_enters_and_may_have_landed() {
    for landed in [false, true] {
        let fake = Fake::new("v1", "v2");
        fake.fault(0, Fault::Hang { landed });
        let (other, change) = (fake.clone(), Driver::new(&fake).await.change);
        let attempt = {
            let mut driver = Driver::new(&fake).await;
            driver.save(Goal::Candidate, &fake.version())
        };
        let call = tokio::spawn(async move { other.shift(&change, Goal::Candidate, &attempt).await });
        fake.entered(0).await;
        tokio::time::sleep(Duration::from_secs(3600)).await;
        assert!(!call.is_finished());
        assert_eq!(fake.only("v2"), landed);
        call.abort();
    }
}

#[tokio::test(start_paused = true)]
async fn a_late_call_lands_when_it_is_due_and_only_where_versions_are_unchecked_or_still_right() {
    for (checked, until) in
        [Until::Told, Until::Call(2), Until::Read(9)].into_iter().flat_map(|until| [(true, until), (false, until)])
    {
        let fake = if checked { Fake::new("v1", "v2") } else { Fake::new("v1", "v2").unchecked(SETTLE) };
        fake.fault(0, Fault::LandLate(until));
        let mut driver = Driver::new(&fake).await;
        let attempt = driver.save(Goal::Candidate, &fake.version());
        assert_eq!(driver.send(&attempt).await.unwrap_err().kind(), ErrorKind::Unavailable);
        // Somebody spends the version in between.
        let mut other = Driver::new(&fake).await;
        let spend = other.save(Goal::Baseline, &fake.version());
        other.send(&spend).await.unwrap();
        assert_eq!(fake.on_their_way(), 1, "{until:?} was early");
        match until {
            Until::Told => assert_eq!(fake.land_late(), 1),
            Until::Call(_) => {
                // A call that is refused, so that it changes nothing itself.
                fake.fault(2, Fault::Fail(ErrorKind::Throttled));
                let spend = other.save(Goal::Baseline, &fake.version());
                other.send(&spend).await.unwrap_err();
            }
            Until::Read(read) => {
                while fake.reads() <= read {
                    assert_eq!(fake.on_their_way(), 1, "{until:?} was early, at {}", fake.reads());
                    other.look(Goal::Split(percent(50))).await;
                }
            }
        }
        assert_eq!(fake.on_their_way(), 0, "{until:?} never landed");
        assert_eq!(fake.only("v2"), !checked, "checked: {checked}, {until:?}");
        let late = fake.trace().into_iter().any(|seen| match seen.what {
            Happened::Landed { late, call, .. } => late && call.nonce == attempt.nonce && !checked,
            Happened::Refused { late, call, why } => {
                late && call.nonce == attempt.nonce && checked && why == ErrorKind::Conflict
            }
            _ => false,
        });
        assert!(late, "the trace must tell of it: {:#?}", fake.trace());
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_is_a_panic_of_that_call_and_the_world_goes_on() {
    let fake = Fake::new("v1", "v2");
    fake.fault(0, Fault::Panic);
    let (other, mut driver) = (fake.clone(), Driver::new(&fake).await);
    let change = driver.change.clone();
    let attempt = driver.save(Goal::Candidate, &fake.version());
    let call = tokio::spawn(async move { other.shift(&change, Goal::Candidate, &attempt).await });
    assert!(call.await.unwrap_err().is_panic());
    driver.drive(Goal::Candidate).await;
    assert!(fake.only("v2"));
}

#[tokio::test(start_paused = true)]
async fn reads_are_counted_and_fail_by_number() {
    let fake = Fake::new("v1", "v2");
    fake.fail_read(1, ErrorKind::Denied);
    let driver = Driver::new(&fake).await;
    let look = || fake.observe(&driver.change, Goal::Baseline, None);
    assert_eq!(look().await.unwrap_err().kind(), ErrorKind::Denied);
    assert_eq!(look().await.unwrap().progress, Progress::Reached);
    assert_eq!(fake.reads(), 3);
    fake.hang_read(3);
    assert!(tokio::time::timeout(SETTLE, look()).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_scripted_failure_lasts_as_many_looks_as_it_was_told() {
    let fake = Fake::new("v1", "v2");
    let driver = Driver::new(&fake).await;
    fake.fail_goal(Goal::Baseline, 2);
    for _ in 0..2 {
        assert!(matches!(driver.look(Goal::Baseline).await.progress, Progress::Failed(_)));
        assert!(matches!(driver.look(Goal::Candidate).await.progress, Progress::Due(_)));
    }
    assert_eq!(driver.look(Goal::Baseline).await.progress, Progress::Reached);
}

#[tokio::test(start_paused = true)]
async fn preflight_refuses_on_request_and_when_the_way_back_is_gone() {
    let fake = Fake::new("v1", "v2");
    let driver = Driver::new(&fake).await;
    let plan = Plan::all_at_once(Duration::ZERO).unwrap();
    let refused = || async { fake.preflight(&driver.change, &plan).await.unwrap().refused };
    assert_eq!(refused().await, []);
    fake.delete_artefact("v1");
    assert_eq!(refused().await, [Note::new("v1, the way back, is not there: build it")]);
    fake.build("v1");
    fake.refuse_preflight("no permission to write");
    assert_eq!(refused().await, [Note::new("no permission to write")]);
}

#[tokio::test(start_paused = true)]
async fn parts_follow_one_after_the_other_and_a_stuck_one_takes_restarts() {
    let fake = Fake::new("v1", "v2").parts(2, Duration::from_secs(10));
    let mut driver = Driver::new(&fake).await;
    let attempt = driver.save(Goal::Candidate, &fake.version());
    driver.send(&attempt).await.unwrap();
    let served = |look: &Observed| look.parts.iter().map(|part| part.serves).collect::<Vec<_>>();
    for (serves, weight) in [
        ([Serves::Baseline, Serves::Baseline], 0),
        ([Serves::Candidate, Serves::Baseline], 50),
        ([Serves::Candidate, Serves::Candidate], 100),
    ] {
        let look = driver.look(Goal::Candidate).await;
        assert_eq!((served(&look), look.weight), (serves.to_vec(), Some(percent(weight))));
        assert_eq!(look.progress == Progress::Reached, weight == 100);
        tokio::time::sleep(Duration::from_secs(10)).await;
    }
    fake.stick(1, "v2", 3);
    assert_eq!(fake.baseline().await.unwrap().id.as_str(), "v2");
    let shifts = driver.drive(Goal::Baseline).await;
    assert_eq!(shifts.len(), 1 + 3, "one to go back and three restarts");
    fake.stick(0, "v3", usize::MAX);
    let mixed = fake.baseline().await.unwrap_err();
    assert_eq!(mixed.kind(), ErrorKind::Mixed);
    assert_eq!(mixed.to_string(), "no one revision serves: web-1 serves v3 100 %, web-2 serves v1 100 %");
    let look = driver.look(Goal::Baseline).await;
    assert_eq!(look.progress, Progress::Due("restart web-1".into()));
    assert_eq!(served(&look), [Serves::Other, Serves::Baseline]);
}

#[tokio::test(start_paused = true)]
async fn a_weight_over_parts_is_never_rounded_to_nothing_or_to_all() {
    for (others, third, mean) in [("v1", 1, 1), ("v2", 99, 99), ("v1", 60, 20)] {
        let fake = Fake::new("v1", "v2").parts(3, Duration::ZERO);
        fake.stick(0, others, usize::MAX);
        fake.stick(1, others, usize::MAX);
        let change = Driver::new(&Fake::new("v1", "v2")).await.change;
        fake.drift(&[("v1", 100 - third), ("v2", third)]);
        let look = fake.observe(&change, Goal::Baseline, None).await.unwrap();
        assert_eq!(look.weight, Some(percent(mean)), "two parts serve {others}, the third {third} % of v2");
    }
}

#[tokio::test(start_paused = true)]
async fn weights_set_by_somebody_else_are_drift_forward_and_taken_along_on_the_way_back() {
    let fake = Fake::new("v1", "v2");
    let mut driver = Driver::new(&fake).await;
    let quarter = Goal::Split(percent(25));
    driver.drive(quarter).await;
    fake.drift(&[("v1", 40), ("v2", 60)]);
    let look = driver.look(quarter).await;
    assert_eq!(look.progress, Progress::Drifted("somebody set it to v1 40 %, v2 60 %".into()));
    driver.drive(Goal::Baseline).await;
    assert!(fake.only("v1"));
    // What happened before a rollout is none of its business.
    fake.drift(&[("v1", 100)]);
    Driver::new(&fake).await.drive(quarter).await;
}

#[tokio::test(start_paused = true)]
async fn the_test_clock_follows_tokio_and_jumps() {
    let clock = TestClock::new();
    let same = clock.clone();
    assert_eq!(clock.now(), TestClock::START);
    tokio::time::sleep(Duration::from_secs(90)).await;
    clock.jump(jiff::SignedDuration::from_secs(-3600));
    clock.jump(jiff::SignedDuration::from_secs(600));
    assert_eq!(same.now().duration_since(TestClock::START).as_secs(), 90 - 3600 + 600);
    assert_eq!(TestClock::START.to_string(), "2026-01-01T00:00:00Z");
}

/// Tries one promise on a bench; a broken one is an error with what its panic said.
async fn attempt<B: Bench + Clone + 'static>(bench: &B, name: &str) -> Result<Outcome, String> {
    let (_, promise) = PROMISES.iter().find(|(promise, _)| *promise == name).expect("a promise of this name");
    let bench = bench.clone();
    tokio::spawn(async move { promise(&bench).await }).await.map_err(|e| {
        let panic = e.into_panic();
        let text = panic.downcast_ref::<String>().map(String::as_str);
        text.or_else(|| panic.downcast_ref::<&str>().copied()).expect("panics have messages").to_owned()
    })
}

/// How a backend breaks its promises. Each is a mistake that real ones make.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lie {
    None,
    /// Every look touches the target's version.
    LooksWrite,
    /// A look does what it finds due.
    LooksAct,
    NeverAnswers,
    BaselineIsNeverTwiceTheSame,
    MixedIsPassedOver,
    /// The dry run was not dry.
    PreflightActs,
    PreflightProvesNothing,
    PreflightRefusesNothing,
    OtherWeightsAreRoundedUp,
    WeightsAreOffByOne,
    ReachedBeforeEveryPart,
    /// Says that the baseline is back when it was asked for, and tells nothing of parts.
    BackBeforeEveryPart,
    /// Cannot stop a deployment that runs.
    BackOnlyFromRest,
    /// The first effect of a rollback is housekeeping.
    TrafficLast,
    /// The way back is known only to the process that went forward.
    RemembersInMemory,
    SaysReachedIsInvalid,
    EverythingHasLanded,
    NothingHasLanded,
    /// The version is a hash of what is served, without the nonce: equal again after there and back.
    VersionIsTheContent,
    VersionsAreIgnored,
    ConflictIsUnavailable,
    /// Compares the version, and then writes unconditionally.
    ChecksThenActs,
    /// Undoes whatever was done last, and says that this may be repeated.
    UndoesTheUndone,
    DriftIsPatience,
    DebugTellsAll,
    ErrorsTellAll,
}

#[derive(Clone)]
struct Liar {
    fake: Fake,
    lie: Lie,
}

impl Liar {
    fn bench(fake: Fake, lie: Lie) -> Self {
        Self { fake, lie }
    }

    fn content(&self) -> Version {
        let stands: Vec<String> = self.fake.stands().iter().map(|(id, weight)| format!("{id}={weight}")).collect();
        Version::try_from(stands.join("+")).unwrap()
    }
}

#[async_trait]
impl Bench for Liar {
    async fn reset(&self) {
        self.fake.reset().await;
    }
    async fn connect(&self) -> Arc<dyn DeploymentBackend> {
        Arc::new(LyingBackend { liar: self.clone(), went_forward: AtomicBool::new(false) })
    }
    fn candidate(&self) -> Revision {
        self.fake.candidate()
    }
    async fn settle(&self) {
        self.fake.settle().await;
    }
    async fn drift(&self) -> bool {
        Bench::drift(&self.fake).await
    }
    fn secret(&self) -> Option<String> {
        self.fake.secret()
    }
}

/// One process: what it remembers, a new one does not know.
struct LyingBackend {
    liar: Liar,
    went_forward: AtomicBool,
}

impl fmt::Debug for LyingBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.liar.lie {
            Lie::DebugTellsAll => write!(f, "{:?}", self.liar.fake.secret()),
            _ => self.liar.fake.fmt(f),
        }
    }
}

impl LyingBackend {
    /// Shifts with the version the target has now, whatever was asked.
    async fn shift_anyway(&self, change: &Change, goal: Goal, attempt: &Attempt) -> Result<()> {
        let attempt = Attempt { version: self.liar.fake.version(), ..attempt.clone() };
        self.liar.fake.shift(change, goal, &attempt).await
    }

    async fn write(&self, change: &Change, goal: Goal) {
        let nonce = "a look".parse().unwrap();
        let attempt = Attempt { nonce, goal, version: self.liar.fake.version(), at: TestClock::START };
        self.liar.fake.shift(change, goal, &attempt).await.unwrap();
    }
}

#[async_trait]
impl DeploymentBackend for LyingBackend {
    fn capabilities(&self) -> Capabilities {
        self.liar.fake.capabilities()
    }

    async fn baseline(&self) -> Result<Revision> {
        let baseline = self.liar.fake.baseline().await;
        match self.liar.lie {
            Lie::BaselineIsNeverTwiceTheSame => baseline?.with_spec(&self.liar.fake.reads()),
            Lie::MixedIsPassedOver => baseline.or_else(|_| Revision::new("v1")),
            _ => baseline,
        }
    }

    async fn preflight(&self, change: &Change, plan: &Plan) -> Result<Readiness> {
        let mut found = self.liar.fake.preflight(change, plan).await?;
        match self.liar.lie {
            Lie::PreflightActs => self.write(change, Goal::Split(percent(1))).await,
            Lie::PreflightProvesNothing => found = Readiness::default(),
            Lie::PreflightRefusesNothing => found.refused.clear(),
            _ => {}
        }
        Ok(found)
    }

    async fn observe<'a>(&self, change: &Change, goal: Goal, last: Option<&'a Attempt>) -> Result<Observed> {
        let fake = &self.liar.fake;
        if self.liar.lie == Lie::NeverAnswers {
            fake.hang_read(fake.reads());
        }
        let mut look = fake.observe(change, goal, last).await?;
        let told_too_early = |look: &mut Observed| {
            if matches!(look.progress, Progress::Underway(_)) {
                look.progress = Progress::Reached;
            }
        };
        match self.liar.lie {
            Lie::LooksWrite => {
                fake.fault(fake.calls(), Fault::NoEffect);
                self.write(change, Goal::Baseline).await;
            }
            Lie::LooksAct if matches!(look.progress, Progress::Due(_)) => self.write(change, goal).await,
            Lie::WeightsAreOffByOne => {
                look.weight = look.weight.map(|weight| percent(weight.percent().saturating_sub(1)));
            }
            Lie::ReachedBeforeEveryPart => told_too_early(&mut look),
            Lie::BackBeforeEveryPart if goal == Goal::Baseline => {
                told_too_early(&mut look);
                look.parts.clear();
                look.weight = None;
            }
            Lie::BackOnlyFromRest if goal == Goal::Baseline => {
                let moving =
                    !fake.observe(change, Goal::Split(Weight::ALL), None).await?.progress.eq(&Progress::Reached);
                if moving && look.weight > Some(Weight::NONE) {
                    look.progress = Progress::Failed("a deployment is running".into());
                }
            }
            Lie::EverythingHasLanded => look.landed = last.is_some(),
            Lie::NothingHasLanded => look.landed = false,
            Lie::VersionIsTheContent => look.version = self.liar.content(),
            Lie::UndoesTheUndone => look.repeatable = true,
            Lie::DriftIsPatience if matches!(look.progress, Progress::Drifted(_)) => {
                look.progress = Progress::Underway("waiting".into());
            }
            _ => {}
        }
        Ok(look)
    }

    async fn shift(&self, change: &Change, goal: Goal, attempt: &Attempt) -> Result<()> {
        let fake = &self.liar.fake;
        let forward = self.went_forward.fetch_or(goal.is_forward(), Ordering::Relaxed);
        let conflict = || Error::new(ErrorKind::Conflict, "somebody was faster");
        match self.liar.lie {
            Lie::OtherWeightsAreRoundedUp => match (goal, fake.capabilities().weights) {
                (Goal::Split(weight), Weights::Only(these)) => {
                    let possible = these.iter().copied().find(|possible| *possible >= weight).unwrap();
                    fake.shift(change, Goal::Split(possible), attempt).await
                }
                _ => fake.shift(change, goal, attempt).await,
            },
            Lie::TrafficLast if goal == Goal::Baseline && forward => {
                self.went_forward.store(false, Ordering::Relaxed);
                fake.fault(fake.calls(), Fault::NoEffect);
                fake.shift(change, goal, attempt).await
            }
            Lie::RemembersInMemory if goal == Goal::Baseline && !forward => {
                Err(Error::new(ErrorKind::Internal, "this process knows of no way back"))
            }
            Lie::BackOnlyFromRest if goal == Goal::Baseline => {
                // The engine asks at least once, whatever failed before the rollback.
                let look = self.observe(change, goal, None).await?;
                if let Progress::Failed(why) = look.progress {
                    return Err(Error::new(ErrorKind::Unsupported, why.as_str()));
                }
                fake.shift(change, goal, attempt).await
            }
            Lie::SaysReachedIsInvalid => {
                if fake.observe(change, goal, None).await?.progress == Progress::Reached {
                    return Err(Error::invalid("nothing to do"));
                }
                fake.shift(change, goal, attempt).await
            }
            Lie::UndoesTheUndone if goal == Goal::Baseline && fake.only("v1") => {
                self.write(change, Goal::Split(Weight::ALL)).await;
                Ok(())
            }
            Lie::VersionIsTheContent => {
                if attempt.version != self.liar.content() {
                    return Err(conflict());
                }
                self.shift_anyway(change, goal, attempt).await
            }
            Lie::VersionsAreIgnored => self.shift_anyway(change, goal, attempt).await,
            Lie::ConflictIsUnavailable => fake.shift(change, goal, attempt).await.map_err(|e| match e.kind() {
                ErrorKind::Conflict => Error::new(ErrorKind::Unavailable, "status 412"),
                _ => e,
            }),
            Lie::ChecksThenActs => {
                if attempt.version != fake.version() {
                    return Err(conflict());
                }
                tokio::task::yield_now().await;
                self.shift_anyway(change, goal, attempt).await
            }
            Lie::ErrorsTellAll => fake
                .shift(change, goal, attempt)
                .await
                .map_err(|e| Error::new(e.kind(), format!("the request with {:?} fails", fake.secret()))),
            _ => fake.shift(change, goal, attempt).await,
        }
    }
}

fn is_underway(look: &Observed) -> bool {
    matches!(look.progress, Progress::Underway(_))
}

fn percent(share: u8) -> Weight {
    Weight::try_from(share).unwrap()
}
