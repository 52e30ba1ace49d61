//! What controllers make of a change: the status of workloads, and of routes as their gateway says it; and what stands
//! behind Services.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use serde_json::{Value, json};
use tokio::time::Instant;

use super::Objects;

/// How many nodes a DaemonSet runs on.
const NODES: u64 = 2;

pub(super) struct Controller {
    pace: Duration,
    sets: BTreeMap<String, Set>,
    /// What was written since it was looked at at rest.
    restless: BTreeSet<String>,
    /// When each workload's template changed, and from which one; at first there is nothing to replace.
    changed: BTreeMap<String, Changed>,
}

/// A StatefulSet: the template of each of its pods, by number, and of all of them when they were last the same.
struct Set {
    wanted: Wanted,
    pods: Vec<Value>,
    current: Value,
    /// When something else was wanted.
    at: Instant,
}

#[derive(Clone, PartialEq)]
struct Wanted {
    template: Value,
    replicas: usize,
    /// Pods below this number keep what they have.
    partition: usize,
}

struct Changed {
    template: Value,
    /// Whether pods of it never come up.
    fails: bool,
    /// Whether one pod of it never does.
    ails: bool,
    before: Option<Value>,
    at: Instant,
}

impl Default for Controller {
    fn default() -> Self {
        Self {
            pace: Duration::from_secs(1),
            sets: BTreeMap::new(),
            restless: BTreeSet::new(),
            changed: BTreeMap::new(),
        }
    }
}

impl Controller {
    /// The same, of an empty cluster.
    pub(super) fn emptied(&self) -> Self {
        Self { pace: self.pace, ..Self::default() }
    }

    pub(super) const fn set_pace(&mut self, pace: Duration) {
        self.pace = pace;
    }

    pub(super) fn saw(&mut self, path: &str, object: &Value) {
        if is_workload(path) {
            self.restless.insert(path.into());
        }
        if path.contains("/statefulsets/") {
            let wanted = Wanted::of(object);
            match self.sets.get_mut(path) {
                Some(set) if set.wanted == wanted => {}
                Some(set) => {
                    (set.pods, set.current) = set.by_now(self.pace);
                    (set.wanted, set.at) = (wanted, Instant::now());
                }
                None => {
                    let (pods, current) = (vec![wanted.template.clone(); wanted.replicas], wanted.template.clone());
                    self.sets.insert(path.into(), Set { wanted, pods, current, at: Instant::now() });
                }
            }
        }
        let template = match path {
            _ if is_workload(path) => &object["spec"]["template"],
            _ if is_route(path) => &object["spec"],
            _ => return,
        };
        let before = self.changed.get(path).map(|changed| changed.template.clone());
        if before.as_ref() != Some(template) {
            let (fails, ails) = (fails(&template.to_string()), ails(template));
            let changed = Changed { template: template.clone(), fails, ails, before, at: Instant::now() };
            self.changed.insert(path.into(), changed);
        }
    }

    /// The status that each workload and each route has by now, and whether it is the last one.
    pub(super) fn due(&self, objects: &Objects) -> Vec<(String, Value, bool)> {
        let workloads = self.restless.iter().filter_map(|path| objects.get_key_value(path));
        let routes = objects.iter().filter(|(path, _)| is_route(path));
        workloads
            .map(|(path, object)| {
                // Asked first: what is the last one a moment later is not known to be this one.
                let is_last = !self.waits(path);
                (path.clone(), self.status(path, object), is_last)
            })
            .chain(routes.map(|(path, object)| (path.clone(), self.routed(path, object, objects), false)))
            .collect()
    }

    /// Whether time alone will change its status.
    fn waits(&self, path: &str) -> bool {
        let is_slow = |at: Instant| at.elapsed() < self.pace;
        self.sets.get(path).is_some_and(|set| is_slow(set.at))
            || self.changed.get(path).is_some_and(|changed| changed.fails || is_slow(changed.at))
    }

    /// It has its last status, and is not looked at again until it is written.
    pub(super) fn rested(&mut self, path: &str) {
        self.restless.remove(path);
    }

    /// What stands behind each Service with a selector: the ready ones of the pods that it selects.
    pub(super) fn slices(objects: &Objects) -> Vec<(String, Value)> {
        let services = objects.iter().filter(|(path, _)| path.contains("/services/"));
        services
            .filter(|(_, service)| service["spec"]["selector"].is_object())
            .map(|(_, service)| {
                let selector = service["spec"]["selector"].as_object().into_iter().flatten();
                let mut endpoints = Vec::new();
                for (_, pod) in objects.iter().filter(|(path, _)| path.contains("/pods/")) {
                    if selector.clone().all(|(name, value)| pod["metadata"]["labels"][name] == *value) {
                        let conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
                        let is_ready = |it: &Value| it["type"] == "Ready" && it["status"] == "True";
                        endpoints.push(json!({
                            "conditions": { "ready": conditions.clone().any(is_ready) },
                            "targetRef": { "kind": "Pod", "name": pod["metadata"]["name"] },
                        }));
                    }
                }
                let name = service["metadata"]["name"].as_str().unwrap_or_default();
                let slice = json!({
                    "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
                    "metadata": { "name": name, "labels": { "kubernetes.io/service-name": name } },
                    "endpoints": endpoints,
                });
                (super::wire::path_of(&slice), slice)
            })
            .collect()
    }

    /// Every parent has seen the route a while after it changed, and looks for the Services that it names.
    fn routed(&self, path: &str, object: &Value, objects: &Objects) -> Value {
        let Some(changed) = self.changed.get(path) else { return object["status"].clone() };
        if changed.before.is_some() && changed.at.elapsed() < self.pace {
            return object["status"].clone();
        }
        let rules = object["spec"]["rules"].as_array().into_iter().flatten();
        let mut named = rules.flat_map(|rule| rule["backendRefs"].as_array().into_iter().flatten());
        let lost = named.find(|it| {
            let service = it["name"].as_str().unwrap_or_default();
            !objects.contains_key(&format!("/api/v1/namespaces/default/services/{service}"))
        });
        let condition = |name: &str, status: &str, reason: &str| {
            json!({ "type": name, "status": status, "reason": reason, "message": "",
                "observedGeneration": object["metadata"]["generation"] })
        };
        let accepted = match object["spec"]["hostnames"][0] == "taken.example.com" {
            true => condition("Accepted", "False", "NoMatchingListenerHostname"),
            false => condition("Accepted", "True", "Accepted"),
        };
        let resolved = match lost {
            Some(_) => condition("ResolvedRefs", "False", "BackendNotFound"),
            None => condition("ResolvedRefs", "True", "ResolvedRefs"),
        };
        let parents = object["spec"]["parentRefs"].as_array().into_iter().flatten();
        let parents: Vec<Value> =
            parents.map(|parent| json!({ "parentRef": parent, "conditions": [accepted, resolved] })).collect();
        json!({ "parents": parents })
    }

    fn status(&self, path: &str, object: &Value) -> Value {
        if let Some(set) = self.sets.get(path) {
            return set.status(self.pace, &object["metadata"]["generation"]);
        }
        let Some(changed) = self.changed.get(path) else { return object["status"].clone() };
        let daemons = path.contains("/daemonsets/");
        let wanted = if daemons { NODES } else { object["spec"]["replicas"].as_u64().unwrap_or(1) };
        let elapsed = changed.at.elapsed();
        let paused = object["spec"]["paused"] == true;
        let done = match changed.before {
            None => true,
            Some(_) => elapsed >= self.pace && !paused,
        };
        // One new pod that never comes up, beside the old ones.
        let fails = changed.fails;
        let updated = match (done, fails) {
            (true, false) => wanted,
            (true, true) => wanted.min(1),
            (false, _) => 0,
        };
        let available = if done { wanted.saturating_sub(u64::from(fails || changed.ails)) } else { wanted };
        let generation = object["metadata"]["generation"].clone();
        if daemons {
            return json!({
                "observedGeneration": generation, "desiredNumberScheduled": wanted,
                "updatedNumberScheduled": updated, "numberAvailable": available, "numberReady": available,
            });
        }
        let mut status = json!({
            "observedGeneration": generation, "replicas": wanted, "updatedReplicas": updated,
            "readyReplicas": available, "availableReplicas": available,
        });
        let deadline = Duration::from_secs(object["spec"]["progressDeadlineSeconds"].as_u64().unwrap_or(600));
        let (progress, reason) = match updated == wanted && available == wanted {
            true => ("True", "NewReplicaSetAvailable"),
            false if elapsed >= deadline && !paused => ("False", "ProgressDeadlineExceeded"),
            false => ("True", "ReplicaSetUpdated"),
        };
        let message = if progress == "False" { "ReplicaSet \"web\" has timed out progressing." } else { "" };
        status["conditions"] =
            json!([{ "type": "Progressing", "status": progress, "reason": reason, "message": message }]);
        status
    }
}

impl Wanted {
    fn of(object: &Value) -> Self {
        let number = |path: &str, none: u64| object.pointer(path).and_then(Value::as_u64).unwrap_or(none) as usize;
        Self {
            template: object["spec"]["template"].clone(),
            replicas: number("/spec/replicas", 1),
            partition: number("/spec/updateStrategy/rollingUpdate/partition", 0),
        }
    }
}

impl Set {
    /// What its pods are of, and what they all were last.
    fn by_now(&self, pace: Duration) -> (Vec<Value>, Value) {
        let Wanted { template, replicas, partition } = &self.wanted;
        let (mut pods, mut current) = (self.pods.clone(), self.current.clone());
        if self.at.elapsed() >= pace {
            // New ones are made as they would be replaced.
            pods.resize(*replicas, current.clone());
            // From the highest number down, until one does not come up.
            let most = if fails(&template.to_string()) { 1 } else { *replicas };
            pods.iter_mut().skip(*partition).rev().take(most).for_each(|pod| *pod = template.clone());
            if pods.iter().all(|pod| pod == template) && most == *replicas {
                current = template.clone();
            }
        }
        (pods, current)
    }

    fn status(&self, pace: Duration, generation: &Value) -> Value {
        let (pods, current) = self.by_now(pace);
        let count = |is: &dyn Fn(&Value) -> bool| pods.iter().filter(|pod| is(pod)).count();
        let revision = |template: &Value| format!("rev-{}", crate::workload::hash(template));
        let ready = count(&|pod| !fails(&pod.to_string())) - usize::from(pods.iter().any(ails));
        json!({
            "observedGeneration": generation, "replicas": pods.len(), "readyReplicas": ready,
            "availableReplicas": ready, "updatedReplicas": count(&|pod| *pod == self.wanted.template),
            "currentRevision": revision(&current), "updateRevision": revision(&self.wanted.template),
        })
    }
}

/// Whether pods of it never come up.
fn fails(template: &str) -> bool {
    template.contains(":bad\"") || template.contains(":nopull\"")
}

/// Whether one pod of it is never ready, and all others are.
fn ails(template: &Value) -> bool {
    template.to_string().contains(":ailing\"")
}

fn is_workload(path: &str) -> bool {
    ["/deployments/", "/statefulsets/", "/daemonsets/"].iter().any(|kind| path.contains(kind))
}

fn is_route(path: &str) -> bool {
    path.contains("/httproutes/")
}
