//! The store of Secrets: against the suite, over a line that is ill, and what is its own.

use std::time::Duration;

use rollback_core::{
    ErrorKind,
    model::{DriverId, RolloutId, Serial, TargetId},
    request::{Ask, Request},
    store::{Record, Standing, Store},
    testing::store as suite,
};
use rollback_k8s::{Client, store::Secrets, testing::Cluster};
use serde_json::Value;

use crate::{
    line::{Fault, Line},
    place::Place,
};

async fn keeps_every_promise(client: &Client, namespace: &str) {
    let open = || Secrets::new(client, namespace).unwrap();
    let store = open();
    suite::all(&store).await;
    suite::two_handles_share_one_truth(&store, &open()).await;
    suite::two_handles_share_one_truth(&store, &store.clone()).await;
    suite::retention(&open().keep(1), 1).await;
    suite::retention(&open().keep(3), 3).await;
    suite::reopening_finds_everything(async || open()).await;
}

#[tokio::test]
async fn secrets_in_memory_keep_every_promise() {
    keeps_every_promise(&Cluster::new().client(), "default").await;
}

#[tokio::test]
async fn secrets_on_a_real_server_keep_every_promise() {
    let Some(place) = Place::new().await else { return };
    keeps_every_promise(&Line::default().client(&place.kubeconfig).await, &place.namespace).await;
}

fn record(subject: &str) -> Record {
    let subject = TargetId::try_from(subject).unwrap();
    Record {
        id: RolloutId::fresh(&subject),
        subject,
        driver: Some(DriverId::fresh()),
        standing: Standing::Open,
        format: 1,
        heard: 0,
        body: "{\"sealed\":\"hush\"}".into(),
    }
}

fn abort() -> Request {
    Request::new(Ask::Abort, "ann", "enough").unwrap()
}

#[tokio::test]
async fn a_save_whose_answer_was_lost_has_landed_once_and_the_next_one_is_told() {
    let Some(place) = Place::new().await else { return };
    let line = Line::default();
    let store = Secrets::new(&line.client(&place.kubeconfig).await, &place.namespace).unwrap();
    let first = record("checkout");
    let lose_writes = || {
        let mut lost = false;
        move |request: &str| {
            let write = request.starts_with("PUT") || request.starts_with("POST");
            (write && !std::mem::replace(&mut lost, true)).then_some(Fault::Lost)
        }
    };
    line.disturb(lose_writes());
    assert_eq!(store.create(&first).await.unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(store.create(&first).await.unwrap(), Serial(1), "the same record again");

    let second = Record { body: "{\"n\":2}".into(), ..first.clone() };
    line.disturb(lose_writes());
    assert_eq!(store.update(&second, Serial(1)).await.unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(store.load(&first.id).await.unwrap(), (second.clone(), Serial(2)), "it had landed");
    assert_eq!(store.update(&second, Serial(1)).await.unwrap_err().kind(), ErrorKind::Conflict);
    assert_eq!(store.update(&first, Serial(2)).await.unwrap(), Serial(3));
}

#[tokio::test]
async fn a_busy_api_server_says_how_long_to_wait_and_one_that_is_away_is_unavailable() {
    let cluster = Place::new().await;
    let Some(place) = cluster else { return };
    let line = Line::default();
    let store = Secrets::new(&line.client(&place.kubeconfig).await, &place.namespace).unwrap();
    let open = record("checkout");
    store.create(&open).await.unwrap();
    line.disturb(|_| Some(Fault::Busy(7)));
    let error = store.update(&open, Serial(1)).await.unwrap_err();
    assert_eq!((error.kind(), error.retry_after()), (ErrorKind::Throttled, Some(Duration::from_secs(7))));
    line.disturb(|_| Some(Fault::Away));
    for error in [
        store.update(&open, Serial(1)).await.unwrap_err(),
        store.open().await.unwrap_err(),
        store.beat(open.driver.as_ref().unwrap()).await.unwrap_err(),
        store.ask(&open.id, &abort()).await.unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{}", error.chain());
        assert!(!error.chain().contains("hush"), "{}", error.chain());
    }
    line.calm();
    assert_eq!(store.update(&open, Serial(1)).await.unwrap(), Serial(2), "nothing was changed meanwhile");
}

#[tokio::test]
async fn a_save_is_one_request_and_a_beat_is_one() {
    let Some(place) = Place::new().await else { return };
    let line = Line::default();
    let store = Secrets::new(&line.client(&place.kubeconfig).await, &place.namespace).unwrap();
    let mut open = record("checkout");
    let driver = open.driver.clone().unwrap();
    store.create(&open).await.unwrap();
    store.beat(&driver).await.unwrap();
    line.sent();
    for serial in 1..=5 {
        open.body = format!("{{\"n\":{serial}}}").into();
        store.update(&open, Serial(serial)).await.unwrap();
    }
    let sent = line.sent();
    assert!(sent.len() == 5 && sent.iter().all(|request| request.starts_with("PUT")), "{sent:?}");
    for _ in 0..20 {
        store.beat(&driver).await.unwrap();
    }
    let sent = line.sent();
    assert!(sent.len() <= 23, "20 beats and a look at every tenth: {sent:?}");

    // Another process asks: it comes with the next beat.
    let theirs = Secrets::new(&Line::default().client(&place.kubeconfig).await, &place.namespace).unwrap();
    theirs.ask(&open.id, &abort()).await.unwrap();
    let asked = store.beat(&driver).await.unwrap();
    assert_eq!(asked.len(), 1, "{asked:?}");
    // And whoever is asked nothing more looks no more.
    open.heard = 1;
    store.update(&open, Serial(7)).await.unwrap_err();
    store.update(&open, Serial(6)).await.unwrap();
    store.beat(&driver).await.unwrap();
    line.sent();
    store.beat(&driver).await.unwrap();
    assert_eq!(line.sent().len(), 1);
}

#[tokio::test]
async fn records_are_private_and_go_when_their_target_is_deleted() {
    let Some(place) = Place::new().await else { return };
    let store = Secrets::new(&Line::default().client(&place.kubeconfig).await, &place.namespace).unwrap();
    for _ in 0..3 {
        let open = record("checkout");
        store.create(&open).await.unwrap();
        store.update(&Record { standing: Standing::Over, ..open }, Serial(1)).await.unwrap();
    }
    let secrets = format!("/api/v1/namespaces/{}/secrets", place.namespace);
    let ours = async || {
        let all = place.send("GET", &secrets, &Value::Null).await["items"].as_array().unwrap().clone();
        let ours = all.into_iter().filter(|secret| secret["type"] == "rollback.rs/record");
        ours.collect::<Vec<Value>>()
    };
    let kept = ours().await;
    assert_eq!(kept.len(), 3);
    assert!(kept.iter().all(|secret| !secret["metadata"].to_string().contains("hush")));
    let head = kept.iter().find(|secret| secret["metadata"]["labels"]["rollback.rs/part"] == "head").unwrap();
    place.send("DELETE", &format!("{secrets}/{}", head["metadata"]["name"].as_str().unwrap()), &Value::Null).await;
    place.until("the others are collected", async || ours().await.is_empty()).await;
}

#[tokio::test]
async fn a_record_that_nobody_can_read_stands_in_the_way_of_no_other() {
    let cluster = Cluster::new();
    let store = Secrets::new(&cluster.client(), "default").unwrap();
    let whole = record("pages");
    let driver = whole.driver.clone().unwrap();
    // Their heads, by the SHA-256 of their names.
    for (subject, head) in [
        ("checkout", "rollback-head-c7761e58969f7edd498186641b2021e8"),
        ("search", "rollback-head-2419329067823cab5b4e5ac5dd18a6ab"),
    ] {
        let open = Record { driver: Some(driver.clone()), ..record(subject) };
        store.create(&open).await.unwrap();
        store.ask(&open.id, &abort()).await.unwrap();
        // As somebody's hands or a backup may leave it.
        let mut head = cluster.get("secrets", head).unwrap();
        match subject {
            "checkout" => head["data"]["envelope"] = "e30=".into(),
            _ => drop(head["metadata"]["annotations"].as_object_mut().unwrap().remove("rollback.rs/rollout-id")),
        }
        cluster.put(&head);
    }
    store.create(&whole).await.unwrap();
    store.ask(&whole.id, &abort()).await.unwrap();
    let asked = store.beat(&driver).await.unwrap();
    assert!(asked.iter().any(|(id, _)| *id == whole.id) && asked.len() == 2, "{asked:?}");
    let open: Vec<RolloutId> = store.open().await.unwrap().into_iter().map(|claim| claim.id).collect();
    assert!(open.contains(&whole.id) && open.len() == 2, "{open:?}");
}

#[tokio::test]
async fn a_role_as_printed_is_all_that_the_store_needs_and_no_more() {
    let yaml = Secrets::manifest("deploys", "shop/deployer").unwrap();
    let expected = [
        "kind: Namespace",
        "metadata: {name: deploys}",
        "resources: [secrets], verbs: [get, list, create, update, delete]",
        "resources: [leases], verbs: [list, create, patch, delete]",
        "kind: ServiceAccount, name: deployer, namespace: shop",
    ];
    for line in expected {
        assert!(yaml.contains(line), "{line} is not in\n{yaml}");
    }
    for bad in ["deployer", "shop/", "shop/x}, y"] {
        assert_eq!(Secrets::manifest("deploys", bad).unwrap_err().kind(), ErrorKind::Invalid);
    }
}
