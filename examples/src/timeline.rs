//! What a person wants to know when it is over.

use std::{
    collections::BTreeMap,
    fmt::{self, Write},
};

use jiff::Timestamp;
use rollback_core::rollout::{Rollout, Times, What};

use crate::admin::{Counts, Instance, Seen};

/// The report of a finished rollout: what happened when, which gate saw what, what serves now, what users got.
pub fn report(rollout: &Rollout, seen: &Seen, counts: &BTreeMap<String, Counts>) -> String {
    let mut text = String::new();
    tell(rollout, seen, counts, &mut text).expect("a string takes any text");
    text
}

fn tell(rollout: &Rollout, seen: &Seen, counts: &BTreeMap<String, Counts>, to: &mut String) -> fmt::Result {
    let at = |at: Timestamp| seconds(rollout.created, at);
    let change = &rollout.change;
    writeln!(to, "What happened to {}, {} to {}:", change.target, change.baseline.id, change.candidate.id)?;
    for entry in &rollout.log {
        let what = match &entry.what {
            What::Created => format!("{} asked for it: {}", rollout.author, rollout.reason),
            // A driver's id begins with its process id.
            What::Claimed { driver } => {
                format!("taken up by process {}", driver.as_str().split('-').next().unwrap_or_default())
            }
            what => what.describe(&rollout.plan),
        };
        writeln!(to, "  {:>7}  {what}", at(entry.at))?;
    }

    writeln!(to, "\nWhat it came to:")?;
    line(to, "outcome", rollout.state.describe(&rollout.plan))?;
    let up = seen.instances.iter().filter(|(_, instance)| matches!(instance, Instance::Up(_)));
    let up: Vec<&str> = up.map(|(name, _)| name.as_str()).collect();
    line(to, "serves now", format_args!("{}; running: {}", seen.split, up.join(", ")))?;
    for gate in &rollout.gates {
        let name = &gate.name;
        match (&gate.tripped, &gate.evidence) {
            (Some(trip), _) => line(to, "gate", format_args!("{name} tripped at {}: {}", at(trip.at), trip.why))?,
            (None, Some(last)) => line(to, "gate", format_args!("{name} did not trip: {}", last.summary))?,
            (None, None) => line(to, "gate", format_args!("{name} was never asked"))?,
        }
    }
    for proved in &rollout.readiness.proved {
        line(to, "proved", proved)?;
    }
    for risk in &rollout.readiness.not_provable {
        line(to, "not proved", risk)?;
    }
    let sum = |count: fn(&Counts) -> u64| counts.values().map(count).sum();
    let all = Counts { requests: sum(|c| c.requests), failed: sum(|c| c.failed), slow: sum(|c| c.slow) };
    line(to, "users", Told(&all))?;
    for (release, counts) in counts {
        line(to, "", format_args!("{release}: {}", Told(counts)))?;
    }
    if let Times { breach: Some(breach), decision, restored, verified } = rollout.times {
        line(to, "breach", format_args!("seen at {}", at(breach)))?;
        for (name, then) in [("decided", decision), ("restored", restored), ("verified", verified)] {
            if let Some(then) = then {
                line(to, name, format_args!("{} after the breach was seen", later(breach, then)))?;
            }
        }
    }
    Ok(())
}

fn line(to: &mut String, name: &str, what: impl fmt::Display) -> fmt::Result {
    writeln!(to, "  {name:<11} {what}")
}

struct Told<'a>(&'a Counts);

impl fmt::Display for Told<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Counts { requests, failed, slow } = self.0;
        write!(f, "{requests} requests, {failed} failed, {slow} slow")
    }
}

fn seconds(from: Timestamp, to: Timestamp) -> String {
    format!("{:.2} s", to.duration_since(from).as_secs_f64())
}

fn later(from: Timestamp, to: Timestamp) -> String {
    match to.duration_since(from).as_millis() {
        short @ ..1000 => format!("{short} ms"),
        _ => seconds(from, to),
    }
}
