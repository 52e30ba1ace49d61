//! The gate that asks a Prometheus: against servers of bytes that say anything, and against a real one.

use std::time::Duration;

use jiff::Timestamp;
use rollback_core::{
    ErrorKind,
    clock::{Clock as _, SystemClock},
    gate::{
        HealthGate, Prometheus, Standing, Verdict, Window,
        prometheus::{Bound, Matcher, Over, Selector, Server},
    },
    model::{Change, Revision, RevisionId},
    plan::Plan,
    web::Auth,
};
use tokio::io::AsyncWriteExt as _;

use super::{
    http::{SECRET, Token, change, plan, window},
    support::{
        prometheus::{gone, saying, server},
        raw::{Raw, page},
    },
};

#[tokio::test]
async fn whatever_a_server_says_wrongly_is_no_data_with_a_reason() {
    let at = window().now.as_second();
    let vector = |value: &str| {
        format!(
            r#"{{"status":"success","data":{{"resultType":"vector","result":[{{"metric":{{}},"value":[{at},{value}]}}]}}}}"#
        )
    };
    let huge = format!(r#"{{"status":"success","data":"{}"}}"#, "x".repeat(10_000_000));
    for (answer, why) in [
        (page("200 OK", "", ""), "not JSON"),
        (page("200 OK", "", "{\"status\":\"succ"), "not JSON"),
        (
            page("200 OK", "", "<html><h1>Sign in</h1></html>"),
            "not JSON (line 1, column 1): \"<html><h1>Sign in</h1></html>\"",
        ),
        (page("200 OK", "", "[]"), "unexpected shape"),
        (page("200 OK", "", "7"), "unexpected shape"),
        (page("200 OK", "", r#"{"status":"success"}"#), "without success"),
        (page("200 OK", "", r#"{"status":"success","data":null}"#), "without success"),
        (page("200 OK", "", r#"{"status":"error","data":{"resultType":"vector","result":[]}}"#), "without success"),
        (page("200 OK", "", r#"{"status":"success","data":{"resultType":"vector","result":7}}"#), "unexpected shape"),
        (page("200 OK", "", r#"{"status":"success","data":{"resultType":"tensor","result":[]}}"#), "unexpected shape"),
        (page("200 OK", "", r#"{"status":"success","data":{"resultType":"vector","result":[]}}"#), "finds nothing"),
        (page("200 OK", "", r#"{"status":"success","data":{"resultType":"string","result":[1,"0"]}}"#), "gives a text"),
        (page("200 OK", "", r#"{"status":"success","data":{"resultType":"matrix","result":[]}}"#), "gives a range"),
        (
            page(
                "200 OK",
                "",
                r#"{"status":"success","data":{"resultType":"vector","result":[{"metric":{},"histogram":[1,{}]}]}}"#,
            ),
            "native histogram",
        ),
        (page("200 OK", "", &vector("0")), "unexpected shape"),
        (page("200 OK", "", &vector("\"zero\"")), "is no number: \"zero\""),
        (page("200 OK", "", &vector("\"NaN\"")), "is NaN"),
        (page("200 OK", "", &vector("\"+Inf\"")), "is +Inf"),
        (page("200 OK", "", &vector("\"-Inf\"")), "is -Inf"),
        (page("200 OK", "", &vector("\"0\"").replace(&at.to_string(), "1e300")), "time is none"),
        (page("200 OK", "", &vector("\"0\"").replace(&at.to_string(), "1700000000")), "off our clock"),
        (
            page("200 OK", "", &vector("\"0\"").replace("\"data\"", "\"warnings\":[\"store a is away\"],\"data\"")),
            "the server warns: store a is away",
        ),
        (
            page("400 Bad Request", "", r#"{"status":"error","errorType":"bad_data","error":"1:4: parse error"}"#),
            "answered 400 (bad_data): 1:4: parse error",
        ),
        (
            page(
                "422 Unprocessable Entity",
                "",
                r#"{"status":"error","errorType":"execution","error":"many-to-many"}"#,
            ),
            "many-to-many",
        ),
        (page("401 Unauthorized", "", "who are you"), "answered 401: \"who are you\""),
        (page("503 Service Unavailable", "", "<html>later</html>"), "answered 503"),
        (page("302 Found", "Location: /login\r\n", ""), "answered 302"),
        (page("200 OK", "", &huge), "more than 4096 KiB"),
        ("nonsense\r\n\r\n".into(), "does not speak HTTP"),
        (String::new(), "cut the connection"),
    ] {
        let raw = Raw::bytes(answer.clone()).await;
        let verdict = judge(&gate(&Server::new(&raw.url("")).unwrap()), &window()).await;
        let evidence = verdict.evidence();
        let shown: String = answer.chars().take(300).collect();
        assert_eq!(verdict.standing(), Standing::Inconclusive, "{shown}");
        assert!(evidence.summary.contains(why), "{shown}: {}", evidence.summary);
        assert_eq!((evidence.until, &evidence.memory), (window().now - Duration::from_secs(30), &Some(7.into())));
        assert_eq!(evidence.facts["query"], QUERY);
        assert!(evidence.summary.len() < 700, "{}", evidence.summary);
    }
    // The same answer, without anything wrong, passes: the reasons above are the reasons.
    let raw = Raw::bytes(page("200 OK", "", &vector("\"0\""))).await;
    assert_eq!(judge(&gate(&Server::new(&raw.url("")).unwrap()), &window()).await.standing(), Standing::Healthy);
}

#[tokio::test]
async fn a_server_that_does_not_answer_is_no_data() {
    let silent = Raw::new(|_, stream| async move {
        let _open = stream;
        std::future::pending::<()>().await;
    })
    .await;
    let drip = Raw::drip().await;
    for (url, why) in [
        (gone().await, "refuses connections"),
        (silent.url(""), "gave no answer in 200ms"),
        (drip.url(""), "did not end it in 200ms"),
    ] {
        let server = Server::new(&url).unwrap().timeout(Duration::from_millis(200));
        let verdict = judge(&gate(&server), &window()).await;
        assert_eq!(verdict.standing(), Standing::Inconclusive);
        assert!(verdict.evidence().summary.contains(why), "{}", verdict.evidence().summary);
        let refused = gate(&server).preflight(&change(), &plan()).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Unavailable, "preflight asks again until its deadline");
    }
}

#[tokio::test]
async fn a_server_that_asks_for_time_is_given_it() {
    for body in ["slow down", r#"{"status":"error","errorType":"too_many_requests","error":"slow down"}"#] {
        let raw = Raw::page("429 Too Many Requests", "Retry-After: 7\r\n", body).await;
        let error = gate(&Server::new(&raw.url("")).unwrap()).preflight(&change(), &plan()).await.unwrap_err();
        assert_eq!(
            (error.kind(), error.retry_after()),
            (ErrorKind::Throttled, Some(Duration::from_secs(7))),
            "{error}"
        );
    }
}

#[tokio::test]
async fn credentials_are_in_no_verdict_even_if_the_server_says_them_back() {
    let echo = |status: &'static str, json: bool| {
        Raw::new(move |request, mut stream| async move {
            let said = serde_json::json!({ "status": "error", "errorType": "bad_data", "error": request });
            let body = if json { said.to_string() } else { request };
            drop(stream.write_all(page(status, "", &body).as_bytes()).await);
        })
    };
    for server in [echo("400 Bad Request", true).await, echo("500 Oops", false).await, echo("200 OK", false).await] {
        for auth in [
            Auth::bearer(SECRET).unwrap(),
            Auth::basic("probe", SECRET).unwrap(),
            Auth::header("X-Api-Key", SECRET).unwrap(),
            Auth::signed(Token),
        ] {
            let gate = gate(&Server::new(&server.url("")).unwrap().auth(auth));
            let verdict = judge(&gate, &window()).await;
            let found = gate.preflight(&change(), &plan()).await;
            let text = format!("{gate:?} {verdict:?} {found:?}");
            assert!(!text.contains(SECRET) && !text.contains("cHJvYmU6"), "{text}");
            assert_eq!(verdict.standing(), Standing::Inconclusive);
        }
        assert!(server.heard().iter().all(|heard| heard.contains(SECRET) || heard.contains("uthorization: Basic")));
    }
}

#[tokio::test]
async fn it_asks_by_post_unless_told_otherwise() {
    let raw = saying(r#"{"status":"success","data":{"resultType":"vector","result":[]}}"#).await;
    let server = Server::new(&raw.url("/prom/")).unwrap().header("X-Scope-OrgID", "shop").unwrap();
    judge(&gate(&server), &window()).await;
    judge(&gate(&server.by_get()), &window()).await;
    let heard = raw.heard();
    assert!(heard[0].starts_with("POST /prom/api/v1/query HTTP/1.1\r\n") && heard[0].contains("x-scope-orgid: shop"));
    assert!(heard[0].contains("\r\n\r\nquery=errors%7Bversion%3D%22v2%22%7D&timeout=5.000"), "{}", heard[0]);
    assert!(heard[1].starts_with("GET /prom/api/v1/query?query=errors%7Bversion%3D%22v2%22%7D&timeout=5.000 HTTP/1.1"));
}

#[tokio::test]
async fn a_number_is_judged_by_its_bound() {
    let Some(real) = server().await else { return };
    let server = Server::new(real.url()).unwrap();
    for (number, bound, says) in [
        ("1", Bound::AtMost(1.0), Standing::Healthy),
        ("1.01", Bound::AtMost(1.0), Standing::Unhealthy),
        ("1", Bound::Below(1.0), Standing::Unhealthy),
        ("1", Bound::AtLeast(1.0), Standing::Healthy),
        ("0.5", Bound::AtLeast(1.0), Standing::Unhealthy),
        ("1", Bound::Above(1.0), Standing::Unhealthy),
        ("0/0", Bound::AtMost(1.0), Standing::Inconclusive),
        ("-1/0", Bound::AtMost(1.0), Standing::Inconclusive),
        ("absent(vector(1))", Bound::AtMost(1.0), Standing::Inconclusive),
        ("vector(1", Bound::AtMost(1.0), Standing::Inconclusive),
    ] {
        let gate = Prometheus::new("number", &server, number, bound).unwrap();
        let verdict = judge(&gate, &live("x")).await;
        assert_eq!(verdict.standing(), says, "{number} {bound:?}: {}", verdict.evidence().summary);
    }
    let verdict = judge(&Prometheus::new("n", &server, "2", Bound::AtMost(1.0)).unwrap(), &live("x")).await;
    assert_eq!(verdict.evidence().summary, "2 (at most 1 is accepted)");
    assert_eq!(verdict.evidence().facts["trips"], "more than 1");
    assert_eq!(verdict.evidence().facts["values"], serde_json::json!([{ "value": 2.0 }]));
}

#[tokio::test]
async fn a_ratio_is_the_candidates_own_and_reaches_as_far_as_its_samples() {
    let Some(real) = server().await else { return };
    let (now, metric) = (now(), fresh_name("ratio"));
    let rising = |each: f64| -> Vec<(f64, f64)> {
        (0..=12).map(|n| (now - 63.0 + 5.0 * f64::from(n), 1000.0 + each * f64::from(n))).collect()
    };
    real.push(&[
        (&format!("{metric}{{version=\"v1\",code=\"200\"}}"), rising(1000.0)),
        (&format!("{metric}{{version=\"v2\",code=\"200\"}}"), rising(95.0)),
        (&format!("{metric}{{version=\"v2\",code=\"500\"}}"), rising(5.0)),
        (&format!("{metric}{{version=\"v3\",code=\"200\"}}"), rising(100.0)),
        (&format!("{metric}{{version=\"v4\",code=\"200\"}}"), rising(0.5)),
    ])
    .await;
    let server = Server::new(real.url()).unwrap();
    let requests = Selector::new(metric.as_str()).unwrap().revision("version").unwrap();
    let failed = Matcher::matches("code", "5..").unwrap();
    let gate = Prometheus::error_ratio("errors", &server, &requests, failed, 0.01).unwrap();

    let verdict = judge(&gate, &live("v2")).await;
    let evidence = verdict.evidence();
    assert_eq!(verdict.standing(), Standing::Unhealthy, "{}", evidence.summary);
    assert_eq!(evidence.summary, "0.05 (at most 0.01 is accepted)", "not diluted by the baseline's");
    let behind = live("v2").now.duration_since(evidence.until).as_secs_f64();
    assert!((3.0..30.0).contains(&behind), "the newest sample is some 3 s old, not {behind} s");
    assert!(evidence.facts["query"].as_str().unwrap().contains("version=\"v2\""));

    // A revision without a series of failures had none.
    let verdict = judge(&gate, &live("v3")).await;
    assert_eq!(
        (verdict.standing(), verdict.evidence().summary.as_str()),
        (Standing::Healthy, "0 (at most 0.01 is accepted)")
    );
    // Six requests say nothing, and a revision that nobody scraped even less.
    let verdict = judge(&gate, &live("v4")).await;
    assert_eq!(verdict.standing(), Standing::Inconclusive);
    assert!(verdict.evidence().summary.contains("requests; 100 are needed"), "{}", verdict.evidence().summary);
    let verdict = judge(&gate, &live("v5")).await;
    assert_eq!(verdict.standing(), Standing::Inconclusive);
    assert!(verdict.evidence().summary.contains("no sample is there"), "{}", verdict.evidence().summary);
    // Old samples are no data, however good they look.
    let verdict = judge(&gate.clone().max_age(Duration::from_secs(1)), &live("v3")).await;
    assert_eq!(verdict.standing(), Standing::Inconclusive);
    assert!(verdict.evidence().summary.contains("at most 1 s are accepted"), "{}", verdict.evidence().summary);
}

#[tokio::test]
async fn a_dead_application_has_no_errors_and_is_no_pass() {
    let Some(real) = server().await else { return };
    let (now, metric) = (now(), fresh_name("dead"));
    let stale = f64::from_bits(0x7ff0_0000_0000_0002);
    let mut samples: Vec<(f64, f64)> =
        (0..=9).map(|n| (now - 50.0 + 5.0 * f64::from(n), 100.0 * f64::from(n))).collect();
    // What Prometheus writes when a target is gone.
    samples.push((now - 1.0, stale));
    real.push(&[(&format!("{metric}{{version=\"v2\",code=\"200\"}}"), samples)]).await;
    let server = Server::new(real.url()).unwrap();
    let rate = format!("sum(rate({metric}{{version=\"v2\"}}[1m])) * 0");
    let naive = judge(&Prometheus::new("naive", &server, &rate, Bound::AtMost(0.01)).unwrap(), &live("v2")).await;
    assert_eq!(naive.standing(), Standing::Healthy, "which is what this is about");
    let requests = Selector::new(metric.as_str()).unwrap().revision("version").unwrap();
    let failed = Matcher::is("code", "500").unwrap();
    let gate = Prometheus::error_ratio("errors", &server, &requests, failed, 0.01).unwrap();
    let verdict = judge(&gate, &live("v2")).await;
    assert_eq!(verdict.standing(), Standing::Inconclusive, "{}", verdict.evidence().summary);
    assert!(verdict.evidence().summary.contains("no sample is there"), "{}", verdict.evidence().summary);
}

#[tokio::test]
async fn one_broken_route_is_not_averaged_away() {
    let Some(real) = server().await else { return };
    let (now, metric) = (now(), fresh_name("routes"));
    let rising = |each: f64| -> Vec<(f64, f64)> {
        (0..=12).map(|n| (now - 61.0 + 5.0 * f64::from(n), each * f64::from(n))).collect()
    };
    real.push(&[
        (&format!("{metric}{{version=\"v2\",code=\"200\",route=\"/list\"}}"), rising(10_000.0)),
        (&format!("{metric}{{version=\"v2\",code=\"200\",route=\"/pay\"}}"), rising(20.0)),
        (&format!("{metric}{{version=\"v2\",code=\"500\",route=\"/pay\"}}"), rising(20.0)),
        (&format!("{metric}{{version=\"v2\",code=\"500\",route=\"/rare\"}}"), rising(0.1)),
    ])
    .await;
    let server = Server::new(real.url()).unwrap();
    let whole = Selector::new(metric.as_str()).unwrap().revision("version").unwrap();
    let each = whole.clone().by("route").unwrap();
    let gate = |requests: &Selector| {
        Prometheus::error_ratio("errors", &server, requests, Matcher::is("code", "500").unwrap(), 0.01).unwrap()
    };
    assert_eq!(judge(&gate(&whole), &live("v2")).await.standing(), Standing::Healthy, "averaged away");
    let verdict = judge(&gate(&each), &live("v2")).await;
    assert_eq!(verdict.standing(), Standing::Unhealthy);
    assert_eq!(verdict.evidence().summary, "route=\"/pay\": 0.5 (at most 0.01 is accepted)");
    let facts = &verdict.evidence().facts["values"];
    assert_eq!(facts[0]["of"]["route"], "/pay", "the worst first");
    assert_eq!(facts[2]["passed_over"], true, "one request is not judged, and said");
    assert_eq!(judge(&gate(&each).any_series(), &live("v2")).await.standing(), Standing::Healthy);
    let good = gate(&whole.clone().with(Matcher::is_not("route", "/pay").unwrap()).by("route").unwrap());
    assert_eq!(judge(&good, &live("v2")).await.standing(), Standing::Healthy);
    let verdict = judge(&good.clone().expect_series("route", ["/list", "/rare"]), &live("v2")).await;
    assert_eq!(verdict.standing(), Standing::Inconclusive);
    assert_eq!(verdict.evidence().summary, "no data for route /rare");
}

#[tokio::test]
async fn a_quantile_of_latencies_is_judged_in_seconds() {
    let Some(real) = server().await else { return };
    let (now, metric) = (now(), fresh_name("latency"));
    let rising = |each: f64| -> Vec<(f64, f64)> {
        (0..=12).map(|n| (now - 61.0 + 5.0 * f64::from(n), each * f64::from(n))).collect()
    };
    real.push(&[
        (&format!("{metric}_bucket{{version=\"v2\",le=\"0.1\"}}"), rising(90.0)),
        (&format!("{metric}_bucket{{version=\"v2\",le=\"1\"}}"), rising(100.0)),
        (&format!("{metric}_bucket{{version=\"v2\",le=\"+Inf\"}}"), rising(100.0)),
        (&format!("{metric}_count{{version=\"v2\"}}"), rising(100.0)),
    ])
    .await;
    let server = Server::new(real.url()).unwrap();
    let histogram = Selector::new(metric.as_str()).unwrap().revision("version").unwrap();
    let gate = |ms| Prometheus::latency_quantile("slow", &server, &histogram, 0.95, Duration::from_millis(ms)).unwrap();
    let verdict = judge(&gate(500), &live("v2")).await;
    assert_eq!(
        (verdict.standing(), verdict.evidence().summary.as_str()),
        (Standing::Unhealthy, "0.55 (at most 0.5 is accepted)")
    );
    assert_eq!(judge(&gate(600), &live("v2")).await.standing(), Standing::Healthy);
    // No quantile is ever over the last bucket, so such a bound is no gate.
    assert!(gate(600).preflight(&of("v2"), &plan()).await.unwrap().refused.is_empty());
    let found = gate(1000).preflight(&of("v2"), &plan()).await.unwrap();
    assert!(found.refused[0].as_str().contains("the last finite bucket"), "{found:?}");
}

#[tokio::test]
async fn a_time_is_judged_by_its_worst_point_or_its_mean() {
    let Some(real) = server().await else { return };
    let (now, metric) = (now(), fresh_name("queue"));
    let points = |value: fn(f64) -> f64| -> Vec<(f64, f64)> {
        (0..=30).map(|n| (now - 60.0 + 2.0 * f64::from(n), value(f64::from(n)))).collect()
    };
    real.push(&[
        (&format!("{metric}{{version=\"v2\"}}"), points(|n| if n == 14.0 { 50.0 } else { 1.0 })),
        (&format!("{metric}{{version=\"v3\"}}"), points(|n| if n < 30.0 { f64::NAN } else { 1.0 })),
    ])
    .await;
    let server = Server::new(real.url()).unwrap();
    let gate = |over| {
        let query = format!("{metric}{{version=\"{{{{candidate}}}}\"}}");
        let gate = Prometheus::new("queue", &server, &query, Bound::AtMost(10.0)).unwrap().fresh(&query).unwrap();
        gate.over_the_bake(Duration::from_secs(1), over)
    };
    let verdict = judge(&gate(Over::Worst), &live("v2")).await;
    assert_eq!(
        (verdict.standing(), verdict.evidence().summary.as_str()),
        (Standing::Unhealthy, "version=\"v2\": 50 (at most 10 is accepted)")
    );
    let verdict = judge(&gate(Over::Mean), &live("v2")).await;
    assert_eq!(verdict.standing(), Standing::Healthy, "{}", verdict.evidence().summary);
    let verdict = judge(&gate(Over::Worst), &live("v3")).await;
    assert_eq!(
        (verdict.standing(), verdict.evidence().summary.as_str()),
        (Standing::Inconclusive, "version=\"v3\": is NaN in between")
    );
    // A step that began long before there was data: most of it is unknown.
    let long = Window { since: live("v2").now - Duration::from_secs(3600), ..live("v2") };
    let verdict = judge(&gate(Over::Mean), &long).await;
    assert_eq!(verdict.standing(), Standing::Inconclusive);
    assert!(verdict.evidence().summary.contains("of 3601 points"), "{}", verdict.evidence().summary);
}

#[tokio::test]
async fn life_is_asked_for_apart() {
    let Some(real) = server().await else { return };
    let server = Server::new(real.url()).unwrap();
    let gate = Prometheus::new("errors", &server, "0", Bound::AtMost(1.0)).unwrap();
    for (alive, says) in [
        ("vector(1)", Standing::Healthy),
        ("vector(0)", Standing::Inconclusive),
        ("vector(0/0)", Standing::Inconclusive),
        ("absent(vector(1))", Standing::Inconclusive),
        ("vector(1) or label_replace(vector(0), \"pod\", \"b\", \"\", \"\")", Standing::Inconclusive),
        ("nonsense(", Standing::Inconclusive),
    ] {
        let verdict = judge(&gate.clone().alive(alive).unwrap(), &live("v2")).await;
        assert_eq!(verdict.standing(), says, "{alive}: {}", verdict.evidence().summary);
    }
}

#[tokio::test]
async fn preflight_finds_what_would_never_work() {
    let Some(real) = server().await else { return };
    let (now, metric) = (now(), fresh_name("known"));
    real.push(&[(&format!("{metric}{{version=\"v1\"}}"), vec![(now - 5.0, 1.0)])]).await;
    let server = Server::new(real.url()).unwrap();
    let asked = |query: &str| Prometheus::new("g", &server, query, Bound::AtMost(1.0)).unwrap();
    let good = format!("{metric}{{version=\"{{{{candidate}}}}\"}}");
    let found = asked(&good).fresh(&good).unwrap().preflight(&of("v2"), &plan()).await.unwrap();
    assert!(found.refused.is_empty() && found.not_provable.is_empty(), "{found:?}");
    assert!(found.proved[0].as_str().ends_with("answers, and has data"), "{found:?}");

    for (query, why) in [
        ("rate(nothing_of_this_name_total[1m])", "knows no metric nothing_of_this_name_total"),
        ("sum(rate(", "parse error"),
        ("up[5m]", "gives a range"),
        ("\"text\"", "gives a text"),
        ("rate(up)", "expected type range vector"),
    ] {
        let found = asked(query).preflight(&of("v2"), &plan()).await.unwrap();
        assert!(found.refused.iter().any(|note| note.as_str().contains(why)), "{query}: {found:?}");
    }
    let new = asked("sum(nothing_of_this_name)").metrics_may_be_new().preflight(&of("v2"), &plan()).await.unwrap();
    assert!(new.refused.is_empty() && new.not_provable[0].as_str().contains("does not know"), "{new:?}");

    let wrong_label = format!("{metric}{{revision=\"{{{{candidate}}}}\"}}");
    let found = asked(&wrong_label).preflight(&of("v2"), &plan()).await.unwrap();
    assert!(found.not_provable[0].as_str().contains("finds nothing for v1 either"), "{found:?}");
    assert!(found.not_provable[1].as_str().contains("how old its samples are"), "{found:?}");

    let long = format!("max_over_time({good}[5m])",);
    let found = asked(&long).fresh(&good).unwrap().preflight(&of("v2"), &plan()).await.unwrap();
    assert!(found.not_provable[0].as_str().contains("looks back 300 s, over the shortest bake of 120 s"), "{found:?}");
    let short = asked(&long).fresh(&good).unwrap();
    let patient = Plan::canary([10, 100], Duration::from_secs(300)).unwrap();
    assert!(short.preflight(&of("v2"), &patient).await.unwrap().not_provable.is_empty());

    let page = Raw::page("200 OK", "", "<html>Sign in</html>").await;
    let elsewhere = Prometheus::new("g", &Server::new(&page.url("")).unwrap(), "1", Bound::AtMost(1.0)).unwrap();
    let found = elsewhere.preflight(&of("v2"), &plan()).await.unwrap();
    assert!(found.refused[0].as_str().contains("not JSON"), "{found:?}");
}

#[tokio::test]
async fn a_revisions_name_reaches_the_server_as_it_is() {
    let Some(real) = server().await else { return };
    let metric = fresh_name("named");
    real.push(&[(&format!("{metric}{{version=\"a|b.*\"}}"), vec![(now() - 1.0, 1.0)])]).await;
    let server = Server::new(real.url()).unwrap();
    for odd in [r#"a|b.*"#, r#"x"} or vector(0) #"#, r"c:\new", "it's `so`", "{{target}}", "žluť"] {
        for query in ["{version=\"{{candidate}}\"}", "{version='{{candidate}}'}", "{version=~\"{{candidate.regex}}\"}"]
        {
            let gate = Prometheus::new("g", &server, &format!("{metric}{query}"), Bound::AtMost(1.0)).unwrap();
            let verdict = judge(&gate, &live(odd)).await;
            let expected = if odd == "a|b.*" { Standing::Healthy } else { Standing::Inconclusive };
            assert_eq!(verdict.standing(), expected, "{odd} in {query}: {}", verdict.evidence().summary);
            assert!(
                odd == "a|b.*" || verdict.evidence().summary == "the query finds nothing",
                "{:?}",
                verdict.evidence()
            );
        }
    }
}

#[test]
fn settings_that_cannot_work_are_refused() {
    let server = Server::new("http://127.0.0.1:9090").unwrap();
    let requests = Selector::new("requests_total").unwrap();
    let failed = || Matcher::is("code", "500").unwrap();
    let error = Prometheus::error_ratio("e", &server, &requests, failed(), 0.01).unwrap_err();
    assert!(error.to_string().contains("does not tell the candidate from the baseline"), "{error}");
    let requests = requests.revision("version").unwrap();
    assert!(Prometheus::error_ratio("e", &server, &requests, failed(), 1.0).is_err());
    assert!(Prometheus::error_ratio("e", &server, &requests, failed(), f64::NAN).is_err());
    assert!(Prometheus::latency_quantile("l", &server, &requests, 1.0, Duration::from_secs(1)).is_err());
    assert!(Prometheus::new("e", &server, "up", Bound::AtMost(f64::INFINITY)).is_err());
    assert!(Prometheus::new("e", &server, "up{v=\"{{revison}}\"}", Bound::AtMost(1.0)).is_err());
    let gate = Prometheus::new("e", &server, "up", Bound::AtMost(1.0)).unwrap();
    assert!(gate.clone().fresh("sum(up)").is_err() && gate.clone().fresh("up{a=\"b\"} or x{a=\"b\"}").is_err());
    assert!(gate.at_least_requests(5).is_err());
    assert!(Selector::new("a-b").is_err() && Selector::new("a").unwrap().by("b c").is_err());
    assert!(Server::new("http://127.0.0.1:9090/?tenant=a").is_err());
}

const QUERY: &str = "errors{version=\"v2\"}";

fn gate(server: &Server) -> Prometheus {
    Prometheus::new("errors", server, "errors{version=\"{{candidate}}\"}", Bound::AtMost(0.01)).unwrap()
}

async fn judge(gate: &Prometheus, window: &Window) -> Verdict {
    gate.judge(window).await.expect("what is wrong is in the verdict")
}

/// A window that ends now and began a minute ago.
pub(crate) fn live(candidate: &str) -> Window {
    let now = SystemClock.now();
    Window {
        candidate: RevisionId::try_from(candidate).unwrap(),
        since: now - Duration::from_secs(60),
        now,
        ..window()
    }
}

fn of(candidate: &str) -> Change {
    Change { candidate: Revision::new(candidate).unwrap(), ..change() }
}

pub(crate) fn now() -> f64 {
    let now: Timestamp = SystemClock.now();
    now.as_millisecond() as f64 / 1000.0
}

/// Of a metric that nobody else writes, on a server that may not be ours.
pub(crate) fn fresh_name(kind: &str) -> String {
    let id = rollback_core::model::DriverId::fresh();
    format!("test_{kind}_{}", id.as_str().replace('-', "_"))
}
