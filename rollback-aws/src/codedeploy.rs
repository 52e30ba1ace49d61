//! CodeDeploy's deployment groups: EC2 and on-premises in place and blue/green, ECS blue/green, Lambda.
//!
//! CodeDeploy moves the traffic, by its own configuration and at its own pace; we watch, ask the gates, and take it back.
//!
//! | word | here |
//! |---|---|
//! | target | a deployment group, [`Group`] |
//! | revision | a bundle in S3 or GitHub, or the text of an AppSpec: [`Artefact`] |
//! | version | the id of the group's newest deployment, and whether it is over; CodeDeploy checks none, so a settle time is waited |
//! | weights | 100 %, at CodeDeploy's pace; 0 % too in a group that waits before the traffic ([`Group::waits_for_approval`]) |
//! | roll back | stop with rollback while the deployment runs, else deploy the recorded revision again |
//!
//! # A rollback is a deployment
//! CodeDeploy rolls back by a *new* deployment, with an id of its own, whether we stopped the old one, one of its alarms did,
//! or it failed. Neither `Stopped` nor an accepted call is an arrival: the new id is followed until it is over, and then every
//! target is looked at. A deployment that has `Succeeded` with one instance of nine left behind is mixed, and names it.
//!
//! Our own way back, where the deployment is over already, is a deployment without the group's alarms and without automatic
//! rollback: the candidate is why the alarms fire, and CodeDeploy would stop the baseline because of them and deploy the
//! candidate again.
//!
//! # The bake
//! An ECS or EC2 blue/green deployment has all traffic on the new side while its termination wait runs. That is when a bake
//! costs nothing to take back: make the wait ([`Settings::terminate_after`]) longer than the bake. At the promotion the wait
//! is ended. Give in-place groups and Lambda their bake after the deployment; the way back is then a deployment.
//!
//! # What is known, and from where
//! From recordings of real runs (`josefloressv/aws-devops-engineer` bd7c90a): an ECS deployment is `InProgress` until its
//! wait is over, a rollback has an id of its own, is all at once and deaf to alarms, an alarm makes a deployment `Stopped`
//! within half a minute. From the API reference: no token makes `CreateDeployment` idempotent, so each of ours says in its
//! description whose it is, and the group's deployments are looked at after an answer was lost. Not documented, and treated
//! with care: whether a Lambda AppSpec whose `CurrentVersion` is not the alias's is taken (where it is JSON, it is set to what
//! the alias is at by then), and how long a rollback takes to appear ([`Group::rollback_within`]).

mod deployment;
mod hook;
mod judge;
mod poller;
mod preflight;
mod revision;
mod settings;
mod shelf;

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use aws_sdk_codedeploy::{
    Client,
    config::{Builder as Overrides, retry::RetryConfig},
    primitives::DateTime,
    types::{AlarmConfiguration, AutoRollbackConfiguration, DeploymentGroupInfo, FileExistsBehavior, TimeRange},
};
use jiff::Timestamp;
use rollback_core::{
    Error, ErrorKind, Result,
    backend::{Capabilities, DeploymentBackend, Readiness, Weights},
    model::{Attempt, Change, Goal, Nonce, Note, Observed, Progress, Revision, RolloutId, Version, Weight},
    plan::Plan,
};
use tokio::time::Instant;

#[cfg(feature = "s3")]
pub use self::shelf::LOOK_S3;
use self::{
    deployment::{Deployment, Mark, Status, Target},
    judge::{Act, Sight},
    revision::Spec,
};
pub use self::{
    hook::{Hook, PUT_HOOK},
    poller::Poller,
    revision::Artefact,
    settings::{RollBackOn, Settings, UPDATE_GROUP},
    shelf::{OnShelf, Shelf},
};
use crate::{
    error::sorted,
    iam::{Permission, Policy},
};

/// A deployment group as a target.
///
/// ```no_run
/// # async fn example() -> rollback_core::Result<()> {
/// use rollback_aws::{account::Account, codedeploy::{Artefact, Busy, Group, Platform, Poller}};
///
/// let poller = Poller::new(&Account::from_env().await?);
/// let group = Group::new(&poller, "shop", "production", Platform::InPlace)?;
/// group.make_way(Busy::Refuse).await?;
/// let candidate = Artefact::s3("builds", "shop/42.zip").version("3HL4kqtJlcpXroDTDmJ").revision()?;
/// # Ok(())
/// # }
/// ```
///
/// Clones share what they know of the group.
#[derive(Clone)]
pub struct Group {
    poller: Poller,
    app: Arc<str>,
    name: Arc<str>,
    platform: Platform,
    waits: bool,
    settle: Duration,
    rollback_within: Duration,
    config: Option<String>,
    config_back: Option<String>,
    guarded: bool,
    shelves: Vec<Arc<dyn Shelf>>,
    #[cfg(feature = "cloudwatch")]
    alarms: Option<crate::cloudwatch::Alarms>,
    known: Arc<Mutex<Known>>,
}

/// Where a group deploys to, and how its traffic is moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Platform {
    /// EC2 or on-premises instances, each stopped and brought up anew: the baseline does not stand meanwhile.
    InPlace,
    /// EC2 instances beside the old ones.
    BlueGreen,
    /// An ECS service, blue/green.
    Ecs,
    /// A Lambda alias.
    Lambda,
}

/// What to do about a deployment of the group that is not ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Busy {
    /// Wait until it is over, at most so long.
    Wait(Duration),
    /// Fail, and name it.
    Refuse,
    /// Stop it with rollback, and wait until that is over, at most so long.
    Supersede(Duration),
}

/// What is known of a group without asking: all of it can be forgotten.
#[derive(Default)]
struct Known {
    /// The newest deployment, while it runs: until it is over no other can begin.
    running: Option<String>,
    /// Deployments that we asked to stop, and when that was accepted.
    stopping: BTreeMap<String, Instant>,
    /// Targets by deployment, with the reading of the deployment that they belong to.
    targets: BTreeMap<String, (Arc<Deployment>, Arc<[Target]>)>,
    /// What was found when nothing ran, and when.
    rest: Option<(Instant, Found)>,
    /// The rollout on whose way back we have looked since our last call.
    back: Option<RolloutId>,
    /// The last attempt that was refused: no call of it is on its way, so it has not to settle.
    refused: Option<Nonce>,
    /// The newest deployment, if it is over, and since when we know that.
    over: Option<(String, Instant)>,
}

/// The deployments that matter, as one look finds them.
#[derive(Clone)]
struct Found {
    newest: Option<Arc<Deployment>>,
    rolled_back: Option<Arc<Deployment>>,
    successful: Option<String>,
}

/// To see the group, its settings and its last deployments.
pub const GET_GROUP: Permission = Permission::new("codedeploy:GetDeploymentGroup", "see the group");
/// To read deployments.
pub const GET_DEPLOYMENTS: Permission = Permission::new("codedeploy:BatchGetDeployments", "read deployments");
/// To find a deployment whose answer was lost.
pub const LIST_DEPLOYMENTS: Permission = Permission::new("codedeploy:ListDeployments", "find deployments");
/// To see on which targets it succeeded.
pub const LIST_TARGETS: Permission = Permission::new("codedeploy:ListDeploymentTargets", "find a deployment's targets");
/// To see what each target serves.
pub const GET_TARGETS: Permission =
    Permission::new("codedeploy:BatchGetDeploymentTargets", "read a deployment's targets");
/// To fetch the text of an AppSpec, which a deployment does not show.
pub const GET_REVISION: Permission = Permission::new("codedeploy:GetApplicationRevision", "read revisions");
/// To deploy; registering what is deployed belongs to it.
pub const CREATE_DEPLOYMENT: Permission = Permission::new("codedeploy:CreateDeployment", "deploy");
/// To stop a deployment.
pub const STOP_DEPLOYMENT: Permission = Permission::new("codedeploy:StopDeployment", "stop a deployment");
/// To let a deployment go on to the traffic, and to end its termination wait.
pub const CONTINUE_DEPLOYMENT: Permission = Permission::new("codedeploy:ContinueDeployment", "let a deployment go on");
/// To read a configuration; CodeDeploy asks for it whenever something is deployed.
pub const GET_CONFIG: Permission = Permission::new("codedeploy:GetDeploymentConfig", "read the configuration");

/// What a rollout of a group calls.
pub const ROLLOUT: &[Permission] = &[
    GET_DEPLOYMENTS,
    GET_TARGETS,
    CONTINUE_DEPLOYMENT,
    CREATE_DEPLOYMENT,
    GET_REVISION,
    GET_CONFIG,
    GET_GROUP,
    LIST_TARGETS,
    LIST_DEPLOYMENTS,
    STOP_DEPLOYMENT,
];

/// To deploy a revision that is new to the application: CodeDeploy registers it then.
pub const REGISTER_REVISION: Permission =
    Permission::new("codedeploy:RegisterApplicationRevision", "deploy a revision that is new to the application");
/// To deploy the baseline again in a group with alarms: CodeDeploy asks for it where a deployment overrides them.
pub const OVERRIDE_ALARMS: Permission =
    Permission::new("codedeploy:UpdateDeploymentGroup", "deploy the baseline again without the group's alarms");

/// What a rollout needs besides, that only preflight calls, to prove it.
pub const BESIDES: &[Permission] = &[REGISTER_REVISION, OVERRIDE_ALARMS];

impl Group {
    /// The group `name` of the application `app`.
    ///
    /// # Errors
    /// `Invalid` when a name is empty or has more than 100 characters.
    pub fn new(poller: &Poller, app: &str, name: &str, platform: Platform) -> Result<Self> {
        for (what, text) in [("an application's name", app), ("a deployment group's name", name)] {
            if text.is_empty() || text.chars().count() > 100 {
                return Err(Error::invalid(format!("{what} is {text:?}; 1 to 100 characters are accepted")));
            }
        }
        Ok(Self {
            poller: poller.clone(),
            app: app.into(),
            name: name.into(),
            platform,
            waits: false,
            settle: Duration::from_secs(300),
            rollback_within: Duration::from_secs(60),
            config: None,
            config_back: None,
            guarded: false,
            shelves: Vec::new(),
            #[cfg(feature = "cloudwatch")]
            alarms: None,
            known: Arc::default(),
        })
    }

    /// The group waits before the traffic is moved (`STOP_DEPLOYMENT` as its ready option): a plan may have a first step of
    /// 0 %, with gates on the test traffic and an approval, and the next step lets it go on.
    #[must_use]
    pub const fn waits_for_approval(mut self) -> Self {
        self.waits = true;
        self
    }

    /// Deploys the candidate with this configuration, as `CodeDeployDefault.ECSCanary10Percent5Minutes`, instead of the
    /// group's own.
    #[must_use]
    pub fn config(mut self, name: impl Into<String>) -> Self {
        self.config = Some(name.into());
        self
    }

    /// Deploys the baseline again with this configuration. Unless it is named: all at once on ECS and Lambda, the group's
    /// own on instances, where all at once would leave nobody serving.
    #[must_use]
    pub fn config_back(mut self, name: impl Into<String>) -> Self {
        self.config_back = Some(name.into());
        self
    }

    /// Refuses to start unless the group has alarms of its own that roll it back: they guard it while this process is away.
    /// Without this their lack is listed as a risk.
    #[must_use]
    pub const fn guarded(mut self) -> Self {
        self.guarded = true;
        self
    }

    /// With a place where artefacts lie: preflight asks it whether the baseline and the candidate are still there.
    #[must_use]
    pub fn shelf(mut self, shelf: impl Shelf) -> Self {
        self.shelves.push(Arc::new(shelf));
        self
    }

    /// Preflight looks at the group's own alarms here: one that fires already stops a deployment as it begins.
    #[cfg(feature = "cloudwatch")]
    #[must_use]
    pub fn alarms(mut self, alarms: &crate::cloudwatch::Alarms) -> Self {
        self.alarms = Some(alarms.clone());
        self
    }

    /// How long an unanswered call may still land; five minutes at first: so long AWS takes a signed request. A stop and a
    /// continuation of the way back do not wait for it: they name their deployment.
    #[must_use]
    pub const fn settle(mut self, time: Duration) -> Self {
        self.settle = time;
        self
    }

    /// How long CodeDeploy's own rollback may take to appear before the recorded revision is deployed, and a stop that was
    /// accepted to happen before it is asked for again; a minute at first.
    #[must_use]
    pub const fn rollback_within(mut self, time: Duration) -> Self {
        self.rollback_within = time;
        self
    }

    /// The application's name.
    pub fn app(&self) -> &str {
        &self.app
    }

    /// The group's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where it deploys to.
    pub const fn platform(&self) -> Platform {
        self.platform
    }

    /// The least that whoever runs rollouts of this group must be allowed, in this account: `123456789012`.
    pub fn policy(&self, account: &str) -> Policy {
        let region = self.client().config().region().map_or("*", |region| region.as_ref());
        let arn = |kind: &str, what: String| {
            format!("arn:{}:codedeploy:{region}:{account}:{kind}:{what}", crate::account::partition(region))
        };
        let (configs, others): (Vec<_>, Vec<_>) =
            ROLLOUT.iter().chain(BESIDES).copied().partition(|it| it.action == GET_CONFIG.action);
        let (app, group): (Vec<_>, Vec<_>) =
            others.into_iter().partition(|it| it.action.ends_with("ApplicationRevision"));
        let policy = Policy::new()
            .allow(&configs, [arn("deploymentconfig", "*".into())])
            .allow(&app, [arn("application", self.app.to_string())])
            .allow(&group, [arn("deploymentgroup", format!("{}/{}", self.app, self.name))]);
        #[cfg(feature = "cloudwatch")]
        if self.alarms.is_some() {
            return policy.allow(crate::cloudwatch::LOOK, ["*"]);
        }
        policy
    }

    fn client(&self) -> &Client {
        self.poller.client()
    }

    /// Makes sure that no deployment of somebody else runs, so that a rollout can start. One that has just failed or was
    /// stopped is not over before CodeDeploy's own rollback of it is, or would have appeared: that is waited for in any case.
    ///
    /// # Errors
    /// `Conflict`, naming the deployment and who made it, when one runs and is not waited for; `Unavailable` when it was not
    /// over in time.
    pub async fn make_way(&self, busy: Busy) -> Result<()> {
        let begun = Instant::now();
        let mut stopped = false;
        loop {
            let Some(newest) = self.find(true, None).await?.newest else { return Ok(()) };
            let runs = newest.is_active();
            if !runs && !self.awaits_rollback(&newest) {
                return Ok(());
            }
            let patience = match busy {
                Busy::Refuse if runs => return Err(self.busy(&newest)),
                // It ends with the time that a rollback may take to appear.
                Busy::Refuse => Duration::MAX,
                Busy::Wait(patience) => patience,
                Busy::Supersede(patience) => {
                    // Once, and no rollback of CodeDeploy's own.
                    if runs && newest.rolls_back.is_none() && !std::mem::replace(&mut stopped, true) {
                        match self.stop(&newest.id, true).await {
                            Err(e) if e.kind() != ErrorKind::Conflict => return Err(e),
                            _ => continue,
                        }
                    }
                    patience
                }
            };
            let left = patience.saturating_sub(begun.elapsed());
            if left.is_zero() {
                let why = format!("{}, and was not over within {} s", self.busy(&newest), patience.as_secs());
                return Err(Error::new(ErrorKind::Unavailable, why));
            }
            tokio::time::sleep(self.poller.pause().min(left)).await;
        }
    }

    fn busy(&self, newest: &Deployment) -> Error {
        let then = if newest.is_active() { "wait for it, or stop it" } else { "its rollback is awaited" };
        let why =
            format!("{self} is busy: deployment {}, made by {}, is {}; {then}", newest.id, newest.creator, newest.said);
        Error::new(ErrorKind::Conflict, why)
    }

    /// Whether this deployment has ended so badly, and so lately, that CodeDeploy's own rollback of it may be about to appear.
    fn awaits_rollback(&self, newest: &Deployment) -> bool {
        matches!(newest.status, Status::Failed | Status::Stopped)
            && newest.may_be_rolled_back()
            && !self.is_settled(newest)
    }

    /// Whether this deployment ended so long ago that a rollback of it would be there.
    fn is_settled(&self, newest: &Deployment) -> bool {
        // By our own watch. By the two clocks only where they can hardly be so far apart: for a process that has just begun.
        let seen = {
            let mut known = self.known();
            known.over.take_if(|(id, _)| *id != newest.id);
            known.over.get_or_insert_with(|| (newest.id.clone(), Instant::now())).1
        };
        let now = self.client().config().time_source().and_then(|it| Timestamp::try_from(it.now()).ok());
        let since = now.zip(newest.completed).and_then(|(now, over)| Duration::try_from(now.duration_since(over)).ok());
        seen.elapsed() >= self.rollback_within || since.is_some_and(|it| it >= self.rollback_within + CLOCKS)
    }

    // -------------------------------------------------------------------------------------------------------- looking

    async fn info(&self) -> Result<DeploymentGroupInfo> {
        let call = self.client().get_deployment_group().application_name(&*self.app).deployment_group_name(&*self.name);
        let answer = call.send().await.map_err(|e| sorted(format_args!("reading {self}"), e))?;
        answer
            .deployment_group_info
            .ok_or_else(|| Error::new(ErrorKind::Internal, format!("reading {self}: an answer without the group")))
    }

    /// The newest deployment, and the one that it rolls back. `last`: an attempt that may have landed since.
    async fn find(&self, fresh: bool, last: Option<&Attempt>) -> Result<Found> {
        // While the newest runs no other can begin: CodeDeploy allows one at a time in a group.
        let running = self.known().running.clone();
        if let Some(id) = running {
            match self.poller.get(&id, fresh).await {
                Ok(newest) if newest.is_active() => return self.with_cause(newest, None).await,
                Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
                _ => self.known().running = None,
            }
        }
        if !fresh
            && let Some((at, found)) = &self.known().rest
            && at.elapsed() < self.poller.interval()
        {
            return Ok(found.clone());
        }
        let begun = Instant::now();
        let info = self.info().await?;
        let of = |it: Option<&aws_sdk_codedeploy::types::LastDeploymentInfo>| {
            it.and_then(|it| it.deployment_id()).map(str::to_owned)
        };
        let successful = of(info.last_successful_deployment());
        let mut newest = match of(info.last_attempted_deployment()) {
            Some(id) => Some(self.poller.get(&id, true).await?),
            None => None,
        };
        if newest.as_ref().is_some_and(|it| it.is_upkeep()) {
            newest = self.before_upkeep().await?.or(newest);
        }
        let at = newest.as_ref().map_or(NEVER, |it| it.id.as_str());
        if let Some(last) = last.filter(|last| deployment_of(&last.version) == at) {
            for other in self.poller.several(&self.since(last.at).await?).await? {
                if !other.is_upkeep() && newest.as_ref().is_none_or(|it| it.created < other.created) {
                    newest = Some(other);
                }
            }
        }
        let Some(mut newest) = newest else {
            return Ok(Found { newest: None, rolled_back: None, successful });
        };
        // What the group tells may be older than what the deployment itself tells.
        if let Some(id) = newest.rolled_back_by.clone() {
            newest = self.poller.get(&id, true).await?;
        }
        self.known().running = newest.is_active().then(|| newest.id.clone());
        let found = self.with_cause(newest, successful).await?;
        let rests = !found.newest.as_ref().is_some_and(|it| it.is_active());
        self.known().rest = rests.then(|| (begun, found.clone()));
        Ok(found)
    }

    async fn with_cause(&self, newest: Arc<Deployment>, successful: Option<String>) -> Result<Found> {
        let rolled_back = match &newest.rolls_back {
            Some(id) => Some(self.poller.get(id, false).await?),
            None => None,
        };
        Ok(Found { newest: Some(newest), rolled_back, successful })
    }

    /// The newest deployment that is a change of the group, where CodeDeploy itself has deployed to instances since that came
    /// late. Of the last thousand; none where all of them are such.
    async fn before_upkeep(&self) -> Result<Option<Arc<Deployment>>> {
        let (mut token, mut seen) = (None, 0);
        loop {
            let call = self.client().list_deployments().application_name(&*self.app).deployment_group_name(&*self.name);
            let page = call.set_next_token(token).send().await;
            let page = page.map_err(|e| sorted(format_args!("listing the deployments of {self}"), e))?;
            // From the newest on, which is not documented: so of the first call that shows one the newest is taken, and of several
            // of one second the first.
            for some in page.deployments().chunks(Poller::A_CALL) {
                let changes = self.poller.several(some).await?.into_iter().filter(|it| !it.is_upkeep());
                if let Some(newest) = changes.rev().max_by_key(|it| it.created) {
                    return Ok(Some(newest));
                }
            }
            seen += page.deployments().len();
            token = page.next_token;
            if token.is_none() || seen >= 1_000 {
                return Ok(None);
            }
        }
    }

    /// The ids of the group's deployments since shortly before this time.
    async fn since(&self, at: Timestamp) -> Result<Vec<String>> {
        let start = at.as_second().saturating_sub(CLOCKS.as_secs().cast_signed());
        let range = TimeRange::builder().start(DateTime::from_secs(start)).build();
        let mut ids = Vec::new();
        let mut token = None;
        loop {
            let call = self.client().list_deployments().application_name(&*self.app).deployment_group_name(&*self.name);
            let call = call.create_time_range(range.clone()).set_next_token(token);
            let page = call.send().await.map_err(|e| sorted(format_args!("listing the deployments of {self}"), e))?;
            ids.extend(page.deployments().iter().cloned());
            token = page.next_token;
            if token.is_none() || ids.len() > 1_000 {
                return Ok(ids);
            }
        }
    }

    /// The targets of a deployment. Those of one that is over do not change, and those of one that runs are read once for
    /// each reading of it.
    async fn targets(&self, of: &Arc<Deployment>) -> Result<Arc<[Target]>> {
        let known = self.known().targets.get(&of.id).cloned();
        let ids = match &known {
            Some((read, targets)) if Arc::ptr_eq(read, of) => return Ok(Arc::clone(targets)),
            Some((read, targets)) if read.is_active() && self.is_single() && !targets.is_empty() => {
                targets.iter().map(|it| it.name.clone()).collect()
            }
            Some((read, targets)) if !read.is_active() => return Ok(Arc::clone(targets)),
            _ => self.target_ids(&of.id).await?,
        };
        let mut read = Vec::with_capacity(ids.len());
        for some in ids.chunks(25) {
            let call = self.client().batch_get_deployment_targets().deployment_id(&of.id);
            let answer = call.set_target_ids(Some(some.to_vec())).send().await;
            let answer = answer.map_err(|e| sorted(format_args!("reading the targets of deployment {}", of.id), e))?;
            read.extend(answer.deployment_targets().iter().filter_map(Target::read));
        }
        if read.len() < ids.len() {
            let why = format!("deployment {} has {} targets, and {} could be read", of.id, ids.len(), read.len());
            return Err(Error::new(ErrorKind::Unavailable, why));
        }
        let targets: Arc<[Target]> = read.into();
        let mut known = self.known();
        while known.targets.len() >= 4 {
            known.targets.pop_first();
        }
        known.targets.insert(of.id.clone(), (Arc::clone(of), Arc::clone(&targets)));
        Ok(targets)
    }

    async fn target_ids(&self, deployment: &str) -> Result<Vec<String>> {
        let mut ids = Vec::new();
        let mut token = None;
        loop {
            let call = self.client().list_deployment_targets().deployment_id(deployment).set_next_token(token);
            let page = match call.send().await {
                Ok(page) => page,
                Err(e) if e.as_service_error().is_some_and(|e| e.is_deployment_not_started_exception()) => {
                    return Ok(ids);
                }
                Err(e) => return Err(sorted(format_args!("listing the targets of deployment {deployment}"), e)),
            };
            ids.extend(page.target_ids().iter().cloned());
            token = page.next_token;
            if token.is_none() {
                return Ok(ids);
            }
        }
    }

    const fn is_single(&self) -> bool {
        matches!(self.platform, Platform::Ecs | Platform::Lambda)
    }

    /// Everything that a judgement needs.
    async fn see<'a>(&self, change: &'a Change, goal: Goal, fresh: bool, last: Option<&Attempt>) -> Result<Seen<'a>> {
        let baseline = Spec::of(&change.baseline)?;
        let mut found = self.find(fresh, last).await?;
        let mut targets: Arc<[Target]> = Arc::new([]);
        if let Some(newest) = &mut found.newest
            && baseline.deployment.as_ref() != Some(&newest.id)
            && (self.is_single() || !newest.is_active())
        {
            targets = match self.targets(newest).await {
                // A deployment that runs can be stopped whatever its targets are at.
                Err(_) if !goal.is_forward() && newest.is_active() => targets,
                read => read?,
            };
        }
        let before: Arc<[Target]> = match &found.rolled_back {
            // Only what a person is told: nothing waits for it.
            Some(it) if goal.is_forward() => self.targets(it).await.unwrap_or_else(|_| Arc::new([])),
            _ => Arc::new([]),
        };
        let newest = found.newest.as_ref();
        let settled = newest.is_none_or(|it| !it.is_active() && self.is_settled(it));
        let stopping = newest
            .is_some_and(|it| self.known().stopping.get(&it.id).is_some_and(|at| at.elapsed() < self.rollback_within));
        let last = last.map(|last| deployment_of(&last.version).to_owned());
        Ok(Seen { change, platform: self.platform, baseline, found, last, targets, before, settled, stopping })
    }

    // --------------------------------------------------------------------------------------------------------- acting

    /// Deploys. Not repeated by the SDK: after a lost answer its second request would be refused because the first one runs,
    /// or, worse, be taken after the first one has failed.
    async fn deploy(&self, change: &Change, forward: bool, attempt: &Attempt, from: Option<&str>) -> Result<()> {
        let spec = Spec::of(if forward { &change.candidate } else { &change.baseline })?;
        let artefact = match from {
            Some(version) if !forward => spec.artefact.starting_at(version),
            _ => spec.artefact.clone(),
        };
        let mark = Mark::new(&change.rollout, attempt.goal, &attempt.nonce);
        let call = self.client().create_deployment().application_name(&*self.app).deployment_group_name(&*self.name);
        let mut call = call.revision(artefact.write()).description(mark.write());
        if forward {
            call = call.set_deployment_config_name(self.config.clone());
        } else {
            let none = AutoRollbackConfiguration::builder().enabled(false).build();
            call = call.set_deployment_config_name(self.way_back()).auto_rollback_configuration(none);
            if self.has_alarms().await {
                let deaf = AlarmConfiguration::builder().enabled(false).ignore_poll_alarm_failure(true).build();
                call = call.override_alarm_configuration(deaf);
            }
            if matches!(self.platform, Platform::InPlace | Platform::BlueGreen) {
                // ApplicationStop is the candidate's script by now: it may keep nothing from coming back.
                call = call.ignore_application_stop_failures(true);
                call = call.set_file_exists_behavior(spec.file_exists.as_deref().map(FileExistsBehavior::from));
            }
        }
        let what = if forward { &change.candidate.id } else { &change.baseline.id };
        let once = Overrides::new().retry_config(RetryConfig::disabled());
        match call.customize().config_override(once).send().await {
            Ok(made) => {
                self.forget(made.deployment_id());
                Ok(())
            }
            Err(e) => {
                let busy = e.as_service_error().is_some_and(|e| e.is_deployment_limit_exceeded_exception());
                let e = sorted(format_args!("deploying {what} to {self}"), e);
                self.forget(None);
                if !busy {
                    return Err(e);
                }
                // The same code for a group that is busy and for the account's limit: only the text tells.
                let (kind, why) = match e.chain().contains("already has an active") {
                    true => (ErrorKind::Conflict, "another deployment of it runs"),
                    false => (ErrorKind::Throttled, "the account's limit of deployments is reached"),
                };
                Err(Error::new(kind, format!("deploying {what} to {self}: {why}")).because(e))
            }
        }
    }

    fn way_back(&self) -> Option<String> {
        let at_once = match self.platform {
            Platform::Ecs => Some("CodeDeployDefault.ECSAllAtOnce"),
            Platform::Lambda => Some("CodeDeployDefault.LambdaAllAtOnce"),
            Platform::InPlace | Platform::BlueGreen => None,
        };
        self.config_back.clone().or_else(|| at_once.map(str::to_owned))
    }

    /// Whether the group has alarms that would stop the way back. When in doubt, yes.
    async fn has_alarms(&self) -> bool {
        match self.info().await {
            Ok(info) => info.alarm_configuration().is_some_and(|it| it.enabled() && !it.alarms().is_empty()),
            Err(_) => true,
        }
    }

    async fn stop(&self, id: &str, roll_back: bool) -> Result<()> {
        let call = self.client().stop_deployment().deployment_id(id).auto_rollback_enabled(roll_back);
        match call.send().await {
            Ok(_) => {
                self.known().stopping.insert(id.into(), Instant::now());
                self.forget(Some(id));
                Ok(())
            }
            Err(e) => {
                let over = e.as_service_error().is_some_and(|e| e.is_deployment_already_completed_exception());
                let e = sorted(format_args!("stopping deployment {id}"), e);
                self.forget(None);
                if !over {
                    return Err(e);
                }
                Err(Error::new(ErrorKind::Conflict, format!("deployment {id} was over before it could be stopped"))
                    .because(e))
            }
        }
    }

    async fn go_on(&self, id: &str, wait: aws_sdk_codedeploy::types::DeploymentWaitType) -> Result<()> {
        let call = self.client().continue_deployment().deployment_id(id).deployment_wait_type(wait);
        match call.send().await {
            Ok(_) => {
                self.forget(Some(id));
                Ok(())
            }
            Err(e) => {
                let moved = e.as_service_error().is_some_and(|e| {
                    e.is_deployment_is_not_in_ready_state_exception()
                        || e.is_invalid_deployment_status_exception()
                        || e.is_deployment_already_completed_exception()
                });
                let e = sorted(format_args!("letting deployment {id} go on"), e);
                self.forget(None);
                if !moved {
                    return Err(e);
                }
                Err(Error::new(ErrorKind::Conflict, format!("deployment {id} does not wait any more")).because(e))
            }
        }
    }

    /// What was known may have changed by a call of ours. `running`: the deployment that it was about.
    fn forget(&self, running: Option<&str>) {
        let mut known = self.known();
        known.rest = None;
        known.back = None;
        known.running = running.map(str::to_owned);
        known.stopping.retain(|_, at| at.elapsed() < self.rollback_within);
        drop(known);
        if let Some(id) = running {
            self.poller.stale(id);
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A group as one look saw it.
struct Seen<'a> {
    change: &'a Change,
    platform: Platform,
    baseline: Spec,
    found: Found,
    last: Option<String>,
    targets: Arc<[Target]>,
    before: Arc<[Target]>,
    settled: bool,
    stopping: bool,
}

impl Seen<'_> {
    fn sight(&self) -> Sight<'_> {
        Sight {
            platform: self.platform,
            rollout: self.change.rollout.as_str(),
            baseline: &self.baseline,
            candidate: self.change.candidate.id.as_str(),
            newest: self.found.newest.as_deref(),
            last: self.last.as_deref(),
            rolled_back: self.found.rolled_back.as_deref(),
            targets: &self.targets,
            targets_before: &self.before,
            stopping: self.stopping,
            settled: self.settled,
        }
    }

    /// A stop and a deployment of the baseline are both on the way to it: which of them is due at a deployment, its phase
    /// tells.
    fn version(&self) -> Result<Version> {
        let Some(newest) = &self.found.newest else { return Version::try_from(NEVER) };
        let phase = if newest.is_active() { ACTIVE } else { OVER };
        Version::try_from(format!("{}{phase}", newest.id))
    }

    /// Whether this attempt is known to have landed, or to have nothing left to do.
    fn landed(&self, attempt: &Attempt) -> bool {
        let nonce = Mark::hash(&attempt.nonce);
        let all = [self.found.newest.as_deref(), self.found.rolled_back.as_deref()];
        let mut all = all.into_iter().flatten();
        all.any(|it| {
            if it.mark.as_ref().is_some_and(|mark| mark.nonce == nonce) {
                return true;
            }
            // Only a deployment that runs is stopped or let go on.
            let was = attempt.version.as_str().strip_suffix(ACTIVE);
            was == Some(it.id.as_str())
                && match attempt.goal {
                    Goal::Split(_) => it.status != Status::Ready,
                    // It is over, by this call or before it: there is nothing left to stop, or to let go on.
                    Goal::Candidate | Goal::Baseline => !it.is_active(),
                }
        })
    }
}

/// The id of the deployment that a version tells of.
fn deployment_of(version: &Version) -> &str {
    let version = version.as_str();
    version.strip_suffix(ACTIVE).or_else(|| version.strip_suffix(OVER)).unwrap_or(version)
}

#[async_trait]
impl DeploymentBackend for Group {
    fn capabilities(&self) -> Capabilities {
        let weights = match self.waits {
            true => Weights::only([0]).expect("0 is a share of traffic"),
            false => Weights::ProvidersPace,
        };
        let mut can = Capabilities::full().weights(weights).unchecked(self.settle);
        can.baseline_stands = self.platform != Platform::InPlace;
        can
    }

    async fn baseline(&self) -> Result<Revision> {
        self.serving().await
    }

    async fn preflight(&self, change: &Change, plan: &Plan) -> Result<Readiness> {
        self.prove(change, plan).await
    }

    async fn observe<'a>(&self, change: &Change, goal: Goal, last: Option<&'a Attempt>) -> Result<Observed> {
        // Whether to stop or to deploy is not decided by what is an interval old. After that the way back is watched like any
        // other: the engine asks every two seconds, and a hundred groups may be going back at once.
        let back = (!goal.is_forward()).then(|| change.rollout.clone());
        let fresh = back.is_some() && self.known().back != back;
        let mut seen = self.see(change, goal, fresh, last).await?;
        // Nor whether it is over: what has landed within that interval is not in there.
        let ends = !fresh && !matches!(goal, Goal::Split(_));
        if ends && seen.sight().judge(goal).0 == Progress::Reached {
            seen = self.see(change, goal, true, last).await?;
        }
        self.known().back = back;
        let sight = seen.sight();
        let (progress, act) = sight.judge(goal);
        // It names its deployment.
        let repeatable = matches!(act, Some(Act::Stop { .. } | Act::Continue { .. }));
        let mut look = Observed::new(progress, seen.version()?).parts(sight.parts()).repeatable(repeatable);
        let refused = self.known().refused.clone();
        look = look.landed(last.is_some_and(|last| seen.landed(last) || refused.as_ref() == Some(&last.nonce)));
        if !goal.is_forward() && matches!(self.platform, Platform::InPlace) {
            look = look.not_restored(vec![Note::new("what scripts of the candidate did besides its files")]);
        }
        Ok(match sight.weight() {
            Some(weight) => look.weight(weight),
            None => look,
        })
    }

    async fn shift(&self, change: &Change, goal: Goal, attempt: &Attempt) -> Result<()> {
        let done = self.ask(change, goal, attempt).await;
        if done.as_ref().is_err_and(|e| e.kind() == ErrorKind::Conflict) {
            self.known().refused = Some(attempt.nonce.clone());
        }
        done
    }
}

impl Group {
    async fn ask(&self, change: &Change, goal: Goal, attempt: &Attempt) -> Result<()> {
        if let Goal::Split(weight) = goal
            && weight != Weight::ALL
            && !(self.waits && weight == Weight::NONE)
        {
            let why = format!("{self} cannot give {weight}; CodeDeploy moves the traffic at its own pace");
            return Err(Error::new(ErrorKind::Unsupported, why));
        }
        let seen = self.see(change, goal, true, Some(attempt)).await?;
        let version = seen.version()?;
        if version != attempt.version {
            let why = format!("{self} has moved on: its newest deployment is {version}, not {}", attempt.version);
            return Err(Error::new(ErrorKind::Conflict, why));
        }
        match seen.sight().judge(goal) {
            (Progress::Reached, _) => Ok(()),
            (_, Some(Act::Deploy { forward })) => {
                let from = seen.targets.iter().find_map(|it| it.version.as_deref());
                self.deploy(change, forward, attempt, from).await
            }
            (_, Some(Act::Stop { id, roll_back })) => self.stop(&id, roll_back).await,
            (_, Some(Act::Continue { id, wait })) => self.go_on(&id, wait).await,
            (progress, None) => nothing_due(self, &progress),
        }
    }
}

fn nothing_due(group: &Group, progress: &Progress) -> Result<()> {
    let why = match progress {
        Progress::Underway(why) | Progress::Failed(why) | Progress::Drifted(why) | Progress::Due(why) => why.as_str(),
        Progress::Reached => "",
    };
    Err(Error::new(ErrorKind::Conflict, format!("nothing is to be done to {group} now: {why}")))
}

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "deployment group {}/{}", self.app, self.name)
    }
}

impl fmt::Debug for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Group")
            .field("app", &self.app)
            .field("name", &self.name)
            .field("platform", &self.platform)
            .finish_non_exhaustive()
    }
}

/// The version of a group to which nothing was ever deployed.
const NEVER: &str = "no deployment";

/// What follows the id in a version while the deployment runs, and then.
const ACTIVE: &str = " active";
const OVER: &str = " over";

/// How far this machine's clock may be off CodeDeploy's.
const CLOCKS: Duration = Duration::from_secs(300);
