//! Tarballs that are being uploaded, or were and wait for their build.
//!
//! An upload may take longer than a build may be asked for after it was decided, so the two are apart: what is uploaded too
//! late is used by the next attempt. Nothing here must survive the process: what is lost is uploaded again.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rollback_core::Result;
use tokio::time::Instant;

use crate::{Client, api::Source, candidate::load};

/// By checksum. Clones are the same.
#[derive(Clone, Default)]
pub(crate) struct Uploads(Arc<Mutex<BTreeMap<String, Upload>>>);

enum Upload {
    Running,
    /// At this address, which is signed.
    There {
        url: String,
        since: Instant,
    },
}

/// Ends with the call, however that ends.
struct Running<'a> {
    uploads: &'a Uploads,
    sha256: &'a str,
}

impl Uploads {
    pub(crate) fn is_running(&self, sha256: &str) -> bool {
        matches!(self.all().get(sha256), Some(Upload::Running))
    }

    /// Uploads it, unless it is there.
    pub(crate) async fn bring(&self, client: &Client, path: &Path, sha256: &str) -> Result<()> {
        if matches!(self.all().get(sha256), Some(Upload::There { since, .. }) if since.elapsed() < FRESH) {
            return Ok(());
        }
        self.all().insert(sha256.into(), Upload::Running);
        let _running = Running { uploads: self, sha256 };
        let blob = load(path, sha256).await?;
        let source: Source = client.post_nothing("/sources").await?;
        client.upload(&source.source_blob.put_url, blob).await?;
        self.all().insert(sha256.into(), Upload::There { url: source.source_blob.get_url, since: Instant::now() });
        Ok(())
    }

    /// Its address, handed out once.
    pub(crate) fn take(&self, sha256: &str) -> Option<String> {
        let mut all = self.all();
        match all.remove(sha256)? {
            Upload::There { url, .. } => Some(url),
            running => {
                all.insert(sha256.into(), running);
                None
            }
        }
    }

    fn all(&self) -> MutexGuard<'_, BTreeMap<String, Upload>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let mut all = self.uploads.all();
        if matches!(all.get(self.sha256), Some(Upload::Running)) {
            all.remove(self.sha256);
        }
    }
}

/// How long an address is used. The schema does not say for how long it is signed.
const FRESH: Duration = Duration::from_secs(30 * 60);
