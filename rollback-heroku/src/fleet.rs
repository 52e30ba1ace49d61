//! What an app's dynos say about a release. Pure: no clock, no I/O.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use rollback_core::model::{Note, Part, Serves, Weight};

use crate::api::{Dyno, Formation};

/// The dynos of an app, and how many of each type there should be.
#[derive(Clone, Debug)]
pub(crate) struct Fleet {
    expected: BTreeMap<String, u64>,
    dynos: Vec<Dyno>,
}

/// How the dynos stand to a release.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ready {
    /// Each expected one is up at the release, and has been for long enough.
    Steady,
    /// Not yet: which, and why.
    Waiting(Note),
    /// A type has no dyno left that has not crashed.
    Down(Note),
}

impl Fleet {
    /// One-off dynos and those of the release phase belong to no formation.
    pub(crate) fn new(formation: &[Formation], mut dynos: Vec<Dyno>) -> Self {
        let wanted = formation.iter().filter(|part| part.quantity > 0 && part.kind != "release" && part.kind != "run");
        let expected: BTreeMap<_, _> = wanted.map(|part| (part.kind.clone(), part.quantity)).collect();
        dynos.retain(|dyno| expected.contains_key(&dyno.kind));
        dynos.sort_by(|a, b| a.name.cmp(&b.name));
        Self { expected, dynos }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.expected.is_empty()
    }

    pub(crate) fn dynos(&self) -> &[Dyno] {
        &self.dynos
    }

    pub(crate) const fn expected(&self) -> &BTreeMap<String, u64> {
        &self.expected
    }

    /// Types of which not every dyno is up: what was down before a rollout is not its doing.
    pub(crate) fn down(&self) -> BTreeSet<String> {
        let up = |kind: &str| self.dynos.iter().filter(|dyno| dyno.kind == kind && dyno.state == UP).count() as u64;
        self.expected.iter().filter(|(kind, count)| up(kind) < **count).map(|(kind, _)| kind.clone()).collect()
    }

    /// The versions of the releases that dynos which are up run.
    pub(crate) fn versions(&self) -> BTreeSet<u64> {
        self.dynos.iter().filter(|dyno| dyno.state == UP).map(version).collect()
    }

    /// How the dynos stand to the release of this version; types in `but` may do as they like.
    pub(crate) fn ready(&self, wanted: u64, but: &BTreeSet<String>, steady: Duration, now: Timestamp) -> Ready {
        for (kind, count) in self.expected.iter().filter(|(kind, _)| !but.contains(*kind)) {
            let of_kind: Vec<&Dyno> = self.dynos.iter().filter(|dyno| dyno.kind == *kind).collect();
            if let Some(old) = of_kind.iter().find(|dyno| version(dyno) != wanted) {
                return Ready::Waiting(Note::new(format!("{} still runs v{}", old.name, version(old))));
            }
            if !of_kind.is_empty() && of_kind.iter().all(|dyno| dyno.state == CRASHED) {
                return Ready::Down(Note::new(format!("every {kind} dyno of v{wanted} has crashed")));
            }
            let up = of_kind.iter().filter(|dyno| dyno.state == UP).count() as u64;
            if up < *count {
                let other = of_kind.iter().find(|dyno| dyno.state != UP);
                let other = other.map_or_else(String::new, |dyno| format!("; {} is {}", dyno.name, dyno.state));
                return Ready::Waiting(Note::new(format!("{up} of {count} {kind} dynos are up at v{wanted}{other}")));
            }
            let young = |dyno: &&Dyno| now.duration_since(dyno.updated_at) < signed(steady);
            if let Some(dyno) = of_kind.into_iter().find(young) {
                return Ready::Waiting(Note::new(format!("{} must stay up for {steady:?}", dyno.name)));
            }
        }
        Ready::Steady
    }

    /// What each dyno serves. Who is not up serves nothing.
    pub(crate) fn parts(&self, app: Option<&str>, serves: impl Fn(u64) -> Serves) -> Vec<Part> {
        let name = |dyno: &Dyno| match app {
            Some(app) => format!("{app}/{}", dyno.name),
            None => dyno.name.clone(),
        };
        let what = |dyno: &Dyno| if dyno.state == UP { serves(version(dyno)) } else { Serves::Nothing };
        self.dynos.iter().map(|dyno| Part::new(name(dyno), what(dyno))).collect()
    }

    /// The candidate's share among the dynos that are up and take requests; among all, where none does. None when no dyno
    /// is up.
    pub(crate) fn weight(&self, serves: impl Fn(u64) -> Serves) -> Option<Weight> {
        let web = self.expected.contains_key("web");
        let up = self.dynos.iter().filter(|dyno| dyno.state == UP && (!web || dyno.kind == "web"));
        let (mut all, mut new) = (0usize, 0usize);
        for dyno in up {
            all += 1;
            new += usize::from(serves(version(dyno)) == Serves::Candidate);
        }
        let share = (new * 100).checked_div(all)?;
        Weight::try_from(u8::try_from(share).ok()?).ok()
    }
}

pub(crate) fn version(dyno: &Dyno) -> u64 {
    dyno.release.as_ref().map_or(0, |release| release.version)
}

pub(crate) fn signed(time: Duration) -> SignedDuration {
    SignedDuration::try_from(time).unwrap_or(SignedDuration::MAX)
}

pub(crate) const UP: &str = "up";
pub(crate) const CRASHED: &str = "crashed";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::DynoRelease;

    const NOW: Timestamp = Timestamp::constant(1_000_000, 0);
    const STEADY: Duration = Duration::from_secs(30);

    fn dyno(name: &str, state: &str, version: u64, age: i64) -> Dyno {
        Dyno {
            id: name.into(),
            name: name.into(),
            kind: name.split('.').next().unwrap().into(),
            state: state.into(),
            release: Some(DynoRelease { version }),
            updated_at: NOW - SignedDuration::from_secs(age),
        }
    }

    fn fleet(dynos: Vec<Dyno>) -> Fleet {
        let part = |kind: &str, quantity| Formation { kind: kind.into(), quantity };
        Fleet::new(&[part("web", 2), part("worker", 1), part("cron", 0), part("release", 1)], dynos)
    }

    #[test]
    fn a_release_is_ready_when_every_dyno_it_should_have_has_been_up_for_long_enough() {
        let good = || vec![dyno("web.1", UP, 7, 40), dyno("web.2", UP, 7, 31), dyno("worker.1", UP, 7, 99)];
        let none = BTreeSet::new();
        assert_eq!(fleet(good()).ready(7, &none, STEADY, NOW), Ready::Steady);
        let says = |change: &dyn Fn(&mut Vec<Dyno>)| {
            let mut dynos = good();
            change(&mut dynos);
            fleet(dynos).ready(7, &none, STEADY, NOW)
        };
        let waits = |text: &str| Ready::Waiting(Note::new(text));
        assert_eq!(says(&|d| d[1] = dyno("web.2", UP, 6, 99)), waits("web.2 still runs v6"));
        assert_eq!(says(&|d| drop(d.remove(1))), waits("1 of 2 web dynos are up at v7"));
        assert_eq!(
            says(&|d| d[0] = dyno("web.1", CRASHED, 7, 99)),
            waits("1 of 2 web dynos are up at v7; web.1 is crashed")
        );
        assert_eq!(says(&|d| d[0] = dyno("web.1", UP, 7, 29)), waits("web.1 must stay up for 30s"));
        assert_eq!(
            says(&|d| d[2] = dyno("worker.1", CRASHED, 7, 99)),
            Ready::Down(Note::new("every worker dyno of v7 has crashed"))
        );
        // One-off dynos and the release phase's say nothing.
        assert_eq!(says(&|d| d.push(dyno("run.1234", UP, 3, 1))), Ready::Steady);
        assert_eq!(says(&|d| d.push(dyno("release.12", UP, 7, 1))), Ready::Steady);
        // What was down before may stay down.
        let worker = BTreeSet::from(["worker".to_owned()]);
        let down = fleet(vec![dyno("web.1", UP, 7, 40), dyno("web.2", UP, 7, 31), dyno("worker.1", CRASHED, 6, 99)]);
        assert_eq!(down.ready(7, &worker, STEADY, NOW), Ready::Steady);
        assert_eq!(down.down(), worker);
    }

    #[test]
    fn no_dynos_at_all_are_not_ready() {
        let nothing = fleet(Vec::new()).ready(7, &BTreeSet::new(), STEADY, NOW);
        assert_eq!(nothing, Ready::Waiting(Note::new("0 of 2 web dynos are up at v7")));
    }

    #[test]
    fn the_weight_is_told_by_the_dynos_that_take_requests() {
        let serves = |version| if version == 7 { Serves::Candidate } else { Serves::Baseline };
        let half = fleet(vec![dyno("web.1", UP, 7, 1), dyno("web.2", UP, 6, 1), dyno("worker.1", UP, 6, 1)]);
        assert_eq!(half.weight(serves), Weight::try_from(50).ok());
        assert_eq!(fleet(vec![dyno("web.1", "starting", 7, 1)]).weight(serves), None);
    }
}
