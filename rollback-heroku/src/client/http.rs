//! The transport over a real network.

use std::fmt;

use async_trait::async_trait;
use rollback_core::{Error, ErrorKind, Result, web};

use super::{Answer, Request, Transport};

/// HTTP/1.1 over rustls, following no redirect; heeds `HTTPS_PROXY` and its kin.
#[derive(Clone)]
pub struct Http(web::Client);

impl Http {
    /// The usual one: it trusts what the machine trusts, and says that it is this crate.
    ///
    /// # Errors
    /// `Invalid` when TLS cannot be set up.
    pub fn new() -> Result<Self> {
        let builder = web::builder().user_agent(concat!("rollback-heroku/", env!("CARGO_PKG_VERSION")));
        Ok(Self(web::Client::build(builder)?.limit(LIMIT)))
    }

    /// One over a client of your own: proxy, private authority, client certificate. It must follow no redirects, or it may
    /// carry what it should not to where it should not.
    ///
    /// # Errors
    /// `Invalid` when TLS cannot be set up.
    pub fn over(http: web::reqwest::Client) -> Result<Self> {
        Ok(Self(web::Client::new()?.http(http).limit(LIMIT)))
    }
}

impl fmt::Debug for Http {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Http")
    }
}

#[async_trait]
impl Transport for Http {
    async fn send(&self, request: Request) -> Result<Answer> {
        let client = self.0.clone().timeout(request.within);
        let built = client.request(request.method, request.url).headers(request.headers).body(request.body);
        let answer = client.send(built).await?;
        if answer.cut {
            let why = format!("{} answered with more than {} MiB", answer.shown, LIMIT / 1024 / 1024);
            return Err(Error::new(ErrorKind::Internal, why));
        }
        Ok(Answer { status: answer.status, headers: answer.headers, body: answer.body })
    }
}

/// A log session of 1,500 lines, or a thousand releases, is well under this.
const LIMIT: usize = 8 * 1024 * 1024;
