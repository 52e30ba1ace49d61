//! The gate that asks URLs, against servers of bytes, good and bad.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use jiff::Timestamp;
use rollback_core::{
    gate::{
        Evidence, HealthGate, Http, Standing, Verdict, Window,
        http::{Is, Unreachable},
    },
    model::{Change, Revision, RevisionId, RolloutId, TargetId, Weight},
    plan::Plan,
    web::{Auth, Sign, reqwest},
};
use tokio::io::AsyncWriteExt as _;

use super::support::raw::{Raw, nobody, page};

#[tokio::test]
async fn a_good_answer_is_healthy_and_tells_what_it_was() {
    let server = Raw::page("200 OK", "", "fine").await;
    let verdict = judge(&Http::new("health", &server.url("/health?token=hidden")).unwrap()).await;
    assert_eq!(verdict.standing(), Standing::Healthy);
    let evidence = verdict.evidence();
    assert_eq!(evidence.until, window().now);
    assert_eq!(evidence.facts["urls"][0]["status"], 200);
    assert_eq!(evidence.facts["urls"][0]["url"], server.url("/health"), "the query of an address may be a secret");
    assert!(server.heard()[0].starts_with("GET /health?token=hidden HTTP/1.1\r\n"));
    assert!(server.heard()[0].contains("user-agent: rollback-core/"));
}

#[tokio::test]
async fn what_went_wrong_is_told_apart() {
    let silent = Raw::new(|_, stream| async move {
        let _open = stream;
        std::future::pending::<()>().await;
    })
    .await;
    let cut = Raw::bytes("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf").await;
    let dead = Raw::bytes("").await;
    let strange = Raw::bytes("SSH-2.0-OpenSSH_9.2p1 Debian\r\n").await;
    let broken = Raw::page("500 Internal Server Error", "", "it broke").await;
    let plain = Raw::bytes("HTTP/1.1 400 Bad Request\r\n\r\n").await;
    let drip = Raw::drip().await;
    let closed = nobody().await;
    for (url, trouble, says, words) in [
        (closed.clone(), "refused", Standing::Unhealthy, "refuses connections"),
        (silent.url("/"), "timeout", Standing::Unhealthy, "gave no answer in 300ms"),
        (drip.url("/"), "timeout", Standing::Unhealthy, "began an answer and did not end it in 300ms"),
        (cut.url("/"), "cut", Standing::Unhealthy, "cut the connection"),
        (dead.url("/"), "cut", Standing::Unhealthy, "cut the connection"),
        (strange.url("/"), "garbled", Standing::Unhealthy, "does not speak HTTP"),
        (broken.url("/"), "status", Standing::Unhealthy, "answered 500; 200 to 299 is expected: \"it broke\""),
        (plain.url("/").replace("http:", "https:"), "tls", Standing::Inconclusive, "no secure connection"),
        ("http://nowhere.invalid/".into(), "dns", Standing::Inconclusive, "has no address"),
    ] {
        let gate = Http::new("health", &url).unwrap().timeout(Duration::from_millis(300));
        // A name takes its time to be looked up.
        let gate = if trouble == "dns" { gate.timeout(Duration::from_secs(20)) } else { gate };
        let verdict = judge(&gate).await;
        let evidence = verdict.evidence();
        assert_eq!(evidence.facts["urls"][0]["trouble"], trouble, "{url}: {}", evidence.summary);
        assert_eq!(verdict.standing(), says, "{url}: {}", evidence.summary);
        assert!(evidence.summary.contains(words), "{url}: {}", evidence.summary);
        let softer = judge(&gate.unreachable_is(Unreachable::NoData)).await.standing();
        let expected = if trouble == "status" { Standing::Unhealthy } else { Standing::Inconclusive };
        assert_eq!(softer, expected, "{url}");
    }
}

#[tokio::test]
async fn an_old_instance_that_still_serves_is_no_pass() {
    let old = Raw::page("200 OK", "X-Revision: v1\r\n", r#"{"rev":"v1"}"#).await;
    let new = Raw::page("200 OK", "X-Revision: v2\r\n", r#"{"rev":"v2"}"#).await;
    let other = Raw::page("200 OK", "X-Revision: v2 \r\nX-Revision: v7\r\n", "v7").await;
    let mute = Raw::page("200 OK", "", "hello, a long page that names nobody").await;
    let by_header =
        |server: &Raw| Http::new("health", &server.url("/")).unwrap().revision_in_header("x-revision").unwrap();
    let by_json = |server: &Raw| Http::new("health", &server.url("/")).unwrap().revision_in_json("/rev");
    let by_body = |server: &Raw| Http::new("health", &server.url("/")).unwrap().revision_in_body();
    for (gate, says, words) in [
        (by_header(&new), Standing::Healthy, "answered 200"),
        (by_json(&new), Standing::Healthy, "answered 200"),
        (by_header(&old), Standing::Inconclusive, "the baseline answered"),
        (by_json(&old), Standing::Inconclusive, "the baseline answered"),
        (by_body(&other), Standing::Inconclusive, "another revision answered"),
        (by_header(&mute), Standing::Inconclusive, "without the header x-revision"),
        (by_json(&mute), Standing::Inconclusive, "without a text at \"/rev\""),
        (by_body(&mute), Standing::Inconclusive, "another revision answered"),
    ] {
        let verdict = judge(&gate).await;
        assert_eq!(verdict.standing(), says, "{}", verdict.evidence().summary);
        assert!(verdict.evidence().summary.contains(words), "{}", verdict.evidence().summary);
    }
}

#[tokio::test]
async fn what_the_baseline_does_badly_is_not_held_against_the_candidate() {
    let old = Raw::page("500 Internal Server Error", "X-Revision: v1\r\n", "").await;
    let new = Raw::page("500 Internal Server Error", "X-Revision: v2\r\n", "").await;
    let front = Raw::page("502 Bad Gateway", "", "").await;
    let gate = |server: &Raw| Http::new("health", &server.url("/")).unwrap().revision_in_header("x-revision").unwrap();
    assert_eq!(judge(&gate(&old)).await.standing(), Standing::Inconclusive);
    assert_eq!(judge(&gate(&new)).await.standing(), Standing::Unhealthy);
    // Nobody stands behind the front: as if nobody answered.
    assert_eq!(judge(&gate(&front)).await.standing(), Standing::Unhealthy);
    let soft = gate(&front).unreachable_is(Unreachable::NoData);
    assert_eq!(judge(&soft).await.standing(), Standing::Inconclusive);
}

#[tokio::test]
async fn it_asks_again_until_the_candidate_answers() {
    let asked = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&asked);
    let both = Raw::new(move |_, mut stream| {
        let revision = if count.fetch_add(1, Ordering::SeqCst) == 2 { "v2" } else { "v1" };
        async move { drop(stream.write_all(page("200 OK", "", revision).as_bytes()).await) }
    })
    .await;
    let gate = Http::new("health", &both.url("/")).unwrap().revision_in_body();
    assert_eq!(judge(&gate.clone().tries(2)).await.standing(), Standing::Inconclusive);
    assert_eq!(judge(&gate.tries(5)).await.standing(), Standing::Healthy);
    assert_eq!(asked.load(Ordering::SeqCst), 3, "it stops at the candidate's answer");
}

#[tokio::test]
async fn so_many_of_the_urls_must_be_healthy() {
    let good = Raw::page("200 OK", "", "").await;
    let bad = Raw::page("503 Service Unavailable", "", "").await;
    let all =
        Http::new("health", &good.url("/a")).unwrap().also(&good.url("/b")).unwrap().also(&bad.url("/c")).unwrap();
    assert_eq!(judge(&all).await.standing(), Standing::Unhealthy);
    let two = judge(&all.clone().at_least(2).unwrap()).await;
    assert_eq!((two.standing(), two.evidence().summary.as_str()), (Standing::Healthy, "2 of 3 URLs healthy; 2 needed"));
    let blind = Http::new("health", &good.url("/")).unwrap().also("http://nowhere.invalid/").unwrap();
    assert_eq!(judge(&blind).await.standing(), Standing::Inconclusive);
    assert!(all.at_least(4).is_err());
}

#[tokio::test]
async fn a_hanging_url_does_not_hold_up_a_breach() {
    let bad = Raw::page("500 Oops", "", "").await;
    let silent = Raw::new(|_, stream| async move {
        let _open = stream;
        std::future::pending::<()>().await;
    })
    .await;
    let gate = Http::new("health", &silent.url("/")).unwrap().also(&bad.url("/")).unwrap();
    let gate = gate.timeout(Duration::from_secs(3600));
    let judged = tokio::time::timeout(Duration::from_secs(30), judge(&gate));
    assert_eq!(judged.await.expect("it does not wait for the other").standing(), Standing::Unhealthy);
}

#[tokio::test]
async fn the_body_is_compared_by_text_and_by_value() {
    let server = Raw::page("200 OK", "", r#"{"status":"ok","queue":12.0,"deep":[{"a/b":null}]}"#).await;
    let gate = || Http::new("health", &server.url("/")).unwrap();
    for (gate, says, words) in [
        (gate().expect_body("\"ok\""), Standing::Healthy, ""),
        (gate().expect_body("\"OK\""), Standing::Unhealthy, "a body without"),
        (gate().expect_json("/status", Is::Equal("ok".into())), Standing::Healthy, ""),
        (gate().expect_json("/status", Is::NotEqual("ok".into())), Standing::Unhealthy, "anything but \"ok\""),
        (gate().expect_json("/queue", Is::Equal(12.into())), Standing::Healthy, ""),
        (
            gate().expect_json("/queue", Is::AtMost(11.9)),
            Standing::Unhealthy,
            "12.0 at \"/queue\"; a number of at most 11.9",
        ),
        (gate().expect_json("/queue", Is::AtLeast(12.0)), Standing::Healthy, ""),
        (gate().expect_json("/status", Is::AtLeast(0.0)), Standing::Unhealthy, "a number of at least 0"),
        (gate().expect_json("/deep/0/a~1b", Is::Equal(serde_json::Value::Null)), Standing::Healthy, ""),
        (gate().expect_json("/none", Is::NotEqual(1.into())), Standing::Unhealthy, "nothing at \"/none\""),
        (gate().expect_status([204]), Standing::Unhealthy, "204 is expected"),
        (gate().within(Duration::ZERO), Standing::Unhealthy, "at most 0 ms are accepted"),
        (gate().within(Duration::from_secs(4)), Standing::Healthy, ""),
    ] {
        let verdict = judge(&gate).await;
        assert_eq!(verdict.standing(), says, "{}", verdict.evidence().summary);
        assert!(verdict.evidence().summary.contains(words), "{}", verdict.evidence().summary);
    }
}

#[tokio::test]
async fn a_page_where_json_was_expected_is_no_pass() {
    let html = Raw::page("200 OK", "", "<html><title>Sign in</title></html>").await;
    let huge = Raw::page("200 OK", "", &format!("{{\"status\":\"ok\",\"x\":\"{}\"}}", "x".repeat(10_000_000))).await;
    for server in [html, huge] {
        let gate = Http::new("health", &server.url("/")).unwrap().expect_json("/status", Is::Equal("ok".into()));
        let verdict = judge(&gate).await;
        assert_eq!(verdict.standing(), Standing::Unhealthy);
        assert!(verdict.evidence().summary.len() < 400, "{}", verdict.evidence().summary);
    }
}

#[tokio::test]
async fn a_request_is_sent_as_it_was_described() {
    let server = Raw::page("201 Created", "", "").await;
    let gate = Http::new("health", &server.url("/orders"))
        .unwrap()
        .method(reqwest::Method::POST)
        .header("Content-Type", "application/json")
        .unwrap()
        .body(r#"{"dry":true}"#)
        .auth(Auth::basic("probe", "s3cr3t").unwrap());
    assert_eq!(judge(&gate).await.standing(), Standing::Healthy);
    let heard = &server.heard()[0];
    assert!(heard.starts_with("POST /orders HTTP/1.1\r\n") && heard.ends_with("\r\n\r\n{\"dry\":true}"), "{heard}");
    assert!(heard.contains("content-type: application/json\r\n"), "{heard}");
    assert!(heard.contains("authorization: Basic cHJvYmU6czNjcjN0\r\n"), "{heard}");
    let found = gate.preflight(&change(), &plan()).await.unwrap();
    assert!(found.not_provable[0].as_str().contains("POST may have effects"), "{found:?}");
    assert_eq!(server.heard().len(), 1, "preflight has no effects");
}

#[tokio::test]
async fn redirects_are_not_followed_unless_asked_and_never_elsewhere() {
    let elsewhere = Raw::page("200 OK", "", "").await;
    let away = Raw::page("302 Found", &format!("Location: {}\r\n", elsewhere.url("/")), "").await;
    let within = Raw::new(|request, mut stream| async move {
        let answer = match request.split(' ').nth(1) {
            Some("/1") => page("302 Found", "Location: /2\r\n", ""),
            Some("/2") => page("302 Found", "Location: /3\r\n", ""),
            _ => page("200 OK", "", ""),
        };
        drop(stream.write_all(answer.as_bytes()).await);
    })
    .await;
    let gate = |url: String| Http::new("health", &url).unwrap().auth(Auth::header("X-Api-Key", "s3cr3t").unwrap());
    assert_eq!(judge(&gate(within.url("/1"))).await.standing(), Standing::Unhealthy);
    assert_eq!(judge(&gate(within.url("/1")).follow_redirects(1).unwrap()).await.standing(), Standing::Unhealthy);
    assert_eq!(judge(&gate(within.url("/1")).follow_redirects(2).unwrap()).await.standing(), Standing::Healthy);
    assert_eq!(judge(&gate(away.url("/")).follow_redirects(5).unwrap()).await.standing(), Standing::Unhealthy);
    assert_eq!(elsewhere.heard(), [""; 0], "a key was sent to another server");
}

#[tokio::test]
async fn credentials_are_in_no_verdict_even_if_the_server_says_them_back() {
    let echo = Raw::new(|request, mut stream| async move {
        drop(stream.write_all(page("500 Oops", &format!("X-Revision: {SECRET}\r\n"), &request).as_bytes()).await);
    })
    .await;
    for auth in [
        Auth::bearer(SECRET).unwrap(),
        Auth::basic("probe", SECRET).unwrap(),
        Auth::header("X-Api-Key", SECRET).unwrap(),
        Auth::signed(Token),
    ] {
        for proof in [false, true] {
            let gate = Http::new("health", &echo.url("/")).unwrap().auth(auth.clone());
            let gate = if proof { gate.revision_in_header("x-revision").unwrap() } else { gate };
            let verdict = judge(&gate).await;
            let text = format!("{gate:?} {auth:?} {verdict:?} {}", serde_json::to_string(verdict.evidence()).unwrap());
            assert!(!text.contains(SECRET) && !text.contains("cHJvYmU6"), "{text}");
            assert_ne!(verdict.standing(), Standing::Healthy);
        }
    }
    assert!(echo.heard().iter().all(|request| request.contains(SECRET) || request.contains("authorization: Basic")));
}

#[tokio::test]
async fn half_a_secret_at_the_end_of_what_is_read_is_not_shown() {
    let filled = format!("{}{SECRET}", " ".repeat(1024 * 1024 - SECRET.len() + 1));
    let server = Raw::page("500 Oops", "", &filled).await;
    let gate = Http::new("health", &server.url("/")).unwrap().auth(Auth::bearer(SECRET).unwrap());
    let verdict = judge(&gate).await;
    assert_eq!(verdict.standing(), Standing::Unhealthy);
    assert!(!verdict.evidence().summary.contains("s3cr"), "{}", verdict.evidence().summary);
}

#[tokio::test]
async fn a_request_that_cannot_be_signed_is_not_sent() {
    let server = Raw::page("200 OK", "", "").await;
    let verdict = judge(&Http::new("health", &server.url("/")).unwrap().auth(Auth::signed(Broken))).await;
    assert_eq!(verdict.standing(), Standing::Inconclusive);
    assert!(verdict.evidence().summary.contains("signing the request: the token has expired"), "{verdict:?}");
    assert!(server.heard().is_empty());
}

#[tokio::test]
async fn preflight_says_what_it_found_and_refuses_nothing() {
    let good = Raw::page("200 OK", "X-Revision: v1\r\n", "").await;
    let closed = nobody().await;
    let gate = Http::new("health", &good.url("/")).unwrap().also(&closed).unwrap();
    let found = gate.preflight(&change(), &plan()).await.unwrap();
    assert!(found.proved[0].as_str().contains("answers 200"), "{found:?}");
    assert!(found.not_provable[0].as_str().contains("refuses connections"), "{found:?}");
    assert!(found.refused.is_empty());
    let gate = Http::new("health", &good.url("/")).unwrap().revision_in_header("x-version").unwrap();
    let found = gate.preflight(&change(), &plan()).await.unwrap();
    assert!(found.not_provable[0].as_str().contains("it will never be seen healthy"), "{found:?}");
}

#[test]
fn addresses_that_hold_a_password_are_refused_without_it() {
    let error = Http::new("health", "https://ana:s3cr3t@example.org/").unwrap_err().chain();
    assert!(error.contains("Auth::basic") && !error.contains("s3cr3t"), "{error}");
    for url in ["ftp://example.org/", "example.org", "", "http://"] {
        assert!(Http::new("health", url).is_err(), "{url}");
    }
}

pub(crate) const SECRET: &str = "s3cr3t-t0k3n";

#[derive(Debug)]
pub(crate) struct Token;

#[async_trait::async_trait]
impl Sign for Token {
    async fn sign(&self, request: &mut reqwest::Request) -> rollback_core::Result<()> {
        assert!(request.url().as_str().starts_with("http"));
        request.headers_mut().insert("authorization", format!("Signed {SECRET}").parse().unwrap());
        Ok(())
    }
}

#[derive(Debug)]
struct Broken;

#[async_trait::async_trait]
impl Sign for Broken {
    async fn sign(&self, _: &mut reqwest::Request) -> rollback_core::Result<()> {
        Err(rollback_core::Error::new(rollback_core::ErrorKind::Denied, "the token has expired"))
    }
}

async fn judge(gate: &Http) -> Verdict {
    gate.judge(&window()).await.expect("what is wrong is in the verdict")
}

/// Of a rollout from v1 to v2 of checkout, whose step began a minute ago.
pub(crate) fn window() -> Window {
    let now: Timestamp = "2026-01-05T12:00:00Z".parse().unwrap();
    Window {
        rollout: RolloutId::try_from("checkout-1").unwrap(),
        target: TargetId::try_from("checkout").unwrap(),
        baseline: RevisionId::try_from("v1").unwrap(),
        candidate: RevisionId::try_from("v2").unwrap(),
        created: now - Duration::from_secs(90),
        step: 0,
        weight: Weight::try_from(10).unwrap(),
        since: now - Duration::from_secs(60),
        now,
        last: Some(Evidence::new(now - Duration::from_secs(30), "before").remember(7.into())),
    }
}

pub(crate) fn change() -> Change {
    Change {
        rollout: RolloutId::try_from("checkout-1").unwrap(),
        target: TargetId::try_from("checkout").unwrap(),
        baseline: Revision::new("v1").unwrap(),
        candidate: Revision::new("v2").unwrap(),
    }
}

pub(crate) fn plan() -> Plan {
    Plan::canary([10, 100], Duration::from_secs(120)).unwrap()
}
