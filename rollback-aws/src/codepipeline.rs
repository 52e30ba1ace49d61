//! A stage of a CodePipeline pipeline: an execution of the candidate's sources is started and followed into the stage, and the
//! stage is rolled back to the execution that it had.
//!
//! | word | here |
//! |---|---|
//! | target | a stage, [`Stage`] |
//! | revision | what each source action takes, as `Source=` and a commit's full id; [`Stage::revision`] makes one |
//! | version | the newest execution, and what the stage has; **not checked** by CodePipeline |
//! | the nonce is written | as the `clientRequestToken` of an execution that is started, and as the reason of one that is stopped |
//! | weights | none: the stage deploys as its actions do |
//! | roll back | an execution on its way is stopped; what the stage has is replaced by `RollbackStage`, followed to its end |
//!
//! # What it needs to be allowed
//! [`ROLLOUT`]; [`Stage::policy`] prints it as a policy.
//!
//! # What is known, and from where
//! What `RollbackStage` asks for: AWS's user guide ("Configuring stage rollback") and the API's reference. CodePipeline tells
//! no client's token, so an execution of ours is known by what its source actions took, and by being newer than the look that
//! came before it. Not documented: that an overridden source shows the value that it was given.

mod preflight;
mod shape;

use std::{collections::BTreeMap, fmt, time::Duration};

use async_trait::async_trait;
use aws_sdk_codepipeline::{
    Client,
    config::{Builder as Overrides, retry::RetryConfig},
    types::{
        ActionExecutionStatus, PipelineExecutionSummary, SourceRevisionOverride, SourceRevisionType, StageState,
        TransitionState,
    },
};
use aws_smithy_runtime_api::client::{orchestrator::HttpResponse, result::SdkError};
use aws_smithy_types::error::metadata::ProvideErrorMetadata;
use rollback_core::{
    Error, ErrorKind, Result,
    backend::{Capabilities, DeploymentBackend, Readiness, Weights},
    model::{Attempt, Change, Goal, Observed, Progress, Revision, Version, Weight},
    plan::Plan,
};

use self::shape::{Effect, Run, Seen, Spec};
use crate::{
    account::Account,
    error::sorted,
    iam::{Permission, Policy},
};

/// A stage of a pipeline as a target.
///
/// An execution of the candidate's sources goes through the pipeline as any other, builds, tests and approvals included, so
/// give the plan a deadline for its shift that all of that keeps. The way back is short: only the stage runs again, with the
/// artifacts that the baseline's execution had.
///
/// ```no_run
/// # async fn example() -> rollback_core::Result<()> {
/// use rollback_aws::{account::Account, codepipeline::{Source, Stage}};
///
/// let stage = Stage::new(&Account::from_env().await?, "checkout", "Prod")?;
/// println!("{}", stage.policy());
/// let candidate = stage.revision([Source::commit("App", "4f5e6d7c8b9a0f1e2d3c4b5a69788796a5b4c3d2")])?;
/// # Ok(())
/// # }
/// ```
///
/// # What comes back, and what does not
/// The stage runs again with the artifacts and variables of the execution that it had. Stages after it are not taken back, and
/// take the candidate as soon as this stage has it: the last stage is the one to choose, or a disabled transition after it.
#[derive(Clone)]
pub struct Stage {
    client: Client,
    pipeline: String,
    stage: String,
    settle: Duration,
}

/// What a source action is to take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    action: String,
    kind: &'static str,
    value: String,
}

impl Source {
    /// This commit, of CodeCommit, GitHub and others: by its full id of 40 hexadecimal digits, or of 64 where Git names
    /// commits by SHA-256. An execution tells the full one, so by an abbreviated one it would not be known again.
    pub fn commit(action: impl Into<String>, id: impl Into<String>) -> Self {
        Self { action: action.into(), kind: COMMIT, value: id.into().to_ascii_lowercase() }
    }

    /// The image with this digest, of ECR.
    pub fn image(action: impl Into<String>, digest: impl Into<String>) -> Self {
        Self { action: action.into(), kind: "IMAGE_DIGEST", value: digest.into() }
    }

    /// This version of the object that the action reads from S3.
    pub fn object_version(action: impl Into<String>, id: impl Into<String>) -> Self {
        Self { action: action.into(), kind: "S3_OBJECT_VERSION_ID", value: id.into() }
    }
}

/// To see what the stage has.
pub const STATE: Permission = Permission::new("codepipeline:GetPipelineState", "see the stages");
/// To see which executions there are, and what they took.
pub const LIST: Permission = Permission::new("codepipeline:ListPipelineExecutions", "see the executions");
/// To see what the pipeline is made of.
pub const PIPELINE: Permission = Permission::new("codepipeline:GetPipeline", "see the pipeline");
/// To see which version of the pipeline an execution is of.
pub const EXECUTION: Permission = Permission::new("codepipeline:GetPipelineExecution", "see an execution");
/// To start the candidate's execution.
pub const START: Permission = Permission::new("codepipeline:StartPipelineExecution", "start an execution");
/// To stop the candidate's execution.
pub const STOP: Permission = Permission::new("codepipeline:StopPipelineExecution", "stop an execution");
/// To roll the stage back.
pub const ROLL_BACK: Permission = Permission::new("codepipeline:RollbackStage", "roll the stage back");

/// What a rollout of a stage calls.
pub const ROLLOUT: &[Permission] = &[STATE, LIST, PIPELINE, EXECUTION, START, STOP, ROLL_BACK];

/// The type of a source that is a commit.
const COMMIT: &str = "COMMIT_ID";
/// A signed request is taken for five minutes, and not after that
/// (<https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv.html>).
const SETTLE: Duration = Duration::from_secs(300);

impl Stage {
    /// The stage of this name in the pipeline of this name, in this account.
    ///
    /// # Errors
    /// `Invalid` when one of them can be no name.
    pub fn new(account: &Account, pipeline: &str, stage: &str) -> Result<Self> {
        Self::with_client(account.codepipeline(), pipeline, stage)
    }

    /// The same over a client of your own. Give it timeouts: one that has none can hang.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn with_client(client: Client, pipeline: &str, stage: &str) -> Result<Self> {
        check_name("pipeline", pipeline)?;
        check_name("stage", stage)?;
        Ok(Self { client, pipeline: pipeline.into(), stage: stage.into(), settle: SETTLE })
    }

    /// After so long a call that nobody answered is taken as never to land; five minutes unless told otherwise, which is how
    /// long AWS takes a signed request. With less a call that was under way for longer may undo what came after it.
    #[must_use]
    pub const fn settle(mut self, time: Duration) -> Self {
        self.settle = time;
        self
    }

    /// The revision of these sources. Name each source action of the pipeline: what is not named would be whatever is newest.
    ///
    /// # Errors
    /// `Invalid` when there are none, or two for one action, or one is empty, or a commit's id is not a full one.
    pub fn revision(&self, sources: impl IntoIterator<Item = Source>) -> Result<Revision> {
        let (mut values, mut types) = (BTreeMap::new(), BTreeMap::new());
        for Source { action, kind, value } in sources {
            check_name("source action", &action)?;
            if value.is_empty() || value.chars().any(char::is_control) {
                return Err(Error::invalid(format!(
                    "source action {action} is to take {value:?}, which is no revision"
                )));
            }
            let hex = value.bytes().all(|digit| digit.is_ascii_hexdigit());
            if kind == COMMIT && !(hex && matches!(value.len(), 40 | 64)) {
                return Err(Error::invalid(format!(
                    "source action {action} is to take commit {value:?}; the full id is accepted, 40 or 64 hexadecimal digits, \
                     as git rev-parse tells it"
                )));
            }
            types.insert(action.clone(), kind.to_owned());
            if values.insert(action.clone(), value).is_some() {
                return Err(Error::invalid(format!("source action {action} is named twice")));
            }
        }
        if values.is_empty() {
            return Err(Error::invalid("a revision of a stage needs what each source action takes; none is named"));
        }
        let (pipeline, stage) = (self.pipeline.clone(), self.stage.clone());
        Spec { pipeline, stage, sources: values, types, execution: None }.revision()
    }

    /// The least that whoever runs rollouts of this stage must be allowed.
    pub fn policy(&self) -> Policy {
        let region = self.client.config().region().map(ToString::to_string).unwrap_or_default();
        let arn = format!("arn:{}:codepipeline:{region}:*:{}", crate::account::partition(&region), self.pipeline);
        let of_stage = format!("{arn}/{}", self.stage);
        let whole: Vec<Permission> = ROLLOUT.iter().copied().filter(|it| *it != ROLL_BACK).collect();
        Policy::new().allow(&whole, [arn]).allow(&[ROLL_BACK], [of_stage])
    }

    /// What was made for this stage, and no other.
    fn spec(&self, revision: &Revision) -> Result<Spec> {
        let spec = Spec::of(revision)?;
        if (&spec.pipeline, &spec.stage) != (&self.pipeline, &self.stage) {
            let why = format!("revision {} is of stage {} in pipeline {}", revision.id, spec.stage, spec.pipeline);
            return Err(Error::invalid(why));
        }
        Ok(spec)
    }

    async fn states(&self) -> Result<Vec<StageState>> {
        let call = self.client.get_pipeline_state().name(&self.pipeline);
        let answer = call.send().await.map_err(|e| self.refused("reading the stages of", e))?;
        Ok(answer.stage_states.unwrap_or_default())
    }

    /// The hundred newest executions.
    async fn runs(&self) -> Result<Vec<Run>> {
        let call = self.client.list_pipeline_executions().pipeline_name(&self.pipeline).max_results(100);
        let answer = call.send().await.map_err(|e| self.refused("reading the executions of", e))?;
        let runs: Vec<Run> = answer.pipeline_execution_summaries().iter().map(run).collect();
        // One that rolls back took what its target took.
        let taken = |run: &Run| match &run.back_to {
            Some(to) if run.sources.is_empty() => runs.iter().find(|it| it.id == *to).map(|it| it.sources.clone()),
            _ => None,
        };
        Ok(runs
            .iter()
            .map(|it| Run { sources: taken(it).unwrap_or_else(|| it.sources.clone()), ..it.clone() })
            .collect())
    }

    async fn look(&self) -> Result<Seen> {
        // The stages first: an execution that begins in between is seen as on its way, and not missed.
        let states = self.states().await?;
        self.put_together(&states, self.runs().await?)
    }

    fn put_together(&self, states: &[StageState], runs: Vec<Run>) -> Result<Seen> {
        let ours = states.iter().find(|it| it.stage_name() == Some(&self.stage)).ok_or_else(|| {
            let known: Vec<&str> = states.iter().filter_map(StageState::stage_name).collect();
            let why = format!(
                "pipeline {} has no stage {}; it has {}",
                self.pipeline,
                self.stage,
                if known.is_empty() { "none".into() } else { known.join(", ") }
            );
            Error::new(ErrorKind::NotFound, why)
        })?;
        let latest = |it: &StageState| it.latest_execution().map(|it| it.pipeline_execution_id().to_owned());
        let closed = ours.inbound_transition_state().filter(|it| !it.enabled());
        Ok(Seen {
            latest: ours
                .latest_execution()
                .map(|it| (it.pipeline_execution_id().to_owned(), it.status().as_str().to_owned())),
            stages: states
                .iter()
                .map(|it| (it.stage_name().unwrap_or_default().into(), latest(it), said(it)))
                .collect(),
            closed: closed.map(|it| TransitionState::disabled_reason(it).unwrap_or("no reason is given").into()),
            runs,
        })
    }

    async fn ask(&self, effect: &Effect, candidate: &Spec, attempt: &Attempt) -> Result<()> {
        // A second request of these would be refused over the first, and nobody could tell that from somebody else's.
        let once = || Overrides::new().retry_config(RetryConfig::disabled());
        match effect {
            Effect::Start => {
                let source = |(action, value): (&String, &String)| {
                    let kind = candidate.types.get(action).map_or(COMMIT, String::as_str);
                    let it = SourceRevisionOverride::builder().action_name(action).revision_value(value);
                    it.revision_type(SourceRevisionType::from(kind)).build()
                };
                let sources = candidate.sources.iter().map(source).collect::<Result<Vec<_>, _>>();
                let sources = sources.map_err(|e| Error::invalid("the candidate's sources lack a part").because(e))?;
                let token = format!("rollback-{}", shape::digest(attempt.nonce.as_str()));
                let call = self.client.start_pipeline_execution().name(&self.pipeline).client_request_token(token);
                let answer = call.set_source_revisions(Some(sources)).send().await;
                answer.map(drop).map_err(|e| self.refused("starting an execution of", e))
            }
            Effect::Stop(id) => {
                let call =
                    self.client.stop_pipeline_execution().pipeline_name(&self.pipeline).pipeline_execution_id(id);
                // What an action has begun is let finish: half a deployment is worse than one that is rolled back.
                let call = call.abandon(false).reason(shape::reason(attempt));
                let answer = call.customize().config_override(once()).send().await;
                answer.map(drop).map_err(|e| self.refused("stopping an execution of", e))
            }
            Effect::RollBack(id) => {
                let call = self.client.rollback_stage().pipeline_name(&self.pipeline).stage_name(&self.stage);
                let call = call.target_pipeline_execution_id(id);
                let answer = call.customize().config_override(once()).send().await;
                answer.map(drop).map_err(|e| self.refused("rolling a stage back in", e))
            }
        }
    }

    /// CodePipeline's no, sorted.
    fn refused<E>(&self, what: &str, e: SdkError<E, HttpResponse>) -> Error
    where
        E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    {
        let code = e.as_service_error().and_then(ProvideErrorMetadata::code).unwrap_or_default().to_owned();
        let what = format!("{what} pipeline {}", self.pipeline);
        let told = sorted(&what, e);
        let (kind, why) = match code.as_str() {
            "UnableToRollbackStageException" => {
                (ErrorKind::Conflict, format!("{what}: stage {} cannot be rolled back now", self.stage))
            }
            "PipelineExecutionNotStoppableException" | "DuplicatedStopRequestException" => {
                (ErrorKind::Conflict, format!("{what}: it stops already, or is over"))
            }
            "PipelineExecutionOutdatedException" => (
                ErrorKind::Unsupported,
                format!(
                    "{what}: the pipeline's structure has changed since, and executions from before cannot be rolled back to"
                ),
            ),
            "ConcurrentPipelineExecutionsLimitExceededException" => {
                (ErrorKind::Throttled, format!("{what}: too many executions run at once"))
            }
            _ => return told,
        };
        Error::new(kind, why).because(told)
    }
}

fn run(it: &PipelineExecutionSummary) -> Run {
    let sources = it.source_revisions().iter();
    Run {
        id: it.pipeline_execution_id().unwrap_or_default().into(),
        status: it.status().map(|it| it.as_str().to_owned()).unwrap_or_default(),
        back_to: it.rollback_metadata().and_then(|it| it.rollback_target_pipeline_execution_id()).map(Into::into),
        sources: sources.filter_map(|it| Some((it.action_name().to_owned(), it.revision_id()?.to_owned()))).collect(),
        stopped: it.stop_trigger().and_then(|it| it.reason()).map(Into::into),
    }
}

/// What the actions of a stage say that failed.
fn said(stage: &StageState) -> String {
    let said = stage.action_states().iter().filter_map(|action| {
        let latest = action.latest_execution()?;
        if latest.status() != Some(&ActionExecutionStatus::Failed) {
            return None;
        }
        let error = latest.error_details();
        let why = error.and_then(|it| it.message()).or_else(|| latest.summary()).unwrap_or("no reason is given");
        Some(format!("action {} failed, {why}", action.action_name().unwrap_or_default()))
    });
    said.collect::<Vec<_>>().join("; ")
}

#[async_trait]
impl DeploymentBackend for Stage {
    fn capabilities(&self) -> Capabilities {
        Capabilities { baseline_stands: false, ..Capabilities::full() }
            .weights(Weights::ProvidersPace)
            .unchecked(self.settle)
    }

    async fn baseline(&self) -> Result<Revision> {
        let seen = self.look().await?;
        let (Some(last), Some((id, status))) = (seen.last(), &seen.latest) else {
            let why = format!("stage {} of pipeline {} has had no execution yet", self.stage, self.pipeline);
            return Err(Error::new(ErrorKind::Unsupported, why));
        };
        if status != "Succeeded" {
            let why = format!(
                "stage {} of pipeline {} is {status} with execution {id}, and has no one revision; let it succeed, or roll it \
                 back, and start again",
                self.stage, self.pipeline
            );
            return Err(Error::new(ErrorKind::Mixed, why));
        }
        if last.sources.is_empty() {
            let why = format!(
                "execution {id}, which stage {} of pipeline {} has, tells no source revisions: it is not among the hundred \
                 newest, or has none",
                self.stage, self.pipeline
            );
            return Err(Error::new(ErrorKind::Unsupported, why));
        }
        let (pipeline, stage, types) = (self.pipeline.clone(), self.stage.clone(), BTreeMap::new());
        let execution = Some(last.brings().to_owned());
        Spec { pipeline, stage, sources: last.sources, types, execution }.revision()
    }

    async fn preflight(&self, change: &Change, plan: &Plan) -> Result<Readiness> {
        self.prove(change, plan).await
    }

    async fn observe<'a>(&self, change: &Change, goal: Goal, last: Option<&'a Attempt>) -> Result<Observed> {
        let (baseline, candidate) = (self.spec(&change.baseline)?, self.spec(&change.candidate)?);
        let seen = self.look().await?;
        let (progress, _) = seen.towards(goal, change, &baseline, &candidate, last);
        let landed = last.is_some_and(|last| seen.landed(last, &baseline, &candidate));
        let look = Observed::new(progress, Version::try_from(seen.version())?).landed(landed);
        Ok(match seen.weight(&baseline, &candidate) {
            Some(weight) => look.weight(weight),
            None => look,
        })
    }

    async fn shift(&self, change: &Change, goal: Goal, attempt: &Attempt) -> Result<()> {
        if let Goal::Split(weight) = goal
            && weight != Weight::ALL
        {
            let why = format!("stage {} cannot give the candidate {weight}; it deploys as its actions do", self.stage);
            return Err(Error::new(ErrorKind::Unsupported, why));
        }
        let (baseline, candidate) = (self.spec(&change.baseline)?, self.spec(&change.candidate)?);
        // CodePipeline takes no version with a call. Looking once more leaves a late driver only the moment between this look
        // and the call.
        let seen = self.look().await?;
        if seen.landed(attempt, &baseline, &candidate) {
            return Ok(());
        }
        if seen.version() != attempt.version.as_str() {
            let why = format!("stage {} of pipeline {} has moved on", self.stage, self.pipeline);
            return Err(Error::new(ErrorKind::Conflict, why));
        }
        let (progress, effect) = seen.towards(goal, change, &baseline, &candidate, Some(attempt));
        let effect = match (progress, effect, &baseline.execution) {
            (Progress::Reached, ..) => return Ok(()),
            (_, Some(effect), _) => effect,
            // What is to be taken back is asked for over whatever stands there.
            (Progress::Drifted(_), None, Some(to)) if !goal.is_forward() => Effect::RollBack(to.clone()),
            (progress, ..) => {
                let why = format!("stage {} of pipeline {}: {progress:?}", self.stage, self.pipeline);
                return Err(Error::new(ErrorKind::Conflict, why));
            }
        };
        self.ask(&effect, &candidate, attempt).await
    }
}

impl fmt::Debug for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stage").field("pipeline", &self.pipeline).field("stage", &self.stage).finish_non_exhaustive()
    }
}

/// Names as the API takes them.
fn check_name(what: &str, name: &str) -> Result<()> {
    let fits = (1..=100).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'@' | b'-' | b'_'));
    match fits {
        true => Ok(()),
        false => Err(Error::invalid(format!(
            "{name:?} is no {what}'s name; 1 to 100 letters, digits, dots, hyphens, underscores and @ are accepted"
        ))),
    }
}
