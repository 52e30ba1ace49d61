//! A clock that obeys the test.

use std::sync::{Arc, Mutex, PoisonError};

use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;

use crate::clock::Clock;

/// A [`Clock`] that starts at a fixed time, follows tokio's time, and jumps when told to.
///
/// In a test with paused time it moves exactly as far as the sleeps do. Clones are the same clock.
///
/// ```
/// # use jiff::SignedDuration;
/// # use rollback_core::{clock::Clock, testing::clock::TestClock};
/// # #[tokio::main(flavor = "current_thread", start_paused = true)]
/// # async fn main() {
/// let clock = TestClock::new();
/// tokio::time::sleep(std::time::Duration::from_secs(90)).await;
/// assert_eq!(clock.now().duration_since(TestClock::START), SignedDuration::from_secs(90));
///
/// clock.jump(SignedDuration::from_hours(-1));
/// assert!(clock.now() < TestClock::START);
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct TestClock {
    began: Instant,
    offset: Arc<Mutex<SignedDuration>>,
}

impl TestClock {
    /// What every test clock says when it is made: 2026-01-01T00:00:00Z.
    pub const START: Timestamp = Timestamp::constant(1_767_225_600, 0);

    /// A clock that says [`START`](Self::START) now.
    pub fn new() -> Self {
        Self { began: Instant::now(), offset: Arc::default() }
    }

    /// Jumps forward, or back when `by` is negative, as a wall clock does when somebody sets it. Jumps add up.
    pub fn jump(&self, by: SignedDuration) {
        let mut offset = self.offset.lock().unwrap_or_else(PoisonError::into_inner);
        *offset = offset.saturating_add(by);
    }
}

impl Default for TestClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for TestClock {
    fn now(&self) -> Timestamp {
        let offset = *self.offset.lock().unwrap_or_else(PoisonError::into_inner);
        let passed = SignedDuration::try_from(self.began.elapsed()).unwrap_or(SignedDuration::MAX);
        Self::START.saturating_add(passed.saturating_add(offset)).expect("a SignedDuration never overflows the adding")
    }
}
