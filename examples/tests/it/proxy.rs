use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use jiff::Timestamp;
use rollback_core::{
    ErrorKind,
    backend::DeploymentBackend,
    gate::{HealthGate, Verdict, Window},
    model::{Attempt, Change, Goal, Nonce, Observed, Progress, Revision, RolloutId, Serial, TargetId, Weight},
    testing::backend::{self, Bench, Outcome},
};
use rollback_examples::{
    admin::{Admin, Instance, Split},
    gates::{ErrorRate, Probe},
    http,
    proxy::{Proxy, revision},
    router::Router,
    service::{Build, RELEASE},
};

/// A router of its own for one test, and the change from v1 to this build.
struct Scene {
    router: Router,
    proxy: Proxy,
    change: Change,
    file: PathBuf,
    serial: u64,
}

impl Scene {
    async fn set(name: &str, candidate: Build) -> Self {
        let file = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.json"));
        let _ = std::fs::remove_file(&file);
        let router = start(&file).await;
        let target = TargetId::try_from("shop").unwrap();
        let change = Change {
            rollout: RolloutId::fresh(&target),
            target,
            baseline: revision(&Build::good("v1")).unwrap(),
            candidate: revision(&candidate).unwrap(),
        };
        let scene = Self { proxy: Proxy::new(Admin::new(router.admin)), router, change, file, serial: 1 };
        scene.until(|seen| matches!(seen, Some(Instance::Up(_))), "v1").await;
        scene
    }

    /// Somebody puts this in place, whatever was there.
    async fn put(&self, split: Split) {
        let version = self.admin().look().await.unwrap().version;
        self.admin().put(&split, &version.to_string()).await.unwrap();
    }

    fn admin(&self) -> Admin {
        Admin::new(self.router.admin)
    }

    async fn until(&self, is: fn(Option<&Instance>) -> bool, release: &str) {
        while !is(self.admin().look().await.unwrap().instances.get(release)) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn look(&self, goal: Goal) -> Observed {
        self.proxy.observe(&self.change, goal, None).await.unwrap()
    }

    fn attempt(&mut self, goal: Goal, look: &Observed) -> Attempt {
        self.serial += 1;
        let nonce = Nonce::new(&self.change.rollout, Serial(self.serial), goal);
        Attempt { nonce, goal, version: look.version.clone(), at: Timestamp::UNIX_EPOCH }
    }

    /// Does what is due until the goal is reached; the effects, in order.
    async fn reach(&mut self, goal: Goal) -> Vec<String> {
        let mut effects = Vec::new();
        loop {
            let look = self.look(goal).await;
            match &look.progress {
                Progress::Reached => return effects,
                Progress::Underway(_) => tokio::time::sleep(Duration::from_millis(5)).await,
                Progress::Due(effect) => {
                    effects.push(effect.to_string());
                    let attempt = self.attempt(goal, &look);
                    self.proxy.shift(&self.change, goal, &attempt).await.unwrap();
                    let after = self.proxy.observe(&self.change, goal, Some(&attempt)).await.unwrap();
                    assert!(after.landed, "the attempt's nonce is on the target");
                }
                other => panic!("{other:?}"),
            }
        }
    }

    /// Who answers a hundred users, as (v2, failed).
    async fn hundred(&self) -> (usize, usize) {
        let (mut new, mut failed) = (0, 0);
        for _ in 0..100 {
            let answer = http::get(self.router.users, "/").await.unwrap();
            new += usize::from(answer.headers().get(RELEASE).is_some_and(|release| release == "v2"));
            failed += usize::from(answer.status().is_server_error());
        }
        (new, failed)
    }

    fn window(&self) -> Window {
        Window {
            rollout: self.change.rollout.clone(),
            target: self.change.target.clone(),
            baseline: self.change.baseline.id.clone(),
            candidate: self.change.candidate.id.clone(),
            step: 0,
            weight: Weight::try_from(50).unwrap(),
            created: Timestamp::UNIX_EPOCH,
            since: Timestamp::UNIX_EPOCH,
            now: Timestamp::UNIX_EPOCH,
            last: None,
        }
    }
}

async fn start(file: &Path) -> Router {
    let program = PathBuf::from(env!("CARGO_BIN_EXE_quickstart"));
    Router::start(program, file.to_owned(), Split::alone(Build::good("v1"))).await.unwrap()
}

fn split(percent: u8) -> Goal {
    Goal::Split(Weight::try_from(percent).unwrap())
}

/// What the conformance suite needs to know of a platform.
#[async_trait]
impl Bench for Scene {
    async fn reset(&self) {
        self.put(Split::alone(Build::good("v1"))).await;
        self.until(|seen| matches!(seen, Some(Instance::Up(_))), "v1").await;
    }

    async fn connect(&self) -> Arc<dyn DeploymentBackend> {
        Arc::new(Proxy::new(self.admin()))
    }

    fn candidate(&self) -> Revision {
        self.change.candidate.clone()
    }

    async fn settle(&self) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }

    async fn drift(&self) -> bool {
        self.put(Split::alone(Build::good("v0"))).await;
        true
    }

    fn secret(&self) -> Option<String> {
        Some("failing".into())
    }
}

#[tokio::test]
async fn the_backend_keeps_every_promise() {
    let scene = Scene::set("promises", Build::good("v2")).await;
    let weights_are_free = "an_inexpressible_weight_is_unsupported";
    for (promise, outcome) in backend::all(&scene).await {
        let skipped = matches!(outcome, Outcome::Skipped(_));
        assert_eq!(skipped, promise == weights_are_free, "{promise}: {outcome:?}");
    }
}

#[tokio::test]
async fn the_way_there_starts_weighs_and_clears_and_the_way_back_moves_traffic_first() {
    let mut scene = Scene::set("way", Build::good("v2")).await;
    assert_eq!(scene.reach(split(25)).await, ["start v2", "give v2 25 % of the traffic"]);
    assert_eq!(scene.hundred().await, (25, 0));
    assert_eq!(scene.reach(Goal::Baseline).await, ["give v2 0 % of the traffic", "leave v1 alone"]);
    assert_eq!(scene.hundred().await, (0, 0));
    assert_eq!(scene.reach(Goal::Candidate).await, ["start v2", "give v2 100 % of the traffic", "leave v2 alone"]);
    assert_eq!(scene.hundred().await, (100, 0));
    assert_eq!(
        scene.reach(Goal::Baseline).await,
        ["start v1", "give v2 0 % of the traffic", "leave v1 alone"],
        "a promoted candidate can be taken back too"
    );
    assert_eq!(scene.hundred().await, (0, 0));
}

#[tokio::test]
async fn a_late_call_changes_nothing() {
    let mut scene = Scene::set("late", Build::good("v2")).await;
    scene.reach(split(10)).await;
    let look = scene.look(split(50)).await;
    let late = scene.attempt(split(50), &look);
    scene.reach(Goal::Baseline).await;
    let refused = scene.proxy.shift(&scene.change, split(50), &late).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Conflict, "{}", refused.chain());
    assert_eq!(scene.look(Goal::Baseline).await.progress, Progress::Reached);
}

#[tokio::test]
async fn what_users_have_in_front_of_them_survives_the_router() {
    let mut scene = Scene::set("survives", Build::good("v2")).await;
    scene.reach(split(40)).await;
    let before = scene.look(split(40)).await;
    scene.router = start(&scene.file).await;
    scene.proxy = Proxy::new(scene.admin());
    assert_eq!(scene.reach(split(40)).await, [""; 0]);
    assert_eq!(scene.look(split(40)).await, before);
    assert_eq!(scene.hundred().await, (40, 0));
}

#[tokio::test]
async fn a_release_that_is_let_go_of_finishes_what_it_has_begun() {
    let mut scene = Scene::set("drain", Build { slow: 100, ..Build::good("v2") }).await;
    scene.reach(Goal::Candidate).await;
    let users = scene.router.users;
    let (back, mut is_back) = tokio::sync::oneshot::channel::<()>();
    let crowd = tokio::spawn(async move {
        let mut asking = Vec::new();
        while is_back.try_recv().is_err() {
            asking.push(tokio::spawn(http::get(users, "/")));
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        asking
    });
    while !scene.admin().counts().await.unwrap().contains_key("v2") {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // The first slow answer has come: there are always some under way by now, and so when the traffic turns back.
    scene.reach(Goal::Baseline).await;
    back.send(()).unwrap();
    for answer in crowd.await.unwrap() {
        let answer = answer.await.unwrap().unwrap();
        assert!(answer.status().is_success(), "{answer:?}");
    }
}

#[tokio::test]
async fn a_candidate_that_does_not_start_fails_forward_and_holds_up_no_way_back() {
    let mut scene = Scene::set("broken", Build { failing: 200, ..Build::good("v2") }).await;
    let look = scene.look(split(10)).await;
    let attempt = scene.attempt(split(10), &look);
    scene.proxy.shift(&scene.change, split(10), &attempt).await.unwrap();
    scene.until(|seen| matches!(seen, Some(Instance::Down(_))), "v2").await;
    assert!(matches!(scene.look(split(10)).await.progress, Progress::Failed(_)));
    assert_eq!(scene.reach(Goal::Baseline).await, ["leave v1 alone"]);
}

#[tokio::test]
async fn the_error_rate_sees_what_users_see_and_the_probe_is_lied_to() {
    let mut scene = Scene::set("gates", Build::bad("v2")).await;
    scene.reach(split(50)).await;
    let gate = ErrorRate::new(scene.admin(), 0.05, 20);
    let mut window = scene.window();
    let first = gate.judge(&window).await.unwrap();
    assert!(matches!(first, Verdict::Inconclusive(_)), "no request yet: {first:?}");
    window.last = Some(first.evidence().clone());
    let (new, failed) = scene.hundred().await;
    assert_eq!(new, 50);
    assert!(failed > 5, "{failed} of 50 failed");
    let second = gate.judge(&window).await.unwrap();
    assert!(matches!(second, Verdict::Unhealthy(_)), "{second:?}");
    assert_eq!(second.evidence().facts["failed"], failed);
    window.last = Some(second.evidence().clone());
    window.step = 1;
    let third = gate.judge(&window).await.unwrap();
    assert_eq!(third.evidence().facts["requests"], 0, "another step, another count");
    let probe = Probe::new(scene.admin()).judge(&window).await.unwrap();
    assert!(matches!(&probe, Verdict::Healthy(e) if e.summary.ends_with("200 as v2")), "{probe:?}");
}

#[tokio::test]
async fn the_router_tells_prometheus_what_users_got_and_a_scrape_is_no_reason_to_stay() {
    let mut scene = Scene::set("scraped", Build { failing: 20, ..Build::good("v2") }).await;
    scene.reach(split(0)).await;
    let scrape = async || {
        let answer = http::get(scene.router.admin, "/metrics").await.unwrap();
        String::from_utf8(answer.body().to_vec()).unwrap()
    };
    let text = scrape().await;
    assert!(text.contains("shop_requests_total{release=\"v2\",outcome=\"failed\"} 0\n"), "from zero: {text}");
    scene.hundred().await;
    let text = scrape().await;
    assert!(text.contains("shop_requests_total{release=\"v1\",outcome=\"ok\"} 100\n"), "{text}");
    let scraping = async {
        loop {
            scrape().await;
        }
    };
    tokio::select! {
        () = scene.router.ended(Duration::from_millis(200)) => {}
        () = scraping => {}
        () = tokio::time::sleep(Duration::from_secs(30)) => panic!("it stays for a Prometheus"),
    }
}
