//! What can be wrong is told before anything changes, or honestly after.

use std::time::Duration;

use rollback_core::{
    ErrorKind,
    backend::{DeploymentBackend as _, Readiness},
    engine::{Engine, NewRollout, Target},
    model::{Change, Revision, RolloutId, TargetId},
    plan::{Deadlines, Plan},
    state::{Cause, State},
    store::Memory,
    testing::backend::Bench as _,
};
use rollback_heroku::{
    App, Candidate, Client,
    testing::{Heroku, Slug, Token},
};

use crate::{
    support::{SOURCE, SUM, Shop, VALUE, a_slug, a_source, an_image},
    sweeps::roll_out,
};

fn revision(candidate: rollback_core::Result<Candidate>) -> Revision {
    candidate.and_then(Candidate::revision).unwrap()
}

/// Preflight of this candidate, which changes nothing.
async fn proved(shop: &Shop, candidate: Revision) -> Readiness {
    let backend = shop.backend();
    let baseline = backend.baseline().await.unwrap();
    let target = TargetId::try_from("shop").unwrap();
    let change = Change { rollout: RolloutId::fresh(&target), target, baseline, candidate };
    let before = shop.heroku.releases("shop");
    let plan = Plan::all_at_once(Duration::ZERO).unwrap();
    let ready = backend.preflight(&change, &plan).await.unwrap_or_else(|e| panic!("preflight: {}", e.chain()));
    assert_eq!(shop.heroku.releases("shop"), before);
    assert_eq!(shop.heroku.effects(), 0, "preflight had an effect");
    assert!(!format!("{ready:?}").contains(VALUE), "a value of a config var was told: {ready:?}");
    ready
}

fn says(notes: &[rollback_core::model::Note], text: &str) -> bool {
    notes.iter().any(|note| note.as_str().contains(text))
}

#[tokio::test(start_paused = true)]
async fn a_good_app_is_ready_and_says_what_a_rollback_does_not_bring_back() {
    let shop = Shop::new(a_slug);
    let candidate = a_slug(&shop.heroku);
    shop.heroku.preboot("shop", true);
    let ready = proved(&shop, candidate).await;
    assert!(ready.refused.is_empty() && ready.no_way_back.is_empty(), "{ready:?}");
    assert!(says(&ready.proved, "the slug of v1 is there") && says(&ready.proved, "eligible"), "{ready:?}");
    assert!(says(&ready.proved, "strips no config var") && says(&ready.proved, "owns the app"), "{ready:?}");
    assert!(says(&ready.not_provable, "no dry run"), "{ready:?}");
    for what in ["databases", "add-ons", "preboot is on: going back takes 3 more minutes"] {
        assert!(says(&ready.not_restored, what), "{what}: {ready:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_plan_that_gives_release_phases_less_than_they_may_take_is_told_so() {
    let shop = Shop::new(|heroku| {
        heroku.app("shop", Slug::good().release_phase(Duration::from_secs(1)));
        let slug = heroku.slug("shop", Slug::good().release_phase(Duration::from_secs(55 * 60)));
        revision(Candidate::slug(&slug))
    });
    shop.reset().await;
    let ready = proved(&shop, shop.candidate()).await;
    assert!(says(&ready.not_provable, "the plan gives a shift 15 and a rollback 60 minutes"), "{ready:?}");
    assert!(says(&ready.not_restored, "runs again on the way back"), "{ready:?}");

    let hours = |n: u64| Duration::from_secs(3600 * n);
    let deadlines = Deadlines { shift: hours(2), roll_back: hours(3), ..Deadlines::default() };
    let plan = Plan::all_at_once(Duration::from_secs(60)).unwrap().with_deadlines(deadlines).unwrap();
    let engine = Engine::builder(Memory::new()).clock(shop.heroku.clock()).build().unwrap();
    engine.register(Target::new("shop", shop.backend()).unwrap()).unwrap();
    let new = NewRollout::new("shop", shop.candidate(), plan).unwrap();
    let rollout = engine.start(new).await.unwrap().finished().await.rollout;
    assert_eq!(rollout.state, State::Promoted, "a release phase of 55 minutes is waited for: {rollout}");
    assert!(!says(&rollout.readiness.not_provable, "release phases"), "{rollout}");
    assert_eq!(shop.heroku.releases("shop").len(), 2);
}

#[tokio::test(start_paused = true)]
async fn an_app_that_does_not_exist_is_not_found() {
    let heroku = Heroku::new();
    let error = App::new(&heroku.client(), "no-such-app").unwrap().baseline().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.chain().contains("no-such-app") && error.chain().contains("(request fake-"), "{}", error.chain());
    assert_eq!(App::new(&heroku.client(), "../account").unwrap_err().kind(), ErrorKind::Invalid);
}

#[tokio::test(start_paused = true)]
async fn a_slug_of_another_app_or_one_that_expired_is_refused() {
    let shop = Shop::new(a_slug);
    let expired = a_slug(&shop.heroku);
    shop.heroku.app("other", Slug::good());
    let foreign = shop.heroku.slug("other", Slug::good());
    let ready = proved(&shop, revision(Candidate::slug(&foreign))).await;
    assert!(says(&ready.refused, "is no slug of app shop"), "{ready:?}");
    shop.heroku.delete_slug(expired.id.as_str().strip_prefix("slug:").unwrap());
    let ready = proved(&shop, expired).await;
    assert!(says(&ready.refused, "was deleted by Heroku at"), "{ready:?}");
}

#[tokio::test(start_paused = true)]
async fn a_baseline_whose_slug_expired_or_that_heroku_would_not_restore_is_no_way_back() {
    let shop = Shop::new(a_slug);
    let candidate = a_slug(&shop.heroku);
    let old = shop.heroku.releases("shop")[0].3.clone().unwrap();
    shop.heroku.eligible("shop", 1, false);
    let ready = proved(&shop, candidate.clone()).await;
    assert!(says(&ready.no_way_back, "not eligible for rollback"), "{ready:?}");
    shop.heroku.delete_slug(&old);
    let ready = proved(&shop, candidate).await;
    assert!(says(&ready.no_way_back, "the slug of v1 was deleted"), "{ready:?}");
}

#[tokio::test(start_paused = true)]
async fn a_full_rollback_that_would_strip_or_stale_config_vars_is_no_way_back_and_code_only_is() {
    let shop = Shop::new(a_slug);
    let candidate = a_slug(&shop.heroku);
    shop.heroku.set_config_quietly("shop", "DATABASE_URL", "postgres://u:hunter2@new.example/d");
    shop.heroku.set_config_quietly("shop", "REDIS_URL", "redis://h:hunter2@r.example");
    let ready = proved(&shop, candidate.clone()).await;
    assert!(says(&ready.no_way_back, "strip or stale the config vars DATABASE_URL, REDIS_URL"), "{ready:?}");
    let shop = shop.app(|app| app.code_only());
    let ready = proved(&shop, candidate).await;
    assert!(ready.no_way_back.is_empty() && ready.refused.is_empty(), "{ready:?}");
    assert!(says(&ready.not_restored, "config vars, by choice"), "{ready:?}");
}

#[tokio::test(start_paused = true)]
async fn a_source_that_is_not_there_is_refused_and_a_wrong_checksum_fails_the_build() {
    let shop = Shop::new(a_source);
    a_source(&shop.heroku);
    let gone = revision(Candidate::source("https://sources.example/gone.tgz?signature=s3cr3t", SUM));
    let ready = proved(&shop, gone).await;
    assert!(says(&ready.refused, "the source cannot be read") && says(&ready.refused, "404"), "{ready:?}");
    assert!(!format!("{ready:?}").contains("s3cr3t"), "{ready:?}");

    let shop = Shop::new(|heroku| {
        a_source(heroku);
        revision(Candidate::source(SOURCE, &"0".repeat(64)))
    });
    shop.reset().await;
    let rollout = roll_out(&shop, false).await.rollout;
    let State::RolledBack { cause: Cause::Failed { why } } = &rollout.state else { panic!("{rollout}") };
    assert!(why.as_str().starts_with("build ") && why.as_str().contains("failed"), "{why}");
    assert_eq!(shop.heroku.releases("shop").len(), 1, "nothing was released");
}

#[tokio::test(start_paused = true)]
async fn a_tarball_that_changed_is_refused() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "tarball").unwrap();
    let candidate = Candidate::tarball(file.path()).await.unwrap().revision().unwrap();
    std::fs::write(file.path(), "another").unwrap();
    let shop = Shop::new(a_slug);
    a_slug(&shop.heroku);
    let ready = proved(&shop, candidate.clone()).await;
    assert!(says(&ready.refused, "has changed since the rollout was planned"), "{ready:?}");
    std::fs::remove_file(file.path()).unwrap();
    assert!(says(&proved(&shop, candidate).await.refused, "cannot be read"));
    assert_eq!(Candidate::tarball("/no/such/file").await.unwrap_err().kind(), ErrorKind::Invalid);
}

#[tokio::test(start_paused = true)]
async fn a_token_that_may_not_says_what_to_do() {
    for (token, words) in [(Token::Revoked, "authorizations:create"), (Token::TwoFactor, "second factor")] {
        let heroku = Heroku::new();
        heroku.app("shop", Slug::good());
        heroku.token(token);
        let error = App::new(&heroku.client(), "shop").unwrap().baseline().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Denied, "{token:?}");
        assert!(error.chain().contains(words), "{token:?}: {}", error.chain());
        assert!(!error.chain().contains(Heroku::TOKEN));
    }
    for bad in ["", "HRKU-x\n", " HRKU-x"] {
        let error = Client::new(bad).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(bad.is_empty() || !error.chain().contains("HRKU"), "{}", error.chain());
    }
    assert!(!format!("{:?}", Heroku::new().client()).contains(Heroku::TOKEN));
}

#[tokio::test(start_paused = true)]
async fn a_token_that_may_only_read_changes_nothing_and_ends_at_the_baseline() {
    let shop = Shop::new(a_slug);
    shop.reset().await;
    shop.heroku.token(Token::ReadOnly);
    let rollout = roll_out(&shop, false).await.rollout;
    assert!(matches!(rollout.state, State::RolledBack { .. }), "{rollout}");
    assert_eq!(shop.heroku.releases("shop").len(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_account_without_the_permission_to_deploy_is_refused() {
    let shop = Shop::new(a_slug);
    let candidate = a_slug(&shop.heroku);
    shop.heroku.permissions("shop", &["view", "operate"]);
    let ready = proved(&shop, candidate.clone()).await;
    assert!(says(&ready.refused, "lacks the permission deploy on app shop"), "{ready:?}");
    shop.heroku.permissions("shop", &["view", "deploy"]);
    let ready = proved(&shop, candidate).await;
    assert!(ready.refused.is_empty() && says(&ready.proved, "may deploy, as collaborator"), "{ready:?}");
}

#[tokio::test(start_paused = true)]
async fn maintenance_mode_and_an_app_without_dynos_are_refused_unless_allowed() {
    let shop = Shop::new(a_slug);
    let candidate = a_slug(&shop.heroku);
    shop.heroku.maintenance("shop", true);
    shop.heroku.scale("shop", "web", 0);
    let ready = proved(&shop, candidate.clone()).await;
    assert!(says(&ready.refused, "maintenance mode") && says(&ready.refused, "has no dynos"), "{ready:?}");
    let shop = shop.app(|app| app.allow_maintenance().allow_no_dynos());
    assert!(proved(&shop, candidate).await.refused.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_container_app_has_no_slug_and_goes_back_in_full_only() {
    let shop = Shop::new(an_image);
    let image = an_image(&shop.heroku);
    let backend = shop.backend();
    assert_eq!(backend.baseline().await.unwrap().id.as_str(), "image:web=0123456789ab");
    assert!(proved(&shop, image.clone()).await.refused.is_empty());
    let shop = shop.app(|app| app.code_only());
    let ready = proved(&shop, image).await;
    assert!(says(&ready.no_way_back, "only a full rollback"), "{ready:?}");

    let shop = Shop::new(a_slug);
    a_slug(&shop.heroku);
    let image = revision(Candidate::image("web", &format!("sha256:{}", "ab".repeat(32))));
    let ready = proved(&shop, image).await;
    assert!(says(&ready.refused, "not of the stack container"), "{ready:?}");
}

#[tokio::test(start_paused = true)]
async fn a_fir_app_is_read_and_rolled_back_in_full() {
    fn fir(heroku: &Heroku) -> Revision {
        let candidate = a_source(heroku);
        heroku.fir("shop");
        candidate
    }
    let shop = Shop::new(fir);
    shop.reset().await;
    let before = shop.backend().baseline().await.unwrap();
    assert!(before.id.as_str().starts_with("oci:"), "{}", before.id);
    let rollout = roll_out(&shop, true).await.rollout;
    assert!(matches!(rollout.state, State::RolledBack { cause: Cause::Unhealthy { .. } }), "{rollout}");
    assert_eq!(shop.backend().baseline().await.unwrap().id, before.id);
}
