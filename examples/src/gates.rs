//! The quickstart's two gates: one counts what users get, the other asks the candidate itself.

use async_trait::async_trait;
use hyper::StatusCode;
use rollback_core::{
    Result,
    gate::{Evidence, HealthGate, Verdict, Window},
    model::GateName,
};
use serde::{Deserialize, Serialize};

use crate::{
    admin::{Admin, Counts, Instance},
    http,
    service::RELEASE,
};

/// Unhealthy when too many of the candidate's answers failed since the step began. Too few answers are no data.
#[derive(Debug)]
pub struct ErrorRate {
    name: GateName,
    admin: Admin,
    limit: f64,
    floor: u64,
}

impl ErrorRate {
    /// At most this share of failed answers (0.05 is 5 %), judged from so many answers on.
    pub fn new(admin: Admin, limit: f64, floor: u64) -> Self {
        Self { name: GateName::try_from("error-rate").expect("a good name"), admin, limit, floor }
    }
}

/// What the gate wants back the next time. It is kept in the rollout's record, so a crash forgets nothing.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Memory {
    /// The step that `since` is about.
    step: usize,
    /// The router's counters when they were last read: they only rise, except when the router starts anew.
    read: Counts,
    /// What came in since the step began.
    since: Counts,
}

#[async_trait]
impl HealthGate for ErrorRate {
    fn name(&self) -> &GateName {
        &self.name
    }

    async fn judge(&self, window: &Window) -> Result<Verdict> {
        let candidate = &window.candidate;
        let read = self.admin.counts().await?.get(candidate.as_str()).copied().unwrap_or_default();
        let last: Option<Memory> = match window.last.as_ref().map(Evidence::recall).transpose() {
            Ok(last) => last.flatten(),
            // Memory that cannot be read is no data. To start afresh would forgive what it had counted.
            Err(e) => return Ok(Verdict::Inconclusive(Evidence::new(window.now, e.chain()))),
        };
        let came = read.since(last.map_or(read, |last| last.read));
        let since = match last {
            Some(last) if last.step == window.step => last.since.and(came),
            _ => came,
        };
        let Counts { requests, failed, slow } = since;
        let tells = |summary: String| {
            Evidence::new(window.now, summary)
                .fact("requests", requests)
                .fact("failed", failed)
                .fact("slow", slow)
                .fact("limit", self.limit)
                .fact("floor", self.floor)
                .remember(serde_json::to_value(Memory { step: window.step, read, since }).unwrap_or_default())
        };
        if requests < self.floor {
            let why = format!("{requests} of the {} requests to {candidate} that it takes to judge", self.floor);
            return Ok(Verdict::Inconclusive(tells(why)));
        }
        let share = failed as f64 / requests as f64;
        let limit = 100.0 * self.limit;
        let evidence = tells(format!("{failed} of {requests} requests to {candidate} failed; the limit is {limit} %"));
        Ok(if share > self.limit { Verdict::Unhealthy(evidence) } else { Verdict::Healthy(evidence) })
    }
}

impl Counts {
    /// What came after `before`; all of it when the counters were reset between.
    fn since(self, before: Self) -> Self {
        if self.requests < before.requests {
            return self;
        }
        Self {
            requests: self.requests - before.requests,
            failed: self.failed.saturating_sub(before.failed),
            slow: self.slow.saturating_sub(before.slow),
        }
    }

    fn and(self, more: Self) -> Self {
        Self { requests: self.requests + more.requests, failed: self.failed + more.failed, slow: self.slow + more.slow }
    }
}

/// Asks the candidate's process for its `/healthz`, past the router, and checks that it is the candidate who answers.
#[derive(Debug)]
pub struct Probe {
    name: GateName,
    admin: Admin,
}

impl Probe {
    /// The candidate of this router.
    pub fn new(admin: Admin) -> Self {
        Self { name: GateName::try_from("probe").expect("a good name"), admin }
    }
}

#[async_trait]
impl HealthGate for Probe {
    fn name(&self) -> &GateName {
        &self.name
    }

    async fn judge(&self, window: &Window) -> Result<Verdict> {
        let candidate = &window.candidate;
        let tells = |summary: String| Evidence::new(window.now, summary);
        let seen = self.admin.look().await?;
        let at = match seen.instances.get(candidate.as_str()) {
            Some(Instance::Up(at)) => *at,
            Some(Instance::Down(why)) => return Ok(Verdict::Unhealthy(tells(format!("{candidate} ended: {why}")))),
            Some(Instance::Starting) | None => {
                return Ok(Verdict::Inconclusive(tells(format!("{candidate} is not up yet"))));
            }
        };
        let answer = match http::get(at, "/healthz").await {
            Ok(answer) => answer,
            Err(e) => return Ok(Verdict::Unhealthy(tells(e.chain()))),
        };
        let release = answer.headers().get(RELEASE).and_then(|release| release.to_str().ok()).unwrap_or("nobody");
        let evidence = tells(format!("/healthz at {at} answers {} as {release}", answer.status().as_u16()));
        Ok(if release != candidate.as_str() {
            // Somebody else's health says nothing about the candidate's.
            Verdict::Inconclusive(evidence)
        } else if answer.status() == StatusCode::OK {
            Verdict::Healthy(evidence)
        } else {
            Verdict::Unhealthy(evidence)
        })
    }
}
