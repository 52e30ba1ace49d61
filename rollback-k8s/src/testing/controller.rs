//! What the controllers of workloads make of a change, as far as its status tells.

use std::{collections::BTreeMap, time::Duration};

use serde_json::{Value, json};
use tokio::time::Instant;

use super::Objects;

/// How many nodes a DaemonSet runs on.
const NODES: u64 = 2;

pub(super) struct Controller {
    pace: Duration,
    /// When each workload's template changed, and from which one; at first there is nothing to replace.
    changed: BTreeMap<String, Changed>,
}

struct Changed {
    template: Value,
    before: Option<Value>,
    at: Instant,
}

impl Default for Controller {
    fn default() -> Self {
        Self { pace: Duration::from_secs(1), changed: BTreeMap::new() }
    }
}

impl Controller {
    /// The same, of an empty cluster.
    pub(super) fn emptied(&self) -> Self {
        Self { pace: self.pace, changed: BTreeMap::new() }
    }

    pub(super) const fn set_pace(&mut self, pace: Duration) {
        self.pace = pace;
    }

    pub(super) fn saw(&mut self, path: &str, object: &Value) {
        if !is_workload(path) {
            return;
        }
        let template = &object["spec"]["template"];
        let before = self.changed.get(path).map(|changed| changed.template.clone());
        if before.as_ref() != Some(template) {
            let changed = Changed { template: template.clone(), before, at: Instant::now() };
            self.changed.insert(path.into(), changed);
        }
    }

    /// The status that each workload has by now.
    pub(super) fn due(&self, objects: &Objects) -> Vec<(String, Value)> {
        let workloads = objects.iter().filter(|(path, _)| is_workload(path));
        workloads.map(|(path, object)| (path.clone(), self.status(path, object))).collect()
    }

    fn status(&self, path: &str, object: &Value) -> Value {
        let Some(changed) = self.changed.get(path) else { return object["status"].clone() };
        let daemons = path.contains("/daemonsets/");
        let wanted = if daemons { NODES } else { object["spec"]["replicas"].as_u64().unwrap_or(1) };
        let images = changed.template.to_string();
        let elapsed = changed.at.elapsed();
        let paused = object["spec"]["paused"] == true;
        let done = match changed.before {
            None => true,
            Some(_) => elapsed >= self.pace && !paused,
        };
        // One new pod that never comes up, beside the old ones.
        let fails = images.contains(":bad\"") || images.contains(":nopull\"");
        let updated = match (done, fails) {
            (true, false) => wanted,
            (true, true) => wanted.min(1),
            (false, _) => 0,
        };
        let available = if done && !fails { wanted } else { wanted.saturating_sub(u64::from(fails && done)) };
        let generation = object["metadata"]["generation"].clone();
        if daemons {
            return json!({
                "observedGeneration": generation, "desiredNumberScheduled": wanted,
                "updatedNumberScheduled": updated, "numberAvailable": available, "numberReady": available,
            });
        }
        let hash = |template: &Value| format!("rev-{}", template.to_string().len());
        let mut status = json!({
            "observedGeneration": generation, "replicas": wanted, "updatedReplicas": updated,
            "readyReplicas": available, "availableReplicas": available,
        });
        if path.contains("/statefulsets/") {
            let now = hash(&changed.template);
            let old = changed.before.as_ref().map_or_else(|| now.clone(), hash);
            status["currentRevision"] = json!(if updated == wanted { now.clone() } else { old });
            status["updateRevision"] = json!(now);
            return status;
        }
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

fn is_workload(path: &str) -> bool {
    ["/deployments/", "/statefulsets/", "/daemonsets/"].iter().any(|kind| path.contains(kind))
}
