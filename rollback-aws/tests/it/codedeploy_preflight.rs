//! What CodeDeploy's preflight proves, refuses and cannot know.

use std::time::Duration;

use rollback_aws::{
    codedeploy::{BESIDES, Group, Hook, Platform, Poller, Settings},
    testing::{
        Refusal,
        fault::{Fault, Trouble},
    },
};
use rollback_core::{
    ErrorKind,
    backend::{DeploymentBackend as _, Readiness},
    clock::Clock as _,
    model::Weight,
    plan::{Approval, Deadlines, Plan, Step},
    testing::backend::Driver,
};
use serde_json::json;

use crate::codedeploy_group::{APP, GROUP, Shop};

fn minutes(n: u64) -> Duration {
    Duration::from_secs(60 * n)
}

fn all_at_once() -> Plan {
    Plan::all_at_once(minutes(5)).unwrap()
}

async fn prove(shop: &Shop, group: &Group, plan: &Plan) -> Readiness {
    let driver = Driver::new(shop).await;
    group.preflight(&driver.change, plan).await.unwrap()
}

/// Everything that was found, a line each, its kind first.
pub(crate) fn told(found: &Readiness) -> String {
    let all = [&found.proved, &found.refused, &found.no_way_back, &found.not_provable, &found.not_restored];
    let names = ["proved", "refused", "no way back", "not provable", "not restored"];
    let each = all.iter().zip(names).flat_map(|(notes, name)| notes.iter().map(move |it| format!("{name}: {it}")));
    each.collect::<Vec<_>>().join("\n")
}

#[tokio::test(start_paused = true)]
async fn a_configuration_that_takes_longer_than_the_plan_allows_is_refused() {
    let within = |shift: u64, roll_back: u64| {
        let deadlines = Deadlines { shift: minutes(shift), roll_back: minutes(roll_back), ..Deadlines::default() };
        all_at_once().with_deadlines(deadlines).unwrap()
    };
    for (platform, config, takes) in [
        (Platform::Lambda, "CodeDeployDefault.LambdaCanary10Percent15Minutes", 15),
        (Platform::Lambda, "CodeDeployDefault.LambdaLinear10PercentEvery2Minutes", 18),
        (Platform::Ecs, "CodeDeployDefault.ECSLinear10PercentEvery3Minutes", 27),
    ] {
        let shop = Shop::new(platform);
        let group = shop.group().config(config);
        let found = prove(&shop, &group, &within(takes, 60)).await;
        let wanted = format!("{config} takes {takes} min to move the traffic, and the plan allows {takes} min");
        assert!(told(&found).contains(&format!("refused: {wanted}")), "{}", told(&found));
        let found = prove(&shop, &group, &within(takes + 1, 60)).await;
        assert_eq!(found.refused, [], "{config}");
        assert!(told(&found).contains(&format!("proved: {config} takes {takes} min")), "{}", told(&found));
        // The way back has a deadline of its own.
        let slow = shop.group().config_back(config);
        let found = prove(&shop, &slow, &within(15, takes)).await;
        let wanted = format!("refused: {config} takes {takes} min to bring the traffic back, and the plan allows");
        assert!(told(&found).contains(&wanted), "{}", told(&found));
    }
    // How long instances take nobody knows before.
    let shop = Shop::new(Platform::InPlace);
    let found = prove(&shop, &shop.group(), &all_at_once()).await;
    assert!(told(&found).contains("not provable: that all instances are done within 15 min"), "{}", told(&found));
}

#[tokio::test(start_paused = true)]
async fn permissions_that_only_the_way_back_needs_are_named_before_anything_changes() {
    for permission in BESIDES {
        let shop = Shop::new(Platform::Lambda).alarm();
        let found = prove(&shop, &shop.group(), &all_at_once()).await;
        assert!(told(&found).contains(&format!("proved: may {} ({})", permission.why, permission.action)), "{found:?}");
        shop.aws.deny(permission.action);
        let before = shop.aws.codedeploy().setting(APP, GROUP, "deploymentConfigName");
        let found = prove(&shop, &shop.group(), &all_at_once()).await;
        let [why] = &found.refused[..] else { panic!("{permission:?}: {}", told(&found)) };
        assert!(why.as_str().contains(permission.action), "{why}");
        assert_eq!(shop.aws.codedeploy().deployments(APP, GROUP).len(), 1);
        assert_eq!(shop.aws.codedeploy().setting(APP, GROUP, "deploymentConfigName"), before);
    }
    // As CodeDeploy says that it does, the simulator asks for it where alarms are overridden.
    let shop = Shop::new(Platform::Lambda).alarm();
    shop.aws.deny("codedeploy:UpdateDeploymentGroup");
    let deaf = aws_sdk_codedeploy::types::AlarmConfiguration::builder().enabled(false).build();
    let call = shop.aws.account().codedeploy().create_deployment().application_name(APP).deployment_group_name(GROUP);
    let e = call.override_alarm_configuration(deaf).send().await.unwrap_err();
    assert!(format!("{e:?}").contains("AccessDenied"), "{e:?}");
    // Without alarms there is nothing to override.
    let shop = Shop::new(Platform::Lambda);
    shop.aws.deny("codedeploy:UpdateDeploymentGroup");
    assert_eq!(prove(&shop, &shop.group(), &all_at_once()).await.refused, []);
}

#[tokio::test(start_paused = true)]
async fn a_preview_that_outlasts_the_groups_wait_is_refused() {
    // The group waits for 600 minutes.
    let shop = Shop::waiting(Platform::Ecs);
    let plan = |preview: u64, approved: bool, hold: u64| {
        let mut preview = Step::new(Weight::NONE, minutes(preview));
        if approved {
            preview = preview.approved_by(Approval::anyone());
        }
        let plan = Plan::new([preview, Step::new(Weight::ALL, minutes(5))]).unwrap();
        plan.with_deadlines(Deadlines { hold: minutes(hold), ..Deadlines::default() }).unwrap()
    };
    let found = prove(&shop, &shop.group(), &plan(600, false, 60)).await;
    assert!(
        told(&found).contains("refused: deployment group shop/production waits 600 min before the traffic"),
        "{}",
        told(&found)
    );
    // A bake may take an hour longer, an approval its own time.
    for (preview, approved, hold, known) in
        [(500, false, 60, true), (540, false, 60, false), (30, true, 500, true), (30, true, 510, false)]
    {
        let found = prove(&shop, &shop.group(), &plan(preview, approved, hold)).await;
        assert_eq!(found.refused, [], "{preview} min");
        let unknown = told(&found).contains("not provable: that the preview is over within the 600 min");
        assert_eq!(unknown, !known, "{preview} min, {hold} min: {}", told(&found));
    }
}

#[tokio::test(start_paused = true)]
async fn every_kind_of_alarm_is_found_and_one_that_sees_nothing_is_named() {
    use rollback_aws::testing::cloudwatch::State;
    let shop = Shop::new(Platform::Lambda).alarm();
    let hands = shop.aws.cloudwatch();
    hands.delete("shop-errors");
    hands.log_alarm("shop-errors");
    let found = prove(&shop, &shop.group(), &all_at_once()).await;
    assert_eq!(found.refused, [], "{}", told(&found));
    assert!(told(&found).contains("proved: the group's alarm shop-errors does not fire"), "{}", told(&found));

    hands.delete("shop-errors");
    hands.alarm("shop-errors");
    hands.evaluation("shop-errors", Some("PARTIAL_DATA"));
    let found = prove(&shop, &shop.group(), &all_at_once()).await;
    assert!(
        told(&found)
            .contains("not provable: that the group's alarm shop-errors sees anything: its evaluation is PARTIAL_DATA"),
        "{}",
        told(&found)
    );
    hands.evaluation("shop-errors", None);
    hands.at("shop-errors", shop.aws.clock().now(), Some(State::InsufficientData));
    let found = prove(&shop, &shop.group(), &all_at_once()).await;
    assert!(told(&found).contains("sees anything: it has no data"), "{}", told(&found));
    hands.at("shop-errors", shop.aws.clock().now(), Some(State::Alarm));
    let found = prove(&shop, &shop.group(), &all_at_once()).await;
    assert!(told(&found).contains("refused: the group's alarm shop-errors fires already"), "{}", told(&found));
    shop.aws.deny("cloudwatch:DescribeAlarms");
    let found = prove(&shop, &shop.group(), &all_at_once()).await;
    assert!(found.refused[0].as_str().contains("cloudwatch:DescribeAlarms"), "{}", told(&found));
}

#[tokio::test(start_paused = true)]
async fn a_baseline_whose_text_codedeploy_does_not_tell_is_no_way_back() {
    let shop = Shop::new(Platform::Lambda);
    // An answer without the content, whatever is asked for.
    let bare = json!({ "applicationName": APP, "revision": { "revisionType": "AppSpecContent",
        "appSpecContent": { "sha256": "0".repeat(64) } }, "revisionInfo": {} });
    let body = Box::leak(bare.to_string().into_boxed_str());
    shop.aws.fault(Fault::of("codedeploy:GetApplicationRevision", Trouble::Page { status: 200, body }).times(99));
    let found = prove(&shop, &shop.group(), &all_at_once()).await;
    let [why] = &found.no_way_back[..] else { panic!("{}", told(&found)) };
    assert!(why.as_str().contains("does not tell the text"), "{why}");
    assert!(!told(&found).contains("is registered\n"), "{}", told(&found));
}

#[tokio::test(start_paused = true)]
async fn the_policy_covers_the_alarms_that_preflight_looks_at() {
    let shop = Shop::new(Platform::Lambda).alarm();
    let policy = shop.group().policy("123456789012").to_string();
    assert!(policy.contains("\"cloudwatch:DescribeAlarms\""), "{policy}");
    let blind = Group::new(&Poller::new(&shop.aws.account()), APP, GROUP, Platform::Lambda).unwrap();
    assert!(!blind.policy("123456789012").to_string().contains("cloudwatch:"));
}

#[tokio::test(start_paused = true)]
async fn more_alarms_than_the_accounts_quota_are_told_as_that() {
    let shop = Shop::new(Platform::Lambda);
    let refused = Refusal::new(400, "AlarmsLimitExceededException", "The maximum number of alarms is 10.");
    shop.aws.fault(Fault::of("codedeploy:UpdateDeploymentGroup", Trouble::Refuse(refused)));
    let e = shop.group().set(&Settings::new().alarms((0..12).map(|n| n.to_string()))).await.unwrap_err();
    assert!(
        e.kind() == ErrorKind::Invalid && e.to_string().contains("12 alarms are more than this account's quota"),
        "{e}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_hooks_answer_that_was_lost_is_given_again_and_one_too_many_is_refused() {
    let shop = Shop::new(Platform::Lambda);
    let spec = json!({ "version": 0.0, "Hooks": [{ "BeforeAllowTraffic": "shop-check" }], "Resources": [{ "shop": {
        "Type": "AWS::Lambda::Function", "Properties": { "Name": "shop", "Alias": "live", "CurrentVersion": "1",
            "TargetVersion": "2" } } }] });
    let hooked = json!({ "appSpecContent": { "content": spec.to_string() } });
    let id = shop.aws.codedeploy().deploy(APP, GROUP, &hooked);
    tokio::time::sleep(Duration::from_secs(30)).await;
    let execution = shop.aws.codedeploy().hook(&id).unwrap();
    let event = json!({ "DeploymentId": id, "LifecycleEventHookExecutionId": execution });
    let hook = Hook::of(&shop.aws.account(), &event).unwrap();
    for trouble in [Trouble::LoseRequest, Trouble::LoseAnswer] {
        shop.aws.fault(Fault::of("codedeploy:PutLifecycleEventHookExecutionStatus", trouble));
    }
    hook.answer(true).await.unwrap();
    assert_eq!(shop.aws.calls()["codedeploy:PutLifecycleEventHookExecutionStatus"], 3);
    assert_eq!(hook.answer(true).await.unwrap_err().kind(), ErrorKind::Conflict);
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(shop.aws.codedeploy().deployment(&id)["status"], "Succeeded");
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_takes_what_codedeploy_refuses_is_no_place_for_a_rollout() {
    let shop = Shop::new(Platform::InPlace).alarm();
    let config = || shop.aws.codedeploy().setting(APP, GROUP, "deploymentConfigName");
    let before = config();
    for (call, does) in [
        ("CreateDeployment", "deploys by a configuration that never was"),
        ("RegisterApplicationRevision", "registers a revision that is none"),
        ("UpdateDeploymentGroup", "sets a group to a configuration that never was"),
    ] {
        let taken = Trouble::Page { status: 200, body: "{}" };
        shop.aws.fault(Fault::of(format!("codedeploy:{call}"), taken));
        let updates = shop.aws.calls().get("codedeploy:UpdateDeploymentGroup").copied().unwrap_or_default();
        let found = prove(&shop, &shop.group(), &all_at_once()).await;
        assert!(told(&found).contains(&format!("refused: this endpoint {does}")), "{call}: {}", told(&found));
        if call == "UpdateDeploymentGroup" {
            assert_eq!(shop.aws.calls()["codedeploy:UpdateDeploymentGroup"], updates + 2, "it is put back");
        }
        assert_eq!(config(), before);
    }
}
