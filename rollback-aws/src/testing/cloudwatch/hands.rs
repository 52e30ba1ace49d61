//! CloudWatch by hand: what a test sets up and looks at without a call of the API.

use std::{collections::VecDeque, time::Duration};

use jiff::Timestamp;
use rollback_core::clock::Clock as _;
use serde_json::json;

use super::{
    State,
    alarm::{Alarm, Kind},
};
use crate::testing::{ACCOUNT, Datum, Simulator, World};

/// Alarms and metrics, without an HTTP call: somebody else's hands.
#[derive(Clone, Copy, Debug)]
pub struct Hands<'a>(pub(in crate::testing) &'a Simulator);

/// An alarm that went into another state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changed {
    /// When.
    pub at: Timestamp,
    /// Which.
    pub alarm: String,
    /// Into which.
    pub state: State,
}

impl Hands<'_> {
    /// An alarm that is OK and stays so until it is told otherwise: on a metric that nobody measures.
    pub fn alarm(&self, name: &str) {
        self.put("PutMetricAlarm", name);
        self.at(name, self.0.clock().now(), Some(State::Ok));
    }

    /// A log alarm that is OK until it is told otherwise; the API of this simulator makes none.
    pub fn log_alarm(&self, name: &str) {
        self.put("PutLogAlarm", name);
        self.at(name, self.0.clock().now(), Some(State::Ok));
    }

    /// From then on the alarm is in this state, whatever its metrics say, until it is told otherwise; with `None` its
    /// metrics count again.
    ///
    /// # Panics
    /// When there is no such alarm.
    pub fn at(&self, name: &str, at: Timestamp, state: Option<State>) {
        self.with(|world, now| {
            let alarm = world.cloudwatch.alarms.get_mut(name).unwrap_or_else(|| panic!("there is no alarm {name}"));
            let place = alarm.script.iter().position(|(other, _)| *other > at).unwrap_or(alarm.script.len());
            alarm.script.insert(place, (at, state));
            world.cloudwatch.pass(now);
        });
    }

    /// The alarm's `EvaluationState`, as `PARTIAL_DATA`: what makes its state no evidence.
    pub fn evaluation(&self, name: &str, state: Option<&str>) {
        self.with(|world, _| {
            if let Some(alarm) = world.cloudwatch.alarms.get_mut(name) {
                alarm.evaluation = state.map(Into::into);
            }
        });
    }

    /// Somebody deletes the alarm.
    pub fn delete(&self, name: &str) {
        self.with(|world, _| world.cloudwatch.alarms.remove(name));
    }

    /// The alarm's state. `None` when there is no such alarm.
    pub fn state(&self, name: &str) -> Option<State> {
        self.with(|world, _| world.cloudwatch.alarms.get(name).map(|alarm| alarm.state))
    }

    /// The names of all alarms.
    pub fn names(&self) -> Vec<String> {
        self.with(|world, _| world.cloudwatch.alarms.keys().cloned().collect())
    }

    /// All changes of state so far.
    pub fn changes(&self) -> Vec<Changed> {
        self.with(|world, _| world.cloudwatch.changes.iter().cloned().collect())
    }

    /// What a service measured: seen as late as everything that services measure.
    pub fn record(&self, datum: Datum) {
        self.with(|world, _| world.cloudwatch.record(datum));
    }

    /// What services measure from now on is seen this much later; a minute at first.
    pub fn late(&self, by: Duration) {
        self.with(|world, _| world.cloudwatch.lag = by);
    }

    /// Whether answers of GetMetricData are `PartialData` from now on.
    pub fn partial(&self, is: bool) {
        self.with(|world, _| world.cloudwatch.partial = is);
    }

    fn put(&self, operation: &str, name: &str) {
        self.with(|world, now| {
            let room = &mut world.cloudwatch;
            let definition = json!({
                "AlarmName": name, "Namespace": "Test", "MetricName": name, "Statistic": "Sum", "Period": 60,
                "EvaluationPeriods": 1, "Threshold": 1.0, "ComparisonOperator": "GreaterThanOrEqualToThreshold",
                "TreatMissingData": "missing",
            });
            if operation == "PutMetricAlarm" {
                room.put_metric_alarm(&definition, now).expect("it is a good alarm");
                return;
            }
            let partition = crate::account::partition(&room.region);
            let alarm = Alarm {
                kind: Kind::Log,
                definition: [("AlarmName".to_owned(), json!(name))].into_iter().collect(),
                arn: format!("arn:{partition}:cloudwatch:{}:{ACCOUNT}:alarm:{name}", room.region),
                tags: Default::default(),
                state: State::InsufficientData,
                reason: "Unchecked: Initial alarm creation".into(),
                configured: now,
                updated: now,
                transitioned: now,
                evaluation: None,
                script: VecDeque::new(),
                held: None,
                seen: None,
            };
            room.alarms.insert(name.into(), alarm);
        });
    }

    fn with<T>(&self, work: impl FnOnce(&mut World, Timestamp) -> T) -> T {
        let now = self.0.clock().now();
        let mut world = self.0.world();
        world.catch_up(now);
        work(&mut world, now)
    }
}
