//! The gates on a real API server, over a line that can be disturbed.

use std::time::Duration;

use jiff::Timestamp;
use rollback_core::{
    ErrorKind,
    clock::{Clock as _, SystemClock},
    engine::{Engine, NewRollout, Target},
    gate::{Evidence, HealthGate, Policy, Standing, Verdict, Window},
    model::{RolloutId, Weight},
    plan::{Plan, Step},
    state::{Cause, State},
    store::Memory,
    testing::{backend::Bench as _, fakes::Fake},
};
use rollback_k8s::{
    Watches,
    gate::{Conditions, Pods},
    store::Secrets,
    testing::{self, Cluster},
};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout};

use crate::{
    line::{Fault, Line},
    place::Place,
    support::cluster::{PATIENCE, deployment},
};

/// A rollout as the engine tells a gate of it.
struct Judge {
    rollout: RolloutId,
    created: Timestamp,
    last: Option<Evidence>,
}

impl Judge {
    fn new(rollout: &str) -> Self {
        Self { rollout: rollout.try_into().unwrap(), created: SystemClock.now(), last: None }
    }

    async fn ask(&mut self, gate: &impl HealthGate) -> Verdict {
        let window = Window {
            rollout: self.rollout.clone(),
            target: "web".try_into().unwrap(),
            baseline: "good".try_into().unwrap(),
            candidate: "bad".try_into().unwrap(),
            created: self.created,
            step: 0,
            weight: Weight::ALL,
            since: self.created,
            now: SystemClock.now(),
            last: self.last.clone(),
        };
        let judged = timeout(Duration::from_secs(10), gate.judge(&window)).await.expect("an answer in time");
        let verdict = judged.unwrap_or_else(|e| window.no_data(e.chain()));
        self.last = Some(verdict.evidence().clone());
        verdict
    }

    async fn until(&mut self, gate: &impl HealthGate, standing: Standing) -> Evidence {
        let begun = Instant::now();
        loop {
            let verdict = self.ask(gate).await;
            if verdict.standing() == standing {
                return verdict.evidence().clone();
            }
            assert!(begun.elapsed() < PATIENCE, "never {standing}: {}", verdict.evidence().summary);
            sleep(Duration::from_millis(50)).await;
        }
    }
}

#[tokio::test]
async fn a_candidate_that_crashes_is_unhealthy_in_its_own_words_and_a_good_one_healthy() {
    let Some(place) = Place::new().await else { return };
    place.deployment("web", "good", 3).await;
    let line = Line::default();
    let watches = Watches::new(&line.client(&place.kubeconfig).await);
    let gate = Pods::of(&watches, &place.namespace, "deployment/web").unwrap();

    let mut good = Judge::new("good");
    let verdict = good.ask(&gate).await;
    assert_eq!(verdict.evidence().summary, "deployment/web was not changed by this rollout yet");
    place.set_image("web", "good2", "good/1/candidate").await;
    let evidence = good.until(&gate, Standing::Healthy).await;
    assert!(evidence.summary.ends_with("pods are ready"), "{}", evidence.summary);

    let mut bad = Judge::new("bad");
    let verdict = bad.ask(&gate).await;
    assert!(verdict.evidence().summary.contains("another rollout"), "{}", verdict.evidence().summary);
    place.set_image("web", "bad", "bad/1/candidate").await;
    let evidence = bad.until(&gate, Standing::Unhealthy).await;
    assert!(evidence.summary.starts_with("container app of pod web-"), "{}", evidence.summary);
    assert!(evidence.summary.contains("exit code "), "{}", evidence.summary);
    assert!(evidence.facts["of the baseline"].as_u64() > Some(0), "{evidence:?}");

    place.set_image("web", "good2", "bad/2/baseline").await;
    let verdict = bad.ask(&gate).await;
    assert_ne!(verdict.standing(), Standing::Healthy, "the baseline's pods are not the candidate's");
}

#[tokio::test]
async fn what_the_cluster_knows_of_a_pod_explains_the_verdict() {
    let Some(place) = Place::new().await else { return };
    place.deployment("web", "good", 2).await;
    let watches = Watches::new(&Line::default().client(&place.kubeconfig).await);
    let gate = Pods::of(&watches, &place.namespace, "deploy/web").unwrap().pulls_within(Duration::from_millis(500));
    place.set_image("web", "nopull", "r/1/candidate").await;
    let evidence = Judge::new("r").until(&gate, Standing::Unhealthy).await;
    assert!(evidence.summary.contains("cannot pull its image"), "{}", evidence.summary);
    assert!(evidence.facts["events"].to_string().contains("Pull"), "{evidence:?}");
}

#[tokio::test]
async fn the_last_lines_of_a_log_are_in_the_evidence_only_where_they_are_asked_for() {
    let Some(place) = Place::new().await else { return };
    place.deployment("web", "good", 1).await;
    place.set_image("web", "bad", "r/1/candidate").await;
    for lines in [0, 5] {
        let line = Line::default();
        let watches = Watches::new(&line.client(&place.kubeconfig).await);
        // Its kubelet may have none.
        line.disturb(|request| request.contains("/log?").then_some(Fault::Says("no such table: orders")));
        let gate = Pods::of(&watches, &place.namespace, "deployment/web").unwrap().with_log_lines(lines);
        let evidence = Judge::new("r").until(&gate, Standing::Unhealthy).await;
        let asked: Vec<String> = line.sent().into_iter().filter(|request| request.contains("/log")).collect();
        if lines == 0 {
            assert!(asked.is_empty() && evidence.facts.get("log").is_none(), "{asked:?}, {evidence:?}");
        } else {
            assert_eq!(evidence.facts["log"], "no such table: orders");
            assert!(asked.iter().all(|request| request.contains("tailLines=5")), "{asked:?}");
            assert!(asked.iter().all(|request| request.contains("limitBytes=2048")), "{asked:?}");
            assert!(gate.rights().iter().any(|right| right.resource == "pods/log"));
        }
    }
}

#[tokio::test]
async fn a_baseline_that_fails_as_well_is_no_reason_to_go_back() {
    let Some(place) = Place::new().await else { return };
    place.deployment("canary", "good", 1).await;
    place.deployment("web", "good", 2).await;
    let watches = Watches::new(&Line::default().client(&place.kubeconfig).await);
    let beside = |candidate, baseline| Pods::beside(&watches, &place.namespace, candidate, baseline).unwrap();
    let gate = beside("deployment/canary", "deployment/web");
    let mut judge = Judge::new("r");
    judge.until(&gate, Standing::Healthy).await;
    place.set_image("web", "bad", "r/1/candidate").await;
    place.set_image("canary", "bad", "r/1/candidate").await;
    place
        .until("both fail", async || {
            let pods = place.send("GET", &place.pods(), &Value::Null).await;
            let restarts = |app: &str| {
                let of = |pod: &&Value| pod["metadata"]["labels"]["app"] == app;
                let all = pods["items"].as_array().unwrap().iter().filter(of);
                all.filter_map(|pod| pod["status"]["containerStatuses"][0]["restartCount"].as_u64()).max()
            };
            restarts("canary") >= Some(2) && restarts("web") >= Some(2)
        })
        .await;
    let evidence = judge.until(&gate, Standing::Inconclusive).await;
    assert!(evidence.summary.ends_with("rolling back would not help"), "{}", evidence.summary);
}

#[tokio::test]
async fn pods_that_a_quota_refuses_are_seen_by_the_condition_of_their_deployment() {
    let Some(place) = Place::new().await else { return };
    place.deployment("web", "good", 2).await;
    let watches = Watches::new(&Line::default().client(&place.kubeconfig).await);
    let gate = Conditions::of(&watches, &place.namespace, "deployment/web").unwrap();
    let gate = gate.bears_failure_for(Duration::from_secs(1));
    let mut judge = Judge::new("r");
    place.set_image("web", "good2", "r/1/candidate").await;
    judge.until(&gate, Standing::Healthy).await;
    let quota = json!({ "apiVersion": "v1", "kind": "ResourceQuota", "metadata": { "name": "full" },
        "spec": { "hard": { "pods": "0" } } });
    place.send("POST", &format!("/api/v1/namespaces/{}/resourcequotas", place.namespace), &quota).await;
    place.set_image("web", "good3", "r/2/candidate").await;
    let evidence = judge.until(&gate, Standing::Unhealthy).await;
    assert!(evidence.summary.contains("cannot make pods (FailedCreate: "), "{}", evidence.summary);
}

#[tokio::test]
async fn a_pod_that_fails_wakes_the_engine_at_once() {
    let Some(place) = Place::new().await else { return };
    place.deployment("web", "good", 2).await;
    let watches = Watches::new(&Line::default().client(&place.kubeconfig).await);
    let gate = Pods::of(&watches, &place.namespace, "deployment/web").unwrap();
    let engine = Engine::new(Memory::new()).unwrap();
    let fake = Fake::new("good", "bad");
    // Asked so seldom that only a wake can be what it hears.
    let target =
        Target::new("web", fake.clone()).unwrap().gate(gate, Policy::default().every(Duration::from_secs(3600)));
    engine.register(target).unwrap();
    let plan = Plan::new([Step::new(Weight::ALL, Duration::from_secs(3600))]).unwrap();
    let rollout = NewRollout::new("web", fake.candidate(), plan).unwrap().id("web-1".try_into().unwrap());
    place.set_image("web", "good2", "web-1/1/candidate").await;
    let handle = engine.start(rollout).await.unwrap();
    place.until("it bakes", async || matches!(handle.status().state, State::Baking { .. })).await;
    sleep(Duration::from_millis(500)).await;
    place.set_image("web", "bad", "web-1/1/candidate").await;
    let outcome = timeout(PATIENCE, handle.finished()).await.expect("it is woken");
    let State::RolledBack { cause: Cause::Unhealthy { gate, .. } } = &outcome.rollout.state else {
        panic!("{:?}", outcome.rollout.state)
    };
    assert_eq!(gate.as_str(), "pods");
}

// ------------------------------------------------------------------------------------------------- a line that is ill

fn is_watch(request: &str) -> bool {
    request.contains("watch=true") && request.contains("/pods?")
}

#[tokio::test]
async fn a_watch_that_is_too_old_or_hangs_or_is_denied_or_cut_is_made_up_for_by_lists() {
    for fault in [Fault::Gone, Fault::Hangs, Fault::Silent, Fault::Denied, Fault::Away, Fault::Says("")] {
        let Some(place) = Place::new().await else { return };
        place.deployment("web", "good", 2).await;
        let (line, begun) = (Line::default(), Instant::now());
        let watches = Watches::new(&line.client(&place.kubeconfig).await);
        let gate = Pods::of(&watches, &place.namespace, "deployment/web").unwrap();
        line.disturb(move |request| is_watch(request).then_some(fault));
        let mut judge = Judge::new("r");
        place.set_image("web", "good2", "r/1/candidate").await;
        judge.until(&gate, Standing::Healthy).await;
        place.set_image("web", "bad", "r/2/candidate").await;
        let evidence = judge.until(&gate, Standing::Unhealthy).await;
        assert!(evidence.summary.contains("crashed"), "{fault:?}: {}", evidence.summary);
        let sent = line.sent();
        let most = 60 + 4 * begun.elapsed().as_secs();
        assert!((sent.len() as u64) < most, "{fault:?} takes {} requests; {most} are accepted", sent.len());
    }
}

/// By a proxy that ends what is silent, in a namespace where nothing happens.
#[tokio::test(start_paused = true)]
async fn watches_that_are_always_cut_leave_no_gate_without_data() {
    for after in [0, 2, 5, 8].map(Duration::from_secs) {
        let cluster = Cluster::new();
        let mut set = crate::partition::set(deployment("db", "shop:1"), 1);
        set["metadata"]["annotations"] = json!({ "rollback.rs/attempt": "r/1/candidate" });
        let uid = cluster.put(&set)["metadata"]["uid"].clone();
        let revision = cluster.get("statefulsets", "db").unwrap()["status"]["updateRevision"].clone();
        let owner =
            json!({ "apiVersion": "apps/v1", "kind": "StatefulSet", "name": "db", "uid": uid, "controller": true });
        cluster.put(&json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": "db-0", "labels": { "controller-revision-hash": revision }, "ownerReferences": [owner] },
            "status": { "phase": "Running", "conditions": [{ "type": "Ready", "status": "True" }] },
        }));
        cluster.fault("watch=true", usize::MAX, testing::Fault::Cut(after));
        let gate = Pods::of(&Watches::new(&cluster.client()), "default", "statefulset/db").unwrap();
        let mut judge = Judge::new("r");
        judge.until(&gate, Standing::Healthy).await;
        let before = cluster.requests().len();
        for second in 0..120 {
            sleep(Duration::from_secs(1)).await;
            let begun = Instant::now();
            let verdict = judge.ask(&gate).await;
            assert_eq!(verdict.standing(), Standing::Healthy, "cut after {after:?}, {second} s: {verdict:?}");
            assert!(begun.elapsed() < Duration::from_secs(1), "cut after {after:?}, {second} s: it is waited for");
        }
        let asked = cluster.requests().split_off(before);
        let lists = asked.iter().filter(|line| !line.contains("watch=true")).count();
        // Two kinds, each no more often than a good watch is begun again.
        assert!(lists <= 2 * 12, "cut after {after:?}: {lists} lists in two minutes");
    }
}

#[tokio::test]
async fn an_api_server_that_is_away_for_a_minute_is_borne_and_nothing_is_decided_meanwhile() {
    let Some(place) = Place::new().await else { return };
    place.deployment("web", "good", 2).await;
    let line = Line::default();
    let client = line.client(&place.kubeconfig).await;
    let watches = Watches::new(&client);
    let gate = Pods::of(&watches, &place.namespace, "deployment/web").unwrap();
    let engine = Engine::new(Secrets::new(&client, &place.namespace).unwrap()).unwrap();
    let fake = Fake::new("good", "bad");
    let target = Target::new("web", fake.clone()).unwrap();
    engine.register(target.gate(gate, Policy::default().every(Duration::from_secs(1)))).unwrap();
    place.set_image("web", "good2", "web-1/1/candidate").await;
    let plan = Plan::new([Step::new(Weight::ALL, Duration::from_secs(3600))]).unwrap();
    let rollout = NewRollout::new("web", fake.candidate(), plan).unwrap().id("web-1".try_into().unwrap());
    let handle = engine.start(rollout).await.unwrap();
    let gate = || handle.status().gates[0].clone();
    place.until("it is healthy", async || gate().standing == Standing::Healthy).await;

    line.disturb(|_| Some(Fault::Away));
    line.sent();
    sleep(Duration::from_secs(60)).await;
    let status = handle.status();
    assert!(matches!(status.state, State::Baking { .. }), "{:?}", status.state);
    // By another gate on the same watches: what the rollout decides is told once the store, which is away too, has it.
    let verdict = Judge::new("web-1").ask(&Pods::of(&watches, &place.namespace, "deployment/web").unwrap()).await;
    assert_eq!(verdict.standing(), Standing::Inconclusive, "what is a minute old is not known: {verdict:?}");
    let sent = line.sent();
    assert!(sent.len() < 600, "{} requests in a minute to a server that is away", sent.len());
    line.calm();
    place.until("it is healthy again", async || gate().standing == Standing::Healthy).await;
    assert!(matches!(handle.status().state, State::Baking { .. }), "{:?}", handle.status().state);

    place.set_image("web", "bad", "web-1/1/candidate").await;
    let outcome = timeout(PATIENCE, handle.finished()).await.expect("it goes back");
    assert!(matches!(outcome.rollout.state, State::RolledBack { .. }), "{:?}", outcome.rollout.state);
}

#[tokio::test]
async fn a_watch_that_a_busy_server_turns_away_waits_as_long_as_it_is_told() {
    let Some(place) = Place::new().await else { return };
    place.deployment("web", "good", 1).await;
    let line = Line::default();
    let watches = Watches::new(&line.client(&place.kubeconfig).await);
    let gate = Pods::of(&watches, &place.namespace, "deployment/web").unwrap();
    line.disturb(|request| request.contains("/pods?").then_some(Fault::Busy(2)));
    let mut judge = Judge::new("r");
    place.set_image("web", "good2", "r/1/candidate").await;
    let verdict = judge.ask(&gate).await;
    assert!(verdict.evidence().summary.contains("the API server is busy"), "{}", verdict.evidence().summary);
    line.sent();
    sleep(Duration::from_millis(4_500)).await;
    let asked = line.sent().iter().filter(|request| request.contains("/pods?")).count();
    assert!((1..=3).contains(&asked), "asked {asked} times within 4.5 s, every 2 s at most");
    line.calm();
    judge.until(&gate, Standing::Healthy).await;
}

#[tokio::test]
async fn one_watch_a_kind_serves_every_gate_of_a_process() {
    let Some(place) = Place::new().await else { return };
    place.deployment("web", "good", 1).await;
    let line = Line::default();
    let watches = Watches::new(&line.client(&place.kubeconfig).await);
    place.set_image("web", "good2", "r/1/candidate").await;
    // Watches are begun anew every ten seconds, and a rollout may take longer than that.
    place
        .until("it is rolled out", async || {
            let web = place.web().await;
            let is_one = |name: &str| web["status"][name] == 1;
            web["metadata"]["generation"] == web["status"]["observedGeneration"]
                && ["replicas", "updatedReplicas", "availableReplicas"].into_iter().all(is_one)
        })
        .await;
    let gates: Vec<Pods> = (0..20).map(|_| Pods::of(&watches, &place.namespace, "deployment/web").unwrap()).collect();
    let mut judges: Vec<Judge> = gates.iter().map(|_| Judge::new("r")).collect();
    for (gate, judge) in gates.iter().zip(&mut judges) {
        judge.until(gate, Standing::Healthy).await;
    }
    let sent = line.sent();
    let begun = sent.iter().filter(|request| request.contains("watch=true")).count();
    assert!(begun <= 6 && sent.len() <= 9, "pods, ReplicaSets and Deployments, each listed and watched: {sent:?}");
}

#[tokio::test]
async fn a_gate_on_what_is_not_there_refuses_the_start_and_bad_names_are_told() {
    let Some(place) = Place::new().await else { return };
    let watches = Watches::new(&Line::default().client(&place.kubeconfig).await);
    for bad in ["web", "cronjob/web", "deployment/", "deployment/Web", "deployment/a/b"] {
        let error = Pods::of(&watches, &place.namespace, bad).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.to_string().contains("deployment/NAME"), "{error}");
    }
    let error = Conditions::of(&watches, &place.namespace, "statefulset/db").unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);

    let gate = Pods::of(&watches, &place.namespace, "deployment/web").unwrap();
    let engine = Engine::new(Memory::new()).unwrap();
    let fake = Fake::new("good", "bad");
    engine.register(Target::new("web", fake.clone()).unwrap().gate(gate, Policy::default())).unwrap();
    let plan = Plan::new([Step::new(Weight::ALL, Duration::from_secs(1))]).unwrap();
    let handle = engine.start(NewRollout::new("web", fake.candidate(), plan).unwrap()).await.unwrap();
    let outcome = handle.finished().await;
    let State::Refused { why } = &outcome.rollout.state else { panic!("{:?}", outcome.rollout.state) };
    assert!(format!("{why:?}").contains("there is no deployment/web in namespace"), "{why:?}");
}

#[tokio::test]
async fn a_right_that_is_missing_refuses_the_start_by_its_verb_and_resource() {
    let cluster = Cluster::new();
    cluster.put(&deployment("web", "shop:1"));
    cluster.deny("watch", "pods");
    let watches = Watches::new(&cluster.client());
    let gate = Pods::of(&watches, "default", "deployment/web").unwrap();
    let resources: Vec<&str> = gate.rights().iter().map(|right| right.resource).collect();
    assert_eq!(resources, ["deployments", "replicasets", "pods", "events"]);
    let engine = Engine::new(Memory::new()).unwrap();
    let fake = Fake::new("good", "bad");
    engine.register(Target::new("web", fake.clone()).unwrap().gate(gate, Policy::default())).unwrap();
    let plan = Plan::new([Step::new(Weight::ALL, Duration::from_secs(1))]).unwrap();
    let handle = engine.start(NewRollout::new("web", fake.candidate(), plan).unwrap()).await.unwrap();
    let outcome = handle.finished().await;
    let State::Refused { why } = &outcome.rollout.state else { panic!("{:?}", outcome.rollout.state) };
    assert!(format!("{why:?}").contains("may not watch pods in namespace default"), "{why:?}");
}
