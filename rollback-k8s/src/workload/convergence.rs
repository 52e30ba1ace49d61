//! Whether a workload's controller has done what its spec says: kubectl's rules, with their gaps closed. Pure.
//!
//! The rules are those of `kubectl rollout status` (`rollout_status.go`). The gaps: a paused Deployment never gets
//! anywhere and kubectl waits for ever; `ReplicaFailure` is told at once and kubectl does not look; a StatefulSet or
//! DaemonSet that is updated only when its pods are deleted never converges by itself; no pods prove nothing; and a
//! StatefulSet is done when its pods are of the template *and* its revisions are one. kubectl looks at one of the two, by
//! whether a partition is written: by the revisions alone a template that was put back half way is done at once, while pods
//! of the other one still serve.

use serde_json::Value;

use super::Kind;
use crate::object::{number, text};

/// How far a controller is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Convergence {
    /// All pods are of the template, and up.
    Done,
    /// It works on it: what is still waited for.
    Working(String),
    /// It said that it cannot, or will not: why.
    Failed(String),
}

/// What the controller of this kind has made of this object.
pub(crate) fn convergence(kind: Kind, object: &Value) -> Convergence {
    use Convergence::{Done, Failed, Working};
    if let Some(why) = never(kind, object) {
        return Failed(why);
    }
    if !is_seen(object) {
        return Working("its controller has not seen the change yet".into());
    }
    let status = |name: &str| number(object, &format!("/status/{name}"));
    match kind {
        Kind::Deployment => {
            if let Some(why) = condition(object, "Progressing", "False", Some("ProgressDeadlineExceeded")) {
                return Failed(format!("its progress deadline has passed: {why}"));
            }
            if let Some(why) = condition(object, "ReplicaFailure", "True", None) {
                return Failed(format!("pods cannot be made: {why}"));
            }
            let (wanted, all) = (replicas(object), status("replicas"));
            let (updated, available) = (status("updatedReplicas"), status("availableReplicas"));
            if updated < wanted {
                Working(format!("{updated} of {wanted} new pods are there"))
            } else if all > updated {
                Working(format!("{} old pods are still there", all - updated))
            } else if available < updated {
                Working(format!("{available} of {updated} new pods are available"))
            } else {
                Done
            }
        }
        Kind::DaemonSet => {
            let wanted = status("desiredNumberScheduled");
            let (updated, available) = (status("updatedNumberScheduled"), status("numberAvailable"));
            if updated < wanted {
                Working(format!("{updated} of {wanted} pods are new"))
            } else if available < wanted {
                Working(format!("{available} of {wanted} pods are available"))
            } else {
                Done
            }
        }
        Kind::StatefulSet => {
            let wanted = replicas(object);
            let (ready, updated) = (status("readyReplicas"), status("updatedReplicas"));
            let same = text(object, "/status/updateRevision") == text(object, "/status/currentRevision");
            if status("observedGeneration") == 0 {
                Working("its controller has not seen it yet".into())
            } else if ready < wanted {
                Working(format!("{ready} of {wanted} pods are ready"))
            } else if updated < wanted {
                Working(format!("{updated} of {wanted} pods are of the template"))
            } else if !same {
                Working("its controller has not called it done yet".into())
            } else {
                Done
            }
        }
    }
}

/// Why pods of more than one template are there, or may be. One that is not ready is none of another template.
pub(crate) fn mixed(kind: Kind, object: &Value) -> Option<String> {
    let status = |name: &str| number(object, &format!("/status/{name}"));
    let others = match kind {
        _ if !is_seen(object) => return Some("its controller has not seen the last change yet".into()),
        Kind::Deployment => status("replicas") - status("updatedReplicas"),
        Kind::DaemonSet => {
            status("currentNumberScheduled").min(status("desiredNumberScheduled")) - status("updatedNumberScheduled")
        }
        // A template that was put back half way has one revision, and pods of two.
        Kind::StatefulSet => {
            let same = text(object, "/status/updateRevision") == text(object, "/status/currentRevision");
            (status("replicas") - status("updatedReplicas")).max(i64::from(!same))
        }
    };
    (others > 0).then(|| format!("{others} pods of another one are still there"))
}

/// Why waiting would never end, whatever the controller does.
pub(crate) fn never(kind: Kind, object: &Value) -> Option<String> {
    match kind {
        Kind::Deployment if object.pointer("/spec/paused").and_then(Value::as_bool) == Some(true) => {
            Some("it is paused: resume it (kubectl rollout resume)".into())
        }
        Kind::StatefulSet | Kind::DaemonSet if text(object, "/spec/updateStrategy/type") == "OnDelete" => {
            Some("its pods are replaced only when somebody deletes them (OnDelete): use RollingUpdate".into())
        }
        Kind::StatefulSet if number(object, "/spec/updateStrategy/rollingUpdate/partition") > 0 => Some(format!(
            "its pods below {} are held back by a partition: set that to 0",
            number(object, "/spec/updateStrategy/rollingUpdate/partition")
        )),
        _ => None,
    }
}

/// How many pods there are to be. The API server fills in 1 where nothing was said.
pub(crate) fn replicas(object: &Value) -> i64 {
    object.pointer("/spec/replicas").and_then(Value::as_i64).unwrap_or(1)
}

/// How many pods its controller is to keep up; of a DaemonSet, as far as the controller has said.
pub(crate) fn wanted(kind: Kind, object: &Value) -> i64 {
    match kind {
        Kind::DaemonSet => number(object, "/status/desiredNumberScheduled"),
        Kind::Deployment | Kind::StatefulSet => replicas(object),
    }
}

/// Whether the status tells of the spec as it is now.
pub(crate) fn is_seen(object: &Value) -> bool {
    number(object, "/metadata/generation") <= number(object, "/status/observedGeneration")
}

/// Pods of the template as it is now, and all of them.
pub(crate) fn pods(kind: Kind, object: &Value) -> (i64, i64) {
    // Counts of an earlier generation tell of other pods.
    let seen = is_seen(object);
    let of = |new: &str, all: &str| {
        let all = number(object, &format!("/status/{all}"));
        (if seen { number(object, &format!("/status/{new}")).min(all) } else { 0 }, all)
    };
    match kind {
        Kind::DaemonSet => of("updatedNumberScheduled", "desiredNumberScheduled"),
        Kind::Deployment | Kind::StatefulSet => of("updatedReplicas", "replicas"),
    }
}

/// The message of a condition that stands so, for this reason if one is asked for.
fn condition(object: &Value, name: &str, status: &str, reason: Option<&str>) -> Option<String> {
    let conditions = object.pointer("/status/conditions").and_then(Value::as_array)?;
    let found = conditions.iter().find(|it| text(it, "/type") == name && text(it, "/status") == status)?;
    if reason.is_some_and(|reason| text(found, "/reason") != reason) {
        return None;
    }
    let message = text(found, "/message");
    Some(if message.is_empty() { text(found, "/reason").to_owned() } else { message.to_owned() })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn deployment(status: Value) -> Value {
        json!({ "metadata": { "generation": 2 }, "spec": { "replicas": 3 }, "status": status })
    }

    fn stands(kind: Kind, object: &Value) -> String {
        match convergence(kind, object) {
            Convergence::Done => "done".into(),
            Convergence::Working(why) => format!("working: {why}"),
            Convergence::Failed(why) => format!("failed: {why}"),
        }
    }

    #[test]
    fn a_deployment_is_done_when_kubectl_says_so_and_given_up_sooner() {
        let table = [
            (json!({}), "working: its controller has not seen the change yet"),
            // Everything is up, but of the generation before.
            (
                json!({"observedGeneration": 1, "replicas": 3, "updatedReplicas": 3, "availableReplicas": 3}),
                "working: its controller has not seen the change yet",
            ),
            (
                json!({"observedGeneration": 2, "replicas": 4, "updatedReplicas": 1}),
                "working: 1 of 3 new pods are there",
            ),
            (
                json!({"observedGeneration": 2, "replicas": 4, "updatedReplicas": 3, "availableReplicas": 4}),
                "working: 1 old pods are still there",
            ),
            (
                json!({"observedGeneration": 2, "replicas": 3, "updatedReplicas": 3, "availableReplicas": 2}),
                "working: 2 of 3 new pods are available",
            ),
            (json!({"observedGeneration": 2, "replicas": 3, "updatedReplicas": 3, "availableReplicas": 3}), "done"),
            (
                json!({"observedGeneration": 2, "conditions": [{"type": "Progressing", "status": "False",
                    "reason": "ProgressDeadlineExceeded", "message": "web-1 has timed out"}]}),
                "failed: its progress deadline has passed: web-1 has timed out",
            ),
            (
                json!({"observedGeneration": 2, "conditions": [{"type": "ReplicaFailure", "status": "True",
                    "reason": "FailedCreate", "message": "exceeded quota"}]}),
                "failed: pods cannot be made: exceeded quota",
            ),
        ];
        for (status, wanted) in table {
            assert_eq!(stands(Kind::Deployment, &deployment(status.clone())), wanted, "{status}");
        }
        let mut paused = deployment(json!({"observedGeneration": 2}));
        paused["spec"]["paused"] = json!(true);
        assert!(stands(Kind::Deployment, &paused).starts_with("failed: it is paused"));
    }

    #[test]
    fn a_stateful_set_is_done_when_its_revisions_are_one() {
        let set = |status: Value| json!({ "metadata": {"generation": 2}, "spec": {"replicas": 2}, "status": status });
        let table = [
            (json!({}), "working: its controller has not seen the change yet"),
            (json!({"observedGeneration": 2, "readyReplicas": 1}), "working: 1 of 2 pods are ready"),
            (
                json!({"observedGeneration": 2, "readyReplicas": 2, "updatedReplicas": 1, "currentRevision": "a", "updateRevision": "b"}),
                "working: 1 of 2 pods are of the template",
            ),
            // Put back half way: the revisions are one again at once (observed on 1.20).
            (
                json!({"observedGeneration": 2, "readyReplicas": 2, "updatedReplicas": 1, "currentRevision": "a", "updateRevision": "a"}),
                "working: 1 of 2 pods are of the template",
            ),
            (
                json!({"observedGeneration": 2, "readyReplicas": 2, "updatedReplicas": 2, "currentRevision": "a", "updateRevision": "b"}),
                "working: its controller has not called it done yet",
            ),
            (
                json!({"observedGeneration": 2, "readyReplicas": 2, "updatedReplicas": 2, "currentRevision": "b", "updateRevision": "b"}),
                "done",
            ),
        ];
        for (status, wanted) in table {
            assert_eq!(stands(Kind::StatefulSet, &set(status.clone())), wanted, "{status}");
        }
        let mut held = set(json!({}));
        held["spec"]["updateStrategy"] = json!({"type": "RollingUpdate", "rollingUpdate": {"partition": 1}});
        assert!(stands(Kind::StatefulSet, &held).contains("partition"));
        held["spec"]["updateStrategy"] = json!({"type": "OnDelete"});
        assert!(stands(Kind::StatefulSet, &held).contains("OnDelete"));
    }

    #[test]
    fn a_pod_that_is_not_ready_is_no_pod_of_another_template() {
        let at = |generation: i64, status: Value| {
            let mut object = json!({ "metadata": { "generation": generation }, "status": status });
            object["status"]["observedGeneration"] = json!(2);
            object
        };
        let deployment = |updated, all| json!({"replicas": all, "updatedReplicas": updated, "availableReplicas": 0});
        let set = |updated, now| json!({"replicas": 3, "updatedReplicas": updated, "readyReplicas": 0, "currentRevision": now, "updateRevision": "b"});
        let daemons = |updated| json!({"desiredNumberScheduled": 3, "currentNumberScheduled": 2, "updatedNumberScheduled": updated});
        let table = [
            (Kind::Deployment, at(2, deployment(3, 3)), false),
            (Kind::Deployment, at(2, deployment(3, 4)), true),
            (Kind::Deployment, at(3, deployment(3, 3)), true),
            (Kind::StatefulSet, at(2, set(3, "b")), false),
            (Kind::StatefulSet, at(2, set(3, "a")), true),
            (Kind::StatefulSet, at(2, set(2, "b")), true),
            (Kind::DaemonSet, at(2, daemons(2)), false),
            (Kind::DaemonSet, at(2, daemons(1)), true),
        ];
        for (kind, object, wanted) in table {
            assert_eq!(mixed(kind, &object).is_some(), wanted, "{kind:?} {object}");
        }
    }

    #[test]
    fn a_daemon_set_is_done_when_every_node_has_a_new_pod_that_is_up() {
        let set = |updated, available| {
            json!({ "metadata": {"generation": 2}, "status": {"observedGeneration": 2, "desiredNumberScheduled": 2,
                "updatedNumberScheduled": updated, "numberAvailable": available} })
        };
        assert_eq!(stands(Kind::DaemonSet, &set(1, 2)), "working: 1 of 2 pods are new");
        assert_eq!(stands(Kind::DaemonSet, &set(2, 1)), "working: 1 of 2 pods are available");
        assert_eq!(stands(Kind::DaemonSet, &set(2, 2)), "done");
    }
}
