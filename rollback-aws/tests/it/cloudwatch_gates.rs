//! Alarms and metrics as gates: what each verdict needs, and that no data is never health.

use std::{sync::Arc, time::Duration};

use jiff::SignedDuration;
use rollback_aws::{
    cloudwatch::{AlarmGate, Alarms, Bound, LogLines, Metric, MetricGate, Preexisting},
    lambda::Alias,
    testing::{
        Simulator,
        cloudwatch::State,
        fault::{Fault, Trouble},
        lambda::Build,
    },
};
use rollback_core::{
    ErrorKind,
    backend::Readiness,
    clock::Clock as _,
    engine::{Engine, NewRollout, Target},
    gate::{HealthGate, Policy, Standing, Verdict, Window},
    model::{Change, Revision, RolloutId, TargetId, Weight},
    plan::Plan,
    store::Memory,
};

use Standing::{Healthy, Inconclusive, Unhealthy};

fn change() -> Change {
    let target = TargetId::try_from("checkout").expect("a name");
    Change {
        rollout: RolloutId::fresh(&target),
        target,
        baseline: Revision::new("1").expect("an id"),
        candidate: Revision::new("2").expect("an id"),
    }
}

fn window(aws: &Simulator) -> Window {
    let (change, now) = (change(), aws.clock().now());
    Window {
        rollout: change.rollout,
        target: change.target,
        baseline: change.baseline.id,
        candidate: change.candidate.id,
        created: now,
        step: 0,
        weight: Weight::try_from(10).expect("a percentage"),
        since: now,
        now,
        last: None,
    }
}

async fn judge(gate: &dyn HealthGate, aws: &Simulator, window: &mut Window) -> Verdict {
    window.now = aws.clock().now();
    let verdict = match gate.judge(window).await {
        Ok(verdict) => verdict,
        Err(e) => window.no_data(e.chain()),
    };
    window.last = Some(verdict.evidence().clone());
    verdict
}

async fn preflight(gate: &dyn HealthGate, minutes: u64) -> Readiness {
    let plan = Plan::canary([10, 100], Duration::from_secs(60 * minutes)).expect("a plan");
    gate.preflight(&change(), &plan).await.expect("it could look")
}

async fn later(seconds: u64) {
    tokio::time::sleep(Duration::from_secs(seconds)).await;
}

fn says(notes: &[rollback_core::model::Note], words: &str) -> bool {
    notes.iter().any(|note| note.as_str().contains(words))
}

#[tokio::test(start_paused = true)]
async fn alarms_that_are_ok_are_healthy_up_to_two_minutes_ago_and_one_that_fires_is_not() {
    let aws = Simulator::new();
    aws.cloudwatch().alarm("errors");
    aws.cloudwatch().log_alarm("log");
    let alarms = Alarms::new(&aws.account());
    let gate = AlarmGate::new("alarms", &alarms, ["errors", "log"]).expect("good names");
    let mut window = window(&aws);
    later(200).await;
    let verdict = judge(&gate, &aws, &mut window).await;
    assert_eq!(verdict.standing(), Healthy, "{verdict:?}");
    assert_eq!(window.now.duration_since(verdict.evidence().until).as_secs(), 120);
    aws.alarm_at("errors", aws.clock().now());
    later(11).await;
    let verdict = judge(&gate, &aws, &mut window).await;
    assert_eq!(verdict.standing(), Unhealthy);
    assert!(verdict.evidence().summary.starts_with("1 alarm fire: errors ("), "{verdict:?}");
}

#[tokio::test(start_paused = true)]
async fn what_cannot_tell_is_never_health() {
    for (what, says) in [
        ("insufficient", "is in INSUFFICIENT_DATA"),
        ("partial", "could not be evaluated (PARTIAL_DATA)"),
        ("deleted", "there is no alarm errors in us-east-1"),
        ("throttled", "throttles"),
        ("html", "not AWS's"),
        ("denied", "lacks the permission cloudwatch:DescribeAlarms"),
        ("expired", "have expired"),
    ] {
        let aws = Simulator::new();
        aws.cloudwatch().alarm("errors");
        let alarms = Alarms::new(&aws.account());
        let gate = AlarmGate::new("alarms", &alarms, ["errors"]).expect("good names");
        let mut window = window(&aws);
        later(180).await;
        assert_eq!(judge(&gate, &aws, &mut window).await.standing(), Healthy);
        let (now, cloudwatch) = (aws.clock().now(), aws.cloudwatch());
        match what {
            "insufficient" => cloudwatch.at("errors", now, Some(State::InsufficientData)),
            "partial" => cloudwatch.evaluation("errors", Some("PARTIAL_DATA")),
            "deleted" => cloudwatch.delete("errors"),
            "throttled" => aws.fault(Fault::any(Trouble::Throttle).times(9)),
            "html" => aws.fault(Fault::any(Trouble::Page { status: 502, body: "<html>" }).times(9)),
            "denied" => aws.deny("cloudwatch:DescribeAlarms"),
            _ => aws.expire("AKIDSIMULATOR"),
        }
        let until = window.last.as_ref().expect("it was judged").until;
        later(15).await;
        let verdict = judge(&gate, &aws, &mut window).await;
        assert_eq!(verdict.standing(), Inconclusive, "{what}: {verdict:?}");
        assert!(verdict.evidence().summary.contains(says), "{what}: {verdict:?}");
        assert_eq!(verdict.evidence().until, until, "no data reaches no further");
    }
}

#[tokio::test(start_paused = true)]
async fn an_alarm_that_fired_before_never_counts_until_it_ends_and_fires_again() {
    let aws = Simulator::new();
    aws.alarm_at("old", aws.clock().now());
    let alarms = Alarms::new(&aws.account());
    let refuse = AlarmGate::new("alarms", &alarms, ["old"]).expect("good names");
    let ready = preflight(&refuse, 10).await;
    assert!(says(&ready.refused, "1 alarm fire already: old"), "{ready:?}");
    let gate =
        AlarmGate::new("alarms", &alarms, ["old"]).expect("good names").preexisting(Preexisting::RequireRecovery);
    let ready = preflight(&gate, 10).await;
    assert!(ready.refused.is_empty() && says(&ready.not_provable, "no step passes before they end"), "{ready:?}");
    let why = Preexisting::Ignore("the disk is being worked on".into());
    let ignores = AlarmGate::new("alarms", &alarms, ["old"]).expect("good names").preexisting(why);

    later(30).await;
    let (mut window, mut other) = (window(&aws), window(&aws));
    later(150).await;
    assert_eq!(judge(&gate, &aws, &mut window).await.standing(), Inconclusive);
    assert_eq!(judge(&ignores, &aws, &mut other).await.standing(), Healthy);
    // It ends and fires again between two looks.
    aws.cloudwatch().at("old", aws.clock().now(), Some(State::Ok));
    later(1).await;
    aws.alarm_at("old", aws.clock().now());
    later(15).await;
    assert_eq!(judge(&gate, &aws, &mut window).await.standing(), Unhealthy, "it is another firing");
    assert_eq!(judge(&ignores, &aws, &mut other).await.standing(), Healthy, "it is let be");
}

#[tokio::test(start_paused = true)]
async fn an_alarm_that_fires_while_our_clock_runs_ahead_is_still_new() {
    let aws = Simulator::new();
    aws.cloudwatch().alarm("errors");
    let gate = AlarmGate::new("alarms", &Alarms::new(&aws.account()), ["errors"]).expect("good names");
    let ahead = SignedDuration::from_mins(4);
    let mut window = window(&aws);
    (window.created, window.since) = (window.created + ahead, window.since + ahead);
    let look = async |window: &mut Window| {
        window.now = aws.clock().now() + ahead;
        let verdict = gate.judge(window).await.expect("it can look");
        window.last = Some(verdict.evidence().clone());
        verdict.standing()
    };
    assert_eq!(look(&mut window).await, Healthy);
    aws.alarm_at("errors", aws.clock().now());
    later(15).await;
    assert_eq!(look(&mut window).await, Unhealthy);
}

#[tokio::test(start_paused = true)]
async fn preflight_names_the_missing_the_dead_and_the_too_short() {
    let aws = Simulator::new();
    let client = aws.account().cloudwatch();
    let call = client.put_metric_alarm().alarm_name("rate").namespace("Shop").metric_name("Failed").period(60);
    let call = call.evaluation_periods(3).datapoints_to_alarm(2).threshold(1.0).treat_missing_data("notBreaching");
    let call = call.extended_statistic("p99").evaluate_low_sample_count_percentile("ignore");
    let above = aws_sdk_cloudwatch::types::ComparisonOperator::GreaterThanThreshold;
    call.comparison_operator(above).send().await.expect("a good alarm");
    let gate = |alarms: &Alarms| AlarmGate::new("alarms", alarms, ["rate", "v{{candidate}}-errors"]).expect("good");
    let alarms = Alarms::new(&aws.account());
    let ready = preflight(&gate(&alarms), 3).await;
    assert!(says(&ready.refused, "there is no alarm v2-errors in us-east-1"), "{ready:?}");
    assert!(says(&ready.not_provable, "rate is in INSUFFICIENT_DATA (Unchecked: Initial alarm creation)"), "{ready:?}");
    assert!(says(&ready.not_provable, "step 1 bakes for 180 s, but the alarm rate takes up to 255 s"), "{ready:?}");
    assert!(says(&ready.not_provable, "OK while nothing is measured; ask for traffic"), "{ready:?}");
    assert!(says(&ready.not_provable, "fewer than 1,000 for p99"), "{ready:?}");

    aws.deny("cloudwatch:DescribeAlarms");
    let ready = preflight(&gate(&Alarms::new(&aws.account())), 10).await;
    assert!(says(&ready.refused, "allow cloudwatch:DescribeAlarms to this caller"), "{ready:?}");
}

#[tokio::test]
async fn bad_names_are_refused_before_anything_is_asked() {
    let alarms = Alarms::new(&Simulator::new().account());
    let long = "x".repeat(256);
    let there = "arn:aws:cloudwatch:eu-west-1:123456789012:alarm:errors";
    for (names, words) in [
        (vec![], "has 0 alarms; 1 to 50 are accepted"),
        (vec!["a", "a"], "names the alarm a twice"),
        (vec!["a", "arn:aws:cloudwatch:us-east-1:123456789012:alarm:a"], "names the alarm a twice"),
        (vec![long.as_str()], "256 characters; 1 to 255"),
        (vec![there], "is in eu-west-1, but alarms are read in us-east-1"),
        (vec!["arn:aws:sns:us-east-1:123456789012:topic"], "is no alarm's ARN"),
    ] {
        let error = AlarmGate::new("alarms", &alarms, names).expect_err(words);
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.chain().contains(words), "{}", error.chain());
    }
}

#[tokio::test(start_paused = true)]
async fn an_arn_of_another_account_is_not_the_alarm_of_that_name_here() {
    let aws = Simulator::new();
    aws.cloudwatch().alarm("errors");
    let alarms = Alarms::new(&aws.account());
    let elsewhere = "arn:aws:cloudwatch:us-east-1:999999999999:alarm:errors";
    let gate = AlarmGate::new("alarms", &alarms, [elsewhere]).expect("it is an ARN");
    let ready = preflight(&gate, 10).await;
    assert!(says(&ready.refused, "it is of another account"), "{ready:?}");
}

#[tokio::test(start_paused = true)]
async fn a_canary_that_nobody_called_has_no_data_though_no_alarm_fires() {
    let aws = Simulator::new();
    aws.lambda().publish("checkout", &Build::new("v1"));
    aws.lambda().publish("checkout", &Build::new("v2"));
    aws.lambda().point("checkout", "live", "1", Some(("2", 0.5)));
    aws.cloudwatch().alarm("errors");
    let alarms = Alarms::new(&aws.account());
    let calls = Metric::of_candidate("Invocations", "checkout", "live");
    let gate = AlarmGate::new("alarms", &alarms, ["errors"]).expect("good names").traffic(calls, 20.0);
    let ready = preflight(&gate, 10).await;
    assert!(says(&ready.proved, "cloudwatch:GetMetricData"), "{ready:?}");
    let mut window = window(&aws);
    later(300).await;
    let verdict = judge(&gate, &aws, &mut window).await;
    assert_eq!(verdict.standing(), Inconclusive);
    assert!(verdict.evidence().summary.contains("Invocations is 0 since the step began; at least 20"), "{verdict:?}");
    aws.lambda().traffic("checkout", "live", 60.0);
    later(240).await;
    assert_eq!(judge(&gate, &aws, &mut window).await.standing(), Healthy);
    let before = aws.calls()["cloudwatch:GetMetricData"];
    later(11).await;
    assert_eq!(judge(&gate, &aws, &mut window).await.standing(), Healthy);
    assert_eq!(aws.calls()["cloudwatch:GetMetricData"], before, "enough is enough for the step");
}

#[tokio::test(start_paused = true)]
async fn one_call_serves_every_rollout_for_an_interval() {
    for rollouts in [1, 100, 1000] {
        let aws = Simulator::new();
        let names: Vec<String> = (0..100).map(|n| format!("alarm-{n}")).collect();
        for name in &names {
            aws.cloudwatch().alarm(name);
        }
        let alarms = Alarms::new(&aws.account());
        let gates: Vec<AlarmGate> = (0..rollouts)
            .map(|n| AlarmGate::new("alarms", &alarms, [names[n % 100].clone(), names[(n * 7 + 1) % 100].clone()]))
            .collect::<Result<_, _>>()
            .expect("good names");
        let mut windows: Vec<Window> = (0..rollouts).map(|_| window(&aws)).collect();
        let mut before = 0;
        for minute in 0..3 {
            for _ in 0..6 {
                for (gate, window) in gates.iter().zip(&mut windows) {
                    judge(gate, &aws, window).await;
                }
                later(10).await;
            }
            let calls = aws.calls()["cloudwatch:DescribeAlarms"] - before;
            before += calls;
            // The first minute also hears of names one by one, as no engine asks for them.
            if minute > 0 {
                assert_eq!(calls, 6, "{rollouts} rollouts in minute {minute}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn no_more_than_two_calls_a_second_leave_however_many_names_there_are() {
    let aws = Simulator::new();
    let names: Vec<String> = (0..950).map(|n| format!("alarm-{n}")).collect();
    for name in &names {
        aws.cloudwatch().alarm(name);
    }
    let alarms = Alarms::new(&aws.account());
    let gates: Vec<Arc<AlarmGate>> = names
        .chunks(50)
        .map(|names| AlarmGate::new("alarms", &alarms, names.to_vec()).map(Arc::new))
        .collect::<Result<_, _>>()
        .expect("good names");
    let start = tokio::time::Instant::now();
    let looks: Vec<_> = gates
        .into_iter()
        .map(|gate| {
            let window = window(&aws);
            tokio::spawn(async move { gate.judge(&window).await.map(|verdict| verdict.standing()) })
        })
        .collect();
    for look in looks {
        assert_eq!(look.await.expect("no panic").expect("it can look"), Healthy);
    }
    let (calls, took) = (aws.calls()["cloudwatch:DescribeAlarms"], start.elapsed());
    assert!((10..=12).contains(&calls), "{calls} calls for 950 names");
    assert!(took >= Duration::from_millis(500 * (calls - 1)), "{calls} calls in {took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_look_that_is_given_up_leaves_the_others_their_answer() {
    let aws = Simulator::new();
    aws.cloudwatch().alarm("errors");
    let alarms = Alarms::new(&aws.account());
    let gate = Arc::new(AlarmGate::new("alarms", &alarms, ["errors"]).expect("good names"));
    aws.fault(Fault::any(Trouble::DelayAnswer(Duration::from_secs(5))));
    let window = window(&aws);
    let given_up = tokio::time::timeout(Duration::from_secs(1), gate.judge(&window)).await;
    assert!(given_up.is_err());
    assert_eq!(gate.judge(&window).await.expect("it can look").standing(), Healthy);
    assert_eq!(aws.calls()["cloudwatch:DescribeAlarms"], 1);
}

#[tokio::test(start_paused = true)]
async fn a_share_of_failures_over_its_bound_is_unhealthy_and_partial_data_is_none() {
    let aws = Simulator::new();
    aws.lambda().publish("checkout", &Build::new("v1"));
    aws.lambda().publish("checkout", &Build::new("v2").fails(0.1));
    aws.lambda().point("checkout", "live", "1", Some(("2", 0.5)));
    let account = aws.account();
    let of = |name: &str| Metric::of_candidate(name, "checkout", "live");
    let strict = MetricGate::failures("errors", &account, of("Errors"), of("Invocations"), 5.0).expect("a percentage");
    let lax = MetricGate::failures("errors", &account, of("Errors"), of("Invocations"), 20.0).expect("a percentage");
    let slow = MetricGate::new("slow", &account, of("Duration"), "p99", Bound::AtMost(10.0)).expect("finite");
    let quick = MetricGate::new("quick", &account, of("Duration"), "Average", Bound::AtMost(50.0)).expect("finite");
    let mut window = window(&aws);
    assert_eq!(judge(&strict, &aws, &mut window).await.standing(), Inconclusive, "no minute has passed");
    later(240).await;
    assert_eq!(judge(&strict, &aws, &mut window).await.standing(), Inconclusive, "nobody called");
    aws.lambda().traffic("checkout", "live", 120.0);
    later(300).await;
    for (gate, wanted) in [(&strict, Unhealthy), (&lax, Healthy), (&slow, Unhealthy), (&quick, Healthy)] {
        let verdict = judge(gate, &aws, &mut window).await;
        assert_eq!(verdict.standing(), wanted, "{verdict:?}");
        let behind = window.now.duration_since(verdict.evidence().until);
        assert!((120..180).contains(&behind.as_secs()), "{behind}");
    }
    aws.cloudwatch().partial(true);
    let verdict = judge(&lax, &aws, &mut window).await;
    assert_eq!(verdict.standing(), Inconclusive);
    assert!(verdict.evidence().summary.contains("PartialData; only Complete is taken"), "{verdict:?}");
    for bad in [-1.0, 100.0, f64::NAN] {
        assert!(MetricGate::failures("e", &account, of("Errors"), of("Invocations"), bad).is_err());
    }
}

#[cfg(feature = "compare")]
#[tokio::test(start_paused = true)]
async fn counts_of_both_versions_follow_on_one_another_without_gap() {
    use rollback_aws::cloudwatch::Counts;
    use rollback_core::gate::source::{MetricSource as _, Query, Samples, Serving};

    let aws = Simulator::new();
    aws.lambda().publish("checkout", &Build::new("v1"));
    aws.lambda().publish("checkout", &Build::new("v2").fails(0.5));
    aws.lambda().point("checkout", "live", "1", Some(("2", 0.5)));
    let of = |name: &str| Metric::of_candidate(name, "checkout", "live");
    let source = Counts::new(&aws.account(), of("Invocations"), of("Errors")).expect("both name it");
    let change = change();
    let mut query = Query {
        target: change.target,
        baseline: change.baseline.id,
        candidate: change.candidate.id,
        serving: Serving::Both,
        since: aws.clock().now(),
        now: aws.clock().now(),
    };
    later(300).await;
    query.now = aws.clock().now();
    let silent = source.read(&query).await.expect_err("nobody called").to_string();
    assert!(silent.contains("has no AWS/Lambda Invocations of 2"), "{silent}");
    // Before the start nobody calls the candidate, and that is no trouble: the baseline's silence is.
    let before = Query { serving: Serving::Baseline, ..query.clone() };
    let silent = source.read(&before).await.expect_err("nobody called").to_string();
    assert!(silent.contains("has no AWS/Lambda Invocations of 1"), "{silent}");
    query.since = aws.clock().now();
    aws.lambda().traffic("checkout", "live", 60.0);
    let start = query.since;
    let (mut requests, mut last) = (0, start);
    for _ in 0..4 {
        later(190).await;
        query.now = aws.clock().now();
        let reading = source.read(&query).await.expect("there is data");
        assert!(reading.until > last && reading.until <= query.now);
        let Samples::Counts(counts) = &reading.samples else { panic!("counts were asked for") };
        let both = counts[""];
        assert!(both.candidate.failures > 0 && both.candidate.failures < both.candidate.requests);
        assert_eq!(both.baseline.failures, 0);
        requests += both.candidate.requests + both.baseline.requests;
        (last, query.since) = (reading.until, reading.until);
    }
    let minutes = last.duration_since(start).as_secs() / 60;
    assert_eq!(requests, 60 * minutes as u64, "each minute once");
    assert!(Counts::new(&aws.account(), Metric::new("a", "b"), of("Errors")).is_err());
}

/// The whole of it: a bad version makes metrics, metrics an alarm, and the alarm brings the alias back.
#[tokio::test(start_paused = true)]
async fn an_alarm_on_the_candidates_errors_brings_the_alias_back() {
    let aws = Simulator::new();
    aws.lambda().publish("checkout", &Build::new("v1"));
    aws.lambda().publish("checkout", &Build::new("v2").fails(0.3));
    aws.lambda().point("checkout", "live", "1", None);
    aws.lambda().traffic("checkout", "live", 600.0);
    let account = aws.account();
    let set = rollback_aws::cloudwatch::AlarmSet::new("checkout", rollback_aws::cloudwatch::Stage::prod());
    let set = set.function("checkout", "live", "2");
    set.plan(&account).await.expect("it can look").apply(&account).await.expect("they are good");
    later(180).await;
    let alarms = Alarms::new(&account);
    let gate = AlarmGate::new("alarms", &alarms, set.names().filter(|name| name.contains("error-rate"))).expect("good");
    let gate = gate.traffic(Metric::of_candidate("Invocations", "checkout", "live"), 20.0);
    let engine = Engine::builder(Memory::new()).clock(aws.clock().clone()).build().expect("it can be built");
    let alias = Alias::new(&account, "checkout:live").expect("a name");
    let target = Target::new("checkout:live", alias).expect("a name").gate(gate, Policy::default());
    engine.register(target).expect("it is new");
    let plan = Plan::canary([20, 100], Duration::from_secs(600)).expect("a plan");
    let new = NewRollout::new("checkout:live", Revision::new("2").expect("an id"), plan).expect("a target");
    let handle = engine.start(new).await.expect("it starts");
    let done = handle.finished().await;
    assert_eq!(done.exit_code(), 1, "rolled back: {:?}", handle.status().state);
    let mut changes = aws.cloudwatch().changes().into_iter();
    let fired = changes.find(|changed| changed.state == State::Alarm && changed.alarm.contains("error-rate"));
    let fired = fired.expect("it fired");
    let back = aws.lambda().writes().last().expect("the way back").at;
    let took = back.duration_since(fired.at);
    println!("alarm to alias written back: {took}");
    assert!(took <= SignedDuration::from_secs(21), "{took}: an interval of the alarms, and one of the gate");
}

#[tokio::test(start_paused = true)]
async fn the_last_lines_of_a_log_group_explain_an_alarm_and_hold_up_nobody() {
    let aws = Simulator::new();
    aws.cloudwatch().alarm("errors");
    let group = "/aws/lambda/checkout";
    let begun = aws.clock().now();
    aws.logs().say(group, "2/one", begun, "ERROR of the time before");
    tokio::time::sleep(Duration::from_secs(1)).await;
    let mut window = window(&aws);
    let lines = LogLines::of(&aws.account(), group).expect("a name").filter("?ERROR").streams("{{candidate}}/").most(2);
    let gate = AlarmGate::new("alarms", &Alarms::new(&aws.account()), ["errors"]).expect("it is good");
    let gate = gate.with_log_lines(lines);
    assert_eq!(judge(&gate, &aws, &mut window).await.standing(), Healthy);

    let says = |stream: &str, text: &str| aws.logs().say(group, stream, aws.clock().now(), text);
    says("2/one", "ERROR one");
    says("1/one", "ERROR of the baseline");
    says("2/one", "INFO all is well");
    says("2/two", "ERROR two\nwith a second line");
    says("2/one", &format!("ERROR three {}", "x".repeat(400)));
    aws.alarm_at("errors", aws.clock().now());
    tokio::time::sleep(Duration::from_secs(20)).await;
    let verdict = judge(&gate, &aws, &mut window).await;
    assert_eq!(verdict.standing(), Unhealthy);
    let log = verdict.evidence().facts.get("log").expect("an explanation").as_str().expect("text").to_owned();
    let told: Vec<&str> = log.lines().collect();
    assert_eq!((told.len(), told[0]), (2, "ERROR two with a second line"), "{log}");
    assert!(told[1].starts_with("ERROR three xxx") && told[1].ends_with("x…") && told[1].len() < 310, "{log}");

    // It may not be told, or not in time: the verdict is the same.
    aws.deny("logs:FilterLogEvents");
    let verdict = judge(&gate, &aws, &mut window).await;
    let log = verdict.evidence().facts.get("log").expect("why there is none").to_string();
    assert!(verdict.standing() == Unhealthy && log.contains("logs:FilterLogEvents"), "{log}");
    aws.fault(Fault::of("logs:FilterLogEvents", Trouble::DelayAnswer(Duration::from_secs(8))));
    let before = tokio::time::Instant::now();
    let verdict = judge(&gate, &aws, &mut window).await;
    assert_eq!((verdict.standing(), verdict.evidence().facts.get("log")), (Unhealthy, None));
    assert!(before.elapsed() < Duration::from_secs(2), "{:?}", before.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_log_group_that_cannot_be_read_is_found_before_the_start() {
    let aws = Simulator::new();
    aws.cloudwatch().alarm("errors");
    aws.logs().say("/aws/lambda/checkout", "2/one", aws.clock().now(), "ERROR");
    let plan = Plan::all_at_once(Duration::from_secs(600)).expect("a plan");
    let ready = async |group: &str, filter: &str| {
        let lines = LogLines::of(&aws.account(), group).expect("a name").filter(filter);
        let gate = AlarmGate::new("alarms", &Alarms::new(&aws.account()), ["errors"]).expect("it is good");
        let ready = gate.with_log_lines(lines).preflight(&change(), &plan).await.expect("it could be looked at");
        ready.refused.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    };
    assert_eq!(ready("/aws/lambda/checkout", "?ERROR").await, "");
    let said = ready("/aws/lambda/misspelt", "").await;
    assert!(said.contains("reading the log group /aws/lambda/misspelt: there is no such thing"), "{said}");
    let said = ready("/aws/lambda/checkout", "\"unended").await;
    assert!(said.contains("Invalid filter pattern"), "{said}");
    aws.deny("logs:FilterLogEvents");
    let said = ready("/aws/lambda/checkout", "").await;
    assert!(said.contains("allow logs:FilterLogEvents to this caller"), "{said}");
    for name in ["", &"x".repeat(513)] {
        assert_eq!(LogLines::of(&aws.account(), name).expect_err("no name").kind(), ErrorKind::Invalid);
    }
}
