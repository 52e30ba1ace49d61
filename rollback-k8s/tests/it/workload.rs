//! Workloads: the conformance suite and the sweeps on an API server in memory, whole rollouts on a real one.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use rollback_core::{
    ErrorKind,
    backend::DeploymentBackend,
    engine::{Engine, NewRollout, Outcome, Target},
    gate::Policy,
    model::{Change, Goal, Progress, Revision, RolloutId, TargetId, Weight},
    plan::{Deadlines, Plan},
    state::{Cause, Refusal, State},
    store::Memory,
    testing::{
        backend::{Bench, Driver},
        gates::Scripted,
    },
};
use rollback_k8s::{
    Watches, Workload,
    testing::{Cluster, Fault},
    workload::Kind,
};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::support::{
    cluster::{self, Namespace, bad, deployment, release, release_of, released},
    trial,
};

/// A workload in memory, the candidate that was made for it once, and how a process gets at it.
pub(crate) struct Scene {
    pub(crate) cluster: Cluster,
    pub(crate) kind: Kind,
    pub(crate) manifest: Value,
    pub(crate) candidate: Revision,
    pub(crate) connect: fn(&Cluster, Kind) -> Workload,
}

pub(crate) fn manifest(kind: Kind) -> Value {
    let mut object = deployment("web", "shop:1");
    object["kind"] = json!(format!("{kind:?}"));
    if kind == Kind::DaemonSet {
        object["spec"].as_object_mut().unwrap().remove("replicas");
    }
    object["spec"]["template"]["spec"]["containers"][0]["env"] = json!([{"name": "PASSWORD", "value": "hunter2"}]);
    object
}

impl Scene {
    pub(crate) async fn new(kind: Kind) -> Self {
        let cluster = Cluster::new();
        let uid = cluster.put(&manifest(kind))["metadata"]["uid"].clone();
        let candidate = workload(&cluster, kind).images([("web", "shop:2")]).await.unwrap();
        assert_eq!(uid, json!("uid-1"));
        Self { cluster, kind, manifest: manifest(kind), candidate, connect: workload }
    }

    fn workload(&self) -> Workload {
        (self.connect)(&self.cluster, self.kind)
    }

    /// The Deployment's first image.
    fn image(&self) -> Value {
        let object = self.cluster.get("deployments", "web").unwrap();
        object["spec"]["template"]["spec"]["containers"][0]["image"].clone()
    }

    /// Begins a rollout whose pods take long, and waits until its candidate is put there.
    async fn half_way(&self) -> JoinHandle<Outcome> {
        self.cluster.pods_take(Duration::from_secs(20));
        let rolling = tokio::spawn(roll_out(self.workload(), self.candidate(), false));
        while self.image() != "shop:2" {
            assert!(!rolling.is_finished());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        rolling
    }

    /// Somebody else gives the Deployment this image.
    fn set_image(&self, image: &str) {
        let mut object = self.cluster.get("deployments", "web").unwrap();
        object["spec"]["template"]["spec"]["containers"][0]["image"] = json!(image);
        self.cluster.put(&object);
    }
}

pub(crate) fn workload(cluster: &Cluster, kind: Kind) -> Workload {
    Workload::new(&cluster.client(), kind, "default", "web").unwrap()
}

fn watched(cluster: &Cluster, kind: Kind) -> Workload {
    workload(cluster, kind).watched_by(&Watches::new(&cluster.client()))
}

#[async_trait]
impl Bench for Scene {
    async fn reset(&self) {
        // The same object throughout: the candidate was made for it.
        self.cluster.put(&self.manifest);
        tokio::time::sleep(Duration::from_secs(2)).await;
    }

    async fn connect(&self) -> Arc<dyn DeploymentBackend> {
        Arc::new(self.workload())
    }

    fn candidate(&self) -> Revision {
        self.candidate.clone()
    }

    async fn settle(&self) {
        tokio::time::sleep(Duration::from_millis(250)).await;
    }

    async fn drift(&self) -> bool {
        let mut object = self.manifest.clone();
        object["spec"]["template"]["spec"]["containers"][0]["image"] = json!("shop:somebody-elses");
        self.cluster.put(&object);
        true
    }

    fn secret(&self) -> Option<String> {
        Some("hunter2".into())
    }
}

#[tokio::test(start_paused = true)]
async fn every_kind_keeps_every_promise() {
    for kind in [Kind::Deployment, Kind::StatefulSet, Kind::DaemonSet] {
        println!("{kind:?}");
        trial::keeps_every_promise(&Scene::new(kind).await).await;
    }
}

#[tokio::test(start_paused = true)]
async fn every_disturbance_is_got_over() {
    trial::gets_over("Deployment", &Scene::new(Kind::Deployment).await, &AT_ITS_OWN_PACE).await;
}

#[tokio::test(start_paused = true)]
async fn every_kind_keeps_every_promise_by_watch() {
    for kind in [Kind::Deployment, Kind::StatefulSet, Kind::DaemonSet] {
        let scene = Scene { connect: watched, ..Scene::new(kind).await };
        trial::keeps_every_promise(&scene).await;
    }
}

#[tokio::test(start_paused = true)]
async fn looks_by_watch_hide_nothing() {
    let scene = Scene { connect: watched, ..Scene::new(Kind::Deployment).await };
    trial::hides_nothing_by_watch(&scene, &scene.cluster, "deployments", Goal::Split(Weight::ALL)).await;
}

#[tokio::test(start_paused = true)]
async fn every_disturbance_is_got_over_by_watch() {
    let scene = Scene { connect: watched, ..Scene::new(Kind::Deployment).await };
    trial::gets_over("Deployment, by watch", &scene, &AT_ITS_OWN_PACE).await;
}

pub(crate) async fn roll_out(backend: Workload, candidate: Revision, bad: bool) -> Outcome {
    trial::roll_out(backend, candidate, Plan::all_at_once(Duration::from_secs(1)).unwrap(), bad.then_some(100)).await
}

pub(crate) async fn refused(backend: Workload, candidate: Revision) -> String {
    let outcome = roll_out(backend, candidate, false).await;
    match &outcome.rollout.state {
        State::Refused { why: Refusal::NotReady { why } } => why.to_string(),
        _ => panic!("{outcome}"),
    }
}

#[tokio::test(start_paused = true)]
async fn what_speaks_against_the_start_is_said_before_anything_changes() {
    type Change = fn(&mut Value);
    let cases: [(&str, Change, &str); 6] = [
        ("/spec/paused", |object| object["spec"]["paused"] = json!(true), "it is paused"),
        ("/spec/replicas", |object| object["spec"]["replicas"] = json!(0), "is scaled to 0"),
        (
            "Flux",
            |object| object["metadata"]["labels"]["kustomize.toolkit.fluxcd.io/name"] = json!("shop"),
            "Flux's Kustomization shop owns Deployment default/web",
        ),
        (
            "Argo CD",
            |object| {
                object["metadata"]["annotations"] =
                    json!({"argocd.argoproj.io/tracking-id": "shop:apps/Deployment:web"})
            },
            "Argo CD (shop) owns",
        ),
        (
            "a ConfigMap that is not there",
            |object| {
                object["spec"]["template"]["spec"]["containers"][0]["envFrom"] =
                    json!([{"configMapRef": {"name": "flags"}}]);
            },
            "ConfigMap flags, which the candidate's pods need, is not in namespace default",
        ),
        ("nothing", |_| {}, ""),
    ];
    for (what, change, why) in cases {
        let cluster = Cluster::new();
        let mut object = manifest(Kind::Deployment);
        change(&mut object);
        cluster.put(&object);
        let candidate = workload(&cluster, Kind::Deployment).images([("web", "shop:2")]).await.unwrap();
        if why.is_empty() {
            let outcome = roll_out(workload(&cluster, Kind::Deployment), candidate, false).await;
            assert_eq!(outcome.rollout.state, State::Promoted, "{outcome}");
            continue;
        }
        let said = refused(workload(&cluster, Kind::Deployment), candidate).await;
        assert!(said.contains(why), "{what}: {said}");
        let writes = |line: &String| line.starts_with("PATCH") && !line.contains("dryRun=All");
        assert_eq!(cluster.requests().iter().find(|line| writes(line)), None, "{what}");
    }
}

/// One crashes over and over, and somebody deploys what mends it. Once it was asked for, what is back is back whole.
#[tokio::test(start_paused = true)]
async fn a_workload_with_a_pod_that_is_not_ready_is_rolled_out_and_back_is_only_where_all_are_ready() {
    for kind in [Kind::Deployment, Kind::StatefulSet, Kind::DaemonSet] {
        let mut scene = Scene::new(kind).await;
        scene.manifest["spec"]["podManagementPolicy"] = json!("Parallel");
        scene.manifest["spec"]["template"]["spec"]["containers"][0]["image"] = json!("shop:ailing");
        scene.reset().await;
        scene.candidate = scene.workload().images([("web", "shop:2")]).await.unwrap();
        let outcome = roll_out(scene.workload(), scene.candidate(), false).await;
        assert_eq!(outcome.rollout.state, State::Promoted, "{kind:?}: {outcome}");

        scene.reset().await;
        let mut driver = Driver::new(&scene).await;
        driver.drive(Goal::Split(Weight::ALL)).await;
        let version = driver.look(Goal::Baseline).await.version;
        let back = driver.save(Goal::Baseline, &version);
        driver.send(&back).await.unwrap();
        tokio::time::sleep(Duration::from_secs(5)).await;
        let look = driver.look(Goal::Baseline).await;
        let Progress::Underway(why) = &look.progress else { panic!("{kind:?}: {look:?}") };
        assert!(why.as_str().starts_with("1 of 2"), "{kind:?}: {why}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_ordered_set_with_a_pod_that_is_not_ready_would_not_get_anywhere() {
    let mut scene = Scene::new(Kind::StatefulSet).await;
    scene.manifest["spec"]["template"]["spec"]["containers"][0]["image"] = json!("shop:ailing");
    scene.reset().await;
    let candidate = scene.workload().images([("web", "shop:2")]).await.unwrap();
    let said = refused(scene.workload(), candidate).await;
    assert!(said.contains("1 of 2 pods are ready, and its controller replaces none before all are"), "{said}");
}

#[tokio::test(start_paused = true)]
async fn missing_rights_are_named_and_so_is_what_admission_refuses() {
    let cluster = Cluster::new();
    cluster.put(&manifest(Kind::Deployment));
    let web = workload(&cluster, Kind::Deployment);
    let good = web.images([("web", "shop:2")]).await.unwrap();
    let refused_image = web.images([("web", "forbidden-by-admission:2")]).await.unwrap();
    let said = refused(workload(&cluster, Kind::Deployment), refused_image).await;
    assert!(said.contains("admission webhook") && said.contains("not from our registry"), "{said}");
    let unknown = web.images([("wbe", "shop:2")]).await.unwrap_err();
    assert_eq!(unknown.kind(), ErrorKind::Invalid);
    assert!(unknown.to_string().contains("has no container wbe; it has web"), "{unknown}");
    let nobody = Workload::deployment(&cluster.client(), "default", "nobody").unwrap();
    assert_eq!(nobody.images([("web", "shop:2")]).await.unwrap_err().kind(), ErrorKind::NotFound);

    cluster.deny("patch", "deployments");
    let said = refused(workload(&cluster, Kind::Deployment), good).await;
    assert!(said.contains("may not patch deployments.apps in namespace default"), "{said}");
    let role = web.role("deploy-guard").unwrap();
    assert!(role.contains(r#"- {apiGroups: ["apps"], resources: [deployments], verbs: [get, patch]}"#), "{role}");
}

#[tokio::test(start_paused = true)]
async fn a_template_that_changed_under_the_candidate_is_not_undone() {
    let scene = Scene::new(Kind::Deployment).await;
    let mut object = scene.manifest.clone();
    object["spec"]["template"]["spec"]["containers"][0]["env"] = json!([{"name": "NEW", "value": "1"}]);
    scene.cluster.put(&object);
    tokio::time::sleep(Duration::from_secs(2)).await;
    let said = refused(scene.workload(), scene.candidate()).await;
    assert!(said.contains("has changed since the candidate was made"), "{said}");
}

#[tokio::test(start_paused = true)]
async fn a_way_back_that_admission_would_refuse_is_said_although_what_stands_there_passes() {
    let mut scene = Scene::new(Kind::Deployment).await;
    scene.manifest["spec"]["template"]["spec"]["containers"][0]["image"] = json!("forbidden-by-admission:1");
    scene.reset().await;
    let candidate = scene.workload().images([("web", "shop:2")]).await.unwrap();
    let said = refused(scene.workload(), candidate).await;
    assert!(said.contains("the recorded template would not be accepted"), "{said}");
    assert!(said.contains("not from our registry"), "{said}");
}

#[tokio::test(start_paused = true)]
async fn what_a_webhook_says_that_takes_no_dry_runs_is_listed_and_a_template_cannot_be_made() {
    let scene = Scene::new(Kind::Deployment).await;
    scene.cluster.take_no_dry_runs("deployments");
    let template = &scene.manifest["spec"]["template"];
    let untried = scene.workload().template("release 2", template).await.unwrap_err();
    assert_eq!(untried.kind(), ErrorKind::Unsupported, "{untried}");
    let outcome = roll_out(scene.workload(), scene.candidate(), false).await;
    trial::promoted_untried(&outcome, &["the candidate's template", "the recorded template"]);
}

#[tokio::test(start_paused = true)]
async fn who_applies_on_the_servers_side_hears_what_a_rollback_leaves() {
    let mut scene = Scene::new(Kind::Deployment).await;
    let owned = |operation: &str| json!([{ "manager": "kubectl", "operation": operation, "fieldsV1": { "f:spec": { "f:template": {} } } }]);
    for (operation, said) in [("Update", false), ("Apply", true)] {
        scene.manifest["metadata"]["managedFields"] = owned(operation);
        scene.reset().await;
        let outcome = roll_out(scene.workload(), scene.candidate(), true).await;
        assert!(matches!(outcome.rollout.state, State::RolledBack { .. }), "{outcome}");
        let notes = &outcome.rollout.readiness.not_restored;
        let found = notes.iter().any(|note| note.as_str().starts_with("which fields of the template kubectl owns"));
        assert_eq!(found, said, "{operation}: {notes:?}");
    }
}

/// Half of it was broken by hand, so the way back is what was promoted last, as it was made and not as it was read.
#[tokio::test(start_paused = true)]
async fn a_way_back_that_was_promoted_and_not_read_off_is_used_where_it_serves_and_else_refused() {
    let scene = Scene::new(Kind::Deployment).await;
    let web = || scene.workload();
    let promoted = web().images([("web", "shop:1")]).await.unwrap();
    let target = TargetId::try_from("web").unwrap();
    let plan = Plan::all_at_once(Duration::from_secs(1)).unwrap();
    let change =
        Change { rollout: RolloutId::fresh(&target), target, baseline: promoted, candidate: scene.candidate() };
    let ready = web().preflight(&change, &plan).await.unwrap();
    assert_eq!(ready.refused, [], "{ready:?}");
    let back = web().observe(&change, Goal::Baseline, None).await.unwrap();
    assert_eq!((back.progress, back.not_restored), (Progress::Reached, vec![]));
    scene.set_image("shop:9");
    let ready = web().preflight(&change, &plan).await.unwrap();
    assert!(ready.refused[0].as_str().contains("the way back is the revision that was promoted last"), "{ready:?}");
    // Somebody was faster.
    scene.set_image("shop:2");
    let forward = web().observe(&change, Goal::Split(Weight::ALL), None).await.unwrap();
    assert!(matches!(forward.progress, Progress::Drifted(_)), "{forward:?}");
}

#[tokio::test(start_paused = true)]
async fn a_name_is_of_one_template_and_what_serves_keeps_its_own() {
    let scene = Scene::new(Kind::Deployment).await;
    let web = || scene.workload();
    let template = |release: u32| {
        let mut template = scene.manifest["spec"]["template"].clone();
        template["spec"]["containers"][0]["image"] = json!(format!("shop:{release}"));
        template
    };
    let first = web().baseline().await.unwrap().id;
    assert_eq!(web().template("release 1", &template(1)).await.unwrap().id, first);
    assert_eq!(web().images([("web", "shop:1")]).await.unwrap().id, first);
    let outcome = roll_out(web(), web().template("release 3", &template(3)).await.unwrap(), false).await;
    assert_eq!(outcome.rollout.state, State::Promoted, "{outcome}");
    // The file was changed, and the name was not.
    let refused = web().template("release 3", &template(4)).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Invalid);
    assert!(refused.to_string().contains("serves another template by the name release 3"), "{refused}");
    // The name was changed, and the file was not.
    let again = roll_out(web(), web().template("release 4", &template(3)).await.unwrap(), false).await;
    assert_eq!(again.rollout.state, State::Refused { why: Refusal::AlreadyServes }, "{again}");
    // Somebody changed it since: it is not release 3 any more.
    scene.set_image("shop:5");
    assert_eq!(web().template("release 3", &template(3)).await.unwrap().id.as_str(), "release 3");
}

/// What was applied on the way stays, but for the template that is back.
#[tokio::test(start_paused = true)]
async fn what_kubectl_apply_compares_with_is_the_template_that_is_back_and_else_what_was_applied() {
    const APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
    let mut scene = Scene::new(Kind::Deployment).await;
    let applied = |image: &str, labels: Value| json!({ "metadata": { "labels": labels }, "spec": { "template": { "image": image } } });
    scene.manifest["metadata"]["annotations"] = json!({ APPLIED: applied("shop:1", json!({})).to_string() });
    scene.reset().await;
    scene.cluster.pods_take(Duration::from_secs(20));
    let rolling = tokio::spawn(roll_out(scene.workload(), scene.candidate(), true));
    while scene.image() != "shop:2" {
        assert!(!rolling.is_finished());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let mut object = scene.cluster.get("deployments", "web").unwrap();
    let labels = json!({ "team": "checkout" });
    object["metadata"]["annotations"][APPLIED] = json!(applied("shop:2", labels.clone()).to_string());
    scene.cluster.put(&object);
    let outcome = rolling.await.unwrap();
    assert!(matches!(outcome.rollout.state, State::RolledBack { .. }), "{outcome}");
    let after = scene.cluster.get("deployments", "web").unwrap();
    let found: Value = serde_json::from_str(after["metadata"]["annotations"][APPLIED].as_str().unwrap()).unwrap();
    assert_eq!(found, applied("shop:1", labels));
}

#[tokio::test(start_paused = true)]
async fn somebody_elses_edit_in_the_middle_is_drift_and_hands_stay_off() {
    let scene = Scene::new(Kind::Deployment).await;
    let rolling = scene.half_way().await;
    scene.set_image("shop:3");
    let outcome = rolling.await.unwrap();
    assert!(matches!(outcome.rollout.state, State::Abandoned { .. }), "{outcome}");
    assert!(outcome.to_string().contains("web=shop:3"), "{outcome}");
    assert_eq!(scene.image(), "shop:3");
}

#[tokio::test(start_paused = true)]
async fn what_was_undone_by_hand_on_the_way_is_not_done_again() {
    let scene = Scene::new(Kind::Deployment).await;
    let rolling = scene.half_way().await;
    scene.set_image("shop:1");
    let outcome = rolling.await.unwrap();
    assert!(matches!(outcome.rollout.state, State::Abandoned { .. }), "{outcome}");
    assert!(outcome.to_string().contains("was given web=shop:1 again"), "{outcome}");
    assert_eq!(scene.image(), "shop:1");
}

/// Pods are of two templates, for somebody deployed something and took it back: the way back is what was promoted last, of
/// which nobody recorded how the object stood. Whichever of the two somebody puts there then stays.
#[tokio::test(start_paused = true)]
async fn what_somebody_puts_there_by_hand_stays_also_where_the_way_back_was_promoted_last() {
    for (bad, by_hand) in [(false, "shop:2"), (true, "shop:3")] {
        let scene = Scene::new(Kind::Deployment).await;
        let engine = Engine::new(Memory::new()).unwrap();
        let gate = if bad { Scripted::unhealthy_from("errors", Weight::ALL) } else { Scripted::healthy("errors") };
        let plan = || Plan::all_at_once(Duration::from_secs(1)).unwrap();
        let often = (Duration::from_millis(100), Duration::from_millis(500));
        let before = Target::new("web", scene.workload()).unwrap().look_every(often.0, often.1);
        engine.register(before).unwrap();
        let first = NewRollout::new("web", scene.candidate(), plan()).unwrap();
        let first = engine.start(first).await.unwrap().finished().await;
        assert_eq!(first.rollout.state, State::Promoted, "{first}");
        let target = Target::new("web", scene.workload()).unwrap().look_every(often.0, often.1);
        engine.register(target.gate(gate, Policy::default().every(Duration::from_millis(100)))).unwrap();

        scene.set_image("shop:9");
        scene.cluster.pods_take(Duration::from_secs(20));
        scene.set_image("shop:2");
        let next = scene.workload().images([("web", "shop:3")]).await.unwrap();
        let rolling = engine.start(NewRollout::new("web", next, plan()).unwrap()).await.unwrap();
        // Until the candidate, or the way back from it, is put there and its pods come.
        while scene.image() != "shop:3" {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        while bad && scene.image() != "shop:2" {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        scene.set_image(by_hand);
        let outcome = rolling.finished().await;
        assert!(matches!(outcome.rollout.state, State::Abandoned { .. }), "{by_hand}: {outcome}");
        assert!(outcome.to_string().contains(&format!("was given web={by_hand} again")), "{outcome}");
        assert_eq!(scene.image(), by_hand);
    }
}

#[tokio::test(start_paused = true)]
async fn an_object_that_was_made_again_under_its_name_is_another_one() {
    let scene = Scene::new(Kind::Deployment).await;
    let rolling = scene.half_way().await;
    scene.cluster.delete("deployments", "web");
    scene.cluster.put(&scene.manifest);
    let outcome = rolling.await.unwrap();
    assert!(outcome.to_string().contains("deleted and made again"), "{outcome}");
}

#[tokio::test(start_paused = true)]
async fn every_disturbance_of_a_stateful_set_and_of_a_daemon_set_is_got_over() {
    for kind in [Kind::StatefulSet, Kind::DaemonSet] {
        trial::gets_over(&format!("{kind:?}"), &Scene::new(kind).await, &["bad all at once"]).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_busy_server_and_one_that_is_away_for_a_minute_are_waited_for() {
    for fault in [Fault::Refuse(429, 3), Fault::Refuse(503, 0), Fault::LoseRequest, Fault::Hang] {
        let scene = Scene::new(Kind::Deployment).await;
        let rolling = tokio::spawn(roll_out(scene.workload(), scene.candidate(), true));
        tokio::time::sleep(Duration::from_millis(300)).await;
        scene.cluster.fault("", usize::MAX, fault.clone());
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert!(!rolling.is_finished(), "{fault:?}");
        scene.cluster.calm();
        let outcome = rolling.await.unwrap();
        assert!(matches!(outcome.rollout.state, State::RolledBack { .. }), "{fault:?}: {outcome}");
    }
}

#[tokio::test(start_paused = true)]
async fn configuration_that_changed_is_told_when_the_template_is_back() {
    let cluster = Cluster::new();
    let mut object = manifest(Kind::Deployment);
    object["spec"]["template"]["spec"]["containers"][0]["envFrom"] =
        json!([{"configMapRef": {"name": "flags"}}, {"secretRef": {"name": "keys"}}]);
    cluster.put(&object);
    let config = |kind: &str, name: &str, value: &str| json!({"apiVersion": "v1", "kind": kind, "metadata": {"name": name}, "data": {"value": value}});
    cluster.put(&config("ConfigMap", "flags", "old"));
    cluster.put(&config("Secret", "keys", "old-secret"));
    let web = workload(&cluster, Kind::Deployment);
    let candidate = web.images([("web", "shop:2")]).await.unwrap();
    let kept = format!("{:?}", web.baseline().await.unwrap());
    assert!(!kept.contains("old-secret"));
    let rolling = tokio::spawn(roll_out(web, candidate, true));
    tokio::time::sleep(Duration::from_millis(100)).await;
    cluster.put(&config("ConfigMap", "flags", "new"));
    cluster.put(&config("Secret", "keys", "new-secret"));
    let outcome = rolling.await.unwrap();
    let said: Vec<&str> = outcome.rollout.not_restored.iter().map(|note| note.as_str()).collect();
    assert!(said.iter().any(|note| note.starts_with("ConfigMap flags has changed")), "{said:?}");
    assert!(said.iter().any(|note| note.starts_with("Secret keys has changed")), "{said:?}");
    assert!(!outcome.to_string().contains("new-secret"));
}

/// Release 1 of a Deployment, rolled out.
async fn real() -> Option<Namespace> {
    let space = cluster::namespace().await?;
    space.apply(&released("web", 1));
    space.rolled_out("deployment/web");
    Some(space)
}

/// The template as it is, of this release.
fn next(space: &Namespace, number: u32) -> Value {
    let mut template = space.get("deployment", "web")["spec"]["template"].clone();
    release(&mut template, number);
    template
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_deployment_is_promoted_and_a_bad_one_is_brought_back() {
    let Some(space) = real().await else { return };
    let web = || Workload::deployment(&space.client, &space.name, "web").unwrap();
    let template = next(&space, 2);
    let candidate = web().template("release 2", &template).await.unwrap();
    let outcome = roll_out(web(), candidate, false).await;
    assert_eq!(outcome.rollout.state, State::Promoted, "{outcome}");
    assert_eq!(space.get("deployment", "web")["spec"]["template"], template);
    assert_eq!(web().baseline().await.unwrap().id.as_str(), "release 2");

    // It never comes up, and the step's deadline is over long before the progress deadline of 600 s.
    let before = space.get("deployment", "web");
    let candidate = web().images([("web", bad())]).await.unwrap();
    assert!(candidate.id.as_str().starts_with(&format!("web={} #", bad())), "{}", candidate.id);
    let engine = Engine::new(Memory::new()).unwrap();
    engine
        .register(Target::new("web", web()).unwrap().look_every(Duration::from_millis(200), Duration::from_secs(1)))
        .unwrap();
    let deadlines = Deadlines { shift: Duration::from_secs(5), ..Deadlines::default() };
    let plan = Plan::all_at_once(Duration::from_secs(1)).unwrap().with_deadlines(deadlines).unwrap();
    let outcome = engine.start(NewRollout::new("web", candidate, plan).unwrap()).await.unwrap().finished().await;
    assert!(matches!(outcome.rollout.state, State::RolledBack { cause: Cause::Deadline { .. } }), "{outcome}");
    let after = space.get("deployment", "web");
    assert_eq!(after["spec"]["template"], before["spec"]["template"]);
    space.is_rolled_out("deployment/web");

    // Whoever keeps manifests applies the next one, and nothing of the bad one is left.
    let mut next = released("web", 3);
    next["spec"]["template"]["spec"]["containers"][0]["env"] = json!([{"name": "A", "value": "1"}]);
    space.apply(&next);
    let applied = space.get("deployment", "web")["spec"]["template"].clone();
    assert_eq!(release_of(&applied), release_of(&next["spec"]["template"]));
    assert_eq!(applied["spec"]["containers"][0]["env"], json!([{"name": "A", "value": "1"}]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_deployment_with_a_pod_that_crashes_is_rolled_out() {
    let Some(space) = real().await else { return };
    let web = || Workload::deployment(&space.client, &space.name, "web").unwrap();
    let pods = space.get("pods", "-lapp=web");
    let patch = json!({ "spec": { "containers": [{ "name": "web", "image": bad() }] } }).to_string();
    space.kubectl(&["patch", "pod", pods["items"][0]["metadata"]["name"].as_str().unwrap(), "-p", &patch]);
    space
        .until("one is not available", async || space.get("deployment", "web")["status"]["availableReplicas"] == 1)
        .await;
    let candidate = web().template("release 2", &next(&space, 2)).await.unwrap();
    let outcome = roll_out(web(), candidate, false).await;
    assert_eq!(outcome.rollout.state, State::Promoted, "{outcome}");
}

/// `kubectl rollout undo` brings back the annotations of the old template too, our own among them.
#[tokio::test(flavor = "multi_thread")]
async fn what_kubectl_undid_on_the_way_is_not_done_again() {
    let Some(space) = real().await else { return };
    let before = release_of(&space.get("deployment", "web")["spec"]["template"]);
    let web = Workload::deployment(&space.client, &space.name, "web").unwrap();
    let candidate = web.images([("web", bad())]).await.unwrap();
    let engine = Engine::new(Memory::new()).unwrap();
    let target = Target::new("web", web).unwrap();
    engine.register(target.look_every(Duration::from_millis(200), Duration::from_secs(1))).unwrap();
    let plan = Plan::all_at_once(Duration::from_secs(1)).unwrap();
    let handle = engine.start(NewRollout::new("web", candidate, plan).unwrap()).await.unwrap();
    let numbered = |object: &Value| object["metadata"]["annotations"]["deployment.kubernetes.io/revision"] == "2";
    while !numbered(&space.get("deployment", "web")) {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    space.kubectl(&["rollout", "undo", "deployment/web"]);
    let outcome = tokio::time::timeout(NOTICED, handle.finished()).await.expect("it is noticed");
    assert!(matches!(outcome.rollout.state, State::Abandoned { .. }), "{outcome}");
    assert_eq!(release_of(&space.get("deployment", "web")["spec"]["template"]), before, "{outcome}");
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_real_server_a_rollout_by_watch_ends_as_one_by_requests() {
    let Some(space) = real().await else { return };
    let watches = Watches::new(&space.client);
    let web = || Workload::deployment(&space.client, &space.name, "web").unwrap().watched_by(&watches);
    let mut before = next(&space, 2);
    // So that what is said to be done too early is seen to be under way.
    before["metadata"]["annotations"]["fake-kubelet/ready-delay"] = json!("2");
    let outcome = roll_out(web(), web().template("2", &before).await.unwrap(), false).await;
    assert_eq!(outcome.rollout.state, State::Promoted, "{outcome}");
    let outcome = roll_out(web(), web().template("3", &next(&space, 3)).await.unwrap(), true).await;
    assert!(matches!(outcome.rollout.state, State::RolledBack { .. }), "{outcome}");
    assert_eq!(space.get("deployment", "web")["spec"]["template"], before);
    space.is_rolled_out("deployment/web");
}

/// Somebody else's hand is noticed within this, however long a cluster takes for pods.
const NOTICED: Duration = Duration::from_secs(60);

/// The ready-made scenarios that differ from each other where 100 % is the only share.
const AT_ITS_OWN_PACE: [&str; 5] = [
    "all at once",
    "bad all at once",
    "aborted while baking",
    "aborted while shifting",
    "bad canary whose rollback fails for a while",
];
