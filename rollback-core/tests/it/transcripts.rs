//! Golden transcripts: whole runs as the person on call reads them, kept in `tests/transcripts`. A wording that changes,
//! a call too many, an event in another order shows as a diff. `ROLLBACK_UPDATE_TRANSCRIPTS=1` writes them anew; read
//! them before you commit them.

use std::{fmt::Write as _, path::PathBuf, time::Duration};

use jiff::{SignedDuration, Timestamp};
use rollback_core::{
    engine::{Engine, Outcome, WayBack},
    gate::{NoData, Policy},
    model::{Goal, Progress, TargetId, Weight},
    plan::{Approval, Deadlines, Plan, Step},
    rollout::{Entry, Rollout, What},
    state::State,
    store::Memory,
    strategy::AskPerson,
    testing::{
        clock::TestClock,
        fakes::{Fake, Happened, Seen},
        gates::{Answer, Scripted},
    },
};

use crate::support::{
    away::{Away, Way},
    scene::{MINUTE, Scene, canary, checkout, deploy, until},
};

/// What happened in the record and on the target, in one order, and what it came to.
fn transcript(title: &str, fake: &Fake, runs: &[&Outcome]) -> String {
    let mut text = format!("{title}\n");
    for outcome in runs {
        let rollout = &outcome.rollout;
        let (target, change) = (&rollout.change.target, &rollout.change);
        let (from, to) = (&change.baseline.id, &change.candidate.id);
        writeln!(text, "\n{target} from {from} to {to}, by {}: {}\n", rollout.author, rollout.reason).unwrap();
        let trace: Vec<Seen> = fake.trace().into_iter().filter(|seen| concerns(seen, rollout)).collect();
        text += &interleaved(rollout, &trace);
        writeln!(text, "\n{outcome}\nexit status {}", outcome.exit_code()).unwrap();
        for (number, driver) in drivers(rollout).iter().enumerate() {
            text = text.replace(driver.as_str(), &format!("P{}", number + 2));
        }
    }
    text
}

/// What happened on the target while this rollout was open. Rollouts of one transcript do not touch in time.
fn concerns(seen: &Seen, rollout: &Rollout) -> bool {
    let at = TestClock::START + SignedDuration::try_from(seen.at).unwrap();
    let over = if rollout.state.is_open() { Timestamp::MAX } else { rollout.log.last().unwrap().at };
    (rollout.created..=over).contains(&at)
}

/// Merges by time. Within one instant a look comes after the state that asked for it and before what it led to, and a
/// shift after the attempt that it carries.
fn interleaved(rollout: &Rollout, trace: &[Seen]) -> String {
    let (mut log, mut trace) = (&rollout.log[..], trace);
    let (mut text, mut state, mut last_look) = (String::new(), None::<State>, None);
    loop {
        let told = match (log.first(), trace.first()) {
            (None, None) => return text,
            (Some(_), None) => true,
            (None, Some(_)) => false,
            (Some(entry), Some(seen)) => {
                let at = TestClock::START + SignedDuration::try_from(seen.at).unwrap();
                entry.at < at || entry.at == at && !comes_first(&seen.what, state.as_ref(), log, rollout)
            }
        };
        if told {
            let Entry { at, what } = &log[0];
            log = &log[1..];
            if let What::Entered { to } = what {
                state = Some(to.clone());
                last_look = None;
            }
            line(&mut text, at.duration_since(TestClock::START), &what.describe(&rollout.plan));
        } else {
            let seen = &trace[0];
            trace = &trace[1..];
            let what = happened(&seen.what);
            // A look that sees what the look before it saw is no news, and how many there are is a matter of chance.
            if !matches!(&seen.what, Happened::Looked { .. }) || last_look.replace(what.clone()).as_ref() != Some(&what)
            {
                line(&mut text, SignedDuration::try_from(seen.at).unwrap(), &format!("    {what}"));
            }
        }
    }
}

fn comes_first(what: &Happened, state: Option<&State>, log: &[Entry], rollout: &Rollout) -> bool {
    match what {
        Happened::Looked { goal, .. } => match state {
            Some(State::Preflight) => *goal == Goal::Baseline,
            Some(state) => state.goal(&rollout.plan) == Some(*goal),
            None => false,
        },
        Happened::Asked(call) => !log
            .iter()
            .any(|entry| matches!(&entry.what, What::Attempted { attempt, .. } if attempt.nonce == call.nonce)),
        _ => true,
    }
}

/// Whole seconds: looks that wait for something are spread by chance.
fn line(text: &mut String, at: SignedDuration, what: &str) {
    let seconds = at.as_secs();
    writeln!(text, "{:>4}:{:02}  {what}", seconds / 60, seconds % 60).unwrap();
}

fn happened(what: &Happened) -> String {
    match what {
        Happened::Looked { goal, progress, weight, .. } => {
            let progress = match progress {
                Progress::Reached => "reached".into(),
                Progress::Due(effect) => format!("due: {effect}"),
                Progress::Underway(what) => format!("under way: {what}"),
                Progress::Failed(why) => format!("failed: {why}"),
                Progress::Drifted(what) => format!("drifted: {what}"),
            };
            format!("looked for {goal}: {progress}; the candidate has {weight}")
        }
        Happened::Asked(call) => format!("shift {} towards {}", call.number, call.goal),
        Happened::Landed { call, weight, .. } => {
            format!("shift {} landed; the candidate is to have {weight}", call.number)
        }
        Happened::Refused { call, why, .. } => format!("shift {} was refused: {why}", call.number),
        Happened::Moved(stands) => {
            let stands: Vec<String> = stands.iter().map(|(revision, weight)| format!("{revision} {weight}")).collect();
            format!("the target moved: {}", stands.join(", "))
        }
    }
}

fn drivers(rollout: &Rollout) -> Vec<String> {
    let claimed = rollout.log.iter().filter_map(|entry| match &entry.what {
        What::Claimed { driver } => Some(driver.to_string()),
        _ => None,
    });
    claimed.collect()
}

/// Compares with the kept file, or writes it anew when asked to.
#[track_caller]
fn is_kept(name: &str, text: &str) {
    let path: PathBuf = [env!("CARGO_MANIFEST_DIR"), "tests", "transcripts", &format!("{name}.txt")].iter().collect();
    if std::env::var_os("ROLLBACK_UPDATE_TRANSCRIPTS").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        return std::fs::write(path, text).unwrap();
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    assert!(kept == text, "transcript {name} has changed:\n{}", diff(&kept, text));
}

/// Line by line: what is gone with `-`, what is new with `+`.
fn diff(old: &str, new: &str) -> String {
    let (old, new): (Vec<&str>, Vec<&str>) = (old.lines().collect(), new.lines().collect());
    // The longest common lines from each place on.
    let mut common = vec![vec![0_usize; new.len() + 1]; old.len() + 1];
    for o in (0..old.len()).rev() {
        for n in (0..new.len()).rev() {
            let skip = common[o + 1][n].max(common[o][n + 1]);
            common[o][n] = if old[o] == new[n] { common[o + 1][n + 1] + 1 } else { skip };
        }
    }
    let (mut o, mut n, mut text) = (0, 0, String::new());
    while o < old.len() || n < new.len() {
        if o < old.len() && n < new.len() && old[o] == new[n] {
            writeln!(text, "  {}", old[o]).unwrap();
            (o, n) = (o + 1, n + 1);
        } else if n == new.len() || o < old.len() && common[o + 1][n] >= common[o][n + 1] {
            writeln!(text, "- {}", old[o]).unwrap();
            o += 1;
        } else {
            writeln!(text, "+ {}", new[n]).unwrap();
            n += 1;
        }
    }
    text
}

#[test]
fn a_diff_shows_what_is_gone_and_what_is_new() {
    assert_eq!(diff("a\nb\nc\n", "a\nx\nc\nd\n"), "  a\n- b\n+ x\n  c\n+ d\n");
}

fn weight(percent: u8) -> Weight {
    Weight::try_from(percent).unwrap()
}

fn first(plan: Plan) -> rollback_core::engine::NewRollout {
    deploy(plan).id("checkout-1".parse().unwrap())
}

#[tokio::test(start_paused = true)]
async fn a_canary_that_is_promoted() {
    let (scene, fake) = (Scene::new(), Fake::new("v1", "v2").several_effects());
    scene.target(checkout(&fake).gate(Scripted::healthy("errors"), Policy::default()));
    let outcome = scene.engine.start(first(canary())).await.unwrap().finished().await;
    is_kept("promoted", &transcript("A canary that is promoted.", &fake, &[&outcome]));
}

#[tokio::test(start_paused = true)]
async fn a_canary_that_a_gate_rolls_back() {
    let (scene, fake) = (Scene::new(), Fake::new("v1", "v2").several_effects().does_not_restore("config var PRICES"));
    let gate = Scripted::unhealthy_from("errors", weight(50));
    scene.target(checkout(&fake).gate(gate, Policy::default().unhealthy_after(2, 3)));
    let outcome = scene.engine.start(first(canary())).await.unwrap().finished().await;
    tokio::time::sleep(MINUTE).await;
    let again = scene.engine.start(deploy(canary())).await.unwrap().finished().await;
    let title = "A canary that a gate rolls back, and what becomes of the next try.";
    is_kept("rolled-back", &transcript(title, &fake, &[&outcome, &again]));
}

#[tokio::test(start_paused = true)]
async fn a_canary_that_a_person_aborts() {
    let (scene, fake) = (Scene::new(), Fake::new("v1", "v2"));
    scene.target(checkout(&fake).gate(Scripted::healthy("errors"), Policy::default()));
    let handle = scene.engine.start(first(canary())).await.unwrap();
    tokio::time::sleep(Duration::from_secs(90)).await;
    handle.abort("ben", "orders are missing").await.unwrap();
    let outcome = handle.finished().await;
    is_kept("aborted", &transcript("A canary that a person aborts.", &fake, &[&outcome]));
}

#[tokio::test(start_paused = true)]
async fn a_canary_without_data_that_holds_and_goes_on_by_itself() {
    let (scene, fake) = (Scene::new(), Fake::new("v1", "v2"));
    let gate = Scripted::healthy("errors");
    let policy = Policy::default().no_data(NoData::Hold { after: Duration::from_secs(30) });
    scene.target(checkout(&fake).gate(gate.clone(), policy));
    let handle = scene.engine.start(first(canary())).await.unwrap();
    tokio::time::sleep(Duration::from_secs(75)).await;
    gate.set(Answer::Inconclusive);
    tokio::time::sleep(Duration::from_secs(100)).await;
    gate.set(Answer::Healthy);
    let outcome = handle.finished().await;
    is_kept("no-data", &transcript("Data that goes missing and comes back.", &fake, &[&outcome]));
}

#[tokio::test(start_paused = true)]
async fn a_canary_without_data_until_nobody_came() {
    let (scene, fake) = (Scene::new(), Fake::new("v1", "v2"));
    let plan = canary().with_deadlines(Deadlines { hold: 10 * MINUTE, ..Deadlines::default() }).unwrap();
    scene.target(checkout(&fake).gate(Scripted::new("errors", [Answer::Inconclusive]), Policy::default()));
    let outcome = scene.engine.start(first(plan)).await.unwrap().finished().await;
    is_kept("no-data-at-all", &transcript("Data that never comes.", &fake, &[&outcome]));
}

#[tokio::test(start_paused = true)]
async fn a_pause_that_nobody_ends() {
    let (scene, fake) = (Scene::new(), Fake::new("v1", "v2"));
    let plan = canary().with_deadlines(Deadlines { hold: 10 * MINUTE, ..Deadlines::default() }).unwrap();
    scene.target(checkout(&fake));
    let handle = scene.engine.start(first(plan)).await.unwrap();
    tokio::time::sleep(Duration::from_secs(30)).await;
    handle.pause("ben", "the sale begins").await.unwrap();
    let outcome = handle.finished().await;
    is_kept("paused", &transcript("A pause that nobody ends.", &fake, &[&outcome]));
}

#[tokio::test(start_paused = true)]
async fn steps_that_wait_for_approval() {
    let (scene, fake) = (Scene::new(), Fake::new("v1", "v2"));
    scene.target(checkout(&fake).gate(Scripted::healthy("errors"), Policy::default()));
    let people = ["ana", "ben", "cid"].map(|name| name.parse().unwrap());
    let asks = Step::new(weight(10), MINUTE).approved_by(Approval::of(2, people));
    let plan = Plan::new([asks, Step::new(Weight::ALL, MINUTE)]).unwrap();
    let handle = scene.engine.start(first(plan)).await.unwrap();
    tokio::time::sleep(2 * MINUTE).await;
    handle.approve("ana", "mine").await.unwrap_err();
    handle.approve("ben", "looks fine").await.unwrap();
    tokio::time::sleep(MINUTE).await;
    handle.resume("ben", "go on").await.unwrap_err();
    handle.approve("cid", "orders are right").await.unwrap();
    let outcome = handle.finished().await;
    is_kept("approval", &transcript("A step that two people approve.", &fake, &[&outcome]));
}

#[tokio::test(start_paused = true)]
async fn a_tripped_gate_that_waits_for_a_person_who_breaks_the_glass() {
    let (scene, fake) = (Scene::new(), Fake::new("v1", "v2"));
    let gate = Scripted::unhealthy_from("errors", weight(50));
    scene.target(checkout(&fake).gate(gate, Policy::default()).strategy(AskPerson));
    let handle = scene.engine.start(first(canary())).await.unwrap();
    until(&handle, "holding").await;
    tokio::time::sleep(MINUTE).await;
    handle.promote_now("ben", "the fix must go out").await.unwrap();
    let outcome = handle.finished().await;
    is_kept("promote-now", &transcript("A person breaks the glass.", &fake, &[&outcome]));
}

#[tokio::test(start_paused = true)]
async fn a_rollback_that_is_stuck_and_resumed() {
    let (scene, fake) = (Scene::new(), Fake::new("v1", "v2"));
    scene.target(checkout(&fake).gate(Scripted::unhealthy_from("errors", weight(50)), Policy::default()));
    let handle = scene.engine.start(first(canary())).await.unwrap();
    tokio::time::sleep(Duration::from_secs(30)).await;
    fake.fail_goal(Goal::Baseline, 2);
    let stuck = handle.finished().await;
    tokio::time::sleep(5 * MINUTE).await;
    handle.resume("ben", "the quota was raised").await.unwrap();
    let outcome = handle.finished().await;
    let text = transcript("A rollback that is stuck, and resumed by a person.", &fake, &[&outcome]);
    is_kept("stuck", &format!("{text}\nWhile it was stuck:\n\n{stuck}\nexit status {}\n", stuck.exit_code()));
}

#[tokio::test(start_paused = true)]
async fn a_rollback_that_takes_too_long() {
    let fake = Fake::new("v1", "v2").providers_pace(100, 60 * MINUTE).goes_back_by_itself_at(Weight::ALL);
    let scene = Scene::new();
    let plan = Plan::all_at_once(MINUTE).unwrap();
    let plan = plan.with_deadlines(Deadlines { roll_back: 10 * MINUTE, ..Deadlines::default() }).unwrap();
    scene.target(checkout(&fake).look_every(Duration::from_millis(100), Duration::from_secs(10)));
    let outcome = scene.engine.start(first(plan)).await.unwrap().finished().await;
    is_kept("too-long", &transcript("A platform that takes too long to go back.", &fake, &[&outcome]));
}

#[tokio::test(start_paused = true)]
async fn a_start_that_is_refused() {
    let (scene, fake) = (Scene::new(), Fake::new("v1", "v2"));
    fake.refuse_preflight("the image of v1 is gone from the registry: push it again");
    scene.target(checkout(&fake));
    let refused = scene.engine.start(first(canary())).await.unwrap().finished().await;
    let serves = rollback_core::engine::NewRollout::new(
        "checkout",
        rollback_core::model::Revision::new("v1").unwrap(),
        canary(),
    );
    let serves = serves.unwrap().by("ana").unwrap().because("again").id("checkout-2".parse().unwrap());
    tokio::time::sleep(MINUTE).await;
    let serves = scene.engine.start(serves).await.unwrap().finished().await;
    let title = "A start that preflight refuses, and one that has nothing to do.";
    is_kept("refused", &transcript(title, &fake, &[&refused, &serves]));
}

#[tokio::test(start_paused = true)]
async fn drift_that_is_left_alone() {
    let (scene, fake) = (Scene::new(), Fake::new("v1", "v2"));
    scene.target(checkout(&fake).gate(Scripted::healthy("errors"), Policy::default()));
    let handle = scene.engine.start(first(canary())).await.unwrap();
    tokio::time::sleep(Duration::from_secs(25)).await;
    fake.drift(&[("hotfix", 100)]);
    let outcome = handle.finished().await;
    is_kept("drift", &transcript("Somebody else changes the target.", &fake, &[&outcome]));
}

#[tokio::test(start_paused = true)]
async fn a_rollout_that_a_second_process_takes_over() {
    let (memory, clock, fake) = (Memory::new(), TestClock::new(), Fake::new("v1", "v2"));
    let store = Away::to(&memory);
    let engine = Engine::builder(store.clone()).clock(clock.clone()).build().unwrap();
    engine.register(checkout(&fake).gate(Scripted::healthy("errors"), Policy::default())).unwrap();
    let handle = engine.start(first(canary())).await.unwrap();
    let other = Scene::on(memory, clock);
    other.target(checkout(&fake).gate(Scripted::healthy("errors"), Policy::default()));
    assert_eq!(other.engine.resume_all().await.unwrap().elsewhere.len(), 1);
    tokio::time::sleep(Duration::from_secs(30)).await;
    store.set(Way::Fails);
    let taken = loop {
        tokio::time::sleep(Duration::from_millis(100)).await;
        if let Some(taken) = other.engine.handle(handle.id()) {
            break taken;
        }
    };
    store.set(Way::Open);
    let (left, outcome) = (handle.finished().await, taken.finished().await);
    let text = transcript("A process that loses its store is replaced by another.", &fake, &[&outcome]);
    let left = format!("\nWhat the first process said:\n\n{left}\nexit status {}\n", left.exit_code());
    is_kept("taken-over", &(text + &left.replace(&drivers(&outcome.rollout)[0], "P2")));
}

#[tokio::test(start_paused = true)]
async fn a_rollout_that_is_let_go_by_a_shutdown() {
    let (scene, fake) = (Scene::new(), Fake::new("v1", "v2"));
    scene.target(checkout(&fake).gate(Scripted::healthy("errors"), Policy::default()));
    let handle = scene.engine.start(first(canary())).await.unwrap();
    tokio::time::sleep(Duration::from_secs(25)).await;
    scene.engine.shutdown(Duration::from_secs(5)).await;
    let outcome = handle.finished().await;
    is_kept("shutdown", &transcript("The process is told to end.", &fake, &[&outcome]));
}

#[tokio::test(start_paused = true)]
async fn blue_and_green() {
    let (scene, fake) = (Scene::new(), Fake::new("v1", "v2").several_effects().weights([0]));
    scene.target(checkout(&fake).gate(Scripted::healthy("errors"), Policy::default()));
    let plan = Plan::blue_green(MINUTE, 2 * MINUTE).unwrap();
    let outcome = scene.engine.start(first(plan)).await.unwrap().finished().await;
    is_kept("blue-green", &transcript("Blue/green: a preview without traffic, then all of it.", &fake, &[&outcome]));
}

#[tokio::test(start_paused = true)]
async fn the_platforms_own_pace() {
    let fake = Fake::new("v1", "v2").providers_pace(30, Duration::from_secs(30));
    let fake = fake.goes_back_by_itself_at(weight(90));
    let scene = Scene::new();
    let quick = Duration::from_millis(100);
    scene.target(
        checkout(&fake).gate(Scripted::healthy("errors"), Policy::default()).look_every(quick, Duration::from_secs(10)),
    );
    let plan = Plan::all_at_once(MINUTE).unwrap();
    let outcome = scene.engine.start(first(plan)).await.unwrap().finished().await;
    let title = "The platform moves the traffic at its own pace, and goes back by itself.";
    is_kept("providers-pace", &transcript(title, &fake, &[&outcome]));
}

#[tokio::test(start_paused = true)]
async fn a_promoted_rollout_that_a_person_takes_back() {
    let (scene, fake) = (Scene::new(), Fake::new("v1", "v2"));
    let gate = Scripted::healthy("errors");
    scene.target(checkout(&fake).gate(gate.clone(), Policy::default()));
    let plan = Plan::all_at_once(MINUTE).unwrap();
    let promoted = scene.engine.start(first(plan)).await.unwrap().finished().await;
    let id = TargetId::try_from("checkout").unwrap();
    tokio::time::sleep(MINUTE).await;
    let back = scene.engine.roll_back(&id, "ben", "prices are wrong").await.unwrap();
    let WayBack::Started(handle) = back else { panic!("nothing to take back: {back:?}") };
    gate.set(Answer::Unhealthy);
    until(&handle, "holding").await;
    tokio::time::sleep(MINUTE).await;
    gate.set(Answer::Healthy);
    handle.resume("ben", "the errors are the old ones").await.unwrap();
    let outcome = handle.finished().await;
    let again = scene.engine.roll_back(&id, "ben", "prices are wrong").await.unwrap();
    let WayBack::Nothing(why) = again else { panic!("taken back twice: {again:?}") };
    let text = transcript("A person takes a finished rollout back.", &fake, &[&promoted, &outcome]);
    let text = text.replace(outcome.rollout.id().as_str(), "checkout-2");
    is_kept("taken-back", &format!("{text}\nSaid again: {why}\n"));
}
