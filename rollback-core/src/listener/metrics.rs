//! Counters and histograms through the `metrics` facade.

use std::{
    collections::HashMap,
    sync::{Mutex, Once, PoisonError},
};

use jiff::Timestamp;
use metrics::{Label, Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};

use super::{Listener, RolloutEvent};
use crate::{
    model::RolloutId,
    request::Ask,
    rollout::{Rollout, What},
    state::{Abandonment, Cause, Refusal, State},
};

/// Counts and times rollouts through the [`metrics`] facade, for whichever recorder the program installs.
///
/// | name | kind | labels | what |
/// |---|---|---|---|
/// | `rollback_rollouts_finished_total` | counter | `state`, `cause` | Rollouts that ended. |
/// | `rollback_rollouts_open` | gauge | `state` | Rollouts that this process was told of and that have not ended; alert on `stuck`. |
/// | `rollback_rollout_duration_seconds` | histogram | `state` | From creation to the end. |
/// | `rollback_breach_to_decision_seconds` | histogram | | From the first bad verdict of the gate that tripped to the decision to go back. |
/// | `rollback_breach_to_restored_seconds` | histogram | | From there to the candidate seen without traffic: what users felt. |
/// | `rollback_decision_to_restored_seconds` | histogram | | From the decision to the candidate seen without traffic. |
/// | `rollback_restored_to_verified_seconds` | histogram | | From there to the baseline seen serving alone. |
/// | `rollback_gate_changes_total` | counter | `standing` | Gates that changed their mind, by what they say now. |
/// | `rollback_gate_trips_total` | counter | | Gates that tripped. |
/// | `rollback_requests_total` | counter | `ask` | Requests of people and tools, granted or not. |
/// | `rollback_troubles_total` | counter | | Calls that went wrong, of backends, gates and stores. |
///
/// Every label has a handful of values, none of them an id or free text:
///
/// | label | values |
/// |---|---|
/// | `state` | [`State::name`]: at the end `promoted`, `rolled_back`, `refused`, `abandoned`, else one of the seven open ones |
/// | `cause` | `none` when promoted; rolled back: `unhealthy`, `no_data`, `failed`, `deadline`, `aborted`, `drifted`; refused: `already_serves`, `quarantined`, `not_ready`, `aborted`, `deadline`; abandoned: `drifted`, `given_up` |
/// | `standing` | `healthy`, `unhealthy`, `inconclusive` |
/// | `ask` | `abort`, `pause`, `resume`, `approve`, `give_up`, `promote_now`, `skip_gate` |
/// | `target` | the target's id, on every metric; only [with a target label](Self::with_target_label) |
///
/// A dashboard for Grafana that shows all of them is in the crate's folder `dashboards`.
///
/// Times of a rollout are recorded once, when it ends, and only those that were measured. They are differences of wall
/// time; one that is negative, because the clock was set back, is left out.
#[derive(Debug)]
pub struct Metrics {
    target_label: bool,
    described: Once,
    /// In which state each open rollout was counted last.
    open: Mutex<HashMap<RolloutId, &'static str>>,
}

impl Metrics {
    /// Without a label for the target.
    pub fn new() -> Self {
        Self { target_label: false, described: Once::new(), open: Mutex::default() }
    }

    /// With the target's id as a label. Only where there are few targets: each one is a set of time series of its own
    /// for as long as the recorder remembers.
    #[must_use]
    pub const fn with_target_label(mut self) -> Self {
        self.target_label = true;
        self
    }

    fn labels<const N: usize>(&self, rollout: &Rollout, labels: [(&'static str, &'static str); N]) -> Vec<Label> {
        let target = self.target_label.then(|| Label::new("target", rollout.change.target.to_string()));
        labels.map(|(name, value)| Label::new(name, value)).into_iter().chain(target).collect()
    }

    /// Moves the rollout to its state in the gauge; out of it when it has ended.
    fn place(&self, rollout: &Rollout) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let now = rollout.state.is_open().then(|| rollout.state.name());
        let before = match now {
            Some(now) => open.insert(rollout.id().clone(), now),
            None => open.remove(rollout.id()),
        };
        if before == now {
            return;
        }
        // Raised and lowered instead of set, so that several listeners in one process add up.
        if let Some(before) = before {
            gauge!("rollback_rollouts_open", self.labels(rollout, [("state", before)])).decrement(1.0);
        }
        if let Some(now) = now {
            gauge!("rollback_rollouts_open", self.labels(rollout, [("state", now)])).increment(1.0);
        }
    }

    fn finished(&self, rollout: &Rollout, state: &State, at: Timestamp) {
        let labels = self.labels(rollout, [("state", state.name()), ("cause", cause(state))]);
        counter!("rollback_rollouts_finished_total", labels).increment(1);
        let total = seconds(Some(rollout.created), Some(at));
        if let Some(total) = total {
            let labels = self.labels(rollout, [("state", state.name())]);
            histogram!("rollback_rollout_duration_seconds", labels).record(total);
        }
        let times = &rollout.times;
        for (name, from, to) in [
            ("rollback_breach_to_decision_seconds", times.breach, times.decision),
            ("rollback_breach_to_restored_seconds", times.breach, times.restored),
            ("rollback_decision_to_restored_seconds", times.decision, times.restored),
            ("rollback_restored_to_verified_seconds", times.restored, times.verified),
        ] {
            if let Some(time) = seconds(from, to) {
                histogram!(name, self.labels(rollout, [])).record(time);
            }
        }
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Listener for Metrics {
    fn on(&self, event: &RolloutEvent) {
        // Here and not in `new`: the recorder may be installed after the listener was made.
        self.described.call_once(describe);
        let rollout = &*event.rollout;
        self.place(rollout);
        match &event.what {
            What::Entered { to } if !to.is_open() => self.finished(rollout, to, event.at),
            What::Judged { standing, .. } => {
                counter!("rollback_gate_changes_total", self.labels(rollout, [("standing", standing.name())]))
                    .increment(1);
            }
            What::Tripped { .. } => counter!("rollback_gate_trips_total", self.labels(rollout, [])).increment(1),
            What::Asked { request, .. } => {
                counter!("rollback_requests_total", self.labels(rollout, [("ask", ask(&request.ask))])).increment(1);
            }
            What::Troubled { .. } => counter!("rollback_troubles_total", self.labels(rollout, [])).increment(1),
            What::Created
            | What::Claimed { .. }
            | What::Entered { .. }
            | What::Attempted { .. }
            | What::Hook { .. }
            | What::Cut { .. } => {}
        }
    }
}

fn describe() {
    describe_counter!("rollback_rollouts_finished_total", Unit::Count, "Rollouts that ended");
    describe_gauge!("rollback_rollouts_open", Unit::Count, "Rollouts that have not ended");
    describe_histogram!("rollback_rollout_duration_seconds", Unit::Seconds, "From a rollout's creation to its end");
    describe_histogram!(
        "rollback_breach_to_decision_seconds",
        Unit::Seconds,
        "From the first bad verdict to the decision to go back"
    );
    describe_histogram!(
        "rollback_breach_to_restored_seconds",
        Unit::Seconds,
        "From the first bad verdict to the candidate seen without traffic"
    );
    describe_histogram!(
        "rollback_decision_to_restored_seconds",
        Unit::Seconds,
        "From the decision to go back to the candidate seen without traffic"
    );
    describe_histogram!(
        "rollback_restored_to_verified_seconds",
        Unit::Seconds,
        "From the candidate seen without traffic to the baseline seen serving alone"
    );
    describe_counter!("rollback_gate_changes_total", Unit::Count, "Gates that changed their mind");
    describe_counter!("rollback_gate_trips_total", Unit::Count, "Gates that tripped");
    describe_counter!("rollback_requests_total", Unit::Count, "Requests of people and tools");
    describe_counter!("rollback_troubles_total", Unit::Count, "Calls that went wrong");
}

/// The time between, where both are known and in order.
fn seconds(from: Option<Timestamp>, to: Option<Timestamp>) -> Option<f64> {
    let time = to?.duration_since(from?);
    (!time.is_negative()).then(|| time.as_secs_f64())
}

const fn cause(end: &State) -> &'static str {
    match end {
        State::RolledBack { cause } => match cause {
            Cause::Unhealthy { .. } => "unhealthy",
            Cause::NoData { .. } => "no_data",
            Cause::Failed { .. } => "failed",
            Cause::Deadline { .. } => "deadline",
            Cause::Aborted { .. } => "aborted",
            Cause::Drifted { .. } => "drifted",
        },
        State::Refused { why } => match why {
            Refusal::AlreadyServes => "already_serves",
            Refusal::Quarantined { .. } => "quarantined",
            Refusal::NotReady { .. } => "not_ready",
            Refusal::Aborted { .. } => "aborted",
            Refusal::Deadline => "deadline",
        },
        State::Abandoned { why } => match why {
            Abandonment::Drifted { .. } => "drifted",
            Abandonment::GivenUp { .. } => "given_up",
        },
        _ => "none",
    }
}

const fn ask(ask: &Ask) -> &'static str {
    match ask {
        Ask::Abort => "abort",
        Ask::Pause => "pause",
        Ask::Resume => "resume",
        Ask::Approve => "approve",
        Ask::GiveUp => "give_up",
        Ask::PromoteNow => "promote_now",
        Ask::SkipGate(_) => "skip_gate",
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, sync::Arc, time::Duration};

    use metrics::{
        Counter, CounterFn, Gauge, GaugeFn, Histogram, HistogramFn, Key, KeyName, Metadata, Recorder, SharedString,
        with_local_recorder,
    };

    use super::*;
    use crate::{
        gate::Standing,
        model::{Actor, GateName},
        request::Request,
        rollout::{self, Times},
    };

    /// What was recorded under each key: the sum of a counter or gauge, the samples of a histogram.
    #[derive(Clone, Default)]
    struct Book(Arc<Mutex<Pages>>);

    #[derive(Default)]
    struct Pages {
        described: BTreeMap<String, usize>,
        numbers: BTreeMap<String, f64>,
        samples: BTreeMap<String, Vec<f64>>,
    }

    struct Pen(Book, String);

    impl Pen {
        fn add(&self, value: f64) {
            *self.0.0.lock().unwrap().numbers.entry(self.1.clone()).or_default() += value;
        }
    }

    impl CounterFn for Pen {
        fn increment(&self, value: u64) {
            self.add(value as f64);
        }
        fn absolute(&self, _: u64) {
            unreachable!("counters are only raised")
        }
    }

    impl GaugeFn for Pen {
        fn increment(&self, value: f64) {
            self.add(value);
        }
        fn decrement(&self, value: f64) {
            self.add(-value);
        }
        fn set(&self, _: f64) {
            unreachable!("several listeners would overwrite each other")
        }
    }

    impl HistogramFn for Pen {
        fn record(&self, value: f64) {
            self.0.0.lock().unwrap().samples.entry(self.1.clone()).or_default().push(value);
        }
    }

    impl Book {
        fn pen(&self, key: &Key) -> Arc<Pen> {
            let labels: Vec<_> = key.labels().map(|label| format!("{}={}", label.key(), label.value())).collect();
            let name = key.name().strip_prefix("rollback_").expect("all names have one prefix");
            Arc::new(Pen(self.clone(), format!("{name} {}", labels.join(" ")).trim_end().into()))
        }

        fn describe(&self, name: &KeyName, unit: Option<Unit>) {
            let seconds = name.as_str().ends_with("_seconds");
            assert_eq!(unit, Some(if seconds { Unit::Seconds } else { Unit::Count }), "{}", name.as_str());
            let name = name.as_str().strip_prefix("rollback_").expect("all names have one prefix");
            *self.0.lock().unwrap().described.entry(name.into()).or_default() += 1;
        }

        fn number(&self, key: &str) -> f64 {
            self.0.lock().unwrap().numbers.get(key).copied().unwrap_or(f64::NAN)
        }

        fn samples(&self, key: &str) -> Vec<f64> {
            self.0.lock().unwrap().samples.get(key).cloned().unwrap_or_default()
        }
    }

    impl Recorder for Book {
        fn describe_counter(&self, name: KeyName, unit: Option<Unit>, _: SharedString) {
            self.describe(&name, unit);
        }
        fn describe_gauge(&self, name: KeyName, unit: Option<Unit>, _: SharedString) {
            self.describe(&name, unit);
        }
        fn describe_histogram(&self, name: KeyName, unit: Option<Unit>, _: SharedString) {
            self.describe(&name, unit);
        }
        fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
            Counter::from_arc(self.pen(key))
        }
        fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
            Gauge::from_arc(self.pen(key))
        }
        fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
            Histogram::from_arc(self.pen(key))
        }
    }

    fn after(milliseconds: i64) -> Timestamp {
        rollout::sample().created + jiff::SignedDuration::from_millis(milliseconds)
    }

    fn tell(metrics: &Metrics, rollout: &Rollout, at: Timestamp, what: What) {
        metrics.on(&RolloutEvent { rollout: Arc::new(rollout.clone()), at, what });
    }

    fn enter(metrics: &Metrics, rollout: &mut Rollout, at: Timestamp, to: State) {
        rollout.state = to.clone();
        tell(metrics, rollout, at, What::Entered { to });
    }

    fn unhealthy() -> Cause {
        Cause::Unhealthy { gate: GateName::try_from("errors").unwrap(), why: "5 % failed".into() }
    }

    #[test]
    fn a_rollback_is_counted_and_timed_from_breach_to_verified() {
        let (book, metrics) = (Book::default(), Metrics::new());
        with_local_recorder(&book, || {
            let mut rollout = rollout::sample();
            tell(&metrics, &rollout, after(0), What::Created);
            assert_eq!(book.number("rollouts_open state=preflight"), 1.0);
            enter(&metrics, &mut rollout, after(10), State::Shifting { step: 0 });
            enter(&metrics, &mut rollout, after(20), State::Baking { step: 0, watched: Duration::ZERO });
            assert_eq!(book.number("rollouts_open state=preflight"), 0.0);
            assert_eq!(book.number("rollouts_open state=baking"), 1.0);
            enter(&metrics, &mut rollout, after(1500), State::RollingBack { cause: unhealthy() });
            rollout.times = Times {
                breach: Some(after(1000)),
                decision: Some(after(1500)),
                restored: Some(after(3500)),
                verified: Some(after(4750)),
            };
            assert_eq!(book.samples("breach_to_decision_seconds"), [0.0; 0], "told once, at the end");
            enter(&metrics, &mut rollout, after(5000), State::RolledBack { cause: unhealthy() });
        });
        assert_eq!(book.number("rollouts_finished_total state=rolled_back cause=unhealthy"), 1.0);
        assert_eq!(book.number("rollouts_open state=rolling_back"), 0.0);
        assert!(book.number("rollouts_open state=rolled_back").is_nan(), "ended rollouts are not in the gauge");
        assert_eq!(book.samples("rollout_duration_seconds state=rolled_back"), [5.0]);
        assert_eq!(book.samples("breach_to_decision_seconds"), [0.5]);
        assert_eq!(book.samples("breach_to_restored_seconds"), [2.5]);
        assert_eq!(book.samples("decision_to_restored_seconds"), [2.0]);
        assert_eq!(book.samples("restored_to_verified_seconds"), [1.25]);
        assert!(metrics.open.lock().unwrap().is_empty(), "nothing is kept of what has ended");
    }

    #[test]
    fn every_end_has_its_own_labels() {
        let (by, why) = (Actor::try_from("ana").unwrap(), crate::model::Note::new("because"));
        let gate = GateName::try_from("errors").unwrap();
        let id = rollout::sample().id().clone();
        let back = |cause| State::RolledBack { cause };
        let ends = [
            ("promoted cause=none", State::Promoted),
            ("rolled_back cause=unhealthy", back(unhealthy())),
            ("rolled_back cause=no_data", back(Cause::NoData { gate, why: why.clone() })),
            ("rolled_back cause=failed", back(Cause::Failed { why: why.clone() })),
            ("rolled_back cause=deadline", back(Cause::Deadline { why: why.clone() })),
            ("rolled_back cause=aborted", back(Cause::Aborted { by: by.clone(), why: why.clone() })),
            ("rolled_back cause=drifted", back(Cause::Drifted { why: why.clone() })),
            ("refused cause=already_serves", State::Refused { why: Refusal::AlreadyServes }),
            ("refused cause=quarantined", State::Refused { why: Refusal::Quarantined { by: id, why: why.clone() } }),
            ("refused cause=not_ready", State::Refused { why: Refusal::NotReady { why: why.clone() } }),
            ("refused cause=aborted", State::Refused { why: Refusal::Aborted { by: by.clone(), why: why.clone() } }),
            ("refused cause=deadline", State::Refused { why: Refusal::Deadline }),
            ("abandoned cause=drifted", State::Abandoned { why: Abandonment::Drifted { why: why.clone() } }),
            ("abandoned cause=given_up", State::Abandoned { why: Abandonment::GivenUp { by, why } }),
        ];
        let (book, metrics) = (Book::default(), Metrics::new());
        with_local_recorder(&book, || {
            for (_, end) in &ends {
                enter(&metrics, &mut rollout::sample(), after(0), end.clone());
            }
        });
        for (labels, _) in &ends {
            assert_eq!(book.number(&format!("rollouts_finished_total state={labels}")), 1.0, "{labels}");
        }
        assert_eq!(book.0.lock().unwrap().numbers.len(), ends.len());
    }

    #[test]
    fn verdicts_requests_and_troubles_are_counted_by_kind_without_names() {
        let (book, metrics) = (Book::default(), Metrics::new());
        let rollout = rollout::sample();
        let gate = GateName::try_from("errors").unwrap();
        with_local_recorder(&book, || {
            let tell = |what| tell(&metrics, &rollout, after(0), what);
            for standing in [Standing::Unhealthy, Standing::Healthy, Standing::Unhealthy, Standing::Inconclusive] {
                tell(What::Judged { gate: gate.clone(), standing, why: "".into() });
            }
            tell(What::Tripped { gate: gate.clone(), why: "".into() });
            for ask in [Ask::Pause, Ask::Resume, Ask::Pause, Ask::SkipGate(gate.clone()), Ask::PromoteNow] {
                tell(What::Asked { request: Request::new(ask, "ana", "").unwrap(), answer: "granted".into() });
            }
            tell(What::Troubled { why: "throttled".into() });
        });
        let numbers = std::mem::take(&mut book.0.lock().unwrap().numbers);
        let numbers: Vec<_> = numbers.iter().map(|(key, value)| format!("{key} {value}")).collect();
        assert_eq!(
            numbers,
            [
                "gate_changes_total standing=healthy 1",
                "gate_changes_total standing=inconclusive 1",
                "gate_changes_total standing=unhealthy 2",
                "gate_trips_total 1",
                "requests_total ask=pause 2",
                "requests_total ask=promote_now 1",
                "requests_total ask=resume 1",
                "requests_total ask=skip_gate 1",
                "rollouts_open state=preflight 1",
                "troubles_total 1",
            ]
        );
    }

    #[test]
    fn the_target_is_a_label_only_when_asked_for() {
        let (book, metrics) = (Book::default(), Metrics::new().with_target_label());
        with_local_recorder(&book, || enter(&metrics, &mut rollout::sample(), after(1000), State::Promoted));
        assert_eq!(book.number("rollouts_finished_total state=promoted cause=none target=checkout"), 1.0);
        assert_eq!(book.samples("rollout_duration_seconds state=promoted target=checkout"), [1.0]);
    }

    #[test]
    fn a_clock_that_was_set_back_leaves_no_negative_time() {
        let (book, metrics) = (Book::default(), Metrics::new());
        let mut rollout = rollout::sample();
        rollout.times = Times { breach: Some(after(10)), decision: Some(after(5)), ..Times::default() };
        with_local_recorder(&book, || enter(&metrics, &mut rollout, after(-1), State::Promoted));
        assert!(book.0.lock().unwrap().samples.is_empty());
    }

    #[test]
    fn every_metric_is_described_once_and_nothing_else_is() {
        let (book, metrics) = (Book::default(), Metrics::new());
        let mut names = std::collections::BTreeSet::new();
        with_local_recorder(&book, || {
            let mut rollout = rollout::sample();
            let gate = GateName::try_from("errors").unwrap();
            tell(&metrics, &rollout, after(0), What::Tripped { gate: gate.clone(), why: "".into() });
            tell(&metrics, &rollout, after(0), What::Judged { gate, standing: Standing::Healthy, why: "".into() });
            tell(&metrics, &rollout, after(0), What::Troubled { why: "".into() });
            let request = Request::new(Ask::Abort, "ana", "").unwrap();
            tell(&metrics, &rollout, after(0), What::Asked { request, answer: "".into() });
            let now = Some(after(0));
            rollout.times = Times { breach: now, decision: now, restored: now, verified: now };
            enter(&metrics, &mut rollout, after(0), State::Promoted);
        });
        let pages = book.0.lock().unwrap();
        let used = pages.numbers.keys().chain(pages.samples.keys());
        names.extend(used.filter_map(|key| key.split(' ').next()).map(String::from));
        assert_eq!(pages.described.keys().cloned().collect::<std::collections::BTreeSet<_>>(), names);
        assert!(pages.described.values().all(|times| *times == 1), "{:?}", pages.described);
    }

    #[test]
    fn the_dashboard_asks_for_every_metric_there_is_and_for_no_other() {
        let book = Book::default();
        with_local_recorder(&book, describe);
        let ours: Vec<String> = book.0.lock().unwrap().described.keys().cloned().collect();

        let dashboard = include_str!("../../dashboards/grafana.json");
        let dashboard: serde_json::Value = serde_json::from_str(dashboard).unwrap();
        let mut asked = std::collections::BTreeSet::new();
        for panel in dashboard["panels"].as_array().unwrap() {
            for target in panel["targets"].as_array().unwrap() {
                let query = target["expr"].as_str().unwrap();
                for word in query.split(|c: char| !c.is_ascii_alphanumeric() && c != '_') {
                    let Some(name) = word.strip_prefix("rollback_") else { continue };
                    let histogram = name.strip_suffix("_bucket");
                    assert_eq!(histogram.is_some(), name.contains("_seconds"), "{word}: times are histograms");
                    asked.insert(histogram.unwrap_or(name).to_owned());
                }
            }
        }
        assert_eq!(asked.into_iter().collect::<Vec<_>>(), ours);
    }
}
