//! The gates that are made of gates, of functions and of pushes, through the public API.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use jiff::Timestamp;
use rollback_core::{
    Error, Result,
    backend::Readiness,
    gate::{self, Evidence, HealthGate, Standing, Verdict, Window, all, any, at_least, dry_run, from_fn},
    model::{Change, GateName, Revision, RevisionId, RolloutId, TargetId, Weight},
    plan::Plan,
};
use tokio::time::Instant;

#[tokio::test]
async fn a_combined_verdict_is_what_the_missing_answers_cannot_change() {
    for size in 1..=4u32 {
        for case in 0..4usize.pow(size) {
            let says: Vec<usize> = (0..size).map(|at| case / 4usize.pow(at) % 4).collect();
            let healthy = says.iter().filter(|says| **says == 0).count();
            let unknown = says.iter().filter(|says| **says >= 2).count();
            for need in 1..=size as usize {
                let expected = if healthy >= need {
                    Standing::Healthy
                } else if healthy + unknown < need {
                    Standing::Unhealthy
                } else {
                    Standing::Inconclusive
                };
                let parts = says.iter().enumerate().map(|(at, says)| part(&format!("part-{at}"), *says));
                let verdict = at_least(need, "whole", parts).unwrap().judge(&window(60)).await.unwrap();
                assert_eq!(verdict.standing(), expected, "{need} of {says:?}");
                assert_eq!(verdict.evidence().facts["need"], need);
            }
        }
    }
}

#[tokio::test]
async fn all_needs_every_part_and_any_needs_one() {
    let parts = |says: [usize; 3]| ["a", "b", "c"].into_iter().zip(says).map(|(name, says)| part(name, says));
    for (says, of_all, of_any) in [
        ([0, 0, 0], Standing::Healthy, Standing::Healthy),
        ([0, 1, 0], Standing::Unhealthy, Standing::Healthy),
        ([0, 2, 0], Standing::Inconclusive, Standing::Healthy),
        ([2, 1, 3], Standing::Unhealthy, Standing::Inconclusive),
        ([1, 1, 1], Standing::Unhealthy, Standing::Unhealthy),
    ] {
        let verdict = all("all", parts(says)).unwrap().judge(&window(60)).await.unwrap();
        assert_eq!(verdict.standing(), of_all, "all of {says:?}");
        let verdict = any("any", parts(says)).unwrap().judge(&window(60)).await.unwrap();
        assert_eq!(verdict.standing(), of_any, "any of {says:?}");
    }
}

#[tokio::test]
async fn a_combined_verdict_says_which_part_said_what() {
    let verdict = all("all", [part("errors", 0), part("latency", 1)]).unwrap().judge(&window(60)).await.unwrap();
    assert_eq!(verdict.evidence().summary, "latency: it is bad");
    let verdict = any("any", [part("latency", 1), part("saturation", 1)]).unwrap().judge(&window(60)).await.unwrap();
    let evidence = verdict.evidence();
    assert_eq!(evidence.summary, "latency: it is bad; saturation: it is bad");
    assert_eq!(evidence.facts["parts"]["latency"]["says"], "unhealthy");
    assert_eq!(evidence.facts["parts"]["latency"]["facts"]["seen"], 7);
}

#[tokio::test(start_paused = true)]
async fn a_hanging_part_does_not_keep_the_others_from_being_counted() {
    let parts = || [hanging("slow"), part("errors", 0)];
    let began = Instant::now();
    let verdict = any("any", parts()).unwrap().judge(&window(60)).await.unwrap();
    assert_eq!(verdict.standing(), Standing::Healthy);
    assert_eq!(began.elapsed(), Duration::from_secs(8));
    let verdict = all("all", parts()).unwrap().judge(&window(60)).await.unwrap();
    assert_eq!(verdict.standing(), Standing::Inconclusive);
    assert_eq!(verdict.evidence().summary, "slow: no answer within 8s");

    let began = Instant::now();
    let quick = all("all", parts()).unwrap().part_timeout(Duration::from_millis(500));
    assert_eq!(quick.judge(&window(60)).await.unwrap().evidence().summary, "slow: no answer within 500ms");
    assert_eq!(began.elapsed(), Duration::from_millis(500));
}

#[tokio::test(start_paused = true)]
async fn a_breach_does_not_wait_for_a_hanging_part() {
    let began = Instant::now();
    let verdict = all("all", [hanging("slow"), part("errors", 1)]).unwrap().judge(&window(60)).await.unwrap();
    assert_eq!(verdict.standing(), Standing::Unhealthy);
    assert_eq!(began.elapsed(), Duration::ZERO);
}

#[tokio::test]
async fn a_panicking_part_is_no_data_and_its_name_is_told() {
    let parts = || [panicking("broken"), part("errors", 0)];
    let verdict = all("all", parts()).unwrap().judge(&window(60)).await.unwrap();
    assert_eq!(verdict.standing(), Standing::Inconclusive);
    assert_eq!(verdict.evidence().summary, "broken: it panicked");
    assert_eq!(any("any", parts()).unwrap().judge(&window(60)).await.unwrap().standing(), Standing::Healthy);
}

#[tokio::test]
async fn what_parts_remember_survives_restarts_and_parts_that_fail() {
    // Fails at every third judgement, and is to know at the next how far it had come.
    let asked = Arc::new(AtomicU32::new(0));
    let flaky = counting("flaky", move |_| asked.fetch_add(1, Ordering::Relaxed) % 3 == 2);
    let gate = all("all", [counting("steady", |_| false), flaky]).unwrap();
    let mut window = window(60);
    for round in 1..=6 {
        let verdict = gate.judge(&window).await.unwrap();
        let json = serde_json::to_string(verdict.evidence()).unwrap();
        window.last = Some(serde_json::from_str(&json).unwrap());
        let failed = round % 3 == 0;
        assert_eq!(verdict.standing(), if failed { Standing::Inconclusive } else { Standing::Healthy });
    }
    let memory = window.last.unwrap().memory.unwrap();
    assert_eq!((&memory["steady"]["memory"], &memory["flaky"]["memory"]), (&6.into(), &4.into()));
}

#[tokio::test]
async fn memory_that_cannot_be_read_is_no_data_and_is_never_replaced_by_a_fresh_start() {
    let gate = all("all", [counting("steady", |_| false)]).unwrap();
    let mut window = window(60);
    let unreadable = serde_json::json!(["another version wrote this"]);
    window.last = Some(Evidence::new(window.since, "").remember(unreadable.clone()));
    for _ in 0..2 {
        let verdict = gate.judge(&window).await.unwrap();
        assert_eq!(verdict.standing(), Standing::Inconclusive);
        assert_eq!(verdict.evidence().memory, Some(unreadable.clone()));
        window.last = Some(verdict.evidence().clone());
    }
}

#[tokio::test]
async fn a_verdict_reaches_as_far_as_the_data_that_decides_it() {
    let parts = |what: &[(Standing, i64)]| -> Vec<Arc<dyn HealthGate>> {
        let part = |(at, (standing, until)): (usize, &(Standing, i64))| says(&format!("{at}"), *standing, *until);
        what.iter().enumerate().map(part).collect()
    };
    let until = async |need, what: &[(Standing, i64)]| {
        let verdict = at_least(need, "whole", parts(what)).unwrap().judge(&window(60)).await.unwrap();
        (verdict.standing(), verdict.evidence().until)
    };
    use Standing::{Healthy as H, Inconclusive as I, Unhealthy as U};
    assert_eq!(until(1, &[(H, 10), (H, 30), (H, 20)]).await, (H, time(30)));
    assert_eq!(until(2, &[(H, 10), (H, 30), (H, 20)]).await, (H, time(20)));
    assert_eq!(until(3, &[(H, 10), (H, 30), (H, 20)]).await, (H, time(10)));
    assert_eq!(until(2, &[(H, 10), (H, 30), (U, 50)]).await, (H, time(10)), "a no lends no reach to a yes");
    assert_eq!(until(1, &[(H, 10), (I, 50)]).await, (H, time(10)), "nor does no data");
    assert_eq!(until(1, &[(U, 10), (U, 30)]).await, (U, time(10)), "both are needed to rule out one yes");
    assert_eq!(until(2, &[(H, 40), (I, 20)]).await, (I, time(20)));
}

#[tokio::test]
async fn long_facts_of_parts_never_cost_their_memory() {
    let wordy = |name: &str| -> Arc<dyn HealthGate> {
        let judge = |window: Window| async move {
            let evidence = Evidence::new(window.now, "s".repeat(900)).fact("query", "q".repeat(4000));
            Ok(Verdict::Healthy(evidence.remember("m".repeat(1000).into())))
        };
        Arc::new(from_fn(name, judge).unwrap())
    };
    let gate = all("all", ["a", "b", "c", "d", "e"].map(wordy)).unwrap();
    let verdict = gate.judge(&window(60)).await.unwrap();
    assert_eq!(verdict.standing(), Standing::Healthy);
    let evidence = verdict.evidence();
    assert_eq!(evidence.facts["healthy"], 5);
    assert_eq!(evidence.memory.as_ref().unwrap()["e"]["memory"], "m".repeat(1000));
    assert!(serde_json::to_string(evidence).unwrap().len() <= Evidence::MAX_LEN);
}

#[test]
fn combinations_that_cannot_work_are_refused() {
    let refused = |need, names: &[&str]| {
        let parts: Vec<_> = names.iter().map(|name| part(name, 0)).collect();
        at_least(need, "whole", parts).unwrap_err().to_string()
    };
    assert_eq!(refused(0, &["a", "b"]), "gate whole needs 0 of 2 gates to be healthy; 1 to 2 is accepted");
    assert_eq!(refused(3, &["a", "b"]), "gate whole needs 3 of 2 gates to be healthy; 1 to 2 is accepted");
    assert_eq!(refused(1, &["a", "a"]), "gate whole has two gates named a");
    assert_eq!(all("whole", []).unwrap_err().to_string(), "gate whole has no gates; it needs at least one");
    assert!(any("", [part("a", 0)]).is_err());
}

#[tokio::test]
async fn a_combination_is_ready_when_its_parts_are() {
    let (alarms, signal) = gate::signal("alarms").unwrap();
    signal.unhealthy("p99 over 2 s");
    let found = all("all", [part("errors", 0), Arc::new(alarms)]).unwrap().preflight(&change(), &plan()).await.unwrap();
    assert_eq!(found.refused.len(), 1, "{found:?}");
}

#[tokio::test(start_paused = true)]
async fn a_dry_run_never_counts_against_the_candidate() {
    let trial = async |gate: Arc<dyn HealthGate>| {
        let verdict = dry_run(gate).judge(&window(60)).await.unwrap();
        assert_eq!((verdict.standing(), verdict.evidence().until), (Standing::Healthy, window(60).now));
        (verdict.evidence().facts["dry_run"].clone(), verdict.evidence().summary.clone())
    };
    let told = |would: &str, summary: &str| (would.into(), format!("dry run, would be {would}: {summary}"));
    assert_eq!(trial(part("g", 0)).await, told("healthy", "it is good"));
    assert_eq!(trial(part("g", 1)).await, told("unhealthy", "it is bad"));
    assert_eq!(trial(part("g", 2)).await, told("inconclusive", "nobody knows"));
    assert_eq!(trial(part("g", 3)).await, told("inconclusive", "the server is away"));
    assert_eq!(trial(panicking("g")).await, told("inconclusive", "it panicked"));
    assert_eq!(trial(hanging("g")).await, told("inconclusive", "no answer within 8s"));
    let greedy = from_fn("g", |window| async move {
        Ok(Verdict::Healthy(Evidence::new(window.now, "").remember("m".repeat(9000).into())))
    });
    let (would, why) = trial(Arc::new(greedy.unwrap())).await;
    assert!(would == "inconclusive" && why.contains("most of them memory"), "{why}");
}

#[tokio::test]
async fn a_dry_run_remembers_what_its_gate_does() {
    let gate = dry_run(counting("trial", |window: &Window| window.step == 1));
    let mut window = window(60);
    for step in [0, 0, 1, 0] {
        window.step = step;
        window.last = Some(gate.judge(&window).await.unwrap().evidence().clone());
    }
    assert_eq!(window.last.unwrap().memory, Some(3.into()));
}

#[tokio::test(start_paused = true)]
async fn a_dry_run_refuses_no_rollout() {
    for (how, why) in [
        (Preflight::Refuses, "dry run of trial: the alarm is firing"),
        (Preflight::Fails, "dry run of trial: the server is away"),
        (Preflight::Panics, "dry run of trial: it panicked"),
        (Preflight::Hangs, "dry run of trial: no answer within 8s"),
    ] {
        let trial = dry_run(Unready { name: GateName::try_from("trial").unwrap(), how });
        let found = trial.preflight(&change(), &plan()).await.unwrap();
        assert_eq!(found, Readiness::default().not_provable(why));
    }
}

#[tokio::test]
async fn a_function_judges_the_window_it_is_given() {
    let gate = from_fn("queue", |window| async move {
        let depth: u32 =
            window.last.as_ref().and_then(|last| last.recall().transpose()).transpose()?.unwrap_or_default();
        Ok(Verdict::Healthy(
            Evidence::new(window.now, format!("{depth} at {}", window.weight)).remember((depth + 1).into()),
        ))
    })
    .unwrap();
    assert_eq!(gate.name().as_str(), "queue");
    let mut window = window(60);
    window.last = Some(gate.judge(&window).await.unwrap().evidence().clone());
    assert_eq!(gate.judge(&window).await.unwrap().evidence().summary, "1 at 25 %");
    assert!(from_fn("", |window: Window| async move { Ok(window.no_data("")) }).is_err());
}

#[tokio::test(start_paused = true)]
async fn silence_is_no_data() {
    let (gate, signal) = gate::signal("alarms").unwrap();
    let verdict = gate.judge(&window(60)).await.unwrap();
    assert_eq!(verdict, window(60).no_data("nothing was heard yet"));
    signal.healthy("all quiet");
    tokio::time::advance(Duration::from_secs(60)).await;
    let verdict = gate.judge(&window(60)).await.unwrap();
    assert_eq!((verdict.standing(), verdict.evidence().until), (Standing::Healthy, time(60)));
    tokio::time::advance(Duration::from_secs(1)).await;
    let verdict = gate.judge(&window(61)).await.unwrap();
    assert_eq!((verdict.standing(), verdict.evidence().until), (Standing::Inconclusive, time(0)));
    assert_eq!(verdict.evidence().summary, r#"nothing was heard for 61 s; the last word was "all quiet""#);
}

#[tokio::test(start_paused = true)]
async fn a_word_is_as_old_as_its_push_and_not_as_its_first_judgement() {
    let (gate, signal) = gate::signal("alarms").unwrap();
    let gate = gate.fresh_for(Duration::from_secs(5));
    signal.healthy("before the rollout began");
    tokio::time::advance(Duration::from_secs(6)).await;
    assert_eq!(gate.judge(&window(60)).await.unwrap().standing(), Standing::Inconclusive);
    signal.healthy("now");
    tokio::time::advance(Duration::from_secs(5)).await;
    assert_eq!(gate.judge(&window(60)).await.unwrap().standing(), Standing::Healthy);
}

#[tokio::test(start_paused = true)]
async fn unhealthy_stands_until_healthy_is_pushed_and_refuses_the_next_rollout() {
    let (gate, signal) = gate::signal("alarms").unwrap();
    let gate = gate.silence_is_healthy();
    assert_eq!(gate.judge(&window(60)).await.unwrap().standing(), Standing::Healthy);
    signal.clone().unhealthy("p99 over 2 s");
    tokio::time::advance(Duration::from_secs(3600)).await;
    let verdict = gate.judge(&window(3600)).await.unwrap();
    assert_eq!(verdict, Verdict::Unhealthy(Evidence::new(time(0), "p99 over 2 s")));
    let found = gate.preflight(&change(), &plan()).await.unwrap();
    let why = "gate alarms says unhealthy already (p99 over 2 s); it must hear healthy before a rollout can begin";
    assert_eq!(found, Readiness::default().refused(why));
    signal.healthy("fixed");
    tokio::time::advance(Duration::from_secs(3600)).await;
    assert_eq!(gate.judge(&window(7200)).await.unwrap().standing(), Standing::Healthy, "silence is healthy here");
    assert_eq!(gate.preflight(&change(), &plan()).await.unwrap(), Readiness::default());
}

fn time(second: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + second).unwrap()
}

/// The first step of a rollout, `now` seconds after it was reached.
fn window(now: i64) -> Window {
    Window {
        rollout: RolloutId::try_from("shop-1").unwrap(),
        target: TargetId::try_from("shop").unwrap(),
        baseline: RevisionId::try_from("1").unwrap(),
        candidate: RevisionId::try_from("2").unwrap(),
        step: 0,
        weight: Weight::try_from(25).unwrap(),
        created: time(0),
        since: time(0),
        now: time(now),
        last: None,
    }
}

fn change() -> Change {
    Change {
        rollout: RolloutId::try_from("shop-1").unwrap(),
        target: TargetId::try_from("shop").unwrap(),
        baseline: Revision::new("1").unwrap(),
        candidate: Revision::new("2").unwrap(),
    }
}

fn plan() -> Plan {
    Plan::all_at_once(Duration::from_secs(60)).unwrap()
}

/// Healthy, unhealthy, without data, failing: 0 to 3.
fn part(name: &str, says: usize) -> Arc<dyn HealthGate> {
    let judge = move |window: Window| async move {
        let evidence = |summary: &str| Evidence::new(window.now, summary).fact("seen", 7);
        Ok(match says {
            0 => Verdict::Healthy(evidence("it is good")),
            1 => Verdict::Unhealthy(evidence("it is bad")),
            2 => Verdict::Inconclusive(evidence("nobody knows")),
            _ => return Err(Error::new(rollback_core::ErrorKind::Unavailable, "the server is away")),
        })
    };
    Arc::new(from_fn(name, judge).unwrap())
}

fn says(name: &str, standing: Standing, until: i64) -> Arc<dyn HealthGate> {
    let judge = move |_| async move {
        let evidence = Evidence::new(time(until), "");
        Ok(match standing {
            Standing::Healthy => Verdict::Healthy(evidence),
            Standing::Unhealthy => Verdict::Unhealthy(evidence),
            Standing::Inconclusive => Verdict::Inconclusive(evidence),
        })
    };
    Arc::new(from_fn(name, judge).unwrap())
}

fn hanging(name: &str) -> Arc<dyn HealthGate> {
    Arc::new(from_fn(name, |_| std::future::pending()).unwrap())
}

fn panicking(name: &str) -> Arc<dyn HealthGate> {
    Arc::new(from_fn(name, |_| async { panic!("as this test wants it") }).unwrap())
}

/// Remembers how often it judged, and fails where `fails` says so.
fn counting(name: &str, fails: impl Fn(&Window) -> bool + Send + Sync + 'static) -> Arc<dyn HealthGate> {
    let judge = move |window: Window| {
        let failed = fails(&window);
        async move {
            if failed {
                return Err(Error::new(rollback_core::ErrorKind::Unavailable, "the server is away"));
            }
            let before: u64 = window.last.as_ref().and_then(|last| last.recall().transpose()).transpose()?.unwrap_or(0);
            Ok(Verdict::Healthy(Evidence::new(window.now, "").remember((before + 1).into())))
        }
    };
    Arc::new(from_fn(name, judge).unwrap())
}

#[derive(Debug)]
struct Unready {
    name: GateName,
    how: Preflight,
}

#[derive(Debug)]
enum Preflight {
    Refuses,
    Fails,
    Panics,
    Hangs,
}

#[async_trait]
impl HealthGate for Unready {
    fn name(&self) -> &GateName {
        &self.name
    }

    async fn judge(&self, window: &Window) -> Result<Verdict> {
        Ok(window.no_data("not asked in this test"))
    }

    async fn preflight(&self, _: &Change, _: &Plan) -> Result<Readiness> {
        match self.how {
            Preflight::Refuses => Ok(Readiness::default().refused("the alarm is firing")),
            Preflight::Fails => Err(Error::new(rollback_core::ErrorKind::Unavailable, "the server is away")),
            Preflight::Panics => panic!("as this test wants it"),
            Preflight::Hangs => std::future::pending().await,
        }
    }
}
