//! Functions, versions and aliases as Lambda keeps them.

use std::{collections::BTreeMap, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use jiff::{Timestamp, tz::TimeZone};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::{conflict, invalid, text};
use crate::testing::wire::Refusal;

/// A new `RevisionId`.
pub(super) fn revision() -> String {
    uuid::Uuid::new_v4().to_string()
}

#[derive(Clone, Debug)]
pub(super) struct Function {
    pub(super) arn: String,
    pub(super) latest: Version,
    pub(super) versions: BTreeMap<u64, Version>,
    next: u64,
    pub(super) aliases: BTreeMap<String, Alias>,
    /// By qualifier: an alias, or a version.
    pub(super) provisioned: BTreeMap<String, Provisioned>,
}

impl Function {
    pub(super) const fn new(arn: String, latest: Version) -> Self {
        Self { arn, latest, versions: BTreeMap::new(), next: 1, aliases: BTreeMap::new(), provisioned: BTreeMap::new() }
    }

    /// Publishes `$LATEST`; the last version once more, if nothing has changed since. Its number.
    pub(super) fn publish(&mut self, description: &str, now: Timestamp, takes: Duration) -> String {
        let last = self.versions.last_key_value();
        if let Some((number, last)) = last.filter(|(_, last)| last.is_same_build(&self.latest)) {
            debug_assert!(!last.sha256.is_empty());
            return number.to_string();
        }
        let number = self.next;
        self.next += 1;
        let mut version = self.latest.clone();
        version.active_at = now + takes;
        version.updating_until = None;
        version.revision = revision();
        version.modified = now;
        if !description.is_empty() {
            version.description = description.into();
        }
        self.versions.insert(number, version);
        number.to_string()
    }

    pub(super) fn version(&self, number: &str) -> Option<&Version> {
        match number {
            "$LATEST" => Some(&self.latest),
            _ => self.versions.get(&number.parse().ok()?),
        }
    }

    pub(super) fn version_mut(&mut self, number: &str) -> Option<&mut Version> {
        match number {
            "$LATEST" => Some(&mut self.latest),
            _ => self.versions.get_mut(&number.parse().ok()?),
        }
    }

    /// The version that a qualifier means: a version's number, or an alias's primary.
    pub(super) fn resolve(&self, qualifier: &str) -> Option<String> {
        match self.aliases.get(qualifier) {
            Some(alias) => Some(alias.version.clone()),
            None => self.version(qualifier).map(|_| qualifier.to_owned()),
        }
    }

    /// Whether something ends by itself until then.
    pub(super) fn is_due(&self, until: Timestamp) -> bool {
        let ended = |at: Option<Timestamp>| at.is_some_and(|at| at <= until);
        ended(self.latest.updating_until) || self.aliases.values().any(|alias| ended(alias.injected_until))
    }

    /// Ends what ends by itself until then.
    pub(super) fn settle(&mut self, until: Timestamp) {
        if self.latest.updating_until.is_some_and(|at| at <= until) {
            self.latest.updating_until = None;
            self.latest.revision = revision();
        }
        for alias in self.aliases.values_mut().filter(|alias| alias.injected_until.is_some_and(|at| at <= until)) {
            alias.injected_until = None;
            alias.weights.clear();
            // Not documented; a new one is the worse case for us.
            alias.revision = revision();
        }
    }
}

#[derive(Clone, Debug)]
pub(super) struct Version {
    pub(super) role: String,
    pub(super) dead_letters: Option<String>,
    pub(super) description: String,
    runtime: Option<String>,
    handler: Option<String>,
    image: Option<String>,
    environment: BTreeMap<String, String>,
    timeout: u64,
    memory: u64,
    pub(super) sha256: String,
    size: usize,
    pub(super) revision: String,
    pub(super) modified: Timestamp,
    pub(super) active_at: Timestamp,
    pub(super) updating_until: Option<Timestamp>,
    /// State and reason that a test asked for.
    pub(super) forced: Option<String>,
    pub(super) forced_update: Option<String>,
    failing: f64,
}

impl Version {
    pub(super) fn new(role: &str, now: Timestamp) -> Self {
        Self {
            role: role.into(),
            dead_letters: None,
            description: String::new(),
            runtime: None,
            handler: None,
            image: None,
            environment: BTreeMap::new(),
            timeout: 3,
            memory: 128,
            sha256: String::new(),
            size: 0,
            revision: revision(),
            modified: now,
            active_at: now,
            updating_until: None,
            forced: None,
            forced_update: None,
            failing: 0.0,
        }
    }

    /// Takes the code of a request: a zip, an object in S3, or an image.
    pub(super) fn set_code(&mut self, code: &Value) -> Result<(), Refusal> {
        let (bytes, image) = match (text(code, "ZipFile"), text(code, "ImageUri"), text(code, "S3Key")) {
            (Some(zip), None, None) => {
                let zip = STANDARD.decode(zip).map_err(|_| {
                    invalid(
                        "Could not unzip uploaded file. Please check your \
                                                                     file, then try to upload again.",
                    )
                })?;
                (zip, None)
            }
            (None, Some(image), None) => (image.as_bytes().to_vec(), Some(image.to_owned())),
            (None, None, Some(key)) => (key.as_bytes().to_vec(), None),
            _ => return Err(invalid("Please provide a source for function code.")),
        };
        self.sha256 = match &image {
            // Of an image, its digest in hexadecimal; of a zip, the base64 of the hash.
            Some(_) => Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect(),
            None => STANDARD.encode(Sha256::digest(&bytes)),
        };
        self.size = if image.is_some() { 0 } else { bytes.len() };
        self.image = image;
        Ok(())
    }

    /// Takes what a request says of the configuration, and keeps what it does not say.
    pub(super) fn configure(&mut self, body: &Value) {
        let put = |to: &mut Option<String>, name| {
            if let Some(value) = text(body, name) {
                *to = Some(value.into());
            }
        };
        put(&mut self.runtime, "Runtime");
        put(&mut self.handler, "Handler");
        if let Some(description) = text(body, "Description") {
            self.description = description.into();
        }
        if let Some(target) = body.pointer("/DeadLetterConfig/TargetArn").and_then(Value::as_str) {
            self.dead_letters = Some(target).filter(|arn| !arn.is_empty()).map(Into::into);
        }
        if let Some(variables) = body.pointer("/Environment/Variables").and_then(Value::as_object) {
            self.environment =
                variables.iter().filter_map(|(k, v)| Some((k.clone(), v.as_str()?.to_owned()))).collect();
        }
        self.timeout = body.get("Timeout").and_then(Value::as_u64).unwrap_or(self.timeout);
        self.memory = body.get("MemorySize").and_then(Value::as_u64).unwrap_or(self.memory);
    }

    /// Begins an update that takes so long.
    pub(super) fn touch(&mut self, now: Timestamp, takes: Duration) {
        self.modified = now;
        self.updating_until = Some(now + takes);
        self.revision = revision();
    }

    pub(super) fn is_pending(&self, now: Timestamp) -> bool {
        now < self.active_at
    }

    /// Refused while it is created or updated.
    pub(super) fn ready_for_update(&self, arn: &str, now: Timestamp) -> Result<(), Refusal> {
        if self.is_pending(now) {
            return Err(conflict(format!(
                "The operation cannot be performed at this time. The resource {arn} is currently in the following \
                 state: 'Pending'. StateReasonCode: 'Creating'"
            )));
        }
        if self.updating_until.is_some() {
            return Err(conflict(format!(
                "The operation cannot be performed at this time. An update is in progress for resource: {arn}"
            )));
        }
        Ok(())
    }

    fn is_same_build(&self, other: &Self) -> bool {
        self.sha256 == other.sha256
            && self.environment == other.environment
            && self.role == other.role
            && self.dead_letters == other.dead_letters
            && (self.timeout, self.memory) == (other.timeout, other.memory)
            && (&self.runtime, &self.handler, &self.image) == (&other.runtime, &other.handler, &other.image)
    }

    /// `FunctionConfiguration`; listings leave out state and update status, as AWS's do.
    pub(super) fn describe(&self, name: &str, arn: &str, version: &str, now: Timestamp, states: bool) -> Value {
        let modified = self.modified.to_zoned(TimeZone::UTC).strftime("%Y-%m-%dT%H:%M:%S.%3f+0000").to_string();
        let mut said = json!({
            "FunctionName": name,
            "FunctionArn": arn,
            "Role": self.role,
            "CodeSize": self.size,
            "Description": self.description,
            "Timeout": self.timeout,
            "MemorySize": self.memory,
            "LastModified": modified,
            "CodeSha256": self.sha256,
            "Version": version,
            "TracingConfig": { "Mode": "PassThrough" },
            "RevisionId": self.revision,
            "PackageType": if self.image.is_some() { "Image" } else { "Zip" },
            "Architectures": ["x86_64"],
            "EphemeralStorage": { "Size": 512 },
        });
        for (name, value) in [("Runtime", &self.runtime), ("Handler", &self.handler)] {
            if let Some(value) = value {
                said[name] = json!(value);
            }
        }
        if let Some(target) = &self.dead_letters {
            said["DeadLetterConfig"] = json!({ "TargetArn": target });
        }
        if !self.environment.is_empty() {
            said["Environment"] = json!({ "Variables": self.environment });
        }
        if states || self.is_pending(now) {
            let own = if self.is_pending(now) { "Pending" } else { "Active" };
            let state = self.forced.as_deref().unwrap_or(own);
            let updating = self.updating_until.is_some() || (self.is_pending(now) && version != "$LATEST");
            let update = self.forced_update.as_deref().unwrap_or(if updating { "InProgress" } else { "Successful" });
            said["State"] = json!(state);
            said["LastUpdateStatus"] = json!(update);
            if state == "Pending" {
                said["StateReason"] = json!("The function is being created.");
                said["StateReasonCode"] = json!("Creating");
            }
        }
        said
    }

    /// How many of so many calls fail.
    pub(super) fn fail(&mut self, calls: f64) -> f64 {
        self.failing += calls * self.said("SIMULATOR_ERROR_RATE").unwrap_or(0.0).clamp(0.0, 1.0);
        // A sum of hundredths is not exact: what is a whole call but for 1e-9 counts.
        let failed = (self.failing + 1e-9).floor().min(calls);
        self.failing -= failed;
        failed
    }

    pub(super) fn duration_ms(&self) -> f64 {
        self.said("SIMULATOR_DURATION_MS").unwrap_or(20.0).max(0.0)
    }

    fn said(&self, name: &str) -> Option<f64> {
        self.environment.get(name)?.parse().ok()
    }
}

#[derive(Clone, Debug)]
pub(super) struct Alias {
    pub(super) version: String,
    /// At most one.
    pub(super) weights: BTreeMap<String, f64>,
    pub(super) description: String,
    pub(super) revision: String,
    /// The part of a call that the additional version is owed.
    pub(super) dealt: f64,
    /// Until when AWS's own weights stand, while concurrency is provisioned.
    pub(super) injected_until: Option<Timestamp>,
}

impl Alias {
    pub(super) fn describe(&self, arn: &str, name: &str) -> Value {
        let mut said = json!({
            "AliasArn": arn,
            "Name": name,
            "FunctionVersion": self.version,
            "Description": self.description,
            "RevisionId": self.revision,
        });
        if !self.weights.is_empty() {
            said["RoutingConfig"] = json!({ "AdditionalVersionWeights": self.weights });
        }
        said
    }

    pub(super) fn serves(&self, version: &str) -> bool {
        self.version == version || self.weights.contains_key(version)
    }

    /// So many calls, by version.
    pub(super) fn deal(&mut self, calls: f64) -> Vec<(String, f64)> {
        let Some((additional, weight)) = self.weights.iter().next() else {
            return vec![(self.version.clone(), calls)];
        };
        self.dealt += calls * weight;
        let theirs = (self.dealt + 1e-9).floor().min(calls);
        self.dealt -= theirs;
        vec![(self.version.clone(), calls - theirs), (additional.clone(), theirs)]
    }
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Provisioned {
    pub(super) wanted: u64,
    pub(super) ready_at: Timestamp,
    pub(super) modified: Timestamp,
}

impl Provisioned {
    pub(super) fn describe(&self, now: Timestamp) -> Value {
        let ready = now >= self.ready_at;
        let there = if ready { self.wanted } else { 0 };
        let modified = self.modified.to_zoned(TimeZone::UTC).strftime("%Y-%m-%dT%H:%M:%S+0000").to_string();
        json!({
            "RequestedProvisionedConcurrentExecutions": self.wanted,
            "AvailableProvisionedConcurrentExecutions": there,
            "AllocatedProvisionedConcurrentExecutions": there,
            "Status": if ready { "READY" } else { "IN_PROGRESS" },
            "LastModified": modified,
        })
    }
}
