//! What `heroku-release` and `heroku-promote` share: token, engine, report, exit status.

use std::{
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::Args;
use jiff::SignedDuration;
use rollback_core::{
    Error, ErrorKind, Result,
    engine::{Engine, Handle, NewRollout, Outcome, Target},
    gate::{NoData, Policy},
    listener::Progress,
    model::TargetId,
    plan::{Deadlines, Plan},
    report::Report,
    store::Sql,
};
use rollback_heroku::{
    App, Client,
    gate::{Dynos, Router},
};

/// Options of both programs.
#[derive(Args, Clone, Debug)]
pub struct Common {
    /// Watch the candidate for so long before it counts as good.
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = time)]
    pub bake: Duration,
    /// Each dyno must have been up for so long before the release counts as arrived.
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = time)]
    pub steady: Duration,
    /// Judge the dynos so often.
    #[arg(long, value_name = "TIME", default_value = "15s", value_parser = time)]
    pub every: Duration,
    /// Go back when more than this share of the requests fails, by Heroku's metrics API.
    #[arg(long, value_name = "SHARE")]
    pub max_errors: Option<f64>,
    /// Go back by releasing the old slug with today's config vars, instead of by Heroku's rollback.
    #[arg(long)]
    pub code_only: bool,
    /// Keep the record here: an interrupted run goes on from it.
    #[arg(long, value_name = "FILE", default_value = "rollback-heroku.db")]
    pub store: PathBuf,
    /// Write the report here as Markdown. In a GitHub workflow it goes to the job's summary as well.
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// Who deploys [default: GITHUB_ACTOR, USER].
    #[arg(long, value_name = "NAME")]
    pub by: Option<String>,
    /// Why.
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub because: String,
    /// How long an unanswered request may still land.
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = time, hide = true)]
    pub settle: Duration,
    /// Ask this API instead of Heroku's; the token goes to Heroku and to this machine only.
    #[arg(long, value_name = "URL")]
    pub api_url: Option<String>,
}

/// Time as `90s`, `10m`, `1h 30m`.
fn time(text: &str) -> Result<Duration, String> {
    let parsed: SignedDuration = text.parse().map_err(|_| format!("{text:?} is no time; 90s or 10m is accepted"))?;
    Duration::try_from(parsed).map_err(|_| format!("{text:?} is before now"))
}

impl Common {
    /// A client, with the token of `HEROKU_API_KEY`, else of the machine's netrc file.
    ///
    /// # Errors
    /// `Invalid` when there is no token, or the address is not one that may have it.
    pub fn client(&self) -> Result<Client> {
        let token = match std::env::var("HEROKU_API_KEY") {
            Ok(token) if !token.trim().is_empty() => token.trim().to_owned(),
            _ => netrc_token()?,
        };
        let client = Client::new(token)?;
        match &self.api_url {
            Some(url) => client.api_url(url),
            None => Ok(client),
        }
    }

    /// The app, treated as the options say.
    ///
    /// # Errors
    /// `Invalid` when it is not an app's name.
    pub fn app(&self, client: &Client, name: &str) -> Result<App> {
        let app = App::new(client, name)?.steady_for(self.steady).settle(self.settle);
        Ok(if self.code_only { app.code_only() } else { app.code_only_if_full_fails() })
    }

    /// The target with the gates on this app.
    ///
    /// # Errors
    /// `Invalid` when an option is.
    pub fn watched(&self, mut target: Target, app: &App) -> Result<Target> {
        let dynos = Dynos::new(app).named(&format!("dynos-{}", app.name()))?;
        target = target.gate(dynos, Policy::default().every(self.every));
        if let Some(share) = self.max_errors {
            let router = Router::new(app, share)?.named(&format!("router-{}", app.name()))?;
            // Values come a minute or two late; twenty without any are reason enough to go back.
            let late = NoData::RollBack { after: Duration::from_secs(20 * 60) };
            target = target.gate(router, Policy::default().every(Duration::from_secs(60)).no_data(late));
        }
        Ok(target.look_every(self.every.min(Duration::from_secs(10)), self.every.max(Duration::from_secs(1)) * 2))
    }

    /// All traffic at once, then the bake. A build and a release phase may take their hour.
    ///
    /// # Errors
    /// `Invalid` when the bake is too long.
    pub fn plan(&self) -> Result<Plan> {
        let hours = |n: u64| Duration::from_secs(3600 * n);
        let deadlines = Deadlines { shift: hours(2), roll_back: hours(3), ..Deadlines::default() };
        Plan::all_at_once(self.bake)?.with_deadlines(deadlines)
    }

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
        create_private(&self.store)?;
        let path = self.store.display().to_string().replace('%', "%25").replace('?', "%3F");
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
            None => Ok(resumed.handles),
        }
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

/// Tells whoever listens. A rollout does not end because its reader has gone away.
pub fn say(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
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

/// The password of `api.heroku.com` in the user's netrc file, where Heroku's command line puts it.
fn netrc_token() -> Result<String> {
    let home = std::env::var_os("HOME").or_else(|| std::env::var_os("USERPROFILE")).map(PathBuf::from);
    let missing = || Error::invalid("there is no token; set HEROKU_API_KEY, or log in with `heroku login`");
    let files = home.ok_or_else(missing)?;
    let text = [".netrc", "_netrc"].iter().find_map(|name| fs::read_to_string(files.join(name)).ok());
    token_in(&text.ok_or_else(missing)?).ok_or_else(missing)
}

/// `machine api.heroku.com login … password …`, over one line or several.
fn token_in(netrc: &str) -> Option<String> {
    let mut words = netrc.lines().filter(|line| !line.trim_start().starts_with('#')).flat_map(str::split_whitespace);
    let mut ours = false;
    while let Some(word) = words.next() {
        match word {
            "machine" => ours = words.next() == Some("api.heroku.com"),
            "default" => ours = false,
            "password" if ours => return words.next().map(ToOwned::to_owned),
            "login" | "account" | "password" => drop(words.next()),
            _ => {}
        }
    }
    None
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_is_found_in_a_netrc_file() {
        let several = "machine git.heroku.com\n  login a@b.example\n  password no\nmachine api.heroku.com\n  login a\n  password yes\n";
        assert_eq!(token_in(several).as_deref(), Some("yes"));
        assert_eq!(token_in("machine api.heroku.com login password password yes").as_deref(), Some("yes"));
        assert_eq!(token_in("# machine api.heroku.com password no\nmachine x password no"), None);
        assert_eq!(token_in("machine api.heroku.com login a\ndefault password no"), None);
    }
}
