//! The way back of a deployment group, where it is not straight.

use std::time::Duration;

use rollback_aws::{
    codedeploy::Platform,
    testing::{
        Refusal,
        fault::{Fault, Trouble},
    },
};
use rollback_core::{
    ErrorKind,
    model::{Goal, Observed, Progress, Weight},
    testing::backend::Driver,
};

use crate::codedeploy_group::{APP, GROUP, Shop};

const FORWARD: Goal = Goal::Split(Weight::ALL);

fn seconds(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// A rollout whose candidate is being deployed.
async fn under_way(shop: &Shop) -> Driver<'_> {
    let mut driver = Driver::new(shop).await;
    let look = driver.look(FORWARD).await;
    let attempt = driver.save(FORWARD, &look.version);
    driver.send(&attempt).await.unwrap();
    tokio::time::sleep(seconds(4)).await;
    driver
}

/// What `told` is to say of a look.
fn assert_due(look: &Observed, told: &str) {
    assert!(matches!(&look.progress, Progress::Due(it) if it.as_str().contains(told)), "{told}: {look:?}");
}

#[tokio::test(start_paused = true)]
async fn a_lost_deployment_of_the_baseline_is_not_taken_for_the_stop_before_it() {
    let shop = Shop::new(Platform::InPlace);
    shop.aws.codedeploy().rolls_back(false);
    let mut driver = under_way(&shop).await;
    let look = driver.look(Goal::Baseline).await;
    assert_due(&look, "with rollback");
    let attempt = driver.save(Goal::Baseline, &look.version);
    driver.send(&attempt).await.unwrap();
    tokio::time::sleep(seconds(90)).await;
    driver.look(Goal::Baseline).await;
    tokio::time::sleep(seconds(90)).await;
    let look = driver.look(Goal::Baseline).await;
    assert_due(&look, "nothing rolled it back");
    assert!(look.landed, "what was stopped is over: {look:?}");
    let attempt = driver.save(Goal::Baseline, &look.version);
    shop.aws.fault(Fault::of("codedeploy:CreateDeployment", Trouble::LoseRequest));
    driver.send(&attempt).await.unwrap_err();
    let look = driver.look(Goal::Baseline).await;
    assert!(!look.landed, "nobody knows yet: {look:?}");
}

#[tokio::test(start_paused = true)]
async fn a_stop_that_comes_too_late_holds_up_no_deployment_of_the_baseline() {
    let shop = Shop::new(Platform::Lambda);
    let mut driver = under_way(&shop).await;
    let look = driver.look(Goal::Baseline).await;
    assert_due(&look, "with rollback");
    let attempt = driver.save(Goal::Baseline, &look.version);
    let over = Refusal::new(400, "DeploymentAlreadyCompletedException", "The deployment has already completed.");
    shop.aws.fault(Fault::of("codedeploy:StopDeployment", Trouble::Refuse(over)));
    assert_eq!(driver.send(&attempt).await.unwrap_err().kind(), ErrorKind::Conflict);
    tokio::time::sleep(seconds(20)).await;
    shop.assert_serves(2);
    let look = driver.look(Goal::Baseline).await;
    assert_due(&look, "has succeeded");
    assert!(look.landed, "there is nothing left to stop: {look:?}");
    assert_eq!(shop.aws.codedeploy().deployments(APP, GROUP).len(), 2);
}
