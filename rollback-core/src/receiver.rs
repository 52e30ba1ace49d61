//! A router that takes what is pushed: alerts for the gates, requests from people.
//!
//! Mount it in any `axum` application, behind your TLS. Nothing gets in without a secret, and each kind of route has
//! secrets of its own: whoever may say that something is wrong may not therefore approve.
//!
//! | route | takes | let in by |
//! |---|---|---|
//! | `POST /alertmanager` | Alertmanager's webhook (version 4) | [`bearer`](Receiver::bearer) or [`signed`](Receiver::signed) |
//! | `POST /grafana` | the webhook of Grafana's contact points | the same |
//! | `POST /signal` | `{"target": "checkout", "gate": "alarms", "healthy": false, "why": "…"}` | the same |
//! | `GET /rollouts/{id}` | nothing; answers with the rollout, without what is sealed | [`requests`](Receiver::requests) |
//! | `POST /rollouts/{id}/{ask}` | `{"by": "ana", "reason": "…"}`; asks are `approve`, `pause`, `resume`, `abort` | the same |
//!
//! Every answer is JSON. What was not taken says why in `error`, with a status of 400 or more; 503 asks to try again.
//!
//! ```
//! # use std::time::Duration;
//! # use rollback_core::{engine::{Engine, Target}, gate::{self, Policy}, receiver::Receiver, store::Memory, testing::fakes::Fake};
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let (token, key) = ("an-alertmanagers-own-token", "the-key-of-the-chat-bot");
//! let engine = Engine::new(Memory::new())?;
//! let (gate, alarms) = gate::signal("alarms")?;
//! engine.register(Target::new("checkout", Fake::new("v1", "v2"))?.gate(gate, Policy::default()))?;
//!
//! let receiver = Receiver::new(&engine)
//!     .signal("checkout", alarms)?            // feeds the gate `alarms` of checkout
//!     .heartbeat("alertname", "Watchdog")     // says that the sender lives, so that silence is not health
//!     .bearer(token)?                         // Alertmanager
//!     .requests(key)?;                        // people, through a tool that signs
//! let app = axum::Router::new().nest("/rollback", receiver.router()?);
//!
//! let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
//! let serving = tokio::spawn(axum::serve(listener, app).into_future());
//! # serving.abort();
//! # Ok(())
//! # }
//! ```
//!
//! # Alerts
//! An alert's labels name the rollout (`rollout`, its id) or the target (`target`), and, where the target has several
//! signals, the gate (`gate`). The names of these labels can be changed. The gate is unhealthy as long as one of its
//! alerts fires, and its rollout hears of it at once. When the last one is resolved, the gate is told healthy; a
//! decision that was taken before stands. An alert counts from its `startsAt`; what fired before the rollout was created
//! is [`Preexisting`]'s business.
//!
//! The alerts that fire are remembered by this process only. After a restart an alert is heard of again when its sender
//! repeats it; where that takes long, let the gate `Alertmanager` (feature `alertmanager`) stand beside. A webhook tells bad
//! news; good news is a [`heartbeat`](Receiver::heartbeat) or a word to `/signal`, and a signal that hears neither has
//! no data.
//!
//! Only the process that drives a rollout can feed its gates. A word about a rollout that is driven elsewhere is answered
//! with 503: send alerts to every process that may drive.
//!
//! # Signatures
//! `x-rollback-timestamp` is the time in seconds since 1970, and `x-rollback-signature` the HMAC-SHA256 in 64 hex digits of
//! - for alerts and words: the timestamp, `:`, the body. Grafana signs in this form, given the names of the two headers;
//! - for requests: the timestamp, `:`, the method, a blank, `/rollouts/{id}` or `/rollouts/{id}/{ask}` (not
//!   percent-encoded, without what the router is nested under), `:`, the body, which is empty for `GET`.
//!
//! A signature counts for five minutes before and after its timestamp by the engine's clock, and once: sign every try
//! anew. Spent signatures are remembered by this process only, so a copy could be used once at another process of the
//! same store within these minutes. A bearer token can be replayed by whoever sees it: use TLS.
//!
//! # Alertmanager
//! ```yaml
//! receivers:
//!   - name: rollback
//!     webhook_configs:
//!       - url: https://deploy.internal/rollback/alertmanager
//!         http_config: {authorization: {credentials_file: /run/secrets/rollback}}   # sent as a bearer token
//! route:
//!   routes:
//!     - matchers: [target=~".+"]
//!       receiver: rollback
//!       group_by: [target]
//!       group_wait: 0s         # what is waited here, users wait
//!       group_interval: 10s
//!     - matchers: [alertname="Watchdog"]
//!       receiver: rollback
//!       group_interval: 20s    # a heartbeat counts for a minute
//!       repeat_interval: 20s
//! ```

mod door;
mod news;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{
    Router,
    body::Bytes,
    extract::{DefaultBodyLimit, FromRequest as _, Path, Request as HttpRequest, State, rejection::PathRejection},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};

use self::{
    door::Door,
    news::{Alerts, Key, Named, News, Says, Word},
};
use crate::{
    engine::Engine,
    error::{Error, ErrorKind, Result},
    gate::Signal,
    model::{GateName, Note, RolloutId, TargetId},
    request::{Ask, Request},
    rollout::Rollout,
};

/// Takes pushed alerts and requests for the rollouts of an engine. Set it up, then mount its [`router`](Self::router).
pub struct Receiver {
    engine: Engine,
    signals: BTreeMap<TargetId, BTreeMap<GateName, Signal>>,
    labels: Labels,
    preexisting: Preexisting,
    alerts: Door,
    requests: Door,
}

/// What becomes of an alert that fired before the rollout was created. It never counts against that rollout, unless it is
/// asked for: the candidate cannot have caused it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Preexisting {
    /// Heard while the target has no open rollout, it makes the gate unhealthy, and no rollout begins before it is
    /// resolved. The default.
    #[default]
    Refuse,
    /// Heard while the target has no open rollout, it is nobody's concern.
    Ignore,
    /// It counts like any other.
    Count,
}

/// Which labels say what.
struct Labels {
    rollout: String,
    target: String,
    gate: String,
    heartbeat: Option<(String, String)>,
}

impl Receiver {
    /// The most bytes of a body: 256 KiB.
    pub const MAX_BODY: usize = 256 * 1024;
    /// How long a body may take to arrive.
    pub const PATIENCE: Duration = Duration::from_secs(10);
    /// How many alerts of one gate are remembered to fire. More are answered with 503, so that their sender repeats them.
    pub const MAX_FIRING: usize = 1000;

    /// A receiver for the rollouts of this engine, which lets nobody in yet.
    pub fn new(engine: &Engine) -> Self {
        Self {
            engine: engine.clone(),
            signals: BTreeMap::new(),
            labels: Labels { rollout: "rollout".into(), target: "target".into(), gate: "gate".into(), heartbeat: None },
            preexisting: Preexisting::default(),
            alerts: Door::default(),
            requests: Door::default(),
        }
    }

    /// Feeds this signal, and so its gate, with what is pushed about this target. It should be fed by nobody else: the
    /// last word counts.
    ///
    /// # Errors
    /// `Invalid` when the target's id is not 1 to 128 bytes of printable text, or has a signal for a gate of this name.
    pub fn signal(mut self, target: impl AsRef<str>, signal: Signal) -> Result<Self> {
        let target = TargetId::try_from(target.as_ref())?;
        let gate = signal.gate().clone();
        if self.signals.entry(target.clone()).or_default().insert(gate.clone(), signal).is_some() {
            return Err(Error::invalid(format!("target {target} has two signals for gate {gate}")));
        }
        Ok(self)
    }

    /// Lets senders of alerts in that show this bearer token. Say it once more for a second token, as while one is
    /// being replaced.
    ///
    /// # Errors
    /// `Invalid` when it has less than 16 bytes, or others than printable ASCII.
    pub fn bearer(mut self, token: impl AsRef<str>) -> Result<Self> {
        self.alerts.token(token.as_ref())?;
        Ok(self)
    }

    /// Lets senders of alerts in that sign with this key. Say it once more for a second key.
    ///
    /// # Errors
    /// `Invalid` when it has less than 16 bytes.
    pub fn signed(mut self, key: impl AsRef<[u8]>) -> Result<Self> {
        self.alerts.key(key.as_ref())?;
        Ok(self)
    }

    /// Offers status, approve, pause, resume and abort to whoever signs with this key. The signer is trusted to say who
    /// asks: the record names that person, and an approval counts as theirs. Say it once more for a second key.
    ///
    /// # Errors
    /// `Invalid` when it has less than 16 bytes.
    pub fn requests(mut self, key: impl AsRef<[u8]>) -> Result<Self> {
        self.requests.key(key.as_ref())?;
        Ok(self)
    }

    /// The label whose value is a rollout's id, instead of `rollout`.
    #[must_use]
    pub fn rollout_label(mut self, name: impl Into<String>) -> Self {
        self.labels.rollout = name.into();
        self
    }

    /// The label whose value is a target's id, instead of `target`.
    #[must_use]
    pub fn target_label(mut self, name: impl Into<String>) -> Self {
        self.labels.target = name.into();
        self
    }

    /// The label whose value is a gate's name, instead of `gate`.
    #[must_use]
    pub fn gate_label(mut self, name: impl Into<String>) -> Self {
        self.labels.gate = name.into();
        self
    }

    /// An alert that always fires has this label, as Prometheus' customary `alertname="Watchdog"`. Each time it is
    /// pushed, the gates without a firing alert are told healthy: those of the target that its labels name, else all.
    /// Let it be repeated more often than the gate's [`fresh_for`](crate::gate::SignalGate::fresh_for).
    #[must_use]
    pub fn heartbeat(mut self, label: impl Into<String>, value: impl Into<String>) -> Self {
        self.labels.heartbeat = Some((label.into(), value.into()));
        self
    }

    /// What becomes of alerts that fired before the rollout was created.
    #[must_use]
    pub const fn preexisting(mut self, preexisting: Preexisting) -> Self {
        self.preexisting = preexisting;
        self
    }

    /// The router, to be served, nested or merged. It has the routes that somebody can be let in to.
    ///
    /// # Errors
    /// `Invalid` when nobody could be let in, or when there are signals and nobody could feed them.
    pub fn router(self) -> Result<Router> {
        let (alerts, requests) = (!self.alerts.is_walled_up(), !self.requests.is_walled_up());
        if !alerts && !self.signals.is_empty() {
            return Err(Error::invalid(
                "the receiver has signals, and neither a bearer token nor a signing key for them",
            ));
        }
        if !alerts && !requests {
            return Err(Error::invalid("the receiver lets nobody in; give it a bearer token or a signing key"));
        }
        let mut router = Router::new();
        if alerts {
            router = router
                .route("/alertmanager", post(take_alerts))
                .route("/grafana", post(take_alerts))
                .route("/signal", post(take_word));
        }
        if requests {
            router = router.route("/rollouts/{id}", get(show)).route("/rollouts/{id}/{ask}", post(ask));
        }
        let desk = Desk { receiver: self, firing: Mutex::default() };
        Ok(router.layer(DefaultBodyLimit::max(Self::MAX_BODY)).with_state(Arc::new(desk)))
    }
}

/// Without any secret.
impl fmt::Debug for Receiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receiver")
            .field("signals", &self.signals)
            .field("preexisting", &self.preexisting)
            .finish_non_exhaustive()
    }
}

/// What the routes share.
struct Desk {
    receiver: Receiver,
    /// What fires, by gate. Signals are pushed under its lock, so that the last push says what the last change came to.
    firing: Mutex<BTreeMap<Place, BTreeMap<Key, Note>>>,
}

/// A gate that can be fed.
type Place = (TargetId, GateName);

async fn take_alerts(State(desk): State<Arc<Desk>>, request: HttpRequest) -> Response {
    let taken = async {
        let body = desk.receiver.alerts.body(request, b"", &desk.receiver).await?;
        let alerts: Alerts = parse(&body, "a webhook of Alertmanager or Grafana")?;
        let cut = alerts.truncated_alerts;
        let mut heard = desk.hear(alerts.into_news(&desk.receiver.labels)).await;
        if cut > 0 {
            heard.notes.push(format!("the sender left {cut} alerts out (max_alerts)"));
        }
        Ok(heard)
    };
    answer(taken.await.map(Heard::into_response))
}

async fn take_word(State(desk): State<Arc<Desk>>, request: HttpRequest) -> Response {
    let taken = async {
        let body = desk.receiver.alerts.body(request, b"", &desk.receiver).await?;
        let word: Word = parse(&body, "a word about a target's health")?;
        Ok(desk.hear([word.into_news()]).await)
    };
    answer(taken.await.map(Heard::into_response))
}

async fn show(
    State(desk): State<Arc<Desk>>,
    id: Result<Path<String>, PathRejection>,
    request: HttpRequest,
) -> Response {
    let shown = async {
        let Path(id) = id.map_err(unreadable)?;
        let (parts, _) = request.into_parts();
        let request = HttpRequest::from_parts(parts, axum::body::Body::empty());
        desk.receiver.requests.body(request, format!("GET /rollouts/{id}:").as_bytes(), &desk.receiver).await?;
        let id = rollout_id(&id)?;
        Ok(status(&*desk.receiver.engine.rollout(&id).await.map_err(refused)?))
    };
    answer(shown.await.map(|status| json_response(StatusCode::OK, &status)))
}

async fn ask(
    State(desk): State<Arc<Desk>>,
    path: Result<Path<(String, String)>, PathRejection>,
    request: HttpRequest,
) -> Response {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Form {
        by: String,
        #[serde(default)]
        reason: Note,
    }
    let asked = async {
        let Path((id, what)) = path.map_err(unreadable)?;
        let signed = format!("POST /rollouts/{id}/{what}:");
        let body = desk.receiver.requests.body(request, signed.as_bytes(), &desk.receiver).await?;
        let id = rollout_id(&id)?;
        let ask = match what.as_str() {
            "abort" => Ask::Abort,
            "pause" => Ask::Pause,
            "resume" => Ask::Resume,
            "approve" => Ask::Approve,
            _ => {
                let why = format!("{what:?} cannot be asked here; approve, pause, resume and abort can");
                return Err(Refusal::new(StatusCode::NOT_FOUND, why));
            }
        };
        let form: Form = parse(&body, "a request")?;
        let request = Request::new(ask, form.by, form.reason).map_err(refused)?;
        tracing::info!(rollout = %id, %request, "a request came in");
        desk.receiver.engine.ask(&id, request).await.map_err(refused)
    };
    answer(asked.await.map(|note| json_response(StatusCode::OK, &json!({ "answer": note }))))
}

impl Door {
    /// The body of a request that is let in. What else was signed stands before it.
    async fn body(&self, request: HttpRequest, signed: &[u8], receiver: &Receiver) -> Result<Bytes, Refusal> {
        let shown = self.look(request.headers())?;
        let body = match tokio::time::timeout(Receiver::PATIENCE, Bytes::from_request(request, &())).await {
            Ok(Ok(body)) => body,
            Ok(Err(e)) if e.status() == StatusCode::PAYLOAD_TOO_LARGE => {
                let why = format!("the body is too long; at most {} bytes are accepted", Receiver::MAX_BODY);
                return Err(Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, why));
            }
            Ok(Err(_)) => return Err(Refusal::new(StatusCode::BAD_REQUEST, "the body broke off")),
            Err(_) => {
                let why = format!("the body did not arrive within {} s", Receiver::PATIENCE.as_secs());
                return Err(Refusal::new(StatusCode::REQUEST_TIMEOUT, why));
            }
        };
        self.check(shown, &[signed, &body], receiver.engine.now())?;
        Ok(body)
    }
}

/// What came of a webhook: one that holds good news and bad is heard as far as it can be.
#[derive(Default)]
struct Heard {
    count: usize,
    notes: Vec<String>,
    refusals: Vec<Refusal>,
}

impl Heard {
    /// What refusals an answer lists.
    const SHOWN: usize = 10;

    fn into_response(self) -> Response {
        // One that asks to try again comes first, or the sender would not.
        let worst = self.refusals.iter().max_by_key(|refusal| refusal.status.is_server_error());
        let status = worst.map_or(StatusCode::OK, |refusal| refusal.status);
        let mut body = json!({ "heard": self.count });
        if let Some(worst) = worst {
            body["error"] = worst.why.clone().into();
        }
        if self.refusals.len() > 1 {
            let all: Vec<_> = self.refusals.iter().take(Self::SHOWN).map(|refusal| &refusal.why).collect();
            body["errors"] = json!(all);
        }
        if !self.notes.is_empty() {
            body["notes"] = self.notes.into_iter().take(Self::SHOWN).collect();
        }
        if let Some(why) = body.get("error") {
            tracing::info!(status = status.as_u16(), %why, "news were not all taken");
        }
        json_response(status, &body)
    }
}

/// The open rollout of a target, and whether this process drives it.
type Open = Option<(Arc<Rollout>, bool)>;

impl Desk {
    async fn hear(&self, news: impl IntoIterator<Item = News>) -> Heard {
        let mut heard = Heard::default();
        let mut open: BTreeMap<TargetId, Open> = BTreeMap::new();
        let mut changes = Vec::new();
        for news in news {
            match self.place(&news, &mut open).await {
                Ok(places) => changes.push((places, news)),
                Err(refusal) => heard.refusals.push(refusal),
            }
        }
        self.apply(changes, &open, &mut heard);
        heard
    }

    /// The gates that this is about.
    async fn place(&self, news: &News, open: &mut BTreeMap<TargetId, Open>) -> Result<BTreeSet<Place>, Refusal> {
        let Named { rollout, target, gate } = &news.named;
        let labels = &self.receiver.labels;
        let named = match rollout {
            None => None,
            Some(id) => Some(self.receiver.engine.rollout(&rollout_id(id)?).await.map_err(refused)?),
        };
        let target = match (&named, target) {
            (Some(rollout), Some(target)) if rollout.change.target.as_str() != target => {
                let (id, about) = (rollout.id(), &rollout.change.target);
                return Err(unclear(format!("rollout {id} is about {about}, not about {target}")));
            }
            (Some(rollout), _) => rollout.change.target.clone(),
            (None, Some(target)) => TargetId::try_from(target.as_str()).map_err(refused)?,
            (None, None) if news.says == Says::Beats => {
                return Ok(self.places().collect());
            }
            (None, None) => {
                let (why, rollout, target) = (&news.why, &labels.rollout, &labels.target);
                return Err(unclear(format!("{why}: names no rollout; `{rollout}` or `{target}` must")));
            }
        };
        let Some(gates) = self.receiver.signals.get(&target) else {
            let known: Vec<_> = self.receiver.signals.keys().map(TargetId::as_str).collect();
            let why = format!("target {target} has no signal here; those with one are: {}", known.join(", "));
            return Err(Refusal::new(StatusCode::NOT_FOUND, why));
        };
        let names = || gates.keys().map(GateName::as_str).collect::<Vec<_>>().join(", ");
        let gates: Vec<_> = match gate {
            Some(gate) => match gates.keys().find(|name| name.as_str() == gate) {
                Some(gate) => vec![gate],
                None => {
                    let gate = Note::new(gate);
                    let why = format!("target {target} has no signal for gate {gate}; it has: {}", names());
                    return Err(Refusal::new(StatusCode::NOT_FOUND, why));
                }
            },
            None if gates.len() == 1 || news.says == Says::Beats => gates.keys().collect(),
            None => {
                let why =
                    format!("target {target} has several signals; `{}` must name one of: {}", labels.gate, names());
                return Err(unclear(why));
            }
        };
        if let Some(rollout) = &named
            && !rollout.state.is_open()
            && matches!(news.says, Says::Fires | Says::Healthy)
        {
            return Err(Refusal::new(StatusCode::CONFLICT, format!("rollout {} is over", rollout.id())));
        }
        if news.says == Says::Fires && !open.contains_key(&target) {
            open.insert(target.clone(), self.receiver.engine.open_rollout(&target).await.map_err(refused)?);
        }
        Ok(gates.into_iter().map(|gate| (target.clone(), gate.clone())).collect())
    }

    fn places(&self) -> impl Iterator<Item = Place> {
        let signals = self.receiver.signals.iter();
        signals.flat_map(|(target, gates)| gates.keys().map(|gate| (target.clone(), gate.clone())))
    }

    /// Changes what fires, then tells every gate once what it came to: one webhook may hold the end of one alert and the
    /// beginning of another.
    fn apply(&self, changes: Vec<(BTreeSet<Place>, News)>, open: &BTreeMap<TargetId, Open>, heard: &mut Heard) {
        let mut firing = self.firing.lock().unwrap_or_else(PoisonError::into_inner);
        // What to say where nothing fires any more; nothing to say where nothing was known to fire.
        let mut said: BTreeMap<Place, Option<Note>> = BTreeMap::new();
        for (places, news) in changes {
            let mut taken = true;
            for place in places {
                let open = open.get(&place.0).and_then(Option::as_ref);
                let fires = firing.entry(place.clone()).or_default();
                let good = match news.says {
                    Says::Fires => {
                        if let Some(note) = self.not_counted(&place.0, &news, open) {
                            heard.notes.push(note);
                            continue;
                        }
                        if fires.len() >= Receiver::MAX_FIRING && !fires.contains_key(&news.key) {
                            let why = format!("{} alerts of {}/{} fire already", fires.len(), place.0, place.1);
                            heard.refusals.push(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, why));
                            taken = false;
                            continue;
                        }
                        fires.insert(news.key, news.why.clone());
                        if let Some((rollout, false)) = open {
                            let why = format!("rollout {} of {} is driven by another process", rollout.id(), place.0);
                            heard.refusals.push(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, why));
                            taken = false;
                        }
                        None
                    }
                    Says::Resolved => match fires.remove(&news.key) {
                        Some(_) => Some(Note::new(format!("resolved: {}", news.why))),
                        None => {
                            heard.notes.push(format!("{}: was not known to fire", news.why));
                            continue;
                        }
                    },
                    Says::Healthy => {
                        fires.remove(&news.key);
                        Some(news.why.clone())
                    }
                    Says::Beats => Some(Note::new(format!("{}; no alert fires", news.why))),
                };
                said.insert(place, good);
            }
            heard.count += usize::from(taken);
        }
        for (place, good) in said {
            let signal = &self.receiver.signals[&place.0][&place.1];
            let fires = &firing[&place];
            match (fires.values().next(), good) {
                (Some(first), _) if fires.len() == 1 => signal.unhealthy(first.as_str()),
                (Some(first), _) => signal.unhealthy(format!("{first} (and {} more)", fires.len() - 1)),
                (None, Some(why)) => signal.healthy(why.as_str()),
                (None, None) => {}
            }
        }
        firing.retain(|_, fires| !fires.is_empty());
    }

    /// Why something that fires is nobody's fault here.
    fn not_counted(&self, target: &TargetId, news: &News, open: Option<&(Arc<Rollout>, bool)>) -> Option<String> {
        let since = news.since?;
        match (open, self.receiver.preexisting) {
            (Some((rollout, _)), Preexisting::Refuse | Preexisting::Ignore) if since < rollout.created => {
                Some(format!("{}: fires since {since:.0}, before rollout {} was created", news.why, rollout.id()))
            }
            (None, Preexisting::Ignore) => Some(format!("{}: {target} has no open rollout", news.why)),
            _ => None,
        }
    }
}

/// A rollout as outsiders may see it.
fn status(rollout: &Rollout) -> Value {
    let gates = rollout.gates.iter().map(|slot| {
        json!({
            "name": slot.name,
            "standing": slot.standing,
            "why": slot.evidence.as_ref().map(|evidence| &evidence.summary),
            "judged": slot.judged,
            "tripped": slot.tripped,
            "skipped": slot.skipped,
        })
    });
    let gates: Value = gates.collect();
    json!({
        "rollout": rollout.id(),
        "target": rollout.change.target,
        "baseline": rollout.change.baseline.id,
        "candidate": rollout.change.candidate.id,
        "author": rollout.author,
        "reason": rollout.reason,
        "created": rollout.created,
        "state": rollout.state.name(),
        "says": rollout.state.describe(&rollout.plan),
        "open": rollout.state.is_open(),
        "entered": rollout.entered,
        "deadline": rollout.deadline,
        "weight": rollout.weight,
        "waiting_for": rollout.waiting_for,
        "gates": gates,
        "approvals": rollout.approvals,
        "not_restored": rollout.not_restored,
        "times": rollout.times,
    })
}

/// Why something was not taken.
struct Refusal {
    status: StatusCode,
    why: String,
}

impl Refusal {
    fn new(status: StatusCode, why: impl Into<String>) -> Self {
        Self { status, why: why.into() }
    }
}

fn unclear(why: String) -> Refusal {
    Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, why)
}

fn unreadable(_: PathRejection) -> Refusal {
    Refusal::new(StatusCode::BAD_REQUEST, "the path is not text")
}

fn rollout_id(text: &str) -> Result<RolloutId, Refusal> {
    RolloutId::try_from(text).map_err(refused)
}

fn refused(e: Error) -> Refusal {
    let status = match e.kind() {
        ErrorKind::NotFound => StatusCode::NOT_FOUND,
        ErrorKind::Denied => StatusCode::FORBIDDEN,
        ErrorKind::Invalid => StatusCode::UNPROCESSABLE_ENTITY,
        ErrorKind::Conflict | ErrorKind::Mixed => StatusCode::CONFLICT,
        ErrorKind::Throttled | ErrorKind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        ErrorKind::Unsupported | ErrorKind::Internal => StatusCode::INTERNAL_SERVER_ERROR,
    };
    // Causes are for our log: a store's own words may say more than outsiders should read.
    tracing::debug!(why = %e.chain(), "a request was refused");
    Refusal::new(status, e.to_string())
}

fn parse<T: DeserializeOwned>(body: &[u8], what: &str) -> Result<T, Refusal> {
    serde_json::from_slice(body).map_err(|e| {
        Refusal::new(StatusCode::BAD_REQUEST, format!("the body is not {what}: {}", Note::new(e.to_string())))
    })
}

fn answer(outcome: Result<Response, Refusal>) -> Response {
    outcome.unwrap_or_else(|Refusal { status, why }| {
        tracing::info!(status = status.as_u16(), why, "a caller was refused");
        let mut response = json_response(status, &json!({ "error": why }));
        if status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, header::HeaderValue::from_static("Bearer"));
        }
        response
    })
}

fn json_response(status: StatusCode, body: &Value) -> Response {
    (status, [(header::CONTENT_TYPE, "application/json")], body.to_string()).into_response()
}
