//! No credential comes out anywhere: not in errors, verdicts, evidence, records, reports, messages, answers, logs or
//! `Debug`; however much of it the other side says back.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::{body::Body, http::Request as HttpRequest};
use rollback_core::{
    Error, Result,
    clock::{Clock as _, SystemClock},
    engine::{Engine, NewRollout, Target},
    gate::{
        self, Alertmanager, Budget, Compare, HealthGate, Http, Policy, Prometheus, Window,
        prometheus::{Bound, Counts, Gauges, Latencies, Matcher, Selector, Server},
    },
    listener::{Email, Listener, Log, RolloutEvent, Slack, Webhook},
    model::Revision,
    plan::Plan,
    receiver::Receiver,
    report::Report,
    state::State,
    store::Memory,
    testing::fakes::Fake,
    web::{Auth, Secret, Sign, reqwest},
};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tower::ServiceExt as _;

use crate::{
    http::{change, plan, window},
    support::{
        events::until,
        logs,
        raw::{Raw, nobody, page},
    },
};

/// Nobody else's in these tests, so that whoever says it is found.
const SECRET: &str = "hush-8f2a-m0th-w1ng";
/// `probe:` and the secret, as basic authentication says it.
const BASIC: &str = "cHJvYmU6aHVzaC04ZjJhLW0wdGgtdzFuZw==";
/// In the query of an address, where it should not be.
const QUERY: &str = "hush-in-an-address";
/// What a revision is made of, which only its backend may know.
const SEALED: &str = "sealed-5c1e-d33p";

#[track_caller]
fn quiet(what: &str, text: impl AsRef<str>) {
    for secret in [SECRET, BASIC, QUERY, SEALED] {
        assert!(!text.as_ref().contains(secret), "{what} says {secret}: {}", text.as_ref());
    }
}

/// Everything that an error says.
#[track_caller]
fn quiet_error(what: &str, error: &Error) {
    quiet(what, format!("{error} {error:#} {error:?} {error:#?} {}", error.chain()));
}

#[track_caller]
fn refused<T: fmt::Debug>(what: &str, result: Result<T>) {
    quiet_error(what, &result.expect_err(what));
}

/// Fetches a token for each request.
#[derive(Debug)]
struct Token;

#[async_trait::async_trait]
impl Sign for Token {
    async fn sign(&self, request: &mut reqwest::Request) -> Result<()> {
        let mut value = reqwest::header::HeaderValue::from_static(SECRET);
        value.set_sensitive(true);
        request.headers_mut().insert("x-token", value);
        Ok(())
    }
}

fn every_auth() -> [Auth; 4] {
    [
        Auth::bearer(SECRET).unwrap(),
        Auth::basic("probe", SECRET).unwrap(),
        Auth::header("X-Api-Key", SECRET).unwrap(),
        Auth::signed(Token),
    ]
}

/// Says all it was told, in every place where an answer can say something.
async fn echo(status: &'static str, json: bool) -> Raw {
    Raw::new(move |request, mut stream| async move {
        let line = request.replace(['\r', '\n'], " ");
        let said = if json {
            let label = json!({ "said": line });
            json!({
                "status": "success", "error": line, "errorType": line, "warnings": [line],
                "data": { "resultType": "vector", "result": [{ "metric": label, "value": [1_767_614_400, line] }] },
            })
            .to_string()
        } else {
            request
        };
        let headers = format!("X-Revision: {line}\r\nLocation: /{line}\r\nWWW-Authenticate: {line}\r\n");
        drop(stream.write_all(page(status, &headers, &said).as_bytes()).await);
    })
    .await
}

/// Each gate that asks somebody, with these credentials, of the server at this address.
fn gates(url: &str, auth: &Auth) -> Vec<Box<dyn HealthGate>> {
    let server = Server::new(url).unwrap().auth(auth.clone()).timeout(Duration::from_millis(500));
    let hits = Selector::new("hits_total").unwrap().revision("v").unwrap();
    let failed = || Matcher::is("code", "500").unwrap();
    let [one, two, three] = Budget::default().split([1.0, 1.0, 1.0]).unwrap();
    let probe = || {
        let url = format!("{url}path?key={QUERY}");
        Http::new("health", &url).unwrap().auth(auth.clone()).timeout(Duration::from_millis(500))
    };
    vec![
        Box::new(probe()),
        Box::new(probe().revision_in_header("x-revision").unwrap()),
        Box::new(probe().revision_in_body().follow_redirects(2).unwrap()),
        Box::new(probe().expect_json("/data/result/0/metric/said", gate::http::Is::Equal("ok".into()))),
        Box::new(Prometheus::new("queue", &server, "queue", Bound::AtMost(1.0)).unwrap()),
        Box::new(Prometheus::error_ratio("errors", &server.clone().by_get(), &hits, failed(), 0.01).unwrap()),
        Box::new(Compare::failures("failures", Counts::new(&server, &hits, failed()).unwrap(), one).unwrap()),
        Box::new(Compare::latency("latency", Latencies::new(&server, &hits).unwrap(), two).unwrap()),
        Box::new(Compare::gauge("gauge", Gauges::new(&server, &hits).unwrap(), three, 1.0).unwrap()),
        Box::new(
            Alertmanager::new("alerts", url, ["a=\"b\""], ["c=\"d\""])
                .unwrap()
                .auth(auth.clone())
                .timeout(Duration::from_millis(500)),
        ),
    ]
}

#[tokio::test]
async fn no_gate_tells_what_it_was_given_to_whoever_asks_it_for_a_verdict() {
    logs::with("");
    let servers = [
        echo("200 OK", false).await,
        echo("200 OK", true).await,
        echo("302 Found", false).await,
        echo("400 Bad Request", true).await,
        echo("401 Unauthorized", false).await,
        echo("503 Service Unavailable", true).await,
        Raw::bytes(format!("{SECRET} is no HTTP")).await,
        Raw::bytes(format!("HTTP/1.1 200 OK\r\nContent-Length: 10000\r\n\r\n{SECRET}")).await,
    ];
    let mut urls: Vec<String> = servers.iter().map(|server| server.url("/")).collect();
    urls.push(nobody().await);
    urls.push("http://nowhere.invalid/".into());
    urls.push(servers[0].url("/").replace("http:", "https:"));
    let window = Window { last: None, ..window() };
    for (at, url) in urls.iter().enumerate() {
        let mut asking = tokio::task::JoinSet::new();
        // Each kind of credentials to each server that can say them back well; in turn to the others.
        let turn = if at < 2 { every_auth().to_vec() } else { vec![every_auth()[at % 4].clone()] };
        for auth in turn {
            quiet("the credentials", format!("{auth:?} {auth:#?}"));
            for gate in gates(url, &auth) {
                let (name, window) = (format!("gate {} at {url}", gate.name()), window.clone());
                asking.spawn(async move {
                    quiet(&name, format!("{gate:?} {gate:#?}"));
                    match gate.judge(&window).await {
                        Ok(verdict) => {
                            let evidence = serde_json::to_string(verdict.evidence()).unwrap();
                            quiet(&name, format!("{verdict:?} {evidence}"));
                        }
                        Err(e) => quiet_error(&name, &e),
                    }
                    match gate.preflight(&change(), &plan()).await {
                        Ok(readiness) => quiet(&name, format!("{readiness:?}")),
                        Err(e) => quiet_error(&name, &e),
                    }
                });
            }
        }
        while let Some(asked) = asking.join_next().await {
            asked.expect("no gate panics or tells");
        }
    }
    // The check of the check: the credentials were sent, and the servers said them back.
    let heard: String = servers.iter().flat_map(Raw::heard).collect();
    for sent in [format!("Bearer {SECRET}"), format!("Basic {BASIC}"), format!("x-token: {SECRET}")] {
        assert!(heard.contains(&sent), "{sent} was not sent");
    }
    assert_eq!(logs::with(SECRET), [""; 0]);
    assert_eq!(logs::with(BASIC), [""; 0]);
    assert_eq!(logs::with(QUERY), [""; 0]);
}

#[test]
fn what_cannot_be_a_credential_or_an_address_is_refused_without_being_quoted() {
    let broken = format!("{SECRET}\n");
    refused("bearer", Auth::bearer(broken.as_str()));
    refused("bearer", Auth::bearer(format!("{SECRET}\u{7f}")));
    refused("header", Auth::header("X-Key", broken.as_str()));
    refused("basic", Auth::basic("a:b", SECRET));
    quiet("a secret", format!("{:?}", Secret::from(SECRET)));
    for url in [
        format!("http://ana:{SECRET}@example.org/"),
        format!("https://{SECRET}@example.org/"),
        format!("http://example.org:{SECRET}/"),
        format!("ftp://example.org/{SECRET}?key={SECRET}"),
        format!("//example.org/services/{SECRET}"),
        format!("/services/{SECRET}"),
    ] {
        refused(&url, Http::new("health", &url));
        refused(&url, Server::new(&url));
        refused(&url, Alertmanager::new("alerts", &url, ["a=\"b\""], ["c=\"d\""]));
        refused(&url, Webhook::new(&url));
        refused(&url, Slack::new(&url));
    }
    refused("a query", Server::new(&format!("http://example.org/?key={SECRET}")));
    let server = Server::new("http://example.org").unwrap();
    refused("a header", server.header("X-Scope-OrgID", &broken));
    let engine = Engine::new(Memory::new()).unwrap();
    refused("a token that is no token", Receiver::new(&engine).bearer(format!("{SECRET}ü")));
    refused("a token that is short", Receiver::new(&engine).bearer(&SECRET[..15]));
    let mail = Email::new("localhost", "a@example.com", ["b@example.com"]).unwrap().login("ops", SECRET);
    refused("no certificate", mail.trust(SECRET.as_bytes()));
}

#[tokio::test]
async fn a_receiver_tells_nobody_its_secrets() {
    let engine = Engine::new(Memory::new()).unwrap();
    let (_, signal) = gate::signal("alarms").unwrap();
    let receiver = Receiver::new(&engine).signal("checkout", signal).unwrap();
    let receiver = receiver.bearer(SECRET).unwrap().signed(SECRET).unwrap().requests(SECRET).unwrap();
    quiet("the receiver", format!("{receiver:?} {receiver:#?} {engine:?}"));
    let router = receiver.router().unwrap();
    quiet("its router", format!("{router:?}"));
    for (path, token) in [
        ("/alertmanager", SECRET),
        ("/alertmanager", "wrong"),
        ("/grafana", SECRET),
        ("/signal", SECRET),
        ("/rollouts/one/abort", SECRET),
        ("/rollouts/one/destroy", SECRET),
    ] {
        for body in [format!("{{\"said\": \"{SECRET}\"}}"), "[".repeat(1000), String::new()] {
            let request = HttpRequest::post(path).header("authorization", format!("Bearer {token}"));
            let request = request.header("x-rollback-signature", SECRET).body(Body::from(body)).unwrap();
            let answer = router.clone().oneshot(request).await.unwrap();
            assert!(!answer.status().is_success(), "{path}");
            let head = format!("{:?}", answer.headers());
            let body = axum::body::to_bytes(answer.into_body(), 1 << 20).await.unwrap();
            quiet(path, head + &String::from_utf8_lossy(&body));
        }
    }
}

/// Everything that this process can hear of a rollout.
#[derive(Clone, Debug, Default)]
struct Heard(Arc<std::sync::Mutex<Vec<RolloutEvent>>>);

impl Listener for Heard {
    fn on(&self, event: &RolloutEvent) {
        self.0.lock().unwrap().push(event.clone());
    }
}

/// Prometheus, Alertmanager and application in one: good until it turns, then it says back all it was told.
async fn turning(turned: Arc<AtomicBool>) -> Raw {
    Raw::new(move |request, mut stream| {
        let line = request.replace(['\r', '\n'], " ");
        let path = request.split(' ').nth(1).unwrap_or_default();
        let now = SystemClock.now();
        let good = match path.split('?').next().unwrap_or_default() {
            "/api/v2/alerts" if path.contains("Watchdog") => json!([{
                "fingerprint": "beef", "labels": {}, "startsAt": "2020-01-01T00:00:00Z", "updatedAt": now,
                "status": { "state": "active", "silencedBy": [], "inhibitedBy": [] },
            }]),
            "/api/v2/alerts" => json!([]),
            path if path.ends_with("/values") => json!({ "status": "success", "data": ["x"] }),
            path if path.starts_with("/api/") => json!({
                "status": "success",
                "data": { "resultType": "vector", "result": [{ "metric": {}, "value": [now.as_second(), "0"] }] },
            }),
            _ => json!("ok"),
        };
        let (status, body) = match turned.load(Ordering::SeqCst) {
            false => ("200 OK", good.to_string()),
            true => ("500 Oops", json!({ "error": line, "errorType": "internal", "status": "error" }).to_string()),
        };
        async move { drop(stream.write_all(page(status, "", &body).as_bytes()).await) }
    })
    .await
}

#[tokio::test]
async fn nothing_that_is_told_of_a_rollout_holds_a_secret() {
    logs::with("");
    let turned = Arc::new(AtomicBool::new(false));
    let server = turning(Arc::clone(&turned)).await;
    let hooks = echo("400 Bad Request", false).await;
    let auth = Auth::bearer(SECRET).unwrap();

    let heard = Heard::default();
    let hook = format!("{}/services/{SECRET}?key={SECRET}", hooks.url(""));
    let webhook = Webhook::new(&hook).unwrap().signed(SECRET).unwrap().auth(auth.clone());
    let slack = Slack::new(&hook).unwrap();
    // What is said while mail goes out is in `mail`, where there is a server for it.
    let mail = Email::new("localhost", "a@example.com", ["b@example.com"]).unwrap().login("ops", SECRET);
    quiet("the channels", format!("{webhook:?} {slack:?} {mail:?} {webhook:#?} {slack:#?} {mail:#?}"));
    let tallies = [webhook.tally(), slack.tally()];
    let engine = Engine::builder(Memory::new()).listener(heard.clone()).listener(Log);
    let engine = engine.listener(webhook).listener(slack).build().unwrap();

    let often = Policy::default().every(Duration::from_millis(50));
    let url = server.url("/");
    let prometheus = Server::new(&url).unwrap().auth(auth.clone());
    let probe = Http::new("health", &format!("{url}?key={QUERY}")).unwrap().auth(auth.clone());
    let queue = Prometheus::new("queue", &prometheus, "queue", Bound::AtMost(1.0)).unwrap();
    let alerts = Alertmanager::new("alerts", &url, ["a=\"b\""], ["alertname=\"Watchdog\""]).unwrap().auth(auth);
    let fake = Fake::new("v1", "v2");
    let target = Target::new("quiet", fake).unwrap();
    let target = target.gate(probe, often.unhealthy_after(20, 20)).gate(queue, often).gate(alerts, often);
    quiet("the target", format!("{target:?} {target:#?}"));
    engine.register(target).unwrap();
    quiet("the engine", format!("{engine:?} {engine:#?}"));

    let v2 = Revision::new("v2").unwrap().with_spec(SEALED).unwrap();
    quiet("the revision", format!("{v2:?} {v2:#?}"));
    let new = NewRollout::new("quiet", v2, Plan::canary([10, 100], Duration::from_secs(3600)).unwrap()).unwrap();
    let mut handle = engine.start(new).await.unwrap();
    let all = |handle: &rollback_core::engine::Handle, says: &str| {
        let status = handle.status();
        status.gates.len() == 3 && status.gates.iter().all(|slot| slot.standing.name() == says)
    };
    let healthy = async {
        while !all(&handle, "healthy") {
            handle.changed().await.expect("it goes on");
        }
    };
    tokio::time::timeout(Duration::from_secs(30), healthy).await.expect("all is well at first");
    turned.store(true, Ordering::SeqCst);
    let outcome = tokio::time::timeout(Duration::from_secs(30), handle.finished()).await.expect("it ends");
    assert!(matches!(outcome.rollout.state, State::RolledBack { .. }), "{outcome}");
    engine.shutdown(Duration::from_secs(10)).await;
    drop(engine);
    until("the channels gave up", || tallies.iter().all(|tally| tally.given_up() + tally.dropped() > 0));

    let rollout = &outcome.rollout;
    let report = Report::new(rollout);
    for gate in ["queue", "alerts"] {
        let slot = rollout.gates.iter().find(|slot| slot.name.as_str() == gate).unwrap();
        let said = &slot.evidence.as_ref().unwrap().summary;
        assert!(said.contains("answered 500"), "the check of the check, what {gate} got was bad: {said}");
    }
    quiet("the outcome", format!("{outcome} {outcome:?} {rollout:?} {rollout:#?}"));
    quiet("the report", report.markdown());
    quiet("the page", report.html());
    for slot in &rollout.gates {
        quiet("the evidence", serde_json::to_string(slot).unwrap());
    }
    for event in &*heard.0.lock().unwrap() {
        quiet("an event", format!("{event:?} {}", event.what.describe(&event.rollout.plan)));
    }
    // The record has the sealed value, which it is there to keep, and nothing of the credentials.
    let record: Value = serde_json::from_str(&rollout.to_record(None, 0).unwrap().body).unwrap();
    assert!(!record.to_string().contains(SECRET), "{record}");
    // What others are told: all that was posted is in the requests, where only the headers and the path may be secret.
    for posted in hooks.heard() {
        let (head, body) = posted.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(SECRET), "the check of the check: {head}");
        quiet("a message", body);
    }
    assert!(!logs::with("rollout=quiet").is_empty(), "the check of the check: something was logged");
    assert_eq!(logs::with(SECRET), [""; 0]);
    assert_eq!(logs::with(QUERY), [""; 0]);
    assert_eq!(logs::with(SEALED), [""; 0]);
}
