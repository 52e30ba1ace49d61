//! An API server in memory, with controllers for workloads, Services and routes: for tests of what you build on this crate.
//!
//! It keeps to the rules that the real one was seen to keep: `resourceVersion` and `uid`, generations that rise with the
//! spec, JSON patches that are carried out whole or not at all, preconditions, dry runs, access reviews, watches with
//! bookmarks and `410 Gone`. What it is there for is what a real one cannot be made to do on demand ([`Fault`]). Whatever
//! it accepts proves nothing by itself: the same tests run against a real API server too.
//!
//! Time is tokio's: with paused time a rollout takes no time at all.

mod controller;
mod wire;

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde_json::{Value, json};
use tokio::sync::Notify;

use crate::Client;

/// A cluster in memory. Clones are the same one.
#[derive(Clone, Default)]
pub struct Cluster {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    world: Mutex<World>,
    /// Rings with every change.
    changed: Notify,
}

/// By what its path is: `/apis/apps/v1/namespaces/default/deployments/web`.
type Objects = BTreeMap<String, Value>;

#[derive(Default)]
struct World {
    objects: Objects,
    version: u64,
    uids: u64,
    /// What happened, for watches: version, path, kind of event, object.
    events: Vec<(u64, String, &'static str, Value)>,
    /// Events up to here are forgotten.
    forgotten: u64,
    denied: Vec<(String, String)>,
    /// What a webhook stands before that takes no dry runs.
    undryable: Vec<String>,
    faults: Vec<(String, usize, Fault)>,
    requests: Vec<String>,
    controller: controller::Controller,
}

/// What goes wrong with a request.
#[derive(Clone, Debug, PartialEq)]
pub enum Fault {
    /// It is not carried out, and the connection breaks.
    LoseRequest,
    /// It is carried out, and the connection breaks.
    LoseAnswer,
    /// It is carried out this much later, and the connection breaks at once.
    LandLate(Duration),
    /// It is not carried out, and answered with this status; a 429 and a 503 say so many seconds to wait.
    Refuse(u16, u64),
    /// It is never answered.
    Hang,
    /// A watch ends in order after so long, before its time and without a bookmark, as behind a proxy that ends what is
    /// silent. What is no watch is carried out.
    Cut(Duration),
}

impl Cluster {
    /// An empty one, with a namespace `default`.
    pub fn new() -> Self {
        Self::default()
    }

    /// A client of it.
    pub fn client(&self) -> Client {
        let cluster = self.clone();
        let service = tower::service_fn(move |request| {
            let cluster = cluster.clone();
            async move { wire::answer(&cluster, request).await }
        });
        Client::from_kube(kube::Client::new(service, "default"))
    }

    /// Puts an object there as somebody else would, whole: made, or replaced under its uid.
    ///
    /// # Panics
    /// When it has no `apiVersion`, `kind`, `metadata.name`, or is of a kind that is not known here.
    pub fn put(&self, object: &Value) -> Value {
        let kept = self.world().put(&wire::path_of(object), object.clone());
        self.shared.changed.notify_waiters();
        kept
    }

    /// The object of this kind, plural, in the namespace `default`.
    pub fn get(&self, plural: &str, name: &str) -> Option<Value> {
        let mut world = self.world();
        world.catch_up();
        let end = format!("/{plural}/{name}");
        world.objects.iter().find(|(path, _)| path.ends_with(&end)).map(|(_, object)| object.clone())
    }

    /// Deletes it, as somebody else would.
    pub fn delete(&self, plural: &str, name: &str) {
        let mut world = self.world();
        let end = format!("/{plural}/{name}");
        let path = world.objects.keys().find(|path| path.ends_with(&end)).cloned();
        if let Some(path) = path {
            world.delete(&path);
        }
        drop(world);
        self.shared.changed.notify_waiters();
    }

    /// Everything is gone: objects, faults, webhooks, what was denied and what was asked.
    pub fn reset(&self) {
        let mut world = self.world();
        let (version, uids, controller) = (world.version, world.uids, world.controller.emptied());
        *world = World { version, forgotten: version, uids, controller, ..World::default() };
        drop(world);
        self.shared.changed.notify_waiters();
    }

    /// Pods take so long to be replaced. Default 1 second.
    pub fn pods_take(&self, time: Duration) {
        self.world().controller.set_pace(time);
    }

    /// From now on nobody may do this, as in `("patch", "deployments")`.
    pub fn deny(&self, verb: &str, resource: &str) {
        self.world().denied.push((verb.into(), resource.into()));
    }

    /// From now on a webhook that takes no dry runs stands before what is written to these, as in `"deployments"`.
    pub fn take_no_dry_runs(&self, resource: &str) {
        self.world().undryable.push(resource.into());
    }

    /// Goes wrong with the next so many requests of which the line, as `PATCH /apis/…/deployments/web`, has this text.
    pub fn fault(&self, line: &str, times: usize, fault: Fault) {
        self.world().faults.push((line.into(), times, fault));
    }

    /// From now on nothing goes wrong with any.
    pub fn calm(&self) {
        self.world().faults.clear();
    }

    /// What was asked so far, a line each.
    pub fn requests(&self) -> Vec<String> {
        self.world().requests.clone()
    }

    /// Watches that go on from an earlier version than now are answered with `410 Gone`.
    pub fn forget_events(&self) {
        let mut world = self.world();
        world.events.clear();
        world.forgotten = world.version;
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.shared.world.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster").field("version", &self.world().version).finish_non_exhaustive()
    }
}

impl World {
    /// Puts an object there. Its spec's generation rises when the spec changes, and its version in any case.
    fn put(&mut self, path: &str, mut object: Value) -> Value {
        self.version += 1;
        let before = self.objects.get(path);
        let meta = |object: &Value, name: &str| object.pointer(&format!("/metadata/{name}")).cloned();
        let uid = before.and_then(|before| meta(before, "uid")).unwrap_or_else(|| {
            self.uids += 1;
            json!(format!("uid-{}", self.uids))
        });
        let generation = match before {
            Some(before) if before["spec"] == object["spec"] => before["metadata"]["generation"].as_u64().unwrap_or(1),
            Some(before) => before["metadata"]["generation"].as_u64().unwrap_or(1) + 1,
            None => 1,
        };
        let created = before.and_then(|before| meta(before, "creationTimestamp"));
        let status = before.map(|before| before["status"].clone()).filter(|status| !status.is_null());
        let metadata = object["metadata"].as_object_mut().expect("every object has metadata");
        metadata.insert("uid".into(), uid);
        metadata.insert("namespace".into(), json!("default"));
        metadata.insert("generation".into(), json!(generation));
        metadata.insert("resourceVersion".into(), json!(self.version.to_string()));
        metadata.insert("creationTimestamp".into(), created.unwrap_or_else(|| json!("2026-01-01T00:00:00Z")));
        if let (Some(status), true) = (status, object.get("status").is_none()) {
            object["status"] = status;
        }
        let event = if before.is_some() { "MODIFIED" } else { "ADDED" };
        self.events.push((self.version, path.into(), event, object.clone()));
        self.objects.insert(path.into(), object.clone());
        self.controller.saw(path, &object);
        object
    }

    fn delete(&mut self, path: &str) -> Option<Value> {
        let gone = self.objects.remove(path)?;
        self.version += 1;
        self.events.push((self.version, path.into(), "DELETED", gone.clone()));
        Some(gone)
    }

    /// Lets the controller do what it would have done until now.
    fn catch_up(&mut self) {
        for (path, slice) in controller::Controller::slices(&self.objects) {
            if self.objects.get(&path).is_none_or(|now| now["endpoints"] != slice["endpoints"]) {
                self.put(&path, slice);
            }
        }
        for (path, status, is_last) in self.controller.due(&self.objects) {
            let Some(mut object) = self.objects.get(&path).cloned() else { continue };
            if object["status"] != status {
                object["status"] = status;
                self.put(&path, object);
            } else if is_last {
                self.controller.rested(&path);
            }
        }
    }
}
