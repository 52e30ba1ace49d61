//! What is proved before anything changes.

use std::fmt::Display;

use rollback_core::{
    Error, ErrorKind, Result,
    backend::Readiness,
    model::{Change, Goal, Note},
};
use serde_json::Value;

use super::{
    ATTEMPT, Kind, Pair, Workload, annotation, configs,
    configs::{Config, There},
    convergence::{self, Convergence},
    hash, room, template,
};
use crate::{
    Client,
    object::{AUTOSCALERS, LIMIT_RANGES, RESOURCE_QUOTAS, Write, map, number, text},
};

impl Workload {
    pub(super) async fn prove(&self, change: &Change, pair: &Pair) -> Result<Readiness> {
        let mut ready = Readiness::default();
        let object = match self.read().await {
            Ok(object) => object,
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::Denied) => {
                return Ok(ready.refused(format!("{self} cannot be read: {}", e.chain())));
            }
            Err(e) => return Err(e),
        };
        if text(&object, "/metadata/uid") != pair.baseline.uid {
            return Ok(ready.refused(format!("{self} was deleted and made again since the baseline was recorded")));
        }
        if pair.candidate.uid != pair.baseline.uid {
            return Ok(
                ready.refused(format!("the candidate was made for another object than {self} is now; make it again"))
            );
        }
        let live = template(&object);
        if pair.baseline.stood.is_none() && !pair.is_wanted(live, Goal::Baseline) {
            return Ok(ready.refused(format!(
                "the way back is the revision that was promoted last, {}, and {self} has another template: put one that \
                 works there by hand (kubectl rollout undo), and start again when all its pods are of it",
                change.baseline.id
            )));
        }
        if let Some(made_from) = &pair.candidate.made_from
            && *made_from != hash(&pair.baseline.template)
            && pair.candidate.template != pair.baseline.template
        {
            return Ok(ready.refused(format!(
                "the pod template of {self} has changed since the candidate was made from it, and that change would be \
                 undone; make the candidate again"
            )));
        }
        for right in self.rights() {
            let of_this_one = right.resource == self.kind.resource().plural;
            let only_looks = right.verbs.iter().all(|verb| ["get", "list", "watch"].contains(verb));
            let optional = only_looks && !(of_this_one && right.verbs == ["get"]);
            let found = right.prove(
                &self.client,
                &self.namespace,
                of_this_one.then_some(self.name.as_str()),
                Readiness::default(),
            );
            let mut found = found.await?;
            if optional {
                // What is only looked at is not worth a refusal.
                found.not_provable.append(&mut found.refused);
            }
            ready = ready.and(found);
        }
        if let Some(why) = convergence::never(self.kind, &object) {
            ready = ready.refused(format!("{self} would never converge: {why}"));
        }
        if let Convergence::Working(why) | Convergence::Failed(why) = convergence::convergence(self.kind, &object)
            && convergence::never(self.kind, &object).is_none()
        {
            ready = ready.not_provable(format!("that the baseline works when it is back: as it stands, {why}"));
        }
        if let Some(why) = waits_for_a_pod(self.kind, &object) {
            ready = ready.refused(format!("{self} would not get anywhere: {why}"));
        }
        if convergence::wanted(self.kind, &object) == 0 {
            let why = match self.kind {
                Kind::DaemonSet => "runs on no node",
                Kind::Deployment | Kind::StatefulSet => "is scaled to 0",
            };
            ready = ready.refused(format!("{self} {why}: nothing would show whether the candidate works"));
        }
        if ready.refused.is_empty() {
            ready = self.try_out(change, pair, &object, ready).await?;
        }
        let flux = self.flux(&object);
        match self.suspends_flux {
            // Flux may be held off by us; Argo CD may not.
            Some(says) if !flux.is_empty() && gitops(&object).is_none_or(|owner| !owner.starts_with("Argo")) => {
                for flux in flux {
                    ready = flux.prove(says, ready).await?;
                }
            }
            _ => ready = owner(&object, self, self.despite_gitops.as_ref(), ready),
        }
        if let Some(manager) = applier(&object) {
            ready = ready.not_restored(format!(
                "which fields of the template {manager} owns: after a rollback its next server-side apply meets conflicts \
                 (--force-conflicts goes ahead), and leaves what it has no more and the rollback brought back"
            ));
        }
        ready = self.scaler(ready).await?;
        let pods = [convergence::wanted(self.kind, &object), room::surge(self.kind, &object)];
        let templates = [&pair.baseline.template, &pair.candidate.template];
        ready = room(&self.client, &self.namespace, self.kind, templates, (templates[0], pods), ready).await?;
        // As the API server fills it in.
        ready = match object.pointer("/spec/revisionHistoryLimit").and_then(Value::as_i64).unwrap_or(10) {
            0 => ready.not_provable(
                "that kubectl rollout undo finds a way back by hand: no history is kept (revisionHistoryLimit is 0), and \
                 the recorded template is in this record alone",
            ),
            kept => ready.proved(format!("the last {kept} templates are kept for kubectl rollout undo too")),
        };
        ready = self.configuration(pair, ready).await?;
        if self.kind == Kind::StatefulSet
            && text(&object, "/spec/podManagementPolicy") != "Parallel"
            && !self.deletes_stuck_pods
        {
            ready = ready.not_restored(
                "a pod that never becomes ready holds up the way back until somebody deletes it: allow that with \
                 delete_stuck_pods",
            );
        }
        Ok(ready.not_provable("that there is room in the cluster for the new pods, and that they start"))
    }

    /// Both ways, carried out by the API server with admission and validation, and not kept.
    async fn try_out(&self, change: &Change, pair: &Pair, object: &Value, ready: Readiness) -> Result<Readiness> {
        let mut ready = ready;
        let (there, recorded) = (&pair.candidate.template, &pair.baseline.template);
        let ways = [
            (Some(there), &change.candidate.id, "the candidate's template", false),
            (Some(recorded), &change.baseline.id, "the recorded template", true),
            (
                pair.restored.as_ref().map(|restored| &restored.template),
                &change.baseline.id,
                "the recorded template with its configuration",
                true,
            ),
        ];
        for (to, id, what, back) in ways {
            let Some(to) = to else { continue };
            let applied = if back { pair.baseline.applied_again(object) } else { None };
            // What stands there already would be no change of the template, which admission may let pass unseen.
            let tried = if template(object) == to { touched(to) } else { to.clone() };
            let patch = self.patch(object, &tried, applied, id.as_str(), "tried out");
            let answer = self.write(&patch, Write::Dry).await.map(|after| *template(&after) == tried);
            let changed = matches!(answer, Ok(false));
            ready = Tried { what, of: self, back }.told(answer, ready)?;
            if changed {
                ready = ready.refused("make the candidate with Workload::template, which takes along what is changed");
            }
        }
        Ok(ready)
    }

    async fn scaler(&self, ready: Readiness) -> Result<Readiness> {
        if self.kind == Kind::DaemonSet {
            return Ok(ready);
        }
        match scaler_of(&self.client, &self.namespace, self.kind, &[&self.name]).await {
            // Said already, with the rights.
            Err(e) if matches!(e.kind(), ErrorKind::Denied | ErrorKind::NotFound) => Ok(ready),
            Ok(Some((who, _))) => {
                Ok(ready.proved(format!("the number of pods is left to HorizontalPodAutoscaler {who}")))
            }
            Ok(None) => Ok(ready),
            Err(e) => Err(e),
        }
    }

    async fn configuration(&self, pair: &Pair, mut ready: Readiness) -> Result<Readiness> {
        ready = self.try_copies(pair, ready).await?;
        let copied = |config: &Config| pair.candidate.copies.iter().any(|it| it.to == config.name);
        for config in configs::of(&pair.candidate.template).into_iter().filter(|config| !copied(config)) {
            ready = match config.is_there(&self.client, &self.namespace).await? {
                There::Yes => ready.proved(format!("{config} is there")),
                There::No if config.is_needed() => ready.refused(format!(
                    "{config}, which the candidate's pods need, is not in namespace {}",
                    self.namespace
                )),
                There::No => ready,
                There::Hidden => ready.not_provable(format!("that {config} is there: it may not be read")),
            };
        }
        for config in &pair.baseline.configs {
            if pair.baseline.copies.iter().any(|it| (it.of.secret, &it.of.name) == (config.secret, &config.name)) {
                continue;
            }
            let found = config.find(&self.client, &self.namespace).await?;
            if found.is_some_and(|found| self.original_of(&found).is_some()) {
                ready = ready.proved(format!("{config} is a copy that cannot change"));
                continue;
            }
            ready = ready.not_restored(format!("what {config} holds: it is no part of the revision"));
        }
        Ok(ready)
    }
}

/// What the API server was asked to try out, for the words in which its answer is told.
pub(crate) struct Tried<'a> {
    /// As in "the API server accepts …".
    pub(crate) what: &'a str,
    /// What was read for it.
    pub(crate) of: &'a dyn Display,
    /// Whether it is the way back.
    pub(crate) back: bool,
}

impl Tried<'_> {
    /// The answer: whether it would come in as it was sent.
    pub(crate) fn told(self, answer: Result<bool>, ready: Readiness) -> Result<Readiness> {
        let Self { what, of, back } = self;
        Ok(match answer {
            Ok(true) => ready.proved(format!("the API server accepts {what} (dry run)")),
            Ok(false) => {
                ready.refused(format!("the API server, or an admission webhook, changes {what} as it comes in"))
            }
            // Somebody, as its controller, wrote the object since it was read: asked again at the next try.
            Err(e) if e.kind() == ErrorKind::Conflict => {
                let text = format!("{of} changed while it was looked at");
                return Err(Error::new(ErrorKind::Unavailable, text).because(e));
            }
            Err(e) if e.is_transient() => return Err(e),
            // By a webhook that takes no dry runs, whatever it says to the real thing.
            Err(e) if e.kind() == ErrorKind::Unsupported => {
                ready.not_provable(format!("that the API server accepts {what}: {}", e.chain()))
            }
            Err(e) if back => ready.no_way_back(format!("{what} would not be accepted: {}", e.chain())),
            Err(e) => ready.refused(format!("{what} would not be accepted: {}", e.chain())),
        })
    }
}

/// Whether the quotas and limits of the namespace let the pods of the baseline's and of the candidate's template in, on both
/// ways. The height: so many pods go from this template to the candidate's, and so many more are there meanwhile.
pub(crate) async fn room(
    client: &Client,
    namespace: &str,
    kind: Kind,
    [old, new]: [&Value; 2],
    (from, pods): (&Value, [i64; 2]),
    mut ready: Readiness,
) -> Result<Readiness> {
    let mut lists = Vec::new();
    for resource in [RESOURCE_QUOTAS, LIMIT_RANGES] {
        lists.push(match client.list(resource, namespace, "").await {
            // Said already, with the rights.
            Err(e) if e.kind() == ErrorKind::Denied => return Ok(ready),
            list => list?,
        });
    }
    let [quotas, ranges] = &*lists else { return Ok(ready) };
    for why in room::refused(new, ranges) {
        ready = ready.refused(format!("the candidate's pods would be refused: {why}"));
    }
    for why in room::refused(old, ranges) {
        ready = ready.no_way_back(format!("the baseline's pods would be refused: {why}"));
    }
    let found = room::room(kind, from, new, pods, quotas, ranges);
    if found == room::Room::default() && !quotas.is_empty() {
        ready = ready.proved(format!("the quotas of {namespace} leave room for the change"));
    }
    for why in found.short {
        ready = ready.refused(why);
    }
    // Of what goes, which is not the baseline where both stand side by side.
    for why in found.back.into_iter().filter(|_| from == old) {
        ready = ready.no_way_back(format!("the baseline's pods would be refused: {why}"));
    }
    for what in found.unknown {
        ready = ready.not_provable(what);
    }
    Ok(ready)
}

/// The HorizontalPodAutoscaler that sets the number of pods of one of these workloads, and of which.
pub(crate) async fn scaler_of(
    client: &Client,
    namespace: &str,
    kind: Kind,
    names: &[&str],
) -> Result<Option<(String, String)>> {
    let scalers = client.list(AUTOSCALERS, namespace, "").await?;
    let of = |scaler: &Value| {
        let (of, name) = (text(scaler, "/spec/scaleTargetRef/kind"), text(scaler, "/spec/scaleTargetRef/name"));
        (of == kind.resource().kind && names.contains(&name)).then(|| name.to_owned())
    };
    Ok(scalers.iter().find_map(|scaler| Some((text(scaler, "/metadata/name").to_owned(), of(scaler)?))))
}

/// Who would undo what is done here: refused, unless the user has seen to that.
pub(crate) fn owner(object: &Value, what: &dyn Display, despite: Option<&Note>, ready: Readiness) -> Readiness {
    let Some(owner) = gitops(object) else {
        return ready.proved("no sign that Argo CD or Flux owns it");
    };
    match despite {
        Some(why) => ready.not_provable(format!("{owner} owns {what}, and may undo what is done here; allowed: {why}")),
        None => ready.refused(format!(
            "{owner} owns {what} and would undo what is done here: release by its repository, or suspend it and say so \
             with despite_gitops; a Workload can suspend Flux itself, with suspend_flux"
        )),
    }
}

/// Why the controller of an ordered StatefulSet would replace no pod, whatever its template is.
fn waits_for_a_pod(kind: Kind, object: &Value) -> Option<String> {
    let (wanted, up) = (convergence::wanted(kind, object), number(object, "/status/readyReplicas"));
    let ordered = kind == Kind::StatefulSet && text(object, "/spec/podManagementPolicy") != "Parallel";
    (ordered && up < wanted).then(|| {
        format!(
            "{up} of {wanted} pods are ready, and its controller replaces none before all are \
             (kubernetes/kubernetes#67250): make them ready; or put a template that works there by hand, and delete the \
             pods that are not"
        )
    })
}

/// The same template with an annotation that nobody reads.
fn touched(template: &Value) -> Value {
    let mut touched = template.clone();
    touched["metadata"]["annotations"][ATTEMPT] = Value::from("tried out");
    touched
}

/// Who applied fields of the pod template on the server's side, and is by that their owner until somebody else changes
/// them, as a rollback does.
fn applier(object: &Value) -> Option<&str> {
    let managers = object.pointer("/metadata/managedFields").and_then(Value::as_array).into_iter().flatten();
    let mut appliers =
        managers.filter(|it| text(it, "/operation") == "Apply" && it.pointer("/fieldsV1/f:spec/f:template").is_some());
    appliers.next().map(|it| text(it, "/manager"))
}

/// Argo CD or Flux, by the marks that they leave.
fn gitops(object: &Value) -> Option<String> {
    let label = |name: &str| {
        map(object, "/metadata/labels").find(|(key, _)| *key == name).and_then(|(_, value)| value.as_str())
    };
    if let Some(id) = annotation(object, "argocd.argoproj.io/tracking-id") {
        return Some(format!("Argo CD ({})", id.split(':').next().unwrap_or(id)));
    }
    for (name, what) in [
        ("kustomize.toolkit.fluxcd.io/name", "Flux's Kustomization"),
        ("helm.toolkit.fluxcd.io/name", "Flux's HelmRelease"),
        ("argocd.argoproj.io/instance", "Argo CD"),
    ] {
        if let Some(value) = label(name) {
            return Some(format!("{what} {value}"));
        }
    }
    let managers = object.pointer("/metadata/managedFields").and_then(Value::as_array).into_iter().flatten();
    let known = ["argocd-controller", "argocd-application-controller", "kustomize-controller", "helm-controller"];
    managers.map(|it| text(it, "/manager")).find(|manager| known.contains(manager)).map(|manager| match manager {
        "kustomize-controller" | "helm-controller" => format!("Flux ({manager})"),
        manager => format!("Argo CD ({manager})"),
    })
}
