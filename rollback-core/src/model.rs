//! The words of the library as types: targets, revisions, weights, attempts, what a look sees.

use std::{fmt, str::FromStr, sync::Arc};

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::DeserializeOwned};

use crate::error::{Error, Result};

/// Text that names something: checked once, then trusted.
macro_rules! names {
    ($($(#[$doc:meta])* $name:ident: $what:literal, $max:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            #[doc = concat!("The most bytes ", $what, " may have.")]
            pub const MAX_LEN: usize = $max;

            /// The text, as given.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<&str> for $name {
            type Error = Error;
            fn try_from(text: &str) -> Result<Self> {
                check_name($what, text, $max)?;
                Ok(Self(text.into()))
            }
        }

        impl TryFrom<String> for $name {
            type Error = Error;
            fn try_from(text: String) -> Result<Self> {
                Self::try_from(text.as_str())
            }
        }

        impl FromStr for $name {
            type Err = Error;
            fn from_str(text: &str) -> Result<Self> {
                Self::try_from(text)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0.as_ref().into()
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&*self.0, f)
            }
        }
    )*};
}

names! {
    /// What is deployed to: a Lambda alias, a Kubernetes Deployment, a Heroku app. 1 to 128 bytes of printable text.
    TargetId: "a target id", 128;
    /// One attempt to replace one revision with another. 1 to 128 bytes of printable text, unique for all time.
    RolloutId: "a rollout id", 128;
    /// An immutable build of a target. 1 to 256 bytes of printable text.
    RevisionId: "a revision id", 256;
    /// One process that drives rollouts; a new one at every start. 1 to 128 bytes of printable text.
    DriverId: "a driver id", 128;
    /// Who asks for something: a person or a tool, named in the record. 1 to 128 bytes of printable text.
    Actor: "an actor", 128;
    /// The name of a gate, unique within its target. 1 to 64 bytes of printable text.
    GateName: "a gate name", 64;
    /// The target's version: handed out by a look, spent by a shift. Opaque, 1 to 1,024 bytes, without secrets.
    /// Versions are equal or not; neither is ever "newer".
    Version: "a version", 1024;
    /// Marks one attempt for ever: `rollout/serial/goal`, or `rollout/since.serial/goal` by a driver that took the
    /// rollout over. Opaque to backends, which write it on the target.
    Nonce: "a nonce", 512;
}

impl RolloutId {
    /// A fresh id that no other rollout has: the target's name, shortened, and 64 random bits.
    pub fn fresh(target: &TargetId) -> Self {
        let short: String = target.as_str().chars().take(24).collect();
        let random = uuid::Uuid::new_v4().as_u64_pair().1;
        Self(format!("{}-{random:016x}", short.trim_end()).into())
    }
}

impl DriverId {
    /// A fresh id that no other process has.
    pub fn fresh() -> Self {
        Self(format!("{}-{}", std::process::id(), uuid::Uuid::new_v4().simple()).into())
    }
}

impl Nonce {
    /// The nonce of the attempt that is saved in the record with this serial.
    pub fn new(rollout: &RolloutId, serial: Serial, goal: Goal) -> Self {
        Self(format!("{rollout}/{serial}/{goal:#}").into())
    }

    /// The same by a driver whose first save had the serial `since`.
    ///
    /// The driver before may have sent attempts that no record shows, numbered on from the serial that it knew: without
    /// `since` the next driver would give the same nonce to another attempt.
    pub(crate) fn by_driver(rollout: &RolloutId, since: Serial, serial: Serial, goal: Goal) -> Self {
        match since {
            Serial(1) => Self::new(rollout, serial, goal),
            _ => Self(format!("{rollout}/{since}.{serial}/{goal:#}").into()),
        }
    }
}

fn check_name(what: &str, text: &str, max: usize) -> Result<()> {
    let shown: String = text.chars().take(40).collect();
    if text.is_empty() {
        return Err(Error::invalid(format!("{what} is empty; it needs 1 to {max} bytes")));
    }
    if text.len() > max {
        return Err(Error::invalid(format!(
            "{what} has {} bytes ({shown:?}…); at most {max} are accepted",
            text.len()
        )));
    }
    if let Some(bad) = text.chars().find(|c| c.is_control()) {
        return Err(Error::invalid(format!("{what} {shown:?} has the control character {bad:?}; use printable text")));
    }
    if text.trim() != text {
        return Err(Error::invalid(format!("{what} {shown:?} begins or ends with white space")));
    }
    Ok(())
}

/// The record's number, raised by one with every save: the fencing number of the rollout's driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Serial(pub u64);

impl Serial {
    /// The serial after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The candidate's share of traffic in whole percent, 0 to 100.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub struct Weight(u8);

impl Weight {
    /// The candidate gets no traffic.
    pub const NONE: Self = Self(0);
    /// The candidate gets all traffic.
    pub const ALL: Self = Self(100);

    /// The share in percent, 0 to 100.
    pub const fn percent(self) -> u8 {
        self.0
    }
}

impl TryFrom<u8> for Weight {
    type Error = Error;
    fn try_from(percent: u8) -> Result<Self> {
        match percent {
            0..=100 => Ok(Self(percent)),
            _ => Err(Error::invalid(format!("weight {percent} is not a share of traffic; 0 to 100 is accepted"))),
        }
    }
}

impl From<Weight> for u8 {
    fn from(weight: Weight) -> Self {
        weight.0
    }
}

impl fmt::Display for Weight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} %", self.0)
    }
}

/// A backend's own snapshot of a revision: enough to bring it back, and nobody else's business.
///
/// At most 256 KiB of JSON. `Debug` prints only its size, and it cannot be serialized by itself: only the record's
/// codec writes it, so that it reaches no log, event or report.
#[derive(Clone, PartialEq, Eq)]
pub struct Sealed(Arc<str>);

impl Sealed {
    /// The most bytes of JSON a snapshot may have.
    pub const MAX_LEN: usize = 256 * 1024;

    /// Seals a snapshot.
    ///
    /// # Errors
    /// `Invalid` when it cannot be written as JSON or is larger than [`Self::MAX_LEN`].
    pub fn new<T: Serialize + ?Sized>(snapshot: &T) -> Result<Self> {
        let json = serde_json::to_string(snapshot)
            .map_err(|e| Error::invalid("a revision's spec cannot be written as JSON").because(e))?;
        Self::from_json(json)
    }

    /// Nothing: the revision's id says it all.
    pub fn empty() -> Self {
        Self("null".into())
    }

    /// Reads the snapshot back.
    ///
    /// # Errors
    /// `Invalid` when it was sealed as something else.
    pub fn open<T: DeserializeOwned>(&self) -> Result<T> {
        serde_json::from_str(&self.0).map_err(|e| {
            // The text of the JSON error may quote the value: keep the place, drop the words.
            Error::invalid(format!("a revision's spec is not what this backend seals (column {})", e.column()))
        })
    }

    fn from_json(json: String) -> Result<Self> {
        if json.len() > Self::MAX_LEN {
            return Err(Error::invalid(format!(
                "a revision's spec has {} bytes; at most {} are accepted",
                json.len(),
                Self::MAX_LEN
            )));
        }
        Ok(Self(json.into()))
    }
}

impl fmt::Debug for Sealed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sealed({} bytes)", self.0.len())
    }
}

/// An immutable build of a target. A baseline is a revision read off the target, complete enough to bring it back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revision {
    /// Its name, the same for ever.
    pub id: RevisionId,
    /// What the backend needs to bring it back.
    pub spec: Sealed,
}

impl Revision {
    /// A revision whose id says it all.
    ///
    /// # Errors
    /// `Invalid` when the id is not 1 to 256 bytes of printable text.
    pub fn new(id: impl AsRef<str>) -> Result<Self> {
        Ok(Self { id: RevisionId::try_from(id.as_ref())?, spec: Sealed::empty() })
    }

    /// With a snapshot.
    ///
    /// # Errors
    /// As [`Sealed::new`].
    pub fn with_spec<T: Serialize + ?Sized>(mut self, snapshot: &T) -> Result<Self> {
        self.spec = Sealed::new(snapshot)?;
        Ok(self)
    }
}

/// What a rollout replaces with what. Fixed when the rollout is created.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// The rollout this change belongs to.
    pub rollout: RolloutId,
    /// What is deployed to.
    pub target: TargetId,
    /// The revision to keep: what a rollback brings back.
    #[serde(with = "unsealed")]
    pub baseline: Revision,
    /// The revision to try.
    #[serde(with = "unsealed")]
    pub candidate: Revision,
}

/// The record's codec for revisions: the one place that writes what is sealed.
mod unsealed {
    use super::*;

    #[derive(Serialize, Deserialize)]
    struct Open<'a> {
        id: std::borrow::Cow<'a, RevisionId>,
        // As text, so that a record is read without building the tree of somebody else's snapshot.
        spec: std::borrow::Cow<'a, str>,
    }

    pub(super) fn serialize<S: Serializer>(revision: &Revision, to: S) -> Result<S::Ok, S::Error> {
        use std::borrow::Cow::Borrowed;
        Open { id: Borrowed(&revision.id), spec: Borrowed(&revision.spec.0) }.serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Revision, D::Error> {
        let open = Open::deserialize(from)?;
        let spec = Sealed::from_json(open.spec.into_owned()).map_err(serde::de::Error::custom)?;
        Ok(Revision { id: open.id.into_owned(), spec })
    }
}

/// What a state wants to be in front of users.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Goal {
    /// Both revisions stand, and the candidate has this share of traffic.
    Split(Weight),
    /// The candidate alone; leftovers of the baseline cleared.
    Candidate,
    /// The baseline alone; leftovers of the candidate cleared.
    Baseline,
}

impl Goal {
    /// Whether reaching it gives the candidate traffic or keeps it standing.
    pub const fn is_forward(self) -> bool {
        !matches!(self, Self::Baseline)
    }
}

/// `25 %`, `candidate`, `baseline`; with `{:#}` without the blank, as nonces have it.
impl fmt::Display for Goal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Split(weight) if f.alternate() => write!(f, "split-{}", weight.percent()),
            Self::Split(weight) => weight.fmt(f),
            Self::Candidate => f.write_str("candidate"),
            Self::Baseline => f.write_str("baseline"),
        }
    }
}

/// A shift that was written into the record before it is sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// Marks this attempt; backends write it on the target.
    pub nonce: Nonce,
    /// What the shift works towards.
    pub goal: Goal,
    /// The target's version that the shift spends.
    pub version: Version,
    /// When the attempt was decided, in wall time.
    pub at: Timestamp,
}

/// How far the target is from a goal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The goal is what is in front of users, on every part.
    Reached,
    /// One more effect is due: its short name, as in "set weight to 25 %" or "delete pod web-2".
    Due(Effect),
    /// Nothing to do but to wait: for what.
    Underway(Note),
    /// The platform says that this goal cannot be reached by what was asked: why.
    Failed(Note),
    /// Somebody else changed the target: what is there instead.
    Drifted(Note),
}

/// What a look saw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observed {
    /// How far the target is from the goal asked about.
    pub progress: Progress,
    /// The target's version, for the next shift to spend.
    pub version: Version,
    /// The candidate's share of traffic, where the platform tells.
    pub weight: Option<Weight>,
    /// What each part (instance, pod, region) serves, where the platform tells. May be empty.
    pub parts: Vec<Part>,
    /// Whether the attempt that was passed in is known to have landed: its nonce was seen, or an effect that no other
    /// call of this rollout can have had; or what it was about is over, so that it can have none any more. When in doubt, no.
    pub landed: bool,
    /// Whether what is due may be asked for again while an earlier call may still land: it names the one thing that it is for
    /// (a deployment to stop, a hook to answer), and once that is done it changes nothing. Heeded on the way back alone,
    /// where versions are not checked: users meet the candidate until it is heard. When in doubt, no.
    pub repeatable: bool,
    /// What a rollback did not bring back (configuration, add-ons, schema).
    pub not_restored: Vec<Note>,
}

impl Observed {
    /// A look that saw this progress at this version, and nothing more.
    pub const fn new(progress: Progress, version: Version) -> Self {
        Self {
            progress,
            version,
            weight: None,
            parts: Vec::new(),
            landed: false,
            repeatable: false,
            not_restored: Vec::new(),
        }
    }

    /// With the candidate's share of traffic.
    #[must_use]
    pub const fn weight(mut self, weight: Weight) -> Self {
        self.weight = Some(weight);
        self
    }

    /// With what the parts serve.
    #[must_use]
    pub fn parts(mut self, parts: Vec<Part>) -> Self {
        self.parts = parts;
        self
    }

    /// With whether the attempt passed in is known to have landed.
    #[must_use]
    pub const fn landed(mut self, landed: bool) -> Self {
        self.landed = landed;
        self
    }

    /// With whether what is due may be asked for again before an earlier call is past landing.
    #[must_use]
    pub const fn repeatable(mut self, repeatable: bool) -> Self {
        self.repeatable = repeatable;
        self
    }

    /// With what a rollback does not bring back.
    #[must_use]
    pub fn not_restored(mut self, notes: Vec<Note>) -> Self {
        self.not_restored = notes;
        self
    }
}

/// One part of a target and what it serves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// The part's name: an instance id, a pod, a region.
    pub name: Note,
    /// What it serves.
    pub serves: Serves,
}

impl Part {
    /// A part that serves this.
    pub fn new(name: impl AsRef<str>, serves: Serves) -> Self {
        Self { name: Note::new(name), serves }
    }
}

/// Which revision a part of a target serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Serves {
    /// The revision to keep.
    Baseline,
    /// The revision to try.
    Candidate,
    /// Both, by weight.
    Both,
    /// Nothing, as an instance out of service.
    Nothing,
    /// Something else, or nobody can tell.
    Other,
}

/// A short text for people: one line, at most 1 KiB. Longer text is cut, control characters become blanks.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default)]
#[serde(from = "String", into = "String")]
pub struct Note(Arc<str>);

/// The short name of the next effect on a target, "set weight to 25 %".
pub type Effect = Note;

impl Note {
    /// The most bytes a note keeps.
    pub const MAX_LEN: usize = 1024;

    /// A note of this text, cut to [`Self::MAX_LEN`] and to one line.
    pub fn new(text: impl AsRef<str>) -> Self {
        let text = text.as_ref();
        let fits = text.len() <= Self::MAX_LEN && !text.contains(char::is_control);
        if fits {
            return Self(text.into());
        }
        let mut kept = String::with_capacity(Self::MAX_LEN);
        for c in text.chars().map(|c| if c.is_control() { ' ' } else { c }) {
            if kept.len() + c.len_utf8() > Self::MAX_LEN - '…'.len_utf8() {
                kept.push('…');
                break;
            }
            kept.push(c);
        }
        Self(kept.into())
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for Note {
    fn from(text: &str) -> Self {
        Self::new(text)
    }
}

impl From<String> for Note {
    fn from(text: String) -> Self {
        Self::new(text)
    }
}

impl From<Note> for String {
    fn from(note: Note) -> Self {
        note.0.as_ref().into()
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}
