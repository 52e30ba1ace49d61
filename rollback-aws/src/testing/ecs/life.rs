//! The course of a service deployment, leg by leg.

use std::{collections::VecDeque, time::Duration};

use jiff::Timestamp;
use serde_json::{Value, json};

use super::model::{Deployment, Families, Hook, Leg, Revision, Service, Task, Weights, strategy};

/// How long things take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Takes {
    /// Until a deployment that was created begins.
    pub(super) begin: Duration,
    /// Until a task runs, or fails.
    pub(super) start: Duration,
    /// A stage, and a shift of traffic.
    pub(super) stage: Duration,
    /// Until tasks that are no longer wanted are gone.
    pub(super) clear: Duration,
    /// Until a rollback that was asked for begins.
    pub(super) go_back: Duration,
    /// How long a rolling update with alarms listens to them when all tasks are new; ECS computes it of the alarms.
    pub(super) alarm_bake: Duration,
}

/// What the course of a service depends on besides itself.
pub(super) struct Around<'a> {
    pub(super) families: &'a Families,
    /// Whether an alarm fires.
    pub(super) fires: &'a dyn Fn(&str) -> bool,
    pub(super) takes: Takes,
    /// Whether `lifecycleStage` tells of the stage before a shift, which the API's text has and its enum has not.
    pub(super) tells_pre_production: bool,
}

impl Service {
    /// Begins a deployment of this task definition. What is on its way is stopped where it is.
    pub(super) fn deploy(&mut self, task_definition: &str, now: Timestamp, around: &Around<'_>) {
        let before = self.in_place();
        if let Some(last) = self.deployments.last_mut().filter(|last| last.is_ongoing()) {
            last.end("STOPPED", now);
            last.stopped = Some(now);
            last.reason = Some("Service deployment stopped because a new service deployment was started.".into());
        }
        let completed = self.deployments.iter().rev().find(|it| it.status == "SUCCESSFUL").map(|it| it.target.clone());
        let completed = completed.or(before);
        let mut sources: Vec<String> = completed.into_iter().collect();
        for revision in &self.revisions {
            if self.running(&revision.arn) > 0 && !sources.contains(&revision.arn) {
                sources.push(revision.arn.clone());
            }
        }
        let target = format!("{}/{}", self.arn.replacen(":service/", ":service-revision/", 1), digits());
        let task_definition = task_definition.to_owned();
        self.task_definition.clone_from(&task_definition);
        self.revisions.push(Revision { arn: target.clone(), task_definition, created: now });
        let alarms = &self.config["alarms"];
        let mut listened: Vec<String> =
            alarms["alarmNames"].as_array().into_iter().flatten().filter_map(Value::as_str).map(Into::into).collect();
        // Developer guide, "How CloudWatch alarms detect Amazon ECS deployment failures": with one that fires already,
        // none is used for this deployment.
        if alarms["enable"] != true || listened.iter().any(|name| (around.fires)(name)) {
            listened.clear();
        }
        let shifted = strategy(&self.config) != "ROLLING";
        let legs = legs(&self.config, &around.takes, !listened.is_empty(), sources.is_empty());
        self.deployments.push(Deployment {
            arn: format!("{}/{}", self.arn.replacen(":service/", ":service-deployment/", 1), id()),
            created: now,
            started: None,
            finished: None,
            stopped: None,
            updated: now,
            sources,
            target,
            status: "PENDING",
            reason: None,
            stage: None,
            hooks: Vec::new(),
            config: self.config.clone(),
            weights: shifted.then_some(Weights { production: 0.0, test: 0.0 }),
            rollback: None,
            failures: 0,
            alarms: listened,
            triggered: Vec::new(),
            legs,
            until: None,
            begun: false,
        });
        self.pass(now, around);
    }

    /// Turns the deployment back to its source; one without a source just stops.
    pub(super) fn go_back(&mut self, reason: &str, now: Timestamp) {
        let Some(last) = self.deployments.last_mut().filter(|it| it.is_ongoing() && !it.is_going_back()) else {
            return;
        };
        last.reason = Some(reason.into());
        last.updated = now;
        if let Some(hook) = last.hooks.last_mut().filter(|hook| hook.status == "AWAITING_ACTION") {
            hook.status = "FAILED";
        }
        let Some(source) = last.sources.first().cloned() else {
            last.end("STOPPED", now);
            last.stopped = Some(now);
            return;
        };
        last.status = "ROLLBACK_REQUESTED";
        last.rollback = Some((reason.into(), now, source));
        last.failures = 0;
        last.legs = [Leg::GoBack, Leg::Restore, Leg::Clear].into();
        last.begun = false;
    }

    /// Stops the deployment where it is.
    fn stop(&mut self, reason: &str, now: Timestamp) {
        if let Some(last) = self.deployments.last_mut().filter(|it| it.is_ongoing()) {
            last.end("STOPPED", now);
            last.stopped = Some(now);
            last.reason = Some(reason.into());
        }
    }

    /// Answers the hook that waits.
    pub(super) fn answer_hook(&mut self, goes_on: bool, status: &'static str, now: Timestamp) {
        let Some(last) = self.deployments.last_mut() else { return };
        let Some(hook) = last.hooks.last_mut().filter(|hook| hook.status == "AWAITING_ACTION") else { return };
        hook.status = status;
        if goes_on {
            last.until = Some(now);
        } else {
            let why = match status {
                "TIMED_OUT" => "Service deployment rolled back because a PAUSE lifecycle hook timed out.",
                _ => "Service deployment rolled back because of a ContinueServiceDeployment request.",
            };
            self.go_back(why, now);
        }
    }

    /// When something happens next, after what has passed.
    pub(super) fn next_due(&self, passed: Timestamp) -> Option<Timestamp> {
        let tasks = self.tasks.iter().filter(|task| task.is_pending()).map(|task| task.runs_at);
        let last = self.current().filter(|it| it.is_ongoing());
        let until = last.and_then(|it| it.until);
        let hook = last.and_then(|it| it.paused()).map(|hook| hook.expires);
        let listens = last.filter(|it| !it.alarms.is_empty() && !it.is_going_back());
        let tick = listens.and_then(|_| Timestamp::from_second((passed.as_second().div_euclid(10) + 1) * 10).ok());
        tasks.chain(until).chain(hook).chain(tick).min()
    }

    /// Lets everything happen that is due.
    pub(super) fn pass(&mut self, now: Timestamp, around: &Around<'_>) {
        self.pass_tasks(now);
        if let Some(last) = self.deployments.last().filter(|it| it.is_ongoing()) {
            let expired = last.paused().filter(|hook| hook.expires <= now).map(|hook| hook.action == "CONTINUE");
            if let Some(goes_on) = expired {
                self.answer_hook(goes_on, "TIMED_OUT", now);
            }
        }
        self.guard(now, around);
        while self.advance(now, around) {}
    }

    fn pass_tasks(&mut self, now: Timestamp) {
        let hour = jiff::SignedDuration::from_hours(1);
        // Stopped tasks can be described for about an hour (API, DescribeTasks).
        self.tasks.retain(|task| task.stopped.as_ref().is_none_or(|(at, _)| now.duration_since(*at) < hour));
        let (mut failed, mut healthy) = (0, 0);
        let watched = self.current().filter(|it| it.is_ongoing()).map(|it| match it.is_going_back() {
            true => it.sources.first().cloned().unwrap_or_default(),
            false => it.target.clone(),
        });
        for task in self.tasks.iter_mut().filter(|task| task.is_pending() && task.runs_at <= now) {
            let counts = u64::from(watched.as_ref() == Some(&task.revision));
            match &task.failure {
                Some(failure) => {
                    task.stopped = Some((now, failure.reason.clone()));
                    failed += counts;
                }
                None => {
                    task.started = Some(now);
                    healthy += counts;
                }
            }
        }
        if let Some(last) = self.deployments.last_mut().filter(|_| failed + healthy > 0) {
            let resets = last.config["deploymentCircuitBreaker"]["resetOnHealthyTask"] != false;
            last.failures = if healthy > 0 && resets { 0 } else { last.failures + failed };
        }
    }

    /// ECS's own guards: circuit breaker and alarms.
    fn guard(&mut self, now: Timestamp, around: &Around<'_>) {
        let desired = self.desired;
        let Some(last) = self.deployments.last_mut().filter(|it| it.is_ongoing() && it.started.is_some()) else {
            return;
        };
        let tripped = last.failures >= last.threshold(desired);
        if last.is_going_back() {
            if tripped {
                last.end("ROLLBACK_FAILED", now);
            }
            return;
        }
        if last.breaker("enable") && tripped {
            let id = last.arn.rsplit('/').next().unwrap_or_default().to_owned();
            let goes_back = last.breaker("rollback");
            self.say(
                now,
                format!("(service {}) (deployment {id}) deployment failed: tasks failed to start.", self.name),
            );
            return if goes_back {
                self.go_back("Service deployment rolled back because the circuit breaker threshold was exceeded.", now);
            } else {
                self.stop("Service deployment stopped because the circuit breaker threshold was exceeded.", now);
            };
        }
        last.triggered = last.alarms.iter().filter(|name| (around.fires)(name)).cloned().collect();
        if !last.triggered.is_empty() {
            let names = last.triggered.join(",");
            if last.config["alarms"]["rollback"] == true {
                self.go_back(&format!("Service deployment rolled back because alarms were detected: {names}"), now);
            } else {
                self.stop(&format!("Service deployment stopped because alarms were detected: {names}"), now);
            }
        }
    }

    /// Ends the present leg if it is over, and begins the next. False when nothing more happens now.
    fn advance(&mut self, now: Timestamp, around: &Around<'_>) -> bool {
        let Some(last) = self.deployments.last().filter(|it| it.is_ongoing()) else { return false };
        let Some(leg) = last.legs.front().cloned() else {
            let (target, end) = match last.is_going_back() {
                true => (last.sources.first().cloned().unwrap_or_default(), "ROLLBACK_SUCCESSFUL"),
                false => (last.target.clone(), "SUCCESSFUL"),
            };
            self.deployments.last_mut().expect("there is one").end(end, now);
            if self.running(&target) == self.desired {
                self.say(now, format!("(service {}) has reached a steady state.", self.name));
            }
            return false;
        };
        let begun = last.begun;
        if !begun {
            self.begin(&leg, now, around);
        }
        if self.is_over(&leg, now, around) {
            let last = self.deployments.last_mut().expect("there is one");
            last.legs.pop_front();
            last.begun = false;
            last.until = None;
            return true;
        }
        false
    }

    fn begin(&mut self, leg: &Leg, now: Timestamp, around: &Around<'_>) {
        let Takes { begin, stage, clear, go_back, .. } = around.takes;
        let (target, source) = {
            let last = self.deployments.last().expect("it has a leg");
            (last.target.clone(), last.sources.first().cloned())
        };
        let last = self.deployments.last_mut().expect("it has a leg");
        last.begun = true;
        last.updated = now;
        last.until = None;
        if !matches!(leg, Leg::Pending) && !last.is_going_back() {
            last.status = "IN_PROGRESS";
            last.started.get_or_insert(now);
        }
        let shares = |last: &mut Deployment, production: Option<f64>, test: f64| {
            if let Some(weights) = &mut last.weights {
                weights.production = production.unwrap_or(weights.production);
                weights.test = test;
            }
        };
        match leg {
            Leg::Pending => last.until = Some(now + begin),
            Leg::Stage(name) => {
                if *name != PRE_PRODUCTION || around.tells_pre_production {
                    last.stage = Some(*name);
                }
                match pause(&last.config, name) {
                    Some((minutes, action)) => last.hooks.push(Hook {
                        id: format!("ecs-pause-{}{}", id(), id()),
                        status: "AWAITING_ACTION",
                        expires: now + Duration::from_secs(60 * minutes),
                        action,
                    }),
                    None => last.until = Some(now + stage),
                }
            }
            Leg::ScaleUp => last.stage = Some("SCALE_UP"),
            Leg::Test => {
                last.stage = Some("TEST_TRAFFIC_SHIFT");
                shares(last, None, 100.0);
                last.until = Some(now + stage);
            }
            Leg::Shift(share) => {
                last.stage = Some("PRODUCTION_TRAFFIC_SHIFT");
                shares(last, Some(*share), 100.0);
                last.until = Some(now + stage);
            }
            Leg::Bake(name, time) => {
                last.stage = Some(*name);
                last.until = Some(now + *time);
            }
            Leg::CleanUp => {
                last.stage = Some("CLEAN_UP");
                last.until = Some(now + clear);
                self.stop_tasks(|task| task.revision != target, usize::MAX, now);
            }
            Leg::Roll => {}
            Leg::GoBack => last.until = Some(now + go_back),
            Leg::Restore => {
                last.status = "ROLLBACK_IN_PROGRESS";
                shares(last, Some(0.0), 0.0);
                let back = source.and_then(|it| self.revision(&it).map(|it| it.task_definition.clone()));
                self.task_definition = back.unwrap_or_default();
            }
            Leg::Clear => {
                last.until = Some(now + clear);
                self.stop_tasks(|task| task.revision == target, usize::MAX, now);
            }
        }
    }

    fn is_over(&mut self, leg: &Leg, now: Timestamp, around: &Around<'_>) -> bool {
        let last = self.deployments.last().expect("it has a leg");
        let (target, source) = (last.target.clone(), last.sources.first().cloned().unwrap_or_default());
        match leg {
            Leg::ScaleUp => {
                self.scale(&target, now, around);
                self.running(&target) >= self.desired
            }
            Leg::Roll => self.roll(&target, now, around),
            Leg::Restore => {
                if self.fails_rollbacks {
                    self.deployments.last_mut().expect("it has a leg").end("ROLLBACK_FAILED", now);
                    return false;
                }
                self.scale(&source, now, around);
                self.running(&source) >= self.desired
            }
            _ => last.until.is_some_and(|until| until <= now),
        }
    }

    /// Starts tasks of a revision until as many as desired run or are on their way.
    fn scale(&mut self, revision: &str, now: Timestamp, around: &Around<'_>) {
        while self.running(revision) + self.pending(revision) < self.desired {
            self.start(revision, now, around);
        }
    }

    /// Replaces tasks within the service's bounds. Whether all are replaced.
    fn roll(&mut self, target: &str, now: Timestamp, around: &Around<'_>) -> bool {
        let config = &self.current().expect("it rolls").config;
        let most = self.desired * config["maximumPercent"].as_u64().unwrap_or(200) / 100;
        let least = (self.desired * config["minimumHealthyPercent"].as_u64().unwrap_or(100)).div_ceil(100);
        let runs = self.tasks.iter().filter(|task| task.runs()).count() as u64;
        self.stop_tasks(|task| task.revision != target, runs.saturating_sub(least) as usize, now);
        loop {
            let all = self.tasks.iter().filter(|task| task.stopped.is_none()).count() as u64;
            if self.running(target) + self.pending(target) >= self.desired || all >= most {
                break;
            }
            self.start(target, now, around);
        }
        self.running(target) >= self.desired
            && !self.tasks.iter().any(|it| it.stopped.is_none() && it.revision != target)
    }

    fn start(&mut self, revision: &str, now: Timestamp, around: &Around<'_>) {
        let task_definition = self.revision(revision).map(|it| it.task_definition.clone()).unwrap_or_default();
        let known = find(around.families, &task_definition);
        let text = |it: &Value, name: &str| it[name].as_str().unwrap_or_default().to_owned();
        let containers =
            known.map(|it| it.containers().iter().map(|it| (text(it, "name"), text(it, "image"))).collect());
        self.tasks.push(Task {
            arn: format!("{}/{}", self.cluster_arn.replacen(":cluster/", ":task/", 1), uuid::Uuid::new_v4().simple()),
            revision: revision.into(),
            containers: containers.unwrap_or_default(),
            failure: known.and_then(|it| it.failure()),
            task_definition,
            created: now,
            runs_at: now + around.takes.start,
            started: None,
            stopped: None,
        });
    }

    /// As tasks run that nobody started.
    pub(super) fn run_at_once(&mut self, now: Timestamp) {
        for task in self.tasks.iter_mut().filter(|task| task.is_pending()) {
            task.failure = None;
            task.started = Some(now);
        }
    }

    fn stop_tasks(&mut self, which: impl Fn(&Task) -> bool, most: usize, now: Timestamp) {
        let reason = "Scaling activity initiated by (deployment)";
        for task in self.tasks.iter_mut().filter(|it| it.stopped.is_none() && which(it)).take(most) {
            task.stopped = Some((now, reason.into()));
            task.failure = None;
        }
    }
}

impl Deployment {
    fn end(&mut self, status: &'static str, now: Timestamp) {
        self.status = status;
        self.finished = Some(now);
        self.updated = now;
        self.until = None;
        self.legs.clear();
        if status != "STOPPED" && status != "ROLLBACK_FAILED" {
            self.stage = None;
        }
    }
}

/// A task definition by its ARN.
pub(super) fn find<'a>(families: &'a Families, arn: &str) -> Option<&'a super::model::TaskDefinition> {
    families.values().flatten().find(|it| it.arn == arn)
}

/// The course of a deployment by this configuration.
fn legs(config: &Value, takes: &Takes, listens: bool, first: bool) -> VecDeque<Leg> {
    let minutes = |of: &Value, default: u64| Duration::from_secs(60 * of.as_u64().unwrap_or(default));
    let steps: Vec<(f64, Duration)> = match strategy(config) {
        // The first deployment of a service has nothing to shift from.
        _ if first => return [Leg::Pending, Leg::Roll].into(),
        "BLUE_GREEN" => vec![(100.0, Duration::ZERO)],
        "CANARY" => {
            let set = &config["canaryConfiguration"];
            let share = set["canaryPercent"].as_f64().unwrap_or(5.0);
            vec![(share, minutes(&set["canaryBakeTimeInMinutes"], 10)), (100.0, Duration::ZERO)]
        }
        "LINEAR" => {
            let set = &config["linearConfiguration"];
            let (by, bake) = (set["stepPercent"].as_f64().unwrap_or(10.0), minutes(&set["stepBakeTimeInMinutes"], 6));
            let count = (100.0 / by).ceil() as u32;
            (1..=count).map(|n| (f64::from(n) * by).min(100.0)).map(|share| (share, bake)).collect()
        }
        _ => {
            let mut legs: VecDeque<Leg> = [Leg::Pending, Leg::Roll].into();
            legs.extend(listens.then_some(Leg::Bake("BAKE_TIME", takes.alarm_bake)));
            return legs;
        }
    };
    let mut legs: VecDeque<Leg> = [
        Leg::Pending,
        Leg::Stage("PRE_SCALE_UP"),
        Leg::ScaleUp,
        Leg::Stage("POST_SCALE_UP"),
        Leg::Test,
        Leg::Stage("POST_TEST_TRAFFIC_SHIFT"),
    ]
    .into();
    for (share, bake) in steps {
        legs.push_back(Leg::Stage(PRE_PRODUCTION));
        legs.push_back(Leg::Shift(share));
        // API, LinearConfiguration: this time is not applied after reaching 100 percent.
        if share < 100.0 {
            legs.push_back(Leg::Bake("PRODUCTION_TRAFFIC_SHIFT", bake));
        }
    }
    let bake = Leg::Bake("BAKE_TIME", minutes(&config["bakeTimeInMinutes"], 0));
    legs.extend([Leg::Stage("POST_PRODUCTION_TRAFFIC_SHIFT"), bake, Leg::CleanUp]);
    legs
}

/// Minutes and action of the pause hook at a stage, if there is one.
fn pause(config: &Value, stage: &str) -> Option<(u64, String)> {
    let hooks = config["lifecycleHooks"].as_array()?;
    let at = |hook: &&Value| hook["lifecycleStages"].as_array().is_some_and(|all| all.contains(&json!(stage)));
    let hook = hooks.iter().find(|hook| hook["targetType"] == "PAUSE" && at(hook))?;
    let set = &hook["timeoutConfiguration"];
    let action = set["action"].as_str().unwrap_or("ROLLBACK");
    Some((set["timeoutInMinutes"].as_u64().unwrap_or(1440), action.into()))
}

fn id() -> String {
    uuid::Uuid::new_v4().simple().to_string()[..21].into()
}

fn digits() -> String {
    format!("{:019}", uuid::Uuid::new_v4().as_u64_pair().0 % 10_u64.pow(19))
}

pub(super) const PRE_PRODUCTION: &str = "PRE_PRODUCTION_TRAFFIC_SHIFT";
