//! What the records of a name say about a rollout. Pure.

use std::{collections::BTreeMap, fmt, time::Duration};

use aws_sdk_route53::types::{
    Change as Edit, ChangeAction, ResourceRecord, ResourceRecordSet, RrType, builders::ResourceRecordSetBuilder,
};
use rollback_core::{
    Error, ErrorKind, Result,
    model::{Change, Weight},
};
use sha2::{Digest as _, Sha256};

/// A name as Route 53 lists it, and that of its marker.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Name {
    full: String,
    marker: String,
}

impl Name {
    pub(super) fn parse(name: &str) -> Result<Self> {
        let full = normal(name);
        let label = |label: &str| {
            let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_".contains(&b);
            (1..=63).contains(&label.len()) && label.bytes().all(plain)
        };
        let rest = full.trim_end_matches('.');
        let rest = rest.strip_prefix("*.").unwrap_or(rest);
        if !rest.contains('.') || !rest.split('.').all(label) || full.len() > 230 {
            return Err(Error::invalid(format!("{name:?} is no name of a record; one as api.example.com is accepted")));
        }
        let marker = match full.strip_prefix("*.") {
            Some(rest) => format!("_rollback-wildcard.{rest}"),
            None => format!("_rollback.{full}"),
        };
        Ok(Self { full, marker })
    }

    pub(super) fn as_str(&self) -> &str {
        &self.full
    }

    pub(super) fn marker(&self) -> &str {
        &self.marker
    }
}

/// Without its last dot.
impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.full.trim_end_matches('.'))
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.full, f)
    }
}

/// Lower case, with its last dot, and the asterisk as itself.
fn normal(name: &str) -> String {
    format!("{}.", name.trim_end_matches('.').to_ascii_lowercase().replace("\\052", "*"))
}

/// The labels from the last to the first, by which Route 53 sorts.
fn sort_key(name: &str) -> Vec<&str> {
    name.trim_end_matches('.').rsplit('.').collect()
}

/// The weighted records of a name, what else has it, and the marker.
#[derive(Clone, Debug, Default)]
pub(super) struct Records {
    weighted: Vec<ResourceRecordSet>,
    others: Vec<ResourceRecordSet>,
    marker: Option<ResourceRecordSet>,
}

impl Records {
    /// Takes what is of interest of a page of a list. Returns whether the marker was found so far, and whether the page
    /// has gone beyond the name, and beyond the marker.
    pub(super) fn take(&mut self, name: &Name, page: Vec<ResourceRecordSet>) -> (bool, bool, bool) {
        let (mut past_name, mut past_marker) = (false, false);
        for set in page {
            let of = normal(&set.name);
            if of == name.full {
                if set.weight.is_some() { self.weighted.push(set) } else { self.others.push(set) }
            } else if of == name.marker && set.r#type == RrType::Txt {
                self.marker = Some(set);
            } else {
                past_name |= sort_key(&of) > sort_key(&name.full);
                past_marker |= sort_key(&of) > sort_key(&name.marker);
            }
        }
        (self.marker.is_some(), past_name || self.marker.is_some(), past_marker)
    }

    /// Changes with whatever is changed about the weighted records, and with every shift.
    pub(super) fn version(&self) -> String {
        let mut lines: Vec<String> = self.weighted.iter().chain(&self.marker).map(line).collect();
        lines.sort_unstable();
        hex(lines.join("\n").as_bytes())
    }

    /// Whether the last shift was this one.
    pub(super) fn is_marked_by(&self, nonce: &str) -> bool {
        let values = self.marker.as_ref().and_then(|marker| marker.resource_records.as_ref());
        values.is_some_and(|values| values.iter().any(|value| value.value == mark(nonce)))
    }

    /// How long resolvers keep an answer. An alias has its target's TTL, which is 60 s for load balancers.
    pub(super) fn ttl(&self) -> Duration {
        let ttl = self.weighted.iter().map(|set| set.ttl.unwrap_or(60)).max().unwrap_or(60);
        Duration::from_secs(ttl.try_into().unwrap_or(0))
    }

    /// The weights by type, and within by set identifier.
    fn weights(&self) -> BTreeMap<&str, BTreeMap<&str, i64>> {
        let mut weights: BTreeMap<&str, BTreeMap<&str, i64>> = BTreeMap::new();
        for set in &self.weighted {
            let (id, weight) = (set.set_identifier().unwrap_or_default(), set.weight.unwrap_or_default());
            weights.entry(set.r#type.as_str()).or_default().insert(id, weight);
        }
        weights
    }

    /// The one set that is answered with.
    pub(super) fn serves(&self, name: &Name) -> Result<&str> {
        let mixed = |why: String| Err(Error::new(ErrorKind::Mixed, why));
        let weights = self.weights();
        let mut serves: Option<&str> = None;
        for (kind, weights) in &weights {
            let answered: Vec<(&str, i64)> =
                weights.iter().filter(|(_, weight)| **weight > 0).map(|(set, weight)| (*set, *weight)).collect();
            match answered[..] {
                [(set, _)] if serves.is_none_or(|serves| serves == set) => serves = Some(set),
                [(set, _)] => {
                    let other = serves.unwrap_or_default();
                    return mixed(format!("{name} is answered with {set} for {kind} and with {other} for other types"));
                }
                [] => {
                    return mixed(format!(
                        "all weights of {name} {kind} are 0, so Route 53 answers with every one of them; give the one that shall \
                         serve a weight"
                    ));
                }
                _ => {
                    let all: Vec<String> = answered.iter().map(|(set, weight)| format!("{set} ({weight})")).collect();
                    return mixed(format!(
                        "{name} {kind} is answered with {}; set all weights but one to 0 and start again",
                        all.join(" and ")
                    ));
                }
            }
        }
        serves.ok_or_else(|| {
            Error::new(
                ErrorKind::NotFound,
                format!("{name} has no weighted records; make two of them, the candidate's at weight 0"),
            )
        })
    }

    /// The candidate's share, the same for every type; or what is odd about the records.
    pub(super) fn share(&self, change: &Change) -> Result<Weight, String> {
        let (baseline, candidate) = (change.baseline.id.as_str(), change.candidate.id.as_str());
        let mut found: Option<(Weight, &str)> = None;
        for (kind, weights) in self.weights() {
            let of = |set: &str| weights.get(set).copied().ok_or_else(|| format!("there is no {kind} record {set}"));
            let (old, new) = (of(baseline)?, of(candidate)?);
            let other = weights.iter().find(|(set, weight)| ![baseline, candidate].contains(set) && **weight > 0);
            if let Some((set, weight)) = other {
                return Err(format!("the {kind} record {set} has weight {weight}"));
            }
            let sum = old + new;
            if sum == 0 || new * 100 % sum != 0 {
                return Err(format!("the {kind} records {baseline} and {candidate} have weights {old} and {new}"));
            }
            let share = u8::try_from(new * 100 / sum).ok().and_then(|share| Weight::try_from(share).ok());
            let share = share.ok_or_else(|| format!("the weights of {kind} are no weights"))?;
            match found {
                Some((other, at)) if other != share => {
                    return Err(format!("{candidate} has {share} of {kind} and {other} of {at}"));
                }
                _ => found = Some((share, kind)),
            }
        }
        found.map(|(share, _)| share).ok_or_else(|| "there are no weighted records".into())
    }

    /// The batch that gives the candidate this share, and the version that comes of it: every record deleted as it was
    /// seen, and created as it shall be.
    pub(super) fn moved(
        &self,
        name: &Name,
        change: &Change,
        share: Weight,
        nonce: &str,
    ) -> Result<(Vec<Edit>, String)> {
        let mut after = self.clone();
        let mut edits = Vec::new();
        let new = i64::from(share.percent());
        for set in &mut after.weighted {
            let weight = match set.set_identifier() {
                Some(id) if id == change.baseline.id.as_str() => 100 - new,
                Some(id) if id == change.candidate.id.as_str() => new,
                _ => continue,
            };
            edits.push(edit(ChangeAction::Delete, set.clone())?);
            set.weight = Some(weight);
            edits.push(edit(ChangeAction::Create, set.clone())?);
        }
        if let Some(marker) = self.marker.clone() {
            edits.push(edit(ChangeAction::Delete, marker)?);
        }
        let marker = marker(name, &mark(nonce))?;
        edits.push(edit(ChangeAction::Create, marker.clone())?);
        after.marker = Some(marker);
        Ok((edits, after.version()))
    }

    /// The health checks of a set, and its types that have one.
    pub(super) fn checks(&self, id: &str) -> Vec<&str> {
        let sets = self.weighted.iter().filter(|set| set.set_identifier() == Some(id));
        sets.filter_map(ResourceRecordSet::health_check_id).collect()
    }

    /// What is at the name beside weighted records, by type and policy.
    pub(super) fn beside(&self) -> Vec<&str> {
        self.others.iter().map(|set| set.r#type.as_str()).collect()
    }

    /// Whether weighted records of one type have several TTLs.
    pub(super) fn has_several_ttls(&self) -> bool {
        let mut ttls: BTreeMap<&str, i64> = BTreeMap::new();
        let mut with = self.weighted.iter().filter_map(|set| Some((set.r#type.as_str(), set.ttl?)));
        with.any(|(kind, ttl)| *ttls.entry(kind).or_insert(ttl) != ttl)
    }
}

fn edit(action: ChangeAction, set: ResourceRecordSet) -> Result<Edit> {
    let edit = Edit::builder().action(action).resource_record_set(set).build();
    edit.map_err(|e| Error::new(ErrorKind::Internal, "a change of a record cannot be made").because(e))
}

/// The deletion of a marker that never was: what shows whether changes may be made, and makes none.
pub(super) fn probe(name: &Name) -> Result<Edit> {
    edit(ChangeAction::Delete, marker(name, &mark("never"))?)
}

fn marker(name: &Name, value: &str) -> Result<ResourceRecordSet> {
    let odd = |e| Error::new(ErrorKind::Internal, "the marker cannot be made").because(e);
    let value = ResourceRecord::builder().value(value).build().map_err(odd)?;
    let set = ResourceRecordSetBuilder::default().name(name.marker()).r#type(RrType::Txt).ttl(60);
    set.resource_records(value).build().map_err(odd)
}

/// What the marker says: nothing that anybody could learn something from.
fn mark(nonce: &str) -> String {
    format!("\"rollback={}\"", &hex(nonce.as_bytes())[..32])
}

/// A set of records as one line: all that a DELETE has to repeat.
fn line(set: &ResourceRecordSet) -> String {
    let values = set.resource_records.iter().flatten().map(|value| value.value.as_str());
    let mut values: Vec<&str> = values.collect();
    values.sort_unstable();
    let alias = set
        .alias_target
        .as_ref()
        .map(|alias| format!("{} {} {}", alias.hosted_zone_id, normal(&alias.dns_name), alias.evaluate_target_health));
    format!(
        "{}|{}|{:?}|{:?}|{:?}|{values:?}|{alias:?}|{:?}|{:?}",
        normal(&set.name),
        set.r#type.as_str(),
        set.set_identifier,
        set.weight,
        set.ttl,
        set.health_check_id,
        set.traffic_policy_instance_id,
    )
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rollback_core::model::{Revision, RolloutId, TargetId};

    fn change() -> Change {
        Change {
            rollout: RolloutId::try_from("r").expect("a good id"),
            target: TargetId::try_from("api").expect("a good id"),
            baseline: Revision::new("blue").expect("a good id"),
            candidate: Revision::new("green").expect("a good id"),
        }
    }

    fn name() -> Name {
        Name::parse("api.example.com").unwrap()
    }

    fn set(kind: &str, id: &str, weight: i64) -> ResourceRecordSet {
        let value = ResourceRecord::builder().value("192.0.2.1").build().unwrap();
        let set = ResourceRecordSet::builder().name("api.example.com.").r#type(kind.into()).set_identifier(id);
        set.weight(weight).ttl(60).resource_records(value).build().unwrap()
    }

    fn records(sets: &[(&str, &str, i64)]) -> Records {
        let mut records = Records::default();
        records.take(&name(), sets.iter().map(|(kind, id, weight)| set(kind, id, *weight)).collect());
        records
    }

    #[test]
    fn a_share_is_told_only_when_all_types_agree_and_nobody_else_serves() {
        let a = |old, new| [("A", "blue", old), ("A", "green", new)];
        for (sets, wanted) in [
            (a(255, 0).to_vec(), Ok(0)),
            (a(0, 1).to_vec(), Ok(100)),
            (a(19, 1).to_vec(), Ok(5)),
            ([&a(95, 5)[..], &[("AAAA", "blue", 19), ("AAAA", "green", 1), ("A", "old", 0)]].concat(), Ok(5)),
            (a(0, 0).to_vec(), Err("the A records blue and green have weights 0 and 0")),
            (a(2, 1).to_vec(), Err("the A records blue and green have weights 2 and 1")),
            (vec![("A", "blue", 1)], Err("there is no A record green")),
            ([&a(1, 0)[..], &[("A", "old", 3)]].concat(), Err("the A record old has weight 3")),
            (
                [&a(1, 0)[..], &[("AAAA", "blue", 0), ("AAAA", "green", 1)]].concat(),
                Err("green has 100 % of AAAA and 0 % of A"),
            ),
            (vec![], Err("there are no weighted records")),
        ] {
            let found = records(&sets).share(&change()).map(|share| share.percent());
            assert_eq!(found, wanted.map_err(str::to_owned), "{sets:?}");
        }
    }

    #[test]
    fn every_share_is_what_its_own_batch_makes() {
        let before = records(&[("A", "blue", 7), ("A", "green", 0), ("A", "old", 0)]);
        for percent in 0..=100 {
            let share = Weight::try_from(percent).unwrap();
            let (edits, version) = before.moved(&name(), &change(), share, "n").unwrap();
            let mut after = Records::default();
            let made = edits.iter().filter(|edit| edit.action == ChangeAction::Create);
            let made = made.filter_map(|edit| edit.resource_record_set.clone());
            after.take(&name(), made.chain([set("A", "old", 0)]).collect());
            assert_eq!((after.share(&change()), after.version()), (Ok(share), version));
            assert!(after.is_marked_by("n") && !after.is_marked_by("m"));
        }
    }

    #[test]
    fn two_shifts_to_one_share_are_two_versions() {
        let before = records(&[("A", "blue", 100), ("A", "green", 0)]);
        let version = |nonce| before.moved(&name(), &change(), Weight::NONE, nonce).unwrap().1;
        assert_ne!(version("one"), version("two"));
        assert_ne!(version("one"), before.version());
    }

    #[test]
    fn names_are_normal_and_markers_beside_them() {
        let wild = Name::parse("*.Example.com").unwrap();
        assert_eq!((wild.as_str(), wild.marker()), ("*.example.com.", "_rollback-wildcard.example.com."));
        assert_eq!(normal("\\052.example.com."), "*.example.com.");
        assert_eq!(name().marker(), "_rollback.api.example.com.");
        for bad in ["", "com", "a b.example.com", "a..b", &format!("{}.com", "x".repeat(64))] {
            assert_eq!(Name::parse(bad).unwrap_err().kind(), ErrorKind::Invalid, "{bad:?}");
        }
    }
}
