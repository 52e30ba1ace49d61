//! Canary pairs: the conformance suite and sweeps on an API server in memory, whole rollouts on a real one.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use rollback_core::{
    backend::DeploymentBackend,
    engine::{Engine, NewRollout, Outcome, Target},
    model::{Goal, Revision, Weight},
    plan::Plan,
    state::{Cause, State},
    store::Memory,
    testing::backend::Bench,
};
use rollback_k8s::{CanaryPair, Watches, testing::Cluster};
use serde_json::{Value, json};

use crate::support::{
    cluster::{self, PATIENCE, deployment, labelled, released},
    trial,
};

const PAIR: [&str; 2] = ["web-a", "web-b"];

pub(crate) fn side(mut object: Value, replicas: u32) -> Value {
    let name = object["metadata"]["name"].clone();
    object["spec"]["replicas"] = json!(replicas);
    labelled(object, &json!({ "app": "web", "side": name }))
}

pub(crate) fn service(label: &str) -> Value {
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
    watched: bool,
}

impl Scene {
    async fn new() -> Self {
        let cluster = Cluster::new();
        cluster.put(&service("web"));
        cluster.put(&side(deployment("web-a", "shop:1"), 4));
        cluster.put(&side(deployment("web-b", "shop:2"), 0));
        let candidate = pair(&cluster).await.candidate().await.unwrap();
        Self { cluster, candidate, watched: false }
    }

    async fn pair(&self) -> CanaryPair {
        let pair = pair(&self.cluster).await;
        if self.watched { pair.watched_by(&Watches::new(&self.cluster.client())) } else { pair }
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
        Arc::new(self.pair().await)
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
    trial::keeps_every_promise(&Scene::new().await).await;
}

#[tokio::test(start_paused = true)]
async fn a_pair_keeps_every_promise_by_watch() {
    let scene = Scene { watched: true, ..Scene::new().await };
    trial::keeps_every_promise(&scene).await;
    let goal = Goal::Split(Weight::try_from(50).unwrap());
    trial::hides_nothing_by_watch(&scene, &scene.cluster, "deployments", goal).await;
}

#[tokio::test(start_paused = true)]
async fn every_disturbance_of_a_pair_is_got_over() {
    trial::gets_over("pair", &Scene::new().await, &["bad canary"]).await;
}

#[tokio::test(start_paused = true)]
async fn every_disturbance_of_a_pair_is_got_over_by_watch() {
    let scene = Scene { watched: true, ..Scene::new().await };
    trial::gets_over("pair, by watch", &scene, &["bad canary"]).await;
}

async fn roll_out(backend: CanaryPair, candidate: Revision, steps: &[u8], bad: bool) -> Outcome {
    let plan = Plan::canary(steps.iter().copied(), Duration::from_secs(1)).unwrap();
    trial::roll_out(backend, candidate, plan, bad.then_some(100)).await
}

#[tokio::test(start_paused = true)]
async fn what_a_webhook_says_that_takes_no_dry_runs_is_listed_for_a_pair() {
    let scene = Scene::new().await;
    scene.cluster.take_no_dry_runs("deployments");
    let outcome = roll_out(scene.pair().await, scene.candidate(), &[20, 100], false).await;
    let counts = ["0 replicas of web-a", "4 replicas of web-a", "0 replicas of web-b", "4 replicas of web-b"];
    trial::promoted_untried(&outcome, &counts);
}

#[tokio::test(start_paused = true)]
async fn replicas_that_an_autoscaler_sets_are_not_written() {
    let scene = Scene::new().await;
    scene.cluster.put(&scaler());
    let outcome = roll_out(scene.pair().await, scene.candidate(), &[20, 100], false).await;
    assert!(matches!(outcome.rollout.state, State::Refused { .. }), "{outcome}");
    assert!(outcome.to_string().contains("HorizontalPodAutoscaler web sets the replicas of web-a"), "{outcome}");

    // One that turns up in the middle has them from then on.
    for watched in [false, true] {
        let scene = Scene { watched, ..Scene::new().await };
        let (rolling, candidate) = (scene.pair().await, scene.candidate());
        let rolling = tokio::spawn(async move { roll_out(rolling, candidate, &[20, 50, 100], false).await });
        while scene.replicas() != [json!(4), json!(1)] {
            assert!(!rolling.is_finished());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        scene.cluster.put(&scaler());
        let outcome = rolling.await.unwrap();
        assert!(matches!(outcome.rollout.state, State::Abandoned { .. }), "{outcome}");
        assert_eq!(scene.replicas(), [json!(4), json!(1)]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_service_that_does_not_select_both_is_refused() {
    let scene = Scene::new().await;
    scene.cluster.put(&service("other"));
    let outcome = roll_out(scene.pair().await, scene.candidate(), &[20, 100], false).await;
    assert!(matches!(outcome.rollout.state, State::Refused { .. }), "{outcome}");
    assert!(outcome.to_string().contains("Service web does not select the pods of web-b"), "{outcome}");
}

#[tokio::test(start_paused = true)]
async fn a_quota_that_leaves_no_room_for_the_candidate_beside_the_baseline_is_said_before_anything_changes() {
    let scene = Scene::new().await;
    let quota = |pods: &str| {
        json!({ "apiVersion": "v1", "kind": "ResourceQuota", "metadata": { "name": "small" },
            "spec": { "hard": { "pods": pods } }, "status": { "hard": { "pods": pods }, "used": { "pods": "4" } } })
    };
    scene.cluster.put(&quota("7"));
    let outcome = roll_out(scene.pair().await, scene.candidate(), &[20, 100], false).await;
    let why = "ResourceQuota small leaves 3 of pods, and the change takes 4 more at its height";
    assert!(outcome.to_string().contains(why), "{outcome}");
    assert_eq!(scene.replicas(), [json!(4), json!(0)]);
    scene.cluster.put(&quota("8"));
    let outcome = roll_out(scene.pair().await, scene.candidate(), &[20, 100], false).await;
    assert_eq!(outcome.rollout.state, State::Promoted, "{outcome}");
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
    let pair = async || CanaryPair::new(&space.client, &space.name, "web", PAIR).await.unwrap();
    let watches = Watches::new(&space.client);
    let replicas = || PAIR.map(|name| space.get("deployment", name)["spec"]["replicas"].clone());
    let candidate = pair().await.candidate().await.unwrap();
    let outcome = roll_out(pair().await.watched_by(&watches), candidate.clone(), &[33, 50, 100], true).await;
    assert!(matches!(outcome.rollout.state, State::RolledBack { cause: Cause::Unhealthy { .. } }), "{outcome}");
    assert_eq!(replicas(), [json!(2), json!(0)]);

    let outcome = roll_out(pair().await, candidate, &[33, 100], false).await;
    assert_eq!(outcome.rollout.state, State::Promoted, "{outcome}");
    assert_eq!(replicas(), [json!(0), json!(2)]);
}

/// At 100 % somebody else takes the room that the baseline had. Of one pod, for a ReplicaSet that was refused pods asks again
/// after ever longer pauses.
#[tokio::test(flavor = "multi_thread")]
async fn a_real_pair_comes_back_although_a_quota_leaves_no_room_beside_the_candidate() {
    let Some(space) = cluster::namespace().await else { return };
    space.apply(&service("web"));
    space.apply(&side(released("web-a", 1), 1));
    space.apply(&side(released("web-b", 2), 0));
    for name in PAIR {
        space.rolled_out(&format!("deployment/{name}"));
    }
    let pair = CanaryPair::new(&space.client, &space.name, "web", PAIR).await.unwrap();
    let candidate = pair.candidate().await.unwrap();
    let engine = Engine::new(Memory::new()).unwrap();
    let target = Target::new("web", pair).unwrap();
    engine.register(target.look_every(Duration::from_millis(100), Duration::from_millis(500))).unwrap();
    let plan = Plan::all_at_once(Duration::from_secs(600)).unwrap();
    let rolling = engine.start(NewRollout::new("web", candidate, plan).unwrap()).await.unwrap();
    let pods = || PAIR.map(|name| space.get("deployment", name)["status"]["availableReplicas"].as_u64().unwrap_or(0));
    space.until("only the candidate serves", async || pods() == [0, 1]).await;
    space.apply(&json!({ "apiVersion": "v1", "kind": "ResourceQuota", "metadata": { "name": "full" },
        "spec": { "hard": { "pods": "1" } } }));
    space.until("all is used", async || space.get("resourcequota", "full")["status"]["used"]["pods"] == "1").await;
    rolling.abort("a test", "it goes back").await.unwrap();
    let outcome = tokio::time::timeout(PATIENCE, rolling.finished()).await.expect("it comes back");
    assert!(matches!(outcome.rollout.state, State::RolledBack { .. }), "{outcome}");
    assert_eq!(pods(), [1, 0]);
}
