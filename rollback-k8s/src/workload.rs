//! A Deployment, StatefulSet or DaemonSet that its own controller rolls.

mod canary;
mod configs;
pub(crate) mod convergence;
pub(crate) mod preflight;

use std::{collections::BTreeMap, fmt::Write as _};

use async_trait::async_trait;
use rollback_core::{
    Error, ErrorKind, Result,
    backend::{Capabilities, DeploymentBackend, Readiness, Weights},
    model::{Attempt, Change, Goal, Note, Observed, Part, Progress, Revision, Serves, Version, Weight},
    plan::Plan,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

pub use self::canary::StatefulSetCanary;
use self::{
    configs::Config,
    convergence::{Convergence, convergence, pods},
};
use crate::{
    Client,
    access::{self, Access},
    object::{
        CONFIG_MAPS, DAEMON_SETS, DEPLOYMENTS, PODS, Patch, Resource, SECRETS, STATEFUL_SETS, Write, escaped, text,
    },
};

/// A workload as a target: its whole pod template is the revision, and its own controller replaces the pods.
///
/// The controller sets the pace, so a plan can only ask for 100 %. Going back puts the recorded template there again, in
/// one conditional write; nothing is looked up in the history that `kubectl rollout undo` uses, in which the second newest
/// is not the last good one.
///
/// **Versions are checked.** The version is the object's uid, the hash of its template and the nonce of the last attempt,
/// which is an annotation of the object (not of the pods). A write holds only for the object as it was read for it, so a
/// late call, a second driver and somebody's `kubectl edit` are told from our own.
///
/// **Not brought back**: what ConfigMaps and Secrets hold. Preflight names them, and a rollback whose ConfigMaps or
/// Secrets have changed says so.
#[derive(Clone, Debug)]
pub struct Workload {
    client: Client,
    kind: Kind,
    namespace: String,
    name: String,
    despite_gitops: Option<Note>,
    deletes_stuck_pods: bool,
}

/// What kind of workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// A Deployment.
    Deployment,
    /// A StatefulSet with rolling updates.
    StatefulSet,
    /// A DaemonSet with rolling updates.
    DaemonSet,
}

impl Kind {
    pub(crate) const fn resource(self) -> Resource {
        match self {
            Self::Deployment => DEPLOYMENTS,
            Self::StatefulSet => STATEFUL_SETS,
            Self::DaemonSet => DAEMON_SETS,
        }
    }
}

/// A revision, as it is sealed.
#[derive(Clone, Serialize, Deserialize)]
struct Snapshot {
    /// Of the object that it was read from, or made for.
    uid: String,
    template: Value,
    /// What `kubectl apply` compares with, as it stood.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    last_applied: Option<String>,
    /// What the template takes its configuration from, as it was then.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    configs: Vec<Config>,
    /// The hash of the template that a candidate was made from, where it was made from one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    made_from: Option<String>,
}

impl Workload {
    /// The Deployment of this name.
    ///
    /// # Errors
    /// `Invalid` when the namespace or the name is none.
    pub fn deployment(client: &Client, namespace: &str, name: &str) -> Result<Self> {
        Self::new(client, Kind::Deployment, namespace, name)
    }

    /// The StatefulSet of this name.
    ///
    /// # Errors
    /// As [`Self::deployment`].
    pub fn stateful_set(client: &Client, namespace: &str, name: &str) -> Result<Self> {
        Self::new(client, Kind::StatefulSet, namespace, name)
    }

    /// The DaemonSet of this name.
    ///
    /// # Errors
    /// As [`Self::deployment`].
    pub fn daemon_set(client: &Client, namespace: &str, name: &str) -> Result<Self> {
        Self::new(client, Kind::DaemonSet, namespace, name)
    }

    /// The workload of this kind and name.
    ///
    /// # Errors
    /// As [`Self::deployment`].
    pub fn new(client: &Client, kind: Kind, namespace: &str, name: &str) -> Result<Self> {
        for (what, name, most) in [("namespace", namespace, 63), ("name", name, 253)] {
            let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
            if name.is_empty() || name.len() > most || !name.chars().all(plain) {
                return Err(Error::invalid(format!(
                    "the {what} of the {} is {name:?}; 1 to {most} of a-z, 0-9, - and . are accepted",
                    kind.resource().kind
                )));
            }
        }
        let (namespace, name) = (namespace.to_owned(), name.to_owned());
        Ok(Self { client: client.clone(), kind, namespace, name, despite_gitops: None, deletes_stuck_pods: false })
    }

    /// Goes ahead although Argo CD or Flux owns the object and would undo what is done here: you have seen to that, for
    /// this reason, which the record shows.
    #[must_use]
    pub fn despite_gitops(mut self, reason: impl Into<Note>) -> Self {
        self.despite_gitops = Some(reason.into());
        self
    }

    /// May delete, after going back, the one pod of an ordered StatefulSet that never became ready: its controller waits
    /// for that pod for ever, whatever the template says by then (kubernetes/kubernetes#67250).
    #[must_use]
    pub const fn delete_stuck_pods(mut self) -> Self {
        self.deletes_stuck_pods = true;
        self
    }

    /// The workload as it is, with these images instead, by the names of its containers; init containers count too.
    ///
    /// # Errors
    /// `NotFound` when the workload is not there; `Invalid`, naming the containers, when it has none of such a name.
    pub async fn images<N: AsRef<str>, I: Into<String>>(
        &self,
        images: impl IntoIterator<Item = (N, I)> + Send,
    ) -> Result<Revision> {
        let images: BTreeMap<String, String> =
            images.into_iter().map(|(name, image)| (name.as_ref().to_owned(), image.into())).collect();
        let object = self.read().await?;
        let before = template(&object);
        let mut template = before.clone();
        for (name, image) in &images {
            if image.is_empty() || image.chars().any(char::is_whitespace) {
                return Err(Error::invalid(format!("the image of container {name} is {image:?}, which is none")));
            }
            let Some(container) = containers_mut(&mut template).find(|container| container["name"] == *name) else {
                let names: Vec<&str> = containers(before).map(|container| text(container, "/name")).collect();
                return Err(Error::invalid(format!("{self} has no container {name}; it has {}", names.join(", "))));
            };
            container["image"] = json!(image);
        }
        let made_from = Some(hash(before));
        let configs = configs::of(&template).into_iter().collect();
        self.revision(None, &object, template, configs, made_from)
    }

    /// The workload with this whole pod template. The API server fills in what it leaves open, and says already now what
    /// it would not accept.
    ///
    /// # Errors
    /// `NotFound` when the workload is not there; `Invalid` when the API server, or an admission webhook, refuses the
    /// template.
    pub async fn template(&self, id: &str, template: &Value) -> Result<Revision> {
        let object = self.read().await?;
        let patch = Patch::new().put("/spec/template", template.clone());
        let tried = self.write(&patch, Write::Dry).await?;
        let template = self::template(&tried).clone();
        let configs = configs::of(&template).into_iter().collect();
        self.revision(Some(id), &object, template, configs, None)
    }

    /// What this target takes to be allowed.
    pub fn rights(&self) -> Vec<Access> {
        let resource = self.kind.resource();
        let mut rights = vec![
            Access::to(resource, &["get"], "see the workload"),
            Access::to(resource, &["patch"], "put a template there, and the recorded one again"),
            Access::to(CONFIG_MAPS, &["get"], "see what the pods are configured by"),
            Access::to(SECRETS, &["get"], "see whether the Secrets that pods name are there"),
        ];
        if self.kind == Kind::Deployment {
            rights.push(Access::to(crate::object::AUTOSCALERS, &["list"], "see who else sets the number of pods"));
        }
        if self.deletes_stuck_pods {
            rights.push(Access::to(PODS, &["list", "delete"], "delete a pod that holds up the way back"));
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

    async fn read(&self) -> Result<Value> {
        self.client.get(self.kind.resource(), &self.namespace, &self.name).await
    }

    async fn write(&self, patch: &Patch, write: Write) -> Result<Value> {
        self.client.patch(self.kind.resource(), &self.namespace, &self.name, patch, write).await
    }

    fn revision(
        &self,
        id: Option<&str>,
        object: &Value,
        template: Value,
        configs: Vec<Config>,
        made_from: Option<String>,
    ) -> Result<Revision> {
        // Not the images alone: what condemns a bad environment must not condemn the same images with a good one.
        let id = id.map_or_else(|| format!("{} #{}", images_of(&template), &hash(&template)[..8]), str::to_owned);
        let snapshot = Snapshot {
            uid: text(object, "/metadata/uid").into(),
            last_applied: annotation(object, LAST_APPLIED).map(str::to_owned),
            template,
            configs,
            made_from,
        };
        Revision::new(id)?.with_spec(&snapshot)
    }

    /// The patch that takes the object, as it was read, to this template under this mark.
    fn patch(&self, object: &Value, to: &Snapshot, id: &str, nonce: &str, back: bool) -> Patch {
        let same = |path: &str| object.pointer(path).cloned().unwrap_or_default();
        let mut patch = Patch::new()
            .test("/metadata/uid", &same("/metadata/uid"))
            .test("/metadata/resourceVersion", &same("/metadata/resourceVersion"));
        if *template(object) != to.template {
            patch = patch.put("/spec/template", to.template.clone());
        }
        let mut marks = vec![(ATTEMPT, nonce.to_owned()), (REVISION, id.to_owned()), (TEMPLATE, hash(&to.template))];
        if let (true, Some(applied)) = (back, &to.last_applied) {
            marks.push((LAST_APPLIED, applied.clone()));
        }
        if object.pointer("/metadata/annotations").is_some_and(Value::is_object) {
            for (name, value) in marks {
                patch = patch.put(&format!("/metadata/annotations/{}", escaped(name)), json!(value));
            }
            patch
        } else {
            patch.put("/metadata/annotations", marks.into_iter().collect::<BTreeMap<_, _>>().into_iter().collect())
        }
    }

    /// The pod that an ordered StatefulSet waits for although it is of another template, if there is one.
    async fn stuck_pod(&self, object: &Value) -> Result<Option<Value>> {
        let parallel = text(object, "/spec/podManagementPolicy") == "Parallel";
        if !self.deletes_stuck_pods || self.kind != Kind::StatefulSet || parallel {
            return Ok(None);
        }
        if !convergence::is_seen(object) {
            // Which revision is the newest is told for the template before.
            return Ok(None);
        }
        let newest = text(object, "/status/updateRevision");
        let labels = crate::object::selector(&object["spec"]["selector"]);
        let mut pods = self.client.list(PODS, &self.namespace, &labels).await?;
        pods.retain(|pod| pod.pointer("/metadata/ownerReferences/0/uid") == object.pointer("/metadata/uid"));
        // By number: the controller replaces one at a time, and waits for this one.
        pods.sort_by_key(|pod| text(pod, "/metadata/name").rsplit('-').next().and_then(|n| n.parse::<u64>().ok()));
        let stuck = pods.into_iter().find(|pod| !is_ready(pod));
        Ok(stuck.filter(|pod| {
            pod.pointer("/metadata/deletionTimestamp").is_none()
                && text(pod, "/metadata/labels/controller-revision-hash") != newest
        }))
    }

    fn drifted(&self, object: &Value, what: &str) -> Progress {
        let who = last_writer(object).map_or_else(String::new, |who| format!("; last written by {who}"));
        Progress::Drifted(format!("{what}{who}").into())
    }
}

/// `Deployment shop/web`.
impl std::fmt::Display for Workload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}/{}", self.kind.resource().kind, self.namespace, self.name)
    }
}

/// Both revisions of a change, unsealed.
struct Pair {
    baseline: Snapshot,
    candidate: Snapshot,
}

impl Pair {
    fn of(change: &Change) -> Result<Self> {
        let open = |what: &str, revision: &Revision| {
            revision.spec.open::<Snapshot>().map_err(|e| {
                e.during(format!(
                    "the {what} {} holds no pod template; make it with Workload::images or Workload::template",
                    revision.id
                ))
            })
        };
        Ok(Self { baseline: open("baseline", &change.baseline)?, candidate: open("candidate", &change.candidate)? })
    }

    const fn wanted(&self, goal: Goal) -> &Snapshot {
        match goal {
            Goal::Baseline => &self.baseline,
            Goal::Split(_) | Goal::Candidate => &self.candidate,
        }
    }
}

#[async_trait]
impl DeploymentBackend for Workload {
    // The template is patched against a version; its controller replaces the pods at its own pace and takes the old ones
    // away, so going back takes as long as going forward, and half way there is nothing to hold.
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            weights: Weights::ProvidersPace,
            baseline_stands: false,
            can_hold: false,
            ..Capabilities::full()
        }
    }

    async fn baseline(&self) -> Result<Revision> {
        let object = self.read().await?;
        // What would never converge is preflight's business; here it counts whether pods of two templates are there.
        if let Convergence::Working(why) | Convergence::Failed(why) = convergence(self.kind, &object)
            && convergence::never(self.kind, &object).is_none()
        {
            return Err(Error::new(ErrorKind::Mixed, format!("{self} serves more than one template: {why}")));
        }
        let template = template(&object);
        let marked = annotation(&object, REVISION).filter(|_| annotation(&object, TEMPLATE) == Some(&hash(template)));
        let mut configs = Vec::new();
        for config in configs::of(template) {
            configs.push(config.read(&self.client, &self.namespace).await?);
        }
        self.revision(marked, &object, template.clone(), configs, None)
    }

    async fn preflight(&self, change: &Change, _: &Plan) -> Result<Readiness> {
        self.prove(change, &Pair::of(change)?).await
    }

    async fn observe<'a>(&self, change: &Change, goal: Goal, last: Option<&'a Attempt>) -> Result<Observed> {
        let pair = Pair::of(change)?;
        let object = match self.read().await {
            Err(e) if e.kind() == ErrorKind::NotFound => {
                let version = Version::try_from("gone")?;
                let why = format!("{self} was deleted");
                return Ok(Observed::new(Progress::Drifted(why.into()), version));
            }
            object => object?,
        };
        let version = version(&object)?;
        let landed = last.is_some_and(|last| annotation(&object, ATTEMPT) == Some(last.nonce.as_str()));
        let live = template(&object);
        if text(&object, "/metadata/uid") != pair.baseline.uid {
            let progress = self.drifted(&object, &format!("{self} was deleted and made again"));
            return Ok(Observed::new(progress, version).landed(landed));
        }
        let wanted = pair.wanted(goal);
        let serves = if *live == pair.candidate.template {
            Serves::Candidate
        } else if *live == pair.baseline.template {
            Serves::Baseline
        } else {
            let progress = self.drifted(&object, &format!("{self} has another pod template: {}", images_of(live)));
            return Ok(Observed::new(progress, version).landed(landed));
        };
        let look = Observed::new(Progress::Reached, version).landed(landed);
        if *live != wanted.template {
            let what =
                if goal == Goal::Baseline { "put the recorded template back" } else { "put the new template there" };
            let seen = share(self.kind, &object, serves, convergence(self.kind, &object) == Convergence::Done);
            return Ok(Observed { progress: Progress::Due(what.into()), ..self.with_share(look, seen) });
        }
        let stands = convergence(self.kind, &object);
        let seen = share(self.kind, &object, serves, stands == Convergence::Done);
        let progress = match stands {
            Convergence::Done if goal.is_forward() && convergence::wanted(self.kind, &object) == 0 => {
                Progress::Underway("it has no pods by now: nothing shows whether the candidate works".into())
            }
            Convergence::Done => Progress::Reached,
            // The controller's first status after the way back still has what it said of the candidate: a deadline that
            // passed, pods that could not be made (observed on 1.20). The rollback has a deadline of its own.
            Convergence::Failed(why) if goal == Goal::Baseline && convergence::never(self.kind, &object).is_none() => {
                Progress::Underway(why.into())
            }
            Convergence::Failed(why) => Progress::Failed(why.into()),
            Convergence::Working(why) => match self.stuck_pod(&object).await? {
                Some(pod) if goal == Goal::Baseline => {
                    Progress::Due(format!("delete pod {}", text(&pod, "/metadata/name")).into())
                }
                _ => Progress::Underway(why.into()),
            },
        };
        let mut look = Observed { progress, ..self.with_share(look, seen) };
        if goal == Goal::Baseline && look.progress == Progress::Reached {
            look.not_restored = self.changed_configs(&pair.baseline).await?;
        }
        Ok(look)
    }

    async fn shift(&self, change: &Change, goal: Goal, attempt: &Attempt) -> Result<()> {
        if let Goal::Split(weight) = goal
            && weight != Weight::ALL
        {
            let why = format!(
                "{self} cannot be given {weight}: its controller sets the pace, and only 100 % can be asked for"
            );
            return Err(Error::new(ErrorKind::Unsupported, why));
        }
        let pair = Pair::of(change)?;
        let to = pair.wanted(goal);
        let id = if goal == Goal::Baseline { &change.baseline.id } else { &change.candidate.id };
        // The controller writes the status while pods come and go, and every write changes what ours is tested against;
        // what counts is that it is still the version that was looked at.
        for _ in 0..WRITES {
            let object = self.read().await?;
            if version(&object)? != attempt.version || text(&object, "/metadata/uid") != pair.baseline.uid {
                return Err(Error::new(ErrorKind::Conflict, format!("{self} is not any more what was looked at")));
            }
            let stuck = match goal == Goal::Baseline && *template(&object) == to.template {
                true => self.stuck_pod(&object).await?,
                false => None,
            };
            let patch = self.patch(&object, to, id.as_str(), attempt.nonce.as_str(), goal == Goal::Baseline);
            match self.write(&patch, Write::Real).await {
                Err(e) if e.kind() == ErrorKind::Conflict => {}
                Err(e) => return Err(e),
                Ok(_) => {
                    if let Some(pod) = stuck {
                        let (name, uid) = (text(&pod, "/metadata/name"), text(&pod, "/metadata/uid"));
                        self.client.delete(PODS, &self.namespace, name, uid).await?;
                    }
                    return Ok(());
                }
            }
        }
        Err(Error::new(ErrorKind::Conflict, format!("{self} changes faster than it can be written")))
    }
}

impl Workload {
    fn with_share(&self, mut look: Observed, share: Option<Weight>) -> Observed {
        let serves = match share.map(Weight::percent) {
            Some(0) => Serves::Baseline,
            Some(100) => Serves::Candidate,
            Some(_) => Serves::Both,
            None => Serves::Nothing,
        };
        look.weight = share;
        look.parts(vec![Part::new(&self.name, serves)])
    }

    /// What the configuration was when the baseline was recorded, and is not now.
    async fn changed_configs(&self, baseline: &Snapshot) -> Result<Vec<Note>> {
        let mut notes = Vec::new();
        for config in &baseline.configs {
            let now = config.read(&self.client, &self.namespace).await?;
            if now != *config {
                notes.push(Note::new(format!(
                    "{config} has changed since the baseline was recorded; it is as it is now"
                )));
            }
        }
        Ok(notes)
    }
}

/// The candidate's share of the pods. One pod is never rounded to nothing, nor all but one to all.
fn share(kind: Kind, object: &Value, serves: Serves, done: bool) -> Option<Weight> {
    let (new, all) = pods(kind, object);
    let candidate = if serves == Serves::Candidate { new } else { all - new };
    let percent = match (done, serves) {
        (true, Serves::Candidate) => 100,
        (true, _) => 0,
        (false, _) if all <= 0 => return None,
        (false, _) => (candidate * 100 / all).clamp(i64::from(candidate > 0), if candidate < all { 99 } else { 100 }),
    };
    // What is not done is not all: pods of the other template may still be there, uncounted.
    let percent = if done { percent } else { percent.clamp(1, 99) };
    Weight::try_from(u8::try_from(percent).ok()?).ok()
}

fn version(object: &Value) -> Result<Version> {
    let nonce = annotation(object, ATTEMPT).unwrap_or("-");
    Version::try_from(format!("{}/{}/{nonce}", text(object, "/metadata/uid"), hash(template(object))))
}

fn template(object: &Value) -> &Value {
    &object["spec"]["template"]
}

pub(crate) fn annotation<'a>(object: &'a Value, name: &str) -> Option<&'a str> {
    object.pointer("/metadata/annotations")?.get(name)?.as_str()
}

fn containers(template: &Value) -> impl Iterator<Item = &Value> {
    let of = |name: &str| template.pointer(&format!("/spec/{name}")).and_then(Value::as_array);
    of("initContainers").into_iter().chain(of("containers")).flatten()
}

fn containers_mut(template: &mut Value) -> impl Iterator<Item = &mut Value> {
    let spec = template.get_mut("spec").and_then(Value::as_object_mut);
    let lists = spec.into_iter().flat_map(|spec| {
        spec.iter_mut()
            .filter(|(name, _)| ["initContainers", "containers"].contains(&name.as_str()))
            .map(|(_, list)| list)
    });
    lists.filter_map(Value::as_array_mut).flatten()
}

/// `web=shop:2, log=fluent:1`: what people call a revision of a workload. By its hash where that is too long.
pub(crate) fn images_of(template: &Value) -> String {
    let mut id = String::new();
    for container in containers(template) {
        let gap = if id.is_empty() { "" } else { ", " };
        write!(id, "{gap}{}={}", text(container, "/name"), text(container, "/image")).expect("a string takes any text");
    }
    if id.is_empty() || id.len() > 200 { format!("template {}", hash(template)) } else { id }
}

pub(crate) fn is_ready(pod: &Value) -> bool {
    let conditions = pod.pointer("/status/conditions").and_then(Value::as_array);
    conditions.into_iter().flatten().any(|it| text(it, "/type") == "Ready" && text(it, "/status") == "True")
}

/// Who wrote the object last, of those who are not its controller.
pub(crate) fn last_writer(object: &Value) -> Option<&str> {
    let entries = object.pointer("/metadata/managedFields")?.as_array()?;
    let entries = entries
        .iter()
        .filter(|it| text(it, "/manager") != "kube-controller-manager" && text(it, "/subresource").is_empty());
    entries.max_by_key(|it| text(it, "/time")).map(|it| text(it, "/manager"))
}

/// The same for equal JSON, in whatever order its members come.
pub(crate) fn hash(value: &Value) -> String {
    fn feed(value: &Value, hash: &mut Sha256) {
        match value {
            Value::Object(members) => {
                let mut members: Vec<_> = members.iter().collect();
                members.sort_unstable_by_key(|(name, _)| *name);
                hash.update(b"{");
                for (name, value) in members {
                    hash.update(json!(name).to_string());
                    hash.update(b":");
                    feed(value, hash);
                }
                hash.update(b"}");
            }
            Value::Array(items) => {
                hash.update(b"[");
                for item in items {
                    feed(item, hash);
                    hash.update(b",");
                }
                hash.update(b"]");
            }
            plain => hash.update(plain.to_string()),
        }
    }
    let mut sum = Sha256::new();
    feed(value, &mut sum);
    sum.finalize().iter().take(12).fold(String::new(), |mut hex, byte| {
        write!(hex, "{byte:02x}").expect("a string takes any text");
        hex
    })
}

/// How often a write is tried against a status that keeps changing.
pub(crate) const WRITES: usize = 5;

/// The nonce of the last attempt.
pub(crate) const ATTEMPT: &str = "rollback.rs/attempt";
/// What the template was called when it was put there, and its hash, without which the name means nothing.
const REVISION: &str = "rollback.rs/revision";
const TEMPLATE: &str = "rollback.rs/template";
/// What `kubectl apply` compares with.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
