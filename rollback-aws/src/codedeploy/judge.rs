//! What is seen of a group means this for a goal: pure, without calls and clock.

use aws_sdk_codedeploy::types::DeploymentWaitType as WaitFor;
use rollback_core::model::{Goal, Note, Part, Progress, Serves, Weight};

use super::{
    Platform,
    deployment::{Deployment, Status, Target, is_all},
    revision::Spec,
};

/// A group as one look sees it.
pub(super) struct Sight<'a> {
    pub(super) platform: Platform,
    pub(super) rollout: &'a str,
    pub(super) baseline: &'a Spec,
    pub(super) candidate: &'a str,
    pub(super) newest: Option<&'a Deployment>,
    /// The newest deployment of when we last asked for something.
    pub(super) last: Option<&'a str>,
    /// The deployment that the newest rolls back.
    pub(super) rolled_back: Option<&'a Deployment>,
    /// Of the newest, where they are needed.
    pub(super) targets: &'a [Target],
    /// Of the deployment that it rolls back: what that one failed of.
    pub(super) targets_before: &'a [Target],
    /// We have asked for the newest to be stopped, and that was accepted.
    pub(super) stopping: bool,
    /// The newest ended so long ago that a rollback of it would be there.
    pub(super) settled: bool,
}

/// The one effect that is due.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Act {
    Deploy { forward: bool },
    Stop { id: String, roll_back: bool },
    Continue { id: String, wait: WaitFor },
}

/// Whose the newest deployment is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whose {
    /// What was there when the baseline was read.
    Before,
    /// This rollout's, of the candidate.
    Forward,
    /// This rollout's, of the baseline.
    Back,
    /// CodeDeploy's own rollback of the candidate.
    Theirs,
    /// CodeDeploy's own rollback of our deployment of the baseline: it brings the candidate back.
    TheirsForward,
    Stranger,
}

/// How far, and what is to be done: also where the engine may go on over a failure or drift.
pub(super) type Judgement = (Progress, Option<Act>);

impl Sight<'_> {
    pub(super) fn judge(&self, goal: Goal) -> Judgement {
        match goal {
            Goal::Baseline => self.back(),
            Goal::Split(_) | Goal::Candidate => self.forward(goal),
        }
    }

    fn whose(&self) -> Whose {
        let Some(newest) = self.newest else { return Whose::Before };
        let ours = |it: &Deployment| it.mark.as_ref().filter(|mark| mark.rollout == self.rollout).map(|it| it.forward);
        match (ours(newest), self.rolled_back.and_then(ours)) {
            (Some(true), _) => Whose::Forward,
            (Some(false), _) => Whose::Back,
            (None, Some(true)) => Whose::Theirs,
            (None, Some(false)) => Whose::TheirsForward,
            // A baseline that was not read off this group (the last promoted one) tells of no deployment: then what we found
            // when we last asked for something does.
            (None, None) => match self.baseline.deployment.as_deref().or(self.last) {
                Some(id) if id != newest.id => Whose::Stranger,
                _ => Whose::Before,
            },
        }
    }

    fn forward(&self, goal: Goal) -> Judgement {
        let deploy =
            || (Progress::Due(Note::new(format!("deploy {}", self.candidate))), Some(Act::Deploy { forward: true }));
        let Some(newest) = self.newest else { return deploy() };
        let (id, only) = (&newest.id, |progress| (progress, None));
        match self.whose() {
            Whose::Before if !newest.is_active() => deploy(),
            Whose::Before | Whose::Stranger => only(Progress::Drifted(self.stranger(newest))),
            Whose::Back | Whose::TheirsForward => {
                only(Progress::Failed(Note::new(format!("deployment {id} went back already"))))
            }
            Whose::Theirs => {
                let why = self.rolled_back.map_or_else(Note::default, |it| told(it, self.targets_before));
                only(Progress::Failed(Note::new(format!("{why}; CodeDeploy rolls it back by deployment {id}"))))
            }
            Whose::Forward => match (newest.status, goal) {
                (Status::Ready, Goal::Split(Weight::NONE)) => only(Progress::Reached),
                (Status::Ready, _) => self.go_on(newest, WaitFor::ReadyWait),
                (Status::Active, Goal::Split(Weight::NONE)) if self.has_traffic(newest) => {
                    only(Progress::Failed(Note::new(format!("deployment {id} did not wait before the traffic"))))
                }
                (Status::Active, Goal::Candidate) if self.terminating(newest) => {
                    self.go_on(newest, WaitFor::TerminationWait)
                }
                (Status::Active, Goal::Split(Weight::ALL)) if self.terminating(newest) => only(Progress::Reached),
                (Status::Active, _) => only(Progress::Underway(self.under_way(newest))),
                (Status::Succeeded, Goal::Split(Weight::NONE)) => {
                    only(Progress::Drifted(Note::new(format!("somebody let deployment {id} go on to the traffic"))))
                }
                (Status::Succeeded, _) => only(match self.mixed(newest) {
                    None => Progress::Reached,
                    Some(mixed) => Progress::Failed(mixed),
                }),
                (Status::Failed | Status::Stopped, _) => only(Progress::Failed(self.told(newest))),
            },
        }
    }

    fn back(&self) -> Judgement {
        let Some(newest) = self.newest else { return (Progress::Reached, None) };
        let id = &newest.id;
        let deploy = Some(Act::Deploy { forward: false });
        let due = |why: String| (Progress::Due(Note::new(format!("deploy the baseline again: {why}"))), deploy.clone());
        let stop = |roll_back| {
            let act = Some(Act::Stop { id: id.clone(), roll_back });
            if self.stopping {
                return (Progress::Underway(Note::new(format!("deployment {id} is being stopped"))), act);
            }
            let with = if roll_back { "with" } else { "without" };
            (Progress::Due(Note::new(format!("stop deployment {id} {with} rollback"))), act)
        };
        match (self.whose(), newest.status) {
            (Whose::Before, Status::Active | Status::Ready) => (Progress::Drifted(self.stranger(newest)), None),
            (Whose::Before, _) if self.is_at_baseline(newest) => (Progress::Reached, None),
            (Whose::Before, _) => due(format!("{}, and that is not it", self.stranger(newest))),
            (Whose::Forward, Status::Active | Status::Ready) => stop(true),
            (Whose::TheirsForward, Status::Active | Status::Ready) => stop(false),
            (Whose::Forward, Status::Succeeded) => due(format!("deployment {id} has succeeded")),
            (Whose::Forward | Whose::TheirsForward, Status::Failed | Status::Stopped)
                if !self.settled && newest.may_be_rolled_back() =>
            {
                (Progress::Underway(Note::new(format!("{}; its rollback is awaited", newest.tell()))), deploy)
            }
            (Whose::Forward | Whose::TheirsForward, _) => {
                due(format!("{}, and nothing rolled it back", self.told(newest).as_str()))
            }
            (Whose::Theirs | Whose::Back, Status::Ready) => self.go_on(newest, WaitFor::ReadyWait),
            (Whose::Theirs | Whose::Back, Status::Active) if self.terminating(newest) => {
                self.go_on(newest, WaitFor::TerminationWait)
            }
            (Whose::Theirs | Whose::Back, Status::Active) => (Progress::Underway(self.under_way(newest)), None),
            (Whose::Theirs, Status::Succeeded) => match (self.is_baseline(newest), self.mixed(newest)) {
                (true, None) => (Progress::Reached, None),
                (true, Some(mixed)) => due(mixed.as_str().into()),
                (false, _) => due(format!("CodeDeploy rolled back to another revision by deployment {id}")),
            },
            (Whose::Theirs, Status::Failed | Status::Stopped) => {
                due(format!("CodeDeploy's own rollback did not help: {}", self.told(newest).as_str()))
            }
            (Whose::Back, Status::Succeeded) => match self.mixed(newest) {
                None => (Progress::Reached, None),
                Some(mixed) => (Progress::Failed(mixed), deploy),
            },
            (Whose::Back, Status::Failed | Status::Stopped) => {
                let why = format!("{}{}", self.told(newest).as_str(), self.advice());
                (Progress::Failed(Note::new(why)), deploy)
            }
            (Whose::Stranger, Status::Active | Status::Ready) => {
                (Progress::Drifted(self.stranger(newest)), Some(Act::Stop { id: id.clone(), roll_back: false }))
            }
            (Whose::Stranger, Status::Succeeded) if self.is_baseline(newest) && self.mixed(newest).is_none() => {
                (Progress::Reached, None)
            }
            (Whose::Stranger, _) => (Progress::Drifted(self.stranger(newest)), deploy),
        }
    }

    fn go_on(&self, newest: &Deployment, wait: WaitFor) -> Judgement {
        let id = newest.id.clone();
        let what = match wait {
            WaitFor::TerminationWait => format!("end the wait of deployment {id} before the old ones are terminated"),
            _ => format!("let deployment {id} go on to the traffic"),
        };
        (Progress::Due(Note::new(what)), Some(Act::Continue { id, wait }))
    }

    /// The traffic is at what is deployed, and the old ones wait to be terminated. The status does not tell: it is
    /// `InProgress` until they are (observed, ECS).
    fn terminating(&self, newest: &Deployment) -> bool {
        if newest.status != Status::Active {
            return false;
        }
        match self.platform {
            Platform::Ecs => {
                !self.targets.is_empty() && self.targets.iter().all(|it| it.through && it.share.is_some_and(is_all))
            }
            Platform::BlueGreen => newest.terminating,
            Platform::InPlace | Platform::Lambda => false,
        }
    }

    fn has_traffic(&self, newest: &Deployment) -> bool {
        newest.terminating || self.targets.iter().any(|it| it.share.is_some_and(|share| share > 0.0))
    }

    /// Which targets stayed behind, though the deployment has succeeded: that is so as long as enough of them did.
    fn mixed(&self, newest: &Deployment) -> Option<Note> {
        let two_sides = self.platform == Platform::BlueGreen;
        let serving: Vec<&Target> = self.targets.iter().filter(|it| newest.serves_at(it, two_sides)).collect();
        if serving.is_empty() {
            return Some(Note::new(format!("deployment {} has succeeded on no target that it tells of", newest.id)));
        }
        let behind: Vec<String> = serving.iter().filter(|it| !it.succeeded()).map(|it| told_of(it)).collect();
        (!behind.is_empty()).then(|| {
            Note::new(format!(
                "mixed: deployment {} has succeeded, but not on {} of {} targets: {}",
                newest.id,
                behind.len(),
                serving.len(),
                behind.join(", ")
            ))
        })
    }

    fn is_baseline(&self, it: &Deployment) -> bool {
        it.artefact.as_ref().is_some_and(|artefact| self.baseline.artefact.is(artefact))
    }

    /// Whether the baseline serves after this deployment, which was there before any of ours. A baseline that was read off the
    /// group is what served then.
    fn is_at_baseline(&self, newest: &Deployment) -> bool {
        self.baseline.deployment.is_some()
            || newest.status == Status::Succeeded && self.is_baseline(newest) && self.mixed(newest).is_none()
    }

    /// What a person can do whose baseline could not be deployed. Lambda: as long as an alias has weights of two versions
    /// deployments fail (user guide, troubleshooting-deployments-lambda).
    fn advice(&self) -> String {
        let alias = self.targets.first().map_or("the alias", |it| it.name.as_str());
        match self.platform {
            Platform::Lambda => format!("; if {alias} still has weights of two versions, clear them, and resume"),
            _ => String::new(),
        }
    }

    fn told(&self, newest: &Deployment) -> Note {
        told(newest, self.targets)
    }

    fn under_way(&self, newest: &Deployment) -> Note {
        let at: Vec<&str> = self.targets.iter().filter_map(|it| it.at.as_deref()).collect();
        let at = at.first().map(|at| format!(", at {at}")).unwrap_or_default();
        Note::new(format!("deployment {} is {}{at}", newest.id, newest.said))
    }

    fn stranger(&self, newest: &Deployment) -> Note {
        let what = newest.artefact.as_ref().map(|it| format!(" of {}", it.id())).unwrap_or_default();
        Note::new(format!("deployment {}{what}, made by {}, is {}", newest.id, newest.creator, newest.said))
    }

    /// The candidate's share of traffic, where it can be told.
    pub(super) fn weight(&self) -> Option<Weight> {
        let Some(newest) = self.newest else { return Some(Weight::NONE) };
        match (self.whose(), newest.status) {
            (Whose::Before, _) => self.is_at_baseline(newest).then_some(Weight::NONE),
            (Whose::Forward, Status::Succeeded) => self.mixed(newest).is_none().then_some(Weight::ALL),
            (Whose::Forward, Status::Ready) => Some(Weight::NONE),
            (Whose::Forward, Status::Active) if self.terminating(newest) => Some(Weight::ALL),
            (Whose::Forward, Status::Active) => match self.targets {
                [only] => only.share.map(weight),
                _ => None,
            },
            (Whose::Theirs | Whose::Back | Whose::Stranger, Status::Succeeded) if self.is_back(newest) => {
                Some(Weight::NONE)
            }
            _ => None,
        }
    }

    fn is_back(&self, newest: &Deployment) -> bool {
        self.mixed(newest).is_none() && (self.whose() == Whose::Back || self.is_baseline(newest))
    }

    /// What each target serves, once the newest deployment is over.
    pub(super) fn parts(&self) -> Vec<Part> {
        let Some(newest) = self.newest.filter(|newest| !newest.is_active()) else { return Vec::new() };
        let (new, old) = match self.whose() {
            Whose::Forward => (Serves::Candidate, Serves::Baseline),
            Whose::Back => (Serves::Baseline, Serves::Candidate),
            Whose::Theirs if self.is_baseline(newest) => (Serves::Baseline, Serves::Other),
            _ => return Vec::new(),
        };
        let back = new == Serves::Baseline;
        let two_sides = self.platform == Platform::BlueGreen;
        let serves = |it: &Target| match (it.succeeded(), it.untouched()) {
            _ if newest.status == Status::Succeeded && !newest.serves_at(it, two_sides) => Serves::Nothing,
            (true, _) => new,
            (false, true) if !back => old,
            _ => Serves::Other,
        };
        self.targets.iter().map(|it| Part::new(&it.name, serves(it))).collect()
    }
}

/// How a deployment ended, and of what on which targets.
fn told(of: &Deployment, targets: &[Target]) -> Note {
    let failed: Vec<String> = targets.iter().filter(|it| it.at.is_some() && !it.succeeded()).map(told_of).collect();
    let more = of.message.as_ref().filter(|_| of.rolled_back_by.is_none());
    let more = more.map(|it| format!("; {it}")).unwrap_or_default();
    match failed.is_empty() {
        true => Note::new(format!("{}{more}", of.tell())),
        false => Note::new(format!("{}: {}{more}", of.tell(), failed.join(", "))),
    }
}

fn told_of(it: &Target) -> String {
    match &it.at {
        Some(at) => format!("{} ({}, {at})", it.name, it.status),
        None => format!("{} ({})", it.name, it.status),
    }
}

fn weight(share: f64) -> Weight {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 100, made so on this line")]
    let percent = share.clamp(0.0, 100.0).round() as u8;
    Weight::try_from(percent).expect("at most 100")
}
