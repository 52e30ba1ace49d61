//! Messages to webhooks and chats, on real sockets.

use std::{
    collections::HashMap,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    process::{Command, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use rollback_core::{
    clock::{Clock as _, SystemClock},
    listener::{Listener as _, Slack, Tell, Webhook},
    web::Auth,
};
use serde_json::Value;

use crate::support::{
    self,
    events::{rolled_back, until},
    logs,
    raw::Raw,
};

/// What somebody posted, and when.
#[derive(Clone, Debug)]
struct Posted {
    line: String,
    headers: HashMap<String, String>,
    body: String,
    at: Instant,
}

/// A server that gives these answers, one a request, then the last one for ever. No answer: it hangs.
struct Receiver {
    url: String,
    posted: Arc<Mutex<Vec<Posted>>>,
}

impl Receiver {
    fn new(answers: &[&'static str]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/services/s3cr3t?key=s3cr3t", listener.local_addr().unwrap());
        let posted = Arc::<Mutex<Vec<Posted>>>::default();
        let (seen, answers) = (Arc::clone(&posted), answers.to_vec());
        std::thread::spawn(move || {
            let mut held = Vec::new();
            for connection in listener.incoming() {
                let mut connection = connection.unwrap();
                let count = {
                    let mut seen = seen.lock().unwrap();
                    seen.push(read(&connection));
                    seen.len()
                };
                match answers.get(count - 1).or_else(|| answers.last()) {
                    // Whoever went away does not want the answer.
                    Some(answer) => drop(connection.write_all(
                        format!("HTTP/1.1 {answer}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n").as_bytes(),
                    )),
                    None => held.push(connection),
                }
            }
        });
        Self { url, posted }
    }

    fn posted(&self) -> Vec<Posted> {
        self.posted.lock().unwrap().clone()
    }
}

#[expect(clippy::disallowed_methods, reason = "real sockets have real time")]
fn read(connection: &TcpStream) -> Posted {
    let mut lines = BufReader::new(connection);
    let mut line = String::new();
    lines.read_line(&mut line).unwrap();
    let mut headers = HashMap::new();
    loop {
        let mut header = String::new();
        lines.read_line(&mut header).unwrap();
        let Some((name, value)) = header.trim_end().split_once(": ") else { break };
        headers.insert(name.to_lowercase(), value.to_owned());
    }
    let mut body = vec![0; headers["content-length"].parse().unwrap()];
    lines.read_exact(&mut body).unwrap();
    Posted { line, headers, body: String::from_utf8(body).unwrap(), at: Instant::now() }
}

/// The parts of JSON Schema that ours is written in; anything else is a mistake of this test.
fn validate(schema: &Value, value: &Value, root: &Value, at: &str) {
    let schema = schema.as_object().unwrap();
    for (word, wanted) in schema {
        match word.as_str() {
            "$schema" | "$defs" | "title" | "description" | "examples" => {}
            "$ref" => {
                let name = wanted.as_str().unwrap().strip_prefix("#/$defs/").unwrap();
                validate(&root["$defs"][name], value, root, at);
            }
            "type" => {
                let is = match value {
                    Value::Null => "null",
                    Value::Bool(_) => "boolean",
                    Value::Number(number) if number.is_u64() || number.is_i64() => "integer",
                    Value::Number(_) => "number",
                    Value::String(_) => "string",
                    Value::Array(_) => "array",
                    Value::Object(_) => "object",
                };
                let admitted = wanted.as_array().map_or_else(|| vec![wanted], |all| all.iter().collect());
                assert!(admitted.iter().any(|one| *one == is), "{at} is {is}, not {wanted}: {value}");
            }
            "const" => assert_eq!(value, wanted, "{at}"),
            "enum" => assert!(wanted.as_array().unwrap().contains(value), "{at} is none of {wanted}: {value}"),
            "minimum" => assert!(value.as_i64().is_none_or(|value| value >= wanted.as_i64().unwrap()), "{at}: {value}"),
            "maximum" => assert!(value.as_i64().is_none_or(|value| value <= wanted.as_i64().unwrap()), "{at}: {value}"),
            "format" => {
                assert_eq!(wanted, "date-time", "{at}");
                assert!(value.as_str().is_none_or(|text| text.parse::<jiff::Timestamp>().is_ok()), "{at}: {value}");
            }
            "required" => {
                for name in wanted.as_array().unwrap() {
                    assert!(value.get(name.as_str().unwrap()).is_some(), "{at} lacks {name}: {value}");
                }
            }
            "properties" => {
                // Others may send more; ours sends what is described, so that nothing stays undescribed.
                for (name, value) in value.as_object().into_iter().flatten() {
                    let schema = wanted.get(name).unwrap_or_else(|| panic!("{at}.{name} is not described"));
                    validate(schema, value, root, &format!("{at}.{name}"));
                }
            }
            "items" => {
                for (index, value) in value.as_array().into_iter().flatten().enumerate() {
                    validate(wanted, value, root, &format!("{at}[{index}]"));
                }
            }
            word => panic!("this test does not know {word}, used at {at}"),
        }
    }
}

#[test]
fn every_event_of_a_rollout_is_posted_in_order_and_is_what_the_schema_says() {
    let receiver = Receiver::new(&["200 OK"]);
    let hook = Webhook::new(&receiver.url).unwrap().tell(Tell::Everything);
    let (tally, events) = (hook.tally(), rolled_back("checkout"));
    events.iter().for_each(|event| hook.on(event));
    drop(hook);
    let posted = receiver.posted();
    assert_eq!((posted.len(), tally.delivered()), (events.len(), events.len() as u64));
    let schema: Value = serde_json::from_str(Webhook::SCHEMA).unwrap();
    for (posted, event) in posted.iter().zip(&events) {
        assert_eq!(posted.line, "POST /services/s3cr3t?key=s3cr3t HTTP/1.1\r\n");
        assert_eq!(posted.headers["content-type"], "application/json");
        assert_eq!(posted.headers["x-rollback-event"], event.what.name());
        let body: Value = serde_json::from_str(&posted.body).unwrap();
        validate(&schema, &body, &schema, "event");
        assert_eq!(body["event"], event.what.name());
    }
    let last: Value = serde_json::from_str(&posted.last().unwrap().body).unwrap();
    assert_eq!(last["rollout"]["state"], "rolled_back");
    assert_eq!(last["brief"]["serves"], "v1 alone, as a look has shown.");
    assert_eq!(last["brief"]["not_restored"], serde_json::json!(["the database schema"]));
    assert_eq!(last["gates"][0]["facts"], serde_json::json!({ "failed": 37 }));
}

#[test]
fn by_default_only_decisions_are_told() {
    let events = rolled_back("checkout");
    let names = |tell: Tell| {
        let told = events.iter().filter(|event| tell.picks(event));
        let name = |event: &rollback_core::listener::RolloutEvent| match &event.what {
            rollback_core::rollout::What::Entered { to } => to.name(),
            what => what.name(),
        };
        told.map(name).collect::<Vec<_>>()
    };
    assert_eq!(names(Tell::default()), ["created", "tripped", "rolling_back", "rolled_back"]);
    assert_eq!(names(Tell::Ends), ["rolled_back"]);
    assert_eq!(names(Tell::When(|event| event.what.name() == "judged")).len(), 2);
}

#[test]
fn a_receiver_can_prove_who_wrote_a_message_and_when() {
    let receiver = Receiver::new(&["204 No Content"]);
    let hook = Webhook::new(&receiver.url).unwrap().signed("a long random key").unwrap();
    hook.on(&rolled_back("checkout")[0]);
    drop(hook);
    let posted = &receiver.posted()[0];
    let timestamp = &posted.headers["x-rollback-timestamp"];
    let age = SystemClock.now().as_second() - timestamp.parse::<i64>().unwrap();
    assert!((0..60).contains(&age), "{timestamp}");
    // Computed by somebody else's program.
    let openssl = Command::new("openssl")
        .args(["dgst", "-sha256", "-hmac", "a long random key"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn();
    let mut openssl = match openssl {
        Ok(openssl) => openssl,
        Err(e) => return support::skip("openssl", &e.to_string()),
    };
    write!(openssl.stdin.take().unwrap(), "{timestamp}:{}", posted.body).unwrap();
    let output = String::from_utf8(openssl.wait_with_output().unwrap().stdout).unwrap();
    let digest = output.trim().rsplit(' ').next().unwrap();
    assert_eq!(posted.headers["x-rollback-signature"], digest);
}

#[test]
fn a_message_is_tried_again_after_an_answer_that_may_pass_and_no_sooner_than_asked() {
    let receiver = Receiver::new(&["500 Oops", "429 Slow Down\r\nRetry-After: 2", "200 OK"]);
    let hook = Webhook::new(&receiver.url).unwrap().signed("key").unwrap();
    let tally = hook.tally();
    hook.on(&rolled_back("checkout")[0]);
    until("the message arrives", || tally.delivered() == 1);
    let posted = receiver.posted();
    assert_eq!(posted.len(), 3);
    let ids = posted.iter().map(|it| serde_json::from_str::<Value>(&it.body).unwrap()["id"].clone());
    assert_eq!(ids.collect::<std::collections::HashSet<_>>().len(), 1, "it is one message");
    assert!(posted[1].at - posted[0].at >= Duration::from_millis(400));
    assert!(posted[2].at - posted[1].at >= Duration::from_secs(2), "{:?}", posted[2].at - posted[1].at);
    assert_eq!((tally.given_up(), tally.dropped()), (0, 0));
}

#[test]
fn an_answer_that_will_not_pass_is_final() {
    for answer in ["400 Bad Request", "404 Not Found", "403 Forbidden", "302 Found\r\nLocation: http://evil.example/"] {
        let receiver = Receiver::new(&[answer]);
        let hook = Webhook::new(&receiver.url).unwrap();
        let tally = hook.tally();
        hook.on(&rolled_back("checkout")[0]);
        until(answer, || tally.given_up() == 1);
        assert_eq!((receiver.posted().len(), tally.delivered()), (1, 0), "{answer}");
    }
}

#[test]
fn after_eight_tries_a_message_is_given_up_and_at_the_end_nobody_waits_between_them() {
    let receiver = Receiver::new(&["503 Not Now\r\nRetry-After: 3600"]);
    let hook = Webhook::new(&receiver.url).unwrap();
    let tally = hook.tally();
    hook.on(&rolled_back("checkout")[0]);
    until("the first try", || !receiver.posted().is_empty());
    drop(hook);
    assert_eq!((receiver.posted().len(), tally.given_up(), tally.dropped()), (8, 1, 0));
}

/// A server that knows no such hook, and says back all it was told.
fn echo() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/services/s3cr3t?key=s3cr3t", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for connection in listener.incoming() {
            let mut connection = connection.unwrap();
            let heard = format!("{:?}", read(&connection));
            let length = heard.len();
            let head = "HTTP/1.1 404 no s3cr3t here\r\nConnection: close\r\nContent-Type: text/plain";
            drop(connection.write_all(format!("{head}\r\nContent-Length: {length}\r\n\r\n{heard}").as_bytes()));
        }
    });
    url
}

#[test]
fn the_log_says_what_became_of_a_message_and_no_secret() {
    // Installed before anything is said.
    logs::with("");
    let event = rolled_back("logged").remove(0);
    let rollout = format!("rollout={}", event.rollout.id());
    let nobody = "http://127.0.0.1:1/services/s3cr3t?key=s3cr3t".to_owned();
    for (url, why) in [(echo(), "404"), (nobody, "127.0.0.1")] {
        let hook =
            Webhook::new(&url).unwrap().signed("s3cr3t-key").unwrap().auth(Auth::bearer("s3cr3t-token").unwrap());
        let chat = Slack::new(&url).unwrap();
        let tallies = [hook.tally(), chat.tally()];
        let before = logs::with(&rollout).len();
        hook.on(&event);
        chat.on(&event);
        // Nobody waits between the tries any more.
        drop((hook, chat));
        until(why, || tallies.iter().all(|tally| tally.given_up() == 1));
        let lines = logs::with(&rollout).split_off(before);
        let told = |line: &&String| line.contains("a message was given up") && line.contains(why);
        assert_eq!(lines.iter().filter(told).count(), 2, "{lines:#?}");
        // Whoever said it: every line of the process counts.
        assert_eq!(logs::with("s3cr3t"), [""; 0]);
    }
}

#[test]
fn a_receiver_that_hangs_holds_nobody_up_and_what_does_not_fit_is_counted() {
    let receiver = Receiver::new(&[]);
    let hook = Webhook::new(&receiver.url).unwrap();
    let (tally, event) = (hook.tally(), rolled_back("checkout").remove(0));
    hook.on(&event);
    until("the first try", || !receiver.posted().is_empty());
    // From here on the thread waits for an answer, and the queue is empty.
    for _ in 0..300 {
        hook.on(&event);
    }
    assert_eq!((tally.dropped(), tally.delivered(), tally.given_up()), (300 - 256, 0, 0));
    drop(hook);
    assert_eq!(tally.dropped() + tally.given_up(), 301, "each message is accounted for: {tally:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_was_taken_is_not_sent_again_for_an_answer_that_is_long_or_slow() {
    let huge = "x".repeat(10_000_000);
    for receiver in
        [Raw::page("200 OK", "", &huge).await, Raw::drip().await, Raw::page("404 Not Found", "", &huge).await]
    {
        let hook = Webhook::new(receiver.url("")).unwrap();
        let tally = hook.tally();
        // It waits for what is under way when it is dropped.
        let sent = tokio::task::spawn_blocking(move || hook.on(&rolled_back("checkout")[0]));
        sent.await.unwrap();
        let heard = receiver.heard();
        assert_eq!((heard.len(), tally.delivered() + tally.given_up()), (1, 1), "{tally:?}");
    }
}

#[test]
fn a_chat_gets_a_message_that_a_person_can_read() {
    let receiver = Receiver::new(&["200 OK"]);
    let slack = Slack::new(&receiver.url).unwrap().tell(Tell::Ends);
    rolled_back("check<!channel>out").iter().for_each(|event| slack.on(event));
    drop(slack);
    let posted = receiver.posted();
    assert_eq!(posted.len(), 1);
    let body: Value = serde_json::from_str(&posted[0].body).unwrap();
    let text = body["text"].as_str().unwrap();
    assert!(text.starts_with(":rewind: *check&lt;!channel&gt;out: v2 was rolled back*\n"), "{text}");
    for line in [
        "*Revisions:* v1 (kept) and v2 (tried)",
        "*Why:* gate errors is unhealthy: 37 of 1,200 requests failed; at most 12 may",
        "*Serves now:* v1 alone, as a look has shown.",
        "*Not brought back:* the database schema",
        "*To do:* Find out what is wrong with v2",
    ] {
        assert!(text.contains(line), "{line} in {text}");
    }
}
