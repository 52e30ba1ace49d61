//! ECS by hand: what a test sets up and looks at without a call of the API.

use std::time::Duration;

use jiff::Timestamp;
use rollback_core::clock::Clock as _;
use serde_json::{Value, json};

use super::{Around, Room, configured, model::Service};
use crate::testing::{Simulator, World};

/// Services, without an HTTP call: somebody else's hands.
#[derive(Clone, Copy, Debug)]
pub struct Hands<'a>(pub(in crate::testing) &'a Simulator);

/// What a service is like.
#[derive(Clone, Debug)]
pub struct Setup {
    desired: u64,
    controller: String,
    config: Value,
    load_balancers: Value,
}

impl Setup {
    /// Four tasks, deployed by ECS with this `deploymentConfiguration` as the API has it; what is not named is as ECS's own
    /// defaults.
    pub fn new(deployment_configuration: Value) -> Self {
        let load_balancers = json!([]);
        Self { desired: 4, controller: "ECS".into(), config: deployment_configuration, load_balancers }
    }

    /// With these members of its `deploymentConfiguration` instead.
    #[must_use]
    pub fn with(mut self, deployment_configuration: &Value) -> Self {
        for (name, value) in deployment_configuration.as_object().into_iter().flatten() {
            self.config[name] = value.clone();
        }
        self
    }

    /// So many tasks.
    #[must_use]
    pub const fn desired(mut self, tasks: u64) -> Self {
        self.desired = tasks;
        self
    }

    /// Deployed by somebody else: `CODE_DEPLOY` or `EXTERNAL`.
    #[must_use]
    pub fn controller(mut self, kind: &str) -> Self {
        self.controller = kind.into();
        self
    }

    /// Behind a load balancer that sends traffic to this container and port.
    #[must_use]
    pub fn behind(mut self, container: &str, port: u16) -> Self {
        let group = "arn:aws:elasticloadbalancing:us-east-1:123456789012:targetgroup/shop/0123456789abcdef";
        self.load_balancers = json!([{ "targetGroupArn": group, "containerName": container, "containerPort": port }]);
        self
    }
}

/// How long something takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Time {
    /// Until a deployment that was created begins: 2 s at first.
    Begin,
    /// Until a task runs, or fails: 20 s.
    Start,
    /// A stage, or a shift of traffic: 2 s.
    Stage,
    /// Until tasks that are no longer wanted are gone: 5 s.
    Clear,
    /// Until a rollback that was asked for is in progress: 1 s.
    GoBack,
    /// How long a rolling update with alarms listens to them at its end: 3 min.
    AlarmBake,
}

/// A service deployment, as it is now.
#[derive(Clone, Debug, PartialEq)]
pub struct Started {
    /// Its ARN.
    pub arn: String,
    /// `family:revision` of what it deploys.
    pub task_definition: String,
    /// As `IN_PROGRESS`.
    pub status: String,
    /// As `BAKE_TIME`, if it is at one.
    pub stage: Option<String>,
    /// The new tasks' share of production traffic in percent, where ECS shifts any.
    pub weight: Option<f64>,
    /// The id of the pause hook that waits.
    pub paused: Option<String>,
    /// Why it is in this state.
    pub reason: Option<String>,
}

impl Hands<'_> {
    /// Registers a revision of a task definition with one container of its name; how its tasks behave is in `environment`.
    /// Its `family:revision`.
    pub fn register(&self, family: &str, image: &str, environment: &[(&str, &str)]) -> String {
        self.with(|world, now| {
            let variables: Vec<Value> =
                environment.iter().map(|(name, value)| json!({ "name": name, "value": value })).collect();
            let body = json!({
                "family": family,
                "networkMode": "awsvpc",
                "containerDefinitions": [{
                    "name": family, "image": image, "essential": true, "environment": variables,
                    "portMappings": [{ "containerPort": 8080, "hostPort": 8080, "protocol": "tcp" }],
                }],
            });
            let made = world.ecs.add(family, body.as_object().expect("an object").clone(), now);
            format!("{}:{}", made.family, made.revision)
        })
    }

    /// Somebody, or AWS itself, tags it.
    ///
    /// # Panics
    /// When it is not there.
    pub fn tag(&self, task_definition: &str, key: &str, value: &str) {
        self.with(|world, _| {
            let arn = world.ecs.task_definition(task_definition).map(|it| it.arn.clone());
            let mut all = world.ecs.families.values_mut().flatten();
            let found = all.find(|it| Some(&it.arn) == arn.as_ref());
            let tags = &mut found.expect("it was registered").tags;
            tags.as_array_mut().expect("it is a list").push(json!({ "key": key, "value": value }));
        });
    }

    /// Somebody deregisters it.
    ///
    /// # Panics
    /// When it is not there.
    pub fn deregister(&self, task_definition: &str) {
        self.with(|world, _| {
            world.ecs.deregister(&json!({ "taskDefinition": task_definition })).expect("it is there");
        });
    }

    /// A service at rest that has deployed this and nothing before. One that is there is replaced.
    ///
    /// # Panics
    /// When the task definition is not there, or the setup is one that ECS refuses.
    pub fn service(&self, cluster: &str, name: &str, task_definition: &str, setup: &Setup) {
        self.with(|world, now| {
            let room = &mut world.ecs;
            let arn = room.task_definition(task_definition).expect("the task definition is there").arn.clone();
            room.clusters.entry(cluster.into()).or_default();
            let mut service = room.service_of(cluster, name, setup.desired, now);
            service.config = configured(&json!({}), &setup.config).expect("a good configuration");
            service.controller.clone_from(&setup.controller);
            service.load_balancers = setup.load_balancers.clone();
            let mut service = room.around(&arn, service, now, &|_| false);
            let mut at = now;
            // As if it had been deployed long ago.
            while service.current().is_some_and(|it| it.is_ongoing()) {
                at = service.next_due(at).unwrap_or(at) + Duration::from_millis(1);
                let takes = room.takes;
                let around = Around { families: &room.families, fires: &|_| false, takes, tells_pre_production: false };
                service.run_at_once(now);
                service.pass(at, &around);
            }
            for deployment in &mut service.deployments {
                deployment.finished = Some(now);
            }
            room.clusters.get_mut(cluster).expect("it was made").insert(name.into(), service);
        });
    }

    /// Somebody deploys this, with other tools.
    ///
    /// # Panics
    /// When ECS would refuse it.
    pub fn deploy(&self, cluster: &str, service: &str, task_definition: &str) {
        let body = json!({ "cluster": cluster, "service": service, "taskDefinition": task_definition });
        self.update(&body);
    }

    /// Somebody sets this `deploymentConfiguration`, beside what it has of others.
    ///
    /// # Panics
    /// When ECS would refuse it.
    pub fn configure(&self, cluster: &str, service: &str, deployment_configuration: &Value) {
        let set = deployment_configuration;
        self.update(&json!({ "cluster": cluster, "service": service, "deploymentConfiguration": set }));
    }

    fn update(&self, body: &Value) {
        self.with(|world, now| {
            let World { ecs, cloudwatch, .. } = world;
            ecs.update_service(body, now, &|name| cloudwatch.fires(name)).expect("it is taken");
        });
    }

    /// Somebody stops the deployment that is on its way, with a rollback.
    pub fn stop(&self, cluster: &str, service: &str) {
        self.with(|world, now| {
            if let Some(service) = of(&mut world.ecs, cluster, service) {
                service.go_back("Service deployment rolled back because of a StopServiceDeployment request.", now);
            }
        });
    }

    /// From now on no rollback of ECS's own comes to its end: `ROLLBACK_FAILED`.
    pub fn fail_rollbacks(&self, cluster: &str, service: &str, fails: bool) {
        self.with(|world, _| {
            if let Some(service) = of(&mut world.ecs, cluster, service) {
                service.fails_rollbacks = fails;
            }
        });
    }

    /// Somebody scales a service, and nothing is started or stopped for it: a service that is not in a steady state.
    pub fn want(&self, cluster: &str, service: &str, tasks: u64) {
        self.with(|world, _| {
            if let Some(service) = of(&mut world.ecs, cluster, service) {
                service.desired = tasks;
            }
        });
    }

    /// The last deployment of a service.
    pub fn last(&self, cluster: &str, service: &str) -> Option<Started> {
        self.deployments(cluster, service).pop()
    }

    /// All deployments of a service, the oldest first.
    pub fn deployments(&self, cluster: &str, service: &str) -> Vec<Started> {
        self.with(|world, _| {
            let Some(service) = of(&mut world.ecs, cluster, service) else { return Vec::new() };
            let short = |revision: &str| {
                let arn = service.revision(revision).map(|it| it.task_definition.as_str()).unwrap_or_default();
                arn.rsplit('/').next().unwrap_or(arn).to_owned()
            };
            let tell = service.deployments.iter().map(|it| Started {
                arn: it.arn.clone(),
                task_definition: short(&it.target),
                status: it.status.into(),
                stage: it.stage.map(Into::into),
                weight: it.weights.map(|weights| weights.production),
                paused: it.paused().filter(|_| it.is_ongoing()).map(|hook| hook.id.clone()),
                reason: it.reason.clone(),
            });
            tell.collect()
        })
    }

    /// How many tasks of each `family:revision` run.
    pub fn running(&self, cluster: &str, service: &str) -> std::collections::BTreeMap<String, usize> {
        self.with(|world, _| {
            let mut count = std::collections::BTreeMap::new();
            let service = of(&mut world.ecs, cluster, service);
            for task in service.iter().flat_map(|it| &it.tasks).filter(|task| task.runs()) {
                let name = task.task_definition.rsplit('/').next().unwrap_or_default().to_owned();
                *count.entry(name).or_default() += 1;
            }
            count
        })
    }

    /// From now on this takes so long.
    pub fn takes(&self, what: Time, long: Duration) {
        self.with(|world, _| {
            let takes = &mut world.ecs.takes;
            *match what {
                Time::Begin => &mut takes.begin,
                Time::Start => &mut takes.start,
                Time::Stage => &mut takes.stage,
                Time::Clear => &mut takes.clear,
                Time::GoBack => &mut takes.go_back,
                Time::AlarmBake => &mut takes.alarm_bake,
            } = long;
        });
    }

    /// From now on `lifecycleStage` is `PRE_PRODUCTION_TRAFFIC_SHIFT` where the API's text says so and its enum does not.
    pub fn tells_pre_production(&self) {
        self.with(|world, _| world.ecs.tells_pre_production = true);
    }

    fn with<T>(&self, act: impl FnOnce(&mut World, Timestamp) -> T) -> T {
        let now = self.0.clock().now();
        let mut world = self.0.world();
        world.catch_up(now);
        act(&mut world, now)
    }
}

fn of<'a>(room: &'a mut Room, cluster: &str, service: &str) -> Option<&'a mut Service> {
    room.clusters.get_mut(cluster)?.get_mut(service)
}
