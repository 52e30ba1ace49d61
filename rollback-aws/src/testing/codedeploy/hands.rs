//! CodeDeploy by hand: what a test sets up and looks at without a call of the API.

use std::{collections::BTreeMap, time::Duration};

use jiff::Timestamp;
use rollback_core::clock::Clock as _;
use serde_json::{Value, json};

use super::{Estate, Room, key};
use crate::testing::{ACCOUNT, Simulator, World};

/// Applications and groups, without an HTTP call: somebody else's hands.
#[derive(Clone, Copy, Debug)]
pub struct Hands<'a>(pub(in crate::testing) &'a Simulator);

/// What a group deploys to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shape {
    /// EC2 in place, on these instances.
    InPlace(Vec<String>),
    /// EC2 blue/green, on these instances first.
    BlueGreen(Vec<String>),
    /// This ECS service, `cluster:service`.
    Ecs(String),
    /// A Lambda function; its AppSpec says which.
    Lambda,
}

/// Everything CodeDeploy knows at one time.
#[derive(Clone, Debug)]
pub struct Snapshot(Room);

impl Hands<'_> {
    /// Makes an application and a group of it, that rolls back by itself after failures, alarms and stops; with this
    /// configuration (`CodeDeployDefault.ECSAllAtOnce`).
    pub fn group(&self, app: &str, group: &str, shape: &Shape, config: &str) {
        let (platform, style) = match shape {
            Shape::InPlace(_) => ("Server", ("IN_PLACE", "WITHOUT_TRAFFIC_CONTROL")),
            Shape::BlueGreen(_) => ("Server", ("BLUE_GREEN", "WITH_TRAFFIC_CONTROL")),
            Shape::Ecs(_) => ("ECS", ("BLUE_GREEN", "WITH_TRAFFIC_CONTROL")),
            Shape::Lambda => ("Lambda", ("BLUE_GREEN", "WITH_TRAFFIC_CONTROL")),
        };
        let mut settings = json!({
            "computePlatform": platform, "deploymentConfigName": config,
            "serviceRoleArn": format!("arn:aws:iam::{ACCOUNT}:role/codedeploy"),
            "deploymentStyle": { "deploymentType": style.0, "deploymentOption": style.1 },
            "autoRollbackConfiguration": { "enabled": true,
                "events": ["DEPLOYMENT_FAILURE", "DEPLOYMENT_STOP_ON_ALARM", "DEPLOYMENT_STOP_ON_REQUEST"] },
        });
        let instances = match shape {
            Shape::InPlace(instances) | Shape::BlueGreen(instances) => instances.clone(),
            Shape::Ecs(service) => {
                let (cluster, service) = service.split_once(':').unwrap_or(("default", service));
                settings["ecsServices"] = json!([{ "clusterName": cluster, "serviceName": service }]);
                Vec::new()
            }
            Shape::Lambda => Vec::new(),
        };
        self.with(|world, _| {
            let room = &mut world.codedeploy;
            if !room.apps.contains_key(app) {
                room.add_app(app, platform);
            }
            let id = format!("group-of-{group}");
            let made =
                super::Group { id, settings, instances, estate: BTreeMap::new(), succeeded: None, attempted: None };
            room.apps.get_mut(app).expect("just made").groups.insert(group.into(), made);
        });
    }

    /// Sets a member of a group's settings, as `alarmConfiguration`, as the API shows it.
    ///
    /// # Panics
    /// When there is no such group.
    pub fn set(&self, app: &str, group: &str, member: &str, value: Value) {
        self.with(|world, _| world.codedeploy.group_mut(app, group).settings[member] = value);
    }

    /// A member of a group's settings.
    ///
    /// # Panics
    /// When there is no such group.
    pub fn setting(&self, app: &str, group: &str, member: &str) -> Value {
        self.with(|world, _| world.codedeploy.group_mut(app, group).settings[member].clone())
    }

    /// Somebody deploys this revision, a `RevisionLocation` as the API takes it. The deployment's id.
    ///
    /// # Panics
    /// When there is no such group, or the revision is none.
    pub fn deploy(&self, app: &str, group: &str, revision: &Value) -> String {
        self.with(|world, now| {
            let room = &mut world.codedeploy;
            let revision = room.register(app, revision).expect("it is a revision");
            let config =
                room.group_mut(app, group).settings["deploymentConfigName"].as_str().unwrap_or_default().to_owned();
            room.make(app, group, revision, config, json!({}), "user", None, now)
        })
    }

    /// CodeDeploy itself deploys this revision to an instance that Auto Scaling has started. The deployment's id.
    ///
    /// # Panics
    /// As [`Self::deploy`].
    pub fn scale_out(&self, app: &str, group: &str, instance: &str, revision: &Value) -> String {
        self.with(|world, _| world.codedeploy.group_mut(app, group).instances.push(instance.into()));
        let id = self.deploy(app, group, revision);
        self.with(|world, _| {
            let it = world.codedeploy.deployments.get_mut(&id).expect("just made");
            it.creator = "autoscaling";
            let others: Vec<usize> = (0..it.targets.len()).filter(|at| it.targets[*at].id != instance).collect();
            it.steps.retain(|(_, step)| !others.iter().any(|at| step.is_at(*at)));
            it.targets.iter_mut().filter(|target| target.id != instance).for_each(|target| target.status = "Skipped");
        });
        id
    }

    /// Somebody deployed this revision, and it has succeeded everywhere. The deployment's id.
    ///
    /// # Panics
    /// As [`Self::deploy`].
    pub fn serve(&self, app: &str, group: &str, revision: &Value) -> String {
        let id = self.deploy(app, group, revision);
        self.with(|world, now| {
            let room = &mut world.codedeploy;
            let it = room.deployments.get_mut(&id).expect("just made");
            it.cut_short(now, "Succeeded");
            it.targets.retain(|target| target.label != Some("Green"));
            for target in &mut it.targets {
                target.status = "Succeeded";
                target.weight = 100.0;
                for event in &mut target.events {
                    (event.status, event.began, event.ended) = ("Succeeded", Some(now), Some(now));
                }
            }
            (it.status, it.started, it.completed) = ("Succeeded", Some(now), Some(now));
            let (stable, ids) = (key(&it.revision), it.targets.iter().map(|it| it.id.clone()).collect::<Vec<_>>());
            let group = room.group_mut(app, group);
            group.estate = ids.into_iter().map(|id| (id, Estate { stable: stable.clone(), other: None })).collect();
            group.succeeded = Some(id.clone());
        });
        id
    }

    /// What every target serves: the keys of revisions (as `bucket|key||`, or the hash of an AppSpec), with their shares in
    /// percent.
    ///
    /// # Panics
    /// When there is no such group.
    pub fn serves(&self, app: &str, group: &str) -> BTreeMap<String, Vec<(String, f64)>> {
        self.with(|world, _| {
            let estate = &world.codedeploy.group_mut(app, group).estate;
            let shares = |it: &Estate| match &it.other {
                None => vec![(it.stable.clone(), 100.0)],
                Some((key, share)) => {
                    let both = [(it.stable.clone(), 100.0 - share), (key.clone(), *share)];
                    both.into_iter().filter(|(_, share)| *share > 0.0).collect()
                }
            };
            estate.iter().map(|(id, it)| (id.clone(), shares(it))).collect()
        })
    }

    /// From now on deployments of this revision fail at this event, as `ValidateService`.
    pub fn break_at(&self, revision: &Value, event: &str) {
        self.with(|world, _| world.codedeploy.broken.insert(hash_of(revision), event.into()));
    }

    /// From now on nothing succeeds on this instance, until it is well again.
    pub fn sicken(&self, instance: &str, sick: bool) {
        self.with(|world, _| {
            if sick {
                world.codedeploy.sick.insert(instance.into());
            } else {
                world.codedeploy.sick.remove(instance);
            }
        });
    }

    /// So long it takes from `StopDeployment` to `Stopped`; 4 s at first.
    pub fn stopping_takes(&self, time: Duration) {
        self.with(|world, _| world.codedeploy.stopping = time);
    }

    /// Whether CodeDeploy rolls back by itself and when it is told to; it does at first.
    pub fn rolls_back(&self, does: bool) {
        self.with(|world, _| world.codedeploy.rolls_back = does);
    }

    /// So long it takes from a deployment's end to CodeDeploy's own rollback of it, which until then nothing tells of; none at
    /// first. In between somebody may deploy: then there is no rollback.
    pub fn rollbacks_take(&self, time: Duration) {
        self.with(|world, _| world.codedeploy.rollbacks_after = time);
    }

    /// So long `GetDeploymentGroup` does not tell of a new deployment; at first it does at once.
    pub fn groups_lag(&self, time: Duration) {
        self.with(|world, _| world.codedeploy.groups_lag = time);
    }

    /// By CodeDeploy's clock deployments end so much earlier from now on.
    pub fn clock_behind(&self, time: Duration) {
        self.with(|world, _| world.codedeploy.behind = time);
    }

    /// From now on `BatchGetDeployments` is denied with any deployment of this group among those asked for.
    pub fn hide(&self, app: &str, group: &str) {
        self.with(|world, _| world.codedeploy.hidden.insert((app.into(), group.into())));
    }

    /// CodeDeploy says this of the rollback of a deployment: as that there is none.
    pub fn say_of_rollback(&self, deployment: &str, message: &str) {
        self.with(|world, _| {
            if let Some(it) = world.codedeploy.deployments.get_mut(deployment) {
                it.message = Some(message.into());
            }
        });
    }

    /// All deployments of a group: their ids, in order.
    pub fn deployments(&self, app: &str, group: &str) -> Vec<String> {
        self.with(|world, _| {
            let room = &world.codedeploy;
            let of = |id: &&String| room.deployments[*id].app == app && room.deployments[*id].group == group;
            room.order.iter().filter(of).cloned().collect()
        })
    }

    /// A deployment as `GetDeployment` shows it. `Null` when there is none.
    pub fn deployment(&self, id: &str) -> Value {
        self.with(|world, _| world.codedeploy.deployments.get(id).map(super::Deployment::describe).unwrap_or_default())
    }

    /// The id with which the function of a hook was called that a deployment waits for.
    pub fn hook(&self, deployment: &str) -> Option<String> {
        self.with(|world, _| world.codedeploy.deployments.get(deployment)?.waiting_hook())
    }

    /// Somebody stops a deployment at once, and rolls back or not.
    pub fn stop(&self, deployment: &str, roll_back: bool) {
        self.with(|world, now| {
            if world.codedeploy.deployments.get(deployment).is_some_and(super::Deployment::is_active) {
                let why = "The deployment was stopped by request.".into();
                world.codedeploy.stop(deployment, now, "MANUAL_STOP", why, Some(roll_back));
            }
        });
    }

    /// Everything as it was when this was called, for [`Self::restore`].
    pub fn snapshot(&self) -> Snapshot {
        Snapshot(self.with(|world, _| world.codedeploy.clone()))
    }

    /// Puts everything back. New deployments get ids that were never given.
    pub fn restore(&self, snapshot: &Snapshot) {
        self.with(|world, _| {
            let serial = world.codedeploy.serial;
            world.codedeploy = snapshot.0.clone();
            world.codedeploy.serial = serial;
        });
    }

    fn with<T>(&self, act: impl FnOnce(&mut World, Timestamp) -> T) -> T {
        let now = self.0.clock().now();
        let mut world = self.0.world();
        world.catch_up(now);
        act(&mut world, now)
    }
}

impl Room {
    fn group_mut(&mut self, app: &str, group: &str) -> &mut super::Group {
        let found = self.apps.get_mut(app).and_then(|it| it.groups.get_mut(group));
        found.unwrap_or_else(|| panic!("there is no group {group} of application {app}"))
    }
}

/// The key of a revision as it is given: AppSpec content by its hash.
fn hash_of(revision: &Value) -> String {
    let mut room = Room::new("");
    room.add_app("", "Server");
    key(&room.register("", revision).expect("it is a revision"))
}
