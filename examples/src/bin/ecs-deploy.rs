//! A guarded deployment of an ECS service: see `--help`.

use std::{process::ExitCode, time::Duration};

use clap::Parser;
use rollback_aws::{
    account::Account,
    cloudwatch::{Alarms, LOOK},
    ecr::Images,
    ecs::{Service, Settings},
    iam::Policy,
};
use rollback_core::{
    Result,
    engine::{NewRollout, Outcome, Target},
    model::{Revision, TargetId},
    plan::Plan,
};
use rollback_examples::{
    aws::{In, watched},
    tool::{Keep, printed, say, status, time},
};

/// Deploys a task definition to an ECS service by the service's own strategy, watches it, and brings the old one back when it
/// misbehaves.
///
/// Where the service waits before each shift of traffic and after the last (PAUSE hooks; --set-pauses sets them), each step is
/// judged before ECS goes on, and ECS goes back by itself when this tool is gone for too long. Nothing is deployed before the
/// way back is proved; what --set-* and --image do comes before that, and deploys nothing. A rollout that an earlier run left
/// goes on as it began, whatever they say. Credentials and region come from the environment, as every AWS tool takes them; an
/// endpoint on this machine gets a placeholder, and never those credentials.
#[derive(Parser)]
#[command(name = "ecs-deploy")]
#[command(
    after_help = "Exit status: 0 promoted or served already, 1 rolled back, 2 bad input, 3 refused before anything \
    was deployed, 4 stuck, 5 somebody else deployed and it was left alone, 70 internal error, 130 interrupted (run it again \
    to resume; meanwhile ECS waits, and goes back when the hook times out)."
)]
struct Args {
    /// The service: as shop/checkout, its cluster first, or its ARN.
    service: String,
    #[command(flatten)]
    what: What,
    /// The shares of traffic in percent, the last one 100; those that the service's strategy stops at. All at once unless
    /// given.
    #[arg(long, value_name = "PERCENTS", default_value = "100", value_delimiter = ',')]
    steps: Vec<u8>,
    /// Watch each step for so long before it counts as good.
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = time)]
    bake: Duration,
    /// Judge so often.
    #[arg(long, value_name = "TIME", default_value = "15s", value_parser = time)]
    every: Duration,
    #[command(flatten)]
    watch: Watch,
    /// Reckon for so long with a call that was not answered: it may still land. A run that goes on after another was killed
    /// waits as long before it goes forward; on the way back stops and answers to hooks do not wait.
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = time)]
    settle: Duration,
    /// First set the service's PAUSE hooks, with this time-out: longer than the longest bake and an hour of overtime; 1m to
    /// 336h.
    #[arg(long, value_name = "TIME", value_parser = time)]
    set_pauses: Option<Duration>,
    /// First set the service's circuit breaker on, rolling back.
    #[arg(long)]
    set_circuit_breaker: bool,
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
    /// A task definition that is registered already, as checkout:42.
    #[arg(long, value_name = "FAMILY:REVISION")]
    task_definition: Option<String>,
    /// Another image in a container of the task definition that serves: registered first.
    #[arg(long, value_names = ["CONTAINER", "URI"], num_args = 2)]
    image: Option<Vec<String>>,
}

/// What watches it: at least one of these.
#[derive(clap::Args)]
#[group(required = true, multiple = true)]
struct Watch {
    /// Go back when one of these CloudWatch alarms fires.
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    alarms: Option<Vec<String>>,
    /// Ask this address, as the service's test listener; it must answer 200 to 299.
    #[arg(long, value_name = "URL")]
    probe: Option<String>,
}

impl Args {
    /// What the service is to be set to first.
    fn settings(&self) -> Result<Option<Settings>> {
        let mut settings = Settings::new();
        if let Some(time_out) = self.set_pauses {
            settings = settings.pauses(time_out)?;
        }
        if self.set_circuit_breaker {
            settings = settings.circuit_breaker();
        }
        Ok((settings != Settings::new()).then_some(settings))
    }

    /// The service, set as it is to be.
    async fn set(&self, account: &Account, service: Service) -> Result<Service> {
        let Some(settings) = self.settings()? else { return Ok(service) };
        for lacks in service.lacks(&settings).await? {
            say(&format!("{}: {lacks}; it is set", service.name()));
        }
        service.set(&settings).await?;
        Ok(Service::open(account, &self.service).await?.settle(self.settle).settings(settings))
    }

    fn target(&self, account: &Account, service: Service) -> Result<Target> {
        let alarms = Alarms::new(account);
        let target = Target::new(self.id()?.as_str(), service.alarms(&alarms).images(&Images::new(account)))?;
        watched(target, &alarms, self.watch.alarms.as_deref(), self.watch.probe.as_deref(), self.every)
    }

    async fn revision(&self, service: &Service) -> Result<Revision> {
        if let Some([container, uri]) = self.what.image.as_deref() {
            let made = service.register(container, uri).await?;
            say(&format!("{uri} is registered as {}", made.id));
            return Ok(made);
        }
        Service::revision(self.what.task_definition.as_deref().unwrap_or_default())
    }

    fn id(&self) -> Result<TargetId> {
        TargetId::try_from(self.service.as_str())
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
    let service = Service::new(&account, &args.service, rollback_aws::ecs::Shape::rolling())?;
    let mut policy = service.policy().and(Images::policy()).and(Policy::new().allow(LOOK, ["*"]));
    if args.settings()?.is_some() {
        policy = policy.and(service.settings_policy());
    }
    if args.what.image.is_some() {
        policy = policy.and(service.registering_policy());
    }
    Ok(policy.to_string())
}

async fn run(args: Args) -> Result<Option<Outcome>> {
    let plan = Plan::canary(args.steps.iter().copied(), args.bake)?;
    let account = args.at.account().await?;
    let service = Service::open(&account, &args.service).await?.settle(args.settle);
    let id = args.id()?;
    let engine = args.keep.engine().await?;
    engine.register(args.target(&account, service.clone())?)?;
    let left = args.keep.left(&engine).await?;
    let candidate = match Keep::candidate(&left, &id) {
        // It goes on with its own, on the service as it was set then: a deployment of it may be on its way.
        Some(candidate) => candidate,
        None => {
            let service = args.set(&account, service).await?;
            engine.register(args.target(&account, service.clone())?)?;
            say(&format!("ECS deploys {} {}", service.name(), service.shape()));
            args.revision(&service).await?
        }
    };
    let outcome = args.keep.run(&engine, &left, NewRollout::new(id.as_str(), candidate, plan)?, &id).await;
    engine.shutdown(Duration::from_secs(10)).await;
    outcome
}

const PROGRAM: &str = "ecs-deploy";
