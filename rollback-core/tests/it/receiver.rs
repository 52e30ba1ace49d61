//! The receiver's router in the process: what it takes, what it does then, and what it sends away.

use std::time::Duration;

use axum::{
    Router,
    body::{Body, Bytes, to_bytes},
    http::{Request as HttpRequest, StatusCode},
};
use hmac::{Hmac, KeyInit as _, Mac as _};
use jiff::{SignedDuration, Timestamp};
use rollback_core::{
    ErrorKind,
    clock::Clock as _,
    engine::{Engine, Handle, NewRollout, Target},
    gate::{self, Policy, Signal},
    model::{Revision, Weight},
    plan::{Approval, Plan, Step},
    receiver::{Preexisting, Receiver},
    rollout::What,
    state::State,
    store::Memory,
    testing::{
        clock::TestClock,
        fakes::{Fake, Fault},
    },
};
use serde_json::{Value, json};
use sha2::Sha256;
use tower::ServiceExt as _;

const TOKEN: &str = "an-alertmanagers-own-token";
const KEY: &str = "the-key-of-a-sender-of-words";
const DESK: &str = "the-key-of-the-chat-bot";

/// An engine with one target, checkout, with the gate `alarms`; and a receiver.
struct Scene {
    clock: TestClock,
    store: Memory,
    engine: Engine,
    fake: Fake,
    signal: Signal,
    router: Router,
}

impl Scene {
    fn new() -> Self {
        Self::with(|receiver| receiver)
    }

    fn with(set: impl FnOnce(Receiver) -> Receiver) -> Self {
        let (clock, store, fake) = (TestClock::new(), Memory::new(), Fake::new("v1", "v2"));
        let engine = Engine::builder(store.clone()).clock(clock.clone()).build().unwrap();
        let (gate, signal) = gate::signal("alarms").unwrap();
        let policy = Policy::default().every(Duration::from_secs(3600));
        let target = Target::new("checkout", fake.clone()).unwrap().gate(gate.silence_is_healthy(), policy);
        engine.register(target).unwrap();
        let receiver = Receiver::new(&engine).signal("checkout", signal.clone()).unwrap();
        let receiver = receiver.bearer(TOKEN).unwrap().signed(KEY).unwrap().requests(DESK).unwrap();
        let router = set(receiver).router().unwrap();
        Self { clock, store, engine, fake, signal, router }
    }

    async fn start(&self) -> Handle {
        self.start_plan(Plan::canary([10, 100], Duration::from_secs(7200)).unwrap()).await
    }

    async fn start_plan(&self, plan: Plan) -> Handle {
        let new = NewRollout::new("checkout", Revision::new("v2").unwrap(), plan).unwrap().by("ana").unwrap();
        let handle = self.engine.start(new).await.unwrap();
        until(&handle, "baking").await;
        handle
    }

    async fn send(&self, request: HttpRequest<Body>) -> (StatusCode, Value) {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let status = response.status();
        let body = to_bytes(response.into_body(), 1 << 20).await.unwrap();
        let body = if body.is_empty() { Value::Null } else { serde_json::from_slice(&body).expect("answers are JSON") };
        let text = body.to_string();
        for secret in [TOKEN, KEY, DESK] {
            assert!(!text.contains(secret), "{text}");
        }
        (status, body)
    }

    /// Posts alerts as Alertmanager does.
    async fn alerts(&self, alerts: Value) -> (StatusCode, Value) {
        self.send(bearer("/alertmanager", json!({ "version": "4", "status": "firing", "alerts": alerts }))).await
    }

    fn alert(&self, status: &str, name: &str) -> Value {
        alert(status, name, self.clock.now())
    }

    /// Signs as of now.
    fn word(&self, word: Value) -> HttpRequest<Body> {
        signed("POST", "/signal", KEY, self.clock.now().as_second(), "", word.to_string())
    }

    async fn ask(&self, id: &str, ask: &str, form: Value) -> (StatusCode, Value) {
        let (path, now) = (format!("/rollouts/{id}/{ask}"), self.clock.now().as_second());
        self.send(signed("POST", &path, DESK, now, &format!("POST {path}:"), form.to_string())).await
    }
}

fn bearer(path: &str, body: Value) -> HttpRequest<Body> {
    let request = HttpRequest::post(path).header("authorization", format!("Bearer {TOKEN}"));
    request.body(Body::from(body.to_string())).unwrap()
}

fn alert(status: &str, name: &str, since: Timestamp) -> Value {
    json!({
        "status": status,
        "labels": { "alertname": name, "target": "checkout" },
        "annotations": { "summary": format!("{name} it is") },
        "startsAt": since,
        "endsAt": "0001-01-01T00:00:00Z",
        "generatorURL": "http://prometheus/graph",
        "fingerprint": "c1b7e8e5d3f2a1b0",
    })
}

fn hmac(key: &str, text: &[u8]) -> String {
    let mac = Hmac::<Sha256>::new_from_slice(key.as_bytes()).unwrap().chain_update(text).finalize();
    mac.into_bytes().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn signed(method: &str, path: &str, key: &str, at: i64, what: &str, body: String) -> HttpRequest<Body> {
    HttpRequest::builder()
        .method(method)
        .uri(path)
        .header("x-rollback-timestamp", at.to_string())
        .header("x-rollback-signature", hmac(key, format!("{at}:{what}{body}").as_bytes()))
        .body(Body::from(body))
        .unwrap()
}

async fn until(handle: &Handle, state: &str) {
    let mut handle = handle.clone();
    while handle.status().state.name() != state {
        assert!(handle.changed().await.is_some(), "it ended as {} before it was {state}", handle.status());
    }
}

/// Whether its gate is unhealthy, healthy or without a word: what a rollout would hear.
async fn says(scene: &Scene) -> &'static str {
    // A gate of its own on the same signal would not do: the one thing to ask is the rollout's.
    let new = NewRollout::new("checkout", Revision::new("v2").unwrap(), Plan::all_at_once(Duration::ZERO).unwrap());
    let new = new.unwrap().despite_quarantine("this is about the signal");
    let outcome = scene.engine.start(new).await.unwrap().finished().await;
    let why = outcome.to_string();
    scene.fake.drift(&[("v1", 100)]);
    if why.contains("says unhealthy already") { "unhealthy" } else { "not unhealthy" }
}

#[tokio::test(start_paused = true)]
async fn an_alert_rolls_the_rollout_back_at_once_and_says_why() {
    for path in ["/alertmanager", "/grafana"] {
        let scene = Scene::new();
        let handle = scene.start().await;
        let sent = scene.clock.now();
        let body = json!({ "alerts": [scene.alert("firing", "HighErrors")], "orgId": 1, "title": "unread" });
        let (status, body) = scene.send(bearer(path, body)).await;
        assert_eq!((status, &body["heard"]), (StatusCode::OK, &json!(1)), "{body}");
        let outcome = handle.finished().await;
        // The gate is asked once an hour: it was the push that woke it.
        let took = outcome.rollout.times.decision.expect("it was decided").duration_since(sent);
        assert!(took < SignedDuration::from_secs(1), "{took}");
        assert!(matches!(outcome.rollout.state, State::RolledBack { .. }), "{outcome}");
        assert!(outcome.to_string().contains("alert HighErrors: HighErrors it is"), "{outcome}");
        assert!(scene.fake.only("v1"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_gate_is_unhealthy_as_long_as_one_of_its_alerts_fires() {
    let scene = Scene::new();
    scene.alerts(json!([scene.alert("firing", "A"), scene.alert("firing", "B")])).await;
    assert_eq!(says(&scene).await, "unhealthy");
    scene.alerts(json!([scene.alert("resolved", "A")])).await;
    assert_eq!(says(&scene).await, "unhealthy", "B still fires");
    // The end of one and the beginning of another in one webhook, in either order.
    scene.alerts(json!([scene.alert("firing", "C"), scene.alert("resolved", "B")])).await;
    assert_eq!(says(&scene).await, "unhealthy", "C fires");
    scene.alerts(json!([scene.alert("resolved", "C"), scene.alert("firing", "D")])).await;
    assert_eq!(says(&scene).await, "unhealthy", "D fires");
    let (status, body) = scene.alerts(json!([scene.alert("resolved", "D")])).await;
    assert_eq!((status, &body["heard"]), (StatusCode::OK, &json!(1)));
    assert_eq!(says(&scene).await, "not unhealthy");
}

#[tokio::test(start_paused = true)]
async fn the_end_of_an_alert_that_was_never_heard_of_is_not_good_news() {
    let scene = Scene::new();
    scene.signal.unhealthy("something else");
    let (status, body) = scene.alerts(json!([scene.alert("resolved", "A")])).await;
    assert_eq!(status, StatusCode::OK);
    assert!(body["notes"][0].as_str().unwrap().contains("was not known to fire"), "{body}");
    assert_eq!(says(&scene).await, "unhealthy");
}

#[tokio::test(start_paused = true)]
async fn a_decision_stands_when_the_alert_is_resolved() {
    let scene = Scene::new();
    let handle = scene.start().await;
    // The way back takes a second try, so that there is a time between decision and end.
    scene.fake.fault(scene.fake.calls(), Fault::Fail(ErrorKind::Unavailable));
    scene.alerts(json!([scene.alert("firing", "A")])).await;
    until(&handle, "rolling_back").await;
    assert_eq!(scene.alerts(json!([scene.alert("resolved", "A")])).await.1["heard"], 1);
    assert!(matches!(handle.finished().await.rollout.state, State::RolledBack { .. }));
}

#[tokio::test(start_paused = true)]
async fn what_fired_before_the_rollout_does_not_count_against_it_unless_asked() {
    for (preexisting, rolled_back, refused_later) in
        [(Preexisting::Refuse, false, true), (Preexisting::Ignore, false, false), (Preexisting::Count, true, true)]
    {
        let scene = Scene::with(|receiver| receiver.preexisting(preexisting));
        let before = alert("firing", "Old", scene.clock.now() - SignedDuration::from_secs(1));
        let handle = scene.start().await;
        let (status, body) = scene.alerts(json!([before])).await;
        assert_eq!(status, StatusCode::OK, "{body}");
        if rolled_back {
            until(&handle, "rolled_back").await;
        } else {
            assert!(body["notes"][0].as_str().unwrap().contains("before rollout"), "{body}");
            handle.abort("ana", "enough").await.unwrap();
            let outcome = handle.finished().await;
            assert!(!outcome.to_string().contains("alarms"), "{outcome}");
        }
        // Heard while no rollout is open.
        scene.alerts(json!([before])).await;
        assert_eq!(says(&scene).await == "unhealthy", refused_later, "{preexisting:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_heartbeat_is_health_only_while_nothing_fires() {
    let clock = TestClock::new();
    let fake = Fake::new("v1", "v2");
    let engine = Engine::builder(Memory::new()).clock(clock.clone()).build().unwrap();
    let (gate, signal) = gate::signal("alarms").unwrap();
    engine.register(Target::new("checkout", fake.clone()).unwrap().gate(gate, Policy::default())).unwrap();
    let receiver = Receiver::new(&engine).signal("checkout", signal.clone()).unwrap().bearer(TOKEN).unwrap();
    let router = receiver.heartbeat("alertname", "Watchdog").router().unwrap();
    let scene = Scene { clock, store: Memory::new(), engine, fake, signal, router };
    let watchdog = |status: &str| json!([{ "status": status, "labels": { "alertname": "Watchdog" }, "startsAt": "2020-01-01T00:00:00Z" }]);
    let standing = |handle: &Handle| handle.status().gates[0].standing.name();
    let heard = async |handle: &Handle, wanted: &str| {
        let mut handle = handle.clone();
        while standing(&handle) != wanted {
            assert!(handle.changed().await.is_some(), "it is {}, not {wanted}", standing(&handle));
        }
    };
    let handle = scene.start().await;
    assert_eq!(standing(&handle), "inconclusive", "silence is no data");
    let (status, body) = scene.alerts(watchdog("firing")).await;
    assert_eq!((status, &body["heard"]), (StatusCode::OK, &json!(1)), "{body}");
    heard(&handle, "healthy").await;
    // Its own end is silence, which becomes no data by itself.
    assert_eq!(scene.alerts(watchdog("resolved")).await.0, StatusCode::OK);
    heard(&handle, "inconclusive").await;
    scene.alerts(watchdog("firing")).await;
    heard(&handle, "healthy").await;
    scene.alerts(json!([scene.alert("firing", "A")])).await;
    scene.alerts(watchdog("firing")).await;
    until(&handle, "rolled_back").await;
    assert_eq!(says(&scene).await, "unhealthy", "the heartbeat does not speak for the alert");
}

#[tokio::test(start_paused = true)]
async fn a_word_that_is_signed_counts_and_one_that_is_not_does_not() {
    let scene = Scene::new();
    let bad = json!({ "target": "checkout", "gate": "alarms", "healthy": false, "why": "the shop is empty" });
    let (status, body) = scene.send(scene.word(bad)).await;
    assert_eq!((status, &body["heard"]), (StatusCode::OK, &json!(1)), "{body}");
    assert_eq!(says(&scene).await, "unhealthy");
    let good = json!({ "target": "checkout", "healthy": true, "why": "it is full again" });
    assert_eq!(scene.send(scene.word(good.clone())).await.0, StatusCode::OK);
    assert_eq!(says(&scene).await, "not unhealthy");
    // One sender's good word does not end another's bad one.
    scene.alerts(json!([scene.alert("firing", "A")])).await;
    let other = json!({ "target": "checkout", "healthy": true, "why": "full", "key": "orders" });
    assert_eq!(scene.send(scene.word(other)).await.0, StatusCode::OK);
    assert_eq!(says(&scene).await, "unhealthy");
}

#[tokio::test(start_paused = true)]
async fn whoever_is_not_let_in_learns_nothing() {
    let scene = Scene::new();
    let handle = scene.start().await;
    let now = scene.clock.now().as_second();
    let body = json!({ "alerts": [scene.alert("firing", "A")] }).to_string();
    let post = |path: &str| HttpRequest::post(path);
    let with = |auth: &str| post("/alertmanager").header("authorization", auth).body(Body::from(body.clone())).unwrap();
    let id = handle.id().as_str();
    let abort = format!("/rollouts/{id}/abort");
    let form = json!({ "by": "eve", "reason": "why not" }).to_string();
    let mut answers = Vec::new();
    for request in [
        post("/alertmanager").body(Body::from(body.clone())).unwrap(),
        with(""),
        with("Bearer"),
        with("Bearer "),
        with("Bearer wrong"),
        with(&format!("Bearer {TOKEN}x")),
        with(&format!("Bearer {}", &TOKEN[1..])),
        with(&format!("Basic {TOKEN}")),
        with(&format!("Bearer {KEY}")),
        // Signed with another key, over another body, over another time, in another form.
        signed("POST", "/alertmanager", "not-the-key-at-all", now, "", body.clone()),
        {
            let mut request = signed("POST", "/alertmanager", KEY, now, "", body.clone());
            *request.body_mut() = Body::from(body.replace("firing", "resolved"));
            request
        },
        {
            let mut request = signed("POST", "/alertmanager", KEY, now, "", body.clone());
            request.headers_mut().insert("x-rollback-timestamp", (now + 1).to_string().parse().unwrap());
            request
        },
        post("/signal")
            .header("x-rollback-timestamp", now)
            .header("x-rollback-signature", "beef")
            .body(Body::empty())
            .unwrap(),
        post("/signal").header("x-rollback-signature", hmac(KEY, b"")).body(Body::empty()).unwrap(),
        post("/signal")
            .header("x-rollback-timestamp", now)
            .header("x-rollback-signature", "é".repeat(32))
            .body(Body::empty())
            .unwrap(),
        // Those who may say that something is wrong may not abort, and the other way round.
        bearer(&abort, json!({ "by": "eve" })),
        signed("POST", &abort, KEY, now, &format!("POST {abort}:"), form.clone()),
        signed("POST", "/alertmanager", DESK, now, "", body.clone()),
        // What was signed for one ask, one rollout or one route opens no other.
        signed("POST", &abort, DESK, now, &format!("POST /rollouts/{id}/approve:"), form.clone()),
        signed("POST", &abort, DESK, now, "POST /rollouts/another/abort:", form.clone()),
        signed("POST", &abort, DESK, now, "", form.clone()),
        signed("GET", &format!("/rollouts/{id}"), DESK, now, "GET /rollouts/another:", String::new()),
        HttpRequest::get(format!("/rollouts/{id}")).body(Body::empty()).unwrap(),
        HttpRequest::get("/rollouts/nobody").body(Body::empty()).unwrap(),
        // Late, and signed with another key: only the second is told.
        signed("POST", "/signal", "not-the-key-at-all", now - 9999, "", body.clone()),
        // Too much, from a stranger.
        with_body(post("/signal"), vec![b'x'; Receiver::MAX_BODY + 1]),
    ] {
        let shown = format!("{request:?}");
        let (status, body) = scene.send(request).await;
        assert_eq!(status, StatusCode::UNAUTHORIZED, "{shown}: {body}");
        answers.push(body);
    }
    answers.dedup();
    assert_eq!(answers.len(), 1, "the same words whatever was wrong: {answers:?}");
    let rollout = handle.status();
    assert_eq!(rollout.state.name(), "baking");
    assert!(!rollout.log.iter().any(|entry| matches!(entry.what, What::Asked { .. })), "{:?}", rollout.log);
}

fn with_body(request: axum::http::request::Builder, body: Vec<u8>) -> HttpRequest<Body> {
    request.body(Body::from(body)).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_signature_counts_for_five_minutes_and_once() {
    let scene = Scene::new();
    let word = || json!({ "target": "checkout", "healthy": true, "why": "full" }).to_string();
    let now = scene.clock.now().as_second();
    let at = |at: i64| signed("POST", "/signal", KEY, at, "", word());
    for good in [now, now - 300, now + 300] {
        assert_eq!(scene.send(at(good)).await.0, StatusCode::OK, "{}", good - now);
        let (status, body) = scene.send(at(good)).await;
        assert_eq!(status, StatusCode::CONFLICT, "replayed: {body}");
        assert!(body["error"].as_str().unwrap().contains("used before"), "{body}");
    }
    for (late, says) in [(now - 301, "301 s old"), (now + 301, "301 s ahead"), (i64::MAX, "seconds since 1970")] {
        let (status, body) = scene.send(at(late)).await;
        assert_eq!(status, StatusCode::FORBIDDEN);
        assert!(body["error"].as_str().unwrap().contains(says), "{body}");
    }
    // Just before the last of them could be late: it is still known.
    tokio::time::advance(Duration::from_secs(599)).await;
    assert_eq!(scene.send(at(now + 300)).await.0, StatusCode::CONFLICT);
    tokio::time::advance(Duration::from_secs(2)).await;
    assert_eq!(scene.send(at(now + 300)).await.0, StatusCode::FORBIDDEN, "and late from here on");
    // A clock that was set back makes nothing good again while it is remembered.
    assert_eq!(scene.send(at(now + 600)).await.0, StatusCode::OK);
    scene.clock.jump(SignedDuration::from_mins(-5));
    assert_eq!(scene.send(at(now + 600)).await.0, StatusCode::CONFLICT);
}

#[tokio::test(start_paused = true)]
async fn spent_signatures_are_bounded_and_never_forgotten_for_new_ones() {
    let scene = Scene::new();
    let now = scene.clock.now().as_second();
    let nth = |n: usize| signed("POST", "/signal", KEY, now, "", n.to_string());
    for n in 0..10_000 {
        assert_eq!(scene.send(nth(n)).await.0, StatusCode::BAD_REQUEST);
    }
    assert_eq!(scene.send(nth(10_000)).await.0, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(scene.send(nth(0)).await.0, StatusCode::CONFLICT);
}

#[tokio::test(start_paused = true)]
async fn nasty_bodies_are_sent_back_with_a_reason_and_change_nothing() {
    let scene = Scene::new();
    let handle = scene.start().await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let judged = handle.status().gates[0].judged;
    let good = scene.alert("firing", "A");
    let but = |key: &str, value: Value| {
        let mut alert = good.clone();
        alert[key] = value;
        json!({ "alerts": [alert] }).to_string()
    };
    let deep = "[".repeat(200_000);
    for body in [
        "",
        "null",
        "[]",
        "{}",
        "{\"alerts\": 3}",
        "{\"alerts\": [3]}",
        "{\"alerts\": [{}]}",
        "<html><title>502 Bad Gateway</title></html>",
        "{\"alerts\": [",
        &deep,
        &but("status", json!("maybe")),
        &but("status", json!(true)),
        &but("labels", json!({ "target": 5 })),
        &but("labels", Value::Null),
        &but("startsAt", json!("yesterday")),
        &but("startsAt", json!("2026-01-01T00:00:00")),
    ] {
        let request = HttpRequest::post("/alertmanager").header("authorization", format!("Bearer {TOKEN}"));
        let (status, answer) = scene.send(request.body(Body::from(body.to_owned())).unwrap()).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{body:.80}: {answer}");
        assert!(answer["error"].as_str().unwrap().len() < 1200, "{answer}");
    }
    let request = || HttpRequest::post("/alertmanager").header("authorization", format!("Bearer {TOKEN}"));
    let (status, _) = scene.send(with_body(request(), b"\xff\xfe{}".to_vec())).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    for size in [Receiver::MAX_BODY + 1, 10_000_000] {
        let (status, body) = scene.send(with_body(request(), vec![b' '; size])).await;
        assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
        assert_eq!(body["error"], "the body is too long; at most 262144 bytes are accepted");
    }
    // A word with a slip of the pen is no good word.
    for word in [
        json!({ "target": "checkout", "healty": false, "healthy": true, "why": "" }),
        json!({ "target": "checkout", "why": "" }),
    ] {
        assert_eq!(scene.send(scene.word(word)).await.0, StatusCode::BAD_REQUEST);
    }
    assert_eq!(handle.status().state.name(), "baking");
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(handle.status().gates[0].judged, judged, "no gate was woken");
}

/// A body of which nothing more comes, as from a sender that hangs.
struct Stalled;

impl axum::body::HttpBody for Stalled {
    type Data = Bytes;
    type Error = std::io::Error;
    fn poll_frame(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<Bytes>, std::io::Error>>> {
        std::task::Poll::Pending
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_that_never_ends_is_not_waited_for() {
    let scene = Scene::new();
    let request = HttpRequest::post("/alertmanager").header("authorization", format!("Bearer {TOKEN}"));
    let (status, body) = scene.send(request.body(Body::new(Stalled)).unwrap()).await;
    assert_eq!((status, &body["error"]), (StatusCode::REQUEST_TIMEOUT, &json!("the body did not arrive within 10 s")));
}

#[tokio::test(start_paused = true)]
async fn labels_that_name_nothing_are_told_what_was_looked_for() {
    let (_, second) = gate::signal("latency").unwrap();
    let scene = Scene::with(|receiver| {
        let (_, one) = gate::signal("alarms").unwrap();
        receiver.signal("search", one).unwrap().signal("search", second).unwrap()
    });
    let handle = scene.start().await;
    let firing = |labels: Value| json!([{ "status": "firing", "labels": labels, "startsAt": scene.clock.now() }]);
    for (labels, status, says) in [
        (json!({}), 422, "`rollout` or `target` must"),
        (json!({ "target": "" }), 422, "`rollout` or `target` must"),
        (
            json!({ "target": "chekout" }),
            404,
            "target chekout has no signal here; those with one are: checkout, search",
        ),
        (json!({ "target": "a\nb" }), 422, "control character"),
        (json!({ "target": "x".repeat(100_000) }), 422, "at most 128 are accepted"),
        (json!({ "target": "checkout", "gate": "alarm" }), 404, "no signal for gate alarm; it has: alarms"),
        (json!({ "target": "checkout", "gate": "g".repeat(100_000) }), 404, "no signal for gate gggg"),
        (json!({ "target": "search" }), 422, "`gate` must name one of: alarms, latency"),
        (json!({ "rollout": "checkout-0" }), 404, "there is no rollout checkout-0"),
        (json!({ "rollout": handle.id(), "target": "search" }), 422, "is about checkout, not about search"),
    ] {
        let (answered, body) = scene.alerts(firing(labels.clone())).await;
        assert_eq!(answered.as_u16(), status, "{labels:.80}: {body}");
        let error = body["error"].as_str().unwrap();
        assert!(error.contains(says) && error.len() < 2000, "{labels:.80}: {body}");
    }
    assert_eq!(handle.status().state.name(), "baking");
    // One bad alert does not keep the good one of the same webhook from being heard.
    let both = json!([firing(json!({}))[0], firing(json!({ "rollout": handle.id() }))[0]]);
    let (status, body) = scene.alerts(both).await;
    assert_eq!((status.as_u16(), &body["heard"]), (422, &json!(1)), "{body}");
    until(&handle, "rolled_back").await;
    let (status, body) = scene.alerts(firing(json!({ "rollout": handle.id() }))).await;
    assert_eq!(status, StatusCode::CONFLICT, "{body}");
    // Its end is heard all the same, or the next rollout would be refused for ever.
    let resolved =
        json!([{ "status": "resolved", "labels": { "rollout": handle.id() }, "startsAt": scene.clock.now() }]);
    assert_eq!(scene.alerts(resolved).await.0, StatusCode::OK);
    assert_eq!(says(&scene).await, "not unhealthy");
}

#[tokio::test(start_paused = true)]
async fn the_caller_chooses_which_labels_name_what() {
    let scene = Scene::with(|receiver| receiver.target_label("service").gate_label("slo").rollout_label("deploy"));
    let fires = |labels: Value| json!([{ "status": "firing", "labels": labels, "startsAt": scene.clock.now() }]);
    assert_eq!(scene.alerts(fires(json!({ "target": "checkout" }))).await.0, StatusCode::UNPROCESSABLE_ENTITY);
    let (status, _) = scene.alerts(fires(json!({ "service": "checkout", "slo": "alarms" }))).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(says(&scene).await, "unhealthy");
}

#[tokio::test(start_paused = true)]
async fn what_fires_is_bounded_and_the_sender_is_asked_to_repeat_it() {
    let scene = Scene::new();
    let many: Vec<_> = (0..Receiver::MAX_FIRING).map(|n| scene.alert("firing", &n.to_string())).collect();
    for some in many.chunks(200) {
        assert_eq!(scene.alerts(json!(some)).await.0, StatusCode::OK);
    }
    let (status, body) = scene.alerts(json!([scene.alert("firing", "one more")])).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{body}");
    assert_eq!(scene.alerts(json!([many[0]])).await.0, StatusCode::OK, "it is known already");
}

#[tokio::test(start_paused = true)]
async fn a_rollout_that_another_process_drives_is_not_claimed_to_have_heard() {
    let scene = Scene::new();
    let handle = scene.start().await;
    // A second process on the same store, with a gate and a receiver of its own.
    let engine = Engine::builder(scene.store.clone()).clock(scene.clock.clone()).build().unwrap();
    let (_, signal) = gate::signal("alarms").unwrap();
    let receiver = Receiver::new(&engine).signal("checkout", signal.clone()).unwrap().bearer(TOKEN).unwrap();
    let router = receiver.requests(DESK).unwrap().router().unwrap();
    let (clock, store, fake) = (scene.clock.clone(), scene.store.clone(), scene.fake.clone());
    let second = Scene { clock, store, engine, fake, signal, router };
    let (status, body) = second.alerts(json!([scene.alert("firing", "A")])).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(body["error"].as_str().unwrap().contains("is driven by another process"), "{body}");
    // Its status can be seen there, and a request finds its way.
    let path = format!("/rollouts/{}", handle.id());
    let now = scene.clock.now().as_second();
    let (status, body) = second.send(signed("GET", &path, DESK, now, &format!("GET {path}:"), String::new())).await;
    assert_eq!((status, &body["state"]), (StatusCode::OK, &json!("baking")), "{body}");
    let (status, body) = second.ask(handle.id().as_str(), "abort", json!({ "by": "ben", "reason": "no" })).await;
    assert_eq!(status, StatusCode::OK, "{body}");
    until(&handle, "rolled_back").await;
}

#[tokio::test(start_paused = true)]
async fn a_chat_button_can_drive_a_rollout_and_the_record_names_who_pressed_it() {
    let scene = Scene::new();
    let bake = Duration::from_secs(60);
    let step = Step::new(Weight::ALL, bake).approved_by(Approval::anyone());
    let handle = scene.start_plan(Plan::new([step]).unwrap()).await;
    let id = handle.id().as_str().to_owned();
    for (ask, state) in [("pause", "holding"), ("resume", "baking")] {
        let (status, body) = scene.ask(&id, ask, json!({ "by": "ben", "reason": "lunch" })).await;
        assert_eq!(status, StatusCode::OK, "{body}");
        until(&handle, state).await;
    }
    until(&handle, "holding").await;
    // A copy of the button's press is refused.
    let (path, now) = (format!("/rollouts/{id}/approve"), scene.clock.now().as_second());
    let form = json!({ "by": "ben", "reason": "looks good" }).to_string();
    let press = || signed("POST", &path, DESK, now, &format!("POST {path}:"), form.clone());
    let (status, body) = scene.send(press()).await;
    assert_eq!(status, StatusCode::OK, "{body}");
    assert_eq!(scene.send(press()).await.0, StatusCode::CONFLICT);
    let outcome = handle.finished().await;
    assert_eq!(outcome.rollout.state, State::Promoted, "{outcome}");
    let asked = outcome.rollout.log.iter().filter_map(|entry| match &entry.what {
        What::Asked { request, .. } => Some(request.to_string()),
        _ => None,
    });
    let asked: Vec<_> = asked.collect();
    assert_eq!(asked, ["pause by ben (lunch)", "resume by ben (lunch)", "approve by ben (looks good)"]);
    // When it is over an abort is harmless and says so.
    let (status, body) = scene.ask(&id, "abort", json!({ "by": "ben" })).await;
    assert_eq!(status, StatusCode::OK);
    assert!(body["answer"].as_str().unwrap().starts_with("nothing to do"), "{body}");
}

#[tokio::test(start_paused = true)]
async fn requests_that_cannot_be_are_answered_with_the_reason() {
    let scene = Scene::new();
    let handle = scene.start().await;
    let id = handle.id().as_str();
    let ben = json!({ "by": "ben", "reason": "" });
    for (id, ask, form, status, says) in [
        ("nobody", "abort", ben.clone(), 404, "there is no rollout nobody"),
        (id, "explode", ben.clone(), 404, "approve, pause, resume and abort can"),
        (id, "give_up", ben.clone(), 404, "approve, pause, resume and abort can"),
        (id, "abort", json!({}), 400, "missing field `by`"),
        (id, "abort", json!({ "by": "" }), 422, "who asks must be named"),
        (id, "abort", json!({ "by": "b\nn" }), 422, "who asks must be named"),
        (id, "abort", json!({ "by": "ben", "force": true }), 400, "unknown field `force`"),
        (id, "approve", ben.clone(), 409, "no approval is waited for"),
        (&"x".repeat(129), "abort", ben.clone(), 422, "at most 128 are accepted"),
    ] {
        let (answered, body) = scene.ask(id, ask, form).await;
        assert_eq!(answered.as_u16(), status, "{ask} {id:.20}: {body}");
        assert!(body["error"].as_str().unwrap().contains(says), "{body}");
    }
    let (status, _) = scene.send(HttpRequest::post("/rollouts/%ff/abort").body(Body::empty()).unwrap()).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert_eq!(handle.status().state.name(), "baking");
}

#[tokio::test(start_paused = true)]
async fn the_status_holds_nothing_that_is_sealed() {
    let scene = Scene::new();
    let plan = Plan::canary([10, 100], Duration::from_secs(7200)).unwrap();
    let candidate = Revision::new("v2").unwrap().with_spec(&json!({ "password": "hunter2" })).unwrap();
    let handle = scene.engine.start(NewRollout::new("checkout", candidate, plan).unwrap()).await.unwrap();
    until(&handle, "baking").await;
    let path = format!("/rollouts/{}", handle.id());
    let now = scene.clock.now().as_second();
    let (status, body) = scene.send(signed("GET", &path, DESK, now, &format!("GET {path}:"), String::new())).await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(
        (&body["candidate"], &body["weight"], &body["gates"][0]["name"]),
        (&json!("v2"), &json!(10), &json!("alarms"))
    );
    assert!(!body.to_string().contains("hunter2") && body.get("plan").is_none(), "{body}");
}

#[test]
fn a_receiver_that_lets_nobody_in_or_whose_secrets_can_be_guessed_is_refused() {
    let engine = Engine::new(Memory::new()).unwrap();
    let receiver = || Receiver::new(&engine);
    let signal = || gate::signal("alarms").unwrap().1;
    let refused = |receiver: rollback_core::Result<Receiver>| receiver.unwrap_err().to_string();
    assert!(refused(receiver().bearer("short")).contains("16 or more are accepted"));
    assert!(refused(receiver().signed("short")).contains("a signing key of 5 bytes can be guessed"));
    assert!(refused(receiver().bearer("a token with blanks in it")).contains("blank"));
    assert!(
        refused(receiver().signal("checkout", signal()).unwrap().signal("checkout", signal())).contains("two signals")
    );
    assert!(receiver().router().unwrap_err().to_string().contains("lets nobody in"));
    let unfed = receiver().signal("checkout", signal()).unwrap().requests(DESK).unwrap();
    assert!(unfed.router().unwrap_err().to_string().contains("neither a bearer token nor a signing key"));
    let shown = format!("{:?}", receiver().bearer(TOKEN).unwrap().signed(KEY).unwrap().requests(DESK).unwrap());
    assert!(!shown.contains("own-token") && !shown.contains("key"), "{shown}");
}
