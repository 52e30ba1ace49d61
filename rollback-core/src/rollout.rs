//! The rollout: everything that is known of one attempt to replace one revision with another, and how it is recorded.

use std::{collections::BTreeMap, fmt, sync::Arc};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    backend::Readiness,
    error::{Error, ErrorKind, Result},
    gate::Slot,
    model::{Actor, Attempt, Change, DriverId, Effect, GateName, Note, RolloutId, Weight},
    plan::Plan,
    state::{Hold, Interrupted, State, Terms},
    store::{Record, Standing},
};

/// One attempt to replace the baseline with the candidate: what is recorded, and what listeners, strategies and reports
/// see. Its `Debug` and its events hold no sealed value.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Rollout {
    /// What replaces what.
    pub change: Arc<Change>,
    /// The steps.
    pub plan: Arc<Plan>,
    /// Who started it.
    pub author: Actor,
    /// Why.
    pub reason: Note,
    /// Why there need be no way back, where the author said so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub irreversible: Option<Note>,
    /// Where the baseline was learned.
    #[serde(default)]
    pub baseline_from: BaselineFrom,
    /// Why the candidate is tried although it was found bad before, where the author said so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub despite_quarantine: Option<Note>,
    /// What kind of rollout it is.
    #[serde(default)]
    pub kind: Kind,
    /// Whether drift is taken back instead of left alone.
    #[serde(default)]
    pub retake: bool,
    /// When it was created.
    pub created: Timestamp,
    /// What is being attempted.
    pub state: State,
    /// When this state was entered.
    pub entered: Timestamp,
    /// When this state's default exit is taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<Timestamp>,
    /// Since when its step has stood: when its weight was reached, or while shifting, when the shift began.
    pub since: Timestamp,
    /// The last attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<Attempt>,
    /// Whether it is known to have landed or to have been refused.
    #[serde(default)]
    pub attempt_closed: bool,
    /// When the attempts before it are past landing, on an API that checks no versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unsettled: Option<Timestamp>,
    /// Since when a call towards the baseline that is not the attempt may be on its way: of a driver that did not release the
    /// rollout and may have gone back without a save, or an attempt that was repeated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inherited: Option<Timestamp>,
    /// The effect asked for last, and how often running.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tries: Option<Tries>,
    /// The candidate's share of traffic, as last observed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<Weight>,
    /// Every weight that was observed, oldest first; bounded, the middle is cut.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub weights: Vec<Weighed>,
    /// What is being waited for, as the last look had it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting_for: Option<Note>,
    /// The gates' memory, one slot a gate.
    #[serde(default)]
    pub gates: Vec<Slot>,
    /// Who has approved the step it is at.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub approvals: Vec<Actor>,
    /// Hooks that are done.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub hooks: BTreeMap<String, Note>,
    /// What preflight found.
    #[serde(default)]
    pub readiness: Arc<Readiness>,
    /// What a rollback did not bring back, as seen.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_restored: Vec<Note>,
    /// Measured times.
    #[serde(default)]
    pub times: Times,
    /// What happened, oldest first; bounded, the middle is cut.
    pub log: Log,
}

/// What kind of rollout it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A new revision is tried.
    #[default]
    Deploy,
    /// A person takes a finished rollout back. An unhealthy verdict holds and never rolls back by itself: a rollback
    /// triggers nothing further.
    Return,
}

/// Where a rollout's baseline was learned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BaselineFrom {
    /// It served alone.
    #[default]
    Target,
    /// The target was mixed or served a quarantined revision: it is the last one promoted here.
    LastPromoted,
}

/// An effect and how often it was asked for running.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tries {
    /// The effect.
    pub effect: Effect,
    /// How often.
    pub count: u32,
}

/// When what happened, in wall time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Times {
    /// The first unhealthy verdict of the gate that tripped was given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub breach: Option<Timestamp>,
    /// It was decided to go back.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decision: Option<Timestamp>,
    /// A look saw that the candidate has no traffic any more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restored: Option<Timestamp>,
    /// A look saw that only the baseline serves.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verified: Option<Timestamp>,
}

/// A share of traffic that a look saw, and did not see the time before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Weighed {
    /// When, in wall time.
    pub at: Timestamp,
    /// The candidate's share.
    pub weight: Weight,
}

/// The lines of a rollout's log, oldest first. Clones share them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Log(Arc<Vec<Entry>>);

impl std::ops::Deref for Log {
    type Target = [Entry];
    fn deref(&self) -> &[Entry] {
        &self.0
    }
}

impl<'a> IntoIterator for &'a Log {
    type Item = &'a Entry;
    type IntoIter = std::slice::Iter<'a, Entry>;
    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl FromIterator<Entry> for Log {
    fn from_iter<I: IntoIterator<Item = Entry>>(lines: I) -> Self {
        Self(Arc::new(lines.into_iter().collect()))
    }
}

/// One line of a rollout's log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// When, in wall time.
    pub at: Timestamp,
    /// What.
    pub what: What,
}

/// Something that happened to a rollout.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "what", rename_all = "snake_case")]
#[non_exhaustive]
pub enum What {
    /// It was created.
    Created,
    /// Another process took it up.
    Claimed {
        /// Which.
        driver: DriverId,
    },
    /// It entered this state.
    Entered {
        /// Which.
        to: State,
    },
    /// An effect was asked for.
    Attempted {
        /// Which.
        effect: Effect,
        /// The attempt.
        attempt: Attempt,
    },
    /// A call went wrong.
    Troubled {
        /// Which, and how.
        why: Note,
    },
    /// A gate tripped.
    Tripped {
        /// Which.
        gate: GateName,
        /// Its evidence in a sentence.
        why: Note,
    },
    /// A gate changed its mind.
    Judged {
        /// Which.
        gate: GateName,
        /// What it says now.
        standing: crate::gate::Standing,
        /// Its evidence in a sentence.
        why: Note,
    },
    /// Somebody asked for something.
    Asked {
        /// Who, what and why.
        request: crate::request::Request,
        /// What came of it.
        answer: Note,
    },
    /// A hook is done.
    Hook {
        /// Which.
        name: String,
        /// How it went.
        outcome: Note,
    },
    /// Lines were cut from the middle of the log.
    Cut {
        /// How many.
        lines: u64,
    },
}

impl Rollout {
    /// The number of the format that this version writes.
    pub const FORMAT: u32 = 1;
    /// The most lines its log keeps.
    pub const MAX_LOG: usize = 200;
    /// The most observed weights it keeps.
    pub const MAX_WEIGHTS: usize = 256;

    /// Its id.
    pub fn id(&self) -> &RolloutId {
        &self.change.rollout
    }

    /// What the machine needs to know of it.
    pub fn terms(&self) -> Terms<'_> {
        Terms { plan: &self.plan, way_back: self.readiness.no_way_back.is_empty(), retake: self.retake }
    }

    /// The slot of this gate.
    pub fn gate(&self, name: &GateName) -> Option<&Slot> {
        self.gates.iter().find(|slot| slot.name == *name)
    }

    /// Writes it into a record.
    ///
    /// # Errors
    /// `Internal` when it cannot be written as JSON.
    pub fn to_record(&self, driver: Option<&DriverId>, heard: u64) -> Result<Record> {
        let body = serde_json::to_string(self)
            .map_err(|e| Error::new(ErrorKind::Internal, "a rollout cannot be written as JSON").because(e))?;
        Ok(Record {
            id: self.id().clone(),
            subject: self.change.target.clone(),
            driver: driver.cloned(),
            standing: self.standing(),
            format: Self::FORMAT,
            heard,
            body: body.into(),
        })
    }

    /// Reads it from a record.
    ///
    /// # Errors
    /// `Unsupported` when the record has a format that this version does not know; `Invalid` when the body is corrupt.
    /// Nothing is guessed.
    pub fn from_record(record: &Record) -> Result<Self> {
        if record.format != Self::FORMAT {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!(
                    "the record of rollout {} has format {}; this version reads format {}",
                    record.id,
                    record.format,
                    Self::FORMAT
                ),
            ));
        }
        let rollout: Self = serde_json::from_str(&record.body).map_err(|e| {
            // Words of the JSON error may quote what is sealed: keep the place only.
            let place = format!("line {}, column {}", e.line(), e.column());
            Error::invalid(format!("the record of rollout {} is corrupt at {place}", record.id))
        })?;
        if *rollout.id() != record.id || rollout.change.target != record.subject {
            return Err(Error::invalid(format!("the record of rollout {} holds another rollout", record.id)));
        }
        let steps = rollout.plan.steps().len();
        if rollout.state.step().is_some_and(|step| step >= steps) {
            return Err(Error::invalid(format!("the record of rollout {} is at a step its plan lacks", record.id)));
        }
        if let State::Holding { why: Hold::Approval, from, .. } = &rollout.state
            && !matches!(from, Interrupted::Baking { step, .. } if rollout.plan.steps()[*step].approval.is_some())
        {
            let why = format!("the record of rollout {} waits for an approval its plan does not ask for", record.id);
            return Err(Error::invalid(why));
        }
        if rollout.standing() != record.standing {
            let (id, state) = (&record.id, rollout.state.name());
            let why = format!(
                "the record of rollout {id} is marked {} and holds one that is {state}",
                record.standing.name()
            );
            return Err(Error::invalid(why));
        }
        Ok(rollout)
    }

    const fn standing(&self) -> Standing {
        match self.state {
            State::Promoted => Standing::Promoted,
            _ if self.state.is_open() => Standing::Open,
            _ => Standing::Over,
        }
    }

    /// Keeps the weight that a look saw. Where a platform walks through more of them than are kept, every other one of the
    /// middle goes: the first and the last are what a rollback is explained by.
    pub(crate) fn weigh(&mut self, at: Timestamp, weight: Weight) {
        self.weight = Some(weight);
        if self.weights.len() >= Self::MAX_WEIGHTS {
            let middle = Self::MAX_WEIGHTS / 4..Self::MAX_WEIGHTS * 3 / 4;
            let mut index = 0;
            self.weights.retain(|_| {
                index += 1;
                !middle.contains(&index) || index % 2 == 0
            });
        }
        self.weights.push(Weighed { at, weight });
    }

    /// Adds a line to the log, and cuts its middle when it is too long.
    pub(crate) fn note(&mut self, at: Timestamp, what: What) {
        let log = Arc::make_mut(&mut self.log.0);
        if log.len() >= Self::MAX_LOG {
            let middle = Self::MAX_LOG / 4;
            let before = match &log[middle].what {
                What::Cut { lines } => *lines,
                _ => 1,
            };
            // One more line goes; what is cut stays one line in the same place.
            log.remove(middle + 1);
            let at = log[middle].at;
            log[middle] = Entry { at, what: What::Cut { lines: before + 1 } };
        }
        if log.len() == log.capacity() {
            // Doubling would keep room for lines that never come.
            log.reserve_exact(4);
        }
        log.push(Entry { at, what });
    }
}

/// `checkout: shifting to 25 % (step 2 of 4)`.
impl fmt::Display for Rollout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.change.target, self.state.describe(&self.plan))
    }
}

impl What {
    /// Its kind, as in the record and in messages: `entered`.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Claimed { .. } => "claimed",
            Self::Entered { .. } => "entered",
            Self::Attempted { .. } => "attempted",
            Self::Troubled { .. } => "troubled",
            Self::Tripped { .. } => "tripped",
            Self::Judged { .. } => "judged",
            Self::Asked { .. } => "asked",
            Self::Hook { .. } => "hook",
            Self::Cut { .. } => "cut",
        }
    }

    /// What happened, in one line for people.
    pub fn describe(&self, plan: &Plan) -> String {
        match self {
            Self::Created => "created".into(),
            Self::Claimed { driver } => format!("taken up by process {driver}"),
            Self::Entered { to } => to.describe(plan),
            Self::Attempted { effect, .. } => format!("asked: {effect}"),
            Self::Troubled { why } => why.to_string(),
            Self::Tripped { gate, why } => format!("gate {gate} tripped: {why}"),
            Self::Judged { gate, standing, why } => {
                let says = match standing {
                    crate::gate::Standing::Healthy => "is healthy",
                    crate::gate::Standing::Unhealthy => "is unhealthy",
                    crate::gate::Standing::Inconclusive => "has no data",
                };
                format!("gate {gate} {says}: {why}")
            }
            Self::Asked { request, answer } => format!("{request}: {answer}"),
            Self::Hook { name, outcome } => format!("hook {name}: {outcome}"),
            Self::Cut { lines } => format!("{lines} lines were cut here"),
        }
    }
}

/// A rollout of `checkout` from `v1` to `v2` in four steps of five minutes, in preflight since the epoch plus a day.
#[cfg(test)]
pub(crate) fn sample() -> Rollout {
    use crate::model::{Revision, TargetId};

    let created = Timestamp::from_second(24 * 3600).expect("a day after the epoch is a time");
    let name = |name: &str| Actor::try_from(name).expect("a name");
    let bake = std::time::Duration::from_secs(300);
    Rollout {
        change: Arc::new(Change {
            rollout: RolloutId::try_from("checkout-1").expect("a name"),
            target: TargetId::try_from("checkout").expect("a name"),
            baseline: Revision::new("v1").expect("a name"),
            candidate: Revision::new("v2").expect("a name"),
        }),
        plan: Arc::new(Plan::canary([5, 25, 50, 100], bake).expect("a plan")),
        author: name("ana"),
        reason: "release 2".into(),
        irreversible: None,
        baseline_from: BaselineFrom::Target,
        despite_quarantine: None,
        kind: Kind::Deploy,
        retake: false,
        created,
        state: State::Preflight,
        entered: created,
        deadline: None,
        since: created,
        attempt: None,
        attempt_closed: false,
        unsettled: None,
        inherited: None,
        tries: None,
        weight: None,
        weights: Vec::new(),
        waiting_for: None,
        gates: Vec::new(),
        approvals: Vec::new(),
        hooks: BTreeMap::new(),
        readiness: Arc::default(),
        not_restored: Vec::new(),
        times: Times::default(),
        log: Log::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_many_weights_the_first_and_the_last_are_kept() {
        let mut rollout = sample();
        let at = |second: u16| rollout_at(second);
        for second in 0..10_000_u16 {
            rollout.weigh(at(second), Weight::try_from((second % 101) as u8).expect("at most 100"));
            assert!(rollout.weights.len() <= Rollout::MAX_WEIGHTS);
        }
        let weights = &rollout.weights;
        let kept = |index: usize| weights[index].at;
        assert!((0..60).all(|index| kept(index) == at(index as u16)));
        assert!((0..60).all(|back| kept(weights.len() - 1 - back) == at(9_999 - back as u16)));
        assert!(weights.is_sorted_by(|one, next| one.at < next.at));
        assert_eq!(rollout.weight, Some(weights[weights.len() - 1].weight));
    }

    fn rollout_at(second: u16) -> Timestamp {
        Timestamp::from_second(second.into()).expect("a time")
    }
}
