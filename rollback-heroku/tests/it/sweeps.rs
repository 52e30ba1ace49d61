//! Sweeps: the engine's over the backend, and ours over each request with an effect.

use std::{sync::Arc, time::Duration};

use rollback_core::{
    ErrorKind,
    engine::{Engine, NewRollout, Outcome, Target},
    gate::{HealthGate, Policy},
    model::{Goal, RolloutId, Weight},
    plan::Plan,
    state::State,
    store::Memory,
    testing::{
        backend::{Bench, Driver},
        gates::Scripted,
        sweep::{Scenario, Sweep},
    },
};
use rollback_heroku::{App, testing::Fault};

use crate::support::{Shop, a_slug, a_source, an_image, released};

/// A canary of nothing but 100 % is the same as all at once: each plan once.
pub(crate) async fn scenarios(bench: &dyn Bench) -> Vec<Scenario> {
    let mut scenarios = Scenario::ready_made(bench).await;
    scenarios.retain(|it| !matches!(it.name(), "canary" | "bad canary"));
    assert_eq!(scenarios.len(), 5, "{scenarios:?}");
    scenarios
}

/// There are thousands of runs, and each look costs.
fn quick(app: App) -> App {
    app.steady_for(Duration::from_secs(5)).settle(Duration::from_secs(20))
}

#[tokio::test(start_paused = true)]
async fn every_disturbance_is_got_over_with_slugs() {
    let shop = Shop::new(a_slug).app(quick).once();
    let sweep = Sweep::of(&shop).scenarios(scenarios(&shop).await);
    eprintln!("slugs, full: {}", sweep.all().await);
    shop.reset().await;
}

#[tokio::test(start_paused = true)]
async fn every_disturbance_is_got_over_by_code_only() {
    let shop = Shop::new(a_slug).app(|app| quick(app).code_only()).once();
    let sweep = Sweep::of(&shop).scenarios(scenarios(&shop).await);
    let mut summary = sweep.lost_answers().await;
    summary += sweep.late().await;
    summary += sweep.repeats().await;
    eprintln!("slugs, code only: {summary}");
    shop.reset().await;
}

#[tokio::test(start_paused = true)]
async fn every_disturbance_is_got_over_with_builds() {
    let shop = Shop::new(a_source).app(quick).once();
    let sweep = Sweep::of(&shop).scenarios(scenarios(&shop).await);
    let mut summary = sweep.crashes().await;
    summary += sweep.lost_answers().await;
    summary += sweep.repeats().await;
    summary += sweep.takeovers().await;
    eprintln!("builds: {summary}");
    shop.reset().await;
}

#[tokio::test(start_paused = true)]
async fn every_disturbance_is_got_over_with_images() {
    let shop = Shop::new(an_image).app(quick).once();
    let sweep = Sweep::of(&shop).scenarios(scenarios(&shop).await);
    let mut summary = sweep.lost_answers().await;
    summary += sweep.repeats().await;
    eprintln!("images: {summary}");
    shop.reset().await;
}

#[tokio::test(start_paused = true)]
async fn every_disturbance_is_got_over_while_looks_take_their_time() {
    let shop = Shop::new(a_slug).app(quick).once();
    let mut scenarios = scenarios(&shop).await;
    scenarios.retain(|it| it.name().starts_with("bad"));
    let sweep = Sweep::of(&shop).scenarios(scenarios).looks_take(Duration::from_millis(700));
    let summary = sweep.late().await;
    eprintln!("slow looks: {summary}");
    shop.reset().await;
}

/// One whole rollout by the engine on this shop.
pub(crate) async fn roll_out(shop: &Shop, bad: bool) -> Outcome {
    let gate = match bad {
        true => Scripted::unhealthy_from("errors", Weight::ALL),
        false => Scripted::healthy("errors"),
    };
    roll_out_by(shop, gate).await
}

/// The same, judged by this gate.
pub(crate) async fn roll_out_by(shop: &Shop, gate: impl HealthGate) -> Outcome {
    let engine = Engine::builder(Memory::new()).clock(shop.heroku.clock()).build().unwrap();
    let target = Target::new("shop", shop.backend()).unwrap().gate(gate, Policy::default());
    engine.register(target.look_every(Duration::from_secs(10), Duration::from_secs(30))).unwrap();
    let plan = Plan::all_at_once(Duration::from_secs(120)).unwrap();
    let new = NewRollout::new("shop", shop.candidate(), plan).unwrap();
    let new = new.id(RolloutId::try_from("shop-1").unwrap()).by("ana").unwrap();
    let outcome = engine.start(new).await.unwrap().finished().await;
    engine.shutdown(Duration::from_secs(60)).await;
    outcome
}

/// Each request with an effect goes wrong in each way; nothing is ever released twice, and the end is the same.
async fn sweep_requests(shop: Shop, bad: bool) {
    shop.reset().await;
    let calm = roll_out(&shop, bad).await.rollout;
    let effects = shop.heroku.effects();
    let expected = if bad { (1, 1) } else { (1, 0) };
    assert_eq!(released(&shop.heroku, "shop"), expected, "undisturbed: {:?}", shop.heroku.releases("shop"));
    assert!(effects > 0);
    let faults = [Fault::LoseAnswer, Fault::UnavailableAfter, Fault::UnavailableBefore, Fault::Throttle];
    for at in 0..effects {
        for fault in faults {
            shop.reset().await;
            shop.heroku.fault(at, fault);
            let rollout = roll_out(&shop, bad).await.rollout;
            let seen = shop.heroku.releases("shop");
            assert_eq!(rollout.state.name(), calm.state.name(), "{fault:?} at {at}: {} {seen:?}", rollout);
            assert_eq!(released(&shop.heroku, "shop"), expected, "{fault:?} at {at}: {seen:?}");
        }
    }
    eprintln!("{} requests with an effect, each with {} faults", effects, faults.len());
}

#[tokio::test(start_paused = true)]
async fn no_lost_answer_makes_a_second_release() {
    for make in [a_slug, a_source, an_image] {
        sweep_requests(Shop::new(make), false).await;
        sweep_requests(Shop::new(make), true).await;
    }
    sweep_requests(Shop::new(a_slug).app(|app| app.code_only()), true).await;
}

#[tokio::test(start_paused = true)]
async fn no_release_is_made_twice_because_a_list_lags() {
    for lag in [2, 6, 30] {
        for (make, bad) in [(a_slug as crate::support::Make, true), (a_source, true), (an_image, false)] {
            let shop = Shop::new(make);
            shop.reset().await;
            shop.heroku.lists_lag(Duration::from_secs(lag));
            let rollout = roll_out(&shop, bad).await.rollout;
            let expected = if bad { (1, 1) } else { (1, 0) };
            assert_eq!(
                released(&shop.heroku, "shop"),
                expected,
                "lag {lag}: {rollout} {:?}",
                shop.heroku.releases("shop")
            );
            assert!(matches!(rollout.state, State::Promoted | State::RolledBack { .. }), "lag {lag}: {rollout}");
        }
    }
}

/// A candidate whose tarball is of this machine is uploaded on the way.
#[tokio::test(start_paused = true)]
async fn a_tarball_is_uploaded_built_and_released_once_whatever_is_lost() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "tarball").unwrap();
    let candidate = rollback_heroku::Candidate::tarball(file.path()).await.unwrap().version("v42").revision().unwrap();
    for fault in [None, Some((0, Fault::LoseAnswer)), Some((1, Fault::LoseAnswer)), Some((1, Fault::UnavailableAfter))]
    {
        let shop = Shop::new(a_slug);
        shop.reset().await;
        if let Some((at, fault)) = fault {
            shop.heroku.fault(at, fault);
        }
        let engine = Engine::builder(Memory::new()).clock(shop.heroku.clock()).build().unwrap();
        engine.register(Target::new("shop", shop.backend()).unwrap()).unwrap();
        let plan = Plan::all_at_once(Duration::from_secs(60)).unwrap();
        let new = NewRollout::new("shop", candidate.clone(), plan).unwrap();
        let outcome = engine.start(new).await.unwrap().finished().await;
        assert_eq!(outcome.rollout.state, State::Promoted, "{fault:?}: {}", outcome.rollout);
        assert_eq!(released(&shop.heroku, "shop"), (1, 0), "{fault:?}");
        assert!(shop.heroku.releases("shop")[1].2.contains("v42"));
        let backend: Arc<dyn rollback_core::backend::DeploymentBackend> = shop.connect().await;
        assert_eq!(backend.baseline().await.unwrap().id, candidate.id, "a source that serves is known as one");
    }
}

/// An upload that takes longer than the settle time, or than the engine waits for a shift, is neither done twice nor followed
/// by a build that nobody waits for any more.
#[tokio::test(start_paused = true)]
async fn a_slow_upload_is_made_and_built_once_and_never_after_the_end() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "tarball").unwrap();
    let candidate = rollback_heroku::Candidate::tarball(file.path()).await.unwrap().revision().unwrap();
    for (seconds, abort) in [(5, false), (45, false), (200, false), (5, true), (45, true), (200, true)] {
        let shop = Shop::new(a_slug);
        shop.reset().await;
        shop.heroku.answers_take(Duration::ZERO, Duration::from_secs(seconds));
        let engine = Engine::builder(Memory::new()).clock(shop.heroku.clock()).build().unwrap();
        engine.register(Target::new("shop", shop.backend()).unwrap()).unwrap();
        let plan = Plan::all_at_once(Duration::from_secs(60)).unwrap();
        let handle = engine.start(NewRollout::new("shop", candidate.clone(), plan).unwrap()).await.unwrap();
        if abort {
            while shop.heroku.effects() == 0 {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            handle.abort("ana", "enough").await.unwrap();
        }
        let rollout = handle.finished().await.rollout;
        let at_the_end = released(&shop.heroku, "shop");
        // Whatever were still to come would come now.
        tokio::time::sleep(Duration::from_secs(900)).await;
        let said = format!("{seconds} s, aborted: {abort}: {rollout} {:?}", shop.heroku.exchanges());
        assert_eq!(released(&shop.heroku, "shop"), at_the_end, "it released after the end: {said}");
        let asked = |method: &str, path: &str| {
            shop.heroku.exchanges().iter().filter(|it| it.method == method && it.path.starts_with(path)).count()
        };
        let (uploads, builds) = (asked("PUT", "/"), asked("POST", "/apps/shop/builds"));
        assert_eq!(uploads, 1, "{said}");
        if abort {
            assert!(matches!(rollout.state, State::RolledBack { .. }), "{said}");
            assert!(builds <= 1 && shop.heroku.serving("shop") != 2, "{said}");
        } else {
            assert_eq!(
                (&rollout.state, builds, released(&shop.heroku, "shop")),
                (&State::Promoted, 1, (1, 0)),
                "{said}"
            );
        }
        engine.shutdown(Duration::from_secs(1)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_candidate_is_not_asked_for_when_finding_out_took_too_long_and_the_baseline_is() {
    for make in [a_slug, a_source, an_image] {
        let shop = Shop::new(make);
        shop.reset().await;
        let mut driver = Driver::new(&shop).await;
        let version = driver.look(Goal::Candidate).await.version;
        let attempt = driver.save(Goal::Candidate, &version);
        shop.heroku.answers_take(Duration::from_secs(16), Duration::ZERO);
        let error = driver.send(&attempt).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
        assert_eq!(shop.heroku.effects(), 0);

        shop.heroku.answers_take(Duration::ZERO, Duration::ZERO);
        driver.drive(Goal::Candidate).await;
        let version = driver.look(Goal::Baseline).await.version;
        let attempt = driver.save(Goal::Baseline, &version);
        shop.heroku.answers_take(Duration::from_secs(16), Duration::ZERO);
        // It may take longer than the driver waits; it lands.
        drop(driver.send(&attempt).await);
        assert_eq!(released(&shop.heroku, "shop"), (1, 1));
    }
}
