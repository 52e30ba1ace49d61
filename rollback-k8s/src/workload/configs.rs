//! What a pod template takes its configuration from: the ConfigMaps and Secrets that it names.

use std::{collections::BTreeSet, fmt};

use rollback_core::{ErrorKind, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::hash;
use crate::{
    Client,
    object::{CONFIG_MAPS, Resource, SECRETS, text},
};

/// A ConfigMap or Secret by name, and a mark by which a change is seen.
///
/// The mark of a ConfigMap is the hash of what it holds. Of a Secret it is its uid and version: a hash of a short secret
/// would give the secret away.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Config {
    pub(super) secret: bool,
    pub(super) name: String,
    /// The pods start without it.
    pub(super) optional: bool,
    /// None: not read, or not there, or we may not read it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) mark: Option<String>,
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

    pub(super) const fn resource(&self) -> Resource {
        if self.secret { SECRETS } else { CONFIG_MAPS }
    }

    /// The same, with the mark that it has now.
    pub(super) async fn read(&self, client: &Client, namespace: &str) -> Result<Self> {
        Ok(self.as_in(self.find(client, namespace).await?.as_ref()))
    }

    /// The object, unless it is not there or may not be seen.
    pub(super) async fn find(&self, client: &Client, namespace: &str) -> Result<Option<Value>> {
        match client.find(self.resource(), namespace, &self.name).await {
            // Without the right to see it its changes are not seen either; preflight has said so.
            Err(e) if e.kind() == ErrorKind::Denied => Ok(None),
            found => found,
        }
    }

    /// The same, with the mark that this object gives it.
    pub(super) fn as_in(&self, object: Option<&Value>) -> Self {
        let mark = object.map(|object| match self.secret {
            true => format!("{}/{}", text(object, "/metadata/uid"), text(object, "/metadata/resourceVersion")),
            false => hash(&Value::Array(vec![object["data"].clone(), object["binaryData"].clone()])),
        });
        Self { mark, ..self.clone() }
    }

    pub(super) async fn is_there(&self, client: &Client, namespace: &str) -> Result<There> {
        match client.find(self.resource(), namespace, &self.name).await {
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

/// One place of a template that names a ConfigMap or a Secret.
pub(super) struct Use<'t> {
    pub(super) secret: bool,
    pub(super) name: &'t mut String,
    pub(super) optional: bool,
    /// It is what the node asks a registry with.
    pub(super) pulls: bool,
}

/// Goes through all that this template, or pod, names: volumes and what they log in with, projected volumes, environments,
/// single variables, credentials of registries.
pub(super) fn visit(template: &mut Value, mut see: impl FnMut(Use<'_>)) {
    fn list<'a>(at: &'a mut Value, pointer: &str) -> impl Iterator<Item = &'a mut Value> + use<'a> {
        at.pointer_mut(pointer).and_then(Value::as_array_mut).into_iter().flatten()
    }
    let mut named = |secret: bool, pulls: bool, at: Option<&mut Value>, key: &str| {
        let Some(at) = at else { return };
        // Pods start without the credentials of a registry when the image needs none.
        let optional = pulls || at["optional"] == true;
        if let Some(Value::String(name)) = at.get_mut(key)
            && !name.is_empty()
        {
            see(Use { secret, name, optional, pulls });
        }
    };
    for volume in list(template, "/spec/volumes") {
        named(false, false, volume.get_mut("configMap"), "name");
        named(true, false, volume.get_mut("secret"), "secretName");
        named(true, false, volume.get_mut("azureFile"), "secretName");
        // What volumes of other makers log in with.
        named(true, false, volume.pointer_mut("/csi/nodePublishSecretRef"), "name");
        for kind in ["cephfs", "cinder", "flexVolume", "iscsi", "rbd", "scaleIO", "storageos"] {
            named(true, false, volume.pointer_mut(&format!("/{kind}/secretRef")), "name");
        }
        for source in list(volume, "/projected/sources") {
            named(false, false, source.get_mut("configMap"), "name");
            named(true, false, source.get_mut("secret"), "name");
        }
    }
    for container in super::containers_mut(template) {
        for from in list(container, "/envFrom") {
            named(false, false, from.get_mut("configMapRef"), "name");
            named(true, false, from.get_mut("secretRef"), "name");
        }
        for variable in list(container, "/env") {
            named(false, false, variable.pointer_mut("/valueFrom/configMapKeyRef"), "name");
            named(true, false, variable.pointer_mut("/valueFrom/secretKeyRef"), "name");
        }
    }
    for secret in list(template, "/spec/imagePullSecrets") {
        named(true, true, Some(secret), "name");
    }
}

/// All that this template names.
pub(super) fn of(template: &Value) -> BTreeSet<Config> {
    let mut found: BTreeSet<Config> = BTreeSet::new();
    visit(&mut template.clone(), |at| {
        let (secret, optional) = (at.secret, at.optional);
        found.insert(Config { secret, name: at.name.clone(), optional, mark: None });
    });
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
                {"name": "d", "csi": {"driver": "d", "nodePublishSecretRef": {"name": "csi"}}},
                {"name": "e", "azureFile": {"shareName": "s", "secretName": "azure"}},
                {"name": "f", "cephfs": {"monitors": [], "secretRef": {"name": "ceph"}}},
                {"name": "g", "cinder": {"volumeID": "v", "secretRef": {"name": "cinder"}}},
                {"name": "h", "flexVolume": {"driver": "d", "secretRef": {"name": "flex"}}},
                {"name": "i", "iscsi": {"iqn": "i", "secretRef": {"name": "iscsi"}}},
                {"name": "j", "rbd": {"image": "i", "secretRef": {"name": "rbd"}}},
                {"name": "k", "scaleIO": {"system": "s", "secretRef": {"name": "scaleio"}}},
                {"name": "l", "storageos": {"volumeName": "v", "secretRef": {"name": "storageos"}}},
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
                "Secret azure",
                "Secret ceph",
                "Secret certs, optional",
                "Secret cinder",
                "Secret csi",
                "Secret database",
                "Secret flex",
                "Secret iscsi",
                "Secret rbd",
                "Secret registry, optional",
                "Secret scaleio",
                "Secret storageos",
                "Secret tokens",
                "Secret two",
            ]
        );
    }
}
