//! What stands behind a Service.

use std::collections::BTreeSet;

use rollback_core::{ErrorKind, Result};
use serde_json::Value;

use crate::{
    Client,
    object::{ENDPOINT_SLICES, ENDPOINTS, list, text},
};

/// The ready endpoints of a Service: pods by name, anything else by address.
///
/// EndpointSlices are version 1 from Kubernetes 1.21 on; before that the Endpoints tell.
pub(crate) async fn ready(client: &Client, namespace: &str, service: &str) -> Result<BTreeSet<String>> {
    let mine = format!("kubernetes.io/service-name={service}");
    let slices = match client.list(ENDPOINT_SLICES, namespace, &mine).await {
        Err(e) if e.kind() == ErrorKind::NotFound => {
            let endpoints = client.find(ENDPOINTS, namespace, service).await?.unwrap_or_default();
            return Ok(list(&endpoints, "/subsets").flat_map(|subset| list(subset, "/addresses")).map(name).collect());
        }
        slices => slices?,
    };
    let all = slices.iter().flat_map(|slice| list(slice, "/endpoints"));
    // Unknown counts as ready, by the API's own words.
    let ready = all.filter(|it| it.pointer("/conditions/ready").and_then(Value::as_bool) != Some(false));
    Ok(ready.map(name).collect())
}

fn name(endpoint: &Value) -> String {
    match text(endpoint, "/targetRef/name") {
        "" if text(endpoint, "/ip").is_empty() => text(endpoint, "/addresses/0").into(),
        "" => text(endpoint, "/ip").into(),
        pod => pod.into(),
    }
}
