//! What the tests share: a function with an alias, to try backends on, and processes.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use rollback_aws::{
    lambda::Alias,
    testing::{
        Simulator,
        lambda::{Build, Snapshot},
    },
};
use rollback_core::{backend::DeploymentBackend, model::Revision, testing::backend::Bench};

#[path = "../../../rollback-k8s/tests/it/support/process.rs"]
pub(crate) mod process;

/// The secret access key of the simulator's credentials.
const SECRET: &str = "simulated-secret-access-key";

/// The function `checkout` with versions 1, 2 and 3, and its alias `live` at version 1.
pub(crate) struct Shop {
    pub(crate) aws: Simulator,
    pristine: Snapshot,
}

impl Shop {
    pub(crate) fn new() -> Self {
        Self::of(&Build::new("v2"))
    }

    /// With this candidate.
    pub(crate) fn of(candidate: &Build) -> Self {
        let aws = Simulator::new();
        for build in [&Build::new("v1"), candidate, &Build::new("v3")] {
            aws.lambda().publish("checkout", build);
        }
        aws.lambda().point("checkout", "live", "1", None);
        let pristine = aws.lambda().snapshot();
        Self { aws, pristine }
    }

    /// The same, with what was done to it since as what it is put back to.
    pub(crate) fn keep(self) -> Self {
        let pristine = self.aws.lambda().snapshot();
        Self { pristine, ..self }
    }

    pub(crate) fn alias(&self) -> Alias {
        Alias::new(&self.aws.account(), "checkout:live").expect("a good name")
    }

    /// What the alias is at: its version, and the other one's share.
    pub(crate) fn at(&self) -> (String, Option<(String, f64)>) {
        let alias = self.aws.lambda().alias("checkout", "live").expect("it is there");
        (alias.version, alias.other)
    }
}

#[async_trait]
impl Bench for Shop {
    async fn reset(&self) {
        self.aws.forget_faults();
        self.aws.lambda().restore(&self.pristine);
        // Under another RevisionId than in the run before, which late calls of that run may still hold.
        self.aws.lambda().point("checkout", "live", "1", None);
    }

    async fn connect(&self) -> Arc<dyn DeploymentBackend> {
        Arc::new(self.alias())
    }

    fn candidate(&self) -> Revision {
        Revision::new("2").expect("a good id")
    }

    fn missing(&self) -> Revision {
        Revision::new("99").expect("a good id")
    }

    async fn settle(&self) {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }

    async fn drift(&self) -> bool {
        self.aws.lambda().point("checkout", "live", "3", None);
        true
    }

    fn secret(&self) -> Option<String> {
        Some(SECRET.into())
    }
}
