//! What leaves this machine, and where it goes: over real sockets.

use std::sync::{Arc, Mutex};

use axum::{
    Router,
    extract::Request,
    http::{HeaderMap, StatusCode, header::LOCATION},
    response::IntoResponse as _,
};
use rollback_core::{ErrorKind, backend::DeploymentBackend as _};
use rollback_heroku::{App, Client, testing::Heroku};

type Seen = Arc<Mutex<Vec<(String, HeaderMap)>>>;

/// A server that answers everything with this, and what it was asked.
async fn server(status: StatusCode, location: Option<String>) -> (String, Seen) {
    let seen = Seen::default();
    let asked = Arc::clone(&seen);
    let app = Router::new().fallback(move |request: Request| {
        asked.lock().unwrap().push((request.uri().path().into(), request.headers().clone()));
        let location = location.clone().map(|to| [(LOCATION, to)]);
        async move { (status, location.map_or_else(|| "{}".into_response(), |it| (it, "{}").into_response())) }
    });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, app).await });
    (url, seen)
}

#[tokio::test]
async fn the_token_goes_to_the_api_and_over_no_redirect() {
    for status in [301, 302, 303, 307, 308] {
        let (other, stranger) = server(StatusCode::OK, None).await;
        let (api, seen) = server(StatusCode::from_u16(status).unwrap(), Some(format!("{other}/taken"))).await;
        let client = Client::new(Heroku::TOKEN).unwrap().api_url(&api).unwrap();
        let error = App::new(&client, "shop").unwrap().baseline().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Internal, "{}", error.chain());
        assert!(error.chain().contains(&status.to_string()) && !error.chain().contains("HRKU"), "{}", error.chain());
        assert!(stranger.lock().unwrap().is_empty(), "the redirect was followed");
        let seen = seen.lock().unwrap();
        let (path, headers) = &seen[0];
        assert!(path.starts_with("/apps/shop/"), "{path}");
        assert_eq!(headers["authorization"], format!("Bearer {}", Heroku::TOKEN));
        assert_eq!(headers["accept"], "application/vnd.heroku+json; version=3");
        assert!(headers["user-agent"].to_str().unwrap().starts_with("rollback-heroku/"));
    }
    let error = Client::new(Heroku::TOKEN).unwrap().api_url("https://api.example.com").unwrap_err();
    assert!(error.to_string().contains("may not be sent to https://api.example.com"), "{error}");
}
