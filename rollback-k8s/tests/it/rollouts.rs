//! Whole rollouts on a real API server, with workload, gates and store as a tool puts them together; and how fast a bad one
//! goes back.

use std::time::Duration;

use futures_util::TryStreamExt as _;
use kube::core::{Request, WatchEvent, params::WatchParams};
use rollback_core::{
    engine::{Engine, NewRollout, Outcome, Target},
    gate::Policy,
    plan::Plan,
    state::{Cause, State},
};
use rollback_k8s::{
    Client, Watches, Workload,
    gate::{Conditions, Pods},
    store::Secrets,
};
use serde_json::Value;
use tokio::time::{Instant, timeout};

use crate::{
    place::Place,
    support::cluster::{PATIENCE, bad, release, release_of},
};

/// This release where it is a good one, else a bad image.
async fn roll_out(place: &Place, good: Option<u32>) -> Outcome {
    let client = Client::from_kubeconfig(&place.kubeconfig, None).await.unwrap();
    let watches = Watches::new(&client);
    let workload = Workload::deployment(&client, &place.namespace, "web").unwrap().watched_by(&watches);
    let candidate = match good {
        Some(number) => {
            let mut template = place.web().await["spec"]["template"].clone();
            release(&mut template, number);
            workload.template(&format!("release {number}"), &template).await.unwrap()
        }
        None => workload.images([("app", bad())]).await.unwrap(),
    };
    let engine = Engine::new(Secrets::new(&client, &place.namespace).unwrap()).unwrap();
    let target = Target::new("web", workload)
        .unwrap()
        .gate(Pods::of(&watches, &place.namespace, "deployment/web").unwrap(), Policy::default())
        .gate(Conditions::of(&watches, &place.namespace, "deployment/web").unwrap(), Policy::default())
        .look_every(Duration::from_millis(250), Duration::from_secs(10));
    engine.register(target).unwrap();
    let plan = Plan::canary([100], Duration::from_secs(2)).unwrap();
    let new = NewRollout::new("web", candidate, plan).unwrap().despite_quarantine("a test deploys it on purpose");
    let handle = engine.start(new).await.unwrap();
    timeout(2 * PATIENCE, handle.finished()).await.expect("it ends")
}

#[tokio::test]
async fn a_good_image_is_promoted_and_a_bad_one_rolled_back_by_what_its_pods_say() {
    let Some(place) = Place::new().await else { return };
    place.deployment("web", "good", 3).await;
    let outcome = roll_out(&place, Some(2)).await;
    assert!(outcome.rollout.state == State::Promoted, "{:?}", outcome.rollout.state);
    let good = place.web().await["spec"]["template"].clone();
    assert!(release_of(&good).starts_with("2 "), "{good}");

    let outcome = roll_out(&place, None).await;
    let State::RolledBack { cause: Cause::Unhealthy { gate, why } } = &outcome.rollout.state else {
        panic!("{:?}", outcome.rollout.state)
    };
    assert_eq!(gate.as_str(), "pods");
    assert!(why.as_str().contains("crashed"), "{why}");
    assert_eq!(place.web().await["spec"]["template"], good);
}

/// Beside the 600 seconds of the default progress deadline that `kubectl rollout status` waits for.
#[tokio::test]
async fn from_a_crash_loop_to_the_write_of_the_baseline_takes_less_than_a_second() {
    let Some(place) = Place::new().await else { return };
    place.deployment("web", "good", 3).await;
    let mut took = Vec::new();
    for _ in 0..3 {
        let seen = tokio::spawn(stopwatch(place.kube.clone(), place.namespace.clone()));
        let outcome = roll_out(&place, None).await;
        assert!(matches!(outcome.rollout.state, State::RolledBack { .. }), "{:?}", outcome.rollout.state);
        let (loops, back) = timeout(Duration::from_secs(10), seen).await.expect("it was seen").unwrap();
        took.push(back.duration_since(loops));
    }
    took.sort();
    println!("from CrashLoopBackOff in a pod's status to the write of the baseline's template: {took:?}");
    assert!(took[1] < Duration::from_secs(1), "{took:?}");
}

/// When a pod was first seen to crash over and over, and when the Deployment had its good image again.
async fn stopwatch(kube: kube::Client, namespace: String) -> (Instant, Instant) {
    let watch = async |path: String| {
        let request = Request::new(path).watch(&WatchParams::default().timeout(290), "").unwrap();
        Box::pin(kube.request_events::<Value>(request).await.unwrap())
    };
    let mut pods = watch(format!("/api/v1/namespaces/{namespace}/pods")).await;
    let mut deployments = watch(format!("/apis/apps/v1/namespaces/{namespace}/deployments")).await;
    let loops = async {
        loop {
            if let Some(WatchEvent::Modified(pod) | WatchEvent::Added(pod)) = pods.try_next().await.unwrap()
                && loops(&pod)
                && pod["metadata"]["deletionTimestamp"].is_null()
            {
                return Instant::now();
            }
        }
    };
    let back = async {
        let mut was_bad = false;
        loop {
            if let Some(WatchEvent::Modified(web) | WatchEvent::Added(web)) = deployments.try_next().await.unwrap() {
                let image = &web["spec"]["template"]["spec"]["containers"][0]["image"];
                if was_bad && *image != bad() {
                    return Instant::now();
                }
                was_bad |= *image == bad();
            }
        }
    };
    tokio::join!(loops, back)
}

/// Whether a pod says that its container crashes over and over, or has it ended a second time, of which it may say so.
fn loops(pod: &Value) -> bool {
    let container = &pod["status"]["containerStatuses"][0];
    let again = container["restartCount"].as_i64() >= Some(1) && container["state"]["terminated"].is_object();
    again || container["state"]["waiting"]["reason"] == "CrashLoopBackOff"
}
