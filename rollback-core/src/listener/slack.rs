//! Events as messages in a chat.

use std::fmt::Write as _;

use async_trait::async_trait;
use serde_json::json;

use super::{
    Listener, RolloutEvent, Tally, Tell,
    channel::{Channel, Courier},
    webhook::Post,
};
use crate::{
    brief::{Brief, visible},
    error::Result,
    rollout::{Rollout, What},
    state::State,
    web::reqwest,
};

/// Posts events to a Slack-compatible incoming webhook (Slack, Mattermost, Rocket.Chat, Discord with `/slack`).
///
/// A message says which target, which revisions, why, what serves now and what to do, in at most [`Self::MAX_LEN`]
/// characters. Nothing from outside can mention anybody or be a link of its own making. Delivery is that of
/// [`Webhook`](super::Webhook).
///
/// ```no_run
/// # use rollback_core::{engine::Engine, listener::{Slack, Tell}, store::Memory};
/// let slack = Slack::new(std::env::var("SLACK_WEBHOOK").unwrap())?.tell(Tell::Ends);
/// let engine = Engine::builder(Memory::new()).listener(slack).build()?;
/// # Ok::<(), rollback_core::Error>(())
/// ```
#[derive(Debug)]
pub struct Slack(Channel<Chat>);

impl Slack {
    /// The most characters of a message.
    pub const MAX_LEN: usize = 3000;

    /// Posts to this address, which is a secret and kept as one: messages and errors name its host alone.
    ///
    /// # Errors
    /// `Invalid` when it is no address, has another scheme than `http` and `https`, or holds a password.
    pub fn new(url: impl AsRef<str>) -> Result<Self> {
        Ok(Self(Channel::new(Chat(Post::new(url.as_ref())?))))
    }

    /// Through this client: a proxy, a private authority, a client certificate.
    #[must_use]
    pub fn client(mut self, http: reqwest::Client) -> Self {
        self.0.courier.0.through(http);
        self
    }

    /// These events. By default [`Tell::Decisions`].
    #[must_use]
    pub const fn tell(mut self, tell: Tell) -> Self {
        self.0.tell = tell;
        self
    }

    /// Counts what becomes of the messages.
    pub fn tally(&self) -> Tally {
        self.0.tally.clone()
    }
}

impl Listener for Slack {
    fn on(&self, event: &RolloutEvent) {
        self.0.on(event);
    }
}

#[derive(Clone, Debug)]
struct Chat(Post);

#[async_trait]
impl Courier for Chat {
    fn name(&self) -> &str {
        self.0.name()
    }

    async fn carry(&self, event: &RolloutEvent, _: &str) -> Result<()> {
        let body = json!({ "text": message(event), "unfurl_links": false, "unfurl_media": false });
        self.0.post(body.to_string(), &[]).await
    }
}

fn message(event: &RolloutEvent) -> String {
    let rollout = &*event.rollout;
    let brief = Brief(rollout);
    let mut text = format!("{} *{}*", mark(rollout), safe(&brief.title(), 250));
    let mut line =
        |name: &str, what: &str| write!(text, "\n*{name}:* {}", safe(what, 300)).expect("a string takes any text");
    match &event.what {
        // What has changed the state is told by the state.
        What::Entered { .. } => {}
        what => line("Now", &what.describe(&rollout.plan)),
    }
    let change = &rollout.change;
    line("Revisions", &format!("{} (kept) and {} (tried)", change.baseline.id, change.candidate.id));
    if let Some(why) = brief.why() {
        line("Why", &why);
    }
    line("Serves now", &brief.serves());
    for note in rollout.not_restored.iter().take(2) {
        line("Not brought back", note.as_str());
    }
    if let more @ 1.. = rollout.not_restored.len().saturating_sub(2) {
        line("Not brought back", &format!("and {more} more"));
    }
    line("To do", &brief.to_do());
    line("Rollout", &format!("{}, asked for by {}: {}", rollout.id(), rollout.author, rollout.reason));
    text
}

const fn mark(rollout: &Rollout) -> &'static str {
    match rollout.state {
        State::Promoted => ":white_check_mark:",
        State::RolledBack { .. } | State::RollingBack { .. } => ":rewind:",
        State::Stuck { .. } => ":rotating_light:",
        State::Holding { .. } => ":raised_hand:",
        State::Refused { .. } | State::Abandoned { .. } => ":warning:",
        _ => ":arrow_forward:",
    }
}

/// Text that a chat takes for text: no mention, no link in brackets, nothing unseen, and at most so many characters. `*`
/// and `_` stay: the worst they do is bold.
fn safe(text: &str, most: usize) -> String {
    let (mut safe, mut room) = (String::new(), most - 1);
    for c in visible(text).chars() {
        let plain = c.to_string();
        let shown = match c {
            '&' => "&amp;",
            '<' => "&lt;",
            '>' => "&gt;",
            // Mattermost and others take `@channel` and `[text](address)` without brackets of Slack's kind.
            '@' => "@\u{200b}",
            '[' => "[\u{200b}",
            '`' => "'",
            _ => &plain,
        };
        let Some(left) = room.checked_sub(shown.chars().count()) else {
            safe.push('…');
            break;
        };
        room = left;
        safe.push_str(shown);
    }
    safe
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{
        model::Note,
        rollout,
        state::{Cause, Hold},
    };

    fn told(state: State) -> String {
        let mut rollout = rollout::sample();
        rollout.state = state.clone();
        let at = rollout.created;
        message(&RolloutEvent { rollout: Arc::new(rollout), at, what: What::Entered { to: state } })
    }

    #[test]
    fn a_message_says_what_a_person_at_night_needs() {
        let cause = Cause::Failed { why: "image v2 is gone".into() };
        assert_eq!(
            told(State::RolledBack { cause }),
            ":rewind: *checkout: v2 was rolled back*\n\
             *Revisions:* v1 (kept) and v2 (tried)\n\
             *Why:* failed: image v2 is gone\n\
             *Serves now:* v1 alone, as a look has shown.\n\
             *To do:* Find out what is wrong with v2, and release a build that mends it. v2 itself is quarantined: it \
             is tried again only if somebody says so.\n\
             *Rollout:* checkout-1, asked for by ana: release 2"
        );
    }

    #[test]
    fn nothing_from_outside_mentions_anybody_or_links_anywhere() {
        let why = Note::new("<!channel> @here <https://evil.example|click> [click](https://evil.example) `x` \u{202e}");
        let by = crate::model::Actor::try_from("<@U123>").unwrap();
        let until = rollout::sample().created;
        let from = crate::state::Interrupted::Promoting;
        let text = told(State::Holding { from, why: Hold::Paused { by, why }, until });
        for bad in ["<", "@here", "@U123", "[click]", "`", "\u{202e}"] {
            assert!(!text.contains(bad), "{bad:?} in {text}");
        }
        assert!(text.contains("&lt;!channel&gt;"), "{text}");
    }

    #[test]
    fn a_message_is_bounded() {
        let mut rollout = rollout::sample();
        let long = Note::new("&".repeat(2000));
        rollout.reason = long.clone();
        rollout.not_restored = vec![long.clone(); 500];
        rollout.state = State::RolledBack { cause: Cause::Failed { why: long.clone() } };
        let at = rollout.created;
        let event = RolloutEvent { rollout: Arc::new(rollout), at, what: What::Troubled { why: long } };
        let text = message(&event);
        assert!(text.chars().count() <= Slack::MAX_LEN, "{}", text.chars().count());
        assert!(text.contains("*To do:* Find out") && text.contains("and 498 more"), "{text}");
    }
}
