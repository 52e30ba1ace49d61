//! The simulator's CodeDeploy, against what the real one was recorded or documented to do.
//!
//! EV1 and EV2 are published recordings of real runs, `josefloressv/aws-devops-engineer` bd7c90a: an ECS deployment by a
//! linear configuration, and a Lambda canary that an alarm stopped. EV3 is another Lambda canary, of August 2026.

use std::time::Duration;

use aws_sdk_codedeploy::{
    Client,
    error::ProvideErrorMetadata as _,
    types::{AppSpecContent, DeploymentWaitType, LifecycleEventStatus, RevisionLocation, RevisionLocationType},
};
use rollback_aws::{
    codedeploy::Platform,
    testing::{
        Simulator,
        codedeploy::{Hands, Shape},
    },
};
use serde_json::{Value, json};

use crate::codedeploy_group::{Shop, location};

const APP: &str = "shop";
const GROUP: &str = "production";

/// The status of a deployment second by second, each change once: (seconds since its creation, status).
async fn statuses(hands: Hands<'_>, id: &str, seconds: u64) -> Vec<(u64, String)> {
    let mut seen: Vec<(u64, String)> = Vec::new();
    for at in 0..=seconds {
        let status = hands.deployment(id)["status"].as_str().unwrap().to_owned();
        if seen.last().is_none_or(|(_, last)| *last != status) {
            seen.push((at, status));
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    seen
}

fn names(seen: &[(u64, String)]) -> Vec<&str> {
    seen.iter().map(|(_, name)| name.as_str()).collect()
}

/// What a target is at: the events' names and statuses, and the share of traffic.
async fn target(client: &Client, id: &str) -> (Vec<(String, String)>, f64) {
    let ids = client.list_deployment_targets().deployment_id(id).send().await.unwrap();
    let one = client.get_deployment_target().deployment_id(id).target_id(&ids.target_ids()[0]).send().await.unwrap();
    let one = one.deployment_target().unwrap();
    let (events, share) = match (one.ecs_target(), one.lambda_target(), one.instance_target()) {
        (Some(it), ..) => {
            let green = it.task_sets_info().iter().find(|set| set.identifer().unwrap().contains("Green")).unwrap();
            (it.lifecycle_events(), green.traffic_weight())
        }
        (_, Some(it), _) => (it.lifecycle_events(), it.lambda_function_info().unwrap().target_version_weight()),
        (.., Some(it)) => (it.lifecycle_events(), 0.0),
        _ => panic!("{one:?}"),
    };
    let told = |it: &aws_sdk_codedeploy::types::LifecycleEvent| {
        (it.lifecycle_event_name().unwrap().to_owned(), it.status().unwrap().as_str().to_owned())
    };
    (events.iter().map(told).collect(), share)
}

#[tokio::test(start_paused = true)]
async fn an_ecs_deployment_is_in_progress_until_its_termination_wait_is_over() {
    // EV1: Created for two or three seconds; all eight events Succeeded and 100 % at 692 s, Succeeded at 976 s.
    let shop = Shop::new(Platform::Ecs);
    let hands = shop.aws.codedeploy();
    let client = shop.aws.account().codedeploy();
    let id = hands.deploy(APP, GROUP, &location(Platform::Ecs, 2));
    assert_eq!(names(&statuses(hands, &id, 120).await), ["Created", "InProgress"]);
    let (events, share) = target(&client, &id).await;
    let order: Vec<&str> = events.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(
        order,
        [
            "BeforeInstall",
            "Install",
            "AfterInstall",
            "AllowTestTraffic",
            "AfterAllowTestTraffic",
            "BeforeAllowTraffic",
            "AllowTraffic",
            "AfterAllowTraffic"
        ]
    );
    assert!(events.iter().all(|(_, status)| status == "Succeeded"), "{events:?}");
    assert_eq!((share, &hands.deployment(&id)["deploymentOverview"]), (100.0, &Value::Null));
    assert_eq!(names(&statuses(hands, &id, 3600).await), ["InProgress", "Succeeded"]);
    assert_eq!(hands.deployment(&id)["deploymentOverview"]["Succeeded"], 1);
}

#[tokio::test(start_paused = true)]
async fn an_alarm_stops_a_lambda_canary_and_the_rollback_is_a_deployment_of_its_own() {
    // EV2 and EV3.
    let shop = Shop::new(Platform::Lambda).config("CodeDeployDefault.LambdaCanary10Percent5Minutes").alarm();
    let hands = shop.aws.codedeploy();
    let client = shop.aws.account().codedeploy();
    let id = hands.deploy(APP, GROUP, &location(Platform::Lambda, 2));
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(target(&client, &id).await.1, 10.0);
    shop.aws.alarm_at("shop-errors", rollback_core::clock::Clock::now(shop.aws.clock()));
    let seen = statuses(hands, &id, 60).await;
    assert_eq!(names(&seen), ["InProgress", "Stopped"]);
    assert!(seen[1].0 <= 29, "12 to 29 s from ALARM to Stopped: {seen:?}");
    let stopped = hands.deployment(&id);
    assert_eq!(stopped["errorInformation"]["code"], "ALARM_ACTIVE");
    assert_eq!(
        stopped["errorInformation"]["message"],
        "One or more alarms have been activated according to the Amazon CloudWatch metrics you selected, and the affected \
         deployments have been stopped. Activated alarms: <shop-errors>"
    );
    let back = stopped["rollbackInfo"]["rollbackDeploymentId"].as_str().unwrap().to_owned();
    assert_eq!(
        stopped["rollbackInfo"]["rollbackMessage"],
        format!("Deployment {id} terminated. Automatic rollback is triggered with a DeploymentId {back}.")
    );
    // It succeeds while the alarm still fires.
    let rollback = hands.deployment(&back);
    assert_eq!(rollback["status"], "Succeeded", "{rollback:#}");
    assert_eq!(rollback["creator"], "codeDeployRollback");
    assert_eq!(rollback["deploymentConfigName"], "CodeDeployDefault.LambdaAllAtOnce");
    assert_eq!(rollback["rollbackInfo"]["rollbackTriggeringDeploymentId"], json!(id));
    assert_eq!(
        rollback["rollbackInfo"]["rollbackMessage"],
        format!("Deployment {back} is triggered to roll back deployment {id}.")
    );
    shop.assert_serves(1);
}

#[tokio::test(start_paused = true)]
async fn an_alarm_that_fires_already_stops_a_deployment_within_a_second() {
    // EV3: stopped after 0.7 s, a pointless rollback, and the alias has never moved.
    let shop = Shop::new(Platform::Lambda).alarm();
    let hands = shop.aws.codedeploy();
    shop.aws.alarm_at("shop-errors", rollback_core::clock::Clock::now(shop.aws.clock()));
    let id = hands.deploy(APP, GROUP, &location(Platform::Lambda, 2));
    assert_eq!(names(&statuses(hands, &id, 3).await), ["Created", "Stopped"]);
    tokio::time::sleep(Duration::from_secs(10)).await;
    let all = hands.deployments(APP, GROUP);
    assert_eq!(all.len(), 3);
    assert_eq!(hands.deployment(&all[2])["status"], "Succeeded");
    shop.assert_serves(1);
}

#[tokio::test(start_paused = true)]
async fn instances_are_done_one_after_the_other_and_a_failed_event_skips_the_later_ones() {
    let shop = Shop::new(Platform::InPlace);
    let hands = shop.aws.codedeploy();
    let client = shop.aws.account().codedeploy();
    hands.break_at(&location(Platform::InPlace, 2), "ValidateService");
    let id = hands.deploy(APP, GROUP, &location(Platform::InPlace, 2));
    assert_eq!(names(&statuses(hands, &id, 60).await), ["Created", "Queued", "InProgress", "Failed"]);
    let (events, _) = target(&client, &id).await;
    // User guide, reference-appspec-file-structure-hooks.
    let order: Vec<&str> = events.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(
        order,
        [
            "ApplicationStop",
            "DownloadBundle",
            "BeforeInstall",
            "Install",
            "AfterInstall",
            "ApplicationStart",
            "ValidateService"
        ]
    );
    assert_eq!(events[6].1, "Failed");
    let failed = hands.deployment(&id);
    assert_eq!(failed["errorInformation"]["code"], "HEALTH_CONSTRAINTS");
    assert_eq!(
        (&failed["deploymentOverview"]["Failed"], &failed["deploymentOverview"]["Skipped"]),
        (&json!(1), &json!(2))
    );
    // The rollback installs the old revision again, on every instance.
    let back = failed["rollbackInfo"]["rollbackDeploymentId"].as_str().unwrap().to_owned();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(hands.deployment(&back)["deploymentOverview"]["Succeeded"], 3);
    shop.assert_serves(1);
}

#[tokio::test(start_paused = true)]
async fn a_deployment_waits_before_the_traffic_until_it_is_let_go_on_or_its_time_is_over() {
    for platform in [Platform::Ecs, Platform::BlueGreen] {
        let shop = Shop::waiting(platform);
        let hands = shop.aws.codedeploy();
        let client = shop.aws.account().codedeploy();
        let id = hands.deploy(APP, GROUP, &location(platform, 2));
        assert_eq!(names(&statuses(hands, &id, 120).await).last(), Some(&"Ready"));
        shop.assert_serves(1);
        let early = client.continue_deployment().deployment_id(&id);
        let early = early.deployment_wait_type(DeploymentWaitType::TerminationWait).send().await.unwrap_err();
        assert_eq!(early.code(), Some("InvalidDeploymentStatusException"));
        client.continue_deployment().deployment_id(&id).send().await.unwrap();
        let again = client.continue_deployment().deployment_id(&id).send().await.unwrap_err();
        assert_eq!(again.code(), Some("DeploymentIsNotInReadyStateException"));
        tokio::time::sleep(Duration::from_secs(120)).await;
        shop.assert_serves(2);
        assert_eq!(hands.deployment(&id)["instanceTerminationWaitTimeStarted"], true);
        let wait = DeploymentWaitType::TerminationWait;
        client.continue_deployment().deployment_id(&id).deployment_wait_type(wait).send().await.unwrap();
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(hands.deployment(&id)["status"], "Succeeded");

        let forgotten = hands.deploy(APP, GROUP, &location(platform, 3));
        tokio::time::sleep(Duration::from_secs(601 * 60)).await;
        assert_eq!(hands.deployment(&forgotten)["status"], "Stopped");
        shop.assert_serves(2);
    }
}

#[tokio::test(start_paused = true)]
async fn a_stop_is_pending_first_and_rolls_back_if_it_is_told_to() {
    let shop = Shop::new(Platform::Lambda).config("CodeDeployDefault.LambdaCanary10Percent5Minutes");
    let hands = shop.aws.codedeploy();
    let client = shop.aws.account().codedeploy();
    hands.set(APP, GROUP, "autoRollbackConfiguration", json!({ "enabled": false }));
    let id = hands.deploy(APP, GROUP, &location(Platform::Lambda, 2));
    tokio::time::sleep(Duration::from_secs(20)).await;
    for _ in 0..2 {
        let stop = client.stop_deployment().deployment_id(&id).auto_rollback_enabled(true).send().await.unwrap();
        assert_eq!(stop.status().unwrap().as_str(), "Pending");
    }
    tokio::time::sleep(Duration::from_secs(20)).await;
    let over = client.stop_deployment().deployment_id(&id).send().await.unwrap_err();
    assert_eq!(over.code(), Some("DeploymentAlreadyCompletedException"));
    assert_eq!(hands.deployment(&id)["status"], "Stopped");
    shop.assert_serves(1);

    // Without rollback the alias keeps its weights, and deployments fail until they are cleared (user guide,
    // troubleshooting-deployments-lambda).
    let id = hands.deploy(APP, GROUP, &location(Platform::Lambda, 2));
    tokio::time::sleep(Duration::from_secs(20)).await;
    client.stop_deployment().deployment_id(&id).send().await.unwrap();
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert_eq!(shop.serves().len(), 2);
    let next = hands.deploy(APP, GROUP, &location(Platform::Lambda, 3));
    assert_eq!(hands.deployment(&next)["status"], "Failed");
}

#[tokio::test(start_paused = true)]
async fn a_hook_is_answered_or_fails_the_deployment_after_an_hour() {
    let shop = Shop::new(Platform::Lambda);
    let hands = shop.aws.codedeploy();
    let client = shop.aws.account().codedeploy();
    let mut spec: Value =
        serde_json::from_str(location(Platform::Lambda, 2)["appSpecContent"]["content"].as_str().unwrap()).unwrap();
    spec["Hooks"] = json!([{ "BeforeAllowTraffic": "shop-check" }]);
    let hooked = json!({ "appSpecContent": { "content": spec.to_string() } });
    for (answer, ends) in [(Some("Succeeded"), "Succeeded"), (Some("Failed"), "Failed"), (None, "Failed")] {
        let id = hands.deploy(APP, GROUP, &hooked);
        tokio::time::sleep(Duration::from_secs(30)).await;
        let hook = hands.hook(&id).expect("it waits");
        let put = |status: &str| {
            let call = client.put_lifecycle_event_hook_execution_status().deployment_id(&id);
            call.lifecycle_event_hook_execution_id(&hook).status(LifecycleEventStatus::from(status)).send()
        };
        let bad = put("Skipped").await.unwrap_err();
        assert_eq!(bad.code(), Some("InvalidLifecycleEventHookExecutionStatusException"));
        match answer {
            Some(answer) => {
                put(answer).await.unwrap();
                let twice = put(answer).await.unwrap_err();
                assert_eq!(twice.code(), Some("LifecycleEventAlreadyCompletedException"));
                tokio::time::sleep(Duration::from_secs(30)).await;
            }
            None => tokio::time::sleep(Duration::from_secs(3601)).await,
        }
        assert_eq!(hands.deployment(&id)["status"], ends);
        tokio::time::sleep(Duration::from_secs(30)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn content_is_never_shown_and_fetched_back_by_its_hash() {
    let shop = Shop::new(Platform::Ecs);
    let client = shop.aws.account().codedeploy();
    let last = shop.aws.codedeploy().deployments(APP, GROUP)[0].clone();
    let shown = client.get_deployment().deployment_id(&last).send().await.unwrap();
    let shown = shown.deployment_info().unwrap().revision().unwrap().app_spec_content().unwrap().clone();
    assert_eq!(shown.content(), None);
    let by_hash = AppSpecContent::builder().sha256(shown.sha256().unwrap()).build();
    let by_hash =
        RevisionLocation::builder().revision_type(RevisionLocationType::AppSpecContent).app_spec_content(by_hash);
    let found = client.get_application_revision().application_name(APP).revision(by_hash.build()).send().await.unwrap();
    assert!(found.revision().unwrap().app_spec_content().unwrap().content().unwrap().contains("shop:1"));
}

#[tokio::test(start_paused = true)]
async fn what_codedeploy_refuses_is_refused_with_its_codes() {
    let aws = Simulator::new();
    aws.codedeploy().group(APP, GROUP, &Shape::InPlace(vec!["i-1".into()]), "CodeDeployDefault.AllAtOnce");
    let client = aws.account().codedeploy();
    let create = || client.create_deployment().application_name(APP).deployment_group_name(GROUP);
    let place = aws_sdk_codedeploy::types::S3Location::builder().bucket("builds").key("1.zip").build();
    let revision = RevisionLocation::builder().revision_type(RevisionLocationType::S3).s3_location(place).build();
    let code = |e: Option<&str>| e.unwrap_or_default().to_owned();
    let e = create().application_name("nobody").revision(revision.clone()).send().await.unwrap_err();
    assert_eq!(code(e.code()), "ApplicationDoesNotExistException");
    let e = create().deployment_group_name("nobody").revision(revision.clone()).send().await.unwrap_err();
    assert_eq!(code(e.code()), "DeploymentGroupDoesNotExistException");
    let e = create().deployment_config_name("nobody").revision(revision.clone()).send().await.unwrap_err();
    assert_eq!(code(e.code()), "DeploymentConfigDoesNotExistException");
    let e = create().send().await.unwrap_err();
    assert_eq!(code(e.code()), "RevisionRequiredException");
    let e = create().revision(revision.clone()).description("x".repeat(257)).send().await.unwrap_err();
    assert_eq!(code(e.code()), "DescriptionTooLongException");
    let made = create().revision(revision.clone()).send().await.unwrap();
    let e = create().revision(revision.clone()).send().await.unwrap_err();
    assert_eq!(code(e.code()), "DeploymentLimitExceededException");
    let active =
        format!("The Deployment Group '{GROUP}' already has an active Deployment '{}'", made.deployment_id().unwrap());
    assert_eq!(e.message(), Some(active.as_str()));
    let ids: Vec<String> = (0..26).map(|n| format!("d-{n}")).collect();
    let e = client.batch_get_deployments().set_deployment_ids(Some(ids)).send().await.unwrap_err();
    assert_eq!(code(e.code()), "BatchLimitExceededException");
    let e = client.get_deployment().deployment_id("d-NOBODY").send().await.unwrap_err();
    assert_eq!(code(e.code()), "DeploymentDoesNotExistException");
    let e = client.continue_deployment().deployment_id(made.deployment_id().unwrap()).send().await.unwrap_err();
    assert_eq!(code(e.code()), "UnsupportedActionForDeploymentTypeException");
}
