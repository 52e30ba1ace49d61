//! Reports as files in a folder.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use super::{Listener, RolloutEvent};
use crate::{
    error::{Error, Result},
    model::RolloutId,
    report::Report,
    rollout::What,
};

/// Writes the report of each rollout that comes to rest (over, or stuck) into a folder, as `<rollout>.md` and
/// `<rollout>.html`.
///
/// A file is there whole or not at all, and is replaced when the rollout goes on and comes to rest again. What cannot be
/// written is an error in the log and harms no rollout.
///
/// ```no_run
/// # use rollback_core::{engine::Engine, listener::ReportFiles, store::Memory};
/// let engine = Engine::builder(Memory::new()).listener(ReportFiles::new("reports")?).build()?;
/// # Ok::<(), rollback_core::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct ReportFiles {
    folder: PathBuf,
}

impl ReportFiles {
    /// Into this folder, which is made if it is missing.
    ///
    /// # Errors
    /// `Invalid` when it cannot be made, or is no folder.
    pub fn new(folder: impl Into<PathBuf>) -> Result<Self> {
        let folder = folder.into();
        fs::create_dir_all(&folder)
            .map_err(|e| Error::invalid(format!("no reports can be kept in {}", folder.display())).because(e))?;
        Ok(Self { folder })
    }

    /// Where the Markdown of this rollout is, once it is at rest. Letters, digits, `-`, `_` and `.` of its id stay as
    /// they are, anything else is written as `%2F`, and a long name is cut to a mark of its own.
    pub fn markdown(&self, rollout: &RolloutId) -> PathBuf {
        self.folder.join(format!("{}.md", file_name(rollout)))
    }

    /// Where the page of HTML of this rollout is, once it is at rest.
    pub fn html(&self, rollout: &RolloutId) -> PathBuf {
        self.folder.join(format!("{}.html", file_name(rollout)))
    }
}

impl Listener for ReportFiles {
    fn on(&self, event: &RolloutEvent) {
        if !matches!(&event.what, What::Entered { to } if to.is_at_rest()) {
            return;
        }
        let (id, report) = (event.rollout.id(), Report::new(&event.rollout));
        for (file, text) in [(self.markdown(id), report.markdown()), (self.html(id), report.html())] {
            if let Err(e) = write(&file, &text) {
                tracing::error!(rollout = %id, file = %file.display(), error = %e, "a report cannot be written");
            }
        }
    }
}

/// Beside its place first, so that nobody reads half of it.
fn write(file: &Path, text: &str) -> io::Result<()> {
    let beside = file.with_added_extension(format!("{}.part", std::process::id()));
    let written = File::create(&beside).and_then(|mut part| {
        part.write_all(text.as_bytes())?;
        part.sync_all()
    });
    written.and_then(|()| fs::rename(&beside, file)).inspect_err(|_| {
        // It is in the way of nothing, and the first error is the one to tell.
        let _ = fs::remove_file(&beside);
    })
}

/// An id may hold anything that can be printed, a slash among it.
fn file_name(id: &RolloutId) -> String {
    let mut name = String::new();
    for (at, byte) in id.as_str().bytes().enumerate() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' => name.push(char::from(byte)),
            b'.' if at > 0 => name.push('.'),
            byte => name.push_str(&format!("%{byte:02X}")),
        }
    }
    if name.len() > LONGEST {
        // FNV-1a, which is the same for ever, as the name should be.
        let mark = id
            .as_str()
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
        name.truncate(LONGEST - 17);
        name.push_str(&format!("-{mark:016x}"));
    }
    name
}

/// File systems take 255 bytes; what is added has to fit as well.
const LONGEST: usize = 200;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_id_leads_out_of_the_folder_or_to_a_name_that_is_too_long() {
        let name = |id: &str| file_name(&RolloutId::try_from(id).unwrap());
        assert_eq!(name("checkout-0123abcd"), "checkout-0123abcd");
        assert_eq!(name("../../etc/passwd"), "%2E.%2F..%2Fetc%2Fpasswd");
        assert_eq!(name("v1.2 ü"), "v1.2%20%C3%BC");
        let (one, other) = (name(&"ü".repeat(64)), name(&format!("{}x", "ü".repeat(63))));
        assert!(one.len() == LONGEST && other.len() == LONGEST && one != other, "{one} {other}");
    }
}
