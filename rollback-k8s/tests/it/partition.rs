//! StatefulSets by partition: the conformance suite and sweeps on an API server in memory; on a real one the suite, and
//! which pods have what, and when.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use rollback_core::{
    backend::{DeploymentBackend, Weights},
    engine::{Engine, NewRollout, Outcome, Target},
    gate::Policy,
    model::{Goal, Progress, Revision, Weight},
    plan::Plan,
    state::{Cause, State},
    store::Memory,
    testing::backend::{Bench, Driver},
};
use rollback_k8s::{StatefulSetCanary, Watches, gate::Pods, testing::Cluster};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::support::{
    cluster::{self, Namespace, PATIENCE, bad, deployment, release, release_of, released},
    trial,
};

/// A StatefulSet of so many pods, of what a Deployment is.
pub(crate) fn set(mut object: Value, replicas: u32) -> Value {
    object["kind"] = json!("StatefulSet");
    object["spec"]["serviceName"] = object["metadata"]["name"].clone();
    object["spec"]["replicas"] = json!(replicas);
    object["spec"]["updateStrategy"] = json!({ "type": "RollingUpdate", "rollingUpdate": { "partition": 0 } });
    let annotations = &mut object["spec"]["template"]["metadata"]["annotations"];
    annotations["fake-kubelet/ready-delay"] = json!("0.1");
    annotations["fake-kubelet/terminate-delay"] = json!("0.1");
    object
}

fn partition(object: &Value) -> i64 {
    object["spec"]["updateStrategy"]["rollingUpdate"]["partition"].as_i64().unwrap_or(0)
}

struct Scene {
    cluster: Cluster,
    candidate: Revision,
    watched: bool,
}

impl Scene {
    async fn new() -> Self {
        let cluster = Cluster::new();
        cluster.put(&set(deployment("db", "shop:1"), 4));
        let candidate = canary(&cluster).await.images([("web", "shop:2")]).await.unwrap();
        Self { cluster, candidate, watched: false }
    }

    async fn canary(&self) -> StatefulSetCanary {
        let canary = canary(&self.cluster).await;
        if self.watched { canary.watched_by(&Watches::new(&self.cluster.client())) } else { canary }
    }

    fn db(&self) -> Value {
        self.cluster.get("statefulsets", "db").unwrap()
    }

    /// The partition, and how many pods are of the template.
    fn stands(&self) -> (i64, i64) {
        let db = self.db();
        (partition(&db), db["status"]["updatedReplicas"].as_i64().unwrap())
    }
}

async fn canary(cluster: &Cluster) -> StatefulSetCanary {
    StatefulSetCanary::new(&cluster.client(), "default", "db").await.unwrap()
}

#[async_trait]
impl Bench for Scene {
    async fn reset(&self) {
        // The same object throughout: the candidate was made for it.
        self.cluster.put(&set(deployment("db", "shop:1"), 4));
        tokio::time::sleep(Duration::from_secs(2)).await;
    }

    async fn connect(&self) -> Arc<dyn DeploymentBackend> {
        Arc::new(self.canary().await)
    }

    fn candidate(&self) -> Revision {
        self.candidate.clone()
    }

    async fn settle(&self) {
        tokio::time::sleep(Duration::from_millis(250)).await;
    }

    async fn drift(&self) -> bool {
        let mut object = self.db();
        object["spec"]["updateStrategy"]["rollingUpdate"]["partition"] = json!(3 - partition(&object));
        self.cluster.put(&object);
        true
    }
}

#[tokio::test(start_paused = true)]
async fn a_set_by_partition_keeps_every_promise() {
    trial::keeps_every_promise(&Scene::new().await).await;
}

#[tokio::test(start_paused = true)]
async fn a_set_by_partition_keeps_every_promise_by_watch() {
    let scene = Scene { watched: true, ..Scene::new().await };
    trial::keeps_every_promise(&scene).await;
    let goal = Goal::Split(Weight::try_from(50).unwrap());
    trial::hides_nothing_by_watch(&scene, &scene.cluster, "statefulsets", goal).await;
}

#[tokio::test(start_paused = true)]
async fn every_disturbance_of_a_set_by_partition_is_got_over() {
    let scenarios = ["bad canary", "aborted while baking", "all at once"];
    trial::gets_over("partition", &Scene::new().await, &scenarios).await;
}

#[tokio::test(start_paused = true)]
async fn every_disturbance_of_a_set_by_partition_is_got_over_by_watch() {
    let scene = Scene { watched: true, ..Scene::new().await };
    trial::gets_over("partition, by watch", &scene, &["bad canary"]).await;
}

async fn roll_out(backend: StatefulSetCanary, candidate: Revision, steps: &[u8], bake: u64) -> Outcome {
    let plan = Plan::canary(steps.iter().copied(), Duration::from_secs(bake)).unwrap();
    trial::roll_out(backend, candidate, plan, None).await
}

#[tokio::test(start_paused = true)]
async fn the_shares_are_those_of_its_pods_and_others_are_refused() {
    let scene = Scene::new().await;
    let shares = scene.canary().await.capabilities().weights;
    assert_eq!(shares, Weights::only([25, 50, 75]).unwrap());
    let outcome = roll_out(scene.canary().await, scene.candidate(), &[25, 75, 100], 1).await;
    assert_eq!((outcome.rollout.state.clone(), scene.stands()), (State::Promoted, (0, 4)), "{outcome}");

    let engine = Engine::new(Memory::new()).unwrap();
    engine.register(Target::new("db", scene.canary().await).unwrap()).unwrap();
    let plan = Plan::canary([33, 100], Duration::from_secs(1)).unwrap();
    let candidate = scene.canary().await.images([("web", "shop:3")]).await.unwrap();
    let said = engine.start(NewRollout::new("db", candidate, plan).unwrap()).await.unwrap_err();
    assert!(said.chain().contains("this target can give only 25 %, 50 %, 75 %, 100 %"), "{}", said.chain());
}

#[tokio::test(start_paused = true)]
async fn what_speaks_against_a_partition_is_said_before_anything_changes() {
    type Case = (fn(&mut Value), &'static str);
    let cases: [Case; 3] = [
        (
            |db| db["spec"]["updateStrategy"] = json!({ "type": "OnDelete" }),
            "only when somebody deletes them (OnDelete)",
        ),
        (
            |db| db["spec"]["updateStrategy"]["rollingUpdate"]["partition"] = json!(2),
            "held back by a partition: set that to 0",
        ),
        (
            |db| db["metadata"]["labels"]["kustomize.toolkit.fluxcd.io/name"] = json!("shop"),
            "Flux's Kustomization shop owns",
        ),
    ];
    for (change, why) in cases {
        let scene = Scene::new().await;
        let mut object = scene.db();
        change(&mut object);
        scene.cluster.put(&object);
        tokio::time::sleep(Duration::from_secs(2)).await;
        let outcome = roll_out(scene.canary().await, scene.candidate(), &[25, 100], 1).await;
        assert!(matches!(outcome.rollout.state, State::Refused { .. }), "{why}: {outcome}");
        assert!(outcome.to_string().contains(why), "{why}: {outcome}");
        assert_eq!(scene.db()["spec"], object["spec"], "{why}");
    }
    let scene = Scene::new().await;
    scene.cluster.put(&json!({ "apiVersion": "autoscaling/v1", "kind": "HorizontalPodAutoscaler",
        "metadata": { "name": "busy" },
        "spec": { "scaleTargetRef": { "kind": "StatefulSet", "name": "db" }, "maxReplicas": 9 } }));
    let outcome = roll_out(scene.canary().await, scene.candidate(), &[25, 100], 1).await;
    assert!(outcome.to_string().contains("HorizontalPodAutoscaler busy sets the number of pods"), "{outcome}");
}

/// Where its controller does not wait for it.
#[tokio::test(start_paused = true)]
async fn a_set_with_a_pod_that_is_not_ready_is_rolled_out_at_once_and_not_by_shares() {
    let scene = Scene::new().await;
    let mut object = set(deployment("db", "shop:ailing"), 4);
    object["spec"]["podManagementPolicy"] = json!("Parallel");
    scene.cluster.put(&object);
    tokio::time::sleep(Duration::from_secs(2)).await;
    let candidate = scene.canary().await.images([("web", "shop:2")]).await.unwrap();
    let outcome = roll_out(scene.canary().await, candidate.clone(), &[25, 100], 1).await;
    let why = "3 of 4 pods of StatefulSet default/db are ready, and a share has arrived when all of them are";
    assert!(outcome.to_string().contains(why), "{outcome}");
    assert_eq!(scene.db()["spec"], object["spec"]);
    let outcome = roll_out(scene.canary().await, candidate, &[100], 1).await;
    assert_eq!((outcome.rollout.state.clone(), scene.stands()), (State::Promoted, (0, 4)), "{outcome}");
}

#[tokio::test(start_paused = true)]
async fn what_a_webhook_says_that_takes_no_dry_runs_is_listed_for_a_partition_too() {
    let scene = Scene::new().await;
    scene.cluster.take_no_dry_runs("statefulsets");
    let outcome = roll_out(scene.canary().await, scene.candidate(), &[25, 100], 1).await;
    trial::promoted_untried(&outcome, &["the candidate's template", "the recorded template", "a partition"]);
}

#[tokio::test(start_paused = true)]
async fn a_set_that_is_scaled_half_way_goes_back() {
    let scene = Scene::new().await;
    let rolling = scene.canary().await;
    let rolling = tokio::spawn({
        let candidate = scene.candidate();
        async move { roll_out(rolling, candidate, &[50, 100], 60).await }
    });
    while scene.stands() != (2, 2) {
        assert!(!rolling.is_finished());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let mut object = scene.db();
    object["spec"]["replicas"] = json!(6);
    scene.cluster.put(&object);
    let outcome = rolling.await.unwrap();
    let State::RolledBack { cause: Cause::Failed { why, .. } } = &outcome.rollout.state else { panic!("{outcome}") };
    assert!(why.to_string().contains("it was scaled from 4 to 6 pods"), "{why}");
    let after = scene.db();
    assert_eq!((scene.stands(), &after["spec"]["replicas"]), ((0, 6), &json!(6)));
    assert_eq!(after["spec"]["template"]["spec"]["containers"][0]["image"], "shop:1");
}

/// The next process reads the new size, and the rollout is of the old one.
#[tokio::test(start_paused = true)]
async fn a_set_that_was_scaled_while_nobody_drove_goes_back() {
    for share in [25, 50] {
        let scene = Scene::new().await;
        let mut driver = Driver::new(&scene).await;
        let goal = Goal::Split(Weight::try_from(share).unwrap());
        driver.drive(goal).await;
        let mut object = scene.db();
        object["spec"]["replicas"] = json!(8);
        scene.cluster.put(&object);
        tokio::time::sleep(Duration::from_secs(2)).await;
        let mut next = driver.successor().await;
        let look = next.look(goal).await;
        let Progress::Failed(why) = &look.progress else { panic!("{look:?}") };
        assert!(why.to_string().contains("it was scaled from 4 to 8 pods"), "{why}");
        next.drive(Goal::Baseline).await;
        assert_eq!(scene.stands(), (0, 8));
    }
}

#[tokio::test(start_paused = true)]
async fn a_template_that_somebody_puts_back_by_hand_is_not_put_there_again() {
    let scene = Scene::new().await;
    let before = scene.db();
    let rolling = scene.canary().await;
    let rolling = tokio::spawn({
        let candidate = scene.candidate();
        async move { roll_out(rolling, candidate, &[50, 100], 60).await }
    });
    while scene.stands() != (2, 2) {
        assert!(!rolling.is_finished());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let mut object = scene.db();
    object["spec"]["template"] = before["spec"]["template"].clone();
    scene.cluster.put(&object);
    let outcome = rolling.await.unwrap();
    assert!(matches!(outcome.rollout.state, State::Abandoned { .. }), "{outcome}");
    assert_eq!(scene.db()["spec"], object["spec"]);
}

// ------------------------------------------------------------------------------------------------- on a real API server

/// A set of two pods, and the candidate that was made for it once.
struct Real {
    space: Namespace,
    candidate: Revision,
}

async fn of(space: &Namespace) -> StatefulSetCanary {
    StatefulSetCanary::new(&space.client, &space.name, "db").await.unwrap()
}

/// What each pod is of, by number.
fn pods(space: &Namespace) -> Vec<String> {
    let list = space.get("pods", "-lapp=db");
    let mut pods: Vec<&Value> = list["items"].as_array().unwrap().iter().collect();
    pods.sort_by_key(|pod| pod["metadata"]["name"].as_str().unwrap().to_owned());
    pods.into_iter().map(release_of).collect()
}

fn is_whole(space: &Namespace, template: &Value, replicas: usize) -> bool {
    let db = space.get("statefulset", "db");
    let status = &db["status"];
    let all = |name: &str| status[name].as_u64() == Some(replicas as u64);
    db["metadata"]["generation"] == status["observedGeneration"]
        && status["updateRevision"] == status["currentRevision"]
        && all("updatedReplicas")
        && all("readyReplicas")
        && pods(space) == vec![release_of(template); replicas]
}

async fn whole(space: &Namespace, template: &Value, replicas: usize) {
    let begun = Instant::now();
    while !is_whole(space, template, replicas) {
        assert!(begun.elapsed() < PATIENCE, "it is not as it was: {:?}", pods(space));
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[async_trait]
impl Bench for Real {
    async fn reset(&self) {
        let object = set(released("db", 1), 2);
        let put = self.space.run(&["replace", "--validate=false", "-f", "-"], Some(&object.to_string()));
        assert!(put.status.success(), "{}", String::from_utf8_lossy(&put.stderr));
        whole(&self.space, &object["spec"]["template"], 2).await;
    }

    async fn connect(&self) -> Arc<dyn DeploymentBackend> {
        Arc::new(of(&self.space).await)
    }

    fn candidate(&self) -> Revision {
        self.candidate.clone()
    }

    async fn settle(&self) {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }

    async fn drift(&self) -> bool {
        let patch = json!({ "spec": { "template": { "metadata": { "annotations": { "release": "9" } } } } });
        self.space.kubectl(&["patch", "statefulset", "db", "-p", &patch.to_string()]);
        true
    }
}

async fn real(replicas: u32) -> Option<Namespace> {
    let space = cluster::namespace().await?;
    let object = set(released("db", 1), replicas);
    space.apply(&object);
    whole(&space, &object["spec"]["template"], replicas as usize).await;
    Some(space)
}

async fn next(space: &Namespace) -> Revision {
    let mut template = space.get("statefulset", "db")["spec"]["template"].clone();
    release(&mut template, 2);
    of(space).await.template("release 2", &template).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_set_by_partition_keeps_every_promise() {
    let Some(space) = real(2).await else { return };
    let candidate = next(&space).await;
    let bench = Real { space, candidate };
    trial::keeps_every_promise(&bench).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_pods_of_a_real_set_have_the_candidate_first_and_come_back_first() {
    let Some(space) = real(3).await else { return };
    let candidate = next(&space).await;
    let bench = Real { space, candidate };
    let (space, before) = (&bench.space, bench.space.get("statefulset", "db"));
    let mut driver = Driver::new(&bench).await;
    let share = |percent: u8| Goal::Split(Weight::try_from(percent).unwrap());
    let count =
        |pods: &[String]| pods.iter().map(|it| if it.starts_with("2 ") { '2' } else { '1' }).collect::<String>();
    driver.drive(share(33)).await;
    assert_eq!(count(&pods(space)), "112");
    driver.drive(share(66)).await;
    assert_eq!(count(&pods(space)), "122");

    let version = driver.look(Goal::Baseline).await.version;
    let back = driver.save(Goal::Baseline, &version);
    driver.send(&back).await.unwrap();
    let (mut seen, begun) = (Vec::new(), Instant::now());
    while driver.look(Goal::Baseline).await.progress != Progress::Reached {
        assert!(begun.elapsed() < PATIENCE, "it does not come back: {seen:?}");
        let now = count(&pods(space));
        if now.len() == 3 && seen.last() != Some(&now) {
            seen.push(now);
        }
    }
    assert_eq!(count(&pods(space)), "111");
    assert!(!seen.contains(&"112".into()), "the pod with the lower number came back first: {seen:?}");
    let after = space.get("statefulset", "db");
    assert_eq!(after["spec"], before["spec"], "the partition is put back, and nothing else is left");
    let applied = "kubectl.kubernetes.io/last-applied-configuration";
    assert_eq!(after["metadata"]["annotations"][applied], before["metadata"]["annotations"][applied]);

    driver = Driver::new(&bench).await;
    driver.drive(share(33)).await;
    driver.drive(Goal::Split(Weight::ALL)).await;
    driver.drive(Goal::Candidate).await;
    assert_eq!(count(&pods(space)), "222");
    assert_eq!(space.get("statefulset", "db")["spec"]["updateStrategy"], before["spec"]["updateStrategy"]);
    assert_eq!(driver.baseline().await.unwrap().id.as_str(), "release 2");
}

/// A pod that crashes keeps an ordered set from being rolled out, and one whose pods are replaced side by side not.
#[tokio::test(flavor = "multi_thread")]
async fn a_real_set_with_a_pod_that_crashes_is_rolled_out_where_its_controller_does_not_wait_for_it() {
    for (policy, waits) in [("OrderedReady", true), ("Parallel", false)] {
        let Some(space) = cluster::namespace().await else { return };
        let mut object = set(released("db", 1), 2);
        object["spec"]["podManagementPolicy"] = json!(policy);
        space.apply(&object);
        whole(&space, &object["spec"]["template"], 2).await;
        let patch = json!({ "spec": { "containers": [{ "name": "web", "image": bad() }] } }).to_string();
        space.kubectl(&["patch", "pod", "db-0", "-p", &patch]);
        space.until("one is not ready", async || space.get("statefulset", "db")["status"]["readyReplicas"] == 1).await;
        let outcome = roll_out(of(&space).await, next(&space).await, &[100], 1).await;
        let why = "1 of 2 pods are ready, and its controller replaces none before all are";
        assert_eq!(outcome.to_string().contains(why), waits, "{outcome}");
        assert_eq!(outcome.rollout.state == State::Promoted, !waits, "{outcome}");
    }
}

/// The first pod with the candidate crashes: two pods were never touched, and the one is back although its controller would
/// wait for it for ever (kubernetes/kubernetes#67250).
#[tokio::test(flavor = "multi_thread")]
async fn one_bad_pod_of_a_real_set_costs_one_pod_and_is_deleted_for_the_way_back() {
    let Some(space) = real(3).await else { return };
    let before = space.get("statefulset", "db");
    let untouched = |space: &Namespace| {
        ["db-0", "db-1"].map(|name| space.get("pod", name)["metadata"]["uid"].as_str().unwrap().to_owned())
    };
    let uids = untouched(&space);
    let watches = Watches::new(&space.client);
    let backend = of(&space).await.delete_stuck_pods().watched_by(&watches);
    let candidate = backend.images([("web", bad())]).await.unwrap();
    let engine = Engine::new(Memory::new()).unwrap();
    let pods = Pods::of(&watches, &space.name, "statefulset/db").unwrap();
    let target = Target::new("db", backend).unwrap().gate(pods, Policy::default());
    engine.register(target.look_every(Duration::from_millis(100), Duration::from_secs(1))).unwrap();
    let plan = Plan::canary([33, 66, 100], Duration::from_secs(600)).unwrap();
    let rolling = engine.start(NewRollout::new("db", candidate, plan).unwrap()).await.unwrap();
    let outcome = tokio::time::timeout(PATIENCE, rolling.finished()).await.expect("it comes back");
    assert!(matches!(outcome.rollout.state, State::RolledBack { cause: Cause::Unhealthy { .. } }), "{outcome}");
    assert_eq!(space.get("statefulset", "db")["spec"], before["spec"]);
    assert_eq!(untouched(&space), uids, "pods that never had the candidate were replaced");
    assert!(is_whole(&space, &before["spec"]["template"], 3), "{:?}", self::pods(&space));
}
