//! What a rollout's drawing shows: the weight over time, what each gate said when, and the instants that matter.

use jiff::Timestamp;

use crate::{
    gate::Standing,
    rollout::{Rollout, What},
};

/// A rollout over time, as its record tells it.
pub(super) struct Course {
    pub(super) from: Timestamp,
    pub(super) to: Timestamp,
    /// The candidate's share in percent, from each instant on.
    pub(super) weights: Vec<(Timestamp, u8)>,
    pub(super) bands: Vec<Band>,
    /// In the order of time.
    pub(super) marks: Vec<Mark>,
}

/// One gate over time, without gaps.
pub(super) struct Band {
    pub(super) gate: String,
    pub(super) spans: Vec<Span>,
    pub(super) tripped: Option<Timestamp>,
}

pub(super) struct Span {
    pub(super) from: Timestamp,
    pub(super) to: Timestamp,
    pub(super) says: Says,
}

/// What a gate says in a drawing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Says {
    Healthy,
    Unhealthy,
    NoData,
    NotJudged,
    /// The lines that would tell were cut from the log.
    NotRecorded,
}

/// An instant that matters.
pub(super) struct Mark {
    pub(super) at: Timestamp,
    pub(super) name: &'static str,
}

impl Says {
    pub(super) const ALL: [Self; 5] =
        [Self::Healthy, Self::Unhealthy, Self::NoData, Self::NotJudged, Self::NotRecorded];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
            Self::NoData => "no data",
            Self::NotJudged => "not judged",
            Self::NotRecorded => "not recorded",
        }
    }
}

impl From<Standing> for Says {
    fn from(standing: Standing) -> Self {
        match standing {
            Standing::Healthy => Self::Healthy,
            Standing::Unhealthy => Self::Unhealthy,
            Standing::Inconclusive => Self::NoData,
        }
    }
}

impl Course {
    pub(super) fn of(rollout: &Rollout) -> Self {
        let times = &rollout.times;
        let marks = [
            ("breach", times.breach),
            ("decided to go back", times.decision),
            ("traffic restored", times.restored),
            ("seen to be back", times.verified),
        ];
        let mut marks: Vec<Mark> = marks.into_iter().filter_map(|(name, at)| at.map(|at| Mark { at, name })).collect();
        // A clock that was set back may have put them in another order.
        marks.sort_by_key(|mark| mark.at);

        let from = rollout.created;
        let log = rollout.log.iter().map(|entry| entry.at);
        let seen = rollout.weights.iter().map(|seen| seen.at);
        let judged = rollout.gates.iter().filter_map(|slot| slot.at);
        let to = log.chain(seen).chain(judged).chain(marks.iter().map(|mark| mark.at)).fold(from, Timestamp::max);

        let mut weights = vec![(from, 0)];
        weights.extend(rollout.weights.iter().map(|seen| (seen.at.max(from), seen.weight.percent())));
        weights.sort_by_key(|(at, _)| *at);
        let bands = rollout.gates.iter().map(|slot| Band::of(rollout, slot, from, to)).collect();
        Self { from, to, weights, bands, marks }
    }

    /// From a little before the first mark to a little after the last: what is too short to be seen in the whole.
    pub(super) fn close_up(&self) -> Option<(Timestamp, Timestamp)> {
        let (first, last) = (self.marks.first()?.at, self.marks.last()?.at);
        let part = last.duration_since(first);
        let whole = self.to.duration_since(self.from);
        if part.is_zero() || part.as_secs_f64() > whole.as_secs_f64() / 8.0 {
            return None;
        }
        let margin = part / 6;
        Some((first.saturating_sub(margin).ok()?, last.saturating_add(margin).ok()?))
    }
}

impl Band {
    fn of(rollout: &Rollout, slot: &crate::gate::Slot, from: Timestamp, to: Timestamp) -> Self {
        let mut band = Self { gate: slot.name.to_string(), spans: Vec::new(), tripped: None };
        // What it said last, and what that means at the time: nothing while nobody asks.
        let (mut said, mut asked) = (Says::NotJudged, false);
        let (mut since, mut says) = (from, Says::NotJudged);
        let mut turn = |at: Timestamp, now: Says, since: &mut Timestamp, says: &mut Says| {
            if now != *says {
                let at = at.max(*since);
                if at > *since {
                    band.spans.push(Span { from: *since, to: at, says: *says });
                }
                (*since, *says) = (at, now);
            }
        };
        for entry in &rollout.log {
            match &entry.what {
                What::Entered { to } => asked = to.watches_gates(),
                What::Judged { gate, standing, .. } if *gate == slot.name => said = (*standing).into(),
                What::Cut { .. } => said = Says::NotRecorded,
                What::Tripped { gate, .. } if *gate == slot.name => band.tripped = Some(entry.at),
                _ => continue,
            }
            let skipped = slot.skipped.as_ref().is_some_and(|skip| skip.at <= entry.at);
            turn(entry.at, if asked && !skipped { said } else { Says::NotJudged }, &mut since, &mut says);
        }
        if let Some(skip) = &slot.skipped {
            turn(skip.at, Says::NotJudged, &mut since, &mut says);
        }
        if to > since || band.spans.is_empty() {
            band.spans.push(Span { from: since, to, says });
        }
        band
    }
}
