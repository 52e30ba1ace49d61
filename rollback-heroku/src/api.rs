//! What we read of the API's resources: only what is needed. Fields that we do not know are passed over.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::Value;

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct App {
    pub(crate) id: String,
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) maintenance: bool,
    pub(crate) owner: Option<User>,
    pub(crate) stack: Option<Named>,
    /// An object in the schema, a bare string in some answers.
    #[serde(default)]
    pub(crate) generation: Value,
}

impl App {
    /// Whether the app is of the generation of Cloud Native Buildpacks.
    pub(crate) fn is_fir(&self) -> bool {
        self.generation.as_str().or_else(|| self.generation["name"].as_str()) == Some("fir")
    }

    pub(crate) fn is_container(&self) -> bool {
        self.stack.as_ref().is_some_and(|stack| stack.name == "container")
    }
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Named {
    pub(crate) name: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct Ref {
    pub(crate) id: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct User {
    #[serde(default)]
    pub(crate) id: String,
    #[serde(default)]
    pub(crate) email: String,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Release {
    pub(crate) id: String,
    pub(crate) version: u64,
    pub(crate) status: Status,
    #[serde(default)]
    pub(crate) current: bool,
    #[serde(default)]
    pub(crate) description: Option<String>,
    #[serde(default)]
    pub(crate) slug: Option<Ref>,
    #[serde(default)]
    pub(crate) artifacts: Vec<Artifact>,
    #[serde(default)]
    pub(crate) addon_plan_names: BTreeSet<String>,
    #[serde(default)]
    pub(crate) eligible_for_rollback: Option<bool>,
    #[serde(default)]
    pub(crate) user: User,
    pub(crate) created_at: Timestamp,
    pub(crate) updated_at: Timestamp,
}

impl Release {
    pub(crate) fn description(&self) -> &str {
        self.description.as_deref().unwrap_or_default()
    }

    /// What it runs, `slug:…` or `oci:…`, where it tells: releases of container images do not.
    pub(crate) fn code(&self) -> Option<String> {
        let slug = self.slug.as_ref().map(|slug| format!("slug:{}", slug.id));
        let image = || self.artifacts.iter().find(|artifact| artifact.kind == "oci-image");
        slug.or_else(|| image().map(|image| format!("oci:{}", image.id)))
    }
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Artifact {
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) id: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Status {
    Pending,
    Succeeded,
    Failed,
    Expired,
    /// One that was added since this was written: nothing is known of it.
    #[serde(other)]
    Other,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Slug {
    #[serde(default)]
    pub(crate) process_types: BTreeMap<String, Value>,
    #[serde(default)]
    pub(crate) deleted_at: Option<Timestamp>,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Build {
    pub(crate) id: String,
    pub(crate) status: Status,
    pub(crate) source_blob: SourceBlob,
    #[serde(default)]
    pub(crate) slug: Option<Ref>,
    #[serde(default)]
    pub(crate) release: Option<Ref>,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct SourceBlob {
    #[serde(default)]
    pub(crate) checksum: Option<String>,
    #[serde(default)]
    pub(crate) version_description: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Source {
    pub(crate) source_blob: SourceUrls,
}

#[derive(Clone, Deserialize)]
pub(crate) struct SourceUrls {
    pub(crate) get_url: String,
    pub(crate) put_url: String,
}

/// Both are signed.
impl std::fmt::Debug for SourceUrls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SourceUrls")
    }
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Dyno {
    pub(crate) id: String,
    pub(crate) name: String,
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) state: String,
    #[serde(default)]
    pub(crate) release: Option<DynoRelease>,
    pub(crate) updated_at: Timestamp,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct DynoRelease {
    pub(crate) version: u64,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Formation {
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) quantity: u64,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Feature {
    pub(crate) enabled: bool,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Account {
    pub(crate) id: String,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Collaborator {
    pub(crate) user: User,
    #[serde(default)]
    pub(crate) permissions: Vec<Named>,
    #[serde(default)]
    pub(crate) role: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Coupling {
    pub(crate) pipeline: Ref,
    pub(crate) stage: String,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct PromotionTarget {
    pub(crate) app: Ref,
    pub(crate) status: Status,
    #[serde(default)]
    pub(crate) error_message: Option<String>,
    #[serde(default)]
    pub(crate) release: Option<Ref>,
}

#[derive(Clone, Deserialize)]
pub(crate) struct LogSession {
    pub(crate) logplex_url: String,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Series {
    #[serde(default)]
    pub(crate) data: BTreeMap<String, Vec<Option<f64>>>,
    pub(crate) start_time: Timestamp,
    /// Minutes as a number in Heroku's own types, `1m0s` in its command line's tests.
    pub(crate) step: Value,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generation_is_an_object_or_a_bare_string() {
        for (json, fir) in [
            (r#"{"id": "1", "name": "shop", "generation": {"id": "2", "name": "fir"}}"#, true),
            (r#"{"id": "1", "name": "shop", "generation": "fir"}"#, true),
            (r#"{"id": "1", "name": "shop", "generation": {"name": "cedar"}}"#, false),
            (r#"{"id": "1", "name": "shop"}"#, false),
        ] {
            assert_eq!(serde_json::from_str::<App>(json).unwrap().is_fir(), fir, "{json}");
        }
    }

    #[test]
    fn a_status_that_was_added_since_is_read() {
        assert_eq!(serde_json::from_str::<Status>("\"quarantined\"").unwrap(), Status::Other);
    }
}
