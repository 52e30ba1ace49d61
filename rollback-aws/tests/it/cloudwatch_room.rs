//! CloudWatch's room, driven by the SDK: what alarms do with what is measured.

use std::{collections::BTreeMap, time::Duration};

use aws_sdk_cloudwatch::{
    Client,
    primitives::DateTime,
    types::{
        AlarmType, ComparisonOperator, Dimension, Metric, MetricDataQuery, MetricDatum, MetricStat, StateValue,
        Statistic,
    },
};
use rollback_aws::{
    error::sorted,
    testing::{Datum, Simulator, cloudwatch::State, lambda::Build},
};
use rollback_core::{ErrorKind, clock::Clock as _};
use serde_json::Value;

/// The definitions of alarms that the project recommends, checked against AWS's own model (botocore 1.44.5) and, for
/// metric names and dimensions, against aws-cdk's canned metrics.
pub(crate) fn definitions() -> BTreeMap<String, Vec<Value>> {
    serde_json::from_str(include_str!("../data/alarms.json")).expect("the file is JSON")
}

async fn state(client: &Client, name: &str) -> StateValue {
    let said = client.describe_alarms().alarm_names(name).send().await.expect("it answers");
    said.metric_alarms()[0].state_value().expect("every alarm has one").clone()
}

/// An alarm on the sum of `Shop/Failed` that fires when two of three minutes have 5 or more.
async fn put(client: &Client, name: &str, missing: &str) {
    let call = client.put_metric_alarm().alarm_name(name).namespace("Shop").metric_name("Failed");
    let call = call.statistic(Statistic::Sum).period(60).evaluation_periods(3).datapoints_to_alarm(2).threshold(5.0);
    let call = call.comparison_operator(ComparisonOperator::GreaterThanOrEqualToThreshold).treat_missing_data(missing);
    call.send().await.expect("it is a good alarm");
}

async fn fail(client: &Client, value: f64) {
    let datum = MetricDatum::builder().metric_name("Failed").value(value).build();
    client.put_metric_data().namespace("Shop").metric_data(datum).send().await.expect("it is taken");
}

async fn minutes(n: u64) {
    tokio::time::sleep(Duration::from_secs(60 * n)).await;
}

#[tokio::test(start_paused = true)]
async fn an_alarm_fires_at_two_of_three_bad_minutes_and_ends_when_they_are_over() {
    let aws = Simulator::new();
    let client = aws.account().cloudwatch();
    put(&client, "failures", "notBreaching").await;
    assert_eq!(state(&client, "failures").await, StateValue::InsufficientData, "it was not evaluated yet");
    minutes(1).await;
    assert_eq!(state(&client, "failures").await, StateValue::Ok);
    fail(&client, 7.0).await;
    minutes(1).await;
    assert_eq!(state(&client, "failures").await, StateValue::Ok, "one of three");
    fail(&client, 7.0).await;
    minutes(1).await;
    assert_eq!(state(&client, "failures").await, StateValue::Alarm);
    put(&client, "failures", "notBreaching").await;
    assert_eq!(state(&client, "failures").await, StateValue::Alarm, "an update keeps the state");
    // A sparse metric stays in ALARM while its points are among those looked at, which are more than three.
    minutes(4).await;
    assert_eq!(state(&client, "failures").await, StateValue::Ok);
    let changes: Vec<State> = aws.cloudwatch().changes().into_iter().map(|changed| changed.state).collect();
    assert_eq!(changes, [State::Ok, State::Alarm, State::Ok]);
}

#[tokio::test(start_paused = true)]
async fn a_state_that_somebody_sets_lasts_until_the_next_evaluation() {
    let aws = Simulator::new();
    let client = aws.account().cloudwatch();
    put(&client, "failures", "notBreaching").await;
    minutes(1).await;
    let set = client.set_alarm_state().alarm_name("failures").state_value(StateValue::Alarm).state_reason("a drill");
    set.send().await.expect("it is there");
    assert_eq!(state(&client, "failures").await, StateValue::Alarm);
    minutes(1).await;
    assert_eq!(state(&client, "failures").await, StateValue::Ok);
    let call = client.set_alarm_state().alarm_name("gone").state_value(StateValue::Alarm).state_reason("a drill");
    let error = sorted("setting gone", call.send().await.expect_err("there is none"));
    assert_eq!(error.kind(), ErrorKind::NotFound, "{}", error.chain());
}

#[tokio::test(start_paused = true)]
async fn a_composite_alarm_follows_its_children_and_is_only_shown_when_asked_for() {
    let aws = Simulator::new();
    let client = aws.account().cloudwatch();
    aws.cloudwatch().alarm("a");
    aws.cloudwatch().alarm("b");
    aws.cloudwatch().log_alarm("l");
    let rule = r#"(ALARM("a") OR ALARM(b)) AND NOT ALARM(l)"#;
    client.put_composite_alarm().alarm_name("either").alarm_rule(rule).send().await.expect("its children are there");
    let all = [AlarmType::MetricAlarm, AlarmType::CompositeAlarm, AlarmType::LogAlarm];
    let ask = || client.describe_alarms().set_alarm_names(Some(vec!["either".into(), "l".into()]));
    let only = ask().send().await.expect("it answers");
    assert!(only.metric_alarms().is_empty() && only.composite_alarms().is_empty(), "no type was asked for but metric");
    let found = ask().set_alarm_types(Some(all.into())).send().await.expect("it answers");
    assert_eq!((found.composite_alarms().len(), found.log_alarms().len()), (1, 1));
    assert_eq!(found.composite_alarms()[0].state_value(), Some(&StateValue::Ok));
    let soon = aws.clock().now() + jiff::SignedDuration::from_secs(30);
    aws.alarm_at("b", soon);
    assert_eq!(aws.cloudwatch().state("either"), Some(State::Ok));
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(aws.cloudwatch().state("either"), Some(State::Alarm));
    aws.alarm_at("l", soon);
    assert_eq!(aws.cloudwatch().state("either"), Some(State::Ok));
    let child = client.delete_alarms().alarm_names("a").send().await;
    assert_eq!(sorted("deleting a", child.expect_err("a composite is on it")).kind(), ErrorKind::Invalid);
    let rule = client.put_composite_alarm().alarm_name("x").alarm_rule("ALARM(nobody)").send().await;
    assert!(sorted("putting x", rule.expect_err("no such child")).chain().contains("nobody"));
}

#[tokio::test(start_paused = true)]
async fn alarms_come_in_pages_and_at_most_a_hundred_may_be_named() {
    let aws = Simulator::new();
    let client = aws.account().cloudwatch();
    for n in 0..120 {
        aws.cloudwatch().alarm(&format!("alarm-{n:03}"));
    }
    let (mut names, mut token, mut pages) = (Vec::new(), None, 0);
    loop {
        let page = client.describe_alarms().set_next_token(token).send().await.expect("it answers");
        names.extend(page.metric_alarms().iter().filter_map(|alarm| alarm.alarm_name().map(String::from)));
        token = page.next_token().map(String::from);
        pages += 1;
        if token.is_none() {
            break;
        }
    }
    assert_eq!((names.len(), pages), (120, 3), "50 a page unless said");
    assert!(names.is_sorted());
    let many = client.describe_alarms().set_alarm_names(Some(names[..101].to_vec())).send().await;
    assert_eq!(sorted("reading alarms", many.expect_err("101 names")).kind(), ErrorKind::Invalid);
    let most = client.describe_alarms().set_alarm_names(Some(names[..100].to_vec())).max_records(100).send().await;
    assert_eq!(most.expect("100 names").metric_alarms().len(), 100);
}

#[tokio::test(start_paused = true)]
async fn what_is_no_alarm_is_refused_in_the_services_words() {
    let aws = Simulator::new();
    let client = aws.account().cloudwatch();
    let good = || {
        let call = client.put_metric_alarm().alarm_name("x").namespace("Shop").metric_name("Failed").threshold(1.0);
        let call = call.statistic(Statistic::Sum).period(60).evaluation_periods(3);
        call.comparison_operator(ComparisonOperator::GreaterThanThreshold)
    };
    good().send().await.expect("it is good");
    for (call, words) in [
        (good().period(7), "Period must be 10, 20, 30 or a multiple of 60"),
        (good().treat_missing_data("no"), "The value no is not supported for TreatMissingData parameter. Supported"),
        (good().datapoints_to_alarm(4), "DatapointsToAlarm must be less than or equal to EvaluationPeriods."),
        (good().evaluation_periods(2000), "across more than a day (EvaluationPeriods * Period must be <= 86400)"),
        (good().comparison_operator(ComparisonOperator::from("Nope")), "enum value set"),
        (good().alarm_name("x".repeat(256)), "length between 1 and 255"),
    ] {
        let error = sorted("putting x", call.send().await.expect_err(words));
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.chain().contains(words), "{}", error.chain());
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_measured_late_counts_when_it_comes() {
    let aws = Simulator::new();
    let client = aws.account().cloudwatch();
    put(&client, "failures", "notBreaching").await;
    aws.cloudwatch().late(Duration::from_secs(180));
    let start = aws.clock().now();
    for at in [start, start + jiff::SignedDuration::from_secs(60)] {
        aws.cloudwatch().record(Datum {
            namespace: "Shop".into(),
            name: "Failed".into(),
            dimensions: BTreeMap::new(),
            at,
            value: 1.0,
            count: 9.0,
            unit: "Count".into(),
        });
    }
    minutes(3).await;
    assert_eq!(aws.cloudwatch().state("failures"), Some(State::Ok));
    minutes(1).await;
    assert_eq!(aws.cloudwatch().state("failures"), Some(State::Alarm));
}

#[tokio::test(start_paused = true)]
async fn a_query_gives_the_metrics_of_a_function_by_executed_version() {
    let aws = Simulator::new();
    aws.lambda().publish("checkout", &Build::new("v1"));
    aws.lambda().publish("checkout", &Build::new("v2").fails(1.0));
    aws.lambda().point("checkout", "live", "1", Some(("2", 0.5)));
    aws.lambda().traffic("checkout", "live", 60.0);
    let start = aws.clock().now();
    minutes(5).await;
    let client = aws.account().cloudwatch();
    let dimension = |name: &str, value: &str| Dimension::builder().name(name).value(value).build();
    let metric = Metric::builder()
        .namespace("AWS/Lambda")
        .metric_name("Errors")
        .dimensions(dimension("FunctionName", "checkout"))
        .dimensions(dimension("Resource", "checkout:live"))
        .dimensions(dimension("ExecutedVersion", "2"))
        .build();
    let stat = MetricStat::builder().metric(metric).period(60).stat("Sum").build();
    let query = MetricDataQuery::builder().id("errors").metric_stat(stat).build();
    let call = client.get_metric_data().metric_data_queries(query);
    let end = aws.clock().now();
    let time = |at: jiff::Timestamp| DateTime::from_secs(at.as_second());
    let said = call.start_time(time(start)).end_time(time(end)).send().await.expect("it answers");
    let found = &said.metric_data_results()[0];
    assert_eq!(found.status_code().map(|status| status.as_str()), Some("Complete"));
    let sum: f64 = found.values().iter().sum();
    assert!((60.0..=150.0).contains(&sum), "half of four minutes' calls, seen a minute later: {found:?}");
    assert!(found.timestamps().is_sorted_by(|a, b| a.secs() > b.secs()), "newest first unless said");
}
