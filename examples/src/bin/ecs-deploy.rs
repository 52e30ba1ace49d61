//! A guarded deployment of an ECS service: see `--help`.

use std::{process::ExitCode, time::Duration};

use clap::Parser;
use rollback_aws::{
    account::{Account, Login, Role},
    cloudwatch::{AlarmGate, Alarms, LOOK},
    ecs::{Service, Settings},
    iam::Policy,
};
use rollback_core::{
    Result,
    engine::{NewRollout, Outcome, Target},
    gate::{Http, Policy as Patience},
    model::{Revision, TargetId},
    plan::Plan,
};
use rollback_examples::tool::{Keep, say, status, time};

/// Deploys a task definition to an ECS service by the service's own strategy, watches it, and brings the old one back when it
/// misbehaves.
///
/// Where the service waits before each shift of traffic and after the last (PAUSE hooks; --set-pauses sets them), each step is
/// judged before ECS goes on, and ECS goes back by itself when this tool is gone for too long. Nothing changes before the way
/// back is proved. Credentials and region come from the environment, as every AWS tool takes them; an endpoint on this machine
/// gets a placeholder, and never those credentials.
#[derive(Parser)]
#[command(name = "ecs-deploy")]
#[command(
    after_help = "Exit status: 0 promoted or served already, 1 rolled back, 2 bad input, 3 refused before anything \
    changed, 4 stuck, 5 somebody else deployed and it was left alone, 70 internal error, 130 interrupted (run it again to \
    resume; meanwhile ECS waits, and goes back when the hook times out)."
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
    /// First set the service's PAUSE hooks, with this time-out: longer than the longest bake, 1m to 336h.
    #[arg(long, value_name = "TIME", value_parser = time)]
    set_pauses: Option<Duration>,
    /// First set the service's circuit breaker on, rolling back.
    #[arg(long)]
    set_circuit_breaker: bool,
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

    /// What the service is to be set to first.
    fn settings(&self) -> Option<Settings> {
        let mut settings = Settings::new();
        if let Some(time_out) = self.set_pauses {
            settings = settings.pauses(time_out);
        }
        if self.set_circuit_breaker {
            settings = settings.circuit_breaker();
        }
        (settings != Settings::new()).then_some(settings)
    }

    fn target(&self, account: &Account, service: Service) -> Result<Target> {
        let alarms = Alarms::new(account);
        let mut target = Target::new(self.id()?.as_str(), service.alarms(&alarms))?;
        if let Some(names) = &self.watch.alarms {
            let gate = AlarmGate::new("alarms", &alarms, names)?;
            target = target.gate(gate, Patience::default().every(self.every));
        }
        if let Some(url) = &self.watch.probe {
            target = target.gate(Http::new("probe", url)?, Patience::default().every(self.every).unhealthy_after(2, 3));
        }
        Ok(target.look_every(self.every.min(Duration::from_secs(2)), self.every * 2))
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
    let account = args.account().await?;
    let service = Service::new(&account, &args.service, rollback_aws::ecs::Shape::rolling())?;
    let mut policy = service.policy().and(Policy::new().allow(LOOK, ["*"]));
    if args.settings().is_some() {
        policy = policy.and(service.settings_policy());
    }
    if args.what.image.is_some() {
        policy = policy.and(service.registering_policy());
    }
    Ok(policy.to_string())
}

async fn run(args: Args) -> Result<Option<Outcome>> {
    let plan = Plan::canary(args.steps.iter().copied(), args.bake)?;
    let account = args.account().await?;
    let mut service = Service::open(&account, &args.service).await?;
    if let Some(settings) = args.settings() {
        for lacks in service.lacks(&settings).await? {
            say(&format!("{}: {lacks}; it is set", service.name()));
        }
        service.set(&settings).await?;
        service = Service::open(&account, &args.service).await?.settings(settings);
    }
    say(&format!("ECS deploys {} {}", service.name(), service.shape()));
    let id = args.id()?;
    let engine = args.keep.engine().await?;
    engine.register(args.target(&account, service.clone())?)?;
    let left = args.keep.left(&engine).await?;
    // What an earlier run left goes on with its own candidate.
    let candidate = match left.iter().map(|it| it.status()).find(|left| left.change.target == id) {
        Some(left) => left.change.candidate.clone(),
        None => args.revision(&service).await?,
    };
    let outcome = args.keep.run(&engine, &left, NewRollout::new(id.as_str(), candidate, plan)?, &id).await;
    engine.shutdown(Duration::from_secs(10)).await;
    outcome
}

const PROGRAM: &str = "ecs-deploy";
