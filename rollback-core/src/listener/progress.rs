//! One line a rollout on a terminal.

/// Draws progress.
#[derive(Debug)]
pub struct Progress;
