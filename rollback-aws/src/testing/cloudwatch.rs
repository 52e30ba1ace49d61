//! CloudWatch's room: metrics, and metric, composite and log alarms that evaluate.
//!
//! How alarms are evaluated is AWS's user guide ("Using Amazon CloudWatch alarms"): every minute, every ten seconds with
//! a shorter period; missing data by its tables; a new alarm is in INSUFFICIENT_DATA, an updated one keeps its state. A
//! rule of a composite alarm is evaluated when it was put and when a child has changed. What a service measures is seen a
//! minute later ([`Hands::late`]); what is put is seen at once.
//!
//! Not simulated: alarm actions and mute rules, anomaly detection, PromQL and the queries of log alarms (these are in the
//! state that they are told to be in), functions of metric math beside `IF` and `FILL`.

mod alarm;
mod cbor;
mod hands;
mod math;
mod rule;
mod series;

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, Request, Response};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Map, Value, json};

pub use self::hands::{Changed, Hands};
use self::{
    alarm::{Alarm, Kind, Watch, required, validation},
    math::Expression,
    rule::Rule,
    series::{Id, Series},
};
use super::{
    ACCOUNT, Datum,
    wire::{self, Called, Protocol, Refusal, Service},
};

/// An alarm's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Within the threshold.
    Ok,
    /// It fires.
    Alarm,
    /// It cannot tell.
    InsufficientData,
}

impl State {
    /// As CloudWatch spells it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ok => "OK",
            Self::Alarm => "ALARM",
            Self::InsufficientData => "INSUFFICIENT_DATA",
        }
    }

    fn read(text: &str) -> Option<Self> {
        [Self::Ok, Self::Alarm, Self::InsufficientData].into_iter().find(|state| state.name() == text)
    }
}

/// What CloudWatch knows.
#[derive(Debug)]
pub(super) struct Room {
    region: String,
    series: Series,
    alarms: BTreeMap<String, Alarm>,
    passed: Timestamp,
    lag: Duration,
    partial: bool,
    changes: VecDeque<Changed>,
}

type Answer = Result<Value, Refusal>;

impl Room {
    pub(super) fn new(region: &str, now: Timestamp) -> Self {
        Self {
            region: region.into(),
            series: Series::default(),
            alarms: BTreeMap::new(),
            passed: now,
            lag: Duration::from_secs(60),
            partial: false,
            changes: VecDeque::new(),
        }
    }

    /// The state of an alarm by its ARN, and since when.
    pub(super) fn of_arn(&self, arn: &str) -> Option<(State, Timestamp)> {
        self.alarms.values().find(|alarm| alarm.arn == arn).map(|alarm| (alarm.state, alarm.transitioned))
    }

    /// Takes what a service measured.
    pub(super) fn record(&mut self, datum: Datum) {
        let shown = datum.at.saturating_add(self.lag).unwrap_or(Timestamp::MAX);
        self.series.record(datum, shown);
    }

    /// Whether there is such an alarm and it fires.
    pub(super) fn fires(&self, name: &str) -> bool {
        self.alarms.get(name).is_some_and(|alarm| alarm.state == State::Alarm)
    }

    /// Lets everything happen that was to happen until now: alarms are evaluated when they are due.
    pub(super) fn pass(&mut self, now: Timestamp) {
        let every = self.alarms.values().filter_map(|alarm| match &alarm.kind {
            Kind::Metric(watch) => Some(watch.every()),
            _ => None,
        });
        let every = every.min().unwrap_or(60);
        let mut tick = (self.passed.as_second().div_euclid(every) + 1) * every;
        while tick <= now.as_second() && !self.alarms.is_empty() {
            let at = Timestamp::from_second(tick).unwrap_or(now);
            self.run_scripts(at);
            self.evaluate(at, tick);
            self.compose(at);
            tick += every;
        }
        self.run_scripts(now);
        self.compose(now);
        if now.as_second() / 3600 != self.passed.as_second() / 3600 {
            self.series.prune(now);
        }
        self.passed = self.passed.max(now);
    }

    /// What tests told alarms to be by now, each at its own time.
    fn run_scripts(&mut self, now: Timestamp) {
        for (name, alarm) in &mut self.alarms {
            while let Some((at, state)) = alarm.script.front().copied().filter(|(at, _)| *at <= now) {
                alarm.script.pop_front();
                alarm.held = state;
                if let Some(state) = state
                    && alarm.become_(state, "Threshold Crossed: as the test wants it".into(), at)
                {
                    self.changes.push_back(Changed { at, alarm: name.clone(), state });
                }
            }
        }
    }

    fn evaluate(&mut self, now: Timestamp, tick: i64) {
        for (name, alarm) in &mut self.alarms {
            let Kind::Metric(watch) = &alarm.kind else { continue };
            if alarm.held.is_some() || tick % watch.every() != 0 {
                continue;
            }
            if let Some((state, reason)) = watch.evaluate(&self.series, now)
                && alarm.become_(state, reason, now)
            {
                self.changes.push_back(Changed { at: now, alarm: name.clone(), state });
            }
        }
    }

    /// Evaluates composite alarms until nothing changes: they may be on one another.
    fn compose(&mut self, now: Timestamp) {
        // As many rounds as there are alarms at most: circles change nothing any more after that.
        for _ in 0..self.alarms.len() {
            let states: BTreeMap<String, State> = self
                .alarms
                .iter()
                .flat_map(|(name, alarm)| [(name.clone(), alarm.state), (alarm.arn.clone(), alarm.state)])
                .collect();
            let mut changed = false;
            for (name, alarm) in &mut self.alarms {
                let Kind::Composite(rule) = &alarm.kind else { continue };
                let children: Vec<Option<State>> =
                    rule.children().into_iter().map(|child| states.get(child).copied()).collect();
                if alarm.held.is_some() || alarm.seen.as_ref() == Some(&children) {
                    continue;
                }
                let holds = rule.holds(&|child| states.get(child).copied());
                let state = if holds { State::Alarm } else { State::Ok };
                alarm.seen = Some(children);
                if alarm.become_(state, format!("the rule is {holds}"), now) {
                    changed = true;
                    self.changes.push_back(Changed { at: now, alarm: name.clone(), state });
                }
            }
            if !changed {
                return;
            }
        }
    }

    pub(super) fn answer(
        &mut self,
        called: &Called,
        request: &Request<Bytes>,
        now: Timestamp,
    ) -> Result<Response<Bytes>, Refusal> {
        let asked = match called.protocol {
            Protocol::Cbor => cbor::read(request.body()),
            _ => serde_json::from_slice(request.body()).ok(),
        };
        let asked = asked
            .filter(Value::is_object)
            .ok_or_else(|| Refusal::new(400, "SerializationException", "the body is not what this protocol takes"))?;
        let said = match called.operation.as_str() {
            "PutMetricData" => self.put_metric_data(&asked, now),
            "GetMetricData" => self.get_metric_data(&asked, now),
            "ListMetrics" => self.list_metrics(&asked),
            "PutMetricAlarm" => self.put_metric_alarm(&asked, now),
            "PutCompositeAlarm" => self.put_composite_alarm(&asked, now),
            "DescribeAlarms" => self.describe_alarms(&asked),
            "DeleteAlarms" => self.delete_alarms(&asked),
            "SetAlarmState" => self.set_alarm_state(&asked, now),
            "ListTagsForResource" => self.list_tags(&asked),
            "TagResource" => self.tag(&asked),
            "UntagResource" => self.untag(&asked),
            other => Err(Refusal::new(404, "UnknownOperationException", format!("{other} is not simulated"))),
        }?;
        self.compose(now);
        Ok(write(called, 200, &said))
    }

    fn put_metric_data(&mut self, asked: &Value, now: Timestamp) -> Answer {
        let namespace = asked["Namespace"].as_str().ok_or_else(|| required("namespace"))?;
        let all = asked["MetricData"].as_array().map(Vec::as_slice).unwrap_or_default();
        if namespace.starts_with("AWS/") {
            return Err(Refusal::new(
                400,
                "InvalidParameterValueException",
                "The value AWS/ for parameter Namespace is invalid.",
            ));
        }
        if all.len() > 1000 {
            return Err(validation("The collection MetricData must not have a size greater than 1000."));
        }
        for datum in all {
            let name = datum["MetricName"].as_str().ok_or_else(|| required("metricData.1.member.metricName"))?;
            let at = datum["Timestamp"].as_f64().and_then(time).unwrap_or(now);
            let values: Vec<(f64, f64)> = match (datum["Value"].as_f64(), datum["Values"].as_array()) {
                (Some(value), _) => vec![(value, 1.0)],
                (None, Some(values)) => {
                    let count = |at: usize| datum["Counts"][at].as_f64().unwrap_or(1.0);
                    values.iter().enumerate().map(|(at, v)| (v.as_f64().unwrap_or_default(), count(at))).collect()
                }
                (None, None) => {
                    let set = &datum["StatisticValues"];
                    let number = |name: &str| set[name].as_f64();
                    let count = number("SampleCount")
                        .ok_or_else(|| validation("At least one of Value, Values or StatisticValues must be given"))?;
                    vec![(number("Sum").unwrap_or_default() / count, count)]
                }
            };
            for (value, count) in values {
                let datum = Datum {
                    namespace: namespace.into(),
                    name: name.into(),
                    dimensions: series::dimensions(&datum["Dimensions"]),
                    at,
                    value,
                    count,
                    unit: datum["Unit"].as_str().unwrap_or("None").into(),
                };
                self.series.record(datum, now);
            }
        }
        Ok(json!({}))
    }

    fn get_metric_data(&self, asked: &Value, now: Timestamp) -> Answer {
        let queries = asked["MetricDataQueries"].as_array().ok_or_else(|| required("metricDataQueries"))?;
        if queries.len() > 500 {
            return Err(validation("The collection MetricDataQueries must not have a size greater than 500."));
        }
        let bound = |name: &str| asked[name].as_f64().ok_or_else(|| required(name));
        let (from, to) = (bound("StartTime")? as i64, bound("EndTime")? as i64);
        if from >= to {
            return Err(validation("The parameter StartTime must be less than the parameter EndTime."));
        }
        let ascending = asked["ScanBy"].as_str() == Some("TimestampAscending");
        let mut metrics: Vec<(&str, Id, &str, i64)> = Vec::new();
        for query in queries.iter().filter(|query| query.get("MetricStat").is_some()) {
            let (id, stat) = (query["Id"].as_str().unwrap_or_default(), &query["MetricStat"]);
            let (statistic, period) =
                (stat["Stat"].as_str().unwrap_or_default(), stat["Period"].as_i64().unwrap_or_default());
            if !alarm::is_period(period) && !matches!(period, 1 | 5) {
                return Err(validation(format!("The value {period} for parameter Period is invalid.")));
            }
            if !series::is_statistic(statistic) {
                return Err(validation(format!("The value {statistic} for parameter Stat is not supported.")));
            }
            metrics.push((id, Id::read(&stat["Metric"]), statistic, period));
        }
        let mut results = Vec::new();
        for query in queries.iter().filter(|query| query["ReturnData"] != json!(false)) {
            let id = query["Id"].as_str().unwrap_or_default();
            let expression = match query["Expression"].as_str() {
                Some(text) => Expression::parse(text)
                    .ok_or_else(|| validation(format!("Error in expression '{id}': it is not simulated")))?,
                None => Expression::Metric(id.into()),
            };
            let used = expression.metrics();
            let used: Vec<_> = metrics.iter().filter(|(id, ..)| used.contains(id)).collect();
            let period = used.iter().map(|(.., period)| *period).max().unwrap_or(60);
            let mut points: Vec<(i64, f64)> = Vec::new();
            let mut at = from.div_euclid(period) * period;
            while at < to {
                let values = used.iter().filter_map(|(id, metric, stat, _)| {
                    Some((*id, self.series.statistic(metric, stat, at, period, now)?.0))
                });
                if let Some(value) = expression.value(&values.collect()) {
                    points.push((at, value));
                }
                at += period;
            }
            if !ascending {
                points.reverse();
            }
            let label = query["Label"].as_str().or_else(|| query["MetricStat"]["Metric"]["MetricName"].as_str());
            let (times, values): (Vec<i64>, Vec<f64>) = points.into_iter().unzip();
            results.push(json!({
                "Id": id,
                "Label": label.unwrap_or(id),
                "StatusCode": if self.partial { "PartialData" } else { "Complete" },
                "Timestamps": times,
                "Values": values,
            }));
        }
        Ok(json!({ "MetricDataResults": results, "Messages": [] }))
    }

    fn list_metrics(&self, asked: &Value) -> Answer {
        let wanted = Id::read(asked);
        let found = self.series.ids().filter(|id| {
            (wanted.namespace.is_empty() || wanted.namespace == id.namespace)
                && (wanted.name.is_empty() || wanted.name == id.name)
                && wanted
                    .dimensions
                    .iter()
                    .all(|(name, value)| id.dimensions.get(name).is_some_and(|has| value.is_empty() || has == value))
        });
        let shown = |id: &Id| {
            let dimensions: Vec<Value> =
                id.dimensions.iter().map(|(name, value)| json!({ "Name": name, "Value": value })).collect();
            json!({ "Namespace": id.namespace, "MetricName": id.name, "Dimensions": dimensions })
        };
        Ok(json!({ "Metrics": found.take(500).map(shown).collect::<Vec<_>>() }))
    }

    fn put_metric_alarm(&mut self, asked: &Value, now: Timestamp) -> Answer {
        let watch = Watch::read(asked)?;
        self.put(asked, Kind::Metric(watch), now)
    }

    fn put_composite_alarm(&mut self, asked: &Value, now: Timestamp) -> Answer {
        let text = asked["AlarmRule"].as_str().ok_or_else(|| required("alarmRule"))?;
        let rule = Rule::parse(text)
            .ok_or_else(|| validation(format!("Unsupported alarm rule or syntax error in AlarmRule: {text}")))?;
        for child in rule.children() {
            let known = self.alarms.iter().any(|(name, alarm)| name == child || alarm.arn == child);
            if !known {
                return Err(validation(format!(
                    "Could not save the composite alarm as alarms [{child}] in the alarm rule do not exist"
                )));
            }
        }
        self.put(asked, Kind::Composite(rule), now)
    }

    fn put(&mut self, asked: &Value, kind: Kind, now: Timestamp) -> Answer {
        let name = asked["AlarmName"].as_str().ok_or_else(|| required("alarmName"))?.to_owned();
        if name.is_empty() || name.chars().count() > 255 {
            return Err(validation(format!(
                "1 validation error detected: Value '{name}' at 'alarmName' failed to satisfy constraint: Member must \
                 have length between 1 and 255, inclusive"
            )));
        }
        for actions in ["OKActions", "AlarmActions", "InsufficientDataActions"] {
            if asked[actions].as_array().is_some_and(|all| all.len() > 5) {
                return Err(validation(format!("The collection {actions} must not have a size greater than 5.")));
            }
        }
        let Value::Object(mut definition) = asked.clone() else { return Err(required("alarmName")) };
        let tags = definition.remove("Tags").map(|tags| read_tags(&tags)).unwrap_or_default();
        match self.alarms.get_mut(&name) {
            Some(alarm) if std::mem::discriminant(&alarm.kind) != std::mem::discriminant(&kind) => {
                return Err(validation(format!("An alarm of another type exists with the name {name}")));
            }
            // "When you update an existing alarm, its state is left unchanged, but the update completely overwrites the
            // previous configuration"; tags of an update are ignored (PutMetricAlarm).
            Some(alarm) => {
                (alarm.kind, alarm.definition, alarm.configured, alarm.seen) = (kind, definition, now, None);
            }
            None => {
                let partition = crate::account::partition(&self.region);
                let arn = format!("arn:{partition}:cloudwatch:{}:{ACCOUNT}:alarm:{name}", self.region);
                let alarm = Alarm {
                    kind,
                    definition,
                    arn,
                    tags,
                    state: State::InsufficientData,
                    // localstack/localstack 047825a, test_cloudwatch.snapshot.json, test_delete_alarm.
                    reason: "Unchecked: Initial alarm creation".into(),
                    configured: now,
                    updated: now,
                    transitioned: now,
                    evaluation: None,
                    script: VecDeque::new(),
                    held: None,
                    seen: None,
                };
                self.alarms.insert(name, alarm);
            }
        }
        Ok(json!({}))
    }

    fn describe_alarms(&self, asked: &Value) -> Answer {
        let names: Option<Vec<&str>> =
            asked["AlarmNames"].as_array().map(|names| names.iter().filter_map(Value::as_str).collect());
        let prefix = asked["AlarmNamePrefix"].as_str();
        if names.as_ref().is_some_and(|names| names.len() > 100) {
            return Err(validation("The collection AlarmNames must not have a size greater than 100."));
        }
        if names.is_some() && prefix.is_some() {
            return Err(Refusal::new(
                400,
                "InvalidParameterCombinationException",
                "AlarmNames and AlarmNamePrefix cannot be specified together",
            ));
        }
        let types: Vec<&str> = match asked["AlarmTypes"].as_array() {
            Some(types) => types.iter().filter_map(Value::as_str).collect(),
            // "If you omit this parameter, only metric alarms are returned" (DescribeAlarms).
            None => vec!["MetricAlarm"],
        };
        let page = asked["MaxRecords"].as_u64().unwrap_or(50);
        if !(1..=100).contains(&page) {
            return Err(validation("MaxRecords must be between 1 and 100"));
        }
        let after = asked["NextToken"].as_str();
        if after.is_some_and(|token| !self.alarms.contains_key(token)) {
            return Err(Refusal::new(400, "InvalidNextToken", "The next token specified is invalid."));
        }
        let state = asked["StateValue"].as_str();
        let mut found = self.alarms.iter().filter(|(name, alarm)| {
            names.as_ref().is_none_or(|names| names.contains(&name.as_str()))
                && prefix.is_none_or(|prefix| name.starts_with(prefix))
                && state.is_none_or(|state| state == alarm.state.name())
                && types.contains(&alarm.type_name())
                && after.is_none_or(|after| name.as_str() > after)
        });
        let mut said: Map<String, Value> = Map::new();
        for kind in &types {
            said.insert(format!("{kind}s"), json!([]));
        }
        for list in ["MetricAlarms", "CompositeAlarms"] {
            said.entry(list).or_insert_with(|| json!([]));
        }
        let mut last = None;
        for (name, alarm) in found.by_ref().take(page as usize) {
            last = Some(name);
            if let Some(Value::Array(list)) = said.get_mut(&format!("{}s", alarm.type_name())) {
                list.push(alarm.shown());
            }
        }
        if found.next().is_some() {
            said.insert("NextToken".into(), json!(last));
        }
        Ok(Value::Object(said))
    }

    fn delete_alarms(&mut self, asked: &Value) -> Answer {
        let names: Vec<&str> = asked["AlarmNames"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        if names.len() > 100 {
            return Err(validation("The collection AlarmNames must not have a size greater than 100."));
        }
        // "If you specify an incorrect alarm name or make any other error, none of your alarms are deleted", and "a
        // composite alarm" is to be deleted before what it is made of (DeleteAlarms).
        if let Some(gone) = names.iter().find(|name| !self.alarms.contains_key(**name)) {
            return Err(Refusal::new(404, "ResourceNotFound", format!("There is no alarm named {gone}")));
        }
        for (name, alarm) in &self.alarms {
            let Kind::Composite(rule) = &alarm.kind else { continue };
            if names.contains(&name.as_str()) {
                continue;
            }
            if let Some(child) = names.iter().find(|name| rule.children().contains(name)) {
                return Err(validation(format!(
                    "Cannot delete {child} as there are composite alarm(s) depending on it."
                )));
            }
        }
        for name in names {
            self.alarms.remove(name);
        }
        Ok(json!({}))
    }

    fn set_alarm_state(&mut self, asked: &Value, now: Timestamp) -> Answer {
        let name = asked["AlarmName"].as_str().ok_or_else(|| required("alarmName"))?;
        let state = asked["StateValue"].as_str().and_then(State::read).ok_or_else(|| required("stateValue"))?;
        let reason = asked["StateReason"].as_str().ok_or_else(|| required("stateReason"))?;
        let alarm = self.alarms.get_mut(name).ok_or_else(|| Refusal::new(404, "ResourceNotFound", ""))?;
        if alarm.become_(state, reason.into(), now) {
            self.changes.push_back(Changed { at: now, alarm: name.into(), state });
        }
        Ok(json!({}))
    }

    fn by_arn(&mut self, asked: &Value) -> Result<&mut Alarm, Refusal> {
        let arn = asked["ResourceARN"].as_str().ok_or_else(|| required("resourceARN"))?;
        self.alarms.values_mut().find(|alarm| alarm.arn == arn).ok_or_else(|| {
            Refusal::new(404, "ResourceNotFoundException", format!("There is no resource with the ARN {arn}"))
        })
    }

    fn list_tags(&mut self, asked: &Value) -> Answer {
        let tags = self.by_arn(asked)?.tags.iter().map(|(key, value)| json!({ "Key": key, "Value": value }));
        Ok(json!({ "Tags": tags.collect::<Vec<_>>() }))
    }

    fn tag(&mut self, asked: &Value) -> Answer {
        let tags = read_tags(&asked["Tags"]);
        self.by_arn(asked)?.tags.extend(tags);
        Ok(json!({}))
    }

    fn untag(&mut self, asked: &Value) -> Answer {
        let keys = asked["TagKeys"].clone();
        let alarm = self.by_arn(asked)?;
        for key in keys.as_array().into_iter().flatten().filter_map(Value::as_str) {
            alarm.tags.remove(key);
        }
        Ok(json!({}))
    }
}

fn read_tags(tags: &Value) -> BTreeMap<String, String> {
    let text = |tag: &Value, name: &str| tag[name].as_str().unwrap_or_default().to_owned();
    tags.as_array().into_iter().flatten().map(|tag| (text(tag, "Key"), text(tag, "Value"))).collect()
}

/// A timestamp on this wire: seconds since 1970.
fn seconds(at: Timestamp) -> Value {
    json!(at.as_millisecond() as f64 / 1000.0)
}

fn time(seconds: f64) -> Option<Timestamp> {
    Timestamp::UNIX_EPOCH.checked_add(SignedDuration::try_from_secs_f64(seconds).ok()?).ok()
}

/// Whether a request is for CloudWatch: in JSON (boto3) or in CBOR (the Rust SDK).
pub(super) fn route(request: &Request<Bytes>) -> Option<Called> {
    let called = |protocol, operation: &str| {
        Some(Called { service: Service::CloudWatch, protocol, operation: operation.into() })
    };
    if let Some(operation) = request.uri().path().strip_prefix("/service/GraniteServiceVersion20100801/operation/") {
        return called(Protocol::Cbor, operation);
    }
    let target = request.headers().get("x-amz-target")?.to_str().ok()?;
    called(Protocol::Json10, target.strip_prefix("GraniteServiceVersion20100801.")?)
}

fn write(called: &Called, status: u16, said: &Value) -> Response<Bytes> {
    match called.protocol {
        Protocol::Cbor => {
            let mut answer = wire::bytes_answer(status, "application/cbor", cbor::write(said));
            answer.headers_mut().insert("smithy-protocol", HeaderValue::from_static("rpc-v2-cbor"));
            answer
        }
        _ => wire::json_answer(status, "application/x-amz-json-1.0", said),
    }
}

/// An error as CloudWatch writes it: by its shape's name, and with the name that the query protocol had for it in a header,
/// which is what boto3 shows.
pub(super) fn refuse(called: &Called, refusal: &Refusal) -> Response<Bytes> {
    let said = json!({ "__type": refusal.code, "message": refusal.message });
    let mut answer = write(called, refusal.status, &said);
    let code = match refusal.code.as_str() {
        "LimitExceededFault" => "LimitExceeded",
        "InvalidParameterValueException" => "InvalidParameterValue",
        "InvalidParameterCombinationException" => "InvalidParameterCombination",
        "MissingRequiredParameterException" => "MissingParameter",
        "ThrottlingException" => "Throttling",
        other => other,
    };
    let whose = if refusal.status >= 500 { "Receiver" } else { "Sender" };
    if let Ok(value) = HeaderValue::try_from(format!("{code};{whose}")) {
        answer.headers_mut().insert("x-amzn-query-error", value);
    }
    answer
}

impl super::codedeploy::AlarmsNow for Room {
    fn fires(&self, name: &str) -> Option<bool> {
        self.alarms.get(name).map(|alarm| alarm.state == State::Alarm)
    }
}
