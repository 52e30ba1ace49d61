//! How often a gate is asked, and when its verdicts become final. Pure.

use std::{fmt, sync::Arc, time::Duration};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{Evidence, Verdict};
use crate::{
    error::{Error, Result},
    model::{Actor, GateName, Note},
};

/// How often a gate is asked, and how its verdicts count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    pub(crate) interval: Duration,
    pub(crate) initial_delay: Duration,
    pub(crate) timeout: Duration,
    pub(crate) unhealthy: u32,
    pub(crate) of: u32,
    pub(crate) healthy_run: u32,
    pub(crate) no_data: NoData,
}

/// What a gate without data means, and after how long. An error of the gate is no data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoData {
    /// After this time without data, wait for the data or a person; nobody in time: roll back. The default, after 2
    /// minutes.
    Hold {
        /// How long it is borne.
        after: Duration,
    },
    /// After this time without data, roll back.
    RollBack {
        /// How long it is borne.
        after: Duration,
    },
}

impl Default for Policy {
    /// Asked every 10 seconds from the start, at most 10 seconds for an answer, final on the first unhealthy verdict,
    /// healthy on the first healthy one, and without data for 2 minutes: hold.
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(10),
            initial_delay: Duration::ZERO,
            timeout: Duration::from_secs(10),
            unhealthy: 1,
            of: 1,
            healthy_run: 1,
            no_data: NoData::Hold { after: Duration::from_secs(120) },
        }
    }
}

impl Policy {
    /// Asked this often. At least 10 milliseconds.
    #[must_use]
    pub const fn every(mut self, interval: Duration) -> Self {
        self.interval = interval;
        self
    }

    /// Not asked before each step has stood for this long.
    #[must_use]
    pub const fn initial_delay(mut self, delay: Duration) -> Self {
        self.initial_delay = delay;
        self
    }

    /// At most this long for one answer; then it is no data.
    #[must_use]
    pub const fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Final when `n` of the last `m` verdicts that had data were unhealthy. 1 to 64 each, `n` at most `m`.
    #[must_use]
    pub const fn unhealthy_after(mut self, n: u32, m: u32) -> Self {
        self.unhealthy = n;
        self.of = m;
        self
    }

    /// Healthy only after `k` healthy verdicts in a row. At least 1.
    #[must_use]
    pub const fn healthy_after(mut self, k: u32) -> Self {
        self.healthy_run = k;
        self
    }

    /// What no data means.
    #[must_use]
    pub const fn no_data(mut self, no_data: NoData) -> Self {
        self.no_data = no_data;
        self
    }

    /// The bits of the verdicts that count.
    const fn counted(&self) -> u64 {
        if self.of >= 64 { u64::MAX } else { (1 << self.of) - 1 }
    }

    /// Whether the policy can work.
    ///
    /// # Errors
    /// `Invalid`, naming the setting, its value and what would be accepted.
    pub fn check(&self, gate: &GateName) -> Result<()> {
        let refused = |what: String| Err(Error::invalid(format!("the policy of gate {gate} {what}")));
        if self.interval < Duration::from_millis(10) {
            return refused(format!("asks every {:?}; 10ms or more is accepted", self.interval));
        }
        if self.timeout.is_zero() {
            return refused("has a timeout of zero; more than zero is accepted".into());
        }
        if self.unhealthy == 0 || self.of == 0 || self.unhealthy > self.of || self.of > 64 {
            return refused(format!(
                "trips after {} of {} verdicts; n of m with 1 ≤ n ≤ m ≤ 64 is accepted",
                self.unhealthy, self.of
            ));
        }
        if self.healthy_run == 0 {
            return refused("is healthy after 0 verdicts; 1 or more is accepted".into());
        }
        Ok(())
    }
}

/// A verdict without its evidence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// [`Verdict::Healthy`].
    Healthy,
    /// [`Verdict::Unhealthy`].
    Unhealthy,
    /// [`Verdict::Inconclusive`], or never judged.
    Inconclusive,
}

impl Standing {
    /// In a word: `healthy`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
            Self::Inconclusive => "inconclusive",
        }
    }
}

impl fmt::Display for Standing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// What the record keeps of one gate: its last evidence and how its verdicts count so far.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Slot {
    /// The gate.
    pub name: GateName,
    /// What it said last.
    pub standing: Standing,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evidence: Option<Arc<Evidence>>,
    /// How often it was judged.
    #[serde(default)]
    pub judged: u64,
    /// When it was last judged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<Timestamp>,
    /// Its last verdicts that had data, newest in the lowest bit; 1 is unhealthy.
    #[serde(default)]
    recent: u64,
    /// Healthy verdicts in a row.
    #[serde(default)]
    healthy_run: u32,
    /// The first unhealthy verdict of those that count now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unhealthy_since: Option<Timestamp>,
    /// Since when it has had no data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blind_since: Option<Timestamp>,
    /// Its final no. Stays until a named person resumes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tripped: Option<Box<Trip>>,
    /// Who took it out of the guard, and why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skipped: Option<Box<Skip>>,
}

/// A gate's final no.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trip {
    /// When.
    pub at: Timestamp,
    /// Its evidence in a sentence.
    pub why: Note,
}

/// A gate taken out of the guard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skip {
    /// Who did it.
    pub by: Actor,
    /// Why.
    pub why: Note,
    /// When.
    pub at: Timestamp,
}

/// What one more verdict means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// Nothing final.
    Open,
    /// The gate trips now.
    Trips(Note),
    /// It has had no data for longer than its policy bears.
    Blind(Note),
}

impl Slot {
    /// A gate that was never judged.
    pub const fn new(name: GateName) -> Self {
        Self {
            name,
            standing: Standing::Inconclusive,
            evidence: None,
            judged: 0,
            at: None,
            recent: 0,
            healthy_run: 0,
            unhealthy_since: None,
            blind_since: None,
            tripped: None,
            skipped: None,
        }
    }

    /// Counts one more verdict.
    pub fn heed(&mut self, policy: &Policy, verdict: Verdict, now: Timestamp) -> Finding {
        self.judged += 1;
        self.at = Some(now);
        self.standing = verdict.standing();
        let finding = match &verdict {
            Verdict::Healthy(_) => {
                self.blind_since = None;
                self.recent <<= 1;
                if self.recent & policy.counted() == 0 {
                    self.unhealthy_since = None;
                }
                self.healthy_run = self.healthy_run.saturating_add(1);
                Finding::Open
            }
            Verdict::Unhealthy(evidence) => {
                self.blind_since = None;
                self.recent = self.recent << 1 | 1;
                self.healthy_run = 0;
                self.unhealthy_since.get_or_insert(now);
                if (self.recent & policy.counted()).count_ones() >= policy.unhealthy && self.tripped.is_none() {
                    let why = Note::new(&evidence.summary);
                    self.tripped = Some(Box::new(Trip { at: now, why: why.clone() }));
                    Finding::Trips(why)
                } else {
                    Finding::Open
                }
            }
            Verdict::Inconclusive(evidence) => {
                self.healthy_run = 0;
                let since = *self.blind_since.get_or_insert(now);
                if now.duration_since(since) >= policy.no_data.patience() {
                    Finding::Blind(Note::new(&evidence.summary))
                } else {
                    Finding::Open
                }
            }
        };
        let (Verdict::Healthy(mut evidence) | Verdict::Unhealthy(mut evidence) | Verdict::Inconclusive(mut evidence)) =
            verdict;
        // No data reaches into the future. From a clock that is fast it would let a bake end on what was never seen.
        evidence.until = evidence.until.min(now);
        self.evidence = Some(Arc::new(evidence));
        finding
    }

    /// Whether it is part of the guard.
    pub const fn counts(&self) -> bool {
        self.skipped.is_none()
    }

    /// Whether it is healthy by its policy, on data that reaches `until`.
    pub fn is_healthy(&self, policy: &Policy, until: Timestamp) -> bool {
        self.standing == Standing::Healthy
            && self.tripped.is_none()
            && self.healthy_run >= policy.healthy_run
            && self.evidence.as_ref().is_some_and(|evidence| evidence.until >= until)
    }

    /// Whether it has been asked and had no data.
    pub const fn is_blind(&self) -> bool {
        // Not `blind_since`: a person who says to go on starts its patience anew, and brings no data.
        self.judged > 0 && matches!(self.standing, Standing::Inconclusive)
    }

    /// Forgets what it counted against the candidate: a person has looked and said to go on.
    pub(crate) fn forgive(&mut self) {
        self.tripped = None;
        self.recent = 0;
        self.unhealthy_since = None;
        self.blind_since = None;
    }
}

impl NoData {
    fn patience(self) -> jiff::SignedDuration {
        let (Self::Hold { after } | Self::RollBack { after }) = self;
        jiff::SignedDuration::try_from(after).unwrap_or(jiff::SignedDuration::MAX)
    }
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;
    use proptest::prelude::*;

    use super::*;

    const H: Standing = Standing::Healthy;
    const U: Standing = Standing::Unhealthy;
    const I: Standing = Standing::Inconclusive;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + seconds).unwrap()
    }

    fn says(standing: Standing, until: Timestamp) -> Verdict {
        let evidence = Evidence::new(until, standing.to_string());
        match standing {
            H => Verdict::Healthy(evidence),
            U => Verdict::Unhealthy(evidence),
            I => Verdict::Inconclusive(evidence),
        }
    }

    fn slot() -> Slot {
        Slot::new(GateName::try_from("errors").unwrap())
    }

    /// Tells a new slot these verdicts, one a second, and returns it with the last finding.
    fn told(policy: &Policy, verdicts: impl IntoIterator<Item = Standing>) -> (Slot, Finding) {
        let (mut slot, mut finding) = (slot(), Finding::Open);
        for (second, standing) in (0..).zip(verdicts) {
            finding = slot.heed(policy, says(standing, at(second)), at(second));
        }
        (slot, finding)
    }

    fn trips(policy: &Policy, verdicts: impl IntoIterator<Item = Standing>) -> bool {
        matches!(told(policy, verdicts).1, Finding::Trips(_))
    }

    #[test]
    fn a_gate_trips_when_n_of_the_last_m_verdicts_were_unhealthy() {
        let policy = Policy::default().unhealthy_after(2, 3);
        assert!(!trips(&policy, [U]));
        assert!(trips(&policy, [U, U]));
        assert!(trips(&policy, [U, H, U]));
        assert!(!trips(&policy, [U, H, H, U]), "the first is past the last three");
        assert!(trips(&policy, [U, I, I, I, I, U]), "no data counts neither way");
        assert!(!trips(&policy, [U, H, I]), "and trips nothing itself");
    }

    #[test]
    fn sixty_four_of_sixty_four_is_counted_to_the_last_one() {
        let policy = Policy::default().unhealthy_after(64, 64);
        assert!(!trips(&policy, [U; 63]));
        assert!(trips(&policy, [U; 64]));
        assert!(!trips(&policy, [U; 63].into_iter().chain([H]).chain([U; 63])));
        assert!(trips(&policy, [U; 63].into_iter().chain([H]).chain([U; 64])));
        let policy = Policy::default().unhealthy_after(63, 64);
        assert!(trips(&policy, [U; 62].into_iter().chain([H, U])));
        assert!(!trips(&policy, [U, U].into_iter().chain([H; 2]).chain([U; 61])));
    }

    #[test]
    fn a_tripped_gate_stays_tripped_whatever_it_says_later() {
        let policy = Policy::default();
        let (mut slot, finding) = told(&policy, [H, U]);
        assert_eq!(finding, Finding::Trips("unhealthy".into()));
        let trip = slot.tripped.clone();
        assert_eq!(trip, Some(Box::new(Trip { at: at(1), why: "unhealthy".into() })));
        for (second, standing) in (2..).zip([H, H, U, I, H]) {
            assert_eq!(slot.heed(&policy, says(standing, at(second)), at(second)), Finding::Open, "it trips once");
            assert_eq!(slot.tripped, trip);
            assert!(!slot.is_healthy(&policy, at(0)));
        }
        slot.forgive();
        assert!(slot.tripped.is_none() && slot.is_healthy(&policy, at(6)));
        assert!(matches!(slot.heed(&policy, says(U, at(7)), at(7)), Finding::Trips(_)), "and may trip again");
    }

    #[test]
    fn what_was_forgiven_does_not_count_again() {
        let policy = Policy::default().unhealthy_after(2, 3);
        let (mut slot, _) = told(&policy, [U, U]);
        slot.forgive();
        assert_eq!(slot.heed(&policy, says(U, at(2)), at(2)), Finding::Open);
        assert!(matches!(slot.heed(&policy, says(U, at(3)), at(3)), Finding::Trips(_)));
    }

    #[test]
    fn a_gate_is_healthy_after_k_in_a_row_on_data_that_reaches_far_enough() {
        let policy = Policy::default().unhealthy_after(1, 1).healthy_after(3);
        let healthy =
            |verdicts: &[Standing], until| told(&policy, verdicts.iter().copied()).0.is_healthy(&policy, until);
        assert!(!healthy(&[], at(0)), "never measured is no data");
        assert!(!healthy(&[H, H], at(0)));
        assert!(healthy(&[H, H, H], at(2)));
        assert!(!healthy(&[H, H, H], at(3)), "the data ends before");
        assert!(!healthy(&[H, H, I, H, H], at(0)), "no data breaks the row");
        assert!(healthy(&[H, H, I, H, H, H], at(0)));
    }

    #[test]
    fn data_never_reaches_past_the_time_of_the_verdict() {
        let mut slot = slot();
        let policy = Policy::default();
        slot.heed(&policy, says(H, at(3600)), at(10));
        assert!(slot.is_healthy(&policy, at(10)));
        assert!(!slot.is_healthy(&policy, at(11)), "a fast clock elsewhere proves nothing about later");
    }

    #[test]
    fn no_data_is_borne_for_as_long_as_the_policy_says() {
        for no_data in
            [NoData::Hold { after: Duration::from_secs(120) }, NoData::RollBack { after: Duration::from_secs(120) }]
        {
            let policy = Policy::default().no_data(no_data);
            let mut slot = slot();
            let mut ask = |second, standing| slot.heed(&policy, says(standing, at(second)), at(second));
            assert_eq!(ask(0, H), Finding::Open);
            assert_eq!(ask(100, I), Finding::Open, "patience begins with the first lack of data");
            assert_eq!(ask(219, I), Finding::Open);
            assert_eq!(ask(220, I), Finding::Blind("inconclusive".into()));
            assert_eq!(ask(221, H), Finding::Open);
            assert_eq!(ask(222, I), Finding::Open, "data renews it");
            assert_eq!(ask(341, I), Finding::Open);
            assert_eq!(ask(342, I), Finding::Blind("inconclusive".into()));
        }
    }

    #[test]
    fn patience_ends_neither_at_once_nor_by_a_clock_set_back() {
        let mut slot = slot();
        let policy = Policy::default().no_data(NoData::Hold { after: Duration::ZERO });
        assert!(matches!(slot.heed(&policy, says(I, at(0)), at(0)), Finding::Blind(_)), "none was asked for");
        let policy = Policy::default().no_data(NoData::Hold { after: Duration::MAX });
        assert_eq!(slot.heed(&policy, says(I, at(1_000_000)), at(1_000_000)), Finding::Open);
        let policy = Policy::default();
        slot.forgive();
        slot.heed(&policy, says(I, at(0)), at(0));
        assert_eq!(slot.heed(&policy, says(I, at(-3600)), at(-3600)), Finding::Open);
    }

    #[test]
    fn forgiving_renews_patience_and_brings_no_data() {
        let policy = Policy::default();
        let mut slot = slot();
        assert!(!slot.is_blind(), "it was not asked yet");
        slot.heed(&policy, says(I, at(0)), at(0));
        assert!(slot.is_blind());
        slot.forgive();
        assert!(slot.is_blind());
        assert_eq!(slot.heed(&policy, says(I, at(120)), at(120)), Finding::Open);
        slot.heed(&policy, says(H, at(121)), at(121));
        assert!(!slot.is_blind());
    }

    #[test]
    fn a_policy_that_cannot_work_names_the_setting_and_what_would_be_accepted() {
        let gate = GateName::try_from("errors").unwrap();
        let refused = |policy: Policy| policy.check(&gate).unwrap_err().to_string();
        assert_eq!(
            refused(Policy::default().every(Duration::from_millis(9))),
            "the policy of gate errors asks every 9ms; 10ms or more is accepted"
        );
        assert_eq!(
            refused(Policy::default().timeout(Duration::ZERO)),
            "the policy of gate errors has a timeout of zero; more than zero is accepted"
        );
        for (n, m) in [(0, 1), (0, 0), (1, 0), (3, 2), (1, 65), (65, 65)] {
            assert_eq!(
                refused(Policy::default().unhealthy_after(n, m)),
                format!(
                    "the policy of gate errors trips after {n} of {m} verdicts; n of m with 1 ≤ n ≤ m ≤ 64 is accepted"
                )
            );
        }
        assert_eq!(
            refused(Policy::default().healthy_after(0)),
            "the policy of gate errors is healthy after 0 verdicts; 1 or more is accepted"
        );
        Policy::default().check(&gate).unwrap();
        Policy::default().every(Duration::from_millis(10)).unhealthy_after(64, 64).check(&gate).unwrap();
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Says(Standing),
        Forgiven,
        Restarted,
    }

    fn steps() -> impl Strategy<Value = Vec<(u16, Step)>> {
        // Long runs of each, or 64 of 64 would never be reached.
        let step = prop_oneof![
            3 => Just(Step::Says(H)),
            6 => Just(Step::Says(U)),
            2 => Just(Step::Says(I)),
            1 => Just(Step::Restarted),
        ];
        let run = prop_oneof![9 => (step, 1..70usize), 1 => Just((Step::Forgiven, 1))];
        prop::collection::vec((0..60u16, run), 0..12).prop_map(|runs| {
            runs.into_iter().flat_map(|(gap, (step, times))| std::iter::repeat_n((gap, step), times)).collect()
        })
    }

    proptest! {
        /// What a slot keeps in two words, told again from the whole history.
        #[test]
        fn a_slot_counts_as_its_whole_history_says(
            (n, m) in (1..=64u32).prop_flat_map(|m| (1..=m, Just(m))),
            k in 1..5u32,
            patience in 0..200u64,
            steps in steps(),
        ) {
            let after = Duration::from_secs(patience);
            let policy = Policy::default().unhealthy_after(n, m).healthy_after(k).no_data(NoData::Hold { after });
            policy.check(&GateName::try_from("errors").unwrap()).unwrap();
            let (mut slot, mut second) = (slot(), 0);
            // All verdicts; where those that still count begin; the ones without data since the last with data.
            let (mut all, mut counted_from, mut blind) = (Vec::new(), 0, Vec::new());
            let mut tripped = false;
            for (gap, step) in steps {
                second += i64::from(gap);
                let standing = match step {
                    Step::Forgiven => {
                        slot.forgive();
                        (tripped, counted_from) = (false, all.len());
                        blind.clear();
                        continue;
                    }
                    Step::Restarted => {
                        let json = serde_json::to_string(&slot).unwrap();
                        let read: Slot = serde_json::from_str(&json).unwrap();
                        prop_assert_eq!(&read, &slot);
                        slot = read;
                        continue;
                    }
                    Step::Says(standing) => standing,
                };
                let finding = slot.heed(&policy, says(standing, at(second)), at(second));
                all.push(standing);
                if standing == I { blind.push(second) } else { blind.clear() }

                let unhealthy = all[counted_from..].iter().rev().filter(|s| **s != I).take(m as usize);
                let trips = standing == U && !tripped && unhealthy.filter(|s| **s == U).count() >= n as usize;
                tripped |= trips;
                let blinded = blind.first().is_some_and(|first| at(second).duration_since(at(*first))
                    >= SignedDuration::from_secs(patience as i64));
                prop_assert_eq!(matches!(finding, Finding::Trips(_)), trips);
                prop_assert_eq!(matches!(finding, Finding::Blind(_)), blinded);
                prop_assert_eq!(slot.tripped.is_some(), tripped);
                let run = all.iter().rev().take_while(|s| **s == H).count();
                prop_assert_eq!(slot.is_healthy(&policy, at(second)), !tripped && run >= k as usize);
                prop_assert!(!slot.is_healthy(&policy, at(second + 1)));
                prop_assert_eq!(slot.judged, all.len() as u64);
            }
        }
    }
}
