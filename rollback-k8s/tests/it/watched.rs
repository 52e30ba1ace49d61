//! Looks by the watches of a process, of every target that has them: what is asked of the API server, and what becomes of
//! it where watching is not allowed.

use std::{sync::Arc, time::Duration};

use rollback_core::{
    backend::DeploymentBackend,
    engine::{Engine, NewRollout, Target},
    model::{Attempt, Change, Goal, Nonce, Revision, RolloutId, Serial, TargetId},
    plan::Plan,
    state::State,
    store::Memory,
};
use rollback_k8s::{
    CanaryPair, HttpRoute, StatefulSetCanary, Watches, Workload,
    testing::{Cluster, Fault},
};
use serde_json::json;
use tokio::time::Instant;

use crate::{
    pair, partition, route,
    support::{cluster::deployment, trial},
};

/// What looks by watch.
#[derive(Clone, Copy, Debug)]
enum Watched {
    Workload,
    Partition,
    Pair,
    Route,
}

const ALL: [Watched; 4] = [Watched::Workload, Watched::Partition, Watched::Pair, Watched::Route];

impl Watched {
    /// Puts it there under this name, and gives it with a candidate.
    async fn deploy(self, cluster: &Cluster, watches: &Watches, name: &str) -> (Arc<dyn DeploymentBackend>, Revision) {
        let client = cluster.client();
        match self {
            Self::Workload => {
                cluster.put(&deployment(name, "shop:1"));
                let web = Workload::deployment(&client, "default", name).unwrap().watched_by(watches);
                let candidate = web.images([("web", "shop:2")]).await.unwrap();
                (Arc::new(web), candidate)
            }
            Self::Partition => {
                cluster.put(&partition::set(deployment(name, "shop:1"), 4));
                let set = StatefulSetCanary::new(&client, "default", name).await.unwrap().watched_by(watches);
                let candidate = set.images([("web", "shop:2")]).await.unwrap();
                (Arc::new(set), candidate)
            }
            Self::Pair => {
                cluster.put(&pair::service("web"));
                let other = format!("{name}-canary");
                cluster.put(&pair::side(deployment(name, "shop:1"), 4));
                cluster.put(&pair::side(deployment(&other, "shop:2"), 0));
                let pair = CanaryPair::new(&client, "default", "web", [name, &other]).await.unwrap();
                let candidate = pair.candidate().await.unwrap();
                (Arc::new(pair.watched_by(watches)), candidate)
            }
            Self::Route => {
                for name in route::SERVICES {
                    cluster.put(&route::service(name));
                    cluster.put(&route::pod(name, true));
                }
                let mut object = route::manifest(1, 0);
                object["metadata"]["name"] = json!(name);
                cluster.put(&object);
                let route = HttpRoute::new(&client, "default", name, route::SERVICES).unwrap().watched_by(watches);
                let candidate = route.revision("shop:2", route::SERVICES[1]).unwrap();
                (Arc::new(route), candidate)
            }
        }
    }

    /// The kind of object that is watched for it.
    const fn plural(self) -> &'static str {
        match self {
            Self::Workload | Self::Pair => "deployments",
            Self::Partition => "statefulsets",
            Self::Route => "httproutes",
        }
    }

    /// Somebody else changes the object of this name.
    fn edit(self, cluster: &Cluster, name: &str) {
        let mut object = cluster.get(self.plural(), name).unwrap();
        match self {
            Self::Workload | Self::Partition => {
                object["spec"]["template"]["spec"]["containers"][0]["image"] = json!("shop:somebody-elses");
            }
            Self::Pair => object["spec"]["replicas"] = json!(7),
            Self::Route => object["spec"]["rules"][1]["backendRefs"][0]["weight"] = json!(7),
        }
        cluster.put(&object);
    }

    fn plan(self, bake: Duration) -> Plan {
        match self {
            Self::Workload => Plan::all_at_once(bake),
            Self::Partition | Self::Pair | Self::Route => Plan::canary([50, 100], bake),
        }
        .unwrap()
    }

    /// What is asked of the API server in a minute while so many bake, after this has happened.
    async fn asked_in_a_minute(self, count: usize, happens: impl Fn(&Cluster)) -> Vec<String> {
        let cluster = Cluster::new();
        let watches = Watches::new(&cluster.client());
        let engine = Engine::new(Memory::new()).unwrap();
        let mut handles = Vec::new();
        for number in 0..count {
            let name = format!("web-{number}");
            let (backend, candidate) = self.deploy(&cluster, &watches, &name).await;
            tokio::time::sleep(Duration::from_secs(2)).await;
            let target = Target::new(&name, backend).unwrap();
            engine.register(target.look_every(Duration::from_millis(500), Duration::from_secs(1))).unwrap();
            let new = NewRollout::new(&name, candidate, self.plan(Duration::from_secs(600))).unwrap();
            handles.push(engine.start(new).await.unwrap());
        }
        for handle in &mut handles {
            while !matches!(handle.status().state, State::Baking { .. }) {
                handle.changed().await.expect("it bakes before it ends");
            }
        }
        tokio::time::sleep(Duration::from_secs(5)).await;
        happens(&cluster);
        let before = cluster.requests().len();
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert!(handles.iter().all(|handle| matches!(handle.status().state, State::Baking { .. })));
        cluster.requests().split_off(before)
    }
}

#[tokio::test(start_paused = true)]
async fn the_number_of_steady_requests_does_not_grow_with_the_number_of_rollouts() {
    for what in ALL {
        let (one, many) = (what.asked_in_a_minute(1, |_| ()).await, what.asked_in_a_minute(20, |_| ()).await);
        let steady = |asked: &[String]| asked.iter().filter(|line| !line.contains("watch=true")).count();
        assert_eq!((steady(&one), steady(&many)), (0, 0), "{what:?}: {one:?}, {many:?}");
        // A watch of 10 s, begun again and again.
        assert!(one.len() <= 7 && many.len() <= 7, "{what:?}: {one:?}, {many:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_busy_server_that_turns_watches_away_is_asked_for_no_lists_and_as_seldom_as_it_says() {
    let busy = |cluster: &Cluster| cluster.fault("watch=true", usize::MAX, Fault::Refuse(429, 7));
    let asked = Watched::Workload.asked_in_a_minute(1, busy).await;
    let (watches, rest): (Vec<&String>, Vec<_>) = asked.iter().partition(|line| line.contains("watch=true"));
    assert!((4..=9).contains(&watches.len()), "every 7 s: {asked:?}");
    let lists = rest.iter().filter(|line| line.contains("/deployments?")).count();
    assert_eq!(lists, 0, "{asked:?}");

    // One that breaks a single watch off is asked to go on from there.
    let away = |cluster: &Cluster| cluster.fault("watch=true", 1, Fault::LoseRequest);
    let asked = Watched::Workload.asked_in_a_minute(1, away).await;
    assert!(asked.iter().all(|line| line.contains("watch=true")), "{asked:?}");
}

#[tokio::test(start_paused = true)]
async fn what_somebody_else_changes_wakes_a_rollout_at_once() {
    for what in ALL {
        let cluster = Cluster::new();
        let (backend, candidate) = what.deploy(&cluster, &Watches::new(&cluster.client()), "web").await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        let engine = Engine::new(Memory::new()).unwrap();
        let seldom = Duration::from_secs(120);
        engine.register(Target::new("web", backend).unwrap().look_every(seldom, seldom)).unwrap();
        let new = NewRollout::new("web", candidate, what.plan(Duration::from_secs(600))).unwrap();
        let mut handle = engine.start(new).await.unwrap();
        while !matches!(handle.status().state, State::Baking { .. }) {
            handle.changed().await.expect("it bakes before it ends");
        }
        // It has looked once, by watch, and is not about to look again.
        tokio::time::sleep(Duration::from_secs(130)).await;
        what.edit(&cluster, "web");
        let outcome = tokio::time::timeout(Duration::from_secs(5), handle.finished()).await;
        let outcome = outcome.unwrap_or_else(|_| panic!("{what:?}: nobody woke it"));
        assert!(matches!(outcome.rollout.state, State::Abandoned { .. }), "{what:?}: {outcome}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_one_version_of_the_api_server_writes_as_null_and_another_leaves_out_is_no_drift() {
    for watched in [true, false] {
        let cluster = Cluster::new();
        let says_null = |says: bool| {
            let mut web = cluster.get("deployments", "web").unwrap();
            let metadata = web["spec"]["template"]["metadata"].as_object_mut().unwrap();
            metadata.remove("creationTimestamp");
            if says {
                metadata.insert("creationTimestamp".into(), json!(null));
            }
            cluster.put(&web);
        };
        cluster.put(&deployment("web", "shop:1"));
        says_null(true);
        let mut web = Workload::deployment(&cluster.client(), "default", "web").unwrap();
        if watched {
            web = web.watched_by(&Watches::new(&cluster.client()));
        }
        let candidate = web.images([("web", "shop:2")]).await.unwrap();
        says_null(false);
        tokio::time::sleep(Duration::from_secs(2)).await;
        let engine = Engine::new(Memory::new()).unwrap();
        engine.register(Target::new("web", web).unwrap()).unwrap();
        let new = NewRollout::new("web", candidate, Plan::all_at_once(Duration::from_secs(60)).unwrap()).unwrap();
        let mut handle = engine.start(new).await.unwrap();
        while !matches!(handle.status().state, State::Baking { .. }) {
            handle.changed().await.expect("it bakes before it ends");
        }
        for says in [true, false] {
            says_null(says);
            tokio::time::sleep(Duration::from_secs(20)).await;
            assert!(matches!(handle.status().state, State::Baking { .. }), "{:?}", handle.status().state);
        }
        let outcome = handle.finished().await;
        assert_eq!(outcome.rollout.state, State::Promoted, "{outcome}");
    }
}

#[tokio::test(start_paused = true)]
async fn where_watching_is_not_allowed_each_look_is_a_request_and_preflight_says_so() {
    for what in ALL {
        for unhealthy_from in [None, Some(100)] {
            let cluster = Cluster::new();
            cluster.deny("watch", what.plural());
            cluster.deny("list", what.plural());
            let (backend, candidate) = what.deploy(&cluster, &Watches::new(&cluster.client()), "web").await;
            tokio::time::sleep(Duration::from_secs(2)).await;
            let plan = what.plan(Duration::from_secs(1));
            let outcome = trial::roll_out(backend, candidate, plan, unhealthy_from).await;
            match unhealthy_from {
                None => assert_eq!(outcome.rollout.state, State::Promoted, "{what:?}: {outcome}"),
                Some(_) => assert!(matches!(outcome.rollout.state, State::RolledBack { .. }), "{what:?}: {outcome}"),
            }
            let said = format!("may not list, watch {}", what.plural());
            let not_provable = &outcome.rollout.readiness.not_provable;
            assert!(not_provable.iter().any(|note| note.as_str().starts_with(&said)), "{what:?}: {not_provable:?}");
        }
    }
}

/// By a proxy that ends what is silent: a rollout ends as it would without watches.
#[tokio::test(start_paused = true)]
async fn where_each_watch_is_cut_rollouts_end_as_they_should() {
    for what in ALL {
        for (after, unhealthy_from) in [(0, None), (0, Some(100)), (8, None), (8, Some(100))] {
            let cluster = Cluster::new();
            let (backend, candidate) = what.deploy(&cluster, &Watches::new(&cluster.client()), "web").await;
            tokio::time::sleep(Duration::from_secs(2)).await;
            // Longer than what was heard counts as known, on the way there and on the way back.
            cluster.pods_take(Duration::from_secs(45));
            cluster.fault("watch=true", usize::MAX, Fault::Cut(Duration::from_secs(after)));
            let plan = what.plan(Duration::from_secs(45));
            let ended = trial::roll_out(backend, candidate, plan, unhealthy_from);
            let ended = tokio::time::timeout(Duration::from_secs(3600), ended).await;
            let outcome = ended.unwrap_or_else(|_| panic!("{what:?}, cut after {after} s: it is stuck"));
            let is_right = match unhealthy_from {
                None => outcome.rollout.state == State::Promoted,
                Some(_) => matches!(outcome.rollout.state, State::RolledBack { .. }),
            };
            assert!(is_right, "{what:?}, cut after {after} s: {outcome}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_look_waits_no_longer_for_a_watch_than_for_a_request() {
    for what in ALL {
        let cluster = Cluster::new();
        let (backend, candidate) = what.deploy(&cluster, &Watches::new(&cluster.client()), "web").await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        let target = TargetId::try_from("web").unwrap();
        let rollout = RolloutId::fresh(&target);
        let change = Change { rollout, target, baseline: backend.baseline().await.unwrap(), candidate };
        let goal = Goal::Baseline;
        let version = backend.observe(&change, goal, None).await.unwrap().version;
        let nonce = Nonce::new(&change.rollout, Serial(1), goal);
        let attempt = Attempt { nonce, goal, version, at: "2026-01-01T00:00:00Z".parse().unwrap() };
        // What a watch begins with.
        cluster.fault(&format!("/{}?", what.plural()), usize::MAX, Fault::Hang);
        let begun = Instant::now();
        backend.observe(&change, goal, Some(&attempt)).await.unwrap();
        assert!(begun.elapsed() < Duration::from_millis(1100), "{what:?}: {:?}", begun.elapsed());
        let listed = |line: &String| line.contains(&format!("/{}?", what.plural()));
        assert!(cluster.requests().iter().any(listed), "{what:?}: nothing is watched");
    }
}
