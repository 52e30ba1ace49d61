//! One stack's life: which states follow one another, how long they last, and what is told of it.
//!
//! From the documentation of the API: the states, what may be asked for in which; that triggers are watched while an update
//! runs and for the monitoring time after its last resource, before anything old is removed; that a trigger that is not there
//! fails the update. That an alarm which fires already does the same is told by others, not by AWS. Resources are changed one
//! after the other here, which AWS does side by side.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{super::cloudwatch, Answer, invalid, template::Template};

/// What a stack is made of.
#[derive(Clone, Debug)]
pub(super) struct Content {
    pub(super) template: Template,
    pub(super) parameters: BTreeMap<String, String>,
    pub(super) tags: BTreeMap<String, String>,
    pub(super) capabilities: Vec<String>,
    pub(super) triggers: Vec<(String, String)>,
    /// In minutes.
    pub(super) monitoring: u64,
}

impl Content {
    pub(super) fn resources(&self) -> BTreeMap<String, Value> {
        self.template.resources(&self.parameters, &self.tags)
    }
}

#[derive(Clone, Debug)]
pub(super) struct Stack {
    pub(super) name: String,
    pub(super) id: String,
    pub(super) created: Timestamp,
    pub(super) updated: Option<Timestamp>,
    pub(super) status: &'static str,
    pub(super) reason: Option<String>,
    pub(super) content: Content,
    /// What the update that runs, or that failed, began from.
    before: Option<Content>,
    /// What there is, by logical id.
    resources: BTreeMap<String, Value>,
    work: Option<Work>,
    /// The oldest first.
    pub(super) events: Vec<Event>,
    /// What came with each token, so that a second request is known.
    pub(super) tokens: BTreeMap<String, String>,
    /// Why a resource cannot be changed to what is new.
    pub(super) sick: BTreeMap<String, String>,
    /// Why a resource cannot be changed back.
    pub(super) stuck: BTreeMap<String, String>,
    pub(super) drift: &'static str,
    pub(super) parent: Option<String>,
    takes: Duration,
}

#[derive(Clone, Debug)]
struct Work {
    token: Option<String>,
    since: Timestamp,
    /// When the first of the steps is done.
    at: Timestamp,
    steps: VecDeque<(Duration, Step)>,
    keeps_what_fails: bool,
}

#[derive(Clone, Debug)]
enum Step {
    Begin(String),
    End(String),
    Restore(String),
    Remove(String),
    Become(&'static str),
}

#[derive(Clone, Debug)]
pub(super) struct Event {
    pub(super) number: usize,
    pub(super) at: Timestamp,
    pub(super) resource: String,
    pub(super) kind: String,
    pub(super) status: &'static str,
    pub(super) reason: Option<String>,
    pub(super) token: Option<String>,
}

pub(super) const STACK: &str = "AWS::CloudFormation::Stack";

impl Stack {
    /// A stack that is there since.
    pub(super) fn created(
        name: &str,
        id: String,
        content: Content,
        at: Timestamp,
        token: Option<String>,
        takes: Duration,
    ) -> Self {
        let mut stack = Self {
            name: name.into(),
            id,
            created: at,
            updated: None,
            status: "CREATE_IN_PROGRESS",
            reason: None,
            resources: BTreeMap::new(),
            content,
            before: None,
            work: None,
            events: Vec::new(),
            tokens: BTreeMap::new(),
            sick: BTreeMap::new(),
            stuck: BTreeMap::new(),
            drift: "NOT_CHECKED",
            parent: None,
            takes,
        };
        stack.work = Some(Work { token, since: at, at, steps: VecDeque::new(), keeps_what_fails: false });
        stack.become_("CREATE_IN_PROGRESS", Some("User Initiated".into()), at);
        stack.resources = stack.content.resources();
        stack.then([(stack.takes, Step::Become("CREATE_COMPLETE"))], at);
        stack
    }

    /// Everything is there at once.
    pub(super) fn hurry(&mut self) {
        let (created, work) = (self.created, self.work.take());
        for (_, step) in work.iter().flat_map(|work| &work.steps) {
            self.take(step.clone(), created);
        }
        self.work = None;
    }

    pub(super) fn is_updatable(&self) -> bool {
        matches!(
            self.status,
            "CREATE_COMPLETE"
                | "CREATE_FAILED"
                | "UPDATE_COMPLETE"
                | "UPDATE_FAILED"
                | "UPDATE_ROLLBACK_COMPLETE"
                | "IMPORT_COMPLETE"
                | "IMPORT_ROLLBACK_COMPLETE"
        )
    }

    pub(super) fn update(
        &mut self,
        content: Content,
        keeps_what_fails: bool,
        token: Option<String>,
        now: Timestamp,
    ) -> Answer<()> {
        let wanted = content.resources();
        if wanted == self.resources && self.status != "UPDATE_FAILED" {
            return Err(invalid("No updates are to be performed."));
        }
        let old = std::mem::replace(&mut self.content, content);
        // What a failed update began from stays what there is a way back to.
        self.before.get_or_insert(old);
        self.updated = Some(now);
        self.work = Some(Work { token, since: now, at: now, steps: VecDeque::new(), keeps_what_fails });
        self.become_("UPDATE_IN_PROGRESS", Some("User Initiated".into()), now);
        let mut steps = Vec::new();
        for (name, resource) in &wanted {
            if self.resources.get(name) != Some(resource) {
                steps.extend([(Duration::ZERO, Step::Begin(name.clone())), (self.takes, Step::End(name.clone()))]);
            }
        }
        let monitoring = Duration::from_secs(60 * self.content.monitoring);
        steps.push((monitoring, Step::Become("UPDATE_COMPLETE_CLEANUP_IN_PROGRESS")));
        let gone = self.resources.keys().filter(|name| !wanted.contains_key(*name));
        steps.extend(gone.map(|name| (self.takes, Step::Remove(name.clone()))));
        steps.push((self.takes, Step::Become("UPDATE_COMPLETE")));
        self.then(steps, now);
        Ok(())
    }

    /// Begins to undo the update that runs, or that failed.
    pub(super) fn undo(&mut self, why: &str, token: Option<String>, skip: &[String], now: Timestamp) {
        let token = token.or_else(|| self.work.as_ref().and_then(|work| work.token.clone()));
        let half_way = self.work.take().and_then(|work| match work.steps.front() {
            Some((_, Step::End(name))) => Some(name.clone()),
            _ => None,
        });
        self.work = Some(Work { token, since: now, at: now, steps: VecDeque::new(), keeps_what_fails: false });
        if let Some(name) = half_way {
            let wanted = self.content.resources();
            self.tell(&name, &wanted, "UPDATE_FAILED", Some("Resource update cancelled".into()), now);
            if let Some(new) = wanted.get(&name) {
                self.resources.insert(name, new.clone());
            }
        }
        self.become_("UPDATE_ROLLBACK_IN_PROGRESS", Some(why.into()), now);
        let old = self.before.as_ref().map(Content::resources).unwrap_or_default();
        for name in skip {
            if let Some(resource) = old.get(name) {
                self.resources.insert(name.clone(), resource.clone());
            }
        }
        let mut steps = Vec::new();
        for (name, _) in old.iter().filter(|(name, resource)| self.resources.get(*name) != Some(*resource)) {
            steps.extend([(Duration::ZERO, Step::Begin(name.clone())), (self.takes, Step::Restore(name.clone()))]);
        }
        steps.push((Duration::ZERO, Step::Become("UPDATE_ROLLBACK_COMPLETE_CLEANUP_IN_PROGRESS")));
        let made = self.resources.keys().filter(|name| !old.contains_key(*name));
        steps.extend(made.map(|name| (self.takes, Step::Remove(name.clone()))));
        steps.push((self.takes, Step::Become("UPDATE_ROLLBACK_COMPLETE")));
        self.then(steps, now);
    }

    /// Lets everything happen that was to happen until now.
    pub(super) fn pass(&mut self, now: Timestamp, alarms: &cloudwatch::Room) {
        while let Some(work) = &self.work {
            let (at, since) = (work.at, work.since);
            if self.status == "UPDATE_IN_PROGRESS"
                && let Some((when, why)) = self.tripped(since, alarms)
                && when <= at.min(now)
            {
                self.undo(&why, None, &[], when);
                continue;
            }
            if at > now {
                return;
            }
            let Some(work) = &mut self.work else { return };
            let Some((_, step)) = work.steps.pop_front() else { return };
            // Before the step is taken: it may put other work in this one's place.
            work.at = at + work.steps.front().map(|(after, _)| *after).unwrap_or_default();
            self.take(step, at);
            if self.work.as_ref().is_some_and(|work| work.steps.is_empty()) {
                self.work = None;
            }
        }
    }

    /// When the first of the triggers undoes an update that runs since, and why.
    fn tripped(&self, since: Timestamp, alarms: &cloudwatch::Room) -> Option<(Timestamp, String)> {
        let tripped = self.content.triggers.iter().filter_map(|(arn, _)| match alarms.of_arn(arn) {
            None => Some((since, format!("Rollback trigger {arn} does not exist"))),
            Some((cloudwatch::State::Alarm, at)) => {
                Some((at.max(since), format!("Rollback trigger {arn} is in ALARM")))
            }
            Some(_) => None,
        });
        tripped.min()
    }

    fn take(&mut self, step: Step, at: Timestamp) {
        let wanted = self.content.resources();
        match step {
            Step::Begin(name) => {
                let status =
                    if self.resources.contains_key(&name) { "UPDATE_IN_PROGRESS" } else { "CREATE_IN_PROGRESS" };
                self.tell(&name, &wanted, status, None, at);
            }
            Step::End(name) => {
                let known = self.resources.contains_key(&name);
                if let Some(new) = wanted.get(&name) {
                    self.resources.insert(name.clone(), new.clone());
                }
                let Some(why) = self.sick.get(&name).cloned() else {
                    let status = if known { "UPDATE_COMPLETE" } else { "CREATE_COMPLETE" };
                    return self.tell(&name, &wanted, status, None, at);
                };
                let status = if known { "UPDATE_FAILED" } else { "CREATE_FAILED" };
                self.tell(&name, &wanted, status, Some(why), at);
                let verb = if known { "update" } else { "create" };
                let why = format!("The following resource(s) failed to {verb}: [{name}]. ");
                if self.work.as_ref().is_some_and(|work| work.keeps_what_fails) {
                    self.become_("UPDATE_FAILED", Some(why), at);
                    self.work = None;
                } else {
                    self.work.as_mut().into_iter().for_each(|work| work.steps.clear());
                    self.undo(&why, None, &[], at);
                }
            }
            Step::Restore(name) => {
                let Some(why) = self.stuck.get(&name).cloned() else {
                    let old = self.before.as_ref().map(Content::resources).unwrap_or_default();
                    self.tell(&name, &old, "UPDATE_COMPLETE", None, at);
                    if let Some(old) = old.get(&name) {
                        self.resources.insert(name, old.clone());
                    }
                    return;
                };
                self.tell(&name, &wanted, "UPDATE_FAILED", Some(why), at);
                let why = format!("The following resource(s) failed to update: [{name}]. ");
                self.become_("UPDATE_ROLLBACK_FAILED", Some(why), at);
                self.work = None;
            }
            Step::Remove(name) => {
                let removed = self.resources.clone();
                self.resources.remove(&name);
                self.tell(&name, &removed, "DELETE_COMPLETE", None, at);
            }
            Step::Become(status) => {
                if matches!(status, "UPDATE_ROLLBACK_COMPLETE_CLEANUP_IN_PROGRESS" | "UPDATE_ROLLBACK_COMPLETE")
                    && let Some(before) = self.before.clone()
                {
                    self.content = before;
                }
                self.become_(status, None, at);
                if matches!(status, "UPDATE_COMPLETE" | "UPDATE_ROLLBACK_COMPLETE") {
                    self.before = None;
                }
            }
        }
    }

    fn then(&mut self, steps: impl IntoIterator<Item = (Duration, Step)>, now: Timestamp) {
        if let Some(work) = &mut self.work {
            work.steps.extend(steps);
            work.at = now + work.steps.front().map(|(after, _)| *after).unwrap_or_default();
        }
    }

    fn become_(&mut self, status: &'static str, reason: Option<String>, at: Timestamp) {
        self.status = status;
        self.reason.clone_from(&reason);
        self.put(self.name.clone(), STACK.into(), status, reason, at);
    }

    fn tell(
        &mut self,
        name: &str,
        of: &BTreeMap<String, Value>,
        status: &'static str,
        reason: Option<String>,
        at: Timestamp,
    ) {
        let kind = of.get(name).and_then(|it| it["Type"].as_str()).unwrap_or("Custom::Unknown").to_owned();
        self.put(name.into(), kind, status, reason, at);
    }

    fn put(&mut self, resource: String, kind: String, status: &'static str, reason: Option<String>, at: Timestamp) {
        let token = self.work.as_ref().and_then(|work| work.token.clone());
        self.events.push(Event { number: self.events.len(), at, resource, kind, status, reason, token });
    }

    /// As `DescribeStacks` tells of it.
    pub(super) fn shown(&self) -> Value {
        let content = &self.content;
        let parameters = content.parameters.iter().map(|(name, value)| {
            let hidden = content.template.parameters.get(name).is_some_and(|it| it.no_echo);
            json!({ "ParameterKey": name, "ParameterValue": if hidden { "****" } else { value } })
        });
        let triggers = content.triggers.iter().map(|(arn, kind)| json!({ "Arn": arn, "Type": kind }));
        json!({
            "StackId": self.id,
            "StackName": self.name,
            "CreationTime": time(self.created),
            "LastUpdatedTime": self.updated.map(time),
            "StackStatus": self.status,
            "StackStatusReason": self.reason,
            "DisableRollback": false,
            "Capabilities": content.capabilities,
            "NotificationARNs": [],
            "ParentId": self.parent,
            "RootId": self.parent,
            "EnableTerminationProtection": false,
            "Parameters": parameters.collect::<Vec<_>>(),
            "Tags": content.tags.iter().map(|(key, value)| json!({ "Key": key, "Value": value })).collect::<Vec<_>>(),
            "RollbackConfiguration": {
                "RollbackTriggers": triggers.collect::<Vec<_>>(),
                "MonitoringTimeInMinutes": content.monitoring,
            },
            "DriftInformation": { "StackDriftStatus": self.drift },
        })
    }

    /// As `DescribeStackEvents` tells of one.
    pub(super) fn shown_event(&self, event: &Event) -> Value {
        let of_stack = event.kind == STACK;
        let physical = if of_stack { self.id.clone() } else { format!("{}-{}", self.name, event.resource) };
        json!({
            "StackId": self.id,
            "StackName": self.name,
            "EventId": format!("{}-{}-{}", event.resource, event.status, event.number),
            "LogicalResourceId": event.resource,
            "PhysicalResourceId": physical,
            "ResourceType": event.kind,
            "Timestamp": time(event.at),
            "ResourceStatus": event.status,
            "ResourceStatusReason": event.reason,
            "ClientRequestToken": event.token,
        })
    }
}

fn time(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string()
}
