//! **Write your own backend**, by example: this is all that a platform needs to be deployed to with rollback.
//!
//! A backend answers two questions, *what is in front of users?* and *how far is that from this goal?*, and does one
//! thing: the one effect that is due. It keeps no state; the engine may be another process by the next call.

use async_trait::async_trait;
use rollback_core::{
    Error, ErrorKind, Result,
    backend::{Capabilities, DeploymentBackend, Readiness},
    model::{Attempt, Change, Goal, Observed, Part, Progress, Revision, Serves, Version, Weight},
    plan::Plan,
};

use crate::{
    admin::{Admin, Instance, Seen, Split},
    service::Build,
};

/// Deploys to a [`router`](crate::router).
#[derive(Clone, Debug)]
pub struct Proxy {
    admin: Admin,
}

impl Proxy {
    /// The router with this admin port.
    pub const fn new(admin: Admin) -> Self {
        Self { admin }
    }
}

/// A build as a revision. What it takes to bring it back goes into the sealed spec, which no log shows.
///
/// # Errors
/// When the release has no name that a revision may have.
pub fn revision(build: &Build) -> Result<Revision> {
    Revision::new(&build.release)?.with_spec(build)
}

#[async_trait]
impl DeploymentBackend for Proxy {
    // Static facts: any weight; versions are checked; the baseline stands until the promotion; it can be held.
    fn capabilities(&self) -> Capabilities {
        Capabilities::full()
    }

    // The baseline is read off the target, never assumed. Two releases at once are none: say so, and which.
    async fn baseline(&self) -> Result<Revision> {
        let split = self.admin.look().await?.split;
        match split.canary {
            None => revision(&split.stable),
            Some(_) => Err(Error::new(ErrorKind::Mixed, format!("the router serves {split}"))),
        }
    }

    // Prove what can be proved without touching anything, and name what cannot.
    async fn preflight(&self, change: &Change, _: &Plan) -> Result<Readiness> {
        let Pair { baseline, candidate } = Pair::of(change)?;
        let (old, new) = (&baseline.release, &candidate.release);
        let ready = Readiness::default().not_provable(format!("that {new} starts"));
        Ok(match self.admin.look().await?.instance(&baseline) {
            Instance::Up(_) => ready.proved(format!("{old} is up, and stays up until {new} has all traffic")),
            _ => ready.no_way_back(format!("{old} is not up; start it first")),
        })
    }

    // A look has no effects. It hands out the version that the next shift spends.
    async fn observe<'a>(&self, change: &Change, goal: Goal, last: Option<&'a Attempt>) -> Result<Observed> {
        let (pair, seen) = (Pair::of(change)?, self.admin.look().await?);
        let (progress, _) = pair.next(goal, &seen);
        let (share, serves) = match pair.share(&seen.split) {
            Some(0) => (Some(Weight::NONE), Serves::Baseline),
            Some(100) => (Some(Weight::ALL), Serves::Candidate),
            Some(share) => (Some(Weight::try_from(share)?), Serves::Both),
            None => (None, Serves::Other),
        };
        let mut look = Observed::new(progress, Version::try_from(seen.version.to_string())?);
        look.weight = share;
        // Our mark is on the target: the last attempt was carried out, even if its answer was lost.
        look.landed = last.is_some_and(|last| seen.split.nonce.as_deref() == Some(last.nonce.as_str()));
        Ok(look.parts(vec![Part::new("router", serves)]))
    }

    // One effect, on the attempt's version and under the attempt's nonce. Where nothing is due the engine only wants the
    // version spent, so that no late call can use it: what stands is asked for again.
    async fn shift(&self, change: &Change, goal: Goal, attempt: &Attempt) -> Result<()> {
        let (_, split) = Pair::of(change)?.next(goal, &self.admin.look().await?);
        let nonce = Some(attempt.nonce.as_str().into());
        self.admin.put(&Split { nonce, ..split }, attempt.version.as_str()).await
    }
}

/// A change in the platform's own words.
struct Pair {
    baseline: Build,
    candidate: Build,
}

impl Pair {
    fn of(change: &Change) -> Result<Self> {
        Ok(Self { baseline: change.baseline.spec.open()?, candidate: change.candidate.spec.open()? })
    }

    /// How far it is to the goal, and the split one effect closer to it. The way is the same for every goal, there and
    /// back: both releases stand, the traffic moves, what is left over is cleared.
    fn next(&self, goal: Goal, seen: &Seen) -> (Progress, Split) {
        let (old, new, now) = (&self.baseline, &self.candidate, seen.split.clone());
        let Some(share) = self.share(&now) else {
            return (Progress::Drifted(format!("the router serves {now}").into()), now);
        };
        let (want, gains, end) = match goal {
            Goal::Split(weight) => (weight.percent(), new, None),
            Goal::Candidate => (100, new, Some(Split::alone(new.clone()))),
            Goal::Baseline => (0, old, Some(Split::alone(old.clone()))),
        };
        let both = |weight| Split { stable: old.clone(), canary: Some(new.clone()), weight, nonce: None };
        let due = |effect: String, split| (Progress::Due(effect.into()), split);
        let alone = now.canary.is_none();
        if alone && end.as_ref().is_none_or(|end| end.stable != now.stable) {
            let absent = if share == 0 { new } else { old };
            return due(format!("start {}", absent.release), both(share));
        }
        // Only who gains the traffic must be up. Going back that is the baseline: the candidate holds up nothing.
        match seen.instance(gains) {
            Instance::Up(_) => {}
            Instance::Starting => return (Progress::Underway(format!("{} is starting", gains.release).into()), now),
            Instance::Down(_) if goal == Goal::Baseline => return due(format!("start {} again", old.release), now),
            Instance::Down(why) => return (Progress::Failed(format!("{} ended: {why}", new.release).into()), now),
        }
        match end {
            _ if share != want => due(format!("give {} {want} % of the traffic", new.release), both(want)),
            Some(end) if !alone => due(format!("leave {} alone", end.stable.release), end),
            _ => (Progress::Reached, now),
        }
    }

    /// The candidate's share of the traffic; none when the router serves something else than this change.
    fn share(&self, split: &Split) -> Option<u8> {
        match (&split.stable, &split.canary) {
            (stable, None) if *stable == self.baseline => Some(0),
            (stable, None) if *stable == self.candidate => Some(100),
            (stable, Some(new)) if *stable == self.baseline && *new == self.candidate => Some(split.weight),
            _ => None,
        }
    }
}
