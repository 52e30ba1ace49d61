//! A gate as a hook of CodeDeploy's own.

use std::{fmt, time::Duration};

use aws_sdk_codedeploy::{
    Client,
    config::{Builder as Overrides, retry::RetryConfig},
    types::LifecycleEventStatus,
};
use rollback_core::{
    Error, ErrorKind, Result,
    gate::{HealthGate, Verdict, Window},
};
use serde_json::Value;

use crate::{
    account::Account,
    error::sorted,
    iam::{Permission, Policy},
};

/// Answers a lifecycle hook of CodeDeploy with a gate's verdict: the body of the Lambda function that a deployment calls at
/// `BeforeAllowTraffic`, `AfterAllowTestTraffic` and so on.
///
/// Without data the hook has failed: CodeDeploy knows only `Succeeded` and `Failed`, and no data is never a pass. A hook that
/// is not answered at all fails the deployment after an hour (user guide), so ask for a verdict that comes sooner.
#[derive(Clone)]
pub struct Hook {
    client: Client,
    deployment: String,
    execution: String,
}

/// To answer a hook.
pub const PUT_HOOK: Permission =
    Permission::new("codedeploy:PutLifecycleEventHookExecutionStatus", "answer a deployment's hook");

impl Hook {
    /// The hook that this event is about: what CodeDeploy calls the function with, an object with `DeploymentId` and
    /// `LifecycleEventHookExecutionId`.
    ///
    /// # Errors
    /// `Invalid` when it is another event.
    pub fn of(account: &Account, event: &Value) -> Result<Self> {
        Self::with_client(account.codedeploy(), event)
    }

    /// The same over a client of your own.
    ///
    /// # Errors
    /// As [`Self::of`].
    pub fn with_client(client: Client, event: &Value) -> Result<Self> {
        let text = |name: &str| {
            let why = || Error::invalid(format!("the event has no {name}; CodeDeploy calls a hook with one"));
            event[name].as_str().map(str::to_owned).ok_or_else(why)
        };
        Ok(Self { client, deployment: text("DeploymentId")?, execution: text("LifecycleEventHookExecutionId")? })
    }

    /// The deployment that waits.
    pub fn deployment(&self) -> &str {
        &self.deployment
    }

    /// Asks the gate once and answers: `Succeeded` if it is healthy, else `Failed`. The verdict, for a log.
    ///
    /// # Errors
    /// What kept the answer from arriving. A gate that fails is no data, and answered as such.
    pub async fn judge(&self, gate: &dyn HealthGate, window: &Window) -> Result<Result<Verdict>> {
        let verdict = gate.judge(window).await;
        self.answer(matches!(verdict, Ok(Verdict::Healthy(_)))).await?;
        Ok(verdict)
    }

    /// Answers, up to three times if nobody says whether it arrived.
    ///
    /// # Errors
    /// `Conflict` when the deployment no longer waits for it: it was answered before, or is over.
    pub async fn answer(&self, passed: bool) -> Result<()> {
        let status = if passed { LifecycleEventStatus::Succeeded } else { LifecycleEventStatus::Failed };
        let mut lost = false;
        let mut tried = 0;
        loop {
            tried += 1;
            let call = self.client.put_lifecycle_event_hook_execution_status().deployment_id(&self.deployment);
            let call = call.lifecycle_event_hook_execution_id(&self.execution).status(status.clone());
            // The SDK would repeat it without a word, and its second request is refused where the first one has arrived.
            let once = Overrides::new().retry_config(RetryConfig::disabled());
            let Err(e) = call.customize().config_override(once).send().await else { return Ok(()) };
            let over = e.as_service_error().is_some_and(|e| e.is_lifecycle_event_already_completed_exception());
            let e = sorted(format_args!("answering a hook of deployment {}", self.deployment), e);
            if over && lost {
                // Nobody else knows its id: what has arrived is ours.
                return Ok(());
            }
            if over {
                let why = format!("deployment {} no longer waits for this hook", self.deployment);
                return Err(Error::new(ErrorKind::Conflict, why).because(e));
            }
            if tried == TRIES || !matches!(e.kind(), ErrorKind::Unavailable | ErrorKind::Throttled) {
                return Err(e);
            }
            lost |= e.kind() == ErrorKind::Unavailable;
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// The least that it must be allowed: CodeDeploy knows no resource for it but `*`.
    pub fn policy() -> Policy {
        Policy::new().allow(&[PUT_HOOK], ["*"])
    }
}

impl fmt::Debug for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hook").field("deployment", &self.deployment).finish_non_exhaustive()
    }
}

/// How often an answer is tried, and what is waited in between: the function that answers has its own time-out.
const TRIES: u32 = 3;
const PAUSE: Duration = Duration::from_secs(1);
