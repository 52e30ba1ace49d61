//! ECS's room: the sequences that deployments go through, as they are documented.

use std::time::Duration;

use aws_sdk_ecs::{
    Client,
    types::{DeploymentLifecycleHookAction as Action, StopServiceDeploymentStopType as Stop},
};
use rollback_aws::testing::{
    Simulator,
    ecs::{Setup, Time},
};
use rollback_core::clock::Clock as _;
use serde_json::{Value, json};

const SHOP: (&str, &str) = ("shop", "checkout");

/// `shop/checkout` at `checkout:1`; `checkout:2` is good, and tasks of `checkout:3` end with 1.
fn stage(config: Value) -> Simulator {
    let aws = Simulator::new();
    for environment in [&[][..], &[], &[("SIMULATOR_EXIT_CODE", "1")]] {
        aws.ecs().register("checkout", "registry.example/checkout", environment);
    }
    aws.ecs().service(SHOP.0, SHOP.1, "checkout:1", &Setup::new(config));
    aws
}

/// What ECS says of the last deployment, each time that it says something else: status, stage, share.
async fn course(aws: &Simulator, until: &[&str]) -> Vec<String> {
    let mut seen: Vec<String> = Vec::new();
    for _ in 0..100_000 {
        let last = aws.ecs().last(SHOP.0, SHOP.1).unwrap();
        let share = last.weight.map(|share| format!(" {share} %")).unwrap_or_default();
        let paused = if last.paused.is_some() { " paused" } else { "" };
        let now = format!("{} {}{share}{paused}", last.status, last.stage.as_deref().unwrap_or("-"));
        if seen.last() != Some(&now) {
            seen.push(now);
        }
        if until.contains(&last.status.as_str()) || last.paused.is_some() {
            return seen;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    panic!("it never is {until:?}: {seen:?}");
}

const ENDS: &[&str] = &["SUCCESSFUL", "STOPPED", "ROLLBACK_SUCCESSFUL", "ROLLBACK_FAILED"];

fn client(aws: &Simulator) -> Client {
    aws.account().ecs()
}

/// The stages of the developer guide's "Amazon ECS blue/green service deployments workflow", and the states of "View
/// service history using Amazon ECS service deployments".
#[tokio::test(start_paused = true)]
async fn a_blue_green_deployment_goes_through_the_documented_stages() {
    let aws = stage(json!({ "strategy": "BLUE_GREEN", "bakeTimeInMinutes": 5 }));
    aws.ecs().deploy(SHOP.0, SHOP.1, "checkout:2");
    let began = aws.clock().now();
    let course = course(&aws, ENDS).await;
    assert_eq!(
        course,
        [
            "PENDING - 0 %",
            "IN_PROGRESS PRE_SCALE_UP 0 %",
            "IN_PROGRESS SCALE_UP 0 %",
            "IN_PROGRESS POST_SCALE_UP 0 %",
            "IN_PROGRESS TEST_TRAFFIC_SHIFT 0 %",
            "IN_PROGRESS POST_TEST_TRAFFIC_SHIFT 0 %",
            "IN_PROGRESS PRODUCTION_TRAFFIC_SHIFT 100 %",
            "IN_PROGRESS POST_PRODUCTION_TRAFFIC_SHIFT 100 %",
            "IN_PROGRESS BAKE_TIME 100 %",
            "IN_PROGRESS CLEAN_UP 100 %",
            "SUCCESSFUL - 100 %",
        ]
    );
    assert!(aws.clock().now().duration_since(began).as_secs() >= 300, "it bakes for five minutes");
    assert_eq!(aws.ecs().running(SHOP.0, SHOP.1), [("checkout:2".into(), 4)].into());
}

/// API, `CanaryConfiguration` and `LinearConfiguration`: shares, and no bake after 100 %.
#[tokio::test(start_paused = true)]
async fn canary_and_linear_shift_by_their_configured_shares() {
    for (config, wanted) in [
        (
            json!({ "strategy": "CANARY", "canaryConfiguration": { "canaryPercent": 10.0, "canaryBakeTimeInMinutes": 3 } }),
            &["10 %", "100 %"][..],
        ),
        (
            json!({ "strategy": "LINEAR", "linearConfiguration": { "stepPercent": 40.0, "stepBakeTimeInMinutes": 1 } }),
            &["40 %", "80 %", "100 %"],
        ),
    ] {
        let aws = stage(config.clone());
        aws.ecs().deploy(SHOP.0, SHOP.1, "checkout:2");
        let course = course(&aws, ENDS).await;
        let shifts = course.iter().filter_map(|it| it.strip_prefix("IN_PROGRESS PRODUCTION_TRAFFIC_SHIFT "));
        assert_eq!(shifts.collect::<Vec<_>>(), wanted, "{config}");
        assert_eq!(course.last().unwrap(), "SUCCESSFUL - 100 %");
    }
}

fn pauses(stages: &[&str], action: &str) -> Value {
    json!([{
        "targetType": "PAUSE", "lifecycleStages": stages,
        "timeoutConfiguration": { "timeoutInMinutes": 10, "action": action },
    }])
}

/// Developer guide, "Pause hooks for Amazon ECS service deployments" and "Continuing service deployments"; API,
/// `DeploymentLifecycleHook`: before every shift of a canary.
#[tokio::test(start_paused = true)]
async fn a_pause_waits_before_every_shift_for_an_answer_that_is_good_once() {
    let hooks = pauses(&["PRE_PRODUCTION_TRAFFIC_SHIFT", "POST_PRODUCTION_TRAFFIC_SHIFT"], "ROLLBACK");
    let aws = stage(json!({ "strategy": "CANARY", "lifecycleHooks": hooks,
        "canaryConfiguration": { "canaryPercent": 10.0, "canaryBakeTimeInMinutes": 0 } }));
    let client = client(&aws);
    aws.ecs().deploy(SHOP.0, SHOP.1, "checkout:2");
    let mut answered = Vec::new();
    for share in [0.0, 10.0, 100.0] {
        course(&aws, ENDS).await;
        let last = aws.ecs().last(SHOP.0, SHOP.1).unwrap();
        assert_eq!(last.weight, Some(share));
        let said = client.describe_service_deployments().service_deployment_arns(&last.arn).send().await.unwrap();
        let hook = said.service_deployments()[0].lifecycle_hook_details().last().unwrap().clone();
        assert_eq!(hook.status().unwrap().as_str(), "AWAITING_ACTION");
        assert_eq!(hook.timeout_action().unwrap(), &Action::Rollback);
        let wait = hook.expires_at().unwrap().secs() - aws.clock().now().as_second();
        assert!((590..=600).contains(&wait), "{wait}");
        let answer = || client.continue_service_deployment().service_deployment_arn(&last.arn);
        answer().hook_id(hook.hook_id().unwrap()).send().await.expect("it waits for this");
        answered.push((last.arn.clone(), hook.hook_id().unwrap().to_owned()));
        for (arn, spent) in &answered {
            let again = client.continue_service_deployment().service_deployment_arn(arn).hook_id(spent).send().await;
            let e = again.expect_err("it is answered").into_service_error();
            assert!(e.is_invalid_parameter_exception(), "{e:?}");
        }
    }
    assert_eq!(course(&aws, ENDS).await.last().unwrap(), "SUCCESSFUL - 100 %");
}

/// The same page: what nobody answers times out, and then its action is taken.
#[tokio::test(start_paused = true)]
async fn a_pause_that_nobody_answers_takes_its_action_in_the_end() {
    for (action, end) in [("ROLLBACK", "ROLLBACK_SUCCESSFUL - 0 %"), ("CONTINUE", "SUCCESSFUL - 100 %")] {
        let hooks = pauses(&["POST_TEST_TRAFFIC_SHIFT"], action);
        let aws = stage(json!({ "strategy": "BLUE_GREEN", "lifecycleHooks": hooks }));
        aws.ecs().deploy(SHOP.0, SHOP.1, "checkout:2");
        course(&aws, ENDS).await;
        tokio::time::sleep(Duration::from_secs(590)).await;
        assert!(aws.ecs().last(SHOP.0, SHOP.1).unwrap().paused.is_some(), "{action}");
        tokio::time::sleep(Duration::from_secs(11)).await;
        assert_eq!(course(&aws, ENDS).await.last().unwrap(), end);
    }
}

/// Developer guide, "Stopping Amazon ECS service deployments": PENDING and IN_PROGRESS move to ROLLBACK_REQUESTED, whether a
/// rollback is configured or not; API: a finished one is a ConflictException, ABORT is not valid.
#[tokio::test(start_paused = true)]
async fn a_stop_goes_back_and_comes_too_late_for_what_is_over() {
    let aws = stage(json!({ "strategy": "BLUE_GREEN", "bakeTimeInMinutes": 5 }));
    let client = client(&aws);
    aws.ecs().deploy(SHOP.0, SHOP.1, "checkout:2");
    while aws.ecs().last(SHOP.0, SHOP.1).unwrap().stage.as_deref() != Some("BAKE_TIME") {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let arn = aws.ecs().last(SHOP.0, SHOP.1).unwrap().arn;
    let stop = |kind: Stop| client.stop_service_deployment().service_deployment_arn(&arn).stop_type(kind).send();
    assert!(stop(Stop::Abort).await.unwrap_err().into_service_error().is_invalid_parameter_exception());
    stop(Stop::Rollback).await.expect("it is on its way");
    let went = course(&aws, ENDS).await;
    assert_eq!(
        went,
        ["ROLLBACK_REQUESTED BAKE_TIME 100 %", "ROLLBACK_IN_PROGRESS BAKE_TIME 0 %", "ROLLBACK_SUCCESSFUL - 0 %",]
    );
    assert_eq!(aws.ecs().running(SHOP.0, SHOP.1), [("checkout:1".into(), 4)].into());
    assert!(stop(Stop::Rollback).await.unwrap_err().into_service_error().is_conflict_exception());
}

/// Developer guide, "How the Amazon ECS deployment circuit breaker detects failures": half of the tasks, at least 3.
#[tokio::test(start_paused = true)]
async fn the_circuit_breaker_goes_back_or_stops_and_without_it_tasks_fail_for_ever() {
    let breaker = |rollback: bool| json!({ "deploymentCircuitBreaker": { "enable": true, "rollback": rollback } });
    for (config, end) in [(breaker(true), "ROLLBACK_SUCCESSFUL"), (breaker(false), "STOPPED")] {
        let aws = stage(config);
        aws.ecs().deploy(SHOP.0, SHOP.1, "checkout:3");
        course(&aws, ENDS).await;
        let last = aws.ecs().last(SHOP.0, SHOP.1).unwrap();
        assert_eq!(last.status, end);
        assert!(last.reason.unwrap().contains("circuit breaker"));
        assert_eq!(aws.ecs().running(SHOP.0, SHOP.1), [("checkout:1".into(), 4)].into());
    }
    let aws = stage(json!({}));
    aws.ecs().deploy(SHOP.0, SHOP.1, "checkout:3");
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert_eq!(aws.ecs().last(SHOP.0, SHOP.1).unwrap().status, "IN_PROGRESS");
}

/// Developer guide, "How CloudWatch alarms detect Amazon ECS deployment failures": with an alarm that fires when the
/// deployment begins, none is used for it; else one that fires ends it, through the bake as well.
#[tokio::test(start_paused = true)]
async fn deployment_alarms_go_back_unless_one_fired_at_the_start() {
    for early in [false, true] {
        let alarms = json!({ "alarmNames": ["errors", "latency"], "enable": true, "rollback": true });
        let aws = stage(json!({ "strategy": "BLUE_GREEN", "bakeTimeInMinutes": 10, "alarms": alarms }));
        for name in ["errors", "latency"] {
            aws.cloudwatch().alarm(name);
        }
        if early {
            aws.alarm_at("latency", aws.clock().now());
        }
        aws.ecs().deploy(SHOP.0, SHOP.1, "checkout:2");
        aws.alarm_at("errors", aws.clock().now() + Duration::from_secs(300));
        let end = course(&aws, ENDS).await.last().unwrap().clone();
        assert_eq!(end, if early { "SUCCESSFUL - 100 %" } else { "ROLLBACK_SUCCESSFUL - 0 %" });
    }
}

#[tokio::test(start_paused = true)]
async fn a_rolling_update_replaces_tasks_within_its_bounds() {
    let aws = stage(json!({ "maximumPercent": 150, "minimumHealthyPercent": 100 }));
    aws.ecs().takes(Time::Start, Duration::from_secs(10));
    aws.ecs().deploy(SHOP.0, SHOP.1, "checkout:2");
    let mut most = 0;
    while aws.ecs().last(SHOP.0, SHOP.1).unwrap().status != "SUCCESSFUL" {
        let running: usize = aws.ecs().running(SHOP.0, SHOP.1).values().sum();
        assert!((4..=6).contains(&running), "{running}");
        most = most.max(running);
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert_eq!(aws.ecs().running(SHOP.0, SHOP.1), [("checkout:2".into(), 4)].into());
}

#[tokio::test(start_paused = true)]
async fn what_ecs_refuses_is_refused() {
    let aws = stage(json!({}));
    let client = client(&aws);
    let update = |to: &str| client.update_service().cluster(SHOP.0).service(SHOP.1).task_definition(to).send();
    let code = |e: aws_sdk_ecs::Error| format!("{e:?}");
    assert!(code(update("checkout:99").await.unwrap_err().into()).contains("TaskDefinition not found"));
    aws.ecs().deregister("checkout:2");
    assert!(code(update("checkout:2").await.unwrap_err().into()).contains("TaskDefinition is inactive"));
    update("checkout:1").await.expect("it is there already");
    assert_eq!(aws.ecs().deployments(SHOP.0, SHOP.1).len(), 1, "an update that changes nothing deploys nothing");
    for kind in ["CODE_DEPLOY", "EXTERNAL"] {
        aws.ecs().service(SHOP.0, SHOP.1, "checkout:1", &Setup::new(json!({})).controller(kind));
        assert!(code(update("checkout:3").await.unwrap_err().into()).contains(kind));
    }
    let missing = client.describe_services().cluster(SHOP.0).services("nothing").send().await.unwrap();
    assert_eq!(missing.failures()[0].reason(), Some("MISSING"));
    let elsewhere = client.describe_services().cluster("nowhere").services(SHOP.1).send().await.unwrap_err();
    assert!(elsewhere.into_service_error().is_cluster_not_found_exception());
}
