//! Proving that a stack can go forward and back, without changing anything.

use std::time::Duration;

use aws_sdk_cloudformation::types::Parameter;
use rollback_core::{Error, ErrorKind, Result, backend::Readiness, model::Change, plan::Plan};

use super::{
    CANCEL, CONTINUE, DESCRIBE, EVENTS, ROLL_BACK, SUMMARY, Seen, Stack, TEMPLATE, UPDATE,
    revision::{Summary, acknowledges},
    shape::{Given, Made, Phase, Source, Spec, Stands},
};

impl Stack {
    pub(super) async fn prove(&self, change: &Change, plan: &Plan) -> Result<Readiness> {
        let (baseline, candidate) = (Spec::of(&change.baseline)?, Spec::of(&change.candidate)?);
        let mut ready = Readiness::default();
        let Some(seen) = DESCRIBE.prove(&mut ready, self.described().await)? else { return Ok(ready) };
        let found = (self.operation(&seen).await, self.digest(&seen).await, self.own_summary().await);
        EVENTS.prove(&mut ready, found.0)?;
        let digest = TEMPLATE.prove(&mut ready, found.1)?;
        let own = SUMMARY.prove(&mut ready, found.2)?;

        for (what, spec) in [("baseline", &baseline), ("candidate", &candidate)] {
            if spec.stack != seen.id {
                let why = format!("the {what} was read off another stack than {} is now; read it again", self.name);
                ready.refused.push(why.into());
            }
        }
        if Phase::of(&seen.status) == Phase::Rest {
            let made = digest.map(|digest| {
                Made { digest: &digest, parameters: &seen.parameters, tags: &seen.tags }.stands(&baseline, &candidate)
            });
            if let Some(Stands::Candidate | Stands::Elsewhere(_)) = made {
                let why = format!("stack {} is not at the baseline any more: somebody has updated it", self.name);
                ready.refused.push(why.into());
            }
        } else if Phase::of(&seen.status).is_whole() {
            let why = format!("stack {} is {}, and takes no update; wait until that is over", self.name, seen.status);
            ready.refused.push(why.into());
        } else {
            ready.refused.push(self.unfit(&seen).1.into());
        }
        if let Some(root) = seen.root.as_ref().filter(|root| **root != seen.id) {
            ready
                .refused
                .push(format!("stack {} is nested; the next update of {root} would undo it", self.name).into());
        }
        if let Some(own) = &own {
            self.prove_ways(&mut ready, own, &baseline, &candidate).await?;
            self.prove_write(&mut ready, &seen, own).await?;
        }
        self.prove_triggers(&mut ready, &seen, plan).await?;
        ready = match seen.drift.as_deref() {
            Some("IN_SYNC") => ready.proved("no resource had drifted from the template when that was last looked for"),
            Some("DRIFTED") => ready.not_restored(
                "what was changed on resources outside of the stack: drift detection has found some, and updates of the same \
                 resources overwrite it",
            ),
            _ => ready.not_provable("whether resources were changed outside of the stack; drift detection has not run"),
        };
        let untried: Vec<&str> = [CANCEL, CONTINUE, ROLL_BACK].iter().map(|it| it.action).collect();
        Ok(ready
            .not_provable(format!("the permissions that are only needed half way: {}", untried.join(", ")))
            .not_provable("whether CloudFormation may change each resource, and which of them it replaces")
            .not_restored("data in resources that the update replaces or removes")
            .not_restored("what a custom resource did elsewhere"))
    }

    /// The template forward is read by CloudFormation; the one back must be within reach, and what it needs still there.
    async fn prove_ways(&self, ready: &mut Readiness, own: &Summary, baseline: &Spec, candidate: &Spec) -> Result<()> {
        if let Some(new) = self.readable(ready, &candidate.template).await? {
            let lacking = new
                .parameters
                .iter()
                .find(|(name, declared)| declared.default.is_none() && !candidate.parameters.contains_key(*name));
            let unknown = candidate.parameters.keys().find(|name| !new.parameters.contains_key(*name));
            if let Some(name) = lacking.map(|(name, _)| name).or(unknown) {
                ready.refused.push(
                    format!(
                        "the candidate's template and values do not fit: parameter {name}; make the revision again"
                    )
                    .into(),
                );
            }
            if let Some(missing) = new.capabilities.iter().find(|it| !acknowledges(&candidate.capabilities, it)) {
                ready.refused.push(format!("the candidate's template needs {missing} acknowledged").into());
            }
            // Not in the candidate, it is forgotten with it; and nobody can read what it was.
            let kept = baseline.parameters.iter().filter(|(_, given)| **given == Given::Kept).map(|(name, _)| name);
            for name in kept.filter(|name| !new.parameters.contains_key(*name)) {
                ready.no_way_back.push(
                    format!(
                        "the candidate's template does not declare the NoEcho parameter {name}, so CloudFormation forgets \
                         its value, and nobody can read what it is"
                    )
                    .into(),
                );
            }
            ready
                .proved
                .push("CloudFormation reads the candidate's template, and has a value for each parameter".into());
        }
        let kept: Vec<&str> = baseline
            .parameters
            .iter()
            .filter(|(_, given)| **given == Given::Kept)
            .map(|(name, _)| name.as_str())
            .collect();
        if !kept.is_empty() {
            let what =
                format!("NoEcho parameters ({}) cannot be read; they keep their values on both ways", kept.join(", "));
            ready.proved.push(what.into());
        }
        for (name, _) in own.parameters.iter().filter(|(_, declared)| declared.is_looked_up()) {
            let what = format!("the value behind parameter {name}: Systems Manager is asked anew by each update");
            ready.not_restored.push(what.into());
        }
        match &baseline.template {
            Source::Body(_) => ready.proved.push("the baseline's template is recorded whole".into()),
            Source::Nowhere(bytes) => ready.no_way_back.push(self.too_long(*bytes).into()),
            Source::Url(url) => {
                let mut there = Readiness::default();
                match self.readable(&mut there, &baseline.template).await? {
                    Some(it) if it.parameters == own.parameters && it.types == own.types => {
                        ready.proved.push(format!("the template at {url} declares what the stack's does").into());
                        ready
                            .not_provable
                            .push(format!("that the template at {url} is the stack's to the letter").into());
                    }
                    Some(_) => {
                        let why = format!("the template at {url} is not the one that stack {} has", self.name);
                        ready.no_way_back.push(why.into());
                    }
                    None => ready.no_way_back.append(&mut there.refused),
                }
            }
        }
        Ok(())
    }

    /// What a template declares; none, with the reason in `refused`, when CloudFormation cannot read it.
    async fn readable(&self, ready: &mut Readiness, template: &Source) -> Result<Option<Summary>> {
        match self.summary(template).await {
            Ok(summary) => Ok(Some(summary)),
            Err(e) if matches!(e.kind(), ErrorKind::Invalid | ErrorKind::NotFound | ErrorKind::Unsupported) => {
                ready.refused.push(format!("CloudFormation cannot read the template: {}", e.chain()).into());
                Ok(None)
            }
            Err(e) => Err(e),
        }
    }

    /// There is no dry run of an update. One with a parameter that the template does not declare comes near it: it is refused
    /// for lack of the permission, or because of the parameter, and can never be carried out.
    async fn prove_write(&self, ready: &mut Readiness, seen: &Seen, own: &Summary) -> Result<()> {
        if Phase::of(&seen.status) != Phase::Rest || own.parameters.contains_key(NEVER) {
            return Ok(());
        }
        let never = Parameter::builder().parameter_key(NEVER).parameter_value("never").build();
        let call = self.client.update_stack().stack_name(&seen.id).use_previous_template(true).parameters(never);
        match call.send().await.map_err(|e| self.refused("trying out an update of", e)) {
            Ok(_) => Err(Error::new(
                ErrorKind::Internal,
                format!(
                    "stack {} took a parameter that its template does not declare; this is not CloudFormation",
                    self.name
                ),
            )),
            Err(e) if e.kind() == ErrorKind::Invalid || e.kind() == ErrorKind::Conflict => {
                UPDATE.prove(ready, Ok(())).map(drop)
            }
            Err(e) => UPDATE.prove(ready, Err::<(), _>(e)).map(drop),
        }
    }

    async fn prove_triggers(&self, ready: &mut Readiness, seen: &Seen, plan: &Plan) -> Result<()> {
        let (arns, monitored) = match &self.triggers {
            Some(triggers) => (triggers.arns(), triggers.monitoring()),
            None => {
                (seen.triggers.clone(), Duration::from_secs(60 * u64::try_from(seen.monitoring).unwrap_or_default()))
            }
        };
        if arns.is_empty() {
            ready.not_provable.push(
                "that a bad update is undone when nothing of ours runs any more: the stack has no rollback triggers, and \
                 Stack::triggers sets them"
                    .into(),
            );
        } else {
            let (count, until) = (arns.len(), monitored.as_secs() / 60);
            let watches = format!("CloudFormation watches {count} alarms, until {until} min after the update");
            ready.proved.push(watches.into());
            ready
                .not_restored
                .push("the rollback triggers: an update back takes them off, so that they do not undo it".into());
            self.prove_alarms(ready, seen, &arns).await?;
        }
        let allowed = plan.deadlines().shift;
        if monitored >= allowed {
            let why = format!(
                "CloudFormation watches the alarms for {} min after an update, and all that time it runs; the plan allows {} \
                 min for a shift, so give it a longer deadline",
                monitored.as_secs() / 60,
                allowed.as_secs() / 60
            );
            ready.refused.push(why.into());
        }
        Ok(())
    }

    /// An alarm that is not there fails the update, and one that fires undoes it.
    async fn prove_alarms(&self, ready: &mut Readiness, seen: &Seen, arns: &[String]) -> Result<()> {
        let here = whereabouts(&seen.id);
        let mut near = Vec::new();
        for arn in arns {
            let there = whereabouts(arn);
            if there.0 != here.0 {
                let why = format!(
                    "rollback trigger {arn} is in {}, and stack {} in {}: CloudFormation would not find it, and undo the \
                     update; name an alarm of the stack's region",
                    there.0, self.name, here.0
                );
                ready.refused.push(why.into());
            } else if there.1 == here.1 {
                near.push(arn.splitn(7, ':').last().unwrap_or_default().to_owned());
            } else {
                let what = format!("whether rollback trigger {arn} is there and quiet: it is of another account");
                ready.not_provable.push(what.into());
            }
        }
        #[cfg(feature = "cloudwatch")]
        if let Some(alarms) = &self.alarms {
            alarms.prove(ready, "rollback trigger", &near, "CloudFormation would undo the update for that").await?;
            return Ok(());
        }
        if !near.is_empty() {
            let what = format!(
                "whether its rollback triggers ({}) are there and quiet: CloudFormation undoes an update for one that is \
                 not; Stack::alarms looks",
                near.join(", ")
            );
            ready.not_provable.push(what.into());
        }
        Ok(())
    }
}

/// Region and account of an ARN.
fn whereabouts(arn: &str) -> (&str, &str) {
    let mut words = arn.split(':').skip(3);
    (words.next().unwrap_or_default(), words.next().unwrap_or_default())
}

/// A parameter that no template declares.
const NEVER: &str = "RollbackPreflightDeclaredByNobody";
