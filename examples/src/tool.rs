//! What the tools for real platforms share: the record in a file, the report, the exit status.

use std::{
    fs::File,
    io::Write as _,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::Args;
use jiff::SignedDuration;
use rollback_core::{
    Error, ErrorKind, Result,
    engine::{Engine, Handle, NewRollout, Outcome},
    listener::Progress,
    model::{Revision, TargetId},
    report::Report,
    store::Sql,
};

/// What is kept of a rollout, and under whose name.
#[derive(Args, Clone, Debug)]
pub struct Keep {
    /// Keep the record here: an interrupted run goes on from it.
    #[arg(long, value_name = "FILE", default_value_t = default_store())]
    pub store: String,
    /// Write the report here as Markdown. In a GitHub workflow it goes to the job's summary as well.
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// Who deploys [default: GITHUB_ACTOR, USER].
    #[arg(long, value_name = "NAME")]
    pub by: Option<String>,
    /// Why.
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub because: String,
}

impl Keep {
    fn by(&self) -> String {
        let env = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        self.by.clone().or_else(|| env("GITHUB_ACTOR")).or_else(|| env("USER")).unwrap_or_else(|| "unknown".into())
    }

    /// An engine on the store of the options.
    ///
    /// # Errors
    /// When the store cannot be opened.
    pub async fn engine(&self) -> Result<Engine> {
        // The record holds what may be a signed address: it is for its owner alone.
        create_private(Path::new(&self.store))?;
        let path = self.store.replace('%', "%25").replace('?', "%3F");
        let store = Sql::connect(&format!("sqlite:{path}")).await?;
        Engine::builder(store).listener(Progress::new()).build()
    }

    /// Takes up what an earlier run left. Waits for the lease when its process may still live.
    ///
    /// # Errors
    /// What kept the store from answering, or a rollout from being taken up.
    pub async fn left(&self, engine: &Engine) -> Result<Vec<Handle>> {
        let resumed = engine.resume_all().await?;
        match resumed.refused.into_iter().next() {
            Some((id, why)) => Err(why.during(format!("rollout {id}, which an earlier run left, cannot be taken up"))),
            None => {
                for other in &resumed.unregistered {
                    say(&format!(
                        "the record has an open rollout of another target, {}: it goes on when that is run again",
                        other.subject
                    ));
                }
                Ok(resumed.handles)
            }
        }
    }

    /// The candidate of what an earlier run left for this target: it goes on with its own.
    pub fn candidate(left: &[Handle], target: &TargetId) -> Option<Revision> {
        let left = left.iter().map(Handle::status).find(|left| left.change.target == *target)?;
        Some(left.change.candidate.clone())
    }

    /// Runs a rollout to its end, or the one of the same target that was left. Tells how it ended, and writes the report. None
    /// when it was interrupted.
    ///
    /// # Errors
    /// What kept it from starting.
    pub async fn run(
        &self,
        engine: &Engine,
        left: &[Handle],
        new: NewRollout,
        target: &TargetId,
    ) -> Result<Option<Outcome>> {
        let rollout = match left.iter().find(|it| it.status().change.target == *target) {
            Some(left) => {
                say(&format!("an earlier run left rollout {}: it goes on from there", left.id()));
                left.clone()
            }
            None => {
                let new = new.by(self.by())?;
                engine.start(if self.because.is_empty() { new } else { new.because(self.because.as_str()) }).await?
            }
        };
        let outcome = tokio::select! {
            outcome = rollout.finished() => outcome,
            _ = tokio::signal::ctrl_c() => return Ok(None),
        };
        say(&format!("\n{outcome}"));
        self.write_report(&outcome)?;
        Ok(Some(outcome))
    }

    fn write_report(&self, outcome: &Outcome) -> Result<()> {
        let text = Report::new(&outcome.rollout).markdown();
        let summary = std::env::var_os("GITHUB_STEP_SUMMARY").map(PathBuf::from);
        for file in self.report.iter().chain(&summary) {
            let write = || File::options().create(true).append(true).open(file)?.write_all(text.as_bytes());
            write().map_err(|e| {
                Error::new(ErrorKind::Internal, format!("cannot write the report to {}", file.display())).because(e)
            })?;
        }
        Ok(())
    }
}

/// `rollback-heroku.db` for heroku-release: programs of one platform go on with each other's rollouts, and with no others.
fn default_store() -> String {
    let program = std::env::current_exe().ok();
    let name = program.as_deref().and_then(Path::file_stem).map(|name| name.to_string_lossy().into_owned());
    let platform = name.as_deref().unwrap_or("tool").split('-').next().unwrap_or("tool").to_owned();
    format!("rollback-{platform}.db")
}

/// Time as `90s`, `10m`, `1h 30m`.
///
/// # Errors
/// What would have been a time.
pub fn time(text: &str) -> Result<Duration, String> {
    let parsed: SignedDuration = text.parse().map_err(|_| format!("{text:?} is no time; 90s or 10m is accepted"))?;
    Duration::try_from(parsed).map_err(|_| format!("{text:?} is before now"))
}

/// Tells whoever listens. A rollout does not end because its reader has gone away.
pub fn say(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

/// Prints what was asked for, as the policy or role that a program needs, and that is all.
pub fn printed(program: &str, text: Result<String>) -> ExitCode {
    match text {
        Ok(text) => {
            say(text.trim_end());
            ExitCode::SUCCESS
        }
        Err(e) => status(program, Err(e)),
    }
}

/// The exit status: the outcome's, or what an error before the start means.
pub fn status(program: &str, done: Result<Option<Outcome>>) -> ExitCode {
    match done {
        Ok(Some(outcome)) => outcome.exit_code().into(),
        Ok(None) => {
            say("interrupted; run it again, and it goes on from here");
            130.into()
        }
        Err(e) => {
            eprintln!("{program}: {}", e.chain());
            match e.kind() {
                ErrorKind::Invalid | ErrorKind::NotFound | ErrorKind::Denied => 2.into(),
                ErrorKind::Unsupported | ErrorKind::Mixed | ErrorKind::Conflict => 3.into(),
                _ => 70.into(),
            }
        }
    }
}

fn create_private(file: &Path) -> Result<()> {
    let mut options = File::options();
    options.create(true).append(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    match options.open(file) {
        Ok(_) => Ok(()),
        Err(e) => Err(Error::invalid(format!("the record cannot be kept in {}", file.display())).because(e)),
    }
}
