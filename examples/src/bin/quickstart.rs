//! A guarded rollout on this machine, for real: see `--help`.

use std::{io::Write, net::SocketAddr, path::PathBuf, process::ExitCode, time::Duration};

use clap::{Parser, Subcommand};
use rollback_core::{
    Error, ErrorKind, Result,
    engine::{Engine, Handle, NewRollout, Outcome, Target},
    gate::Policy,
    listener::{Listener, Progress, RolloutEvent},
    plan::Plan,
    report::Report,
    rollout::{Rollout, What},
    state::{Cause, State},
    store::{Sql, Store},
};
use rollback_examples::{
    gates::{ErrorRate, Probe},
    proxy::{Proxy, revision},
    service::{self, Build},
    stage::{self, Stage},
    timeline,
};

/// Releases v2 of a small HTTP service to real traffic, notices that it is bad, and brings v1 back.
///
/// Everything is real and on this machine: two releases as processes, a weighted router in front of them, a hundred
/// requests a second. v2 gets 10, 50, then 100 % of them, watched by an error rate and a probe. It takes about ten
/// seconds, needs nothing but this program, and leaves nothing running.
#[derive(Parser)]
#[command(name = "quickstart", args_conflicts_with_subcommands = true, disable_help_subcommand = true)]
#[command(after_help = "Exit status: 0 ended as planned, 1 rolled back where it should not, 2 bad input, \
    3 refused before anything changed, 4 stuck, 5 hands off, 70 internal error, 130 interrupted (run it again to \
    resume), 137 killed itself (--crash).")]
struct Args {
    /// Release a v2 that works, and see it promoted.
    #[arg(long)]
    healthy: bool,
    /// Kill this process with v2 half way in; run it again to see the rollout resumed and finished.
    #[arg(long)]
    crash: bool,
    /// Keep the record and the processes' addresses here [default: rollback-quickstart-USER under the system's folder
    /// for temporary files].
    #[arg(long, value_name = "FOLDER")]
    state: Option<PathBuf>,
    #[command(subcommand)]
    part: Option<Part>,
}

/// What this program is when it has started itself again.
#[derive(Subcommand)]
enum Part {
    #[command(hide = true)]
    Service { build: String },
    #[command(hide = true)]
    Router { folder: PathBuf },
    #[command(hide = true)]
    Traffic { users: SocketAddr },
}

#[tokio::main]
async fn main() -> ExitCode {
    let mut args = Args::parse();
    let done = match args.part.take() {
        Some(part) => play(part).await.map(|()| 0),
        None => run(args).await,
    };
    match done {
        Ok(status) => status.into(),
        Err(e) => {
            eprintln!("quickstart: {}", e.chain());
            // Conflict: the folder is somebody else's at the moment. Both are for whoever typed the command.
            let status = if matches!(e.kind(), ErrorKind::Invalid | ErrorKind::Conflict) { 2 } else { 70 };
            status.into()
        }
    }
}

async fn run(args: Args) -> Result<u8> {
    let stage = Stage::open(args.state)?;
    let mut store = connect(&stage).await?;
    let resuming = !store.open().await?.is_empty();
    if !resuming {
        store.close().await;
        stage.clear().await?;
        store = connect(&stage).await?;
    }
    let (address, found) = stage.set().await?;
    let admin = address.admin();
    let router = if found { "found again" } else { "started" };
    say(format!("100 requests a second go to http://{}/ (router {router})", address.users));

    // From here on it is what a tool of your own would do.
    let mut engine = Engine::builder(store).lease(LEASE).listener(Progress::new());
    if args.crash {
        engine = engine.listener(Crash);
    }
    let engine = engine.build()?;
    let often = Policy::default().every(Duration::from_millis(250)).timeout(Duration::from_secs(2));
    engine.register(
        Target::new("shop", Proxy::new(admin))?
            .gate(ErrorRate::new(admin, 0.05, 20), often)
            .gate(Probe::new(admin), often.unhealthy_after(2, 3))
            .look_every(Duration::from_millis(200), Duration::from_millis(500)),
    )?;
    let rollout = if resuming {
        say("an earlier run left its rollout unfinished: resuming it");
        resume(&engine).await?
    } else {
        let v2 = if args.healthy { Build::good("v2") } else { Build::bad("v2") };
        let plan = Plan::canary([10, 50, 100], Duration::from_secs(3))?;
        engine.start(NewRollout::new("shop", revision(&v2)?, plan)?.by("you")?.because("the quickstart")).await?
    };
    let outcome = tokio::select! {
        outcome = rollout.finished() => outcome,
        _ = tokio::signal::ctrl_c() => {
            engine.shutdown(SHUTDOWN).await;
            say("interrupted; run it again, and it goes on from here");
            return Ok(130);
        }
    };
    engine.shutdown(SHUTDOWN).await;

    say(format!("\n{}", timeline::report(&outcome.rollout, &admin.look().await?, &admin.counts().await?)));
    say(format!("the record is in {}", stage.store().display()));
    let page = write_report(&stage, &outcome.rollout)?;
    say(format!("the report is in {}, and beside it as Markdown", page.display()));
    if outcome.rollout.state.is_open() {
        say(format!("it is left as it is; remove {} to start over", stage.folder().display()));
    } else {
        stage.strike().await;
    }
    Ok(status(&outcome))
}

/// The report as a page and as Markdown, for who was not there. Says where the page is.
fn write_report(stage: &Stage, rollout: &Rollout) -> Result<PathBuf> {
    let report = Report::new(rollout);
    let page = stage.folder().join("report.html");
    std::fs::write(&page, report.html())
        .and_then(|()| std::fs::write(page.with_extension("md"), report.markdown()))
        .map_err(|e| Error::new(ErrorKind::Internal, format!("cannot write {}", page.display())).because(e))?;
    Ok(page)
}

/// Tells whoever listens. A rollout does not end because its reader has gone away.
fn say(text: impl AsRef<str>) {
    let _ = writeln!(std::io::stdout(), "{}", text.as_ref());
}

async fn connect(stage: &Stage) -> Result<Sql> {
    // In a URL these two are not themselves.
    let path = stage.store().display().to_string().replace('%', "%25").replace('?', "%3F");
    Sql::connect(&format!("sqlite:{path}")).await
}

/// Takes up the one rollout that is open. Its driver is dead: only one process at a time has the folder.
async fn resume(engine: &Engine) -> Result<Handle> {
    let mut resumed = engine.resume_all().await?;
    if let Some((id, why)) = resumed.refused.pop() {
        return Err(why.during(format!("rollout {id} cannot be taken up")));
    }
    resumed.handles.pop().ok_or_else(|| Error::new(ErrorKind::Internal, "the open rollout was not taken up"))
}

/// 0 when the demo ended as planned, a rollback included.
fn status(outcome: &Outcome) -> u8 {
    let bad = outcome.rollout.change.candidate.spec.open().is_ok_and(|build: Build| !build.is_good());
    match (&outcome.rollout.state, outcome.exit_code()) {
        (State::RolledBack { cause: Cause::Unhealthy { .. } }, _) if bad => 0,
        (_, 0) if bad => 70,
        (_, status) => status,
    }
}

/// Plays a part beside the main one.
async fn play(part: Part) -> Result<()> {
    let played = match part {
        Part::Service { build } => {
            let build = serde_json::from_str(&build).map_err(|e| Error::invalid("not a build").because(e))?;
            service::run(build).await
        }
        Part::Router { folder } => stage::run_router(&folder).await,
        Part::Traffic { users } => {
            stage::run_traffic(users).await;
            Ok(())
        }
    };
    played.map_err(|e| Error::invalid("cannot play this part").because(e))
}

/// Kills this process as soon as users get answers from v2.
#[derive(Debug)]
struct Crash;

impl Listener for Crash {
    fn on(&self, event: &RolloutEvent) {
        if matches!(event.what, What::Entered { to: State::Baking { .. } }) {
            say("killing this process now; run it again to see the rollout resumed");
            // A real SIGKILL, which nothing can clean up after. Where there is none, its status will do.
            let _ = std::process::Command::new("sh").args(["-c", "kill -9 $PPID"]).status();
            std::process::exit(137);
        }
    }
}

/// How long a crashed run is given to be alive after all, before another takes its rollout up.
const LEASE: Duration = Duration::from_secs(2);
const SHUTDOWN: Duration = Duration::from_secs(5);
