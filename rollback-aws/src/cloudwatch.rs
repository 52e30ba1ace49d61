//! CloudWatch as a judge: alarms and metrics as gates, and the alarms that a stage needs.
//!
//! ```no_run
//! # async fn example() -> rollback_core::Result<()> {
//! use rollback_aws::{account::Account, cloudwatch::{AlarmGate, Alarms, Metric}};
//!
//! let account = Account::from_env().await?;
//! // One for all rollouts of this process in this account and region.
//! let alarms = Alarms::new(&account);
//! let calls = Metric::of_candidate("Invocations", "checkout", "live");
//! let gate = AlarmGate::new("alarms", &alarms, ["fn-prod-v{{candidate}}-error-rate", "fn-prod-throttles"])?
//!     .traffic(calls, 20.0);
//! # Ok(())
//! # }
//! ```
//!
//! # Placeholders
//! In names of alarms and values of dimensions `{{candidate}}`, `{{baseline}}` and `{{target}}` stand for the ids of the
//! rollout: alarms per version, and the target group of the candidate in a blue/green pair.
//!
//! # What it needs to be allowed
//! [`LOOK`] for alarms, [`MEASURE`] for metrics, [`KEEP`] for [`AlarmSet`]. CloudWatch's reads know no resources, so `*` is
//! what a policy names; preflight proves the first two.
//!
//! # How fast
//! An alarm on a metric of 60 s was observed to fire 2 min 13 s after the minute that it fired for had ended. An `OK` says
//! something about the time before that only, which is why evidence of an [`AlarmGate`] ends two minutes before the look
//! ([`AlarmGate::lag`]).

mod alarms;
mod gate;
#[cfg(feature = "logs")]
mod log;
mod metric;
mod set;

use rollback_core::{
    gate::Window,
    model::{Change, RevisionId, TargetId},
};

#[cfg(feature = "logs")]
pub use self::log::LogLines;
#[cfg(feature = "compare")]
pub use self::metric::Counts;
pub use self::{
    alarms::Alarms,
    gate::{AlarmGate, Preexisting},
    metric::{Bound, Metric, MetricGate},
    set::{AlarmSet, Definition, Planned, Stage, Watched},
};
use crate::iam::{Permission, Policy};

/// To see the states of alarms.
pub const DESCRIBE_ALARMS: Permission = Permission::new("cloudwatch:DescribeAlarms", "see the states of alarms");
/// To read metrics.
pub const GET_METRIC_DATA: Permission = Permission::new("cloudwatch:GetMetricData", "read metrics");

/// To read log groups.
#[cfg(feature = "logs")]
pub const FILTER_LOG_EVENTS: Permission = Permission::new("logs:FilterLogEvents", "read the last lines of a log group");

/// What an [`AlarmGate`] without [`AlarmGate::traffic`] needs.
pub const LOOK: &[Permission] = &[DESCRIBE_ALARMS];
/// What a [`MetricGate`] needs, and an [`AlarmGate`] with [`AlarmGate::traffic`] besides [`LOOK`].
pub const MEASURE: &[Permission] = &[GET_METRIC_DATA];
/// What an [`AlarmGate`] with [`AlarmGate::with_log_lines`] needs besides.
#[cfg(feature = "logs")]
pub const EXPLAIN: &[Permission] = &[FILTER_LOG_EVENTS];
/// What an [`AlarmSet`] needs.
pub const KEEP: &[Permission] = &[
    DESCRIBE_ALARMS,
    Permission::new("cloudwatch:ListTagsForResource", "tell alarms of ours from others"),
    Permission::new("cloudwatch:PutMetricAlarm", "create and update alarms"),
    Permission::new("cloudwatch:TagResource", "mark alarms as ours"),
    Permission::new("cloudwatch:DeleteAlarms", "remove alarms of ours"),
];

/// The policy of gates on alarms and metrics.
pub fn policy() -> Policy {
    Policy::new().allow(LOOK, ["*"]).allow(MEASURE, ["*"])
}

/// The ids that placeholders stand for.
#[derive(Clone, Copy, Debug)]
struct Names<'a> {
    candidate: &'a str,
    baseline: &'a str,
    target: &'a str,
}

impl<'a> Names<'a> {
    fn of(window: &'a Window) -> Self {
        Self::new(&window.candidate, &window.baseline, &window.target)
    }

    fn of_change(change: &'a Change) -> Self {
        Self::new(&change.candidate.id, &change.baseline.id, &change.target)
    }

    fn new(candidate: &'a RevisionId, baseline: &'a RevisionId, target: &'a TargetId) -> Self {
        Self { candidate: candidate.as_str(), baseline: baseline.as_str(), target: target.as_str() }
    }

    /// The same for the other arm of a comparison.
    #[cfg(feature = "compare")]
    const fn of_the_baseline(self) -> Self {
        Self { candidate: self.baseline, ..self }
    }

    fn render(&self, text: &str) -> String {
        if !text.contains("{{") {
            return text.to_owned();
        }
        text.replace("{{candidate}}", self.candidate)
            .replace("{{baseline}}", self.baseline)
            .replace("{{target}}", self.target)
    }
}
