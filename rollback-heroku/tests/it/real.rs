//! The same rollout against a real app. Ignored; see the crate's README for what it does to the app.

use std::time::Duration;

use rollback_core::{
    backend::DeploymentBackend as _,
    engine::{Engine, NewRollout, Target},
    gate::{self, Evidence, Policy, Verdict},
    plan::Plan,
    state::{Cause, State},
    store::Memory,
};
use rollback_heroku::{App, Candidate, Client, gate::Dynos};

/// A tarball is built twice: the first time it is rolled back because a gate says so, the second time it is promoted.
#[tokio::test]
#[ignore = "needs ROLLBACK_TEST_HEROKU_APP, ROLLBACK_TEST_HEROKU_TARBALL and HEROKU_API_KEY; makes three releases"]
async fn a_real_app_is_promoted_and_rolled_back() {
    let env = |name: &str| std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set"));
    let client = Client::new(env("HEROKU_API_KEY")).unwrap();
    let app = App::new(&client, &env("ROLLBACK_TEST_HEROKU_APP")).unwrap().code_only_if_full_fails();
    let candidate = Candidate::tarball(env("ROLLBACK_TEST_HEROKU_TARBALL")).await.unwrap().version("rollback-test");
    let candidate = candidate.revision().unwrap();
    let before = app.baseline().await.unwrap();
    assert_ne!(before.id, candidate.id, "the tarball serves already: change it");

    let roll_out = async |bad: bool| {
        let verdict = gate::from_fn("verdict", move |window| async move {
            let evidence = Evidence::new(window.now, "as the test wants it");
            Ok(if bad && window.weight.percent() == 100 {
                Verdict::Unhealthy(evidence)
            } else {
                Verdict::Healthy(evidence)
            })
        });
        let engine = Engine::new(Memory::new()).unwrap();
        let target =
            Target::new("real", app.clone()).unwrap().look_every(Duration::from_secs(10), Duration::from_secs(30));
        let every = Policy::default().every(Duration::from_secs(15));
        engine.register(target.gate(Dynos::new(&app), every).gate(verdict.unwrap(), every)).unwrap();
        let plan = Plan::all_at_once(Duration::from_secs(120)).unwrap();
        let new = NewRollout::new("real", candidate.clone(), plan).unwrap().by("test").unwrap();
        let outcome = engine.start(new).await.unwrap().finished().await;
        engine.shutdown(Duration::from_secs(10)).await;
        eprintln!("{outcome}");
        outcome.rollout
    };

    let rollout = roll_out(true).await;
    assert!(matches!(&rollout.state, State::RolledBack { cause: Cause::Unhealthy { .. } }), "{rollout}");
    assert_eq!(app.baseline().await.unwrap().id, before.id, "the old code serves again");

    let rollout = roll_out(false).await;
    assert_eq!(rollout.state, State::Promoted, "{rollout}");
    assert_eq!(app.baseline().await.unwrap().id, candidate.id);
    eprintln!("{:?} requests are left", client.left());
}
