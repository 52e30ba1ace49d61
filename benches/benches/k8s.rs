//! What live rollouts cost on Kubernetes: requests a minute, counted on an API server in memory, and memory with many pods
//! watched.

use std::{alloc::System, time::Duration};

use rollback_benches::{measures, quick, two_cores};
use rollback_core::{
    engine::{Engine, Handle, NewRollout, Target},
    gate::Policy,
    model::{Revision, Weight},
    plan::{Plan, Step},
    state::State,
    testing::fakes::Fake,
};
use rollback_k8s::{Watches, gate::Pods, store::Secrets, testing::Cluster};
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
    let window = Duration::from_secs(if quick() { 15 } else { 60 });
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

    // The watches alone, with every pod known: asked for once, and then at rest.
    let region = Region::new(ALLOCATOR);
    let gate = Pods::of(&watches, "default", "deployment/web-0").expect("a workload");
    let fake = Fake::new("good", "new");
    engine
        .register(Target::new("first", fake).expect("a good id").gate(gate, Policy::default()))
        .expect("a good target");
    let first = start(&engine, "first", 0).await;
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
    let mut handles = Vec::new();
    for n in 1..live {
        let name = format!("t-{n}");
        let gate = Pods::of(&watches, "default", &format!("deployment/web-{n}")).expect("a workload");
        let target = Target::new(&name, Fake::new("good", "new")).expect("a good id").gate(gate, Policy::default());
        engine.register(target).expect("a good target");
        handles.push(start(&engine, &name, n).await);
    }
    for handle in &handles {
        bakes(handle).await;
    }
    drop(region);

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
    println!(
        "{live} live: {:.0} requests a minute beside {:.0} saves: {:.0} watches begun again, {:.0} beats, {:.0} others",
        rate(&|line| !save(line)),
        rate(&save),
        rate(&watch),
        rate(&beat),
        rate(&|line| !save(line) && !watch(line) && !beat(line)),
    );
    let paths: std::collections::BTreeSet<&str> =
        requests.iter().filter(|line| watch(line)).filter_map(|line| line.split('?').next()).collect();
    println!("    watched: {paths:?}");
    engine.shutdown(Duration::from_secs(5)).await;
}

async fn start(engine: &Engine, target: &str, n: usize) -> Handle {
    let plan = Plan::new([Step::new(Weight::ALL, Duration::from_secs(3600))]).expect("a good plan");
    let new = NewRollout::new(target, Revision::new("new").expect("a good id"), plan).expect("a good target");
    engine.start(new.id(id(n).try_into().expect("a good id"))).await.expect("it starts")
}

async fn bakes(handle: &Handle) {
    while !matches!(handle.status().state, State::Baking { .. }) {
        assert!(handle.status().state.is_open(), "{:?}", handle.status().state);
        sleep(Duration::from_millis(5)).await;
    }
}

fn id(n: usize) -> String {
    format!("rollout-{n}")
}

/// A Deployment that its controller has rolled out, with its ReplicaSet and pods, each as large as they are in practice.
fn deploy(cluster: &Cluster, n: usize) {
    let name = format!("web-{n}");
    let labels = json!({ "app": name, "pod-template-hash": "5d4f8c7b9" });
    let env: Vec<Value> = (0..24).map(|n| json!({ "name": format!("SETTING_{n}"), "value": "v".repeat(24) })).collect();
    let spec = json!({ "containers": [{ "name": "app", "image": "registry.example/shop/web:1.2.3", "env": env,
        "resources": { "limits": { "cpu": "1", "memory": "512Mi" } },
        "readinessProbe": { "httpGet": { "path": "/healthz", "port": 8080 }, "periodSeconds": 5 } }] });
    let template = json!({ "metadata": { "labels": { "app": name } }, "spec": spec });
    let owner = |kind: &str, object: &Value| {
        json!([{ "apiVersion": "apps/v1", "kind": kind, "name": object["metadata"]["name"], "uid": object["metadata"]["uid"],
            "controller": true, "blockOwnerDeletion": true }])
    };
    let deployment = cluster.put(&json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": { "name": name, "annotations": {
            "deployment.kubernetes.io/revision": "1", "rollback.rs/attempt": format!("{}/1/candidate", id(n)),
        } },
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
                "name": "app", "ready": true, "restartCount": 0, "image": "registry.example/shop/web:1.2.3",
                "state": { "running": { "startedAt": "2026-01-01T00:00:02Z" } } }] },
        }));
    }
}

fn mib(bytes: usize) -> f64 {
    bytes as f64 / (1024.0 * 1024.0)
}
