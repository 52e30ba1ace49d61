//! Metrics as a gate, and as the source of a comparison.

use std::{collections::BTreeMap, fmt, time::Duration};

use async_trait::async_trait;
use aws_sdk_cloudwatch::{
    Client,
    primitives::DateTime,
    types::{Dimension, Metric as Sdk, MetricDataQuery, MetricStat, StatusCode},
};
use jiff::{SignedDuration, Timestamp};
#[cfg(feature = "compare")]
use rollback_core::gate::source::{Count, MetricSource, Query, Reading, Samples};
use rollback_core::{
    Error, ErrorKind, Result,
    backend::Readiness,
    clock::{Clock as _, SystemClock},
    gate::{Evidence, HealthGate, Verdict, Window},
    model::{Change, GateName},
    plan::Plan,
};

use super::{GET_METRIC_DATA, Names};
use crate::{account::Account, error::sorted};

/// A metric: namespace, name, and all of its dimensions. CloudWatch sums up nothing over dimensions that are left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metric {
    namespace: String,
    name: String,
    dimensions: Vec<(String, String)>,
}

impl Metric {
    /// A metric without dimensions, as `AWS/Lambda` and `Errors`.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into(), dimensions: Vec::new() }
    }

    /// A Lambda metric of the candidate's calls through an alias: dimensions `FunctionName`, `Resource` and
    /// `ExecutedVersion`, all three of which it takes.
    pub fn of_candidate(name: &str, function: &str, alias: &str) -> Self {
        Self::new("AWS/Lambda", name)
            .dimension("FunctionName", function)
            .dimension("Resource", format!("{function}:{alias}"))
            .dimension("ExecutedVersion", "{{candidate}}")
    }

    /// With this dimension. The value may hold [placeholders](super#placeholders).
    #[must_use]
    pub fn dimension(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.dimensions.push((name.into(), value.into()));
        self
    }

    pub(super) fn namespace(&self) -> &str {
        &self.namespace
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn dimensions(&self) -> &[(String, String)] {
        &self.dimensions
    }

    fn sdk(&self, names: Names<'_>) -> Sdk {
        let dimension =
            |(name, value): &(String, String)| Dimension::builder().name(name).value(names.render(value)).build();
        let dimensions = self.dimensions.iter().map(dimension).collect();
        Sdk::builder().namespace(&self.namespace).metric_name(&self.name).set_dimensions(Some(dimensions)).build()
    }

    #[cfg(feature = "compare")]
    fn names_the_candidate(&self) -> bool {
        self.dimensions.iter().any(|(_, value)| value.contains("{{candidate}}"))
    }
}

impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.namespace, self.name)
    }
}

/// What a number must be. What does not keep to it is unhealthy.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Bound {
    /// This or less.
    AtMost(f64),
    /// This or more.
    AtLeast(f64),
}

impl Bound {
    fn holds(self, value: f64) -> bool {
        match self {
            Self::AtMost(limit) => value <= limit,
            Self::AtLeast(limit) => value >= limit,
        }
    }

    const fn limit(self) -> f64 {
        match self {
            Self::AtMost(limit) | Self::AtLeast(limit) => limit,
        }
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtMost(limit) => write!(f, "at most {limit}"),
            Self::AtLeast(limit) => write!(f, "at least {limit}"),
        }
    }
}

/// Asks CloudWatch for a metric of the candidate, and whether it keeps to a bound.
///
/// Judged over the whole minutes since the step's weight was reached, up to one that is [old enough](Self::settle) to be
/// complete; the evidence reaches that far. Inconclusive, with the reason: no value, too few requests, an answer that is
/// not `Complete`, CloudWatch out of reach. Each look costs as many metrics as are read; alarms are nearly free, so let
/// alarms guard where they can.
#[derive(Debug)]
pub struct MetricGate {
    name: GateName,
    client: Client,
    asks: Asks,
    bound: Bound,
    floor: Option<(Metric, f64)>,
    settle: Duration,
}

#[derive(Debug)]
enum Asks {
    /// The worst minute.
    Stat(Metric, String),
    /// The share of all minutes together, in percent.
    Share { part: Metric, whole: Metric },
}

impl MetricGate {
    /// This statistic of a metric (`Average`, `Maximum`, `p99`, …) must keep to the bound in every minute.
    ///
    /// # Errors
    /// `Invalid` when the gate's name is none, or the bound is not finite.
    pub fn new(name: &str, account: &Account, metric: Metric, statistic: &str, bound: Bound) -> Result<Self> {
        Self::asking(name, account, Asks::Stat(metric, statistic.into()), bound)
    }

    /// At most this percentage of the requests may have failed since the step began; both metrics are sums. No data before
    /// there were so many requests that one failure alone is no breach: `100 / percent`, between 20 and 1,000.
    ///
    /// # Errors
    /// `Invalid` when the gate's name is none, or the percentage not between 0 and 100.
    pub fn failures(name: &str, account: &Account, failed: Metric, requests: Metric, percent: f64) -> Result<Self> {
        if !(0.0..100.0).contains(&percent) {
            return Err(Error::invalid(format!(
                "gate {name} lets {percent} % fail; 0 or more and less than 100 is accepted"
            )));
        }
        let floor = (100.0 / percent).ceil().clamp(20.0, 1000.0);
        let asks = Asks::Share { part: failed, whole: requests.clone() };
        Ok(Self::asking(name, account, asks, Bound::AtMost(percent))?.floor(requests, floor))
    }

    fn asking(name: &str, account: &Account, asks: Asks, bound: Bound) -> Result<Self> {
        let name = GateName::try_from(name)?;
        if !bound.limit().is_finite() {
            return Err(Error::invalid(format!(
                "gate {name} has the bound {}; a finite number is accepted",
                bound.limit()
            )));
        }
        Ok(Self { name, client: account.cloudwatch(), asks, bound, floor: None, settle: SETTLE })
    }

    /// No data before the sum of this metric since the step began is at least this.
    #[must_use]
    pub fn floor(mut self, requests: Metric, at_least: f64) -> Self {
        self.floor = Some((requests, at_least));
        self
    }

    /// How long after its end a minute is taken for complete; two minutes unless said.
    #[must_use]
    pub const fn settle(mut self, time: Duration) -> Self {
        self.settle = time;
        self
    }

    fn queries(&self) -> Vec<(&Metric, &str)> {
        let mut queries = match &self.asks {
            Asks::Stat(metric, statistic) => vec![(metric, statistic.as_str())],
            Asks::Share { part, whole } => vec![(part, "Sum"), (whole, "Sum")],
        };
        queries.extend(self.floor.as_ref().map(|(metric, _)| (metric, "Sum")));
        queries
    }
}

#[async_trait]
impl HealthGate for MetricGate {
    fn name(&self) -> &GateName {
        &self.name
    }

    async fn judge(&self, window: &Window) -> Result<Verdict> {
        let (from, to) = whole_minutes(window.since, window.now, self.settle);
        if from >= to {
            return Ok(window.no_data("no whole minute has passed that CloudWatch is sure to know"));
        }
        let found = fetch(&self.client, &self.queries(), Names::of(window), from, to).await?;
        if let (Some((metric, least)), Some(points)) = (&self.floor, found.last())
            && total(points) < *least
        {
            return Ok(window.no_data(format!("{metric} is {}; at least {least} is needed", total(points))));
        }
        let (what, value, newest) = match &self.asks {
            Asks::Stat(metric, statistic) => {
                let worst = found[0].values().copied().max_by(|a, b| match self.bound {
                    Bound::AtMost(_) => a.total_cmp(b),
                    Bound::AtLeast(_) => b.total_cmp(a),
                });
                (format!("{statistic} of {metric}"), worst, found[0].keys().last())
            }
            Asks::Share { part, whole } => {
                let all = total(&found[1]);
                let share = (all > 0.0).then(|| 100.0 * total(&found[0]) / all);
                (format!("{part} in percent of {whole}"), share, found[1].keys().last())
            }
        };
        let (Some(value), Some(newest)) = (value, newest) else {
            return Ok(window.no_data(format!("{what} has no value since the step began")));
        };
        let until = Timestamp::from_second(newest + MINUTE).unwrap_or(window.since).max(window.since);
        let evidence = Evidence::new(until, format!("{what} is {value}, {} is accepted", self.bound))
            .fact("value", value)
            .fact("trips", format!("not {}", self.bound))
            .fact("minutes", (to - from) / MINUTE);
        Ok(if self.bound.holds(value) { Verdict::Healthy(evidence) } else { Verdict::Unhealthy(evidence) })
    }

    async fn preflight(&self, change: &Change, plan: &Plan) -> Result<Readiness> {
        let mut ready = Readiness::default();
        let now = SystemClock.now().as_second();
        let answer = fetch(&self.client, &self.queries(), Names::of_change(change), now - 5 * MINUTE, now).await;
        GET_METRIC_DATA.prove(&mut ready, answer)?;
        let least = self.settle + Duration::from_secs(2 * MINUTE as u64);
        if let Some(at) = plan.steps().iter().position(|step| step.bake < least) {
            ready = ready.not_provable(format!(
                "gate {}: step {} bakes for {} s; its first whole minute is known after up to {} s",
                self.name,
                at + 1,
                plan.steps()[at].bake.as_secs(),
                least.as_secs()
            ));
        }
        Ok(ready.not_provable(format!(
            "that the metrics of gate {} will have values: no call says so before the candidate is called",
            self.name
        )))
    }
}

/// Requests and failures of both revisions, from sums in CloudWatch, for core's `Compare`.
///
/// Readings end with the last minute that is sure to be complete and follow on one another without gap.
#[cfg(feature = "compare")]
#[derive(Debug)]
pub struct Counts {
    client: Client,
    requests: Metric,
    failures: Metric,
    settle: Duration,
}

#[cfg(feature = "compare")]
impl Counts {
    /// Of the requests that one metric counts, those that the other counts have failed. Both tell the revisions apart by
    /// `{{candidate}}` in the value of a dimension, which stands for the baseline's id where the baseline is read.
    ///
    /// # Errors
    /// `Invalid` when one does not name the candidate.
    pub fn new(account: &Account, requests: Metric, failures: Metric) -> Result<Self> {
        for metric in [&requests, &failures] {
            if !metric.names_the_candidate() {
                return Err(Error::invalid(format!(
                    "{metric} does not tell the candidate from the baseline; give a dimension with {{{{candidate}}}}"
                )));
            }
        }
        Ok(Self { client: account.cloudwatch(), requests, failures, settle: SETTLE })
    }

    /// How long after its end a minute is taken for complete; two minutes unless said.
    #[must_use]
    pub const fn settle(mut self, time: Duration) -> Self {
        self.settle = time;
        self
    }

    async fn arm(&self, names: Names<'_>, from: i64, to: i64) -> Result<Option<Count>> {
        let found = fetch(&self.client, &[(&self.requests, "Sum"), (&self.failures, "Sum")], names, from, to).await?;
        let total = |points: &BTreeMap<i64, f64>| total(points).round().max(0.0) as u64;
        let requests = total(&found[0]);
        // An arm without a value was not measured; CloudWatch has no zeros for calls that nobody made.
        Ok((!found[0].is_empty()).then(|| Count::new(requests, total(&found[1]).min(requests))))
    }
}

#[cfg(feature = "compare")]
#[async_trait]
impl MetricSource for Counts {
    async fn read(&self, query: &Query) -> Result<Reading> {
        let (from, to) = whole_minutes(query.since, query.now, self.settle);
        let nothing = || Reading::since(query.since, Samples::Counts(BTreeMap::new()));
        if from >= to {
            return Ok(nothing());
        }
        let names = Names::new(&query.candidate, &query.baseline, &query.target);
        let (candidate, baseline) =
            tokio::try_join!(self.arm(names, from, to), self.arm(names.of_the_baseline(), from, to))?;
        for (arm, revision, serves) in [
            (candidate, &query.candidate, query.serving.candidate()),
            (baseline, &query.baseline, query.serving.baseline()),
        ] {
            if serves && arm.is_none() {
                return Err(Error::new(
                    ErrorKind::Unavailable,
                    format!("CloudWatch has no {} of {revision} for the last minutes", self.requests),
                ));
            }
        }
        let until = Timestamp::from_second(to).unwrap_or(query.now);
        Ok(Reading::since(until, Samples::counts(candidate.unwrap_or_default(), baseline.unwrap_or_default())))
    }
}

/// From the first whole minute after `since` to the last one that is complete.
fn whole_minutes(since: Timestamp, now: Timestamp, settle: Duration) -> (i64, i64) {
    let up = |at: Timestamp| {
        let second = at.as_second() + i64::from(at.subsec_nanosecond() > 0);
        second.div_euclid(MINUTE) * MINUTE + if second.rem_euclid(MINUTE) > 0 { MINUTE } else { 0 }
    };
    let settled = now.checked_sub(SignedDuration::try_from(settle).unwrap_or_default()).unwrap_or(since);
    (up(since), settled.as_second().div_euclid(MINUTE) * MINUTE)
}

/// The sum of a metric in this time, begun minutes included.
pub(super) async fn sum(
    client: &Client,
    metric: &Metric,
    names: Names<'_>,
    from: Timestamp,
    to: Timestamp,
) -> Result<f64> {
    // From the first whole minute: what was called before the step does not count for it.
    let (from, _) = whole_minutes(from, to, Duration::ZERO);
    let to = to.as_second();
    if from >= to {
        return Ok(0.0);
    }
    let found = fetch(client, &[(metric, "Sum")], names, from, to).await?;
    Ok(total(&found[0]))
}

/// The sum of some points; of none it is 0, and not the -0 that `sum` begins with.
fn total(points: &BTreeMap<i64, f64>) -> f64 {
    points.values().fold(0.0, |sum, value| sum + value)
}

/// The points of each of these, by the second at which their minute begins.
///
/// # Errors
/// `Unavailable` unless CloudWatch says that the answer is complete.
async fn fetch(
    client: &Client,
    queries: &[(&Metric, &str)],
    names: Names<'_>,
    from: i64,
    to: i64,
) -> Result<Vec<BTreeMap<i64, f64>>> {
    let mut found = vec![BTreeMap::new(); queries.len()];
    let sent: Vec<MetricDataQuery> = queries
        .iter()
        .enumerate()
        .map(|(at, (metric, stat))| {
            let stat = MetricStat::builder().metric(metric.sdk(names)).period(MINUTE as i32).stat(*stat).build();
            MetricDataQuery::builder().id(format!("m{at}")).metric_stat(stat).build()
        })
        .collect();
    let mut token = None;
    loop {
        let call = client.get_metric_data().set_metric_data_queries(Some(sent.clone())).set_next_token(token);
        let call = call.start_time(DateTime::from_secs(from)).end_time(DateTime::from_secs(to));
        let said = call.send().await.map_err(|e| sorted("reading metrics", e))?;
        token = said.next_token().filter(|token| !token.is_empty()).map(String::from);
        for result in said.metric_data_results() {
            let at = result.id().and_then(|id| id.strip_prefix('m')?.parse::<usize>().ok());
            let Some(points) = at.and_then(|at| found.get_mut(at)) else { continue };
            match result.status_code() {
                Some(StatusCode::Complete) => {}
                // Of a page that another follows; the last one tells.
                Some(StatusCode::PartialData) if token.is_some() => {}
                other => {
                    let status = other.map_or("no status", StatusCode::as_str);
                    let metric = queries[at.unwrap_or_default()].0;
                    return Err(Error::new(
                        ErrorKind::Unavailable,
                        format!("CloudWatch answers {metric} with {status}; only Complete is taken"),
                    ));
                }
            }
            for (time, value) in result.timestamps().iter().zip(result.values()) {
                points.insert(time.secs(), *value);
            }
        }
        if token.is_none() {
            return Ok(found);
        }
    }
}

/// The period that is read: what services measure has no shorter one.
const MINUTE: i64 = 60;

/// Services were observed to bring their numbers within two minutes.
const SETTLE: Duration = Duration::from_secs(120);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_minutes_count_that_are_over_for_long_enough() {
        let at = |second| Timestamp::from_second(second).expect("a time");
        let settle = Duration::from_secs(120);
        assert_eq!(whole_minutes(at(600), at(900), settle), (600, 780));
        assert_eq!(whole_minutes(at(601), at(959), settle), (660, 780));
        assert!(matches!(whole_minutes(at(601), at(700), settle), (from, to) if from >= to));
    }
}
