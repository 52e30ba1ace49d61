//! ECS services that ECS itself deploys: rolling, blue/green, canary and linear.
//!
//! | word | here |
//! |---|---|
//! | target | a service, [`Service`] |
//! | revision | a revision of a task definition, `checkout:42`; [`Service::register`] makes one with another image |
//! | version | the service deployment and the pause hook that waits, else its status |
//! | weights | the steps of the service's own strategy where it waits for us ([`Shape::paused`]), else ECS's pace |
//! | roll back | answer the hook with ROLLBACK, else stop the deployment with a rollback, else deploy the baseline again |
//!
//! # What it needs to be allowed
//! [`ROLLOUT`] for rollouts, [`SET`] and [`REGISTER`] for what they are for; [`Service::policy`] prints them as a policy.
//! Preflight proves each of `ROLLOUT`.
//!
//! # Versions
//! ECS checks none: whoever may update the service may do so at any time, and the last one wins. A pause hook has an id
//! that is good for one answer, and a stop names the deployment that it stops; so a late answer or a late stop changes
//! nothing, and both are sent again until somebody answers. A late *update* begins a deployment that nobody asked for any more; where the service waits for us
//! ([`Shape::paused`]) it gets no traffic, as nobody answers its first hook, and ECS takes it back when the hook times out.
//!
//! # What is known, and from where
//! States, stages, hooks and what a stop does: ECS's developer guide (service deployments, pause hooks, stopping) and API
//! reference. Whether `currentServiceDeployment` stays when a deployment has ended is not documented; without it the list of
//! service deployments is read.

pub(crate) mod definition;
mod look;
mod name;
mod preflight;
mod register;
mod settings;
mod shape;
mod tasks;

use std::{collections::BTreeMap, fmt, time::Duration};

use async_trait::async_trait;
use aws_sdk_ecs::{
    Client,
    config::{Builder as Overrides, retry::RetryConfig},
    operation::list_service_deployments::ListServiceDeploymentsOutput,
    types::{
        DeploymentControllerType as Controller, DeploymentLifecycleHookAction as Action, Service as Described,
        StopServiceDeploymentStopType as Stop,
    },
};
use rollback_core::{
    Error, ErrorKind, Result,
    backend::{Capabilities, DeploymentBackend, Readiness},
    model::{Attempt, Change, Goal, Note, Observed, Progress, Revision},
    plan::Plan,
    state::Versions,
};
use tokio::time::{Instant, sleep};

use self::{
    look::{At, Current, Judged, Place, Seen},
    name::{Name, short, task_definition},
};
pub use self::{settings::Settings, shape::Shape};
use crate::{
    account::Account,
    error::sorted,
    iam::{Permission, Policy},
};

/// An ECS service as a target.
///
/// Its revisions are those of task definitions: `Revision::new("checkout:42")`. How ECS deploys the service stays the
/// service's own business: its [`Shape`] is told here, and preflight refuses where it is another by now.
///
/// ```no_run
/// # async fn example() -> rollback_core::Result<()> {
/// use rollback_aws::{account::Account, ecs::{Service, Shape}};
///
/// let account = Account::from_env().await?;
/// let shop = Service::new(&account, "shop/checkout", Shape::canary(10)?.paused())?;
/// println!("{}", shop.policy());
/// let candidate = shop.register("app", "registry.example/checkout:1.4.2").await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Service {
    client: Client,
    name: Name,
    shape: Shape,
    settle: Duration,
    settings: Option<Settings>,
    #[cfg(feature = "cloudwatch")]
    alarms: Option<crate::cloudwatch::Alarms>,
    #[cfg(feature = "ecr")]
    images: Option<crate::ecr::Images>,
}

/// To see the service.
pub const GET_SERVICE: Permission = Permission::new("ecs:DescribeServices", "see the service");
/// To see its deployments.
pub const GET_DEPLOYMENT: Permission = Permission::new("ecs:DescribeServiceDeployments", "see its deployments");
/// To find its deployments where the service does not name the current one.
pub const LIST_DEPLOYMENTS: Permission = Permission::new("ecs:ListServiceDeployments", "list its deployments");
/// To see what they deploy.
pub const GET_REVISION: Permission = Permission::new("ecs:DescribeServiceRevisions", "see what they deploy");
/// To read task definitions.
pub const GET_TASK_DEFINITION: Permission = Permission::new("ecs:DescribeTaskDefinition", "read task definitions");
/// To find the service's tasks.
pub const LIST_TASKS: Permission = Permission::new("ecs:ListTasks", "list the tasks");
/// To see what each task runs, and why it stopped.
pub const GET_TASKS: Permission = Permission::new("ecs:DescribeTasks", "see what the tasks run, and why they stop");
/// To deploy.
pub const UPDATE: Permission = Permission::new("ecs:UpdateService", "deploy");
/// To answer a pause hook.
pub const CONTINUE: Permission = Permission::new("ecs:ContinueServiceDeployment", "let a deployment go on, or back");
/// To stop a deployment with a rollback.
pub const STOP: Permission = Permission::new("ecs:StopServiceDeployment", "stop a deployment with a rollback");

/// What a rollout of a service calls.
pub const ROLLOUT: &[Permission] = &[
    GET_SERVICE,
    GET_DEPLOYMENT,
    LIST_DEPLOYMENTS,
    GET_REVISION,
    GET_TASK_DEFINITION,
    LIST_TASKS,
    GET_TASKS,
    UPDATE,
    CONTINUE,
    STOP,
];

/// What [`Service::set`] calls.
pub const SET: &[Permission] = &[GET_SERVICE, UPDATE];

/// To register a revision with the tags of the one before: asked for beside the registering when there are any.
pub const TAG: Permission = Permission::new("ecs:TagResource", "give a task definition its tags");

/// What [`Service::register`] calls; a task's roles must be passed as well (`iam:PassRole`).
pub const REGISTER: &[Permission] = &[
    GET_SERVICE,
    GET_TASK_DEFINITION,
    Permission::new("ecs:RegisterTaskDefinition", "register a revision of the task definition"),
    TAG,
];

/// A signed request is taken for five minutes, and not after that
/// (<https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv.html>).
const SETTLE: Duration = Duration::from_secs(300);
/// Between one try that nobody answered and the next.
const AGAIN: Duration = Duration::from_secs(2);

impl Service {
    /// The service `cluster/service`, as `shop/checkout`, or its ARN, which ECS deploys in this shape.
    ///
    /// # Errors
    /// `Invalid` when it names no service, or one of another region or partition than the account's.
    pub fn new(account: &Account, name: &str, shape: Shape) -> Result<Self> {
        Self::with_client(account.ecs(), name, shape)
    }

    /// The same over a client of your own. Give it timeouts: one that has none can hang.
    ///
    /// # Errors
    /// As [`Self::new`]; `Invalid` when the client has no region.
    pub fn with_client(client: Client, name: &str, shape: Shape) -> Result<Self> {
        let region = client.config().region().map(ToString::to_string);
        let region = region.ok_or_else(|| Error::invalid("the ECS client has no region; name one"))?;
        Ok(Self {
            name: Name::parse(name, &region)?,
            client,
            shape,
            settle: SETTLE,
            settings: None,
            #[cfg(feature = "cloudwatch")]
            alarms: None,
            #[cfg(feature = "ecr")]
            images: None,
        })
    }

    /// The service in the shape that it has now: one call. A tool that must start while ECS cannot be asked, to finish a
    /// rollback, keeps the shape and uses [`Self::new`].
    ///
    /// # Errors
    /// As [`Self::new`]; `NotFound` when there is no such service; `Unsupported` when somebody else deploys it.
    pub async fn open(account: &Account, name: &str) -> Result<Self> {
        let mut service = Self::new(account, name, Shape::rolling())?;
        service.shape = service.present_shape().await?;
        Ok(service)
    }

    /// The shape in which ECS deploys the service now.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub async fn present_shape(&self) -> Result<Shape> {
        let service = self.described().await?;
        self.refuse_others(&service)?;
        Ok(Shape::of(service.deployment_configuration()))
    }

    /// Preflight refuses unless the service is set so; [`Self::set`] sets it.
    #[must_use]
    pub fn settings(mut self, settings: Settings) -> Self {
        self.settings = Some(settings);
        self
    }

    /// Preflight looks at the service's deployment alarms here: ECS listens to none of them for the whole of a deployment
    /// that begins while one fires.
    #[cfg(feature = "cloudwatch")]
    #[must_use]
    pub fn alarms(mut self, alarms: &crate::cloudwatch::Alarms) -> Self {
        self.alarms = Some(alarms.clone());
        self
    }

    /// Preflight looks here for the images of baseline and candidate: a rollback to an image that was deleted cannot pull.
    /// Needs [`GET_IMAGES`](crate::ecr::GET_IMAGES); what may not be looked at is listed as not provable.
    #[cfg(feature = "ecr")]
    #[must_use]
    pub fn images(mut self, images: &crate::ecr::Images) -> Self {
        self.images = Some(images.clone());
        self
    }

    /// After this time an unanswered update is taken as never to land; five minutes unless told otherwise, which is how long
    /// AWS takes a signed request. With less an update that was under way for longer may undo what came after it.
    ///
    /// An answer to a hook and a stop name what they are for. On the way back they do not wait for it, and are sent again until
    /// they are heard.
    #[must_use]
    pub const fn settle(mut self, time: Duration) -> Self {
        self.settle = time;
        self
    }

    /// `cluster/service`.
    pub fn name(&self) -> String {
        self.name.to_string()
    }

    /// The shape that it was told.
    pub const fn shape(&self) -> Shape {
        self.shape
    }

    /// A revision by the name or the ARN of a task definition's revision, as `checkout:42`.
    ///
    /// # Errors
    /// `Invalid` when it names none: a family alone is whatever was registered last.
    pub fn revision(named: &str) -> Result<Revision> {
        let revision = Revision::new(named)?;
        Revision::new(task_definition(&revision.id)?)
    }

    /// The least that whoever runs rollouts of this service must be allowed.
    pub fn policy(&self) -> Policy {
        self.allowing(ROLLOUT)
    }

    /// The least that [`set`](Self::set) needs.
    pub fn settings_policy(&self) -> Policy {
        self.allowing(SET)
    }

    /// The least that [`register`](Self::register) needs, but for `iam:PassRole` on the task's own roles.
    pub fn registering_policy(&self) -> Policy {
        self.allowing(REGISTER)
    }

    /// Permissions on this service; task definitions are not part of it, and lists of tasks are of no resource.
    fn allowing(&self, permissions: &[Permission]) -> Policy {
        let (anywhere, here): (Vec<Permission>, Vec<Permission>) = permissions
            .iter()
            .filter(|it| **it != TAG)
            .partition(|it| it.action.ends_with("TaskDefinition") || **it == LIST_TASKS);
        let mut policy = Policy::new().allow(&here, self.name.resources());
        if !anywhere.is_empty() {
            policy = policy.allow(&anywhere, ["*"]);
        }
        if permissions.contains(&TAG) {
            policy = policy.allow(&[TAG], [self.name.task_definitions()]);
        }
        policy
    }

    async fn described(&self) -> Result<Described> {
        let Name { cluster, service, .. } = &self.name;
        let call = self.client.describe_services().cluster(cluster).services(service);
        let answer = call.send().await.map_err(|e| sorted(format_args!("reading service {}", self.name), e))?;
        let found = answer.services.unwrap_or_default().into_iter().next();
        let found = found.filter(|it| it.status() != Some("INACTIVE"));
        found.ok_or_else(|| {
            let why =
                format!("cluster {cluster} has no service {service}; create it first, with a revision that serves");
            Error::new(ErrorKind::NotFound, why)
        })
    }

    /// A service that ECS does not deploy itself is no target here.
    fn refuse_others(&self, service: &Described) -> Result<()> {
        let name = &self.name;
        let kind = service.deployment_controller().map(|it| it.r#type());
        let instead = match kind {
            None | Some(Controller::Ecs) => return Ok(()),
            Some(Controller::CodeDeploy) => {
                "CodeDeploy deploys it, and ECS refuses to; use its deployment group as the target instead"
            }
            _ => {
                "its task sets are moved by a tool of somebody's own; that tool has to roll it back, or give the service \
                 the deployment controller ECS"
            }
        };
        let kind = kind.map(Controller::as_str).unwrap_or_default();
        let why = format!("service {name} has the deployment controller {kind}: {instead}");
        Err(Error::new(ErrorKind::Unsupported, why))
    }

    async fn seen(&self) -> Result<Seen> {
        let service = self.described().await?;
        let current = match self.current_arn(&service).await? {
            Some(arn) => self.current(&arn).await?,
            None => None,
        };
        Ok(Seen { told: look::told(&service), service, current })
    }

    /// The service deployment that is on its way, or was the last.
    async fn current_arn(&self, service: &Described) -> Result<Option<String>> {
        if let Some(arn) = service.current_service_deployment() {
            return Ok(Some(arn.to_owned()));
        }
        let (mut newest, mut next) = (None, None);
        loop {
            let page = self.listed_deployments(next).await?;
            // In which order they come is not documented.
            let found = page.service_deployments.unwrap_or_default().into_iter();
            newest = found.chain(newest).max_by_key(|it| it.created_at().map(|at| (at.secs(), at.subsec_nanos())));
            next = page.next_token.filter(|token| !token.is_empty());
            if next.is_none() {
                return Ok(newest.and_then(|it| it.service_deployment_arn));
            }
        }
    }

    async fn listed_deployments(&self, from: Option<String>) -> Result<ListServiceDeploymentsOutput> {
        let call = self.client.list_service_deployments().cluster(&self.name.cluster).service(&self.name.service);
        let answer = call.set_next_token(from).send().await;
        answer.map_err(|e| sorted(format_args!("listing deployments of service {}", self.name), e))
    }

    async fn current(&self, arn: &str) -> Result<Option<Current>> {
        let call = self.client.describe_service_deployments().service_deployment_arns(arn);
        let what = format!("reading the deployment of service {}", self.name);
        let answer = call.send().await.map_err(|e| sorted(&what, e))?;
        let Some(said) = answer.service_deployments().first() else { return Ok(None) };
        let target = said.target_service_revision().and_then(|it| it.arn());
        let back = said.rollback().and_then(|it| it.service_revision_arn());
        let mut wanted: Vec<String> = target.into_iter().chain(back).map(Into::into).collect();
        wanted.dedup();
        let known = if wanted.is_empty() { BTreeMap::new() } else { self.deployed_by(wanted).await? };
        let of = |arn: Option<&str>| arn.and_then(|arn| known.get(arn)).cloned();
        Ok(Some(Current::new(said, of(target).unwrap_or_default(), of(back))))
    }

    /// `family:revision` by the service revision that has it. ECS does not tell those from before October 2024.
    async fn deployed_by(&self, revisions: Vec<String>) -> Result<BTreeMap<String, String>> {
        let call = self.client.describe_service_revisions().set_service_revision_arns(Some(revisions));
        let what = format!("reading the revisions of service {}", self.name);
        let answer = call.send().await.map_err(|e| sorted(&what, e))?;
        let named = answer
            .service_revisions()
            .iter()
            .filter_map(|it| Some((it.service_revision_arn()?.to_owned(), short(it.task_definition()?).to_owned())));
        Ok(named.collect())
    }

    async fn deploy(&self, to: &str, forced: bool) -> Result<()> {
        let Name { cluster, service, .. } = &self.name;
        let call = self.client.update_service().cluster(cluster).service(service).task_definition(to);
        let call = if forced { call.force_new_deployment(true) } else { call };
        let answer = call.customize().config_override(once()).send().await;
        answer.map(drop).map_err(|e| sorted(format_args!("deploying {to} to service {}", self.name), e))
    }

    async fn answer_hook(&self, deployment: &str, hook: &str, action: Action) -> Result<()> {
        let what = format!("answering the pause of service {} with {action}", self.name);
        let call = self.client.continue_service_deployment().service_deployment_arn(deployment).hook_id(hook);
        // Repeated by the SDK when its answer is lost: a hook takes one answer, whoever sends it.
        match call.action(action).send().await {
            Ok(_) => Ok(()),
            Err(e) => {
                // Which of them says that the hook waits no longer is not documented; neither changes anything.
                let spent = e.as_service_error().is_some_and(|e| {
                    e.is_invalid_parameter_exception()
                        || e.is_client_exception()
                        || e.is_service_deployment_not_found_exception()
                });
                let e = sorted(&what, e);
                if spent { Err(self.moved_on().because(e)) } else { Err(e) }
            }
        }
    }

    async fn stop(&self, deployment: &str) -> Result<()> {
        let what = format!("stopping the deployment of service {}", self.name);
        let call = self.client.stop_service_deployment().service_deployment_arn(deployment).stop_type(Stop::Rollback);
        match call.send().await {
            Ok(_) => Ok(()),
            Err(e) => {
                let over = e.as_service_error().is_some_and(|e| e.is_conflict_exception());
                let e = sorted(&what, e);
                if over { Err(self.moved_on().because(e)) } else { Err(e) }
            }
        }
    }

    fn moved_on(&self) -> Error {
        Error::new(ErrorKind::Conflict, format!("service {} has moved on since it was looked at", self.name))
    }

    /// Deploys, if the service is where the attempt saw it. ECS checks no versions, so a look comes first, and what takes
    /// longer than a quarter of the settle time is not sent at all: half of it is left for the request to land.
    async fn deploy_from(&self, attempt: &Attempt, to: &str) -> Result<()> {
        let until = Instant::now() + self.settle / 4;
        let seen = self.seen().await?;
        let at = seen.at();
        if at.version()? != attempt.version {
            return Err(self.moved_on());
        }
        if Instant::now() > until {
            let why = format!("looking at service {} took too long to deploy {to} after it; look again", self.name);
            return Err(Error::new(ErrorKind::Throttled, why));
        }
        // Told the same again ECS does nothing, unless it must.
        let done = matches!(seen.place(), Place::Rest(it) if it == to);
        if done { Ok(()) } else { self.deploy(to, seen.told == to).await }
    }

    /// One more effect towards the candidate, if a look finds the service where the attempt saw it.
    async fn forward(&self, change: &Change, goal: Goal, attempt: &Attempt) -> Result<()> {
        let (baseline, candidate) = (task_definition(&change.baseline.id)?, task_definition(&change.candidate.id)?);
        let until = Instant::now() + self.settle / 4;
        let seen = self.seen().await?;
        let at = seen.at();
        if at.version()? != attempt.version {
            return Err(self.moved_on());
        }
        let Judged::Progress(Progress::Due(_)) = seen.judge(baseline, candidate, goal, None) else { return Ok(()) };
        if Instant::now() > until {
            let why = format!("looking at service {} took too long to act on it; look again", self.name);
            return Err(Error::new(ErrorKind::Throttled, why));
        }
        match at.hook() {
            Some(hook) => self.answer_hook(&at.arn, hook, Action::Continue).await,
            None => self.deploy(candidate, seen.told == candidate).await,
        }
    }

    /// Sends again what names the one thing that it is for, and so can be sent twice, while nobody answers: users meet the
    /// candidate until it is heard. What is not heard in half of the settle time is left to the next look, which may find
    /// that it is not due any more.
    async fn until_heard<F: Future<Output = Result<()>>>(&self, send: impl Fn() -> F) -> Result<()> {
        let until = Instant::now() + self.settle / 2;
        loop {
            match send().await {
                Err(e) if e.kind() == ErrorKind::Unavailable && Instant::now() + AGAIN < until => sleep(AGAIN).await,
                answer => return answer,
            }
        }
    }

    /// One more effect towards the baseline. Traffic first: an answer to a hook and a stop name what they are for, so they
    /// need no look before.
    async fn back(&self, change: &Change, attempt: &Attempt) -> Result<()> {
        let (baseline, candidate) = (task_definition(&change.baseline.id)?, task_definition(&change.candidate.id)?);
        let at = At::read(&attempt.version).ok_or_else(|| {
            Error::invalid(format!("{:?} is no version of service {}", attempt.version.as_str(), self.name))
        })?;
        match at.hook() {
            Some(hook) if at.target == candidate => {
                self.until_heard(|| self.answer_hook(&at.arn, hook, Action::Rollback)).await
            }
            Some(hook) if at.target == baseline => {
                self.until_heard(|| self.answer_hook(&at.arn, hook, Action::Continue)).await
            }
            None if at.goes_towards(candidate) => self.until_heard(|| self.stop(&at.arn)).await,
            _ if at.is_at_rest() || at.target != candidate && at.target != baseline => {
                self.deploy_from(attempt, baseline).await
            }
            // It is going there already.
            _ => Ok(()),
        }
    }
}

#[async_trait]
impl DeploymentBackend for Service {
    fn capabilities(&self) -> Capabilities {
        let paused = self.shape.is_paused();
        Capabilities {
            weights: self.shape.weights(),
            versions: Versions::Unchecked { settle: self.settle },
            baseline_stands: paused,
            can_hold: paused,
        }
    }

    async fn baseline(&self) -> Result<Revision> {
        let seen = self.seen().await?;
        self.refuse_others(&seen.service)?;
        let serves = look::serves(&seen, &self.name)?;
        let runs = self.runs().await?;
        if let Some(others) = runs.besides(serves) {
            let why = format!("service {} is at {serves}, and yet {others}", self.name);
            return Err(Error::new(ErrorKind::Mixed, why));
        }
        Revision::new(serves)
    }

    async fn preflight(&self, change: &Change, plan: &Plan) -> Result<Readiness> {
        self.prove(change, plan).await
    }

    async fn observe<'a>(&self, change: &Change, goal: Goal, last: Option<&'a Attempt>) -> Result<Observed> {
        let (baseline, candidate) = (task_definition(&change.baseline.id)?, task_definition(&change.candidate.id)?);
        let seen = self.seen().await?;
        let mut parts = Vec::new();
        let progress = match seen.judge(baseline, candidate, goal, last) {
            Judged::Progress(Progress::Underway(what)) => {
                Progress::Underway(self.with_reasons(&seen, candidate, what).await)
            }
            Judged::Progress(progress) => progress,
            Judged::Failed(why) => Progress::Failed(self.with_reasons_of(candidate, why).await),
            Judged::Done => {
                let wanted = if goal.is_forward() { candidate } else { baseline };
                let runs = self.runs().await?;
                parts = runs.parts(baseline, candidate);
                match runs.short_of(wanted, seen.service.desired_count()) {
                    Some(what) => Progress::Underway(Note::new(what)),
                    None => Progress::Reached,
                }
            }
        };
        let landed = last.is_some_and(|last| seen.has_landed(baseline, candidate, last));
        let at = seen.at();
        let look = Observed::new(progress, at.version()?).parts(parts).landed(landed);
        // It names its hook, or its deployment.
        let look = look.repeatable(at.hook().is_some() || at.goes_towards(candidate));
        Ok(match seen.weight(baseline, candidate) {
            Some(weight) => look.weight(weight),
            None => look,
        })
    }

    async fn shift(&self, change: &Change, goal: Goal, attempt: &Attempt) -> Result<()> {
        match goal {
            Goal::Split(weight) if !self.shape.gives(weight) => {
                let why = format!("service {} cannot give {weight}; {} is possible", self.name, self.shape.weights());
                Err(Error::new(ErrorKind::Unsupported, why))
            }
            Goal::Baseline => self.back(change, attempt).await,
            _ => self.forward(change, goal, attempt).await,
        }
    }
}

impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Service").field("name", &self.name).field("shape", &self.shape).finish_non_exhaustive()
    }
}

/// An update is not repeated by the SDK: a second request could land long after the first was given up. The engine looks, and repeats
/// what is still due.
fn once() -> Overrides {
    Overrides::new().retry_config(RetryConfig::disabled())
}
