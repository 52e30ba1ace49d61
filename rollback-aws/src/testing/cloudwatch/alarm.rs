//! Alarms: what is accepted as one, and how it is evaluated.

use std::collections::{BTreeMap, VecDeque};

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::{
    State,
    math::Expression,
    rule::Rule,
    seconds,
    series::{self, Id, Series},
};
use crate::testing::Refusal;

/// An alarm, of whichever kind.
#[derive(Clone, Debug)]
pub(super) struct Alarm {
    pub(super) kind: Kind,
    /// The request that made it, without its tags.
    pub(super) definition: Map<String, Value>,
    pub(super) arn: String,
    pub(super) tags: BTreeMap<String, String>,
    pub(super) state: State,
    pub(super) reason: String,
    pub(super) configured: Timestamp,
    pub(super) updated: Timestamp,
    pub(super) transitioned: Timestamp,
    /// As in `PARTIAL_DATA`: what makes a state no evidence.
    pub(super) evaluation: Option<String>,
    /// States that a test wants it to be in, from when on.
    pub(super) script: VecDeque<(Timestamp, Option<State>)>,
    /// What it is held in by its script.
    pub(super) held: Option<State>,
    /// The states of its children when a composite alarm was last evaluated.
    pub(super) seen: Option<Vec<Option<State>>>,
}

#[derive(Clone, Debug)]
pub(super) enum Kind {
    Metric(Watch),
    Composite(Rule),
    Log,
}

/// What an alarm on metrics watches.
#[derive(Clone, Debug)]
pub(super) struct Watch {
    source: Source,
    pub(super) period: i64,
    periods: i64,
    to_alarm: i64,
    comparison: Comparison,
    threshold: f64,
    missing: Missing,
    /// Whether a percentile of few samples changes nothing.
    ignores_few: bool,
}

#[derive(Clone, Debug)]
enum Source {
    One { id: Id, stat: String },
    Math { expression: Expression, metrics: Vec<(String, Id, String)> },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Comparison {
    AtLeast,
    Above,
    Below,
    AtMost,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Missing {
    Unfilled,
    Ignore,
    Breaching,
    NotBreaching,
}

impl Alarm {
    pub(super) const fn type_name(&self) -> &'static str {
        match self.kind {
            Kind::Metric(_) => "MetricAlarm",
            Kind::Composite(_) => "CompositeAlarm",
            Kind::Log => "LogAlarm",
        }
    }

    /// As DescribeAlarms shows it.
    pub(super) fn shown(&self) -> Value {
        let mut all = self.definition.clone();
        let mut or = |name: &str, value: Value| {
            all.entry(name).or_insert(value);
        };
        or("ActionsEnabled", json!(true));
        for actions in ["OKActions", "AlarmActions", "InsufficientDataActions"] {
            or(actions, json!([]));
        }
        if let Kind::Metric(Watch { source: Source::One { .. }, .. }) = self.kind {
            or("Dimensions", json!([]));
        }
        or("AlarmArn", json!(self.arn));
        or("StateValue", json!(self.state.name()));
        or("StateReason", json!(self.reason));
        or("AlarmConfigurationUpdatedTimestamp", seconds(self.configured));
        or("StateUpdatedTimestamp", seconds(self.updated));
        or("StateTransitionedTimestamp", seconds(self.transitioned));
        if let (Kind::Metric(_), Some(evaluation)) = (&self.kind, &self.evaluation) {
            or("EvaluationState", json!(evaluation));
        }
        Value::Object(all)
    }

    pub(super) fn become_(&mut self, state: State, reason: String, now: Timestamp) -> bool {
        let changed = state != self.state;
        if changed {
            self.transitioned = now;
        }
        if changed || reason != self.reason {
            self.updated = now;
        }
        (self.state, self.reason) = (state, reason);
        changed
    }
}

impl Watch {
    /// What PutMetricAlarm accepts. Texts: recorded by `localstack/localstack` (provider_v2 and its snapshots) for
    /// `TreatMissingData` and periods; the others are in the model's own words.
    pub(super) fn read(put: &Value) -> Result<Self, Refusal> {
        let periods = put["EvaluationPeriods"].as_i64().ok_or_else(|| required("evaluationPeriods"))?;
        let to_alarm = put["DatapointsToAlarm"].as_i64().unwrap_or(periods);
        if periods < 1 || to_alarm < 1 {
            return Err(validation("EvaluationPeriods and DatapointsToAlarm must be greater than or equal to 1"));
        }
        if to_alarm > periods {
            return Err(validation("DatapointsToAlarm must be less than or equal to EvaluationPeriods."));
        }
        let comparison = match put["ComparisonOperator"].as_str() {
            None => return Err(required("comparisonOperator")),
            Some("GreaterThanOrEqualToThreshold") => Comparison::AtLeast,
            Some("GreaterThanThreshold") => Comparison::Above,
            Some("LessThanThreshold") => Comparison::Below,
            Some("LessThanOrEqualToThreshold") => Comparison::AtMost,
            Some(other) => {
                return Err(validation(format!(
                    "1 validation error detected: Value '{other}' at 'comparisonOperator' failed to satisfy constraint: \
                     Member must satisfy enum value set"
                )));
            }
        };
        let missing = match put["TreatMissingData"].as_str() {
            None | Some("missing") => Missing::Unfilled,
            Some("ignore") => Missing::Ignore,
            Some("breaching") => Missing::Breaching,
            Some("notBreaching") => Missing::NotBreaching,
            Some(other) => {
                return Err(validation(format!(
                    "The value {other} is not supported for TreatMissingData parameter. Supported values are [breaching, \
                     notBreaching, ignore, missing]."
                )));
            }
        };
        let threshold = put["Threshold"].as_f64().ok_or_else(|| required("threshold"))?;
        let (source, period) = match put["Metrics"].as_array() {
            Some(queries) if !queries.is_empty() => {
                if put.get("MetricName").is_some() {
                    return Err(invalid("A metric alarm takes either Metrics or MetricName, not both"));
                }
                math(queries)?
            }
            _ => {
                let id = Id::read(put);
                if id.name.is_empty() || id.namespace.is_empty() {
                    return Err(missing_parameter("MetricName and Namespace, or Metrics, must be given"));
                }
                let stat = put["Statistic"].as_str().or_else(|| put["ExtendedStatistic"].as_str());
                let stat = stat.ok_or_else(|| missing_parameter("Statistic or ExtendedStatistic must be given"))?;
                if !series::is_statistic(stat) {
                    return Err(validation(format!("The statistic {stat} is not supported.")));
                }
                let period = put["Period"].as_i64().ok_or_else(|| missing_parameter("Period must be given"))?;
                (Source::One { id, stat: stat.into() }, period)
            }
        };
        if !is_period(period) {
            return Err(validation("Period must be 10, 20, 30 or a multiple of 60"));
        }
        if period < 3600 && period * periods > 86_400 {
            return Err(validation(
                "Metrics cannot be checked across more than a day (EvaluationPeriods * Period must be <= 86400) for \
                 alarms using period < 3600",
            ));
        }
        if period * periods > 604_800 {
            return Err(validation(
                "Metrics cannot be checked across more than a week (EvaluationPeriods * Period must be <= 604800)",
            ));
        }
        let ignores_few = put["EvaluateLowSampleCountPercentile"].as_str() == Some("ignore");
        Ok(Self { source, period, periods, to_alarm, comparison, threshold, missing, ignores_few })
    }

    /// How often it is evaluated: every minute, and every ten seconds with a shorter period (AWS's user guide).
    pub(super) const fn every(&self) -> i64 {
        if self.period < 60 { 10 } else { 60 }
    }

    /// What it comes to now, or `None` where it keeps its state.
    pub(super) fn evaluate(&self, series: &Series, now: Timestamp) -> Option<(State, String)> {
        // "CloudWatch attempts to retrieve a higher number of data points than specified": 5 for 3 in its tables.
        let range = self.periods + 2;
        let end = now.as_second().div_euclid(self.period) * self.period;
        let mut points = Vec::new();
        let mut few = false;
        for back in 1..=range {
            let (value, is_few) = self.point(series, end - back * self.period, now);
            few |= is_few;
            points.push(value);
        }
        if few && self.ignores_few {
            return None;
        }
        let breaching: Vec<Option<bool>> =
            points.iter().map(|point| point.map(|value| self.comparison.holds(value, self.threshold))).collect();
        let state = judge(&breaching, self.periods, self.to_alarm, self.missing)?;
        let real: Vec<String> =
            points.iter().flatten().take(self.periods as usize).map(|value| format!("{value:?}")).collect();
        let (n, m) = (self.periods, self.to_alarm);
        let reason = match state {
            State::InsufficientData => format!("Insufficient Data: {n} datapoints were unknown."),
            State::Alarm => format!(
                "Threshold Crossed: {m} out of the last {n} datapoints [{}] breached the threshold ({:?}).",
                real.join(", "),
                self.threshold
            ),
            State::Ok => format!(
                "Threshold Crossed: not {m} out of the last {n} datapoints [{}] breached the threshold ({:?}).",
                real.join(", "),
                self.threshold
            ),
        };
        Some((state, reason))
    }

    /// Its value in one period, and whether it is a percentile of too few samples to say anything.
    fn point(&self, series: &Series, from: i64, now: Timestamp) -> (Option<f64>, bool) {
        match &self.source {
            Source::One { id, stat } => match series.statistic(id, stat, from, self.period, now) {
                None => (None, false),
                Some((value, samples)) => {
                    // "fewer than 10/(1-percentile) data points": 1000 for p99 (AWS's user guide).
                    let least = series::percentile(stat).map_or(0.0, |p| {
                        let p = p / 100.0;
                        if p >= 0.5 { 10.0 / (1.0 - p) } else { 10.0 / p }
                    });
                    (Some(value), samples < least - 0.5)
                }
            },
            Source::Math { expression, metrics } => {
                let values = metrics.iter().filter_map(|(name, id, stat)| {
                    Some((name.as_str(), series.statistic(id, stat, from, self.period, now)?.0))
                });
                (expression.value(&values.collect()), false)
            }
        }
    }
}

/// The documented rule for missing data, on points from the newest to the oldest.
fn judge(newest_first: &[Option<bool>], periods: i64, to_alarm: i64, missing: Missing) -> Option<State> {
    let real: Vec<bool> = newest_first.iter().flatten().copied().take(periods as usize).collect();
    let bad = real.iter().filter(|bad| **bad).count() as i64;
    let gaps = periods - real.len() as i64;
    let alarm = |bad: i64| Some(if bad >= to_alarm { State::Alarm } else { State::Ok });
    if gaps == 0 {
        return alarm(bad);
    }
    match missing {
        Missing::Breaching => alarm(bad + gaps),
        Missing::NotBreaching => alarm(bad),
        Missing::Unfilled | Missing::Ignore if bad >= to_alarm => Some(State::Alarm),
        Missing::Unfilled | Missing::Ignore if real.iter().any(|bad| !bad) => Some(State::Ok),
        Missing::Ignore => None,
        // All that is there is bad, and the oldest has stood long enough for an alarm of its own.
        Missing::Unfilled => {
            let oldest = newest_first.iter().rposition(Option::is_some).map_or(0, |at| at as i64 + 1);
            Some(if oldest >= to_alarm { State::Alarm } else { State::InsufficientData })
        }
    }
}

impl Comparison {
    fn holds(self, value: f64, threshold: f64) -> bool {
        match self {
            Self::AtLeast => value >= threshold,
            Self::Above => value > threshold,
            Self::Below => value < threshold,
            Self::AtMost => value <= threshold,
        }
    }
}

/// The queries of an alarm on a metric math expression: one gives the number, the others are metrics of one period.
fn math(queries: &[Value]) -> Result<(Source, i64), Refusal> {
    let returned: Vec<&Value> = queries.iter().filter(|query| query["ReturnData"] != json!(false)).collect();
    let [returned] = returned[..] else {
        return Err(validation("Exactly one element of the metrics list should return data."));
    };
    let mut metrics = Vec::new();
    let mut period = None;
    for query in queries {
        let id = query["Id"].as_str().unwrap_or_default().to_owned();
        if !id.starts_with(|c: char| c.is_ascii_lowercase()) {
            return Err(validation(format!("The id {id} of a metric must begin with a lowercase letter.")));
        }
        let Some(stat) = query.get("MetricStat") else { continue };
        let each = stat["Period"].as_i64().unwrap_or_default();
        if period.replace(each).is_some_and(|other| other != each) {
            return Err(validation("Period must be the same for all metrics of an alarm"));
        }
        let statistic = stat["Stat"].as_str().unwrap_or_default();
        if !series::is_statistic(statistic) {
            return Err(validation(format!("The statistic {statistic} is not supported.")));
        }
        metrics.push((id, Id::read(&stat["Metric"]), statistic.to_owned()));
    }
    if metrics.len() > 10 {
        return Err(validation("An alarm can be on at most 10 metrics"));
    }
    let period = period.ok_or_else(|| validation("The metrics list must have at least one metric"))?;
    let expression = match returned["Expression"].as_str() {
        None => Expression::Metric(returned["Id"].as_str().unwrap_or_default().into()),
        Some(text) => {
            let expression = Expression::parse(text);
            let known = |id: &str| metrics.iter().any(|(known, ..)| known == id);
            expression
                .filter(|expression| expression.metrics().into_iter().all(known))
                .ok_or_else(|| validation(format!("Error in expression '{}'", returned["Id"].as_str().unwrap_or(""))))?
        }
    };
    Ok((Source::Math { expression, metrics }, period))
}

pub(super) const fn is_period(seconds: i64) -> bool {
    matches!(seconds, 10 | 20 | 30) || (seconds > 0 && seconds % 60 == 0)
}

pub(super) fn validation(why: impl Into<String>) -> Refusal {
    Refusal::new(400, "ValidationError", why)
}

pub(super) fn invalid(why: impl Into<String>) -> Refusal {
    Refusal::new(400, "InvalidParameterCombinationException", why)
}

fn missing_parameter(why: impl Into<String>) -> Refusal {
    Refusal::new(400, "MissingRequiredParameterException", why)
}

pub(super) fn required(member: &str) -> Refusal {
    validation(format!(
        "1 validation error detected: Value null at '{member}' failed to satisfy constraint: Member must not be null"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The tables of AWS's user guide, "How alarm state is evaluated when data is missing" (`awsdocs/
    /// amazon-cloudwatch-user-guide` 05fd32f, `doc_source/AlarmThatSendsEmail.md`, and its later edition of June 2023):
    /// points oldest first, to alarm, and the state by missing, ignore, breaching, notBreaching. `=` keeps its state.
    const TABLES: &[(&str, i64, &str)] = &[
        ("0-X-X", 3, "OOOO"),
        ("0----", 3, "OOOO"),
        ("-----", 3, "I=AO"),
        ("0XX-X", 3, "AAAA"),
        ("----X", 3, "I=AO"),
        ("X----", 3, "A=AO"),
        ("----0", 3, "OOOO"),
        ("--X--", 3, "A=AO"),
        ("0-X-X", 2, "AAAA"),
        ("00X0X", 2, "AAAA"),
        ("0-X--", 2, "OOAO"),
        ("----0", 2, "OOAO"),
        ("----X", 2, "I=AO"),
        ("---X-", 2, "A=AO"),
    ];

    #[test]
    fn missing_data_means_what_the_tables_of_the_user_guide_say() {
        for (points, to_alarm, wanted) in TABLES {
            let newest_first: Vec<Option<bool>> =
                points.chars().rev().map(|c| (c != '-').then_some(c == 'X')).collect();
            let treatments = [Missing::Unfilled, Missing::Ignore, Missing::Breaching, Missing::NotBreaching];
            let found: String = treatments
                .into_iter()
                .map(|missing| match judge(&newest_first, 3, *to_alarm, missing) {
                    None => '=',
                    Some(State::Ok) => 'O',
                    Some(State::Alarm) => 'A',
                    Some(State::InsufficientData) => 'I',
                })
                .collect();
            assert_eq!(&found, wanted, "{points} with {to_alarm} of 3");
        }
    }
}
