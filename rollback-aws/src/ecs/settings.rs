//! What a service's deployments are to be guarded by besides us, checked and, on request, set.

use std::time::Duration;

use aws_sdk_ecs::types::{DeploymentAlarms, DeploymentCircuitBreaker, DeploymentConfiguration};
use rollback_core::{Error, ErrorKind, Result, model::Note};

use super::{
    Service, Shape,
    shape::{STAGES, hook, is_pause, patience},
};
use crate::error::sorted;

/// ECS's own guards of a service's deployments: what is named here must be so, what is not is left as it is.
///
/// ```
/// use std::time::Duration;
/// use rollback_aws::ecs::Settings;
///
/// # fn main() -> rollback_core::Result<()> {
/// let guarded = Settings::new()
///     .circuit_breaker()
///     .alarms(["checkout-5xx", "checkout-latency"])
///     .pauses(Duration::from_secs(3600))?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    breaker: bool,
    alarms: Vec<String>,
    /// In whole minutes, as ECS counts.
    pauses: Option<Duration>,
}

impl Settings {
    /// Nothing in particular.
    pub const fn new() -> Self {
        Self { breaker: false, alarms: Vec::new(), pauses: None }
    }

    /// The circuit breaker on, rolling back: tasks that do not start end a deployment by themselves.
    #[must_use]
    pub const fn circuit_breaker(mut self) -> Self {
        self.breaker = true;
        self
    }

    /// These deployment alarms, by name and no others, rolling back when one fires. They guard also while no tool runs.
    #[must_use]
    pub fn alarms(mut self, names: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.alarms = names.into_iter().map(Into::into).collect();
        self
    }

    /// PAUSE hooks before each shift of traffic and after the last ([`Shape::paused`]), after which ECS goes back when nobody
    /// answers within this time, which ECS counts in minutes, so it is rounded up to whole ones. Make it longer than the longest
    /// bake of a plan and the overtime that the plan allows.
    ///
    /// A deployment by another tool waits at them as well, for somebody to answer.
    ///
    /// # Errors
    /// `Invalid` when it is not 1 minute to 14 days, which is what ECS takes.
    pub fn pauses(mut self, time_out: Duration) -> Result<Self> {
        let minutes = time_out.as_secs().saturating_add(u64::from(time_out.subsec_nanos() > 0)).div_ceil(60);
        if !MINUTES.contains(&minutes) {
            let why = format!("a pause that times out after {time_out:?} cannot be set; 1 min to 336 h is accepted");
            return Err(Error::invalid(why));
        }
        self.pauses = Some(Duration::from_secs(60 * minutes));
        Ok(self)
    }

    /// What a service lacks of this.
    pub(super) fn lacks(&self, config: Option<&DeploymentConfiguration>) -> Vec<Note> {
        let mut lacks = Vec::new();
        let breaker = config.and_then(DeploymentConfiguration::deployment_circuit_breaker);
        if self.breaker && breaker.is_none_or(|it| !it.enable() || !it.rollback()) {
            lacks.push("its circuit breaker is not on, or does not roll back".into());
        }
        let alarms = config.and_then(DeploymentConfiguration::alarms);
        let named = alarms.map(|it| it.alarm_names()).unwrap_or_default();
        let (mut are, mut wanted) = (named.to_vec(), self.alarms.clone());
        are.sort_unstable();
        wanted.sort_unstable();
        if !wanted.is_empty() && (are != wanted || alarms.is_none_or(|it| !it.enable() || !it.rollback())) {
            let wanted = self.alarms.join(", ");
            lacks.push(Note::new(format!("its deployment alarms are not {wanted}, on and rolling back")));
        }
        if let Some(time_out) = self.pauses {
            let hooks = config.map(DeploymentConfiguration::lifecycle_hooks).unwrap_or_default();
            let ours = |hook: &&aws_sdk_ecs::types::DeploymentLifecycleHook| {
                is_pause(hook) && hook.lifecycle_stages().iter().any(|stage| STAGES.contains(stage))
            };
            let good = hooks.iter().filter(ours).all(|hook| patience(hook) == (time_out, true));
            if !Shape::of(config).is_paused() || !good {
                lacks.push(Note::new(format!(
                    "it does not wait before each shift and after the last, for {} min and with a rollback after that",
                    time_out.as_secs() / 60
                )));
            }
        }
        lacks
    }

    /// A configuration with this set in it.
    fn applied(&self, config: Option<DeploymentConfiguration>) -> Result<DeploymentConfiguration> {
        let mut config = config.unwrap_or_else(|| DeploymentConfiguration::builder().build());
        if self.breaker {
            let known = config.deployment_circuit_breaker.take();
            let breaker = DeploymentCircuitBreaker::builder().enable(true).rollback(true);
            let breaker = breaker.set_reset_on_healthy_task(known.as_ref().and_then(|it| it.reset_on_healthy_task()));
            let threshold = known.and_then(|it| it.threshold_configuration);
            config.deployment_circuit_breaker = Some(breaker.set_threshold_configuration(threshold).build());
        }
        if !self.alarms.is_empty() {
            let alarms = DeploymentAlarms::builder().set_alarm_names(Some(self.alarms.clone()));
            let alarms = alarms.enable(true).rollback(true).build();
            config.alarms = Some(alarms.map_err(|e| Error::invalid("the deployment alarms cannot be set").because(e))?);
        }
        if let Some(time_out) = self.pauses {
            if Shape::of(Some(&config)).is_rolling() {
                let why = "a rolling update shifts no traffic, so there is nothing to pause before; give the service the \
                           strategy BLUE_GREEN, CANARY or LINEAR";
                return Err(Error::new(ErrorKind::Unsupported, why));
            }
            let mut hooks = config.lifecycle_hooks.take().unwrap_or_default();
            for known in hooks.iter_mut().filter(|hook| is_pause(hook)) {
                known.lifecycle_stages.get_or_insert_default().retain(|stage| !STAGES.contains(stage));
            }
            hooks.retain(|hook| !hook.lifecycle_stages().is_empty());
            hooks.push(hook(time_out));
            config.lifecycle_hooks = Some(hooks);
        }
        Ok(config)
    }
}

impl Service {
    /// What the service lacks of these settings; empty when it is set so.
    ///
    /// # Errors
    /// Whatever kept it from looking.
    pub async fn lacks(&self, settings: &Settings) -> Result<Vec<Note>> {
        Ok(settings.lacks(self.described().await?.deployment_configuration()))
    }

    /// Sets these settings; the rest of the service's deployment configuration stays as it is. No deployment begins; one
    /// that is on its way keeps what it began with.
    ///
    /// # Errors
    /// `Unsupported` for pauses of a rolling update; `Invalid` for what ECS refuses.
    pub async fn set(&self, settings: &Settings) -> Result<()> {
        let service = self.described().await?;
        self.refuse_others(&service)?;
        // Whole, as it is not documented whether what is left out stays.
        let config = settings.applied(service.deployment_configuration)?;
        let call = self.client.update_service().cluster(&self.name.cluster).service(&self.name.service);
        let answer = call.deployment_configuration(config).send().await;
        answer.map(drop).map_err(|e| sorted(format_args!("setting how service {} is deployed", self.name), e))
    }
}

/// What a hook's time-out may be, in minutes: the API reference, `DeploymentLifecycleHookTimeoutConfiguration`.
const MINUTES: std::ops::RangeInclusive<u64> = 1..=20_160;
