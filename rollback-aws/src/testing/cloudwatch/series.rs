//! What was measured, and its statistics.

use std::collections::{BTreeMap, VecDeque};

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;

use crate::testing::Datum;

/// A metric's name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Id {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) dimensions: BTreeMap<String, String>,
}

impl Id {
    /// Of a `Metric`, or of an alarm on one metric.
    pub(super) fn read(metric: &Value) -> Self {
        let text = |name: &str| metric[name].as_str().unwrap_or_default().to_owned();
        Self { namespace: text("Namespace"), name: text("MetricName"), dimensions: dimensions(&metric["Dimensions"]) }
    }
}

pub(super) fn dimensions(list: &Value) -> BTreeMap<String, String> {
    let each = list.as_array().into_iter().flatten();
    let text = |one: &Value, name: &str| one[name].as_str().unwrap_or_default().to_owned();
    each.map(|one| (text(one, "Name"), text(one, "Value"))).collect()
}

/// Equal values at one time.
#[derive(Clone, Copy, Debug)]
struct Point {
    at: Timestamp,
    value: f64,
    count: f64,
    /// From when on CloudWatch shows it.
    shown: Timestamp,
}

/// All metrics.
#[derive(Clone, Debug, Default)]
pub(super) struct Series(BTreeMap<Id, VecDeque<Point>>);

impl Series {
    pub(super) fn record(&mut self, datum: Datum, shown: Timestamp) {
        let Datum { namespace, name, dimensions, at, value, count, .. } = datum;
        self.0.entry(Id { namespace, name, dimensions }).or_default().push_back(Point { at, value, count, shown });
    }

    /// Forgets what no alarm can look at any more; CloudWatch itself keeps points of a minute for 15 days.
    pub(super) fn prune(&mut self, now: Timestamp) {
        let oldest = now.saturating_sub(SignedDuration::from_hours(50)).unwrap_or(Timestamp::MIN);
        for points in self.0.values_mut() {
            while points.front().is_some_and(|point| point.at < oldest) {
                points.pop_front();
            }
        }
    }

    pub(super) fn ids(&self) -> impl Iterator<Item = &Id> {
        self.0.keys()
    }

    /// A statistic of what was measured in these seconds, as it is shown now. `None` is a missing point. Beside it how
    /// many samples it is made of.
    pub(super) fn statistic(&self, id: &Id, stat: &str, from: i64, seconds: i64, now: Timestamp) -> Option<(f64, f64)> {
        let points = self.0.get(id)?;
        let inside = |at: Timestamp| at.as_second() >= from && at.as_second() < from + seconds;
        let mut found: Vec<(f64, f64)> = points
            .iter()
            .rev()
            // Recorded in order of time but for what comes late, which is never an hour late here.
            .take_while(|point| point.at.as_second() >= from - 3600)
            .filter(|point| point.shown <= now && inside(point.at))
            .map(|point| (point.value, point.count))
            .collect();
        let count: f64 = found.iter().map(|(_, count)| count).sum();
        if count <= 0.0 {
            return None;
        }
        let sum: f64 = found.iter().map(|(value, count)| value * count).sum();
        let value = match stat {
            "SampleCount" => count,
            "Sum" => sum,
            "Average" => sum / count,
            "Minimum" => found.iter().map(|(value, _)| *value).fold(f64::INFINITY, f64::min),
            "Maximum" => found.iter().map(|(value, _)| *value).fold(f64::NEG_INFINITY, f64::max),
            _ => {
                let wanted = percentile(stat)? / 100.0 * count;
                found.sort_by(|(a, _), (b, _)| a.total_cmp(b));
                let mut seen = 0.0;
                let at = found.iter().find(|(_, count)| {
                    seen += count;
                    seen >= wanted
                });
                at.or_else(|| found.last())?.0
            }
        };
        Some((value, count))
    }
}

/// 99.9 of `p99.9`.
pub(super) fn percentile(stat: &str) -> Option<f64> {
    stat.strip_prefix('p')?.parse().ok().filter(|p| (0.0..=100.0).contains(p))
}

pub(super) fn is_statistic(stat: &str) -> bool {
    matches!(stat, "SampleCount" | "Sum" | "Average" | "Minimum" | "Maximum") || percentile(stat).is_some()
}
