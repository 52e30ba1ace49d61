//! Proving that a stage can go forward and back, without changing anything.

use aws_sdk_codepipeline::types::{
    ActionCategory, ExecutionMode, PipelineDeclaration, PipelineExecutionFilter, PipelineType, Result as OnFailure,
    SucceededInStageFilter,
};
use rollback_core::{Error, ErrorKind, Result, backend::Readiness, model::Change, plan::Plan};

use super::{
    EXECUTION, LIST, PIPELINE, ROLL_BACK, START, STATE, STOP, Stage,
    shape::{Effect, Seen, Spec},
};
use crate::iam::Permission;

impl Stage {
    pub(super) async fn prove(&self, change: &Change, _plan: &Plan) -> Result<Readiness> {
        let (baseline, candidate) = (self.spec(&change.baseline)?, self.spec(&change.candidate)?);
        let mut ready = Readiness::default();
        let (states, runs) = (self.states().await, self.runs().await);
        let states = STATE.prove(&mut ready, states)?;
        let runs = LIST.prove(&mut ready, runs)?;
        if let (Some(states), Some(runs)) = (states, runs) {
            let seen = self.put_together(&states, runs)?;
            self.prove_quiet(&mut ready, &seen, &baseline);
        }
        let asked = self.client.get_pipeline().name(&self.pipeline).send().await;
        let asked = asked.map_err(|e| self.refused("reading", e));
        if let Some(pipeline) = PIPELINE.prove(&mut ready, asked)?.and_then(|it| it.pipeline) {
            let listed = self.prove_way_back(&mut ready, &pipeline, &baseline).await?;
            self.prove_candidate(&mut ready, &pipeline, &candidate, &listed);
            self.tell_of_others(&mut ready, &pipeline);
        }
        // These name an execution that never was: they are refused for lack of the permission, or because of it.
        for (permission, effect) in [(STOP, Effect::Stop(NEVER.into())), (ROLL_BACK, Effect::RollBack(NEVER.into()))] {
            self.prove_write(&mut ready, permission, &effect).await?;
        }
        Ok(ready
            .not_provable(format!(
                "the permission to start an execution, {}: trying it out would start one",
                START.action
            ))
            .not_provable("whether builds, tests and approvals on the way let the candidate through")
            .not_restored("what the stage's actions did beside deploying"))
    }

    fn prove_quiet(&self, ready: &mut Readiness, seen: &Seen, baseline: &Spec) {
        let has = seen.latest.as_ref().filter(|(_, status)| status == "Succeeded").and_then(|_| seen.last());
        if has.is_none_or(|run| Some(run.brings()) != baseline.execution.as_deref() && run.sources != baseline.sources)
        {
            let why = format!("stage {} of pipeline {} is not at the baseline any more", self.stage, self.pipeline);
            ready.refused.push(why.into());
        }
        for run in seen.incoming() {
            let why = format!(
                "execution {} is {} on its way into stage {}; wait until it is through, or stop it",
                run.id, run.status, self.stage
            );
            ready.refused.push(why.into());
        }
        if let Some(why) = &seen.closed {
            ready.refused.push(format!("the transition into stage {} is disabled: {why}", self.stage).into());
        }
    }

    /// What `RollbackStage` asks of its target (user guide, "Configuring stage rollback"). Returns the executions that
    /// CodePipeline lists as targets.
    async fn prove_way_back(
        &self,
        ready: &mut Readiness,
        pipeline: &PipelineDeclaration,
        baseline: &Spec,
    ) -> Result<Vec<String>> {
        let at = pipeline.stages().iter().position(|it| it.name() == self.stage);
        if at == Some(0) {
            ready
                .no_way_back
                .push(format!("stage {} is the source stage, which cannot be rolled back", self.stage).into());
        }
        if pipeline.pipeline_type() != Some(&PipelineType::V2) {
            let why =
                format!("pipeline {} is of the type V1; stages of V2 pipelines can be rolled back", self.pipeline);
            ready.no_way_back.push(why.into());
        }
        if pipeline.execution_mode() == Some(&ExecutionMode::Parallel) {
            let why =
                "the pipeline runs in PARALLEL mode, where a stage has no one execution; SUPERSEDED and QUEUED work";
            ready.refused.push(why.into());
        }
        let Some(execution) = &baseline.execution else {
            ready.no_way_back.push("no execution is recorded for the baseline; read it off the stage".into());
            return Ok(Vec::new());
        };
        let asked = self.client.get_pipeline_execution().pipeline_name(&self.pipeline).pipeline_execution_id(execution);
        let asked = asked.send().await.map_err(|e| self.refused("reading an execution of", e));
        if let Some(found) = EXECUTION.prove(ready, asked)?.and_then(|it| it.pipeline_execution) {
            let (then, now) = (found.pipeline_version(), pipeline.version());
            if then != now {
                let show = |it: Option<i32>| it.map_or_else(|| "unknown".into(), |it| it.to_string());
                ready.no_way_back.push(
                    format!(
                        "execution {execution} was started in version {} of pipeline {}, which is at version {}; release what \
                         serves once more, and start again",
                        show(then),
                        self.pipeline,
                        show(now)
                    )
                    .into(),
                );
                return Ok(Vec::new());
            }
        }
        let stage = SucceededInStageFilter::builder().stage_name(&self.stage).build();
        let filter = PipelineExecutionFilter::builder().succeeded_in_stage(stage).build();
        let pages = self.client.list_pipeline_executions().pipeline_name(&self.pipeline).filter(filter);
        let answer = pages.max_results(100).send().await.map_err(|e| self.refused("reading the executions of", e));
        // A missing permission is told once.
        let Some(answer) = LIST.prove(&mut Readiness::default(), answer)? else { return Ok(Vec::new()) };
        let listed = answer.pipeline_execution_summaries().iter();
        let listed: Vec<String> = listed.filter_map(|it| it.pipeline_execution_id().map(Into::into)).collect();
        if listed.contains(execution) {
            ready.proved.push(
                format!("execution {execution} has succeeded in stage {}, in this version of the pipeline", self.stage)
                    .into(),
            );
        } else {
            let why = format!(
                "CodePipeline does not list execution {execution} as one that stage {} can be rolled back to",
                self.stage
            );
            ready.no_way_back.push(why.into());
        }
        Ok(listed)
    }

    fn prove_candidate(
        &self,
        ready: &mut Readiness,
        pipeline: &PipelineDeclaration,
        candidate: &Spec,
        listed: &[String],
    ) {
        let of_source = |it: &&aws_sdk_codepipeline::types::ActionDeclaration| {
            it.action_type_id().is_some_and(|it| *it.category() == ActionCategory::Source)
        };
        let sources: Vec<&str> =
            pipeline.stages().iter().flat_map(|it| it.actions()).filter(of_source).map(|it| it.name()).collect();
        // What the stage had before is brought by its execution, not by a new one.
        if let Some(execution) = &candidate.execution {
            if !listed.contains(execution) {
                let why = format!(
                    "CodePipeline does not list execution {execution}, which brought the candidate before, as one that stage \
                     {} can be rolled to; make the revision anew with Stage::revision",
                    self.stage
                );
                ready.refused.push(why.into());
            }
            return;
        }
        for unknown in candidate.sources.keys().filter(|name| !sources.contains(&name.as_str())) {
            let why =
                format!("pipeline {} has no source action {unknown}; it has {}", self.pipeline, sources.join(", "));
            ready.refused.push(why.into());
        }
        for missing in sources.iter().filter(|name| !candidate.sources.contains_key(**name)) {
            let why = format!(
                "the candidate does not say what source action {missing} takes, which would be whatever is newest"
            );
            ready.refused.push(why.into());
        }
    }

    fn tell_of_others(&self, ready: &mut Readiness, pipeline: &PipelineDeclaration) {
        let at = pipeline.stages().iter().position(|it| it.name() == self.stage).unwrap_or_default();
        let after: Vec<&str> = pipeline.stages().iter().skip(at + 1).map(|it| it.name()).collect();
        if !after.is_empty() {
            let what = format!(
                "stages after {}, which take the candidate as soon as it has: {}",
                self.stage,
                after.join(", ")
            );
            ready.not_restored.push(what.into());
        }
        let by_itself = pipeline.stages().get(at).and_then(|it| it.on_failure()).and_then(|it| it.result());
        ready.proved.push(match by_itself {
            Some(OnFailure::Rollback) => "CodePipeline rolls the stage back by itself when it fails".into(),
            _ => "a stage that fails stays so until it is rolled back".into(),
        });
    }

    async fn prove_write(&self, ready: &mut Readiness, permission: Permission, effect: &Effect) -> Result<()> {
        let answer = match effect {
            Effect::Stop(id) => {
                let call =
                    self.client.stop_pipeline_execution().pipeline_name(&self.pipeline).pipeline_execution_id(id);
                call.send().await.map(drop).map_err(|e| self.refused("trying out to stop an execution of", e))
            }
            Effect::RollBack(id) => {
                let call = self.client.rollback_stage().pipeline_name(&self.pipeline).stage_name(&self.stage);
                let call = call.target_pipeline_execution_id(id);
                call.send().await.map(drop).map_err(|e| self.refused("trying out a rollback in", e))
            }
            Effect::Start => return Ok(()),
        };
        match answer {
            Ok(()) => Err(Error::new(
                ErrorKind::Internal,
                format!("pipeline {} took an execution that never was; this is not CodePipeline", self.pipeline),
            )),
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::Conflict | ErrorKind::Invalid) => {
                permission.prove(ready, Ok(())).map(drop)
            }
            Err(e) => permission.prove(ready, Err::<(), _>(e)).map(drop),
        }
    }
}

/// Shaped as an execution's id, and given to none.
const NEVER: &str = "00000000-0000-4000-8000-000000000000";
