//! Sweeps on a real API server: whole rollouts of every backend, and on the store, with one thing going wrong at each side
//! effect in turn.
//!
//! A rollout bakes for minutes and a crash waits for a lease, so the time of a sweep is paused; a server's is not. Its
//! answers therefore take no time: each request runs on a runtime of its own, and is waited for by a blocking task, while
//! which tokio lets no paused time pass. A look waits, likewise, until controllers have done what they were asked for.
//!
//! Some minutes are spent on crashes and lost answers. With `ROLLBACK_TEST_SWEEPS=all` everything is gone through that can go wrong, which
//! takes hours.

use std::{
    env,
    path::Path,
    sync::{Arc, LazyLock},
    thread,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use kube::client::Body;
use rollback_core::{
    Result,
    backend::{Capabilities, DeploymentBackend, Readiness},
    model::{Attempt, Change, Goal, Observed, Progress, Revision},
    plan::Plan,
    testing::{
        backend::Bench,
        fakes::Fake,
        sweep::{Scenario, Summary, Sweep},
    },
};
use rollback_k8s::{
    CanaryPair, Client, HttpRoute, ServiceSwitch, StatefulSetCanary, Workload, store::Secrets, testing::Cluster,
    workload::Kind,
};
use serde_json::{Value, json};
use tokio::{runtime, task::spawn_blocking};

use crate::{
    place,
    support::{
        cluster::{self, Namespace, PATIENCE, labelled, release, released},
        gateway, trial,
    },
};

type Data = <Body as http_body::Body>::Data;

/// Where the time of the server passes.
static REAL: LazyLock<runtime::Runtime> =
    LazyLock::new(|| runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime"));

/// A server whose answers take no time.
#[derive(Clone)]
struct Server {
    kube: kube::Client,
    namespace: String,
}

impl Server {
    fn new(kubeconfig: &Path, namespace: &str) -> Self {
        Self::seen_by(None, kubeconfig, namespace)
    }

    /// As this user sees it.
    fn seen_by(user: Option<&str>, kubeconfig: &Path, namespace: &str) -> Self {
        let kube = real(|| REAL.block_on(place::kube_as(kubeconfig, user)));
        Self { kube, namespace: namespace.into() }
    }

    fn client(&self) -> Client {
        let inner = self.kube.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let inner = inner.clone();
            async move {
                let answered = spawn_blocking(move || REAL.block_on(answer(inner, request)));
                answered.await.expect("it does not panic")
            }
        });
        Client::from_kube(kube::Client::new(service, "default"))
    }

    /// As somebody else does. The path is that below the namespace.
    fn send(&self, method: &str, api: &str, path: &str, body: &Value) -> Result<Value, kube::Error> {
        let kind = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
        let request = Request::builder().method(method).header("content-type", kind);
        let request = request.uri(format!("{api}/namespaces/{}/{path}", self.namespace));
        let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
        let request = request.body(body).expect("a good request");
        real(|| REAL.block_on(self.kube.request(request)))
    }

    fn get(&self, api: &str, path: &str) -> Value {
        self.send("GET", api, path, &Value::Null).unwrap_or_else(|e| panic!("{path}: {e}"))
    }

    /// As it was made, whatever stands there.
    fn put(&self, api: &str, path: &str, object: &Value) {
        self.send("PUT", api, path, object).unwrap_or_else(|e| panic!("{path}: {e}"));
    }
}

async fn answer(inner: kube::Client, request: Request<Body>) -> Result<Response<Full<Data>>, tower::BoxError> {
    let (head, body) = inner.send(request).await?.into_parts();
    Ok(Response::from_parts(head, Full::new(body.collect().await?.to_bytes())))
}

/// Does this in real time, from wherever.
fn real<T: Send>(what: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| scope.spawn(what).join().expect("it does not panic"))
}

/// A moment of real time, and none of the paused one.
async fn moment() {
    spawn_blocking(pause).await.expect("it does not panic");
}

#[expect(clippy::disallowed_methods, reason = "paused time does not pass by being slept away")]
fn pause() {
    thread::sleep(Duration::from_millis(20));
}

/// Real time, whatever is paused.
struct Stopwatch(Instant);

#[expect(clippy::disallowed_methods, reason = "it is real time that a server takes")]
impl Stopwatch {
    fn start() -> Self {
        Self(Instant::now())
    }

    fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }
}

/// What is swept over.
struct Scene {
    server: Server,
    /// As the backend sees it.
    tool: Server,
    target: Target,
    candidate: Revision,
    /// What a reset puts there: API, path and object.
    start: Vec<(&'static str, String, Value)>,
}

/// Which backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    Workload(Kind),
    Partition,
    Pair,
    Route,
    Service,
}

const APPS: &str = "/apis/apps/v1";
const CORE: &str = "/api/v1";
const GATEWAY: &str = "/apis/gateway.networking.k8s.io/v1";
const SIDES: [&str; 2] = ["blue", "green"];

impl Target {
    async fn connect(self, server: &Server) -> Result<Arc<dyn DeploymentBackend>> {
        let (client, space) = (server.client(), &*server.namespace);
        Ok(match self {
            Self::Workload(kind) => Arc::new(Workload::new(&client, kind, space, "web")?),
            Self::Partition => Arc::new(StatefulSetCanary::new(&client, space, "web").await?),
            Self::Pair => Arc::new(CanaryPair::new(&client, space, "web", SIDES).await?),
            Self::Route => Arc::new(HttpRoute::new(&client, space, "web", SIDES)?),
            Self::Service => Arc::new(ServiceSwitch::new(&client, space, "web")?),
        })
    }

    async fn candidate(self, server: &Server) -> Result<Revision> {
        let (client, space) = (server.client(), &*server.namespace);
        match self {
            Self::Workload(kind) => {
                let path = format!("{}s/web", format!("{kind:?}").to_lowercase());
                let template = next(&server.get(APPS, &path));
                Workload::new(&client, kind, space, "web")?.template("release 2", &template).await
            }
            Self::Partition => {
                let template = next(&server.get(APPS, "statefulsets/web"));
                StatefulSetCanary::new(&client, space, "web").await?.template("release 2", &template).await
            }
            Self::Pair => CanaryPair::new(&client, space, "web", SIDES).await?.candidate().await,
            Self::Route => HttpRoute::new(&client, space, "web", SIDES)?.revision("release 2", "green"),
            Self::Service => {
                ServiceSwitch::new(&client, space, "web")?.revision("release 2", [("side", "green")]).await
            }
        }
    }

    async fn role(self, server: &Server) -> Result<String> {
        let (client, space) = (server.client(), &*server.namespace);
        match self {
            Self::Workload(kind) => Workload::new(&client, kind, space, "web")?.role("tool"),
            Self::Partition => StatefulSetCanary::new(&client, space, "web").await?.role("tool"),
            Self::Pair => CanaryPair::new(&client, space, "web", SIDES).await?.role("tool"),
            Self::Route => HttpRoute::new(&client, space, "web", SIDES)?.role("tool"),
            Self::Service => ServiceSwitch::new(&client, space, "web")?.role("tool"),
        }
    }

    /// What there is at the start.
    fn start(self) -> Vec<(&'static str, String, Value)> {
        let service = |name: &str, selector: Value| {
            let object = json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": name },
                "spec": { "selector": selector, "ports": [{ "port": 80 }] } });
            (CORE, format!("services/{name}"), object)
        };
        let sides = |pods: [u32; 2]| {
            let side = |(name, pods): (&str, u32)| {
                let mut object = quick(released(name, u32::from(name == "green") + 1));
                object["spec"]["replicas"] = json!(pods);
                let object = labelled(object, &json!({ "app": "web", "side": name }));
                (APPS, format!("deployments/{name}"), object)
            };
            SIDES.into_iter().zip(pods).map(side)
        };
        match self {
            Self::Workload(kind) => {
                let mut object = quick(released("web", 1));
                object["kind"] = json!(format!("{kind:?}"));
                let spec = object["spec"].as_object_mut().expect("a spec");
                match kind {
                    Kind::DaemonSet => drop(spec.remove("replicas")),
                    Kind::StatefulSet => drop(spec.insert("serviceName".into(), json!("web"))),
                    Kind::Deployment => spec["replicas"] = json!(1),
                }
                vec![(APPS, format!("{}s/web", format!("{kind:?}").to_lowercase()), object)]
            }
            Self::Partition => Self::Workload(Kind::StatefulSet).start(),
            Self::Pair => sides([1, 0]).chain([service("web", json!({ "app": "web" }))]).collect(),
            Self::Service => sides([1, 1]).chain([service("web", json!({ "app": "web", "side": "blue" }))]).collect(),
            Self::Route => {
                let backend = |name: &str, weight: u8| json!({ "name": name, "port": 80, "weight": weight });
                let rule = json!({ "backendRefs": [backend("blue", 100), backend("green", 0)] });
                let route = json!({ "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
                    "metadata": { "name": "web" },
                    "spec": { "parentRefs": [{ "name": "outer" }], "rules": [rule] } });
                sides([1, 1])
                    .chain(SIDES.map(|side| service(side, json!({ "side": side }))))
                    .chain([(GATEWAY, "httproutes/web".into(), route)])
                    .collect()
            }
        }
    }
}

/// With pods that come and go at once where they are played, and of which none crashes.
fn quick(mut object: Value) -> Value {
    object["spec"]["minReadySeconds"] = json!(0);
    for setting in ["ready-delay", "terminate-delay"] {
        object["spec"]["template"]["metadata"]["annotations"][format!("fake-kubelet/{setting}")] = json!("0.01");
    }
    object
}

fn next(object: &Value) -> Value {
    let mut template = object["spec"]["template"].clone();
    release(&mut template, 2);
    template
}

impl Scene {
    async fn new(space: &Namespace, target: Target) -> Self {
        let server = Server::new(space.kubeconfig(), &space.name);
        if target == Target::Route {
            gateway::install(space).await;
        }
        let start = target.start();
        for (api, path, object) in &start {
            let (kinds, _) = path.split_once('/').expect("kind and name");
            server.send("POST", api, kinds, object).unwrap_or_else(|e| panic!("{path}: {e}"));
        }
        rest(&server, &start).await;
        let candidate = target.candidate(&server).await.expect("a candidate");
        Self { tool: server.clone(), server, target, candidate, start }
    }

    /// The backend is a user from now on who has the Role that it prints, and no other right.
    async fn restrict(&mut self, space: &Namespace) {
        let role = self.target.role(&self.server).await.expect("a good name");
        assert!(space.run(&["apply", "-f", "-"], Some(&role)).status.success(), "{role}");
        space.kubectl(&["create", "rolebinding", "tool", "--role=tool", "--user=tool"]);
        self.tool = Server::seen_by(Some("tool"), space.kubeconfig(), &space.name);
        // The API server hears of a role a moment after it has accepted it.
        let begun = Stopwatch::start();
        while self.target.connect(&self.tool).await.is_err() || self.connect().await.baseline().await.is_err() {
            assert!(begun.elapsed() < PATIENCE, "the role does not count: {role}");
            moment().await;
        }
    }
}

/// Waits until controllers and gateway have nothing to do any more.
async fn rest(server: &Server, start: &[(&'static str, String, Value)]) {
    let begun = Stopwatch::start();
    for (api, path, _) in start {
        loop {
            if *api == GATEWAY {
                speak(server);
            }
            let object = server.get(api, path);
            if is_at_rest(api, &object) && ends(server, path, &object) {
                break;
            }
            assert!(begun.elapsed() < PATIENCE, "{path} does not come to rest: {object:#}");
            moment().await;
        }
    }
}

fn is_at_rest(api: &str, object: &Value) -> bool {
    let status = |name: &str| object["status"][name].as_i64().unwrap_or(0);
    let wanted = object["spec"]["replicas"].as_i64().unwrap_or_else(|| status("desiredNumberScheduled"));
    let (all, new, up) = match object["kind"].as_str() {
        Some("DaemonSet") => ("currentNumberScheduled", "updatedNumberScheduled", "numberAvailable"),
        Some("StatefulSet") => ("replicas", "updatedReplicas", "readyReplicas"),
        _ => ("replicas", "updatedReplicas", "availableReplicas"),
    };
    api != APPS
        || (object["metadata"]["generation"] == object["status"]["observedGeneration"]
            && object["status"]["updateRevision"] == object["status"]["currentRevision"]
            && [all, new, up].into_iter().all(|it| status(it) == wanted))
}

/// Whether no pod of a workload is on its way out any more, and some are there where there are to be.
fn ends(server: &Server, path: &str, object: &Value) -> bool {
    if !path.contains("sets/") && !path.contains("deployments/") {
        return true;
    }
    let labels = object["spec"]["selector"]["matchLabels"].as_object().expect("labels").iter();
    let labels: Vec<String> = labels.map(|(name, value)| format!("{name}={}", value.as_str().expect("text"))).collect();
    let pods = server.get(CORE, &format!("pods?labelSelector={}", labels.join(",")));
    let pods = pods["items"].as_array().expect("pods").clone();
    let wanted = object["spec"]["replicas"].as_u64().unwrap_or(1);
    pods.iter().all(|pod| pod["metadata"]["deletionTimestamp"].is_null()) && pods.len() as u64 >= wanted
}

/// As a gateway does.
fn speak(server: &Server) {
    if let Some(judged) = gateway::judged(server.get(GATEWAY, "httproutes/web")) {
        // A write of somebody else may be faster: the next round says it again.
        drop(server.send("PUT", GATEWAY, "httproutes/web/status", &judged));
    }
}

#[async_trait]
impl Bench for Scene {
    async fn reset(&self) {
        for (api, path, object) in &self.start {
            if *api == CORE {
                // Its address is its own.
                let patch = json!({ "metadata": { "annotations": null }, "spec": object["spec"] });
                self.server.send("PATCH", api, path, &patch).unwrap_or_else(|e| panic!("{path}: {e}"));
                continue;
            }
            let mut object = object.clone();
            let version = self.server.get(api, path)["metadata"]["resourceVersion"].clone();
            object["metadata"]["resourceVersion"] = if *api == GATEWAY { version } else { Value::Null };
            self.server.put(api, path, &object);
        }
        rest(&self.server, &self.start).await;
    }

    async fn connect(&self) -> Arc<dyn DeploymentBackend> {
        let inner = self.target.connect(&self.tool).await.expect("it is there");
        Arc::new(Patient { inner, server: self.server.clone(), target: self.target })
    }

    fn candidate(&self) -> Revision {
        self.candidate.clone()
    }

    async fn settle(&self) {
        moment().await;
    }

    async fn drift(&self) -> bool {
        let server = &self.server;
        let patch = |api: &str, path: &str, spec: Value| {
            server.send("PATCH", api, path, &json!({ "spec": spec })).unwrap_or_else(|e| panic!("{path}: {e}"));
        };
        match self.target {
            Target::Workload(_) | Target::Partition => {
                let release = json!({ "template": { "metadata": { "annotations": { "release": "9" } } } });
                patch(APPS, &self.start[0].1, release);
            }
            Target::Pair => patch(APPS, "deployments/green", json!({ "replicas": 3 })),
            Target::Service => patch(CORE, "services/web", json!({ "selector": { "side": "red" } })),
            Target::Route => {
                let mut rules = server.get(GATEWAY, "httproutes/web")["spec"]["rules"].clone();
                rules[0]["backendRefs"][0]["weight"] = json!(7);
                patch(GATEWAY, "httproutes/web", json!({ "rules": rules }));
            }
        }
        true
    }
}

/// A backend whose looks wait until its controller has done what it was asked for.
struct Patient {
    inner: Arc<dyn DeploymentBackend>,
    server: Server,
    target: Target,
}

impl std::fmt::Debug for Patient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.inner.fmt(f)
    }
}

#[async_trait]
impl DeploymentBackend for Patient {
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    async fn baseline(&self) -> Result<Revision> {
        self.inner.baseline().await
    }

    async fn preflight(&self, change: &Change, plan: &Plan) -> Result<Readiness> {
        self.inner.preflight(change, plan).await
    }

    async fn observe<'a>(&self, change: &Change, goal: Goal, last: Option<&'a Attempt>) -> Result<Observed> {
        let begun = Stopwatch::start();
        loop {
            if self.target == Target::Route {
                speak(&self.server);
            }
            let look = self.inner.observe(change, goal, last).await?;
            if !matches!(look.progress, Progress::Underway(_)) || begun.elapsed() > PATIENCE {
                return Ok(look);
            }
            moment().await;
        }
    }

    async fn shift(&self, change: &Change, goal: Goal, attempt: &Attempt) -> Result<()> {
        self.inner.shift(change, goal, attempt).await
    }
}

/// One backend, on a thread of its own.
async fn sweep(space: Namespace, target: Target) -> Summary {
    let scene = Scene::new(&space, target).await;
    if is_all() {
        return Sweep::of(&scene).all().await;
    }
    let mut scenarios = Scenario::ready_made(&scene).await;
    let worst = if scenarios.iter().any(|it| it.name() == "bad canary") { "bad canary" } else { "bad all at once" };
    scenarios.retain(|it| it.name() == worst);
    assert_eq!(scenarios.len(), 1);
    let sweep = Sweep::of(&scene).scenarios(scenarios);
    let mut swept = sweep.crashes().await;
    swept += sweep.lost_answers().await;
    swept
}

/// Everything that is promised of a backend, by a user who has the Role that it prints.
async fn promises(space: Namespace, target: Target) {
    let mut scene = Scene::new(&space, target).await;
    scene.restrict(&space).await;
    trial::keeps_every_promise(&scene).await;
}

/// The store: the target is in memory, and the records are on the server.
async fn store(space: Namespace) -> Summary {
    let server = Server::new(space.kubeconfig(), &space.name);
    let empty = || {
        for (api, path) in [(CORE, "secrets"), ("/apis/coordination.k8s.io/v1", "leases")] {
            let path = format!("{path}?labelSelector=rollback.rs%2Fpart");
            server.send("DELETE", api, &path, &Value::Null).unwrap_or_else(|e| panic!("{path}: {e}"));
        }
        Secrets::new(&server.client(), &server.namespace).expect("a good namespace")
    };
    let bench = Fake::new("v1", "v2");
    if is_all() {
        return Sweep::of(&bench).store(empty).all().await;
    }
    let mut scenarios = Scenario::ready_made(&bench).await;
    scenarios.retain(|it| it.name() == "bad canary");
    let sweep = Sweep::of(&bench).store(empty).scenarios(scenarios);
    let mut swept = sweep.crashes().await;
    swept += sweep.lost_answers().await;
    swept
}

/// The same on an API server in memory, with everything that can go wrong.
#[tokio::test(start_paused = true)]
async fn every_disturbance_of_the_store_in_memory_is_got_over() {
    let bench = Fake::new("v1", "v2");
    let mut scenarios = Scenario::ready_made(&bench).await;
    scenarios.retain(|it| it.name() == "bad canary");
    let store = || Secrets::new(&Cluster::new().client(), "default").expect("a good namespace");
    eprintln!("Secrets: {}", Sweep::of(&bench).store(store).scenarios(scenarios).all().await);
}

fn is_all() -> bool {
    env::var("ROLLBACK_TEST_SWEEPS").is_ok_and(|value| value == "all")
}

/// A runtime with paused time: in one of its own each, they wait for pods at the same time.
fn paused<T>(what: impl Future<Output = T>) -> T {
    let runtime = runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
    runtime.expect("a runtime").block_on(what)
}

/// Workloads and sets by partition, which take longer, are tried where their own tests are.
#[test]
fn a_pair_a_route_and_a_switched_service_keep_every_promise_on_a_real_server_with_the_role_that_they_print() {
    let of = |target: Target| {
        if let Some(space) = paused(cluster::namespace()) {
            paused(promises(space, target));
        }
    };
    thread::scope(|scope| {
        let running = [Target::Pair, Target::Route, Target::Service].map(|target| scope.spawn(move || of(target)));
        let ended: Vec<_> = running.into_iter().map(thread::ScopedJoinHandle::join).collect();
        assert!(ended.iter().all(Result::is_ok), "see above");
    });
}

#[test]
fn crashes_and_lost_answers_of_every_backend_and_of_the_store_are_got_over_on_a_real_server() {
    let begun = Stopwatch::start();
    let targets = [
        Target::Workload(Kind::Deployment),
        Target::Workload(Kind::StatefulSet),
        Target::Workload(Kind::DaemonSet),
        Target::Partition,
        Target::Pair,
        Target::Route,
        Target::Service,
    ];
    // What they print is shown when this test fails.
    let told = |what: &str, swept: &dyn Fn(Namespace) -> Summary| {
        if let Some(space) = paused(cluster::namespace()) {
            println!("{what}: {} in {:?}", swept(space), begun.elapsed());
        }
    };
    thread::scope(|scope| {
        let of =
            |target: Target| scope.spawn(move || told(&format!("{target:?}"), &|space| paused(sweep(space, target))));
        let mut running: Vec<_> = targets.map(of).into();
        running.push(scope.spawn(|| told("Secrets", &|space| paused(store(space)))));
        let ended: Vec<_> = running.into_iter().map(thread::ScopedJoinHandle::join).collect();
        assert!(ended.iter().all(Result::is_ok), "see above");
    });
}
