//! What a comparison remembers, and how one more reading changes it. Pure.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Test;
use crate::{
    error::{Error, Result},
    gate::{
        Window,
        sequential::{GaugeTest, OddsTest, QuantileTest, Tolerance, add_buckets},
        source::{Count, Pair, Reading, Samples, Span},
        stats,
    },
    model::Weight,
};

/// What the gate wants to have back. Short names: it is kept in every record.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Memory {
    /// What is compared: another gate's memory is not ours.
    pub test: String,
    /// How far the readings reach.
    pub read: Timestamp,
    /// How far there was something to compare.
    pub seen: Timestamp,
    pub step: usize,
    /// Requests, or readings of a gauge, in this step.
    #[serde(rename = "here")]
    pub in_step: Pair<u64>,
    /// Counters as they last stood, where the source has no history.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    stood: Option<Stood>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    bounds: Vec<f64>,
    /// By label; [`OTHERS`] are those that came late, or were too many.
    pub tracks: BTreeMap<String, Track>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
enum Stood {
    Counts(BTreeMap<String, Pair<Count>>),
    Buckets(BTreeMap<String, Pair<Vec<u64>>>),
}

/// What is known of one label.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Track {
    /// Bets on odds: one, or one a quantile.
    #[serde(rename = "o", default, skip_serializing_if = "Vec::is_empty")]
    pub odds: Vec<Bet>,
    #[serde(rename = "q", default, skip_serializing_if = "Option::is_none")]
    pub quantile: Option<QuantileTest>,
    #[serde(rename = "g", default, skip_serializing_if = "Option::is_none")]
    pub gauge: Option<GaugeTest>,
    /// The baseline's latencies so far, for the thresholds.
    #[serde(rename = "h", default, skip_serializing_if = "Vec::is_empty")]
    usual: Vec<u64>,
    /// The last values of a gauge.
    #[serde(rename = "v", default, skip_serializing_if = "Option::is_none")]
    pub value: Option<Pair<f64>>,
}

/// A bet on odds, and what it was made on.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Bet {
    #[serde(rename = "t")]
    pub test: OddsTest,
    #[serde(rename = "s")]
    pub sums: Pair<Count>,
    /// The last interval.
    #[serde(rename = "l")]
    pub last: Pair<Count>,
    /// The newest requests, for what it is like now.
    #[serde(rename = "n")]
    pub recent: Pair<Count>,
}

/// Labels that came after the first reading, or were too many.
pub(super) const OTHERS: &str = "(others)";
/// The longest label that is judged by itself.
const LABEL_LEN: usize = 64;
/// The part of a gate's budget that pays for taking the baseline's rate from the past.
pub(super) const RISK: f64 = 0.01;

/// The terms on which a reading is taken.
pub(super) struct Terms<'a> {
    pub test: &'a Test,
    pub tolerance: Tolerance,
    pub alpha: f64,
    pub weight: Weight,
}

impl Memory {
    pub(super) fn new(test: &Test, window: &Window) -> Self {
        Self {
            test: test.name().into(),
            read: window.since,
            seen: window.since,
            step: window.step,
            in_step: Pair::default(),
            stood: None,
            bounds: Vec::new(),
            tracks: BTreeMap::new(),
        }
    }

    /// The plan has moved on, if it has.
    pub(super) fn enter(&mut self, step: usize) {
        if step == self.step {
            return;
        }
        self.step = step;
        self.in_step = Pair::default();
        for track in self.tracks.values_mut() {
            track.odds.iter_mut().for_each(|bet| bet.test.next_step());
            track.gauge.iter_mut().for_each(GaugeTest::next_step);
        }
    }

    /// One more reading. Says what was odd about it.
    ///
    /// # Errors
    /// `Invalid` when it cannot be what was asked for. The memory is half changed then: throw it away.
    pub(super) fn learn(&mut self, terms: &Terms<'_>, reading: Reading) -> Result<Option<String>> {
        if reading.until <= self.read {
            return Ok(None);
        }
        let (until, total) = (reading.until, reading.span == Span::Total);
        let mut noted = None;
        let compared = match (reading.samples, terms.test) {
            (Samples::Counts(counts), Test::Failures) => {
                for (label, pair) in &counts {
                    if pair.candidate.failures > pair.candidate.requests
                        || pair.baseline.failures > pair.baseline.requests
                    {
                        return Err(Error::invalid(format!(
                            "the source counts more failures than requests{}",
                            of_label(label)
                        )));
                    }
                }
                let most = self.most_labels(terms.test, total);
                let mut counts = self.assign(counts, most, |sum: &mut Pair<Count>, more| sum.add(more), Pair::requests);
                if total {
                    let before = match self.stood.replace(Stood::Counts(counts.clone())) {
                        Some(Stood::Counts(before)) => before,
                        _ => BTreeMap::new(),
                    };
                    counts = difference(counts, &before, &mut noted, Pair::<Count>::since);
                }
                counts.into_iter().map(|(label, pair)| self.count(terms, &label, &[pair])).fold(Pair::default(), plus)
            }
            (Samples::Buckets { bounds, counts }, Test::Quantiles(_) | Test::SlowerThan(_) | Test::Quantile(_)) => {
                self.same_bounds(&bounds)?;
                if let Some((label, _)) = counts.iter().find(|(_, pair)| {
                    pair.candidate.len() != bounds.len() + 1 || pair.baseline.len() != bounds.len() + 1
                }) {
                    return Err(Error::invalid(format!(
                        "the source gives {} bounds{}, and not one bucket more than that",
                        bounds.len(),
                        of_label(label)
                    )));
                }
                let add = |sum: &mut Pair<Vec<u64>>, more: Pair<Vec<u64>>| {
                    add_buckets(&mut sum.candidate, &more.candidate);
                    add_buckets(&mut sum.baseline, &more.baseline);
                };
                let most = self.most_labels(terms.test, total);
                let mut counts =
                    self.assign(counts, most, add, |pair| pair.candidate.iter().chain(&pair.baseline).sum());
                if total {
                    let before = match self.stood.replace(Stood::Buckets(counts.clone())) {
                        Some(Stood::Buckets(before)) => before,
                        _ => BTreeMap::new(),
                    };
                    counts = difference(counts, &before, &mut noted, Pair::<Vec<u64>>::since);
                }
                counts.into_iter().map(|(label, pair)| self.time(terms, &label, &pair)).fold(Pair::default(), plus)
            }
            (Samples::Gauges(values), Test::Gauge(borne)) => {
                let last = |sum: &mut Pair<f64>, more: Pair<f64>| {
                    // Only under `OTHERS`: the worst of each.
                    sum.candidate = sum.candidate.max(more.candidate);
                    sum.baseline = sum.baseline.max(more.baseline);
                };
                let values = values.into_iter().filter(|(_, pair)| pair.candidate.is_finite()).collect();
                let most = self.most_labels(terms.test, total);
                self.assign(values, most, last, |_| 1)
                    .into_iter()
                    .map(|(label, pair)| self.measure(terms, &label, pair, *borne))
                    .fold(Pair::default(), plus)
            }
            (samples, test) => {
                return Err(Error::invalid(format!(
                    "the source gives {}, but the gate compares {}",
                    match samples {
                        Samples::Counts(_) => "counts of requests and failures",
                        Samples::Buckets { .. } => "latency buckets",
                        Samples::Gauges(_) => "gauges",
                    },
                    test.name()
                )));
            }
        };
        self.in_step = plus(self.in_step, compared);
        self.read = until;
        if compared.candidate > 0 && (compared.baseline > 0 || terms.weight == Weight::ALL) {
            self.seen = until;
        }
        Ok(noted)
    }

    /// Sorts what came by label into the tracks that there are; the first time it makes them. Counters that stand are
    /// sorted too, so that no more of them is kept than has a track.
    fn assign<T>(
        &mut self,
        parts: BTreeMap<String, T>,
        most: usize,
        add: impl Fn(&mut T, T),
        size: impl Fn(&T) -> u64,
    ) -> BTreeMap<String, T> {
        if self.tracks.is_empty() && !parts.is_empty() {
            // Chosen by requests alone, before any outcome is bet on.
            let mut labels: Vec<(&String, u64)> = parts
                .iter()
                .filter(|(label, _)| label.len() <= LABEL_LEN)
                .map(|(label, part)| (label, size(part)))
                .collect();
            labels.sort_by_key(|(_, size)| std::cmp::Reverse(*size));
            labels.truncate(most);
            let one = labels.len() == 1 && labels[0].0.is_empty();
            self.tracks = labels.into_iter().map(|(label, _)| (label.clone(), Track::default())).collect();
            if !one {
                self.tracks.insert(OTHERS.into(), Track::default());
            }
        }
        let mut sorted: BTreeMap<String, T> = BTreeMap::new();
        for (label, part) in parts {
            let known = self.tracks.contains_key(&label);
            if !known && !self.tracks.contains_key(OTHERS) {
                continue;
            }
            let label = if known { label } else { OTHERS.into() };
            match sorted.entry(label) {
                std::collections::btree_map::Entry::Vacant(entry) => {
                    entry.insert(part);
                }
                std::collections::btree_map::Entry::Occupied(mut entry) => add(entry.get_mut(), part),
            }
        }
        sorted
    }

    /// The most labels that fit into six KiB of memory beside [`OTHERS`], reckoned with counts of ten digits. What is kept
    /// of a label depends on the test, on the buckets, and on whether the source has a history or its counters are kept.
    fn most_labels(&self, test: &Test, total: bool) -> usize {
        const MEMORY: usize = 6 * 1024;
        const COUNT: usize = "1000000000,".len();
        const BOUND: usize = "2.8289999999999997,".len();
        // As long as they were seen to get in a record.
        const BET: usize = 430;
        const GAUGE: usize = 500;
        const REST: usize = 150;
        let buckets = self.bounds.len() + 1;
        let (kept, counters) = match test {
            Test::Failures => (BET, 2),
            Test::SlowerThan(_) => (BET, buckets),
            Test::Quantiles(quantiles) => (quantiles.len() * BET + buckets * COUNT, buckets),
            Test::Quantile(_) => (2 * buckets * COUNT, buckets),
            Test::Gauge(_) => (GAUGE, 0),
        };
        let label = LABEL_LEN + r#""":{"o":[]},"#.len();
        let stood = if total { label + 2 * counters * COUNT } else { 0 };
        let tracks = (MEMORY - REST - self.bounds.len() * BOUND) / (label + kept + stood);
        tracks.saturating_sub(1).max(1)
    }

    fn same_bounds(&mut self, bounds: &[f64]) -> Result<()> {
        let fit = !bounds.is_empty() && bounds.len() <= 32 && bounds.iter().all(|bound| bound.is_finite());
        if !fit || bounds.windows(2).any(|pair| pair[0] >= pair[1]) {
            return Err(Error::invalid(format!(
                "the source's buckets have the bounds {bounds:?}; 1 to 32 ascending, finite ones are accepted"
            )));
        }
        if self.bounds.is_empty() {
            self.bounds = bounds.to_vec();
        }
        if self.bounds != bounds {
            return Err(Error::invalid(format!(
                "the source's buckets changed their bounds from {:?} to {bounds:?} during the rollout",
                self.bounds
            )));
        }
        Ok(())
    }

    /// Bets on one interval of one label: one outcome a bet.
    fn count(&mut self, terms: &Terms<'_>, label: &str, outcomes: &[Pair<Count>]) -> Pair<u64> {
        let risk = terms.alpha * RISK / (self.tracks.len() * outcomes.len()) as f64;
        let track = self.tracks.get_mut(label).expect("assign() made it");
        track.odds.resize_with(outcomes.len(), Bet::default);
        for (bet, &(mut outcome)) in track.odds.iter_mut().zip(outcomes) {
            if terms.weight == Weight::ALL {
                // Strays of a baseline that has no traffic are no sample of it.
                outcome.baseline = Count::default();
                bet.test.add_alone(terms.tolerance, outcome.candidate, risk);
            } else {
                bet.test.add(terms.tolerance, outcome);
            }
            bet.sums.add(outcome);
            if bet.recent.candidate.requests >= RECENT && bet.recent.baseline.requests >= RECENT {
                bet.recent = bet.recent.halved();
            }
            bet.recent.add(outcome);
            if outcome.candidate.requests > 0 {
                bet.last = outcome;
            }
        }
        let first = outcomes[0];
        Pair { candidate: first.candidate.requests, baseline: first.baseline.requests }
    }

    fn time(&mut self, terms: &Terms<'_>, label: &str, pair: &Pair<Vec<u64>>) -> Pair<u64> {
        let seen = Pair { candidate: pair.candidate.iter().sum(), baseline: pair.baseline.iter().sum() };
        let over = |bound: usize| {
            let count = |counts: &[u64]| Count::new(counts.iter().sum(), counts[bound + 1..].iter().sum());
            Pair { candidate: count(&pair.candidate), baseline: count(&pair.baseline) }
        };
        let track = self.tracks.get_mut(label).expect("assign() made it");
        match terms.test {
            Test::SlowerThan(limit) => {
                let off = |bound: f64| (bound.ln() - limit.ln()).abs();
                let nearest = self.bounds.iter().enumerate().min_by(|a, b| off(*a.1).total_cmp(&off(*b.1)));
                self.count(terms, label, &[over(nearest.map_or(0, |(at, _)| at))])
            }
            Test::Quantile(_) => {
                let mut pair = pair.clone();
                if terms.weight == Weight::ALL {
                    // Strays of a baseline that has no traffic are no sample of it.
                    pair.baseline.fill(0);
                }
                track.quantile.get_or_insert_default().add(&pair);
                seen
            }
            Test::Quantiles(quantiles) => {
                let usual = track.usual.clone();
                if terms.weight < Weight::ALL {
                    add_buckets(&mut track.usual, &pair.baseline);
                }
                // Settled by what was before this interval, so the first one only teaches.
                if usual.iter().sum::<u64>() == 0 {
                    return Pair::default();
                }
                let outcomes: Vec<_> = quantiles.iter().map(|p| over(bucket_of(&usual, *p))).collect();
                self.count(terms, label, &outcomes)
            }
            Test::Failures | Test::Gauge(_) => unreachable!("learn() sends buckets only to tests of latency"),
        }
    }

    fn measure(&mut self, terms: &Terms<'_>, label: &str, pair: Pair<f64>, borne: f64) -> Pair<u64> {
        let track = self.tracks.get_mut(label).expect("assign() made it");
        let baseline = pair.baseline.is_finite() && terms.weight < Weight::ALL;
        if baseline {
            track.gauge.get_or_insert_default().add(borne, pair);
            track.value = Some(pair);
        }
        Pair { candidate: 1, baseline: u64::from(baseline) }
    }
}

/// From so many requests of each revision on, older ones fade out of what it is like now.
const RECENT: u64 = 50;

/// The bucket of the `p`-quantile, at most the last with a bound.
fn bucket_of(counts: &[u64], p: f64) -> usize {
    let total = counts.iter().sum::<u64>() as f64;
    let mut below = 0;
    let at = counts.iter().position(|count| {
        below += count;
        below as f64 >= p * total
    });
    at.unwrap_or(0).min(counts.len().saturating_sub(2))
}

/// What was counted since the counters last stood. Labels that went back, as counters do when their process restarts,
/// and labels that are new are left out of this interval, and go on from where they stand.
fn difference<T>(
    now: BTreeMap<String, T>,
    before: &BTreeMap<String, T>,
    noted: &mut Option<String>,
    since: impl Fn(&T, &T) -> Option<T>,
) -> BTreeMap<String, T> {
    let rises = now.into_iter().filter_map(|(label, now)| {
        let rise = since(&now, before.get(&label)?);
        if rise.is_none() {
            *noted = Some(format!("counters went back{}: a process restarted", of_label(&label)));
        }
        rise.map(|rise| (label, rise))
    });
    rises.collect()
}

pub(super) fn of_label(label: &str) -> String {
    if label.is_empty() { String::new() } else { format!(" of {label}") }
}

fn plus(a: Pair<u64>, b: Pair<u64>) -> Pair<u64> {
    Pair { candidate: a.candidate.saturating_add(b.candidate), baseline: a.baseline.saturating_add(b.baseline) }
}

impl Pair<Count> {
    fn add(&mut self, more: Self) {
        for (sum, more) in [(&mut self.candidate, more.candidate), (&mut self.baseline, more.baseline)] {
            sum.requests = sum.requests.saturating_add(more.requests);
            sum.failures = sum.failures.saturating_add(more.failures);
        }
    }

    const fn requests(&self) -> u64 {
        self.candidate.requests.saturating_add(self.baseline.requests)
    }

    const fn halved(self) -> Self {
        const fn half(count: Count) -> Count {
            Count::new(count.requests / 2, count.failures / 2)
        }
        Self { candidate: half(self.candidate), baseline: half(self.baseline) }
    }

    /// `None` where a counter has gone back, or failures rose more than requests did, as when one of several processes
    /// restarts.
    fn since(&self, before: &Self) -> Option<Self> {
        let rise = |now: Count, before: Count| {
            let count =
                Count::new(now.requests.checked_sub(before.requests)?, now.failures.checked_sub(before.failures)?);
            (count.failures <= count.requests).then_some(count)
        };
        Some(Self {
            candidate: rise(self.candidate, before.candidate)?,
            baseline: rise(self.baseline, before.baseline)?,
        })
    }
}

impl Pair<Vec<u64>> {
    fn since(&self, before: &Self) -> Option<Self> {
        let rise = |now: &[u64], before: &[u64]| -> Option<Vec<u64>> {
            now.iter().zip(before).map(|(now, before)| now.checked_sub(*before)).collect()
        };
        Some(Self {
            candidate: rise(&self.candidate, &before.candidate)?,
            baseline: rise(&self.baseline, &before.baseline)?,
        })
    }
}

impl Track {
    /// The logarithm of the evidence against the candidate.
    pub(super) fn log_e(&self, test: &Test, tolerance: Tolerance) -> f64 {
        match test {
            Test::Quantile(p) => self.quantile.as_ref().map_or(0.0, |seen| seen.log_e(*p, tolerance)),
            Test::Gauge(_) => self.gauge.as_ref().map_or(0.0, GaugeTest::log_e),
            Test::Failures | Test::Quantiles(_) | Test::SlowerThan(_) if self.odds.is_empty() => 0.0,
            Test::Failures | Test::Quantiles(_) | Test::SlowerThan(_) => {
                let part = 1.0 / self.odds.len() as f64;
                stats::log_mix(self.odds.iter().map(|bet| (part, bet.test.log_e())))
            }
        }
    }

    /// The logarithm of the evidence that it is not as bad as what is to be ruled out: that of the weakest bet.
    pub(super) fn log_pass(&self) -> f64 {
        self.odds.iter().map(|bet| bet.test.log_pass()).reduce(f64::min).unwrap_or(0.0)
    }

    /// How many requests, or readings, of the baseline it has seen.
    pub(super) fn of_baseline(&self) -> u64 {
        let counted = self.odds.first().map_or(0, |bet| bet.sums.baseline.requests);
        let timed = self.quantile.as_ref().map_or(0, QuantileTest::of_baseline);
        counted + timed + self.gauge.as_ref().map_or(0, |gauge| gauge.seen().into())
    }

    /// The bet that speaks loudest against the candidate.
    pub(super) fn loudest(&self) -> Option<&Bet> {
        self.odds.iter().max_by(|a, b| a.test.log_e().total_cmp(&b.test.log_e()))
    }
}
