//! kubectl as oracle: the same objects and the same way back through it and through us.

use std::{
    fmt,
    process::{Command, Stdio},
    sync::{Arc, Mutex},
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{RawQuery, State},
    http::Uri,
    response::{IntoResponse as _, Response},
};
use futures_util::{StreamExt as _, stream};
use rollback_core::{
    backend::DeploymentBackend as _,
    model::{Change, Goal, Progress, RolloutId, TargetId},
};
use rollback_k8s::{Client, Workload, workload::Kind};
use serde_json::{Value, json};

use crate::support::{
    cluster::{self, deployment, release_of, released},
    skip,
};

/// What somebody who waits for a rollout is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Done,
    Waiting,
    Failed,
}

/// One object behind HTTP, with as much of an API server around it as kubectl asks for.
#[derive(Clone)]
struct Server {
    object: Arc<Mutex<Value>>,
    url: String,
}

impl Server {
    async fn start(object: Value) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let server = Self { object: Arc::new(Mutex::new(object)), url };
        let router = Router::new().fallback(answer).with_state(server.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        server
    }

    fn set(&self, object: Value) {
        *self.object.lock().unwrap() = object;
    }

    fn client(&self) -> Client {
        let config = kube::Config::new(self.url.parse().unwrap());
        Client::from_kube(kube::Client::try_from(config).unwrap())
    }

    /// What `kubectl rollout status` makes of it, and its words.
    async fn kubectl(&self, kind: Kind, home: &std::path::Path) -> (Verdict, String) {
        let mut kubectl = Command::new("kubectl");
        kubectl.args(["--server", &self.url, "--namespace", "default", "--cache-dir"]).arg(home.join("cache"));
        kubectl.args(["rollout", "status", "--watch=false", "--timeout=20s", &format!("{}/web", kind_name(kind))]);
        kubectl.env("HOME", home).env_remove("KUBECONFIG").stdin(Stdio::null());
        let output = tokio::task::spawn_blocking(move || kubectl.output().unwrap()).await.unwrap();
        let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        let done = ["successfully rolled out", "roll out complete", "rolling update complete"];
        let verdict = match output.status.success() {
            true if done.iter().any(|words| said.contains(words)) => Verdict::Done,
            true => Verdict::Waiting,
            false => Verdict::Failed,
        };
        assert!(!said.contains("Unable to connect") && !said.contains("not found"), "kubectl saw nothing: {said}");
        (verdict, said)
    }
}

async fn answer(State(server): State<Server>, uri: Uri, RawQuery(query): RawQuery) -> Response {
    let object = server.object.lock().unwrap().clone();
    let kind = object["kind"].as_str().unwrap();
    let plural = format!("{}s", kind.to_lowercase());
    let all = format!("/apis/apps/v1/namespaces/default/{plural}");
    let query = query.unwrap_or_default();
    let resources = |version: &str, list: Value| {
        said(&json!({ "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version, "resources": list }))
    };
    match uri.path() {
        "/api" => said(&json!({ "kind": "APIVersions", "versions": ["v1"] })),
        "/apis" => {
            let version = json!({ "groupVersion": "apps/v1", "version": "v1" });
            let group = json!({ "name": "apps", "versions": [version], "preferredVersion": version });
            said(&json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": [group] }))
        }
        "/api/v1" => resources("v1", json!([])),
        "/apis/apps/v1" => {
            let resource = json!({
                "name": plural, "singularName": kind.to_lowercase(), "namespaced": true, "kind": kind,
                "verbs": ["get", "list", "watch"],
            });
            resources("apps/v1", json!([resource]))
        }
        path if path == all && query.contains("watch=") => {
            let mut events = Vec::new();
            if query.contains("sendInitialEvents=true") {
                let end = json!({ "kind": kind, "apiVersion": "apps/v1", "metadata": {
                    "resourceVersion": "7", "annotations": { "k8s.io/initial-events-end": "true" } } });
                events.push(json!({ "type": "ADDED", "object": object }));
                events.push(json!({ "type": "BOOKMARK", "object": end }));
            }
            let lines = events.into_iter().map(|event| Ok(Bytes::from(format!("{event}\n"))));
            let body = stream::iter(lines).chain(stream::pending::<Result<Bytes, std::io::Error>>());
            ([("content-type", "application/json")], Body::from_stream(body)).into_response()
        }
        path if path == all => {
            let meta = json!({ "resourceVersion": "7" });
            said(
                &json!({ "kind": format!("{kind}List"), "apiVersion": "apps/v1", "metadata": meta, "items": [object] }),
            )
        }
        path if path == format!("{all}/web") => said(&object),
        _ => {
            let status = json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 404 });
            (http::StatusCode::NOT_FOUND, said(&status)).into_response()
        }
    }
}

fn said(answer: &Value) -> Response {
    ([("content-type", "application/json")], answer.to_string()).into_response()
}

fn kind_name(kind: Kind) -> String {
    format!("{kind:?}").to_lowercase()
}

/// A state of the world, and why we say otherwise of it than kubectl, where we do.
struct Case {
    kind: Kind,
    object: Value,
    differs: Option<(Verdict, &'static str)>,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut spec = self.object["spec"].clone();
        spec.as_object_mut().unwrap().retain(|name, _| ["replicas", "paused", "updateStrategy"].contains(&&**name));
        write!(f, "{:?} {spec} {}", self.kind, self.object["status"])
    }
}

fn case(kind: Kind, status: Value) -> Case {
    let mut object = deployment("web", "shop:2");
    object["kind"] = json!(format!("{kind:?}"));
    object["metadata"]["namespace"] = json!("default");
    object["metadata"]["uid"] = json!("11111111-2222-3333-4444-555555555555");
    object["metadata"]["resourceVersion"] = json!("7");
    object["metadata"]["generation"] = json!(2);
    let spec = object["spec"].as_object_mut().unwrap();
    spec["replicas"] = json!(3);
    match kind {
        Kind::Deployment => {}
        Kind::StatefulSet => {
            spec.insert("serviceName".into(), json!("web"));
            spec.insert(
                "updateStrategy".into(),
                json!({ "type": "RollingUpdate", "rollingUpdate": { "partition": 0 } }),
            );
        }
        Kind::DaemonSet => {
            spec.remove("replicas");
            spec.insert("updateStrategy".into(), json!({ "type": "RollingUpdate" }));
        }
    }
    object["status"] = status;
    Case { kind, object, differs: None }
}

impl Case {
    fn spec(mut self, name: &str, value: Value) -> Self {
        self.object["spec"][name] = value;
        self
    }

    /// What we say instead, and why.
    fn differs(mut self, ours: Verdict, why: &'static str) -> Self {
        self.differs = Some((ours, why));
        self
    }
}

fn matrix() -> Vec<Case> {
    let mut cases = Vec::new();
    for observed in [1, 2] {
        for updated in [0, 2, 3] {
            for all in [3, 4] {
                for available in [2, 3] {
                    let status = json!({ "observedGeneration": observed, "replicas": all, "updatedReplicas": updated,
                        "availableReplicas": available, "readyReplicas": available });
                    cases.push(case(Kind::Deployment, status));
                }
            }
        }
        // With the partition of 0 that the API server fills in, kubectl counts new pods; without, it compares revisions.
        for (ready, partition) in [(2, true), (3, true), (2, false), (3, false)] {
            for updated in [1, 3] {
                for same in [false, true] {
                    let now = if same { "web-b" } else { "web-a" };
                    let status = json!({ "observedGeneration": observed, "replicas": 3, "readyReplicas": ready,
                        "updatedReplicas": updated, "currentRevision": now, "updateRevision": "web-b" });
                    let mut case = case(Kind::StatefulSet, status);
                    if !partition {
                        case = case.spec("updateStrategy", json!({ "type": "RollingUpdate" }));
                    }
                    cases.push(match (observed, ready, partition, updated, same) {
                        (2, 3, false, 1, true) => case.differs(
                            Verdict::Waiting,
                            "the template was put back half way, and two pods are of the other one",
                        ),
                        (2, 3, true, 3, false) => {
                            case.differs(Verdict::Waiting, "its controller has not called the update complete yet")
                        }
                        _ => case,
                    });
                }
            }
        }
        for updated in [2, 3] {
            for available in [2, 3] {
                let status = json!({ "observedGeneration": observed, "desiredNumberScheduled": 3,
                    "currentNumberScheduled": 3, "numberMisscheduled": 0, "numberReady": available,
                    "updatedNumberScheduled": updated, "numberAvailable": available });
                cases.push(case(Kind::DaemonSet, status));
            }
        }
    }
    let condition = |kind: &str, status: &str, reason: &str| {
        json!({ "observedGeneration": 2, "replicas": 4, "updatedReplicas": 1, "availableReplicas": 3,
            "conditions": [{ "type": kind, "status": status, "reason": reason, "message": "m" }] })
    };
    let done = json!({ "observedGeneration": 2, "replicas": 3, "updatedReplicas": 3, "availableReplicas": 3 });
    cases.extend([
        case(Kind::Deployment, condition("Progressing", "False", "ProgressDeadlineExceeded")),
        case(Kind::Deployment, condition("Progressing", "True", "ReplicaSetUpdated")),
        case(Kind::Deployment, condition("ReplicaFailure", "True", "FailedCreate"))
            .differs(Verdict::Failed, "kubectl does not look at ReplicaFailure"),
        case(Kind::Deployment, done).spec("paused", json!(true)).differs(
            Verdict::Failed,
            "a paused Deployment gets nowhere, and its counts are those of the template before",
        ),
        case(Kind::Deployment, condition("Progressing", "Unknown", "DeploymentPaused"))
            .spec("paused", json!(true))
            .differs(Verdict::Failed, "kubectl waits for a paused Deployment for ever"),
        case(Kind::Deployment, json!({ "observedGeneration": 2 }))
            .spec("replicas", json!(0))
            .differs(Verdict::Waiting, "no pods prove nothing"),
        case(Kind::StatefulSet, json!({ "observedGeneration": 2, "replicas": 3, "readyReplicas": 3 }))
            .spec("updateStrategy", json!({ "type": "OnDelete" })),
        case(Kind::DaemonSet, json!({ "observedGeneration": 2, "desiredNumberScheduled": 3 }))
            .spec("updateStrategy", json!({ "type": "OnDelete" })),
    ]);
    cases
}

#[tokio::test(flavor = "multi_thread")]
async fn every_state_of_a_rollout_is_judged_as_kubectl_judges_it_but_for_its_gaps() {
    if Command::new("kubectl").args(["version", "--client"]).output().is_err() {
        skip("kubectl", "it is not on the PATH (Debian: kubernetes-client)");
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let cases = matrix();
    let first = case(Kind::Deployment, json!({}));
    let server = Server::start(first.object).await;
    let target = TargetId::try_from("web").unwrap();
    let (mut told, mut wrong) = (Vec::new(), Vec::new());
    for case in &cases {
        server.set(case.object.clone());
        let workload = Workload::new(&server.client(), case.kind, "default", "web").unwrap();
        // The candidate is what stands there; the baseline is another image.
        let candidate = workload.images([("web", "shop:2")]).await.unwrap();
        let baseline = workload.images([("web", "shop:1")]).await.unwrap();
        let change = Change { rollout: RolloutId::fresh(&target), target: target.clone(), baseline, candidate };
        // As our write left it: the version tells of the hash that it notes.
        let version = workload.observe(&change, Goal::Candidate, None).await.unwrap().version;
        let written = version.as_str().split('/').nth(1).unwrap();
        let last = attempt(&change, Goal::Candidate, 1, version.clone());
        let mut object = case.object.clone();
        object["metadata"]["annotations"] =
            json!({ "rollback.rs/attempt": last.nonce.as_str(), "rollback.rs/written": written });
        server.set(object);
        let ours = match workload.observe(&change, Goal::Candidate, Some(&last)).await.unwrap().progress {
            Progress::Reached => Verdict::Done,
            Progress::Underway(_) => Verdict::Waiting,
            Progress::Failed(_) => Verdict::Failed,
            other => panic!("{case}: {other:?}"),
        };
        let home_of_kind = home.path().join(kind_name(case.kind));
        let (theirs, said) = server.kubectl(case.kind, &home_of_kind).await;
        told.push(theirs);
        let expected = match case.differs {
            Some((verdict, why)) => {
                // An older or a newer kubectl may have closed a gap of another; but then the reason is not one any more.
                if verdict == theirs {
                    wrong.push(format!("{case}: kubectl says the same, so this is no difference: {why}"));
                }
                verdict
            }
            None => theirs,
        };
        if ours != expected {
            wrong.push(format!("{case}: we say {ours:?} instead of {expected:?}; kubectl says {}", said.trim()));
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
    for verdict in [Verdict::Done, Verdict::Waiting, Verdict::Failed] {
        assert!(told.contains(&verdict), "the matrix has no case of which kubectl says {verdict:?}");
    }
}

/// What `kubectl rollout undo` puts back is what we put back; and what is applied afterwards has no ghosts of the candidate,
/// nor of the baseline.
#[tokio::test(flavor = "multi_thread")]
async fn what_kubectl_undoes_is_what_we_bring_back_and_what_is_applied_later_has_no_ghosts() {
    let Some(theirs) = cluster::namespace().await else { return };
    let ours = cluster::namespace().await.expect("there was one a moment ago");
    for kind in [Kind::Deployment, Kind::StatefulSet, Kind::DaemonSet] {
        let name = kind_name(kind);
        let manifest = |image: u32, env: &[&str]| {
            let mut object = released(&name, image);
            object["kind"] = json!(format!("{kind:?}"));
            let spec = object["spec"].as_object_mut().unwrap();
            match kind {
                Kind::Deployment => {}
                Kind::StatefulSet => drop(spec.insert("serviceName".into(), json!("web"))),
                Kind::DaemonSet => drop(spec.remove("replicas")),
            }
            let env: Vec<Value> = env.iter().map(|name| json!({ "name": name, "value": "1" })).collect();
            spec["template"]["spec"]["containers"][0]["env"] = json!(env);
            object
        };
        let (old, new) = (manifest(1, &["OLD", "BOTH"]), manifest(2, &["NEW", "BOTH"]));
        let target = format!("{name}/{name}");
        for space in [&theirs, &ours] {
            space.apply(&old);
            space.rolled_out(&target);
        }
        theirs.apply(&new);
        theirs.rolled_out(&target);
        theirs.kubectl(&["rollout", "undo", &target]);

        let workload = Workload::new(&ours.client, kind, &ours.name, &name).unwrap();
        let candidate = workload.template("v2", &new["spec"]["template"]).await.unwrap();
        let id = TargetId::try_from("web").unwrap();
        let baseline = workload.baseline().await.unwrap();
        let change = Change { rollout: RolloutId::fresh(&id), target: id, baseline, candidate };
        for (serial, goal) in [(1, Goal::Candidate), (2, Goal::Baseline)] {
            let version = workload.observe(&change, goal, None).await.unwrap().version;
            let last = attempt(&change, goal, serial, version);
            workload.shift(&change, goal, &last).await.unwrap();
            let there =
                async || workload.observe(&change, goal, Some(&last)).await.unwrap().progress == Progress::Reached;
            ours.until("it is there", there).await;
            if goal == Goal::Candidate {
                // Somebody applies the candidate's manifest meanwhile, with a label.
                let mut labelled = new.clone();
                labelled["metadata"]["labels"]["team"] = json!("checkout");
                ours.apply(&labelled);
            }
        }
        let back = ours.get(&name, &name);
        assert_eq!(back["spec"]["template"], theirs.get(&name, &name)["spec"]["template"], "{kind:?}");

        ours.apply(&manifest(3, &["BOTH"]));
        let after = ours.get(&name, &name);
        assert_eq!(after["metadata"]["labels"]["team"], Value::Null, "{kind:?}: a ghost");
        let template = after["spec"]["template"].clone();
        assert_eq!(release_of(&template), release_of(&manifest(3, &[])["spec"]["template"]), "{kind:?}");
        let env = &template["spec"]["containers"][0]["env"];
        assert_eq!(*env, json!([{ "name": "BOTH", "value": "1" }]), "{kind:?}: ghosts");
    }
}

fn attempt(
    change: &Change,
    goal: Goal,
    serial: u64,
    version: rollback_core::model::Version,
) -> rollback_core::model::Attempt {
    let nonce = rollback_core::model::Nonce::new(&change.rollout, rollback_core::model::Serial(serial), goal);
    rollback_core::model::Attempt { nonce, goal, version, at: "2026-01-01T00:00:00Z".parse().unwrap() }
}
