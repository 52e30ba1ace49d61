//! Objects as JSON: nothing that a newer API server put into one is lost by reading and writing it.

use http::{HeaderValue, Method, Request, header};
use rollback_core::{Error, ErrorKind, Result};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::Client;

/// A kind of object, as the API spells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Resource {
    /// Empty for the core group.
    pub group: &'static str,
    pub version: &'static str,
    pub plural: &'static str,
    pub kind: &'static str,
}

impl Resource {
    pub(crate) const fn new(
        group: &'static str,
        version: &'static str,
        plural: &'static str,
        kind: &'static str,
    ) -> Self {
        Self { group, version, plural, kind }
    }

    pub(crate) fn path(&self, namespace: &str, name: Option<&str>) -> String {
        let root = if self.group.is_empty() { "/api".to_owned() } else { format!("/apis/{}", self.group) };
        let all = format!("{root}/{}/namespaces/{namespace}/{}", self.version, self.plural);
        name.map_or_else(|| all.clone(), |name| format!("{all}/{name}"))
    }
}

pub(crate) const DEPLOYMENTS: Resource = Resource::new("apps", "v1", "deployments", "Deployment");
pub(crate) const STATEFUL_SETS: Resource = Resource::new("apps", "v1", "statefulsets", "StatefulSet");
pub(crate) const DAEMON_SETS: Resource = Resource::new("apps", "v1", "daemonsets", "DaemonSet");
pub(crate) const REPLICA_SETS: Resource = Resource::new("apps", "v1", "replicasets", "ReplicaSet");
pub(crate) const CONTROLLER_REVISIONS: Resource =
    Resource::new("apps", "v1", "controllerrevisions", "ControllerRevision");
pub(crate) const PODS: Resource = Resource::new("", "v1", "pods", "Pod");
pub(crate) const CONFIG_MAPS: Resource = Resource::new("", "v1", "configmaps", "ConfigMap");
pub(crate) const SECRETS: Resource = Resource::new("", "v1", "secrets", "Secret");
pub(crate) const RESOURCE_QUOTAS: Resource = Resource::new("", "v1", "resourcequotas", "ResourceQuota");
pub(crate) const LIMIT_RANGES: Resource = Resource::new("", "v1", "limitranges", "LimitRange");
pub(crate) const SERVICES: Resource = Resource::new("", "v1", "services", "Service");
pub(crate) const ENDPOINTS: Resource = Resource::new("", "v1", "endpoints", "Endpoints");
pub(crate) const ENDPOINT_SLICES: Resource = Resource::new("discovery.k8s.io", "v1", "endpointslices", "EndpointSlice");
pub(crate) const HTTP_ROUTES: Resource = Resource::new("gateway.networking.k8s.io", "v1", "httproutes", "HTTPRoute");
/// Version 1 is in 1.20 and in 1.36, and names its target as later versions do.
pub(crate) const AUTOSCALERS: Resource =
    Resource::new("autoscaling", "v1", "horizontalpodautoscalers", "HorizontalPodAutoscaler");

/// As since Flux 2.0, and 2.3.
pub(crate) const KUSTOMIZATIONS: Resource =
    Resource::new("kustomize.toolkit.fluxcd.io", "v1", "kustomizations", "Kustomization");
pub(crate) const HELM_RELEASES: Resource = Resource::new("helm.toolkit.fluxcd.io", "v2", "helmreleases", "HelmRelease");

/// Whether a write is carried out, or only checked by the API server, admission and all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Write {
    Real,
    /// `dryRun=All`.
    Dry,
}

/// A JSON patch (RFC 6902), step by step.
#[derive(Clone, Debug, Default)]
pub(crate) struct Patch(Vec<Value>);

impl Patch {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Goes on only if this is what stands there.
    pub(crate) fn test(mut self, path: &str, value: &Value) -> Self {
        self.0.push(json!({ "op": "test", "path": path, "value": value }));
        self
    }

    /// Puts this there, over what stands there.
    pub(crate) fn put(mut self, path: &str, value: Value) -> Self {
        // `add` on a member of an object replaces it, and does not mind if it is not there.
        self.0.push(json!({ "op": "add", "path": path, "value": value }));
        self
    }

    /// Takes away what stands there.
    pub(crate) fn remove(mut self, path: &str) -> Self {
        self.0.push(json!({ "op": "remove", "path": path }));
        self
    }
}

/// A name as a step of a JSON pointer.
pub(crate) fn escaped(step: &str) -> String {
    step.replace('~', "~0").replace('/', "~1")
}

#[derive(Deserialize)]
struct List {
    #[serde(default)]
    metadata: ListMeta,
    /// Null where there are none, in lists of metadata (observed on 1.20).
    items: Option<Vec<Value>>,
}

#[derive(Default, Deserialize)]
struct ListMeta {
    #[serde(rename = "continue", default)]
    go_on: String,
}

impl Client {
    /// `NotFound` when it is not there.
    pub(crate) async fn get(&self, resource: Resource, namespace: &str, name: &str) -> Result<Value> {
        let path = resource.path(namespace, Some(name));
        let what = format!("reading {} {namespace}/{name}", resource.kind);
        self.object(&what, request(Method::GET, &path, &[], None)?).await
    }

    /// As [`get`](Self::get); what is not there is none.
    pub(crate) async fn find(&self, resource: Resource, namespace: &str, name: &str) -> Result<Option<Value>> {
        match self.get(resource, namespace, name).await {
            Ok(found) => Ok(Some(found)),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// All that have these labels, in the words of a selector; empty for all.
    pub(crate) async fn list(&self, resource: Resource, namespace: &str, labels: &str) -> Result<Vec<Value>> {
        self.pages(resource, namespace, labels, JSON).await
    }

    /// The same, and of each only its metadata: what a Secret holds does not travel.
    pub(crate) async fn list_metadata(&self, resource: Resource, namespace: &str, labels: &str) -> Result<Vec<Value>> {
        self.pages(resource, namespace, labels, ONLY_METADATA).await
    }

    async fn pages(&self, resource: Resource, namespace: &str, labels: &str, form: &'static str) -> Result<Vec<Value>> {
        let path = resource.path(namespace, None);
        let what = format!("listing {} in {namespace}", resource.plural);
        let (mut all, mut go_on) = (Vec::new(), String::new());
        loop {
            let mut query = vec![("limit", "500")];
            if !labels.is_empty() {
                query.push(("labelSelector", labels));
            }
            if !go_on.is_empty() {
                query.push(("continue", &go_on));
            }
            let mut request = request(Method::GET, &path, &query, None)?;
            request.headers_mut().insert(header::ACCEPT, HeaderValue::from_static(form));
            let page: List = self.call(&what, request).await?;
            all.extend(page.items.into_iter().flatten().map(without_nulls));
            if page.metadata.go_on.is_empty() {
                return Ok(all);
            }
            go_on = page.metadata.go_on;
        }
    }

    /// All of it or nothing. `Conflict` when a test fails: somebody was faster.
    pub(crate) async fn patch(
        &self,
        resource: Resource,
        namespace: &str,
        name: &str,
        patch: &Patch,
        write: Write,
    ) -> Result<Value> {
        let (what, dry) = match write {
            Write::Real => (format!("changing {} {namespace}/{name}", resource.kind), None),
            Write::Dry => {
                (format!("changing {} {namespace}/{name}, tried out", resource.kind), Some(("dryRun", "All")))
            }
        };
        let query: Vec<_> = [("fieldManager", self.manager())].into_iter().chain(dry).collect();
        let steps = Value::Array(patch.0.clone());
        let path = resource.path(namespace, Some(name));
        self.object(&what, request(Method::PATCH, &path, &query, Some((JSON_PATCH, &steps)))?).await
    }

    /// `Conflict` when there is one of this name.
    pub(crate) async fn create(
        &self,
        resource: Resource,
        namespace: &str,
        object: &Value,
        write: Write,
    ) -> Result<Value> {
        let tried = if write == Write::Dry { ", tried out" } else { "" };
        let what = format!("making {} {namespace}/{}{tried}", resource.kind, text(object, "/metadata/name"));
        let dry = (write == Write::Dry).then_some(("dryRun", "All"));
        let query: Vec<_> = [("fieldManager", self.manager())].into_iter().chain(dry).collect();
        self.object(&what, request(Method::POST, &resource.path(namespace, None), &query, Some((JSON, object)))?).await
    }

    /// Deletes this object as it was read. One that is gone, or has been written since, stays as it is.
    pub(crate) async fn delete_as_read(&self, resource: Resource, namespace: &str, object: &Value) -> Result<()> {
        let metadata = &object["metadata"];
        let read = json!({ "uid": metadata["uid"], "resourceVersion": metadata["resourceVersion"] });
        self.delete_if(resource, namespace, text(metadata, "/name"), &read).await
    }

    /// Deletes the one with this uid. One that is gone, or is another by now, is deleted.
    pub(crate) async fn delete(&self, resource: Resource, namespace: &str, name: &str, uid: &str) -> Result<()> {
        self.delete_if(resource, namespace, name, &json!({ "uid": uid })).await
    }

    async fn delete_if(&self, resource: Resource, namespace: &str, name: &str, it_has: &Value) -> Result<()> {
        let what = format!("deleting {} {namespace}/{name}", resource.kind);
        let options = json!({ "apiVersion": "v1", "kind": "DeleteOptions", "preconditions": it_has });
        let request = request(Method::DELETE, &resource.path(namespace, Some(name)), &[], Some((JSON, &options)))?;
        match self.call::<Value>(&what, request).await {
            Err(e) if !matches!(e.kind(), ErrorKind::NotFound | ErrorKind::Conflict) => Err(e),
            _ => Ok(()),
        }
    }

    async fn object(&self, what: &str, request: Request<Vec<u8>>) -> Result<Value> {
        self.call(what, request).await.map(without_nulls)
    }

    /// Posts to an endpoint outside namespaces: reviews.
    pub(crate) async fn review(&self, what: &str, path: &str, body: &Value) -> Result<Value> {
        self.call(what, request(Method::POST, path, &[], Some((JSON, body)))?).await
    }
}

const JSON: &str = "application/json";
const ONLY_METADATA: &str = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io";
const JSON_PATCH: &str = "application/json-patch+json";

fn request(
    method: Method,
    path: &str,
    query: &[(&str, &str)],
    body: Option<(&str, &Value)>,
) -> Result<Request<Vec<u8>>> {
    let mut uri = path.to_owned();
    for (number, (name, value)) in query.iter().enumerate() {
        uri.push(if number == 0 { '?' } else { '&' });
        uri.push_str(name);
        uri.push('=');
        for byte in value.bytes() {
            if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
                uri.push(byte.into());
            } else {
                uri += &format!("%{byte:02X}");
            }
        }
    }
    let mut request = Request::builder().method(method).uri(uri).header(header::ACCEPT, JSON);
    let body = match body {
        Some((form, body)) => {
            request = request.header(header::CONTENT_TYPE, form);
            body.to_string().into_bytes()
        }
        None => Vec::new(),
    };
    request.body(body).map_err(|e| Error::new(ErrorKind::Internal, "a request cannot be built").because(e))
}

/// The same, as every version of the API server would say it: up to 1.33 it writes `creationTimestamp: null` into every
/// template, from 1.34 on it does not, and while one is replaced by the other both answer. Null is absent in the API.
pub(crate) fn without_nulls(mut object: Value) -> Value {
    fn drop_in(value: &mut Value) {
        match value {
            Value::Object(members) => {
                members.retain(|_, member| !member.is_null());
                members.values_mut().for_each(drop_in);
            }
            Value::Array(items) => items.iter_mut().for_each(drop_in),
            _ => {}
        }
    }
    drop_in(&mut object);
    object
}

/// The text at this pointer, or an empty one.
pub(crate) fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// The number at this pointer. The API leaves out zeros.
pub(crate) fn number(object: &Value, pointer: &str) -> i64 {
    object.pointer(pointer).and_then(Value::as_i64).unwrap_or_default()
}

/// What is in the list at this pointer, or nothing.
pub(crate) fn list<'a>(object: &'a Value, pointer: &str) -> impl Iterator<Item = &'a Value> + use<'a> {
    object.pointer(pointer).and_then(Value::as_array).into_iter().flatten()
}

/// The map at this pointer, or an empty one.
pub(crate) fn map<'a>(object: &'a Value, pointer: &str) -> impl Iterator<Item = (&'a String, &'a Value)> + use<'a> {
    object.pointer(pointer).and_then(Value::as_object).into_iter().flatten()
}

/// A selector of labels in words, as in `app=web,tier in (a,b)`: `matchLabels` and `matchExpressions`.
pub(crate) fn selector(object: &Value) -> String {
    let mut words: Vec<String> =
        map(object, "/matchLabels").map(|(name, value)| format!("{name}={}", value.as_str().unwrap_or(""))).collect();
    for rule in list(object, "/matchExpressions") {
        let (key, values) = (text(rule, "/key"), rule.pointer("/values").and_then(Value::as_array));
        let values: Vec<&str> = values.into_iter().flatten().filter_map(Value::as_str).collect();
        let values = values.join(",");
        words.push(match text(rule, "/operator") {
            "In" => format!("{key} in ({values})"),
            "NotIn" => format!("{key} notin ({values})"),
            "DoesNotExist" => format!("!{key}"),
            _ => key.to_owned(),
        });
    }
    words.join(",")
}
