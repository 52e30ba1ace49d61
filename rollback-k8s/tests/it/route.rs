//! HTTPRoutes: the conformance suite and the sweeps on an API server in memory, whole rollouts on a real one whose gateway
//! this test plays.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use rollback_core::{
    ErrorKind,
    backend::DeploymentBackend,
    engine::Outcome,
    model::{Change, Goal, Progress, Revision, RolloutId, TargetId, Weight},
    plan::Plan,
    state::State,
    testing::backend::Bench,
};
use rollback_k8s::{HttpRoute, Watches, testing::Cluster};
use serde_json::{Value, json};

use crate::support::{
    cluster::{self, released},
    gateway, trial,
};

pub(crate) const SERVICES: [&str; 2] = ["shop-blue", "shop-green"];

/// A route whose second rule divides requests, blue having all, with a filter and a port that must stay.
pub(crate) fn manifest(blue: i64, green: i64) -> Value {
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
        "metadata": { "name": "shop", "labels": { "app": "shop" } },
        "spec": {
            "parentRefs": [{ "name": "outer" }, { "name": "inner", "sectionName": "https" }],
            "rules": [
                { "matches": [{ "path": { "value": "/admin" } }], "backendRefs": [{ "name": "shop-blue", "port": 80 }] },
                { "backendRefs": [
                    { "name": "shop-blue", "port": 80, "weight": blue },
                    { "name": "shop-green", "port": 80, "weight": green,
                      "filters": [{ "type": "RequestHeaderModifier" }] },
                ] },
            ],
        },
    })
}

pub(crate) fn service(name: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": name },
        "spec": { "selector": { "app": name }, "ports": [{ "port": 80 }] } })
}

pub(crate) fn pod(app: &str, ready: bool) -> Value {
    json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": format!("{app}-1"), "labels": { "app": app } },
        "status": { "conditions": [{ "type": "Ready", "status": if ready { "True" } else { "False" } }] } })
}

struct Scene {
    cluster: Cluster,
    watched: bool,
}

impl Scene {
    fn new() -> Self {
        let cluster = Cluster::new();
        for name in SERVICES {
            cluster.put(&service(name));
            cluster.put(&pod(name, true));
        }
        cluster.put(&manifest(1, 0));
        Self { cluster, watched: false }
    }

    fn route(&self) -> HttpRoute {
        let client = self.cluster.client();
        let route = HttpRoute::new(&client, "default", "shop", SERVICES).unwrap();
        if self.watched { route.watched_by(&Watches::new(&client)) } else { route }
    }

    /// The rule with both Services is there twice: as `pages` and as `api`.
    async fn two_rules(&self) {
        let mut object = manifest(1, 0);
        let mut second = object["spec"]["rules"][1].clone();
        object["spec"]["rules"][1]["name"] = json!("pages");
        second["name"] = json!("api");
        object["spec"]["rules"].as_array_mut().unwrap().push(second);
        self.cluster.put(&object);
        tokio::time::sleep(Duration::from_secs(2)).await;
    }

    fn weights(&self) -> (Value, Value) {
        let refs = self.cluster.get("httproutes", "shop").unwrap()["spec"]["rules"][1]["backendRefs"].clone();
        (refs[0]["weight"].clone(), refs[1]["weight"].clone())
    }
}

#[async_trait]
impl Bench for Scene {
    async fn reset(&self) {
        self.cluster.put(&manifest(1, 0));
        tokio::time::sleep(Duration::from_secs(2)).await;
    }

    async fn connect(&self) -> Arc<dyn DeploymentBackend> {
        Arc::new(self.route())
    }

    fn candidate(&self) -> Revision {
        self.route().revision("shop:2", "shop-green").unwrap()
    }

    async fn settle(&self) {
        tokio::time::sleep(Duration::from_millis(250)).await;
    }

    async fn drift(&self) -> bool {
        let mut object = self.cluster.get("httproutes", "shop").unwrap();
        object["spec"]["rules"][1]["backendRefs"][0]["weight"] = json!(7);
        self.cluster.put(&object);
        true
    }
}

#[tokio::test(start_paused = true)]
async fn a_route_keeps_every_promise() {
    trial::keeps_every_promise(&Scene::new()).await;
}

#[tokio::test(start_paused = true)]
async fn a_route_keeps_every_promise_by_watch() {
    let scene = Scene { watched: true, ..Scene::new() };
    trial::keeps_every_promise(&scene).await;
    let goal = Goal::Split(Weight::try_from(50).unwrap());
    trial::hides_nothing_by_watch(&scene, &scene.cluster, "httproutes", goal).await;
}

#[tokio::test(start_paused = true)]
async fn every_disturbance_of_a_route_is_got_over() {
    trial::gets_over("HTTPRoute", &Scene::new(), &["bad canary", "blue/green", "aborted while shifting"]).await;
}

#[tokio::test(start_paused = true)]
async fn every_disturbance_of_a_route_is_got_over_by_watch() {
    let scene = Scene { watched: true, ..Scene::new() };
    trial::gets_over("HTTPRoute, by watch", &scene, &["bad canary"]).await;
}

async fn roll_out(backend: HttpRoute, candidate: Revision, unhealthy_from: Option<u8>, bake: Duration) -> Outcome {
    let plan = Plan::canary([10, 50, 100], bake).unwrap();
    trial::roll_out(backend, candidate, plan, unhealthy_from).await
}

const BAKE: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn what_is_not_ours_in_a_route_stays_as_it_was() {
    let scene = Scene::new();
    let before = scene.cluster.get("httproutes", "shop").unwrap();
    let outcome = roll_out(scene.route(), scene.candidate(), None, BAKE).await;
    assert_eq!(outcome.rollout.state, State::Promoted, "{outcome}");
    assert_eq!(scene.weights(), (json!(0), json!(100)));
    let mut after = scene.cluster.get("httproutes", "shop").unwrap();
    after["spec"]["rules"][1]["backendRefs"][0]["weight"] = json!(1);
    after["spec"]["rules"][1]["backendRefs"][1]["weight"] = json!(0);
    assert_eq!(after["spec"], before["spec"]);
    assert_eq!(scene.route().baseline().await.unwrap().id.as_str(), "shop:2");

    // The colours change places, and the name goes with what serves.
    let next = scene.route().revision("shop:3", "shop-blue").unwrap();
    let outcome = roll_out(scene.route(), next, Some(50), BAKE).await;
    assert!(matches!(outcome.rollout.state, State::RolledBack { .. }), "{outcome}");
    assert_eq!(scene.weights(), (json!(0), json!(100)));
    assert_eq!(scene.route().baseline().await.unwrap().id.as_str(), "shop:2");
}

#[tokio::test(start_paused = true)]
async fn what_speaks_against_a_route_is_said_before_anything_changes() {
    type Case = (fn(&Cluster), &'static str);
    let cases: [Case; 9] = [
        (|cluster| cluster.delete("services", "shop-green"), "shop-green not found (status 404"),
        (
            |cluster| drop(cluster.put(&pod("shop-green", false))),
            "shop-green of the candidate: no endpoint of it is ready",
        ),
        (
            |cluster| drop(cluster.put(&pod("shop-blue", false))),
            "shop-blue of the baseline: no endpoint of it is ready",
        ),
        (|cluster| cluster.deny("patch", "httproutes"), "may not patch httproutes.gateway.networking.k8s.io"),
        (|cluster| cluster.deny("list", "endpointslices"), "endpointslices is forbidden"),
        (
            |cluster| {
                let mut object = manifest(1, 0);
                object["spec"]["hostnames"] = json!(["taken.example.com"]);
                cluster.put(&object);
            },
            "outer does not accept it:  (NoMatchingListenerHostname)",
        ),
        (
            |cluster| {
                let mut object = manifest(1, 0);
                object["spec"].as_object_mut().unwrap().remove("parentRefs");
                cluster.put(&object);
            },
            "it has no parent",
        ),
        (
            |cluster| {
                let mut object = manifest(1, 0);
                object["metadata"]["labels"]["kustomize.toolkit.fluxcd.io/name"] = json!("shop");
                cluster.put(&object);
            },
            "Flux's Kustomization shop owns HTTPRoute default/shop",
        ),
        (|cluster| drop(cluster.put(&manifest(0, 1))), "which has the requests already; deploy it behind shop-blue"),
    ];
    for (change, why) in cases {
        let scene = Scene::new();
        change(&scene.cluster);
        tokio::time::sleep(Duration::from_secs(2)).await;
        let before = scene.weights();
        let outcome = roll_out(scene.route(), scene.candidate(), None, BAKE).await;
        assert!(matches!(outcome.rollout.state, State::Refused { .. }), "{why}: {outcome}");
        assert!(outcome.to_string().contains(why), "{why}: {outcome}");
        assert_eq!(scene.weights(), before, "{why}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_webhook_says_that_takes_no_dry_runs_is_listed_for_a_route() {
    let scene = Scene::new();
    scene.cluster.take_no_dry_runs("httproutes");
    let outcome = roll_out(scene.route(), scene.candidate(), None, BAKE).await;
    trial::promoted_untried(&outcome, &["the candidate's weights", "the baseline's weights"]);
}

#[tokio::test(start_paused = true)]
async fn weights_that_admission_would_refuse_on_the_way_back_are_no_way_back() {
    const OLD: &str = "forbidden-by-admission";
    let scene = Scene::new();
    scene.cluster.put(&service(OLD));
    scene.cluster.put(&pod(OLD, true));
    let put = async |weight: i64| {
        let mut object = manifest(weight, 0);
        object["spec"]["rules"][1]["backendRefs"][0]["name"] = json!(OLD);
        scene.cluster.put(&object);
        tokio::time::sleep(Duration::from_secs(2)).await;
    };
    put(1).await;
    let route = HttpRoute::new(&scene.cluster.client(), "default", "shop", [OLD, "shop-green"]).unwrap();
    let target = TargetId::try_from("shop").unwrap();
    let (baseline, candidate) = (route.baseline().await.unwrap(), route.revision("shop:2", "shop-green").unwrap());
    let change = Change { rollout: RolloutId::fresh(&target), target, baseline, candidate };
    let plan = Plan::canary([10, 100], BAKE).unwrap();
    // Where they stand they pass.
    let ready = route.preflight(&change, &plan).await.unwrap();
    assert_eq!(ready.no_way_back, [], "{ready:?}");
    put(3).await;
    let ready = route.preflight(&change, &plan).await.unwrap();
    let [why] = &*ready.no_way_back else { panic!("{ready:?}") };
    assert!(why.as_str().starts_with("the baseline's weights would not be accepted: "), "{why}");
    assert!(why.as_str().contains("not from our registry"), "{why}");
}

#[tokio::test(start_paused = true)]
async fn a_route_that_is_shared_already_has_no_baseline() {
    let scene = Scene::new();
    for (weights, why) in [((3, 1), "both shop-blue and shop-green"), ((0, 0), "neither shop-blue nor shop-green")] {
        scene.cluster.put(&manifest(weights.0, weights.1));
        let mixed = scene.route().baseline().await.unwrap_err();
        assert_eq!(mixed.kind(), ErrorKind::Mixed);
        assert!(mixed.to_string().contains(why), "{mixed}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_rule_must_be_the_only_one() {
    let scene = Scene::new();
    scene.two_rules().await;
    let unclear = scene.route().baseline().await.unwrap_err();
    assert!(unclear.to_string().contains("has 2 rules with both"), "{unclear}");
    let nowhere = scene.route().rule("others").baseline().await.unwrap_err();
    assert_eq!(nowhere.kind(), ErrorKind::NotFound);

    // Two targets on one object, at the same time.
    let watches = Watches::new(&scene.cluster.client());
    let (pages, api) = (scene.route().rule("pages"), scene.route().rule("api").watched_by(&watches));
    let (one, two) =
        tokio::join!(roll_out(pages, scene.candidate(), None, BAKE), roll_out(api, scene.candidate(), Some(50), BAKE));
    assert_eq!(one.rollout.state, State::Promoted, "{one}");
    assert!(matches!(two.rollout.state, State::RolledBack { .. }), "{two}");
    let rules = scene.cluster.get("httproutes", "shop").unwrap()["spec"]["rules"].clone();
    let weight = |rule: usize, at: usize| rules[rule]["backendRefs"][at]["weight"].clone();
    assert_eq!([weight(1, 0), weight(1, 1)], [json!(0), json!(100)]);
    assert_eq!([weight(2, 0), weight(2, 1)], [json!(1), json!(0)]);
}

/// What an interrupted run of one rule left is nothing that another rule's target may write.
#[tokio::test(start_paused = true)]
async fn a_rollout_of_one_rule_is_not_carried_out_on_another() {
    let scene = Scene::new();
    scene.two_rules().await;
    let (api, pages) = (scene.route().rule("api"), scene.route().rule("pages"));
    let target = TargetId::try_from("shop").unwrap();
    let (baseline, candidate) = (api.baseline().await.unwrap(), api.revision("shop:2", "shop-green").unwrap());
    let change = Change { rollout: RolloutId::fresh(&target), target, baseline, candidate };
    assert_eq!(api.observe(&change, Goal::Baseline, None).await.unwrap().progress, Progress::Reached);
    for target in [pages, scene.route()] {
        let other = target.observe(&change, Goal::Baseline, None).await.unwrap_err();
        assert_eq!(other.kind(), ErrorKind::Invalid, "{other}");
        assert!(other.to_string().contains("is of rule api of HTTPRoute default/shop with shop-blue"), "{other}");
    }
}

#[tokio::test(start_paused = true)]
async fn somebody_who_sets_the_weights_back_by_hand_is_not_overruled() {
    let scene = Scene::new();
    let rolling = tokio::spawn(roll_out(scene.route(), scene.candidate(), None, Duration::from_secs(20)));
    while scene.weights() != (json!(50), json!(50)) {
        assert!(!rolling.is_finished());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let mut object = scene.cluster.get("httproutes", "shop").unwrap();
    object["spec"]["rules"][1] = manifest(1, 0)["spec"]["rules"][1].clone();
    scene.cluster.put(&object);
    let outcome = rolling.await.unwrap();
    assert!(matches!(outcome.rollout.state, State::Abandoned { .. }), "{outcome}");
    assert!(outcome.to_string().contains("now has shop-blue 1, shop-green 0"), "{outcome}");
    assert_eq!(scene.weights(), (json!(1), json!(0)));
}

#[tokio::test(start_paused = true)]
async fn a_service_of_the_candidate_that_goes_away_sends_the_requests_back() {
    let scene = Scene::new();
    let rolling = tokio::spawn(roll_out(scene.route(), scene.candidate(), None, Duration::from_secs(20)));
    while scene.weights() != (json!(50), json!(50)) {
        assert!(!rolling.is_finished());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    scene.cluster.delete("services", "shop-green");
    let outcome = rolling.await.unwrap();
    assert!(matches!(outcome.rollout.state, State::RolledBack { .. }), "{outcome}");
    assert_eq!(scene.weights(), (json!(1), json!(0)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_route_is_promoted_and_brought_back() {
    let Some(space) = cluster::namespace().await else { return };
    gateway::install(&space).await;
    for name in SERVICES {
        space.apply(&service(name));
        space.apply(&released(name, 1));
    }
    for name in SERVICES {
        space.rolled_out(&format!("deployment/{name}"));
    }
    let mut object = manifest(1, 0);
    object["spec"]["rules"][0].as_object_mut().unwrap().remove("matches");
    object["spec"]["rules"][1]["backendRefs"][1].as_object_mut().unwrap().remove("filters");
    space.apply(&object);
    gateway::play(&space, "shop");
    let space = Arc::new(space);
    let route = || HttpRoute::new(&space.client, &space.name, "shop", SERVICES).unwrap();
    let weights = || gateway::weights(&space, "shop", 1);
    let play = |rolling: tokio::task::JoinHandle<Outcome>| {
        let space = Arc::clone(&space);
        async move {
            while !rolling.is_finished() {
                tokio::task::block_in_place(|| gateway::play(&space, "shop"));
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            rolling.await.unwrap()
        }
    };

    let candidate = route().revision("shop:2", "shop-green").unwrap();
    let by_watch = route().watched_by(&Watches::new(&space.client));
    let outcome = play(tokio::spawn(roll_out(by_watch, candidate.clone(), Some(50), BAKE))).await;
    assert!(matches!(outcome.rollout.state, State::RolledBack { .. }), "{outcome}");
    assert_eq!(weights(), (json!(1), json!(0)));

    let outcome = play(tokio::spawn(roll_out(route(), candidate, None, BAKE))).await;
    assert_eq!(outcome.rollout.state, State::Promoted, "{outcome}");
    assert_eq!(weights(), (json!(0), json!(100)));
    assert_eq!(route().baseline().await.unwrap().id.as_str(), "shop:2");
}
