//! What happens to rollouts as messages on an SNS topic.
//!
//! # What it needs to be allowed
//! [`PUBLISH`], and [`LOOK`] for [`Topic::preflight`]; [`Topic::policy`] prints both. A topic that is encrypted with a key of
//! your own needs `kms:GenerateDataKey` and `kms:Decrypt` on that key as well.
//!
//! # What is known, and from where
//! The limits of subject, message and attributes: the API reference of Publish. That a FIFO topic forgets a
//! deduplication id after five minutes, and that protocols can be sent different texts: the developer guide.

use std::{fmt, sync::Arc};

use async_trait::async_trait;
use aws_sdk_sns::{
    Client,
    config::{Builder as Overrides, retry::RetryConfig},
    types::MessageAttributeValue,
};
use rollback_core::{
    Error, ErrorKind, Result,
    backend::Readiness,
    listener::{Channel, Courier, Listener, RolloutEvent, Tally, Tell},
};
use serde_json::{Value, json};

use crate::{
    account::Account,
    error::sorted,
    iam::{Permission, Policy},
};

/// Publishes events to a topic.
///
/// Programs (SQS, Lambda, HTTPS) get the JSON that core's webhooks post, described by `Webhook::SCHEMA`; e-mail gets the
/// plain text, SMS the title, which is the subject as well. Nothing sealed is in any of them. Four attributes are there to
/// filter by: `event`, `rollout`, `state`, `target`.
///
/// A message is tried up to eight times within some minutes, on a thread of its own, so a topic that is out of reach delays
/// no rollout; 256 may wait, and [`Tally`] counts what does not arrive. A message may arrive twice, with the same `id`; on a
/// FIFO topic (a name that ends in `.fifo`) SNS itself drops the second one, and keeps those of a target in order.
///
/// SNS takes 256 KB with the attributes. What is larger loses the facts of its gates, then the gates: the text says that
/// they are in the record. What is larger still is given up.
///
/// ```no_run
/// # async fn example() -> rollback_core::Result<()> {
/// use rollback_aws::{account::Account, sns::Topic};
/// use rollback_core::{engine::Engine, listener::Tell, store::Memory};
///
/// let account = Account::from_env().await?;
/// let topic = Topic::new(&account, "arn:aws:sns:eu-west-1:123456789012:rollouts")?.tell(Tell::Ends);
/// let tally = topic.tally();
/// let engine = Engine::builder(Memory::new()).listener(topic).build()?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Topic {
    publisher: Publisher,
    channel: Channel<Publisher>,
}

/// To publish.
pub const PUBLISH: Permission = Permission::new("sns:Publish", "publish messages");
/// To see whether the topic is there.
pub const LOOK: Permission = Permission::new("sns:GetTopicAttributes", "see whether the topic is there");

impl Topic {
    /// The most characters of a subject: SNS takes less than 100.
    pub const MAX_SUBJECT: usize = 99;
    /// What SNS takes of a message with its attributes, in bytes.
    pub const MAX_LEN: usize = 256 * 1024;

    /// The topic with this ARN. Nothing is sent yet.
    ///
    /// # Errors
    /// `Invalid` when it is no topic's ARN, or one of another region or partition than the account's.
    pub fn new(account: &Account, arn: &str) -> Result<Self> {
        Self::with_client(account.sns(), arn)
    }

    /// The same over a client of your own. Give it timeouts: one that has none can hang.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn with_client(client: Client, arn: &str) -> Result<Self> {
        let region = client.config().region().map(ToString::to_string).unwrap_or_default();
        is_topic(arn, &region)?;
        let publisher = Publisher { client, arn: arn.into() };
        Ok(Self { channel: Channel::new(publisher.clone()), publisher })
    }

    /// These events. By default [`Tell::Decisions`].
    #[must_use]
    pub fn tell(mut self, tell: Tell) -> Self {
        self.channel = self.channel.tell(tell);
        self
    }

    /// Counts what becomes of the messages.
    pub fn tally(&self) -> Tally {
        self.channel.tally()
    }

    /// The least that whoever publishes must be allowed.
    pub fn policy(&self) -> Policy {
        Policy::new().allow(&[PUBLISH, LOOK], [&*self.publisher.arn])
    }

    /// Whether the topic is there. That messages may be published shows only when one is.
    ///
    /// # Errors
    /// When it cannot be asked at all.
    pub async fn preflight(&self) -> Result<Readiness> {
        let Publisher { client, arn } = &self.publisher;
        let answer = client.get_topic_attributes().topic_arn(&**arn).send().await;
        let answer = answer.map(drop).map_err(|e| sorted(format_args!("reading the attributes of topic {arn}"), e));
        let mut ready =
            Readiness::default().not_provable("whether messages may be published, which shows with the first");
        if let Err(e) = &answer
            && e.kind() == ErrorKind::NotFound
        {
            return Ok(ready.refused(format!("there is no topic {arn}; create it, or name the right one")));
        }
        LOOK.prove(&mut ready, answer)?;
        Ok(ready)
    }
}

impl Listener for Topic {
    fn on(&self, event: &RolloutEvent) {
        self.channel.on(event);
    }
}

#[derive(Clone)]
struct Publisher {
    client: Client,
    arn: Arc<str>,
}

impl fmt::Debug for Publisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Publisher").field("topic", &self.arn).finish_non_exhaustive()
    }
}

#[async_trait]
impl Courier for Publisher {
    fn name(&self) -> &str {
        &self.arn
    }

    async fn carry(&self, event: &RolloutEvent, number: &str) -> Result<()> {
        let attributes = attributes(event);
        let room = Topic::MAX_LEN
            - attributes.iter().map(|(name, value)| name.len() + TYPE.len() + value.len()).sum::<usize>();
        let mut call = self
            .client
            .publish()
            .topic_arn(&*self.arn)
            .subject(subject(&event.title(Topic::MAX_SUBJECT)))
            .message_structure("json")
            .message(body(&event.to_json(number)?, &event.to_text(), &event.title(SMS), room)?);
        for (name, value) in attributes {
            let value = MessageAttributeValue::builder().data_type(TYPE).string_value(value).build();
            let value = value.map_err(|e| Error::new(ErrorKind::Internal, "an attribute has no type").because(e))?;
            call = call.message_attributes(name, value);
        }
        if self.arn.ends_with(FIFO) {
            let group = group(event.rollout.change.target.as_str());
            call = call.message_group_id(group).message_deduplication_id(number);
        }
        // Tried again by the channel, which knows how long, and says so.
        let once = Overrides::new().retry_config(RetryConfig::disabled());
        let sent = call.customize().config_override(once).send().await;
        sent.map(drop).map_err(|e| sorted(format_args!("publishing to topic {}", self.arn), e))
    }
}

/// What subscribers can filter by.
fn attributes(event: &RolloutEvent) -> [(&'static str, String); 4] {
    let rollout = &event.rollout;
    [
        ("event", event.what.name().to_owned()),
        ("rollout", rollout.id().to_string()),
        ("state", rollout.state.name().to_owned()),
        ("target", rollout.change.target.to_string()),
    ]
}

/// A subject as SNS and every mail program take it: ASCII, no control characters, beginning with none of its blanks.
fn subject(title: &str) -> String {
    let plain = |c: char| if c.is_ascii_graphic() || c == ' ' { c } else { '?' };
    let subject: String = title.chars().map(plain).take(Topic::MAX_SUBJECT).collect();
    match subject.trim() {
        "" => "rollout".into(),
        subject => subject.into(),
    }
}

/// The message by protocol, in so many bytes.
fn body(json: &str, text: &str, title: &str, room: usize) -> Result<String> {
    let whole = |json: &str, text: &str| json!({ "default": json, "email": text, "sms": title }).to_string();
    let message = whole(json, text);
    if message.len() <= room {
        return Ok(message);
    }
    let mut told: Value = serde_json::from_str(json)
        .map_err(|e| Error::new(ErrorKind::Internal, "an event cannot be read as JSON").because(e))?;
    let cut = "The rollout's record has more: it does not fit into a message.\n";
    for less in [without_facts, without_gates] {
        less(&mut told);
        // What people read is cut by lines, from its end.
        for share in [2, 8] {
            let text: String = text
                .split_inclusive('\n')
                .scan(0, |len, line| {
                    *len += line.len();
                    (*len <= room / share / 2).then_some(line)
                })
                .collect();
            let message = whole(&told.to_string(), &format!("{text}{cut}"));
            if message.len() <= room {
                return Ok(message);
            }
        }
    }
    let said =
        format!("a message has {} bytes even without its gates; SNS takes {room} beside the attributes", message.len());
    Err(Error::invalid(said))
}

fn without_facts(told: &mut Value) {
    for gate in told["gates"].as_array_mut().into_iter().flatten() {
        if let Some(gate) = gate.as_object_mut() {
            gate.remove("facts");
        }
    }
}

fn without_gates(told: &mut Value) {
    told["gates"] = json!([]);
}

/// The group of a target: what a FIFO topic takes for one, up to 128 letters, digits and signs. Targets that look alike may
/// share one, which costs nothing but time.
fn group(target: &str) -> String {
    let plain = |c: char| if c.is_ascii_graphic() { c } else { '-' };
    target.chars().map(plain).take(128).collect()
}

fn is_topic(arn: &str, region: &str) -> Result<()> {
    let words: Vec<&str> = arn.split(':').collect();
    let [_, partition, "sns", at, account, name] = words[..] else { return Err(no_topic(arn)) };
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-".contains(c);
    let bare = name.strip_suffix(FIFO).unwrap_or(name);
    let numbered = account.len() == 12 && account.bytes().all(|b| b.is_ascii_digit());
    if words[0] != "arn" || !numbered || bare.is_empty() || !bare.chars().all(plain) {
        return Err(no_topic(arn));
    }
    if at != region || partition != crate::account::partition(region) {
        return Err(Error::invalid(format!(
            "topic {arn} is of region {at}, and the client of {region}; open the account in the topic's region"
        )));
    }
    Ok(())
}

fn no_topic(arn: &str) -> Error {
    Error::invalid(format!("{arn:?} is no topic's ARN; one as arn:aws:sns:eu-west-1:123456789012:rollouts is accepted"))
}

/// The type of all attributes.
const TYPE: &str = "String";
const FIFO: &str = ".fifo";
/// The most characters of an SMS in one piece.
const SMS: usize = 140;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subject_is_short_ascii_without_control_characters() {
        for (title, wanted) in [
            ("checkout: v2 was rolled back", "checkout: v2 was rolled back"),
            (" naïve\u{1F680}\r\nBcc: x", "na?ve???Bcc: x"),
            ("\u{7}", "?"),
            ("  ", "rollout"),
        ] {
            assert_eq!(subject(title), wanted);
        }
        assert_eq!(subject(&"x".repeat(500)).len(), 99);
    }

    #[test]
    fn what_is_too_large_loses_facts_then_gates_and_is_refused_with_its_size_at_last() {
        let gate = json!({ "name": "g", "facts": { "f": "y".repeat(3000) }, "summary": "s".repeat(1000) });
        let json = json!({ "version": 1, "gates": [gate] }).to_string();
        let text = "line of text\n".repeat(50);
        let read = |message: &str| -> (Value, String) {
            let bodies: Value = serde_json::from_str(message).unwrap();
            let told = serde_json::from_str(bodies["default"].as_str().unwrap()).unwrap();
            (told, bodies["email"].as_str().unwrap().to_owned())
        };
        let (told, email) = read(&body(&json, &text, "t", 10_000).unwrap());
        assert_eq!((told["gates"][0]["facts"]["f"].as_str().unwrap().len(), email), (3000, text.clone()));
        let message = body(&json, &text, "t", 2500).unwrap();
        assert!(message.len() <= 2500);
        let (told, email) = read(&message);
        assert_eq!((&told["gates"][0]["facts"], &told["gates"][0]["name"]), (&Value::Null, &json!("g")));
        assert!(email.ends_with("it does not fit into a message.\n"), "{email}");
        let (told, _) = read(&body(&json, &text, "t", 800).unwrap());
        assert_eq!(told["gates"], json!([]));
        let error = body(&json, &text, "t", 100).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.to_string().contains("SNS takes 100 beside the attributes"), "{error}");
    }

    #[test]
    fn only_topics_of_the_clients_region_are_accepted() {
        let region = "eu-west-1";
        assert!(is_topic("arn:aws:sns:eu-west-1:123456789012:rollouts.fifo", region).is_ok());
        for bad in [
            "rollouts",
            "arn:aws:sqs:eu-west-1:123456789012:rollouts",
            "arn:aws:sns:eu-west-1:123456789012:",
            "arn:aws:sns:eu-west-1:1234:rollouts",
            "arn:aws:sns:us-east-1:123456789012:rollouts",
            "arn:aws-cn:sns:eu-west-1:123456789012:rollouts",
            "arn:aws:sns:eu-west-1:123456789012:rollouts:9c4b8a1c-0000-4000-8000-000000000000",
        ] {
            assert_eq!(is_topic(bad, region).unwrap_err().kind(), ErrorKind::Invalid, "{bad}");
        }
    }
}
