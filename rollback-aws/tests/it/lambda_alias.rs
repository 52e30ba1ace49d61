//! The Lambda alias as a backend: the conformance suite, the sweeps, and what is special about it.

use std::time::Duration;

use rollback_core::{
    model::Goal,
    testing::{
        backend::{self, Driver, Outcome},
        sweep::{Scenario, Sweep},
    },
};

use crate::support::Shop;

#[tokio::test(start_paused = true)]
async fn every_promise_of_a_backend_is_kept() {
    let skipped: Vec<_> =
        backend::all(&Shop::new()).await.into_iter().filter(|(_, outcome)| *outcome != Outcome::Kept).collect();
    assert_eq!(
        skipped,
        [("an_inexpressible_weight_is_unsupported", Outcome::Skipped("every weight can be given here"))]
    );
}

#[tokio::test(start_paused = true)]
async fn every_promise_is_kept_while_reads_lag_behind_writes() {
    let shop = Shop::new();
    shop.aws.lambda().lag(Duration::from_secs(3));
    for goal in [Goal::Split(25.try_into().unwrap()), Goal::Candidate, Goal::Baseline] {
        let mut driver = Driver::new(&shop).await;
        driver.drive(goal).await;
        tokio::time::sleep(Duration::from_secs(5)).await;
        driver.drive(Goal::Baseline).await;
        assert_eq!(shop.at(), ("1".into(), None));
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_crash_at_any_side_effect_is_got_over() {
    let shop = Shop::new();
    eprintln!("crashes: {}", Sweep::of(&shop).crashes().await);
}
