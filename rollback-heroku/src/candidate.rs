//! What can be put on an app, as a [`Revision`].

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use rollback_core::{Error, ErrorKind, Result, model::Revision};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// A candidate for an [`App`](crate::App): a slug, a tarball that Heroku builds, or container images. Becomes a
/// [`Revision`] by [`revision`](Self::revision).
///
/// | candidate | the revision's id |
/// |---|---|
/// | [`slug`](Self::slug) | `slug:` and the slug's id |
/// | [`source`](Self::source), [`tarball`](Self::tarball) | `source:` and the checksum: the same source is the same revision |
/// | [`image`](Self::image) | `image:` and each process type with the first 12 digits of its image's id |
///
/// ```
/// # use rollback_heroku::Candidate;
/// let slug = Candidate::slug("ff40c84f-a538-4b65-a838-88fdd5245f4b")?.revision()?;
/// assert_eq!(slug.id.as_str(), "slug:ff40c84f-a538-4b65-a838-88fdd5245f4b");
/// # Ok::<(), rollback_core::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Candidate(Spec);

impl Candidate {
    /// A slug of this app, by its id, as in `heroku releases:info --json`.
    ///
    /// # Errors
    /// `Invalid` when it is not a UUID.
    pub fn slug(id: &str) -> Result<Self> {
        check_uuid("a slug's id", id)?;
        Ok(Self(Spec::Slug { slug: id.to_ascii_lowercase() }))
    }

    /// A tarball at an address that Heroku can read, with its SHA-256 in 64 hex digits. Heroku builds it, and refuses it when
    /// the checksum is another. The address may be signed: it is kept as a secret is.
    ///
    /// # Errors
    /// `Invalid` when the address is none of `http` or `https`, or the checksum is none.
    pub fn source(url: &str, sha256: &str) -> Result<Self> {
        rollback_core::web::address(url)?;
        let sha256 = check_sha256(sha256)?;
        Ok(Self(Spec::Source { from: From::Url(url.into()), version: short(&sha256), sha256 }))
    }

    /// A tarball of this machine, read once to know its checksum and again when it is uploaded. It must stay there until the
    /// rollout is over.
    ///
    /// # Errors
    /// `Invalid` when it cannot be read, or is empty.
    pub async fn tarball(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let path = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
        let blob = read(path.clone()).await?;
        if blob.is_empty() {
            return Err(Error::invalid(format!("the tarball {} is empty", path.display())));
        }
        let sha256 = hex(&Sha256::digest(&blob));
        Ok(Self(Spec::Source { from: From::File(path), version: short(&sha256), sha256 }))
    }

    /// With this version, as a commit, which Heroku shows beside the release. By default the first digits of the checksum.
    #[must_use]
    pub fn version(mut self, name: impl Into<String>) -> Self {
        if let Spec::Source { version, .. } = &mut self.0 {
            *version = name.into();
        }
        self
    }

    /// A container image that was pushed to Heroku's registry, by its id (`docker image inspect --format {{.Id}}`), for a
    /// process type. Say it once for each type with [`and_image`](Self::and_image).
    ///
    /// # Errors
    /// `Invalid` when the id is not `sha256:` and 64 hex digits, or the type is none.
    pub fn image(process_type: &str, id: &str) -> Result<Self> {
        Self(Spec::Image { images: BTreeMap::new() }).and_image(process_type, id)
    }

    /// With another image.
    ///
    /// # Errors
    /// As [`image`](Self::image); when this is not a candidate of images.
    pub fn and_image(mut self, process_type: &str, id: &str) -> Result<Self> {
        let Spec::Image { images } = &mut self.0 else {
            return Err(Error::invalid("a slug or a tarball has no images beside it"));
        };
        let good = |c: char| c.is_alphanumeric() || c == '_' || c == '-';
        if process_type.is_empty() || !process_type.chars().all(good) {
            return Err(Error::invalid(format!("{process_type:?} is no process type; letters, digits, - and _ are")));
        }
        let digits = id.strip_prefix("sha256:").ok_or_else(|| {
            Error::invalid(format!("the image {id:?} is not an id; sha256: and 64 hex digits are accepted"))
        })?;
        images.insert(process_type.into(), format!("sha256:{}", check_sha256(digits)?));
        Ok(self)
    }

    /// The revision.
    ///
    /// # Errors
    /// `Invalid` when there are more images than an id has room for.
    pub fn revision(self) -> Result<Revision> {
        Revision::new(self.0.id())?.with_spec(&self.0)
    }
}

/// What a revision of an app seals.
#[derive(Clone, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(crate) enum Spec {
    /// What was read off the app.
    Served(Served),
    Slug {
        slug: String,
    },
    Source {
        from: From,
        sha256: String,
        version: String,
    },
    Image {
        images: BTreeMap<String, String>,
    },
    /// What a promotion puts on its targets.
    Promoted(Promoted),
    /// What was read off the targets of a promotion, by app.
    ServedByAll {
        apps: BTreeMap<String, Served>,
    },
}

/// Where a source is.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum From {
    Url(String),
    File(PathBuf),
}

/// A release that was read off an app: enough to bring it back. No value of a config var, nor a digest of one.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Served {
    pub(crate) release: String,
    pub(crate) version: u64,
    pub(crate) slug: Option<String>,
    pub(crate) code: String,
    /// None when the token may not read them.
    pub(crate) config_keys: Option<BTreeSet<String>>,
    pub(crate) addons: BTreeSet<String>,
    /// Process types that were not up.
    pub(crate) down: BTreeSet<String>,
}

#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Promoted {
    /// The app it comes from: id and name.
    pub(crate) app: String,
    pub(crate) name: String,
    pub(crate) release: String,
    pub(crate) version: u64,
    pub(crate) code: String,
}

impl Served {
    /// What a release that brings this one back must run, where it can be told.
    pub(crate) fn proof(&self) -> Option<String> {
        let slug = self.slug.as_ref().map(|slug| format!("slug:{slug}"));
        slug.or_else(|| self.code.starts_with("oci:").then(|| self.code.clone()))
    }
}

impl Spec {
    pub(crate) fn of(revision: &Revision) -> Result<Self> {
        revision.spec.open().map_err(|e| e.during(format_args!("revision {}", revision.id)))
    }

    fn id(&self) -> String {
        match self {
            Self::Served(served) => served.code.clone(),
            Self::Slug { slug } => format!("slug:{slug}"),
            Self::Source { sha256, .. } => source_id(sha256),
            Self::Image { images } => image_id(images),
            Self::Promoted(promoted) => promoted.code.clone(),
            Self::ServedByAll { apps } => all_id(apps.values().map(|served| served.code.as_str())),
        }
    }

    pub(crate) fn into_revision(self) -> Result<Revision> {
        Revision::new(self.id())?.with_spec(&self)
    }
}

/// Addresses may be signed.
impl std::fmt::Debug for Spec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Spec({})", self.id())
    }
}

pub(crate) fn source_id(sha256: &str) -> String {
    format!("source:{sha256}")
}

fn image_id(images: &BTreeMap<String, String>) -> String {
    let short = |id: &String| id.strip_prefix("sha256:").unwrap_or(id).chars().take(12).collect::<String>();
    let images: Vec<String> = images.iter().map(|(kind, id)| format!("{kind}={}", short(id))).collect();
    format!("image:{}", images.join(","))
}

/// One code where all apps run the same, else a digest of what each runs, in the order of their names.
pub(crate) fn all_id<'a>(codes: impl Iterator<Item = &'a str> + Clone) -> String {
    let mut distinct: Vec<&str> = codes.clone().collect();
    distinct.sort_unstable();
    distinct.dedup();
    match distinct.as_slice() {
        [one] => (*one).to_owned(),
        _ => {
            let mut digest = Sha256::new();
            for code in codes {
                digest.update(code);
                digest.update(b"\n");
            }
            format!("several:{}", &hex(&digest.finalize())[..32])
        }
    }
}

/// The tarball, if it is the one that was hashed.
pub(crate) async fn load(path: &Path, sha256: &str) -> Result<Vec<u8>> {
    let blob = read(path.to_path_buf()).await?;
    match hex(&Sha256::digest(&blob)) {
        now if now == sha256 => Ok(blob),
        now => Err(Error::invalid(format!(
            "the tarball {} has changed since the rollout was planned: its SHA-256 is {now}, and {sha256} is accepted",
            path.display()
        ))),
    }
}

async fn read(path: PathBuf) -> Result<Vec<u8>> {
    let read = tokio::task::spawn_blocking(move || {
        std::fs::read(&path)
            .map_err(|e| Error::invalid(format!("the tarball {} cannot be read", path.display())).because(e))
    });
    read.await.map_err(|e| Error::new(ErrorKind::Internal, "reading the tarball was given up").because(e))?
}

pub(crate) fn check_uuid(what: &str, text: &str) -> Result<()> {
    let groups: Vec<usize> = text.split('-').map(str::len).collect();
    if groups == [8, 4, 4, 4, 12] && text.chars().all(|c| c == '-' || c.is_ascii_hexdigit()) {
        return Ok(());
    }
    Err(Error::invalid(format!("{what} is {text:?}; a UUID is accepted")))
}

fn check_sha256(text: &str) -> Result<String> {
    let text = text.strip_prefix("SHA256:").unwrap_or(text);
    if text.len() == 64 && text.chars().all(|c| c.is_ascii_hexdigit()) {
        return Ok(text.to_ascii_lowercase());
    }
    Err(Error::invalid(format!("the checksum {text:?} is not a SHA-256; 64 hex digits are accepted")))
}

fn short(sha256: &str) -> String {
    sha256.chars().take(12).collect()
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_candidate_that_cannot_be_is_told_what_would_be() {
        let says = |refused: Result<Candidate>| refused.unwrap_err().to_string();
        assert_eq!(says(Candidate::slug("v12")), "a slug's id is \"v12\"; a UUID is accepted");
        assert!(says(Candidate::source("https://x.example/a.tgz", "abc")).contains("64 hex digits"));
        assert!(says(Candidate::source("ftp://x.example/a.tgz", &"a".repeat(64))).contains("http and https"));
        assert!(says(Candidate::image("web", "shop:latest")).contains("sha256:"));
        assert!(says(Candidate::image("", &format!("sha256:{}", "a".repeat(64)))).contains("process type"));
    }

    #[test]
    fn an_address_that_may_be_signed_is_not_printed() {
        let candidate = Candidate::source("https://x.example/a.tgz?sig=s3cr3t", &"a".repeat(64)).unwrap();
        assert!(!format!("{candidate:?}").contains("s3cr3t"));
        let revision = candidate.revision().unwrap();
        assert!(!format!("{revision:?} {}", revision.id).contains("s3cr3t"));
    }
}
