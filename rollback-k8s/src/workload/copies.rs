//! Configuration that travels with the revision: copies of ConfigMaps and Secrets that cannot change any more, which the
//! template names instead.
//!
//! A copy is called after what it is a copy of and a hash. Of a ConfigMap that is the hash of what it holds, so the same is
//! never copied twice. Of a Secret it is the hash of its uid and version: names are seen by far more people than Secrets
//! are, and from the hash of what one holds a weak password can be guessed. The workload is part of both, so that a copy has
//! one user, and can be cleared away when that has none for it.
//!
//! Copies have no owner. With the workload as their owner they would go when it is deleted, and be gone when it is made
//! again from what was saved of it, which names them. What is left over is found by its label.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use futures_util::future::join_all;
use rollback_core::{Error, ErrorKind, Result, backend::Readiness};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::time::timeout;

use super::{
    ATTEMPT, Kind, Pair, Snapshot, Workload, annotation,
    configs::{self, Config, There},
    hash,
    preflight::Tried,
    template,
};
use crate::object::{CONFIG_MAPS, CONTROLLER_REVISIONS, PODS, Patch, REPLICA_SETS, SECRETS, Write, escaped, text};

/// What of a workload's configuration travels with its revisions.
#[derive(Clone, Debug, Default)]
pub(super) struct Carried {
    pub(super) config_maps: bool,
    pub(super) secrets: bool,
    pub(super) but: BTreeSet<String>,
}

/// A copy that a revision needs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Copied {
    /// What it is a copy of, as that was.
    pub(super) of: Config,
    /// Its name.
    pub(super) to: String,
}

/// What has become of what a copy was made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Original {
    Unchanged,
    Changed,
    Gone,
    /// That cannot be told.
    Hidden,
}

/// Names in a template, by what they are to be instead. A Secret and a ConfigMap may have the same.
type Renamed = BTreeMap<(bool, String), String>;

impl Carried {
    pub(super) const fn is_nothing(&self) -> bool {
        !self.config_maps && !self.secrets
    }

    /// Whether such a thing is copied at all. What others renew while pods run must not be held fast: a certificate would
    /// run out, and so would the credentials of a registry.
    fn takes(&self, secret: bool, object: &Value) -> bool {
        let name = text(object, "/metadata/name");
        let kinds = ["", "Opaque", "kubernetes.io/basic-auth", "kubernetes.io/ssh-auth"];
        let owners = object.pointer("/metadata/ownerReferences").and_then(Value::as_array);
        (if secret { self.secrets } else { self.config_maps })
            && !self.but.contains(name)
            && name != "kube-root-ca.crt"
            && kinds.contains(&text(object, "/type"))
            && !owners.into_iter().flatten().any(|owner| owner["controller"] == true)
    }
}

impl Workload {
    /// What this template takes its configuration from, and the copies of it that are to be made. `anew`: of what is there
    /// today, also where the template names an earlier copy, and the template names the new ones then.
    pub(super) async fn copies_for(&self, template: &mut Value, anew: bool) -> Result<(Vec<Config>, Vec<Copied>)> {
        let (mut all, mut copies, mut renamed) = (Vec::new(), Vec::new(), Renamed::new());
        let mut pulls = BTreeSet::new();
        configs::visit(template, |at| {
            if at.pulls {
                pulls.insert(at.name.clone());
            }
        });
        for config in configs::of(template) {
            let found = config.find(&self.client, &self.namespace).await?;
            all.push(config.as_in(found.as_ref()));
            let Some(found) = found else { continue };
            let earlier = self.original_of(&found).map(str::to_owned);
            let (of, object) = match &earlier {
                Some(_) if !anew => continue,
                Some(name) => {
                    let of = Config { name: name.clone(), ..config.clone() };
                    let Some(object) = of.find(&self.client, &self.namespace).await? else {
                        let text = format!("{of}, of which {config} is a copy, is gone from {}", self.namespace);
                        return Err(Error::new(ErrorKind::NotFound, text));
                    };
                    (of, object)
                }
                None => (config.clone(), found.clone()),
            };
            let at = (config.secret, config.name.clone());
            if !self.carried.takes(config.secret, &object) || (config.secret && pulls.contains(&config.name)) {
                if anew && of.name != config.name {
                    renamed.insert(at, of.name);
                }
                continue;
            }
            // Its version may have moved for a label.
            let same = |part: &str| found[part] == object[part];
            if earlier.is_some() && same("data") && same("binaryData") && same("type") {
                continue;
            }
            let of = of.as_in(Some(&object));
            let to = self.name_of_copy(&of);
            renamed.insert(at, to.clone());
            if !copies.iter().any(|copied: &Copied| copied.to == to) {
                copies.push(Copied { of, to });
            }
        }
        if anew {
            rename(template, &renamed);
        }
        Ok((all, copies))
    }

    fn name_of_copy(&self, of: &Config) -> String {
        let sum = hash(&json!([self.kind.resource().kind, self.name, of.mark]));
        let stem = of.name.get(..242).unwrap_or(&of.name);
        format!("{}-{}", stem.trim_end_matches(['-', '.']), &sum[..10])
    }

    /// What this is a copy of, if it is one of this workload's.
    pub(super) fn original_of<'o>(&self, object: &'o Value) -> Option<&'o str> {
        let ours = object.pointer("/metadata/labels").is_some_and(|labels| labels[COPIES] == self.label().as_str());
        if ours { annotation(object, COPY_OF) } else { None }
    }

    /// The value of the label that the copies of this workload have. Not its name, which may be too long for one.
    fn label(&self) -> String {
        hash(&json!([self.kind.resource().kind, self.name]))
    }

    fn body(&self, copied: &Copied, original: &Value) -> Value {
        // No label of the original: by those Argo CD or Flux would know the copy as theirs, and prune it.
        let mut copy = json!({
            "apiVersion": "v1", "kind": copied.of.resource().kind, "immutable": true,
            "metadata": {
                "name": copied.to,
                "labels": { COPIES: self.label() },
                "annotations": {
                    COPY_OF: copied.of.name,
                    COPY_FOR: format!("{} {}", self.kind.resource().kind, self.name),
                },
            },
        });
        for part in ["type", "data", "binaryData"] {
            if let Some(value) = original.get(part).filter(|value| !value.is_null()) {
                copy[part] = value.clone();
            }
        }
        copy
    }

    /// The original as it was when the copy was planned, if it still is.
    async fn unchanged(&self, copied: &Copied) -> Result<Option<Value>> {
        let found = copied.of.find(&self.client, &self.namespace).await?;
        Ok(found.filter(|found| copied.of.as_in(Some(found)) == copied.of))
    }

    /// Sees to it that a copy is there, and says whether it could: not if what it is a copy of has changed.
    async fn make(&self, copied: &Copied, nonce: &str) -> Result<bool> {
        let resource = copied.of.resource();
        // An old copy is written to: who is about to clear it away has read it before, and finds that it changed.
        let touched = Patch::new()
            .test(&format!("/metadata/labels/{}", escaped(COPIES)), &json!(self.label()))
            .test("/immutable", &json!(true))
            .put(&format!("/metadata/annotations/{}", escaped(ATTEMPT)), json!(nonce));
        match self.client.patch(resource, &self.namespace, &copied.to, &touched, Write::Real).await {
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            touched => return touched.map(|_| true),
        }
        let Some(original) = self.unchanged(copied).await? else { return Ok(false) };
        match self.client.create(resource, &self.namespace, &self.body(copied, &original), Write::Real).await {
            // Somebody was faster with the same one.
            Err(e) if e.kind() == ErrorKind::Conflict => Ok(true),
            made => made.map(|_| true),
        }
    }

    /// Makes what both revisions of a change need before the candidate's template is put there.
    pub(super) async fn make_copies(&self, pair: &Pair, nonce: &str) -> Result<()> {
        for copied in &pair.candidate.copies {
            if !self.make(copied, nonce).await? {
                return Err(Error::invalid(format!(
                    "{} has changed since the candidate was made; make the candidate again",
                    copied.of
                )));
            }
        }
        for copied in &pair.baseline.copies {
            if !self.make(copied, nonce).await? {
                tracing::debug!(of = %copied.of, "changed since the baseline was recorded, so it cannot be kept");
            }
        }
        Ok(())
    }

    /// The recorded template, or the same with copies of the configuration that was recorded with it, where that has
    /// changed since.
    pub(super) async fn with_its_configuration<'p>(&self, pair: &'p Pair) -> &'p Value {
        let Some(restored) = &pair.restored else { return &pair.baseline.template };
        // The way back waits for this: all at once, and not for an API server that is slow.
        let found = join_all(pair.baseline.copies.iter().map(|copied| self.found(copied))).await;
        if takes_copies(&found) { &restored.template } else { &pair.baseline.template }
    }

    /// What has become of the original, and whether its copy is there, as far as the API server says so soon.
    async fn found(&self, copied: &Copied) -> (Original, There) {
        let find = |name| timeout(SOON, self.client.find(copied.of.resource(), &self.namespace, name));
        let (original, copy) = tokio::join!(find(&copied.of.name), find(&copied.to));
        let original = match original {
            Ok(Ok(Some(now))) if copied.of.as_in(Some(&now)) == copied.of => Original::Unchanged,
            Ok(Ok(Some(_))) => Original::Changed,
            Ok(Ok(None)) => Original::Gone,
            Ok(Err(_)) | Err(_) => Original::Hidden,
        };
        let copy = match copy {
            Ok(Ok(Some(copy))) if self.original_of(&copy) == Some(&copied.of.name) => There::Yes,
            Ok(Ok(_)) => There::No,
            Ok(Err(_)) | Err(_) => There::Hidden,
        };
        (original, copy)
    }

    /// Lets the API server try out the copies that both revisions need, where they are not there yet.
    pub(super) async fn try_copies(&self, pair: &Pair, mut ready: Readiness) -> Result<Readiness> {
        let candidate = pair.candidate.copies.iter().map(|copied| (copied, false));
        let baseline = pair.baseline.copies.iter().map(|copied| (copied, true));
        for (copied, back) in candidate.chain(baseline) {
            let (of, to) = (&copied.of, &copied.to);
            let said = match self.client.find(of.resource(), &self.namespace, to).await? {
                Some(copy) if self.original_of(&copy) == Some(&of.name) => {
                    ready.proved(format!("{of} travels as {to}, which is there"))
                }
                Some(_) => ready.refused(format!("{} {to} is there, and is no copy of {of}", of.resource().kind)),
                None if !back && self.carried.is_nothing() => ready.refused(format!(
                    "the candidate names {to}, a copy of {of}, which is not there and which this target does not make: \
                     use carry_config_maps and carry_secrets"
                )),
                None => match self.unchanged(copied).await? {
                    None if back => ready.not_restored(format!("what {of} held: it has changed by now")),
                    None => ready.refused(format!("{of} is not what it was for the candidate: make that again")),
                    Some(original) => {
                        let body = self.body(copied, &original);
                        let answer = self.client.create(of.resource(), &self.namespace, &body, Write::Dry).await;
                        let answer =
                            answer.map(|after| ["data", "binaryData"].iter().all(|part| after[part] == body[part]));
                        let what = format!("{to}, a copy of {of}");
                        Tried { what: &what, of: to, back: false }.told(answer, ready)?
                    }
                },
            };
            ready = said;
        }
        Ok(ready)
    }

    /// Clears away copies that nothing names any more: neither revision of the change, no template that is kept in the
    /// workload's history, and no pod. It never fails a rollout, and what it leaves it finds next time.
    pub(super) async fn clear_copies(&self, pair: &Pair, object: &Value) {
        match timeout(PATIENCE, self.clear(pair, object)).await {
            Ok(Ok(())) => {}
            Ok(Err(e)) => tracing::debug!(workload = %self, error = %e.chain(), "old copies are left for next time"),
            Err(_) => tracing::debug!(workload = %self, "old copies are left for next time: it takes too long"),
        }
    }

    async fn clear(&self, pair: &Pair, object: &Value) -> Result<()> {
        let mut named = BTreeSet::new();
        let mut name = |template: &Value| {
            named.extend(configs::of(template).into_iter().map(|config| (config.secret, config.name)));
        };
        [&pair.candidate.template, &pair.baseline.template, template(object)].into_iter().for_each(&mut name);
        pair.restored.iter().for_each(|restored| name(&restored.template));
        let mut copies = Vec::new();
        let labels = format!("{COPIES}={}", self.label());
        for (secret, carried) in [(false, self.carried.config_maps), (true, self.carried.secrets)] {
            let resource = if secret { SECRETS } else { CONFIG_MAPS };
            let found = match carried {
                true => self.client.list_metadata(resource, &self.namespace, &labels).await?,
                false => Vec::new(),
            };
            let unnamed = |it: &Value| !named.contains(&(secret, text(it, "/metadata/name").to_owned()));
            copies.extend(found.into_iter().filter(unnamed).map(|copy| (secret, copy)));
        }
        if copies.is_empty() {
            return Ok(());
        }
        let (history, at) = match self.kind {
            Kind::Deployment => (REPLICA_SETS, "/spec/template"),
            Kind::StatefulSet | Kind::DaemonSet => (CONTROLLER_REVISIONS, "/data/spec/template"),
        };
        let labels = crate::object::selector(&object["spec"]["selector"]);
        let mut name = |template: &Value| {
            named.extend(configs::of(template).into_iter().map(|config| (config.secret, config.name)));
        };
        // History after copies and pods last: what comes to be meanwhile names what the change names.
        for kept in self.client.list(history, &self.namespace, &labels).await? {
            kept.pointer(at).into_iter().for_each(&mut name);
        }
        self.client.list(PODS, &self.namespace, &labels).await?.iter().for_each(name);
        for (secret, copy) in copies {
            let copy_of = text(&copy, "/metadata/name");
            if !named.contains(&(secret, copy_of.to_owned())) {
                let resource = if secret { SECRETS } else { CONFIG_MAPS };
                tracing::info!(workload = %self, copy = copy_of, "nothing names this copy any more: deleted");
                self.client.delete_as_read(resource, &self.namespace, &copy).await?;
            }
        }
        Ok(())
    }
}

impl Snapshot {
    /// The same with the copies in place of what its template names, if that names anything that has one.
    pub(super) fn with_copies(&self) -> Option<Self> {
        let at = |config: &Config| (config.secret, config.name.clone());
        let renamed: Renamed = self.copies.iter().map(|copied| (at(&copied.of), copied.to.clone())).collect();
        let mut template = self.template.clone();
        rename(&mut template, &renamed);
        let configs = self.configs.iter().filter(|config| !renamed.contains_key(&at(config))).cloned().collect();
        (template != self.template).then(|| Self { template, configs, ..self.clone() })
    }
}

/// Whether the way back is to the template with copies, by what was found of each: only for a change that was seen, and
/// with copies that were. What cannot be told is no reason to leave the recorded template, with which pods that still run
/// stay, and others start whatever their configuration holds by now; but with an original that is gone none starts.
fn takes_copies(found: &[(Original, There)]) -> bool {
    let some = |what| found.iter().any(|(original, _)| *original == what);
    let all_are_there = found.iter().all(|(_, copy)| *copy == There::Yes);
    let none_is_missing = found.iter().all(|(_, copy)| *copy != There::No);
    (some(Original::Changed) && all_are_there) || (some(Original::Gone) && none_is_missing)
}

fn rename(template: &mut Value, renamed: &Renamed) {
    configs::visit(template, |at| {
        if let Some(to) = renamed.get(&(at.secret, at.name.clone())) {
            at.name.clone_from(to);
        }
    });
}

/// The label of copies: whose they are.
const COPIES: &str = "rollback.rs/copies";
/// What a copy is a copy of, and for which workload.
const COPY_OF: &str = "rollback.rs/copy-of";
const COPY_FOR: &str = "rollback.rs/copy-for";
/// How long clearing away may keep a rollout waiting.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long the way back waits to learn what its configuration is by now.
const SOON: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_back_leaves_the_recorded_template_only_for_a_change_and_copies_that_were_seen() {
        use Original::{Changed, Gone, Hidden, Unchanged};
        let copies = [There::Yes, There::No, There::Hidden];
        // One of them, by its original and by whether its copy is there, is missing, or cannot be told.
        for (original, takes) in [
            (Unchanged, [false, false, false]),
            (Changed, [true, false, false]),
            // Without its original no pod starts: then a copy that may be there is better.
            (Gone, [true, false, true]),
            (Hidden, [false, false, false]),
        ] {
            for (copy, takes) in copies.into_iter().zip(takes) {
                assert_eq!(takes_copies(&[(original, copy)]), takes, "{original:?}, {copy:?}");
            }
        }
        // The template names all copies or none.
        let (yes, no, hidden) = (There::Yes, There::No, There::Hidden);
        for (one, other, takes) in [
            ((Changed, yes), (Unchanged, yes), true),
            ((Changed, yes), (Hidden, yes), true),
            ((Changed, yes), (Unchanged, hidden), false),
            ((Changed, yes), (Unchanged, no), false),
            ((Changed, yes), (Changed, no), false),
            ((Hidden, yes), (Unchanged, yes), false),
            ((Gone, yes), (Hidden, hidden), true),
            ((Gone, hidden), (Changed, yes), true),
            ((Gone, yes), (Changed, no), false),
            ((Gone, hidden), (Unchanged, no), false),
        ] {
            assert_eq!(takes_copies(&[one, other]), takes, "{one:?}, {other:?}");
            assert_eq!(takes_copies(&[other, one]), takes, "{other:?}, {one:?}");
        }
        assert!(!takes_copies(&[]));
    }
}
