//! What the features that speak HTTP share: credentials that are never shown, and the client behind them.
//!
//! Unless they are given another, clients speak HTTP/1.1 and TLS by rustls with ring, trust the certificates that the
//! machine trusts, follow no redirects, and heed the environment's `HTTPS_PROXY`, `HTTP_PROXY` and `NO_PROXY`. A
//! [`reqwest::Client`] of your own brings a private authority, a client certificate, a proxy, and its own redirects.

#![allow(dead_code, reason = "each feature uses its own part of this")]

use std::{fmt, io, sync::Arc, time::Duration};

use async_trait::async_trait;
pub use reqwest;
use reqwest::{
    ClientBuilder, Method, Request, RequestBuilder, StatusCode, Url,
    header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER},
    redirect,
};
use rustls::{ClientConfig, RootCertStore};
use rustls_platform_verifier::BuilderVerifierExt as _;
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use crate::{
    error::{Error, ErrorKind, Result},
    tls::{self, chain},
};

/// A text that is never shown: a token, a password, a signing key. `Debug` prints none of it, not even its length.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Arc<str>);

impl Secret {
    /// Keeps this text to itself.
    pub fn new(text: impl AsRef<str>) -> Self {
        Self(text.as_ref().into())
    }

    /// The text, for whoever has to send it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<&str> for Secret {
    fn from(text: &str) -> Self {
        Self::new(text)
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self::new(text)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// How we say who we are. It goes only to the address it is given for, and is cut out of whatever that says back.
///
/// ```
/// # use rollback_core::web::Auth;
/// let auth = Auth::bearer("s3cr3t")?;
/// assert!(!format!("{auth:?}").contains("s3cr3t"));
/// let refused = Auth::bearer("s3cr3t\n").unwrap_err();
/// assert_eq!(refused.to_string(), "the bearer token begins or ends with white space; cut it off");
/// # Ok::<(), rollback_core::Error>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct Auth(Kind);

#[derive(Clone, Debug, Default)]
enum Kind {
    #[default]
    None,
    Bearer(Secret),
    Basic(String, Secret),
    Header(HeaderName, Secret),
    Signed(Arc<dyn Sign>),
}

impl Auth {
    /// We do not say.
    pub const fn none() -> Self {
        Self(Kind::None)
    }

    /// `Authorization: Bearer …`.
    ///
    /// # Errors
    /// `Invalid` when the token is empty, has white space around it, or a character that a header cannot have.
    pub fn bearer(token: impl Into<Secret>) -> Result<Self> {
        let token = token.into();
        check_secret("the bearer token", &token)?;
        Ok(Self(Kind::Bearer(token)))
    }

    /// `Authorization: Basic …`.
    ///
    /// # Errors
    /// `Invalid` when the user's name contains a colon, or the password is empty.
    pub fn basic(user: impl Into<String>, password: impl Into<Secret>) -> Result<Self> {
        let (user, password) = (user.into(), password.into());
        if user.contains(':') {
            return Err(Error::invalid(format!(
                "the user {user:?} has a colon, which basic authentication cannot say"
            )));
        }
        if password.expose().is_empty() {
            return Err(Error::invalid(format!("the password of user {user:?} is empty")));
        }
        Ok(Self(Kind::Basic(user, password)))
    }

    /// A header of this name, as `X-Api-Key`.
    ///
    /// # Errors
    /// `Invalid` when the name is none, or the value is empty, has white space around it, or a character that a header
    /// cannot have.
    pub fn header(name: &str, value: impl Into<Secret>) -> Result<Self> {
        let (name, value) = (header_name(name)?, value.into());
        check_secret(&format!("the value of header {name}"), &value)?;
        Ok(Self(Kind::Header(name, value)))
    }

    /// Each request signed, or given a token that is fetched anew: what managed services ask for.
    pub fn signed(sign: impl Sign) -> Self {
        Self(Kind::Signed(Arc::new(sign)))
    }

    /// Puts it on a request that is complete otherwise.
    async fn put_on(&self, http: &reqwest::Client, request: Request) -> Result<Request> {
        let builder = |request| RequestBuilder::from_parts(http.clone(), request);
        let built = match &self.0 {
            Kind::None => Ok(request),
            Kind::Bearer(token) => builder(request).bearer_auth(token.expose()).build(),
            Kind::Basic(user, password) => builder(request).basic_auth(user, Some(password.expose())).build(),
            Kind::Header(name, value) => {
                let mut value = HeaderValue::from_str(value.expose())
                    .map_err(|_| Error::invalid(format!("the value of header {name} cannot be sent")))?;
                value.set_sensitive(true);
                let mut request = request;
                request.headers_mut().insert(name, value);
                Ok(request)
            }
            Kind::Signed(sign) => {
                let mut request = request;
                sign.sign(&mut request).await.map_err(|e| e.during("signing the request"))?;
                Ok(request)
            }
        };
        // The builder's words may quote what it could not use.
        built.map_err(|_| Error::invalid("the credentials cannot be sent as a header"))
    }
}

/// Signs requests, or gives them a token.
///
/// ```
/// use rollback_core::{Result, web::{Auth, Sign, reqwest}};
///
/// /// Reads the token anew each time, because the platform rotates the file.
/// #[derive(Debug)]
/// struct FromFile(std::path::PathBuf);
///
/// #[async_trait::async_trait]
/// impl Sign for FromFile {
///     async fn sign(&self, request: &mut reqwest::Request) -> Result<()> {
///         let text = std::fs::read_to_string(&self.0)
///             .map_err(|e| rollback_core::Error::invalid("the token cannot be read").because(e))?;
///         let mut token = reqwest::header::HeaderValue::try_from(format!("Bearer {}", text.trim()))
///             .map_err(|_| rollback_core::Error::invalid("the token cannot be a header"))?;
///         token.set_sensitive(true);
///         request.headers_mut().insert(reqwest::header::AUTHORIZATION, token);
///         Ok(())
///     }
/// }
///
/// let auth = Auth::signed(FromFile("/var/run/secrets/token".into()));
/// ```
#[async_trait]
pub trait Sign: fmt::Debug + Send + Sync + 'static {
    /// Adds what is needed to a request that is complete otherwise; its body is in memory. Counts towards the time that
    /// the request may take, and may be dropped half way. Mark what nobody may see as sensitive: that is cut out of
    /// what the server says back, as the `Authorization` header always is.
    ///
    /// # Errors
    /// Whatever kept it from signing. The request is not sent then.
    async fn sign(&self, request: &mut Request) -> Result<()>;
}

/// A client with its credentials, the time a whole request may take, and the most bytes of an answer that are read.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    auth: Auth,
    timeout: Duration,
    limit: usize,
    hide_path: bool,
}

impl Client {
    /// One of our own: 5 seconds, 1 MiB, no credentials.
    ///
    /// # Errors
    /// `Invalid` when TLS cannot be set up.
    pub fn new() -> Result<Self> {
        Self::build(builder())
    }

    /// One with settings of its own; begin with [`builder`].
    ///
    /// # Errors
    /// `Invalid` when it cannot be built.
    pub fn build(builder: ClientBuilder) -> Result<Self> {
        let http = builder.build().map_err(|e| Error::invalid("an HTTP client cannot be built").because(e))?;
        Ok(Self { http, auth: Auth::none(), timeout: TIMEOUT, limit: LIMIT, hide_path: false })
    }

    /// The caller's client in place of ours.
    #[must_use]
    pub fn http(mut self, http: reqwest::Client) -> Self {
        self.http = http;
        self
    }

    /// With these credentials.
    #[must_use]
    pub fn auth(mut self, auth: Auth) -> Self {
        self.auth = auth;
        self
    }

    /// For the whole request: name, connection, signature, answer and all its body.
    #[must_use]
    pub const fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// With so many bytes of an answer read, and no more. Of 0 the answer is its status and its headers: its body is not
    /// waited for.
    #[must_use]
    pub const fn limit(mut self, bytes: usize) -> Self {
        self.limit = bytes;
        self
    }

    /// Messages name only scheme, host and port: for addresses whose path is the password, as those of chats.
    pub(crate) const fn hide_path(mut self) -> Self {
        self.hide_path = true;
        self
    }

    pub(crate) const fn time(&self) -> Duration {
        self.timeout
    }

    /// A request, to be completed and then [sent](Self::send).
    pub fn request(&self, method: Method, url: Url) -> RequestBuilder {
        self.http.request(method, url)
    }

    /// An address as messages show it: without query, user and password.
    pub fn shown(&self, url: &Url) -> String {
        let path = if self.hide_path { "" } else { url.path() };
        format!("{}{path}", url.origin().ascii_serialization())
    }

    /// Sends it once, with the credentials, and reads at most the limit. May be dropped at any time; the server may have
    /// heard it all the same.
    ///
    /// # Errors
    /// Why there is no answer; a status that means failure is an answer.
    pub async fn send(&self, request: RequestBuilder) -> Result<Answer, Failure> {
        let request = request.build().map_err(|e| {
            let shown = e.url().map_or_else(|| "the request".into(), |url| self.shown(url));
            Failure::new(Trouble::Request, format!("{shown} cannot be asked: {}", words(&e.without_url())))
        })?;
        let shown = self.shown(request.url());
        let began = Instant::now();
        // What is heard before the time is over, so that it can be told.
        let mut heard = None;
        let answer = tokio::time::timeout(self.timeout, self.exchange(request, &shown, began, &mut heard)).await;
        answer.unwrap_or_else(|_| {
            let time = self.timeout;
            Err(Failure::new(
                Trouble::Timeout,
                match heard {
                    None => format!("{shown} gave no answer in {time:?}"),
                    Some(bytes) => {
                        format!(
                            "{shown} began an answer and did not end it in {time:?} ({bytes} bytes of its body came)"
                        )
                    }
                },
            ))
        })
    }

    async fn exchange(
        &self,
        request: Request,
        shown: &str,
        began: Instant,
        heard: &mut Option<usize>,
    ) -> Result<Answer, Failure> {
        let asked = request.url().clone();
        let request = self.auth.put_on(&self.http, request).await.map_err(|e| Failure {
            trouble: Trouble::Request,
            message: format!("{shown} was not asked: {}", e.chain()),
            kind: e.kind(),
            untrusted: false,
        })?;
        let secrets = self.secrets(&request);
        let mut response = self.http.execute(request).await.map_err(|e| Failure::of(e, shown))?;
        *heard = Some(0);
        let mut body = Vec::new();
        let mut cut = false;
        while self.limit > 0
            && let Some(chunk) = response.chunk().await.map_err(|e| Failure::of(e, shown))?
        {
            let room = self.limit - body.len();
            body.extend_from_slice(&chunk[..chunk.len().min(room)]);
            *heard = Some(body.len());
            if chunk.len() > room {
                cut = true;
                break;
            }
        }
        let redirected = (*response.url() != asked).then(|| self.shown(response.url()));
        let (status, headers) = (response.status(), response.headers().clone());
        Ok(Answer { shown: shown.to_owned(), status, headers, body, cut, redirected, took: began.elapsed(), secrets })
    }

    /// What must not come back in a message, longest first.
    fn secrets(&self, request: &Request) -> Vec<String> {
        let mut secrets = Vec::new();
        // Pages that say what they do not have quote it whole.
        secrets.extend(request.url().query().map(str::to_owned));
        for (name, value) in request.headers() {
            if (value.is_sensitive() || name == AUTHORIZATION)
                && let Ok(text) = value.to_str()
            {
                secrets.push(text.to_owned());
                secrets.extend(text.split_once(' ').map(|(_, credentials)| credentials.to_owned()));
            }
        }
        if let Kind::Basic(_, password) = &self.auth.0 {
            secrets.push(password.expose().to_owned());
        }
        secrets.retain(|secret| !secret.is_empty());
        secrets.sort_by_key(|secret| std::cmp::Reverse(secret.len()));
        secrets
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("auth", &self.auth).field("timeout", &self.timeout).finish_non_exhaustive()
    }
}

/// A builder of clients as this library wants them.
pub fn builder() -> ClientBuilder {
    reqwest::Client::builder()
        .tls_backend_preconfigured(tls())
        .user_agent(concat!("rollback-core/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(CONNECT_TIMEOUT)
        .redirect(redirect::Policy::none())
        .referer(false)
}

/// Ring, whatever the process has installed as its default, and what the machine trusts.
fn tls() -> ClientConfig {
    let ring = Arc::new(rustls::crypto::ring::default_provider());
    let builder = || {
        ClientConfig::builder_with_provider(Arc::clone(&ring))
            .with_safe_default_protocol_versions()
            .expect("ring speaks TLS 1.2 and 1.3")
    };
    let mut config = match builder().with_platform_verifier() {
        Ok(builder) => builder.with_no_client_auth(),
        Err(e) => {
            // A container without certificates can still speak plain HTTP to what is beside it.
            tracing::warn!(error = %e, "no certificates were found on this machine: no TLS server will be trusted");
            builder().with_root_certificates(RootCertStore::empty()).with_no_client_auth()
        }
    };
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config
}

/// An address of a server.
///
/// # Errors
/// `Invalid` when it is none, has another scheme than `http` and `https`, or holds a password.
pub fn address(text: &str) -> Result<Url> {
    // The text may hold a password, so it is quoted only once it is known not to.
    let url = Url::parse(text).map_err(|e| Error::invalid(format!("an address is not a URL: {e}")))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(Error::invalid(format!(
            "an address has the scheme {:?}; http and https are accepted",
            url.scheme()
        )));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(Error::invalid(format!(
            "the address of {} holds a user or a password; give them as Auth::basic instead",
            url.host_str().unwrap_or_default()
        )));
    }
    Ok(url)
}

/// # Errors
/// `Invalid` when it is no header's name.
pub(crate) fn header_name(name: &str) -> Result<HeaderName> {
    HeaderName::try_from(name).map_err(|_| {
        Error::invalid(format!("{name:?} is not the name of a header; letters, digits and - are accepted"))
    })
}

fn check_secret(what: &str, secret: &Secret) -> Result<()> {
    let text = secret.expose();
    if text.is_empty() {
        return Err(Error::invalid(format!("{what} is empty")));
    }
    if text.trim() != text {
        return Err(Error::invalid(format!("{what} begins or ends with white space; cut it off")));
    }
    if HeaderValue::from_str(text).is_err() {
        return Err(Error::invalid(format!("{what} has a character that no header may have")));
    }
    Ok(())
}

/// What a server said, up to the limit.
#[derive(Clone)]
pub struct Answer {
    /// The address that was asked, as messages show it.
    pub shown: String,
    /// Its status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body, up to the limit.
    pub body: Vec<u8>,
    /// Whether there was more body than the limit.
    pub cut: bool,
    /// Where the answer came from, when a redirect was followed.
    pub redirected: Option<String>,
    /// From the first step to the last byte.
    pub took: Duration,
    secrets: Vec<String>,
}

impl Answer {
    /// The body as JSON.
    ///
    /// # Errors
    /// `Internal`, saying what came instead.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T> {
        if self.cut {
            return Err(Error::new(
                ErrorKind::Internal,
                format!("{} answered with more than {} KiB", self.shown, self.body.len() / 1024),
            ));
        }
        serde_json::from_slice(&self.body).map_err(|e| {
            let place = format!("line {}, column {}", e.line(), e.column());
            let what = if e.is_data() { "JSON of an unexpected shape" } else { "something that is not JSON" };
            Error::new(ErrorKind::Internal, format!("{} answered with {what} ({place}): {}", self.shown, self.said()))
        })
    }

    /// The beginning of the body for people: one line of at most 160 characters, without our credentials.
    pub fn said(&self) -> String {
        // The end of a body that is cut may be half a secret, which would not be found.
        let longest = if self.cut { self.secrets.first().map_or(0, String::len) } else { 0 };
        let body = &self.body[..self.body.len().saturating_sub(longest)];
        let text = self.redact(&String::from_utf8_lossy(body));
        let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
        match line.char_indices().nth(160) {
            _ if line.is_empty() => "(nothing)".into(),
            None => format!("{line:?}"),
            Some((at, _)) => format!("{:?}…", &line[..at]),
        }
    }

    /// Text from this answer without our credentials.
    pub fn redact(&self, text: &str) -> String {
        self.secrets.iter().fold(text.to_owned(), |text, secret| text.replace(secret.as_str(), "[redacted]"))
    }

    /// A header as text, where it is text.
    pub fn header(&self, name: &HeaderName) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// This answer as an error: for a status that means failure.
    pub fn error(&self) -> Error {
        let kind = match self.status.as_u16() {
            401 | 403 | 407 => ErrorKind::Denied,
            404 | 410 => ErrorKind::NotFound,
            409 | 412 => ErrorKind::Conflict,
            429 => ErrorKind::Throttled,
            500..=599 => ErrorKind::Unavailable,
            _ => ErrorKind::Invalid,
        };
        let error = Error::new(kind, format!("{} answered {}: {}", self.shown, self.status.as_u16(), self.said()));
        match self.header(&RETRY_AFTER).and_then(|text| text.trim().parse().ok()) {
            Some(seconds) => error.retry_in(Duration::from_secs(seconds)),
            None => error,
        }
    }
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Answer({} from {})", self.status, self.shown)
    }
}

/// Why there is no answer. Without credentials, and without the query of the address.
#[derive(Clone, Debug)]
pub struct Failure {
    /// Where it went wrong.
    pub trouble: Trouble,
    /// In a clause, for people.
    pub message: String,
    kind: ErrorKind,
    untrusted: bool,
}

/// Where it went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Trouble {
    /// The name has no address.
    Dns,
    /// Nobody listens there.
    Refused,
    /// No way to that network or host.
    Unreachable,
    /// No secure connection: a certificate we do not trust, or no TLS at all.
    Tls,
    /// Not in time.
    Timeout,
    /// The connection ended before the answer did.
    Cut,
    /// What came is not HTTP.
    Garbled,
    /// On our side: the request was not sent.
    Request,
    /// Something else.
    Other,
}

impl Trouble {
    /// In a word, for facts.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Dns => "dns",
            Self::Refused => "refused",
            Self::Unreachable => "unreachable",
            Self::Tls => "tls",
            Self::Timeout => "timeout",
            Self::Cut => "cut",
            Self::Garbled => "garbled",
            Self::Request => "request",
            Self::Other => "other",
        }
    }
}

impl Failure {
    const fn new(trouble: Trouble, message: String) -> Self {
        let kind = if matches!(trouble, Trouble::Request) { ErrorKind::Invalid } else { ErrorKind::Unavailable };
        Self { trouble, message, kind, untrusted: false }
    }

    /// Whether it is for a certificate that we do not trust, which no other try will change.
    pub(crate) const fn is_untrusted(&self) -> bool {
        self.untrusted
    }

    fn of(error: reqwest::Error, shown: &str) -> Self {
        let error = error.without_url();
        let untrusted = tls::is_untrusted(&error);
        let trouble = trouble(&error);
        let words = words(&error);
        let message = match trouble {
            Trouble::Dns => format!("the name of {shown} has no address: {words}"),
            Trouble::Refused => format!("{shown} refuses connections"),
            Trouble::Unreachable => format!("there is no way to {shown}: {words}"),
            Trouble::Tls => format!("{shown} has no secure connection for us: {words}"),
            Trouble::Timeout if error.is_connect() => format!("{shown} takes no connection in {CONNECT_TIMEOUT:?}"),
            Trouble::Timeout => format!("{shown} did not answer in time"),
            Trouble::Cut => format!("{shown} cut the connection before the answer was complete"),
            Trouble::Garbled => format!("{shown} does not speak HTTP: {words}"),
            Trouble::Request | Trouble::Other => format!("{shown} cannot be asked: {words}"),
        };
        Self { untrusted, ..Self::new(trouble, message) }
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        Self::new(failure.kind, failure.message)
    }
}

fn trouble(error: &reqwest::Error) -> Trouble {
    if error.is_dns() {
        return Trouble::Dns;
    }
    let mut found = None;
    for cause in chain(error) {
        if cause.is::<rustls::Error>() {
            return Trouble::Tls;
        }
        if let Some(io) = cause.downcast_ref::<io::Error>() {
            use io::ErrorKind::{
                BrokenPipe, ConnectionAborted, ConnectionRefused, ConnectionReset, HostUnreachable, NetworkUnreachable,
                TimedOut, UnexpectedEof,
            };
            found = match io.kind() {
                ConnectionRefused => Some(Trouble::Refused),
                HostUnreachable | NetworkUnreachable => Some(Trouble::Unreachable),
                ConnectionReset | ConnectionAborted | BrokenPipe | UnexpectedEof => Some(Trouble::Cut),
                TimedOut => Some(Trouble::Timeout),
                _ => found,
            };
        }
    }
    if let Some(found) = found {
        return found;
    }
    if error.is_timeout() {
        return Trouble::Timeout;
    }
    // hyper's error is not ours to name; its words have not changed since 0.12.
    let words = words(error);
    if words.contains("before message completed") || words.contains("error reading a body") {
        Trouble::Cut
    } else if words.contains("parsed") || words.contains("invalid content-length") {
        Trouble::Garbled
    } else if error.is_builder() {
        Trouble::Request
    } else if error.is_body() || error.is_decode() {
        Trouble::Cut
    } else {
        Trouble::Other
    }
}

/// The innermost cause, which is what tells: the ones around it say "error trying to connect".
fn words(error: &reqwest::Error) -> String {
    let mut text = chain(error).last().map_or_else(|| error.to_string(), ToString::to_string);
    if let Some((at, _)) = text.char_indices().nth(200) {
        text.truncate(at);
    }
    text
}

const TIMEOUT: Duration = Duration::from_secs(5);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
const LIMIT: usize = 1024 * 1024;
