//! Weighted records of Route 53: any weight between two sets of records, moved by one batch of changes.
//!
//! | word | here |
//! |---|---|
//! | target | a name in a hosted zone, with all its types, [`Weighted`] |
//! | revision | a set identifier, as `blue`: its records are there before the rollout, at weight 0 |
//! | version | a hash of the name's weighted records and of the marker; **checked**, see below |
//! | weights | any |
//! | the nonce is written | as a hash in the marker, a TXT record `_rollback.NAME` |
//! | roll back | one batch: the baseline's weights at 100, the candidate's at 0 |
//! | reached | the weights as asked, the change INSYNC, and a TTL over after that |
//!
//! # How versions are checked
//! Route 53 has no conditional write. But a batch of changes is done as a whole or not at all, and a DELETE is refused
//! unless it repeats the record exactly (API reference, ChangeResourceRecordSets). So each shift is one batch that deletes the
//! records as they were seen and creates them as they shall be; of two drivers the second is refused. The marker is in the
//! batch as well: without it the records would look after a rollback as they looked before the rollout, and a call from
//! before would be taken.
//!
//! # What it needs to be allowed
//! [`ROLLOUT`]; [`Weighted::policy`] prints it as a policy, and preflight proves it.
//!
//! # What is known, and from where
//! Weights, the TTL that all weighted records of a name share, that a list shows what is PENDING, five requests a second
//! for the whole account, "within 60 seconds" for a change: the developer guide and the API reference. How long resolvers
//! really keep an answer is up to them.

mod preflight;
mod records;

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use aws_sdk_route53::{
    Client,
    config::{Builder as Overrides, retry::RetryConfig},
    operation::change_resource_record_sets::ChangeResourceRecordSetsError,
    types::{Change as Edit, ChangeBatch, ChangeStatus, RrType},
};
use rollback_core::{
    Error, ErrorKind, Result,
    backend::{Capabilities, DeploymentBackend, Readiness},
    model::{Attempt, Change, Goal, Note, Observed, Progress, Revision, Version, Weight},
    plan::Plan,
};
use tokio::time::Instant;

use self::records::{Name, Records};
use crate::{
    account::{Account, partition},
    error::sorted,
    iam::{Permission, Policy},
};

/// The weighted records of a name as a target.
///
/// Its revisions are set identifiers: `Revision::new("green")`. Both sets of records must be there for each type that the
/// name has weighted records of (A and AAAA are moved together), the candidate's at weight 0. Other sets are left alone
/// as long as their weight is 0.
///
/// DNS splits by resolver, not by request: 10 % is a tenth of the *answers*, and whoever got one keeps it for the TTL. So
/// no step begins, and no rollback ends, before the change is INSYNC on the name servers and a TTL has passed after that;
/// keep TTLs at 60 seconds or less. Resolvers and clients that keep answers longer cannot be seen from here.
///
/// ```no_run
/// # async fn example() -> rollback_core::Result<()> {
/// use rollback_aws::{account::Account, route53::Weighted};
///
/// let account = Account::from_env().await?;
/// let api = Weighted::new(&account, "Z0123456789ABCDEFGHIJ", "api.example.com")?;
/// println!("{}", api.policy());
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Weighted {
    client: Client,
    zone: String,
    name: Name,
    propagation: Duration,
    seen: Arc<Mutex<Seen>>,
}

/// What this process remembers of the records it saw last. Without it everything is the same and takes longer: what is
/// not known to be settled is waited for in full.
#[derive(Debug, Default)]
struct Seen {
    version: String,
    /// Since when they were seen to be so.
    since: Option<Instant>,
    /// The change that made them so, if it was ours and its answer came.
    change: Option<String>,
    /// When that was first seen to be INSYNC.
    in_sync: Option<Instant>,
}

/// To read records.
pub const LIST: Permission = Permission::new("route53:ListResourceRecordSets", "read records");
/// To change weights.
pub const CHANGE: Permission = Permission::new("route53:ChangeResourceRecordSets", "change weights");
/// To see whether a change has arrived.
pub const GET_CHANGE: Permission = Permission::new("route53:GetChange", "see whether a change has arrived");
/// To see whether endpoints are healthy.
pub const GET_HEALTH: Permission = Permission::new("route53:GetHealthCheckStatus", "see whether endpoints are healthy");

/// What a rollout of weighted records calls.
pub const ROLLOUT: &[Permission] = &[LIST, CHANGE, GET_CHANGE, GET_HEALTH];

impl Weighted {
    /// The weighted records of a name, as `api.example.com`, in the hosted zone of this id.
    ///
    /// # Errors
    /// `Invalid` when either is none.
    pub fn new(account: &Account, zone: &str, name: &str) -> Result<Self> {
        Self::with_client(account.route53(), zone, name)
    }

    /// The same over a client of your own. Give it timeouts: one that has none can hang.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn with_client(client: Client, zone: &str, name: &str) -> Result<Self> {
        let id = zone.trim_start_matches("/hostedzone/");
        if id.is_empty() || id.len() > 32 || !id.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit()) {
            return Err(Error::invalid(format!(
                "{zone:?} is no hosted zone's id; one as Z0123456789ABCDEFGHIJ is accepted"
            )));
        }
        let propagation = Duration::from_secs(120);
        Ok(Self { client, zone: id.into(), name: Name::parse(name)?, propagation, seen: Arc::default() })
    }

    /// Takes a change for arrived after so long where its state cannot be asked for, because a process that died has
    /// taken its id along. Two minutes by default, which is twice what AWS says a change takes.
    #[must_use]
    pub const fn propagation(mut self, most: Duration) -> Self {
        self.propagation = most;
        self
    }

    /// The least that whoever runs rollouts of these records must be allowed.
    pub fn policy(&self) -> Policy {
        let region = self.client.config().region().map(ToString::to_string).unwrap_or_default();
        let arn = |what: String| format!("arn:{}:route53:::{what}", partition(&region));
        Policy::new()
            .allow(&[LIST, CHANGE], [arn(format!("hostedzone/{}", self.zone))])
            .allow(&[GET_CHANGE], [arn("change/*".into())])
            .allow(&[GET_HEALTH], [arn("healthcheck/*".into())])
    }

    /// The records of the name and its marker, as they are now. What is PENDING is shown as done.
    async fn records(&self) -> Result<Records> {
        let mut records = Records::default();
        let mut from = (self.name.as_str().to_owned(), None, None);
        // Both are near each other in the order of the list, and seldom apart; then they are looked for one by one.
        for page in 0..PAGES {
            let answer = self.page(from).await?;
            let (found, past_name, past_marker) = records.take(&self.name, answer.resource_record_sets);
            let more = answer.is_truncated && !past_marker;
            if !more || found && past_name {
                return Ok(records);
            }
            from = if past_name && page == 0 {
                (self.name.marker().to_owned(), Some(RrType::Txt), None)
            } else {
                let Some(next) = answer.next_record_name else { return Ok(records) };
                (next, answer.next_record_type, answer.next_record_identifier)
            };
        }
        Err(Error::new(ErrorKind::Internal, format!("the records of {} do not end", self.name)))
    }

    async fn page(
        &self,
        (name, kind, set): (String, Option<RrType>, Option<String>),
    ) -> Result<aws_sdk_route53::operation::list_resource_record_sets::ListResourceRecordSetsOutput> {
        let call = self.client.list_resource_record_sets().hosted_zone_id(&self.zone).start_record_name(name);
        let call = call.set_start_record_type(kind).set_start_record_identifier(set);
        call.send().await.map_err(|e| sorted(format_args!("reading the records of {}", self.name), e))
    }

    /// Makes a batch of changes, and returns its id.
    async fn edit(&self, edits: Vec<Edit>, comment: &str) -> Result<Option<String>, Unmoved> {
        let comment: String = comment.chars().filter(|c| c.is_ascii_graphic() || *c == ' ').take(256).collect();
        let batch = ChangeBatch::builder().comment(comment).set_changes(Some(edits)).build();
        let batch = batch.map_err(|e| {
            Unmoved::Other(Error::new(ErrorKind::Internal, "a batch of changes cannot be made").because(e))
        })?;
        let call = self.client.change_resource_record_sets().hosted_zone_id(&self.zone).change_batch(batch);
        // Not repeated by the SDK: after a lost answer its second request would be refused over the first. The engine
        // looks, and repeats what is still due.
        let once = Overrides::new().retry_config(RetryConfig::disabled());
        match call.customize().config_override(once).send().await {
            Ok(answer) => Ok(answer.change_info.map(|change| change.id)),
            Err(e) => {
                let wrong = match e.as_service_error() {
                    Some(ChangeResourceRecordSetsError::InvalidChangeBatch(wrong)) => {
                        let said = wrong.messages().join("; ");
                        let whole = wrong.message.clone().unwrap_or_default();
                        Some(format!("{whole} {said}"))
                    }
                    _ => None,
                };
                let what = format!("changing the records of {}", self.name);
                Err(match wrong {
                    Some(why) if is_stale(&why) => Unmoved::Stale(why.trim().to_owned()),
                    Some(why) => Unmoved::Other(Error::invalid(format!("{what}: Route 53 refuses it: {}", why.trim()))),
                    None => Unmoved::Other(sorted(what, e)),
                })
            }
        }
    }

    /// What is still to be waited for before anybody may be sure that these records are what is answered.
    async fn unsettled(&self, records: &Records, last: Option<&Attempt>) -> Result<Option<String>> {
        let version = records.version();
        let change = {
            let mut seen = self.seen();
            if seen.version != version {
                *seen = Seen { version: version.clone(), since: Some(Instant::now()), ..Seen::default() };
            }
            // Nothing that this rollout has asked for made them so.
            if seen.change.is_none() && last.is_none_or(|last| last.version.as_str() == version) {
                return Ok(None);
            }
            seen.change.clone().filter(|_| seen.in_sync.is_none())
        };
        if let Some(change) = change {
            match self.client.get_change().id(&change).send().await {
                Ok(answer) if answer.change_info().is_some_and(|it| it.status == ChangeStatus::Insync) => {
                    let mut seen = self.seen();
                    if seen.change.as_ref() == Some(&change) {
                        seen.in_sync = Some(Instant::now());
                    }
                }
                Ok(_) => {
                    return Ok(Some("the name servers of Route 53 are not all in sync with the change yet".into()));
                }
                Err(e) => {
                    let e = sorted(format_args!("reading the state of change {change}"), e);
                    if e.kind() != ErrorKind::NotFound {
                        return Err(e);
                    }
                    // Forgotten by Route 53: then time has to do.
                    self.seen().change = None;
                }
            }
        }
        let ttl = records.ttl();
        let seen = self.seen();
        let (from, wait, why) = match (seen.in_sync, seen.since) {
            (Some(at), _) => (at, ttl, "resolvers may still have the answers from before".to_owned()),
            (None, Some(at)) => {
                let all = self.propagation + ttl;
                (at, all, "nobody knows since when the name servers have the change".to_owned())
            }
            (None, None) => return Ok(None),
        };
        Ok((from.elapsed() < wait).then(|| format!("{why}: {} s are waited from when it was seen", wait.as_secs())))
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why a batch was not made.
#[derive(Debug)]
enum Unmoved {
    /// The records are others than those that were seen.
    Stale(String),
    Other(Error),
}

/// Whether a batch was refused because of what is there, by Route 53's own words.
fn is_stale(why: &str) -> bool {
    ["values provided do not match", "was not found", "already exists"].iter().any(|said| why.contains(said))
}

#[async_trait]
impl DeploymentBackend for Weighted {
    fn capabilities(&self) -> Capabilities {
        Capabilities::full()
    }

    async fn baseline(&self) -> Result<Revision> {
        Revision::new(self.records().await?.serves(&self.name)?)
    }

    async fn preflight(&self, change: &Change, plan: &Plan) -> Result<Readiness> {
        self.prove(change, plan).await
    }

    async fn observe<'a>(&self, change: &Change, goal: Goal, last: Option<&'a Attempt>) -> Result<Observed> {
        let records = self.records().await?;
        let landed = last.is_some_and(|last| records.is_marked_by(last.nonce.as_str()));
        let (progress, weight) = match records.share(change) {
            Err(odd) => (Progress::Drifted(Note::new(format!("{}: {odd}", self.name))), None),
            Ok(share) if share == wanted(goal) => match self.unsettled(&records, last).await? {
                Some(why) => (Progress::Underway(Note::new(why)), Some(share)),
                None => (Progress::Reached, Some(share)),
            },
            Ok(share) => {
                (Progress::Due(Note::new(format!("give {} {}", change.candidate.id, wanted(goal)))), Some(share))
            }
        };
        let look = Observed::new(progress, Version::try_from(records.version())?).landed(landed);
        Ok(match weight {
            Some(weight) => look.weight(weight),
            None => look,
        })
    }

    async fn shift(&self, change: &Change, goal: Goal, attempt: &Attempt) -> Result<()> {
        let records = self.records().await?;
        let moved_on =
            || Error::new(ErrorKind::Conflict, format!("the records of {} have changed meanwhile", self.name));
        if records.version() != attempt.version.as_str() {
            return Err(moved_on());
        }
        let share = wanted(goal);
        // Whoever has changed them since changes the version; so what is odd now was odd when it was looked at.
        records.share(change).map_err(|odd| Error::new(ErrorKind::Conflict, format!("{}: {odd}", self.name)))?;
        let (edits, after) = records.moved(&self.name, change, share, attempt.nonce.as_str())?;
        match self.edit(edits, &format!("rollback: {} of {} to {}", share, self.name, change.candidate.id)).await {
            Ok(id) => {
                let id = id.map(|id| id.trim_start_matches("/change/").to_owned());
                *self.seen() = Seen { version: after, since: Some(Instant::now()), change: id, in_sync: None };
                Ok(())
            }
            Err(Unmoved::Stale(why)) => Err(moved_on().because(Error::new(ErrorKind::Conflict, why))),
            Err(Unmoved::Other(e)) => Err(e),
        }
    }
}

impl fmt::Debug for Weighted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Weighted").field("zone", &self.zone).field("name", &self.name).finish_non_exhaustive()
    }
}

/// The candidate's share that a goal is.
const fn wanted(goal: Goal) -> Weight {
    match goal {
        Goal::Baseline => Weight::NONE,
        Goal::Candidate => Weight::ALL,
        Goal::Split(weight) => weight,
    }
}

/// The most pages of 300 records that one name and what lies between it and its marker may fill.
const PAGES: usize = 20;
