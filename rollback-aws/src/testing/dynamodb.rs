//! DynamoDB's room: tables with items, conditional writes and transactions.
//!
//! Conditions and updates are really evaluated, as far as their language is known here. Items are limited
//! to 400 KB and transactions to 100 actions and 4 MB, a token makes a transaction idempotent for ten minutes, and a
//! read that does not ask for consistency may show an item as it was before its last change, for half a second
//! ([`Hands::lag`]). What expired is swept two days later, as "within a few days" is what AWS's guide says of it.
//!
//! Not simulated, and refused in so many words: indexes, streams, sets, numbers that are not whole, the parameters from
//! before expressions, consumed capacity, scans, batches and PartiQL. Provisioned capacity is taken and throttles nobody.

mod expression;
mod hands;
mod value;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Map, Value as Json, json};

pub use self::hands::Hands;
use self::{
    expression::{Condition, Given, Update, projection},
    value::{Item, Value},
};
use super::{
    ACCOUNT,
    wire::{self, Called, Protocol, Refusal, Service},
};

/// What DynamoDB knows.
#[derive(Debug)]
pub(super) struct Room {
    region: String,
    tables: BTreeMap<String, Table>,
    /// Tokens of transactions, with what they were for.
    tokens: BTreeMap<String, (Timestamp, Json)>,
    /// What a read that is not consistent may be behind by.
    lag: Duration,
    /// So many transactions and writes run into one another.
    conflicts: u32,
    stale_reads: u64,
}

#[derive(Debug)]
struct Table {
    hash: KeyPart,
    range: Option<KeyPart>,
    rows: BTreeMap<Key, Row>,
    created: Timestamp,
    /// Until then it is CREATING.
    ready: Timestamp,
    expires_by: Option<String>,
    is_protected: bool,
    is_on_demand: bool,
}

#[derive(Debug)]
struct KeyPart {
    name: String,
    kind: String,
}

type Key = (Value, Option<Value>);

/// An item, and what it was before its last change.
#[derive(Debug, Default)]
struct Row {
    now: Option<Item>,
    before: Option<Item>,
    changed: Timestamp,
}

type Answer = Result<Json, Stop>;

/// Why an operation does not go on: a refusal, or one that holds more than words.
enum Stop {
    Refusal(Refusal),
    /// The error's whole body.
    Told(Json),
}

impl From<Refusal> for Stop {
    fn from(refusal: Refusal) -> Self {
        Self::Refusal(refusal)
    }
}

/// One write of a transaction, or the only one of its own.
struct Write {
    table: String,
    key: Key,
    condition: Option<Condition>,
    /// Whether a failed condition shows the item.
    shows: bool,
    what: Effect,
}

enum Effect {
    Put(Item),
    Update(Update),
    Delete,
    Check,
}

/// The operation of a request for DynamoDB.
pub(super) fn route(request: &Request<Bytes>) -> Option<Called> {
    let target = request.headers().get("x-amz-target")?.to_str().ok()?;
    let operation = target.strip_prefix("DynamoDB_20120810.")?.into();
    Some(Called { service: Service::DynamoDb, protocol: Protocol::Json10, operation })
}

/// What a transaction must be allowed: what it is made of ("IAM and transactions" in the developer guide).
pub(super) fn needs(request: &Request<Bytes>) -> Vec<String> {
    let asked: Json = serde_json::from_slice(request.body()).unwrap_or_default();
    let items = asked["TransactItems"].as_array().into_iter().flatten();
    let kinds = items.filter_map(Json::as_object).flat_map(Map::keys);
    let kinds: BTreeSet<&String> = kinds.collect();
    kinds.into_iter().map(|kind| format!("dynamodb:{kind}Item")).collect()
}

/// An error as DynamoDB writes it.
pub(super) fn refuse(refusal: &Refusal) -> Response<Bytes> {
    let said = json!({ "__type": typed(&refusal.code), "message": refusal.message });
    wire::json_answer(refusal.status, JSON, &said)
}

fn typed(code: &str) -> String {
    // Its own errors have its name before them; those of the front door have the door's.
    let at = match code {
        "ValidationException" | "SerializationException" | "AccessDeniedException" | "UnknownOperationException" => {
            "com.amazon.coral.service"
        }
        _ => "com.amazonaws.dynamodb.v20120810",
    };
    format!("{at}#{code}")
}

impl Room {
    pub(super) fn new(region: &str) -> Self {
        Self {
            region: region.into(),
            tables: BTreeMap::new(),
            tokens: BTreeMap::new(),
            lag: Duration::from_millis(500),
            conflicts: 0,
            stale_reads: 0,
        }
    }

    /// Lets everything happen that was to happen until now.
    pub(super) fn pass(&mut self, now: Timestamp) {
        let old = now.saturating_sub(SWEEP).unwrap_or(Timestamp::MIN).as_second();
        for table in self.tables.values_mut() {
            let Some(by) = &table.expires_by else { continue };
            for row in table.rows.values_mut() {
                let expired = |item: &Item| matches!(item.get(by), Some(Value::N(at)) if *at < i128::from(old));
                if row.now.as_ref().is_some_and(expired) {
                    row.change(None, now);
                }
            }
        }
    }

    pub(super) fn answer(
        &mut self,
        called: &Called,
        request: &Request<Bytes>,
        now: Timestamp,
    ) -> Result<Response<Bytes>, Refusal> {
        let asked: Json = serde_json::from_slice(request.body())
            .ok()
            .filter(Json::is_object)
            .ok_or_else(|| Refusal::new(400, "SerializationException", "the body is no JSON object"))?;
        let said = match called.operation.as_str() {
            "CreateTable" => self.create_table(&asked, now).map_err(Stop::from),
            "DescribeTable" => self.describe_table(&asked, now).map_err(Stop::from),
            "DeleteTable" => self.delete_table(&asked, now).map_err(Stop::from),
            "UpdateTimeToLive" => self.update_ttl(&asked).map_err(Stop::from),
            "DescribeTimeToLive" => self.describe_ttl(&asked).map_err(Stop::from),
            "GetItem" => self.get_item(&asked, now).map_err(Stop::from),
            "Query" => self.query(&asked, now).map_err(Stop::from),
            "PutItem" | "UpdateItem" | "DeleteItem" => self.write_item(&called.operation, &asked, now),
            "TransactWriteItems" => self.transact(&asked, now),
            other => Err(not_simulated(&format!("{other} of DynamoDB")).into()),
        };
        match said {
            Ok(said) => Ok(wire::json_answer(200, JSON, &said)),
            Err(Stop::Told(said)) => Ok(wire::json_answer(400, JSON, &said)),
            Err(Stop::Refusal(refusal)) => Err(refusal),
        }
    }

    fn create_table(&mut self, asked: &Json, now: Timestamp) -> Result<Json, Refusal> {
        known(
            asked,
            &[
                "TableName",
                "AttributeDefinitions",
                "KeySchema",
                "BillingMode",
                "ProvisionedThroughput",
                "DeletionProtectionEnabled",
                "SSESpecification",
                "TableClass",
                "Tags",
            ],
        )?;
        let name = table_name(asked)?;
        let kind = |name: &str| {
            let all = asked["AttributeDefinitions"].as_array()?;
            all.iter().find(|one| one["AttributeName"] == name)?["AttributeType"].as_str()
        };
        let part = |role: &str| -> Result<Option<KeyPart>, Refusal> {
            let all = asked["KeySchema"].as_array().map(Vec::as_slice).unwrap_or_default();
            let Some(name) =
                all.iter().find(|one| one["KeyType"] == role).and_then(|one| one["AttributeName"].as_str())
            else {
                return Ok(None);
            };
            let kind = kind(name).ok_or_else(|| {
                validation(
                    "One or more parameter values were invalid: Some index key attributes are not defined in \
                     AttributeDefinitions",
                )
            })?;
            Ok(Some(KeyPart { name: name.into(), kind: kind.into() }))
        };
        let hash = part("HASH")?.ok_or_else(|| {
            validation("1 validation error detected: Value null at 'keySchema' failed to satisfy constraint: Member must not be null")
        })?;
        let range = part("RANGE")?;
        let defined = asked["AttributeDefinitions"].as_array().map_or(0, Vec::len);
        if defined != 1 + usize::from(range.is_some()) {
            return Err(validation(
                "One or more parameter values were invalid: Number of attributes in KeySchema does not exactly match number \
                 of attributes defined in AttributeDefinitions",
            ));
        }
        let is_on_demand = asked["BillingMode"] == "PAY_PER_REQUEST";
        if is_on_demand != asked["ProvisionedThroughput"].is_null() {
            return Err(validation(
                "One or more parameter values were invalid: ReadCapacityUnits and WriteCapacityUnits must both be specified \
                 when BillingMode is PROVISIONED, and neither when it is PAY_PER_REQUEST",
            ));
        }
        if self.tables.contains_key(name) {
            return Err(Refusal::new(400, "ResourceInUseException", format!("Table already exists: {name}")));
        }
        let table = Table {
            hash,
            range,
            rows: BTreeMap::new(),
            created: now,
            ready: now.saturating_add(CREATING).unwrap_or(Timestamp::MAX),
            expires_by: None,
            is_protected: asked["DeletionProtectionEnabled"] == true,
            is_on_demand,
        };
        let said = self.describe(name, &table, now);
        self.tables.insert(name.into(), table);
        Ok(json!({ "TableDescription": said }))
    }

    fn describe(&self, name: &str, table: &Table, now: Timestamp) -> Json {
        let parts = || [(Some(&table.hash), "HASH"), (table.range.as_ref(), "RANGE")];
        let each = |say: fn(&KeyPart, &str) -> Json| -> Vec<Json> {
            parts().into_iter().filter_map(|(part, role)| Some(say(part?, role))).collect()
        };
        let rows = || table.rows.values().filter_map(|row| row.now.as_ref());
        let mut said = json!({
            "TableName": name,
            "TableArn": format!(
                "arn:{}:dynamodb:{}:{ACCOUNT}:table/{name}",
                crate::account::partition(&self.region),
                self.region
            ),
            "TableId": "00000000-0000-4000-8000-000000000000",
            "TableStatus": if now < table.ready { "CREATING" } else { "ACTIVE" },
            "CreationDateTime": table.created.as_second(),
            "KeySchema": each(|part, role| json!({ "AttributeName": part.name, "KeyType": role })),
            "AttributeDefinitions": each(|part, _| json!({ "AttributeName": part.name, "AttributeType": part.kind })),
            "ProvisionedThroughput": { "ReadCapacityUnits": 0, "WriteCapacityUnits": 0 },
            "ItemCount": rows().count(),
            "TableSizeBytes": rows().map(value::size).sum::<usize>(),
            "DeletionProtectionEnabled": table.is_protected,
        });
        if table.is_on_demand {
            said["BillingModeSummary"] = json!({ "BillingMode": "PAY_PER_REQUEST" });
        }
        said
    }

    fn describe_table(&self, asked: &Json, now: Timestamp) -> Result<Json, Refusal> {
        known(asked, &["TableName"])?;
        let name = table_name(asked)?;
        let table = self.tables.get(name).ok_or_else(|| no_table(name))?;
        Ok(json!({ "Table": self.describe(name, table, now) }))
    }

    fn delete_table(&mut self, asked: &Json, now: Timestamp) -> Result<Json, Refusal> {
        known(asked, &["TableName"])?;
        let name = table_name(asked)?;
        let table = self.tables.get(name).ok_or_else(|| no_table(name))?;
        if table.is_protected {
            return Err(validation(format!(
                "Resource cannot be deleted as it is currently protected against deletion. Disable deletion protection first: {name}"
            )));
        }
        let mut said = self.describe(name, table, now);
        said["TableStatus"] = json!("DELETING");
        self.tables.remove(name);
        Ok(json!({ "TableDescription": said }))
    }

    fn update_ttl(&mut self, asked: &Json) -> Result<Json, Refusal> {
        known(asked, &["TableName", "TimeToLiveSpecification"])?;
        let name = table_name(asked)?;
        let table = self.tables.get_mut(name).ok_or_else(|| no_table(name))?;
        let wanted = &asked["TimeToLiveSpecification"];
        let (by, on) = (wanted["AttributeName"].as_str().unwrap_or_default(), wanted["Enabled"] == true);
        if on == table.expires_by.is_some() {
            let state = if on { "enabled" } else { "disabled" };
            return Err(validation(format!("TimeToLive is already {state}")));
        }
        table.expires_by = on.then(|| by.into());
        Ok(json!({ "TimeToLiveSpecification": wanted }))
    }

    fn describe_ttl(&self, asked: &Json) -> Result<Json, Refusal> {
        known(asked, &["TableName"])?;
        let name = table_name(asked)?;
        let table = self.tables.get(name).ok_or_else(|| no_table(name))?;
        let said = match &table.expires_by {
            Some(by) => json!({ "AttributeName": by, "TimeToLiveStatus": "ENABLED" }),
            None => json!({ "TimeToLiveStatus": "DISABLED" }),
        };
        Ok(json!({ "TimeToLiveDescription": said }))
    }

    /// A table that items can be read from and written to.
    fn table(&self, asked: &Json, now: Timestamp) -> Result<&Table, Refusal> {
        let missing = || Refusal::new(400, "ResourceNotFoundException", "Requested resource not found");
        self.tables.get(table_name(asked)?).filter(|table| now >= table.ready).ok_or_else(missing)
    }

    fn get_item(&mut self, asked: &Json, now: Timestamp) -> Result<Json, Refusal> {
        known(asked, &["TableName", "Key", "ConsistentRead", "ProjectionExpression", "ExpressionAttributeNames"])?;
        let mut given = Given::read(asked)?;
        let shown = projection(asked, &mut given)?;
        given.all_used()?;
        let stale = self.staleness(asked, now);
        let table = self.table(asked, now)?;
        let key = table.key(&asked["Key"])?;
        let row = table.rows.get(&key);
        let item = row.and_then(|row| row.seen(stale));
        let behind = row.is_some_and(|row| row.seen(stale) != row.now.as_ref());
        let said =
            item.map_or_else(|| json!({}), |item| json!({ "Item": value::write(&project(item, shown.as_deref())) }));
        self.stale_reads += u64::from(behind);
        Ok(said)
    }

    fn query(&mut self, asked: &Json, now: Timestamp) -> Result<Json, Refusal> {
        known(
            asked,
            &[
                "TableName",
                "KeyConditionExpression",
                "FilterExpression",
                "ProjectionExpression",
                "ExpressionAttributeNames",
                "ExpressionAttributeValues",
                "ConsistentRead",
                "ScanIndexForward",
                "Limit",
                "ExclusiveStartKey",
            ],
        )?;
        let mut given = Given::read(asked)?;
        let on_key = Condition::read("KeyConditionExpression", asked, &mut given)?.ok_or_else(|| {
            validation("Either the KeyConditions or KeyConditionExpression parameter must be specified in the request.")
        })?;
        let filter = Condition::read("FilterExpression", asked, &mut given)?;
        let shown = projection(asked, &mut given)?;
        given.all_used()?;
        let stale = self.staleness(asked, now);
        let table = self.table(asked, now)?;
        let (hash, rest) = on_key.on_key(&table.hash.name)?;
        let from = match &asked["ExclusiveStartKey"] {
            Json::Null => None,
            key => Some(table.key(key)?),
        };
        let forward = asked["ScanIndexForward"] != false;
        let most = asked["Limit"].as_u64().map_or(usize::MAX, |limit| limit as usize);
        let mut rows: Vec<(&Key, &Row)> = table.rows.iter().filter(|((of, _), _)| *of == hash).collect();
        if !forward {
            rows.reverse();
        }
        let (mut items, mut scanned, mut size) = (Vec::new(), 0, 0);
        let (mut last, mut more, mut behind) = (None, false, false);
        for (key, row) in rows {
            behind |= row.seen(stale) != row.now.as_ref();
            let passed = from.as_ref().is_some_and(|from| if forward { key <= from } else { key >= from });
            let Some(item) = row.seen(stale).filter(|_| !passed) else { continue };
            if rest.as_ref().is_some_and(|rest| !rest.holds(item)) {
                continue;
            }
            size += value::size(item);
            // DynamoDB stops at the limit even if nothing comes after, and says where.
            if size > PAGE && scanned > 0 {
                more = true;
                break;
            }
            last = Some(table.key_of(item));
            scanned += 1;
            if filter.as_ref().is_none_or(|filter| filter.holds(item)) {
                items.push(value::write(&project(item, shown.as_deref())));
            }
            if scanned == most {
                more = true;
                break;
            }
        }
        let mut said = json!({ "Count": items.len(), "ScannedCount": scanned, "Items": items });
        if let Some(last) = last.filter(|_| more) {
            said["LastEvaluatedKey"] = value::write(&last);
        }
        self.stale_reads += u64::from(behind);
        Ok(said)
    }

    /// Before when a change is not seen yet by what is asked.
    fn staleness(&self, asked: &Json, now: Timestamp) -> Timestamp {
        match asked["ConsistentRead"] == true {
            true => Timestamp::MAX,
            false => now.saturating_sub(self.lag).unwrap_or(Timestamp::MIN),
        }
    }

    fn write_item(&mut self, operation: &str, asked: &Json, now: Timestamp) -> Answer {
        known(
            asked,
            &[
                "TableName",
                if operation == "PutItem" { "Item" } else { "Key" },
                if operation == "UpdateItem" { "UpdateExpression" } else { "ConditionExpression" },
                "ConditionExpression",
                "ExpressionAttributeNames",
                "ExpressionAttributeValues",
                "ReturnValues",
                "ReturnValuesOnConditionCheckFailure",
            ],
        )?;
        let write = self.prepare(operation, asked, now)?;
        self.collide(1)
            .map_err(|()| Refusal::new(400, "TransactionConflictException", "Transaction is ongoing for the item"))?;
        let before = self.item(&write).cloned();
        if !write.holds(before.as_ref()) {
            let mut said = json!({
                "__type": typed("ConditionalCheckFailedException"), "message": "The conditional request failed",
            });
            if let Some(item) = before.filter(|_| write.shows) {
                said["Item"] = value::write(&item);
            }
            return Err(Stop::Told(said));
        }
        let after = self.outcome(&write, before.as_ref())?;
        self.save(&write, after.clone(), now);
        let shown = match asked["ReturnValues"].as_str().unwrap_or("NONE") {
            "NONE" => None,
            "ALL_OLD" => before,
            "ALL_NEW" if operation == "UpdateItem" => after,
            other => return Err(not_simulated(&format!("ReturnValues {other} of {operation}")).into()),
        };
        Ok(shown.map_or_else(|| json!({}), |item| json!({ "Attributes": value::write(&item) })))
    }

    fn transact(&mut self, asked: &Json, now: Timestamp) -> Answer {
        known(asked, &["TransactItems", "ClientRequestToken"])?;
        let all = asked["TransactItems"].as_array().map(Vec::as_slice).unwrap_or_default();
        if all.is_empty() || all.len() > 100 {
            return Err(validation(format!(
                "1 validation error detected: Value at 'transactItems' failed to satisfy constraint: Member must have length \
                 less than or equal to 100; it has {}",
                all.len()
            ))
            .into());
        }
        self.tokens.retain(|_, (at, _)| now.duration_since(*at) < TOKEN);
        if let Some(token) = asked["ClientRequestToken"].as_str()
            && let Some((_, known)) = self.tokens.get(token)
        {
            return match *known == asked["TransactItems"] {
                true => Ok(json!({})),
                false => Err(Refusal::new(
                    400,
                    "IdempotentParameterMismatchException",
                    "The same token was used before for another request",
                )
                .into()),
            };
        }
        let mut writes = Vec::with_capacity(all.len());
        let mut touched = BTreeSet::new();
        for action in all {
            let action = action.as_object().filter(|action| action.len() == 1).and_then(|action| action.iter().next());
            let Some((kind, what)) = action else {
                return Err(validation("TransactItems can only contain one of Check, Put, Update or Delete").into());
            };
            known(
                what,
                &[
                    "TableName",
                    "Key",
                    "Item",
                    "UpdateExpression",
                    "ConditionExpression",
                    "ExpressionAttributeNames",
                    "ExpressionAttributeValues",
                    "ReturnValuesOnConditionCheckFailure",
                ],
            )?;
            let write = self.prepare(kind, what, now)?;
            if !touched.insert((write.table.clone(), write.key.clone())) {
                return Err(validation("Transaction request cannot include multiple operations on one item").into());
            }
            writes.push(write);
        }
        let conflict = self.collide(1).is_err();
        let mut reasons = Vec::with_capacity(writes.len());
        let mut changes = Vec::with_capacity(writes.len());
        let mut size = 0;
        for write in &writes {
            let before = self.item(write);
            size += match &write.what {
                Effect::Put(item) => value::size(item),
                _ => before.map_or(0, value::size),
            };
            if conflict {
                reasons
                    .push(json!({ "Code": "TransactionConflict", "Message": "Transaction is ongoing for the item" }));
            } else if !write.holds(before) {
                let mut reason =
                    json!({ "Code": "ConditionalCheckFailed", "Message": "The conditional request failed" });
                if let Some(item) = before.filter(|_| write.shows) {
                    reason["Item"] = value::write(item);
                }
                reasons.push(reason);
            } else {
                match self.outcome(write, before) {
                    Ok(after) => {
                        changes.push(after);
                        reasons.push(json!({ "Code": "None" }));
                    }
                    Err(refusal) => {
                        reasons.push(json!({ "Code": "ValidationError", "Message": refusal.message }));
                    }
                }
            }
        }
        if size > TRANSACTION {
            return Err(validation("Collection size of items in the transaction exceeds 4 MB").into());
        }
        if changes.len() < writes.len() {
            let codes: Vec<&str> = reasons.iter().filter_map(|reason| reason["Code"].as_str()).collect();
            let message = format!(
                "Transaction cancelled, please refer cancellation reasons for specific reasons [{}]",
                codes.join(", ")
            );
            return Err(Stop::Told(json!({
                "__type": typed("TransactionCanceledException"), "Message": message, "CancellationReasons": reasons,
            })));
        }
        for (write, after) in writes.iter().zip(changes) {
            if !matches!(write.what, Effect::Check) {
                self.save(write, after, now);
            }
        }
        if let Some(token) = asked["ClientRequestToken"].as_str() {
            self.tokens.insert(token.into(), (now, asked["TransactItems"].clone()));
        }
        Ok(json!({}))
    }

    /// Reads what is to be written, and refuses what could never be.
    fn prepare(&self, kind: &str, asked: &Json, now: Timestamp) -> Result<Write, Refusal> {
        let mut given = Given::read(asked)?;
        let condition = Condition::read("ConditionExpression", asked, &mut given)?;
        let update = Update::read(asked, &mut given)?;
        given.all_used()?;
        let table = self.table(asked, now)?;
        let (key, what) = match kind {
            "Put" | "PutItem" => {
                let item = value::item(&asked["Item"])?;
                (table.key_within(&item)?, Effect::Put(item))
            }
            "Update" | "UpdateItem" => {
                for path in update.paths() {
                    if table.parts().any(|part| part.name == path.top()) {
                        return Err(validation(format!(
                            "One or more parameter values were invalid: Cannot update attribute {}. This attribute is part of \
                             the key",
                            path.top()
                        )));
                    }
                }
                (table.key(&asked["Key"])?, Effect::Update(update))
            }
            "Delete" | "DeleteItem" => (table.key(&asked["Key"])?, Effect::Delete),
            "ConditionCheck" => (table.key(&asked["Key"])?, Effect::Check),
            other => return Err(validation(format!("TransactItems cannot contain {other}"))),
        };
        let shows = asked["ReturnValuesOnConditionCheckFailure"] == "ALL_OLD";
        Ok(Write { table: table_name(asked)?.into(), key, condition, shows, what })
    }

    fn item(&self, write: &Write) -> Option<&Item> {
        self.tables[&write.table].rows.get(&write.key)?.now.as_ref()
    }

    /// The item as it is afterwards.
    fn outcome(&self, write: &Write, before: Option<&Item>) -> Result<Option<Item>, Refusal> {
        let (after, limit) = match &write.what {
            Effect::Put(item) => (item.clone(), "Item size has exceeded the maximum allowed size"),
            Effect::Update(update) => {
                let fresh = || self.tables[&write.table].bare(&write.key);
                let item = update.apply(&before.cloned().unwrap_or_else(fresh))?;
                (item, "Item size to update has exceeded the maximum allowed size")
            }
            Effect::Delete => return Ok(None),
            Effect::Check => return Ok(before.cloned()),
        };
        if value::size(&after) > ITEM {
            return Err(validation(limit));
        }
        Ok(Some(after))
    }

    fn save(&mut self, write: &Write, after: Option<Item>, now: Timestamp) {
        if let Some(table) = self.tables.get_mut(&write.table) {
            table.rows.entry(write.key.clone()).or_default().change(after, now);
        }
    }

    /// Whether this one runs into another, as the test wants it.
    fn collide(&mut self, by: u32) -> Result<(), ()> {
        match self.conflicts.checked_sub(by) {
            Some(left) => {
                self.conflicts = left;
                Err(())
            }
            None => Ok(()),
        }
    }
}

impl Write {
    fn holds(&self, before: Option<&Item>) -> bool {
        let nothing = Item::new();
        self.condition.as_ref().is_none_or(|condition| condition.holds(before.unwrap_or(&nothing)))
    }
}

impl Row {
    fn change(&mut self, to: Option<Item>, now: Timestamp) {
        self.before = std::mem::replace(&mut self.now, to);
        self.changed = now;
    }

    /// The item, without what was changed after this.
    fn seen(&self, until: Timestamp) -> Option<&Item> {
        if self.changed > until { self.before.as_ref() } else { self.now.as_ref() }
    }
}

impl Table {
    fn parts(&self) -> impl Iterator<Item = &KeyPart> {
        std::iter::once(&self.hash).chain(&self.range)
    }

    /// A key by itself: all of it, and nothing else.
    fn key(&self, json: &Json) -> Result<Key, Refusal> {
        let key = value::item(json)?;
        if key.len() != self.parts().count() || self.parts().any(|part| !key.contains_key(&part.name)) {
            return Err(validation("The provided key element does not match the schema"));
        }
        self.key_within(&key)
    }

    /// The key of an item.
    fn key_within(&self, item: &Item) -> Result<Key, Refusal> {
        let value = |part: &KeyPart, most: usize| {
            let name = &part.name;
            let value = item.get(name).ok_or_else(|| {
                validation(format!("One or more parameter values were invalid: Missing the key {name} in the item"))
            })?;
            if value.kind() != part.kind {
                return Err(validation(format!(
                    "One or more parameter values were invalid: Type mismatch for key {name} expected: {} actual: {}",
                    part.kind,
                    value.kind()
                )));
            }
            if value.size() == 0 {
                return Err(validation(format!(
                    "One or more parameter values are not valid. The AttributeValue for a key attribute cannot contain an empty \
                     string value. Key: {name}"
                )));
            }
            if value.size() > most {
                return Err(validation(format!(
                    "One or more parameter values were invalid: Size of {name} has exceeded the maximum size limit of {most} bytes"
                )));
            }
            Ok(value.clone())
        };
        Ok((value(&self.hash, 2048)?, self.range.as_ref().map(|range| value(range, 1024)).transpose()?))
    }

    /// An item that has its key and nothing else.
    fn bare(&self, (hash, range): &Key) -> Item {
        let range = self.range.as_ref().zip(range.as_ref()).map(|(part, value)| (part.name.clone(), value.clone()));
        std::iter::once((self.hash.name.clone(), hash.clone())).chain(range).collect()
    }

    fn key_of(&self, item: &Item) -> Item {
        self.parts().filter_map(|part| Some((part.name.clone(), item.get(&part.name)?.clone()))).collect()
    }
}

fn project(item: &Item, shown: Option<&[String]>) -> Item {
    match shown {
        None => item.clone(),
        Some(names) => names.iter().filter_map(|name| Some((name.clone(), item.get(name)?.clone()))).collect(),
    }
}

/// Refuses what nothing here would heed.
fn known(asked: &Json, members: &[&str]) -> Result<(), Refusal> {
    let odd = asked.as_object().into_iter().flat_map(Map::keys).find(|name| !members.contains(&name.as_str()));
    odd.map_or(Ok(()), |name| Err(not_simulated(name)))
}

fn table_name(asked: &Json) -> Result<&str, Refusal> {
    let name = asked["TableName"]
        .as_str()
        .ok_or_else(|| validation("Value null at 'tableName' failed to satisfy constraint: Member must not be null"))?;
    // An ARN is taken as well.
    let name = name.rsplit_once(":table/").map_or(name, |(_, name)| name);
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
    if (3..=255).contains(&name.len()) && name.chars().all(plain) {
        return Ok(name);
    }
    Err(validation(format!(
        "1 validation error detected: Value '{name}' at 'tableName' failed to satisfy constraint: Member must satisfy regular \
         expression pattern: [a-zA-Z0-9_.-]+, and have 3 to 255 characters"
    )))
}

fn no_table(name: &str) -> Refusal {
    Refusal::new(400, "ResourceNotFoundException", format!("Requested resource not found: Table: {name} not found"))
}

fn validation(message: impl Into<String>) -> Refusal {
    Refusal::new(400, "ValidationException", message)
}

/// What DynamoDB knows and this does not.
fn not_simulated(what: &str) -> Refusal {
    Refusal::new(400, "UnknownOperationException", format!("{what} is not simulated"))
}

const JSON: &str = "application/x-amz-json-1.0";
/// What one item may have: 400 KB.
const ITEM: usize = 400 * 1024;
/// What all items of a transaction may have.
const TRANSACTION: usize = 4 * 1024 * 1024;
/// What one page of a query has at most.
const PAGE: usize = 1024 * 1024;
/// For so long a token makes a transaction idempotent.
const TOKEN: SignedDuration = SignedDuration::from_mins(10);
/// How long a new table is CREATING.
const CREATING: SignedDuration = SignedDuration::from_secs(5);
/// How long after its time an item is swept.
const SWEEP: SignedDuration = SignedDuration::from_hours(48);
