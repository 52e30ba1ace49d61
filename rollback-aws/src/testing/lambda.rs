//! Lambda's room: functions, versions, aliases, provisioned concurrency, invocations.
//!
//! Refusals and their texts are LocalStack's recordings of the real service (`localstack/localstack` 8b9a79f,
//! `tests/aws/services/lambda_/test_lambda_api.snapshot.json`), unless a line says otherwise. What is observed of the real
//! service and easily overlooked:
//!
//! - every write of an alias makes a new `RevisionId`, even if it changes nothing;
//! - the end of an update makes a new `RevisionId` of the function;
//! - publishing unchanged code gives the version that is there already;
//! - an alias with provisioned concurrency that is pointed at another version gets weights from AWS itself, back to the old
//!   version, until the new one is provisioned.
//!
//! A function's environment says how it behaves when invoked: `SIMULATOR_ERROR_RATE` (0 to 1), `SIMULATOR_DURATION_MS`.
//! A version keeps the environment that it was published with, as everything else.

mod hands;
mod model;
mod routes;

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use jiff::Timestamp;
use serde_json::{Map, Value, json};

pub use self::hands::{Build, Hands, Pointed, Snapshot, Write};
use self::model::{Alias, Function, Provisioned, Version, revision};
pub(super) use self::routes::route;
use super::{
    ACCOUNT, Datum,
    metric::Split,
    wire::{self, Called, Refusal},
};

type Functions = BTreeMap<String, Function>;

/// What Lambda knows.
#[derive(Debug)]
pub(super) struct Room {
    region: String,
    functions: Arc<Functions>,
    /// What was there before each change of late, for reads that lag behind.
    before: VecDeque<(Timestamp, Arc<Functions>)>,
    lag: Duration,
    /// How long creating, updating and publishing take.
    takes: Duration,
    traffic: BTreeMap<(String, String), Traffic>,
    passed: Timestamp,
    data: Vec<Datum>,
    writes: Vec<Write>,
    checks_revisions: bool,
}

/// Calls of an alias that nobody sends.
#[derive(Clone, Copy, Debug)]
struct Traffic {
    per_minute: f64,
    owed: f64,
}

type Answer = Result<(u16, Value), Refusal>;

impl Room {
    pub(super) fn new(region: &str, now: Timestamp) -> Self {
        Self {
            region: region.into(),
            functions: Arc::default(),
            before: VecDeque::new(),
            lag: Duration::ZERO,
            takes: Duration::from_millis(600),
            traffic: BTreeMap::new(),
            passed: now,
            data: Vec::new(),
            writes: Vec::new(),
            checks_revisions: true,
        }
    }

    /// The end of the minute that passes next, if it has passed by now and anything happens in it.
    pub(super) fn next_minute(&self, now: Timestamp) -> Option<Timestamp> {
        if self.traffic.is_empty() {
            return None;
        }
        let next = (self.passed.as_second().div_euclid(60) + 1) * 60;
        Timestamp::from_second(next).ok().filter(|next| *next < now)
    }

    /// Lets everything happen until then: updates end, concurrency is provisioned, traffic flows. What it measured.
    pub(super) fn pass(&mut self, until: Timestamp) -> Vec<Datum> {
        if self.functions.values().any(|function| function.is_due(until)) {
            for function in Arc::make_mut(&mut self.functions).values_mut() {
                function.settle(until);
            }
        }
        let since = self.passed;
        let seconds = until.duration_since(since).as_secs_f64().max(0.0);
        self.passed = self.passed.max(until);
        for ((name, alias), mut traffic) in self.traffic.clone() {
            traffic.owed += traffic.per_minute * seconds / 60.0;
            let calls = traffic.owed.floor();
            traffic.owed -= calls;
            self.traffic.insert((name.clone(), alias.clone()), traffic);
            if calls > 0.0 {
                self.call(&name, Some(&alias), calls, since);
            }
        }
        self.take_data()
    }

    /// What invocations measured since it was asked last.
    pub(super) fn take_data(&mut self) -> Vec<Datum> {
        std::mem::take(&mut self.data)
    }

    pub(super) fn answer(
        &mut self,
        called: &Called,
        request: &Request<Bytes>,
        now: Timestamp,
    ) -> Result<Response<Bytes>, Refusal> {
        let path = routes::Path::of(request);
        let body = read(request)?;
        if called.operation == "Invoke" {
            return self.invoke(&path, now);
        }
        let (status, said) = match called.operation.as_str() {
            "CreateFunction" => self.create_function(&body, now),
            "GetFunction" => self.get_function(&path, now),
            "GetFunctionConfiguration" => self.get_function_configuration(&path, now),
            "UpdateFunctionCode" => self.update_function_code(&path, &body, now),
            "UpdateFunctionConfiguration" => self.update_function_configuration(&path, &body, now),
            "DeleteFunction" => self.delete_function(&path, now),
            "PublishVersion" => self.publish_version(&path, &body, now),
            "ListVersionsByFunction" => self.list_versions(&path, now),
            "CreateAlias" => self.create_alias(&path, &body, now),
            "GetAlias" => self.get_alias(&path, now),
            "UpdateAlias" => self.update_alias(&path, &body, now),
            "DeleteAlias" => self.delete_alias(&path, now),
            "ListAliases" => self.list_aliases(&path, now),
            "PutProvisionedConcurrencyConfig" => self.put_provisioned(&path, &body, now),
            "GetProvisionedConcurrencyConfig" => self.get_provisioned(&path, now),
            "DeleteProvisionedConcurrencyConfig" => self.delete_provisioned(&path, now),
            "ListProvisionedConcurrencyConfigs" => self.list_provisioned(&path, now),
            other => Err(Refusal::new(404, "UnknownOperationException", format!("{other} is not simulated"))),
        }?;
        if said.is_null() {
            return Ok(wire::bytes_answer(status, JSON, Bytes::new()));
        }
        Ok(wire::json_answer(status, JSON, &said))
    }

    // ------------------------------------------------------------------------------------------------------ functions

    fn create_function(&mut self, body: &Value, now: Timestamp) -> Answer {
        let name = text(body, "FunctionName").ok_or_else(|| missing("functionName"))?;
        let name = self.named(name)?.0;
        let role = text(body, "Role").ok_or_else(|| missing("role"))?;
        if self.functions.contains_key(&name) {
            return Err(conflict(format!("Function already exist: {name}")));
        }
        let code = body.get("Code").filter(|code| code.is_object()).ok_or_else(|| missing("code"))?;
        let mut latest = Version::new(role, now);
        latest.set_code(code)?;
        latest.configure(body);
        latest.active_at = now + self.takes;
        let arn = self.arn(&name);
        let mut function = Function::new(arn, latest);
        if body.get("Publish").and_then(Value::as_bool) == Some(true) {
            function.publish("", now, self.takes);
        }
        let said = function.latest.describe(&name, &function.arn, "$LATEST", now, false);
        self.change(now).insert(name, function);
        Ok((201, said))
    }

    fn get_function(&self, path: &routes::Path, now: Timestamp) -> Answer {
        let (_, said) = self.get_function_configuration(path, now)?;
        let place = json!({ "RepositoryType": "S3", "Location": "https://simulated.example/code" });
        Ok((200, json!({ "Configuration": said, "Code": place })))
    }

    fn get_function_configuration(&self, path: &routes::Path, now: Timestamp) -> Answer {
        let (name, of_arn) = self.named(&path.function)?;
        let qualifier = path.query("Qualifier").or(of_arn);
        let functions = self.seen(now);
        let function = functions.get(&name).ok_or_else(|| self.no_function(&name, qualifier.as_deref()))?;
        let number = match qualifier.as_deref() {
            None | Some("$LATEST") => None,
            Some(qualifier) => {
                Some(function.resolve(qualifier).ok_or_else(|| self.no_function(&name, Some(qualifier)))?)
            }
        };
        let (arn, version) = match (&number, &qualifier) {
            (Some(_), Some(qualifier)) => (format!("{}:{qualifier}", function.arn), number.as_deref()),
            _ => (function.arn.clone(), None),
        };
        let shown = version.unwrap_or("$LATEST");
        let version = function.version(shown).ok_or_else(|| self.no_function(&name, qualifier.as_deref()))?;
        Ok((200, version.describe(&name, &arn, shown, now, true)))
    }

    fn update_function_code(&mut self, path: &routes::Path, body: &Value, now: Timestamp) -> Answer {
        let (name, _) = self.named(&path.function)?;
        let takes = self.takes;
        let refused = self.no_function(&name, None);
        let function = self.change(now).get_mut(&name).ok_or(refused)?;
        function.latest.ready_for_update(&function.arn, now)?;
        precondition(body, &function.latest.revision)?;
        let mut next = function.latest.clone();
        next.set_code(body)?;
        if body.get("DryRun").and_then(Value::as_bool) == Some(true) {
            return Ok((200, next.describe(&name, &function.arn, "$LATEST", now, false)));
        }
        next.touch(now, takes);
        function.latest = next;
        if body.get("Publish").and_then(Value::as_bool) == Some(true) {
            let number = function.publish("", now, takes);
            let arn = format!("{}:{number}", function.arn);
            let version = function.version(&number).expect("just published");
            return Ok((200, version.describe(&name, &arn, &number, now, true)));
        }
        Ok((200, function.latest.describe(&name, &function.arn, "$LATEST", now, true)))
    }

    fn update_function_configuration(&mut self, path: &routes::Path, body: &Value, now: Timestamp) -> Answer {
        let (name, _) = self.named(&path.function)?;
        let takes = self.takes;
        let refused = self.no_function(&name, None);
        let function = self.change(now).get_mut(&name).ok_or(refused)?;
        function.latest.ready_for_update(&function.arn, now)?;
        precondition(body, &function.latest.revision)?;
        function.latest.configure(body);
        if let Some(role) = text(body, "Role") {
            function.latest.role = role.into();
        }
        function.latest.touch(now, takes);
        Ok((200, function.latest.describe(&name, &function.arn, "$LATEST", now, true)))
    }

    fn delete_function(&mut self, path: &routes::Path, now: Timestamp) -> Answer {
        let (name, of_arn) = self.named(&path.function)?;
        let Some(qualifier) = path.query("Qualifier").or(of_arn) else {
            let refused = self.no_function(&name, None);
            return self.change(now).remove(&name).map(|_| (204, Value::Null)).ok_or(refused);
        };
        let missing = self.no_function(&name, Some(&qualifier));
        let function = self.change(now).get_mut(&name).ok_or_else(|| missing.clone())?;
        let number = qualifier
            .parse::<u64>()
            .map_err(|_| invalid("$LATEST version cannot be deleted without deleting the function."))?;
        let users: Vec<&str> =
            function.aliases.iter().filter(|(_, it)| it.serves(&qualifier)).map(|(name, _)| name.as_str()).collect();
        if !users.is_empty() {
            // Seen quoted by several tools that delete old versions; not in the recordings.
            let users = users.join(", ");
            return Err(conflict(format!(
                "Unable to delete version because the following aliases reference it: [{users}]"
            )));
        }
        function.versions.remove(&number).map(|_| (204, Value::Null)).ok_or(missing)
    }

    fn publish_version(&mut self, path: &routes::Path, body: &Value, now: Timestamp) -> Answer {
        let (name, _) = self.named(&path.function)?;
        let takes = self.takes;
        let refused = self.no_function(&name, None);
        let function = self.change(now).get_mut(&name).ok_or(refused)?;
        function.latest.ready_for_update(&function.arn, now)?;
        precondition(body, &function.latest.revision)?;
        if let Some(sha) = text(body, "CodeSha256").filter(|sha| *sha != function.latest.sha256) {
            return Err(invalid(format!(
                "CodeSHA256 ({sha}) is different from current CodeSHA256 in $LATEST ({}). Please try again with the \
                 CodeSHA256 in $LATEST.",
                function.latest.sha256
            )));
        }
        let number = function.publish(text(body, "Description").unwrap_or_default(), now, takes);
        let arn = format!("{}:{number}", function.arn);
        let version = function.version(&number).expect("just published");
        Ok((201, version.describe(&name, &arn, &number, now, true)))
    }

    fn list_versions(&self, path: &routes::Path, now: Timestamp) -> Answer {
        let (name, _) = self.named(&path.function)?;
        let functions = self.seen(now);
        let function = functions.get(&name).ok_or_else(|| self.no_function(&name, None))?;
        let numbers = std::iter::once("$LATEST".to_owned()).chain(function.versions.keys().map(u64::to_string));
        let versions: Vec<Value> = numbers
            .filter_map(|number| {
                let arn = format!("{}:{number}", function.arn);
                Some(function.version(&number)?.describe(&name, &arn, &number, now, false))
            })
            .collect();
        Ok((200, json!({ "Versions": versions })))
    }

    // -------------------------------------------------------------------------------------------------------- aliases

    fn create_alias(&mut self, path: &routes::Path, body: &Value, now: Timestamp) -> Answer {
        let (name, _) = self.named(&path.function)?;
        let alias = text(body, "Name").ok_or_else(|| missing("name"))?.to_owned();
        if alias.bytes().all(|b| b.is_ascii_digit()) || alias.len() > 128 {
            return Err(validation(
                &alias,
                "name",
                "Member must satisfy regular expression pattern: (?!^[0-9]+$)([a-zA-Z0-9-_]+)",
            ));
        }
        let version = text(body, "FunctionVersion").ok_or_else(|| missing("functionVersion"))?;
        let weights = self.weights(&name, version, body)?.unwrap_or_default();
        let refused = self.no_function(&name, None);
        let arn = format!("{}:{alias}", self.arn(&name));
        let version = version.to_owned();
        let description = text(body, "Description").unwrap_or_default().to_owned();
        let function = self.change(now).get_mut(&name).ok_or(refused)?;
        if function.aliases.contains_key(&alias) {
            return Err(conflict(format!("Alias already exists: {arn}")));
        }
        let made = Alias { version, weights, description, revision: revision(), dealt: 0.0, injected_until: None };
        let said = made.describe(&arn, &alias);
        function.aliases.insert(alias.clone(), made);
        self.wrote(&name, &alias, now);
        Ok((201, said))
    }

    fn get_alias(&self, path: &routes::Path, now: Timestamp) -> Answer {
        let (name, _) = self.named(&path.function)?;
        let alias = path.name();
        let arn = format!("{}:{alias}", self.arn(&name));
        let functions = self.seen(now);
        let found = functions.get(&name).and_then(|function| function.aliases.get(alias));
        let found = found.ok_or_else(|| not_found(format!("Cannot find alias arn: {arn}")))?;
        Ok((200, found.describe(&arn, alias)))
    }

    fn update_alias(&mut self, path: &routes::Path, body: &Value, now: Timestamp) -> Answer {
        let (name, _) = self.named(&path.function)?;
        let alias = path.name();
        let arn = format!("{}:{alias}", self.arn(&name));
        let missing = not_found(format!("Alias not found: {arn}"));
        let current = self.functions.get(&name).and_then(|function| function.aliases.get(alias));
        let current = current.ok_or_else(|| missing.clone())?;
        if self.checks_revisions {
            precondition(body, &current.revision)?;
        }
        let version = text(body, "FunctionVersion").unwrap_or(&current.version).to_owned();
        let weights = self.weights(&name, &version, body)?;
        // Emulators keep the weights when none are sent; whether AWS does is not documented.
        let mut weights = weights.unwrap_or_else(|| current.weights.clone());
        weights.remove(&version);
        let provision = self.functions[&name].provisioned.get(alias).map(|_| self.takes * 100);
        let function = self.change(now).get_mut(&name).ok_or_else(|| missing.clone())?;
        let changed = function.aliases.get_mut(alias).ok_or(missing)?;
        let old = std::mem::replace(&mut changed.version, version);
        changed.weights = weights;
        changed.injected_until = None;
        if let Some(takes) = provision.filter(|_| old != changed.version) {
            // hashicorp/terraform-provider-aws PR 48116: AWS puts the old version in until the new one is provisioned.
            changed.weights = BTreeMap::from([(old, 1.0)]);
            changed.injected_until = Some(now + takes);
        }
        if let Some(description) = text(body, "Description") {
            changed.description = description.into();
        }
        changed.revision = revision();
        let said = changed.describe(&arn, alias);
        self.wrote(&name, alias, now);
        Ok((200, said))
    }

    fn delete_alias(&mut self, path: &routes::Path, now: Timestamp) -> Answer {
        let (name, _) = self.named(&path.function)?;
        let refused = self.no_function(&name, None);
        let function = self.change(now).get_mut(&name).ok_or(refused)?;
        // Deleting what is not there is no error.
        function.aliases.remove(path.name());
        Ok((204, Value::Null))
    }

    fn list_aliases(&self, path: &routes::Path, now: Timestamp) -> Answer {
        let (name, _) = self.named(&path.function)?;
        let functions = self.seen(now);
        let function = functions.get(&name).ok_or_else(|| self.no_function(&name, None))?;
        let only = path.query("FunctionVersion");
        let aliases: Vec<Value> = function
            .aliases
            .iter()
            .filter(|(_, it)| only.as_ref().is_none_or(|only| it.serves(only)))
            .map(|(alias, it)| it.describe(&format!("{}:{alias}", function.arn), alias))
            .collect();
        Ok((200, json!({ "Aliases": aliases })))
    }

    /// The weights that a request asks for beside this primary version, checked as AWS checks them. None: none are sent.
    fn weights(&self, name: &str, primary: &str, body: &Value) -> Result<Option<BTreeMap<String, f64>>, Refusal> {
        let function = self.functions.get(name).ok_or_else(|| self.no_function(name, None))?;
        let Some(routing) = body.get("RoutingConfig").filter(|routing| routing.is_object()) else {
            self.version_of(function, name, primary)?;
            return Ok(None);
        };
        let empty = Map::new();
        let asked = routing.get("AdditionalVersionWeights").and_then(Value::as_object).unwrap_or(&empty);
        if asked.len() > 1 {
            return Err(invalid("Number of items in AdditionalVersionWeights cannot be greater than 1"));
        }
        let mut weights = BTreeMap::new();
        for (version, weight) in asked {
            let weight = weight.as_f64().unwrap_or(f64::NAN);
            let value = format!("{{{version}={weight:?}}}");
            // NaN is outside too.
            if !(0.0..=1.0).contains(&weight) {
                return Err(validation(&value, WEIGHTS_AT, WEIGHT_BOUNDS));
            }
            if version == primary {
                return Err(invalid(format!(
                    "Invalid function version {primary}. Function version {primary} is already included in routing \
                     configuration."
                )));
            }
            if primary == "$LATEST" {
                return Err(invalid("$LATEST is not supported for an alias pointing to more than 1 version"));
            }
            if version.parse::<u64>().is_err() {
                return Err(validation(&value, WEIGHTS_AT, VERSION_PATTERN));
            }
            let additional = self.version_of(function, name, version)?;
            let primary = self.version_of(function, name, primary)?;
            if additional.role != primary.role {
                return Err(invalid("Specified versions must be associated with the same execution role"));
            }
            if additional.dead_letters != primary.dead_letters {
                // Documented (developer guide, configuration-aliases); the text is ours.
                return Err(invalid("Specified versions must have the same dead letter queue configuration"));
            }
            weights.insert(version.clone(), weight);
        }
        self.version_of(function, name, primary)?;
        Ok(Some(weights))
    }

    fn version_of<'a>(&self, function: &'a Function, name: &str, version: &str) -> Result<&'a Version, Refusal> {
        function.version(version).ok_or_else(|| self.no_function(name, Some(version)))
    }

    // ---------------------------------------------------------------------------------------- provisioned concurrency

    fn put_provisioned(&mut self, path: &routes::Path, body: &Value, now: Timestamp) -> Answer {
        let (name, _) = self.named(&path.function)?;
        let qualifier = path.query("Qualifier").ok_or_else(|| missing("qualifier"))?;
        let wanted = body.get("ProvisionedConcurrentExecutions").and_then(Value::as_u64).filter(|n| *n > 0);
        let wanted = wanted.ok_or_else(|| missing("provisionedConcurrentExecutions"))?;
        let refused = self.no_function(&name, Some(&qualifier));
        let takes = self.takes * 100;
        let function = self.change(now).get_mut(&name).ok_or_else(|| refused.clone())?;
        if qualifier == "$LATEST" {
            return Err(invalid("Provisioned Concurrency Configs cannot be applied to unpublished function versions."));
        }
        if let Some(alias) = function.aliases.get(&qualifier) {
            if !alias.weights.is_empty() {
                // aws/serverless-application-model#1296, hashicorp/terraform-provider-aws#24957.
                return Err(invalid("Alias with weights can not be used with Provisioned Concurrency"));
            }
            if function.provisioned.contains_key(&alias.version) {
                return Err(conflict(
                    "Alias can't be used for Provisioned Concurrency configuration on an already Provisioned version",
                ));
            }
        } else {
            function.version(&qualifier).ok_or(refused)?;
            let pointed = |(alias, _): (&String, &Provisioned)| {
                function.aliases.get(alias).is_some_and(|alias| alias.version == qualifier)
            };
            if function.provisioned.iter().any(pointed) {
                return Err(conflict("Version is pointed by a Provisioned Concurrency alias"));
            }
        }
        let made = Provisioned { wanted, ready_at: now + takes, modified: now };
        let said = made.describe(now);
        function.provisioned.insert(qualifier, made);
        Ok((202, said))
    }

    fn get_provisioned(&self, path: &routes::Path, now: Timestamp) -> Answer {
        let (name, _) = self.named(&path.function)?;
        let qualifier = path.query("Qualifier").ok_or_else(|| missing("qualifier"))?;
        let functions = self.seen(now);
        let function = functions.get(&name).ok_or_else(|| self.no_function(&name, None))?;
        let found = function.provisioned.get(&qualifier).ok_or_else(no_provisioned)?;
        Ok((200, found.describe(now)))
    }

    fn delete_provisioned(&mut self, path: &routes::Path, now: Timestamp) -> Answer {
        let (name, _) = self.named(&path.function)?;
        let qualifier = path.query("Qualifier").ok_or_else(|| missing("qualifier"))?;
        let refused = self.no_function(&name, None);
        let function = self.change(now).get_mut(&name).ok_or(refused)?;
        function.provisioned.remove(&qualifier).map(|_| (204, Value::Null)).ok_or_else(no_provisioned)
    }

    fn list_provisioned(&self, path: &routes::Path, now: Timestamp) -> Answer {
        let (name, _) = self.named(&path.function)?;
        let functions = self.seen(now);
        let function = functions.get(&name).ok_or_else(|| self.no_function(&name, None))?;
        let configs: Vec<Value> = function
            .provisioned
            .iter()
            .map(|(qualifier, it)| {
                let mut said = it.describe(now);
                said["FunctionArn"] = json!(format!("{}:{qualifier}", function.arn));
                said
            })
            .collect();
        Ok((200, json!({ "ProvisionedConcurrencyConfigs": configs })))
    }

    // ---------------------------------------------------------------------------------------------------- invocations

    fn invoke(&mut self, path: &routes::Path, now: Timestamp) -> Result<Response<Bytes>, Refusal> {
        let (name, of_arn) = self.named(&path.function)?;
        let qualifier = path.query("Qualifier").or(of_arn);
        let function = self.functions.get(&name).ok_or_else(|| self.no_function(&name, qualifier.as_deref()))?;
        if function.latest.is_pending(now) {
            return Err(conflict(
                "The operation cannot be performed at this time. The function is currently in the following state: \
                 Pending",
            ));
        }
        let known = qualifier.as_deref().is_none_or(|it| it == "$LATEST" || function.resolve(it).is_some());
        if !known {
            return Err(self.no_function(&name, qualifier.as_deref()));
        }
        let (version, failed) = self.call(&name, qualifier.as_deref(), 1.0, now);
        let mut answer = wire::json_answer(200, JSON, &json!({ "version": version }));
        let executed = version.parse().expect("a version is ASCII");
        answer.headers_mut().insert("x-amz-executed-version", executed);
        if failed {
            answer.headers_mut().insert("x-amz-function-error", http::HeaderValue::from_static("Unhandled"));
        }
        Ok(answer)
    }

    /// So many calls of a function, split by the alias's weights as exactly as whole calls allow, and measured. Which
    /// version ran the last one, and whether it failed.
    fn call(&mut self, name: &str, qualifier: Option<&str>, calls: f64, at: Timestamp) -> (String, bool) {
        let functions = Arc::make_mut(&mut self.functions);
        let Some(function) = functions.get_mut(name) else { return ("$LATEST".into(), false) };
        let shares = match qualifier.and_then(|alias| function.aliases.get_mut(alias)) {
            Some(alias) => alias.deal(calls),
            None => vec![(qualifier.unwrap_or("$LATEST").to_owned(), calls)],
        };
        let alias = qualifier.filter(|alias| function.aliases.contains_key(*alias)).map(str::to_owned);
        let mut last = ("$LATEST".to_owned(), false);
        for (number, calls) in shares.into_iter().filter(|(_, calls)| *calls > 0.0) {
            let Some(version) = function.version_mut(&number) else { continue };
            let errors = version.fail(calls);
            let mut dimensions = vec![BTreeMap::from([("FunctionName".to_owned(), name.to_owned())])];
            let mut more = dimensions[0].clone();
            more.insert("Resource".into(), qualifier.map_or_else(|| name.to_owned(), |it| format!("{name}:{it}")));
            dimensions.push(more.clone());
            if alias.is_some() {
                more.insert("ExecutedVersion".into(), number.clone());
                dimensions.push(more);
            }
            let duration = version.duration_ms();
            let split = Split { at, calls, errors, duration };
            self.data.extend(dimensions.into_iter().flat_map(|dimensions| split.data(dimensions)));
            last = (number, errors >= calls);
        }
        last
    }

    // --------------------------------------------------------------------------------------------------------- places

    /// What is to be changed; what was there is kept for reads that lag behind.
    fn change(&mut self, now: Timestamp) -> &mut Functions {
        if self.lag > Duration::ZERO {
            self.before.push_back((now, Arc::clone(&self.functions)));
            while self.before.front().is_some_and(|(at, _)| super::until(now, *at) > self.lag) {
                self.before.pop_front();
            }
        }
        Arc::make_mut(&mut self.functions)
    }

    /// What a read sees: everything as it was a while ago, if it lags behind.
    fn seen(&self, now: Timestamp) -> Arc<Functions> {
        let oldest = self.before.iter().find(|(at, _)| super::until(now, *at) < self.lag);
        Arc::clone(oldest.map_or(&self.functions, |(_, then)| then))
    }

    fn wrote(&mut self, name: &str, alias: &str, at: Timestamp) {
        if let Some(it) = self.functions.get(name).and_then(|function| function.aliases.get(alias)) {
            let (version, weights) = (it.version.clone(), it.weights.clone());
            self.writes.push(Write { at, function: name.into(), alias: alias.into(), version, weights });
        }
    }

    fn arn(&self, name: &str) -> String {
        let partition = crate::account::partition(&self.region);
        format!("arn:{partition}:lambda:{}:{ACCOUNT}:function:{name}", self.region)
    }

    /// Name and qualifier of what a request calls a function: its name, or one of its ARNs.
    fn named(&self, given: &str) -> Result<(String, Option<String>), Refusal> {
        let name = match given.rsplit_once(":function:").or_else(|| given.rsplit_once("function:")) {
            Some((before, name)) => {
                let whole = format!("{before}:function:");
                if before.starts_with("arn:") && whole != self.arn("") {
                    return Err(not_found(format!("Function not found: {given}")));
                }
                name
            }
            None => given,
        };
        let (name, qualifier) = name.split_once(':').map_or((name, None), |(name, q)| (name, Some(q.to_owned())));
        let good = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if name.is_empty() || name.len() > 64 || !name.chars().all(good) {
            return Err(validation(
                given,
                "functionName",
                "Member must satisfy regular expression pattern: (arn:(aws[a-zA-Z-]*)?:lambda:)?((eusc-)?[a-z]{2}((-gov)|\
                 (-iso([a-z]?)))?-[a-z]+-\\d{1}:)?(\\d{12}:)?(function:)?([a-zA-Z0-9-_]+)(:(\\$LATEST|[a-zA-Z0-9-_]+))?",
            ));
        }
        Ok((name.into(), qualifier))
    }

    fn no_function(&self, name: &str, qualifier: Option<&str>) -> Refusal {
        let arn = self.arn(name);
        not_found(match qualifier {
            Some(qualifier) => format!("Function not found: {arn}:{qualifier}"),
            None => format!("Function not found: {arn}"),
        })
    }
}

/// The body of a request; none is an empty object.
fn read(request: &Request<Bytes>) -> Result<Value, Refusal> {
    if request.body().is_empty() {
        return Ok(json!({}));
    }
    match serde_json::from_slice(request.body()) {
        Ok(body) => Ok(body),
        // An invocation's payload may be anything.
        Err(_) if request.uri().path().ends_with("/invocations") => Ok(json!({})),
        Err(_) => Err(Refusal::new(400, "InvalidRequestContentException", "Could not parse request body into json")),
    }
}

fn text<'a>(body: &'a Value, name: &str) -> Option<&'a str> {
    body.get(name).and_then(Value::as_str)
}

/// A `RevisionId` that is sent must be the current one.
fn precondition(body: &Value, current: &str) -> Result<(), Refusal> {
    match text(body, "RevisionId") {
        Some(sent) if sent != current => Err(Refusal::new(412, "PreconditionFailedException", STALE)),
        _ => Ok(()),
    }
}

fn invalid(message: impl Into<String>) -> Refusal {
    Refusal::new(400, "InvalidParameterValueException", message)
}

fn conflict(message: impl Into<String>) -> Refusal {
    Refusal::new(409, "ResourceConflictException", message)
}

fn not_found(message: impl Into<String>) -> Refusal {
    Refusal::new(404, "ResourceNotFoundException", message)
}

fn no_provisioned() -> Refusal {
    let why = "No Provisioned Concurrency Config found for this function";
    Refusal::new(404, "ProvisionedConcurrencyConfigNotFoundException", why)
}

/// What AWS's front checks against the model: not in the model itself, so SDKs know no such error.
fn validation(value: &str, at: &str, constraint: &str) -> Refusal {
    let why =
        format!("1 validation error detected: Value '{value}' at '{at}' failed to satisfy constraint: {constraint}");
    Refusal::new(400, "ValidationException", why)
}

fn missing(at: &str) -> Refusal {
    let why = format!(
        "1 validation error detected: Value null at '{at}' failed to satisfy constraint: Member must not be null"
    );
    Refusal::new(400, "ValidationException", why)
}

/// An error as Lambda writes it: the code in a header.
pub(super) fn refuse(refusal: &Refusal) -> Response<Bytes> {
    let key = match refusal.code.as_str() {
        "ResourceNotFoundException" | "ServiceException" | "AccessDeniedException" => "Message",
        _ => "message",
    };
    let side = if refusal.status < 500 { "User" } else { "Service" };
    let said = match refusal.code.as_str() {
        "ValidationException" | "AccessDeniedException" | "ExpiredTokenException" | "InvalidSignatureException" => {
            json!({ key: refusal.message })
        }
        _ => json!({ "Type": side, key: refusal.message }),
    };
    let mut answer = wire::json_answer(refusal.status, JSON, &said);
    if let Ok(code) = refusal.code.parse() {
        answer.headers_mut().insert("x-amzn-errortype", code);
    }
    answer
}

const JSON: &str = "application/json";

const STALE: &str = "The Revision Id provided does not match the latest Revision Id. Call the GetFunction/GetAlias API to \
                     retrieve the latest Revision Id";

const WEIGHTS_AT: &str = "routingConfig.additionalVersionWeights";

const WEIGHT_BOUNDS: &str = "Map value must satisfy constraint: [Member must have value less than or equal to 1.0, Member \
                             must have value greater than or equal to 0.0, Member must not be null]";

const VERSION_PATTERN: &str = "Map keys must satisfy constraint: [Member must have length less than or equal to 1024, \
                               Member must have length greater than or equal to 1, Member must satisfy regular expression \
                               pattern: [0-9]+, Member must not be null]";
