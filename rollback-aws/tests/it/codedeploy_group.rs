//! A deployment group as a backend: the conformance suite, the sweeps, and what is special about it.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use rollback_aws::{
    codedeploy::{Artefact, Busy, Group, Platform, Poller},
    testing::{
        Simulator,
        codedeploy::{Shape, Snapshot},
        fault::{Fault, Trouble},
    },
};
use rollback_core::{
    ErrorKind,
    backend::DeploymentBackend,
    clock::Clock as _,
    engine::{Engine, NewRollout, Outcome as Ended, Target},
    gate::Policy,
    model::{Goal, Progress, Revision, Serves, Weight},
    plan::Plan,
    state::{Cause, State},
    store::Memory,
    testing::{
        backend::{self, Bench, Driver, Outcome},
        gates::{Answer, Scripted},
        sweep::{Scenario, Sweep},
    },
};
use serde_json::{Value, json};

/// The secret access key of the simulator's credentials.
const SECRET: &str = "simulated-secret-access-key";
pub(crate) const APP: &str = "shop";
pub(crate) const GROUP: &str = "production";

/// A group `production` of the application `shop`, on which the first revision serves.
pub(crate) struct Shop {
    pub(crate) aws: Simulator,
    pub(crate) platform: Platform,
    waits: bool,
    pristine: Snapshot,
}

/// A revision as the API takes it: the n-th.
pub(crate) fn location(platform: Platform, n: u32) -> Value {
    match platform {
        Platform::InPlace | Platform::BlueGreen => json!({ "revisionType": "S3",
            "s3Location": { "bucket": "builds", "key": format!("shop/{n}.zip"), "bundleType": "zip", "version": format!("v{n}") } }),
        _ => json!({ "revisionType": "AppSpecContent", "appSpecContent": { "content": app_spec(platform, n) } }),
    }
}

fn app_spec(platform: Platform, n: u32) -> String {
    match platform {
        Platform::Ecs => json!({ "version": 0.0, "Resources": [{ "TargetService": { "Type": "AWS::ECS::Service", "Properties": {
            "TaskDefinition": format!("arn:aws:ecs:us-east-1:123456789012:task-definition/shop:{n}"),
            "LoadBalancerInfo": { "ContainerName": "shop", "ContainerPort": 80 } } } }] }),
        _ => json!({ "version": 0.0, "Resources": [{ "shop": { "Type": "AWS::Lambda::Function", "Properties": {
            "Name": "shop", "Alias": "live", "CurrentVersion": (n - 1).to_string(), "TargetVersion": n.to_string() } } }] }),
    }
    .to_string()
}

pub(crate) fn artefact(platform: Platform, n: u32) -> Artefact {
    match platform {
        Platform::InPlace | Platform::BlueGreen => {
            Artefact::s3("builds", format!("shop/{n}.zip")).version(format!("v{n}"))
        }
        _ => Artefact::app_spec(app_spec(platform, n)),
    }
}

impl Shop {
    pub(crate) fn new(platform: Platform) -> Self {
        let aws = Simulator::new();
        let three = || ["i-1", "i-2", "i-3"].map(str::to_owned).to_vec();
        let (shape, config) = match platform {
            Platform::InPlace => (Shape::InPlace(three()), "CodeDeployDefault.OneAtATime"),
            Platform::BlueGreen => (Shape::BlueGreen(three()), "CodeDeployDefault.AllAtOnce"),
            Platform::Ecs => (Shape::Ecs("prod:shop".into()), "CodeDeployDefault.ECSAllAtOnce"),
            Platform::Lambda => (Shape::Lambda, "CodeDeployDefault.LambdaAllAtOnce"),
        };
        let hands = aws.codedeploy();
        hands.group(APP, GROUP, &shape, config);
        if matches!(platform, Platform::Ecs | Platform::BlueGreen) {
            hands.set(APP, GROUP, "blueGreenDeploymentConfiguration", blue_green(None));
        }
        hands.serve(APP, GROUP, &location(platform, 1));
        let pristine = hands.snapshot();
        Self { aws, platform, waits: false, pristine }
    }

    /// The same, waiting for somebody before the traffic.
    pub(crate) fn waiting(platform: Platform) -> Self {
        let shop = Self::new(platform);
        shop.aws.codedeploy().set(APP, GROUP, "blueGreenDeploymentConfiguration", blue_green(Some(600)));
        Self { waits: true, ..shop }.keep()
    }

    /// The same, with what was done to it since as what it is put back to.
    pub(crate) fn keep(self) -> Self {
        let pristine = self.aws.codedeploy().snapshot();
        Self { pristine, ..self }
    }

    /// With another configuration.
    pub(crate) fn config(self, name: &str) -> Self {
        self.aws.codedeploy().set(APP, GROUP, "deploymentConfigName", json!(name));
        self.keep()
    }

    /// With an alarm that stops deployments.
    pub(crate) fn alarm(self) -> Self {
        self.aws.cloudwatch().alarm("shop-errors");
        let alarms = json!({ "enabled": true, "ignorePollAlarmFailure": false, "alarms": [{ "name": "shop-errors" }] });
        self.aws.codedeploy().set(APP, GROUP, "alarmConfiguration", alarms);
        self.keep()
    }

    pub(crate) fn group(&self) -> Group {
        let group = Group::new(&Poller::new(&self.aws.account()), APP, GROUP, self.platform).expect("good names");
        let group = group.alarms(&rollback_aws::cloudwatch::Alarms::new(&self.aws.account()));
        if self.waits { group.waits_for_approval() } else { group }
    }

    pub(crate) fn deployments(&self) -> Vec<Value> {
        let hands = self.aws.codedeploy();
        hands.deployments(APP, GROUP).iter().map(|id| hands.deployment(id)).collect()
    }

    /// What all targets serve, once.
    pub(crate) fn serves(&self) -> Vec<(String, f64)> {
        let mut all: Vec<_> = self.aws.codedeploy().serves(APP, GROUP).into_values().flatten().collect();
        all.dedup();
        all
    }

    /// What the n-th revision may be known by: from whatever version an alias was moved.
    fn keys(&self, n: u32) -> Vec<String> {
        use sha2::Digest as _;
        let hash =
            |text: String| sha2::Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        match self.platform {
            Platform::InPlace | Platform::BlueGreen => vec![format!("builds|shop/{n}.zip|v{n}|")],
            Platform::Ecs => vec![hash(app_spec(self.platform, n))],
            Platform::Lambda => {
                let mut spec: Value = serde_json::from_str(&app_spec(self.platform, n)).unwrap();
                let from = |current: u32| {
                    spec["Resources"][0]["shop"]["Properties"]["CurrentVersion"] = json!(current.to_string());
                    hash(spec.to_string())
                };
                (0..5).map(from).collect()
            }
        }
    }

    pub(crate) fn assert_serves(&self, n: u32) {
        let serves = self.serves();
        let good = matches!(&serves[..], [(key, 100.0)] if self.keys(n).contains(key));
        assert!(good, "{serves:?} is not revision {n}: {:#?}", self.deployments());
    }

    /// One whole rollout by the engine.
    async fn roll_out(&self, plan: Plan, gate: Scripted) -> Ended {
        let (engine, new) = self.engine(plan, gate);
        let outcome = engine.start(new).await.unwrap().finished().await;
        engine.shutdown(Duration::from_secs(60)).await;
        outcome
    }

    pub(crate) fn engine(&self, plan: Plan, gate: Scripted) -> (Engine, NewRollout) {
        let engine = Engine::builder(Memory::new()).clock(self.aws.clock().clone()).build().unwrap();
        engine.register(Target::new("shop", self.group()).unwrap().gate(gate, Policy::default())).unwrap();
        let new = NewRollout::new("shop", self.candidate(), plan).unwrap().by("ana").unwrap();
        (engine, new)
    }
}

fn blue_green(ready_minutes: Option<u64>) -> Value {
    let ready = match ready_minutes {
        Some(minutes) => json!({ "actionOnTimeout": "STOP_DEPLOYMENT", "waitTimeInMinutes": minutes }),
        None => json!({ "actionOnTimeout": "CONTINUE_DEPLOYMENT", "waitTimeInMinutes": 0 }),
    };
    json!({ "deploymentReadyOption": ready,
        "terminateBlueInstancesOnDeploymentSuccess": { "action": "TERMINATE", "terminationWaitTimeInMinutes": 60 } })
}

#[async_trait]
impl Bench for Shop {
    async fn reset(&self) {
        self.aws.forget_faults();
        self.aws.codedeploy().restore(&self.pristine);
        // What a backend value has read is good for an interval, and no real group is put back under it.
        tokio::time::sleep(Duration::from_secs(20)).await;
    }

    async fn connect(&self) -> Arc<dyn DeploymentBackend> {
        Arc::new(self.group())
    }

    fn candidate(&self) -> Revision {
        artefact(self.platform, 2).revision().expect("a good id")
    }

    async fn settle(&self) {
        tokio::time::sleep(Duration::from_secs(2)).await;
    }

    async fn drift(&self) -> bool {
        let hands = self.aws.codedeploy();
        if let Some(last) = hands.deployments(APP, GROUP).last() {
            hands.stop(last, false);
        }
        hands.deploy(APP, GROUP, &location(self.platform, 3));
        true
    }

    fn secret(&self) -> Option<String> {
        Some(SECRET.into())
    }
}

fn skipped(outcomes: Vec<(&'static str, Outcome)>) -> Vec<&'static str> {
    outcomes.into_iter().filter(|(_, outcome)| *outcome != Outcome::Kept).map(|(name, _)| name).collect()
}

/// What is asked of platforms that check versions.
const UNCHECKED: [&str; 4] = [
    "an_accepted_shift_spends_its_version",
    "a_stale_version_moves_nothing",
    "of_two_drivers_one_is_refused",
    "a_call_from_before_a_rollback_is_refused_after_it",
];

#[tokio::test(start_paused = true)]
async fn every_promise_of_a_backend_is_kept_in_place() {
    let found = skipped(backend::all(&Shop::new(Platform::InPlace)).await);
    let mut wanted = vec!["the_first_effect_back_returns_the_traffic"];
    wanted.extend(UNCHECKED);
    assert_eq!(found, wanted);
}

#[tokio::test(start_paused = true)]
async fn every_promise_of_a_backend_is_kept_on_blue_green_instances() {
    assert_eq!(skipped(backend::all(&Shop::new(Platform::BlueGreen)).await), UNCHECKED);
}

#[tokio::test(start_paused = true)]
async fn every_promise_of_a_backend_is_kept_on_ecs() {
    assert_eq!(skipped(backend::all(&Shop::new(Platform::Ecs)).await), UNCHECKED);
}

#[tokio::test(start_paused = true)]
async fn every_promise_of_a_backend_is_kept_on_lambda() {
    assert_eq!(skipped(backend::all(&Shop::new(Platform::Lambda)).await), UNCHECKED);
}

#[tokio::test(start_paused = true)]
async fn every_promise_of_a_backend_is_kept_where_the_deployment_waits_before_the_traffic() {
    for platform in [Platform::Ecs, Platform::BlueGreen] {
        assert_eq!(skipped(backend::all(&Shop::waiting(platform)).await), UNCHECKED);
    }
}

macro_rules! sweeps {
    ($($name:ident: $kind:ident;)*) => {$(
        #[tokio::test(start_paused = true)]
        async fn $name() {
            let shop = Shop::new(Platform::Lambda);
            eprintln!("{}: {}", stringify!($kind), Sweep::of(&shop).$kind().await);
        }
    )*};
}

sweeps! {
    a_crash_at_any_side_effect_is_got_over: crashes;
    a_failure_of_any_side_effect_is_got_over: failures;
    a_lost_answer_to_any_side_effect_is_got_over: lost_answers;
    a_call_that_lands_late_is_got_over: late;
    a_repeated_side_effect_is_got_over: repeats;
    a_store_that_goes_away_at_any_side_effect_is_got_over: store_away;
    a_driver_that_is_taken_over_at_any_side_effect_is_got_over: takeovers;
}

/// The other platforms differ in what a deployment goes through, not in what is asked of it.
async fn sweep_ends(shop: Shop) {
    let mut scenarios = Scenario::ready_made(&shop).await;
    scenarios.retain(|it| ["bad all at once", "blue/green"].contains(&it.name()));
    assert!(!scenarios.is_empty());
    let sweep = Sweep::of(&shop).scenarios(scenarios);
    let mut summary = sweep.crashes().await;
    summary += sweep.lost_answers().await;
    eprintln!("{:?}: {summary}", shop.platform);
}

#[tokio::test(start_paused = true)]
async fn crashes_and_lost_answers_are_got_over_in_place() {
    sweep_ends(Shop::new(Platform::InPlace)).await;
}

#[tokio::test(start_paused = true)]
async fn crashes_and_lost_answers_are_got_over_on_blue_green_instances() {
    sweep_ends(Shop::new(Platform::BlueGreen)).await;
}

#[tokio::test(start_paused = true)]
async fn crashes_and_lost_answers_are_got_over_on_ecs_with_a_wait_before_the_traffic() {
    sweep_ends(Shop::waiting(Platform::Ecs)).await;
}

fn minutes(n: u64) -> Duration {
    Duration::from_secs(60 * n)
}

pub(crate) fn all_at_once() -> Plan {
    Plan::all_at_once(minutes(5)).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_good_candidate_is_promoted_and_its_termination_wait_is_the_bake() {
    for platform in [Platform::InPlace, Platform::BlueGreen, Platform::Ecs, Platform::Lambda] {
        let shop = Shop::new(platform);
        let ended = shop.roll_out(all_at_once(), Scripted::healthy("errors")).await;
        assert_eq!(ended.rollout.state, State::Promoted, "{platform:?}: {}", ended.rollout);
        shop.assert_serves(2);
        assert_eq!(shop.deployments().len(), 2, "one deployment, and no other");
    }
}

#[tokio::test(start_paused = true)]
async fn a_bad_candidate_is_stopped_while_its_old_side_stands_and_the_new_id_is_followed() {
    for platform in [Platform::BlueGreen, Platform::Ecs] {
        let shop = Shop::new(platform);
        let ended = shop.roll_out(all_at_once(), Scripted::unhealthy_from("errors", Weight::ALL)).await;
        assert!(
            matches!(ended.rollout.state, State::RolledBack { cause: Cause::Unhealthy { .. } }),
            "{}",
            ended.rollout
        );
        let all = shop.deployments();
        let told: Vec<_> = all.iter().map(|it| (&it["status"], &it["creator"])).collect();
        assert_eq!(all.len(), 3, "{all:#?}");
        assert_eq!(told[1], (&json!("Stopped"), &json!("user")));
        assert_eq!(told[2], (&json!("Succeeded"), &json!("codeDeployRollback")));
        shop.assert_serves(1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_bad_candidate_that_is_deployed_already_is_replaced_without_the_groups_alarms() {
    for platform in [Platform::InPlace, Platform::Lambda] {
        // The alarm fires because of the candidate, and would stop the baseline too, and bring the candidate back.
        let shop = Shop::new(platform).alarm();
        let (engine, new) = shop.engine(all_at_once(), Scripted::unhealthy_from("errors", Weight::ALL));
        let run = engine.start(new).await.unwrap();
        while shop.deployments().last().unwrap()["status"] != "Succeeded" || shop.deployments().len() < 2 {
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        shop.aws.alarm_at("shop-errors", shop.aws.clock().now());
        let ended = run.finished().await;
        assert!(matches!(ended.rollout.state, State::RolledBack { .. }), "{}", ended.rollout);
        let back = shop.deployments().pop().unwrap();
        assert_eq!(back["overrideAlarmConfiguration"]["enabled"], false, "{back:#}");
        assert_eq!(back["autoRollbackConfiguration"]["enabled"], false);
        assert_eq!((&back["status"], &back["creator"]), (&json!("Succeeded"), &json!("user")));
        shop.assert_serves(1);
        if platform == Platform::InPlace {
            assert_eq!(back["ignoreApplicationStopFailures"], true);
        }
    }
}

/// CodeDeploy's own alarm fires this long after the start, and our gate sees the same trouble; `gap` is how many seconds
/// later the gate trips, negative if sooner.
async fn race(shop: Shop, alarm_after: Duration, gap: i64) {
    let at = shop.aws.clock().now() + alarm_after;
    shop.aws.alarm_at("shop-errors", at);
    let gate = Scripted::healthy("errors");
    let (engine, new) = shop.engine(Plan::all_at_once(minutes(30)).unwrap(), gate.clone());
    let run = engine.start(new).await.unwrap();
    let trip = at.checked_add(jiff::SignedDuration::from_secs(gap)).unwrap();
    while shop.aws.clock().now() < trip {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    gate.set(Answer::Unhealthy);
    gate.wake();
    let ended = run.finished().await;
    let State::RolledBack { cause } = &ended.rollout.state else { panic!("{gap} s: {}", ended.rollout) };
    if gap < -1 {
        assert!(matches!(cause, Cause::Unhealthy { .. }), "{gap} s: {}", ended.rollout);
    }
    let all = shop.deployments();
    let rollbacks = all.iter().filter(|it| it["creator"] == "codeDeployRollback").count();
    assert_eq!((all.len(), rollbacks), (3, 1), "{gap} s: one rollback, by whomever: {all:#?}");
    shop.assert_serves(1);
    engine.shutdown(Duration::from_secs(60)).await;
}

#[tokio::test(start_paused = true)]
async fn codedeploys_own_alarm_rollback_and_our_gate_at_once_end_once_in_either_order() {
    for gap in [-20, -5, -1, 0, 1, 4, 10, 16, 30] {
        let lambda = Shop::new(Platform::Lambda).config("CodeDeployDefault.LambdaLinear10PercentEvery1Minute");
        race(lambda.alarm(), minutes(2), gap).await;
        let ecs = Shop::new(Platform::Ecs).config("CodeDeployDefault.ECSLinear10PercentEvery1Minutes");
        race(ecs.alarm(), minutes(2), gap).await;
    }
    // Three instances, one after the other, take 24 s.
    for gap in [-8, -5, -1, 0, 1, 4, 10, 30] {
        race(Shop::new(Platform::InPlace).alarm(), Duration::from_secs(10), gap).await;
    }
}

#[tokio::test(start_paused = true)]
async fn codedeploys_own_rollback_is_a_failure_and_is_followed_to_its_end() {
    let shop = Shop::new(Platform::Lambda).config("CodeDeployDefault.LambdaCanary10Percent5Minutes").alarm();
    shop.aws.alarm_at("shop-errors", shop.aws.clock().now() + Duration::from_secs(60));
    let ended = shop.roll_out(all_at_once(), Scripted::healthy("errors")).await;
    let State::RolledBack { cause: Cause::Failed { why } } = &ended.rollout.state else { panic!("{}", ended.rollout) };
    assert!(why.as_str().contains("ALARM_ACTIVE") && why.as_str().contains("<shop-errors>"), "{why}");
    assert_eq!(shop.deployments().len(), 3);
    shop.assert_serves(1);
}

#[tokio::test(start_paused = true)]
async fn succeeded_with_an_instance_left_behind_is_mixed_and_names_it() {
    let shop = Shop::new(Platform::InPlace).config("CodeDeployDefault.AllAtOnce");
    let driver = Driver::new(&shop).await;
    shop.aws.codedeploy().sicken("i-2", true);
    let look = driver.look(Goal::Split(Weight::ALL)).await;
    let mut driver = driver;
    let attempt = driver.save(Goal::Split(Weight::ALL), &look.version);
    driver.send(&attempt).await.unwrap();
    tokio::time::sleep(minutes(2)).await;
    assert_eq!(shop.deployments().pop().unwrap()["status"], "Succeeded");
    let look = driver.look(Goal::Split(Weight::ALL)).await;
    let Progress::Failed(why) = &look.progress else { panic!("{look:?}") };
    assert!(why.as_str().contains("1 of 3 targets: i-2"), "{why}");
    let served: Vec<_> = look.parts.iter().map(|part| (part.name.as_str(), part.serves)).collect();
    assert_eq!(served, [("i-1", Serves::Candidate), ("i-2", Serves::Other), ("i-3", Serves::Candidate)]);
    let e = shop.group().baseline().await.unwrap_err();
    assert_eq!((e.kind(), e.to_string().contains("i-2")), (ErrorKind::Mixed, true), "{e}");
    // The way back is stuck for as long as it is, and goes on when a person has seen to it.
    let (engine, new) = {
        shop.reset().await;
        shop.engine(all_at_once(), Scripted::unhealthy_from("errors", Weight::ALL))
    };
    shop.aws.codedeploy().sicken("i-2", false);
    let run = engine.start(new).await.unwrap();
    while shop.deployments().len() < 2 || shop.deployments()[1]["status"] != "Succeeded" {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    shop.aws.codedeploy().sicken("i-2", true);
    let ended = run.finished().await;
    let State::Stuck { why, .. } = &ended.rollout.state else { panic!("{}", ended.rollout) };
    assert!(why.as_str().contains("i-2"), "{why}");
    engine.shutdown(minutes(1)).await;
}

#[tokio::test(start_paused = true)]
async fn a_deployment_that_nobody_rolled_back_is_awaited_and_then_the_baseline_is_deployed() {
    let shop = Shop::new(Platform::InPlace);
    shop.aws.codedeploy().rolls_back(false);
    let shop = shop.keep();
    let mut driver = Driver::new(&shop).await;
    let look = driver.look(Goal::Split(Weight::ALL)).await;
    let attempt = driver.save(Goal::Split(Weight::ALL), &look.version);
    driver.send(&attempt).await.unwrap();
    tokio::time::sleep(Duration::from_secs(10)).await;
    let look = driver.look(Goal::Baseline).await;
    assert!(matches!(&look.progress, Progress::Due(it) if it.as_str().contains("with rollback")), "{look:?}");
    let attempt = driver.save(Goal::Baseline, &look.version);
    driver.send(&attempt).await.unwrap();
    assert!(matches!(driver.look(Goal::Baseline).await.progress, Progress::Underway(_)), "it is being stopped");
    tokio::time::sleep(Duration::from_secs(20)).await;
    let look = driver.look(Goal::Baseline).await;
    assert!(
        matches!(&look.progress, Progress::Underway(it) if it.as_str().contains("its rollback is awaited")),
        "{look:?}"
    );
    tokio::time::sleep(Duration::from_secs(60)).await;
    let look = driver.look(Goal::Baseline).await;
    assert!(matches!(&look.progress, Progress::Due(it) if it.as_str().contains("nothing rolled it back")), "{look:?}");
    driver.drive(Goal::Baseline).await;
    shop.assert_serves(1);
}

#[tokio::test(start_paused = true)]
async fn an_approval_lets_a_deployment_go_on_to_the_traffic() {
    use rollback_core::plan::{Approval, Step};
    for platform in [Platform::Ecs, Platform::BlueGreen] {
        let shop = Shop::waiting(platform);
        let preview = Step::new(Weight::NONE, minutes(1)).approved_by(Approval::anyone());
        let plan = Plan::new([preview, Step::new(Weight::ALL, minutes(5))]).unwrap();
        let (engine, new) = shop.engine(plan, Scripted::healthy("errors"));
        let mut run = engine.start(new).await.unwrap();
        while !matches!(run.status().state, State::Holding { .. }) {
            run.changed().await.unwrap();
        }
        assert_eq!(shop.deployments().pop().unwrap()["status"], "Ready");
        shop.assert_serves(1);
        run.approve("ben", "seen on the test traffic").await.unwrap();
        let ended = run.finished().await;
        assert_eq!(ended.rollout.state, State::Promoted, "{}", ended.rollout);
        shop.assert_serves(2);
        engine.shutdown(minutes(1)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_busy_group_is_refused_waited_for_or_superseded() {
    let shop = Shop::new(Platform::InPlace);
    let other = shop.aws.codedeploy().deploy(APP, GROUP, &location(Platform::InPlace, 3));
    let group = shop.group();
    let e = group.make_way(Busy::Refuse).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Conflict);
    assert!(e.to_string().contains(&other) && e.to_string().contains("made by user"), "{e}");
    assert_eq!(group.baseline().await.unwrap_err().kind(), ErrorKind::Conflict);
    let e = group.make_way(Busy::Wait(Duration::from_secs(5))).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Unavailable);
    group.make_way(Busy::Wait(minutes(5))).await.unwrap();
    shop.assert_serves(3);

    let other = shop.aws.codedeploy().deploy(APP, GROUP, &location(Platform::InPlace, 2));
    tokio::time::sleep(Duration::from_secs(10)).await;
    group.make_way(Busy::Supersede(minutes(5))).await.unwrap();
    assert_eq!(shop.aws.codedeploy().deployment(&other)["status"], "Stopped");
    shop.assert_serves(3);
}

async fn prove(shop: &Shop, plan: &Plan) -> rollback_core::backend::Readiness {
    let driver = Driver::new(shop).await;
    driver.backend.preflight(&driver.change, plan).await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn preflight_says_what_it_proved_and_calls_only_what_its_policy_allows() {
    use rollback_aws::codedeploy::{CONTINUE_DEPLOYMENT, ROLLOUT};
    for platform in [Platform::InPlace, Platform::Ecs] {
        let shop = Shop::new(platform).alarm();
        let found = prove(&shop, &all_at_once()).await;
        assert_eq!((found.refused.as_slice(), found.no_way_back.as_slice()), (&[][..], &[][..]));
        for permission in ROLLOUT.iter().filter(|it| platform == Platform::Ecs || **it != CONTINUE_DEPLOYMENT) {
            assert!(found.proved.iter().any(|it| it.as_str().contains(permission.action)), "{permission:?}: {found:?}");
        }
        assert!(found.proved.iter().any(|it| it.as_str().contains("shop-errors does not fire")), "{found:?}");
        shop.roll_out(all_at_once(), Scripted::healthy("errors")).await;
        let policy = shop.group().policy("123456789012").to_string();
        for action in shop.aws.calls().into_keys().filter(|it| it.starts_with("codedeploy:")) {
            assert!(policy.contains(&format!("\"{action}\"")), "{action} is called, and not in {policy}");
        }
        assert!(
            policy.contains("arn:aws:codedeploy:us-east-1:123456789012:deploymentgroup:shop/production"),
            "{policy}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn each_permission_that_is_missing_is_named_before_anything_changes() {
    use rollback_aws::codedeploy::{GET_DEPLOYMENTS, GET_GROUP, GET_REVISION, GET_TARGETS, LIST_TARGETS, ROLLOUT};
    // Without these there is no baseline, and the error names them.
    let first = [GET_GROUP, GET_DEPLOYMENTS, GET_TARGETS, LIST_TARGETS, GET_REVISION];
    for permission in ROLLOUT.iter().filter(|it| !first.contains(it)) {
        let shop = Shop::new(Platform::Ecs);
        let driver = Driver::new(&shop).await;
        shop.aws.deny(permission.action);
        let found = driver.backend.preflight(&driver.change, &all_at_once()).await.unwrap();
        let [why] = &found.refused[..] else { panic!("{permission:?}: {:?}", found.refused) };
        assert!(why.as_str().contains(permission.action), "{why}");
        assert_eq!(shop.deployments().len(), 1);
    }
    for permission in first {
        let shop = Shop::new(Platform::Ecs);
        shop.aws.deny(permission.action);
        let e = shop.group().baseline().await.expect_err("it may not be read");
        assert!(e.kind() == ErrorKind::Denied && e.to_string().contains(permission.action), "{}", e.chain());
    }
}

#[tokio::test(start_paused = true)]
async fn what_speaks_against_a_start_is_said_before_anything_changes() {
    let words = |found: &rollback_core::backend::Readiness| {
        let all = [&found.refused, &found.no_way_back, &found.not_provable, &found.not_restored];
        let names = ["refused", "no way back", "not provable", "not restored"];
        let each = all.iter().zip(names).flat_map(|(notes, name)| notes.iter().map(move |it| format!("{name}: {it}")));
        each.collect::<Vec<_>>().join("\n")
    };
    let says = |found: &rollback_core::backend::Readiness, wanted: &str| {
        let all = words(found);
        assert!(all.contains(wanted), "{wanted} is not in\n{all}");
    };
    // An alarm that fires already, and one that is not there.
    let shop = Shop::new(Platform::Ecs).alarm();
    shop.aws.alarm_at("shop-errors", shop.aws.clock().now());
    says(&prove(&shop, &all_at_once()).await, "refused: the group's alarm shop-errors fires already");
    shop.aws.cloudwatch().delete("shop-errors");
    says(&prove(&shop, &all_at_once()).await, "refused: the group's alarm shop-errors is not there");
    // Alarms that stop, and nothing that rolls back.
    shop.aws.codedeploy().set(APP, GROUP, "autoRollbackConfiguration", json!({ "enabled": false }));
    says(
        &prove(&shop, &all_at_once()).await,
        "refused: deployment group shop/production has alarms, and does not roll back",
    );
    // No alarms at all: a risk, or a refusal for who asks for it.
    let shop = Shop::new(Platform::Ecs);
    says(&prove(&shop, &all_at_once()).await, "not provable: that anybody takes it back while this process is away");
    let driver = Driver::new(&shop).await;
    let found = shop.group().guarded().preflight(&driver.change, &all_at_once()).await.unwrap();
    says(&found, "refused: deployment group shop/production has no alarms of its own");
    // A bake longer than the old side stands; a preview where nobody waits.
    says(
        &prove(&shop, &Plan::all_at_once(minutes(90)).unwrap()).await,
        "not restored: the old side, once it is terminated",
    );
    let preview = Plan::blue_green(minutes(1), minutes(1)).unwrap();
    says(&prove(&shop, &preview).await, "does not wait before the traffic");
    // Taken for another platform, deployed to by somebody else, a configuration that is not there, a bundle for ECS.
    let wrong = Group::new(&Poller::new(&shop.aws.account()), APP, GROUP, Platform::Lambda).unwrap();
    says(&wrong.preflight(&driver.change, &all_at_once()).await.unwrap(), "is Ecs, and is taken for Lambda");
    let misspelt = shop.group().config("CodeDeployDefault.ECSCanary");
    says(&misspelt.preflight(&driver.change, &all_at_once()).await.unwrap(), "refused: there is no configuration");
    let mut bundle = driver.change.clone();
    bundle.candidate = artefact(Platform::InPlace, 2).revision().unwrap();
    says(&shop.group().preflight(&bundle, &all_at_once()).await.unwrap(), "takes the text of an AppSpec");
    shop.aws.codedeploy().serve(APP, GROUP, &location(Platform::Ecs, 3));
    says(
        &shop.group().preflight(&driver.change, &all_at_once()).await.unwrap(),
        "somebody deployed to deployment group",
    );
    let running = shop.aws.codedeploy().deploy(APP, GROUP, &location(Platform::Ecs, 3));
    says(&shop.group().preflight(&driver.change, &all_at_once()).await.unwrap(), &running);

    // Nothing to go back to.
    let aws = Simulator::new();
    aws.codedeploy().group(APP, GROUP, &Shape::Ecs("prod:shop".into()), "CodeDeployDefault.ECSAllAtOnce");
    let group = Group::new(&Poller::new(&aws.account()), APP, GROUP, Platform::Ecs).unwrap();
    let e = group.baseline().await.unwrap_err();
    assert_eq!((e.kind(), e.to_string().contains("nothing to go back to")), (ErrorKind::NotFound, true), "{e}");
    let e =
        Group::new(&Poller::new(&aws.account()), "nobody", GROUP, Platform::Ecs).unwrap().baseline().await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::NotFound, "{e}");
    // A bundle that may be overwritten.
    let shop = Shop::new(Platform::InPlace);
    let driver = Driver::new(&shop).await;
    let mut loose = driver.change.clone();
    loose.candidate = Artefact::s3("builds", "latest.zip").revision().unwrap();
    says(&shop.group().preflight(&loose, &all_at_once()).await.unwrap(), "neither version nor ETag");
}

#[tokio::test(start_paused = true)]
async fn what_lies_on_no_shelf_any_more_is_no_way_back() {
    use rollback_aws::testing::lambda::Build;
    let shop = Shop::new(Platform::Lambda);
    let driver = Driver::new(&shop).await;
    let group = shop.group().shelf(shop.aws.account().lambda());
    for build in ["v1", "v2"] {
        shop.aws.lambda().publish("shop", &Build::new(build));
    }
    let look = || async { group.preflight(&driver.change, &all_at_once()).await.unwrap() };
    let found = look().await;
    assert!(
        found.proved.iter().any(|it| it.as_str() == "the baseline is there: shop:1 is published and Active"),
        "{found:?}"
    );
    assert_eq!((found.refused.len(), found.no_way_back.len()), (0, 0), "{found:?}");
    shop.aws.lambda().set_state("shop", "2", "Inactive", "Successful");
    assert!(look().await.refused[0].as_str().contains("version 2 of function shop is Inactive"));
    shop.aws.lambda().delete_version("shop", "1");
    assert!(look().await.no_way_back[0].as_str().contains("function shop has no version 1"));
    shop.aws.fault(Fault::of("lambda:GetFunctionConfiguration", Trouble::Throttle).times(99));
    let found = look().await;
    assert_eq!((found.refused.len(), found.no_way_back.len()), (0, 0), "{found:?}");
    assert!(found.not_provable.iter().any(|it| it.as_str().contains("throttles it")), "{found:?}");
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_auto_scaling_starts_is_no_drift_and_goes_back_with_the_others() {
    let shop = Shop::new(Platform::InPlace);
    let gate = Scripted::healthy("errors");
    let (engine, new) = shop.engine(Plan::all_at_once(minutes(20)).unwrap(), gate.clone());
    let run = engine.start(new).await.unwrap();
    while !matches!(run.status().state, State::Baking { .. }) {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let upkeep = shop.aws.codedeploy().scale_out(APP, GROUP, "i-4", &location(Platform::InPlace, 2));
    tokio::time::sleep(minutes(2)).await;
    assert_eq!(shop.aws.codedeploy().deployment(&upkeep)["status"], "Succeeded");
    assert!(matches!(run.status().state, State::Baking { .. }), "{}", run.status());
    gate.set(Answer::Unhealthy);
    let ended = run.finished().await;
    assert!(matches!(ended.rollout.state, State::RolledBack { .. }), "{}", ended.rollout);
    assert_eq!(shop.aws.codedeploy().serves(APP, GROUP).len(), 4);
    shop.assert_serves(1);
    engine.shutdown(minutes(1)).await;
}

#[tokio::test(start_paused = true)]
async fn throttling_for_five_minutes_is_borne() {
    let shop = Shop::new(Platform::Ecs);
    let (engine, new) = shop.engine(Plan::all_at_once(minutes(20)).unwrap(), Scripted::healthy("errors"));
    let run = engine.start(new).await.unwrap();
    while shop.deployments().len() < 2 {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    shop.aws.fault(Fault::any(Trouble::Throttle).times(u64::MAX));
    tokio::time::sleep(minutes(5)).await;
    shop.aws.forget_faults();
    let ended = run.finished().await;
    assert_eq!(ended.rollout.state, State::Promoted, "{}", ended.rollout);
    assert_eq!(shop.deployments().len(), 2);
    engine.shutdown(minutes(1)).await;
}

#[tokio::test(start_paused = true)]
async fn a_groups_own_guard_is_checked_and_set_beside_what_is_there() {
    use rollback_aws::codedeploy::{RollBackOn, Settings};
    let shop = Shop::new(Platform::Ecs);
    let group = shop.group();
    let guard = Settings::new()
        .alarms(["shop-errors", "shop-latency"])
        .roll_back_on([RollBackOn::Alarm, RollBackOn::Failure])
        .ready(Some(30))
        .config("CodeDeployDefault.ECSCanary10Percent5Minutes");
    let other = group.check(&guard).await.unwrap();
    assert_eq!(other.len(), 4, "{other:?}");
    assert_eq!(other[0].as_str(), "alarms: none instead of shop-errors, shop-latency");
    assert_eq!(group.set(&guard).await.unwrap(), other);
    assert_eq!(group.check(&guard).await.unwrap(), []);
    let hands = shop.aws.codedeploy();
    assert_eq!(hands.setting(APP, GROUP, "alarmConfiguration")["alarms"][1]["name"], "shop-latency");
    let auto = json!({ "enabled": true, "events": ["DEPLOYMENT_FAILURE", "DEPLOYMENT_STOP_ON_ALARM"] });
    assert_eq!(hands.setting(APP, GROUP, "autoRollbackConfiguration"), auto);
    let waits = hands.setting(APP, GROUP, "blueGreenDeploymentConfiguration");
    assert_eq!(waits["terminateBlueInstancesOnDeploymentSuccess"]["terminationWaitTimeInMinutes"], 60, "{waits}");
    let calls = shop.aws.calls()["codedeploy:UpdateDeploymentGroup"];
    group.set(&guard).await.unwrap();
    assert_eq!(shop.aws.calls()["codedeploy:UpdateDeploymentGroup"], calls, "nothing was to be set");
    for (bad, words) in [
        (Settings::new().alarms(["a", "a"]), "named twice"),
        (Settings::new().alarms((0..51).map(|n| n.to_string())), "51 alarms"),
        (Settings::new().terminate_after(minutes(2_881)), "2881 minutes is too long"),
    ] {
        let e = group.set(&bad).await.unwrap_err();
        assert!(e.kind() == ErrorKind::Invalid && e.to_string().contains(words), "{e}");
    }
    let e = group.set(&Settings::new().config("nobody")).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::NotFound, "{e}");
}

#[tokio::test(start_paused = true)]
async fn a_gate_answers_a_hook_and_no_data_is_never_a_pass() {
    use rollback_aws::codedeploy::Hook;
    use rollback_core::gate::Window;
    let shop = Shop::new(Platform::Lambda);
    let mut spec: Value = serde_json::from_str(&app_spec(Platform::Lambda, 2)).unwrap();
    spec["Hooks"] = json!([{ "BeforeAllowTraffic": "shop-check" }]);
    let hooked = json!({ "appSpecContent": { "content": spec.to_string() } });
    for (gate, ends) in [
        (Scripted::healthy("errors"), "Succeeded"),
        (Scripted::unhealthy_from("errors", Weight::NONE), "Failed"),
        (Scripted::new("errors", [Answer::Inconclusive]), "Failed"),
    ] {
        let id = shop.aws.codedeploy().deploy(APP, GROUP, &hooked);
        tokio::time::sleep(Duration::from_secs(30)).await;
        let execution = shop.aws.codedeploy().hook(&id).unwrap();
        let event = json!({ "DeploymentId": id, "LifecycleEventHookExecutionId": execution });
        let hook = Hook::of(&shop.aws.account(), &event).unwrap();
        let now = shop.aws.clock().now();
        let name = |it: &str| it.parse().unwrap();
        let window = Window {
            rollout: "r".parse().unwrap(),
            target: "shop".parse().unwrap(),
            baseline: name("1"),
            candidate: name("2"),
            created: now,
            step: 0,
            weight: Weight::NONE,
            since: now,
            now,
            last: None,
        };
        let verdict = hook.judge(&gate, &window).await.unwrap();
        assert!(verdict.is_ok());
        let e = hook.answer(true).await.unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Conflict, "{e}");
        tokio::time::sleep(Duration::from_secs(30)).await;
        assert_eq!(shop.aws.codedeploy().deployment(&id)["status"], ends);
    }
    let e = Hook::of(&shop.aws.account(), &json!({ "DeploymentId": "d-1" })).unwrap_err();
    assert!(e.to_string().contains("LifecycleEventHookExecutionId"), "{e}");
}

/// How many calls of each operation a minute, while so many deployments run, or are being stopped, and are looked at every two
/// seconds.
async fn calls_a_minute(deployments: usize, back: bool) -> u64 {
    let aws = Simulator::new();
    aws.codedeploy().stopping_takes(minutes(60));
    let poller = Poller::new(&aws.account());
    let instances = || vec!["i-1".to_owned()];
    let mut looks = Vec::new();
    for n in 0..deployments {
        let group = format!("group-{n}");
        aws.codedeploy().group(APP, &group, &Shape::BlueGreen(instances()), "CodeDeployDefault.AllAtOnce");
        aws.codedeploy().set(APP, &group, "blueGreenDeploymentConfiguration", blue_green(Some(600)));
        aws.codedeploy().serve(APP, &group, &location(Platform::BlueGreen, 1));
        let target = rollback_core::model::TargetId::try_from(group.as_str()).unwrap();
        let backend = Group::new(&poller, APP, &group, Platform::BlueGreen).unwrap().waits_for_approval();
        let baseline = backend.baseline().await.unwrap();
        let candidate = artefact(Platform::BlueGreen, 2).revision().unwrap();
        let rollout = rollback_core::model::RolloutId::fresh(&target);
        let change = rollback_core::model::Change { rollout: rollout.clone(), target, baseline, candidate };
        let goal = Goal::Split(Weight::NONE);
        let look = backend.observe(&change, goal, None).await.unwrap();
        let nonce = rollback_core::model::Nonce::new(&rollout, rollback_core::model::Serial(1), goal);
        let at = aws.clock().now();
        let attempt = rollback_core::model::Attempt { nonce, goal, version: look.version, at };
        backend.shift(&change, goal, &attempt).await.unwrap();
        looks.push((backend, change, goal));
    }
    for (backend, change, goal) in looks.iter_mut().filter(|_| back) {
        *goal = Goal::Baseline;
        let look = backend.observe(change, *goal, None).await.unwrap();
        let nonce = rollback_core::model::Nonce::new(&change.rollout, rollback_core::model::Serial(2), *goal);
        let at = aws.clock().now();
        let attempt = rollback_core::model::Attempt { nonce, goal: *goal, version: look.version, at };
        backend.shift(change, *goal, &attempt).await.unwrap();
    }
    let run = |minutes: u64| {
        let looks = &looks;
        async move {
            for _ in 0..30 * minutes {
                for (backend, change, goal) in looks {
                    backend.observe(change, *goal, None).await.unwrap();
                }
                tokio::time::sleep(Duration::from_secs(2)).await;
            }
        }
    };
    run(2).await;
    let before: u64 = aws.calls().values().sum();
    run(5).await;
    (aws.calls().values().sum::<u64>() - before) / 5
}

#[tokio::test(start_paused = true)]
async fn a_hundred_deployments_cost_no_more_calls_than_batches_of_25() {
    for back in [false, true] {
        let (one, hundred) = (calls_a_minute(1, back).await, calls_a_minute(100, back).await);
        eprintln!("calls a minute: {one} for 1 deployment, {hundred} for 100; on the way back: {back}");
        assert!((3..=5).contains(&one), "back: {back}: {one}");
        assert!(hundred <= 5 * one, "back: {back}: {hundred} for a hundred, {one} for one");
    }
}

#[tokio::test(start_paused = true)]
async fn a_breach_enters_the_stop_within_a_second() {
    let shop = Shop::new(Platform::Ecs).config("CodeDeployDefault.ECSLinear10PercentEvery1Minutes");
    let gate = Scripted::healthy("errors");
    let (engine, new) = shop.engine(all_at_once(), gate.clone());
    let run = engine.start(new).await.unwrap();
    tokio::time::sleep(minutes(3)).await;
    let begun = tokio::time::Instant::now();
    gate.set(Answer::Unhealthy);
    gate.wake();
    while !shop.aws.calls().contains_key("codedeploy:StopDeployment") || shop.deployments().len() < 2 {
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert!(begun.elapsed() < minutes(2), "nothing was stopped");
    }
    // Preflight calls it too, on a deployment that is over.
    let stops = shop.aws.calls()["codedeploy:StopDeployment"];
    while shop.aws.calls()["codedeploy:StopDeployment"] == stops && stops < 2 {
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert!(begun.elapsed() < minutes(2), "nothing was stopped");
    }
    let entered = begun.elapsed();
    eprintln!("from the breach to StopDeployment: {entered:?}");
    assert!(entered <= Duration::from_secs(1), "{entered:?}");
    assert!(matches!(run.finished().await.rollout.state, State::RolledBack { .. }));
    shop.assert_serves(1);
    engine.shutdown(minutes(1)).await;
}

#[tokio::test(start_paused = true)]
#[ignore = "takes minutes in a debug build; counts for benches/README.md"]
async fn a_thousand_deployments_are_counted() {
    eprintln!("calls a minute: {} for 1,000 deployments", calls_a_minute(1_000, false).await);
}
