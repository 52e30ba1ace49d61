//! The gate that compares the candidate with the baseline while both serve.

mod memory;
mod outlook;

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use jiff::SignedDuration;
use serde_json::{Value, json};

use self::memory::{Bet, Memory, RISK, Terms, Track};
use super::{
    Evidence, HealthGate, Verdict, Window,
    sequential::Tolerance,
    source::{Count, MetricSource, Query, Serving},
    stats,
};
use crate::{
    backend::Readiness,
    clock::{Clock, SystemClock},
    error::{Error, Result},
    model::{Change, GateName, Weight},
    plan::Plan,
};

/// How often a rollout of a healthy candidate may be rolled back by mistake: the budget of all its gates that compare.
///
/// It is split into [`Share`]s, one a gate. The gates may look as often as they like, for as long as they like: that is
/// in the budget.
///
/// ```
/// # use rollback_core::gate::Budget;
/// let [errors, latency] = Budget::new(0.01)?.split([2.0, 1.0])?;
/// # Ok::<(), rollback_core::Error>(())
/// ```
#[derive(Debug)]
pub struct Budget(f64);

/// A gate's part of the [`Budget`]. It can be spent once.
#[derive(Debug)]
pub struct Share(f64);

impl Default for Budget {
    /// One healthy rollout in a hundred.
    fn default() -> Self {
        Self(0.01)
    }
}

impl Budget {
    /// This part of the healthy rollouts.
    ///
    /// # Errors
    /// `Invalid` unless it is between 0.000001 and 0.5.
    pub fn new(alpha: f64) -> Result<Self> {
        if (1e-6..=0.5).contains(&alpha) {
            return Ok(Self(alpha));
        }
        Err(Error::invalid(format!("a budget of {alpha} false rollbacks a rollout; 0.000001 to 0.5 is accepted")))
    }

    /// All of it for one gate.
    pub const fn whole(self) -> Share {
        Share(self.0)
    }

    /// Split in these proportions.
    ///
    /// # Errors
    /// `Invalid` unless every part is more than zero.
    pub fn split<const N: usize>(self, parts: [f64; N]) -> Result<[Share; N]> {
        let sum: f64 = parts.iter().sum();
        if let Some(bad) = parts.iter().find(|part| !(**part > 0.0 && sum.is_finite())) {
            return Err(Error::invalid(format!("a budget has a part of {bad}; more than zero is accepted")));
        }
        Ok(parts.map(|part| Share(self.0 * part / sum)))
    }
}

/// A gate that compares the candidate with the baseline while both serve, and says no when chance is no excuse.
///
/// It is asked again and again, and keeps its promise all the same: of healthy rollouts (a candidate no worse than the
/// [tolerance](Self::tolerate) bears) no more than its [`Share`] is ever rolled back. What it has seen is kept in the
/// record, over steps and restarts.
///
/// | verdict | when |
/// |---|---|
/// | unhealthy | the evidence has reached `1/alpha`: for a share of 1 %, a hundred |
/// | healthy | no such evidence, at least the [floor](Self::floor) of requests in this step, and data that is [fresh](Self::fresh_for) |
/// | inconclusive | too few requests, no data, or both revisions fail so much that rolling back would not help |
///
/// So a pass says "no evidence against it in the time it had". Preflight says what that time can show; with
/// [`until_proven`](Self::until_proven) a pass needs evidence of its own.
///
/// # Limits
/// It compares revisions, and sees instances: with one instance each, a slow machine is a slow revision. Where the
/// candidate has all the traffic there is nothing beside it: counts are then compared with what the baseline did
/// earlier, gauges are not compared, and an absolute bound in another gate is the better judge. No data for 2 minutes
/// holds a rollout unless the [`Policy`](super::Policy) says otherwise: give a service with little traffic more. Evidence
/// stays evidence: whoever wants to go on in spite of it skips the gate, or it trips again.
///
/// ```
/// # use std::sync::Arc;
/// # use rollback_core::gate::{Budget, Compare, source::MetricSource};
/// # fn gates(errors: Arc<dyn MetricSource>, latency: Arc<dyn MetricSource>) -> rollback_core::Result<()> {
/// let [for_errors, for_latency] = Budget::default().split([1.0, 1.0])?;
/// let errors = Compare::failures("errors", errors, for_errors)?;
/// let latency = Compare::latency("latency", latency, for_latency)?;
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Compare {
    name: GateName,
    source: Arc<dyn MetricSource>,
    test: Test,
    alpha: f64,
    tolerance: Tolerance,
    floor: u64,
    fresh_for: Duration,
    ceiling: Option<f64>,
    proof: Option<f64>,
    clock: Arc<dyn Clock>,
}

/// What is compared.
#[derive(Clone, Debug, PartialEq)]
enum Test {
    /// The share of requests that failed.
    Failures,
    /// The share that was slower than what were these quantiles of the baseline.
    Quantiles(Vec<f64>),
    /// The share that was slower than this.
    SlowerThan(f64),
    /// A quantile, by all that was counted.
    Quantile(f64),
    /// One value a revision; the candidate's may be so many times the baseline's.
    Gauge(f64),
}

impl Compare {
    /// Compares how many requests fail. The source gives [`Samples::Counts`](super::source::Samples::Counts).
    ///
    /// # Errors
    /// `Invalid` when the name is not a gate's.
    pub fn failures(name: &str, source: impl MetricSource, share: Share) -> Result<Self> {
        Self::new(name, source, share, Test::Failures)
    }

    /// Compares how many requests are slower than most of the baseline's were just before: than its median, its 95th and
    /// its 99th percentile. The source gives [`Samples::Buckets`](super::source::Samples::Buckets); a slowdown within one bucket is not seen.
    ///
    /// # Errors
    /// `Invalid` when the name is not a gate's.
    pub fn latency(name: &str, source: impl MetricSource, share: Share) -> Result<Self> {
        Self::new(name, source, share, Test::Quantiles(vec![0.5, 0.95, 0.99]))
    }

    /// Compares how many requests are slower than this, in the unit of the source's buckets: the bucket bound nearest to
    /// it counts. The source gives [`Samples::Buckets`](super::source::Samples::Buckets).
    ///
    /// # Errors
    /// `Invalid` when the name is not a gate's, or the bound is not a number above zero.
    pub fn slower_than(name: &str, source: impl MetricSource, share: Share, bound: f64) -> Result<Self> {
        if !(bound > 0.0 && bound.is_finite()) {
            return Err(Error::invalid(format!(
                "gate {name} compares what is slower than {bound}; more than zero is accepted"
            )));
        }
        Self::new(name, source, share, Test::SlowerThan(bound))
    }

    /// Compares one quantile by all that was counted since the start: for any tail, but only where latencies do not drift
    /// with the hour, for which [`latency`](Self::latency) is the better test. The source gives [`Samples::Buckets`](super::source::Samples::Buckets).
    ///
    /// # Errors
    /// `Invalid` when the name is not a gate's, or `p` is not between 0 and 1.
    pub fn quantile(name: &str, source: impl MetricSource, share: Share, p: f64) -> Result<Self> {
        if !(p > 0.0 && p < 1.0) {
            return Err(Error::invalid(format!("gate {name} compares the {p} quantile; between 0 and 1 is accepted")));
        }
        Self::new(name, source, share, Test::Quantile(p))
    }

    /// Compares one value a revision, of which more is worse; the candidate's may be `borne` times the baseline's. For
    /// what cannot be counted. The source gives [`Samples::Gauges`](super::source::Samples::Gauges) over the same number of instances of each.
    ///
    /// # Errors
    /// `Invalid` when the name is not a gate's, or `borne` is less than 1.
    pub fn gauge(name: &str, source: impl MetricSource, share: Share, borne: f64) -> Result<Self> {
        if !(borne >= 1.0 && borne.is_finite()) {
            return Err(Error::invalid(format!(
                "gate {name} bears {borne} times the baseline's value; 1 or more is accepted"
            )));
        }
        Ok(Self { floor: 5, ..Self::new(name, source, share, Test::Gauge(borne))? })
    }

    fn new(name: &str, source: impl MetricSource, share: Share, test: Test) -> Result<Self> {
        let ceiling = matches!(test, Test::Failures | Test::SlowerThan(_)).then_some(0.5);
        Ok(Self {
            name: GateName::try_from(name)?,
            source: Arc::new(source),
            test,
            alpha: share.0,
            tolerance: Tolerance::default(),
            floor: 20,
            fresh_for: Duration::from_secs(120),
            ceiling,
            proof: None,
            clock: Arc::new(SystemClock),
        })
    }

    /// How much worse the candidate may be; by default odds of 1.5. Means nothing to a gauge.
    #[must_use]
    pub const fn tolerate(mut self, tolerance: Tolerance) -> Self {
        self.tolerance = tolerance;
        self
    }

    /// Inconclusive with fewer requests of either revision in a step; by default 20. Of a gauge it counts readings, 5.
    #[must_use]
    pub const fn floor(mut self, requests: u64) -> Self {
        self.floor = requests;
        self
    }

    /// Inconclusive when the last data of both revisions is older; by default 2 minutes.
    #[must_use]
    pub const fn fresh_for(mut self, time: Duration) -> Self {
        self.fresh_for = time;
        self
    }

    /// Inconclusive when more than this part of both revisions' requests fails, without evidence against the candidate:
    /// what is broken then is not the candidate, and rolling back would not help. By default half. Only for failures and
    /// [`slower_than`](Self::slower_than).
    #[must_use]
    pub const fn ceiling(mut self, part: f64) -> Self {
        if self.ceiling.is_some() {
            self.ceiling = Some(part);
        }
        self
    }

    /// Healthy only once it is shown that the candidate is not as bad as the tolerance [rules
    /// out](Tolerance::ruled_out), with at most this chance of being wrong; 5 % is usual. Until then inconclusive, so the
    /// bake waits: give the [`Policy`](super::Policy) the patience.
    ///
    /// # Errors
    /// `Unsupported` for quantiles and gauges, `Invalid` unless the chance is between 0 and 0.5.
    pub fn until_proven(mut self, beta: f64) -> Result<Self> {
        if matches!(self.test, Test::Quantile(_) | Test::Gauge(_)) {
            let what = format!("gate {} compares what cannot be proven equal; failures and latency can be", self.name);
            return Err(Error::new(crate::ErrorKind::Unsupported, what));
        }
        if !(beta > 0.0 && beta <= 0.5) {
            return Err(Error::invalid(format!("gate {} is proven at {beta}; over 0 to 0.5 is accepted", self.name)));
        }
        self.proof = Some(beta);
        Ok(self)
    }

    /// With this clock, which preflight asks.
    #[must_use]
    pub fn clock(mut self, clock: impl Clock) -> Self {
        self.clock = Arc::new(clock);
        self
    }

    /// The logarithm of the evidence that is enough.
    fn enough(&self) -> f64 {
        -(self.alpha * (1.0 - RISK)).ln()
    }
}

#[async_trait]
impl HealthGate for Compare {
    fn name(&self) -> &GateName {
        &self.name
    }

    async fn judge(&self, window: &Window) -> Result<Verdict> {
        let before = match window.last.as_ref().map(Evidence::recall::<Memory>).transpose() {
            Ok(before) => before.flatten(),
            Err(e) => return Ok(window.no_data(e.chain())),
        };
        let mut memory = before.unwrap_or_else(|| Memory::new(&self.test, window));
        if memory.test != self.test.name() {
            let why = format!(
                "the record is of a gate that compares {}; this one compares {}",
                memory.test,
                self.test.name()
            );
            return Ok(window.no_data(why));
        }
        let query = Query {
            target: window.target.clone(),
            baseline: window.baseline.clone(),
            candidate: window.candidate.clone(),
            serving: if window.weight == Weight::ALL { Serving::Candidate } else { Serving::Both },
            since: memory.read,
            now: window.now,
        };
        let reading = self.source.read(&query).await?;
        memory.enter(window.step);
        let terms = Terms { test: &self.test, tolerance: self.tolerance, alpha: self.alpha, weight: window.weight };
        let noted = memory.learn(&terms, reading)?;
        Ok(self.verdict(&memory, window, noted))
    }

    async fn preflight(&self, change: &Change, plan: &Plan) -> Result<Readiness> {
        let now = self.clock.now();
        let query = Query {
            target: change.target.clone(),
            baseline: change.baseline.id.clone(),
            candidate: change.candidate.id.clone(),
            serving: Serving::Baseline,
            since: now.checked_sub(LOOK_BACK).unwrap_or(now),
            now,
        };
        let reading = self.source.read(&query).await?;
        Ok(self.outlook(&reading, query.since, plan))
    }
}

/// How far preflight looks back for what the traffic is like.
const LOOK_BACK: SignedDuration = SignedDuration::from_mins(10);

impl Compare {
    fn verdict(&self, memory: &Memory, window: &Window, noted: Option<String>) -> Verdict {
        let parts = memory.tracks.len().max(1) as f64;
        let log_of = |track: &Track| track.log_e(&self.test, self.tolerance);
        let log_e = match memory.tracks.len() {
            0 => 0.0,
            _ => stats::log_mix(memory.tracks.values().map(|track| (1.0 / parts, log_of(track)))),
        };
        let log_pass = memory.tracks.values().map(Track::log_pass).reduce(f64::min).unwrap_or(0.0);
        let worst = memory.tracks.iter().max_by(|a, b| log_of(a.1).total_cmp(&log_of(b.1)));
        let seen = worst.map(|(label, track)| self.seen(label, track));

        let mut evidence = Evidence::new(memory.seen, "")
            .fact("compares", self.test.name())
            .fact("e_value", shown(log_e))
            .fact("enough", shown(self.enough()))
            .fact("alpha", self.alpha)
            .fact("in_step", json!({ "candidate": memory.in_step.candidate, "baseline": memory.in_step.baseline }));
        if let Some((label, track)) = worst {
            evidence.facts.extend(self.facts(label, track, log_e));
        }
        if memory.tracks.len() > 1 {
            let by_label: serde_json::Map<String, Value> =
                memory.tracks.iter().map(|(label, track)| (label.clone(), shown(log_of(track)))).collect();
            let blamed: Vec<&String> = memory
                .tracks
                .iter()
                .filter(|(_, track)| log_of(track) >= self.enough() + parts.ln())
                .map(|(label, _)| label)
                .collect();
            evidence = evidence.fact("e_values", by_label).fact("blamed", json!(blamed));
        }
        if let Some(beta) = self.proof {
            evidence = evidence.fact("pass_e_value", shown(log_pass)).fact("pass_enough", shown(-beta.ln()));
        }
        if let Some(noted) = noted {
            evidence = evidence.fact("noted", noted);
        }
        if let Ok(remembered) = serde_json::to_value(memory) {
            evidence = evidence.remember(remembered);
        }
        let say = |summary: String| Evidence { summary, ..evidence.clone() };

        let seen = seen.unwrap_or_else(|| "nothing was measured yet".into());
        let against = format!("evidence {} of {}", shown(log_e), shown(self.enough()));
        if log_e >= self.enough() {
            return Verdict::Unhealthy(say(format!("{seen}: {against}")));
        }
        let age = window.now.duration_since(memory.seen);
        if age > SignedDuration::try_from(self.fresh_for).unwrap_or(SignedDuration::MAX) {
            let whose = match (memory.in_step.candidate, memory.in_step.baseline) {
                (0, 0) => "either revision",
                (0, _) => "the candidate",
                (_, 0) => "the baseline",
                _ => "both revisions",
            };
            return Verdict::Inconclusive(say(format!("no data of {whose} for {} s", age.as_secs())));
        }
        if let Some(part) = self.ceiling
            && worst.and_then(|(_, track)| track.odds.first()).is_some_and(|bet| bet.fails_alike(part))
        {
            let why = format!("{seen}: the baseline fails as much, rolling back would not help");
            return Verdict::Inconclusive(say(why));
        }
        let proven = self.proof.is_some_and(|beta| log_pass >= -beta.ln());
        if !proven && let Some(missing) = self.missing(memory, window.weight) {
            return Verdict::Inconclusive(say(missing));
        }
        match self.proof {
            Some(_) if proven => {
                let ruled_out = self.tolerance.ruled_out();
                Verdict::Healthy(say(format!("{seen}: odds of {ruled_out} are ruled out")))
            }
            Some(beta) => Verdict::Inconclusive(say(format!(
                "{seen}: not yet shown to be no worse, {} of {}; {against} against it",
                shown(log_pass),
                shown(-beta.ln())
            ))),
            None => Verdict::Healthy(say(format!("{seen}: nothing speaks against it, {against}"))),
        }
    }

    /// What is missing before this step's data is enough to say anything.
    fn missing(&self, memory: &Memory, weight: Weight) -> Option<String> {
        let what = if matches!(self.test, Test::Gauge(_)) { "readings" } else { "requests" };
        let few = |whose: &str, count: u64| {
            (count < self.floor).then(|| format!("{count} {what} of the {whose} so far; {} are needed", self.floor))
        };
        let candidate = few("candidate", memory.in_step.candidate);
        if weight < Weight::ALL {
            return candidate.or_else(|| few("baseline", memory.in_step.baseline));
        }
        // Nothing beside it: then it must have been compared, or its baseline counted, before.
        let before = memory.tracks.values().map(Track::of_baseline).sum();
        candidate.or_else(|| {
            few("baseline", before).map(|few| {
                format!("{few} before the candidate took all traffic, and now there is nothing to compare with")
            })
        })
    }

    /// What was seen, in a clause.
    fn seen(&self, label: &str, track: &Track) -> String {
        let of = memory::of_label(label);
        if let Some(value) = track.value {
            return format!("{:.4} against {:.4}{of}", value.candidate, value.baseline);
        }
        let Some(bet) = track.loudest() else {
            return match &self.test {
                Test::Quantile(p) => format!("the {p} quantile{of} was compared"),
                _ => "nothing was compared yet".into(),
            };
        };
        let is = if matches!(self.test, Test::Failures) { "failed" } else { "were slow" };
        let (candidate, baseline) = (bet.sums.candidate, bet.sums.baseline);
        format!(
            "{} of {} requests{of} {is} ({}), {} of {} of the baseline ({})",
            candidate.failures,
            candidate.requests,
            percent(candidate),
            baseline.failures,
            baseline.requests,
            percent(baseline)
        )
    }

    fn facts(&self, label: &str, track: &Track, log_e: f64) -> Vec<(String, Value)> {
        let mut facts = Vec::new();
        if !label.is_empty() {
            facts.push(("label".into(), json!(label)));
        }
        if let Some(gauge) = &track.gauge {
            facts.push(("noise_lasts_readings".into(), json!(gauge.lasts())));
        }
        let Some(bet) = track.loudest() else { return facts };
        let arm = |count: Count| {
            let (low, high) = stats::rates(count.failures as f64, count.requests as f64, 0.05);
            let rate = (count.requests > 0).then(|| digits(count.failures as f64 / count.requests as f64));
            json!({
                "requests": count.requests,
                "failures": count.failures,
                "rate": rate,
                "rate_at_all_times_95": [digits(low), digits(high)],
            })
        };
        facts.push(("candidate".into(), arm(bet.sums.candidate)));
        facts.push(("baseline".into(), arm(bet.sums.baseline)));
        facts.push(("odds_borne".into(), json!(self.tolerance.borne())));
        facts.push(("noise".into(), json!(digits(bet.test.noise()))));
        facts.push(("temper".into(), json!(digits(bet.test.temper(bet.last)))));
        if log_e < self.enough() && bet.last.candidate.requests > 0 && bet.last.baseline.requests > 0 {
            // Where there are several bets, this one has to win for all.
            let enough = self.enough() + (log_e - bet.test.log_e()).min(0.0).abs();
            let requests = bet.last.candidate.requests;
            let trips = match bet.test.to_trip(self.tolerance, bet.last, enough) {
                Some(failures) => {
                    format!("{failures} failures among {requests} requests of the candidate like the last")
                }
                None => format!("more than {requests} failures in a row"),
            };
            facts.push(("would_trip".into(), json!(trips)));
        }
        facts
    }
}

impl Test {
    /// In a word or two, as in the record.
    const fn name(&self) -> &'static str {
        match self {
            Self::Failures => "failures",
            Self::Quantiles(_) => "latency",
            Self::SlowerThan(_) => "slow requests",
            Self::Quantile(_) => "a quantile",
            Self::Gauge(_) => "a gauge",
        }
    }
}

impl Bet {
    /// Whether more than this part of what both served lately failed.
    fn fails_alike(&self, part: f64) -> bool {
        let fails = |count: Count| count.requests >= 10 && count.failures as f64 > part * count.requests as f64;
        fails(self.recent.candidate) && fails(self.recent.baseline)
    }
}

/// An e-value as people read it; its logarithm, in words, where it is past all numbers.
fn shown(log: f64) -> Value {
    match log.exp() {
        e if e < 1e9 => json!(digits(e)),
        _ => json!(format!("e^{log:.0}")),
    }
}

/// Three digits that count.
fn digits(x: f64) -> f64 {
    if x == 0.0 || !x.is_finite() {
        return x;
    }
    format!("{x:.2e}").parse().unwrap_or(x)
}

fn percent(count: Count) -> String {
    if count.requests == 0 {
        return "none".into();
    }
    format!("{} %", digits(100.0 * count.failures as f64 / count.requests as f64))
}

#[cfg(all(test, feature = "testing"))]
mod tests;
