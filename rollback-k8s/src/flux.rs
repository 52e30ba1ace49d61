//! Flux, which puts there again and again what a repository says: held off while a rollout goes on.
//!
//! What is written is what `flux suspend` writes, `spec.suspend`, and beside it a note for each workload that is rolled out:
//! the annotation `rollback.rs/suspended-for-…`, which says for whom. By the notes our own suspension is told from
//! somebody else's, which is neither written over nor lifted, and is found again by whoever goes on after a crash. The last
//! note that goes takes the suspension with it. Whoever wants it to stay removes the notes.

use std::fmt;

use rollback_core::{Error, ErrorKind, Result, backend::Readiness, model::Goal};
use serde_json::{Value, json};

use crate::{
    Client,
    access::Access,
    mark,
    object::{HELM_RELEASES, KUSTOMIZATIONS, Patch, Resource, Write, escaped, map, text},
    workload::{WRITES, hash, preflight::Tried},
};

/// What the repository says that Flux applies, while a rollout goes on. As soon as Flux is resumed that is put there,
/// unguarded: so it is only resumed where the repository says what serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Repository {
    /// It says the baseline, and is given the candidate once that is promoted. Flux is resumed after a rollback; after a
    /// promotion you resume it, when the repository says the candidate.
    SaysBaseline,
    /// It says the candidate already. Flux is resumed after a promotion; after a rollback you resume it, when the
    /// repository says the baseline again.
    SaysCandidate,
    /// Somebody sees to it that at the end it says what serves then. Flux is resumed in any case.
    FollowsWhatServes,
}

impl Repository {
    /// Whether Flux may go on when this is reached.
    pub(crate) const fn agrees_with(self, goal: Goal) -> bool {
        match (self, goal) {
            (_, Goal::Split(_)) => false,
            (Self::FollowsWhatServes, _)
            | (Self::SaysBaseline, Goal::Baseline)
            | (Self::SaysCandidate, Goal::Candidate) => true,
            (Self::SaysBaseline, Goal::Candidate) | (Self::SaysCandidate, Goal::Baseline) => false,
        }
    }
}

/// What it takes to suspend Flux, in the namespace where its Kustomizations or HelmReleases are. It is much: who may
/// change these may have Flux change anything.
pub fn rights() -> Vec<Access> {
    [KUSTOMIZATIONS, HELM_RELEASES]
        .map(|resource| Access::to(resource, &["get", "patch"], "suspend Flux for a rollout, and resume it"))
        .into()
}

/// A Kustomization or HelmRelease, and the workload that it is to keep its hands off.
pub(crate) struct Flux {
    client: Client,
    resource: Resource,
    namespace: String,
    name: String,
    workload: String,
}

/// How one of them stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stands {
    Active,
    /// With a note for this workload.
    Ours,
    /// With notes for others of ours only.
    ForOthers,
    SomebodyElses,
}

/// By whom an object is applied, as its labels say.
pub(crate) fn of(client: &Client, object: &Value, workload: &dyn fmt::Display) -> Vec<Flux> {
    let label = |name: String| {
        map(object, "/metadata/labels").find(|(key, _)| **key == name).and_then(|(_, value)| value.as_str())
    };
    let named = [(KUSTOMIZATIONS, "kustomize.toolkit.fluxcd.io"), (HELM_RELEASES, "helm.toolkit.fluxcd.io")];
    let found = named.into_iter().filter_map(|(resource, group)| {
        let name = label(format!("{group}/name"))?.to_owned();
        let namespace = label(format!("{group}/namespace"));
        let namespace = namespace.unwrap_or_else(|| text(object, "/metadata/namespace")).to_owned();
        Some(Flux { client: client.clone(), resource, namespace, name, workload: workload.to_string() })
    });
    found.collect()
}

impl Flux {
    async fn read(&self) -> Result<Value> {
        self.client.get(self.resource, &self.namespace, &self.name).await
    }

    async fn write(&self, patch: &Patch, write: Write) -> Result<Value> {
        self.client.patch(self.resource, &self.namespace, &self.name, patch, write).await
    }

    fn note(&self) -> String {
        format!("{NOTE}{}", hash(&json!(self.workload)))
    }

    fn stands(&self, object: &Value) -> Stands {
        let mut notes = map(object, "/metadata/annotations").filter(|(name, _)| name.starts_with(NOTE)).peekable();
        if object["spec"]["suspend"] != true {
            Stands::Active
        } else if notes.peek().is_none() {
            Stands::SomebodyElses
        } else if notes.any(|(name, _)| *name == self.note()) {
            Stands::Ours
        } else {
            Stands::ForOthers
        }
    }

    fn suspended(&self, object: &Value) -> Patch {
        let patch = mark::only_as_read(object).put("/spec/suspend", json!(true));
        if object.pointer("/metadata/annotations").is_some_and(Value::is_object) {
            patch.put(&format!("/metadata/annotations/{}", escaped(&self.note())), json!(self.workload))
        } else {
            patch.put("/metadata/annotations", json!({ self.note(): self.workload }))
        }
    }

    /// Sees to it that Flux keeps its hands off, and says whether that took a write.
    pub(crate) async fn suspend(&self) -> Result<bool> {
        for _ in 0..WRITES {
            let object = self.read().await?;
            if matches!(self.stands(&object), Stands::Ours | Stands::SomebodyElses) {
                return Ok(false);
            }
            match self.write(&self.suspended(&object), Write::Real).await {
                Err(e) if e.kind() == ErrorKind::Conflict => {}
                written => return written.map(|_| true),
            }
        }
        Err(self.restless())
    }

    /// Whether it is held off for this workload by us.
    pub(crate) async fn is_suspended_by_us(&self) -> Result<bool> {
        let found = self.client.find(self.resource, &self.namespace, &self.name).await?;
        Ok(found.is_some_and(|object| self.stands(&object) == Stands::Ours))
    }

    /// Lets Flux go on, unless it is held off for another workload too, or for somebody else.
    pub(crate) async fn resume(&self) -> Result<()> {
        for _ in 0..WRITES {
            let Some(object) = self.client.find(self.resource, &self.namespace, &self.name).await? else {
                return Ok(());
            };
            let mut notes = map(&object, "/metadata/annotations").filter(|(name, _)| name.starts_with(NOTE));
            if !notes.any(|(name, _)| *name == self.note()) {
                return Ok(());
            }
            let others =
                map(&object, "/metadata/annotations").any(|(name, _)| name.starts_with(NOTE) && *name != self.note());
            let mut patch =
                mark::only_as_read(&object).remove(&format!("/metadata/annotations/{}", escaped(&self.note())));
            if !others && object["spec"]["suspend"] == true {
                patch = patch.put("/spec/suspend", json!(false));
            }
            match self.write(&patch, Write::Real).await {
                Err(e) if e.kind() == ErrorKind::Conflict => {}
                written => return written.map(drop),
            }
        }
        Err(self.restless())
    }

    fn restless(&self) -> Error {
        Error::new(ErrorKind::Unavailable, format!("{self} changes faster than it can be written"))
    }

    /// Proves that it can be suspended and resumed.
    pub(crate) async fn prove(&self, says: Repository, mut ready: Readiness) -> Result<Readiness> {
        for right in rights().into_iter().filter(|right| right.resource == self.resource.plural) {
            ready = right.prove(&self.client, &self.namespace, Some(&self.name), ready).await?;
        }
        let object = match self.read().await {
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::Denied) => {
                return Ok(ready.refused(format!("{self} owns it by its labels, and cannot be seen: {}", e.chain())));
            }
            object => object?,
        };
        if self.stands(&object) == Stands::SomebodyElses {
            return Ok(ready.proved(format!("{self} is suspended by somebody else, and stays so")));
        }
        let answer = self.write(&self.suspended(&object), Write::Dry).await;
        let answer = answer.map(|after| self.stands(&after) == Stands::Ours);
        let what = format!("the suspension of {self}");
        ready = Tried { what: &what, of: self, back: false }.told(answer, ready)?;
        ready = ready.not_provable(format!("that {self} has nothing under way that it still puts there"));
        Ok(match says {
            Repository::SaysCandidate => ready.not_restored(format!(
                "{self} stays suspended after a rollback: its repository says the candidate; {}",
                self.by_hand()
            )),
            Repository::SaysBaseline => ready.not_provable(format!(
                "that {self} goes on: it stays suspended after a promotion, for its repository says the baseline; {}",
                self.by_hand()
            )),
            Repository::FollowsWhatServes => {
                ready.not_provable(format!("that the repository of {self} says at the end what serves then"))
            }
        })
    }

    /// What a person does to resume it.
    pub(crate) fn by_hand(&self) -> String {
        let kind = self.resource.kind.to_ascii_lowercase();
        format!("set that right, and then: flux resume {kind} {} -n {}", self.name, self.namespace)
    }
}

/// `Flux's Kustomization flux-system/shop`.
impl fmt::Display for Flux {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Flux's {} {}/{}", self.resource.kind, self.namespace, self.name)
    }
}

/// The beginning of the annotations that say for which workloads Flux is suspended.
const NOTE: &str = "rollback.rs/suspended-for-";
