//! The engine on mocks, for what a fake cannot say: that something was never called, in which order, or how often; and
//! that listeners, strategies, gates and hooks that misbehave delay no rollback (P10).

use std::{
    sync::{Arc, Mutex, mpsc},
    time::Duration,
};

use mockall::{Sequence, predicate::eq};
use rollback_core::{
    Error, ErrorKind,
    backend::{Capabilities, MockDeploymentBackend, Readiness},
    engine::{Engine, Target},
    gate::{MockHealthGate, Policy},
    hook::Hook,
    listener::{Listener, MockListener, RolloutEvent},
    model::{GateName, Goal, Observed, Progress, Revision, Version, Weight},
    plan::Plan,
    request::{Ask, Request},
    rollout::What,
    state::{Cause, State},
    store::{Memory, MockStore},
    strategy::MockRollbackStrategy,
    testing::{clock::TestClock, fakes::Fake, gates::Scripted},
};
use tokio::time::Instant;

use crate::support::scene::{MINUTE, Scene, canary, checkout, deploy, until};

const SECOND: Duration = Duration::from_secs(1);

fn reached(version: &str) -> Observed {
    Observed::new(Progress::Reached, Version::try_from(version).unwrap())
}

fn due(effect: &str, version: &str) -> Observed {
    Observed::new(Progress::Due(effect.into()), Version::try_from(version).unwrap())
}

#[tokio::test(start_paused = true)]
async fn a_refused_preflight_never_calls_shift() {
    let mut backend = MockDeploymentBackend::new();
    backend.expect_capabilities().return_const(Capabilities::full());
    backend.expect_attach().return_const(());
    backend.expect_baseline().times(1).returning(|| Revision::new("v1"));
    backend.expect_preflight().times(1).returning(|_, _| Ok(Readiness::default().refused("v1 is gone; build it")));
    backend.expect_observe().returning(|_, _, _| Ok(reached("1")));
    backend.expect_shift().never();
    let scene = Scene::new();
    scene.target(Target::new("checkout", backend).unwrap());
    let outcome = scene.start(canary()).await.finished().await;
    assert_eq!((outcome.rollout.state.name(), outcome.exit_code()), ("refused", 3), "{outcome}");
}

#[tokio::test(start_paused = true)]
async fn each_shift_follows_a_look_and_carries_the_version_it_saw() {
    let mut backend = MockDeploymentBackend::new();
    backend.expect_capabilities().return_const(Capabilities::full());
    backend.expect_attach().times(1).return_const(());
    backend.expect_baseline().times(1).returning(|| Revision::new("v1"));
    backend.expect_preflight().times(1).returning(|_, _| Ok(Readiness::default()));
    let mut order = Sequence::new();
    let mut look = |backend: &mut MockDeploymentBackend, wanted: Goal, sees: fn() -> Observed| {
        let look = backend.expect_observe().times(1).in_sequence(&mut order);
        look.withf(move |_, goal, _| *goal == wanted).returning(move |_, _, _| Ok(sees()));
    };
    let all = Goal::Split(Weight::ALL);
    look(&mut backend, Goal::Baseline, || reached("1"));
    look(&mut backend, all, || due("give it all", "1"));
    look(&mut backend, all, || reached("2"));
    look(&mut backend, all, || reached("2"));
    look(&mut backend, Goal::Candidate, || due("clear", "2"));
    look(&mut backend, Goal::Candidate, || reached("3"));
    for (goal, version) in [(all, "1"), (Goal::Candidate, "2")] {
        let shift = backend.expect_shift().times(1);
        shift
            .withf(move |_, to, attempt| *to == goal && attempt.version.as_str() == version)
            .returning(|_, _, _| Ok(()));
    }
    let scene = Scene::new();
    scene.target(Target::new("checkout", backend).unwrap());
    let outcome = scene.start(Plan::all_at_once(5 * SECOND).unwrap()).await.finished().await;
    assert_eq!(outcome.rollout.state, State::Promoted, "{outcome}");
}

#[tokio::test(start_paused = true)]
async fn effects_that_take_turns_in_being_due_are_asked_for_at_a_pace_and_no_more_than_8_times_each() {
    let mut backend = MockDeploymentBackend::new();
    backend.expect_capabilities().return_const(Capabilities::full());
    backend.expect_attach().return_const(());
    backend.expect_baseline().returning(|| Revision::new("v1"));
    backend.expect_preflight().returning(|_, _| Ok(Readiness::default()));
    let shifts = Arc::new(Mutex::new(0_u32));
    let so_far = Arc::clone(&shifts);
    backend.expect_observe().returning(move |_, goal, _| {
        let n = *so_far.lock().unwrap();
        let name = if n.is_multiple_of(2) { "start the left one" } else { "start the right one" };
        // Each start stops the other one.
        Ok(if goal == Goal::Baseline { reached("1") } else { due(name, &n.to_string()) })
    });
    let count = Arc::clone(&shifts);
    backend.expect_shift().returning(move |_, _, _| {
        *count.lock().unwrap() += 1;
        Ok(())
    });
    let scene = Scene::new();
    scene.target(Target::new("checkout", backend).unwrap());
    let begun = Instant::now();
    let outcome = scene.start(Plan::all_at_once(MINUTE).unwrap()).await.finished().await;
    assert!(matches!(&outcome.rollout.state, State::RolledBack { cause: Cause::Failed { .. } }), "{outcome}");
    assert!(outcome.to_string().contains("asked 8 times and still due: start the left one"), "{outcome}");
    assert_eq!(*shifts.lock().unwrap(), 16, "{outcome}");
    assert!(begun.elapsed() > 5 * SECOND, "16 calls within {:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_start_whose_record_cannot_be_saved_says_so_and_calls_nothing_that_changes() {
    let mut store = MockStore::new();
    store.expect_beat().returning(|_| Ok(Vec::new()));
    store.expect_history().returning(|_, _| Ok(Vec::new()));
    store.expect_create().times(1).returning(|_| Err(Error::new(ErrorKind::Denied, "the file is read-only")));
    store.expect_update().never();
    let fake = Fake::new("v1", "v2");
    let engine = Engine::builder(store).clock(TestClock::new()).build().unwrap();
    engine.register(checkout(&fake)).unwrap();
    let refused = engine.start(deploy(canary())).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Denied);
    assert_eq!(refused.chain(), "recording the rollout: the file is read-only");
    assert_eq!(fake.calls(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_request_for_a_rollout_elsewhere_goes_through_the_store_once() {
    let mut store = MockStore::new();
    let request = Request::new(Ask::Abort, "ben", "orders are missing").unwrap();
    store
        .expect_ask()
        .with(eq("checkout-1".parse::<rollback_core::model::RolloutId>().unwrap()), eq(request.clone()))
        .times(1)
        .returning(|_, _| Ok(()));
    let engine = Engine::new(store).unwrap();
    let left = engine.ask(&"checkout-1".parse().unwrap(), request).await.unwrap();
    assert!(left.as_str().contains("the process that drives the rollout hears it"), "{left}");
}

#[tokio::test]
async fn a_listener_is_told_of_every_transition_in_order() {
    let told = Arc::new(Mutex::new(Vec::new()));
    let mut listener = MockListener::new();
    let tell = Arc::clone(&told);
    listener.expect_on().returning(move |event| {
        if let What::Entered { to } = &event.what {
            tell.lock().unwrap().push(to.name());
        }
    });
    let mut targets = MockListener::new();
    let (counted, count) = mpsc::channel();
    targets.expect_on().returning(move |event| counted.send(event.what.clone()).unwrap());
    let fake = Fake::new("v1", "v2");
    let engine = Engine::builder(Memory::new()).listener(listener).build().unwrap();
    engine.register(checkout(&fake).listener(targets)).unwrap();
    let plan = Plan::canary([50, 100], Duration::from_millis(20)).unwrap();
    let outcome = engine.start(deploy(plan)).await.unwrap().finished().await;
    engine.shutdown(30 * SECOND).await;
    let expected = ["preflight", "shifting", "baking", "shifting", "baking", "promoting", "promoted"];
    assert_eq!(*told.lock().unwrap(), expected, "{outcome}");
    let log: Vec<What> = outcome.rollout.log.iter().map(|entry| entry.what.clone()).collect();
    assert_eq!(count.try_iter().collect::<Vec<_>>(), log, "the target's listener is told of every line of the log");
    assert_eq!(engine.dropped_events(), 0);
}

/// The name of a gate, for a mock to hand out a reference to.
fn name(name: &str) -> GateName {
    GateName::try_from(name).unwrap()
}

#[tokio::test(start_paused = true)]
async fn panics_of_a_listener_a_strategy_a_gate_and_a_hook_neither_delay_nor_fail_a_rollback() {
    let mut listener = MockListener::new();
    listener.expect_on().returning(|_| panic!("the listener panics by script"));
    let mut strategy = MockRollbackStrategy::new();
    strategy.expect_decide().times(1).returning(|_, _| panic!("the strategy panics by script"));
    let mut gate = MockHealthGate::new();
    gate.expect_name().return_const(name("panics"));
    gate.expect_preflight().returning(|_, _| Ok(Readiness::default()));
    gate.expect_attach().return_const(());
    gate.expect_judge().returning(|_| panic!("the gate panics by script"));
    let (fake, store) = (Fake::new("v1", "v2"), Memory::new());
    let engine = Engine::builder(store).clock(TestClock::new()).listener(listener).build().unwrap();
    let errors = Scripted::unhealthy_from("errors", Weight::try_from(10).unwrap());
    engine
        .register(checkout(&fake).gate(gate, Policy::default()).gate(errors, Policy::default()).strategy(strategy))
        .unwrap();
    let outcome = engine.start(deploy(canary())).await.unwrap().finished().await;
    let State::RolledBack { cause: Cause::Unhealthy { gate, .. } } = &outcome.rollout.state else {
        panic!("{outcome}")
    };
    assert_eq!(gate.as_str(), "errors");
    let times = outcome.rollout.times;
    let took = times.verified.unwrap().duration_since(times.breach.unwrap());
    assert!(took < jiff::SignedDuration::from_secs(1), "{took:#}");

    let scene = Scene::new();
    let hook = Hook::new("panics", |_| async { panic!("the hook panics by script") }).unwrap();
    scene.target(checkout(&fake).after(hook));
    let outcome = scene.start(Plan::all_at_once(SECOND).unwrap()).await.finished().await;
    let State::RolledBack { cause: Cause::Failed { why } } = &outcome.rollout.state else { panic!("{outcome}") };
    assert_eq!(why.as_str(), "hook panics: it panicked: the hook panics by script");
    assert!(fake.only("v1"));
}

/// Never comes back from the first event until the test is over.
#[derive(Debug)]
struct Blocks(Mutex<mpsc::Receiver<()>>);

impl Listener for Blocks {
    fn on(&self, _: &RolloutEvent) {
        // An error is the end of the test.
        let _ = self.0.lock().unwrap().recv();
    }
}

#[test]
fn a_listener_that_blocks_for_ever_delays_no_rollback_no_shutdown_and_no_exit() {
    let (over, blocked) = mpsc::channel::<()>();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    runtime.block_on(async {
        let fake = Fake::new("v1", "v2");
        let engine = Engine::builder(Memory::new()).listener(Blocks(Mutex::new(blocked))).build().unwrap();
        engine.register(checkout(&fake)).unwrap();
        let handle = engine.start(deploy(canary())).await.unwrap();
        until(&handle, "baking").await;
        handle.abort("ben", "orders are missing").await.unwrap();
        let outcome = handle.finished().await;
        assert!(matches!(outcome.rollout.state, State::RolledBack { .. }), "{outcome}");
        let begun = Instant::now();
        engine.shutdown(SECOND / 5).await;
        assert!(begun.elapsed() < 5 * SECOND, "a deadline of 200 ms took {:?}", begun.elapsed());
    });
    // What a program does at its end: the runtime must not wait for the listener either.
    let (dropped, ended) = mpsc::channel();
    std::thread::spawn(move || {
        drop(runtime);
        dropped.send(()).unwrap();
    });
    ended.recv_timeout(MINUTE / 2).expect("the runtime waits for a listener that blocks");
    drop(over);
}
