//! The store in DynamoDB: against the suite, over a line that is ill, and what is its own.

use std::{sync::Arc, time::Duration};

use aws_sdk_dynamodb::{
    Client,
    types::{AttributeDefinition, BillingMode, KeySchemaElement, ScalarAttributeType, TimeToLiveSpecification},
};
use rollback_aws::{
    account::{Account, Login},
    dynamodb::{STORE, Store},
    testing::{
        Simulator,
        fault::{Fault, Trouble},
    },
};
use rollback_core::{
    ErrorKind,
    model::{DriverId, RolloutId, Serial, TargetId},
    request::{Ask, Request},
    store::{Record, Standing, Store as _},
    testing::store as suite,
};
use serde_json::Value;

use crate::boto3::Emulator;

const TABLE: &str = "rollouts";

fn simulator() -> Simulator {
    let aws = Simulator::new();
    aws.dynamodb().table(TABLE, "pk", "sk");
    aws
}

fn store(aws: &Simulator) -> Store {
    Store::new(&aws.account(), TABLE).expect("a good name")
}

async fn keeps_every_promise(open: impl Fn() -> Store + Send + Sync) {
    let store = open();
    suite::all(&store).await;
    suite::two_handles_share_one_truth(&store, &open()).await;
    suite::two_handles_share_one_truth(&store, &store.clone()).await;
    suite::retention(&open().keep(1), 1).await;
    suite::retention(&open().keep(3), 3).await;
    suite::reopening_finds_everything(async || open()).await;
}

#[tokio::test(start_paused = true)]
async fn items_of_a_table_keep_every_promise() {
    let aws = simulator();
    keeps_every_promise(|| store(&aws)).await;
    assert_eq!(aws.dynamodb().stale_reads(), 0, "a read that is not consistent has shown what was no longer so");
    assert!(aws.dynamodb().largest(TABLE) < 400 * 1024);
}

/// Others have written what DynamoDB does as well: the same suite, over sockets.
#[tokio::test(flavor = "multi_thread")]
async fn items_of_a_table_of_ministack_keep_every_promise() {
    let Some(ministack) = Emulator::ministack().await else { return };
    let account = account_at(&ministack).await;
    keeps_every_promise(|| store_of(&account)).await;
}

/// One call after the other: moto answers each on a thread of its own and checks a condition before it writes, without a
/// lock, so that of many writes at once it may take two.
#[tokio::test(flavor = "multi_thread")]
async fn items_of_a_table_of_moto_keep_every_promise_that_asks_for_nothing_at_once() {
    let Some(moto) = Emulator::moto().await else { return };
    let account = account_at(&moto).await;
    let store = store_of(&account);
    suite::what_was_created_can_be_loaded(&store).await;
    suite::the_same_record_twice_is_harmless(&store).await;
    suite::an_id_taken_by_another_record_is_a_conflict(&store).await;
    suite::a_busy_subject_is_a_conflict_that_names_the_open_rollout(&store).await;
    suite::a_closed_subject_can_be_opened_again(&store).await;
    suite::a_finished_record_is_not_opened_again_on_a_busy_subject(&store).await;
    suite::an_update_replaces_the_record_and_raises_the_serial_by_one(&store).await;
    suite::a_stale_serial_is_a_conflict_and_changes_nothing(&store).await;
    suite::the_subject_of_a_record_never_changes(&store).await;
    suite::open_lists_exactly_what_is_open(&store).await;
    suite::a_beat_changes_every_time_and_belongs_to_its_driver(&store).await;
    suite::requests_come_again_until_they_are_heard(&store).await;
    suite::requests_follow_a_rollout_to_its_new_driver(&store).await;
    suite::requests_are_numbered_after_what_was_heard(&store).await;
    suite::nobody_asks_a_rollout_that_is_over(&store).await;
    suite::history_is_newest_first_and_limited(&store).await;
    suite::any_text_comes_back_as_it_was(&store).await;
    suite::a_large_body_comes_back_as_it_was(&store).await;
    suite::retention(&store_of(&account).keep(2), 2).await;
    suite::reopening_finds_everything(async || store_of(&account)).await;
}

/// An emulator's account with the table in it.
async fn account_at(emulator: &Emulator) -> Account {
    let account = Login::new().simulator(&emulator.endpoint).open().await.unwrap();
    make_table(&account.dynamodb(), &template()).await;
    let ready = store_of(&account).preflight().await.unwrap();
    assert!(ready.refused.is_empty(), "{ready:?}");
    account
}

fn store_of(account: &Account) -> Store {
    Store::new(account, TABLE).expect("a good name")
}

/// The properties of the table in the template.
fn template() -> Value {
    let template: Value = serde_json::from_str(&Store::template(TABLE).unwrap()).unwrap();
    template["Resources"]["Rollouts"]["Properties"].clone()
}

/// Makes a table of such properties, as far as CreateTable takes them.
async fn make_table(client: &Client, table: &Value) {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let mut call = client.create_table().table_name(text(&table["TableName"]));
    for one in table["AttributeDefinitions"].as_array().unwrap() {
        let kind = ScalarAttributeType::from(one["AttributeType"].as_str().unwrap());
        let one = AttributeDefinition::builder().attribute_name(text(&one["AttributeName"])).attribute_type(kind);
        call = call.attribute_definitions(one.build().unwrap());
    }
    for one in table["KeySchema"].as_array().unwrap() {
        let role = one["KeyType"].as_str().unwrap().into();
        let one = KeySchemaElement::builder().attribute_name(text(&one["AttributeName"])).key_type(role);
        call = call.key_schema(one.build().unwrap());
    }
    let protected = table["DeletionProtectionEnabled"].as_bool().unwrap();
    let mode = BillingMode::from(table["BillingMode"].as_str().unwrap());
    call.deletion_protection_enabled(protected).billing_mode(mode).send().await.unwrap();
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

fn with_body(record: &Record, body: impl Into<Arc<str>>) -> Record {
    Record { body: body.into(), ..record.clone() }
}

fn large(n: u32) -> String {
    format!("{n}{}", "x".repeat(600 * 1024))
}

fn abort() -> Request {
    Request::new(Ask::Abort, "ann", "enough").unwrap()
}

/// Every write that the store makes, and what it becomes when the answer of its first try is lost: nothing that a caller
/// could notice.
#[tokio::test(start_paused = true)]
async fn a_write_whose_answer_was_lost_is_recognised_when_it_is_tried_again() {
    let aws = simulator();
    let store = store(&aws);
    let lose = |action: &str| aws.fault(Fault::of(action, Trouble::LoseAnswer));
    let first = record("checkout");

    lose("dynamodb:TransactWriteItems");
    assert_eq!(store.create(&first).await.unwrap(), Serial(1), "a rollout begins");
    lose("dynamodb:PutItem");
    assert_eq!(store.update(&with_body(&first, "2"), Serial(1)).await.unwrap(), Serial(2), "a driver goes on");
    lose("dynamodb:TransactWriteItems");
    let taken = Record { driver: Some(DriverId::fresh()), ..with_body(&first, "3") };
    assert_eq!(store.update(&taken, Serial(2)).await.unwrap(), Serial(3), "another driver takes it");
    lose("dynamodb:UpdateItem");
    store.ask(&first.id, &abort()).await.unwrap();
    let asked = store.beat(taken.driver.as_ref().unwrap()).await.unwrap();
    assert_eq!(asked.len(), 1, "asked once: {asked:?}");
    lose("dynamodb:TransactWriteItems");
    let over = Record { standing: Standing::Promoted, ..taken };
    assert_eq!(store.update(&over, Serial(3)).await.unwrap(), Serial(4), "it ends");
    assert_eq!(store.load(&first.id).await.unwrap(), (over, Serial(4)));
    assert_eq!(store.history(&first.subject, 9).await.unwrap().len(), 1);
}

/// When all tries are lost nobody knows, and says so; and then the record tells.
#[tokio::test(start_paused = true)]
async fn a_save_without_any_answer_is_unknown_and_a_load_tells() {
    let aws = simulator();
    let store = store(&aws);
    let first = record("checkout");
    aws.fault(Fault::of("dynamodb:TransactWriteItems", Trouble::LoseAnswer).times(3));
    assert_eq!(store.create(&first).await.unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(store.create(&first).await.unwrap(), Serial(1), "the same record again");

    let second = with_body(&first, "2");
    aws.fault(Fault::of("dynamodb:PutItem", Trouble::LoseAnswer).times(3));
    let error = store.update(&second, Serial(1)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{}", error.chain());
    assert!(!error.chain().contains("hush"), "{}", error.chain());
    assert_eq!(store.load(&first.id).await.unwrap(), (second.clone(), Serial(2)), "it had landed");
    assert_eq!(store.update(&second, Serial(1)).await.unwrap_err().kind(), ErrorKind::Conflict);
    aws.forget_faults();
    assert_eq!(store.update(&first, Serial(2)).await.unwrap(), Serial(3));
}

/// A save that arrives after its driver gave it up, and after another one has gone on, changes nothing.
#[tokio::test(start_paused = true)]
async fn a_late_save_of_a_driver_that_fell_behind_changes_nothing() {
    let aws = simulator();
    let (ours, theirs) = (store(&aws), store(&aws));
    let first = record("checkout");
    ours.create(&first).await.unwrap();
    for late in [with_body(&first, "late"), Record { standing: Standing::Over, ..with_body(&first, "late") }] {
        let (_, serial) = theirs.load(&first.id).await.unwrap();
        let delayed = Trouble::DelayRequest(Duration::from_secs(60));
        aws.fault(Fault::any(delayed).times(9));
        let error = ours.update(&late, serial).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{}", error.chain());
        aws.forget_faults();
        let claimed = Record { driver: Some(DriverId::fresh()), ..with_body(&first, "claimed") };
        let next = theirs.update(&claimed, serial).await.unwrap();
        tokio::time::sleep(Duration::from_secs(120)).await;
        assert_eq!(theirs.load(&first.id).await.unwrap(), (claimed, next));
        assert_eq!(theirs.open().await.unwrap().len(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn throttling_is_waited_out_a_little_and_then_told_as_that() {
    let aws = simulator();
    let store = store(&aws);
    let open = record("checkout");
    let driver = open.driver.clone().unwrap();
    store.create(&open).await.unwrap();
    aws.fault(Fault::any(Trouble::Throttle).times(2));
    assert_eq!(store.update(&open, Serial(1)).await.unwrap(), Serial(2), "a moment is waited out");
    aws.fault(Fault::any(Trouble::Throttle).times(1000));
    for error in [
        store.update(&open, Serial(2)).await.unwrap_err(),
        store.update(&Record { standing: Standing::Over, ..open.clone() }, Serial(2)).await.unwrap_err(),
        store.create(&record("other")).await.unwrap_err(),
        store.open().await.unwrap_err(),
        store.beat(&driver).await.unwrap_err(),
        store.ask(&open.id, &abort()).await.unwrap_err(),
        store.history(&open.subject, 1).await.unwrap_err(),
    ] {
        assert_eq!(error.kind(), ErrorKind::Throttled, "{}", error.chain());
        assert!(!error.chain().contains("hush"), "{}", error.chain());
    }
    aws.forget_faults();
    assert_eq!(store.update(&open, Serial(2)).await.unwrap(), Serial(3), "nothing was changed meanwhile");
}

/// Writes that run into a transaction of somebody else are nobody's loss.
#[tokio::test(start_paused = true)]
async fn a_conflict_of_transactions_is_tried_again() {
    let aws = simulator();
    let store = store(&aws);
    let open = record("checkout");
    aws.dynamodb().conflict(3);
    store.create(&open).await.unwrap();
    aws.dynamodb().conflict(3);
    assert_eq!(store.update(&open, Serial(1)).await.unwrap(), Serial(2));
    aws.dynamodb().conflict(3);
    store.ask(&open.id, &abort()).await.unwrap();
    aws.dynamodb().conflict(3);
    let over = Record { standing: Standing::Over, ..open };
    assert_eq!(store.update(&over, Serial(2)).await.unwrap(), Serial(3));
}

#[tokio::test(start_paused = true)]
async fn a_save_is_one_call_and_a_beat_is_one() {
    let aws = simulator();
    let ours = store(&aws);
    let mut open = record("checkout");
    let driver = open.driver.clone().unwrap();
    ours.create(&open).await.unwrap();
    ours.beat(&driver).await.unwrap();
    ours.beat(&driver).await.unwrap();
    let total = || aws.calls().values().sum::<u64>();
    let before = total();
    for serial in 1..=5 {
        open.body = format!("{{\"n\":{serial}}}").into();
        ours.update(&open, Serial(serial)).await.unwrap();
    }
    assert_eq!(total() - before, 5, "{:?}", aws.calls());
    assert_eq!(aws.calls()["dynamodb:PutItem"], 5);
    let before = total();
    for _ in 0..20 {
        ours.beat(&driver).await.unwrap();
    }
    assert!(total() - before <= 22, "20 beats and a look at every tenth: {:?}", aws.calls());

    // Another process asks: it comes with the next beat.
    store(&aws).ask(&open.id, &abort()).await.unwrap();
    let asked = ours.beat(&driver).await.unwrap();
    assert_eq!(asked.len(), 1, "{asked:?}");
    // And whoever is asked nothing more looks no more, and leaves nothing behind.
    open.heard = 1;
    ours.update(&open, Serial(6)).await.unwrap();
    assert_eq!(ours.beat(&driver).await.unwrap(), []);
    let before = total();
    ours.beat(&driver).await.unwrap();
    assert_eq!(total() - before, 1);
    let items = Value::from(aws.dynamodb().items(TABLE)).to_string();
    assert!(!items.contains("enough"), "what was heard is forgotten: {items}");
}

/// A large record lies in several items; what it shrinks to, and what is trimmed, leaves none of them behind.
#[tokio::test(start_paused = true)]
async fn a_large_record_lies_in_several_items_and_they_go_with_it() {
    let aws = simulator();
    let store = store(&aws).keep(1);
    let parts = || {
        let items = aws.dynamodb().items(TABLE);
        items.iter().filter(|item| item["sk"]["S"] == "body").count()
    };
    let first = record("checkout");
    store.create(&with_body(&first, large(1))).await.unwrap();
    assert_eq!(parts(), 1);
    assert!(aws.dynamodb().largest(TABLE) < 400 * 1024);
    let next = with_body(&first, large(2));
    store.update(&next, Serial(1)).await.unwrap();
    assert_eq!(store.load(&first.id).await.unwrap(), (next, Serial(2)));
    store.update(&first, Serial(2)).await.unwrap();
    assert_eq!((parts(), store.load(&first.id).await.unwrap()), (0, (first.clone(), Serial(3))));
    let over = Record { standing: Standing::Over, ..with_body(&first, large(3)) };
    store.update(&over, Serial(3)).await.unwrap();
    assert_eq!(parts(), 1);
    let second = Record { standing: Standing::Over, ..record("checkout") };
    store.create(&second).await.unwrap();
    assert_eq!(parts(), 0, "it was trimmed with all of its parts");
    assert_eq!(store.load(&first.id).await.unwrap_err().kind(), ErrorKind::NotFound);

    let huge = with_body(&record("other"), "x".repeat(3 * 1024 * 1024));
    let error = store.create(&huge).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    let said = "has 3145728 bytes; DynamoDB takes 4 MB in one write, and this store at most 3112960 bytes of a record";
    assert!(error.to_string().contains(said), "{error}");
}

/// A record is read while somebody else saves it again: never half of one and half of the other.
#[tokio::test]
async fn nobody_reads_half_of_a_save() {
    let aws = simulator();
    let server = aws.listen("127.0.0.1:0").await.unwrap();
    let login = || Login::new().simulator(server.endpoint_url()).open();
    let (ours, theirs) = (Store::new(&login().await.unwrap(), TABLE), Store::new(&login().await.unwrap(), TABLE));
    let (ours, theirs) = (ours.unwrap(), theirs.unwrap());
    let first = record("checkout");
    ours.create(&with_body(&first, large(0))).await.unwrap();
    let id = first.id.clone();
    let reads = tokio::spawn(async move {
        let mut seen = 0;
        for _ in 0..25 {
            let (read, serial) = theirs.load(&id).await.unwrap();
            assert_eq!(&*read.body, large(serial.0 as u32 - 1), "of another save");
            assert!(serial.0 >= seen, "an older one than before");
            seen = serial.0;
        }
    });
    let mut serial = Serial(1);
    while !reads.is_finished() {
        serial = ours.update(&with_body(&first, large(serial.0 as u32)), serial).await.unwrap();
    }
    reads.await.unwrap();
    assert!(serial.0 > 3, "too few saves to prove anything: {serial}");
}

#[tokio::test(start_paused = true)]
async fn preflight_proves_every_permission_and_names_the_one_that_is_missing() {
    let aws = simulator();
    let store = store(&aws);
    let ready = store.preflight().await.unwrap();
    assert!(ready.refused.is_empty(), "{ready:?}");
    for permission in STORE {
        assert!(ready.proved.iter().any(|proved| proved.as_str().contains(permission.action)), "{permission:?}");
        aws.deny(permission.action);
        let ready = store.preflight().await.unwrap();
        assert_eq!(ready.refused.len(), 1, "{permission:?}: {ready:?}");
        assert!(ready.refused[0].as_str().contains(permission.action), "{permission:?}: {ready:?}");
        aws.allow(permission.action);
    }
    assert!(aws.dynamodb().items(TABLE).is_empty(), "preflight has written something");
    let policy = store.policy().to_string();
    assert!(policy.contains("arn:aws:dynamodb:us-east-1:*:table/rollouts"), "{policy}");
    assert!(STORE.iter().all(|permission| policy.contains(permission.action)), "{policy}");
}

/// With the policy as printed and nothing else, everything works.
#[tokio::test(start_paused = true)]
async fn the_policy_as_printed_is_all_that_the_store_needs() {
    let aws = simulator();
    for action in ["BatchGetItem", "BatchWriteItem", "Scan", "ConditionCheckItem", "CreateTable", "PartiQLUpdate"] {
        aws.deny(&format!("dynamodb:{action}"));
    }
    keeps_every_promise(|| store(&aws)).await;
    let called = aws.calls();
    for action in called.keys().filter(|action| *action != "dynamodb:TransactWriteItems") {
        assert!(STORE.iter().any(|permission| permission.action == action), "{action} is not in the list");
    }
    // A transaction is allowed by what it is made of.
    aws.deny("dynamodb:DeleteItem");
    let (store, open) = (store(&aws), record("checkout"));
    store.create(&open).await.unwrap();
    let error = store.update(&Record { standing: Standing::Over, ..open }, Serial(1)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied);
    assert!(error.chain().contains("dynamodb:DeleteItem"), "{}", error.chain());
}

/// The template makes a table that preflight accepts, and other tables are refused with what to do.
#[tokio::test(start_paused = true)]
async fn the_table_of_the_template_is_accepted_and_others_are_not() {
    let table = template();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let aws = Simulator::new();
    let store = store(&aws);
    let ready = store.preflight().await.unwrap();
    assert!(ready.refused[0].as_str().starts_with("there is no table rollouts"), "{ready:?}");

    let client = aws.account().dynamodb();
    make_table(&client, &table).await;
    let ready = store.preflight().await.unwrap();
    assert_eq!(ready.refused[0].as_str(), "table rollouts is CREATING; wait until it is ACTIVE");
    tokio::time::sleep(Duration::from_secs(10)).await;
    let ready = store.preflight().await.unwrap();
    assert!(ready.refused.is_empty(), "{ready:?}");
    assert!(ready.not_provable[0].as_str().contains("no time to live by `expires`"), "{ready:?}");
    let ttl = &table["TimeToLiveSpecification"];
    let ttl = TimeToLiveSpecification::builder().attribute_name(text(&ttl["AttributeName"])).enabled(true);
    client
        .update_time_to_live()
        .table_name(TABLE)
        .time_to_live_specification(ttl.build().unwrap())
        .send()
        .await
        .unwrap();
    let ready = store.preflight().await.unwrap();
    assert!(ready.refused.is_empty() && ready.not_provable.is_empty(), "{ready:?}");

    let mut other = table.clone();
    other["TableName"] = "others".into();
    other["KeySchema"][1]["AttributeName"] = "when".into();
    other["AttributeDefinitions"][1]["AttributeName"] = "when".into();
    make_table(&client, &other).await;
    let ready = Store::new(&aws.account(), "others").unwrap().preflight().await.unwrap();
    let said = "table others has the key (pk, when), and the store needs the partition key `pk` and the sort key `sk`";
    assert!(ready.refused[0].as_str().starts_with(said), "{ready:?}");
    for bad in ["", "no", "naïve", "a table"] {
        assert_eq!(Store::template(bad).unwrap_err().kind(), ErrorKind::Invalid, "{bad:?}");
        assert_eq!(Store::new(&aws.account(), bad).unwrap_err().kind(), ErrorKind::Invalid, "{bad:?}");
    }
}

/// What drivers long gone have left is swept; what is open, and who lives, stays.
#[tokio::test(start_paused = true)]
async fn only_old_beats_are_ever_swept() {
    let aws = simulator();
    let store = store(&aws);
    let open = record("checkout");
    store.create(&open).await.unwrap();
    store.beat(&DriverId::fresh()).await.unwrap();
    let drivers = || aws.dynamodb().items(TABLE).iter().filter(|item| item["pk"]["S"] == "driver").count();
    assert_eq!(drivers(), 1);
    let expires = aws.dynamodb().items(TABLE).iter().find_map(|item| item["expires"]["N"].as_str().map(str::to_owned));
    let expires: i64 = expires.expect("a beat says when it may be swept").parse().unwrap();
    let left = expires - rollback_core::clock::Clock::now(&rollback_core::clock::SystemClock).as_second();
    assert!((6 * 24 * 3600..=7 * 24 * 3600).contains(&left), "in a week: {left}");
    aws.clock().advance(Duration::from_secs(40 * 365 * 24 * 3600));
    assert_eq!(store.open().await.unwrap().len(), 1);
    assert_eq!(store.load(&open.id).await.unwrap().1, Serial(1));
    assert_eq!(drivers(), 0);
}

/// A request that a newer process asked does not keep the others from being heard.
#[tokio::test(start_paused = true)]
async fn a_request_that_cannot_be_read_is_left_alone() {
    let aws = simulator();
    let store = store(&aws);
    let open = record("checkout");
    store.create(&open).await.unwrap();
    store.ask(&open.id, &abort()).await.unwrap();
    let mut item = aws.dynamodb().items(TABLE).into_iter().find(|item| item["pk"]["S"] == "open").unwrap();
    let newer = serde_json::json!({ "M": { "nonce": { "S": "n" }, "text": { "S": "{\"ask\":\"something newer\"}" } } });
    item["requests"]["M"]["2"] = newer;
    item["asked"]["N"] = "2".into();
    aws.dynamodb().put(TABLE, &item);
    store.ask(&open.id, &abort()).await.unwrap();
    let heard = store.beat(open.driver.as_ref().unwrap()).await.unwrap();
    assert_eq!(heard.iter().map(|(_, asked)| asked.number).collect::<Vec<_>>(), [1, 3]);
}

/// The answer to a request comes too late, and meanwhile it is heard, and even ends the rollout: it is not asked twice, and
/// whoever asked does not hear that it was too late.
#[tokio::test(start_paused = true)]
async fn a_request_that_was_heard_before_its_answer_came_is_not_asked_again() {
    for ends in [false, true] {
        let aws = simulator();
        let store = store(&aws);
        let open = record("checkout");
        let driver = open.driver.clone().unwrap();
        store.create(&open).await.unwrap();
        store.beat(&driver).await.unwrap();
        // The SDK gives the first try up after 10 s.
        aws.fault(Fault::of("dynamodb:UpdateItem", Trouble::DelayAnswer(Duration::from_secs(15))));
        let asking = tokio::spawn({
            let (store, id) = (self::store(&aws), open.id.clone());
            async move { store.ask(&id, &abort()).await }
        });
        let heard = async || {
            for _ in 0..12 {
                let asked = store.beat(&driver).await.unwrap();
                if !asked.is_empty() {
                    return asked;
                }
            }
            Vec::new()
        };
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(heard().await.len(), 1);
        let standing = if ends { Standing::Over } else { Standing::Open };
        store.update(&Record { heard: 1, standing, ..open.clone() }, Serial(1)).await.unwrap();
        assert_eq!(heard().await, [], "it was heard, and may be forgotten now");
        asking.await.unwrap().expect("the first try was heard");
        assert_eq!(heard().await, [], "it is not asked once more");
        let again = store.ask(&open.id, &abort()).await;
        assert_eq!(again.is_err(), ends, "another request is another one: {again:?}");
    }
}

/// What was heard is known for a second try, and not for ever.
#[tokio::test(start_paused = true)]
async fn the_lock_of_a_rollout_keeps_the_nonces_of_a_few_requests_and_of_them_no_text() {
    let aws = simulator();
    let store = store(&aws);
    let open = record("checkout");
    store.create(&open).await.unwrap();
    for number in 1..=30 {
        store.ask(&open.id, &abort()).await.unwrap();
        store.update(&Record { heard: number, ..open.clone() }, Serial(number)).await.unwrap();
    }
    let item = aws.dynamodb().items(TABLE).into_iter().find(|item| item["pk"]["S"] == "open").unwrap();
    let kept = (item["requests"]["M"].as_object().unwrap().len(), item["answered"]["L"].as_array().unwrap().len());
    assert_eq!(kept, (1, 8), "{item}");
}

/// An item that no version of ours wrote, or a newer one, costs its own rollout and no other.
#[tokio::test(start_paused = true)]
async fn one_open_rollout_that_cannot_be_read_does_not_keep_the_others_from_their_drivers() {
    let aws = simulator();
    let (odd, newer, body, good) = (record("odd"), record("newer"), record("body"), record("good"));
    let mine = |it: &Record| Record { driver: good.driver.clone(), ..it.clone() };
    let store = store(&aws);
    for it in [&odd, &newer, &body, &good] {
        store.create(&mine(it)).await.unwrap();
        store.ask(&it.id, &abort()).await.unwrap();
    }
    for mut item in aws.dynamodb().items(TABLE) {
        match (item["pk"]["S"].as_str().unwrap(), item["sk"]["S"].as_str().unwrap()) {
            ("open", "odd") => item["asked"] = serde_json::json!({ "S": "seven" }),
            ("open", "newer") => item["v"] = serde_json::json!({ "N": "99" }),
            (pk, "record") if pk.ends_with(body.id.as_str()) => item["v"] = serde_json::json!({ "N": "99" }),
            _ => continue,
        }
        aws.dynamodb().put(TABLE, &item);
    }
    let mut open: Vec<String> = store.open().await.unwrap().iter().map(|it| it.subject.to_string()).collect();
    open.sort_unstable();
    assert_eq!(open, ["body", "good"]);
    let heard = store.beat(good.driver.as_ref().unwrap()).await.unwrap();
    assert_eq!(heard.iter().map(|(id, _)| id).collect::<Vec<_>>(), [&good.id]);

    // Whoever asks for just that one hears why, and nobody begins another rollout over it.
    assert_eq!(store.load(&body.id).await.unwrap_err().kind(), ErrorKind::Unsupported);
    let e = store.create(&record("newer")).await.unwrap_err();
    assert_eq!((e.kind(), e.to_string().contains("newer version")), (ErrorKind::Unsupported, true), "{e}");
}
