//! The plan of a rollout: steps of weight and bake, approvals, deadlines. Every strategy is a shape of a plan.

use std::{collections::BTreeSet, time::Duration};

use jiff::fmt::serde::unsigned_duration::friendly::compact::required as humane;
use serde::{Deserialize, Serialize};

use crate::{
    error::{Error, Result},
    model::{Actor, Weight},
};

/// Steps of weight and bake, up to all traffic. A plan that exists is valid.
///
/// ```
/// # use rollback_core::plan::Plan;
/// # use std::time::Duration;
/// let plan = Plan::canary([5, 25, 50, 100], Duration::from_secs(300))?;
/// let json = serde_json::to_string(&plan)?;
/// assert!(json.starts_with(r#"{"steps":[{"weight":5,"bake":"5m"}"#), "{json}");
/// assert_eq!(serde_json::from_str::<Plan>(&json)?, plan);
///
/// let refused = Plan::canary([50, 25, 100], Duration::from_secs(300)).unwrap_err();
/// assert!(refused.to_string().contains("step 2 of 3"), "{refused}");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Unchecked", into = "Unchecked")]
pub struct Plan {
    steps: Box<[Step]>,
    deadlines: Deadlines,
}

impl Plan {
    /// The most steps a plan may have.
    pub const MAX_STEPS: usize = 100;
    /// The longest bake or deadline: 366 days.
    pub const MAX_TIME: Duration = Duration::from_secs(366 * 24 * 3600);

    /// A plan of these steps, with the default [`Deadlines`].
    ///
    /// # Errors
    /// `Invalid`, naming the step, when there are none or more than [`Self::MAX_STEPS`], when a weight falls, when the
    /// last weight is not 100, when a bake is longer than [`Self::MAX_TIME`], or when more approvals are needed than
    /// there are approvers.
    pub fn new(steps: impl Into<Vec<Step>>) -> Result<Self> {
        Self::checked(steps.into(), Deadlines::default())
    }

    /// All traffic at once, then `bake` to watch it.
    ///
    /// # Errors
    /// `Invalid` when `bake` is longer than [`Self::MAX_TIME`].
    pub fn all_at_once(bake: Duration) -> Result<Self> {
        Self::new([Step::new(Weight::ALL, bake)])
    }

    /// These weights in percent, each watched for `bake`; the last one is 100.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn canary(percents: impl IntoIterator<Item = u8>, bake: Duration) -> Result<Self> {
        let steps = percents.into_iter().enumerate().map(|(at, percent)| {
            let weight =
                Weight::try_from(percent).map_err(|e| e.during(format_args!("step {} of the plan", at + 1)))?;
            Ok(Step::new(weight, bake))
        });
        Self::new(steps.collect::<Result<Vec<_>>>()?)
    }

    /// Equal steps of `percent` up to 100, each watched for `bake`.
    ///
    /// # Errors
    /// `Invalid` when `percent` is not 1 to 100; else as [`Self::new`].
    pub fn linear(percent: u8, bake: Duration) -> Result<Self> {
        if !(1..=100).contains(&percent) {
            return Err(Error::invalid(format!("a linear plan has steps of 1 to 100 %, not of {percent} %")));
        }
        Self::canary((1..=100u8.div_ceil(percent)).map(|n| n.saturating_mul(percent).min(100)), bake)
    }

    /// The candidate beside the baseline without traffic for `preview`, then all traffic, watched for `bake`.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn blue_green(preview: Duration, bake: Duration) -> Result<Self> {
        Self::new([Step::new(Weight::NONE, preview), Step::new(Weight::ALL, bake)])
    }

    /// With these deadlines.
    ///
    /// # Errors
    /// `Invalid`, naming the deadline, when one is zero or longer than [`Self::MAX_TIME`].
    pub fn with_deadlines(self, deadlines: Deadlines) -> Result<Self> {
        Self::checked(self.steps.into_vec(), deadlines)
    }

    /// The steps, in order; at least one.
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// How long each state may take.
    pub const fn deadlines(&self) -> &Deadlines {
        &self.deadlines
    }

    fn checked(steps: Vec<Step>, deadlines: Deadlines) -> Result<Self> {
        let count = steps.len();
        if count == 0 {
            return Err(Error::invalid("the plan has no steps; it needs at least one, of weight 100"));
        }
        if count > Self::MAX_STEPS {
            return Err(Error::invalid(format!(
                "the plan has {count} steps; at most {} are accepted",
                Self::MAX_STEPS
            )));
        }
        let mut before = Weight::NONE;
        for (at, step) in steps.iter().enumerate() {
            let name = format!("step {} of {count} in the plan", at + 1);
            if step.weight < before {
                return Err(Error::invalid(format!(
                    "{name} falls from {before} to {}; weights may only rise, so {before} or more is accepted",
                    step.weight
                )));
            }
            if step.bake > Self::MAX_TIME {
                return Err(Error::invalid(format!("{name} bakes longer than 366 days")));
            }
            if let Some(approval) = &step.approval {
                approval.check(&name)?;
            }
            before = step.weight;
        }
        if before != Weight::ALL {
            return Err(Error::invalid(format!(
                "the last step of the plan (step {count}) has weight {before}; it must be 100 %"
            )));
        }
        deadlines.check()?;
        Ok(Self { steps: steps.into(), deadlines })
    }
}

/// What a plan looks like before it is checked.
#[derive(Serialize, Deserialize)]
#[serde(rename = "Plan", deny_unknown_fields)]
struct Unchecked {
    steps: Vec<Step>,
    #[serde(default)]
    deadlines: Deadlines,
}

impl TryFrom<Unchecked> for Plan {
    type Error = Error;
    fn try_from(plan: Unchecked) -> Result<Self> {
        Self::checked(plan.steps, plan.deadlines)
    }
}

impl From<Plan> for Unchecked {
    fn from(plan: Plan) -> Self {
        Self { steps: plan.steps.into_vec(), deadlines: plan.deadlines }
    }
}

/// A share of traffic, and how long to watch it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Step {
    /// The candidate's share of traffic.
    pub weight: Weight,
    /// How long it is *watched*: time in which the gates had data. Downtime does not count.
    #[serde(with = "humane")]
    pub bake: Duration,
    /// Who must agree before the rollout leaves this step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approval: Option<Approval>,
}

impl Step {
    /// A step without approval.
    pub const fn new(weight: Weight, bake: Duration) -> Self {
        Self { weight, bake, approval: None }
    }

    /// A step that is left only when people agree.
    #[must_use]
    pub fn approved_by(mut self, approval: Approval) -> Self {
        self.approval = Some(approval);
        self
    }
}

/// Who must agree before a rollout goes on: so many, of these, not counting the author unless said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Approval {
    /// How many different people; at least one.
    #[serde(default = "one")]
    pub need: usize,
    /// Who may approve; empty means anyone.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub of: BTreeSet<Actor>,
    /// Whether the one who started the rollout counts.
    #[serde(default)]
    pub author_counts: bool,
}

impl Approval {
    /// One person, anyone but the author.
    pub const fn anyone() -> Self {
        Self { need: 1, of: BTreeSet::new(), author_counts: false }
    }

    /// `need` of these people, not counting the author.
    pub fn of(need: usize, people: impl IntoIterator<Item = Actor>) -> Self {
        Self { need, of: people.into_iter().collect(), author_counts: false }
    }

    /// The one who started the rollout may approve it as well.
    #[must_use]
    pub const fn author_counts(mut self) -> Self {
        self.author_counts = true;
        self
    }

    /// Whether this person's approval counts.
    ///
    /// # Errors
    /// `Denied`, saying who may.
    pub fn admits(&self, actor: &Actor, author: &Actor) -> Result<()> {
        if !self.author_counts && actor == author {
            return Err(Error::new(
                crate::error::ErrorKind::Denied,
                format!("{actor} started this rollout, so somebody else must approve it"),
            ));
        }
        if !self.of.is_empty() && !self.of.contains(actor) {
            let who: Vec<&str> = self.of.iter().map(Actor::as_str).collect();
            return Err(Error::new(
                crate::error::ErrorKind::Denied,
                format!("{actor} is not among those who may approve: {}", who.join(", ")),
            ));
        }
        Ok(())
    }

    fn check(&self, name: &str) -> Result<()> {
        if self.need == 0 {
            return Err(Error::invalid(format!("{name} needs 0 approvals; 1 or more is accepted")));
        }
        if !self.of.is_empty() && self.of.len() < self.need {
            return Err(Error::invalid(format!(
                "{name} needs {} approvals but only {} may approve",
                self.need,
                self.of.len()
            )));
        }
        Ok(())
    }
}

const fn one() -> usize {
    1
}

/// How long each state may take, in wall time from its entry, before its default exit. A restart resets none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Deadlines {
    /// Proving both ways; then the rollout is refused. Default 5 minutes.
    #[serde(with = "humane")]
    pub preflight: Duration,
    /// Reaching a step's weight; then it rolls back. Default 15 minutes.
    #[serde(with = "humane")]
    pub shift: Duration,
    /// What a bake may take beyond its length, because it could not be watched; then it rolls back. Default 1 hour.
    #[serde(with = "humane")]
    pub overtime: Duration,
    /// Waiting for a person; then it rolls back. Default 24 hours.
    #[serde(with = "humane")]
    pub hold: Duration,
    /// Clearing the baseline away; then it is promoted if only the candidate serves, else it rolls back. Default 15
    /// minutes.
    #[serde(with = "humane")]
    pub promote: Duration,
    /// Bringing the baseline back; then it is stuck and a person is asked. Default 1 hour.
    #[serde(with = "humane")]
    pub roll_back: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        let minutes = |n: u64| Duration::from_secs(60 * n);
        Self {
            preflight: minutes(5),
            shift: minutes(15),
            overtime: minutes(60),
            hold: minutes(24 * 60),
            promote: minutes(15),
            roll_back: minutes(60),
        }
    }
}

impl Deadlines {
    fn check(&self) -> Result<()> {
        let all = [
            ("preflight", self.preflight),
            ("shift", self.shift),
            ("overtime", self.overtime),
            ("hold", self.hold),
            ("promote", self.promote),
            ("roll_back", self.roll_back),
        ];
        for (name, time) in all {
            if time.is_zero() {
                return Err(Error::invalid(format!("the plan's deadline {name} is zero; 1s or more makes sense")));
            }
            if time > Plan::MAX_TIME {
                return Err(Error::invalid(format!("the plan's deadline {name} is longer than 366 days")));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn a_plan_that_cannot_work_names_the_step_and_what_would_be_accepted() {
        let refused = |steps: &[u8]| Plan::canary(steps.iter().copied(), MINUTE).unwrap_err().chain();
        assert_eq!(refused(&[]), "the plan has no steps; it needs at least one, of weight 100");
        assert_eq!(
            refused(&[10, 50, 20, 100]),
            "step 3 of 4 in the plan falls from 50 % to 20 %; weights may only rise, so 50 % or more is accepted"
        );
        assert_eq!(refused(&[10, 50]), "the last step of the plan (step 2) has weight 50 %; it must be 100 %");
        assert_eq!(refused(&[100; 101]), "the plan has 101 steps; at most 100 are accepted");
        assert_eq!(
            refused(&[10, 101]),
            "step 2 of the plan: weight 101 is not a share of traffic; 0 to 100 is accepted"
        );
    }

    #[test]
    fn zero_deadlines_and_impossible_approvals_are_refused() {
        let plan = Plan::all_at_once(MINUTE).unwrap();
        let error = plan.with_deadlines(Deadlines { roll_back: Duration::ZERO, ..Deadlines::default() }).unwrap_err();
        assert_eq!(error.to_string(), "the plan's deadline roll_back is zero; 1s or more makes sense");
        let step = Step::new(Weight::ALL, MINUTE).approved_by(Approval::of(2, [Actor::try_from("ana").unwrap()]));
        let error = Plan::new([step]).unwrap_err();
        assert_eq!(error.to_string(), "step 1 of 1 in the plan needs 2 approvals but only 1 may approve");
    }

    #[test]
    fn json_is_checked_like_code_and_durations_are_humane() {
        let plan: Plan = serde_json::from_str(
            r#"{"steps":[{"weight":10,"bake":"90s","approval":{}},{"weight":100,"bake":"1h 30m"}],
                "deadlines":{"hold":"48h"}}"#,
        )
        .unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(plan.steps()[0].bake, Duration::from_secs(90));
        assert_eq!(plan.steps()[0].approval, Some(Approval::anyone()));
        assert_eq!(plan.steps()[1].bake, Duration::from_secs(5400));
        assert_eq!(serde_json::from_str::<Plan>(&serde_json::to_string(&plan).unwrap()).unwrap(), plan);
        for bad in [
            r#"{"steps":[{"weight":250,"bake":"1m"}]}"#,
            r#"{"steps":[{"weight":50,"bake":"1m"}]}"#,
            r#"{"steps":[{"weight":100,"bake":"soon"}]}"#,
            r#"{"steps":[{"weight":100,"bake":"1m","bakes":"2m"}]}"#,
        ] {
            assert!(serde_json::from_str::<Plan>(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn linear_plans_end_at_all_traffic() {
        let weights = |percent| -> Vec<u8> {
            Plan::linear(percent, MINUTE).unwrap().steps().iter().map(|s| s.weight.percent()).collect()
        };
        assert_eq!(weights(30), [30, 60, 90, 100]);
        assert_eq!(weights(100), [100]);
        assert_eq!(weights(1).len(), 100);
        assert!(Plan::linear(0, MINUTE).is_err());
    }
}
