//! The sign that this process lives, and what follows from it: whether it still owns what it drives.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;

/// When this process last told the store that it lives.
///
/// Another process may take a rollout over once our beat has not changed for the lease. So we own what we drive as long
/// as the beats form a chain without a gap of that length, and the save that proved the ownership lies within it. A
/// process that was stopped for an hour finds its chain broken and has to save, and so be refused, before it acts.
#[derive(Debug)]
pub(super) struct Pulse {
    lease: Duration,
    chain: Mutex<Option<Chain>>,
}

#[derive(Clone, Copy, Debug)]
struct Chain {
    since: Instant,
    last: Instant,
    /// The same instant in wall time: a suspended machine stops its monotonic clock.
    wall: Timestamp,
}

impl Pulse {
    pub(super) const fn new(lease: Duration) -> Self {
        Self { lease, chain: Mutex::new(None) }
    }

    pub(super) const fn lease(&self) -> Duration {
        self.lease
    }

    /// How often to beat: five times in a lease, at most once a second.
    pub(super) fn interval(&self) -> Duration {
        (self.lease / 5).min(Duration::from_secs(1))
    }

    /// The store heard a beat that was begun at this instant. Returns whether a new chain begins with it.
    pub(super) fn heard(&self, begun: Instant, wall: Timestamp) -> bool {
        let mut chain = self.lock();
        let goes_on = chain.filter(|old| self.holds(*old, begun, wall));
        let since = goes_on.map_or(begun, |old| old.since);
        *chain = Some(Chain { since, last: begun, wall });
        goes_on.is_none()
    }

    /// Whether our last beat is younger than the lease minus a margin.
    pub(super) fn is_fresh(&self, now: Instant, wall: Timestamp) -> bool {
        self.lock().is_some_and(|chain| self.holds(chain, now, wall))
    }

    /// Whether a save that was begun at `saved` still proves that we own what it saved.
    pub(super) fn proves(&self, saved: Instant, now: Instant, wall: Timestamp) -> bool {
        self.lock().is_some_and(|chain| chain.since <= saved && self.holds(chain, now, wall))
    }

    fn holds(&self, chain: Chain, now: Instant, wall: Timestamp) -> bool {
        let safe = self.lease - self.lease / 4;
        let walled = wall.duration_since(chain.wall);
        now.saturating_duration_since(chain.last) < safe
            && walled < SignedDuration::try_from(safe).unwrap_or(SignedDuration::MAX)
    }

    fn lock(&self) -> MutexGuard<'_, Option<Chain>> {
        self.chain.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(8);

    fn wall(seconds: u64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + seconds as i64).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_save_proves_ownership_only_within_an_unbroken_chain_of_beats() {
        let pulse = Pulse::new(LEASE);
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        assert!(!pulse.is_fresh(at(0), wall(0)), "no beat yet");
        assert!(pulse.heard(at(1), wall(1)), "the first chain");
        assert!(!pulse.proves(at(0), at(2), wall(2)), "saved before the chain began");
        assert!(pulse.proves(at(2), at(3), wall(3)));
        assert!(!pulse.heard(at(5), wall(5)));
        assert!(pulse.proves(at(2), at(10), wall(10)), "the chain goes on");
        assert!(!pulse.proves(at(2), at(11), wall(11)), "6 of 8 seconds after the last beat it ends");
        assert!(pulse.heard(at(20), wall(20)), "a new chain");
        assert!(pulse.is_fresh(at(20), wall(20)));
        assert!(!pulse.proves(at(2), at(20), wall(20)), "a beat after a gap proves nothing about the time before");
    }

    #[tokio::test(start_paused = true)]
    async fn a_suspended_machine_is_noticed_by_its_wall_clock() {
        let pulse = Pulse::new(LEASE);
        let start = Instant::now();
        pulse.heard(start, wall(0));
        assert!(pulse.is_fresh(start, wall(1)));
        assert!(!pulse.is_fresh(start, wall(3600)));
    }
}
