//! The way back of a deployment group, where it is not straight.

use std::time::Duration;

use rollback_aws::{
    codedeploy::{Busy, Group, Platform, Poller},
    testing::{
        Refusal,
        codedeploy::Shape,
        fault::{Fault, Trouble},
    },
};
use rollback_core::{
    ErrorKind,
    backend::DeploymentBackend as _,
    clock::Clock as _,
    model::{Goal, Observed, Progress, Weight},
    plan::Plan,
    state::{Cause, State},
    testing::{
        backend::Driver,
        gates::{Answer, Scripted},
    },
};

use serde_json::json;

use crate::codedeploy_group::{APP, GROUP, Shop, all_at_once, artefact, location};

const FORWARD: Goal = Goal::Split(Weight::ALL);

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// A rollout whose candidate is being deployed.
async fn under_way(shop: &Shop) -> Driver<'_> {
    let mut driver = Driver::new(shop).await;
    let look = driver.look(FORWARD).await;
    let attempt = driver.save(FORWARD, &look.version);
    driver.send(&attempt).await.unwrap();
    tokio::time::sleep(seconds(4)).await;
    driver
}

/// Waits until so many deployments are there, and the newest has this status.
async fn once(shop: &Shop, count: usize, status: &str) {
    for _ in 0..3_600 {
        let all = shop.deployments();
        if all.len() == count && all.last().is_some_and(|it| it["status"] == status) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    panic!("never {count} deployments, the last of them {status}: {:#?}", shop.deployments());
}

/// What `told` is to say of a look.
fn assert_due(look: &Observed, told: &str) {
    assert!(matches!(&look.progress, Progress::Due(it) if it.as_str().contains(told)), "{told}: {look:?}");
}

#[tokio::test(start_paused = true)]
async fn a_lost_deployment_of_the_baseline_is_not_taken_for_the_stop_before_it() {
    let shop = Shop::new(Platform::InPlace);
    shop.aws.codedeploy().rolls_back(false);
    let mut driver = under_way(&shop).await;
    let look = driver.look(Goal::Baseline).await;
    assert_due(&look, "with rollback");
    let attempt = driver.save(Goal::Baseline, &look.version);
    driver.send(&attempt).await.unwrap();
    tokio::time::sleep(seconds(90)).await;
    driver.look(Goal::Baseline).await;
    tokio::time::sleep(seconds(90)).await;
    let look = driver.look(Goal::Baseline).await;
    assert_due(&look, "nothing rolled it back");
    assert!(look.landed, "what was stopped is over: {look:?}");
    let attempt = driver.save(Goal::Baseline, &look.version);
    shop.aws.fault(Fault::of("codedeploy:CreateDeployment", Trouble::LoseRequest));
    driver.send(&attempt).await.unwrap_err();
    let look = driver.look(Goal::Baseline).await;
    assert!(!look.landed, "nobody knows yet: {look:?}");
}

#[tokio::test(start_paused = true)]
async fn a_stop_that_comes_too_late_holds_up_no_deployment_of_the_baseline() {
    let shop = Shop::new(Platform::Lambda);
    let mut driver = under_way(&shop).await;
    let look = driver.look(Goal::Baseline).await;
    assert_due(&look, "with rollback");
    let attempt = driver.save(Goal::Baseline, &look.version);
    let over = Refusal::new(400, "DeploymentAlreadyCompletedException", "The deployment has already completed.");
    shop.aws.fault(Fault::of("codedeploy:StopDeployment", Trouble::Refuse(over)));
    assert_eq!(driver.send(&attempt).await.unwrap_err().kind(), ErrorKind::Conflict);
    tokio::time::sleep(seconds(20)).await;
    shop.assert_serves(2);
    let look = driver.look(Goal::Baseline).await;
    assert_due(&look, "has succeeded");
    assert!(look.landed, "there is nothing left to stop: {look:?}");
    assert_eq!(shop.aws.codedeploy().deployments(APP, GROUP).len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_stop_without_an_answer_holds_up_nothing_once_its_deployment_is_over() {
    let shop = Shop::new(Platform::Lambda).config("CodeDeployDefault.LambdaCanary10Percent5Minutes");
    let mut driver = under_way(&shop).await;
    let look = driver.look(Goal::Baseline).await;
    assert_due(&look, "with rollback");
    let stop = driver.save(Goal::Baseline, &look.version);
    shop.aws.fault(Fault::of("codedeploy:StopDeployment", Trouble::LoseRequest).times(u64::MAX));
    driver.send(&stop).await.unwrap_err();
    let look = driver.look(Goal::Baseline).await;
    assert!(!look.landed, "it may arrive for as long as there is something to stop: {look:?}");
    tokio::time::sleep(seconds(360)).await;
    shop.assert_serves(2);
    let look = driver.look(Goal::Baseline).await;
    assert_due(&look, "has succeeded");
    assert!(look.landed, "there is nothing left to stop: {look:?}");
    assert_ne!(look.version, stop.version, "what is due now is another effect");
    driver.drive(Goal::Baseline).await;
    assert_eq!(shop.deployments().len(), 3);
    shop.assert_serves(1);
}

#[tokio::test(start_paused = true)]
async fn a_baseline_that_was_not_read_off_the_group_is_back_only_where_it_serves_alone() {
    let shop = Shop::new(Platform::InPlace).config("CodeDeployDefault.AllAtOnce");
    let mut driver = Driver::new(&shop).await;
    // The last promoted one, as a record of then has it.
    driver.change.baseline = artefact(shop.platform, 1).revision().unwrap();
    driver.change.candidate = artefact(shop.platform, 3).revision().unwrap();
    let look = driver.look(Goal::Baseline).await;
    assert_eq!((look.progress, look.weight), (Progress::Reached, Some(Weight::NONE)));
    // It was deployed again, and an instance stayed behind; or another one was.
    let hands = shop.aws.codedeploy();
    for (n, sick) in [(1, true), (2, true), (2, false)] {
        hands.sicken("i-2", sick);
        let id = hands.deploy(APP, GROUP, &location(shop.platform, n));
        tokio::time::sleep(seconds(120)).await;
        assert_eq!(hands.deployment(&id)["status"], "Succeeded");
        let look = driver.look(Goal::Baseline).await;
        assert_due(&look, &id);
        assert_eq!(look.weight, None);
        let look = driver.look(FORWARD).await;
        assert!(matches!(look.progress, Progress::Due(_)), "forward it may be overwritten: {look:?}");
    }
    driver.drive(Goal::Baseline).await;
    shop.assert_serves(1);
}

#[tokio::test(start_paused = true)]
async fn a_strangers_deployment_after_ours_is_drift_also_for_a_baseline_that_was_not_read_off_the_group() {
    let shop = Shop::new(Platform::InPlace);
    let mut driver = Driver::new(&shop).await;
    driver.change.baseline = artefact(shop.platform, 1).revision().unwrap();
    driver.drive(FORWARD).await;
    shop.assert_serves(2);
    let stranger = shop.aws.codedeploy().deploy(APP, GROUP, &location(shop.platform, 3));
    tokio::time::sleep(seconds(120)).await;
    shop.assert_serves(3);
    for goal in [FORWARD, Goal::Baseline] {
        let look = driver.look(goal).await;
        assert!(matches!(&look.progress, Progress::Drifted(it) if it.as_str().contains(&stranger)), "{goal}: {look:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_group_is_busy_until_a_rollback_that_is_yet_to_appear_is_over() {
    let shop = Shop::new(Platform::InPlace);
    let hands = shop.aws.codedeploy();
    hands.rollbacks_take(seconds(20));
    for (busy, stopped) in [
        (Busy::Supersede(seconds(300)), false),
        (Busy::Supersede(seconds(300)), true),
        (Busy::Wait(seconds(300)), true),
        (Busy::Refuse, true),
    ] {
        let other = hands.deploy(APP, GROUP, &location(shop.platform, 3));
        tokio::time::sleep(seconds(5)).await;
        if stopped {
            hands.stop(&other, true);
        }
        let way = shop.group().make_way(busy).await;
        let last = hands.deployments(APP, GROUP).pop().unwrap();
        let last = hands.deployment(&last);
        assert_eq!(last["rollbackInfo"]["rollbackTriggeringDeploymentId"], *other, "{busy:?}: {last:#}");
        if busy == Busy::Refuse {
            let e = way.unwrap_err();
            let id = last["deploymentId"].as_str().unwrap();
            assert!(e.kind() == ErrorKind::Conflict && e.to_string().contains(id), "{e}");
        } else {
            way.unwrap();
            assert_eq!(last["status"], "Succeeded", "{busy:?}");
            shop.assert_serves(1);
            shop.group().baseline().await.unwrap();
        }
    }
    // One that never comes is not waited for for ever.
    let shop = Shop::new(Platform::InPlace);
    shop.aws.codedeploy().rolls_back(false);
    let other = shop.aws.codedeploy().deploy(APP, GROUP, &location(shop.platform, 3));
    shop.aws.codedeploy().stop(&other, true);
    shop.group().make_way(Busy::Refuse).await.unwrap();
}

/// Asks for the stop, and waits until it has happened and was seen.
async fn stopped(shop: &Shop, driver: &mut Driver<'_>) -> String {
    let look = driver.look(Goal::Baseline).await;
    assert_due(&look, "with rollback");
    let attempt = driver.save(Goal::Baseline, &look.version);
    driver.send(&attempt).await.unwrap();
    let id = shop.aws.codedeploy().deployments(APP, GROUP).pop().unwrap();
    for _ in 0..60 {
        let look = driver.look(Goal::Baseline).await;
        if matches!(&look.progress, Progress::Underway(it) if it.as_str().contains("its rollback is awaited")) {
            return id;
        }
        tokio::time::sleep(seconds(1)).await;
    }
    panic!("{id} was never seen to be stopped");
}

#[tokio::test(start_paused = true)]
async fn a_rollback_that_is_told_late_is_read_off_the_deployment() {
    let shop = Shop::new(Platform::InPlace);
    let mut driver = under_way(&shop).await;
    shop.aws.codedeploy().rollbacks_take(seconds(20));
    let id = stopped(&shop, &mut driver).await;
    // From now on only the deployment tells.
    shop.aws.codedeploy().groups_lag(seconds(45));
    tokio::time::sleep(seconds(40)).await;
    let look = driver.look(Goal::Baseline).await;
    let back = shop.aws.codedeploy().deployment(&id)["rollbackInfo"]["rollbackDeploymentId"].clone();
    assert!(look.version.as_str().starts_with(back.as_str().unwrap()), "{back}: {look:?}");
    driver.drive(Goal::Baseline).await;
    shop.assert_serves(1);
}

#[tokio::test(start_paused = true)]
async fn that_there_is_no_rollback_is_read_off_the_deployment_and_told() {
    let shop = Shop::new(Platform::InPlace);
    let mut driver = under_way(&shop).await;
    shop.aws.codedeploy().rolls_back(false);
    let id = stopped(&shop, &mut driver).await;
    shop.aws.codedeploy().say_of_rollback(&id, "It cannot be rolled back.");
    tokio::time::sleep(seconds(20)).await;
    let look = driver.look(Goal::Baseline).await;
    assert_due(&look, "It cannot be rolled back.");
}

#[tokio::test(start_paused = true)]
async fn an_alias_that_was_never_moved_is_told_its_own_version_on_the_way_back() {
    let shop = Shop::new(Platform::Lambda);
    shop.aws.codedeploy().set(APP, GROUP, "autoRollbackConfiguration", json!({ "enabled": false }));
    let shop = shop.keep();
    shop.aws.codedeploy().break_at(&location(shop.platform, 2), "BeforeAllowTraffic");
    let mut driver = under_way(&shop).await;
    tokio::time::sleep(seconds(20)).await;
    let failed = driver.look(FORWARD).await;
    assert!(
        matches!(&failed.progress, Progress::Failed(it) if it.as_str().contains("BeforeAllowTraffic")),
        "{failed:?}"
    );
    driver.drive(Goal::Baseline).await;
    let all = shop.aws.codedeploy().deployments(APP, GROUP);
    assert_eq!(all.len(), 3);
    assert_eq!(shop.aws.codedeploy().deployment(&all[2])["status"], "Succeeded");
    shop.assert_serves(1);
}

#[tokio::test(start_paused = true)]
async fn a_rollback_is_awaited_by_our_own_watch_and_not_by_two_clocks() {
    let shop = Shop::new(Platform::InPlace);
    let mut driver = under_way(&shop).await;
    let hands = shop.aws.codedeploy();
    hands.rollbacks_take(seconds(40));
    hands.clock_behind(seconds(120));
    let id = stopped(&shop, &mut driver).await;
    driver.drive(Goal::Baseline).await;
    let all = hands.deployments(APP, GROUP);
    assert_eq!(hands.deployment(&id)["rollbackInfo"]["rollbackDeploymentId"], *all[2]);
    assert_eq!(all.len(), 3, "CodeDeploy's own rollback, and none of ours beside it");
    shop.assert_serves(1);
    // One that ended long ago is not waited for by whoever has just begun.
    let shop = Shop::new(Platform::InPlace);
    shop.aws.codedeploy().rolls_back(false);
    let other = shop.aws.codedeploy().deploy(APP, GROUP, &location(shop.platform, 3));
    shop.aws.codedeploy().stop(&other, true);
    tokio::time::sleep(seconds(600)).await;
    let begun = tokio::time::Instant::now();
    shop.group().make_way(Busy::Refuse).await.unwrap();
    assert!(begun.elapsed() < seconds(5), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_group_that_may_not_be_read_keeps_no_other_from_being_read() {
    let shop = Shop::new(Platform::BlueGreen);
    let hands = shop.aws.codedeploy();
    let poller = Poller::new(&shop.aws.account());
    let group = |name: &str| Group::new(&poller, APP, name, shop.platform).unwrap();
    for name in ["other", "hidden"] {
        hands.group(APP, name, &Shape::BlueGreen(vec!["i-9".into()]), "CodeDeployDefault.AllAtOnce");
        let waits = "blueGreenDeploymentConfiguration";
        hands.set(APP, name, waits, hands.setting(APP, GROUP, waits));
        hands.serve(APP, name, &location(shop.platform, 1));
    }
    hands.hide(APP, "hidden");
    let hidden = group("hidden");
    let denied = hidden.baseline().await.unwrap_err();
    assert_eq!(denied.kind(), ErrorKind::Denied, "{denied}");
    // One that may be read no more, after it was.
    let mut driver = Driver::new(&shop).await;
    driver.backend = std::sync::Arc::new(group(GROUP));
    let look = driver.look(FORWARD).await;
    let attempt = driver.save(FORWARD, &look.version);
    driver.send(&attempt).await.unwrap();
    let other = group("other");
    hands.deploy(APP, "other", &location(shop.platform, 2));
    for _ in 0..10 {
        let _ = other.make_way(Busy::Refuse).await.unwrap_err();
        driver.look(FORWARD).await;
        let _ = hidden.baseline().await.unwrap_err();
        tokio::time::sleep(seconds(5)).await;
    }
    hands.hide(APP, "other");
    for _ in 0..10 {
        assert_eq!(other.make_way(Busy::Refuse).await.unwrap_err().kind(), ErrorKind::Denied);
        driver.backend.observe(&driver.change, FORWARD, None).await.unwrap();
        tokio::time::sleep(seconds(5)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_deployment_of_the_baseline_that_lands_four_minutes_late_is_the_only_one() {
    let shop = Shop::new(Platform::Lambda);
    let gate = Scripted::healthy("errors");
    let (engine, new) = shop.engine(Plan::all_at_once(seconds(600)).unwrap(), gate.clone());
    let run = engine.start(new).await.unwrap();
    while !matches!(run.status().state, State::Baking { .. }) {
        tokio::time::sleep(seconds(1)).await;
    }
    shop.aws.fault(Fault::of("codedeploy:CreateDeployment", Trouble::DelayRequest(seconds(240))));
    gate.set(Answer::Unhealthy);
    let ended = run.finished().await;
    assert!(matches!(ended.rollout.state, State::RolledBack { .. }), "{}", ended.rollout);
    tokio::time::sleep(seconds(600)).await;
    assert_eq!(shop.deployments().len(), 3, "{:#?}", shop.deployments());
    shop.assert_serves(1);
    engine.shutdown(seconds(60)).await;
}

#[tokio::test(start_paused = true)]
async fn an_alias_with_weights_of_two_versions_is_named_when_the_baseline_cannot_be_deployed() {
    let shop = Shop::new(Platform::Lambda).config("CodeDeployDefault.LambdaCanary10Percent5Minutes");
    shop.aws.codedeploy().rolls_back(false);
    let mut driver = under_way(&shop).await;
    tokio::time::sleep(seconds(30)).await;
    let look = driver.look(Goal::Baseline).await;
    assert_eq!(look.weight, Some(Weight::try_from(10).unwrap()), "{look:?}");
    stopped(&shop, &mut driver).await;
    tokio::time::sleep(seconds(120)).await;
    let look = driver.look(Goal::Baseline).await;
    assert_due(&look, "nothing rolled it back");
    let attempt = driver.save(Goal::Baseline, &look.version);
    driver.send(&attempt).await.unwrap();
    tokio::time::sleep(seconds(20)).await;
    let look = driver.look(Goal::Baseline).await;
    let Progress::Failed(why) = &look.progress else { panic!("{look:?}") };
    assert!(why.as_str().contains("if shop:live still has weights of two versions, clear them"), "{why}");
}

#[tokio::test(start_paused = true)]
async fn a_change_of_the_group_is_found_behind_many_deployments_to_instances_that_came_late() {
    let shop = Shop::new(Platform::InPlace);
    let driver = Driver::new(&shop).await;
    for n in 0..120 {
        shop.aws.codedeploy().scale_out(APP, GROUP, &format!("i-{}", 100 + n), &location(shop.platform, 1));
        tokio::time::sleep(seconds(20)).await;
    }
    assert!(shop.deployments().iter().all(|it| it["status"] == "Succeeded"));
    let before = shop.aws.calls()["codedeploy:BatchGetDeployments"];
    let look = driver.look(Goal::Baseline).await;
    assert_eq!(look.progress, Progress::Reached);
    let calls = shop.aws.calls()["codedeploy:BatchGetDeployments"] - before;
    assert!(calls <= 6, "{calls} calls to read 121 deployments");
}

/// A call that was given up lands just before a look, and what was read before it would end the rollout.
#[tokio::test(start_paused = true)]
async fn a_way_back_is_not_over_by_what_was_read_before_a_late_call_landed() {
    let shop = Shop::new(Platform::InPlace);
    let mut driver = Driver::new(&shop).await;
    let look = driver.look(FORWARD).await;
    let attempt = driver.save(FORWARD, &look.version);
    shop.aws.fault(Fault::of("codedeploy:CreateDeployment", Trouble::DelayRequest(seconds(60))));
    let sent = tokio::time::Instant::now();
    driver.send(&attempt).await.unwrap_err();
    // Read a second before it lands, which is good for the looks of a poll's interval.
    tokio::time::sleep_until(sent + seconds(59)).await;
    assert_eq!(driver.look(Goal::Baseline).await.progress, Progress::Reached);
    tokio::time::sleep(seconds(2)).await;
    assert_eq!(shop.deployments().len(), 2);
    let look = driver.look(Goal::Baseline).await;
    assert_due(&look, "with rollback");
}

#[tokio::test(start_paused = true)]
async fn a_gate_that_trips_as_the_deployment_ends_goes_back_at_once() {
    for after in 0..12 {
        let shop = Shop::new(Platform::Lambda);
        let gate = Scripted::healthy("errors");
        let (engine, new) = shop.engine(all_at_once(), gate.clone());
        let run = engine.start(new).await.unwrap();
        while shop.deployments().len() < 2 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        tokio::time::sleep(Duration::from_millis(500 * after)).await;
        let begun = tokio::time::Instant::now();
        gate.set(Answer::Unhealthy);
        gate.wake();
        let ended = run.finished().await;
        let because = matches!(ended.rollout.state, State::RolledBack { cause: Cause::Unhealthy { .. } });
        assert!(because, "{after}: {}", ended.rollout);
        assert!(begun.elapsed() < seconds(55), "{after}: {:?}", begun.elapsed());
        shop.assert_serves(1);
        engine.shutdown(seconds(60)).await;
    }
}

/// The third deployment, which is on its way, fails on every instance.
async fn third_fails(shop: &Shop) {
    let sicken = |sick| ["i-1", "i-2", "i-3"].map(|instance| shop.aws.codedeploy().sicken(instance, sick));
    sicken(true);
    once(shop, 3, "Failed").await;
    sicken(false);
}

#[tokio::test(start_paused = true)]
async fn a_rollback_of_codedeploys_own_that_fails_is_followed_by_ours() {
    let shop = Shop::new(Platform::InPlace).alarm();
    let (engine, new) = shop.engine(all_at_once(), Scripted::healthy("errors"));
    let run = engine.start(new).await.unwrap();
    while shop.deployments().len() < 2 {
        tokio::time::sleep(seconds(1)).await;
    }
    tokio::time::sleep(seconds(15)).await;
    shop.aws.alarm_at("shop-errors", shop.aws.clock().now());
    while shop.deployments().len() < 3 {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    third_fails(&shop).await;
    let ended = run.finished().await;
    assert!(matches!(ended.rollout.state, State::RolledBack { .. }), "{}", ended.rollout);
    let creators: Vec<_> = shop.deployments().iter().map(|it| it["creator"].clone()).collect();
    assert_eq!(creators, ["user", "user", "codeDeployRollback", "user"]);
    shop.assert_serves(1);
    engine.shutdown(seconds(60)).await;
}

#[tokio::test(start_paused = true)]
async fn a_way_back_of_ours_that_fails_is_for_a_person_and_names_the_instance() {
    let shop = Shop::new(Platform::InPlace);
    let (engine, new) = shop.engine(all_at_once(), Scripted::unhealthy_from("errors", Weight::ALL));
    let run = engine.start(new).await.unwrap();
    while shop.deployments().len() < 3 {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    third_fails(&shop).await;
    let ended = run.finished().await;
    let State::Stuck { why, .. } = &ended.rollout.state else { panic!("{}", ended.rollout) };
    assert!(why.as_str().contains("i-1") && why.as_str().contains("ApplicationStop"), "{why}");
    assert_eq!(shop.deployments().len(), 3, "{:#?}", shop.deployments());
    engine.shutdown(seconds(60)).await;
}

#[tokio::test(start_paused = true)]
async fn throttling_on_the_way_back_is_borne() {
    for platform in [Platform::InPlace, Platform::Ecs, Platform::Lambda] {
        let shop = Shop::new(platform);
        let gate = Scripted::healthy("errors");
        let (engine, new) = shop.engine(all_at_once(), gate.clone());
        let run = engine.start(new).await.unwrap();
        while !matches!(run.status().state, State::Baking { .. }) {
            tokio::time::sleep(seconds(1)).await;
        }
        shop.aws.fault(Fault::any(Trouble::Throttle).times(u64::MAX));
        gate.set(Answer::Unhealthy);
        tokio::time::sleep(seconds(180)).await;
        shop.aws.forget_faults();
        let ended = run.finished().await;
        assert!(matches!(ended.rollout.state, State::RolledBack { .. }), "{platform:?}: {}", ended.rollout);
        assert_eq!(shop.deployments().len(), 3, "{platform:?}: {:#?}", shop.deployments());
        shop.assert_serves(1);
        engine.shutdown(seconds(60)).await;
    }
}
