//! Quotas and limits: what preflight says of them, beside what a real API server says to such a pod.

use std::time::Duration;

use rollback_core::{
    backend::{DeploymentBackend, Readiness},
    model::{Change, RolloutId, TargetId},
    plan::Plan,
};
use rollback_k8s::{Workload, testing::Cluster, workload::Kind};
use serde_json::{Value, json};

use crate::{
    support::cluster::{self, deployment, good},
    workload::{manifest, refused, workload},
};

#[tokio::test(start_paused = true)]
async fn a_change_that_a_quota_leaves_no_room_for_is_refused_with_what_is_missing() {
    let cluster = Cluster::new();
    cluster.put(&manifest(Kind::Deployment));
    let quota = |used: u32| {
        json!({ "apiVersion": "v1", "kind": "ResourceQuota", "metadata": { "name": "small" },
            "spec": { "hard": { "pods": "3" } }, "status": { "hard": { "pods": "3" }, "used": { "pods": used } } })
    };
    cluster.put(&quota(3));
    let web = || workload(&cluster, Kind::Deployment);
    let candidate = web().images([("web", "shop:2")]).await.unwrap();
    let said = refused(web(), candidate.clone()).await;
    assert!(said.contains("ResourceQuota small leaves 0 of pods, and the change takes 1 more at its height"), "{said}");

    cluster.put(&quota(2));
    let outcome = crate::workload::roll_out(web(), candidate, false).await;
    let proved: Vec<&str> = outcome.rollout.readiness.proved.iter().map(|note| note.as_str()).collect();
    assert!(proved.contains(&"the quotas of default leave room for the change"), "{proved:?}");
    assert!(proved.contains(&"the last 10 templates are kept for kubectl rollout undo too"), "{proved:?}");
}

async fn readiness(web: &Workload, template: &Value) -> Readiness {
    let change = Change {
        rollout: RolloutId::try_from("web-1").unwrap(),
        target: TargetId::try_from("web").unwrap(),
        baseline: web.baseline().await.unwrap(),
        candidate: web.template("next", template).await.unwrap(),
    };
    let plan = Plan::all_at_once(Duration::from_secs(1)).unwrap();
    web.preflight(&change, &plan).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn preflight_and_the_api_server_agree_on_which_pods_a_namespace_lets_in() {
    let Some(space) = cluster::namespace().await else { return };
    space.apply(&json!({ "apiVersion": "v1", "kind": "LimitRange", "metadata": { "name": "limits" },
        "spec": { "limits": [{ "type": "Container", "default": { "cpu": "200m" }, "defaultRequest": { "cpu": "100m" },
            "max": { "cpu": "1" }, "min": { "cpu": "50m" } }] } }));
    let mut object = deployment("web", &good(1));
    object["spec"]["revisionHistoryLimit"] = json!(0);
    space.apply(&object);
    space.rolled_out("deployment/web");
    space.apply(&json!({ "apiVersion": "v1", "kind": "ResourceQuota", "metadata": { "name": "small" },
        "spec": { "hard": { "pods": "3", "requests.cpu": "350m" } } }));
    // Its controller counts what is there.
    while space.get("resourcequota", "small")["status"]["used"]["requests.cpu"] != "200m" {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let web = Workload::deployment(&space.client, &space.name, "web").unwrap();
    let cases = [
        (json!({}), true),
        (json!({ "requests": { "cpu": "100m" }, "limits": { "cpu": "1" } }), true),
        // More than the quota has left.
        (json!({ "requests": { "cpu": "0.2" } }), false),
        (json!({ "limits": { "cpu": "300m" } }), false),
        // More than the most, less than the least.
        (json!({ "requests": { "cpu": "100m" }, "limits": { "cpu": "2" } }), false),
        (json!({ "requests": { "cpu": "10m" } }), false),
    ];
    for (resources, fits) in cases {
        let mut template = deployment("web", &good(2))["spec"]["template"].clone();
        template["spec"]["containers"][0]["resources"] = resources.clone();
        let mut pod = template.clone();
        (pod["apiVersion"], pod["kind"], pod["metadata"]["name"]) = (json!("v1"), json!("Pod"), json!("tried"));
        let tried = space.run(&["create", "--dry-run=server", "-f", "-"], Some(&pod.to_string()));
        let ready = readiness(&web, &template).await;
        let said = (ready.refused.is_empty(), tried.status.success());
        assert_eq!(said, (fits, fits), "{resources}: {ready:?}, {}", String::from_utf8_lossy(&tried.stderr));
        assert!(ready.not_provable.iter().any(|note| note.as_str().contains("revisionHistoryLimit is 0")), "{ready:?}");
    }
}
