//! The server that is asked, and what it answers.

use std::{collections::BTreeMap, fmt, time::Duration};

use jiff::Timestamp;
use reqwest::{
    Method, Url,
    header::{CONTENT_TYPE, HeaderMap, HeaderValue},
};
use serde::{Deserialize, de::IgnoredAny};

use crate::{
    error::{Error, ErrorKind, Result},
    web::{self, Answer, Auth, Client},
};

/// A Prometheus, or what speaks its query API: Thanos, Mimir, VictoriaMetrics, a cloud's managed service.
///
/// Clones share its connections, so one value serves all gates and sources.
///
/// ```
/// # use rollback_core::{gate::prometheus::Server, web::Auth};
/// let server = Server::new("https://mimir.internal/prometheus")?
///     .auth(Auth::bearer("s3cr3t")?)
///     .header("X-Scope-OrgID", "shop")?;
/// # Ok::<(), rollback_core::Error>(())
/// ```
#[derive(Clone)]
pub struct Server {
    base: Url,
    client: Client,
    headers: HeaderMap,
    get: bool,
}

impl Server {
    /// The server at this address: what stands before `/api/v1/query`.
    ///
    /// # Errors
    /// `Invalid` when this is no address of `http` or `https`, or holds a password or a query.
    pub fn new(url: &str) -> Result<Self> {
        let base = web::address(url).map_err(|e| e.during("the address of a Prometheus"))?;
        if base.query().is_some() || base.fragment().is_some() {
            return Err(Error::invalid(format!(
                "the address of the Prometheus at {} has a query; only what stands before /api/v1/query is accepted",
                base.host_str().unwrap_or_default()
            )));
        }
        Ok(Self { base, client: Client::new()?.limit(LIMIT), headers: HeaderMap::new(), get: false })
    }

    /// With these credentials.
    #[must_use]
    pub fn auth(mut self, auth: Auth) -> Self {
        self.client = self.client.auth(auth);
        self
    }

    /// With this header on every request, as a tenant's. What is secret belongs into [`auth`](Self::auth).
    ///
    /// # Errors
    /// `Invalid` when the name or the value cannot be a header's.
    pub fn header(mut self, name: &str, value: &str) -> Result<Self> {
        let name = web::header_name(name)?;
        let value = HeaderValue::from_str(value).map_err(|_| {
            Error::invalid(format!("the value of header {name} has a character that no header may have"))
        })?;
        self.headers.insert(name, value);
        Ok(self)
    }

    /// Asked through this client: a proxy, a private authority, a client certificate. Build it without redirects.
    #[must_use]
    pub fn client(mut self, client: reqwest::Client) -> Self {
        self.client = self.client.http(client);
        self
    }

    /// Waits this long for an answer; 5 seconds unless said. Keep it below the policy's
    /// [`timeout`](crate::gate::Policy::timeout), which would hide the reason.
    #[must_use]
    pub fn timeout(mut self, time: Duration) -> Self {
        self.client = self.client.timeout(time);
        self
    }

    /// Asks with GET where a proxy in between lets no POST through. Long queries may not fit then.
    #[must_use]
    pub const fn by_get(mut self) -> Self {
        self.get = true;
        self
    }

    /// The address, as messages show it.
    pub(in crate::gate) fn shown(&self) -> String {
        self.client.shown(&self.base)
    }

    /// What a query gives at this time, or at the server's own now.
    pub(super) async fn instant(&self, query: &str, at: Option<Timestamp>) -> Result<Found> {
        let mut form = vec![("query", query.to_owned()), ("timeout", seconds(self.client.time()))];
        form.extend(at.map(|at| ("time", time(at))));
        self.ask("api/v1/query", &form).await?.found()
    }

    /// What a query gives at each step of a time.
    pub(super) async fn range(&self, query: &str, from: Timestamp, to: Timestamp, step: Duration) -> Result<Found> {
        let form = [
            ("query", query.to_owned()),
            ("timeout", seconds(self.client.time())),
            ("start", time(from)),
            ("end", time(to)),
            ("step", seconds(step)),
        ];
        self.ask("api/v1/query_range", &form).await?.found()
    }

    /// The values that a label has among these series.
    pub(super) async fn values(&self, label: &str, of: &str) -> Result<Vec<String>> {
        let mut url = self.address(&format!("api/v1/label/{label}/values"));
        url.query_pairs_mut().append_pair("match[]", of);
        let answer = self.send(self.client.request(Method::GET, url)).await?;
        answer.data::<Vec<String>>().map(|(values, _)| values)
    }

    /// Its alerting rules. Only what speaks all of Prometheus' API has any to tell.
    #[cfg(feature = "alertmanager")]
    pub(in crate::gate) async fn alerting_rules(&self) -> Result<Vec<AlertingRule>> {
        #[derive(Deserialize)]
        struct Rules {
            groups: Vec<Group>,
        }
        #[derive(Deserialize)]
        struct Group {
            rules: Vec<AlertingRule>,
        }
        let mut url = self.address("api/v1/rules");
        url.query_pairs_mut().append_pair("type", "alert");
        let answer = self.send(self.client.request(Method::GET, url)).await?;
        let (rules, _) = answer.data::<Rules>()?;
        Ok(rules.groups.into_iter().flat_map(|group| group.rules).collect())
    }

    fn address(&self, path: &str) -> Url {
        let mut url = self.base.clone();
        url.set_path(&format!("{}/{path}", self.base.path().trim_end_matches('/')));
        url
    }

    async fn ask(&self, path: &str, form: &[(&str, String)]) -> Result<Heard> {
        let mut url = self.address(path);
        let mut encoded = url.clone();
        encoded.query_pairs_mut().clear().extend_pairs(form);
        let pairs = encoded.query().unwrap_or_default();
        let request = if self.get {
            url.set_query(Some(pairs));
            self.client.request(Method::GET, url)
        } else {
            self.client
                .request(Method::POST, url)
                .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
                .body(pairs.to_owned())
        };
        self.send(request).await
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> Result<Heard> {
        Ok(Heard(self.client.send(request.headers(self.headers.clone())).await?))
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("at", &self.shown()).finish_non_exhaustive()
    }
}

/// As much of an alerting rule as tells which alerts it makes, and how soon.
#[cfg(feature = "alertmanager")]
#[derive(Deserialize)]
pub(in crate::gate) struct AlertingRule {
    pub(in crate::gate) name: String,
    /// Its `for`, in seconds.
    pub(in crate::gate) duration: f64,
    /// Those that it sets itself; an alert has those of its series as well.
    #[serde(default)]
    pub(in crate::gate) labels: Labels,
}

/// An answer of the API, good or bad.
struct Heard(Answer);

/// What the API wraps everything in.
#[derive(Deserialize)]
struct Envelope<T> {
    status: String,
    data: Option<T>,
    #[serde(default)]
    warnings: Vec<String>,
}

/// What it says of what went wrong.
#[derive(Deserialize)]
struct Complaint {
    #[serde(default, rename = "errorType")]
    kind: String,
    error: String,
}

#[derive(Deserialize)]
#[serde(tag = "resultType", content = "result", rename_all = "lowercase")]
enum Data {
    Vector(Vec<Instant>),
    Matrix(Vec<Row>),
    Scalar((f64, String)),
    String(IgnoredAny),
}

#[derive(Deserialize)]
struct Instant {
    metric: Labels,
    value: Option<(f64, String)>,
}

#[derive(Deserialize)]
struct Row {
    metric: Labels,
    #[serde(default)]
    values: Vec<(f64, String)>,
}

impl Heard {
    fn data<T: for<'de> Deserialize<'de>>(&self) -> Result<(T, Vec<String>)> {
        let Self(answer) = self;
        let status = answer.status.as_u16();
        if !answer.status.is_success() {
            // A 400 of the server itself says what is wrong with the query; one of a proxy is a page.
            let plain = answer.error();
            let Ok(complaint) = serde_json::from_slice::<Complaint>(&answer.body) else { return Err(plain) };
            let kind = match (status, complaint.kind.as_str()) {
                (_, "timeout" | "unavailable" | "canceled") => ErrorKind::Unavailable,
                (400 | 422, _) => ErrorKind::Invalid,
                _ => plain.kind(),
            };
            let said: String = answer.redact(&complaint.error).chars().take(400).collect();
            let what: String = answer.redact(&complaint.kind).chars().take(40).collect();
            let error = Error::new(kind, format!("{} answered {status} ({what}): {said}", answer.shown));
            return Err(match plain.retry_after() {
                Some(after) => error.retry_in(after),
                None => error,
            });
        }
        if let Some(from) = &answer.redirected {
            return Err(Error::new(
                ErrorKind::Internal,
                format!("{} sent us to {from}, which is not what was asked", answer.shown),
            ));
        }
        let envelope: Envelope<T> = answer.json()?;
        let warnings = envelope.warnings.iter().map(|text| answer.redact(text).chars().take(200).collect()).collect();
        match envelope.data {
            Some(data) if envelope.status == "success" => Ok((data, warnings)),
            _ => Err(Error::new(
                ErrorKind::Internal,
                format!("{} answered {status} without success: {}", answer.shown, answer.said()),
            )),
        }
    }

    fn found(self) -> Result<Found> {
        let (data, warnings) = self.data::<Data>()?;
        let sample = |(at, text): &(f64, String)| {
            let wrong = |what: &str| {
                let text: String = self.0.redact(text).chars().take(40).collect();
                Error::new(
                    ErrorKind::Internal,
                    format!("{} answered with a sample whose {what}: {text:?}", self.0.shown),
                )
            };
            let at = Timestamp::from_millisecond((at * 1000.0).round() as i64).map_err(|_| wrong("time is none"))?;
            let value = text.parse::<f64>().map_err(|_| wrong("value is no number"))?;
            Ok(Sample { at, value })
        };
        // Label values are the server's words as well.
        let labels = |labels: Labels| -> Labels {
            let labels = labels.into_iter().filter(|(name, _)| name != "__name__");
            labels.map(|(name, value)| (name, self.0.redact(&value))).collect()
        };
        let (shape, series) = match data {
            Data::Scalar(one) => (Shape::Instant, vec![Series { labels: Labels::new(), samples: vec![sample(&one)?] }]),
            Data::Vector(rows) => {
                let rows = rows.into_iter().map(|row| {
                    let samples = row.value.iter().map(sample).collect::<Result<_>>()?;
                    Ok(Series { labels: labels(row.metric), samples })
                });
                (Shape::Instant, rows.collect::<Result<_>>()?)
            }
            Data::Matrix(rows) => {
                let rows = rows.into_iter().map(|row| {
                    let samples = row.values.iter().map(sample).collect::<Result<_>>()?;
                    Ok(Series { labels: labels(row.metric), samples })
                });
                (Shape::Matrix, rows.collect::<Result<_>>()?)
            }
            Data::String(_) => {
                return Err(Error::invalid("the query gives a text; one that gives numbers is accepted"));
            }
        };
        Ok(Found { shape, series, warnings })
    }
}

/// The labels of a series, without its name.
pub(super) type Labels = BTreeMap<String, String>;

/// What a query found.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) shape: Shape,
    pub(super) series: Vec<Series>,
    /// What the server itself doubts: parts that did not answer, series that are no counters.
    pub(super) warnings: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    Instant,
    Matrix,
}

/// One series. Without samples it is of native histograms, which have no one value.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Series {
    pub(super) labels: Labels,
    pub(super) samples: Vec<Sample>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Sample {
    pub(super) at: Timestamp,
    pub(super) value: f64,
}

/// Seconds with three decimals, as the API reads times and durations.
fn seconds(time: Duration) -> String {
    format!("{:.3}", time.as_secs_f64())
}

fn time(at: Timestamp) -> String {
    format!("{:.3}", at.as_millisecond() as f64 / 1000.0)
}

/// Enough for a thousand series, or a day of one.
const LIMIT: usize = 4 * 1024 * 1024;
