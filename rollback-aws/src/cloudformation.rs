//! CloudFormation stacks: an update as a rollout, all at once, taken back by CloudFormation's own means.
//!
//! | word | here |
//! |---|---|
//! | target | a stack, [`Stack`] |
//! | revision | template, parameters and tags; [`Stack::revision`] makes one of an [`Update`] |
//! | version | when the stack was last updated, and its status; **not checked** by CloudFormation |
//! | the nonce is written | as the `ClientRequestToken`, which CloudFormation writes on each event of the operation |
//! | weights | none: an update moves everything, at CloudFormation's pace |
//! | roll back | while the update runs, it is cancelled; after that, an update back to the recorded template |
//!
//! # What it needs to be allowed
//! [`ROLLOUT`]; [`Stack::policy`] prints it as a policy. CloudFormation itself needs whatever the template's resources take,
//! by the stack's role or the caller's rights.
//!
//! # What is known, and from where
//! The states, in which of them a stack can be updated, cancelled and rolled back, what rollback triggers do and that tokens
//! make a request repeatable: the API's reference. Its refusals are told apart by their words, as nearly all have the code
//! `ValidationError`. Not documented: whether the events of a cancelled update carry the token of the cancelling. Where they do
//! not, an answer to it that was lost costs the settle time.

mod preflight;
mod revision;
mod shape;
mod triggers;

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use aws_sdk_cloudformation::{
    Client,
    types::{
        Capability, Parameter, ResourceStatus, RollbackConfiguration, Stack as Described, StackEvent, Tag,
        TemplateStage,
    },
};
use aws_smithy_runtime_api::client::{orchestrator::HttpResponse, result::SdkError};
use aws_smithy_types::error::metadata::ProvideErrorMetadata;
use rollback_core::{
    Error, ErrorKind, Result,
    backend::{Capabilities, DeploymentBackend, Readiness, Weights},
    model::{Attempt, Change, Goal, Note, Observed, Progress, Revision, Version, Weight},
    plan::Plan,
};

use self::shape::{Effect, Given, Look, Made, Phase, Source, Spec, Stands, Whose};
pub use self::{revision::Update, triggers::Triggers};
use crate::{
    account::Account,
    error::sorted,
    iam::{Permission, Policy},
};

/// A CloudFormation stack as a target.
///
/// One update is one rollout: it goes from nothing to all of the traffic, at CloudFormation's pace, and the plan is
/// [`Plan::all_at_once`]. Give the plan a deadline that the longest update keeps
/// ([`Deadlines::shift`](rollback_core::plan::Deadlines)).
///
/// ```no_run
/// # async fn example() -> rollback_core::Result<()> {
/// use rollback_aws::{account::Account, cloudformation::{Stack, Update}};
///
/// let stack = Stack::new(&Account::from_env().await?, "checkout")?;
/// println!("{}", stack.policy());
/// // The template that the stack has, with another image.
/// let candidate = stack.revision(&Update::same_template().parameter("Image", "checkout:v2")).await?;
/// # Ok(())
/// # }
/// ```
///
/// # What comes back, and what does not
/// Template, parameters and tags come back. A NoEcho parameter cannot be read, so no revision changes one: it keeps its value
/// on both ways. Data in resources that an update replaced or removed are lost, unless the template retains them. Rollback
/// triggers are taken off the stack by an update back: an alarm that fires would undo the way back.
///
/// # Late calls
/// CloudFormation checks no version. A call whose answer was lost is looked for by its token in the stack's events, and else
/// taken as lost for good after the [settle time](Self::settle).
#[derive(Clone)]
pub struct Stack {
    client: Client,
    name: String,
    triggers: Option<Triggers>,
    #[cfg(feature = "cloudwatch")]
    alarms: Option<crate::cloudwatch::Alarms>,
    baseline_at: Option<String>,
    settle: Duration,
    /// The digest of the template that this version of the stack has: a template may have a megabyte, and is looked at often.
    template: Arc<Mutex<Option<(String, String)>>>,
}

/// To see the stack: its status, parameters, tags and triggers.
pub const DESCRIBE: Permission = Permission::new("cloudformation:DescribeStacks", "see the stack");
/// To see whose the last operation is, and why it failed.
pub const EVENTS: Permission = Permission::new("cloudformation:DescribeStackEvents", "see the stack's events");
/// To record the template that there is a way back to.
pub const TEMPLATE: Permission = Permission::new("cloudformation:GetTemplate", "read the stack's template");
/// To have templates checked, and see what they declare.
pub const SUMMARY: Permission = Permission::new("cloudformation:GetTemplateSummary", "have templates checked");
/// To update the stack, and to update it back.
pub const UPDATE: Permission = Permission::new("cloudformation:UpdateStack", "update the stack");
/// To cancel an update that runs.
pub const CANCEL: Permission = Permission::new("cloudformation:CancelUpdateStack", "cancel an update");
/// To go on with a rollback that failed half way.
pub const CONTINUE: Permission =
    Permission::new("cloudformation:ContinueUpdateRollback", "go on with a rollback that failed");
/// To roll back an update that failed and was left so.
pub const ROLL_BACK: Permission = Permission::new("cloudformation:RollbackStack", "roll a failed update back");

/// What a rollout of a stack calls.
pub const ROLLOUT: &[Permission] = &[DESCRIBE, EVENTS, TEMPLATE, SUMMARY, UPDATE, CANCEL, CONTINUE, ROLL_BACK];

/// A signed request is taken for five minutes, and not after that
/// (<https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv.html>).
const SETTLE: Duration = Duration::from_secs(300);
/// So many pages of events are read at most to find where an operation began.
const PAGES: usize = 50;

impl Stack {
    /// The stack of this name or with this ARN, in this account.
    ///
    /// # Errors
    /// `Invalid` when it can be no stack's name, or is the ARN of another region.
    pub fn new(account: &Account, name: &str) -> Result<Self> {
        Self::with_client(account.cloudformation(), name)
    }

    /// The same over a client of your own. Give it timeouts: one that has none can hang.
    ///
    /// # Errors
    /// As [`Self::new`]; `Invalid` when the client has no region.
    pub fn with_client(client: Client, name: &str) -> Result<Self> {
        let region = client.config().region().map(ToString::to_string);
        let region = region.ok_or_else(|| Error::invalid("the CloudFormation client has no region; name one"))?;
        check_name(name, &region)?;
        Ok(Self {
            client,
            name: name.into(),
            triggers: None,
            #[cfg(feature = "cloudwatch")]
            alarms: None,
            baseline_at: None,
            settle: SETTLE,
            template: Arc::default(),
        })
    }

    /// With these rollback triggers, set by each update of the candidate. Without this those that the stack has stay.
    #[must_use]
    pub fn triggers(mut self, triggers: Triggers) -> Self {
        self.triggers = Some(triggers);
        self
    }

    /// Preflight looks at the rollback triggers here, those that are set and else those that the stack has: one that is not
    /// there makes every update fail, and one that fires undoes it. Needs
    /// [`DescribeAlarms`](crate::cloudwatch::LOOK).
    #[cfg(feature = "cloudwatch")]
    #[must_use]
    pub fn alarms(mut self, alarms: &crate::cloudwatch::Alarms) -> Self {
        self.alarms = Some(alarms.clone());
        self
    }

    /// The template that the stack has now lies at this URL in S3. Needed when it is longer than the 51,200 bytes that a
    /// request takes: without it there is no way back.
    #[must_use]
    pub fn baseline_at(mut self, url: impl Into<String>) -> Self {
        self.baseline_at = Some(url.into());
        self
    }

    /// After so long a call that nobody answered is taken as never to land; five minutes unless told otherwise, which is how
    /// long AWS takes a signed request. With less a call that was under way for longer may undo what came after it.
    #[must_use]
    pub const fn settle(mut self, time: Duration) -> Self {
        self.settle = time;
        self
    }

    /// The least that whoever runs rollouts of this stack must be allowed.
    pub fn policy(&self) -> Policy {
        let region = self.client.config().region().map(ToString::to_string).unwrap_or_default();
        let partition = crate::account::partition(&region);
        let stack = match self.name.starts_with("arn:") {
            true => self.name.clone(),
            false => format!("arn:{partition}:cloudformation:{region}:*:stack/{}/*", self.name),
        };
        let of_stack: Vec<Permission> = ROLLOUT.iter().copied().filter(|it| *it != SUMMARY).collect();
        // A template that is in no stack yet has no resource to allow it on.
        Policy::new().allow(&of_stack, [stack]).allow(&[SUMMARY], ["*"])
    }

    async fn described(&self) -> Result<Seen> {
        let call = self.client.describe_stacks().stack_name(&self.name);
        let answer = call.send().await.map_err(|e| self.refused("reading", e))?;
        let stack = answer.stacks().first().ok_or_else(|| {
            Error::new(ErrorKind::Internal, format!("the answer about stack {} has no stack in it", self.name))
        })?;
        Seen::new(&self.name, stack)
    }

    /// The template as it was given to CloudFormation.
    async fn template(&self) -> Result<String> {
        let call = self.client.get_template().stack_name(&self.name).template_stage(TemplateStage::Original);
        let answer = call.send().await.map_err(|e| self.refused("reading the template of", e))?;
        answer.template_body().map(Into::into).ok_or_else(|| {
            Error::new(ErrorKind::Internal, format!("the answer about stack {} has no template in it", self.name))
        })
    }

    async fn digest(&self, seen: &Seen) -> Result<String> {
        let known = self.template.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((_, digest)) = known.filter(|(version, _)| *version == seen.version) {
            return Ok(digest);
        }
        let digest = shape::digest(&self.template().await?);
        let mut known = self.template.lock().unwrap_or_else(PoisonError::into_inner);
        *known = Some((seen.version.clone(), digest.clone()));
        Ok(digest)
    }

    /// The last operation on the stack, from its newest event back to the one that it began with.
    async fn operation(&self, seen: &Seen) -> Result<Operation> {
        let mut operation = Operation::default();
        let mut page = None;
        for _ in 0..PAGES {
            let call = self.client.describe_stack_events().stack_name(&self.name).set_next_token(page);
            let answer = call.send().await.map_err(|e| self.refused("reading the events of", e))?;
            for event in answer.stack_events() {
                if operation.take(event, &seen.id) {
                    return Ok(operation);
                }
            }
            page = answer.next_token().map(Into::into);
            if page.is_none() {
                break;
            }
        }
        Ok(operation)
    }

    /// Everything that a look needs.
    async fn look(&self, change: &Change, last: Option<&Attempt>) -> Result<(Seen, Looked)> {
        let (baseline, candidate) = (Spec::of(&change.baseline)?, Spec::of(&change.candidate)?);
        let seen = self.described().await?;
        if seen.id != baseline.stack {
            let why = "another stack has this name by now: the one of the baseline was deleted";
            let stands = Some(Stands::Elsewhere(why.into()));
            return Ok((seen, Looked { stands, whose: Whose::Unknown, why: String::new(), landed: false }));
        }
        let phase = Phase::of(&seen.status);
        let stands = if phase.is_whole() {
            let digest = self.digest(&seen).await?;
            let made = Made { digest: &digest, parameters: &seen.parameters, tags: &seen.tags };
            Some(made.stands(&baseline, &candidate))
        } else {
            None
        };
        let (mut whose, mut why, mut landed) = (Whose::Unknown, String::new(), false);
        // Who looks without an attempt at a stack at rest learns nothing from its events.
        if last.is_some() || phase != Phase::Rest || seen.status.starts_with("UPDATE_ROLLBACK") {
            let operation = self.operation(&seen).await?;
            if operation.began {
                whose = Whose::of(&change.rollout, operation.token.as_deref());
            }
            let mine = last.map(|last| shape::token(&change.rollout, last.goal, &last.nonce));
            landed = mine.is_some_and(|mine| operation.tokens.contains(&mine));
            why = operation.why();
        }
        Ok((seen, Looked { stands, whose, why, landed }))
    }

    /// Asks for an update to what this spec says.
    async fn update(&self, seen: &Seen, to: &Revision, goal: Goal, token: String) -> Result<()> {
        let spec = Spec::of(to)?;
        let call = self.client.update_stack().stack_name(&seen.id).disable_rollback(false);
        let call = match &spec.template {
            Source::Body(body) => call.template_body(body),
            Source::Url(url) => call.template_url(url),
            Source::Nowhere(bytes) => return Err(Error::new(ErrorKind::Unsupported, self.too_long(*bytes))),
        };
        let parameters = spec.parameters.iter().filter_map(|(name, given)| {
            let parameter = Parameter::builder().parameter_key(name);
            match given {
                Given::Value(value) => Some(parameter.parameter_value(value).build()),
                Given::Kept => Some(parameter.use_previous_value(true).build()),
                Given::Default => None,
            }
        });
        let tags = spec.tags.iter().map(|(key, value)| Tag::builder().key(key).value(value).build());
        let triggers = match (goal.is_forward(), &self.triggers) {
            (true, triggers) => triggers.as_ref().map(Triggers::configuration),
            // Alarms fire because of what is taken back: they must not undo that.
            (false, _) if seen.is_watched() => Some(Triggers::new().configuration()),
            (false, _) => None,
        };
        let call = call
            .set_parameters(Some(parameters.collect()))
            .set_tags(Some(tags.collect()))
            .set_capabilities(Some(spec.capabilities.iter().map(|it| Capability::from(it.as_str())).collect()))
            .set_rollback_configuration(triggers)
            .client_request_token(token);
        match call.send().await {
            Ok(_) => Ok(()),
            Err(e) if is_known(&e) => Ok(()),
            Err(e) => Err(self.refused("updating", e)),
        }
    }

    async fn ask(&self, effect: Effect, seen: &Seen, change: &Change, goal: Goal, token: String) -> Result<()> {
        let to = if goal.is_forward() { &change.candidate } else { &change.baseline };
        let stack = &seen.id;
        let answer = match effect {
            Effect::Update => return self.update(seen, to, goal, token).await,
            Effect::Cancel => {
                let call = self.client.cancel_update_stack().stack_name(stack).client_request_token(token);
                call.send().await.map(drop).map_err(|e| (is_known(&e), self.refused("cancelling the update of", e)))
            }
            Effect::Continue => {
                let call = self.client.continue_update_rollback().stack_name(stack).client_request_token(token);
                call.send()
                    .await
                    .map(drop)
                    .map_err(|e| (is_known(&e), self.refused("going on with the rollback of", e)))
            }
            Effect::RollBack => {
                let call = self.client.rollback_stack().stack_name(stack).client_request_token(token);
                call.send().await.map(drop).map_err(|e| (is_known(&e), self.refused("rolling back", e)))
            }
        };
        match answer {
            Err((false, e)) => Err(e),
            _ => Ok(()),
        }
    }

    /// CloudFormation's no. Nearly all of it has one code, so its words decide.
    fn refused<E>(&self, what: &str, e: SdkError<E, HttpResponse>) -> Error
    where
        E: ProvideErrorMetadata + std::error::Error + Send + Sync + 'static,
    {
        let name = &self.name;
        let code = e.as_service_error().and_then(ProvideErrorMetadata::code).unwrap_or_default().to_owned();
        let words = e.as_service_error().and_then(ProvideErrorMetadata::message).unwrap_or_default().to_owned();
        let told = sorted(format_args!("{what} stack {name}"), e);
        let (kind, why) = match code.as_str() {
            "ValidationError" if words.contains("does not exist") && words.contains("tack") => {
                (ErrorKind::NotFound, format!("there is no stack {name} in this account and region"))
            }
            "ValidationError" if words.contains("No updates are to be performed") => (
                ErrorKind::Invalid,
                format!("{what} stack {name}: CloudFormation sees nothing in it that a resource would change by"),
            ),
            "ValidationError"
                if ["can not be", "cannot be called from", "can not continue"].iter().any(|it| words.contains(it)) =>
            {
                (ErrorKind::Conflict, format!("{what} stack {name}: its state does not allow it now"))
            }
            _ => return told,
        };
        Error::new(kind, why).because(told)
    }

    fn too_long(&self, bytes: usize) -> String {
        format!(
            "the template of stack {} has {bytes} bytes, and a request takes {}; put it into S3 and say where it lies with \
             Stack::baseline_at",
            self.name,
            shape::MAX_BODY
        )
    }
}

/// Whether an error says that a request with this token was carried out before: then it landed, as no two attempts share one.
fn is_known<E: ProvideErrorMetadata>(e: &SdkError<E, HttpResponse>) -> bool {
    e.as_service_error().and_then(ProvideErrorMetadata::code) == Some("TokenAlreadyExistsException")
}

/// What `DescribeStacks` told.
struct Seen {
    id: String,
    status: String,
    reason: String,
    version: String,
    parameters: BTreeMap<String, String>,
    tags: BTreeMap<String, String>,
    capabilities: Vec<String>,
    /// The ARNs of the rollback triggers.
    triggers: Vec<String>,
    monitoring: i32,
    root: Option<String>,
    drift: Option<String>,
}

impl Seen {
    fn new(name: &str, stack: &Described) -> Result<Self> {
        let lacking =
            || Error::new(ErrorKind::Internal, format!("the answer about stack {name} lacks its id or status"));
        let (id, status) = (stack.stack_id().ok_or_else(lacking)?, stack.stack_status().ok_or_else(lacking)?);
        let at = stack.last_updated_time().or_else(|| stack.creation_time()).ok_or_else(lacking)?;
        let watched = stack.rollback_configuration();
        let text = |text: Option<&str>| text.unwrap_or_default().to_owned();
        Ok(Self {
            id: id.into(),
            status: status.as_str().into(),
            reason: text(stack.stack_status_reason()),
            version: format!("{}.{:03} {status}", at.secs(), at.subsec_nanos() / 1_000_000),
            parameters: stack
                .parameters()
                .iter()
                .map(|it| (text(it.parameter_key()), text(it.parameter_value())))
                .collect(),
            tags: stack.tags().iter().map(|it| (text(it.key()), text(it.value()))).collect(),
            capabilities: stack.capabilities().iter().map(|it| it.as_str().to_owned()).collect(),
            triggers: watched
                .map_or(&[][..], RollbackConfiguration::rollback_triggers)
                .iter()
                .filter_map(|it| it.arn().map(Into::into))
                .collect(),
            monitoring: watched.and_then(RollbackConfiguration::monitoring_time_in_minutes).unwrap_or_default(),
            root: stack.root_id().or_else(|| stack.parent_id()).map(Into::into),
            drift: stack
                .drift_information()
                .and_then(|it| it.stack_drift_status())
                .map(|status| status.as_str().to_owned()),
        })
    }

    /// Whether an update of it may be undone by an alarm, or waits after its last resource.
    const fn is_watched(&self) -> bool {
        !self.triggers.is_empty() || self.monitoring > 0
    }
}

/// What else a look found.
struct Looked {
    stands: Option<Stands>,
    whose: Whose,
    why: String,
    landed: bool,
}

impl Looked {
    fn with<'a>(&'a self, seen: &'a Seen) -> Look<'a> {
        Look { status: &seen.status, stands: self.stands.as_ref(), whose: &self.whose, why: &self.why }
    }
}

/// The last operation on a stack, as its events tell it.
#[derive(Default)]
struct Operation {
    /// Whether the event that it began with was found.
    began: bool,
    /// Of that event.
    token: Option<String>,
    /// Of all its events: a rollback that was asked for has another one than the update that it undoes.
    tokens: Vec<String>,
    /// What failed, the newest first.
    failures: Vec<String>,
}

impl Operation {
    /// Takes the next older event. True when it is the one that the operation began with.
    fn take(&mut self, event: &StackEvent, stack: &str) -> bool {
        if let Some(token) = event.client_request_token().filter(|it| !self.tokens.iter().any(|known| known == it)) {
            self.tokens.push(token.into());
        }
        let status = event.resource_status().map(ResourceStatus::as_str).unwrap_or_default();
        let reason = event.resource_status_reason().unwrap_or_default();
        let of_stack = event.physical_resource_id() == Some(stack);
        if of_stack && matches!(status, "UPDATE_IN_PROGRESS" | "CREATE_IN_PROGRESS" | "IMPORT_IN_PROGRESS") {
            self.began = true;
            self.token = event.client_request_token().map(Into::into);
            return true;
        }
        // What stops because something else failed, or somebody cancelled, explains nothing.
        let failed = status.ends_with("_FAILED") && !reason.contains("ancelled") && !of_stack;
        let undone =
            of_stack && status == "UPDATE_ROLLBACK_IN_PROGRESS" && !reason.starts_with("The following resource");
        if failed && !reason.is_empty() {
            let resource = event.logical_resource_id().unwrap_or("a resource");
            let kind = event.resource_type().unwrap_or("unknown");
            self.failures.push(format!("{resource} ({kind}) {status}: {reason}"));
        } else if undone && !reason.is_empty() && reason != "User Initiated" {
            self.failures.push(reason.into());
        }
        false
    }

    /// What failed first, and then.
    fn why(&self) -> String {
        self.failures.iter().rev().map(String::as_str).collect::<Vec<_>>().join("; ")
    }
}

#[async_trait]
impl DeploymentBackend for Stack {
    fn capabilities(&self) -> Capabilities {
        Capabilities { baseline_stands: false, ..Capabilities::full() }
            .weights(Weights::ProvidersPace)
            .unchecked(self.settle)
    }

    async fn baseline(&self) -> Result<Revision> {
        self.read().await
    }

    async fn preflight(&self, change: &Change, plan: &Plan) -> Result<Readiness> {
        self.prove(change, plan).await
    }

    async fn observe<'a>(&self, change: &Change, goal: Goal, last: Option<&'a Attempt>) -> Result<Observed> {
        let (seen, looked) = self.look(change, last).await?;
        let look = looked.with(&seen);
        let progress = look.towards(goal, change);
        let mut not_restored = Vec::new();
        if goal == Goal::Baseline && progress == Progress::Reached {
            let had = Spec::of(&change.baseline)?.triggers;
            if had > 0 && seen.triggers.is_empty() {
                not_restored.push(Note::new(format!(
                    "the {had} rollback triggers of stack {}, which were taken off so that they do not undo the way back; \
                     the next update can set them",
                    self.name
                )));
            }
        }
        let weight = look.weight();
        let observed = Observed::new(progress, Version::try_from(seen.version)?).landed(looked.landed);
        let observed = observed.not_restored(not_restored);
        Ok(match weight {
            Some(weight) => observed.weight(weight),
            None => observed,
        })
    }

    async fn shift(&self, change: &Change, goal: Goal, attempt: &Attempt) -> Result<()> {
        if let Goal::Split(weight) = goal
            && weight != Weight::ALL
        {
            let why = format!("stack {} cannot give the candidate {weight}; an update moves everything", self.name);
            return Err(Error::new(ErrorKind::Unsupported, why));
        }
        // CloudFormation takes no version with a call. Looking once more leaves a late driver only the moment between this
        // look and the call.
        let (seen, looked) = self.look(change, Some(attempt)).await?;
        if looked.landed {
            return Ok(());
        }
        if seen.version != attempt.version.as_str() {
            let why = format!("stack {} has moved on: it is {}", self.name, seen.status);
            return Err(Error::new(ErrorKind::Conflict, why));
        }
        let Some(effect) = looked.with(&seen).effect(goal) else { return Ok(()) };
        self.ask(effect, &seen, change, goal, shape::token(&change.rollout, goal, &attempt.nonce)).await
    }
}

impl fmt::Debug for Stack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stack").field("name", &self.name).field("triggers", &self.triggers).finish_non_exhaustive()
    }
}

/// A stack's name, or its ARN in this region.
fn check_name(name: &str, region: &str) -> Result<()> {
    let words: Vec<&str> = name.splitn(6, ':').collect();
    if let ["arn", _, "cloudformation", of, _, stack] = words[..] {
        return match of == region && stack.starts_with("stack/") {
            true => Ok(()),
            false => Err(Error::invalid(format!("{name} is no stack in {region}, where this client is"))),
        };
    }
    let fits = name.starts_with(|c: char| c.is_ascii_alphabetic())
        && name.len() <= 128
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    match fits {
        true => Ok(()),
        false => Err(Error::invalid(format!(
            "{name:?} is no stack's name; a letter, then letters, digits and hyphens, 128 in all, or an ARN is accepted"
        ))),
    }
}
