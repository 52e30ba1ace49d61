//! What ECS knows, and how it describes it.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use jiff::Timestamp;
use serde_json::{Map, Value, json};

/// A task definition's revisions, by family; the first is revision 1.
pub(super) type Families = BTreeMap<String, Vec<TaskDefinition>>;

/// A revision of a task definition. How its tasks behave is in the environment of its containers.
#[derive(Clone, Debug)]
pub(super) struct TaskDefinition {
    pub(super) arn: String,
    pub(super) family: String,
    pub(super) revision: u64,
    pub(super) inactive: bool,
    pub(super) registered: Timestamp,
    /// As it was registered.
    pub(super) body: Map<String, Value>,
    /// A list of keys and values.
    pub(super) tags: Value,
}

/// How tasks of a task definition end, if they do not run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) reason: String,
    pub(super) exit_code: Option<i64>,
}

impl TaskDefinition {
    pub(super) fn containers(&self) -> &[Value] {
        self.body.get("containerDefinitions").and_then(Value::as_array).map_or(&[], Vec::as_slice)
    }

    /// What its environment says of how its tasks end.
    pub(super) fn failure(&self) -> Option<Failure> {
        let said = |name: &str| {
            let variables = self.containers().iter().flat_map(|it| it["environment"].as_array()).flatten();
            let found = variables.filter(|it| it["name"] == name).find_map(|it| it["value"].as_str());
            found.filter(|value| !value.is_empty()).map(str::to_owned)
        };
        if let Some(reason) = said("SIMULATOR_STOPPED_REASON") {
            return Some(Failure { reason, exit_code: None });
        }
        let exit_code = said("SIMULATOR_EXIT_CODE")?.parse().ok()?;
        Some(Failure { reason: "Essential container in task exited".into(), exit_code: Some(exit_code) })
    }

    pub(super) fn describe(&self) -> Value {
        let mut said = Value::Object(self.body.clone());
        said["taskDefinitionArn"] = json!(self.arn);
        said["family"] = json!(self.family);
        said["revision"] = json!(self.revision);
        said["status"] = json!(if self.inactive { "INACTIVE" } else { "ACTIVE" });
        said["registeredAt"] = epoch(self.registered);
        said["compatibilities"] = json!(["EC2", "FARGATE"]);
        for name in ["volumes", "placementConstraints"] {
            if said.get(name).is_none() {
                said[name] = json!([]);
            }
        }
        said
    }
}

/// A service and all that happened to it.
#[derive(Clone, Debug)]
pub(super) struct Service {
    pub(super) name: String,
    pub(super) arn: String,
    pub(super) cluster_arn: String,
    pub(super) created: Timestamp,
    pub(super) desired: u64,
    /// `ECS`, `CODE_DEPLOY` or `EXTERNAL`.
    pub(super) controller: String,
    /// `deploymentConfiguration`, as deployments take it when they begin.
    pub(super) config: Value,
    pub(super) load_balancers: Value,
    /// What it was told last, by a person or by a rollback of its own.
    pub(super) task_definition: String,
    pub(super) revisions: Vec<Revision>,
    pub(super) deployments: Vec<Deployment>,
    pub(super) tasks: Vec<Task>,
    pub(super) events: VecDeque<(Timestamp, String)>,
    /// From now on no rollback of its own comes to its end.
    pub(super) fails_rollbacks: bool,
}

/// A service revision: what was deployed together.
#[derive(Clone, Debug)]
pub(super) struct Revision {
    pub(super) arn: String,
    pub(super) task_definition: String,
    pub(super) created: Timestamp,
}

/// A service deployment.
#[derive(Clone, Debug)]
pub(super) struct Deployment {
    pub(super) arn: String,
    pub(super) created: Timestamp,
    pub(super) started: Option<Timestamp>,
    pub(super) finished: Option<Timestamp>,
    pub(super) stopped: Option<Timestamp>,
    pub(super) updated: Timestamp,
    /// Revisions, each with the share of production traffic that it had when the deployment began.
    pub(super) sources: Vec<String>,
    pub(super) target: String,
    pub(super) status: &'static str,
    pub(super) reason: Option<String>,
    pub(super) stage: Option<&'static str>,
    pub(super) hooks: Vec<Hook>,
    pub(super) config: Value,
    /// The target's shares, in percent. None for a rolling update: tasks are all there is.
    pub(super) weights: Option<Weights>,
    pub(super) rollback: Option<(String, Timestamp, String)>,
    pub(super) failures: u64,
    /// The alarms that it listens to; one that fired when it began is not among them, nor any other then.
    pub(super) alarms: Vec<String>,
    pub(super) triggered: Vec<String>,
    pub(super) legs: VecDeque<Leg>,
    /// When the present leg is over, if time ends it.
    pub(super) until: Option<Timestamp>,
    /// Whether the present leg was begun.
    pub(super) begun: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Weights {
    pub(super) production: f64,
    pub(super) test: f64,
}

/// A pause hook that was met.
#[derive(Clone, Debug)]
pub(super) struct Hook {
    pub(super) id: String,
    pub(super) status: &'static str,
    pub(super) expires: Timestamp,
    pub(super) action: String,
}

/// One part of a deployment's course.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Leg {
    /// Created, and not begun.
    Pending,
    /// A stage at which a hook may pause it.
    Stage(&'static str),
    /// The target's tasks start beside the others.
    ScaleUp,
    /// Test traffic goes to the target.
    Test,
    /// So many percent of production traffic go to the target.
    Shift(f64),
    /// Nothing happens but that alarms are listened to.
    Bake(&'static str, Duration),
    /// The other tasks stop.
    CleanUp,
    /// Tasks are replaced in batches.
    Roll,
    /// A rollback was asked for.
    GoBack,
    /// Traffic is back; tasks of the source start where there are too few.
    Restore,
    /// The target's tasks stop.
    Clear,
}

impl Deployment {
    pub(super) fn is_ongoing(&self) -> bool {
        !matches!(self.status, "SUCCESSFUL" | "STOPPED" | "ROLLBACK_SUCCESSFUL" | "ROLLBACK_FAILED")
    }

    pub(super) fn is_going_back(&self) -> bool {
        self.status.starts_with("ROLLBACK")
    }

    /// The hook that waits.
    pub(super) fn paused(&self) -> Option<&Hook> {
        self.hooks.last().filter(|hook| hook.status == "AWAITING_ACTION")
    }

    pub(super) fn breaker(&self, name: &str) -> bool {
        self.config["deploymentCircuitBreaker"][name] == true
    }

    /// After so many failed tasks the circuit breaker trips.
    pub(super) fn threshold(&self, desired: u64) -> u64 {
        let set = &self.config["deploymentCircuitBreaker"]["thresholdConfiguration"];
        let value = set["value"].as_u64().unwrap_or(50);
        match set["type"].as_str() {
            Some("COUNT") => value,
            Some("UNBOUNDED_PERCENT") => (desired * value).div_ceil(100),
            _ => (desired * value).div_ceil(100).clamp(3, 200),
        }
    }

    pub(super) fn describe(&self, service: &Service) -> Value {
        let of = |revision: &String, target: bool| {
            let mut said = service.count(revision);
            // Whoever is no longer wanted has no requested task.
            let wanted = if self.status == "SUCCESSFUL" {
                target
            } else if self.is_going_back() {
                !target
            } else {
                true
            };
            said["requestedTaskCount"] = json!(if wanted { service.desired } else { 0 });
            if let Some(Weights { production, test }) = self.weights {
                let share = |all: f64| if target { all } else { 100.0 - all };
                said["requestedProductionTrafficWeight"] = json!(share(production));
                said["requestedTestTrafficWeight"] = json!(share(test));
            }
            said
        };
        let monitors = |on: bool, tripped: bool| match (on, tripped) {
            (false, _) => "DISABLED",
            (true, true) => "TRIGGERED",
            (true, false) if self.is_ongoing() => "MONITORING",
            (true, false) => "MONITORING_COMPLETE",
        };
        let mut said = json!({
            "serviceDeploymentArn": self.arn,
            "serviceArn": service.arn,
            "clusterArn": service.cluster_arn,
            "createdAt": epoch(self.created),
            "updatedAt": epoch(self.updated),
            "sourceServiceRevisions": self.sources.iter().map(|it| of(it, false)).collect::<Vec<_>>(),
            "targetServiceRevision": of(&self.target, true),
            "status": self.status,
            "deploymentConfiguration": self.config,
            "lifecycleHookDetails": self.hooks.iter().map(Hook::describe).collect::<Vec<_>>(),
            "deploymentCircuitBreaker": {
                "status": monitors(self.breaker("enable"), self.failures >= self.threshold(service.desired)),
                "failureCount": self.failures,
                "threshold": self.threshold(service.desired),
            },
            "alarms": {
                "status": monitors(!self.alarms.is_empty(), !self.triggered.is_empty()),
                "alarmNames": self.alarms,
                "triggeredAlarmNames": self.triggered,
            },
        });
        put(&mut said, "statusReason", self.reason.as_ref().map(|it| json!(it)));
        put(&mut said, "lifecycleStage", self.stage.map(|it| json!(it)));
        put(&mut said, "startedAt", self.started.map(epoch));
        put(&mut said, "finishedAt", self.finished.map(epoch));
        put(&mut said, "stoppedAt", self.stopped.map(epoch));
        let rollback = self.rollback.as_ref().map(|(reason, at, revision)| {
            json!({ "reason": reason, "startedAt": epoch(*at), "serviceRevisionArn": revision })
        });
        put(&mut said, "rollback", rollback);
        said
    }

    pub(super) fn brief(&self, service: &Service) -> Value {
        let mut said = json!({
            "serviceDeploymentArn": self.arn,
            "serviceArn": service.arn,
            "clusterArn": service.cluster_arn,
            "createdAt": epoch(self.created),
            "targetServiceRevisionArn": self.target,
            "status": self.status,
        });
        put(&mut said, "statusReason", self.reason.as_ref().map(|it| json!(it)));
        put(&mut said, "startedAt", self.started.map(epoch));
        put(&mut said, "finishedAt", self.finished.map(epoch));
        said
    }
}

impl Hook {
    fn describe(&self) -> Value {
        json!({
            "hookId": self.id, "targetType": "PAUSE", "status": self.status, "expiresAt": epoch(self.expires),
            "timeoutAction": self.action,
        })
    }
}

/// A task of a service.
#[derive(Clone, Debug)]
pub(super) struct Task {
    pub(super) arn: String,
    pub(super) revision: String,
    pub(super) task_definition: String,
    pub(super) containers: Vec<(String, String)>,
    pub(super) created: Timestamp,
    pub(super) runs_at: Timestamp,
    /// How it will end when it was to run.
    pub(super) failure: Option<Failure>,
    pub(super) started: Option<Timestamp>,
    pub(super) stopped: Option<(Timestamp, String)>,
}

impl Task {
    pub(super) fn runs(&self) -> bool {
        self.started.is_some() && self.stopped.is_none()
    }

    pub(super) fn is_pending(&self) -> bool {
        self.started.is_none() && self.stopped.is_none()
    }

    pub(super) fn describe(&self, service: &Service) -> Value {
        let last = match (self.started, &self.stopped) {
            (_, Some(_)) => "STOPPED",
            (Some(_), None) => "RUNNING",
            (None, None) => "PENDING",
        };
        let exit = self.failure.as_ref().filter(|_| self.stopped.is_some()).and_then(|it| it.exit_code);
        let containers = self.containers.iter().map(|(name, image)| {
            let mut said = json!({ "name": name, "image": image, "taskArn": self.arn, "lastStatus": last });
            put(&mut said, "exitCode", exit.map(|it| json!(it)));
            said
        });
        let mut said = json!({
            "taskArn": self.arn,
            "clusterArn": service.cluster_arn,
            "taskDefinitionArn": self.task_definition,
            "group": format!("service:{}", service.name),
            "startedBy": deployment_id(&self.revision),
            "lastStatus": last,
            "desiredStatus": if self.stopped.is_some() { "STOPPED" } else { "RUNNING" },
            "launchType": "FARGATE",
            "containers": containers.collect::<Vec<_>>(),
            "createdAt": epoch(self.created),
            "version": 1,
        });
        put(&mut said, "startedAt", self.started.map(epoch));
        if let Some((at, reason)) = &self.stopped {
            said["stoppedAt"] = epoch(*at);
            said["stoppedReason"] = json!(reason);
            said["stopCode"] = json!(match (&self.failure, exit) {
                (None, _) => "ServiceSchedulerInitiated",
                (Some(_), Some(_)) => "EssentialContainerExited",
                (Some(_), None) => "TaskFailedToStart",
            });
        }
        said
    }
}

impl Service {
    pub(super) fn current(&self) -> Option<&Deployment> {
        self.deployments.last()
    }

    pub(super) fn revision(&self, arn: &str) -> Option<&Revision> {
        self.revisions.iter().find(|it| it.arn == arn)
    }

    /// The revision that is in place when nothing is on its way.
    pub(super) fn in_place(&self) -> Option<String> {
        let last = self.current()?;
        Some(match (&last.rollback, last.status) {
            (Some((.., revision)), "ROLLBACK_SUCCESSFUL") => revision.clone(),
            _ => last.target.clone(),
        })
    }

    pub(super) fn running(&self, revision: &str) -> u64 {
        self.tasks.iter().filter(|task| task.revision == revision && task.runs()).count() as u64
    }

    pub(super) fn pending(&self, revision: &str) -> u64 {
        self.tasks.iter().filter(|task| task.revision == revision && task.is_pending()).count() as u64
    }

    fn count(&self, revision: &str) -> Value {
        json!({
            "arn": revision,
            "requestedTaskCount": self.desired,
            "runningTaskCount": self.running(revision),
            "pendingTaskCount": self.pending(revision),
        })
    }

    pub(super) fn say(&mut self, at: Timestamp, message: String) {
        self.events.push_front((at, message));
        self.events.truncate(100);
    }

    pub(super) fn describe(&self) -> Value {
        let running = self.tasks.iter().filter(|task| task.runs()).count();
        let pending = self.tasks.iter().filter(|task| task.is_pending()).count();
        let events = self.events.iter().enumerate().map(|(at, (when, message))| {
            let id = format!("{:032x}", self.events.len() - at);
            json!({ "id": id, "createdAt": epoch(*when), "message": message })
        });
        let mut said = json!({
            "serviceArn": self.arn,
            "serviceName": self.name,
            "clusterArn": self.cluster_arn,
            "status": "ACTIVE",
            "desiredCount": self.desired,
            "runningCount": running,
            "pendingCount": pending,
            "launchType": "FARGATE",
            "taskDefinition": self.task_definition,
            "deploymentConfiguration": self.config,
            "deploymentController": { "type": self.controller },
            "loadBalancers": self.load_balancers,
            "serviceRegistries": [],
            "deployments": self.deployed(),
            "events": events.collect::<Vec<_>>(),
            "createdAt": epoch(self.created),
            "schedulingStrategy": "REPLICA",
            "placementConstraints": [],
            "placementStrategy": [],
            "enableECSManagedTags": false,
            "enableExecuteCommand": false,
            "propagateTags": "NONE",
        });
        if self.controller == "ECS" {
            put(&mut said, "currentServiceDeployment", self.current().map(|it| json!(it.arn)));
            let mut standing: Vec<&Revision> = self.revisions.iter().collect();
            standing.retain(|it| self.running(&it.arn) + self.pending(&it.arn) > 0);
            said["currentServiceRevisions"] = standing.iter().map(|it| self.count(&it.arn)).collect();
        }
        said
    }

    /// The older view of what is deployed.
    fn deployed(&self) -> Vec<Value> {
        let Some(last) = self.current() else { return Vec::new() };
        let rolling = strategy(&last.config) == "ROLLING";
        let primary = if last.is_going_back() { last.sources.first().unwrap_or(&last.target) } else { &last.target };
        let one = |revision: &Revision, status: &str| {
            let mut said = json!({
                "id": deployment_id(&revision.arn),
                "status": status,
                "taskDefinition": revision.task_definition,
                "desiredCount": if status == "PRIMARY" { self.desired } else { 0 },
                "runningCount": self.running(&revision.arn),
                "pendingCount": self.pending(&revision.arn),
                "failedTasks": if revision.arn == last.target { last.failures } else { 0 },
                "createdAt": epoch(revision.created),
                "updatedAt": epoch(last.updated),
                "launchType": "FARGATE",
            });
            if rolling {
                let (state, why) = match (status, last.is_ongoing(), last.status) {
                    ("ACTIVE", ..) if last.is_going_back() => ("FAILED", "deployment failed".to_owned()),
                    (_, false, "STOPPED" | "ROLLBACK_FAILED") => ("FAILED", "tasks failed to start".to_owned()),
                    ("PRIMARY", true, _) => ("IN_PROGRESS", "in progress".to_owned()),
                    _ => ("COMPLETED", "completed".to_owned()),
                };
                said["rolloutState"] = json!(state);
                said["rolloutStateReason"] = json!(format!("ECS deployment {}: {why}.", deployment_id(&revision.arn)));
            }
            said
        };
        let mut all: Vec<Value> = self.revision(primary).map(|it| one(it, "PRIMARY")).into_iter().collect();
        for revision in self.revisions.iter().filter(|it| it.arn != *primary) {
            if self.running(&revision.arn) + self.pending(&revision.arn) > 0 {
                all.push(one(revision, "ACTIVE"));
            }
        }
        all
    }
}

/// The strategy of a deployment configuration.
pub(super) fn strategy(config: &Value) -> &str {
    config["strategy"].as_str().unwrap_or("ROLLING")
}

/// The id that tasks and the older view have for a revision.
fn deployment_id(revision: &str) -> String {
    format!("ecs-svc/{}", revision.rsplit('/').next().unwrap_or(revision))
}

/// A time as JSON 1.1 has it.
pub(super) fn epoch(at: Timestamp) -> Value {
    json!(at.as_millisecond() as f64 / 1000.0)
}

/// Puts a member there, if it has a value: AWS leaves out what has none.
pub(super) fn put(said: &mut Value, name: &str, value: Option<Value>) {
    if let Some(value) = value {
        said[name] = value;
    }
}
