//! The listener on an SNS topic: what it publishes, within which limits, and that it delays nobody.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use rollback_aws::{
    sns::{LOOK, PUBLISH, Topic},
    testing::{
        Refusal, Simulator,
        fault::{Fault, Trouble},
    },
};
use rollback_core::{
    ErrorKind,
    engine::{Engine, NewRollout, Target},
    listener::{Listener as _, RolloutEvent, Tally, Tell},
    model::Revision,
    plan::Plan,
    store::Memory,
    testing::fakes::Fake,
};
use serde_json::Value;

/// Keeps what a real rollout tells.
#[derive(Clone, Debug, Default)]
struct Kept(Arc<std::sync::Mutex<Vec<RolloutEvent>>>);

impl rollback_core::listener::Listener for Kept {
    fn on(&self, event: &RolloutEvent) {
        self.0.lock().unwrap().push(event.clone());
    }
}

/// The events of a rollout that is promoted, of a target and revisions that seal something.
async fn events() -> Vec<RolloutEvent> {
    let kept = Kept::default();
    let engine = Engine::builder(Memory::new()).listener(kept.clone()).build().unwrap();
    engine.register(Target::new("checkout, naïve \u{1F680}", Fake::new("v1", "v2")).unwrap()).unwrap();
    let candidate = Revision::new("v2").unwrap().with_spec("hunter2").unwrap();
    let plan = Plan::canary([50, 100], Duration::from_millis(10)).unwrap();
    let rollout = NewRollout::new("checkout, naïve \u{1F680}", candidate, plan).unwrap().by("ana").unwrap();
    engine.start(rollout).await.unwrap().finished().await;
    engine.shutdown(Duration::from_secs(10)).await;
    let events = kept.0.lock().unwrap().clone();
    assert!(events.len() > 3);
    events
}

async fn until(tally: &Tally, done: impl Fn(&Tally) -> bool) {
    for _ in 0..1200 {
        if done(tally) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("not within a minute: {tally:?}");
}

#[tokio::test]
async fn each_event_is_published_once_in_words_for_people_and_for_programs() {
    let events = events().await;
    let aws = Simulator::new();
    let arn = aws.sns().topic("rollouts");
    let topic = Topic::new(&aws.account(), &arn).unwrap().tell(Tell::Everything);
    let tally = topic.tally();
    events.iter().for_each(|event| topic.on(event));
    let published = aws.sns().until_published(&arn, events.len()).await;
    until(&tally, |tally| tally.delivered() == events.len() as u64).await;
    for (event, message) in events.iter().zip(&published) {
        let subject = message.subject.as_ref().unwrap();
        assert!(subject.is_ascii() && subject.len() < 100, "{subject:?}");
        assert!(subject.starts_with("checkout, na?ve ?: v2"), "{subject}");
        let told: Value = serde_json::from_str(&message.bodies["default"]).unwrap();
        assert_eq!(told["version"], 1);
        assert_eq!(told["event"], event.what.name());
        assert_eq!(told["rollout"]["target"], "checkout, naïve \u{1F680}");
        assert!(message.bodies["email"].lines().count() > 3, "{}", message.bodies["email"]);
        assert!(message.bodies["sms"].chars().count() <= 140);
        let attributes = ["event", "rollout", "state", "target"].map(|name| message.attributes[name].as_str());
        assert_eq!(attributes[0], event.what.name());
        assert_eq!(
            attributes[1..],
            [event.rollout.id().as_str(), event.rollout.state.name(), "checkout, naïve \u{1F680}"]
        );
        assert!(!format!("{message:?}").contains("hunter2"), "what is sealed was published");
    }
    assert!(!format!("{topic:?}").contains("simulated-secret"), "{topic:?}");
}

#[tokio::test]
async fn what_fails_for_a_while_is_tried_again_and_what_is_refused_is_given_up() {
    let event = events().await.pop().unwrap();
    let aws = Simulator::new();
    let arn = aws.sns().topic("rollouts");
    let topic = Topic::new(&aws.account(), &arn).unwrap().tell(Tell::Everything);
    let tally = topic.tally();
    aws.fault(Fault::of(PUBLISH.action, Trouble::Throttle));
    aws.fault(Fault::of(PUBLISH.action, Trouble::LoseRequest));
    topic.on(&event);
    until(&tally, |tally| tally.delivered() == 1).await;
    assert_eq!(aws.calls()[PUBLISH.action], 3, "throttled, lost, taken");
    aws.fault(Fault::of(
        PUBLISH.action,
        Trouble::Refuse(Refusal::new(400, "InvalidParameter", "Invalid parameter: x")),
    ));
    topic.on(&event);
    until(&tally, |tally| tally.given_up() == 1).await;
    aws.sns().remove(&arn);
    topic.on(&event);
    until(&tally, |tally| tally.given_up() == 2).await;
    assert_eq!(aws.calls()[PUBLISH.action], 5, "neither was tried again");
}

/// A topic that hangs: its caller waits for nothing, what is too much is dropped and counted, and the end is not held up.
#[tokio::test]
async fn a_topic_that_hangs_delays_nobody_and_what_is_dropped_is_counted() {
    let event = events().await.pop().unwrap();
    let aws = Simulator::new();
    let arn = aws.sns().topic("rollouts");
    let topic = Topic::new(&aws.account(), &arn).unwrap().tell(Tell::Everything);
    let tally = topic.tally();
    aws.fault(Fault::of(PUBLISH.action, Trouble::DelayAnswer(Duration::from_secs(3600))).times(1000));
    #[expect(clippy::disallowed_methods, reason = "it is the time that a caller waits that is measured")]
    let from = Instant::now();
    for _ in 0..300 {
        topic.on(&event);
    }
    #[expect(clippy::disallowed_methods, reason = "it is the time that a caller waits that is measured")]
    let took = from.elapsed();
    assert!(took < Duration::from_secs(2), "{took:?}");
    assert!((43..=44).contains(&tally.dropped()), "256 wait and one is under way: {tally:?}");
    tokio::task::spawn_blocking(move || drop(topic)).await.unwrap();
    assert_eq!(tally.delivered() + tally.given_up() + tally.dropped(), 300, "{tally:?}");
}

/// A FIFO topic takes a message once, whatever becomes of the answer, and those of a target in order.
#[tokio::test]
async fn a_fifo_topic_takes_each_message_once() {
    let events = events().await;
    let aws = Simulator::new();
    let arn = aws.sns().topic("rollouts.fifo");
    let topic = Topic::new(&aws.account(), &arn).unwrap().tell(Tell::Everything);
    let tally = topic.tally();
    aws.fault(Fault::of(PUBLISH.action, Trouble::LoseAnswer));
    events.iter().for_each(|event| topic.on(event));
    until(&tally, |tally| tally.delivered() == events.len() as u64).await;
    let published = aws.sns().published(&arn);
    assert_eq!(published.len(), events.len(), "the first one's second try is the first one");
    assert!(published.iter().all(|message| message.group == published[0].group && message.group.is_some()));
}

#[tokio::test]
async fn preflight_finds_the_topic_and_names_what_is_missing() {
    let aws = Simulator::new();
    let arn = aws.sns().topic("rollouts");
    let topic = Topic::new(&aws.account(), &arn).unwrap();
    let ready = topic.preflight().await.unwrap();
    assert!(ready.refused.is_empty() && ready.proved[0].as_str().contains(LOOK.action), "{ready:?}");
    aws.deny(LOOK.action);
    let ready = topic.preflight().await.unwrap();
    assert!(ready.refused[0].as_str().contains(LOOK.action), "{ready:?}");
    aws.allow(LOOK.action);
    aws.sns().remove(&arn);
    let ready = topic.preflight().await.unwrap();
    assert!(ready.refused[0].as_str().starts_with("there is no topic arn:aws:sns"), "{ready:?}");
    assert_eq!(Topic::new(&aws.account(), "rollouts").unwrap_err().kind(), ErrorKind::Invalid);
    let policy = topic.policy().to_string();
    assert!(policy.contains(&arn) && policy.contains(PUBLISH.action), "{policy}");
}
