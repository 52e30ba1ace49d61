//! Rollback triggers: alarms that CloudFormation itself watches while an update runs, and for a while after it.

use std::time::Duration;

use aws_sdk_cloudformation::types::{RollbackConfiguration, RollbackTrigger};
use rollback_core::{Error, Result};

/// Alarms upon which CloudFormation undoes an update by itself, whether or not anything of ours still runs.
///
/// They are set with each update of the candidate, in place of those that the stack has. They watch the update, and for
/// [`monitor`](Self::monitor) after its last resource; all that time the stack is `UPDATE_IN_PROGRESS`, nothing old is
/// removed, and cancelling brings it back. An alarm that is not there makes the update fail, and one that fires undoes it:
/// preflight looks for both, see [`Stack::alarms`](super::Stack::alarms).
///
/// ```
/// # use rollback_aws::cloudformation::Triggers;
/// # use std::time::Duration;
/// let triggers = Triggers::new()
///     .alarm("arn:aws:cloudwatch:eu-west-1:123456789012:alarm:checkout-errors")?
///     .monitor(Duration::from_secs(600))?;
/// # Ok::<(), rollback_core::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Triggers {
    alarms: Vec<(String, &'static str)>,
    minutes: u8,
}

impl Triggers {
    /// No alarms. Set as they are, they remove those that the stack has.
    pub fn new() -> Self {
        Self::default()
    }

    /// With this metric alarm, by its ARN.
    ///
    /// # Errors
    /// `Invalid` when it is no alarm's ARN, or the sixth.
    pub fn alarm(self, arn: impl Into<String>) -> Result<Self> {
        self.with(arn.into(), "AWS::CloudWatch::Alarm")
    }

    /// With this composite alarm, by its ARN.
    ///
    /// # Errors
    /// As [`Self::alarm`].
    pub fn composite(self, arn: impl Into<String>) -> Result<Self> {
        self.with(arn.into(), "AWS::CloudWatch::CompositeAlarm")
    }

    /// Watched for so long after the update's last resource, in whole minutes, at most 180.
    ///
    /// # Errors
    /// `Invalid` for other times.
    pub fn monitor(mut self, time: Duration) -> Result<Self> {
        let minutes = time.as_secs() / 60;
        let whole = time == Duration::from_secs(60 * minutes);
        match u8::try_from(minutes) {
            Ok(minutes @ 0..=180) if whole => self.minutes = minutes,
            _ => {
                return Err(Error::invalid(format!(
                    "CloudFormation cannot monitor for {time:?}; whole minutes from 0 to 180 are accepted"
                )));
            }
        }
        Ok(self)
    }

    fn with(mut self, arn: String, kind: &'static str) -> Result<Self> {
        let words: Vec<&str> = arn.splitn(7, ':').collect();
        if !matches!(words[..], ["arn", _, "cloudwatch", _, _, "alarm", name] if !name.is_empty()) {
            return Err(Error::invalid(format!(
                "{arn:?} is no alarm's ARN; as in arn:aws:cloudwatch:eu-west-1:123456789012:alarm:errors is accepted"
            )));
        }
        if self.alarms.len() == 5 {
            return Err(Error::invalid(format!(
                "{arn} is the sixth rollback trigger; CloudFormation takes five, and a composite alarm joins several"
            )));
        }
        self.alarms.push((arn, kind));
        Ok(self)
    }

    /// The ARNs of the alarms.
    pub(super) fn arns(&self) -> Vec<String> {
        self.alarms.iter().map(|(arn, _)| arn.clone()).collect()
    }

    /// How long they are watched after the last resource.
    pub(super) const fn monitoring(&self) -> Duration {
        Duration::from_secs(60 * self.minutes as u64)
    }

    /// As CloudFormation takes them.
    pub(super) fn configuration(&self) -> RollbackConfiguration {
        let triggers = self.alarms.iter().map(|(arn, kind)| RollbackTrigger::builder().arn(arn).r#type(*kind).build());
        RollbackConfiguration::builder()
            // An empty list removes what was set before; none at all would keep it.
            .set_rollback_triggers(Some(triggers.collect()))
            .monitoring_time_in_minutes(i32::from(self.minutes))
            .build()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn five_alarms_and_whole_minutes_up_to_three_hours_are_accepted() {
        let arn = |n: u8| format!("arn:aws:cloudwatch:eu-west-1:123456789012:alarm:a:{n}");
        let five = (0..5).try_fold(Triggers::new(), |it, n| it.alarm(arn(n))).expect("five are accepted");
        assert!(five.clone().composite(arn(5)).expect_err("six").to_string().contains("takes five"));
        assert!(five.clone().alarm("errors").expect_err("a name").to_string().contains("no alarm's ARN"));
        for (seconds, good) in [(0, true), (60, true), (90, false), (180 * 60, true), (181 * 60, false)] {
            assert_eq!(five.clone().monitor(Duration::from_secs(seconds)).is_ok(), good, "{seconds}");
        }
    }
}
