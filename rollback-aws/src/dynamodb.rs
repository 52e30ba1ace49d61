//! Rollouts in DynamoDB: for tools that run as several processes, on several machines, without a database of their own.
//!
//! # What it needs to be allowed
//! [`STORE`]; [`Store::policy`] prints it as a policy for the table, and [`Store::preflight`] proves it.
//!
//! # What is known, and from where
//! Conditional writes, transactions, their limits and what they cost: the developer guide and the API reference. What the
//! conditions here mean has been run on MiniStack and moto beside the crate's own simulator.

mod api;
mod item;

use std::{
    collections::{HashMap, HashSet},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use aws_sdk_dynamodb::Client;
use rollback_core::{
    Error, ErrorKind, Result,
    backend::Readiness,
    clock::{Clock as _, SystemClock},
    model::{DriverId, RolloutId, Serial, TargetId},
    request::Request,
    store::{Asked, Claim, Record, Standing, Store as CoreStore},
};
use serde_json::json;
use tokio::time::sleep;
use uuid::Uuid;

use self::{
    api::{Action, Api, Given, Outcome, Role},
    item::{DRIVERS, Head, Kept, Key, OPEN, Open, Question, Shown, beat, number, text, words},
};
use crate::{
    account::{Account, partition},
    iam::{Permission, Policy},
};

/// Keeps rollouts as items of one table, and beats by an item per process.
///
/// For tools that run as several processes: whichever of them drives a rollout, the others see it, and take it over when
/// it dies. Clones are one store.
///
/// A save is one conditional write of one item, which holds only for the serial that was read; what changes more than
/// that (a rollout begins, ends, or is taken over) is one transaction. Every write carries a nonce, so one whose answer was
/// lost is recognised when it is sent again. All reads are strongly consistent. The last 10 finished records of a target
/// are kept; see [`Self::keep`].
///
/// A beat is one write a second, of a few hundred bytes. Whether a driver lives is judged by whether its beat *changes*:
/// nobody's clock is compared with another's. (A time to live clears away what drivers long gone have left behind; nothing
/// depends on it.)
///
/// # Size and cost
/// An item may have 400 KB. A record up to 380 KiB is one item; a larger one, up to 3040 KiB, lies in several, which are
/// written in one transaction. Beyond that a save is refused as `Invalid`. DynamoDB counts a write unit a KB, twice in
/// transactions: with small revisions a record has a few KB.
///
/// # Privacy
/// Records hold what backends seal. DynamoDB encrypts every table at rest; who may read the table is up to your policies, so
/// **give the store a table of its own**: [`Self::template`] prints one.
///
/// ```no_run
/// # async fn example() -> rollback_core::Result<()> {
/// use rollback_aws::{account::Account, dynamodb::Store};
/// use rollback_core::engine::Engine;
///
/// let store = Store::new(&Account::from_env().await?, "rollouts")?;
/// let engine = Engine::builder(store).build()?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct Store {
    api: Arc<Api>,
    keep: usize,
    driving: Arc<Mutex<HashMap<DriverId, Driving>>>,
    /// The names of items that could not be read, and were told of.
    odd: Arc<Mutex<HashSet<String>>>,
}

/// What a driver that beats here has to look for.
#[derive(Debug, Default)]
struct Driving {
    /// The sign on its item that was heeded last.
    sign: Option<String>,
    /// It may have been asked something.
    look: bool,
    /// Beats since it looked.
    beats: u32,
}

/// To read records.
pub const GET: Permission = Permission::new("dynamodb:GetItem", "read records");
/// To list what is open.
pub const QUERY: Permission = Permission::new("dynamodb:Query", "list what is open");
/// To save records.
pub const PUT: Permission = Permission::new("dynamodb:PutItem", "save records");
/// To beat, and to ask.
pub const UPDATE: Permission = Permission::new("dynamodb:UpdateItem", "beat, and ask");
/// To end rollouts and trim the history.
pub const DELETE: Permission = Permission::new("dynamodb:DeleteItem", "end rollouts and trim the history");
/// To see how the table is made.
pub const DESCRIBE: Permission = Permission::new("dynamodb:DescribeTable", "see how the table is made");
/// To see whether old beats are swept.
pub const DESCRIBE_TTL: Permission = Permission::new("dynamodb:DescribeTimeToLive", "see whether old beats are swept");

/// What the store calls. Transactions are allowed by the actions that they are made of.
pub const STORE: &[Permission] = &[GET, QUERY, PUT, UPDATE, DELETE, DESCRIBE, DESCRIBE_TTL];

impl Store {
    /// A store in this table of the account and region. Nothing is read or written yet.
    ///
    /// # Errors
    /// `Invalid` when it is not a table's name.
    pub fn new(account: &Account, table: &str) -> Result<Self> {
        Self::with_client(account.dynamodb(), table)
    }

    /// The same over a client of your own. Give it timeouts: one that has none can hang.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn with_client(client: Client, table: &str) -> Result<Self> {
        is_table_name(table)?;
        Ok(Self { api: Arc::new(Api::new(client, table)), keep: 10, driving: Arc::default(), odd: Arc::default() })
    }

    /// Keeps so many finished records of a target, 1 to 500, and whatever happens its last promoted one and the open one. The
    /// rest is deleted whenever a rollout of the target ends, at most some dozen at a time.
    #[must_use]
    pub fn keep(mut self, records: usize) -> Self {
        self.keep = records.clamp(1, 500);
        self
    }

    /// The table's name.
    pub fn table(&self) -> &str {
        self.api.table()
    }

    /// The table as a template of CloudFormation, in JSON: paid by request, with a time to live for old beats, recovery to
    /// any second of the last 35 days, and kept when the stack is deleted.
    ///
    /// # Errors
    /// `Invalid` when it is not a table's name.
    pub fn template(table: &str) -> Result<String> {
        is_table_name(table)?;
        let key = |name: &str, role: &str| json!({ "AttributeName": name, "KeyType": role });
        let defined = |name: &str| json!({ "AttributeName": name, "AttributeType": "S" });
        let template = json!({
            "AWSTemplateFormatVersion": "2010-09-09",
            "Description": "Records of rollouts, one table for all of them",
            "Resources": { "Rollouts": {
                "Type": "AWS::DynamoDB::Table",
                "DeletionPolicy": "Retain",
                "UpdateReplacePolicy": "Retain",
                "Properties": {
                    "TableName": table,
                    "AttributeDefinitions": [defined(item::PK), defined(item::SK)],
                    "KeySchema": [key(item::PK, "HASH"), key(item::SK, "RANGE")],
                    "BillingMode": "PAY_PER_REQUEST",
                    "DeletionProtectionEnabled": true,
                    "PointInTimeRecoverySpecification": { "PointInTimeRecoveryEnabled": true },
                    "TimeToLiveSpecification": { "AttributeName": item::EXPIRES, "Enabled": true },
                },
            } },
        });
        Ok(format!("{template:#}"))
    }

    /// The least that a process with this store must be allowed.
    pub fn policy(&self) -> Policy {
        let region = self.api.region();
        let arn = format!("arn:{}:dynamodb:{region}:*:table/{}", partition(&region), self.table());
        Policy::new().allow(STORE, [arn])
    }

    /// Proves that the table is there, is made as it must be, and may be read and written, without changing anything: every
    /// write is tried on an item that does not exist, on the condition that it does.
    ///
    /// # Errors
    /// When the table cannot be asked at all.
    pub async fn preflight(&self) -> Result<Readiness> {
        let mut ready = Readiness::default();
        let described = match self.api.describe().await {
            Err(e) if e.kind() == ErrorKind::NotFound => {
                let why = format!(
                    "there is no table {}; Store::template prints one for CloudFormation, or name the right one",
                    self.table()
                );
                return Ok(ready.refused(why));
            }
            described => DESCRIBE.prove(&mut ready, described)?,
        };
        match described.as_ref().map(api::Described::fault) {
            Some(Some(fault)) => return Ok(ready.refused(format!("table {} {fault}", self.table()))),
            Some(None) => ready.proved.push(format!("table {} has the keys that it must have", self.table()).into()),
            None => {}
        }
        match DESCRIBE_TTL.prove(&mut ready, self.api.expires_by().await)? {
            Some(by) if by.as_deref() != Some(item::EXPIRES) => {
                let why = format!(
                    "table {} has no time to live by `{}`, so the beats of drivers long gone stay: harmless, and in the way one \
                     day",
                    self.table(),
                    item::EXPIRES
                );
                ready.not_provable.push(why.into());
            }
            _ => {}
        }
        let nobody = Key::nobody();
        GET.prove(&mut ready, self.api.get(&nobody).await)?;
        QUERY.prove(&mut ready, self.api.query(OPEN, None).await)?;
        for permission in [PUT, UPDATE, DELETE] {
            if permission.prove(&mut ready, self.api.probe(permission, &nobody).await)? == Some(false) {
                let why =
                    format!("table {} takes a write whose condition does not hold: it is no DynamoDB", self.table());
                return Ok(ready.refused(why));
            }
        }
        Ok(ready)
    }

    /// A record by itself, without the parts of its body.
    async fn shown(&self, id: &RolloutId) -> Result<Option<Shown>> {
        self.api.get(&Key::record(id)).await?.as_ref().map(Shown::read).transpose()
    }

    /// A whole record.
    async fn kept(&self, id: &RolloutId) -> Result<Option<Kept>> {
        persist(async || {
            let Some(shown) = self.shown(id).await? else { return Ok(None) };
            let mut parts = Vec::with_capacity(shown.parts);
            for number in 1..=shown.parts {
                parts.extend(self.api.get(&Key::part(id, number)).await?);
            }
            // Saved again while the parts were read.
            shown.join(&parts).map(Some).ok_or(Lost::Race)
        })
        .await
    }

    async fn head(&self, target: &TargetId) -> Result<Head> {
        match self.api.get(&Key::head(target)).await? {
            Some(item) => Head::read(target, &item),
            None => Ok(Head::empty(target.clone())),
        }
    }

    async fn lock_of(&self, target: &TargetId) -> Result<Option<Open>> {
        self.api.get(&Key::open(target)).await?.as_ref().map(Open::read).transpose()
    }

    async fn try_create(&self, record: &Record, nonce: &str) -> Tried<Serial> {
        let kept = Kept::new(record, Serial(1), nonce);
        let (item, parts) = kept.to_items()?;
        let mut head = self.head(&record.subject).await?;
        let version = head.version;
        let gone = head.settle(record, parts.len(), self.keep);
        let mut actions = vec![Action::put(Role::Record, item).only_if(Given::absent())];
        actions.extend(parts.into_iter().map(|part| Action::put(Role::Part, part)));
        if kept.is_open() {
            actions.push(Action::put(Role::Open, Open::new(&kept).to_item()).only_if(Given::absent()));
        }
        actions.push(save_head(&head, version)?);
        actions.extend(deletions(&gone));
        match self.api.transact(&format!("saving rollout {}", record.id), actions).await? {
            Outcome::Done => Ok(Serial(1)),
            Outcome::Failed(Role::Record, old) => {
                if old.as_ref().and_then(|old| words(old, "nonce")) == Some(nonce) {
                    return Ok(Serial(1));
                }
                match self.kept(&record.id).await? {
                    Some(kept) if kept.record == *record && kept.serial == Serial(1) => Ok(Serial(1)),
                    Some(_) => Err(taken(&record.id).into()),
                    None => Err(Lost::Race),
                }
            }
            Outcome::Failed(Role::Open, old) => Err(self.busy(record, old.as_ref()).await),
            Outcome::Failed(..) | Outcome::Conflict => Err(Lost::Race),
        }
    }

    /// The subject has another open rollout, whose item this is.
    async fn busy(&self, record: &Record, open: Option<&item::Item>) -> Lost {
        let open = match open {
            Some(item) => Open::read(item).map(Some),
            // Who refuses does not always tell whom over.
            None => self.lock_of(&record.subject).await,
        };
        match open {
            Ok(Some(open)) if open.id != record.id => busy(&record.subject, &open.id).into(),
            Ok(_) => Lost::Race,
            Err(e) => e.into(),
        }
    }

    async fn try_update(&self, record: &Record, expected: Serial, nonce: &str) -> Tried<Serial> {
        // No record has the last serial, so none is refused that could be saved.
        let next = Serial(expected.0.saturating_add(1));
        let kept = Kept::new(record, next, nonce);
        let (item, parts) = kept.to_items()?;
        let old = if kept.is_open() && parts.is_empty() {
            // As nearly every save is: the same driver goes on. Whether that is so is part of the condition.
            match self
                .api
                .put(&format!("saving rollout {}", record.id), item.clone(), goes_on(record, expected))
                .await?
            {
                Outcome::Done => return Ok(next),
                Outcome::Conflict => return Err(Lost::Race),
                Outcome::Failed(_, old) => old.as_ref().map(Shown::read).transpose()?,
            }
        } else {
            None
        };
        let old = match old {
            Some(old) => Some(old),
            None => self.shown(&record.id).await?,
        };
        let Some(old) = old else { return Err(unknown(&record.id).into()) };
        if old.kept.nonce == nonce {
            return Ok(next);
        }
        if old.kept.serial != expected {
            return Err(stale(&record.id, old.kept.serial, expected).into());
        }
        if old.kept.record.subject != record.subject {
            return Err(elsewhere(&record.id, &old.kept.record.subject).into());
        }
        self.change(&old, kept, expected).await
    }

    /// A save that changes more than the record: who drives it, whether it is open, in how many parts it lies.
    async fn change(&self, old: &Shown, mut kept: Kept, expected: Serial) -> Tried<Serial> {
        let (id, target) = (kept.record.id.clone(), kept.record.subject.clone());
        let ours = Given::is("id", text(id.as_str()));
        let mut actions = Vec::new();
        match (old.kept.is_open(), kept.is_open()) {
            (true, true) if old.kept.record.driver != kept.record.driver => {
                let driver = kept.record.driver.as_ref().map(|driver| text(driver.as_str()));
                actions.push(Action::set(Role::Lock, &Key::open(&target), "driver", driver).only_if(ours));
            }
            (true, false) => {
                let open = self.lock_of(&target).await?.filter(|open| open.id == id).ok_or(Lost::Race)?;
                kept.asked = open.asked.max(kept.record.heard);
                kept.answered = open.nonces().map(Into::into).collect();
                // So that numbers go on where they were should it be opened again.
                let unasked = ours.and(Given::is("asked", number(open.asked)));
                actions.push(Action::delete(Role::Lock, &Key::open(&target)).only_if(unasked));
            }
            (false, true) => {
                kept.asked = old.kept.asked.max(kept.record.heard);
                actions.push(Action::put(Role::Open, Open::new(&kept).to_item()).only_if(Given::absent()));
            }
            (false, false) => {
                kept.asked = old.kept.asked.max(kept.record.heard);
                kept.answered.clone_from(&old.kept.answered);
            }
            (true, true) => {}
        }
        let (item, parts) = kept.to_items()?;
        if !(old.kept.is_open() && kept.is_open()) {
            let mut head = self.head(&target).await?;
            let (version, before) = (head.version, head.order.clone());
            let gone = head.settle(&kept.record, parts.len(), self.keep);
            if head.order != before {
                actions.push(save_head(&head, version)?);
            }
            actions.extend(deletions(&gone));
        }
        actions.extend((parts.len() + 1..=old.parts).map(|n| Action::delete(Role::Part, &Key::part(&id, n))));
        actions.extend(parts.into_iter().map(|part| Action::put(Role::Part, part)));
        actions.push(Action::put(Role::Record, item).only_if(Given::is("serial", number(expected))));
        let claimed = old.kept.record.driver != kept.record.driver;
        match self.api.transact(&format!("saving rollout {id}"), actions).await? {
            Outcome::Done => {
                if claimed {
                    self.look_soon(kept.record.driver.as_ref());
                }
                Ok(kept.serial)
            }
            Outcome::Failed(Role::Open, open) => Err(self.busy(&kept.record, open.as_ref()).await),
            Outcome::Failed(..) | Outcome::Conflict => Err(Lost::Race),
        }
    }

    /// Returns who is to hear it.
    async fn try_ask(&self, id: &RolloutId, request: &str, nonce: &str) -> Tried<Option<DriverId>> {
        let shown = self.shown(id).await?.ok_or_else(|| unknown(id))?;
        if !shown.kept.is_open() {
            // The first try may have been heard, and have ended it.
            return if shown.kept.answered.iter().any(|known| known == nonce) {
                Ok(None)
            } else {
                Err(over(id).into())
            };
        }
        let target = &shown.kept.record.subject;
        let open = self.lock_of(target).await?.filter(|open| open.id == *id).ok_or(Lost::Race)?;
        if open.knows(nonce) {
            return Ok(open.driver);
        }
        // A record may have heard more than was asked here, when it came from another store.
        let heard = shown.kept.record.heard;
        let number = open.asked.max(heard) + 1;
        let question = Question { number, nonce: nonce.into(), text: request.into() };
        match self.api.ask(&open, &question, heard).await? {
            Outcome::Done => Ok(open.driver),
            // Its own second try may be what it runs into: so it looks again.
            _ => Err(Lost::Race),
        }
    }

    /// What was asked of the rollouts that this driver drives.
    async fn asked(&self, driver: &DriverId) -> Result<Vec<(RolloutId, Asked)>> {
        let mut asked = Vec::new();
        for item in self.api.query(OPEN, Some(("driver", text(driver.as_str())))).await? {
            let Some(open) = self.legible(&item, Open::read) else { continue };
            if open.requests.is_empty() {
                continue;
            }
            let Some(record) = self.api.get(&Key::record(&open.id)).await? else { continue };
            let Some(shown) = self.legible(&record, Shown::read) else { continue };
            let heard = shown.kept.record.heard;
            for question in open.requests.iter().filter(|question| question.number > heard) {
                match serde_json::from_str(&question.text) {
                    Ok(request) => asked.push((open.id.clone(), Asked { number: question.number, request })),
                    // A newer process may ask what this version cannot; the beat and the other requests must not suffer.
                    Err(_) => {
                        let (rollout, number) = (&open.id, question.number);
                        tracing::warn!(%rollout, number, "a request that this version cannot read is left alone");
                    }
                }
            }
            if let Err(e) = self.api.forget(&open, heard).await {
                tracing::debug!(rollout = %open.id, error = %e.chain(), "requests that were heard could not be forgotten");
            }
        }
        asked.sort_by(|(a, x), (b, y)| (a, x.number).cmp(&(b, y.number)));
        Ok(asked)
    }

    /// What an item of a list says. One that this version cannot read is left to those that can, and is told in the log: the
    /// other rollouts must not suffer for it. Its target stays locked, and whoever asks for that rollout hears why.
    fn legible<T>(&self, item: &item::Item, read: impl Fn(&item::Item) -> Result<T>) -> Option<T> {
        match read(item) {
            Ok(read) => Some(read),
            Err(e) => {
                // It is met every few seconds, and told once.
                let mut odd = self.odd.lock().unwrap_or_else(PoisonError::into_inner);
                if odd.insert(item::name(item)) {
                    tracing::warn!(error = %e, "an open rollout that this version cannot read is left alone");
                }
                None
            }
        }
    }

    /// A driver has taken a rollout up: what was asked of it before was asked of another.
    fn look_soon(&self, driver: Option<&DriverId>) {
        if let Some(driver) = driver {
            self.lock().entry(driver.clone()).or_default().look = true;
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<DriverId, Driving>> {
        self.driving.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl CoreStore for Store {
    async fn create(&self, record: &Record) -> Result<Serial> {
        let nonce = fresh();
        let serial = persist(|| self.try_create(record, &nonce)).await?;
        self.look_soon(record.driver.as_ref());
        Ok(serial)
    }

    async fn load(&self, id: &RolloutId) -> Result<(Record, Serial)> {
        let kept = self.kept(id).await?.ok_or_else(|| unknown(id))?;
        Ok((kept.record, kept.serial))
    }

    async fn update(&self, record: &Record, expected: Serial) -> Result<Serial> {
        let nonce = fresh();
        persist(|| self.try_update(record, expected, &nonce)).await
    }

    async fn open(&self) -> Result<Vec<Claim>> {
        let open = self.api.query(OPEN, None).await?;
        if open.is_empty() {
            return Ok(Vec::new());
        }
        let drivers = self.api.query(DRIVERS, None).await?;
        let beats: HashMap<&str, u64> = drivers.iter().filter_map(beat).collect();
        let claim = |item: &item::Item| {
            let Open { id, target, driver, .. } = self.legible(item, Open::read)?;
            let beat = driver.as_ref().and_then(|driver| beats.get(driver.as_str())).copied();
            Some(Claim { id, subject: target, driver, beat })
        };
        Ok(open.iter().filter_map(claim).collect())
    }

    async fn history(&self, subject: &TargetId, limit: usize) -> Result<Vec<Record>> {
        let head = self.head(subject).await?;
        let mut records = Vec::new();
        for known in head.order.iter().rev().take(limit) {
            match self.kept(&known.id).await? {
                Some(kept) => records.push(kept.record),
                None => tracing::debug!(rollout = %known.id, "a record was trimmed while the history was read"),
            }
        }
        Ok(records)
    }

    async fn beat(&self, driver: &DriverId) -> Result<Vec<(RolloutId, Asked)>> {
        let swept = SystemClock.now().as_second().saturating_add(SILENT);
        let sign = self.api.beat(driver, swept).await?.unwrap_or_default();
        {
            let mut all = self.lock();
            let driving = all.entry(driver.clone()).or_default();
            driving.beats += 1;
            // The first beat of all looks as well: a driver's name may be older than this process.
            driving.look |= driving.sign.as_ref() != Some(&sign) || driving.beats >= LOOK_EVERY;
            driving.sign = Some(sign);
            if !std::mem::take(&mut driving.look) {
                return Ok(Vec::new());
            }
            driving.beats = 0;
            // Until the look has come back.
            driving.look = true;
        }
        let asked = self.asked(driver).await?;
        // What is not heard yet comes again.
        self.lock().entry(driver.clone()).or_default().look = !asked.is_empty();
        Ok(asked)
    }

    async fn ask(&self, id: &RolloutId, request: &Request) -> Result<()> {
        let request = serde_json::to_string(request)
            .map_err(|e| Error::new(ErrorKind::Internal, "a request cannot be written as JSON").because(e))?;
        let nonce = fresh();
        let driver = persist(|| self.try_ask(id, &request, &nonce)).await?;
        // Without the sign it is heard a few beats later.
        if let Some(driver) = driver
            && let Err(e) = self.api.sign(&driver, &nonce).await
        {
            tracing::debug!(rollout = %id, error = %e.chain(), "the driver could not be told of a request");
        }
        Ok(())
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("table", &self.table()).field("keep", &self.keep).finish_non_exhaustive()
    }
}

/// That a record is as it was when this driver saved it last: open, its own, in one item.
fn goes_on(record: &Record, expected: Serial) -> Given {
    let driver = match &record.driver {
        Some(driver) => Given::is("driver", text(driver.as_str())),
        None => Given::lacks("driver"),
    };
    Given::is("serial", number(expected))
        .and(Given::is("target", text(record.subject.as_str())))
        .and(Given::is("standing", text(Standing::Open.name())))
        .and(Given::is("parts", number(0)))
        .and(driver)
}

fn save_head(head: &Head, seen: Option<u64>) -> Result<Action> {
    let unchanged = seen.map_or_else(Given::absent, |version| Given::is("version", number(version)));
    Ok(Action::put(Role::Head, head.to_item()?).only_if(unchanged))
}

fn deletions(gone: &[item::Known]) -> impl Iterator<Item = Action> {
    gone.iter().flat_map(|known| {
        let parts = (1..=known.parts).map(|n| Key::part(&known.id, n));
        std::iter::once(Key::record(&known.id)).chain(parts).map(|key| Action::delete(Role::Part, &key))
    })
}

/// Why an attempt came to nothing.
enum Lost {
    /// Somebody was faster: look again.
    Race,
    /// It cannot be done, or nobody knows whether it was.
    For(Error),
}

type Tried<T> = Result<T, Lost>;

impl From<Error> for Lost {
    fn from(error: Error) -> Self {
        Self::For(error)
    }
}

/// Tries until nobody is faster, for a while.
async fn persist<T, F: Future<Output = Tried<T>>>(attempt: impl Fn() -> F) -> Result<T> {
    for round in 0..ROUNDS {
        match attempt().await {
            Ok(done) => return Ok(done),
            Err(Lost::For(error)) => return Err(error),
            // Apart from each other by chance, and more so the more often they meet.
            Err(Lost::Race) => {
                let most = 4_u64 << round.min(6);
                sleep(Duration::from_millis(Uuid::new_v4().as_u64_pair().0 % (most + 1))).await;
            }
        }
    }
    let said = format!("others were faster to write the same item {ROUNDS} times");
    Err(Error::new(ErrorKind::Unavailable, said))
}

fn fresh() -> String {
    Uuid::new_v4().simple().to_string()
}

/// What DynamoDB takes for a table's name (API reference, CreateTable).
fn is_table_name(name: &str) -> Result<()> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
    if (3..=255).contains(&name.len()) && name.chars().all(plain) {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "{name:?} is no table's name; 3 to 255 letters, digits, dashes, dots and underscores are accepted"
    )))
}

fn busy(subject: &TargetId, open: &RolloutId) -> Error {
    Error::new(ErrorKind::Conflict, format!("{subject} is busy with rollout {open}"))
}

fn taken(id: &RolloutId) -> Error {
    Error::new(ErrorKind::Conflict, format!("the rollout id {id} is taken"))
}

fn elsewhere(id: &RolloutId, subject: &TargetId) -> Error {
    Error::invalid(format!("rollout {id} is about {subject}, which cannot be changed"))
}

fn unknown(id: &RolloutId) -> Error {
    Error::new(ErrorKind::NotFound, format!("there is no rollout {id}"))
}

fn stale(id: &RolloutId, seen: Serial, expected: Serial) -> Error {
    Error::new(ErrorKind::Conflict, format!("the record of rollout {id} has serial {seen}, not {expected}"))
}

fn over(id: &RolloutId) -> Error {
    Error::new(ErrorKind::Conflict, format!("rollout {id} is over"))
}

/// How often a write is tried that others are faster at.
const ROUNDS: u32 = 64;
/// Without a sign a driver looks for requests every so many beats.
const LOOK_EVERY: u32 = 10;
/// How many seconds after its last beat a driver's item may be swept: a week.
const SILENT: i64 = 7 * 24 * 3600;
