//! Deployments, read once for everybody.

use std::{
    collections::BTreeMap,
    fmt,
    hash::{BuildHasher as _, RandomState},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use aws_sdk_codedeploy::Client;
use rollback_core::{Error, ErrorKind, Result};
use tokio::{sync::Mutex as AsyncMutex, time::Instant};

use super::deployment::{Deployment, Status};
use crate::{account::Account, error::sorted};

/// Reads deployments for all groups of a process: make one for each account and region, and give it to every group. Clones
/// are the same one.
///
/// A deployment that runs is read every 15 seconds, give or take a fifth, and up to 25 of them by one call: what
/// `BatchGetDeployments` takes. AWS tells no rate for CodeDeploy's API; others were throttled at 41 `GetDeployment` a minute
/// (`awslabs/aws-codedeploy-plugin#95`). Nothing is read while nobody asks, and what is over is not read again, once it tells of
/// its rollback or has had the time to.
#[derive(Clone)]
pub struct Poller {
    inner: Arc<Inner>,
}

struct Inner {
    client: Client,
    every: Duration,
    board: Mutex<BTreeMap<Arc<str>, Line>>,
    /// One call at a time: whoever waits for it may find its own line read.
    turn: AsyncMutex<()>,
}

struct Line {
    asked: Instant,
    /// It may be read together with others: it was read before.
    shares: bool,
    /// When it was first seen to be over.
    over: Option<Instant>,
    read: Option<Read>,
}

#[derive(Clone)]
struct Read {
    sent: Instant,
    due: Instant,
    found: Arc<Deployment>,
    over: Option<Instant>,
}

impl Read {
    /// Whether it will say the same for ever. The rollback of one that failed or was stopped is told only when it is made.
    fn is_final(&self) -> bool {
        let told = self.found.status == Status::Succeeded || self.found.rolled_back_by.is_some();
        self.over.is_some_and(|at| told || at.elapsed() >= TOLD_WITHIN)
    }
}

impl Poller {
    /// What `BatchGetDeployments` takes (API model; the user guide says 100).
    pub(super) const A_CALL: usize = 25;

    /// The deployments of this account in its region.
    pub fn new(account: &Account) -> Self {
        Self::with_client(account.codedeploy())
    }

    /// The same over a client of your own. Give it timeouts: one that has none can hang.
    pub fn with_client(client: Client) -> Self {
        Self::made(client, Duration::from_secs(15))
    }

    /// Reads what runs this often instead.
    ///
    /// A value of its own: clones made before go on as they are.
    #[must_use]
    pub fn every(self, interval: Duration) -> Self {
        Self::made(self.inner.client.clone(), interval)
    }

    fn made(client: Client, every: Duration) -> Self {
        Self { inner: Arc::new(Inner { client, every, board: Mutex::default(), turn: AsyncMutex::new(()) }) }
    }

    pub(super) fn client(&self) -> &Client {
        &self.inner.client
    }

    /// A deployment, as it was no longer ago than the interval; or, if it must be `fresh`, as it is.
    ///
    /// # Errors
    /// `NotFound` when there is none of this id.
    pub(super) async fn get(&self, id: &str, fresh: bool) -> Result<Arc<Deployment>> {
        let begun = Instant::now();
        let good = |read: &Read| read.is_final() || if fresh { read.sent >= begun } else { Instant::now() < read.due };
        let known = || self.board().get(id).and_then(|line| line.read.clone());
        self.board()
            .entry(id.into())
            .or_insert_with(|| Line { asked: begun, shares: false, over: None, read: None })
            .asked = begun;
        if let Some(read) = known().filter(good) {
            return Ok(read.found);
        }
        if fresh {
            // The way back waits for nobody else's call.
            self.read(id, true).await?;
        } else {
            let _turn = self.inner.turn.lock().await;
            if let Some(read) = known().filter(good) {
                return Ok(read.found);
            }
            self.read(id, false).await?;
        }
        known().map(|read| read.found).ok_or_else(|| {
            self.board().remove(id);
            Error::new(ErrorKind::NotFound, format!("deployment {id} is not there"))
        })
    }

    /// Several deployments of one group, as they are: those that are known for good, and the others by as few calls as can be.
    /// What is not there is left out.
    pub(super) async fn several(&self, ids: &[String]) -> Result<Vec<Arc<Deployment>>> {
        let begun = Instant::now();
        let known = |id: &String| self.board().get(id.as_str())?.read.clone();
        let left: Vec<String> =
            ids.iter().filter(|id| known(id).is_none_or(|read| !read.is_final())).cloned().collect();
        for id in ids {
            let new = || Line { asked: begun, shares: false, over: None, read: None };
            self.board().entry(id.as_str().into()).or_insert_with(new).asked = begun;
        }
        for some in left.chunks(Self::A_CALL) {
            let sent = Instant::now();
            let found = self.ask(some).await?;
            self.write(some, found, sent);
        }
        Ok(ids.iter().filter_map(known).map(|read| read.found).collect())
    }

    pub(super) fn interval(&self) -> Duration {
        self.inner.every
    }

    /// What is known of this deployment is old by now.
    pub(super) fn stale(&self, id: &str) {
        if let Some(line) = self.board().get_mut(id) {
            line.read = None;
        }
    }

    /// Reads one deployment, and with it others that are due, or will be soon: so they stay together from then on.
    async fn read(&self, id: &str, alone: bool) -> Result<()> {
        let sent = Instant::now();
        let mut ids = if alone { vec![id.to_owned()] } else { self.batch(id, sent) };
        let mut answer = self.ask(&ids).await;
        if let Err(e) = &answer
            && ids.len() > 1
            && matches!(e.kind(), ErrorKind::Denied | ErrorKind::Invalid | ErrorKind::NotFound)
        {
            // One id that may not be read spoils the call for all; which one, each finds out by itself.
            for other in ids.drain(1..) {
                if let Some(line) = self.board().get_mut(other.as_str()) {
                    line.shares = false;
                }
            }
            answer = self.ask(&ids).await;
        }
        let found = answer?;
        self.write(&ids, found, sent);
        Ok(())
    }

    async fn ask(&self, ids: &[String]) -> Result<Vec<Deployment>> {
        let call = self.inner.client.batch_get_deployments().set_deployment_ids(Some(ids.to_vec()));
        let what = ids.first().map_or("", String::as_str);
        let answer = call.send().await.map_err(|e| sorted(format_args!("reading deployment {what}"), e))?;
        Ok(answer.deployments_info().iter().filter_map(Deployment::read).collect())
    }

    fn write(&self, asked: &[String], found: Vec<Deployment>, sent: Instant) {
        let due = sent + self.pause();
        let mut board = self.board();
        for id in asked {
            // What is not in the answer is not there. Whoever asked later and was answered sooner knows better.
            if let Some(line) = board.get_mut(id.as_str()) {
                line.read.take_if(|it| it.sent <= sent);
            }
        }
        for found in found.into_iter().map(Arc::new) {
            if let Some(line) = board.get_mut(found.id.as_str()).filter(|line| line.read.is_none()) {
                line.shares = true;
                line.over = if found.is_active() { None } else { line.over.or(Some(sent)) };
                line.read = Some(Read { sent, due, over: line.over, found });
            }
        }
    }

    fn batch(&self, id: &str, now: Instant) -> Vec<String> {
        let soon = now + self.inner.every / 2;
        let mut board = self.board();
        board.retain(|_, line| now.duration_since(line.asked) < self.inner.every * 8);
        let mut others: Vec<(Instant, &Arc<str>)> = board
            .iter()
            .filter(|(other, line)| {
                ***other != *id && line.shares && now.duration_since(line.asked) < self.inner.every * 2
            })
            .filter_map(|(other, line)| {
                let due = match &line.read {
                    None => now,
                    Some(read) if !read.is_final() => read.due,
                    Some(_) => return None,
                };
                (due <= soon).then_some((due, other))
            })
            .collect();
        others.sort_unstable();
        let others = others.into_iter().take(Self::A_CALL - 1).map(|(_, other)| other.to_string());
        std::iter::once(id.to_owned()).chain(others).collect()
    }

    /// The interval, give or take a fifth, so that processes do not stay in step.
    pub(super) fn pause(&self) -> Duration {
        let random = RandomState::new().hash_one(0_u8) % 401;
        let random = u32::try_from(random).expect("less than 401");
        self.inner.every * (800 + random) / 1000
    }

    fn board(&self) -> MutexGuard<'_, BTreeMap<Arc<str>, Line>> {
        self.inner.board.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Poller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Poller").field("every", &self.inner.every).finish_non_exhaustive()
    }
}

/// How long what has failed or was stopped is read again for what it may yet tell of its rollback.
const TOLD_WITHIN: Duration = Duration::from_secs(300);
