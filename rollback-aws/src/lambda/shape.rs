//! What an alias points at, and what that means between a baseline and a candidate. Pure.

use std::{collections::HashMap, fmt};

use rollback_core::{
    Error, ErrorKind, Result,
    model::{Change, Goal, Note, Progress, Weight},
};

use super::{name::Name, share};

/// What an alias points at, as a read told.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Pointed {
    pub(super) primary: String,
    /// At most one, says Lambda.
    pub(super) other: Vec<(String, f64)>,
    pub(super) revision: String,
}

/// Whether the alias has provisioned concurrency.
pub(super) enum Provisioned {
    No,
    Yes,
    /// Lambda gave up: why.
    Failed(String),
}

impl Pointed {
    pub(super) fn new(
        name: &Name,
        primary: Option<&str>,
        other: Option<&HashMap<String, f64>>,
        revision: Option<&str>,
    ) -> Result<Self> {
        let (Some(primary), Some(revision)) = (primary, revision) else {
            let why = format!("the answer about alias {name} lacks its version or RevisionId");
            return Err(Error::new(ErrorKind::Internal, why));
        };
        let mut other: Vec<(String, f64)> =
            other.into_iter().flatten().map(|(version, share)| (version.clone(), *share)).collect();
        other.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(Self { primary: primary.into(), other, revision: revision.into() })
    }

    /// Where this is between the two revisions of a change.
    pub(super) fn stands(&self, change: &Change) -> Stands {
        let (baseline, candidate) = (change.baseline.id.as_str(), change.candidate.id.as_str());
        match (self.primary.as_str(), self.other.as_slice()) {
            (at, []) if at == baseline => Stands::Baseline,
            (at, []) if at == candidate => Stands::Candidate,
            (at, [(beside, share)]) if at == baseline && beside == candidate => Stands::Split(*share),
            (at, [(beside, share)]) if at == candidate && beside == baseline => Stands::Turned(*share),
            _ => Stands::Elsewhere,
        }
    }

    /// Whether these may be weights that Lambda set itself: everything to the version beside.
    pub(super) fn may_be_lambdas(&self) -> bool {
        self.other.iter().any(|(_, share)| is(*share, 1.0))
    }
}

/// `version 41`, or `version 41 with 25 % to version 42`.
impl fmt::Display for Pointed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "version {}", self.primary)?;
        for (version, share) in &self.other {
            write!(f, " with {} % to version {version}", (share * 1e4).round() / 1e2)?;
        }
        Ok(())
    }
}

/// Where an alias is between two revisions.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Stands {
    /// The baseline alone.
    Baseline,
    /// The baseline, with this share to the candidate.
    Split(f64),
    /// The candidate alone.
    Candidate,
    /// The candidate, with this share to the baseline: Lambda while it provisions, or a person. Never us.
    Turned(f64),
    /// Something else.
    Elsewhere,
}

impl Stands {
    /// The candidate's share of traffic. A share that is not quite all or nothing is told as neither.
    pub(super) fn share(self) -> Option<Weight> {
        let candidate = match self {
            Self::Baseline => 0.0,
            Self::Candidate => 1.0,
            Self::Split(share) => share,
            Self::Turned(share) => 1.0 - share,
            Self::Elsewhere => return None,
        };
        let told = |weight: &Weight| is(candidate, share(*weight));
        let exact = (0..=100).filter_map(|percent| Weight::try_from(percent).ok()).find(told);
        // Shares between whole percents are somebody else's: the nearest that is neither nothing nor all.
        exact.or_else(|| {
            let between = |percent: &u8| candidate * 100.0 < f64::from(*percent) + 0.5;
            Weight::try_from((1..=98).find(between).unwrap_or(99)).ok()
        })
    }

    /// Whether the alias's own version is the candidate.
    pub(super) const fn is_at_candidate(self) -> bool {
        matches!(self, Self::Candidate | Self::Turned(_))
    }

    /// Whether this is the goal.
    pub(super) fn reaches(self, goal: Goal) -> bool {
        match (goal, self) {
            (Goal::Baseline, Self::Baseline) | (Goal::Candidate, Self::Candidate) => true,
            // All traffic may be the version itself, where no weights are taken.
            (Goal::Split(Weight::ALL), Self::Candidate) => true,
            (Goal::Split(weight), Self::Split(seen)) => is(seen, share(weight)),
            _ => false,
        }
    }

    /// What there is to do towards a goal that is not reached.
    pub(super) fn towards(self, goal: Goal, change: &Change, pointed: &Pointed) -> Progress {
        let (baseline, candidate) = (&change.baseline.id, &change.candidate.id);
        match (goal, self) {
            (_, Self::Elsewhere) => Progress::Drifted(Note::new(format!("the alias is at {pointed}"))),
            (Goal::Split(_), Self::Candidate | Self::Turned(_)) => {
                Progress::Drifted(Note::new(format!("the alias is at {pointed} already")))
            }
            (Goal::Split(weight), _) => {
                Progress::Due(Note::new(format!("give version {candidate} {weight} beside version {baseline}")))
            }
            (Goal::Candidate, _) => Progress::Due(Note::new(format!("point the alias at version {candidate} alone"))),
            (Goal::Baseline, _) => {
                Progress::Due(Note::new(format!("point the alias back at version {baseline} alone")))
            }
        }
    }
}

/// Lambda hands back what it was given; this is for what JSON makes of a hundredth.
fn is(share: f64, wanted: f64) -> bool {
    (share - wanted).abs() < 1e-6
}

#[cfg(test)]
mod tests {
    use super::*;
    use rollback_core::model::{Revision, RolloutId, TargetId};

    fn change() -> Change {
        Change {
            rollout: RolloutId::try_from("r").expect("a good id"),
            target: TargetId::try_from("checkout:live").expect("a good id"),
            baseline: Revision::new("41").expect("a good id"),
            candidate: Revision::new("42").expect("a good id"),
        }
    }

    fn pointed(primary: &str, other: &[(&str, f64)]) -> Pointed {
        let other = other.iter().map(|(version, share)| ((*version).to_owned(), *share)).collect();
        Pointed { primary: primary.into(), other, revision: "r1".into() }
    }

    fn percent(weight: u8) -> Weight {
        Weight::try_from(weight).expect("at most 100")
    }

    #[test]
    fn each_shape_is_told_by_the_share_that_the_candidate_has() {
        for (seen, share) in [
            (pointed("41", &[]), Some(0)),
            (pointed("41", &[("42", 0.0)]), Some(0)),
            (pointed("41", &[("42", 0.29)]), Some(29)),
            (pointed("41", &[("42", 1.0)]), Some(100)),
            (pointed("42", &[]), Some(100)),
            (pointed("42", &[("41", 1.0)]), Some(0)),
            (pointed("42", &[("41", 0.001)]), Some(99)),
            (pointed("41", &[("42", 0.001)]), Some(1)),
            (pointed("43", &[]), None),
            (pointed("41", &[("43", 0.5)]), None),
            (pointed("41", &[("42", 0.1), ("43", 0.1)]), None),
        ] {
            assert_eq!(seen.stands(&change()).share(), share.map(percent), "{seen}");
        }
    }

    #[test]
    fn every_weight_is_reached_by_itself_and_no_other() {
        for asked in 0..=100 {
            for seen in 0..=100 {
                let stands = pointed("41", &[("42", share(percent(seen)))]).stands(&change());
                assert_eq!(stands.reaches(Goal::Split(percent(asked))), asked == seen, "{asked} {seen}");
            }
        }
    }

    #[test]
    fn a_weight_of_nothing_is_not_the_baseline_alone() {
        let preview = pointed("41", &[("42", 0.0)]).stands(&change());
        assert!(!preview.reaches(Goal::Baseline), "its leftovers are still to be cleared");
        assert!(!Stands::Baseline.reaches(Goal::Split(Weight::NONE)), "the preview is still to be set up");
    }

    #[test]
    fn what_somebody_else_did_is_drift_and_the_rest_is_due() {
        let change = change();
        let towards = |seen: &Pointed, goal| seen.stands(&change).towards(goal, &change, seen);
        let drifted = |progress: &Progress| matches!(progress, Progress::Drifted(_));
        for goal in [Goal::Split(percent(5)), Goal::Candidate, Goal::Baseline] {
            assert!(drifted(&towards(&pointed("43", &[]), goal)), "{goal}");
            assert!(drifted(&towards(&pointed("41", &[("43", 0.1)]), goal)), "{goal}");
        }
        assert!(drifted(&towards(&pointed("42", &[]), Goal::Split(percent(5)))));
        let due = towards(&pointed("42", &[("41", 0.5)]), Goal::Baseline);
        assert_eq!(due, Progress::Due(Note::new("point the alias back at version 41 alone")));
    }
}
