//! What a driver shares with the rest of the process: a bell, an inbox and the rollout as last saved.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{oneshot, watch};

#[cfg(feature = "receiver")]
use crate::model::TargetId;
use crate::{
    error::{Error, ErrorKind, Result},
    model::{DriverId, Note},
    request::Request,
    rollout::Rollout,
    wake::{Bell, Wake},
};

/// The part of a driver that others may touch.
#[derive(Debug)]
pub(super) struct Live {
    /// Beside the rollout, so that who looks for it among ten thousand takes no locks.
    #[cfg(feature = "receiver")]
    pub(super) target: TargetId,
    pub(super) bell: Arc<Bell>,
    inbox: Mutex<Vec<Asking>>,
    status: watch::Sender<Status>,
}

/// A rollout as last saved, and whether this process drives it.
#[derive(Clone, Debug)]
pub(super) struct Status {
    pub(super) rollout: Arc<Rollout>,
    pub(super) phase: Phase,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// This process drives it.
    Driven,
    /// It is over, and that is saved.
    Over,
    /// This process let it go; any other may take it up.
    Released,
    /// Another process has taken it up.
    TakenUp(Option<DriverId>),
}

/// A request and who waits for the answer.
#[derive(Debug)]
pub(super) struct Asking {
    pub(super) number: Option<u64>,
    pub(super) request: Request,
    pub(super) reply: Option<oneshot::Sender<Result<Note>>>,
}

impl Asking {
    pub(super) fn answer(self, answer: Result<Note>) {
        if let Some(reply) = self.reply {
            // Who asked may have gone; the record has the answer.
            let _ = reply.send(answer);
        }
    }
}

impl Live {
    pub(super) fn new(rollout: Arc<Rollout>) -> Arc<Self> {
        let phase = if rollout.state.is_open() { Phase::Driven } else { Phase::Over };
        Arc::new(Self {
            #[cfg(feature = "receiver")]
            target: rollout.change.target.clone(),
            bell: Arc::default(),
            inbox: Mutex::default(),
            status: watch::Sender::new(Status { rollout, phase }),
        })
    }

    pub(super) fn wake(&self, line: u32) -> Wake {
        Wake::new(Arc::downgrade(&self.bell), line)
    }

    pub(super) fn ask(&self, asking: Asking) {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner).push(asking);
        self.bell.ring(Bell::INBOX);
    }

    pub(super) fn take_inbox(&self) -> Vec<Asking> {
        std::mem::take(&mut *self.inbox.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn publish(&self, status: Status) {
        let gone = status.phase != Phase::Driven;
        self.status.send_replace(status);
        if gone {
            // Nobody listens any more: who asked at the last moment is told so.
            for asking in self.take_inbox() {
                let over = Error::new(ErrorKind::Conflict, "this process no longer drives the rollout");
                asking.answer(Err(over));
            }
        }
    }

    /// The rollout as it was published last.
    pub(super) fn saved(&self) -> Arc<Rollout> {
        Arc::clone(&self.status.borrow().rollout)
    }

    pub(super) fn watch(&self) -> watch::Receiver<Status> {
        self.status.subscribe()
    }
}
