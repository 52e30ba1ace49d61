//! A gate on what the router sees, by Heroku's metrics API.

use std::{collections::BTreeMap, fmt};

use async_trait::async_trait;
use jiff::{SignedDuration, Timestamp};
use rollback_core::{
    Error, ErrorKind, Result,
    backend::Readiness,
    gate::{Evidence, HealthGate, Verdict, Window},
    model::{Change, GateName, Weight},
    plan::Plan,
};
use serde_json::{Value, json};

use crate::{App, api::Series};

/// Judges an app by what its users see at the router: the share of failed requests, and the latency.
///
/// It asks Heroku's metrics API, which its dashboard and command line use and which no reference describes: it may change
/// or vanish. Preflight refuses the start where it is not there. Values are for whole minutes and come late, so ask it about
/// once a minute; two requests a look, three with latency.
///
/// | seen | verdict |
/// |---|---|
/// | enough requests, few enough of them failed, fast enough | healthy |
/// | enough requests, and too many of them failed, or too slow | unhealthy |
/// | no values, or fewer requests than asked for; the candidate has no traffic yet, as with preboot | inconclusive |
///
/// A request has failed when the router answered 5xx, or logged an `H` error other than H27 and H28, with which it is the
/// client who went away.
#[derive(Clone)]
pub struct Router {
    name: GateName,
    app: App,
    process_type: String,
    share: f64,
    floor: f64,
    p95: Option<f64>,
}

impl Router {
    /// Unhealthy when more than this share of the requests, 0 to 1, fails. By the name `router`.
    ///
    /// # Errors
    /// `Invalid` when it is not a share.
    pub fn new(app: &App, share: f64) -> Result<Self> {
        if !(0.0..=1.0).contains(&share) {
            return Err(Error::invalid(format!("{share} is not a share of requests; 0 to 1 is accepted")));
        }
        let name = GateName::try_from("router")?;
        Ok(Self { name, app: app.clone(), process_type: "web".into(), share, floor: 50.0, p95: None })
    }

    /// With this name, where one target has several.
    ///
    /// # Errors
    /// `Invalid` when it is not a gate's name.
    pub fn named(mut self, name: &str) -> Result<Self> {
        self.name = GateName::try_from(name)?;
        Ok(self)
    }

    /// Judges on so many requests or more (default 50).
    #[must_use]
    pub const fn requests_at_least(mut self, requests: u32) -> Self {
        self.floor = requests as f64;
        self
    }

    /// Unhealthy, too, when the 95th percentile of the latency is more milliseconds than this, on the mean of the minutes.
    #[must_use]
    pub const fn p95_at_most(mut self, milliseconds: u32) -> Self {
        self.p95 = Some(milliseconds as f64);
        self
    }

    async fn ask(&self, what: &str, since: Timestamp, until: Timestamp) -> Result<Series> {
        let path = self.app.site.path(&format!("/router-metrics/{what}"));
        let query = [
            ("start_time", since.to_string()),
            ("end_time", until.to_string()),
            ("step", "1m".to_owned()),
            ("process_type", self.process_type.clone()),
        ];
        self.app.site.client.metrics(&path, &query).await
    }
}

type Values = BTreeMap<String, Vec<f64>>;

/// The values of each key in the whole steps from `since` on, and where the last of them ends.
fn within(series: &Series, since: Timestamp) -> Result<(Values, Option<Timestamp>)> {
    let step = step(&series.step)?;
    let mut until = None;
    let mut kept = Values::new();
    for (key, values) in &series.data {
        for (at, value) in values.iter().enumerate() {
            let begins = i32::try_from(at).ok().and_then(|at| series.start_time.checked_add(step * at).ok());
            if let (Some(begins), Some(value)) = (begins.filter(|begins| *begins >= since), value) {
                kept.entry(key.clone()).or_default().push(*value);
                until = until.max(begins.checked_add(step).ok());
            }
        }
    }
    Ok((kept, until))
}

/// `1`, in minutes, or `1m0s`.
fn step(step: &Value) -> Result<SignedDuration> {
    let parsed = match step {
        Value::Number(minutes) => minutes.as_i64().map(SignedDuration::from_mins),
        Value::String(text) => text.parse().ok(),
        _ => None,
    };
    parsed.filter(SignedDuration::is_positive).ok_or_else(|| {
        Error::new(
            ErrorKind::Internal,
            format!("the metrics have the step {step}; minutes, or a text as 1m0s, are understood"),
        )
    })
}

#[async_trait]
impl HealthGate for Router {
    fn name(&self) -> &GateName {
        &self.name
    }

    async fn judge(&self, window: &Window) -> Result<Verdict> {
        if window.weight == Weight::NONE {
            return Ok(window.no_data("the candidate has no traffic yet"));
        }
        let (since, now) = (window.since, window.now);
        let (status, errors) = tokio::try_join!(self.ask("status", since, now), self.ask("errors", since, now))?;
        let (status, until) = within(&status, since)?;
        let (errors, _) = within(&errors, since)?;
        let Some(until) = until else { return Ok(window.no_data("no metrics of a whole minute since then")) };
        let sum = |of: &Values, keep: &dyn Fn(&str) -> bool| -> f64 {
            of.iter().filter(|(key, _)| keep(key)).flat_map(|(_, values)| values).sum()
        };
        let total = sum(&status, &|_| true);
        let answered = sum(&status, &|key| key == "status_5xx");
        let logged = sum(&errors, &|code| code.starts_with('H') && code != "H27" && code != "H28");
        // The router's own errors are answered 503, and so are in both.
        let failed = answered.max(logged);
        let codes: Vec<&str> = errors.keys().map(String::as_str).collect();
        let mut evidence = Evidence::new(until, String::new())
            .fact("requests", total)
            .fact("failed", failed)
            .fact("codes", json!(codes))
            .fact("trips above", self.share)
            .fact("requests at least", self.floor);
        let mut p95 = None;
        if let Some(most) = self.p95 {
            let (latency, _) = within(&self.ask("latency", since, now).await?, since)?;
            let values = latency.get("latency.ms.p95").map(Vec::as_slice).unwrap_or_default();
            p95 = (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64);
            evidence = evidence.fact("p95 ms", json!(p95)).fact("p95 ms at most", most);
        }
        let enough = total >= self.floor && (self.p95.is_none() || p95.is_some());
        let bad = total > 0.0 && failed / total > self.share;
        let slow = p95.zip(self.p95).is_some_and(|(p95, most)| p95 > most);
        let codes = if codes.is_empty() { String::new() } else { format!(" ({})", codes.join(", ")) };
        evidence.summary = match (enough, slow && !bad) {
            (false, _) => format!("only {total} requests, and {failed} failed; at least {} are needed", self.floor),
            (true, false) => format!("{failed} of {total} requests failed{codes}"),
            (true, true) => format!("the p95 of the latency was {} ms", p95.unwrap_or_default().round()),
        };
        Ok(match (enough, bad || slow) {
            (false, _) => Verdict::Inconclusive(evidence),
            (true, true) => Verdict::Unhealthy(evidence),
            (true, false) => Verdict::Healthy(evidence),
        })
    }

    async fn preflight(&self, _change: &Change, _plan: &Plan) -> Result<Readiness> {
        let now = self.app.site.clock.now();
        let since = now.checked_sub(SignedDuration::from_mins(10)).unwrap_or(now);
        Ok(match self.ask("status", since, now).await {
            Ok(series) => {
                let requests: f64 = within(&series, since)?.0.into_values().flatten().sum();
                let ready = Readiness::default().proved("the metrics API answers");
                match requests >= self.floor {
                    true => ready,
                    false => ready.not_provable(format!(
                        "gate {}: whether there is traffic enough: {requests} requests in ten minutes, {} are needed",
                        self.name, self.floor
                    )),
                }
            }
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::Denied | ErrorKind::Invalid) => {
                Readiness::default().refused(format!(
                    "gate {} has nothing to ask: Heroku's metrics API is not there for app {}; take the gate out ({})",
                    self.name,
                    self.app.name(),
                    e.chain()
                ))
            }
            Err(e) => return Err(e),
        })
    }
}

impl fmt::Debug for Router {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Router").field("name", &self.name).field("app", &self.app.name()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_minutes_or_text() {
        for (value, minutes) in [(json!(1), Some(1)), (json!("1m0s"), Some(1)), (json!("1h0m0s"), Some(60))] {
            assert_eq!(step(&value).ok(), minutes.map(SignedDuration::from_mins), "{value}");
        }
        for value in [json!(0), json!("soon"), json!(null)] {
            assert!(step(&value).is_err(), "{value}");
        }
    }

    #[test]
    fn only_whole_steps_from_then_on_count_and_nulls_are_no_data() {
        let start_time = Timestamp::from_second(600).unwrap();
        let data = BTreeMap::from([("status_2xx".to_owned(), vec![Some(1.0), Some(2.0), None, Some(4.0), None])]);
        let series = Series { data, start_time, step: json!(1) };
        let (kept, until) = within(&series, Timestamp::from_second(601).unwrap()).unwrap();
        assert_eq!(kept["status_2xx"], [2.0, 4.0]);
        assert_eq!(until, Timestamp::from_second(600 + 4 * 60).ok());
        assert_eq!(within(&series, Timestamp::from_second(900).unwrap()).unwrap().1, None);
    }
}
