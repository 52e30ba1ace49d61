//! Proving that an alias can go forward and back, without changing anything.

use aws_sdk_lambda::operation::get_function_configuration::GetFunctionConfigurationOutput as Configuration;
use aws_sdk_lambda::types::{LastUpdateStatus, State};
use rollback_core::{
    Error, ErrorKind, Result,
    backend::Readiness,
    model::{Change, Note, RevisionId, Weight},
    plan::Plan,
};

use super::{
    Alias, GET_ALIAS, GET_PROVISIONED, GET_VERSION, UPDATE_ALIAS, Unmoved, number,
    shape::{Pointed, Provisioned, Stands},
};
use crate::error::sorted;

impl Alias {
    pub(super) async fn prove(&self, change: &Change, plan: &Plan) -> Result<Readiness> {
        let mut ready = Readiness::default();
        let (baseline, candidate) = (number(&change.baseline.id)?, number(&change.candidate.id)?);

        if let Some(pointed) = GET_ALIAS.prove(&mut ready, self.pointed().await)? {
            match pointed.stands(change) {
                Stands::Baseline => self.prove_write(&mut ready, baseline).await?,
                _ => ready.refused.push(self.left_behind(&pointed).into()),
            }
        }
        let (old, new) = tokio::join!(self.version(baseline), self.version(candidate));
        let mut twice = Readiness::default();
        let old = GET_VERSION.prove(&mut ready, old)?;
        let new = GET_VERSION.prove(&mut twice, new)?;
        if old.is_some() {
            // A missing permission is told once.
            ready.refused.append(&mut twice.refused);
        }
        if let Some(provisioned) = GET_PROVISIONED.prove(&mut ready, self.provisioned().await)? {
            ready = ready.and(self.prove_weights(&provisioned, plan));
        }
        if let Some(old) = &old {
            ready.no_way_back.extend(self.unfit(&change.baseline.id, old.as_ref()));
        }
        if let Some(new) = &new {
            ready.refused.extend(self.unfit(&change.candidate.id, new.as_ref()));
        }
        if let (Some(Some(old)), Some(Some(new))) = (&old, &new) {
            ready = ready.and(compare(old, new));
            ready.proved.push(format!("versions {baseline} and {candidate} are published").into());
        }
        Ok(ready
            .not_provable("whether Lambda has the capacity to start the candidate, which shows when it is called")
            .not_restored("what the candidate wrote, sent and queued")
            .not_restored("what no version holds: triggers, permissions, reserved concurrency"))
    }

    /// Lambda has no dry run for this. A write with a `RevisionId` that never was comes near one: it is refused for lack of
    /// the permission, or because of the id. Were it carried out all the same, it would leave the alias where it is.
    async fn prove_write(&self, ready: &mut Readiness, baseline: &str) -> Result<()> {
        match self.point(baseline, None, NEVER).await {
            Err(Unmoved::Stale(_)) => {
                UPDATE_ALIAS.prove(ready, Ok(()))?;
                ready.proved.push("a write with a RevisionId that is not the alias's is refused".into());
            }
            Err(Unmoved::Other(e)) => drop(UPDATE_ALIAS.prove(ready, Err::<(), _>(e))?),
            Ok(()) => ready.refused.push(
                "this endpoint takes a RevisionId that never was, so a late or second driver could move the traffic; it is \
                 not Lambda, and an emulator that checks nothing is no place for a rollout"
                    .into(),
            ),
        }
        Ok(())
    }

    fn prove_weights(&self, provisioned: &Provisioned, plan: &Plan) -> Readiness {
        let ready = Readiness::default();
        if matches!(provisioned, Provisioned::No) {
            return ready.proved("the alias has no provisioned concurrency, and takes weights");
        }
        let parted = plan.steps().iter().find(|step| step.weight != Weight::ALL);
        let ready = match parted {
            Some(step) => ready.refused(format!(
                "alias {} has provisioned concurrency, and Lambda takes no weights there, so {} cannot be given; plan all \
                 at once, or put the concurrency on the versions",
                self.name, step.weight
            )),
            None => ready,
        };
        match provisioned {
            Provisioned::Failed(why) => {
                ready.refused(format!("the provisioned concurrency of alias {} has failed: {why}", self.name))
            }
            _ => ready.not_restored(
                "the time that going back takes: Lambda provisions concurrency for the baseline again, a minute or two, \
                 before it moves the traffic",
            ),
        }
    }

    /// A version's configuration; none if there is no such version.
    pub(super) async fn version(&self, number: &str) -> Result<Option<Configuration>> {
        let call = self.client.get_function_configuration().function_name(self.name.called()).qualifier(number);
        match call.send().await {
            Ok(found) => Ok(Some(found)),
            Err(e) => {
                let e = sorted(format_args!("reading version {number} of function {}", self.name.function), e);
                if e.kind() == ErrorKind::NotFound { Ok(None) } else { Err(e) }
            }
        }
    }

    /// Why a version cannot serve.
    fn unfit(&self, id: &RevisionId, found: Option<&Configuration>) -> Vec<Note> {
        let function = &self.name.function;
        let Some(found) = found else {
            return vec![Note::new(format!("function {function} has no version {id}; publish it first"))];
        };
        let mut why: Vec<String> = Vec::new();
        match found.state() {
            Some(State::Active) | None => {}
            Some(State::Inactive) => why.push(format!(
                "version {id} of {function} is Inactive, as Lambda makes what nobody calls; invoke it once, and start again"
            )),
            Some(state) => why.push(format!(
                "version {id} of {function} is {state}, not Active{}",
                reason(found.state_reason())
            )),
        }
        if let Some(update) = found.last_update_status().filter(|update| **update != LastUpdateStatus::Successful) {
            let reason = reason(found.last_update_status_reason());
            why.push(format!("the last update of version {id} of {function} is {update}, not Successful{reason}"));
        }
        why.into_iter().map(Note::from).collect()
    }

    /// What is wrong with an alias that is not at the baseline alone.
    pub(super) fn left_behind(&self, pointed: &Pointed) -> String {
        let name = &self.name;
        if pointed.other.is_empty() {
            return format!("alias {name} is at {pointed} and not at the baseline: somebody has moved it");
        }
        format!(
            "alias {name} is at {pointed}: weights of another deployment, as a CodeDeploy deployment that runs, or that was \
             stopped without a rollback, leaves them; end that, or clear them with: aws lambda update-alias \
             --function-name {} --name {} --function-version {} --routing-config AdditionalVersionWeights={{}}",
            name.function, name.alias, pointed.primary
        )
    }
}

/// Lambda weights two versions only if these are the same.
fn compare(old: &Configuration, new: &Configuration) -> Readiness {
    let mut ready = Readiness::default();
    let dead_letters = |it: &Configuration| {
        it.dead_letter_config().and_then(|it| it.target_arn()).filter(|arn| !arn.is_empty()).map(str::to_owned)
    };
    for (what, old, new) in [
        ("execution role", old.role().map(str::to_owned), new.role().map(str::to_owned)),
        ("dead-letter target", dead_letters(old), dead_letters(new)),
    ] {
        if old != new {
            let show = |it: &Option<String>| it.clone().unwrap_or_else(|| "none".into());
            let (old, new) = (show(&old), show(&new));
            ready.refused.push(
                format!("the versions have not the same {what}, and Lambda weights no such two: {old} and {new}")
                    .into(),
            );
        }
    }
    ready
}

fn reason(why: Option<&str>) -> String {
    why.map(|why| format!(": {why}")).unwrap_or_default()
}

/// Shaped as a `RevisionId`, and given to nothing.
const NEVER: &str = "00000000-0000-4000-8000-000000000000";

impl Alias {
    /// An error that says what cannot be done with this alias's function.
    pub(super) fn failed(&self, kind: ErrorKind, why: impl std::fmt::Display) -> Error {
        Error::new(kind, format!("function {}: {why}", self.name.function))
    }
}
