//! Rollouts in the Kubernetes API: for tools that run as several replicas in the cluster.

mod api;
mod secret;

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use jiff::{SignedDuration, Timestamp};
use rollback_core::{
    Error, ErrorKind, Result,
    clock::{Clock as _, SystemClock},
    model::{DriverId, RolloutId, Serial, TargetId},
    request::Request,
    store::{Asked, Claim, Record, Standing, Store},
};
use tokio::time::sleep;

use self::{
    api::Api,
    secret::{
        DRIVEN_BY, HAS_DRIVER, HAS_ROLLOUT, HEAD, Head, IS_ASKED, IS_OPEN, Kept, Known, Meta, PART, ROLLOUT, TARGET,
    },
};
use crate::{
    Client,
    access::{self, Access},
};

/// Keeps rollouts as Secrets of one namespace, and beats by a `coordination.k8s.io` Lease per process.
///
/// For tools that run as several replicas: whichever of them drives a rollout, the others see it, and take it over when
/// it dies. Clones are one store.
///
/// **Secrets**, and no resource of our own: records hold what backends seal, and clusters treat Secrets as private
/// already, by their roles and, where it is set up, by encryption at rest; and nothing has to be installed by an
/// administrator of the cluster. Listing Secrets is a right on a whole namespace, so **give the store a namespace of its
/// own**: [`Self::manifest`] prints it, with the role that it takes and no other right.
///
/// A target has one Secret with its open record, everything asked of it and the order of its records; each save is one
/// write that holds only for the `resourceVersion` that was read. Every earlier record has a Secret of its own. The last
/// 10 finished records of a target are kept; see [`Self::keep`]. The API server takes 1 MiB in a Secret, which is more
/// than a record with two revisions at their limit has; a save beyond it is refused as `Invalid`.
///
/// A beat is one request, once a second. Whether a driver lives is judged by whether its Lease *changes*: nobody's clock
/// is compared with another's.
#[derive(Clone)]
pub struct Secrets {
    api: Arc<Api>,
    keep: usize,
    known: Arc<Mutex<Cache>>,
}

/// What this process remembers of what it read and wrote. Never trusted: each write says which version it goes by.
#[derive(Default)]
struct Cache {
    /// By subject, without the body, which is in what is to be written anyway.
    heads: HashMap<TargetId, Seen>,
    /// Of which subject a rollout is.
    subjects: HashMap<RolloutId, TargetId>,
    drivers: HashMap<DriverId, Driving>,
}

/// A head as it was read or written last.
#[derive(Clone)]
struct Seen {
    head: Head,
    uid: Option<String>,
    version: Option<String>,
    /// Not read just now.
    remembered: bool,
}

/// What a driver that beats here has to look for.
#[derive(Default)]
struct Driving {
    /// The sign on its Lease that was heeded last.
    sign: Option<String>,
    /// It may have been asked something.
    look: bool,
    /// Beats since it looked.
    beats: u32,
}

/// Where a record is.
enum Place {
    Head(Seen),
    Past(Seen, Kept, Option<String>),
}

impl Secrets {
    /// A store in this namespace. Nothing is read or written yet.
    ///
    /// # Errors
    /// `Invalid` when it is not a namespace's name.
    pub fn new(client: &Client, namespace: &str) -> Result<Self> {
        let api = Arc::new(Api::new(client, namespace)?);
        Ok(Self { api, keep: 10, known: Arc::default() })
    }

    /// Keeps so many finished records of a target, at least 1, and whatever happens its last promoted one and the open
    /// one. The rest is deleted whenever a rollout of the target ends.
    #[must_use]
    pub fn keep(mut self, records: usize) -> Self {
        self.keep = records.max(1);
        self
    }

    /// What the store has to be allowed, in its namespace.
    pub const RIGHTS: &[Access] = &[
        Access {
            group: "",
            resource: "secrets",
            verbs: &["get", "list", "create", "update", "delete"],
            why: "keep records",
        },
        Access {
            group: "coordination.k8s.io",
            resource: "leases",
            verbs: &["list", "create", "patch", "delete"],
            why: "tell the other processes that this one lives",
        },
    ];

    /// What the store needs, as YAML for `kubectl apply`: the namespace, a role in it, and the binding of the role to this
    /// service account, as `shop/deployer`.
    ///
    /// # Errors
    /// `Invalid` when the namespace or the account is none.
    pub fn manifest(namespace: &str, account: &str) -> Result<String> {
        let role = access::role("rollback-store", namespace, Self::RIGHTS)?;
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
        let account = account
            .split_once('/')
            .filter(|(from, name)| [from, name].iter().all(|name| !name.is_empty() && name.chars().all(plain)));
        let Some((from, account)) = account else {
            return Err(Error::invalid("the service account is none; one as NAMESPACE/NAME is accepted"));
        };
        Ok(format!(
            "apiVersion: v1\nkind: Namespace\nmetadata: {{name: {namespace}}}\n---\n{role}---\n\
             apiVersion: rbac.authorization.k8s.io/v1\nkind: RoleBinding\n\
             metadata: {{name: rollback-store, namespace: {namespace}}}\n\
             roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: Role, name: rollback-store}}\n\
             subjects:\n- {{kind: ServiceAccount, name: {account}, namespace: {from}}}\n"
        ))
    }

    /// The head of a subject, as it is now.
    async fn read(&self, subject: &TargetId) -> Result<Option<Seen>> {
        let Some(secret) = self.api.secret(&secret::head_name(subject)).await? else {
            self.lock().heads.remove(subject);
            return Ok(None);
        };
        let head = Head::from_secret(&secret)?;
        Ok(Some(Seen { head, uid: secret.metadata.uid, version: secret.metadata.resource_version, remembered: false }))
    }

    /// The head of a subject as far as this process remembers it, else as it is now.
    async fn recall(&self, subject: &TargetId) -> Result<Option<Seen>> {
        let seen = self.lock().heads.get(subject).cloned();
        match seen {
            Some(seen) => Ok(Some(seen)),
            None => self.read(subject).await,
        }
    }

    /// Writes a head that still has the version that was seen.
    async fn write(&self, seen: &Seen, head: Head) -> Tried<()> {
        let subject = head.current.record.subject.clone();
        let secret = head.to_secret(seen.uid.clone(), seen.version.clone())?;
        // Forgotten first: a call that is dropped leaves nothing that was never so.
        self.lock().heads.remove(&subject);
        let written = match seen.version {
            Some(_) => self.api.replace(&secret).await,
            None => self.api.create(&secret).await,
        };
        let written = written.map_err(Lost::race)?;
        let mut cache = self.lock();
        cache.subjects.insert(head.current.record.id.clone(), subject.clone());
        if head.current.is_open() {
            let mut head = head;
            head.current.record.body = "".into();
            let Meta { uid, resource_version: version, .. } = written;
            cache.heads.insert(subject, Seen { head, uid, version, remembered: true });
        } else {
            // What is over is seldom written again.
            cache.subjects.remove(&head.current.record.id);
        }
        Ok(())
    }

    /// Moves what a head holds to a Secret of its own, so that the head can take another record.
    async fn move_out(&self, seen: &Seen) -> Tried<()> {
        let current = &seen.head.current;
        let mut past = current.to_past(seen.uid.as_deref())?;
        match self.api.create(&past).await {
            Err(e) if e.kind() == ErrorKind::Conflict => {}
            Ok(_) => return Ok(()),
            Err(e) => return Err(e.into()),
        }
        let Some(old) = self.api.secret(&past.metadata.name).await? else { return Err(Lost::Race) };
        match Kept::from_past(&old) {
            // Somebody moved it out before, and it may have been saved since: what is later is the truth.
            Ok(old) if old.serial >= current.serial => return Ok(()),
            Err(e) if e.kind() == ErrorKind::Unsupported => return Err(e.into()),
            _ => {}
        }
        past.metadata.resource_version = old.metadata.resource_version;
        self.api.replace(&past).await.map(drop).map_err(Lost::race)
    }

    /// Where the record of this id is.
    async fn find(&self, id: &RolloutId) -> Result<Option<Place>> {
        let known = self.lock().subjects.get(id).cloned();
        if let Some(subject) = known
            && let Some(seen) = self.read(&subject).await?
            && seen.head.current.record.id == *id
        {
            return Ok(Some(Place::Head(seen)));
        }
        // While we look it may move out of its head: so there we look before and after.
        if let Some(place) = self.find_past(id).await? {
            return Ok(place);
        }
        let selector = format!("{PART}={HEAD},{HAS_ROLLOUT}={}", secret::digest(id.as_str()));
        let heads = self.api.list(&selector).await?;
        let mut subjects =
            heads.iter().filter(|meta| meta.annotations.get(ROLLOUT).is_some_and(|at| at == id.as_str()));
        if let Some(subject) = subjects.find_map(|meta| meta.annotations.get(TARGET))
            && let Some(seen) = self.read(&TargetId::try_from(subject.as_str())?).await?
            && seen.head.current.record.id == *id
        {
            return Ok(Some(Place::Head(seen)));
        }
        Ok(self.find_past(id).await?.flatten())
    }

    /// Where the record of this id is, by the Secret that it has of its own; outer none: it has none.
    async fn find_past(&self, id: &RolloutId) -> Result<Option<Option<Place>>> {
        let Some(secret) = self.api.secret(&secret::past_name(id)).await? else { return Ok(None) };
        let kept = Kept::from_past(&secret)?;
        let Some(seen) = self.read(&kept.record.subject).await? else { return Ok(Some(None)) };
        Ok(Some(match seen.head.current.record.id == *id {
            true => Some(Place::Head(seen)),
            false if seen.head.knows(id) => Some(Place::Past(seen, kept, secret.metadata.resource_version)),
            // What was left over when a history was trimmed.
            false => None,
        }))
    }

    /// Deletes records that were trimmed. What cannot be deleted now is known to nobody.
    async fn delete(&self, gone: Vec<RolloutId>) {
        for id in gone {
            self.lock().subjects.remove(&id);
            if let Err(e) = self.api.delete_secret(&secret::past_name(&id)).await {
                tracing::debug!(rollout = %id, error = %e.chain(), "a record that was trimmed could not be deleted");
            }
        }
    }

    async fn try_create(&self, record: &Record) -> Tried<Serial> {
        if let Some(Place::Head(Seen { head: Head { current: kept, .. }, .. }) | Place::Past(_, kept, _)) =
            self.find(&record.id).await?
        {
            return match kept.record == *record && kept.serial == Serial(1) {
                true => Ok(Serial(1)),
                false => Err(taken(&record.id).into()),
            };
        }
        let Some(seen) = self.read(&record.subject).await? else {
            self.write(&Seen::nothing(record), Head::new(record)).await?;
            return Ok(Serial(1));
        };
        let mut head = seen.head.clone();
        let gone = if record.standing == Standing::Open {
            if head.current.is_open() {
                return Err(busy(&record.subject, &head.current.record.id).into());
            }
            self.move_out(&seen).await?;
            head.current = Head::new(record).current;
            head.requests.clear();
            let gone = head.settle(record, self.keep);
            self.write(&seen, head).await?;
            gone
        } else {
            // One that no order knows, left over when a history was trimmed.
            let left = self.api.secret(&secret::past_name(&record.id)).await?;
            // The order first: what no order knows is nobody's.
            let gone = head.settle(record, self.keep);
            self.write(&seen, head).await?;
            let mut past = Head::new(record).current.to_past(seen.uid.as_deref())?;
            past.metadata.resource_version = left.and_then(|left| left.metadata.resource_version);
            let written = match past.metadata.resource_version {
                Some(_) => self.api.replace(&past).await,
                None => self.api.create(&past).await,
            };
            written.map_err(Lost::race)?;
            gone
        };
        self.delete(gone).await;
        Ok(Serial(1))
    }

    async fn try_update(&self, record: &Record, expected: Serial) -> Tried<Serial> {
        let seen = self.recall(&record.subject).await?;
        let Some(mut seen) = seen.filter(|seen| seen.head.knows(&record.id)) else {
            return Err(self.elsewhere(record, expected).await?.into());
        };
        if seen.head.current.record.id != record.id {
            return self.update_past(record, expected).await;
        }
        if seen.head.current.serial != expected {
            if seen.remembered {
                let Some(fresh) = self.read(&record.subject).await? else { return Err(unknown(&record.id).into()) };
                seen = fresh;
            }
            let current = &seen.head.current;
            if current.record.id != record.id {
                return self.update_past(record, expected).await;
            }
            if current.serial != expected {
                return Err(stale(&record.id, current.serial, expected).into());
            }
        }
        let mut head = seen.head.clone();
        head.current =
            Kept { record: record.clone(), serial: expected.next(), asked: head.current.asked.max(record.heard) };
        match record.standing {
            Standing::Open => head.requests.retain(|(number, _)| *number > record.heard),
            _ => head.requests.clear(),
        }
        let claimed = seen.head.current.record.driver != record.driver;
        let gone = head.settle(record, self.keep);
        self.write(&seen, head).await?;
        if claimed {
            self.look_soon(record.driver.as_ref());
        }
        self.delete(gone).await;
        Ok(expected.next())
    }

    /// An update of a record that its head does not hold.
    async fn update_past(&self, record: &Record, expected: Serial) -> Tried<Serial> {
        let (seen, kept, version) = match self.find(&record.id).await? {
            None => return Err(unknown(&record.id).into()),
            Some(Place::Head(_)) => return Err(Lost::Race),
            Some(Place::Past(seen, kept, version)) => (seen, kept, version),
        };
        if kept.serial != expected {
            return Err(stale(&record.id, kept.serial, expected).into());
        }
        let saved = Kept { record: record.clone(), serial: expected.next(), asked: kept.asked.max(record.heard) };
        let mut head = seen.head.clone();
        if record.standing != Standing::Open {
            let mut past = saved.to_past(seen.uid.as_deref())?;
            past.metadata.resource_version = version;
            self.api.replace(&past).await.map_err(Lost::race)?;
            let gone = head.settle(record, self.keep);
            if head != seen.head {
                self.write(&seen, head).await?;
            }
            self.delete(gone).await;
            return Ok(expected.next());
        }
        if head.current.is_open() {
            return Err(busy(&record.subject, &head.current.record.id).into());
        }
        self.move_out(&seen).await?;
        head.current = saved;
        head.requests.clear();
        head.settle(record, self.keep);
        self.write(&seen, head).await?;
        self.look_soon(record.driver.as_ref());
        Ok(expected.next())
    }

    /// Why a record that its subject does not know cannot be updated.
    async fn elsewhere(&self, record: &Record, expected: Serial) -> Tried<Error> {
        let kept = match self.find(&record.id).await? {
            None => return Ok(unknown(&record.id)),
            Some(Place::Head(seen)) => seen.head.current,
            Some(Place::Past(_, kept, _)) => kept,
        };
        if kept.serial != expected {
            return Ok(stale(&record.id, kept.serial, expected));
        }
        if kept.record.subject == record.subject {
            return Err(Lost::Race);
        }
        let said = format!("rollout {} is about {}, which cannot be changed", record.id, kept.record.subject);
        Ok(Error::invalid(said))
    }

    /// Returns who is to hear it, and under which number.
    async fn try_ask(&self, id: &RolloutId, request: &Request) -> Tried<(Option<DriverId>, u64)> {
        let seen = match self.find(id).await? {
            None => return Err(unknown(id).into()),
            Some(Place::Head(seen)) if seen.head.current.is_open() => seen,
            Some(_) => return Err(over(id).into()),
        };
        let mut head = seen.head.clone();
        // A record may have heard more than was asked here, when it came from another store.
        let number = head.current.asked.max(head.current.record.heard) + 1;
        head.current.asked = number;
        let request = serde_json::to_value(request)
            .map_err(|e| Error::new(ErrorKind::Internal, "a request cannot be written as JSON").because(e))?;
        head.requests.push((number, request));
        let driver = head.current.record.driver.clone();
        self.write(&seen, head).await?;
        Ok((driver, number))
    }

    /// What was asked of the rollouts that this driver drives.
    async fn asked(&self, driver: &DriverId) -> Result<Vec<(RolloutId, Asked)>> {
        let selector =
            format!("{PART}={HEAD},{IS_OPEN}=true,{IS_ASKED}=true,{HAS_DRIVER}={}", secret::digest(driver.as_str()));
        let mut asked = Vec::new();
        for meta in self.api.list(&selector).await? {
            let Some(secret) = self.api.secret(&meta.name).await? else { continue };
            let Head { current, requests, .. } = Head::from_secret(&secret)?;
            if current.record.driver.as_ref() != Some(driver) || !current.is_open() {
                continue;
            }
            for (number, request) in requests.into_iter().filter(|(number, _)| *number > current.record.heard) {
                match serde_json::from_value(request) {
                    Ok(request) => asked.push((current.record.id.clone(), Asked { number, request })),
                    // A newer process may ask what this version cannot; the beat and the other requests must not suffer.
                    Err(_) => {
                        let rollout = &current.record.id;
                        tracing::warn!(%rollout, number, "a request that this version cannot read is left alone");
                    }
                }
            }
        }
        asked.sort_by(|(a, x), (b, y)| (a, x.number).cmp(&(b, y.number)));
        Ok(asked)
    }

    /// A driver has taken a rollout up: what was asked of it before was asked of another.
    fn look_soon(&self, driver: Option<&DriverId>) {
        if let Some(driver) = driver {
            self.lock().drivers.entry(driver.clone()).or_default().look = true;
        }
    }

    /// Deletes the Leases of drivers that have been silent for a day and drive nothing.
    async fn clear_leases(&self, now: Timestamp) -> Result<()> {
        let old: Vec<_> =
            self.api.leases().await?.into_iter().filter(|lease| lease.is_silent_since(now - SILENT)).collect();
        if old.is_empty() {
            return Ok(());
        }
        let open = self.api.list(&format!("{PART}={HEAD},{IS_OPEN}=true")).await?;
        for lease in old {
            if !open.iter().any(|meta| meta.annotations.get(DRIVEN_BY) == lease.holder()) {
                self.api.delete_lease(&lease).await?;
            }
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Cache> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Store for Secrets {
    async fn create(&self, record: &Record) -> Result<Serial> {
        let serial = persist(|| self.try_create(record)).await?;
        self.look_soon(record.driver.as_ref());
        Ok(serial)
    }

    async fn load(&self, id: &RolloutId) -> Result<(Record, Serial)> {
        match self.find(id).await? {
            Some(Place::Head(Seen { head: Head { current: kept, .. }, .. }) | Place::Past(_, kept, _)) => {
                Ok((kept.record, kept.serial))
            }
            None => Err(unknown(id)),
        }
    }

    async fn update(&self, record: &Record, expected: Serial) -> Result<Serial> {
        persist(|| self.try_update(record, expected)).await
    }

    async fn open(&self) -> Result<Vec<Claim>> {
        let heads = self.api.list(&format!("{PART}={HEAD},{IS_OPEN}=true")).await?;
        let beats: HashMap<String, u64> =
            self.api.leases().await?.into_iter().filter_map(|lease| lease.beat()).collect();
        let claim = |meta: &Meta| {
            let text = |key| meta.annotations.get(key).map(String::as_str);
            let driver = text(DRIVEN_BY).map(DriverId::try_from).transpose()?;
            Ok(Claim {
                id: text(ROLLOUT).unwrap_or_default().try_into()?,
                subject: text(TARGET).unwrap_or_default().try_into()?,
                beat: driver.as_ref().and_then(|driver| beats.get(driver.as_str())).copied(),
                driver,
            })
        };
        let broken =
            |meta: &Meta, e: Error| e.during(format!("the Secret {} is not what this library writes", meta.name));
        heads.iter().map(|meta| claim(meta).map_err(|e| broken(meta, e))).collect()
    }

    async fn history(&self, subject: &TargetId, limit: usize) -> Result<Vec<Record>> {
        let Some(seen) = self.read(subject).await? else { return Ok(Vec::new()) };
        let mut records = Vec::new();
        for Known { id, .. } in seen.head.order.iter().rev() {
            if records.len() >= limit {
                break;
            }
            if *id == seen.head.current.record.id {
                records.push(seen.head.current.record.clone());
            } else if let Some(secret) = self.api.secret(&secret::past_name(id)).await? {
                records.push(Kept::from_past(&secret)?.record);
            } else {
                tracing::debug!(rollout = %id, "the record of a rollout in the history is gone");
            }
        }
        Ok(records)
    }

    async fn beat(&self, driver: &DriverId) -> Result<Vec<(RolloutId, Asked)>> {
        let now = SystemClock.now();
        let sign = self.api.beat(driver, now).await?;
        let first = {
            let mut cache = self.lock();
            let first = !cache.drivers.contains_key(driver) || cache.drivers[driver].sign.is_none();
            let driving = cache.drivers.entry(driver.clone()).or_default();
            driving.beats += 1;
            driving.look |= driving.sign.as_deref() != Some(sign.as_str()) || driving.beats >= LOOK_EVERY;
            driving.sign = Some(sign);
            if !std::mem::take(&mut driving.look) {
                return Ok(Vec::new());
            }
            driving.beats = 0;
            // Until the look has come back.
            driving.look = true;
            first
        };
        let asked = self.asked(driver).await?;
        // What is not heard yet comes again.
        self.lock().drivers.entry(driver.clone()).or_default().look = !asked.is_empty();
        if first {
            // A process starts seldom, which is often enough to forget those that ended.
            if let Err(e) = self.clear_leases(now).await {
                tracing::debug!(error = %e.chain(), "the leases of drivers long gone could not be cleared away");
            }
        }
        Ok(asked)
    }

    async fn ask(&self, id: &RolloutId, request: &Request) -> Result<()> {
        let (driver, number) = persist(|| self.try_ask(id, request)).await?;
        // Without the sign it is heard a few beats later.
        if let Some(driver) = driver
            && let Err(e) = self.api.sign(&driver, &format!("{}-{number}", secret::digest(id.as_str()))).await
        {
            tracing::debug!(rollout = %id, error = %e.chain(), "the driver could not be told of a request");
        }
        Ok(())
    }
}

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secrets")
            .field("namespace", &self.api.namespace())
            .field("keep", &self.keep)
            .finish_non_exhaustive()
    }
}

impl Seen {
    /// There is no head yet.
    fn nothing(record: &Record) -> Self {
        Self { head: Head::new(record), uid: None, version: None, remembered: false }
    }
}

/// Why an attempt came to nothing.
enum Lost {
    /// Somebody was faster: look again.
    Race,
    /// It cannot be done, or nobody knows whether it was.
    For(Error),
}

type Tried<T> = Result<T, Lost>;

impl Lost {
    /// After a conditional write.
    fn race(error: Error) -> Self {
        match error.kind() {
            ErrorKind::Conflict => Self::Race,
            _ => Self::For(error),
        }
    }
}

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
            Err(Lost::Race) => sleep(Duration::from_millis(fastrand::u64(0..=(4 << round.min(5))))).await,
        }
    }
    let said = format!("others were faster to write the same record {ROUNDS} times");
    Err(Error::new(ErrorKind::Unavailable, said))
}

fn busy(subject: &TargetId, open: &RolloutId) -> Error {
    Error::new(ErrorKind::Conflict, format!("{subject} is busy with rollout {open}"))
}

fn taken(id: &RolloutId) -> Error {
    Error::new(ErrorKind::Conflict, format!("the rollout id {id} is taken"))
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
/// A Lease that is silent for so long is cleared away.
const SILENT: SignedDuration = SignedDuration::from_hours(24);

#[cfg(all(test, feature = "testing"))]
mod tests {
    use super::*;
    use crate::testing::Cluster;

    #[tokio::test]
    async fn a_slow_process_turns_no_record_back_that_another_has_saved_since() {
        let client = Cluster::new().client();
        let [slow, fast] = [0; 2].map(|_| Secrets::new(&client, "default").unwrap());
        let mut first = Record {
            id: "web-1".try_into().unwrap(),
            subject: "web".try_into().unwrap(),
            driver: None,
            standing: Standing::Open,
            format: 1,
            heard: 0,
            body: "1".into(),
        };
        fast.create(&first).await.unwrap();
        first.standing = Standing::Over;
        fast.update(&first, Serial(1)).await.unwrap();
        let Ok(Some(seen)) = slow.read(&first.subject).await else { panic!("it has a head") };

        let next = Record { id: "web-2".try_into().unwrap(), standing: Standing::Open, ..first.clone() };
        fast.create(&next).await.unwrap();
        first.body = "3".into();
        assert_eq!(fast.update(&first, Serial(2)).await.unwrap(), Serial(3));

        assert!(slow.move_out(&seen).await.is_ok());
        assert_eq!(fast.load(&first.id).await.unwrap(), (first, Serial(3)));
    }
}
