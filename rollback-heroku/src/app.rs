//! One app as a target: a release as the revision, all traffic at once.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use rollback_core::{
    Error, ErrorKind, Result, Wake,
    backend::{Capabilities, DeploymentBackend, Readiness, Weights},
    clock::Clock,
    model::{Attempt, Change, Goal, Note, Observed, Progress, Revision, Weight},
    plan::Plan,
};
use serde_json::{Value, json};

use crate::{
    Client,
    api::{Build, Release, Status},
    candidate::{From, Served, Spec, load, source_id},
    history::{History, Lineage, Stand, Trail, Way, describe},
    site::{Sight, Site, Until, build_nonce, built_trail, ours, version_in, version_of},
    upload::Uploads,
};

/// A Heroku app as a target.
///
/// Its revisions are made by [`Candidate`](crate::Candidate). The candidate gets all traffic at once, as Heroku's router
/// cannot weigh; a second app, by [`Promotion`](crate::Promotion), is the canary that there is.
///
/// A candidate has arrived when its release is current and each dyno that the formation asks for has been up at that release
/// for [`steady_for`](Self::steady_for); with preboot, when the dynos that serve unlisted are gone as well.
///
/// # What Heroku does not check
/// No request carries a version or an idempotency key. A shift therefore looks once more right before it asks, and after a
/// lost answer nothing is asked again before the releases tell, or the [settle time](Self::settle) is over. What remains is
/// the moment between that look and the request, in which somebody else may release too; the next look calls it drift.
///
/// ```no_run
/// # use rollback_heroku::{App, Client};
/// let heroku = Client::new(std::env::var("HEROKU_API_KEY")?)?;
/// let shop = App::new(&heroku, "shop")?.code_only_if_full_fails();
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct App {
    pub(crate) site: Site,
    wakes: Wakes,
    uploads: Uploads,
}

/// The rollouts that want to be woken.
pub(crate) type Wakes = Arc<Mutex<Vec<Wake>>>;

/// What a look reads of the app.
struct Seen {
    history: History,
    builds: Vec<Build>,
    trail: Trail,
    candidate: Spec,
    baseline: Served,
    /// The candidate's tarball is on its way to where Heroku builds it from.
    uploading: bool,
}

/// What may be due on the way back.
enum Back {
    Way(Way),
    /// This build would release the candidate.
    Cancel(String),
}

impl App {
    /// The app of this name.
    ///
    /// # Errors
    /// `Invalid` when it cannot be a name.
    pub fn new(client: &Client, name: &str) -> Result<Self> {
        Ok(Self { site: Site::new(client, name)?, wakes: Wakes::default(), uploads: Uploads::default() })
    }

    /// Goes back by releasing the baseline's slug with today's config vars, instead of by Heroku's rollback, which brings the
    /// config vars back too. Such a release carries the rollout's name in its description. Not for containers.
    #[must_use]
    pub fn code_only(mut self) -> Self {
        (self.site.way, self.site.other) = (Way::CodeOnly, None);
        self
    }

    /// When a full rollback fails in its release phase, tries once more by code only. Without it the rollout is stuck then.
    #[must_use]
    pub fn code_only_if_full_fails(mut self) -> Self {
        (self.site.way, self.site.other) = (Way::Full, Some(Way::CodeOnly));
        self
    }

    /// How long each dyno must have been up before a release counts as arrived (default 30 seconds).
    #[must_use]
    pub const fn steady_for(mut self, time: Duration) -> Self {
        self.site.steady = time;
        self
    }

    /// How long dynos of the release before may serve unlisted when preboot is on (default 3 minutes).
    #[must_use]
    pub const fn preboot_window(mut self, time: Duration) -> Self {
        self.site.preboot = time;
        self
    }

    /// How long an unanswered request may still land (default 60 seconds: twice what Heroku's router waits).
    #[must_use]
    pub const fn settle(mut self, time: Duration) -> Self {
        self.site.settle = time;
        self
    }

    /// Goes ahead when the formation asks for no dynos. Nothing but the release phase tells then whether the candidate runs.
    #[must_use]
    pub const fn allow_no_dynos(mut self) -> Self {
        self.site.no_dynos = true;
        self
    }

    /// Goes ahead in maintenance mode, in which no user reaches the candidate.
    #[must_use]
    pub const fn allow_maintenance(mut self) -> Self {
        self.site.maintenance = true;
        self
    }

    /// Tells the time by this clock.
    #[must_use]
    pub fn clock(mut self, clock: impl Clock) -> Self {
        self.site.clock = Arc::new(clock);
        self
    }

    /// The app's name.
    pub fn name(&self) -> &str {
        &self.site.name
    }

    /// The rollouts to be woken when a hint comes.
    #[cfg_attr(not(feature = "webhook"), allow(dead_code, reason = "hints come by webhook"))]
    pub(crate) const fn wakes(&self) -> &Wakes {
        &self.wakes
    }

    /// The client for this goal: a rollback may use the reserve.
    fn client(&self, goal: Goal) -> Client {
        if goal.is_forward() { self.site.client.clone() } else { self.site.client.urgent() }
    }

    async fn see(&self, client: &Client, change: &Change) -> Result<Seen> {
        let candidate = Spec::of(&change.candidate)?;
        let Spec::Served(baseline) = Spec::of(&change.baseline)? else { return Err(not_ours(&change.baseline)) };
        let history = self.site.history(client).await?;
        let builds = match &candidate {
            Spec::Source { .. } => self.site.builds(client).await?,
            _ => Vec::new(),
        };
        let trail = match &candidate {
            Spec::Source { .. } => built_trail(&builds, &change.rollout),
            Spec::Image { .. } => Trail::Code { code: change.candidate.id.to_string(), or_words: None },
            Spec::Served(Served { slug: None, version, .. }) => Trail::Restored(*version),
            Spec::Slug { .. } | Spec::Served(_) => Trail::Tagged,
            Spec::Promoted(_) | Spec::ServedByAll { .. } => return Err(not_ours(&change.candidate)),
        };
        let uploading = matches!(
            &candidate,
            Spec::Source { from: From::File(_), sha256, .. } if self.uploads.is_running(sha256)
        );
        Ok(Seen { history, builds, trail, candidate, baseline, uploading })
    }

    async fn release(&self, client: &Client, candidate: &Spec, attempt: &Attempt, until: Until) -> Result<()> {
        let site = &self.site;
        until.check()?;
        match candidate {
            Spec::Slug { slug } | Spec::Served(Served { slug: Some(slug), .. }) => {
                site.release_slug(client, slug, "Deploy", attempt).await
            }
            Spec::Served(served) => site.restore(client, &served.release).await,
            Spec::Source { from, sha256, version } => {
                let url = match from {
                    From::Url(url) => url.clone(),
                    From::File(path) => {
                        self.uploads.bring(client, path, sha256).await?;
                        until.check()?;
                        let taken = || conflict(site, &Note::new("another attempt took the uploaded tarball"));
                        self.uploads.take(sha256).ok_or_else(taken)?
                    }
                };
                let body = json!({ "source_blob": {
                    "url": url,
                    "checksum": format!("SHA256:{sha256}"),
                    "version": version,
                    "version_description": describe("Deploy", &attempt.nonce),
                }});
                let _: Build = client.post(&site.path("/builds"), &body).await?;
                Ok(())
            }
            Spec::Image { images } => {
                let updates: Vec<Value> =
                    images.iter().map(|(kind, id)| json!({ "type": kind, "docker_image": id })).collect();
                let _: Value = client.patch_images(&site.path("/formation"), &json!({ "updates": updates })).await?;
                // The answer does not tell the release, and for an unchanged image there is none.
                Ok(())
            }
            Spec::Promoted(_) | Spec::ServedByAll { .. } => Err(Error::invalid("a promotion is not an app's revision")),
        }
    }

    async fn prove_candidate(&self, candidate: &Revision) -> Result<Readiness> {
        let ready = Readiness::default();
        let app = self.site.app().await?;
        Ok(match Spec::of(candidate)? {
            Spec::Slug { slug } => match self.site.slug(&slug).await? {
                Ok(found) if found.process_types.contains_key("release") => {
                    ready.proved(format!("slug {slug} is there, and has a release phase, which runs before it serves"))
                }
                Ok(_) => ready.proved(format!("slug {slug} is there")),
                Err(why) => ready.refused(format!("slug {slug} {why}; give a slug of this app that still exists")),
            },
            Spec::Served(Served { slug: Some(slug), version, .. }) => match self.site.slug(&slug).await? {
                Ok(_) => ready.proved(format!("the slug of v{version} is there")),
                Err(why) => ready.refused(format!("the slug of v{version} {why}")),
            },
            Spec::Served(served) => self.site.prove_config(&served.release, served.version).await?,
            Spec::Source { from: From::Url(url), .. } => match self.site.client.is_there(&url).await {
                Ok(()) => ready
                    .proved("the source can be read from here")
                    .not_provable("whether it builds, and has the checksum given: Heroku finds out"),
                Err(e) if e.kind() == ErrorKind::Unavailable => {
                    ready.not_provable(format!("whether the source can be read: {}", e.chain()))
                }
                Err(e) => ready.refused(format!("the source cannot be read: {}", e.chain())),
            },
            Spec::Source { from: From::File(path), sha256, .. } => match load(&path, &sha256).await {
                Ok(_) => ready.proved("the tarball is what was planned").not_provable("whether it builds"),
                Err(e) => ready.refused(e.chain()),
            },
            Spec::Image { .. } if app.is_fir() || !app.is_container() => {
                ready.refused(format!("app {} is not of the stack container, and takes no images", app.name))
            }
            Spec::Image { .. } => ready.not_provable("whether the images were pushed to Heroku's registry"),
            Spec::Promoted(_) | Spec::ServedByAll { .. } => return Err(not_ours(candidate)),
        })
    }
}

impl Seen {
    fn lineage<'a>(&'a self, change: &'a Change) -> Lineage<'a> {
        let (history, trail, baseline) = (&self.history, &self.trail, &self.baseline);
        Lineage { history, rollout: &change.rollout, baseline, trail }
    }

    /// The newest build of this rollout.
    fn build(&self, change: &Change) -> Option<&Build> {
        ours(&self.builds, &change.rollout).next()
    }

    fn forward<'a>(&'a self, change: &'a Change) -> Stand<'a, ()> {
        let stand = self.lineage(change).forward();
        match (stand, self.build(change)) {
            (Stand::Due(()), Some(build)) => match build.status {
                Status::Failed => Stand::Failed(Note::new(format!(
                    "build {} failed; see `heroku builds:output {}`",
                    build.id, build.id
                ))),
                Status::Succeeded => Stand::Underway(Note::new(format!("the release of build {}", build.id))),
                _ => Stand::Underway(Note::new(format!("build {}", build.id))),
            },
            (Stand::Due(()), None) if self.uploading => Stand::Underway(Note::new("the upload of the tarball")),
            (stand, _) => stand,
        }
    }

    fn back<'a>(&'a self, site: &Site, change: &'a Change) -> Stand<'a, Back> {
        match (self.lineage(change).back(site.way, site.other), self.build(change)) {
            (Stand::Serves(_), Some(build)) if build.status == Status::Pending => {
                Stand::Due(Back::Cancel(build.id.clone()))
            }
            (Stand::Serves(_), Some(Build { status: Status::Succeeded, release: Some(release), id, .. }))
                if !self.history.has(&release.id) =>
            {
                Stand::Underway(Note::new(format!("the release of build {id}, which cannot be called back")))
            }
            (Stand::Due(way), _) => Stand::Due(Back::Way(way)),
            (Stand::Underway(what), _) => Stand::Underway(what),
            (Stand::Failed(why), _) => Stand::Failed(why),
            (Stand::Drifted(what), _) => Stand::Drifted(what),
            (Stand::Serves(release), _) => Stand::Serves(release),
        }
    }

    fn landed(&self, change: &Change, attempt: &Attempt) -> bool {
        let saw = version_in(&attempt.version, None);
        self.lineage(change).landed(attempt, saw)
            || self.builds.iter().any(|build| build_nonce(build) == Some(attempt.nonce.as_str()))
    }
}

#[async_trait]
impl DeploymentBackend for App {
    fn capabilities(&self) -> Capabilities {
        Capabilities { baseline_stands: false, ..Capabilities::full() }
            .weights(Weights::Only([Weight::ALL].into()))
            .unchecked(self.site.settle)
    }

    async fn baseline(&self) -> Result<Revision> {
        let app = || format!("reading app {}", self.site.name);
        let served = self.site.served().await.map_err(|e| e.during(app()))?;
        let source = match &served.slug {
            Some(slug) => self.source_of(slug).await.map_err(|e| e.during(app()))?,
            None => None,
        };
        Spec::Served(Served { code: source.unwrap_or_else(|| served.code.clone()), ..served }).into_revision()
    }

    async fn preflight(&self, change: &Change, plan: &Plan) -> Result<Readiness> {
        let Spec::Served(served) = Spec::of(&change.baseline)? else { return Err(not_ours(&change.baseline)) };
        let (candidate, back) =
            tokio::try_join!(self.prove_candidate(&change.candidate), self.site.prove_way_back(&served, plan))?;
        Ok(candidate.and(back))
    }

    async fn observe<'a>(&self, change: &Change, goal: Goal, last: Option<&'a Attempt>) -> Result<Observed> {
        let client = self.client(goal);
        let seen = self.see(&client, change).await?;
        let lineage = seen.lineage(change);
        let mut look = if goal.is_forward() {
            let sight = Sight::of(&self.site, &client, seen.forward(change), &seen.baseline).await?;
            sight.observed(&lineage, true, None, |()| Note::new(format!("release {}", change.candidate.id)))
        } else {
            let sight = Sight::of(&self.site, &client, seen.back(&self.site, change), &seen.baseline).await?;
            let look = sight.observed(&lineage, false, None, |back| back.told(&seen.baseline));
            let mut left = not_restored(&self.site, &seen.baseline, &seen.history);
            if matches!(sight.stand, Stand::Due(Back::Way(Way::Full))) {
                left.extend(self.site.taken_away(&client, &seen.baseline).await);
            }
            look.not_restored(left)
        };
        if let (Goal::Split(weight), Progress::Reached) = (goal, &look.progress)
            && weight != Weight::ALL
        {
            look.progress = Progress::Underway(Note::new(format!("Heroku cannot give {weight}")));
        }
        let landed = last.is_some_and(|attempt| seen.landed(change, attempt));
        Ok(look.landed(landed))
    }

    async fn shift(&self, change: &Change, goal: Goal, attempt: &Attempt) -> Result<()> {
        if let Goal::Split(weight) = goal
            && weight != Weight::ALL
        {
            let why = format!("app {} cannot be given {weight}; only 100 % is possible on Heroku", self.site.name);
            return Err(Error::new(ErrorKind::Unsupported, why));
        }
        let (client, until) = (self.client(goal), self.site.asks_until());
        let seen = self.see(&client, change).await?;
        let now = version_of(&[(None, seen.history.version())]);
        if now != attempt.version {
            let why = format!("app {} is at {now}, and was at {}", self.site.name, attempt.version);
            return Err(Error::new(ErrorKind::Conflict, why));
        }
        if goal.is_forward() {
            return match seen.forward(change) {
                Stand::Due(()) => self.release(&client, &seen.candidate, attempt, until).await,
                Stand::Serves(_) => Ok(()),
                Stand::Underway(what) | Stand::Failed(what) | Stand::Drifted(what) => Err(conflict(&self.site, &what)),
            };
        }
        let back = |way| self.site.go_back(&client, way, &seen.baseline, attempt);
        match seen.back(&self.site, change) {
            Stand::Due(Back::Way(way)) => back(way).await,
            Stand::Due(Back::Cancel(build)) => self.cancel(&client, &build).await,
            // Asked for over what is there: after a failed rollback by a person, over drift by the author's wish.
            Stand::Failed(_) => back(self.site.other.unwrap_or(self.site.way)).await,
            Stand::Drifted(_) => back(self.site.way).await,
            Stand::Serves(_) => Ok(()),
            Stand::Underway(what) => Err(conflict(&self.site, &what)),
        }
    }

    fn attach(&self, wake: Wake) {
        let mut wakes = self.wakes.lock().unwrap_or_else(PoisonError::into_inner);
        wakes.retain(|wake| !wake.is_dead());
        wakes.push(wake);
    }
}

impl App {
    /// The source that a slug was built of, where one of our builds made it: what was deployed as a source is known as one.
    async fn source_of(&self, slug: &str) -> Result<Option<String>> {
        let builds = self.site.builds(&self.site.client).await?;
        let build = builds.iter().find(|build| build.slug.as_ref().is_some_and(|made| made.id == slug));
        let checksum = build.filter(|build| build_nonce(build).is_some()).and_then(|build| {
            let checksum = build.source_blob.checksum.as_deref()?;
            Some(source_id(checksum.strip_prefix("SHA256:")?))
        });
        Ok(checksum)
    }

    async fn cancel(&self, client: &Client, build: &str) -> Result<()> {
        let path = self.site.path(&format!("/builds/{build}"));
        let cancelled: Result<Build> = client.delete(&path).await;
        match cancelled {
            Ok(_) => Ok(()),
            // It has ended meanwhile.
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::Invalid) => {
                Err(Error::new(ErrorKind::Conflict, format!("build {build} cannot be cancelled any more")).because(e))
            }
            Err(e) => Err(e),
        }
    }
}

impl Back {
    fn told(&self, baseline: &Served) -> Note {
        Note::new(match self {
            Self::Way(Way::Full) => format!("roll back to v{}", baseline.version),
            Self::Way(Way::CodeOnly) => format!("release the slug of v{} with today's config vars", baseline.version),
            Self::Cancel(build) => format!("cancel build {build}"),
        })
    }
}

/// What the recorded release had, and what is there now, and what no release brings back.
pub(crate) fn not_restored(site: &Site, baseline: &Served, history: &History) -> Vec<Note> {
    let mut notes = vec![
        Note::new("what the candidate wrote to databases, and its migrations"),
        Note::new("add-ons, the formation and domains"),
    ];
    if site.way == Way::CodeOnly {
        notes.push(Note::new("config vars, by choice: the way back is code only"));
    }
    let now: Option<&Release> = history.current();
    for addon in now.into_iter().flat_map(|release| release.addon_plan_names.difference(&baseline.addons)) {
        notes.push(Note::new(format!("the add-on {addon}, which is newer than the baseline, stays")));
    }
    notes
}

fn conflict(site: &Site, what: &Note) -> Error {
    Error::new(ErrorKind::Conflict, format!("app {} has moved on: {what}", site.name))
}

pub(crate) fn not_ours(revision: &Revision) -> Error {
    Error::invalid(format!("revision {} is none of this backend's", revision.id))
}

/// Without credentials.
impl fmt::Debug for App {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("App").field("name", &self.site.name).field("way", &self.site.way).finish_non_exhaustive()
    }
}
