//! A stage of a pipeline as a backend: the conformance suite, the sweeps, and what is special about it.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use rollback_aws::{
    codepipeline::{ROLL_BACK, ROLLOUT, START, STATE, STOP, Source, Stage},
    testing::{
        Refusal, Simulator,
        codepipeline::Snapshot,
        fault::{Fault, Trouble},
    },
};
use rollback_core::{
    ErrorKind,
    backend::{DeploymentBackend, Readiness},
    engine::{Engine, Handle, NewRollout, Outcome as Ended, Target},
    gate::Policy,
    model::{Change, Goal, Note, Revision, Weight},
    plan::Plan,
    state::{Cause, State},
    store::Memory,
    testing::{
        backend::{self, Bench, Driver, Outcome},
        gates::Scripted,
        sweep::{Scenario, Sweep},
    },
};
use serde_json::json;

/// The commits of the source: what the stage has, what is tried on it, and what somebody else pushes.
const V1: &str = "1111111111111111111111111111111111111111";
const V2: &str = "2222222222222222222222222222222222222222";
const V3: &str = "3333333333333333333333333333333333333333";

/// The pipeline `shop` with its stage `Prod` at `V1`, on which `V2` is tried.
struct Shop {
    aws: Simulator,
    pristine: Snapshot,
}

impl Shop {
    fn new() -> Self {
        Self::of(&["Source", "Build", "Prod"])
    }

    fn of(stages: &[&str]) -> Self {
        let aws = Simulator::new();
        aws.codepipeline().takes(Duration::from_secs(4));
        aws.codepipeline().create("shop", stages, V1);
        let pristine = aws.codepipeline().snapshot();
        Self { aws, pristine }
    }

    fn stage(&self) -> Stage {
        Stage::new(&self.aws.account(), "shop", "Prod").expect("good names")
    }

    fn serves(&self) -> Option<String> {
        self.aws.codepipeline().serves("shop", "Prod")
    }

    fn executions(&self) -> Vec<String> {
        let all = self.aws.codepipeline().executions("shop");
        let name = |id: &str| match id {
            V1 => "v1",
            V2 => "v2",
            V3 => "v3",
            _ => "another",
        };
        all.iter().map(|(kind, revision, status)| format!("{kind} {} {status}", name(revision))).collect()
    }
}

fn commit(id: &str) -> Revision {
    let aws = Simulator::new();
    Stage::new(&aws.account(), "shop", "Prod").unwrap().revision([Source::commit("Source", id)]).unwrap()
}

#[async_trait]
impl Bench for Shop {
    async fn reset(&self) {
        self.aws.forget_faults();
        self.aws.codepipeline().restore(&self.pristine);
    }

    async fn connect(&self) -> Arc<dyn DeploymentBackend> {
        // What is promised of late calls is promised for any settle time: a short one makes the sweeps quick.
        Arc::new(self.stage().settle(Duration::from_secs(20)))
    }

    fn candidate(&self) -> Revision {
        commit(V2)
    }

    async fn settle(&self) {
        tokio::time::sleep(Duration::from_secs(4)).await;
    }

    async fn drift(&self) -> bool {
        self.aws.codepipeline().push("shop", V3);
        true
    }

    fn secret(&self) -> Option<String> {
        Some("simulated-secret-access-key".into())
    }
}

#[tokio::test(start_paused = true)]
async fn every_promise_of_a_backend_is_kept() {
    let shop = Shop::new();
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
        "what CodePipeline cannot promise: it checks no versions, and nothing stands beside the candidate"
    );
}

macro_rules! sweeps {
    ($($name:ident: $kind:ident;)*) => {$(
        #[tokio::test(start_paused = true)]
        async fn $name() {
            let shop = Shop::new();
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

fn said(notes: &[Note]) -> String {
    notes.iter().map(Note::as_str).collect::<Vec<_>>().join("; ")
}

async fn prove(shop: &Shop) -> Readiness {
    let driver = Driver::new(shop).await;
    driver.backend.preflight(&driver.change, &all_at_once()).await.unwrap()
}

#[derive(Clone, Copy, Debug)]
enum Gate {
    Good,
    Bad,
}

async fn start(shop: &Shop, gate: Gate) -> Handle {
    start_with(shop, commit(V2), gate).await
}

async fn start_with(shop: &Shop, candidate: Revision, gate: Gate) -> Handle {
    let engine = Engine::builder(Memory::new()).clock(shop.aws.clock().clone()).build().unwrap();
    let gate = match gate {
        Gate::Good => Scripted::healthy("errors"),
        Gate::Bad => Scripted::unhealthy_from("errors", Weight::ALL),
    };
    engine.register(Target::new("shop", shop.stage()).unwrap().gate(gate, Policy::default())).unwrap();
    engine.start(NewRollout::new("shop", candidate, all_at_once()).unwrap().by("ana").unwrap()).await.unwrap()
}

async fn roll_out(shop: &Shop, gate: Gate) -> Ended {
    start(shop, gate).await.finished().await
}

#[tokio::test(start_paused = true)]
async fn a_good_candidate_goes_through_the_pipeline_and_a_bad_one_is_rolled_back_by_a_new_execution() {
    let shop = Shop::new();
    let ended = roll_out(&shop, Gate::Good).await;
    assert_eq!(ended.rollout.state, State::Promoted, "{ended}");
    assert_eq!(shop.executions(), ["STANDARD v1 Succeeded", "STANDARD v2 Succeeded"]);

    let shop = Shop::new();
    let ended = roll_out(&shop, Gate::Bad).await;
    assert!(matches!(ended.rollout.state, State::RolledBack { .. }), "{ended}");
    assert_eq!(shop.executions(), ["STANDARD v1 Succeeded", "STANDARD v2 Succeeded", "ROLLBACK v1 Succeeded"]);
    assert_eq!(shop.serves().as_deref(), Some(V1));
    // What a rollback brought is a baseline like any other: it is known by the execution that it rolled back to.
    let ended = roll_out(&shop, Gate::Bad).await;
    assert!(matches!(ended.rollout.state, State::RolledBack { .. }), "{ended}");
    assert_eq!(shop.serves().as_deref(), Some(V1));
}

#[tokio::test(start_paused = true)]
async fn what_the_stage_had_before_is_brought_by_its_execution_and_not_built_again() {
    let shop = Shop::new();
    let old = shop.stage().baseline().await.unwrap();
    roll_out(&shop, Gate::Good).await;
    for (gate, serves) in [(Gate::Bad, V2), (Gate::Good, V1)] {
        let ended = { start_with(&shop, old.clone(), gate).await }.finished().await;
        assert_eq!(matches!(ended.rollout.state, State::Promoted), matches!(gate, Gate::Good), "{ended}");
        assert_eq!(shop.serves().as_deref(), Some(serves), "{:?}", shop.executions());
    }
    let started = shop.executions().iter().filter(|it| it.starts_with("STANDARD")).count();
    assert_eq!(started, 2, "{:?}", shop.executions());
    // In another version of the pipeline there is no way to it any more.
    let ended = roll_out(&shop, Gate::Good).await;
    assert_eq!(ended.rollout.state, State::Promoted, "{ended}");
    let (baseline, candidate) = (shop.stage().baseline().await.unwrap(), old);
    let change = Change { candidate, baseline, ..(*ended.rollout.change).clone() };
    shop.aws.codepipeline().edit("shop", |_| {});
    let found = shop.stage().preflight(&change, &all_at_once()).await.unwrap();
    assert!(said(&found.refused).contains("make the revision anew"), "{found:?}");
}

#[tokio::test(start_paused = true)]
async fn an_execution_on_its_way_is_stopped_and_one_in_the_stage_is_rolled_back() {
    for (seconds, executions) in [
        (6, vec!["STANDARD v1 Succeeded", "STANDARD v2 Stopped"]),
        (10, vec!["STANDARD v1 Succeeded", "STANDARD v2 Stopped", "ROLLBACK v1 Succeeded"]),
    ] {
        let shop = Shop::new();
        let handle = start(&shop, Gate::Good).await;
        while shop.executions().len() < 2 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        tokio::time::sleep(Duration::from_secs(seconds)).await;
        handle.abort("ana", "a test").await.unwrap();
        let ended = { handle }.finished().await;
        assert!(matches!(ended.rollout.state, State::RolledBack { cause: Cause::Aborted { .. } }), "{ended}");
        assert_eq!(shop.executions(), executions, "aborted after {seconds} s");
        assert_eq!(shop.serves().as_deref(), Some(V1));
    }
}

#[tokio::test(start_paused = true)]
async fn a_stage_that_fails_is_told_with_its_reason_and_rolled_back() {
    for stage in ["Build", "Prod"] {
        for by_itself in [false, true] {
            let shop = Shop::new();
            shop.aws.codepipeline().fail("shop", stage, Some("the script returned 1"));
            if by_itself {
                shop.aws
                    .codepipeline()
                    .declare("shop", |it| it["stages"][2]["onFailure"] = json!({ "result": "ROLLBACK" }));
            }
            let ended = roll_out(&shop, Gate::Good).await;
            let State::RolledBack { cause: Cause::Failed { why } } = &ended.rollout.state else { panic!("{ended}") };
            assert!(why.as_str().contains("the script returned 1") || by_itself && stage == "Prod", "{why}");
            assert_eq!(shop.serves().as_deref(), Some(V1));
            let rollbacks = shop.executions().iter().filter(|it| it.starts_with("ROLLBACK")).count();
            assert_eq!(
                rollbacks,
                usize::from(stage == "Prod"),
                "one way back, CodePipeline's or ours: {:?}",
                shop.executions()
            );
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_rollback_that_fails_is_asked_for_again_until_it_takes() {
    let shop = Shop::new();
    shop.aws.codepipeline().fail_rollback("shop", "Prod", Some("no capacity"));
    let handle = start(&shop, Gate::Bad).await;
    while shop.executions().iter().filter(|it| *it == "ROLLBACK v1 Failed").count() < 2 {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert!(handle.status().state.is_open());
    shop.aws.codepipeline().fail_rollback("shop", "Prod", None);
    let ended = { handle }.finished().await;
    assert!(matches!(ended.rollout.state, State::RolledBack { .. }), "{ended}");
    assert_eq!(shop.serves().as_deref(), Some(V1));
}

#[tokio::test(start_paused = true)]
async fn what_somebody_else_pushes_is_left_alone() {
    let shop = Shop::new();
    let mut handle = start(&shop, Gate::Good).await;
    while !matches!(handle.status().state, State::Baking { .. }) {
        handle.changed().await.unwrap();
    }
    shop.aws.codepipeline().push("shop", V3);
    let ended = handle.finished().await;
    assert_eq!(ended.rollout.state.name(), "abandoned", "{ended}");
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(shop.executions(), ["STANDARD v1 Succeeded", "STANDARD v2 Succeeded", "STANDARD v3 Succeeded"]);
}

#[tokio::test(start_paused = true)]
async fn a_push_that_overtakes_the_candidate_is_left_alone() {
    let shop = Shop::new();
    let handle = start(&shop, Gate::Good).await;
    while shop.executions().len() < 2 {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // It waits before a closed stage until another has come up behind it.
    shop.aws.codepipeline().close("shop", "Prod", Some("freeze"));
    shop.aws.codepipeline().push("shop", V3);
    tokio::time::sleep(Duration::from_secs(30)).await;
    shop.aws.codepipeline().close("shop", "Prod", None);
    let ended = { handle }.finished().await;
    assert_eq!(ended.rollout.state.name(), "abandoned", "{ended}");
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(shop.executions(), ["STANDARD v1 Succeeded", "STANDARD v2 Superseded", "STANDARD v3 Succeeded"]);
}

#[tokio::test(start_paused = true)]
async fn each_request_may_go_wrong_in_each_way_and_the_end_is_the_same() {
    for (gate, revision, action) in
        [(Gate::Good, V2, START.action), (Gate::Bad, V1, START.action), (Gate::Bad, V1, ROLL_BACK.action)]
    {
        for trouble in [
            Trouble::LoseAnswer,
            Trouble::LoseRequest,
            Trouble::Throttle,
            Trouble::Page { status: 502, body: "<html>Bad Gateway</html>" },
            Trouble::Refuse(Refusal::new(400, "ConflictException", "The pipeline is busy")),
            Trouble::DelayAnswer(Duration::from_secs(40)),
            Trouble::DelayRequest(Duration::from_secs(5)),
            Trouble::DelayRequest(Duration::from_secs(120)),
        ] {
            let shop = Shop::new();
            // The first rollback is preflight's.
            let after = u64::from(action == ROLL_BACK.action);
            shop.aws.fault(Fault::of(action, trouble.clone()).after(after));
            let ended = roll_out(&shop, gate).await;
            let what = format!("{gate:?}, {trouble:?} of {action}: {ended}");
            assert_eq!(matches!(ended.rollout.state, State::Promoted), matches!(gate, Gate::Good), "{what}");
            tokio::time::sleep(Duration::from_secs(300)).await;
            assert_eq!(shop.serves().as_deref(), Some(revision), "{what}: {:?}", shop.executions());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn preflight_says_what_it_proved_and_calls_only_what_its_policy_allows() {
    let shop = Shop::new();
    let found = prove(&shop).await;
    assert_eq!((said(&found.refused), said(&found.no_way_back)), (String::new(), String::new()));
    for permission in ROLLOUT {
        let notes = if *permission == START { &found.not_provable } else { &found.proved };
        assert!(said(notes).contains(permission.action), "{permission:?}: {found:?}");
    }
    assert!(said(&found.proved).contains("has succeeded in stage Prod, in this version"), "{found:?}");
    assert_eq!(shop.executions(), ["STANDARD v1 Succeeded"], "preflight started something");
    roll_out(&shop, Gate::Bad).await;
    let allowed: Vec<&str> = ROLLOUT.iter().map(|permission| permission.action).collect();
    for called in shop.aws.calls().keys() {
        assert!(allowed.contains(&called.as_str()), "{called} is not in the list");
    }
    assert!(shop.stage().policy().to_string().contains(":shop/Prod\""), "{}", shop.stage().policy());
}

#[tokio::test(start_paused = true)]
async fn each_permission_that_is_missing_is_named_before_anything_changes() {
    for permission in ROLLOUT.iter().filter(|it| **it != START) {
        let shop = Shop::new();
        let driver = Driver::new(&shop).await;
        shop.aws.deny(permission.action);
        let found = driver.backend.preflight(&driver.change, &all_at_once()).await.unwrap();
        assert!(said(&found.refused).contains(permission.action), "{permission:?}: {:?}", found.refused);
        assert_eq!(shop.executions(), ["STANDARD v1 Succeeded"]);
    }
    let shop = Shop::new();
    shop.aws.deny(STATE.action);
    assert_eq!(shop.stage().baseline().await.expect_err("it may not be read").kind(), ErrorKind::Denied);
    assert_ne!(STOP, ROLL_BACK);
}

#[tokio::test(start_paused = true)]
async fn a_way_back_that_codepipeline_would_refuse_is_told_before_anything_changes() {
    let shop = Shop::new();
    let driver = Driver::new(&shop).await;
    let closed = async || said(&driver.backend.preflight(&driver.change, &all_at_once()).await.unwrap().no_way_back);
    shop.aws.codepipeline().edit("shop", |_| {});
    assert!(
        closed().await.contains("was started in version 1 of pipeline shop, which is at version 2"),
        "{}",
        closed().await
    );

    shop.reset().await;
    shop.aws.codepipeline().declare("shop", |it| it["pipelineType"] = json!("V1"));
    assert!(closed().await.contains("is of the type V1"), "{}", closed().await);

    let source = Stage::new(&shop.aws.account(), "shop", "Source").unwrap();
    let change = Change {
        baseline: source.baseline().await.unwrap(),
        candidate: source.revision([Source::commit("Source", V2)]).unwrap(),
        ..driver.change.clone()
    };
    let found = source.preflight(&change, &all_at_once()).await.unwrap();
    assert!(said(&found.no_way_back).contains("is the source stage"), "{found:?}");
}

#[tokio::test(start_paused = true)]
async fn a_pipeline_that_is_busy_closed_or_elsewhere_is_refused() {
    let shop = Shop::of(&["Source", "Prod", "After"]);
    let driver = Driver::new(&shop).await;
    let found = async || driver.backend.preflight(&driver.change, &all_at_once()).await.unwrap();
    assert!(said(&found().await.not_restored).contains("as soon as it has: After"), "{:?}", found().await);

    shop.aws.codepipeline().close("shop", "Prod", Some("freeze"));
    assert!(said(&found().await.refused).contains("is disabled: freeze"), "{:?}", found().await);

    shop.reset().await;
    shop.aws.codepipeline().declare("shop", |it| it["executionMode"] = json!("PARALLEL"));
    assert!(said(&found().await.refused).contains("PARALLEL"), "{:?}", found().await);

    shop.reset().await;
    shop.aws.codepipeline().push("shop", V3);
    assert!(said(&found().await.refused).contains("on its way into stage Prod"), "{:?}", found().await);
    tokio::time::sleep(Duration::from_secs(5)).await;
    let half = shop.stage().baseline().await.expect_err("half way");
    assert_eq!(half.kind(), ErrorKind::Mixed, "{half}");
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(said(&found().await.refused).contains("not at the baseline any more"), "{:?}", found().await);
}

#[tokio::test(start_paused = true)]
async fn names_and_sources_that_cannot_work_are_refused() {
    let shop = Shop::new();
    let account = shop.aws.account();
    assert_eq!(Stage::new(&account, "sh op", "Prod").expect_err("a blank").kind(), ErrorKind::Invalid);
    let unknown = Stage::new(&account, "nobody", "Prod").unwrap().baseline().await.expect_err("no such pipeline");
    assert_eq!(unknown.kind(), ErrorKind::NotFound);
    let unknown = Stage::new(&account, "shop", "Pord").unwrap().baseline().await.expect_err("no such stage");
    assert!(
        unknown.kind() == ErrorKind::NotFound && unknown.to_string().contains("it has Source, Build, Prod"),
        "{unknown}"
    );

    let stage = shop.stage();
    assert!(stage.revision([]).is_err());
    assert!(stage.revision([Source::commit("Source", "")]).is_err());
    assert!(stage.revision([Source::commit("Source", V2), Source::image("Source", "b")]).is_err());
    // CodePipeline tells the whole id, so an execution of less would be taken for somebody else's.
    for abbreviated in ["4f5e6d7c8b9a", "main", &V2[1..], &V2.replace('2', "g"), &V2.repeat(2)] {
        let e = stage.revision([Source::commit("Source", abbreviated)]).unwrap_err();
        assert_eq!((e.kind(), e.to_string().contains("the full id is accepted")), (ErrorKind::Invalid, true), "{e}");
    }
    let sha256 = "0123456789abcdef".repeat(4);
    for full in ["ABCDEF0123456789abcdef0123456789abcdef01", &sha256] {
        let made = stage.revision([Source::commit("Source", full)]).unwrap();
        assert_eq!(made.id.as_str(), format!("Source={}", full.to_lowercase()));
    }
    let driver = Driver::new(&shop).await;
    let candidate = stage.revision([Source::object_version("App", "1")]).unwrap();
    let change = Change { candidate, ..driver.change.clone() };
    let found = stage.preflight(&change, &all_at_once()).await.unwrap();
    for words in ["has no source action App; it has Source", "does not say what source action Source takes"] {
        assert!(said(&found.refused).contains(words), "{found:?}");
    }
    let other = Stage::new(&account, "shop", "Build").unwrap();
    assert_eq!(
        other.observe(&driver.change, Goal::Baseline, None).await.expect_err("another stage's").kind(),
        ErrorKind::Invalid
    );
}
