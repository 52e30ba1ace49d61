//! A task definition, and whether it can be deployed.

use aws_sdk_ecs::{
    Client,
    types::{Tag, TaskDefinition, TaskDefinitionField, TaskDefinitionStatus},
};
use rollback_core::{Result, model::Note};

use crate::error::sorted;

/// A task definition and its tags. None when there is none.
pub(crate) async fn read(client: &Client, name: &str) -> Result<Option<(TaskDefinition, Vec<Tag>)>> {
    let call = client.describe_task_definition().task_definition(name);
    match call.include(TaskDefinitionField::Tags).send().await {
        Ok(answer) => Ok(answer.task_definition.map(|it| (it, answer.tags.unwrap_or_default()))),
        // "Unable to describe task definition.", which is how ECS says that there is none.
        Err(e) if e.as_service_error().is_some_and(|e| e.is_client_exception()) => Ok(None),
        Err(e) => Err(sorted(format_args!("reading task definition {name}"), e)),
    }
}

/// Why a task definition cannot be deployed.
pub(crate) fn unfit(name: &str, found: Option<&TaskDefinition>) -> Option<Note> {
    let status = match found.map(|it| it.status()) {
        None => return Some(Note::new(format!("there is no task definition {name}; register it first"))),
        Some(None | Some(TaskDefinitionStatus::Active)) => return None,
        Some(Some(status)) => status,
    };
    Some(Note::new(format!(
        "task definition {name} is {status}, and ECS deploys no such; register it again, and keep what a rollback needs"
    )))
}
