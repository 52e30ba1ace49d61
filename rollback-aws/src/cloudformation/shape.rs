//! What a stack is made of, where it is between two revisions, and what that means for a goal. Pure.

use std::{collections::BTreeMap, fmt};

use rollback_core::{
    Error, Result,
    model::{Change, Goal, Nonce, Note, Progress, Revision, RolloutId, Weight},
};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// What a revision of a stack seals: what an update to it sends.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Spec {
    /// The stack's id: a stack of the same name that was made since is another one.
    pub(super) stack: String,
    pub(super) template: Source,
    /// Of the template's text.
    pub(super) digest: String,
    pub(super) parameters: BTreeMap<String, Given>,
    pub(super) tags: BTreeMap<String, String>,
    pub(super) capabilities: Vec<String>,
    /// How many rollback triggers the stack had when this was read off it.
    #[serde(default)]
    pub(super) triggers: usize,
}

/// Where an update takes a template from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) enum Source {
    Body(String),
    Url(String),
    /// It is longer than a request may be, and nobody said where it lies: so many bytes.
    Nowhere(usize),
}

/// What an update says of a parameter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) enum Given {
    Value(String),
    /// NoEcho: it cannot be read, so it stays as it is.
    Kept,
    /// NoEcho and new: what the template says.
    Default,
}

/// The longest template that a request takes, in bytes (`UpdateStack`).
pub(super) const MAX_BODY: usize = 51_200;

impl Spec {
    /// What a revision of this backend seals.
    pub(super) fn of(revision: &Revision) -> Result<Self> {
        revision.spec.open().map_err(|e| {
            let why = format!("revision {} was not made for a stack; Stack::revision makes one", revision.id);
            Error::invalid(why).because(e)
        })
    }

    /// The revision with this spec. Its id is what the stack would be made of, and nothing else.
    pub(super) fn revision(&self) -> Result<Revision> {
        let mut hash = Sha256::new();
        let mut add = |text: &str| {
            hash.update(text.len().to_be_bytes());
            hash.update(text);
        };
        add(&self.digest);
        for (name, given) in &self.parameters {
            add(name);
            add(match given {
                Given::Value(value) => value,
                Given::Kept | Given::Default => "",
            });
        }
        add("tags");
        for (key, value) in &self.tags {
            add(key);
            add(value);
        }
        Revision::new(format!("stack-{}", hex(&hash.finalize(), 10)))?.with_spec(self)
    }

    /// Whether a stack that is seen so is made of this. What differs otherwise: names, never values.
    fn is(&self, seen: &Made<'_>) -> Result<(), String> {
        let mut differ = Vec::new();
        if self.digest != seen.digest {
            differ.push("the template".to_owned());
        }
        let same = |name: &String, given: &Given| match (given, seen.parameters.get(name)) {
            (Given::Value(value), Some(seen)) => value == seen,
            (Given::Kept | Given::Default, Some(_)) => true,
            (_, None) => false,
        };
        let off = self.parameters.iter().filter(|(name, given)| !same(name, given)).map(|(name, _)| name);
        let more = seen.parameters.keys().filter(|name| !self.parameters.contains_key(*name));
        differ.extend(off.chain(more).map(|name| format!("parameter {name}")));
        if self.tags != *seen.tags {
            differ.push("the tags".into());
        }
        if differ.is_empty() { Ok(()) } else { Err(differ.join(", ")) }
    }
}

/// What a stack was seen to be made of.
pub(super) struct Made<'a> {
    pub(super) digest: &'a str,
    pub(super) parameters: &'a BTreeMap<String, String>,
    pub(super) tags: &'a BTreeMap<String, String>,
}

impl Made<'_> {
    /// Where this is between two revisions.
    pub(super) fn stands(&self, baseline: &Spec, candidate: &Spec) -> Stands {
        match (baseline.is(self), candidate.is(self)) {
            (Ok(()), _) => Stands::Baseline,
            (_, Ok(())) => Stands::Candidate,
            (Err(differs), Err(_)) => Stands::Elsewhere(differs),
        }
    }
}

/// Where a stack that is at rest is between two revisions.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Stands {
    Baseline,
    Candidate,
    /// Something else: in what it differs from the baseline.
    Elsewhere(String),
}

/// A digest of a template. The service gives the text back as it got it; that a JSON template may be set differently, and a
/// text end otherwise, is allowed for.
pub(super) fn digest(template: &str) -> String {
    let canonical = match serde_json::from_str::<serde_json::Value>(template) {
        Ok(json) => json.to_string(),
        Err(_) => template.replace("\r\n", "\n").trim_end().to_owned(),
    };
    hex(&Sha256::digest(canonical), 16)
}

fn hex(bytes: &[u8], count: usize) -> String {
    bytes.iter().take(count).map(|byte| format!("{byte:02x}")).collect()
}

/// The `ClientRequestToken` of an attempt: says whose it is, where it leads, and which it is.
pub(super) fn token(rollout: &RolloutId, goal: Goal, nonce: &Nonce) -> String {
    let way = if goal.is_forward() { Way::Forward } else { Way::Back };
    format!("{}{}", prefix(rollout, way), hex(&Sha256::digest(nonce.as_str()), 8))
}

fn prefix(rollout: &RolloutId, way: Way) -> String {
    let way = match way {
        Way::Forward => "candidate",
        Way::Back => "baseline",
    };
    format!("rollback-{}-{way}-", hex(&Sha256::digest(rollout.as_str()), 8))
}

/// Which way an operation leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    Forward,
    Back,
}

/// Whose operation on a stack is the last.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Whose {
    /// This rollout's.
    Ours(Way),
    /// Somebody else's: its token, where it has one.
    Other(Option<String>),
    /// It is not told yet.
    Unknown,
}

impl Whose {
    /// By the token of an operation's first event.
    pub(super) fn of(rollout: &RolloutId, token: Option<&str>) -> Self {
        let begins = |way| token.is_some_and(|token| token.starts_with(&prefix(rollout, way)));
        match () {
            () if begins(Way::Forward) => Self::Ours(Way::Forward),
            () if begins(Way::Back) => Self::Ours(Way::Back),
            () => Self::Other(token.map(Into::into)),
        }
    }
}

impl fmt::Display for Whose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Other(Some(token)) => write!(f, "somebody else's operation {token}"),
            _ => f.write_str("somebody else's operation"),
        }
    }
}

/// What a stack's status means for what may be asked of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// It is complete, and takes an update.
    Rest,
    /// As the last update left it, but what that replaced is still being removed.
    Clearing,
    /// As it was before the last update, but what that made is still being removed.
    ClearingBack,
    Updating,
    Undoing,
    UndoFailed,
    /// An update failed, and was not to be rolled back.
    Failed,
    /// It is created, imported, deleted, or worse.
    Elsewhere,
}

impl Phase {
    pub(super) fn of(status: &str) -> Self {
        match status {
            "CREATE_COMPLETE"
            | "UPDATE_COMPLETE"
            | "UPDATE_ROLLBACK_COMPLETE"
            | "IMPORT_COMPLETE"
            | "IMPORT_ROLLBACK_COMPLETE" => Self::Rest,
            "UPDATE_COMPLETE_CLEANUP_IN_PROGRESS" => Self::Clearing,
            "UPDATE_ROLLBACK_COMPLETE_CLEANUP_IN_PROGRESS" => Self::ClearingBack,
            "UPDATE_IN_PROGRESS" => Self::Updating,
            "UPDATE_ROLLBACK_IN_PROGRESS" => Self::Undoing,
            "UPDATE_ROLLBACK_FAILED" => Self::UndoFailed,
            "UPDATE_FAILED" => Self::Failed,
            _ => Self::Elsewhere,
        }
    }

    /// Whether the stack is made of one thing, which serves.
    pub(super) const fn is_whole(self) -> bool {
        matches!(self, Self::Rest | Self::Clearing | Self::ClearingBack)
    }
}

/// The one thing to ask of a stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Effect {
    Update,
    Cancel,
    Continue,
    RollBack,
}

/// A stack as a look saw it, in a rollout.
pub(super) struct Look<'a> {
    pub(super) status: &'a str,
    /// Only of a stack that is whole.
    pub(super) stands: Option<&'a Stands>,
    pub(super) whose: &'a Whose,
    /// What CloudFormation says of the last operation, when that went wrong; may be empty.
    pub(super) why: &'a str,
}

impl Look<'_> {
    /// The candidate's share of traffic.
    pub(super) const fn weight(&self) -> Option<Weight> {
        match self.stands {
            Some(Stands::Baseline) => Some(Weight::NONE),
            Some(Stands::Candidate) => Some(Weight::ALL),
            _ => None,
        }
    }

    /// How far it is from a goal.
    pub(super) fn towards(&self, goal: Goal, change: &Change) -> Progress {
        let phase = Phase::of(self.status);
        let ours = match self.whose {
            Whose::Ours(way) => Some(*way),
            _ => None,
        };
        let underway = |what: String| Progress::Underway(Note::new(what));
        let drifted = |what: String| Progress::Drifted(Note::new(what));
        let undone = || {
            let what = match phase {
                Phase::UndoFailed => "CloudFormation could not roll the update back",
                Phase::Failed => "the update failed",
                _ => "CloudFormation rolled the update back",
            };
            Progress::Failed(Note::new(self.told(what)))
        };
        if let (true, Some(Stands::Elsewhere(differs))) = (phase.is_whole(), self.stands) {
            return drifted(format!("the stack is {}, and is neither revision: {differs} changed", self.status));
        }
        let at_candidate = self.stands == Some(&Stands::Candidate);
        match (phase, goal.is_forward()) {
            (Phase::Elsewhere, _) => drifted(format!("the stack is {}", self.status)),
            (_, _) if !phase.is_whole() && matches!(self.whose, Whose::Other(_)) => {
                drifted(format!("the stack is {}, by {}", self.status, self.whose))
            }
            // Before the events tell whose it is, nothing is said of it.
            (_, _) if !phase.is_whole() && *self.whose == Whose::Unknown => underway(self.status.into()),

            (Phase::Rest, true) if at_candidate => Progress::Reached,
            // The candidate serves alone already, but there is no way back before this is over: a bake begins when there is.
            (Phase::Clearing, true) if at_candidate => {
                underway("CloudFormation removes what the update replaced".into())
            }
            (Phase::Rest | Phase::ClearingBack, true)
                if !at_candidate && ours == Some(Way::Forward) && self.status.starts_with("UPDATE_ROLLBACK") =>
            {
                undone()
            }
            (Phase::Rest, true) => Progress::Due(Note::new(format!("update the stack to {}", change.candidate.id))),
            (Phase::Undoing | Phase::UndoFailed | Phase::Failed, true) if ours == Some(Way::Forward) => undone(),
            (_, true) => underway(format!("the stack is {}", self.status)),

            (Phase::Rest, false) if !at_candidate => Progress::Reached,
            (Phase::Rest, false) if ours == Some(Way::Back) && self.status.starts_with("UPDATE_ROLLBACK") => {
                let again = format!("update the stack back to {} again", change.baseline.id);
                Progress::Due(Note::new(self.told(&again)))
            }
            (Phase::Rest, false) => {
                Progress::Due(Note::new(format!("update the stack back to {}", change.baseline.id)))
            }
            (Phase::Clearing | Phase::ClearingBack, false) => underway(match at_candidate {
                true => "CloudFormation takes no update before it has removed what the last one replaced".into(),
                false => "CloudFormation removes what the update made".into(),
            }),
            (Phase::Updating, false) if ours == Some(Way::Forward) => Progress::Due(Note::new("cancel the update")),
            (Phase::UndoFailed, false) => Progress::Due(Note::new(self.told("continue the rollback"))),
            (Phase::Failed, false) => Progress::Due(Note::new(self.told("roll the failed update back"))),
            (Phase::Updating | Phase::Undoing, false) => underway(format!("the stack is {}", self.status)),
        }
    }

    /// What a shift towards the goal asks for; none when it is reached. An effect that is not due is asked for only over
    /// somebody else's work, and only on the way back.
    pub(super) fn effect(&self, goal: Goal) -> Option<Effect> {
        let at_candidate = self.stands == Some(&Stands::Candidate);
        match (Phase::of(self.status), goal.is_forward()) {
            (Phase::Rest, true) if at_candidate => None,
            (Phase::Rest, false) if self.stands == Some(&Stands::Baseline) => None,
            (Phase::Updating, false) => Some(Effect::Cancel),
            (Phase::UndoFailed, false) => Some(Effect::Continue),
            (Phase::Failed, false) => Some(Effect::RollBack),
            _ => Some(Effect::Update),
        }
    }

    fn told(&self, what: &str) -> String {
        if self.why.is_empty() { what.into() } else { format!("{what}: {}", self.why) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rollback_core::model::{Serial, TargetId};

    fn spec(digest: &str, parameters: &[(&str, Given)]) -> Spec {
        Spec {
            stack: "arn".into(),
            template: Source::Body("{}".into()),
            digest: digest.into(),
            parameters: parameters.iter().map(|(name, given)| ((*name).into(), given.clone())).collect(),
            tags: BTreeMap::new(),
            capabilities: Vec::new(),
            triggers: 0,
        }
    }

    fn value(text: &str) -> Given {
        Given::Value(text.into())
    }

    #[test]
    fn an_id_tells_contents_apart_and_nothing_else() {
        let id = |spec: &Spec| spec.revision().expect("a small spec").id;
        let one = spec("a", &[("Image", value("v1")), ("Secret", Given::Kept)]);
        let elsewhere = Spec { template: Source::Url("https://bucket/a".into()), triggers: 3, ..one.clone() };
        assert_eq!(id(&one), id(&elsewhere));
        assert_ne!(id(&one), id(&spec("b", &[("Image", value("v1")), ("Secret", Given::Kept)])));
        assert_ne!(id(&one), id(&spec("a", &[("Image", value("v2")), ("Secret", Given::Kept)])));
        assert_ne!(id(&one), id(&spec("a", &[("Image", value("v1"))])));
    }

    #[test]
    fn what_differs_is_named_without_its_value() {
        let one = spec("a", &[("Image", value("v1")), ("Secret", Given::Kept)]);
        let two = spec("a", &[("Image", value("v2")), ("Secret", Given::Kept)]);
        let tags = BTreeMap::new();
        let parameters = |image: &str| {
            BTreeMap::from([("Image".to_owned(), image.to_owned()), ("Secret".to_owned(), "****".to_owned())])
        };
        let stands =
            |digest: &str, image: &str| Made { digest, parameters: &parameters(image), tags: &tags }.stands(&one, &two);
        assert_eq!(stands("a", "v1"), Stands::Baseline);
        assert_eq!(stands("a", "v2"), Stands::Candidate);
        assert_eq!(stands("a", "hunter2"), Stands::Elsewhere("parameter Image".into()));
        assert_eq!(stands("c", "v1"), Stands::Elsewhere("the template".into()));
    }

    #[test]
    fn a_template_is_the_same_however_it_is_set() {
        assert_eq!(digest("{\"a\": 1,\n \"b\": 2}"), digest("{\"b\":2,\"a\":1}"));
        assert_eq!(digest("Resources:\r\n  A: 1\n\n"), digest("Resources:\n  A: 1"));
        assert_ne!(digest("Resources:\n  A: 1"), digest("Resources:\n  A: 2"));
    }

    #[test]
    fn a_token_is_what_cloudformation_takes_and_tells_whose_it_is() {
        let rollout = RolloutId::try_from("checkout-0123456789abcdef").expect("a good id");
        let other = RolloutId::try_from("checkout-0123456789abcdee").expect("a good id");
        for (goal, way) in [(Goal::Candidate, Way::Forward), (Goal::Baseline, Way::Back)] {
            let token = token(&rollout, goal, &Nonce::new(&rollout, Serial(7), goal));
            assert!(token.len() <= 128 && token.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-'), "{token}");
            assert_eq!(Whose::of(&rollout, Some(&token)), Whose::Ours(way));
            assert_eq!(Whose::of(&other, Some(&token)), Whose::Other(Some(token)));
        }
        assert_eq!(Whose::of(&rollout, None), Whose::Other(None));
    }

    #[test]
    fn each_status_means_one_thing_on_each_way() {
        let change = Change {
            rollout: RolloutId::try_from("r").expect("a good id"),
            target: TargetId::try_from("t").expect("a good id"),
            baseline: Revision::new("old").expect("a good id"),
            candidate: Revision::new("new").expect("a good id"),
        };
        let (forward, back, other) = (Whose::Ours(Way::Forward), Whose::Ours(Way::Back), Whose::Other(None));
        let (old, new) = (Some(Stands::Baseline), Some(Stands::Candidate));
        for (status, stands, whose, on, home) in [
            ("CREATE_COMPLETE", &old, &other, "due", "reached"),
            ("UPDATE_COMPLETE", &new, &forward, "reached", "due"),
            ("UPDATE_COMPLETE", &old, &back, "due", "reached"),
            ("UPDATE_COMPLETE", &Some(Stands::Elsewhere("the tags".into())), &other, "drifted", "drifted"),
            ("UPDATE_COMPLETE_CLEANUP_IN_PROGRESS", &new, &forward, "underway", "underway"),
            ("UPDATE_IN_PROGRESS", &None, &forward, "underway", "due"),
            ("UPDATE_IN_PROGRESS", &None, &back, "underway", "underway"),
            ("UPDATE_IN_PROGRESS", &None, &other, "drifted", "drifted"),
            ("UPDATE_IN_PROGRESS", &None, &Whose::Unknown, "underway", "underway"),
            ("UPDATE_ROLLBACK_IN_PROGRESS", &None, &forward, "failed", "underway"),
            ("UPDATE_ROLLBACK_IN_PROGRESS", &None, &back, "underway", "underway"),
            ("UPDATE_ROLLBACK_COMPLETE_CLEANUP_IN_PROGRESS", &old, &forward, "failed", "underway"),
            ("UPDATE_ROLLBACK_COMPLETE", &old, &forward, "failed", "reached"),
            ("UPDATE_ROLLBACK_COMPLETE", &old, &other, "due", "reached"),
            ("UPDATE_ROLLBACK_COMPLETE", &new, &back, "reached", "due"),
            ("UPDATE_ROLLBACK_FAILED", &None, &forward, "failed", "due"),
            ("UPDATE_ROLLBACK_FAILED", &None, &back, "underway", "due"),
            ("UPDATE_ROLLBACK_FAILED", &None, &other, "drifted", "drifted"),
            ("UPDATE_FAILED", &None, &forward, "failed", "due"),
            ("DELETE_IN_PROGRESS", &None, &other, "drifted", "drifted"),
        ] {
            let look = Look { status, stands: stands.as_ref(), whose, why: "" };
            let name = |goal| match look.towards(goal, &change) {
                Progress::Reached => "reached",
                Progress::Due(_) => "due",
                Progress::Underway(_) => "underway",
                Progress::Failed(_) => "failed",
                Progress::Drifted(_) => "drifted",
            };
            assert_eq!((name(Goal::Candidate), name(Goal::Baseline)), (on, home), "{status} {stands:?} {whose:?}");
        }
    }
}
