//! The way back of a deployment group where the service is late, odd or busy.

use std::time::Duration;

use rollback_aws::{
    codedeploy::{Busy, Group, Platform, Poller},
    testing::{
        Simulator,
        codedeploy::Shape,
        fault::{Fault, Trouble},
    },
};
use rollback_core::{
    ErrorKind,
    backend::DeploymentBackend,
    clock::Clock as _,
    model::{Attempt, Change, Goal, Nonce, Progress, RolloutId, Serial, TargetId, Weight},
    state::{Cause, State},
    testing::{backend::Driver, gates::Scripted},
};
use serde_json::json;

use super::codedeploy_group::{APP, GROUP, Shop, all_at_once, artefact, location, minutes};

const ALL: Goal = Goal::Split(Weight::ALL);

async fn seconds(n: u64) {
    tokio::time::sleep(Duration::from_secs(n)).await;
}

/// Looks, saves and asks for what is due.
async fn ask(driver: &mut Driver<'_>, goal: Goal) {
    let look = driver.look(goal).await;
    assert!(matches!(look.progress, Progress::Due(_)), "{look:?}");
    let attempt = driver.save(goal, &look.version);
    driver.send(&attempt).await.unwrap();
}

/// The newest deployment, once its status is this one.
async fn once(shop: &Shop, count: usize, status: &str) -> String {
    for _ in 0..3_600 {
        let all = shop.deployments();
        if all.len() == count && all.last().is_some_and(|it| it["status"] == status) {
            return all.last().unwrap()["deploymentId"].as_str().unwrap().into();
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    panic!("never {count} deployments, the last of them {status}: {:#?}", shop.deployments());
}

fn creators(shop: &Shop) -> Vec<String> {
    shop.deployments().iter().map(|it| it["creator"].as_str().unwrap().into()).collect()
}

#[tokio::test(start_paused = true)]
async fn a_mixed_group_is_not_back_because_nobody_of_ours_touched_it() {
    // Somebody's deployment left i-2 behind, so the way back is what was promoted last.
    let shop = Shop::new(Platform::InPlace).config("CodeDeployDefault.AllAtOnce");
    let mut driver = Driver::new(&shop).await;
    driver.change.baseline = artefact(Platform::InPlace, 1).revision().unwrap();
    shop.aws.codedeploy().sicken("i-2", true);
    shop.aws.codedeploy().deploy(APP, GROUP, &location(Platform::InPlace, 3));
    once(&shop, 2, "Succeeded").await;
    shop.aws.codedeploy().sicken("i-2", false);
    let look = driver.look(Goal::Baseline).await;
    assert!(matches!(&look.progress, Progress::Due(why) if why.as_str().contains("baseline")), "{look:?}");
    assert_ne!(look.weight, Some(Weight::NONE));
    assert!(matches!(driver.look(ALL).await.progress, Progress::Due(_)), "forward it may be overwritten");
    driver.drive(Goal::Baseline).await;
    shop.assert_serves(1);
}

#[tokio::test(start_paused = true)]
async fn a_baseline_that_was_not_read_off_the_group_is_reached_when_it_alone_serves() {
    let shop = Shop::new(Platform::InPlace);
    let mut driver = Driver::new(&shop).await;
    driver.change.baseline = artefact(Platform::InPlace, 1).revision().unwrap();
    let look = driver.look(Goal::Baseline).await;
    assert_eq!((look.progress, look.weight), (Progress::Reached, Some(Weight::NONE)));
}

#[tokio::test(start_paused = true)]
async fn a_strangers_deployment_after_ours_is_drift_whatever_the_baseline_was_read_from() {
    let shop = Shop::new(Platform::InPlace);
    let mut driver = Driver::new(&shop).await;
    driver.change.baseline = artefact(Platform::InPlace, 1).revision().unwrap();
    ask(&mut driver, ALL).await;
    once(&shop, 2, "Succeeded").await;
    shop.aws.codedeploy().deploy(APP, GROUP, &location(Platform::InPlace, 3));
    once(&shop, 3, "Succeeded").await;
    seconds(20).await;
    for goal in [Goal::Baseline, ALL] {
        let look = driver.look(goal).await;
        assert!(matches!(look.progress, Progress::Drifted(_)), "{goal:?}: {look:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_deployment_whose_answer_was_lost_is_not_taken_for_a_stop_that_landed() {
    let shop = Shop::new(Platform::InPlace);
    shop.aws.codedeploy().rolls_back(false);
    let mut driver = Driver::new(&shop).await;
    ask(&mut driver, ALL).await;
    seconds(10).await;
    ask(&mut driver, Goal::Baseline).await;
    once(&shop, 2, "Stopped").await;
    let mut look = driver.look(Goal::Baseline).await;
    while !matches!(look.progress, Progress::Due(_)) {
        seconds(5).await;
        look = driver.look(Goal::Baseline).await;
    }
    shop.aws.fault(Fault::of("codedeploy:CreateDeployment", Trouble::DelayRequest(Duration::from_secs(20))));
    let attempt = driver.save(Goal::Baseline, &look.version);
    driver.send(&attempt).await.unwrap_err();
    let look = driver.look(Goal::Baseline).await;
    assert!(!look.landed, "a second one would be sent at once: {look:?}");
    seconds(21).await;
    assert!(driver.look(Goal::Baseline).await.landed);
    once(&shop, 3, "Succeeded").await;
    shop.assert_serves(1);
}

#[tokio::test(start_paused = true)]
async fn a_stop_that_came_too_late_keeps_the_way_back_waiting_for_nothing() {
    let shop = Shop::new(Platform::Lambda);
    let mut driver = Driver::new(&shop).await;
    ask(&mut driver, ALL).await;
    seconds(1).await;
    let look = driver.look(Goal::Baseline).await;
    let attempt = driver.save(Goal::Baseline, &look.version);
    once(&shop, 2, "Succeeded").await;
    assert_eq!(driver.send(&attempt).await.unwrap_err().kind(), ErrorKind::Conflict);
    let look = driver.look(Goal::Baseline).await;
    assert!(look.landed && matches!(look.progress, Progress::Due(_)), "{look:?}");
    assert_ne!(look.version, attempt.version, "what is due now is another effect");
}

#[tokio::test(start_paused = true)]
async fn a_gate_that_trips_as_the_deployment_ends_goes_back_at_once() {
    for after in 0..12 {
        let shop = Shop::new(Platform::Lambda);
        let (engine, new) = shop.engine(all_at_once(), Scripted::healthy("errors"));
        let run = engine.start(new).await.unwrap();
        while shop.deployments().len() < 2 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        tokio::time::sleep(Duration::from_millis(500 * after)).await;
        let begun = tokio::time::Instant::now();
        let _ = run.abort("ben", "now").await;
        let ended = run.finished().await;
        assert!(matches!(ended.rollout.state, State::RolledBack { .. }), "{}", ended.rollout);
        assert!(begun.elapsed() < Duration::from_secs(55), "{after}: {:?}", begun.elapsed());
        shop.assert_serves(1);
        engine.shutdown(minutes(1)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_rollback_that_the_group_does_not_tell_of_is_found_by_the_deployment_that_it_rolls_back() {
    let shop = Shop::new(Platform::Lambda).config("CodeDeployDefault.LambdaCanary10Percent5Minutes").alarm();
    let hands = shop.aws.codedeploy();
    let mut driver = Driver::new(&shop).await;
    ask(&mut driver, ALL).await;
    hands.rollbacks_take(Duration::from_secs(20));
    let ours = once(&shop, 2, "InProgress").await;
    // As of now the group tells of ours, and of nothing that comes after it.
    hands.groups_lag(minutes(5));
    assert_eq!(driver.look(ALL).await.version.as_str().split(' ').next(), Some(&*ours));
    shop.aws.alarm_at("shop-errors", shop.aws.clock().now());
    once(&shop, 2, "Stopped").await;
    let look = driver.look(Goal::Baseline).await;
    assert!(matches!(&look.progress, Progress::Underway(_)), "{look:?}");
    seconds(90).await;
    let look = driver.look(Goal::Baseline).await;
    assert_eq!(look.progress, Progress::Reached, "{look:?}");
    assert_eq!(creators(&shop), ["user", "user", "codeDeployRollback"]);
    shop.assert_serves(1);
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_differs_from_codedeploys_does_not_shorten_the_wait_for_its_rollback() {
    let shop = Shop::new(Platform::Lambda).config("CodeDeployDefault.LambdaCanary10Percent5Minutes").alarm();
    let hands = shop.aws.codedeploy();
    hands.clock_behind(minutes(2));
    hands.rollbacks_take(Duration::from_secs(30));
    let mut driver = Driver::new(&shop).await;
    ask(&mut driver, ALL).await;
    once(&shop, 2, "InProgress").await;
    shop.aws.alarm_at("shop-errors", shop.aws.clock().now());
    once(&shop, 2, "Stopped").await;
    let look = driver.look(Goal::Baseline).await;
    assert!(matches!(&look.progress, Progress::Underway(why) if why.as_str().contains("awaited")), "{look:?}");
    once(&shop, 3, "Succeeded").await;
    assert_eq!(creators(&shop)[2], "codeDeployRollback");
}

#[tokio::test(start_paused = true)]
async fn way_is_made_only_when_the_rollback_of_what_was_stopped_is_over() {
    let shop = Shop::new(Platform::InPlace);
    let hands = shop.aws.codedeploy();
    hands.rollbacks_take(Duration::from_secs(20));
    let group = shop.group();
    let other = hands.deploy(APP, GROUP, &location(Platform::InPlace, 3));
    seconds(10).await;
    group.make_way(Busy::Supersede(minutes(5))).await.unwrap();
    assert_eq!(hands.deployment(&other)["status"], "Stopped");
    once(&shop, 3, "Succeeded").await;
    assert_eq!(shop.deployments()[2]["creator"], "codeDeployRollback");
    let baseline = group.baseline().await.unwrap();
    assert_eq!(baseline.id, artefact(Platform::InPlace, 1).revision().unwrap().id);
}

#[tokio::test(start_paused = true)]
async fn an_alias_that_never_moved_is_deployed_to_from_where_it_is() {
    let shop = Shop::new(Platform::Lambda);
    let hands = shop.aws.codedeploy();
    hands.set(
        APP,
        GROUP,
        "autoRollbackConfiguration",
        json!({ "enabled": true, "events": ["DEPLOYMENT_STOP_ON_ALARM"] }),
    );
    hands.break_at(&location(Platform::Lambda, 2), "BeforeAllowTraffic");
    let ended = shop.roll_out(all_at_once(), Scripted::healthy("errors")).await;
    assert!(matches!(ended.rollout.state, State::RolledBack { cause: Cause::Failed { .. } }), "{}", ended.rollout);
    shop.assert_serves(1);
}

/// What a poller's groups call within a minute while each is brought back.
async fn calls_of_a_minute_back(groups: usize) -> u64 {
    let aws = Simulator::new();
    let poller = Poller::new(&aws.account());
    let instances: Vec<String> = (0..30).map(|n| format!("i-{n}")).collect();
    let mut looks = Vec::new();
    for n in 0..groups {
        let name = format!("group-{n}");
        aws.codedeploy().group(APP, &name, &Shape::InPlace(instances.clone()), "CodeDeployDefault.OneAtATime");
        aws.codedeploy().serve(APP, &name, &location(Platform::InPlace, 1));
        let backend = Group::new(&poller, APP, &name, Platform::InPlace).unwrap();
        let target = TargetId::try_from(name.as_str()).unwrap();
        let rollout = RolloutId::fresh(&target);
        let baseline = backend.baseline().await.unwrap();
        let candidate = artefact(Platform::InPlace, 2).revision().unwrap();
        let change = Change { rollout: rollout.clone(), target, baseline, candidate };
        for goal in [ALL, Goal::Baseline] {
            let look = backend.observe(&change, goal, None).await.unwrap();
            let (nonce, at) = (Nonce::new(&rollout, Serial(1), goal), aws.clock().now());
            backend.shift(&change, goal, &Attempt { nonce, goal, version: look.version, at }).await.unwrap();
        }
        looks.push((backend, change));
    }
    let run = |minutes: u64| {
        let looks = &looks;
        async move {
            for _ in 0..30 * minutes {
                for (backend, change) in looks {
                    backend.observe(change, Goal::Baseline, None).await.unwrap();
                }
                seconds(2).await;
            }
        }
    };
    run(1).await;
    let before: u64 = aws.calls().values().sum();
    run(1).await;
    aws.calls().values().sum::<u64>() - before
}

#[tokio::test(start_paused = true)]
async fn a_hundred_groups_on_their_way_back_are_read_in_batches_too() {
    let (one, hundred) = (calls_of_a_minute_back(1).await, calls_of_a_minute_back(100).await);
    eprintln!("calls a minute on the way back: {one} for 1 group, {hundred} for 100");
    assert!((3..=6).contains(&one), "{one}");
    assert!(hundred <= 6 * one, "{hundred} for a hundred, {one} for one");
}

#[tokio::test(start_paused = true)]
async fn a_deployment_that_may_not_be_read_blinds_nobody_else() {
    let shop = Shop::new(Platform::InPlace);
    let hands = shop.aws.codedeploy();
    let poller = Poller::new(&shop.aws.account());
    hands.group(APP, "closed", &Shape::InPlace(vec!["i-9".into()]), "CodeDeployDefault.AllAtOnce");
    hands.serve(APP, "closed", &location(Platform::InPlace, 1));
    hands.hide(APP, "closed");
    let closed = Group::new(&poller, APP, "closed", Platform::InPlace).unwrap();
    let open = Group::new(&poller, APP, GROUP, Platform::InPlace).unwrap();
    for _ in 0..3 {
        assert_eq!(closed.baseline().await.unwrap_err().kind(), ErrorKind::Denied);
        open.baseline().await.unwrap();
        hands.serve(APP, GROUP, &location(Platform::InPlace, 1));
        seconds(5).await;
    }
    // What could be read, and may not be any more, is read for itself.
    let running = hands.deploy(APP, GROUP, &location(Platform::InPlace, 3));
    let e = open.make_way(Busy::Refuse).await.unwrap_err();
    assert!(e.to_string().contains(&running), "{e}");
}

#[tokio::test(start_paused = true)]
async fn a_way_back_over_an_alias_with_two_weights_says_what_a_person_can_do() {
    let shop = Shop::new(Platform::Lambda).config("CodeDeployDefault.LambdaCanary10Percent5Minutes");
    shop.aws.codedeploy().rolls_back(false);
    let (engine, new) = shop.engine(all_at_once(), Scripted::healthy("errors"));
    let run = engine.start(new).await.unwrap();
    while shop.serves().len() < 2 {
        seconds(1).await;
    }
    run.abort("ben", "now").await.unwrap();
    let ended = run.finished().await;
    let State::Stuck { why, .. } = &ended.rollout.state else { panic!("{}", ended.rollout) };
    assert!(why.as_str().contains("clear"), "{why}");
    engine.shutdown(minutes(1)).await;
}

/// CodeDeploy rolls back by itself, and that fails at this event.
#[tokio::test(start_paused = true)]
async fn a_rollback_of_codedeploys_own_that_fails_is_followed_by_ours() {
    let shop = Shop::new(Platform::InPlace).alarm();
    let (engine, new) = shop.engine(all_at_once(), Scripted::healthy("errors"));
    let run = engine.start(new).await.unwrap();
    while shop.deployments().len() < 2 {
        seconds(1).await;
    }
    seconds(15).await;
    shop.aws.alarm_at("shop-errors", shop.aws.clock().now());
    while shop.deployments().len() < 3 {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    for instance in ["i-1", "i-2", "i-3"] {
        shop.aws.codedeploy().sicken(instance, true);
    }
    once(&shop, 3, "Failed").await;
    for instance in ["i-1", "i-2", "i-3"] {
        shop.aws.codedeploy().sicken(instance, false);
    }
    let ended = run.finished().await;
    assert!(matches!(ended.rollout.state, State::RolledBack { .. }), "{}", ended.rollout);
    assert_eq!(creators(&shop), ["user", "user", "codeDeployRollback", "user"]);
    shop.assert_serves(1);
    engine.shutdown(minutes(1)).await;
}

#[tokio::test(start_paused = true)]
async fn a_way_back_of_ours_that_fails_is_for_a_person_and_names_the_instance() {
    let shop = Shop::new(Platform::InPlace);
    let (engine, new) = shop.engine(all_at_once(), Scripted::unhealthy_from("errors", Weight::ALL));
    let run = engine.start(new).await.unwrap();
    while shop.deployments().len() < 3 {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let all = ["i-1", "i-2", "i-3"];
    all.iter().for_each(|it| shop.aws.codedeploy().sicken(it, true));
    once(&shop, 3, "Failed").await;
    all.iter().for_each(|it| shop.aws.codedeploy().sicken(it, false));
    let ended = run.finished().await;
    let State::Stuck { why, .. } = &ended.rollout.state else { panic!("{}", ended.rollout) };
    assert!(why.as_str().contains("i-1") && why.as_str().contains("ApplicationStop"), "{why}");
    assert_eq!(shop.deployments().len(), 3, "{:#?}", shop.deployments());
    engine.shutdown(minutes(1)).await;
}

#[tokio::test(start_paused = true)]
async fn throttling_on_the_way_back_is_borne() {
    for platform in [Platform::InPlace, Platform::Ecs, Platform::Lambda] {
        let shop = Shop::new(platform);
        let gate = Scripted::healthy("errors");
        let (engine, new) = shop.engine(all_at_once(), gate.clone());
        let run = engine.start(new).await.unwrap();
        while !matches!(run.status().state, State::Baking { .. }) {
            seconds(1).await;
        }
        shop.aws.fault(Fault::any(Trouble::Throttle).times(u64::MAX));
        run.abort("ben", "now").await.unwrap();
        tokio::time::sleep(minutes(3)).await;
        shop.aws.forget_faults();
        let ended = run.finished().await;
        assert!(matches!(ended.rollout.state, State::RolledBack { .. }), "{platform:?}: {}", ended.rollout);
        assert_eq!(shop.deployments().len(), 3, "{platform:?}: {:#?}", shop.deployments());
        shop.assert_serves(1);
        engine.shutdown(minutes(1)).await;
    }
}
