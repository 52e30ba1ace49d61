//! Which execution a stage has, which are on their way into it, and what that means for a goal. Pure.

use std::collections::BTreeMap;

use rollback_core::{
    Error, Result,
    model::{Attempt, Change, Goal, Note, Progress, Revision, Weight},
};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// What a revision of a stage seals.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Spec {
    pub(super) pipeline: String,
    pub(super) stage: String,
    /// What each source action took, or is to take.
    pub(super) sources: BTreeMap<String, String>,
    /// Of which type these are, as `COMMIT_ID`; only of what is to be started.
    #[serde(default)]
    pub(super) types: BTreeMap<String, String>,
    /// The execution that brought it into the stage, and that the stage can be rolled back to.
    #[serde(default)]
    pub(super) execution: Option<String>,
}

impl Spec {
    /// What a revision of this backend seals.
    pub(super) fn of(revision: &Revision) -> Result<Self> {
        revision.spec.open().map_err(|e| {
            let why = format!("revision {} was not made for a stage; Stage::revision makes one", revision.id);
            Error::invalid(why).because(e)
        })
    }

    /// The revision with this spec. Its id is what the source actions took.
    pub(super) fn revision(&self) -> Result<Revision> {
        let told: Vec<String> = self.sources.iter().map(|(action, value)| format!("{action}={value}")).collect();
        let told = told.join(", ");
        let id = if told.len() <= 200 { told } else { format!("sources-{}", digest(&told)) };
        Revision::new(id)?.with_spec(self)
    }
}

/// A short name for a text, of letters and digits.
pub(super) fn digest(text: &str) -> String {
    Sha256::digest(text).iter().take(12).map(|byte| format!("{byte:02x}")).collect()
}

/// What is written where an execution is stopped, at most 200 characters.
pub(super) fn reason(attempt: &Attempt) -> String {
    format!("rollback {}", attempt.nonce).chars().take(200).collect()
}

/// An execution of the pipeline.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Run {
    pub(super) id: String,
    pub(super) status: String,
    /// The execution that it rolls a stage back to.
    pub(super) back_to: Option<String>,
    pub(super) sources: BTreeMap<String, String>,
    /// Why it was stopped.
    pub(super) stopped: Option<String>,
}

impl Run {
    fn is(&self, spec: &Spec) -> bool {
        spec.execution.as_deref() == Some(self.brings()) || !self.sources.is_empty() && self.sources == spec.sources
    }

    /// The execution that a stage has when this one succeeded in it.
    pub(super) fn brings(&self) -> &str {
        self.back_to.as_deref().unwrap_or(&self.id)
    }

    fn runs(&self) -> bool {
        matches!(self.status.as_str(), "InProgress" | "Stopping")
    }
}

/// A pipeline as a look saw it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Seen {
    /// The executions, the newest first.
    pub(super) runs: Vec<Run>,
    /// The execution that was last in the stage, and the stage's status.
    pub(super) latest: Option<(String, String)>,
    /// The stages, each with the execution that was last in it and what its failed or waiting actions say.
    pub(super) stages: Vec<(String, Option<String>, String)>,
    /// Why nothing may enter the stage, if so.
    pub(super) closed: Option<String>,
}

/// The one thing to ask of a pipeline.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Effect {
    /// Start an execution of the candidate's sources.
    Start,
    /// Stop this execution.
    Stop(String),
    /// Roll the stage back to this execution.
    RollBack(String),
}

impl Seen {
    /// The target's version: the newest execution, and what the stage has.
    pub(super) fn version(&self) -> String {
        let newest = self.runs.first().map_or("none", |run| &run.id);
        let (id, status) = self.latest.as_ref().map_or(("none", "never"), |(id, status)| (id, status));
        format!("{newest} {id} {status}")
    }

    /// What was last in the stage.
    pub(super) fn last(&self) -> Option<Run> {
        let (id, _) = self.latest.as_ref()?;
        let known = self.runs.iter().find(|run| run.id == *id).cloned();
        Some(known.unwrap_or_else(|| Run { id: id.clone(), ..Run::default() }))
    }

    /// The executions on their way to the stage: newer than the one that is in it, or was last, and not over.
    pub(super) fn incoming(&self) -> impl Iterator<Item = &Run> {
        let latest = self.latest.as_ref().map(|(id, _)| id);
        self.runs
            .iter()
            .take_while(move |run| Some(&run.id) != latest)
            .filter(|run| run.runs() && run.back_to.is_none())
    }

    /// The executions that are newer than when this attempt was decided.
    fn since(&self, attempt: Option<&Attempt>) -> impl Iterator<Item = &Run> {
        let newest = attempt.and_then(|it| it.version.as_str().split(' ').next()).map(str::to_owned);
        let known = attempt.is_some();
        self.runs.iter().take_while(move |run| known && Some(&run.id) != newest.as_ref())
    }

    /// Whether an attempt is known to have landed: an execution that only it can have started, or its words on a stopped one.
    pub(super) fn landed(&self, attempt: &Attempt, baseline: &Spec, candidate: &Spec) -> bool {
        let to = if attempt.goal.is_forward() { candidate } else { baseline };
        let mut since = self.since(Some(attempt));
        let started = since.any(|run| match (&to.execution, attempt.goal.is_forward()) {
            (Some(execution), _) => run.back_to.as_ref() == Some(execution),
            (None, true) => run.back_to.is_none() && run.is(to),
            (None, false) => false,
        });
        started || self.runs.iter().any(|run| run.stopped.as_ref() == Some(&reason(attempt)))
    }

    /// The candidate's share of what the stage deploys to, where that is known.
    pub(super) fn weight(&self, baseline: &Spec, candidate: &Spec) -> Option<Weight> {
        let (last, (_, status)) = (self.last()?, self.latest.as_ref()?);
        match status.as_str() {
            "Succeeded" if last.is(baseline) => Some(Weight::NONE),
            "Succeeded" if last.is(candidate) => Some(Weight::ALL),
            _ => None,
        }
    }

    /// How far the stage is from a goal, and what is to be asked for.
    pub(super) fn towards(
        &self,
        goal: Goal,
        change: &Change,
        baseline: &Spec,
        candidate: &Spec,
        attempt: Option<&Attempt>,
    ) -> (Progress, Option<Effect>) {
        let forward = goal.is_forward();
        let wait = |what: String| (Progress::Underway(Note::new(what)), None);
        let drift = |what: String| (Progress::Drifted(Note::new(what)), None);
        let failed = |what: String| (Progress::Failed(Note::new(what)), None);
        let due = |what: String, effect| (Progress::Due(Note::new(what)), Some(effect));
        let back = |why: &str| match &baseline.execution {
            Some(to) => {
                let why = if why.is_empty() { String::new() } else { format!(": {why}") };
                due(format!("roll the stage back to execution {to}{why}"), Effect::RollBack(to.clone()))
            }
            None => failed(format!("no execution of revision {} is recorded to roll back to", change.baseline.id)),
        };
        let (Some(last), Some((_, status))) = (self.last(), &self.latest) else {
            return drift("the stage has had no execution".into());
        };
        // A candidate that an execution brought before is brought by a rollback to that, which is no rollback of ours.
        let (old, new) = (last.is(baseline), last.is(candidate));
        let id = &last.id;
        match (status.as_str(), forward) {
            ("Succeeded", true) if new => (Progress::Reached, None),
            ("Succeeded", _) if !old && !new => {
                drift(format!("the stage has execution {id}, which is neither revision"))
            }
            ("Succeeded", true) => {
                if let Some(run) = self.incoming().find(|run| run.is(candidate)) {
                    return wait(format!("execution {} is {}{}", run.id, run.status, self.place(&run.id)));
                }
                if let Some(run) = self.incoming().find(|run| run.sources.is_empty()) {
                    return wait(format!("execution {} has not read its sources yet", run.id));
                }
                if let Some(run) = self.since(attempt).find(|run| run.is(candidate) && !run.runs()) {
                    return failed(format!("execution {} is {}{}", run.id, run.status, self.place(&run.id)));
                }
                if let Some(run) = self.incoming().next() {
                    return drift(format!("execution {} of another revision is on its way into the stage", run.id));
                }
                match &candidate.execution {
                    Some(to) => due(format!("roll the stage to execution {to}"), Effect::RollBack(to.clone())),
                    None => due(format!("start an execution of {}", change.candidate.id), Effect::Start),
                }
            }
            ("Succeeded", false) if new && !old => back(""),
            ("Succeeded", false) => match self.incoming().find(|run| run.sources.is_empty() || run.is(candidate)) {
                None => (Progress::Reached, None),
                Some(run) if run.status == "Stopping" => wait(format!("execution {} stops", run.id)),
                Some(run) if run.sources.is_empty() => {
                    wait(format!("execution {} has not read its sources yet", run.id))
                }
                Some(run) => due(format!("stop execution {}", run.id), Effect::Stop(run.id.clone())),
            },
            _ if !old && !new => {
                drift(format!("the stage is {status}, with execution {id}, which is neither revision"))
            }

            ("InProgress" | "Stopping", true) if new => wait(format!("the stage is {status}{}", self.place(id))),
            ("InProgress" | "Stopping", true) => match self.since(attempt).find(|run| run.is(candidate)) {
                Some(run) => failed(format!(
                    "CodePipeline rolls the stage back itself: execution {} is {}{}",
                    run.id,
                    run.status,
                    self.place(&run.id)
                )),
                None => wait(format!("the stage is {status} with execution {id}")),
            },
            ("InProgress", false) if new && last.back_to.is_none() && last.status != "Stopping" => {
                due(format!("stop execution {id}"), Effect::Stop(id.clone()))
            }
            ("InProgress" | "Stopping", false) => wait(format!("the stage is {status} with execution {id}")),

            (_, true) => failed(format!("execution {id} is {status} in the stage{}", self.place(id))),
            (_, false) => back(&format!("execution {id} is {status} there{}", self.place(id))),
        }
    }

    /// Where an execution is, and what the actions there say.
    fn place(&self, id: &str) -> String {
        let at = self.stages.iter().rev().find(|(_, latest, _)| latest.as_deref() == Some(id));
        match at {
            Some((stage, _, said)) if said.is_empty() => format!(" (stage {stage})"),
            Some((stage, _, said)) => format!(" (stage {stage}: {said})"),
            None => String::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rollback_core::model::{Nonce, RolloutId, Serial, TargetId, Version};

    fn spec(revision: &str, execution: Option<&str>) -> Spec {
        Spec {
            pipeline: "shop".into(),
            stage: "Prod".into(),
            sources: BTreeMap::from([("Source".into(), revision.into())]),
            types: BTreeMap::new(),
            execution: execution.map(Into::into),
        }
    }

    fn run(id: &str, status: &str, back_to: Option<&str>, revision: &str) -> Run {
        let sources = match revision {
            "" => BTreeMap::new(),
            revision => BTreeMap::from([("Source".into(), revision.into())]),
        };
        Run { id: id.into(), status: status.into(), back_to: back_to.map(Into::into), sources, stopped: None }
    }

    fn change() -> Change {
        Change {
            rollout: RolloutId::try_from("r").expect("a good id"),
            target: TargetId::try_from("t").expect("a good id"),
            baseline: spec("v1", Some("e1")).revision().expect("a good spec"),
            candidate: spec("v2", None).revision().expect("a good spec"),
        }
    }

    fn seen(latest: (&str, &str), runs: &[Run]) -> Seen {
        Seen { runs: runs.to_vec(), latest: Some((latest.0.into(), latest.1.into())), ..Seen::default() }
    }

    fn attempt(goal: Goal) -> Attempt {
        let rollout = RolloutId::try_from("r").expect("a good id");
        Attempt {
            nonce: Nonce::new(&rollout, Serial(2), goal),
            goal,
            version: Version::try_from("e1 e1 Succeeded").expect("a good version"),
            at: jiff::Timestamp::UNIX_EPOCH,
        }
    }

    #[test]
    fn each_place_of_an_execution_means_one_thing_on_each_way() {
        let e1 = run("e1", "Succeeded", None, "v1");
        let e2 = |status| run("e2", status, None, "v2");
        let back = |status| run("e3", status, Some("e1"), "v1");
        let change = change();
        let (baseline, candidate) = (spec("v1", Some("e1")), spec("v2", None));
        for (seen, on, home) in [
            (seen(("e1", "Succeeded"), std::slice::from_ref(&e1)), "due", "reached"),
            (seen(("e1", "Succeeded"), &[run("e2", "InProgress", None, ""), e1.clone()]), "underway", "underway"),
            (seen(("e1", "Succeeded"), &[e2("InProgress"), e1.clone()]), "underway", "stop e2"),
            (seen(("e1", "Succeeded"), &[e2("Stopping"), e1.clone()]), "underway", "underway"),
            (seen(("e1", "Succeeded"), &[e2("Failed"), e1.clone()]), "failed", "reached"),
            (seen(("e1", "Succeeded"), &[e2("Superseded"), e1.clone()]), "failed", "reached"),
            (seen(("e1", "Succeeded"), &[run("e2", "InProgress", None, "v3"), e1.clone()]), "drifted", "reached"),
            (seen(("e2", "InProgress"), &[e2("InProgress"), e1.clone()]), "underway", "stop e2"),
            (seen(("e2", "InProgress"), &[e2("Stopping"), e1.clone()]), "underway", "underway"),
            (seen(("e2", "Succeeded"), &[e2("InProgress"), e1.clone()]), "reached", "back e1"),
            (seen(("e2", "Succeeded"), &[e2("Succeeded"), e1.clone()]), "reached", "back e1"),
            (seen(("e2", "Failed"), &[e2("Failed"), e1.clone()]), "failed", "back e1"),
            (seen(("e2", "Stopped"), &[e2("Stopped"), e1.clone()]), "failed", "back e1"),
            (seen(("e3", "InProgress"), &[back("InProgress"), e2("Failed"), e1.clone()]), "failed", "underway"),
            (seen(("e3", "Succeeded"), &[back("Succeeded"), e2("Failed"), e1.clone()]), "failed", "reached"),
            (seen(("e3", "Failed"), &[back("Failed"), e2("Succeeded"), e1.clone()]), "failed", "back e1"),
            (seen(("e4", "Succeeded"), &[run("e4", "Succeeded", None, "v3"), e1.clone()]), "drifted", "drifted"),
            (seen(("e4", "InProgress"), &[run("e4", "InProgress", None, "v3"), e1]), "drifted", "drifted"),
        ] {
            let name = |goal| {
                let last = attempt(Goal::Split(Weight::ALL));
                match seen.towards(goal, &change, &baseline, &candidate, Some(&last)) {
                    (Progress::Reached, None) => "reached".to_owned(),
                    (Progress::Underway(_), None) => "underway".into(),
                    (Progress::Failed(_), None) => "failed".into(),
                    (Progress::Drifted(_), None) => "drifted".into(),
                    (Progress::Due(_), Some(Effect::Start)) => "due".into(),
                    (Progress::Due(_), Some(Effect::Stop(id))) => format!("stop {id}"),
                    (Progress::Due(_), Some(Effect::RollBack(id))) => format!("back {id}"),
                    odd => panic!("{odd:?}"),
                }
            };
            assert_eq!((name(Goal::Candidate), name(Goal::Baseline)), (on.into(), home.into()), "{seen:?}");
        }
    }

    #[test]
    fn an_attempt_has_landed_when_only_it_can_have_done_what_is_seen() {
        let (baseline, candidate) = (spec("v1", Some("e1")), spec("v2", None));
        let e1 = run("e1", "Succeeded", None, "v1");
        let older = run("e0", "Succeeded", None, "v2");
        let forward = attempt(Goal::Candidate);
        let landed = |runs: &[Run], attempt| seen(("e1", "Succeeded"), runs).landed(attempt, &baseline, &candidate);
        assert!(!landed(&[e1.clone(), older], &forward), "an execution from before is no sign");
        assert!(!landed(&[run("e2", "InProgress", None, ""), e1.clone()], &forward), "nobody can tell whose it is");
        assert!(landed(&[run("e2", "InProgress", None, "v2"), e1.clone()], &forward));
        let back = attempt(Goal::Baseline);
        assert!(!landed(&[run("e2", "InProgress", None, "v2"), e1.clone()], &back));
        assert!(landed(&[run("e3", "InProgress", Some("e1"), "v1"), e1.clone()], &back));
        let stopped = Run { stopped: Some(reason(&back)), ..run("e2", "Stopping", None, "v2") };
        assert!(landed(&[stopped, e1], &back));
    }
}
