//! The calls of DynamoDB that the store makes, each as what it means.

use std::collections::HashMap;

use aws_sdk_dynamodb::{
    Client,
    operation::{
        describe_table::DescribeTableOutput, put_item::PutItemError,
        transact_write_items::TransactWriteItemsError as Refused,
    },
    types::{
        AttributeValue, KeyType, ReturnValue, ReturnValuesOnConditionCheckFailure as OnFailure, ScalarAttributeType,
        TableStatus, TransactWriteItem,
        builders::{DeleteBuilder, PutBuilder, UpdateBuilder},
        error::ConditionalCheckFailedException as Failed,
    },
};
use aws_smithy_types::error::metadata::ProvideErrorMetadata as _;
use rollback_core::{Error, ErrorKind, Result, model::DriverId};

use super::{
    DELETE, UPDATE,
    item::{EXPIRES, Item, Key, Open, PK, Question, SK, number, text, texts, words},
};
use crate::{error::sorted, iam::Permission};

/// One table.
#[derive(Clone)]
pub(super) struct Api {
    client: Client,
    table: String,
}

/// What must hold of an item that is to be written.
#[derive(Clone, Debug)]
pub(super) struct Given {
    text: String,
    names: Vec<&'static str>,
    values: Vec<(&'static str, AttributeValue)>,
}

impl Given {
    /// There is no such item.
    pub(super) fn absent() -> Self {
        Self { text: "attribute_not_exists(pk)".into(), names: Vec::new(), values: Vec::new() }
    }

    fn present() -> Self {
        Self { text: "attribute_exists(pk)".into(), names: Vec::new(), values: Vec::new() }
    }

    /// The attribute has this value.
    pub(super) fn is(name: &'static str, value: AttributeValue) -> Self {
        Self { text: format!("#{name} = :{name}"), names: vec![name], values: vec![(name, value)] }
    }

    /// There is no such attribute, or no such item.
    pub(super) fn lacks(name: &'static str) -> Self {
        Self { text: format!("attribute_not_exists(#{name})"), names: vec![name], values: Vec::new() }
    }

    /// Both.
    pub(super) fn and(mut self, other: Self) -> Self {
        self.text = format!("{} AND {}", self.text, other.text);
        self.names.extend(other.names);
        self.values.extend(other.values);
        self
    }

    fn names(&self) -> Option<HashMap<String, String>> {
        let names: HashMap<_, _> = self.names.iter().map(|name| (format!("#{name}"), (*name).to_owned())).collect();
        (!names.is_empty()).then_some(names)
    }

    fn values(&self) -> Option<HashMap<String, AttributeValue>> {
        let values: HashMap<_, _> =
            self.values.iter().map(|(name, value)| (format!(":{name}"), value.clone())).collect();
        (!values.is_empty()).then_some(values)
    }
}

/// What a write of a transaction is for: so that it can be told which of them failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Record,
    Part,
    /// The lock of a target is taken.
    Open,
    /// A lock that is held is changed, or given up.
    Lock,
    Head,
}

/// One write of a transaction.
#[derive(Debug)]
pub(super) struct Action {
    role: Role,
    what: What,
    given: Option<Given>,
}

#[derive(Debug)]
enum What {
    Put(Item),
    Delete(Item),
    /// None removes the attribute.
    Set(Item, &'static str, Option<AttributeValue>),
}

impl Action {
    pub(super) const fn put(role: Role, item: Item) -> Self {
        Self { role, what: What::Put(item), given: None }
    }

    pub(super) fn delete(role: Role, key: &Key) -> Self {
        Self { role, what: What::Delete(key.to_item()), given: None }
    }

    pub(super) fn set(role: Role, key: &Key, name: &'static str, value: Option<AttributeValue>) -> Self {
        Self { role, what: What::Set(key.to_item(), name, value), given: None }
    }

    pub(super) fn only_if(mut self, given: Given) -> Self {
        self.given = Some(given);
        self
    }

    fn into_item(self, table: &str) -> Result<TransactWriteItem> {
        let Self { what, given, .. } = self;
        let on_failure = given.as_ref().map(|_| OnFailure::AllOld);
        let text = given.as_ref().map(|given| given.text.clone());
        let mut names = given.as_ref().and_then(Given::names);
        let mut values = given.as_ref().and_then(Given::values);
        let write = TransactWriteItem::builder();
        let odd = |e| Error::new(ErrorKind::Internal, "a transaction cannot be made").because(e);
        Ok(match what {
            What::Put(item) => write.put(
                PutBuilder::default()
                    .table_name(table)
                    .set_item(Some(item))
                    .set_condition_expression(text)
                    .set_expression_attribute_names(names)
                    .set_expression_attribute_values(values)
                    .set_return_values_on_condition_check_failure(on_failure)
                    .build()
                    .map_err(odd)?,
            ),
            What::Delete(key) => write.delete(
                DeleteBuilder::default()
                    .table_name(table)
                    .set_key(Some(key))
                    .set_condition_expression(text)
                    .set_expression_attribute_names(names)
                    .set_expression_attribute_values(values)
                    .set_return_values_on_condition_check_failure(on_failure)
                    .build()
                    .map_err(odd)?,
            ),
            What::Set(key, name, value) => {
                names.get_or_insert_default().insert("#what".into(), name.into());
                let update = match value {
                    Some(value) => {
                        values.get_or_insert_default().insert(":to".into(), value);
                        "SET #what = :to"
                    }
                    None => "REMOVE #what",
                };
                write.update(
                    UpdateBuilder::default()
                        .table_name(table)
                        .set_key(Some(key))
                        .update_expression(update)
                        .set_condition_expression(text)
                        .set_expression_attribute_names(names)
                        .set_expression_attribute_values(values)
                        .set_return_values_on_condition_check_failure(on_failure)
                        .build()
                        .map_err(odd)?,
                )
            }
        }
        .build())
    }
}

/// What became of a conditional write.
#[derive(Debug)]
pub(super) enum Outcome {
    Done,
    /// This one's condition did not hold; beside it the item as it is, where DynamoDB told.
    Failed(Role, Option<Item>),
    /// Another transaction was at the same item: nothing was done, and trying again makes sense.
    Conflict,
}

/// How a table is made.
#[derive(Debug)]
pub(super) struct Described(DescribeTableOutput);

impl Described {
    /// What is wrong with it, to be read after its name.
    pub(super) fn fault(&self) -> Option<String> {
        let table = self.0.table()?;
        let key: Vec<(&str, &KeyType)> =
            table.key_schema().iter().map(|key| (key.attribute_name(), key.key_type())).collect();
        let of_text = |name: &str| {
            let defined = table.attribute_definitions().iter().find(|one| one.attribute_name() == name);
            defined.is_some_and(|one| *one.attribute_type() == ScalarAttributeType::S)
        };
        if key != [(PK, &KeyType::Hash), (SK, &KeyType::Range)] || !of_text(PK) || !of_text(SK) {
            let names: Vec<&str> = key.iter().map(|(name, _)| *name).collect();
            return Some(format!(
                "has the key ({}), and the store needs the partition key `pk` and the sort key `sk`, both text; \
                 Store::template prints such a table",
                names.join(", ")
            ));
        }
        match table.table_status() {
            Some(TableStatus::Active | TableStatus::Updating) | None => None,
            Some(other) => Some(format!("is {}; wait until it is ACTIVE", other.as_str())),
        }
    }
}

impl Api {
    pub(super) fn new(client: Client, table: &str) -> Self {
        Self { client, table: table.into() }
    }

    pub(super) fn table(&self) -> &str {
        &self.table
    }

    pub(super) fn region(&self) -> String {
        self.client.config().region().map(ToString::to_string).unwrap_or_else(|| "*".into())
    }

    pub(super) async fn describe(&self) -> Result<Described> {
        let answer = self.client.describe_table().table_name(&self.table).send().await;
        answer.map(Described).map_err(|e| sorted(format_args!("reading how table {} is made", self.table), e))
    }

    /// The attribute by which items expire, if they do.
    pub(super) async fn expires_by(&self) -> Result<Option<String>> {
        let answer = self.client.describe_time_to_live().table_name(&self.table).send().await;
        let answer = answer.map_err(|e| sorted(format_args!("reading the time to live of table {}", self.table), e))?;
        let ttl = answer.time_to_live_description();
        Ok(ttl.and_then(|ttl| ttl.attribute_name().map(str::to_owned)))
    }

    /// An item, as it is now.
    pub(super) async fn get(&self, key: &Key) -> Result<Option<Item>> {
        let call = self.client.get_item().table_name(&self.table).set_key(Some(key.to_item())).consistent_read(true);
        let answer = call.send().await.map_err(|e| sorted(format_args!("reading from table {}", self.table), e))?;
        Ok(answer.item)
    }

    /// All items of a partition, as they are now; or those in which an attribute has this value.
    pub(super) async fn query(&self, pk: &str, with: Option<(&str, AttributeValue)>) -> Result<Vec<Item>> {
        let mut items = Vec::new();
        let mut from = None;
        loop {
            let mut call = self
                .client
                .query()
                .table_name(&self.table)
                .key_condition_expression("pk = :pk")
                .expression_attribute_values(":pk", text(pk))
                .consistent_read(true)
                .set_exclusive_start_key(from);
            if let Some((name, value)) = &with {
                call = call
                    .filter_expression("#with = :with")
                    .expression_attribute_names("#with", *name)
                    .expression_attribute_values(":with", value.clone());
            }
            let answer = call.send().await;
            let answer = answer.map_err(|e| sorted(format_args!("listing from table {}", self.table), e))?;
            items.extend(answer.items.unwrap_or_default());
            from = answer.last_evaluated_key.filter(|key| !key.is_empty());
            if from.is_none() {
                return Ok(items);
            }
        }
    }

    /// Puts an item, if that holds of the one that it replaces.
    pub(super) async fn put(&self, what: &str, item: Item, given: Given) -> Result<Outcome> {
        let call = self
            .client
            .put_item()
            .table_name(&self.table)
            .set_item(Some(item))
            .set_expression_attribute_names(given.names())
            .set_expression_attribute_values(given.values())
            .condition_expression(given.text)
            .return_values_on_condition_check_failure(OnFailure::AllOld);
        match call.send().await {
            Ok(_) => Ok(Outcome::Done),
            Err(e) => match e.as_service_error() {
                Some(service) if is_conflict(service.code()) => Ok(Outcome::Conflict),
                Some(PutItemError::ConditionalCheckFailedException(failed)) => {
                    Ok(Outcome::Failed(Role::Record, told(failed)))
                }
                _ => Err(sorted(what, e)),
            },
        }
    }

    /// All of it or nothing. The SDK gives each call a token of its own, which it repeats: so its second try after a lost
    /// answer is the first one again.
    pub(super) async fn transact(&self, what: &str, actions: Vec<Action>) -> Result<Outcome> {
        let roles: Vec<Role> = actions.iter().map(|action| action.role).collect();
        let items: Vec<TransactWriteItem> =
            actions.into_iter().map(|action| action.into_item(&self.table)).collect::<Result<_>>()?;
        let sent = self.client.transact_write_items().set_transact_items(Some(items)).send().await;
        let Err(error) = sent else { return Ok(Outcome::Done) };
        let cancelled = match error.as_service_error() {
            Some(Refused::TransactionCanceledException(cancelled)) => cancelled,
            Some(service) if is_conflict(service.code()) => return Ok(Outcome::Conflict),
            _ => return Err(sorted(what, error)),
        };
        let reasons: Vec<(Role, &str, Option<Item>, &str)> = roles
            .into_iter()
            .zip(cancelled.cancellation_reasons())
            .map(|(role, reason)| {
                let code = reason.code().unwrap_or_default();
                (role, code, reason.item.clone(), reason.message().unwrap_or_default())
            })
            .collect();
        // The record before all others: what is wrong with it explains the rest.
        let failed = |wanted: Option<Role>| {
            let mut failed = reasons.iter().filter(|(_, code, ..)| *code == "ConditionalCheckFailed");
            failed.find(|(role, ..)| wanted.is_none_or(|wanted| wanted == *role))
        };
        if let Some((role, _, item, _)) = failed(Some(Role::Record)).or_else(|| failed(None)) {
            return Ok(Outcome::Failed(*role, item.clone()));
        }
        let other = reasons.iter().find(|(_, code, ..)| !matches!(*code, "None" | "" | "TransactionConflict"));
        let Some((role, code, _, message)) = other else { return Ok(Outcome::Conflict) };
        let kind = match *code {
            "ThrottlingError" | "ProvisionedThroughputExceeded" => ErrorKind::Throttled,
            "AccessDenied" => ErrorKind::Denied,
            _ => ErrorKind::Invalid,
        };
        Err(Error::new(kind, format!("{what}: DynamoDB cancelled the transaction ({code} of {role:?}: {message})")))
    }

    /// Raises a driver's beat, and returns the sign that others left for it.
    pub(super) async fn beat(&self, driver: &DriverId, swept: i64) -> Result<Option<String>> {
        let call = self
            .client
            .update_item()
            .table_name(&self.table)
            .set_key(Some(Key::driver(driver).to_item()))
            .update_expression("SET #expires = :expires ADD #beats :one")
            .expression_attribute_names("#expires", EXPIRES)
            .expression_attribute_names("#beats", "beats")
            .expression_attribute_values(":expires", number(swept))
            .expression_attribute_values(":one", number(1))
            .return_values(ReturnValue::AllNew);
        let answer = call.send().await.map_err(|e| sorted(format_args!("the beat of driver {driver}"), e))?;
        Ok(answer.attributes.as_ref().and_then(|item| words(item, "sign")).map(str::to_owned))
    }

    /// Leaves a sign for a driver, should it beat.
    pub(super) async fn sign(&self, driver: &DriverId, sign: &str) -> Result<()> {
        let call = self
            .client
            .update_item()
            .table_name(&self.table)
            .set_key(Some(Key::driver(driver).to_item()))
            .update_expression("SET #sign = :sign")
            .condition_expression(Given::present().text)
            .expression_attribute_names("#sign", "sign")
            .expression_attribute_values(":sign", text(sign));
        call.send().await.map(drop).map_err(|e| sorted(format_args!("telling driver {driver} of a request"), e))
    }

    /// Puts a question beside the open rollout, unless another one came in between. What was heard is forgotten.
    pub(super) async fn ask(&self, open: &Open, question: &Question, heard: u64) -> Result<Outcome> {
        let (name, value) = question.to_member();
        let (old, answered) = open.forget(heard);
        let (remove, mut names) = removal(&old);
        names.insert("#new".to_owned(), name);
        let update = format!("SET asked = :asked, requests.#new = :new, answered = :answered {remove}");
        let call = self
            .client
            .update_item()
            .table_name(&self.table)
            .set_key(Some(Key::open(&open.target).to_item()))
            .update_expression(update)
            .condition_expression("id = :id AND asked = :seen")
            .set_expression_attribute_names(Some(names))
            .expression_attribute_values(":asked", number(question.number))
            .expression_attribute_values(":new", value)
            .expression_attribute_values(":answered", texts(&answered))
            .expression_attribute_values(":id", text(open.id.as_str()))
            .expression_attribute_values(":seen", number(open.asked));
        match call.send().await {
            Ok(_) => Ok(Outcome::Done),
            Err(e) => match e.as_service_error() {
                Some(service) if is_conflict(service.code()) => Ok(Outcome::Conflict),
                Some(service) if service.is_conditional_check_failed_exception() => {
                    Ok(Outcome::Failed(Role::Lock, None))
                }
                _ => Err(sorted(format_args!("asking something of rollout {}", open.id), e)),
            },
        }
    }

    /// Takes away what was heard, if there is any.
    pub(super) async fn forget(&self, open: &Open, heard: u64) -> Result<()> {
        let (old, answered) = open.forget(heard);
        if old.is_empty() {
            return Ok(());
        }
        let (remove, names) = removal(&old);
        let call = self
            .client
            .update_item()
            .table_name(&self.table)
            .set_key(Some(Key::open(&open.target).to_item()))
            .update_expression(format!("SET answered = :answered {remove}"))
            .expression_attribute_values(":answered", texts(&answered))
            .condition_expression("id = :id")
            .set_expression_attribute_names(Some(names))
            .expression_attribute_values(":id", text(open.id.as_str()));
        call.send().await.map(drop).map_err(|e| sorted(format_args!("forgetting what rollout {} heard", open.id), e))
    }

    /// Tries a write on the condition that there is such an item, which there is not. True when it was refused for that.
    pub(super) async fn probe(&self, permission: Permission, nobody: &Key) -> Result<bool> {
        let what = format!("trying whether table {} may be written", self.table);
        let there = Given::present().text;
        if permission == UPDATE {
            let call = self.client.update_item().table_name(&self.table).set_key(Some(nobody.to_item()));
            return match call.condition_expression(there).send().await {
                Ok(_) => Ok(false),
                Err(e) if e.as_service_error().is_some_and(|e| e.is_conditional_check_failed_exception()) => Ok(true),
                Err(e) => Err(sorted(what, e)),
            };
        }
        if permission == DELETE {
            let call = self.client.delete_item().table_name(&self.table).set_key(Some(nobody.to_item()));
            return match call.condition_expression(there).send().await {
                Ok(_) => Ok(false),
                Err(e) if e.as_service_error().is_some_and(|e| e.is_conditional_check_failed_exception()) => Ok(true),
                Err(e) => Err(sorted(what, e)),
            };
        }
        match self.put(&what, nobody.to_item(), Given::present()).await? {
            Outcome::Done => Ok(false),
            Outcome::Failed(..) | Outcome::Conflict => Ok(true),
        }
    }
}

fn told(failed: &Failed) -> Option<Item> {
    failed.item().cloned()
}

/// What a write is refused with while a transaction is at its item.
fn is_conflict(code: Option<&str>) -> bool {
    matches!(code, Some("TransactionConflictException" | "TransactionInProgressException"))
}

/// The clause that removes questions by their numbers, and the names in it.
fn removal(old: &[u64]) -> (String, HashMap<String, String>) {
    if old.is_empty() {
        return (String::new(), HashMap::new());
    }
    let paths: Vec<String> = (0..old.len()).map(|at| format!("requests.#old{at}")).collect();
    let names = old.iter().enumerate().map(|(at, number)| (format!("#old{at}"), number.to_string())).collect();
    (format!("REMOVE {}", paths.join(", ")), names)
}
