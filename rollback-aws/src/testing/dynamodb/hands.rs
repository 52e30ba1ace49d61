//! DynamoDB by hand: what a test sets up and looks at without a call of the API.

use std::time::Duration;

use rollback_core::clock::Clock as _;
use serde_json::Value as Json;

use super::{KeyPart, Table, value};
use crate::testing::Simulator;

/// Tables, without an HTTP call: somebody else's hands.
#[derive(Clone, Copy, Debug)]
pub struct Hands<'a>(pub(in crate::testing) &'a Simulator);

impl Hands<'_> {
    /// A table that is ready, with a partition key and a sort key of these names, both text.
    pub fn table(&self, name: &str, hash: &str, range: &str) {
        let now = self.0.clock().now();
        let part = |name: &str| KeyPart { name: name.into(), kind: "S".into() };
        let table = Table {
            hash: part(hash),
            range: Some(part(range)),
            rows: std::collections::BTreeMap::new(),
            created: now,
            ready: now,
            expires_by: Some("expires".into()),
            is_protected: false,
            is_on_demand: true,
        };
        self.0.world().dynamodb.tables.insert(name.into(), table);
    }

    /// Everything that is in a table, in the order of its keys, as DynamoDB's JSON.
    pub fn items(&self, table: &str) -> Vec<Json> {
        let world = self.0.world();
        let table = world.dynamodb.tables.get(table);
        let rows = table.into_iter().flat_map(|table| table.rows.values());
        rows.filter_map(|row| row.now.as_ref().map(value::write)).collect()
    }

    /// Puts an item, given as DynamoDB's JSON, whatever it replaces. What is no item of the table is left alone.
    pub fn put(&self, table: &str, item: &Json) {
        let now = self.0.clock().now();
        let mut world = self.0.world();
        let Some(table) = world.dynamodb.tables.get_mut(table) else { return };
        if let Ok(item) = value::item(item)
            && let Ok(key) = table.key_within(&item)
        {
            table.rows.entry(key).or_default().change(Some(item), now);
        }
    }

    /// From now on reads that do not ask for consistency show what was so long ago, for half a second at first.
    pub fn lag(&self, by: Duration) {
        self.0.world().dynamodb.lag = by;
    }

    /// How many reads have shown what was no longer so.
    pub fn stale_reads(&self) -> u64 {
        self.0.world().dynamodb.stale_reads
    }

    /// The next so many writes, alone or in a transaction, run into a transaction of somebody else.
    pub fn conflict(&self, times: u32) {
        self.0.world().dynamodb.conflicts = times;
    }

    /// The size of the largest item of a table, in bytes as DynamoDB counts them.
    pub fn largest(&self, table: &str) -> usize {
        let items = self.items(table);
        items.iter().filter_map(|item| Some(value::size(&value::item(item).ok()?))).max().unwrap_or(0)
    }
}
