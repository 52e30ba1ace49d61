//! An exhaustive search of the machine: every order in which two drivers, a store, a target and calls that come late can
//! meet, in a small world. The real [`State`] decides; the rest is in [`world`].

mod world;

use std::{
    collections::{HashMap, VecDeque},
    fmt::Write,
    hash::{Hash, Hasher},
};

use rollback_core::state::{Abandonment, State};

use self::world::{Budget, Machine, Rules, Serving, Spends, Step, World};

/// What a search found.
struct Found {
    states: usize,
    /// The property that does not hold, and how the world came there.
    violation: Option<(&'static str, String)>,
}

/// Visits every world that can come about, breadth first, so that what it finds is found on a shortest way.
fn search(rules: Rules, percents: &[u8], budget: Budget) -> Found {
    let mut machine = Machine::new(rules, percents);
    let start = Machine::start(budget);
    let mut known = HashMap::from([(Print::of(&start), 0_u32)]);
    let mut worlds = vec![(start, 0_u32, Step::Start)];
    // Ways on that need no trouble, backwards.
    let mut calm: Vec<(u32, u32)> = Vec::new();
    let mut at = 0;
    while at < worlds.len() {
        let world = worlds[at].0;
        for (step, then) in machine.steps(&world) {
            let id = *known.entry(Print::of(&then)).or_insert_with(|| {
                worlds.push((then, at as u32, step));
                worlds.len() as u32 - 1
            });
            if !step.is_fault() {
                calm.push((id, at as u32));
            }
            if let Some(property) = broken(&machine, &world, step, &then) {
                let last = format!("{step:?}\n    {}", tell(&machine, &then));
                let trace = trace(&machine, &worlds, at) + &last;
                return Found { states: worlds.len(), violation: Some((property, trace)) };
            }
        }
        at += 1;
    }
    let violation = cannot_rest(&machine, &worlds, calm)
        .map(|at| ("P17: comes to rest without further trouble", trace(&machine, &worlds, at)));
    Found { states: worlds.len(), violation }
}

/// 64 bits that stand for a world: cheap without optimization, and so long that no two of a few million meet.
struct Print(u64);

impl Print {
    fn of(world: &World) -> u64 {
        let mut print = Self(0);
        world.hash(&mut print);
        print.finish()
    }
}

impl Hasher for Print {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(u64::from(*byte)));
    }

    fn write_u8(&mut self, byte: u8) {
        self.write_u64(u64::from(byte));
    }

    fn write_isize(&mut self, number: isize) {
        self.write_u64(number as u64);
    }

    fn write_u64(&mut self, word: u64) {
        // One step of splitmix64, folded.
        let mixed = (self.0 ^ word).wrapping_add(0x9e37_79b9_7f4a_7c15).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        self.0 = mixed ^ (mixed >> 29);
    }

    fn finish(&self) -> u64 {
        self.0.wrapping_mul(0x94d0_49bb_1331_11eb) ^ (self.0 >> 31)
    }
}

/// The property that this step breaks.
fn broken(machine: &Machine, before: &World, step: Step, after: &World) -> Option<&'static str> {
    let state = machine.state(after.record.state);
    let sent = after.under_way.iter().flatten().find(|call| {
        let same = |w: &World| w.under_way.iter().flatten().filter(|c| c == call).count();
        matches!(step, Step::Save(_) | Step::GoAheadUnsaved(_) | Step::FindTheRecordChanged(_))
            && same(after) > same(before)
    });
    if machine.is_back(before.record.state)
        && !(machine.is_back(after.record.state) || matches!(state, State::Abandoned { .. }))
    {
        return Some("P1: a rollback that was saved is not taken back");
    }
    if sent.is_some_and(|call| call.goal.is_forward()) && machine.is_back(after.record.state) {
        return Some("P1: after a saved rollback nothing asks for more candidate");
    }
    if matches!(state, State::RolledBack { .. }) {
        if after.rank() > before.rank() {
            return Some("P1: nothing moves traffic to the candidate after the rollback");
        }
        if after.serving != Serving::Baseline {
            return Some("P3: rolled back means that only the baseline serves");
        }
    }
    if matches!(state, State::Promoted) && after.serving != Serving::Candidate {
        return Some("P2: promoted means that only the candidate serves");
    }
    if let (Some(_), Step::Save(d) | Step::GoAheadUnsaved(d) | Step::FindTheRecordChanged(d)) = (sent, step)
        && usize::from(before.record.driver) != d
    {
        return Some("P5: a driver whose rollout was taken over asks for nothing more");
    }
    // But for what names what it is for: it has its effect once, and none on anything else.
    if let Some(call) = sent.filter(|call| !machine.rules.checked && !machine.rules.names(call.goal, call.effect))
        && before
            .under_way
            .iter()
            .flatten()
            .any(|it| it.goal == call.goal && machine.rules.lets_land(it, before.serving))
    {
        return Some("P6: the same goal is not asked for twice while the first may still land");
    }
    if matches!(state, State::Abandoned { why: Abandonment::Drifted { .. } }) && !after.ahead {
        return Some("P9: what we did ourselves is not drift");
    }
    None
}

/// A world from which no calm way leads to rest.
fn cannot_rest(machine: &Machine, worlds: &[(World, u32, Step)], mut calm: Vec<(u32, u32)>) -> Option<usize> {
    calm.sort_unstable();
    let mut rests: Vec<bool> = worlds.iter().map(|(w, ..)| machine.state(w.record.state).is_at_rest()).collect();
    let mut queue: VecDeque<u32> = (0..worlds.len() as u32).filter(|at| rests[*at as usize]).collect();
    while let Some(to) = queue.pop_front() {
        let first = calm.partition_point(|edge| edge.0 < to);
        for (_, from) in calm[first..].iter().take_while(|edge| edge.0 == to) {
            if !std::mem::replace(&mut rests[*from as usize], true) {
                queue.push_back(*from);
            }
        }
    }
    rests.iter().position(|rests| !rests)
}

fn trace(machine: &Machine, worlds: &[(World, u32, Step)], mut at: usize) -> String {
    let mut way = vec![];
    loop {
        way.push(at);
        if at == 0 {
            break;
        }
        at = worlds[at].1 as usize;
    }
    way.iter().rev().fold(String::new(), |mut text, at| {
        let (world, _, step) = &worlds[*at];
        let _ = writeln!(text, "{step:?}\n    {}", tell(machine, world));
        text
    })
}

fn tell(machine: &Machine, world: &World) -> String {
    let calls: Vec<_> = world.under_way.iter().flatten().map(|call| call.goal.to_string()).collect();
    let name = |id| machine.state(id).describe(&machine.plan);
    let drivers = world.drivers.map(|driver| match (driver.local, driver.doing) {
        (None, _) => "down".into(),
        (Some(local), None) => name(local.state),
        (Some(local), Some((next, sends))) => {
            let sends = if sends { " with an attempt" } else { "" };
            format!("{}, to save: {}{sends}", name(local.state), name(next.state))
        }
    });
    format!(
        "{:?} serves; record: {}; drivers: {}; under way: {}",
        world.serving,
        name(world.record.state),
        drivers.join(" | "),
        if calls.is_empty() { "nothing".into() } else { calls.join(", ") }
    )
}

fn finds_nothing(rules: Rules, percents: &[u8], budget: Budget) {
    let found = search(rules, percents, budget);
    eprintln!("{} worlds of {percents:?}, versions checked: {}, {budget:?}", found.states, rules.checked);
    if let Some((property, trace)) = found.violation {
        panic!("{property}\n{trace}");
    }
    assert!(found.states > 1_000, "only {} worlds: the search goes nowhere", found.states);
}

/// With a rule taken out, the search must see this property break, and not only something.
fn finds(broken: &str, rules: Rules, percents: &[u8], budget: Budget) {
    let found = search(rules, percents, budget);
    let (property, trace) = found.violation.unwrap_or_else(|| {
        panic!("{} worlds and no violation of {broken:?}: the search is blind to {rules:?}", found.states)
    });
    assert!(property.starts_with(broken), "{broken:?} was to break, but this did: {property}\n{trace}");
    eprintln!("{property}\n{trace}");
}

const CHECKED: Rules = Rules::DESIGN;
const UNCHECKED: Rules = Rules { checked: false, ..Rules::DESIGN };
/// One gate trips, and one driver takes over from one that lives.
const TRIP: Budget = Budget { takeovers: 1, trips: 1, ..Budget::NONE };
const CRASH: Budget = Budget { crashes: 1, ..TRIP };
const OUTAGE: Budget = Budget { outages: 1, ..TRIP };

#[test]
fn the_search_finds_no_violation_where_versions_are_checked() {
    finds_nothing(CHECKED, &[50, 100], Budget { bad_saves: 1, ..CRASH });
    finds_nothing(CHECKED, &[50, 100], OUTAGE);
    finds_nothing(CHECKED, &[0, 100], OUTAGE);
    finds_nothing(CHECKED, &[100], Budget { crashes: 1, ..OUTAGE });
    finds_nothing(CHECKED, &[100], Budget { aborts: 1, persons: 1, expiries: 1, takeovers: 1, ..Budget::NONE });
}

#[test]
fn the_search_finds_no_violation_where_versions_are_not_checked() {
    finds_nothing(UNCHECKED, &[50, 100], CRASH);
    finds_nothing(UNCHECKED, &[50, 100], Budget { persons: 1, trips: 1, ..Budget::NONE });
    finds_nothing(UNCHECKED, &[100], OUTAGE);
    finds_nothing(UNCHECKED, &[100], Budget { aborts: 1, expiries: 1, takeovers: 1, ..Budget::NONE });
}

#[test]
fn the_search_finds_no_violation_where_what_returns_the_traffic_names_what_it_is_for() {
    let named = Rules { named: true, ..UNCHECKED };
    finds_nothing(named, &[50, 100], CRASH);
    finds_nothing(named, &[100], OUTAGE);
    finds_nothing(named, &[100], Budget { aborts: 1, expiries: 1, takeovers: 1, ..Budget::NONE });
}

/// The same with more trouble in one history. Minutes without optimization, so only on request:
/// `cargo test --release --test it -- --ignored the_search`.
#[test]
#[ignore = "takes minutes"]
fn the_search_finds_no_violation_when_everything_goes_wrong() {
    let worse = Budget { aborts: 1, crashes: 1, bad_saves: 1, ..OUTAGE };
    for percents in [&[100][..], &[50, 100]] {
        finds_nothing(CHECKED, percents, worse);
        finds_nothing(CHECKED, percents, Budget { persons: 1, expiries: 1, aborts: 1, ..CRASH });
        finds_nothing(UNCHECKED, percents, Budget { crashes: 1, ..OUTAGE });
        finds_nothing(UNCHECKED, percents, Budget { persons: 1, expiries: 1, ..TRIP });
    }
}

#[test]
fn without_rule_2_a_late_call_moves_traffic_after_the_rollback() {
    // A hash of what serves comes back when the baseline does, and the late call with it.
    let rules = Rules { spends: Spends::Content, ..CHECKED };
    finds("P1: nothing moves traffic", rules, &[50, 100], CRASH);
}

#[test]
fn without_rule_2_a_rollback_that_changes_nothing_never_comes_to_rest() {
    let rules = Rules { spends: Spends::OnChange, ..CHECKED };
    finds("P17", rules, &[50, 100], CRASH);
}

#[test]
fn without_rule_3_a_late_call_moves_traffic_after_the_rollback() {
    finds("P1: nothing moves traffic", Rules { rule_3: false, ..CHECKED }, &[50, 100], CRASH);
    finds("P1: nothing moves traffic", Rules { rule_3: false, ..UNCHECKED }, &[50, 100], CRASH);
}

#[test]
fn without_the_lease_in_rule_9_a_driver_acts_on_a_rollout_that_was_taken_over() {
    finds("P5", Rules { lease: false, ..CHECKED }, &[50, 100], OUTAGE);
}

#[test]
fn a_driver_that_takes_over_must_reckon_with_a_rollback_that_was_not_saved() {
    // An unsaved rollback lands after the next driver has promoted, or is asked for a second time.
    finds("P2", Rules { inherits: false, ..CHECKED }, &[100], OUTAGE);
    finds("P6", Rules { inherits: false, ..UNCHECKED }, &[100], OUTAGE);
}

#[test]
fn what_was_repeated_must_be_reckoned_with_by_what_cannot_be() {
    finds("P6", Rules { named: true, carries: false, ..UNCHECKED }, &[50, 100], CRASH);
}

#[test]
fn an_effect_that_another_call_may_have_had_does_not_say_that_this_one_landed() {
    finds("P6", Rules { seen_by_effect: true, ..UNCHECKED }, &[50, 100], Budget { persons: 1, ..Budget::NONE });
}
