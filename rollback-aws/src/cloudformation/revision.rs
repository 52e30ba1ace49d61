//! Revisions: read off the stack, or made of an update that is to come.

use std::{collections::BTreeMap, fmt};

use aws_sdk_cloudformation::types::ParameterDeclaration;
use rollback_core::{Error, ErrorKind, Result, model::Revision};

use super::{
    Seen, Stack,
    shape::{self, Given, MAX_BODY, Phase, Source, Spec},
};

/// What a stack is to be updated to: a template, and what differs from how the stack is.
///
/// What is not said stays: parameters that the stack has keep their values, new ones take the template's defaults, tags stay.
#[derive(Clone)]
pub struct Update {
    template: Template,
    parameters: BTreeMap<String, String>,
    tags: Option<BTreeMap<String, String>>,
    capabilities: Vec<String>,
}

#[derive(Clone)]
enum Template {
    Same,
    Body(String),
    /// Where it lies, and what it says: CloudFormation shows it only once the stack has it.
    At(String, String),
}

impl Update {
    /// The template that the stack has.
    pub const fn same_template() -> Self {
        Self::to(Template::Same)
    }

    /// This template, JSON or YAML, of at most 51,200 bytes.
    pub fn template(text: impl Into<String>) -> Self {
        Self::to(Template::Body(text.into()))
    }

    /// The template that lies at this URL in S3, and its text: by the text it is known again once the stack has it. A URL
    /// whose object changes under it is no revision; name a version of the object.
    pub fn uploaded(url: impl Into<String>, text: impl Into<String>) -> Self {
        Self::to(Template::At(url.into(), text.into()))
    }

    const fn to(template: Template) -> Self {
        Self { template, parameters: BTreeMap::new(), tags: None, capabilities: Vec::new() }
    }

    /// With this parameter at this value.
    #[must_use]
    pub fn parameter(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.parameters.insert(name.into(), value.into());
        self
    }

    /// With these tags and no others. CloudFormation puts them on every resource that takes tags.
    #[must_use]
    pub fn tags<K: Into<String>, V: Into<String>>(mut self, tags: impl IntoIterator<Item = (K, V)>) -> Self {
        self.tags = Some(tags.into_iter().map(|(key, value)| (key.into(), value.into())).collect());
        self
    }

    /// Acknowledging that the template may do this, as `CAPABILITY_IAM`. Those that were acknowledged for the stack so far
    /// do not count for a new template.
    #[must_use]
    pub fn capability(mut self, name: impl Into<String>) -> Self {
        self.capabilities.push(name.into());
        self
    }
}

impl fmt::Debug for Update {
    /// Parameters by their names only.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parameters: Vec<&String> = self.parameters.keys().collect();
        f.debug_struct("Update").field("parameters", &parameters).field("tags", &self.tags).finish_non_exhaustive()
    }
}

/// What a template says of itself.
pub(super) struct Summary {
    pub(super) parameters: BTreeMap<String, Declared>,
    pub(super) capabilities: Vec<String>,
    pub(super) types: Vec<String>,
}

/// A parameter that a template declares.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Declared {
    pub(super) kind: String,
    pub(super) default: Option<String>,
    pub(super) no_echo: bool,
}

impl Declared {
    fn of(it: &ParameterDeclaration) -> Self {
        Self {
            kind: it.parameter_type().unwrap_or_default().into(),
            default: it.default_value().map(Into::into),
            no_echo: it.no_echo().unwrap_or_default(),
        }
    }

    /// Whether the value is the name of a Systems Manager parameter, read anew by each update.
    pub(super) fn is_looked_up(&self) -> bool {
        self.kind.starts_with("AWS::SSM::Parameter::Value<")
    }
}

impl Stack {
    /// The revision that an update leads to: asks CloudFormation how the stack is and what the template declares, and
    /// changes nothing.
    ///
    /// # Errors
    /// `Invalid` when the template is broken, lacks a value or a capability, declares no such parameter, or has more bytes
    /// than a request takes; `Unsupported` when a NoEcho parameter is to change, as its old value cannot be read and so not
    /// be brought back; else as [`baseline`](rollback_core::backend::DeploymentBackend::baseline).
    pub async fn revision(&self, update: &Update) -> Result<Revision> {
        let seen = self.at_rest().await?;
        let (template, text) = match &update.template {
            Template::Body(text) if text.len() > MAX_BODY => {
                return Err(Error::invalid(format!(
                    "the template has {} bytes, and a request takes {MAX_BODY}; put it into S3 and use Update::uploaded",
                    text.len()
                )));
            }
            Template::Body(text) => (Source::Body(text.clone()), text.clone()),
            Template::At(url, text) => (Source::Url(url.clone()), text.clone()),
            Template::Same => {
                let text = self.template().await?;
                (self.source(&text), text)
            }
        };
        let summary = match (&update.template, &template) {
            (Template::Same, _) => self.own_summary().await?,
            (_, template) => self.summary(template).await?,
        };
        let parameters = self.fill(&seen, &summary, &update.parameters)?;
        let capabilities = match update.template {
            Template::Same => seen.capabilities.iter().chain(&update.capabilities).cloned().collect(),
            _ => update.capabilities.clone(),
        };
        if let Some(missing) = summary.capabilities.iter().find(|it| !acknowledges(&capabilities, it)) {
            return Err(Error::invalid(format!(
                "the template for stack {} needs {missing} acknowledged; add .capability({missing:?}) to the update",
                self.name
            )));
        }
        let tags = update.tags.clone().unwrap_or(seen.tags);
        let digest = shape::digest(&text);
        Spec { stack: seen.id, template, digest, parameters, tags, capabilities, triggers: seen.triggers.len() }
            .revision()
    }

    /// What serves now.
    pub(super) async fn read(&self) -> Result<Revision> {
        let seen = self.at_rest().await?;
        let (text, summary) = tokio::try_join!(self.template(), self.own_summary())?;
        let given = |name: &String, value: &String| match summary.parameters.get(name) {
            Some(declared) if declared.no_echo => Given::Kept,
            _ => Given::Value(value.clone()),
        };
        let spec = Spec {
            stack: seen.id,
            template: self.source(&text),
            digest: shape::digest(&text),
            parameters: seen.parameters.iter().map(|(name, value)| (name.clone(), given(name, value))).collect(),
            tags: seen.tags,
            capabilities: seen.capabilities,
            triggers: seen.triggers.len(),
        };
        spec.revision()
    }

    /// The stack, if what it has is one revision.
    async fn at_rest(&self) -> Result<Seen> {
        let seen = self.described().await?;
        if Phase::of(&seen.status).is_whole() {
            return Ok(seen);
        }
        let (kind, why) = self.unfit(&seen);
        Err(Error::new(kind, why))
    }

    /// What is wrong with a stack that is not at rest, and what to do about it.
    pub(super) fn unfit(&self, seen: &Seen) -> (ErrorKind, String) {
        let (name, status) = (&self.name, &seen.status);
        let reason = if seen.reason.is_empty() { String::new() } else { format!(" ({})", seen.reason.trim()) };
        let (kind, then) = match Phase::of(status) {
            Phase::UndoFailed => (
                ErrorKind::Mixed,
                format!("mend what failed, then: aws cloudformation continue-update-rollback --stack-name {name}"),
            ),
            Phase::Failed => {
                (ErrorKind::Mixed, format!("roll it back with: aws cloudformation rollback-stack --stack-name {name}"))
            }
            Phase::Updating | Phase::Undoing => (ErrorKind::Mixed, "wait until that is over".into()),
            _ => {
                (ErrorKind::Unsupported, "a stack that was created whole is needed, for there to be a way back".into())
            }
        };
        (kind, format!("stack {name} is {status}{reason}, and serves no one revision; {then}"))
    }

    /// Where the template that the stack has can be taken from again.
    fn source(&self, text: &str) -> Source {
        match &self.baseline_at {
            _ if text.len() <= MAX_BODY => Source::Body(text.into()),
            Some(url) => Source::Url(url.clone()),
            None => Source::Nowhere(text.len()),
        }
    }

    /// What the stack's own template declares.
    pub(super) async fn own_summary(&self) -> Result<Summary> {
        let call = self.client.get_template_summary().stack_name(&self.name);
        let answer = call.send().await.map_err(|e| self.refused("reading the template of", e))?;
        Ok(Summary::new(
            answer.parameters(),
            answer.capabilities().iter().map(|it| it.as_str()),
            answer.resource_types(),
        ))
    }

    /// What a template declares that is in no stack yet, which CloudFormation checks.
    pub(super) async fn summary(&self, of: &Source) -> Result<Summary> {
        let call = self.client.get_template_summary();
        let call = match of {
            Source::Body(body) => call.template_body(body),
            Source::Url(url) => call.template_url(url),
            Source::Nowhere(bytes) => return Err(Error::new(ErrorKind::Unsupported, self.too_long(*bytes))),
        };
        let answer = call.send().await.map_err(|e| self.refused("checking a template for", e))?;
        Ok(Summary::new(
            answer.parameters(),
            answer.capabilities().iter().map(|it| it.as_str()),
            answer.resource_types(),
        ))
    }

    fn fill(
        &self,
        seen: &Seen,
        summary: &Summary,
        wanted: &BTreeMap<String, String>,
    ) -> Result<BTreeMap<String, Given>> {
        if let Some(name) = wanted.keys().find(|name| !summary.parameters.contains_key(*name)) {
            let known: Vec<&str> = summary.parameters.keys().map(String::as_str).collect();
            return Err(Error::invalid(format!(
                "the template for stack {} declares no parameter {name}; it declares {}",
                self.name,
                if known.is_empty() { "none".into() } else { known.join(", ") }
            )));
        }
        let given = |(name, declared): (&String, &Declared)| {
            let value = match (wanted.get(name), seen.parameters.get(name), &declared.default) {
                (Some(_), _, _) if declared.no_echo => {
                    let why = format!(
                        "parameter {name} of stack {} is NoEcho: its old value cannot be read, and so not be brought back; \
                         let it keep its value here, and change it by itself, or refer to a secret by name",
                        self.name
                    );
                    return Err(Error::new(ErrorKind::Unsupported, why));
                }
                (Some(value), _, _) => Given::Value(value.clone()),
                (None, Some(_), _) if declared.no_echo => Given::Kept,
                (None, Some(value), _) => Given::Value(value.clone()),
                (None, None, Some(_)) if declared.no_echo => Given::Default,
                (None, None, Some(default)) => Given::Value(default.clone()),
                (None, None, None) => {
                    return Err(Error::invalid(format!(
                        "the template for stack {} declares parameter {name}, which has neither a value there nor a default; \
                         give it one with Update::parameter",
                        self.name
                    )));
                }
            };
            Ok((name.clone(), value))
        };
        summary.parameters.iter().map(given).collect()
    }
}

impl Summary {
    fn new<'a>(
        parameters: &[ParameterDeclaration],
        capabilities: impl Iterator<Item = &'a str>,
        types: &[String],
    ) -> Self {
        let declared =
            |it: &ParameterDeclaration| (it.parameter_key().unwrap_or_default().to_owned(), Declared::of(it));
        Self {
            parameters: parameters.iter().map(declared).collect(),
            capabilities: capabilities.map(Into::into).collect(),
            types: types.to_vec(),
        }
    }
}

/// `CAPABILITY_NAMED_IAM` acknowledges what `CAPABILITY_IAM` does (`UpdateStack`).
pub(super) fn acknowledges(given: &[String], wanted: &str) -> bool {
    given.iter().any(|it| it == wanted || it == "CAPABILITY_NAMED_IAM" && wanted == "CAPABILITY_IAM")
}
