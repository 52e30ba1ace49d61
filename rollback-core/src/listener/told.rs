//! Events in words: for people, and as the JSON that webhooks and topics carry.

use jiff::Timestamp;
use serde::Serialize;

use super::RolloutEvent;
use crate::{
    brief::{Brief, clipped, visible},
    error::{Error, ErrorKind, Result},
    gate::{Facts, Slot, Standing},
    model::{Actor, GateName, Note, RevisionId, RolloutId, TargetId, Weight},
    rollout::{Kind, Times},
};

/// In words (feature `courier`). Nothing sealed is in any of them.
impl RolloutEvent {
    /// A line for a title or a subject, of at most so many characters: `checkout: v2 was rolled back`.
    pub fn title(&self, most: usize) -> String {
        clipped(&visible(&Brief(&self.rollout).title()), most)
    }

    /// For people, as plain text: what happened, why, what serves now and what to do; with the feature `report` the whole
    /// report as Markdown.
    pub fn to_text(&self) -> String {
        text(self)
    }

    /// For programs: the JSON that `schemas/event-v1.json` of this crate describes (`Webhook::SCHEMA`). `id` is the
    /// message's own.
    ///
    /// # Errors
    /// `Internal` when it cannot be written as JSON.
    pub fn to_json(&self, id: &str) -> Result<String> {
        serde_json::to_string(&Told::of(self, id))
            .map_err(|e| Error::new(ErrorKind::Internal, "an event cannot be written as JSON").because(e))
    }
}

#[cfg(feature = "report")]
fn text(event: &RolloutEvent) -> String {
    crate::report::Report::new(&event.rollout).markdown()
}

#[cfg(not(feature = "report"))]
fn text(event: &RolloutEvent) -> String {
    let rollout = &*event.rollout;
    let brief = Brief(rollout);
    let change = &rollout.change;
    let mut lines = vec![brief.happened(), String::new()];
    lines.push(format!("Revisions: {} (kept) and {} (tried)", change.baseline.id, change.candidate.id));
    lines.extend(brief.why().map(|why| format!("Why: {why}")));
    lines.push(format!("Serves now: {}", brief.serves()));
    lines.extend(rollout.not_restored.iter().take(10).map(|note| format!("Not brought back: {note}")));
    lines.push(format!("To do: {}", brief.to_do()));
    lines.push(format!("Rollout: {}, asked for by {}: {}", rollout.id(), rollout.author, rollout.reason));
    lines.iter().map(|line| format!("{}\n", visible(line))).collect()
}

/// An event as its receivers see it; kept apart from the record's format, so that each can change without the other.
#[derive(Serialize)]
struct Told<'a> {
    version: u32,
    id: &'a str,
    at: Timestamp,
    event: &'static str,
    text: String,
    rollout: ToldRollout<'a>,
    brief: ToldBrief<'a>,
    times: Times,
    gates: Vec<ToldGate<'a>>,
}

#[derive(Serialize)]
struct ToldRollout<'a> {
    id: &'a RolloutId,
    target: &'a TargetId,
    baseline: &'a RevisionId,
    candidate: &'a RevisionId,
    author: &'a Actor,
    reason: &'a Note,
    kind: Kind,
    created: Timestamp,
    state: &'static str,
    open: bool,
    at_rest: bool,
    weight: Option<Weight>,
    step: Option<usize>,
    steps: usize,
}

#[derive(Serialize)]
struct ToldBrief<'a> {
    title: String,
    happened: String,
    serves: String,
    why: Option<String>,
    to_do: String,
    not_restored: &'a [Note],
}

#[derive(Serialize)]
struct ToldGate<'a> {
    name: &'a GateName,
    standing: Standing,
    judged: u64,
    tripped: bool,
    skipped: bool,
    summary: Option<&'a str>,
    until: Option<Timestamp>,
    /// Of a gate that tripped.
    #[serde(skip_serializing_if = "Option::is_none")]
    facts: Option<&'a Facts>,
}

impl<'a> Told<'a> {
    fn of(event: &'a RolloutEvent, id: &'a str) -> Self {
        let rollout = &*event.rollout;
        let (change, brief) = (&rollout.change, Brief(rollout));
        Self {
            version: 1,
            id,
            at: event.at,
            event: event.what.name(),
            text: event.what.describe(&rollout.plan),
            rollout: ToldRollout {
                id: &change.rollout,
                target: &change.target,
                baseline: &change.baseline.id,
                candidate: &change.candidate.id,
                author: &rollout.author,
                reason: &rollout.reason,
                kind: rollout.kind,
                created: rollout.created,
                state: rollout.state.name(),
                open: rollout.state.is_open(),
                at_rest: rollout.state.is_at_rest(),
                weight: rollout.weight,
                step: rollout.state.step(),
                steps: rollout.plan.steps().len(),
            },
            brief: ToldBrief {
                title: brief.title(),
                happened: brief.happened(),
                serves: brief.serves(),
                why: brief.why(),
                to_do: brief.to_do(),
                not_restored: &rollout.not_restored,
            },
            times: rollout.times,
            gates: rollout.gates.iter().map(ToldGate::of).collect(),
        }
    }
}

impl<'a> ToldGate<'a> {
    fn of(slot: &'a Slot) -> Self {
        let evidence = slot.evidence.as_ref();
        Self {
            name: &slot.name,
            standing: slot.standing,
            judged: slot.judged,
            tripped: slot.tripped.is_some(),
            skipped: slot.skipped.is_some(),
            summary: evidence.map(|evidence| evidence.summary.as_str()),
            until: evidence.map(|evidence| evidence.until),
            facts: evidence.filter(|_| slot.tripped.is_some()).map(|evidence| &evidence.facts),
        }
    }
}
