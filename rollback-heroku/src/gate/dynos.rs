//! A gate on what the dynos do.

use std::{collections::BTreeMap, fmt, time::Duration};

use async_trait::async_trait;
use jiff::Timestamp;
use rollback_core::{
    Result,
    backend::Readiness,
    gate::{Evidence, HealthGate, Verdict, Window},
    model::{Change, GateName},
    plan::Plan,
};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::{
    App,
    api::Dyno,
    fleet::{CRASHED, Fleet, UP, signed, version},
};

/// Watches the dynos of an app: crashed, flapping, never up, too few, or at another release than the candidate's.
///
/// | seen | verdict |
/// |---|---|
/// | every dyno that the formation asks for is up at the candidate's release | healthy |
/// | one has crashed; one was restarted too often; one has not come up in time, or is missing, or runs another release | unhealthy |
/// | dynos are still booting, or the candidate's release is not current | inconclusive |
///
/// "Up" means that the process has bound its port, and no more: let a probe or the router's metrics stand beside. It takes
/// two requests a look.
#[derive(Clone)]
pub struct Dynos {
    name: GateName,
    app: App,
    boot: Duration,
    restarts: u32,
}

/// What it remembers: the candidate's version, and each dyno as it was last seen up.
#[derive(Default, Serialize, Deserialize)]
struct Memory {
    version: Option<u64>,
    since: Option<Timestamp>,
    dynos: BTreeMap<String, Known>,
}

#[derive(Serialize, Deserialize)]
struct Known {
    id: String,
    up: Timestamp,
    restarts: u32,
}

impl Dynos {
    /// Watches this app, by the name `dynos`.
    pub fn new(app: &App) -> Self {
        let name = GateName::try_from("dynos").expect("a good name");
        Self { name, app: app.clone(), boot: Duration::from_secs(180), restarts: 2 }
    }

    /// With this name, where one target has several.
    ///
    /// # Errors
    /// `Invalid` when it is not a gate's name.
    pub fn named(mut self, name: &str) -> Result<Self> {
        self.name = GateName::try_from(name)?;
        Ok(self)
    }

    /// How long a dyno may take to come up (default 3 minutes, the longest boot timeout that Heroku gives).
    #[must_use]
    pub const fn boots_within(mut self, time: Duration) -> Self {
        self.boot = time;
        self
    }

    /// How often one dyno may be restarted during a rollout (default 2: Heroku restarts each once a day by itself).
    #[must_use]
    pub const fn restarts_at_most(mut self, times: u32) -> Self {
        self.restarts = times;
        self
    }

    /// What is wrong with the dynos, if something is; else what is not yet right.
    fn faults(
        &self,
        fleet: &Fleet,
        wanted: u64,
        memory: &mut Memory,
        now: Timestamp,
    ) -> (Option<String>, Option<String>) {
        let late = |since: Timestamp| now.duration_since(since) > signed(self.boot);
        let since = *memory.since.get_or_insert(now);
        let (mut wrong, mut unready) = (None, None);
        let mut wrong_if = |late: bool, text: String| match late {
            true => drop(wrong.get_or_insert(text)),
            false => drop(unready.get_or_insert(text)),
        };
        for dyno in fleet.dynos() {
            let Dyno { name, state, .. } = dyno;
            match state.as_str() {
                _ if version(dyno) != wanted => {
                    wrong_if(late(since), format!("{name} runs v{} instead of v{wanted}", version(dyno)));
                }
                CRASHED => wrong_if(true, format!("{name} has crashed")),
                UP => {
                    let known = memory.dynos.entry(name.clone());
                    let known =
                        known.or_insert_with(|| Known { id: dyno.id.clone(), up: dyno.updated_at, restarts: 0 });
                    if known.id != dyno.id || known.up != dyno.updated_at {
                        *known = Known { id: dyno.id.clone(), up: dyno.updated_at, restarts: known.restarts + 1 };
                    }
                    if known.restarts > self.restarts {
                        wrong_if(true, format!("{name} was restarted {} times", known.restarts));
                    }
                }
                _ => wrong_if(late(dyno.updated_at.max(since)), format!("{name} is {state}")),
            }
        }
        for (kind, count) in fleet.expected() {
            let have = fleet.dynos().iter().filter(|dyno| dyno.kind == *kind).count() as u64;
            if have < *count {
                wrong_if(late(since), format!("there are {have} of {count} {kind} dynos"));
            }
        }
        (wrong, unready)
    }
}

#[async_trait]
impl HealthGate for Dynos {
    fn name(&self) -> &GateName {
        &self.name
    }

    async fn judge(&self, window: &Window) -> Result<Verdict> {
        let mut memory = match window.last.as_ref().map(Evidence::recall::<Memory>) {
            None => Memory::default(),
            Some(Ok(memory)) => memory.unwrap_or_default(),
            Some(Err(e)) => return Ok(window.no_data(e.chain())),
        };
        let fleet = self.app.site.fleet(&self.app.site.client).await?;
        // As long as every dyno runs what it ran, nothing else can have become current.
        let same = memory.version.filter(|known| fleet.dynos().iter().all(|dyno| version(dyno) == *known));
        let wanted = match same.filter(|_| !fleet.dynos().is_empty()) {
            Some(known) => known,
            None => match self.app.candidates_release(window).await? {
                Ok(release) => release.version,
                Err(why) => return Ok(window.no_data(why)),
            },
        };
        if memory.version != Some(wanted) {
            memory = Memory { version: Some(wanted), ..Memory::default() };
        }
        if fleet.is_empty() {
            return Ok(window.no_data("the formation asks for no dynos"));
        }
        let (wrong, unready) = self.faults(&fleet, wanted, &mut memory, window.now);
        let up = fleet.dynos().iter().filter(|dyno| dyno.state == UP).count();
        let expected: u64 = fleet.expected().values().sum();
        let summary = match (&wrong, &unready) {
            (Some(wrong), _) => wrong.clone(),
            (None, Some(unready)) => format!("{unready}, within the {:?} that a boot may take", self.boot),
            (None, None) => format!("{up} dynos are up at v{wanted}"),
        };
        let evidence = Evidence::new(window.now, summary)
            .fact("release", format!("v{wanted}"))
            .fact("up", up)
            .fact("expected", expected)
            .fact(
                "trips on",
                format!("a crash, more than {} restarts of a dyno, a boot over {:?}", self.restarts, self.boot),
            )
            .remember(json!(memory));
        Ok(match (wrong, unready) {
            (Some(_), _) => Verdict::Unhealthy(evidence),
            (None, Some(_)) => Verdict::Inconclusive(evidence),
            (None, None) => Verdict::Healthy(evidence),
        })
    }

    /// Tells which dynos have crashed already. The candidate may be what mends them, so that is no reason to refuse it.
    async fn preflight(&self, _change: &Change, _plan: &Plan) -> Result<Readiness> {
        let fleet = self.app.site.fleet(&self.app.site.client).await?;
        let crashed = fleet.dynos().iter().filter(|dyno| dyno.state == CRASHED);
        let crashed: Vec<&str> = crashed.map(|dyno| dyno.name.as_str()).collect();
        if crashed.is_empty() {
            return Ok(Readiness::default());
        }
        Ok(Readiness::default().not_provable(format!(
            "gate {}: {} crashed already; where the candidate does not mend that, it is brought back",
            self.name,
            crashed.join(", ")
        )))
    }
}

impl fmt::Debug for Dynos {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dynos").field("name", &self.name).field("app", &self.app.name()).finish_non_exhaustive()
    }
}
