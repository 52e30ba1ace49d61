//! What the listeners that write to people and tools share: which events they tell, and a queue and a thread from which
//! each message is tried until it is delivered or given up.

use std::{
    fmt,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use async_trait::async_trait;
use backon::{BackoffBuilder, ExponentialBuilder};
use tokio::sync::{mpsc, watch};

use super::{Listener, RolloutEvent};
use crate::{error::Result, rollout::What, state::State};

/// Which events a channel tells.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub enum Tell {
    /// What was decided, and what a person has to know: created, tripped, rolling back, held, and how it came to rest.
    /// The default.
    #[default]
    Decisions,
    /// Only how it came to rest (over, or stuck), and what waits for a person.
    Ends,
    /// Everything.
    Everything,
    /// Those that this function picks.
    When(fn(&RolloutEvent) -> bool),
}

impl Tell {
    /// Whether this event is told.
    pub fn picks(self, event: &RolloutEvent) -> bool {
        match self {
            Self::Decisions => match &event.what {
                What::Created | What::Tripped { .. } => true,
                What::Entered { to } => rests(to) || matches!(to, State::RollingBack { .. }),
                _ => false,
            },
            Self::Ends => matches!(&event.what, What::Entered { to } if rests(to)),
            Self::Everything => true,
            Self::When(picks) => picks(event),
        }
    }
}

const fn rests(state: &State) -> bool {
    state.is_at_rest() || matches!(state, State::Holding { .. })
}

/// What became of a channel's messages. Clones count together, so keep one and hand the channel to the engine.
#[derive(Clone, Debug, Default)]
pub struct Tally(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    delivered: AtomicU64,
    given_up: AtomicU64,
    dropped: AtomicU64,
}

impl Tally {
    /// How many messages the receiver took.
    pub fn delivered(&self) -> u64 {
        self.0.delivered.load(Ordering::Relaxed)
    }

    /// How many the receiver refused, or did not take in any of the tries.
    pub fn given_up(&self) -> u64 {
        self.0.given_up.load(Ordering::Relaxed)
    }

    /// How many were never tried: the queue was full, or the time at the end was over.
    pub fn dropped(&self) -> u64 {
        self.0.dropped.load(Ordering::Relaxed)
    }
}

/// Carries one message: what a listener of your own needs beside a [`Channel`]. Called from one thread, one message after
/// the other.
#[async_trait]
pub trait Courier: fmt::Debug + Send + Sync + 'static {
    /// Where to, for logs: nothing secret.
    fn name(&self) -> &str;

    /// Tries once. `number` is the message's own: the same in every try.
    ///
    /// # Errors
    /// A transient one means that another try makes sense, after the time it names if it names one.
    async fn carry(&self, event: &RolloutEvent, number: &str) -> Result<()>;
}

/// A listener around a courier: picks events, queues them, and has each one carried until it is delivered or given up.
///
/// A message is tried up to eight times within some minutes after transient errors, on a thread of its own with a runtime
/// of its own, so a receiver that hangs delays no rollout and no other listener. 256 messages may wait; [`Tally`] counts
/// what does not arrive. A message may arrive twice: its number is the same then. Messages come in order.
///
/// ```
/// use rollback_core::{Result, listener::{Channel, Courier, RolloutEvent, Tell}};
///
/// #[derive(Clone, Debug)]
/// struct Pager;
///
/// #[async_trait::async_trait]
/// impl Courier for Pager {
///     fn name(&self) -> &str {
///         "pager"
///     }
///     async fn carry(&self, event: &RolloutEvent, number: &str) -> Result<()> {
///         println!("{number}: {}", event.title(80));
///         Ok(())
///     }
/// }
///
/// let pager = Channel::new(Pager).tell(Tell::Ends);
/// ```
#[derive(Debug)]
pub struct Channel<C> {
    pub(super) courier: C,
    pub(super) tell: Tell,
    pub(super) tally: Tally,
    /// Opened by the first message.
    outbox: OnceLock<Outbox>,
}

impl<C: Courier + Clone> Channel<C> {
    /// A channel that has messages carried by this courier. Its thread starts with the first of them.
    pub fn new(courier: C) -> Self {
        Self { courier, tell: Tell::default(), tally: Tally::default(), outbox: OnceLock::new() }
    }

    /// These events. By default [`Tell::Decisions`].
    #[must_use]
    pub const fn tell(mut self, tell: Tell) -> Self {
        self.tell = tell;
        self
    }

    /// Counts what becomes of the messages.
    pub fn tally(&self) -> Tally {
        self.tally.clone()
    }
}

impl<C: Courier + Clone> Listener for Channel<C> {
    /// Queues a message for this event, if it is one of those that are told. Waits for nothing.
    fn on(&self, event: &RolloutEvent) {
        if self.tell.picks(event) {
            let open = || Outbox::open(Arc::new(self.courier.clone()), self.tally.clone());
            self.outbox.get_or_init(open).send(event);
        }
    }
}

/// A queue, and the thread that empties it.
///
/// When it is dropped, what is left is carried on, without waiting between tries, for at most [`FAREWELL`].
#[derive(Debug)]
struct Outbox {
    courier: Arc<dyn Courier>,
    tally: Tally,
    queue: Option<mpsc::Sender<Message>>,
    /// Set to true when no more messages will come.
    ending: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Message {
    event: RolloutEvent,
    number: String,
}

impl Outbox {
    fn open(courier: Arc<dyn Courier>, tally: Tally) -> Self {
        let (queue, messages) = mpsc::channel(QUEUE);
        let (ending, ends) = watch::channel(false);
        let carrier = Carrier { courier: Arc::clone(&courier), tally: tally.clone(), messages, ends };
        // A runtime of its own: that of the rollouts may be busy, paused, or gone.
        let thread = tokio::runtime::Builder::new_current_thread().enable_all().build().and_then(|runtime| {
            std::thread::Builder::new()
                .name("rollback-messages".into())
                .spawn(move || runtime.block_on(carrier.carry_all()))
        });
        if let Err(e) = &thread {
            tracing::error!(channel = courier.name(), error = %e, "no message can be sent: no thread can be started");
        }
        Self { courier, tally, queue: Some(queue), ending, thread: thread.ok() }
    }

    fn send(&self, event: &RolloutEvent) {
        let message = Message { event: event.clone(), number: uuid::Uuid::new_v4().to_string() };
        if self.queue.as_ref().is_none_or(|queue| queue.try_send(message).is_err()) {
            self.tally.0.dropped.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(channel = self.courier.name(), rollout = %event.rollout.id(), "a message was dropped");
        }
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        self.queue = None;
        self.ending.send_replace(true);
        if let Some(thread) = self.thread.take() {
            // Its end is all it has to say.
            let _ = thread.join();
        }
    }
}

struct Carrier {
    courier: Arc<dyn Courier>,
    tally: Tally,
    messages: mpsc::Receiver<Message>,
    ends: watch::Receiver<bool>,
}

impl Carrier {
    async fn carry_all(mut self) {
        let mut ends = self.ends.clone();
        let late = async {
            // An error means that the outbox is gone, which is an end as well.
            let _ = ends.wait_for(|ends| *ends).await;
            tokio::time::sleep(FAREWELL).await;
        };
        let under_way = AtomicU64::new(0);
        let all = async {
            while let Some(message) = self.messages.recv().await {
                under_way.store(1, Ordering::Relaxed);
                let delivered = carry(&*self.courier, &message, &mut self.ends).await;
                under_way.store(0, Ordering::Relaxed);
                let counted = if delivered { &self.tally.0.delivered } else { &self.tally.0.given_up };
                counted.fetch_add(1, Ordering::Relaxed);
            }
        };
        tokio::select! {
            () = all => {}
            () = late => {}
        }
        let mut left = under_way.into_inner();
        while self.messages.try_recv().is_ok() {
            left += 1;
        }
        if left > 0 {
            self.tally.0.dropped.fetch_add(left, Ordering::Relaxed);
            tracing::warn!(channel = self.courier.name(), messages = left, "messages were dropped at the end");
        }
    }
}

/// Tries until it is delivered, refused, or was tried often enough. Says whether it was delivered.
async fn carry(courier: &dyn Courier, message: &Message, ends: &mut watch::Receiver<bool>) -> bool {
    let (channel, rollout) = (courier.name(), message.event.rollout.id());
    let mut waits = ExponentialBuilder::new()
        .with_min_delay(SHORTEST)
        .with_max_delay(LONGEST)
        .with_factor(2.0)
        .with_max_times(TRIES - 1)
        .with_jitter()
        .build();
    loop {
        let Err(e) = courier.carry(&message.event, &message.number).await else { return true };
        let wait = if e.is_transient() { waits.next() } else { None };
        let Some(wait) = wait else {
            tracing::error!(channel, %rollout, kind = %e.kind(), "a message was given up: {}", e.chain());
            return false;
        };
        tracing::debug!(channel, %rollout, kind = %e.kind(), "a message is tried again: {}", e.chain());
        let wait = wait.max(e.retry_after().unwrap_or_default()).min(LONGEST);
        // At the end there is no time to wait in.
        let _ = tokio::time::timeout(wait, ends.wait_for(|ends| *ends)).await;
    }
}

/// The most messages that wait.
const QUEUE: usize = 256;
/// How often a message is tried.
const TRIES: usize = 8;
const SHORTEST: Duration = Duration::from_millis(500);
/// The longest wait between two tries, whatever the receiver asks for.
const LONGEST: Duration = Duration::from_secs(60);
/// How long what is left is carried at the end.
const FAREWELL: Duration = Duration::from_secs(5);
