//! A target in a file: two revisions behind a weight, as several processes see it, with versions that it checks.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, fs,
    fs::File,
    hash::{BuildHasher as _, Hasher as _, RandomState},
    io,
    path::{Path, PathBuf},
    process,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use rollback_core::{
    Error, ErrorKind, Result,
    backend::{Capabilities, DeploymentBackend, Readiness},
    model::{
        Attempt, Change, Effect, Goal, Nonce, Note, Observed, Part, Progress, Revision, RevisionId, Serves, Version,
        Weight,
    },
    plan::Plan,
    testing::backend::Bench,
};
use serde::{Deserialize, Serialize};

use super::trace::{Did, Trace};

/// The target, and the way to it: a file that is only ever replaced as a whole, by whoever holds the lock beside it.
#[derive(Clone)]
pub(crate) struct InFile {
    path: PathBuf,
    trace: Option<Trace>,
    line: Arc<Mutex<Wire>>,
}

/// The way that a call takes to the target: its delays, and what came back last.
#[derive(Debug)]
struct Wire {
    random: Random,
    most: Duration,
    said: Option<Did>,
}

/// What is in the file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct World {
    version: u64,
    built: BTreeSet<RevisionId>,
    /// The revisions that stand, and their shares of the traffic in percent.
    pub(crate) mix: BTreeMap<RevisionId, u8>,
    /// Every accepted shift and who sent it, oldest first.
    pub(crate) writes: Vec<Written>,
}

/// A change of the target.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Written {
    /// None for somebody else.
    pub(crate) nonce: Option<Nonce>,
    pub(crate) goal: Option<Goal>,
    pub(crate) pid: u32,
}

impl InFile {
    /// A new target that serves this revision alone.
    pub(crate) fn create(path: &Path, serves: &str) -> Self {
        let target = Self::open(path);
        let mix = BTreeMap::from([(id(serves), 100)]);
        target.put(&World { version: 1, built: mix.keys().cloned().collect(), mix, writes: Vec::new() }).expect("ours");
        target
    }

    pub(crate) fn open(path: &Path) -> Self {
        let line = Wire { random: Random(0), most: Duration::ZERO, said: None };
        Self { path: path.into(), trace: None, line: Arc::new(Mutex::new(line)) }
    }

    /// Tells what it is asked and what becomes of it.
    pub(crate) fn traced(mut self, trace: Trace) -> Self {
        self.trace = Some(trace);
        self
    }

    /// A shift takes up to `most` to arrive, and its answer as long to come back.
    pub(crate) fn slow(self, seed: u64, most: Duration) -> Self {
        *self.wire() = Wire { random: Random(seed), most, said: None };
        self
    }

    /// Makes this revision one that can be deployed.
    pub(crate) fn build(&self, revision: &str) {
        self.alone(|world| {
            world.built.insert(id(revision));
            Ok(())
        })
        .expect("the folder is ours");
    }

    /// What is in the file now.
    pub(crate) fn world(&self) -> World {
        self.get().expect("the file is there")
    }

    fn get(&self) -> Result<World> {
        let text = fs::read_to_string(&self.path).map_err(|e| away(&self.path, e))?;
        serde_json::from_str(&text)
            .map_err(|e| Error::new(ErrorKind::Internal, "the target's file is broken").because(e))
    }

    /// Replaces the file as a whole, so that a process that is killed leaves the one or the other.
    fn put(&self, world: &World) -> Result<()> {
        let new = self.path.with_extension(format!("{}.new", process::id()));
        fs::write(&new, serde_json::to_string(world).expect("a world is JSON"))
            .and_then(|()| fs::rename(&new, &self.path))
            .map_err(|e| away(&self.path, e))
    }

    /// Changes the target while nobody else can. The lock goes with its process.
    fn alone<T>(&self, change: impl FnOnce(&mut World) -> Result<T>) -> Result<T> {
        let path = self.path.with_extension("lock");
        let lock = File::create(&path).and_then(|file| file.lock().map(|()| file)).map_err(|e| away(&path, e))?;
        let mut world = self.get()?;
        let done = change(&mut world)?;
        self.put(&world)?;
        drop(lock);
        Ok(done)
    }

    /// Lands a shift, if the target still has its version.
    fn land(&self, change: &Change, goal: Goal, attempt: &Attempt) -> Result<()> {
        let landed = self.alone(|world| {
            let now = world.version();
            if attempt.version != now {
                let why = format!("the target is at {now}, not at {}", attempt.version);
                return Err(Error::new(ErrorKind::Conflict, why));
            }
            if let Some((_, mix)) = world.due(change, goal) {
                if let Some(missing) = mix.keys().find(|revision| !world.built.contains(*revision)) {
                    return Err(Error::new(ErrorKind::NotFound, format!("revision {missing} was never built")));
                }
                world.mix = mix;
            }
            world.write(Some(attempt.nonce.clone()), Some(goal));
            Ok(())
        });
        let nonce = attempt.nonce.clone();
        self.tell(if landed.is_ok() { Did::Landed { nonce } } else { Did::Refused { nonce } });
        landed
    }

    fn tell(&self, what: Did) {
        if let Some(trace) = &self.trace {
            trace.tell(what);
        }
    }

    async fn wait(&self) {
        let delay = {
            let mut wire = self.wire();
            let most = wire.most;
            wire.random.up_to(most)
        };
        tokio::time::sleep(delay).await;
    }

    fn wire(&self) -> std::sync::MutexGuard<'_, Wire> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl World {
    fn version(&self) -> Version {
        Version::try_from(format!("v{}", self.version)).expect("a short name")
    }

    fn write(&mut self, nonce: Option<Nonce>, goal: Option<Goal>) {
        self.version += 1;
        self.writes.push(Written { nonce, goal, pid: process::id() });
    }

    /// Whether this revision serves alone and nothing else stands.
    pub(crate) fn only(&self, revision: &str) -> bool {
        self.mix == BTreeMap::from([(id(revision), 100)])
    }

    fn share(&self, revision: &RevisionId) -> u8 {
        self.mix.get(revision).copied().unwrap_or_default()
    }

    fn progress(&self, change: &Change, goal: Goal) -> Progress {
        let Change { baseline, candidate, .. } = change;
        let foreign = |(revision, share): &(&RevisionId, &u8)| {
            **share > 0 && **revision != baseline.id && **revision != candidate.id
        };
        if let Some((revision, share)) = self.mix.iter().find(foreign) {
            return Progress::Drifted(Note::new(format!("{revision} has {share} % of the traffic")));
        }
        let prefix = format!("{}/", change.rollout);
        let ours = |written: &Written| written.nonce.as_ref().is_some_and(|nonce| nonce.as_str().starts_with(&prefix));
        if goal.is_forward() && self.writes.iter().any(ours) && !self.writes.last().is_some_and(ours) {
            return Progress::Drifted("somebody else changed it since our last shift".into());
        }
        self.due(change, goal).map_or(Progress::Reached, |(effect, _)| Progress::Due(effect))
    }

    /// The next effect on the way to a goal: one after the other, traffic first.
    fn due(&self, change: &Change, goal: Goal) -> Option<(Effect, BTreeMap<RevisionId, u8>)> {
        let (baseline, candidate) = (&change.baseline.id, &change.candidate.id);
        let leave = |this: &RevisionId| {
            if self.share(this) < 100 {
                let mut mix: BTreeMap<_, _> = self.mix.keys().map(|other| (other.clone(), 0)).collect();
                mix.insert(this.clone(), 100);
                return Some((Note::new(format!("give {this} all traffic")), mix));
            }
            let alone = BTreeMap::from([(this.clone(), 100)]);
            (self.mix != alone).then(|| (Note::new(format!("stop all but {this}")), alone))
        };
        match goal {
            Goal::Candidate => leave(candidate),
            Goal::Baseline => leave(baseline),
            Goal::Split(weight) => {
                if let Some(missing) = [baseline, candidate].into_iter().find(|this| !self.mix.contains_key(*this)) {
                    let mut mix = self.mix.clone();
                    mix.insert(missing.clone(), 0);
                    return Some((Note::new(format!("start {missing}")), mix));
                }
                let percent = weight.percent();
                let mix = BTreeMap::from([(baseline.clone(), 100 - percent), (candidate.clone(), percent)]);
                (self.mix != mix).then(|| (Note::new(format!("set weight to {weight}")), mix))
            }
        }
    }
}

#[async_trait]
impl DeploymentBackend for InFile {
    fn capabilities(&self) -> Capabilities {
        Capabilities::full()
    }

    async fn baseline(&self) -> Result<Revision> {
        let world = self.get()?;
        match world.mix.iter().find(|(_, share)| **share == 100) {
            Some((revision, _)) => Revision::new(revision),
            None => Err(Error::new(ErrorKind::Mixed, format!("no one revision serves: {:?}", world.mix))),
        }
    }

    async fn preflight(&self, change: &Change, _: &Plan) -> Result<Readiness> {
        let world = self.get()?;
        let prove = |found: Readiness, revision: &Revision| match world.built.contains(&revision.id) {
            true => found.proved(format!("{} has been built", revision.id)),
            false => found.refused(format!("{} is not there: build it", revision.id)),
        };
        Ok(prove(prove(Readiness::default(), &change.candidate), &change.baseline))
    }

    async fn observe<'a>(&self, change: &Change, goal: Goal, last: Option<&'a Attempt>) -> Result<Observed> {
        let world = self.get()?;
        let progress = world.progress(change, goal);
        let looked = Did::Looked { goal, progress: format!("{progress:?}"), version: world.version() };
        if self.wire().said.replace(looked.clone()).as_ref() != Some(&looked) {
            self.tell(looked);
        }
        let share = world.share(&change.candidate.id);
        let serves = match share {
            _ if share + world.share(&change.baseline.id) != 100 => Serves::Other,
            0 => Serves::Baseline,
            100 => Serves::Candidate,
            _ => Serves::Both,
        };
        let landed = last.is_some_and(|last| world.writes.iter().any(|made| made.nonce.as_ref() == Some(&last.nonce)));
        Ok(Observed::new(progress, world.version())
            .weight(Weight::try_from(share)?)
            .parts(vec![Part::new("router", serves)])
            .landed(landed))
    }

    async fn shift(&self, change: &Change, goal: Goal, attempt: &Attempt) -> Result<()> {
        self.tell(Did::Asked { nonce: attempt.nonce.clone(), goal, version: attempt.version.clone() });
        self.wait().await;
        let (target, change, attempt) = (self.clone(), change.clone(), attempt.clone());
        // A process that was stopped with the lock in its hand must not stop the others' threads too.
        let landed = tokio::task::spawn_blocking(move || target.land(&change, goal, &attempt)).await;
        self.wait().await;
        landed.map_err(|e| Error::new(ErrorKind::Internal, "the shift broke off").because(e))?
    }
}

impl fmt::Debug for InFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InFile").field("path", &self.path).finish_non_exhaustive()
    }
}

#[async_trait]
impl Bench for InFile {
    async fn reset(&self) {
        self.alone(|world| {
            world.mix = BTreeMap::from([(id("r1"), 100)]);
            world.built = BTreeSet::from([id("r1"), id("r2")]);
            world.version += 1;
            world.writes.clear();
            Ok(())
        })
        .expect("the folder is ours");
    }

    async fn connect(&self) -> Arc<dyn DeploymentBackend> {
        Arc::new(Self::open(&self.path))
    }

    fn candidate(&self) -> Revision {
        Revision::new("r2").expect("a good id")
    }

    async fn settle(&self) {
        tokio::task::yield_now().await;
    }

    async fn drift(&self) -> bool {
        self.alone(|world| {
            world.mix = BTreeMap::from([(id("somebody-elses"), 100)]);
            world.write(None, None);
            Ok(())
        })
        .is_ok()
    }
}

/// Numbers that look random and come from a seed, the same every time.
#[derive(Clone, Debug)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    /// A seed that nobody has had before.
    pub(crate) fn seed() -> u64 {
        RandomState::new().build_hasher().finish() % 1_000_000
    }

    pub(crate) fn next(&mut self) -> u64 {
        // SplitMix64.
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, most: u64) -> u64 {
        self.next() % most
    }

    pub(crate) fn up_to(&mut self, most: Duration) -> Duration {
        most.mul_f64(self.below(1_000_001) as f64 / 1e6)
    }
}

fn away(path: &Path, e: io::Error) -> Error {
    Error::new(ErrorKind::Unavailable, format!("{} does not answer", path.display())).because(e)
}

fn id(revision: &str) -> RevisionId {
    RevisionId::try_from(revision).expect("a good id")
}
