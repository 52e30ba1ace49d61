//! What a comparison can show in the time that the plan gives it, said before the start.

use std::time::Duration;

use jiff::Timestamp;

use super::{Compare, Test};
use crate::{
    backend::Readiness,
    gate::{
        sequential::OddsTest,
        source::{Reading, Samples, Span},
    },
    model::Weight,
    plan::Plan,
};

impl Compare {
    pub(super) fn outlook(&self, reading: &Reading, since: Timestamp, plan: &Plan) -> Readiness {
        let mut found = self.beside(plan);
        let unknown = |why: &str| format!("whether gate {} can show a regression: {why}", self.name);
        if matches!(self.test, Test::Gauge(_) | Test::Quantile(_)) {
            return found.not_provable(unknown("how noisy its values are is seen only as they come"));
        }
        if reading.span == Span::Total {
            return found.not_provable(unknown("its source has no history to tell how much traffic there is"));
        }
        let seconds = reading.until.duration_since(since).as_secs_f64();
        let (requests, failures) = match (&reading.samples, &self.test) {
            (Samples::Counts(counts), Test::Failures) => {
                counts.values().fold((0, 0), |(n, x), pair| (n + pair.baseline.requests, x + pair.baseline.failures))
            }
            (Samples::Buckets { bounds, counts }, Test::Quantiles(_) | Test::SlowerThan(_)) => {
                let limit = match self.test {
                    Test::SlowerThan(limit) => limit,
                    _ => f64::INFINITY,
                };
                let from = bounds.iter().position(|bound| *bound >= limit).map_or(bounds.len(), |at| at + 1);
                let buckets = counts.values().flat_map(|pair| pair.baseline.iter().enumerate());
                buckets.fold((0, 0), |(n, x), (at, count)| (n + count, x + if at >= from { *count } else { 0 }))
            }
            (_, test) => {
                return found.refused(format!(
                    "the source of gate {} does not give what comparing {} needs",
                    self.name,
                    test.name()
                ));
            }
        };
        if requests == 0 || seconds <= 0.0 {
            return found.not_provable(unknown("the baseline had no requests in the last ten minutes"));
        }
        let rate = requests as f64 / seconds;
        let fails = match self.test {
            Test::Quantiles(_) => 0.05,
            _ => (failures as f64 + 0.5) / (requests as f64 + 1.0),
        };
        let seen = format!("at {rate:.1} requests a second, of which {:.2} % {}", 100.0 * fails, self.test.verb());
        let steps = || {
            plan.steps()
                .iter()
                .filter(|step| step.weight > Weight::NONE && step.weight < Weight::ALL)
                .map(|step| (f64::from(step.weight.percent()) / 100.0, step.bake.as_secs_f64()))
        };
        let takes = |times, steps: &mut dyn Iterator<Item = (f64, f64)>| {
            OddsTest::expected_seconds(self.tolerance, rate, fails, times, steps, self.enough())
        };
        let shown = [2.0, 3.0, 4.0, 5.0, 7.0, 10.0, 20.0, 50.0, 100.0, 1000.0]
            .into_iter()
            .filter(|times| *times > self.tolerance.borne())
            .find_map(|times| Some((times, takes(times, &mut steps())?)));
        if let Some((times, after)) = shown {
            found = found.proved(format!(
                "gate {} can show odds {times} times the baseline's in about {}, {seen}",
                self.name,
                told(after)
            ));
        }
        let twice = self.tolerance.ruled_out();
        if takes(twice, &mut steps()).is_none() {
            let last = steps().next_back().map(|(share, _)| (share, f64::INFINITY));
            let needs = takes(twice, &mut last.into_iter());
            let needs = needs
                .map_or_else(|| "no time would be enough".into(), |needs| format!("it takes about {}", told(needs)));
            found = found.not_provable(format!(
                "that a regression to odds {twice} times the baseline's is seen by gate {} before the plan is over: {needs} \
                 {seen}",
                self.name
            ));
        }
        found
    }

    /// Steps in which there is nothing to compare.
    fn beside(&self, plan: &Plan) -> Readiness {
        let mut found = Readiness::default();
        if plan.steps().iter().any(|step| step.weight == Weight::NONE) {
            found = found.not_provable(format!(
                "gate {} has nothing to compare in a step without traffic for the candidate; it will wait there for some",
                self.name
            ));
        }
        if plan.steps().iter().all(|step| step.weight == Weight::ALL) {
            found = found.not_provable(format!(
                "gate {} has nothing to compare when the candidate gets all traffic at once; begin with less",
                self.name
            ));
        }
        found
    }
}

impl Test {
    const fn verb(&self) -> &'static str {
        match self {
            Self::Failures => "fail",
            _ => "are slow",
        }
    }
}

fn told(seconds: f64) -> String {
    let rounded = match seconds {
        s if s < 120.0 => s.ceil(),
        s if s < 7200.0 => (s / 60.0).ceil() * 60.0,
        s => (s / 3600.0).ceil() * 3600.0,
    };
    match rounded {
        s if s < 120.0 => format!("{s:.0} s"),
        s if s < 7200.0 => format!("{:.0} min", s / 60.0),
        s if s < 172_800.0 => format!("{:.0} h", s / 3600.0),
        s => format!("{:.0} days", s / Duration::from_secs(86_400).as_secs_f64()),
    }
}
