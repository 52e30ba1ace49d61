//! A Deployment, StatefulSet or DaemonSet that its own controller rolls.

mod canary;
mod configs;
pub(crate) mod convergence;
mod copies;
pub(crate) mod preflight;
mod room;

use std::{collections::BTreeMap, fmt::Write as _};

use async_trait::async_trait;
use rollback_core::{
    Error, ErrorKind, Result, Wake,
    backend::{Capabilities, DeploymentBackend, Readiness, Weights},
    model::{
        Attempt, Change, Goal, Note, Observed, Part, Progress, Revision, RolloutId, Serves, TargetId, Version, Weight,
    },
    plan::Plan,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

pub use self::canary::StatefulSetCanary;
use self::{
    configs::Config,
    convergence::{Convergence, convergence, pods},
    copies::{Carried, Copied},
};
use crate::{
    Client, Watches,
    access::{self, Access},
    flux::{self, Flux, Repository},
    mark::{self, REVISION, Stand},
    object::{
        CONFIG_MAPS, CONTROLLER_REVISIONS, DAEMON_SETS, DEPLOYMENTS, LIMIT_RANGES, PODS, Patch, REPLICA_SETS,
        RESOURCE_QUOTAS, Resource, SECRETS, STATEFUL_SETS, Write, text,
    },
    unsealed::Unsealed,
    watch,
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
/// **Not brought back** unless asked for: what ConfigMaps and Secrets hold. Preflight names them, and a rollback whose
/// ConfigMaps or Secrets have changed says so. With [`carry_config_maps`](Self::carry_config_maps) and
/// [`carry_secrets`](Self::carry_secrets) they travel with the revision.
#[derive(Clone, Debug)]
pub struct Workload {
    client: Client,
    kind: Kind,
    namespace: String,
    name: String,
    despite_gitops: Option<Note>,
    deletes_stuck_pods: bool,
    watches: Option<Watches>,
    carried: Carried,
    suspends_flux: Option<Repository>,
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
    /// How the object stood when a baseline was recorded, and the number that a Deployment's controller gave it. A
    /// candidate has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    stood: Option<Stand>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    number: Option<u64>,
    /// What `kubectl apply` compares with, as it stood.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    last_applied: Option<String>,
    /// What the template takes its configuration from, as it was then.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    configs: Vec<Config>,
    /// The copies that it needs: that its template names, or would name for its configuration to come back.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    copies: Vec<Copied>,
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
        let namespace = mark::checked(&format!("namespace of the {}", kind.resource().kind), namespace)?;
        let name = mark::checked(kind.resource().kind, name)?;
        Ok(Self {
            client: client.clone(),
            kind,
            namespace,
            name,
            despite_gitops: None,
            deletes_stuck_pods: false,
            watches: None,
            carried: Carried::default(),
            suspends_flux: None,
        })
    }

    /// Goes ahead although Argo CD or Flux owns the object and would undo what is done here: you have seen to that, for
    /// this reason, which the record shows.
    #[must_use]
    pub fn despite_gitops(mut self, reason: impl Into<Note>) -> Self {
        self.despite_gitops = Some(reason.into());
        self
    }

    /// Suspends the Kustomization or HelmRelease of Flux that the object's labels name, before anything else is changed,
    /// and resumes it at the end where the repository says by then what serves. With all else that it applies: suspending
    /// has no smaller part.
    ///
    /// What somebody else had suspended stays suspended. A rollout that ends with hands off, by drift or given up, leaves
    /// it suspended with its note, and says so; the next rollout of the same workload takes it over. The rights are
    /// [`flux::rights`], in the namespace of the Kustomization.
    #[must_use]
    pub const fn suspend_flux(mut self, says: Repository) -> Self {
        self.suspends_flux = Some(says);
        self
    }

    /// May delete, after going back, the one pod of an ordered StatefulSet that never became ready: its controller waits
    /// for that pod for ever, whatever the template says by then (kubernetes/kubernetes#67250).
    #[must_use]
    pub const fn delete_stuck_pods(mut self) -> Self {
        self.deletes_stuck_pods = true;
        self
    }

    /// Looks by these watches, and is woken by them: then the number of requests does not grow with the number of rollouts
    /// or with how often they look.
    ///
    /// A watch is believed while it shows the last attempt, and only for what is under way or still as it should be.
    /// Before anything is written, and before a rollout ends, the object itself is read. So somebody else's change may be
    /// noticed as late as the watch hears of it, at once as a rule and within 13 seconds on a connection that died. Where
    /// watching is not allowed each look is a request, and preflight says so.
    #[must_use]
    pub fn watched_by(mut self, watches: &Watches) -> Self {
        self.watches = Some(watches.clone());
        self
    }

    /// Deploys copies of the ConfigMaps that the candidate's template names, as they are when the candidate is made:
    /// `flags` as `flags-4e1f0c2a9b`, `immutable`, and so named in the template. Going back then brings back what was
    /// configured, and not the template alone.
    ///
    /// The copies are made when the rollout begins to change things, and cleared away by a later rollout, once neither
    /// its revisions, nor a template in the workload's history, nor a pod names them. Other workloads should name the
    /// originals. A baseline that names originals still, as before the first such rollout, is copied too, as it is when
    /// the rollout begins; going back names these copies where the originals are seen to have changed by then, and else
    /// the template is exactly what it was. The way back waits 2 seconds for the API server to say so. What it does not say
    /// counts as unchanged, and a copy that is not seen is not named, unless its original is gone.
    ///
    /// Not copied: what a controller owns, and `kube-root-ca.crt`; they are renewed while pods run. Candidates that are
    /// made without this option go on naming the copies that are there.
    #[must_use]
    pub const fn carry_config_maps(mut self) -> Self {
        self.carried.config_maps = true;
        self
    }

    /// The same for Secrets, for which it takes the right to read, list, make and delete all of the namespace.
    ///
    /// A password that is renewed must stay good for as long as pods may start with it; leave out the others with
    /// [`carry_all_but`](Self::carry_all_but). Not copied: certificates, credentials of registries, tokens of service
    /// accounts, and what a controller owns. The names of copies tell nothing of what they hold.
    #[must_use]
    pub const fn carry_secrets(mut self) -> Self {
        self.carried.secrets = true;
        self
    }

    /// Does not copy the ConfigMaps and Secrets of these names.
    #[must_use]
    pub fn carry_all_but<N: Into<String>>(mut self, names: impl IntoIterator<Item = N>) -> Self {
        self.carried.but.extend(names.into_iter().map(Into::into));
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
        let snapshot = self.candidate(&object, template).await?;
        self.called(&object, None, &Snapshot { made_from, ..snapshot })
    }

    /// The workload with this whole pod template. The API server fills in what it leaves open, and says already now what
    /// it would not accept.
    ///
    /// What serves already keeps the name that it has, whatever it is called here.
    ///
    /// # Errors
    /// `NotFound` when the workload is not there; `Invalid` when the API server, or an admission webhook, refuses the
    /// template, or what serves has this name and is another template; `Unsupported` when an admission webhook takes no
    /// dry runs, for then nobody says beforehand what becomes of a template: use [`images`](Self::images).
    pub async fn template(&self, id: &str, template: &Value) -> Result<Revision> {
        let object = self.read().await?;
        let patch = Patch::new().put("/spec/template", template.clone());
        let tried = self.write(&patch, Write::Dry).await?;
        let template = self::template(&tried).clone();
        let snapshot = self.candidate(&object, template).await?;
        self.called(&object, Some(id), &snapshot)
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
        rights.push(Access::to(RESOURCE_QUOTAS, &["list"], "see whether quotas leave room for the new pods"));
        rights.push(Access::to(LIMIT_RANGES, &["list"], "see whether limits let the new pods in"));
        if self.watches.is_some() {
            rights.push(Watches::right(resource));
        }
        if self.kind != Kind::DaemonSet {
            rights.push(Access::to(crate::object::AUTOSCALERS, &["list"], "see who else sets the number of pods"));
        }
        for (resource, carried) in [(CONFIG_MAPS, self.carried.config_maps), (SECRETS, self.carried.secrets)] {
            if carried {
                let why = "keep copies of it for as long as a revision names them";
                rights.push(Access::to(resource, &["list", "create", "patch", "delete"], why));
            }
        }
        if !self.carried.is_nothing() {
            let history = if self.kind == Kind::Deployment { REPLICA_SETS } else { CONTROLLER_REVISIONS };
            rights.push(Access::to(history, &["list"], "see which copies are named by what is kept in the history"));
            rights.push(Access::to(PODS, &["list"], "see which copies are named by pods"));
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

    /// An id for it as a target: its namespace, kind and name, and a sum of these and of the cluster. So what an interrupted
    /// run left is taken up in the same cluster, and in no other.
    ///
    /// The cluster goes by the name that the client was given ([`Client::named`]), and else by the address of its API server.
    /// That is enough for kubeconfigs in which each cluster has one address. In pods the address may be that of another
    /// cluster too, and of a client that was made elsewhere there is none: name the cluster there.
    pub fn target_id(&self) -> TargetId {
        let name = format!("{}/{}/{}", self.namespace, self.kind.resource().kind.to_lowercase(), self.name);
        mark::target_id(&self.client, &name, "")
    }

    async fn read(&self) -> Result<Value> {
        self.client.get(self.kind.resource(), &self.namespace, &self.name).await
    }

    async fn heard(&self, last: Option<&Attempt>) -> Option<Value> {
        self.watches.as_ref()?.heard(self.kind.resource(), &self.namespace, &self.name, "", last?).await
    }

    async fn write(&self, patch: &Patch, write: Write) -> Result<Value> {
        self.client.patch(self.kind.resource(), &self.namespace, &self.name, patch, write).await
    }

    fn snapshot(object: &Value, template: Value, configs: Vec<Config>) -> Snapshot {
        Snapshot {
            uid: text(object, "/metadata/uid").into(),
            template,
            stood: None,
            number: None,
            last_applied: None,
            configs,
            copies: Vec::new(),
            made_from: None,
        }
    }

    async fn candidate(&self, object: &Value, mut template: Value) -> Result<Snapshot> {
        let mut copies = Vec::new();
        if !self.carried.is_nothing() {
            copies = self.copies_for(&mut template, true).await?.1;
        }
        let configs = configs::of(&template).into_iter().collect();
        Ok(Snapshot { copies, ..Self::snapshot(object, template, configs) })
    }

    /// A candidate under this name, unless it is what stands there: a name is of one template, and a template that is to
    /// be put where it stands already would never be told from what was there before.
    fn called(&self, object: &Value, id: Option<&str>, snapshot: &Snapshot) -> Result<Revision> {
        let stands = name_of(object);
        if snapshot.template == *template(object) {
            return Self::revision(stands, snapshot);
        }
        match id {
            Some(id) if stands == Some(id) => Err(Error::invalid(format!(
                "{self} serves another template by the name {id}; give the candidate another name"
            ))),
            _ => Self::revision(id, snapshot),
        }
    }

    fn revision(id: Option<&str>, snapshot: &Snapshot) -> Result<Revision> {
        let template = &snapshot.template;
        // Not the images alone: what condemns a bad environment must not condemn the same images with a good one.
        let id = id.map_or_else(|| format!("{} #{}", images_of(template), &hash(template)[..8]), str::to_owned);
        Revision::new(id)?.with_spec(snapshot)
    }

    /// The patch that takes the object, as it was read, to this template under this mark.
    fn patch(&self, object: &Value, to: &Value, applied: Option<String>, id: &str, nonce: &str) -> Patch {
        let mut patch = mark::only_as_read(object);
        if template(object) != to {
            patch = patch.put("/spec/template", to.clone());
        }
        let more: Vec<_> =
            [(REVISION, id.to_owned())].into_iter().chain(applied.map(|applied| (LAST_APPLIED, applied))).collect();
        mark::signed(patch, object, "", nonce, to, &more)
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

    /// Who is to be held off by us for as long as this object is rolled out.
    fn flux(&self, object: &Value) -> Vec<Flux> {
        if self.suspends_flux.is_some() { flux::of(&self.client, object, self) } else { Vec::new() }
    }

    /// What Flux, as far as we hold it off, makes of a look.
    async fn with_flux(&self, goal: Goal, object: &Value, mut look: Observed) -> Result<Observed> {
        let Some(says) = self.suspends_flux else { return Ok(look) };
        let drifts = matches!(look.progress, Progress::Drifted(_));
        let ends = look.progress == Progress::Reached && !matches!(goal, Goal::Split(_));
        if !drifts && !ends {
            return Ok(look);
        }
        for flux in self.flux(object) {
            match flux.is_suspended_by_us().await {
                Ok(false) => {}
                Ok(true) if ends && says.agrees_with(goal) => {
                    look.progress = Progress::Due(format!("resume {flux}").into());
                }
                Ok(true) if ends => {
                    let by_hand = flux.by_hand();
                    let why =
                        format!("left over: {flux} is suspended, for its repository says something else; {by_hand}");
                    look.not_restored.push(why.into());
                }
                Ok(true) => {
                    if let Progress::Drifted(what) = &look.progress {
                        let what = format!("{what}; {flux} is left suspended; {}", flux.by_hand());
                        look.progress = Progress::Drifted(what.into());
                    }
                }
                // Hands off in any case.
                Err(_) if drifts => {}
                Err(e) => return Err(e),
            }
        }
        Ok(look)
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
    rollout: RolloutId,
    baseline: Snapshot,
    /// The same with its configuration as copies, where that is another template.
    restored: Option<Snapshot>,
    candidate: Snapshot,
}

impl Pair {
    fn of(change: &Change) -> Result<Self> {
        let but = "holds no pod template; make it with Workload::images or Workload::template";
        let Unsealed { baseline, mut candidate } = Unsealed::<Snapshot>::open(change, but)?;
        // What was recorded as a baseline once, and is deployed again.
        if let Some(copied) = candidate.with_copies() {
            candidate = copied;
        }
        let restored = baseline.with_copies().filter(|restored| restored.template != candidate.template);
        Ok(Self { rollout: change.rollout.clone(), baseline, restored, candidate })
    }

    const fn wanted(&self, goal: Goal) -> &Snapshot {
        match goal {
            Goal::Baseline => &self.baseline,
            Goal::Split(_) | Goal::Candidate => &self.candidate,
        }
    }

    /// Whether it stands as it was found, or as one of our attempts left it since. What was promoted last was not found, so
    /// nobody knows what marks the object had: until this rollout has written it, it has the template that it goes back to.
    fn is_ours(&self, now: &Stand, live: &Value) -> bool {
        match &self.baseline.stood {
            Some(stood) => now.is_ours(stood),
            None if now.is_by(&self.rollout) => now.is_as_written(),
            None => self.is_wanted(live, Goal::Baseline),
        }
    }

    /// What a workload with this template shows, if it is of this change.
    fn serves(&self, live: &Value) -> Option<Serves> {
        if *live == self.candidate.template {
            Some(Serves::Candidate)
        } else {
            self.is_wanted(live, Goal::Baseline).then_some(Serves::Baseline)
        }
    }

    /// The baseline in the form that a workload with this template has it in.
    fn recorded(&self, live: &Value) -> &Snapshot {
        self.restored.as_ref().filter(|restored| restored.template == *live).unwrap_or(&self.baseline)
    }

    /// Whether a workload with this template is to keep it for this goal.
    fn is_wanted(&self, live: &Value, goal: Goal) -> bool {
        self.wanted(goal).template == *live || (goal == Goal::Baseline && self.recorded(live).template == *live)
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
        if let Some(why) = convergence::mixed(self.kind, &object)
            && convergence::never(self.kind, &object).is_none()
        {
            return Err(Error::new(ErrorKind::Mixed, format!("{self} serves more than one template: {why}")));
        }
        let template = template(&object);
        let stood = stand(&object);
        let marked = name_of(&object);
        let (configs, copies) = self.copies_for(&mut template.clone(), false).await?;
        let mut snapshot = Self::snapshot(&object, template.clone(), configs);
        (snapshot.stood, snapshot.number, snapshot.copies) = (Some(stood), number_of(&object), copies);
        snapshot.last_applied = annotation(&object, LAST_APPLIED).map(str::to_owned);
        Self::revision(marked, &snapshot)
    }

    async fn preflight(&self, change: &Change, _: &Plan) -> Result<Readiness> {
        self.prove(change, &Pair::of(change)?).await
    }

    async fn observe<'a>(&self, change: &Change, goal: Goal, last: Option<&'a Attempt>) -> Result<Observed> {
        let pair = Pair::of(change)?;
        if let Some(object) = self.heard(last).await {
            let look = self.look(&pair, goal, last, &object).await?;
            if watch::will_do(goal, &look) {
                return Ok(look);
            }
        }
        match self.read().await {
            Err(e) if e.kind() == ErrorKind::NotFound => {
                let version = Version::try_from("gone")?;
                let why = format!("{self} was deleted");
                Ok(Observed::new(Progress::Drifted(why.into()), version))
            }
            object => {
                let object = object?;
                let look = self.look(&pair, goal, last, &object).await?;
                // What an earlier rollout left suspended is no part of this one before it has done anything.
                if last.is_some() { self.with_flux(goal, &object, look).await } else { Ok(look) }
            }
        }
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
        let back = goal == Goal::Baseline;
        let id = if back { &change.baseline.id } else { &change.candidate.id };
        let wanted = pair.wanted(goal);
        // The controller writes the status while pods come and go, and every write changes what ours is tested against;
        // what counts is that it is still the version that was looked at.
        let (mut suspended, mut restored) = (Vec::new(), None);
        for _ in 0..WRITES {
            let object = self.read().await?;
            if stand(&object).version()? != attempt.version || text(&object, "/metadata/uid") != pair.baseline.uid {
                // A late call must not leave behind what nobody takes back.
                for flux in suspended {
                    Flux::resume(&flux).await?;
                }
                return Err(Error::new(ErrorKind::Conflict, format!("{self} is not any more what was looked at")));
            }
            let live = template(&object);
            let stays = pair.is_wanted(live, goal);
            let to = match (back, restored) {
                _ if stays => live,
                (true, Some(restored)) => restored,
                (true, None) => *restored.insert(self.with_its_configuration(&pair).await),
                (false, _) => &wanted.template,
            };
            if !back && !stays {
                for flux in self.flux(&object) {
                    if flux.suspend().await? {
                        suspended.push(flux);
                    }
                }
                self.make_copies(&pair, attempt.nonce.as_str()).await?;
            }
            let stuck = if back && stays { self.stuck_pod(&object).await? } else { None };
            let applied = if back { wanted.applied_again(&object) } else { None };
            let patch = self.patch(&object, to, applied, id.as_str(), attempt.nonce.as_str());
            match self.write(&patch, Write::Real).await {
                Err(e) if e.kind() == ErrorKind::Conflict => {}
                Err(e) => return Err(e),
                Ok(after) => {
                    if let Some(pod) = stuck {
                        let (name, uid) = (text(&pod, "/metadata/name"), text(&pod, "/metadata/uid"));
                        self.client.delete(PODS, &self.namespace, name, uid).await?;
                    }
                    // Before the write: a new annotation is a new generation of a Deployment (observed on 1.20).
                    let stands = convergence(self.kind, &object) == Convergence::Done;
                    if stays && stands && self.suspends_flux.is_some_and(|says| says.agrees_with(goal)) {
                        for flux in self.flux(&after) {
                            flux.resume().await?;
                        }
                    }
                    if !back && !stays && !self.carried.is_nothing() {
                        self.clear_copies(&pair, &after).await;
                    }
                    return Ok(());
                }
            }
        }
        Err(Error::new(ErrorKind::Conflict, format!("{self} changes faster than it can be written")))
    }

    fn attach(&self, wake: Wake) {
        if let Some(watches) = &self.watches {
            watches.namespace(&self.namespace).wake_on(self.kind.resource(), &self.name, wake);
        }
    }
}

impl Workload {
    /// What this object, as it was read or heard of, says of the way to this goal.
    async fn look(&self, pair: &Pair, goal: Goal, last: Option<&Attempt>, object: &Value) -> Result<Observed> {
        let now = stand(object);
        let version = now.version()?;
        let landed = last.is_some_and(|last| now.nonce.as_deref() == Some(last.nonce.as_str()));
        let live = template(object);
        if text(object, "/metadata/uid") != pair.baseline.uid {
            let progress = self.drifted(object, &format!("{self} was deleted and made again"));
            return Ok(Observed::new(progress, version).landed(landed));
        }
        let Some(serves) = pair.serves(live) else {
            let progress = self.drifted(object, &format!("{self} has another pod template: {}", images_of(live)));
            return Ok(Observed::new(progress, version).landed(landed));
        };
        // One of the two templates, but by somebody else's hand: undone, or done again.
        let undone = last.is_some() && pair.baseline.is_there_again(object, &now);
        if undone || !pair.is_ours(&now, live) {
            let progress = self.drifted(object, &format!("{self} was given {} again", images_of(live)));
            return Ok(Observed::new(progress, version).landed(landed));
        }
        let look = Observed::new(Progress::Reached, version).landed(landed);
        if !pair.is_wanted(live, goal) {
            let what =
                if goal == Goal::Baseline { "put the recorded template back" } else { "put the new template there" };
            let seen = share(self.kind, object, serves, convergence(self.kind, object) == Convergence::Done);
            return Ok(Observed { progress: Progress::Due(what.into()), ..self.with_share(look, seen) });
        }
        let stands = match finds_alone(self.kind, goal, last, object) {
            true => Convergence::Done,
            false => convergence(self.kind, object),
        };
        let seen = share(self.kind, object, serves, stands == Convergence::Done);
        let progress = match stands {
            Convergence::Done if goal.is_forward() && convergence::wanted(self.kind, object) == 0 => {
                Progress::Underway("it has no pods by now: nothing shows whether the candidate works".into())
            }
            Convergence::Done => Progress::Reached,
            // The controller's first status after the way back still has what it said of the candidate: a deadline that
            // passed, pods that could not be made (observed on 1.20). The rollback has a deadline of its own.
            Convergence::Failed(why) if goal == Goal::Baseline && convergence::never(self.kind, object).is_none() => {
                Progress::Underway(why.into())
            }
            Convergence::Failed(why) => Progress::Failed(why.into()),
            Convergence::Working(why) if goal == Goal::Baseline => match self.stuck_pod(object).await? {
                Some(pod) => Progress::Due(format!("delete pod {}", text(&pod, "/metadata/name")).into()),
                None => Progress::Underway(why.into()),
            },
            Convergence::Working(why) => Progress::Underway(why.into()),
        };
        let mut look = Observed { progress, ..self.with_share(look, seen) };
        if goal == Goal::Baseline && look.progress == Progress::Reached {
            look.not_restored = self.changed_configs(pair.recorded(live)).await?;
        }
        Ok(look)
    }

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
        // A candidate that was promoted once is no record of what its configuration was.
        if baseline.stood.is_none() {
            return Ok(notes);
        }
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

/// Whether a look that is to find the baseline finds its template alone, ready or not. Before anything was asked for there
/// is nothing that its controller could still have to do: a pod that is not ready now is what may have to be mended.
fn finds_alone(kind: Kind, goal: Goal, last: Option<&Attempt>, object: &Value) -> bool {
    goal == Goal::Baseline
        && last.is_none()
        && convergence::mixed(kind, object).is_none()
        && convergence::never(kind, object).is_none()
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

impl Snapshot {
    /// What `kubectl apply` is to compare with when this template is back: the template that was applied last then, in
    /// what was applied last now. Somebody may have applied a label, or the candidate's template, on the way.
    fn applied_again(&self, object: &Value) -> Option<String> {
        let read = |text: &str| serde_json::from_str::<Value>(text).ok();
        let (then, mut now) = (read(self.last_applied.as_deref()?)?, read(annotation(object, LAST_APPLIED)?)?);
        let (then, now_applied) = (then.pointer("/spec/template")?, now.pointer_mut("/spec/template")?);
        if then == now_applied {
            return None;
        }
        *now_applied = then.clone();
        Some(now.to_string())
    }

    /// Whether something else was there in between, by the controller's number: `kubectl rollout undo` brings back the
    /// annotations of that time too, and with them what we had left.
    fn is_there_again(&self, object: &Value, now: &Stand) -> bool {
        self.stood.as_ref().is_some_and(|stood| stood.nonce == now.nonce)
            && matches!((self.number, number_of(object)), (Some(then), Some(now)) if now > then)
    }
}

/// How a workload stands: its template counts.
fn stand(object: &Value) -> Stand {
    Stand::of(object, "", template(object))
}

/// What the template that stands there is called: what was put there under that name, and nothing that came later.
fn name_of(object: &Value) -> Option<&str> {
    mark::noted(object, "", REVISION).filter(|_| stand(object).is_as_written())
}

/// The number that a Deployment's controller gives a template when it takes it up, rising each time.
fn number_of(object: &Value) -> Option<u64> {
    annotation(object, "deployment.kubernetes.io/revision")?.parse().ok()
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
/// What `kubectl apply` compares with.
pub(crate) const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
