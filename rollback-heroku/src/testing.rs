//! A Platform API in memory, with real state, that keeps to Heroku's public schema: for tests of what you build on this
//! crate.
//!
//! [`Heroku`] is a [`Transport`]: requests reach it without a socket, so tests may pause tokio's time. It can also be
//! [served](Heroku::serve) on loopback, for whole programs. Builds take their time, release phases run and fail, a release
//! becomes current only when it has succeeded, a rollback is a new release with the old config vars, dynos start and crash,
//! and with preboot old dynos serve unlisted.
//!
//! Every request and every answer is checked against the schema, without unknown properties. What breaks it is answered with
//! 500, kept in [`violations`](Heroku::violations), and makes the test panic when its handle is dropped.
//!
//! ```
//! # use rollback_core::backend::DeploymentBackend as _;
//! # use rollback_heroku::{App, testing::{Heroku, Slug}};
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() -> rollback_core::Result<()> {
//! let heroku = Heroku::new();
//! let old = heroku.app("shop", Slug::good());       // v1 runs it on two dynos
//! let shop = App::new(&heroku.client(), "shop")?.clock(heroku.clock());
//! assert_eq!(shop.baseline().await?.id.as_str(), format!("slug:{old}"));
//! # Ok(())
//! # }
//! ```

mod routes;
mod schema;
mod serve;
mod world;

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use rollback_core::{
    Error, ErrorKind, Result,
    testing::clock::TestClock,
    web::reqwest::{Method, Url},
};
use serde_json::Value;

use self::world::World;
use crate::{
    Client,
    client::{Answer, Request, Transport},
};

/// Heroku, in memory. Clones are handles to the same one; dropping one panics when the schema was broken.
#[derive(Clone)]
pub struct Heroku(Wire);

/// The way to it that clients and the socket have. A task that outlives the test may drop the last one, and a panic there
/// would be nobody's: so it is the handles that panic.
#[derive(Clone)]
struct Wire(Arc<Mutex<World>>);

/// What a slug does when it is released.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slug {
    pub(crate) run: Run,
    pub(crate) phase: Option<Duration>,
}

/// What the dynos of a slug do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Run {
    /// Boot, and stay up.
    Good,
    /// Crash instead of booting, and stay crashed.
    CrashAtBoot,
    /// Crash so long after they came up, and stay crashed.
    CrashAfter(Duration),
    /// Come up, crash so long after, and are restarted ten seconds later, for ever.
    Flap(Duration),
    /// Never finish to boot.
    NeverUp,
}

impl Slug {
    /// Its dynos boot and stay up. No release phase.
    pub const fn good() -> Self {
        Self::that(Run::Good)
    }

    /// Its dynos do this. No release phase.
    pub const fn that(run: Run) -> Self {
        Self { run, phase: None }
    }

    /// With a release phase that takes so long. It succeeds, unless [`Heroku::fail_release_phases`] says otherwise.
    #[must_use]
    pub const fn release_phase(mut self, takes: Duration) -> Self {
        self.phase = Some(takes);
        self
    }
}

/// What goes wrong with one request that has an effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It lands, and no answer comes.
    LoseAnswer,
    /// It lands, and the router in front of the API answers 503, in HTML.
    UnavailableAfter,
    /// 503, and nothing has landed.
    UnavailableBefore,
    /// 429, and nothing has landed.
    Throttle,
}

/// What the token may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Token {
    /// Everything.
    Good,
    /// Nothing: it was revoked.
    Revoked,
    /// Nothing without a second factor.
    TwoFactor,
    /// Only read.
    ReadOnly,
}

/// What users see of an app, from the minute on in which it is said.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Traffic {
    /// Answers of 200 to 299 a minute.
    pub ok: f64,
    /// Answers of 500 to 599 a minute.
    pub failed: f64,
    /// Router errors a minute, by code.
    pub errors: Vec<(String, f64)>,
    /// Milliseconds at the 50th, 95th and 99th percentile.
    pub latency: [f64; 3],
}

/// A request that was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exchange {
    /// GET, POST and so on.
    pub method: Method,
    /// Without the query.
    pub path: String,
    /// The status of its answer, lost or not.
    pub status: u16,
    /// When, counted from the making of this Heroku.
    pub at: Duration,
}

impl Heroku {
    /// The token that it accepts.
    pub const TOKEN: &str = "HRKU-0f1e2d3c-not-a-real-token";

    /// One without apps.
    pub fn new() -> Self {
        Self(Wire(Arc::new(Mutex::new(World::new()))))
    }

    /// A client of it, with the token.
    ///
    /// # Panics
    /// Never: the token is good.
    pub fn client(&self) -> Client {
        Client::over(Arc::new(self.0.clone()), Self::TOKEN).expect("the token is good")
    }

    /// The clock that it goes by.
    pub fn clock(&self) -> TestClock {
        self.world().clock.clone()
    }

    /// Everything is gone but the clock and the violations.
    pub fn clear(&self) {
        self.world().clear();
    }

    /// An app with two web dynos that run this slug as v1. The slug's id.
    pub fn app(&self, name: &str, slug: Slug) -> String {
        self.world().add_app(name, slug)
    }

    /// Whether there is an app of this name.
    pub fn has(&self, app: &str) -> bool {
        self.world().find_app(app).is_some()
    }

    /// A slug of this app. Its id.
    pub fn slug(&self, app: &str, slug: Slug) -> String {
        self.world().add_slug(app, slug)
    }

    /// Heroku deletes a slug.
    pub fn delete_slug(&self, id: &str) {
        self.world().delete_slug(id);
    }

    /// What the slugs of builds to come do.
    pub fn builds_make(&self, app: &str, slug: Slug) {
        self.world().app_mut(app).builds_make = slug;
    }

    /// A blob that can be read at this address.
    pub fn blob(&self, url: &str, content: impl Into<Vec<u8>>) {
        self.world().blobs.insert(url.into(), content.into());
    }

    /// How many dynos of this type there should be. They start at once, at the current release.
    pub fn scale(&self, app: &str, process_type: &str, quantity: u64) {
        self.world().scale(app, process_type, quantity);
    }

    /// Switches preboot on or off.
    pub fn preboot(&self, app: &str, on: bool) {
        self.world().app_mut(app).preboot = on;
    }

    /// Switches maintenance mode on or off.
    pub fn maintenance(&self, app: &str, on: bool) {
        self.world().app_mut(app).maintenance = on;
    }

    /// The app is of the stack `container`: its releases have no slug, and say "Deployed web (…)".
    pub fn container(&self, app: &str, image: &str) {
        self.world().make_container(app, image);
    }

    /// The app is of the generation Fir: its releases have no slug, but an image of Cloud Native Buildpacks.
    pub fn fir(&self, app: &str) {
        self.world().make_fir(app);
    }

    /// The token's account does not own the app, and has these permissions.
    pub fn permissions(&self, app: &str, permissions: &[&str]) {
        self.world().app_mut(app).permissions = Some(permissions.iter().map(ToString::to_string).collect());
    }

    /// Somebody sets a config var, which makes a release.
    pub fn set_config(&self, app: &str, key: &str, value: &str) {
        self.world().set_config(app, key, Some(value), true);
    }

    /// A config var changes without a release, as when an add-on replaces its credentials.
    pub fn set_config_quietly(&self, app: &str, key: &str, value: &str) {
        self.world().set_config(app, key, Some(value), false);
    }

    /// Somebody attaches an add-on, which makes a release.
    pub fn add_addon(&self, app: &str, plan: &str) {
        self.world().add_addon(app, plan);
    }

    /// Somebody releases a slug with other tools.
    pub fn somebody_releases(&self, app: &str, slug: &str) {
        self.world().somebody_releases(app, slug);
    }

    /// Somebody goes back to a version with other tools.
    pub fn somebody_rolls_back(&self, app: &str, version: u64) {
        self.world().somebody_rolls_back(app, version);
    }

    /// The release phases to come end so, one after the other; later ones succeed.
    pub fn fail_release_phases(&self, app: &str, succeed: &[bool]) {
        self.world().app_mut(app).phases = succeed.iter().copied().collect();
    }

    /// Rollbacks of this app put this slug in place from now on, whatever they are asked for: a Heroku that is wrong.
    pub fn restores_another(&self, app: &str, slug: &str) {
        self.world().app_mut(app).restores = Some(slug.into());
    }

    /// Says of a release whether it is eligible for rollback.
    pub fn eligible(&self, app: &str, version: u64, eligible: bool) {
        self.world().release_mut(app, version).eligible = eligible;
    }

    /// Couples the app with the pipeline, at this stage.
    pub fn couple(&self, app: &str, stage: &str) {
        self.world().app_mut(app).stage = Some(stage.into());
    }

    /// Promotions to this app fail with this message, and make no release.
    pub fn refuse_promotions(&self, app: &str, message: &str) {
        self.world().app_mut(app).refuses_promotions = Some(message.into());
    }

    /// Dynos to come boot in this time (8 seconds at first), and builds to come take that (40 seconds).
    pub fn takes(&self, boot: Duration, build: Duration) {
        let mut world = self.world();
        (world.boot, world.builds_take) = (boot, build);
    }

    /// Answers take so long, and those to uploads of sources that (no time at first). Not over a socket.
    pub fn answers_take(&self, time: Duration, uploads: Duration) {
        let mut world = self.world();
        (world.answers_take, world.uploads_take) = (time, uploads);
    }

    /// New releases and builds show in lists only after so long.
    pub fn lists_lag(&self, time: Duration) {
        self.world().lag = time;
    }

    /// Lists have pages of this size at most.
    pub fn pages_of(&self, items: usize) {
        self.world().page = items;
    }

    /// So many requests are left of the account's budget.
    pub fn budget(&self, requests: u32) {
        self.world().set_budget(requests);
    }

    /// What the token may do from now on.
    pub fn token(&self, token: Token) {
        self.world().token = token;
    }

    /// The request with an effect of this number, from 0, suffers this.
    pub fn fault(&self, effect: usize, fault: Fault) {
        self.world().faults.insert(effect, fault);
    }

    /// The next so many reads are answered 503, in HTML.
    pub fn fail_reads(&self, count: usize) {
        self.world().failing_reads = count;
    }

    /// How many requests with an effect were made.
    pub fn effects(&self) -> usize {
        self.world().effects
    }

    /// What users see of the app from now on.
    pub fn traffic(&self, app: &str, traffic: Traffic) {
        self.world().set_traffic(app, traffic);
    }

    /// Takes the metrics API away.
    pub fn no_metrics(&self) {
        self.world().metrics = false;
    }

    /// A line of the app's log, written now. It is what follows the time: `heroku[router]: at=error code=H10 …`.
    pub fn log(&self, app: &str, line: &str) {
        self.world().log_line(app, line);
    }

    /// In answers, this property of this kind of resource (`release`, `dyno`, …) has this value from now on: a fake that is
    /// wrong, to see that it is found out.
    pub fn corrupt(&self, resource: &str, property: &str, value: Value) {
        self.world().corrupt = Some((resource.into(), property.into(), value));
    }

    /// The requests so far.
    pub fn exchanges(&self) -> Vec<Exchange> {
        self.world().exchanges.clone()
    }

    /// The releases of an app, oldest first: version, status, description, slug.
    pub fn releases(&self, app: &str) -> Vec<(u64, String, String, Option<String>)> {
        self.world().releases(app)
    }

    /// The version that answers users now, old dynos of a preboot included.
    pub fn serving(&self, app: &str) -> u64 {
        self.world().serving(app)
    }

    /// A config var of the app now.
    pub fn config(&self, app: &str, key: &str) -> Option<String> {
        self.world().app_mut(app).config.get(key).cloned()
    }

    /// What broke the schema, or showed the token to a stranger. Whoever takes it has seen it: no panic follows.
    pub fn violations(&self) -> Vec<String> {
        std::mem::take(&mut self.world().violations)
    }

    /// How many links of the schema there are, and how many of them are of the metrics API.
    pub fn links() -> (usize, usize) {
        schema::SCHEMA.count()
    }

    /// Serves it on loopback until the answer is dropped, and sets its clock by the machine's. The address is for
    /// [`Client::api_url`]. Not while time is paused.
    ///
    /// # Errors
    /// When no port can be had.
    pub async fn serve(&self) -> Result<Serving> {
        serve::serve(self.0.clone()).await
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.0.world()
    }
}

impl Wire {
    fn world(&self) -> MutexGuard<'_, World> {
        let mut world = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        world.catch_up();
        world
    }

    /// The answer, and whether it is lost.
    fn hear(&self, request: &Request) -> (Answer, bool) {
        self.world().hear(request)
    }
}

impl Default for Heroku {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Heroku {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Heroku")
    }
}

impl fmt::Debug for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Heroku")
    }
}

impl Drop for Heroku {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let broken = self.violations();
            assert!(broken.is_empty(), "the schema was broken:\n{}", broken.join("\n"));
        }
    }
}

#[async_trait]
impl Transport for Heroku {
    async fn send(&self, request: Request) -> Result<Answer> {
        self.0.send(request).await
    }
}

#[async_trait]
impl Transport for Wire {
    async fn send(&self, request: Request) -> Result<Answer> {
        // A turn for the others, as a network gives.
        tokio::task::yield_now().await;
        let time = {
            let world = self.world();
            if request.method == Method::PUT { world.uploads_take } else { world.answers_take }
        };
        if !time.is_zero() {
            tokio::time::sleep(time).await;
        }
        match self.hear(&request) {
            (answer, false) => Ok(answer),
            (_, true) => Err(Error::new(ErrorKind::Unavailable, "the connection was cut before an answer came")),
        }
    }
}

/// A Heroku that listens on loopback. Dropping it closes the port.
#[derive(Debug)]
pub struct Serving {
    url: Url,
    task: tokio::task::JoinHandle<()>,
}

impl Serving {
    /// Its address, as `http://127.0.0.1:5000/`.
    pub fn url(&self) -> &str {
        self.url.as_str()
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.task.abort();
    }
}
