//! Both revisions of a change, as a target reads them.

use rollback_core::{
    Result,
    model::{Change, Revision},
};
use serde::de::DeserializeOwned;

/// What a target sealed into both revisions of a change.
pub(crate) struct Unsealed<S> {
    pub(crate) baseline: S,
    pub(crate) candidate: S,
}

impl<S: DeserializeOwned> Unsealed<S> {
    /// `but`: what is wrong with a revision of another kind of target, as in "names no Service; make it with
    /// HttpRoute::revision".
    ///
    /// # Errors
    /// `Invalid`, saying so.
    pub(crate) fn open(change: &Change, but: &str) -> Result<Self> {
        let open = |what: &str, revision: &Revision| {
            revision.spec.open().map_err(|e| e.during(format!("the {what} {} {but}", revision.id)))
        };
        Ok(Self { baseline: open("baseline", &change.baseline)?, candidate: open("candidate", &change.candidate)? })
    }
}
