//! The responder: whom it believes, and what it does.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use async_trait::async_trait;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use ring::{
    rand::SystemRandom,
    signature::{RSA_PKCS1_SHA256, RsaKeyPair},
};
use rollback_aws::{
    lambda::Alias,
    responder::{Answer, Fetch, Responder},
    testing::{
        Simulator,
        fault::{Fault, Trouble},
        lambda::Build,
    },
};
use rollback_core::{
    Error, ErrorKind, Result,
    clock::Clock as _,
    engine::{Engine, NewRollout, Target},
    model::Revision,
    plan::Plan,
    store::Memory,
};
use serde_json::{Value, json};

const TOPIC: &str = "arn:aws:sns:us-east-1:123456789012:alarms";
const CERTIFICATE: &str = "https://sns.us-east-1.amazonaws.com/SimpleNotificationService-0123.pem";

/// Made for these tests by `openssl req -x509 -newkey rsa:2048`, and good for nothing else.
const PEM: &[u8] = include_bytes!("../data/sns/cert.pem");
const KEY: &[u8] = include_bytes!("../data/sns/test-key.der");

#[derive(Clone, Debug, Default)]
struct Net(Arc<AtomicUsize>);

#[async_trait]
impl Fetch for Net {
    async fn get(&self, url: &str) -> Result<Vec<u8>> {
        self.0.fetch_add(1, Ordering::Relaxed);
        match url {
            CERTIFICATE => Ok(PEM.to_vec()),
            confirm if confirm.contains("?Action=ConfirmSubscription&") => Ok(Vec::new()),
            other => Err(Error::new(ErrorKind::NotFound, format!("{other} is not there"))),
        }
    }
}

/// A message as SNS posts it, signed with what it says.
fn message(aws: &Simulator, kind: &str, text: &str) -> Value {
    let mut said = json!({
        "Type": kind, "MessageId": "dc1e94d9-56c5-5e96-808d-cc7f68faa162", "TopicArn": TOPIC, "Message": text,
        "Timestamp": aws.clock().now().to_string(), "SignatureVersion": "2", "SigningCertURL": CERTIFICATE,
    });
    if kind == "Notification" {
        said["Subject"] = json!("ALARM");
    } else {
        said["Token"] = json!("token");
        said["SubscribeURL"] = json!("https://sns.us-east-1.amazonaws.com/?Action=ConfirmSubscription&Token=token");
    }
    sign(&mut said);
    said
}

fn sign(said: &mut Value) {
    let names = ["Message", "MessageId", "Subject", "SubscribeURL", "Timestamp", "Token", "TopicArn", "Type"];
    let text: String = names.iter().filter_map(|name| Some(format!("{name}\n{}\n", said[*name].as_str()?))).collect();
    let key = RsaKeyPair::from_pkcs8(KEY).expect("a key");
    let mut signature = vec![0; key.public().modulus_len()];
    key.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), text.as_bytes(), &mut signature).expect("it signs");
    said["Signature"] = json!(STANDARD.encode(signature));
}

fn alarm(aws: &Simulator, state: &str) -> String {
    json!({
        "AlarmName": "errors", "AWSAccountId": "123456789012", "NewStateValue": state, "OldStateValue": "OK",
        "NewStateReason": "Threshold Crossed", "Region": "US East (N. Virginia)",
        "StateChangeTime": aws.clock().now().strftime("%Y-%m-%dT%H:%M:%S%.3f+0000").to_string(),
    })
    .to_string()
}

fn shop() -> Simulator {
    let aws = Simulator::new();
    aws.lambda().publish("checkout", &Build::new("v1"));
    aws.lambda().publish("checkout", &Build::new("v2"));
    aws.lambda().point("checkout", "live", "1", Some(("2", 0.25)));
    aws
}

fn responder(aws: &Simulator) -> Responder {
    let responder = Responder::new().topic(TOPIC).confirms_subscriptions().fetch(Net::default());
    let responder = responder.clock(aws.clock().clone());
    responder.alias("errors", &aws.account(), "checkout:live").expect("an alias")
}

fn weights(aws: &Simulator) -> Option<(String, f64)> {
    aws.lambda().alias("checkout", "live").expect("it is there").other
}

#[tokio::test(start_paused = true)]
async fn a_signed_notification_takes_the_alias_back_and_twice_is_harmless() {
    let aws = shop();
    let responder = responder(&aws);
    let body = message(&aws, "Notification", &alarm(&aws, "ALARM")).to_string();
    let answer = responder.delivered(body.as_bytes()).await.expect("it is signed");
    assert_eq!(answer.to_string(), "taken back: the alias checkout:live is back at version 1; 2 had 25 %");
    assert_eq!(weights(&aws), None);
    let again = responder.delivered(body.as_bytes()).await.expect("it is signed");
    assert!(matches!(again, Answer::Nothing(_)), "{again}");
    let good = message(&aws, "Notification", &alarm(&aws, "OK")).to_string();
    let answer = responder.delivered(good.as_bytes()).await.expect("it is signed");
    assert_eq!(answer.to_string(), "nothing to do: the alarm errors is OK");
}

#[tokio::test(start_paused = true)]
async fn what_is_not_proved_to_be_of_sns_and_of_a_known_topic_does_nothing() {
    type Change = fn(&mut Value);
    let changes: [(&str, Change); 9] = [
        ("not signed by SNS", |said| said["Message"] = json!(said["Message"].as_str().unwrap().replace("errors", "x"))),
        ("not on the list", |said| said["TopicArn"] = json!("arn:aws:sns:us-east-1:999999999999:alarms")),
        ("not an address of SNS", |said| {
            said["SigningCertURL"] = json!("https://evil.example/SimpleNotificationService-0.pem")
        }),
        ("not an address of SNS", |said| {
            said["SigningCertURL"] =
                json!("https://sns.us-east-1.amazonaws.com.evil.example/SimpleNotificationService-0.pem");
        }),
        ("not an address of SNS", |said| {
            said["SigningCertURL"] = json!("http://sns.us-east-1.amazonaws.com/SimpleNotificationService-0.pem");
        }),
        ("not an address of SNS", |said| {
            said["SigningCertURL"] = json!("https://sns.eu-west-1.amazonaws.com/SimpleNotificationService-0.pem");
        }),
        ("set the topic's SignatureVersion to 2", |said| said["SignatureVersion"] = json!("1")),
        ("off our clock; at most 900 s", |said| {
            said["Timestamp"] = json!("2025-12-31T23:00:00.000Z");
            sign(said);
        }),
        ("not signed by SNS", |said| said["Signature"] = json!(STANDARD.encode([7; 256]))),
    ];
    for (words, change) in changes {
        let aws = shop();
        let mut said = message(&aws, "Notification", &alarm(&aws, "ALARM"));
        change(&mut said);
        let error = responder(&aws).delivered(said.to_string().as_bytes()).await.expect_err(words);
        assert_eq!(error.kind(), ErrorKind::Denied, "{}", error.chain());
        assert!(error.to_string().contains(words), "{words}: {}", error.chain());
        assert_eq!(weights(&aws), Some(("2".into(), 0.25)), "{words}");
    }
    let aws = shop();
    for body in ["", "{}", "[]", r#"{"Type":"Notification"}"#] {
        let error = responder(&aws).delivered(body.as_bytes()).await.expect_err("it is no message");
        assert_eq!(error.kind(), ErrorKind::Invalid, "{body}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_subscription_is_confirmed_when_it_was_asked_for_and_at_sns_only() {
    let aws = shop();
    let net = Net::default();
    let responder = Responder::new().topic(TOPIC).clock(aws.clock().clone()).fetch(net.clone());
    let body = message(&aws, "SubscriptionConfirmation", "You have chosen to subscribe").to_string();
    assert!(matches!(responder.delivered(body.as_bytes()).await, Ok(Answer::Nothing(_))));
    assert_eq!(net.0.load(Ordering::Relaxed), 1, "the certificate alone");
    let responder = responder.confirms_subscriptions();
    assert_eq!(responder.delivered(body.as_bytes()).await.expect("signed"), Answer::Confirmed(TOPIC.into()));
    assert_eq!(net.0.load(Ordering::Relaxed), 2, "the certificate is known by now");
    let mut elsewhere = message(&aws, "SubscriptionConfirmation", "You have chosen to subscribe");
    elsewhere["SubscribeURL"] = json!("https://evil.example/?Action=ConfirmSubscription&Token=token");
    sign(&mut elsewhere);
    let error = responder.delivered(elsewhere.to_string().as_bytes()).await.expect_err("not of SNS");
    assert_eq!((error.kind(), net.0.load(Ordering::Relaxed)), (ErrorKind::Denied, 2));
}

#[tokio::test(start_paused = true)]
async fn a_function_is_invoked_by_an_alarm_or_by_sns() {
    let aws = shop();
    let direct = json!({
        "source": "aws.cloudwatch", "alarmArn": "arn:aws:cloudwatch:us-east-1:123456789012:alarm:errors",
        "accountId": "123456789012", "time": "2026-01-01T00:00:00.000+0000", "region": "us-east-1",
        "alarmData": {
            "alarmName": "errors",
            "state": { "value": "ALARM", "reason": "Threshold Crossed", "timestamp": "2026-01-01T00:00:00.000+0000" },
            "previousState": { "value": "OK" },
        },
    });
    let answers = responder(&aws).invoked(&direct).await.expect("it is an alarm");
    assert!(matches!(answers[..], [Answer::TakenBack(_)]), "{answers:?}");
    aws.lambda().point("checkout", "live", "1", Some(("2", 0.25)));
    let mut by_sns = json!({ "Records": [{ "EventSource": "aws:sns", "Sns": {
        "Type": "Notification", "TopicArn": TOPIC, "Message": alarm(&aws, "ALARM"),
    }}]});
    let answers = responder(&aws).invoked(&by_sns).await.expect("it is of the topic");
    assert!(matches!(answers[..], [Answer::TakenBack(_)]), "{answers:?}");
    by_sns["Records"][0]["Sns"]["TopicArn"] = json!("arn:aws:sns:us-east-1:999999999999:other");
    assert_eq!(responder(&aws).invoked(&by_sns).await.expect_err("another topic").kind(), ErrorKind::Denied);
    assert_eq!(responder(&aws).invoked(&json!({})).await.expect_err("nothing").kind(), ErrorKind::Invalid);
}

#[tokio::test(start_paused = true)]
async fn somebody_else_s_write_and_a_lost_answer_are_looked_at_again() {
    let aws = shop();
    let body = message(&aws, "Notification", &alarm(&aws, "ALARM")).to_string();
    aws.fault(Fault::of("lambda:UpdateAlias", Trouble::LoseAnswer).times(3));
    let answer = responder(&aws).delivered(body.as_bytes()).await.expect("it landed");
    assert!(matches!(answer, Answer::Nothing(_) | Answer::TakenBack(_)), "{answer}");
    assert_eq!(weights(&aws), None);
}

#[tokio::test(start_paused = true)]
async fn a_running_rollout_is_asked_and_brings_the_alias_back_itself() {
    let aws = shop();
    aws.lambda().point("checkout", "live", "1", None);
    let store = Arc::new(Memory::new());
    let engine = Engine::builder(Arc::clone(&store)).clock(aws.clock().clone()).build().expect("it can be built");
    let alias = Alias::new(&aws.account(), "checkout:live").expect("a name");
    engine.register(Target::new("checkout:live", alias).expect("a name")).expect("it is new");
    let before = alarm(&aws, "ALARM");
    tokio::time::sleep(std::time::Duration::from_secs(60)).await;
    let plan = Plan::canary([10, 100], std::time::Duration::from_secs(600)).expect("a plan");
    let new = NewRollout::new("checkout:live", Revision::new("2").expect("an id"), plan).expect("a target");
    let handle = engine.start(new).await.expect("it starts");
    tokio::time::sleep(std::time::Duration::from_secs(60)).await;
    assert!(weights(&aws).is_some());

    let responder = responder(&aws).store(Arc::clone(&store));
    let old = message(&aws, "Notification", &before).to_string();
    let answer = responder.delivered(old.as_bytes()).await.expect("it is signed");
    assert!(answer.to_string().contains("before rollout"), "{answer}");
    let body = message(&aws, "Notification", &alarm(&aws, "ALARM")).to_string();
    let answer = responder.delivered(body.as_bytes()).await.expect("it is signed");
    assert_eq!(answer, Answer::Asked(handle.id().clone()));
    assert_eq!(handle.finished().await.exit_code(), 1, "rolled back: {:?}", handle.status().state);
    assert_eq!(weights(&aws), None);
}
