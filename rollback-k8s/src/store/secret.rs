//! How records are written as Secrets. Pure.
//!
//! A subject has one Secret, its head. It holds one record in full, the open one if there is one, what was asked of it,
//! and the order of all the subject's records. So whatever must not happen twice (two open rollouts, two saves of one
//! serial, two requests of one number) is one conditional write of one object. Every other record has a Secret of its
//! own.

use std::{collections::BTreeMap, sync::Arc};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use rollback_core::{
    Error, ErrorKind, Result,
    model::{DriverId, RolloutId, Serial, TargetId},
    store::{Record, Standing},
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

/// The type of all our Secrets.
pub(super) const TYPE: &str = "rollback.rs/record";
/// The label that says what a Secret or Lease is: [`HEAD`], [`PAST`] or [`DRIVER`].
pub(super) const PART: &str = "rollback.rs/part";
pub(super) const HEAD: &str = "head";
pub(super) const PAST: &str = "past";
pub(super) const DRIVER: &str = "driver";
/// Labels of a head: hashes, for labels may hold little.
pub(super) const IS_OPEN: &str = "rollback.rs/open";
pub(super) const HAS_ROLLOUT: &str = "rollback.rs/rollout";
pub(super) const HAS_TARGET: &str = "rollback.rs/target";
pub(super) const HAS_DRIVER: &str = "rollback.rs/driver";
pub(super) const IS_ASKED: &str = "rollback.rs/asked";
/// Annotations of a head: the same as text.
pub(super) const ROLLOUT: &str = "rollback.rs/rollout-id";
pub(super) const TARGET: &str = "rollback.rs/target-id";
pub(super) const DRIVEN_BY: &str = "rollback.rs/driver-id";

/// What the API server takes at most in one Secret (`MaxSecretSize` of its validation).
const MAX: usize = 1024 * 1024;
/// The version of what is written here.
const FORMAT: u32 = 1;

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Meta {
    pub(super) name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) uid: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) resource_version: Option<String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) labels: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) annotations: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) owner_references: Vec<Value>,
}

/// A Secret as it is sent.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Secret {
    #[serde(default)]
    api_version: String,
    #[serde(default)]
    kind: String,
    pub(super) metadata: Meta,
    #[serde(default, rename = "type")]
    kind_of_secret: String,
    #[serde(default)]
    data: BTreeMap<String, String>,
}

/// A record with its serial and the last number that a request of it had.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Kept {
    pub(super) record: Record,
    pub(super) serial: Serial,
    pub(super) asked: u64,
}

/// What a subject's head says.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Head {
    pub(super) current: Kept,
    /// What was asked of it and not heard yet. As it was written: a newer process may ask what this one cannot read.
    pub(super) requests: Vec<(u64, Value)>,
    /// All records of the subject, oldest first.
    pub(super) order: Vec<Known>,
}

/// A record in the order of its subject.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Known {
    pub(super) id: RolloutId,
    pub(super) standing: Standing,
}

/// Everything of a record but its body.
#[derive(Serialize, Deserialize)]
struct Envelope {
    format: u32,
    id: RolloutId,
    subject: TargetId,
    #[serde(default)]
    driver: Option<DriverId>,
    standing: Standing,
    body_format: u32,
    heard: u64,
    serial: Serial,
    asked: u64,
    #[serde(default)]
    requests: Vec<(u64, Value)>,
    #[serde(default)]
    order: Vec<Known>,
}

/// 32 hexadecimal digits that stand for a name: names may hold anything, what the API server calls a name may not.
pub(super) fn digest(name: &str) -> String {
    Sha256::digest(name.as_bytes()).iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

pub(super) fn head_name(subject: &TargetId) -> String {
    format!("rollback-head-{}", digest(subject.as_str()))
}

pub(super) fn past_name(id: &RolloutId) -> String {
    format!("rollback-past-{}", digest(id.as_str()))
}

pub(super) fn lease_name(driver: &DriverId) -> String {
    format!("rollback-driver-{}", digest(driver.as_str()))
}

impl Kept {
    pub(super) fn is_open(&self) -> bool {
        self.record.standing == Standing::Open
    }

    fn envelope(&self) -> Envelope {
        let Record { id, subject, driver, standing, format, heard, body: _ } = self.record.clone();
        let (serial, asked) = (self.serial, self.asked);
        let (requests, order) = (Vec::new(), Vec::new());
        Envelope {
            format: FORMAT,
            id,
            subject,
            driver,
            standing,
            body_format: format,
            heard,
            serial,
            asked,
            requests,
            order,
        }
    }

    /// The Secret of a record that its head does not hold. It goes when somebody deletes the head.
    pub(super) fn to_past(&self, head: Option<&str>) -> Result<Secret> {
        let mut meta = Meta { name: past_name(&self.record.id), ..Meta::default() };
        meta.labels = labels([(PART, PAST.into()), (HAS_TARGET, digest(self.record.subject.as_str()))]);
        meta.owner_references = head
            .map(|uid| {
                serde_json::json!({
                    "apiVersion": "v1", "kind": "Secret", "name": head_name(&self.record.subject), "uid": uid,
                })
            })
            .into_iter()
            .collect();
        Secret::new(meta, &self.envelope(), &self.record)
    }

    pub(super) fn from_past(secret: &Secret) -> Result<Self> {
        secret.read().map(|(kept, _, _)| kept)
    }
}

impl Head {
    /// The head of a subject whose first record this is.
    pub(super) fn new(record: &Record) -> Self {
        let order = vec![Known { id: record.id.clone(), standing: record.standing }];
        let current = Kept { record: record.clone(), serial: Serial(1), asked: record.heard };
        Self { current, requests: Vec::new(), order }
    }

    pub(super) fn knows(&self, id: &RolloutId) -> bool {
        self.order.iter().any(|known| known.id == *id)
    }

    /// Notes how a record stands now, and forgets the oldest finished ones: all but the newest `keep`, the last promoted
    /// and the one just saved. Returns those that are to be deleted.
    pub(super) fn settle(&mut self, saved: &Record, keep: usize) -> Vec<RolloutId> {
        match self.order.iter_mut().find(|known| known.id == saved.id) {
            Some(known) => known.standing = saved.standing,
            None => self.order.push(Known { id: saved.id.clone(), standing: saved.standing }),
        }
        if saved.standing == Standing::Open {
            return Vec::new();
        }
        let (mut finished, mut promoted) = (0, false);
        let (mut kept, mut gone) = (Vec::with_capacity(self.order.len()), Vec::new());
        for known in std::mem::take(&mut self.order).into_iter().rev() {
            let last_promoted = known.standing == Standing::Promoted && !std::mem::replace(&mut promoted, true);
            finished += usize::from(known.standing != Standing::Open);
            // What the head holds is kept as long as the head holds it.
            let held = known.id == saved.id || known.id == self.current.record.id;
            if known.standing == Standing::Open || last_promoted || finished <= keep || held {
                kept.push(known);
            } else {
                gone.push(known.id);
            }
        }
        kept.reverse();
        self.order = kept;
        gone
    }

    pub(super) fn to_secret(&self, uid: Option<String>, version: Option<String>) -> Result<Secret> {
        let Record { id, subject, driver, .. } = &self.current.record;
        let mut meta = Meta { name: head_name(subject), uid, resource_version: version, ..Meta::default() };
        meta.labels = labels([
            (PART, HEAD.into()),
            (IS_OPEN, self.current.is_open().to_string()),
            (HAS_ROLLOUT, digest(id.as_str())),
            (HAS_TARGET, digest(subject.as_str())),
            (IS_ASKED, (!self.requests.is_empty()).to_string()),
        ]);
        meta.annotations = labels([(ROLLOUT, id.to_string()), (TARGET, subject.to_string())]);
        if let Some(driver) = driver {
            meta.labels.insert(HAS_DRIVER.into(), digest(driver.as_str()));
            meta.annotations.insert(DRIVEN_BY.into(), driver.to_string());
        }
        let mut envelope = self.current.envelope();
        envelope.requests.clone_from(&self.requests);
        envelope.order.clone_from(&self.order);
        Secret::new(meta, &envelope, &self.current.record)
    }

    pub(super) fn from_secret(secret: &Secret) -> Result<Self> {
        secret.read().map(|(current, requests, order)| Self { current, requests, order })
    }
}

impl Secret {
    fn new(metadata: Meta, envelope: &Envelope, record: &Record) -> Result<Self> {
        let envelope = serde_json::to_vec(envelope)
            .map_err(|e| Error::new(ErrorKind::Internal, "a record cannot be written as JSON").because(e))?;
        let size = envelope.len() + record.body.len();
        if size > MAX {
            let said = format!("the record of rollout {} has {size} bytes; a Secret holds at most {MAX}", record.id);
            return Err(Error::invalid(said));
        }
        let data = [("envelope", STANDARD.encode(envelope)), ("body", STANDARD.encode(record.body.as_bytes()))];
        Ok(Self {
            api_version: "v1".into(),
            kind: "Secret".into(),
            metadata,
            kind_of_secret: TYPE.into(),
            data: data.into_iter().map(|(key, value)| (key.into(), value)).collect(),
        })
    }

    #[expect(clippy::type_complexity, reason = "the three parts of a head, taken apart at once")]
    fn read(&self) -> Result<(Kept, Vec<(u64, Value)>, Vec<Known>)> {
        let name = &self.metadata.name;
        // Whatever is wrong, its text stays here: it may quote what is sealed.
        let broken = || Error::new(ErrorKind::Internal, format!("the Secret {name} is not what this library writes"));
        let part = |key| STANDARD.decode(self.data.get(key)?).ok();
        let envelope = part("envelope").ok_or_else(broken)?;
        let format = serde_json::from_slice::<Value>(&envelope).ok().and_then(|json| json.get("format")?.as_u64());
        if format.is_some_and(|format| format > FORMAT.into()) {
            let newer = format!("the Secret {name} was written by a newer version of this library");
            return Err(Error::new(ErrorKind::Unsupported, newer));
        }
        let envelope: Envelope = serde_json::from_slice(&envelope).map_err(|_| broken())?;
        let body = String::from_utf8(part("body").ok_or_else(broken)?).map_err(|_| broken())?;
        let Envelope { id, subject, driver, standing, body_format, heard, serial, asked, requests, order, .. } =
            envelope;
        let record = Record { id, subject, driver, standing, format: body_format, heard, body: Arc::from(body) };
        Ok((Kept { record, serial, asked }, requests, order))
    }
}

fn labels<const N: usize>(pairs: [(&str, String); N]) -> BTreeMap<String, String> {
    pairs.into_iter().map(|(key, value)| (key.into(), value)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(id: &str, standing: Standing) -> Record {
        Record {
            id: id.try_into().unwrap(),
            subject: "checkout, naïve \u{1F680}".try_into().unwrap(),
            driver: Some("d".try_into().unwrap()),
            standing,
            format: 7,
            heard: 3,
            body: "{\"sealed\":\"\u{1F512}\"}".into(),
        }
    }

    #[test]
    fn what_is_written_is_read_again() {
        let mut head = Head::new(&record("a", Standing::Open));
        head.requests.push((4, serde_json::json!({ "ask": "something newer" })));
        let secret = head.to_secret(None, None).unwrap();
        let sent: Secret = serde_json::from_str(&serde_json::to_string(&secret).unwrap()).unwrap();
        assert_eq!(Head::from_secret(&sent).unwrap(), head);
        let past = head.current.to_past(Some("uid")).unwrap();
        assert_eq!(Kept::from_past(&past).unwrap(), head.current);
    }

    #[test]
    fn names_and_labels_are_what_the_api_server_takes() {
        let secret = Head::new(&record("A/b?c=d e\u{301}", Standing::Open)).to_secret(None, None).unwrap();
        let plain = |text: &str| text.len() <= 63 && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
        assert!(plain(&secret.metadata.name), "{}", secret.metadata.name);
        assert!(secret.metadata.labels.values().all(|label| plain(label)), "{:?}", secret.metadata.labels);
    }

    #[test]
    fn nothing_sealed_is_in_metadata_or_in_errors() {
        let mut secret = Head::new(&record("a", Standing::Open)).to_secret(None, None).unwrap();
        assert!(!serde_json::to_string(&secret.metadata).unwrap().contains("sealed"));
        secret.data.insert("envelope".into(), STANDARD.encode("{\"format\":1,\"sealed\":true}"));
        assert!(!Head::from_secret(&secret).unwrap_err().chain().contains("sealed"));
        secret.data.insert("envelope".into(), STANDARD.encode("{\"format\":2}"));
        assert_eq!(Head::from_secret(&secret).unwrap_err().kind(), ErrorKind::Unsupported);
    }

    #[test]
    fn a_record_that_no_secret_holds_is_refused_with_its_size() {
        let body = "x".repeat(MAX).into();
        let error = Head::new(&Record { body, ..record("a", Standing::Open) }).to_secret(None, None).err().unwrap();
        assert!(error.to_string().starts_with("the record of rollout a has 1048"), "{error}");
    }

    #[test]
    fn trimming_keeps_the_open_the_last_promoted_the_newest_and_what_the_head_holds() {
        use Standing::{Open, Over, Promoted};
        let mut head = Head::new(&record("p1", Promoted));
        let mut gone = Vec::new();
        for (id, standing) in [("p2", Promoted), ("o1", Over), ("o2", Over), ("o3", Over), ("now", Open)] {
            let record = record(id, standing);
            head.current.record = record.clone();
            gone.extend(head.settle(&record, 2).iter().map(ToString::to_string));
        }
        assert_eq!(gone, ["p1", "o1"]);
        let order: Vec<&str> = head.order.iter().map(|known| known.id.as_str()).collect();
        assert_eq!(order, ["p2", "o2", "o3", "now"]);
    }
}
