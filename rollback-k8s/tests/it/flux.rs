//! Flux, held off while a rollout goes on: on an API server in memory, and on a real one with Flux's kinds and no Flux.

use std::{sync::Arc, time::Duration};

use rollback_core::{
    model::{Goal, Progress, Revision, Weight},
    state::State,
    testing::{
        backend::{self, Bench, Driver},
        sweep::{Scenario, Sweep},
    },
};
use rollback_k8s::{Workload, flux::Repository, testing::Cluster, workload::Kind};
use serde_json::{Value, json};

use crate::{
    support::{
        cluster::{self, deployment, good},
        trial,
    },
    workload::{Scene, manifest, refused, roll_out, workload},
};

fn kustomization(namespace: &str) -> Value {
    json!({ "apiVersion": "kustomize.toolkit.fluxcd.io/v1", "kind": "Kustomization",
        "metadata": { "name": "shop", "namespace": namespace }, "spec": { "path": "./shop", "prune": true } })
}

/// As Flux labels what it applies.
fn owned(mut object: Value, namespace: &str) -> Value {
    object["metadata"]["labels"]["kustomize.toolkit.fluxcd.io/name"] = json!("shop");
    object["metadata"]["labels"]["kustomize.toolkit.fluxcd.io/namespace"] = json!(namespace);
    object
}

fn world() -> Cluster {
    let cluster = Cluster::new();
    cluster.put(&kustomization("default"));
    cluster.put(&owned(manifest(Kind::Deployment), "default"));
    cluster
}

fn follows(cluster: &Cluster, kind: Kind) -> Workload {
    workload(cluster, kind).suspend_flux(Repository::FollowsWhatServes)
}

async fn candidate(cluster: &Cluster) -> Revision {
    workload(cluster, Kind::Deployment).images([("web", "shop:2")]).await.unwrap()
}

fn is_suspended(object: &Value) -> bool {
    object["spec"]["suspend"] == true
}

/// For whom it is suspended by us.
fn notes(object: &Value) -> Vec<String> {
    let notes = object["metadata"]["annotations"].as_object().into_iter().flatten();
    let ours = notes.filter(|(name, _)| name.starts_with("rollback.rs/suspended-for-"));
    ours.map(|(_, text)| text.as_str().unwrap().to_owned()).collect()
}

fn shop(cluster: &Cluster) -> Value {
    cluster.get("kustomizations", "shop").unwrap()
}

async fn scene() -> Scene {
    let mut scene = Scene::new(Kind::Deployment).await;
    scene.manifest = owned(manifest(Kind::Deployment), "default");
    scene.connect = follows;
    scene.cluster.put(&kustomization("default"));
    scene.cluster.put(&scene.manifest);
    scene
}

#[tokio::test(start_paused = true)]
async fn every_promise_is_kept_while_flux_is_held_off() {
    backend::all(&scene().await).await;
}

#[tokio::test(start_paused = true)]
async fn every_disturbance_is_got_over_while_flux_is_held_off() {
    let scene = scene().await;
    let mut scenarios = Scenario::ready_made(&scene).await;
    scenarios.retain(|it| !matches!(it.name(), "canary" | "bad canary"));
    eprintln!("Deployment that Flux owns: {}", Sweep::of(&scene).scenarios(scenarios).all().await);
}

#[tokio::test(start_paused = true)]
async fn flux_is_suspended_for_as_long_as_it_says_something_else_than_what_serves() {
    let cases = [
        (Repository::SaysBaseline, false, true),
        (Repository::SaysBaseline, true, false),
        (Repository::SaysCandidate, false, false),
        (Repository::SaysCandidate, true, true),
        (Repository::FollowsWhatServes, false, false),
        (Repository::FollowsWhatServes, true, false),
    ];
    for (says, bad, stays) in cases {
        let cluster = world();
        let web = workload(&cluster, Kind::Deployment).suspend_flux(says);
        let rolling = tokio::spawn(roll_out(web, candidate(&cluster).await, bad));
        let image =
            || cluster.get("deployments", "web").unwrap()["spec"]["template"]["spec"]["containers"][0]["image"].clone();
        while image() == "shop:1" {
            assert!(!rolling.is_finished());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(is_suspended(&shop(&cluster)), "{says:?}");
        assert_eq!(notes(&shop(&cluster)), ["Deployment default/web"]);
        let outcome = rolling.await.unwrap();
        assert_eq!(matches!(outcome.rollout.state, State::RolledBack { .. }), bad, "{outcome}");
        assert_eq!(matches!(outcome.rollout.state, State::Promoted), !bad, "{outcome}");
        assert_eq!(is_suspended(&shop(&cluster)), stays, "{says:?}, {outcome}");
        assert_eq!(notes(&shop(&cluster)).len(), usize::from(stays), "{says:?}");
        let said = outcome.rollout.not_restored.iter().any(|note| {
            note.as_str().contains("left over: Flux's Kustomization default/shop is suspended")
                && note.as_str().contains("flux resume kustomization shop -n default")
        });
        assert_eq!(said, stays, "{:?}", outcome.rollout.not_restored);
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_webhook_says_that_takes_no_dry_runs_is_listed_for_flux() {
    let cluster = world();
    cluster.take_no_dry_runs("kustomizations");
    let outcome = roll_out(follows(&cluster, Kind::Deployment), candidate(&cluster).await, false).await;
    trial::promoted_untried(&outcome, &["the suspension of Flux's Kustomization default/shop"]);
}

#[tokio::test(start_paused = true)]
async fn what_somebody_else_suspended_is_neither_written_nor_resumed() {
    let cluster = world();
    let mut theirs = kustomization("default");
    theirs["spec"]["suspend"] = json!(true);
    cluster.put(&theirs);
    let outcome = roll_out(follows(&cluster, Kind::Deployment), candidate(&cluster).await, false).await;
    assert_eq!(outcome.rollout.state, State::Promoted, "{outcome}");
    assert!(is_suspended(&shop(&cluster)));
    let writes = |line: &String| line.starts_with("PATCH") && line.contains("kustomizations");
    assert_eq!(cluster.requests().iter().find(|line| writes(line)), None);
}

#[tokio::test(start_paused = true)]
async fn of_two_rollouts_under_one_kustomization_the_last_to_end_resumes_it() {
    let cluster = world();
    let mut api = owned(deployment("api", "shop:1"), "default");
    api["metadata"]["name"] = json!("api");
    cluster.put(&api);
    let api = || {
        Workload::deployment(&cluster.client(), "default", "api").unwrap().suspend_flux(Repository::FollowsWhatServes)
    };
    let other = api().images([("web", "shop:2")]).await.unwrap();
    let bench = Held { cluster: cluster.clone(), candidate: candidate(&cluster).await };
    let mut first = Driver::new(&bench).await;
    first.drive(Goal::Split(Weight::ALL)).await;
    let outcome = roll_out(api(), other, false).await;
    assert_eq!(outcome.rollout.state, State::Promoted, "{outcome}");
    assert!(is_suspended(&shop(&cluster)));
    assert_eq!(notes(&shop(&cluster)), ["Deployment default/web"]);
    first.drive(Goal::Candidate).await;
    assert!(!is_suspended(&shop(&cluster)));
    assert_eq!(notes(&shop(&cluster)).len(), 0);
}

/// A workload that Flux owns, and what drives it by hand.
struct Held {
    cluster: Cluster,
    candidate: Revision,
}

#[async_trait::async_trait]
impl Bench for Held {
    async fn reset(&self) {}

    async fn connect(&self) -> Arc<dyn rollback_core::backend::DeploymentBackend> {
        Arc::new(follows(&self.cluster, Kind::Deployment))
    }

    fn candidate(&self) -> Revision {
        self.candidate.clone()
    }

    async fn settle(&self) {
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn whoever_goes_on_after_a_crash_resumes_what_the_other_suspended() {
    for goal in [Goal::Candidate, Goal::Baseline] {
        let cluster = world();
        let bench = Held { cluster: cluster.clone(), candidate: candidate(&cluster).await };
        let mut died = Driver::new(&bench).await;
        // It dies with Flux suspended and the template as it was, and again with the template put there.
        let look = died.look(Goal::Split(Weight::ALL)).await;
        let attempt = died.save(Goal::Split(Weight::ALL), &look.version);
        cluster.fault(
            "PATCH /apis/apps/v1/namespaces/default/deployments/web?fieldManager",
            1,
            rollback_k8s::testing::Fault::LoseRequest,
        );
        died.send(&attempt).await.unwrap_err();
        assert!(is_suspended(&shop(&cluster)));
        let mut next = died.successor().await;
        if goal == Goal::Candidate {
            next.drive(Goal::Split(Weight::ALL)).await;
            next = next.successor().await;
        }
        next.drive(goal).await;
        assert!(!is_suspended(&shop(&cluster)), "{goal}");
        assert_eq!(notes(&shop(&cluster)).len(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_late_call_leaves_nothing_suspended() {
    let cluster = world();
    let bench = Held { cluster: cluster.clone(), candidate: candidate(&cluster).await };
    let mut driver = Driver::new(&bench).await;
    let look = driver.look(Goal::Split(Weight::ALL)).await;
    let attempt = driver.save(Goal::Split(Weight::ALL), &look.version);
    // Somebody is faster, between the look and the write.
    let meanwhile = cluster.clone();
    cluster.fault("PATCH /apis/kustomize", 1, rollback_k8s::testing::Fault::Refuse(409, 0));
    let edit = tokio::spawn(async move {
        while !is_suspended(&shop(&meanwhile)) {
            tokio::task::yield_now().await;
        }
        let mut object = owned(manifest(Kind::Deployment), "default");
        object["spec"]["template"]["spec"]["containers"][0]["image"] = json!("shop:somebody-elses");
        meanwhile.put(&object);
    });
    cluster.fault(
        "PATCH /apis/apps/v1/namespaces/default/deployments/web?fieldManager",
        1,
        rollback_k8s::testing::Fault::Refuse(409, 0),
    );
    let refused = driver.send(&attempt).await.unwrap_err();
    edit.await.unwrap();
    assert_eq!(refused.kind(), rollback_core::ErrorKind::Conflict, "{refused}");
    assert!(!is_suspended(&shop(&cluster)));
    // Drift says nothing of Flux then.
    let look = driver.look(Goal::Split(Weight::ALL)).await;
    assert!(matches!(&look.progress, Progress::Drifted(why) if !why.as_str().contains("Flux")), "{:?}", look.progress);
}

#[tokio::test(start_paused = true)]
async fn drift_says_that_flux_is_left_suspended() {
    let cluster = world();
    let bench = Held { cluster: cluster.clone(), candidate: candidate(&cluster).await };
    let mut driver = Driver::new(&bench).await;
    driver.drive(Goal::Split(Weight::ALL)).await;
    let mut object = owned(manifest(Kind::Deployment), "default");
    object["spec"]["template"]["spec"]["containers"][0]["image"] = json!("shop:somebody-elses");
    cluster.put(&object);
    let look = driver.look(Goal::Split(Weight::ALL)).await;
    let wanted = "Flux's Kustomization default/shop is left suspended";
    assert!(matches!(&look.progress, Progress::Drifted(why) if why.as_str().contains(wanted)), "{:?}", look.progress);
}

#[tokio::test(start_paused = true)]
async fn what_keeps_flux_from_being_suspended_is_said_before_anything_changes() {
    let cluster = world();
    cluster.deny("patch", "kustomizations");
    let said = refused(follows(&cluster, Kind::Deployment), candidate(&cluster).await).await;
    assert!(said.contains("may not patch kustomizations.kustomize.toolkit.fluxcd.io in namespace default"), "{said}");

    let cluster = world();
    cluster.delete("kustomizations", "shop");
    let said = refused(follows(&cluster, Kind::Deployment), candidate(&cluster).await).await;
    assert!(said.contains("Flux's Kustomization default/shop owns it by its labels, and cannot be seen"), "{said}");

    // Argo CD is not Flux.
    let cluster = world();
    let mut object = owned(manifest(Kind::Deployment), "default");
    object["metadata"]["annotations"] = json!({"argocd.argoproj.io/tracking-id": "shop:apps/Deployment:web"});
    cluster.put(&object);
    let said = refused(follows(&cluster, Kind::Deployment), candidate(&cluster).await).await;
    assert!(said.contains("Argo CD (shop) owns"), "{said}");
}

/// The least that the API server has to know of Flux.
fn definition() -> Value {
    let any = json!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true });
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": { "name": "kustomizations.kustomize.toolkit.fluxcd.io" },
        "spec": {
            "group": "kustomize.toolkit.fluxcd.io", "scope": "Namespaced",
            "names": { "plural": "kustomizations", "singular": "kustomization", "kind": "Kustomization",
                "listKind": "KustomizationList" },
            "versions": [{ "name": "v1", "served": true, "storage": true, "subresources": { "status": {} },
                "schema": { "openAPIV3Schema": { "type": "object", "properties": { "spec": any, "status": any } } } }],
        },
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_real_server_flux_is_suspended_and_resumed_around_a_rollout() {
    let Some(space) = cluster::namespace().await else { return };
    let crd = "kustomizations.kustomize.toolkit.fluxcd.io";
    // Whoever runs Flux has it already, and better.
    if !space.try_kubectl(&["get", "crd", crd]) {
        space.apply(&definition());
    }
    space.kubectl(&["wait", "--for=condition=Established", &format!("crd/{crd}"), "--timeout=30s"]);
    space.apply(&kustomization(&space.name));
    space.apply(&owned(deployment("web", &good(1)), &space.name));
    space.rolled_out("deployment/web");
    let web = |says| Workload::deployment(&space.client, &space.name, "web").unwrap().suspend_flux(says);
    // Also where there is one good image only.
    let next = async |release: &str| {
        let mut template = space.get("deployment", "web")["spec"]["template"].clone();
        template["spec"]["containers"][0]["env"] = json!([{ "name": "RELEASE", "value": release }]);
        web(Repository::SaysBaseline).template(release, &template).await.unwrap()
    };
    let shop = || space.get(crd, "shop");

    let outcome = roll_out(web(Repository::SaysBaseline), next("2").await, true).await;
    assert!(matches!(outcome.rollout.state, State::RolledBack { .. }), "{outcome}");
    assert!(shop()["metadata"]["generation"] == 3 && !is_suspended(&shop()), "{}", shop());
    assert_eq!(notes(&shop()).len(), 0);

    let outcome = roll_out(web(Repository::SaysBaseline), next("3").await, false).await;
    assert_eq!(outcome.rollout.state, State::Promoted, "{outcome}");
    assert!(is_suspended(&shop()), "{}", shop());
    assert_eq!(notes(&shop()), [format!("Deployment {}/web", space.name)]);

    // The next rollout finds its own note, and ends what the last one left.
    let outcome = roll_out(web(Repository::FollowsWhatServes), next("4").await, false).await;
    assert_eq!(outcome.rollout.state, State::Promoted, "{outcome}");
    assert!(!is_suspended(&shop()), "{}", shop());
    assert_eq!(notes(&shop()).len(), 0);
}
