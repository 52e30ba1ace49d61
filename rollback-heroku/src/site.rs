//! One app, as both backends see it: its releases, its dynos, and the two ways back.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use jiff::Timestamp;
use rollback_core::{
    Error, ErrorKind, Result,
    backend::Readiness,
    clock::{Clock, SystemClock},
    model::{Attempt, Note, Observed, Progress, RolloutId, Version, Weight},
    plan::{Deadlines, Plan},
};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::{
    Client,
    api::{App, Build, Collaborator, Dyno, Feature, Formation, Release, Slug},
    candidate::Served,
    fleet::{Fleet, Ready, signed},
    history::{History, Lineage, Stand, Trail, Way, describe, tag},
};

/// One app and how it is treated.
#[derive(Clone, Debug)]
pub(crate) struct Site {
    pub(crate) name: String,
    pub(crate) client: Client,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) way: Way,
    pub(crate) other: Option<Way>,
    pub(crate) steady: Duration,
    pub(crate) preboot: Duration,
    pub(crate) settle: Duration,
    pub(crate) no_dynos: bool,
    pub(crate) maintenance: bool,
}

/// What the dynos of a release that is current do.
pub(crate) struct Arrival {
    pub(crate) fleet: Fleet,
    pub(crate) ready: Ready,
    /// Old dynos serve beside the listed ones until then.
    pub(crate) preboot: Option<Timestamp>,
}

impl Site {
    pub(crate) fn new(client: &Client, name: &str) -> Result<Self> {
        let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if !(3..=36).contains(&name.len()) || !name.chars().all(good) {
            return Err(Error::invalid(format!(
                "{name:?} is not an app's name; small letters, digits and - are accepted"
            )));
        }
        Ok(Self {
            name: name.into(),
            client: client.clone(),
            clock: Arc::new(SystemClock),
            way: Way::Full,
            other: None,
            steady: Duration::from_secs(30),
            preboot: Duration::from_secs(180),
            settle: Duration::from_secs(60),
            no_dynos: false,
            maintenance: false,
        })
    }

    pub(crate) fn path(&self, rest: &str) -> String {
        format!("/apps/{}{rest}", self.name)
    }

    pub(crate) async fn app(&self) -> Result<App> {
        self.client.get(&self.path("")).await
    }

    pub(crate) async fn history(&self, client: &Client) -> Result<History> {
        Ok(History::new(client.newest(&self.path("/releases"), "version", PAGE).await?))
    }

    pub(crate) async fn builds(&self, client: &Client) -> Result<Vec<Build>> {
        // Newest first is not in the schema's ranges, and is what clients of this API have asked for since 2014.
        client.newest(&self.path("/builds"), "created_at", PAGE).await
    }

    pub(crate) async fn fleet(&self, client: &Client) -> Result<Fleet> {
        let dynos: Vec<Dyno> = client.all(&self.path("/dynos")).await?;
        let formation: Vec<Formation> = client.all(&self.path("/formation")).await?;
        Ok(Fleet::new(&formation, dynos))
    }

    /// The dynos of a release that is current.
    pub(crate) async fn arrival(&self, client: &Client, release: &Release, served: &Served) -> Result<Arrival> {
        let fleet = self.fleet(client).await?;
        let ready = fleet.ready(release.version, &served.down, self.steady, self.clock.now());
        Ok(Arrival { fleet, ready, preboot: self.preboot_until(client, release).await? })
    }

    /// Until when old dynos, which no list shows, serve beside a release's own. Heroku switches the traffic three minutes
    /// after the boot (Dev Center, "Preboot").
    pub(crate) async fn preboot_until(&self, client: &Client, release: &Release) -> Result<Option<Timestamp>> {
        let since = release.created_at.max(release.updated_at);
        let until = since.checked_add(signed(self.preboot)).unwrap_or(since);
        if self.clock.now() >= until || !self.has_preboot(client).await? {
            return Ok(None);
        }
        Ok(Some(until))
    }

    pub(crate) async fn has_preboot(&self, client: &Client) -> Result<bool> {
        match client.get::<Feature>(&self.path("/features/preboot")).await {
            Ok(feature) => Ok(feature.enabled),
            // Apps of the generation Fir, and in Private Spaces, do not have it.
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Config vars by key. The values stay in memory and are compared, never kept or told.
    async fn config(&self, client: &Client, of: &str) -> Result<BTreeMap<String, Value>> {
        client.get(&self.path(&format!("{of}/config-vars"))).await
    }

    /// The config vars that came since, and go away with the full rollback that is due. It is for the report alone, so the
    /// rollback waits for it no longer than a moment.
    pub(crate) async fn taken_away(&self, client: &Client, served: &Served) -> Vec<Note> {
        let Some(keys) = &served.config_keys else { return Vec::new() };
        let Ok(Ok(now)) = tokio::time::timeout(Duration::from_secs(2), self.config(client, "")).await else {
            return Vec::new();
        };
        let came = now.keys().filter(|key| !keys.contains(*key));
        came.map(|key| Note::new(format!("the config var {key}, which is newer than the baseline, goes away")))
            .collect()
    }

    /// What serves, complete enough to bring it back.
    pub(crate) async fn served(&self) -> Result<Served> {
        let (history, fleet) = tokio::try_join!(self.history(&self.client), self.fleet(&self.client))?;
        let Some(current) = history.current() else {
            let why = format!("app {} has no release that is current and succeeded; deploy it once by hand", self.name);
            return Err(Error::new(ErrorKind::Unsupported, why));
        };
        if let Some(pending) = history.pending() {
            let why =
                format!("app {} is between v{} and v{}, which is pending", self.name, current.version, pending.version);
            return Err(Error::new(ErrorKind::Mixed, why));
        }
        let versions = fleet.versions();
        if let Some(other) = versions.iter().find(|version| **version != current.version) {
            let names = fleet.dynos().iter().filter(|dyno| crate::fleet::version(dyno) == *other);
            let names: Vec<&str> = names.map(|dyno| dyno.name.as_str()).collect();
            let why =
                format!("app {} is at v{}, and {} still at v{other}", self.name, current.version, names.join(", "));
            return Err(Error::new(ErrorKind::Mixed, why));
        }
        if let Some(until) = self.preboot_until(&self.client, current).await? {
            let v = current.version;
            let why =
                format!("app {} is at v{v}, and dynos from before may serve until {until}: preboot is on", self.name);
            return Err(Error::new(ErrorKind::Mixed, why));
        }
        let config_keys = match self.config(&self.client, "").await {
            Ok(config) => Some(config.into_keys().collect()),
            Err(e) if e.kind() == ErrorKind::Denied => None,
            Err(e) => return Err(e),
        };
        let code = history.code(current);
        Ok(Served {
            release: current.id.clone(),
            version: current.version,
            slug: current.slug.as_ref().map(|slug| slug.id.clone()),
            code,
            config_keys,
            addons: current.addon_plan_names.clone(),
            down: fleet.down(),
        })
    }

    /// Whether the way back to what serves is open, and what it would not bring back.
    pub(crate) async fn prove_way_back(&self, served: &Served, plan: &Plan) -> Result<Readiness> {
        let (app, history, fleet) = tokio::try_join!(self.app(), self.history(&self.client), self.fleet(&self.client))?;
        let mut ready = Readiness::default().proved(format!("app {} can be read", app.name));
        let current = history.current().map(|release| release.version);
        if current != Some(served.version) {
            let now = current.map_or_else(|| "nothing".to_owned(), |version| format!("v{version}"));
            ready = ready.refused(format!(
                "v{} was recorded as the baseline, and {now} is current now; begin again",
                served.version
            ));
        }
        if let Some(pending) = history.pending() {
            ready = ready.refused(format!("release {} is under way; wait for it", crate::history::told(pending)));
        }
        if app.maintenance && !self.maintenance {
            ready = ready.refused(format!(
                "app {} is in maintenance mode, so users see nothing of the candidate; switch it off, or allow it",
                app.name
            ));
        }
        if fleet.is_empty() && !self.no_dynos {
            ready = ready.refused(format!(
                "app {} has no dynos, so nothing would show whether the candidate runs; scale it up, or allow it",
                app.name
            ));
        }
        ready = ready.and(self.prove_release(served, &history, &app, plan.deadlines()).await?);
        ready = ready.and(self.prove_token(&app).await?);
        if self.has_preboot(&self.client).await? {
            let minutes = self.preboot.as_secs().div_ceil(60);
            ready =
                ready.not_restored(format!("preboot is on: going back takes {minutes} more minutes to reach users"));
        }
        for what in ["what the candidate wrote to databases, and its migrations", "add-ons, the formation and domains"]
        {
            ready = ready.not_restored(what);
        }
        if self.way == Way::CodeOnly {
            ready = ready.not_restored("config vars, by choice: the way back is code only");
        }
        Ok(ready)
    }

    /// Whether the recorded release can be released again.
    async fn prove_release(
        &self,
        served: &Served,
        history: &History,
        app: &App,
        deadlines: &Deadlines,
    ) -> Result<Readiness> {
        let mut ready = Readiness::default();
        let version = served.version;
        if let Some(slug) = &served.slug {
            ready = match self.slug(slug).await? {
                Ok(found) => {
                    let mut ready = ready.proved(format!("the slug of v{version} is there"));
                    if found.process_types.contains_key("release") {
                        ready = ready
                            .not_restored("the release phase of the old code runs again on the way back, and may fail");
                        let (shift, back) = (deadlines.shift, deadlines.roll_back);
                        if shift < PHASE || back < 2 * PHASE {
                            ready = ready.not_provable(format!(
                                "whether release phases end in time: each may take an hour, a rollback waits for the \
                                 candidate's before its own, and the plan gives a shift {} and a rollback {} minutes",
                                shift.as_secs() / 60,
                                back.as_secs() / 60
                            ));
                        }
                    }
                    ready
                }
                Err(why) => ready.no_way_back(format!("the slug of v{version} {why}")),
            };
        } else if self.way == Way::CodeOnly {
            let what = if app.is_container() { "a container app" } else { "an app without slugs" };
            return Ok(
                ready.no_way_back(format!("{} is {what}: only a full rollback can bring v{version} back", app.name))
            );
        }
        if self.way == Way::Full {
            let eligible = history.find(version).and_then(|release| release.eligible_for_rollback);
            ready = match eligible {
                Some(true) => ready.proved(format!("v{version} is eligible for rollback")),
                Some(false) => ready.no_way_back(format!("Heroku says that v{version} is not eligible for rollback")),
                None => ready.not_provable(format!("Heroku does not say whether v{version} is eligible for rollback")),
            };
            ready = ready.and(self.prove_config(&served.release, version).await?);
        }
        Ok(ready)
    }

    /// A full rollback puts the release's config vars in place of today's: which keys would that change?
    pub(crate) async fn prove_config(&self, release: &str, version: u64) -> Result<Readiness> {
        let then = format!("/releases/{release}");
        let (now, then) = match tokio::try_join!(self.config(&self.client, ""), self.config(&self.client, &then)) {
            Ok(both) => both,
            Err(e) if e.kind() == ErrorKind::Denied => {
                let why = format!("whether going back to v{version} changes config vars: the token may not read them");
                return Ok(Readiness::default().not_provable(why));
            }
            Err(e) => return Err(e),
        };
        let changed: Vec<&str> =
            now.iter().filter(|(key, value)| then.get(*key) != Some(*value)).map(|(key, _)| key.as_str()).collect();
        if changed.is_empty() {
            return Ok(Readiness::default().proved(format!("a rollback to v{version} strips no config var")));
        }
        Ok(Readiness::default().no_way_back(format!(
            "a full rollback to v{version} would strip or stale the config vars {}; go back by code only, or make a release \
             that has them",
            changed.join(", ")
        )))
    }

    /// The slug, or why there is none.
    pub(crate) async fn slug(&self, id: &str) -> Result<Result<Slug, String>> {
        match self.client.get::<Slug>(&self.path(&format!("/slugs/{id}"))).await {
            Ok(slug) => Ok(match slug.deleted_at {
                Some(at) => Err(format!("was deleted by Heroku at {at}")),
                None => Ok(slug),
            }),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(Err(format!("is no slug of app {}", self.name))),
            Err(e) => Err(e),
        }
    }

    async fn prove_token(&self, app: &App) -> Result<Readiness> {
        let unsure = "whether this token may release: Heroku has no dry run";
        let account: crate::api::Account = self.client.get("/account").await?;
        if app.owner.as_ref().is_some_and(|owner| owner.id == account.id) {
            return Ok(Readiness::default().proved("the token's account owns the app").not_provable(unsure));
        }
        let path = self.path(&format!("/collaborators/{}", account.id));
        Ok(match self.client.get::<Collaborator>(&path).await {
            Ok(it) if it.permissions.is_empty() => Readiness::default().not_provable(unsure),
            Ok(it) if it.permissions.iter().any(|permission| permission.name == "deploy") => {
                let role = it.role.unwrap_or_else(|| "collaborator".into());
                Readiness::default().proved(format!("the token's account may deploy, as {role}")).not_provable(unsure)
            }
            Ok(it) => Readiness::default().refused(format!(
                "the account {} lacks the permission deploy on app {}; let its owner give it",
                it.user.email, app.name
            )),
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::Denied) => {
                Readiness::default().not_provable(unsure)
            }
            Err(e) => return Err(e),
        })
    }

    /// Until when a shift that begins now may ask for the candidate. The engine takes an unanswered request as never to
    /// land when the settle time is over: it would ask once more, or have gone back already. It begins a shift in the first
    /// quarter of that time; the second is the shift's, and the rest is left for the request to land.
    pub(crate) fn asks_until(&self) -> Until {
        Until(Instant::now() + self.settle / 4)
    }

    /// Releases the slug with today's config vars.
    pub(crate) async fn release_slug(&self, client: &Client, slug: &str, what: &str, attempt: &Attempt) -> Result<()> {
        let body = json!({ "slug": slug, "description": describe(what, &attempt.nonce) });
        let _: Release = client.post(&self.path("/releases"), &body).await?;
        Ok(())
    }

    /// Heroku's rollback: takes nothing but the release, so it cannot carry a nonce.
    pub(crate) async fn restore(&self, client: &Client, release: &str) -> Result<()> {
        let _: Release = client.post(&self.path("/releases"), &json!({ "release": release })).await?;
        Ok(())
    }

    pub(crate) async fn go_back(&self, client: &Client, way: Way, served: &Served, attempt: &Attempt) -> Result<()> {
        match (way, &served.slug) {
            (Way::CodeOnly, Some(slug)) => {
                self.release_slug(client, slug, &format!("Back to v{}", served.version), attempt).await
            }
            _ => self.restore(client, &served.release).await,
        }
    }
}

/// A candidate is not asked for later than this. It is no time of a clock, which somebody may set.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Until(Instant);

impl Until {
    pub(crate) fn check(self) -> Result<()> {
        if Instant::now() < self.0 {
            return Ok(());
        }
        let why = "it took too long to find out whether the candidate may be asked for; nothing was asked for";
        Err(Error::new(ErrorKind::Conflict, why))
    }
}

/// What a look sees of one app.
pub(crate) struct Sight<'a, D> {
    pub(crate) stand: Stand<'a, D>,
    pub(crate) arrival: Option<Arrival>,
}

impl<'a, D> Sight<'a, D> {
    pub(crate) async fn of(site: &Site, client: &Client, stand: Stand<'a, D>, served: &Served) -> Result<Self> {
        let arrival = match &stand {
            Stand::Serves(release) => Some(site.arrival(client, release, served).await?),
            _ => None,
        };
        Ok(Self { stand, arrival })
    }

    /// As the engine hears it. `due` names the effect.
    pub(crate) fn observed(
        &self,
        lineage: &Lineage<'_>,
        forward: bool,
        app: Option<&str>,
        due: impl FnOnce(&D) -> Note,
    ) -> Observed {
        let whole = if forward { Weight::ALL } else { Weight::NONE };
        let version = version_of(&[(app, lineage.history.version())]);
        let serves = |version| lineage.serves(version);
        let current = lineage.history.current().map(|release| match lineage.serves(release.version) {
            rollback_core::model::Serves::Candidate => Weight::ALL,
            _ => Weight::NONE,
        });
        let mut weight = current;
        let mut parts = Vec::new();
        let progress = match (&self.stand, &self.arrival) {
            (Stand::Due(what), _) => Progress::Due(due(what)),
            (Stand::Underway(what), _) => Progress::Underway(what.clone()),
            (Stand::Failed(why), _) => Progress::Failed(why.clone()),
            (Stand::Drifted(what), _) => Progress::Drifted(what.clone()),
            (Stand::Serves(_), None) => Progress::Underway(Note::new("the dynos were not looked at")),
            (Stand::Serves(release), Some(arrival)) => {
                parts = arrival.fleet.parts(app, serves);
                // Old dynos that serve unlisted have all the traffic, whatever the listed ones do.
                let before = Some(if forward { Weight::NONE } else { Weight::ALL });
                weight = match arrival.preboot {
                    Some(_) => before,
                    None => arrival.fleet.weight(serves).or(current),
                };
                match (&arrival.ready, arrival.preboot) {
                    (Ready::Down(why), _) if forward => Progress::Failed(why.clone()),
                    (Ready::Down(why) | Ready::Waiting(why), _) => Progress::Underway(why.clone()),
                    (Ready::Steady, Some(until)) => {
                        let v = release.version;
                        Progress::Underway(Note::new(format!(
                            "preboot: dynos from before v{v} may serve until {until}"
                        )))
                    }
                    (Ready::Steady, None) => {
                        weight = Some(whole);
                        Progress::Reached
                    }
                }
            }
        };
        let mut look = Observed::new(progress, version).parts(parts);
        look.weight = weight;
        look
    }
}

/// A target's version: the newest release of each app.
pub(crate) fn version_of(apps: &[(Option<&str>, u64)]) -> Version {
    let text: Vec<String> = apps
        .iter()
        .map(|(app, version)| match app {
            Some(app) => format!("{app}=v{version}"),
            None => format!("v{version}"),
        })
        .collect();
    Version::try_from(text.join(" ")).expect("names of apps are short, and there are few of them")
}

/// The version of this app in a target's version.
pub(crate) fn version_in(version: &Version, app: Option<&str>) -> u64 {
    let of_app = version.as_str().split(' ').find_map(|part| match (app, part.split_once('=')) {
        (Some(app), Some((name, version))) if name == app => Some(version),
        (None, None) => Some(part),
        _ => None,
    });
    of_app.and_then(|version| version.strip_prefix('v')?.parse().ok()).unwrap_or(u64::MAX)
}

/// Builds that this rollout asked for, newest first.
pub(crate) fn ours<'a>(builds: &'a [Build], rollout: &RolloutId) -> impl Iterator<Item = &'a Build> {
    let rollout = rollout.as_str().to_owned();
    builds
        .iter()
        .filter(move |build| build_nonce(build).and_then(crate::history::tagged).is_some_and(|(of, _)| of == rollout))
}

pub(crate) fn build_nonce(build: &Build) -> Option<&str> {
    build.source_blob.version_description.as_deref().and_then(tag)
}

/// How the candidate's release is known.
pub(crate) fn built_trail(builds: &[Build], rollout: &RolloutId) -> Trail {
    Trail::Built(ours(builds, rollout).filter_map(|build| Some(build.release.as_ref()?.id.clone())).collect())
}

/// Releases, and builds, that a look reads: more than a rollout makes.
const PAGE: usize = 25;
/// What Heroku gives a release phase (Dev Center, "Release Phase").
const PHASE: Duration = Duration::from_secs(3600);
