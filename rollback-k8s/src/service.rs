//! A Service whose selector is switched from one set of pods to another: blue/green.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use async_trait::async_trait;
use rollback_core::{
    Error, ErrorKind, Result,
    backend::{Capabilities, DeploymentBackend, Readiness, Weights},
    model::{Attempt, Change, Goal, Note, Observed, Part, Progress, Revision, Serves, Version, Weight},
    plan::Plan,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    Client,
    access::{self, Access},
    endpoints,
    mark::{self, REVISION, Stand},
    object::{ENDPOINT_SLICES, ENDPOINTS, PODS, Patch, SERVICES, Write, map, text},
    unsealed::Unsealed,
    workload::{WRITES, hash, is_ready, last_writer, preflight},
};

/// A Service as a target: its selector is the revision, and says which pods get the connections.
///
/// The candidate's pods are there before the rollout, under labels of their own (`color: green`), deployed by whatever
/// deploys them; the baseline's stay, so that going back is one write. A plan can ask for 0 % (the candidate is up, and
/// nobody but the preview gets to it) and for 100 %. The selector is switched only while at least one of the candidate's
/// pods is ready.
///
/// **Versions are checked**, by the Service's uid, the hash of its selector, and the nonce of the last attempt. With a
/// [preview](Self::preview) each shift writes the Service first, and then the preview.
///
/// **Look out for**: connections that are open stay with the pods they were made to until somebody closes them.
#[derive(Clone, Debug)]
pub struct ServiceSwitch {
    client: Client,
    namespace: String,
    name: String,
    preview: Option<String>,
    despite_gitops: Option<Note>,
}

type Labels = BTreeMap<String, String>;

/// A revision, as it is sealed.
#[derive(Clone, Serialize, Deserialize)]
struct Snapshot {
    selector: Labels,
    /// How the Service stood when it was read off, and its preview. A candidate is not read off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    stood: Option<Stand>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    preview: Option<Preview>,
}

#[derive(Clone, Serialize, Deserialize)]
struct Preview {
    selector: Labels,
    stood: Stand,
}

impl ServiceSwitch {
    /// The Service of this name.
    ///
    /// # Errors
    /// `Invalid` when the namespace or the name is none.
    pub fn new(client: &Client, namespace: &str, name: &str) -> Result<Self> {
        Ok(Self {
            client: client.clone(),
            namespace: mark::checked("namespace of the Service", namespace)?,
            name: mark::checked("name of the Service", name)?,
            preview: None,
            despite_gitops: None,
        })
    }

    /// With a second Service that selects the candidate's pods from the plan's first step on, for tests and gates to reach
    /// them by; and its own again when the rollout goes back.
    ///
    /// # Errors
    /// `Invalid` when the name is none, or is that of the Service itself.
    pub fn preview(mut self, name: &str) -> Result<Self> {
        if name == self.name {
            return Err(Error::invalid(format!("the preview is {name}, the Service itself; it takes a second one")));
        }
        self.preview = Some(mark::checked("name of the preview Service", name)?);
        Ok(self)
    }

    /// Goes ahead although Argo CD or Flux owns the Service and would undo what is done here: you have seen to that, for
    /// this reason, which the record shows.
    #[must_use]
    pub fn despite_gitops(mut self, reason: impl Into<Note>) -> Self {
        self.despite_gitops = Some(reason.into());
        self
    }

    /// The pods that the Service selects with these labels instead of its own of the same names. Give each build its own
    /// id: labels stay when what runs under them changes, and a revision that failed is not tried again under its id.
    ///
    /// # Errors
    /// `NotFound` when the Service is not there; `Invalid` when it has no selector, or not these labels in it.
    pub async fn revision<N: Into<String>, V: Into<String>>(
        &self,
        id: &str,
        labels: impl IntoIterator<Item = (N, V)> + Send,
    ) -> Result<Revision> {
        let labels: Labels = labels.into_iter().map(|(name, value)| (name.into(), value.into())).collect();
        let mut selector = selector(&self.read(&self.name).await?);
        for (name, value) in labels {
            if selector.insert(name.clone(), value).is_none() {
                return Err(Error::invalid(format!("the selector of {self} has no label {name}")));
            }
        }
        Revision::new(id)?.with_spec(&Snapshot { selector, stood: None, preview: None })
    }

    /// What this target takes to be allowed.
    pub fn rights(&self) -> Vec<Access> {
        vec![
            Access::to(SERVICES, &["get"], "see the Service"),
            Access::to(SERVICES, &["patch"], "switch its selector, and switch it back"),
            Access::to(PODS, &["list"], "see whether the pods of the candidate are ready"),
            Access::to(ENDPOINT_SLICES, &["list"], "see which pods the Service has taken in"),
            Access::to(ENDPOINTS, &["get"], "see the same before Kubernetes 1.21"),
        ]
    }

    /// The Role that this target takes, as YAML for `kubectl apply`.
    ///
    /// # Errors
    /// `Invalid` when the name is none.
    pub fn role(&self, name: &str) -> Result<String> {
        access::role(name, &self.namespace, &self.rights())
    }

    async fn read(&self, name: &str) -> Result<Value> {
        self.client.get(SERVICES, &self.namespace, name).await
    }

    /// The ready ones of the pods that have these labels.
    async fn ready(&self, selector: &Labels) -> Result<BTreeSet<String>> {
        let words: Vec<String> = selector.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let pods = self.client.list(PODS, &self.namespace, &words.join(",")).await?;
        let up = pods.iter().filter(|pod| is_ready(pod) && pod.pointer("/metadata/deletionTimestamp").is_none());
        Ok(up.map(|pod| text(pod, "/metadata/name").to_owned()).collect())
    }

    /// Puts this selector there, for the object as it was read.
    async fn put(&self, object: &Value, to: &Labels, nonce: &str, id: &str, write: Write) -> Result<Value> {
        let wanted = json!(to);
        let mut patch: Patch = mark::only_as_read(object);
        if object["spec"]["selector"] != wanted {
            patch = patch.put("/spec/selector", wanted.clone());
        }
        let note = [(REVISION, format!("{}={id}", hash(&wanted)))];
        let patch = mark::signed(patch, object, "", nonce, &wanted, &note);
        self.client.patch(SERVICES, &self.namespace, text(object, "/metadata/name"), &patch, write).await
    }

    async fn prove(&self, change: &Change, pair: &Pair) -> Result<Readiness> {
        let mut ready = Readiness::default();
        let closed = |e: &Error| matches!(e.kind(), ErrorKind::NotFound | ErrorKind::Denied);
        for (name, stood) in pair.recorded(self)? {
            let is_preview = name != self.name;
            let object = match self.read(name).await {
                Ok(object) => object,
                Err(e) if closed(&e) => return Ok(ready.refused(format!("{self}: {}", e.chain()))),
                Err(e) => return Err(e),
            };
            if text(&object, "/metadata/uid") != stood.uid {
                let why = format!("Service {name} was deleted and made again since the baseline was recorded");
                return Ok(ready.refused(why));
            }
            for right in self.rights().into_iter().filter(|right| right.resource == SERVICES.plural) {
                ready = right.prove(&self.client, &self.namespace, Some(name), ready).await?;
            }
            ready = preflight::owner(&object, &format!("Service {name}"), self.despite_gitops.as_ref(), ready);
            for (what, goal, id) in [
                ("the candidate's selector", Goal::Candidate, &change.candidate.id),
                ("the recorded selector", Goal::Baseline, &change.baseline.id),
            ] {
                let (wanted, shown) = pair.wanted(goal);
                let (to, back) = (if is_preview { shown } else { wanted }, goal == Goal::Baseline);
                let answer = self.put(&object, to, "tried out", id.as_str(), Write::Dry).await;
                let answer = answer.map(|after| selector(&after) == *to);
                let (what, of) = (format!("{what} for Service {name}"), format!("Service {name}"));
                ready = preflight::Tried { what: &what, of: &of, back }.told(answer, ready)?;
            }
        }
        for (what, labels) in [("candidate", &pair.candidate.selector), ("baseline", &pair.baseline.selector)] {
            let why = match self.ready(labels).await {
                Ok(pods) if pods.is_empty() => format!("no pod of the {what} is ready ({})", told(labels)),
                Ok(pods) => {
                    ready = ready.proved(format!("{} pods of the {what} are ready ({})", pods.len(), told(labels)));
                    continue;
                }
                Err(e) if closed(&e) => e.chain(),
                Err(e) => return Err(e),
            };
            ready = if what == "candidate" { ready.refused(why) } else { ready.no_way_back(why) };
        }
        match endpoints::ready(&self.client, &self.namespace, &self.name).await {
            Ok(_) => {}
            Err(e) if closed(&e) => ready = ready.refused(e.chain()),
            Err(e) => return Err(e),
        }
        Ok(ready.not_restored("connections that are open: they stay with the pods they were made to until they end"))
    }
}

/// `Service shop/web`.
impl fmt::Display for ServiceSwitch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Service {}/{}", self.namespace, self.name)
    }
}

type Pair = Unsealed<Snapshot>;

impl Pair {
    fn of(change: &Change) -> Result<Self> {
        Self::open(change, "holds no selector; make it with ServiceSwitch::revision")
    }

    /// The Service and, where there is one, the preview, as they stood.
    fn recorded<'a>(&'a self, switch: &'a ServiceSwitch) -> Result<Vec<(&'a str, &'a Stand)>> {
        let lost = |what: &str| Error::invalid(format!("the baseline of {switch} was recorded without {what}"));
        let selects = || mark::not_read_off("selects", &told(&self.baseline.selector));
        let stood = self.baseline.stood.as_ref().ok_or_else(selects)?;
        let mut all = vec![(switch.name.as_str(), stood)];
        if let Some(name) = &switch.preview {
            all.push((name, &self.baseline.preview.as_ref().ok_or_else(|| lost("its preview"))?.stood));
        }
        Ok(all)
    }

    /// What the Service, and its preview, are to select.
    fn wanted(&self, goal: Goal) -> (&Labels, &Labels) {
        let (candidate, baseline) = (&self.candidate.selector, &self.baseline.selector);
        let own = self.baseline.preview.as_ref().map_or(baseline, |preview| &preview.selector);
        match goal {
            Goal::Baseline => (baseline, own),
            Goal::Split(Weight::NONE) => (baseline, candidate),
            Goal::Split(_) | Goal::Candidate => (candidate, candidate),
        }
    }
}

#[async_trait]
impl DeploymentBackend for ServiceSwitch {
    fn capabilities(&self) -> Capabilities {
        Capabilities::full().weights(Weights::Only([Weight::NONE, Weight::ALL].into()))
    }

    async fn baseline(&self) -> Result<Revision> {
        let object = self.read(&self.name).await?;
        let live = selector(&object);
        if live.is_empty() {
            return Err(Error::invalid(format!("{self} has no selector to switch")));
        }
        let stood = Some(stand(&object));
        let preview = match &self.preview {
            None => None,
            Some(name) => {
                let object = self.read(name).await?;
                Some(Preview { selector: selector(&object), stood: stand(&object) })
            }
        };
        let sum = hash(&json!(live));
        let noted = mark::noted(&object, "", REVISION).and_then(|note| note.split_once('='));
        let id = noted.filter(|(of, _)| *of == sum).map_or_else(|| told(&live), |(_, id)| id.to_owned());
        let id = if id.len() > 256 { format!("selector {sum}") } else { id };
        Revision::new(id)?.with_spec(&Snapshot { selector: live, stood, preview })
    }

    async fn preflight(&self, change: &Change, _: &Plan) -> Result<Readiness> {
        self.prove(change, &Pair::of(change)?).await
    }

    async fn observe<'a>(&self, change: &Change, goal: Goal, last: Option<&'a Attempt>) -> Result<Observed> {
        let pair = Pair::of(change)?;
        let mut objects = Vec::new();
        for (name, stood) in pair.recorded(self)? {
            match self.read(name).await {
                Err(e) if e.kind() == ErrorKind::NotFound => {
                    let why = format!("Service {name} was deleted");
                    return Ok(Observed::new(Progress::Drifted(why.into()), Version::try_from("gone")?));
                }
                object => objects.push((name, stood, object?)),
            }
        }
        let main = &objects[0].2;
        let nonce = stand(main).nonce;
        let version = stand(main).version()?;
        let landed = last.is_some_and(|last| nonce.as_deref() == Some(last.nonce.as_str()));
        let look = |progress| Observed::new(progress, version.clone()).landed(landed);
        for (name, stood, object) in &objects {
            let stand = stand(object);
            let what = if stand.uid != stood.uid {
                format!("Service {name} was deleted and made again")
            } else if !stand.is_ours(stood) {
                format!("Service {name} selects {}", told(&selector(object)))
            } else {
                continue;
            };
            let who = last_writer(object).map_or_else(String::new, |who| format!("; last written by {who}"));
            return Ok(look(Progress::Drifted(format!("{what}{who}").into())));
        }
        let (wanted, shown) = pair.wanted(goal);
        let live = selector(main);
        let candidates = self.ready(&pair.candidate.selector).await?;
        let taken = endpoints::ready(&self.client, &self.namespace, &self.name).await?;
        let mine = if live == pair.candidate.selector { candidates.clone() } else { self.ready(&live).await? };
        // The endpoints are those of the selector a moment after it was switched.
        let strangers = taken.difference(&mine).count();
        let progress = if live != *wanted {
            if goal != Goal::Baseline && candidates.is_empty() {
                Progress::Underway("no pod of the candidate is ready: the Service is not switched to nothing".into())
            } else {
                Progress::Due(format!("select {}", told(wanted)).into())
            }
        } else if let Some((name, _, preview)) = objects.get(1)
            && (selector(preview) != *shown || stand(preview).nonce != nonce)
        {
            Progress::Due(format!("let {name} select {}", told(shown)).into())
        } else if goal == Goal::Split(Weight::NONE) && candidates.is_empty() {
            Progress::Underway("no pod of the candidate is ready".into())
        } else if strangers > 0 {
            Progress::Underway(format!("{strangers} endpoints are still those of other pods").into())
        } else if taken.is_empty() {
            Progress::Underway("the Service has no ready endpoint".into())
        } else {
            Progress::Reached
        };
        let is_candidate = live == pair.candidate.selector;
        let (serves, share) = match (taken.is_empty(), strangers > 0) {
            (true, _) => (Serves::Nothing, None),
            (_, true) => (Serves::Both, None),
            _ if is_candidate => (Serves::Candidate, Some(Weight::ALL)),
            _ => (Serves::Baseline, Some(Weight::NONE)),
        };
        let mut seen = look(progress).parts(vec![Part::new(&self.name, serves)]);
        seen.weight = share;
        Ok(seen)
    }

    async fn shift(&self, change: &Change, goal: Goal, attempt: &Attempt) -> Result<()> {
        if let Goal::Split(weight) = goal
            && ![Weight::NONE, Weight::ALL].contains(&weight)
        {
            let why = format!("{self} cannot be given {weight}: a selector has all connections or none");
            return Err(Error::new(ErrorKind::Unsupported, why));
        }
        let pair = Pair::of(change)?;
        let recorded = pair.recorded(self)?;
        let (wanted, shown) = pair.wanted(goal);
        let id = if wanted == &pair.candidate.selector { &change.candidate.id } else { &change.baseline.id };
        let (id, nonce) = (id.as_str(), attempt.nonce.as_str());
        for _ in 0..WRITES {
            // Before the Service is written: a preview that another attempt writes later is not written over.
            let preview = match recorded.get(1) {
                Some((name, _)) => Some(self.read(name).await?),
                None => None,
            };
            let object = self.read(&self.name).await?;
            if stand(&object).version()? != attempt.version || stand(&object).uid != recorded[0].1.uid {
                return Err(Error::new(ErrorKind::Conflict, format!("{self} is not any more what was looked at")));
            }
            match self.put(&object, wanted, nonce, id, Write::Real).await {
                Err(e) if e.kind() == ErrorKind::Conflict => continue,
                Err(e) => return Err(e),
                Ok(_) => {}
            }
            let Some(preview) = preview else { return Ok(()) };
            return match self.put(&preview, shown, nonce, id, Write::Real).await {
                Ok(_) => Ok(()),
                // Half of it has landed, and the next look finds the other half due.
                Err(e) => {
                    let text = format!("{self} is written, and its preview is not");
                    Err(Error::new(ErrorKind::Unavailable, text).because(e))
                }
            };
        }
        Err(Error::new(ErrorKind::Conflict, format!("{self} changes faster than it can be written")))
    }
}

fn stand(object: &Value) -> Stand {
    Stand::of(object, "", &object["spec"]["selector"])
}

fn selector(object: &Value) -> Labels {
    let labels = map(object, "/spec/selector");
    labels.map(|(name, value)| (name.clone(), value.as_str().unwrap_or_default().to_owned())).collect()
}

/// `app=shop, color=green`.
fn told(labels: &Labels) -> String {
    if labels.is_empty() {
        return "nothing".into();
    }
    labels.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(", ")
}
