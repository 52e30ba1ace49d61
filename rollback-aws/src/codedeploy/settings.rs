//! A group's own guard: its alarms, when it rolls back by itself, its waits. Checked, and set when asked to.

use std::{collections::BTreeSet, time::Duration};

use aws_sdk_codedeploy::types::{
    Alarm, AlarmConfiguration, AutoRollbackConfiguration, AutoRollbackEvent, BlueGreenDeploymentConfiguration,
    BlueInstanceTerminationOption, DeploymentGroupInfo, DeploymentReadyAction, DeploymentReadyOption, InstanceAction,
};
use rollback_core::{Error, Result, model::Note};

use super::Group;
use crate::{error::sorted, iam::Permission};

/// What a group is to be set to; what is not said stays as it is.
///
/// ```
/// use std::time::Duration;
/// use rollback_aws::codedeploy::{RollBackOn, Settings};
///
/// let guard = Settings::new()
///     .alarms(["shop-errors", "shop-latency"])
///     .roll_back_on([RollBackOn::Failure, RollBackOn::Alarm])
///     .terminate_after(Duration::from_secs(30 * 60));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    alarms: Option<Vec<String>>,
    ignore_unreadable: Option<bool>,
    roll_back_on: Option<Vec<RollBackOn>>,
    ready: Option<Option<u32>>,
    terminate: Option<u32>,
    config: Option<String>,
}

/// When CodeDeploy rolls back by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RollBackOn {
    /// A deployment failed.
    Failure,
    /// One of the group's alarms stopped it.
    Alarm,
    /// Somebody stopped it.
    Request,
}

impl RollBackOn {
    const ALL: [Self; 3] = [Self::Failure, Self::Alarm, Self::Request];

    const fn event(self) -> AutoRollbackEvent {
        match self {
            Self::Failure => AutoRollbackEvent::DeploymentFailure,
            Self::Alarm => AutoRollbackEvent::DeploymentStopOnAlarm,
            Self::Request => AutoRollbackEvent::DeploymentStopOnRequest,
        }
    }
}

/// To set a group.
pub const UPDATE_GROUP: Permission = Permission::new("codedeploy:UpdateDeploymentGroup", "set the group");

impl Settings {
    /// Nothing is to be set.
    pub fn new() -> Self {
        Self::default()
    }

    /// These CloudWatch alarms stop a deployment. They stand beside the events that roll back, not inside them.
    ///
    /// They have an effect only with [`RollBackOn::Alarm`]: without it the deployment stops half way. Up to 50, where the
    /// account's quota allows so many: the API reference still says 10.
    #[must_use]
    pub fn alarms(mut self, names: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.alarms = Some(names.into_iter().map(Into::into).collect());
        self
    }

    /// Whether a deployment goes on while CodeDeploy cannot read its alarms; by CodeDeploy's default it is stopped, so that
    /// a throttled CloudWatch ends deployments.
    #[must_use]
    pub const fn ignore_unreadable_alarms(mut self, is: bool) -> Self {
        self.ignore_unreadable = Some(is);
        self
    }

    /// The group rolls back by itself on these events; none switches it off.
    #[must_use]
    pub fn roll_back_on(mut self, events: impl IntoIterator<Item = RollBackOn>) -> Self {
        let events: BTreeSet<RollBackOn> = events.into_iter().collect();
        self.roll_back_on = Some(events.into_iter().collect());
        self
    }

    /// Blue/green on EC2 and ECS: before the traffic it waits so many minutes for somebody to let it go on, and stops if
    /// nobody does; with `None` it goes on at once. 0 to 2,880 minutes.
    #[must_use]
    pub const fn ready(mut self, wait_minutes: Option<u32>) -> Self {
        self.ready = Some(wait_minutes);
        self
    }

    /// Blue/green on EC2 and ECS: the old ones are kept so long after the traffic has moved, in whole minutes, up to two
    /// days. Until then the way back is immediate.
    #[must_use]
    pub const fn terminate_after(mut self, wait: Duration) -> Self {
        #[expect(clippy::cast_possible_truncation, reason = "checked to be at most 2,880 before it is used")]
        let minutes = wait.as_secs().div_ceil(60) as u32;
        self.terminate = Some(minutes);
        self
    }

    /// Its configuration, predefined or custom, as `CodeDeployDefault.ECSLinear10PercentEvery3Minutes`.
    #[must_use]
    pub fn config(mut self, name: impl Into<String>) -> Self {
        self.config = Some(name.into());
        self
    }

    /// What CodeDeploy would refuse, before it is asked.
    fn check(&self) -> Result<()> {
        if let Some(names) = &self.alarms {
            let unique: BTreeSet<&String> = names.iter().collect();
            if unique.len() < names.len() {
                return Err(Error::invalid("an alarm is named twice; each is accepted once"));
            }
            if names.len() > 50 {
                let why = format!("{} alarms are named; a group takes 50", names.len());
                return Err(Error::invalid(why));
            }
            if let Some(name) = names.iter().find(|name| name.is_empty() || name.len() > 255) {
                return Err(Error::invalid(format!("{name:?} is no alarm's name; 1 to 255 characters are accepted")));
            }
        }
        for minutes in [self.ready.flatten(), self.terminate].into_iter().flatten() {
            if minutes > 2_880 {
                return Err(Error::invalid(format!("a wait of {minutes} minutes is too long; 0 to 2880 is accepted")));
            }
        }
        Ok(())
    }

    /// Where a group is not set so.
    fn differences(&self, info: &DeploymentGroupInfo) -> Vec<Note> {
        let mut other = Vec::new();
        let mut differs = |what: &str, is: String, wanted: String| {
            if is != wanted {
                other.push(Note::new(format!("{what}: {is} instead of {wanted}")));
            }
        };
        let listed = |mut names: Vec<String>| {
            names.sort_unstable();
            if names.is_empty() { "none".into() } else { names.join(", ") }
        };
        if let Some(names) = &self.alarms {
            differs("alarms", listed(alarms_of(info)), listed(names.clone()));
        }
        if let Some(wanted) = self.ignore_unreadable {
            let is = info.alarm_configuration().is_some_and(AlarmConfiguration::ignore_poll_alarm_failure);
            differs("whether unreadable alarms are ignored", is.to_string(), wanted.to_string());
        }
        if let Some(events) = &self.roll_back_on {
            let wanted = events.iter().map(|it| it.event().as_str().to_owned()).collect();
            differs("rolls back on", listed(events_of(info)), listed(wanted));
        }
        let blue_green = info.blue_green_deployment_configuration();
        if let Some(ready) = self.ready {
            let tell =
                |minutes: Option<u32>| minutes.map_or_else(|| "goes on at once".into(), |it| format!("{it} minutes"));
            differs("waits before the traffic", tell(ready_wait(info)), tell(ready));
        }
        if let Some(minutes) = self.terminate {
            let is = blue_green.and_then(|it| it.terminate_blue_instances_on_deployment_success());
            let is = is.map_or_else(
                || "no wait".into(),
                |it| match it.action() {
                    Some(InstanceAction::KeepAlive) => "they are kept".into(),
                    _ => format!("{} minutes", it.termination_wait_time_in_minutes()),
                },
            );
            differs("keeps the old ones", is, format!("{minutes} minutes"));
        }
        if let Some(name) = &self.config {
            differs("configuration", info.deployment_config_name().unwrap_or("none").into(), name.clone());
        }
        other
    }
}

/// The names of the group's alarms, if they are watched.
pub(super) fn alarms_of(info: &DeploymentGroupInfo) -> Vec<String> {
    let on = info.alarm_configuration().filter(|it| it.enabled());
    on.map(|it| it.alarms().iter().filter_map(|it| it.name().map(str::to_owned)).collect()).unwrap_or_default()
}

/// The events on which the group rolls back by itself.
pub(super) fn events_of(info: &DeploymentGroupInfo) -> Vec<String> {
    let on = info.auto_rollback_configuration().filter(|it| it.enabled());
    on.map(|it| it.events().iter().map(|it| it.as_str().to_owned()).collect()).unwrap_or_default()
}

/// How many minutes the group waits for somebody before the traffic; none if it goes on at once.
pub(super) fn ready_wait(info: &DeploymentGroupInfo) -> Option<u32> {
    let option = info.blue_green_deployment_configuration()?.deployment_ready_option()?;
    (option.action_on_timeout() == Some(&DeploymentReadyAction::StopDeployment))
        .then(|| option.wait_time_in_minutes().max(0).cast_unsigned())
}

impl Group {
    /// Where this group is not set so, without changing anything.
    ///
    /// # Errors
    /// `Invalid` when CodeDeploy would not take the settings; what kept it from looking.
    pub async fn check(&self, settings: &Settings) -> Result<Vec<Note>> {
        settings.check()?;
        Ok(settings.differences(&self.info().await?))
    }

    /// Sets the group so, and looks whether it is. What was different.
    ///
    /// # Errors
    /// As [`check`](Self::check); `Internal` when the group is not set so afterwards.
    pub async fn set(&self, settings: &Settings) -> Result<Vec<Note>> {
        settings.check()?;
        let info = self.info().await?;
        let before = settings.differences(&info);
        if before.is_empty() {
            return Ok(before);
        }
        let call = self.client().update_deployment_group();
        let mut call = call.application_name(self.app()).current_deployment_group_name(self.name());
        call = call.set_deployment_config_name(settings.config.clone());
        if settings.alarms.is_some() || settings.ignore_unreadable.is_some() {
            // The whole of it is replaced: what was not said is sent as it is.
            let names = settings.alarms.clone().unwrap_or_else(|| alarms_of(&info));
            let old = info.alarm_configuration().is_some_and(AlarmConfiguration::ignore_poll_alarm_failure);
            let alarms = names.iter().map(|name| Alarm::builder().name(name).build()).collect();
            let config = AlarmConfiguration::builder().enabled(!names.is_empty()).set_alarms(Some(alarms));
            let config = config.ignore_poll_alarm_failure(settings.ignore_unreadable.unwrap_or(old));
            call = call.alarm_configuration(config.build());
        }
        if let Some(events) = &settings.roll_back_on {
            let config = AutoRollbackConfiguration::builder().enabled(!events.is_empty());
            let listed = RollBackOn::ALL.into_iter().filter(|it| events.contains(it)).map(RollBackOn::event).collect();
            call = call.auto_rollback_configuration(config.set_events(Some(listed)).build());
        }
        if settings.ready.is_some() || settings.terminate.is_some() {
            let old = info.blue_green_deployment_configuration();
            let mut config = old.map_or_else(BlueGreenDeploymentConfiguration::builder, |old| {
                BlueGreenDeploymentConfiguration::builder()
                    .set_terminate_blue_instances_on_deployment_success(
                        old.terminate_blue_instances_on_deployment_success().cloned(),
                    )
                    .set_deployment_ready_option(old.deployment_ready_option().cloned())
                    .set_green_fleet_provisioning_option(old.green_fleet_provisioning_option().cloned())
            });
            if let Some(ready) = settings.ready {
                let action = match ready {
                    Some(_) => DeploymentReadyAction::StopDeployment,
                    None => DeploymentReadyAction::ContinueDeployment,
                };
                let option = DeploymentReadyOption::builder().action_on_timeout(action);
                let option = option.wait_time_in_minutes(ready.unwrap_or(0).cast_signed());
                config = config.deployment_ready_option(option.build());
            }
            if let Some(minutes) = settings.terminate {
                let option = BlueInstanceTerminationOption::builder().action(InstanceAction::Terminate);
                let option = option.termination_wait_time_in_minutes(minutes.cast_signed());
                config = config.terminate_blue_instances_on_deployment_success(option.build());
            }
            call = call.blue_green_deployment_configuration(config.build());
        }
        call.send().await.map_err(|e| {
            let too_many = e.as_service_error().is_some_and(|e| e.is_alarms_limit_exceeded_exception());
            let e = sorted(format_args!("setting {self}"), e);
            if !too_many {
                return e;
            }
            let named = settings.alarms.as_ref().map_or(0, Vec::len);
            let why = format!(
                "setting {self}: {named} alarms are more than this account's quota; 10 are accepted everywhere, more where \
                 Service Quotas allows it"
            );
            Error::invalid(why).because(e)
        })?;
        let after = self.check(settings).await?;
        match after.first() {
            None => Ok(before),
            Some(still) => Err(Error::new(
                rollback_core::ErrorKind::Internal,
                format!("{self} was set, and is not as it was set to: {still}"),
            )),
        }
    }
}
