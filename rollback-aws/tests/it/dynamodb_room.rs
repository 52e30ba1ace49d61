//! DynamoDB's room by itself: what the exchanges of boto3 (`tests/boto3/table_dynamodb.py`) cannot show.

use std::{collections::HashMap, time::Duration};

use aws_sdk_dynamodb::{
    Client,
    error::ProvideErrorMetadata as _,
    types::{AttributeValue, Delete, Put, Select, TransactWriteItem},
};
use rollback_aws::testing::Simulator;
use serde_json::json;

fn key(sk: &str) -> HashMap<String, AttributeValue> {
    [("pk", "p"), ("sk", sk)].map(|(name, value)| (name.to_owned(), AttributeValue::S(value.into()))).into()
}

fn simulator() -> (Simulator, Client) {
    let aws = Simulator::new();
    aws.dynamodb().table("table", "pk", "sk");
    let client = aws.account().dynamodb();
    (aws, client)
}

#[tokio::test(start_paused = true)]
async fn a_read_that_is_not_consistent_shows_what_was_for_a_while() {
    let (aws, client) = simulator();
    let read = async |consistent| {
        let call = client.get_item().table_name("table").set_key(Some(key("a"))).consistent_read(consistent);
        call.send().await.unwrap().item.is_some()
    };
    let listed = async |consistent| {
        let call = client.query().table_name("table").key_condition_expression("pk = :p").consistent_read(consistent);
        call.expression_attribute_values(":p", AttributeValue::S("p".into())).send().await.unwrap().count
    };
    client.put_item().table_name("table").set_item(Some(key("a"))).send().await.unwrap();
    assert_eq!((read(true).await, read(false).await), (true, false));
    assert_eq!((listed(true).await, listed(false).await), (1, 0));
    assert_eq!(aws.dynamodb().stale_reads(), 2);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(read(false).await);
    client.delete_item().table_name("table").set_key(Some(key("a"))).send().await.unwrap();
    assert_eq!((read(true).await, read(false).await, listed(false).await), (false, true, 1));
    aws.dynamodb().lag(Duration::ZERO);
    assert!(!read(false).await);
}

#[tokio::test(start_paused = true)]
async fn what_is_not_simulated_is_refused_in_so_many_words() {
    let (_, client) = simulator();
    let of_index = client.query().table_name("table").index_name("i").key_condition_expression("pk = :p");
    let of_index = of_index.expression_attribute_values(":p", AttributeValue::S("p".into())).send().await;
    let set = client.put_item().table_name("table").set_item(Some(key("a")));
    let set = set.item("s", AttributeValue::Ss(vec!["x".into()])).send().await;
    let fraction = client.put_item().table_name("table").set_item(Some(key("a")));
    let fraction = fraction.item("n", AttributeValue::N("0.5".into())).send().await;
    let scan = client.scan().table_name("table").select(Select::Count).send().await;
    for (said, what) in [
        (of_index.unwrap_err().message().map(str::to_owned), "IndexName"),
        (set.unwrap_err().message().map(str::to_owned), "a set"),
        (fraction.unwrap_err().message().map(str::to_owned), "a number that is not whole"),
        (scan.unwrap_err().message().map(str::to_owned), "Scan of DynamoDB"),
    ] {
        assert_eq!(said.unwrap(), format!("{what} is not simulated"));
    }
}

/// Reasons stand in the order of the actions, and hold the item only where it was asked for.
#[tokio::test(start_paused = true)]
async fn a_cancelled_transaction_tells_the_reason_of_each_action() {
    let (aws, client) = simulator();
    for sk in ["a", "b"] {
        aws.dynamodb().put("table", &json!({ "pk": { "S": "p" }, "sk": { "S": sk }, "n": { "N": "7" } }));
    }
    let put = |sk: &str, all_old: bool| {
        let put =
            Put::builder().table_name("table").set_item(Some(key(sk))).condition_expression("attribute_not_exists(pk)");
        let put = if all_old { put.return_values_on_condition_check_failure("ALL_OLD".into()) } else { put };
        TransactWriteItem::builder().put(put.build().unwrap()).build()
    };
    let large = Put::builder().table_name("table").set_item(Some(key("c")));
    let large = large.item("body", AttributeValue::S("x".repeat(400 * 1024))).build().unwrap();
    let large = TransactWriteItem::builder().put(large).build();
    let delete = Delete::builder().table_name("table").set_key(Some(key("z"))).build().unwrap();
    let delete = TransactWriteItem::builder().delete(delete).build();
    let all = vec![put("a", true), put("b", false), large, delete, put("d", true)];
    let error = client.transact_write_items().set_transact_items(Some(all)).send().await.unwrap_err();
    let error = error.into_service_error();
    let aws_sdk_dynamodb::operation::transact_write_items::TransactWriteItemsError::TransactionCanceledException(error) =
        error
    else {
        panic!("{error:?}")
    };
    let reasons: Vec<(&str, Option<&AttributeValue>)> = error
        .cancellation_reasons()
        .iter()
        .map(|reason| (reason.code().unwrap(), reason.item().and_then(|item| item.get("n"))))
        .collect();
    let seven = AttributeValue::N("7".into());
    assert_eq!(
        reasons,
        [
            ("ConditionalCheckFailed", Some(&seven)),
            ("ConditionalCheckFailed", None),
            ("ValidationError", None),
            ("None", None),
            ("None", None)
        ]
    );
    assert_eq!(aws.dynamodb().items("table").len(), 2, "nothing was done");
}
