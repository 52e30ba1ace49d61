//! Hooks: a team's own checks before the first change and before the promotion.

use std::{fmt, pin::Pin, sync::Arc, time::Duration};

use crate::{
    error::{Error, Result},
    rollout::Rollout,
};

type Run = dyn Fn(Arc<Rollout>) -> Pin<Box<dyn Future<Output = Result<()>> + Send>> + Send + Sync;

/// An async function that is asked before the rollout goes on: "was the candidate tested?", a smoke test.
///
/// It may be asked again after a crash, and may be dropped at its deadline or when the rollout turns back: a rollback
/// never waits for one. Its outcome is in the record.
#[derive(Clone)]
pub struct Hook {
    pub(crate) name: String,
    pub(crate) deadline: Duration,
    pub(crate) at_deadline: Exit,
    run: Arc<Run>,
}

/// What a hook means that has not answered by its deadline.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Exit {
    /// As if it had failed. The default.
    #[default]
    Fail,
    /// As if it had passed; the record says that it had not.
    GoOn,
}

impl Hook {
    /// A hook with this name, 1 to 64 bytes of printable text, unique within its target. Deadline: 5 minutes, then it
    /// has failed.
    ///
    /// # Errors
    /// `Invalid` for another name.
    pub fn new<F, R>(name: &str, run: F) -> Result<Self>
    where
        F: Fn(Arc<Rollout>) -> R + Send + Sync + 'static,
        R: Future<Output = Result<()>> + Send + 'static,
    {
        let name = crate::model::GateName::try_from(name).map_err(|e: Error| e.during("a hook's name"))?;
        let run = Arc::new(move |rollout| Box::pin(run(rollout)) as Pin<Box<dyn Future<Output = _> + Send>>);
        Ok(Self { name: name.into(), deadline: Duration::from_secs(300), at_deadline: Exit::Fail, run })
    }

    /// With this deadline, and what it means to miss it.
    #[must_use]
    pub const fn deadline(mut self, deadline: Duration, at_deadline: Exit) -> Self {
        self.deadline = deadline;
        self.at_deadline = at_deadline;
        self
    }

    pub(crate) fn call(&self, rollout: Arc<Rollout>) -> Pin<Box<dyn Future<Output = Result<()>> + Send>> {
        (self.run)(rollout)
    }
}

impl fmt::Debug for Hook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hook").field("name", &self.name).field("deadline", &self.deadline).finish_non_exhaustive()
    }
}
