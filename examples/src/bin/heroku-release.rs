//! Deploys to a Heroku app, watches it, and brings the old release back when it misbehaves: see `--help`.

use std::{path::PathBuf, process::ExitCode};

use clap::Parser;
use rollback_core::{
    Error, Result,
    engine::{NewRollout, Outcome, Target},
    gate::{Http, Policy},
    model::{Revision, TargetId},
};
use rollback_examples::{heroku::Common, tool::status};
use rollback_heroku::Candidate;

/// Deploys a slug, a tarball or an image to a Heroku app, watches it, and brings the old release back when it misbehaves.
///
/// Nothing changes before the way back is proved. The token is read from HEROKU_API_KEY, else from the netrc file. Every
/// release of an app is for all its users at once; give it a second app and heroku-promote for a canary.
#[derive(Parser)]
#[command(name = "heroku-release")]
#[command(
    after_help = "Exit status: 0 promoted or served already, 1 rolled back, 2 bad input, 3 refused before anything \
    changed, 4 stuck, 5 somebody else released and it was left alone, 70 internal error, 130 interrupted (run it again to \
    resume)."
)]
struct Args {
    /// The app.
    app: String,
    #[command(flatten)]
    what: What,
    /// Ask this address too: it must answer 200 to 299.
    #[arg(long, value_name = "URL")]
    probe: Option<String>,
    #[command(flatten)]
    common: Common,
}

/// What is deployed: one of these.
#[derive(clap::Args)]
#[group(required = true, multiple = false)]
struct What {
    /// A slug of this app, by its id.
    #[arg(long, value_name = "ID")]
    slug: Option<String>,
    /// A tarball (.tgz) of this machine; Heroku builds it.
    #[arg(long, value_name = "FILE")]
    tarball: Option<PathBuf>,
    /// A tarball at an address, with its SHA-256; Heroku builds it.
    #[arg(long, value_names = ["URL", "SHA256"], num_args = 2)]
    source: Option<Vec<String>>,
    /// A container image that was pushed to Heroku's registry: process type and image id, as web=sha256:….
    #[arg(long, value_name = "TYPE=ID")]
    image: Option<Vec<String>>,
}

impl What {
    async fn revision(&self) -> Result<Revision> {
        let candidate = match (&self.slug, &self.tarball, &self.source, &self.image) {
            (Some(slug), ..) => Candidate::slug(slug)?,
            (_, Some(file), ..) => {
                let candidate = Candidate::tarball(file).await?;
                match std::env::var("GITHUB_SHA") {
                    Ok(commit) if !commit.is_empty() => candidate.version(commit),
                    _ => candidate,
                }
            }
            (_, _, Some(source), _) => Candidate::source(&source[0], &source[1])?,
            (_, _, _, Some(images)) => {
                let mut candidate: Option<Candidate> = None;
                for image in images {
                    let (kind, id) = image.split_once('=').ok_or_else(|| {
                        Error::invalid(format!("the image {image:?} has no process type; web=sha256:… is accepted"))
                    })?;
                    candidate = Some(match candidate {
                        None => Candidate::image(kind, id)?,
                        Some(candidate) => candidate.and_image(kind, id)?,
                    });
                }
                candidate.ok_or_else(|| Error::invalid("no image was given"))?
            }
            _ => return Err(Error::invalid("nothing to deploy was given")),
        };
        candidate.revision()
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    status("heroku-release", run(Args::parse()).await)
}

async fn run(args: Args) -> Result<Option<Outcome>> {
    let common = &args.common;
    let app = common.app(&common.client()?, &args.app)?;
    let id = TargetId::try_from(args.app.as_str())?;
    let mut target = common.watched(Target::new(&args.app, app.clone())?, &app)?;
    if let Some(url) = &args.probe {
        target = target.gate(Http::new("probe", url)?, Policy::default().every(common.every).unhealthy_after(2, 3));
    }
    let new = NewRollout::new(&args.app, args.what.revision().await?, common.plan()?)?;
    let engine = common.keep.engine().await?;
    engine.register(target)?;
    let left = common.keep.left(&engine).await?;
    let outcome = common.keep.run(&engine, &left, new, &id).await;
    engine.shutdown(std::time::Duration::from_secs(10)).await;
    outcome
}
