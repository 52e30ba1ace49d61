//! How often a gate is asked, and when its verdicts become final. Pure.

use std::time::Duration;

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

    /// Final when `n` of the last `m` verdicts were unhealthy. 1 to 64 each, `n` at most `m`.
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

/// What the record keeps of one gate: its last evidence and how its verdicts count so far.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Slot {
    /// The gate.
    pub name: GateName,
    /// What it said last.
    pub standing: Standing,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evidence: Option<Evidence>,
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
    pub tripped: Option<Trip>,
    /// Who took it out of the guard, and why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skipped: Option<Skip>,
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
                    self.tripped = Some(Trip { at: now, why: why.clone() });
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
        let (Verdict::Healthy(evidence) | Verdict::Unhealthy(evidence) | Verdict::Inconclusive(evidence)) = verdict;
        self.evidence = Some(evidence);
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
        self.blind_since.is_some()
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
