//! Backends on trial: the promises, the sweeps, whole rollouts, and looks by watch.

use std::time::Duration;

use rollback_core::{
    backend::DeploymentBackend,
    engine::{Engine, NewRollout, Outcome, Target},
    gate::Policy,
    model::{Goal, Progress, Revision, Weight},
    plan::Plan,
    state::State,
    store::Memory,
    testing::{
        backend::{self, Bench, Driver, Outcome as Kept},
        gates::Scripted,
        sweep::{Scenario, Sweep},
    },
};
use rollback_k8s::testing::{Cluster, Fault};
use tokio::time::Instant;

/// Tries every promise of a backend, and says which of them could not be tried.
pub(crate) async fn keeps_every_promise(bench: &dyn Bench) {
    for (promise, outcome) in backend::all(bench).await {
        if let Kept::Skipped(why) = outcome {
            println!("{promise} was skipped: {why}");
        }
    }
}

/// Goes through everything that can go wrong in the ready-made scenarios of these names.
pub(crate) async fn gets_over(what: &str, bench: &dyn Bench, names: &[&str]) {
    let mut scenarios = Scenario::ready_made(bench).await;
    scenarios.retain(|it| names.contains(&it.name()));
    assert_eq!(scenarios.len(), names.len(), "not all of {names:?} are there");
    eprintln!("{what}: {}", Sweep::of(bench).scenarios(scenarios).all().await);
}

/// A whole rollout, with a gate to which it is unhealthy from this share on.
pub(crate) async fn roll_out(
    backend: impl DeploymentBackend,
    candidate: Revision,
    plan: Plan,
    unhealthy_from: Option<u8>,
) -> Outcome {
    let gate = match unhealthy_from {
        Some(percent) => Scripted::unhealthy_from("errors", Weight::try_from(percent).unwrap()),
        None => Scripted::healthy("errors"),
    };
    let engine = Engine::new(Memory::new()).unwrap();
    let target = Target::new("web", backend).unwrap().gate(gate, Policy::default().every(Duration::from_millis(100)));
    engine.register(target.look_every(Duration::from_millis(100), Duration::from_millis(500))).unwrap();
    let outcome = engine.start(NewRollout::new("web", candidate, plan).unwrap()).await.unwrap().finished().await;
    engine.shutdown(Duration::from_secs(5)).await;
    outcome
}

/// Promoted, and this is listed as what a webhook that takes no dry runs may say, and nothing else.
pub(crate) fn promoted_untried(outcome: &Outcome, what: &[&str]) {
    assert_eq!(outcome.rollout.state, State::Promoted, "{outcome}");
    let listed = outcome.rollout.readiness.not_provable.iter().map(|note| note.as_str());
    let untried: Vec<&str> = listed.filter(|note| note.contains("does not support dry run")).collect();
    let is_listed =
        |what: &&str| untried.iter().any(|note| note.starts_with(&format!("that the API server accepts {what}:")));
    assert!(what.iter().all(is_listed) && untried.len() == what.len(), "{what:?}: {untried:?}");
}

/// Looks at this goal by watches of these objects hide nothing: neither what was just written, nor, while no watch goes
/// on, what somebody else changes: before a write and before an end at once, and else in a while.
pub(crate) async fn hides_nothing_by_watch(bench: &dyn Bench, cluster: &Cluster, plural: &str, goal: Goal) {
    bench.reset().await;
    let mut driver = Driver::new(bench).await;
    driver.drive(goal).await;
    let before = driver.look(goal).await;
    // From now on the watch hears nothing for 3 s.
    cluster.fault("watch=true", 1, Fault::Hang);
    next_watch(cluster).await;
    let attempt = driver.save(goal, &before.version);
    driver.send(&attempt).await.unwrap();
    let look = driver.look(goal).await;
    assert!(look.landed && look.version != before.version, "{look:?}");

    driver.drive(goal).await;
    next_watch(cluster).await;
    // From now on there is none.
    cluster.fault(&format!("/{plural}?"), usize::MAX, Fault::Refuse(503, 0));
    next_watch(cluster).await;
    assert!(bench.drift().await);
    assert_eq!(driver.look(goal).await.progress, Progress::Reached, "what was heard is believed for a while");
    for end in [Goal::Candidate, Goal::Baseline] {
        let progress = driver.look(end).await.progress;
        assert!(matches!(progress, Progress::Drifted(_)), "{end}, without asking: {progress:?}");
    }
    for _ in 0..60 {
        if let Progress::Drifted(_) = driver.look(goal).await.progress {
            return;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    panic!("a minute without a watch, and nothing is noticed");
}

/// Waits until the watch has ended and is asked for again.
async fn next_watch(cluster: &Cluster) {
    let watches = || cluster.requests().iter().filter(|line| line.contains("watch=true")).count();
    let (before, begun) = (watches(), Instant::now());
    while watches() == before {
        assert!(begun.elapsed() < Duration::from_secs(60), "nothing is watched");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
