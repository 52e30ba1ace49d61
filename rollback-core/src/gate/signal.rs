//! A gate that is told, instead of asking: by a webhook, a watch, a test.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use jiff::Timestamp;
use tokio::time::Instant;

use super::{Evidence, HealthGate, Verdict, Window};
use crate::{
    backend::Readiness,
    error::Result,
    model::{Change, GateName},
    plan::Plan,
    wake::Wake,
};

/// A gate fed by pushed events, and the [`Signal`] to push them with. A push wakes the rollouts that watch the gate at
/// once.
///
/// The last word counts. Unhealthy stands until healthy is pushed, and a rollout that would begin under it is refused.
/// Healthy counts for a minute from the push; then silence is no data, as it is before the first push. See
/// [`SignalGate::fresh_for`] and [`SignalGate::silence_is_healthy`].
///
/// # Errors
/// `Invalid` when the name is not 1 to 64 bytes of printable text.
pub fn signal(name: &str) -> Result<(SignalGate, Signal)> {
    let name = GateName::try_from(name)?;
    let heard = Arc::new(Heard { gate: name.clone(), last: Mutex::default(), wakes: Mutex::default() });
    let gate =
        SignalGate { name, heard: Arc::clone(&heard), fresh_for: Duration::from_secs(60), silence_is_healthy: false };
    Ok((gate, Signal(heard)))
}

struct Heard {
    gate: GateName,
    last: Mutex<Option<Pushed>>,
    wakes: Mutex<Vec<Wake>>,
}

#[derive(Clone)]
struct Pushed {
    healthy: bool,
    why: Arc<str>,
    /// Not wall time: pushes come from anywhere and have no clock. A word is as old as its push, however late it is
    /// judged for the first time.
    at: Instant,
}

impl Heard {
    fn last(&self) -> MutexGuard<'_, Option<Pushed>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wakes(&self) -> MutexGuard<'_, Vec<Wake>> {
        self.wakes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The gate's end of a signal.
pub struct SignalGate {
    name: GateName,
    heard: Arc<Heard>,
    fresh_for: Duration,
    silence_is_healthy: bool,
}

impl SignalGate {
    /// A healthy push counts for this long; older than that is no data.
    #[must_use]
    pub const fn fresh_for(mut self, time: Duration) -> Self {
        self.fresh_for = time;
        self
    }

    /// Silence counts as healthy. Only where something else proves that the sender lives: a gate like this can say no,
    /// and its yes means nothing.
    #[must_use]
    pub const fn silence_is_healthy(mut self) -> Self {
        self.silence_is_healthy = true;
        self
    }
}

impl fmt::Debug for SignalGate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SignalGate").field("name", &self.name).finish_non_exhaustive()
    }
}

#[async_trait]
impl HealthGate for SignalGate {
    fn name(&self) -> &GateName {
        &self.name
    }

    async fn judge(&self, window: &Window) -> Result<Verdict> {
        let Some(Pushed { healthy, why, at }) = self.heard.last().clone() else {
            return Ok(if self.silence_is_healthy {
                Verdict::Healthy(Evidence::new(window.now, "nothing was heard, which counts as healthy here"))
            } else {
                window.no_data("nothing was heard yet")
            });
        };
        let age = at.elapsed();
        let said = window.now.checked_sub(age).unwrap_or(Timestamp::MIN);
        Ok(if !healthy {
            Verdict::Unhealthy(Evidence::new(said, &*why))
        } else if age <= self.fresh_for || self.silence_is_healthy {
            Verdict::Healthy(Evidence::new(window.now, &*why))
        } else {
            let silent = format!("nothing was heard for {} s; the last word was {why:?}", age.as_secs());
            Verdict::Inconclusive(Evidence::new(said, silent))
        })
    }

    async fn preflight(&self, _: &Change, _: &Plan) -> Result<Readiness> {
        let last = self.heard.last().clone();
        Ok(match last.filter(|last| !last.healthy) {
            Some(Pushed { why, .. }) => Readiness::default().refused(format!(
                "gate {} says unhealthy already ({why}); it must hear healthy before a rollout can begin",
                self.name
            )),
            None => Readiness::default(),
        })
    }

    fn attach(&self, wake: Wake) {
        let mut wakes = self.heard.wakes();
        wakes.retain(|wake| !wake.is_dead());
        wakes.push(wake);
    }
}

/// The sender's end of a signal. Clone it freely; pushing never blocks and may be done from any thread.
#[derive(Clone)]
pub struct Signal(Arc<Heard>);

impl Signal {
    /// The name of the gate that it feeds.
    pub fn gate(&self) -> &GateName {
        &self.0.gate
    }

    /// Says that the candidate is unhealthy.
    pub fn unhealthy(&self, why: impl AsRef<str>) {
        self.push(false, why.as_ref());
    }

    /// Says that it is healthy.
    pub fn healthy(&self, why: impl AsRef<str>) {
        self.push(true, why.as_ref());
    }

    fn push(&self, healthy: bool, why: &str) {
        *self.0.last() = Some(Pushed { healthy, why: why.into(), at: Instant::now() });
        for wake in self.0.wakes().iter() {
            wake.wake();
        }
    }
}

impl fmt::Debug for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Signal").field(&self.0.gate).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wake::Bell;

    #[tokio::test(start_paused = true)]
    async fn a_push_wakes_every_rollout_that_watches_at_once() {
        let (gate, signal) = signal("alarms").unwrap();
        let (one, two) = (Arc::new(Bell::default()), Arc::new(Bell::default()));
        gate.attach(Wake::new(Arc::downgrade(&one), Bell::gate_line(0)));
        gate.attach(Wake::new(Arc::downgrade(&two), Bell::gate_line(3)));
        // From a thread that knows no runtime, as a webhook of another framework may be.
        std::thread::spawn(move || signal.unhealthy("errors")).join().unwrap();
        for bell in [&one, &two] {
            tokio::time::timeout(Duration::from_secs(1), bell.heard()).await.expect("the rollout is woken");
        }
        assert_eq!((one.take(), two.take()), (1 << 2, 1 << 5));
        assert_eq!(one.take(), 0, "one push, one ring");
    }

    #[test]
    fn wakes_of_rollouts_that_are_gone_are_forgotten() {
        let (gate, signal) = signal("alarms").unwrap();
        for _ in 0..1000 {
            let bell = Arc::new(Bell::default());
            gate.attach(Wake::new(Arc::downgrade(&bell), 2));
        }
        assert_eq!(gate.heard.wakes().len(), 1);
        signal.healthy("nobody is there to hear");
    }
}
