//! What Heroku knows: apps, slugs, releases, builds, dynos, and how time moves them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use rollback_core::{clock::Clock as _, testing::clock::TestClock};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::{Exchange, Fault, Run, Slug, Token, Traffic};
use crate::candidate::hex;

pub(super) struct World {
    pub(super) clock: TestClock,
    pub(super) base: String,
    pub(super) apps: BTreeMap<String, App>,
    pub(super) slugs: BTreeMap<String, SlugState>,
    pub(super) promotions: Vec<Promotion>,
    pub(super) blobs: BTreeMap<String, Vec<u8>>,
    pub(super) lag: Duration,
    pub(super) boot: Duration,
    pub(super) builds_take: Duration,
    pub(super) answers_take: Duration,
    pub(super) uploads_take: Duration,
    pub(super) page: usize,
    pub(super) token: Token,
    pub(super) budget: (f64, Timestamp),
    pub(super) faults: BTreeMap<usize, Fault>,
    pub(super) failing_reads: usize,
    pub(super) effects: usize,
    pub(super) metrics: bool,
    pub(super) corrupt: Option<(String, String, Value)>,
    pub(super) exchanges: Vec<Exchange>,
    pub(super) violations: Vec<String>,
    pub(super) ids: u64,
}

pub(super) struct App {
    pub(super) id: String,
    pub(super) name: String,
    pub(super) created: Timestamp,
    pub(super) stack: &'static str,
    pub(super) fir: bool,
    pub(super) maintenance: bool,
    pub(super) preboot: bool,
    /// None when the account owns it.
    pub(super) permissions: Option<Vec<String>>,
    pub(super) config: BTreeMap<String, String>,
    pub(super) addons: BTreeSet<String>,
    pub(super) formation: BTreeMap<String, u64>,
    pub(super) releases: Vec<Release>,
    pub(super) current: u64,
    /// What served before the current release, and until when.
    pub(super) before: Option<(u64, Timestamp)>,
    pub(super) builds: Vec<Build>,
    pub(super) builds_make: Slug,
    pub(super) dynos: Vec<Dyno>,
    pub(super) phases: VecDeque<bool>,
    pub(super) stage: Option<String>,
    pub(super) refuses_promotions: Option<String>,
    /// What rollbacks put in place instead of what they are asked for.
    pub(super) restores: Option<String>,
    pub(super) traffic: Vec<(Timestamp, Traffic)>,
    pub(super) logs: Vec<(Timestamp, String)>,
}

pub(super) struct SlugState {
    pub(super) app: String,
    pub(super) slug: Slug,
    pub(super) created: Timestamp,
    pub(super) deleted: Option<Timestamp>,
    pub(super) commit: Option<String>,
}

#[derive(Clone)]
pub(super) struct Release {
    pub(super) id: String,
    pub(super) version: u64,
    pub(super) status: &'static str,
    pub(super) description: String,
    pub(super) slug: Option<String>,
    pub(super) image: Option<String>,
    pub(super) config: BTreeMap<String, String>,
    pub(super) addons: BTreeSet<String>,
    pub(super) user: &'static str,
    pub(super) eligible: bool,
    pub(super) created: Timestamp,
    pub(super) updated: Timestamp,
    /// When it ends, and how.
    pub(super) ends: Option<(Timestamp, bool)>,
}

pub(super) struct Build {
    pub(super) id: String,
    pub(super) status: &'static str,
    pub(super) url: String,
    pub(super) checksum: Option<String>,
    pub(super) version: Option<String>,
    pub(super) version_description: Option<String>,
    pub(super) slug: Option<String>,
    pub(super) release: Option<String>,
    pub(super) created: Timestamp,
    pub(super) updated: Timestamp,
    pub(super) ends: Option<Timestamp>,
}

pub(super) struct Dyno {
    pub(super) id: String,
    pub(super) kind: String,
    pub(super) number: u64,
    pub(super) version: u64,
    pub(super) started: Timestamp,
    pub(super) run: Run,
    /// How long it takes to come up.
    pub(super) boot: Duration,
}

pub(super) struct Promotion {
    pub(super) id: String,
    pub(super) app: String,
    pub(super) release: String,
    pub(super) created: Timestamp,
    pub(super) targets: Vec<Target>,
}

pub(super) struct Target {
    pub(super) id: String,
    pub(super) app: String,
    pub(super) release: Option<String>,
    pub(super) refused: Option<String>,
}

pub(super) const US: &str = "deployer@example.com";
pub(super) const SOMEBODY: &str = "bo@example.com";
pub(super) const BOOT: Duration = Duration::from_secs(8);
pub(super) const BUILD: Duration = Duration::from_secs(40);
const PREBOOT: Duration = Duration::from_secs(180);
const BUDGET: f64 = 4500.0;

impl World {
    pub(super) fn new() -> Self {
        let clock = TestClock::new();
        let now = clock.now();
        Self {
            clock,
            base: "https://blobs.example".into(),
            apps: BTreeMap::new(),
            slugs: BTreeMap::new(),
            promotions: Vec::new(),
            blobs: BTreeMap::new(),
            lag: Duration::ZERO,
            boot: BOOT,
            builds_take: BUILD,
            answers_take: Duration::ZERO,
            uploads_take: Duration::ZERO,
            page: 1000,
            token: Token::Good,
            budget: (BUDGET, now),
            faults: BTreeMap::new(),
            failing_reads: 0,
            effects: 0,
            metrics: true,
            corrupt: None,
            exchanges: Vec::new(),
            violations: Vec::new(),
            ids: 0,
        }
    }

    pub(super) fn clear(&mut self) {
        let clock = self.clock.clone();
        let violations = std::mem::take(&mut self.violations);
        let budget = (BUDGET, clock.now());
        *self = Self { clock, violations, budget, ..Self::new() };
    }

    pub(super) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Ids are counted, so that equal runs look alike.
    pub(super) fn id(&mut self) -> String {
        self.ids += 1;
        format!("{:08x}-0000-4000-8000-{:012x}", self.ids, self.ids)
    }

    pub(super) fn app_mut(&mut self, name: &str) -> &mut App {
        self.find_app(name).unwrap_or_else(|| panic!("there is no app {name}"))
    }

    /// By name or id.
    pub(super) fn find_app(&mut self, name: &str) -> Option<&mut App> {
        self.apps.values_mut().find(|app| app.name == name || app.id == name)
    }

    pub(super) fn release_mut(&mut self, app: &str, version: u64) -> &mut Release {
        let app = self.app_mut(app);
        let found = app.releases.iter_mut().find(|release| release.version == version);
        found.unwrap_or_else(|| panic!("there is no v{version}"))
    }

    pub(super) fn add_app(&mut self, name: &str, slug: Slug) -> String {
        let (id, created) = (self.id(), self.now() - SignedDuration::from_hours(48));
        let app = App {
            id,
            name: name.into(),
            created,
            stack: "heroku-24",
            fir: false,
            maintenance: false,
            preboot: false,
            permissions: None,
            config: BTreeMap::from([("DATABASE_URL".into(), "postgres://u:hunter2@db.example/d".into())]),
            addons: BTreeSet::from(["heroku-postgresql:essential-0".into()]),
            formation: BTreeMap::from([("web".into(), 2)]),
            releases: Vec::new(),
            current: 0,
            before: None,
            builds: Vec::new(),
            builds_make: Slug::good(),
            dynos: Vec::new(),
            phases: VecDeque::new(),
            stage: None,
            refuses_promotions: None,
            restores: None,
            traffic: Vec::new(),
            logs: Vec::new(),
        };
        self.apps.insert(name.into(), app);
        let slug = self.add_slug(name, slug);
        // It has run for a day.
        let day = self.now() - SignedDuration::from_hours(24);
        self.release(name, Some(slug.clone()), None, "Deploy 0123abcd".into(), SOMEBODY, day);
        let release = self.release_mut(name, 1);
        release.ends = Some((day, true));
        self.catch_up();
        slug
    }

    pub(super) fn add_slug(&mut self, app: &str, slug: Slug) -> String {
        let (id, created) = (self.id(), self.now());
        let state = SlugState { app: app.into(), slug, created, deleted: None, commit: None };
        self.slugs.insert(id.clone(), state);
        id
    }

    pub(super) fn delete_slug(&mut self, id: &str) {
        let now = self.now();
        self.slugs.get_mut(id).expect("there is no such slug").deleted = Some(now);
    }

    pub(super) fn make_container(&mut self, app: &str, image: &str) {
        let app = self.app_mut(app);
        app.stack = "container";
        for release in &mut app.releases {
            release.slug = None;
            release.image = Some(image.into());
            release.description = format!("Deployed web ({})", &image[..12]);
        }
    }

    pub(super) fn make_fir(&mut self, app: &str) {
        let image = self.id();
        let app = self.app_mut(app);
        (app.stack, app.fir) = ("cnb", true);
        for release in &mut app.releases {
            release.slug = None;
            release.image = Some(format!("oci:{image}"));
        }
    }

    pub(super) fn set_budget(&mut self, requests: u32) {
        self.budget = (f64::from(requests), self.now());
    }

    pub(super) fn set_traffic(&mut self, app: &str, traffic: Traffic) {
        let now = self.now();
        self.app_mut(app).traffic.push((now, traffic));
    }

    pub(super) fn log_line(&mut self, app: &str, line: &str) {
        let now = self.now();
        self.app_mut(app).logs.push((now, line.into()));
    }

    pub(super) fn scale(&mut self, app: &str, kind: &str, quantity: u64) {
        let now = self.now();
        let state = self.app_mut(app);
        state.formation.insert(kind.into(), quantity);
        state.dynos.retain(|dyno| dyno.kind != kind || dyno.number <= quantity);
        let have = state.dynos.iter().filter(|dyno| dyno.kind == kind).count() as u64;
        let version = state.current;
        // Long enough up to count as steady.
        let started = now - SignedDuration::from_mins(10);
        for number in have + 1..=quantity {
            let (id, run, boot) = (self.id(), self.run_of(app, version), self.boot);
            let dyno = Dyno { id, kind: kind.into(), number, version, started, run, boot };
            self.app_mut(app).dynos.push(dyno);
        }
    }

    pub(super) fn set_config(&mut self, app: &str, key: &str, value: Option<&str>, released: bool) {
        let state = self.app_mut(app);
        match value {
            Some(value) => drop(state.config.insert(key.into(), value.into())),
            None => drop(state.config.remove(key)),
        }
        if released {
            self.release_again(app, format!("Set {key} config vars"));
        }
    }

    pub(super) fn add_addon(&mut self, app: &str, plan: &str) {
        let state = self.app_mut(app);
        state.addons.insert(plan.into());
        let key = plan.split([':', '-']).next_back().unwrap_or("ADDON").to_ascii_uppercase() + "_URL";
        state.config.insert(key, "redis://h:hunter2@r.example".into());
        self.release_again(app, format!("Attach {plan}"));
    }

    /// A release of what runs, with today's config.
    fn release_again(&mut self, app: &str, description: String) {
        let now = self.now();
        let current = self.app_mut(app).current;
        let current = self.release_mut(app, current).clone();
        self.release(app, current.slug, current.image, description, SOMEBODY, now);
        self.catch_up();
    }

    pub(super) fn somebody_releases(&mut self, app: &str, slug: &str) {
        let now = self.now();
        self.release(app, Some(slug.into()), None, "Deploy 89abcdef".into(), SOMEBODY, now);
        self.catch_up();
    }

    pub(super) fn somebody_rolls_back(&mut self, app: &str, version: u64) {
        self.restore(app, version, SOMEBODY);
        self.catch_up();
    }

    /// A new release. It is pending while its release phase runs. Its version.
    pub(super) fn release(
        &mut self,
        app: &str,
        slug: Option<String>,
        image: Option<String>,
        description: String,
        user: &'static str,
        now: Timestamp,
    ) -> u64 {
        let id = self.id();
        let phase = slug.as_ref().and_then(|slug| self.slugs[slug].slug.phase);
        let state = self.app_mut(app);
        let version = state.releases.last().map_or(1, |release| release.version + 1);
        let ends = match phase {
            None => (now, true),
            Some(takes) => (now + takes, state.phases.pop_front().unwrap_or(true)),
        };
        let release = Release {
            id,
            version,
            status: "pending",
            description,
            slug,
            image,
            config: state.config.clone(),
            addons: state.addons.clone(),
            user,
            eligible: true,
            created: now,
            updated: now,
            ends: Some(ends),
        };
        state.releases.push(release);
        version
    }

    /// Heroku's rollback: the code and the config vars of an older release, in a new one. Add-ons stay as they are.
    pub(super) fn restore(&mut self, app: &str, version: u64, user: &'static str) -> u64 {
        let now = self.now();
        let old = self.release_mut(app, version).clone();
        let slug = self.app_mut(app).restores.clone().or(old.slug);
        let new = self.release(app, slug, old.image, format!("Rollback to v{version}"), user, now);
        self.release_mut(app, new).config = old.config;
        new
    }

    /// Brings everything to what it is now.
    pub(super) fn catch_up(&mut self) {
        let now = self.now();
        loop {
            let mut due: Option<(Timestamp, String, Due)> = None;
            for app in self.apps.values() {
                let builds = app.builds.iter().enumerate().filter_map(|(at, it)| Some((it.ends?, Due::Build(at))));
                let releases = app.releases.iter().filter_map(|it| Some((it.ends?.0, Due::Release(it.version))));
                for (at, what) in builds.chain(releases) {
                    if at <= now && due.as_ref().is_none_or(|(first, ..)| at < *first) {
                        due = Some((at, app.name.clone(), what));
                    }
                }
            }
            match due {
                Some((at, app, Due::Build(build))) => self.end_build(&app, build, at),
                Some((at, app, Due::Release(version))) => self.end_release(&app, version, at),
                None => break,
            }
        }
    }

    fn end_build(&mut self, app: &str, at: usize, now: Timestamp) {
        let (slug, build) = {
            let state = self.app_mut(app);
            let slug = state.builds_make;
            let build = &mut state.builds[at];
            (build.ends, build.updated) = (None, now);
            (slug, (build.url.clone(), build.checksum.clone(), build.version.clone()))
        };
        let (url, checksum, version) = build;
        let sum = self.blobs.get(&url).map(|blob| format!("SHA256:{}", hex(&Sha256::digest(blob))));
        // A source that is not there, or another than was said.
        if sum.is_none() || checksum.is_some() && checksum != sum {
            self.app_mut(app).builds[at].status = "failed";
            return;
        }
        let made = self.add_slug(app, slug);
        self.slugs.get_mut(&made).expect("just made").commit.clone_from(&version);
        let version = version.unwrap_or_default();
        let short: String = version.chars().take(8).collect();
        let release = self.release(app, Some(made.clone()), None, format!("Deploy {short}"), US, now);
        let release = self.release_mut(app, release).id.clone();
        let build = &mut self.app_mut(app).builds[at];
        (build.status, build.slug, build.release) = ("succeeded", Some(made), Some(release));
    }

    fn end_release(&mut self, app: &str, version: u64, now: Timestamp) {
        let release = self.release_mut(app, version);
        let (_, good) = release.ends.take().expect("it is due");
        release.status = if good { "succeeded" } else { "failed" };
        release.updated = now;
        let config = release.config.clone();
        let state = self.app_mut(app);
        if !good || version < state.current {
            return;
        }
        let preboot = state.preboot.then_some((state.current, now + PREBOOT));
        state.before = preboot.filter(|(before, _)| *before > 0);
        state.current = version;
        state.config = config;
        let run = self.run_of(app, version);
        let formation = self.app_mut(app).formation.clone();
        let mut dynos = Vec::new();
        for (kind, quantity) in formation {
            for number in 1..=quantity {
                let (id, kind, boot) = (self.id(), kind.clone(), self.boot);
                dynos.push(Dyno { id, kind, number, version, started: now, run, boot });
            }
        }
        self.app_mut(app).dynos = dynos;
    }

    fn run_of(&mut self, app: &str, version: u64) -> Run {
        let slug = self.release_mut(app, version).slug.clone();
        slug.map_or(Run::Good, |slug| self.slugs[&slug].slug.run)
    }

    pub(super) fn build(&mut self, app: &str, blob: &Value) -> String {
        let (id, now) = (self.id(), self.now());
        let text = |key: &str| blob[key].as_str().map(ToOwned::to_owned);
        let build = Build {
            id: id.clone(),
            status: "pending",
            url: text("url").unwrap_or_default(),
            checksum: text("checksum"),
            version: text("version"),
            version_description: text("version_description"),
            slug: None,
            release: None,
            created: now,
            updated: now,
            ends: Some(now + self.builds_take),
        };
        self.app_mut(app).builds.push(build);
        id
    }

    pub(super) fn releases(&mut self, app: &str) -> Vec<(u64, String, String, Option<String>)> {
        let releases = self.app_mut(app).releases.iter();
        releases.map(|it| (it.version, it.status.into(), it.description.clone(), it.slug.clone())).collect()
    }

    pub(super) fn serving(&mut self, app: &str) -> u64 {
        let now = self.now();
        let app = self.app_mut(app);
        match app.before {
            Some((before, until)) if now < until => before,
            _ => app.current,
        }
    }

    /// Requests left of the budget, which comes back at 75 a minute.
    pub(super) fn left(&mut self) -> f64 {
        let now = self.now();
        let (left, since) = self.budget;
        let back = now.duration_since(since).as_secs_f64() * 75.0 / 60.0;
        self.budget = ((left + back).min(BUDGET), now);
        self.budget.0
    }
}

enum Due {
    Build(usize),
    Release(u64),
}

impl Dyno {
    /// Its state, and since when.
    pub(super) fn state(&self, now: Timestamp) -> (&'static str, Timestamp) {
        let up = self.started + self.boot;
        match self.run {
            _ if now < up => ("starting", self.started),
            Run::Good => ("up", up),
            Run::CrashAtBoot => ("crashed", up),
            Run::NeverUp => ("starting", self.started),
            Run::CrashAfter(time) if now < up + time => ("up", up),
            Run::CrashAfter(time) => ("crashed", up + time),
            Run::Flap(time) => {
                let cycle = (time + Duration::from_secs(10)).as_secs_f64();
                let cycles = (now.duration_since(up).as_secs_f64() / cycle).floor();
                let begun = up + SignedDuration::from_secs_f64(cycles * cycle);
                if now < begun + time { ("up", begun) } else { ("crashed", begun + time) }
            }
        }
    }
}
