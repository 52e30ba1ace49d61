//! Templates as far as the simulator reads them: JSON, parameters, resources with `Ref`, and what IAM in it asks for.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{Answer, invalid};

/// A template that was read.
#[derive(Clone, Debug)]
pub(super) struct Template {
    pub(super) text: String,
    pub(super) parameters: BTreeMap<String, Declared>,
    resources: BTreeMap<String, Value>,
}

/// A parameter that a template declares.
#[derive(Clone, Debug)]
pub(super) struct Declared {
    pub(super) kind: String,
    pub(super) default: Option<String>,
    pub(super) no_echo: bool,
}

/// The longest that a template may be in a request, in bytes; from S3 it is [`MAX_FILE`].
const MAX_BODY: usize = 51_200;
const MAX_FILE: usize = 1_048_576;

impl Template {
    /// Reads a template that came with a request.
    pub(super) fn inline(text: &str) -> Answer<Self> {
        if text.len() > MAX_BODY {
            return Err(invalid(format!(
                "1 validation error detected: Value at 'templateBody' failed to satisfy constraint: Member must have length \
                 less than or equal to {MAX_BODY}"
            )));
        }
        Self::read(text)
    }

    /// Reads a template that lies in S3.
    pub(super) fn file(text: &str) -> Answer<Self> {
        if text.len() > MAX_FILE {
            return Err(invalid(format!("Template may not exceed {MAX_FILE} bytes in size.")));
        }
        Self::read(text)
    }

    fn read(text: &str) -> Answer<Self> {
        let read: Value = serde_json::from_str(text).map_err(|e| {
            invalid(format!("Template format error: JSON not well-formed. (line {}, column {})", e.line(), e.column()))
        })?;
        let resources = read["Resources"]
            .as_object()
            .filter(|all| !all.is_empty())
            .ok_or_else(|| invalid("Template format error: At least one Resources member must be defined."))?;
        for (name, resource) in resources {
            if !resource["Type"].is_string() {
                return Err(invalid(format!(
                    "Template format error: [/Resources/{name}] Every Resources object must contain a Type member."
                )));
            }
        }
        let declared = |it: &Value| Declared {
            kind: it["Type"].as_str().unwrap_or("String").into(),
            default: it.get("Default").map(plain),
            no_echo: matches!(plain(&it["NoEcho"]).as_str(), "true" | "True"),
        };
        let parameters = read["Parameters"].as_object().into_iter().flatten();
        Ok(Self {
            text: text.into(),
            parameters: parameters.map(|(name, it)| (name.clone(), declared(it))).collect(),
            resources: resources.clone().into_iter().collect(),
        })
    }

    /// The capabilities that somebody must acknowledge.
    pub(super) fn capabilities(&self) -> Vec<&'static str> {
        let of_iam = |it: &&Value| it["Type"].as_str().is_some_and(|kind| kind.starts_with("AWS::IAM::"));
        let named =
            |it: &Value| ["RoleName", "UserName", "GroupName"].iter().any(|name| it["Properties"].get(*name).is_some());
        let iam: Vec<&Value> = self.resources.values().filter(of_iam).collect();
        match iam.is_empty() {
            true => Vec::new(),
            false if iam.into_iter().any(named) => vec!["CAPABILITY_NAMED_IAM"],
            false => vec!["CAPABILITY_IAM"],
        }
    }

    pub(super) fn types(&self) -> Vec<&str> {
        let mut types: Vec<&str> = self.resources.values().filter_map(|it| it["Type"].as_str()).collect();
        types.sort_unstable();
        types.dedup();
        types
    }

    /// The resources with these values in place of what they refer to.
    pub(super) fn resources(
        &self,
        values: &BTreeMap<String, String>,
        tags: &BTreeMap<String, String>,
    ) -> BTreeMap<String, Value> {
        let resolved = |it: &Value| {
            let mut it = fill(it, values);
            // Tags of a stack are propagated to what it holds.
            it["StackTags"] = json!(tags);
            it
        };
        self.resources.iter().map(|(name, it)| (name.clone(), resolved(it))).collect()
    }
}

fn fill(value: &Value, values: &BTreeMap<String, String>) -> Value {
    match value {
        Value::Object(members) => match members.get("Ref").and_then(Value::as_str).and_then(|name| values.get(name)) {
            Some(value) if members.len() == 1 => json!(value),
            _ => members.iter().map(|(name, it)| (name.clone(), fill(it, values))).collect(),
        },
        Value::Array(members) => members.iter().map(|it| fill(it, values)).collect(),
        other => other.clone(),
    }
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), Into::into)
}
