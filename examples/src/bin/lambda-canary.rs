//! A canary on a Lambda alias: see `--help`.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use clap::Parser;
use rollback_aws::{
    account::Account,
    cloudwatch::{Alarms, LOOK},
    iam::Policy,
    lambda::{Alias, Code, Smoke},
};
use rollback_core::{
    Error, Result,
    engine::{NewRollout, Outcome, Target},
    gate::Policy as Patience,
    model::{Revision, TargetId},
    plan::Plan,
};
use rollback_examples::{
    aws::{In, watched},
    tool::{Keep, printed, say, status, time},
};

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
    #[command(flatten)]
    at: In,
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
    /// Go back when one of these CloudWatch alarms fires; {{candidate}} in a name stands for the version.
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    alarms: Option<Vec<String>>,
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
    fn target(&self, account: &Account, alias: &Alias) -> Result<(Target, String)> {
        let mut policy = alias.policy();
        if self.what.publishes() {
            policy = policy.and(alias.publishing_policy());
        }
        let mut target = Target::new(self.id()?.as_str(), alias.clone())?;
        if let Some(payload) = &self.watch.smoke {
            let smoke = Smoke::new(alias, payload)?;
            policy = policy.and(smoke.policy());
            target = target.gate(smoke, Patience::default().every(self.every));
        }
        if self.watch.alarms.is_some() {
            policy = policy.and(Policy::new().allow(LOOK, ["*"]));
        }
        let (alarms, names, probe) = (Alarms::new(account), self.watch.alarms.as_deref(), self.watch.probe.as_deref());
        Ok((watched(target, &alarms, names, probe, self.every)?, policy.to_string()))
    }

    fn id(&self) -> Result<TargetId> {
        TargetId::try_from(self.alias.as_str())
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    if args.print_policy {
        return printed(PROGRAM, policy(&args).await);
    }
    status(PROGRAM, run(args).await)
}

async fn policy(args: &Args) -> Result<String> {
    let account = args.at.account().await?;
    let alias = Alias::new(&account, &args.alias)?;
    args.target(&account, &alias).map(|(_, policy)| policy)
}

async fn run(args: Args) -> Result<Option<Outcome>> {
    let plan = Plan::canary(args.steps.iter().copied(), args.bake)?;
    let account = args.at.account().await?;
    let alias = Alias::new(&account, &args.alias)?;
    let (target, _) = args.target(&account, &alias)?;
    let id = args.id()?;
    let engine = args.keep.engine().await?;
    engine.register(target)?;
    let left = args.keep.left(&engine).await?;
    // What an earlier run left goes on with its own candidate.
    let candidate = match Keep::candidate(&left, &id) {
        Some(candidate) => candidate,
        None => args.what.revision(&alias).await?,
    };
    let outcome = args.keep.run(&engine, &left, NewRollout::new(id.as_str(), candidate, plan)?, &id).await;
    engine.shutdown(Duration::from_secs(10)).await;
    outcome
}

const PROGRAM: &str = "lambda-canary";
