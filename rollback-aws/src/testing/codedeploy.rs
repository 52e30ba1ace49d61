//! CodeDeploy's room: applications, groups, configurations, and the life of every deployment.
//!
//! What is observed of the real service, and from where:
//!
//! - EV1 to EV3, published recordings of real runs: `josefloressv/aws-devops-engineer` bd7c90a,
//!   `scenarios/domain-1-sdlc/ecs-bluegreen-codedeploy` (ECS, linear) and the SAM canary beside it (Lambda), and a Lambda
//!   canary of August 2026. `Created` for two or three seconds; an ECS deployment is `InProgress` until its termination wait
//!   is over; an alarm makes it `Stopped` within half a minute, `ALARM_ACTIVE`, its traffic back already; a rollback is a
//!   new deployment by `codeDeployRollback`, all at once whatever the group says, deaf to alarms, calling no hooks.
//! - the API reference and the user guide: lifecycle events and their order, which call is refused with which error.
//!
//! What neither tells, and is decided here: the words of most refusals, how long an event takes, what is said when there is
//! nothing to roll back to, the code of a stop by request (`MANUAL_STOP`, which is in the enum), that there is no rollback
//! where another deployment runs by then, and that an AppSpec whose `CurrentVersion` is not what the alias is at fails.

mod api;
mod hands;
mod life;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use jiff::Timestamp;
use serde_json::{Value, json};

pub(super) use self::api::{needs, route};
pub use self::hands::{Hands, Shape, Snapshot};
use self::life::{ALLOW, BLOCK, Deployment, ECS, INSTALL, Platform, Step, Target, Wait, shares, target};
use super::{ACCOUNT, wire::Refusal};

/// What CodeDeploy knows.
#[derive(Clone, Debug)]
pub(super) struct Room {
    region: String,
    apps: BTreeMap<String, App>,
    configs: BTreeMap<String, Value>,
    deployments: BTreeMap<String, Deployment>,
    /// Ids in the order of their creation.
    order: Vec<String>,
    serial: u64,
    /// Revisions that fail, by their key, and at which event.
    broken: BTreeMap<String, String>,
    /// Instances on which nothing succeeds.
    sick: BTreeSet<String>,
    /// How long a stop takes that was asked for.
    stopping: Duration,
    /// Whether rollbacks are made when they are due.
    rolls_back: bool,
    /// How long after the end of a deployment its rollback is made.
    rollbacks_after: Duration,
    /// How long groups do not tell of a new deployment.
    groups_lag: Duration,
    /// How far the times that deployments end at lie behind.
    behind: Duration,
    /// Application and group of deployments that may not be read.
    hidden: BTreeSet<(String, String)>,
}

#[derive(Clone, Debug)]
struct App {
    platform: String,
    /// By their key, with content.
    revisions: BTreeMap<String, Value>,
    groups: BTreeMap<String, Group>,
}

#[derive(Clone, Debug)]
struct Group {
    id: String,
    /// As `GetDeploymentGroup` shows it, without what deployments leave there.
    settings: Value,
    instances: Vec<String>,
    /// What each target serves.
    estate: BTreeMap<String, Estate>,
    succeeded: Option<String>,
    attempted: Option<String>,
}

/// What a target serves: the key of a revision, and another one's with its share in percent.
#[derive(Clone, Debug, Default, PartialEq)]
struct Estate {
    stable: String,
    other: Option<(String, f64)>,
}

/// What the room must know of the alarms at a time.
pub(super) trait AlarmsNow {
    /// The state of an alarm; none when there is no such alarm.
    fn fires(&self, name: &str) -> Option<bool>;
}

impl Room {
    pub(super) fn new(region: &str) -> Self {
        Self {
            region: region.into(),
            apps: BTreeMap::new(),
            configs: predefined(),
            deployments: BTreeMap::new(),
            order: Vec::new(),
            serial: 0,
            broken: BTreeMap::new(),
            sick: BTreeSet::new(),
            stopping: Duration::from_secs(4),
            rolls_back: true,
            rollbacks_after: Duration::ZERO,
            groups_lag: Duration::ZERO,
            behind: Duration::ZERO,
            hidden: BTreeSet::new(),
        }
    }

    /// When something happens next by itself, if before now.
    pub(super) fn next(&self, now: Timestamp) -> Option<Timestamp> {
        self.deployments.values().filter_map(next_of).min().filter(|at| *at < now)
    }

    /// Lets everything happen until then.
    pub(super) fn pass(&mut self, until: Timestamp, alarms: &dyn AlarmsNow) {
        loop {
            let next = self.deployments.values().filter_map(|it| Some((next_of(it)?, it.id.clone()))).min();
            let Some((at, id)) = next.filter(|(at, _)| *at <= until) else { break };
            self.step(&id, at, alarms);
        }
    }

    fn step(&mut self, id: &str, now: Timestamp, alarms: &dyn AlarmsNow) {
        let Some(it) = self.deployments.get_mut(id) else { return };
        if it.rollback_at.take_if(|at| *at <= now).is_some() {
            return self.roll_back(id, now);
        }
        // A stop that was asked for comes before everything else.
        if let Some((at, roll_back)) = it.stopping
            && at <= now
        {
            return self.stop(id, now, "MANUAL_STOP", "The deployment was stopped by request.".into(), roll_back);
        }
        if it.polled <= now && !it.alarms.is_empty() {
            it.polled = now + POLL;
            let active: Vec<&str> =
                it.alarms.iter().map(String::as_str).filter(|name| alarms.fires(name) == Some(true)).collect();
            if !active.is_empty() {
                let why = format!(
                    "One or more alarms have been activated according to the Amazon CloudWatch metrics you selected, and \
                     the affected deployments have been stopped. Activated alarms: <{}>",
                    active.join("> <")
                );
                return self.stop(id, now, "ALARM_ACTIVE", why, None);
            }
        }
        if let Some((wait, until)) = it.waits
            && until <= now
        {
            return self.waited(id, wait, now);
        }
        if it.due.is_some_and(|due| due <= now)
            && let Some((_, step)) = it.steps.pop_front()
        {
            it.due = it.steps.front().map(|(after, _)| now + *after);
            self.take(id, step, now);
        }
    }

    /// A wait has run out.
    fn waited(&mut self, id: &str, wait: Wait, now: Timestamp) {
        let it = self.deployments.get_mut(id).expect("it waits");
        match wait {
            Wait::Ready => {
                let why = "The deployment timed out while waiting for traffic rerouting to be started manually.";
                self.stop(id, now, "TIMEOUT", why.into(), None);
            }
            Wait::Termination => {
                it.waits = None;
                it.due = Some(now);
            }
            Wait::Hook(target, event) => {
                it.waits = None;
                self.fail(id, target, event, "the hook did not answer within an hour", now);
            }
        }
    }

    fn take(&mut self, id: &str, step: Step, now: Timestamp) {
        let it = self.deployments.get_mut(id).expect("it has steps");
        let key = key(&it.revision);
        let group = self.apps.get_mut(&it.app).and_then(|app| app.groups.get_mut(&it.group));
        let Some(group) = group else { return };
        match step {
            Step::Status(status) => {
                it.status = status;
                if status == "InProgress" && it.started.is_none() {
                    it.started = Some(now);
                }
            }
            Step::Begin(at, name) => {
                if it.targets[at].status == "Failed" {
                    return;
                }
                it.targets[at].status = "InProgress";
                it.targets[at].updated = now;
                if let Some(event) = it.event(at, name) {
                    (event.status, event.began) = ("InProgress", Some(now));
                }
            }
            Step::Hook(at, name) => {
                it.waits = Some((Wait::Hook(at, name), now + HOOK));
                it.due = None;
            }
            Step::End(at, name) => {
                let target = &mut it.targets[at];
                if target.status == "Failed" {
                    return;
                }
                let sick = self.sick.contains(&target.id);
                if sick || it.rolls_back.is_none() && self.broken.get(&key).is_some_and(|event| event == name) {
                    return self.fail(id, at, name, "the script of the event failed", now);
                }
                target.updated = now;
                if let Some(event) = it.event(at, name) {
                    (event.status, event.ended) = ("Succeeded", Some(now));
                }
            }
            Step::Weight(at, weight) => {
                it.targets[at].weight = weight;
                it.targets[at].updated = now;
                let estate = group.estate.entry(it.targets[at].id.clone()).or_default();
                estate.other = Some((key, weight));
            }
            Step::Serves(at) => {
                if it.targets[at].status != "Failed" {
                    group.estate.insert(it.targets[at].id.clone(), Estate { stable: key, other: None });
                }
            }
            Step::Blocked(at) => drop(group.estate.remove(&it.targets[at].id)),
            Step::Done(at) => {
                if it.targets[at].status != "Failed" {
                    it.targets[at].status = "Succeeded";
                    it.targets[at].updated = now;
                }
            }
            Step::Ready(wait) => {
                it.status = "Ready";
                it.due = None;
                for target in it.targets.iter_mut().filter(|target| target.status == "InProgress") {
                    target.status = "Ready";
                }
                it.waits = Some((Wait::Ready, now + wait));
            }
            Step::Terminating(wait) => {
                it.due = None;
                it.waits = Some((Wait::Termination, now + wait));
            }
            Step::Clear => {
                let green: Vec<String> =
                    it.targets.iter().filter(|t| t.label == Some("Green")).map(|t| t.id.clone()).collect();
                if !green.is_empty() {
                    group.instances = green;
                }
            }
            Step::Succeed => {
                if it.targets.iter().all(|target| target.status != "Succeeded") {
                    let why = "The overall deployment failed because too many individual instances failed deployment.";
                    return self.end(id, now, "Failed", Some(("HEALTH_CONSTRAINTS", why.into())), None);
                }
                for target in &it.targets {
                    if let Some(estate) = group.estate.get_mut(&target.id)
                        && estate.other.take().is_some()
                    {
                        estate.stable.clone_from(&key);
                    }
                }
                group.succeeded = Some(id.into());
                self.end(id, now, "Succeeded", None, Some(false));
            }
        }
    }

    /// An event of a target failed.
    fn fail(&mut self, id: &str, at: usize, name: &str, why: &str, now: Timestamp) {
        let it = self.deployments.get_mut(id).expect("it has targets");
        if let Some(event) = it.event(at, name) {
            (event.status, event.ended) = ("Failed", Some(now));
            event.diagnostics =
                Some(json!({ "errorCode": "ScriptFailed", "scriptName": "", "message": why, "logTail": "" }));
        }
        let target = &mut it.targets[at];
        (target.status, target.updated) = ("Failed", now);
        for event in target.events.iter_mut().filter(|event| event.status == "Pending") {
            event.status = "Skipped";
        }
        let error = match it.platform {
            Platform::Ecs | Platform::Lambda => ("HOOK_EXECUTION_FAILURE", format!("The {name} hook failed: {why}.")),
            _ => {
                let count = |status: &str| it.targets.iter().filter(|target| target.status == status).count();
                let healthy = it.targets.len() - count("Failed");
                // The next one can be taken only while enough stay healthy; the last one's failure is borne (user guide,
                // instances-health).
                let goes_on = count("Pending") == 0 || healthy > it.healthy_least;
                if it.platform == Platform::InPlace && goes_on {
                    return;
                }
                let why = "The overall deployment failed because too many individual instances failed deployment, too few \
                           healthy instances are available for deployment, or some instances in your deployment group are \
                           experiencing problems.";
                ("HEALTH_CONSTRAINTS", why.into())
            }
        };
        self.end(id, now, "Failed", Some(error), None);
    }

    fn stop(&mut self, id: &str, now: Timestamp, code: &'static str, why: String, roll_back: Option<bool>) {
        self.end(id, now, "Stopped", Some((code, why)), roll_back);
    }

    /// It is over. `roll_back`: as somebody asked; none for what the group's events say.
    fn end(
        &mut self,
        id: &str,
        now: Timestamp,
        status: &'static str,
        error: Option<(&'static str, String)>,
        roll_back: Option<bool>,
    ) {
        let it = self.deployments.get_mut(id).expect("it was there");
        let event = match (status, error.as_ref().map(|(code, _)| *code)) {
            (_, Some("ALARM_ACTIVE")) => "DEPLOYMENT_STOP_ON_ALARM",
            ("Stopped", Some("MANUAL_STOP")) => "DEPLOYMENT_STOP_ON_REQUEST",
            _ => "DEPLOYMENT_FAILURE",
        };
        (it.status, it.error, it.completed) = (status, error, Some(now - self.behind));
        it.cut_short(now, "Failed");
        if status == "Succeeded" {
            return;
        }
        let configured = it.events.iter().any(|it| it == event);
        let wanted = roll_back == Some(true) || configured;
        if !wanted || !self.rolls_back {
            return;
        }
        if self.rollbacks_after.is_zero() {
            return self.roll_back(id, now);
        }
        it.rollback_at = Some(now + self.rollbacks_after);
        self.weights_back(id);
    }

    /// The weights are back before the rollback is there (EV1 to EV3).
    fn weights_back(&mut self, id: &str) {
        let from = &self.deployments[id];
        let Some(group) = self.apps.get_mut(&from.app).and_then(|app| app.groups.get_mut(&from.group)) else { return };
        if group.succeeded.is_none() {
            return;
        }
        for target in &from.targets {
            if let Some(estate) = group.estate.get_mut(&target.id) {
                estate.other = None;
            }
        }
    }

    /// CodeDeploy's own rollback: a new deployment of the last successful revision.
    fn roll_back(&mut self, id: &str, now: Timestamp) {
        let from = self.deployments[id].clone();
        if let Some(active) = self.active(&from.app, &from.group) {
            let it = self.deployments.get_mut(id).expect("it was there");
            it.message = Some(format!("Deployment {id} terminated. It is not rolled back: deployment {active} runs."));
            return;
        }
        let Some(group) = self.apps.get_mut(&from.app).and_then(|app| app.groups.get_mut(&from.group)) else { return };
        let last = group.succeeded.clone().and_then(|id| self.deployments.get(&id)).cloned();
        let Some(last) = last else {
            let it = self.deployments.get_mut(id).expect("it was there");
            it.message = Some(format!(
                "Deployment {id} terminated. It cannot be rolled back: there is no previous successful revision."
            ));
            return;
        };
        self.weights_back(id);
        let config = match from.platform {
            Platform::Ecs => "CodeDeployDefault.ECSAllAtOnce".into(),
            Platform::Lambda => "CodeDeployDefault.LambdaAllAtOnce".into(),
            _ => from.config.clone(),
        };
        let asked = json!({ "autoRollbackConfiguration": { "enabled": false } });
        let (app, name) = (from.app.clone(), from.group.clone());
        let made = self.make(&app, &name, last.revision, config, asked, "codeDeployRollback", Some(&from), now);
        let it = self.deployments.get_mut(id).expect("it was there");
        it.rolled_back_by = Some(made.clone());
        it.message =
            Some(format!("Deployment {id} terminated. Automatic rollback is triggered with a DeploymentId {made}."));
        let it = self.deployments.get_mut(&made).expect("just made");
        it.message = Some(format!("Deployment {made} is triggered to roll back deployment {id}."));
    }

    /// A Lambda deployment fails as it begins where its `CurrentVersion` is not what the alias is at.
    fn check_alias(&mut self, id: &str, now: Timestamp) {
        let it = &self.deployments[id];
        let Some([_, alias, current, _]) = it.targets.first().and_then(|target| target.lambda.as_ref()) else { return };
        let app = &self.apps[&it.app];
        let Some(estate) = app.groups[&it.group].estate.get(&it.targets[0].id) else { return };
        let serves = app.revisions.get(&estate.stable).map(spec_of).unwrap_or_default();
        let at = alias_of(&serves)[3].clone();
        if it.is_active() && at != *current {
            let why = format!("The alias {alias} is at version {at}, and not at CurrentVersion {current}.");
            self.end(id, now, "Failed", Some(("INVALID_LAMBDA_CONFIGURATION", why)), Some(false));
        }
    }

    /// Makes a deployment and plans its life. `back_from`: what it rolls back, if CodeDeploy itself does.
    #[expect(clippy::too_many_arguments, reason = "one place where a deployment is made, by two ways")]
    fn make(
        &mut self,
        app: &str,
        name: &str,
        revision: Value,
        config: String,
        asked: Value,
        creator: &'static str,
        back_from: Option<&Deployment>,
        now: Timestamp,
    ) -> String {
        self.serial += 1;
        let id = format!("d-{:09X}", 0xA10_0000_u64 + self.serial);
        let content = self.apps[app].revisions.get(&key(&revision)).cloned().unwrap_or_default();
        let group = self.apps.get_mut(app).and_then(|app| app.groups.get_mut(name)).expect("it was looked up");
        let settings = group.settings.clone();
        let platform = platform_of(&settings);
        let previous = group.succeeded.as_ref().and_then(|id| self.deployments.get(id)).map(|it| it.revision.clone());
        let auto = asked.get("autoRollbackConfiguration").unwrap_or_else(|| &settings["autoRollbackConfiguration"]);
        let alarm = asked.get("overrideAlarmConfiguration").unwrap_or_else(|| &settings["alarmConfiguration"]);
        let on = |it: &Value| it["enabled"].as_bool() == Some(true);
        let texts = |it: &Value, member: Option<&str>| -> Vec<String> {
            let list = it.as_array().into_iter().flatten();
            list.filter_map(|it| member.map_or(it, |member| &it[member]).as_str().map(str::to_owned)).collect()
        };
        let events = if on(auto) { texts(&auto["events"], None) } else { Vec::new() };
        let alarms = if on(alarm) && back_from.is_none() { texts(&alarm["alarms"], Some("name")) } else { Vec::new() };
        let routing = self.configs.get(&config).cloned().unwrap_or_default();
        let left_over = platform == Platform::Lambda && group.estate.values().any(|it| it.other.is_some());

        let mut it = Deployment {
            id: id.clone(),
            app: app.into(),
            group: name.into(),
            config,
            revision,
            previous,
            status: "Created",
            error: None,
            created: now,
            started: None,
            completed: None,
            description: asked["description"].as_str().unwrap_or_default().into(),
            creator,
            asked,
            platform,
            style: settings["deploymentStyle"].clone(),
            blue_green: settings.get("blueGreenDeploymentConfiguration").filter(|it| !it.is_null()).cloned(),
            events,
            alarms,
            polled: now + FIRST_POLL,
            rolls_back: back_from.map(|it| it.id.clone()),
            rolled_back_by: None,
            message: None,
            targets: Vec::new(),
            steps: Default::default(),
            due: None,
            waits: None,
            stopping: None,
            rollback_at: None,
            healthy_least: 0,
        };
        let mut plan = Plan::default();
        match platform {
            Platform::InPlace => in_place(&mut it, group, &routing, &mut plan, now),
            Platform::BlueGreen => blue_green(&mut it, group, back_from, &mut plan, now),
            Platform::Ecs => ecs(&mut it, group, &content, &routing, back_from.is_some(), &mut plan, now),
            Platform::Lambda => lambda(&mut it, &content, &routing, back_from.is_some(), &mut plan, now),
        }
        it.steps = plan.0.into();
        it.due = it.steps.front().map(|(after, _)| now + *after);
        group.attempted = Some(id.clone());
        self.deployments.insert(id.clone(), it);
        self.order.push(id.clone());
        if left_over && back_from.is_none() {
            // User guide, troubleshooting-deployments-lambda: deployments fail until the weights are cleared.
            let why = "The Lambda function's alias has weights of another deployment. Clear them, and deploy again.";
            self.end(&id, now, "Failed", Some(("INVALID_LAMBDA_CONFIGURATION", why.into())), Some(false));
        }
        id
    }
}

/// The steps of a life as they are planned.
#[derive(Default)]
struct Plan(Vec<(Duration, Step)>);

impl Plan {
    fn then(&mut self, after: Duration, step: Step) {
        self.0.push((after, step));
    }

    fn now(&mut self, step: Step) {
        self.then(Duration::ZERO, step);
    }

    fn event(&mut self, at: usize, name: &'static str, takes: Duration) {
        self.now(Step::Begin(at, name));
        self.then(takes, Step::End(at, name));
    }

    /// An event whose function is called, if one is named, and answers.
    fn hooked(&mut self, at: usize, name: &'static str, spec: &Value) {
        self.now(Step::Begin(at, name));
        let named = spec["Hooks"].as_array().into_iter().flatten().any(|hook| hook.get(name).is_some());
        if named {
            self.now(Step::Hook(at, name));
        }
        self.then(SECOND, Step::End(at, name));
    }

    fn start(&mut self, server: bool) {
        if server {
            self.then(SECOND, Step::Status("Queued"));
        }
        self.then(2 * SECOND, Step::Status("InProgress"));
    }
}

fn in_place(it: &mut Deployment, group: &Group, config: &Value, plan: &mut Plan, now: Timestamp) {
    let balanced = it.style["deploymentOption"] == "WITH_TRAFFIC_CONTROL";
    let events: Vec<&str> = if balanced { [BLOCK, INSTALL, ALLOW].concat() } else { INSTALL.to_vec() };
    it.targets = group.instances.iter().map(|id| target(id, None, &events, now)).collect();
    let all = it.targets.len();
    it.healthy_least = healthy_least(config, all);
    let at_once = (all - it.healthy_least).clamp(1, all.max(1));
    plan.start(true);
    let indexes: Vec<usize> = (0..all).collect();
    for batch in indexes.chunks(at_once) {
        for event in &events {
            for at in batch {
                plan.now(Step::Begin(*at, event));
            }
            for (n, at) in batch.iter().enumerate() {
                plan.then(if n == 0 { SECOND } else { Duration::ZERO }, Step::End(*at, event));
                if *event == "Install" {
                    plan.now(Step::Serves(*at));
                }
            }
        }
        for at in batch {
            plan.now(Step::Done(*at));
        }
    }
    plan.now(Step::Succeed);
}

fn blue_green(it: &mut Deployment, group: &Group, back: Option<&Deployment>, plan: &mut Plan, now: Timestamp) {
    plan.start(true);
    if let Some(from) = back {
        let green: Vec<&Target> = from.targets.iter().filter(|t| t.label == Some("Green")).collect();
        it.targets = group.instances.iter().map(|id| target(id, Some("Blue"), ALLOW, now)).collect();
        it.targets.extend(green.iter().map(|t| target(&t.id, Some("Green"), BLOCK, now)));
        for at in 0..it.targets.len() {
            let blue = it.targets[at].label == Some("Blue");
            for event in if blue { ALLOW } else { BLOCK } {
                plan.event(at, event, SECOND);
            }
            plan.now(if blue { Step::Serves(at) } else { Step::Blocked(at) });
            plan.now(Step::Done(at));
        }
        plan.now(Step::Succeed);
        return;
    }
    let green_events = [INSTALL, ALLOW].concat();
    let blues = group.instances.len();
    it.targets = group.instances.iter().map(|id| target(id, Some("Blue"), BLOCK, now)).collect();
    let fresh = |n: usize| format!("i-{}{n:02}", it.id.trim_start_matches("d-").to_ascii_lowercase());
    let greens: Vec<String> = (1..=blues).map(fresh).collect();
    it.targets.extend(greens.iter().map(|id| target(id, Some("Green"), &green_events, now)));
    plan.then(20 * SECOND, Step::Status("InProgress"));
    let green = blues..2 * blues;
    for event in INSTALL {
        for at in green.clone() {
            plan.event(at, event, if at == blues { SECOND } else { Duration::ZERO });
        }
    }
    ready(it, plan);
    for at in green {
        for event in ALLOW {
            plan.event(at, event, SECOND);
        }
        plan.now(Step::Serves(at));
        plan.now(Step::Done(at));
    }
    for at in 0..blues {
        for event in BLOCK {
            plan.event(at, event, SECOND);
        }
        plan.now(Step::Blocked(at));
        plan.now(Step::Done(at));
    }
    terminate(it, plan);
}

fn ecs(
    it: &mut Deployment,
    group: &Group,
    content: &Value,
    config: &Value,
    back: bool,
    plan: &mut Plan,
    now: Timestamp,
) {
    let service = &group.settings["ecsServices"][0];
    let name = format!(
        "{}:{}",
        service["clusterName"].as_str().unwrap_or("default"),
        service["serviceName"].as_str().unwrap_or("service")
    );
    it.targets = vec![target(&name, None, ECS, now)];
    plan.start(false);
    if back {
        // Rerouted at once: no new task set (EV1).
        for event in ECS {
            plan.event(0, event, Duration::from_millis(500));
        }
        plan.now(Step::Serves(0));
        plan.now(Step::Done(0));
        plan.now(Step::Succeed);
        return;
    }
    let spec = spec_of(content);
    plan.hooked(0, "BeforeInstall", &spec);
    plan.event(0, "Install", 20 * SECOND);
    plan.hooked(0, "AfterInstall", &spec);
    plan.event(0, "AllowTestTraffic", 2 * SECOND);
    plan.hooked(0, "AfterAllowTestTraffic", &spec);
    ready(it, plan);
    plan.hooked(0, "BeforeAllowTraffic", &spec);
    plan.now(Step::Begin(0, "AllowTraffic"));
    for (after, weight) in shares(&config["trafficRoutingConfig"]) {
        plan.then(after.max(SECOND), Step::Weight(0, weight));
    }
    plan.then(SECOND, Step::End(0, "AllowTraffic"));
    plan.hooked(0, "AfterAllowTraffic", &spec);
    terminate(it, plan);
}

fn lambda(it: &mut Deployment, content: &Value, config: &Value, back: bool, plan: &mut Plan, now: Timestamp) {
    let spec = spec_of(content);
    let alias = alias_of(&spec);
    let mut only = target(&format!("{}:{}", alias[0], alias[1]), None, ALLOW, now);
    only.lambda = Some(alias);
    it.targets = vec![only];
    plan.start(false);
    if back {
        // The events succeed, and no function is called (EV2).
        for event in ALLOW {
            plan.event(0, event, Duration::from_millis(500));
        }
        plan.now(Step::Serves(0));
    } else {
        plan.hooked(0, "BeforeAllowTraffic", &spec);
        plan.now(Step::Begin(0, "AllowTraffic"));
        for (after, weight) in shares(&config["trafficRoutingConfig"]) {
            plan.then(after.max(SECOND), Step::Weight(0, weight));
        }
        plan.then(SECOND, Step::End(0, "AllowTraffic"));
        plan.hooked(0, "AfterAllowTraffic", &spec);
    }
    plan.now(Step::Done(0));
    plan.now(Step::Succeed);
}

/// Function, alias, the version before, the version to come.
fn alias_of(spec: &Value) -> [String; 4] {
    let resource = spec["Resources"][0].as_object().and_then(|it| it.values().next()).cloned().unwrap_or_default();
    ["Name", "Alias", "CurrentVersion", "TargetVersion"]
        .map(|name| resource["Properties"][name].as_str().unwrap_or_default().to_owned())
}

/// Waits for somebody to go on, where the group says so.
fn ready(it: &Deployment, plan: &mut Plan) {
    let option = it.blue_green.as_ref().map(|it| &it["deploymentReadyOption"]);
    if let Some(option) = option.filter(|it| it["actionOnTimeout"] == "STOP_DEPLOYMENT") {
        plan.now(Step::Ready(minutes(&option["waitTimeInMinutes"])));
    }
}

fn terminate(it: &Deployment, plan: &mut Plan) {
    let option = it.blue_green.as_ref().map(|it| &it["terminateBlueInstancesOnDeploymentSuccess"]);
    let keeps = option.is_some_and(|it| it["action"] == "KEEP_ALIVE");
    let wait = option.map_or(Duration::ZERO, |it| minutes(&it["terminationWaitTimeInMinutes"]));
    if !keeps && !wait.is_zero() {
        plan.now(Step::Terminating(wait));
    }
    plan.then(SECOND, Step::Clear);
    if it.platform == Platform::Ecs {
        plan.now(Step::Done(0));
    }
    plan.now(Step::Succeed);
}

fn minutes(value: &Value) -> Duration {
    Duration::from_secs(60 * value.as_u64().unwrap_or(0))
}

/// How many instances must stay healthy: documented for minimum healthy hosts; all but one at the most, or nothing could be
/// deployed.
fn healthy_least(config: &Value, all: usize) -> usize {
    let value = usize::try_from(config["minimumHealthyHosts"]["value"].as_u64().unwrap_or(0)).unwrap_or(0);
    let least = match config["minimumHealthyHosts"]["type"].as_str() {
        Some("FLEET_PERCENT") => (all * value).div_ceil(100),
        _ if config["deploymentConfigName"] == "CodeDeployDefault.OneAtATime" => all,
        _ => value,
    };
    least.min(all.saturating_sub(1))
}

/// When something happens next to a deployment by itself.
fn next_of(it: &Deployment) -> Option<Timestamp> {
    if !it.is_active() {
        return it.rollback_at;
    }
    let polled = (!it.alarms.is_empty()).then_some(it.polled);
    [it.due, it.waits.map(|(_, until)| until), it.stopping.map(|(at, _)| at), polled].into_iter().flatten().min()
}

fn platform_of(settings: &Value) -> Platform {
    match settings["computePlatform"].as_str() {
        Some("ECS") => Platform::Ecs,
        Some("Lambda") => Platform::Lambda,
        _ if settings["deploymentStyle"]["deploymentType"] == "BLUE_GREEN" => Platform::BlueGreen,
        _ => Platform::InPlace,
    }
}

/// What a revision is known by: its place, or the hash of its content.
fn key(revision: &Value) -> String {
    for (member, names) in
        [("s3Location", &["bucket", "key", "version", "eTag"][..]), ("gitHubLocation", &["repository", "commitId"])]
    {
        if let Some(place) = revision.get(member).filter(|it| it.is_object()) {
            let words: Vec<&str> = names.iter().map(|name| place[*name].as_str().unwrap_or_default()).collect();
            return words.join("|");
        }
    }
    ["appSpecContent", "string"].into_iter().find_map(|it| revision[it]["sha256"].as_str()).unwrap_or_default().into()
}

/// The AppSpec of a revision, if it is JSON: this simulator reads no YAML.
fn spec_of(revision: &Value) -> Value {
    let content = ["appSpecContent", "string"].into_iter().find_map(|it| revision[it]["content"].as_str());
    content.and_then(|it| serde_json::from_str(it).ok()).unwrap_or_default()
}

/// The configurations that are there from the beginning (user guide, deployment-configurations).
fn predefined() -> BTreeMap<String, Value> {
    let mut all = BTreeMap::new();
    let mut add = |name: &str, platform: &str, rest: Value| {
        let name = format!("CodeDeployDefault.{name}");
        let mut config =
            json!({ "deploymentConfigName": name, "computePlatform": platform, "createTime": 1_417_392_000 });
        for (member, value) in rest.as_object().into_iter().flatten() {
            config[member] = value.clone();
        }
        all.insert(name, config);
    };
    for (name, kind, value) in
        [("OneAtATime", "HOST_COUNT", 1), ("HalfAtATime", "FLEET_PERCENT", 50), ("AllAtOnce", "HOST_COUNT", 0)]
    {
        add(name, "Server", json!({ "minimumHealthyHosts": { "type": kind, "value": value } }));
    }
    let at_once = || json!({ "trafficRoutingConfig": { "type": "AllAtOnce" } });
    let linear = |minutes: u64| {
        json!({ "trafficRoutingConfig": { "type": "TimeBasedLinear",
            "timeBasedLinear": { "linearPercentage": 10, "linearInterval": minutes } } })
    };
    let canary = |minutes: u64| {
        json!({ "trafficRoutingConfig": { "type": "TimeBasedCanary",
            "timeBasedCanary": { "canaryPercentage": 10, "canaryInterval": minutes } } })
    };
    add("ECSAllAtOnce", "ECS", at_once());
    add("ECSLinear10PercentEvery1Minutes", "ECS", linear(1));
    add("ECSLinear10PercentEvery3Minutes", "ECS", linear(3));
    add("ECSCanary10Percent5Minutes", "ECS", canary(5));
    add("ECSCanary10Percent15Minutes", "ECS", canary(15));
    add("LambdaAllAtOnce", "Lambda", at_once());
    for minutes in [5, 10, 15, 30] {
        add(&format!("LambdaCanary10Percent{minutes}Minutes"), "Lambda", canary(minutes));
    }
    add("LambdaLinear10PercentEvery1Minute", "Lambda", linear(1));
    for minutes in [2, 3, 10] {
        add(&format!("LambdaLinear10PercentEvery{minutes}Minutes"), "Lambda", linear(minutes));
    }
    all
}

fn refusal(code: &str, why: impl Into<String>) -> Refusal {
    Refusal::new(400, code, why)
}

/// Lambda functions of hooks must answer within an hour (user guide).
const HOOK: Duration = Duration::from_secs(3600);
/// How often a deployment's alarms are looked at: 12 to 29 s from `ALARM` to `Stopped` were observed (EV1 to EV3), and 0.7 s
/// for an alarm that fires already.
const POLL: Duration = Duration::from_secs(15);
const FIRST_POLL: Duration = Duration::from_millis(700);
const SECOND: Duration = Duration::from_secs(1);
