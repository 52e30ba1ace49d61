//! Requests and answers.

use std::{collections::BTreeMap, convert::Infallible, io, time::Duration};

use bytes::Bytes;
use futures_util::stream;
use http::{Method, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::UnsyncBoxBody};
use kube::client::Body;
use serde_json::{Value, json};

use super::{Cluster, Fault, World};

type Answer = Response<UnsyncBoxBody<Bytes, io::Error>>;

/// A refusal: status, reason, message.
type Refusal = (u16, &'static str, String);

/// Where an object of this kind is.
pub(super) fn path_of(object: &Value) -> String {
    let text =
        |name: &str| object.pointer(name).and_then(Value::as_str).unwrap_or_else(|| panic!("no {name}: {object}"));
    let (version, kind) = (text("/apiVersion"), text("/kind"));
    let plural = match kind {
        "NetworkPolicy" => "networkpolicies".into(),
        kind => format!("{}s", kind.to_ascii_lowercase()),
    };
    let root = if version.contains('/') { "apis" } else { "api" };
    format!("/{root}/{version}/namespaces/default/{plural}/{}", text("/metadata/name"))
}

pub(super) async fn answer(cluster: &Cluster, request: Request<Body>) -> Result<Answer, io::Error> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
    let line = format!("{} {}", head.method, head.uri);
    let fault = {
        let mut world = cluster.world();
        world.requests.push(line.clone());
        let at = world.faults.iter().position(|(text, times, _)| *times > 0 && line.contains(text.as_str()));
        at.map(|at| {
            world.faults[at].1 -= 1;
            world.faults[at].2.clone()
        })
    };
    let call = Call { method: head.method, path: head.uri.path().to_owned(), query: query(head.uri.query()), body };
    let broken = || io::Error::new(io::ErrorKind::ConnectionReset, "the connection broke, as this test wants it");
    match fault {
        None => Ok(carry_out(cluster, &call)),
        Some(Fault::Cut(after)) if call.is_watch() => Ok(watch(cluster, &call, Some(after))),
        Some(Fault::Cut(_)) => Ok(carry_out(cluster, &call)),
        Some(Fault::LoseRequest) => Err(broken()),
        Some(Fault::LoseAnswer) => {
            drop(carry_out(cluster, &call));
            Err(broken())
        }
        Some(Fault::LandLate(by)) => {
            let cluster = cluster.clone();
            tokio::spawn(async move {
                tokio::time::sleep(by).await;
                drop(carry_out(&cluster, &call));
            });
            Err(broken())
        }
        Some(Fault::Refuse(code, after)) => {
            let mut answer = refuse((code, "", "as this test wants it".into()));
            if after > 0 {
                answer.headers_mut().insert(http::header::RETRY_AFTER, after.into());
            }
            Ok(answer)
        }
        Some(Fault::Hang) => std::future::pending().await,
    }
}

struct Call {
    method: Method,
    path: String,
    query: BTreeMap<String, String>,
    body: Bytes,
}

impl Call {
    fn is_watch(&self) -> bool {
        self.query.get("watch").is_some_and(|watch| watch == "true" || watch == "1")
    }
}

fn carry_out(cluster: &Cluster, call: &Call) -> Answer {
    if call.is_watch() {
        return watch(cluster, call, None);
    }
    let done = {
        let mut world = cluster.world();
        world.catch_up();
        world.carry_out(call)
    };
    cluster.shared.changed.notify_waiters();
    match done {
        Ok(value) => whole(StatusCode::OK, &value),
        Err(refusal) => refuse(refusal),
    }
}

impl World {
    fn carry_out(&mut self, call: &Call) -> Result<Value, Refusal> {
        if call.path.ends_with("/selfsubjectaccessreviews") {
            let review = json_of(&call.body)?;
            let asked = &review["spec"]["resourceAttributes"];
            let word = |name: &str| asked[name].as_str().unwrap_or_default().to_owned();
            let allowed = !self.denies(&word("verb"), &word("resource"));
            return Ok(json!({ "kind": "SelfSubjectAccessReview", "status": { "allowed": allowed } }));
        }
        let collection = is_collection(&call.path);
        let resource = if collection { last(&call.path) } else { last(parent(&call.path)) }.to_owned();
        let verb = match (&call.method, collection) {
            (&Method::GET, true) => "list",
            (&Method::GET, false) => "get",
            (&Method::POST, _) => "create",
            (&Method::PATCH, _) => "patch",
            (&Method::PUT, _) => "update",
            _ => "delete",
        };
        if self.denies(verb, &resource) {
            let text = format!("{resource} is forbidden: User \"test\" cannot {verb} resource \"{resource}\"");
            return Err((403, "Forbidden", text));
        }
        let dry = call.query.contains_key("dryRun");
        if dry && self.undryable.contains(&resource) {
            return Err((400, "BadRequest", "admission webhook \"audit\" does not support dry run".into()));
        }
        match verb {
            "list" => Ok(self.list(call)),
            "get" => self.found(&call.path).cloned(),
            "create" => {
                let object = json_of(&call.body)?;
                let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
                let path = format!("{}/{name}", call.path);
                if self.objects.contains_key(&path) {
                    return Err((409, "AlreadyExists", format!("{resource} \"{name}\" already exists")));
                }
                Ok(if dry { object } else { self.put(&path, object) })
            }
            "update" => {
                let (object, before) = (json_of(&call.body)?, self.found(&call.path)?);
                let version = object["metadata"]["resourceVersion"].as_str().unwrap_or_default();
                if !version.is_empty() && before["metadata"]["resourceVersion"] != version {
                    return Err((409, "Conflict", "the object has been modified; please apply your changes".into()));
                }
                Ok(if dry { object } else { self.put(&call.path, object) })
            }
            "patch" => {
                let before = self.found(&call.path)?.clone();
                let steps = json_of(&call.body)?;
                let after = match steps {
                    Value::Array(steps) => patched(before.clone(), &steps)?,
                    merge => merged(before.clone(), &merge),
                };
                check(&before, &after)?;
                Ok(if dry { after } else { self.put(&call.path, after) })
            }
            _ => {
                let object = self.found(&call.path)?;
                let options = if call.body.is_empty() { Value::Null } else { json_of(&call.body)? };
                let wanted = &options["preconditions"];
                let differs = |name: &str| !wanted[name].is_null() && wanted[name] != object["metadata"][name];
                if differs("uid") || differs("resourceVersion") {
                    return Err((409, "Conflict", "the precondition does not hold".into()));
                }
                Ok(self.delete(&call.path).unwrap_or_default())
            }
        }
    }

    fn denies(&self, verb: &str, resource: &str) -> bool {
        self.denied.iter().any(|(no, of)| no == verb && of == resource)
    }

    fn found(&self, path: &str) -> Result<&Value, Refusal> {
        self.objects.get(path).ok_or_else(|| (404, "NotFound", format!("{} not found", last(path))))
    }

    fn list(&self, call: &Call) -> Value {
        let labels = call.query.get("labelSelector").map(String::as_str).unwrap_or_default();
        let items: Vec<&Value> = self
            .objects
            .iter()
            .filter(|(path, object)| parent(path) == call.path && matches(object, labels))
            .map(|(_, object)| object)
            .collect();
        json!({ "kind": "List", "metadata": { "resourceVersion": self.version.to_string() }, "items": items })
    }
}

/// The few rules of validation that tests rely on.
fn check(before: &Value, object: &Value) -> Result<(), Refusal> {
    let invalid =
        |why: &str| Err((422, "Invalid", format!("{} is invalid: {why}", object["kind"].as_str().unwrap_or(""))));
    let containers = object.pointer("/spec/template/spec/containers");
    match containers.map(|containers| containers.as_array().map(Vec::len)) {
        Some(None | Some(0)) => invalid("spec.template.spec.containers: Required value"),
        // As many webhooks do, it lets what is unchanged pass.
        _ if object.to_string().contains("forbidden-by-admission") && judged(before) != judged(object) => {
            Err((403, "Forbidden", "admission webhook \"images\" denied the request: not from our registry".into()))
        }
        _ => Ok(()),
    }
}

/// What a webhook judges an object by: its pod template, or else all that it says.
fn judged(object: &Value) -> Vec<&Value> {
    if let Some(template) = object.pointer("/spec/template") {
        return vec![template];
    }
    let members = object.as_object().into_iter().flatten();
    members.filter(|(name, _)| !["metadata", "status"].contains(&name.as_str())).map(|(_, member)| member).collect()
}

fn matches(object: &Value, labels: &str) -> bool {
    labels.split(',').filter(|label| !label.is_empty()).all(|label| {
        let own = |name: &str| object.pointer("/metadata/labels").and_then(|labels| labels.get(name)?.as_str());
        match label.split_once('=') {
            Some((name, value)) => own(name.trim_end_matches('=')) == Some(value.trim_start_matches('=')),
            None => own(label).is_some(),
        }
    })
}

/// A JSON patch, whole or not at all. A test that fails is told as the real one tells it.
fn patched(mut object: Value, steps: &[Value]) -> Result<Value, Refusal> {
    let refused = || (422, "Invalid", "the server rejected our request due to an error in our request".to_owned());
    for step in steps {
        let path = step["path"].as_str().ok_or_else(refused)?;
        match step["op"].as_str() {
            Some("test") => {
                let found = object.pointer(path).unwrap_or(&Value::Null);
                if *found != step["value"] {
                    return Err(refused());
                }
            }
            Some(op @ ("add" | "replace" | "remove")) => {
                let (parent, name) = path.rsplit_once('/').ok_or_else(refused)?;
                let name = name.replace("~1", "/").replace("~0", "~");
                match object.pointer_mut(parent) {
                    Some(Value::Object(members)) if op == "remove" => drop(members.remove(&name).ok_or_else(refused)?),
                    Some(Value::Object(members)) => drop(members.insert(name, step["value"].clone())),
                    Some(Value::Array(items)) => {
                        let at: usize = name.parse().map_err(|_| refused())?;
                        *items.get_mut(at).ok_or_else(refused)? = step["value"].clone();
                    }
                    _ => return Err(refused()),
                }
            }
            _ => return Err(refused()),
        }
    }
    Ok(object)
}

/// A merge patch (RFC 7396).
fn merged(target: Value, patch: &Value) -> Value {
    let Value::Object(members) = patch else { return patch.clone() };
    let mut target = match target {
        Value::Object(target) => target,
        _ => serde_json::Map::new(),
    };
    for (name, value) in members {
        if value.is_null() {
            target.remove(name);
        } else {
            let before = target.remove(name).unwrap_or_default();
            target.insert(name.clone(), merged(before, value));
        }
    }
    Value::Object(target)
}

/// Tells what happens from a version on, with a bookmark at the end, for as long as was asked for; or, without one, until
/// it is cut.
fn watch(cluster: &Cluster, call: &Call, cut: Option<Duration>) -> Answer {
    let from: u64 = call.query.get("resourceVersion").and_then(|version| version.parse().ok()).unwrap_or(0);
    let seconds = call.query.get("timeoutSeconds").and_then(|seconds| seconds.parse().ok()).unwrap_or(290);
    if from < cluster.world().forgotten {
        return refuse((410, "Expired", format!("too old resource version: {from}")));
    }
    let end = tokio::time::Instant::now() + cut.unwrap_or_else(|| Duration::from_secs(seconds));
    let labels = call.query.get("labelSelector").cloned().unwrap_or_default();
    let state = Some((cluster.clone(), call.path.clone(), labels, from));
    let lines = stream::unfold(state, move |state| async move {
        let (cluster, path, labels, mut from) = state?;
        loop {
            let changed = cluster.shared.changed.notified();
            let mut told = String::new();
            let now = {
                let mut world = cluster.world();
                world.catch_up();
                let ours = world.events.iter().filter(|(version, at, _, object)| {
                    *version > from && parent(at) == path && matches(object, &labels)
                });
                for (_, _, kind, object) in ours {
                    told += &format!("{}\n", json!({ "type": kind, "object": object }));
                }
                world.version
            };
            from = now;
            if !told.is_empty() {
                drop(changed);
                return Some((told, Some((cluster, path, labels, from))));
            }
            if tokio::time::timeout_at(end, changed).await.is_err() {
                if cut.is_some() {
                    return None;
                }
                // A client that reads kinds must find them here too.
                let bookmark = json!({
                    "apiVersion": "v1", "kind": "Bookmark", "metadata": { "resourceVersion": from.to_string() },
                });
                return Some((format!("{}\n", json!({ "type": "BOOKMARK", "object": bookmark })), None));
            }
        }
    });
    let frames = futures_util::StreamExt::map(lines, |line| Ok(Frame::data(Bytes::from(line))));
    Response::new(StreamBody::new(frames).boxed_unsync())
}

fn whole(status: StatusCode, value: &Value) -> Answer {
    let body = Full::new(Bytes::from(value.to_string())).map_err(|e: Infallible| match e {});
    let mut answer = Response::new(body.boxed_unsync());
    *answer.status_mut() = status;
    answer
}

fn refuse((code, reason, message): Refusal) -> Answer {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": message,
    });
    whole(StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), &status)
}

fn json_of(body: &Bytes) -> Result<Value, Refusal> {
    serde_json::from_slice(body).map_err(|e| (400, "BadRequest", format!("not JSON: {e}")))
}

fn query(text: Option<&str>) -> BTreeMap<String, String> {
    let pairs = text.unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (name.to_owned(), decoded(value))
        })
        .collect()
}

fn decoded(text: &str) -> String {
    let mut out = Vec::new();
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        let hex = |byte: u8| char::from(byte).to_digit(16);
        match byte {
            b'+' => out.push(b' '),
            b'%' => {
                let digits = (bytes.next().and_then(hex), bytes.next().and_then(hex));
                if let (Some(high), Some(low)) = digits {
                    out.push((high * 16 + low) as u8);
                }
            }
            byte => out.push(byte),
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Whether a path is of a kind and not of an object: `…/namespaces/default/deployments`.
fn is_collection(path: &str) -> bool {
    path.rsplit('/').nth(2) == Some("namespaces")
}

fn last(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or_default()
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(parent, _)| parent)
}
