//! The Lambda alias as a backend: the conformance suite, the sweeps, and what is special about it.

use std::time::Duration;

use rollback_aws::{
    account::Account,
    lambda::{Alias, GET_ALIAS, INVOKE, ROLLOUT, Smoke},
    testing::{
        Refusal,
        clock::VirtualClock,
        fault::{Fault, Trouble},
        lambda::Build,
    },
};
use rollback_core::{
    ErrorKind,
    backend::{DeploymentBackend as _, Readiness},
    clock::Clock as _,
    engine::{Engine, NewRollout, Outcome as Ended, Target},
    gate::{HealthGate as _, Policy, Verdict, Window},
    model::{Change, Goal, Progress, Revision, Weight},
    plan::Plan,
    rollout::{Rollout, What},
    state::{Cause, State},
    store::Memory,
    testing::{
        backend::{self, Driver, Outcome},
        gates::Scripted,
        sweep::{Scenario, Sweep},
    },
};

use crate::support::Shop;

#[tokio::test(start_paused = true)]
async fn every_promise_of_a_backend_is_kept() {
    let skipped: Vec<_> =
        backend::all(&Shop::new()).await.into_iter().filter(|(_, outcome)| *outcome != Outcome::Kept).collect();
    assert_eq!(
        skipped,
        [("an_inexpressible_weight_is_unsupported", Outcome::Skipped("every weight can be given here"))]
    );
}

#[tokio::test(start_paused = true)]
async fn every_promise_is_kept_while_reads_lag_behind_writes() {
    let shop = Shop::new();
    shop.aws.lambda().lag(Duration::from_secs(3));
    for goal in [Goal::Split(25.try_into().unwrap()), Goal::Candidate, Goal::Baseline] {
        let mut driver = Driver::new(&shop).await;
        driver.drive(goal).await;
        tokio::time::sleep(Duration::from_secs(5)).await;
        driver.drive(Goal::Baseline).await;
        assert_eq!(shop.at(), ("1".into(), None));
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
}

macro_rules! sweeps {
    ($($name:ident: $kind:ident;)*) => {$(
        #[tokio::test(start_paused = true)]
        async fn $name() {
            let shop = Shop::new();
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

/// A shop whose alias has provisioned concurrency, on which only all at once is possible.
fn provisioned() -> Shop {
    let shop = Shop::new();
    shop.aws.lambda().provision("checkout", "live", 5);
    shop.keep()
}

#[tokio::test(start_paused = true)]
async fn with_provisioned_concurrency_all_at_once_is_swept_and_lambdas_own_weights_are_waited_for() {
    let shop = provisioned();
    let mut scenarios = Scenario::ready_made(&shop).await;
    scenarios.retain(|it| it.name().contains("at once"));
    assert!(!scenarios.is_empty());
    let sweep = Sweep::of(&shop).scenarios(scenarios);
    let mut summary = sweep.crashes().await;
    summary += sweep.lost_answers().await;
    eprintln!("provisioned: {summary}");
}

#[tokio::test(start_paused = true)]
async fn lambdas_own_weights_are_told_as_what_they_are() {
    let shop = provisioned();
    let mut driver = Driver::new(&shop).await;
    // All traffic is asked for without weights of ours.
    let look = driver.look(Goal::Split(Weight::ALL)).await;
    let attempt = driver.save(Goal::Split(Weight::ALL), &look.version);
    driver.send(&attempt).await.expect("a good shift");
    assert_eq!(shop.at(), ("2".into(), Some(("1".into(), 1.0))), "Lambda holds the traffic at the old version");
    let seen = driver.look(Goal::Candidate).await;
    assert_eq!(seen.weight, Some(Weight::NONE), "nobody is served by the candidate yet");
    assert!(matches!(&seen.progress, Progress::Underway(why) if why.as_str().contains("provisions")), "{seen:?}");
    assert_eq!(driver.baseline().await.expect_err("two versions").kind(), ErrorKind::Mixed);
    assert!(matches!(driver.look(Goal::Baseline).await.progress, Progress::Due(_)), "the way back does not wait");
    driver.drive(Goal::Candidate).await;
    assert_eq!(shop.at(), ("2".into(), None));
}

#[tokio::test(start_paused = true)]
async fn a_plan_with_steps_is_refused_on_an_alias_with_provisioned_concurrency() {
    let shop = provisioned();
    let plan = Plan::canary([5, 100], Duration::ZERO).unwrap();
    let found = prove(&shop, "2", &plan).await;
    assert!(found.refused.iter().any(|why| why.as_str().contains("takes no weights")), "{found:?}");
    let found = prove(&shop, "2", &Plan::all_at_once(Duration::ZERO).unwrap()).await;
    assert_eq!(found.refused, []);
    assert!(found.not_restored.iter().any(|it| it.as_str().contains("a minute or two")), "{found:?}");
}

async fn prove(shop: &Shop, candidate: &str, plan: &Plan) -> Readiness {
    let driver = Driver::new(shop).await;
    let change = Change { candidate: Revision::new(candidate).unwrap(), ..driver.change.clone() };
    driver.backend.preflight(&change, plan).await.unwrap()
}

fn canary() -> Plan {
    Plan::canary([10, 50, 100], Duration::from_secs(60)).unwrap()
}

#[tokio::test(start_paused = true)]
async fn preflight_says_what_it_proved_and_calls_only_what_its_policy_allows() {
    let shop = Shop::new();
    let found = prove(&shop, "2", &canary()).await;
    assert_eq!((found.refused.as_slice(), found.no_way_back.as_slice()), (&[][..], &[][..]));
    for permission in ROLLOUT {
        assert!(found.proved.iter().any(|it| it.as_str().contains(permission.action)), "{permission:?}: {found:?}");
    }
    roll_out(&shop, Gate::Good).await;
    roll_out(&shop, Gate::Bad).await;
    let called: Vec<String> = shop.aws.calls().into_keys().collect();
    let mut allowed: Vec<&str> = ROLLOUT.iter().map(|permission| permission.action).collect();
    allowed.sort_unstable();
    assert_eq!(called, allowed, "the policy is neither more nor less than what a rollout calls");
    let policy = shop.alias().policy().to_string();
    assert!(
        allowed.iter().all(|action| policy.contains(action)) && policy.contains(":function:checkout\""),
        "{policy}"
    );
}

#[tokio::test(start_paused = true)]
async fn each_permission_that_is_missing_is_named_before_anything_changes() {
    for permission in &ROLLOUT[1..] {
        let shop = Shop::new();
        let driver = Driver::new(&shop).await;
        shop.aws.deny(permission.action);
        let found = driver.backend.preflight(&driver.change, &canary()).await.unwrap();
        let [why] = &found.refused[..] else { panic!("{permission:?}: {:?}", found.refused) };
        assert!(why.as_str().contains(permission.action), "{why}");
    }
    let shop = Shop::new();
    shop.aws.deny(GET_ALIAS.action);
    let e = shop.alias().baseline().await.expect_err("it may not be read");
    assert_eq!(e.kind(), ErrorKind::Denied);
    assert!(e.to_string().contains("lambda:GetAlias"), "{e}");
}

#[tokio::test(start_paused = true)]
async fn versions_that_cannot_serve_or_not_together_are_refused() {
    let refused =
        |found: &Readiness| found.refused.iter().map(|why| why.as_str().to_owned()).collect::<Vec<_>>().join("; ");
    let shop = Shop::new();
    for (state, update, words) in [
        ("Failed", "Successful", "version 2 of checkout is Failed, not Active"),
        ("Pending", "Successful", "version 2 of checkout is Pending"),
        ("Inactive", "Successful", "invoke it once"),
        ("Active", "Failed", "the last update of version 2 of checkout is Failed"),
        ("Active", "InProgress", "is InProgress, not Successful"),
    ] {
        shop.aws.lambda().set_state("checkout", "2", state, update);
        let why = refused(&prove(&shop, "2", &canary()).await);
        assert!(why.contains(words), "{why}");
    }
    shop.aws.lambda().set_state("checkout", "1", "Deactivating", "Successful");
    let found = prove(&shop, "3", &canary()).await;
    assert!(found.no_way_back[0].as_str().contains("version 1 of checkout is Deactivating"), "{found:?}");

    let other = Shop::of(&Build::new("v2").role("arn:aws:iam::123456789012:role/other"));
    assert!(refused(&prove(&other, "2", &canary()).await).contains("execution role"));
    let other = Shop::of(&Build::new("v2").dead_letters("arn:aws:sqs:us-east-1:123456789012:failed"));
    assert!(refused(&prove(&other, "2", &canary()).await).contains("dead-letter target"));

    let driver = Driver::new(&shop).await;
    for (candidate, words) in
        [("$LATEST", "$LATEST is no revision"), ("live", "a number such as 42"), ("007", "number")]
    {
        let change = Change { candidate: Revision::new(candidate).unwrap(), ..driver.change.clone() };
        let e = driver.backend.preflight(&change, &canary()).await.expect_err("no version");
        assert_eq!(e.kind(), ErrorKind::Invalid);
        assert!(e.to_string().contains(words), "{e}");
    }
}

#[tokio::test(start_paused = true)]
async fn weights_left_behind_and_an_alias_at_latest_are_named() {
    let shop = Shop::new();
    let driver = Driver::new(&shop).await;
    shop.aws.lambda().point("checkout", "live", "1", Some(("3", 0.1)));
    let e = shop.alias().baseline().await.expect_err("two versions");
    assert_eq!(e.kind(), ErrorKind::Mixed);
    for words in ["version 1 with 10 % to version 3", "CodeDeploy", "--function-version 1"] {
        assert!(e.to_string().contains(words), "{e}");
    }
    let found = driver.backend.preflight(&driver.change, &canary()).await.unwrap();
    assert!(found.refused[0].as_str().contains("CodeDeploy"), "{found:?}");
    assert_eq!(shop.at().1, Some(("3".into(), 0.1)), "preflight wrote");

    shop.aws.lambda().point("checkout", "live", "$LATEST", None);
    let e = shop.alias().baseline().await.expect_err("it changes");
    assert_eq!(e.kind(), ErrorKind::Unsupported);
    let unknown =
        Alias::new(&shop.aws.account(), "checkout:dead").unwrap().baseline().await.expect_err("no such alias");
    assert_eq!(unknown.kind(), ErrorKind::NotFound);
    assert!(unknown.chain().contains("Cannot find alias arn"), "{}", unknown.chain());
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_that_checks_no_revision_id_is_refused() {
    let shop = Shop::new();
    shop.aws.lambda().check_no_revision_ids();
    let found = prove(&shop, "2", &canary()).await;
    assert!(found.refused[0].as_str().contains("takes a RevisionId that never was"), "{found:?}");
    assert_eq!(shop.at(), ("1".into(), None));
}

#[derive(Clone, Copy, Debug)]
enum Gate {
    Good,
    Bad,
}

/// One whole rollout by the engine.
async fn roll_out(shop: &Shop, gate: Gate) -> Ended {
    let (engine, new) = engine(shop, gate);
    let outcome = engine.start(new).await.unwrap().finished().await;
    engine.shutdown(Duration::from_secs(60)).await;
    outcome
}

fn engine(shop: &Shop, gate: Gate) -> (Engine, NewRollout) {
    let engine = Engine::builder(Memory::new()).clock(shop.aws.clock().clone()).build().unwrap();
    let gate = match gate {
        Gate::Good => Scripted::healthy("errors"),
        Gate::Bad => Scripted::unhealthy_from("errors", Weight::try_from(50).unwrap()),
    };
    let target = Target::new("checkout:live", shop.alias()).unwrap().gate(gate, Policy::default());
    engine.register(target).unwrap();
    (engine, NewRollout::new("checkout:live", Revision::new("2").unwrap(), canary()).unwrap().by("ana").unwrap())
}

/// The states that the alias was in, each write once.
fn course(shop: &Shop, from: usize) -> Vec<(String, Option<f64>)> {
    let writes = shop.aws.lambda().writes();
    writes[from..].iter().map(|it| (it.version.clone(), it.weights.values().next().copied())).collect()
}

#[tokio::test(start_paused = true)]
async fn each_request_may_go_wrong_in_each_way_and_the_end_is_the_same() {
    let good = [("1", Some(0.1)), ("1", Some(0.5)), ("1", Some(1.0)), ("2", None)];
    let bad = [("1", Some(0.1)), ("1", Some(0.5)), ("1", None)];
    let faults = || {
        [
            Trouble::LoseAnswer,
            Trouble::LoseRequest,
            Trouble::Throttle,
            Trouble::Page { status: 502, body: "<html>Bad Gateway</html>" },
            Trouble::Refuse(Refusal::new(409, "ResourceConflictException", "An update is in progress")),
            Trouble::Refuse(Refusal::new(500, "ServiceException", "An error occurred")),
            Trouble::DelayAnswer(Duration::from_secs(40)),
            Trouble::DelayRequest(Duration::from_secs(5)),
            Trouble::DelayRequest(Duration::from_secs(90)),
        ]
    };
    for (gate, wanted) in [(Gate::Good, &good[..]), (Gate::Bad, &bad[..])] {
        // The first UpdateAlias is preflight's.
        for at in 0..=wanted.len() as u64 {
            for fault in faults() {
                let shop = Shop::new();
                shop.aws.fault(Fault::of("lambda:UpdateAlias", fault.clone()).after(at));
                let outcome = roll_out(&shop, gate).await;
                let what = format!("{gate:?}, {fault:?} of write {at}: {}", outcome.rollout);
                let end = course(&shop, 1).last().cloned();
                let wanted = wanted.last().map(|(version, share)| ((*version).to_owned(), *share));
                assert_eq!(end, wanted, "{what}");
                let promoted = matches!(outcome.rollout.state, State::Promoted);
                assert_eq!(promoted, matches!(gate, Gate::Good), "{what}");
                // Whatever was still on its way comes now, and is refused.
                tokio::time::sleep(Duration::from_secs(120)).await;
                assert_eq!(course(&shop, 1).last().cloned(), wanted, "a late write moved the alias: {what}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_canary_goes_through_its_weights_and_a_promotion_clears_them_in_one_write() {
    let shop = Shop::new();
    roll_out(&shop, Gate::Good).await;
    let course = course(&shop, 1);
    let told: Vec<(&str, Option<f64>)> = course.iter().map(|(version, share)| (version.as_str(), *share)).collect();
    assert_eq!(told, [("1", Some(0.1)), ("1", Some(0.5)), ("1", Some(1.0)), ("2", None)]);
}

#[tokio::test(start_paused = true)]
async fn a_candidate_that_is_deleted_on_the_way_is_rolled_back() {
    let shop = Shop::new();
    let (engine, new) = engine(&shop, Gate::Good);
    let mut handle = engine.start(new).await.unwrap();
    while !matches!(handle.status().state, State::Baking { step: 0, .. }) {
        handle.changed().await.unwrap();
    }
    shop.aws.lambda().delete_version("checkout", "2");
    let outcome = handle.finished().await;
    let State::RolledBack { cause: Cause::Failed { why } } = &outcome.rollout.state else { panic!("{outcome}") };
    assert!(why.as_str().contains(":function:checkout:2 (status 404"), "{why}");
    assert_eq!(shop.at(), ("1".into(), None));
}

#[tokio::test(start_paused = true)]
async fn credentials_that_expire_are_waited_for_and_told() {
    let shop = Shop::new();
    let (engine, new) = engine(&shop, Gate::Good);
    let mut handle = engine.start(new).await.unwrap();
    while !matches!(handle.status().state, State::Baking { step: 0, .. }) {
        handle.changed().await.unwrap();
    }
    shop.aws.expire("AKIDSIMULATOR");
    tokio::time::sleep(Duration::from_secs(240)).await;
    let waiting = handle.status();
    assert!(waiting.state.is_open(), "{waiting}");
    let told = |rollout: &Rollout, words: &str| {
        rollout.log.iter().any(|entry| matches!(&entry.what, What::Troubled { why } if why.as_str().contains(words)))
    };
    assert!(told(&waiting, "the credentials have expired; renew them, and it goes on"), "{:?}", waiting.log);
    let writes = shop.aws.lambda().writes().len();
    shop.aws.renew("AKIDSIMULATOR");
    let outcome = handle.finished().await;
    assert_eq!(outcome.rollout.state, State::Promoted, "{outcome}");
    assert!(shop.aws.lambda().writes().len() > writes);
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_is_wrong_is_called_that() {
    let shop = Shop::new();
    shop.aws.check_clocks();
    let late = VirtualClock::starting(VirtualClock::START + Duration::from_secs(3600));
    let sdk = shop.aws.account().sdk().to_builder().time_source(late).build();
    let e =
        Alias::new(&Account::from_sdk(sdk).unwrap(), "checkout:live").unwrap().baseline().await.expect_err("too late");
    assert_eq!(e.kind(), ErrorKind::Denied);
    assert!(e.to_string().contains("this machine's clock"), "{e}");
}

#[tokio::test(start_paused = true)]
async fn what_somebody_else_does_is_left_alone() {
    for (version, other) in [("3", None), ("1", Some(("2", 0.9))), ("1", Some(("3", 0.1))), ("2", None)] {
        let shop = Shop::new();
        let (engine, new) = engine(&shop, Gate::Good);
        let mut handle = engine.start(new).await.unwrap();
        while !matches!(handle.status().state, State::Baking { step: 0, .. }) {
            handle.changed().await.unwrap();
        }
        shop.aws.lambda().point("checkout", "live", version, other);
        let outcome = handle.finished().await;
        assert_eq!(outcome.rollout.state.name(), "abandoned", "{outcome}");
        let other = other.map(|(version, share)| (version.to_owned(), share));
        assert_eq!(shop.at(), (version.to_owned(), other));
    }
}

#[tokio::test(start_paused = true)]
async fn a_gate_may_call_the_candidate_before_any_user_does() {
    for (build, good) in [(Build::new("v2"), true), (Build::new("v2").fails(0.4), false)] {
        let shop = Shop::of(&build);
        let plan = Plan::blue_green(Duration::from_secs(30), Duration::from_secs(30)).unwrap();
        let engine = Engine::builder(Memory::new()).clock(shop.aws.clock().clone()).build().unwrap();
        let smoke = Smoke::new(&shop.alias(), r#"{"dry": true}"#).unwrap();
        let target = Target::new("checkout:live", shop.alias()).unwrap().gate(smoke, Policy::default());
        engine.register(target).unwrap();
        let new = NewRollout::new("checkout:live", Revision::new("2").unwrap(), plan).unwrap();
        let outcome = engine.start(new).await.unwrap().finished().await;
        assert_eq!(matches!(outcome.rollout.state, State::Promoted), good, "{outcome}");
        let reached_users = course(&shop, 1).iter().any(|(at, share)| at == "2" || share.is_some_and(|it| it > 0.0));
        assert_eq!(reached_users, good, "{outcome}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_that_lambda_does_not_carry_out_says_nothing_of_the_candidate() {
    let shop = Shop::new();
    let smoke = Smoke::new(&shop.alias(), "{}").unwrap().calls(2);
    let at = shop.aws.clock().now();
    let window = Window {
        rollout: "r".parse().unwrap(),
        target: "t".parse().unwrap(),
        baseline: "1".parse().unwrap(),
        candidate: "2".parse().unwrap(),
        created: at,
        step: 0,
        weight: Weight::NONE,
        since: at,
        now: at,
        last: None,
    };
    assert!(matches!(smoke.judge(&window).await, Ok(Verdict::Healthy(_))));
    shop.aws.fault(Fault::of(INVOKE.action, Trouble::Throttle).times(9));
    assert_eq!(smoke.judge(&window).await.expect_err("throttled").kind(), ErrorKind::Throttled);
    shop.aws.forget_faults();
    shop.aws.deny(INVOKE.action);
    let denied = smoke.judge(&window).await.expect_err("denied");
    assert!(denied.to_string().contains("lambda:InvokeFunction"), "{denied}");
    assert_eq!(Smoke::new(&shop.alias(), "{").expect_err("no JSON").kind(), ErrorKind::Invalid);
}

/// For benches/README.md, which tells 1,000 as well: this test with that number, by hand.
#[tokio::test(start_paused = true)]
async fn a_live_rollout_costs_a_call_a_look() {
    for (live, minutes) in [(1_u64, 60_u64), (100, 1)] {
        let shop = Shop::new();
        let engine = Engine::builder(Memory::new()).clock(shop.aws.clock().clone()).build().unwrap();
        let mut handles = Vec::new();
        for n in 0..live {
            let name = format!("canary-{n}");
            shop.aws.lambda().point("checkout", &name, "1", None);
            let alias = Alias::new(&shop.aws.account(), &format!("checkout:{name}")).unwrap();
            engine
                .register(Target::new(&name, alias).unwrap().gate(Scripted::healthy("errors"), Policy::default()))
                .unwrap();
            let plan = Plan::canary([10, 100], Duration::from_secs(4 * 3600)).unwrap();
            let new = NewRollout::new(&name, Revision::new("2").unwrap(), plan).unwrap();
            handles.push(engine.start(new).await.unwrap());
        }
        for handle in &mut handles {
            while !matches!(handle.status().state, State::Baking { .. }) {
                handle.changed().await.unwrap();
            }
        }
        let started: u64 = shop.aws.calls().values().sum();
        tokio::time::sleep(Duration::from_secs(60 * minutes)).await;
        let baking: u64 = shop.aws.calls().values().sum::<u64>() - started;
        // A look each ten seconds, as a target is looked at unless it is told otherwise.
        let a_minute = baking as f64 / (minutes * live) as f64;
        assert!((5.0..=6.5).contains(&a_minute), "{a_minute} calls a minute and rollout");
        let (start, baking) = (started / live, baking / minutes);
        eprintln!("{live} live: {start} calls to start each, {baking} a minute while baking");
    }
}
