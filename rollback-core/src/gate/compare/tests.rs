use std::collections::BTreeMap;

use jiff::SignedDuration;

use super::*;
use crate::{
    gate::{
        Standing,
        source::{Pair, Reading, Samples},
    },
    model::Revision,
    plan::Step,
    testing::{
        clock::TestClock,
        source::{Traffic, readings},
    },
};

fn at(seconds: i64) -> jiff::Timestamp {
    TestClock::START + SignedDuration::from_secs(seconds)
}

fn window(now: i64, percent: u8, step: usize, last: Option<Evidence>) -> Window {
    Window {
        rollout: "r".parse().unwrap(),
        target: "checkout".parse().unwrap(),
        baseline: "v1".parse().unwrap(),
        candidate: "v2".parse().unwrap(),
        created: at(0),
        step,
        weight: Weight::try_from(percent).unwrap(),
        since: at(0),
        now: at(now),
        last,
    }
}

fn whole() -> Share {
    Budget::default().whole()
}

/// Asks every ten seconds, through the JSON of a record, and returns the verdicts.
async fn judged(
    gate: &Compare,
    last: Option<Evidence>,
    percent: u8,
    step: usize,
    times: std::ops::Range<i64>,
) -> Vec<Verdict> {
    let (mut last, mut verdicts) = (last, Vec::new());
    for now in times.step_by(10) {
        let window = window(now, percent, step, last.clone());
        let verdict = gate.judge(&window).await.unwrap_or_else(|e| window.no_data(e.chain()));
        let json = serde_json::to_string(verdict.evidence()).unwrap();
        last = Some(serde_json::from_str(&json).unwrap());
        verdicts.push(verdict);
    }
    verdicts
}

fn ends(verdicts: &[Verdict]) -> (Standing, &str) {
    let last = verdicts.last().unwrap();
    (last.standing(), &last.evidence().summary)
}

fn first_no(verdicts: &[Verdict]) -> Option<usize> {
    verdicts.iter().position(|verdict| verdict.standing() == Standing::Unhealthy)
}

#[tokio::test]
async fn a_worse_candidate_is_told_from_an_equal_one() {
    let gate = |traffic| Compare::failures("errors", traffic, whole()).unwrap();
    let verdicts = judged(&gate(Traffic::new(200.0, 0.05).failing(0.05, 0.005)), None, 5, 0, 10..610).await;
    assert!(first_no(&verdicts).is_some_and(|look| look < 3), "{:?}", ends(&verdicts));
    let equal = judged(&gate(Traffic::new(200.0, 0.05).failing(0.005, 0.005)), None, 5, 0, 10..610).await;
    assert_eq!(first_no(&equal), None);
    let (standing, why) = ends(&equal);
    assert_eq!(standing, Standing::Healthy, "{why}");
    assert!(why.starts_with("30 of 6000 requests failed (0.5 %), 570 of 114000 of the baseline (0.5 %)"), "{why}");
}

#[tokio::test]
async fn the_evidence_says_what_was_seen_and_what_would_have_tripped_it() {
    let traffic = Traffic::new(200.0, 0.05).failing(0.005, 0.005);
    let verdicts = judged(&Compare::failures("errors", traffic, whole()).unwrap(), None, 5, 0, 10..310).await;
    let facts = &verdicts.last().unwrap().evidence().facts;
    assert_eq!(facts["candidate"]["requests"], 3000, "{facts:#?}");
    assert_eq!(facts["baseline"]["requests"], 30 * 1900);
    assert_eq!((&facts["enough"], &facts["alpha"]), (&json!(101.0), &json!(0.01)));
    let range = facts["candidate"]["rate_at_all_times_95"].as_array().unwrap();
    assert!(range[0].as_f64().unwrap() < 0.005 && range[1].as_f64().unwrap() > 0.005);
    let trips = facts["would_trip"].as_str().unwrap().to_owned();
    let failures: u64 = trips.split(' ').next().unwrap().parse().unwrap();
    // So many do, and one fewer does not.
    let next = async |failures| {
        let counts = Samples::counts(Count::new(100, failures), Count::new(1900, 10));
        let gate = Compare::failures("errors", readings([Ok(Reading::since(at(310), counts))]), whole()).unwrap();
        gate.judge(&window(310, 5, 0, Some(verdicts.last().unwrap().evidence().clone()))).await.unwrap().standing()
    };
    assert!((3..20).contains(&failures), "{trips}");
    assert_eq!((next(failures).await, next(failures - 1).await), (Standing::Unhealthy, Standing::Healthy));
}

#[tokio::test]
async fn too_few_requests_in_a_step_are_no_data() {
    let traffic = Traffic::new(20.0, 0.05);
    let gate = Compare::failures("errors", traffic, whole()).unwrap();
    let verdicts = judged(&gate, None, 5, 0, 10..60).await;
    assert_eq!(ends(&verdicts).0, Standing::Healthy, "50 requests by now");
    assert_eq!(verdicts[0].standing(), Standing::Inconclusive);
    assert_eq!(verdicts[0].evidence().summary, "10 requests of the candidate so far; 20 are needed");
    let next = judged(&gate, Some(verdicts.last().unwrap().evidence().clone()), 5, 1, 60..70).await;
    assert_eq!(ends(&next).0, Standing::Inconclusive, "each step is measured anew");
}

#[tokio::test]
async fn an_arm_that_falls_silent_is_no_data_and_no_bake_passes_on_it() {
    let traffic = Traffic::new(200.0, 0.05);
    let gate = Compare::failures("errors", traffic.clone(), whole()).unwrap();
    let before = judged(&gate, None, 5, 0, 10..70).await;
    assert_eq!((ends(&before).0, before.last().unwrap().evidence().until), (Standing::Healthy, at(60)));
    traffic.flow_at(200.0, 0.0);
    let after = judged(&gate, Some(before.last().unwrap().evidence().clone()), 5, 0, 70..200).await;
    assert_eq!(after[0].evidence().until, at(60), "the data ends where the candidate's does");
    let (standing, why) = ends(&after);
    assert_eq!((standing, why), (Standing::Inconclusive, "no data of both revisions for 130 s"));
    let never = Traffic::new(200.0, 0.0);
    let verdicts = judged(&Compare::failures("errors", never, whole()).unwrap(), None, 5, 0, 10..140).await;
    assert_eq!(ends(&verdicts), (Standing::Inconclusive, "no data of the candidate for 130 s"));
}

#[tokio::test]
async fn where_both_fail_alike_rolling_back_would_not_help() {
    let gate = |traffic| Compare::failures("errors", traffic, whole()).unwrap();
    let verdicts = judged(&gate(Traffic::new(200.0, 0.05).failing(0.9, 0.9)), None, 5, 0, 10..310).await;
    let (standing, why) = ends(&verdicts);
    assert_eq!(standing, Standing::Inconclusive);
    assert!(why.ends_with("the baseline fails as much, rolling back would not help"), "{why}");
    let worse = judged(&gate(Traffic::new(200.0, 0.05).failing(1.0, 0.6)), None, 5, 0, 10..310).await;
    assert!(first_no(&worse).is_some(), "but worse is worse: {:?}", ends(&worse));
}

#[tokio::test]
async fn a_process_that_restarts_makes_no_negative_counts() {
    let traffic = Traffic::new(200.0, 0.05).failing(0.005, 0.005);
    traffic.counts_since(at(-1000));
    let gate = Compare::failures("errors", traffic.clone(), whole()).unwrap();
    let before = judged(&gate, None, 5, 0, 10..110).await;
    assert!(ends(&before).1.starts_with("5 of 900 requests failed"), "{}", ends(&before).1);
    traffic.counts_since(at(105));
    let window = window(110, 5, 0, Some(before.last().unwrap().evidence().clone()));
    let reset = gate.judge(&window).await.unwrap();
    assert_eq!(reset.evidence().facts["noted"], "counters went back: a process restarted");
    assert!(reset.evidence().summary.starts_with("5 of 900"), "{}", reset.evidence().summary);
    let after = judged(&gate, Some(reset.evidence().clone()), 5, 0, 120..220).await;
    assert!(ends(&after).1.starts_with("10 of 1900 requests failed"), "{}", ends(&after).1);
}

#[tokio::test]
async fn a_source_that_fails_or_contradicts_itself_is_no_data_and_costs_no_memory() {
    let bad = |samples| readings([Ok(Reading::since(at(120), samples))]);
    let seen = judged(&Compare::failures("e", Traffic::new(200.0, 0.05), whole()).unwrap(), None, 5, 0, 10..110).await;
    let last = seen.last().unwrap().evidence().clone();
    for (samples, why) in [
        (Samples::counts(Count::new(1, 2), Count::new(9, 0)), "the source counts more failures than requests"),
        (Samples::gauges(1.0, 2.0), "the source gives gauges, but the gate compares failures"),
        (
            Samples::buckets(vec![1.0], vec![1, 2], vec![1, 2]),
            "the source gives latency buckets, but the gate compares failures",
        ),
    ] {
        let gate = Compare::failures("e", bad(samples), whole()).unwrap();
        let verdicts = judged(&gate, Some(last.clone()), 5, 0, 120..130).await;
        assert_eq!(ends(&verdicts), (Standing::Inconclusive, why));
        assert_eq!(verdicts[0].evidence().memory, last.memory);
    }
    let bounds = vec![1.0, 2.0];
    for (samples, why) in [
        (Samples::buckets(bounds.clone(), vec![1, 2], vec![1, 2, 3]), "not one bucket more"),
        (Samples::buckets(vec![2.0, 1.0], vec![1, 2, 3], vec![1, 2, 3]), "ascending, finite"),
        (Samples::buckets(vec![1.0, f64::NAN], vec![1, 2, 3], vec![1, 2, 3]), "ascending, finite"),
    ] {
        let verdicts = judged(&Compare::latency("l", bad(samples), whole()).unwrap(), None, 5, 0, 10..20).await;
        assert!(ends(&verdicts).1.contains(why), "{}", ends(&verdicts).1);
    }
}

#[tokio::test]
async fn memory_that_cannot_be_read_or_is_anothers_is_no_data_and_is_kept() {
    let gate = Compare::failures("errors", Traffic::new(200.0, 0.05), whole()).unwrap();
    let others =
        Compare::gauge("g", readings([Ok(Reading::since(at(10), Samples::gauges(1.0, 1.0)))]), whole(), 1.1).unwrap();
    let of_gauge = others.judge(&window(10, 5, 0, None)).await.unwrap().evidence().memory.clone().unwrap();
    for memory in [json!({"another": "version"}), of_gauge] {
        let last = Evidence::new(at(0), "").remember(memory.clone());
        let verdict = gate.judge(&window(20, 5, 0, Some(last))).await.unwrap();
        assert_eq!((verdict.standing(), &verdict.evidence().memory), (Standing::Inconclusive, &Some(memory)));
    }
}

#[tokio::test]
async fn the_same_window_judged_twice_is_judged_the_same() {
    let gate = Compare::failures("errors", Traffic::new(200.0, 0.05).failing(0.01, 0.005), whole()).unwrap();
    let seen = judged(&gate, None, 5, 0, 10..110).await;
    let window = window(110, 5, 0, Some(seen.last().unwrap().evidence().clone()));
    assert_eq!(gate.judge(&window).await.unwrap(), gate.judge(&window).await.unwrap());
}

#[tokio::test]
async fn a_regression_that_begins_with_a_later_step_is_not_buried_by_good_times() {
    let traffic = Traffic::new(200.0, 0.05).failing(0.005, 0.005);
    let gate = Compare::failures("errors", traffic.clone(), whole()).unwrap();
    let good = judged(&gate, None, 5, 0, 10..3610).await;
    assert_eq!(first_no(&good), None);
    traffic.flow_at(200.0, 0.5);
    traffic.fail(0.02, 0.005);
    let bad = judged(&gate, Some(good.last().unwrap().evidence().clone()), 50, 1, 3610..3910).await;
    assert!(first_no(&bad).is_some_and(|look| look < 8), "after {:?} looks", first_no(&bad));
}

#[tokio::test]
async fn alone_with_all_traffic_it_is_compared_with_what_the_baseline_did() {
    let traffic = Traffic::new(200.0, 0.5).failing(0.005, 0.005);
    let gate = Compare::failures("errors", traffic.clone(), whole()).unwrap();
    let seen = judged(&gate, None, 50, 0, 10..310).await;
    let last = seen.last().unwrap().evidence();
    traffic.flow_at(200.0, 1.0);
    let good = judged(&gate, Some(last.clone()), 100, 1, 310..910).await;
    assert_eq!(
        (ends(&good).0, good.last().unwrap().evidence().until),
        (Standing::Healthy, at(900)),
        "{}",
        ends(&good).1
    );
    traffic.fail(0.05, 0.0);
    let bad = judged(&gate, Some(last.clone()), 100, 1, 310..370).await;
    assert!(first_no(&bad).is_some_and(|look| look < 4), "{:?}", ends(&bad));

    traffic.fail(0.0, 0.0);
    let never = judged(&gate, None, 100, 0, 10..70).await;
    let (standing, why) = ends(&never);
    assert_eq!(standing, Standing::Inconclusive, "{why}");
    assert!(why.contains("nothing to compare with"), "{why}");
}

fn labelled(now: i64, counts: &[(&str, u64)]) -> Result<Reading> {
    let pair = |failures| Pair { candidate: Count::new(100, failures), baseline: Count::new(900, 4) };
    let counts: BTreeMap<String, _> =
        counts.iter().map(|(label, failures)| ((*label).into(), pair(*failures))).collect();
    Ok(Reading::since(at(now), Samples::Counts(counts)))
}

#[tokio::test]
async fn one_broken_route_is_not_averaged_away_and_is_blamed() {
    let routes: Vec<String> = (0..9).map(|n| format!("/route/{n}")).collect();
    let script = (1..=6).map(|look| {
        let counts: Vec<_> =
            routes.iter().map(|route| (route.as_str(), if route == "/route/7" { 12 } else { 0 })).collect();
        labelled(look * 10, &counts)
    });
    let gate = Compare::failures("errors", readings(script), whole()).unwrap();
    let verdicts = judged(&gate, None, 10, 0, 10..70).await;
    let no = &verdicts[first_no(&verdicts).expect("it is found")];
    assert_eq!(no.evidence().facts["blamed"], json!(["/route/7"]), "{no:#?}");
    assert_eq!(no.evidence().facts["label"], "/route/7");
    assert!(no.evidence().summary.contains("of /route/7 failed"), "{}", no.evidence().summary);
}

#[tokio::test]
async fn many_long_labels_fit_into_a_record_and_none_is_lost() {
    let label = |n: usize| format!("/a/long/route/that/some/framework/made/up/for/us/{n:03}");
    let script = (1..=40).map(|look| {
        let all = (0..40).map(|n| {
            (label(n), Pair { candidate: Count::new(1_000_000, 900), baseline: Count::new(19_000_000, 17_000) })
        });
        Ok(Reading::totals(
            at(look * 10),
            Samples::Counts(
                all.map(|(label, pair)| {
                    let times = |count: Count| Count::new(count.requests * look as u64, count.failures * look as u64);
                    (label, Pair { candidate: times(pair.candidate), baseline: times(pair.baseline) })
                })
                .collect(),
            ),
        ))
    });
    let gate = Compare::failures("errors", readings(script), whole()).unwrap();
    let verdicts = judged(&gate, None, 10, 0, 10..410).await;
    let evidence = verdicts.last().unwrap().evidence();
    assert_eq!(evidence.facts["in_step"]["candidate"], 39 * 40 * 1_000_000_u64, "the others are summed up");
    assert!(
        evidence.memory.as_ref().unwrap().to_string().len() <= 6 * 1024,
        "{}",
        evidence.memory.as_ref().unwrap().to_string().len()
    );

    let bounds: Vec<f64> = (1..=32).map(|k| f64::from(k) * 0.123).collect();
    let script = (1..=40_u64).map(|look| {
        let buckets = |times: u64| (0..33).map(|k| look * times * (40 - k) * 1000).collect::<Vec<u64>>();
        let counts = (0..40).map(|n| (label(n), Pair { candidate: buckets(1), baseline: buckets(19) })).collect();
        Ok(Reading::totals(at(look as i64 * 10), Samples::Buckets { bounds: bounds.clone(), counts }))
    });
    let script: Vec<_> = script.collect();
    let again = || readings(script.iter().map(|reading: &Result<Reading>| Ok(reading.as_ref().unwrap().clone())));
    for gate in [
        Compare::latency("latency", again(), whole()).unwrap(),
        Compare::slower_than("slo", again(), whole(), 0.3).unwrap(),
        Compare::quantile("p95", again(), whole(), 0.95).unwrap(),
    ] {
        let verdicts = judged(&gate, None, 10, 0, 10..410).await;
        let evidence = verdicts.last().unwrap().evidence();
        // Through JSON and back at each look, as in a record: bounds that came back changed would be no data for ever.
        assert_eq!(evidence.until, at(400), "{}: {}", gate.name, evidence.summary);
        let length = evidence.memory.as_ref().unwrap().to_string().len();
        assert!(length <= 6 * 1024, "{}: {length}", gate.name);
    }
}

fn slow(now: i64, candidate: [u64; 5]) -> Result<Reading> {
    let bounds = vec![0.05, 0.1, 0.25, 0.5];
    Ok(Reading::since(at(now), Samples::buckets(bounds, candidate.to_vec(), vec![400, 450, 90, 8, 2])))
}

#[tokio::test]
async fn a_slower_candidate_is_seen_by_every_test_of_latency() {
    let gates = |candidate: [u64; 5]| {
        let script = || readings((1..=60).map(move |look| slow(look * 10, candidate)));
        [
            Compare::latency("latency", script(), whole()).unwrap(),
            Compare::slower_than("slo", script(), whole(), 0.3).unwrap(),
            Compare::quantile("p95", script(), whole(), 0.95).unwrap(),
        ]
    };
    for gate in gates([20, 30, 20, 20, 10]) {
        let verdicts = judged(&gate, None, 10, 0, 10..610).await;
        assert!(first_no(&verdicts).is_some_and(|look| look < 12), "{}: {:?}", gate.name, ends(&verdicts));
    }
    for gate in gates([40, 45, 9, 1, 0]) {
        let verdicts = judged(&gate, None, 10, 0, 10..610).await;
        assert_eq!((first_no(&verdicts), ends(&verdicts).0), (None, Standing::Healthy), "{}", gate.name);
    }
}

#[tokio::test]
async fn a_higher_gauge_is_seen_and_one_within_tolerance_is_not() {
    let wave = |look: i64| (look as f64 * 2.4).sin() + (look as f64 * 1.1).cos();
    let gate = |level: f64| {
        let script = (1..=120).map(move |look| {
            Ok(Reading::since(at(look * 10), Samples::gauges(level + wave(look), 50.0 + wave(look + 7))))
        });
        Compare::gauge("cpu", readings(script), whole(), 1.1).unwrap()
    };
    let verdicts = judged(&gate(70.0), None, 10, 0, 10..1210).await;
    assert!(first_no(&verdicts).is_some(), "{:?}", ends(&verdicts));
    let verdicts = judged(&gate(52.0), None, 10, 0, 10..1210).await;
    assert_eq!((first_no(&verdicts), ends(&verdicts).0), (None, Standing::Healthy));
    assert!(ends(&verdicts).1.contains("against"), "{}", ends(&verdicts).1);
}

#[tokio::test]
async fn until_proven_it_waits_for_evidence_that_the_candidate_is_no_worse() {
    let gate = |candidate| {
        let traffic = Traffic::new(2000.0, 0.05).failing(candidate, 0.005);
        Compare::failures("errors", traffic, whole()).unwrap().until_proven(0.05).unwrap()
    };
    let equal = judged(&gate(0.005), None, 5, 0, 10..610).await;
    let proven = equal.iter().position(|verdict| verdict.standing() == Standing::Healthy).expect("it is proven");
    assert!(proven > 1 && equal[..proven].iter().all(|verdict| verdict.standing() == Standing::Inconclusive));
    assert!(ends(&equal).1.contains("odds of 2 are ruled out"), "{}", ends(&equal).1);
    let between = judged(&gate(0.0075), None, 5, 0, 10..310).await;
    assert!(between[0].standing() == Standing::Inconclusive && ends(&between).0 != Standing::Unhealthy);
    let p = Compare::quantile("p95", Traffic::new(1.0, 0.5), whole(), 0.95).unwrap().until_proven(0.05);
    assert_eq!(p.unwrap_err().kind(), crate::ErrorKind::Unsupported);
}

#[test]
fn a_budget_is_shared_and_what_makes_no_sense_is_refused() {
    let [a, b] = Budget::new(0.03).unwrap().split([2.0, 1.0]).unwrap();
    assert!((a.0 - 0.02).abs() < 1e-12 && (b.0 - 0.01).abs() < 1e-12);
    for alpha in [0.0, -1.0, 0.6, f64::NAN] {
        assert!(Budget::new(alpha).is_err(), "{alpha}");
    }
    assert!(Budget::default().split([1.0, 0.0]).is_err());
    for (borne, ruled_out) in [(0.9, 2.0), (2.0, 2.0), (3.0, 2.0), (f64::NAN, 2.0), (1.0, f64::INFINITY)] {
        assert!(Tolerance::new(borne, ruled_out).is_err(), "{borne}, {ruled_out}");
    }
}

async fn foreseen(traffic: Traffic, plan: &Plan) -> Readiness {
    let change = Change {
        rollout: "r".parse().unwrap(),
        target: "checkout".parse().unwrap(),
        baseline: Revision::new("v1").unwrap(),
        candidate: Revision::new("v2").unwrap(),
    };
    let gate = Compare::failures("errors", traffic, whole()).unwrap().clock(TestClock::new());
    gate.preflight(&change, plan).await.unwrap()
}

#[tokio::test]
async fn before_the_start_it_says_what_the_traffic_can_show_in_the_time() {
    let plan = |weight: u8, minutes: u64| {
        let bake = Duration::from_secs(60 * minutes);
        Plan::new([Step::new(Weight::try_from(weight).unwrap(), bake), Step::new(Weight::ALL, bake)]).unwrap()
    };
    // By the statistics page: at 10 requests a second of the candidate, four times as many take a minute and a half, and
    // twice as many 24 minutes.
    let found = foreseen(Traffic::new(200.0, 0.0).failing(0.0, 0.005), &plan(5, 2)).await;
    let proved = found.proved[0].as_str();
    assert!(
        proved.contains("can show odds 4 times the baseline's in about") && proved.contains("200.0 requests"),
        "{proved}"
    );
    let short = found.not_provable[0].as_str();
    assert!(short.contains("odds 2 times") && short.contains("min at 200.0 requests"), "{short}");
    let found = foreseen(Traffic::new(200.0, 0.0).failing(0.0, 0.005), &plan(50, 60)).await;
    assert!(found.not_provable.is_empty() && found.proved[0].as_str().contains("odds 2 times"), "{found:?}");
    let found = foreseen(Traffic::new(0.0, 0.0), &plan(5, 5)).await;
    assert!(found.not_provable[0].as_str().contains("no requests in the last ten minutes"), "{found:?}");
    let at_once = Plan::all_at_once(Duration::from_secs(60)).unwrap();
    let found = foreseen(Traffic::new(200.0, 0.0), &at_once).await;
    assert!(found.not_provable[0].as_str().contains("begin with less"), "{found:?}");
    assert!(found.refused.is_empty());
}
