//! The record: saved before anything is attempted, compared when an answer is lost.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use super::{Answer, Driver, SAVE_EVERY, Saving};
use crate::engine::call::bounded;
use crate::engine::live::{Phase, Status};
use crate::error::{Error, ErrorKind, Result};
use crate::listener::RolloutEvent;
use crate::model::Serial;
use crate::rollout::{Entry, Rollout};
use crate::store::Record;

impl Driver {
    pub(super) fn save_now(&mut self) {
        self.save_by(Duration::ZERO);
    }

    pub(super) fn save_by(&mut self, time: Duration) {
        let at = Instant::now() + time;
        self.save_at = Some(self.save_at.map_or(at, |earlier| earlier.min(at)));
    }

    pub(super) fn save(&mut self, now: Instant) {
        if self.edition == self.saved {
            self.save_at = None;
        }
        match self.saving {
            Saving::No if self.edition > self.saved && self.save_at.is_some_and(|at| now >= at) => {
                self.save_at = None;
                self.begin_save(now);
            }
            Saving::Compare(at) if now >= at => {
                self.saving = Saving::Comparing;
                let (store, id, limit) = (Arc::clone(&self.inner.store), self.rollout.id().clone(), self.limit());
                self.calls.spawn(async move {
                    let result = bounded(limit, async move { store.load(&id).await }).await;
                    Answer::Loaded { result }
                });
            }
            _ => {}
        }
    }

    /// After a gap in our beats another process may have taken the rollout up: ask the record.
    pub(super) fn confirm(&mut self, now: Instant, wall: Timestamp) {
        let proven = self.proof.is_some_and(|proof| self.inner.pulse.proves(proof, now, wall));
        if !proven && matches!(self.saving, Saving::No) && self.inner.pulse.is_fresh(now, wall) {
            self.change();
            self.save_now();
        }
    }

    pub(super) fn begin_save(&mut self, begun: Instant) {
        let driver = (!self.stopping || !self.rollout.state.is_open()).then_some(&self.inner.driver);
        let record = match self.rollout.to_record(driver, self.heard) {
            Ok(record) => record,
            Err(e) => {
                tracing::error!(rollout = %self.rollout.id(), "{}", e.chain());
                self.save_at = Some(begun + Duration::from_secs(5));
                return;
            }
        };
        self.saving = Saving::Under;
        let (store, edition, expected) = (Arc::clone(&self.inner.store), self.edition, self.serial);
        let (rollout, limit) = (Arc::clone(&self.rollout), self.limit());
        self.calls.spawn(async move {
            let result = bounded(limit, async move { store.update(&record, expected).await }).await;
            Answer::Saved { rollout, edition, begun, result }
        });
    }

    pub(super) fn saved(
        &mut self,
        rollout: Arc<Rollout>,
        edition: u64,
        begun: Instant,
        result: Result<Serial>,
        wall: Timestamp,
    ) {
        match result {
            Ok(serial) => {
                self.saving = Saving::No;
                self.save_backoff.reset();
                self.serial = serial;
                self.saved = edition;
                self.proof = Some(begun);
                if self.edition > self.saved {
                    self.save_by(SAVE_EVERY);
                }
                self.tell(&rollout);
            }
            Err(e) => {
                // Lost or refused: what the record holds decides, at once after a refusal.
                let pause = if e.kind() == ErrorKind::Conflict { Duration::ZERO } else { self.save_pause(&e) };
                self.saving = Saving::Compare(Instant::now() + pause);
                if e.kind() != ErrorKind::Conflict {
                    self.away(&e, wall);
                }
            }
        }
    }

    pub(super) fn loaded(&mut self, result: Result<(Record, Serial)>, wall: Timestamp) {
        match result {
            Ok((record, serial)) if record.driver.as_ref() == Some(&self.inner.driver) => {
                // Nobody else writes for this driver: a save of ours landed after all, or none did.
                self.serial = serial;
                self.saving = Saving::No;
                self.save_now();
            }
            Ok((record, _)) => {
                if self.stopping && record.driver.is_none() {
                    self.gone = Some(Phase::Released);
                } else {
                    tracing::warn!(rollout = %self.rollout.id(), by = ?record.driver, "another process took this rollout up");
                    self.gone = Some(Phase::TakenUp(record.driver));
                }
            }
            Err(e) if e.kind() == ErrorKind::NotFound => {
                tracing::error!(rollout = %self.rollout.id(), "the record of this rollout is gone: hands off");
                self.gone = Some(Phase::TakenUp(None));
            }
            Err(e) => {
                let pause = self.save_pause(&e);
                self.saving = Saving::Compare(Instant::now() + pause);
                self.away(&e, wall);
            }
        }
    }

    pub(super) fn save_pause(&mut self, e: &Error) -> Duration {
        self.save_backoff.next().max(e.retry_after().unwrap_or_default())
    }

    pub(super) fn away(&mut self, e: &Error, wall: Timestamp) {
        self.troubled("saving the rollout of", e, wall);
    }

    /// Tells what the record holds now: this rollout.
    pub(super) fn tell(&mut self, rollout: &Arc<Rollout>) {
        let saved = self.saved;
        let told = self.untold.iter().take_while(|(edition, _)| *edition <= saved).count();
        for (_, Entry { at, what }) in self.untold.drain(..told) {
            self.inner.tell(&self.target, &RolloutEvent { rollout: Arc::clone(rollout), at, what });
        }
        if self.untold.is_empty() {
            // Room for the next ones would be kept for as long as the step bakes.
            self.untold = Vec::new();
        }
        let phase = if rollout.state.is_open() { Phase::Driven } else { Phase::Over };
        if self.edition == self.saved || phase == Phase::Driven {
            self.live.publish(Status { rollout: Arc::clone(rollout), phase });
        }
        // After the status, so that who asked finds there what came of it.
        let answered = self.answers.iter().take_while(|(edition, ..)| *edition <= saved).count();
        for (_, asking, answer) in self.answers.drain(..answered) {
            asking.answer(answer);
        }
    }

    /// Shows watched time and evidence ahead of the save that they wait for: nothing was decided that a crash could take
    /// back. It also spares the memory of a second rollout, which most would need most of the time.
    pub(super) fn show(&self) {
        let decided = !self.untold.is_empty() || !self.answers.is_empty() || self.pending.is_some();
        if self.edition > self.saved && !decided && !Arc::ptr_eq(&self.rollout, &self.live.saved()) {
            self.live.publish(Status { rollout: Arc::clone(&self.rollout), phase: Phase::Driven });
        }
    }

    pub(super) fn limit(&self) -> Duration {
        (self.inner.pulse.lease() / 2).min(Duration::from_secs(10))
    }
}
