//! Gates that ask the cluster how the candidate does: its pods, and what its Deployment says of itself.

mod conditions;
mod judgement;
pub(crate) mod pod;
mod pods;

use rollback_core::{Error, ErrorKind, Result, backend::Readiness, gate::Window};

pub use self::{conditions::Conditions, pods::Pods};
use crate::{
    access::Access,
    object::{CONTROLLER_REVISIONS, REPLICA_SETS},
    watch::{Object, Watches},
    workload::Kind,
};

/// A workload by kind and name, as in `deployment/web`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Named {
    kind: Kind,
    name: Box<str>,
}

impl Named {
    fn parse(text: &str) -> Result<Self> {
        let refused = || {
            Error::invalid(format!(
                "{text:?} is no workload; deployment/NAME, statefulset/NAME and daemonset/NAME are accepted"
            ))
        };
        let (kind, name) = text.split_once('/').ok_or_else(refused)?;
        let kind = match kind.to_ascii_lowercase().as_str() {
            "deployment" | "deploy" => Kind::Deployment,
            "statefulset" | "sts" => Kind::StatefulSet,
            "daemonset" | "ds" => Kind::DaemonSet,
            _ => return Err(refused()),
        };
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
        if name.is_empty() || name.len() > 253 || !name.chars().all(plain) {
            return Err(refused());
        }
        Ok(Self { kind, name: name.into() })
    }
}

impl std::fmt::Display for Named {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = match self.kind {
            Kind::Deployment => "deployment",
            Kind::StatefulSet => "statefulset",
            Kind::DaemonSet => "daemonset",
        };
        write!(f, "{kind}/{}", self.name)
    }
}

/// Why a workload does not show this rollout's candidate, if it does not.
fn not_in_place(workload: &Object, named: &Named, window: &Window) -> Option<String> {
    let ours = |nonce: &str| nonce.strip_prefix(window.rollout.as_str()).is_some_and(|rest| rest.starts_with('/'));
    match &workload.nonce {
        Some(nonce) if !ours(nonce) => Some(format!("{named} was changed last by another rollout, {nonce}")),
        Some(nonce) if nonce.ends_with("/baseline") => Some(format!("{named} was brought back to the baseline")),
        Some(_) if workload.observed => None,
        Some(_) => Some(format!("the controller of {named} has not seen the candidate yet")),
        None => Some(format!("{named} was not changed by this rollout yet")),
    }
}

/// What it takes to watch these workloads.
fn rights<'n>(workloads: impl Iterator<Item = &'n Named>) -> Vec<Access> {
    const WATCH: &[&str] = &["list", "watch"];
    let mut rights = Vec::new();
    for named in workloads {
        rights.push(Access::to(named.kind.resource(), WATCH, "see what the workload says of itself"));
        match named.kind {
            Kind::Deployment => rights.push(Access::to(REPLICA_SETS, WATCH, "tell the candidate's pods from others")),
            Kind::DaemonSet => {
                rights.push(Access::to(CONTROLLER_REVISIONS, WATCH, "tell the candidate's pods from others"));
            }
            Kind::StatefulSet => {}
        }
    }
    rights.dedup();
    rights
}

/// Proves what it takes to judge, and nothing that only explains a verdict.
async fn prove(rights: &[Access], watches: &Watches, namespace: &str) -> Result<Readiness> {
    let mut ready = Readiness::default();
    for right in rights {
        ready = right.prove(watches.client(), namespace, None, ready).await?;
    }
    Ok(ready)
}

fn missing(named: &Named, namespace: &str) -> Error {
    Error::new(ErrorKind::NotFound, format!("there is no {named} in namespace {namespace}"))
}
