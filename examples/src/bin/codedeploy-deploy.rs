//! A deployment by CodeDeploy under guard: see `--help`.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use clap::{Parser, ValueEnum};
use rollback_aws::{
    account::Account,
    cloudwatch::Alarms,
    codedeploy::{Artefact, Busy, Group, LOOK_S3, Platform, Poller},
    ecr::Images,
    iam::Policy,
    lambda::GET_VERSION,
};
use rollback_core::{
    Error, Result,
    engine::{NewRollout, Outcome, Target},
    model::{Revision, TargetId, Weight},
    plan::{Approval, Deadlines, Plan, Step},
};
use rollback_examples::{
    aws::{In, watched},
    tool::{Keep, printed, status, time},
};

/// Deploys a revision to a deployment group of CodeDeploy, watches it, and brings the old one back when it misbehaves: by a
/// stop with rollback while the deployment runs, else by deploying the old revision again.
///
/// Nothing changes before the way back is proved, and both revisions are found where they lie: bundles in S3, task definitions and
/// their images in ECR, versions of functions. It is over when every target was seen to be back, not when CodeDeploy has
/// accepted it. Credentials and region come from the environment, as every AWS tool takes them; an endpoint on this machine
/// gets a placeholder, and never those credentials.
#[derive(Parser)]
#[command(name = "codedeploy-deploy")]
#[command(
    after_help = "Exit status: 0 promoted or served already, 1 rolled back, 2 bad input, 3 refused before anything \
    changed, 4 stuck, 5 somebody else deployed and it was left alone, 70 internal error, 130 interrupted (run it again to \
    resume)."
)]
struct Args {
    /// The application.
    app: String,
    /// The deployment group.
    group: String,
    /// Where the group deploys to, and how its traffic is moved.
    #[arg(long, value_enum)]
    platform: Where,
    #[command(flatten)]
    what: What,
    /// Deploy by this configuration instead of the group's own.
    #[arg(long, value_name = "NAME")]
    config: Option<String>,
    /// The group waits before the traffic: watch the new side there for so long, and wait for an approval.
    #[arg(long, value_name = "TIME", value_parser = time)]
    preview: Option<Duration>,
    /// Watch it for so long once it has all traffic.
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = time)]
    bake: Duration,
    /// Go back unless the deployment has moved all traffic within so long: more than its configuration takes.
    #[arg(long, value_name = "TIME", default_value = "15m", value_parser = time)]
    within: Duration,
    /// Judge so often.
    #[arg(long, value_name = "TIME", default_value = "15s", value_parser = time)]
    every: Duration,
    /// Read running deployments so often.
    #[arg(long, value_name = "TIME", default_value = "15s", value_parser = time)]
    poll: Duration,
    #[command(flatten)]
    watch: Watch,
    /// When another deployment of the group runs.
    #[arg(long, value_enum, default_value_t = WhenBusy::Refuse)]
    busy: WhenBusy,
    /// Refuse to start unless the group has alarms of its own that roll it back.
    #[arg(long)]
    guarded: bool,
    /// Print the IAM policy that this needs in this account, and end.
    #[arg(long, value_name = "ACCOUNT")]
    print_policy: Option<String>,
    #[command(flatten)]
    at: In,
    #[command(flatten)]
    keep: Keep,
}

#[derive(Clone, Copy, ValueEnum)]
enum Where {
    /// EC2 or on-premises instances, one after the other.
    InPlace,
    /// EC2 instances beside the old ones.
    BlueGreen,
    /// An ECS service.
    Ecs,
    /// A Lambda alias.
    Lambda,
}

#[derive(Clone, Copy, ValueEnum)]
enum WhenBusy {
    /// Wait until it is over, for an hour at most.
    Wait,
    /// End, and name it.
    Refuse,
    /// Stop it with rollback, and wait until that is over.
    Supersede,
}

/// What is deployed: one of these.
#[derive(clap::Args)]
#[group(required = true, multiple = false)]
struct What {
    /// A bundle in S3: bucket, key, and version if the bucket has versions.
    #[arg(long, value_names = ["BUCKET", "KEY", "VERSION"], num_args = 2..=3)]
    s3: Option<Vec<String>>,
    /// A commit in GitHub: owner/repository, and its whole id.
    #[arg(long, value_names = ["REPOSITORY", "COMMIT"], num_args = 2)]
    github: Option<Vec<String>>,
    /// An AppSpec of this machine, for ECS and Lambda.
    #[arg(long, value_name = "FILE")]
    app_spec: Option<PathBuf>,
}

/// What watches it: at least one of these.
#[derive(clap::Args)]
#[group(required = true, multiple = true)]
struct Watch {
    /// Go back when one of these CloudWatch alarms fires.
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    alarms: Option<Vec<String>>,
    /// Ask this address; it must answer 200 to 299.
    #[arg(long, value_name = "URL")]
    probe: Option<String>,
}

impl What {
    fn revision(&self) -> Result<Revision> {
        let artefact = match (&self.s3, &self.github, &self.app_spec) {
            (Some(place), ..) => match &place[..] {
                [bucket, key, version] => Artefact::s3(bucket, key).version(version),
                _ => Artefact::s3(&place[0], &place[1]),
            },
            (_, Some(place), _) => Artefact::github(&place[0], &place[1]),
            (_, _, Some(file)) => {
                let why = |e: std::io::Error| Error::invalid(format!("{} cannot be read", file.display())).because(e);
                Artefact::app_spec(std::fs::read_to_string(file).map_err(why)?)
            }
            _ => return Err(Error::invalid("nothing to deploy was given")),
        };
        artefact.revision()
    }
}

impl Args {
    fn plan(&self) -> Result<Plan> {
        let all = Step::new(Weight::ALL, self.bake);
        let preview = self.preview.map(|time| Step::new(Weight::NONE, time).approved_by(Approval::anyone()));
        let plan = Plan::new(preview.into_iter().chain([all]).collect::<Vec<_>>())?;
        plan.with_deadlines(Deadlines { shift: self.within, ..Deadlines::default() })
    }

    fn group(&self, account: &Account, alarms: &Alarms) -> Result<Group> {
        let platform = match self.platform {
            Where::InPlace => Platform::InPlace,
            Where::BlueGreen => Platform::BlueGreen,
            Where::Ecs => Platform::Ecs,
            Where::Lambda => Platform::Lambda,
        };
        let mut group = Group::new(&Poller::new(account).every(self.poll), &self.app, &self.group, platform)?;
        group = group.alarms(alarms);
        if let Some(name) = &self.config {
            group = group.config(name);
        }
        if self.preview.is_some() {
            group = group.waits_for_approval();
        }
        // Where what it deploys lies.
        group = match platform {
            Platform::InPlace | Platform::BlueGreen => group.shelf(account.s3()),
            Platform::Ecs => group.shelf(account.ecs()).shelf(Images::new(account)),
            Platform::Lambda => group.shelf(account.lambda()),
        };
        Ok(if self.guarded { group.guarded() } else { group })
    }

    /// What the shelves need, of bundles those of the candidate's bucket.
    fn shelves(&self, account: &Account) -> Policy {
        match (self.platform, &self.what.s3) {
            (Where::InPlace | Where::BlueGreen, Some(place)) => {
                let bucket = format!("arn:{}:s3:::{}", account.partition(), place[0]);
                Policy::new().allow(LOOK_S3, [format!("{bucket}/*"), bucket])
            }
            (Where::InPlace | Where::BlueGreen, None) => Policy::new(),
            (Where::Ecs, _) => Images::policy(),
            (Where::Lambda, _) => Policy::new().allow(&[GET_VERSION], ["*"]),
        }
    }

    fn target(&self, alarms: &Alarms, group: &Group) -> Result<Target> {
        let target = Target::new(self.id()?.as_str(), group.clone())?;
        watched(target, alarms, self.watch.alarms.as_deref(), self.watch.probe.as_deref(), self.every)
    }

    fn id(&self) -> Result<TargetId> {
        TargetId::try_from(format!("{}/{}", self.app, self.group))
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    match &args.print_policy {
        None => status(PROGRAM, run(args).await),
        Some(number) => printed(PROGRAM, policy(&args, number).await),
    }
}

async fn policy(args: &Args, number: &str) -> Result<String> {
    let account = args.at.account().await?;
    // With the alarms that the gate asks for: the group looks at its own in the same way.
    Ok(args.group(&account, &Alarms::new(&account))?.policy(number).and(args.shelves(&account)).to_string())
}

async fn run(args: Args) -> Result<Option<Outcome>> {
    let (plan, candidate) = (args.plan()?, args.what.revision()?);
    let account = args.at.account().await?;
    // Read once for the gate and for the group's own.
    let alarms = Alarms::new(&account);
    let group = args.group(&account, &alarms)?;
    let id = args.id()?;
    let engine = args.keep.engine().await?;
    engine.register(args.target(&alarms, &group)?)?;
    let left = args.keep.left(&engine).await?;
    // What an earlier run left is what keeps the group busy.
    if left.is_empty() {
        let hour = Duration::from_secs(3600);
        group
            .make_way(match args.busy {
                WhenBusy::Wait => Busy::Wait(hour),
                WhenBusy::Refuse => Busy::Refuse,
                WhenBusy::Supersede => Busy::Supersede(hour),
            })
            .await?;
    }
    let outcome = args.keep.run(&engine, &left, NewRollout::new(id.as_str(), candidate, plan)?, &id).await;
    engine.shutdown(Duration::from_secs(10)).await;
    outcome
}

const PROGRAM: &str = "codedeploy-deploy";
