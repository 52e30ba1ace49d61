//! A promotion in a pipeline as a rollout: one pinned release of one app, put on one or more others.

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use rollback_core::{
    Error, ErrorKind, Result, Wake,
    backend::{Capabilities, DeploymentBackend, Readiness, Weights},
    clock::Clock,
    model::{Attempt, Change, Goal, Note, Observed, Progress, Revision, Weight},
    plan::Plan,
};
use serde_json::json;
use tokio::time::Instant;

use crate::{
    App, Client,
    api::{Coupling, PromotionTarget, Ref, Status},
    app::{Wakes, not_ours, not_restored},
    candidate::{Promoted, Served, Spec},
    history::{History, Lineage, Stand, Trail, Way},
    site::{Sight, Site, Until, version_in, version_of},
};

/// A promotion from one app of a pipeline to one or more others, as a target.
///
/// Its revisions are made by [`candidate`](Self::candidate): the release that is current on the source, pinned by its id.
/// It is promoted to all targets with one request, and has arrived when on each of them it is current and every dyno has
/// been up for long enough; "completed", which Heroku says of promotions that failed too, is not asked. When one target fails,
/// those that took it are rolled back, one after the other.
///
/// Promote to a small production app first and to the rest in a second rollout, and you have the canary that Heroku's router
/// cannot give.
///
/// A promotion takes no description. A release on a target is known as this rollout's by its slug, which promotions copy, or
/// by Heroku's words "Promote shop-staging v42". Whoever promotes the same release by hand at the same time cannot be told
/// apart, and wants the same.
///
/// ```no_run
/// # use rollback_heroku::{App, Client, Promotion};
/// let heroku = Client::new(std::env::var("HEROKU_API_KEY")?)?;
/// let to = [App::new(&heroku, "shop-eu")?, App::new(&heroku, "shop-us")?];
/// let promotion = Promotion::new(&heroku, "shop-staging", to)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Promotion {
    client: Client,
    source: Site,
    targets: Box<[Site]>,
    wakes: Wakes,
}

/// One target, as a look sees it.
struct Seen<'a> {
    site: &'a Site,
    served: &'a Served,
    history: History,
}

impl Promotion {
    /// The most targets of one promotion.
    pub const MOST_TARGETS: usize = 16;

    /// From the app of this name to these apps. What is set on them (ways back, times, allowances) holds for each.
    ///
    /// # Errors
    /// `Invalid` when a name is none, there are no targets or more than [`Self::MOST_TARGETS`], one is named twice, or one is
    /// the source.
    pub fn new(client: &Client, from: &str, to: impl IntoIterator<Item = App>) -> Result<Self> {
        let source = Site::new(client, from)?;
        let mut targets: Vec<Site> = to.into_iter().map(|app| app.site).collect();
        targets.sort_by(|a, b| a.name.cmp(&b.name));
        if targets.is_empty() || targets.len() > Self::MOST_TARGETS {
            let count = targets.len();
            return Err(Error::invalid(format!(
                "a promotion to {count} apps; 1 to {} are accepted",
                Self::MOST_TARGETS
            )));
        }
        if let Some(pair) = targets.windows(2).find(|pair| pair[0].name == pair[1].name) {
            return Err(Error::invalid(format!("app {} is named twice", pair[0].name)));
        }
        if targets.iter().any(|target| target.name == from) {
            return Err(Error::invalid(format!("app {from} cannot be promoted to itself")));
        }
        Ok(Self { client: client.clone(), source, targets: targets.into(), wakes: Wakes::default() })
    }

    /// Tells the time by this clock.
    #[must_use]
    pub fn clock(mut self, clock: impl Clock) -> Self {
        let clock: Arc<dyn Clock> = Arc::new(clock);
        for site in &mut self.targets {
            site.clock = Arc::clone(&clock);
        }
        self
    }

    /// The release that is current on the source now, as a revision to promote.
    ///
    /// # Errors
    /// `Unsupported` when no release is current and succeeded there; whatever kept it from looking.
    pub async fn candidate(&self) -> Result<Revision> {
        let app = self.source.app().await?;
        let history = self.source.history(&self.client).await?;
        let Some(current) = history.current() else {
            let why = format!("app {} has no release that is current and succeeded", self.source.name);
            return Err(Error::new(ErrorKind::Unsupported, why));
        };
        let promoted = Promoted {
            app: app.id,
            name: app.name,
            release: current.id.clone(),
            version: current.version,
            code: history.code(current),
        };
        Spec::Promoted(promoted).into_revision()
    }

    /// The rollouts to be woken when a hint comes.
    #[cfg_attr(not(feature = "webhook"), allow(dead_code, reason = "hints come by webhook"))]
    pub(crate) const fn wakes(&self) -> &Wakes {
        &self.wakes
    }

    #[cfg_attr(not(feature = "webhook"), allow(dead_code, reason = "hints come by webhook"))]
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.targets.iter().map(|site| site.name.as_str())
    }

    fn client(&self, goal: Goal) -> Client {
        if goal.is_forward() { self.client.clone() } else { self.client.urgent() }
    }

    async fn see<'a>(&'a self, client: &Client, served: &'a BTreeMap<String, Served>) -> Result<Vec<Seen<'a>>> {
        let mut seen = Vec::with_capacity(self.targets.len());
        for site in &self.targets {
            let Some(served) = served.get(&site.name) else {
                return Err(Error::invalid(format!("the recorded baseline does not know app {}", site.name)));
            };
            let history =
                site.history(client).await.map_err(|e| e.during(format_args!("looking at app {}", site.name)))?;
            seen.push(Seen { site, served, history });
        }
        Ok(seen)
    }

    /// Asks for the promotion, and follows it until each target has a release or is refused one: a target that never gets
    /// one leaves nothing else to be seen.
    async fn promote(&self, client: &Client, what: &Promoted, to: &[&Seen<'_>], until: Until) -> Result<()> {
        let coupling: Coupling = client.get(&self.source.path("/pipeline-couplings")).await?;
        let mut ids = Vec::with_capacity(to.len());
        for seen in to {
            ids.push((seen.site.app().await?.id, seen.site));
        }
        let targets: Vec<_> = ids.iter().map(|(id, _)| json!({ "app": { "id": id } })).collect();
        let body = json!({
            "pipeline": { "id": coupling.pipeline.id },
            "source": { "app": { "id": what.app }, "release": { "id": what.release } },
            "targets": targets,
        });
        until.check()?;
        let promotion: Ref = client.post("/pipeline-promotions", &body).await?;
        let until = Instant::now() + FOLLOW;
        loop {
            let path = format!("/pipeline-promotions/{}/promotion-targets", promotion.id);
            // The promotion was accepted, whatever comes of this look.
            if let Ok(found) = client.all::<PromotionTarget>(&path).await {
                if let Some(error) = refused(&found, &ids) {
                    return Err(error);
                }
                // Every one of them: an empty list is not all of none.
                let told = |id: &String| found.iter().any(|it| it.app.id == *id && it.release.is_some());
                if ids.iter().all(|(id, _)| told(id)) {
                    return Ok(());
                }
            }
            if Instant::now() >= until {
                let why = format!("promotion {} was accepted, and not every target has its release yet", promotion.id);
                return Err(Error::new(ErrorKind::Unavailable, why));
            }
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
    }
}

/// The first target that was refused, by name.
fn refused(found: &[PromotionTarget], ids: &[(String, &Site)]) -> Option<Error> {
    let bad = found.iter().find(|it| it.status == Status::Failed && it.release.is_none())?;
    let name = ids.iter().find(|(id, _)| *id == bad.app.id).map_or(bad.app.id.as_str(), |(_, site)| site.name.as_str());
    let said = bad.error_message.as_deref().unwrap_or("Heroku does not say why");
    Some(Error::invalid(format!("the promotion to app {name} failed: {said}")))
}

fn trail(promoted: &Promoted) -> Trail {
    let words = format!("Promote {} v{}", promoted.name, promoted.version);
    Trail::Code { code: promoted.code.clone(), or_words: Some(words) }
}

impl Seen<'_> {
    fn lineage<'a>(&'a self, change: &'a Change, trail: &'a Trail) -> Lineage<'a> {
        Lineage { history: &self.history, rollout: &change.rollout, baseline: self.served, trail }
    }

    fn name(&self) -> &str {
        &self.site.name
    }
}

fn served(change: &Change) -> Result<BTreeMap<String, Served>> {
    match Spec::of(&change.baseline)? {
        Spec::ServedByAll { apps } => Ok(apps),
        _ => Err(not_ours(&change.baseline)),
    }
}

fn promoted(change: &Change) -> Result<Promoted> {
    match Spec::of(&change.candidate)? {
        Spec::Promoted(promoted) => Ok(promoted),
        _ => Err(not_ours(&change.candidate)),
    }
}

fn version(seen: &[Seen<'_>]) -> rollback_core::model::Version {
    let apps: Vec<_> = seen.iter().map(|it| (Some(it.name()), it.history.version())).collect();
    version_of(&apps)
}

#[async_trait]
impl DeploymentBackend for Promotion {
    fn capabilities(&self) -> Capabilities {
        let settle = self.targets.iter().map(|site| site.settle).max().unwrap_or_default();
        Capabilities { baseline_stands: false, ..Capabilities::full() }
            .weights(Weights::Only([Weight::ALL].into()))
            .unchecked(settle)
    }

    async fn baseline(&self) -> Result<Revision> {
        let mut apps = BTreeMap::new();
        for site in &self.targets {
            let served = site.served().await.map_err(|e| e.during(format_args!("reading app {}", site.name)))?;
            apps.insert(site.name.clone(), served);
        }
        Spec::ServedByAll { apps }.into_revision()
    }

    async fn preflight(&self, change: &Change, plan: &Plan) -> Result<Readiness> {
        let (served, promoted) = (served(change)?, promoted(change)?);
        let mut ready = Readiness::default();
        let history = self.source.history(&self.client).await?;
        ready = match history.find(promoted.version) {
            Some(it) if it.id == promoted.release && it.status == Status::Succeeded => {
                ready.proved(format!("v{} of app {} is there, and succeeded", promoted.version, promoted.name))
            }
            Some(it) if it.id == promoted.release => {
                ready.refused(format!("v{} of app {} has not succeeded", promoted.version, promoted.name))
            }
            _ => ready
                .refused(format!("v{} of app {} is not among its newest releases", promoted.version, promoted.name)),
        };
        let coupling = |site: &Site| {
            let path = site.path("/pipeline-couplings");
            async move {
                match self.client.get::<Coupling>(&path).await {
                    Ok(coupling) => Ok(Some(coupling)),
                    Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
                    Err(e) => Err(e),
                }
            }
        };
        let from = coupling(&self.source).await?;
        if from.is_none() {
            ready = ready.refused(format!("app {} is in no pipeline", self.source.name));
        }
        for site in &self.targets {
            let Some(served) = served.get(&site.name) else { return Err(not_ours(&change.baseline)) };
            ready = match (&from, coupling(site).await?) {
                (Some(from), Some(to)) if from.pipeline.id != to.pipeline.id => {
                    ready.refused(format!("apps {} and {} are in different pipelines", self.source.name, site.name))
                }
                (Some(from), Some(to)) => ready.proved(format!(
                    "a promotion from {} ({}) to {} ({})",
                    self.source.name, from.stage, site.name, to.stage
                )),
                (_, None) => ready.refused(format!("app {} is in no pipeline", site.name)),
                (None, _) => ready,
            };
            let back =
                site.prove_way_back(served, plan).await.map_err(|e| e.during(format_args!("app {}", site.name)))?;
            ready = ready.and(named(&site.name, back));
        }
        Ok(ready)
    }

    async fn observe<'a>(&self, change: &Change, goal: Goal, last: Option<&'a Attempt>) -> Result<Observed> {
        let client = self.client(goal);
        let (served, promoted) = (served(change)?, promoted(change)?);
        let trail = trail(&promoted);
        let seen = self.see(&client, &served).await?;
        let mut looks = Vec::with_capacity(seen.len());
        let mut left = Vec::new();
        for it in &seen {
            let lineage = it.lineage(change, &trail);
            let name = Some(it.name());
            looks.push(if goal.is_forward() {
                let sight = Sight::of(it.site, &client, lineage.forward(), it.served).await?;
                sight.observed(&lineage, true, name, |()| {
                    Note::new(format!("promote {} v{}", promoted.name, promoted.version))
                })
            } else {
                let sight = Sight::of(it.site, &client, lineage.back(it.site.way, it.site.other), it.served).await?;
                let mut notes = not_restored(it.site, it.served, &it.history);
                if matches!(sight.stand, Stand::Due(Way::Full)) {
                    notes.extend(it.site.taken_away(&client, it.served).await);
                }
                left.extend(notes.iter().map(|note| about(it.name(), note)));
                sight.observed(&lineage, false, name, |way| told(it, *way))
            });
        }
        let landed = last.is_some_and(|attempt| {
            let mut landed = seen
                .iter()
                .map(|it| it.lineage(change, &trail).landed(attempt, version_in(&attempt.version, Some(it.name()))));
            // A promotion is for all of them; on the way back each attempt is for one.
            if attempt.goal.is_forward() { landed.all(|landed| landed) } else { landed.any(|landed| landed) }
        });
        let mut look = Observed::new(together(goal.is_forward(), &seen, &looks), version(&seen));
        look.weight = mean(&looks);
        if let (Goal::Split(weight), Progress::Reached) = (goal, &look.progress)
            && weight != Weight::ALL
        {
            look.progress = Progress::Underway(Note::new(format!("a promotion cannot give {weight}")));
        }
        look.parts = looks.into_iter().flat_map(|look| look.parts).collect();
        Ok(look.landed(landed).not_restored(left))
    }

    async fn shift(&self, change: &Change, goal: Goal, attempt: &Attempt) -> Result<()> {
        if let Goal::Split(weight) = goal
            && weight != Weight::ALL
        {
            let why = format!("a promotion cannot give {weight}; only 100 % is possible on Heroku");
            return Err(Error::new(ErrorKind::Unsupported, why));
        }
        let client = self.client(goal);
        let until = self.targets.iter().map(Site::asks_until).max().expect("there is a target");
        let (served, promoted) = (served(change)?, promoted(change)?);
        let trail = trail(&promoted);
        let seen = self.see(&client, &served).await?;
        let now = version(&seen);
        if now != attempt.version {
            let why = format!("the targets are at {now}, and were at {}", attempt.version);
            return Err(Error::new(ErrorKind::Conflict, why));
        }
        let conflict = |it: &Seen<'_>, what: &Note| {
            Error::new(ErrorKind::Conflict, format!("app {} has moved on: {what}", it.name()))
        };
        if goal.is_forward() {
            let mut to = Vec::new();
            for it in &seen {
                match it.lineage(change, &trail).forward() {
                    Stand::Due(()) => to.push(it),
                    Stand::Serves(_) => {}
                    // Those without it may still get it while others are on their way.
                    Stand::Underway(_) if seen.len() > 1 => {}
                    Stand::Underway(what) | Stand::Failed(what) | Stand::Drifted(what) => {
                        return Err(conflict(it, &what));
                    }
                }
            }
            return match to.as_slice() {
                [] => Ok(()),
                to => self.promote(&client, &promoted, to, until).await,
            };
        }
        // One effect: the first app that is due; else what a person, or the author, asked for over what is there.
        let stands: Vec<_> =
            seen.iter().map(|it| (it, it.lineage(change, &trail).back(it.site.way, it.site.other))).collect();
        let due = stands.iter().find_map(|(it, stand)| match stand {
            Stand::Due(way) => Some((*it, *way)),
            _ => None,
        });
        let asked = || {
            let drifted = stands.iter().find(|(_, stand)| matches!(stand, Stand::Drifted(_)));
            let failed = stands.iter().find(|(_, stand)| matches!(stand, Stand::Failed(_)));
            let again = |it: &Site| it.other.unwrap_or(it.way);
            drifted.map(|(it, _)| (*it, it.site.way)).or_else(|| failed.map(|(it, _)| (*it, again(it.site))))
        };
        match due.or_else(asked) {
            Some((it, way)) => it.site.go_back(&client, way, it.served, attempt).await,
            None => Ok(()),
        }
    }

    fn attach(&self, wake: Wake) {
        let mut wakes = self.wakes.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        wakes.retain(|wake| !wake.is_dead());
        wakes.push(wake);
    }
}

/// What the looks at all targets come to. On the way forward the worst counts first. On the way back one app that cannot, or
/// that somebody else has taken, is no reason to leave the others: what can be done is done before it is told.
fn together(forward: bool, seen: &[Seen<'_>], looks: &[Observed]) -> Progress {
    let first = |wanted: &dyn Fn(&Progress) -> Option<&Note>| {
        let mut found = seen.iter().zip(looks).filter_map(|(it, look)| Some((it, wanted(&look.progress)?)));
        found.next().map(|(it, note)| about(it.name(), note))
    };
    let drifted = first(&|it| if let Progress::Drifted(note) = it { Some(note) } else { None });
    let due = first(&|it| if let Progress::Due(note) = it { Some(note) } else { None });
    let failed = first(&|it| if let Progress::Failed(note) = it { Some(note) } else { None });
    let underway = first(&|it| if let Progress::Underway(note) = it { Some(note) } else { None });
    let (drifted, due) = (drifted.map(Progress::Drifted), due.map(Progress::Due));
    let (failed, underway) = (failed.map(Progress::Failed), underway.map(Progress::Underway));
    let worst = if forward { drifted.or(failed).or(due).or(underway) } else { due.or(underway).or(drifted).or(failed) };
    worst.unwrap_or(Progress::Reached)
}

fn mean(looks: &[Observed]) -> Option<Weight> {
    let weights: Option<Vec<u32>> = looks.iter().map(|look| Some(u32::from(look.weight?.percent()))).collect();
    let weights = weights?;
    let mean = weights.iter().sum::<u32>() / u32::try_from(weights.len().max(1)).ok()?;
    Weight::try_from(u8::try_from(mean).ok()?).ok()
}

fn told(it: &Seen<'_>, way: Way) -> Note {
    Note::new(match way {
        Way::Full => format!("roll back to v{}", it.served.version),
        Way::CodeOnly => format!("release the slug of v{} with today's config vars", it.served.version),
    })
}

fn about(app: &str, note: &Note) -> Note {
    Note::new(format!("{app}: {note}"))
}

/// Each note with the app's name before it.
fn named(app: &str, ready: Readiness) -> Readiness {
    let named = |notes: Vec<Note>| notes.iter().map(|note| about(app, note)).collect();
    Readiness {
        proved: named(ready.proved),
        not_provable: named(ready.not_provable),
        refused: named(ready.refused),
        no_way_back: named(ready.no_way_back),
        not_restored: named(ready.not_restored),
    }
}

/// Without credentials.
impl fmt::Debug for Promotion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let to: Vec<&str> = self.targets.iter().map(|site| site.name.as_str()).collect();
        f.debug_struct("Promotion").field("from", &self.source.name).field("to", &to).finish_non_exhaustive()
    }
}

/// How long a shift follows its promotion: less than the engine waits for a shift.
const FOLLOW: Duration = Duration::from_secs(20);
