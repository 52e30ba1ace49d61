//! One pipeline: its executions, from stage to stage.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{Answer, Refusal};

#[derive(Clone, Debug)]
pub(super) struct Pipeline {
    /// As it was put.
    pub(super) declared: Value,
    pub(super) stages: Vec<Stage>,
    /// The oldest first.
    pub(super) executions: Vec<Execution>,
    pub(super) tokens: BTreeMap<String, String>,
    /// What each source action finds when nobody says what to take.
    pub(super) heads: BTreeMap<String, String>,
    takes: Duration,
}

#[derive(Clone, Debug)]
pub(super) struct Stage {
    pub(super) name: String,
    /// The execution that was there last, and what came of it.
    pub(super) latest: Option<(String, &'static str)>,
    /// Why the transition into it is disabled.
    pub(super) closed: Option<String>,
    /// Why it fails for new executions, and why for rollbacks.
    pub(super) fails: Option<String>,
    pub(super) fails_back: Option<String>,
    /// Why its action failed.
    why: Option<String>,
}

#[derive(Clone, Debug)]
pub(super) struct Execution {
    pub(super) id: String,
    pub(super) version: u64,
    pub(super) status: &'static str,
    pub(super) kind: &'static str,
    pub(super) target: Option<String>,
    /// By source action.
    pub(super) sources: BTreeMap<String, String>,
    /// The stages that it succeeded in.
    pub(super) succeeded: BTreeSet<usize>,
    trigger: &'static str,
    started: Timestamp,
    updated: Timestamp,
    /// The stage where it is, and since when; before a stage that is taken or closed, it has no time.
    at: usize,
    since: Option<Timestamp>,
    stopped: Option<String>,
}

impl Pipeline {
    pub(super) fn new(declared: Value, takes: Duration) -> Self {
        let stages = declared["stages"].as_array().into_iter().flatten();
        let stages = stages.map(|it| Stage {
            name: it["name"].as_str().unwrap_or_default().into(),
            latest: None,
            closed: None,
            fails: None,
            fails_back: None,
            why: None,
        });
        let stages = stages.collect();
        let (executions, tokens, heads) = (Vec::new(), BTreeMap::new(), BTreeMap::new());
        Self { declared, stages, executions, tokens, heads, takes }
    }

    /// The same, with so long in each stage.
    pub(super) fn at_pace(self, takes: Duration) -> Self {
        Self { takes, ..self }
    }

    pub(super) fn version(&self) -> u64 {
        self.declared["version"].as_u64().unwrap_or(1)
    }

    pub(super) fn stage(&self, name: &str) -> Answer<usize> {
        self.stages.iter().position(|it| it.name == name).ok_or_else(|| {
            Refusal::new(400, "StageNotFoundException", format!("The stage {name} cannot be found in the pipeline."))
        })
    }

    /// The names of its source actions.
    pub(super) fn sources(&self) -> Vec<String> {
        let actions = self.declared["stages"][0]["actions"].as_array().into_iter().flatten();
        actions.filter_map(|it| it["name"].as_str().map(Into::into)).collect()
    }

    /// What a stage has that this execution succeeded in: itself, or what it rolled back to.
    pub(super) fn effective(&self, id: &str) -> String {
        let execution = self.executions.iter().find(|it| it.id == id);
        execution.and_then(|it| it.target.clone()).unwrap_or_else(|| id.into())
    }

    pub(super) fn start(
        &mut self,
        overrides: &BTreeMap<String, String>,
        trigger: &'static str,
        token: Option<&str>,
        now: Timestamp,
    ) -> String {
        let taken = |action: String| {
            let found = overrides.get(&action).or_else(|| self.heads.get(&action)).cloned();
            (action, found.unwrap_or_else(|| "0000000000000000000000000000000000000000".into()))
        };
        let sources = self.sources().into_iter().map(taken).collect();
        let id = self.begin("STANDARD", None, sources, trigger, 0, now);
        if let Some(token) = token {
            self.tokens.insert(token.into(), id.clone());
        }
        id
    }

    pub(super) fn roll_back(&mut self, stage: usize, to: &Execution, trigger: &'static str, now: Timestamp) -> String {
        self.begin("ROLLBACK", Some(to.id.clone()), to.sources.clone(), trigger, stage, now)
    }

    fn begin(
        &mut self,
        kind: &'static str,
        target: Option<String>,
        sources: BTreeMap<String, String>,
        trigger: &'static str,
        at: usize,
        now: Timestamp,
    ) -> String {
        let id = uuid::Uuid::new_v4().to_string();
        self.executions.push(Execution {
            id: id.clone(),
            version: self.version(),
            status: "InProgress",
            kind,
            target,
            sources,
            succeeded: BTreeSet::new(),
            trigger,
            started: now,
            updated: now,
            at,
            since: None,
            stopped: None,
        });
        self.enter(now);
        id
    }

    pub(super) fn stop(&mut self, id: &str, reason: &str, abandon: bool, now: Timestamp) {
        let Some(execution) = self.executions.iter_mut().find(|it| it.id == id) else { return };
        (execution.stopped, execution.updated) = (Some(reason.into()), now);
        let in_stage = execution.since.is_some();
        if in_stage && !abandon {
            execution.status = "Stopping";
            return;
        }
        execution.status = "Stopped";
        let at = execution.at;
        execution.since = None;
        if in_stage {
            self.stages[at].latest = Some((id.into(), "Stopped"));
        }
        self.enter(now);
    }

    /// Lets everything happen that was to happen until now.
    pub(super) fn pass(&mut self, now: Timestamp) {
        loop {
            let due = self.executions.iter().enumerate().filter_map(|(n, it)| {
                let at = it.since? + self.takes;
                (at <= now).then_some((at, n))
            });
            // A stage may have been opened since.
            let Some((at, n)) = due.min() else { return self.enter(now) };
            self.leave(n, at);
            self.enter(at);
        }
    }

    /// An execution's action in its stage is over.
    fn leave(&mut self, n: usize, now: Timestamp) {
        let execution = &mut self.executions[n];
        let (stage, id, rolls_back) = (execution.at, execution.id.clone(), execution.kind == "ROLLBACK");
        (execution.since, execution.updated) = (None, now);
        let fails = if rolls_back { &self.stages[stage].fails_back } else { &self.stages[stage].fails };
        if let Some(why) = fails.clone() {
            execution.status = "Failed";
            self.stages[stage].latest = Some((id, "Failed"));
            self.stages[stage].why = Some(why);
            let by_itself = self.declared["stages"][stage]["onFailure"]["result"] == json!("ROLLBACK");
            let version = self.version();
            let last = self.executions.iter().rev();
            let last = last
                .filter(|it| it.kind == "STANDARD" && it.version == version)
                .find(|it| it.succeeded.contains(&stage));
            if let Some(last) = last.cloned().filter(|_| by_itself && !rolls_back) {
                self.roll_back(stage, &last, "AutomatedRollback", now);
            }
            return;
        }
        execution.succeeded.insert(stage);
        self.stages[stage].why = None;
        let stopped = execution.status == "Stopping";
        self.stages[stage].latest = Some((id, "Succeeded"));
        if stopped {
            execution.status = "Stopped";
        } else if rolls_back || stage + 1 == self.stages.len() {
            execution.status = "Succeeded";
        } else {
            execution.at = stage + 1;
        }
    }

    /// Whoever waits before a free stage goes in; of several the newest, and the others are superseded.
    fn enter(&mut self, now: Timestamp) {
        for stage in 0..self.stages.len() {
            let busy = self.executions.iter().any(|it| it.at == stage && it.since.is_some());
            if busy || self.stages[stage].closed.is_some() {
                continue;
            }
            let waits = |it: &Execution| it.status == "InProgress" && it.at == stage && it.since.is_none();
            let Some(newest) = self.executions.iter().rposition(waits) else { continue };
            for older in self.executions[..newest].iter_mut().filter(|it| waits(it)) {
                (older.status, older.updated) = ("Superseded", now);
            }
            let execution = &mut self.executions[newest];
            (execution.since, execution.updated) = (Some(now), now);
            self.stages[stage].latest = Some((execution.id.clone(), "InProgress"));
        }
    }

    /// As `GetPipelineState` tells of one stage.
    pub(super) fn shown_stage(&self, at: usize) -> Value {
        let stage = &self.stages[at];
        let action = &self.declared["stages"][at]["actions"][0];
        let mut shown = json!({ "stageName": stage.name, "inboundExecutions": [] });
        if at > 0 {
            shown["inboundTransitionState"] = json!({ "enabled": stage.closed.is_none() });
            if let Some(why) = &stage.closed {
                shown["inboundTransitionState"]["disabledReason"] = json!(why);
            }
        }
        let waiting =
            self.executions.iter().rev().find(|it| it.status == "InProgress" && it.at == at && it.since.is_none());
        if let Some(waiting) = waiting {
            let inbound = json!({ "pipelineExecutionId": waiting.id, "status": "InProgress", "type": waiting.kind });
            shown["inboundExecution"] = inbound.clone();
            shown["inboundExecutions"] = json!([inbound]);
        }
        let mut state = json!({ "actionName": action["name"] });
        if let Some((id, status)) = &stage.latest {
            let execution = self.executions.iter().find(|it| it.id == *id);
            let stopping = execution.is_some_and(|it| it.status == "Stopping" && it.since.is_some());
            let status = if stopping { "Stopping" } else { status };
            let kind = execution.map_or("STANDARD", |it| it.kind);
            shown["latestExecution"] = json!({ "pipelineExecutionId": id, "status": status, "type": kind });
            let of_action = match status {
                "Stopping" => "InProgress",
                "Stopped" => "Abandoned",
                status => status,
            };
            state["latestExecution"] = json!({ "status": of_action });
            if let Some(why) = stage.why.as_ref().filter(|_| of_action == "Failed") {
                state["latestExecution"]["errorDetails"] = json!({ "code": "JobFailed", "message": why });
            }
        }
        shown["actionStates"] = json!([state]);
        shown
    }
}

impl Execution {
    fn shown_sources(&self) -> Option<&BTreeMap<String, String>> {
        (self.kind == "ROLLBACK" || self.succeeded.contains(&0)).then_some(&self.sources)
    }

    /// As `ListPipelineExecutions` tells of it.
    pub(super) fn summary(&self) -> Value {
        let sources = self.shown_sources().into_iter().flatten();
        let sources: Vec<Value> =
            sources.map(|(action, id)| json!({ "actionName": action, "revisionId": id })).collect();
        let mut shown = json!({
            "pipelineExecutionId": self.id,
            "status": self.status,
            "startTime": seconds(self.started),
            "lastUpdateTime": seconds(self.updated),
            "sourceRevisions": sources,
            "trigger": { "triggerType": self.trigger },
            "executionMode": "SUPERSEDED",
            "executionType": self.kind,
        });
        if let Some(target) = &self.target {
            shown["rollbackMetadata"] = json!({ "rollbackTargetPipelineExecutionId": target });
        }
        if let Some(reason) = &self.stopped {
            shown["stopTrigger"] = json!({ "reason": reason });
        }
        shown
    }

    /// As `GetPipelineExecution` tells of it.
    pub(super) fn shown(&self, pipeline: &str) -> Value {
        let sources = self.shown_sources().into_iter().flatten();
        let artifacts: Vec<Value> = sources.map(|(action, id)| json!({ "name": action, "revisionId": id })).collect();
        let mut shown = json!({
            "pipelineName": pipeline,
            "pipelineVersion": self.version,
            "pipelineExecutionId": self.id,
            "status": self.status,
            "artifactRevisions": artifacts,
            "trigger": { "triggerType": self.trigger },
            "executionMode": "SUPERSEDED",
            "executionType": self.kind,
        });
        if let Some(target) = &self.target {
            shown["rollbackMetadata"] = json!({ "rollbackTargetPipelineExecutionId": target });
        }
        shown
    }
}

fn seconds(at: Timestamp) -> f64 {
    at.as_millisecond() as f64 / 1000.0
}
