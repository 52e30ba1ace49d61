//! A guarded image change of a workload on Kubernetes: see `--help`.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use clap::Parser;
use rollback_core::{
    Error, Result,
    engine::{NewRollout, Outcome, Target},
    gate::{Http, Policy},
    model::Revision,
    plan::{Deadlines, Plan},
};
use rollback_examples::tool::{Keep, printed, status, time};
use rollback_k8s::{
    Client, Watches, Workload,
    access::{self, Access},
    gate::{Conditions, Pods},
    workload::Kind,
};

/// Changes the images of a Deployment, StatefulSet or DaemonSet, watches its pods, and brings the old pod template back when
/// they misbehave.
///
/// Nothing changes before the way back is proved. A pod that crashes over and over is noticed within seconds, not after the
/// progress deadline of ten minutes. The cluster is that of the kubeconfig, or the one that this runs in.
#[derive(Parser)]
#[command(name = "k8s-rollout")]
#[command(
    after_help = "Exit status: 0 promoted or served already, 1 rolled back, 2 bad input, 3 refused before anything \
    changed, 4 stuck, 5 somebody else changed the workload and it was left alone, 70 internal error, 130 interrupted (run \
    it again to resume)."
)]
struct Args {
    /// The workload: as deployment/web, statefulset/db, daemonset/agent.
    workload: String,
    /// An image for a container, as web=registry.example/shop:2. Several containers, several times.
    #[arg(required_unless_present_any = ["print_rbac", "template"], value_name = "CONTAINER=IMAGE", value_parser = image)]
    images: Vec<(String, String)>,
    /// A whole pod template instead, as JSON, as in what `kubectl get deployment/web -o json` has under spec.template.
    #[arg(long, value_name = "FILE", conflicts_with = "images", requires = "named")]
    template: Option<PathBuf>,
    /// What that template is called. Another one needs another name.
    #[arg(long, value_name = "NAME", requires = "template")]
    named: Option<String>,
    /// In this namespace [default: that of the context].
    #[arg(long, short, value_name = "NAME")]
    namespace: Option<String>,
    /// Watch it for so long before it counts as good.
    #[arg(long, value_name = "TIME", default_value = "2m", value_parser = time)]
    bake: Duration,
    /// Give its controller so long to replace the pods.
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = time)]
    within: Duration,
    /// Ask this address too: it must answer 200 to 299.
    #[arg(long, value_name = "URL")]
    probe: Option<String>,
    /// Go ahead although Argo CD or Flux owns the workload, for this reason.
    #[arg(long, value_name = "REASON")]
    despite_gitops: Option<String>,
    /// Delete the pod that holds up the way back of an ordered StatefulSet.
    #[arg(long)]
    delete_stuck_pods: bool,
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
    workload: Workload,
    target: Target,
    rights: Vec<Access>,
}

impl Args {
    async fn client(&self) -> Result<Client> {
        let client = match &self.kubeconfig {
            Some(file) => Client::from_kubeconfig(file, self.context.as_deref()).await?,
            None => Client::from_env().await?,
        };
        match &self.cluster_name {
            Some(name) => client.named(name),
            None => Ok(client),
        }
    }

    async fn guarded(&self) -> Result<Guarded> {
        let (kind, name) = self.workload.split_once('/').unwrap_or(("", ""));
        let kind = match kind {
            "deployment" | "deploy" => Kind::Deployment,
            "statefulset" | "sts" => Kind::StatefulSet,
            "daemonset" | "ds" => Kind::DaemonSet,
            _ => {
                let accepted = "deployment/NAME, statefulset/NAME and daemonset/NAME are accepted";
                return Err(Error::invalid(format!("the workload is {:?}; {accepted}", self.workload)));
            }
        };
        let client = self.client().await?;
        let namespace = self.namespace.clone().unwrap_or_else(|| client.namespace().to_owned());
        let watches = Watches::new(&client);
        let mut workload = Workload::new(&client, kind, &namespace, name)?.watched_by(&watches);
        if let Some(reason) = &self.despite_gitops {
            workload = workload.despite_gitops(reason.as_str());
        }
        if self.delete_stuck_pods {
            workload = workload.delete_stuck_pods();
        }
        let pods = Pods::of(&watches, &namespace, &self.workload)?;
        let mut rights = workload.rights();
        rights.extend(pods.rights());
        let often = Policy::default().every(Duration::from_secs(2));
        let mut target = Target::new(workload.target_id().as_str(), workload.clone())?.gate(pods, often);
        if kind == Kind::Deployment {
            let conditions = Conditions::of(&watches, &namespace, &self.workload)?;
            rights.extend(conditions.rights());
            target = target.gate(conditions, often);
        }
        if let Some(url) = &self.probe {
            target = target.gate(Http::new("probe", url)?, often.unhealthy_after(2, 3));
        }
        let target = target.look_every(Duration::from_secs(1), Duration::from_secs(10));
        Ok(Guarded { namespace, workload, target, rights })
    }
}

/// `web=registry.example/shop:2`.
fn image(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, image)) if !name.is_empty() && !image.is_empty() => Ok((name.into(), image.into())),
        _ => Err(format!("{text:?} is no image for a container; web=registry.example/shop:2 is accepted")),
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
    let deadlines = Deadlines { shift: args.within, ..Deadlines::default() };
    let plan = Plan::all_at_once(args.bake)?.with_deadlines(deadlines)?;
    let guarded = args.guarded().await?;
    let id = guarded.workload.target_id();
    let engine = args.keep.engine().await?;
    engine.register(guarded.target)?;
    let left = args.keep.left(&engine).await?;
    // What an earlier run left goes on with its own candidate.
    let candidate = match Keep::candidate(&left, &id) {
        Some(candidate) => candidate,
        None => candidate(&guarded.workload, &args).await?,
    };
    let outcome = args.keep.run(&engine, &left, NewRollout::new(id.as_str(), candidate, plan)?, &id).await;
    engine.shutdown(Duration::from_secs(10)).await;
    outcome
}

async fn candidate(workload: &Workload, args: &Args) -> Result<Revision> {
    let (Some(file), Some(name)) = (&args.template, &args.named) else {
        return workload.images(args.images.iter().map(|(name, image)| (name, image))).await;
    };
    let wrong = |why: &str| Error::invalid(format!("the template {} {why}", file.display()));
    let text = std::fs::read_to_string(file).map_err(|e| wrong("cannot be read").because(e))?;
    let template = serde_json::from_str(&text).map_err(|e| wrong("is no JSON").because(e))?;
    workload.template(name, &template).await
}

const PROGRAM: &str = "k8s-rollout";
