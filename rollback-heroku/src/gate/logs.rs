//! A gate on the router's errors and the dynos' errors in the log.

use std::{collections::BTreeMap, fmt};

use async_trait::async_trait;
use jiff::Timestamp;
use rollback_core::{
    Error, Result,
    gate::{Evidence, HealthGate, Verdict, Window},
    model::{GateName, Weight},
};
use serde_json::json;

use crate::{App, api::LogSession};

/// Judges an app by Heroku's own lines in its log: router errors (`H10`, `H12`, …) and dyno errors (`R10`, `R15`, …).
///
/// A log session hands out the newest 1,500 lines and no more: on a busy app that is a few seconds, and the evidence says
/// how far they reach. Where there is the metrics API, [`Router`](super::Router) sees more. One request a look, and one to the
/// log's own host.
///
/// | seen | verdict |
/// |---|---|
/// | enough requests, few enough of them failed | healthy |
/// | a code that is always [fatal](Self::fatal); or enough requests, and too many of them failed | unhealthy |
/// | no lines of the router since then, or too few; the candidate has no traffic yet | inconclusive |
#[derive(Clone)]
pub struct Logs {
    name: GateName,
    app: App,
    share: f64,
    floor: u32,
    fatal: Vec<String>,
}

/// What the log said.
#[derive(Debug, Default, PartialEq)]
struct Said {
    requests: u32,
    failed: u32,
    codes: BTreeMap<String, u32>,
    first: Option<Timestamp>,
    last: Option<Timestamp>,
}

impl Logs {
    /// Unhealthy when more than this share of the requests, 0 to 1, fails. By the name `logs`.
    ///
    /// # Errors
    /// `Invalid` when it is not a share.
    pub fn new(app: &App, share: f64) -> Result<Self> {
        if !(0.0..=1.0).contains(&share) {
            return Err(Error::invalid(format!("{share} is not a share of requests; 0 to 1 is accepted")));
        }
        // App crashed, no web dynos, boot timeouts, memory far exceeded.
        let fatal = ["H10", "H14", "H20", "R10", "R15"].map(ToOwned::to_owned).into();
        Ok(Self { name: GateName::try_from("logs")?, app: app.clone(), share, floor: 20, fatal })
    }

    /// With this name, where one target has several.
    ///
    /// # Errors
    /// `Invalid` when it is not a gate's name.
    pub fn named(mut self, name: &str) -> Result<Self> {
        self.name = GateName::try_from(name)?;
        Ok(self)
    }

    /// Judges on so many requests or more (default 20).
    #[must_use]
    pub const fn requests_at_least(mut self, requests: u32) -> Self {
        self.floor = requests;
        self
    }

    /// These codes are unhealthy however rare they are, instead of H10, H14, H20, R10 and R15.
    #[must_use]
    pub fn fatal(mut self, codes: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.fatal = codes.into_iter().map(Into::into).collect();
        self
    }
}

/// Heroku's own lines from then on. Lines of the app are not read: they may say anything.
fn read(log: &str, since: Timestamp) -> Said {
    let mut said = Said::default();
    for line in log.lines() {
        let Some((time, rest)) = line.split_once(' ') else { continue };
        let Some((who, text)) = rest.split_once(": ") else { continue };
        let (Ok(at), Some(who)) = (time.parse::<Timestamp>(), who.strip_prefix("heroku[")) else { continue };
        said.first = Some(said.first.map_or(at, |first| first.min(at)));
        if at < since {
            continue;
        }
        said.last = said.last.max(Some(at));
        if who.starts_with("router]") {
            said.requests += 1;
            let field = |name: &str| text.split(' ').find_map(|part| part.strip_prefix(name));
            let code = field("code=").filter(|_| text.starts_with("at=error"));
            // With H27 and H28 it is the client who went away.
            let gone = matches!(code, Some("H27" | "H28"));
            let bad = code.is_some() || field("status=").is_some_and(|status| status.starts_with('5'));
            said.failed += u32::from(bad && !gone);
            if let Some(code) = code {
                *said.codes.entry(code.into()).or_default() += 1;
            }
        } else if let Some(code) = text.strip_prefix("Error ").and_then(|rest| rest.split(' ').next())
            && code.starts_with('R')
        {
            *said.codes.entry(code.into()).or_default() += 1;
        }
    }
    said
}

#[async_trait]
impl HealthGate for Logs {
    fn name(&self) -> &GateName {
        &self.name
    }

    async fn judge(&self, window: &Window) -> Result<Verdict> {
        if window.weight == Weight::NONE {
            return Ok(window.no_data("the candidate has no traffic yet"));
        }
        let client = &self.app.site.client;
        let asked = json!({ "lines": LINES, "source": "heroku", "tail": false });
        let session: LogSession = client.post(&self.app.site.path("/log-sessions"), &asked).await?;
        let said = read(&client.text(&session.logplex_url).await?, window.since);
        let Some(last) = said.last else { return Ok(window.no_data("Heroku wrote no line since then")) };
        let fatal: Vec<&str> = said.codes.keys().filter(|code| self.fatal.contains(code)).map(String::as_str).collect();
        let share = f64::from(said.failed) / f64::from(said.requests.max(1));
        let summary = match fatal.as_slice() {
            [] => format!("{} of {} requests failed", said.failed, said.requests),
            codes => format!("the log has {}", codes.join(", ")),
        };
        let evidence = Evidence::new(last, summary)
            .fact("requests", said.requests)
            .fact("failed", said.failed)
            .fact("codes", json!(said.codes))
            .fact("lines reach back to", said.first.map(|first| first.to_string()))
            .fact("trips above", self.share)
            .fact("trips on", json!(self.fatal));
        Ok(match (fatal.is_empty(), said.requests >= self.floor) {
            (false, _) => Verdict::Unhealthy(evidence),
            (true, false) => Verdict::Inconclusive(evidence),
            (true, true) if share > self.share => Verdict::Unhealthy(evidence),
            (true, true) => Verdict::Healthy(evidence),
        })
    }
}

impl fmt::Debug for Logs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Logs").field("name", &self.name).field("app", &self.app.name()).finish_non_exhaustive()
    }
}

/// The most that Heroku keeps (Dev Center, "Logging").
const LINES: u32 = 1500;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_herokus_own_lines_since_then_count() {
        let log = "\
2026-01-01T00:00:01.000000+00:00 heroku[router]: at=info method=GET path=\"/\" status=200 bytes=1
2026-01-01T00:01:00.000000+00:00 heroku[router]: at=info method=GET path=\"/\" status=200 bytes=1
2026-01-01T00:01:01.000000+00:00 heroku[router]: at=error code=H12 desc=\"Request timeout\" status=503 bytes=0
2026-01-01T00:01:02.000000+00:00 heroku[router]: at=info method=GET path=\"/x?at=error code=H10\" status=500 bytes=1
2026-01-01T00:01:03.000000+00:00 heroku[router]: at=error code=H27 desc=\"Client Request Interrupted\" status=499
2026-01-01T00:01:04.000000+00:00 heroku[web.1]: Error R14 (Memory quota exceeded)
2026-01-01T00:01:05.000000+00:00 heroku[web.1]: State changed from up to crashed
2026-01-01T00:01:06.000000+00:00 app[web.1]: heroku[router]: at=error code=H10 status=503
not a line
";
        let said = read(log, "2026-01-01T00:00:30Z".parse().unwrap());
        assert_eq!((said.requests, said.failed), (4, 2));
        assert_eq!(said.codes, [("H12", 1), ("H27", 1), ("R14", 1)].map(|(code, n)| (code.to_owned(), n)).into());
        assert_eq!(said.first, "2026-01-01T00:00:01Z".parse().ok());
        assert_eq!(said.last, "2026-01-01T00:01:05Z".parse().ok());
    }
}
