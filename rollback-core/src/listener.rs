//! Listeners: who is told what happens. They run on threads of their own and can delay nobody.

use std::{
    fmt,
    panic::AssertUnwindSafe,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
    thread::JoinHandle,
};

use jiff::Timestamp;

use crate::rollout::{Rollout, What};

mod log;
#[cfg(feature = "metrics")]
mod metrics;
#[cfg(feature = "progress")]
mod progress;

pub use self::log::Log;
#[cfg(feature = "metrics")]
pub use self::metrics::Metrics;
#[cfg(feature = "progress")]
pub use self::progress::Progress;

/// Is told what happens to rollouts, after it was saved.
///
/// Called on a thread of its own behind a bounded queue: it may block, and when it cannot keep up events are dropped
/// and counted. A panic is caught and costs that event.
#[cfg_attr(feature = "mock", mockall::automock)]
pub trait Listener: fmt::Debug + Send + Sync + 'static {
    /// Something happened.
    fn on(&self, event: &RolloutEvent);
}

/// Something that happened, and the rollout as it is now.
#[derive(Clone, Debug)]
pub struct RolloutEvent {
    /// The rollout, as saved.
    pub rollout: Arc<Rollout>,
    /// When, in wall time.
    pub at: Timestamp,
    /// What.
    pub what: What,
}

/// The queue and the thread of one listener.
#[derive(Debug)]
pub(crate) struct Post {
    queue: Option<SyncSender<RolloutEvent>>,
    thread: Option<JoinHandle<()>>,
    dropped: Arc<AtomicU64>,
}

impl Post {
    /// The most events that wait for a listener.
    pub(crate) const QUEUE: usize = 1024;

    pub(crate) fn new(listener: Arc<dyn Listener>) -> std::io::Result<Self> {
        let (queue, events) = sync_channel(Self::QUEUE);
        let thread =
            std::thread::Builder::new().name("rollback-listener".into()).spawn(move || deliver(&*listener, &events))?;
        Ok(Self { queue: Some(queue), thread: Some(thread), dropped: Arc::default() })
    }

    /// Queues an event, or drops and counts it.
    pub(crate) fn send(&self, event: RolloutEvent) {
        let Some(queue) = &self.queue else { return };
        if let Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) = queue.try_send(event) {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How many events were dropped.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// No more events; the thread to wait for, which ends when it has told what is queued.
    pub(crate) fn close(&mut self) -> Option<JoinHandle<()>> {
        self.queue = None;
        self.thread.take()
    }
}

fn deliver(listener: &dyn Listener, events: &Receiver<RolloutEvent>) {
    while let Ok(event) = events.recv() {
        if std::panic::catch_unwind(AssertUnwindSafe(|| listener.on(&event))).is_err() {
            tracing::error!(rollout = %event.rollout.id(), "a listener panicked");
        }
    }
}
