//! Lambda by hand: what a test sets up and looks at without a call of the API.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use jiff::Timestamp;
use rollback_core::clock::Clock as _;
use serde_json::json;

use super::{
    Functions, Traffic,
    model::{Alias, Function, Provisioned, Version, revision},
};
use crate::testing::{ACCOUNT, Simulator, World};

/// Functions, without an HTTP call: somebody else's hands. What is made so is Active at once.
#[derive(Clone, Copy, Debug)]
pub struct Hands<'a>(pub(in crate::testing) &'a Simulator);

/// What a version is made of.
#[derive(Clone, Debug)]
pub struct Build {
    code: String,
    role: String,
    dead_letters: Option<String>,
    error_rate: f64,
    duration: Duration,
}

impl Build {
    /// A build of this code, which answers every call within 20 ms.
    pub fn new(code: impl Into<String>) -> Self {
        Self {
            code: code.into(),
            role: format!("arn:aws:iam::{ACCOUNT}:role/lambda"),
            dead_letters: None,
            error_rate: 0.0,
            duration: Duration::from_millis(20),
        }
    }

    /// This share of its calls fails, 0 to 1.
    #[must_use]
    pub const fn fails(mut self, share: f64) -> Self {
        self.error_rate = share;
        self
    }

    /// Its calls take this long.
    #[must_use]
    pub const fn takes(mut self, each: Duration) -> Self {
        self.duration = each;
        self
    }

    /// It runs as this role.
    #[must_use]
    pub fn role(mut self, arn: impl Into<String>) -> Self {
        self.role = arn.into();
        self
    }

    /// What it cannot process goes here.
    #[must_use]
    pub fn dead_letters(mut self, arn: impl Into<String>) -> Self {
        self.dead_letters = Some(arn.into());
        self
    }
}

/// One write of an alias that was accepted.
#[derive(Clone, Debug, PartialEq)]
pub struct Write {
    /// When.
    pub at: Timestamp,
    /// Of which function.
    pub function: String,
    /// Of which alias.
    pub alias: String,
    /// The primary version since then.
    pub version: String,
    /// The other version and its share, 0 to 1; empty or one.
    pub weights: BTreeMap<String, f64>,
}

/// What an alias points at.
#[derive(Clone, Debug, PartialEq)]
pub struct Pointed {
    /// The primary version.
    pub version: String,
    /// The other version and its share, 0 to 1.
    pub other: Option<(String, f64)>,
    /// Its description.
    pub description: String,
}

impl Hands<'_> {
    /// Publishes a build of a function, which is made if it is not there. Its number.
    pub fn publish(&self, function: &str, build: &Build) -> String {
        self.with(|world, now| {
            let arn = world.lambda.arn(function);
            let mut latest = Version::new(&build.role, now);
            let code = json!({ "S3Key": build.code });
            latest.set_code(&code).expect("it names its code");
            latest.configure(&json!({
                "Runtime": "provided.al2023",
                "Handler": "bootstrap",
                "DeadLetterConfig": { "TargetArn": build.dead_letters.as_deref().unwrap_or_default() },
                "Environment": { "Variables": {
                    "SIMULATOR_ERROR_RATE": build.error_rate.to_string(),
                    "SIMULATOR_DURATION_MS": (build.duration.as_secs_f64() * 1000.0).to_string(),
                } },
            }));
            let functions = world.lambda.change(now);
            let made = functions.entry(function.into()).or_insert_with(|| Function::new(arn, latest.clone()));
            made.latest = latest;
            made.publish("", now, Duration::ZERO)
        })
    }

    /// Points an alias at a version, with at most one other and its share; makes the alias if it is not there.
    ///
    /// # Panics
    /// When the function is not there.
    pub fn point(&self, function: &str, alias: &str, version: &str, other: Option<(&str, f64)>) {
        self.with(|world, now| {
            let functions = world.lambda.change(now);
            let aliases = &mut functions.get_mut(function).expect("the function is there").aliases;
            let weights = other.map(|(other, share)| (other.to_owned(), share)).into_iter().collect();
            let description = aliases.get(alias).map(|alias| alias.description.clone()).unwrap_or_default();
            let (version, revision) = (version.to_owned(), revision());
            let made = Alias { version, weights, description, revision, dealt: 0.0, injected_until: None };
            aliases.insert(alias.into(), made);
            world.lambda.wrote(function, alias, now);
        });
    }

    /// Describes an alias, as a person may.
    pub fn describe(&self, function: &str, alias: &str, description: &str) {
        self.with(|world, now| {
            let functions = world.lambda.change(now);
            if let Some(alias) = functions.get_mut(function).and_then(|function| function.aliases.get_mut(alias)) {
                alias.description = description.into();
                alias.revision = revision();
            }
        });
    }

    /// What an alias points at.
    pub fn alias(&self, function: &str, alias: &str) -> Option<Pointed> {
        self.with(|world, _| {
            let alias = world.lambda.functions.get(function)?.aliases.get(alias)?;
            let other = alias.weights.iter().next().map(|(version, share)| (version.clone(), *share));
            Some(Pointed { version: alias.version.clone(), other, description: alias.description.clone() })
        })
    }

    /// Provisions so much concurrency for an alias or a version, and it is ready.
    ///
    /// # Panics
    /// When the function is not there.
    pub fn provision(&self, function: &str, qualifier: &str, executions: u64) {
        self.with(|world, now| {
            let functions = world.lambda.change(now);
            let provisioned = &mut functions.get_mut(function).expect("the function is there").provisioned;
            provisioned.insert(qualifier.into(), Provisioned { wanted: executions, ready_at: now, modified: now });
        });
    }

    /// From now on every `RevisionId` is taken, as an emulator that checks nothing does.
    pub fn check_no_revision_ids(&self) {
        self.with(|world, _| world.lambda.checks_revisions = false);
    }

    /// Deletes a version, whoever uses it, as no API does: for what could be.
    pub fn delete_version(&self, function: &str, version: &str) {
        self.with(|world, now| {
            let functions = world.lambda.change(now);
            if let (Some(function), Ok(number)) = (functions.get_mut(function), version.parse()) {
                function.versions.remove(&number);
            }
        });
    }

    /// Puts a version into this `State` and this `LastUpdateStatus`, as `Inactive` and `Failed`, until it is told another.
    pub fn set_state(&self, function: &str, version: &str, state: &str, update: &str) {
        self.with(|world, now| {
            let functions = world.lambda.change(now);
            if let Some(version) = functions.get_mut(function).and_then(|function| function.version_mut(version)) {
                version.forced = Some(state.into());
                version.forced_update = Some(update.into());
            }
        });
    }

    /// From now on this alias is called so many times a minute, without anybody calling; 0 ends it.
    pub fn traffic(&self, function: &str, alias: &str, per_minute: f64) {
        self.with(|world, _| {
            let key = (function.to_owned(), alias.to_owned());
            if per_minute > 0.0 {
                world.lambda.traffic.insert(key, Traffic { per_minute, owed: 0.0 });
            } else {
                world.lambda.traffic.remove(&key);
            }
        });
    }

    /// From now on reads see everything as it was this long ago.
    pub fn lag(&self, by: Duration) {
        self.with(|world, _| world.lambda.lag = by);
    }

    /// Every write of an alias so far, by whomever, in order.
    pub fn writes(&self) -> Vec<Write> {
        self.with(|world, _| world.lambda.writes.clone())
    }

    /// Everything as it was when this was called, for [`Self::restore`].
    pub fn snapshot(&self) -> Snapshot {
        Snapshot(self.with(|world, _| Arc::clone(&world.lambda.functions)))
    }

    /// Puts all functions back. Traffic goes on.
    pub fn restore(&self, snapshot: &Snapshot) {
        self.with(|world, now| *world.lambda.change(now) = (*snapshot.0).clone());
    }

    fn with<T>(&self, act: impl FnOnce(&mut World, Timestamp) -> T) -> T {
        let now = self.0.clock().now();
        let mut world = self.0.world();
        world.catch_up(now);
        act(&mut world, now)
    }
}

/// All functions at one time.
#[derive(Clone, Debug)]
pub struct Snapshot(Arc<Functions>);
