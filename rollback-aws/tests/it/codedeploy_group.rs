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
        gates::Scripted,
        sweep::{Scenario, Sweep},
    },
};
use serde_json::{Value, json};

/// The secret access key of the simulator's credentials.
const SECRET: &str = "simulated-secret-access-key";
const APP: &str = "shop";
const GROUP: &str = "production";

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
    fn config(self, name: &str) -> Self {
        self.aws.codedeploy().set(APP, GROUP, "deploymentConfigName", json!(name));
        self.keep()
    }

    /// With an alarm that stops deployments.
    fn alarm(self) -> Self {
        self.aws.cloudwatch().alarm("shop-errors");
        let alarms = json!({ "enabled": true, "ignorePollAlarmFailure": false, "alarms": [{ "name": "shop-errors" }] });
        self.aws.codedeploy().set(APP, GROUP, "alarmConfiguration", alarms);
        self.keep()
    }

    pub(crate) fn group(&self) -> Group {
        let group = Group::new(&Poller::new(&self.aws.account()), APP, GROUP, self.platform).expect("good names");
        let group = group.cloudwatch(self.aws.account().cloudwatch());
        if self.waits { group.waits_for_approval() } else { group }
    }

    fn deployments(&self) -> Vec<Value> {
        let hands = self.aws.codedeploy();
        hands.deployments(APP, GROUP).iter().map(|id| hands.deployment(id)).collect()
    }

    /// What all targets serve, once.
    fn serves(&self) -> Vec<(String, f64)> {
        let mut all: Vec<_> = self.aws.codedeploy().serves(APP, GROUP).into_values().flatten().collect();
        all.dedup();
        all
    }

    fn number(&self, n: u32) -> String {
        match self.platform {
            Platform::InPlace | Platform::BlueGreen => format!("builds|shop/{n}.zip|v{n}|"),
            _ => {
                use sha2::Digest as _;
                sha2::Sha256::digest(app_spec(self.platform, n)).iter().map(|byte| format!("{byte:02x}")).collect()
            }
        }
    }

    fn assert_serves(&self, n: u32) {
        assert_eq!(self.serves(), [(self.number(n), 100.0)], "{:#?}", self.deployments());
    }

    /// One whole rollout by the engine.
    async fn roll_out(&self, plan: Plan, gate: Scripted) -> Ended {
        let (engine, new) = self.engine(plan, gate);
        let outcome = engine.start(new).await.unwrap().finished().await;
        engine.shutdown(Duration::from_secs(60)).await;
        outcome
    }

    fn engine(&self, plan: Plan, gate: Scripted) -> (Engine, NewRollout) {
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
            for shop in [Shop::new(Platform::InPlace), Shop::new(Platform::Lambda), Shop::waiting(Platform::Ecs)] {
                eprintln!("{} on {:?}: {}", stringify!($kind), shop.platform, Sweep::of(&shop).$kind().await);
            }
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

#[tokio::test(start_paused = true)]
async fn blue_green_instances_are_swept_for_crashes_and_lost_answers() {
    let shop = Shop::new(Platform::BlueGreen);
    let sweep = Sweep::of(&shop).scenarios(Scenario::ready_made(&shop).await);
    let mut summary = sweep.crashes().await;
    summary += sweep.lost_answers().await;
    eprintln!("blue/green: {summary}");
}
