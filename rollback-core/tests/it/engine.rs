//! The engine on fakes, with paused time: whole rollouts, requests, deadlines, restarts.

use std::time::Duration;

use jiff::SignedDuration;
use rollback_core::{
    ErrorKind,
    engine::{Busy, Engine, NewRollout, WayBack},
    gate::{self, NoData, Policy},
    hook::{Exit, Hook},
    model::{Actor, DriverId, Goal, Nonce, Revision, RolloutId, TargetId, Weight},
    plan::{Approval, Deadlines, Plan, Step},
    request::{Ask, Request},
    rollout::What,
    state::{Abandonment, Cause, Hold, Refusal, State},
    store::Store,
    strategy::{AskPerson, Never},
    testing::{
        fakes::{Fake, Fault, Happened},
        gates::{Answer, Scripted},
    },
};

use crate::support::{
    away::{Away, Way},
    scene::{MINUTE, Scene, canary, checkout, deploy, states, until, until_over},
};

#[tokio::test(start_paused = true)]
async fn a_healthy_candidate_is_promoted_step_by_step() {
    let (scene, fake) = (Scene::new(), Fake::new("v1", "v2"));
    let gate = Scripted::healthy("errors");
    scene.target(checkout(&fake).gate(gate.clone(), Policy::default()));
    let begun = tokio::time::Instant::now();
    let outcome = scene.start(canary()).await.finished().await;
    assert_eq!(outcome.rollout.state, State::Promoted, "{outcome}");
    assert_eq!(outcome.exit_code(), 0);
    assert!(fake.only("v2"));
    assert_eq!(
        states(&outcome),
        ["preflight", "shifting", "baking", "shifting", "baking", "shifting", "baking", "promoting", "promoted"]
    );
    let took = begun.elapsed();
    assert!((3 * MINUTE..3 * MINUTE + Duration::from_secs(40)).contains(&took), "three bakes of a minute: {took:?}");
    assert!(gate.asked() >= 18, "asked every 10 seconds: {}", gate.asked());
}

#[tokio::test(start_paused = true)]
async fn a_candidate_that_turns_bad_is_rolled_back_and_the_times_are_measured() {
    let (scene, fake) = (Scene::new(), Fake::new("v1", "v2"));
    scene.target(
        checkout(&fake).gate(Scripted::unhealthy_from("errors", Weight::try_from(50).unwrap()), Policy::default()),
    );
    let outcome = scene.start(canary()).await.finished().await;
    let State::RolledBack { cause: Cause::Unhealthy { gate, .. } } = &outcome.rollout.state else {
        panic!("{outcome}");
    };
    assert_eq!(gate.as_str(), "errors");
    assert_eq!(outcome.exit_code(), 1);
    assert!(fake.only("v1"));
    let times = outcome.rollout.times;
    let decided = times.decision.unwrap();
    assert!(times.breach.unwrap() <= decided);
    assert!(times.restored.unwrap() >= decided && times.verified >= times.restored);
    assert!(times.verified.unwrap().duration_since(decided) < SignedDuration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn between_a_pushed_signal_and_the_shift_back_there_is_one_save() {
    let (scene, fake) = (Scene::new(), Fake::new("v1", "v2"));
    let (gate, signal) = gate::signal("alarms").unwrap();
    scene.target(checkout(&fake).gate(gate.silence_is_healthy(), Policy::default()));
    let handle = scene.start(canary()).await;
    until(&handle, "baking").await;
    let (_, before) = scene.store.load(handle.id()).await.unwrap();
    signal.unhealthy("pager");
    let outcome = handle.finished().await;
    assert_eq!(outcome.exit_code(), 1, "{outcome}");
    let attempt = outcome.rollout.attempt.as_ref().unwrap();
    assert_eq!(
        attempt.nonce,
        Nonce::new(handle.id(), before.next(), Goal::Baseline),
        "of the first save after the push"
    );
    let (_, after) = scene.store.load(handle.id()).await.unwrap();
    assert_eq!(after, before.next().next(), "one save of verdict, state and attempt, then one of the end");
}

#[tokio::test(start_paused = true)]
async fn goals_of_several_effects_and_targets_without_versions_arrive_too() {
    for fake in [
        Fake::new("v1", "v2").several_effects(),
        Fake::new("v1", "v2").unchecked(Duration::from_secs(30)),
        Fake::new("v1", "v2").several_effects().unchecked(Duration::from_secs(30)).parts(3, Duration::from_secs(5)),
        Fake::new("v1", "v2").watched().parts(2, Duration::from_secs(20)),
    ] {
        let scene = Scene::new();
        scene.target(checkout(&fake).gate(Scripted::healthy("errors"), Policy::default()));
        let outcome = scene.start(canary()).await.finished().await;
        assert_eq!(outcome.rollout.state, State::Promoted, "{outcome} on {fake:?}");
        assert!(fake.only("v2"), "{fake:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_providers_own_pace_is_followed_and_its_own_rollback_adopted() {
    let fake = Fake::new("v1", "v2").providers_pace(10, Duration::from_secs(30));
    let scene = Scene::new();
    scene.target(checkout(&fake).gate(Scripted::healthy("errors"), Policy::default()));
    let outcome = scene.start(Plan::all_at_once(MINUTE).unwrap()).await.finished().await;
    assert_eq!(outcome.rollout.state, State::Promoted, "{outcome}");

    let fake = Fake::new("v1", "v2")
        .providers_pace(10, Duration::from_secs(30))
        .goes_back_by_itself_at(Weight::try_from(30).unwrap());
    let scene = Scene::new();
    scene.target(checkout(&fake));
    let outcome = scene.start(Plan::all_at_once(MINUTE).unwrap()).await.finished().await;
    assert!(matches!(outcome.rollout.state, State::RolledBack { cause: Cause::Failed { .. } }), "{outcome}");
    assert!(fake.only("v1"));
    let refused = scene.engine.start(deploy(canary())).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unsupported, "{refused}");
    assert!(refused.to_string().contains("step 1 of 3"), "{refused}");
}

#[tokio::test(start_paused = true)]
async fn what_preflight_refuses_changes_nothing_and_says_why() {
    let (scene, fake) = (Scene::new(), Fake::new("v1", "v2"));
    fake.refuse_preflight("the image of v1 is gone; push it again");
    scene.target(checkout(&fake));
    let outcome = scene.start(canary()).await.finished().await;
    let State::Refused { why: Refusal::NotReady { why } } = &outcome.rollout.state else { panic!("{outcome}") };
    assert!(why.as_str().contains("push it again"), "{why}");
    assert_eq!((outcome.exit_code(), fake.calls()), (3, 0));
}

#[tokio::test(start_paused = true)]
async fn deploying_what_serves_already_is_a_success_that_does_nothing() {
    let (scene, fake) = (Scene::new(), Fake::new("v2", "v3"));
    scene.target(checkout(&fake));
    let outcome = scene.start(canary()).await.finished().await;
    assert_eq!(outcome.rollout.state, State::Refused { why: Refusal::AlreadyServes });
    assert_eq!((outcome.exit_code(), fake.calls()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_condemned_candidate_is_quarantined_but_an_aborted_one_is_not() {
    let (scene, fake) = (Scene::new(), Fake::new("v1", "v2"));
    let gate = Scripted::new("errors", [Answer::Unhealthy]);
    scene.target(checkout(&fake).gate(gate.clone(), Policy::default()));
    let first = scene.start(canary()).await.finished().await;
    assert!(matches!(first.rollout.state, State::RolledBack { .. }), "{first}");
    let again = scene.start(canary()).await.finished().await;
    let State::Refused { why: Refusal::Quarantined { by, .. } } = &again.rollout.state else { panic!("{again}") };
    assert_eq!(by, first.rollout.id());

    gate.set(Answer::Healthy);
    let despite = scene.engine.start(deploy(canary()).despite_quarantine("the gate was wrong")).await.unwrap();
    until(&despite, "baking").await;
    despite.abort("ben", "never mind").await.unwrap();
    assert!(matches!(despite.finished().await.rollout.state, State::RolledBack { cause: Cause::Aborted { .. } }));
}

#[tokio::test(start_paused = true)]
async fn an_abort_is_served_while_a_shift_a_look_and_a_gate_hang() {
    let (scene, fake) = (Scene::new(), Fake::new("v1", "v2"));
    fake.fault(0, Fault::Hang { landed: true });
    scene.target(
        checkout(&fake)
            .gate(Scripted::new("errors", [Answer::Hang]), Policy::default().timeout(Duration::from_secs(3600))),
    );
    let handle = scene.start(canary()).await;
    fake.entered(0).await;
    let asked = tokio::time::Instant::now();
    handle.abort("ben", "the phone rings").await.unwrap();
    fake.entered(1).await;
    assert!(asked.elapsed() < Duration::from_secs(1), "{:?}", asked.elapsed());
    let outcome = handle.finished().await;
    assert!(
        matches!(&outcome.rollout.state, State::RolledBack { cause: Cause::Aborted { by, .. } } if by.as_str() == "ben")
    );
    assert!(fake.only("v1"));
}

#[tokio::test(start_paused = true)]
async fn no_data_holds_then_goes_on_with_the_data_or_rolls_back_without() {
    let policy = Policy::default().no_data(NoData::Hold { after: Duration::from_secs(30) });
    let (scene, fake) = (Scene::new(), Fake::new("v1", "v2"));
    let gate = Scripted::new("errors", [Answer::Inconclusive]);
    scene.target(checkout(&fake).gate(gate.clone(), policy));
    let handle = scene.start(canary()).await;
    until(&handle, "holding").await;
    assert!(
        matches!(&handle.status().state, State::Holding { why: Hold::NoData { gate, .. }, .. } if gate.as_str() == "errors")
    );
    gate.set(Answer::Healthy);
    let outcome = handle.finished().await;
    assert_eq!(outcome.rollout.state, State::Promoted, "{outcome}");

    let (scene, fake) = (Scene::new(), Fake::new("v1", "v2"));
    scene.target(checkout(&fake).gate(Scripted::new("errors", [Answer::Fail(ErrorKind::Unavailable)]), policy));
    let outcome = scene.start(canary()).await.finished().await;
    assert!(matches!(outcome.rollout.state, State::RolledBack { cause: Cause::NoData { .. } }), "{outcome}");
    let again = scene.start(canary()).await;
    until(&again, "baking").await;
    again.abort("ben", "enough").await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn time_without_data_is_not_watched() {
    let (scene, fake) = (Scene::new(), Fake::new("v1", "v2"));
    let blind = std::iter::repeat_n(Answer::Inconclusive, 9);
    let gate = Scripted::new("errors", std::iter::once(Answer::Healthy).chain(blind).chain([Answer::Healthy]));
    scene.target(checkout(&fake).gate(gate, Policy::default()));
    let begun = tokio::time::Instant::now();
    let outcome = scene.start(Plan::all_at_once(MINUTE).unwrap()).await.finished().await;
    assert_eq!(outcome.rollout.state, State::Promoted);
    assert!(begun.elapsed() >= Duration::from_secs(60 + 80), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn data_must_reach_the_end_of_the_bake() {
    let (scene, fake) = (Scene::new(), Fake::new("v1", "v2"));
    scene.target(checkout(&fake).gate(Scripted::healthy("errors").late_by(Duration::from_secs(45)), Policy::default()));
    let begun = tokio::time::Instant::now();
    let outcome = scene.start(Plan::all_at_once(MINUTE).unwrap()).await.finished().await;
    assert_eq!(outcome.rollout.state, State::Promoted);
    assert!(begun.elapsed() >= Duration::from_secs(60 + 45), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn one_slow_gate_keeps_no_other_from_tripping() {
    let (scene, fake) = (Scene::new(), Fake::new("v1", "v2"));
    let slow = Scripted::new("slow", [Answer::Hang]);
    let bad = Scripted::new("bad", [Answer::Healthy, Answer::Healthy, Answer::Unhealthy]);
    let patient = Policy::default().timeout(Duration::from_secs(3600));
    scene.target(checkout(&fake).gate(slow, patient).gate(bad, Policy::default()));
    let outcome = scene.start(canary()).await.finished().await;
    assert!(
        matches!(&outcome.rollout.state, State::RolledBack { cause: Cause::Unhealthy { gate, .. } } if gate.as_str() == "bad")
    );
}

#[tokio::test(start_paused = true)]
async fn a_pushed_signal_rolls_back_at_once() {
    let (scene, fake) = (Scene::new(), Fake::new("v1", "v2"));
    let (pager, signal) = gate::signal("pager").unwrap();
    scene.target(checkout(&fake).gate(pager.silence_is_healthy(), Policy::default().every(Duration::from_secs(600))));
    let handle = scene.start(canary()).await;
    until(&handle, "baking").await;
    let calls = fake.calls();
    let pushed = tokio::time::Instant::now();
    signal.unhealthy("the checkout page is blank");
    fake.entered(calls).await;
    assert!(pushed.elapsed() < Duration::from_millis(50), "{:?}", pushed.elapsed());
    let outcome = handle.finished().await;
    assert!(format!("{outcome}").contains("the checkout page is blank"), "{outcome}");
}

#[tokio::test(start_paused = true)]
async fn strategies_hold_for_a_person_or_stop_where_they_are() {
    let (scene, fake) = (Scene::new(), Fake::new("v1", "v2"));
    let gate = Scripted::new("errors", [Answer::Unhealthy]);
    scene.target(checkout(&fake).gate(gate.clone(), Policy::default()).strategy(AskPerson));
    let handle = scene.start(canary()).await;
    until(&handle, "holding").await;
    gate.set(Answer::Healthy);
    tokio::time::sleep(MINUTE).await;
    assert_eq!(handle.status().state.name(), "holding", "a tripped gate stays tripped");
    handle.resume("ben", "a known blip").await.unwrap();
    assert_eq!(handle.finished().await.rollout.state, State::Promoted);

    let (scene, fake) = (Scene::new(), Fake::new("v1", "v2"));
    let gate = Scripted::new("errors", [Answer::Unhealthy]);
    scene.target(checkout(&fake).gate(gate, Policy::default()).strategy(Never::because("the schema was migrated")));
    let handle = scene.start(canary()).await;
    let outcome = handle.finished().await;
    assert_eq!((outcome.rollout.state.name(), outcome.exit_code()), ("stuck", 4));
    assert!(outcome.to_string().contains("the schema was migrated"), "{outcome}");
    handle.give_up("ben", "we fix it forward").await.unwrap();
    until_over(&handle).await;
    assert!(matches!(handle.status().state, State::Abandoned { why: Abandonment::GivenUp { .. } }));
}

#[tokio::test(start_paused = true)]
async fn what_is_stuck_goes_back_when_a_person_says_so_and_not_because_somebody_is_next_in_line() {
    let (scene, fake) = (Scene::new(), Fake::new("v1", "v2"));
    let gate = Scripted::unhealthy_from("errors", Weight::try_from(50).unwrap());
    scene.target(checkout(&fake).gate(gate, Policy::default()).strategy(Never::because("the schema was migrated")));
    let handle = scene.start(canary()).await;
    let outcome = handle.finished().await;
    assert_eq!(outcome.rollout.state.name(), "stuck", "{outcome}");
    assert!(!fake.only("v1"));
    assert!(outcome.to_string().contains("abort rollout"), "{outcome}");

    let next = deploy(canary()).if_busy(Busy::Supersede);
    let refused = scene.engine.start(next).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Conflict);
    assert!(refused.to_string().contains("is stuck and needs a person"), "{refused}");
    assert_eq!(handle.status().state.name(), "stuck");

    tokio::time::sleep(MINUTE).await;
    let target = handle.status().change.target.clone();
    let decided = scene.engine.roll_back(&target, "ben", "the old code reads the new schema");
    assert!(matches!(decided.await, Ok(WayBack::Aborting(_))));
    until_over(&handle).await;
    let back = handle.status();
    assert!(matches!(back.state, State::RolledBack { cause: Cause::Aborted { .. } }), "{back:?}");
    assert!(fake.only("v1"));
    assert!(back.times.decision > back.times.breach, "decided by the person, not by the gate");
}

#[tokio::test(start_paused = true)]
async fn without_a_way_back_nothing_starts_unless_it_is_allowed_and_then_it_sticks() {
    let (scene, fake) = (Scene::new(), Fake::new("v1", "v2"));
    let no_way = gate::from_fn("errors", |window| async move {
        Ok(gate::Verdict::Unhealthy(gate::Evidence::new(window.now, "bad")))
    });
    scene.target(checkout(&fake).gate(OneWay(no_way.unwrap()), Policy::default()));
    let outcome = scene.start(canary()).await.finished().await;
    assert_eq!((outcome.exit_code(), fake.calls()), (3, 0), "{outcome}");
    let allowed = scene.engine.start(deploy(canary()).allow_irreversible("the old data centre closes")).await.unwrap();
    let outcome = allowed.finished().await;
    assert_eq!(outcome.rollout.state.name(), "stuck", "{outcome}");
    assert_eq!(outcome.rollout.irreversible.as_ref().unwrap().as_str(), "the old data centre closes");
}

/// A gate that knows that there is no way back.
#[derive(Debug)]
struct OneWay(gate::FromFn);

#[async_trait::async_trait]
impl gate::HealthGate for OneWay {
    fn name(&self) -> &rollback_core::model::GateName {
        self.0.name()
    }
    async fn judge(&self, window: &gate::Window) -> rollback_core::Result<gate::Verdict> {
        self.0.judge(window).await
    }
    async fn preflight(
        &self,
        _: &rollback_core::model::Change,
        _: &Plan,
    ) -> rollback_core::Result<rollback_core::backend::Readiness> {
        Ok(rollback_core::backend::Readiness::default().no_way_back("the old table is dropped"))
    }
}

#[tokio::test(start_paused = true)]
async fn approvals_count_different_people_and_not_the_author() {
    let (scene, fake) = (Scene::new(), Fake::new("v1", "v2"));
    scene.target(checkout(&fake));
    let people = ["ana", "ben", "cid"].map(|name| Actor::try_from(name).unwrap());
    let ten = Weight::try_from(10).unwrap();
    let plan = Plan::new([Step::new(ten, MINUTE).approved_by(Approval::of(2, people)), Step::new(Weight::ALL, MINUTE)]);
    let handle = scene.start(plan.unwrap()).await;
    let early = handle.approve("ben", "too soon").await.unwrap_err();
    assert_eq!(early.kind(), ErrorKind::Conflict, "{early}");
    until(&handle, "holding").await;
    assert_eq!(handle.approve("ana", "mine").await.unwrap_err().kind(), ErrorKind::Denied);
    assert_eq!(handle.approve("eve", "hm").await.unwrap_err().kind(), ErrorKind::Denied);
    assert_eq!(handle.approve("ben", "fine").await.unwrap().as_str(), "1 of 2 approvals");
    assert_eq!(handle.approve("ben", "fine!").await.unwrap().as_str(), "1 of 2 approvals");
    assert!(handle.resume("ben", "go on").await.is_err(), "a resume is no approval");
    assert_eq!(handle.approve("cid", "fine").await.unwrap().as_str(), "approved; it goes on");
    assert_eq!(handle.finished().await.rollout.state, State::Promoted);
}

#[tokio::test(start_paused = true)]
async fn a_hold_that_nobody_ends_rolls_back() {
    let (scene, fake) = (Scene::new(), Fake::new("v1", "v2"));
    scene.target(checkout(&fake));
    let handle = scene.start(canary()).await;
    until(&handle, "baking").await;
    handle.pause("ben", "lunch").await.unwrap();
    assert!(handle.pause("ben", "lunch").await.unwrap().as_str().contains("already"));
    let outcome = handle.finished().await;
    assert!(matches!(&outcome.rollout.state, State::RolledBack { cause: Cause::Deadline { .. } }), "{outcome}");
}

#[tokio::test(start_paused = true)]
async fn every_state_has_a_deadline_and_a_default_exit() {
    let short = Deadlines {
        preflight: MINUTE,
        shift: MINUTE,
        overtime: MINUTE,
        hold: MINUTE,
        promote: MINUTE,
        roll_back: MINUTE,
    };
    let plan = || Plan::all_at_once(MINUTE).unwrap().with_deadlines(short.clone()).unwrap();

    // Preflight that never answers.
    let (scene, fake) = (Scene::new(), Fake::new("v1", "v2"));
    fake.hang_read(1);
    scene.target(checkout(&fake));
    let outcome = scene.start(plan()).await.finished().await;
    assert_eq!(outcome.rollout.state, State::Refused { why: Refusal::Deadline });

    // A shift that never arrives.
    let (scene, fake) = (Scene::new(), Fake::new("v1", "v2").parts(2, Duration::from_secs(600)));
    scene.target(checkout(&fake));
    let outcome = scene.start(plan()).await.finished().await;
    assert!(matches!(outcome.rollout.state, State::RolledBack { cause: Cause::Deadline { .. } }), "{outcome}");
    assert!(outcome.to_string().contains("web-1 still serves v1"), "it says what it waited for: {outcome}");

    // A rollback that is denied until its deadline; a person resumes it once that is mended.
    let (scene, fake) = (Scene::new(), Fake::new("v1", "v2"));
    scene.target(checkout(&fake).gate(Scripted::unhealthy_from("errors", Weight::ALL), Policy::default()));
    for call in 1..200 {
        fake.fault(call, Fault::Fail(ErrorKind::Denied));
    }
    let handle = scene.start(plan()).await;
    let outcome = handle.finished().await;
    assert_eq!((outcome.rollout.state.name(), outcome.exit_code()), ("stuck", 4), "{outcome}");
    for call in 1..200 {
        fake.fault(call, Fault::LoseAnswer);
    }
    handle.resume("ben", "the role may write again").await.unwrap();
    until_over(&handle).await;
    assert!(matches!(handle.status().state, State::RolledBack { cause: Cause::Unhealthy { .. } }));

    // A bake that cannot be watched.
    let (scene, fake) = (Scene::new(), Fake::new("v1", "v2"));
    let blind = Policy::default().no_data(NoData::Hold { after: Duration::from_secs(3600) });
    scene.target(checkout(&fake).gate(Scripted::new("errors", [Answer::Inconclusive]), blind));
    let outcome = scene.start(plan()).await.finished().await;
    assert!(matches!(outcome.rollout.state, State::RolledBack { cause: Cause::Deadline { .. } }), "{outcome}");

    // A promotion with leftovers that never go, on a target that tells what serves.
    let (scene, fake) = (Scene::new(), Fake::new("v1", "v2").several_effects());
    scene.target(checkout(&fake).gate(Scripted::healthy("errors"), Policy::default()));
    for call in 2..12 {
        fake.fault(call, Fault::Fail(ErrorKind::Denied));
    }
    let outcome = scene.start(plan()).await.finished().await;
    assert_eq!(outcome.rollout.state, State::Promoted, "{outcome}");
}

#[tokio::test(start_paused = true)]
async fn somebody_elses_change_is_left_alone_unless_asked() {
    let (scene, fake) = (Scene::new(), Fake::new("v1", "v2"));
    scene.target(checkout(&fake));
    let handle = scene.start(canary()).await;
    until(&handle, "baking").await;
    fake.drift(&[("hotfix", 100)]);
    let outcome = handle.finished().await;
    assert!(matches!(outcome.rollout.state, State::Abandoned { why: Abandonment::Drifted { .. } }), "{outcome}");
    assert_eq!(outcome.exit_code(), 5);
    assert!(fake.only("hotfix"));

    let (scene, fake) = (Scene::new(), Fake::new("v1", "v2"));
    scene.target(checkout(&fake));
    let handle = scene.engine.start(deploy(canary()).retake_after_drift()).await.unwrap();
    until(&handle, "baking").await;
    fake.drift(&[("v1", 40), ("v2", 60)]);
    let outcome = handle.finished().await;
    assert!(matches!(outcome.rollout.state, State::RolledBack { cause: Cause::Drifted { .. } }), "{outcome}");
    assert!(fake.only("v1"));
}

#[tokio::test(start_paused = true)]
async fn hooks_are_asked_before_the_first_change_and_before_the_promotion() {
    let (scene, fake) = (Scene::new(), Fake::new("v1", "v2"));
    let tested =
        Hook::new("tested", |_| async { Err(rollback_core::Error::invalid("no green build for v2")) }).unwrap();
    scene.target(checkout(&fake).before(tested));
    let outcome = scene.start(canary()).await.finished().await;
    assert_eq!((outcome.exit_code(), fake.calls()), (3, 0), "{outcome}");
    assert!(outcome.to_string().contains("no green build for v2"), "{outcome}");

    let (scene, fake) = (Scene::new(), Fake::new("v1", "v2"));
    let slow = Hook::new("slow", |_| std::future::pending()).unwrap().deadline(MINUTE, Exit::GoOn);
    let smoke = Hook::new("smoke", |rollout| async move {
        assert_eq!(rollout.weight, Some(Weight::ALL), "the last bake is over");
        Err(rollback_core::Error::invalid("the smoke test fails"))
    });
    scene.target(checkout(&fake).before(slow).after(smoke.unwrap()));
    let outcome = scene.start(canary()).await.finished().await;
    assert!(
        matches!(&outcome.rollout.state, State::RolledBack { cause: Cause::Failed { why } } if why.as_str().contains("smoke")),
        "{outcome}"
    );
    assert!(outcome.rollout.hooks["slow"].as_str().contains("going on"));
    assert!(fake.only("v1"));
}

#[tokio::test(start_paused = true)]
async fn the_glass_can_be_broken_and_a_gate_skipped_and_the_record_shows_who() {
    let (scene, fake) = (Scene::new(), Fake::new("v1", "v2"));
    let gate = Scripted::new("errors", [Answer::Inconclusive]);
    scene.target(checkout(&fake).gate(gate, Policy::default()));
    let handle = scene.start(canary()).await;
    until(&handle, "holding").await;
    handle.promote_now("ben", "the fix must go out").await.unwrap();
    let outcome = handle.finished().await;
    assert_eq!(outcome.rollout.state, State::Promoted, "{outcome}");
    let asked = outcome
        .rollout
        .log
        .iter()
        .any(|entry| matches!(&entry.what, What::Asked { request, .. } if request.by.as_str() == "ben"));
    assert!(asked);

    let (scene, fake) = (Scene::new(), Fake::new("v1", "v2"));
    let gate = Scripted::new("errors", [Answer::Inconclusive]);
    scene.target(checkout(&fake).gate(gate, Policy::default()));
    let handle = scene.start(canary()).await;
    until(&handle, "holding").await;
    let unknown = handle.skip_gate("erors".parse().unwrap(), "ben", "broken").await.unwrap_err();
    assert!(unknown.to_string().contains("there are: errors"), "{unknown}");
    handle.skip_gate("errors".parse().unwrap(), "ben", "its server is down").await.unwrap();
    assert_eq!(handle.finished().await.rollout.state, State::Promoted);
}

#[tokio::test(start_paused = true)]
async fn a_busy_target_is_refused_by_name_or_superseded() {
    let (scene, fake) = (Scene::new(), Fake::new("v1", "v2"));
    fake.build("v3");
    scene.target(checkout(&fake));
    let first = scene.start(canary()).await;
    until(&first, "baking").await;
    let v3 = || NewRollout::new("checkout", Revision::new("v3").unwrap(), canary()).unwrap();
    let busy = scene.engine.start(v3()).await.unwrap_err();
    assert_eq!(busy.kind(), ErrorKind::Conflict);
    assert!(busy.to_string().contains(first.id().as_str()), "{busy}");
    let second = scene.engine.start(v3().if_busy(Busy::Supersede)).await.unwrap();
    assert!(matches!(first.finished().await.rollout.state, State::RolledBack { .. }));
    assert_eq!(second.finished().await.rollout.state, State::Promoted);
    assert!(fake.only("v3"));
    let unknown = scene.engine.start(NewRollout::new("chekout", Revision::new("v3").unwrap(), canary()).unwrap()).await;
    let unknown = unknown.unwrap_err();
    assert!(unknown.to_string().contains("registered are: checkout"), "{unknown}");
}

#[tokio::test(start_paused = true)]
async fn another_process_is_heard_through_the_store() {
    let (scene, fake) = (Scene::new(), Fake::new("v1", "v2"));
    scene.target(checkout(&fake));
    let handle = scene.start(canary()).await;
    until(&handle, "baking").await;
    let other = Scene::on(scene.store.clone(), scene.clock.clone());
    let request = Request::new(Ask::Abort, "ben", "from my laptop").unwrap();
    let calls = fake.calls();
    let asked = tokio::time::Instant::now();
    other.engine.ask(handle.id(), request.clone()).await.unwrap();
    fake.entered(calls).await;
    assert!(asked.elapsed() <= Duration::from_millis(1200), "heard with the next beat: {:?}", asked.elapsed());
    let outcome = handle.finished().await;
    assert!(
        matches!(&outcome.rollout.state, State::RolledBack { cause: Cause::Aborted { by, .. } } if by.as_str() == "ben")
    );
    let late = other.engine.ask(handle.id(), request).await.unwrap();
    assert!(late.as_str().contains("nothing to do"), "{late}");
}

#[tokio::test(start_paused = true)]
async fn a_finished_rollout_is_taken_back_and_an_unhealthy_verdict_then_holds() {
    let (scene, fake) = (Scene::new(), Fake::new("v1", "v2"));
    let gate = Scripted::healthy("errors");
    scene.target(checkout(&fake).gate(gate.clone(), Policy::default()));
    let checkout_id = TargetId::try_from("checkout").unwrap();
    let nothing = scene.engine.roll_back(&checkout_id, "ben", "hm").await.unwrap();
    assert!(matches!(nothing, WayBack::Nothing(_)), "{nothing:?}");
    assert_eq!(scene.start(canary()).await.finished().await.rollout.state, State::Promoted);
    gate.set(Answer::Unhealthy);
    let WayBack::Started(handle) = scene.engine.roll_back(&checkout_id, "ben", "orders are wrong").await.unwrap()
    else {
        panic!("nothing was started");
    };
    until(&handle, "holding").await;
    gate.set(Answer::Healthy);
    handle.resume("ben", "known").await.unwrap();
    let outcome = handle.finished().await;
    assert_eq!(outcome.rollout.state, State::Promoted, "{outcome}");
    assert!(fake.only("v1"));
    let again = scene.engine.roll_back(&checkout_id, "ben", "again").await.unwrap();
    assert!(matches!(again, WayBack::Nothing(_)), "{again:?}");
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_leaves_everything_resumable_and_another_engine_goes_on() {
    let (scene, fake) = (Scene::new(), Fake::new("v1", "v2"));
    let target = |fake: &Fake| checkout(fake).gate(Scripted::healthy("errors"), Policy::default());
    scene.target(target(&fake));
    let handle = scene.start(canary()).await;
    until(&handle, "baking").await;
    tokio::time::sleep(Duration::from_secs(30)).await;
    scene.engine.shutdown(Duration::from_secs(5)).await;
    let outcome = handle.finished().await;
    assert_eq!(outcome.exit_code(), 130, "{outcome}");
    assert!(scene.engine.start(deploy(canary())).await.is_err());

    let next = Scene::on(scene.store.clone(), scene.clock.clone());
    let resumed = next.engine.resume_all().await.unwrap();
    assert_eq!((resumed.handles.len(), resumed.unregistered.len()), (0, 1), "the target is not registered here");
    next.target(target(&fake));
    let begun = tokio::time::Instant::now();
    let resumed = next.engine.resume_all().await.unwrap();
    assert_eq!(resumed.handles.len(), 1);
    assert!(begun.elapsed() < Duration::from_secs(1), "it was released, so nobody waits for a lease");
    let State::Baking { step: 0, watched } = resumed.handles[0].status().state else {
        panic!("{}", resumed.handles[0].status())
    };
    assert!(watched >= Duration::from_secs(20), "what was watched counts: {watched:?}");
    assert_eq!(resumed.handles[0].finished().await.rollout.state, State::Promoted);
}

#[tokio::test(start_paused = true)]
async fn a_dead_driver_is_replaced_after_its_lease_and_a_living_one_is_not() {
    let (scene, fake) = (Scene::new(), Fake::new("v1", "v2"));
    scene.target(checkout(&fake));
    let handle = scene.start(canary()).await;
    until(&handle, "baking").await;
    let other = Scene::on(scene.store.clone(), scene.clock.clone());
    other.target(checkout(&fake));
    let resumed = other.engine.resume_all().await.unwrap();
    assert_eq!((resumed.handles.len(), resumed.elsewhere.len()), (0, 1));
    assert_eq!(handle.finished().await.rollout.state, State::Promoted);
}

#[tokio::test(start_paused = true)]
async fn requests_that_make_no_sense_are_harmless_and_say_so() {
    let (scene, fake) = (Scene::new(), Fake::new("v1", "v2"));
    scene.target(checkout(&fake));
    let handle = scene.start(canary()).await;
    until(&handle, "baking").await;
    assert!(handle.resume("ben", "?").await.unwrap().as_str().contains("nothing to resume"));
    assert!(handle.give_up("ben", "?").await.is_err());
    assert!(handle.abort("", "?").await.unwrap_err().to_string().contains("must be named"));
    assert_eq!(handle.finished().await.rollout.state, State::Promoted);
    assert!(handle.abort("ben", "late").await.unwrap().as_str().contains("nothing to do"));
    assert!(fake.only("v2"));
}

#[tokio::test(start_paused = true)]
async fn nothing_sealed_is_in_any_event_log_status_or_error() {
    let (scene, fake) = (Scene::new(), Fake::new("v1", "v2"));
    scene
        .target(checkout(&fake).gate(Scripted::new("errors", [Answer::Healthy, Answer::Unhealthy]), Policy::default()));
    let outcome = scene.start(canary()).await.finished().await;
    let secret = rollback_core::testing::backend::Bench::secret(&fake).unwrap();
    let record = scene.store.load(outcome.rollout.id()).await.unwrap().0;
    assert!(record.body.contains(&secret), "the record is what a rollback lives on");
    for text in [format!("{outcome}"), format!("{outcome:?}"), format!("{:?}", outcome.rollout), format!("{record:?}")]
    {
        assert!(!text.contains(&secret), "{text}");
    }
    assert!(!fake.trace().iter().any(|seen| matches!(seen.what, Happened::Moved(_))));
}

#[tokio::test(start_paused = true)]
async fn an_effect_that_stays_due_though_it_is_accepted_is_asked_for_at_a_pace() {
    let (scene, fake) = (Scene::new(), Fake::new("v1", "v2").parts(2, Duration::from_millis(10)));
    scene.target(checkout(&fake));
    let handle = scene.start(Plan::all_at_once(MINUTE).unwrap()).await;
    until(&handle, "baking").await;
    // Follows when it was restarted so often; a target that shows late what it was asked for looks the same.
    fake.stick(1, "v2", 40);
    let asked = tokio::time::Instant::now();
    handle.abort("ben", "orders are missing").await.unwrap();
    let outcome = handle.finished().await;
    assert!(matches!(outcome.rollout.state, State::RolledBack { .. }), "{outcome}");
    assert!(asked.elapsed() > MINUTE / 2, "40 restarts within {:?}", asked.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_target_that_others_write_to_is_given_time() {
    let (scene, fake) = (Scene::new(), Fake::new("v1", "v2"));
    scene.target(checkout(&fake));
    // As somebody who writes to it for some seconds, always between our look and our call.
    let begun = tokio::time::Instant::now();
    for call in 0..7 {
        fake.fault(call, Fault::Fail(ErrorKind::Conflict));
    }
    let handle = scene.start(Plan::all_at_once(MINUTE).unwrap()).await;
    until(&handle, "baking").await;
    assert!(begun.elapsed() > Duration::from_secs(3), "8 calls within {:?}", begun.elapsed());
}

/// Another process takes the rollout up, without a word to the one that drives it.
async fn snatch(scene: &Scene, id: &RolloutId) {
    loop {
        let (mut record, serial) = scene.store.load(id).await.unwrap();
        record.driver = Some(DriverId::fresh());
        if scene.store.update(&record, serial).await.is_ok() {
            return;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_process_that_lost_its_rollout_tells_of_no_end_that_it_did_not_save() {
    let (scene, fake) = (Scene::new(), Fake::new("v1", "v2"));
    fake.fault(3, Fault::Hang { landed: true });
    scene.target(checkout(&fake));
    let handle = scene.start(canary()).await;
    fake.entered(3).await;
    snatch(&scene, handle.id()).await;
    let outcome = handle.finished().await;
    assert_eq!(outcome.rollout.state, State::Promoting, "it saw the end, but whoever drives it now may go back");
    assert_eq!((outcome.exit_code(), outcome.is_success()), (130, false), "{outcome}");
}

#[tokio::test(start_paused = true)]
async fn a_process_that_was_silent_for_a_lease_learns_at_once_whether_its_rollouts_were_taken_up() {
    let (scene, fake) = (Scene::new(), Fake::new("v1", "v2"));
    let store = Away::to(&scene.store);
    let engine = Engine::builder(store.clone()).clock(scene.clock.clone()).build().unwrap();
    engine.register(checkout(&fake)).unwrap();
    let lost = engine.start(deploy(canary())).await.unwrap();
    until(&lost, "baking").await;
    // Nothing is saved while it waits for a person.
    lost.pause("ben", "lunch").await.unwrap();
    store.set(Way::Fails);
    tokio::time::sleep(Duration::from_secs(15)).await;
    snatch(&scene, lost.id()).await;
    store.set(Way::Open);
    let back = tokio::time::Instant::now();
    assert_eq!(lost.finished().await.exit_code(), 130);
    assert!(back.elapsed() <= Duration::from_secs(2), "it heard of it after {:?}", back.elapsed());
}
