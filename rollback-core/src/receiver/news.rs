//! What alert senders post, read into one form.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use super::Labels;
use crate::model::Note;

/// One thing to know about the health of a candidate.
pub(super) struct News {
    pub(super) says: Says,
    /// The same for the word that something is wrong and the word that it is over.
    pub(super) key: Key,
    pub(super) named: Named,
    /// For people: what was said, in a sentence.
    pub(super) why: Note,
    /// Since when it is so, where the sender tells.
    pub(super) since: Option<Timestamp>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Says {
    /// Something is wrong.
    Fires,
    /// That is over.
    Resolved,
    /// All is well, says whoever should know.
    Healthy,
    /// The sender lives.
    Beats,
}

/// Which rollout or target, and which of its gates.
#[derive(Default)]
pub(super) struct Named {
    pub(super) rollout: Option<String>,
    pub(super) target: Option<String>,
    pub(super) gate: Option<String>,
}

/// A digest, because senders' own names for alerts have no bound.
pub(super) type Key = [u8; 32];

/// The webhook of Alertmanager (version 4) and of Grafana, which took its form over. What else is in it is not read.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Alerts {
    alerts: Vec<Alert>,
    #[serde(default)]
    pub(super) truncated_alerts: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Alert {
    status: Status,
    labels: BTreeMap<String, String>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    starts_at: Timestamp,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    Firing,
    Resolved,
}

impl Alerts {
    pub(super) fn into_news(self, labels: &Labels) -> impl Iterator<Item = News> {
        self.alerts.into_iter().filter_map(|alert| {
            let named = |label: &String| alert.labels.get(label).cloned().filter(|value| !value.is_empty());
            let beats = labels.heartbeat.as_ref().is_some_and(|(name, value)| alert.labels.get(name) == Some(value));
            Some(News {
                says: match alert.status {
                    Status::Firing if beats => Says::Beats,
                    Status::Firing => Says::Fires,
                    // A heartbeat that ends is silence, and the gate knows what silence is.
                    Status::Resolved if beats => return None,
                    Status::Resolved => Says::Resolved,
                },
                key: alert.key(),
                named: Named {
                    rollout: named(&labels.rollout),
                    target: named(&labels.target),
                    gate: named(&labels.gate),
                },
                why: alert.why(),
                since: Some(alert.starts_at),
            })
        })
    }
}

impl Alert {
    /// An alert is its labels: the fingerprints of both senders are hashes of them too.
    fn key(&self) -> Key {
        let mut digest = Sha256::new();
        for text in self.labels.iter().flat_map(|(name, value)| [name, value]) {
            digest.update((text.len() as u64).to_be_bytes());
            digest.update(text);
        }
        digest.finalize().into()
    }

    fn why(&self) -> Note {
        let name = self.labels.get("alertname").map_or("without a name", String::as_str);
        let said = ["summary", "description", "message"].iter().find_map(|key| self.annotations.get(*key));
        Note::new(match said {
            Some(said) => format!("alert {name}: {said}"),
            None => format!("alert {name}"),
        })
    }
}

/// The webhook of everything else.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Word {
    #[serde(default)]
    rollout: Option<String>,
    #[serde(default)]
    target: Option<String>,
    #[serde(default)]
    gate: Option<String>,
    healthy: bool,
    why: Note,
    /// What the word is about, where one sender watches several things.
    #[serde(default)]
    key: String,
    #[serde(default)]
    since: Option<Timestamp>,
}

impl Word {
    pub(super) fn into_news(self) -> News {
        News {
            says: if self.healthy { Says::Healthy } else { Says::Fires },
            // No alert hashes to this: theirs begin with a length.
            key: Sha256::new().chain_update(b"word:").chain_update(self.key).finalize().into(),
            named: Named { rollout: self.rollout, target: self.target, gate: self.gate },
            why: self.why,
            since: self.since,
        }
    }
}
