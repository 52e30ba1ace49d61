//! HTTP over loopback: as much of hyper as the examples need.

use std::{net::SocketAddr, time::Duration};

use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::HOST,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use rollback_core::{Error, ErrorKind, Result};
use tokio::net::{TcpListener, TcpStream};

/// The longest an answer may take.
pub const TIMEOUT: Duration = Duration::from_secs(2);

/// The longest body, in bytes.
const MAX_BODY: usize = 64 * 1024;

/// Answers requests for ever, each connection in a task of its own.
pub async fn serve<H, R>(listener: TcpListener, handler: H)
where
    H: Fn(Request<Bytes>) -> R + Clone + Send + Sync + 'static,
    R: Future<Output = Response<Bytes>> + Send,
{
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // Out of file descriptors, most likely: let some go first.
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let handler = handler.clone();
        let answer = service_fn(move |request: Request<Incoming>| {
            let handler = handler.clone();
            async move {
                let (head, body) = request.into_parts();
                let answer = match Limited::new(body, MAX_BODY).collect().await {
                    Ok(body) => handler(Request::from_parts(head, body.to_bytes())).await,
                    Err(e) => text(StatusCode::BAD_REQUEST, format!("reading the body: {e}")),
                };
                Ok::<_, std::convert::Infallible>(answer.map(Full::new))
            }
        });
        tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer));
    }
}

/// Sends one request on a connection of its own and waits at most [`TIMEOUT`] for the whole answer.
///
/// # Errors
/// `Unavailable` when there was no answer, or only half of one; the request may have been carried out.
pub async fn send(to: SocketAddr, mut request: Request<Bytes>) -> Result<Response<Bytes>> {
    let what = format!("{} {} at {to}", request.method(), request.uri());
    let host = to.to_string().parse().expect("an address is a header value");
    request.headers_mut().insert(HOST, host);
    let exchange = async {
        let stream = TcpStream::connect(to).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        // The connection is driven beside the request and dropped with it, so nothing outlives a timeout.
        let answer = async {
            let (head, body) = sender.send_request(request.map(Full::new)).await?.into_parts();
            let body = Limited::new(body, MAX_BODY).collect().await?.to_bytes();
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>(Response::from_parts(head, body))
        };
        let driven = async {
            let _ = connection.await;
            std::future::pending::<()>().await;
        };
        tokio::select! { answer = answer => answer, () = driven => unreachable!("it never ends") }
    };
    match tokio::time::timeout(TIMEOUT, exchange).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(e)) => Err(Error::new(ErrorKind::Unavailable, what).because(e)),
        Err(_) => Err(Error::new(ErrorKind::Unavailable, format!("{what}: no answer within {TIMEOUT:?}"))),
    }
}

/// Sends a GET.
///
/// # Errors
/// As [`send`].
pub async fn get(to: SocketAddr, path: &'static str) -> Result<Response<Bytes>> {
    send(to, Request::get(path).body(Bytes::new()).expect("a constant path is a URI")).await
}

/// A plain answer.
pub fn text(status: StatusCode, text: impl Into<Bytes>) -> Response<Bytes> {
    let mut answer = Response::new(text.into());
    *answer.status_mut() = status;
    answer
}
