//! Counters and histograms through the `metrics` facade.

/// Counts and times rollouts.
#[derive(Debug)]
pub struct Metrics;
