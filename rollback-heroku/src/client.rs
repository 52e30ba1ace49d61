//! The way to Heroku's Platform API: what is needed of it, typed, and nothing more.
//!
//! The client sends a request once. It does not repeat by itself: no request of this API carries an idempotency key, so
//! who repeats must look first, and that is the engine's business.

mod http;
mod said;

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use rollback_core::{
    Error, ErrorKind, Result,
    web::{
        Secret,
        reqwest::{
            Method, StatusCode, Url,
            header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RANGE},
        },
    },
};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::time::Instant;

pub use self::http::Http;
use self::said::refusal;

/// Carries one request to a server and its answer back. [`Http`] for real; the fake of [`testing`](crate::testing) in
/// memory, so that tests can pause time.
#[async_trait]
pub trait Transport: fmt::Debug + Send + Sync + 'static {
    /// Sends it once. A status that means failure is an answer.
    ///
    /// # Errors
    /// `Unavailable` when there is no answer: the request may have landed.
    async fn send(&self, request: Request) -> Result<Answer>;
}

/// What is sent.
#[derive(Clone)]
pub struct Request {
    /// GET, POST and so on.
    pub method: Method,
    /// Where to.
    pub url: Url,
    /// Credentials are among them, where the address is Heroku's own.
    pub headers: HeaderMap,
    /// The body; empty for none.
    pub body: Vec<u8>,
    /// How long the whole exchange may take.
    pub within: Duration,
}

/// Without headers and body: they hold what nobody may see.
impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.method, shown(&self.url))
    }
}

/// What came back.
#[derive(Clone)]
pub struct Answer {
    /// The status.
    pub status: StatusCode,
    /// The headers.
    pub headers: HeaderMap,
    /// The whole body.
    pub body: Vec<u8>,
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Answer({})", self.status)
    }
}

/// A client of the Platform API with a token.
///
/// The token goes to the API's own hosts only: never to the addresses of blobs and streams, which are signed and belong to
/// others, and over no redirect, as none is followed. Clones share the connection and the count of requests left.
///
/// ```no_run
/// # use rollback_heroku::Client;
/// let heroku = Client::new(std::env::var("HEROKU_API_KEY")?)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
    urgent: bool,
}

struct Shared {
    token: Secret,
    transport: Arc<dyn Transport>,
    api: Url,
    metrics: Url,
    reserve: u32,
    left: Mutex<Option<Left>>,
}

/// How many requests the account may still make, as the API said last.
#[derive(Clone, Copy)]
struct Left {
    count: u32,
    at: Instant,
}

impl Client {
    /// How many requests an account gets back a minute (Platform API reference, "Rate limits").
    pub const PER_MINUTE: u32 = 75;
    /// How many requests are kept for rollbacks, unless [`reserve`](Self::reserve) says otherwise.
    pub const RESERVE: u32 = 200;
    /// The most items that are read of one list.
    pub const MOST_ITEMS: usize = 2000;

    /// A client of `https://api.heroku.com`.
    ///
    /// # Errors
    /// `Invalid` when the token is empty or cannot be a header.
    pub fn new(token: impl Into<Secret>) -> Result<Self> {
        Self::over(Arc::new(Http::new()?), token)
    }

    /// A client that sends its requests through this.
    ///
    /// # Errors
    /// `Invalid` when the token is empty or cannot be a header.
    pub fn over(transport: Arc<dyn Transport>, token: impl Into<Secret>) -> Result<Self> {
        let token = token.into();
        let text = token.expose();
        if text.is_empty() || text.trim() != text || HeaderValue::from_str(text).is_err() {
            return Err(Error::invalid(
                "the Heroku token is empty, has white space around it, or a character that no header may have",
            ));
        }
        let shared = Shared {
            token,
            transport,
            api: Url::parse(API).expect("a URL"),
            metrics: Url::parse(METRICS).expect("a URL"),
            reserve: Self::RESERVE,
            left: Mutex::new(None),
        };
        Ok(Self { shared: Arc::new(shared), urgent: false })
    }

    /// Asks this API instead, and its metrics at the same address: for tests, and for hosts of Heroku's own.
    ///
    /// # Errors
    /// `Invalid` when the token may not be sent there: only HTTPS to Heroku's own domains, and this machine, are accepted,
    /// as in Heroku's own command line.
    pub fn api_url(self, url: &str) -> Result<Self> {
        let url = rollback_core::web::address(url)?;
        if !may_have_token(&url) {
            return Err(Error::invalid(format!(
                "the token may not be sent to {}; https://…{} and this machine are accepted",
                url.origin().ascii_serialization(),
                OWN.join(", https://…"),
            )));
        }
        Ok(self.with(|shared| {
            shared.api = url.clone();
            shared.metrics = url;
        }))
    }

    /// Keeps so many requests of the account's budget for rollbacks, instead of [`Self::RESERVE`]: when fewer are left, looks
    /// and gates wait, and a rollback does not.
    #[must_use]
    pub fn reserve(self, requests: u32) -> Self {
        self.with(|shared| shared.reserve = requests)
    }

    fn with(self, change: impl FnOnce(&mut Shared)) -> Self {
        let old = &self.shared;
        let mut shared = Shared {
            token: old.token.clone(),
            transport: Arc::clone(&old.transport),
            api: old.api.clone(),
            metrics: old.metrics.clone(),
            reserve: old.reserve,
            left: Mutex::new(None),
        };
        change(&mut shared);
        Self { shared: Arc::new(shared), urgent: self.urgent }
    }

    /// The same client for a rollback: it may use the reserve.
    pub(crate) fn urgent(&self) -> Self {
        Self { shared: Arc::clone(&self.shared), urgent: true }
    }

    /// How many requests the account may still make, as far as the last answer tells.
    pub fn left(&self) -> Option<u32> {
        let left = *self.shared.left.lock().unwrap_or_else(PoisonError::into_inner);
        let left = left?;
        let back = left.at.elapsed().as_secs_f64() / 60.0 * f64::from(Self::PER_MINUTE);
        // At most a few thousand.
        Some(left.count.saturating_add(back as u32))
    }

    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        let answer = self.api(Method::GET, path, V3, None, None).await?;
        parse(path, &answer)
    }

    /// The newest `most` items of a list, by this attribute.
    pub(crate) async fn newest<T: DeserializeOwned>(&self, path: &str, by: &str, most: usize) -> Result<Vec<T>> {
        self.list(path, Some(format!("{by} ..; max={most}, order=desc")), most).await
    }

    /// A whole list, over as many pages as it takes, up to [`Self::MOST_ITEMS`].
    pub(crate) async fn all<T: DeserializeOwned>(&self, path: &str) -> Result<Vec<T>> {
        self.list(path, None, Self::MOST_ITEMS).await
    }

    async fn list<T: DeserializeOwned>(&self, path: &str, mut range: Option<String>, most: usize) -> Result<Vec<T>> {
        let mut items = Vec::new();
        loop {
            let answer = self.api(Method::GET, path, V3, range.as_deref(), None).await?;
            items.append(&mut parse::<Vec<T>>(path, &answer)?);
            // 206 is a success that has more to say.
            let next = answer.headers.get(NEXT_RANGE).and_then(|value| value.to_str().ok());
            match next.filter(|_| answer.status == StatusCode::PARTIAL_CONTENT) {
                Some(next) if items.len() < most => range = Some(next.to_owned()),
                _ => break,
            }
        }
        items.truncate(most);
        Ok(items)
    }

    pub(crate) async fn post<T: DeserializeOwned>(&self, path: &str, body: &Value) -> Result<T> {
        self.tell(Method::POST, path, V3, Some(body)).await
    }

    pub(crate) async fn post_nothing<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.tell(Method::POST, path, V3, None).await
    }

    /// The variant of the API for container images, which is not in its schema.
    pub(crate) async fn patch_images<T: DeserializeOwned>(&self, path: &str, body: &Value) -> Result<T> {
        self.tell(Method::PATCH, path, DOCKER, Some(body)).await
    }

    pub(crate) async fn delete<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        self.tell(Method::DELETE, path, V3, None).await
    }

    async fn tell<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        accept: &'static str,
        body: Option<&Value>,
    ) -> Result<T> {
        let body = body.map(|body| body.to_string().into_bytes());
        let answer = self.api(method, path, accept, None, body).await?;
        // Whatever cannot be read has landed all the same.
        parse(path, &answer)
    }

    /// Asks the metrics API, which has no schema of its own in the Platform API's.
    pub(crate) async fn metrics<T: DeserializeOwned>(&self, path: &str, query: &[(&str, String)]) -> Result<T> {
        let mut url = join(&self.shared.metrics, path)?;
        url.query_pairs_mut().extend_pairs(query);
        let answer = self.exchange(Method::GET, url, V3, None, None).await?;
        parse(path, &answer)
    }

    async fn api(
        &self,
        method: Method,
        path: &str,
        accept: &'static str,
        range: Option<&str>,
        body: Option<Vec<u8>>,
    ) -> Result<Answer> {
        let url = join(&self.shared.api, path)?;
        self.exchange(method, url, accept, range, body).await
    }

    /// One request with the token.
    async fn exchange(
        &self,
        method: Method,
        url: Url,
        accept: &'static str,
        range: Option<&str>,
        body: Option<Vec<u8>>,
    ) -> Result<Answer> {
        self.admit()?;
        let mut token = HeaderValue::try_from(format!("Bearer {}", self.shared.token.expose()))
            .map_err(|_| Error::invalid("the Heroku token cannot be sent as a header"))?;
        token.set_sensitive(true);
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, token);
        headers.insert(ACCEPT, HeaderValue::from_static(accept));
        if let Some(range) = range {
            let range = HeaderValue::from_str(range).map_err(|_| Error::invalid("a range cannot be a header"))?;
            headers.insert(RANGE, range);
        }
        if body.is_some() {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        let what = format!("{method} {}", shown(&url));
        let request = Request { method, url, headers, body: body.unwrap_or_default(), within: WITHIN };
        let answer = self.shared.transport.send(request).await.map_err(|e| e.during(&what))?;
        self.count(&answer.headers);
        if answer.status.is_success() {
            return Ok(answer);
        }
        Err(refusal(&what, &answer, self.shared.token.expose()))
    }

    /// Puts a blob where a signed address says. Without the token: that host is not Heroku's.
    pub(crate) async fn upload(&self, url: &str, blob: Vec<u8>) -> Result<()> {
        let answer = self.stranger(Method::PUT, url, HeaderMap::new(), blob).await?;
        match answer.status.is_success() {
            true => Ok(()),
            false => Err(stranger_refused("uploading the tarball", &answer)),
        }
    }

    /// Reads at most a byte of what is at a signed address, to see that it is there. Without the token.
    pub(crate) async fn is_there(&self, url: &str) -> Result<()> {
        let mut headers = HeaderMap::new();
        // Addresses that are signed for GET refuse HEAD.
        headers.insert(RANGE, HeaderValue::from_static("bytes=0-0"));
        let answer = self.stranger(Method::GET, url, headers, Vec::new()).await?;
        match answer.status.is_success() {
            true => Ok(()),
            false => Err(stranger_refused("reading the source", &answer)),
        }
    }

    /// Reads text at a signed address. Without the token.
    pub(crate) async fn text(&self, url: &str) -> Result<String> {
        let answer = self.stranger(Method::GET, url, HeaderMap::new(), Vec::new()).await?;
        match answer.status.is_success() {
            true => Ok(String::from_utf8_lossy(&answer.body).into_owned()),
            false => Err(stranger_refused("reading the log", &answer)),
        }
    }

    async fn stranger(&self, method: Method, url: &str, headers: HeaderMap, body: Vec<u8>) -> Result<Answer> {
        // The address is signed, so no message shows more of it than its host.
        let url = rollback_core::web::address(url)?;
        let host = url.host_str().unwrap_or("an address without a host").to_owned();
        let within = WITHIN + Duration::from_secs(body.len() as u64 / SLOWEST_UPLOAD);
        let request = Request { method, url, headers, body, within };
        self.shared.transport.send(request).await.map_err(|e| Error::new(e.kind(), format!("{host} gave no answer")))
    }

    /// Whether a request may be made now: what is in reserve is for rollbacks.
    fn admit(&self) -> Result<()> {
        let (Some(left), reserve) = (self.left(), self.shared.reserve) else { return Ok(()) };
        if self.urgent || left >= reserve {
            return Ok(());
        }
        let wait = u64::from((reserve - left).div_ceil(Self::PER_MINUTE) * 60).min(300);
        Err(Error::new(
            ErrorKind::Throttled,
            format!("{left} requests are left of this account's budget, and {reserve} are kept for a rollback"),
        )
        .retry_in(Duration::from_secs(wait.max(5))))
    }

    fn count(&self, headers: &HeaderMap) {
        let count = headers.get(REMAINING).and_then(|value| value.to_str().ok()?.trim().parse().ok());
        if let Some(count) = count {
            let left = Left { count, at: Instant::now() };
            *self.shared.left.lock().unwrap_or_else(PoisonError::into_inner) = Some(left);
        }
    }
}

/// Without the token.
impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("api", &self.shared.api.as_str()).finish_non_exhaustive()
    }
}

/// An address as messages show it: never the query, in which signed addresses have their signature.
fn shown(url: &Url) -> String {
    format!("{}{}", url.host_str().unwrap_or_default(), url.path())
}

fn join(base: &Url, path: &str) -> Result<Url> {
    base.join(path).map_err(|e| Error::invalid(format!("{path} is no path of the API")).because(e))
}

fn parse<T: DeserializeOwned>(path: &str, answer: &Answer) -> Result<T> {
    serde_json::from_slice(&answer.body).map_err(|e| {
        // The text of the JSON error may quote a config var: keep the place, drop the words.
        let place = format!("line {}, column {}", e.line(), e.column());
        let what = if e.is_data() { "JSON of an unexpected shape" } else { "something that is not JSON" };
        Error::new(ErrorKind::Internal, format!("{path} answered with {what} ({place})"))
    })
}

fn stranger_refused(what: &str, answer: &Answer) -> Error {
    let kind = match answer.status.as_u16() {
        404 | 410 => ErrorKind::NotFound,
        400..=499 => ErrorKind::Denied,
        _ => ErrorKind::Unavailable,
    };
    Error::new(kind, format!("{what}: its host answered {}", answer.status.as_u16()))
}

/// Where Heroku's own command line sends the token.
fn may_have_token(url: &Url) -> bool {
    let Some(host) = url.host_str() else { return false };
    let here = matches!(host, "localhost" | "127.0.0.1" | "[::1]");
    let own = OWN.iter().any(|domain| host.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.')));
    here || own && url.scheme() == "https"
}

const OWN: [&str; 4] = ["heroku.com", "herokai.com", "herokuspace.com", "herokudev.com"];
const API: &str = "https://api.heroku.com";
const METRICS: &str = "https://api.metrics.heroku.com";
const V3: &str = "application/vnd.heroku+json; version=3";
const DOCKER: &str = "application/vnd.heroku+json; version=3.docker-releases";
const WITHIN: Duration = Duration::from_secs(20);
/// Bytes a second that an upload is given time for.
const SLOWEST_UPLOAD: u64 = 256 * 1024;
const REMAINING: HeaderName = HeaderName::from_static("ratelimit-remaining");
const NEXT_RANGE: HeaderName = HeaderName::from_static("next-range");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_goes_to_heroku_and_to_this_machine_only() {
        for (url, may) in [
            ("https://api.heroku.com", true),
            ("https://api.eu.herokuspace.com/x", true),
            ("http://127.0.0.1:5000", true),
            ("http://localhost:5000", true),
            ("http://api.heroku.com", false),
            ("https://heroku.com.evil.example", false),
            ("https://evilheroku.com", false),
            ("https://s3.amazonaws.com", false),
        ] {
            assert_eq!(may_have_token(&Url::parse(url).unwrap()), may, "{url}");
        }
    }
}
