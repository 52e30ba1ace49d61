//! What a comparison reads from a real Prometheus: exactly what was counted.

use std::{collections::BTreeMap, time::Duration};

use jiff::Timestamp;
use rollback_core::{
    gate::{
        prometheus::{Counts, Gauges, Latencies, Matcher, Selector, Server},
        source::{Count, MetricSource as _, Pair, Query, Reading, Samples, Serving, Span},
    },
    model::{RevisionId, TargetId},
};

use super::{
    prometheus::{fresh_name, now},
    support::prometheus::server,
};

#[tokio::test]
async fn counts_are_what_was_counted_and_follow_on_one_another() {
    let Some(real) = server().await else { return };
    let (now, metric) = (now().floor(), fresh_name("counts"));
    real.push(&[
        (
            &format!("{metric}{{v=\"v1\",code=\"200\",route=\"/a\"}}"),
            vec![(now - 70.0, 500.0), (now - 40.0, 510.0), (now - 10.0, 540.0)],
        ),
        // Restarted in between: 7, then 3 from zero.
        (
            &format!("{metric}{{v=\"v2\",code=\"200\",route=\"/a\"}}"),
            vec![(now - 70.0, 10.0), (now - 45.0, 17.0), (now - 30.0, 3.0), (now - 5.0, 8.0)],
        ),
        // The first failure of its kind: from zero.
        (&format!("{metric}{{v=\"v2\",code=\"500\",route=\"/a\"}}"), vec![(now - 30.0, 2.0), (now - 5.0, 3.0)]),
        // An instance that is new since then, on a route of its own.
        (&format!("{metric}{{v=\"v2\",code=\"200\",route=\"/b\"}}"), vec![(now - 30.0, 4.0)]),
    ])
    .await;
    let server = Server::new(real.url()).unwrap();
    let whole = Selector::new(metric.as_str()).unwrap().revision("v").unwrap();
    let failed = || Matcher::matches("code", "5..").unwrap();
    let source = Counts::new(&server, &whole, failed()).unwrap();

    let all = source.read(&query(now - 60.0, now)).await.unwrap();
    // The baseline's last sample is ten seconds old: nothing of the candidate after that belongs to this reading.
    assert_eq!((all.until, all.span), (at(now - 10.0), Span::Since));
    assert_eq!(all.samples, Samples::counts(Count::new(7 + 3 + 2 + 4, 2), Count::new(40, 0)));

    // In two readings it is the same: what the first one left is in the second.
    let first = source.read(&query(now - 60.0, now - 35.0)).await.unwrap();
    assert_eq!((first.until, &first.samples), (at(now - 45.0), &Samples::counts(Count::new(7, 0), Count::new(0, 0))));
    let second = source.read(&query(now - 45.0, now)).await.unwrap();
    assert_eq!(second.samples, Samples::counts(Count::new(3 + 2 + 4, 2), Count::new(40, 0)));

    // Nothing new yet is no reading, and no zeros.
    let nothing = source.read(&query(now - 10.0, now)).await.unwrap();
    assert_eq!(nothing, Reading::since(at(now - 10.0), Samples::Counts(BTreeMap::new())));

    let each = Counts::new(&server, &whole.by("route").unwrap(), failed()).unwrap();
    let Samples::Counts(counts) = each.read(&query(now - 60.0, now)).await.unwrap().samples else { panic!("counts") };
    assert_eq!(counts["/a"], Pair { candidate: Count::new(12, 2), baseline: Count::new(40, 0) });
    assert_eq!(counts["/b"], Pair { candidate: Count::new(4, 0), baseline: Count::new(0, 0) });
}

#[tokio::test]
async fn an_arm_that_was_not_measured_is_an_error_and_not_zeros() {
    let Some(real) = server().await else { return };
    let (now, metric) = (now(), fresh_name("arms"));
    real.push(&[
        (&format!("{metric}{{v=\"v1\"}}"), vec![(now - 30.0, 1.0), (now - 5.0, 2.0)]),
        (&format!("{metric}{{v=\"v3\"}}"), vec![(now - 240.0, 1.0), (now - 200.0, 2.0)]),
    ])
    .await;
    let server = Server::new(real.url()).unwrap();
    let selector = Selector::new(metric.as_str()).unwrap().revision("v").unwrap();
    let source = Counts::new(&server, &selector, Matcher::is("code", "500").unwrap()).unwrap();
    let gauges = Gauges::new(&server, &selector).unwrap();
    let nobody = query(now - 60.0, now);
    let stale = Query { candidate: RevisionId::try_from("v3").unwrap(), ..query(now - 60.0, now) };
    for (query, why) in [(nobody, "there is no sample of"), (stale, "s old; at most 120 s are accepted")] {
        for error in [source.read(&query).await.unwrap_err(), gauges.read(&query).await.unwrap_err()] {
            assert!(error.to_string().contains(why), "{error}");
        }
    }
    assert!(Counts::new(&server, &Selector::new("x").unwrap(), Matcher::is("code", "500").unwrap()).is_err());
}

#[tokio::test]
async fn only_a_revision_that_serves_must_have_data() {
    let Some(real) = server().await else { return };
    let (now, metric) = (now(), fresh_name("serving"));
    real.push(&[(&format!("{metric}{{v=\"v1\"}}"), vec![(now - 30.0, 1.0), (now - 5.0, 9.0)])]).await;
    let server = Server::new(real.url()).unwrap();
    let selector = Selector::new(metric.as_str()).unwrap().revision("v").unwrap();
    let source = Counts::new(&server, &selector, Matcher::is("code", "500").unwrap()).unwrap();
    let gauges = Gauges::new(&server, &selector).unwrap();

    // Before the start there is no candidate, and the traffic of the baseline is what is asked for.
    let before = Query { serving: Serving::Baseline, ..query(now - 60.0, now) };
    let reading = source.read(&before).await.unwrap();
    assert_eq!(reading, Reading::since(at(now - 5.0), Samples::counts(Count::new(0, 0), Count::new(9, 0))));
    assert_eq!(gauges.read(&before).await.unwrap().samples, Samples::Gauges(BTreeMap::new()));

    // At the end the baseline is gone, and the candidate is judged alone.
    let (v0, v1) = (RevisionId::try_from("v0").unwrap(), RevisionId::try_from("v1").unwrap());
    let alone = Query { baseline: v0, candidate: v1, serving: Serving::Candidate, ..before };
    let reading = source.read(&alone).await.unwrap();
    assert_eq!(reading, Reading::since(at(now - 5.0), Samples::counts(Count::new(9, 0), Count::new(0, 0))));
    let Samples::Gauges(values) = gauges.read(&alone).await.unwrap().samples else { panic!("gauges") };
    assert!(values[""].candidate == 9.0 && values[""].baseline.is_nan(), "{values:?}");
    let both = Query { serving: Serving::Both, ..alone };
    assert!(source.read(&both).await.unwrap_err().to_string().contains("there is no sample of v0"));
    assert!(gauges.read(&both).await.unwrap_err().to_string().contains("there is no sample of v0"));
}

#[tokio::test]
async fn latencies_come_in_buckets_that_stand_alone() {
    let Some(real) = server().await else { return };
    let (now, metric) = (now(), fresh_name("times"));
    let bucket = |v: &str, le: &str| format!("{metric}_bucket{{v=\"{v}\",le=\"{le}\"}}");
    let two = |first: f64, last: f64| vec![(now - 70.0, first), (now - 5.0, last)];
    real.push(&[
        (&bucket("v1", "0.1"), two(5.0, 95.0)),
        (&bucket("v1", "1"), two(5.0, 105.0)),
        (&bucket("v1", "+Inf"), two(5.0, 105.0)),
        (&bucket("v2", "0.1"), two(0.0, 6.0)),
        (&bucket("v2", "1"), two(0.0, 8.0)),
        (&bucket("v2", "+Inf"), two(0.0, 11.0)),
        (&bucket("v3", "0.2"), two(0.0, 6.0)),
        (&bucket("v3", "+Inf"), two(0.0, 11.0)),
    ])
    .await;
    let server = Server::new(real.url()).unwrap();
    let source = Latencies::new(&server, &Selector::new(metric.as_str()).unwrap().revision("v").unwrap()).unwrap();
    let reading = source.read(&query(now - 60.0, now)).await.unwrap();
    assert_eq!(reading.samples, Samples::buckets(vec![0.1, 1.0], vec![6, 2, 3], vec![90, 10, 0]));
    let other = Query { candidate: RevisionId::try_from("v3").unwrap(), ..query(now - 60.0, now) };
    let error = source.read(&other).await.unwrap_err();
    assert!(error.to_string().contains("differ between the revisions"), "{error}");
}

#[tokio::test]
async fn gauges_are_the_mean_of_the_instances() {
    let Some(real) = server().await else { return };
    let (now, metric) = (now(), fresh_name("gauge"));
    real.push(&[
        (&format!("{metric}{{v=\"v1\",pod=\"a\"}}"), vec![(now - 8.0, 1.0)]),
        (&format!("{metric}{{v=\"v1\",pod=\"b\"}}"), vec![(now - 8.0, 2.0)]),
        (&format!("{metric}{{v=\"v2\",pod=\"c\"}}"), vec![(now - 3.0, 4.0)]),
    ])
    .await;
    let server = Server::new(real.url()).unwrap();
    let source = Gauges::new(&server, &Selector::new(metric.as_str()).unwrap().revision("v").unwrap()).unwrap();
    let reading = source.read(&query(now - 60.0, now)).await.unwrap();
    assert_eq!(reading, Reading::since(at(now - 8.0), Samples::gauges(4.0, 1.5)));
    let again = source.read(&query(now - 8.0, now)).await.unwrap();
    assert_eq!(again.samples, Samples::Gauges(BTreeMap::new()), "the same samples are not new ones");
}

fn query(since: f64, now: f64) -> Query {
    Query {
        target: TargetId::try_from("checkout").unwrap(),
        baseline: RevisionId::try_from("v1").unwrap(),
        candidate: RevisionId::try_from("v2").unwrap(),
        serving: Serving::Both,
        since: at(since),
        now: at(now),
    }
}

fn at(seconds: f64) -> Timestamp {
    Timestamp::UNIX_EPOCH + Duration::from_millis((seconds * 1000.0).round() as u64)
}
