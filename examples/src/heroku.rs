//! What `heroku-release` and `heroku-promote` share: token, app, gates, plan.

use std::{fs, path::PathBuf, time::Duration};

use clap::Args;
use rollback_core::{
    Error, Result,
    engine::Target,
    gate::{NoData, Policy},
    plan::{Deadlines, Plan},
};
use rollback_heroku::{
    App, Client,
    gate::{Dynos, Router},
};

use crate::tool::{Keep, time};

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
    /// What is kept of it.
    #[command(flatten)]
    pub keep: Keep,
    /// How long an unanswered request may still land.
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = time, hide = true)]
    pub settle: Duration,
    /// Ask this API instead of Heroku's; the token goes to Heroku and to this machine only.
    #[arg(long, value_name = "URL")]
    pub api_url: Option<String>,
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
