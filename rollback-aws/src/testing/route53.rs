//! Route 53's room: hosted zones with simple and weighted records, changes on their way to the name servers, and what
//! resolvers may answer meanwhile.
//!
//! A batch of changes is done as a whole or not at all; a DELETE must repeat every value. A change is PENDING for half a
//! minute ([`Hands::propagation`]), and what was answered before it lasts for a TTL longer ([`Hands::answers`]). All
//! requests together have five a second ([`Hands::rate`]), as the whole account has.
//!
//! Not simulated, and refused in so many words: other routing policies, private zones, traffic policies, DNSSEC, and
//! health checks but for what a test says of them.

mod hands;
mod xml;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use http::{Method, Request, Response};
use jiff::{SignedDuration, Timestamp};
use percent_encoding::percent_decode_str;
use serde_json::{Map, Value, json};
use uuid::Uuid;

pub use self::hands::{Hands, Snapshot};
use self::xml::Element;
use super::wire::{self, Called, Protocol, Refusal, Service};

/// What Route 53 knows.
#[derive(Debug)]
pub(super) struct Room {
    /// By id, without `/hostedzone/`.
    zones: BTreeMap<String, Zone>,
    changes: BTreeMap<String, Change>,
    /// Whether endpoints are healthy, by the id of their check.
    checks: BTreeMap<String, bool>,
    propagation: SignedDuration,
    rate: Option<u32>,
    asked: VecDeque<Timestamp>,
    /// So many changes find an earlier one unfinished.
    busy: u32,
}

#[derive(Clone, Debug)]
struct Zone {
    name: String,
    caller: String,
    records: BTreeMap<Id, Record>,
    /// What was answered before a change, and from when on the name servers answer otherwise.
    past: Vec<(Timestamp, BTreeMap<Id, Record>)>,
}

/// What tells records apart: name, type, set identifier.
type Id = (Vec<String>, String, Option<String>);

/// A set of records, as it was given.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Record {
    /// As in `api.example.com.`.
    name: String,
    kind: String,
    set: Option<String>,
    weight: Option<u64>,
    ttl: Option<u64>,
    values: BTreeSet<String>,
    alias: Option<(String, String, bool)>,
    check: Option<String>,
}

#[derive(Debug)]
struct Change {
    at: Timestamp,
    in_sync: Timestamp,
    comment: Option<String>,
}

/// The operation of a request for Route 53.
pub(super) fn route(request: &Request<Bytes>) -> Option<Called> {
    let path = request.uri().path().strip_prefix("/2013-04-01/")?.trim_end_matches('/');
    let parts: Vec<&str> = path.split('/').collect();
    let operation = match (request.method(), parts.as_slice()) {
        (&Method::POST, ["hostedzone"]) => "CreateHostedZone",
        (&Method::GET, ["hostedzone", _]) => "GetHostedZone",
        (&Method::DELETE, ["hostedzone", _]) => "DeleteHostedZone",
        (&Method::POST, ["hostedzone", _, "rrset"]) => "ChangeResourceRecordSets",
        (&Method::GET, ["hostedzone", _, "rrset"]) => "ListResourceRecordSets",
        (&Method::GET, ["change", _]) => "GetChange",
        (&Method::GET, ["healthcheck", _, "status"]) => "GetHealthCheckStatus",
        _ => return None,
    };
    Some(Called { service: Service::Route53, protocol: Protocol::RestXml, operation: operation.into() })
}

impl Room {
    pub(super) fn new() -> Self {
        Self {
            zones: BTreeMap::new(),
            changes: BTreeMap::new(),
            checks: BTreeMap::new(),
            propagation: SignedDuration::from_secs(30),
            rate: Some(5),
            asked: VecDeque::new(),
            busy: 0,
        }
    }

    /// Forgets what no resolver remembers.
    pub(super) fn pass(&mut self, now: Timestamp) {
        for zone in self.zones.values_mut() {
            zone.past.retain(|(until, records)| {
                let ttl = records.values().map(Record::ttl).max().unwrap_or_default();
                now <= until.saturating_add(ttl).unwrap_or(Timestamp::MAX)
            });
        }
    }

    pub(super) fn answer(
        &mut self,
        called: &Called,
        request: &Request<Bytes>,
        now: Timestamp,
    ) -> Result<Response<Bytes>, Refusal> {
        if let Some(rate) = self.rate {
            self.asked.retain(|at| now.duration_since(*at) < SignedDuration::from_secs(1));
            if self.asked.len() >= rate as usize {
                return Err(Refusal::new(400, "Throttling", "Rate exceeded"));
            }
            self.asked.push_back(now);
        }
        let path = request.uri().path().trim_end_matches('/');
        let id = path.split('/').nth(3).map(|id| percent_decode_str(id).decode_utf8_lossy()).unwrap_or_default();
        let body = || {
            let body = std::str::from_utf8(request.body()).ok().and_then(Element::read);
            body.ok_or_else(|| Refusal::new(400, "InvalidInput", "The XML document is malformed"))
        };
        let (status, said) = match called.operation.as_str() {
            "CreateHostedZone" => (201, self.create_zone(&body()?, now)?),
            "GetHostedZone" => (200, self.get_zone(&id)?),
            "DeleteHostedZone" => (200, self.delete_zone(&id, now)?),
            "ChangeResourceRecordSets" => match self.change(&id, &body()?, now) {
                Ok(said) => (200, said),
                Err(Batch::Refusal(refusal)) => return Err(refusal),
                Err(Batch::Wrong(why)) => return Ok(invalid_batch(&why)),
            },
            "ListResourceRecordSets" => (200, self.list(&id, request)?),
            "GetChange" => (200, self.get_change(&id, now)?),
            _ => (200, self.check_status(&id, now)?),
        };
        let mut text = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
        xml::write(&format!("{}Response", called.operation), &said, &mut text);
        let root = format!("<{}Response>", called.operation);
        let text = text.replacen(&root, &format!("{} xmlns=\"{NAMESPACE}\">", root.trim_end_matches('>')), 1);
        let mut answer = wire::bytes_answer(status, "text/xml", Bytes::from(text));
        if status == 201 {
            let at = said["HostedZone"]["Id"].as_str().unwrap_or_default();
            if let Ok(at) = http::HeaderValue::try_from(format!("https://route53.amazonaws.com/2013-04-01{at}")) {
                answer.headers_mut().insert("location", at);
            }
        }
        Ok(answer)
    }

    fn create_zone(&mut self, asked: &Element, now: Timestamp) -> Result<Value, Refusal> {
        let name = asked.text_of("Name").filter(|name| name.contains('.'));
        let name = name.ok_or_else(|| Refusal::new(400, "InvalidDomainName", "The domain name is not valid"))?;
        let caller = asked.text_of("CallerReference").unwrap_or_default();
        if self.zones.values().any(|zone| zone.caller == caller) {
            return Err(Refusal::new(409, "HostedZoneAlreadyExists", "The hosted zone was created already"));
        }
        let id = format!("Z{}", &Uuid::new_v4().simple().to_string().to_uppercase()[..19]);
        let zone = Zone { name: full(name), caller: caller.into(), records: BTreeMap::new(), past: Vec::new() };
        let mut said = describe(&id, &zone);
        self.zones.insert(id, zone);
        said["ChangeInfo"] = self.begin(None, now);
        said["DelegationSet"] =
            json!({ "NameServers": { "NameServer": ["ns-1.awsdns-00.org", "ns-2.awsdns-00.net"] } });
        Ok(said)
    }

    fn zone(&mut self, id: &str) -> Result<&mut Zone, Refusal> {
        self.zones
            .get_mut(id)
            .ok_or_else(|| Refusal::new(404, "NoSuchHostedZone", format!("No hosted zone found with ID: {id}")))
    }

    fn get_zone(&mut self, id: &str) -> Result<Value, Refusal> {
        Ok(describe(id, self.zone(id)?))
    }

    fn delete_zone(&mut self, id: &str, now: Timestamp) -> Result<Value, Refusal> {
        if !self.zone(id)?.records.is_empty() {
            let why = "The specified hosted zone contains non-required resource record sets and so cannot be deleted.";
            return Err(Refusal::new(400, "HostedZoneNotEmpty", why));
        }
        self.zones.remove(id);
        Ok(json!({ "ChangeInfo": self.begin(None, now) }))
    }

    fn begin(&mut self, comment: Option<&str>, now: Timestamp) -> Value {
        let id = format!("C{}", &Uuid::new_v4().simple().to_string().to_uppercase()[..19]);
        let in_sync = now.saturating_add(self.propagation).unwrap_or(Timestamp::MAX);
        let change = Change { at: now, in_sync, comment: comment.map(str::to_owned) };
        let said = tell(&id, &change, now);
        self.changes.insert(id, change);
        said
    }

    fn get_change(&self, id: &str, now: Timestamp) -> Result<Value, Refusal> {
        let missing = || Refusal::new(404, "NoSuchChange", format!("Could not find resource with ID: {id}"));
        let change = self.changes.get(id).ok_or_else(missing)?;
        Ok(json!({ "ChangeInfo": tell(id, change, now) }))
    }

    fn check_status(&self, id: &str, now: Timestamp) -> Result<Value, Refusal> {
        let missing = || Refusal::new(404, "NoSuchHealthCheck", format!("A health check with id {id} does not exist."));
        let healthy = *self.checks.get(id).ok_or_else(missing)?;
        let status = match healthy {
            true => "Success: HTTP Status Code 200, OK",
            false => "Failure: Connection timed out. The endpoint or the internet connection is down.",
        };
        let seen = |(at, region): (usize, &str)| {
            json!({
                "Region": region,
                "IPAddress": format!("192.0.2.{at}"),
                "StatusReport": { "Status": status, "CheckedTime": now.to_string() },
            })
        };
        let regions = ["us-east-1", "us-west-2", "eu-west-1"].into_iter().enumerate().map(seen);
        Ok(json!({ "HealthCheckObservations": { "HealthCheckObservation": regions.collect::<Vec<_>>() } }))
    }

    fn list(&mut self, id: &str, request: &Request<Bytes>) -> Result<Value, Refusal> {
        let query: BTreeMap<String, String> = request
            .uri()
            .query()
            .unwrap_or_default()
            .split('&')
            .filter_map(|pair| pair.split_once('='))
            .map(|(name, value)| {
                let value = value.replace('+', " ");
                (name.to_owned(), percent_decode_str(&value).decode_utf8_lossy().into_owned())
            })
            .collect();
        let zone = self.zone(id)?;
        let most = query.get("maxitems").map_or(Ok(300), |most| most.parse::<usize>());
        let most = most.map_err(|_| Refusal::new(400, "InvalidInput", "MaxItems is no number"))?.clamp(1, 300);
        if query.contains_key("type") && !query.contains_key("name") {
            return Err(Refusal::new(400, "InvalidInput", "If you specify the type, you must specify the name"));
        }
        let from: Option<Id> = query.get("name").map(|name| {
            (labels(&full(name)), query.get("type").cloned().unwrap_or_default(), query.get("identifier").cloned())
        });
        let mut rest = zone.records.iter().filter(|(id, _)| from.as_ref().is_none_or(|from| *id >= from));
        let page: Vec<Value> = rest.by_ref().take(most).map(|(_, record)| record.write()).collect();
        let mut said = json!({
            "ResourceRecordSets": { "ResourceRecordSet": page },
            "IsTruncated": false,
            "MaxItems": most.to_string(),
        });
        if let Some((_, next)) = rest.next() {
            said["IsTruncated"] = json!(true);
            said["NextRecordName"] = json!(next.name);
            said["NextRecordType"] = json!(next.kind);
            said["NextRecordIdentifier"] = json!(next.set);
        }
        Ok(said)
    }

    /// All of a batch, or nothing of it.
    fn change(&mut self, id: &str, asked: &Element, now: Timestamp) -> Result<Value, Batch> {
        let checks: BTreeSet<String> = self.checks.keys().cloned().collect();
        let (propagation, busy) = (self.propagation, self.busy);
        let zone = self.zone(id)?;
        if busy > 0 {
            self.busy -= 1;
            let why = "The request was rejected because Route 53 was still processing a prior request.";
            return Err(Refusal::new(400, "PriorRequestNotComplete", why).into());
        }
        let batch = asked.get("ChangeBatch");
        let changes = batch.and_then(|batch| batch.get("Changes")).map(|all| all.within.as_slice()).unwrap_or_default();
        if changes.is_empty() {
            return Err(Refusal::new(400, "InvalidInput", "The batch has no changes").into());
        }
        let mut records = zone.records.clone();
        let mut wrong = Vec::new();
        for change in changes {
            let action = change.text_of("Action").unwrap_or_default();
            let set =
                change.get("ResourceRecordSet").ok_or_else(|| Refusal::new(400, "InvalidInput", "no record set"))?;
            let record = Record::read(set)?;
            let (said, id) = (record.said(), record.id());
            if !record.name.ends_with(&zone.name) {
                wrong.push(format!("RRSet with DNS name {} is not permitted in zone {}", record.name, zone.name));
                continue;
            }
            match action {
                "DELETE" => match records.get(&id) {
                    None => wrong.push(format!("Tried to delete resource record set {said} but it was not found")),
                    Some(known) if *known != record => wrong.push(format!(
                        "Tried to delete resource record set {said} but the values provided do not match the current values"
                    )),
                    Some(_) => drop(records.remove(&id)),
                },
                "CREATE" | "UPSERT" => {
                    let has = |with: bool| {
                        let same = |other: &&Id| other.0 == id.0 && other.1 == id.1 && other.2.is_some() == with;
                        records.keys().any(|other| same(&other))
                    };
                    if action == "CREATE" && records.contains_key(&id) {
                        wrong.push(format!("Tried to create resource record set {said} but it already exists"));
                    } else if has(id.2.is_none()) {
                        wrong.push(format!(
                            "RRSet with DNS name {}, type {} cannot be created as other RRSets exist with the same name and type",
                            record.name, record.kind
                        ));
                    } else {
                        record.check_itself(action, &checks)?;
                        records.insert(id, record);
                    }
                }
                other => return Err(Refusal::new(400, "InvalidInput", format!("{other:?} is no action")).into()),
            }
        }
        if !wrong.is_empty() {
            return Err(Batch::Wrong(wrong));
        }
        // Of weighted records of one name and type all have the TTL that was written last.
        for (record, ttl) in changes.iter().filter_map(|change| {
            let record = Record::read(change.get("ResourceRecordSet")?).ok()?;
            let is_written = change.text_of("Action") != Some("DELETE");
            (record.set.is_some() && record.ttl.is_some() && is_written).then(|| (record.id(), record.ttl))
        }) {
            for (_, other) in records
                .iter_mut()
                .filter(|(id, other)| (&id.0, &id.1) == (&record.0, &record.1) && other.alias.is_none())
            {
                other.ttl = ttl;
            }
        }
        let until = now.saturating_add(propagation).unwrap_or(Timestamp::MAX);
        zone.past.push((until, std::mem::replace(&mut zone.records, records)));
        let comment = batch.and_then(|batch| batch.text_of("Comment"));
        Ok(json!({ "ChangeInfo": self.begin(comment, now) }))
    }
}

/// Why a batch was refused.
enum Batch {
    Refusal(Refusal),
    Wrong(Vec<String>),
}

impl From<Refusal> for Batch {
    fn from(refusal: Refusal) -> Self {
        Self::Refusal(refusal)
    }
}

/// `InvalidChangeBatch` has an XML of its own (API reference, ChangeResourceRecordSets).
fn invalid_batch(why: &[String]) -> Response<Bytes> {
    let mut text = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
    let message = format!("[{}]", why.join(", "));
    let said = json!({
        "Error": { "Type": "Sender", "Code": "InvalidChangeBatch", "Message": message },
        "RequestId": Uuid::new_v4().to_string(),
    });
    xml::write("ErrorResponse", &said, &mut text);
    let text = text.replacen("<ErrorResponse>", &format!("<ErrorResponse xmlns=\"{NAMESPACE}\">"), 1);
    wire::bytes_answer(400, "text/xml", Bytes::from(text))
}

impl Record {
    fn read(set: &Element) -> Result<Self, Refusal> {
        const KNOWN: [&str; 8] =
            ["Name", "Type", "SetIdentifier", "Weight", "TTL", "ResourceRecords", "AliasTarget", "HealthCheckId"];
        if let Some(other) = set.within.iter().find(|member| !KNOWN.contains(&member.name.as_str())) {
            return Err(Refusal::new(400, "InvalidAction", format!("{} of Route 53 is not simulated", other.name)));
        }
        let missing = |name: &str| Refusal::new(400, "InvalidInput", format!("{name} is required"));
        let text = |name: &str| set.text_of(name).map(str::to_owned);
        let number = |name: &str| {
            let number = set.text_of(name).map(str::parse::<u64>).transpose();
            number.map_err(|_| Refusal::new(400, "InvalidInput", format!("{name} is no number")))
        };
        let values = set.get("ResourceRecords").map(|all| all.within.as_slice()).unwrap_or_default();
        let alias = set.get("AliasTarget").map(|alias| {
            let word = |name| alias.text_of(name).unwrap_or_default().to_owned();
            (word("HostedZoneId"), full(&word("DNSName")), word("EvaluateTargetHealth") == "true")
        });
        Ok(Self {
            name: full(&text("Name").ok_or_else(|| missing("Name"))?),
            kind: text("Type").ok_or_else(|| missing("Type"))?,
            set: text("SetIdentifier"),
            weight: number("Weight")?,
            ttl: number("TTL")?,
            values: values.iter().filter_map(|value| value.text_of("Value").map(str::to_owned)).collect(),
            alias,
            check: text("HealthCheckId"),
        })
    }

    fn id(&self) -> Id {
        (labels(&self.name), self.kind.clone(), self.set.clone())
    }

    /// Refuses what is wrong with it by itself.
    fn check_itself(&self, action: &str, checks: &BTreeSet<String>) -> Result<(), Refusal> {
        let within = format!("in Change with [Action={action}, Name={}, Type={}]", self.name, self.kind);
        let wrong = |why: &str| Err(Refusal::new(400, "InvalidInput", format!("Invalid request: {why} {within}")));
        if self.weight.is_some() && self.set.is_none() {
            return wrong("Missing field 'SetIdentifier'");
        }
        if self.set.is_some() && self.weight.is_none() {
            return wrong(
                "Expected exactly one of [Weight, Region, Failover, GeoLocation, or MultiValueAnswer], but found none",
            );
        }
        if self.weight.is_some_and(|weight| weight > 255) {
            return wrong("Value at 'weight' must be less than or equal to 255");
        }
        if self.set.as_ref().is_some_and(|set| set.is_empty() || set.chars().count() > 128) {
            return wrong("Value at 'setIdentifier' must have 1 to 128 characters");
        }
        if self.alias.is_some() != self.values.is_empty() || self.alias.is_some() == self.ttl.is_some() {
            return wrong("Expected exactly one of [AliasTarget, all of [TTL, and ResourceRecords]]");
        }
        if let Some(check) = self.check.as_ref().filter(|check| !checks.contains(*check)) {
            let why = format!("A health check with id {check} does not exist.");
            return Err(Refusal::new(404, "NoSuchHealthCheck", why));
        }
        Ok(())
    }

    /// How long resolvers keep it. A load balancer's alias has its target's, 60 seconds.
    fn ttl(&self) -> SignedDuration {
        SignedDuration::from_secs(self.ttl.map_or(60, |ttl| ttl as i64))
    }

    /// As messages name it.
    fn said(&self) -> String {
        let set = self.set.as_ref().map(|set| format!(", set-identifier='{set}'")).unwrap_or_default();
        format!("[name='{}', type='{}'{set}]", self.name, self.kind)
    }

    fn write(&self) -> Value {
        let mut said = Map::new();
        said.insert("Name".into(), json!(escaped(&self.name)));
        said.insert("Type".into(), json!(self.kind));
        if let (Some(set), Some(weight)) = (&self.set, self.weight) {
            said.insert("SetIdentifier".into(), json!(set));
            said.insert("Weight".into(), json!(weight));
        }
        if let Some(ttl) = self.ttl {
            let values: Vec<Value> = self.values.iter().map(|value| json!({ "Value": value })).collect();
            said.insert("TTL".into(), json!(ttl));
            said.insert("ResourceRecords".into(), json!({ "ResourceRecord": values }));
        }
        if let Some((zone, name, health)) = &self.alias {
            let alias = json!({ "HostedZoneId": zone, "DNSName": name, "EvaluateTargetHealth": health });
            said.insert("AliasTarget".into(), alias);
        }
        if let Some(check) = &self.check {
            said.insert("HealthCheckId".into(), json!(check));
        }
        Value::Object(said)
    }
}

fn describe(id: &str, zone: &Zone) -> Value {
    json!({ "HostedZone": {
        "Id": format!("/hostedzone/{id}"),
        "Name": zone.name,
        "CallerReference": zone.caller,
        "Config": { "PrivateZone": false },
        "ResourceRecordSetCount": zone.records.len(),
    } })
}

fn tell(id: &str, change: &Change, now: Timestamp) -> Value {
    json!({
        "Id": format!("/change/{id}"),
        "Status": if now < change.in_sync { "PENDING" } else { "INSYNC" },
        "SubmittedAt": change.at.to_string(),
        "Comment": change.comment,
    })
}

/// A name in full, lower case and with its last dot.
fn full(name: &str) -> String {
    let name = name.trim_end_matches('.').to_ascii_lowercase().replace("\\052", "*");
    format!("{name}.")
}

/// As answers spell it: an asterisk in octal.
fn escaped(name: &str) -> String {
    name.replace('*', "\\052")
}

/// From the last to the first, in which order lists are sorted.
fn labels(name: &str) -> Vec<String> {
    name.trim_end_matches('.').rsplit('.').map(str::to_owned).collect()
}

pub(super) const NAMESPACE: &str = "https://route53.amazonaws.com/doc/2013-04-01/";
