//! A gate on what a Deployment says of itself.

use std::{fmt, time::Duration};

use async_trait::async_trait;
use jiff::{SignedDuration, Timestamp};
use rollback_core::{
    Error, ErrorKind, Result, Wake,
    backend::Readiness,
    gate::{Evidence, HealthGate, Verdict, Window},
    model::{Change, GateName},
    plan::Plan,
};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{Named, missing, not_in_place, prove};
use crate::{
    access::Access,
    object::DEPLOYMENTS,
    watch::{Condition, Object, Watches},
    workload::Kind,
};

/// Judges the conditions in a Deployment's status: what its controller knows and its pods cannot tell.
///
/// | condition | unhealthy |
/// |---|---|
/// | `ReplicaFailure` is true: pods cannot be made, for a quota or a webhook that refuses them | after 5 s |
/// | `Progressing` is false, `ProgressDeadlineExceeded` | at once |
/// | `Available` is false: fewer pods are ready than the Deployment needs | after a minute |
///
/// It is healthy while the Deployment says that it is available, and inconclusive until its controller has seen the
/// candidate. StatefulSets and DaemonSets say nothing of themselves: their controllers write no conditions.
#[derive(Clone)]
pub struct Conditions {
    name: GateName,
    watches: Watches,
    namespace: Box<str>,
    deployment: Named,
    bears: Duration,
    unavailable: Duration,
}

/// Since when it has not been well.
#[derive(Default, Serialize, Deserialize)]
struct Memory {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    failing: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    unavailable: Option<Timestamp>,
}

impl Conditions {
    /// Watches this Deployment, as `deployment/web`, by the name `conditions`.
    ///
    /// # Errors
    /// `Invalid` when it is not a workload's kind and name, `Unsupported` when it is not a Deployment.
    pub fn of(watches: &Watches, namespace: &str, deployment: &str) -> Result<Self> {
        let deployment = Named::parse(deployment)?;
        if deployment.kind != Kind::Deployment {
            let said = format!("{deployment} has no conditions to judge by; only Deployments have");
            return Err(Error::new(ErrorKind::Unsupported, said));
        }
        Ok(Self {
            name: GateName::try_from("conditions").expect("a good name"),
            watches: watches.clone(),
            namespace: namespace.into(),
            deployment,
            bears: Duration::from_secs(5),
            unavailable: Duration::from_secs(60),
        })
    }

    /// With this name, where one target has several.
    ///
    /// # Errors
    /// `Invalid` when it is not a gate's name.
    pub fn named(mut self, name: &str) -> Result<Self> {
        self.name = GateName::try_from(name)?;
        Ok(self)
    }

    /// How long pods may fail to be made (default 5 s: a webhook may be away for a moment).
    #[must_use]
    pub const fn bears_failure_for(mut self, time: Duration) -> Self {
        self.bears = time;
        self
    }

    /// How long the Deployment may be unavailable (default a minute).
    #[must_use]
    pub const fn bears_unavailable_for(mut self, time: Duration) -> Self {
        self.unavailable = time;
        self
    }

    /// What the gate takes to be allowed.
    pub fn rights(&self) -> Vec<Access> {
        vec![Access::to(DEPLOYMENTS, &["list", "watch"], "see what the Deployment says of itself")]
    }

    /// What is final, and what is not well.
    fn find(&self, workload: &Object, memory: &mut Memory, now: Timestamp) -> (Option<String>, Option<String>) {
        let condition = |kind| workload.conditions.iter().find(|condition| &*condition.kind == kind);
        let said = |what: &str, condition: &Condition| {
            format!("{} {what} ({}: {})", self.deployment, condition.reason, condition.message)
        };
        if let Some(progressing) = condition("Progressing").filter(|c| &*c.reason == "ProgressDeadlineExceeded") {
            return (Some(said("makes no progress", progressing)), None);
        }
        let over = |since: Option<Timestamp>, grace: Duration| {
            let grace = SignedDuration::try_from(grace).unwrap_or(SignedDuration::MAX);
            since.is_some_and(|since| now.duration_since(since) >= grace)
        };
        let failure = condition("ReplicaFailure").filter(|c| c.is_true);
        memory.failing = failure.map(|_| memory.failing.unwrap_or(now));
        let away = condition("Available").filter(|c| c.is_false);
        memory.unavailable = away.map(|_| memory.unavailable.unwrap_or(now));
        let (mut wrong, mut unwell) = (None, None);
        let mut note = |condition: Option<&Condition>, what, since, grace| {
            if let Some(condition) = condition {
                let slot = if over(since, grace) { &mut wrong } else { &mut unwell };
                slot.get_or_insert_with(|| said(what, condition));
            }
        };
        note(failure, "cannot make pods", memory.failing, self.bears);
        note(away, "is not available", memory.unavailable, self.unavailable);
        if wrong.is_none() && unwell.is_none() && condition("Available").is_none() {
            unwell = Some(format!("{} does not say whether it is available", self.deployment));
        }
        (wrong, unwell)
    }
}

#[async_trait]
impl HealthGate for Conditions {
    fn name(&self) -> &GateName {
        &self.name
    }

    async fn judge(&self, window: &Window) -> Result<Verdict> {
        let mut memory = match window.last.as_ref().map(Evidence::recall::<Memory>) {
            None => Memory::default(),
            Some(Ok(memory)) => memory.unwrap_or_default(),
            Some(Err(e)) => return Ok(window.no_data(e.chain())),
        };
        let namespace = self.watches.namespace(&self.namespace);
        let feed = namespace.objects(DEPLOYMENTS);
        let until = feed.fresh().await?;
        let Some(workload) = feed.get(&self.deployment.name) else {
            return Ok(window.no_data(missing(&self.deployment, &self.namespace).to_string()));
        };
        if let Some(why) = not_in_place(&workload, &self.deployment, window) {
            return Ok(window.no_data(why));
        }
        let (wrong, unwell) = self.find(&workload, &mut memory, window.now);
        let summary = wrong.clone().or_else(|| unwell.clone());
        let summary = summary.unwrap_or_else(|| format!("{} is available", self.deployment));
        let mut evidence = Evidence::new(until.min(window.now), summary)
            .fact(
                "trips on",
                format!(
                    "no progress before the deadline; pods that cannot be made for {:?}; unavailable for {:?}",
                    self.bears, self.unavailable
                ),
            )
            .remember(json!(memory));
        for Condition { kind, is_true, reason, .. } in &workload.conditions {
            evidence = evidence.fact(kind.clone(), format!("{is_true}, {reason}"));
        }
        Ok(match (wrong, unwell) {
            (Some(_), _) => Verdict::Unhealthy(evidence),
            (None, Some(_)) => Verdict::Inconclusive(evidence),
            (None, None) => Verdict::Healthy(evidence),
        })
    }

    async fn preflight(&self, _change: &Change, _plan: &Plan) -> Result<Readiness> {
        let readiness = prove(&self.rights(), &self.watches, &self.namespace).await?;
        if !readiness.refused.is_empty() {
            return Ok(readiness);
        }
        let namespace = self.watches.namespace(&self.namespace);
        let feed = namespace.objects(DEPLOYMENTS);
        feed.fresh().await?;
        Ok(match feed.get(&self.deployment.name) {
            Some(_) => readiness,
            None => readiness.refused(missing(&self.deployment, &self.namespace).to_string()),
        })
    }

    fn attach(&self, wake: Wake) {
        self.watches.namespace(&self.namespace).wake_on(DEPLOYMENTS, &self.deployment.name, wake);
    }
}

impl fmt::Debug for Conditions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of = self.deployment.to_string();
        f.debug_struct("Conditions").field("name", &self.name).field("of", &of).finish_non_exhaustive()
    }
}
