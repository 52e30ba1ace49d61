//! A StatefulSet that holds the candidate back by its partition.

use std::fmt;

use async_trait::async_trait;
use rollback_core::{
    Error, ErrorKind, Result, Wake,
    backend::{Capabilities, DeploymentBackend, Readiness, Weights},
    model::{Attempt, Change, Goal, Note, Observed, Progress, Revision, Serves, Version, Weight},
    plan::Plan,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    Kind, LAST_APPLIED, Pair, Snapshot, WRITES, Workload,
    convergence::{Convergence, convergence, is_seen, mixed, replicas},
    finds_alone, images_of, name_of,
    preflight::{self, Tried},
    share, stand, template,
};
use crate::{
    Client, Watches,
    access::{self, Access},
    mark::{self, Stand},
    object::{AUTOSCALERS, PODS, Patch, Write, number, text},
    watch,
};

/// A StatefulSet as a target that gives the candidate pod after pod: those with the highest numbers first, the others held
/// back by the partition of its rolling update.
///
/// A share is one of its pods: of a size of 4 they are 25, 50, 75 and 100 %, and [`capabilities`](DeploymentBackend) says
/// which they are for the current size. The template and the partition are written together, in one conditional write. Going
/// back puts the recorded template there and takes the partition away in one such write: the pods that had the candidate are
/// the only ones that are not of it, and its controller replaces them from the highest number down. What the partition was
/// written as is put back; a set with a partition of its own, or with `OnDelete`, is refused.
///
/// **A pod that never becomes ready** holds up the way back of an ordered set, here as with [`Workload`]; with
/// [`delete_stuck_pods`](Self::delete_stuck_pods) it is deleted after the template is back.
///
/// **Versions are checked**: uid, template, partition and nonce. A partition or a template that somebody else sets, or
/// sets back, is drift. A set that is scaled while a part of its pods has the candidate goes back, for its shares were those
/// of another size; so a HorizontalPodAutoscaler is refused.
#[derive(Clone, Debug)]
pub struct StatefulSetCanary {
    set: Workload,
    size: i64,
}

/// A baseline, as it is sealed. A candidate is that of a [`Workload`].
#[derive(Clone, Serialize, Deserialize)]
struct Recorded {
    #[serde(flatten)]
    snapshot: Snapshot,
    /// The update strategy as it was written, to be put back so.
    strategy: Value,
    size: i64,
    found: Stand,
}

impl StatefulSetCanary {
    /// The StatefulSet of this name; reads how many pods there are, of which the shares are from now on.
    ///
    /// # Errors
    /// `NotFound` when it is not there; `Invalid` when the namespace or the name is none, or it has no replicas.
    pub async fn new(client: &Client, namespace: &str, name: &str) -> Result<Self> {
        let set = Workload::stateful_set(client, namespace, name)?;
        let size = replicas(&set.read().await?);
        if size < 1 {
            return Err(Error::invalid(format!("{set} has no replicas: there is nothing to have a share of")));
        }
        Ok(Self { set, size })
    }

    /// As [`Workload::despite_gitops`].
    #[must_use]
    pub fn despite_gitops(mut self, reason: impl Into<Note>) -> Self {
        self.set = self.set.despite_gitops(reason);
        self
    }

    /// As [`Workload::delete_stuck_pods`].
    #[must_use]
    pub const fn delete_stuck_pods(mut self) -> Self {
        self.set.deletes_stuck_pods = true;
        self
    }

    /// As [`Workload::watched_by`].
    #[must_use]
    pub fn watched_by(mut self, watches: &Watches) -> Self {
        self.set = self.set.watched_by(watches);
        self
    }

    /// As [`Workload::images`].
    ///
    /// # Errors
    /// As there.
    pub async fn images<N: AsRef<str>, I: Into<String>>(
        &self,
        images: impl IntoIterator<Item = (N, I)> + Send,
    ) -> Result<Revision> {
        self.set.images(images).await
    }

    /// As [`Workload::template`].
    ///
    /// # Errors
    /// As there.
    pub async fn template(&self, id: &str, template: &Value) -> Result<Revision> {
        self.set.template(id, template).await
    }

    /// What this target takes to be allowed.
    pub fn rights(&self) -> Vec<Access> {
        let mut rights = self.set.rights();
        rights.push(Access::to(AUTOSCALERS, &["list"], "see who else sets the number of pods"));
        rights
    }

    /// The Role that this target takes, as YAML for `kubectl apply`.
    ///
    /// # Errors
    /// `Invalid` when the name is none.
    pub fn role(&self, name: &str) -> Result<String> {
        access::role(name, &self.set.namespace, &self.rights())
    }

    /// With the shares of the size that was recorded: this process may have been started after somebody scaled the set.
    fn as_recorded(&self, recorded: &Recorded) -> Self {
        Self { set: self.set.clone(), size: recorded.size }
    }

    /// How many pods have the candidate at this goal.
    fn pods_at(&self, goal: Goal) -> Result<i64> {
        match goal {
            Goal::Baseline => Ok(0),
            Goal::Candidate | Goal::Split(Weight::ALL) => Ok(self.size),
            Goal::Split(weight) => {
                (1..self.size).find(|pods| part(*pods, self.size) == Some(weight)).ok_or_else(|| {
                    let weights = self.capabilities().weights;
                    let text = format!("{} cannot be given {weight}; of {} pods it is {weights}", self.set, self.size);
                    Error::new(ErrorKind::Unsupported, text)
                })
            }
        }
    }

    /// The partition that this goal takes. All and nothing are not held back: on the way back the pods that had the
    /// candidate are the only ones to be replaced.
    fn partition_at(&self, goal: Goal) -> Result<i64> {
        let pods = self.pods_at(goal)?;
        Ok(if pods == 0 { 0 } else { self.size - pods })
    }

    /// What is still to be written towards this goal.
    fn due(&self, goal: Goal, pair: &Pair, object: &Value) -> Result<Option<String>> {
        let partition = self.partition_at(goal)?;
        let is_there = *template(object) == pair.wanted(goal).template;
        if is_there && held(object) == partition {
            return Ok(None);
        }
        let pods = self.pods_at(goal)?;
        Ok(Some(match (goal, is_there) {
            (Goal::Baseline, false) => "put the recorded template back".into(),
            (Goal::Baseline, true) => "let go of the pods that a partition holds back".into(),
            (_, false) => format!("put the new template there, for {pods} of {} pods", self.size),
            (_, true) => format!("let {pods} of {} pods have the new template", self.size),
        }))
    }

    /// How far its controller is with what stands there for this goal. Baseline and all of the candidate are what
    /// [`convergence`] knows.
    fn stands(&self, goal: Goal, object: &Value) -> Result<Convergence> {
        let pods = self.pods_at(goal)?;
        if pods == 0 || pods == self.size {
            return Ok(convergence(Kind::StatefulSet, object));
        }
        let status = |name: &str| number(object, &format!("/status/{name}"));
        let (ready, new) = (status("readyReplicas"), status("updatedReplicas"));
        Ok(if !is_seen(object) {
            Convergence::Working("its controller has not seen the change yet".into())
        } else if ready < self.size {
            Convergence::Working(format!("{ready} of {} pods are ready", self.size))
        } else if new != pods {
            Convergence::Working(format!("{new} of {pods} pods of the candidate are there"))
        } else {
            Convergence::Done
        })
    }

    /// Whether it has another size than that of which this goal is a share.
    fn is_scaled(&self, goal: Goal, object: &Value) -> Result<bool> {
        let pods = self.pods_at(goal)?;
        Ok(pods != 0 && pods != self.size && replicas(object) != self.size)
    }

    /// The patch towards a goal, of the object as it was read.
    fn patch(&self, object: &Value, goal: Goal, change: &Change, recorded: &Recorded, nonce: &str) -> Result<Patch> {
        let pair = Pair::of(change)?;
        let (to, partition) = (pair.wanted(goal), self.partition_at(goal)?);
        let id = if goal == Goal::Baseline { &change.baseline.id } else { &change.candidate.id };
        let mut patch = mark::only_as_read(object);
        if *template(object) != to.template {
            patch = patch.put("/spec/template", to.template.clone());
        }
        if held(object) != partition {
            patch = patch.put("/spec/updateStrategy", strategy(recorded, partition));
        }
        let mut marks = vec![(mark::REVISION, id.as_str().to_owned()), (PARTITION, partition.to_string())];
        if goal == Goal::Baseline {
            marks.extend(to.applied_again(object).map(|applied| (LAST_APPLIED, applied)));
        }
        Ok(mark::signed(patch, object, "", nonce, &to.template, &marks))
    }

    async fn prove(&self, change: &Change, plan: &Plan) -> Result<Readiness> {
        let (pair, recorded) = (Pair::of(change)?, recorded(change)?);
        let mut ready = self.set.prove(change, &pair).await?;
        if recorded.size != self.size {
            return Ok(ready.refused(format!(
                "{} has {} pods by now, and {} when this target was made: make it again for the shares of that size",
                self.set, recorded.size, self.size
            )));
        }
        let Workload { client, namespace, name, .. } = &self.set;
        match preflight::scaler_of(client, namespace, Kind::StatefulSet, &[name]).await {
            Ok(None) => ready = ready.proved("nobody else sets the number of pods"),
            Ok(Some((who, _))) => {
                ready = ready.refused(format!(
                    "HorizontalPodAutoscaler {who} sets the number of pods, of which the shares are: take it away for the \
                     rollout"
                ));
            }
            Err(e) if e.kind() == ErrorKind::Denied => ready = ready.refused(e.chain()),
            Err(e) => return Err(e),
        }
        if !ready.refused.is_empty() {
            return Ok(ready);
        }
        let object = self.set.read().await?;
        let up = number(&object, "/status/readyReplicas");
        if up < self.size && plan.steps().iter().any(|step| step.weight != Weight::ALL) {
            return Ok(ready.refused(format!(
                "{up} of {} pods of {} are ready, and a share has arrived when all of them are: make them ready, or ask \
                 for 100 % at once",
                self.size, self.set
            )));
        }
        let hold = mark::only_as_read(&object).put("/spec/updateStrategy", strategy(&recorded, self.size - 1));
        let answer = self.set.write(&hold, Write::Dry).await.map(|after| held(&after) == self.size - 1);
        Tried { what: "a partition", of: self, back: false }.told(answer, ready)
    }
}

/// `StatefulSet shop/db`.
impl fmt::Display for StatefulSetCanary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.set.fmt(f)
    }
}

#[async_trait]
impl DeploymentBackend for StatefulSetCanary {
    // What has the candidate stays so for as long as the partition does. Pods of the baseline were taken away for it.
    fn capabilities(&self) -> Capabilities {
        let mut shares: Vec<Weight> =
            (1..self.size).filter_map(|pods| part(pods, self.size)).chain([Weight::ALL]).collect();
        shares.dedup();
        Capabilities { baseline_stands: false, ..Capabilities::full().weights(Weights::Only(shares.into())) }
    }

    async fn baseline(&self) -> Result<Revision> {
        let revision = self.set.baseline().await?;
        let snapshot: Snapshot = revision.spec.open()?;
        let object = self.set.read().await?;
        if *template(&object) != snapshot.template || text(&object, "/metadata/uid") != snapshot.uid {
            return Err(Error::new(ErrorKind::Unavailable, format!("{self} changed while it was looked at")));
        }
        // Also where a partition holds pods back, of which the workload says nothing. OnDelete is preflight's business.
        if let Some(why) = mixed(Kind::StatefulSet, &object)
            && text(&object, "/spec/updateStrategy/type") != "OnDelete"
        {
            return Err(Error::new(ErrorKind::Mixed, format!("{self} serves more than one template: {why}")));
        }
        let recorded = Recorded {
            snapshot,
            strategy: object["spec"]["updateStrategy"].clone(),
            size: replicas(&object),
            found: stand(&object),
        };
        Revision::new(name_of(&object).unwrap_or(revision.id.as_str()))?.with_spec(&recorded)
    }

    async fn preflight(&self, change: &Change, plan: &Plan) -> Result<Readiness> {
        self.prove(change, plan).await
    }

    async fn observe<'a>(&self, change: &Change, goal: Goal, last: Option<&'a Attempt>) -> Result<Observed> {
        let (pair, recorded) = (Pair::of(change)?, recorded(change)?);
        let sized = self.as_recorded(&recorded);
        if let Some(object) = self.set.heard(last).await {
            let look = sized.look(&pair, &recorded, goal, last, &object).await?;
            if watch::will_do(goal, &look) {
                return Ok(look);
            }
        }
        match self.set.read().await {
            Err(e) if e.kind() == ErrorKind::NotFound => {
                let why = format!("{self} was deleted");
                Ok(Observed::new(Progress::Drifted(why.into()), Version::try_from("gone")?))
            }
            object => sized.look(&pair, &recorded, goal, last, &object?).await,
        }
    }

    async fn shift(&self, change: &Change, goal: Goal, attempt: &Attempt) -> Result<()> {
        let (pair, recorded) = (Pair::of(change)?, recorded(change)?);
        let sized = self.as_recorded(&recorded);
        sized.pods_at(goal)?;
        for _ in 0..WRITES {
            let object = self.set.read().await?;
            if version(&object)? != attempt.version || stand(&object).uid != recorded.found.uid {
                return Err(Error::new(ErrorKind::Conflict, format!("{self} is not any more what was looked at")));
            }
            let stuck = match goal == Goal::Baseline && sized.due(goal, &pair, &object)?.is_none() {
                true => self.set.stuck_pod(&object).await?,
                false => None,
            };
            let patch = sized.patch(&object, goal, change, &recorded, attempt.nonce.as_str())?;
            match self.set.write(&patch, Write::Real).await {
                Err(e) if e.kind() == ErrorKind::Conflict => {}
                Err(e) => return Err(e),
                Ok(_) => {
                    if let Some(pod) = stuck {
                        let (name, uid) = (text(&pod, "/metadata/name"), text(&pod, "/metadata/uid"));
                        self.set.client.delete(PODS, &self.set.namespace, name, uid).await?;
                    }
                    return Ok(());
                }
            }
        }
        Err(Error::new(ErrorKind::Conflict, format!("{self} changes faster than it can be written")))
    }

    fn attach(&self, wake: Wake) {
        self.set.attach(wake);
    }
}

impl StatefulSetCanary {
    /// What this object, as it was read or heard of, says of the way to this goal.
    async fn look(
        &self,
        pair: &Pair,
        recorded: &Recorded,
        goal: Goal,
        last: Option<&Attempt>,
        object: &Value,
    ) -> Result<Observed> {
        let (now, live) = (stand(object), template(object));
        let landed = last.is_some_and(|last| now.nonce.as_deref() == Some(last.nonce.as_str()));
        let look = Observed::new(Progress::Reached, version(object)?).landed(landed);
        let serves = match *live == pair.candidate.template {
            true => Serves::Candidate,
            false => Serves::Baseline,
        };
        if now.uid != recorded.found.uid {
            let progress = self.set.drifted(object, &format!("{self} was deleted and made again"));
            return Ok(Observed { progress, ..look });
        }
        if !recorded.is_ours(object) {
            let what = format!("{self} now has {} and a partition of {}", images_of(live), held(object));
            return Ok(Observed { progress: self.set.drifted(object, &what), ..look });
        }
        let alone = finds_alone(Kind::StatefulSet, goal, last, object);
        let whole = alone || convergence(Kind::StatefulSet, object) == Convergence::Done;
        let look = self.set.with_share(look, share(Kind::StatefulSet, object, serves, whole));
        let progress = match self.due(goal, pair, object)? {
            // Going on would give others the candidate than those that had it.
            _ if self.is_scaled(goal, object)? => Progress::Failed(
                format!(
                    "it was scaled from {} to {} pods: the shares are those of another size",
                    self.size,
                    replicas(object)
                )
                .into(),
            ),
            Some(effect) => Progress::Due(effect.into()),
            None if alone => Progress::Reached,
            None => match self.stands(goal, object)? {
                Convergence::Done if goal.is_forward() && replicas(object) == 0 => {
                    Progress::Underway("it has no pods by now: nothing shows whether the candidate works".into())
                }
                Convergence::Done => Progress::Reached,
                Convergence::Failed(why) if goal.is_forward() => Progress::Failed(why.into()),
                Convergence::Working(why) if goal.is_forward() => Progress::Underway(why.into()),
                Convergence::Working(why) | Convergence::Failed(why) => match self.set.stuck_pod(object).await? {
                    Some(pod) => Progress::Due(format!("delete pod {}", text(&pod, "/metadata/name")).into()),
                    None => Progress::Underway(why.into()),
                },
            },
        };
        let mut look = Observed { progress, ..look };
        if goal == Goal::Baseline && look.progress == Progress::Reached {
            look.not_restored = self.set.changed_configs(&pair.baseline).await?;
        }
        Ok(look)
    }
}

fn recorded(change: &Change) -> Result<Recorded> {
    change.baseline.spec.open().map_err(|e| {
        if change.baseline.spec.open::<Snapshot>().is_ok() {
            return mark::not_read_off("has the template", change.baseline.id.as_str());
        }
        e.during(format!(
            "the baseline {} holds no StatefulSet; make it with StatefulSetCanary::baseline",
            change.baseline.id
        ))
    })
}

/// The strategy as it was recorded, and with this partition.
fn strategy(recorded: &Recorded, partition: i64) -> Value {
    let mut strategy = recorded.strategy.clone();
    if partition != 0 {
        strategy["rollingUpdate"]["partition"] = json!(partition);
    }
    strategy
}

/// The pods below this number are held back. The API leaves out a zero.
fn held(object: &Value) -> i64 {
    number(object, "/spec/updateStrategy/rollingUpdate/partition")
}

impl Recorded {
    /// Whether template and partition are as they were found, or as an attempt of ours left them since.
    fn is_ours(&self, object: &Value) -> bool {
        let now = stand(object);
        let left = match now.nonce == self.found.nonce {
            true => number(&self.strategy, "/rollingUpdate/partition"),
            false => mark::noted(object, "", PARTITION).and_then(|left| left.parse().ok()).unwrap_or(0),
        };
        let kind = text(object, "/spec/updateStrategy/type");
        now.is_ours(&self.found) && held(object) == left && kind == text(&self.strategy, "/type")
    }
}

fn version(object: &Value) -> Result<Version> {
    Version::try_from(format!("{}/{}", stand(object).version()?, held(object)))
}

/// The partition as the last attempt left it.
const PARTITION: &str = "rollback.rs/partition";

/// The share of so many pods of these, as a look tells it: never nothing and never all.
fn part(pods: i64, of: i64) -> Option<Weight> {
    Weight::try_from(u8::try_from((pods * 100 / of).clamp(1, 99)).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shares_of_a_size_are_those_of_its_pods() {
        let shares =
            |size: i64| -> Vec<u8> { (1..size).filter_map(|it| part(it, size)).map(Weight::percent).collect() };
        assert!(shares(1).is_empty());
        assert_eq!(shares(3), [33, 66]);
        assert_eq!(shares(4), [25, 50, 75]);
        assert_eq!(shares(1000)[..2], [1, 1]);
    }
}
