//! The gate that compares, in an engine on fakes.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use rollback_core::{
    ErrorKind, Result,
    engine::{Engine, NewRollout, Outcome, Target},
    gate::{
        Budget, Compare, Policy,
        source::{MetricSource, Query, Reading},
    },
    model::Revision,
    plan::Plan,
    state::{Cause, State},
    store::Memory,
    testing::{clock::TestClock, fakes::Fake, source::Traffic},
};

/// Traffic that goes where the target sends it.
#[derive(Debug)]
struct Users {
    fake: Fake,
    traffic: Traffic,
}

#[async_trait]
impl MetricSource for Users {
    async fn read(&self, query: &Query) -> Result<Reading> {
        let stands = self.fake.stands();
        let percent = stands.iter().find(|(id, _)| id.as_str() == "v2").map_or(0, |(_, weight)| weight.percent());
        let share = f64::from(percent) / 100.0;
        self.traffic.flow_at(100.0, share);
        self.traffic.read(query).await
    }
}

struct Scene {
    store: Memory,
    clock: TestClock,
    fake: Fake,
    traffic: Traffic,
}

impl Scene {
    fn new(candidate_fails: f64) -> Self {
        Self {
            store: Memory::new(),
            clock: TestClock::new(),
            fake: Fake::new("v1", "v2"),
            traffic: Traffic::new(100.0, 0.0).failing(candidate_fails, 0.005),
        }
    }

    /// A process that drives.
    fn engine(&self) -> Engine {
        let engine = Engine::builder(self.store.clone()).clock(self.clock.clone()).build().unwrap();
        let users = Arc::new(Users { fake: self.fake.clone(), traffic: self.traffic.clone() });
        let gate = Compare::failures("errors", users, Budget::default().whole()).unwrap().clock(self.clock.clone());
        engine.register(Target::new("checkout", self.fake.clone()).unwrap().gate(gate, Policy::default())).unwrap();
        engine
    }
}

fn deploy() -> NewRollout {
    let plan = Plan::canary([10, 50, 100], Duration::from_secs(180)).unwrap();
    NewRollout::new("checkout", Revision::new("v2").unwrap(), plan).unwrap()
}

fn why(outcome: &Outcome) -> &str {
    match &outcome.rollout.state {
        State::RolledBack { cause: Cause::Unhealthy { why, .. } } => why.as_str(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn an_equal_candidate_is_promoted_through_all_steps() {
    let scene = Scene::new(0.005);
    let outcome = scene.engine().start(deploy()).await.unwrap().finished().await;
    assert_eq!(outcome.rollout.state, State::Promoted, "{outcome}");
    assert!(scene.fake.only("v2"));
}

#[tokio::test(start_paused = true)]
async fn a_regression_is_found_and_rolled_back() {
    let scene = Scene::new(0.05);
    let begun = tokio::time::Instant::now();
    let outcome = scene.engine().start(deploy()).await.unwrap().finished().await;
    assert!(why(&outcome).contains("requests failed") && why(&outcome).contains("evidence"), "{}", why(&outcome));
    assert!(begun.elapsed() < Duration::from_secs(120), "{:?}", begun.elapsed());
    assert!(scene.fake.only("v1"));
    let evidence = outcome.rollout.gates[0].evidence.as_ref().unwrap();
    assert_eq!(evidence.facts["alpha"], 0.01);
    assert!(evidence.facts["candidate"]["failures"].as_u64().unwrap() > 0);
}

#[tokio::test(start_paused = true)]
async fn evidence_survives_a_restart_in_the_middle() {
    // So slight that half of the evidence is not enough: found in one go, and to be found in as many looks with a
    // restart in between.
    let scene = Scene::new(0.02);
    let whole = scene.engine().start(deploy()).await.unwrap().finished().await;
    let (seconds, looks) = (whole.rollout.times.decision.unwrap(), whole.rollout.gates[0].judged);
    let seconds = seconds.duration_since(TestClock::START).as_secs();
    assert!(looks >= 6, "{looks}");

    let scene = Scene::new(0.02);
    let first = scene.engine();
    let handle = first.start(deploy()).await.unwrap();
    tokio::time::sleep(Duration::from_secs(seconds as u64 / 2)).await;
    first.shutdown(Duration::from_secs(1)).await;
    drop((handle, first));

    let second = scene.engine();
    let resumed = second.resume_all().await.unwrap();
    assert_eq!(resumed.handles.len(), 1);
    let outcome = resumed.handles[0].clone().finished().await;
    assert!(why(&outcome).contains("evidence"), "{outcome}");
    let again = outcome.rollout.gates[0].judged;
    assert!(again.abs_diff(looks) <= 3, "{again} looks with a restart, {looks} without");
    let (of_whole, of_both) = (&whole.rollout.gates[0].evidence, &outcome.rollout.gates[0].evidence);
    let seen = |evidence: &Option<rollback_core::gate::Evidence>| {
        evidence.as_ref().unwrap().facts["candidate"]["requests"].as_u64().unwrap()
    };
    assert!(seen(of_both).abs_diff(seen(of_whole)) <= 300, "{} and {}", seen(of_both), seen(of_whole));
}

#[tokio::test(start_paused = true)]
async fn a_source_that_is_away_neither_passes_nor_forgets() {
    let scene = Scene::new(0.005);
    let engine = scene.engine();
    let handle = engine.start(deploy()).await.unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
    scene.traffic.fault(Some(ErrorKind::Unavailable));
    tokio::time::sleep(Duration::from_secs(200)).await;
    let status = handle.status();
    assert_eq!(status.state.name(), "holding", "{status}");
    scene.traffic.fault(None);
    assert_eq!(handle.finished().await.rollout.state, State::Promoted);
}
