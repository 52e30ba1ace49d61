//! alarm-responder as Lambda runs it: the runtime API gives it events and takes its answers.

use std::{process::Stdio, sync::Arc};

use axum::{
    Router,
    extract::{Path, State},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use rollback_aws::testing::{Server, Simulator, lambda::Build};
use serde_json::{Value, json};
use tokio::{
    net::TcpListener,
    process::{Child, Command},
    sync::{Mutex, mpsc},
};

const RESPONDER: &str = env!("CARGO_BIN_EXE_alarm-responder");
const TOPIC: &str = "arn:aws:sns:us-east-1:123456789012:alarms";

/// Lambda's side of a function: <https://docs.aws.amazon.com/lambda/latest/dg/runtimes-api.html>.
struct Lambda {
    address: String,
    events: mpsc::UnboundedSender<Value>,
    /// What it answered: whether it went well, and the body.
    answers: mpsc::UnboundedReceiver<(bool, Value)>,
}

struct Queues {
    events: Mutex<mpsc::UnboundedReceiver<Value>>,
    answers: mpsc::UnboundedSender<(bool, Value)>,
}

impl Lambda {
    async fn open() -> Self {
        let (events, to_give) = mpsc::unbounded_channel();
        let (given, answers) = mpsc::unbounded_channel();
        let queues = Arc::new(Queues { events: Mutex::new(to_give), answers: given });
        let router = Router::new()
            .route("/2018-06-01/runtime/invocation/next", get(next))
            .route("/2018-06-01/runtime/invocation/{id}/{end}", post(ended))
            .with_state(queues);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { address, events, answers }
    }

    fn run(&self, aws: &Server, rules: &str) -> Child {
        let mut command = Command::new(RESPONDER);
        command.env("AWS_LAMBDA_RUNTIME_API", &self.address);
        for (name, value) in [
            ("AWS_LAMBDA_FUNCTION_NAME", "alarm-responder"),
            ("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "128"),
            ("AWS_LAMBDA_FUNCTION_VERSION", "1"),
            ("AWS_LAMBDA_LOG_GROUP_NAME", "/aws/lambda/alarm-responder"),
            ("AWS_LAMBDA_LOG_STREAM_NAME", "1"),
            ("AWS_REGION", "us-east-1"),
            ("AWS_ACCESS_KEY_ID", "AKIDSOMEBODY"),
            ("AWS_SECRET_ACCESS_KEY", "hunter2"),
            ("RULES", rules),
            ("TOPICS", TOPIC),
        ] {
            command.env(name, value);
        }
        for name in ["HTTP_PROXY", "http_proxy", "AWS_PROFILE"] {
            command.env_remove(name);
        }
        command.env("AWS_ENDPOINT_URL", aws.endpoint_url());
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true).spawn().unwrap()
    }

    async fn invoke(&mut self, event: Value) -> (bool, Value) {
        self.events.send(event).unwrap();
        self.answers.recv().await.unwrap()
    }
}

async fn next(State(queues): State<Arc<Queues>>) -> Response {
    let Some(event) = queues.events.lock().await.recv().await else {
        return StatusCode::GONE.into_response();
    };
    let headers = [
        ("lambda-runtime-aws-request-id", "8476a536-e9f4-11e8-9739-2dfe598c3fcd"),
        ("lambda-runtime-deadline-ms", "32503680000000"),
        ("lambda-runtime-invoked-function-arn", "arn:aws:lambda:us-east-1:123456789012:function:alarm-responder"),
    ];
    (headers, event.to_string()).into_response()
}

async fn ended(State(queues): State<Arc<Queues>>, Path((_, end)): Path<(String, String)>, body: String) -> StatusCode {
    let body = serde_json::from_str(&body).unwrap_or(Value::String(body));
    queues.answers.send((end == "response", body)).unwrap();
    StatusCode::ACCEPTED
}

fn shop() -> Simulator {
    let aws = Simulator::new();
    aws.lambda().publish("checkout", &Build::new("v1"));
    aws.lambda().publish("checkout", &Build::new("v2"));
    aws.lambda().point("checkout", "live", "1", Some(("2", 0.25)));
    aws
}

fn alarm(name: &str, state: &str) -> Value {
    json!({
        "source": "aws.cloudwatch", "alarmArn": format!("arn:aws:cloudwatch:us-east-1:123456789012:alarm:{name}"),
        "accountId": "123456789012", "time": "2026-01-01T00:00:00.000+0000", "region": "us-east-1",
        "alarmData": {
            "alarmName": name,
            "state": { "value": state, "reason": "Threshold Crossed", "timestamp": "2026-01-01T00:00:00.000+0000" },
            "previousState": { "value": "OK" },
        },
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn an_alarm_invokes_it_and_the_alias_is_back() {
    let aws = shop();
    let server = aws.listen("127.0.0.1:0").await.unwrap();
    let mut lambda = Lambda::open().await;
    let _function = lambda.run(&server, "checkout-errors=checkout:live");

    assert!(lambda.invoke(alarm("checkout-errors", "OK")).await.0);
    assert!(aws.lambda().alias("checkout", "live").unwrap().other.is_some());
    let (well, answer) = lambda.invoke(alarm("checkout-errors", "ALARM")).await;
    assert!(well, "{answer}");
    assert_eq!(answer, json!(["taken back: the alias checkout:live is back at version 1; 2 had 25 %"]));
    assert!(aws.lambda().alias("checkout", "live").unwrap().other.is_none());

    // SNS tries again for hours when a function fails: so this one must, when nothing could be done.
    aws.lambda().point("checkout", "live", "1", Some(("2", 0.25)));
    aws.deny("lambda:UpdateAlias");
    let text = alarm_text();
    let (well, answer) = lambda.invoke(by_sns(TOPIC, &text)).await;
    assert!(!well && answer["errorMessage"].as_str().unwrap().contains("lambda:UpdateAlias"), "{answer}");
    aws.allow("lambda:UpdateAlias");
    assert!(lambda.invoke(by_sns(TOPIC, &text)).await.0);
    assert!(aws.lambda().alias("checkout", "live").unwrap().other.is_none());
    let (well, answer) = lambda.invoke(by_sns("arn:aws:sns:us-east-1:999999999999:alarms", &text)).await;
    assert!(!well && answer["errorMessage"].as_str().unwrap().contains("not on the list"), "{answer}");
}

fn alarm_text() -> String {
    json!({
        "AlarmName": "checkout-errors", "AWSAccountId": "123456789012", "NewStateValue": "ALARM", "OldStateValue": "OK",
        "NewStateReason": "Threshold Crossed", "Region": "US East (N. Virginia)",
        "StateChangeTime": "2026-01-01T00:00:00.000+0000",
    })
    .to_string()
}

fn by_sns(topic: &str, text: &str) -> Value {
    json!({ "Records": [{ "EventSource": "aws:sns", "Sns": {
        "Type": "Notification", "TopicArn": topic, "Message": text,
    }}]})
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_that_say_nothing_are_refused_before_it_takes_an_event() {
    let aws = shop();
    let server = aws.listen("127.0.0.1:0").await.unwrap();
    let lambda = Lambda::open().await;
    for (rules, words) in [("", "RULES is empty"), ("checkout:live", "is no rule"), ("errors=checkout", "is no alias")]
    {
        let output = lambda.run(&server, rules).wait_with_output().await.unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains(words), "{rules:?}: {said}");
        assert!(!said.contains("hunter2") && !said.contains("kind:"), "{said}");
    }
}
