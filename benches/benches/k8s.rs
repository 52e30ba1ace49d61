//! What live rollouts cost on Kubernetes: requests a minute, counted on an API server in memory; memory with many pods
//! watched; and how soon a pod that crashes over and over has brought its baseline back.

use std::{alloc::System, time::Duration};

use rollback_benches::{measures, quick, two_cores};
use rollback_core::{
    engine::{Engine, Handle, NewRollout, Target},
    gate::Policy,
    model::Weight,
    plan::{Plan, Step},
    state::State,
};
use rollback_k8s::{Client, Watches, Workload, gate::Pods, store::Secrets, testing::Cluster};
use serde_json::{Value, json};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use tokio::time::{Instant, sleep};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Pods of each rollout.
const PODS: usize = 10;

fn main() {
    if !measures() {
        return;
    }
    let window = Duration::from_secs(if quick() { 30 } else { 60 });
    for live in [1, 100, 1_000] {
        let runtime = two_cores();
        runtime.block_on(measure(live, window));
        runtime.shutdown_background();
    }
}

async fn measure(live: usize, window: Duration) {
    let cluster = Cluster::new();
    for n in 0..live {
        deploy(&cluster, n);
    }
    let client = cluster.client();
    let watches = Watches::new(&client);
    let store = Secrets::new(&client, "default").expect("a good namespace");
    let engine = Engine::new(store).expect("the defaults are good");
    // As every tool does that outlives a crash: it also looks for what others leave behind.
    engine.resume_all().await.expect("the store is there");

    // The watches alone, with every pod known: asked for once, and then at rest.
    let region = Region::new(ALLOCATOR);
    let first = start(&engine, &client, &watches, 0).await;
    bakes(&first).await;
    sleep(Duration::from_secs(1)).await;
    let used = region.change();
    let kept = used.bytes_allocated.saturating_sub(used.bytes_deallocated);
    println!(
        "{live} workloads, {} pods watched: {:.1} MiB allocated for all that is known of them",
        live * PODS,
        mib(kept)
    );

    let region = Region::new(ALLOCATOR);
    let mut handles = vec![first];
    for n in 1..live {
        handles.push(start(&engine, &client, &watches, n).await);
    }
    for handle in &handles {
        bakes(handle).await;
    }
    let used = region.change();
    let kept = used.bytes_allocated.saturating_sub(used.bytes_deallocated);
    println!(
        "{live} live: {:.1} MiB more for all but the first, what the API server in memory keeps of them included",
        mib(kept)
    );

    // Steady: after the first save of what the gates remember.
    sleep(Duration::from_secs(5)).await;
    let before = cluster.requests().len();
    let begun = Instant::now();
    sleep(window).await;
    let requests = cluster.requests().split_off(before);
    let minutes = begun.elapsed().as_secs_f64() / 60.0;
    let rate = |what: &dyn Fn(&str) -> bool| requests.iter().filter(|line| what(line)).count() as f64 / minutes;
    let watch = |line: &str| line.contains("watch=true");
    let save = |line: &str| line.starts_with("PUT") && line.contains("/secrets/");
    let beat = |line: &str| line.starts_with("PATCH") && line.contains("/leases/");
    let look = |line: &str| line.starts_with("GET") && line.contains("/deployments/");
    println!(
        "{live} live: {:.0} requests a minute beside {:.0} saves: {:.0} watches begun again, {:.0} beats, {:.0} looks at \
         a workload, {:.0} others",
        rate(&|line| !save(line)),
        rate(&save),
        rate(&watch),
        rate(&beat),
        rate(&look),
        rate(&|line| !save(line) && !watch(line) && !beat(line) && !look(line)),
    );
    let paths: std::collections::BTreeSet<&str> =
        requests.iter().filter(|line| watch(line)).filter_map(|line| line.split('?').next()).collect();
    println!("    watched: {paths:?}");

    // One after the other, among all the others.
    let mut took = Vec::new();
    for n in 0..live.min(TRIPS) {
        took.push(trip(&cluster, n).await);
    }
    took.sort();
    println!(
        "{live} live: from CrashLoopBackOff in a pod's status to the baseline's template, {} times: median {:.1?}, at most \
         {:.1?}",
        took.len(),
        took[took.len() / 2],
        took[took.len() - 1],
    );
    engine.shutdown(Duration::from_secs(5)).await;
}

async fn start(engine: &Engine, client: &Client, watches: &Watches, n: usize) -> Handle {
    let name = format!("web-{n}");
    let gate = Pods::of(watches, "default", &format!("deployment/{name}")).expect("a workload");
    let workload = Workload::deployment(client, "default", &name).expect("a good name").watched_by(watches);
    let candidate = workload.images([("app", NEW)]).await.expect("it has this container");
    let target = Target::new(&name, workload).expect("a good id").gate(gate, Policy::default());
    engine.register(target).expect("a good target");
    let plan = Plan::new([Step::new(Weight::ALL, Duration::from_secs(3600))]).expect("a good plan");
    engine.start(NewRollout::new(&name, candidate, plan).expect("a good target")).await.expect("it starts")
}

async fn bakes(handle: &Handle) {
    while !matches!(handle.status().state, State::Baking { .. }) {
        assert!(handle.status().state.is_open(), "{:?}", handle.status().state);
        sleep(Duration::from_millis(5)).await;
    }
}

/// How long it takes until a pod that crashes over and over has brought the baseline back.
async fn trip(cluster: &Cluster, n: usize) -> Duration {
    let name = format!("web-{n}");
    let mut pod = cluster.get("pods", &format!("{name}-5d4f8c7b9-00000")).expect("it is there");
    let ended = json!({ "exitCode": 1, "reason": "Error", "finishedAt": "2026-01-01T01:00:00Z" });
    pod["status"]["conditions"][0]["status"] = json!("False");
    pod["status"]["containerStatuses"] = json!([{
        "name": "app", "ready": false, "restartCount": 2, "lastState": { "terminated": ended },
        "state": { "waiting": { "reason": "CrashLoopBackOff", "message": "back-off 20s restarting failed container" } },
    }]);
    let begun = Instant::now();
    cluster.put(&pod);
    loop {
        let object = cluster.get("deployments", &name).expect("it is there");
        if object["spec"]["template"]["spec"]["containers"][0]["image"] == OLD {
            return begun.elapsed();
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "{name} does not come back");
        sleep(Duration::from_millis(1)).await;
    }
}

/// How often is timed how soon one comes back.
const TRIPS: usize = 20;
const OLD: &str = "registry.example/shop/web:1.2.3";
const NEW: &str = "registry.example/shop/web:1.2.4";

/// A Deployment that its controller has rolled out, with its ReplicaSet and pods, each as large as they are in practice.
fn deploy(cluster: &Cluster, n: usize) {
    let name = format!("web-{n}");
    let labels = json!({ "app": name, "pod-template-hash": "5d4f8c7b9" });
    let env: Vec<Value> = (0..24).map(|n| json!({ "name": format!("SETTING_{n}"), "value": "v".repeat(24) })).collect();
    let spec = json!({ "containers": [{ "name": "app", "image": OLD, "env": env,
        "resources": { "limits": { "cpu": "1", "memory": "512Mi" } },
        "readinessProbe": { "httpGet": { "path": "/healthz", "port": 8080 }, "periodSeconds": 5 } }] });
    let template = json!({ "metadata": { "labels": { "app": name } }, "spec": spec });
    let owner = |kind: &str, object: &Value| {
        json!([{ "apiVersion": "apps/v1", "kind": kind, "name": object["metadata"]["name"], "uid": object["metadata"]["uid"],
            "controller": true, "blockOwnerDeletion": true }])
    };
    let deployment = cluster.put(&json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": { "name": name, "annotations": { "deployment.kubernetes.io/revision": "1" } },
        "spec": { "replicas": PODS, "selector": { "matchLabels": { "app": name } }, "template": template },
        "status": { "observedGeneration": 1, "replicas": PODS, "readyReplicas": PODS, "updatedReplicas": PODS,
            "availableReplicas": PODS },
    }));
    let set = cluster.put(&json!({
        "apiVersion": "apps/v1", "kind": "ReplicaSet",
        "metadata": { "name": format!("{name}-5d4f8c7b9"), "labels": labels,
            "annotations": { "deployment.kubernetes.io/revision": "1" },
            "ownerReferences": owner("Deployment", &deployment) },
        "spec": { "replicas": PODS, "template": template },
    }));
    for pod in 0..PODS {
        let ready = json!({ "type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:05Z" });
        cluster.put(&json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": format!("{name}-5d4f8c7b9-{pod:05}"), "labels": labels,
                "ownerReferences": owner("ReplicaSet", &set) },
            "spec": spec,
            "status": { "phase": "Running", "conditions": [ready], "podIP": "10.0.0.1", "containerStatuses": [{
                "name": "app", "ready": true, "restartCount": 0, "image": NEW,
                "state": { "running": { "startedAt": "2026-01-01T00:00:02Z" } } }] },
        }));
    }
}

fn mib(bytes: usize) -> f64 {
    bytes as f64 / (1024.0 * 1024.0)
}
