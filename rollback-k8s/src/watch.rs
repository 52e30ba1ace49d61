//! Watches of the cluster, shared: one a namespace and kind, however many rollouts of a process look at it.
//!
//! A watch lists, then hears of every change. It asks for bookmarks; the API server ends it every few seconds by our
//! wish, and it goes on from where it was: so one that has died without a word is noticed within seconds, and what is
//! known is never older than it says. After `410 Gone`, after silence, and where something in between ends it before its
//! time again and again, it lists again, which is what polling would do.

mod kept;

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use futures_util::TryStreamExt as _;
use jiff::Timestamp;
use kube::core::{
    Request, WatchEvent,
    params::{ListParams, WatchParams},
};
use rollback_core::{
    Error, ErrorKind, Result, Wake,
    backend::Readiness,
    clock::{Clock as _, SystemClock},
    model::{Attempt, Goal, Observed, Progress},
};
use serde::Deserialize;
use serde_json::Value;
use tokio::{
    sync::Notify,
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};

pub(crate) use self::kept::{Condition, Kept, Object, Set};
use crate::{
    Client,
    access::Access,
    gate::pod::Pod,
    mark,
    object::{CONTROLLER_REVISIONS, PODS, REPLICA_SETS, Resource},
    workload::ATTEMPT,
};

/// The watches of a process. Cheap to clone; clones share them.
///
/// Make one for all targets and gates on one cluster: then the number of watches and of steady requests does not grow with the number
/// of rollouts. A watch begins when it is first needed and ends when nobody has needed it for two minutes.
#[derive(Clone)]
pub struct Watches {
    client: Client,
    namespaces: Arc<Mutex<HashMap<String, Arc<Namespace>>>>,
}

/// What is watched in a namespace.
pub(crate) struct Namespace {
    pub(crate) pods: Feed<Pod>,
    pub(crate) replica_sets: Feed<Set>,
    pub(crate) controller_revisions: Feed<Set>,
    objects: Mutex<HashMap<Resource, Arc<Feed<Object>>>>,
    client: Client,
    name: Box<str>,
    bells: Arc<Bells>,
}

/// Who is to be woken, by the object that is concerned.
#[derive(Default)]
pub(crate) struct Bells(Mutex<HashMap<Concerned, Vec<Wake>>>);

/// A workload or a route, by kind and name.
type Concerned = (Resource, Box<str>);

impl Watches {
    /// Watches by this client. None has begun yet.
    pub fn new(client: &Client) -> Self {
        Self { client: client.clone(), namespaces: Arc::default() }
    }

    pub(crate) const fn client(&self) -> &Client {
        &self.client
    }

    pub(crate) fn namespace(&self, name: &str) -> Arc<Namespace> {
        let mut namespaces = lock(&self.namespaces);
        Arc::clone(namespaces.entry(name.into()).or_insert_with(|| Arc::new(Namespace::new(&self.client, name))))
    }

    /// An object as it is watched, once it shows this attempt: then everything that came before it is known. None where
    /// watching fails, is not allowed, or takes longer than a request would: then a look is a request.
    pub(crate) async fn heard(
        &self,
        resource: Resource,
        namespace: &str,
        name: &str,
        about: &str,
        last: &Attempt,
    ) -> Option<Value> {
        let feed = self.namespace(namespace).objects(resource);
        timeout(SOON, feed.fresh()).await.ok()?.ok()?;
        let object = feed.get(name)?.object();
        (mark::noted(&object, about, ATTEMPT) == Some(last.nonce.as_str())).then_some(object)
    }

    /// What it takes to look at objects of this kind by watch.
    pub(crate) const fn right(resource: Resource) -> Access {
        Access::to(resource, &["list", "watch"], "hear of every change instead of asking for it")
    }

    /// Whether we may look at objects of this kind by watch, which nothing depends on.
    pub(crate) async fn prove(&self, resource: Resource, namespace: &str, ready: Readiness) -> Result<Readiness> {
        let mut found = Self::right(resource).prove(&self.client, namespace, None, Readiness::default()).await?;
        found.not_provable.append(&mut found.refused);
        Ok(ready.and(found))
    }
}

impl fmt::Debug for Watches {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watches").field("namespaces", &lock(&self.namespaces).keys()).finish_non_exhaustive()
    }
}

impl Namespace {
    fn new(client: &Client, name: &str) -> Self {
        let bells = Arc::new(Bells::default());
        Self {
            pods: Feed::new(client, PODS, name, &bells),
            replica_sets: Feed::new(client, REPLICA_SETS, name, &bells),
            controller_revisions: Feed::new(client, CONTROLLER_REVISIONS, name, &bells),
            objects: Mutex::default(),
            client: client.clone(),
            name: name.into(),
            bells,
        }
    }

    /// Workloads, or routes.
    pub(crate) fn objects(&self, resource: Resource) -> Arc<Feed<Object>> {
        let mut objects = lock(&self.objects);
        let new = || Arc::new(Feed::new(&self.client, resource, &self.name, &self.bells));
        Arc::clone(objects.entry(resource).or_insert_with(new))
    }

    /// Wakes this rollout when an object, or one of the pods of a workload, changes.
    pub(crate) fn wake_on(&self, resource: Resource, name: &str, wake: Wake) {
        let mut bells = lock(&self.bells.0);
        let wakes = bells.entry((resource, name.into())).or_default();
        wakes.retain(|wake| !wake.is_dead());
        wakes.push(wake);
    }
}

impl Bells {
    fn ring(&self, concerned: &Concerned) {
        if let Some(wakes) = lock(&self.0).get(concerned) {
            wakes.iter().for_each(Wake::wake);
        }
    }
}

/// One watch, and what it knows.
pub(crate) struct Feed<T> {
    shared: Arc<Shared<T>>,
}

struct Shared<T> {
    client: Client,
    resource: Resource,
    path: String,
    bells: Arc<Bells>,
    state: Mutex<State<T>>,
    /// Rings whenever something is known for the first time, or a list has failed.
    told: Notify,
}

struct State<T> {
    items: HashMap<Box<str>, Arc<T>>,
    /// Names by their controller's uid.
    owned: HashMap<Box<str>, Vec<Box<str>>>,
    /// The last sign of life: until then everything that happened is known.
    alive: Option<(Instant, Timestamp)>,
    /// Why there is none, if the last try failed.
    trouble: Option<Trouble>,
    wanted: Instant,
    /// None: nobody has needed it, or not for a while.
    running: Option<JoinHandle<()>>,
}

#[derive(Clone)]
struct Trouble {
    kind: ErrorKind,
    said: String,
}

/// How a watch ended.
enum End {
    /// By the API server, in order: go on from here.
    Done,
    /// Before its time: nothing is proved, and it goes on from here unless that has lasted for long.
    Cut,
    /// What comes next is not known: list again.
    Gone,
    /// Nothing was heard for longer than there can be nothing.
    Silent,
}

impl<T: Kept> Feed<T> {
    fn new(client: &Client, resource: Resource, namespace: &str, bells: &Arc<Bells>) -> Self {
        let state = State {
            items: HashMap::new(),
            owned: HashMap::new(),
            alive: None,
            trouble: None,
            wanted: Instant::now(),
            running: None,
        };
        let shared = Shared {
            client: client.clone(),
            resource,
            path: resource.path(namespace, None),
            bells: Arc::clone(bells),
            state: Mutex::new(state),
            told: Notify::new(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Waits until everything is known, and says up to when. Begins the watch if none runs.
    ///
    /// # Errors
    /// Why nothing is known, or nothing that is recent enough to be used.
    pub(crate) async fn fresh(&self) -> Result<Timestamp> {
        loop {
            let told = self.shared.told.notified();
            tokio::pin!(told);
            told.as_mut().enable();
            {
                let mut state = lock(&self.shared.state);
                state.wanted = Instant::now();
                if state.running.as_ref().is_none_or(JoinHandle::is_finished) {
                    state.running = Some(tokio::spawn(Shared::keep(Arc::downgrade(&self.shared))));
                }
                if let Some((at, wall)) = state.alive
                    && at.elapsed() < STALE
                {
                    return Ok(wall);
                }
                if let Some(Trouble { kind, said }) = &state.trouble {
                    return Err(Error::new(*kind, format!("watching {}: {said}", self.shared.path)));
                }
            }
            told.await;
        }
    }

    pub(crate) fn get(&self, name: &str) -> Option<Arc<T>> {
        lock(&self.shared.state).items.get(name).cloned()
    }

    /// What this controller owns.
    pub(crate) fn owned_by(&self, uid: &str) -> Vec<Arc<T>> {
        let state = lock(&self.shared.state);
        let names = state.owned.get(uid).map(Vec::as_slice).unwrap_or_default();
        names.iter().filter_map(|name| state.items.get(name).cloned()).collect()
    }
}

impl<T> Drop for Feed<T> {
    fn drop(&mut self) {
        if let Some(task) = lock(&self.shared.state).running.take() {
            task.abort();
        }
    }
}

#[derive(Deserialize)]
struct List<T> {
    metadata: ListMeta,
    items: Option<Vec<T>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ListMeta {
    resource_version: String,
    #[serde(rename = "continue")]
    go_on: Option<String>,
}

impl<T: Kept> Shared<T> {
    /// Watches until nobody needs it.
    async fn keep(shared: Weak<Self>) {
        let mut version: Option<String> = None;
        let mut failures = 0_u32;
        // A watch that was silent is tried for a short time: what buffers its answers lets them go at its end.
        let mut cautious = false;
        while let Some(feed) = shared.upgrade() {
            {
                // Under one lock: whoever needs it now either is seen here, or sees that it has ended.
                let mut state = lock(&feed.state);
                if state.wanted.elapsed() > IDLE {
                    // The next who needs it lists again.
                    (state.alive, state.items, state.owned) = (None, HashMap::new(), HashMap::new());
                    state.running = None;
                    drop(state);
                    // And so does one who has waited all the time.
                    feed.told.notify_waiters();
                    return;
                }
            }
            let begun = Instant::now();
            let outcome = match version.take() {
                None => feed.list().await.map(|listed| {
                    version = Some(listed);
                    None
                }),
                Some(mut last) => {
                    let ended = feed.watch(&mut last, if cautious { CAUTIOUS } else { TURN }).await;
                    let goes_on = match &ended {
                        Ok(End::Done) => true,
                        // Where each is cut nothing would ever be known again: as seldom as a good one ends it is listed.
                        Ok(End::Cut) => !feed.is_due(),
                        Ok(End::Gone | End::Silent) => false,
                        // To list everything is the last thing that a busy server needs. One that is away for a moment
                        // is not asked for it either; but where only watches fail, lists have to do.
                        Err(e) => match e.kind() {
                            ErrorKind::Throttled => true,
                            ErrorKind::Unavailable => failures == 0,
                            _ => false,
                        },
                    };
                    version = goes_on.then_some(last);
                    ended.map(Some)
                }
            };
            // What is over as soon as it begins must not begin as fast as it can.
            let at_once = begun.elapsed() < SLACK;
            let pause = match outcome {
                Ok(None) => continue,
                Ok(Some(End::Done)) => {
                    (cautious, failures) = (false, 0);
                    continue;
                }
                Ok(Some(End::Silent)) => {
                    tracing::debug!(path = feed.path, "a watch was silent and is begun again");
                    cautious = true;
                    continue;
                }
                Ok(Some(End::Cut | End::Gone)) if !at_once => continue,
                Ok(Some(End::Cut | End::Gone)) => backoff(failures),
                Err(e) => {
                    let pause = e.retry_after().map_or_else(|| backoff(failures), |after| after.min(OBEYED));
                    tracing::debug!(path = feed.path, error = %e.chain(), ?pause, "a watch failed");
                    lock(&feed.state).trouble = Some(Trouble { kind: e.kind(), said: e.chain() });
                    feed.told.notify_waiters();
                    pause
                }
            };
            failures = failures.saturating_add(1);
            drop(feed);
            sleep(pause).await;
        }
    }

    /// Lists everything, page by page.
    async fn list(&self) -> Result<String> {
        let begun = (Instant::now(), SystemClock.now());
        let mut all: Vec<T> = Vec::new();
        let mut params = ListParams::default().limit(PAGE);
        let version = loop {
            let page: List<T> = self
                .client
                .call(&format!("listing {}", self.path), asking(Request::new(&self.path).list(&params))?)
                .await?;
            all.extend(page.items.into_iter().flatten());
            match page.metadata.go_on.filter(|token| !token.is_empty()) {
                Some(token) => params = params.continue_token(&token),
                None => break page.metadata.resource_version,
            }
        };
        let rung = {
            let mut state = lock(&self.state);
            let before = std::mem::take(&mut state.items);
            state.owned.clear();
            let mut rung = Vec::new();
            for item in all {
                let old = before.get(item.name());
                if old.is_none_or(|old| item.is_news_after(old)) {
                    rung.extend(self.concerned(&item));
                }
                state.put(item);
            }
            let gone = before.values().filter(|old| !state.items.contains_key(old.name()));
            rung.extend(gone.filter_map(|old| self.concerned(old)));
            rung
        };
        self.lives(begun);
        self.ring(rung);
        Ok(version)
    }

    /// Hears of changes from this version on, for this long.
    async fn watch(&self, version: &mut String, limit: Duration) -> Result<End> {
        let seconds = u32::try_from(limit.as_secs()).unwrap_or(u32::MAX);
        let params = WatchParams::default().timeout(seconds);
        let what = format!("watching {}", self.path);
        let request = asking(Request::new(&self.path).watch(&params, version))?;
        let events = match timeout(SLACK, self.client.events::<T>(&what, request)).await {
            Err(_) => return Ok(End::Silent),
            Ok(Err(e)) if is_gone(&e) => return Ok(End::Gone),
            Ok(events) => events?,
        };
        tokio::pin!(events);
        let begun = Instant::now();
        loop {
            let left = (limit + SLACK).saturating_sub(begun.elapsed());
            let Ok(event) = timeout(left, events.try_next()).await else { return Ok(End::Silent) };
            let now = (Instant::now(), SystemClock.now());
            let event = match event {
                Ok(Some(event)) => event,
                // Before its time it was cut, and that proves nothing.
                Ok(None) if begun.elapsed() + EARLY < limit => return Ok(End::Cut),
                Ok(None) => {
                    self.lives(now);
                    return Ok(End::Done);
                }
                Err(e) if is_gone(&e) => return Ok(End::Gone),
                Err(e) => return Err(e),
            };
            match event {
                WatchEvent::Added(item) | WatchEvent::Modified(item) => {
                    item.version().clone_into(version);
                    let concerned = self.concerned(&item);
                    let news = lock(&self.state).put(item);
                    self.lives(now);
                    self.ring(concerned.filter(|_| news));
                }
                WatchEvent::Deleted(item) => {
                    item.version().clone_into(version);
                    lock(&self.state).take(&item);
                    self.lives(now);
                    self.ring(self.concerned(&item));
                }
                WatchEvent::Bookmark(bookmark) => {
                    *version = bookmark.metadata.resource_version;
                    self.lives(now);
                }
                WatchEvent::Error(status) if status.code == GONE => return Ok(End::Gone),
                WatchEvent::Error(status) => {
                    return Err(Error::new(ErrorKind::Unavailable, format!("the watch said: {}", status.message)));
                }
            }
        }
    }

    /// Everything that happened until now is known.
    fn lives(&self, now: (Instant, Timestamp)) {
        let mut state = lock(&self.state);
        state.trouble = None;
        let was_stale = state.alive.replace(now).is_none_or(|(at, _)| at.elapsed() >= STALE);
        drop(state);
        if was_stale {
            self.told.notify_waiters();
        }
    }

    /// Whether a watch that is well would have shown a sign of life since the last one.
    fn is_due(&self) -> bool {
        lock(&self.state).alive.is_none_or(|(at, _)| at.elapsed() > TURN)
    }

    /// Whom a change concerns: the workload that owns it, or itself.
    fn concerned(&self, item: &T) -> Option<Concerned> {
        match item.owner() {
            Some(owner) => kept::workload_of(owner),
            None => Some((self.resource, item.name().into())),
        }
    }

    fn ring(&self, concerned: impl IntoIterator<Item = Concerned>) {
        concerned.into_iter().for_each(|concerned| self.bells.ring(&concerned));
    }
}

impl<T: Kept> State<T> {
    /// Whether it is news.
    fn put(&mut self, item: T) -> bool {
        let name: Box<str> = item.name().into();
        let owner: Option<Box<str>> = item.owner().map(|owner| owner.uid.clone());
        let news = self.items.get(&name).is_none_or(|old| item.is_news_after(old));
        let old = self.items.insert(name.clone(), Arc::new(item));
        let before = old.as_ref().and_then(|old| old.owner()).map(|owner| owner.uid.clone());
        if old.is_some() && before == owner {
            return news;
        }
        if let Some(before) = before {
            self.disown(&before, &name);
        }
        if let Some(owner) = owner {
            self.owned.entry(owner).or_default().push(name);
        }
        news
    }

    fn take(&mut self, item: &T) {
        if let Some(old) = self.items.remove(item.name())
            && let Some(owner) = old.owner()
        {
            self.disown(&owner.uid, old.name());
        }
    }

    fn disown(&mut self, owner: &str, name: &str) {
        if let Some(names) = self.owned.get_mut(owner) {
            names.retain(|other| **other != *name);
            if names.is_empty() {
                self.owned.remove(owner);
            }
        }
    }
}

/// Whether a look at what is watched will do: at what is under way, or still as it should be. What ends something, or is
/// about to be written over, is worth a request.
pub(crate) const fn will_do(goal: Goal, look: &Observed) -> bool {
    match look.progress {
        Progress::Underway(_) => true,
        Progress::Reached => matches!(goal, Goal::Split(_)),
        Progress::Due(_) | Progress::Drifted(_) | Progress::Failed(_) => false,
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What comes after the version that we know is no longer known: HTTP 410, which is the only conflict that a watch has.
fn is_gone(error: &Error) -> bool {
    error.kind() == ErrorKind::Conflict
}

/// The pause after so many failures, spread by chance.
fn backoff(failures: u32) -> Duration {
    let most = PAUSE.saturating_mul(1 << failures.min(5)).min(PAUSE_MOST);
    most / 2 + most.mul_f64(fastrand::f64() / 2.0)
}

/// A request as the client takes it.
pub(crate) fn asking<E: std::error::Error + Send + Sync + 'static>(
    request: Result<http::Request<Vec<u8>>, E>,
) -> Result<http::Request<Vec<u8>>> {
    request.map_err(|e| Error::new(ErrorKind::Internal, "a request cannot be built").because(e))
}

const GONE: u16 = 410;
/// The API server is asked to end a watch after so long.
const TURN: Duration = Duration::from_secs(10);
/// The same after one that was silent.
const CAUTIOUS: Duration = Duration::from_secs(2);
/// A watch that is not over by so much later is dead.
const SLACK: Duration = Duration::from_secs(3);
/// One that is over by so much earlier was cut.
const EARLY: Duration = Duration::from_secs(1);
/// What was known so long ago is not known.
const STALE: Duration = Duration::from_secs(30);
/// A look waits so long to hear of its object, and asks for it then.
const SOON: Duration = Duration::from_secs(1);
/// A watch that nobody needs ends after so long.
const IDLE: Duration = Duration::from_secs(120);
/// The pause after a failure, doubled with each, up to the most.
const PAUSE: Duration = Duration::from_millis(250);
const PAUSE_MOST: Duration = Duration::from_secs(8);
/// The longest pause that a server may ask for.
const OBEYED: Duration = Duration::from_secs(60);
/// So many objects a page.
const PAGE: u32 = 500;

#[cfg(all(test, feature = "testing"))]
mod tests {
    use std::{sync::mpsc, thread};

    use super::*;
    use crate::testing::Cluster;

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn who_needs_a_watch_that_is_about_to_end_does_not_wait_for_ever() {
        let client = Cluster::new().client();
        for _ in 0..50 {
            let namespace = Namespace::new(&client, "default");
            let feed = &namespace.pods;
            let Some(long_ago) = Instant::now().checked_sub(2 * IDLE) else { return };
            let shared = Arc::clone(&feed.shared);
            let (held, is_held) = mpsc::channel();
            // Whoever wants to know or to end is held up, so that it is left to chance who comes first.
            let holder = thread::spawn(move || {
                let mut state = lock(&shared.state);
                state.wanted = long_ago;
                held.send(()).unwrap();
                #[expect(clippy::disallowed_methods, reason = "the others have to get as far as the lock")]
                thread::sleep(Duration::from_millis(5));
                drop(state);
            });
            is_held.recv().unwrap();
            let known = timeout(Duration::from_secs(5), feed.fresh()).await;
            known.expect("an answer in time").unwrap();
            holder.join().unwrap();
        }
    }
}
