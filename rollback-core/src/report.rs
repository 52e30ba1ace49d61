//! Reports: a rollout told to the end, as Markdown and as one page of HTML.
//!
//! A report is made of the [`Rollout`] alone, which holds no sealed value that can be read, so it holds none either. What
//! comes from outside (ids, notes, evidence) is escaped, and what a reader could not see in it is written out.
//!
//! ```
//! # use rollback_core::{engine::{Engine, NewRollout, Target}, model::Revision, plan::Plan, report::Report, store::Memory};
//! # use rollback_core::testing::fakes::Fake;
//! # use std::time::Duration;
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() -> rollback_core::Result<()> {
//! # let engine = Engine::builder(Memory::new()).build()?;
//! # engine.register(Target::new("checkout", Fake::new("v1", "v2"))?)?;
//! # let plan = Plan::all_at_once(Duration::from_secs(60))?;
//! # let rollout = NewRollout::new("checkout", Revision::new("v2")?, plan)?.by("ana")?;
//! let outcome = engine.start(rollout).await?.finished().await;
//! let report = Report::new(&outcome.rollout);
//! assert!(report.markdown().starts_with("# checkout: v2 was promoted\n"));
//! assert!(report.html().starts_with("<!DOCTYPE html>"));
//! # Ok(())
//! # }
//! ```

mod course;
mod html;
mod markdown;
mod svg;

use jiff::Timestamp;
use serde_json::Value;

use self::course::Course;
use crate::{
    brief::{Brief, between, moment},
    gate::{Slot, Standing},
    model::Note,
    request::Ask,
    rollout::{BaselineFrom, Kind, Rollout, What},
    state::State,
};

/// A rollout as a report: what happened, what serves now, why, what was not brought back, what to do, who asked for what,
/// what preflight proved, and everything in its order.
///
/// Of an open rollout it tells how far it has come. It asks no clock, so the same rollout gives the same report.
#[derive(Clone, Copy, Debug)]
pub struct Report<'a> {
    rollout: &'a Rollout,
}

impl<'a> Report<'a> {
    /// The most bytes of the Markdown: a job summary of GitHub Actions takes 1 MiB a step.
    pub const MAX_MARKDOWN: usize = 512 * 1024;

    /// The report of this rollout.
    pub const fn new(rollout: &'a Rollout) -> Self {
        Self { rollout }
    }

    /// As Markdown (GitHub's, which most others read), at most [`Self::MAX_MARKDOWN`] bytes: for a job summary of a CI,
    /// a pull request, a message. Longer texts are cut, and say so.
    pub fn markdown(&self) -> String {
        markdown::write(&self.page())
    }

    /// As one page of HTML that needs nothing else: no script, no font, no picture from elsewhere, and a policy that
    /// forbids them. With a drawing of the weight and the verdicts over time, light or dark as the reader's system is.
    pub fn html(&self) -> String {
        html::write(&self.page())
    }

    fn page(&self) -> Page {
        let brief = Brief(self.rollout);
        let course = Course::of(self.rollout);
        let sections = vec![
            section("What serves now", [Block::Text(brief.serves())]),
            section("Why", self.why()),
            section("What was not brought back", self.not_restored()),
            section("What to do next", [Block::Text(brief.to_do())]),
            section("Who asked for what", self.asked()),
            section("What was proved before the start", self.readiness()),
            section("Timeline", self.timeline(&course)),
            section("Gates", self.gates()),
        ];
        Page { title: brief.title(), tone: self.tone(), lead: brief.happened(), sections, course }
    }

    const fn tone(&self) -> Tone {
        match self.rollout.state {
            State::Promoted | State::Refused { why: crate::state::Refusal::AlreadyServes } => Tone::Good,
            State::RolledBack { .. } | State::RollingBack { .. } | State::Stuck { .. } => Tone::Bad,
            State::Refused { .. } | State::Abandoned { .. } | State::Holding { .. } => Tone::Odd,
            _ => Tone::Open,
        }
    }

    /// P18: every decision can be explained from the record.
    fn why(&self) -> Vec<Block> {
        let brief = Brief(self.rollout);
        let mut blocks = Vec::new();
        blocks.push(Block::Text(match (brief.why(), self.rollout.gates.len()) {
            (Some(why), _) => sentence(&why),
            (None, _) if !matches!(self.rollout.state, State::Promoted) => "Nothing has been decided yet.".into(),
            (None, 0) => "No gate judged it: time passed, and the platform reported no failure.".into(),
            (None, _) => "Every gate that counted was healthy by its policy when the last bake was over.".into(),
        }));
        for entry in &self.rollout.log {
            if let What::Asked { request, answer } = &entry.what
                && request.ask == Ask::PromoteNow
            {
                blocks.push(Block::Text(sentence(&format!("The glass was broken: {request}; {answer}"))));
            }
        }
        if let Some(slot) = brief.decider().and_then(|gate| self.rollout.gate(gate)) {
            blocks.push(evidence(slot, "What the gate that decided had to go on", Some(self.rollout.since)));
        }
        blocks
    }

    fn not_restored(&self) -> Vec<Block> {
        let rollout = self.rollout;
        let mut blocks = Vec::new();
        if !rollout.not_restored.is_empty() {
            blocks.push(list(&rollout.not_restored));
        } else {
            blocks.push(Block::Text(
                match rollout.state {
                    State::RolledBack { .. } => "Nothing that anybody saw.",
                    State::Abandoned { .. } | State::Stuck { .. } => "Nobody saw the baseline brought back.",
                    _ => "Nothing had to be brought back.",
                }
                .into(),
            ));
        }
        let known: Vec<String> = rollout
            .readiness
            .not_restored
            .iter()
            .filter(|note| !rollout.not_restored.contains(note))
            .map(Note::to_string)
            .collect();
        if !known.is_empty() {
            blocks.push(Block::Text("Known beforehand, of any way back:".into()));
            blocks.push(Block::List(known));
        }
        blocks
    }

    fn asked(&self) -> Vec<Block> {
        let rollout = self.rollout;
        let change = &rollout.change;
        let steps: Vec<String> =
            rollout.plan.steps().iter().map(|step| format!("{} for {}", step.weight, time(step.bake))).collect();
        let what = match rollout.kind {
            Kind::Deploy => "release",
            Kind::Return => "take back to",
        };
        let start = format!("{what} {} on {}, from {}", change.candidate.id, change.target, change.baseline.id);
        let mut rows = vec![vec![
            moment(rollout.created),
            rollout.author.to_string(),
            start,
            rollout.reason.to_string(),
            format!("rollout {}", rollout.id()),
        ]];
        for entry in &rollout.log {
            if let What::Asked { request, answer } = &entry.what {
                let words = [request.by.to_string(), request.ask.to_string(), request.reason.to_string()];
                let [by, ask, reason] = words;
                rows.push(vec![moment(entry.at), by, ask, reason, answer.to_string()]);
            }
        }
        let head = ["When", "Who", "What", "Why", "What came of it"].into();
        let mut blocks = vec![Block::Table(Table { caption: "Requests".into(), head, rows })];
        blocks.push(Block::Text(format!("The plan: {}.", steps.join(", "))));
        let mut terms = Vec::new();
        if let Some(why) = &rollout.irreversible {
            terms.push(format!("Allowed to have no way back: {why}"));
        }
        if let Some(why) = &rollout.despite_quarantine {
            terms.push(format!("Tried although it was found bad before: {why}"));
        }
        if rollout.retake {
            terms.push("Takes the target back when somebody else changes it".into());
        }
        if rollout.baseline_from == BaselineFrom::LastPromoted {
            let what = format!("The way back leads to {}, the last one promoted", change.baseline.id);
            terms.push(format!("{what}: what stood there was mixed or quarantined"));
        }
        if !terms.is_empty() {
            blocks.push(Block::List(terms));
        }
        blocks
    }

    fn readiness(&self) -> Vec<Block> {
        let readiness = &self.rollout.readiness;
        let mut blocks = Vec::new();
        for (title, notes) in [
            ("Proved:", &readiness.proved),
            ("Not provable here, and so a risk that was taken:", &readiness.not_provable),
            ("Spoke against the start:", &readiness.refused),
            ("In the way of a way back:", &readiness.no_way_back),
        ] {
            if !notes.is_empty() {
                blocks.push(Block::Text(title.into()));
                blocks.push(list(notes));
            }
        }
        if blocks.is_empty() {
            blocks.push(Block::Text("Nothing was proved, and nothing spoke against it.".into()));
        }
        blocks
    }

    fn timeline(&self, course: &Course) -> Vec<Block> {
        let rollout = self.rollout;
        let mut blocks = vec![Block::Drawing];
        let times = &course.marks;
        if let Some(first) = times.first() {
            let rows = times.iter().map(|mark| vec![mark.name.into(), moment(mark.at), between(first.at, mark.at)]);
            let head = ["What", "When", "After the first"].into();
            let caption = "From breach to restored".into();
            blocks.push(Block::Table(Table { caption, head, rows: rows.collect() }));
        }
        let rows = self
            .lines()
            .into_iter()
            .map(|(at, what)| vec![at.strftime("%H:%M:%S").to_string(), between(rollout.created, at), what]);
        let head = ["Time, UTC", "After the start", "What"].into();
        let caption = format!("Everything since {}", moment(rollout.created));
        blocks.push(Block::Table(Table { caption, head, rows: rows.collect() }));
        blocks
    }

    /// The log and the weights that were seen, in one order: within one instant a weight comes before the arrival that it
    /// led to.
    fn lines(&self) -> Vec<(Timestamp, String)> {
        let rollout = self.rollout;
        let mut weights = rollout.weights.iter().peekable();
        let mut lines = Vec::with_capacity(rollout.log.len() + rollout.weights.len());
        for entry in &rollout.log {
            let arrives = matches!(
                entry.what,
                What::Entered { to: State::Baking { .. } | State::Promoted | State::RolledBack { .. } }
            );
            while let Some(seen) = weights.next_if(|seen| seen.at < entry.at || (arrives && seen.at == entry.at)) {
                lines.push((seen.at, format!("seen: the candidate has {}", seen.weight)));
            }
            lines.push((entry.at, entry.what.describe(&rollout.plan)));
        }
        lines.extend(weights.map(|seen| (seen.at, format!("seen: the candidate has {}", seen.weight))));
        lines
    }

    fn gates(&self) -> Vec<Block> {
        if self.rollout.gates.is_empty() {
            return vec![Block::Text("There is no gate.".into())];
        }
        let rows = self.rollout.gates.iter().map(|slot| {
            let says = match (&slot.skipped, &slot.tripped) {
                (Some(skip), _) => format!("skipped by {}: {}", skip.by, skip.why),
                (None, Some(trip)) => format!("tripped at {}: {}", moment(trip.at), trip.why),
                (None, None) if slot.judged == 0 => "never judged".into(),
                (None, None) => word(slot.standing).into(),
            };
            let last = slot.evidence.as_ref().map_or_else(String::new, |evidence| evidence.summary.clone());
            vec![slot.name.to_string(), says, slot.judged.to_string(), last]
        });
        let head = ["Gate", "Says", "Judged", "Last evidence"].into();
        let mut blocks =
            vec![Block::Table(Table { caption: "Verdicts at the end".into(), head, rows: rows.collect() })];
        let decider = Brief(self.rollout).decider();
        for slot in &self.rollout.gates {
            // What decided has been shown above.
            if decider != Some(&slot.name) && slot.evidence.as_ref().is_some_and(|it| !it.facts.is_empty()) {
                blocks.push(evidence(slot, &format!("Gate {}", slot.name), None));
            }
        }
        blocks
    }
}

/// What a report is made of, before it is Markdown or HTML. Its text is not escaped.
struct Page {
    title: String,
    tone: Tone,
    lead: String,
    sections: Vec<Section>,
    course: Course,
}

#[derive(Clone, Copy)]
enum Tone {
    Good,
    Bad,
    Odd,
    Open,
}

struct Section {
    title: &'static str,
    blocks: Vec<Block>,
}

enum Block {
    Text(String),
    List(Vec<String>),
    Table(Table),
    /// The course over time, where it can be drawn.
    Drawing,
}

struct Table {
    caption: String,
    head: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

fn section(title: &'static str, blocks: impl Into<Vec<Block>>) -> Section {
    Section { title, blocks: blocks.into() }
}

fn list(notes: &[Note]) -> Block {
    Block::List(notes.iter().map(Note::to_string).collect())
}

/// Window, counts, statistic, threshold, query, what would have tripped it: whatever the gate gave.
fn evidence(slot: &Slot, caption: &str, stood: Option<Timestamp>) -> Block {
    let mut rows = vec![vec!["gate".into(), slot.name.to_string()], vec!["says".into(), word(slot.standing).into()]];
    let mut row = |name: &str, value: String| rows.push(vec![name.into(), value]);
    if let Some(trip) = &slot.tripped {
        row("tripped", format!("{}: {}", moment(trip.at), trip.why));
    }
    row("judged", format!("{} times", slot.judged));
    if let Some(stood) = stood {
        row("the step stood since", moment(stood));
    }
    if let Some(since) = slot.unhealthy_since {
        row("unhealthy since", moment(since));
    }
    if let Some(since) = slot.blind_since {
        row("no data since", moment(since));
    }
    if let Some(evidence) = &slot.evidence {
        row("in a sentence", evidence.summary.clone());
        row("data until", moment(evidence.until));
        for (name, value) in evidence.facts.iter() {
            row(name, fact(value));
        }
    }
    Block::Table(Table { caption: caption.into(), head: ["Fact", "Value"].into(), rows })
}

fn fact(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        value => value.to_string(),
    }
}

const fn word(standing: Standing) -> &'static str {
    match standing {
        Standing::Healthy => "healthy",
        Standing::Unhealthy => "unhealthy",
        Standing::Inconclusive => "no data",
    }
}

fn time(time: std::time::Duration) -> String {
    between(Timestamp::UNIX_EPOCH, Timestamp::UNIX_EPOCH.saturating_add(time).unwrap_or(Timestamp::MAX))
}

/// The clause as a sentence of its own.
fn sentence(clause: &str) -> String {
    let mut letters = clause.chars();
    let first: String = letters.next().into_iter().flat_map(char::to_uppercase).collect();
    format!("{first}{}.", letters.as_str().trim_end_matches('.'))
}
