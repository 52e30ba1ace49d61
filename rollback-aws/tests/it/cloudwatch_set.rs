//! Sets of alarms: the same definitions as the golden ones, planned first, and never anybody else's touched.

use std::{collections::BTreeMap, time::Duration};

use aws_sdk_cloudwatch::types::ComparisonOperator;
use rollback_aws::{
    cloudwatch::{AlarmSet, Metric, Stage},
    testing::Simulator,
};
use rollback_core::{ErrorKind, plan::Plan};
use serde_json::Value;

use crate::cloudwatch_room::definitions;

const BALANCER: &str = "app/web/50dc6c495c0c9188";
const BLUE: &str = "targetgroup/web-blue/73e2d6bc24d8a067";
const GREEN: &str = "targetgroup/web-green/0a1b2c3d4e5f6071";

fn sets(stage: &Stage) -> Vec<AlarmSet> {
    let order = Metric::new("Shop/Checkout", "OrderFailed").dimension("Stage", &stage.name).dimension("Version", "42");
    vec![
        AlarmSet::new("web", stage.clone()).load_balancer(BALANCER, &[BLUE]),
        AlarmSet::new("ecs", stage.clone()).service("main", "web"),
        AlarmSet::new("fn", stage.clone()).function("checkout", "live", "42"),
        AlarmSet::new("app", stage.clone()).failures("checkout-failures-10s", order, true),
    ]
}

/// With every number a float, so that 90 and 90.0 are the same.
fn floats(value: &Value) -> Value {
    match value {
        Value::Number(number) => number.as_f64().map_or(Value::Null, Value::from),
        Value::Array(all) => all.iter().map(floats).collect(),
        Value::Object(all) => all.iter().map(|(name, value)| (name.clone(), floats(value))).collect(),
        other => other.clone(),
    }
}

#[test]
fn both_stages_give_exactly_the_golden_definitions() {
    for (stage, golden) in definitions() {
        let stage = if stage == "prod" { Stage::prod() } else { Stage::gamma() };
        let by_name = |values: Vec<Value>| -> BTreeMap<String, Value> {
            values.iter().map(|value| (value["AlarmName"].as_str().expect("a name").into(), floats(value))).collect()
        };
        let made = sets(&stage).iter().flat_map(|set| set.alarms().iter().map(|alarm| alarm.to_json())).collect();
        let (made, golden) = (by_name(made), by_name(golden));
        assert_eq!(made.keys().collect::<Vec<_>>(), golden.keys().collect::<Vec<_>>());
        for (name, wanted) in golden {
            assert_eq!(made[&name], wanted, "{name}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_set_is_planned_put_kept_updated_and_cleaned() {
    let aws = Simulator::new();
    let account = aws.account();
    for set in sets(&Stage::gamma()).iter().chain(&sets(&Stage::prod())) {
        let planned = set.plan(&account).await.expect("it can look");
        assert_eq!(planned.create.len(), set.alarms().len());
        planned.apply(&account).await.expect("CloudWatch takes them");
        let again = set.plan(&account).await.expect("it can look");
        assert!(again.is_nothing(), "{again}");
        assert_eq!(again.keep.len(), set.alarms().len());
    }
    assert_eq!(aws.cloudwatch().names().len(), 22);

    let strict = Stage { alias_errors: 1.0, ..Stage::prod() };
    let next = AlarmSet::new("fn", strict).function("checkout", "live", "43").action("arn:aws:sns:us-east-1:1:oncall");
    let planned = next.plan(&account).await.expect("it can look");
    let shown = planned.to_string();
    assert!(shown.contains("create fn-prod-v43-error-rate"), "{shown}");
    assert!(shown.contains("update fn-prod-alias-errors: AlarmActions nothing"), "{shown}");
    assert!(shown.contains("Threshold 0.0 → 1.0"), "{shown}");
    assert_eq!(planned.remove, ["fn-prod-v42-duration-p99", "fn-prod-v42-error-rate"]);
    let before = aws.cloudwatch().names();
    planned.apply(&account).await.expect("CloudWatch takes them");
    assert!(before.iter().all(|name| aws.cloudwatch().names().contains(name)), "applying removes nothing");
    planned.clean(&account).await.expect("they are ours");
    let last = next.plan(&account).await.expect("it can look");
    assert!(last.is_nothing(), "{last}");
}

#[tokio::test(start_paused = true)]
async fn alarms_of_others_are_never_touched() {
    let aws = Simulator::new();
    let account = aws.account();
    let put = |name: &str| {
        let call = account.cloudwatch().put_metric_alarm().alarm_name(name).namespace("Theirs").metric_name("x");
        let call = call.statistic("Sum".into()).period(60).evaluation_periods(1).threshold(1.0);
        call.comparison_operator(ComparisonOperator::GreaterThanThreshold).send()
    };
    put("fn-prod-theirs").await.expect("a good alarm");
    let set = AlarmSet::new("fn", Stage::prod()).function("checkout", "live", "42");
    let planned = set.plan(&account).await.expect("it can look");
    assert!(planned.remove.is_empty() && planned.others.is_empty(), "not in the set, and not ours: {planned}");
    put("fn-prod-throttles").await.expect("a good alarm");
    let planned = set.plan(&account).await.expect("it can look");
    assert_eq!(planned.others, ["fn-prod-throttles"]);
    let error = planned.apply(&account).await.expect_err("it is not ours");
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert!(error.to_string().contains("fn-prod-throttles is there and not tagged as ours"), "{error}");
    assert_eq!(aws.cloudwatch().names(), ["fn-prod-theirs", "fn-prod-throttles"], "nothing was done");
}

#[test]
fn a_pair_of_target_groups_has_alarms_for_each_and_a_graph_for_every_alarm() {
    let set = AlarmSet::new("web", Stage::prod()).load_balancer(BALANCER, &[BLUE, GREEN]);
    let set = set.instance("i-1").scaling_group("web", 2).missing_tasks("main", "web");
    let set = set.agent(&[("AutoScalingGroupName", "web")], &[("AutoScalingGroupName", "web"), ("path", "/")]);
    let names: Vec<String> = set.names().collect();
    for wanted in ["web-prod-web-green-target-5xx-rate", "web-prod-web-blue-no-healthy-hosts", "web-prod-missing-tasks"]
    {
        assert!(names.iter().any(|name| name == wanted), "{wanted} is not in {names:?}");
    }
    let dashboard = set.dashboard("us-east-1");
    let widgets = dashboard["widgets"].as_array().expect("a list");
    assert_eq!(widgets.len(), names.len());
    assert_eq!(widgets[0]["properties"]["metrics"][0][0]["expression"], "IF(req >= 100, 100 * e5 / req, 0)");
    assert_eq!(widgets[0]["properties"]["annotations"]["horizontal"][0]["value"], 1.0);
}

#[test]
fn steps_in_which_no_alarm_can_fire_are_named() {
    let set = AlarmSet::new("fn", Stage::prod()).function("checkout", "live", "42");
    let short = Plan::canary([10, 100], Duration::from_secs(120)).expect("a plan");
    let notes = set.warnings(&short);
    assert_eq!(notes.len(), 2);
    assert!(notes[0].as_str().contains("step 1 bakes for 120 s, in which 4 of 4 alarms cannot fire"), "{}", notes[0]);
    let long = Plan::canary([10, 100], Duration::from_secs(300)).expect("a plan");
    assert!(set.warnings(&long).is_empty());
}

#[tokio::test(start_paused = true)]
async fn every_alarm_of_a_set_fires_on_data_that_is_bad_and_not_on_good() {
    use rollback_aws::testing::{Datum, cloudwatch::State};
    for bad in [false, true] {
        let aws = Simulator::new();
        let account = aws.account();
        // An alarm with a period of ten seconds looks back for little more than a minute.
        aws.cloudwatch().late(Duration::ZERO);
        let mut all = Vec::new();
        for set in sets(&Stage::prod()) {
            set.plan(&account).await.expect("it can look").apply(&account).await.expect("they are good");
            all.extend(set.names());
        }
        let web = [("LoadBalancer", BALANCER), ("TargetGroup", BLUE)];
        let version = [("FunctionName", "checkout"), ("Resource", "checkout:live"), ("ExecutedVersion", "42")];
        let order = [("Stage", "prod"), ("Version", "42")];
        let service = [("ClusterName", "main"), ("ServiceName", "web")];
        let pick = |good: f64, worse: f64| if bad { worse } else { good };
        for _ in 0..30 {
            let measured = |namespace: &str, name: &str, dimensions: &[(&str, &str)], value: f64, count: f64| {
                aws.cloudwatch().record(Datum {
                    namespace: namespace.into(),
                    name: name.into(),
                    dimensions: dimensions.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
                    at: rollback_core::clock::Clock::now(aws.clock()),
                    value,
                    count,
                    unit: "None".into(),
                });
            };
            for dimensions in [&web[..], &web[..1]] {
                measured("AWS/ApplicationELB", "RequestCount", dimensions, 1.0, 2000.0);
                measured("AWS/ApplicationELB", "HTTPCode_Target_5XX_Count", dimensions, 1.0, pick(1.0, 50.0));
            }
            measured("AWS/ApplicationELB", "TargetResponseTime", &web, pick(0.1, 0.8), 2000.0);
            measured("AWS/ApplicationELB", "HealthyHostCount", &web, pick(2.0, 0.0), 1.0);
            measured("AWS/ECS", "CPUUtilization", &service, pick(20.0, 95.0), 1.0);
            measured("AWS/ECS", "MemoryUtilization", &service, pick(20.0, 95.0), 1.0);
            measured("AWS/Lambda", "Invocations", &version, 1.0, 2000.0);
            measured("AWS/Lambda", "Errors", &version, pick(0.0, 1.0), 100.0);
            measured("AWS/Lambda", "Duration", &version, pick(20.0, 2000.0), 2000.0);
            measured("AWS/Lambda", "Errors", &version[..2], pick(0.0, 1.0), 100.0);
            measured("AWS/Lambda", "Throttles", &version[..2], pick(0.0, 1.0), 5.0);
            measured("Shop/Checkout", "OrderFailed", &order, pick(0.0, 1.0), 5.0);
            tokio::time::sleep(Duration::from_secs(10)).await;
        }
        let wanted = if bad { State::Alarm } else { State::Ok };
        for name in all {
            assert_eq!(aws.cloudwatch().state(&name), Some(wanted), "{name} with bad data: {bad}");
        }
    }
}
