//! What each part has to be allowed, in one list that preflight checks and that the printed Role is made from.

use std::{collections::BTreeMap, fmt::Write as _};

use rollback_core::{Error, Result, backend::Readiness};
use serde_json::{Value, json};

use crate::{Client, object::Resource};

/// One right: verbs on a resource of one namespace, and what they are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// The API group, empty for the core one.
    pub group: &'static str,
    /// The resource, with its subresource if it has one: `pods/log`.
    pub resource: &'static str,
    /// As RBAC spells them.
    pub verbs: &'static [&'static str],
    /// What for, as in "bring the recorded template back".
    pub why: &'static str,
}

impl Access {
    pub(crate) const fn to(resource: Resource, verbs: &'static [&'static str], why: &'static str) -> Self {
        Self { group: resource.group, resource: resource.plural, verbs, why }
    }

    /// Asks the API server whether we may (`SelfSubjectAccessReview`, which every user may ask). `name`: of the one object
    /// that is meant, for roles that name it.
    ///
    /// # Errors
    /// What kept the API server from answering.
    pub(crate) async fn prove(
        &self,
        client: &Client,
        namespace: &str,
        name: Option<&str>,
        mut ready: Readiness,
    ) -> Result<Readiness> {
        let (resource, subresource) = self.resource.split_once('/').unwrap_or((self.resource, ""));
        let mut missing = Vec::new();
        for verb in self.verbs {
            let mut asked = json!({
                "namespace": namespace, "verb": verb, "group": self.group, "resource": resource,
                "subresource": subresource,
            });
            // A list is not of one object.
            if let (Some(name), false) = (name, ["list", "watch", "create"].contains(verb)) {
                asked["name"] = json!(name);
            }
            let review = json!({
                "apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
                "spec": { "resourceAttributes": asked },
            });
            let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
            let answer = client.review("asking what we may do", path, &review).await?;
            if answer.pointer("/status/allowed").and_then(Value::as_bool) != Some(true) {
                missing.push(*verb);
            }
        }
        let what =
            if self.group.is_empty() { self.resource.to_owned() } else { format!("{}.{}", self.resource, self.group) };
        if missing.is_empty() {
            ready.proved.push(format!("may {} ({} {what})", self.why, self.verbs.join(", ")).into());
        } else {
            ready.refused.push(
                format!(
                    "may not {} {what} in namespace {namespace}, which it takes to {}; grant it by a Role",
                    missing.join(", "),
                    self.why
                )
                .into(),
            );
        }
        Ok(ready)
    }
}

/// These rights as a Role, in YAML for `kubectl apply`.
///
/// # Errors
/// `Invalid` when the name or the namespace is none.
pub fn role(name: &str, namespace: &str, rights: &[Access]) -> Result<String> {
    for (what, name) in [("role", name), ("namespace", namespace)] {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
        if name.is_empty() || name.len() > 63 || !name.chars().all(plain) {
            return Err(Error::invalid(format!("the {what} is {name:?}; 1 to 63 of a-z, 0-9, - and . are accepted")));
        }
    }
    let mut merged: BTreeMap<(&str, &str), Vec<&str>> = BTreeMap::new();
    for right in rights {
        let verbs = merged.entry((right.group, right.resource)).or_default();
        for verb in right.verbs {
            if !verbs.contains(verb) {
                verbs.push(verb);
            }
        }
    }
    let mut yaml = format!(
        "apiVersion: rbac.authorization.k8s.io/v1\nkind: Role\nmetadata: {{name: {name}, namespace: {namespace}}}\nrules:\n"
    );
    for ((group, resource), verbs) in merged {
        writeln!(yaml, "- {{apiGroups: [\"{group}\"], resources: [{resource}], verbs: [{}]}}", verbs.join(", "))
            .expect("a string takes any text");
    }
    Ok(yaml)
}
