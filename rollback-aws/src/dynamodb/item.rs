//! How records are written as items. Pure.
//!
//! | partition key `pk` | sort key `sk` | what it is |
//! |---|---|---|
//! | `rollout#ID` | `record` | a record, with as much of its body as fits |
//! | `part-N#ID` | `body` | the rest of a large body, 380 KiB each; on other partitions, as each has its own write capacity |
//! | `open` | the target | the open rollout of a target: its driver, and what was asked of it. There is one, so this is the lock |
//! | `target#TARGET` | `head` | the order of a target's records |
//! | `driver` | the driver | its beat, and a sign that something was asked of it |

use std::{collections::HashMap, sync::Arc};

use aws_sdk_dynamodb::types::AttributeValue;
use rollback_core::{
    Error, ErrorKind, Result,
    model::{DriverId, RolloutId, Serial, TargetId},
    store::{Record, Standing},
};
use serde::{Deserialize, Serialize};

pub(super) type Item = HashMap<String, AttributeValue>;

/// The partition and the sort key.
pub(super) const PK: &str = "pk";
pub(super) const SK: &str = "sk";
/// The partition of what is open, and that of the drivers.
pub(super) const OPEN: &str = "open";
pub(super) const DRIVERS: &str = "driver";
/// When an item may be swept: seconds since 1970.
pub(super) const EXPIRES: &str = "expires";

/// How much of a body one item holds. An item may have 400 KB; what is around the body has less than the rest.
pub(super) const PIECE: usize = 380 * 1024;
/// The largest body: a transaction may have 4 MB.
pub(super) const MAX: usize = 8 * PIECE;
/// The version of what is written here.
const FORMAT: u32 = 1;

/// A key, as calls take it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Key {
    pk: String,
    sk: String,
}

impl Key {
    fn new(pk: impl Into<String>, sk: impl Into<String>) -> Self {
        Self { pk: pk.into(), sk: sk.into() }
    }

    pub(super) fn record(id: &RolloutId) -> Self {
        Self::new(format!("rollout#{id}"), "record")
    }

    pub(super) fn part(id: &RolloutId, number: usize) -> Self {
        Self::new(format!("part-{number}#{id}"), "body")
    }

    pub(super) fn open(target: &TargetId) -> Self {
        Self::new(OPEN, target.as_str())
    }

    pub(super) fn head(target: &TargetId) -> Self {
        Self::new(format!("target#{target}"), "head")
    }

    pub(super) fn driver(driver: &DriverId) -> Self {
        Self::new(DRIVERS, driver.as_str())
    }

    /// No item has it.
    pub(super) fn nobody() -> Self {
        Self::new("nobody", "nobody")
    }

    pub(super) fn to_item(&self) -> Item {
        [(PK.to_owned(), text(&self.pk)), (SK.to_owned(), text(&self.sk))].into()
    }
}

/// A record as it is kept.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Kept {
    pub(super) record: Record,
    pub(super) serial: Serial,
    /// Of the save that wrote it: so a lost answer is told from somebody else's save.
    pub(super) nonce: String,
    /// The last number that a request had when the rollout was over.
    pub(super) asked: u64,
    /// The nonces of the last requests when the rollout was over: so a request that ended it is known as heard when it is
    /// asked again.
    pub(super) answered: Vec<String>,
}

/// A record as its own item shows it: what is left of the body lies in this many parts.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Shown {
    pub(super) kept: Kept,
    pub(super) parts: usize,
}

impl Kept {
    pub(super) fn new(record: &Record, serial: Serial, nonce: &str) -> Self {
        Self { record: record.clone(), serial, nonce: nonce.into(), asked: record.heard, answered: Vec::new() }
    }

    pub(super) fn is_open(&self) -> bool {
        self.record.standing == Standing::Open
    }

    /// The items that hold it: the record's own, and the parts.
    pub(super) fn to_items(&self) -> Result<(Item, Vec<Item>)> {
        let Record { id, subject, driver, standing, format, heard, body } = &self.record;
        if body.len() > MAX {
            let said = format!(
                "the record of rollout {id} has {} bytes; DynamoDB takes 4 MB in one write, and this store at most {MAX} bytes \
                 of a record",
                body.len()
            );
            return Err(Error::invalid(said));
        }
        let pieces = pieces(body);
        let mut item = Key::record(id).to_item();
        item.extend([
            ("v".into(), number(FORMAT)),
            ("id".into(), text(id.as_str())),
            ("target".into(), text(subject.as_str())),
            ("standing".into(), text(standing.name())),
            ("form".into(), number(format)),
            ("heard".into(), number(heard)),
            ("serial".into(), number(self.serial)),
            ("nonce".into(), text(&self.nonce)),
            ("asked".into(), number(self.asked)),
            ("parts".into(), number(pieces.len() - 1)),
            ("body".into(), text(pieces[0])),
        ]);
        if let Some(driver) = driver {
            item.insert("driver".into(), text(driver.as_str()));
        }
        if !self.answered.is_empty() {
            item.insert("answered".into(), texts(&self.answered));
        }
        let part = |(at, piece): (usize, &&str)| {
            let mut item = Key::part(id, at + 1).to_item();
            item.insert("nonce".into(), text(&self.nonce));
            item.insert("body".into(), text(*piece));
            item
        };
        Ok((item, pieces[1..].iter().enumerate().map(part).collect()))
    }
}

impl Shown {
    pub(super) fn read(item: &Item) -> Result<Self> {
        readable(item, numeral(item, "v"))?;
        Self::parse(item).ok_or_else(|| broken(item))
    }

    fn parse(item: &Item) -> Option<Self> {
        let word = |name| words(item, name);
        let standing = [Standing::Open, Standing::Promoted, Standing::Over];
        let record = Record {
            id: word("id")?.try_into().ok()?,
            subject: word("target")?.try_into().ok()?,
            driver: word("driver").map(DriverId::try_from).transpose().ok()?,
            standing: standing.into_iter().find(|standing| word("standing") == Some(standing.name()))?,
            format: numeral(item, "form")?,
            heard: numeral(item, "heard")?,
            body: word("body")?.into(),
        };
        let (serial, asked) = (Serial(numeral(item, "serial")?), numeral(item, "asked")?);
        let kept = Kept { record, serial, nonce: word("nonce")?.into(), asked, answered: list(item, "answered")? };
        Some(Self { kept, parts: numeral(item, "parts")? })
    }

    /// The whole record, with these parts. None when one of them is of another save.
    pub(super) fn join(mut self, parts: &[Item]) -> Option<Kept> {
        let mut body = String::from(&*self.kept.record.body);
        for part in parts {
            if words(part, "nonce") != Some(&self.kept.nonce) {
                return None;
            }
            body.push_str(words(part, "body")?);
        }
        self.kept.record.body = Arc::from(body);
        (parts.len() == self.parts).then_some(self.kept)
    }
}

/// A body in pieces that an item holds, at least one.
fn pieces(body: &str) -> Vec<&str> {
    let (mut pieces, mut rest) = (Vec::new(), body);
    loop {
        let (piece, more) = rest.split_at(rest.floor_char_boundary(PIECE));
        pieces.push(piece);
        rest = more;
        if rest.is_empty() {
            return pieces;
        }
    }
}

/// The open rollout of a target.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Open {
    pub(super) id: RolloutId,
    pub(super) target: TargetId,
    pub(super) driver: Option<DriverId>,
    /// The last number that a request of it had.
    pub(super) asked: u64,
    /// What was asked of it and not forgotten yet, by number.
    pub(super) requests: Vec<Question>,
    /// The nonces of the last ones that were forgotten: whoever got no answer may ask again.
    pub(super) answered: Vec<String>,
}

/// A request as it is kept. As text: a newer process may ask what this one cannot read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Question {
    pub(super) number: u64,
    /// Of the call that asked, for lost answers.
    pub(super) nonce: String,
    pub(super) text: String,
}

impl Open {
    /// Of a record that is open from now on.
    pub(super) fn new(kept: &Kept) -> Self {
        let Record { id, subject, driver, heard, .. } = kept.record.clone();
        Self { id, target: subject, driver, asked: kept.asked.max(heard), requests: Vec::new(), answered: Vec::new() }
    }

    pub(super) fn to_item(&self) -> Item {
        let mut item = Key::open(&self.target).to_item();
        item.extend([
            ("v".into(), number(FORMAT)),
            ("id".into(), text(self.id.as_str())),
            ("asked".into(), number(self.asked)),
            ("requests".into(), AttributeValue::M(self.requests.iter().map(Question::to_member).collect())),
        ]);
        if let Some(driver) = &self.driver {
            item.insert("driver".into(), text(driver.as_str()));
        }
        item
    }

    pub(super) fn read(item: &Item) -> Result<Self> {
        // The first ones were written without a version.
        readable(item, Some(numeral(item, "v").unwrap_or(1)))?;
        Self::parse(item).ok_or_else(|| broken(item))
    }

    /// Forgets what was heard, but for its nonces: what is left to write, and the numbers of what is to be removed.
    pub(super) fn forget(&self, heard: u64) -> (Vec<u64>, Vec<String>) {
        let old = self.requests.iter().filter(|question| question.number <= heard).take(REMOVED);
        let (numbers, nonces): (Vec<u64>, Vec<String>) =
            old.map(|question| (question.number, question.nonce.clone())).unzip();
        let all: Vec<String> = self.answered.iter().cloned().chain(nonces).collect();
        (numbers, all[all.len().saturating_sub(REMEMBERED)..].to_vec())
    }

    /// Whether a call with this nonce has asked already.
    pub(super) fn knows(&self, nonce: &str) -> bool {
        self.nonces().any(|known| known == nonce)
    }

    /// Of all that it was asked, as far as it is known.
    pub(super) fn nonces(&self) -> impl Iterator<Item = &str> {
        let asked = self.requests.iter().map(|question| question.nonce.as_str());
        self.answered.iter().map(String::as_str).chain(asked)
    }

    fn parse(item: &Item) -> Option<Self> {
        let mut requests = Vec::new();
        for (number, value) in item.get("requests")?.as_m().ok()? {
            let value = value.as_m().ok()?;
            let (nonce, text) = (words(value, "nonce")?.into(), words(value, "text")?.into());
            requests.push(Question { number: number.parse().ok()?, nonce, text });
        }
        requests.sort_by_key(|question| question.number);
        Some(Self {
            id: words(item, "id")?.try_into().ok()?,
            target: words(item, SK)?.try_into().ok()?,
            driver: words(item, "driver").map(DriverId::try_from).transpose().ok()?,
            asked: numeral(item, "asked")?,
            requests,
            answered: list(item, "answered")?,
        })
    }
}

impl Question {
    /// Its name and value in the map of requests.
    pub(super) fn to_member(&self) -> (String, AttributeValue) {
        let value = [("nonce".to_owned(), text(&self.nonce)), ("text".to_owned(), text(&self.text))];
        (self.number.to_string(), AttributeValue::M(value.into()))
    }
}

/// The order of a target's records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Head {
    target: TargetId,
    /// Of the order: it rises with each write. None when there is no head yet.
    pub(super) version: Option<u64>,
    /// Oldest first.
    pub(super) order: Vec<Known>,
}

/// A record in the order of its target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Known {
    pub(super) id: RolloutId,
    pub(super) standing: Standing,
    /// How many parts its body has beside its own item, once it is over.
    pub(super) parts: usize,
}

impl Head {
    /// There is none yet.
    pub(super) const fn empty(target: TargetId) -> Self {
        Self { target, version: None, order: Vec::new() }
    }

    /// Notes how a record stands now, and forgets the oldest finished ones: all but the newest `keep`, the last promoted
    /// and the one just saved. Returns those that are to be deleted: no more than one transaction can take, the rest goes
    /// when the next one ends.
    pub(super) fn settle(&mut self, saved: &Record, parts: usize, keep: usize) -> Vec<Known> {
        let known = Known { id: saved.id.clone(), standing: saved.standing, parts };
        match self.order.iter_mut().find(|other| other.id == saved.id) {
            Some(other) => *other = known,
            None => self.order.push(known),
        }
        if saved.standing == Standing::Open {
            return Vec::new();
        }
        let (mut finished, mut promoted) = (0, false);
        let mut old = Vec::new();
        for known in self.order.iter().rev() {
            let last_promoted = known.standing == Standing::Promoted && !std::mem::replace(&mut promoted, true);
            finished += usize::from(known.standing != Standing::Open);
            let stays = known.standing == Standing::Open || last_promoted || finished <= keep || known.id == saved.id;
            if !stays {
                old.push(known.clone());
            }
        }
        let mut room = DELETED;
        let mut gone = Vec::new();
        for known in old.into_iter().rev() {
            let Some(left) = usize::checked_sub(room, 1 + known.parts) else { break };
            room = left;
            gone.push(known);
        }
        self.order.retain(|known| !gone.contains(known));
        gone
    }

    /// As it is written next.
    pub(super) fn to_item(&self) -> Result<Item> {
        let order = serde_json::to_string(&self.order).map_err(|e| {
            Error::new(ErrorKind::Internal, "the order of records cannot be written as JSON").because(e)
        })?;
        let mut item = Key::head(&self.target).to_item();
        item.insert("version".into(), number(self.version.map_or(1, |version| version + 1)));
        item.insert("known".into(), text(&order));
        Ok(item)
    }

    pub(super) fn read(target: &TargetId, item: &Item) -> Result<Self> {
        let order = words(item, "known").and_then(|order| serde_json::from_str(order).ok());
        let version = numeral(item, "version");
        match (order, version) {
            (Some(order), Some(_)) => Ok(Self { target: target.clone(), version, order }),
            _ => Err(broken(item)),
        }
    }
}

/// A driver's beat, and its name.
pub(super) fn beat(item: &Item) -> Option<(&str, u64)> {
    Some((words(item, SK)?, numeral(item, "beats")?))
}

pub(super) fn words<'a>(item: &'a Item, name: &str) -> Option<&'a str> {
    item.get(name)?.as_s().ok().map(String::as_str)
}

fn numeral<T: std::str::FromStr>(item: &Item, name: &str) -> Option<T> {
    item.get(name)?.as_n().ok()?.parse().ok()
}

/// A list of texts; none when there is no such attribute, as in items of the first version.
fn list(item: &Item, name: &str) -> Option<Vec<String>> {
    let Some(list) = item.get(name) else { return Some(Vec::new()) };
    list.as_l().ok()?.iter().map(|one| one.as_s().ok().cloned()).collect()
}

pub(super) fn texts(texts: &[String]) -> AttributeValue {
    AttributeValue::L(texts.iter().map(text).collect())
}

pub(super) fn text(text: impl Into<String>) -> AttributeValue {
    AttributeValue::S(text.into())
}

pub(super) fn number(number: impl ToString) -> AttributeValue {
    AttributeValue::N(number.to_string())
}

/// Whether this version of the library can read what was written with that one.
fn readable(item: &Item, version: Option<u32>) -> Result<()> {
    match version {
        None => Err(broken(item)),
        Some(version) if version > FORMAT => {
            let newer = format!("{} was written by a newer version of this library", name(item));
            Err(Error::new(ErrorKind::Unsupported, newer))
        }
        Some(_) => Ok(()),
    }
}

pub(super) fn name(item: &Item) -> String {
    format!("the item {} / {}", words(item, PK).unwrap_or_default(), words(item, SK).unwrap_or_default())
}

/// Whatever is wrong, its text stays here: it may quote what is sealed.
fn broken(item: &Item) -> Error {
    Error::new(ErrorKind::Internal, format!("{} is not what this library writes", name(item)))
}

/// So many nonces stay of requests that were heard. Whoever got no answer asks again within seconds.
const REMEMBERED: usize = 8;
/// How many questions are taken away at once: an expression may have 4 KB.
const REMOVED: usize = 100;
/// How many items one transaction deletes at most, of the 100 that it may touch.
const DELETED: usize = 60;

#[cfg(test)]
mod tests {
    use super::*;

    fn record(id: &str, standing: Standing) -> Record {
        Record {
            id: id.try_into().unwrap(),
            subject: "checkout, naïve \u{1F680}".try_into().unwrap(),
            driver: Some("d".try_into().unwrap()),
            standing,
            format: 7,
            heard: 3,
            body: "{\"sealed\":\"\u{1F512}\"}".into(),
        }
    }

    #[test]
    fn what_is_written_is_read_again_whatever_its_size() {
        for len in [0, 1, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE + 3] {
            let body = "\u{1F512}".repeat(len.div_ceil(4)).into();
            let kept = Kept::new(&Record { body, ..record("a", Standing::Open) }, Serial(2), "n");
            let (item, parts) = kept.to_items().unwrap();
            let shown = Shown::read(&item).unwrap();
            assert_eq!(shown.parts, parts.len());
            assert_eq!(shown.join(&parts).unwrap(), kept, "{len}");
        }
    }

    #[test]
    fn parts_of_another_save_are_never_joined() {
        let body = "x".repeat(2 * PIECE).into();
        let kept = Kept::new(&Record { body, ..record("a", Standing::Open) }, Serial(2), "ours");
        let (item, _) = kept.to_items().unwrap();
        let (_, parts) = Kept { nonce: "theirs".into(), ..kept }.to_items().unwrap();
        assert_eq!(Shown::read(&item).unwrap().join(&parts), None);
        assert_eq!(Shown::read(&item).unwrap().join(&[]), None, "a part is missing");
    }

    #[test]
    fn a_record_that_no_transaction_holds_is_refused_with_its_size() {
        let body = "x".repeat(MAX + 1).into();
        let kept = Kept::new(&Record { body, ..record("a", Standing::Open) }, Serial(1), "n");
        let error = kept.to_items().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.to_string().starts_with("the record of rollout a has 3112961 bytes"), "{error}");
    }

    #[test]
    fn nothing_sealed_is_in_errors_and_a_newer_format_is_called_that() {
        let (mut item, _) = Kept::new(&record("a", Standing::Open), Serial(1), "n").to_items().unwrap();
        item.insert("standing".into(), text("sealed?"));
        let error = Shown::read(&item).unwrap_err();
        assert_eq!(error.to_string(), "the item rollout#a / record is not what this library writes");
        item.insert("v".into(), number(2));
        assert_eq!(Shown::read(&item).unwrap_err().kind(), ErrorKind::Unsupported);
    }

    #[test]
    fn what_the_first_version_wrote_is_read_and_what_a_newer_one_wrote_is_called_that() {
        let kept = Kept::new(&record("a", Standing::Open), Serial(1), "n");
        let open = Open::new(&kept);
        let mut item = open.to_item();
        item.remove("v");
        assert_eq!(Open::read(&item).unwrap(), open);
        item.insert("v".into(), number(FORMAT + 1));
        assert_eq!(Open::read(&item).unwrap_err().kind(), ErrorKind::Unsupported);

        let over = Kept { answered: vec!["x".into(), "y".into()], ..kept.clone() };
        let mut item = over.to_items().unwrap().0;
        assert_eq!(Shown::read(&item).unwrap().kept, over);
        item.remove("answered");
        assert_eq!(Shown::read(&item).unwrap().kept, kept);
    }

    #[test]
    fn trimming_keeps_the_open_the_last_promoted_and_the_newest() {
        use Standing::{Open, Over, Promoted};
        let mut head = Head::empty("checkout".try_into().unwrap());
        let mut gone = Vec::new();
        for (id, standing) in
            [("p1", Promoted), ("p2", Promoted), ("o1", Over), ("o2", Over), ("o3", Over), ("now", Open)]
        {
            gone.extend(head.settle(&record(id, standing), 0, 2).into_iter().map(|known| known.id.to_string()));
        }
        assert_eq!(gone, ["p1", "o1"]);
        let order: Vec<&str> = head.order.iter().map(|known| known.id.as_str()).collect();
        assert_eq!(order, ["p2", "o2", "o3", "now"]);
    }

    #[test]
    fn what_is_trimmed_at_once_fits_a_transaction_and_the_rest_goes_next_time() {
        let mut head = Head::empty("checkout".try_into().unwrap());
        for at in 0..50 {
            head.settle(&record(&at.to_string(), Standing::Over), 3, 100);
        }
        let gone = head.settle(&record("last", Standing::Over), 0, 1);
        assert_eq!(gone.len(), 15, "four items each");
        assert_eq!(gone[0].id.as_str(), "0", "the oldest first");
        assert_eq!(head.order.len(), 36);
        assert_eq!(head.settle(&record("last", Standing::Over), 0, 1).len(), 15);
    }
}
