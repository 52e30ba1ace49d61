//! Heroku's public schema, and the question whether an exchange keeps to it.

use std::{
    collections::{HashMap, HashSet},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::{Arc, LazyLock, Mutex, PoisonError},
};

use jsonschema::{Draft, Validator};
use serde_json::{Map, Value, json};

/// The schema, read once a process. Validators are built when they are first needed.
pub(super) static SCHEMA: LazyLock<Schema> = LazyLock::new(Schema::load);

pub(super) struct Schema {
    root: Value,
    links: Vec<Link>,
    built: Mutex<HashMap<String, Arc<Validator>>>,
    /// What was found good before: the fake gives many equal answers.
    good: Mutex<HashSet<u64>>,
}

/// One thing that can be asked, with what it takes and gives.
struct Link {
    method: String,
    path: Vec<Segment>,
    title: String,
    /// Pointers into the schema.
    body: Option<String>,
    answer: Option<String>,
}

enum Segment {
    Literal(String),
    /// A pointer to what the parameter must be.
    Param(String),
    /// Of the metrics API, which does not say.
    Anything,
}

/// The links that a request keeps to.
pub(super) struct Admitted(Vec<usize>);

impl Schema {
    fn load() -> Self {
        let mut root: Value = serde_json::from_str(include_str!("platform-api-v3.json")).expect("the schema is JSON");
        let metrics: Value = serde_json::from_str(include_str!("metrics.json")).expect("the schema is JSON");
        let top = root.as_object_mut().expect("the schema is an object");
        // A dialect that no validator knows, and a base that no reference uses.
        top.remove("$schema");
        top.remove("id");
        top.insert("metrics".into(), metrics);
        forbid_unknown(&mut root);
        let mut links = Vec::new();
        for (resource, definition) in root["definitions"].as_object().expect("definitions") {
            let listed = definition["links"].as_array().map(Vec::as_slice).unwrap_or_default();
            for (at, link) in listed.iter().enumerate() {
                let pointer = |part: &str| {
                    link.get(part)
                        .filter(|it| !it.is_null())
                        .map(|_| format!("#/definitions/{resource}/links/{at}/{part}"))
                };
                let text = |part: &str| link[part].as_str().unwrap_or_default().to_owned();
                links.push(Link {
                    // One link says `Get`.
                    method: text("method").to_ascii_uppercase(),
                    path: segments(&text("href")),
                    title: format!("{resource}: {}", text("title")),
                    body: pointer("schema"),
                    answer: pointer("targetSchema"),
                });
            }
        }
        for name in root["metrics"].as_object().expect("metrics").keys() {
            let Some((method, path)) = name.split_once(' ') else { continue };
            let segment = |part: &str| match part.strip_prefix(':') {
                Some(_) => Segment::Anything,
                None => Segment::Literal(part.into()),
            };
            links.push(Link {
                method: method.into(),
                path: path.split('/').filter(|part| !part.is_empty()).map(segment).collect(),
                title: format!("metrics: {path}"),
                body: None,
                answer: Some(format!("#/metrics/{}/responses/200", escape(name))),
            });
        }
        Self { root, links, built: Mutex::default(), good: Mutex::default() }
    }

    /// How many links there are, and how many of them are of the metrics API.
    pub(super) fn count(&self) -> (usize, usize) {
        let metrics = self.links.iter().filter(|link| link.title.starts_with("metrics: ")).count();
        (self.links.len(), metrics)
    }

    /// The links that this request keeps to.
    pub(super) fn request(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Admitted, String> {
        let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
        let mut why = Vec::new();
        let mut admitted = Vec::new();
        for (at, link) in self.links.iter().enumerate() {
            if link.method != method || link.path.len() != parts.len() {
                continue;
            }
            let literal = link.path.iter().zip(&parts).all(|(segment, part)| match segment {
                Segment::Literal(text) => text == part,
                Segment::Param(_) | Segment::Anything => true,
            });
            if !literal {
                continue;
            }
            match self.fits(link, &parts, body) {
                Ok(()) => admitted.push(at),
                Err(reason) => why.push(format!("{}: {reason}", link.title)),
            }
        }
        match (admitted.is_empty(), why.is_empty()) {
            (false, _) => Ok(Admitted(admitted)),
            (true, true) => Err(format!("{method} {path} is in no link of the schema")),
            (true, false) => {
                Err(format!("{method} {path} with {} breaks the schema: {}", shown(body), why.join("; or ")))
            }
        }
    }

    fn fits(&self, link: &Link, parts: &[&str], body: Option<&Value>) -> Result<(), String> {
        for (segment, part) in link.path.iter().zip(parts) {
            let Segment::Param(pointer) = segment else { continue };
            // A release may be named by its version, which is a number.
            let number = part.parse::<u64>().ok().map(Value::from);
            let text = Value::from(*part);
            if self.check(pointer, &text).is_err() && number.is_none_or(|number| self.check(pointer, &number).is_err())
            {
                return Err(format!("{part:?} is no {pointer}"));
            }
        }
        match (&link.body, body) {
            (Some(pointer), Some(body)) => self.check(pointer, body),
            (Some(_), None) => Err("a body is missing".into()),
            (None, Some(_)) => Err("it takes no body".into()),
            (None, None) => Ok(()),
        }
    }

    /// Whether an answer is one that the request may get.
    pub(super) fn answer(&self, admitted: &Admitted, answer: &Value) -> Result<(), String> {
        let mut why = Vec::new();
        for link in admitted.0.iter().map(|at| &self.links[*at]) {
            let Some(pointer) = &link.answer else { return Ok(()) };
            match self.check(pointer, answer) {
                Ok(()) => return Ok(()),
                Err(reason) => why.push(format!("{}: {reason}", link.title)),
            }
        }
        Err(format!("the answer {} breaks the schema: {}", shown(Some(answer)), why.join("; or ")))
    }

    fn check(&self, pointer: &str, value: &Value) -> Result<(), String> {
        let mut hasher = DefaultHasher::new();
        pointer.hash(&mut hasher);
        value.to_string().hash(&mut hasher);
        let key = hasher.finish();
        if self.good.lock().unwrap_or_else(PoisonError::into_inner).contains(&key) {
            return Ok(());
        }
        let found: Vec<String> = self
            .validator(pointer)
            .iter_errors(value)
            .map(|error| format!("at {:?}: {error}", error.instance_path().to_string()))
            .collect();
        if !found.is_empty() {
            return Err(found.join(", "));
        }
        self.good.lock().unwrap_or_else(PoisonError::into_inner).insert(key);
        Ok(())
    }

    fn validator(&self, pointer: &str) -> Arc<Validator> {
        let mut built = self.built.lock().unwrap_or_else(PoisonError::into_inner);
        let build = || {
            // References stay in the document; what stands beside `$ref` says nothing in this draft.
            let mut document = self.root.clone();
            document["$ref"] = json!(pointer);
            let validator = jsonschema::options()
                .with_draft(Draft::Draft4)
                .should_validate_formats(true)
                // Draft 4 knows no such format, and would take anything for one.
                .with_format("uuid", is_uuid)
                .build(&document);
            Arc::new(validator.unwrap_or_else(|e| panic!("{pointer} of the schema cannot be used: {e}")))
        };
        Arc::clone(built.entry(pointer.to_owned()).or_insert_with(build))
    }
}

/// The schema says nothing about properties that it does not list. What it does not list is a mistake of ours.
fn forbid_unknown(schema: &mut Value) {
    match schema {
        Value::Object(map) => {
            let open = !map.contains_key("additionalProperties") && !map.contains_key("patternProperties");
            // A schema is told from a list of properties by its type.
            if open && map.get("properties").is_some_and(Value::is_object) && takes_objects(map) {
                map.insert("additionalProperties".into(), Value::Bool(false));
            }
            for (key, value) in map.iter_mut() {
                if key != "example" && key != "default" && key != "enum" {
                    forbid_unknown(value);
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(forbid_unknown),
        _ => {}
    }
}

fn takes_objects(schema: &Map<String, Value>) -> bool {
    match schema.get("type") {
        Some(Value::String(kind)) => kind == "object",
        Some(Value::Array(kinds)) => kinds.iter().any(|kind| kind == "object"),
        _ => false,
    }
}

/// `/apps/{(%23%2Fdefinitions%2Fapp%2Fdefinitions%2Fidentity)}/releases`.
fn segments(href: &str) -> Vec<Segment> {
    let segment = |part: &str| match part.strip_prefix("{(").and_then(|rest| rest.strip_suffix(")}")) {
        Some(encoded) => Segment::Param(encoded.replace("%23", "#").replace("%2F", "/")),
        None => Segment::Literal(part.into()),
    };
    href.split('/').filter(|part| !part.is_empty()).map(segment).collect()
}

/// A key as a part of a JSON pointer in a URI's fragment.
fn escape(key: &str) -> String {
    key.replace('~', "~0").replace('/', "~1").replace(' ', "%20")
}

fn is_uuid(text: &str) -> bool {
    crate::candidate::check_uuid("it", text).is_ok()
}

fn shown(value: Option<&Value>) -> String {
    let mut text = value.map_or_else(|| "no body".to_owned(), Value::to_string);
    if let Some((at, _)) = text.char_indices().nth(500) {
        text.truncate(at);
        text.push('…');
    }
    text
}
