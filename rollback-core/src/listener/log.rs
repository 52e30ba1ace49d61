//! Events as `tracing` events.

use super::{Listener, RolloutEvent};
use crate::{rollout::What, state::State};

/// Writes one `tracing` event for everything that happens: `error` when a person should look, `warn` when a gate trips
/// or a call goes wrong, else `info`. Fields: `rollout`, `target`, `state`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Log;

impl Listener for Log {
    fn on(&self, event: &RolloutEvent) {
        let rollout = event.rollout.id().as_str();
        let target = event.rollout.change.target.as_str();
        let state = event.rollout.state.name();
        let text = event.what.describe(&event.rollout.plan);
        match &event.what {
            What::Entered { to: State::Stuck { .. } | State::Abandoned { .. } } => {
                tracing::error!(rollout, target, state, "{text}");
            }
            What::Tripped { .. } | What::Troubled { .. } | What::Entered { to: State::RollingBack { .. } } => {
                tracing::warn!(rollout, target, state, "{text}");
            }
            _ => tracing::info!(rollout, target, state, "{text}"),
        }
    }
}
