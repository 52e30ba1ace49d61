//! ECS's room: task definitions, services, and their service deployments from the first task to the last state.
//!
//! What a deployment goes through, and in which order, is the developer guide ("View service history using Amazon ECS
//! service deployments", "Pause hooks for Amazon ECS service deployments", "Stopping Amazon ECS service deployments") and
//! the API's own documentation; the texts of refusals are those that public issues quote, where there are any, and else
//! ours. Not documented anywhere, and so decided here:
//!
//! - how long things take ([`Hands::takes`]), and that traffic is back as soon as a rollback is in progress;
//! - that a hook that was answered stays in `lifecycleHookDetails`, and that an answer to one that does not wait is an
//!   `InvalidParameterException`;
//! - that `lifecycleStage` stays at the stage before while a deployment waits to shift: the API's text names
//!   `PRE_PRODUCTION_TRAFFIC_SHIFT` there, and its enum does not ([`Hands::tells_pre_production`]);
//! - that a new deployment ends the one before as `STOPPED`.
//!
//! Not simulated: Lambda hooks, capacity, load balancers' own settings, daemons, task sets.
//!
//! How its tasks behave is in a task definition's environment: with `SIMULATOR_EXIT_CODE` each ends with this code instead
//! of running, with `SIMULATOR_STOPPED_REASON` it never starts, and that is why.

mod hands;
mod life;
mod model;

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use jiff::Timestamp;
use serde_json::{Map, Value, json};

pub use self::hands::{Hands, Setup, Started, Time};
use self::{
    life::{Around, Takes},
    model::{Families, Service, TaskDefinition, strategy},
};
use super::{
    ACCOUNT,
    wire::{self, Called, Protocol, Refusal, Service as Asked},
};

/// What ECS knows.
#[derive(Debug)]
pub(super) struct Room {
    region: String,
    families: Families,
    clusters: BTreeMap<String, BTreeMap<String, Service>>,
    takes: Takes,
    tells_pre_production: bool,
    passed: Timestamp,
}

type Answer = Result<Value, Refusal>;

impl Room {
    pub(super) fn new(region: &str, now: Timestamp) -> Self {
        Self {
            region: region.into(),
            families: Families::new(),
            clusters: BTreeMap::new(),
            takes: Takes {
                begin: Duration::from_secs(2),
                start: Duration::from_secs(20),
                stage: Duration::from_secs(2),
                clear: Duration::from_secs(5),
                go_back: Duration::from_secs(1),
                alarm_bake: Duration::from_secs(180),
            },
            tells_pre_production: false,
            passed: now,
        }
    }

    /// When something happens next, if that is before now.
    pub(super) fn next_due(&self, now: Timestamp) -> Option<Timestamp> {
        let services = self.clusters.values().flat_map(BTreeMap::values);
        services.filter_map(|service| service.next_due(self.passed)).min().filter(|due| *due < now)
    }

    /// Lets everything happen that was to happen until now; `fires` tells whether an alarm does.
    pub(super) fn pass(&mut self, now: Timestamp, fires: &dyn Fn(&str) -> bool) {
        let Self { families, clusters, takes, tells_pre_production, .. } = self;
        let around = Around { families, fires, takes: *takes, tells_pre_production: *tells_pre_production };
        for service in clusters.values_mut().flat_map(BTreeMap::values_mut) {
            service.pass(now, &around);
        }
        self.passed = self.passed.max(now);
    }

    pub(super) fn answer(
        &mut self,
        called: &Called,
        request: &Request<Bytes>,
        now: Timestamp,
        fires: &dyn Fn(&str) -> bool,
    ) -> Result<Response<Bytes>, Refusal> {
        let body = wire::json_body(request)?;
        let said = match called.operation.as_str() {
            "CreateCluster" => self.create_cluster(&body),
            "RegisterTaskDefinition" => self.register(&body, now),
            "DeregisterTaskDefinition" => self.deregister(&body),
            "DescribeTaskDefinition" => self.describe_task_definition(&body),
            "CreateService" => self.create_service(&body, now, fires),
            "UpdateService" => self.update_service(&body, now, fires),
            "DescribeServices" => self.describe_services(&body),
            "ListServiceDeployments" => self.list_deployments(&body),
            "DescribeServiceDeployments" => self.describe_deployments(&body),
            "DescribeServiceRevisions" => self.describe_revisions(&body),
            "StopServiceDeployment" => self.stop(&body, now, fires),
            "ContinueServiceDeployment" => self.resume(&body, now, fires),
            "ListTasks" => self.list_tasks(&body),
            "DescribeTasks" => self.describe_tasks(&body),
            other => Err(Refusal::new(400, "UnknownOperationException", format!("{other} is not simulated"))),
        }?;
        Ok(wire::json_answer(200, wire::JSON_1_1, &said))
    }

    // ----------------------------------------------------------------------------------------------- task definitions

    fn create_cluster(&mut self, body: &Value) -> Answer {
        let name = text(body, "clusterName").unwrap_or("default").to_owned();
        self.clusters.entry(name.clone()).or_default();
        Ok(json!({ "cluster": {
            "clusterArn": self.arn("cluster", &name), "clusterName": name, "status": "ACTIVE",
        } }))
    }

    fn register(&mut self, body: &Value, now: Timestamp) -> Answer {
        let family = text(body, "family").filter(|it| !it.is_empty());
        let family = family.ok_or_else(|| client("Family should not be null or empty."))?.to_owned();
        let containers = body["containerDefinitions"].as_array().map_or(0, Vec::len);
        if containers == 0 {
            return Err(client("Container list cannot be empty."));
        }
        let mut members = body.as_object().cloned().unwrap_or_default();
        let tags = members.remove("tags").unwrap_or_else(|| json!([]));
        let of_aws = |text: &Value| text.as_str().is_some_and(|text| text.to_ascii_lowercase().starts_with("aws:"));
        if tags.as_array().into_iter().flatten().any(|tag| of_aws(&tag["key"]) || of_aws(&tag["value"])) {
            return Err(invalid("Tags with the prefix aws: are reserved for AWS."));
        }
        let made = self.add(&family, members, now);
        made.tags = tags;
        Ok(json!({ "taskDefinition": made.describe(), "tags": made.tags }))
    }

    fn add(&mut self, family: &str, body: Map<String, Value>, now: Timestamp) -> &mut TaskDefinition {
        let arn = self.arn("task-definition", family);
        let revisions = self.families.entry(family.into()).or_default();
        let revision = revisions.len() as u64 + 1;
        revisions.push(TaskDefinition {
            arn: format!("{arn}:{revision}"),
            family: family.into(),
            revision,
            inactive: false,
            registered: now,
            body,
            tags: json!([]),
        });
        revisions.last_mut().expect("it was just pushed")
    }

    fn deregister(&mut self, body: &Value) -> Answer {
        let name = text(body, "taskDefinition").unwrap_or_default();
        let arn = self.task_definition(name).map(|it| it.arn.clone());
        let arn = arn.ok_or_else(|| client("Unable to describe task definition."))?;
        let found = self.families.values_mut().flatten().find(|it| it.arn == arn).expect("it was found");
        found.inactive = true;
        Ok(json!({ "taskDefinition": found.describe() }))
    }

    fn describe_task_definition(&self, body: &Value) -> Answer {
        let name = text(body, "taskDefinition").unwrap_or_default();
        let found = self.task_definition(name).ok_or_else(|| client("Unable to describe task definition."))?;
        let mut said = json!({ "taskDefinition": found.describe() });
        if strings(&body["include"]).any(|it| it == "TAGS") {
            said["tags"] = found.tags.clone();
        }
        Ok(said)
    }

    /// By `family`, which is its latest active revision, by `family:revision`, or by ARN.
    fn task_definition(&self, name: &str) -> Option<&TaskDefinition> {
        let name = name.strip_prefix(&self.arn("task-definition", "")).unwrap_or(name);
        let (family, revision) = name.split_once(':').map_or((name, None), |(family, n)| (family, Some(n)));
        let revisions = self.families.get(family)?;
        match revision {
            Some(revision) => revisions.iter().find(|it| it.revision.to_string() == revision),
            None => revisions.iter().rev().find(|it| !it.inactive),
        }
    }

    // ------------------------------------------------------------------------------------------------------- services

    fn create_service(&mut self, body: &Value, now: Timestamp, fires: &dyn Fn(&str) -> bool) -> Answer {
        let cluster = self.cluster(body)?;
        let name = text(body, "serviceName").ok_or_else(|| invalid("Service name cannot be empty."))?.to_owned();
        let task_definition = self.deployable(text(body, "taskDefinition").unwrap_or_default())?;
        let config = configured(&json!({}), &body["deploymentConfiguration"])?;
        if self.clusters[&cluster].contains_key(&name) {
            return Err(invalid("Creation of service was not idempotent."));
        }
        let controller = text(&body["deploymentController"], "type").unwrap_or("ECS").to_owned();
        let mut service = self.service_of(&cluster, &name, body["desiredCount"].as_u64().unwrap_or(1), now);
        service.controller = controller;
        service.config = config;
        service.load_balancers = body.get("loadBalancers").cloned().unwrap_or_else(|| json!([]));
        let said = self.around(&task_definition, service, now, fires);
        let answer = said.describe();
        self.clusters.entry(cluster).or_default().insert(name, said);
        Ok(json!({ "service": answer }))
    }

    /// Deploys to a service that is not in its cluster yet.
    fn around(&self, to: &str, mut service: Service, now: Timestamp, fires: &dyn Fn(&str) -> bool) -> Service {
        let around = Around {
            families: &self.families,
            fires,
            takes: self.takes,
            tells_pre_production: self.tells_pre_production,
        };
        service.deploy(to, now, &around);
        service
    }

    fn service_of(&self, cluster: &str, name: &str, desired: u64, now: Timestamp) -> Service {
        Service {
            name: name.into(),
            arn: self.arn("service", &format!("{cluster}/{name}")),
            cluster_arn: self.arn("cluster", cluster),
            created: now,
            desired,
            controller: "ECS".into(),
            config: configured(&json!({}), &json!({})).expect("the defaults are good"),
            load_balancers: json!([]),
            task_definition: String::new(),
            revisions: Vec::new(),
            deployments: Vec::new(),
            tasks: Vec::new(),
            events: VecDeque::new(),
            fails_rollbacks: false,
        }
    }

    fn update_service(&mut self, body: &Value, now: Timestamp, fires: &dyn Fn(&str) -> bool) -> Answer {
        let cluster = self.cluster(body)?;
        let name = self.named(text(body, "service").unwrap_or_default());
        let service = self.clusters[&cluster].get(&name).ok_or_else(no_service)?;
        let wanted = match text(body, "taskDefinition") {
            Some(_) if service.controller == "CODE_DEPLOY" => {
                return Err(invalid(
                    "Unable to update task definition on services with a CODE_DEPLOY deployment controller. Use AWS \
                     CodeDeploy to trigger a new deployment.",
                ));
            }
            Some(_) if service.controller == "EXTERNAL" => {
                return Err(invalid(
                    "Unable to update task definition on services with an EXTERNAL deployment controller.",
                ));
            }
            Some(named) => Some(self.deployable(named)?),
            None => None,
        };
        let config = match body.get("deploymentConfiguration") {
            Some(set) => configured(&service.config, set)?,
            None => service.config.clone(),
        };
        let forced = body["forceNewDeployment"] == true;
        let changes = wanted.as_ref().is_some_and(|it| *it != service.task_definition);
        let mut service = service.clone();
        service.config = config;
        if let Some(desired) = body["desiredCount"].as_u64() {
            service.desired = desired;
        }
        if changes || forced {
            let to = wanted.unwrap_or_else(|| service.task_definition.clone());
            service = self.around(&to, service, now, fires);
        }
        let answer = service.describe();
        self.clusters.entry(cluster).or_default().insert(name, service);
        Ok(json!({ "service": answer }))
    }

    /// The ARN of a task definition that can be deployed.
    fn deployable(&self, name: &str) -> Result<String, Refusal> {
        let found = self.task_definition(name).ok_or_else(|| client("TaskDefinition not found."))?;
        if found.inactive {
            return Err(client("TaskDefinition is inactive"));
        }
        Ok(found.arn.clone())
    }

    fn describe_services(&self, body: &Value) -> Answer {
        let cluster = self.cluster(body)?;
        let (mut services, mut failures) = (Vec::new(), Vec::new());
        for named in strings(&body["services"]) {
            let name = self.named(named);
            match self.clusters[&cluster].get(&name) {
                Some(service) => services.push(service.describe()),
                None => {
                    let arn = self.arn("service", &format!("{cluster}/{name}"));
                    failures.push(json!({ "arn": arn, "reason": "MISSING" }));
                }
            }
        }
        Ok(json!({ "services": services, "failures": failures }))
    }

    // ----------------------------------------------------------------------------------------------------- deployments

    fn list_deployments(&self, body: &Value) -> Answer {
        let cluster = self.cluster(body)?;
        let name = self.named(text(body, "service").unwrap_or_default());
        let service = self.clusters[&cluster].get(&name).ok_or_else(no_service)?;
        let wanted: Vec<&str> = strings(&body["status"]).collect();
        let all = service.deployments.iter().rev().filter(|it| wanted.is_empty() || wanted.contains(&it.status));
        let all: Vec<Value> = all.map(|it| it.brief(service)).collect();
        let (page, next) = page(&all, body)?;
        let mut said = json!({ "serviceDeployments": page });
        model::put(&mut said, "nextToken", next);
        Ok(said)
    }

    fn describe_deployments(&self, body: &Value) -> Answer {
        let mut found = Vec::new();
        let mut failures = Vec::new();
        for arn in strings(&body["serviceDeploymentArns"]) {
            let services = self.clusters.values().flat_map(BTreeMap::values);
            let mut all = services.flat_map(|service| service.deployments.iter().map(move |it| (service, it)));
            match all.find(|(_, it)| it.arn == arn) {
                Some((service, deployment)) => found.push(deployment.describe(service)),
                None => failures.push(json!({ "arn": arn, "reason": "MISSING" })),
            }
        }
        if found.len() + failures.len() > 20 {
            return Err(invalid("A maximum of 20 service deployments can be described."));
        }
        Ok(json!({ "serviceDeployments": found, "failures": failures }))
    }

    fn describe_revisions(&self, body: &Value) -> Answer {
        let mut found = Vec::new();
        let mut failures = Vec::new();
        for arn in strings(&body["serviceRevisionArns"]) {
            let mut services = self.clusters.values().flat_map(BTreeMap::values);
            match services.find_map(|service| service.revision(arn).map(|it| (service, it))) {
                Some((service, revision)) => found.push(json!({
                    "serviceRevisionArn": revision.arn,
                    "serviceArn": service.arn,
                    "clusterArn": service.cluster_arn,
                    "taskDefinition": revision.task_definition,
                    "createdAt": model::epoch(revision.created),
                    "launchType": "FARGATE",
                })),
                None => failures.push(json!({ "arn": arn, "reason": "MISSING" })),
            }
        }
        Ok(json!({ "serviceRevisions": found, "failures": failures }))
    }

    fn stop(&mut self, body: &Value, now: Timestamp, fires: &dyn Fn(&str) -> bool) -> Answer {
        let arn = text(body, "serviceDeploymentArn").unwrap_or_default().to_owned();
        if text(body, "stopType").is_some_and(|kind| kind != "ROLLBACK") {
            return Err(invalid("The stop type is not valid."));
        }
        let service = self.deployed_to(&arn).ok_or_else(no_deployment)?;
        let deployment = service.deployments.iter().find(|it| it.arn == arn).ok_or_else(no_deployment)?;
        if !deployment.is_ongoing() {
            return Err(Refusal::new(400, "ConflictException", "The service deployment has already completed."));
        }
        service.go_back("Service deployment rolled back because of a StopServiceDeployment request.", now);
        self.pass(now, fires);
        Ok(json!({ "serviceDeploymentArn": arn }))
    }

    fn resume(&mut self, body: &Value, now: Timestamp, fires: &dyn Fn(&str) -> bool) -> Answer {
        let arn = text(body, "serviceDeploymentArn").unwrap_or_default().to_owned();
        let hook = text(body, "hookId").unwrap_or_default().to_owned();
        let goes_on = match text(body, "action") {
            None | Some("CONTINUE") => true,
            Some("ROLLBACK") => false,
            Some(other) => return Err(invalid(format!("{other} is no action."))),
        };
        let service = self.deployed_to(&arn).ok_or_else(no_deployment)?;
        let deployment = service.deployments.iter().find(|it| it.arn == arn).ok_or_else(no_deployment)?;
        if !deployment.is_ongoing() || deployment.paused().is_none_or(|it| it.id != hook) {
            return Err(invalid(format!("The lifecycle hook {hook} is not in AWAITING_ACTION status.")));
        }
        service.answer_hook(goes_on, "SUCCEEDED", now);
        self.pass(now, fires);
        Ok(json!({ "serviceDeploymentArn": arn }))
    }

    fn deployed_to(&mut self, arn: &str) -> Option<&mut Service> {
        let mut services = self.clusters.values_mut().flat_map(BTreeMap::values_mut);
        services.find(|service| service.deployments.iter().any(|it| it.arn == arn))
    }

    // ---------------------------------------------------------------------------------------------------------- tasks

    fn list_tasks(&self, body: &Value) -> Answer {
        let cluster = self.cluster(body)?;
        let named = text(body, "serviceName").map(|name| self.named(name));
        if named.as_ref().is_some_and(|name| !self.clusters[&cluster].contains_key(name)) {
            return Err(no_service());
        }
        let stopped = text(body, "desiredStatus") == Some("STOPPED");
        let services = self.clusters[&cluster].values().filter(|it| named.as_ref().is_none_or(|name| *name == it.name));
        let tasks = services.flat_map(|it| &it.tasks).filter(|task| task.stopped.is_some() == stopped);
        let all: Vec<Value> = tasks.map(|task| json!(task.arn)).collect();
        let (page, next) = page(&all, body)?;
        let mut said = json!({ "taskArns": page });
        model::put(&mut said, "nextToken", next);
        Ok(said)
    }

    fn describe_tasks(&self, body: &Value) -> Answer {
        let cluster = self.cluster(body)?;
        let wanted: Vec<&str> = strings(&body["tasks"]).collect();
        if wanted.is_empty() || wanted.len() > 100 {
            return Err(invalid("Tasks length must be between 1 and 100."));
        }
        let (mut tasks, mut failures) = (Vec::new(), Vec::new());
        for arn in wanted {
            let mut all = self.clusters[&cluster].values().flat_map(|it| it.tasks.iter().map(move |task| (it, task)));
            match all.find(|(_, task)| task.arn == arn || task.arn.rsplit('/').next() == Some(arn)) {
                Some((service, task)) => tasks.push(task.describe(service)),
                None => failures.push(json!({ "arn": arn, "reason": "MISSING" })),
            }
        }
        Ok(json!({ "tasks": tasks, "failures": failures }))
    }

    // --------------------------------------------------------------------------------------------------------- places

    fn arn(&self, kind: &str, name: &str) -> String {
        let partition = crate::account::partition(&self.region);
        format!("arn:{partition}:ecs:{}:{ACCOUNT}:{kind}/{name}", self.region)
    }

    /// The cluster that a request names, by name or ARN.
    fn cluster(&self, body: &Value) -> Result<String, Refusal> {
        let named = text(body, "cluster").unwrap_or("default");
        let name = named.rsplit('/').next().unwrap_or(named);
        let known = self.clusters.contains_key(name);
        known
            .then(|| name.to_owned())
            .ok_or_else(|| Refusal::new(400, "ClusterNotFoundException", "Cluster not found."))
    }

    /// A service's name, of its name or its ARN.
    fn named(&self, given: &str) -> String {
        given.rsplit('/').next().unwrap_or(given).into()
    }
}

/// The operation of a request for ECS.
pub(super) fn route(request: &Request<Bytes>) -> Option<Called> {
    let operation = wire::json_1_1(request, "AmazonEC2ContainerServiceV20141113.")?;
    Some(Called { service: Asked::Ecs, protocol: Protocol::Json11, operation })
}

/// What a request must be allowed.
pub(super) fn needs(called: &Called, request: &Request<Bytes>) -> Vec<String> {
    let mut needs = vec![called.action()];
    let tags = |body: Value| body["tags"].as_array().is_some_and(|tags| !tags.is_empty());
    // Developer guide, "Grant permission to tag resources on creation".
    if called.operation == "RegisterTaskDefinition" && wire::json_body(request).is_ok_and(tags) {
        needs.push("ecs:TagResource".into());
    }
    needs
}

/// A deployment configuration after a change; what is not named stays.
fn configured(now: &Value, set: &Value) -> Result<Value, Refusal> {
    let mut config = json!({ "maximumPercent": 200, "minimumHealthyPercent": 100, "strategy": "ROLLING" });
    for members in [now, set] {
        for (name, value) in members.as_object().into_iter().flatten() {
            config[name] = value.clone();
        }
    }
    let kind = strategy(&config).to_owned();
    let bounds = [
        ("CANARY", &config["canaryConfiguration"]["canaryPercent"], 0.1),
        ("LINEAR", &config["linearConfiguration"]["stepPercent"], 3.0),
    ];
    for (of, percent, least) in bounds {
        if kind == of && percent.as_f64().is_some_and(|it| !(least..=100.0).contains(&it)) {
            return Err(invalid(format!("The percentage of a {of} deployment must be between {least} and 100.0.")));
        }
    }
    for hook in config["lifecycleHooks"].as_array().into_iter().flatten() {
        let stages = hook["lifecycleStages"].as_array().map_or(&[][..], Vec::as_slice);
        if stages.is_empty() {
            return Err(invalid("A lifecycle hook needs lifecycle stages."));
        }
        let paused = hook["targetType"] == "PAUSE";
        let never = |stage: &&Value| matches!(stage.as_str(), Some("TEST_TRAFFIC_SHIFT" | "PRODUCTION_TRAFFIC_SHIFT"));
        if let Some(stage) = stages.iter().find(never).filter(|_| paused) {
            return Err(invalid(format!("PAUSE hooks cannot be configured at {stage}.")));
        }
        let minutes = &hook["timeoutConfiguration"]["timeoutInMinutes"];
        if minutes.as_u64().is_some_and(|it| !(1..=20160).contains(&it)) {
            return Err(invalid("timeoutInMinutes must be between 1 and 20160."));
        }
    }
    Ok(config)
}

/// One page of a list, and the token for the next.
fn page(all: &[Value], body: &Value) -> Result<(Vec<Value>, Option<Value>), Refusal> {
    let from: usize = match text(body, "nextToken") {
        Some(token) => token.parse().map_err(|_| invalid("Invalid token"))?,
        None => 0,
    };
    let most = body["maxResults"].as_u64().unwrap_or(100).clamp(1, 100) as usize;
    let page: Vec<Value> = all.iter().skip(from).take(most).cloned().collect();
    let next = (from + page.len() < all.len()).then(|| json!((from + page.len()).to_string()));
    Ok((page, next))
}

fn text<'a>(body: &'a Value, name: &str) -> Option<&'a str> {
    body.get(name).and_then(Value::as_str)
}

fn strings(list: &Value) -> impl Iterator<Item = &str> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str)
}

fn client(message: impl Into<String>) -> Refusal {
    Refusal::new(400, "ClientException", message)
}

fn invalid(message: impl Into<String>) -> Refusal {
    Refusal::new(400, "InvalidParameterException", message)
}

fn no_service() -> Refusal {
    Refusal::new(400, "ServiceNotFoundException", "Service not found.")
}

fn no_deployment() -> Refusal {
    Refusal::new(400, "ServiceDeploymentNotFoundException", "Service deployment not found.")
}
