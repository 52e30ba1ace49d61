//! Route 53 by hand: what a test sets up and looks at without a call of the API.

use std::{collections::BTreeMap, time::Duration};

use jiff::{SignedDuration, Timestamp};
use rollback_core::clock::Clock as _;

use super::{Record, Zone, full, labels};
use crate::testing::Simulator;

/// Hosted zones, without an HTTP call: somebody else's hands.
#[derive(Clone, Copy, Debug)]
pub struct Hands<'a>(pub(in crate::testing) &'a Simulator);

/// The zones as they were at some time.
#[derive(Clone, Debug)]
pub struct Snapshot(BTreeMap<String, Zone>);

impl Hands<'_> {
    /// A hosted zone with this id, as `Z1`, for this domain.
    pub fn zone(&self, id: &str, domain: &str) {
        let zone = Zone { name: full(domain), caller: id.into(), records: BTreeMap::new(), past: Vec::new() };
        self.0.world().route53.zones.insert(id.into(), zone);
    }

    /// A weighted record with this value and a TTL of a minute; what it replaces is not remembered by any resolver.
    pub fn weighted(&self, zone: &str, name: &str, kind: &str, set: &str, weight: u64, value: &str) {
        let mut record = Record {
            name: full(name),
            kind: kind.into(),
            set: Some(set.into()),
            weight: Some(weight),
            ttl: Some(60),
            values: [value.to_owned()].into(),
            alias: None,
            check: None,
        };
        let mut world = self.0.world();
        let Some(zone) = world.route53.zones.get_mut(zone) else { return };
        if let Some(known) = zone.records.get(&record.id()) {
            record.check.clone_from(&known.check);
            record.ttl = known.ttl;
        }
        zone.records.insert(record.id(), record);
    }

    /// A record without a weight.
    pub fn simple(&self, zone: &str, name: &str, kind: &str, value: &str) {
        let record = Record {
            name: full(name),
            kind: kind.into(),
            set: None,
            weight: None,
            ttl: Some(60),
            values: [value.to_owned()].into(),
            alias: None,
            check: None,
        };
        if let Some(zone) = self.0.world().route53.zones.get_mut(zone) {
            zone.records.insert(record.id(), record);
        }
    }

    /// Removes a weighted record.
    pub fn remove(&self, zone: &str, name: &str, kind: &str, set: &str) {
        if let Some(zone) = self.0.world().route53.zones.get_mut(zone) {
            zone.records.remove(&(labels(&full(name)), kind.into(), Some(set.into())));
        }
    }

    /// From now on the weighted records of this name and type are kept so long by resolvers.
    pub fn ttl(&self, zone: &str, name: &str, kind: &str, ttl: Duration) {
        let at = (labels(&full(name)), kind.to_owned());
        if let Some(zone) = self.0.world().route53.zones.get_mut(zone) {
            for (_, record) in zone.records.iter_mut().filter(|(id, _)| (&id.0, &id.1) == (&at.0, &at.1)) {
                record.ttl = Some(ttl.as_secs());
            }
        }
    }

    /// A record is an alias of a load balancer from now on.
    pub fn alias(&self, zone: &str, name: &str, kind: &str, set: &str, target: &str) {
        let id = (labels(&full(name)), kind.to_owned(), Some(set.to_owned()));
        if let Some(record) = self.0.world().route53.zones.get_mut(zone).and_then(|zone| zone.records.get_mut(&id)) {
            record.values.clear();
            record.ttl = None;
            record.alias = Some(("Z35SXDOTRQ7X7K".into(), full(target), true));
        }
    }

    /// A record has a health check of this id from now on, which finds its endpoint healthy or not.
    pub fn health(&self, zone: &str, name: &str, kind: &str, set: &str, check: &str, healthy: bool) {
        let id = (labels(&full(name)), kind.to_owned(), Some(set.to_owned()));
        let mut world = self.0.world();
        world.route53.checks.insert(check.into(), healthy);
        if let Some(record) = world.route53.zones.get_mut(zone).and_then(|zone| zone.records.get_mut(&id)) {
            record.check = Some(check.into());
        }
    }

    /// The weights of a name and type, by set identifier.
    pub fn weights(&self, zone: &str, name: &str, kind: &str) -> BTreeMap<String, u64> {
        let world = self.0.world();
        world.route53.zones.get(zone).map(|zone| weights(&zone.records, name, kind)).unwrap_or_default()
    }

    /// What resolvers may answer now, by set identifier, with the largest share in percent that any of them may give it: a
    /// change reaches the name servers within its propagation, and resolvers a TTL later.
    pub fn answers(&self, zone: &str, name: &str, kind: &str) -> BTreeMap<String, f64> {
        let now = self.0.clock().now();
        let world = self.0.world();
        let Some(zone) = world.route53.zones.get(zone) else { return BTreeMap::new() };
        let mut answers = BTreeMap::new();
        let mut may = |records: &BTreeMap<super::Id, Record>| {
            let weights = weights(records, name, kind);
            let sum: u64 = weights.values().sum();
            for (set, weight) in weights.into_iter().filter(|(_, weight)| *weight > 0) {
                let share = 100.0 * weight as f64 / sum as f64;
                let most: &mut f64 = answers.entry(set).or_default();
                *most = most.max(share);
            }
        };
        may(&zone.records);
        for (until, records) in &zone.past {
            let ttl =
                records.values().filter(|record| record.kind == kind && record.name == full(name)).map(Record::ttl);
            let forgotten = until.saturating_add(ttl.max().unwrap_or_default()).unwrap_or(Timestamp::MAX);
            if now < forgotten {
                may(records);
            }
        }
        answers
    }

    /// How long a change is PENDING, from now on. Half a minute at first.
    pub fn propagation(&self, takes: Duration) {
        self.0.world().route53.propagation = SignedDuration::try_from(takes).unwrap_or(SignedDuration::MAX);
    }

    /// How many requests the account has a second, five at first. None is no limit.
    pub fn rate(&self, requests: Option<u32>) {
        self.0.world().route53.rate = requests;
    }

    /// The next so many changes find an earlier one unfinished.
    pub fn busy(&self, changes: u32) {
        self.0.world().route53.busy = changes;
    }

    /// All zones as they are now.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot(self.0.world().route53.zones.clone())
    }

    /// The zones as they were then; resolvers remember nothing else.
    pub fn restore(&self, to: &Snapshot) {
        self.0.world().route53.zones.clone_from(&to.0);
    }
}

fn weights(records: &BTreeMap<super::Id, Record>, name: &str, kind: &str) -> BTreeMap<String, u64> {
    let name = full(name);
    let here = records.values().filter(|record| record.name == name && record.kind == kind);
    here.filter_map(|record| Some((record.set.clone()?, record.weight?))).collect()
}
