//! For real: processes that drive rollouts of one target on one store, and are killed and stopped at random instants.
//!
//! The processes are this program once more, running [`child`]. The instants come from `ROLLBACK_TEST_SEED`; without it
//! from fixed seeds and a new one, which a failure prints. A seed fixes what a test wants to do; what it meets depends on
//! the machine.

mod check;
mod child;

use std::{
    collections::BTreeMap,
    env, fs,
    panic::resume_unwind,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use rollback_core::{
    model::{RolloutId, Weight},
    rollout::Rollout,
    state::{Cause, State},
    store::{Sql, Standing, Store},
    testing::backend::{self, Outcome},
};
use tempfile::TempDir;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

use self::child::{IDLE, Job, Role, TARGET};
use crate::support::{
    postgres,
    target::{InFile, Random, World, Written},
    trace::{Did, Line, Saved, Tail},
};

/// How many processes [`a_process_killed_at_any_instant_loses_nothing`] kills.
const KILLS: usize = 102;
/// Nothing here takes long; what takes this long will never come.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long a process may be silent. Short, so that whoever takes over does not let the test wait.
const LEASE: Duration = Duration::from_millis(300);
/// The same on PostgreSQL, where a call may have to log in first.
const LEASE_ON_POSTGRES: Duration = Duration::from_secs(1);
/// A process that is stopped within a transaction keeps the others of its store waiting; then it is let go on.
const IN_A_TRANSACTION: Duration = Duration::from_secs(5);
/// The exit status of a driver whose rollout another process has taken up.
const TAKEN_UP: i32 = 130;

#[test]
#[ignore = "a child process of the other tests, which start it"]
fn child() {
    child::main();
}

#[tokio::test]
async fn the_target_in_a_file_keeps_every_promise_of_a_backend() {
    let folder = tempfile::tempdir().unwrap();
    let target = InFile::create(&folder.path().join("target.json"), "r1");
    for (promise, outcome) in backend::all(&target).await {
        let explained = ["every weight can be given here", "the bench names no secret"].map(Outcome::Skipped);
        assert!(outcome == Outcome::Kept || explained.contains(&outcome), "{promise}: {outcome:?}");
    }
}

#[tokio::test]
async fn a_process_killed_at_any_instant_loses_nothing() {
    let begun = Instant::now();
    let seeds = seeds(3);
    let share = KILLS.div_ceil(seeds.len());
    // Side by side: most of the time each waits for a lease to pass.
    let mut lanes: JoinSet<_> = seeds.into_iter().map(|seed| killed_again_and_again(seed, share)).collect();
    let mut when = BTreeMap::new();
    let (mut kills, mut rollouts) = (0, 0);
    while let Some(lane) = lanes.join_next().await {
        let tally = lane.unwrap_or_else(|e| resume_unwind(e.into_panic()));
        rollouts += tally.rollouts;
        for (phase, times) in tally.kills {
            kills += times;
            *when.entry(phase).or_insert(0) += times;
        }
    }
    assert!(kills >= 100, "only {kills} processes were killed");
    println!("{kills} kills in {rollouts} rollouts, {:?}; the last thing each process did: {when:?}", begun.elapsed());
}

/// What a lane of killed processes went through.
#[derive(Default)]
struct Tally {
    rollouts: usize,
    /// What the processes did last, and how many of them.
    kills: BTreeMap<String, usize>,
}

/// Rollouts one after the other on one store and one target, each driven by processes that are killed.
async fn killed_again_and_again(seed: u64, kills: usize) -> Tally {
    let mut stage = Stage::on_sqlite(seed);
    let mut tally = Tally::default();
    while tally.kills.values().sum::<usize>() < kills {
        let job = stage.next_rollout(None);
        // So often that most rollouts see several kills, and not so often that none ends.
        for _ in 0..10 {
            let mut child = stage.start(&job, Role::Drives);
            let pid = child.pid();
            if stage.random.below(3) == 0 {
                sleep(stage.random.up_to(LEASE + Duration::from_millis(200))).await;
            } else {
                stage.until("it drives", |_, lines| drives(lines, pid) || child.ended().is_some()).await;
                sleep(stage.random.up_to(Duration::from_millis(300))).await;
            }
            if !child.kill() {
                break;
            }
            let last = stage.tail.read().iter().rfind(|line| line.pid == pid);
            *tally.kills.entry(last.map_or_else(|| "nothing yet".into(), |line| phase(&line.what))).or_default() += 1;
        }
        let mut child = stage.start(&job, Role::Drives);
        stage.until("it ends", |_, _| child.ended().is_some()).await;
        stage.check(&job).await;
        tally.rollouts += 1;
    }
    tally
}

/// What a process did last, in words that can be counted.
fn phase(did: &Did) -> String {
    match did {
        Did::Looked { .. } => "looked".into(),
        Did::Asked { goal, .. } => format!("asked for {goal}"),
        Did::Landed { .. } => "landed".into(),
        Did::Refused { .. } => "refused".into(),
        Did::Saving(saved) => format!("saving {}", saved.state),
        Did::Saved(saved) => format!("saved {}", saved.state),
        other => format!("{other:?}"),
    }
}

#[tokio::test]
async fn of_two_processes_on_one_file_only_one_drives_while_it_lives() {
    only_one_drives_while_it_lives(&mut Stage::on_sqlite(Random::seed())).await;
}

#[tokio::test]
async fn of_two_processes_on_postgres_only_one_drives_while_it_lives() {
    on_postgres(async |mut stage| only_one_drives_while_it_lives(&mut stage).await).await;
}

async fn only_one_drives_while_it_lives(stage: &mut Stage) {
    // No machine is so busy that a process that lives is silent for so long.
    stage.lease = Duration::from_secs(8);
    let job = stage.next_rollout(Some(Job::blind(&stage.folder())));
    let mut driver = stage.start(&job, Role::Drives);
    let pid = driver.pid();
    stage.until("the first drives", |_, lines| drives(lines, pid)).await;
    let mut other = stage.start(&job, Role::StandsBy);
    let idle = other.pid();
    let looked_for_orphans = |lines: &[Line]| {
        let of_other = lines.iter().filter(|line| line.pid == idle);
        of_other.skip_while(|line| line.what != Did::Ready).filter(|line| line.what == Did::Listed).count()
    };
    let looked = |lines: &[Line]| looked_for_orphans(lines) >= 2;
    stage.until("the other has looked for orphans", |_, lines| other.ended().is_some() || looked(lines)).await;
    stage.see();
    stage.until("both end", |_, _| driver.ended().is_some() && other.ended().is_some()).await;
    let acts = |line: &&Line| line.pid != pid && matches!(line.what, Did::Asked { .. } | Did::Saving(_));
    let acts: Vec<&Line> = stage.tail.read().iter().filter(acts).collect();
    assert!(acts.is_empty(), "another process than the driver asked or saved: {acts:?}");
    assert_eq!(other.ended(), Some(IDLE), "what a process says that drove nothing");
    stage.check(&job).await;
}

#[tokio::test]
async fn of_two_processes_on_one_file_one_drives_and_the_other_takes_over_when_it_is_killed() {
    for seed in seeds(2) {
        one_drives_and_the_other_takes_over(&mut Stage::on_sqlite(seed)).await;
    }
}

#[tokio::test]
async fn of_two_processes_on_postgres_one_drives_and_the_other_takes_over_when_it_is_killed() {
    on_postgres(async |mut stage| one_drives_and_the_other_takes_over(&mut stage).await).await;
}

async fn one_drives_and_the_other_takes_over(stage: &mut Stage) {
    for _ in 0..3 {
        let job = stage.next_rollout(None);
        let mut driver = stage.start(&job, Role::Drives);
        let mut other = stage.start(&job, Role::StandsBy);
        stage.until("the first drives", |_, lines| drives(lines, driver.pid())).await;
        for _ in 0..3 {
            sleep(stage.random.up_to(Duration::from_millis(200))).await;
            if !driver.kill() {
                break;
            }
            let killed = Instant::now();
            let pid = other.pid();
            stage.until("the other drives", |_, lines| drives(lines, pid) || other.ended().is_some()).await;
            println!("taken over {:?} after the kill, with a lease of {:?}", killed.elapsed(), stage.lease);
            driver = std::mem::replace(&mut other, stage.start(&job, Role::StandsBy));
        }
        stage.until("both end", |_, _| driver.ended().is_some() && other.ended().is_some()).await;
        stage.check(&job).await;
    }
}

#[tokio::test]
async fn a_driver_on_one_file_that_is_stopped_in_a_bake_and_goes_on_later_changes_nothing() {
    for seed in seeds(2) {
        stopped_in_a_bake(&mut Stage::on_sqlite(seed)).await;
    }
}

#[tokio::test]
async fn a_driver_on_postgres_that_is_stopped_in_a_bake_and_goes_on_later_changes_nothing() {
    on_postgres(async |mut stage| stopped_in_a_bake(&mut stage).await).await;
}

async fn stopped_in_a_bake(stage: &mut Stage) {
    for goes_on_at_once in [true, false] {
        let job = stage.next_rollout(Some(Job::blind(&stage.folder())));
        let mut driver = stage.start(&job, Role::Drives);
        let mut other = stage.start(&job, Role::StandsBy);
        let pid = driver.pid();
        stage.until("it bakes", |_, lines| last_save(lines).is_some_and(|(_, saved)| saved.state == "baking 0")).await;
        let before =
            stage.stop_until_taken_up(&mut driver, &mut other).await.expect("a rollout without data does not end");
        let told = stage.tail.lines.len();
        if goes_on_at_once {
            driver.signal("CONT");
            stage.until("the stopped one ends", |_, _| driver.ended().is_some()).await;
        }
        stage.see();
        stage.until("the other ends", |_, _| other.ended().is_some()).await;
        let after = stage.world();
        driver.signal("CONT");
        stage.until("the stopped one ends", |_, _| driver.ended().is_some()).await;
        assert_eq!(driver.ended(), Some(TAKEN_UP), "what a driver says whose rollout was taken up");
        assert_eq!(stage.world(), after, "it came back after the end and changed the target");
        assert_eq!(writes_of(pid, &before, &after), [], "it came back and changed the target");
        let acted = |line: &&Line| line.pid == pid && matches!(line.what, Did::Asked { .. } | Did::Saved { .. });
        let acts: Vec<&Line> = stage.tail.lines[told..].iter().filter(acted).collect();
        assert!(acts.is_empty(), "it came back and asked or saved: {acts:?}");
        stage.check(&job).await;
    }
}

#[tokio::test]
async fn a_driver_on_one_file_that_is_stopped_at_any_instant_moves_nothing_when_it_goes_on() {
    for seed in seeds(2) {
        stopped_at_any_instant(&mut Stage::on_sqlite(seed)).await;
    }
}

#[tokio::test]
async fn a_driver_on_postgres_that_is_stopped_at_any_instant_moves_nothing_when_it_goes_on() {
    on_postgres(async |mut stage| stopped_at_any_instant(&mut stage).await).await;
}

async fn stopped_at_any_instant(stage: &mut Stage) {
    let mut stops = 0;
    while stops < 6 {
        let job = stage.next_rollout(None);
        let mut driver = stage.start(&job, Role::Drives);
        let mut other = stage.start(&job, Role::StandsBy);
        stage.until("the first drives", |_, lines| drives(lines, driver.pid())).await;
        for _ in 0..3 {
            sleep(stage.random.up_to(Duration::from_millis(200))).await;
            let Some(before) = stage.stop_until_taken_up(&mut driver, &mut other).await else { break };
            stops += 1;
            let pid = driver.pid();
            let promised = promised(&stage.tail.lines, pid);
            sleep(stage.random.up_to(Duration::from_millis(100))).await;
            driver.signal("CONT");
            stage.until("the stopped one ends", |_, _| driver.ended().is_some()).await;
            assert_eq!(driver.ended(), Some(TAKEN_UP), "what a driver says whose rollout was taken up");
            // What it had sent already is a late call, and lands while nobody has spent its version.
            let late = writes_of(pid, &before, &stage.world());
            assert!(
                late.len() <= 1 && late.iter().all(|written| written.nonce == promised),
                "it came back and changed more than it had promised, which was {promised:?}: {late:?}"
            );
            driver = std::mem::replace(&mut other, stage.start(&job, Role::StandsBy));
        }
        stage.until("both end", |_, _| driver.ended().is_some() && other.ended().is_some()).await;
        stage.check(&job).await;
    }
}

#[tokio::test]
async fn of_two_processes_that_start_on_one_file_at_the_same_time_one_is_told_of_the_other() {
    for seed in seeds(2) {
        one_is_told_of_the_other(&mut Stage::on_sqlite(seed)).await;
    }
}

#[tokio::test]
async fn of_two_processes_that_start_on_postgres_at_the_same_time_one_is_told_of_the_other() {
    on_postgres(async |mut stage| one_is_told_of_the_other(&mut stage).await).await;
}

async fn one_is_told_of_the_other(stage: &mut Stage) {
    for _ in 0..3 {
        // No bake ends before both have said what came of it.
        let job = stage.next_rollout(Some(Job::blind(&stage.folder())));
        let rival = Job { rollout: format!("{}-rival", job.rollout).try_into().unwrap(), ..job.clone() };
        let mut both = [stage.start(&job, Role::Races), stage.start(&rival, Role::Races)];
        let pids = both.each_ref().map(Process::pid);
        let ready = |line: &&Line| line.what == Did::Ready && pids.contains(&line.pid);
        stage.until("both are ready", |_, lines| lines.iter().filter(ready).count() == 2).await;
        let go = Job::go(&stage.folder());
        fs::write(&go, "").unwrap();
        stage.until("one ends", |_, _| both.iter_mut().any(|child| child.ended().is_some())).await;
        stage.see();
        stage.until("both end", |_, _| both.iter_mut().all(|child| child.ended().is_some())).await;
        fs::remove_file(&go).unwrap();

        let winner = both.iter_mut().position(|child| child.ended() != Some(IDLE)).expect("one of them starts");
        let loser = 1 - winner;
        assert_eq!(both[loser].ended(), Some(IDLE), "only one of them starts");
        let won = [&job, &rival][winner];
        let heard = stage.tail.lines.iter().find_map(|line| match &line.what {
            Did::Denied { conflict, why } if line.pid == pids[loser] => Some((*conflict, why.as_str())),
            _ => None,
        });
        let (conflict, why) = heard.expect("it says why");
        let named = why.contains(&format!("busy with rollout {}", won.rollout));
        assert!(conflict && named && !(winner == 0 && why.contains("rival")), "{why}");
        stage.check(won).await;
    }
}

// ------------------------------------------------------------------------------------------------------------- the stage

/// A store, a target and a trace, and the rollouts that were played on them.
struct Stage {
    folder: TempDir,
    url: String,
    lease: Duration,
    seed: u64,
    random: Random,
    tail: Tail,
    target: InFile,
    rollouts: u32,
    /// What serves before the rollout that is played.
    baseline: String,
    /// Where its lines begin.
    begun: usize,
}

impl Stage {
    fn on_sqlite(seed: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}", folder.path().join("rollouts.db").display());
        Self::new(folder, url, LEASE, seed)
    }

    fn new(folder: TempDir, url: String, lease: Duration, seed: u64) -> Self {
        let baseline = "r0".to_owned();
        let target = InFile::create(&Job::target(folder.path()), &baseline);
        let tail = Tail::of(&Job::trace(folder.path()));
        Self { folder, url, lease, seed, random: Random(seed), tail, target, rollouts: 0, baseline, begun: 0 }
    }

    fn folder(&self) -> PathBuf {
        self.folder.path().into()
    }

    fn world(&self) -> World {
        self.target.world()
    }

    /// The job of the next rollout, which will be found good or bad; with a file that blinds its gate meanwhile.
    fn next_rollout(&mut self, blind: Option<PathBuf>) -> Job {
        self.rollouts += 1;
        self.begun = self.tail.read().len();
        let candidate = format!("r{}", self.rollouts);
        self.target.build(&candidate);
        if let Some(blind) = blind {
            fs::write(blind, "").unwrap();
        }
        Job {
            url: self.url.clone(),
            folder: self.folder(),
            rollout: RolloutId::try_from(format!("{TARGET}-{}", self.rollouts)).unwrap(),
            candidate,
            bad_from: (self.random.below(2) == 0).then_some(50),
            role: Role::Drives,
            lease: self.lease,
            seed: 0,
        }
    }

    /// The gate has data again.
    fn see(&self) {
        // Whoever comes second finds it gone.
        drop(fs::remove_file(Job::blind(self.folder.path())));
    }

    fn start(&mut self, job: &Job, role: Role) -> Process {
        let job = Job { role, seed: self.random.next(), ..job.clone() };
        Process(job.command().spawn().expect("this program starts once more"))
    }

    /// Waits until this is so. The trace of the rollout is read anew before each look.
    async fn until(&mut self, what: &str, mut so: impl FnMut(&World, &[Line]) -> bool) {
        let waiting = async {
            while !so(&self.target.world(), &self.tail.read()[self.begun..]) {
                sleep(Duration::from_millis(2)).await;
            }
        };
        let came = timeout(PATIENCE, waiting).await;
        assert!(came.is_ok(), "waited {PATIENCE:?} in vain until {what}");
    }

    /// Stops the driver until another process has taken its rollout up, and returns the target as it is then. None when
    /// the driver is at its end.
    async fn stop_until_taken_up(&mut self, driver: &mut Process, other: &mut Process) -> Option<World> {
        let give_up = Instant::now() + PATIENCE;
        while driver.ended().is_none() {
            assert!(Instant::now() < give_up, "nobody takes the rollout up");
            let pid = driver.pid();
            driver.signal("STOP");
            let let_go_on = Instant::now() + IN_A_TRANSACTION;
            let moved_on = |lines: &[Line]| last_save(lines).is_some_and(|(by, saved)| by != pid || !saved.open);
            let waited = |lines: &[Line]| moved_on(lines) || Instant::now() >= let_go_on;
            self.until("it is taken up", |_, lines| other.ended().is_some() || waited(lines)).await;
            if !drives(&self.tail.lines[self.begun..], pid) {
                return Some(self.world());
            }
            driver.signal("CONT");
            sleep(self.random.up_to(Duration::from_millis(50))).await;
        }
        None
    }

    /// Checks what became of a rollout, and how: when all its processes have ended.
    async fn check(&mut self, job: &Job) {
        let store = Sql::connect(&self.url).await.unwrap();
        let (record, _) = store.load(&job.rollout).await.unwrap();
        assert_ne!(record.standing, Standing::Open);
        let rollout = Rollout::from_record(&record).unwrap();
        let serves = match (&rollout.state, job.bad_from) {
            (State::Promoted, None) => &job.candidate,
            (State::RolledBack { cause: Cause::Unhealthy { gate, .. } }, Some(_)) if gate.as_str() == "errors" => {
                &self.baseline
            }
            (state, bad_from) => panic!("bad from {bad_from:?}, and it ended as {state:?}"),
        };
        let world = self.world();
        assert!(world.only(serves), "it ended as {}, and the target serves {:?}", rollout.state.name(), world.mix);
        let share = if *serves == job.candidate { Weight::ALL } else { Weight::NONE };
        assert_eq!(rollout.weight, Some(share), "the record says what serves");
        self.tail.read();
        check::trace(&self.tail.lines[self.begun..], &world, &rollout);
        self.baseline = serves.clone();
    }
}

/// What happened, for whoever reads why a test failed.
impl Drop for Stage {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the seed is {}, the rollout {TARGET}-{}; its trace:", self.seed, self.rollouts);
            for Line { pid, at, what } in &self.tail.read()[self.begun..] {
                eprintln!("{at} {pid} {what:?}");
            }
            eprintln!("{:?}", self.target.world());
            eprintln!("{}", fs::read_to_string(self.folder.path().join("stderr")).unwrap_or_default());
        }
    }
}

/// A child, which does not outlive the test.
struct Process(Child);

impl Process {
    fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Its exit status, if it has ended by itself.
    fn ended(&mut self) -> Option<i32> {
        let status = self.0.try_wait().expect("it is our child")?;
        let code = status.code().unwrap_or_else(|| panic!("process {} was ended: {status}", self.0.id()));
        assert!([0, 1, IDLE, TAKEN_UP].contains(&code), "process {} ended with {code}", self.0.id());
        Some(code)
    }

    /// Kills it; false when it had ended by itself.
    fn kill(&mut self) -> bool {
        self.0.kill().expect("it is our child");
        let status = self.0.wait().expect("it is our child");
        if status.code().is_some() {
            self.ended();
        }
        status.code().is_none()
    }

    fn signal(&self, signal: &str) {
        let send = format!("kill -{signal} {}", self.pid());
        // It fails when the process has ended meanwhile, which does no harm: its number is ours until we have asked.
        Command::new("sh").args(["-c", &send]).stderr(Stdio::null()).status().expect("there is a shell");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Plays this on a schema of its own, where there is a server, once for each seed.
async fn on_postgres(play: impl AsyncFn(Stage)) {
    let Some(server) = postgres::server().await else { return };
    for seed in seeds(1) {
        let url = server.schema().await;
        play(Stage::new(tempfile::tempdir().unwrap(), url.clone(), LEASE_ON_POSTGRES, seed)).await;
        server.remove(&url).await;
    }
}

/// So many seeds, the last of them new; or the one that is asked for.
fn seeds(count: u64) -> Vec<u64> {
    match env::var("ROLLBACK_TEST_SEED") {
        Ok(seed) => vec![seed.parse().expect("ROLLBACK_TEST_SEED is a number")],
        Err(_) => (1..count).chain([Random::seed()]).collect(),
    }
}

/// Who saved last, and what: by the serial, because a process that was stopped may be late to hear what it saved.
fn last_save(lines: &[Line]) -> Option<(u32, &Saved)> {
    let saves = lines.iter().filter_map(|line| match &line.what {
        Did::Saved(saved) => Some((line.pid, saved)),
        _ => None,
    });
    saves.max_by_key(|(_, saved)| saved.serial)
}

/// Whether this process is the one that saved last.
fn drives(lines: &[Line], pid: u32) -> bool {
    last_save(lines).is_some_and(|(by, _)| by == pid)
}

/// The last attempt that this process has saved.
fn promised(lines: &[Line], pid: u32) -> Option<rollback_core::model::Nonce> {
    lines.iter().rev().find_map(|line| match &line.what {
        Did::Saved(saved) if line.pid == pid => saved.nonce.clone(),
        _ => None,
    })
}

/// What this process has changed on the target between these two.
fn writes_of(pid: u32, before: &World, after: &World) -> Vec<Written> {
    after.writes[before.writes.len()..].iter().filter(|written| written.pid == pid).cloned().collect()
}
