//! The conformance suite for backends: one function a promise, and [`all`] of them.
//!
//! A backend author writes a [`Bench`], a target that can be put back to where it was, and calls [`all`] in a test. Each
//! promise puts the target back first, so they may run in any order, but not at the same time. A broken promise is a
//! panic that says what was seen instead.
//!
//! ```
//! use std::{sync::Arc, time::Duration};
//!
//! use async_trait::async_trait;
//! use rollback_core::{
//!     backend::DeploymentBackend,
//!     model::Revision,
//!     testing::{backend::{self, Bench, Outcome}, fakes::Fake},
//! };
//!
//! /// What a test needs to know of *your* platform; here it is a target in memory.
//! struct MyBench(Fake);
//!
//! #[async_trait]
//! impl Bench for MyBench {
//!     async fn reset(&self) {
//!         self.0.reset().await
//!     }
//!     async fn connect(&self) -> Arc<dyn DeploymentBackend> {
//!         self.0.connect().await
//!     }
//!     fn candidate(&self) -> Revision {
//!         Revision::new("v2").expect("a good id")
//!     }
//!     async fn settle(&self) {
//!         tokio::time::sleep(Duration::from_secs(1)).await
//!     }
//! }
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() {
//! for (promise, outcome) in backend::all(&MyBench(Fake::new("v1", "v2"))).await {
//!     if let Outcome::Skipped(why) = outcome {
//!         println!("{promise} was skipped: {why}");
//!     }
//! }
//! # }
//! ```

use std::{fmt, pin::Pin, sync::Arc, time::Duration};

use async_trait::async_trait;
use jiff::Timestamp;
use tokio::time::timeout;

use super::clock::TestClock;
use crate::{
    backend::{Capabilities, DeploymentBackend, Weights},
    clock::Clock as _,
    error::{Error, ErrorKind, Result},
    model::{
        Attempt, Change, Goal, Nonce, Note, Observed, Progress, Revision, RolloutId, Serial, Serves, TargetId, Version,
        Weight,
    },
    plan::{Plan, Step},
    state::{Cause, Event, Past, State, Terms, Turn, Versions, only, settles},
};

/// A target to try a backend on: what the author of a backend provides.
#[async_trait]
pub trait Bench: Send + Sync {
    /// Puts the target back: the baseline alone serves, nothing is on its way, the candidate can be deployed.
    async fn reset(&self);

    /// A new backend value for the target, sharing no memory with earlier ones, as a new process would make it.
    async fn connect(&self) -> Arc<dyn DeploymentBackend>;

    /// The revision to try.
    fn candidate(&self) -> Revision;

    /// A revision that does not exist on the platform.
    fn missing(&self) -> Revision {
        Revision::new("no-such-revision").expect("a good id")
    }

    /// Lets the platform's time pass, for as long as it makes sense to wait before the next look. Called up to
    /// [`PATIENCE`] times in a row.
    async fn settle(&self);

    /// Whether a process that was not there can tell at once that a goal is reached. False where it has to wait for what
    /// nobody can be asked for, as the caches of resolvers: then the sweeps let it look again and again after the end.
    fn tells_at_once(&self) -> bool {
        true
    }

    /// Somebody else changes the target, with other tools, to neither baseline nor candidate. False when that cannot be
    /// arranged here.
    async fn drift(&self) -> bool {
        false
    }

    /// A text that revisions of this target seal, or a credential of the backend: it may appear in no error and no
    /// `Debug`.
    fn secret(&self) -> Option<String> {
        None
    }
}

/// How often the suite looks, and lets the platform's time pass, before it calls a goal unreachable.
pub const PATIENCE: usize = 300;

/// How long the suite waits for the answer to one call: a minute.
pub const ANSWER: Duration = Duration::from_secs(60);

/// What came of a promise that was not broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was kept.
    Kept,
    /// It does not apply, or could not be tried here: why.
    Skipped(&'static str),
}

/// A promise, ready to be tried on a bench.
pub type Promise = for<'a> fn(&'a dyn Bench) -> Pin<Box<dyn Future<Output = Outcome> + Send + 'a>>;

/// All promises by name.
pub const PROMISES: &[(&str, Promise)] = &[
    ("a_look_has_no_effects", |bench| Box::pin(a_look_has_no_effects(bench))),
    ("the_baseline_is_what_serves", |bench| Box::pin(the_baseline_is_what_serves(bench))),
    ("preflight_changes_nothing", |bench| Box::pin(preflight_changes_nothing(bench))),
    ("a_missing_revision_is_refused", |bench| Box::pin(a_missing_revision_is_refused(bench))),
    ("an_inexpressible_weight_is_unsupported", |bench| Box::pin(an_inexpressible_weight_is_unsupported(bench))),
    ("every_weight_arrives_and_then_the_candidate", |bench| {
        Box::pin(every_weight_arrives_and_then_the_candidate(bench))
    }),
    ("the_baseline_comes_back_from_every_weight", |bench| Box::pin(the_baseline_comes_back_from_every_weight(bench))),
    ("the_baseline_comes_back_from_half_way", |bench| Box::pin(the_baseline_comes_back_from_half_way(bench))),
    ("the_first_effect_back_returns_the_traffic", |bench| Box::pin(the_first_effect_back_returns_the_traffic(bench))),
    ("a_new_process_goes_back_from_the_record_alone", |bench| {
        Box::pin(a_new_process_goes_back_from_the_record_alone(bench))
    }),
    ("reaching_a_goal_twice_is_harmless", |bench| Box::pin(reaching_a_goal_twice_is_harmless(bench))),
    ("a_lost_answer_is_seen_by_the_next_look", |bench| Box::pin(a_lost_answer_is_seen_by_the_next_look(bench))),
    ("an_accepted_shift_spends_its_version", |bench| Box::pin(an_accepted_shift_spends_its_version(bench))),
    ("a_stale_version_moves_nothing", |bench| Box::pin(a_stale_version_moves_nothing(bench))),
    ("of_two_drivers_one_is_refused", |bench| Box::pin(of_two_drivers_one_is_refused(bench))),
    ("a_call_from_before_a_rollback_is_refused_after_it", |bench| {
        Box::pin(a_call_from_before_a_rollback_is_refused_after_it(bench))
    }),
    ("what_is_repeatable_has_its_effect_once", |bench| Box::pin(what_is_repeatable_has_its_effect_once(bench))),
    ("drift_is_told", |bench| Box::pin(drift_is_told(bench))),
    ("nothing_sealed_is_printed", |bench| Box::pin(nothing_sealed_is_printed(bench))),
];

/// Tries every promise, one after the other.
///
/// # Panics
/// When one is broken: the message says what was seen instead, and standard error names the promise.
pub async fn all(bench: &dyn Bench) -> Vec<(&'static str, Outcome)> {
    let mut outcomes = Vec::with_capacity(PROMISES.len());
    for (name, promise) in PROMISES {
        let trying = Trying(name);
        outcomes.push((*name, promise(bench).await));
        drop(trying);
    }
    outcomes
}

/// Names the promise that is being tried when it panics.
struct Trying(&'static str);

impl Drop for Trying {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("broken: the promise that {}", self.0.replace('_', " "));
        }
    }
}

/// Looking is free: the same is seen twice, and nothing has moved.
///
/// # Panics
/// When it is broken.
pub async fn a_look_has_no_effects(bench: &dyn Bench) -> Outcome {
    bench.reset().await;
    let mut driver = Driver::new(bench).await;
    let ladder = weights(&driver.backend.capabilities());
    let goals: Vec<Goal> = ladder.iter().map(|w| Goal::Split(*w)).chain([Goal::Candidate, Goal::Baseline]).collect();
    for place in [None, ladder.last().map(|weight| Goal::Split(*weight)), Some(Goal::Candidate)] {
        if let Some(place) = place {
            driver.drive(place).await;
        }
        let mut first = Vec::new();
        for goal in &goals {
            first.push(driver.look(*goal).await);
        }
        for (goal, first) in goals.iter().zip(&first) {
            let second = driver.look(*goal).await;
            assert_eq!(first, &second, "a look has effects: two looks at {goal} in a row, at rest, differ");
        }
        let versions: Vec<&Version> = first.iter().map(|look| &look.version).collect();
        assert!(
            versions.iter().all(|version| *version == versions[0]),
            "a look has effects, or its version depends on the goal: looks at one target saw {versions:?}"
        );
    }
    Outcome::Kept
}

/// `baseline` tells what serves, the same twice; while two revisions share the traffic it is `Mixed`.
///
/// # Panics
/// When it is broken.
pub async fn the_baseline_is_what_serves(bench: &dyn Bench) -> Outcome {
    bench.reset().await;
    let mut driver = Driver::new(bench).await;
    let again = driver.baseline().await.unwrap_or_else(|e| panic!("the baseline cannot be read: {}", e.chain()));
    assert_eq!(again.id, driver.change.baseline.id, "the baseline, read twice");
    assert!(again.spec == driver.change.baseline.spec, "the baseline, read twice, has two specs");
    if let Some(half) = weights(&driver.backend.capabilities()).into_iter().find(|weight| is_between(*weight)) {
        driver.drive(Goal::Split(half)).await;
        match driver.baseline().await {
            Err(e) if e.kind() == ErrorKind::Mixed => {}
            other => panic!("with {half} on the candidate, baseline() is {other:?}; it must fail as Mixed"),
        }
    }
    driver.drive(Goal::Candidate).await;
    driver.assert_serves(&bench.candidate(), "after the candidate was reached").await;
    Outcome::Kept
}

/// Preflight finds both ways open on a good bench, says what it proved, and changes nothing.
///
/// # Panics
/// When it is broken.
pub async fn preflight_changes_nothing(bench: &dyn Bench) -> Outcome {
    bench.reset().await;
    let driver = Driver::new(bench).await;
    let before = driver.look(Goal::Baseline).await;
    let plan = plan_of(&weights(&driver.backend.capabilities()));
    for _ in 0..2 {
        let found = retried(bench, || driver.backend.preflight(&driver.change, &plan)).await;
        let found = found.unwrap_or_else(|e| panic!("preflight fails: {}", e.chain()));
        assert!(found.refused.is_empty(), "preflight refuses what the bench says is possible: {:?}", found.refused);
        assert!(
            !found.proved.is_empty() || !found.not_provable.is_empty(),
            "preflight neither proves anything nor says what it cannot prove"
        );
    }
    assert_eq!(driver.look(Goal::Baseline).await, before, "preflight changed the target");
    Outcome::Kept
}

/// A candidate that does not exist is refused before anything changes.
///
/// # Panics
/// When it is broken.
pub async fn a_missing_revision_is_refused(bench: &dyn Bench) -> Outcome {
    bench.reset().await;
    let mut driver = Driver::new(bench).await;
    let before = driver.look(Goal::Baseline).await;
    driver.change.candidate = bench.missing();
    let plan = plan_of(&weights(&driver.backend.capabilities()));
    match retried(bench, || driver.backend.preflight(&driver.change, &plan)).await {
        Ok(found) => assert!(!found.refused.is_empty(), "preflight refuses nothing, though the candidate is missing"),
        Err(e) => assert!(
            matches!(e.kind(), ErrorKind::NotFound | ErrorKind::Invalid),
            "preflight of a missing candidate is {}; not found or invalid is accepted: {}",
            e.kind(),
            e.chain()
        ),
    }
    driver.change.candidate = bench.candidate();
    assert_eq!(driver.look(Goal::Baseline).await, before, "preflight of a missing candidate changed the target");
    Outcome::Kept
}

/// A weight that the platform cannot give is `Unsupported`, before any effect.
///
/// # Panics
/// When it is broken.
pub async fn an_inexpressible_weight_is_unsupported(bench: &dyn Bench) -> Outcome {
    bench.reset().await;
    let mut driver = Driver::new(bench).await;
    let capabilities = driver.backend.capabilities();
    let Some(weight) = (0..=100).map(percent).find(|weight| !capabilities.weights.contains(*weight)) else {
        return Outcome::Skipped("every weight can be given here");
    };
    let before = driver.look(Goal::Baseline).await;
    let goal = Goal::Split(weight);
    let attempt = driver.save(goal, &before.version);
    match driver.send(&attempt).await {
        Err(e) if e.kind() == ErrorKind::Unsupported => {}
        other => panic!("a shift to {weight}, where {} is possible, is {other:?}", capabilities.weights),
    }
    driver.forget();
    assert_eq!(driver.look(Goal::Baseline).await, before, "a shift to an inexpressible weight changed the target");
    Outcome::Kept
}

/// Every weight of a canary arrives, is told as it is, and then the candidate alone serves.
///
/// # Panics
/// When it is broken.
pub async fn every_weight_arrives_and_then_the_candidate(bench: &dyn Bench) -> Outcome {
    bench.reset().await;
    let mut driver = Driver::new(bench).await;
    for weight in weights(&driver.backend.capabilities()) {
        driver.drive(Goal::Split(weight)).await;
    }
    driver.drive(Goal::Candidate).await;
    driver.assert_serves(&bench.candidate(), "after a canary up to the candidate").await;
    Outcome::Kept
}

/// From every weight, and from the candidate alone, the baseline comes back, alone.
///
/// # Panics
/// When it is broken.
pub async fn the_baseline_comes_back_from_every_weight(bench: &dyn Bench) -> Outcome {
    bench.reset().await;
    let ladder = weights(&bench.connect().await.capabilities());
    for place in ladder.into_iter().map(Goal::Split).chain([Goal::Candidate]) {
        bench.reset().await;
        let mut driver = Driver::new(bench).await;
        driver.drive(place).await;
        driver.drive(Goal::Baseline).await;
        let baseline = driver.change.baseline.clone();
        driver.assert_serves(&baseline, &format!("after a rollback from {place}")).await;
    }
    Outcome::Kept
}

/// The baseline comes back when the rollout is cut short after any one of its effects: at once, and when the platform has
/// begun to act on it.
///
/// # Panics
/// When it is broken.
pub async fn the_baseline_comes_back_from_half_way(bench: &dyn Bench) -> Outcome {
    for effects in 1..=PATIENCE {
        let mut whole = true;
        for begun in [false, true] {
            bench.reset().await;
            let mut driver = Driver::new(bench).await;
            let ladder = weights(&driver.backend.capabilities());
            let half = ladder.iter().copied().find(|weight| is_between(*weight));
            let mut left = effects;
            for goal in half.into_iter().chain([Weight::ALL]).map(Goal::Split).chain([Goal::Candidate]) {
                if driver.advance(goal, &mut left).await.is_none() {
                    whole = false;
                    break;
                }
            }
            if begun {
                bench.settle().await;
            }
            driver.drive(Goal::Baseline).await;
            let baseline = driver.change.baseline.clone();
            driver.assert_serves(&baseline, &format!("after a rollback right after effect {effects}")).await;
        }
        if whole {
            break;
        }
    }
    Outcome::Kept
}

/// Traffic first: where the baseline stands, the first effect of a rollback takes the candidate's traffic away, and no
/// second effect is needed for that.
///
/// # Panics
/// When it is broken.
pub async fn the_first_effect_back_returns_the_traffic(bench: &dyn Bench) -> Outcome {
    bench.reset().await;
    let capabilities = bench.connect().await.capabilities();
    if !capabilities.baseline_stands {
        return Outcome::Skipped("the baseline does not stand here");
    }
    for weight in weights(&capabilities).into_iter().filter(|weight| *weight > Weight::NONE) {
        bench.reset().await;
        let mut driver = Driver::new(bench).await;
        driver.drive(Goal::Split(weight)).await;
        let due = driver.look(Goal::Baseline).await;
        if due.weight.is_none() {
            return Outcome::Skipped("the platform does not tell the candidate's share");
        }
        let Progress::Due(effect) = &due.progress else {
            panic!("at {weight}, a look at the baseline is {:?}; the way back must be due", due.progress)
        };
        let attempt = driver.save(Goal::Baseline, &due.version);
        driver.send(&attempt).await.unwrap_or_else(|e| panic!("at {weight}, {effect:?} fails: {}", e.chain()));
        let mut seen = driver.look(Goal::Baseline).await;
        for _ in 0..PATIENCE {
            if seen.weight == Some(Weight::NONE) {
                break;
            }
            bench.settle().await;
            seen = driver.look(Goal::Baseline).await;
        }
        assert_eq!(
            seen.weight,
            Some(Weight::NONE),
            "the first effect of a rollback from {weight}, {effect:?}, leaves the candidate traffic: {:?}",
            seen.progress
        );
    }
    Outcome::Kept
}

/// A process that knows nothing but the record brings the baseline back.
///
/// # Panics
/// When it is broken.
pub async fn a_new_process_goes_back_from_the_record_alone(bench: &dyn Bench) -> Outcome {
    bench.reset().await;
    let ladder = weights(&bench.connect().await.capabilities());
    let highest = *ladder.last().expect("100 % is always possible");
    for place in [Goal::Split(ladder[0]), Goal::Split(highest), Goal::Candidate] {
        bench.reset().await;
        let mut first = Driver::new(bench).await;
        first.drive(place).await;
        let mut second = first.successor().await;
        drop(first);
        second.drive(Goal::Baseline).await;
        let baseline = second.change.baseline.clone();
        second.assert_serves(&baseline, &format!("after a new process rolled back from {place}")).await;
    }
    Outcome::Kept
}

/// A goal that is reached stays reached, needs nothing more, and bears one more shift.
///
/// # Panics
/// When it is broken.
pub async fn reaching_a_goal_twice_is_harmless(bench: &dyn Bench) -> Outcome {
    bench.reset().await;
    let mut driver = Driver::new(bench).await;
    let highest = *weights(&driver.backend.capabilities()).last().expect("100 % is always possible");
    for goal in [Goal::Split(highest), Goal::Candidate, Goal::Baseline] {
        driver.drive(goal).await;
        let before = driver.look(goal).await;
        let more = driver.drive(goal).await;
        assert!(more.is_empty(), "{goal} was reached, and then it took {} more shifts", more.len());

        let attempt = driver.save(goal, &before.version);
        let sent = driver.send(&attempt).await;
        sent.unwrap_or_else(|e| panic!("{goal} is reached, and one more shift towards it fails: {}", e.chain()));
        driver.drive(goal).await;
        let after = driver.look(goal).await;
        assert_eq!(after.weight, before.weight, "one more shift towards {goal}, which was reached, moved traffic");
        assert_eq!(after.parts, before.parts, "one more shift towards {goal}, which was reached, moved parts");
    }
    Outcome::Kept
}

/// A shift whose answer was lost is seen by a later look, and one that was never sent is not.
///
/// # Panics
/// When it is broken.
pub async fn a_lost_answer_is_seen_by_the_next_look(bench: &dyn Bench) -> Outcome {
    bench.reset().await;
    let mut driver = Driver::new(bench).await;
    for goal in [Goal::Split(*weights(&driver.backend.capabilities()).last().expect("100 %")), Goal::Baseline] {
        let due = driver.look(goal).await;
        let attempt = driver.save(goal, &due.version);
        let unsent = driver.successor().await.look(goal).await;
        assert!(!unsent.landed, "an attempt towards {goal} that was never sent is said to have landed");

        // Whatever the answer is, the next process does not know it.
        let _ = driver.send(&attempt).await;
        let next = driver.successor().await;
        let mut seen = next.look(goal).await;
        for _ in 0..PATIENCE {
            if seen.landed || is_checked(&next) && seen.version != attempt.version {
                break;
            }
            bench.settle().await;
            seen = next.look(goal).await;
        }
        assert!(
            seen.landed || is_checked(&next) && seen.version != attempt.version,
            "a shift towards {goal} landed, and no look sees it: neither `landed`{}",
            if is_checked(&next) { " nor another version" } else { "" }
        );
        driver.drive(goal).await;
    }
    Outcome::Kept
}

/// Versions checked: an accepted shift spends its version, even when nothing else changes.
///
/// # Panics
/// When it is broken.
pub async fn an_accepted_shift_spends_its_version(bench: &dyn Bench) -> Outcome {
    bench.reset().await;
    let mut driver = Driver::new(bench).await;
    if !is_checked(&driver) {
        return Outcome::Skipped(UNCHECKED);
    }
    let highest = *weights(&driver.backend.capabilities()).last().expect("100 % is always possible");
    // The baseline first: it is reached already, so nothing but the version changes.
    for goal in [Goal::Baseline, Goal::Split(highest), Goal::Candidate, Goal::Baseline] {
        let due = driver.look(goal).await;
        let attempt = driver.save(goal, &due.version);
        let what = format!("a shift towards {goal} while {:?}", due.progress);
        driver.send(&attempt).await.unwrap_or_else(|e| panic!("{what} on the version just seen fails: {}", e.chain()));
        let look = driver.look(goal).await;
        assert_ne!(look.version, attempt.version, "{what} was accepted and did not spend its version");
        driver.assert_refused(&attempt, &format!("the second time, {what}")).await;
        driver.drive(goal).await;
    }
    Outcome::Kept
}

/// Versions checked: a shift that carries a version the target no longer has is `Conflict`, and nothing moves.
///
/// # Panics
/// When it is broken.
pub async fn a_stale_version_moves_nothing(bench: &dyn Bench) -> Outcome {
    bench.reset().await;
    let mut late = Driver::new(bench).await;
    if !is_checked(&late) {
        return Outcome::Skipped(UNCHECKED);
    }
    let ladder = weights(&late.backend.capabilities());
    let version = late.look(Goal::Baseline).await.version;
    let highest = *ladder.last().expect("100 % is always possible");
    let stale: Vec<Attempt> = [Goal::Baseline, Goal::Candidate, Goal::Split(highest)]
        .into_iter()
        .map(|goal| late.save(goal, &version))
        .collect();
    let mut driver = Driver::new(bench).await;
    // Where both stand already, 0 % is reached without a shift, and spends nothing.
    let place = ladder.into_iter().find(|weight| *weight > Weight::NONE).map(Goal::Split).expect("100 %");
    driver.drive(place).await;
    for attempt in &stale {
        let before = driver.look(place).await;
        late.assert_refused(attempt, &format!("a shift towards {} with a version spent since", attempt.goal)).await;
        assert_eq!(driver.look(place).await, before, "a refused shift towards {} moved the target", attempt.goal);
    }
    Outcome::Kept
}

/// Versions checked: of two shifts with one version, sent at the same time, exactly one is accepted.
///
/// # Panics
/// When it is broken.
pub async fn of_two_drivers_one_is_refused(bench: &dyn Bench) -> Outcome {
    bench.reset().await;
    let (mut one, mut two) = (Driver::new(bench).await, Driver::new(bench).await);
    if !is_checked(&one) {
        return Outcome::Skipped(UNCHECKED);
    }
    let highest = *weights(&one.backend.capabilities()).last().expect("100 % is always possible");
    let version = one.look(Goal::Baseline).await.version;
    let forward = one.save(Goal::Split(highest), &version);
    let back = two.save(Goal::Baseline, &version);
    let (forward, back) = tokio::join!(one.send(&forward), two.send(&back));
    match (&forward, &back) {
        (Ok(()), Err(e)) | (Err(e), Ok(())) => {
            assert_eq!(
                e.kind(),
                ErrorKind::Conflict,
                "the slower of two drivers must hear Conflict, not {}",
                e.chain()
            );
        }
        both => panic!("two drivers sent a shift with one version; one must be refused, but they heard {both:?}"),
    }
    Outcome::Kept
}

/// Versions checked: a call that was saved before a rollback and sent after it is refused, and the baseline stays.
///
/// # Panics
/// When it is broken.
pub async fn a_call_from_before_a_rollback_is_refused_after_it(bench: &dyn Bench) -> Outcome {
    bench.reset().await;
    let probe = Driver::new(bench).await;
    if !is_checked(&probe) {
        return Outcome::Skipped(UNCHECKED);
    }
    let highest = *weights(&probe.backend.capabilities()).last().expect("100 % is always possible");
    // From the fresh target the baseline is reached without any change: only rule 3 and rule 2 together help there.
    for place in [None, Some(Goal::Split(highest))] {
        bench.reset().await;
        let mut driver = Driver::new(bench).await;
        if let Some(place) = place {
            driver.drive(place).await;
        }
        let forward = if place.is_some() { Goal::Candidate } else { Goal::Split(highest) };
        let version = driver.look(forward).await.version;
        let late = driver.save(forward, &version);
        driver.drive(Goal::Baseline).await;
        driver.assert_refused(&late, &format!("a late shift towards {forward}, after the rollback,")).await;
        driver.assert_stays_back(&format!("a late shift towards {forward}"), "after a late call was refused").await;
    }
    Outcome::Kept
}

/// What is said to be repeatable on the way back is: sent again at once, and again when the baseline is back, it changes
/// nothing. Kept where nothing is said to be.
///
/// # Panics
/// When it is broken.
pub async fn what_is_repeatable_has_its_effect_once(bench: &dyn Bench) -> Outcome {
    bench.reset().await;
    let ladder = weights(&Driver::new(bench).await.backend.capabilities());
    let highest = *ladder.last().expect("100 % is always possible");
    // Before anything has arrived, and at each weight.
    for place in [None].into_iter().chain(ladder.into_iter().map(Some)) {
        bench.reset().await;
        let mut driver = Driver::new(bench).await;
        if let Some(weight) = place {
            driver.drive(Goal::Split(weight)).await;
        } else {
            let version = driver.look(Goal::Split(highest)).await.version;
            let forward = driver.save(Goal::Split(highest), &version);
            driver.send(&forward).await.unwrap_or_else(|e| panic!("a first shift fails: {}", e.chain()));
        }
        let look = driver.look(Goal::Baseline).await;
        if !(look.repeatable && matches!(look.progress, Progress::Due(_))) {
            continue;
        }
        let [first, again, late] = [(); 3].map(|()| driver.save(Goal::Baseline, &look.version));
        driver.send(&first).await.unwrap_or_else(|e| panic!("a repeatable shift fails: {}", e.chain()));
        let harmless = |answer: Result<()>, when: &str| {
            if let Err(e) = answer {
                assert!(e.changed_nothing(), "a repeatable shift sent again {when} fails: {}", e.chain());
            }
        };
        harmless(driver.send(&again).await, "at once");
        driver.drive(Goal::Baseline).await;
        harmless(driver.send(&late).await, "when the baseline is back");
        driver.assert_stays_back("a repeatable shift sent again", "after a repeatable shift was sent again").await;
    }
    Outcome::Kept
}

/// When somebody else changes the target, the next looks on the way forward say so.
///
/// # Panics
/// When it is broken.
pub async fn drift_is_told(bench: &dyn Bench) -> Outcome {
    bench.reset().await;
    let mut driver = Driver::new(bench).await;
    let highest = *weights(&driver.backend.capabilities()).last().expect("100 % is always possible");
    for goal in [Goal::Split(highest), Goal::Candidate] {
        bench.reset().await;
        driver.forget();
        driver.drive(goal).await;
        if !bench.drift().await {
            return Outcome::Skipped("the bench cannot arrange drift");
        }
        let mut look = driver.look(goal).await;
        for _ in 0..PATIENCE {
            if matches!(look.progress, Progress::Drifted(_)) {
                break;
            }
            bench.settle().await;
            look = driver.look(goal).await;
        }
        let seen = &look.progress;
        assert!(matches!(seen, Progress::Drifted(_)), "somebody changed the target, and a look at {goal} is {seen:?}");
    }
    Outcome::Kept
}

/// What is sealed appears in no `Debug` of the backend and in nothing that it says.
///
/// # Panics
/// When it is broken.
pub async fn nothing_sealed_is_printed(bench: &dyn Bench) -> Outcome {
    let Some(secret) = bench.secret() else { return Outcome::Skipped("the bench names no secret") };
    bench.reset().await;
    let mut driver = Driver::new(bench).await;
    let clean = |what: &str, text: String| assert!(!text.contains(&secret), "{what} prints what is sealed");
    clean("Debug of the backend", format!("{:?} {:#?}", driver.backend, driver.backend));
    clean("the baseline's id", driver.change.baseline.id.to_string());
    let ladder = weights(&driver.backend.capabilities());
    let plan = plan_of(&ladder);
    let found = retried(bench, || driver.backend.preflight(&driver.change, &plan)).await;
    clean("preflight", format!("{found:?}"));
    for goal in [Goal::Split(ladder[0]), Goal::Candidate, Goal::Baseline] {
        clean("a look", format!("{:?}", driver.look(goal).await));
        driver.drive(goal).await;
        clean("a look", format!("{:?}", driver.look(goal).await));
        clean("Debug of the backend", format!("{:?}", driver.backend));
    }
    let version = driver.look(Goal::Baseline).await.version;
    driver.change.candidate = bench.missing();
    let attempt = driver.save(Goal::Candidate, &version);
    // The target may end up broken: the next promise puts it back.
    if let Err(e) = driver.send(&attempt).await {
        clean("an error", format!("{} {e:?}", e.chain()));
    }
    if let Err(e) = driver.send(&attempt).await {
        clean("an error", format!("{} {e:?}", e.chain()));
    }
    Outcome::Kept
}

/// A driver by hand: look, save, act, with the record in memory and the machine's own judgement of what a look means.
///
/// The suite is written with it; use it for tests of what is special about your platform.
pub struct Driver<'a> {
    /// What replaces what.
    pub change: Change,
    /// The way to the target.
    pub backend: Arc<dyn DeploymentBackend>,
    bench: &'a dyn Bench,
    clock: TestClock,
    serial: Serial,
    last: Option<Attempt>,
    closed: bool,
    unsettled: Option<Timestamp>,
}

impl<'a> Driver<'a> {
    /// A new rollout from what serves now to the bench's candidate.
    ///
    /// # Panics
    /// When the baseline cannot be read, or is the candidate.
    pub async fn new(bench: &'a dyn Bench) -> Self {
        let backend = bench.connect().await;
        let baseline = retried(bench, || backend.baseline()).await;
        let baseline = baseline.unwrap_or_else(|e| panic!("the baseline of a fresh target fails: {}", e.chain()));
        let candidate = bench.candidate();
        assert_ne!(baseline.id, candidate.id, "the bench's candidate serves already");
        let target = TargetId::try_from("conformance").expect("a good id");
        let change = Change { rollout: RolloutId::fresh(&target), target, baseline, candidate };
        let (clock, serial) = (TestClock::new(), Serial(1));
        Self { change, backend, bench, clock, serial, last: None, closed: true, unsettled: None }
    }

    /// The same rollout in a new process, which knows what the record says and nothing else.
    ///
    /// # Panics
    /// When the change does not survive being recorded.
    pub async fn successor(&self) -> Self {
        let change = serde_json::to_string(&self.change).and_then(|json| serde_json::from_str(&json));
        Self {
            change: change.unwrap_or_else(|e| panic!("the change cannot be recorded: {e}")),
            backend: self.bench.connect().await,
            bench: self.bench,
            clock: self.clock.clone(),
            serial: self.serial,
            last: self.last.clone(),
            closed: self.closed,
            unsettled: self.unsettled,
        }
    }

    /// What serves now. Transient errors are retried.
    ///
    /// # Errors
    /// What the backend says, transient errors only when they last.
    pub async fn baseline(&self) -> Result<Revision> {
        retried(self.bench, || self.backend.baseline()).await
    }

    /// One look at this goal, with the last attempt. Transient errors are retried.
    ///
    /// # Panics
    /// When it fails for good, or when it contradicts itself: `Reached`, but weight or parts say otherwise.
    pub async fn look(&self, goal: Goal) -> Observed {
        let look = retried(self.bench, || self.backend.observe(&self.change, goal, self.last.as_ref())).await;
        let look = look.unwrap_or_else(|e| panic!("a look at {goal} fails: {}", e.chain()));
        if look.progress == Progress::Reached {
            let borne_out = match goal {
                Goal::Baseline => only(Serves::Baseline, &look),
                Goal::Candidate => only(Serves::Candidate, &look),
                Goal::Split(weight) => match look.weight {
                    Some(seen) if seen != weight => Err(Note::new(format!("the candidate has {seen}"))),
                    _ => Ok(()),
                },
            };
            borne_out.unwrap_or_else(|but| panic!("a look says that {goal} is reached, but {but}"));
        }
        look
    }

    /// Writes an attempt into the record, and sends nothing.
    pub fn save(&mut self, goal: Goal, version: &Version) -> Attempt {
        if let (false, Some(last), Versions::Unchecked { settle }) =
            (self.closed, &self.last, self.backend.capabilities().versions)
        {
            self.unsettled = self.unsettled.max(Some(settles(last, settle)));
        }
        self.serial = self.serial.next();
        let nonce = Nonce::new(&self.change.rollout, self.serial, goal);
        let attempt = Attempt { nonce, goal, version: version.clone(), at: self.clock.now() };
        self.last = Some(attempt.clone());
        self.closed = false;
        attempt
    }

    /// Sends an attempt, now or as late as you like.
    ///
    /// # Errors
    /// What the backend says; `Unavailable` when it says nothing within [`ANSWER`].
    pub async fn send(&mut self, attempt: &Attempt) -> Result<()> {
        let answer = timeout(ANSWER, self.backend.shift(&self.change, attempt.goal, attempt)).await;
        let answer = answer.unwrap_or_else(|_| Err(Error::new(ErrorKind::Unavailable, unanswered())));
        if self.last.as_ref() == Some(attempt) {
            self.closed = answer.as_ref().map_or_else(Error::changed_nothing, |()| true);
        }
        answer
    }

    /// Looks, saves and acts until the machine calls the goal reached. The attempts that it took.
    ///
    /// # Panics
    /// When the goal is not reached within [`PATIENCE`], fails, or drifts away.
    pub async fn drive(&mut self, goal: Goal) -> Vec<Attempt> {
        let mut left = usize::MAX;
        self.advance(goal, &mut left).await.expect("usize::MAX attempts are never used up")
    }

    /// As [`drive`](Self::drive), with so many shifts left. None when they are used up.
    async fn advance(&mut self, goal: Goal, left: &mut usize) -> Option<Vec<Attempt>> {
        let (state, plan) = attempting(goal);
        let mut attempts = Vec::new();
        let mut said = String::from("nothing");
        for _ in 0..PATIENCE {
            let look = self.look(goal).await;
            said = format!("{:?}", look.progress);
            if look.landed {
                self.closed = true;
            }
            let terms = Terms { plan: &plan, way_back: true, retake: false };
            let past = Past {
                last: self.last.as_ref(),
                closed: self.closed,
                unsettled: self.unsettled,
                inherited: None,
                asked: !attempts.is_empty(),
                versions: self.backend.capabilities().versions,
                now: self.clock.now(),
            };
            match state.heed(terms, &look, &past) {
                Turn::Tell(Event::Reached) => return Some(attempts),
                Turn::Tell(event) => panic!("on the way to {goal}: {event:?}"),
                Turn::Wait(_) => self.bench.settle().await,
                Turn::Shift(effect) => {
                    let attempt = self.save(goal, &look.version);
                    let answer = self.send(&attempt).await;
                    attempts.push(attempt);
                    match answer {
                        Ok(()) => {}
                        Err(e) if e.is_transient() || e.kind() == ErrorKind::Conflict => {
                            said = e.chain();
                            self.bench.settle().await;
                        }
                        Err(e) => panic!("on the way to {goal}, {effect:?} fails: {}", e.chain()),
                    }
                    *left -= 1;
                    if *left == 0 {
                        return None;
                    }
                }
            }
        }
        panic!("{goal} is not reached after {PATIENCE} looks and {} shifts; it says {said}", attempts.len())
    }

    /// Forgets the last attempt, as a rollout that has none.
    fn forget(&mut self) {
        (self.last, self.closed, self.unsettled) = (None, true, None);
    }

    /// Look after look the rollback stands: `what` has not undone it.
    async fn assert_stays_back(&self, what: &str, when: &str) {
        for _ in 0..3 {
            let look = self.look(Goal::Baseline).await;
            assert_eq!(look.progress, Progress::Reached, "{what} undid the rollback");
            self.bench.settle().await;
        }
        self.assert_serves(&self.change.baseline, when).await;
    }

    async fn assert_serves(&self, revision: &Revision, when: &str) {
        match self.baseline().await {
            Ok(serves) => assert_eq!(serves.id, revision.id, "{when}, baseline() tells another revision"),
            Err(e) => panic!("{when}, baseline() fails: {}", e.chain()),
        }
    }

    async fn assert_refused(&mut self, attempt: &Attempt, what: &str) {
        match self.send(attempt).await {
            Ok(()) => panic!("{what} was accepted; it must be refused as Conflict"),
            Err(e) => assert_eq!(e.kind(), ErrorKind::Conflict, "{what} must be refused as Conflict: {}", e.chain()),
        }
    }
}

impl fmt::Debug for Driver<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Driver").field("change", &self.change).field("last", &self.last).finish_non_exhaustive()
    }
}

/// The state that works towards a goal, and a plan in which it does.
fn attempting(goal: Goal) -> (State, Plan) {
    match goal {
        Goal::Split(weight) => (State::Shifting { step: 0 }, plan_of(&[weight])),
        Goal::Candidate => (State::Promoting, plan_of(&[])),
        Goal::Baseline => {
            let by = "conformance".parse().expect("a good name");
            (State::RollingBack { cause: Cause::Aborted { by, why: "a test".into() } }, plan_of(&[]))
        }
    }
}

/// A plan of these weights, and 100 in the end, without bakes.
fn plan_of(weights: &[Weight]) -> Plan {
    let last = (weights.last() != Some(&Weight::ALL)).then_some(Weight::ALL);
    let steps = weights.iter().copied().chain(last).map(|weight| Step::new(weight, Duration::ZERO));
    Plan::new(steps.collect::<Vec<_>>()).expect("rising weights up to 100")
}

/// Weights worth trying, ascending, 100 the last.
fn weights(capabilities: &Capabilities) -> Vec<Weight> {
    match &capabilities.weights {
        Weights::Any => [0, 1, 5, 33, 50, 99, 100].map(percent).into(),
        Weights::Only(these) => these.to_vec(),
        Weights::ProvidersPace => vec![Weight::ALL],
    }
}

fn is_between(weight: Weight) -> bool {
    weight > Weight::NONE && weight < Weight::ALL
}

fn is_checked(driver: &Driver<'_>) -> bool {
    driver.backend.capabilities().versions == Versions::Checked
}

fn percent(share: u8) -> Weight {
    Weight::try_from(share).expect("at most 100")
}

/// Calls until the answer is not a transient error, or patience is at an end.
async fn retried<T, F>(bench: &dyn Bench, mut call: impl FnMut() -> F) -> Result<T>
where
    F: Future<Output = Result<T>> + Send,
{
    let mut left = PATIENCE;
    loop {
        left -= 1;
        // A call that hangs is not tried again: with patience for each, the suite would take hours to say so.
        let answer = timeout(ANSWER, call()).await;
        match answer.unwrap_or_else(|_| Err(Error::new(ErrorKind::Internal, unanswered()))) {
            Err(e) if e.is_transient() && left > 0 => bench.settle().await,
            answer => return answer,
        }
    }
}

fn unanswered() -> String {
    format!("there was no answer within {} s", ANSWER.as_secs())
}

const UNCHECKED: &str = "the platform checks no versions";
