//! Making a version: update the code, wait, publish, wait. Said twice it makes one version.

use std::{fmt, path::Path, time::Duration};

use aws_sdk_lambda::{
    operation::get_function_configuration::GetFunctionConfigurationOutput as Configuration,
    primitives::Blob,
    types::{LastUpdateStatus, State},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use rollback_core::{Error, ErrorKind, Result, model::Revision};
use sha2::{Digest as _, Sha256};

use super::{Alias, LATEST};
use crate::error::sorted;

/// The code of a version to be published.
#[derive(Clone)]
pub struct Code {
    source: Source,
    /// What Lambda will call it, where that is known before.
    sha256: Option<String>,
}

#[derive(Clone)]
enum Source {
    Zip(Blob),
    S3 { bucket: String, key: String, version: Option<String> },
    Image(String),
}

impl Code {
    /// A zip of at most 50 MB, which is all that Lambda takes in a request; larger ones go to S3 first.
    ///
    /// # Errors
    /// `Invalid` when it is empty or larger.
    pub fn zip(bytes: impl Into<Vec<u8>>) -> Result<Self> {
        let bytes: Vec<u8> = bytes.into();
        if bytes.is_empty() || bytes.len() > MAX_ZIP {
            let why = format!("a zip of {} bytes cannot be sent; 1 to {MAX_ZIP} are, and S3 takes more", bytes.len());
            return Err(Error::invalid(why));
        }
        let sha256 = Some(STANDARD.encode(Sha256::digest(&bytes)));
        Ok(Self { source: Source::Zip(Blob::new(bytes)), sha256 })
    }

    /// The same from a file.
    ///
    /// # Errors
    /// `Invalid` when it cannot be read, is empty, or is too large.
    pub async fn zip_file(path: impl AsRef<Path> + Send) -> Result<Self> {
        let path = path.as_ref().to_owned();
        let shown = path.display().to_string();
        let read = tokio::task::spawn_blocking(move || std::fs::read(path)).await;
        let read =
            read.map_err(|e| Error::new(ErrorKind::Internal, format!("reading {shown} broke off")).because(e))?;
        let bytes = read.map_err(|e| Error::invalid(format!("the zip {shown} cannot be read")).because(e))?;
        Self::zip(bytes).map_err(|e| e.during(shown))
    }

    /// A zip in a bucket of the function's region.
    pub fn s3(bucket: impl Into<String>, key: impl Into<String>) -> Self {
        Self { source: Source::S3 { bucket: bucket.into(), key: key.into(), version: None }, sha256: None }
    }

    /// The version of the object, in a bucket that keeps versions.
    #[must_use]
    pub fn object_version(mut self, id: impl Into<String>) -> Self {
        if let Source::S3 { version, .. } = &mut self.source {
            *version = Some(id.into());
        }
        self
    }

    /// An image in ECR: by digest (`…@sha256:…`) it is known before it is there, by tag only after.
    pub fn image(uri: impl Into<String>) -> Self {
        let uri: String = uri.into();
        let sha256 = uri.split_once("@sha256:").map(|(_, digest)| digest.to_owned());
        Self { source: Source::Image(uri), sha256 }
    }
}

impl fmt::Debug for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.source {
            Source::Zip(bytes) => write!(f, "Code(zip of {} bytes)", bytes.as_ref().len()),
            Source::S3 { bucket, key, .. } => write!(f, "Code(s3://{bucket}/{key})"),
            Source::Image(uri) => write!(f, "Code({uri})"),
        }
    }
}

impl Alias {
    /// Publishes code as a version of the alias's function, and waits until it is ready to serve. Users see nothing of it:
    /// the alias is moved by a rollout.
    ///
    /// It can be repeated: code that is there already is not uploaded again, and Lambda publishes unchanged code and
    /// configuration under the number that they have. Lost answers are read up on and asked for again. The version takes
    /// the configuration that the function has now.
    ///
    /// # Errors
    /// `Invalid` for code that Lambda refuses or cannot start; `Unsupported` when an alias serves `$LATEST`, whose users
    /// would see the upload at once; `Conflict` when somebody else uploads at the same time; `Unavailable` after 15
    /// minutes.
    ///
    /// # Cancel safety
    /// Dropped half way it may leave code uploaded, or a version that nobody uses. The next call goes on from there.
    pub async fn publish(&self, code: &Code) -> Result<Revision> {
        let made = tokio::time::timeout(PATIENCE, self.make(code)).await;
        let late = || format!("no version was published within {} minutes", PATIENCE.as_secs() / 60);
        made.unwrap_or_else(|_| Err(self.failed(ErrorKind::Unavailable, late())))
    }

    async fn make(&self, code: &Code) -> Result<Revision> {
        // What our own upload was answered: the code's name where it was not known before.
        let mut uploaded = None;
        let mut trouble = None;
        for _ in 0..ROUNDS {
            match self.round(code, &mut uploaded).await {
                Ok(Some(number)) => return Revision::new(number),
                Ok(None) => {}
                Err(e) if e.is_transient() || e.kind() == ErrorKind::Conflict => {
                    tokio::time::sleep(PAUSE.max(e.retry_after().unwrap_or_default())).await;
                    trouble = Some(e);
                }
                Err(e) => return Err(e),
            }
        }
        let e =
            self.failed(ErrorKind::Conflict, format!("its code is changed by somebody else, or {ROUNDS} tries failed"));
        Err(trouble.into_iter().fold(e, Error::because))
    }

    /// Looks where the function is and does what is due: uploads, or publishes. The number, when that is done.
    async fn round(&self, code: &Code, uploaded: &mut Option<String>) -> Result<Option<String>> {
        let latest = self.settled(LATEST).await?;
        let wanted = code.sha256.as_ref().or(uploaded.as_ref());
        let revision = latest.revision_id().unwrap_or_default();
        let failed = latest.last_update_status() == Some(&LastUpdateStatus::Failed);
        // An earlier upload of the same code may have failed for a reason that has passed.
        let again = failed && uploaded.is_none();
        if again || wanted.is_none() || latest.code_sha256() != wanted.map(String::as_str) {
            self.keep_from_users().await?;
            *uploaded = Some(self.upload(code, revision).await?);
            return Ok(None);
        }
        if failed {
            let why = latest.last_update_status_reason().unwrap_or("Lambda gives no reason");
            return Err(self.failed(ErrorKind::Invalid, format!("the code was uploaded and cannot be used: {why}")));
        }
        let call = self.client.publish_version().function_name(self.name.called());
        let call = call.set_code_sha256(wanted.cloned()).revision_id(revision);
        let doing = || format!("publishing a version of {}", self.name.function);
        let number = call.send().await.map_err(|e| sorted(doing(), e))?.version().unwrap_or_default().to_owned();
        let made = self.settled(&number).await?;
        match (made.state(), made.state_reason()) {
            (Some(State::Active) | None, _) => Ok(Some(number)),
            (Some(state), why) => {
                let why = why.unwrap_or("Lambda gives no reason");
                Err(self.failed(ErrorKind::Invalid, format!("version {number} was published and is {state}: {why}")))
            }
        }
    }

    /// A version's configuration, once nothing is under way with it.
    async fn settled(&self, number: &str) -> Result<Configuration> {
        loop {
            let found = self.version(number).await?;
            let found =
                found.ok_or_else(|| self.failed(ErrorKind::NotFound, format!("there is no version {number}")))?;
            let busy = found.state() == Some(&State::Pending)
                || found.last_update_status() == Some(&LastUpdateStatus::InProgress);
            if !busy {
                return Ok(found);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// What is uploaded is `$LATEST` at once: nobody may be served from there.
    async fn keep_from_users(&self) -> Result<()> {
        let call = self.client.list_aliases().function_name(self.name.called()).function_version(LATEST);
        let doing = || format!("listing the aliases of {}", self.name.function);
        let found = call.send().await.map_err(|e| sorted(doing(), e))?;
        match found.aliases().first().and_then(|alias| alias.name()) {
            None => Ok(()),
            Some(name) => {
                let why = format!(
                    "alias {name} is at $LATEST, so its users would see the upload at once; point it at a version first"
                );
                Err(self.failed(ErrorKind::Unsupported, why))
            }
        }
    }

    async fn upload(&self, code: &Code, revision: &str) -> Result<String> {
        let call = self.client.update_function_code().function_name(self.name.called()).revision_id(revision);
        let call = match &code.source {
            Source::Zip(bytes) => call.zip_file(bytes.clone()),
            Source::S3 { bucket, key, version } => {
                call.s3_bucket(bucket).s3_key(key).set_s3_object_version(version.clone())
            }
            Source::Image(uri) => call.image_uri(uri),
        };
        let doing = || format!("uploading code to {}", self.name.function);
        let answer = call.send().await.map_err(|e| sorted(doing(), e))?;
        Ok(answer.code_sha256().unwrap_or_default().to_owned())
    }
}

/// Documented as 50 MB, zipped, for a direct upload (Lambda quotas).
const MAX_ZIP: usize = 50 * 1024 * 1024;

const PATIENCE: Duration = Duration::from_secs(15 * 60);

const PAUSE: Duration = Duration::from_secs(2);

/// Each upload or publication that was not answered, or met somebody else, takes one.
const ROUNDS: u32 = 10;
