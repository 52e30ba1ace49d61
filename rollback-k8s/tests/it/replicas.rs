//! Two replicas of a tool, as processes, on the store in the cluster: one is killed, or stopped and continued.
//!
//! The processes are this program once more, running [`child`]. What they deploy to is a ConfigMap, which checks versions
//! as every object of the API does.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process,
    time::Duration,
};

use async_trait::async_trait;
use rollback_core::{
    Error, ErrorKind, Result,
    backend::{Capabilities, DeploymentBackend, Readiness, Weights},
    engine::{Engine, NewRollout, Outcome, Target},
    gate::{self, Evidence, Policy, Verdict},
    model::{Attempt, Change, Goal, Observed, Progress, Revision, RolloutId, Version, Weight},
    plan::{Plan, Step},
    store::{Claim, Standing, Store},
};
use rollback_k8s::{Client, store::Secrets};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::{place::Place, support::process::Process};

/// How long a process may be silent.
const LEASE: Duration = Duration::from_secs(3);
/// What a busy machine adds.
const MARGIN: Duration = Duration::from_secs(3);
/// The exit status of a driver whose rollout another process has taken up.
const TAKEN_UP: i32 = 130;
const JOB: &str = "ROLLBACK_TEST_CHILD";

#[test]
#[ignore = "a child process of the other tests, which start it"]
fn child() {
    let Ok(job) = env::var(JOB) else { return };
    let job: Job = serde_json::from_str(&job).expect("the parent wrote it");
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    process::exit(runtime.block_on(job.run()));
}

#[tokio::test]
async fn of_two_replicas_one_is_killed_and_the_other_takes_its_rollout_over_within_the_lease() {
    let Some(place) = Place::new().await else { return };
    let stage = Stage::new(&place).await;
    let mut first = stage.start();
    stage.until("the first bakes", async || stage.serves("new").await).await;
    let mut second = stage.start();
    // It has to have seen the first alive, or it would have to wait for a lease from now on.
    sleep(LEASE).await;
    assert!(stage.driver().await.unwrap().starts_with(&format!("{}-", first.id())), "it drives while it lives");
    first.kill();
    let killed = Instant::now();
    stage.until("the second drives", async || stage.is_driven_by(&second).await).await;
    let taken = killed.elapsed();
    println!("taken over {taken:?} after the kill, with a lease of {LEASE:?}");
    assert!(taken <= LEASE + MARGIN, "taken over {taken:?} after the kill");
    stage.say("bad");
    assert_eq!(second.ends().await, 1, "it rolls back");
    assert_eq!(stage.writes().await, [(first.id(), "new".into()), (second.id(), "old".into())]);
    assert!(stage.is_over().await);
}

#[tokio::test]
async fn a_replica_that_is_stopped_and_continued_later_changes_nothing() {
    for continued_first in [true, false] {
        let Some(place) = Place::new().await else { return };
        let stage = Stage::new(&place).await;
        let mut first = stage.start();
        stage.until("the first bakes", async || stage.serves("new").await).await;
        let mut second = stage.start();
        sleep(LEASE).await;
        first.signal("STOP");
        stage.until("the second drives", async || stage.is_driven_by(&second).await).await;
        if continued_first {
            first.signal("CONT");
            assert_eq!(first.ends().await, TAKEN_UP, "it is told that another drives");
        }
        stage.say("bad");
        assert_eq!(second.ends().await, 1, "it rolls back");
        let before = stage.everything().await;
        if !continued_first {
            first.signal("CONT");
            assert_eq!(first.ends().await, TAKEN_UP, "it is told that another drove");
        }
        assert_eq!(stage.everything().await, before, "it came back and changed the target or the record");
        assert_eq!(stage.writes().await, [(first.id(), "new".into()), (second.id(), "old".into())]);
    }
}

/// What a process is to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Job {
    kubeconfig: PathBuf,
    namespace: String,
    /// What the gate says: `good`, `bad`, or nothing.
    word: PathBuf,
}

impl Job {
    async fn run(&self) -> i32 {
        let client = Client::from_kubeconfig(&self.kubeconfig, None).await.expect("a cluster");
        let store = Secrets::new(&client, &self.namespace).expect("a good namespace");
        let engine = Engine::builder(store.clone()).lease(LEASE).build().expect("a good lease");
        let word = self.word.clone();
        let judge = move |window: gate::Window| {
            let word = fs::read_to_string(&word).unwrap_or_default();
            async move {
                let evidence = Evidence::new(window.now, word.clone());
                Ok(match word.as_str() {
                    "bad" => Verdict::Unhealthy(evidence),
                    "good" => Verdict::Healthy(evidence),
                    _ => window.no_data("nothing was said"),
                })
            }
        };
        let gate = gate::from_fn("word", judge).expect("a good name");
        let pointer = Pointer::new(&self.kubeconfig, &self.namespace).await;
        let target = Target::new("pointer", pointer)
            .expect("a good id")
            .gate(gate, Policy::default().every(Duration::from_millis(100)))
            .look_every(Duration::from_millis(50), Duration::from_millis(500));
        engine.register(target).expect("a good target");
        let outcome = self.go_on(&engine, &store).await;
        outcome.map_or(2, |outcome| outcome.exit_code().into())
    }

    async fn go_on(&self, engine: &Engine, store: &Secrets) -> Option<Outcome> {
        let rollout: RolloutId = "pointer-1".try_into().expect("a good id");
        let resumed = engine.resume_all().await.expect("the store answers");
        if let Some(handle) = resumed.handles.into_iter().next() {
            return Some(handle.finished().await);
        }
        if resumed.elsewhere.is_empty() {
            let plan = Plan::new([Step::new(Weight::ALL, Duration::from_secs(1))]).expect("a good plan");
            let new =
                NewRollout::new("pointer", Revision::new("new").expect("a good id"), plan).expect("a good target");
            return Some(engine.start(new.id(rollout)).await.expect("nobody else starts one").finished().await);
        }
        loop {
            if let Some(handle) = engine.handle(&rollout) {
                return Some(handle.finished().await);
            }
            if let Ok((record, _)) = store.load(&rollout).await
                && record.standing != Standing::Open
            {
                return None;
            }
            sleep(Duration::from_millis(100)).await;
        }
    }
}

/// A ConfigMap that says what serves, by whom it was changed, and with which nonce.
struct Pointer {
    kube: kube::Client,
    path: String,
}

impl Pointer {
    async fn new(kubeconfig: &Path, namespace: &str) -> Self {
        let kube = crate::place::kube(kubeconfig).await;
        Self { kube, path: format!("/api/v1/namespaces/{namespace}/configmaps/pointer") }
    }

    async fn read(&self) -> Result<Value> {
        let request = http::Request::get(&self.path).body(Vec::new()).expect("a good request");
        self.kube.request(request).await.map_err(|e| Error::new(ErrorKind::Unavailable, "no answer").because(e))
    }
}

impl std::fmt::Debug for Pointer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Pointer")
    }
}

#[async_trait]
impl DeploymentBackend for Pointer {
    fn capabilities(&self) -> Capabilities {
        Capabilities::full().weights(Weights::only([]).expect("none is fine"))
    }

    async fn baseline(&self) -> Result<Revision> {
        Revision::new(self.read().await?["data"]["serves"].as_str().unwrap_or_default())
    }

    async fn preflight(&self, _change: &Change, _plan: &Plan) -> Result<Readiness> {
        Ok(Readiness::default().proved("it is a ConfigMap"))
    }

    async fn observe<'a>(&self, change: &Change, goal: Goal, last: Option<&'a Attempt>) -> Result<Observed> {
        let map = self.read().await?;
        let version = Version::try_from(map["metadata"]["resourceVersion"].as_str().unwrap_or_default())?;
        let serves = map["data"]["serves"].as_str().unwrap_or_default();
        let wanted = if goal.is_forward() { &change.candidate.id } else { &change.baseline.id };
        let landed = last.is_some_and(|last| map["data"]["nonce"] == last.nonce.as_str());
        let may_land = last.is_some_and(|last| last.version == version);
        let progress = match serves {
            _ if serves == wanted.as_str() && (goal.is_forward() || !may_land) => Progress::Reached,
            _ if serves == change.candidate.id.as_str() || serves == change.baseline.id.as_str() => {
                Progress::Due(format!("point at {wanted}").into())
            }
            other => Progress::Drifted(format!("it points at {other}").into()),
        };
        let weight = if serves == change.candidate.id.as_str() { Weight::ALL } else { Weight::NONE };
        Ok(Observed::new(progress, version).weight(weight).landed(landed))
    }

    async fn shift(&self, change: &Change, goal: Goal, attempt: &Attempt) -> Result<()> {
        let mut map = self.read().await?;
        let wanted = if goal.is_forward() { &change.candidate.id } else { &change.baseline.id };
        let writes = map["data"]["writes"].as_str().unwrap_or_default();
        let writes = format!("{writes}{} {wanted}\n", process::id());
        map["metadata"]["resourceVersion"] = json!(attempt.version.as_str());
        map["data"] = json!({ "serves": wanted.as_str(), "nonce": attempt.nonce.as_str(), "writes": writes });
        let request = http::Request::put(&self.path).header("content-type", "application/json");
        let request = request.body(map.to_string().into_bytes()).expect("a good request");
        match self.kube.request::<Value>(request).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(said)) if said.code == 409 => Err(Error::new(ErrorKind::Conflict, "it has moved on")),
            Err(e) => Err(Error::new(ErrorKind::Unavailable, "no answer").because(e)),
        }
    }
}

struct Stage<'p> {
    place: &'p Place,
    folder: tempfile::TempDir,
    store: Secrets,
}

impl<'p> Stage<'p> {
    async fn new(place: &'p Place) -> Self {
        let map = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "pointer" },
            "data": { "serves": "old", "writes": "" } });
        place.send("POST", &format!("/api/v1/namespaces/{}/configmaps", place.namespace), &map).await;
        let client = Client::from_kubeconfig(&place.kubeconfig, None).await.unwrap();
        let store = Secrets::new(&client, &place.namespace).unwrap();
        Self { place, folder: tempfile::tempdir().unwrap(), store }
    }

    fn start(&self) -> Process {
        let (kubeconfig, namespace) = (self.place.kubeconfig.clone(), self.place.namespace.clone());
        let job = Job { kubeconfig, namespace, word: self.folder.path().join("word") };
        Process::start("replicas::child", JOB, &job, &self.folder.path().join("stderr"))
    }

    fn say(&self, word: &str) {
        fs::write(self.folder.path().join("word"), word).unwrap();
    }

    async fn map(&self) -> Value {
        let path = format!("/api/v1/namespaces/{}/configmaps/pointer", self.place.namespace);
        self.place.send("GET", &path, &Value::Null).await
    }

    async fn serves(&self, revision: &str) -> bool {
        self.map().await["data"]["serves"] == revision
    }

    /// Who changed the target, and to what.
    async fn writes(&self) -> Vec<(u32, String)> {
        let map = self.map().await;
        let lines = map["data"]["writes"].as_str().unwrap().lines();
        let read = |line: &str| line.split_once(' ').map(|(by, what)| (by.parse().unwrap(), what.to_owned()));
        lines.filter_map(read).collect()
    }

    async fn claim(&self) -> Option<Claim> {
        self.store.open().await.unwrap().pop()
    }

    async fn driver(&self) -> Option<String> {
        Some(self.claim().await?.driver?.to_string())
    }

    async fn is_driven_by(&self, process: &Process) -> bool {
        self.driver().await.is_some_and(|driver| driver.starts_with(&format!("{}-", process.id())))
    }

    async fn is_over(&self) -> bool {
        self.claim().await.is_none()
    }

    /// The target and the record, each with its version.
    async fn everything(&self) -> (Value, String) {
        let record = self.store.load(&"pointer-1".try_into().unwrap()).await.unwrap();
        (self.map().await, format!("{:?} {}", record, record.0.body))
    }

    async fn until(&self, what: &str, so: impl AsyncFn() -> bool) {
        self.place.until(what, so).await;
    }
}

/// What the processes said, for whoever reads why a test failed.
impl Drop for Stage<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", fs::read_to_string(self.folder.path().join("stderr")).unwrap_or_default());
        }
    }
}
