//! A canary by a rule of an HTTPRoute on Kubernetes: see `--help`.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use clap::Parser;
use rollback_core::{
    Error, Result,
    engine::{NewRollout, Outcome, Target},
    gate::{Http, Policy},
    plan::Plan,
};
use rollback_examples::tool::{Keep, printed, status, time};
use rollback_k8s::{
    Client, HttpRoute, Watches,
    access::{self, Access},
    gate::Pods,
};

/// Gives what runs behind one of two Services of an HTTPRoute more and more of the requests, watches it, and gives them back
/// when it misbehaves.
///
/// Deploy the candidate behind the Service that has no requests first; this moves requests and nothing else. Nothing changes
/// before the way back is proved. The cluster is that of the kubeconfig, or the one that this runs in.
#[derive(Parser)]
#[command(name = "k8s-canary")]
#[command(
    after_help = "Exit status: 0 promoted or served already, 1 rolled back, 2 bad input, 3 refused before anything \
    changed, 4 stuck, 5 somebody else changed the route and it was left alone, 70 internal error, 130 interrupted (run it \
    again to resume)."
)]
struct Args {
    /// The HTTPRoute.
    route: String,
    /// Its Service with the candidate behind it.
    #[arg(long, value_name = "SERVICE")]
    to: String,
    /// Its Service with the baseline behind it.
    #[arg(long, value_name = "SERVICE")]
    from: String,
    /// What the candidate is called: a build number, an image. Another build needs another name.
    #[arg(long, value_name = "NAME", required_unless_present = "print_rbac")]
    build: Option<String>,
    /// Only the rule of this name, where several have both Services.
    #[arg(long, value_name = "NAME")]
    rule: Option<String>,
    /// The shares of the requests in percent, the last one 100.
    #[arg(long, value_name = "PERCENTS", default_value = "5,25,50,100", value_delimiter = ',')]
    steps: Vec<u8>,
    /// Watch each step for so long before it counts as good.
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = time)]
    bake: Duration,
    /// Watch the pods of these workloads: the candidate's and the baseline's, as deployment/green deployment/blue.
    #[arg(long, value_names = ["CANDIDATE", "BASELINE"], num_args = 2, required_unless_present = "probe")]
    pods: Option<Vec<String>>,
    /// Ask this address: it must answer 200 to 299.
    #[arg(long, value_name = "URL")]
    probe: Option<String>,
    /// In this namespace [default: that of the context].
    #[arg(long, short, value_name = "NAME")]
    namespace: Option<String>,
    /// Go ahead although Argo CD or Flux owns the route, for this reason.
    #[arg(long, value_name = "REASON")]
    despite_gitops: Option<String>,
    /// Print the Role that this needs, and end.
    #[arg(long)]
    print_rbac: bool,
    /// This kubeconfig instead of the environment's.
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// This context of it.
    #[arg(long, value_name = "NAME", requires = "kubeconfig")]
    context: Option<String>,
    /// Call the cluster so, where tools in the pods of several clusters, or in and outside of one, share a store.
    #[arg(long, value_name = "NAME")]
    cluster_name: Option<String>,
    #[command(flatten)]
    keep: Keep,
}

/// The target and what it takes to be allowed.
struct Guarded {
    namespace: String,
    route: HttpRoute,
    target: Target,
    rights: Vec<Access>,
}

impl Args {
    async fn guarded(&self) -> Result<Guarded> {
        let mut client = match &self.kubeconfig {
            Some(file) => Client::from_kubeconfig(file, self.context.as_deref()).await?,
            None => Client::from_env().await?,
        };
        if let Some(name) = &self.cluster_name {
            client = client.named(name)?;
        }
        let namespace = self.namespace.clone().unwrap_or_else(|| client.namespace().to_owned());
        let watches = Watches::new(&client);
        let services = [self.from.as_str(), &self.to];
        let mut route = HttpRoute::new(&client, &namespace, &self.route, services)?.watched_by(&watches);
        if let Some(rule) = &self.rule {
            route = route.rule(rule);
        }
        if let Some(reason) = &self.despite_gitops {
            route = route.despite_gitops(reason.as_str());
        }
        let mut rights = route.rights();
        let often = Policy::default().every(Duration::from_secs(2));
        let mut target = Target::new(route.target_id().as_str(), route.clone())?;
        if let Some([candidate, baseline]) = self.pods.as_deref() {
            let pods = Pods::beside(&watches, &namespace, candidate, baseline)?;
            rights.extend(pods.rights());
            target = target.gate(pods, often);
        }
        if let Some(url) = &self.probe {
            target = target.gate(Http::new("probe", url)?, often.unhealthy_after(2, 3));
        }
        let target = target.look_every(Duration::from_secs(1), Duration::from_secs(10));
        Ok(Guarded { namespace, route, target, rights })
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    if args.print_rbac {
        return printed(PROGRAM, rbac(&args).await);
    }
    status(PROGRAM, run(args).await)
}

async fn rbac(args: &Args) -> Result<String> {
    let guarded = args.guarded().await?;
    access::role(PROGRAM, &guarded.namespace, &guarded.rights)
}

async fn run(args: Args) -> Result<Option<Outcome>> {
    let plan = Plan::canary(args.steps.iter().copied(), args.bake)?;
    let build =
        args.build.as_deref().ok_or_else(|| Error::invalid("the candidate has no name; give it with --build"))?;
    let guarded = args.guarded().await?;
    let candidate = guarded.route.revision(build, &args.to)?;
    let id = guarded.route.target_id();
    let engine = args.keep.engine().await?;
    engine.register(guarded.target)?;
    let left = args.keep.left(&engine).await?;
    let outcome = args.keep.run(&engine, &left, NewRollout::new(id.as_str(), candidate, plan)?, &id).await;
    engine.shutdown(Duration::from_secs(10)).await;
    outcome
}

const PROGRAM: &str = "k8s-canary";
