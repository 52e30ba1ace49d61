//! Deployments and their targets as they are read, and the mark that ours carry.

use aws_sdk_codedeploy::types::{
    DeploymentInfo, DeploymentStatus, DeploymentTarget, Diagnostics, LifecycleEvent, LifecycleEventStatus, TargetLabel,
    TargetStatus,
};
use jiff::Timestamp;
use rollback_core::model::{Goal, Nonce, RolloutId};

use super::revision::{Artefact, sha256};

/// A deployment, as far as it matters here.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Deployment {
    pub(super) id: String,
    pub(super) group: String,
    pub(super) status: Status,
    /// As CodeDeploy says it.
    pub(super) said: String,
    /// Code and message.
    pub(super) error: Option<(String, String)>,
    pub(super) artefact: Option<Artefact>,
    pub(super) mark: Option<Mark>,
    pub(super) creator: String,
    pub(super) created: Option<Timestamp>,
    pub(super) completed: Option<Timestamp>,
    /// The deployment that this one rolls back.
    pub(super) rolls_back: Option<String>,
    /// The deployment that rolls this one back.
    pub(super) rolled_back_by: Option<String>,
    pub(super) message: Option<String>,
    /// The events after which CodeDeploy rolls it back by itself, as `DEPLOYMENT_FAILURE`; none when the API tells none.
    pub(super) rolled_back_after: Option<Vec<String>>,
    /// The wait before the old ones are terminated has begun.
    pub(super) terminating: bool,
    pub(super) file_exists: Option<String>,
}

/// What a deployment is at, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Status {
    /// Created, queued, in progress, baking; and what this version of the SDK does not know.
    Active,
    /// It waits for somebody to let it go on to the traffic.
    Ready,
    Succeeded,
    Failed,
    Stopped,
}

/// Says in a deployment's description whose it is: CodeDeploy takes no token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) rollout: String,
    pub(super) forward: bool,
    pub(super) nonce: String,
}

impl Mark {
    pub(super) fn new(rollout: &RolloutId, goal: Goal, nonce: &Nonce) -> Self {
        Self { rollout: rollout.to_string(), forward: goal.is_forward(), nonce: Self::hash(nonce) }
    }

    /// A nonce may be longer than the 256 characters of a description.
    pub(super) fn hash(nonce: &Nonce) -> String {
        sha256(nonce.as_str())[..32].into()
    }

    pub(super) fn write(&self) -> String {
        let to = if self.forward { CANDIDATE } else { BASELINE };
        format!("{PREFIX}{} {to} {}", self.rollout, self.nonce)
    }

    fn read(description: &str) -> Option<Self> {
        let mut words = description.strip_prefix(PREFIX)?.rsplitn(3, ' ');
        let (nonce, to, rollout) = (words.next()?, words.next()?, words.next()?);
        let forward = match to {
            CANDIDATE => true,
            BASELINE => false,
            _ => return None,
        };
        Some(Self { rollout: rollout.into(), forward, nonce: nonce.into() })
    }
}

impl Deployment {
    pub(super) fn read(info: &DeploymentInfo) -> Option<Self> {
        let said = info.status()?;
        let rollback = info.rollback_info();
        let text = |it: Option<&str>| it.filter(|it| !it.is_empty()).map(str::to_owned);
        let auto = info.auto_rollback_configuration();
        Some(Self {
            id: info.deployment_id()?.into(),
            group: info.deployment_group_name().unwrap_or_default().into(),
            status: match said {
                DeploymentStatus::Ready => Status::Ready,
                DeploymentStatus::Succeeded => Status::Succeeded,
                DeploymentStatus::Failed => Status::Failed,
                DeploymentStatus::Stopped => Status::Stopped,
                _ => Status::Active,
            },
            said: said.as_str().into(),
            error: info.error_information().map(|it| {
                let code = it.code().map_or("", |code| code.as_str());
                (code.into(), it.message().unwrap_or_default().into())
            }),
            artefact: info.revision().and_then(Artefact::read),
            mark: info.description().and_then(Mark::read),
            creator: info.creator().map_or("somebody", |it| it.as_str()).into(),
            created: info.create_time().and_then(time),
            completed: info.complete_time().and_then(time),
            rolls_back: text(rollback.and_then(|it| it.rollback_triggering_deployment_id())),
            rolled_back_by: text(rollback.and_then(|it| it.rollback_deployment_id())),
            message: text(rollback.and_then(|it| it.rollback_message())),
            rolled_back_after: auto.map(|it| {
                if it.enabled() { it.events().iter().map(|event| event.as_str().into()).collect() } else { Vec::new() }
            }),
            terminating: info.instance_termination_wait_time_started(),
            file_exists: info.file_exists_behavior().map(|it| it.as_str().into()),
        })
    }

    pub(super) const fn is_active(&self) -> bool {
        matches!(self.status, Status::Active | Status::Ready)
    }

    /// CodeDeploy's own, of what was deployed last, to instances that came late: nobody's change of the group.
    pub(super) fn is_upkeep(&self) -> bool {
        ["autoscaling", "autoscalingTermination", "CodeDeployAutoUpdate"].contains(&self.creator.as_str())
    }

    /// Whether this target of it serves users once it has succeeded. Blue/green: the old side does not, and whether its
    /// instances are terminated as `Succeeded` or otherwise is not documented; CodeDeploy's own rollback gives it the traffic
    /// back.
    pub(super) fn serves_at(&self, target: &Target, two_sides: bool) -> bool {
        !two_sides || target.blue == self.rolls_back.is_some() || target.status == TargetStatus::Failed
    }

    pub(super) fn stopped_by_alarm(&self) -> bool {
        self.error.as_ref().is_some_and(|(code, _)| code == "ALARM_ACTIVE")
    }

    /// Whether CodeDeploy may be about to roll it back, now that it has ended badly. When in doubt, yes.
    pub(super) fn may_be_rolled_back(&self) -> bool {
        let event = match self.status {
            Status::Stopped if self.stopped_by_alarm() => "DEPLOYMENT_STOP_ON_ALARM",
            // Whoever stopped it may have asked for the rollback.
            Status::Stopped => return self.message.is_none(),
            _ => "DEPLOYMENT_FAILURE",
        };
        let configured = self.rolled_back_after.as_ref().is_none_or(|events| events.iter().any(|it| it == event));
        configured && self.message.is_none()
    }

    /// `d-A1 is Stopped (ALARM_ACTIVE: …)`.
    pub(super) fn tell(&self) -> String {
        match &self.error {
            Some((code, message)) => format!("deployment {} is {} ({code}: {message})", self.id, self.said),
            None => format!("deployment {} is {}", self.id, self.said),
        }
    }
}

/// A target of a deployment.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Target {
    pub(super) name: String,
    pub(super) status: TargetStatus,
    /// One of the instances that are replaced.
    pub(super) blue: bool,
    /// The share of traffic of what is deployed, in percent.
    pub(super) share: Option<f64>,
    /// Every event has succeeded: the traffic is there, whatever is still waited for.
    pub(super) through: bool,
    /// The event that it is at, or that failed, and what was said then.
    pub(super) at: Option<String>,
    /// The version that a Lambda alias is at, once nothing moves it any more.
    pub(super) version: Option<String>,
}

impl Target {
    pub(super) fn read(target: &DeploymentTarget) -> Option<Self> {
        let mut it = if let Some(it) = target.instance_target() {
            let mut read = Self::new(it.target_id()?, it.status()?, it.lifecycle_events());
            read.blue = it.instance_label() == Some(&TargetLabel::Blue);
            read
        } else if let Some(it) = target.ecs_target() {
            let mut read = Self::new(it.target_id()?, it.status()?, it.lifecycle_events());
            let green = it.task_sets_info().iter().find(|set| set.task_set_label() == Some(&TargetLabel::Green));
            read.share = green.map(|set| set.traffic_weight());
            read
        } else if let Some(it) = target.lambda_target() {
            let mut read = Self::new(it.target_id()?, it.status()?, it.lifecycle_events());
            if let Some(function) = it.lambda_function_info() {
                let share = function.target_version_weight();
                read.share = Some(share);
                // What failed before all traffic was moved has left the alias where it was.
                let moved = read.succeeded() || is_all(share);
                let at = if moved { function.target_version() } else { function.current_version() };
                read.version = at.map(str::to_owned);
            }
            read
        } else if let Some(it) = target.cloud_formation_target() {
            let mut read = Self::new(it.target_id()?, it.status()?, it.lifecycle_events());
            read.share = Some(it.target_version_weight());
            read
        } else {
            return None;
        };
        if it.status == TargetStatus::Succeeded {
            it.through = true;
        }
        Some(it)
    }

    fn new(name: &str, status: &TargetStatus, events: &[LifecycleEvent]) -> Self {
        use LifecycleEventStatus as S;
        let at = events.iter().find(|event| matches!(event.status(), Some(S::Failed | S::InProgress)));
        Self {
            name: name.into(),
            status: status.clone(),
            blue: false,
            share: None,
            through: !events.is_empty() && events.iter().all(|event| event.status() == Some(&S::Succeeded)),
            at: at.map(|event| {
                let name = event.lifecycle_event_name().unwrap_or("an event");
                match event.status() {
                    Some(S::Failed) => format!("{name} failed{}", event.diagnostics().map(told).unwrap_or_default()),
                    _ => name.into(),
                }
            }),
            version: None,
        }
    }

    pub(super) fn succeeded(&self) -> bool {
        self.status == TargetStatus::Succeeded
    }

    /// Nothing was done to it.
    pub(super) const fn untouched(&self) -> bool {
        matches!(self.status, TargetStatus::Pending | TargetStatus::Skipped)
    }
}

/// What the agent tells of an event that failed: `: …, in scripts/check.sh (ScriptFailed); its log ends: …`.
fn told(it: &Diagnostics) -> String {
    let text = |it: Option<&str>| it.map(str::trim).filter(|it| !it.is_empty()).map(str::to_owned);
    let script = text(it.script_name()).map(|it| format!("in {it}"));
    let code = it.error_code().map(|it| format!("({})", it.as_str()));
    let said = [text(it.message()), script, code].into_iter().flatten().collect::<Vec<_>>().join(" ");
    // A note has room for a few lines, and the last are the ones that tell.
    let tail: Vec<&str> =
        it.log_tail().unwrap_or_default().lines().map(str::trim).filter(|it| !it.is_empty()).collect();
    let tail = tail[tail.len().saturating_sub(3)..].join(" | ");
    let from = tail.char_indices().rev().nth(399).map_or(0, |(at, _)| at);
    match (said.is_empty(), tail.is_empty()) {
        (true, true) => String::new(),
        (false, true) => format!(": {said}"),
        (true, false) => format!("; its log ends: {}", &tail[from..]),
        (false, false) => format!(": {said}; its log ends: {}", &tail[from..]),
    }
}

/// Whether a share of traffic, in percent, is all of it.
pub(super) fn is_all(share: f64) -> bool {
    share >= 99.9
}

pub(super) fn time(at: &aws_sdk_codedeploy::primitives::DateTime) -> Option<Timestamp> {
    Timestamp::new(at.secs(), at.subsec_nanos().try_into().ok()?).ok()
}

const PREFIX: &str = "rollback: ";
const CANDIDATE: &str = "to-candidate";
const BASELINE: &str = "to-baseline";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_read_back_and_fits_a_description() {
        let rollout = RolloutId::try_from("r ".repeat(64).trim_end()).unwrap();
        let nonce = Nonce::try_from("n".repeat(512)).unwrap();
        for goal in [Goal::Candidate, Goal::Baseline] {
            let mark = Mark::new(&rollout, goal, &nonce);
            let written = mark.write();
            assert!(written.len() <= 256, "{written}");
            assert_eq!(Mark::read(&written), Some(mark));
        }
        for other in ["", "release 42", "rollback: nothing", "rollback: a sideways b"] {
            assert_eq!(Mark::read(other), None, "{other}");
        }
    }
    #[test]
    fn what_failed_names_the_script_the_code_and_the_end_of_its_log() {
        use aws_sdk_codedeploy::types::{InstanceTarget, LifecycleErrorCode};
        let at = |diagnostics: Option<Diagnostics>| {
            let event = LifecycleEvent::builder().lifecycle_event_name("ValidateService");
            let event = event.status(LifecycleEventStatus::Failed).set_diagnostics(diagnostics).build();
            let target = InstanceTarget::builder().target_id("i-1").status(TargetStatus::Failed);
            let target = target.lifecycle_events(event).build();
            Target::read(&DeploymentTarget::builder().instance_target(target).build()).unwrap().at.unwrap()
        };
        let script =
            Diagnostics::builder().error_code(LifecycleErrorCode::ScriptFailed).script_name("scripts/check.sh");
        let script =
            script.message("Script exited with code 7").log_tail("one\ntwo\n\n[stderr]three\n[stderr]no port 80\n");
        assert_eq!(
            at(Some(script.build())),
            "ValidateService failed: Script exited with code 7 in scripts/check.sh (ScriptFailed); its log ends: two | \
             [stderr]three | [stderr]no port 80"
        );
        assert_eq!(at(None), "ValidateService failed");
        let words = Diagnostics::builder().message("").script_name("").log_tail("é".repeat(900)).build();
        assert_eq!(at(Some(words)).chars().filter(|it| *it == 'é').count(), 400);
    }
}
