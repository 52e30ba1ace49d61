//! Two Deployments behind one Service: a canary by the number of its pods.

use std::{collections::BTreeMap, fmt};

use async_trait::async_trait;
use rollback_core::{
    Error, ErrorKind, Result, Wake,
    backend::{Capabilities, DeploymentBackend, Readiness, Weights},
    model::{Attempt, Change, Goal, Note, Observed, Part, Progress, Revision, Serves, Version, Weight},
    plan::Plan,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    Client, Watches,
    access::{self, Access},
    mark::{self, Stand},
    object::{AUTOSCALERS, DEPLOYMENTS, LIMIT_RANGES, RESOURCE_QUOTAS, SERVICES, Write, map, number, text},
    unsealed::Unsealed,
    watch,
    workload::{
        Kind, WRITES,
        convergence::{Convergence, convergence, never, replicas},
        hash, images_of, last_writer, preflight,
    },
};

/// Two Deployments behind one Service as a target: the candidate's share of connections is its share of the pods.
///
/// Which of them is the baseline is read off: the one that has pods. The candidate is deployed into the other one before
/// the rollout, at 0 replicas. Below 100 % the baseline keeps its full size and the candidate's pods come on top, at most
/// as many again: of a size of 4 the shares are 20, 33, 43, 50 and 100 %, and [`capabilities`](DeploymentBackend) says
/// which they are for the current size. At 100 % the candidate is raised to the full size first, and then the baseline's
/// pods go; back from there the baseline is raised first, and the candidate's pods go as it comes up. Those that are not ready
/// go at once; of the others so many stay that together they are three quarters, rounded up (a Deployment's own default for how
/// many may be missing). Up to a size of 3 that is all of them: where pods of the baseline cannot be made, as a quota does it, one
/// fewer is kept, so that the candidate's make room. A ReplicaSet that was refused pods asks again after ever longer pauses (41
/// seconds, and twice that, were observed on 1.20), so that a way back through a full quota may take minutes. That nodes are
/// full no Deployment says: up to that size the way back then waits for room until its deadline.
///
/// **Versions are checked**, of both objects together: uid, replicas, template and nonce. Each shift writes the candidate
/// and then the baseline, each only as it was read before either was written.
///
/// Replicas that a HorizontalPodAutoscaler sets are never written: preflight refuses them, and one that turns up later is
/// drift, before the next write at the latest.
#[derive(Clone, Debug)]
pub struct CanaryPair {
    client: Client,
    namespace: String,
    service: String,
    names: [String; 2],
    size: i64,
    despite_gitops: Option<Note>,
    watches: Option<Watches>,
}

/// A revision, as it is sealed.
#[derive(Clone, Serialize, Deserialize)]
struct Snapshot {
    deployment: String,
    template: String,
    /// The full size, and how both Deployments stood, by name. A candidate has none.
    #[serde(default)]
    size: i64,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    stood: BTreeMap<String, Stand>,
}

/// What comes next on the way to a goal, in replicas of the candidate and of the baseline.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    Reached,
    Wait(String),
    Failed(String),
    Write(i64, i64),
}

impl CanaryPair {
    /// These two Deployments behind this Service; reads how many pods there are, which is the full size from now on.
    ///
    /// # Errors
    /// `NotFound` when one is not there; `Invalid` when a name is none, or neither has any replicas.
    pub async fn new(client: &Client, namespace: &str, service: &str, deployments: [&str; 2]) -> Result<Self> {
        if deployments[0] == deployments[1] {
            return Err(Error::invalid(format!("both Deployments are {}; two are needed", deployments[0])));
        }
        let mut pair = Self {
            client: client.clone(),
            namespace: mark::checked("namespace of the Deployments", namespace)?,
            service: mark::checked("Service", service)?,
            names: [mark::checked("Deployment", deployments[0])?, mark::checked("Deployment", deployments[1])?],
            size: 0,
            despite_gitops: None,
            watches: None,
        };
        for name in &pair.names {
            pair.size = pair.size.max(replicas(&pair.read(name).await?));
        }
        if pair.size == 0 {
            return Err(Error::invalid(format!("{pair} have no replicas: there is nothing to have a share of")));
        }
        Ok(pair)
    }

    /// Goes ahead although Argo CD or Flux owns a Deployment and would undo what is done here: you have seen to that, for
    /// this reason, which the record shows.
    #[must_use]
    pub fn despite_gitops(mut self, reason: impl Into<Note>) -> Self {
        self.despite_gitops = Some(reason.into());
        self
    }

    /// As [`Workload::watched_by`](crate::Workload::watched_by). Autoscalers are looked for before a write and at the end.
    #[must_use]
    pub fn watched_by(mut self, watches: &Watches) -> Self {
        self.watches = Some(watches.clone());
        self
    }

    /// What is deployed into the one that has no pods, by its images and the hash of its template.
    ///
    /// # Errors
    /// `Mixed` when both have pods.
    pub async fn candidate(&self) -> Result<Revision> {
        let (_, idle) = self.sides().await?;
        let template = &idle["spec"]["template"];
        let snapshot = Snapshot {
            deployment: text(&idle, "/metadata/name").into(),
            template: hash(template),
            size: 0,
            stood: BTreeMap::new(),
        };
        Revision::new(called(template))?.with_spec(&snapshot)
    }

    /// What this target takes to be allowed.
    pub fn rights(&self) -> Vec<Access> {
        let mut rights = NEEDED.to_vec();
        if self.watches.is_some() {
            rights.push(Watches::right(DEPLOYMENTS));
        }
        rights
    }

    /// The Role that this target takes, as YAML for `kubectl apply`.
    ///
    /// # Errors
    /// `Invalid` when the name is none.
    pub fn role(&self, name: &str) -> Result<String> {
        access::role(name, &self.namespace, &self.rights())
    }

    async fn read(&self, name: &str) -> Result<Value> {
        self.client.get(DEPLOYMENTS, &self.namespace, name).await
    }

    /// The one that has all pods, and the other.
    async fn sides(&self) -> Result<(Value, Value)> {
        let (one, two) = (self.read(&self.names[0]).await?, self.read(&self.names[1]).await?);
        match (replicas(&one), replicas(&two)) {
            (1.., 0) => Ok((one, two)),
            (0, 1..) => Ok((two, one)),
            (0, 0) => Err(Error::new(ErrorKind::Mixed, format!("{self} have no pods"))),
            _ => Err(Error::new(ErrorKind::Mixed, format!("{self} both have pods"))),
        }
    }

    /// The HorizontalPodAutoscaler that sets replicas of either.
    async fn scaler(&self) -> Result<Option<String>> {
        let names = [self.names[0].as_str(), &self.names[1]];
        let found = preflight::scaler_of(&self.client, &self.namespace, Kind::Deployment, &names).await?;
        Ok(found.map(|(who, of)| format!("HorizontalPodAutoscaler {who} sets the replicas of {of}")))
    }

    async fn put(&self, object: &Value, replicas: i64, nonce: &str, write: Write) -> Result<Value> {
        let mut after = object.clone();
        after["spec"]["replicas"] = json!(replicas);
        let patch = mark::only_as_read(object).put("/spec/replicas", json!(replicas));
        let patch = mark::signed(patch, object, "", nonce, &counts(&after), &[]);
        self.client.patch(DEPLOYMENTS, &self.namespace, text(object, "/metadata/name"), &patch, write).await
    }

    async fn prove(&self, pair: &Both) -> Result<Readiness> {
        let mut ready = Readiness::default();
        if pair.candidate.deployment == pair.baseline.deployment {
            return Ok(
                ready.refused(format!("the candidate is {}, which has the pods already", pair.candidate.deployment))
            );
        }
        if pair.baseline.stood.is_empty() {
            return Ok(ready.refused(mark::not_read_off("has pods of", &pair.baseline.deployment).to_string()));
        }
        if pair.baseline.size != self.size {
            return Ok(ready.refused(format!(
                "{self} have {} pods by now, and {} when this target was made: make it again for the shares of that size",
                pair.baseline.size, self.size
            )));
        }
        let service = match self.client.get(SERVICES, &self.namespace, &self.service).await {
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::Denied) => {
                return Ok(ready.refused(e.chain()));
            }
            service => service?,
        };
        let mut templates = [None, None];
        for (at, (snapshot, most)) in [(&pair.candidate, self.size), (&pair.baseline, 0)].into_iter().enumerate() {
            let name = &snapshot.deployment;
            let object = match self.read(name).await {
                Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::Denied) => {
                    return Ok(ready.refused(e.chain()));
                }
                object => object?,
            };
            for right in NEEDED.iter().filter(|right| right.resource == DEPLOYMENTS.plural) {
                ready = right.prove(&self.client, &self.namespace, Some(name), ready).await?;
            }
            ready = preflight::owner(&object, &format!("Deployment {name}"), self.despite_gitops.as_ref(), ready);
            if hash(&object["spec"]["template"]) != snapshot.template {
                ready =
                    ready.refused(format!("the pod template of {name} has changed since it was read; read it again"));
            }
            templates[at] = Some(object["spec"]["template"].clone());
            if object["spec"]["paused"] == true {
                ready = ready.refused(format!("{name} is paused: resume it (kubectl rollout resume)"));
            }
            let labels = &object["spec"]["template"]["metadata"]["labels"];
            if map(&service, "/spec/selector").count() == 0
                || map(&service, "/spec/selector").any(|(label, value)| labels[label] != *value)
            {
                ready = ready.refused(format!("Service {} does not select the pods of {name}", self.service));
            }
            for count in [most, self.size - most] {
                let answer = self.put(&object, count, "tried out", Write::Dry).await;
                let answer = answer.map(|after| replicas(&after) == count);
                let what = format!("{count} replicas of {name}");
                ready = preflight::Tried { what: &what, of: name, back: false }.told(answer, ready)?;
            }
        }
        if let Some(watches) = &self.watches {
            ready = watches.prove(DEPLOYMENTS, &self.namespace, ready).await?;
        }
        for right in
            NEEDED.iter().filter(|right| [RESOURCE_QUOTAS.plural, LIMIT_RANGES.plural].contains(&right.resource))
        {
            let mut found = right.prove(&self.client, &self.namespace, None, Readiness::default()).await?;
            // What is only looked at is not worth a refusal.
            found.not_provable.append(&mut found.refused);
            ready = ready.and(found);
        }
        if let [Some(candidate), Some(baseline)] = &templates {
            // All of the candidate's on top of what stands there, before the baseline's go.
            let (templates, height) = ([baseline, candidate], (candidate, [0, self.size]));
            ready = preflight::room(&self.client, &self.namespace, Kind::Deployment, templates, height, ready).await?;
        }
        match self.scaler().await {
            Ok(None) => ready = ready.proved("nobody else sets the number of pods"),
            Ok(Some(who)) => {
                ready = ready.refused(format!("{who}, and would set them back: take it away for the rollout"))
            }
            Err(e) if e.kind() == ErrorKind::Denied => ready = ready.refused(e.chain()),
            Err(e) => return Err(e),
        }
        Ok(ready.not_provable("that there is room in the cluster for the new pods, and that they start"))
    }

    fn next(&self, goal: Goal, candidate: &Value, baseline: &Value) -> Result<Next> {
        let size = self.size;
        let to = match goal {
            Goal::Baseline => (0, size),
            Goal::Split(Weight::ALL) | Goal::Candidate => (size, 0),
            Goal::Split(weight) => (pods_for(weight, size).ok_or_else(|| self.unsupported(weight))?, size),
        };
        Ok(towards(goal, size, to, candidate, baseline))
    }

    fn unsupported(&self, weight: Weight) -> Error {
        let text =
            format!("{self} cannot be given {weight}; of {} pods it is {}", self.size, self.capabilities().weights);
        Error::new(ErrorKind::Unsupported, text)
    }
}

/// `Deployments shop/web and shop/web-canary`.
impl fmt::Display for CanaryPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ([one, two], namespace) = (&self.names, &self.namespace);
        write!(f, "Deployments {namespace}/{one} and {namespace}/{two}")
    }
}

type Both = Unsealed<Snapshot>;

#[async_trait]
impl DeploymentBackend for CanaryPair {
    // Below 100 % the baseline stands; at 100 % its pods go, and going back takes as long as they take to come up.
    fn capabilities(&self) -> Capabilities {
        let shares = (1..=self.size).filter_map(|pods| share(pods, self.size));
        let mut shares: Vec<Weight> = shares.chain([Weight::ALL]).collect();
        shares.sort_unstable();
        shares.dedup();
        Capabilities { baseline_stands: false, ..Capabilities::full().weights(Weights::Only(shares.into())) }
    }

    async fn baseline(&self) -> Result<Revision> {
        let (live, idle) = self.sides().await?;
        let template = &live["spec"]["template"];
        let name = |object: &Value| text(object, "/metadata/name").to_owned();
        let snapshot = Snapshot {
            deployment: name(&live),
            template: hash(template),
            size: replicas(&live),
            stood: [&live, &idle].map(|object| (name(object), stand(object))).into(),
        };
        Revision::new(called(template))?.with_spec(&snapshot)
    }

    async fn preflight(&self, change: &Change, _: &Plan) -> Result<Readiness> {
        self.prove(&Both::of(change)?).await
    }

    async fn observe<'a>(&self, change: &Change, goal: Goal, last: Option<&'a Attempt>) -> Result<Observed> {
        let both = Both::of(change)?;
        if let Some(objects) = self.heard(&both, last).await {
            let look = self.look(&both, goal, last, &objects)?;
            if watch::will_do(goal, &look) {
                return Ok(look);
            }
        }
        let mut objects = [Value::Null, Value::Null];
        for (object, side) in objects.iter_mut().zip([&both.candidate, &both.baseline]) {
            *object = match self.read(&side.deployment).await {
                Err(e) if e.kind() == ErrorKind::NotFound => {
                    let why = format!("Deployment {} was deleted", side.deployment);
                    return Ok(Observed::new(Progress::Drifted(why.into()), Version::try_from("gone")?));
                }
                object => object?,
            };
        }
        let look = self.look(&both, goal, last, &objects)?;
        if !matches!(look.progress, Progress::Drifted(_))
            && let Some(who) = self.scaler().await?
        {
            return Ok(Observed { progress: Progress::Drifted(who.into()), ..look });
        }
        Ok(look)
    }

    async fn shift(&self, change: &Change, goal: Goal, attempt: &Attempt) -> Result<()> {
        let both = Both::of(change)?;
        let nonce = attempt.nonce.as_str();
        for _ in 0..WRITES {
            // Both before either is written: what another attempt writes meanwhile is not written over.
            let baseline = self.read(&both.baseline.deployment).await?;
            let candidate = self.read(&both.candidate.deployment).await?;
            let (new, old) = match self.next(goal, &candidate, &baseline)? {
                Next::Write(new, old) => (new, old),
                _ => (replicas(&candidate), replicas(&baseline)),
            };
            if version(&candidate, &baseline)? != attempt.version || self.scaler().await?.is_some() {
                return Err(Error::new(ErrorKind::Conflict, format!("{self} are not any more what was looked at")));
            }
            match self.put(&candidate, new, nonce, Write::Real).await {
                Err(e) if e.kind() == ErrorKind::Conflict => continue,
                Err(e) => return Err(e),
                Ok(_) => {}
            }
            return match self.put(&baseline, old, nonce, Write::Real).await {
                Ok(_) => Ok(()),
                // Half of it has landed, and the next look finds the other half due.
                Err(e) => {
                    let text =
                        format!("{} is written, and {} is not", both.candidate.deployment, both.baseline.deployment);
                    Err(Error::new(ErrorKind::Unavailable, text).because(e))
                }
            };
        }
        Err(Error::new(ErrorKind::Conflict, format!("{self} change faster than they can be written")))
    }

    fn attach(&self, wake: Wake) {
        if let Some(watches) = &self.watches {
            let namespace = watches.namespace(&self.namespace);
            self.names.iter().for_each(|name| namespace.wake_on(DEPLOYMENTS, name, wake.clone()));
        }
    }
}

impl CanaryPair {
    /// The candidate's Deployment and the baseline's as they are watched, once both show this attempt.
    async fn heard(&self, both: &Both, last: Option<&Attempt>) -> Option<[Value; 2]> {
        let watches = self.watches.as_ref()?;
        let heard =
            async |side: &Snapshot| watches.heard(DEPLOYMENTS, &self.namespace, &side.deployment, "", last?).await;
        Some([heard(&both.candidate).await?, heard(&both.baseline).await?])
    }

    /// What the candidate's Deployment and the baseline's, as they were read or heard of, say of the way to this goal.
    fn look(
        &self,
        both: &Both,
        goal: Goal,
        last: Option<&Attempt>,
        [candidate, baseline]: &[Value; 2],
    ) -> Result<Observed> {
        let version = version(candidate, baseline)?;
        let nonces = [stand(candidate).nonce, stand(baseline).nonce];
        let landed = last.is_some_and(|last| nonces[0].as_deref() == Some(last.nonce.as_str()));
        let look = |progress| Observed::new(progress, version.clone()).landed(landed);
        for object in [candidate, baseline] {
            let (name, now) = (text(object, "/metadata/name"), stand(object));
            let what = match both.baseline.stood.get(name) {
                Some(stood) if stood.uid != now.uid => format!("Deployment {name} was deleted and made again"),
                Some(stood) if now.is_ours(stood) => continue,
                _ => format!(
                    "Deployment {name} has {} replicas of {}",
                    replicas(object),
                    images_of(&object["spec"]["template"])
                ),
            };
            let who = last_writer(object).map_or_else(String::new, |who| format!("; last written by {who}"));
            return Ok(look(Progress::Drifted(format!("{what}{who}").into())));
        }
        let up = |object: &Value| number(object, "/status/availableReplicas").max(0);
        let (new, old) = (up(candidate), up(baseline));
        let progress = match self.next(goal, candidate, baseline)? {
            Next::Write(new, old) => {
                let (candidate, baseline) = (&both.candidate.deployment, &both.baseline.deployment);
                Progress::Due(format!("scale {candidate} to {new} and {baseline} to {old}").into())
            }
            // The second half of a write was lost, or may be on its way.
            _ if nonces[0] != nonces[1] && nonces[0] != both.nonce_of(&both.candidate) => {
                Progress::Due(format!("mark {} as {}", both.baseline.deployment, both.candidate.deployment).into())
            }
            Next::Reached => Progress::Reached,
            Next::Wait(why) => Progress::Underway(why.into()),
            Next::Failed(why) => Progress::Failed(why.into()),
        };
        let part =
            |name: &str, pods: i64, serves: Serves| Part::new(name, if pods > 0 { serves } else { Serves::Nothing });
        let mut seen = look(progress).parts(vec![
            part(&both.candidate.deployment, new, Serves::Candidate),
            part(&both.baseline.deployment, old, Serves::Baseline),
        ]);
        seen.weight = match (new, old) {
            (0, 0) => None,
            (0, _) => Some(Weight::NONE),
            (_, 0) => Some(Weight::ALL),
            (new, old) => share(new, old),
        };
        Ok(seen)
    }
}

impl Both {
    fn of(change: &Change) -> Result<Self> {
        Self::open(change, "names no Deployment; make it with CanaryPair::candidate")
    }

    /// The nonce that a Deployment had when the baseline was recorded.
    fn nonce_of(&self, side: &Snapshot) -> Option<String> {
        self.baseline.stood.get(&side.deployment).and_then(|stood| stood.nonce.clone())
    }
}

/// What comes next towards so many pods of the candidate and of the baseline.
fn towards(goal: Goal, size: i64, (few, many): (i64, i64), candidate: &Value, baseline: &Value) -> Next {
    let (now, then) = (replicas(candidate), replicas(baseline));
    // What is to be raised is raised before anything else goes.
    if now < few || then < many {
        return Next::Write(now.max(few), then.max(many));
    }
    let stands = [(candidate, few, "candidate"), (baseline, many, "baseline")].map(|(object, wanted, what)| {
        match convergence(Kind::Deployment, object) {
            _ if wanted == 0 => Ok(()),
            Convergence::Done => Ok(()),
            // A shortage, most likely, which ends when the candidate's pods go. The way back has a deadline of its own.
            Convergence::Failed(why) if goal == Goal::Baseline && never(Kind::Deployment, object).is_none() => {
                Err(Next::Wait(format!("the {what}: {why}")))
            }
            Convergence::Working(why) => Err(Next::Wait(format!("the {what}: {why}"))),
            Convergence::Failed(why) => Err(Next::Failed(format!("the {what}: {why}"))),
        }
    });
    if (now, then) != (few, many) {
        return match goal {
            Goal::Baseline => match beside(size, candidate, baseline) {
                kept if kept < now => Next::Write(kept, many),
                _ => {
                    let up = number(baseline, "/status/availableReplicas");
                    let why = shortage(baseline).map_or_else(String::new, |why| format!(": {why}"));
                    Next::Wait(format!("{up} of {size} pods of the baseline are available{why}"))
                }
            },
            Goal::Split(_) | Goal::Candidate => match stands.into_iter().find_map(Result::err) {
                Some(not_yet) => not_yet,
                None => Next::Write(few, many),
            },
        };
    }
    if let Some(not_yet) = stands.into_iter().find_map(Result::err) {
        return not_yet;
    }
    for (object, wanted) in [(candidate, few), (baseline, many)] {
        let left = number(object, "/status/replicas");
        let seen = number(object, "/metadata/generation") <= number(object, "/status/observedGeneration");
        if wanted == 0 && (left > 0 || !seen) {
            return Next::Wait(format!("pods of {} are still there", text(object, "/metadata/name")));
        }
    }
    Next::Reached
}

/// How many of the candidate's pods stay on the way back. As the baseline's come up they go, for they may hold the room that
/// those wait for.
fn beside(size: i64, candidate: &Value, baseline: &Value) -> i64 {
    let three_quarters = (size * 3 + 3) / 4;
    let least = if shortage(baseline).is_some() { three_quarters.min(size - 1) } else { three_quarters };
    // What is not ready serves nobody, and is what its controller takes away first.
    let ready = number(candidate, "/status/readyReplicas");
    (least - number(baseline, "/status/availableReplicas")).min(ready).max(0)
}

/// Why pods of it do not come, as far as its controller says so: a quota, mostly.
fn shortage(object: &Value) -> Option<String> {
    match convergence(Kind::Deployment, object) {
        Convergence::Failed(why) if never(Kind::Deployment, object).is_none() => Some(why),
        _ => None,
    }
}

/// Not by its images alone: what condemns a bad environment must not condemn the same images with a good one.
fn called(template: &Value) -> String {
    format!("{} #{}", images_of(template), &hash(template)[..8])
}

fn counts(object: &Value) -> Value {
    json!([replicas(object), hash(&object["spec"]["template"])])
}

fn stand(object: &Value) -> Stand {
    Stand::of(object, "", &counts(object))
}

fn version(candidate: &Value, baseline: &Value) -> Result<Version> {
    let (one, two) = (stand(candidate).version()?, stand(baseline).version()?);
    Version::try_from(hash(&json!([one.as_str(), two.as_str()])))
}

/// What it takes to be allowed, however it looks.
const NEEDED: &[Access] = &[
    Access::to(DEPLOYMENTS, &["get"], "see both Deployments"),
    Access::to(DEPLOYMENTS, &["patch"], "set how many pods they have, and set it back"),
    Access::to(AUTOSCALERS, &["list"], "see who else sets the number of pods"),
    Access::to(SERVICES, &["get"], "see whether the Service selects the pods of both"),
    Access::to(RESOURCE_QUOTAS, &["list"], "see whether quotas leave room for the new pods"),
    Access::to(LIMIT_RANGES, &["list"], "see whether limits let the new pods in"),
];

/// The share of so many pods beside these, to the nearest percent, but never nothing and never all.
fn share(pods: i64, beside: i64) -> Option<Weight> {
    let percent = (pods * 200 + pods + beside) / (2 * (pods + beside));
    Weight::try_from(u8::try_from(percent.clamp(1, 99)).ok()?).ok()
}

/// The fewest pods that have this share beside a baseline of this size.
fn pods_for(weight: Weight, size: i64) -> Option<i64> {
    (1..=size).find(|pods| share(*pods, size) == Some(weight))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shares_of_a_size_are_those_of_whole_pods_on_top() {
        let shares =
            |size: i64| -> Vec<u8> { (1..=size).filter_map(|pods| share(pods, size)).map(Weight::percent).collect() };
        assert_eq!(shares(1), [50]);
        assert_eq!(shares(4), [20, 33, 43, 50]);
        assert_eq!(pods_for(Weight::try_from(43).unwrap(), 4), Some(3));
        assert_eq!(pods_for(Weight::try_from(44).unwrap(), 4), None);
        assert_eq!(shares(1000)[0], 1);
    }

    fn side(replicas: i64, up: i64, short: bool) -> Value {
        json!({ "metadata": { "name": "web", "generation": 2 }, "spec": { "replicas": replicas },
            "status": { "observedGeneration": 2, "replicas": up, "updatedReplicas": up, "readyReplicas": up,
                "availableReplicas": up,
                "conditions": [{ "type": "ReplicaFailure", "status": if short { "True" } else { "False" } }] } })
    }

    /// A quota of 7 and a baseline of 4: the candidate's pods make room, and are not taken away at once.
    #[test]
    fn on_the_way_back_a_shortage_is_waited_out_and_the_candidate_makes_room() {
        let back = |candidate: i64, up: i64, short: bool| {
            towards(Goal::Baseline, 4, (0, 4), &side(candidate, candidate, false), &side(4, up, short))
        };
        // Before the baseline is raised nothing goes.
        let start = towards(Goal::Baseline, 4, (0, 4), &side(4, 4, false), &side(0, 0, false));
        assert_eq!(start, Next::Write(4, 4));
        assert_eq!(back(4, 0, true), Next::Write(3, 4));
        assert!(matches!(back(3, 0, true), Next::Wait(_)));
        assert_eq!(back(3, 1, true), Next::Write(2, 4));
        assert_eq!(back(2, 3, true), Next::Write(0, 4));
        assert!(matches!(back(0, 3, true), Next::Wait(_)), "{:?}", back(0, 3, true));
        assert_eq!(back(0, 4, false), Next::Reached);
        // Forward a shortage is the candidate's failure.
        let forward = towards(Goal::Candidate, 4, (4, 0), &side(4, 3, true), &side(4, 4, false));
        assert!(matches!(forward, Next::Failed(_)), "{forward:?}");
    }

    #[test]
    fn on_the_way_back_pods_that_are_not_ready_hold_nothing_up() {
        // Of so many: of the candidate ready, of the baseline available, of the baseline missing, of the candidate to stay.
        let table = [
            (1, 0, 0, false, 0),
            (2, 0, 0, false, 0),
            (2, 1, 0, false, 1),
            (3, 1, 0, false, 1),
            (3, 2, 2, false, 1),
            (4, 0, 0, false, 0),
            (4, 0, 0, true, 0),
            (4, 2, 0, false, 2),
            (4, 2, 2, false, 1),
            (8, 3, 0, true, 3),
        ];
        for (size, ready, up, short, stay) in table {
            let candidate = side(size, ready, false);
            let next = towards(Goal::Baseline, size, (0, size), &candidate, &side(size, up, short));
            assert_eq!(next, Next::Write(stay, size), "{size} {ready} {up} {short}");
        }
    }

    /// All room is taken, whatever the size is: by the candidate's pods, and by somebody else.
    #[test]
    fn a_quota_that_leaves_no_room_beside_the_candidate_does_not_keep_the_baseline_from_coming_back() {
        for size in 1..=12 {
            let (mut pods, mut raised, mut up, mut least) = (size, 0, 0, size);
            for look in 0.. {
                assert!(look < 100, "{size}: {pods} pods of the candidate are still there");
                let baseline = side(raised, up, up < raised);
                match towards(Goal::Baseline, size, (0, size), &side(pods, pods, false), &baseline) {
                    Next::Write(new, old) => (pods, raised) = (new, old),
                    Next::Reached => break,
                    Next::Wait(_) => up = raised.min(size - pods),
                    next @ Next::Failed(_) => panic!("{size}: {next:?}"),
                }
                least = least.min(pods + up);
            }
            assert_eq!(least, ((size * 3 + 3) / 4).min(size - 1), "of {size}");
        }
    }

    #[test]
    fn without_a_shortage_all_of_a_few_pods_are_kept_until_others_are_up() {
        for size in 1..=3 {
            let next =
                |up: i64| towards(Goal::Baseline, size, (0, size), &side(size, size, false), &side(size, up, false));
            assert!(matches!(next(0), Next::Wait(_)), "{size}: {:?}", next(0));
            assert_eq!(next(1), Next::Write(size - 1, size));
        }
    }
}
