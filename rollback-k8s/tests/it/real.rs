//! What only real controllers show: the conformance suite on them, and how kubectl's rules deceive.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use rollback_core::{
    backend::DeploymentBackend,
    model::{Attempt, Change, Goal, Nonce, Progress, Revision, RolloutId, Serial, TargetId},
    testing::backend::{self, Bench, Driver, Outcome},
};
use rollback_k8s::{Workload, workload::Kind};
use serde_json::{Value, json};

use crate::support::cluster::{self, Namespace, bad, deployment, good};

/// A workload of two pods on a real server; the candidate was made for it once.
struct Real {
    space: Namespace,
    kind: Kind,
    candidate: Revision,
}

impl Real {
    async fn new(kind: Kind) -> Option<Self> {
        let space = cluster::namespace().await?;
        space.apply(&manifest(kind));
        converged(&space, kind).await;
        let candidate = workload(&space, kind).images([("web", good(2))]).await.unwrap();
        Some(Self { space, kind, candidate })
    }
}

fn manifest(kind: Kind) -> Value {
    let mut object = deployment("web", &good(1));
    object["kind"] = json!(format!("{kind:?}"));
    let spec = object["spec"].as_object_mut().unwrap();
    spec["template"]["spec"]["terminationGracePeriodSeconds"] = json!(1);
    match kind {
        Kind::Deployment => {}
        Kind::StatefulSet => drop(spec.insert("serviceName".into(), json!("web"))),
        Kind::DaemonSet => drop(spec.remove("replicas")),
    }
    object
}

fn workload(space: &Namespace, kind: Kind) -> Workload {
    Workload::new(&space.client, kind, &space.name, "web").unwrap()
}

fn name(kind: Kind) -> String {
    format!("{kind:?}").to_lowercase()
}

/// The images that pods of the workload run, those that are going away included.
fn images(space: &Namespace) -> Vec<String> {
    let pods = space.kubectl(&["get", "pods", "-l", "app=web", "-o", "jsonpath={.items[*].spec.containers[*].image}"]);
    pods.split_whitespace().map(str::to_owned).collect()
}

/// Waits until every pod is of the template and up, by looking at the pods.
async fn converged(space: &Namespace, kind: Kind) -> Value {
    for _ in 0..600 {
        let object = space.get(&name(kind), "web");
        let status = |name: &str| object["status"][name].as_i64().unwrap_or(0);
        let image = object["spec"]["template"]["spec"]["containers"][0]["image"].as_str().unwrap();
        let (wanted, new, up) = match kind {
            Kind::DaemonSet => ("desiredNumberScheduled", "updatedNumberScheduled", "numberAvailable"),
            _ => ("replicas", "updatedReplicas", "readyReplicas"),
        };
        let (wanted, new, up) = (status(wanted), status(new), status(up));
        let scaled = object["spec"]["replicas"].as_i64().is_none_or(|replicas| replicas == wanted);
        let observed = object["metadata"]["generation"] == object["status"]["observedGeneration"];
        let revisions = object["status"]["updateRevision"] == object["status"]["currentRevision"];
        if observed && revisions && scaled && wanted > 0 && new == wanted && up == wanted {
            let images = images(space);
            if images.len() as i64 == wanted && images.iter().all(|it| it == image) {
                return object;
            }
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("it does not come to rest: {:#}", space.get(&name(kind), "web"));
}

#[async_trait]
impl Bench for Real {
    async fn reset(&self) {
        // The same object throughout: the candidate was made for it.
        let mut object = manifest(self.kind);
        object["metadata"]["resourceVersion"] =
            self.space.get(&name(self.kind), "web")["metadata"]["resourceVersion"].clone();
        let put = self.space.run(&["replace", "-f", "-"], Some(&object.to_string()));
        if !put.status.success() {
            // Its controller was faster.
            object["metadata"].as_object_mut().unwrap().remove("resourceVersion");
            let put = self.space.run(&["replace", "-f", "-"], Some(&object.to_string()));
            assert!(put.status.success(), "{}", String::from_utf8_lossy(&put.stderr));
        }
        converged(&self.space, self.kind).await;
    }

    async fn connect(&self) -> Arc<dyn DeploymentBackend> {
        Arc::new(workload(&self.space, self.kind))
    }

    fn candidate(&self) -> Revision {
        self.candidate.clone()
    }

    async fn settle(&self) {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }

    async fn drift(&self) -> bool {
        self.space.kubectl(&["set", "image", &format!("{}/web", name(self.kind)), &format!("web={}", good(9))]);
        true
    }
}

async fn keeps_every_promise(kind: Kind) {
    let Some(real) = Real::new(kind).await else { return };
    for (promise, outcome) in backend::all(&real).await {
        if let Outcome::Skipped(why) = outcome {
            println!("{kind:?}: {promise} was skipped: {why}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_deployment_keeps_every_promise() {
    keeps_every_promise(Kind::Deployment).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_stateful_set_keeps_every_promise() {
    keeps_every_promise(Kind::StatefulSet).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_daemon_set_keeps_every_promise() {
    keeps_every_promise(Kind::DaemonSet).await;
}

/// `kubectl rollout status` calls it done as soon as all pods are ready, whichever template they are of: going back makes
/// the update revision the current one again at once.
#[tokio::test(flavor = "multi_thread")]
async fn a_stateful_set_that_goes_back_half_way_is_not_back_while_pods_of_the_candidate_serve() {
    let Some(real) = Real::new(Kind::StatefulSet).await else { return };
    real.space.kubectl(&["scale", "statefulset/web", "--replicas=3"]);
    converged(&real.space, Kind::StatefulSet).await;
    let mut driver = Driver::new(&real).await;
    let version = driver.look(Goal::Candidate).await.version;
    let forward = driver.save(Goal::Candidate, &version);
    driver.send(&forward).await.unwrap();
    // The candidate's first pod is up and the next one is being replaced.
    let up = |image: &str| {
        let pods = real.space.get("pods", "-lapp=web");
        let pods = pods["items"].as_array().unwrap().iter();
        let up = |pod: &&Value| {
            let conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
            let mut ready = conditions.filter(|it| it["type"] == "Ready" && it["status"] == "True");
            ready.next().is_some() && pod["spec"]["containers"][0]["image"] == image
        };
        pods.filter(up).count()
    };
    while up(&good(2)) == 0 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let version = driver.look(Goal::Baseline).await.version;
    let back = driver.save(Goal::Baseline, &version);
    driver.send(&back).await.unwrap();
    while driver.look(Goal::Baseline).await.progress != Progress::Reached {}
    // What is not there now may have been there at the look, but not the other way round.
    let left = images(&real.space);
    assert!(!left.contains(&good(2)), "the baseline is said to be back, and pods run {left:?}");
}

/// The controller's first status of the template that is back still has the condition of the one that failed.
#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_that_passed_for_the_candidate_is_no_failure_of_the_way_back() {
    let Some(space) = cluster::namespace().await else { return };
    let mut object = manifest(Kind::Deployment);
    object["spec"]["replicas"] = json!(1);
    object["spec"]["progressDeadlineSeconds"] = json!(2);
    space.apply(&object);
    converged(&space, Kind::Deployment).await;
    let web = workload(&space, Kind::Deployment);
    for round in 0..5 {
        let target = TargetId::try_from("web").unwrap();
        let candidate = web.images([("web", bad())]).await.unwrap();
        let baseline = web.baseline().await.unwrap();
        let change = Change { rollout: RolloutId::fresh(&target), target, baseline, candidate };
        let attempt = |goal: Goal, version, serial| Attempt {
            nonce: Nonce::new(&change.rollout, Serial(serial), goal),
            goal,
            version,
            at: "2026-01-01T00:00:00Z".parse().unwrap(),
        };
        let version = web.observe(&change, Goal::Candidate, None).await.unwrap().version;
        web.shift(&change, Goal::Candidate, &attempt(Goal::Candidate, version, 1)).await.unwrap();
        let failed = loop {
            let look = web.observe(&change, Goal::Candidate, None).await.unwrap();
            if let Progress::Failed(why) = &look.progress {
                assert!(why.as_str().contains("progress deadline"), "{why}");
                break look;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        web.shift(&change, Goal::Baseline, &attempt(Goal::Baseline, failed.version, 2)).await.unwrap();
        loop {
            let look = web.observe(&change, Goal::Baseline, None).await.unwrap();
            assert!(!matches!(look.progress, Progress::Failed(_)), "round {round}: {:?}", look.progress);
            if look.progress == Progress::Reached {
                break;
            }
        }
    }
}
