//! What is released: a small HTTP service whose builds differ in their manners.

use std::{
    io,
    net::Ipv4Addr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use hyper::{Request, Response, StatusCode, body::Bytes};
use serde::{Deserialize, Serialize};
use tokio::{io::AsyncReadExt, net::TcpListener};

use crate::http;

/// The header in which every answer names the release that gave it.
pub const RELEASE: &str = "x-release";

/// One build of the service, for ever the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Build {
    /// Its name: `v2`.
    pub release: String,
    /// How many of a hundred answers are a 500.
    #[serde(default)]
    pub failing: u8,
    /// How many of a hundred answers, besides those, take 400 milliseconds.
    #[serde(default)]
    pub slow: u8,
}

impl Build {
    /// A build that works.
    pub fn good(release: impl Into<String>) -> Self {
        Self { release: release.into(), failing: 0, slow: 0 }
    }

    /// A build as one would rather not release it: some answers are a 500, some are slow, and its health page says that
    /// all is well.
    pub fn bad(release: impl Into<String>) -> Self {
        Self { release: release.into(), failing: 25, slow: 15 }
    }

    /// Whether it works.
    pub const fn is_good(&self) -> bool {
        self.failing == 0 && self.slow == 0
    }
}

/// Serves this build on a free port of loopback, which it prints, until standard input ends: when whoever started it is
/// gone, however that came about.
///
/// # Errors
/// When the build promises more than a hundred of a hundred answers, or no port is to be had.
pub async fn run(build: Build) -> io::Result<()> {
    if build.failing.saturating_add(build.slow) > 100 {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "more than 100 of 100 answers are failing or slow"));
    }
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    println!("{}", listener.local_addr()?);
    let (build, asked) = (Arc::new(build), Arc::new(AtomicU64::new(0)));
    let serving = http::serve(listener, move |request| {
        let (build, asked) = (Arc::clone(&build), Arc::clone(&asked));
        async move { answer(&build, &asked, &request).await }
    });
    let parent = async {
        let mut stdin = tokio::io::stdin();
        while stdin.read(&mut [0; 64]).await.is_ok_and(|n| n > 0) {}
    };
    tokio::select! { () = serving => {}, () = parent => {} }
    Ok(())
}

async fn answer(build: &Build, asked: &AtomicU64, request: &Request<Bytes>) -> Response<Bytes> {
    let mut answer = match request.uri().path() {
        "/healthz" => http::text(StatusCode::OK, "ok\n"),
        "/" => {
            // 37 and 100 have no common factor: every hundred answers hold each share exactly, well spread.
            let dice = asked.fetch_add(1, Ordering::Relaxed).wrapping_mul(37) % 100;
            if dice < build.failing.into() {
                http::text(StatusCode::INTERNAL_SERVER_ERROR, "something went wrong\n")
            } else {
                if dice < u64::from(build.failing) + u64::from(build.slow) {
                    tokio::time::sleep(Duration::from_millis(400)).await;
                }
                http::text(StatusCode::OK, format!("hello from {}\n", build.release))
            }
        }
        _ => http::text(StatusCode::NOT_FOUND, "there is / and /healthz\n"),
    };
    if let Ok(release) = build.release.parse() {
        answer.headers_mut().insert(RELEASE, release);
    }
    answer
}
