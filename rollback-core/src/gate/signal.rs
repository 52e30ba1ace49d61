//! A gate that is told, instead of asking: by a webhook, a watch, a test.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use jiff::{SignedDuration, Timestamp};

use super::{Evidence, HealthGate, Verdict, Window};
use crate::{error::Result, model::GateName, wake::Wake};

/// A gate fed by pushed events, and the [`Signal`] to push them with. A push wakes the rollouts that watch the gate at
/// once.
///
/// Silence is no data: by default a healthy push counts for a minute. See [`SignalGate::fresh_for`] and
/// [`SignalGate::silence_is_healthy`].
///
/// # Errors
/// `Invalid` when the name is not 1 to 64 bytes of printable text.
pub fn signal(name: &str) -> Result<(SignalGate, Signal)> {
    let heard = Arc::new(Heard::default());
    let gate = SignalGate {
        name: GateName::try_from(name)?,
        heard: Arc::clone(&heard),
        fresh_for: Duration::from_secs(60),
        silence_is_healthy: false,
    };
    Ok((gate, Signal(heard)))
}

#[derive(Default)]
struct Heard {
    last: Mutex<Option<Pushed>>,
    wakes: Mutex<Vec<Wake>>,
}

#[derive(Clone)]
struct Pushed {
    healthy: bool,
    why: Arc<str>,
    /// Set when a judgement first sees it: pushes come from anywhere and have no clock.
    seen: Option<Timestamp>,
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
        let pushed = {
            let mut last = self.heard.last.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(pushed) = &mut *last {
                pushed.seen.get_or_insert(window.now);
            }
            last.clone()
        };
        Ok(match pushed {
            Some(Pushed { healthy: false, why, seen }) => {
                Verdict::Unhealthy(Evidence::new(seen.unwrap_or(window.now), &*why))
            }
            Some(Pushed { why, seen, .. }) => {
                let seen = seen.unwrap_or(window.now);
                let age = window.now.duration_since(seen);
                let fresh = age <= SignedDuration::try_from(self.fresh_for).unwrap_or(SignedDuration::MAX);
                if fresh || self.silence_is_healthy {
                    Verdict::Healthy(Evidence::new(window.now, &*why))
                } else {
                    let silent = format!("nothing was heard for {age:#}; the last word was {why:?}");
                    Verdict::Inconclusive(Evidence::new(seen, silent))
                }
            }
            None if self.silence_is_healthy => {
                Verdict::Healthy(Evidence::new(window.now, "nothing was heard, which counts as healthy here"))
            }
            None => Verdict::Inconclusive(Evidence::new(window.since, "nothing was heard yet")),
        })
    }

    fn attach(&self, wake: Wake) {
        let mut wakes = self.heard.wakes.lock().unwrap_or_else(PoisonError::into_inner);
        wakes.retain(|wake| !wake.is_dead());
        wakes.push(wake);
    }
}

/// The sender's end of a signal. Clone it freely; pushing never blocks and may be done from any thread.
#[derive(Clone)]
pub struct Signal(Arc<Heard>);

impl Signal {
    /// Says that the candidate is unhealthy.
    pub fn unhealthy(&self, why: impl AsRef<str>) {
        self.push(false, why.as_ref());
    }

    /// Says that it is healthy.
    pub fn healthy(&self, why: impl AsRef<str>) {
        self.push(true, why.as_ref());
    }

    fn push(&self, healthy: bool, why: &str) {
        *self.0.last.lock().unwrap_or_else(PoisonError::into_inner) =
            Some(Pushed { healthy, why: why.into(), seen: None });
        for wake in self.0.wakes.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            wake.wake();
        }
    }
}

impl fmt::Debug for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Signal")
    }
}
