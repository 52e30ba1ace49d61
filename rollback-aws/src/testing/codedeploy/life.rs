//! The life of one deployment: what happens to it, one step after the other, and what that does to its targets.

use std::{collections::VecDeque, time::Duration};

use jiff::Timestamp;
use serde_json::{Value, json};

/// A deployment, from `Created` to its end.
#[derive(Clone, Debug)]
pub(super) struct Deployment {
    pub(super) id: String,
    pub(super) app: String,
    pub(super) group: String,
    pub(super) config: String,
    /// As `GetDeployment` shows it: without content.
    pub(super) revision: Value,
    pub(super) previous: Option<Value>,
    pub(super) status: &'static str,
    pub(super) error: Option<(&'static str, String)>,
    pub(super) created: Timestamp,
    pub(super) started: Option<Timestamp>,
    pub(super) completed: Option<Timestamp>,
    pub(super) description: String,
    pub(super) creator: &'static str,
    /// What the request said beside: passed on by `GetDeployment` as it came.
    pub(super) asked: Value,
    pub(super) platform: Platform,
    pub(super) style: Value,
    pub(super) blue_green: Option<Value>,
    pub(super) events: Vec<String>,
    /// Names of alarms that stop it; none for a rollback, which ignores them.
    pub(super) alarms: Vec<String>,
    /// When its alarms are looked at next.
    pub(super) polled: Timestamp,
    pub(super) rolls_back: Option<String>,
    pub(super) rolled_back_by: Option<String>,
    pub(super) message: Option<String>,
    pub(super) targets: Vec<Target>,
    pub(super) steps: VecDeque<(Duration, Step)>,
    /// When the next step is taken; none while it waits for somebody, or is over.
    pub(super) due: Option<Timestamp>,
    /// What it waits for, and until when.
    pub(super) waits: Option<(Wait, Timestamp)>,
    /// It was asked to stop: when it will, and whether to roll back then.
    pub(super) stopping: Option<(Timestamp, Option<bool>)>,
    /// It is over, and when its rollback is made.
    pub(super) rollback_at: Option<Timestamp>,
    pub(super) healthy_least: usize,
}

/// Where the targets are, and how traffic is moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Platform {
    InPlace,
    BlueGreen,
    Ecs,
    Lambda,
}

/// One target of a deployment.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) id: String,
    /// `Blue` or `Green`, on EC2 blue/green.
    pub(super) label: Option<&'static str>,
    pub(super) status: &'static str,
    pub(super) events: Vec<Event>,
    /// The share of traffic of what is deployed, in percent.
    pub(super) weight: f64,
    /// As an AppSpec names them: function, alias, the version before, the version to come.
    pub(super) lambda: Option<[String; 4]>,
    pub(super) updated: Timestamp,
}

#[derive(Clone, Debug)]
pub(super) struct Event {
    pub(super) name: &'static str,
    pub(super) status: &'static str,
    pub(super) began: Option<Timestamp>,
    pub(super) ended: Option<Timestamp>,
    pub(super) diagnostics: Option<Value>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wait {
    /// For `ContinueDeployment READY_WAIT`, or the time that the group gives.
    Ready,
    /// For `ContinueDeployment TERMINATION_WAIT`, or the time that the group gives.
    Termination,
    /// For `PutLifecycleEventHookExecutionStatus`: of this target and event.
    Hook(usize, &'static str),
}

/// One step of a life.
#[derive(Clone, Debug)]
pub(super) enum Step {
    Status(&'static str),
    Begin(usize, &'static str),
    End(usize, &'static str),
    /// A function is called, and answers by the API.
    Hook(usize, &'static str),
    /// The share of traffic of what is deployed.
    Weight(usize, f64),
    /// From here on this target serves what is deployed.
    Serves(usize),
    /// This target gets no traffic any more.
    Blocked(usize),
    /// The target is done.
    Done(usize),
    Ready(Duration),
    Terminating(Duration),
    /// What was there before is taken away.
    Clear,
    Succeed,
}

impl Step {
    /// Whether it is about this target.
    pub(super) const fn is_at(&self, target: usize) -> bool {
        match self {
            Self::Begin(at, _)
            | Self::End(at, _)
            | Self::Hook(at, _)
            | Self::Weight(at, _)
            | Self::Serves(at)
            | Self::Blocked(at)
            | Self::Done(at) => *at == target,
            _ => false,
        }
    }
}

impl Deployment {
    pub(super) fn is_active(&self) -> bool {
        self.completed.is_none()
    }

    pub(super) fn event(&mut self, target: usize, name: &str) -> Option<&mut Event> {
        self.targets.get_mut(target)?.events.iter_mut().find(|event| event.name == name)
    }

    /// What was begun has failed, what was to come is skipped.
    pub(super) fn cut_short(&mut self, now: Timestamp, failed: &'static str) {
        for target in &mut self.targets {
            if matches!(target.status, "Succeeded" | "Failed") {
                continue;
            }
            target.status = if target.status == "Pending" { "Skipped" } else { failed };
            target.updated = now;
            for event in &mut target.events {
                match event.status {
                    "Pending" => event.status = "Skipped",
                    "InProgress" => (event.status, event.ended) = ("Failed", Some(now)),
                    _ => {}
                }
            }
        }
        self.steps.clear();
        (self.due, self.waits, self.stopping) = (None, None, None);
    }

    pub(super) fn describe(&self) -> Value {
        let mut said = json!({
            "applicationName": self.app, "deploymentGroupName": self.group, "deploymentId": self.id,
            "deploymentConfigName": self.config, "revision": self.revision, "status": self.status,
            "createTime": seconds(self.created), "creator": self.creator, "deploymentStyle": self.style,
            "computePlatform": self.platform.name(),
            "instanceTerminationWaitTimeStarted": matches!(self.waits, Some((Wait::Termination, _))),
            "ignoreApplicationStopFailures": false, "updateOutdatedInstancesOnly": false,
            "deploymentStatusMessages": [],
        });
        let mut add = |name: &str, value: Option<Value>| {
            if let Some(value) = value {
                said[name] = value;
            }
        };
        for name in [
            "autoRollbackConfiguration",
            "overrideAlarmConfiguration",
            "fileExistsBehavior",
            "ignoreApplicationStopFailures",
            "updateOutdatedInstancesOnly",
        ] {
            add(name, self.asked.get(name).cloned());
        }
        add("description", Some(&self.description).filter(|it| !it.is_empty()).map(|it| json!(it)));
        add("previousRevision", self.previous.clone());
        add("startTime", self.started.map(seconds));
        add("completeTime", self.completed.map(seconds));
        add("blueGreenDeploymentConfiguration", self.blue_green.clone());
        add("errorInformation", self.error.as_ref().map(|(code, why)| json!({ "code": code, "message": why })));
        let mut rollback = json!({});
        for (name, value) in [
            ("rollbackDeploymentId", &self.rolled_back_by),
            ("rollbackTriggeringDeploymentId", &self.rolls_back),
            ("rollbackMessage", &self.message),
        ] {
            if let Some(value) = value {
                rollback[name] = json!(value);
            }
        }
        add("rollbackInfo", rollback.as_object().is_some_and(|it| !it.is_empty()).then_some(rollback));
        // Null while an ECS deployment runs, and then it counts targets.
        if !(self.platform == Platform::Ecs && self.is_active()) {
            let count = |status: &str| self.targets.iter().filter(|target| target.status == status).count();
            add(
                "deploymentOverview",
                Some(json!({
                    "Pending": count("Pending"), "InProgress": count("InProgress"), "Succeeded": count("Succeeded"),
                    "Failed": count("Failed"), "Skipped": count("Skipped"), "Ready": count("Ready"),
                })),
            );
        }
        said
    }

    /// A target as `GetDeploymentTarget` shows it.
    pub(super) fn describe_target(&self, target: &Target, account: &str, region: &str) -> Value {
        let events: Vec<Value> = target.events.iter().map(Event::describe).collect();
        let arn = match self.platform {
            Platform::InPlace | Platform::BlueGreen => format!("arn:aws:ec2:{region}:{account}:instance/{}", target.id),
            Platform::Ecs => format!("arn:aws:ecs:{region}:{account}:service/{}", target.id.replace(':', "/")),
            Platform::Lambda => format!("arn:aws:lambda:{region}:{account}:function:{}", target.id),
        };
        let mut said = json!({
            "deploymentId": self.id, "targetId": target.id, "targetArn": arn, "status": target.status,
            "lastUpdatedAt": seconds(target.updated), "lifecycleEvents": events,
        });
        let (kind, member) = match self.platform {
            Platform::InPlace | Platform::BlueGreen => {
                if let Some(label) = target.label {
                    said["instanceLabel"] = json!(label);
                }
                ("InstanceTarget", "instanceTarget")
            }
            Platform::Ecs => {
                let set = |label: &str, status: &str, weight: f64| {
                    json!({
                        "identifer": format!("ecs-svc/{label}-{}", self.id), "desiredCount": 1, "pendingCount": 0,
                        "runningCount": 1, "status": status, "trafficWeight": weight,
                        "targetGroup": { "name": format!("tg-{}", label.to_ascii_lowercase()) }, "taskSetLabel": label,
                    })
                };
                let (was, is) = if target.weight >= 100.0 { ("ACTIVE", "PRIMARY") } else { ("PRIMARY", "ACTIVE") };
                said["taskSetsInfo"] =
                    json!([set("Blue", was, 100.0 - target.weight), set("Green", is, target.weight)]);
                ("ECSTarget", "ecsTarget")
            }
            Platform::Lambda => {
                if let Some([function, alias, current, next]) = &target.lambda {
                    said["lambdaFunctionInfo"] = json!({
                        "functionName": function, "functionAlias": alias, "currentVersion": current,
                        "targetVersion": next, "targetVersionWeight": target.weight,
                    });
                }
                ("LambdaTarget", "lambdaTarget")
            }
        };
        json!({ "deploymentTargetType": kind, member: said })
    }
}

impl Event {
    fn describe(&self) -> Value {
        let mut said = json!({ "lifecycleEventName": self.name, "status": self.status });
        for (name, at) in [("startTime", self.began), ("endTime", self.ended)] {
            if let Some(at) = at {
                said[name] = seconds(at);
            }
        }
        if let Some(diagnostics) = &self.diagnostics {
            said["diagnostics"] = diagnostics.clone();
        }
        said
    }
}

impl Platform {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::InPlace | Self::BlueGreen => "Server",
            Self::Ecs => "ECS",
            Self::Lambda => "Lambda",
        }
    }
}

pub(super) fn target(id: &str, label: Option<&'static str>, events: &[&'static str], now: Timestamp) -> Target {
    let pending = |name: &&'static str| Event { name, status: "Pending", began: None, ended: None, diagnostics: None };
    Target {
        id: id.into(),
        label,
        status: "Pending",
        events: events.iter().map(pending).collect(),
        weight: 0.0,
        lambda: None,
        updated: now,
    }
}

/// The shares of traffic by a configuration's routing, each after so long: `[(0 s, 10), (5 min, 100)]`.
pub(super) fn shares(routing: &Value) -> Vec<(Duration, f64)> {
    let number = |shape: &str, name: &str| routing[shape][name].as_u64().unwrap_or(0);
    let minutes = |n: u64| Duration::from_secs(60 * n);
    let share = |n: u64| f64::from(u32::try_from(n).unwrap_or(100));
    match routing["type"].as_str() {
        Some("TimeBasedCanary") => {
            let (first, after) =
                (number("timeBasedCanary", "canaryPercentage"), number("timeBasedCanary", "canaryInterval"));
            vec![(Duration::ZERO, share(first)), (minutes(after), 100.0)]
        }
        Some("TimeBasedLinear") => {
            let (each, after) =
                (number("timeBasedLinear", "linearPercentage").max(1), number("timeBasedLinear", "linearInterval"));
            let mut shares = vec![(Duration::ZERO, share(each))];
            let mut at = each;
            while at < 100 {
                at = (at + each).min(100);
                shares.push((minutes(after), share(at)));
            }
            shares
        }
        _ => vec![(Duration::ZERO, 100.0)],
    }
}

/// A time as JSON 1.1 has it.
pub(super) fn seconds(at: Timestamp) -> Value {
    json!(at.as_millisecond() as f64 / 1000.0)
}

/// EC2 in place, without and with a load balancer (user guide, reference-appspec-file-structure-hooks).
pub(super) const INSTALL: &[&str] = &[
    "ApplicationStop",
    "DownloadBundle",
    "BeforeInstall",
    "Install",
    "AfterInstall",
    "ApplicationStart",
    "ValidateService",
];
pub(super) const BLOCK: &[&str] = &["BeforeBlockTraffic", "BlockTraffic", "AfterBlockTraffic"];
pub(super) const ALLOW: &[&str] = &["BeforeAllowTraffic", "AllowTraffic", "AfterAllowTraffic"];
/// ECS (user guide, deployment-steps-ecs).
pub(super) const ECS: &[&str] = &[
    "BeforeInstall",
    "Install",
    "AfterInstall",
    "AllowTestTraffic",
    "AfterAllowTestTraffic",
    "BeforeAllowTraffic",
    "AllowTraffic",
    "AfterAllowTraffic",
];
