//! What the list of an app's releases says about a rollout. Pure: no clock, no I/O.
//!
//! A rollout's own releases are known by what they leave in the list: the attempt's nonce in the description, the release
//! that a build of ours made, the code that only the candidate has, or Heroku's own words "Rollback to v12". Everything
//! else that is newer than the baseline is somebody else's.

use std::collections::BTreeSet;

use rollback_core::model::{Attempt, Nonce, Note, RolloutId, Serves};

use crate::{
    api::{Release, Status},
    candidate::Served,
};

/// The newest releases of an app, newest first.
#[derive(Clone, Debug)]
pub(crate) struct History(Vec<Release>);

/// How the candidate's release is known among the others.
#[derive(Clone, Debug)]
pub(crate) enum Trail {
    /// By its description, which has our nonce.
    Tagged,
    /// By the builds of this rollout, which made these releases.
    Built(BTreeSet<String>),
    /// By its code: an image that only the candidate has, or a slug that was promoted; or by these words.
    Code { code: String, or_words: Option<String> },
    /// By Heroku's words for going back to this version.
    Restored(u64),
}

/// What a release is to a rollout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mark {
    /// The baseline, or older.
    Before,
    /// It put the candidate in place.
    Candidate,
    /// It brought the baseline back.
    Back,
    /// Neither is ours.
    Foreign,
}

/// How the releases stand to a goal.
#[derive(Clone, Debug)]
pub(crate) enum Stand<'a, D> {
    /// This is to be asked for.
    Due(D),
    /// There is something to wait for.
    Underway(Note),
    /// It cannot be reached by what was asked.
    Failed(Note),
    /// Somebody else released.
    Drifted(Note),
    /// This release is current, and the goal's. What its dynos do is another question.
    Serves(&'a Release),
}

/// How the baseline comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// Heroku's rollback: code and config vars.
    Full,
    /// A release of the old slug with today's config vars.
    CodeOnly,
}

impl History {
    pub(crate) fn new(mut releases: Vec<Release>) -> Self {
        releases.sort_by_key(|release| std::cmp::Reverse(release.version));
        Self(releases)
    }

    pub(crate) fn newest(&self) -> Option<&Release> {
        self.0.first()
    }

    /// The version of the newest release, whatever became of it: what a shift spends.
    pub(crate) fn version(&self) -> u64 {
        self.newest().map_or(0, |release| release.version)
    }

    pub(crate) fn current(&self) -> Option<&Release> {
        self.0.iter().find(|release| release.current && release.status == Status::Succeeded)
    }

    pub(crate) fn has(&self, id: &str) -> bool {
        self.0.iter().any(|release| release.id == id)
    }

    pub(crate) fn find(&self, version: u64) -> Option<&Release> {
        self.0.iter().find(|release| release.version == version)
    }

    /// Newer ones than the current that are still on their way.
    pub(crate) fn pending(&self) -> Option<&Release> {
        let current = self.current()?.version;
        self.0.iter().find(|release| release.version > current && release.status == Status::Pending)
    }

    /// What a release runs, the same for ever: `slug:…`, `oci:…`, `image:…`, or, where nothing tells, `release:v5`.
    pub(crate) fn code(&self, release: &Release) -> String {
        // A rollback to a rollback is followed, as far as the list goes.
        let mut at = release;
        for _ in 0..self.0.len().max(1) {
            if let Some(code) = at.code() {
                return code;
            }
            if let Some(images) = deployed_images(at.description()) {
                return format!("image:{images}");
            }
            match restored(at.description()).map(|version| (version, self.find(version))) {
                Some((_, Some(older))) if older.version < at.version => at = older,
                Some((version, None)) => return format!("release:v{version}"),
                _ => break,
            }
        }
        format!("release:v{}", at.version)
    }
}

/// A rollout's view of an app's releases.
#[derive(Clone, Copy)]
pub(crate) struct Lineage<'a> {
    pub(crate) history: &'a History,
    pub(crate) rollout: &'a RolloutId,
    pub(crate) baseline: &'a Served,
    pub(crate) trail: &'a Trail,
}

impl<'a> Lineage<'a> {
    const fn base(&self) -> u64 {
        self.baseline.version
    }

    pub(crate) fn mark(&self, release: &Release) -> Mark {
        if release.version <= self.base() {
            return Mark::Before;
        }
        if let Some((rollout, goal)) = tag(release.description()).and_then(tagged) {
            return match rollout == self.rollout.as_str() {
                true if goal == "baseline" => Mark::Back,
                true => Mark::Candidate,
                false => Mark::Foreign,
            };
        }
        let restored = restored(release.description());
        if restored == Some(self.base()) {
            return Mark::Back;
        }
        let ours = match self.trail {
            Trail::Tagged => false,
            Trail::Built(releases) => releases.contains(&release.id),
            Trail::Code { code, or_words } => {
                let worded = or_words.as_ref().is_some_and(|words| starts_with_word(release.description(), words));
                worded || self.first_with(code) == Some(release.version)
            }
            Trail::Restored(version) => restored == Some(*version),
        };
        if ours { Mark::Candidate } else { Mark::Foreign }
    }

    /// The release that brought this code. Later ones that have it are config changes, which are somebody else's.
    fn first_with(&self, code: &str) -> Option<u64> {
        let newer = self.history.0.iter().filter(|release| release.version > self.base());
        newer.filter(|release| self.history.code(release) == code).map(|release| release.version).min()
    }

    fn newer(&self) -> impl Iterator<Item = (Mark, &'a Release)> {
        let newer = self.history.0.iter().filter(|release| release.version > self.base());
        newer.map(|release| (self.mark(release), release))
    }

    /// What a part at this release's version serves.
    pub(crate) fn serves(&self, version: u64) -> Serves {
        match self.history.find(version).map(|release| self.mark(release)) {
            Some(Mark::Back) if self.runs_another(version).is_some() => Serves::Other,
            Some(Mark::Before | Mark::Back) => Serves::Baseline,
            Some(Mark::Candidate) => Serves::Candidate,
            None if version <= self.base() => Serves::Baseline,
            Some(Mark::Foreign) | None => Serves::Other,
        }
    }

    /// What this version runs instead of the recorded code, where a release tells what it runs.
    fn runs_another(&self, version: u64) -> Option<String> {
        let runs = self.history.find(version)?.code()?;
        (self.baseline.proof()? != runs).then_some(runs)
    }

    /// How the releases stand to the candidate.
    pub(crate) fn forward(&self) -> Stand<'a, ()> {
        if let Some((_, foreign)) = self.newer().find(|(mark, release)| *mark == Mark::Foreign && is_effective(release))
        {
            return Stand::Drifted(told(foreign));
        }
        let own = self
            .newer()
            .find(|(mark, release)| *mark != Mark::Foreign && (*mark != Mark::Back || is_effective(release)));
        match own {
            None => Stand::Due(()),
            Some((Mark::Back, back)) => {
                Stand::Failed(Note::new(format!("the baseline was brought back: {}", told(back))))
            }
            Some((_, candidate)) => match candidate.status {
                Status::Succeeded if candidate.current => Stand::Serves(candidate),
                Status::Succeeded => Stand::Underway(Note::new(format!("v{} is not current yet", candidate.version))),
                Status::Pending => Stand::Underway(Note::new(format!("the release phase of v{}", candidate.version))),
                Status::Failed => Stand::Failed(Note::new(format!(
                    "v{} failed in its release phase; see `heroku releases:output v{}`",
                    candidate.version, candidate.version
                ))),
                Status::Expired => {
                    Stand::Failed(Note::new(format!("v{} expired before it was released", candidate.version)))
                }
                Status::Other => {
                    Stand::Underway(Note::new(format!("v{} has a status unknown to us", candidate.version)))
                }
            },
        }
    }

    /// How the releases stand to the baseline. Where the first way has failed, the other may be due.
    pub(crate) fn back(&self, way: Way, other: Option<Way>) -> Stand<'a, Way> {
        let mut effective = self.newer().filter(|(_, release)| is_effective(release));
        let Some((mark, top)) = effective.next() else {
            return match self.history.current() {
                Some(current) if current.version == self.base() => Stand::Serves(current),
                Some(current) => Stand::Drifted(told(current)),
                None => Stand::Underway(Note::new("no release is current")),
            };
        };
        match mark {
            Mark::Foreign | Mark::Before => Stand::Drifted(told(top)),
            Mark::Back => match top.status {
                Status::Succeeded if top.current => match self.runs_another(top.version) {
                    None => Stand::Serves(top),
                    Some(other) => Stand::Failed(Note::new(format!(
                        "v{}, which was to bring v{} back, runs {other} instead of {}",
                        top.version,
                        self.base(),
                        self.baseline.proof().unwrap_or_default()
                    ))),
                },
                Status::Succeeded => Stand::Underway(Note::new(format!("v{} is not current yet", top.version))),
                _ => Stand::Underway(Note::new(format!(
                    "the release phase of v{}, which brings the baseline back",
                    top.version
                ))),
            },
            Mark::Candidate => {
                if let Some((_, foreign)) = effective.find(|(mark, _)| *mark == Mark::Foreign) {
                    return Stand::Drifted(told(foreign));
                }
                if top.status != Status::Succeeded {
                    // Killing a migration half way is worse than a short time of the candidate.
                    let what = format!(
                        "the release phase of v{}: it cannot be called back, so its end is waited for",
                        top.version
                    );
                    return Stand::Underway(Note::new(what));
                }
                let failed: Vec<&Release> = self
                    .newer()
                    .filter(|(mark, release)| *mark == Mark::Back && release.version > top.version)
                    .map(|(_, release)| release)
                    .collect();
                let tried = |way: Way| failed.iter().any(|back| way_of(back) == way);
                match other {
                    _ if failed.is_empty() => Stand::Due(way),
                    Some(other) if !tried(other) => Stand::Due(other),
                    _ => Stand::Failed(Note::new(format!(
                        "v{}, which was to bring the baseline back, failed in its release phase: v{} still serves",
                        failed[0].version, top.version
                    ))),
                }
            }
        }
    }

    /// Whether this attempt is known to have landed: its nonce is there, or something newer than what it saw that only it
    /// can have made.
    pub(crate) fn landed(&self, attempt: &Attempt, saw: u64) -> bool {
        let wanted = if attempt.goal.is_forward() { Mark::Candidate } else { Mark::Back };
        self.newer().filter(|(_, release)| release.version > saw).any(|(mark, release)| {
            match tag(release.description()) {
                Some(nonce) => nonce == attempt.nonce.as_str(),
                None => mark == wanted,
            }
        })
    }
}

/// The description of a release of ours.
pub(crate) fn describe(what: &str, nonce: &Nonce) -> String {
    format!("{what} by rollback [{nonce}]")
}

/// The nonce in a text of ours.
pub(crate) fn tag(text: &str) -> Option<&str> {
    let (before, nonce) = text.strip_suffix(']')?.split_once('[')?;
    before.ends_with(" by rollback ").then_some(nonce)
}

/// The rollout and the goal in a nonce, which is `rollout/serial/goal`.
pub(crate) fn tagged(nonce: &str) -> Option<(&str, &str)> {
    let mut parts = nonce.rsplitn(3, '/');
    let (goal, _serial, rollout) = (parts.next()?, parts.next()?, parts.next()?);
    Some((rollout, goal))
}

/// The version in Heroku's "Rollback to v12".
fn restored(description: &str) -> Option<u64> {
    description.strip_prefix("Rollback to v")?.parse().ok()
}

/// The images in Heroku's "Deployed web (0123456789ab), worker (…)", as `web=0123456789ab,worker=…`, sorted.
fn deployed_images(description: &str) -> Option<String> {
    let mut images = Vec::new();
    for part in description.strip_prefix("Deployed ")?.split(", ") {
        let (kind, digest) = part.strip_suffix(')')?.split_once(" (")?;
        images.push(format!("{kind}={digest}"));
    }
    images.sort();
    Some(images.join(","))
}

fn starts_with_word(text: &str, words: &str) -> bool {
    text.strip_prefix(words).is_some_and(|rest| !rest.starts_with(|c: char| c.is_alphanumeric()))
}

fn way_of(back: &Release) -> Way {
    if tag(back.description()).is_some() { Way::CodeOnly } else { Way::Full }
}

/// Whether a release changed what runs, or still may.
fn is_effective(release: &Release) -> bool {
    !matches!(release.status, Status::Failed | Status::Expired)
}

/// A release in a few words: its version, whose it is, what Heroku says of it.
pub(crate) fn told(release: &Release) -> Note {
    let by = if release.user.email.is_empty() { "somebody" } else { release.user.email.as_str() };
    Note::new(format!("v{} by {by}: {}", release.version, release.description()))
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use rollback_core::model::{Goal, Serial, Version};

    use super::*;
    use crate::api::Ref;

    /// `v` status slug description
    fn release(version: u64, status: Status, current: bool, slug: &str, description: &str) -> Release {
        Release {
            id: format!("r{version}"),
            version,
            status,
            current,
            description: Some(description.into()),
            slug: (!slug.is_empty()).then(|| Ref { id: slug.into() }),
            artifacts: Vec::new(),
            addon_plan_names: BTreeSet::new(),
            eligible_for_rollback: Some(true),
            user: Default::default(),
            created_at: Timestamp::UNIX_EPOCH,
            updated_at: Timestamp::UNIX_EPOCH,
        }
    }

    /// v1, which ran the slug `old`.
    fn v1() -> Served {
        Served {
            release: "r1".into(),
            version: 1,
            slug: Some("old".into()),
            code: "slug:old".into(),
            config_keys: None,
            addons: BTreeSet::new(),
            down: BTreeSet::new(),
        }
    }

    const OK: Status = Status::Succeeded;
    const FORTH: &str = "Deploy by rollback [r/3/split-100]";
    const BACK: &str = "Back by rollback [r/5/baseline]";

    fn seen(releases: &[(u64, Status, bool, &str)]) -> (String, String) {
        let slug = |text: &str| {
            if text.contains("Back") || text.starts_with("Rollback") || text == "base" { "old" } else { "new" }
        };
        let history = History::new(
            releases
                .iter()
                .map(|(v, status, current, text)| release(*v, *status, *current, slug(text), text))
                .collect(),
        );
        let (rollout, baseline) = (RolloutId::try_from("r").unwrap(), v1());
        let lineage = Lineage { history: &history, rollout: &rollout, baseline: &baseline, trail: &Trail::Tagged };
        fn say<D: std::fmt::Debug>(stand: Stand<'_, D>) -> String {
            match stand {
                Stand::Due(due) => format!("due {due:?}"),
                Stand::Underway(note) => format!("underway: {note}"),
                Stand::Failed(note) => format!("failed: {note}"),
                Stand::Drifted(note) => format!("drifted: {note}"),
                Stand::Serves(release) => format!("serves v{}", release.version),
            }
        }
        (say(lineage.forward()), say(lineage.back(Way::Full, Some(Way::CodeOnly))))
    }

    #[test]
    fn releases_stand_to_both_goals_as_the_table_says() {
        use Status::{Expired, Failed, Pending};
        let base = (1, OK, false, "base");
        let current = (1, OK, true, "base");
        for (releases, forward, back) in [
            (vec![current], "due ()", "serves v1"),
            (vec![current, (2, Pending, false, FORTH)], "underway: the release phase", "underway: the release phase"),
            (vec![base, (2, OK, true, FORTH)], "serves v2", "due Full"),
            (vec![current, (2, Failed, false, FORTH)], "failed: v2 failed", "serves v1"),
            (vec![current, (2, Expired, false, FORTH)], "failed: v2 expired", "serves v1"),
            (vec![base, (2, OK, true, "Set A config vars")], "drifted: v2", "drifted: v2"),
            (vec![current, (2, Pending, false, "Deploy 1234")], "drifted: v2", "drifted: v2"),
            (vec![current, (2, Failed, false, "Deploy 1234")], "due ()", "serves v1"),
            (vec![base, (2, OK, false, "Set A"), (3, OK, true, FORTH)], "drifted: v2", "drifted: v2"),
            (vec![base, (2, OK, false, FORTH), (3, OK, true, "Set A")], "drifted: v3", "drifted: v3"),
            (
                vec![base, (2, OK, true, FORTH), (3, Pending, false, "Rollback to v1")],
                "failed: the baseline was",
                "underway",
            ),
            (
                vec![base, (2, OK, false, FORTH), (3, OK, true, "Rollback to v1")],
                "failed: the baseline was",
                "serves v3",
            ),
            (vec![base, (2, OK, true, FORTH), (3, Failed, false, "Rollback to v1")], "serves v2", "due CodeOnly"),
            (
                vec![base, (2, OK, true, FORTH), (3, Failed, false, "Rollback to v1"), (4, Failed, false, BACK)],
                "serves v2",
                "failed: v4, which was to bring the baseline back, failed in its release phase: v2 still serves",
            ),
            (vec![base, (2, OK, false, FORTH), (3, OK, true, BACK)], "failed: the baseline was", "serves v3"),
            (vec![base, (2, OK, false, "Set A"), (3, OK, true, BACK)], "drifted: v2", "serves v3"),
            (vec![base, (2, OK, true, "Deploy by rollback [other/3/split-100]")], "drifted: v2", "drifted: v2"),
            (vec![base, (2, OK, false, FORTH), (3, OK, true, "Rollback to v11")], "drifted: v3", "drifted: v3"),
        ] {
            let (f, b) = seen(&releases);
            assert!(f.starts_with(forward), "{releases:?}: forward {f:?}, expected {forward:?}");
            assert!(b.starts_with(back), "{releases:?}: back {b:?}, expected {back:?}");
        }
    }

    #[test]
    fn a_release_that_says_it_brings_the_baseline_back_and_runs_another_slug_does_not() {
        let rollout = RolloutId::try_from("r").unwrap();
        for words in ["Rollback to v1", BACK] {
            let history = History::new(vec![
                release(1, OK, false, "old", "base"),
                release(2, OK, false, "new", FORTH),
                release(3, OK, true, "older", words),
            ]);
            let lineage = Lineage { history: &history, rollout: &rollout, baseline: &v1(), trail: &Trail::Tagged };
            let Stand::Failed(why) = lineage.back(Way::Full, None) else { panic!("{words}") };
            assert_eq!(why.as_str(), "v3, which was to bring v1 back, runs slug:older instead of slug:old");
            assert_eq!(lineage.serves(3), Serves::Other);
        }
    }

    #[test]
    fn a_config_change_on_top_of_a_promoted_slug_is_not_the_promotion() {
        let history = History::new(vec![
            release(1, OK, false, "old", "base"),
            release(2, OK, false, "new", "Promote staging v7 0123abcd"),
            release(3, OK, true, "new", "Set A config vars"),
            release(4, Status::Failed, false, "new", "Promote staging v70 0123abcd"),
        ]);
        let rollout = RolloutId::try_from("r").unwrap();
        let trail = Trail::Code { code: "slug:new".into(), or_words: Some("Promote staging v7".into()) };
        let lineage = Lineage { history: &history, rollout: &rollout, baseline: &v1(), trail: &trail };
        let marks: Vec<Mark> = (1..=4).map(|version| lineage.mark(history.find(version).unwrap())).collect();
        assert_eq!(marks, [Mark::Before, Mark::Candidate, Mark::Foreign, Mark::Foreign]);
    }

    #[test]
    fn a_full_rollback_has_landed_when_there_is_one_that_is_newer_than_what_it_saw() {
        let all = [
            release(1, OK, false, "old", "base"),
            release(2, OK, false, "new", FORTH),
            release(3, OK, true, "old", "Rollback to v1"),
        ];
        let rollout = RolloutId::try_from("r").unwrap();
        let attempt = |serial, goal| Attempt {
            nonce: Nonce::new(&rollout, Serial(serial), goal),
            goal,
            version: Version::try_from("v2").unwrap(),
            at: Timestamp::UNIX_EPOCH,
        };
        let landed = |upto: usize, attempt: &Attempt, saw| {
            let history = History::new(all[..upto].to_vec());
            Lineage { history: &history, rollout: &rollout, baseline: &v1(), trail: &Trail::Tagged }
                .landed(attempt, saw)
        };
        let back = attempt(5, Goal::Baseline);
        assert!(!landed(2, &back, 2));
        assert!(landed(3, &back, 2));
        assert!(!landed(3, &back, 3), "one from before it");
        let forth = attempt(3, Goal::Split(rollback_core::model::Weight::ALL));
        assert!(landed(2, &forth, 1));
        assert!(!landed(2, &attempt(4, Goal::Candidate), 1), "another nonce");
    }

    #[test]
    fn what_a_release_runs_is_the_same_after_a_rollback_to_it() {
        let mut container = release(2, OK, false, "", "Deployed worker (bbbbbbbbbbbb), web (aaaaaaaaaaaa)");
        container.slug = None;
        let back = release(4, OK, true, "", "Rollback to v2");
        let history =
            History::new(vec![container.clone(), back.clone(), release(3, OK, false, "", "Set A config vars")]);
        assert_eq!(history.code(&container), "image:web=aaaaaaaaaaaa,worker=bbbbbbbbbbbb");
        assert_eq!(history.code(&back), history.code(&container));
        assert_eq!(history.code(history.find(3).unwrap()), "release:v3");
        let out_of_sight = History::new(vec![release(9, OK, true, "", "Rollback to v2")]);
        assert_eq!(out_of_sight.code(out_of_sight.newest().unwrap()), "release:v2");
    }
}
