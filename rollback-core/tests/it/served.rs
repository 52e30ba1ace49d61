//! P14 and rule 9: an abort, a deadline and a breach are served whatever hangs, and without the store as far as that is
//! safe.

use std::{future, time::Duration};

use rollback_core::{
    ErrorKind,
    engine::{Engine, Handle},
    gate::{self, NoData, Policy, Signal},
    hook::{Exit, Hook},
    model::Goal,
    plan::{Deadlines, Plan},
    state::{Cause, State},
    store::{Memory, Store as _},
    testing::{
        clock::TestClock,
        fakes::{Fake, Fault, Happened},
        gates::{Answer, Scripted},
    },
};
use tokio::time::Instant;

use crate::support::{
    away::{Away, Way},
    scene::{MINUTE, Scene, canary, checkout, deploy, until},
};

const HOUR: Duration = Duration::from_secs(3600);
const SECOND: Duration = Duration::from_secs(1);

/// What hangs.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Hangs {
    Look,
    Shift,
    Gate,
    Hook,
    Save,
}

/// What makes the rollout go back.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Trigger {
    Abort,
    Deadline,
    Trip,
}

/// A rollout in which something hangs, at the latest after 40 seconds.
async fn hanging(hangs: Hangs) -> (Fake, Away, Handle, Signal) {
    let (fake, store) = (Fake::new("v1", "v2"), Away::to(&Memory::new()));
    let engine = Engine::builder(store.clone()).clock(TestClock::new()).build().unwrap();
    let (pager, signal) = gate::signal("pager").unwrap();
    let mut target = checkout(&fake).gate(pager.silence_is_healthy(), Policy::default()).limits(HOUR, HOUR, HOUR);
    let blind = Policy::default().no_data(NoData::RollBack { after: HOUR }).timeout(HOUR);
    match hangs {
        // The fourth look finds the step reached; the one after it is the first while baking.
        Hangs::Look => {
            fake.hang_read(5);
            target = target.gate(Scripted::new("blind", [Answer::Inconclusive]), blind);
        }
        Hangs::Shift => fake.fault(0, Fault::Hang { landed: true }),
        Hangs::Gate => target = target.gate(Scripted::new("hangs", [Answer::Hang]), blind),
        Hangs::Hook => {
            target = target.after(Hook::new("hangs", |_| future::pending()).unwrap().deadline(HOUR, Exit::Fail));
        }
        Hangs::Save => target = target.gate(Scripted::new("blind", [Answer::Inconclusive]), blind),
    }
    engine.register(target).unwrap();
    let half = MINUTE / 2;
    let deadlines = Deadlines { shift: MINUTE, overtime: half, ..Deadlines::default() };
    let handle = engine.start(deploy(Plan::all_at_once(half).unwrap().with_deadlines(deadlines).unwrap())).await;
    let handle = handle.unwrap();
    until(&handle, if hangs == Hangs::Shift { "shifting" } else { "baking" }).await;
    tokio::time::sleep(40 * SECOND).await;
    if hangs == Hangs::Save {
        store.set(Way::HangsOnSaves);
    }
    (fake, store, handle, signal)
}

/// When the target was first asked about the way back after this time.
async fn turned_back(fake: &Fake, after: Duration) -> Duration {
    let waited = Instant::now();
    loop {
        let first = fake.trace().into_iter().find(|seen| {
            let back = match &seen.what {
                Happened::Looked { goal, .. } => *goal == Goal::Baseline,
                Happened::Asked(call) => call.goal == Goal::Baseline,
                _ => false,
            };
            back && seen.at >= after
        });
        if let Some(seen) = first {
            return seen.at;
        }
        assert!(waited.elapsed() < HOUR / 2, "it never turned back");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[test]
fn an_abort_a_deadline_and_a_breach_are_served_within_a_second_whatever_hangs() {
    for hangs in [Hangs::Look, Hangs::Shift, Hangs::Gate, Hangs::Hook, Hangs::Save] {
        for trigger in [Trigger::Abort, Trigger::Deadline, Trigger::Trip] {
            tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .start_paused(true)
                .build()
                .unwrap()
                .block_on(is_served(hangs, trigger));
        }
    }
}

async fn is_served(hangs: Hangs, trigger: Trigger) {
    let begun = Instant::now();
    let (fake, store, handle, signal) = hanging(hangs).await;
    assert!(!handle.status().state.is_at_rest(), "{hangs:?}: {}", handle.status());
    let mut at = begun.elapsed();
    match trigger {
        Trigger::Abort => {
            let handle = handle.clone();
            // Its answer waits for the save.
            tokio::spawn(async move { handle.abort("ben", "the phone rings").await });
        }
        Trigger::Trip => signal.unhealthy("the page is blank"),
        Trigger::Deadline => {
            let deadline = handle.status().deadline.unwrap();
            at = Duration::try_from(deadline.duration_since(TestClock::START)).unwrap();
        }
    }
    let turned = turned_back(&fake, at).await;
    assert!(turned - at <= SECOND, "{trigger:?} while the {hangs:?} hangs took {:?}", turned - at);
    // A hung save is never answered; what comes after it is.
    store.set(Way::Open);
    let outcome = handle.finished().await;
    let State::RolledBack { cause } = &outcome.rollout.state else { panic!("{trigger:?}, {hangs:?}: {outcome}") };
    let meant = match trigger {
        Trigger::Abort => matches!(cause, Cause::Aborted { .. }),
        Trigger::Deadline => matches!(cause, Cause::Deadline { .. }),
        Trigger::Trip => matches!(cause, Cause::Unhealthy { .. }),
    };
    assert!(meant, "{trigger:?} while the {hangs:?} hangs: {outcome}");
    assert!(fake.only("v1"));
}

/// A canary at its first step, and its process's way to the store.
async fn baking() -> (Fake, Memory, Away, Handle) {
    let (fake, memory) = (Fake::new("v1", "v2"), Memory::new());
    let store = Away::to(&memory);
    let engine = Engine::builder(store.clone()).clock(TestClock::new()).build().unwrap();
    engine.register(checkout(&fake).gate(Scripted::healthy("errors"), Policy::default())).unwrap();
    let handle = engine.start(deploy(canary())).await.unwrap();
    until(&handle, "baking").await;
    (fake, memory, store, handle)
}

fn abort(handle: &Handle) -> tokio::task::JoinHandle<rollback_core::Result<rollback_core::model::Note>> {
    let handle = handle.clone();
    tokio::spawn(async move { handle.abort("ben", "orders are missing").await })
}

#[tokio::test(start_paused = true)]
async fn a_rollback_waits_a_second_for_the_store_and_then_goes_ahead() {
    for way in [Way::Fails, Way::Hangs, Way::HangsOnSaves] {
        let (fake, memory, store, handle) = baking().await;
        store.set(way);
        let (calls, asked) = (fake.calls(), Instant::now());
        let answer = abort(&handle);
        tokio::time::timeout(MINUTE, fake.entered(calls))
            .await
            .unwrap_or_else(|_| panic!("{way:?}: it never went back"));
        let took = asked.elapsed();
        assert!((SECOND..SECOND + Duration::from_millis(100)).contains(&took), "{way:?}: {took:?}");
        assert!(fake.only("v1"), "traffic is back before the store is");
        let (record, _) = memory.load(handle.id()).await.unwrap();
        assert_eq!(rollback_core::rollout::Rollout::from_record(&record).unwrap().state.name(), "baking");
        store.set(Way::Open);
        assert_eq!(answer.await.unwrap().unwrap().as_str(), "it goes back");
        let outcome = handle.finished().await;
        assert!(matches!(outcome.rollout.state, State::RolledBack { cause: Cause::Aborted { .. } }), "{outcome}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_rollback_does_not_go_ahead_once_another_process_may_have_taken_over() {
    for way in [Way::Fails, Way::Hangs] {
        let (fake, _, store, handle) = baking().await;
        store.set(way);
        // A lease is 10 seconds, and a quarter of it is margin.
        tokio::time::sleep(8 * SECOND).await;
        let calls = fake.calls();
        let _answer = abort(&handle);
        tokio::time::sleep(5 * MINUTE).await;
        assert_eq!(fake.calls(), calls, "{way:?}: this process may not own the rollout any more");
        store.set(Way::Open);
        let outcome = handle.finished().await;
        assert!(matches!(outcome.rollout.state, State::RolledBack { cause: Cause::Aborted { .. } }), "{outcome}");
        assert!(fake.only("v1"));
    }
}

#[tokio::test(start_paused = true)]
async fn forward_shifts_wait_for_the_store() {
    for way in [Way::Fails, Way::Hangs, Way::HangsOnSaves] {
        let (fake, _, store, handle) = baking().await;
        store.set(way);
        let calls = fake.calls();
        tokio::time::sleep(5 * MINUTE).await;
        assert_eq!(fake.calls(), calls, "{way:?}");
        store.set(Way::Open);
        let outcome = handle.finished().await;
        assert_eq!(outcome.rollout.state, State::Promoted, "{outcome}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_that_was_never_saved_is_not_answered_as_granted() {
    let (fake, memory, store, handle) = baking().await;
    let other = Scene::on(memory, TestClock::new());
    other.target(checkout(&fake).gate(Scripted::healthy("errors"), Policy::default()));
    assert_eq!(other.engine.resume_all().await.unwrap().elsewhere.len(), 1);
    store.set(Way::Fails);
    tokio::time::sleep(8 * SECOND).await;
    let answer = abort(&handle);
    let begun = Instant::now();
    while other.engine.handle(handle.id()).is_none() {
        assert!(begun.elapsed() < MINUTE, "nobody took it over");
        tokio::time::sleep(SECOND).await;
    }
    store.set(Way::Open);
    let refused = answer.await.unwrap().unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Conflict, "{refused}");
    let outcome = other.engine.handle(handle.id()).unwrap().finished().await;
    assert_eq!(outcome.rollout.state, State::Promoted, "nobody heard of the abort: {outcome}");
}

#[tokio::test(start_paused = true)]
async fn who_is_answered_finds_in_the_status_what_came_of_it() {
    let (_, _, _, handle) = baking().await;
    handle.pause("ben", "lunch").await.unwrap();
    assert_eq!(handle.status().state.name(), "holding");
    handle.resume("ben", "back").await.unwrap();
    assert_eq!(handle.status().state.name(), "baking");
}
