//! Webhooks wake, and never decide; what is not signed does neither.

use std::time::Duration;

use axum::{
    body::Body,
    http::{Request, StatusCode},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use hmac::{Hmac, KeyInit as _, Mac as _};
use rollback_core::{
    engine::{Engine, NewRollout, Target},
    plan::Plan,
    state::State,
    store::Memory,
    testing::backend::Bench as _,
};
use rollback_heroku::webhook::Hints;
use serde_json::json;
use sha2::Sha256;
use tower::ServiceExt as _;

use crate::support::{Shop, a_slug};

const SECRET: &str = "the-secret-of-the-webhook";

fn signed(body: &str, secret: &str) -> Request<Body> {
    let mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).unwrap().chain_update(body).finalize().into_bytes();
    let request = Request::post("/heroku").header("Heroku-Webhook-Hmac-SHA256", STANDARD.encode(mac));
    request.body(Body::from(body.to_owned())).unwrap()
}

fn released(app: &str) -> String {
    json!({
        "id": "1", "action": "update", "resource": "release",
        "data": { "id": "2", "app": { "id": "3", "name": app }, "version": 2, "status": "succeeded", "current": true },
        "webhook_metadata": { "event": { "include": "api:release" } },
    })
    .to_string()
}

#[tokio::test(start_paused = true)]
async fn what_is_not_signed_or_no_webhook_is_turned_away() {
    let shop = Shop::new(a_slug);
    let router = Hints::new(SECRET).unwrap().app(&shop.backend()).router();
    let body = released("shop");
    for (request, status) in [
        (signed(&body, SECRET), StatusCode::NO_CONTENT),
        (signed(&released("nobody"), SECRET), StatusCode::NO_CONTENT),
        (signed(&body, "another-secret-of-someone"), StatusCode::UNAUTHORIZED),
        (Request::post("/heroku").body(Body::from(body.clone())).unwrap(), StatusCode::UNAUTHORIZED),
        (signed("{}", SECRET), StatusCode::BAD_REQUEST),
        (signed(&"x".repeat(Hints::MAX_BODY + 1), SECRET), StatusCode::PAYLOAD_TOO_LARGE),
    ] {
        assert_eq!(router.clone().oneshot(request).await.unwrap().status(), status);
    }
    let mut cut = signed(&body, SECRET);
    *cut.body_mut() = Body::from(body.replace("shop", "ship"));
    assert_eq!(router.oneshot(cut).await.unwrap().status(), StatusCode::UNAUTHORIZED, "another body");
    assert!(Hints::new("short").is_err());
    assert!(!format!("{:?}", Hints::new(SECRET).unwrap()).contains(SECRET));
}

#[tokio::test(start_paused = true)]
async fn a_hint_wakes_the_rollout_and_a_lie_promotes_nothing() {
    let shop = Shop::new(a_slug);
    shop.reset().await;
    let app = shop.backend();
    let router = Hints::new(SECRET).unwrap().app(&app).router();
    let engine = Engine::builder(Memory::new()).clock(shop.heroku.clock()).build().unwrap();
    let hour = Duration::from_secs(3600);
    engine.register(Target::new("shop", app).unwrap().look_every(hour, hour)).unwrap();
    let plan = Plan::all_at_once(Duration::from_secs(2 * 3600)).unwrap();
    let handle = engine.start(NewRollout::new("shop", shop.candidate(), plan).unwrap()).await.unwrap();
    while shop.heroku.effects() == 0 {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let looks = || shop.heroku.exchanges().iter().filter(|it| it.path.ends_with("/releases")).count();

    // It says that all is well, and the dynos boot still.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let before = looks();
    router.clone().oneshot(signed(&released("shop"), SECRET)).await.unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(looks() > before, "nobody looked");
    assert!(matches!(handle.status().state, State::Shifting { .. }), "{}", handle.status());

    // Of another app, or unsigned: nobody is woken. Looks of its own come at growing intervals between.
    let mut quiet = false;
    for _ in 0..10 {
        let before = looks();
        router.clone().oneshot(signed(&released("another"), SECRET)).await.unwrap();
        router.clone().oneshot(signed(&released("shop"), "another-secret-of-someone")).await.unwrap();
        tokio::time::sleep(Duration::from_millis(500)).await;
        quiet |= looks() == before;
    }
    assert!(quiet, "each of ten hints that are nobody's woke it");

    // The dynos have been up for long enough: the look of its own would come much later.
    tokio::time::sleep(Duration::from_secs(60)).await;
    let at = tokio::time::Instant::now();
    router.oneshot(signed(&released("shop"), SECRET)).await.unwrap();
    while matches!(handle.status().state, State::Shifting { .. }) {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(at.elapsed() < Duration::from_secs(5), "{:?}", at.elapsed());
    handle.abort("ana", "enough").await.unwrap();
    engine.shutdown(Duration::from_secs(1)).await;
}
