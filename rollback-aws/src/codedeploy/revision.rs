//! Revisions as CodeDeploy knows them: a bundle in S3 or GitHub, or the text of an AppSpec.

use aws_sdk_codedeploy::types::{
    AppSpecContent, BundleType, GitHubLocation, RevisionLocation, RevisionLocationType, S3Location,
};
use rollback_core::{Error, Result, model::Revision};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// What is deployed: a bundle in S3 or GitHub for EC2 and on-premises, the text of an AppSpec for ECS and Lambda.
///
/// ```
/// use rollback_aws::codedeploy::Artefact;
///
/// let bundle = Artefact::s3("builds", "shop/42.zip").version("3HL4kqtJlcpXroDTDmJ").revision()?;
/// assert_eq!(bundle.id.as_str(), "s3://builds/shop/42.zip?version=3HL4kqtJlcpXroDTDmJ");
/// # Ok::<(), rollback_core::Error>(())
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Artefact(Place);

#[derive(Clone, PartialEq, Eq)]
enum Place {
    S3 { bucket: String, key: String, version: Option<String>, e_tag: Option<String>, bundle: String },
    GitHub { repository: String, commit: String },
    AppSpec { sha256: String, content: Option<String>, raw: bool },
}

impl Artefact {
    /// A bundle in S3; its kind by the ending of its key (`.zip`, `.tar`, `.tgz` or `.tar.gz`, `.yaml`, `.json`), a zip
    /// without one.
    ///
    /// Name the version or the ETag where you can: a key that is overwritten would be rolled back to what is there then.
    pub fn s3(bucket: impl Into<String>, key: impl Into<String>) -> Self {
        let key = key.into();
        let kinds = [
            (".tar.gz", "tgz"),
            (".tgz", "tgz"),
            (".tar", "tar"),
            (".yaml", "YAML"),
            (".yml", "YAML"),
            (".json", "JSON"),
        ];
        let bundle = kinds.iter().find(|(end, _)| key.ends_with(end)).map_or("zip", |(_, kind)| kind).into();
        Self(Place::S3 { bucket: bucket.into(), key, version: None, e_tag: None, bundle })
    }

    /// The object's version in S3.
    #[must_use]
    pub fn version(mut self, id: impl Into<String>) -> Self {
        if let Place::S3 { version, .. } = &mut self.0 {
            *version = Some(id.into());
        }
        self
    }

    /// The object's ETag in S3.
    #[must_use]
    pub fn e_tag(mut self, tag: impl Into<String>) -> Self {
        if let Place::S3 { e_tag, .. } = &mut self.0 {
            *e_tag = Some(tag.into());
        }
        self
    }

    /// A commit in GitHub: `owner/repository`, and its whole id.
    pub fn github(repository: impl Into<String>, commit: impl Into<String>) -> Self {
        Self(Place::GitHub { repository: repository.into(), commit: commit.into() })
    }

    /// The text of an AppSpec, JSON or YAML, for ECS and Lambda. Prefer JSON for Lambda: only that can be given its
    /// `CurrentVersion` anew when it is deployed again.
    pub fn app_spec(content: impl Into<String>) -> Self {
        let content = content.into();
        Self(Place::AppSpec { sha256: sha256(&content), content: Some(content), raw: false })
    }

    /// It as a revision, for a rollout.
    ///
    /// # Errors
    /// `Invalid` when a name in it is empty or no printable text.
    pub fn revision(&self) -> Result<Revision> {
        Revision::new(self.id())?
            .with_spec(&Spec { artefact: self.clone(), deployment: None, file_exists: None }.write())
    }

    /// Bucket, key and version of a bundle in S3.
    pub fn s3_object(&self) -> Option<(&str, &str, Option<&str>)> {
        match &self.0 {
            Place::S3 { bucket, key, version, .. } => Some((bucket, key, version.as_deref())),
            _ => None,
        }
    }

    /// Repository and commit of a bundle in GitHub.
    pub fn github_commit(&self) -> Option<(&str, &str)> {
        match &self.0 {
            Place::GitHub { repository, commit } => Some((repository, commit)),
            _ => None,
        }
    }

    /// The text of an AppSpec, where it is known.
    pub fn app_spec_text(&self) -> Option<&str> {
        match &self.0 {
            Place::AppSpec { content, .. } => content.as_deref(),
            _ => None,
        }
    }

    /// The ETag of a bundle in S3, if it was named.
    #[cfg(feature = "s3")]
    pub(super) fn s3_e_tag(&self) -> Option<&str> {
        match &self.0 {
            Place::S3 { e_tag, .. } => e_tag.as_deref(),
            _ => None,
        }
    }

    /// The functions of an AppSpec, and the versions that it brings in front of users; none where it is YAML.
    #[cfg(feature = "lambda")]
    pub(super) fn lambda_versions(&self) -> Vec<(String, String)> {
        let mut found = Vec::new();
        for_each(&mut self.json().unwrap_or_default(), LAMBDA, |properties| {
            let text = |name: &str| properties[name].as_str().map(str::to_owned);
            found.extend(text("Name").zip(text("TargetVersion")));
        });
        found
    }

    /// The task definitions of an AppSpec, as it names them; none where it is YAML.
    #[cfg(feature = "ecs")]
    pub(crate) fn task_definitions(&self) -> Vec<String> {
        let mut found = Vec::new();
        for_each(&mut self.json().unwrap_or_default(), "AWS::ECS::Service", |properties| {
            found.extend(properties["TaskDefinition"].as_str().map(str::to_owned));
        });
        found
    }

    #[cfg(any(feature = "ecs", feature = "lambda"))]
    fn json(&self) -> Option<Value> {
        serde_json::from_str(self.app_spec_text()?).ok()
    }

    /// Its id: where it is, or the hash of what it says. The id of a long place is a hash too.
    pub(super) fn id(&self) -> String {
        let id = match &self.0 {
            Place::S3 { bucket, key, version, e_tag, .. } => {
                let more = |name: &str, it: &Option<String>| it.as_ref().map(|it| format!("{name}={it}"));
                let more: Vec<String> = [more("version", version), more("etag", e_tag)].into_iter().flatten().collect();
                let mark = if more.is_empty() { "" } else { "?" };
                format!("s3://{bucket}/{key}{mark}{}", more.join("&"))
            }
            Place::GitHub { repository, commit } => format!("github:{repository}@{commit}"),
            Place::AppSpec { sha256, content, .. } => {
                format!(
                    "appspec:{}",
                    content.as_deref().and_then(lasting).map_or_else(|| sha256.clone(), |it| self::sha256(&it))
                )
            }
        };
        if id.len() <= 256 { id } else { format!("sha256:{}", sha256(&id)) }
    }

    /// The hash by which CodeDeploy knows a text, where it must still be fetched.
    pub(super) fn unfetched(&self) -> bool {
        matches!(&self.0, Place::AppSpec { content: None, .. })
    }

    /// Whether CodeDeploy shows this one when it means that one: it may tell an ETag or a version that was never given.
    pub(super) fn is(&self, other: &Self) -> bool {
        let agree = |a: &Option<String>, b: &Option<String>| a.is_none() || b.is_none() || a == b;
        match (&self.0, &other.0) {
            (
                Place::S3 { bucket, key, version, e_tag, .. },
                Place::S3 { bucket: b, key: k, version: v, e_tag: e, .. },
            ) => bucket == b && key == k && agree(version, v) && agree(e_tag, e),
            (Place::AppSpec { sha256, .. }, Place::AppSpec { sha256: other, .. }) => sha256 == other,
            (a, b) => a == b,
        }
    }

    /// With another `CurrentVersion`: what a Lambda alias is at when this is deployed again. As it is, if it is no JSON or
    /// says the same already.
    pub(super) fn starting_at(&self, current: &str) -> Self {
        let Place::AppSpec { content: Some(content), .. } = &self.0 else { return self.clone() };
        let Some(mut spec) = serde_json::from_str::<Value>(content).ok() else { return self.clone() };
        let mut changed = false;
        for_each(&mut spec, LAMBDA, |properties| {
            changed |= properties["CurrentVersion"] != current;
            properties["CurrentVersion"] = json!(current);
        });
        if changed { Self::app_spec(spec.to_string()) } else { self.clone() }
    }

    pub(super) fn read(location: &RevisionLocation) -> Option<Self> {
        if let Some(it) = location.s3_location() {
            let text = |it: Option<&str>| it.filter(|it| !it.is_empty()).map(str::to_owned);
            return Some(Self(Place::S3 {
                bucket: text(it.bucket())?,
                key: text(it.key())?,
                version: text(it.version()),
                e_tag: text(it.e_tag()),
                bundle: it.bundle_type().map_or("zip", BundleType::as_str).into(),
            }));
        }
        if let Some(it) = location.git_hub_location() {
            return Some(Self::github(it.repository()?, it.commit_id()?));
        }
        let (sha256, content, raw) = match (location.app_spec_content(), string_of(location)) {
            (Some(it), _) => (it.sha256()?.to_owned(), it.content().map(str::to_owned), false),
            (None, Some((sha256, content))) => (sha256?, content, true),
            (None, None) => return None,
        };
        Some(Self(Place::AppSpec { sha256, content: content.filter(|it| !it.is_empty()), raw }))
    }

    pub(super) fn write(&self) -> RevisionLocation {
        let location = RevisionLocation::builder();
        match &self.0 {
            Place::S3 { bucket, key, version, e_tag, bundle } => {
                let place = S3Location::builder().bucket(bucket).key(key).bundle_type(bundle.as_str().into());
                let place = place.set_version(version.clone()).set_e_tag(e_tag.clone());
                location.revision_type(RevisionLocationType::S3).s3_location(place.build()).build()
            }
            Place::GitHub { repository, commit } => {
                let place = GitHubLocation::builder().repository(repository).commit_id(commit).build();
                location.revision_type(RevisionLocationType::GitHub).git_hub_location(place).build()
            }
            Place::AppSpec { sha256, content, raw } => {
                let spec = AppSpecContent::builder().set_content(content.clone()).sha256(sha256).build();
                if *raw && content.is_none() {
                    return raw_location(sha256);
                }
                location.revision_type(RevisionLocationType::AppSpecContent).app_spec_content(spec).build()
            }
        }
    }

    fn seal(&self) -> Value {
        match &self.0 {
            Place::S3 { bucket, key, version, e_tag, bundle } => {
                json!({ "s3": { "bucket": bucket, "key": key, "version": version, "e_tag": e_tag, "bundle": bundle } })
            }
            Place::GitHub { repository, commit } => json!({ "github": { "repository": repository, "commit": commit } }),
            Place::AppSpec { sha256, content, raw } => {
                json!({ "app_spec": { "sha256": sha256, "content": content, "raw": raw } })
            }
        }
    }

    fn unseal(it: &Value) -> Option<Self> {
        let text = |it: &Value| it.as_str().map(str::to_owned);
        let (s3, github, spec) = (&it["s3"], &it["github"], &it["app_spec"]);
        Some(Self(if s3.is_object() {
            Place::S3 {
                bucket: text(&s3["bucket"])?,
                key: text(&s3["key"])?,
                version: text(&s3["version"]),
                e_tag: text(&s3["e_tag"]),
                bundle: text(&s3["bundle"])?,
            }
        } else if github.is_object() {
            Place::GitHub { repository: text(&github["repository"])?, commit: text(&github["commit"])? }
        } else {
            Place::AppSpec {
                sha256: text(&spec["sha256"])?,
                content: text(&spec["content"]),
                raw: spec["raw"].as_bool() == Some(true),
            }
        }))
    }

    /// What is missing in it, if anything is.
    pub(super) fn fault(&self) -> Option<String> {
        let empty = match &self.0 {
            Place::S3 { bucket, key, .. } => bucket.is_empty() || key.is_empty(),
            Place::GitHub { repository, commit } => !repository.contains('/') || commit.is_empty(),
            Place::AppSpec { content, .. } => content.as_ref().is_some_and(|it| it.trim().is_empty()),
        };
        empty.then(|| format!("{} names no bundle; a bucket and a key, owner/repository and a commit, or an AppSpec's text are accepted", self.id()))
    }

    pub(super) const fn is_app_spec(&self) -> bool {
        matches!(self.0, Place::AppSpec { .. })
    }

    /// Whether an ETag, a version, a commit or a hash pins what it is.
    pub(super) const fn is_pinned(&self) -> bool {
        !matches!(&self.0, Place::S3 { version: None, e_tag: None, .. })
    }

    /// Whether it is JSON, or has no `CurrentVersion` of its own.
    pub(super) fn can_start_from_any_version(&self) -> bool {
        match &self.0 {
            Place::AppSpec { content: Some(content), .. } => lasting(content).is_some(),
            _ => true,
        }
    }
}

impl std::fmt::Debug for Artefact {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The content of an AppSpec may hold what is nobody else's business.
        f.debug_tuple("Artefact").field(&self.id()).finish()
    }
}

/// What a revision's spec holds.
#[derive(Clone, Debug)]
pub(super) struct Spec {
    pub(super) artefact: Artefact,
    /// Of a baseline: the group's last deployment when it was read.
    pub(super) deployment: Option<String>,
    /// Of a baseline: what its own deployment did about files that are there already.
    pub(super) file_exists: Option<String>,
}

impl Spec {
    pub(super) fn write(&self) -> Value {
        json!({ "artefact": self.artefact.seal(), "deployment": self.deployment, "file_exists": self.file_exists })
    }

    pub(super) fn of(revision: &Revision) -> Result<Self> {
        let sealed: Value = revision.spec.open()?;
        let artefact = Artefact::unseal(&sealed["artefact"]).ok_or_else(|| {
            Error::invalid(format!(
                "revision {} says not what it is; make it by Artefact::s3, github or app_spec",
                revision.id
            ))
        })?;
        if let Some(fault) = artefact.fault() {
            return Err(Error::invalid(fault));
        }
        let text = |name: &str| sealed[name].as_str().map(str::to_owned);
        Ok(Self { artefact, deployment: text("deployment"), file_exists: text("file_exists") })
    }
}

/// What of an AppSpec is the same however often it is deployed: without `CurrentVersion`. None where it cannot be told: YAML.
fn lasting(content: &str) -> Option<String> {
    let mut spec: Value = serde_json::from_str(content).ok()?;
    for_each(&mut spec, LAMBDA, |properties| {
        if let Some(properties) = properties.as_object_mut() {
            properties.remove("CurrentVersion");
        }
    });
    Some(spec.to_string())
}

/// The kind of resource that is a Lambda function.
const LAMBDA: &str = "AWS::Lambda::Function";

/// The properties of each resource of this kind in an AppSpec.
fn for_each(spec: &mut Value, kind: &str, mut act: impl FnMut(&mut Value)) {
    for resource in spec.get_mut("Resources").and_then(Value::as_array_mut).into_iter().flatten() {
        for (_, resource) in resource.as_object_mut().into_iter().flatten() {
            if resource["Type"] == kind {
                act(&mut resource["Properties"]);
            }
        }
    }
}

/// The older way to say an AppSpec's text.
fn string_of(location: &RevisionLocation) -> Option<(Option<String>, Option<String>)> {
    location.string().map(|it| (it.sha256().map(str::to_owned), it.content().map(str::to_owned)))
}

#[expect(deprecated, reason = "deployments of before AppSpecContent are shown so")]
fn raw_location(sha256: &str) -> RevisionLocation {
    let raw = aws_sdk_codedeploy::types::RawString::builder().sha256(sha256).build();
    RevisionLocation::builder().revision_type(RevisionLocationType::String).string(raw).build()
}

pub(super) fn sha256(text: &str) -> String {
    Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(current: &str, target: &str) -> String {
        json!({ "version": 0.0, "Resources": [{ "shop": { "Type": "AWS::Lambda::Function", "Properties": {
            "Name": "shop", "Alias": "live", "CurrentVersion": current, "TargetVersion": target } } }] })
        .to_string()
    }

    #[test]
    fn an_app_spec_is_the_same_revision_from_whatever_version_it_starts() {
        let (one, other) = (Artefact::app_spec(spec("1", "2")), Artefact::app_spec(spec("7", "2")));
        assert_eq!(one.id(), other.id());
        assert_ne!(one.id(), Artefact::app_spec(spec("1", "3")).id());
        assert_eq!(one.starting_at("7"), other);
        assert_eq!(one.starting_at("1"), one);
        let yaml = Artefact::app_spec("version: 0.0\nResources: []");
        assert_eq!(yaml.starting_at("7"), yaml);
        assert!(one.can_start_from_any_version() && !yaml.can_start_from_any_version());
    }

    #[test]
    fn a_revision_is_read_back_as_it_was_sealed_and_prints_no_content() {
        for artefact in [
            Artefact::s3("builds", "shop/42.tar.gz").version("v1").e_tag("abc"),
            Artefact::github("acme/shop", "0123abc"),
            Artefact::app_spec("version: 0.0 # hush"),
        ] {
            let revision = artefact.revision().unwrap();
            let read = Spec::of(&revision).unwrap().artefact;
            assert_eq!(read, artefact);
            assert_eq!(Artefact::read(&artefact.write()).unwrap(), artefact);
            assert!(!format!("{revision:?} {artefact:?}").contains("hush"));
        }
        assert_eq!(Artefact::s3("b", "k".repeat(300)).id().len(), "sha256:".len() + 64);
        assert!(
            Spec::of(&Artefact::s3("", "k").revision().unwrap())
                .unwrap_err()
                .to_string()
                .contains("a bucket and a key")
        );
    }

    #[test]
    fn a_place_is_known_again_by_what_both_tell() {
        let given = Artefact::s3("b", "k.zip");
        assert!(given.is(&given.clone().e_tag("t")));
        assert!(!given.clone().e_tag("u").is(&given.clone().e_tag("t")));
        assert!(!given.is(&Artefact::s3("b", "l.zip")));
    }
}
