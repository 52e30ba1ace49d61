//! What was seen of a run, and the properties that it must have: one function a property of the design.

use std::{fmt, sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp};

use super::{Disturbance, Fault};
use crate::{
    backend::{Capabilities, Weights},
    error::{Error, ErrorKind},
    gate::Standing,
    model::{Attempt, Goal, Nonce, Progress, Serial, Weight},
    plan::Plan,
    rollout::{Rollout, What as Told},
    state::{Cause, State, Versions, settles},
    testing::clock::TestClock,
};

/// Everything that happened in a run, in order.
#[derive(Clone, Debug)]
pub(super) struct Trace(pub(super) Vec<Line>);

#[derive(Clone, Debug)]
pub(super) struct Line {
    /// Since the beginning of the run.
    pub(super) at: Duration,
    pub(super) process: usize,
    pub(super) what: What,
}

#[derive(Clone, Debug)]
pub(super) enum What {
    /// The process began.
    Began,
    /// The process crashed.
    Died,
    /// The process was stopped, to go on later.
    Stopped,
    /// The process's user saw this.
    Troubled { why: String },
    /// Somebody asked to go back.
    Asked,
    /// A look was made.
    Looked {
        begun: usize,
        goal: Goal,
        progress: Result<Progress, ErrorKind>,
        weight: Option<Weight>,
        /// Whether what is due has its effect once, however often it is sent.
        repeatable: bool,
        /// The attempt that the look said has landed.
        landed: Option<Nonce>,
    },
    /// A shift left the engine.
    Entered { number: usize, goal: Goal, attempt: Attempt },
    /// A shift reached the target.
    Landed { number: usize, goal: Goal, nonce: Nonce, late: bool, stale: bool, answer: Result<(), ErrorKind> },
    /// A write of the record left the engine.
    Writing { number: usize },
    /// A write was accepted.
    Saved {
        number: usize,
        serial: Serial,
        expected: Option<Serial>,
        current: Option<Serial>,
        late: bool,
        rollout: Arc<Rollout>,
    },
    /// A write was refused.
    NotSaved { number: usize, late: bool, why: ErrorKind },
    /// The engine heard this of a side effect.
    Answered { number: usize, answer: Result<(), ErrorKind> },
    /// The rollout came to rest.
    Rested { rollout: Arc<Rollout> },
}

/// What the properties need to know of the run.
pub(super) struct Facts {
    pub(super) capabilities: Capabilities,
    pub(super) plan: Plan,
    pub(super) lease: Duration,
    pub(super) disturbance: Option<Disturbance>,
}

type Property = fn(&Trace, &Facts) -> Result<(), String>;

/// The properties of the design that a trace can show. P9 (no data, drift), P15's second half and P17 are shown
/// elsewhere: by the tests of the engine and by the exhaustive search.
const PROPERTIES: &[Property] = &[
    p1_after_a_decision_nothing_asks_for_more_candidate,
    p2_promoted_is_what_the_last_look_saw_and_every_gate_agreed,
    p3_rolled_back_is_what_the_last_look_saw,
    p4_an_attempt_is_saved_before_it_is_sent,
    p5_a_stale_version_changes_nothing,
    p5_a_stale_record_is_refused_and_its_driver_stops,
    p6_no_attempt_is_sent_twice,
    p6_an_unanswered_wish_is_not_repeated_before_it_is_seen_or_settled,
    p7_a_verdict_is_saved_before_it_is_acted_on,
    p7_a_restart_forgets_nothing,
    p8_no_state_outlives_its_deadline,
    p11_the_way_back_never_changes,
    p12_traffic_first,
    p13_the_baseline_stands_until_the_last_bake_is_over,
    p14_an_abort_is_served_within_a_second,
    p15_after_the_end_nothing_is_asked_for,
    p18_the_record_says_why,
];

impl Trace {
    /// Whether the person who is to abort it did.
    pub(super) fn is_asked(&self) -> bool {
        self.0.iter().any(|line| matches!(line.what, What::Asked))
    }

    /// How many lines are printed, at most.
    const BEGINNING: usize = 80;
    const END: usize = 120;

    /// All properties; the first broken one says what was seen.
    pub(super) fn check(&self, facts: &Facts) -> Result<(), String> {
        PROPERTIES.iter().try_for_each(|property| property(self, facts))
    }

    /// Accepted writes before this line, the newest first.
    fn saved_before(&self, line: usize) -> impl Iterator<Item = (&Line, &Arc<Rollout>)> {
        self.0[..line].iter().rev().filter_map(saved)
    }

    /// Accepted writes, the oldest first.
    fn saved(&self) -> impl Iterator<Item = (&Line, &Arc<Rollout>)> {
        self.0.iter().filter_map(saved)
    }

    /// Shifts that left the engine, with the place of their line.
    fn entered(&self) -> impl Iterator<Item = (usize, &Line, Goal, &Attempt)> {
        self.0.iter().enumerate().filter_map(|(place, line)| match &line.what {
            What::Entered { goal, attempt, .. } => Some((place, line, *goal, attempt)),
            _ => None,
        })
    }

    fn landed(&self, nonce: &Nonce, before: usize) -> bool {
        self.0[..before]
            .iter()
            .any(|line| matches!(&line.what, What::Landed { nonce: landed, answer: Ok(()), .. } if landed == nonce))
    }

    /// Whether it has reached the target before this place and was refused there, however late: a backend may tell.
    fn turned_away(&self, nonce: &Nonce, before: usize) -> bool {
        self.0[..before].iter().any(|line| match &line.what {
            What::Landed { nonce: landed, answer: Err(kind), .. } => {
                landed == nonce && Error::new(*kind, "").changed_nothing()
            }
            _ => false,
        })
    }

    /// The record that held this attempt before it was sent.
    fn record_of(&self, place: usize, attempt: &Attempt) -> Option<&Arc<Rollout>> {
        self.saved_before(place).map(|(_, rollout)| rollout).find(|rollout| rollout.attempt.as_ref() == Some(attempt))
    }

    fn rested(&self) -> Option<&Arc<Rollout>> {
        self.0.iter().find_map(|line| match &line.what {
            What::Rested { rollout } => Some(rollout),
            _ => None,
        })
    }
}

fn saved(line: &Line) -> Option<(&Line, &Arc<Rollout>)> {
    match &line.what {
        What::Saved { rollout, .. } => Some((line, rollout)),
        _ => None,
    }
}

fn wall(at: Duration) -> Timestamp {
    TestClock::START
        .saturating_add(SignedDuration::try_from(at).unwrap_or(SignedDuration::MAX))
        .unwrap_or(Timestamp::MAX)
}

fn p1_after_a_decision_nothing_asks_for_more_candidate(trace: &Trace, _: &Facts) -> Result<(), String> {
    for (place, _, goal, attempt) in trace.entered().filter(|(_, _, goal, _)| goal.is_forward()) {
        if trace.saved_before(place).any(|(_, rollout)| matches!(rollout.state, State::RollingBack { .. })) {
            let nonce = &attempt.nonce;
            return Err(format!("P1: {goal} is asked for ({nonce}) after it was recorded to go back"));
        }
    }
    Ok(())
}

fn p2_promoted_is_what_the_last_look_saw_and_every_gate_agreed(trace: &Trace, _: &Facts) -> Result<(), String> {
    ends_as_seen(trace, "P2", Goal::Candidate, Weight::ALL, |state| matches!(state, State::Promoted))?;
    for (_, rollout) in trace.saved().filter(|(_, rollout)| matches!(rollout.state, State::Promoting | State::Promoted))
    {
        if let Some(slot) = rollout.gates.iter().find(|slot| slot.standing != Standing::Healthy) {
            return Err(format!("P2: it is promoted while gate {} is {}", slot.name, slot.standing));
        }
    }
    Ok(())
}

fn p3_rolled_back_is_what_the_last_look_saw(trace: &Trace, _: &Facts) -> Result<(), String> {
    ends_as_seen(trace, "P3", Goal::Baseline, Weight::NONE, |state| matches!(state, State::RolledBack { .. }))
}

fn ends_as_seen(trace: &Trace, name: &str, wanted: Goal, all: Weight, end: fn(&State) -> bool) -> Result<(), String> {
    let Some(place) = trace.0.iter().position(|line| saved(line).is_some_and(|(_, rollout)| end(&rollout.state)))
    else {
        return Ok(());
    };
    // An older look that ends later is not heeded.
    let looks = trace.0[..place].iter().filter_map(|line| match &line.what {
        What::Looked { begun, goal, progress, weight, .. } => Some((begun, (goal, progress, weight))),
        _ => None,
    });
    match looks.max_by_key(|(begun, _)| **begun).map(|(_, look)| look) {
        Some((goal, Ok(Progress::Reached), weight)) if *goal == wanted && weight.is_none_or(|weight| weight == all) => {
            Ok(())
        }
        other => Err(format!("{name}: the end is saved, but the last look was {other:?}")),
    }
}

fn p4_an_attempt_is_saved_before_it_is_sent(trace: &Trace, _: &Facts) -> Result<(), String> {
    for (place, line, goal, attempt) in trace.entered() {
        if trace.record_of(place, attempt).is_some() || goes_ahead(trace, place, line, goal, attempt) {
            continue;
        }
        return Err(format!("P4: {} is sent, and no record holds it", attempt.nonce));
    }
    Ok(())
}

/// Rule 9: a rollback goes ahead when its save was tried for a second.
fn goes_ahead(trace: &Trace, place: usize, line: &Line, goal: Goal, attempt: &Attempt) -> bool {
    let waited = wall(line.at).duration_since(attempt.at) >= SignedDuration::from_secs(1);
    let saved_since =
        trace.saved_before(place).any(|(save, _)| save.process == line.process && wall(save.at) > attempt.at);
    goal == Goal::Baseline && waited && !saved_since
}

fn p5_a_stale_version_changes_nothing(trace: &Trace, facts: &Facts) -> Result<(), String> {
    if facts.capabilities.versions != Versions::Checked {
        return Ok(());
    }
    for line in &trace.0 {
        if let What::Landed { nonce, stale: true, answer: Ok(()), .. } = &line.what {
            return Err(format!("P5: {nonce} carries a version that the target no longer has, and is accepted"));
        }
    }
    Ok(())
}

fn p5_a_stale_record_is_refused_and_its_driver_stops(trace: &Trace, _: &Facts) -> Result<(), String> {
    let mut owner = None;
    for line in &trace.0 {
        match &line.what {
            What::Saved { serial, expected, current, .. } => {
                if expected != current {
                    return Err(format!("P5: the store is at {current:?} and accepts a write on {expected:?}"));
                }
                if expected.is_some_and(|expected| *serial != expected.next()) {
                    return Err(format!("P5: serial {serial} follows {expected:?}"));
                }
                owner = Some(line.process);
            }
            What::Entered { attempt, .. } if owner != Some(line.process) => {
                return Err(format!(
                    "P5: process {} sends {}, but the rollout was last saved by process {owner:?}",
                    line.process, attempt.nonce
                ));
            }
            _ => {}
        }
    }
    Ok(())
}

fn p6_no_attempt_is_sent_twice(trace: &Trace, _: &Facts) -> Result<(), String> {
    for (place, _, _, attempt) in trace.entered() {
        if trace.entered().any(|(earlier, _, _, other)| earlier < place && other.nonce == attempt.nonce) {
            return Err(format!("P6: {} is sent twice", attempt.nonce));
        }
    }
    Ok(())
}

fn p6_an_unanswered_wish_is_not_repeated_before_it_is_seen_or_settled(
    trace: &Trace,
    facts: &Facts,
) -> Result<(), String> {
    let Versions::Unchecked { settle } = facts.capabilities.versions else { return Ok(()) };
    for (place, line, goal, attempt) in trace.entered() {
        for (earlier, _, _, other) in trace.entered().filter(|(earlier, _, wish, _)| *earlier < place && *wish == goal)
        {
            let known = trace.landed(&other.nonce, place)
                || refused(trace, earlier, place)
                || trace.turned_away(&other.nonce, place)
                || other.version != attempt.version && past_landing(trace, &other.nonce, place)
                || goal == Goal::Baseline && is_repeatable(trace, place);
            if !known && wall(line.at) < settles(other, settle) {
                return Err(format!("P6: {} repeats {}, which may still land", attempt.nonce, other.nonce));
            }
        }
    }
    Ok(())
}

/// Whether a look before this place said so, and was right: nothing of it is carried out later. Said of a target that has
/// moved on, on which what was asked of it as it was has no effect any more, whether it had one or not.
fn past_landing(trace: &Trace, nonce: &Nonce, place: usize) -> bool {
    let (before, after) = trace.0.split_at(place);
    let said = |line: &Line| matches!(&line.what, What::Looked { landed: Some(it), .. } if it == nonce);
    let lands = |line: &Line| matches!(&line.what, What::Landed { nonce: it, answer: Ok(()), .. } if it == nonce);
    before.iter().any(said) && !after.iter().any(lands)
}

/// Whether the last look before this place said that what is due has its effect once, however often it is sent. Whether that is
/// so is for the promises of a backend.
fn is_repeatable(trace: &Trace, place: usize) -> bool {
    let looks = trace.0[..place].iter().filter_map(|line| match &line.what {
        What::Looked { begun, repeatable, goal: Goal::Baseline, .. } => Some((*begun, *repeatable)),
        _ => None,
    });
    looks.max_by_key(|(begun, _)| *begun).is_some_and(|(_, repeatable)| repeatable)
}

/// Whether the engine was told that the shift entered at this place had changed nothing.
fn refused(trace: &Trace, entered: usize, before: usize) -> bool {
    let What::Entered { number, .. } = &trace.0[entered].what else { return false };
    trace.0[entered..before].iter().any(|line| match &line.what {
        What::Answered { number: of, answer: Err(kind) } if of == number => Error::new(*kind, "").changed_nothing(),
        _ => false,
    })
}

fn p7_a_verdict_is_saved_before_it_is_acted_on(trace: &Trace, _: &Facts) -> Result<(), String> {
    for (place, line, goal, attempt) in trace.entered().filter(|(_, _, goal, _)| *goal == Goal::Baseline) {
        let Some(rollout) = trace.record_of(place, attempt) else {
            if goes_ahead(trace, place, line, goal, attempt) {
                continue;
            }
            return Err(format!("P7: {} is sent before anything was saved", attempt.nonce));
        };
        let State::RollingBack { cause } = &rollout.state else {
            return Err(format!("P7: {} is sent while the record is {}", attempt.nonce, rollout.state.name()));
        };
        if let Cause::Unhealthy { gate, .. } = cause
            && rollout.gate(gate).is_none_or(|slot| slot.tripped.is_none())
        {
            return Err(format!("P7: the record goes back because of gate {gate}, and does not hold its trip"));
        }
    }
    Ok(())
}

fn p7_a_restart_forgets_nothing(trace: &Trace, _: &Facts) -> Result<(), String> {
    let saved: Vec<_> = trace.saved().collect();
    for ((before_line, before), (line, now)) in saved.iter().zip(saved.iter().skip(1)) {
        for (slot, then) in now.gates.iter().filter_map(|slot| before.gate(&slot.name).map(|then| (slot, then))) {
            if slot.judged < then.judged {
                return Err(format!("P7: gate {} had {} verdicts and now has {}", slot.name, then.judged, slot.judged));
            }
            if then.tripped.is_some() && slot.tripped.is_none() {
                return Err(format!("P7: gate {} had tripped, and the record has forgotten it", slot.name));
            }
        }
        let kept = (&now.state, now.entered, now.deadline) == (&before.state, before.entered, before.deadline);
        if before_line.process != line.process && !kept {
            return Err(format!(
                "P7: process {} leaves {} with the deadline {:?}, and process {} takes up {} with {:?}",
                before_line.process,
                before.state.name(),
                before.deadline,
                line.process,
                now.state.name(),
                now.deadline
            ));
        }
        if now.log.len() < before.log.len() {
            return Err("P7: the log has lost lines".into());
        }
    }
    Ok(())
}

fn p8_no_state_outlives_its_deadline(trace: &Trace, facts: &Facts) -> Result<(), String> {
    // Nobody is there to keep a deadline while a process is down and its lease runs.
    let grace = SignedDuration::try_from(facts.lease * 5).unwrap_or(SignedDuration::MAX);
    let saved: Vec<_> = trace.saved().map(|(_, rollout)| rollout).collect();
    for (before, now) in saved.iter().zip(saved.iter().skip(1)) {
        if let Some(deadline) = before.deadline
            && now.entered != before.entered
            && now.entered.duration_since(deadline) > grace
        {
            return Err(format!(
                "P8: {} lasts until {}, its deadline was {deadline}",
                before.state.name(),
                now.entered
            ));
        }
        if before.state.is_open() && before.deadline.is_none() {
            return Err(format!("P8: {} has no deadline", before.state.name()));
        }
    }
    Ok(())
}

fn p11_the_way_back_never_changes(trace: &Trace, _: &Facts) -> Result<(), String> {
    let mut saved = trace.saved().map(|(_, rollout)| rollout);
    let Some(first) = saved.next() else { return Ok(()) };
    match saved.find(|rollout| rollout.change != first.change) {
        Some(other) => Err(format!("P11: {:?} has become {:?}", first.change, other.change)),
        None => Ok(()),
    }
}

/// Where the baseline stands and the share is told: between the first and the second accepted effect of a rollback a look
/// sees that the candidate has no traffic, unless something late gave it some.
fn p12_traffic_first(trace: &Trace, facts: &Facts) -> Result<(), String> {
    let tells = trace.0.iter().any(|line| matches!(line.what, What::Looked { weight: Some(_), .. }));
    if !facts.capabilities.baseline_stands || facts.capabilities.weights == Weights::ProvidersPace || !tells {
        return Ok(());
    }
    let accepted = trace.0.iter().enumerate().filter(|(_, line)| {
        matches!(line.what, What::Landed { goal: Goal::Baseline, answer: Ok(()), late: false, .. })
    });
    let places: Vec<usize> = accepted.map(|(place, _)| place).take(2).collect();
    let [first, second] = places[..] else { return Ok(()) };
    let between = &trace.0[first..second];
    let disturbed = between.iter().any(|line| matches!(line.what, What::Landed { answer: Ok(()), late: true, .. }));
    let twice = facts.disturbance.is_some_and(|it| it.fault == Fault::Repeat);
    let back = between.iter().any(|line| matches!(line.what, What::Looked { weight: Some(Weight::NONE), .. }));
    if back || disturbed || twice {
        return Ok(());
    }
    Err("P12: the first effect of the rollback leaves the candidate traffic".into())
}

fn p13_the_baseline_stands_until_the_last_bake_is_over(trace: &Trace, _: &Facts) -> Result<(), String> {
    for (place, _, goal, attempt) in trace.entered() {
        if let Some(rollout) = trace.record_of(place, attempt)
            && rollout.state.goal(&rollout.plan) != Some(goal)
        {
            return Err(format!("P13: {} is sent while the record is {}", attempt.nonce, rollout.state.name()));
        }
    }
    Ok(())
}

fn p14_an_abort_is_served_within_a_second(trace: &Trace, _: &Facts) -> Result<(), String> {
    for (place, asked) in trace.0.iter().enumerate().filter(|(_, line)| matches!(line.what, What::Asked)) {
        let mut later = trace.0[place..].iter().filter(|line| line.process == asked.process);
        let served = later.find(|line| match &line.what {
            What::Looked { goal, .. } | What::Entered { goal, .. } => *goal == Goal::Baseline,
            What::Died | What::Stopped | What::Rested { .. } => true,
            _ => false,
        });
        // A process that was stopped before hears nothing.
        let stopped = trace.0[..place]
            .iter()
            .any(|line| line.process == asked.process && matches!(line.what, What::Died | What::Stopped));
        if !stopped && served.is_none_or(|served| served.at - asked.at > Duration::from_secs(1)) {
            return Err(format!("P14: an abort at {:?} is served {:?}", asked.at, served.map(|served| served.at)));
        }
    }
    Ok(())
}

fn p15_after_the_end_nothing_is_asked_for(trace: &Trace, _: &Facts) -> Result<(), String> {
    let end = trace.0.iter().position(|line| saved(line).is_some_and(|(_, rollout)| !rollout.state.is_open()));
    match trace.entered().find(|(place, ..)| end.is_some_and(|end| *place > end)) {
        Some((.., attempt)) => Err(format!("P15: {} is sent after the end", attempt.nonce)),
        None => Ok(()),
    }
}

fn p18_the_record_says_why(trace: &Trace, facts: &Facts) -> Result<(), String> {
    let Some(rollout) = trace.rested() else { return Ok(()) };
    let tells = |told: &dyn Fn(&Told) -> bool| rollout.log.iter().any(|entry| told(&entry.what));
    let found = match &rollout.state {
        State::RolledBack { cause: Cause::Unhealthy { gate, .. } } => {
            let trip = rollout.gate(gate).is_some_and(|slot| slot.tripped.is_some() && slot.evidence.is_some());
            trip && tells(&|what| matches!(what, Told::Tripped { gate: tripped, .. } if tripped == gate))
        }
        State::RolledBack { cause: Cause::Aborted { by, .. } } => {
            tells(&|what| matches!(what, Told::Asked { request, .. } if request.by == *by))
        }
        // A call that failed is a trouble of its own; what the platform said is the cause, word for word.
        State::RolledBack { cause: Cause::Failed { why } } => {
            let said = |line: &Line| match &line.what {
                What::Looked { progress: Ok(Progress::Failed(said)), .. } => said == why,
                _ => false,
            };
            tells(&|what| matches!(what, Told::Troubled { .. })) || trace.0.iter().any(said)
        }
        State::Promoted => rollout.gates.iter().all(|slot| slot.evidence.is_some()),
        _ => true,
    };
    if !found || *rollout.plan != facts.plan {
        return Err(format!("P18: the record does not say why it is {}", rollout.state.describe(&rollout.plan)));
    }
    Ok(())
}

impl fmt::Display for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A run that does not end has a trace that nobody reads to the end.
        let cut = self.0.len().saturating_sub(Self::BEGINNING + Self::END);
        for (place, line) in self.0.iter().enumerate() {
            if cut > 0 && (Self::BEGINNING..Self::BEGINNING + cut).contains(&place) {
                if place == Self::BEGINNING {
                    writeln!(f, "            {cut} lines were cut here")?;
                }
                continue;
            }
            write!(f, "{:>10.3}s  {}  ", line.at.as_secs_f64(), line.process)?;
            let late = |late: &bool| if *late { " late" } else { "" };
            match &line.what {
                What::Began => writeln!(f, "a process begins"),
                What::Died => writeln!(f, "the process crashes"),
                What::Stopped => writeln!(f, "the process is stopped"),
                What::Troubled { why } => writeln!(f, "its user sees: {why}"),
                What::Asked => writeln!(f, "somebody aborts"),
                What::Looked { goal, progress: Ok(progress), weight, .. } => {
                    let weight = weight.map(|weight| format!(" at {weight}")).unwrap_or_default();
                    writeln!(f, "looks at {goal}: {progress:?}{weight}")
                }
                What::Looked { goal, progress: Err(kind), .. } => writeln!(f, "looks at {goal}: {kind}"),
                What::Entered { number, goal, attempt } => {
                    writeln!(f, "#{number} asks for {goal} on {} ({})", attempt.version, attempt.nonce)
                }
                What::Landed { number, nonce, late: l, stale, answer, .. } => {
                    let stale = if *stale { " with a stale version" } else { "" };
                    match answer {
                        Ok(()) => writeln!(f, "#{number} lands{}{stale} ({nonce})", late(l)),
                        Err(kind) => {
                            writeln!(f, "#{number} arrives{}{stale} and is refused: {kind} ({nonce})", late(l))
                        }
                    }
                }
                What::Writing { number } => writeln!(f, "#{number} writes the record"),
                What::Saved { number, serial, late: l, rollout, .. } => {
                    let nonce = rollout.attempt.as_ref().map_or("none", |attempt| attempt.nonce.as_str());
                    let closed = if rollout.attempt_closed { ", closed" } else { "" };
                    let state = rollout.state.describe(&rollout.plan);
                    writeln!(f, "#{number} saved{} as {serial}: {state}; attempt {nonce}{closed}", late(l))
                }
                What::NotSaved { number, late: l, why } => writeln!(f, "#{number} not saved{}: {why}", late(l)),
                What::Answered { number, answer: Ok(()) } => writeln!(f, "#{number} is answered"),
                What::Answered { number, answer: Err(kind) } => writeln!(f, "#{number} is answered: {kind}"),
                What::Rested { rollout } => writeln!(f, "at rest: {}", rollout.state.describe(&rollout.plan)),
            }?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{
        fakes::Fake,
        sweep::{Scenario, Sweep},
    };

    /// The trace of a ready-made scenario that goes well.
    async fn seen(fake: &Fake, scenario: &str) -> (Trace, Facts) {
        let scenarios = Scenario::ready_made(fake).await;
        let scenario = scenarios.iter().find(|it| it.name() == scenario).expect("a ready-made scenario");
        let (trace, facts) = Sweep::of(fake).undisturbed(scenario).await;
        assert_eq!(trace.check(&facts), Ok(()));
        (trace, facts)
    }

    /// What is broken when the trace is doctored like this.
    async fn broken(fake: Fake, scenario: &str, doctor: impl Fn(&mut Vec<Line>)) -> String {
        let (mut trace, facts) = seen(&fake, scenario).await;
        doctor(&mut trace.0);
        trace.check(&facts).expect_err("the doctored trace breaks a property")
    }

    async fn hears(wanted: &str, text: impl Future<Output = String>) {
        let text = text.await;
        assert!(text.starts_with(wanted), "instead of {wanted:?} it says {text:?}");
    }

    fn checked() -> Fake {
        Fake::new("v1", "v2")
    }

    fn unchecked() -> Fake {
        checked().unchecked(Duration::from_secs(15))
    }

    fn place(lines: &[Line], wanted: impl Fn(&What) -> bool) -> usize {
        lines.iter().position(|line| wanted(&line.what)).expect("the run has such a line")
    }

    fn saved_as(state: &'static str) -> impl Fn(&What) -> bool {
        move |what| matches!(what, What::Saved { rollout, .. } if rollout.state.name() == state)
    }

    fn entered(forward: bool) -> impl Fn(&What) -> bool {
        move |what| matches!(what, What::Entered { goal, .. } if goal.is_forward() == forward)
    }

    fn rewrite(line: &mut Line, change: impl FnOnce(&mut Rollout)) {
        let What::Saved { rollout, .. } = &mut line.what else { panic!("no save: {line:?}") };
        change(Arc::make_mut(rollout));
    }

    #[tokio::test(start_paused = true)]
    async fn p1_hears_a_forward_call_after_the_decision() {
        let text = broken(checked(), "bad canary", |lines| {
            let forward = lines.remove(place(lines, entered(true)));
            let decided = place(lines, saved_as("rolling_back"));
            lines.insert(decided + 1, forward);
        });
        hears("P1: ", text).await;
    }

    #[tokio::test(start_paused = true)]
    async fn p2_and_p3_hear_an_end_that_no_look_has_seen() {
        for (scenario, end, says) in [("canary", "promoted", "P2: "), ("bad canary", "rolled_back", "P3: ")] {
            let text = broken(checked(), scenario, |lines| {
                let end = place(lines, saved_as(end));
                let look = lines[..end].iter().rposition(|line| matches!(line.what, What::Looked { .. }));
                lines.remove(look.expect("a last look"));
            });
            hears(says, text).await;
        }
        let text = broken(checked(), "canary", |lines| {
            let promoting = place(lines, saved_as("promoting"));
            rewrite(&mut lines[promoting], |rollout| rollout.gates[0].standing = Standing::Inconclusive);
        });
        hears("P2: ", text).await;
    }

    #[tokio::test(start_paused = true)]
    async fn p4_hears_an_attempt_that_was_not_saved() {
        let text = broken(checked(), "canary", |lines| drop(lines.remove(place(lines, saved_as("shifting")))));
        hears("P4: ", text).await;
        // A rollback without its save, within a second.
        let text = broken(checked(), "bad canary", |lines| drop(lines.remove(place(lines, saved_as("rolling_back")))));
        hears("P4: ", text).await;
    }

    #[tokio::test(start_paused = true)]
    async fn p5_hears_a_driver_that_goes_on_after_another_took_over() {
        let text = broken(checked(), "canary", |lines| {
            let save = place(lines, saved_as("shifting"));
            lines[save].process = 1;
        });
        hears("P5: process 0 sends", text).await;
    }

    #[tokio::test(start_paused = true)]
    async fn p6_hears_a_call_that_is_made_twice() {
        let twice = |lines: &mut Vec<Line>| {
            let call = place(lines, entered(true));
            lines.insert(call + 1, lines[call].clone());
        };
        hears("P6: ", broken(checked(), "canary", twice)).await;
        // The same wish under another name, before the first one is known to have landed.
        let text = broken(unchecked(), "canary", |lines| {
            let saved = place(lines, saved_as("shifting"));
            let call = place(lines, entered(true));
            let other = Nonce::try_from("another").expect("a nonce");
            let (mut save, mut again) = (lines[saved].clone(), lines[call].clone());
            rewrite(&mut save, |rollout| rollout.attempt.as_mut().expect("an attempt").nonce = other.clone());
            if let What::Entered { attempt, .. } = &mut again.what {
                attempt.nonce = other.clone();
            }
            lines.splice(call + 1..call + 1, [save, again]);
        });
        hears("P6: another repeats", text).await;
    }

    #[tokio::test(start_paused = true)]
    async fn p7_hears_what_the_record_has_forgotten() {
        let text = broken(checked(), "bad canary", |lines| {
            for line in lines.iter_mut().filter(|line| saved(line).is_some()) {
                rewrite(line, |rollout| rollout.gates[0].tripped = None);
            }
        });
        hears("P7: the record goes back because of gate errors", text).await;
        let text = broken(checked(), "canary", |lines| {
            let promoted = place(lines, saved_as("promoted"));
            rewrite(&mut lines[promoted], |rollout| rollout.gates[0].judged = 0);
        });
        hears("P7: gate errors had", text).await;
    }

    #[tokio::test(start_paused = true)]
    async fn p8_p11_p13_p14_p15_and_p18_hear_what_breaks_them() {
        let text = broken(checked(), "canary", |lines| {
            let baking = place(lines, saved_as("baking"));
            rewrite(&mut lines[baking], |rollout| rollout.deadline = Some(TestClock::START));
            for line in &mut lines[baking + 1..] {
                if saved(line).is_some() {
                    rewrite(line, |rollout| rollout.entered = wall(Duration::from_secs(9000)));
                }
            }
        });
        hears("P8: baking lasts until", text).await;
        let text = broken(checked(), "canary", |lines| {
            let promoted = place(lines, saved_as("promoted"));
            rewrite(&mut lines[promoted], |rollout| {
                let change = Arc::make_mut(&mut rollout.change);
                change.baseline = change.candidate.clone();
            });
        });
        hears("P11: ", text).await;
        let text = broken(checked(), "canary", |lines| {
            let shifting = place(lines, saved_as("shifting"));
            rewrite(&mut lines[shifting], |rollout| rollout.state = State::Baking { step: 1, watched: Duration::ZERO });
        });
        hears("P13: ", text).await;
        let text = broken(checked(), "aborted while baking", |lines| {
            let asked = place(lines, |what| matches!(what, What::Asked));
            for line in &mut lines[asked + 1..] {
                line.at += Duration::from_secs(2);
            }
        });
        hears("P14: ", text).await;
        // P7 hears this one too, and earlier.
        let (mut trace, facts) = seen(&checked(), "bad canary").await;
        let back = trace.0.remove(place(&trace.0, entered(false)));
        trace.0.push(back);
        let text = p15_after_the_end_nothing_is_asked_for(&trace, &facts).expect_err("a call after the end");
        assert!(text.starts_with("P15: "), "{text}");
        let text = broken(checked(), "bad canary", |lines| {
            let rested = place(lines, |what| matches!(what, What::Rested { .. }));
            let What::Rested { rollout } = &mut lines[rested].what else { unreachable!("just found") };
            let rollout = Arc::make_mut(rollout);
            let kept = rollout.log.iter().filter(|entry| !matches!(entry.what, Told::Tripped { .. }));
            rollout.log = kept.cloned().collect();
        });
        hears("P18: ", text).await;
    }
}
