//! Another revision of the task definition that serves.

use aws_sdk_ecs::types::TaskDefinition;
use rollback_core::{Error, ErrorKind, Result, model::Revision};

use super::{Service, definition, look, name::short};
use crate::error::sorted;

impl Service {
    /// Registers a revision of the service's task definition with another image in one container, and everything else as it
    /// is, but for the tags that AWS writes itself (`aws:…`, as CloudFormation's), which nobody else may set. Nothing is
    /// deployed by it, and nothing is ever deregistered: the revision that serves is the way back.
    ///
    /// # Errors
    /// `NotFound` when the task definition has no such container.
    ///
    /// # Cancel safety
    /// Dropped half way it may have registered a revision that nobody uses. Called again it registers another.
    pub async fn register(&self, container: &str, image: &str) -> Result<Revision> {
        let service = self.described().await?;
        self.refuse_others(&service)?;
        let serves = look::told(&service);
        let Some((mut known, mut tags)) = definition::read(&self.client, &serves).await? else {
            let why = format!("there is no task definition {serves}, which service {} names", self.name);
            return Err(Error::new(ErrorKind::NotFound, why));
        };
        let mut containers = known.container_definitions.take().unwrap_or_default();
        let names: Vec<&str> = containers.iter().filter_map(|it| it.name()).collect();
        let Some(at) = names.iter().position(|name| *name == container) else {
            let why = format!("task definition {serves} has no container {container}; it has {}", names.join(", "));
            return Err(Error::new(ErrorKind::NotFound, why));
        };
        containers[at].image = Some(image.into());
        // ECS refuses a request with one of them (API reference, RegisterTaskDefinition).
        tags.retain(|tag| !is_of_aws(tag.key()) && !is_of_aws(tag.value()));
        let call = self.client.register_task_definition().set_family(known.family.take());
        let call = call
            .set_container_definitions(Some(containers))
            .set_task_role_arn(known.task_role_arn)
            .set_execution_role_arn(known.execution_role_arn)
            .set_network_mode(known.network_mode)
            .set_volumes(known.volumes)
            .set_placement_constraints(known.placement_constraints)
            .set_requires_compatibilities(known.requires_compatibilities)
            .set_cpu(known.cpu)
            .set_memory(known.memory)
            .set_pid_mode(known.pid_mode)
            .set_ipc_mode(known.ipc_mode)
            .set_proxy_configuration(known.proxy_configuration)
            .set_ephemeral_storage(known.ephemeral_storage)
            .set_runtime_platform(known.runtime_platform)
            .set_enable_fault_injection(known.enable_fault_injection)
            .set_tags(Some(tags).filter(|tags| !tags.is_empty()));
        let answer = call.send().await.map_err(|e| sorted(format_args!("registering {image}"), e))?;
        let made = answer.task_definition().and_then(TaskDefinition::task_definition_arn).unwrap_or_default();
        Self::revision(short(made))
    }
}

/// Whether this key or value of a tag has the prefix that AWS keeps for itself, in whatever case.
fn is_of_aws(text: Option<&str>) -> bool {
    text.and_then(|text| text.get(..4)).is_some_and(|start| start.eq_ignore_ascii_case("aws:"))
}
