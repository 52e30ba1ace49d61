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
        let skipped_at = slot.skipped.as_ref().map(|skip| skip.at);
        for entry in &rollout.log {
            if let Some(at) = skipped_at.filter(|at| *at <= entry.at) {
                turn(at, Says::NotJudged, &mut since, &mut says);
            }
            match &entry.what {
                What::Entered { to } => asked = to.watches_gates(),
                What::Judged { gate, standing, .. } if *gate == slot.name => said = (*standing).into(),
                What::Cut { .. } => said = Says::NotRecorded,
                What::Tripped { gate, .. } if *gate == slot.name => band.tripped = Some(entry.at),
                _ => continue,
            }
            let skipped = skipped_at.is_some_and(|at| at <= entry.at);
            turn(entry.at, if asked && !skipped { said } else { Says::NotJudged }, &mut since, &mut says);
        }
        if let Some(at) = skipped_at {
            turn(at, Says::NotJudged, &mut since, &mut says);
        }
        if to > since || band.spans.is_empty() {
            band.spans.push(Span { from: since, to, says });
        }
        band
    }
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;

    use super::*;
    use crate::{
        gate::{Skip, Slot},
        model::{Actor, GateName},
        rollout::{self, Entry},
        state::State,
    };

    fn judged(standing: Standing) -> What {
        What::Judged { gate: GateName::try_from("errors").unwrap(), standing, why: "w".into() }
    }

    /// What the band shows of a log with an entry each ten seconds, and a skip.
    fn band(log: impl IntoIterator<Item = What>, skipped: Option<i64>) -> Vec<(i64, i64, Says)> {
        let mut rollout = rollout::sample();
        let start = rollout.created;
        let at = |second: i64| start + SignedDuration::from_secs(second);
        let second = |at: Timestamp| at.duration_since(start).as_secs();
        let entries = log.into_iter().enumerate().map(|(index, what)| Entry { at: at(10 * index as i64), what });
        rollout.log = entries.collect();
        let mut slot = Slot::new(GateName::try_from("errors").unwrap());
        slot.skipped = skipped
            .map(|second| Box::new(Skip { by: Actor::try_from("ana").unwrap(), why: "w".into(), at: at(second) }));
        rollout.gates.push(slot);
        let course = Course::of(&rollout);
        let spans = &course.bands[0].spans;
        assert_eq!((spans[0].from, spans[spans.len() - 1].to), (course.from, course.to));
        assert!(spans.windows(2).all(|two| two[0].to == two[1].from && two[0].says != two[1].says));
        spans.iter().map(|span| (second(span.from), second(span.to), span.says)).collect()
    }

    #[test]
    fn a_band_shows_what_was_said_while_somebody_asked() {
        let baking = || What::Entered { to: State::Baking { step: 0, watched: Default::default() } };
        let stuck = What::Entered { to: State::Stuck { from: crate::state::Interrupted::Promoting, why: "w".into() } };
        assert_eq!(
            band(
                [
                    What::Created,
                    baking(),
                    judged(Standing::Healthy),
                    stuck,
                    baking(),
                    judged(Standing::Unhealthy),
                    What::Created
                ],
                None
            ),
            [
                (0, 20, Says::NotJudged),
                (20, 30, Says::Healthy),
                (30, 40, Says::NotJudged),
                (40, 50, Says::Healthy),
                (50, 60, Says::Unhealthy),
            ]
        );
    }

    #[test]
    fn what_was_cut_from_the_log_and_what_was_skipped_is_not_made_up() {
        let baking = || What::Entered { to: State::Baking { step: 0, watched: Default::default() } };
        let log = || {
            [baking(), judged(Standing::Healthy), What::Cut { lines: 7 }, judged(Standing::Inconclusive), What::Created]
        };
        assert_eq!(
            band(log(), None),
            [(0, 10, Says::NotJudged), (10, 20, Says::Healthy), (20, 30, Says::NotRecorded), (30, 40, Says::NoData)]
        );
        assert_eq!(
            band(log(), Some(15)),
            [(0, 10, Says::NotJudged), (10, 15, Says::Healthy), (15, 40, Says::NotJudged)]
        );
        assert_eq!(band([What::Created], None), [(0, 0, Says::NotJudged)]);
    }
}
