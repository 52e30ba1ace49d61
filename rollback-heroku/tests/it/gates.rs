//! The gates: what each verdict needs, and that no data is never health.

use std::time::Duration;

use rollback_core::{
    backend::Readiness,
    clock::Clock as _,
    engine::{Engine, NewRollout, Target},
    gate::{HealthGate, Policy, Standing, Verdict, Window},
    model::{Change, Goal, Revision, RolloutId, TargetId, Weight},
    plan::Plan,
    state::{Cause, State},
    store::Memory,
    testing::backend::{Bench as _, Driver},
};
use rollback_heroku::{
    Candidate,
    gate::{Dynos, Logs, Router},
    testing::{Heroku, Run, Slug, Traffic},
};

use crate::support::{Make, Shop, VALUE, a_slug, a_source};

fn shop_of(run: Run) -> Shop {
    let make: Make = match run {
        Run::Good => a_slug,
        Run::CrashAfter(_) => |heroku| candidate(heroku, Run::CrashAfter(Duration::from_secs(60))),
        Run::Flap(_) => |heroku| candidate(heroku, Run::Flap(Duration::from_secs(40))),
        Run::NeverUp => |heroku| candidate(heroku, Run::NeverUp),
        Run::CrashAtBoot => |heroku| candidate(heroku, Run::CrashAtBoot),
    };
    Shop::new(make).app(|app| app.steady_for(Duration::from_secs(5)))
}

fn candidate(heroku: &Heroku, run: Run) -> Revision {
    heroku.app("shop", Slug::good());
    let slug = heroku.slug("shop", Slug::that(run));
    Candidate::slug(&slug).and_then(Candidate::revision).unwrap()
}

/// A shop whose candidate was asked for, and the window of a gate that watches it.
async fn released(shop: &Shop) -> Window {
    shop.reset().await;
    let mut driver = Driver::new(shop).await;
    let version = driver.look(Goal::Candidate).await.version;
    let attempt = driver.save(Goal::Candidate, &version);
    driver.send(&attempt).await.unwrap();
    let now = shop.heroku.clock().now();
    Window {
        rollout: driver.change.rollout.clone(),
        target: TargetId::try_from("shop").unwrap(),
        baseline: driver.change.baseline.id.clone(),
        candidate: driver.change.candidate.id.clone(),
        created: now,
        step: 0,
        weight: Weight::ALL,
        since: now,
        now,
        last: None,
    }
}

/// Judges every ten seconds, `times` times, and hands the evidence on.
async fn watch(gate: &dyn HealthGate, shop: &Shop, window: &mut Window, times: usize) -> Vec<Standing> {
    let mut seen = Vec::new();
    for _ in 0..times {
        tokio::time::sleep(Duration::from_secs(10)).await;
        let verdict = judge(gate, shop, window).await;
        seen.push(verdict.standing());
    }
    seen
}

async fn judge(gate: &dyn HealthGate, shop: &Shop, window: &mut Window) -> Verdict {
    window.now = shop.heroku.clock().now();
    let verdict = gate.judge(window).await.unwrap();
    assert!(!format!("{verdict:?}").contains(VALUE) && !format!("{verdict:?}").contains("s3cr3t"));
    window.last = Some(verdict.evidence().clone());
    verdict
}

use Standing::{Healthy, Inconclusive, Unhealthy};

#[tokio::test(start_paused = true)]
async fn dynos_that_stay_up_are_healthy_whatever_made_the_candidate() {
    for make in [a_slug as Make, a_source] {
        let shop = Shop::new(make);
        let mut window = released(&shop).await;
        let gate = Dynos::new(&shop.backend());
        if window.candidate.as_str().starts_with("source:") {
            // It builds, and meanwhile v1 serves.
            assert_eq!(watch(&gate, &shop, &mut window, 1).await, [Inconclusive]);
            assert!(window.last.as_ref().unwrap().summary.contains("not the candidate"));
            tokio::time::sleep(Duration::from_secs(50)).await;
        }
        assert_eq!(watch(&gate, &shop, &mut window, 3).await, [Healthy; 3]);
        assert_eq!(window.last.as_ref().unwrap().summary, "2 dynos are up at v2");
        let before = shop.heroku.exchanges().len();
        judge(&gate, &shop, &mut window).await;
        assert_eq!(shop.heroku.exchanges().len() - before, 2, "two requests a look");
    }
}

#[tokio::test(start_paused = true)]
async fn dynos_that_boot_are_no_data_and_dynos_that_never_come_up_are_unhealthy() {
    let shop = shop_of(Run::NeverUp);
    let mut window = released(&shop).await;
    let gate = Dynos::new(&shop.backend()).boots_within(Duration::from_secs(60));
    let seen = watch(&gate, &shop, &mut window, 8).await;
    assert_eq!(seen[..5], [Inconclusive; 5]);
    assert_eq!(seen[7], Unhealthy);
    assert!(window.last.unwrap().summary.contains("web.1 is starting"));
}

#[tokio::test(start_paused = true)]
async fn a_crash_is_unhealthy_at_once_and_flapping_when_it_is_too_often() {
    let shop = shop_of(Run::CrashAfter(Duration::ZERO));
    let mut window = released(&shop).await;
    let gate = Dynos::new(&shop.backend());
    assert_eq!(
        watch(&gate, &shop, &mut window, 7).await,
        [Healthy, Healthy, Healthy, Healthy, Healthy, Healthy, Unhealthy]
    );
    assert_eq!(window.last.unwrap().summary, "web.1 has crashed");

    // It looks when they are up only: the crash itself is never seen.
    let shop = shop_of(Run::Flap(Duration::ZERO));
    let mut window = released(&shop).await;
    let gate = Dynos::new(&shop.backend()).restarts_at_most(2);
    tokio::time::sleep(Duration::from_secs(20)).await;
    let mut seen = Vec::new();
    for _ in 0..4 {
        seen.push(judge(&gate, &shop, &mut window).await.standing());
        tokio::time::sleep(Duration::from_secs(50)).await;
    }
    assert_eq!(seen, [Healthy, Healthy, Healthy, Unhealthy]);
    assert_eq!(window.last.unwrap().summary, "web.1 was restarted 3 times");
}

#[tokio::test(start_paused = true)]
async fn a_dyno_that_crashed_before_is_told_before_the_start() {
    for (run, told) in [(Run::Good, None), (Run::CrashAtBoot, Some("web.1, web.2 crashed already"))] {
        let shop = shop_of(run);
        released(&shop).await;
        tokio::time::sleep(Duration::from_secs(60)).await;
        let ready = ready(&Dynos::new(&shop.backend())).await;
        let notes: String = ready.not_provable.iter().map(|note| note.as_str()).collect();
        assert!(ready.refused.is_empty() && told.map_or(notes.is_empty(), |told| notes.contains(told)), "{ready:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn dynos_of_another_release_or_too_few_of_them_are_no_pass() {
    let shop = Shop::new(a_slug);
    let mut window = released(&shop).await;
    let gate = Dynos::new(&shop.backend());
    assert_eq!(watch(&gate, &shop, &mut window, 1).await, [Healthy]);
    shop.heroku.somebody_rolls_back("shop", 1);
    assert_eq!(watch(&gate, &shop, &mut window, 1).await, [Inconclusive]);
    assert!(window.last.as_ref().unwrap().summary.contains("v3 serves, which is not the candidate"));
    shop.heroku.scale("shop", "web", 0);
    assert_eq!(watch(&gate, &shop, &mut window, 1).await, [Inconclusive]);
    // What is remembered and cannot be read is no fresh start.
    window.last.as_mut().unwrap().memory = Some("nonsense".into());
    assert_eq!(watch(&gate, &shop, &mut window, 1).await, [Inconclusive]);
}

async fn ready(gate: &dyn HealthGate) -> Readiness {
    let plan = Plan::all_at_once(Duration::ZERO).unwrap();
    let change = Change {
        rollout: RolloutId::try_from("r").unwrap(),
        target: TargetId::try_from("shop").unwrap(),
        baseline: Revision::new("a").unwrap(),
        candidate: Revision::new("b").unwrap(),
    };
    gate.preflight(&change, &plan).await.unwrap()
}

fn traffic(ok: f64, failed: f64, p95: f64) -> Traffic {
    Traffic {
        ok,
        failed,
        errors: vec![("H12".into(), failed), ("H27".into(), 900.0)],
        latency: [p95 / 2.0, p95, p95 * 2.0],
    }
}

#[tokio::test(start_paused = true)]
async fn the_router_judges_whole_minutes_with_enough_requests() {
    let shop = Shop::new(a_slug);
    let mut window = released(&shop).await;
    let gate = Router::new(&shop.backend(), 0.05).unwrap().requests_at_least(100).p95_at_most(500);
    assert!(ready(&gate).await.not_provable.iter().any(|note| note.as_str().contains("traffic enough")));
    // Nobody comes: no errors, and no health.
    tokio::time::sleep(Duration::from_secs(180)).await;
    assert_eq!(judge(&gate, &shop, &mut window).await.standing(), Inconclusive);

    for (ok, failed, p95, verdict, words) in [
        (10.0, 9.0, 100.0, Inconclusive, "at least 100 are needed"),
        (100.0, 1.0, 100.0, Healthy, "requests failed (H12, H27)"),
        (100.0, 10.0, 100.0, Unhealthy, "requests failed (H12, H27)"),
        (100.0, 0.0, 900.0, Unhealthy, "the p95 of the latency was 900 ms"),
    ] {
        window.since = shop.heroku.clock().now();
        shop.heroku.traffic("shop", traffic(ok, failed, p95));
        tokio::time::sleep(Duration::from_secs(240)).await;
        let said = judge(&gate, &shop, &mut window).await;
        assert_eq!(said.standing(), verdict, "{ok} {failed} {p95}: {said:?}");
        assert!(said.evidence().summary.contains(words), "{said:?}");
        assert!(said.evidence().until > window.since && said.evidence().until <= window.now);
    }
    // While old dynos serve under preboot, it is not the candidate that is seen.
    window.weight = Weight::NONE;
    assert_eq!(judge(&gate, &shop, &mut window).await.standing(), Inconclusive);
    // Gone: said before the start.
    shop.heroku.no_metrics();
    assert!(ready(&gate).await.refused[0].as_str().contains("metrics API is not there"));
    assert!(Router::new(&shop.backend(), 1.5).is_err());
}

#[tokio::test(start_paused = true)]
async fn the_log_judges_herokus_own_lines() {
    let shop = Shop::new(a_slug);
    let mut window = released(&shop).await;
    let gate = Logs::new(&shop.backend(), 0.1).unwrap().requests_at_least(10);
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(judge(&gate, &shop, &mut window).await.standing(), Inconclusive);
    let good = "heroku[router]: at=info method=GET path=\"/\" status=200 bytes=12";
    (0..9).for_each(|_| shop.heroku.log("shop", good));
    assert_eq!(judge(&gate, &shop, &mut window).await.standing(), Inconclusive, "too few");
    shop.heroku.log("shop", good);
    assert_eq!(judge(&gate, &shop, &mut window).await.standing(), Healthy);
    (0..3)
        .for_each(|_| shop.heroku.log("shop", "heroku[router]: at=error code=H12 desc=\"Request timeout\" status=503"));
    assert_eq!(judge(&gate, &shop, &mut window).await.standing(), Unhealthy);
    (0..90).for_each(|_| shop.heroku.log("shop", good));
    assert_eq!(judge(&gate, &shop, &mut window).await.standing(), Healthy);
    shop.heroku.log("shop", "heroku[router]: at=error code=H10 desc=\"App crashed\" status=503");
    let said = judge(&gate, &shop, &mut window).await;
    assert_eq!((said.standing(), said.evidence().summary.as_str()), (Unhealthy, "the log has H10"));
}

/// From the crash being visible to the request that brings the old release back, and how many requests all that takes.
#[tokio::test(start_paused = true)]
async fn requests_are_few_and_a_crash_is_answered_soon() {
    let roll_out = async |shop: &Shop, bake: Duration| {
        let app = shop.backend();
        let engine = Engine::builder(Memory::new()).clock(shop.heroku.clock()).build().unwrap();
        let gate = Dynos::new(&app);
        let target = Target::new("shop", app).unwrap().look_every(Duration::from_secs(10), Duration::from_secs(30));
        engine.register(target.gate(gate, Policy::default().every(Duration::from_secs(15)))).unwrap();
        let new = NewRollout::new("shop", shop.candidate(), Plan::all_at_once(bake).unwrap()).unwrap();
        let outcome = engine.start(new).await.unwrap().finished().await;
        engine.shutdown(Duration::from_secs(5)).await;
        outcome.rollout
    };

    let shop = shop_of(Run::Good);
    shop.reset().await;
    let rollout = roll_out(&shop, Duration::from_secs(600)).await;
    assert_eq!(rollout.state, State::Promoted, "{rollout}");
    let all = shop.heroku.exchanges();
    let (from, to) = (Duration::from_secs(120), Duration::from_secs(420));
    let begun = all[0].at;
    let baking = all.iter().filter(|it| (begun + from..begun + to).contains(&it.at)).count() as f64 / 5.0;
    eprintln!("a healthy rollout with a bake of 10 minutes: {} requests, {baking} a minute while baking", all.len());
    assert!(baking < 15.0, "{baking} requests a minute");
    assert!(baking / f64::from(4500 / 60) < 0.25, "of the 75 that come back a minute");
    assert!(all.len() < 225, "{} requests", all.len());

    let shop = shop_of(Run::CrashAfter(Duration::ZERO));
    shop.reset().await;
    let rollout = roll_out(&shop, Duration::from_secs(600)).await;
    assert!(
        matches!(&rollout.state, State::RolledBack { cause: Cause::Unhealthy { .. } | Cause::Failed { .. } }),
        "{rollout}"
    );
    let all = shop.heroku.exchanges();
    let posts: Vec<_> = all.iter().enumerate().filter(|(_, it)| it.method == "POST").collect();
    let [(_, forth), (at, back)] = posts.as_slice() else { panic!("{posts:?}") };
    // It boots in 8 seconds, and crashes 60 later.
    let crash = forth.at + Duration::from_secs(68);
    let answered = back.at - crash;
    // The look that saw it, the look before the request, the request, and until it has arrived.
    let after = all.len() - at;
    eprintln!("from the crash to the rollback request: {answered:?}; {after} requests from there to the end");
    assert!(answered <= Duration::from_secs(16), "{answered:?}: one interval of the gate, and the next look");
    assert!(after < 42, "{after} requests for a rollback");
}
