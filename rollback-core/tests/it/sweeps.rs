//! Sweeps over the fakes, and what they must find.

use std::time::Duration;

use rollback_core::testing::{fakes::Fake, sweep::Sweep};

async fn sweep(what: &str, fake: Fake) {
    let summary = Sweep::of(&fake).all().await;
    eprintln!("{what}: {summary}");
    assert!(summary.runs > 500, "{summary}");
}

#[tokio::test(start_paused = true)]
async fn every_disturbance_ends_where_the_undisturbed_run_ends_where_versions_are_checked() {
    sweep("checked", Fake::new("v1", "v2")).await;
}

#[tokio::test(start_paused = true)]
async fn every_disturbance_ends_where_the_undisturbed_run_ends_where_no_versions_are_checked() {
    sweep("unchecked", Fake::new("v1", "v2").unchecked(Duration::from_secs(15))).await;
}
