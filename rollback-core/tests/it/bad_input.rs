//! Bad input, except for the store's own: a clear error that names the thing, before anything changed, and nothing lost.

use std::time::Duration;

use rollback_core::{
    Error, ErrorKind, Result,
    backend::Weights,
    engine::{Engine, NewRollout, Target},
    gate::{self, Evidence, NoData, Policy, Verdict},
    hook::{Exit, Hook},
    listener::Log,
    model::{Actor, DriverId, GateName, Nonce, Revision, RevisionId, RolloutId, Sealed, TargetId, Version, Weight},
    plan::{Approval, Deadlines, Plan, Step},
    request::{Ask, Request},
    rollout::Rollout,
    store::{Memory, Record, Store as _},
    testing::{
        clock::TestClock,
        fakes::Fake,
        gates::{Answer, Scripted},
    },
};

use crate::support::scene::{MINUTE, Scene, canary, checkout, deploy, until};

/// One lower-case clause on one line that names this; `Invalid` unless said otherwise.
#[track_caller]
fn says<T>(result: Result<T>, kind: ErrorKind, names: &[&str]) {
    let Err(e) = result else { panic!("accepted, and should say {names:?}") };
    let text = e.chain();
    assert_eq!(e.kind(), kind, "{text}");
    for name in names {
        assert!(text.contains(name), "{text:?} does not name {name:?}");
    }
    reads_well(&text);
}

#[track_caller]
fn reads_well(text: &str) {
    let first = text.chars().next().expect("an error says something");
    assert!(!first.is_uppercase(), "{text:?} is no clause");
    assert!(
        !text.ends_with('.') && !text.contains(char::is_control) && !text.contains("  "),
        "{text:?} is not one line"
    );
    assert!(text.len() < 400, "{text:?} is no clause");
}

const INVALID: ErrorKind = ErrorKind::Invalid;

/// Everything the store holds about a target.
async fn kept(store: &Memory, target: &str) -> Vec<Record> {
    store.history(&TargetId::try_from(target).unwrap(), 100).await.unwrap()
}

#[test]
fn names_that_are_no_names_are_refused_by_what_they_are_and_what_would_do() {
    fn check<T: for<'a> TryFrom<&'a str, Error = Error>>(what: &str, max: usize) {
        let number = max.to_string();
        says(T::try_from(""), INVALID, &[what, "is empty", &number]);
        let long = "x".repeat(max + 1);
        says(T::try_from(&long), INVALID, &[what, &(max + 1).to_string(), &number]);
        says(T::try_from("a\nb"), INVALID, &[what, r"a\nb", r"'\n'", "printable"]);
        says(T::try_from("a\u{1b}[31mb"), INVALID, &[what, "control character"]);
        for blank in [" ", " a", "a ", "\u{a0}a"] {
            says(T::try_from(blank), INVALID, &[what, "white space"]);
        }
        assert!(T::try_from(&"x".repeat(max)).is_ok() && T::try_from("žluťoučký kůň").is_ok());
    }
    check::<TargetId>("a target id", 128);
    check::<RolloutId>("a rollout id", 128);
    check::<RevisionId>("a revision id", 256);
    check::<DriverId>("a driver id", 128);
    check::<Actor>("an actor", 128);
    check::<GateName>("a gate name", 64);
    check::<Version>("a version", 1024);
    check::<Nonce>("a nonce", 512);
}

#[test]
fn what_is_built_from_bad_names_is_refused_where_it_is_built() {
    let v2 = || Revision::new("v2").unwrap();
    says(Revision::new(""), INVALID, &["a revision id is empty"]);
    says(NewRollout::new("", v2(), canary()), INVALID, &["a target id is empty"]);
    says(deploy(canary()).by("ana\tb"), INVALID, &["an actor", "control character"]);
    says(Target::new("check\nout", Fake::new("v1", "v2")), INVALID, &["a target id"]);
    says(Hook::new("", |_| async { Ok(()) }), INVALID, &["a hook's name"]);
    says(gate::signal(&"g".repeat(65)), INVALID, &["a gate name", "65", "64"]);
    says(gate::from_fn("", |window| async move { Ok(window.no_data("none")) }), INVALID, &["a gate name is empty"]);
    says(Request::new(Ask::Abort, "", "?"), INVALID, &["who asks must be named", "an actor is empty"]);
    says(Request::new(Ask::Abort, " ben", "?"), INVALID, &["who asks must be named", "\" ben\"", "white space"]);
    for json in [r#""""#, r#"" a""#, "\"a\\u0000b\""] {
        let e = serde_json::from_str::<TargetId>(json).unwrap_err().to_string();
        assert!(e.contains("a target id"), "what comes as JSON is checked too: {e}");
    }
}

#[test]
fn weights_and_plans_that_cannot_be_are_refused_by_step_and_value() {
    says(Weight::try_from(101), INVALID, &["weight 101", "0 to 100"]);
    says(Weights::only([10, 250]), INVALID, &["weight 250", "0 to 100"]);
    says(Plan::canary([10, 101], MINUTE), INVALID, &["step 2", "weight 101"]);
    says(Plan::canary([], MINUTE), INVALID, &["no steps", "at least one"]);
    says(Plan::canary([100; 101], MINUTE), INVALID, &["101 steps", "at most 100"]);
    says(Plan::canary([60, 50, 100], MINUTE), INVALID, &["step 2 of 3", "60 %", "50 %"]);
    says(Plan::canary([50], MINUTE), INVALID, &["step 1", "50 %", "100 %"]);
    says(Plan::linear(0, MINUTE), INVALID, &["1 to 100 %", "0 %"]);
    says(Plan::linear(101, MINUTE), INVALID, &["1 to 100 %", "101 %"]);
    says(Plan::all_at_once(Duration::MAX), INVALID, &["step 1 of 1", "366 days"]);
    let zero = Deadlines { hold: Duration::ZERO, ..Deadlines::default() };
    says(canary().with_deadlines(zero), INVALID, &["deadline hold", "zero"]);
    let long = Deadlines { shift: Duration::MAX, ..Deadlines::default() };
    says(canary().with_deadlines(long), INVALID, &["deadline shift", "366 days"]);
    let nobody = Step::new(Weight::ALL, MINUTE).approved_by(Approval::of(0, []));
    says(Plan::new([nobody]), INVALID, &["step 1 of 1", "0 approvals", "1 or more"]);
}

#[test]
fn a_spec_that_is_too_large_or_somebody_elses_is_refused_without_being_quoted() {
    let large = "s3cret".repeat(50_000);
    let refused = Revision::new("v2").unwrap().with_spec(&large);
    assert!(!refused.as_ref().unwrap_err().chain().contains("s3cret"));
    says(refused, INVALID, &["a revision's spec has 300002 bytes", "262144"]);
    let refused = Sealed::new("s3cret").unwrap().open::<u64>();
    assert!(!refused.as_ref().unwrap_err().chain().contains("s3cret"));
    says(refused, INVALID, &["a revision's spec is not what this backend seals"]);
    assert!(Revision::new("v2").unwrap().with_spec(&"x".repeat(Sealed::MAX_LEN - 2)).is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_target_that_cannot_work_is_refused_when_it_is_registered() {
    let fake = Fake::new("v1", "v2");
    let target = || checkout(&fake);
    let gate = || Scripted::healthy("errors");
    let hook = || Hook::new("smoke", |_| async { Ok(()) }).unwrap();
    let scene = Scene::new();
    let refused = |target: Target, names: &[&str]| says(scene.engine.register(target), INVALID, names);
    let policy = |policy: Policy, names: &[&str]| {
        refused(target().gate(gate(), policy), &[&["gate errors"], names].concat());
    };
    policy(Policy::default().every(Duration::ZERO), &["0ns", "10ms or more"]);
    policy(Policy::default().timeout(Duration::ZERO), &["timeout of zero"]);
    policy(Policy::default().unhealthy_after(0, 3), &["0 of 3"]);
    policy(Policy::default().unhealthy_after(4, 3), &["4 of 3", "n ≤ m"]);
    policy(Policy::default().unhealthy_after(1, 65), &["1 of 65", "64"]);
    policy(Policy::default().healthy_after(0), &["0 verdicts", "1 or more"]);
    refused(
        target().gate(gate(), Policy::default()).gate(gate(), Policy::default()),
        &["target checkout has two gates named errors"],
    );
    refused(target().before(hook()).after(hook()), &["target checkout has two hooks named smoke"]);
    let hasty = hook().deadline(Duration::ZERO, Exit::GoOn);
    refused(target().after(hasty), &["target checkout gives hook smoke zero seconds"]);
    let second = Duration::from_secs(1);
    refused(target().limits(Duration::ZERO, second, second), &["target checkout", "zero seconds", "look"]);
    refused(target().limits(second, Duration::ZERO, second), &["target checkout", "zero seconds", "shift"]);
    refused(target().limits(second, second, Duration::ZERO), &["target checkout", "zero seconds", "preflight"]);
    // A target that was refused is not registered, and one that was there before stays.
    says(scene.engine.start(deploy(canary())).await, ErrorKind::NotFound, &["target checkout", "registered are: none"]);
    scene.target(target());
    refused(target().gate(gate(), Policy::default().healthy_after(0)), &["gate errors"]);
    assert_eq!(scene.start(canary()).await.finished().await.exit_code(), 0);
}

#[test]
fn a_lease_out_of_range_is_refused() {
    for lease in [Duration::ZERO, Duration::from_millis(99), Duration::from_secs(3601), Duration::MAX] {
        let refused = Engine::builder(Memory::new()).lease(lease).listener(Log).build();
        says(refused, INVALID, &["the lease is", "100ms to 1h"]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_start_that_cannot_work_changes_nothing_and_leaves_no_record() {
    let fake = Fake::new("v1", "v2").weights([0, 50]);
    let scene = Scene::new();
    scene.target(checkout(&fake));
    let start = |plan| scene.engine.start(deploy(plan));
    let refused = start(canary()).await;
    says(refused, ErrorKind::Unsupported, &["step 1 of 3", "10 %", "only 0 %, 50 %, 100 %"]);
    let elsewhere = NewRollout::new("chekout", Revision::new("v2").unwrap(), canary()).unwrap();
    says(scene.engine.start(elsewhere).await, ErrorKind::NotFound, &["target chekout", "registered are: checkout"]);
    assert_eq!((fake.calls(), kept(&scene.store, "checkout").await.len()), (0, 0));

    let paced = Fake::new("v1", "v2").providers_pace(10, MINUTE);
    scene.target(checkout(&paced));
    let asks = Step::new(Weight::ALL, MINUTE).approved_by(Approval::anyone());
    let refused = start(Plan::new([asks]).unwrap()).await;
    says(refused, ErrorKind::Unsupported, &["step 1 of 1", "approval", "cannot be held"]);

    // Nobody can go back to two revisions at once.
    let mixed = Fake::new("v1", "v2");
    mixed.drift(&[("v1", 60), ("v2", 40)]);
    scene.target(checkout(&mixed));
    let refused = start(canary()).await;
    says(refused, ErrorKind::Mixed, &["none was promoted here", "v1 60 %, v2 40 %"]);
    assert_eq!((mixed.calls() + paced.calls(), kept(&scene.store, "checkout").await.len()), (0, 0));

    // A candidate that was never built is refused by preflight, which the record shows.
    let unbuilt = Fake::new("v1", "v3");
    scene.target(checkout(&unbuilt));
    let outcome = start(canary()).await.unwrap().finished().await;
    assert_eq!((outcome.exit_code(), unbuilt.calls()), (3, 0));
    assert!(outcome.to_string().contains("v2, the way forward, is not there: build it"), "{outcome}");
}

#[tokio::test(start_paused = true)]
async fn requests_by_nobody_for_nothing_or_of_unknown_things_change_nothing() {
    let (scene, fake) = (Scene::new(), Fake::new("v1", "v2"));
    scene.target(checkout(&fake).gate(Scripted::healthy("errors"), Policy::default()));
    let handle = scene.start(canary()).await;
    until(&handle, "baking").await;
    let before = handle.status().log.len();
    says(handle.abort("", "?").await, INVALID, &["who asks must be named"]);
    says(handle.pause("b\u{7}", "?").await, INVALID, &["who asks must be named", "control character"]);
    let checkout_id = TargetId::try_from("checkout").unwrap();
    says(scene.engine.roll_back(&checkout_id, "", "?").await, INVALID, &["who asks must be named"]);
    let request = Request::new(Ask::Abort, "ben", "?").unwrap();
    says(
        scene.engine.ask(&"no-such-rollout".parse().unwrap(), request).await,
        ErrorKind::NotFound,
        &["there is no rollout no-such-rollout"],
    );
    assert_eq!(handle.status().log.len(), before, "what nobody asked for is not in the record");
    says(
        handle.skip_gate("latency".parse().unwrap(), "ben", "?").await,
        INVALID,
        &["there is no gate latency", "there are: errors"],
    );
    says(handle.give_up("ben", "?").await, ErrorKind::Conflict, &["held or stuck", "baking at 10 %"]);
    says(handle.approve("ben", "?").await, ErrorKind::Conflict, &["no approval is waited for", "baking at 10 %"]);
    assert_eq!((handle.status().state.name(), fake.calls()), ("baking", 1));
    // A reason may be anything: it is cut to one line.
    handle.pause("ben", "line one\nline two\u{1b}[31m".to_owned() + &"x".repeat(5000)).await.unwrap();
    let told = handle.status().to_string();
    assert!(!told.contains(char::is_control) && told.len() < 1200, "{told}");
}

#[tokio::test(start_paused = true)]
async fn evidence_that_is_too_large_is_no_data_and_says_so() {
    let (scene, fake) = (Scene::new(), Fake::new("v1", "v2"));
    let hoards = gate::from_fn("hoards", |window| async move {
        Ok(Verdict::Healthy(Evidence::new(window.now, "fine").remember("m".repeat(9000).into())))
    });
    let policy = Policy::default().no_data(NoData::RollBack { after: MINUTE });
    scene.target(checkout(&fake).gate(hoards.unwrap(), policy));
    let outcome = scene.start(canary()).await.finished().await;
    let text = outcome.rollout.state.describe(&outcome.rollout.plan);
    assert!(text.contains("gate hoards has no data: the gate's evidence has 9"), "{text}");
    assert!(text.contains("8192"), "{text}");
    assert_eq!(outcome.exit_code(), 1);
}

/// An open rollout of `checkout` that was let go while it baked, guarded by the gates `errors` and `latency`.
async fn let_go(store: &Memory, clock: &TestClock, fake: &Fake, target: &str) -> RolloutId {
    let scene = Scene::on(store.clone(), clock.clone());
    scene.target(guarded(fake, target));
    let new = NewRollout::new(target, Revision::new("v2").unwrap(), canary()).unwrap();
    let handle = scene.engine.start(new.id(format!("{target}-1").parse().unwrap())).await.unwrap();
    until(&handle, "baking").await;
    scene.engine.shutdown(MINUTE).await;
    handle.id().clone()
}

fn guarded(fake: &Fake, target: &str) -> Target {
    let target = Target::new(target, fake.clone()).unwrap();
    let target = target.gate(Scripted::healthy("errors"), Policy::default());
    target.gate(Scripted::new("latency", [Answer::Healthy]), Policy::default())
}

/// Two rollouts are open; the record of the first is changed like this. It is refused with these words, nothing of it is
/// changed, and the second goes on.
async fn is_refused_alone(damage: impl Fn(&mut Record), kind: ErrorKind, names: &[&str]) {
    let (store, clock) = (Memory::new(), TestClock::new());
    let (fake, other) = (Fake::new("v1", "v2"), Fake::new("v1", "v2"));
    let id = let_go(&store, &clock, &fake, "checkout").await;
    let other_id = let_go(&store, &clock, &other, "billing").await;
    let (mut record, serial) = store.load(&id).await.unwrap();
    damage(&mut record);
    store.update(&record, serial).await.unwrap();
    let (before, calls) = (store.load(&id).await.unwrap(), fake.calls());

    let scene = Scene::on(store.clone(), clock);
    scene.target(guarded(&fake, "checkout"));
    scene.target(guarded(&other, "billing"));
    let mut resumed = scene.engine.resume_all().await.unwrap();
    assert_eq!((resumed.handles.len(), resumed.refused.len()), (1, 1), "{resumed:?}");
    let (refused, why) = resumed.refused.remove(0);
    assert_eq!(refused, id);
    says::<()>(Err(why), kind, names);
    assert_eq!(resumed.handles[0].id(), &other_id);
    assert_eq!(resumed.handles[0].finished().await.exit_code(), 0);
    // And again, as long as this process looks for orphans.
    tokio::time::sleep(MINUTE).await;
    assert_eq!((store.load(&id).await.unwrap(), fake.calls()), (before, calls), "nothing was changed");
    // Its target is busy, by name: nobody starts over what nobody can read.
    let busy = NewRollout::new("checkout", Revision::new("v2").unwrap(), canary()).unwrap();
    says(scene.engine.start(busy).await, ErrorKind::Conflict, &["checkout is busy with rollout checkout-1"]);
}

#[tokio::test(start_paused = true)]
async fn a_record_of_a_newer_format_is_left_alone_and_the_others_go_on() {
    let newer = |record: &mut Record| record.format = Rollout::FORMAT + 1;
    is_refused_alone(newer, ErrorKind::Unsupported, &["rollout checkout-1", "format 2", "reads format 1"]).await;
}

#[tokio::test(start_paused = true)]
async fn a_corrupt_record_is_left_alone_and_the_others_go_on() {
    let cut = |record: &mut Record| record.body = record.body[..record.body.len() / 2].into();
    is_refused_alone(cut, INVALID, &["the record of rollout checkout-1 is corrupt at line 1, column"]).await;
    let empty = |record: &mut Record| record.body = "".into();
    is_refused_alone(empty, INVALID, &["the record of rollout checkout-1 is corrupt"]).await;
    let renamed = |record: &mut Record| record.body = record.body.replace("checkout", "checkuot").into();
    is_refused_alone(renamed, INVALID, &["the record of rollout checkout-1 holds another rollout"]).await;
}

#[tokio::test(start_paused = true)]
async fn a_rollout_that_a_missing_gate_guards_is_not_taken_up_without_it() {
    let (store, clock, fake) = (Memory::new(), TestClock::new(), Fake::new("v1", "v2"));
    let id = let_go(&store, &clock, &fake, "checkout").await;
    let (before, calls) = (store.load(&id).await.unwrap(), fake.calls());
    let scene = Scene::on(store.clone(), clock.clone());
    scene.target(checkout(&fake).gate(Scripted::healthy("errors"), Policy::default()));
    let mut resumed = scene.engine.resume_all().await.unwrap();
    assert!(resumed.handles.is_empty(), "{resumed:?}");
    let (refused, why) = resumed.refused.remove(0);
    assert_eq!(refused, id);
    says::<()>(
        Err(why),
        INVALID,
        &["rollout checkout-1", "gate latency", "target checkout", "register the target with it"],
    );
    tokio::time::sleep(MINUTE).await;
    assert_eq!((store.load(&id).await.unwrap(), fake.calls()), (before, calls), "nothing was changed");
    // With the gate back, it goes on.
    scene.target(guarded(&fake, "checkout"));
    let resumed = scene.engine.resume_all().await.unwrap();
    assert_eq!(resumed.handles[0].finished().await.exit_code(), 0);
}
