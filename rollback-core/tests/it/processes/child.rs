//! What a child process of these tests does: drives a rollout, or stands by to take it up.

use std::{
    env,
    path::{Path, PathBuf},
    process::{self, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use rollback_core::{
    ErrorKind, Result, Wake,
    engine::{Engine, Handle, NewRollout, Outcome, Target},
    gate::{self, Evidence, FromFn, HealthGate, Policy, Verdict},
    model::{DriverId, GateName, Revision, RolloutId, Serial, TargetId},
    plan::Plan,
    request::Request,
    rollout::Rollout,
    store::{Asked, Claim, Record, Sql, Standing, Store},
};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::support::{
    target::InFile,
    trace::{Did, Saved, Trace, name},
};

/// What a child is to do, told in a variable of its environment.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Job {
    /// The store.
    pub(crate) url: String,
    /// Where the target, the trace and the signs of the parent are.
    pub(crate) folder: PathBuf,
    pub(crate) rollout: RolloutId,
    pub(crate) candidate: String,
    /// The gate finds the candidate bad from this share of the traffic on.
    pub(crate) bad_from: Option<u8>,
    pub(crate) role: Role,
    /// How long a process may be silent.
    pub(crate) lease: Duration,
    pub(crate) seed: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Role {
    /// Goes on with the rollout, or starts it when nobody has.
    Drives,
    /// Goes on with the rollout when its driver is gone.
    StandsBy,
    /// Starts the rollout when the parent says so.
    Races,
}

pub(crate) const TARGET: &str = "checkout";
/// The exit status of a child that drove nothing: it was not allowed to, or the rollout was over.
pub(crate) const IDLE: i32 = 2;

const JOB: &str = "ROLLBACK_TEST_CHILD";

impl Job {
    /// This program once more, as a process that does nothing but this job.
    pub(crate) fn command(&self) -> Command {
        let stderr = std::fs::OpenOptions::new().append(true).create(true).open(self.folder.join("stderr"));
        let mut command = Command::new(env::current_exe().expect("the program of these tests"));
        command
            .args(["--exact", "processes::child", "--ignored", "--nocapture"])
            .env(JOB, serde_json::to_string(self).expect("a job is JSON"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(stderr.expect("the folder is ours"));
        command
    }

    pub(crate) fn target(folder: &Path) -> PathBuf {
        folder.join("target.json")
    }

    pub(crate) fn trace(folder: &Path) -> PathBuf {
        folder.join("trace")
    }

    /// While this file exists, the gate has no data, and so no bake ends.
    pub(crate) fn blind(folder: &Path) -> PathBuf {
        folder.join("blind")
    }

    /// The word to start.
    pub(crate) fn go(folder: &Path) -> PathBuf {
        folder.join("go")
    }
}

/// Does the job, if there is one, and ends the process.
pub(crate) fn main() {
    let Ok(job) = env::var(JOB) else { return };
    let job: Job = serde_json::from_str(&job).expect("the parent wrote it");
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(2).enable_all().build().expect("a runtime");
    process::exit(runtime.block_on(job.run()));
}

impl Job {
    async fn run(&self) -> i32 {
        let trace = Trace::at(&Self::trace(&self.folder));
        let inner = patiently(|| Sql::connect(&self.url)).await.expect("the store is there");
        // A lease as short as ours leaves no time to log in, so this is done before.
        patiently(|| inner.open()).await.expect("the store answers");
        let store = Traced { inner, trace: trace.clone() };
        let engine = Engine::builder(store).lease(self.lease).build().expect("a good lease");
        let target = InFile::open(&Self::target(&self.folder)).traced(trace.clone());
        let target = target.slow(self.seed, Duration::from_millis(20));
        let gate = Arc::new(Noticing {
            gate: self.gate(),
            engine: engine.clone(),
            rollout: self.rollout.clone(),
            handle: watch::Sender::new(None),
        });
        let target = Target::new(TARGET, target)
            .expect("a good id")
            .gate(Arc::clone(&gate), Policy::default().every(Duration::from_millis(20)))
            .look_every(Duration::from_millis(5), Duration::from_millis(20));
        engine.register(target).expect("a good target");
        let outcome = match self.role {
            Role::Races => self.race(&engine, &trace).await,
            Role::Drives | Role::StandsBy => self.go_on(&engine, gate.handle.subscribe(), &trace).await,
        };
        outcome.map_or(IDLE, |outcome| {
            let code = outcome.exit_code();
            trace.tell(Did::Left { state: name(&outcome.rollout.state), code });
            code.into()
        })
    }

    async fn race(&self, engine: &Engine, trace: &Trace) -> Option<Outcome> {
        trace.tell(Did::Ready);
        until(|| Self::go(&self.folder).exists()).await;
        match self.start(engine).await {
            Ok(handle) => Some(handle.finished().await),
            Err(e) => {
                trace.tell(Did::Denied { conflict: e.kind() == ErrorKind::Conflict, why: e.chain() });
                None
            }
        }
    }

    /// Takes the rollout up as soon as nobody drives it, until it is over or somebody else has taken it up.
    async fn go_on(
        &self,
        engine: &Engine,
        mut driven: watch::Receiver<Option<Handle>>,
        trace: &Trace,
    ) -> Option<Outcome> {
        let store = patiently(|| Sql::connect(&self.url)).await.expect("the store is there");
        let resumed = patiently(|| engine.resume_all()).await.expect("the store answers");
        assert!(resumed.refused.is_empty() && resumed.unregistered.is_empty(), "{resumed:?}");
        if driven.borrow().is_none() {
            trace.tell(Did::Ready);
        }
        let over = async {
            loop {
                match store.load(&self.rollout).await {
                    Ok((record, _)) if record.standing != Standing::Open => return,
                    Ok(_) => {}
                    Err(e) if e.kind() == ErrorKind::NotFound && self.role == Role::Drives => {
                        self.start(engine).await.expect("nobody else starts one");
                    }
                    Err(e) => assert!(e.kind() == ErrorKind::NotFound || e.is_transient(), "{}", e.chain()),
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::select! {
            biased;
            _ = driven.wait_for(Option::is_some) => {}
            () = over => {}
        }
        let handle = driven.borrow().clone()?;
        Some(handle.finished().await)
    }

    async fn start(&self, engine: &Engine) -> Result<Handle> {
        let candidate = Revision::new(&self.candidate)?;
        let plan = Plan::canary([10, 50, 100], Duration::from_millis(60))?;
        let new = NewRollout::new(TARGET, candidate, plan)?.id(self.rollout.clone());
        patiently(|| engine.start(new.clone())).await
    }

    fn gate(&self) -> FromFn {
        let (bad_from, blind) = (self.bad_from, Self::blind(&self.folder));
        let judge = move |window: gate::Window| {
            let blind = blind.exists();
            async move {
                if blind {
                    return Ok(window.no_data("the test wants it so"));
                }
                let evidence = Evidence::new(window.now, format!("at {}", window.weight));
                Ok(match bad_from {
                    Some(bad) if window.weight.percent() >= bad => Verdict::Unhealthy(evidence),
                    _ => Verdict::Healthy(evidence),
                })
            }
        };
        gate::from_fn("errors", judge).expect("a good name")
    }
}

/// A gate that notices when its rollout is driven here. Whoever asks for the handle later may come too late: a process
/// that was stopped for longer than its lease lets its rollout go as soon as it goes on.
#[derive(Debug)]
struct Noticing {
    gate: FromFn,
    engine: Engine,
    rollout: RolloutId,
    handle: watch::Sender<Option<Handle>>,
}

#[async_trait]
impl HealthGate for Noticing {
    fn name(&self) -> &GateName {
        self.gate.name()
    }
    async fn judge(&self, window: &gate::Window) -> Result<Verdict> {
        self.gate.judge(window).await
    }
    fn attach(&self, _: Wake) {
        self.handle.send_replace(self.engine.handle(&self.rollout));
    }
}

/// The store, and a trace of what is saved.
#[derive(Debug)]
struct Traced {
    inner: Sql,
    trace: Trace,
}

impl Traced {
    async fn saving(
        &self,
        record: &Record,
        expected: Serial,
        save: impl Future<Output = Result<Serial>> + Send,
    ) -> Result<Serial> {
        let rollout = Rollout::from_record(record).expect("the engine writes what it can read");
        let saved = Saved::new(&rollout, expected.next());
        self.trace.tell(Did::Saving(saved.clone()));
        let result = save.await;
        self.trace.tell(match &result {
            Ok(serial) => Did::Saved(Saved { serial: *serial, ..saved }),
            Err(e) => Did::NotSaved { expected, kind: e.kind().to_string() },
        });
        result
    }
}

#[async_trait]
impl Store for Traced {
    async fn create(&self, record: &Record) -> Result<Serial> {
        self.saving(record, Serial(0), self.inner.create(record)).await
    }
    async fn update(&self, record: &Record, expected: Serial) -> Result<Serial> {
        self.saving(record, expected, self.inner.update(record, expected)).await
    }
    async fn load(&self, id: &RolloutId) -> Result<(Record, Serial)> {
        self.inner.load(id).await
    }
    async fn open(&self) -> Result<Vec<Claim>> {
        let open = self.inner.open().await;
        self.trace.tell(Did::Listed);
        open
    }
    async fn history(&self, subject: &TargetId, limit: usize) -> Result<Vec<Record>> {
        self.inner.history(subject, limit).await
    }
    async fn beat(&self, driver: &DriverId) -> Result<Vec<(RolloutId, Asked)>> {
        self.inner.beat(driver).await
    }
    async fn ask(&self, id: &RolloutId, request: &Request) -> Result<()> {
        self.inner.ask(id, request).await
    }
}

/// Says it again while the store is slower than a short lease allows, on a machine with more to do.
async fn patiently<T, F: Future<Output = Result<T>>>(call: impl Fn() -> F) -> Result<T> {
    loop {
        match call().await {
            Err(e) if e.is_transient() => tokio::time::sleep(Duration::from_millis(20)).await,
            answer => return answer,
        }
    }
}

async fn until(done: impl Fn() -> bool) {
    while !done() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
