//! Records that must stay readable: `tests/records` keeps one of format 1 for each state. Every later version loads them
//! and goes on from them. `ROLLBACK_UPDATE_RECORDS=1` writes them anew, which is only right while no version that wrote
//! them was ever released.

use std::{path::PathBuf, sync::Arc};

use proptest::{
    prelude::Rng as _,
    test_runner::{RngAlgorithm, TestRng},
};
use rollback_core::{
    ErrorKind,
    backend::DeploymentBackend as _,
    engine::{Handle, NewRollout, Target},
    gate::Policy,
    model::{DriverId, Goal, Revision, Weight},
    plan::{Approval, Plan, Step},
    rollout::{Rollout, What},
    store::{Memory, Record, Standing, Store as _},
    testing::{
        backend::Bench as _,
        clock::TestClock,
        fakes::{Fake, Fault},
        gates::Scripted,
    },
};
use serde_json::Value;

use crate::support::scene::{MINUTE, Scene, checkout, until, until_over};

/// Each state, and where a rollout that is found in it ends.
const STATES: [(&str, &str); 11] = [
    ("preflight", "promoted"),
    ("shifting", "promoted"),
    ("baking", "promoted"),
    ("holding", "promoted"),
    ("promoting", "promoted"),
    ("rolling_back", "rolled_back"),
    ("stuck", "rolled_back"),
    ("promoted", "promoted"),
    ("rolled_back", "rolled_back"),
    ("refused", "refused"),
    ("abandoned", "abandoned"),
];

fn guarded(fake: &Fake) -> Target {
    checkout(fake)
        .gate(Scripted::healthy("errors"), Policy::default())
        .gate(Scripted::healthy("pager"), Policy::default())
}

fn weight(percent: u8) -> Weight {
    Weight::try_from(percent).unwrap()
}

/// A rollout in this state, as it was saved; the same at every run.
async fn in_state(state: &str) -> Rollout {
    let (scene, fake) = (Scene::new(), Fake::new("v1", "v2"));
    let ten = Step::new(weight(10), MINUTE);
    let ten = match state {
        "holding" => ten.approved_by(Approval::of(2, ["ben", "cid"].map(|name| name.parse().unwrap()))),
        _ => ten,
    };
    let plan = Plan::new([ten, Step::new(weight(50), MINUTE), Step::new(Weight::ALL, MINUTE)]).unwrap();
    let v2 = Revision::new("v2").unwrap().with_spec("sealed by the caller").unwrap();
    let new = NewRollout::new("checkout", v2, plan).unwrap().by("ana").unwrap().because("release 42");
    let hang = Fault::Hang { landed: false };
    let bad = Scripted::unhealthy_from("errors", weight(50));
    let target = match state {
        "rolling_back" | "rolled_back" | "stuck" => {
            checkout(&fake).gate(bad, Policy::default()).gate(Scripted::healthy("pager"), Policy::default())
        }
        _ => guarded(&fake),
    };
    match state {
        "preflight" => fake.hang_read(1),
        "shifting" => fake.fault(0, hang),
        "promoting" => fake.fault(3, hang),
        "rolling_back" => fake.fault(2, hang),
        "refused" => fake.refuse_preflight("the image of v1 is gone; push it again"),
        _ => {}
    }
    scene.target(target);
    let handle = scene.engine.start(new.id("checkout-1".parse().unwrap())).await.unwrap();
    match state {
        "preflight" => {}
        "shifting" | "promoting" | "rolling_back" => attempted(&handle, state).await,
        "baking" => {
            until(&handle, "baking").await;
            handle.skip_gate("pager".parse().unwrap(), "ben", "its server moves").await.unwrap();
            tokio::time::sleep(MINUTE / 2).await;
        }
        "holding" => {
            until(&handle, "holding").await;
            handle.approve("ben", "looks fine").await.unwrap();
        }
        "abandoned" => {
            until(&handle, "baking").await;
            fake.drift(&[("hotfix", 100)]);
            until_over(&handle).await;
        }
        "stuck" => {
            until(&handle, "baking").await;
            fake.fail_goal(Goal::Baseline, 2);
            drop(handle.finished().await);
        }
        _ => until_over(&handle).await,
    }
    let rollout = handle.status();
    assert_eq!(rollout.state.name(), state, "{rollout}");
    Arc::unwrap_or_clone(rollout)
}

/// Waits until the attempt of this state is saved.
async fn attempted(handle: &Handle, state: &str) {
    let mut handle = handle.clone();
    let here = |rollout: &Rollout| {
        let goal = rollout.state.goal(&rollout.plan);
        rollout.state.name() == state && rollout.attempt.as_ref().is_some_and(|attempt| Some(attempt.goal) == goal)
    };
    while !here(&handle.status()) {
        assert!(handle.changed().await.is_some(), "it ended as {}", handle.status());
    }
}

fn path(state: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "tests", "records", &format!("v1-{state}.json")].iter().collect()
}

/// The record as it is kept: the envelope, and the body as JSON instead of text, so that people can read it.
fn kept(record: &Record) -> Value {
    let mut value = serde_json::to_value(record).unwrap();
    value["body"] = serde_json::from_str(&record.body).unwrap();
    value
}

fn load(state: &str) -> (Value, Record) {
    let path = path(state);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let value: Value = serde_json::from_str(&text).unwrap();
    let mut record = value.clone();
    record["body"] = Value::String(value["body"].to_string());
    (value, serde_json::from_value(record).unwrap())
}

fn records() -> Vec<Record> {
    STATES.iter().map(|(state, _)| load(state).1).collect()
}

/// What the engine saves at which instant may change from version to version; what it saved must stay readable.
#[tokio::test(start_paused = true)]
async fn a_record_of_each_state_is_read_as_it_was_written_and_kept_when_asked_for() {
    let driver = DriverId::try_from("driver-1").unwrap();
    for (state, _) in STATES {
        let rollout = in_state(state).await;
        let record = rollout.to_record(Some(&driver), 3).unwrap();
        assert_eq!(Rollout::from_record(&record).unwrap(), rollout, "{state}");
        if std::env::var_os("ROLLBACK_UPDATE_RECORDS").is_some() {
            std::fs::create_dir_all(path(state).parent().unwrap()).unwrap();
            std::fs::write(path(state), serde_json::to_string_pretty(&kept(&record)).unwrap() + "\n").unwrap();
        }
    }
}

#[test]
fn every_kept_record_loads_and_is_written_back_the_same() {
    for (state, _) in STATES {
        let (value, record) = load(state);
        let rollout = Rollout::from_record(&record).unwrap_or_else(|e| panic!("{state}: {e}"));
        assert_eq!(rollout.state.name(), state);
        let again = rollout.to_record(record.driver.as_ref(), record.heard).unwrap();
        assert_eq!(kept(&again), value, "{state}");
    }
}

#[tokio::test(start_paused = true)]
async fn every_kept_record_is_taken_up_where_it_stands_and_ends_as_it_should() {
    for (state, end) in STATES {
        let (_, record) = load(state);
        let rollout = Rollout::from_record(&record).unwrap();
        let (memory, clock, fake) = (Memory::new(), TestClock::new(), Fake::new("v1", "v2"));
        clock.jump(rollout.entered.duration_since(TestClock::START));
        // The target as that rollout left it: every attempt landed.
        for entry in &rollout.log {
            if let What::Attempted { attempt, .. } = &entry.what {
                fake.shift(&rollout.change, attempt.goal, attempt).await.unwrap();
            }
        }
        let calls = fake.calls();
        memory.create(&record).await.unwrap();
        let scene = Scene::on(memory.clone(), clock);
        scene.target(guarded(&fake));
        let resumed = scene.engine.resume_all().await.unwrap();
        assert!(resumed.refused.is_empty(), "{state}: {:?}", resumed.refused);
        if record.standing != Standing::Open {
            assert!(resumed.handles.is_empty(), "{state} is over");
            tokio::time::sleep(MINUTE).await;
            assert_eq!(
                (memory.load(&record.id).await.unwrap().0, fake.calls()),
                (record, calls),
                "{state} is left alone"
            );
            continue;
        }
        let [handle] = resumed.handles.as_slice() else { panic!("{state}: {resumed:?}") };
        match state {
            "holding" => drop(handle.approve("cid", "fine").await.unwrap()),
            "stuck" => {
                tokio::time::sleep(60 * MINUTE).await;
                assert_eq!((handle.status().state.name(), fake.calls()), ("stuck", calls), "only a person goes on");
                handle.resume("ben", "the quota was raised").await.unwrap();
            }
            _ => {}
        }
        let outcome = handle.finished().await;
        assert_eq!(outcome.rollout.state.name(), end, "from {state}: {outcome}");
        assert!(fake.only(if end == "promoted" { "v2" } else { "v1" }), "from {state}: {fake:?}");
    }
}

#[test]
fn an_unknown_format_is_refused_by_both_numbers() {
    let (_, mut record) = load("baking");
    record.format = 7;
    let refused = Rollout::from_record(&record).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unsupported);
    assert_eq!(refused.chain(), "the record of rollout checkout-1 has format 7; this version reads format 1");
}

#[test]
fn a_record_that_contradicts_itself_is_refused_by_name() {
    let refused = |state: &str, change: &dyn Fn(&mut Value, &mut Record)| {
        let (value, mut record) = load(state);
        let mut body = value["body"].clone();
        change(&mut body, &mut record);
        record.body = body.to_string().into();
        Rollout::from_record(&record).unwrap_err().chain()
    };
    let other = |_: &mut Value, record: &mut Record| record.id = "checkout-2".parse().unwrap();
    assert_eq!(refused("baking", &other), "the record of rollout checkout-2 holds another rollout");
    let other = |_: &mut Value, record: &mut Record| record.subject = "billing".parse().unwrap();
    assert_eq!(refused("baking", &other), "the record of rollout checkout-1 holds another rollout");
    let beyond = |body: &mut Value, _: &mut Record| body["state"]["step"] = 3.into();
    assert_eq!(refused("baking", &beyond), "the record of rollout checkout-1 is at a step its plan lacks");
    let beyond = |body: &mut Value, _: &mut Record| body["state"]["from"]["step"] = 3.into();
    assert_eq!(refused("holding", &beyond), "the record of rollout checkout-1 is at a step its plan lacks");
    let unasked = |body: &mut Value, _: &mut Record| body["state"]["from"]["step"] = 1.into();
    assert_eq!(
        refused("holding", &unasked),
        "the record of rollout checkout-1 waits for an approval its plan does not ask for"
    );
    let over = |_: &mut Value, record: &mut Record| record.standing = Standing::Over;
    assert_eq!(
        refused("baking", &over),
        "the record of rollout checkout-1 is marked over and holds one that is baking"
    );
    let plan = |body: &mut Value, _: &mut Record| body["plan"]["steps"][2]["weight"] = 20.into();
    assert!(refused("baking", &plan).starts_with("the record of rollout checkout-1 is corrupt at line 1, column "));
}

/// Whatever came of it: no panic, no other rollout, and either a rollout that can be told and written, or an error that
/// names the rollout and quotes nothing.
fn survives(record: &Record, secrets: &[String]) -> bool {
    match Rollout::from_record(record) {
        Ok(rollout) => {
            assert_eq!((rollout.id(), &rollout.change.target), (&record.id, &record.subject));
            let _ = (rollout.to_string(), format!("{rollout:?}"));
            for entry in &rollout.log {
                assert!(!entry.what.describe(&rollout.plan).is_empty());
            }
            let again = rollout.to_record(record.driver.as_ref(), record.heard).unwrap();
            assert_eq!(Rollout::from_record(&again).unwrap(), rollout);
            true
        }
        Err(e) => {
            let text = format!("{} {e:?}", e.chain());
            assert!(text.contains("checkout-1"), "{text}");
            assert!(!secrets.iter().any(|secret| text.contains(secret)), "{text}");
            false
        }
    }
}

fn secrets() -> Vec<String> {
    vec![Fake::new("v1", "v2").secret().unwrap(), "sealed by the caller".into()]
}

#[test]
fn no_truncated_record_is_taken_for_a_whole_one() {
    let secrets = secrets();
    for mut record in records() {
        let body = Arc::clone(&record.body);
        for end in (0..body.len()).filter(|end| body.is_char_boundary(*end)) {
            record.body = body[..end].into();
            assert!(!survives(&record, &secrets), "{end} of {} bytes were loaded", body.len());
        }
    }
}

#[test]
fn no_record_with_a_flipped_bit_panics_or_loads_as_nonsense() {
    let secrets = secrets();
    let mut random = TestRng::from_seed(RngAlgorithm::ChaCha, &[7; 32]);
    let (mut loaded, mut refused) = (0, 0);
    for mut record in records() {
        let body = Arc::clone(&record.body);
        for _ in 0..300 {
            let mut bytes = body.as_bytes().to_vec();
            let at = random.next_u32() as usize % bytes.len();
            bytes[at] ^= 1 << (random.next_u32() % 7);
            // A store hands out text.
            let Ok(text) = String::from_utf8(bytes) else { continue };
            record.body = text.into();
            if survives(&record, &secrets) { loaded += 1 } else { refused += 1 }
        }
    }
    assert!(loaded > 300 && refused > 300, "{loaded} loaded, {refused} refused: the flips miss half of it");
}
