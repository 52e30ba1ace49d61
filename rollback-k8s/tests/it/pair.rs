//! Canary pairs: the conformance suite and sweeps on an API server in memory, whole rollouts on a real one.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use rollback_core::{
    backend::DeploymentBackend,
    engine::{Engine, NewRollout, Outcome, Target},
    gate::Policy,
    model::{Revision, Weight},
    plan::Plan,
    state::{Cause, State},
    store::Memory,
    testing::{
        backend::{self, Bench, Outcome as Kept},
        gates::Scripted,
        sweep::{Scenario, Sweep},
    },
};
use rollback_k8s::{CanaryPair, testing::Cluster};
use serde_json::{Value, json};

use crate::support::cluster::{self, deployment, released};

const PAIR: [&str; 2] = ["web-a", "web-b"];

fn side(mut object: Value, replicas: u32) -> Value {
    let name = object["metadata"]["name"].clone();
    object["spec"]["replicas"] = json!(replicas);
    let labels = json!({ "app": "web", "side": name });
    object["spec"]["selector"]["matchLabels"] = labels.clone();
    object["spec"]["template"]["metadata"]["labels"] = labels;
    object
}

fn service(label: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": "web" },
        "spec": { "selector": { "app": label }, "ports": [{ "port": 80 }] } })
}

fn scaler() -> Value {
    json!({ "apiVersion": "autoscaling/v1", "kind": "HorizontalPodAutoscaler", "metadata": { "name": "web" },
        "spec": { "scaleTargetRef": { "kind": "Deployment", "name": "web-a" }, "maxReplicas": 9 } })
}

struct Scene {
    cluster: Cluster,
    candidate: Revision,
}

impl Scene {
    async fn new() -> Self {
        let cluster = Cluster::new();
        cluster.put(&service("web"));
        cluster.put(&side(deployment("web-a", "shop:1"), 4));
        cluster.put(&side(deployment("web-b", "shop:2"), 0));
        let candidate = pair(&cluster).await.candidate().await.unwrap();
        Self { cluster, candidate }
    }

    fn replicas(&self) -> [Value; 2] {
        PAIR.map(|name| self.cluster.get("deployments", name).unwrap()["spec"]["replicas"].clone())
    }
}

async fn pair(cluster: &Cluster) -> CanaryPair {
    CanaryPair::new(&cluster.client(), "default", "web", PAIR).await.unwrap()
}

#[async_trait]
impl Bench for Scene {
    async fn reset(&self) {
        self.cluster.put(&side(deployment("web-a", "shop:1"), 4));
        self.cluster.put(&side(deployment("web-b", "shop:2"), 0));
    }

    async fn connect(&self) -> Arc<dyn DeploymentBackend> {
        Arc::new(pair(&self.cluster).await)
    }

    fn candidate(&self) -> Revision {
        self.candidate.clone()
    }

    async fn settle(&self) {
        tokio::time::sleep(Duration::from_millis(250)).await;
    }

    async fn drift(&self) -> bool {
        let mut object = self.cluster.get("deployments", "web-b").unwrap();
        object["spec"]["replicas"] = json!(3);
        self.cluster.put(&object);
        true
    }
}

#[tokio::test(start_paused = true)]
async fn a_pair_keeps_every_promise() {
    let scene = Scene::new().await;
    for (promise, outcome) in backend::all(&scene).await {
        if let Kept::Skipped(why) = outcome {
            println!("{promise} was skipped: {why}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn every_disturbance_of_a_pair_is_got_over() {
    let scene = Scene::new().await;
    let mut scenarios = Scenario::ready_made(&scene).await;
    scenarios.retain(|it| it.name() == "bad canary");
    assert_eq!(scenarios.len(), 1);
    eprintln!("pair: {}", Sweep::of(&scene).scenarios(scenarios).all().await);
}

async fn roll_out(backend: CanaryPair, candidate: Revision, steps: &[u8], bad: bool) -> Outcome {
    let gate = match bad {
        true => Scripted::unhealthy_from("errors", Weight::ALL),
        false => Scripted::healthy("errors"),
    };
    let engine = Engine::new(Memory::new()).unwrap();
    let target = Target::new("web", backend).unwrap().gate(gate, Policy::default().every(Duration::from_millis(100)));
    engine.register(target.look_every(Duration::from_millis(100), Duration::from_millis(500))).unwrap();
    let plan = Plan::canary(steps.iter().copied(), Duration::from_secs(1)).unwrap();
    let outcome = engine.start(NewRollout::new("web", candidate, plan).unwrap()).await.unwrap().finished().await;
    engine.shutdown(Duration::from_secs(5)).await;
    outcome
}

#[tokio::test(start_paused = true)]
async fn replicas_that_an_autoscaler_sets_are_not_written() {
    let scene = Scene::new().await;
    scene.cluster.put(&scaler());
    let outcome = roll_out(pair(&scene.cluster).await, scene.candidate(), &[20, 100], false).await;
    assert!(matches!(outcome.rollout.state, State::Refused { .. }), "{outcome}");
    assert!(outcome.to_string().contains("HorizontalPodAutoscaler web sets the replicas of web-a"), "{outcome}");

    // One that turns up in the middle has them from then on.
    scene.cluster.delete("horizontalpodautoscalers", "web");
    let rolling = pair(&scene.cluster).await;
    let rolling = tokio::spawn({
        let candidate = scene.candidate();
        async move { roll_out(rolling, candidate, &[20, 50, 100], false).await }
    });
    while scene.replicas() != [json!(4), json!(1)] {
        assert!(!rolling.is_finished());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    scene.cluster.put(&scaler());
    let outcome = rolling.await.unwrap();
    assert!(matches!(outcome.rollout.state, State::Abandoned { .. }), "{outcome}");
    assert_eq!(scene.replicas(), [json!(4), json!(1)]);
}

#[tokio::test(start_paused = true)]
async fn a_service_that_does_not_select_both_is_refused() {
    let scene = Scene::new().await;
    scene.cluster.put(&service("other"));
    let outcome = roll_out(pair(&scene.cluster).await, scene.candidate(), &[20, 100], false).await;
    assert!(matches!(outcome.rollout.state, State::Refused { .. }), "{outcome}");
    assert!(outcome.to_string().contains("Service web does not select the pods of web-b"), "{outcome}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_pair_is_promoted_and_brought_back() {
    let Some(space) = cluster::namespace().await else { return };
    space.apply(&service("web"));
    space.apply(&side(released("web-a", 1), 2));
    space.apply(&side(released("web-b", 2), 0));
    for name in PAIR {
        space.rolled_out(&format!("deployment/{name}"));
    }
    let pair = || CanaryPair::new(&space.client, &space.name, "web", PAIR);
    let replicas = || PAIR.map(|name| space.get("deployment", name)["spec"]["replicas"].clone());
    let candidate = pair().await.unwrap().candidate().await.unwrap();
    let outcome = roll_out(pair().await.unwrap(), candidate.clone(), &[33, 50, 100], true).await;
    assert!(matches!(outcome.rollout.state, State::RolledBack { cause: Cause::Unhealthy { .. } }), "{outcome}");
    assert_eq!(replicas(), [json!(2), json!(0)]);

    let outcome = roll_out(pair().await.unwrap(), candidate, &[33, 100], false).await;
    assert_eq!(outcome.rollout.state, State::Promoted, "{outcome}");
    assert_eq!(replicas(), [json!(0), json!(2)]);
}
