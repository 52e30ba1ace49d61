//! What a pod template takes its configuration from: the ConfigMaps and Secrets that it names.

use std::{collections::BTreeSet, fmt};

use rollback_core::{ErrorKind, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::hash;
use crate::{
    Client,
    object::{CONFIG_MAPS, SECRETS, text},
};

/// A ConfigMap or Secret by name, and a mark by which a change is seen.
///
/// The mark of a ConfigMap is the hash of what it holds. Of a Secret it is its uid and version: a hash of a short secret
/// would give the secret away.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Config {
    secret: bool,
    name: String,
    /// The pods start without it.
    optional: bool,
    /// None: not read, or not there, or we may not read it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mark: Option<String>,
}

/// Whether something that pods name is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum There {
    Yes,
    No,
    Hidden,
}

impl Config {
    pub(super) const fn is_needed(&self) -> bool {
        !self.optional
    }

    /// The same, with the mark that it has now.
    pub(super) async fn read(&self, client: &Client, namespace: &str) -> Result<Self> {
        let resource = if self.secret { SECRETS } else { CONFIG_MAPS };
        let found = match client.find(resource, namespace, &self.name).await {
            // Without the right to see it its changes are not seen either; preflight has said so.
            Err(e) if e.kind() == ErrorKind::Denied => None,
            found => found?,
        };
        let mark = found.map(|object| match self.secret {
            true => format!("{}/{}", text(&object, "/metadata/uid"), text(&object, "/metadata/resourceVersion")),
            false => hash(&Value::Array(vec![object["data"].clone(), object["binaryData"].clone()])),
        });
        Ok(Self { mark, ..self.clone() })
    }

    pub(super) async fn is_there(&self, client: &Client, namespace: &str) -> Result<There> {
        let resource = if self.secret { SECRETS } else { CONFIG_MAPS };
        match client.find(resource, namespace, &self.name).await {
            Err(e) if e.kind() == ErrorKind::Denied => Ok(There::Hidden),
            found => Ok(if found?.is_some() { There::Yes } else { There::No }),
        }
    }
}

/// `ConfigMap web-config`.
impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", if self.secret { "Secret" } else { "ConfigMap" }, self.name)
    }
}

/// All that this template names: volumes, projected volumes, environments, single variables, credentials of registries.
pub(super) fn of(template: &Value) -> BTreeSet<Config> {
    let mut found: BTreeSet<Config> = BTreeSet::new();
    let mut add = |secret: bool, name: &str, at: &Value| {
        if !name.is_empty() {
            let optional = at.pointer("/optional").and_then(Value::as_bool) == Some(true);
            found.insert(Config { secret, name: name.into(), optional, mark: None });
        }
    };
    fn list<'a>(at: &'a Value, pointer: &str) -> impl Iterator<Item = &'a Value> + use<'a> {
        at.pointer(pointer).and_then(Value::as_array).into_iter().flatten()
    }
    for volume in list(template, "/spec/volumes") {
        add(false, text(volume, "/configMap/name"), &volume["configMap"]);
        add(true, text(volume, "/secret/secretName"), &volume["secret"]);
        for source in list(volume, "/projected/sources") {
            add(false, text(source, "/configMap/name"), &source["configMap"]);
            add(true, text(source, "/secret/name"), &source["secret"]);
        }
    }
    for container in super::containers(template) {
        for from in list(container, "/envFrom") {
            add(false, text(from, "/configMapRef/name"), &from["configMapRef"]);
            add(true, text(from, "/secretRef/name"), &from["secretRef"]);
        }
        for variable in list(container, "/env") {
            let from = &variable["valueFrom"];
            add(false, text(from, "/configMapKeyRef/name"), &from["configMapKeyRef"]);
            add(true, text(from, "/secretKeyRef/name"), &from["secretKeyRef"]);
        }
    }
    // Pods start without these when the image needs none.
    for secret in list(template, "/spec/imagePullSecrets") {
        found.insert(Config { secret: true, name: text(secret, "/name").into(), optional: true, mark: None });
    }
    found
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_way_to_name_one_is_found() {
        let template = json!({"spec": {
            "volumes": [
                {"name": "a", "configMap": {"name": "files"}},
                {"name": "b", "secret": {"secretName": "certs", "optional": true}},
                {"name": "c", "projected": {"sources": [{"configMap": {"name": "both"}}, {"secret": {"name": "tokens"}}]}},
            ],
            "initContainers": [{"name": "migrate", "envFrom": [{"secretRef": {"name": "database"}}]}],
            "containers": [{"name": "web",
                "envFrom": [{"configMapRef": {"name": "flags", "optional": true}}],
                "env": [
                    {"name": "A", "valueFrom": {"configMapKeyRef": {"name": "one", "key": "a"}}},
                    {"name": "B", "valueFrom": {"secretKeyRef": {"name": "two", "key": "b"}}},
                    {"name": "C", "value": "plain"},
                ]}],
            "imagePullSecrets": [{"name": "registry"}],
        }});
        let found: Vec<String> = of(&template)
            .iter()
            .map(|config| format!("{config}{}", if config.is_needed() { "" } else { ", optional" }))
            .collect();
        assert_eq!(
            found,
            [
                "ConfigMap both",
                "ConfigMap files",
                "ConfigMap flags, optional",
                "ConfigMap one",
                "Secret certs, optional",
                "Secret database",
                "Secret registry, optional",
                "Secret tokens",
                "Secret two",
            ]
        );
    }
}
