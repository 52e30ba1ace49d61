//! The simulator's time.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use aws_smithy_async::time::TimeSource;
use jiff::{SignedDuration, Timestamp};
use rollback_core::clock::Clock;
use tokio::time::Instant;

/// A clock that follows tokio's time, as fast as it is told to, and jumps. Clones are the same clock.
///
/// Under paused time it moves exactly as far as the sleeps do, so an engine that waits and a service that is waited for
/// agree about every minute. It is core's [`Clock`] and the SDK's `TimeSource`.
#[derive(Clone)]
pub struct VirtualClock {
    start: Timestamp,
    began: Instant,
    pace: u32,
    offset: Arc<Mutex<SignedDuration>>,
}

impl VirtualClock {
    /// What a new clock says: 2026-01-01T00:00:00Z.
    pub const START: Timestamp = Timestamp::constant(1_767_225_600, 0);

    /// A clock that says [`Self::START`] now.
    pub fn new() -> Self {
        Self::starting(Self::START)
    }

    /// A clock that says this now, as the machine's own time for a server that others date their requests to.
    pub fn starting(start: Timestamp) -> Self {
        Self { start, began: Instant::now(), pace: 1, offset: Arc::default() }
    }

    /// So many times as fast as tokio's.
    #[must_use]
    pub const fn pace(mut self, pace: u32) -> Self {
        self.pace = pace;
        self
    }

    /// Jumps forward. Jumps add up.
    pub fn advance(&self, by: Duration) {
        let mut offset = self.offset.lock().unwrap_or_else(PoisonError::into_inner);
        *offset = offset.saturating_add(SignedDuration::try_from(by).unwrap_or(SignedDuration::MAX));
    }
}

impl Default for VirtualClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for VirtualClock {
    fn now(&self) -> Timestamp {
        let offset = *self.offset.lock().unwrap_or_else(PoisonError::into_inner);
        let passed = self.began.elapsed().saturating_mul(self.pace);
        let passed = SignedDuration::try_from(passed).unwrap_or(SignedDuration::MAX);
        self.start.saturating_add(passed.saturating_add(offset)).expect("a SignedDuration never overflows the adding")
    }
}

impl TimeSource for VirtualClock {
    fn now(&self) -> SystemTime {
        Clock::now(self).into()
    }
}

impl fmt::Debug for VirtualClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("VirtualClock").field(&Clock::now(self)).finish()
    }
}
