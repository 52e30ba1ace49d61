//! From an alarm to the way back without a gate: "alarm → SNS → function → rollback", done once.
//!
//! A [`Responder`] takes what CloudWatch sends when an alarm changes its state: as SNS delivers it over HTTPS
//! ([`Responder::delivered`]), and as a Lambda function gets it, from SNS or straight from the alarm
//! ([`Responder::invoked`]). It asks the running rollout to go back, through the store, or takes the alias back itself
//! where no rollout runs.
//!
//! ```no_run
//! # async fn example(body: &[u8]) -> rollback_core::Result<()> {
//! use rollback_aws::{account::Account, responder::Responder};
//!
//! let account = Account::from_env().await?;
//! let responder = Responder::new()
//!     .topic("arn:aws:sns:us-east-1:123456789012:alarms")
//!     .alias("checkout-prod-alias-errors", &account, "checkout:live")?;
//! println!("{}", responder.delivered(body).await?);
//! # Ok(())
//! # }
//! ```
//!
//! # Whom it believes
//! A delivery over HTTPS must be of a topic on the list, dated within a quarter of an hour, and signed with a certificate
//! that `https://sns.REGION.amazonaws.com` serves, of the topic's own region. Signatures must be of version 2 (SHA-256):
//! set the topic's attribute `SignatureVersion` to 2, since SNS signs with SHA-1 unless told. What a Lambda function is
//! invoked with is believed because only its own policy lets anybody invoke it; topics are compared with the list there too.
//!
//! # What it needs to be allowed
//! [`TAKE_BACK`] on the function of each alias; for rollouts only what the store needs.

mod sns;

use std::{fmt, sync::Arc, time::Duration};

use aws_sdk_lambda::types::AliasRoutingConfiguration;
use jiff::{SignedDuration, Timestamp};
use rollback_core::{
    Error, ErrorKind, Result,
    clock::{Clock, SystemClock},
    model::{Note, RolloutId, TargetId},
    request::{Ask, Request},
    rollout::Rollout,
    store::Store,
    web,
};
use serde_json::Value;

pub use self::sns::Fetch;
use self::sns::{Message, Signatures};
use crate::{account::Account, error::sorted, iam::Permission};

/// What taking an alias back needs.
pub const TAKE_BACK: &[Permission] = &[
    Permission::new("lambda:GetAlias", "see where the alias points"),
    Permission::new("lambda:UpdateAlias", "take the weights off the alias"),
];

/// Answers alarms by rolling back. Made once; its methods may be called from many tasks.
#[derive(Debug)]
pub struct Responder {
    topics: Vec<String>,
    rules: Vec<Rule>,
    store: Option<Arc<dyn Store>>,
    signatures: Signatures,
    clock: Arc<dyn Clock>,
    max_age: Duration,
    confirms: bool,
}

/// What an alarm is about.
#[derive(Debug)]
struct Rule {
    alarm: String,
    target: TargetId,
    alias: Option<Alias>,
}

#[derive(Debug)]
struct Alias {
    client: aws_sdk_lambda::Client,
    function: String,
    name: String,
}

/// What came of an alarm.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The open rollout of the target was asked to go back.
    Asked(RolloutId),
    /// The alias was pointed at its own version alone.
    TakenBack(Note),
    /// There was nothing to take back, or it is none of our business: why.
    Nothing(Note),
    /// The subscription to this topic was confirmed.
    Confirmed(String),
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Asked(rollout) => write!(f, "rollout {rollout} was asked to go back"),
            Self::TakenBack(what) => write!(f, "taken back: {what}"),
            Self::Nothing(why) => write!(f, "nothing to do: {why}"),
            Self::Confirmed(topic) => write!(f, "the subscription to {topic} was confirmed"),
        }
    }
}

/// An alarm that changed its state, however it was told.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Changed {
    alarm: String,
    state: String,
    reason: String,
    at: Option<Timestamp>,
}

impl Responder {
    /// One that believes no topic and has no rules yet.
    pub fn new() -> Self {
        Self {
            topics: Vec::new(),
            rules: Vec::new(),
            store: None,
            signatures: Signatures::default(),
            clock: Arc::new(SystemClock),
            max_age: Duration::from_secs(15 * 60),
            confirms: false,
        }
    }

    /// Believes messages of this topic, by ARN.
    #[must_use]
    pub fn topic(mut self, arn: impl Into<String>) -> Self {
        self.topics.push(arn.into());
        self
    }

    /// Confirms subscriptions to topics on the list, which SNS asks for before it delivers anything.
    #[must_use]
    pub const fn confirms_subscriptions(mut self) -> Self {
        self.confirms = true;
        self
    }

    /// When this alarm fires, rolls this target back: its open rollout is asked to.
    ///
    /// # Errors
    /// `Invalid` when the target's id is none.
    pub fn rollout(mut self, alarm: impl Into<String>, target: &str) -> Result<Self> {
        self.rules.push(Rule { alarm: alarm.into(), target: TargetId::try_from(target)?, alias: None });
        Ok(self)
    }

    /// When this alarm fires, rolls back what the alias `FUNCTION:ALIAS` serves: the open rollout of the target of that name
    /// is asked to, and where none is driven, the alias is pointed at its own version alone.
    ///
    /// An alias that has no weights stays as it is: which version was good before is known to rollouts only.
    ///
    /// # Errors
    /// `Invalid` when the name is not of this form.
    pub fn alias(mut self, alarm: impl Into<String>, account: &Account, name: &str) -> Result<Self> {
        let parts = name.split_once(':').filter(|(function, alias)| !function.is_empty() && !alias.is_empty());
        let (function, alias) = parts.filter(|(_, alias)| !alias.contains(':')).ok_or_else(|| {
            Error::invalid(format!("{name:?} is no alias; FUNCTION:ALIAS is accepted, as checkout:live"))
        })?;
        let alias = Alias { client: account.lambda(), function: function.into(), name: alias.into() };
        self.rules.push(Rule { alarm: alarm.into(), target: TargetId::try_from(name)?, alias: Some(alias) });
        Ok(self)
    }

    /// Where rollouts are recorded: the store that their drivers use.
    #[must_use]
    pub fn store(mut self, store: impl Store) -> Self {
        self.store = Some(Arc::new(store));
        self
    }

    /// With this clock instead of the machine's.
    #[must_use]
    pub fn clock(mut self, clock: impl Clock) -> Self {
        self.clock = Arc::new(clock);
        self
    }

    /// Fetches certificates and confirms subscriptions by this, instead of our HTTP client.
    #[must_use]
    pub fn fetch(mut self, fetch: impl Fetch) -> Self {
        self.signatures = Signatures::by(fetch);
        self
    }

    /// Answers the body of an HTTPS request that SNS sent. Saying it twice is harmless.
    ///
    /// Answer the request with 200 for `Ok`, so that SNS does not deliver it again; with 403 for `Denied`, 400 for
    /// `Invalid`, and 500 for everything else.
    ///
    /// # Errors
    /// `Denied` when it is not believed, `Invalid` when it is no message of SNS; else what kept the rollback from being
    /// asked for.
    pub async fn delivered(&self, body: &[u8]) -> Result<Answer> {
        let message = Message::read(body)?;
        self.on_the_list(&message.topic)?;
        self.signatures.check(&message).await?;
        self.is_recent(&message)?;
        match message.kind.as_str() {
            "Notification" => self.heard(&message.text).await,
            "SubscriptionConfirmation" if self.confirms => {
                self.signatures.confirm(&message).await?;
                Ok(Answer::Confirmed(message.topic))
            }
            other => Ok(Answer::Nothing(format!("a message of the kind {other}").into())),
        }
    }

    /// Answers the event that a Lambda function was invoked with: by SNS, or by an alarm's own Lambda action.
    ///
    /// # Errors
    /// `Denied` when it came by a topic that is not on the list; else as [`delivered`](Self::delivered).
    pub async fn invoked(&self, event: &Value) -> Result<Vec<Answer>> {
        if let Some(records) = event["Records"].as_array() {
            let mut answers = Vec::with_capacity(records.len());
            for record in records {
                let message = &record["Sns"];
                self.on_the_list(message["TopicArn"].as_str().unwrap_or_default())?;
                answers.push(self.heard(message["Message"].as_str().unwrap_or_default()).await?);
            }
            return Ok(answers);
        }
        if event["source"].as_str() == Some("aws.cloudwatch") {
            return Ok(vec![self.act(&Changed::direct(event)?).await?]);
        }
        Err(Error::invalid("the event is neither of SNS (Records) nor of a CloudWatch alarm (alarmData)"))
    }

    fn on_the_list(&self, topic: &str) -> Result<()> {
        if self.topics.iter().any(|known| known == topic) {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Denied, format!("the topic {topic:?} is not on the list of those that are believed")))
    }

    fn is_recent(&self, message: &Message) -> Result<()> {
        let age = self.clock.now().duration_since(message.at).abs();
        if age > SignedDuration::try_from(self.max_age).unwrap_or(SignedDuration::MAX) {
            let (off, most) = (age.as_secs(), self.max_age.as_secs());
            return Err(Error::new(
                ErrorKind::Denied,
                format!("the message is {off} s off our clock; at most {most} s are accepted"),
            ));
        }
        Ok(())
    }

    /// A notification's text: what CloudWatch tells SNS.
    async fn heard(&self, text: &str) -> Result<Answer> {
        match Changed::notified(text) {
            Some(changed) => self.act(&changed).await,
            None => Ok(Answer::Nothing("a message that is not about an alarm".into())),
        }
    }

    async fn act(&self, changed: &Changed) -> Result<Answer> {
        let Changed { alarm, state, .. } = changed;
        if state != "ALARM" {
            return Ok(Answer::Nothing(format!("the alarm {alarm} is {state}").into()));
        }
        let Some(rule) = self.rules.iter().find(|rule| rule.alarm == *alarm) else {
            return Ok(Answer::Nothing(format!("no rule is about the alarm {alarm}").into()));
        };
        if let Some(store) = &self.store
            && let Some(answer) = self.ask(store.as_ref(), rule, changed).await?
        {
            return Ok(answer);
        }
        match &rule.alias {
            Some(alias) => alias.take_back().await,
            None => Ok(Answer::Nothing(format!("no rollout to {} is open", rule.target).into())),
        }
    }

    /// Asks the target's open rollout. `None` when there is none, or nobody drives it.
    async fn ask(&self, store: &dyn Store, rule: &Rule, changed: &Changed) -> Result<Option<Answer>> {
        let claims = store.open().await?;
        let Some(claim) = claims.into_iter().find(|claim| claim.subject == rule.target) else { return Ok(None) };
        let (record, _) = store.load(&claim.id).await?;
        let rollout = Rollout::from_record(&record)?;
        if let Some(at) = changed.at.filter(|at| *at < rollout.created) {
            let why = format!("{} fired at {at}, before rollout {} began", changed.alarm, claim.id);
            return Ok(Some(Answer::Nothing(why.into())));
        }
        let reason = format!("the alarm {} fires: {}", changed.alarm, changed.reason);
        match store.ask(&claim.id, &Request::new(Ask::Abort, "responder", reason)?).await {
            // It is asked all the same: a driver that takes the rollout up hears it first of all.
            Ok(()) if claim.driver.is_none() && rule.alias.is_some() => Ok(None),
            Ok(()) => Ok(Some(Answer::Asked(claim.id))),
            // It ended meanwhile.
            Err(e) if e.kind() == ErrorKind::Conflict => Ok(None),
            Err(e) => Err(e.during(format_args!("asking rollout {} to go back", claim.id))),
        }
    }
}

impl Default for Responder {
    fn default() -> Self {
        Self::new()
    }
}

impl Alias {
    /// Points the alias at its own version alone, on the `RevisionId` that was read.
    async fn take_back(&self) -> Result<Answer> {
        let name = format!("{}:{}", self.function, self.name);
        for _ in 0..TRIES {
            let read = self.client.get_alias().function_name(&self.function).name(&self.name).send().await;
            let read = read.map_err(|e| sorted(format_args!("reading the alias {name}"), e))?;
            let version = read.function_version().unwrap_or_default();
            let weights = read.routing_config().and_then(AliasRoutingConfiguration::additional_version_weights);
            let Some((candidate, weight)) = weights.and_then(|weights| weights.iter().next()) else {
                return Ok(Answer::Nothing(format!("the alias {name} is at version {version} alone").into()));
            };
            let what = format!("the alias {name} is back at version {version}; {candidate} had {} %", weight * 100.0);
            let nobody = AliasRoutingConfiguration::builder().set_additional_version_weights(Some(Default::default()));
            let call = self.client.update_alias().function_name(&self.function).name(&self.name);
            let call = call.function_version(version).routing_config(nobody.build());
            match call.set_revision_id(read.revision_id().map(Into::into)).send().await {
                Ok(_) => return Ok(Answer::TakenBack(what.into())),
                Err(e) => match sorted(format_args!("taking the alias {name} back"), e) {
                    // Somebody was faster, or an answer was lost: look again.
                    e if matches!(e.kind(), ErrorKind::Conflict | ErrorKind::Unavailable) => {}
                    e => return Err(e),
                },
            }
        }
        Err(Error::new(ErrorKind::Conflict, format!("the alias {name} is being changed by somebody else")))
    }
}

/// How often an alias is read again that somebody else changes.
const TRIES: usize = 5;

impl Changed {
    /// What CloudWatch tells a topic.
    fn notified(text: &str) -> Option<Self> {
        let said: Value = serde_json::from_str(text).ok()?;
        let word = |name: &str| said[name].as_str().map(String::from);
        Some(Self {
            alarm: word("AlarmName")?,
            state: word("NewStateValue")?,
            reason: word("NewStateReason").unwrap_or_default(),
            at: word("StateChangeTime").and_then(|at| time(&at)),
        })
    }

    /// What CloudWatch invokes a Lambda function with.
    fn direct(event: &Value) -> Result<Self> {
        let data = &event["alarmData"];
        let word = |value: &Value| value.as_str().map(String::from);
        let (Some(alarm), Some(state)) = (word(&data["alarmName"]), word(&data["state"]["value"])) else {
            return Err(Error::invalid("the event of CloudWatch names no alarm, or no state of it"));
        };
        let at = word(&data["state"]["timestamp"]).and_then(|at| time(&at));
        Ok(Self { alarm, state, reason: word(&data["state"]["reason"]).unwrap_or_default(), at })
    }
}

/// `2026-01-01T00:00:00.000+0000`, as CloudWatch writes it in events, or with a colon or a `Z`.
fn time(text: &str) -> Option<Timestamp> {
    let parsed = text.parse().ok();
    parsed.or_else(|| Timestamp::strptime("%Y-%m-%dT%H:%M:%S%.f%z", text).ok())
}

/// Our HTTP client, made when it is needed first.
fn fetcher() -> Result<web::Client> {
    Ok(web::Client::new()?.timeout(Duration::from_secs(5)).limit(64 * 1024))
}
