//! A pod as far as a judgement needs it: small, so that a process can watch ten thousand.

use jiff::Timestamp;
use serde::Deserialize;

/// What is kept of a pod.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(from = "wire::Pod")]
pub(crate) struct Pod {
    pub(crate) name: Box<str>,
    pub(crate) uid: Box<str>,
    /// Its `resourceVersion`.
    pub(crate) version: Box<str>,
    /// Its controller's kind, name and uid.
    pub(crate) owner: Option<Owner>,
    /// `pod-template-hash`, else `controller-revision-hash`.
    pub(crate) hash: Option<Box<str>>,
    pub(crate) created: Option<Timestamp>,
    /// It is being deleted.
    pub(crate) leaving: bool,
    pub(crate) ready: bool,
    /// It is over, and not by success: evicted, refused by its node.
    pub(crate) failed: Option<Said>,
    /// No node takes it.
    pub(crate) unscheduled: Option<Said>,
    pub(crate) containers: Box<[Container]>,
}

/// An owner reference that is the controller's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub(crate) struct Owner {
    pub(crate) kind: Box<str>,
    pub(crate) name: Box<str>,
    pub(crate) uid: Box<str>,
}

/// One container, an init container among them.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Container {
    pub(crate) name: Box<str>,
    pub(crate) init: bool,
    pub(crate) restarts: u32,
    /// What it waits for, if it waits.
    pub(crate) waiting: Option<Said>,
    /// It has ended and was not started again yet.
    pub(crate) down: bool,
    /// Its last end, now or before its last start.
    pub(crate) ended: Option<Ended>,
    /// The message of an end is the end of its log (`terminationMessagePolicy: FallbackToLogsOnError`).
    pub(crate) ends_with_its_log: bool,
}

/// A reason and a message in a pod's own words.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Said(pub(crate) Box<(Box<str>, Box<str>)>);

/// How a container ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ended {
    pub(crate) said: Said,
    pub(crate) exit_code: i32,
}

impl Said {
    fn new(reason: Option<String>, message: Option<String>) -> Self {
        let mut message = message.unwrap_or_default();
        if message.len() > Self::MAX {
            let cut = (0..=Self::MAX).rev().find(|at| message.is_char_boundary(*at)).unwrap_or(0);
            message.truncate(cut);
            message.push('…');
        }
        Self(Box::new((reason.unwrap_or_default().into(), message.into())))
    }

    pub(crate) fn reason(&self) -> &str {
        &self.0.0
    }

    pub(crate) fn message(&self) -> &str {
        &self.0.1
    }

    /// The most bytes of a message that are kept.
    const MAX: usize = 300;
}

impl Pod {
    /// What a rollout could want to hear of: when this differs, whoever judges the pod is woken.
    pub(crate) fn is_news_after(&self, old: &Self) -> bool {
        let words = |pod: &Self| -> Vec<(u32, bool, Option<Box<str>>)> {
            let one = |c: &Container| (c.restarts, c.down, c.waiting.as_ref().map(|said| said.reason().into()));
            pod.containers.iter().map(one).collect()
        };
        (self.ready, self.leaving, self.failed.is_some(), self.unscheduled.is_some())
            != (old.ready, old.leaving, old.failed.is_some(), old.unscheduled.is_some())
            || words(self) != words(old)
    }
}

/// The shape that the API server sends, as far as it is read.
pub(crate) mod wire {
    use super::{Container, Deserialize, Ended, Said, Timestamp};

    #[derive(Default, Deserialize)]
    #[serde(default, rename_all = "camelCase")]
    pub(crate) struct Meta {
        pub(crate) name: String,
        pub(crate) uid: String,
        pub(crate) resource_version: String,
        pub(crate) generation: Option<i64>,
        pub(crate) creation_timestamp: Option<Timestamp>,
        pub(crate) deletion_timestamp: Option<String>,
        pub(crate) labels: Option<std::collections::BTreeMap<String, String>>,
        pub(crate) annotations: Option<std::collections::BTreeMap<String, String>>,
        pub(crate) owner_references: Option<Vec<Reference>>,
    }

    #[derive(Deserialize)]
    pub(crate) struct Reference {
        #[serde(flatten)]
        owner: super::Owner,
        controller: Option<bool>,
    }

    impl Meta {
        pub(crate) fn controller(&self) -> Option<super::Owner> {
            let all = self.owner_references.as_deref().unwrap_or_default();
            all.iter().find(|reference| reference.controller == Some(true)).map(|reference| reference.owner.clone())
        }

        pub(crate) fn label(&self, name: &str) -> Option<&str> {
            self.labels.as_ref()?.get(name).map(String::as_str)
        }

        pub(crate) fn annotation(&self, name: &str) -> Option<&str> {
            self.annotations.as_ref()?.get(name).map(String::as_str)
        }
    }

    #[derive(Default, Deserialize)]
    #[serde(default)]
    pub(crate) struct Pod {
        metadata: Meta,
        spec: Spec,
        status: Status,
    }

    #[derive(Default, Deserialize)]
    #[serde(default, rename_all = "camelCase")]
    struct Spec {
        init_containers: Option<Vec<ContainerSpec>>,
        containers: Option<Vec<ContainerSpec>>,
    }

    #[derive(Default, Deserialize)]
    #[serde(default, rename_all = "camelCase")]
    struct ContainerSpec {
        name: String,
        termination_message_policy: Option<String>,
    }

    impl Spec {
        fn ends_with_its_log(&self, container: &str) -> bool {
            let all = self.init_containers.iter().chain(&self.containers).flatten();
            all.filter(|it| it.name == container)
                .any(|it| it.termination_message_policy.as_deref() == Some("FallbackToLogsOnError"))
        }
    }

    #[derive(Default, Deserialize)]
    #[serde(default, rename_all = "camelCase")]
    struct Status {
        phase: Option<String>,
        reason: Option<String>,
        message: Option<String>,
        conditions: Option<Vec<Condition>>,
        init_container_statuses: Option<Vec<ContainerStatus>>,
        container_statuses: Option<Vec<ContainerStatus>>,
    }

    #[derive(Default, Deserialize)]
    #[serde(default)]
    pub(crate) struct Condition {
        #[serde(rename = "type")]
        pub(crate) kind: String,
        pub(crate) status: String,
        pub(crate) reason: Option<String>,
        pub(crate) message: Option<String>,
    }

    #[derive(Default, Deserialize)]
    #[serde(default, rename_all = "camelCase")]
    struct ContainerStatus {
        name: String,
        restart_count: u32,
        state: Option<State>,
        last_state: Option<State>,
    }

    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct State {
        waiting: Option<Waiting>,
        terminated: Option<Terminated>,
    }

    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Waiting {
        reason: Option<String>,
        message: Option<String>,
    }

    #[derive(Default, Deserialize)]
    #[serde(default, rename_all = "camelCase")]
    struct Terminated {
        exit_code: i32,
        reason: Option<String>,
        message: Option<String>,
    }

    impl From<Terminated> for Ended {
        fn from(ended: Terminated) -> Self {
            Self { exit_code: ended.exit_code, said: Said::new(ended.reason, ended.message) }
        }
    }

    impl ContainerStatus {
        fn read(self, init: bool, spec: &Spec) -> Container {
            let state = self.state.unwrap_or_default();
            // An init container that is done has done its work; any other that has ended is down, whatever it said.
            let down = state.terminated.as_ref().is_some_and(|ended| !init || ended.exit_code != 0);
            Container {
                ends_with_its_log: spec.ends_with_its_log(&self.name),
                name: self.name.into(),
                init,
                restarts: self.restart_count,
                waiting: state.waiting.map(|waiting| Said::new(waiting.reason, waiting.message)),
                down,
                ended: state.terminated.or_else(|| self.last_state?.terminated).map(Ended::from),
            }
        }
    }

    impl From<Pod> for super::Pod {
        fn from(pod: Pod) -> Self {
            let Pod { metadata, spec, status } = pod;
            let conditions = status.conditions.unwrap_or_default();
            let phase = status.phase.unwrap_or_default();
            let init = status.init_container_statuses.unwrap_or_default();
            let rest = status.container_statuses.unwrap_or_default();
            let first = init.into_iter().map(|c| c.read(true, &spec));
            let containers = first.chain(rest.into_iter().map(|c| c.read(false, &spec)));
            let hash = metadata.label("pod-template-hash").or_else(|| metadata.label("controller-revision-hash"));
            let unscheduled = conditions.iter().find(|c| {
                c.kind == "PodScheduled" && c.status == "False" && c.reason.as_deref() == Some("Unschedulable")
            });
            Self {
                owner: metadata.controller(),
                hash: hash.map(Into::into),
                created: metadata.creation_timestamp,
                leaving: metadata.deletion_timestamp.is_some(),
                ready: conditions.iter().any(|c| c.kind == "Ready" && c.status == "True"),
                failed: (phase == "Failed").then(|| Said::new(status.reason, status.message)),
                unscheduled: unscheduled.map(|c| Said::new(c.reason.clone(), c.message.clone())),
                containers: containers.collect(),
                name: metadata.name.into(),
                uid: metadata.uid.into(),
                version: metadata.resource_version.into(),
            }
        }
    }
}
