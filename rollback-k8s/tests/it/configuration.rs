//! Configuration that travels with the revision: the conformance suite and sweeps in memory, and whole rollouts there and on
//! a real server.

use std::time::Duration;

use rollback_core::{
    ErrorKind,
    backend::DeploymentBackend,
    model::Revision,
    state::State,
    testing::{
        backend,
        sweep::{Scenario, Sweep},
    },
};
use rollback_k8s::{
    Workload,
    testing::{Cluster, Fault},
    workload::Kind,
};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::{
    support::{
        cluster::{self, deployment, good},
        trial,
    },
    workload::{Scene, manifest, refused, roll_out, workload},
};

/// A workload that takes variables from a ConfigMap and a Secret, and files from the same Secret.
fn configured(mut object: Value) -> Value {
    let spec = object.pointer_mut("/spec/template/spec").unwrap();
    spec["containers"][0]["envFrom"] = json!([{"configMapRef": {"name": "flags"}}, {"secretRef": {"name": "keys"}}]);
    spec["volumes"] = json!([{"name": "keys", "secret": {"secretName": "keys"}}]);
    object
}

fn config(kind: &str, name: &str, value: &str) -> Value {
    let value = if kind == "Secret" {
        json!({ "stringData": { "value": value } })
    } else {
        json!({ "data": { "value": value } })
    };
    let mut object = json!({ "apiVersion": "v1", "kind": kind, "metadata": { "name": name } });
    object.as_object_mut().unwrap().extend(value.as_object().unwrap().clone());
    object
}

fn in_memory(kind: &str, name: &str, value: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": kind, "metadata": { "name": name }, "data": { "value": value } })
}

fn world() -> Cluster {
    let cluster = Cluster::new();
    cluster.put(&in_memory("ConfigMap", "flags", "one"));
    cluster.put(&in_memory("Secret", "keys", "hunter1"));
    cluster.put(&configured(manifest(Kind::Deployment)));
    cluster
}

fn carrying(cluster: &Cluster, kind: Kind) -> Workload {
    workload(cluster, kind).carry_config_maps().carry_secrets()
}

fn web(cluster: &Cluster) -> Workload {
    carrying(cluster, Kind::Deployment)
}

/// The ConfigMap and the Secret that the template names, by variables; files are of the same Secret.
fn named(object: &Value) -> [String; 2] {
    let spec = &object["spec"]["template"]["spec"];
    let from = &spec["containers"][0]["envFrom"];
    let name = |value: &Value| value.as_str().unwrap().to_owned();
    let names = [name(&from[0]["configMapRef"]["name"]), name(&from[1]["secretRef"]["name"])];
    assert_eq!(spec["volumes"][0]["secret"]["secretName"], json!(names[1]));
    names
}

fn live(cluster: &Cluster) -> Value {
    cluster.get("deployments", "web").unwrap()
}

async fn candidate(cluster: &Cluster, image: &str) -> Revision {
    web(cluster).images([("web", image)]).await.unwrap()
}

async fn promoted(cluster: &Cluster, image: &str) {
    let outcome = roll_out(web(cluster), candidate(cluster, image).await, false).await;
    assert_eq!(outcome.rollout.state, State::Promoted, "{outcome}");
}

#[tokio::test(start_paused = true)]
async fn every_promise_is_kept_while_configuration_travels() {
    for kind in [Kind::Deployment, Kind::StatefulSet, Kind::DaemonSet] {
        backend::all(&scene(kind).await).await;
    }
}

#[tokio::test(start_paused = true)]
async fn every_disturbance_is_got_over_while_configuration_travels() {
    let scene = scene(Kind::Deployment).await;
    let mut scenarios = Scenario::ready_made(&scene).await;
    scenarios.retain(|it| !matches!(it.name(), "canary" | "bad canary"));
    eprintln!("Deployment with its configuration: {}", Sweep::of(&scene).scenarios(scenarios).all().await);
}

async fn scene(kind: Kind) -> Scene {
    let mut scene = Scene::new(kind).await;
    scene.manifest = configured(manifest(kind));
    scene.connect = carrying;
    scene.cluster.put(&in_memory("ConfigMap", "flags", "one"));
    scene.cluster.put(&in_memory("Secret", "keys", "hunter1"));
    scene.cluster.put(&scene.manifest);
    scene.candidate = carrying(&scene.cluster, kind).images([("web", "shop:2")]).await.unwrap();
    scene
}

#[tokio::test(start_paused = true)]
async fn what_was_configured_comes_back_with_the_template() {
    let cluster = world();
    promoted(&cluster, "shop:2").await;
    let [flags, keys] = named(&live(&cluster));
    let copy = cluster.get("configmaps", &flags).unwrap();
    assert!(flags.starts_with("flags-") && flags.len() == "flags-".len() + 10, "{flags}");
    assert_eq!((&copy["immutable"], &copy["data"]), (&json!(true), &json!({"value": "one"})));
    let copy = cluster.get("secrets", &keys).unwrap();
    assert_eq!((&copy["immutable"], &copy["data"]), (&json!(true), &json!({"value": "hunter1"})));

    // The next release is configured anew, and taken back.
    cluster.put(&in_memory("ConfigMap", "flags", "two"));
    cluster.put(&in_memory("Secret", "keys", "hunter2"));
    let before = live(&cluster);
    let next = candidate(&cluster, "shop:3").await;
    let outcome = roll_out(web(&cluster), next, true).await;
    assert!(matches!(outcome.rollout.state, State::RolledBack { .. }), "{outcome}");
    assert_eq!(live(&cluster)["spec"]["template"], before["spec"]["template"]);
    assert_eq!(outcome.rollout.not_restored.len(), 0, "{:?}", outcome.rollout.not_restored);

    promoted(&cluster, "shop:4").await;
    let [new_flags, new_keys] = named(&live(&cluster));
    assert!(new_flags != flags && new_keys != keys);
    assert_eq!(cluster.get("configmaps", &new_flags).unwrap()["data"]["value"], "two");
    assert_eq!(cluster.get("secrets", &new_keys).unwrap()["data"]["value"], "hunter2");
}

#[tokio::test(start_paused = true)]
async fn what_did_not_change_is_not_copied_again() {
    let cluster = world();
    promoted(&cluster, "shop:2").await;
    let before = named(&live(&cluster));
    // Its version moves, and what it holds stays.
    cluster.put(&in_memory("Secret", "keys", "hunter1"));
    promoted(&cluster, "shop:3").await;
    assert_eq!(named(&live(&cluster)), before);
    // Nothing to do is nothing to do.
    let again = candidate(&cluster, "shop:3").await;
    assert_eq!(again.id, web(&cluster).baseline().await.unwrap().id);
}

#[tokio::test(start_paused = true)]
async fn a_baseline_that_names_originals_comes_back_with_what_they_held() {
    for changes in [true, false] {
        let cluster = world();
        let before = live(&cluster);
        let next = candidate(&cluster, "shop:2").await;
        let rolling = tokio::spawn(roll_out(web(&cluster), next, true));
        while live(&cluster)["spec"]["template"]["spec"]["containers"][0]["image"] != "shop:2" {
            assert!(!rolling.is_finished());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        if changes {
            cluster.put(&in_memory("ConfigMap", "flags", "two"));
        }
        let outcome = rolling.await.unwrap();
        assert!(matches!(outcome.rollout.state, State::RolledBack { .. }), "{outcome}");
        let after = live(&cluster);
        assert_eq!(after["spec"]["template"]["spec"]["containers"][0]["image"], "shop:1");
        if changes {
            let [flags, _] = named(&after);
            assert_eq!(cluster.get("configmaps", &flags).unwrap()["data"]["value"], "one", "{flags}");
        } else {
            assert_eq!(after["spec"]["template"], before["spec"]["template"]);
        }
        assert_eq!(outcome.rollout.not_restored.len(), 0, "{:?}", outcome.rollout.not_restored);
    }
}

/// It answers for the workload, as one does whose Secrets are slow to decrypt.
#[tokio::test(start_paused = true)]
async fn a_server_that_does_not_say_what_the_configuration_is_changes_nothing_of_what_comes_back_and_holds_nothing_up()
{
    // Of the originals and the copies, of the copies alone, and where a status is written meanwhile again and again.
    for (hidden, conflicts, changes) in [("flags", 0, false), ("flags-", 0, true), ("flags", 4, false)] {
        let cluster = world();
        let before = live(&cluster);
        let next = candidate(&cluster, "shop:2").await;
        let rolling = tokio::spawn(roll_out(web(&cluster), next, true));
        let image = || live(&cluster)["spec"]["template"]["spec"]["containers"][0]["image"].clone();
        while image() != "shop:2" {
            assert!(!rolling.is_finished());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        if changes {
            cluster.put(&in_memory("ConfigMap", "flags", "two"));
        }
        cluster.fault(&format!("GET /api/v1/namespaces/default/configmaps/{hidden}"), usize::MAX, Fault::Hang);
        cluster.fault("PATCH /apis/apps/v1/namespaces/default/deployments/web", conflicts, Fault::Refuse(409, 0));
        let begun = Instant::now();
        while image() != "shop:1" {
            assert!(!rolling.is_finished());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        // The candidate's pods take one second, and the gate and the looks less than another.
        assert!(begun.elapsed() < Duration::from_secs(5), "{hidden}, {conflicts}: {:?}", begun.elapsed());
        cluster.calm();
        let outcome = rolling.await.unwrap();
        assert!(matches!(outcome.rollout.state, State::RolledBack { .. }), "{outcome}");
        assert_eq!(live(&cluster)["spec"]["template"], before["spec"]["template"], "{hidden}, {conflicts}");
        let said: Vec<&str> = outcome.rollout.not_restored.iter().map(|note| note.as_str()).collect();
        let is_said = said.iter().any(|note| note.starts_with("ConfigMap flags has changed"));
        assert_eq!(is_said, changes, "{hidden}, {conflicts}: {said:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_webhook_says_that_takes_no_dry_runs_is_listed_for_copies() {
    let cluster = world();
    let next = candidate(&cluster, "shop:2").await;
    cluster.take_no_dry_runs("configmaps");
    let outcome = roll_out(web(&cluster), next, false).await;
    let [flags, _] = named(&live(&cluster));
    let copy = format!("{flags}, a copy of ConfigMap flags");
    // As the candidate takes it along, and as the baseline does.
    trial::promoted_untried(&outcome, &[&copy, &copy]);
}

#[tokio::test(start_paused = true)]
async fn the_name_of_a_copy_tells_nothing_of_a_secret() {
    let named_for = async |password: &str| {
        let cluster = Cluster::new();
        cluster.put(&in_memory("ConfigMap", "flags", password));
        cluster.put(&in_memory("Secret", "keys", password));
        cluster.put(&configured(manifest(Kind::Deployment)));
        promoted(&cluster, "shop:2").await;
        named(&live(&cluster))
    };
    let (one, two) = (named_for("hunter1").await, named_for("hunter2").await);
    assert_ne!(one[0], two[0]);
    // The same uid and the same version in both, whatever it holds.
    assert_eq!(one[1], two[1]);
}

#[tokio::test(start_paused = true)]
async fn copies_that_nothing_names_any_more_are_cleared_away() {
    let cluster = world();
    let labels = json!({ "app": "web" });
    let names = |image: &str, flags: &str| {
        let mut template = configured(deployment("web", image))["spec"]["template"].clone();
        template["spec"]["containers"][0]["envFrom"][0]["configMapRef"]["name"] = json!(flags);
        template
    };
    let mut flags = Vec::new();
    for number in 1..=4 {
        cluster.put(&in_memory("ConfigMap", "flags", &number.to_string()));
        promoted(&cluster, &format!("shop:1{number}")).await;
        flags.push(named(&live(&cluster))[0].clone());
        if number == 1 {
            // One that a template in the history names, and one that a pod names still.
            cluster.put(&json!({ "apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": { "name": "web-1", "labels": labels },
                "spec": { "replicas": 0, "template": names("shop:11", &flags[0]) } }));
        }
        if number == 2 {
            cluster
                .put(&json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "web-2-x", "labels": labels },
                "spec": names("shop:12", &flags[1])["spec"] }));
        }
    }
    let there = |name: &String| cluster.get("configmaps", name).is_some();
    assert_eq!(flags.iter().map(there).collect::<Vec<_>>(), [true, true, true, true]);

    cluster.delete("pods", "web-2-x");
    cluster.put(&in_memory("ConfigMap", "flags", "5"));
    promoted(&cluster, "shop:15").await;
    assert_eq!(flags.iter().map(there).collect::<Vec<_>>(), [true, false, false, true]);
    cluster.delete("replicasets", "web-1");
    promoted(&cluster, "shop:16").await;
    assert_eq!(flags.iter().map(there).collect::<Vec<_>>(), [false, false, false, false]);
    assert!(there(&"flags".into()) && there(&named(&live(&cluster))[0]));
}

#[tokio::test(start_paused = true)]
async fn what_is_renewed_while_pods_run_is_not_held_fast() {
    let cluster = world();
    let mut keys = in_memory("Secret", "keys", "a certificate");
    keys["type"] = json!("kubernetes.io/tls");
    cluster.put(&keys);
    let mut flags = in_memory("ConfigMap", "flags", "one");
    flags["metadata"]["ownerReferences"] = json!([{ "kind": "Operator", "name": "flags", "controller": true }]);
    cluster.put(&flags);
    promoted(&cluster, "shop:2").await;
    assert_eq!(named(&live(&cluster)), ["flags", "keys"]);

    let cluster = world();
    let but = || web(&cluster).carry_all_but(["keys"]);
    let next = but().images([("web", "shop:2")]).await.unwrap();
    let outcome = roll_out(but(), next, false).await;
    assert_eq!(outcome.rollout.state, State::Promoted, "{outcome}");
    let [flags, keys] = named(&live(&cluster));
    assert!(flags != "flags" && keys == "keys", "{flags}, {keys}");
}

#[tokio::test(start_paused = true)]
async fn what_keeps_configuration_from_travelling_is_said_before_anything_changes() {
    let cluster = world();
    let next = candidate(&cluster, "shop:2").await;
    cluster.put(&in_memory("ConfigMap", "flags", "two"));
    let said = refused(web(&cluster), next).await;
    assert!(said.contains("ConfigMap flags is not what it was for the candidate"), "{said}");

    let next = candidate(&cluster, "shop:2").await;
    cluster.deny("create", "secrets");
    let said = refused(web(&cluster), next).await;
    assert!(said.contains("may not create secrets in namespace default"), "{said}");
    assert_eq!(
        cluster
            .requests()
            .iter()
            .find(|line| line.starts_with("POST") && line.contains("configmaps") && !line.contains("dryRun=All")),
        None
    );
    let role = web(&cluster).role("deploy-guard").unwrap();
    assert!(role.contains(r#"resources: [configmaps], verbs: [get, list, create, patch, delete]"#), "{role}");

    // A copy of what is gone cannot be made anew.
    let cluster = world();
    promoted(&cluster, "shop:2").await;
    cluster.delete("configmaps", "flags");
    let gone = web(&cluster).images([("web", "shop:3")]).await.unwrap_err();
    assert_eq!(gone.kind(), ErrorKind::NotFound);
    assert!(gone.to_string().contains("ConfigMap flags, of which ConfigMap flags-"), "{gone}");
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_real_server_configuration_comes_back_with_the_template_and_old_copies_go() {
    let Some(space) = cluster::namespace().await else { return };
    let mut object = configured(deployment("web", &good(1)));
    object["spec"]["revisionHistoryLimit"] = json!(1);
    object["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] = json!(1);
    space.apply(&config("ConfigMap", "flags", "one"));
    space.apply(&config("Secret", "keys", "hunter1"));
    space.apply(&object);
    space.rolled_out("deployment/web");
    let web = || Workload::deployment(&space.client, &space.name, "web").unwrap().carry_config_maps().carry_secrets();
    let live = || space.get("deployment", "web");
    let roll = async |image: String, bad: bool| {
        let candidate = web().images([("web", image)]).await.unwrap();
        roll_out(web(), candidate, bad).await
    };
    let outcome = roll(good(2), false).await;
    assert_eq!(outcome.rollout.state, State::Promoted, "{outcome}");
    let [flags, keys] = named(&live());
    assert_eq!(space.get("configmap", &flags)["data"]["value"], "one");
    assert_eq!(space.get("secret", &keys)["immutable"], true);
    assert_eq!(space.get("secret", &keys)["data"], space.get("secret", "keys")["data"]);

    space.apply(&config("ConfigMap", "flags", "two"));
    space.apply(&config("Secret", "keys", "hunter2"));
    let outcome = roll(good(3), true).await;
    assert!(matches!(outcome.rollout.state, State::RolledBack { .. }), "{outcome}");
    assert_eq!(named(&live()), [flags.clone(), keys.clone()]);
    space.is_rolled_out("deployment/web");

    // With a history of one, the first copies are named by nothing two releases later.
    for version in 4..=6 {
        space.apply(&config("ConfigMap", "flags", &version.to_string()));
        let outcome = roll(good(version), false).await;
        assert_eq!(outcome.rollout.state, State::Promoted, "{outcome}");
    }
    assert!(!space.try_kubectl(&["get", "configmap", &flags]), "{flags} is still there");
    let copies = space.kubectl(&["get", "configmaps,secrets", "-l", "rollback.rs/copies", "-o", "name"]);
    for name in named(&live()) {
        assert!(copies.contains(&name), "{copies}");
    }
    assert!(space.try_kubectl(&["get", "configmap", "flags"]));
}
