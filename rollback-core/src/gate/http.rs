//! A gate that asks a URL.

use std::{fmt, ops::RangeInclusive, sync::Arc, time::Duration};

use async_trait::async_trait;
use reqwest::{
    Method, StatusCode, Url,
    header::{HeaderMap, HeaderName, HeaderValue},
    redirect,
};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::{Evidence, HealthGate, Standing, Verdict, Window};
use crate::{
    backend::Readiness,
    error::{Error, Result},
    model::{Change, GateName, RevisionId},
    plan::Plan,
    web::{self, Answer, Auth, Client, Failure, Trouble},
};

/// Asks a URL, or several, whether the candidate answers as it should.
///
/// Each look opens a new connection, so that it is the candidate of now that answers. What an answer means:
///
/// | seen | verdict |
/// |---|---|
/// | everything as expected | healthy |
/// | wrong status, body or JSON value; too slow | unhealthy |
/// | connection refused or cut, no answer in time, no HTTP | unhealthy, or as [`unreachable_is`](Self::unreachable_is) says: whoever cannot answer us does not answer its users |
/// | no address for the name, no route, no TLS connection, our own side | inconclusive: that is more often the probe's path than the candidate |
/// | another revision answered, or none is named where one was asked for | inconclusive |
///
/// With a proof of the revision ([`revision_in_header`](Self::revision_in_header) and its kin) only the candidate's
/// answers count, good or bad: an old instance that still serves is no pass. A wrong status that names no revision then
/// counts like no answer: whoever gave it stands where the candidate should.
///
/// ```
/// use std::time::Duration;
/// use rollback_core::gate::{Http, http::Is};
///
/// let gate = Http::new("health", "https://checkout.internal/health")?
///     .expect_status([200])
///     .expect_json("/status", Is::Equal("ok".into()))
///     .expect_json("/queue", Is::AtMost(100.0))
///     .within(Duration::from_millis(300))
///     .revision_in_header("x-revision")?;
/// # Ok::<(), rollback_core::Error>(())
/// ```
#[derive(Clone)]
pub struct Http {
    name: GateName,
    urls: Vec<Url>,
    need: usize,
    tries: u32,
    unreachable: Unreachable,
    request: Arc<Asked>,
}

/// What is the same for every URL.
#[derive(Clone)]
struct Asked {
    client: Client,
    method: Method,
    headers: HeaderMap,
    body: Option<String>,
    statuses: Vec<RangeInclusive<u16>>,
    checks: Vec<Check>,
    within: Option<Duration>,
    proof: Option<Proof>,
}

#[derive(Clone, Debug)]
enum Check {
    Contains(String),
    Json(String, Is),
}

/// What a JSON value must be.
#[derive(Clone, Debug, PartialEq)]
pub enum Is {
    /// This value, numbers by their value: `1` is `1.0`.
    Equal(Value),
    /// Anything but this value; it must be there.
    NotEqual(Value),
    /// A number, this or less.
    AtMost(f64),
    /// A number, this or more.
    AtLeast(f64),
}

/// Where an answer names the revision that gave it.
#[derive(Clone, Debug)]
enum Proof {
    Header(HeaderName),
    Json(String),
    Body,
}

/// What it means that nobody answers; see [`Http::unreachable_is`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreachable {
    /// The candidate does not answer its users. The default.
    Unhealthy,
    /// It says nothing: for a probe whose own path is less sure than the candidate.
    NoData,
}

impl Http {
    /// The most URLs one gate asks.
    pub const MAX_URLS: usize = 32;

    /// Asks this URL with GET, and expects a status of 200 to 299 within 5 seconds.
    ///
    /// # Errors
    /// `Invalid` when the name is not a gate's, or the URL is none of `http` or `https`, or holds a password.
    pub fn new(name: &str, url: &str) -> Result<Self> {
        let name = GateName::try_from(name)?;
        let url = web::address(url).map_err(|e| e.during(format_args!("gate {name}")))?;
        let request = Asked {
            client: Client::build(web::builder().pool_max_idle_per_host(0))?,
            method: Method::GET,
            headers: HeaderMap::new(),
            body: None,
            statuses: vec![200..=299],
            checks: Vec::new(),
            within: None,
            proof: None,
        };
        let (need, tries, unreachable) = (1, 1, Unreachable::Unhealthy);
        Ok(Self { name, urls: vec![url], need, tries, unreachable, request: Arc::new(request) })
    }

    /// Asks this URL too, side by side with the others. All of them must be healthy, unless
    /// [`at_least`](Self::at_least) says less.
    ///
    /// # Errors
    /// As [`Self::new`]; `Invalid` past [`Self::MAX_URLS`].
    pub fn also(mut self, url: &str) -> Result<Self> {
        if self.urls.len() == Self::MAX_URLS {
            return Err(Error::invalid(format!("gate {} asks more than {} URLs", self.name, Self::MAX_URLS)));
        }
        let every = self.need == self.urls.len();
        self.urls.push(web::address(url).map_err(|e| e.during(format_args!("gate {}", self.name)))?);
        if every {
            self.need = self.urls.len();
        }
        Ok(self)
    }

    /// Healthy when so many of the URLs are; unhealthy when so many are not that this cannot be reached any more.
    ///
    /// # Errors
    /// `Invalid` when this is not 1 to the number of URLs given before.
    pub fn at_least(mut self, need: usize) -> Result<Self> {
        if need == 0 || need > self.urls.len() {
            return Err(Error::invalid(format!(
                "gate {} needs {need} of {} URLs to be healthy; 1 to {} is accepted",
                self.name,
                self.urls.len(),
                self.urls.len()
            )));
        }
        self.need = need;
        Ok(self)
    }

    /// Asks with this method.
    #[must_use]
    pub fn method(self, method: Method) -> Self {
        self.with(|asked| asked.method = method)
    }

    /// Sends this header. What is secret belongs into [`auth`](Self::auth).
    ///
    /// # Errors
    /// `Invalid` when the name or the value cannot be a header's.
    pub fn header(self, name: &str, value: &str) -> Result<Self> {
        let name = web::header_name(name)?;
        let value = HeaderValue::from_str(value).map_err(|_| {
            Error::invalid(format!("the value of header {name} has a character that no header may have"))
        })?;
        Ok(self.with(|asked| {
            asked.headers.append(name, value);
        }))
    }

    /// Sends this body. Set its `Content-Type` with [`header`](Self::header).
    #[must_use]
    pub fn body(self, body: impl Into<String>) -> Self {
        self.with(|asked| asked.body = Some(body.into()))
    }

    /// Sends these credentials, to all of the URLs.
    #[must_use]
    pub fn auth(self, auth: Auth) -> Self {
        self.with(|asked| asked.client = asked.client.clone().auth(auth))
    }

    /// Expects one of these statuses.
    #[must_use]
    pub fn expect_status(self, statuses: impl IntoIterator<Item = u16>) -> Self {
        self.with(|asked| asked.statuses = statuses.into_iter().map(|status| status..=status).collect())
    }

    /// Expects that the body contains this text, in its first mebibyte.
    #[must_use]
    pub fn expect_body(self, contains: impl Into<String>) -> Self {
        self.with(|asked| asked.checks.push(Check::Contains(contains.into())))
    }

    /// Expects that the body is JSON, and its value at this pointer (RFC 6901: `/checks/0/status`; empty for the whole)
    /// is this.
    #[must_use]
    pub fn expect_json(self, pointer: impl Into<String>, is: Is) -> Self {
        self.with(|asked| asked.checks.push(Check::Json(pointer.into(), is)))
    }

    /// Expects the whole answer in this time, connection included. Slower is unhealthy.
    #[must_use]
    pub fn within(self, time: Duration) -> Self {
        self.with(|asked| asked.within = Some(time))
    }

    /// Waits this long for the whole answer; 5 seconds unless said. Longer is no answer. Keep `tries` times this below
    /// the policy's [`timeout`](super::Policy::timeout).
    #[must_use]
    pub fn timeout(self, time: Duration) -> Self {
        self.with(|asked| asked.client = asked.client.clone().timeout(time))
    }

    /// Only an answer with this header, equal to the candidate's id, is the candidate's.
    ///
    /// # Errors
    /// `Invalid` when it is no header's name.
    pub fn revision_in_header(self, name: &str) -> Result<Self> {
        let name = web::header_name(name)?;
        Ok(self.with(|asked| asked.proof = Some(Proof::Header(name))))
    }

    /// Only an answer with the candidate's id at this JSON pointer is the candidate's.
    #[must_use]
    pub fn revision_in_json(self, pointer: impl Into<String>) -> Self {
        self.with(|asked| asked.proof = Some(Proof::Json(pointer.into())))
    }

    /// Only an answer whose whole body, without white space around it, is the candidate's id is the candidate's.
    #[must_use]
    pub fn revision_in_body(self) -> Self {
        self.with(|asked| asked.proof = Some(Proof::Body))
    }

    /// Asks up to so many times, each on a new connection, until the candidate answers: for a URL behind which the
    /// baseline answers too. 1 unless said; means nothing without a proof of the revision.
    #[must_use]
    pub fn tries(mut self, tries: u32) -> Self {
        self.tries = tries.clamp(1, 100);
        self
    }

    /// What it means that the connection is refused or cut, or that no answer comes in time.
    #[must_use]
    pub const fn unreachable_is(mut self, unreachable: Unreachable) -> Self {
        self.unreachable = unreachable;
        self
    }

    /// Follows up to so many redirects, as long as they stay at the same scheme, host and port: credentials go nowhere
    /// else. A redirect is judged by its own status otherwise, and unless this is called.
    ///
    /// # Errors
    /// `Invalid` when no client can be built. It replaces the one given to [`client`](Self::client).
    pub fn follow_redirects(self, most: usize) -> Result<Self> {
        let policy = redirect::Policy::custom(move |attempt| {
            let from = attempt.previous().last().map(Url::origin);
            let again = attempt.previous().len() <= most && from == Some(attempt.url().origin());
            if again { attempt.follow() } else { attempt.stop() }
        });
        let client = web::builder().pool_max_idle_per_host(0).redirect(policy).build();
        let client = client.map_err(|e| Error::invalid("an HTTP client cannot be built").because(e))?;
        Ok(self.client(client))
    }

    /// Asks with this client: a proxy, a private authority, a client certificate. Its own redirects and connections are
    /// kept; build it with `pool_max_idle_per_host(0)` and without redirects.
    #[must_use]
    pub fn client(self, client: reqwest::Client) -> Self {
        self.with(|asked| asked.client = asked.client.clone().http(client))
    }

    fn with(mut self, change: impl FnOnce(&mut Asked)) -> Self {
        change(Arc::make_mut(&mut self.request));
        self
    }

    fn sum(&self, window: &Window, seen: &[Seen]) -> Verdict {
        let count = |standing| seen.iter().filter(|seen| seen.says == standing).count();
        let (healthy, unhealthy) = (count(Standing::Healthy), count(Standing::Unhealthy));
        let why = |standing| {
            let whys = seen.iter().filter(|seen| seen.says == standing).map(|seen| seen.why.as_str());
            whys.collect::<Vec<_>>().join("; ")
        };
        let facts = |evidence: Evidence| {
            let parts: Vec<Value> = seen.iter().map(Seen::facts).collect();
            let trips = format!("more than {} of {} URLs unhealthy", seen.len() - self.need, seen.len());
            evidence.fact("urls", parts).fact("need", self.need).fact("trips", trips)
        };
        if healthy >= self.need {
            let summary = match seen {
                [one] => one.why.clone(),
                _ => format!("{healthy} of {} URLs healthy; {} needed", seen.len(), self.need),
            };
            Verdict::Healthy(facts(Evidence::new(window.now, summary)))
        } else if seen.len() - unhealthy < self.need {
            Verdict::Unhealthy(facts(Evidence::new(window.now, why(Standing::Unhealthy))))
        } else {
            match window.no_data(why(Standing::Inconclusive)) {
                Verdict::Inconclusive(evidence) => Verdict::Inconclusive(facts(evidence)),
                other => other,
            }
        }
    }
}

#[async_trait]
impl HealthGate for Http {
    fn name(&self) -> &GateName {
        &self.name
    }

    async fn judge(&self, window: &Window) -> Result<Verdict> {
        let mut asked = JoinSet::new();
        for (at, url) in self.urls.iter().enumerate() {
            let (request, url) = (Arc::clone(&self.request), url.clone());
            let (candidate, tries, unreachable) = (window.candidate.clone(), self.tries, self.unreachable);
            let baseline = window.baseline.clone();
            asked.spawn(async move {
                let mut seen = request.ask(&url, &candidate, &baseline, unreachable).await;
                for _ in 1..tries {
                    if !seen.another {
                        break;
                    }
                    seen = request.ask(&url, &candidate, &baseline, unreachable).await;
                }
                (at, seen)
            });
        }
        let mut seen: Vec<Seen> = self.urls.iter().map(|url| Seen::nothing(self.request.client.shown(url))).collect();
        while let Some(answer) = asked.join_next().await {
            if let Ok((at, answer)) = answer {
                seen[at] = answer;
            }
            // Nothing still to come can bring health: a hanging URL must not hold up a breach.
            let unhealthy = seen.iter().filter(|seen| seen.says == Standing::Unhealthy).count();
            if seen.len() - unhealthy < self.need {
                break;
            }
        }
        Ok(self.sum(window, &seen))
    }

    /// Asks each URL once, where the method has no effects, and says what came: names that have no address and
    /// certificates that are not trusted are found before anything changes. Nothing of it refuses a rollout, because
    /// the candidate does not stand yet.
    async fn preflight(&self, change: &Change, _: &Plan) -> Result<Readiness> {
        let mut found = Readiness::default();
        if !self.request.method.is_safe() {
            return Ok(found
                .not_provable(format!("gate {} was not tried: {} may have effects", self.name, self.request.method)));
        }
        for url in &self.urls {
            found = match self.request.send(url).await {
                Err(failure) => found.not_provable(format!("gate {}: {}", self.name, failure.message)),
                Ok(answer) => match self.request.proves(&answer) {
                    Some(Err(why)) => found.not_provable(format!(
                        "gate {}: {} answered {} {why}; unless {} does, it will never be seen healthy",
                        self.name,
                        answer.shown,
                        answer.status.as_u16(),
                        change.candidate.id
                    )),
                    Some(Ok(_)) | None => {
                        found.proved(format!("gate {}: {} answers {}", self.name, answer.shown, answer.status.as_u16()))
                    }
                },
            };
        }
        Ok(found)
    }
}

impl fmt::Debug for Http {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let urls: Vec<String> = self.urls.iter().map(|url| self.request.client.shown(url)).collect();
        f.debug_struct("Http").field("name", &self.name).field("urls", &urls).finish_non_exhaustive()
    }
}

impl Asked {
    async fn send(&self, url: &Url) -> Result<Answer, Failure> {
        let mut request = self.client.request(self.method.clone(), url.clone()).headers(self.headers.clone());
        if let Some(body) = &self.body {
            request = request.body(body.clone());
        }
        self.client.send(request).await
    }

    async fn ask(&self, url: &Url, candidate: &RevisionId, baseline: &RevisionId, unreachable: Unreachable) -> Seen {
        let absent = match unreachable {
            Unreachable::Unhealthy => Standing::Unhealthy,
            Unreachable::NoData => Standing::Inconclusive,
        };
        let answer = match self.send(url).await {
            Ok(answer) => answer,
            Err(failure) => {
                let says = match failure.trouble {
                    Trouble::Refused | Trouble::Timeout | Trouble::Cut | Trouble::Garbled => absent,
                    Trouble::Dns | Trouble::Unreachable | Trouble::Tls | Trouble::Request | Trouble::Other => {
                        Standing::Inconclusive
                    }
                };
                let nothing = Seen::nothing(self.client.shown(url));
                return Seen { says, why: failure.message, trouble: Some(failure.trouble.name()), ..nothing };
            }
        };
        let status = answer.status;
        let expected = self.statuses.iter().any(|range| range.contains(&status.as_u16()));
        let mut seen = Seen { status: Some(status), took: Some(answer.took), ..Seen::nothing(answer.shown.clone()) };
        match self.proves(&answer) {
            None => {}
            Some(Ok(revision)) => {
                let shown: String = answer.redact(&revision).chars().take(80).collect();
                seen.revision = Some(shown.clone());
                if revision != candidate.as_str() {
                    let which = if revision == baseline.as_str() { "the baseline" } else { "another revision" };
                    seen.another = true;
                    seen.why = format!("{which} answered: {} says {shown:?} instead of {candidate:?}", seen.url);
                    return seen;
                }
            }
            Some(Err(why)) => {
                seen.another = true;
                seen.why = format!("{} answered {} {why}", seen.url, status.as_u16());
                if !expected {
                    seen.says = absent;
                    seen.trouble = Some("status");
                }
                return seen;
            }
        }
        (seen.says, seen.trouble, seen.why) = match self.fault(&answer, expected) {
            Some((trouble, why)) => (Standing::Unhealthy, Some(trouble), why),
            None => {
                let why = format!("{} answered {} in {} ms", seen.url, status.as_u16(), answer.took.as_millis());
                (Standing::Healthy, None, why)
            }
        };
        seen
    }

    /// Which revision the answer names, or why it names none. Nothing where no proof is asked for.
    fn proves(&self, answer: &Answer) -> Option<Result<String, String>> {
        Some(match self.proof.as_ref()? {
            Proof::Header(name) => match answer.header(name) {
                Some(text) => Ok(text.trim().to_owned()),
                None => Err(format!("without the header {name}, so nobody knows which revision that was")),
            },
            Proof::Json(pointer) => match json_at(answer, pointer) {
                Ok(Value::String(text)) => Ok(text),
                Ok(Value::Number(number)) => Ok(number.to_string()),
                _ => Err(format!("without a text at {pointer:?}, so nobody knows which revision that was")),
            },
            Proof::Body => match str::from_utf8(&answer.body) {
                Ok(text) if !answer.cut && !text.trim().is_empty() && text.len() <= RevisionId::MAX_LEN + 64 => {
                    Ok(text.trim().to_owned())
                }
                _ => Err("with a body that is no revision's id, so nobody knows which revision that was".into()),
            },
        })
    }

    /// What is wrong with an answer, first things first.
    fn fault(&self, answer: &Answer, expected: bool) -> Option<(&'static str, String)> {
        if !expected {
            let status = answer.status.as_u16();
            let wanted: Vec<String> = self.statuses.iter().map(range).collect();
            let why = format!(
                "{} answered {status}; {} is expected: {}",
                answer.shown,
                if wanted.is_empty() { "nothing".into() } else { wanted.join(", ") },
                answer.said()
            );
            return Some(("status", why));
        }
        let broken = self.checks.iter().find_map(|check| check.fault(answer));
        if let Some(why) = broken {
            return Some(("body", format!("{} answered {} with {why}", answer.shown, answer.status.as_u16())));
        }
        let within = self.within.filter(|within| answer.took > *within)?;
        let took = answer.took.as_millis();
        Some(("latency", format!("{} took {took} ms; at most {} ms are accepted", answer.shown, within.as_millis())))
    }
}

impl Check {
    fn fault(&self, answer: &Answer) -> Option<String> {
        match self {
            Self::Contains(text) => {
                let found = answer.body.windows(text.len().max(1)).any(|window| window == text.as_bytes());
                (!found && !text.is_empty()).then(|| format!("a body without {text:?}: {}", answer.said()))
            }
            Self::Json(pointer, is) => match json_at(answer, pointer) {
                Err(why) => Some(why),
                Ok(value) if is.holds(&value) => None,
                Ok(value) => {
                    let shown: String = answer.redact(&value.to_string()).chars().take(80).collect();
                    Some(format!("{shown} at {pointer:?}; {is} is expected"))
                }
            },
        }
    }
}

impl Is {
    fn holds(&self, value: &Value) -> bool {
        let same = |other: &Value| match (value.as_f64(), other.as_f64()) {
            (Some(one), Some(other)) => one == other,
            _ => value == other,
        };
        match self {
            Self::Equal(other) => same(other),
            Self::NotEqual(other) => !same(other),
            Self::AtMost(bound) => value.as_f64().is_some_and(|number| number <= *bound),
            Self::AtLeast(bound) => value.as_f64().is_some_and(|number| number >= *bound),
        }
    }
}

impl fmt::Display for Is {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Equal(value) => write!(f, "{value}"),
            Self::NotEqual(value) => write!(f, "anything but {value}"),
            Self::AtMost(bound) => write!(f, "a number of at most {bound}"),
            Self::AtLeast(bound) => write!(f, "a number of at least {bound}"),
        }
    }
}

fn json_at(answer: &Answer, pointer: &str) -> Result<Value, String> {
    if answer.cut {
        return Err(format!("a body of more than {} KiB, which is not read to its end", answer.body.len() / 1024));
    }
    let mut whole: Value =
        serde_json::from_slice(&answer.body).map_err(|_| format!("a body that is not JSON: {}", answer.said()))?;
    whole.pointer_mut(pointer).map(Value::take).ok_or_else(|| format!("JSON that has nothing at {pointer:?}"))
}

fn range(range: &RangeInclusive<u16>) -> String {
    let (first, last) = (range.start(), range.end());
    if first == last { first.to_string() } else { format!("{first} to {last}") }
}

/// What one URL says.
struct Seen {
    url: String,
    says: Standing,
    why: String,
    /// Where it went wrong, in a word.
    trouble: Option<&'static str>,
    status: Option<StatusCode>,
    took: Option<Duration>,
    revision: Option<String>,
    /// Whether somebody else may have answered in the candidate's place.
    another: bool,
}

impl Seen {
    fn nothing(url: String) -> Self {
        let why = format!("{url} was not waited for");
        let (says, trouble, status, took, revision) = (Standing::Inconclusive, None, None, None, None);
        Self { url, says, why, trouble, status, took, revision, another: false }
    }

    fn facts(&self) -> Value {
        let mut facts = json!({ "url": self.url, "says": self.says });
        let mut add = |name: &str, value: Option<Value>| {
            if let Some(value) = value {
                facts[name] = value;
            }
        };
        add("trouble", self.trouble.map(Value::from));
        add("status", self.status.map(|status| status.as_u16().into()));
        add("ms", self.took.map(|took| Value::from(u64::try_from(took.as_millis()).unwrap_or(u64::MAX))));
        add("revision", self.revision.clone().map(Value::from));
        facts
    }
}
