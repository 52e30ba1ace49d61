//! What the tools for AWS share: the way into the account, and the gates that watch a target of any kind.

use std::time::Duration;

use clap::Args;
use rollback_aws::{
    account::{Account, Login, Role},
    cloudwatch::{AlarmGate, Alarms},
};
use rollback_core::{
    Result,
    engine::Target,
    gate::{Http, Policy},
};

/// Which account, where.
#[derive(Args, Clone, Debug)]
pub struct In {
    /// As this role, assumed with the credentials of the environment.
    #[arg(long, value_name = "ARN")]
    pub role: Option<String>,
    /// In this region.
    #[arg(long, value_name = "NAME")]
    pub region: Option<String>,
    /// Ask this endpoint instead of AWS's own, as http://127.0.0.1:4566 of aws-simulator.
    #[arg(long, value_name = "URL")]
    pub endpoint_url: Option<String>,
}

impl In {
    /// The account of the environment, or a placeholder of one where the endpoint is on this machine.
    ///
    /// # Errors
    /// When no region is configured.
    pub async fn account(&self) -> Result<Account> {
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
}

/// The target with a gate on these alarms and on this address, where they were given, judged and looked at so often.
///
/// # Errors
/// When a name is none of an alarm, or the address is none.
pub fn watched(
    mut target: Target,
    alarms: &Alarms,
    names: Option<&[String]>,
    probe: Option<&str>,
    every: Duration,
) -> Result<Target> {
    if let Some(names) = names {
        target = target.gate(AlarmGate::new("alarms", alarms, names)?, Policy::default().every(every));
    }
    if let Some(url) = probe {
        target = target.gate(Http::new("probe", url)?, Policy::default().every(every).unhealthy_after(2, 3));
    }
    Ok(target.look_every(every.min(Duration::from_secs(2)), every * 2))
}

/// Whether an endpoint is on this machine.
fn is_here(url: &str) -> bool {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let host = rest.split(['/', '?']).next().unwrap_or_default();
    ["127.0.0.1", "localhost", "[::1]"]
        .iter()
        .any(|here| host.strip_prefix(here).is_some_and(|port| port.is_empty() || port.starts_with(':')))
}
