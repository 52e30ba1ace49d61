//! Waking a rollout early: from a watch, a pushed event, another task.

use std::{
    fmt,
    sync::{
        Weak,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::sync::Notify;

/// Makes the engine look, or judge, now instead of at the next interval.
///
/// Weak: it does not keep the rollout alive, and waking a finished one does nothing. Lossless: a wake before the engine
/// listens is heard when it does. Needless wakes are allowed. Waking is cheap and may be done from any thread.
#[derive(Clone)]
pub struct Wake {
    bell: Weak<Bell>,
    line: u32,
}

impl Wake {
    /// Wakes the rollout.
    pub fn wake(&self) {
        if let Some(bell) = self.bell.upgrade() {
            bell.ring(self.line);
        }
    }

    /// Whether the rollout is gone, so that this wake can be forgotten.
    pub fn is_dead(&self) -> bool {
        self.bell.strong_count() == 0
    }

    pub(crate) const fn new(bell: Weak<Bell>, line: u32) -> Self {
        Self { bell, line }
    }
}

impl fmt::Debug for Wake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wake").field("dead", &self.is_dead()).finish_non_exhaustive()
    }
}

/// What the rollout's task waits on: 64 lines that may ring. Line 0 is the backend's, 1 the inbox's, the rest are gates'
/// (shared from line 63 on).
#[derive(Debug, Default)]
pub(crate) struct Bell {
    lines: AtomicU64,
    notify: Notify,
}

impl Bell {
    pub(crate) const BACKEND: u32 = 0;
    pub(crate) const INBOX: u32 = 1;

    /// The line of the gate with this index.
    pub(crate) const fn gate_line(index: usize) -> u32 {
        let line = index as u32 + 2;
        if line > 63 { 63 } else { line }
    }

    pub(crate) fn ring(&self, line: u32) {
        self.lines.fetch_or(1 << line, Ordering::AcqRel);
        self.notify.notify_one();
    }

    /// Waits until a line rings. Cancel safe: a ring is kept until [`Self::take`].
    pub(crate) async fn heard(&self) {
        self.notify.notified().await;
    }

    /// The lines that rang since the last call, as bits.
    pub(crate) fn take(&self) -> u64 {
        self.lines.swap(0, Ordering::AcqRel)
    }
}
