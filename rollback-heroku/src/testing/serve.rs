//! The fake behind a socket.

use axum::{
    Router,
    body::{Bytes, to_bytes},
    extract::{Request as Asked, State},
    http::StatusCode,
    response::{IntoResponse as _, Response},
};
use rollback_core::{
    Error, ErrorKind, Result,
    clock::{Clock as _, SystemClock},
    web::reqwest::Url,
};
use tokio::net::TcpListener;

use super::{Serving, Wire};
use crate::client::Request;

pub(super) async fn serve(heroku: Wire) -> Result<Serving> {
    let failed = |e| Error::new(ErrorKind::Unavailable, "no port on loopback can be had").because(e);
    let listener = TcpListener::bind("127.0.0.1:0").await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    let url = Url::parse(&format!("http://{address}/")).expect("an address is a URL");
    {
        let mut world = heroku.world();
        url.as_str().trim_end_matches('/').clone_into(&mut world.base);
        // Programs go by the machine's clock.
        let behind = SystemClock.now().duration_since(world.now());
        world.clock.jump(behind);
    }
    let app = Router::new().fallback(answer).with_state((heroku, url.clone()));
    let task = tokio::spawn(async move {
        // It ends with the task.
        let _ = axum::serve(listener, app).await;
    });
    Ok(Serving { url, task })
}

async fn answer(State((heroku, base)): State<(Wire, Url)>, asked: Asked) -> Response {
    let (parts, body) = asked.into_parts();
    let body = to_bytes(body, 64 * 1024 * 1024).await.unwrap_or_else(|_| Bytes::new());
    let path = parts.uri.path_and_query().map_or("/", |it| it.as_str());
    let Ok(url) = base.join(path) else { return StatusCode::BAD_REQUEST.into_response() };
    let within = std::time::Duration::ZERO;
    let request = Request { method: parts.method, url, headers: parts.headers, body: body.into(), within };
    let (answer, lost) = heroku.hear(&request);
    if lost {
        // A connection cannot be cut from here; half an answer does the same.
        return (StatusCode::BAD_GATEWAY, "<html>lost</html>").into_response();
    }
    let mut response = (answer.status, answer.body).into_response();
    response.headers_mut().extend(answer.headers);
    response
}
