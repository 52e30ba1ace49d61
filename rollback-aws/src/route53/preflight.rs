//! Proving that the records of a name can be moved forward and back, without changing anything.

use rollback_core::{
    ErrorKind, Result,
    backend::Readiness,
    model::{Change, RevisionId, Weight},
    plan::Plan,
};

use super::{
    CHANGE, GET_CHANGE, GET_HEALTH, LIST, Unmoved, Weighted,
    records::{Records, probe},
};
use crate::error::sorted;

impl Weighted {
    pub(super) async fn prove(&self, change: &Change, plan: &Plan) -> Result<Readiness> {
        let mut ready = Readiness::default();
        let (baseline, candidate) = (&change.baseline.id, &change.candidate.id);
        let Some(records) = LIST.prove(&mut ready, self.records().await)? else { return Ok(ready) };
        match records.share(change) {
            Ok(Weight::NONE) => {
                ready.proved.push(format!("{baseline} alone is answered with, and {candidate} has its records").into());
            }
            Ok(share) => {
                let why =
                    format!("{} is left with {share} at {candidate}; set its weights to 0 and start again", self.name);
                ready.refused.push(why.into());
            }
            Err(odd) => {
                ready.refused.push(format!("{}: {odd}; both sets need a record of each type", self.name).into())
            }
        }
        if !records.beside().is_empty() {
            let beside = records.beside().join(", ");
            ready.not_provable.push(
                format!("what other records of {} do ({beside}): they have no weight and are left alone", self.name)
                    .into(),
            );
        }
        self.prove_change(&mut ready).await?;
        self.prove_get_change(&mut ready).await?;
        for (id, is_candidate) in [(baseline, false), (candidate, true)] {
            self.prove_health(&mut ready, &records, id, is_candidate).await?;
        }
        let (ttl, propagation) = (records.ttl().as_secs(), self.propagation.as_secs());
        if records.has_several_ttls() {
            ready.refused.push(
                format!("the weighted records of {} have several TTLs, of which Route 53 keeps the last written; give them one", self.name)
                    .into(),
            );
        }
        let brief = plan.steps().iter().any(|step| step.bake.as_secs() < ttl);
        if brief {
            ready.not_provable.push(
                format!("whether a bake shorter than the TTL of {ttl} s sees every resolver once: many keep an answer that long")
                    .into(),
            );
        }
        Ok(ready
            .not_provable("whether resolvers and clients keep to the TTL")
            .not_provable("whether the endpoints of the candidate take the traffic, which shows when they get it")
            .not_restored(format!(
                "answers that resolvers have: for up to {ttl} s after the name servers have the change, which takes Route 53 up to \
                 {propagation} s"
            ))
            .not_restored("what the candidate wrote, sent and queued"))
    }

    /// Route 53 has no dry run for this. The deletion of a record that never was comes near one: it is refused for lack of
    /// the permission, or because there is no such record.
    async fn prove_change(&self, ready: &mut Readiness) -> Result<()> {
        let tried = match self.edit(vec![probe(&self.name)?], "rollback: may weights be changed?").await {
            Err(Unmoved::Stale(_)) => Ok(()),
            Err(Unmoved::Other(e)) => Err(e),
            Ok(_) => {
                let why = "Route 53 took the deletion of a record that is not there: this endpoint checks nothing";
                ready.refused.push(why.into());
                return Ok(());
            }
        };
        CHANGE.prove(ready, tried).map(drop)
    }

    /// A change that never was: it is not found, or may not be looked for.
    async fn prove_get_change(&self, ready: &mut Readiness) -> Result<()> {
        let answer = self.client.get_change().id(NEVER).send().await.map(drop);
        let answer = answer.or_else(|e| match e.as_service_error() {
            Some(service) if service.is_no_such_change() => Ok(()),
            _ => Err(sorted("reading the state of a change", e)),
        });
        GET_CHANGE.prove(ready, answer).map(drop)
    }

    async fn prove_health(
        &self,
        ready: &mut Readiness,
        records: &Records,
        id: &RevisionId,
        is_candidate: bool,
    ) -> Result<()> {
        for check in records.checks(id.as_str()) {
            let answer = self.client.get_health_check_status().health_check_id(check).send().await;
            let answer = answer.map_err(|e| sorted(format_args!("reading health check {check} of {id}"), e));
            let answer = match answer {
                // Checks of other checks and of alarms have no status to be read.
                Err(e) if e.kind() == ErrorKind::Invalid => {
                    ready.not_provable.push(format!("what health check {check} of {id} says").into());
                    continue;
                }
                answer => answer,
            };
            let Some(answer) = GET_HEALTH.prove(ready, answer)? else { return Ok(()) };
            let seen: Vec<&str> = answer
                .health_check_observations()
                .iter()
                .filter_map(|one| one.status_report().and_then(|report| report.status()))
                .collect();
            let well = seen.iter().filter(|status| status.starts_with("Success")).count();
            // More than 18 % of the checkers, by the developer guide.
            if well * 100 > seen.len() * 18 {
                ready.proved.push(format!("health check {check} finds {id} healthy").into());
                continue;
            }
            let said = seen.first().copied().unwrap_or("no checker has looked yet");
            let why = format!("health check {check} finds {id} unhealthy, so Route 53 does not answer with it: {said}");
            if is_candidate { ready.refused.push(why.into()) } else { ready.no_way_back.push(why.into()) }
        }
        Ok(())
    }
}

/// The id of no change.
const NEVER: &str = "C00000000000000NEVER";
