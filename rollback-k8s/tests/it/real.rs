//! What only real controllers show: the conformance suite on them, and how kubectl's rules deceive.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use rollback_core::{
    ErrorKind,
    backend::DeploymentBackend,
    model::{Attempt, Change, Goal, Nonce, Progress, Revision, RolloutId, Serial, TargetId},
    plan::Plan,
    testing::backend::{Bench, Driver},
};
use rollback_k8s::{Client, Workload, workload::Kind};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::place;
use crate::support::{
    cluster::{self, Namespace, PATIENCE, bad, release, release_of, released},
    trial,
};

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
        let candidate = next(&space, kind).await;
        Some(Self { space, kind, candidate })
    }
}

fn manifest(kind: Kind) -> Value {
    let mut object = released("web", 1);
    // What crashes is deployed by two tests only, which set it for themselves.
    object["spec"]["minReadySeconds"] = json!(0);
    object["kind"] = json!(format!("{kind:?}"));
    let spec = object["spec"].as_object_mut().unwrap();
    match kind {
        Kind::Deployment => {}
        Kind::StatefulSet => drop(spec.insert("serviceName".into(), json!("web"))),
        Kind::DaemonSet => {
            spec.remove("replicas");
            // However many nodes there are.
            spec.insert("updateStrategy".into(), json!({ "rollingUpdate": { "maxUnavailable": "100%" } }));
        }
    }
    object
}

fn workload(space: &Namespace, kind: Kind) -> Workload {
    Workload::new(&space.client, kind, &space.name, "web").unwrap()
}

fn name(kind: Kind) -> String {
    format!("{kind:?}").to_lowercase()
}

/// Release 2 as a candidate.
async fn next(space: &Namespace, kind: Kind) -> Revision {
    let mut template = space.get(&name(kind), "web")["spec"]["template"].clone();
    release(&mut template, 2);
    workload(space, kind).template("release 2", &template).await.unwrap()
}

/// The pods of the workload, those that are going away included.
fn pods(space: &Namespace) -> Vec<Value> {
    space.get("pods", "-lapp=web")["items"].as_array().unwrap().clone()
}

/// What those pods are of.
fn releases(space: &Namespace) -> Vec<String> {
    pods(space).iter().map(release_of).collect()
}

/// Whether one of them is of what crashes.
fn has_bad(space: &Namespace) -> bool {
    releases(space).iter().any(|it| it.ends_with(&format!(" {}", bad())))
}

/// Waits until every pod is of the template and up, by looking at the pods.
async fn converged(space: &Namespace, kind: Kind) -> Value {
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE {
        let object = space.get(&name(kind), "web");
        let status = |name: &str| object["status"][name].as_i64().unwrap_or(0);
        let release = release_of(&object["spec"]["template"]);
        let (wanted, new, up) = match kind {
            Kind::DaemonSet => ("desiredNumberScheduled", "updatedNumberScheduled", "numberAvailable"),
            Kind::Deployment => ("replicas", "updatedReplicas", "availableReplicas"),
            Kind::StatefulSet => ("replicas", "updatedReplicas", "readyReplicas"),
        };
        let (wanted, new, up) = (status(wanted), status(new), status(up));
        let scaled = object["spec"]["replicas"].as_i64().is_none_or(|replicas| replicas == wanted);
        let observed = object["metadata"]["generation"] == object["status"]["observedGeneration"];
        let revisions = object["status"]["updateRevision"] == object["status"]["currentRevision"];
        if observed && revisions && scaled && wanted > 0 && new == wanted && up == wanted {
            let pods = pods(space);
            // One that is on its way out counts for its controller as long as it is there (a DaemonSet's, on 1.20).
            let stays = |pod: &Value| pod["metadata"]["deletionTimestamp"].is_null() && release_of(pod) == release;
            if pods.len() as i64 == wanted && pods.iter().all(stays) {
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
        let put = self.space.run(&["replace", "--validate=false", "-f", "-"], Some(&object.to_string()));
        if !put.status.success() {
            // Its controller was faster.
            object["metadata"].as_object_mut().unwrap().remove("resourceVersion");
            let put = self.space.run(&["replace", "--validate=false", "-f", "-"], Some(&object.to_string()));
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
        let patch = json!({ "spec": { "template": { "metadata": { "annotations": { "release": "9" } } } } });
        self.space.kubectl(&["patch", &name(self.kind), "web", "-p", &patch.to_string()]);
        true
    }
}

async fn keeps_every_promise(kind: Kind) {
    let Some(real) = Real::new(kind).await else { return };
    trial::keeps_every_promise(&real).await;
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

/// Going back makes the update revision the current one again at once: by its revisions alone it would be done as soon as
/// all pods are ready, whichever template they are of.
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
    let is_new = |release: &String| release.starts_with("2 ");
    let is_up = |pod: &Value| {
        let mut conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
        conditions.any(|it| it["type"] == "Ready" && it["status"] == "True")
    };
    let one_is_up = async || pods(&real.space).iter().any(|pod| is_up(pod) && is_new(&release_of(pod)));
    real.space.until("a pod of the candidate is up", one_is_up).await;
    let version = driver.look(Goal::Baseline).await.version;
    let back = driver.save(Goal::Baseline, &version);
    driver.send(&back).await.unwrap();
    let begun = Instant::now();
    while driver.look(Goal::Baseline).await.progress != Progress::Reached {
        assert!(begun.elapsed() < PATIENCE, "it does not come back");
    }
    // What is not there now may have been there at the look, but not the other way round.
    let left = releases(&real.space);
    assert!(!left.iter().any(is_new), "the baseline is said to be back, and pods are of {left:?}");
}

/// The controller's first status of the template that is back still has the condition of the one that failed.
#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_that_passed_for_the_candidate_is_no_failure_of_the_way_back() {
    let Some(space) = cluster::namespace().await else { return };
    let mut object = manifest(Kind::Deployment);
    object["spec"]["replicas"] = json!(1);
    object["spec"]["minReadySeconds"] = json!(cluster::min_ready_seconds());
    object["spec"]["progressDeadlineSeconds"] = json!(cluster::min_ready_seconds() + 2);
    space.apply(&object);
    converged(&space, Kind::Deployment).await;
    let web = workload(&space, Kind::Deployment);
    for round in 0..5 {
        let change = change(&web, bad_one(&web).await).await;
        let there = shift(&web, &change, Goal::Candidate, 1).await;
        let passed =
            |progress: &Progress| matches!(progress, Progress::Failed(why) if why.as_str().contains("deadline"));
        until(&web, &change, &there, "the deadline passes", passed).await;
        let back = shift(&web, &change, Goal::Baseline, 2).await;
        let begun = Instant::now();
        loop {
            let look = web.observe(&change, Goal::Baseline, Some(&back)).await.unwrap();
            assert!(!matches!(look.progress, Progress::Failed(_)), "round {round}: {:?}", look.progress);
            if look.progress == Progress::Reached {
                break;
            }
            assert!(begun.elapsed() < PATIENCE, "round {round}: {:?}", look.progress);
        }
    }
}

/// One shift towards this goal, with what was looked at for it.
async fn shift(web: &Workload, change: &Change, goal: Goal, serial: u64) -> Attempt {
    let version = web.observe(change, goal, None).await.unwrap().version;
    let nonce = Nonce::new(&change.rollout, Serial(serial), goal);
    let attempt = Attempt { nonce, goal, version, at: "2026-01-01T00:00:00Z".parse().unwrap() };
    web.shift(change, goal, &attempt).await.unwrap();
    attempt
}

async fn bad_one(web: &Workload) -> Revision {
    web.images([("web", bad())]).await.unwrap()
}

async fn change(web: &Workload, candidate: Revision) -> Change {
    let target = TargetId::try_from("web").unwrap();
    Change { rollout: RolloutId::fresh(&target), target, baseline: web.baseline().await.unwrap(), candidate }
}

/// Looks until this is what a look says after this attempt.
async fn until(web: &Workload, change: &Change, last: &Attempt, what: &str, is: impl Fn(&Progress) -> bool) {
    let (mut seen, begun) = (None, Instant::now());
    while begun.elapsed() < PATIENCE {
        let progress = web.observe(change, last.goal, Some(last)).await.unwrap().progress;
        if is(&progress) {
            return;
        }
        seen = Some(progress);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("waited in vain until {what}: {seen:?}");
}

/// Its controller waits for a pod of the candidate that never becomes ready, whatever the template says by then
/// (kubernetes/kubernetes#67250).
#[tokio::test(flavor = "multi_thread")]
async fn the_pod_that_holds_up_the_way_back_of_a_stateful_set_is_deleted_when_that_is_allowed() {
    let Some(space) = cluster::namespace().await else { return };
    let mut object = manifest(Kind::StatefulSet);
    object["spec"]["minReadySeconds"] = json!(cluster::min_ready_seconds());
    space.apply(&object);
    converged(&space, Kind::StatefulSet).await;
    let web = workload(&space, Kind::StatefulSet);
    let change = change(&web, bad_one(&web).await).await;
    shift(&web, &change, Goal::Candidate, 1).await;
    let waits = "jsonpath={.items[*].status.containerStatuses[*].state.waiting.reason}";
    let crashes = async || space.kubectl(&["get", "pods", "-lapp=web", "-o", waits]).contains("CrashLoopBackOff");
    space.until("a pod crashes over and over", crashes).await;
    let mut last = shift(&web, &change, Goal::Baseline, 2).await;
    let seen =
        |progress: &Progress| matches!(progress, Progress::Underway(why) if why.as_str().contains(" of 2 pods are"));
    until(&web, &change, &last, "the template is back and the pod is not", seen).await;
    assert!(has_bad(&space), "nothing was allowed to delete the pod");

    let web = web.delete_stuck_pods();
    let due = |progress: &Progress| matches!(progress, Progress::Due(effect) if effect.as_str().starts_with("delete pod web-"));
    until(&web, &change, &last, "the pod is due", due).await;
    last = shift(&web, &change, Goal::Baseline, 3).await;
    // One that was ready for a moment has let the next one come.
    let back = |progress: &Progress| matches!(progress, Progress::Reached | Progress::Due(_));
    for serial in 4.. {
        until(&web, &change, &last, "it is back", back).await;
        if web.observe(&change, Goal::Baseline, Some(&last)).await.unwrap().progress == Progress::Reached {
            break;
        }
        last = shift(&web, &change, Goal::Baseline, serial).await;
    }
    assert!(!has_bad(&space));
}

/// The printed Role is enough for a whole rollout and the way back, and without it the missing rights are named.
#[tokio::test(flavor = "multi_thread")]
async fn the_printed_role_is_enough_and_what_is_missing_is_named() {
    let Some(space) = cluster::namespace().await else { return };
    let plan = Plan::all_at_once(Duration::from_secs(1)).unwrap();
    for kind in [Kind::Deployment, Kind::StatefulSet, Kind::DaemonSet] {
        space.apply(&manifest(kind));
        converged(&space, kind).await;
        let known = change(&workload(&space, kind), next(&space, kind).await).await;

        let user = format!("tool-of-{}", name(kind));
        let client = Client::from_kube(place::kube_as(space.kubeconfig(), Some(&user)).await);
        let web = Workload::new(&client, kind, &space.name, "web").unwrap().delete_stuck_pods();
        assert_eq!(web.baseline().await.unwrap_err().kind(), ErrorKind::Denied);
        let found = web.preflight(&known, &plan).await.unwrap();
        let refused = format!("{:?}", found.refused);
        assert!(refused.contains("get") && refused.contains(&format!("{}s", name(kind))), "{refused}");

        let role = web.role(&user).unwrap();
        assert!(space.run(&["apply", "-f", "-"], Some(&role)).status.success(), "{role}");
        space.kubectl(&["create", "rolebinding", &user, &format!("--role={user}"), &format!("--user={user}")]);
        // The API server hears of a role a moment after it has accepted it.
        space.until("the role counts", async || web.baseline().await.is_ok()).await;
        let found = web.preflight(&known, &plan).await.unwrap();
        assert!(found.refused.is_empty() && found.no_way_back.is_empty(), "{found:?}");
        for (serial, goal) in [(1, Goal::Candidate), (2, Goal::Baseline)] {
            let last = shift(&web, &known, goal, serial).await;
            until(&web, &known, &last, "it is there", |progress| *progress == Progress::Reached).await;
        }
        // Three of one name would share their pods' labels.
        space.kubectl(&["delete", &format!("{}/web", name(kind)), "--cascade=foreground"]);
    }
}
