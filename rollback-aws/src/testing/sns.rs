//! SNS's room: topics, and what was published to them.
//!
//! The limits are those of the API reference and the developer guide: a subject of less than 100 characters without
//! control characters, 256 KB for a message with its attributes, a `default` in a message by protocol, a group and a
//! deduplication id for FIFO topics, which forget a deduplication id after five minutes. Nothing is delivered: what was
//! taken is there to look at ([`Hands::published`]).
//!
//! Not simulated, and refused in so many words: subscriptions, phone numbers, endpoints of applications, batches.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use http::{Request, Response};
use jiff::{SignedDuration, Timestamp};
use rollback_core::clock::Clock as _;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{
    ACCOUNT, Simulator,
    wire::{self, Called, Protocol, Refusal, Service},
};

/// What SNS knows.
#[derive(Debug)]
pub(super) struct Room {
    region: String,
    /// By ARN.
    topics: BTreeMap<String, Topic>,
}

#[derive(Debug, Default)]
struct Topic {
    by_content: bool,
    published: Vec<Message>,
    /// Deduplication ids with the message that they were of.
    seen: BTreeMap<String, (Timestamp, String)>,
}

/// A message that a topic has taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// SNS's own id of it.
    pub id: String,
    /// When it was taken.
    pub at: Timestamp,
    /// The subject, if it has one.
    pub subject: Option<String>,
    /// What each protocol gets, by `default`, `email`, `sms` and so on.
    pub bodies: BTreeMap<String, String>,
    /// Its attributes, those of text.
    pub attributes: BTreeMap<String, String>,
    /// The group within which a FIFO topic keeps the order.
    pub group: Option<String>,
}

/// Topics, without an HTTP call: somebody else's hands.
#[derive(Clone, Copy, Debug)]
pub struct Hands<'a>(pub(in crate::testing) &'a Simulator);

impl Hands<'_> {
    /// A topic of this name, and its ARN. A name that ends in `.fifo` makes a FIFO topic.
    pub fn topic(&self, name: &str) -> String {
        let mut world = self.0.world();
        let arn = world.sns.arn(name);
        world.sns.topics.entry(arn.clone()).or_default();
        arn
    }

    /// Removes a topic.
    pub fn remove(&self, arn: &str) {
        self.0.world().sns.topics.remove(arn);
    }

    /// What a topic has taken, in order.
    pub fn published(&self, arn: &str) -> Vec<Message> {
        self.0.world().sns.topics.get(arn).map(|topic| topic.published.clone()).unwrap_or_default()
    }

    /// Waits until a topic has taken so many messages, in real time: couriers run beside the test.
    ///
    /// # Panics
    /// When it has not within half a minute.
    pub async fn until_published(&self, arn: &str, messages: usize) -> Vec<Message> {
        for _ in 0..600 {
            let published = self.published(arn);
            if published.len() >= messages {
                return published;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("{} of {messages} messages in half a minute at {:?}", self.published(arn).len(), self.0.clock().now())
    }
}

/// The operation of a request for SNS.
pub(super) fn route(request: &Request<Bytes>) -> Option<Called> {
    let form = wire::query(request)?;
    let operation = form.get("Action").filter(|_| form.get("Version").is_some_and(|version| version == VERSION))?;
    Some(Called { service: Service::Sns, protocol: Protocol::Query, operation: operation.clone() })
}

/// An error of the front door as SNS spells it.
pub(super) fn spelled(refusal: &Refusal) -> Refusal {
    let code = match refusal.code.as_str() {
        "AccessDeniedException" => "AuthorizationError",
        "ExpiredTokenException" => "ExpiredToken",
        "InvalidSignatureException" => "SignatureDoesNotMatch",
        "MissingAuthenticationTokenException" => "MissingAuthenticationToken",
        other => other,
    };
    Refusal { code: code.into(), ..refusal.clone() }
}

impl Room {
    pub(super) fn new(region: &str) -> Self {
        Self { region: region.into(), topics: BTreeMap::new() }
    }

    fn arn(&self, name: &str) -> String {
        format!("arn:{}:sns:{}:{ACCOUNT}:{name}", crate::account::partition(&self.region), self.region)
    }

    pub(super) fn answer(
        &mut self,
        called: &Called,
        request: &Request<Bytes>,
        now: Timestamp,
    ) -> Result<Response<Bytes>, Refusal> {
        let form = wire::query(request).unwrap_or_default();
        let said = match called.operation.as_str() {
            "CreateTopic" => Some(self.create(&form)?),
            "DeleteTopic" => {
                self.topics.remove(required(&form, "TopicArn")?);
                None
            }
            "GetTopicAttributes" => Some(self.attributes(&form)?),
            "Publish" => Some(self.publish(&form, now)?),
            other => return Err(Refusal::new(400, "InvalidAction", format!("{other} of SNS is not simulated"))),
        };
        Ok(wire::query_answer(&called.operation, NAMESPACE, said.as_ref()))
    }

    fn create(&mut self, form: &Form) -> Result<Value, Refusal> {
        let name = required(form, "Name")?;
        let plain = |c: char| c.is_ascii_alphanumeric() || "_-".contains(c);
        let bare = name.strip_suffix(".fifo").unwrap_or(name);
        let attributes = entries(form, "Attributes", "key", "value");
        let is = |name: &str| attributes.iter().any(|(key, value)| key == name && value == "true");
        if bare.is_empty() || name.len() > 256 || !bare.chars().all(plain) || is("FifoTopic") != name.ends_with(".fifo")
        {
            return Err(invalid("Topic Name"));
        }
        let arn = self.arn(name);
        let topic = self.topics.entry(arn.clone()).or_default();
        topic.by_content = is("ContentBasedDeduplication");
        Ok(json!({ "TopicArn": arn }))
    }

    fn topic(&mut self, arn: &str) -> Result<&mut Topic, Refusal> {
        self.topics.get_mut(arn).ok_or_else(|| Refusal::new(404, "NotFound", "Topic does not exist"))
    }

    fn attributes(&mut self, form: &Form) -> Result<Value, Refusal> {
        let arn = required(form, "TopicArn")?;
        let topic = self.topic(arn)?;
        let mut all = vec![("TopicArn", arn.to_owned()), ("Owner", ACCOUNT.to_owned())];
        if arn.ends_with(".fifo") {
            all.push(("FifoTopic", "true".into()));
            all.push(("ContentBasedDeduplication", topic.by_content.to_string()));
        }
        let entries: Vec<Value> = all.into_iter().map(|(key, value)| json!({ "key": key, "value": value })).collect();
        Ok(json!({ "Attributes": { "entry": entries } }))
    }

    fn publish(&mut self, form: &Form, now: Timestamp) -> Result<Value, Refusal> {
        for other in ["TargetArn", "PhoneNumber"] {
            if form.contains_key(other) {
                return Err(Refusal::new(400, "InvalidAction", format!("{other} of SNS is not simulated")));
            }
        }
        let arn = required(form, "TopicArn")?;
        let is_fifo = arn.ends_with(".fifo");
        let topic = self.topic(arn)?;
        let message = form.get("Message").filter(|text| !text.is_empty()).ok_or_else(|| invalid("Empty message"))?;
        let subject = form.get("Subject");
        if let Some(subject) = subject
            && (subject.is_empty() || subject.chars().count() >= 100 || subject.chars().any(char::is_control))
        {
            return Err(invalid("Subject"));
        }
        let mut attributes = BTreeMap::new();
        let mut size = message.len();
        for at in 1.. {
            let member = |name: &str| form.get(&format!("MessageAttributes.entry.{at}.{name}"));
            let Some(name) = member("Name") else { break };
            let kind =
                member("Value.DataType").ok_or_else(|| invalid_value("The message attribute must have a type"))?;
            let value = member("Value.StringValue").or_else(|| member("Value.BinaryValue"));
            let value = value.filter(|value| !value.is_empty()).ok_or_else(|| {
                invalid_value(format!("The message attribute '{name}' must contain non-empty message attribute value"))
            })?;
            let plain = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
            if name.len() > 256 || !name.chars().all(plain) {
                return Err(invalid_value(format!("The message attribute name '{name}' is invalid")));
            }
            size += name.len() + kind.len() + value.len();
            attributes.insert(name.clone(), value.clone());
        }
        if size > LIMIT {
            return Err(invalid("Message too long"));
        }
        let bodies = match form.get("MessageStructure").map(String::as_str) {
            None => BTreeMap::from([("default".to_owned(), message.clone())]),
            Some("json") => {
                let bodies: BTreeMap<String, String> = serde_json::from_str(message)
                    .map_err(|_| invalid("Message Structure - JSON message body failed to parse"))?;
                if !bodies.contains_key("default") {
                    return Err(invalid("Message Structure - No default entry in JSON message body"));
                }
                bodies
            }
            Some(_) => return Err(invalid("MessageStructure")),
        };
        let group = form.get("MessageGroupId");
        let mut once = form.get("MessageDeduplicationId").cloned();
        if is_fifo {
            if group.is_none() {
                return Err(invalid("The MessageGroupId parameter is required for FIFO topics"));
            }
            if topic.by_content {
                once.get_or_insert_with(|| message.clone());
            }
            let once = once.as_ref().ok_or_else(|| {
                invalid(
                    "The topic should either have ContentBasedDeduplication enabled or MessageDeduplicationId provided \
                     explicitly",
                )
            })?;
            topic.seen.retain(|_, (at, _)| now.duration_since(*at) < ONCE);
            if let Some((_, id)) = topic.seen.get(once) {
                return Ok(json!({ "MessageId": id }));
            }
        }
        let id = Uuid::new_v4().to_string();
        if let Some(once) = once {
            topic.seen.insert(once, (now, id.clone()));
        }
        let (subject, group) = (subject.cloned(), group.cloned());
        topic.published.push(Message { id: id.clone(), at: now, subject, bodies, attributes, group });
        let mut said = json!({ "MessageId": id });
        if is_fifo {
            said["SequenceNumber"] = json!(format!("{:020}", topic.published.len()));
        }
        Ok(said)
    }
}

type Form = BTreeMap<String, String>;

fn required<'a>(form: &'a Form, name: &str) -> Result<&'a str, Refusal> {
    let given = form.get(name).map(String::as_str).filter(|given| !given.is_empty());
    given.ok_or_else(|| invalid(&format!("{name} Reason: no value for required parameter")))
}

/// The entries of a map in a form.
fn entries(form: &Form, name: &str, key: &str, value: &str) -> Vec<(String, String)> {
    let member = |at: usize, part: &str| form.get(&format!("{name}.entry.{at}.{part}")).cloned();
    (1..).map_while(|at| Some((member(at, key)?, member(at, value)?))).collect()
}

fn invalid(what: &str) -> Refusal {
    Refusal::new(400, "InvalidParameter", format!("Invalid parameter: {what}"))
}

fn invalid_value(what: impl Into<String>) -> Refusal {
    Refusal::new(400, "ParameterValueInvalid", what)
}

pub(super) const NAMESPACE: &str = "http://sns.amazonaws.com/doc/2010-03-31/";
const VERSION: &str = "2010-03-31";
/// What a message may have with its attributes: 256 KB.
const LIMIT: usize = 256 * 1024;
/// For so long a FIFO topic knows a message again.
const ONCE: SignedDuration = SignedDuration::from_mins(5);
