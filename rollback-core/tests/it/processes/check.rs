//! What must hold on the trace of a rollout, whoever drove it and however often they were killed or stopped.

use std::collections::{BTreeMap, HashMap, HashSet};

use rollback_core::{
    model::{Goal, Nonce, Serial},
    rollout::{Rollout, What},
};

use crate::support::{
    target::{World, Written},
    trace::{Did, Line, Saved},
};

/// Checks everything.
pub(super) fn trace(lines: &[Line], world: &World, rollout: &Rollout) {
    records(lines, rollout);
    let asked = asks(lines);
    target(world, rollout, &asked);
    log(rollout);
}

/// The record only ever goes on: each serial is written once, and what was saved is not forgotten.
fn records(lines: &[Line], rollout: &Rollout) {
    let mut saves: BTreeMap<Serial, &Saved> = BTreeMap::new();
    for line in lines {
        if let Did::Saved(saved) = &line.what {
            let other = saves.insert(saved.serial, saved);
            assert!(other.is_none(), "serial {} was saved twice: {other:?}, {saved:?}", saved.serial);
        }
    }
    let end = Saved::new(rollout, Serial(u64::MAX));
    let saves: Vec<&Saved> = saves.into_values().collect();
    for pair in saves.windows(2) {
        assert!(pair[0].open, "an end was saved, and then {:?}", pair[1]);
    }
    // Whoever saved the end may have been killed before it heard of it.
    for (old, new) in saves.iter().zip(saves.iter().skip(1).chain([&&end])) {
        assert!(new.entered.starts_with(&old.entered), "states were forgotten between {old:?} and {new:?}");
        assert!(new.tripped || !old.tripped, "P1: a tripped gate was forgotten between {old:?} and {new:?}");
        if new.entered.len() == old.entered.len() {
            assert!(new.watched >= old.watched, "watched time fell between {old:?} and {new:?}");
            assert_eq!(new.deadline, old.deadline, "P7: the deadline was reset between {old:?} and {new:?}");
        }
    }
}

/// Who asks for a shift has saved it and still drives the rollout, and once a rollback is decided nobody asks for more
/// candidate. Returns what was asked.
fn asks(lines: &[Line]) -> HashMap<&Nonce, Goal> {
    let mut asked = HashMap::new();
    let mut promised: HashSet<(u32, &Nonce)> = HashSet::new();
    let mut unanswered: HashSet<u32> = HashSet::new();
    let mut last: Option<(u32, &Saved)> = None;
    for Line { pid, what, .. } in lines {
        match what {
            Did::Saving(_) | Did::NotSaved { .. } => {
                unanswered.insert(*pid);
            }
            Did::Saved(saved) => {
                unanswered.remove(pid);
                promised.extend(saved.nonce.as_ref().map(|nonce| (*pid, nonce)));
                // A process that was stopped may be late to hear what it saved.
                if last.is_none_or(|(_, last)| last.serial < saved.serial) {
                    last = Some((*pid, saved));
                }
            }
            Did::Asked { nonce, goal, .. } => {
                // The one exception: a rollback does not wait for ever for a store that does not answer.
                let unsaved = *goal == Goal::Baseline && unanswered.contains(pid);
                assert!(unsaved || promised.contains(&(*pid, nonce)), "P4: {nonce} was asked and not saved");
                assert!(asked.insert(nonce, *goal).is_none(), "P6: {nonce} was asked twice");
                // Who was stopped between its promise and the call cannot know better. The target does.
                if let Some((driver, saved)) = last
                    && driver == *pid
                {
                    assert!(saved.open, "{nonce} was asked after the end");
                    let back = saved.state == "rolling_back";
                    assert!(!(back && goal.is_forward()), "P1: {nonce} was asked after the rollback was decided");
                }
            }
            _ => {}
        }
    }
    asked
}

/// Every change of the target was asked for, landed once, and nothing went forward after the way back had begun.
fn target(world: &World, rollout: &Rollout, asked: &HashMap<&Nonce, Goal>) {
    let prefix = format!("{}/", rollout.id());
    let ours = |written: &&Written| written.nonce.as_ref().is_some_and(|nonce| nonce.as_str().starts_with(&prefix));
    let mut seen = HashSet::new();
    let mut back = false;
    for Written { nonce, .. } in world.writes.iter().filter(ours) {
        let nonce = nonce.as_ref().expect("ours have one");
        let goal = asked.get(nonce).unwrap_or_else(|| panic!("{nonce} landed, and nobody asked for it"));
        assert!(seen.insert(nonce), "{nonce} landed twice");
        back |= *goal == Goal::Baseline;
        assert!(!(back && goal.is_forward()), "P1: {nonce} landed after the way back had begun");
    }
}

/// The log tells the whole way, from state to state, without a gap.
fn log(rollout: &Rollout) {
    let cut = rollout.log.iter().any(|entry| matches!(entry.what, What::Cut { .. }));
    assert!(!cut, "the log is too long to be checked: {}", rollout.log.len());
    assert!(rollout.log.is_sorted_by_key(|entry| entry.at), "the log goes back in time: {:?}", rollout.log);
    let entered = Saved::new(rollout, Serial(u64::MAX)).entered;
    let forward = ["shifting 0", "baking 0", "shifting 1", "baking 1", "shifting 2", "baking 2"];
    let way = |end: &[&'static str], steps: usize| -> Vec<&str> {
        ["preflight"].into_iter().chain(forward[..steps].iter().copied()).chain(end.iter().copied()).collect()
    };
    // The gate finds a bad candidate at the second step: as it gets there, or in the bake.
    let ways = match entered.last().map(String::as_str) {
        Some("promoted") => vec![way(&["promoting", "promoted"], forward.len())],
        _ => [3, 4].map(|steps| way(&["rolling_back", "rolled_back"], steps)).into(),
    };
    assert!(ways.iter().any(|way| *way == entered), "the log tells of another way: {entered:?}");
}
