//! What is kept of the objects that are watched.

use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;

use crate::{
    gate::pod::{Owner, Pod, wire},
    object::{DAEMON_SETS, DEPLOYMENTS, Resource, STATEFUL_SETS},
    workload::{ATTEMPT, LAST_APPLIED},
};

/// An object that can be watched.
pub(crate) trait Kept: Clone + DeserializeOwned + Send + Sync + 'static {
    fn name(&self) -> &str;
    fn version(&self) -> &str;
    fn owner(&self) -> Option<&Owner>;
    /// Whether somebody could want to hear of it.
    fn is_news_after(&self, old: &Self) -> bool;
}

impl Kept for Pod {
    fn name(&self) -> &str {
        &self.name
    }
    fn version(&self) -> &str {
        &self.version
    }
    fn owner(&self) -> Option<&Owner> {
        self.owner.as_ref()
    }
    fn is_news_after(&self, old: &Self) -> bool {
        self.is_news_after(old)
    }
}

/// A ReplicaSet or a ControllerRevision: a template that a workload has had.
#[derive(Clone, Debug, Deserialize)]
#[serde(from = "SetWire")]
pub(crate) struct Set {
    name: Box<str>,
    version: Box<str>,
    owner: Option<Owner>,
    pub(crate) uid: Box<str>,
    /// The value of its hash label, which its pods have too.
    pub(crate) hash: Option<Box<str>>,
    /// A ReplicaSet's annotation, a ControllerRevision's field.
    pub(crate) revision: i64,
}

#[derive(Deserialize)]
struct SetWire {
    metadata: wire::Meta,
    #[serde(default)]
    revision: Option<i64>,
}

impl From<SetWire> for Set {
    fn from(set: SetWire) -> Self {
        let SetWire { metadata, revision } = set;
        let hash = metadata.label("pod-template-hash").or_else(|| metadata.label("controller-revision-hash"));
        let annotation = || metadata.annotation(REVISION)?.parse().ok();
        Self {
            owner: metadata.controller(),
            hash: hash.map(Into::into),
            revision: revision.or_else(annotation).unwrap_or(0),
            name: metadata.name.into(),
            version: metadata.resource_version.into(),
            uid: metadata.uid.into(),
        }
    }
}

impl Kept for Set {
    fn name(&self) -> &str {
        &self.name
    }
    fn version(&self) -> &str {
        &self.version
    }
    fn owner(&self) -> Option<&Owner> {
        self.owner.as_ref()
    }
    fn is_news_after(&self, old: &Self) -> bool {
        self.revision != old.revision
    }
}

/// What targets are and gates look at: a Deployment, StatefulSet, DaemonSet or HTTPRoute. What is told of a status is a
/// workload's.
#[derive(Clone, Deserialize)]
#[serde(try_from = "Value")]
pub(crate) struct Object {
    name: Box<str>,
    version: Box<str>,
    pub(crate) uid: Box<str>,
    /// Its controller has seen what is asked of it.
    pub(crate) observed: bool,
    /// A Deployment's annotation of this name.
    pub(crate) revision: Option<i64>,
    /// A StatefulSet's newest template.
    pub(crate) update_revision: Option<Box<str>>,
    pub(crate) conditions: Box<[Condition]>,
    /// The attempt that changed it last.
    pub(crate) nonce: Option<Box<str>>,
    /// All of it that a look at it needs, as text, which takes less than values do. It may hold what is private,
    /// so nothing prints it.
    object: Box<str>,
}

/// A condition in a status.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Condition {
    pub(crate) kind: Box<str>,
    pub(crate) is_true: bool,
    pub(crate) is_false: bool,
    pub(crate) reason: Box<str>,
    pub(crate) message: Box<str>,
}

#[derive(Deserialize)]
struct ObjectWire {
    metadata: wire::Meta,
    #[serde(default)]
    status: StatusWire,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct StatusWire {
    observed_generation: i64,
    update_revision: Option<String>,
    conditions: Option<Vec<wire::Condition>>,
}

impl TryFrom<Value> for Object {
    type Error = serde_json::Error;

    fn try_from(mut object: Value) -> Result<Self, serde_json::Error> {
        // Who wrote it last is wanted, and which fields it was is most of what is there.
        for entry in object.pointer_mut("/metadata/managedFields").and_then(Value::as_array_mut).into_iter().flatten() {
            entry.as_object_mut().map(|entry| entry.remove("fieldsV1"));
        }
        if let Some(annotations) = object.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut) {
            annotations.remove(LAST_APPLIED);
        }
        let text = object.to_string().into();
        let ObjectWire { metadata, status } = serde_json::from_value(object)?;
        let condition = |c: wire::Condition| Condition {
            is_true: c.status == "True",
            is_false: c.status == "False",
            kind: c.kind.into(),
            reason: c.reason.unwrap_or_default().into(),
            message: c.message.unwrap_or_default().into(),
        };
        Ok(Self {
            observed: metadata.generation.is_some_and(|generation| status.observed_generation >= generation),
            revision: metadata.annotation(REVISION).and_then(|text| text.parse().ok()),
            update_revision: status.update_revision.map(Into::into),
            conditions: status.conditions.unwrap_or_default().into_iter().map(condition).collect(),
            nonce: metadata.annotation(ATTEMPT).map(Into::into),
            name: metadata.name.into(),
            version: metadata.resource_version.into(),
            uid: metadata.uid.into(),
            object: text,
        })
    }
}

impl Object {
    /// The object, without what no look at it needs: what `kubectl apply` left, and whose field is whose.
    pub(crate) fn object(&self) -> Value {
        serde_json::from_str(&self.object).expect("it was JSON before")
    }
}

impl Kept for Object {
    fn name(&self) -> &str {
        &self.name
    }
    fn version(&self) -> &str {
        &self.version
    }
    fn owner(&self) -> Option<&Owner> {
        None
    }
    /// A controller writes when a count changes, and a count may be the last that was waited for.
    fn is_news_after(&self, old: &Self) -> bool {
        self.version != old.version
    }
}

/// The workload that owns what has this controller. A Deployment's ReplicaSets are named after it and their template.
pub(crate) fn workload_of(owner: &Owner) -> Option<(Resource, Box<str>)> {
    match &*owner.kind {
        "ReplicaSet" => owner.name.rsplit_once('-').map(|(name, _)| (DEPLOYMENTS, name.into())),
        "Deployment" => Some((DEPLOYMENTS, owner.name.clone())),
        "StatefulSet" => Some((STATEFUL_SETS, owner.name.clone())),
        "DaemonSet" => Some((DAEMON_SETS, owner.name.clone())),
        _ => None,
    }
}

/// The annotation by which the Deployment controller numbers a Deployment's templates.
const REVISION: &str = "deployment.kubernetes.io/revision";
