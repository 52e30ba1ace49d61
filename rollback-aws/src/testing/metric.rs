//! What services tell CloudWatch.

use std::collections::BTreeMap;

use jiff::Timestamp;

/// Equal values of one metric at one time.
#[derive(Clone, Debug, PartialEq)]
pub struct Datum {
    /// As in `AWS/Lambda`.
    pub namespace: String,
    /// As in `Errors`.
    pub name: String,
    /// As in `FunctionName=checkout`.
    pub dimensions: BTreeMap<String, String>,
    /// When they were measured.
    pub at: Timestamp,
    /// The value that each of them has.
    pub value: f64,
    /// How many there are; not zero.
    pub count: f64,
    /// As in `Count`, `Milliseconds`, `None`.
    pub unit: String,
}

/// Invocations of one version, as Lambda measures them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Split {
    pub(super) at: Timestamp,
    pub(super) calls: f64,
    pub(super) errors: f64,
    /// In milliseconds.
    pub(super) duration: f64,
}

impl Split {
    /// `Invocations`, `Errors` (zeros too), `Throttles` and `Duration` with these dimensions.
    pub(super) fn data(self, dimensions: BTreeMap<String, String>) -> impl Iterator<Item = Datum> {
        let made = move |name: &str, unit: &str, value, count| Datum {
            namespace: "AWS/Lambda".into(),
            name: name.into(),
            dimensions: dimensions.clone(),
            at: self.at,
            value,
            count,
            unit: unit.into(),
        };
        [
            made("Invocations", "Count", 1.0, self.calls),
            made("Errors", "Count", 1.0, self.errors),
            made("Errors", "Count", 0.0, self.calls - self.errors),
            made("Throttles", "Count", 0.0, self.calls),
            made("Duration", "Milliseconds", self.duration, self.calls),
        ]
        .into_iter()
        .filter(|datum| datum.count > 0.0)
    }
}
