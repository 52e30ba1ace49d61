//! The Alertmanager gate against a real Alertmanager and against servers of bytes, and the whole way: a real rule of a
//! real Prometheus, a real Alertmanager, its webhook, our receiver, a rollback.

use std::{sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp};
use rollback_core::{
    clock::{Clock as _, SystemClock},
    engine::{Engine, NewRollout, Target},
    gate::{self, Alertmanager, Evidence, HealthGate as _, Policy, Preexisting, Verdict, Window},
    model::{DriverId, Revision},
    plan::Plan,
    receiver::Receiver,
    state::State,
    store::Memory,
    testing::fakes::Fake,
    web::Auth,
};
use serde_json::{Value, json};

use crate::{
    http::{change, plan, window},
    support::{
        alertmanager::{self, Server},
        prometheus,
        raw::{Raw, nobody},
    },
};

/// A target of this test alone, on a server that may not be ours.
struct Scene {
    server: Server,
    target: String,
    created: Timestamp,
}

impl Scene {
    async fn new() -> Option<Self> {
        let server = alertmanager::server().await?;
        Some(Self { server, target: DriverId::fresh().to_string(), created: SystemClock.now() })
    }

    fn gate(&self) -> Alertmanager {
        let alerts = format!("target=\"{}\"", self.target);
        let beat = format!("beat=\"{}\"", self.target);
        Alertmanager::new("alerts", self.server.url(), [alerts], [beat]).unwrap()
    }

    async fn beat(&self) {
        self.server.post("alerts", &json!([{ "labels": { "alertname": "Watchdog", "beat": self.target } }])).await;
    }

    /// Fires since the rollout was created and this many seconds; ended with `over`.
    async fn alert(&self, name: &str, since: i64, over: bool) {
        let mut alert = json!({
            "labels": { "alertname": name, "target": self.target },
            "annotations": { "summary": format!("{name} it is") },
            "startsAt": self.created + SignedDuration::from_secs(since),
        });
        if over {
            alert["endsAt"] = json!(SystemClock.now());
        }
        self.server.post("alerts", &json!([alert])).await;
    }

    fn window(&self, last: Option<Evidence>) -> Window {
        let now = SystemClock.now();
        Window { created: self.created, since: self.created, now, last, ..window() }
    }

    async fn judge(&self, gate: &Alertmanager, last: Option<&Verdict>) -> Verdict {
        gate.judge(&self.window(last.map(|last| last.evidence().clone()))).await.unwrap()
    }

    /// Waits until the gate's word and its reason are these.
    async fn until(&self, gate: &Alertmanager, last: Option<&Verdict>, word: &str, says: &str) -> Verdict {
        let mut seen = None;
        let said = async {
            loop {
                let verdict = self.judge(gate, last).await;
                if verdict.standing().name() == word && verdict.evidence().summary.contains(says) {
                    return verdict;
                }
                seen = Some(verdict);
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        let said = tokio::time::timeout(Duration::from_secs(30), said).await;
        said.unwrap_or_else(|_| panic!("it is not {word} ({says}) but {seen:?}"))
    }
}

#[tokio::test]
async fn a_new_alert_is_unhealthy_until_it_ends_or_is_silenced() {
    let Some(scene) = Scene::new().await else { return };
    let gate = scene.gate();
    let verdict = scene.judge(&gate, None).await;
    assert_eq!(verdict.standing().name(), "inconclusive", "nobody says that alerts would come: {verdict:?}");
    assert!(verdict.evidence().summary.starts_with("no heartbeat {beat="), "{verdict:?}");
    let before = SystemClock.now();
    scene.beat().await;
    let verdict = scene.until(&gate, None, "healthy", "no alert fires").await;
    let until = verdict.evidence().until;
    assert!(
        (before - SignedDuration::from_secs(1)..=SystemClock.now()).contains(&until),
        "as far as the heartbeat: {until}"
    );
    scene.alert("Errors", 1, false).await;
    scene.until(&gate, Some(&verdict), "unhealthy", "1 alert fire: Errors (Errors it is)").await;
    let (from, to) = (SystemClock.now(), SystemClock.now() + SignedDuration::from_hours(1));
    let matchers = json!([{ "name": "target", "value": scene.target, "isRegex": false, "isEqual": true }]);
    let silence =
        json!({ "matchers": matchers, "startsAt": from, "endsAt": to, "createdBy": "ana", "comment": "test" });
    scene.server.post("silences", &silence).await;
    scene.until(&gate, Some(&verdict), "healthy", "no alert fires").await;
}

#[tokio::test]
async fn what_fired_before_is_the_policys_business_and_never_the_candidates_fault() {
    let Some(scene) = Scene::new().await else { return };
    scene.beat().await;
    scene.alert("Old", -60, false).await;
    let refuse = scene.gate();
    let ignore = scene.gate().preexisting(Preexisting::Ignore("it is being worked on".into()));
    let recover = scene.gate().preexisting(Preexisting::RequireRecovery);
    let said = "1 alert fired before the rollout and did not end: Old";
    scene.until(&refuse, None, "inconclusive", said).await;
    let recovering = scene.until(&recover, None, "inconclusive", said).await;
    let ignoring = scene.until(&ignore, None, "healthy", "1 alert from before that we ignore").await;

    let readiness = refuse.preflight(&change(), &plan()).await.unwrap();
    assert!(readiness.refused[0].as_str().contains("1 alert fire already: Old"), "{readiness:?}");
    let readiness = ignore.preflight(&change(), &plan()).await.unwrap();
    assert!(readiness.refused.is_empty(), "{readiness:?}");
    assert!(
        readiness.not_provable.iter().any(|note| note.as_str().ends_with("ignored: it is being worked on")),
        "{readiness:?}"
    );
    assert!(recover.preflight(&change(), &plan()).await.unwrap().refused.is_empty());

    // It ends, and fires again with a beginning that is later than the rollout's: new, unless it is ignored for good.
    scene.alert("Old", -60, true).await;
    let recovered = scene.until(&recover, Some(&recovering), "healthy", "no alert fires").await;
    let ignoring = scene.until(&ignore, Some(&ignoring), "healthy", "no alert fires").await;
    scene.alert("Old", 1, false).await;
    scene.until(&recover, Some(&recovered), "unhealthy", "Old").await;
    scene.until(&ignore, Some(&ignoring), "healthy", "that we ignore").await;
    // One that never ended, and whose Prometheus forgot when it began, is as old as before.
    scene.until(&recover, Some(&recovering), "inconclusive", said).await;
}

#[tokio::test]
async fn preflight_asks_for_the_heartbeat_and_for_matchers_that_the_server_takes() {
    let Some(scene) = Scene::new().await else { return };
    let readiness = scene.gate().preflight(&change(), &plan()).await.unwrap();
    assert!(readiness.refused[0].as_str().contains("finds no heartbeat"), "{readiness:?}");
    scene.beat().await;
    let beat = format!("beat=\"{}\"", scene.target);
    let gate = Alertmanager::new("alerts", scene.server.url(), ["target=~\"(\"".to_owned()], [beat]).unwrap();
    let readiness = gate.preflight(&change(), &plan()).await.unwrap();
    assert!(readiness.refused[0].as_str().contains("answered 400"), "{readiness:?}");
    assert!(gate.judge(&scene.window(None)).await.is_err());
    let readiness = scene.gate().preflight(&change(), &plan()).await.unwrap();
    assert!(readiness.refused.is_empty() && readiness.proved.len() == 1, "{readiness:?}");
}

/// One that fits into a bake of two minutes, one that does not, one that waits longer than the whole plan; and others'.
const SLOW: &str = r#"
groups:
  - name: checkout
    rules:
      - {alert: Errors, expr: vector(0) > 1, for: 30s, labels: {target: checkout}}
      - {alert: Slowness, expr: vector(0) > 1, for: 3m, labels: {target: checkout}}
      - {alert: Saturation, expr: vector(0) > 1, for: 1h}
      - {alert: OfAnother, expr: vector(0) > 1, for: 2h, labels: {target: search}}
      - {record: a:sum, expr: vector(1)}
"#;

#[tokio::test]
async fn preflight_tells_of_rules_that_wait_longer_than_a_bake() {
    let Some(scene) = Scene::new().await else { return };
    scene.beat().await;
    let files = [("prometheus.yml", "rule_files: [rules.yml]\n"), ("rules.yml", SLOW)];
    let real = match prometheus::Server::own(&files, &[]) {
        Ok(real) => real,
        Err(why) => return crate::support::skip("prometheus", &why),
    };
    let server = gate::prometheus::Server::new(real.url()).unwrap();
    let beat = format!("beat=\"{}\"", scene.target);
    let ready = async |matchers: &[&str]| {
        let matchers = matchers.iter().map(|matcher| matcher.to_string());
        let gate = Alertmanager::new("alerts", scene.server.url(), matchers, [beat.clone()]).unwrap().rules(&server);
        gate.preflight(&change(), &plan()).await.unwrap()
    };
    // It loads its rules beside answering.
    let loaded = async {
        while ready(&["target=\"checkout\""]).await.proved.len() < 2 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), loaded).await.expect("it has its rules");

    // The plan bakes for two minutes twice.
    let found = ready(&["target=\"checkout\""]).await;
    let (fits, late) = (found.proved[1].as_str(), found.not_provable);
    assert!(
        fits.contains("1 of the rules") && fits.contains("at most 30 s, within the shortest bake of 120 s"),
        "{fits}"
    );
    let [slow, saturated] = late.as_slice() else { panic!("{late:?}") };
    let (slow, saturated) = (slow.as_str(), saturated.as_str());
    assert!(slow.contains("Slowness") && slow.contains("180 s (`for`), over the shortest bake of 120 s"), "{slow}");
    assert!(saturated.contains("Saturation") && saturated.contains("all bakes together, 240 s"), "{saturated}");

    let late = ready(&["alertname!=\"Errors\"", "alertname=~\"Err.*\"", "target=\"checkout\""]).await.not_provable;
    assert_eq!(late.len(), 2, "{late:?}");
    let none = ready(&["alertname=\"Watchdog\"", "target=\"checkout\""]).await.not_provable;
    assert!(none[0].as_str().contains("has no rule whose alerts match alertname=\"Watchdog\",target="), "{none:?}");
    drop(real);
    let away = ready(&["target=\"checkout\""]).await;
    assert!(away.refused.is_empty() && away.not_provable[0].as_str().contains("refuses connections"), "{away:?}");
}

#[test]
fn what_can_never_be_asked_is_refused_when_it_is_made() {
    let refused = |url: &str, alerts: &[&str], beat: &[&str]| {
        let gate = Alertmanager::new("alerts", url, alerts.iter().copied(), beat.iter().copied());
        gate.unwrap_err().chain()
    };
    let (url, good) = ("http://localhost:9093", &["a=\"b\""][..]);
    for none in ["", "a", "=b", "a=", "a=~", "1a=b", "a b=c", "{a=\"b\"}"] {
        assert!(refused(url, &[none], good).contains("name=\"value\" is accepted"), "{none}");
    }
    assert!(refused(url, &[], good).contains("no matchers for its alerts"));
    assert!(refused(url, good, &[]).contains("no matchers for its heartbeat"));
    assert!(refused("ftp://host", good, good).contains("http and https are accepted"));
    assert!(!refused("http://ana:hunter2@host", good, good).contains("hunter2"));
}

/// Not new, and its own heartbeat: the least that says nothing fires.
fn calm(window: &Window) -> Value {
    json!([{
        "fingerprint": "beef", "labels": {}, "startsAt": "2020-01-01T00:00:00Z", "updatedAt": window.now,
        "endsAt": "2040-01-01T00:00:00Z", "receivers": [],
        "status": { "state": "active", "silencedBy": [], "inhibitedBy": [] },
    }])
}

fn asking(url: &str) -> Alertmanager {
    let gate = Alertmanager::new("alerts", url, ["a=\"b\""], ["c=\"d\""]).unwrap();
    gate.auth(Auth::bearer("s3cr3t-token").unwrap()).timeout(Duration::from_millis(300))
}

#[tokio::test]
async fn nothing_a_server_can_say_is_a_pass_or_a_panic_or_leaks_the_token() {
    let (window, ok) = (Window { last: None, ..window() }, "200 OK");
    let good = calm(&window);
    let but = |path: &str, value: Value| {
        let mut alerts = good.clone();
        *alerts.pointer_mut(path).unwrap() = value;
        alerts.to_string()
    };
    let deep = "[".repeat(100_000);
    for (status, body) in [
        (ok, ""),
        (ok, "null"),
        (ok, "{}"),
        (ok, "[3]"),
        (ok, "[]"),
        (ok, "<html>s3cr3t-token is logged in</html>"),
        (ok, deep.as_str()),
        (ok, &but("/0/updatedAt", json!("0001-01-01T00:00:00Z"))),
        (ok, &but("/0/updatedAt", json!("yesterday"))),
        (ok, &but("/0/startsAt", json!(17))),
        (ok, &but("/0/status", json!("active"))),
        (ok, &but("/0/status/state", json!("maybe"))),
        (ok, &but("/0/labels", json!({ "a": 1 }))),
        (ok, &but("/0/fingerprint", Value::Null)),
        (ok, &" ".repeat(10_000_000)),
        ("204 No Content", ""),
        ("302 Found", ""),
        ("400 Bad Request", "\"bad matcher\""),
        ("401 Unauthorized", "s3cr3t-token is wrong"),
        ("404 Not Found", "404 page not found"),
        ("503 Service Unavailable", ""),
    ] {
        let server = Raw::page(status, "", body).await;
        let gate = asking(&server.url(""));
        let said = match gate.judge(&window).await {
            Ok(Verdict::Inconclusive(evidence)) => evidence.summary,
            Err(e) => e.chain(),
            Ok(verdict) => panic!("{status} {body:.80}: {verdict:?}"),
        };
        assert!(!said.contains("s3cr3t-token"), "{said}");
        let readiness = gate.preflight(&change(), &plan()).await;
        // How old a heartbeat is, it cannot tell: it is not told the time.
        let is_old = body.contains("0001-01-01");
        assert!(readiness.map_or(true, |readiness| is_old || !readiness.refused.is_empty()), "{status} {body:.80}");
    }
    // The check of the check: what they all differ from passes.
    let server = Raw::page(ok, "", &good.to_string()).await;
    let verdict = asking(&server.url("/path/")).judge(&window).await.unwrap();
    assert_eq!(verdict.standing().name(), "healthy", "{verdict:?}");
    for heard in server.heard() {
        let line = heard.lines().next().unwrap();
        assert!(line.starts_with("GET /path/api/v2/alerts?active=true&unprocessed=false&silenced="), "{line}");
    }
    // Memory that somebody else wrote is no fresh start.
    let strange = Evidence::new(window.since, "before").remember(7.into());
    let verdict = asking(&server.url("")).judge(&Window { last: Some(strange), ..window.clone() }).await.unwrap();
    assert_eq!(verdict.standing().name(), "inconclusive", "{verdict:?}");
    assert_eq!(verdict.evidence().memory, Some(7.into()));
}

#[tokio::test]
async fn a_server_that_is_away_or_never_answers_is_no_data() {
    let window = Window { last: None, ..window() };
    assert!(asking(&nobody().await).judge(&window).await.unwrap_err().is_transient());
    let silent = Raw::new(|_, stream| async move {
        tokio::time::sleep(Duration::from_secs(60)).await;
        drop(stream);
    });
    let (silent, drip) = (silent.await, Raw::drip().await);
    for (url, says) in [(silent.url(""), "gave no answer in 300ms"), (drip.url(""), "did not end it in 300ms")] {
        let error = asking(&url).judge(&window).await.unwrap_err();
        assert!(error.to_string().contains(says), "{error}");
    }
}

#[tokio::test]
async fn more_old_alerts_than_can_be_remembered_are_no_data() {
    let window = Window { last: None, ..window() };
    let many: Vec<_> = (0..=Alertmanager::MAX_PREEXISTING)
        .map(|n| {
            let mut alert = calm(&window)[0].clone();
            alert["fingerprint"] = json!(format!("{n:016x}"));
            alert
        })
        .collect();
    let calm = calm(&window).to_string();
    let many = Arc::new(json!(many).to_string());
    let server = Raw::new(move |request, mut stream| {
        let body = if request.contains("silenced=true") { calm.clone() } else { many.to_string() };
        async move {
            let page = crate::support::raw::page("200 OK", "", &body);
            drop(tokio::io::AsyncWriteExt::write_all(&mut stream, page.as_bytes()).await);
        }
    });
    let server = server.await;
    let gate = asking(&server.url("")).preexisting(Preexisting::Ignore("test".into()));
    let verdict = gate.judge(&window).await.unwrap();
    assert_eq!(verdict.standing().name(), "inconclusive", "{verdict:?}");
    assert!(verdict.evidence().summary.contains("narrow the matchers"), "{verdict:?}");
}

const TOKEN: &str = "an-alertmanagers-own-token";

/// Evaluated four times a second: an error count that a test pushes, and the heartbeat.
const RULES: &str = r#"
groups:
  - name: shop
    interval: 250ms
    rules:
      - alert: CheckoutErrors
        expr: shop_errors > 5
        labels: {target: checkout}
        annotations: {summary: "{{ $value }} requests failed"}
      - alert: Watchdog
        expr: vector(1)
"#;

#[tokio::test]
async fn a_rule_that_fires_rolls_back_by_webhook_and_a_prometheus_that_dies_is_no_health() {
    // Our receiver, mounted in an application as anybody would.
    let fake = Fake::new("v1", "v2");
    let engine = Engine::new(Memory::new()).unwrap();
    let (alarms, signal) = gate::signal("alarms").unwrap();
    // Asked so seldom that only a push can be the reason to go back.
    let policy = Policy::default().every(Duration::from_secs(3600));
    engine.register(Target::new("checkout", fake.clone()).unwrap().gate(alarms, policy)).unwrap();
    let receiver = Receiver::new(&engine).signal("checkout", signal).unwrap().bearer(TOKEN).unwrap();
    let router = receiver.heartbeat("alertname", "Watchdog").router().unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let app = axum::Router::new().nest("/rollback", router);
    tokio::spawn(axum::serve(listener, app).into_future());

    let config = format!(
        "
route: {{receiver: rollback, group_by: ['...'], group_wait: 0s, group_interval: 200ms, repeat_interval: 1s}}
receivers:
  - name: rollback
    webhook_configs:
      - url: http://127.0.0.1:{port}/rollback/alertmanager
        http_config: {{authorization: {{credentials: {TOKEN}}}}}
"
    );
    let Some(alertmanager) = alertmanager::own(&config).await else { return };
    let address = alertmanager.url().trim_start_matches("http://");
    let config = format!(
        "
rule_files: [rules.yml]
alerting: {{alertmanagers: [{{static_configs: [{{targets: ['{address}']}}]}}]}}
"
    );
    let prometheus = match prometheus::Server::own(
        &[("prometheus.yml", &config), ("rules.yml", RULES)],
        &["--rules.alert.resend-delay=1s"],
    ) {
        Ok(prometheus) => prometheus,
        Err(why) => return crate::support::skip("prometheus", &why),
    };
    let matchers = (["target=\"checkout\""], ["alertname=\"Watchdog\""]);
    let polled = Alertmanager::new("alerts", alertmanager.url(), matchers.0, matchers.1).unwrap();
    let scene = Scene { server: alertmanager, target: "checkout".into(), created: SystemClock.now() };
    scene.until(&polled, None, "healthy", "no alert fires").await;

    let plan = Plan::canary([10, 100], Duration::from_secs(3600)).unwrap();
    let new = NewRollout::new("checkout", Revision::new("v2").unwrap(), plan).unwrap();
    let mut handle = engine.start(new).await.unwrap();
    let heard = async {
        while handle.status().gates.first().is_none_or(|slot| slot.standing.name() != "healthy") {
            handle.changed().await.expect("it goes on");
        }
    };
    tokio::time::timeout(Duration::from_secs(30), heard).await.expect("the heartbeat arrives by webhook");
    assert!(!fake.only("v1"));

    let errors = async |count: f64| {
        let now = SystemClock.now().as_millisecond() as f64 / 1000.0;
        prometheus.push(&[("shop_errors", vec![(now, count)])]).await;
    };
    errors(37.0).await;
    let outcome = tokio::time::timeout(Duration::from_secs(30), handle.finished()).await.expect("it goes back");
    assert!(matches!(outcome.rollout.state, State::RolledBack { .. }), "{outcome}");
    assert!(outcome.to_string().contains("alert CheckoutErrors: 37 requests failed"), "{outcome}");
    assert!(fake.only("v1"));
    scene.until(&polled, None, "unhealthy", "CheckoutErrors (37 requests failed)").await;
    errors(0.0).await;
    scene.until(&polled, None, "healthy", "no alert fires").await;

    // It dies, its alerts vanish after four times the resend delay, and an empty list is not health.
    drop(prometheus);
    scene.until(&polled, None, "inconclusive", "no heartbeat {alertname=\"Watchdog\"}").await;
}
