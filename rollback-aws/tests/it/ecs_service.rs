//! The ECS service as a backend: the conformance suite, the sweeps, and what is special about it.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use aws_sdk_ecs::types::TaskDefinitionField;
use rollback_aws::{
    ecs::{REGISTER, ROLLOUT, Service, Settings, Shape},
    testing::{
        Refusal, Simulator,
        ecs::{Setup, Time},
        fault::{Fault, Trouble},
    },
};
use rollback_core::{
    ErrorKind,
    backend::{DeploymentBackend, Readiness},
    clock::Clock as _,
    engine::{Engine, NewRollout, Outcome as Ended, Target},
    gate::Policy,
    model::{Change, Goal, Progress, Revision, Serves, Weight},
    plan::{Deadlines, Plan},
    state::{State, Versions},
    store::{Memory, Store as _},
    testing::{
        backend::{self, Bench, Driver, Outcome},
        gates::{Answer, Scripted},
        sweep::{Scenario, Sweep},
    },
};
use serde_json::{Value, json};

const SHOP: (&str, &str) = ("shop", "checkout");
const SECRET: &str = "simulated-secret-access-key";

/// `shop/checkout` with task definitions 1 to 4, at `checkout:1`; tasks of `checkout:3` end with 1.
pub(crate) struct Fleet {
    pub(crate) aws: Simulator,
    shape: Shape,
    setup: Setup,
}

impl Fleet {
    fn of(shape: Shape, config: Value) -> Self {
        let aws = Simulator::new();
        for environment in [&[][..], &[], &[("SIMULATOR_EXIT_CODE", "1")], &[]] {
            aws.ecs().register("checkout", "registry.example/checkout", environment);
        }
        let made = Self { aws, shape, setup: Setup::new(config) };
        made.put_back();
        made
    }

    fn rolling() -> Self {
        Self::of(Shape::rolling(), json!({ "deploymentCircuitBreaker": { "enable": true, "rollback": true } }))
    }

    fn blue_green() -> Self {
        let config = json!({ "strategy": "BLUE_GREEN", "bakeTimeInMinutes": 1, "lifecycleHooks": pauses(60) });
        Self::of(Shape::blue_green().paused(), config)
    }

    fn canary() -> Self {
        let canary = json!({ "canaryPercent": 10.0, "canaryBakeTimeInMinutes": 1 });
        let config = json!({ "strategy": "CANARY", "canaryConfiguration": canary, "lifecycleHooks": pauses(60) });
        Self::of(Shape::canary(10).unwrap().paused(), config)
    }

    fn linear() -> Self {
        let linear = json!({ "stepPercent": 50.0, "stepBakeTimeInMinutes": 0 });
        let config = json!({ "strategy": "LINEAR", "linearConfiguration": linear, "lifecycleHooks": pauses(60) });
        Self::of(Shape::linear(50).unwrap().paused(), config)
    }

    /// A canary at ECS's own pace.
    fn unpaused() -> Self {
        let canary = json!({ "canaryPercent": 10.0, "canaryBakeTimeInMinutes": 1 });
        let config = json!({ "strategy": "CANARY", "canaryConfiguration": canary, "bakeTimeInMinutes": 1 });
        Self::of(Shape::canary(10).unwrap(), config)
    }

    /// With tasks and stages that take no time worth telling.
    fn brisk(self) -> Self {
        for (what, seconds) in [(Time::Start, 3), (Time::Begin, 1), (Time::Stage, 1), (Time::Clear, 1)] {
            self.aws.ecs().takes(what, Duration::from_secs(seconds));
        }
        if !self.shape.is_rolling() {
            let config = json!({ "canaryConfiguration": { "canaryPercent": 10.0, "canaryBakeTimeInMinutes": 0 } });
            return Self { setup: self.setup.with(&config), ..self };
        }
        self
    }

    fn put_back(&self) {
        self.aws.ecs().service(SHOP.0, SHOP.1, "checkout:1", &self.setup);
    }

    fn service(&self) -> Service {
        Service::new(&self.aws.account(), "shop/checkout", self.shape).unwrap()
    }

    fn status(&self) -> String {
        self.aws.ecs().last(SHOP.0, SHOP.1).unwrap().status
    }

    fn running(&self) -> Vec<(String, usize)> {
        self.aws.ecs().running(SHOP.0, SHOP.1).into_iter().collect()
    }
}

fn pauses(minutes: u32) -> Value {
    json!([{
        "targetType": "PAUSE",
        "lifecycleStages": ["PRE_PRODUCTION_TRAFFIC_SHIFT", "POST_PRODUCTION_TRAFFIC_SHIFT"],
        "timeoutConfiguration": { "timeoutInMinutes": minutes, "action": "ROLLBACK" },
    }])
}

#[async_trait]
impl Bench for Fleet {
    async fn reset(&self) {
        self.aws.forget_faults();
        self.put_back();
    }

    async fn connect(&self) -> Arc<dyn DeploymentBackend> {
        // What is promised of late calls is promised for any settle time: a short one makes the sweeps quick.
        Arc::new(self.service().settle(Duration::from_secs(60)))
    }

    fn candidate(&self) -> Revision {
        Revision::new("checkout:2").unwrap()
    }

    fn missing(&self) -> Revision {
        Revision::new("checkout:99").unwrap()
    }

    async fn settle(&self) {
        tokio::time::sleep(Duration::from_secs(5)).await;
    }

    async fn drift(&self) -> bool {
        self.aws.ecs().deploy(SHOP.0, SHOP.1, "checkout:4");
        true
    }

    fn secret(&self) -> Option<String> {
        Some(SECRET.into())
    }
}

async fn skipped(fleet: &Fleet) -> Vec<&'static str> {
    let outcomes = backend::all(fleet).await.into_iter();
    outcomes.filter(|(_, outcome)| *outcome != Outcome::Kept).map(|(promise, _)| promise).collect()
}

/// What no API without versions can promise.
const UNCHECKED: [&str; 4] = [
    "an_accepted_shift_spends_its_version",
    "a_stale_version_moves_nothing",
    "of_two_drivers_one_is_refused",
    "a_call_from_before_a_rollback_is_refused_after_it",
];

#[tokio::test(start_paused = true)]
async fn every_promise_of_a_backend_is_kept_by_a_canary() {
    assert_eq!(skipped(&Fleet::canary()).await, UNCHECKED);
}

#[tokio::test(start_paused = true)]
async fn every_promise_of_a_backend_is_kept_by_blue_green() {
    assert_eq!(skipped(&Fleet::blue_green()).await, UNCHECKED);
}

#[tokio::test(start_paused = true)]
async fn every_promise_of_a_backend_is_kept_by_linear_steps() {
    assert_eq!(skipped(&Fleet::linear()).await, UNCHECKED);
}

#[tokio::test(start_paused = true)]
async fn every_promise_of_a_backend_is_kept_at_ecss_own_pace() {
    let mut wanted = vec!["the_first_effect_back_returns_the_traffic"];
    wanted.extend(UNCHECKED);
    assert_eq!(skipped(&Fleet::unpaused()).await, wanted);
    assert_eq!(skipped(&Fleet::rolling()).await, wanted);
}

macro_rules! sweeps {
    ($($name:ident: $kind:ident;)*) => {$(
        #[tokio::test(start_paused = true)]
        async fn $name() {
            for fleet in [Fleet::canary().brisk(), Fleet::rolling().brisk()] {
                let rolling = fleet.shape.is_rolling();
                let mut scenarios = Scenario::ready_made(&fleet).await;
                // A look at a service is three calls, and there are a hundred looks in a rollout: what a Lambda alias is put
                // through besides is the engine's affair, and not the platform's.
                scenarios.retain(|it| !matches!(it.name(), "aborted while baking" | "blue/green"));
                scenarios.retain(|it| rolling || !it.name().contains("at once"));
                assert!(scenarios.len() >= 2);
                let summary = Sweep::of(&fleet).scenarios(scenarios).$kind().await;
                eprintln!("{} of {}: {summary}", stringify!($kind), fleet.shape);
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

async fn prove(fleet: &Fleet, service: &Service, candidate: &str, plan: &Plan) -> Readiness {
    let driver = Driver::new(fleet).await;
    let change = Change { candidate: Revision::new(candidate).unwrap(), ..driver.change.clone() };
    service.preflight(&change, plan).await.unwrap()
}

fn steps() -> Plan {
    Plan::canary([0, 10, 100], Duration::from_secs(120)).unwrap()
}

fn all_at_once() -> Plan {
    Plan::all_at_once(Duration::from_secs(120)).unwrap()
}

/// One whole rollout by the engine.
async fn roll_out(fleet: &Fleet, candidate: &str, plan: Plan, unhealthy_from: Option<u8>) -> Ended {
    let engine = Engine::builder(Memory::new()).clock(fleet.aws.clock().clone()).build().unwrap();
    let gate = match unhealthy_from {
        Some(percent) => Scripted::unhealthy_from("errors", Weight::try_from(percent).unwrap()),
        None => Scripted::healthy("errors"),
    };
    let target = Target::new("shop/checkout", fleet.service()).unwrap().gate(gate, Policy::default());
    engine.register(target).unwrap();
    let new = NewRollout::new("shop/checkout", Revision::new(candidate).unwrap(), plan).unwrap().by("ana").unwrap();
    let outcome = engine.start(new).await.unwrap().finished().await;
    engine.shutdown(Duration::from_secs(60)).await;
    outcome
}

#[tokio::test(start_paused = true)]
async fn preflight_proves_each_permission_and_a_rollout_calls_no_other() {
    let fleet = Fleet::canary();
    let found = prove(&fleet, &fleet.service(), "checkout:2", &steps()).await;
    assert_eq!((found.refused.as_slice(), found.no_way_back.as_slice()), (&[][..], &[][..]));
    for permission in ROLLOUT {
        assert!(found.proved.iter().any(|it| it.as_str().contains(permission.action)), "{permission:?}: {found:?}");
    }
    roll_out(&fleet, "checkout:2", steps(), None).await;
    let fleet = {
        fleet.put_back();
        fleet
    };
    roll_out(&fleet, "checkout:2", steps(), Some(10)).await;
    let called: Vec<String> = fleet.aws.calls().into_keys().collect();
    let mut allowed: Vec<&str> = ROLLOUT.iter().map(|permission| permission.action).collect();
    allowed.sort_unstable();
    assert_eq!(called, allowed, "the policy is neither more nor less than what a rollout calls");
    let policy = fleet.service().policy().to_string();
    assert!(allowed.iter().all(|action| policy.contains(action)) && policy.contains(":service/shop/checkout\""));
}

#[tokio::test(start_paused = true)]
async fn each_permission_that_is_missing_is_named_before_anything_changes() {
    for permission in ROLLOUT {
        let fleet = Fleet::canary();
        let driver = Driver::new(&fleet).await;
        fleet.aws.deny(permission.action);
        let found = driver.backend.preflight(&driver.change, &steps()).await.unwrap();
        let [why] = &found.refused[..] else { panic!("{permission:?}: {:?}", found.refused) };
        assert!(why.as_str().contains(permission.action), "{why}");
        assert_eq!(fleet.aws.ecs().deployments(SHOP.0, SHOP.1).len(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_deployed_or_brought_back_is_refused_before_anything_changes() {
    let said =
        |notes: &[rollback_core::model::Note]| notes.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");

    let fleet = Fleet::canary();
    fleet.aws.ecs().deregister("checkout:2");
    let found = prove(&fleet, &fleet.service(), "checkout:2", &steps()).await;
    assert!(said(&found.refused).contains("task definition checkout:2 is INACTIVE"), "{found:?}");
    fleet.aws.ecs().deregister("checkout:1");
    let found = prove(&fleet, &fleet.service(), "checkout:4", &steps()).await;
    assert!(said(&found.no_way_back).contains("task definition checkout:1 is INACTIVE"), "{found:?}");

    let fleet = Fleet::canary();
    fleet.aws.ecs().want(SHOP.0, SHOP.1, 6);
    let found = prove(&fleet, &fleet.service(), "checkout:2", &steps()).await;
    assert!(said(&found.refused).contains("in no steady state: 4 of 6 tasks run"), "{found:?}");
    fleet.aws.ecs().want(SHOP.0, SHOP.1, 0);
    let found = prove(&fleet, &fleet.service(), "checkout:2", &steps()).await;
    assert!(said(&found.refused).contains("wants no tasks"), "{found:?}");

    // A service whose last deployment failed has nothing that ECS would go back to.
    let fleet = Fleet::rolling();
    let driver = Driver::new(&fleet).await;
    fleet.aws.ecs().fail_rollbacks(SHOP.0, SHOP.1, true);
    fleet.aws.ecs().deploy(SHOP.0, SHOP.1, "checkout:3");
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert_eq!(fleet.status(), "ROLLBACK_FAILED");
    let found = driver.backend.preflight(&driver.change, &all_at_once()).await.unwrap();
    assert!(said(&found.no_way_back).contains("no previous revision"), "{found:?}");
    assert_eq!(fleet.service().baseline().await.unwrap_err().kind(), ErrorKind::Mixed);

    // Somebody deploys.
    let fleet = Fleet::canary();
    let driver = Driver::new(&fleet).await;
    fleet.aws.ecs().deploy(SHOP.0, SHOP.1, "checkout:4");
    let found = driver.backend.preflight(&driver.change, &steps()).await.unwrap();
    assert!(said(&found.refused).contains("deploys checkout:4"), "{found:?}");

    let setup = Setup::new(json!({})).behind("web", 8080);
    fleet.aws.ecs().service(SHOP.0, SHOP.1, "checkout:1", &setup);
    let rolling = Service::new(&fleet.aws.account(), "shop/checkout", Shape::rolling()).unwrap();
    let found = prove(&fleet, &rolling, "checkout:2", &all_at_once()).await;
    assert!(said(&found.refused).contains("has no container web"), "{found:?}");
    fleet.aws.ecs().service(SHOP.0, SHOP.1, "checkout:1", &Setup::new(json!({})).behind("checkout", 80));
    let found = prove(&fleet, &rolling, "checkout:2", &all_at_once()).await;
    assert!(said(&found.refused).contains("has no port 80"), "{found:?}");
    assert!(said(&found.not_provable).contains("circuit breaker is off"), "{found:?}");
}

#[tokio::test(start_paused = true)]
async fn a_service_that_somebody_else_deploys_is_refused_with_what_to_use_instead() {
    for (kind, instead) in [("CODE_DEPLOY", "use its deployment group"), ("EXTERNAL", "task sets")] {
        let fleet = Fleet::canary();
        let driver = Driver::new(&fleet).await;
        let setup = Setup::new(json!({})).controller(kind);
        fleet.aws.ecs().service(SHOP.0, SHOP.1, "checkout:1", &setup);
        let e = fleet.service().baseline().await.unwrap_err();
        assert_eq!((e.kind(), e.to_string().contains(instead)), (ErrorKind::Unsupported, true), "{e}");
        let found = driver.backend.preflight(&driver.change, &steps()).await.unwrap();
        assert!(found.refused[0].as_str().contains(instead), "{found:?}");
        let opened = Service::open(&fleet.aws.account(), "shop/checkout").await.unwrap_err();
        assert_eq!(opened.kind(), ErrorKind::Unsupported);
    }
}

#[tokio::test(start_paused = true)]
async fn a_shape_or_time_outs_that_do_not_fit_the_plan_are_refused() {
    let refused = |found: &Readiness| found.refused.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
    let fleet = Fleet::canary();
    assert_eq!(Service::open(&fleet.aws.account(), "shop/checkout").await.unwrap().shape(), fleet.shape);
    let other = Service::new(&fleet.aws.account(), "shop/checkout", Shape::blue_green().paused()).unwrap();
    assert!(refused(&prove(&fleet, &other, "checkout:2", &steps()).await).contains("is deployed CANARY of 10 %"));
    let long = Plan::canary([10, 100], Duration::from_secs(3700)).unwrap();
    let why = refused(&prove(&fleet, &fleet.service(), "checkout:2", &long).await);
    assert!(why.contains("times out after 60 min, in the middle of a bake of 62 min"), "{why}");
    // What a bake may take is more than its time: evidence is behind, and overtime is allowed.
    for (bake, overtime, refused_, open) in [
        (3600 - 120, 1, true, false),
        (3600 - 121, 1, false, false),
        (1800, 1800, false, true),
        (1800, 1799, false, false),
    ] {
        let deadlines = Deadlines { overtime: Duration::from_secs(overtime), ..Deadlines::default() };
        let plan = Plan::canary([10, 100], Duration::from_secs(bake)).unwrap().with_deadlines(deadlines).unwrap();
        let found = prove(&fleet, &fleet.service(), "checkout:2", &plan).await;
        assert_eq!(refused(&found).contains("in the middle of a bake"), refused_, "{bake} s: {found:?}");
        let told = found.not_provable.iter().any(|it| it.as_str().contains("that each bake is judged within 60 min"));
        assert_eq!(told, open, "{bake} s and {overtime} s: {found:?}");
    }
    for (config, words) in [
        (
            json!({ "canaryConfiguration": { "canaryPercent": 10.0, "canaryBakeTimeInMinutes": 30 } }),
            "itself waits for",
        ),
        (json!({ "bakeTimeInMinutes": 20 }), "ECS bakes for 20 min after the last step"),
    ] {
        let fleet = Fleet::canary();
        fleet.aws.ecs().configure(SHOP.0, SHOP.1, &config);
        let why = refused(&prove(&fleet, &fleet.service(), "checkout:2", &steps()).await);
        assert!(why.contains(words), "{why}");
    }
    let fleet = Fleet::canary();
    let mut hooks = pauses(60);
    hooks[0]["timeoutConfiguration"]["action"] = json!("CONTINUE");
    fleet.aws.ecs().configure(SHOP.0, SHOP.1, &json!({ "lifecycleHooks": hooks }));
    let why = refused(&prove(&fleet, &fleet.service(), "checkout:2", &steps()).await);
    assert!(why.contains("set its time-out action to ROLLBACK"), "{why}");
}

#[tokio::test(start_paused = true)]
async fn settings_are_checked_and_on_request_set_and_the_rest_stays() {
    let fleet = Fleet::of(Shape::blue_green(), json!({ "strategy": "BLUE_GREEN", "bakeTimeInMinutes": 7 }));
    let wanted = Settings::new().circuit_breaker().alarms(["errors"]).pauses(Duration::from_secs(1800)).unwrap();
    let service = fleet.service().settings(wanted.clone());
    let found = prove(&fleet, &service, "checkout:2", &all_at_once()).await;
    assert_eq!(found.refused.len(), 3, "{found:?}");
    assert_eq!(service.lacks(&wanted).await.unwrap().len(), 3);
    service.set(&wanted).await.unwrap();
    assert_eq!(service.lacks(&wanted).await.unwrap(), []);
    assert_eq!(fleet.aws.ecs().deployments(SHOP.0, SHOP.1).len(), 1, "setting deploys nothing");
    service.set(&wanted).await.unwrap();
    let account = fleet.aws.account();
    let opened = Service::open(&account, "shop/checkout").await.unwrap();
    assert_eq!(opened.shape(), Shape::blue_green().paused());
    let said = account.ecs().describe_services().cluster(SHOP.0).services(SHOP.1).send().await.unwrap();
    let config = said.services()[0].deployment_configuration().unwrap().clone();
    assert_eq!((config.bake_time_in_minutes(), config.lifecycle_hooks().len()), (Some(7), 1));

    // An alarm that fires at the start would switch them all off.
    fleet.aws.cloudwatch().alarm("errors");
    let looking = opened.clone().alarms(&rollback_aws::cloudwatch::Alarms::new(&account));
    let found = prove(&fleet, &looking, "checkout:2", &all_at_once()).await;
    assert_eq!(found.refused, []);
    fleet.aws.alarm_at("errors", fleet.aws.clock().now());
    tokio::time::sleep(Duration::from_secs(1)).await;
    let found = prove(&fleet, &looking, "checkout:2", &all_at_once()).await;
    assert!(
        found.refused[0]
            .as_str()
            .contains("deployment alarm errors fires already: ECS would listen to none of its alarms"),
        "{found:?}"
    );
    let found = prove(&fleet, &opened, "checkout:2", &all_at_once()).await;
    assert!(found.not_provable.iter().any(|it| it.as_str().contains("Service::alarms looks")), "{found:?}");

    let e = Fleet::rolling().service().set(&wanted).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Unsupported);
}

#[tokio::test(start_paused = true)]
async fn a_pause_of_no_whole_minutes_is_rounded_up_and_found_to_be_set() {
    let fleet = Fleet::of(Shape::blue_green(), json!({ "strategy": "BLUE_GREEN" }));
    for (asked, minutes) in [(90_000, 2), (60_001, 2), (60_000, 1), (1, 1)] {
        let wanted = Settings::new().pauses(Duration::from_millis(asked)).unwrap();
        fleet.service().set(&wanted).await.unwrap();
        assert_eq!(fleet.service().lacks(&wanted).await.unwrap(), [], "{asked} ms");
        let ecs = fleet.aws.account().ecs();
        let said = ecs.describe_services().cluster(SHOP.0).services(SHOP.1).send().await.unwrap();
        let hooks = said.services()[0].deployment_configuration().unwrap().lifecycle_hooks().to_vec();
        let set = hooks[0].timeout_configuration().unwrap().timeout_in_minutes();
        assert_eq!((hooks.len(), set), (1, Some(minutes)), "{asked} ms");
    }
    for never in [Duration::ZERO, Duration::from_millis(20_160 * 60_000 + 1), Duration::MAX] {
        let e = Settings::new().pauses(never).unwrap_err();
        assert_eq!((e.kind(), e.to_string().contains("1 min to 336 h")), (ErrorKind::Invalid, true), "{e}");
    }
    Settings::new().pauses(Duration::from_secs(20_160 * 60)).unwrap();
}

#[tokio::test(start_paused = true)]
async fn another_image_is_registered_with_all_the_rest_and_the_tags_but_those_of_aws() {
    let fleet = Fleet::canary();
    let (aws, service) = (&fleet.aws, fleet.service());
    for (key, value) in
        [("aws:cloudformation:stack-name", "shop"), ("team", "checkout"), ("AWS:other", "x"), ("awsome", "aws-ish")]
    {
        aws.ecs().tag("checkout:1", key, value);
    }
    for action in REGISTER {
        aws.deny(action.action);
        let e = service.register("checkout", "registry.example/checkout:new").await.unwrap_err();
        assert_eq!((e.kind(), e.to_string().contains(action.action)), (ErrorKind::Denied, true), "{e}");
        assert!(service.registering_policy().to_string().contains(action.action));
        aws.allow(action.action);
    }
    let made = service.register("checkout", "registry.example/checkout:new").await.unwrap();
    let ecs = aws.account().ecs();
    let read = async |name: &str| {
        let call = ecs.describe_task_definition().task_definition(name).include(TaskDefinitionField::Tags);
        call.send().await.unwrap()
    };
    let (old, new) = (read("checkout:1").await, read(made.id.as_str()).await);
    let tags: Vec<_> = new.tags().iter().map(|it| (it.key().unwrap(), it.value().unwrap())).collect();
    assert_eq!(tags, [("team", "checkout"), ("awsome", "aws-ish")]);
    let (old, new) = (old.task_definition().unwrap(), new.task_definition().unwrap());
    assert_eq!((new.family(), new.network_mode()), (old.family(), old.network_mode()));
    let (old, new) = (&old.container_definitions()[0], &new.container_definitions()[0]);
    assert_eq!(new.image(), Some("registry.example/checkout:new"));
    assert_eq!((new.name(), new.port_mappings()), (old.name(), old.port_mappings()));
    assert_eq!(aws.ecs().deployments(SHOP.0, SHOP.1).len(), 1, "registering deploys nothing");

    let e = service.register("web", "registry.example/web").await.unwrap_err();
    assert!(e.to_string().contains("has no container web; it has checkout"), "{e}");
}

#[tokio::test(start_paused = true)]
async fn a_canary_is_judged_at_each_step_and_goes_back_by_an_answer_to_the_hook() {
    let fleet = Fleet::canary();
    let outcome = roll_out(&fleet, "checkout:2", steps(), None).await;
    assert!(matches!(outcome.rollout.state, State::Promoted), "{}", outcome.rollout);
    assert_eq!((fleet.status(), fleet.running()), ("SUCCESSFUL".into(), vec![("checkout:2".into(), 4)]));
    assert_eq!(fleet.aws.calls()["ecs:ContinueServiceDeployment"], 1 + 3, "preflight's, and one for each step");

    for from in [10, 100] {
        let fleet = Fleet::canary();
        let outcome = roll_out(&fleet, "checkout:2", steps(), Some(from)).await;
        assert!(matches!(outcome.rollout.state, State::RolledBack { .. }), "{}", outcome.rollout);
        assert_eq!((fleet.status(), fleet.running()), ("ROLLBACK_SUCCESSFUL".into(), vec![("checkout:1".into(), 4)]));
    }

    // Right after a shift ECS bakes by itself: there is no hook to answer yet.
    for (waits, call) in [(0, "ecs:StopServiceDeployment"), (120, "ecs:ContinueServiceDeployment")] {
        let fleet = Fleet::canary();
        let mut driver = Driver::new(&fleet).await;
        driver.drive(Goal::Split(10.try_into().unwrap())).await;
        tokio::time::sleep(Duration::from_secs(waits)).await;
        let before = fleet.aws.calls();
        driver.drive(Goal::Baseline).await;
        let after = fleet.aws.calls();
        let writes = ["ecs:StopServiceDeployment", "ecs:ContinueServiceDeployment", "ecs:UpdateService"];
        let called: Vec<&str> = writes.into_iter().filter(|it| after.get(*it) != before.get(*it)).collect();
        assert_eq!(called, [call], "after {waits} s");
    }
}

#[tokio::test(start_paused = true)]
async fn where_the_stage_before_a_shift_is_told_or_not_the_course_is_the_same() {
    let fleet = Fleet::canary();
    fleet.aws.ecs().tells_pre_production();
    let outcome = roll_out(&fleet, "checkout:2", steps(), None).await;
    assert!(matches!(outcome.rollout.state, State::Promoted), "{}", outcome.rollout);
}

#[tokio::test(start_paused = true)]
async fn tasks_that_fail_are_evidence_and_ecss_own_rollback_is_followed_to_its_end() {
    let fleet = Fleet::rolling();
    let outcome = roll_out(&fleet, "checkout:3", all_at_once(), None).await;
    let told = outcome.rollout.to_string();
    assert!(matches!(outcome.rollout.state, State::RolledBack { .. }), "{told}");
    for words in ["Essential container in task exited", "checkout ended with 1", "circuit breaker"] {
        assert!(told.contains(words), "{words}: {told}");
    }
    assert_eq!((fleet.status(), fleet.running()), ("ROLLBACK_SUCCESSFUL".into(), vec![("checkout:1".into(), 4)]));
    assert_eq!(fleet.aws.calls()["ecs:UpdateService"], 2, "preflight's and ours: it goes back by itself");
}

#[tokio::test(start_paused = true)]
async fn a_rollback_of_ecss_own_that_fails_is_repaired_by_deploying_the_baseline_again() {
    let fleet = Fleet::canary();
    let mut driver = Driver::new(&fleet).await;
    driver.drive(Goal::Split(10.try_into().unwrap())).await;
    fleet.aws.ecs().fail_rollbacks(SHOP.0, SHOP.1, true);
    fleet.aws.ecs().stop(SHOP.0, SHOP.1);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(fleet.status(), "ROLLBACK_FAILED");
    assert!(matches!(driver.look(Goal::Candidate).await.progress, Progress::Failed(_)));
    let due = driver.look(Goal::Baseline).await.progress;
    assert!(matches!(&due, Progress::Due(what) if what.as_str() == "deploy checkout:1 again"), "{due:?}");
    fleet.aws.ecs().fail_rollbacks(SHOP.0, SHOP.1, false);
    driver.drive(Goal::Baseline).await;
    assert_eq!((fleet.status(), fleet.running()), ("SUCCESSFUL".into(), vec![("checkout:1".into(), 4)]));
}

#[tokio::test(start_paused = true)]
async fn a_hook_that_nobody_answers_brings_the_baseline_back_without_us() {
    let fleet = Fleet::canary();
    let mut driver = Driver::new(&fleet).await;
    driver.drive(Goal::Split(10.try_into().unwrap())).await;
    // Longer than ECS's own minute at 10 %, and than the hook waits.
    tokio::time::sleep(Duration::from_secs(60 * 62)).await;
    assert_eq!(fleet.status(), "ROLLBACK_SUCCESSFUL");
    let look = driver.look(Goal::Candidate).await;
    assert!(matches!(&look.progress, Progress::Failed(why) if why.as_str().contains("timed out")), "{look:?}");
    let look = driver.look(Goal::Baseline).await;
    assert_eq!((look.progress, look.weight), (Progress::Reached, Some(Weight::NONE)));
    assert!(look.parts.iter().all(|part| part.serves == Serves::Baseline) && !look.parts.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_late_update_gets_no_traffic_and_is_taken_back_by_ecs() {
    let fleet = Fleet::canary();
    fleet.aws.ecs().deploy(SHOP.0, SHOP.1, "checkout:2");
    let mut shares = Vec::new();
    while !fleet.status().starts_with("ROLLBACK_SUCC") {
        shares.extend(fleet.aws.ecs().last(SHOP.0, SHOP.1).unwrap().weight);
        tokio::time::sleep(Duration::from_secs(10)).await;
    }
    assert!(shares.iter().all(|share| *share == 0.0), "{shares:?}");
    assert_eq!(fleet.running(), [("checkout:1".into(), 4)]);
}

#[tokio::test(start_paused = true)]
async fn a_driver_that_is_too_late_changes_nothing() {
    let fleet = Fleet::canary();
    let mut driver = Driver::new(&fleet).await;
    driver.drive(Goal::Split(Weight::NONE)).await;
    let version = driver.look(Goal::Candidate).await.version;
    let late = driver.save(Goal::Candidate, &version);
    driver.drive(Goal::Baseline).await;
    let e = driver.send(&late).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Conflict, "{e}");
    let deployments = fleet.aws.ecs().deployments(SHOP.0, SHOP.1).len();
    let back = driver.save(Goal::Baseline, &version);
    assert_eq!(driver.send(&back).await.unwrap_err().kind(), ErrorKind::Conflict);
    assert_eq!(fleet.aws.ecs().deployments(SHOP.0, SHOP.1).len(), deployments);
}

/// Longer than the SDK tries: a request that is lost on the way back is not waited out for five minutes.
#[tokio::test(start_paused = true)]
async fn a_way_back_that_nobody_hears_is_asked_for_again_until_somebody_does() {
    for (waits, call) in [(0, "ecs:StopServiceDeployment"), (120, "ecs:ContinueServiceDeployment")] {
        for trouble in [Trouble::LoseRequest, Trouble::LoseAnswer] {
            let fleet = Fleet::canary();
            let mut driver = Driver::new(&fleet).await;
            driver.backend = Arc::new(fleet.service());
            driver.drive(Goal::Split(10.try_into().unwrap())).await;
            tokio::time::sleep(Duration::from_secs(waits)).await;
            let version = driver.look(Goal::Baseline).await.version;
            let attempt = driver.save(Goal::Baseline, &version);
            let tries = fleet.aws.calls().get(call).copied().unwrap_or_default();
            fleet.aws.fault(Fault::of(call, trouble.clone()).times(7));
            let began = fleet.aws.clock().now();
            // A repetition of what landed is refused, which is as good.
            let sent = driver.send(&attempt).await;
            assert!(sent.as_ref().map_or_else(|e| e.kind() == ErrorKind::Conflict, |()| true), "{call}: {sent:?}");
            let took = fleet.aws.clock().now().duration_since(began).as_secs();
            assert!(took < 150, "{trouble:?} of {call}: {took} s");
            assert!(fleet.aws.calls()[call] > tries + 3, "no more than the SDK's own tries");
            let status = fleet.aws.ecs().last(SHOP.0, SHOP.1).unwrap().status;
            assert!(status.starts_with("ROLLBACK_"), "{trouble:?} of {call}: {status}");
        }
    }
    let Versions::Unchecked { settle } = Fleet::canary().service().capabilities().versions else {
        panic!("ECS checks no versions")
    };
    assert_eq!(settle, Duration::from_secs(300), "as long as AWS takes a signed request");
}

/// By then users have met it for long enough: nobody waits until a stop that was late is past landing.
#[tokio::test(start_paused = true)]
async fn a_stop_that_comes_too_late_holds_up_no_deployment_of_the_baseline() {
    for lost in [false, true] {
        let fleet = Fleet::rolling();
        let mut driver = Driver::new(&fleet).await;
        driver.backend = Arc::new(fleet.service());
        let all = Goal::Split(Weight::ALL);
        let look = driver.look(all).await;
        let update = driver.save(all, &look.version);
        driver.send(&update).await.unwrap();
        let look = loop {
            let look = driver.look(Goal::Baseline).await;
            if matches!(&look.progress, Progress::Due(it) if it.as_str().contains("stop the deployment")) {
                break look;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        };
        let stop = driver.save(Goal::Baseline, &look.version);
        if lost {
            fleet.aws.fault(Fault::of("ecs:StopServiceDeployment", Trouble::LoseRequest).times(u64::MAX));
            driver.send(&stop).await.unwrap_err();
        }
        while fleet.status() != "SUCCESSFUL" {
            assert!(!driver.look(Goal::Baseline).await.landed, "there is something to stop");
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        if !lost {
            assert_eq!(driver.send(&stop).await.unwrap_err().kind(), ErrorKind::Conflict);
        }
        let look = driver.look(Goal::Baseline).await;
        assert!(
            matches!(&look.progress, Progress::Due(it) if it.as_str().contains("deploy checkout:1 again")),
            "{look:?}"
        );
        assert!(look.landed, "{lost}: there is nothing left to stop: {look:?}");
        driver.drive(Goal::Baseline).await;
        assert_eq!(fleet.running(), [("checkout:1".into(), 4)]);
        assert_eq!(fleet.aws.ecs().deployments(SHOP.0, SHOP.1).len(), 3, "one each way");
    }
}

/// A process died at the canary, and the next cannot know what it had sent. The traffic does not wait until that has settled.
#[tokio::test(start_paused = true)]
async fn who_takes_a_rollout_over_returns_the_traffic_at_once() {
    for fleet in [Fleet::canary(), Fleet::unpaused()] {
        let paused = fleet.shape.is_paused();
        let engine = |store: &Memory, gate: &Scripted| {
            let engine = Engine::builder(store.clone()).clock(fleet.aws.clock().clone()).build().unwrap();
            let target = Target::new("shop/checkout", fleet.service()).unwrap();
            engine.register(target.gate(gate.clone(), Policy::default())).unwrap();
            engine
        };
        let plan = if paused { Plan::canary([10, 100], Duration::from_secs(600)).unwrap() } else { all_at_once() };
        let (first, gate) = (Memory::new(), Scripted::healthy("errors"));
        let died = engine(&first, &gate);
        let new = NewRollout::new("shop/checkout", Revision::new("checkout:2").unwrap(), plan).unwrap();
        let handle = died.start(new).await.unwrap();
        while handle.status().weight.is_none_or(|weight| weight == Weight::NONE) {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        tokio::time::sleep(Duration::from_secs(20)).await;
        // The record as it was left, in a store where the process that wrote it beats no more.
        let (record, _) = first.load(handle.id()).await.unwrap();
        died.shutdown(Duration::from_secs(5)).await;
        let second = Memory::new();
        second.create(&record).await.unwrap();
        let next = engine(&second, &gate);
        let handle = next.resume_all().await.unwrap().handles.remove(0);
        let tripped = fleet.aws.clock().now();
        gate.set(Answer::Unhealthy);
        gate.wake();
        while !fleet.status().starts_with("ROLLBACK_") {
            let took = fleet.aws.clock().now().duration_since(tripped);
            assert!(took.as_secs() < 15, "{paused}: {} has the traffic for {took:#} more", fleet.status());
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        let ended = handle.finished().await;
        assert!(matches!(ended.rollout.state, State::RolledBack { .. }), "{ended}");
        assert_eq!(fleet.running(), [("checkout:1".into(), 4)]);
        let deployments = fleet.aws.ecs().deployments(SHOP.0, SHOP.1).len();
        assert_eq!(deployments, 2, "one deployment, taken back once");
        next.shutdown(Duration::from_secs(5)).await;
    }
}

/// ECS's alarm rollback and our gate, in either order and at once.
#[tokio::test(start_paused = true)]
async fn the_race_between_ecss_own_alarm_and_our_gate_ends_once() {
    for ours in [30_u64, 60, 89, 90, 91, 120] {
        let alarms = json!({ "alarmNames": ["errors"], "enable": true, "rollback": true });
        let canary = json!({ "canaryPercent": 10.0, "canaryBakeTimeInMinutes": 1 });
        let config = json!({ "strategy": "CANARY", "canaryConfiguration": canary, "lifecycleHooks": pauses(60),
            "alarms": alarms });
        let fleet = Fleet::of(Shape::canary(10).unwrap().paused(), config);
        fleet.aws.cloudwatch().alarm("errors");
        let engine = Engine::builder(Memory::new()).clock(fleet.aws.clock().clone()).build().unwrap();
        let (gate, signal) = rollback_core::gate::signal("pages").unwrap();
        signal.healthy("so far");
        let target = Target::new("shop/checkout", fleet.service()).unwrap().gate(gate, Policy::default());
        engine.register(target).unwrap();
        let plan = Plan::canary([10, 100], Duration::from_secs(600)).unwrap();
        let new =
            NewRollout::new("shop/checkout", Revision::new("checkout:2").unwrap(), plan).unwrap().by("ana").unwrap();
        let begun = fleet.aws.clock().now();
        let handle = engine.start(new).await.unwrap();
        fleet.aws.alarm_at("errors", begun + Duration::from_secs(90));
        tokio::time::sleep(Duration::from_secs(ours)).await;
        signal.unhealthy("a person says so");
        let outcome = handle.finished().await;
        engine.shutdown(Duration::from_secs(60)).await;
        assert!(matches!(outcome.rollout.state, State::RolledBack { .. }), "{ours}: {}", outcome.rollout);
        assert_eq!((fleet.status(), fleet.running()), ("ROLLBACK_SUCCESSFUL".into(), vec![("checkout:1".into(), 4)]));
        assert_eq!(fleet.aws.ecs().deployments(SHOP.0, SHOP.1).len(), 2, "{ours}: one deployment, taken back once");
    }
}

#[tokio::test(start_paused = true)]
async fn five_minutes_of_throttling_are_borne_on_the_way_forward_and_back() {
    for unhealthy in [None, Some(10)] {
        let fleet = Fleet::canary();
        let aws = fleet.aws.clone();
        tokio::spawn(async move {
            // After preflight and the first update.
            while aws.ecs().deployments(SHOP.0, SHOP.1).len() < 2 {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            tokio::time::sleep(Duration::from_secs(if unhealthy.is_some() { 100 } else { 5 })).await;
            aws.fault(Fault::any(Trouble::Throttle).times(u64::MAX));
            tokio::time::sleep(Duration::from_secs(300)).await;
            aws.forget_faults();
        });
        let outcome = roll_out(&fleet, "checkout:2", steps(), unhealthy).await;
        let promoted = matches!(outcome.rollout.state, State::Promoted);
        assert_eq!(promoted, unhealthy.is_none(), "{}", outcome.rollout);
        let serves = if promoted { "checkout:2" } else { "checkout:1" };
        assert_eq!(fleet.running(), [(serves.to_owned(), 4)]);
    }
}

#[tokio::test(start_paused = true)]
async fn each_request_may_go_wrong_in_each_way_and_the_end_is_the_same() {
    let faults = || {
        [
            Trouble::LoseAnswer,
            Trouble::LoseRequest,
            Trouble::Throttle,
            Trouble::Page { status: 502, body: "<html>Bad Gateway</html>" },
            Trouble::Refuse(Refusal::new(500, "ServerException", "An error occurred")),
            Trouble::DelayAnswer(Duration::from_secs(40)),
            Trouble::DelayRequest(Duration::from_secs(5)),
        ]
    };
    for (unhealthy, serves) in [(None, "checkout:2"), (Some(10), "checkout:1")] {
        for (action, writes) in [
            ("ecs:UpdateService", 2),
            ("ecs:ContinueServiceDeployment", if unhealthy.is_some() { 2 } else { 4 }),
            ("ecs:StopServiceDeployment", if unhealthy.is_some() { 2 } else { 1 }),
        ] {
            // The first of each is preflight's.
            for at in 0..writes {
                for fault in faults() {
                    let fleet = Fleet::canary();
                    fleet.aws.fault(Fault::of(action, fault.clone()).after(at));
                    let outcome = roll_out(&fleet, "checkout:2", steps(), unhealthy).await;
                    let what = format!("{unhealthy:?}, {fault:?} of {action} {at}: {}", outcome.rollout);
                    let promoted = matches!(outcome.rollout.state, State::Promoted);
                    assert_eq!(promoted, unhealthy.is_none(), "{what}");
                    tokio::time::sleep(Duration::from_secs(120)).await;
                    assert_eq!(fleet.running(), [(serves.to_owned(), 4)], "{what}");
                    assert_eq!(fleet.aws.ecs().deployments(SHOP.0, SHOP.1).len(), 2, "deployed twice: {what}");
                }
            }
        }
    }
}

/// How long from a breach to the request that takes the candidate back being in ECS's hands: by an answer to a hook, and by
/// a stop. In real time, over the SDK in process; run with `--ignored --nocapture`, in release for a figure worth telling.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement"]
async fn measured_from_a_breach_to_the_request_that_goes_back() {
    use tokio::time::Instant;
    for (fleet, call) in [
        (Fleet::blue_green as fn() -> Fleet, "ecs:ContinueServiceDeployment"),
        (Fleet::unpaused, "ecs:StopServiceDeployment"),
    ] {
        let mut times = Vec::new();
        for _ in 0..30 {
            let fleet = fleet();
            let engine = Engine::builder(Memory::new()).clock(fleet.aws.clock().clone()).build().unwrap();
            let (gate, signal) = rollback_core::gate::signal("pages").unwrap();
            signal.healthy("so far");
            let target = Target::new("shop/checkout", fleet.service()).unwrap().gate(gate, Policy::default());
            let often = Duration::from_millis(50);
            engine.register(target.look_every(often, often)).unwrap();
            let plan = if fleet.shape.is_paused() {
                Plan::blue_green(Duration::from_secs(600), Duration::from_secs(600))
            } else {
                Plan::all_at_once(Duration::from_secs(600))
            };
            let new = NewRollout::new("shop/checkout", Revision::new("checkout:2").unwrap(), plan.unwrap()).unwrap();
            let handle = engine.start(new.by("ana").unwrap()).await.unwrap();
            while fleet.aws.ecs().deployments(SHOP.0, SHOP.1).len() < 2 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            // To where it bakes, or is on its way.
            fleet.aws.clock().advance(Duration::from_secs(60));
            let ready = |state: &State| !fleet.shape.is_paused() || matches!(state, State::Baking { .. });
            while !ready(&handle.status().state) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            // The clock was put forward, so nothing is believed before the next beat.
            tokio::time::sleep(Duration::from_millis(1500)).await;
            let before = fleet.aws.calls().get(call).copied().unwrap_or_default();
            let breach = Instant::now();
            signal.unhealthy("a measurement");
            while fleet.aws.calls().get(call).copied().unwrap_or_default() == before {
                tokio::task::yield_now().await;
            }
            times.push(breach.elapsed());
            engine.shutdown(Duration::from_secs(1)).await;
        }
        times.sort_unstable();
        eprintln!(
            "breach to {call}: median {:?}, 99 % within {:?}",
            times[times.len() / 2],
            times[times.len() * 99 / 100]
        );
    }
}
