//! A gate that asks a Prometheus, and what its queries are made of.

mod query;
mod server;
#[cfg(feature = "compare")]
mod source;

use std::{collections::BTreeSet, fmt, time::Duration};

use async_trait::async_trait;
use jiff::Timestamp;
use serde_json::{Value, json};

#[cfg(feature = "alertmanager")]
pub(in crate::gate) use self::server::AlertingRule;
#[cfg(feature = "compare")]
pub use self::source::{Counts, Gauges, Latencies};
pub use self::{
    query::{Matcher, Selector},
    server::Server,
};
use self::{
    query::{Names, Template},
    server::{Found, Labels, Series, Shape},
};
use super::{Evidence, HealthGate, Verdict, Window};
use crate::{
    backend::Readiness,
    error::{Error, ErrorKind, Result},
    model::{Change, GateName},
    plan::Plan,
};

/// Asks a Prometheus for a number, and whether it keeps to a bound.
///
/// Ready-made are [`error_ratio`](Self::error_ratio) and [`latency_quantile`](Self::latency_quantile), which also ask for
/// a floor of requests and for fresh samples. A query of your own ([`new`](Self::new)) gets them with
/// [`floor`](Self::floor), [`fresh`](Self::fresh) and [`alive`](Self::alive): without them an application that died looks
/// like one without errors, because `rate` goes on answering 0.
///
/// # Queries
/// | placeholder | stands for |
/// |---|---|
/// | `{{candidate}}`, `{{baseline}}`, `{{target}}` | the id, escaped for a string: `{version="{{candidate}}"}` |
/// | `{{candidate.regex}}` and so on | the same for an expression that matches it alone: `{pod=~"{{candidate.regex}}-.*"}` |
/// | `{{window}}` | the time since the step's weight was reached, as `90s`; at most [`window_cap`](Self::window_cap) |
///
/// # Verdicts
/// Several series are judged one by one: all must keep to the bound ([`any_series`](Self::any_series) asks for one).
/// Inconclusive, with the reason: no series at all, NaN, infinite values, native histograms, too few requests, samples
/// that are too old, a server that cannot be reached, refuses us, or says something else than its API; and a number that
/// is good but comes with warnings, as of parts that did not answer.
///
/// The evidence reaches as far as the newest sample where [`fresh`](Self::fresh) tells, else to the time that the server
/// evaluated the query at.
///
/// ```
/// use rollback_core::gate::{Prometheus, prometheus::{Bound, Matcher, Selector, Server}};
///
/// let server = Server::new("http://prometheus.internal:9090")?;
/// let requests = Selector::new("http_requests_total")?
///     .with(Matcher::is("job", "{{target}}")?)
///     .revision("version")?
///     .by("route")?;
/// let errors = Prometheus::error_ratio("errors", &server, &requests, Matcher::matches("code", "5..")?, 0.01)?;
///
/// let queue = Prometheus::new("queue", &server, r#"max(queue_length{version="{{candidate}}"})"#, Bound::AtMost(100.0))?
///     .fresh(r#"queue_length{version="{{candidate}}"}"#)?;
/// # Ok::<(), rollback_core::Error>(())
/// ```
#[derive(Clone)]
pub struct Prometheus {
    name: GateName,
    server: Server,
    query: Template,
    bound: Bound,
    over: Option<(Duration, Over)>,
    any: bool,
    expected: Option<(String, Vec<String>)>,
    floor: Option<(Template, f64)>,
    alive: Option<Template>,
    fresh: Option<Template>,
    max_age: Duration,
    window_cap: Duration,
    /// The series whose buckets must be finer than the bound.
    buckets: Option<Template>,
    may_be_new: bool,
    warnings_pass: bool,
}

/// What a number must be. What does not keep to it is unhealthy.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Bound {
    /// This or less.
    AtMost(f64),
    /// Less than this.
    Below(f64),
    /// This or more.
    AtLeast(f64),
    /// More than this.
    Above(f64),
}

/// How the points of a time are judged; see [`Prometheus::over_the_bake`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    /// By the worst of them: one that breaks the bound is enough.
    Worst,
    /// By their mean.
    Mean,
}

impl Prometheus {
    /// Judges what this query gives.
    ///
    /// # Errors
    /// `Invalid` when the name is not a gate's, the query is empty or has an unknown placeholder, or the bound is not
    /// finite. Whether the query is PromQL is found in preflight.
    pub fn new(name: &str, server: &Server, query: &str, bound: Bound) -> Result<Self> {
        let name = GateName::try_from(name)?;
        if !bound.limit().is_finite() {
            return Err(Error::invalid(format!(
                "gate {name} has the bound {}; a finite number is accepted",
                bound.limit()
            )));
        }
        let query = Template::new(query).map_err(|e| e.during(format_args!("gate {name}")))?;
        Ok(Self {
            name,
            server: server.clone(),
            query,
            bound,
            over: None,
            any: false,
            expected: None,
            floor: None,
            alive: None,
            fresh: None,
            max_age: Duration::from_secs(120),
            window_cap: Duration::from_secs(300),
            buckets: None,
            may_be_new: false,
            warnings_pass: false,
        })
    }

    /// At most this share of the requests may fail: of those that a counter counts, those that also match `failed`.
    ///
    /// Judged over [`{{window}}`](Self#queries); a label that never had a failure counts as none failed. Asks for fresh
    /// samples, and for so many requests that one failure alone is no breach: `1 / at_most`, between 20 and 1,000. With
    /// [`Selector::by`] each label is judged for itself, and those with fewer requests are passed over as long as one
    /// has enough.
    ///
    /// # Errors
    /// As [`Self::new`]; `Invalid` when `at_most` is not between 0 and 1, or the counter does not name the candidate.
    pub fn error_ratio(
        name: &str,
        server: &Server,
        requests: &Selector,
        failed: Matcher,
        at_most: f64,
    ) -> Result<Self> {
        if !(0.0..1.0).contains(&at_most) {
            return Err(Error::invalid(format!(
                "gate {name} lets a share of {at_most} fail; 0 or more and less than 1 is accepted"
            )));
        }
        let by = requests.grouping(&[]);
        let all = format!("sum{by} (rate({requests}[{{{{window}}}}]))");
        let bad = format!("sum{by} (rate({}[{{{{window}}}}]))", requests.clone().with(failed));
        // Where nothing ever failed there is no series of failures, and a division by nothing would be no data.
        let query = format!("({bad} or 0 * {all}) / {all}");
        let floor = (1.0 / at_most).ceil().clamp(20.0, 1000.0);
        Self::new(name, server, &query, Bound::AtMost(at_most))?
            .floor(&format!("sum{by} (increase({requests}[{{{{window}}}}]))"), floor)?
            .fresh(&requests.to_string())?
            .of_the_candidate()
    }

    /// This quantile of a histogram's latencies, in seconds, may be at most this. The histogram is named without its
    /// `_bucket`.
    ///
    /// Judged over [`{{window}}`](Self#queries), from at least 100 requests. A quantile is never more than the histogram's
    /// last finite bucket, so preflight refuses a bound that no bucket can tell.
    ///
    /// # Errors
    /// As [`Self::new`]; `Invalid` when the quantile is not between 0 and 1, or the histogram does not name the candidate.
    pub fn latency_quantile(
        name: &str,
        server: &Server,
        histogram: &Selector,
        quantile: f64,
        at_most: Duration,
    ) -> Result<Self> {
        if !(quantile > 0.0 && quantile < 1.0) {
            return Err(Error::invalid(format!("gate {name} asks for the quantile {quantile}; 0 to 1 is accepted")));
        }
        let (bucket, count) = (histogram.suffixed("_bucket"), histogram.suffixed("_count"));
        let query = format!(
            "histogram_quantile({quantile}, sum{} (rate({bucket}[{{{{window}}}}])))",
            histogram.grouping(&["le"])
        );
        let floor = format!("sum{} (increase({count}[{{{{window}}}}]))", histogram.grouping(&[]));
        let mut gate = Self::new(name, server, &query, Bound::AtMost(at_most.as_secs_f64()))?
            .floor(&floor, 100.0)?
            .fresh(&count.to_string())?
            .of_the_candidate()?;
        gate.buckets = Some(Template::new(bucket.metric())?);
        Ok(gate)
    }

    /// Judges every point since the step's weight was reached, this far apart, instead of the one of now. Fewer than half
    /// of the points are no data.
    #[must_use]
    pub fn over_the_bake(mut self, step: Duration, over: Over) -> Self {
        self.over = Some((step.max(Duration::from_millis(100)), over));
        self
    }

    /// One series within the bound is enough, instead of all.
    #[must_use]
    pub const fn any_series(mut self) -> Self {
        self.any = true;
        self
    }

    /// There must be a series for each of these values of a label; one without data is inconclusive instead of unseen.
    #[must_use]
    pub fn expect_series<I: Into<String>>(mut self, label: &str, values: impl IntoIterator<Item = I>) -> Self {
        self.expected = Some((label.to_owned(), values.into_iter().map(Into::into).collect()));
        self
    }

    /// Inconclusive while this query gives less than this: a ratio of few requests says nothing. A series of the floor
    /// counts for the series with the same labels, one without labels for all.
    ///
    /// # Errors
    /// `Invalid` when the query is empty or has an unknown placeholder.
    pub fn floor(mut self, query: &str, at_least: f64) -> Result<Self> {
        self.floor = Some((self.template(query)?, at_least));
        Ok(self)
    }

    /// With another number of requests for the floor that is there.
    ///
    /// # Errors
    /// `Invalid` when there is none.
    pub fn at_least_requests(mut self, at_least: u32) -> Result<Self> {
        let Some((_, number)) = &mut self.floor else {
            return Err(Error::invalid(format!("gate {} has no floor; give its query with floor", self.name)));
        };
        *number = f64::from(at_least);
        Ok(self)
    }

    /// Inconclusive unless this query gives something, and nothing of it is 0: `up{version="{{candidate}}"}`.
    ///
    /// # Errors
    /// As [`Self::floor`].
    pub fn alive(mut self, query: &str) -> Result<Self> {
        self.alive = Some(self.template(query)?);
        Ok(self)
    }

    /// Inconclusive when the newest sample of these series is older than [`max_age`](Self::max_age): the samples that the
    /// query is made of. Without this nobody can tell: every number comes with the time it was asked for.
    ///
    /// # Errors
    /// `Invalid` when this is more than a selector: a name, labels in braces.
    pub fn fresh(mut self, selector: &str) -> Result<Self> {
        let bare = selector.trim();
        if !query::is_selector(bare) {
            return Err(Error::invalid(format!(
                "gate {} asks how fresh {selector:?} is; a name and labels in braces are accepted",
                self.name
            )));
        }
        // By the server's clock alone, so that ours may be wrong.
        self.fresh = Some(self.template(&format!("time() - max(timestamp({bare}))"))?);
        Ok(self)
    }

    /// How old the newest sample may be; 2 minutes unless said. More than one scrape interval.
    #[must_use]
    pub const fn max_age(mut self, age: Duration) -> Self {
        self.max_age = age;
        self
    }

    /// The longest that `{{window}}` becomes; 5 minutes unless said. At least four scrape intervals, or `rate` has
    /// nothing to go by.
    #[must_use]
    pub const fn window_cap(mut self, cap: Duration) -> Self {
        self.window_cap = cap;
        self
    }

    /// A metric that the server does not know yet is no reason to refuse: the candidate brings it.
    #[must_use]
    pub const fn metrics_may_be_new(mut self) -> Self {
        self.may_be_new = true;
        self
    }

    /// A good number passes even if the server warns of it.
    #[must_use]
    pub const fn warnings_pass(mut self) -> Self {
        self.warnings_pass = true;
        self
    }

    fn template(&self, query: &str) -> Result<Template> {
        Template::new(query).map_err(|e| e.during(format_args!("gate {}", self.name)))
    }

    fn of_the_candidate(self) -> Result<Self> {
        if self.query.names_the_candidate() {
            return Ok(self);
        }
        Err(Error::invalid(format!(
            "gate {} does not tell the candidate from the baseline; name the label with Selector::revision",
            self.name
        )))
    }

    fn names<'a>(&self, window: &'a Window) -> Names<'a> {
        Names {
            candidate: window.candidate.as_str(),
            baseline: window.baseline.as_str(),
            target: window.target.as_str(),
            window: elapsed(window.since, window.now).min(self.window_cap),
        }
    }

    async fn main_query(&self, query: &str, window: &Window) -> Result<Found> {
        match self.over {
            None => self.server.instant(query, None).await,
            Some((step, _)) => {
                // A server gives at most 11,000 points.
                let step = step.max(elapsed(window.since, window.now) / 10_000);
                self.server.range(query, window.since, window.now, step).await
            }
        }
    }

    async fn optional(&self, template: Option<&Template>, names: &Names<'_>) -> Result<Option<Found>> {
        match template {
            Some(template) => self.server.instant(&template.render(names), None).await.map(Some),
            None => Ok(None),
        }
    }

    /// Asks everything, side by side: the reason for no data, or what was found.
    async fn look(&self, query: &str, names: &Names<'_>, window: &Window) -> Result<Look, String> {
        let (main, floor, alive, age) = tokio::join!(
            self.main_query(query, window),
            self.optional(self.floor.as_ref().map(|(floor, _)| floor), names),
            self.optional(self.alive.as_ref(), names),
            self.optional(self.fresh.as_ref(), names),
        );
        let main = main.map_err(|e| e.chain())?;
        if self.over.is_none() && main.shape == Shape::Matrix {
            return Err("the query gives a range; wrap it in rate or avg_over_time".into());
        }
        if let Some(alive) = alive.map_err(|e| format!("whether it lives is unknown: {}", e.chain()))? {
            let values = alive.series.iter().map(|series| series.samples.last().map(|sample| sample.value));
            let values: Vec<Option<f64>> = values.collect();
            if values.is_empty() {
                return Err("the query for life finds nothing".into());
            }
            // Anything but a number that is not 0 is no sign of life.
            if let Some(dead) = values.iter().find(|value| !value.is_some_and(|value| value != 0.0 && !value.is_nan()))
            {
                return Err(format!("the query for life says {}", dead.map_or_else(|| "nothing".into(), shown)));
            }
        }
        let age = match age.map_err(|e| format!("how old the samples are is unknown: {}", e.chain()))? {
            None => None,
            Some(age) => match age.series.first().and_then(|series| series.samples.last()) {
                None => return Err("no sample is there; the application is gone, or was never scraped".into()),
                Some(age) if !age.value.is_finite() => {
                    return Err(format!("the samples are {} s old, which cannot be", shown(age.value)));
                }
                Some(age) => Some(Duration::from_secs_f64(age.value.clamp(0.0, 1e9))),
            },
        };
        if let Some(age) = age.filter(|age| *age > self.max_age) {
            return Err(format!(
                "the newest sample is {} s old; at most {} s are accepted",
                age.as_secs(),
                self.max_age.as_secs()
            ));
        }
        let floor = floor.map_err(|e| format!("how many requests there were is unknown: {}", e.chain()))?;
        let newest = main.series.iter().filter_map(|series| series.samples.last()).map(|sample| sample.at).max();
        if let Some(newest) = newest {
            let apart = elapsed(newest, window.now).max(elapsed(window.now, newest));
            let (most, far) = match self.over {
                // The last point may be a step behind.
                Some((step, _)) => (self.max_age.saturating_add(step), "the last point of the time"),
                None => (self.max_age, "the answer"),
            };
            if apart > most {
                return Err(format!(
                    "{far} is {} s off our clock: it was kept by a proxy, or a clock is wrong",
                    apart.as_secs()
                ));
            }
        }
        let until = match (age, newest) {
            (Some(age), _) => window.now.checked_sub(age).unwrap_or(window.since),
            (None, Some(newest)) => newest.min(window.now),
            (None, None) => window.since,
        };
        Ok(Look { main, floor, until, age })
    }

    /// What each series comes to.
    fn weigh(&self, look: &Look, window: &Window) -> Vec<(Labels, Fate)> {
        let floor = self.floor.as_ref().and_then(|(_, least)| Some((look.floor.as_ref()?, *least)));
        look.main
            .series
            .iter()
            .map(|series| {
                let thin = floor.and_then(|(floor, least)| {
                    let number = requests(floor, &series.labels);
                    (!number.is_some_and(|number| number >= least)).then_some(number)
                });
                let fate = match thin {
                    Some(number) => Fate::Thin(number),
                    None => self.fate(series, window),
                };
                (series.labels.clone(), fate)
            })
            .collect()
    }

    fn fate(&self, series: &Series, window: &Window) -> Fate {
        let values: Vec<f64> = series.samples.iter().map(|sample| sample.value).collect();
        let Some(last) = values.last() else {
            return Fate::Blind("is a native histogram, which is no number: use histogram_quantile".into());
        };
        let number = match self.over {
            None => *last,
            Some((step, over)) => {
                let span = elapsed(window.since, window.now);
                let step = step.max(span / 10_000);
                let expected = (span.as_secs_f64() / step.as_secs_f64()).floor() as usize + 1;
                let finite: Vec<f64> = values.iter().copied().filter(|value| value.is_finite()).collect();
                let worst =
                    finite.iter().copied().max_by(|a, b| self.bound.badness(*a).total_cmp(&self.bound.badness(*b)));
                // A breach stands, whatever else is missing.
                if let (Over::Worst, Some(worst)) = (over, worst)
                    && !self.bound.holds(worst)
                {
                    return Fate::Beyond(worst);
                }
                if let Some(odd) = values.iter().find(|value| !value.is_finite()) {
                    return Fate::Blind(format!("is {} in between", shown(*odd)));
                }
                if finite.len() * 2 < expected {
                    return Fate::Blind(format!("has {} of {expected} points", finite.len()));
                }
                match (over, worst) {
                    (Over::Worst, Some(worst)) => worst,
                    _ => finite.iter().sum::<f64>() / finite.len() as f64,
                }
            }
        };
        match number {
            number if !number.is_finite() => Fate::Blind(format!("is {}", shown(number))),
            number if self.bound.holds(number) => Fate::Within(number),
            number => Fate::Beyond(number),
        }
    }

    fn verdict(&self, look: &Look, weighed: &[(Labels, Fate)], window: &Window, facts: Vec<(&str, Value)>) -> Verdict {
        let evidence =
            |evidence: Evidence| facts.iter().fold(evidence, |all, (name, fact)| all.fact(*name, fact.clone()));
        let no_data = |why: String| match window.no_data(why) {
            Verdict::Inconclusive(found) => Verdict::Inconclusive(evidence(found)),
            other => other,
        };
        let worst = |is: fn(&Fate) -> Option<f64>| {
            let found = weighed.iter().filter_map(|(labels, fate)| Some((labels, is(fate)?)));
            found.max_by(|(_, a), (_, b)| self.bound.badness(*a).total_cmp(&self.bound.badness(*b)))
        };
        let beyond = worst(|fate| if let Fate::Beyond(number) = fate { Some(*number) } else { None });
        let within = worst(|fate| if let Fate::Within(number) = fate { Some(*number) } else { None });
        let blind = weighed.iter().find_map(|(labels, fate)| match fate {
            Fate::Blind(why) => Some(format!("{}{why}", of(labels))),
            _ => None,
        });
        let missing = self.expected.as_ref().and_then(|(label, values)| {
            let judged = weighed.iter().filter(|(_, fate)| matches!(fate, Fate::Within(_) | Fate::Beyond(_)));
            let there: BTreeSet<&str> =
                judged.filter_map(|(labels, _)| labels.get(label)).map(String::as_str).collect();
            let gone: Vec<&str> = values.iter().map(String::as_str).filter(|value| !there.contains(value)).collect();
            (!gone.is_empty()).then(|| format!("no data for {label} {}", gone.join(", ")))
        });
        let thin = || {
            let most =
                weighed.iter().filter_map(|(_, fate)| if let Fate::Thin(number) = fate { *number } else { None });
            let most = most.fold(None, |most: Option<f64>, number| Some(most.map_or(number, |most| most.max(number))));
            let least = self.floor.as_ref().map_or(0.0, |(_, least)| *least);
            format!("{} requests; {} are needed", most.map_or_else(|| "no".into(), shown), shown(least))
        };
        let says = |(labels, number): (&Labels, f64)| format!("{}{} {}", of(labels), shown(number), self.bound);
        let bad = match (self.any, beyond) {
            (false, beyond) => beyond,
            // None can keep to it: all were judged, and each broke it.
            (true, Some(beyond)) if weighed.iter().all(|(_, fate)| matches!(fate, Fate::Beyond(_))) => Some(beyond),
            (true, _) => None,
        };
        if let Some(bad) = bad {
            return Verdict::Unhealthy(evidence(Evidence::new(look.until, says(bad))));
        }
        if weighed.is_empty() {
            return no_data("the query finds nothing".into());
        }
        let Some(good) = within else {
            return no_data(blind.or(missing).unwrap_or_else(thin));
        };
        if !self.any
            && let Some(why) = blind
        {
            return no_data(why);
        }
        if let Some(why) = missing {
            return no_data(why);
        }
        if let (Some(warning), false) = (look.main.warnings.first(), self.warnings_pass) {
            return no_data(format!("{}, but the server warns: {warning}", says(good)));
        }
        Verdict::Healthy(evidence(Evidence::new(look.until, says(good))))
    }
}

#[async_trait]
impl HealthGate for Prometheus {
    fn name(&self) -> &GateName {
        &self.name
    }

    async fn judge(&self, window: &Window) -> Result<Verdict> {
        let names = self.names(window);
        let query = self.query.render(&names);
        let mut facts = vec![("query", json!(query)), ("trips", json!(self.bound.trips()))];
        let look = match self.look(&query, &names, window).await {
            Ok(look) => look,
            Err(why) => {
                return Ok(match window.no_data(why) {
                    Verdict::Inconclusive(found) => Verdict::Inconclusive(
                        facts.into_iter().fold(found, |found, (name, fact)| found.fact(name, fact)),
                    ),
                    other => other,
                });
            }
        };
        let mut weighed = self.weigh(&look, window);
        // The worst first, so that what is cut off does not matter.
        weighed.sort_by(|(_, a), (_, b)| b.rank(self.bound).total_cmp(&a.rank(self.bound)));
        facts.push(("series", json!(weighed.len())));
        let shown: Vec<Value> = weighed.iter().take(SHOWN).map(|(labels, fate)| fate.fact(labels)).collect();
        facts.push(("values", json!(shown)));
        if let Some((_, least)) = &self.floor {
            facts.push(("floor", json!(least)));
        }
        if let Some(age) = look.age {
            facts.push(("age_s", json!(age.as_secs_f64())));
        }
        if !look.main.warnings.is_empty() {
            facts.push(("warnings", json!(look.main.warnings.iter().take(5).collect::<Vec<_>>())));
        }
        Ok(self.verdict(&look, &weighed, window, facts))
    }

    /// Refuses queries that the server refuses, metrics that it does not know, and a bound that the histogram cannot
    /// tell. Lists what remains a risk: nothing that tells how old the samples are, a query that finds nothing even for
    /// the baseline, a range that is longer than the shortest bake.
    ///
    /// # Errors
    /// `Unavailable` and `Throttled`: ask again.
    async fn preflight(&self, change: &Change, plan: &Plan) -> Result<Readiness> {
        let gate = format!("gate {}", self.name);
        let names = Names {
            candidate: change.candidate.id.as_str(),
            baseline: change.baseline.id.as_str(),
            target: change.target.as_str(),
            window: self.window_cap,
        };
        let mut found = Readiness::default();
        let floor = self.floor.as_ref().map(|(floor, _)| floor);
        let all = [Some(&self.query), floor, self.alive.as_ref(), self.fresh.as_ref()];
        let mut metrics: Vec<String> = Vec::new();
        for template in all.into_iter().flatten() {
            let query = template.render(&names);
            match self.server.instant(&query, None).await {
                Ok(answer) if answer.shape == Shape::Matrix => {
                    found = found.refused(format!("{gate}: {query} gives a range; wrap it in rate or avg_over_time"));
                }
                Ok(_) => {}
                Err(e) if e.is_transient() => return Err(e),
                // Without the server every other question has the same answer.
                Err(e) if e.kind() != ErrorKind::Invalid => {
                    return Ok(found.refused(format!("{gate}: {}", e.chain())));
                }
                Err(e) => found = found.refused(format!("{gate}: {} in {query}", e.chain())),
            }
            for metric in query::metrics(&query) {
                if !metrics.iter().any(|known| known == metric) {
                    metrics.push(metric.to_owned());
                }
            }
        }
        if !found.refused.is_empty() {
            return Ok(found);
        }
        for metric in &metrics {
            let known = self.server.values("__name__", &format!("{{__name__=\"{metric}\"}}")).await;
            match known {
                Ok(names) if !names.is_empty() => {}
                Ok(_) if self.may_be_new => {
                    found = found.not_provable(format!("{gate}: {} does not know {metric} yet", self.server.shown()));
                }
                Ok(_) => {
                    found = found.refused(format!(
                        "{gate}: {} knows no metric {metric}; correct the name, or say metrics_may_be_new",
                        self.server.shown()
                    ));
                }
                Err(e) if e.is_transient() => return Err(e),
                Err(e) => found = found.not_provable(format!("{gate}: whether {metric} exists: {}", e.chain())),
            }
        }
        if let Some(buckets) = &self.buckets {
            let buckets = buckets.render(&names);
            match self.server.values("le", &buckets).await {
                Ok(bounds) => {
                    let finite = bounds.iter().filter_map(|le| le.parse::<f64>().ok()).filter(|le| le.is_finite());
                    match finite.reduce(f64::max) {
                        Some(last) if last <= self.bound.limit() => {
                            found = found.refused(format!(
                                "{gate}: the last finite bucket of {buckets} is {last} s, so no quantile is ever over \
                                 {} s; a bound below {last} s is accepted",
                                self.bound.limit()
                            ));
                        }
                        Some(_) => {}
                        None => found = found.not_provable(format!("{gate}: {buckets} has no buckets yet")),
                    }
                }
                Err(e) if e.is_transient() => return Err(e),
                Err(e) => found = found.not_provable(format!("{gate}: the buckets of {buckets}: {}", e.chain())),
            }
        }
        if !found.refused.is_empty() {
            return Ok(found);
        }
        let baseline = self.query.render(&names.of_the_baseline());
        match self.server.instant(&baseline, None).await {
            Ok(answer) if answer.series.is_empty() => {
                found = found.not_provable(format!(
                    "{gate}: the query finds nothing for {} either, which serves now; if a label is wrong, it will never \
                     find anything",
                    if self.query.names_the_candidate() { change.baseline.id.as_str() } else { "what serves" }
                ));
            }
            Ok(_) => {
                found = found.proved(format!("{gate}: {} answers, and has data", self.server.shown()));
            }
            Err(e) if e.is_transient() => return Err(e),
            Err(e) => found = found.not_provable(format!("{gate}: {}", e.chain())),
        }
        if self.fresh.is_none() {
            found = found.not_provable(format!(
                "{gate}: nothing tells how old its samples are, or whether the candidate still lives; give it fresh"
            ));
        }
        let bakes = plan.steps().iter().map(|step| step.bake).filter(|bake| !bake.is_zero());
        // Without the placeholders, which keep to the bake by themselves.
        let longest = query::longest_range(&self.query.text());
        if let (Some(bake), Some(longest)) = (bakes.min(), longest)
            && longest > bake
        {
            found = found.not_provable(format!(
                "{gate}: the query looks back {} s, over the shortest bake of {} s: it still holds what was before; \
                 {{{{window}}}} keeps to the bake",
                longest.as_secs(),
                bake.as_secs()
            ));
        }
        Ok(found)
    }
}

impl fmt::Debug for Prometheus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Prometheus")
            .field("name", &self.name)
            .field("server", &self.server)
            .field("query", &self.query)
            .field("bound", &self.bound)
            .finish_non_exhaustive()
    }
}

impl Bound {
    const fn limit(self) -> f64 {
        match self {
            Self::AtMost(limit) | Self::Below(limit) | Self::AtLeast(limit) | Self::Above(limit) => limit,
        }
    }

    fn holds(self, number: f64) -> bool {
        match self {
            Self::AtMost(limit) => number <= limit,
            Self::Below(limit) => number < limit,
            Self::AtLeast(limit) => number >= limit,
            Self::Above(limit) => number > limit,
        }
    }

    /// More is worse.
    fn badness(self, number: f64) -> f64 {
        match self {
            Self::AtMost(_) | Self::Below(_) => number,
            Self::AtLeast(_) | Self::Above(_) => -number,
        }
    }

    fn trips(self) -> String {
        match self {
            Self::AtMost(limit) => format!("more than {limit}"),
            Self::Below(limit) => format!("{limit} or more"),
            Self::AtLeast(limit) => format!("less than {limit}"),
            Self::Above(limit) => format!("{limit} or less"),
        }
    }
}

/// `(at most 0.01 is accepted)`.
impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtMost(limit) => write!(f, "(at most {limit} is accepted)"),
            Self::Below(limit) => write!(f, "(less than {limit} is accepted)"),
            Self::AtLeast(limit) => write!(f, "(at least {limit} is accepted)"),
            Self::Above(limit) => write!(f, "(more than {limit} is accepted)"),
        }
    }
}

/// What one look found.
struct Look {
    main: Found,
    floor: Option<Found>,
    until: Timestamp,
    age: Option<Duration>,
}

/// What a series comes to.
#[derive(Clone, Debug, PartialEq)]
enum Fate {
    Within(f64),
    Beyond(f64),
    /// Fewer requests than the floor, or none that are known.
    Thin(Option<f64>),
    /// No number: why.
    Blind(String),
}

impl Fate {
    /// The worst first, and what was not judged before what was passed over.
    fn rank(&self, bound: Bound) -> f64 {
        match self {
            Self::Blind(_) => f64::MAX,
            Self::Beyond(number) | Self::Within(number) => bound.badness(*number),
            Self::Thin(_) => f64::MIN,
        }
    }

    fn fact(&self, labels: &Labels) -> Value {
        let mut fact = match self {
            Self::Within(number) | Self::Beyond(number) => json!({ "value": number }),
            Self::Thin(number) => {
                json!({ "requests": number.filter(|number| number.is_finite()), "passed_over": true })
            }
            Self::Blind(why) => json!({ "no_data": why }),
        };
        if !labels.is_empty() {
            fact["of"] = json!(labels);
        }
        fact
    }
}

/// How many requests a floor knows for a series: the one with the same labels, else the one without any.
fn requests(floor: &Found, labels: &Labels) -> Option<f64> {
    let same = floor.series.iter().find(|series| series.labels == *labels);
    let any = || floor.series.iter().find(|series| series.labels.is_empty());
    let number = same.or_else(any)?.samples.last()?.value;
    (!number.is_nan()).then_some(number)
}

/// `route="/a": `, or nothing.
fn of(labels: &Labels) -> String {
    if labels.is_empty() {
        return String::new();
    }
    let labels: Vec<String> = labels.iter().map(|(name, value)| format!("{name}={value:?}")).collect();
    let mut text = labels.join(", ");
    if let Some((at, _)) = text.char_indices().nth(200) {
        text.truncate(at);
        text.push('…');
    }
    format!("{text}: ")
}

/// A number in at most four decimals that matter.
fn shown(number: f64) -> String {
    if !number.is_finite() {
        return if number.is_nan() {
            "NaN".into()
        } else if number > 0.0 {
            "+Inf".into()
        } else {
            "-Inf".into()
        };
    }
    let decimals = match number.abs() {
        0.0 => 0,
        size if size >= 1000.0 => 0,
        size => (3 - size.log10().floor() as i32).clamp(0, 9) as usize,
    };
    let text = format!("{number:.decimals$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

/// From one instant to a later one, else nothing.
fn elapsed(from: Timestamp, to: Timestamp) -> Duration {
    to.duration_since(from).try_into().unwrap_or(Duration::ZERO)
}

/// How many series the facts show.
const SHOWN: usize = 10;
