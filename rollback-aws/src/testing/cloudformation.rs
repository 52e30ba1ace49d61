//! CloudFormation's room: stacks that are created, updated, cancelled, and rolled back by alarms, failures and hands.
//!
//! Templates are JSON with parameters, `Ref` and resources; a resource is changed when its definition changed, in
//! [`Hands::takes`] each. What may be asked for in which state, rollback triggers with their monitoring time, and tokens are
//! the documentation's; the words of refusals are as users of CloudFormation know them. Not documented, and decided here: the
//! same request with the same token is answered as the first was, and done once; the events of a rollback that was asked for
//! carry the token of that request; other triggers alone are no update.
//!
//! Not simulated: change sets, stack sets, nested stacks, imports, drift detection, stack policies, YAML, functions beside
//! `Ref`.

mod hands;
mod stack;
mod template;

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use http::{Request, Response};
use jiff::Timestamp;
use serde_json::{Value, json};

pub use self::hands::{Hands, Snapshot};
use self::{
    stack::{Content, Stack},
    template::Template,
};
use super::{
    ACCOUNT, cloudwatch,
    wire::{self, Called, Protocol, Refusal, Service},
};

/// What CloudFormation knows.
#[derive(Debug)]
pub(super) struct Room {
    region: String,
    stacks: BTreeMap<String, Stack>,
    /// Templates in S3, by their URLs.
    files: BTreeMap<String, String>,
    takes: Duration,
}

type Answer<T> = Result<T, Refusal>;
type Form = BTreeMap<String, String>;

/// The version of the API, by which its requests are known.
const VERSION: &str = "2010-05-15";
/// What its answers are in.
pub(super) const NAMESPACE: &str = "http://cloudformation.amazonaws.com/doc/2010-05-15/";
/// So many events come in a page.
const PAGE: usize = 100;

impl Room {
    pub(super) fn new(region: &str) -> Self {
        Self { region: region.into(), stacks: BTreeMap::new(), files: BTreeMap::new(), takes: Duration::from_secs(10) }
    }

    /// Lets everything happen that was to happen until now.
    pub(super) fn pass(&mut self, now: Timestamp, alarms: &cloudwatch::Room) {
        for stack in self.stacks.values_mut() {
            stack.pass(now, alarms);
        }
    }

    pub(super) fn answer(
        &mut self,
        called: &Called,
        request: &Request<Bytes>,
        now: Timestamp,
    ) -> Answer<Response<Bytes>> {
        let asked = wire::query(request).unwrap_or_default();
        let said = match called.operation.as_str() {
            "CreateStack" => self.create(&asked, now).map(Some),
            "UpdateStack" => self.update(&asked, now).map(Some),
            "CancelUpdateStack" => self.cancel(&asked, now).map(|()| None),
            "ContinueUpdateRollback" => self.go_on(&asked, now).map(Some),
            "RollbackStack" => self.roll_back(&asked, now).map(Some),
            "DescribeStacks" => self.describe(&asked).map(Some),
            "DescribeStackEvents" => self.events(&asked).map(Some),
            "GetTemplate" => self.template(&asked).map(Some),
            "GetTemplateSummary" => self.summary(&asked).map(Some),
            other => Err(Refusal::new(400, "InvalidAction", format!("{other} is not simulated"))),
        }?;
        Ok(wire::query_answer(&called.operation, NAMESPACE, said.as_ref()))
    }

    fn create(&mut self, asked: &Form, now: Timestamp) -> Answer<Value> {
        let name = asked.get("StackName").ok_or_else(|| required("stackName"))?;
        if let Some(known) = self.stacks.get(name) {
            if repeats(known, asked)? {
                return Ok(json!({ "StackId": known.id }));
            }
            let why = format!("Stack [{name}] already exists");
            return Err(Refusal::new(400, "AlreadyExistsException", why));
        }
        let content = self.content(asked, None)?;
        let id = self.new_id(name);
        let token = asked.get("ClientRequestToken").cloned();
        let mut stack = Stack::created(name, id, content, now, token, self.takes);
        remember(&mut stack, asked);
        let said = json!({ "StackId": stack.id });
        self.stacks.insert(name.clone(), stack);
        Ok(said)
    }

    fn update(&mut self, asked: &Form, now: Timestamp) -> Answer<Value> {
        let name = self.named(asked, |name| format!("Stack [{name}] does not exist"))?;
        let stack = &self.stacks[&name];
        let said = json!({ "StackId": stack.id });
        if repeats(stack, asked)? {
            return Ok(said);
        }
        if !stack.is_updatable() {
            return Err(invalid(format!("Stack:{} is in {} state and can not be updated.", stack.id, stack.status)));
        }
        let content = self.content(asked, Some(&stack.content))?;
        let keeps = asked.get("DisableRollback").is_some_and(|it| it == "true");
        let token = asked.get("ClientRequestToken").cloned();
        let stack = self.stacks.get_mut(&name).ok_or_else(|| required("stackName"))?;
        stack.update(content, keeps, token, now)?;
        remember(stack, asked);
        Ok(said)
    }

    fn cancel(&mut self, asked: &Form, now: Timestamp) -> Answer<()> {
        let stack = self.stack_mut(asked)?;
        if repeats(stack, asked)? {
            return Ok(());
        }
        if stack.status != "UPDATE_IN_PROGRESS" {
            return Err(invalid("CancelUpdateStack cannot be called from current stack status"));
        }
        stack.undo("User Initiated", asked.get("ClientRequestToken").cloned(), &[], now);
        remember(stack, asked);
        Ok(())
    }

    fn go_on(&mut self, asked: &Form, now: Timestamp) -> Answer<Value> {
        let stack = self.stack_mut(asked)?;
        if repeats(stack, asked)? {
            return Ok(json!({}));
        }
        if stack.status != "UPDATE_ROLLBACK_FAILED" {
            let why = format!("Stack:{} is in {} state and can not continue rollback.", stack.id, stack.status);
            return Err(invalid(why));
        }
        let skip = list(asked, "ResourcesToSkip");
        stack.undo("User Initiated", asked.get("ClientRequestToken").cloned(), &skip, now);
        remember(stack, asked);
        Ok(json!({}))
    }

    fn roll_back(&mut self, asked: &Form, now: Timestamp) -> Answer<Value> {
        let stack = self.stack_mut(asked)?;
        let said = json!({ "StackId": stack.id });
        if repeats(stack, asked)? {
            return Ok(said);
        }
        if stack.status != "UPDATE_FAILED" {
            let why = format!("Stack:{} is in {} state and can not be rolled back.", stack.id, stack.status);
            return Err(invalid(why));
        }
        stack.undo("User Initiated", asked.get("ClientRequestToken").cloned(), &[], now);
        remember(stack, asked);
        Ok(said)
    }

    fn describe(&self, asked: &Form) -> Answer<Value> {
        let shown: Vec<Value> = match asked.get("StackName") {
            None => self.stacks.values().map(Stack::shown).collect(),
            Some(_) => vec![self.stack(asked)?.shown()],
        };
        Ok(json!({ "Stacks": shown }))
    }

    fn events(&self, asked: &Form) -> Answer<Value> {
        let stack = self.stack_by(asked, |name| format!("Stack [{name}] does not exist"))?;
        // Pages are told by the number of the event that they begin at: new events do not move them.
        let from = match asked.get("NextToken").map(|token| token.parse::<usize>()) {
            None => stack.events.len(),
            Some(Ok(from)) if from <= stack.events.len() => from,
            Some(_) => return Err(invalid("Invalid NextToken")),
        };
        let to = from.saturating_sub(PAGE);
        let shown: Vec<Value> = stack.events[to..from].iter().rev().map(|event| stack.shown_event(event)).collect();
        Ok(json!({ "StackEvents": shown, "NextToken": (to > 0).then(|| to.to_string()) }))
    }

    fn template(&self, asked: &Form) -> Answer<Value> {
        let stack = self.stack_by(asked, |name| format!("Stack with id {name} does not exist"))?;
        Ok(json!({ "TemplateBody": stack.content.template.text, "StagesAvailable": ["Original", "Processed"] }))
    }

    fn summary(&self, asked: &Form) -> Answer<Value> {
        let template = match asked.get("StackName") {
            Some(_) => {
                self.stack_by(asked, |name| format!("Stack with id {name} does not exist"))?.content.template.clone()
            }
            None => self.asked_template(asked, None)?,
        };
        let parameters = template.parameters.iter().map(|(name, it)| {
            json!({ "ParameterKey": name, "ParameterType": it.kind, "DefaultValue": it.default, "NoEcho": it.no_echo })
        });
        let capabilities = template.capabilities();
        Ok(json!({
            "Parameters": parameters.collect::<Vec<_>>(),
            "ResourceTypes": template.types(),
            "CapabilitiesReason": (!capabilities.is_empty())
                .then_some("The following resource(s) require capabilities: [AWS::IAM::Role]"),
            "Capabilities": capabilities,
        }))
    }

    /// What a request asks a stack to be made of.
    fn content(&self, asked: &Form, before: Option<&Content>) -> Answer<Content> {
        let template = self.asked_template(asked, before)?;
        let capabilities = list(asked, "Capabilities");
        let missing: Vec<&str> =
            template.capabilities().into_iter().filter(|it| !acknowledges(&capabilities, it)).collect();
        if !missing.is_empty() {
            let why = format!("Requires capabilities : [{}]", missing.join(", "));
            return Err(Refusal::new(400, "InsufficientCapabilitiesException", why));
        }
        let (triggers, monitoring) = triggers(asked, before)?;
        let tags = match asked.contains_key("Tags") || asked.keys().any(|name| name.starts_with("Tags.")) {
            true => pairs(asked, "Tags", "Key", "Value").into_iter().collect(),
            false => before.map(|it| it.tags.clone()).unwrap_or_default(),
        };
        Ok(Content {
            parameters: parameters(asked, &template, before)?,
            template,
            tags,
            capabilities,
            triggers,
            monitoring,
        })
    }

    fn asked_template(&self, asked: &Form, before: Option<&Content>) -> Answer<Template> {
        let previous = asked.get("UsePreviousTemplate").is_some_and(|it| it == "true");
        match (asked.get("TemplateBody"), asked.get("TemplateURL"), before) {
            (Some(body), None, _) if !previous => Template::inline(body),
            (None, Some(url), _) if !previous => {
                let body = self.files.get(url).ok_or_else(|| invalid("S3 error: The specified key does not exist."))?;
                Template::file(body)
            }
            (None, None, Some(before)) if previous => Ok(before.template.clone()),
            _ => Err(invalid("Either Template URL or Template Body must be specified.")),
        }
    }

    fn named(&self, asked: &Form, unknown: impl Fn(&str) -> String) -> Answer<String> {
        let name = asked.get("StackName").ok_or_else(|| required("stackName"))?;
        let found = self.stacks.values().find(|stack| stack.name == *name || stack.id == *name);
        found.map(|stack| stack.name.clone()).ok_or_else(|| invalid(unknown(name)))
    }

    fn stack_by(&self, asked: &Form, unknown: impl Fn(&str) -> String) -> Answer<&Stack> {
        let name = self.named(asked, unknown)?;
        self.stacks.get(&name).ok_or_else(|| required("stackName"))
    }

    fn stack(&self, asked: &Form) -> Answer<&Stack> {
        self.stack_by(asked, |name| format!("Stack with id {name} does not exist"))
    }

    fn stack_mut(&mut self, asked: &Form) -> Answer<&mut Stack> {
        let name = self.named(asked, |name| format!("Stack [{name}] does not exist"))?;
        self.stacks.get_mut(&name).ok_or_else(|| required("stackName"))
    }

    fn new_id(&self, name: &str) -> String {
        let partition = crate::account::partition(&self.region);
        let id = uuid::Uuid::new_v4();
        format!("arn:{partition}:cloudformation:{}:{ACCOUNT}:stack/{name}/{id}", self.region)
    }
}

/// Whether this request was carried out before.
fn repeats(stack: &Stack, asked: &Form) -> Answer<bool> {
    let Some(token) = asked.get("ClientRequestToken") else { return Ok(false) };
    let fits = token.len() <= 128
        && token.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        && !token.is_empty()
        && !token.starts_with('-');
    if !fits {
        return Err(invalid(format!(
            "1 validation error detected: Value '{token}' at 'clientRequestToken' failed to satisfy constraint: Member must \
             satisfy regular expression pattern: [a-zA-Z0-9][-a-zA-Z0-9]*"
        )));
    }
    match stack.tokens.get(token) {
        None => Ok(false),
        Some(known) if *known == request(asked) => Ok(true),
        Some(_) => {
            let why = format!("A stack operation with token {token} already exists");
            Err(Refusal::new(400, "TokenAlreadyExistsException", why))
        }
    }
}

fn remember(stack: &mut Stack, asked: &Form) {
    if let Some(token) = asked.get("ClientRequestToken") {
        stack.tokens.insert(token.clone(), request(asked));
    }
}

fn request(asked: &Form) -> String {
    format!("{asked:?}")
}

fn acknowledges(given: &[String], wanted: &str) -> bool {
    given.iter().any(|it| it == wanted || it == "CAPABILITY_NAMED_IAM")
}

fn parameters(asked: &Form, template: &Template, before: Option<&Content>) -> Answer<BTreeMap<String, String>> {
    let mut values = BTreeMap::new();
    let mut unknown = Vec::new();
    for at in (1..).take_while(|at| asked.contains_key(&format!("Parameters.member.{at}.ParameterKey"))) {
        let key = &asked[&format!("Parameters.member.{at}.ParameterKey")];
        let previous = asked.get(&format!("Parameters.member.{at}.UsePreviousValue")).is_some_and(|it| it == "true");
        let value = if previous {
            before.and_then(|it| it.parameters.get(key)).cloned().ok_or_else(|| {
                invalid(format!(
                    "Invalid input for parameter key {key}. Cannot specify usePreviousValue as true for a parameter key not \
                     in the previous template"
                ))
            })?
        } else {
            asked.get(&format!("Parameters.member.{at}.ParameterValue")).cloned().unwrap_or_default()
        };
        if template.parameters.contains_key(key) {
            values.insert(key.clone(), value);
        } else {
            unknown.push(key.clone());
        }
    }
    if !unknown.is_empty() {
        return Err(invalid(format!("Parameters: [{}] do not exist in the template", unknown.join(", "))));
    }
    let mut missing = Vec::new();
    for (name, declared) in &template.parameters {
        match (values.contains_key(name), &declared.default) {
            (false, Some(default)) => drop(values.insert(name.clone(), default.clone())),
            (false, None) => missing.push(name.clone()),
            (true, _) => {}
        }
    }
    match missing.is_empty() {
        true => Ok(values),
        false => Err(invalid(format!("Parameters: [{}] must have values", missing.join(", ")))),
    }
}

/// The triggers and the minutes of monitoring: what is not said stays as it is.
fn triggers(asked: &Form, before: Option<&Content>) -> Answer<(Vec<(String, String)>, u64)> {
    let triggers = match asked.keys().any(|name| name.starts_with("RollbackConfiguration.RollbackTriggers")) {
        true => pairs(asked, "RollbackConfiguration.RollbackTriggers", "Arn", "Type"),
        false => before.map(|it| it.triggers.clone()).unwrap_or_default(),
    };
    let minutes = asked.get("RollbackConfiguration.MonitoringTimeInMinutes");
    let minutes = match minutes.map(|it| it.parse::<u64>()) {
        None => before.map(|it| it.monitoring).unwrap_or_default(),
        Some(Ok(minutes)) if minutes <= 180 => minutes,
        Some(_) => {
            return Err(invalid(
                "1 validation error detected: Value at 'rollbackConfiguration.monitoringTimeInMinutes' failed to satisfy \
                 constraint: Member must have value less than or equal to 180",
            ));
        }
    };
    if triggers.len() > 5 {
        return Err(invalid(
            "1 validation error detected: Value at 'rollbackConfiguration.rollbackTriggers' failed to satisfy constraint: \
             Member must have length less than or equal to 5",
        ));
    }
    Ok((triggers, minutes))
}

fn list(asked: &Form, name: &str) -> Vec<String> {
    (1..).map_while(|at| asked.get(&format!("{name}.member.{at}")).cloned()).collect()
}

fn pairs(asked: &Form, name: &str, first: &str, second: &str) -> Vec<(String, String)> {
    let one = |at: usize| {
        let key = asked.get(&format!("{name}.member.{at}.{first}"))?;
        Some((key.clone(), asked.get(&format!("{name}.member.{at}.{second}")).cloned().unwrap_or_default()))
    };
    (1..).map_while(one).collect()
}

/// CloudFormation's one code for nearly everything that it does not like.
fn invalid(why: impl Into<String>) -> Refusal {
    Refusal::new(400, "ValidationError", why)
}

fn required(member: &str) -> Refusal {
    invalid(format!(
        "1 validation error detected: Value null at '{member}' failed to satisfy constraint: Member must not be null"
    ))
}

/// Whether a request is CloudFormation's.
pub(super) fn route(request: &Request<Bytes>) -> Option<Called> {
    let form = request.headers().get(http::header::CONTENT_TYPE)?.to_str().ok()?;
    if !form.starts_with("application/x-www-form-urlencoded") {
        return None;
    }
    let asked = wire::query(request)?;
    if asked.get("Version").map(String::as_str) != Some(VERSION) {
        return None;
    }
    let operation = asked.get("Action")?.clone();
    Some(Called { service: Service::CloudFormation, protocol: Protocol::Query, operation })
}
