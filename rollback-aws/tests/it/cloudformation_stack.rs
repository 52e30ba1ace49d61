//! A CloudFormation stack as a backend: the conformance suite, the sweeps, and what is special about it.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use rollback_aws::{
    cloudformation::{CANCEL, CONTINUE, DESCRIBE, ROLL_BACK, ROLLOUT, Stack, Triggers, Update},
    testing::{
        Refusal, Simulator,
        cloudformation::Snapshot,
        cloudwatch::State as AlarmState,
        fault::{Fault, Trouble},
    },
};
use rollback_core::{
    ErrorKind, Result,
    backend::{DeploymentBackend, Readiness},
    clock::Clock as _,
    engine::{Engine, NewRollout, Outcome as Ended, Target},
    gate::Policy,
    model::{Change, Goal, Progress, Revision, Weight},
    plan::{Deadlines, Plan},
    state::{Cause, State},
    store::Memory,
    testing::{
        backend::{self, Bench, Driver, Outcome},
        gates::Scripted,
        sweep::{Scenario, Sweep},
    },
};

/// The value of a parameter, which no error may show.
const SECRET: &str = "swordfish-in-a-parameter";
/// The value of a NoEcho parameter, which nobody can read.
const HIDDEN: &str = "hidden-from-everybody";

/// A template of a function, a table and what more is said.
fn template(more: &str) -> String {
    format!(
        r#"{{"Parameters": {{
               "Image": {{"Type": "String"}}, "Mode": {{"Type": "String", "Default": "plain"}},
               "Password": {{"Type": "String", "NoEcho": true}}
             }},
             "Resources": {{
               "Function": {{"Type": "AWS::Lambda::Function", "Properties": {{"Image": {{"Ref": "Image"}}}}}},
               "Table": {{"Type": "AWS::DynamoDB::Table", "Properties": {{"Mode": {{"Ref": "Mode"}}, "Key": {{"Ref": "Password"}}}}}}
               {more}
             }}}}"#
    )
}

/// The stack `shop` at `v1`, and what it is to be updated to.
struct Shop {
    aws: Simulator,
    pristine: Snapshot,
    candidate: Revision,
}

impl Shop {
    async fn new() -> Self {
        Self::updated(&Update::template(template(r#", "Queue": {"Type": "AWS::SQS::Queue"}"#)).parameter("Image", "v2"))
            .await
    }

    async fn updated(update: &Update) -> Self {
        let aws = Simulator::new();
        aws.cloudformation().takes(Duration::from_secs(3));
        aws.cloudformation().create("shop", &template(""), &[("Image", "v1"), ("Mode", SECRET), ("Password", HIDDEN)]);
        let candidate = stack(&aws).revision(update).await.expect("a good update");
        let pristine = aws.cloudformation().snapshot();
        Self { aws, pristine, candidate }
    }

    fn stack(&self) -> Stack {
        stack(&self.aws)
    }

    fn status(&self) -> String {
        self.aws.cloudformation().status("shop").expect("it is there")
    }

    fn image(&self) -> String {
        self.aws.cloudformation().parameter("shop", "Image").expect("it is there")
    }
}

fn stack(aws: &Simulator) -> Stack {
    Stack::new(&aws.account(), "shop").expect("a good name")
}

#[async_trait]
impl Bench for Shop {
    async fn reset(&self) {
        self.aws.forget_faults();
        self.aws.cloudformation().restore(&self.pristine);
    }

    async fn connect(&self) -> Arc<dyn DeploymentBackend> {
        // What is promised of late calls is promised for any settle time: a short one makes the sweeps quick.
        Arc::new(self.stack().settle(Duration::from_secs(20)))
    }

    fn candidate(&self) -> Revision {
        self.candidate.clone()
    }

    async fn settle(&self) {
        tokio::time::sleep(Duration::from_secs(4)).await;
    }

    async fn drift(&self) -> bool {
        let parameters = [("Image", "v3"), ("Mode", SECRET), ("Password", HIDDEN)];
        while self.status() != "UPDATE_COMPLETE" {
            self.settle().await;
        }
        self.aws.cloudformation().update("shop", &template(""), &parameters);
        true
    }

    fn secret(&self) -> Option<String> {
        Some(SECRET.into())
    }
}

#[tokio::test(start_paused = true)]
async fn every_promise_of_a_backend_is_kept() {
    let shop = Shop::new().await;
    let skipped: Vec<_> =
        backend::all(&shop).await.into_iter().filter(|(_, outcome)| *outcome != Outcome::Kept).map(|it| it.0).collect();
    assert_eq!(
        skipped,
        [
            "the_first_effect_back_returns_the_traffic",
            "an_accepted_shift_spends_its_version",
            "a_stale_version_moves_nothing",
            "of_two_drivers_one_is_refused",
            "a_call_from_before_a_rollback_is_refused_after_it",
        ],
        "what CloudFormation cannot promise: it checks no versions, and nothing stands beside the candidate"
    );
}

macro_rules! sweeps {
    ($($name:ident: $kind:ident;)*) => {$(
        #[tokio::test(start_paused = true)]
        async fn $name() {
            let shop = Shop::new().await;
            let mut scenarios = Scenario::ready_made(&shop).await;
            // Where there are no weights, a canary is the same as all at once.
            scenarios.retain(|it| !matches!(it.name(), "canary" | "bad canary"));
            eprintln!("{}: {}", stringify!($kind), Sweep::of(&shop).scenarios(scenarios).$kind().await);
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

fn all_at_once() -> Plan {
    Plan::all_at_once(Duration::from_secs(60)).unwrap()
}

async fn prove(shop: &Shop, stack: &Stack) -> Readiness {
    let driver = Driver::new(shop).await;
    stack.preflight(&driver.change, &all_at_once()).await.unwrap()
}

fn said(notes: &[rollback_core::model::Note]) -> String {
    notes.iter().map(|it| it.as_str()).collect::<Vec<_>>().join("; ")
}

#[derive(Clone, Copy, Debug)]
enum Gate {
    Good,
    Bad,
}

async fn start(shop: &Shop, stack: Stack, gate: Gate) -> rollback_core::engine::Handle {
    let engine = Engine::builder(Memory::new()).clock(shop.aws.clock().clone()).build().unwrap();
    let gate = match gate {
        Gate::Good => Scripted::healthy("errors"),
        Gate::Bad => Scripted::unhealthy_from("errors", Weight::ALL),
    };
    engine.register(Target::new("shop", stack).unwrap().gate(gate, Policy::default())).unwrap();
    let hours = Deadlines { shift: Duration::from_secs(7200), ..Deadlines::default() };
    let plan = all_at_once().with_deadlines(hours).unwrap();
    let new = NewRollout::new("shop", shop.candidate.clone(), plan).unwrap().by("ana").unwrap();
    engine.start(new).await.unwrap()
}

async fn roll_out(shop: &Shop, gate: Gate) -> Ended {
    start(shop, shop.stack(), gate).await.finished().await
}

async fn until(shop: &Shop, status: &str) {
    for _ in 0..3000 {
        if shop.status() == status {
            return;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    panic!("the stack is {}, and never became {status}", shop.status());
}

#[tokio::test(start_paused = true)]
async fn an_update_that_goes_well_is_promoted_and_a_bad_one_is_updated_back() {
    let shop = Shop::new().await;
    let ended = roll_out(&shop, Gate::Good).await;
    assert_eq!(ended.rollout.state, State::Promoted, "{ended}");
    assert_eq!((shop.image(), shop.status()), ("v2".into(), "UPDATE_COMPLETE".into()));

    let tagged = Update::same_template().parameter("Image", "v2").tags([("team", "shop")]);
    let shop = Shop::updated(&tagged).await;
    let before = shop.stack().baseline().await.unwrap().id;
    let ended = roll_out(&shop, Gate::Bad).await;
    assert!(matches!(ended.rollout.state, State::RolledBack { .. }), "{ended}");
    assert_eq!((shop.image(), shop.status()), ("v1".into(), "UPDATE_COMPLETE".into()));
    assert_eq!(shop.stack().baseline().await.unwrap().id, before, "template, parameters and tags");
    assert_eq!(shop.aws.cloudformation().parameter("shop", "Password").unwrap(), HIDDEN, "it was sent as its mask");
}

#[tokio::test(start_paused = true)]
async fn an_update_that_runs_is_cancelled_and_followed_home() {
    let shop = Shop::new().await;
    let handle = start(&shop, shop.stack(), Gate::Good).await;
    until(&shop, "UPDATE_IN_PROGRESS").await;
    handle.abort("ana", "a test").await.unwrap();
    let ended = handle.finished().await;
    assert!(matches!(ended.rollout.state, State::RolledBack { cause: Cause::Aborted { .. } }), "{ended}");
    assert_eq!((shop.image(), shop.status()), ("v1".into(), "UPDATE_ROLLBACK_COMPLETE".into()));
    assert_eq!(shop.aws.calls().get("cloudformation:CancelUpdateStack"), Some(&1));
    assert_eq!(shop.aws.calls()["cloudformation:UpdateStack"], 2, "preflight's, and the one that was cancelled");
    // And from there the next rollout starts.
    let ended = roll_out(&shop, Gate::Good).await;
    assert_eq!(ended.rollout.state, State::Promoted, "{ended}");
}

#[tokio::test(start_paused = true)]
async fn a_resource_that_fails_is_told_with_cloudformations_reason() {
    let shop = Shop::new().await;
    shop.aws.cloudformation().fail("shop", "Function", "The image v2 does not exist");
    let ended = roll_out(&shop, Gate::Good).await;
    let State::RolledBack { cause: Cause::Failed { why } } = &ended.rollout.state else { panic!("{ended}") };
    for words in ["rolled the update back", "Function (AWS::Lambda::Function)", "The image v2 does not exist"] {
        assert!(why.as_str().contains(words), "{why}");
    }
    assert_eq!((shop.image(), shop.status()), ("v1".into(), "UPDATE_ROLLBACK_COMPLETE".into()));
    assert_eq!(shop.aws.calls()["cloudformation:UpdateStack"], 2, "CloudFormation's own way back is enough");
}

#[tokio::test(start_paused = true)]
async fn a_rollback_that_fails_is_continued_until_it_takes() {
    let shop = Shop::new().await;
    shop.aws.cloudformation().fail("shop", "Table", "it is busy");
    shop.aws.cloudformation().fail_rollback("shop", "Function", "the old image was deleted");
    // The table differs as well, so that the function is changed before the table fails.
    let other = Update::template(template("")).parameter("Image", "v2").parameter("Mode", "other");
    let shop = Shop { candidate: shop.stack().revision(&other).await.unwrap(), ..shop };
    let handle = start(&shop, shop.stack(), Gate::Good).await;
    until(&shop, "UPDATE_ROLLBACK_FAILED").await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(handle.status().state.is_open());
    shop.aws.cloudformation().mend("shop");
    let ended = handle.finished().await;
    assert!(matches!(ended.rollout.state, State::RolledBack { .. }), "{ended}");
    assert_eq!((shop.image(), shop.status()), ("v1".into(), "UPDATE_ROLLBACK_COMPLETE".into()));
    assert!(shop.aws.calls()[CONTINUE.action] >= 2, "{:?}", shop.aws.calls());
}

#[tokio::test(start_paused = true)]
async fn a_rollback_that_never_takes_is_stuck_and_names_the_resource() {
    let shop = Shop::new().await;
    let other = Update::template(template("")).parameter("Image", "v2").parameter("Mode", "other");
    let shop = Shop { candidate: shop.stack().revision(&other).await.unwrap(), ..shop };
    shop.aws.cloudformation().fail("shop", "Table", "it is busy");
    shop.aws.cloudformation().fail_rollback("shop", "Function", "the old image was deleted");
    let ended = roll_out(&shop, Gate::Good).await;
    let State::Stuck { why, .. } = &ended.rollout.state else { panic!("{ended}") };
    assert!(
        why.as_str().contains("the old image was deleted") || ended.to_string().contains("continue the rollback"),
        "{ended}"
    );
    assert_eq!(shop.status(), "UPDATE_ROLLBACK_FAILED");
}

#[tokio::test(start_paused = true)]
async fn rollback_triggers_are_set_and_undo_an_update_in_their_monitoring_time() {
    let shop = Shop::new().await;
    shop.aws.cloudwatch().alarm("errors");
    let arn = "arn:aws:cloudwatch:us-east-1:123456789012:alarm:errors";
    let watched = || Triggers::new().alarm(arn).unwrap().monitor(Duration::from_secs(600)).unwrap();
    let handle = start(&shop, shop.stack().triggers(watched()), Gate::Good).await;
    until(&shop, "UPDATE_IN_PROGRESS").await;
    assert_eq!(shop.aws.cloudformation().triggers("shop"), [arn]);
    // All resources are updated after half a minute; then it waits.
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert_eq!(shop.status(), "UPDATE_IN_PROGRESS");
    shop.aws.alarm_at("errors", shop.aws.clock().now());
    let ended = { handle }.finished().await;
    let State::RolledBack { cause: Cause::Failed { why } } = &ended.rollout.state else { panic!("{ended}") };
    assert!(why.as_str().contains(arn), "{why}");
    assert_eq!(shop.image(), "v1");
}

#[tokio::test(start_paused = true)]
async fn a_rollback_trigger_that_would_undo_the_update_is_refused_before_it() {
    let shop = Shop::new().await;
    let arn = |region: &str, account: &str, name: &str| format!("arn:aws:cloudwatch:{region}:{account}:alarm:{name}");
    let here = |name: &str| arn("us-east-1", "123456789012", name);
    let stack = |arn: String| shop.stack().triggers(Triggers::new().alarm(arn).unwrap());
    let alarms = rollback_aws::cloudwatch::Alarms::new(&shop.aws.account());
    let looking = async |arn: String| prove(&shop, &stack(arn).alarms(&alarms)).await;

    assert!(said(&looking(here("a:b")).await.refused).contains("rollback trigger a:b is not there"));
    shop.aws.cloudwatch().alarm("a:b");
    // What was read in the same instant counts as read now.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let found = looking(here("a:b")).await;
    assert_eq!(said(&found.refused), "");
    assert!(
        said(&found.proved).contains("rollback trigger a:b does not fire")
            && !said(&found.not_provable).contains("quiet")
    );
    shop.aws.alarm_at("a:b", shop.aws.clock().now());
    tokio::time::sleep(Duration::from_secs(1)).await;
    let found = looking(here("a:b")).await;
    assert!(said(&found.refused).contains("rollback trigger a:b fires already"), "{found:?}");
    shop.aws.cloudwatch().at("a:b", shop.aws.clock().now(), Some(AlarmState::InsufficientData));
    tokio::time::sleep(Duration::from_secs(1)).await;
    let found = looking(here("a:b")).await;
    assert!(said(&found.not_provable).contains("that rollback trigger a:b sees anything: it has no data"), "{found:?}");
    assert!(!said(&found.proved).contains("a:b"), "{found:?}");
    // Who may not look is told what to allow, and everything else that was found.
    shop.aws.deny("cloudwatch:DescribeAlarms");
    tokio::time::sleep(Duration::from_secs(1)).await;
    let found = looking(here("a:b")).await;
    assert!(said(&found.refused).contains("cloudwatch:DescribeAlarms") && !found.proved.is_empty(), "{found:?}");
    shop.aws.allow("cloudwatch:DescribeAlarms");

    let found = prove(&shop, &stack(here("a:b"))).await;
    assert!(said(&found.not_provable).contains("Stack::alarms looks") && found.refused.is_empty(), "{found:?}");
    // Nobody looks for it elsewhere, so no alarms are needed to tell.
    let found = prove(&shop, &stack(arn("eu-west-1", "123456789012", "a:b"))).await;
    assert!(said(&found.refused).contains("is in eu-west-1, and stack shop in us-east-1"), "{found:?}");
    let found = looking(arn("us-east-1", "210987654321", "quiet")).await;
    assert!(said(&found.not_provable).contains("it is of another account") && found.refused.is_empty(), "{found:?}");

    // Those that the stack has stay, and undo an update as well.
    let shop = Shop::new().await;
    shop.aws.cloudwatch().alarm("errors");
    let watched = Triggers::new().alarm(here("errors")).unwrap();
    let ended = { start(&shop, shop.stack().triggers(watched), Gate::Good).await }.finished().await;
    assert_eq!(ended.rollout.state, State::Promoted, "{ended}");
    let next = shop.stack().revision(&Update::same_template().parameter("Image", "v3")).await.unwrap();
    let shop = Shop { candidate: next, ..shop };
    shop.aws.alarm_at("errors", shop.aws.clock().now());
    tokio::time::sleep(Duration::from_secs(1)).await;
    let alarms = rollback_aws::cloudwatch::Alarms::new(&shop.aws.account());
    let found = prove(&shop, &shop.stack().alarms(&alarms)).await;
    assert!(said(&found.refused).contains("rollback trigger errors fires"), "{found:?}");
}

#[tokio::test(start_paused = true)]
async fn an_alarm_that_fires_cannot_undo_the_way_back() {
    let shop = Shop::new().await;
    shop.aws.cloudwatch().alarm("errors");
    let arn = "arn:aws:cloudwatch:us-east-1:123456789012:alarm:errors";
    let watched = Triggers::new().alarm(arn).unwrap();
    let ended = { start(&shop, shop.stack().triggers(watched.clone()), Gate::Good).await }.finished().await;
    assert_eq!(ended.rollout.state, State::Promoted, "{ended}");
    // The next one: its baseline has triggers, and one of them fires while the update bakes.
    let next = shop.stack().revision(&Update::same_template().parameter("Image", "v3")).await.unwrap();
    let shop = Shop { candidate: next, ..shop };
    let mut handle = start(&shop, shop.stack().triggers(watched), Gate::Good).await;
    while !matches!(handle.status().state, State::Baking { .. }) {
        handle.changed().await.unwrap();
    }
    until(&shop, "UPDATE_COMPLETE").await;
    shop.aws.alarm_at("errors", shop.aws.clock().now());
    handle.abort("ana", "a test").await.unwrap();
    let ended = handle.finished().await;
    assert!(matches!(ended.rollout.state, State::RolledBack { .. }), "{ended}");
    assert_eq!((shop.image(), shop.status()), ("v2".into(), "UPDATE_COMPLETE".into()));
    assert_eq!(shop.aws.cloudformation().triggers("shop"), [""; 0]);
    let look = shop.stack().observe(&ended.rollout.change, Goal::Baseline, None).await.unwrap();
    assert!(said(&look.not_restored).contains("1 rollback triggers"), "{look:?}");
}

#[tokio::test(start_paused = true)]
async fn what_somebody_else_does_is_left_alone() {
    let shop = Shop::new().await;
    let mut handle = start(&shop, shop.stack(), Gate::Good).await;
    while !matches!(handle.status().state, State::Baking { .. }) {
        handle.changed().await.unwrap();
    }
    let parameters = [("Image", "v3"), ("Mode", SECRET), ("Password", HIDDEN)];
    shop.aws.cloudformation().update("shop", &template(""), &parameters);
    let ended = handle.finished().await;
    assert_eq!(ended.rollout.state.name(), "abandoned", "{ended}");
    assert_eq!(shop.aws.calls()["cloudformation:UpdateStack"], 2, "preflight's, and the rollout's one");
}

#[tokio::test(start_paused = true)]
async fn an_update_that_was_cancelled_by_hand_is_a_failure_and_not_drift() {
    let shop = Shop::new().await;
    let handle = start(&shop, shop.stack(), Gate::Good).await;
    until(&shop, "UPDATE_IN_PROGRESS").await;
    shop.aws.cloudformation().cancel("shop");
    let ended = { handle }.finished().await;
    assert!(matches!(ended.rollout.state, State::RolledBack { cause: Cause::Failed { .. } }), "{ended}");
    assert_eq!(shop.image(), "v1");
}

#[tokio::test(start_paused = true)]
async fn each_request_may_go_wrong_in_each_way_and_the_end_is_the_same() {
    for (gate, image) in [(Gate::Good, "v2"), (Gate::Bad, "v1")] {
        for trouble in [
            Trouble::LoseAnswer,
            Trouble::LoseRequest,
            Trouble::Throttle,
            Trouble::Page { status: 502, body: "<html>Bad Gateway</html>" },
            Trouble::Refuse(Refusal::new(500, "InternalFailure", "An error occurred")),
            Trouble::DelayAnswer(Duration::from_secs(40)),
            Trouble::DelayRequest(Duration::from_secs(5)),
            Trouble::DelayRequest(Duration::from_secs(120)),
        ] {
            // The first update is preflight's.
            for at in 1..=2 {
                let shop = Shop::new().await;
                shop.aws.fault(Fault::of("cloudformation:UpdateStack", trouble.clone()).after(at));
                let ended = roll_out(&shop, gate).await;
                let what = format!("{gate:?}, {trouble:?} of update {at}: {ended}");
                assert_eq!(matches!(ended.rollout.state, State::Promoted), matches!(gate, Gate::Good), "{what}");
                tokio::time::sleep(Duration::from_secs(300)).await;
                assert_eq!((shop.image().as_str(), shop.status().as_str()), (image, "UPDATE_COMPLETE"), "{what}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn preflight_says_what_it_proved_and_calls_only_what_its_policy_allows() {
    let shop = Shop::new().await;
    let found = prove(&shop, &shop.stack()).await;
    assert_eq!((said(&found.refused), said(&found.no_way_back)), (String::new(), String::new()));
    let untried = [CANCEL, CONTINUE, ROLL_BACK];
    for permission in ROLLOUT {
        let notes = if untried.contains(permission) { &found.not_provable } else { &found.proved };
        assert!(said(notes).contains(permission.action), "{permission:?}: {found:?}");
    }
    assert!(said(&found.proved).contains("NoEcho parameters (Password)"), "{found:?}");
    assert_eq!(shop.status(), "CREATE_COMPLETE");
    roll_out(&shop, Gate::Bad).await;
    let allowed: Vec<&str> = ROLLOUT.iter().map(|permission| permission.action).collect();
    for called in shop.aws.calls().keys() {
        assert!(allowed.contains(&called.as_str()), "{called} is not in the list");
    }
    assert!(shop.stack().policy().to_string().contains(":stack/shop/*\""), "{}", shop.stack().policy());
}

#[tokio::test(start_paused = true)]
async fn each_permission_that_is_missing_is_named_before_anything_changes() {
    for permission in ROLLOUT.iter().filter(|it| ![CANCEL, CONTINUE, ROLL_BACK, DESCRIBE].contains(it)) {
        let shop = Shop::new().await;
        let driver = Driver::new(&shop).await;
        shop.aws.deny(permission.action);
        // Whoever may not have the candidate's template checked is told so as an error of that check.
        let found = driver.backend.preflight(&driver.change, &all_at_once()).await.unwrap();
        assert!(said(&found.refused).contains(permission.action), "{permission:?}: {:?}", found.refused);
        assert_eq!(shop.status(), "CREATE_COMPLETE");
    }
    let shop = Shop::new().await;
    shop.aws.deny(DESCRIBE.action);
    assert_eq!(shop.stack().baseline().await.expect_err("it may not be read").kind(), ErrorKind::Denied);
}

#[tokio::test(start_paused = true)]
async fn stacks_that_have_no_one_revision_are_refused_with_what_to_do() {
    let shop = Shop::new().await;
    let unknown = Stack::new(&shop.aws.account(), "nobody").unwrap().baseline().await.expect_err("no such stack");
    assert_eq!(unknown.kind(), ErrorKind::NotFound);
    assert!(unknown.to_string().contains("no stack nobody"), "{unknown}");

    let driver = Driver::new(&shop).await;
    let parameters = [("Image", "v3"), ("Mode", SECRET), ("Password", HIDDEN)];
    let refused = async || said(&driver.backend.preflight(&driver.change, &all_at_once()).await.unwrap().refused);
    shop.aws.cloudformation().update("shop", &template(""), &parameters);
    assert_eq!(shop.stack().baseline().await.expect_err("half way").kind(), ErrorKind::Mixed);
    assert!(refused().await.contains("wait until that is over"), "{}", refused().await);
    until(&shop, "UPDATE_COMPLETE").await;
    assert!(refused().await.contains("not at the baseline any more"), "{}", refused().await);

    shop.aws.cloudformation().fail("shop", "Function", "no such image");
    shop.aws.cloudformation().update_with(
        "shop",
        &template(""),
        &[("Image", "v4"), parameters[1], parameters[2]],
        &[("DisableRollback", "true")],
    );
    until(&shop, "UPDATE_FAILED").await;
    assert!(refused().await.contains("aws cloudformation rollback-stack --stack-name shop"), "{}", refused().await);

    shop.reset().await;
    shop.aws.cloudformation().nest("shop", "arn:aws:cloudformation:us-east-1:123456789012:stack/root/1");
    assert!(refused().await.contains("stack/root/1 would undo it"), "{}", refused().await);

    shop.aws.cloudformation().delete("shop");
    shop.aws.cloudformation().create("shop", &template(""), &[("Image", "v1"), ("Mode", SECRET), ("Password", HIDDEN)]);
    assert!(refused().await.contains("another stack"), "{}", refused().await);
    let look = driver.look(Goal::Baseline).await;
    assert!(matches!(look.progress, Progress::Drifted(_)), "{look:?}");
}

#[tokio::test(start_paused = true)]
async fn what_was_changed_outside_of_the_stack_is_told() {
    let shop = Shop::new().await;
    assert!(said(&prove(&shop, &shop.stack()).await.not_provable).contains("drift detection has not run"));
    shop.aws.cloudformation().drift("shop", "DRIFTED");
    assert!(said(&prove(&shop, &shop.stack()).await.not_restored).contains("drift detection has found some"));
}

async fn refusal(shop: &Shop, update: &Update) -> (ErrorKind, String) {
    let e = shop.stack().revision(update).await.expect_err("a bad update");
    (e.kind(), e.chain())
}

#[tokio::test(start_paused = true)]
async fn an_update_that_cannot_work_is_refused_before_there_is_a_revision() {
    let shop = Shop::new().await;
    let role = r#", "Role": {"Type": "AWS::IAM::Role"}"#;
    for (update, kind, words) in [
        (Update::template("{"), ErrorKind::Invalid, "JSON not well-formed"),
        (
            Update::template(template("")).parameter("Colour", "red"),
            ErrorKind::Invalid,
            "it declares Image, Mode, Password",
        ),
        (Update::template(template("")).parameter("Password", "new"), ErrorKind::Unsupported, "is NoEcho"),
        (Update::template(template(role)), ErrorKind::Invalid, r#".capability("CAPABILITY_IAM")"#),
        (Update::template(template(&" ".repeat(60_000))), ErrorKind::Invalid, "use Update::uploaded"),
        (Update::uploaded("https://bucket/none", template("")), ErrorKind::Invalid, "does not exist"),
    ] {
        let (found, why) = refusal(&shop, &update).await;
        assert!(found == kind && why.contains(words), "{found}: {why}");
    }
    let new = template("")
        .replace(r#""Image": {"Type": "String"}"#, r#""Image": {"Type": "String"}, "Zone": {"Type": "String"}"#);
    assert!(refusal(&shop, &Update::template(&new)).await.1.contains("parameter Zone"));
    let given = shop.stack().revision(&Update::template(new).parameter("Zone", "a")).await.unwrap();
    assert_ne!(given.id, shop.candidate.id);
    let same = shop.stack().revision(&Update::same_template()).await.unwrap();
    assert_eq!(same.id, shop.stack().baseline().await.unwrap().id, "an update that changes nothing is the baseline");
}

#[tokio::test(start_paused = true)]
async fn a_way_back_that_is_closed_is_told_before_anything_changes() {
    // The candidate's template has no password any more: what it was is forgotten with it.
    let less = template("")
        .replace(r#""Password": {"Type": "String", "NoEcho": true}"#, r#""Other": {"Type": "String", "Default": ""}"#);
    let shop = Shop::updated(&Update::template(less).parameter("Image", "v2")).await;
    let found = prove(&shop, &shop.stack()).await;
    assert!(said(&found.no_way_back).contains("NoEcho parameter Password"), "{found:?}");

    // A template that is longer than a request must lie somewhere.
    let aws = Simulator::new();
    let long = template(&" ".repeat(60_000));
    let parameters = [("Image", "v1"), ("Mode", SECRET), ("Password", HIDDEN)];
    aws.cloudformation().create("shop", &template(""), &parameters);
    aws.cloudformation().upload("https://bucket/long", &long);
    let uploaded = Update::uploaded("https://bucket/long", long.clone()).parameter("Image", "v2");
    let candidate = stack(&aws).revision(&uploaded).await.unwrap();
    let shop = Shop { pristine: aws.cloudformation().snapshot(), aws, candidate };
    assert_eq!(roll_out(&shop, Gate::Good).await.rollout.state, State::Promoted);

    let next = shop.stack().revision(&Update::template(template("")).parameter("Image", "v3")).await.unwrap();
    let shop = Shop { candidate: next, ..shop };
    let found = prove(&shop, &shop.stack()).await;
    assert!(said(&found.no_way_back).contains("Stack::baseline_at"), "{found:?}");

    let there = shop.stack().baseline_at("https://bucket/long");
    let ended = { start(&shop, there, Gate::Bad).await }.finished().await;
    assert!(matches!(ended.rollout.state, State::RolledBack { .. }), "{ended}");
    assert_eq!(shop.image(), "v2");

    shop.aws.cloudformation().upload("https://bucket/other", r#"{"Resources": {"A": {"Type": "AWS::SNS::Topic"}}}"#);
    let wrong = shop.stack().baseline_at("https://bucket/other");
    let change = Change { baseline: wrong.baseline().await.unwrap(), ..Driver::new(&shop).await.change };
    let found = wrong.preflight(&change, &all_at_once()).await.unwrap();
    assert!(said(&found.no_way_back).contains("is not the one that stack shop has"), "{found:?}");
}

#[tokio::test(start_paused = true)]
async fn a_monitoring_time_that_the_plan_does_not_allow_is_refused() {
    let shop = Shop::new().await;
    let watched = Triggers::new().monitor(Duration::from_secs(3600)).unwrap();
    let found = prove(&shop, &shop.stack().triggers(watched)).await;
    assert!(said(&found.refused).contains("give it a longer deadline"), "{found:?}");
}

#[test]
fn a_name_is_checked() {
    let aws = Simulator::new();
    let made = |name: &str| -> Result<Stack> { Stack::new(&aws.account(), name) };
    for good in ["shop", "Shop-2", "arn:aws:cloudformation:us-east-1:123456789012:stack/shop/1"] {
        assert!(made(good).is_ok(), "{good}");
    }
    for bad in ["", "2shop", "my_shop", "arn:aws:cloudformation:eu-west-1:123456789012:stack/shop/1"] {
        assert_eq!(made(bad).expect_err(bad).kind(), ErrorKind::Invalid);
    }
}
