//! The platform's API: what the router can be asked, and a client for it. Nothing here knows the library's traits.

use std::{collections::BTreeMap, fmt, net::SocketAddr};

use hyper::{Method, Request, Response, StatusCode, body::Bytes, header::IF_MATCH};
use rollback_core::{Error, ErrorKind, Result};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{http, service::Build};

/// Which releases stand, and how the traffic is split between them. `PUT` as a whole, against a version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Split {
    /// The release that gets the rest of the traffic.
    pub stable: Build,
    /// A release beside it, if any.
    pub canary: Option<Build>,
    /// The canary's share of traffic in percent.
    pub weight: u8,
    /// A mark that the caller wants to find again.
    pub nonce: Option<String>,
}

impl Split {
    /// This release and nothing else.
    pub const fn alone(stable: Build) -> Self {
        Self { stable, canary: None, weight: 0, nonce: None }
    }
}

/// `v1`, or `v1 with 10 % on v2`.
impl fmt::Display for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.stable.release)?;
        match &self.canary {
            Some(canary) => write!(f, " with {} % on {}", self.weight, canary.release),
            None => Ok(()),
        }
    }
}

/// What the router has in front of users.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// The router's process, to be told from a stranger who got its port.
    pub pid: u32,
    /// Changes with every accepted `PUT`; the next one must name it.
    pub version: u64,
    /// What was asked for last.
    pub split: Split,
    /// The releases' processes, by release.
    pub instances: BTreeMap<String, Instance>,
}

impl Seen {
    /// The process of this build.
    pub fn instance(&self, build: &Build) -> &Instance {
        self.instances.get(&build.release).unwrap_or(&Instance::Starting)
    }
}

/// The process of a release.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Instance {
    /// It has not said yet where it listens.
    Starting,
    /// It listens here.
    Up(SocketAddr),
    /// It ended, for this reason, and stays down until somebody `PUT`s a split that has it.
    Down(String),
}

/// What users got from one release.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// All requests.
    pub requests: u64,
    /// Those answered with 500 or more, or not at all.
    pub failed: u64,
    /// Those that took longer than 250 milliseconds.
    pub slow: u64,
}

/// A client of the router's admin port.
#[derive(Clone, Copy, Debug)]
pub struct Admin {
    at: SocketAddr,
}

impl Admin {
    /// The router whose admin port this is.
    pub const fn new(at: SocketAddr) -> Self {
        Self { at }
    }

    /// What is in front of users.
    ///
    /// # Errors
    /// `Unavailable` when the router does not answer.
    pub async fn look(&self) -> Result<Seen> {
        read(&http::get(self.at, "/split").await?)
    }

    /// Asks for this split, unless the router has moved on from this version.
    ///
    /// # Errors
    /// `Conflict` when it has: nothing was changed. `Invalid` when it cannot do that. `Unavailable` when there was no
    /// answer: it may have.
    pub async fn put(&self, split: &Split, version: &str) -> Result<()> {
        let json = serde_json::to_vec(split).expect("a split is JSON");
        let request = Request::builder().method(Method::PUT).uri("/split").header(IF_MATCH, version).body(json.into());
        let request = request.map_err(|e| Error::invalid("the version is not a header value").because(e))?;
        accepted(&http::send(self.at, request).await?)
    }

    /// What users got so far, by release.
    ///
    /// # Errors
    /// `Unavailable` when the router does not answer.
    pub async fn counts(&self) -> Result<BTreeMap<String, Counts>> {
        read(&http::get(self.at, "/counts").await?)
    }

    /// Ends the router and its releases.
    ///
    /// # Errors
    /// `Unavailable` when the router does not answer.
    pub async fn stop(&self) -> Result<()> {
        let request = Request::delete("/").body(Bytes::new()).expect("a constant path is a URI");
        accepted(&http::send(self.at, request).await?)
    }
}

fn read<T: DeserializeOwned>(answer: &Response<Bytes>) -> Result<T> {
    accepted(answer)?;
    serde_json::from_slice(answer.body())
        .map_err(|e| Error::new(ErrorKind::Internal, "the router's answer is not what this client reads").because(e))
}

/// The one place that knows what the router's statuses mean to a caller.
fn accepted(answer: &Response<Bytes>) -> Result<()> {
    let kind = match answer.status() {
        status if status.is_success() => return Ok(()),
        StatusCode::PRECONDITION_FAILED => ErrorKind::Conflict,
        StatusCode::NOT_FOUND => ErrorKind::NotFound,
        status if status.is_client_error() => ErrorKind::Invalid,
        _ => ErrorKind::Internal,
    };
    let why = String::from_utf8_lossy(answer.body());
    Err(Error::new(kind, format!("the router says {}: {}", answer.status(), why.trim())))
}
