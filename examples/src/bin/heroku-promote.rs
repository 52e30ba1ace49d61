//! Promotes in a Heroku pipeline, first to a canary app, then to the rest, and brings back what misbehaves: see `--help`.

use std::process::ExitCode;

use clap::Parser;
use rollback_core::{
    Error, Result,
    engine::{Engine, NewRollout, Outcome, Target},
    model::{Revision, TargetId},
};
use rollback_examples::{
    heroku::Common,
    tool::{say, status},
};
use rollback_heroku::{App, Client, Promotion};

/// Promotes the current release of an app to the others of its pipeline, watches them, and brings the old releases back when
/// one misbehaves.
///
/// With --then it takes two rollouts: first to the apps of --to, a canary with real users; when that one is promoted, the
/// same release goes to the apps of --then.
#[derive(Parser)]
#[command(name = "heroku-promote")]
#[command(
    after_help = "Exit status: 0 promoted or served already, 1 rolled back, 2 bad input, 3 refused before anything \
    changed, 4 stuck, 5 somebody else released and it was left alone, 70 internal error, 130 interrupted (run it again to \
    resume)."
)]
struct Args {
    /// The app whose release is promoted.
    from: String,
    /// An app to promote to; may be said several times.
    #[arg(long, required = true, value_name = "APP")]
    to: Vec<String>,
    /// An app to promote to when those of --to are well; may be said several times.
    #[arg(long, value_name = "APP")]
    then: Vec<String>,
    #[command(flatten)]
    common: Common,
}

#[tokio::main]
async fn main() -> ExitCode {
    status("heroku-promote", run(Args::parse()).await)
}

async fn run(args: Args) -> Result<Option<Outcome>> {
    let common = &args.common;
    let client = common.client()?;
    let engine = common.keep.engine().await?;
    let mut stages = vec![args.to.as_slice()];
    stages.extend((!args.then.is_empty()).then_some(args.then.as_slice()));
    // Whatever an earlier run left may be of any stage.
    let mut known = Vec::new();
    for apps in stages {
        known.push(register(common, &client, &engine, &args.from, apps)?);
    }
    let left = common.keep.left(&engine).await?;
    let mut candidate: Option<Revision> = None;
    let mut last = None;
    for (id, promotion) in known {
        // What was tried on the canary goes to the rest, whatever was released meanwhile.
        let revision = match &candidate {
            Some(candidate) => candidate.clone(),
            None => promotion.candidate().await?,
        };
        candidate = Some(revision.clone());
        say(&format!("promoting {} from {} to {id}", revision.id, args.from));
        let new = NewRollout::new(id.as_str(), revision, common.plan()?)?;
        let outcome = common.keep.run(&engine, &left, new, &id).await?;
        let goes_on = outcome.as_ref().is_some_and(Outcome::is_success);
        last = outcome;
        if !goes_on {
            break;
        }
    }
    engine.shutdown(std::time::Duration::from_secs(10)).await;
    Ok(last)
}

fn register(
    common: &Common,
    client: &Client,
    engine: &Engine,
    from: &str,
    to: &[String],
) -> Result<(TargetId, Promotion)> {
    let apps = to.iter().map(|name| common.app(client, name)).collect::<Result<Vec<App>>>()?;
    let id = TargetId::try_from(to.join("+")).map_err(|_| Error::invalid("the apps' names together are too long"))?;
    let promotion = Promotion::new(client, from, apps.clone())?;
    let mut target = Target::new(id.as_str(), promotion.clone())?;
    for app in &apps {
        target = common.watched(target, app)?;
    }
    engine.register(target)?;
    Ok((id, promotion))
}
