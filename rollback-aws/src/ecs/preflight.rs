//! Proving that a service can go forward and back, without changing anything.

use std::time::Duration;

use aws_sdk_ecs::types::{
    DeploymentConfiguration, DeploymentLifecycleHook, DeploymentLifecycleHookAction as Action,
    DeploymentRolloutState as RolloutState, DesiredStatus, Service as Described, TaskDefinition,
};
use rollback_core::{
    ErrorKind, Result,
    backend::Readiness,
    model::{Change, Note, Weight},
    plan::Plan,
};

use super::{
    CONTINUE, GET_DEPLOYMENT, GET_REVISION, GET_SERVICE, GET_TASK_DEFINITION, GET_TASKS, LIST_DEPLOYMENTS, LIST_TASKS,
    STOP, Service, Shape, UPDATE, definition,
    look::{self, Place, Seen},
    name::task_definition,
    shape::{is_pause, minutes_of, patience},
};
use crate::error::sorted;

impl Service {
    pub(super) async fn prove(&self, change: &Change, plan: &Plan) -> Result<Readiness> {
        let mut ready = Readiness::default();
        let (baseline, candidate) = (task_definition(&change.baseline.id)?, task_definition(&change.candidate.id)?);
        let Some(service) = GET_SERVICE.prove(&mut ready, self.described().await)? else { return Ok(ready) };
        if let Err(e) = self.refuse_others(&service) {
            return Ok(ready.refused(e.to_string()));
        }
        if let Some(seen) = self.prove_looks(&mut ready, service.clone()).await? {
            self.prove_rest(&mut ready, &seen, baseline);
        }
        self.prove_tasks(&mut ready).await?;
        self.prove_writes(&mut ready, &service).await?;

        let old = definition::read(&self.client, baseline).await;
        if let Some(old) = GET_TASK_DEFINITION.prove(&mut ready, old)? {
            let (old, new) = (old.map(|it| it.0), definition::read(&self.client, candidate).await?.map(|it| it.0));
            ready.no_way_back.extend(definition::unfit(baseline, old.as_ref()));
            ready.refused.extend(definition::unfit(candidate, new.as_ref()));
            ready.refused.extend(self.unreachable(&service, candidate, new.as_ref()));
            self.prove_images(&mut ready, old.as_ref(), new.as_ref()).await;
        }
        let config = service.deployment_configuration();
        ready = ready.and(self.prove_shape(config, plan)).and(self.prove_guards(config).await?);
        Ok(ready
            .not_provable("whether there is the capacity to run the candidate's tasks, and may its roles be passed")
            .not_restored("what the candidate wrote, sent and queued")
            .not_restored(
                "what no task definition holds: the number of tasks, networks, parameters and secrets by name",
            ))
    }

    async fn prove_looks(&self, ready: &mut Readiness, service: Described) -> Result<Option<Seen>> {
        if LIST_DEPLOYMENTS.prove(ready, self.listed_deployments(None).await)?.is_none() {
            return Ok(None);
        }
        let Some(arn) = self.current_arn(&service).await? else {
            return Ok(Some(Seen { told: look::told(&service), service, current: None }));
        };
        // Two calls in one; a denial tells of which.
        let current = match self.current(&arn).await {
            Err(e) if e.kind() == ErrorKind::Denied && e.chain().contains(GET_REVISION.action) => {
                GET_REVISION.prove(ready, Err(e))?
            }
            answer => GET_DEPLOYMENT.prove(ready, answer)?,
        };
        let Some(current) = current else { return Ok(None) };
        GET_REVISION.prove(ready, Ok(()))?;
        Ok(Some(Seen { told: look::told(&service), service, current }))
    }

    async fn prove_tasks(&self, ready: &mut Readiness) -> Result<()> {
        if let Some((arns, _)) = LIST_TASKS.prove(ready, self.listed(DesiredStatus::Running, None).await)? {
            GET_TASKS.prove(ready, self.described_tasks(arns).await)?;
        }
        Ok(())
    }

    /// A task definition says which images, not that they can be pulled.
    #[cfg(feature = "ecr")]
    async fn prove_images(&self, ready: &mut Readiness, old: Option<&TaskDefinition>, new: Option<&TaskDefinition>) {
        let Some(images) = &self.images else { return ready.not_provable.push(UNSEEN_IMAGES.into()) };
        for (definition, no) in [(old, &mut ready.no_way_back), (new, &mut ready.refused)] {
            let Some(definition) = definition else { continue };
            let found = images.of(definition).await;
            no.extend(found.gone.into_iter().map(Note::from));
            ready.not_provable.extend(found.unseen.into_iter().map(Note::from));
            ready.proved.extend(found.there.iter().map(|image| Note::new(format!("image {image} is in ECR"))));
        }
    }

    #[cfg(not(feature = "ecr"))]
    #[expect(clippy::unused_async, reason = "with the feature `ecr` it asks")]
    async fn prove_images(&self, ready: &mut Readiness, _: Option<&TaskDefinition>, _: Option<&TaskDefinition>) {
        ready.not_provable.push(UNSEEN_IMAGES.into());
    }

    /// ECS has no dry run. An update that changes nothing begins no deployment, and answers and stops of a deployment that
    /// never was are refused: for that, or for lack of the permission.
    async fn prove_writes(&self, ready: &mut Readiness, service: &Described) -> Result<()> {
        let call = self.client.update_service().cluster(&self.name.cluster).service(&self.name.service);
        let answer = call.send().await.map(drop).map_err(|e| sorted("an update that changes nothing", e));
        UPDATE.prove(ready, answer)?;
        let arn = service.service_arn().unwrap_or_default().replacen(":service/", ":service-deployment/", 1);
        let never = format!("{arn}/{NEVER}");
        let refused = |answer: Result<()>| match answer {
            Err(e) if matches!(e.kind(), ErrorKind::Conflict | ErrorKind::NotFound | ErrorKind::Invalid) => Ok(()),
            answer => answer,
        };
        CONTINUE.prove(ready, refused(self.answer_hook(&never, NEVER, Action::Rollback).await))?;
        STOP.prove(ready, refused(self.stop(&never).await))?;
        Ok(())
    }

    /// Only a service at rest can be deployed to, and brought back.
    fn prove_rest(&self, ready: &mut Readiness, seen: &Seen, baseline: &str) {
        let service = &seen.service;
        match (look::serves(seen, &self.name), seen.place()) {
            (Err(_), Place::Broken(it)) => ready.no_way_back.push(Note::new(format!(
                "the last deployment of service {} is {}, so it has no previous revision that ECS could go back to; deploy \
                 {baseline} until it is SUCCESSFUL, and start again",
                self.name, it.status
            ))),
            (Err(e), _) => ready.refused.push(Note::new(format!("{e}; let that end first"))),
            (Ok(it), _) if it != baseline => {
                ready.refused.push(Note::new(format!("the service serves {it} and not the baseline {baseline}")));
            }
            (Ok(it), _) => ready.proved.push(Note::new(format!("{it} serves, and no deployment is on its way"))),
        }
        let first = service.deployments().first();
        let failed = |state: &RolloutState| *state != RolloutState::Completed;
        if seen.current.is_none() && first.and_then(|it| it.rollout_state()).is_some_and(failed) {
            ready.no_way_back.push("no deployment of it has completed, so there is no previous revision".into());
        }
        let (running, pending, desired) = (service.running_count(), service.pending_count(), service.desired_count());
        let name = &self.name;
        if desired == 0 {
            let why = format!("service {name} wants no tasks: nothing of the candidate would run; scale it up first");
            ready.refused.push(why.into());
        } else if running != desired || pending > 0 || service.deployments().len() > 1 {
            let said = service.events().first().and_then(|event| event.message()).unwrap_or("nothing");
            ready.refused.push(Note::new(format!(
                "service {name} is in no steady state: {running} of {desired} tasks run, {pending} are pending; its last \
                 event: {said}"
            )));
        } else {
            ready.proved.push(Note::new(format!("it is in a steady state with {running} of {desired} tasks")));
        }
    }

    fn prove_shape(&self, config: Option<&DeploymentConfiguration>, plan: &Plan) -> Readiness {
        let mut ready = Readiness::default();
        let (now, told) = (Shape::of(config), self.shape);
        if now != told {
            let why = format!(
                "service {} is deployed {now}, and {told} was expected; set it so, or tell its shape as it is",
                self.name
            );
            return ready.refused(why);
        }
        ready.proved.push(Note::new(format!("ECS deploys it {now}")));
        let deadlines = plan.deadlines();
        let minutes = |time: Duration| time.as_secs().div_ceil(60);
        let bake = minutes_of(config.and_then(DeploymentConfiguration::bake_time_in_minutes).unwrap_or(0));
        if !now.is_rolling() && bake >= deadlines.promote {
            ready.refused.push(Note::new(format!(
                "ECS bakes for {} min after the last step, and the plan promotes within {} min; shorten \
                 bakeTimeInMinutes, as the plan's own bakes watch it, or allow more",
                minutes(bake),
                minutes(deadlines.promote)
            )));
        }
        let (at, waits) = now.longest_wait(Shape::own_bake(config), plan);
        if waits >= deadlines.shift {
            ready.refused.push(Note::new(format!(
                "on the way to {at} ECS itself waits for {} min, and the plan allows {} min for a shift; shorten ECS's \
                 own bake, as the plan's bakes watch it, or allow more",
                minutes(waits),
                minutes(deadlines.shift)
            )));
        }
        if now.is_rolling() {
            return ready.not_restored(
                "the time that going back takes: tasks are replaced once more, and until then users meet both",
            );
        }
        if !now.is_paused() {
            return ready.not_restored(
                "the old tasks once ECS has cleaned up, by its own pace: from then on going back is a deployment of its \
                 own; PAUSE hooks before each shift and after the last keep them until the plan's last bake is over",
            );
        }
        for hook in config.map(DeploymentConfiguration::lifecycle_hooks).unwrap_or_default() {
            ready = ready.and(self.prove_hook(hook, plan));
        }
        ready.not_restored(
            "the old tasks after the promotion: from then on going back is a deployment of its own, at the service's pace",
        )
    }

    /// What times out must go back, and not before the plan is done with waiting.
    fn prove_hook(&self, hook: &DeploymentLifecycleHook, plan: &Plan) -> Readiness {
        let ready = Readiness::default();
        if !is_pause(hook) {
            return ready.not_provable("what the service's Lambda hooks will answer");
        }
        let (time_out, goes_back) = patience(hook);
        if !goes_back {
            return ready.refused(
                "a PAUSE hook of the service goes on when nobody answers it, so a tool that is gone guards nothing; set \
                 its time-out action to ROLLBACK",
            );
        }
        let minutes = |time: Duration| time.as_secs().div_ceil(60);
        let longest = plan.steps().iter().map(|step| step.bake).max().unwrap_or_default();
        if longest.saturating_add(LAG) >= time_out {
            return ready.refused(format!(
                "a PAUSE hook of the service times out after {} min, in the middle of a bake of {} min and the {} min that \
                 evidence is behind; allow more",
                minutes(time_out),
                minutes(longest),
                minutes(LAG)
            ));
        }
        let mut ready =
            ready.proved(format!("a pause that nobody answers is rolled back by ECS after {} min", minutes(time_out)));
        let late = longest.saturating_add(plan.deadlines().overtime);
        if late >= time_out {
            ready = ready.not_provable(format!(
                "that each bake is judged within {} min, after which ECS goes back: with the plan's overtime one of {} min \
                 may last {} min",
                minutes(time_out),
                minutes(longest),
                minutes(late)
            ));
        }
        // People are asked when the bake is over, and the pause has begun before it.
        let asked = plan.steps().iter().filter(|step| step.approval.is_some()).map(|step| step.bake).max();
        if asked.is_some_and(|bake| bake.saturating_add(plan.deadlines().hold) >= time_out) {
            ready = ready.not_provable(format!(
                "that approvals come within {} min from the beginning of a bake, after which ECS goes back",
                minutes(time_out)
            ));
        }
        ready
    }

    /// ECS's own guards.
    async fn prove_guards(&self, config: Option<&DeploymentConfiguration>) -> Result<Readiness> {
        let mut ready = Readiness::default();
        for lacks in self.settings.iter().flat_map(|wanted| wanted.lacks(config)) {
            ready.refused.push(Note::new(format!("service {}: {lacks}; Service::set sets it", self.name)));
        }
        let breaker = config.and_then(DeploymentConfiguration::deployment_circuit_breaker);
        match breaker {
            Some(it) if it.enable() && it.rollback() => {
                ready.proved.push("ECS's circuit breaker is on, and rolls back".into());
            }
            _ => ready.not_provable.push(
                "that tasks which never start are noticed early: ECS's circuit breaker is off or does not roll back, so \
                 the plan's deadline has to"
                    .into(),
            ),
        }
        let Some(alarms) = config.and_then(DeploymentConfiguration::alarms).filter(|it| it.enable()) else {
            return Ok(ready);
        };
        self.prove_alarms(&mut ready, alarms.alarm_names()).await?;
        Ok(ready)
    }

    async fn prove_alarms(&self, ready: &mut Readiness, names: &[String]) -> Result<()> {
        #[cfg(feature = "cloudwatch")]
        if let Some(alarms) = &self.alarms {
            let otherwise = "ECS would listen to none of its alarms for the whole deployment";
            alarms.prove(ready, "deployment alarm", names, otherwise).await?;
            return Ok(());
        }
        ready.not_provable.push(Note::new(format!(
            "that none of its deployment alarms ({}) fires now: ECS would listen to none of them for the whole deployment; \
             Service::alarms looks",
            names.join(", ")
        )));
        Ok(())
    }

    /// What a load balancer would not find in the candidate.
    fn unreachable(&self, service: &Described, candidate: &str, found: Option<&TaskDefinition>) -> Vec<Note> {
        let Some(found) = found else { return Vec::new() };
        let lacks = service.load_balancers().iter().filter_map(|it| {
            let (name, port) = (it.container_name()?, it.container_port());
            let container = found.container_definitions().iter().find(|it| it.name() == Some(name));
            let Some(container) = container else {
                return Some(format!("{candidate} has no container {name}, to which the load balancer sends traffic"));
            };
            let open = container.port_mappings().iter().any(|it| it.container_port() == port);
            (!open).then(|| {
                let port = port.map(|it| it.to_string()).unwrap_or_default();
                format!("container {name} of {candidate} has no port {port}, to which the load balancer sends traffic")
            })
        });
        lacks.map(Note::from).collect()
    }
}

impl Shape {
    /// The longest that ECS itself waits on the way to one of the plan's steps, with none of the plan's own time in it.
    fn longest_wait(self, own: Duration, plan: &Plan) -> (Weight, Duration) {
        let mut longest = (Weight::NONE, Duration::ZERO);
        let (mut from, mut baked) = (Weight::NONE, Duration::ZERO);
        for step in plan.steps() {
            let passed = self.rungs().filter(|rung| *rung > Weight::NONE && *rung >= from && *rung < step.weight);
            let waits = own.saturating_mul(u32::try_from(passed.count()).unwrap_or(u32::MAX)).saturating_sub(baked);
            if waits > longest.1 {
                longest = (step.weight, waits);
            }
            (from, baked) = (step.weight, step.bake);
        }
        longest
    }
}

/// What stays open where nobody looks.
const UNSEEN_IMAGES: &str =
    "that the images of baseline and candidate can still be pulled; Service::images looks in ECR";

/// Nothing is called so.
const NEVER: &str = "rollback-preflight-never";

/// So far behind is the evidence of a gate that reads CloudWatch, and so much longer stands each step.
const LAG: Duration = Duration::from_secs(120);
