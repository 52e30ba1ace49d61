//! What the service's tasks run, and why those that stopped did.

use std::collections::BTreeMap;

use aws_sdk_ecs::types::{DesiredStatus, Task};
use rollback_core::{
    Result,
    model::{Note, Part, Serves},
};

use super::{Service, look::Seen, name::short};
use crate::error::sorted;

/// Tasks that are meant to run, by `family:revision`: those that do, and all of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Runs(BTreeMap<String, (i32, i32)>);

impl Runs {
    fn of(tasks: &[Task]) -> Self {
        let mut count = BTreeMap::<String, (i32, i32)>::new();
        for task in tasks {
            let (running, all) = count.entry(short(task.task_definition_arn().unwrap_or("?")).into()).or_default();
            *running += i32::from(task.last_status() == Some("RUNNING"));
            *all += 1;
        }
        Self(count)
    }

    /// Tasks of anything else.
    pub(super) fn besides(&self, wanted: &str) -> Option<String> {
        let others: Vec<String> =
            self.0.iter().filter(|(name, _)| *name != wanted).map(|(name, (_, all))| told(*all, name)).collect();
        (!others.is_empty()).then(|| format!("there are {}", others.join(", ")))
    }

    /// What is missing until this runs alone and as often as desired.
    pub(super) fn short_of(&self, wanted: &str, desired: i32) -> Option<String> {
        if let Some(others) = self.besides(wanted) {
            return Some(format!("ECS is done with {wanted}, and yet {others}"));
        }
        let running = self.0.get(wanted).map_or(0, |(running, _)| *running);
        (running < desired).then(|| format!("{running} of {desired} tasks of {wanted} run"))
    }

    pub(super) fn parts(&self, baseline: &str, candidate: &str) -> Vec<Part> {
        let serves = |name: &str| match name {
            _ if name == baseline => Serves::Baseline,
            _ if name == candidate => Serves::Candidate,
            _ => Serves::Other,
        };
        self.0.iter().map(|(name, (_, all))| Part::new(told(*all, name), serves(name))).collect()
    }
}

fn told(count: i32, of: &str) -> String {
    format!("{count} {} of {of}", if count == 1 { "task" } else { "tasks" })
}

impl Service {
    /// What the tasks run that are meant to run.
    pub(super) async fn runs(&self) -> Result<Runs> {
        let mut all = Vec::new();
        let mut next = None;
        loop {
            let (arns, more) = self.listed(DesiredStatus::Running, next).await?;
            all.extend(self.described_tasks(arns).await?);
            next = more;
            if next.is_none() {
                return Ok(Runs::of(&all));
            }
        }
    }

    /// One page of tasks, at most 100, and the token for the next.
    pub(super) async fn listed(
        &self,
        desired: DesiredStatus,
        from: Option<String>,
    ) -> Result<(Vec<String>, Option<String>)> {
        let call = self.client.list_tasks().cluster(&self.name.cluster).service_name(&self.name.service);
        let call = call.desired_status(desired).set_next_token(from);
        let answer = call.send().await.map_err(|e| sorted(format_args!("listing tasks of {}", self.name), e))?;
        Ok((answer.task_arns.unwrap_or_default(), answer.next_token.filter(|token| !token.is_empty())))
    }

    pub(super) async fn described_tasks(&self, arns: Vec<String>) -> Result<Vec<Task>> {
        if arns.is_empty() {
            return Ok(Vec::new());
        }
        let call = self.client.describe_tasks().cluster(&self.name.cluster).set_tasks(Some(arns));
        let answer = call.send().await.map_err(|e| sorted(format_args!("reading tasks of {}", self.name), e))?;
        Ok(answer.tasks.unwrap_or_default())
    }

    /// What a look waits for, and why tasks of the candidate stop meanwhile.
    pub(super) async fn with_reasons(&self, seen: &Seen, candidate: &str, what: Note) -> Note {
        let deployments = seen.service.deployments();
        let older = deployments
            .iter()
            .any(|it| it.failed_tasks() > 0 && it.task_definition().is_some_and(|arn| short(arn) == candidate));
        let fails = seen.current.as_ref().is_some_and(|it| it.failures > 0 && it.target == candidate);
        if fails || older { self.with_reasons_of(candidate, what.as_str().to_owned()).await } else { what }
    }

    /// A text, and why tasks of this task definition stopped. The text alone if ECS does not tell.
    pub(super) async fn with_reasons_of(&self, candidate: &str, what: String) -> Note {
        let reasons = match self.listed(DesiredStatus::Stopped, None).await {
            Ok((arns, _)) => self.described_tasks(arns).await,
            Err(e) => Err(e),
        };
        match reasons.ok().and_then(|tasks| reasons_of(&tasks, candidate)) {
            Some(why) => Note::new(format!("{what}; {why}")),
            None => Note::new(what),
        }
    }
}

/// Why tasks of a task definition stopped that nobody stopped, the most frequent reason first.
fn reasons_of(tasks: &[Task], candidate: &str) -> Option<String> {
    let mut reasons = BTreeMap::<String, u32>::new();
    for task in tasks.iter().filter(|task| task.task_definition_arn().is_some_and(|arn| short(arn) == candidate)) {
        // Stopped by ECS's scheduler or by a person: that says nothing about the task.
        let stopped = task.stop_code().map(|code| code.as_str().to_owned()).unwrap_or_default();
        if matches!(stopped.as_str(), "ServiceSchedulerInitiated" | "UserInitiated") {
            continue;
        }
        let mut why = task.stopped_reason().unwrap_or("no reason is given").to_owned();
        for container in task.containers() {
            let name = container.name().unwrap_or("a container");
            if let Some(code) = container.exit_code().filter(|code| *code != 0) {
                why.push_str(&format!(", {name} ended with {code}"));
            }
            if let Some(reason) = container.reason().filter(|reason| !reason.is_empty()) {
                why.push_str(&format!(", {name}: {reason}"));
            }
        }
        *reasons.entry(why).or_default() += 1;
    }
    let mut reasons: Vec<(String, u32)> = reasons.into_iter().collect();
    reasons.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    let all: u32 = reasons.iter().map(|(_, count)| count).sum();
    let (why, _) = reasons.first()?;
    let more = if reasons.len() > 1 { ", and others" } else { "" };
    Some(format!("{all} {} of {candidate} stopped: {why}{more}", if all == 1 { "task" } else { "tasks" }))
}
