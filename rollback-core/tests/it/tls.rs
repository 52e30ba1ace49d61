//! TLS by every client of this crate: nobody vouches for the server's certificate, and it gets nothing from us; the caller
//! does, and it is answered. Mail, which is not HTTP, is in `mail`.

use rollback_core::{
    gate::{
        Alertmanager, HealthGate, Http, Prometheus, Standing, Verdict, Window,
        prometheus::{Bound, Server},
    },
    listener::{Listener, Slack, Tally, Webhook},
    web::reqwest,
};
use serde_json::json;

use crate::{
    http::{change, plan, window},
    prometheus::live,
    support::{
        alertmanager,
        events::{rolled_back, until},
        logs,
        prometheus::{self, client_that_trusts},
        raw::Raw,
        tls::Secure,
    },
};

/// What a gate says of a server that it does not trust.
#[track_caller]
fn is_refused(verdict: rollback_core::Result<Verdict>) {
    let said = match verdict {
        Ok(Verdict::Inconclusive(evidence)) => evidence.summary,
        Err(e) => e.chain(),
        Ok(verdict) => panic!("{verdict:?}"),
    };
    assert!(said.contains("no secure connection for us: invalid peer certificate"), "{said}");
}

#[tokio::test]
async fn the_http_gate() {
    let server = Raw::page("200 OK", "", "fine").await;
    let Some(secure) = Secure::before(&server.url("")).await else { return };
    let gate = Http::new("health", &secure.url("/")).unwrap();
    let verdict = gate.judge(&window()).await.unwrap();
    assert_eq!(verdict.evidence().facts["urls"][0]["trouble"], "tls");
    is_refused(Ok(verdict));
    assert_eq!(server.heard(), [""; 0]);
    let verdict = gate.client(client_that_trusts(&secure.authority)).judge(&window()).await.unwrap();
    assert_eq!(verdict.standing(), Standing::Healthy, "{verdict:?}");
}

#[tokio::test]
async fn the_prometheus_gate() {
    let Some(real) = prometheus::server().await else { return };
    let Some(secure) = Secure::before(real.url()).await else { return };
    let server = Server::new(&secure.url("")).unwrap();
    let gate = |server: &Server| Prometheus::new("one", server, "vector(1)", Bound::AtMost(1.0)).unwrap();
    is_refused(gate(&server).judge(&live("v2")).await);
    let trusted = gate(&server.client(client_that_trusts(&secure.authority)));
    let verdict = trusted.judge(&live("v2")).await.unwrap();
    assert_eq!(verdict.standing(), Standing::Healthy, "{verdict:?}");
    assert!(trusted.preflight(&change(), &plan()).await.unwrap().refused.is_empty());
}

#[tokio::test]
async fn the_alertmanager_gate() {
    let Some(real) = alertmanager::server().await else { return };
    let Some(secure) = Secure::before(real.url()).await else { return };
    real.post("alerts", &json!([{ "labels": { "alertname": "Watchdog", "beat": "secure" } }])).await;
    let gate = Alertmanager::new("alerts", &secure.url(""), ["target=\"secure\""], ["beat=\"secure\""]).unwrap();
    let window = Window { last: None, ..live("v2") };
    is_refused(gate.judge(&window).await);
    let verdict = gate.client(client_that_trusts(&secure.authority)).judge(&window).await.unwrap();
    // It answered: what it says of a rollout in this test's past is another test's business.
    assert!(verdict.evidence().facts.get("heartbeat").is_some(), "{verdict:?}");
}

/// Blocks, as channels do when they end; the server has threads of its own.
#[tokio::test(flavor = "multi_thread")]
async fn messages_to_webhooks_and_chats() {
    logs::with("");
    fn told(hook: impl Listener, tally: &Tally, event: &rollback_core::listener::RolloutEvent) -> (u64, u64) {
        hook.on(event);
        // Well before the tries that other troubles get.
        until("the message has an end", || tally.delivered() + tally.given_up() == 1);
        drop(hook);
        (tally.delivered(), tally.given_up())
    }
    let server = Raw::page("200 OK", "", "").await;
    let Some(secure) = Secure::before(&server.url("")).await else { return };
    let event = std::thread::spawn(|| rolled_back("secure").remove(0)).join().unwrap();
    let trusting: reqwest::Client = client_that_trusts(&secure.authority);
    let webhook = || Webhook::new(secure.url("/hook")).unwrap();
    let slack = || Slack::new(secure.url("/hook")).unwrap();

    let (hook, chat) = (webhook(), slack());
    let tallies = (hook.tally(), chat.tally());
    assert_eq!(told(hook, &tallies.0, &event), (0, 1), "what is not trusted is not told");
    assert_eq!(told(chat, &tallies.1, &event), (0, 1), "what is not trusted is not told");
    assert_eq!(server.heard(), [""; 0]);
    let lines = logs::with(&format!("rollout={}", event.rollout.id()));
    let of_it = |line: &&String| line.contains("a message was given up") && line.contains("invalid peer certificate");
    assert_eq!(lines.iter().filter(of_it).count(), 2, "{lines:#?}");
    assert!(!lines.iter().any(|line| line.contains("tried again")), "{lines:#?}");

    let (hook, chat) = (webhook().client(trusting.clone()), slack().client(trusting));
    let tallies = (hook.tally(), chat.tally());
    assert_eq!(told(hook, &tallies.0, &event), (1, 0));
    assert_eq!(told(chat, &tallies.1, &event), (1, 0));
    assert!(server.heard().iter().all(|posted| posted.starts_with("POST /hook ")), "{:?}", server.heard());
}
