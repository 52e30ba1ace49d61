//! A gate that calls the candidate itself, whatever share of the traffic it has.

use std::fmt;

use async_trait::async_trait;
use aws_sdk_lambda::primitives::Blob;
use rollback_core::{
    Error, ErrorKind, Result,
    gate::{Evidence, HealthGate, Verdict, Window},
    model::GateName,
};

use super::Alias;
use crate::{
    error::sorted,
    iam::{Permission, Policy},
};

/// Calls the candidate's version with a payload of yours, and is unhealthy when a call ends in a function error.
///
/// It needs no traffic: with a first step of 0 % the candidate is called before any user is. The calls are real, so give a
/// payload that does no harm; they count in the function's metrics, though not in the alias's.
///
/// A call that Lambda does not carry out (throttled, denied, unreachable) is no data, and says nothing of the candidate.
pub struct Smoke {
    alias: Alias,
    name: GateName,
    payload: Vec<u8>,
    calls: u32,
}

/// To call the candidate.
pub const INVOKE: Permission = Permission::new("lambda:InvokeFunction", "call the candidate");

impl Smoke {
    /// Calls with this payload, three times a look, as the gate `smoke`.
    ///
    /// # Errors
    /// `Invalid` when the payload is not JSON, which is all that Lambda takes.
    pub fn new(alias: &Alias, payload: &str) -> Result<Self> {
        serde_json::from_str::<serde_json::Value>(payload).map_err(|e| {
            Error::invalid(format!("the payload {payload:?} is not JSON; as in {{}} is accepted")).because(e)
        })?;
        let name = GateName::try_from("smoke")?;
        Ok(Self { alias: alias.clone(), name, payload: payload.into(), calls: 3 })
    }

    /// So many calls a look, at least one.
    #[must_use]
    pub const fn calls(mut self, calls: u32) -> Self {
        self.calls = if calls == 0 { 1 } else { calls };
        self
    }

    /// The least that it must be allowed.
    pub fn policy(&self) -> Policy {
        Policy::new().allow(&[INVOKE], self.alias.name.resources())
    }

    /// Calls once. What the function failed with, if it did.
    async fn call(&self, version: &str) -> Result<Option<String>> {
        let call = self.alias.client.invoke().function_name(self.alias.name.called()).qualifier(version);
        let doing = || format!("calling version {version} of {}", self.alias.function());
        let answer = call.payload(Blob::new(self.payload.clone())).send().await.map_err(|e| sorted(doing(), e))?;
        let ran = answer.executed_version().unwrap_or(version);
        if ran != version {
            return Err(Error::new(ErrorKind::Internal, format!("{}: version {ran} answered", doing())));
        }
        Ok(answer.function_error().map(str::to_owned))
    }
}

#[async_trait]
impl HealthGate for Smoke {
    fn name(&self) -> &GateName {
        &self.name
    }

    async fn judge(&self, window: &Window) -> Result<Verdict> {
        let version = window.candidate.as_str();
        let mut failed = Vec::new();
        for _ in 0..self.calls {
            // What the function answers, and its stack traces, may hold anything: only the kind of error is kept.
            failed.extend(self.call(version).await?);
        }
        let summary = match failed.first() {
            None => format!("{} calls of version {version} went well", self.calls),
            Some(how) => format!("{} of {} calls of version {version} failed ({how})", failed.len(), self.calls),
        };
        let evidence = Evidence::new(window.now, summary)
            .fact("calls", self.calls)
            .fact("failed", failed.len())
            .fact("trips on", "one call that ends in a function error");
        Ok(if failed.is_empty() { Verdict::Healthy(evidence) } else { Verdict::Unhealthy(evidence) })
    }
}

impl fmt::Debug for Smoke {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Smoke").field("alias", &self.alias).field("calls", &self.calls).finish_non_exhaustive()
    }
}
