//! CloudFormation by hand: what a test sets up and looks at without a call of the API.

use std::{collections::BTreeMap, time::Duration};

use rollback_core::clock::Clock as _;

use super::{Form, Stack};
use crate::testing::{Simulator, World};

/// Stacks, without an HTTP call: somebody else's hands.
#[derive(Clone, Copy, Debug)]
pub struct Hands<'a>(pub(in crate::testing) &'a Simulator);

/// All stacks as they were once, to go back to.
#[derive(Clone, Debug)]
pub struct Snapshot(BTreeMap<String, Stack>);

impl Hands<'_> {
    /// So long a resource takes to be changed or removed; ten seconds at first. For stacks that are created from now on.
    pub fn takes(&self, time: Duration) {
        self.0.world().cloudformation.takes = time;
    }

    /// A stack of this template with these parameters, complete at once.
    ///
    /// # Panics
    /// When CloudFormation would refuse it.
    pub fn create(&self, name: &str, template: &str, parameters: &[(&str, &str)]) {
        let asked = form(name, template, parameters);
        self.with(|world, now| {
            let made = world.cloudformation.create(&asked, now);
            made.unwrap_or_else(|refusal| panic!("{name} cannot be created: {}", refusal.message));
            if let Some(stack) = world.cloudformation.stacks.get_mut(name) {
                stack.hurry();
            }
        });
    }

    /// Somebody updates a stack. It takes its time.
    ///
    /// # Panics
    /// When CloudFormation would refuse it.
    pub fn update(&self, name: &str, template: &str, parameters: &[(&str, &str)]) {
        self.update_with(name, template, parameters, &[]);
    }

    /// The same with more members of the request, as `("DisableRollback", "true")`.
    ///
    /// # Panics
    /// When CloudFormation would refuse it.
    pub fn update_with(&self, name: &str, template: &str, parameters: &[(&str, &str)], more: &[(&str, &str)]) {
        let mut asked = form(name, template, parameters);
        asked.extend(more.iter().map(|(name, value)| ((*name).into(), (*value).into())));
        self.with(|world, now| {
            let made = world.cloudformation.update(&asked, now);
            made.unwrap_or_else(|refusal| panic!("{name} cannot be updated: {}", refusal.message));
        });
    }

    /// Somebody cancels the update that runs.
    ///
    /// # Panics
    /// When none does.
    pub fn cancel(&self, name: &str) {
        let asked = Form::from([("StackName".into(), name.into())]);
        self.with(|world, now| {
            let made = world.cloudformation.cancel(&asked, now);
            made.unwrap_or_else(|refusal| panic!("{name} cannot be cancelled: {}", refusal.message));
        });
    }

    /// Somebody deletes it, and it is gone at once.
    pub fn delete(&self, name: &str) {
        self.with(|world, _| world.cloudformation.stacks.remove(name));
    }

    /// A template lies in S3 at this URL.
    pub fn upload(&self, url: &str, template: &str) {
        self.0.world().cloudformation.files.insert(url.into(), template.into());
    }

    /// From now on this resource cannot be changed or made, for this reason.
    pub fn fail(&self, name: &str, resource: &str, why: &str) {
        self.stack(name, |stack| stack.sick.insert(resource.into(), why.into()));
    }

    /// From now on this resource cannot be changed back, for this reason.
    pub fn fail_rollback(&self, name: &str, resource: &str, why: &str) {
        self.stack(name, |stack| stack.stuck.insert(resource.into(), why.into()));
    }

    /// Nothing fails any more.
    pub fn mend(&self, name: &str) {
        self.stack(name, |stack| {
            stack.sick.clear();
            stack.stuck.clear();
        });
    }

    /// What drift detection found when it last ran, as `DRIFTED`.
    pub fn drift(&self, name: &str, found: &'static str) {
        self.stack(name, |stack| stack.drift = found);
    }

    /// The stack is part of this other one.
    pub fn nest(&self, name: &str, parent: &str) {
        self.stack(name, |stack| stack.parent = Some(parent.into()));
    }

    /// The stack's status. `None` when there is no such stack.
    pub fn status(&self, name: &str) -> Option<String> {
        self.with(|world, _| world.cloudformation.stacks.get(name).map(|stack| stack.status.into()))
    }

    /// The value of a parameter, NoEcho or not.
    pub fn parameter(&self, name: &str, parameter: &str) -> Option<String> {
        self.with(|world, _| world.cloudformation.stacks.get(name)?.content.parameters.get(parameter).cloned())
    }

    /// The ARNs of the stack's rollback triggers.
    pub fn triggers(&self, name: &str) -> Vec<String> {
        self.with(|world, _| {
            let stack = world.cloudformation.stacks.get(name);
            stack.into_iter().flat_map(|stack| &stack.content.triggers).map(|(arn, _)| arn.clone()).collect()
        })
    }

    /// What the stack itself went through, in order: `UPDATE_IN_PROGRESS` and so on.
    pub fn course(&self, name: &str) -> Vec<String> {
        self.with(|world, _| {
            let stack = world.cloudformation.stacks.get(name);
            let events = stack.into_iter().flat_map(|stack| &stack.events);
            events.filter(|event| event.kind == super::stack::STACK).map(|event| event.status.into()).collect()
        })
    }

    /// All stacks as they are.
    pub fn snapshot(&self) -> Snapshot {
        self.with(|world, _| Snapshot(world.cloudformation.stacks.clone()))
    }

    /// All stacks as they were.
    pub fn restore(&self, snapshot: &Snapshot) {
        self.with(|world, _| world.cloudformation.stacks.clone_from(&snapshot.0));
    }

    fn stack<T>(&self, name: &str, act: impl FnOnce(&mut Stack) -> T) {
        self.with(|world, _| {
            let stack = world.cloudformation.stacks.get_mut(name).unwrap_or_else(|| panic!("there is no stack {name}"));
            act(stack);
        });
    }

    fn with<T>(&self, act: impl FnOnce(&mut World, jiff::Timestamp) -> T) -> T {
        let now = self.0.clock().now();
        let mut world = self.0.world();
        world.catch_up(now);
        act(&mut world, now)
    }
}

/// A request as the API takes it.
fn form(name: &str, template: &str, parameters: &[(&str, &str)]) -> Form {
    let mut asked = Form::from([("StackName".into(), name.into()), ("TemplateBody".into(), template.into())]);
    for (at, (key, value)) in parameters.iter().enumerate() {
        asked.insert(format!("Parameters.member.{}.ParameterKey", at + 1), (*key).into());
        asked.insert(format!("Parameters.member.{}.ParameterValue", at + 1), (*value).into());
    }
    asked
}
