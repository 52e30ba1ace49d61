//! A canary on a Lambda alias: see `--help`.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use clap::Parser;
use rollback_aws::{
    account::{Account, Login, Role},
    lambda::{Alias, Code, Smoke},
};
use rollback_core::{
    Error, Result,
    engine::{NewRollout, Outcome, Target},
    gate::{Http, Policy},
    model::{Revision, TargetId},
    plan::Plan,
};
use rollback_examples::tool::{Keep, say, status, time};

/// Puts a version of a Lambda function in front of an alias's users little by little, watches it, and brings the old version
/// back when it misbehaves.
///
/// Nothing changes before the way back is proved. Credentials and region come from the environment, as every AWS tool takes
/// them; an endpoint on this machine gets a placeholder, and never those credentials.
#[derive(Parser)]
#[command(name = "lambda-canary")]
#[command(
    after_help = "Exit status: 0 promoted or served already, 1 rolled back, 2 bad input, 3 refused before anything \
    changed, 4 stuck, 5 somebody else moved the alias and it was left alone, 70 internal error, 130 interrupted (run it \
    again to resume)."
)]
struct Args {
    /// The alias: as checkout:live, or its ARN.
    alias: String,
    #[command(flatten)]
    what: What,
    /// The shares of traffic in percent, the last one 100.
    #[arg(long, value_name = "PERCENTS", default_value = "10,50,100", value_delimiter = ',')]
    steps: Vec<u8>,
    /// Watch each step for so long before it counts as good.
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = time)]
    bake: Duration,
    /// Judge so often.
    #[arg(long, value_name = "TIME", default_value = "15s", value_parser = time)]
    every: Duration,
    #[command(flatten)]
    watch: Watch,
    /// Print the IAM policy that this needs, and end.
    #[arg(long)]
    print_policy: bool,
    /// As this role, assumed with the credentials of the environment.
    #[arg(long, value_name = "ARN")]
    role: Option<String>,
    /// In this region.
    #[arg(long, value_name = "NAME")]
    region: Option<String>,
    /// Ask this endpoint instead of AWS's own, as http://127.0.0.1:4566 of aws-simulator.
    #[arg(long, value_name = "URL")]
    endpoint_url: Option<String>,
    #[command(flatten)]
    keep: Keep,
}

/// What is deployed: one of these.
#[derive(clap::Args)]
#[group(required = true, multiple = false)]
struct What {
    /// A version that is published already, by its number.
    #[arg(long, value_name = "NUMBER")]
    version: Option<String>,
    /// A zip of this machine: uploaded and published first.
    #[arg(long, value_name = "FILE")]
    zip: Option<PathBuf>,
    /// A zip in S3: bucket and key.
    #[arg(long, value_names = ["BUCKET", "KEY"], num_args = 2)]
    s3: Option<Vec<String>>,
    /// A container image in ECR.
    #[arg(long, value_name = "URI")]
    image: Option<String>,
}

/// What watches it: at least one of these.
#[derive(clap::Args)]
#[group(required = true, multiple = true)]
struct Watch {
    /// Call the candidate itself with this payload; no call may fail.
    #[arg(long, value_name = "JSON")]
    smoke: Option<String>,
    /// Ask this address, as a function URL of the alias; it must answer 200 to 299.
    #[arg(long, value_name = "URL")]
    probe: Option<String>,
}

impl What {
    async fn revision(&self, alias: &Alias) -> Result<Revision> {
        let code = match (&self.version, &self.zip, &self.s3, &self.image) {
            (Some(version), ..) => return Revision::new(version),
            (_, Some(file), ..) => Code::zip_file(file).await?,
            (_, _, Some(object), _) => Code::s3(&object[0], &object[1]),
            (_, _, _, Some(uri)) => Code::image(uri),
            _ => return Err(Error::invalid("nothing to deploy was given")),
        };
        let made = alias.publish(&code).await?;
        say(&format!("{} is published as version {}", alias.function(), made.id));
        Ok(made)
    }

    const fn publishes(&self) -> bool {
        self.version.is_none()
    }
}

impl Args {
    async fn account(&self) -> Result<Account> {
        let mut login = Login::new();
        if let Some(region) = &self.region {
            login = login.region(region);
        }
        if let Some(role) = &self.role {
            login = login.role(Role::new(role));
        }
        if let Some(url) = &self.endpoint_url {
            login = if is_here(url) { login.simulator(url) } else { login.endpoint_url(url) };
        }
        login.open().await
    }

    fn target(&self, alias: &Alias) -> Result<(Target, String)> {
        let mut policy = alias.policy();
        if self.what.publishes() {
            policy = policy.and(alias.publishing_policy());
        }
        let mut target = Target::new(self.id()?.as_str(), alias.clone())?;
        if let Some(payload) = &self.watch.smoke {
            let smoke = Smoke::new(alias, payload)?;
            policy = policy.and(smoke.policy());
            target = target.gate(smoke, Policy::default().every(self.every));
        }
        if let Some(url) = &self.watch.probe {
            target = target.gate(Http::new("probe", url)?, Policy::default().every(self.every).unhealthy_after(2, 3));
        }
        Ok((target.look_every(self.every.min(Duration::from_secs(2)), self.every * 2), policy.to_string()))
    }

    fn id(&self) -> Result<TargetId> {
        TargetId::try_from(self.alias.as_str())
    }
}

/// Whether an endpoint is on this machine.
fn is_here(url: &str) -> bool {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let host = rest.split(['/', '?']).next().unwrap_or_default();
    ["127.0.0.1", "localhost", "[::1]"]
        .iter()
        .any(|here| host.strip_prefix(here).is_some_and(|port| port.is_empty() || port.starts_with(':')))
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    if !args.print_policy {
        return status(PROGRAM, run(args).await);
    }
    match policy(&args).await {
        Ok(policy) => {
            say(&policy);
            ExitCode::SUCCESS
        }
        Err(e) => status(PROGRAM, Err(e)),
    }
}

async fn policy(args: &Args) -> Result<String> {
    let alias = Alias::new(&args.account().await?, &args.alias)?;
    args.target(&alias).map(|(_, policy)| policy)
}

async fn run(args: Args) -> Result<Option<Outcome>> {
    let plan = Plan::canary(args.steps.iter().copied(), args.bake)?;
    let alias = Alias::new(&args.account().await?, &args.alias)?;
    let (target, _) = args.target(&alias)?;
    let id = args.id()?;
    let engine = args.keep.engine().await?;
    engine.register(target)?;
    let left = args.keep.left(&engine).await?;
    // What an earlier run left goes on with its own candidate.
    let candidate = match left.iter().map(|it| it.status()).find(|left| left.change.target == id) {
        Some(left) => left.change.candidate.clone(),
        None => args.what.revision(&alias).await?,
    };
    let outcome = args.keep.run(&engine, &left, NewRollout::new(id.as_str(), candidate, plan)?, &id).await;
    engine.shutdown(Duration::from_secs(10)).await;
    outcome
}

const PROGRAM: &str = "lambda-canary";
