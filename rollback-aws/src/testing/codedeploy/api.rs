//! What CodeDeploy is asked, and what it says.

use std::collections::BTreeSet;

use bytes::Bytes;
use http::{Request, Response};
use jiff::Timestamp;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::{ACCOUNT, App, Deployment, Group, Platform, Room, Wait, key, life::seconds, refusal};
use crate::testing::wire::{self, Called, Protocol, Refusal, Service};

type Answer = Result<Value, Refusal>;

impl Room {
    pub(in crate::testing) fn answer(
        &mut self,
        called: &Called,
        request: &Request<Bytes>,
        now: Timestamp,
    ) -> Result<Response<Bytes>, Refusal> {
        let asked: Value = serde_json::from_slice(request.body())
            .map_err(|_| refusal("SerializationException", "Start of structure or map found where not expected."))?;
        let said = match called.operation.as_str() {
            "CreateApplication" => self.create_application(&asked),
            "GetApplication" => self.get_application(&asked),
            "DeleteApplication" => self.delete_application(&asked),
            "CreateDeploymentGroup" => self.create_group(&asked),
            "GetDeploymentGroup" => self.get_group(&asked, now),
            "BatchGetDeploymentGroups" => self.batch_get_groups(&asked),
            "UpdateDeploymentGroup" => self.update_group(&asked),
            "ListDeploymentGroups" => self.list_groups(&asked),
            "CreateDeploymentConfig" => self.create_config(&asked, now),
            "GetDeploymentConfig" => self.get_config(&asked),
            "DeleteDeploymentConfig" => self.delete_config(&asked),
            "RegisterApplicationRevision" => self.register_revision(&asked),
            "GetApplicationRevision" => self.get_revision(&asked, now),
            "BatchGetApplicationRevisions" => self.batch_get_revisions(&asked, now),
            "CreateDeployment" => self.create_deployment(&asked, now),
            "GetDeployment" => self.get_deployment(&asked),
            "BatchGetDeployments" => self.batch_get_deployments(&asked),
            "ListDeployments" => self.list_deployments(&asked),
            "StopDeployment" => self.stop_deployment(&asked, now),
            "ContinueDeployment" => self.continue_deployment(&asked, now),
            "ListDeploymentTargets" => self.list_targets(&asked),
            "GetDeploymentTarget" => self.get_target(&asked),
            "BatchGetDeploymentTargets" => self.batch_get_targets(&asked),
            "PutLifecycleEventHookExecutionStatus" => self.put_hook(&asked, now),
            other => Err(refusal("UnknownOperationException", format!("{other} is not simulated"))),
        }?;
        if said.is_null() {
            return Ok(wire::bytes_answer(200, wire::JSON_1_1, Bytes::new()));
        }
        Ok(wire::json_answer(200, wire::JSON_1_1, &said))
    }

    // --------------------------------------------------------------------------------------------------- applications

    fn create_application(&mut self, asked: &Value) -> Answer {
        let name = needed(asked, "applicationName", "ApplicationNameRequiredException")?;
        if self.apps.contains_key(name) {
            return Err(refusal("ApplicationAlreadyExistsException", format!("Application already exists: {name}")));
        }
        let platform = asked["computePlatform"].as_str().unwrap_or("Server");
        if !["Server", "ECS", "Lambda"].contains(&platform) {
            return Err(refusal("InvalidComputePlatformException", format!("Invalid compute platform: {platform}")));
        }
        self.add_app(name, platform);
        Ok(json!({ "applicationId": id_of(name) }))
    }

    pub(super) fn add_app(&mut self, name: &str, platform: &str) {
        let app = App { platform: platform.into(), revisions: Default::default(), groups: Default::default() };
        self.apps.insert(name.into(), app);
    }

    fn get_application(&mut self, asked: &Value) -> Answer {
        let (name, app) = self.app(asked)?;
        Ok(json!({ "application": {
            "applicationId": id_of(&name), "applicationName": name, "computePlatform": app.platform, "linkedToGitHub": false,
        } }))
    }

    fn delete_application(&mut self, asked: &Value) -> Answer {
        let name = needed(asked, "applicationName", "ApplicationNameRequiredException")?;
        self.apps.remove(name);
        Ok(json!({}))
    }

    fn app(&mut self, asked: &Value) -> Result<(String, &mut App), Refusal> {
        let name = needed(asked, "applicationName", "ApplicationNameRequiredException")?.to_owned();
        let found = self.apps.get_mut(&name);
        let why = format!("No application found for name: {name}");
        Ok((name, found.ok_or_else(|| refusal("ApplicationDoesNotExistException", why))?))
    }

    // --------------------------------------------------------------------------------------------------------- groups

    fn create_group(&mut self, asked: &Value) -> Answer {
        let name = needed(asked, "deploymentGroupName", "DeploymentGroupNameRequiredException")?.to_owned();
        needed(asked, "serviceRoleArn", "RoleRequiredException")?;
        let (_, app) = self.app(asked)?;
        if app.groups.contains_key(&name) {
            let why = format!("Deployment group name already exists for this application: {name}");
            return Err(refusal("DeploymentGroupAlreadyExistsException", why));
        }
        let config = match app.platform.as_str() {
            "ECS" => "CodeDeployDefault.ECSAllAtOnce",
            "Lambda" => "CodeDeployDefault.LambdaAllAtOnce",
            _ => "CodeDeployDefault.OneAtATime",
        };
        let mut settings = json!({
            "computePlatform": app.platform, "deploymentConfigName": config,
            "deploymentStyle": { "deploymentType": "IN_PLACE", "deploymentOption": "WITHOUT_TRAFFIC_CONTROL" },
        });
        merge(&mut settings, asked)?;
        self.config_of(settings["deploymentConfigName"].as_str().unwrap_or_default())?;
        let id = id_of(&name);
        let group = Group {
            id: id.clone(),
            settings,
            instances: Vec::new(),
            estate: Default::default(),
            succeeded: None,
            attempted: None,
        };
        self.app(asked)?.1.groups.insert(name, group);
        Ok(json!({ "deploymentGroupId": id }))
    }

    fn get_group(&mut self, asked: &Value, now: Timestamp) -> Answer {
        let (app, name) = self.group_name(asked)?;
        let mut said = self.describe_group(&app, &name);
        let of = |it: &&Deployment| it.app == app && it.group == name && it.created + self.groups_lag <= now;
        if !self.groups_lag.is_zero()
            && let Some(it) = self.order.iter().rev().map(|id| &self.deployments[id]).find(of)
        {
            said["lastAttemptedDeployment"] =
                json!({ "deploymentId": it.id, "status": it.status, "createTime": seconds(it.created) });
        }
        Ok(json!({ "deploymentGroupInfo": said }))
    }

    fn batch_get_groups(&mut self, asked: &Value) -> Answer {
        let (app, _) = self.app(asked)?;
        let names = texts(&asked["deploymentGroupNames"]);
        limit(names.len(), 100)?;
        let known = names.iter().filter(|name| self.apps[&app].groups.contains_key(**name));
        let infos: Vec<Value> = known.map(|name| self.describe_group(&app, name)).collect();
        Ok(json!({ "deploymentGroupsInfo": infos }))
    }

    fn update_group(&mut self, asked: &Value) -> Answer {
        let mut asked = asked.clone();
        asked["deploymentGroupName"] = asked["currentDeploymentGroupName"].clone();
        let (app, name) = self.group_name(&asked)?;
        if let Some(config) = asked["deploymentConfigName"].as_str() {
            self.config_of(config)?;
        }
        let group = self.apps.get_mut(&app).and_then(|app| app.groups.get_mut(&name)).expect("it was found");
        merge(&mut group.settings, &asked)?;
        if let Some(new) = asked["newDeploymentGroupName"].as_str() {
            group.settings["deploymentGroupName"] = json!(new);
            let groups = &mut self.apps.get_mut(&app).expect("it was found").groups;
            let moved = groups.remove(&name).expect("it was found");
            groups.insert(new.into(), moved);
        }
        Ok(json!({ "hooksNotCleanedUp": [] }))
    }

    fn list_groups(&mut self, asked: &Value) -> Answer {
        let (name, app) = self.app(asked)?;
        Ok(json!({ "applicationName": name, "deploymentGroups": app.groups.keys().collect::<Vec<_>>() }))
    }

    fn group_name(&mut self, asked: &Value) -> Result<(String, String), Refusal> {
        let name = needed(asked, "deploymentGroupName", "DeploymentGroupNameRequiredException")?.to_owned();
        let (app, found) = self.app(asked)?;
        if !found.groups.contains_key(&name) {
            let why = format!("No Deployment Group found for name: {name}");
            return Err(refusal("DeploymentGroupDoesNotExistException", why));
        }
        Ok((app, name))
    }

    fn describe_group(&self, app: &str, name: &str) -> Value {
        let group = &self.apps[app].groups[name];
        let mut said = group.settings.clone();
        said["applicationName"] = json!(app);
        said["deploymentGroupName"] = json!(name);
        said["deploymentGroupId"] = json!(group.id);
        for (member, id) in
            [("lastSuccessfulDeployment", &group.succeeded), ("lastAttemptedDeployment", &group.attempted)]
        {
            let Some(it) = id.as_ref().and_then(|id| self.deployments.get(id)) else { continue };
            said[member] = json!({ "deploymentId": it.id, "status": it.status, "createTime": seconds(it.created) });
            if let Some(at) = it.completed {
                said[member]["endTime"] = seconds(at);
            }
            if member == "lastSuccessfulDeployment" {
                said["targetRevision"] = it.revision.clone();
            }
        }
        said
    }

    // ------------------------------------------------------------------------------------------------- configurations

    fn create_config(&mut self, asked: &Value, now: Timestamp) -> Answer {
        let name = needed(asked, "deploymentConfigName", "DeploymentConfigNameRequiredException")?.to_owned();
        if name.starts_with("CodeDeployDefault.") {
            let why = "Deployment config name is reserved: CodeDeployDefault.";
            return Err(refusal("InvalidDeploymentConfigNameException", why));
        }
        if self.configs.contains_key(&name) {
            let why = format!("Deployment config already exists: {name}");
            return Err(refusal("DeploymentConfigAlreadyExistsException", why));
        }
        let routing = &asked["trafficRoutingConfig"];
        for share in [&routing["timeBasedCanary"]["canaryPercentage"], &routing["timeBasedLinear"]["linearPercentage"]]
        {
            if share.as_u64().is_some_and(|it| !(1..=99).contains(&it)) {
                let why = "The percentage of an increment must be between 1 and 99.";
                return Err(refusal("InvalidTrafficRoutingConfigurationException", why));
            }
        }
        let mut config = asked.clone();
        config["deploymentConfigId"] = json!(id_of(&name));
        config["createTime"] = seconds(now);
        self.configs.insert(name.clone(), config);
        Ok(json!({ "deploymentConfigId": id_of(&name) }))
    }

    fn get_config(&self, asked: &Value) -> Answer {
        let name = needed(asked, "deploymentConfigName", "DeploymentConfigNameRequiredException")?;
        Ok(json!({ "deploymentConfigInfo": self.config_of(name)? }))
    }

    fn delete_config(&mut self, asked: &Value) -> Answer {
        let name = needed(asked, "deploymentConfigName", "DeploymentConfigNameRequiredException")?;
        self.configs.remove(name);
        Ok(Value::Null)
    }

    fn config_of(&self, name: &str) -> Result<&Value, Refusal> {
        let why = format!("No deployment configuration found for name: {name}");
        self.configs.get(name).ok_or_else(|| refusal("DeploymentConfigDoesNotExistException", why))
    }

    // ------------------------------------------------------------------------------------------------------ revisions

    fn register_revision(&mut self, asked: &Value) -> Answer {
        let (app, _) = self.app(asked)?;
        self.register(&app, &asked["revision"])?;
        Ok(Value::Null)
    }

    /// Takes a revision down. As it is shown from then on: without content, by its hash.
    pub(super) fn register(&mut self, app: &str, revision: &Value) -> Answer {
        let mut whole = revision.clone();
        for member in ["appSpecContent", "string"] {
            if let Some(content) = revision[member]["content"].as_str() {
                let sha = hex(&Sha256::digest(content));
                if revision[member]["sha256"].as_str().is_some_and(|given| given != sha) {
                    let why = "The SHA256 hash of the content is not the one that is given.";
                    return Err(refusal("InvalidRevisionException", why));
                }
                whole[member]["sha256"] = json!(sha);
            }
        }
        let key = key(&whole);
        if key.is_empty() {
            return Err(refusal("RevisionRequiredException", "Revision is required."));
        }
        let app = self.apps.get_mut(app).expect("it was found");
        let by_hash =
            ["appSpecContent", "string"].iter().any(|it| whole[*it].is_object() && whole[*it]["content"].is_null());
        if by_hash && !app.revisions.contains_key(&key) {
            return Err(refusal("RevisionDoesNotExistException", "No revision found with this hash."));
        }
        app.revisions.entry(key).or_insert_with(|| whole.clone());
        for member in ["appSpecContent", "string"] {
            if let Some(spec) = whole.get_mut(member).and_then(Value::as_object_mut) {
                spec.remove("content");
            }
        }
        Ok(whole)
    }

    fn get_revision(&mut self, asked: &Value, now: Timestamp) -> Answer {
        let (name, app) = self.app(asked)?;
        let found = app.revisions.get(&key(&asked["revision"])).cloned();
        let found = found.ok_or_else(|| {
            refusal("RevisionDoesNotExistException", format!("No revision found for application: {name}"))
        })?;
        let info = json!({ "registerTime": seconds(now), "deploymentGroups": [] });
        Ok(json!({ "applicationName": name, "revision": found, "revisionInfo": info }))
    }

    fn batch_get_revisions(&mut self, asked: &Value, now: Timestamp) -> Answer {
        let (name, app) = self.app(asked)?;
        let wanted = asked["revisions"].as_array().cloned().unwrap_or_default();
        limit(wanted.len(), 25)?;
        let found = wanted.iter().filter_map(|it| app.revisions.get(&key(it)));
        let info = |it: &Value| json!({ "revisionLocation": it, "genericRevisionInfo": { "registerTime": seconds(now), "deploymentGroups": [] } });
        Ok(json!({ "applicationName": name, "errorMessage": "", "revisions": found.map(info).collect::<Vec<_>>() }))
    }

    // ---------------------------------------------------------------------------------------------------- deployments

    fn create_deployment(&mut self, asked: &Value, now: Timestamp) -> Answer {
        let (app, group) = self.group_name(asked)?;
        if asked["description"].as_str().is_some_and(|it| it.chars().count() > 256) {
            return Err(refusal("DescriptionTooLongException", "Description is longer than 256 characters."));
        }
        check_auto_rollback(&asked["autoRollbackConfiguration"])?;
        check_alarms(&asked["overrideAlarmConfiguration"])?;
        let settings = &self.apps[&app].groups[&group].settings;
        let config = asked["deploymentConfigName"].as_str().or_else(|| settings["deploymentConfigName"].as_str());
        let config = config.unwrap_or_default().to_owned();
        let platform = self.apps[&app].platform.clone();
        if self.config_of(&config)?["computePlatform"].as_str().is_some_and(|it| it != platform) {
            let why = format!("The deployment configuration {config} is not for the compute platform {platform}.");
            return Err(refusal("InvalidDeploymentConfigNameException", why));
        }
        if !asked["revision"].is_object() {
            return Err(refusal("RevisionRequiredException", "Revision is required."));
        }
        if let Some(active) = self.active(&app, &group) {
            // aws-ecs-orb #181: the id is in the text alone.
            let why = format!("The Deployment Group '{group}' already has an active Deployment '{active}'");
            return Err(refusal("DeploymentLimitExceededException", why));
        }
        let revision = self.register(&app, &asked["revision"])?;
        let id = self.make(&app, &group, revision, config, asked.clone(), "user", None, now);
        self.check_alias(&id, now);
        Ok(json!({ "deploymentId": id }))
    }

    pub(super) fn active(&self, app: &str, group: &str) -> Option<String> {
        let mut all = self.deployments.values();
        all.find(|it| it.is_active() && it.app == app && it.group == group).map(|it| it.id.clone())
    }

    fn deployment(&mut self, asked: &Value) -> Result<&mut Deployment, Refusal> {
        let id = needed(asked, "deploymentId", "DeploymentIdRequiredException")?;
        let why = format!("The deployment {id} could not be found");
        if !id.starts_with("d-") {
            return Err(refusal(
                "InvalidDeploymentIdException",
                format!("Specified DeploymentId is not in the valid format: {id}"),
            ));
        }
        self.deployments.get_mut(id).ok_or_else(|| refusal("DeploymentDoesNotExistException", why))
    }

    fn get_deployment(&mut self, asked: &Value) -> Answer {
        Ok(json!({ "deploymentInfo": self.deployment(asked)?.describe() }))
    }

    fn batch_get_deployments(&self, asked: &Value) -> Answer {
        let ids = texts(&asked["deploymentIds"]);
        if ids.is_empty() {
            return Err(refusal("DeploymentIdRequiredException", "At least one deployment ID must be specified."));
        }
        limit(ids.len(), 25)?;
        let ids: BTreeSet<&str> = ids.into_iter().collect();
        let hidden = |it: &&Deployment| self.hidden.contains(&(it.app.clone(), it.group.clone()));
        if let Some(it) = ids.iter().filter_map(|id| self.deployments.get(*id)).find(hidden) {
            let why = format!("Not authorized to perform codedeploy:BatchGetDeployments on {}/{}", it.app, it.group);
            return Err(refusal("AccessDeniedException", why));
        }
        let infos: Vec<Value> =
            ids.into_iter().filter_map(|id| self.deployments.get(id)).map(Deployment::describe).collect();
        Ok(json!({ "deploymentsInfo": infos }))
    }

    fn list_deployments(&mut self, asked: &Value) -> Answer {
        let within = match (asked["applicationName"].as_str(), asked["deploymentGroupName"].as_str()) {
            (None, None) => None,
            _ => Some(self.group_name(asked)?),
        };
        let time = |name: &str| asked["createTimeRange"][name].as_f64();
        let statuses = texts(&asked["includeOnlyStatuses"]);
        let ids = self.order.iter().rev().filter(|id| {
            let it = &self.deployments[*id];
            let created = it.created.as_millisecond() as f64 / 1000.0;
            within.as_ref().is_none_or(|(app, group)| it.app == *app && it.group == *group)
                && time("start").is_none_or(|start| created >= start)
                && time("end").is_none_or(|end| created <= end)
                && (statuses.is_empty() || statuses.contains(&it.status))
        });
        let ids: Vec<&String> = ids.collect();
        let from = asked["nextToken"].as_str().and_then(|it| it.parse().ok()).unwrap_or(0).min(ids.len());
        let page: Vec<&&String> = ids[from..].iter().take(100).collect();
        let mut said = json!({ "deployments": page });
        if from + 100 < ids.len() {
            said["nextToken"] = json!((from + 100).to_string());
        }
        Ok(said)
    }

    fn stop_deployment(&mut self, asked: &Value, now: Timestamp) -> Answer {
        let takes = self.stopping;
        let roll_back = asked["autoRollbackEnabled"].as_bool();
        let it = self.deployment(asked)?;
        if !it.is_active() {
            let why = format!("The deployment {} has already completed.", it.id);
            return Err(refusal("DeploymentAlreadyCompletedException", why));
        }
        let (at, rolls_back) = it.stopping.unwrap_or((now + takes, roll_back));
        it.stopping = Some((at, rolls_back.max(roll_back)));
        Ok(json!({ "status": "Pending", "statusMessage": "The deployment is being stopped." }))
    }

    fn continue_deployment(&mut self, asked: &Value, now: Timestamp) -> Answer {
        let it = self.deployment(asked)?;
        if matches!(it.platform, Platform::Lambda | Platform::InPlace) {
            let why = "This action is not supported for this type of deployment.";
            return Err(refusal("UnsupportedActionForDeploymentTypeException", why));
        }
        if !it.is_active() {
            let why = format!("The deployment {} has already completed.", it.id);
            return Err(refusal("DeploymentAlreadyCompletedException", why));
        }
        let wanted = match asked["deploymentWaitType"].as_str() {
            None | Some("READY_WAIT") => Wait::Ready,
            Some("TERMINATION_WAIT") => Wait::Termination,
            Some(other) => {
                return Err(refusal("InvalidDeploymentWaitTypeException", format!("Invalid wait type: {other}")));
            }
        };
        match it.waits {
            Some((wait, _)) if wait == wanted => {
                if wait == Wait::Ready {
                    it.status = "InProgress";
                }
                (it.waits, it.due) = (None, Some(now));
                Ok(Value::Null)
            }
            _ if wanted == Wait::Ready => Err(refusal(
                "DeploymentIsNotInReadyStateException",
                format!("The deployment {} is not in the Ready state.", it.id),
            )),
            _ => Err(refusal("InvalidDeploymentStatusException", "The deployment does not wait for the termination.")),
        }
    }

    // -------------------------------------------------------------------------------------------------------- targets

    fn list_targets(&mut self, asked: &Value) -> Answer {
        let from: usize = asked["nextToken"].as_str().and_then(|it| it.parse().ok()).unwrap_or(0);
        let it = self.deployment(asked)?;
        if it.status == "Created" {
            let why = format!("Specified deployment {} has not started", it.id);
            return Err(refusal("DeploymentNotStartedException", why));
        }
        let ids: Vec<&str> = it.targets.iter().map(|target| target.id.as_str()).collect();
        let mut said = json!({ "targetIds": ids.iter().skip(from).take(TARGETS).collect::<Vec<_>>() });
        if from + TARGETS < ids.len() {
            said["nextToken"] = json!((from + TARGETS).to_string());
        }
        Ok(said)
    }

    fn get_target(&mut self, asked: &Value) -> Answer {
        let id = needed(asked, "targetId", "DeploymentTargetIdRequiredException")?.to_owned();
        let mut found = self.targets(asked, &[&id])?;
        Ok(json!({ "deploymentTarget": found.remove(0) }))
    }

    fn batch_get_targets(&mut self, asked: &Value) -> Answer {
        let ids = texts(&asked["targetIds"]);
        if ids.is_empty() {
            return Err(refusal("DeploymentTargetIdRequiredException", "At least one target ID must be specified."));
        }
        if ids.len() > 25 {
            let why = "The maximum number of target IDs is 25.";
            return Err(refusal("DeploymentTargetListSizeExceededException", why));
        }
        Ok(json!({ "deploymentTargets": self.targets(asked, &ids)? }))
    }

    fn targets(&mut self, asked: &Value, ids: &[&str]) -> Result<Vec<Value>, Refusal> {
        let region = self.region.clone();
        let it = self.deployment(asked)?;
        let found = |id: &&str| {
            let target = it.targets.iter().find(|target| target.id == **id);
            let why = format!("No target found for id: {id}");
            target.ok_or_else(|| refusal("DeploymentTargetDoesNotExistException", why))
        };
        ids.iter().map(|id| Ok(it.describe_target(found(id)?, ACCOUNT, &region))).collect()
    }

    fn put_hook(&mut self, asked: &Value, now: Timestamp) -> Answer {
        let status = asked["status"].as_str().unwrap_or_default().to_owned();
        if !["Succeeded", "Failed"].contains(&status.as_str()) {
            let why = "Only Succeeded and Failed are accepted.";
            return Err(refusal("InvalidLifecycleEventHookExecutionStatusException", why));
        }
        let given = asked["lifecycleEventHookExecutionId"].as_str().unwrap_or_default().to_owned();
        let it = self.deployment(asked)?;
        if !it.hooks().any(|id| id == given) {
            let why = "The hook execution id is not one of this deployment.";
            return Err(refusal("InvalidLifecycleEventHookExecutionIdException", why));
        }
        let Some((Wait::Hook(target, event), _)) = it.waits.filter(|_| it.waiting_hook().as_ref() == Some(&given))
        else {
            let why = "The lifecycle event has already completed.";
            return Err(refusal("LifecycleEventAlreadyCompletedException", why));
        };
        let id = it.id.clone();
        (it.waits, it.due) = (None, Some(now));
        if status == "Failed" {
            self.fail(&id, target, event, "the hook said that it failed", now);
        }
        Ok(json!({ "lifecycleEventHookExecutionId": given }))
    }
}

impl Deployment {
    /// The ids that its hooks are called with.
    fn hooks(&self) -> impl Iterator<Item = String> {
        let names = self.targets.iter().flat_map(|target| &target.events).map(|event| event.name);
        names.map(|name| format!("hook-{}-{name}", self.id))
    }

    /// The id of the hook that it waits for.
    pub(super) fn waiting_hook(&self) -> Option<String> {
        match self.waits {
            Some((Wait::Hook(_, event), _)) => Some(format!("hook-{}-{event}", self.id)),
            _ => None,
        }
    }
}

/// Takes over what a request says of a group, if it may be said.
fn merge(settings: &mut Value, asked: &Value) -> Result<(), Refusal> {
    check_auto_rollback(&asked["autoRollbackConfiguration"])?;
    check_alarms(&asked["alarmConfiguration"])?;
    for (member, value) in asked.as_object().into_iter().flatten() {
        let kept = [
            "deploymentConfigName",
            "ec2TagFilters",
            "ec2TagSet",
            "autoScalingGroups",
            "serviceRoleArn",
            "alarmConfiguration",
            "autoRollbackConfiguration",
            "deploymentStyle",
            "outdatedInstancesStrategy",
            "blueGreenDeploymentConfiguration",
            "loadBalancerInfo",
            "ecsServices",
            "triggerConfigurations",
        ];
        if kept.contains(&member.as_str()) {
            settings[member] = value.clone();
        }
    }
    Ok(())
}

fn check_auto_rollback(it: &Value) -> Result<(), Refusal> {
    if it["enabled"].as_bool() != Some(true) {
        return Ok(());
    }
    let events = texts(&it["events"]);
    let known = ["DEPLOYMENT_FAILURE", "DEPLOYMENT_STOP_ON_ALARM", "DEPLOYMENT_STOP_ON_REQUEST"];
    if events.is_empty() || events.iter().any(|event| !known.contains(event)) {
        let why = "The automatic rollback configuration is enabled, and names no valid event.";
        return Err(refusal("InvalidAutoRollbackConfigException", why));
    }
    Ok(())
}

fn check_alarms(it: &Value) -> Result<(), Refusal> {
    let names: Vec<&str> = it["alarms"].as_array().into_iter().flatten().filter_map(|it| it["name"].as_str()).collect();
    let unique: BTreeSet<&str> = names.iter().copied().collect();
    let on = it["enabled"].as_bool() == Some(true);
    if on && names.is_empty() || unique.len() < names.len() || names.iter().any(|name| name.len() > 255) {
        let why = "The format of the alarm configuration is invalid.";
        return Err(refusal("InvalidAlarmConfigException", why));
    }
    if names.len() > 50 {
        return Err(refusal(
            "AlarmsLimitExceededException",
            "The maximum number of alarms for a deployment group is 50.",
        ));
    }
    Ok(())
}

fn needed<'a>(asked: &'a Value, name: &str, code: &str) -> Result<&'a str, Refusal> {
    let given = asked[name].as_str().filter(|it| !it.is_empty());
    given.ok_or_else(|| refusal(code, format!("{name} is required.")))
}

fn texts(list: &Value) -> Vec<&str> {
    list.as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

fn limit(given: usize, most: usize) -> Result<(), Refusal> {
    if given > most {
        let why = format!("The maximum number of names or ids in a batch is {most}.");
        return Err(refusal("BatchLimitExceededException", why));
    }
    Ok(())
}

/// An id that is always the same for a name.
fn id_of(name: &str) -> String {
    let hash = hex(&Sha256::digest(name));
    format!("{}-{}-{}-{}-{}", &hash[..8], &hash[8..12], &hash[12..16], &hash[16..20], &hash[20..32])
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Claims what is CodeDeploy's.
pub(in crate::testing) fn route(request: &Request<Bytes>) -> Option<Called> {
    let operation = wire::json_1_1(request, "CodeDeploy_20141006.")?;
    Some(Called { service: Service::CodeDeploy, protocol: Protocol::Json11, operation })
}

/// What whoever deploys must be allowed: to override the group's alarms is to update the group (API reference,
/// CreateDeployment).
pub(in crate::testing) fn needs(request: &Request<Bytes>) -> Vec<String> {
    let asked = wire::json_body(request).unwrap_or_default();
    let overrides = asked["overrideAlarmConfiguration"].is_object().then_some("codedeploy:UpdateDeploymentGroup");
    ["codedeploy:CreateDeployment"].into_iter().chain(overrides).map(str::to_owned).collect()
}

/// How many ids of targets a page has; how many the real one has is not documented.
const TARGETS: usize = 100;
