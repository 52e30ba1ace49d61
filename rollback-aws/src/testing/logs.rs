//! CloudWatch Logs' room: groups, streams, and events that are filtered.
//!
//! Filter patterns are AWS's for unstructured text: all terms, any of those with `?`, none of those with `-`, phrases in
//! quotes. Those for JSON, for columns and regular expressions are refused, as not simulated.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use http::{Request, Response};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    Simulator,
    wire::{self, Called, JSON_1_1, Protocol, Refusal, Service},
};

/// What CloudWatch Logs knows.
#[derive(Debug, Default)]
pub(super) struct Room {
    groups: BTreeMap<String, Group>,
}

#[derive(Debug, Default)]
struct Group {
    streams: BTreeSet<String>,
    events: Vec<Event>,
}

#[derive(Clone, Debug)]
struct Event {
    stream: String,
    at: i64,
    message: String,
}

/// Log groups, without an HTTP call.
#[derive(Clone, Copy, Debug)]
pub struct Hands<'a>(pub(super) &'a Simulator);

impl Hands<'_> {
    /// A service says this; group and stream are made when they are missing.
    pub fn say(&self, group: &str, stream: &str, at: Timestamp, message: &str) {
        let mut world = self.0.world();
        let group = world.logs.groups.entry(group.into()).or_default();
        group.streams.insert(stream.into());
        group.events.push(Event { stream: stream.into(), at: at.as_millisecond(), message: message.into() });
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Stream {
    log_group_name: String,
    log_stream_name: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Put {
    log_group_name: String,
    log_stream_name: String,
    log_events: Vec<Said>,
}

#[derive(Deserialize)]
struct Said {
    timestamp: i64,
    message: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Filter {
    log_group_name: String,
    log_stream_names: Option<Vec<String>>,
    log_stream_name_prefix: Option<String>,
    start_time: Option<i64>,
    end_time: Option<i64>,
    filter_pattern: Option<String>,
    next_token: Option<String>,
    limit: Option<usize>,
}

impl Room {
    pub(super) fn answer(&mut self, operation: &str, request: &Request<Bytes>) -> Result<Response<Bytes>, Refusal> {
        let body = request.body();
        let said = match operation {
            "CreateLogGroup" => self.create_group(&read::<Value>(body)?)?,
            "CreateLogStream" => self.create_stream(read(body)?)?,
            "PutLogEvents" => self.put(read(body)?)?,
            "FilterLogEvents" => self.filter(&read(body)?)?,
            "DeleteLogGroup" => {
                let name = name(&read::<Value>(body)?)?;
                self.groups.remove(&name).ok_or_else(|| missing("group"))?;
                None
            }
            other => return Err(Refusal::new(400, "UnknownOperationException", format!("{other} is not simulated"))),
        };
        // What has no output has an empty body.
        Ok(match said {
            Some(said) => wire::json_answer(200, JSON_1_1, &said),
            None => wire::bytes_answer(200, JSON_1_1, Bytes::new()),
        })
    }

    fn group(&mut self, name: &str) -> Result<&mut Group, Refusal> {
        self.groups.get_mut(name).ok_or_else(|| missing("group"))
    }

    fn create_group(&mut self, said: &Value) -> Result<Option<Value>, Refusal> {
        let name = name(said)?;
        if self.groups.contains_key(&name) {
            return Err(exists("group"));
        }
        self.groups.insert(name, Group::default());
        Ok(None)
    }

    fn create_stream(&mut self, said: Stream) -> Result<Option<Value>, Refusal> {
        let group = self.group(&said.log_group_name)?;
        if !group.streams.insert(said.log_stream_name) {
            return Err(exists("stream"));
        }
        Ok(None)
    }

    fn put(&mut self, said: Put) -> Result<Option<Value>, Refusal> {
        let group = self.group(&said.log_group_name)?;
        if !group.streams.contains(&said.log_stream_name) {
            return Err(missing("stream"));
        }
        if !said.log_events.is_sorted_by_key(|event| event.timestamp) {
            return Err(invalid("Log events in a single PutLogEvents request must be in chronological order."));
        }
        for Said { timestamp, message } in said.log_events {
            group.events.push(Event { stream: said.log_stream_name.clone(), at: timestamp, message });
        }
        Ok(Some(json!({ "nextSequenceToken": "49000000000000000000000000000000000000000000000000000001" })))
    }

    fn filter(&mut self, asked: &Filter) -> Result<Option<Value>, Refusal> {
        let pattern = Pattern::read(asked.filter_pattern.as_deref().unwrap_or_default())?;
        if asked.log_stream_names.is_some() && asked.log_stream_name_prefix.is_some() {
            return Err(invalid("The logStreamNames and logStreamNamePrefix parameters are mutually exclusive."));
        }
        let limit = asked.limit.unwrap_or(10_000);
        if !(1..=10_000).contains(&limit) {
            let why = format!(
                "1 validation error detected: Value '{limit}' at 'limit' failed to satisfy constraint: Member must have \
                 value less than or equal to 10000"
            );
            return Err(invalid(&why));
        }
        let group = self.group(&asked.log_group_name)?;
        let from = match &asked.next_token {
            None => 0,
            Some(token) => token.parse().map_err(|_| invalid("The specified nextToken is invalid."))?,
        };
        let mut found: Vec<(usize, &Event)> = group
            .events
            .iter()
            .enumerate()
            .filter(|(_, event)| {
                asked.start_time.is_none_or(|start| event.at >= start)
                    && asked.end_time.is_none_or(|end| event.at <= end)
                    && asked.log_stream_names.as_ref().is_none_or(|names| names.contains(&event.stream))
                    && asked.log_stream_name_prefix.as_ref().is_none_or(|prefix| event.stream.starts_with(prefix))
                    && pattern.picks(&event.message)
            })
            .collect();
        found.sort_by_key(|(_, event)| event.at);
        let next = from + limit;
        let events: Vec<Value> = found
            .iter()
            .skip(from)
            .take(limit)
            .map(|(at, event)| {
                json!({
                    "logStreamName": event.stream, "timestamp": event.at, "message": event.message,
                    "ingestionTime": event.at, "eventId": format!("{at:056}"),
                })
            })
            .collect();
        let mut answer = json!({ "events": events, "searchedLogStreams": [] });
        if next < found.len() {
            answer["nextToken"] = json!(next.to_string());
        }
        Ok(Some(answer))
    }
}

/// What picks a line.
struct Pattern {
    all: Vec<String>,
    any: Vec<String>,
    none: Vec<String>,
}

impl Pattern {
    fn read(text: &str) -> Result<Self, Refusal> {
        let mut pattern = Self { all: Vec::new(), any: Vec::new(), none: Vec::new() };
        let mut rest = text.trim_start();
        while !rest.is_empty() {
            let (to, bare) = match rest.as_bytes()[0] {
                b'?' => (&mut pattern.any, &rest[1..]),
                b'-' => (&mut pattern.none, &rest[1..]),
                b'{' | b'[' | b'%' => return Err(invalid(&format!("Invalid filter pattern: {text} is not simulated"))),
                _ => (&mut pattern.all, rest),
            };
            let (term, after) = match bare.strip_prefix('"') {
                Some(quoted) => quoted.split_once('"').ok_or_else(|| invalid("Invalid filter pattern"))?,
                None => bare.split_once(char::is_whitespace).unwrap_or((bare, "")),
            };
            if term.is_empty() {
                return Err(invalid("Invalid filter pattern"));
            }
            to.push(term.into());
            rest = after.trim_start();
        }
        Ok(pattern)
    }

    fn picks(&self, message: &str) -> bool {
        self.all.iter().all(|term| message.contains(term))
            && (self.any.is_empty() || self.any.iter().any(|term| message.contains(term)))
            && !self.none.iter().any(|term| message.contains(term))
    }
}

fn read<'b, T: Deserialize<'b>>(body: &'b [u8]) -> Result<T, Refusal> {
    serde_json::from_slice(body).map_err(|e| Refusal::new(400, "SerializationException", e.to_string()))
}

fn name(said: &Value) -> Result<String, Refusal> {
    let name = said["logGroupName"].as_str().filter(|name| (1..=512).contains(&name.chars().count()));
    name.map(Into::into).ok_or_else(|| invalid("1 validation error detected: Value at 'logGroupName' is invalid"))
}

fn invalid(why: &str) -> Refusal {
    Refusal::new(400, "InvalidParameterException", why)
}

fn missing(what: &str) -> Refusal {
    Refusal::new(400, "ResourceNotFoundException", format!("The specified log {what} does not exist."))
}

fn exists(what: &str) -> Refusal {
    Refusal::new(400, "ResourceAlreadyExistsException", format!("The specified log {what} already exists"))
}

pub(super) fn route(request: &Request<Bytes>) -> Option<Called> {
    let operation = wire::json_1_1(request, "Logs_20140328.")?;
    Some(Called { service: Service::Logs, protocol: Protocol::Json11, operation })
}
