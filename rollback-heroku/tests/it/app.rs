//! The backend of an app: conformance, sweeps, and what is special about Heroku.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use rollback_core::{
    ErrorKind,
    backend::DeploymentBackend as _,
    gate::{self, Evidence, Verdict},
    model::{Goal, Progress, Revision, Weight},
    state::{Cause, State},
    testing::backend::{self, Bench as _, Driver, Outcome},
};
use rollback_heroku::{
    Candidate,
    testing::{Heroku, Run, Slug},
};

use crate::{
    support::{Shop, a_slug, a_source, an_image},
    sweeps::{roll_out, roll_out_by},
};

/// Every promise is kept, or skipped for a reason that Heroku explains.
async fn conforms(what: &str, shop: Shop) {
    for (promise, outcome) in backend::all(&shop).await {
        let Outcome::Skipped(why) = outcome else { continue };
        let explained = ["the platform checks no versions", "the baseline does not stand here"];
        assert!(explained.contains(&why), "{what}: {promise} was skipped: {why}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_app_keeps_every_promise_with_slugs() {
    conforms("full", Shop::new(a_slug)).await;
}

#[tokio::test(start_paused = true)]
async fn an_app_keeps_every_promise_going_back_by_code_only() {
    conforms("code only", Shop::new(a_slug).app(|app| app.code_only())).await;
}

#[tokio::test(start_paused = true)]
async fn an_app_keeps_every_promise_with_builds() {
    conforms("source", Shop::new(a_source)).await;
}

#[tokio::test(start_paused = true)]
async fn an_app_keeps_every_promise_with_images() {
    conforms("image", Shop::new(an_image)).await;
}

/// A candidate whose release phase takes a minute.
fn a_migration(heroku: &Heroku) -> Revision {
    heroku.app("shop", Slug::good().release_phase(Duration::from_secs(60)));
    let slug = heroku.slug("shop", Slug::good().release_phase(Duration::from_secs(60)));
    Candidate::slug(&slug).and_then(Candidate::revision).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_candidate_that_fails_its_release_phase_never_serves() {
    let shop = Shop::new(a_migration);
    shop.reset().await;
    shop.heroku.fail_release_phases("shop", &[false]);
    let rollout = roll_out(&shop, false).await.rollout;
    let State::RolledBack { cause: Cause::Failed { why } } = &rollout.state else { panic!("{rollout}") };
    assert!(why.as_str().contains("v2 failed in its release phase"), "{why}");
    assert_eq!(shop.heroku.releases("shop").len(), 2, "the baseline never went away, so nothing brings it back");
    assert_eq!(shop.heroku.serving("shop"), 1);
}

#[tokio::test(start_paused = true)]
async fn a_rollback_whose_release_phase_fails_is_told_as_such_and_is_stuck() {
    let shop = Shop::new(a_migration);
    shop.reset().await;
    shop.heroku.fail_release_phases("shop", &[true, false]);
    let rollout = roll_out(&shop, true).await.rollout;
    let State::Stuck { why, .. } = &rollout.state else { panic!("{rollout}") };
    assert!(
        why.as_str().contains("v3") && why.as_str().contains("failed in its release phase: v2 still serves"),
        "{why}"
    );
    assert_eq!(shop.heroku.releases("shop").len(), 3, "one rollback, not two");
    assert_eq!(shop.heroku.serving("shop"), 2);
}

#[tokio::test(start_paused = true)]
async fn a_rollback_whose_release_phase_fails_goes_on_by_code_only_where_that_was_chosen() {
    let shop = Shop::new(a_migration).app(|app| app.code_only_if_full_fails());
    shop.reset().await;
    shop.heroku.fail_release_phases("shop", &[true, false, true]);
    let rollout = roll_out(&shop, true).await.rollout;
    assert!(matches!(rollout.state, State::RolledBack { .. }), "{rollout}");
    let releases = shop.heroku.releases("shop");
    assert_eq!((releases.len(), releases[2].1.as_str()), (4, "failed"));
    assert!(releases[3].2.starts_with("Back to v1 by rollback [shop-1/"), "{}", releases[3].2);
}

#[tokio::test(start_paused = true)]
async fn a_rollback_that_puts_another_slug_in_place_is_not_taken_for_one() {
    let shop = Shop::new(a_slug);
    shop.reset().await;
    let another = shop.heroku.slug("shop", Slug::good());
    shop.heroku.restores_another("shop", &another);
    let rollout = roll_out(&shop, true).await.rollout;
    let State::Stuck { why, .. } = &rollout.state else { panic!("{rollout}") };
    assert!(why.as_str().contains(&format!("v3, which was to bring v1 back, runs slug:{another} instead of")), "{why}");
    assert_eq!(shop.heroku.releases("shop").len(), 3, "one rollback, not two");
}

#[tokio::test(start_paused = true)]
async fn a_rollback_waits_for_the_candidates_release_phase_which_nobody_can_call_back() {
    let shop = Shop::new(a_migration);
    shop.reset().await;
    let mut driver = Driver::new(&shop).await;
    let version = driver.look(Goal::Candidate).await.version;
    let attempt = driver.save(Goal::Candidate, &version);
    driver.send(&attempt).await.unwrap();
    let look = driver.look(Goal::Baseline).await;
    assert!(
        matches!(&look.progress, Progress::Underway(what) if what.as_str().contains("release phase of v2")),
        "{look:?}"
    );
    driver.drive(Goal::Baseline).await;
    assert_eq!(shop.heroku.releases("shop").len(), 3);
    assert_eq!(shop.heroku.serving("shop"), 3);
}

#[tokio::test(start_paused = true)]
async fn an_abort_while_it_builds_cancels_the_build() {
    let shop = Shop::new(a_source);
    shop.reset().await;
    let mut driver = Driver::new(&shop).await;
    let version = driver.look(Goal::Candidate).await.version;
    let attempt = driver.save(Goal::Candidate, &version);
    driver.send(&attempt).await.unwrap();
    let effects = driver.drive(Goal::Baseline).await;
    assert_eq!(effects.len(), 1, "one cancel");
    assert!(shop.heroku.exchanges().iter().any(|it| it.method == "DELETE" && it.path.contains("/builds/")));
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(shop.heroku.releases("shop").len(), 1, "it would have released");
}

#[tokio::test(start_paused = true)]
async fn with_preboot_neither_way_has_arrived_while_old_dynos_serve_unlisted() {
    let shop = Shop::new(a_slug);
    shop.reset().await;
    shop.heroku.preboot("shop", true);
    let mut driver = Driver::new(&shop).await;
    for (goal, old) in [(Goal::Candidate, Weight::NONE), (Goal::Baseline, Weight::ALL)] {
        let before = shop.heroku.serving("shop");
        let version = driver.look(goal).await.version;
        let attempt = driver.save(goal, &version);
        driver.send(&attempt).await.unwrap();
        let mut looks = 0;
        loop {
            let look = driver.look(goal).await;
            if look.progress == Progress::Reached {
                break;
            }
            let preboot = matches!(&look.progress, Progress::Underway(what) if what.as_str().starts_with("preboot"));
            assert_eq!(look.weight, Some(old), "{look:?}");
            looks += usize::from(preboot);
            tokio::time::sleep(Duration::from_secs(10)).await;
        }
        assert!(looks >= 10, "{goal}: {looks} looks saw the window");
        assert_ne!(shop.heroku.serving("shop"), before, "{goal} was reached while v{before} served");
    }
}

#[tokio::test(start_paused = true)]
async fn with_preboot_no_gate_judges_the_candidate_before_users_reach_it() {
    let shop = Shop::new(a_slug);
    shop.reset().await;
    shop.heroku.preboot("shop", true);
    let judged = Arc::new(Mutex::new(Vec::new()));
    let (heroku, seen) = (shop.heroku.clone(), Arc::clone(&judged));
    let gate = gate::from_fn("errors", move |window| {
        seen.lock().unwrap().push((window.weight, heroku.serving("shop")));
        let evidence = Evidence::new(window.now, "as users see it");
        std::future::ready(Ok(if window.weight == Weight::ALL {
            Verdict::Unhealthy(evidence)
        } else {
            Verdict::Inconclusive(evidence)
        }))
    });
    let rollout = roll_out_by(&shop, gate.unwrap()).await.rollout;
    assert!(matches!(rollout.state, State::RolledBack { cause: Cause::Unhealthy { .. } }), "{rollout}");
    let judged = judged.lock().unwrap();
    assert!(judged.iter().any(|(weight, _)| *weight == Weight::ALL), "{judged:?}");
    for (weight, serving) in judged.iter() {
        assert!(*weight == Weight::NONE || *serving == 2, "{judged:?}");
    }
    assert_eq!(shop.heroku.serving("shop"), 3, "it ended while v2 served still");
}

#[tokio::test(start_paused = true)]
async fn an_app_in_which_two_releases_serve_has_no_baseline() {
    let shop = Shop::new(a_slug);
    shop.reset().await;
    shop.heroku.preboot("shop", true);
    let slug = shop.heroku.slug("shop", Slug::good());
    shop.heroku.somebody_releases("shop", &slug);
    let error = shop.backend().baseline().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Mixed);
    assert!(error.chain().contains("preboot is on"), "{}", error.chain());
    tokio::time::sleep(Duration::from_secs(180)).await;
    assert_eq!(shop.backend().baseline().await.unwrap().id.as_str(), format!("slug:{slug}"));

    let slow = shop.heroku.slug("shop", Slug::good().release_phase(Duration::from_secs(60)));
    shop.heroku.somebody_releases("shop", &slow);
    let error = shop.backend().baseline().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Mixed);
    assert!(error.chain().contains("between v2 and v3, which is pending"), "{}", error.chain());
}

#[tokio::test(start_paused = true)]
async fn a_candidate_whose_every_dyno_crashes_fails_at_once() {
    let shop = Shop::new(|heroku| {
        heroku.app("shop", Slug::good());
        let slug = heroku.slug("shop", Slug::that(Run::CrashAtBoot));
        Candidate::slug(&slug).and_then(Candidate::revision).unwrap()
    });
    shop.reset().await;
    let begun = tokio::time::Instant::now();
    let rollout = roll_out(&shop, false).await.rollout;
    let State::RolledBack { cause: Cause::Failed { why } } = &rollout.state else { panic!("{rollout}") };
    assert_eq!(why.as_str(), "every web dyno of v2 has crashed");
    assert!(begun.elapsed() < Duration::from_secs(120), "{:?}", begun.elapsed());
    assert_eq!(shop.heroku.serving("shop"), 3);
}

#[tokio::test(start_paused = true)]
async fn somebody_elses_release_in_between_is_drift_and_is_left_alone() {
    let shop = Shop::new(a_slug);
    shop.reset().await;
    let mut driver = Driver::new(&shop).await;
    driver.drive(Goal::Candidate).await;
    shop.heroku.set_config("shop", "FLAG", "on");
    for goal in [Goal::Candidate, Goal::Baseline] {
        let look = driver.look(goal).await;
        let Progress::Drifted(what) = &look.progress else { panic!("{goal}: {look:?}") };
        assert_eq!(what.as_str(), "v3 by bo@example.com: Set FLAG config vars");
    }
    let releases = shop.heroku.releases("shop").len();
    // A call that was decided before it came is refused, whatever it wants.
    let late = driver.save(Goal::Baseline, &"v2".parse().unwrap());
    assert_eq!(driver.send(&late).await.unwrap_err().kind(), ErrorKind::Conflict);
    assert_eq!(shop.heroku.releases("shop").len(), releases);
}

#[tokio::test(start_paused = true)]
async fn a_release_of_somebody_elses_that_failed_is_no_drift_and_what_failed_is_not_gone_back_to() {
    let shop = Shop::new(a_slug);
    shop.reset().await;
    // The newest release failed: what serves is v1, and Heroku's own command line would go back too far.
    let broken = shop.heroku.slug("shop", Slug::good().release_phase(Duration::from_secs(1)));
    shop.heroku.fail_release_phases("shop", &[false]);
    shop.heroku.somebody_releases("shop", &broken);
    tokio::time::sleep(Duration::from_secs(5)).await;
    let candidate = shop.heroku.slug("shop", Slug::good());
    let candidate = Candidate::slug(&candidate).and_then(Candidate::revision).unwrap();
    let mut driver = Driver::new(&shop).await;
    driver.change.candidate = candidate;
    driver.drive(Goal::Candidate).await;
    driver.drive(Goal::Baseline).await;
    assert_eq!(shop.heroku.releases("shop")[3].2, "Rollback to v1");
}

#[tokio::test(start_paused = true)]
async fn a_full_rollback_brings_the_config_back_and_code_only_leaves_it() {
    for (code_only, value) in [(false, None), (true, Some("on".to_owned()))] {
        let shop = Shop::new(a_slug);
        let shop = if code_only { shop.app(|app| app.code_only()) } else { shop };
        shop.reset().await;
        let mut driver = Driver::new(&shop).await;
        driver.drive(Goal::Candidate).await;
        shop.heroku.set_config_quietly("shop", "FLAG", "on");
        let look = driver.look(Goal::Baseline).await;
        let told =
            look.not_restored.iter().any(|note| note.as_str().starts_with("the config var FLAG, which is newer"));
        assert_eq!(told, !code_only, "{:?}", look.not_restored);
        driver.drive(Goal::Baseline).await;
        assert_eq!(shop.heroku.config("shop", "FLAG"), value, "code only: {code_only}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_addon_that_came_since_is_told_to_stay() {
    let shop = Shop::new(a_slug);
    shop.reset().await;
    let driver = Driver::new(&shop).await;
    shop.heroku.add_addon("shop", "heroku-redis:mini");
    let look = driver.look(Goal::Baseline).await;
    let told = look.not_restored.iter().any(|note| note.as_str().contains("heroku-redis:mini, which is newer"));
    assert!(told, "{:?}", look.not_restored);
}

#[tokio::test(start_paused = true)]
async fn lists_are_read_over_all_their_pages() {
    let shop = Shop::new(a_slug);
    shop.reset().await;
    shop.heroku.pages_of(2);
    shop.heroku.scale("shop", "web", 7);
    shop.heroku.scale("shop", "worker", 3);
    let mut driver = Driver::new(&shop).await;
    driver.drive(Goal::Candidate).await;
    let look = driver.look(Goal::Candidate).await;
    assert_eq!(look.parts.len(), 10);
    assert!(shop.heroku.exchanges().iter().any(|it| it.status == 206));
    driver.drive(Goal::Baseline).await;
}

#[tokio::test(start_paused = true)]
async fn the_last_requests_of_the_budget_are_kept_for_the_rollback() {
    let shop = Shop::new(a_slug);
    shop.reset().await;
    let driver = Driver::new(&shop).await;
    let backend = shop.backend();
    let look = |goal| backend.observe(&driver.change, goal, None);
    look(Goal::Candidate).await.unwrap();
    shop.heroku.budget(150);
    // Heroku says how many are left with each answer.
    let _ = look(Goal::Candidate).await;
    let before = shop.heroku.exchanges().len();
    let error = look(Goal::Candidate).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Throttled);
    assert!(error.chain().contains("200 are kept for a rollback"), "{}", error.chain());
    assert!(error.retry_after().is_some());
    assert_eq!(shop.heroku.exchanges().len(), before, "nothing was sent");
    look(Goal::Baseline).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_no_json_is_unavailable_and_looked_past() {
    let shop = Shop::new(a_slug);
    shop.reset().await;
    let mut driver = Driver::new(&shop).await;
    shop.heroku.fail_reads(30);
    driver.drive(Goal::Candidate).await;
    assert!(shop.heroku.exchanges().iter().filter(|it| it.status == 503).count() == 30);
}
