//! A Prometheus as the source of a comparison.
//!
//! Counters are read as the raw samples that were stored, and what they rose by is counted here: `increase` extrapolates,
//! and a test that counts needs what was counted. Readings follow on one another without gap or overlap, because each
//! begins with the last sample that the one before it ended with.

use std::{collections::BTreeMap, time::Duration};

use async_trait::async_trait;
use jiff::Timestamp;

use super::{
    elapsed,
    query::{Matcher, Names, Selector, Template},
    server::{Found, Series, Server, Shape},
};
use crate::{
    error::{Error, ErrorKind, Result},
    gate::source::{Count, MetricSource, Pair, Query, Reading, Samples, rise},
};

/// Requests and failures, from a counter of Prometheus.
///
/// A series that appears after the reading began counts from zero: it is a new instance, or the first failure of its
/// kind. Samples older than two minutes are an error, not an idle arm.
///
/// ```
/// # use rollback_core::gate::prometheus::{Counts, Matcher, Selector, Server};
/// let server = Server::new("http://prometheus.internal:9090")?;
/// let requests = Selector::new("http_requests_total")?.revision("version")?.by("route")?;
/// let source = Counts::new(&server, &requests, Matcher::matches("code", "5..")?)?;
/// # Ok::<(), rollback_core::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Counts {
    server: Server,
    requests: Arms,
    failures: Arms,
}

impl Counts {
    /// Of the requests that a counter counts, those that also match `failed` have failed.
    ///
    /// # Errors
    /// `Invalid` when the counter does not name the candidate; see [`Selector::revision`].
    pub fn new(server: &Server, requests: &Selector, failed: Matcher) -> Result<Self> {
        let failures = Arms::new(&requests.clone().with(failed))?;
        Ok(Self { server: server.clone(), requests: Arms::new(requests)?, failures })
    }
}

#[async_trait]
impl MetricSource for Counts {
    async fn read(&self, query: &Query) -> Result<Reading> {
        let requests = self.requests.history(&self.server, query).await?;
        // After the requests, so that no failure is missing whose request is there.
        let failures = self.failures.history(&self.server, query).await?;
        let until = newest(&requests, query)?;
        if until <= query.since {
            return Ok(Reading::since(query.since, Samples::Counts(BTreeMap::new())));
        }
        let rises = |found: &Found| self.requests.rises(found, query.since, until, &[]);
        let requests = Pair { candidate: rises(&requests.candidate)?, baseline: rises(&requests.baseline)? };
        let failures = Pair { candidate: rises(&failures.candidate)?, baseline: rises(&failures.baseline)? };
        let mut counts: BTreeMap<String, Pair<Count>> = BTreeMap::new();
        let arm = |requests: &Rises, failures: &Rises, key: &str| {
            let key = (key.to_owned(), String::new());
            let requests = requests.get(&key).copied().unwrap_or(0);
            Count::new(requests, failures.get(&key).copied().unwrap_or(0).min(requests))
        };
        for (key, _) in requests.candidate.keys().chain(requests.baseline.keys()) {
            let candidate = arm(&requests.candidate, &failures.candidate, key);
            let baseline = arm(&requests.baseline, &failures.baseline, key);
            counts.insert(key.clone(), Pair { candidate, baseline });
        }
        Ok(Reading::since(until, Samples::Counts(counts)))
    }
}

/// How long requests took, in seconds, from a classic histogram of Prometheus.
#[derive(Clone, Debug)]
pub struct Latencies {
    server: Server,
    buckets: Arms,
}

impl Latencies {
    /// Of the histogram of this name, without its `_bucket`.
    ///
    /// # Errors
    /// `Invalid` when the histogram does not name the candidate; see [`Selector::revision`].
    pub fn new(server: &Server, histogram: &Selector) -> Result<Self> {
        Ok(Self { server: server.clone(), buckets: Arms::new(&histogram.suffixed("_bucket"))? })
    }
}

#[async_trait]
impl MetricSource for Latencies {
    async fn read(&self, query: &Query) -> Result<Reading> {
        let found = self.buckets.history(&self.server, query).await?;
        let until = newest(&found, query)?;
        if until <= query.since {
            let nothing = Samples::Buckets { bounds: Vec::new(), counts: BTreeMap::new() };
            return Ok(Reading::since(query.since, nothing));
        }
        let rises = |found: &Found| self.buckets.rises(found, query.since, until, &["le"]);
        let rises = Pair { candidate: rises(&found.candidate)?, baseline: rises(&found.baseline)? };
        let mut bounds: Vec<f64> = Vec::new();
        for (_, le) in rises.candidate.keys().chain(rises.baseline.keys()) {
            let bound = bound(le)?;
            if bound.is_finite() && !bounds.contains(&bound) {
                bounds.push(bound);
            }
        }
        bounds.sort_by(f64::total_cmp);
        let mut counts: BTreeMap<String, Pair<Vec<u64>>> = BTreeMap::new();
        for (key, _) in rises.candidate.keys().chain(rises.baseline.keys()) {
            if !counts.contains_key(key) {
                let pair = Pair {
                    candidate: self.apart(&rises.candidate, key, &bounds)?,
                    baseline: self.apart(&rises.baseline, key, &bounds)?,
                };
                counts.insert(key.clone(), pair);
            }
        }
        Ok(Reading::since(until, Samples::Buckets { bounds, counts }))
    }
}

impl Latencies {
    /// Each bucket alone: those of Prometheus hold all the smaller ones too.
    fn apart(&self, rises: &Rises, key: &str, bounds: &[f64]) -> Result<Vec<u64>> {
        let mut whole: Vec<(f64, u64)> = Vec::new();
        for ((_, le), number) in rises.iter().filter(|((of, _), _)| of == key) {
            whole.push((bound(le)?, *number));
        }
        if whole.is_empty() {
            return Ok(vec![0; bounds.len() + 1]);
        }
        whole.sort_by(|(a, _), (b, _)| a.total_cmp(b));
        let same = whole.len() == bounds.len() + 1
            && whole.iter().zip(bounds).all(|((one, _), other)| one == other)
            && whole.last().is_some_and(|(last, _)| *last == f64::INFINITY);
        if !same {
            return Err(Error::new(
                ErrorKind::Invalid,
                format!("the buckets of {} differ between the revisions or routes", self.buckets.metric),
            ));
        }
        let mut before = 0;
        let apart = whole.into_iter().map(|(_, number)| number.saturating_sub(std::mem::replace(&mut before, number)));
        Ok(apart.collect())
    }
}

/// One value a revision: the mean over its series, as of its instances.
#[derive(Clone, Debug)]
pub struct Gauges {
    server: Server,
    arms: Arms,
    value: Template,
    newest: Template,
}

impl Gauges {
    /// Of this gauge. More is worse.
    ///
    /// # Errors
    /// `Invalid` when the gauge does not name the candidate; see [`Selector::revision`].
    pub fn new(server: &Server, gauge: &Selector) -> Result<Self> {
        Ok(Self {
            server: server.clone(),
            arms: Arms::new(gauge)?,
            value: Template::new(&format!("avg{} ({gauge})", gauge.grouping(&[])))?,
            newest: Template::new(&format!("max(timestamp({gauge}))"))?,
        })
    }

    /// The values of one revision and the time of the newest; none where it has no sample.
    async fn arm(&self, names: &Names<'_>, now: Timestamp) -> Result<Option<(BTreeMap<String, f64>, Timestamp)>> {
        let (value, newest) = (self.value.render(names), self.newest.render(names));
        let (values, newest) =
            tokio::try_join!(self.server.instant(&value, Some(now)), self.server.instant(&newest, Some(now)))?;
        let newest = newest.series.first().and_then(|series| series.samples.last()).map(|sample| sample.value);
        let Some(newest) = newest.filter(|at| at.is_finite()) else { return Ok(None) };
        let newest = Timestamp::from_millisecond((newest * 1000.0).round() as i64)
            .map_err(|_| Error::new(ErrorKind::Internal, format!("the time of {value} is none")))?;
        let mut found = BTreeMap::new();
        for series in &values.series {
            let value = series.samples.last().map(|sample| sample.value).filter(|value| value.is_finite());
            let value = value.ok_or_else(|| not_a_number(&self.arms.metric))?;
            found.insert(self.arms.key(series), value);
        }
        Ok(Some((found, newest)))
    }
}

#[async_trait]
impl MetricSource for Gauges {
    async fn read(&self, query: &Query) -> Result<Reading> {
        let names = names(query);
        let of_the_baseline = names.of_the_baseline();
        let (candidate, baseline) =
            tokio::try_join!(self.arm(&names, query.now), self.arm(&of_the_baseline, query.now))?;
        let newest = |arm: &Option<(_, Timestamp)>| arm.as_ref().map(|(_, newest)| *newest);
        let until = until(Pair { candidate: newest(&candidate), baseline: newest(&baseline) }, query)?;
        if until <= query.since {
            return Ok(Reading::since(query.since, Samples::Gauges(BTreeMap::new())));
        }
        let values = |arm: Option<(BTreeMap<String, f64>, _)>| arm.map(|(values, _)| values).unwrap_or_default();
        let (candidate, baseline) = (values(candidate), values(baseline));
        // A label that a revision that serves does not have cannot be compared.
        let both = candidate.into_iter().filter_map(|(key, candidate)| {
            let baseline = baseline.get(&key).copied();
            let baseline = if query.serving.baseline() { baseline? } else { baseline.unwrap_or(f64::NAN) };
            Some((key, Pair { candidate, baseline }))
        });
        Ok(Reading::since(until, Samples::Gauges(both.collect())))
    }
}

/// The series of a metric, for both revisions.
#[derive(Clone, Debug)]
struct Arms {
    metric: String,
    selector: Template,
    by: Vec<String>,
}

/// By the labels told apart, and `le`.
type Rises = BTreeMap<(String, String), u64>;

impl Arms {
    fn new(selector: &Selector) -> Result<Self> {
        let template = Template::new(&selector.to_string())?;
        if !template.names_the_candidate() {
            return Err(Error::invalid(format!(
                "{} does not tell the candidate from the baseline; name the label with Selector::revision",
                selector.metric()
            )));
        }
        Ok(Self { metric: selector.metric().to_owned(), selector: template, by: selector.labels().to_vec() })
    }

    /// The samples of both revisions, from a little before the reading begins.
    async fn history(&self, server: &Server, query: &Query) -> Result<Pair<Found>> {
        let span = elapsed(query.since, query.now).saturating_add(LOOK_BACK).as_secs() + 1;
        let names = names(query);
        let ask = |names: Names<'_>| {
            let text = format!("{}[{span}s]", self.selector.render(&names));
            async move {
                let found = server.instant(&text, Some(query.now)).await?;
                match found.shape {
                    Shape::Matrix => Ok(found),
                    Shape::Instant => Err(Error::new(ErrorKind::Internal, format!("{text} gave no range of samples"))),
                }
            }
        };
        let (candidate, baseline) = tokio::try_join!(ask(names), ask(names.of_the_baseline()))?;
        Ok(Pair { candidate, baseline })
    }

    /// How far the counters of one revision rose after `since` and up to `until`.
    fn rises(&self, found: &Found, since: Timestamp, until: Timestamp, and: &[&str]) -> Result<Rises> {
        let mut rises = Rises::new();
        for series in &found.series {
            let before = series.samples.iter().take_while(|sample| sample.at <= since).last();
            let first = before.map_or(0.0, |sample| sample.value);
            let after = series.samples.iter().filter(|sample| sample.at > since && sample.at <= until);
            let mut after = after.map(|sample| sample.value).peekable();
            let rise = match after.peek() {
                None => 0,
                Some(_) => rise(std::iter::once(first).chain(after)).ok_or_else(|| not_a_number(&self.metric))?,
            };
            let and: Vec<&str> = and.iter().filter_map(|label| series.labels.get(*label)).map(String::as_str).collect();
            *rises.entry((self.key(series), and.join(", "))).or_default() += rise;
        }
        Ok(rises)
    }

    fn key(&self, series: &Series) -> String {
        let values = self.by.iter().map(|label| series.labels.get(label).map_or("", String::as_str));
        values.collect::<Vec<_>>().join(", ")
    }
}

fn names(query: &Query) -> Names<'_> {
    Names {
        candidate: query.candidate.as_str(),
        baseline: query.baseline.as_str(),
        target: query.target.as_str(),
        window: elapsed(query.since, query.now),
    }
}

/// How far the samples reach.
fn newest(found: &Pair<Found>, query: &Query) -> Result<Timestamp> {
    let of =
        |found: &Found| found.series.iter().filter_map(|series| series.samples.last()).map(|sample| sample.at).max();
    until(Pair { candidate: of(&found.candidate), baseline: of(&found.baseline) }, query)
}

/// How far the data of those reaches that serve, by the newest sample of each revision.
fn until(newest: Pair<Option<Timestamp>>, query: &Query) -> Result<Timestamp> {
    let mut until = query.now;
    for (newest, revision, serves) in [
        (newest.candidate, &query.candidate, query.serving.candidate()),
        (newest.baseline, &query.baseline, query.serving.baseline()),
    ] {
        if serves {
            let newest = newest.ok_or_else(|| gone(revision.as_str()))?;
            until = until.min(fresh(newest, query.now, revision.as_str())?);
        }
    }
    Ok(until)
}

fn fresh(newest: Timestamp, now: Timestamp, what: &str) -> Result<Timestamp> {
    let age = elapsed(newest, now);
    if age > MAX_AGE {
        return Err(Error::new(
            ErrorKind::Unavailable,
            format!(
                "the newest sample of {what} is {} s old; at most {} s are accepted",
                age.as_secs(),
                MAX_AGE.as_secs()
            ),
        ));
    }
    Ok(newest.min(now))
}

fn gone(what: &str) -> Error {
    Error::new(ErrorKind::Unavailable, format!("there is no sample of {what}: it is gone, or was never scraped"))
}

fn not_a_number(metric: &str) -> Error {
    Error::new(ErrorKind::Internal, format!("{metric} has a sample that is no number"))
}

fn bound(le: &str) -> Result<f64> {
    le.parse()
        .map_err(|_| Error::new(ErrorKind::Internal, format!("a bucket has the bound {le:?}, which is no number")))
}

/// How long before a reading its first sample is searched for: as long as Prometheus itself looks back.
const LOOK_BACK: Duration = Duration::from_secs(300);

const MAX_AGE: Duration = Duration::from_secs(120);
