//! Switched Services: the conformance suite and the sweeps on an API server in memory, whole rollouts on a real one.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use rollback_core::{
    ErrorKind,
    backend::DeploymentBackend,
    engine::Outcome,
    model::{Change, Revision, RolloutId, TargetId},
    plan::Plan,
    state::{Cause, State},
    testing::backend::Bench,
};
use rollback_k8s::{
    ServiceSwitch,
    testing::{Cluster, Fault},
};
use serde_json::{Value, json};

use crate::support::{
    cluster::{self, labelled, released},
    trial,
};

fn service(name: &str, color: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": name, "labels": { "app": "shop" } },
        "spec": { "selector": { "app": "shop", "color": color }, "ports": [{ "port": 80 }] } })
}

fn pod(color: &str, ready: bool) -> Value {
    json!({ "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": format!("shop-{color}-1"), "labels": { "app": "shop", "color": color } },
        "status": { "conditions": [{ "type": "Ready", "status": if ready { "True" } else { "False" } }] } })
}

struct Scene {
    cluster: Cluster,
    candidate: Revision,
}

impl Scene {
    async fn new() -> Self {
        let cluster = Cluster::new();
        cluster.put(&service("shop", "blue"));
        cluster.put(&service("shop-preview", "none"));
        cluster.put(&pod("blue", true));
        cluster.put(&pod("green", true));
        let candidate = switch(&cluster).revision("shop:2", [("color", "green")]).await.unwrap();
        Self { cluster, candidate }
    }

    fn color(&self, name: &str) -> Value {
        self.cluster.get("services", name).unwrap()["spec"]["selector"]["color"].clone()
    }
}

fn switch(cluster: &Cluster) -> ServiceSwitch {
    ServiceSwitch::new(&cluster.client(), "default", "shop").unwrap().preview("shop-preview").unwrap()
}

#[async_trait]
impl Bench for Scene {
    async fn reset(&self) {
        self.cluster.put(&service("shop", "blue"));
        self.cluster.put(&service("shop-preview", "none"));
    }

    async fn connect(&self) -> Arc<dyn DeploymentBackend> {
        Arc::new(switch(&self.cluster))
    }

    fn candidate(&self) -> Revision {
        self.candidate.clone()
    }

    async fn settle(&self) {
        tokio::time::sleep(Duration::from_millis(250)).await;
    }

    async fn drift(&self) -> bool {
        let mut object = self.cluster.get("services", "shop").unwrap();
        object["spec"]["selector"]["color"] = json!("red");
        self.cluster.put(&object);
        true
    }
}

#[tokio::test(start_paused = true)]
async fn a_switched_service_keeps_every_promise() {
    trial::keeps_every_promise(&Scene::new().await).await;
}

#[tokio::test(start_paused = true)]
async fn every_disturbance_of_a_switched_service_is_got_over() {
    trial::gets_over("Service", &Scene::new().await, &["blue/green", "bad all at once"]).await;
}

async fn roll_out(backend: ServiceSwitch, candidate: Revision, healthy: bool, bake: Duration) -> Outcome {
    let plan = Plan::blue_green(bake, bake).unwrap();
    trial::roll_out(backend, candidate, plan, (!healthy).then_some(100)).await
}

const BAKE: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn what_speaks_against_a_switch_is_said_before_anything_changes() {
    type Case = (fn(&Cluster), &'static str);
    let cases: [Case; 6] = [
        (|cluster| drop(cluster.put(&pod("green", false))), "no pod of the candidate is ready (app=shop, color=green)"),
        (|cluster| cluster.delete("pods", "shop-blue-1"), "no pod of the baseline is ready (app=shop, color=blue)"),
        (|cluster| cluster.deny("patch", "services"), "may not patch services in namespace default"),
        (|cluster| cluster.deny("list", "pods"), "pods is forbidden"),
        (|cluster| cluster.deny("list", "endpointslices"), "endpointslices is forbidden"),
        (
            |cluster| {
                let mut object = service("shop", "blue");
                object["metadata"]["labels"]["helm.toolkit.fluxcd.io/name"] = json!("shop");
                cluster.put(&object);
            },
            "Flux's HelmRelease shop owns Service shop",
        ),
    ];
    for (change, why) in cases {
        let scene = Scene::new().await;
        change(&scene.cluster);
        let outcome = roll_out(switch(&scene.cluster), scene.candidate(), true, BAKE).await;
        assert!(matches!(outcome.rollout.state, State::Refused { .. }), "{why}: {outcome}");
        assert!(outcome.to_string().contains(why), "{why}: {outcome}");
        assert_eq!((scene.color("shop"), scene.color("shop-preview")), (json!("blue"), json!("none")), "{why}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_webhook_says_that_takes_no_dry_runs_is_listed_for_a_service_and_its_preview() {
    let scene = Scene::new().await;
    scene.cluster.take_no_dry_runs("services");
    let outcome = roll_out(switch(&scene.cluster), scene.candidate(), true, BAKE).await;
    let selectors = [
        "the candidate's selector for Service shop",
        "the recorded selector for Service shop",
        "the candidate's selector for Service shop-preview",
        "the recorded selector for Service shop-preview",
    ];
    trial::promoted_untried(&outcome, &selectors);
}

#[tokio::test(start_paused = true)]
async fn a_selector_that_admission_would_refuse_on_the_way_back_is_no_way_back() {
    let scene = Scene::new().await;
    scene.cluster.put(&service("shop", "forbidden-by-admission"));
    scene.cluster.put(&pod("forbidden-by-admission", true));
    let target = TargetId::try_from("shop").unwrap();
    let baseline = switch(&scene.cluster).baseline().await.unwrap();
    let change = Change { rollout: RolloutId::fresh(&target), target, baseline, candidate: scene.candidate() };
    let plan = Plan::blue_green(BAKE, BAKE).unwrap();
    let prove = async || switch(&scene.cluster).preflight(&change, &plan).await.unwrap();
    // Where it stands it passes, and a preview is tried with what it gets back, which is its own.
    let ready = prove().await;
    assert_eq!((ready.no_way_back, ready.refused), (vec![], vec![]));
    scene.cluster.put(&service("shop", "red"));
    let ready = prove().await;
    let [why] = &*ready.no_way_back else { panic!("{ready:?}") };
    assert!(why.as_str().starts_with("the recorded selector for Service shop would not be accepted: "), "{why}");
    assert!(why.as_str().contains("not from our registry") && ready.refused.is_empty(), "{ready:?}");
}

#[tokio::test(start_paused = true)]
async fn the_preview_shows_the_candidate_before_users_see_it_and_is_given_back() {
    let scene = Scene::new().await;
    let rolling = tokio::spawn(roll_out(switch(&scene.cluster), scene.candidate(), false, Duration::from_secs(20)));
    while scene.color("shop-preview") != "green" {
        assert!(!rolling.is_finished());
        assert_eq!(scene.color("shop"), "blue");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // Only with all connections does its gate condemn it: the Service was switched in between.
    let outcome = rolling.await.unwrap();
    assert!(matches!(outcome.rollout.state, State::RolledBack { cause: Cause::Unhealthy { .. } }), "{outcome}");
    assert_eq!((scene.color("shop"), scene.color("shop-preview")), (json!("blue"), json!("none")));
}

#[tokio::test(start_paused = true)]
async fn a_service_is_not_switched_to_pods_that_are_not_ready() {
    let scene = Scene::new().await;
    let rolling = tokio::spawn(roll_out(switch(&scene.cluster), scene.candidate(), true, Duration::from_secs(20)));
    while scene.color("shop-preview") != "green" {
        assert!(!rolling.is_finished());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    scene.cluster.put(&pod("green", false));
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(scene.color("shop"), "blue");
    scene.cluster.put(&pod("green", true));
    let outcome = rolling.await.unwrap();
    assert_eq!(outcome.rollout.state, State::Promoted, "{outcome}");
    assert_eq!(scene.color("shop"), "green");
    assert_eq!(switch(&scene.cluster).baseline().await.unwrap().id.as_str(), "shop:2");
}

#[tokio::test(start_paused = true)]
async fn a_preview_whose_write_fails_is_written_by_the_next_shift() {
    for fault in [Fault::LoseRequest, Fault::LoseAnswer, Fault::Refuse(503, 0), Fault::LandLate(Duration::from_secs(9))]
    {
        let scene = Scene::new().await;
        let rolling = tokio::spawn(roll_out(switch(&scene.cluster), scene.candidate(), false, BAKE));
        tokio::time::sleep(Duration::from_millis(10)).await;
        scene.cluster.fault("/services/shop-preview?fieldManager=rollback", 2, fault.clone());
        let outcome = rolling.await.unwrap();
        assert!(matches!(outcome.rollout.state, State::RolledBack { .. }), "{fault:?}: {outcome}");
        tokio::time::sleep(Duration::from_secs(20)).await;
        assert_eq!((scene.color("shop"), scene.color("shop-preview")), (json!("blue"), json!("none")), "{fault:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn labels_that_the_selector_does_not_have_are_refused() {
    let scene = Scene::new().await;
    let unknown = switch(&scene.cluster).revision("shop:2", [("colour", "green")]).await.unwrap_err();
    assert_eq!(unknown.kind(), ErrorKind::Invalid);
    assert!(unknown.to_string().contains("has no label colour"), "{unknown}");
    assert!(switch(&scene.cluster).preview("shop").is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_service_is_switched_and_switched_back() {
    let Some(space) = cluster::namespace().await else { return };
    for color in ["blue", "green"] {
        let object = released(&format!("shop-{color}"), 1);
        space.apply(&labelled(object, &json!({ "app": "shop", "color": color })));
    }
    space.apply(&service("shop", "blue"));
    space.apply(&service("shop-preview", "none"));
    for color in ["blue", "green"] {
        space.rolled_out(&format!("deployment/shop-{color}"));
    }
    let shop = || ServiceSwitch::new(&space.client, &space.name, "shop").unwrap().preview("shop-preview").unwrap();
    let color = |name: &str| space.get("service", name)["spec"]["selector"]["color"].clone();
    let candidate = shop().revision("shop:2", [("color", "green")]).await.unwrap();

    let outcome = roll_out(shop(), candidate.clone(), false, BAKE).await;
    assert!(matches!(outcome.rollout.state, State::RolledBack { .. }), "{outcome}");
    assert_eq!((color("shop"), color("shop-preview")), (json!("blue"), json!("none")));

    let outcome = roll_out(shop(), candidate, true, BAKE).await;
    assert_eq!(outcome.rollout.state, State::Promoted, "{outcome}");
    assert_eq!((color("shop"), color("shop-preview")), (json!("green"), json!("green")));
    assert_eq!(shop().baseline().await.unwrap().id.as_str(), "shop:2");
}
