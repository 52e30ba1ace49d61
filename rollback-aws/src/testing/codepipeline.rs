//! CodePipeline's room: pipelines whose executions go from stage to stage, fail, are stopped, and are rolled back.
//!
//! From the documentation: what [`RollbackStage`] asks of its target, that it makes a new execution of the type `ROLLBACK`
//! which runs in that stage alone, which executions a stage's filter lists, what stopping means, and what a stage that is
//! configured to roll back does on failure. Not documented, and decided here: a second request with the same token is answered
//! with the first one's execution; an execution shows its source revisions when its source stage is over.
//!
//! Not simulated: actions beside the one that each stage has, conditions, retries, variables, webhooks, QUEUED and PARALLEL.
//!
//! [`RollbackStage`]: https://docs.aws.amazon.com/codepipeline/latest/APIReference/API_RollbackStage.html

mod hands;
mod pipeline;

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use http::{Request, Response};
use jiff::Timestamp;
use serde_json::{Value, json};

pub use self::hands::{Hands, Snapshot};
use self::pipeline::{Execution, Pipeline};
use super::{
    ACCOUNT,
    wire::{self, Called, Protocol, Refusal, Service},
};

/// What CodePipeline knows.
#[derive(Debug)]
pub(super) struct Room {
    region: String,
    pipelines: BTreeMap<String, Pipeline>,
    takes: Duration,
}

type Answer<T> = Result<T, Refusal>;

impl Room {
    pub(super) fn new(region: &str) -> Self {
        Self { region: region.into(), pipelines: BTreeMap::new(), takes: Duration::from_secs(20) }
    }

    /// Lets everything happen that was to happen until now.
    pub(super) fn pass(&mut self, now: Timestamp) {
        for pipeline in self.pipelines.values_mut() {
            pipeline.pass(now);
        }
    }

    pub(super) fn answer(
        &mut self,
        called: &Called,
        request: &Request<Bytes>,
        now: Timestamp,
    ) -> Answer<Response<Bytes>> {
        let asked: Value = serde_json::from_slice(request.body())
            .map_err(|_| Refusal::new(400, "SerializationException", "the body is not JSON"))?;
        let said = match called.operation.as_str() {
            "CreatePipeline" => self.create(&asked, now),
            "GetPipeline" => self.get(&asked),
            "GetPipelineState" => self.state(&asked),
            "GetPipelineExecution" => self.execution(&asked),
            "ListPipelineExecutions" => self.list(&asked),
            "StartPipelineExecution" => self.start(&asked, now),
            "StopPipelineExecution" => self.stop(&asked, now),
            "RollbackStage" => self.roll_back(&asked, now),
            other => Err(Refusal::new(400, "UnknownOperationException", format!("{other} is not simulated"))),
        }?;
        Ok(wire::json_answer(200, wire::JSON_1_1, &said))
    }

    fn create(&mut self, asked: &Value, now: Timestamp) -> Answer<Value> {
        let asked = &asked["pipeline"];
        let name = text(asked, "name")?;
        if self.pipelines.contains_key(&name) {
            let why = format!("A pipeline with the name '{name}' already exists");
            return Err(Refusal::new(400, "PipelineNameInUseException", why));
        }
        let stages = asked["stages"].as_array().map(Vec::len).unwrap_or_default();
        if stages < 2 || asked["stages"][0]["actions"][0]["actionTypeId"]["category"] != json!("Source") {
            let why = "Pipeline must have at least two stages, the first of which has a source action";
            return Err(Refusal::new(400, "InvalidStructureException", why));
        }
        let mut declared = asked.clone();
        declared["version"] = json!(1);
        for (member, default) in [("executionMode", "SUPERSEDED"), ("pipelineType", "V1")] {
            if declared.get(member).is_none() {
                declared[member] = json!(default);
            }
        }
        let mut pipeline = Pipeline::new(declared.clone(), self.takes);
        // "When you create a pipeline, it runs": with what its sources have.
        pipeline.start(&BTreeMap::new(), "CreatePipeline", None, now);
        self.pipelines.insert(name, pipeline);
        Ok(json!({ "pipeline": declared }))
    }

    fn get(&self, asked: &Value) -> Answer<Value> {
        let name = text(asked, "name")?;
        let pipeline = self.pipeline(&name)?;
        let partition = crate::account::partition(&self.region);
        let arn = format!("arn:{partition}:codepipeline:{}:{ACCOUNT}:{name}", self.region);
        Ok(json!({ "pipeline": pipeline.declared, "metadata": { "pipelineArn": arn } }))
    }

    fn state(&self, asked: &Value) -> Answer<Value> {
        let name = text(asked, "name")?;
        let pipeline = self.pipeline(&name)?;
        let stages: Vec<Value> = (0..pipeline.stages.len()).map(|at| pipeline.shown_stage(at)).collect();
        Ok(json!({ "pipelineName": name, "pipelineVersion": pipeline.version(), "stageStates": stages }))
    }

    fn execution(&self, asked: &Value) -> Answer<Value> {
        let name = text(asked, "pipelineName")?;
        let pipeline = self.pipeline(&name)?;
        let execution = found(pipeline, &text(asked, "pipelineExecutionId")?)?;
        Ok(json!({ "pipelineExecution": execution.shown(&name) }))
    }

    fn list(&self, asked: &Value) -> Answer<Value> {
        let pipeline = self.pipeline(&text(asked, "pipelineName")?)?;
        let most = asked["maxResults"].as_u64().unwrap_or(100);
        if !(1..=100).contains(&most) {
            return Err(invalid(format!("Value '{most}' at 'maxResults' failed to satisfy constraint")));
        }
        let stage = asked["filter"]["succeededInStage"]["stageName"].as_str();
        let at = stage.map(|stage| pipeline.stage(stage)).transpose()?;
        let listed = pipeline.executions.iter().rev().filter(|it| match at {
            None => true,
            Some(at) => it.succeeded.contains(&at) && it.version == pipeline.version(),
        });
        let from = match asked["nextToken"].as_str().map(str::parse::<usize>) {
            None => 0,
            Some(Ok(from)) => from,
            Some(Err(_)) => {
                return Err(Refusal::new(
                    400,
                    "InvalidNextTokenException",
                    "The next token was specified in an invalid format.",
                ));
            }
        };
        let most = usize::try_from(most).unwrap_or(100);
        let page: Vec<Value> = listed.clone().skip(from).take(most).map(Execution::summary).collect();
        let mut said = json!({ "pipelineExecutionSummaries": page });
        if listed.count() > from + most {
            said["nextToken"] = json!((from + most).to_string());
        }
        Ok(said)
    }

    fn start(&mut self, asked: &Value, now: Timestamp) -> Answer<Value> {
        let pipeline = self.pipeline_mut(&text(asked, "name")?)?;
        let token = asked["clientRequestToken"].as_str();
        if let Some(known) = token.and_then(|token| pipeline.tokens.get(token)) {
            return Ok(json!({ "pipelineExecutionId": known }));
        }
        let mut overrides = BTreeMap::new();
        for it in asked["sourceRevisions"].as_array().into_iter().flatten() {
            let (action, value) = (text(it, "actionName")?, text(it, "revisionValue")?);
            text(it, "revisionType")?;
            if !pipeline.sources().contains(&action) {
                return Err(invalid(format!("Source action {action} does not exist in the pipeline")));
            }
            overrides.insert(action, value);
        }
        let id = pipeline.start(&overrides, "StartPipelineExecution", token, now);
        Ok(json!({ "pipelineExecutionId": id }))
    }

    fn stop(&mut self, asked: &Value, now: Timestamp) -> Answer<Value> {
        let pipeline = self.pipeline_mut(&text(asked, "pipelineName")?)?;
        let id = text(asked, "pipelineExecutionId")?;
        match pipeline.executions.iter().find(|it| it.id == id).map(|it| it.status) {
            Some("InProgress") => {}
            Some("Stopping") => {
                let why = "The pipeline execution is already in a Stopping state.";
                return Err(Refusal::new(400, "DuplicatedStopRequestException", why));
            }
            // No other error is declared for one that never was.
            _ => {
                let why = "Unable to stop the pipeline execution. The execution might already be in a Stopped state, or it \
                           might no longer be in progress.";
                return Err(Refusal::new(400, "PipelineExecutionNotStoppableException", why));
            }
        }
        let reason = asked["reason"].as_str().unwrap_or_default();
        pipeline.stop(&id, reason, asked["abandon"].as_bool().unwrap_or_default(), now);
        Ok(json!({ "pipelineExecutionId": id }))
    }

    fn roll_back(&mut self, asked: &Value, now: Timestamp) -> Answer<Value> {
        let pipeline = self.pipeline_mut(&text(asked, "pipelineName")?)?;
        let stage = pipeline.stage(&text(asked, "stageName")?)?;
        let target = text(asked, "targetPipelineExecutionId")?;
        let of = found(pipeline, &target)?.clone();
        let unable = |why: &str| Err(Refusal::new(400, "UnableToRollbackStageException", why));
        if pipeline.declared["pipelineType"] != json!("V2") {
            return unable("Stage rollback is only supported for V2 type pipelines");
        }
        if stage == 0 {
            return unable("A source stage cannot be rolled back");
        }
        if of.version != pipeline.version() {
            let why = "The specified pipeline execution is outdated and cannot be used as a target pipeline execution for rollback.";
            return Err(Refusal::new(400, "PipelineExecutionOutdatedException", why));
        }
        if of.kind == "ROLLBACK" || !of.succeeded.contains(&stage) {
            return unable("The target pipeline execution is a rollback, or has not succeeded in the stage");
        }
        match pipeline.stages[stage].latest.as_ref() {
            Some((_, "InProgress" | "Stopping")) => return unable("The stage is currently running"),
            Some((id, "Succeeded")) if pipeline.effective(id) == target => {
                return unable("The target pipeline execution is the one that the stage has");
            }
            _ => {}
        }
        let id = pipeline.roll_back(stage, &of, "ManualRollback", now);
        Ok(json!({ "pipelineExecutionId": id }))
    }

    fn pipeline(&self, name: &str) -> Answer<&Pipeline> {
        self.pipelines.get(name).ok_or_else(|| unknown(name))
    }

    fn pipeline_mut(&mut self, name: &str) -> Answer<&mut Pipeline> {
        self.pipelines.get_mut(name).ok_or_else(|| unknown(name))
    }
}

fn unknown(name: &str) -> Refusal {
    Refusal::new(
        400,
        "PipelineNotFoundException",
        format!("Account '{ACCOUNT}' does not have a pipeline with name '{name}'"),
    )
}

fn found<'a>(pipeline: &'a Pipeline, id: &str) -> Answer<&'a Execution> {
    pipeline.executions.iter().find(|it| it.id == id).ok_or_else(|| {
        let why = format!("The pipeline execution {id} cannot be found, or does not belong to the specified pipeline.");
        Refusal::new(400, "PipelineExecutionNotFoundException", why)
    })
}

fn text(asked: &Value, member: &str) -> Answer<String> {
    let value = asked[member].as_str().filter(|it| !it.is_empty());
    value.map(Into::into).ok_or_else(|| {
        invalid(format!(
            "1 validation error detected: Value null at '{member}' failed to satisfy constraint: Member must not be null"
        ))
    })
}

fn invalid(why: impl Into<String>) -> Refusal {
    Refusal::new(400, "ValidationException", why)
}

/// Whether a request is CodePipeline's.
pub(super) fn route(request: &Request<Bytes>) -> Option<Called> {
    let target = request.headers().get("x-amz-target")?.to_str().ok()?;
    let operation = target.strip_prefix("CodePipeline_20150709.")?.to_owned();
    Some(Called { service: Service::CodePipeline, protocol: Protocol::Json11, operation })
}
