//! How ECS deploys a service, and where it waits for us on the way.

use std::{fmt, time::Duration};

use aws_sdk_ecs::types::{
    CanaryConfiguration, DeploymentConfiguration, DeploymentLifecycleHook, DeploymentLifecycleHookAction as Action,
    DeploymentLifecycleHookStage as Stage, DeploymentLifecycleHookTargetType as Kind,
    DeploymentLifecycleHookTimeoutConfiguration as TimeOut, DeploymentStrategy, LinearConfiguration,
};
use rollback_core::{Error, Result, backend::Weights, model::Weight};

/// How ECS deploys a service: its strategy, and whether it waits for us before each shift of traffic and after the last.
///
/// A shape that waits ([`paused`](Self::paused)) is the one to want: each step of a plan is a step of ECS's, judged by the
/// rollout's gates, and while we are gone nothing moves on: a hook that nobody answers times out, and ECS goes back.
/// Without hooks ECS moves the traffic at its own pace, and the rollout watches it and takes it back.
///
/// ```
/// use rollback_aws::ecs::Shape;
///
/// # fn main() -> rollback_core::Result<()> {
/// let shape = Shape::canary(10)?.paused();
/// assert_eq!(shape.to_string(), "CANARY of 10 %, waiting before each shift and after the last");
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shape {
    strategy: Strategy,
    paused: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Strategy {
    Rolling,
    BlueGreen,
    Canary(f64),
    Linear(f64),
}

impl Shape {
    /// Tasks are replaced in batches; there are no weights, and the baseline does not stand.
    pub const fn rolling() -> Self {
        Self { strategy: Strategy::Rolling, paused: false }
    }

    /// All traffic goes from the one to the other at once, and back as fast.
    pub const fn blue_green() -> Self {
        Self { strategy: Strategy::BlueGreen, paused: false }
    }

    /// So many percent first, then all.
    ///
    /// # Errors
    /// `Invalid` when it is not 1 to 99.
    pub fn canary(percent: u8) -> Result<Self> {
        match percent {
            1..=99 => Ok(Self { strategy: Strategy::Canary(percent.into()), paused: false }),
            _ => Err(Error::invalid(format!("a canary of {percent} % is none; 1 to 99 is accepted"))),
        }
    }

    /// So many percent more at each step.
    ///
    /// # Errors
    /// `Invalid` when it is not 3 to 99, which is what ECS takes.
    pub fn linear(percent: u8) -> Result<Self> {
        match percent {
            3..=99 => Ok(Self { strategy: Strategy::Linear(percent.into()), paused: false }),
            _ => Err(Error::invalid(format!("steps of {percent} % cannot be given; 3 to 99 is accepted"))),
        }
    }

    /// With PAUSE hooks at `PRE_PRODUCTION_TRAFFIC_SHIFT`, which is met before every shift, and at
    /// `POST_PRODUCTION_TRAFFIC_SHIFT`, after the last. A rolling update has none.
    #[must_use]
    pub const fn paused(mut self) -> Self {
        self.paused = !matches!(self.strategy, Strategy::Rolling);
        self
    }

    /// Whether ECS waits for us.
    pub const fn is_paused(&self) -> bool {
        self.paused
    }

    /// Whether tasks are replaced and no traffic is shifted.
    pub const fn is_rolling(&self) -> bool {
        matches!(self.strategy, Strategy::Rolling)
    }

    /// The shape of a service that is configured so.
    pub(super) fn of(config: Option<&DeploymentConfiguration>) -> Self {
        let strategy = match config.and_then(DeploymentConfiguration::strategy) {
            Some(DeploymentStrategy::BlueGreen) => Strategy::BlueGreen,
            Some(DeploymentStrategy::Canary) => {
                let set = config.and_then(DeploymentConfiguration::canary_configuration);
                Strategy::Canary(set.and_then(CanaryConfiguration::canary_percent).unwrap_or(5.0))
            }
            Some(DeploymentStrategy::Linear) => {
                let set = config.and_then(DeploymentConfiguration::linear_configuration);
                Strategy::Linear(set.and_then(LinearConfiguration::step_percent).unwrap_or(10.0))
            }
            _ => Strategy::Rolling,
        };
        let hooks = config.map(DeploymentConfiguration::lifecycle_hooks).unwrap_or_default();
        let at = |stage: &Stage| hooks.iter().any(|hook| is_pause(hook) && hook.lifecycle_stages().contains(stage));
        let paused = STAGES.iter().all(at);
        let shape = Self { strategy, paused: false };
        if paused { shape.paused() } else { shape }
    }

    /// The shares of traffic that can be asked for.
    pub(super) fn weights(&self) -> Weights {
        if !self.paused {
            return Weights::ProvidersPace;
        }
        Weights::only(self.ladder().into_iter().map(Weight::percent)).expect("shares of at most 100")
    }

    /// The shares at which it waits, ascending, 0 the first. ECS knows tenths of a percent; the plan does not.
    fn ladder(&self) -> Vec<Weight> {
        let mut ladder = vec![Weight::NONE];
        match self.strategy {
            Strategy::Rolling | Strategy::BlueGreen => {}
            Strategy::Canary(percent) => ladder.push(whole(percent)),
            Strategy::Linear(by) => {
                let steps = (1_u8..=100).map(|n| f64::from(n) * by).take_while(|share| *share < 100.0);
                ladder.extend(steps.map(whole));
            }
        }
        ladder.push(Weight::ALL);
        ladder
    }

    /// The shares that ECS stops at, waiting for us or not.
    pub(super) fn rungs(&self) -> impl Iterator<Item = Weight> {
        self.ladder().into_iter()
    }

    /// Whether this share of traffic can be asked for.
    pub(super) fn gives(&self, weight: Weight) -> bool {
        weight == Weight::ALL || self.paused && self.ladder().contains(&weight)
    }

    /// How long ECS itself stays at a share before it goes on.
    pub(super) fn own_bake(config: Option<&DeploymentConfiguration>) -> Duration {
        let minutes = match config.and_then(DeploymentConfiguration::strategy) {
            Some(DeploymentStrategy::Canary) => {
                let set = config.and_then(DeploymentConfiguration::canary_configuration);
                set.and_then(CanaryConfiguration::canary_bake_time_in_minutes).unwrap_or(10)
            }
            Some(DeploymentStrategy::Linear) => {
                let set = config.and_then(DeploymentConfiguration::linear_configuration);
                set.and_then(LinearConfiguration::step_bake_time_in_minutes).unwrap_or(6)
            }
            _ => 0,
        };
        minutes_of(minutes)
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.strategy {
            Strategy::Rolling => f.write_str("ROLLING")?,
            Strategy::BlueGreen => f.write_str("BLUE_GREEN")?,
            Strategy::Canary(percent) => write!(f, "CANARY of {percent} %")?,
            Strategy::Linear(percent) => write!(f, "LINEAR by {percent} %")?,
        }
        if self.paused { f.write_str(", waiting before each shift and after the last") } else { Ok(()) }
    }
}

/// A pause hook at both stages that fails safe: what times out, in whole minutes, goes back.
pub(super) fn hook(time_out: Duration) -> DeploymentLifecycleHook {
    let minutes = i32::try_from(time_out.as_secs() / 60).unwrap_or(i32::MAX);
    let time_out = TimeOut::builder().timeout_in_minutes(minutes).action(Action::Rollback).build();
    DeploymentLifecycleHook::builder()
        .target_type(Kind::Pause)
        .set_lifecycle_stages(Some(STAGES.into()))
        .timeout_configuration(time_out)
        .build()
}

/// How long a pause hook waits, and whether ECS goes back when nobody answers.
pub(super) fn patience(hook: &DeploymentLifecycleHook) -> (Duration, bool) {
    let set = hook.timeout_configuration();
    let minutes = set.and_then(TimeOut::timeout_in_minutes).unwrap_or(1440);
    (minutes_of(minutes), set.and_then(TimeOut::action) != Some(&Action::Continue))
}

pub(super) fn is_pause(hook: &DeploymentLifecycleHook) -> bool {
    hook.target_type() == Some(&Kind::Pause)
}

pub(super) fn minutes_of(minutes: i32) -> Duration {
    Duration::from_secs(60 * u64::from(minutes.unsigned_abs()))
}

/// A share in whole percent; what is neither none nor all stays between them.
pub(super) fn whole(percent: f64) -> Weight {
    let rounded = percent.round().clamp(0.0, 100.0);
    let kept = if percent > 0.0 && percent < 100.0 { rounded.clamp(1.0, 99.0) } else { rounded };
    // Between 0 and 100 by the lines above.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it is between 0 and 100")]
    let whole = kept as u8;
    Weight::try_from(whole).expect("it is between 0 and 100")
}

pub(super) const STAGES: [Stage; 2] = [Stage::PreProductionTrafficShift, Stage::PostProductionTrafficShift];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ladder_of_each_shape_is_where_it_waits() {
        let ladder = |shape: Shape| shape.paused().ladder().into_iter().map(Weight::percent).collect::<Vec<_>>();
        assert_eq!(ladder(Shape::blue_green()), [0, 100]);
        assert_eq!(ladder(Shape::canary(10).expect("good")), [0, 10, 100]);
        assert_eq!(ladder(Shape::linear(25).expect("good")), [0, 25, 50, 75, 100]);
        let third = Shape { strategy: Strategy::Linear(33.4), paused: true };
        assert_eq!(ladder(third), [0, 33, 67, 100]);
        let tiny = Shape { strategy: Strategy::Canary(0.1), paused: true };
        assert_eq!(ladder(tiny), [0, 1, 100]);
        assert!(!Shape::rolling().paused().is_paused());
        assert!(Shape::canary(0).is_err() && Shape::linear(2).is_err());
    }
}
