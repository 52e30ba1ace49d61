//! What serves, and proving that a group can go forward and back, without changing anything.

use std::time::Duration;

use aws_sdk_codedeploy::types::{
    ComputePlatform, DeploymentConfigInfo, DeploymentGroupInfo, DeploymentType, DeploymentWaitType, InstanceAction,
    RevisionLocation, TrafficRoutingType,
};
use rollback_core::{
    Error, ErrorKind, Result,
    backend::Readiness,
    model::{Change, Note, Revision, Weight},
    plan::Plan,
};

use super::{
    CONTINUE_DEPLOYMENT, CREATE_DEPLOYMENT, GET_CONFIG, GET_DEPLOYMENTS, GET_GROUP, GET_REVISION, GET_TARGETS, Group,
    LIST_DEPLOYMENTS, LIST_TARGETS, OVERRIDE_ALARMS, OnShelf, Platform, REGISTER_REVISION, STOP_DEPLOYMENT,
    deployment::{Deployment, Status, Target},
    revision::{Artefact, Spec},
    settings::{alarms_of, events_of, ready_wait},
};
use crate::{error::sorted, iam::Permission};

impl Group {
    /// What serves now, on every target.
    pub(super) async fn serving(&self) -> Result<Revision> {
        let found = self.find(true, None).await?;
        let nothing = || {
            let why = format!(
                "{self} has no successful deployment, so there is nothing to go back to; deploy once by hand, and start again"
            );
            Error::new(ErrorKind::NotFound, why)
        };
        let newest = found.newest.ok_or_else(nothing)?;
        if newest.is_active() || self.awaits_rollback(&newest) {
            return Err(self.busy(&newest));
        }
        let successful = found.successful.ok_or_else(nothing)?;
        let targets = self.targets(&newest).await?;
        if newest.status != Status::Succeeded {
            // The one that failed may have left something behind.
            let left: Vec<&Target> = targets.iter().filter(|it| self.is_left_behind(it)).collect();
            if !left.is_empty() {
                let names: Vec<&str> = left.iter().map(|it| it.name.as_str()).collect();
                let advice = match self.platform {
                    Platform::Lambda => "; if its alias still has weights of two versions, clear them",
                    _ => "",
                };
                let why = format!(
                    "{self} is mixed: {}, and nothing rolled it back on {}; deploy again{advice}",
                    newest.tell(),
                    names.join(", ")
                );
                return Err(Error::new(ErrorKind::Mixed, why));
            }
        }
        let serving = match newest.id == successful {
            true => newest.clone(),
            false => self.poller.get(&successful, true).await?,
        };
        let targets = self.targets(&serving).await?;
        let two_sides = self.platform == Platform::BlueGreen;
        let behind: Vec<String> = targets
            .iter()
            .filter(|it| serving.serves_at(it, two_sides) && !it.succeeded())
            .map(|it| format!("{} ({})", it.name, it.status))
            .collect();
        if !behind.is_empty() {
            let why = format!(
                "{self} is mixed: deployment {} has succeeded, but not on {}; deploy again, or take them out",
                serving.id,
                behind.join(", ")
            );
            return Err(Error::new(ErrorKind::Mixed, why));
        }
        let artefact = serving.artefact.clone().ok_or_else(|| {
            let why = format!("deployment {} has a revision of a kind that is not known here", serving.id);
            Error::new(ErrorKind::Unsupported, why)
        })?;
        let artefact = self.fetched(artefact).await?;
        let spec = Spec {
            deployment: Some(newest.id.clone()),
            file_exists: serving.file_exists.clone(),
            artefact: artefact.clone(),
        };
        Revision::new(artefact.id())?.with_spec(&spec.write())
    }

    /// Whether a deployment that did not succeed has changed what this target serves.
    fn is_left_behind(&self, target: &Target) -> bool {
        match self.platform {
            Platform::Ecs | Platform::Lambda => target.share.is_some_and(|share| share > 0.0) && !target.untouched(),
            Platform::InPlace => !target.untouched(),
            // Green ones without traffic serve nobody.
            Platform::BlueGreen => target.through,
        }
    }

    /// With its content, which a deployment does not show.
    async fn fetched(&self, artefact: Artefact) -> Result<Artefact> {
        if !artefact.unfetched() {
            return Ok(artefact);
        }
        self.registered(&artefact).await?.ok_or_else(|| {
            let why = format!("revision {} is not registered with application {} any more", artefact.id(), self.app);
            Error::new(ErrorKind::NotFound, why)
        })
    }

    /// The revision as the application knows it; none if it does not.
    async fn registered(&self, artefact: &Artefact) -> Result<Option<Artefact>> {
        let call = self.client().get_application_revision().application_name(self.app()).revision(artefact.write());
        match call.send().await {
            Ok(found) => Ok(found.revision().and_then(Artefact::read)),
            Err(e) if e.as_service_error().is_some_and(|e| e.is_revision_does_not_exist_exception()) => Ok(None),
            Err(e) => Err(sorted(format_args!("reading revision {}", artefact.id()), e)),
        }
    }

    pub(super) async fn prove(&self, change: &Change, plan: &Plan) -> Result<Readiness> {
        let mut ready = Readiness::default();
        let (baseline, candidate) = (Spec::of(&change.baseline)?, Spec::of(&change.candidate)?);
        let Some(info) = GET_GROUP.prove(&mut ready, self.info().await)? else { return Ok(ready) };
        ready = ready.and(self.fits(&info, &candidate, plan)).and(self.guard(&info));
        ready = ready.and(self.firing(&info).await?);
        self.prove_last(&mut ready, &baseline, &info).await?;
        self.prove_config(&mut ready, &info, plan).await?;
        self.prove_revisions(&mut ready, &baseline, &candidate).await?;
        if self.prove_create(&mut ready, &candidate).await? {
            self.prove_besides(&mut ready, &info).await?;
        }
        Ok(self.costs(ready))
    }

    /// Whether the group is what it is taken for, and can do what the plan asks.
    fn fits(&self, info: &DeploymentGroupInfo, candidate: &Spec, plan: &Plan) -> Readiness {
        let mut ready = Readiness::default();
        let blue_green =
            info.deployment_style().and_then(|it| it.deployment_type()) == Some(&DeploymentType::BlueGreen);
        let is = match info.compute_platform() {
            Some(ComputePlatform::Ecs) => Platform::Ecs,
            Some(ComputePlatform::Lambda) => Platform::Lambda,
            _ if blue_green => Platform::BlueGreen,
            _ => Platform::InPlace,
        };
        if is != self.platform {
            return ready.refused(format!("{self} is {is:?}, and is taken for {:?}; say what it is", self.platform));
        }
        if matches!(is, Platform::Ecs | Platform::Lambda) != candidate.artefact.is_app_spec() {
            let takes =
                if candidate.artefact.is_app_spec() { "a bundle in S3 or GitHub" } else { "the text of an AppSpec" };
            ready = ready.refused(format!("{self} takes {takes}, and the candidate is {}", candidate.artefact.id()));
        }
        ready = ready.and(self.waits_for(info, plan));
        if matches!(is, Platform::Ecs | Platform::BlueGreen) {
            ready = ready.and(stands_for(info, plan));
        }
        ready
    }

    /// Whether the group waits before the traffic, and for as long as the plan looks at it there.
    fn waits_for(&self, info: &DeploymentGroupInfo, plan: &Plan) -> Readiness {
        let ready = Readiness::default();
        let Some(preview) = plan.steps().iter().find(|step| step.weight == Weight::NONE) else { return ready };
        let Some(wait) = ready_wait(info).map(|minutes| Duration::from_secs(60 * u64::from(minutes))) else {
            return ready.refused(format!(
                "the plan has a step of 0 %, and {self} does not wait before the traffic; set its ready option to \
                 STOP_DEPLOYMENT with a wait"
            ));
        };
        if preview.bake >= wait {
            return ready.refused(format!(
                "{self} waits {} before the traffic, and then stops, and the plan's preview takes {}; let it wait longer",
                minutes(wait),
                minutes(preview.bake)
            ));
        }
        let ready = ready.proved(format!("it waits {} before the traffic, and then stops", minutes(wait)));
        let deadlines = plan.deadlines();
        let held = preview.approval.as_ref().map_or(Duration::ZERO, |_| deadlines.hold);
        let most = preview.bake + deadlines.overtime + held;
        if most < wait {
            return ready;
        }
        ready.not_provable(format!(
            "that the preview is over within the {} that the group waits: the plan allows it {}",
            minutes(wait),
            minutes(most)
        ))
    }

    /// What watches while nobody of ours does.
    fn guard(&self, info: &DeploymentGroupInfo) -> Readiness {
        let (alarms, events) = (alarms_of(info), events_of(info));
        let on_alarm = events.iter().any(|it| it == "DEPLOYMENT_STOP_ON_ALARM");
        let ready = Readiness::default();
        match (alarms.is_empty(), on_alarm) {
            (false, true) => {
                let ready = ready.proved(format!("CodeDeploy itself rolls back when {} fires", alarms.join(" or ")));
                let poll = info.alarm_configuration().is_some_and(|it| it.ignore_poll_alarm_failure());
                if poll {
                    return ready;
                }
                ready.not_provable("that CloudWatch answers CodeDeploy: if it does not, the deployment is stopped")
            }
            (false, false) => ready.refused(format!(
                "{self} has alarms, and does not roll back when one stops a deployment: it would stop half way; add \
                 DEPLOYMENT_STOP_ON_ALARM to its automatic rollback"
            )),
            (true, _) if !self.guarded => ready.not_provable(format!(
                "that anybody takes it back while this process is away: {self} has no alarms of its own"
            )),
            (true, _) => ready.refused(format!(
                "{self} has no alarms of its own, so nobody takes it back while this process is away; set them beside \
                 DEPLOYMENT_STOP_ON_ALARM"
            )),
        }
    }

    #[cfg(not(feature = "cloudwatch"))]
    async fn firing(&self, info: &DeploymentGroupInfo) -> Result<Readiness> {
        let unknown = "that none of the group's alarms fires already: the feature `cloudwatch` is off";
        let ready = Readiness::default();
        Ok(if alarms_of(info).is_empty() { ready } else { ready.not_provable(unknown) })
    }

    /// An alarm that fires already stops a deployment within a second, and a pointless rollback follows (observed).
    #[cfg(feature = "cloudwatch")]
    async fn firing(&self, info: &DeploymentGroupInfo) -> Result<Readiness> {
        let names = alarms_of(info);
        let mut ready = Readiness::default();
        if names.is_empty() {
            return Ok(ready);
        }
        let Some(alarms) = &self.alarms else {
            return Ok(ready.not_provable("that none of the group's alarms fires already: Group::alarms looks"));
        };
        let otherwise = "CodeDeploy would stop the deployment within a second";
        alarms.prove(&mut ready, "the group's alarm", &names, otherwise).await?;
        Ok(ready)
    }

    /// The last deployments: none runs, what they left behind, and that one of them could be stopped.
    async fn prove_last(&self, ready: &mut Readiness, baseline: &Spec, info: &DeploymentGroupInfo) -> Result<()> {
        if info.last_successful_deployment().is_none() {
            let why = format!("{self} has no successful deployment: CodeDeploy has nothing to roll back to");
            ready.no_way_back.push(why.into());
        }
        let Some(id) = info.last_attempted_deployment().and_then(|it| it.deployment_id()) else { return Ok(()) };
        if GET_DEPLOYMENTS.prove(ready, self.poller.get(id, true).await)?.is_none() {
            return Ok(());
        }
        let Some(newest) = self.find(true, None).await?.newest else { return Ok(()) };
        if newest.is_active() {
            ready.refused.push(self.busy(&newest).to_string().into());
            return Ok(());
        }
        if baseline.deployment.as_ref().is_some_and(|it| *it != newest.id) {
            let why = format!("somebody deployed to {self} since the baseline was read: {}", newest.tell());
            ready.refused.push(why.into());
        }
        let created = newest.created.unwrap_or(jiff::Timestamp::UNIX_EPOCH);
        LIST_DEPLOYMENTS.prove(ready, self.since(created).await)?;
        if let Some(ids) = LIST_TARGETS.prove(ready, self.target_ids(&newest.id).await)?
            && let Some(first) = ids.first()
        {
            let call = self.client().batch_get_deployment_targets().deployment_id(&newest.id).target_ids(first).send();
            let answer =
                call.await.map_err(|e| sorted(format_args!("reading a target of deployment {}", newest.id), e));
            GET_TARGETS.prove(ready, answer)?;
        }
        self.prove_stop(ready, &newest).await
    }

    /// There is no dry run. A deployment that is over cannot be stopped or let go on: it is refused for that, or for lack of
    /// the permission.
    async fn prove_stop(&self, ready: &mut Readiness, over: &Deployment) -> Result<()> {
        let call = self.client().stop_deployment().deployment_id(&over.id).auto_rollback_enabled(false).send();
        let answer = match call.await {
            Ok(_) => Ok(()),
            Err(e) if e.as_service_error().is_some_and(|e| e.is_deployment_already_completed_exception()) => Ok(()),
            Err(e) => Err(sorted("stopping a deployment that is over", e)),
        };
        proved_or_unknown(ready, &STOP_DEPLOYMENT, answer)?;
        if !matches!(self.platform, Platform::Ecs | Platform::BlueGreen) {
            return Ok(());
        }
        let wait = DeploymentWaitType::ReadyWait;
        let call = self.client().continue_deployment().deployment_id(&over.id).deployment_wait_type(wait).send();
        let answer = match call.await {
            Ok(_) => Ok(()),
            Err(e)
                if e.as_service_error().is_some_and(|e| {
                    e.is_deployment_already_completed_exception()
                        || e.is_deployment_is_not_in_ready_state_exception()
                        || e.is_invalid_deployment_status_exception()
                }) =>
            {
                Ok(())
            }
            Err(e) => Err(sorted("letting a deployment go on that is over", e)),
        };
        proved_or_unknown(ready, &CONTINUE_DEPLOYMENT, answer)
    }

    async fn prove_config(&self, ready: &mut Readiness, info: &DeploymentGroupInfo, plan: &Plan) -> Result<()> {
        let deadlines = plan.deadlines();
        let own = self.config.as_deref().or_else(|| info.deployment_config_name());
        let back = self.way_back();
        let ways = [
            (own, "move the traffic", deadlines.shift),
            (back.as_deref(), "bring the traffic back", deadlines.roll_back),
        ];
        for (name, what, within) in ways {
            let Some(name) = name else { continue };
            let call = self.client().get_deployment_config().deployment_config_name(name).send();
            match call.await {
                Ok(found) => {
                    GET_CONFIG.prove(ready, Ok(()))?;
                    let takes = found.deployment_config_info().and_then(takes);
                    prove_pace(ready, name, what, takes, within);
                }
                Err(e) if e.as_service_error().is_some_and(|e| e.is_deployment_config_does_not_exist_exception()) => {
                    ready.refused.push(format!("there is no configuration {name}").into());
                }
                Err(e) => {
                    let answer: Result<()> = Err(sorted(format_args!("reading the configuration {name}"), e));
                    GET_CONFIG.prove(ready, answer)?;
                    return Ok(());
                }
            }
        }
        if matches!(self.platform, Platform::InPlace | Platform::BlueGreen) {
            ready.not_provable.push(
                format!(
                    "that all instances are done within {}, after which the plan goes back: what a deployment takes them is \
                     not known before",
                    minutes(deadlines.shift)
                )
                .into(),
            );
        }
        Ok(())
    }

    async fn prove_revisions(&self, ready: &mut Readiness, baseline: &Spec, candidate: &Spec) -> Result<()> {
        let old = GET_REVISION.prove(ready, self.registered(&baseline.artefact).await)?;
        let id = baseline.artefact.id();
        match old {
            Some(_) if baseline.artefact.unfetched() => ready.no_way_back.push(untold(&id)),
            Some(Some(_)) => ready.proved.push(format!("revision {id} is registered").into()),
            Some(None) => ready.no_way_back.push(format!("revision {id} is not registered any more").into()),
            None => {}
        }
        if candidate.artefact.unfetched() {
            ready.refused.push(untold(&candidate.artefact.id()));
        }
        for (which, artefact) in [("baseline", &baseline.artefact), ("candidate", &candidate.artefact)] {
            let mut known = false;
            for shelf in &self.shelves {
                let found = shelf.look(artefact).await;
                known |= !matches!(found, Ok(OnShelf::NotMine) | Err(_));
                if let Ok(OnShelf::There(seen) | OnShelf::Partly(seen, _)) = &found {
                    ready.proved.push(format!("the {which} is there: {seen}").into());
                }
                match found {
                    Ok(OnShelf::Gone(why)) => {
                        let why = format!("the {which} {} cannot be deployed: {why}", artefact.id());
                        if which == "baseline" { &mut ready.no_way_back } else { &mut ready.refused }.push(why.into());
                    }
                    Ok(OnShelf::Partly(_, unseen)) => {
                        ready.not_provable.push(format!("of the {which}: {unseen}").into())
                    }
                    Ok(OnShelf::There(_) | OnShelf::NotMine) => {}
                    Err(e) => ready.not_provable.push(format!("that the {which} is still there: {}", e.chain()).into()),
                }
            }
            if !known {
                let why = format!("that what the {which} names is still there: {}", artefact.id());
                ready.not_provable.push(why.into());
            }
            if !artefact.is_pinned() {
                let why = format!("that {} is what it was: it names neither version nor ETag", artefact.id());
                ready.not_provable.push(why.into());
            }
        }
        if self.platform == Platform::Lambda && !baseline.artefact.can_start_from_any_version() {
            ready.not_provable.push(
                "that CodeDeploy takes the baseline's AppSpec again: it is YAML, so its CurrentVersion stays what it was"
                    .into(),
            );
        }
        Ok(())
    }

    /// A deployment by a configuration that never was is refused for that, or for lack of the permission. Whether it was
    /// the former.
    async fn prove_create(&self, ready: &mut Readiness, candidate: &Spec) -> Result<bool> {
        let call = self.client().create_deployment().application_name(self.app()).deployment_group_name(self.name());
        let call = call.revision(candidate.artefact.write()).deployment_config_name(NEVER_WAS);
        let answer = match call.send().await {
            Ok(_) => {
                ready.refused.push(unchecked("deploys by a configuration that never was"));
                return Ok(false);
            }
            Err(e) if e.as_service_error().is_some_and(|e| e.is_deployment_config_does_not_exist_exception()) => Ok(()),
            Err(e) => Err(sorted(format_args!("deploying to {self} by a configuration that never was"), e)),
        };
        let checks = answer.is_ok();
        proved_or_unknown(ready, &CREATE_DEPLOYMENT, answer)?;
        Ok(checks)
    }

    /// What CodeDeploy asks for when the library deploys, each by a call of its own that is refused for what it says, or for
    /// lack of the permission. In which order a deployment is checked for these is not documented.
    async fn prove_besides(&self, ready: &mut Readiness, info: &DeploymentGroupInfo) -> Result<()> {
        let nothing = RevisionLocation::builder().build();
        let call = self.client().register_application_revision().application_name(self.app()).revision(nothing);
        let answer = match call.send().await {
            Ok(_) => {
                ready.refused.push(unchecked("registers a revision that is none"));
                return Ok(());
            }
            Err(e)
                if e.as_service_error()
                    .is_some_and(|e| e.is_revision_required_exception() || e.is_invalid_revision_exception()) =>
            {
                Ok(())
            }
            Err(e) => Err(sorted("registering a revision that is none", e)),
        };
        proved_or_unknown(ready, &REGISTER_REVISION, answer)?;
        if alarms_of(info).is_empty() {
            return Ok(());
        }
        let update = || {
            let call = self.client().update_deployment_group().application_name(self.app());
            call.current_deployment_group_name(self.name())
        };
        let answer = match update().deployment_config_name(NEVER_WAS).send().await {
            Ok(_) => {
                ready.refused.push(unchecked("sets a group to a configuration that never was"));
                let back = update().set_deployment_config_name(info.deployment_config_name.clone()).send().await;
                return back.map(drop).map_err(|e| sorted(format_args!("setting {self} back to its configuration"), e));
            }
            Err(e) if e.as_service_error().is_some_and(|e| e.is_deployment_config_does_not_exist_exception()) => Ok(()),
            Err(e) => Err(sorted(format_args!("setting {self} to a configuration that never was"), e)),
        };
        proved_or_unknown(ready, &OVERRIDE_ALARMS, answer)
    }

    /// What going back costs, and does not bring back.
    fn costs(&self, ready: Readiness) -> Readiness {
        let ready = ready.not_provable(
            "that no other driver deploys at the same time: CodeDeploy checks no versions, and allows one deployment at a time",
        );
        match self.platform {
            Platform::InPlace => ready
                .not_restored("what scripts of the candidate did besides its files")
                .not_restored("the capacity meanwhile: each instance is stopped and brought up again on the way back"),
            Platform::BlueGreen => ready.not_restored("what instances of the candidate wrote"),
            Platform::Ecs | Platform::Lambda => ready.not_restored("what the candidate wrote, sent and queued"),
        }
    }
}

/// Why a revision cannot be deployed of which no more than the hash is known.
fn untold(id: &str) -> Note {
    Note::new(format!(
        "CodeDeploy does not tell the text of revision {id}, and by its hash alone it cannot be counted on"
    ))
}

/// Whether the old side stands through the bakes at full traffic.
fn stands_for(info: &DeploymentGroupInfo, plan: &Plan) -> Readiness {
    let option = info.blue_green_deployment_configuration();
    let option = option.and_then(|it| it.terminate_blue_instances_on_deployment_success());
    let minutes = match option {
        Some(it) if it.action() == Some(&InstanceAction::KeepAlive) => return Readiness::default(),
        Some(it) => u64::try_from(it.termination_wait_time_in_minutes()).unwrap_or(0),
        None => 0,
    };
    let stands = Duration::from_secs(60 * minutes);
    let bakes: Duration = plan.steps().iter().filter(|step| step.weight == Weight::ALL).map(|step| step.bake).sum();
    let ready = Readiness::default();
    if bakes <= stands {
        return ready.proved(format!(
            "the old side stands for {minutes} minutes after the traffic has moved, longer than the bake"
        ));
    }
    ready.not_restored(format!(
        "the old side, once it is terminated: that is {minutes} minutes after the traffic has moved, sooner than the bake of \
         {} minutes is over; going back is then a deployment",
        bakes.as_secs().div_ceil(60)
    ))
}

/// How long the traffic is on its way by a configuration, whatever becomes of the candidate; nothing where it names no times.
fn takes(config: &DeploymentConfigInfo) -> Option<Duration> {
    let routing = config.traffic_routing_config()?;
    let (times, each) = match routing.r#type()? {
        TrafficRoutingType::TimeBasedCanary => (1, routing.time_based_canary()?.canary_interval()),
        // The first share moves at once, each other an interval later.
        TrafficRoutingType::TimeBasedLinear => {
            let linear = routing.time_based_linear()?;
            (99 / linear.linear_percentage().clamp(1, 100), linear.linear_interval())
        }
        _ => return None,
    };
    Some(Duration::from_secs(60 * u64::try_from(times).ok()? * u64::try_from(each).ok()?))
}

/// Whether a configuration is done before the plan gives it up.
fn prove_pace(ready: &mut Readiness, name: &str, what: &str, takes: Option<Duration>, within: Duration) {
    match takes {
        None => ready.proved.push(format!("the configuration {name} is there").into()),
        Some(takes) if takes < within => {
            ready.proved.push(format!("{name} takes {} to {what}", minutes(takes)).into());
        }
        Some(takes) => {
            let why = format!(
                "{name} takes {} to {what}, and the plan allows {}; name a faster one, or allow more",
                minutes(takes),
                minutes(within)
            );
            ready.refused.push(why.into());
        }
    }
}

fn minutes(time: Duration) -> String {
    format!("{} min", time.as_secs().div_ceil(60))
}

/// A refusal that means neither yes nor no is no proof, and no reason to refuse.
fn proved_or_unknown(ready: &mut Readiness, permission: &Permission, answer: Result<()>) -> Result<()> {
    match answer {
        Err(e) if matches!(e.kind(), ErrorKind::Invalid | ErrorKind::Unsupported | ErrorKind::NotFound) => {
            let why = format!("whether it may {} ({}): {}", permission.why, permission.action, e.chain());
            ready.not_provable.push(why.into());
            Ok(())
        }
        answer => permission.prove(ready, answer).map(drop),
    }
}

/// What speaks against an endpoint that `does` what CodeDeploy refuses.
fn unchecked(does: &str) -> Note {
    Note::new(format!(
        "this endpoint {does}; it is not CodeDeploy, and an emulator that checks nothing is no place for a rollout"
    ))
}

/// Named as no configuration is.
const NEVER_WAS: &str = "rollback.never-was";
