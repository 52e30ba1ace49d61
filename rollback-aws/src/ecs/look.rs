//! What ECS says is in place and on its way, and how far that is from a goal.

use std::fmt;

use aws_sdk_ecs::types::{
    DeploymentLifecycleHookStatus as HookStatus, Service as Described, ServiceDeployment,
    ServiceDeploymentStatus as Status,
};
use rollback_core::{
    Error, ErrorKind, Result,
    model::{Attempt, Goal, Note, Progress, Version, Weight},
};

use super::{name::short, shape::whole};

/// What one look saw.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) service: Described,
    /// `family:revision` of what the service was told last, by somebody or by a rollback of ECS's own.
    pub(super) told: String,
    /// The service deployment that ECS calls the current one.
    pub(super) current: Option<Current>,
}

/// A service deployment with its revisions read.
#[derive(Clone, Debug)]
pub(super) struct Current {
    pub(super) arn: String,
    pub(super) status: Status,
    pub(super) reason: String,
    pub(super) stage: String,
    /// `family:revision` of what it deploys; empty where ECS no longer tells.
    pub(super) target: String,
    /// `family:revision` of what a rollback of it brought back.
    pub(super) back_to: Option<String>,
    /// The target's share of traffic, where ECS shifts any.
    pub(super) share: Option<f64>,
    /// The target's tasks: running, and wanted.
    pub(super) tasks: (i32, i32),
    /// Running tasks of the sources.
    pub(super) others: i32,
    /// The pause hook that waits.
    pub(super) hook: Option<String>,
    /// Tasks that the circuit breaker counted as failed.
    pub(super) failures: i32,
}

impl Current {
    pub(super) fn new(said: &ServiceDeployment, target: String, back_to: Option<String>) -> Self {
        let summary = said.target_service_revision();
        let waits = |status: Option<&HookStatus>| status == Some(&HookStatus::AwaitingAction);
        let hook = said.lifecycle_hook_details().iter().find(|hook| waits(hook.status()));
        Self {
            arn: said.service_deployment_arn().unwrap_or_default().into(),
            status: said.status().cloned().unwrap_or(Status::Pending),
            reason: said.status_reason().unwrap_or_default().into(),
            stage: said.lifecycle_stage().map(|stage| stage.as_str().to_owned()).unwrap_or_default(),
            target,
            back_to,
            share: summary.and_then(|it| it.requested_production_traffic_weight()),
            tasks: summary.map(|it| (it.running_task_count(), it.requested_task_count())).unwrap_or_default(),
            others: said.source_service_revisions().iter().map(|it| it.running_task_count()).sum(),
            hook: hook.and_then(|hook| hook.hook_id()).map(Into::into),
            failures: said.deployment_circuit_breaker().map(|it| it.failure_count()).unwrap_or_default(),
        }
    }

    pub(super) fn is_going_forward(&self) -> bool {
        matches!(self.status, Status::Pending | Status::InProgress)
    }

    fn phase(&self) -> String {
        match &self.hook {
            Some(hook) if self.is_going_forward() => format!("{HOOK}{hook}"),
            _ => self.status.as_str().into(),
        }
    }

    /// The target's share in whole percent.
    fn weight(&self) -> Option<Weight> {
        self.share.map(whole)
    }

    fn at(&self) -> String {
        let stage = if self.stage.is_empty() { self.status.as_str() } else { &self.stage };
        match self.weight() {
            Some(weight) => format!("{stage} at {weight}"),
            None => format!("{stage}, {} of {} tasks run", self.tasks.0, self.tasks.1),
        }
    }

    fn why(&self) -> String {
        let Self { target, status, reason, .. } = self;
        let reason = if reason.is_empty() { String::new() } else { format!(": {reason}") };
        format!("the deployment of {target} is {status}{reason}")
    }
}

/// Where a service is, in one word.
#[derive(Debug)]
pub(super) enum Place<'a> {
    /// Nothing is on its way, and this is in place.
    Rest(&'a str),
    /// The last deployment ended without putting anything in place.
    Broken(&'a Current),
    /// ECS was told this and has not begun.
    Told(&'a str),
    /// Something is being deployed.
    Towards(&'a Current),
    /// A deployment is being taken back, or stopped.
    Back(&'a Current),
}

/// How far a look is from a goal, as far as ECS's own record tells.
#[derive(Debug)]
pub(super) enum Judged {
    Progress(Progress),
    /// The candidate failed: its tasks may say why.
    Failed(String),
    /// ECS is done: whether only this runs is for its tasks to tell.
    Done,
}

impl Seen {
    pub(super) fn place(&self) -> Place<'_> {
        let Some(current) = &self.current else {
            // A service from before service deployments were kept, or an emulator without them.
            return match self.service.deployments() {
                [_] => Place::Rest(&self.told),
                _ => Place::Told(&self.told),
            };
        };
        match current.status {
            Status::Pending | Status::InProgress => Place::Towards(current),
            Status::StopRequested | Status::RollbackRequested | Status::RollbackInProgress => Place::Back(current),
            Status::Successful if self.told == current.target || current.target.is_empty() => Place::Rest(&self.told),
            Status::Successful => Place::Told(&self.told),
            Status::RollbackSuccessful => match &current.back_to {
                // Whether ECS itself tells the service what it went back to is not documented.
                Some(back) if self.told == *back || self.told == current.target => Place::Rest(back),
                Some(_) => Place::Told(&self.told),
                None => Place::Rest(&self.told),
            },
            Status::Stopped | Status::RollbackFailed => Place::Broken(current),
            // A status of tomorrow is nothing to act on.
            _ => Place::Back(current),
        }
    }

    /// What this look is at, for a shift to spend.
    pub(super) fn at(&self) -> At {
        let told = self.told.clone();
        match &self.current {
            Some(it) => At { arn: it.arn.clone(), phase: it.phase(), target: it.target.clone(), told },
            None => At { arn: "-".into(), phase: "-".into(), target: told.clone(), told },
        }
    }

    /// The candidate's share of traffic, where ECS tells.
    pub(super) fn weight(&self, baseline: &str, candidate: &str) -> Option<Weight> {
        match self.place() {
            Place::Rest(it) if it == baseline => Some(Weight::NONE),
            Place::Rest(it) if it == candidate => Some(Weight::ALL),
            Place::Towards(it) | Place::Back(it) if it.target == candidate => it.weight(),
            Place::Towards(it) | Place::Back(it) if it.target == baseline => it.share.map(|share| whole(100.0 - share)),
            _ => None,
        }
    }

    /// How far it is to a goal. `last` is the last attempt in the record.
    pub(super) fn judge(&self, baseline: &str, candidate: &str, goal: Goal, last: Option<&Attempt>) -> Judged {
        match goal {
            Goal::Baseline => self.back(baseline, candidate),
            Goal::Split(weight) => self.forward(baseline, candidate, Some(weight), last),
            Goal::Candidate => self.forward(baseline, candidate, None, last),
        }
    }

    /// Towards the candidate: with this share beside the baseline, or alone.
    fn forward(&self, baseline: &str, candidate: &str, share: Option<Weight>, last: Option<&Attempt>) -> Judged {
        let last = last.filter(|last| last.goal.is_forward()).and_then(|last| At::read(&last.version));
        let now = self.at();
        // Ours came after what the last attempt saw at rest, or is what it saw on its way.
        let ours =
            last.as_ref().is_some_and(|last| if last.is_at_rest() { last.arn != now.arn } else { last.arn == now.arn });
        let begun = last.as_ref().is_some_and(|last| !last.is_at_rest() || last.arn != now.arn);
        // By somebody, or by a driver that could not save that it goes back, and died: either way it is where it ends.
        let brought_back = || Judged::Failed(format!("{baseline} was brought back while {candidate} was on its way"));
        Judged::Progress(match self.place() {
            Place::Rest(it) if it == candidate => match share {
                None => return Judged::Done,
                Some(Weight::ALL) => Progress::Reached,
                Some(less) => {
                    let why =
                        format!("{candidate} has all the traffic and the old tasks are gone; {less} is behind it");
                    return Judged::Failed(why);
                }
            },
            Place::Rest(it) if it == baseline => match &self.current {
                Some(current) if begun && ours && current.target == candidate => {
                    return Judged::Failed(format!("ECS has gone back to {baseline}: {}", current.why()));
                }
                _ if begun => return brought_back(),
                _ => Progress::Due(Note::new(format!("deploy {candidate}"))),
            },
            Place::Rest(other) => Progress::Drifted(Note::new(format!("the service serves {other}"))),
            Place::Told(it) if it == candidate => Progress::Underway(Note::new(format!("ECS was told {it}"))),
            Place::Told(it) if begun && it == baseline => return brought_back(),
            Place::Told(other) => Progress::Drifted(Note::new(format!("the service was told {other}"))),
            Place::Broken(it) | Place::Back(it) if it.target == candidate => return Judged::Failed(it.why()),
            Place::Broken(it) | Place::Back(it) => Progress::Drifted(Note::new(it.why())),
            Place::Towards(it) if it.target == candidate => return it.forward(share),
            Place::Towards(it) if begun && it.target == baseline => return brought_back(),
            Place::Towards(it) => Progress::Drifted(Note::new(format!("somebody deploys {}", it.target))),
        })
    }

    /// Towards the baseline alone.
    fn back(&self, baseline: &str, candidate: &str) -> Judged {
        let again = || Progress::Due(Note::new(format!("deploy {baseline} again")));
        Judged::Progress(match self.place() {
            Place::Rest(it) if it == baseline => return Judged::Done,
            Place::Rest(it) | Place::Told(it) if it == candidate => again(),
            Place::Told(it) if it == baseline => Progress::Underway(Note::new(format!("ECS was told {it}"))),
            Place::Rest(other) => Progress::Drifted(Note::new(format!("the service serves {other}"))),
            Place::Told(other) => Progress::Drifted(Note::new(format!("the service was told {other}"))),
            Place::Broken(it) if it.target == candidate || it.target == baseline => again(),
            Place::Towards(it) if it.target == candidate => Progress::Due(Note::new(match &it.hook {
                Some(_) => format!("answer the pause with a rollback, {}", it.at()),
                None => format!("stop the deployment with a rollback, {}", it.at()),
            })),
            Place::Towards(it) if it.target == baseline => match &it.hook {
                Some(_) => Progress::Due(Note::new(format!("let the way back go on, {}", it.at()))),
                None => Progress::Underway(Note::new(format!("ECS deploys {baseline}: {}", it.at()))),
            },
            Place::Back(it) if it.target == candidate || it.target == baseline => {
                Progress::Underway(Note::new(format!("{}, {}", it.why(), it.at())))
            }
            Place::Broken(it) | Place::Back(it) => Progress::Drifted(Note::new(it.why())),
            Place::Towards(it) => Progress::Drifted(Note::new(format!("somebody deploys {}", it.target))),
        })
    }

    /// Whether the attempt is known to have been carried out, or to be past it: a stop of a deployment that is over by now.
    pub(super) fn has_landed(&self, baseline: &str, candidate: &str, attempt: &Attempt) -> bool {
        let Some(then) = At::read(&attempt.version) else { return false };
        let wanted = if attempt.goal.is_forward() { candidate } else { baseline };
        let now = self.at();
        if then.is_at_rest() {
            // Told something else, as only an update tells it; ECS's own rollback tells the baseline, and of a deployment
            // that was on its way.
            let begun = then.arn != now.arn && now.target == wanted;
            return begun || then.arn == now.arn && then.told != now.told && now.told == wanted;
        }
        if then.arn != now.arn {
            return true;
        }
        match then.hook() {
            Some(_) => then.phase != now.phase,
            None => match self.place() {
                Place::Towards(_) => false,
                Place::Rest(it) | Place::Told(it) => {
                    it == wanted || !attempt.goal.is_forward() && then.goes_towards(candidate)
                }
                Place::Broken(_) | Place::Back(_) => true,
            },
        }
    }
}

impl Current {
    fn forward(&self, share: Option<Weight>) -> Judged {
        let goes_on = || Progress::Due(Note::new(format!("let the deployment go on, {}", self.at())));
        let underway = || Progress::Underway(Note::new(self.at()));
        let Some(now) = self.weight() else {
            // A rolling update: all there is to see are tasks.
            let replaced = self.tasks.1 > 0 && self.tasks.0 >= self.tasks.1 && self.others == 0;
            return Judged::Progress(match share {
                Some(_) if replaced => Progress::Reached,
                _ if self.hook.is_some() => goes_on(),
                _ => underway(),
            });
        };
        let stands = self.tasks.1 > 0 && self.tasks.0 >= self.tasks.1;
        Judged::Progress(match share {
            // Alone: the hook after the last shift is the last word.
            None if self.hook.is_some() => goes_on(),
            None => underway(),
            Some(Weight::NONE) if now == Weight::NONE => match (&self.hook, stands) {
                (Some(_), true) => Progress::Reached,
                (Some(_), false) => goes_on(),
                (None, _) => underway(),
            },
            Some(wanted) if now == wanted => Progress::Reached,
            Some(wanted) if now > wanted => {
                let why = format!(
                    "ECS has gone on, by itself or by somebody's answer: {}, and {wanted} was asked for",
                    self.at()
                );
                return Judged::Failed(why);
            }
            Some(_) if self.hook.is_some() => goes_on(),
            Some(_) => underway(),
        })
    }
}

/// What a version says: which deployment, where on its way, and what the service was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct At {
    pub(super) arn: String,
    /// The id of the hook that waits, marked as one, else the status.
    pub(super) phase: String,
    pub(super) target: String,
    pub(super) told: String,
}

impl At {
    /// What was written as a version. None when it is none of ours.
    pub(super) fn read(version: &Version) -> Option<Self> {
        let words: Vec<&str> = version.as_str().split(' ').collect();
        let [arn, phase, target, told] = words[..] else { return None };
        // What ECS no longer tells is written as a dash, or the words could not be counted.
        let plain = |word: &str| if word == "-" { String::new() } else { word.to_owned() };
        Some(Self { arn: arn.into(), phase: phase.into(), target: plain(target), told: plain(told) })
    }

    pub(super) fn version(&self) -> Result<Version> {
        Version::try_from(self.to_string())
    }

    /// The hook that waits.
    pub(super) fn hook(&self) -> Option<&str> {
        self.phase.strip_prefix(HOOK)
    }

    /// Whether a deployment of this is on its way, and waits for nobody: it can be stopped.
    pub(super) fn goes_towards(&self, what: &str) -> bool {
        self.target == what && matches!(self.phase.as_str(), "PENDING" | "IN_PROGRESS")
    }

    /// Whether nothing was on its way.
    pub(super) fn is_at_rest(&self) -> bool {
        matches!(self.phase.as_str(), "-" | "SUCCESSFUL" | "STOPPED" | "ROLLBACK_SUCCESSFUL" | "ROLLBACK_FAILED")
    }
}

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plain = |word: &str| if word.is_empty() { "-".to_owned() } else { word.to_owned() };
        write!(f, "{} {} {} {}", self.arn, self.phase, plain(&self.target), plain(&self.told))
    }
}

/// `family:revision` of what a service was told.
pub(super) fn told(service: &Described) -> String {
    short(service.task_definition().unwrap_or_default()).into()
}

/// What serves, if one thing alone does and nothing is on its way.
pub(super) fn serves<'a>(seen: &'a Seen, name: &dyn fmt::Display) -> Result<&'a str> {
    let why = match seen.place() {
        Place::Rest(it) if !it.is_empty() => return Ok(it),
        Place::Rest(_) | Place::Told(_) => format!("service {name} was told {} and has not begun", seen.told),
        Place::Broken(it) => format!("service {name} is not in one piece: {}", it.why()),
        Place::Towards(it) => format!("service {name} deploys {}: {}", it.target, it.at()),
        Place::Back(it) => format!("service {name} is going back: {}", it.why()),
    };
    Err(Error::new(ErrorKind::Mixed, why))
}

/// Marks a hook's id among statuses, those of tomorrow included.
const HOOK: char = '@';
