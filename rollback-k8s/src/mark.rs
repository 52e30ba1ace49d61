//! What is left on an object that we write: which attempt wrote it last, and what it wrote. By it our own writes are told
//! from everybody else's.

use std::collections::BTreeMap;

use rollback_core::{
    Error, Result,
    model::{RolloutId, TargetId, Version},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    Client,
    object::{Patch, escaped, text},
    workload::{ATTEMPT, annotation, hash},
};

/// How an object stood when it was looked at, as far as a target is concerned: the part of it that counts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stand {
    pub(crate) uid: String,
    /// Of the attempt that wrote it last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) nonce: Option<String>,
    /// Of the part that counts.
    hash: String,
    /// Of that part as the attempt left it. None where no attempt wrote it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    written: Option<String>,
}

impl Stand {
    /// `about` tells the targets on one object apart, and is empty where there can only be one.
    pub(crate) fn of(object: &Value, about: &str, counts: &Value) -> Self {
        let mark = |name: &str| annotation(object, &named(name, about)).map(str::to_owned);
        Self {
            uid: text(object, "/metadata/uid").into(),
            nonce: mark(ATTEMPT),
            hash: hash(counts),
            written: mark(WRITTEN),
        }
    }

    /// Whether it stands as it did at `recorded`, or as one of our attempts left it since.
    pub(crate) fn is_ours(&self, recorded: &Self) -> bool {
        if self.nonce == recorded.nonce { self.hash == recorded.hash } else { self.is_as_written() }
    }

    /// Whether an attempt of this rollout wrote it last.
    pub(crate) fn is_by(&self, rollout: &RolloutId) -> bool {
        let nonce = self.nonce.as_deref().and_then(|nonce| nonce.strip_prefix(rollout.as_str()));
        nonce.is_some_and(|rest| rest.starts_with('/'))
    }

    /// Whether it stands as the last attempt left it.
    pub(crate) fn is_as_written(&self) -> bool {
        self.written.as_ref() == Some(&self.hash)
    }

    pub(crate) fn version(&self) -> Result<Version> {
        let nonce = self.nonce.as_deref().unwrap_or("-");
        Version::try_from(format!("{}/{}/{nonce}", self.uid, self.hash))
    }
}

/// The beginning of every write: it holds only for this object as it was read, whole.
pub(crate) fn only_as_read(object: &Value) -> Patch {
    let same = |path: &str| object.pointer(path).cloned().unwrap_or_default();
    Patch::new()
        .test("/metadata/uid", &same("/metadata/uid"))
        .test("/metadata/resourceVersion", &same("/metadata/resourceVersion"))
}

/// The end of every write: the attempt, what the part that counts is by then, and what else is to be noted.
pub(crate) fn signed(
    patch: Patch,
    object: &Value,
    about: &str,
    nonce: &str,
    counts: &Value,
    more: &[(&str, String)],
) -> Patch {
    let marks = [(ATTEMPT, nonce.to_owned()), (WRITTEN, hash(counts))];
    let marks: BTreeMap<String, String> =
        marks.into_iter().chain(more.iter().cloned()).map(|(name, value)| (named(name, about), value)).collect();
    if object.pointer("/metadata/annotations").is_some_and(Value::is_object) {
        marks.into_iter().fold(patch, |patch, (name, value)| {
            patch.put(&format!("/metadata/annotations/{}", escaped(&name)), json!(value))
        })
    } else {
        patch.put("/metadata/annotations", json!(marks))
    }
}

/// A note that was left with [`signed`].
pub(crate) fn noted<'a>(object: &'a Value, about: &str, name: &str) -> Option<&'a str> {
    annotation(object, &named(name, about))
}

/// A name of a namespace or an object.
///
/// # Errors
/// `Invalid`, saying what is accepted.
pub(crate) fn checked(what: &str, name: &str) -> Result<String> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
    if name.is_empty() || name.len() > 253 || !name.chars().all(plain) {
        return Err(Error::invalid(format!("the {what} is {name:?}; 1 to 253 of a-z, 0-9, - and . are accepted")));
    }
    Ok(name.to_owned())
}

/// The way back is what was promoted last, for what stands there is shared, or was found bad: nothing says how the object
/// stood then, and so what has been changed by somebody else since.
pub(crate) fn not_read_off(does: &str, what: &str) -> Error {
    Error::invalid(format!(
        "the way back would be what was promoted last, and this target goes back only to what it can read off: see by hand \
         that it {does} {what} alone, and start again"
    ))
}

/// An id that the same target has in every process, and no other target as far as the cluster has a name, or an address of its
/// own: the name is for people and may be cut off.
pub(crate) fn target_id(client: &Client, name: &str, about: &str) -> TargetId {
    let cluster = match client.cluster() {
        Some(cluster) => json!({ "cluster": cluster }),
        None => json!(client.server()),
    };
    let sum = hash(&json!([cluster, name, about]));
    // The limit of an id is in bytes.
    let end = (0..=100.min(name.len())).rev().find(|at| name.is_char_boundary(*at)).unwrap_or(0);
    let id = format!("{} #{}", &name[..end], &sum[..8]);
    let printable = id.replace(|c: char| c.is_control() || c.is_whitespace() && c != ' ', "?");
    TargetId::try_from(printable.as_str()).expect("a name of some printable bytes")
}

fn named(name: &str, about: &str) -> String {
    if about.is_empty() { name.to_owned() } else { format!("{name}-{about}") }
}

/// The hash of what counts as the attempt left it.
const WRITTEN: &str = "rollback.rs/written";
/// What it was called when it was put there.
pub(crate) const REVISION: &str = "rollback.rs/revision";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_is_ours_as_recorded_or_as_an_attempt_left_it() {
        let object = |nonce: Option<&str>, written: i32| {
            let mut object = json!({ "metadata": { "uid": "a" } });
            if let Some(nonce) = nonce {
                object["metadata"]["annotations"] = json!({ ATTEMPT: nonce, WRITTEN: hash(&json!(written)) });
            }
            object
        };
        let recorded = Stand::of(&object(None, 0), "", &json!(1));
        assert!(Stand::of(&object(None, 0), "", &json!(1)).is_ours(&recorded));
        assert!(!Stand::of(&object(None, 0), "", &json!(2)).is_ours(&recorded));
        assert!(Stand::of(&object(Some("n"), 2), "", &json!(2)).is_ours(&recorded));
        // Somebody put the recorded one back after our attempt: that is not our doing.
        assert!(!Stand::of(&object(Some("n"), 2), "", &json!(1)).is_ours(&recorded));
        // The mark of another target on the same object says nothing.
        assert!(!Stand::of(&object(Some("n"), 2), "x", &json!(2)).is_ours(&recorded));
    }
}
