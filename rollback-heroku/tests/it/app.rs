//! The backend of an app: conformance, sweeps, and what is special about Heroku.

use rollback_core::testing::backend::{self, Outcome};

use crate::support::{Shop, a_slug, a_source, an_image};

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
