//! Lambda aliases: any weight between two published versions, moved by one call that spends the alias's `RevisionId`.
//!
//! | word | here |
//! |---|---|
//! | target | an alias, [`Alias`] |
//! | revision | a published version, by its number; [`Alias::publish`] makes one of a zip or an image |
//! | version | the alias's `RevisionId`: every accepted write makes a new one, and a stale one is refused (412) |
//! | weights | any; the candidate is the additional version until it is promoted |
//! | roll back | the alias at the baseline alone: version set and weights cleared in one call |
//!
//! # What it needs to be allowed
//! [`ROLLOUT`] for rollouts and [`PUBLISH`] for [`Alias::publish`]; [`Alias::policy`] prints them as a policy. Preflight
//! proves each of `ROLLOUT`.
//!
//! # What is known, and from where
//! That each write spends the `RevisionId`, and how weights are refused: recordings of the real service in
//! `localstack/localstack`. That the split is by chance, request by request, and at most one additional version: AWS's
//! developer guide. How soon a write reaches every request is not documented; a few seconds were observed by others.

mod name;
mod preflight;
mod publish;
mod shape;
mod smoke;

use std::{collections::HashMap, fmt, time::Duration};

use async_trait::async_trait;
use aws_sdk_lambda::{
    Client,
    config::{Builder as Overrides, retry::RetryConfig},
    types::{AliasRoutingConfiguration, ProvisionedConcurrencyStatusEnum as Provisioning},
};
use rollback_core::{
    Error, ErrorKind, Result,
    backend::{Capabilities, DeploymentBackend, Readiness},
    model::{Attempt, Change, Goal, Note, Observed, Progress, Revision, RevisionId, Version, Weight},
    plan::Plan,
};

use self::{
    name::Name,
    shape::{Pointed, Provisioned},
};
pub use self::{
    publish::Code,
    smoke::{INVOKE, Smoke},
};
use crate::{
    account::Account,
    error::sorted,
    iam::{Permission, Policy},
};

/// A Lambda alias as a target.
///
/// Its revisions are published versions: `Revision::new("42")`. The baseline stays the alias's own version until the
/// promotion, and the candidate is weighted beside it, so that going back is one call and no clean-up job deletes the
/// baseline meanwhile: Lambda refuses to delete a version that an alias refers to.
///
/// ```no_run
/// # async fn example() -> rollback_core::Result<()> {
/// use rollback_aws::{account::Account, lambda::{Alias, Code}};
///
/// let account = Account::from_env().await?;
/// let live = Alias::new(&account, "checkout:live")?;
/// println!("{}", live.policy());
/// let candidate = live.publish(&Code::zip_file("checkout.zip").await?).await?;
/// # Ok(())
/// # }
/// ```
///
/// # Provisioned concurrency
/// An alias with provisioned concurrency takes no weights. A plan with steps below 100 % is refused, and all at once is
/// done by pointing the alias. Lambda then holds the traffic at the old version, by weights of its own, until the new one
/// is provisioned; they are waited for. That takes a minute or two, also on the way back.
#[derive(Clone)]
pub struct Alias {
    client: Client,
    name: Name,
}

/// To see where the alias points.
pub const GET_ALIAS: Permission = Permission::new("lambda:GetAlias", "see where the alias points");
/// To read a version's state, role and dead-letter target.
pub const GET_VERSION: Permission = Permission::new("lambda:GetFunctionConfiguration", "read versions");
/// To see whether concurrency is provisioned.
pub const GET_PROVISIONED: Permission =
    Permission::new("lambda:GetProvisionedConcurrencyConfig", "see whether concurrency is provisioned");
/// To move the alias.
pub const UPDATE_ALIAS: Permission = Permission::new("lambda:UpdateAlias", "move the alias");

/// What a rollout of an alias calls.
pub const ROLLOUT: &[Permission] = &[GET_ALIAS, GET_VERSION, GET_PROVISIONED, UPDATE_ALIAS];

/// What [`Alias::publish`] calls. Code that lies in S3 or ECR must be readable for Lambda as well.
pub const PUBLISH: &[Permission] = &[
    GET_VERSION,
    Permission::new("lambda:ListAliases", "see which aliases serve unpublished code"),
    Permission::new("lambda:PublishVersion", "publish a version"),
    Permission::new("lambda:UpdateFunctionCode", "upload code"),
];

impl Alias {
    /// The alias `function:alias`, as `checkout:live`, or as its ARN, in this account.
    ///
    /// # Errors
    /// `Invalid` when it names no alias, or one of another region or partition than the account's.
    pub fn new(account: &Account, name: &str) -> Result<Self> {
        Self::with_client(account.lambda(), name)
    }

    /// The same over a client of your own. Give it timeouts: one that has none can hang.
    ///
    /// # Errors
    /// As [`Self::new`]; `Invalid` when the client has no region.
    pub fn with_client(client: Client, name: &str) -> Result<Self> {
        let region = client.config().region().map(ToString::to_string);
        let region = region.ok_or_else(|| Error::invalid("the Lambda client has no region; name one"))?;
        Ok(Self { name: Name::parse(name, &region)?, client })
    }

    /// The function's name.
    pub fn function(&self) -> &str {
        &self.name.function
    }

    /// The alias's name.
    pub fn alias(&self) -> &str {
        &self.name.alias
    }

    /// The least that whoever runs rollouts of this alias must be allowed. Publishing needs more: add
    /// `.and(alias.publishing_policy())`.
    pub fn policy(&self) -> Policy {
        Policy::new().allow(ROLLOUT, self.name.resources())
    }

    /// The least that [`publish`](Self::publish) needs.
    pub fn publishing_policy(&self) -> Policy {
        Policy::new().allow(PUBLISH, self.name.resources())
    }

    async fn pointed(&self) -> Result<Pointed> {
        let call = self.client.get_alias().function_name(self.name.called()).name(&self.name.alias);
        let answer = call.send().await.map_err(|e| sorted(format_args!("reading alias {}", self.name), e))?;
        Pointed::new(
            &self.name,
            answer.function_version(),
            answer.routing_config().and_then(AliasRoutingConfiguration::additional_version_weights),
            answer.revision_id(),
        )
    }

    /// The alias's own provisioned concurrency.
    async fn provisioned(&self) -> Result<Provisioned> {
        let call = self.client.get_provisioned_concurrency_config();
        let call = call.function_name(self.name.called()).qualifier(&self.name.alias);
        match call.send().await {
            Ok(answer) if answer.status() == Some(&Provisioning::Failed) => {
                Ok(Provisioned::Failed(answer.status_reason().unwrap_or("no reason is given").into()))
            }
            Ok(_) => Ok(Provisioned::Yes),
            Err(e) => {
                let e = sorted(format_args!("reading the provisioned concurrency of {}", self.name), e);
                if e.kind() == ErrorKind::NotFound { Ok(Provisioned::No) } else { Err(e) }
            }
        }
    }

    /// Whose weights these may be: only Lambda gives everything to the other version, and only to an alias with
    /// provisioned concurrency. Asked for nothing else, as it is a call.
    async fn whose(&self, pointed: &Pointed) -> Result<Provisioned> {
        if pointed.may_be_lambdas() { self.provisioned().await } else { Ok(Provisioned::No) }
    }

    /// Points the alias, if it still has this `RevisionId`. Weights are always sent: whether Lambda keeps or clears what is
    /// left out is not documented.
    async fn point(&self, at: &str, beside: Option<(&str, f64)>, revision: &str) -> Result<(), Unmoved> {
        let weights = beside.map(|(version, share)| (version.to_owned(), share)).into_iter().collect::<HashMap<_, _>>();
        let routing = AliasRoutingConfiguration::builder().set_additional_version_weights(Some(weights)).build();
        let call = self.client.update_alias().function_name(self.name.called()).name(&self.name.alias);
        let call = call.function_version(at).routing_config(routing).revision_id(revision);
        // Not repeated by the SDK: after a lost answer its second request would be refused with 412, and nobody could tell
        // that from somebody else's write. The engine looks, and repeats what is still due.
        let once = Overrides::new().retry_config(RetryConfig::disabled());
        match call.customize().config_override(once).send().await {
            Ok(_) => Ok(()),
            Err(e) => {
                let stale = e.as_service_error().is_some_and(|e| e.is_precondition_failed_exception());
                let e = sorted(format_args!("moving alias {} to {at}", self.name), e);
                Err(if stale { Unmoved::Stale(e) } else { Unmoved::Other(e) })
            }
        }
    }

    /// A write was refused over this `RevisionId`: reads again, until a read shows what the write has seen already, so that
    /// the engine's next look is no older than the refusal.
    async fn refused(&self, spent: &str, goal: Goal, change: &Change, e: Unmoved) -> Error {
        for pause in REREADS {
            match self.pointed().await {
                Ok(now) if now.revision != spent => {
                    let reached = now.stands(change).reaches(goal);
                    let already = if reached { ", which is what was asked for" } else { "" };
                    let why = format!("alias {} has moved on: it is at {now}{already}", self.name);
                    return Error::new(ErrorKind::Conflict, why).because(e.into_error());
                }
                Err(read) if !read.is_transient() => break,
                _ => tokio::time::sleep(pause).await,
            }
        }
        match e {
            Unmoved::Stale(e) => e,
            // A 409: Lambda itself is at work on it, and asking again at once would only be refused again.
            Unmoved::Other(e) => {
                Error::new(ErrorKind::Throttled, format!("alias {} cannot be moved now", self.name)).because(e)
            }
        }
    }
}

/// Why a write was not accepted.
enum Unmoved {
    /// The `RevisionId` is spent.
    Stale(Error),
    Other(Error),
}

impl Unmoved {
    fn into_error(self) -> Error {
        match self {
            Self::Stale(e) | Self::Other(e) => e,
        }
    }
}

#[async_trait]
impl DeploymentBackend for Alias {
    fn capabilities(&self) -> Capabilities {
        Capabilities::full()
    }

    async fn baseline(&self) -> Result<Revision> {
        let pointed = self.pointed().await?;
        if pointed.primary == LATEST {
            let why = format!(
                "alias {} is at $LATEST, which changes under it and cannot be brought back; publish a version and point \
                 the alias at that",
                self.name
            );
            return Err(Error::new(ErrorKind::Unsupported, why));
        }
        if pointed.other.is_empty() {
            return Revision::new(&pointed.primary);
        }
        let why = match self.whose(&pointed).await? {
            Provisioned::No => self.left_behind(&pointed),
            _ => format!(
                "Lambda itself holds alias {} at {pointed} until concurrency is provisioned; start again when that is done",
                self.name
            ),
        };
        Err(Error::new(ErrorKind::Mixed, why))
    }

    async fn preflight(&self, change: &Change, plan: &Plan) -> Result<Readiness> {
        self.prove(change, plan).await
    }

    async fn observe<'a>(&self, change: &Change, goal: Goal, _last: Option<&'a Attempt>) -> Result<Observed> {
        let pointed = self.pointed().await?;
        let stands = pointed.stands(change);
        let progress = if stands.reaches(goal) {
            Progress::Reached
        } else {
            match self.whose(&pointed).await? {
                Provisioned::No => stands.towards(goal, change, &pointed),
                Provisioned::Yes if goal.is_forward() == stands.is_at_candidate() => {
                    Progress::Underway(Note::new(format!(
                        "Lambda provisions concurrency for version {} before it moves the traffic there",
                        pointed.primary
                    )))
                }
                Provisioned::Failed(why) if goal.is_forward() => Progress::Failed(Note::new(format!(
                    "Lambda could not provision concurrency for version {}: {why}",
                    pointed.primary
                ))),
                _ => stands.towards(goal, change, &pointed),
            }
        };
        // Nothing of ours is written beside the version and the weights, so nothing proves which call it was that landed;
        // a spent `RevisionId` is all that is needed.
        let look = Observed::new(progress, Version::try_from(pointed.revision.as_str())?);
        Ok(match stands.share() {
            Some(weight) => look.weight(weight),
            None => look,
        })
    }

    async fn shift(&self, change: &Change, goal: Goal, attempt: &Attempt) -> Result<()> {
        let (baseline, candidate) = (number(&change.baseline.id)?, number(&change.candidate.id)?);
        let (at, beside) = match goal {
            Goal::Baseline => (baseline, None),
            Goal::Candidate => (candidate, None),
            // An alias with provisioned concurrency takes no weights: all traffic is the version itself there.
            Goal::Split(Weight::ALL) if !matches!(self.provisioned().await?, Provisioned::No) => (candidate, None),
            Goal::Split(weight) => (baseline, Some((candidate, share(weight)))),
        };
        match self.point(at, beside, attempt.version.as_str()).await {
            Ok(()) => Ok(()),
            Err(Unmoved::Other(e)) if e.kind() != ErrorKind::Conflict => Err(e),
            Err(e) => Err(self.refused(attempt.version.as_str(), goal, change, e).await),
        }
    }
}

impl fmt::Debug for Alias {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Alias").field("name", &self.name).finish_non_exhaustive()
    }
}

/// The number of a published version.
fn number(id: &RevisionId) -> Result<&str> {
    let id = id.as_str();
    match id {
        LATEST => Err(Error::invalid(
            "$LATEST is no revision: it changes, and cannot be brought back; publish a version and give its number",
        )),
        _ if !id.is_empty() && !id.starts_with('0') && id.bytes().all(|b| b.is_ascii_digit()) => Ok(id),
        _ => Err(Error::invalid(format!("{id:?} is no published version; a number such as 42 is accepted"))),
    }
}

/// A weight as Lambda takes it, 0 to 1.
fn share(weight: Weight) -> f64 {
    f64::from(weight.percent()) / 100.0
}

const LATEST: &str = "$LATEST";

/// How long to wait for reads to show a write that was refused because of it: 10 seconds in all.
const REREADS: [Duration; 6] = [
    Duration::from_millis(100),
    Duration::from_millis(400),
    Duration::from_millis(1000),
    Duration::from_millis(2000),
    Duration::from_millis(3000),
    Duration::from_millis(3500),
];
