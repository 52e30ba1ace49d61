//! Both sides keep to Heroku's public schema, and a side that does not is found out.

use rollback_core::backend::DeploymentBackend as _;
use rollback_core::web::reqwest::{Method, Url, header::HeaderMap};
use rollback_heroku::{
    App, Client,
    client::{self, Request, Transport as _},
    testing::{Heroku, Slug},
};
use serde_json::{Value, json};

async fn ask(heroku: &Heroku, method: Method, path: &str, body: Option<Value>) -> u16 {
    answer(heroku, method, path, body, HeaderMap::new()).await.status.as_u16()
}

async fn answer(
    heroku: &Heroku,
    method: Method,
    path: &str,
    body: Option<Value>,
    mut headers: HeaderMap,
) -> client::Answer {
    headers.insert("authorization", format!("Bearer {}", Heroku::TOKEN).parse().unwrap());
    headers.insert("accept", "application/vnd.heroku+json; version=3".parse().unwrap());
    let url = Url::parse(&format!("https://api.heroku.com{path}")).unwrap();
    let body = body.map(|body| body.to_string().into_bytes()).unwrap_or_default();
    heroku.send(Request { method, url, headers, body, within: Default::default() }).await.unwrap()
}

#[tokio::test]
async fn all_links_of_the_schema_are_loaded() {
    assert_eq!(Heroku::links(), (305 + 4, 4));
}

#[tokio::test]
async fn a_request_that_breaks_the_schema_is_found_out() {
    let heroku = Heroku::new();
    let slug = heroku.app("shop", Slug::good());
    let good = json!({ "slug": slug, "description": "Deploy" });
    assert_eq!(ask(&heroku, Method::POST, "/apps/shop/releases", Some(good)).await, 201);
    assert!(heroku.violations().is_empty());
    for (path, body, why) in [
        ("/apps/shop/releases", Some(json!({ "release": "v2" })), "uuid"),
        ("/apps/shop/releases", Some(json!({ "slug": slug, "colour": "red" })), "colour"),
        ("/apps/shop/releases", None, "body"),
        ("/apps/shop/builds", Some(json!({ "url": "https://x.example" })), "source_blob"),
        ("/apps/shop/builds", Some(json!({ "source_blob": { "url": "https://x.example", "sum": "1" } })), "sum"),
        ("/apps/Shop!/releases", Some(json!({ "slug": slug })), "Shop!"),
        ("/sources", Some(json!({})), "no body"),
        ("/apps/shop/rollback", Some(json!({})), "no link"),
        ("/pipeline-promotions", Some(json!({ "pipeline": { "id": slug }, "targets": [] })), "source"),
    ] {
        assert_eq!(ask(&heroku, Method::POST, path, body.clone()).await, 500, "{path} {body:?}");
        let broken = heroku.violations();
        assert!(broken.len() == 1 && broken[0].contains(why), "{path} {body:?}: {broken:?}, expected {why}");
    }
    assert_eq!(ask(&heroku, Method::GET, "/apps/shop/releases/1", None).await, 200, "a version names a release too");
    assert!(heroku.violations().is_empty());
}

#[tokio::test]
async fn one_wrong_field_in_an_answer_is_found_out() {
    for (resource, property, value) in [
        ("release", "version", json!("2")),
        ("release", "id", json!("v2")),
        ("release", "colour", json!("red")),
        ("release", "status", json!("done")),
        ("dyno", "release", json!({ "id": "0", "version": 1 })),
        ("formation", "quantity", json!(1.5)),
        ("config-var", "A", json!(1)),
    ] {
        let heroku = Heroku::new();
        heroku.app("shop", Slug::good());
        let shop = App::new(&heroku.client(), "shop").unwrap();
        heroku.corrupt(resource, property, value);
        assert!(shop.baseline().await.is_err(), "{resource}.{property}");
        let broken = heroku.violations();
        assert!(broken.iter().any(|why| why.contains("the answer")), "{resource}.{property}: {broken:?}");
    }
}

#[tokio::test]
#[should_panic(expected = "the schema was broken")]
async fn what_broke_the_schema_fails_the_test_that_it_happened_in() {
    let heroku = Heroku::new();
    ask(&heroku, Method::GET, "/apps/shop/rollback", None).await;
}

#[tokio::test]
#[should_panic(expected = "the schema was broken")]
async fn what_a_task_broke_that_outlives_the_test_fails_it_too() {
    let heroku = Heroku::new();
    heroku.app("shop", Slug::good());
    heroku.corrupt("release", "version", json!("2"));
    let shop = App::new(&heroku.client(), "shop").unwrap();
    let (told, hear) = tokio::sync::oneshot::channel();
    tokio::spawn(async move {
        drop(shop.baseline().await);
        let _ = told.send(());
        std::future::pending::<()>().await;
        drop(shop);
    });
    hear.await.unwrap();
}

#[tokio::test]
#[should_panic(expected = "the schema was broken")]
async fn what_a_program_broke_over_the_socket_fails_the_test_too() {
    let heroku = Heroku::new();
    heroku.app("shop", Slug::good());
    heroku.corrupt("release", "version", json!("2"));
    let serving = heroku.serve().await.unwrap();
    let client = Client::new(Heroku::TOKEN).unwrap().api_url(serving.url()).unwrap();
    drop(App::new(&client, "shop").unwrap().baseline().await);
}

#[tokio::test]
async fn an_answer_that_the_asker_has_is_not_sent_again() {
    let heroku = Heroku::new();
    heroku.app("shop", Slug::good());
    let asked = async |headers| answer(&heroku, Method::GET, "/apps/shop/releases", None, headers).await;
    let first = asked(HeaderMap::new()).await;
    let known = || HeaderMap::from_iter([("if-none-match".parse().unwrap(), first.headers["etag"].clone())]);
    let again = asked(known()).await;
    assert_eq!((first.status.as_u16(), again.status.as_u16(), again.body.len()), (200, 304, 0));
    heroku.set_config("shop", "FLAG", "on");
    assert_eq!(asked(known()).await.status.as_u16(), 200);
}

#[tokio::test]
async fn a_token_that_a_stranger_sees_is_found_out() {
    let heroku = Heroku::new();
    let mut headers = HeaderMap::new();
    headers.insert("authorization", "Bearer x".parse().unwrap());
    let url = Url::parse("https://s3.example/blobs/get/1").unwrap();
    let request = Request { method: Method::GET, url, headers, body: Vec::new(), within: Default::default() };
    heroku.send(request).await.unwrap();
    assert!(heroku.violations()[0].contains("the token was shown to"));
}
