//! Promotions: conformance, sweeps, and what happens when one target of several fails.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use rollback_core::{
    ErrorKind,
    backend::DeploymentBackend,
    engine::{Engine, NewRollout, Outcome, Target},
    gate::Policy,
    model::{Change, Goal, Progress, Revision, RolloutId, TargetId, Weight},
    plan::Plan,
    state::{Cause, State},
    store::Memory,
    testing::{
        backend::{self, Bench, Driver, Outcome as Kept},
        gates::Scripted,
        sweep::Sweep,
    },
};
use rollback_heroku::{
    App, Promotion,
    testing::{Fault, Heroku, Run, Slug},
};

use crate::{
    support::{SETTLE, VALUE, released},
    sweeps::scenarios,
};

/// `staging` runs something new at v2; the targets do not.
struct Pipeline {
    heroku: Heroku,
    slug: Slug,
    to: &'static [&'static str],
    /// Whether each reset looks back and finds at most one promotion to each target, and one rollback.
    once: bool,
}

impl Pipeline {
    fn new(to: &'static [&'static str]) -> Self {
        Self { heroku: Heroku::new(), slug: Slug::good(), to, once: false }
    }

    fn promotion(&self, heroku: &Heroku) -> Promotion {
        let client = heroku.client();
        let app = |name: &&str| {
            App::new(&client, name).unwrap().steady_for(Duration::from_secs(5)).settle(Duration::from_secs(20))
        };
        Promotion::new(&client, "staging", self.to.iter().map(app)).unwrap().clock(heroku.clock())
    }

    fn seed(&self, heroku: &Heroku) {
        heroku.app("staging", Slug::good());
        heroku.couple("staging", "staging");
        for app in self.to {
            heroku.app(app, Slug::good().release_phase(Duration::from_secs(3)));
            heroku.couple(app, "production");
        }
        let slug = heroku.slug("staging", self.slug);
        heroku.somebody_releases("staging", &slug);
    }

    async fn candidate(&self) -> Revision {
        self.promotion(&self.heroku).candidate().await.unwrap()
    }

    async fn roll_out(&self, bad: bool) -> Outcome {
        let engine = Engine::builder(Memory::new()).clock(self.heroku.clock()).build().unwrap();
        let gate = match bad {
            true => Scripted::unhealthy_from("errors", Weight::ALL),
            false => Scripted::healthy("errors"),
        };
        engine
            .register(Target::new("shop", self.promotion(&self.heroku)).unwrap().gate(gate, Policy::default()))
            .unwrap();
        let plan = Plan::all_at_once(Duration::from_secs(60)).unwrap();
        let new = NewRollout::new("shop", self.candidate().await, plan).unwrap();
        let outcome = engine.start(new).await.unwrap().finished().await;
        engine.shutdown(Duration::from_secs(60)).await;
        outcome
    }

    /// Releases of each target beyond its first: how many promotions and rollbacks.
    fn releases(&self) -> Vec<(usize, usize)> {
        let count = |app: &str, words: &str| {
            self.heroku.releases(app).iter().filter(|(_, _, text, _)| text.starts_with(words)).count()
        };
        self.to.iter().map(|app| (count(app, "Promote"), count(app, "Rollback"))).collect()
    }
}

#[async_trait]
impl Bench for Pipeline {
    async fn reset(&self) {
        if self.once && self.heroku.has(self.to[0]) {
            let once = self.to.iter().all(|app| matches!(released(&self.heroku, app), (0 | 1, 0 | 1)));
            assert!(
                once,
                "released more than once: {:#?}",
                self.to.iter().map(|app| self.heroku.releases(app)).collect::<Vec<_>>()
            );
        }
        self.heroku.clear();
        self.seed(&self.heroku);
    }

    async fn connect(&self) -> Arc<dyn DeploymentBackend> {
        Arc::new(self.promotion(&self.heroku))
    }

    fn candidate(&self) -> Revision {
        // Ids are counted, so another Heroku has the same; its looks end at once.
        let heroku = Heroku::new();
        self.seed(&heroku);
        let promotion = self.promotion(&heroku);
        let mut candidate = Box::pin(promotion.candidate());
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        loop {
            if let std::task::Poll::Ready(candidate) = candidate.as_mut().poll(&mut context) {
                return candidate.unwrap();
            }
        }
    }

    fn missing(&self) -> Revision {
        let mut candidate = Bench::candidate(self);
        let mut spec: serde_json::Value = candidate.spec.open().unwrap();
        spec["release"] = "00000000-0000-4000-8000-00000000dead".into();
        spec["code"] = "slug:00000000-0000-4000-8000-00000000dead".into();
        spec["version"] = 99.into();
        candidate = Revision::new("slug:00000000-0000-4000-8000-00000000dead").unwrap().with_spec(&spec).unwrap();
        candidate
    }

    async fn settle(&self) {
        tokio::time::sleep(SETTLE).await;
    }

    async fn drift(&self) -> bool {
        self.heroku.set_config(self.to[self.to.len() - 1], "FLAG", "on");
        true
    }

    fn secret(&self) -> Option<String> {
        Some(VALUE.into())
    }
}

#[tokio::test(start_paused = true)]
async fn a_promotion_keeps_every_promise() {
    for to in [["shop-eu"].as_slice(), ["shop-eu", "shop-us", "shop-ap"].as_slice()] {
        for (promise, outcome) in backend::all(&Pipeline::new(to)).await {
            let Kept::Skipped(why) = outcome else { continue };
            let explained = ["the platform checks no versions", "the baseline does not stand here"];
            assert!(explained.contains(&why), "{promise} was skipped: {why}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn every_disturbance_of_a_promotion_is_got_over() {
    let one = Pipeline { once: true, ..Pipeline::new(&["shop-eu"]) };
    let sweep = Sweep::of(&one).scenarios(scenarios(&one).await);
    eprintln!("one target: {}", sweep.all().await);
    one.reset().await;
    let two = Pipeline { once: true, ..Pipeline::new(&["shop-eu", "shop-us"]) };
    let sweep = Sweep::of(&two).scenarios(scenarios(&two).await);
    let mut summary = sweep.crashes().await;
    summary += sweep.lost_answers().await;
    summary += sweep.repeats().await;
    eprintln!("two targets: {summary}");
    two.reset().await;
}

#[tokio::test(start_paused = true)]
async fn no_lost_answer_promotes_or_rolls_back_twice() {
    for bad in [false, true] {
        let pipeline = Pipeline::new(&["shop-eu", "shop-us"]);
        pipeline.reset().await;
        pipeline.roll_out(bad).await;
        let effects = pipeline.heroku.effects();
        let expected = vec![(1, usize::from(bad)); 2];
        assert_eq!(pipeline.releases(), expected);
        for at in 0..effects {
            for fault in [Fault::LoseAnswer, Fault::UnavailableAfter, Fault::UnavailableBefore, Fault::Throttle] {
                pipeline.reset().await;
                pipeline.heroku.fault(at, fault);
                let rollout = pipeline.roll_out(bad).await.rollout;
                assert_eq!(pipeline.releases(), expected, "{fault:?} at {at}: {rollout}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn no_promotion_is_made_twice_because_a_list_lags() {
    for lag in [2, 10] {
        let pipeline = Pipeline::new(&["shop-eu", "shop-us"]);
        pipeline.reset().await;
        pipeline.heroku.lists_lag(Duration::from_secs(lag));
        tokio::time::sleep(Duration::from_secs(lag)).await;
        let rollout = pipeline.roll_out(true).await.rollout;
        assert_eq!(pipeline.releases(), [(1, 1), (1, 1)], "lag {lag}: {rollout}");
    }
}

#[tokio::test(start_paused = true)]
async fn when_one_target_is_refused_those_that_took_it_are_rolled_back() {
    let pipeline = Pipeline::new(&["shop-eu", "shop-us"]);
    pipeline.reset().await;
    pipeline.heroku.refuse_promotions("shop-us", "The stack of the app is too old.");
    let rollout = pipeline.roll_out(false).await.rollout;
    let State::RolledBack { cause: Cause::Failed { why } } = &rollout.state else { panic!("{rollout}") };
    assert!(why.as_str().contains("shop-us") && why.as_str().contains("stack of the app is too old"), "{why}");
    assert_eq!(pipeline.releases(), [(1, 1), (0, 0)]);
    assert_eq!((pipeline.heroku.serving("shop-eu"), pipeline.heroku.serving("shop-us")), (3, 1));
}

#[tokio::test(start_paused = true)]
async fn when_the_release_phase_of_one_target_fails_those_that_took_it_are_rolled_back() {
    let mut pipeline = Pipeline::new(&["shop-eu", "shop-us"]);
    pipeline.slug = Slug::good().release_phase(Duration::from_secs(10));
    pipeline.reset().await;
    tokio::time::sleep(Duration::from_secs(20)).await;
    pipeline.heroku.fail_release_phases("shop-us", &[false]);
    let rollout = pipeline.roll_out(false).await.rollout;
    let State::RolledBack { cause: Cause::Failed { why } } = &rollout.state else { panic!("{rollout}") };
    assert!(why.as_str().starts_with("shop-us: v2 failed in its release phase"), "{why}");
    assert_eq!(pipeline.releases(), [(1, 1), (1, 0)], "who never took it is left alone");
}

#[tokio::test(start_paused = true)]
async fn when_somebody_else_took_one_target_the_others_still_go_back() {
    let pipeline = Pipeline::new(&["shop-eu", "shop-us"]);
    pipeline.reset().await;
    let mut driver = Driver::new(&pipeline).await;
    driver.drive(Goal::Candidate).await;
    pipeline.heroku.set_config("shop-eu", "FLAG", "on");
    let look = driver.look(Goal::Baseline).await;
    assert_eq!(look.progress, Progress::Due("shop-us: roll back to v1".into()));
    let attempt = driver.save(Goal::Baseline, &look.version);
    driver.send(&attempt).await.unwrap();
    let mut look = driver.look(Goal::Baseline).await;
    while matches!(look.progress, Progress::Underway(_)) {
        pipeline.settle().await;
        look = driver.look(Goal::Baseline).await;
    }
    assert!(matches!(&look.progress, Progress::Drifted(what) if what.as_str().starts_with("shop-eu: v3")), "{look:?}");
    assert_eq!(pipeline.releases(), [(1, 0), (1, 1)]);
}

#[tokio::test(start_paused = true)]
async fn a_target_that_crashes_takes_the_others_back_with_it() {
    let mut pipeline = Pipeline::new(&["shop-eu", "shop-us"]);
    pipeline.slug = Slug::that(Run::CrashAtBoot);
    pipeline.reset().await;
    let rollout = pipeline.roll_out(false).await.rollout;
    assert!(matches!(rollout.state, State::RolledBack { .. }), "{rollout}");
    assert_eq!(pipeline.releases(), [(1, 1), (1, 1)]);
}

#[tokio::test(start_paused = true)]
async fn what_is_wrong_with_a_pipeline_is_told_before_anything_changes() {
    let heroku = Heroku::new();
    let client = heroku.client();
    let app = |name: &str| App::new(&client, name).unwrap();
    for (to, words) in
        [(vec![], "a promotion to 0 apps"), (vec!["staging"], "to itself"), (vec!["shop-eu", "shop-eu"], "named twice")]
    {
        let error = Promotion::new(&client, "staging", to.into_iter().map(app)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.to_string().contains(words), "{error}");
    }
    let pipeline = Pipeline::new(&["shop-eu"]);
    pipeline.seed(&pipeline.heroku);
    pipeline.heroku.app("alone", Slug::good());
    let promotion =
        Promotion::new(&pipeline.heroku.client(), "staging", [App::new(&pipeline.heroku.client(), "alone").unwrap()]);
    let promotion = promotion.unwrap().clock(pipeline.heroku.clock());
    let target = TargetId::try_from("shop").unwrap();
    let (baseline, candidate) = (promotion.baseline().await.unwrap(), promotion.candidate().await.unwrap());
    let change = Change { rollout: RolloutId::fresh(&target), target, baseline, candidate };
    let ready = promotion.preflight(&change, &Plan::all_at_once(Duration::ZERO).unwrap()).await.unwrap();
    assert!(ready.refused.iter().any(|note| note.as_str() == "app alone is in no pipeline"), "{ready:?}");
    assert_eq!(pipeline.heroku.effects(), 0);
}
