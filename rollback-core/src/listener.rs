//! Listeners: who is told what happens. They run on threads of their own and can delay nobody.

use std::{
    fmt,
    panic::AssertUnwindSafe,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread::JoinHandle,
};

use jiff::Timestamp;

use crate::rollout::{Rollout, What};

#[cfg(feature = "courier")]
mod channel;
#[cfg(feature = "email")]
mod email;
#[cfg(feature = "report")]
mod files;
mod log;
#[cfg(feature = "metrics")]
mod metrics;
#[cfg(feature = "progress")]
mod progress;
#[cfg(feature = "webhook")]
mod slack;
#[cfg(feature = "courier")]
mod told;
#[cfg(feature = "webhook")]
mod webhook;

#[cfg(feature = "courier")]
pub use self::channel::{Channel, Courier, Tally, Tell};
#[cfg(feature = "email")]
pub use self::email::Email;
#[cfg(feature = "report")]
pub use self::files::ReportFiles;
pub use self::log::Log;
#[cfg(feature = "metrics")]
pub use self::metrics::Metrics;
#[cfg(feature = "progress")]
pub use self::progress::Progress;
#[cfg(feature = "webhook")]
pub use self::{slack::Slack, webhook::Webhook};

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
    queue: Mutex<Option<SyncSender<RolloutEvent>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
    dropped: Arc<AtomicU64>,
}

impl Post {
    /// The most events that wait for a listener.
    pub(crate) const QUEUE: usize = 1024;

    pub(crate) fn new(listener: Arc<dyn Listener>) -> std::io::Result<Self> {
        let (queue, events) = sync_channel(Self::QUEUE);
        let thread =
            std::thread::Builder::new().name("rollback-listener".into()).spawn(move || deliver(&*listener, &events))?;
        Ok(Self { queue: Mutex::new(Some(queue)), thread: Mutex::new(Some(thread)), dropped: Arc::default() })
    }

    /// Queues an event, or drops and counts it.
    pub(crate) fn send(&self, event: RolloutEvent) {
        let sent = lock(&self.queue).as_ref().is_some_and(|queue| queue.try_send(event).is_ok());
        if !sent {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How many events were dropped.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// No more events; the thread to wait for, which ends when it has told what is queued.
    pub(crate) fn close(&self) -> Option<JoinHandle<()>> {
        *lock(&self.queue) = None;
        lock(&self.thread).take()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn deliver(listener: &dyn Listener, events: &Receiver<RolloutEvent>) {
    while let Ok(event) = events.recv() {
        if std::panic::catch_unwind(AssertUnwindSafe(|| listener.on(&event))).is_err() {
            tracing::error!(rollout = %event.rollout.id(), "a listener panicked");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Condvar, mpsc};

    use super::*;
    use crate::{
        model::{Effect, Note},
        rollout,
    };

    /// An event that says its number.
    fn event(number: usize) -> RolloutEvent {
        let what = What::Troubled { why: Note::new(number.to_string()) };
        RolloutEvent { rollout: Arc::new(rollout::sample()), at: Timestamp::UNIX_EPOCH, what }
    }

    fn number(event: &RolloutEvent) -> usize {
        let What::Troubled { why } = &event.what else { panic!("another event: {event:?}") };
        why.as_str().parse().unwrap()
    }

    /// Tells what it hears, and stands still while its door is shut.
    #[derive(Debug)]
    struct Listening {
        heard: mpsc::Sender<usize>,
        shut: Mutex<bool>,
        opened: Condvar,
        panics_at: Option<usize>,
    }

    impl Listening {
        fn new(shut: bool, panics_at: Option<usize>) -> (Arc<Self>, Receiver<usize>) {
            let (heard, hears) = mpsc::channel();
            (Arc::new(Self { heard, shut: Mutex::new(shut), opened: Condvar::new(), panics_at }), hears)
        }

        fn open(&self) {
            *self.shut.lock().unwrap() = false;
            self.opened.notify_all();
        }
    }

    impl Listener for Listening {
        fn on(&self, event: &RolloutEvent) {
            self.heard.send(number(event)).unwrap();
            assert_ne!(self.panics_at, Some(number(event)), "as this test wants it");
            drop(self.opened.wait_while(self.shut.lock().unwrap(), |shut| *shut).unwrap());
        }
    }

    #[test]
    fn a_listener_that_stands_still_delays_nobody_and_what_it_misses_is_counted() {
        let (listener, hears) = Listening::new(true, None);
        let post = Post::new(listener.clone()).unwrap();
        post.send(event(0));
        // From here on the thread stands in the first event, and the queue is empty.
        assert_eq!(hears.recv().unwrap(), 0);
        for number in 1..=Post::QUEUE {
            post.send(event(number));
        }
        assert_eq!(post.dropped(), 0);
        for number in 0..7 {
            post.send(event(Post::QUEUE + 1 + number));
        }
        assert_eq!(post.dropped(), 7);
        let thread = post.close().unwrap();
        assert!(!thread.is_finished());
        listener.open();
        thread.join().unwrap();
        assert_eq!(hears.try_iter().collect::<Vec<_>>(), (1..=Post::QUEUE).collect::<Vec<_>>());
    }

    #[test]
    fn a_panic_costs_its_event_and_no_other() {
        let (listener, hears) = Listening::new(false, Some(1));
        let post = Post::new(listener).unwrap();
        (0..4).for_each(|number| post.send(event(number)));
        post.close().unwrap().join().unwrap();
        assert_eq!(hears.try_iter().collect::<Vec<_>>(), [0, 1, 2, 3]);
        assert_eq!(post.dropped(), 0);
    }

    #[test]
    fn closing_tells_all_that_is_queued_and_takes_nothing_more() {
        let (listener, hears) = Listening::new(true, None);
        let post = Post::new(listener.clone()).unwrap();
        (0..100).for_each(|number| post.send(event(number)));
        let thread = post.close().unwrap();
        post.send(event(100));
        listener.open();
        thread.join().unwrap();
        assert_eq!(hears.try_iter().collect::<Vec<_>>(), (0..100).collect::<Vec<_>>());
        assert!(post.close().is_none(), "there is one thread to wait for");
        assert_eq!(post.dropped(), 1, "an event after the end is dropped like any other");
    }

    #[test]
    fn dropping_the_post_waits_for_nobody() {
        let (listener, hears) = Listening::new(true, None);
        let post = Post::new(listener.clone()).unwrap();
        post.send(event(0));
        post.send(event(1));
        assert_eq!(hears.recv().unwrap(), 0);
        drop(post);
        listener.open();
        assert_eq!(hears.recv().unwrap(), 1);
    }

    #[test]
    fn events_show_nothing_that_is_sealed() {
        let mut rollout = rollout::sample();
        let mut change = (*rollout.change).clone();
        change.baseline = change.baseline.with_spec("hunter2").unwrap();
        rollout.change = Arc::new(change);
        let what = What::Troubled { why: Effect::new("throttled") };
        let event = RolloutEvent { rollout: Arc::new(rollout), at: Timestamp::UNIX_EPOCH, what };
        assert!(!format!("{event:?}").contains("hunter2"));
    }
}
