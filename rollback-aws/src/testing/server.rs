//! The simulator as a server on loopback.

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    net::{TcpListener, ToSocketAddrs},
    task::JoinHandle,
};

use super::Simulator;

/// A simulator that listens. Dropping it ends it.
#[derive(Debug)]
pub struct Server {
    at: SocketAddr,
    task: JoinHandle<()>,
}

impl Server {
    pub(super) async fn bind(simulator: Simulator, at: impl ToSocketAddrs) -> std::io::Result<Self> {
        let listener = TcpListener::bind(at).await?;
        let at = listener.local_addr()?;
        Ok(Self { at, task: tokio::spawn(serve(listener, simulator)) })
    }

    /// Where it listens.
    pub const fn address(&self) -> SocketAddr {
        self.at
    }

    /// What AWS clients call `endpoint_url`.
    pub fn endpoint_url(&self) -> String {
        format!("http://{}", self.at)
    }

    /// Waits for as long as it serves: until it is dropped.
    pub async fn ended(mut self) {
        // Cancelled or panicked, it is over; both are the caller's doing.
        let _ = (&mut self.task).await;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(listener: TcpListener, simulator: Simulator) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // Out of file descriptors, most likely: let some go first.
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let simulator = simulator.clone();
        let answer = service_fn(move |request: Request<Incoming>| {
            let simulator = simulator.clone();
            async move {
                let (head, body) = request.into_parts();
                let answer = match Limited::new(body, MAX_BODY).collect().await {
                    Ok(body) => simulator.answer(Request::from_parts(head, body.to_bytes())).await,
                    Err(e) => Some(too_large(&e.to_string())),
                };
                // An error here is a connection that is closed without an answer.
                answer.map(|answer| answer.map(Full::new)).ok_or("the answer is lost")
            }
        });
        tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), answer));
    }
}

fn too_large(why: &str) -> Response<Bytes> {
    let mut answer = Response::new(Bytes::from(format!("reading the body: {why}\n")));
    *answer.status_mut() = StatusCode::PAYLOAD_TOO_LARGE;
    answer
}

/// What a zip of a function may have when it is sent in the request, and its base64 around it.
const MAX_BODY: usize = 70 * 1024 * 1024;
