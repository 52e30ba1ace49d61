//! How long an alert takes to `shift`: pushed by Alertmanager's webhook, and asked for at the default interval.

use std::{
    future::IntoFuture as _,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::{Json, Router, extract::RawQuery, routing::get};
use jiff::Timestamp;
use rollback_benches::{Figures, Fleet, measures, name, quick, two_cores};
use rollback_core::{
    clock::{Clock as _, SystemClock},
    gate::{Alertmanager, HealthGate},
    receiver::Receiver,
    store::Memory,
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    time::{Instant, sleep},
};

/// Alerts are spread over the gates' interval, so that they meet the fleet in every phase of it.
const PAUSE: Duration = Duration::from_millis(12);
const TOKEN: &str = "the-token-of-the-bench";

fn main() {
    if !measures() {
        return;
    }
    let (alerts, polled, most) = if quick() { (200, 50, 1_000) } else { (1_000, 500, 10_000) };
    for live in [1, 1_000, 10_000].into_iter().filter(|live| *live <= most) {
        let runtime = two_cores();
        let figures = runtime.block_on(pushed(live, alerts));
        println!("webhook sent to shift, memory, {live} live: {figures}");
        runtime.shutdown_background();
    }
    let runtime = two_cores();
    let figures = runtime.block_on(asked(polled));
    println!("alert fires to shift, asked every 10 s, {polled} live: {figures}");
    runtime.shutdown_background();
}

/// One alert after the other, by a connection that is kept, as Alertmanager keeps it.
async fn pushed(live: usize, alerts: usize) -> Figures {
    let mut fleet = Fleet::new(Memory::new());
    // All that will be tripped, and those that live beside them to the end.
    fleet.register(alerts + live);
    let mut receiver = Receiver::new(&fleet.engine).bearer(TOKEN).expect("a token");
    for (target, signal) in fleet.signals() {
        receiver = receiver.signal(&target, signal).expect("a target");
    }
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let mut sender = TcpStream::connect(listener.local_addr().expect("it is bound")).await.expect("it listens");
    sender.set_nodelay(true).expect("a socket");
    tokio::spawn(axum::serve(listener, receiver.router().expect("a token was given")).into_future());

    fleet.start(0..live).await;
    fleet.judged(0..live).await;
    let mut figures = Figures::default();
    for target in 0..alerts {
        sleep(PAUSE).await;
        let request = webhook(&name(target));
        let begun = Instant::now();
        sender.write_all(&request).await.expect("it is connected");
        // Alertmanager hears that it was taken, and only then would send the next.
        let mut answer = [0; 1024];
        let length = sender.read(&mut answer).await.expect("it answers");
        assert!(answer[..length].starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer[..length]));
        let (entered, at) = fleet.entered().await;
        assert_eq!(entered.as_str(), name(target), "only the target of the alert goes back");
        figures.push(at.saturating_duration_since(begun));
        fleet.start(live + target..live + target + 1).await;
    }
    figures
}

/// A request as Alertmanager sends it.
fn webhook(target: &str) -> Vec<u8> {
    let alert = alert(target, "ErrorRate");
    let body = json!({
        "version": "4", "groupKey": "{}:{}", "truncatedAlerts": 0, "status": "firing", "receiver": "rollback",
        "groupLabels": {}, "commonLabels": {}, "commonAnnotations": {}, "externalURL": "http://alertmanager:9093",
        "alerts": [alert],
    });
    let body = body.to_string();
    let length = body.len();
    format!(
        "POST /alertmanager HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {TOKEN}\r\nContent-Type: application/json\r\n\
         Content-Length: {length}\r\n\r\n{body}"
    )
    .into_bytes()
}

fn alert(target: &str, rule: &str) -> Value {
    let now = SystemClock.now();
    json!({
        "status": "firing", "labels": {"alertname": rule, "target": target},
        "annotations": {"summary": "4.2 % of the requests failed"},
        "startsAt": now, "endsAt": "0001-01-01T00:00:00Z", "generatorURL": "", "fingerprint": format!("{rule} {target}"),
    })
}

/// One alert for all, seen by each when it asks next.
async fn asked(live: usize) -> Figures {
    static FIRES: AtomicBool = AtomicBool::new(false);
    static PORT: std::sync::OnceLock<u16> = std::sync::OnceLock::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    PORT.set(listener.local_addr().expect("it is bound").port()).expect("there is one Alertmanager");
    let began = SystemClock.now();
    let alerts = async move |RawQuery(query): RawQuery| {
        let heartbeat = query.unwrap_or_default().contains("Watchdog");
        let shown = |rule: &str, starts: Timestamp| {
            let mut alert = alert("any", rule);
            alert["status"] = json!({"state": "active", "silencedBy": [], "inhibitedBy": []});
            alert["startsAt"] = json!(starts);
            alert["updatedAt"] = json!(SystemClock.now());
            alert["endsAt"] = json!(SystemClock.now() + Duration::from_secs(240));
            alert["receivers"] = json!([{"name": "nobody"}]);
            alert
        };
        Json(match (heartbeat, FIRES.load(Ordering::Acquire)) {
            (true, _) => vec![shown("Watchdog", began)],
            (false, true) => vec![shown("ErrorRate", SystemClock.now())],
            (false, false) => vec![],
        })
    };
    tokio::spawn(axum::serve(listener, Router::new().route("/api/v2/alerts", get(alerts))).into_future());

    let mut fleet = Fleet::new(Memory::new()).beside(|target| {
        let url = format!("http://127.0.0.1:{}", PORT.get().expect("it listens"));
        let matcher = format!("target=\"{target}\"");
        let gate = Alertmanager::new("alerts", &url, [matcher.as_str()], ["alertname=\"Watchdog\""]);
        Arc::new(gate.expect("a gate")) as Arc<dyn HealthGate>
    });
    fleet.register(live);
    // Spread over the interval, so that they ask at different times.
    let interval = Duration::from_secs(10);
    for target in 0..live {
        fleet.start(target..target + 1).await;
        sleep(interval / live as u32).await;
    }
    fleet.judged(0..live).await;
    let begun = Instant::now();
    FIRES.store(true, Ordering::Release);
    let mut figures = Figures::default();
    for _ in 0..live {
        let (_, at) = fleet.entered().await;
        figures.push(at.saturating_duration_since(begun));
    }
    figures
}
