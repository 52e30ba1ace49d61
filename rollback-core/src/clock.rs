//! Wall time. Waiting is `tokio::time`'s business; the clock only says what time it is.

use std::fmt;

use jiff::Timestamp;

/// Says what time it is. Deadlines are stored as instants of this clock, so that a restart resets none.
pub trait Clock: fmt::Debug + Send + Sync + 'static {
    /// The time now.
    fn now(&self) -> Timestamp;
}

/// The machine's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "this is the one place that asks the machine")]
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }
}
