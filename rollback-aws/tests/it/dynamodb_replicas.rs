//! Two replicas of a tool, as processes, on the store in DynamoDB: one is killed, or stopped and continued, while the table
//! throttles and answers are lost.
//!
//! The processes are this program once more, running [`child`]; table and target are on a simulator in this one. What they
//! deploy to is a Lambda alias, which checks versions.

use std::{
    env, fs,
    path::PathBuf,
    process,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use rollback_aws::{
    account::Login,
    dynamodb::Store,
    lambda::Alias,
    testing::{
        Server, Simulator,
        fault::{Fault, Trouble},
        lambda::Build,
    },
};
use rollback_core::{
    engine::{Engine, NewRollout, Outcome, Target},
    gate::{self, Evidence, Policy, Verdict},
    model::{Revision, RolloutId, Weight},
    plan::{Plan, Step},
    store::{Claim, Standing, Store as _},
    testing::{fakes::Fake, sweep::Sweep},
};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};

use crate::support::process::Process;

const TABLE: &str = "rollouts";
/// How long a process may be silent.
const LEASE: Duration = Duration::from_secs(3);
/// What a busy machine, throttling and lost answers add.
const MARGIN: Duration = Duration::from_secs(6);
/// The exit status of a driver whose rollout another process has taken up.
const TAKEN_UP: i32 = 130;
const JOB: &str = "ROLLBACK_TEST_DYNAMODB_CHILD";

#[test]
#[ignore = "a child process of the other tests, which start it"]
fn child() {
    let Ok(job) = env::var(JOB) else { return };
    let job: Job = serde_json::from_str(&job).expect("the parent wrote it");
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    process::exit(runtime.block_on(job.run()));
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_replicas_one_is_killed_and_the_other_takes_its_rollout_over_within_the_lease() {
    let stage = Stage::new().await;
    let troubles = stage.trouble();
    let mut first = stage.start();
    stage.until("the first bakes", async || stage.candidate_serves()).await;
    let mut second = stage.start();
    // It has to have seen the first alive, or it would have to wait for a lease from now on.
    sleep(LEASE).await;
    assert!(stage.is_driven_by(&first).await, "it drives while it lives");
    first.kill();
    let killed = Instant::now();
    stage.until("the second drives", async || stage.is_driven_by(&second).await).await;
    let taken = killed.elapsed();
    println!("taken over {taken:?} after the kill, with a lease of {LEASE:?}");
    assert!(taken <= LEASE + MARGIN, "taken over {taken:?} after the kill");
    stage.say("bad");
    assert_eq!(second.ends().await, 1, "it rolls back");
    assert!(stage.is_back());
    assert!(stage.claim().await.is_none());
    troubles.abort();
    println!("calls: {:?}", stage.aws.calls());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_is_stopped_and_continued_later_changes_nothing() {
    for continued_first in [true, false] {
        let stage = Stage::new().await;
        let mut first = stage.start();
        stage.until("the first bakes", async || stage.candidate_serves()).await;
        let mut second = stage.start();
        sleep(LEASE).await;
        first.signal("STOP");
        stage.until("the second drives", async || stage.is_driven_by(&second).await).await;
        if continued_first {
            first.signal("CONT");
            assert_eq!(first.ends().await, TAKEN_UP, "it is told that another drives");
        }
        stage.say("bad");
        assert_eq!(second.ends().await, 1, "it rolls back");
        let before = stage.everything().await;
        if !continued_first {
            first.signal("CONT");
            assert_eq!(first.ends().await, TAKEN_UP, "it is told that another drove");
        }
        assert_eq!(stage.everything().await, before, "it came back and changed the target or the record");
    }
}

/// The engine's own sweeps, on this store instead of memory.
async fn sweep(kind: impl AsyncFnOnce(Sweep<'_>) -> rollback_core::testing::sweep::Summary) {
    let aws = Simulator::new();
    let tables = AtomicUsize::new(0);
    let fresh = || {
        let table = format!("table-{}", tables.fetch_add(1, Ordering::Relaxed));
        aws.dynamodb().table(&table, "pk", "sk");
        Store::new(&aws.account(), &table).expect("a good name")
    };
    let fake = Fake::new("v1", "v2");
    eprintln!("{}", kind(Sweep::of(&fake).store(fresh)).await);
    assert_eq!(aws.dynamodb().stale_reads(), 0);
}

#[tokio::test(start_paused = true)]
async fn crashes_are_got_over_on_this_store() {
    sweep(async |sweep| sweep.crashes().await).await;
}

#[tokio::test(start_paused = true)]
async fn takeovers_are_got_over_on_this_store() {
    sweep(async |sweep| sweep.takeovers().await).await;
}

/// What a process is to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Job {
    endpoint: String,
    /// What the gate says: `good`, `bad`, or nothing.
    word: PathBuf,
}

impl Job {
    async fn run(&self) -> i32 {
        let account = Login::new().simulator(&self.endpoint).open().await.expect("a region is named");
        let store = Store::new(&account, TABLE).expect("a good name");
        let engine = Engine::builder(store.clone()).lease(LEASE).build().expect("a good lease");
        let word = self.word.clone();
        let judge = move |window: gate::Window| {
            let word = fs::read_to_string(&word).unwrap_or_default();
            async move {
                let evidence = Evidence::new(window.now, word.clone());
                Ok(match word.as_str() {
                    "bad" => Verdict::Unhealthy(evidence),
                    "good" => Verdict::Healthy(evidence),
                    _ => window.no_data("nothing was said"),
                })
            }
        };
        let gate = gate::from_fn("word", judge).expect("a good name");
        let alias = Alias::new(&account, "checkout:live").expect("a good name");
        let target = Target::new("checkout:live", alias)
            .expect("a good id")
            .gate(gate, Policy::default().every(Duration::from_millis(100)))
            .look_every(Duration::from_millis(50), Duration::from_millis(500));
        engine.register(target).expect("a good target");
        let outcome = self.go_on(&engine, &store).await;
        outcome.map_or(2, |outcome| outcome.exit_code().into())
    }

    async fn go_on(&self, engine: &Engine, store: &Store) -> Option<Outcome> {
        let rollout = rollout();
        // The store may be throttled just now.
        let resumed = loop {
            match engine.resume_all().await {
                Ok(resumed) => break resumed,
                Err(e) => assert!(e.is_transient(), "{}", e.chain()),
            }
        };
        if let Some(handle) = resumed.handles.into_iter().next() {
            return Some(handle.finished().await);
        }
        if resumed.elsewhere.is_empty() {
            let plan = Plan::new([Step::new(Weight::ALL, Duration::from_secs(1))]).expect("a good plan");
            let new = NewRollout::new("checkout:live", Revision::new("2").expect("a good id"), plan);
            let new = new.expect("a good target").id(rollout);
            loop {
                match engine.start(new.clone()).await {
                    Ok(handle) => return Some(handle.finished().await),
                    Err(e) => assert!(e.is_transient(), "{}", e.chain()),
                }
            }
        }
        loop {
            if let Some(handle) = engine.handle(&rollout) {
                return Some(handle.finished().await);
            }
            if let Ok((record, _)) = store.load(&rollout).await
                && record.standing != Standing::Open
            {
                return None;
            }
            sleep(Duration::from_millis(100)).await;
        }
    }
}

fn rollout() -> RolloutId {
    "checkout-1".try_into().expect("a good id")
}

/// Table and target, in this process.
struct Stage {
    aws: Simulator,
    server: Server,
    folder: tempfile::TempDir,
    store: Store,
}

impl Stage {
    async fn new() -> Self {
        let aws = Simulator::new();
        aws.dynamodb().table(TABLE, "pk", "sk");
        for build in ["v1", "v2"] {
            aws.lambda().publish("checkout", &Build::new(build));
        }
        aws.lambda().point("checkout", "live", "1", None);
        let server = aws.listen("127.0.0.1:0").await.unwrap();
        let store = Store::new(&aws.account(), TABLE).unwrap();
        Self { aws, server, folder: tempfile::tempdir().unwrap(), store }
    }

    fn start(&self) -> Process {
        let job = Job { endpoint: self.server.endpoint_url(), word: self.folder.path().join("word") };
        Process::start("dynamodb_replicas::child", JOB, &job, &self.folder.path().join("stderr"))
    }

    /// From now on every few calls of the table something goes wrong.
    fn trouble(&self) -> tokio::task::JoinHandle<()> {
        let aws = self.aws.clone();
        tokio::spawn(async move {
            let lost = [Trouble::LoseAnswer, Trouble::Throttle, Trouble::LoseRequest];
            let of = ["dynamodb:PutItem", "dynamodb:UpdateItem", "dynamodb:TransactWriteItems", "dynamodb:Query"];
            for (trouble, action) in lost.into_iter().cycle().zip(of.into_iter().cycle()) {
                aws.forget_faults();
                aws.fault(Fault::of(action, trouble));
                sleep(Duration::from_millis(200)).await;
            }
        })
    }

    fn say(&self, word: &str) {
        fs::write(self.folder.path().join("word"), word).unwrap();
    }

    fn candidate_serves(&self) -> bool {
        let alias = self.aws.lambda().alias("checkout", "live").expect("it is there");
        alias.other.is_some_and(|(version, share)| version == "2" && share > 0.99)
    }

    fn is_back(&self) -> bool {
        let alias = self.aws.lambda().alias("checkout", "live").expect("it is there");
        alias.version == "1" && alias.other.is_none()
    }

    async fn claim(&self) -> Option<Claim> {
        loop {
            if let Ok(mut open) = self.store.open().await {
                return open.pop();
            }
        }
    }

    async fn is_driven_by(&self, process: &Process) -> bool {
        let driver = self.claim().await.and_then(|claim| claim.driver);
        driver.is_some_and(|driver| driver.as_str().starts_with(&format!("{}-", process.id())))
    }

    /// The target and the record, each with its version.
    async fn everything(&self) -> String {
        let (record, serial) = self.store.load(&rollout()).await.unwrap();
        format!("{:?} {serial} {record:?} {}", self.aws.lambda().alias("checkout", "live"), record.body)
    }

    async fn until(&self, what: &str, so: impl AsyncFn() -> bool) {
        let begun = Instant::now();
        while !so().await {
            assert!(begun.elapsed() < Duration::from_secs(60), "not within a minute: {what}");
            sleep(Duration::from_millis(20)).await;
        }
    }
}

/// What the processes said, for whoever reads why a test failed.
impl Drop for Stage {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", fs::read_to_string(self.folder.path().join("stderr")).unwrap_or_default());
        }
    }
}
