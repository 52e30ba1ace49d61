//! A target as it is registered: its backend, and who guards it.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use crate::{
    backend::{Capabilities, DeploymentBackend},
    error::{Error, Result},
    gate::{HealthGate, Policy},
    hook::Hook,
    listener::Listener,
    model::TargetId,
    strategy::{FirstFailure, RollbackStrategy},
};

/// What is deployed to, and who guards it. Registered with [`Engine::register`](super::Engine::register).
#[derive(Debug)]
pub struct Target {
    pub(crate) id: TargetId,
    pub(crate) backend: Arc<dyn DeploymentBackend>,
    pub(crate) capabilities: Capabilities,
    pub(crate) gates: Vec<Guard>,
    pub(crate) strategy: Arc<dyn RollbackStrategy>,
    pub(crate) listeners: Vec<Arc<dyn Listener>>,
    pub(crate) posts: Vec<crate::listener::Post>,
    pub(crate) before: Vec<Hook>,
    pub(crate) after: Vec<Hook>,
    pub(crate) pace: Pace,
    pub(crate) limits: Limits,
}

/// A gate and how its verdicts count.
#[derive(Debug)]
pub(crate) struct Guard {
    pub(crate) gate: Arc<dyn HealthGate>,
    pub(crate) policy: Policy,
}

/// How often the target is looked at.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    /// At most this long between looks while something is awaited.
    pub(crate) busy: Duration,
    /// Between looks while nothing should change.
    pub(crate) idle: Duration,
}

/// How long one call may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) look: Duration,
    pub(crate) shift: Duration,
    pub(crate) prove: Duration,
}

impl Target {
    /// A target without gates that rolls back on the first failure of the backend.
    ///
    /// # Errors
    /// `Invalid` when the id is not 1 to 128 bytes of printable text.
    pub fn new(id: impl AsRef<str>, backend: impl DeploymentBackend) -> Result<Self> {
        let capabilities = backend.capabilities();
        Ok(Self {
            id: TargetId::try_from(id.as_ref())?,
            backend: Arc::new(backend),
            capabilities,
            gates: Vec::new(),
            strategy: Arc::new(FirstFailure),
            listeners: Vec::new(),
            posts: Vec::new(),
            before: Vec::new(),
            after: Vec::new(),
            pace: Pace { busy: Duration::from_secs(2), idle: Duration::from_secs(10) },
            limits: Limits {
                look: Duration::from_secs(30),
                shift: Duration::from_secs(60),
                prove: Duration::from_secs(120),
            },
        })
    }

    /// Watched by this gate too.
    #[must_use]
    pub fn gate(mut self, gate: impl HealthGate, policy: Policy) -> Self {
        self.gates.push(Guard { gate: Arc::new(gate), policy });
        self
    }

    /// With this strategy instead of [`FirstFailure`].
    #[must_use]
    pub fn strategy(mut self, strategy: impl RollbackStrategy) -> Self {
        self.strategy = Arc::new(strategy);
        self
    }

    /// Tells this listener about this target's rollouts.
    #[must_use]
    pub fn listener(mut self, listener: impl Listener) -> Self {
        self.listeners.push(Arc::new(listener));
        self
    }

    /// Asked after preflight, before anything changes. Hooks run one after the other, in this order.
    #[must_use]
    pub fn before(mut self, hook: Hook) -> Self {
        self.before.push(hook);
        self
    }

    /// Asked at the end of the last bake, while the baseline still stands: a failure rolls back.
    #[must_use]
    pub fn after(mut self, hook: Hook) -> Self {
        self.after.push(hook);
        self
    }

    /// Looked at at least every `busy` while something is awaited (default 2 seconds, sooner at first), and every `idle`
    /// while nothing should change (default 10 seconds). At least a millisecond each.
    #[must_use]
    pub fn look_every(mut self, busy: Duration, idle: Duration) -> Self {
        let least = Duration::from_millis(1);
        self.pace = Pace { busy: busy.max(least), idle: idle.max(least) };
        self
    }

    /// Waits at most this long for one look (default 30 seconds), one shift (default 60 seconds; the call itself goes
    /// on), and one preflight (default 2 minutes).
    #[must_use]
    pub const fn limits(mut self, look: Duration, shift: Duration, preflight: Duration) -> Self {
        self.limits = Limits { look, shift, prove: preflight };
        self
    }

    pub(crate) fn check(&self) -> Result<()> {
        let mut names = BTreeSet::new();
        for guard in &self.gates {
            guard.policy.check(guard.gate.name())?;
            if !names.insert(guard.gate.name().as_str()) {
                return Err(Error::invalid(format!("target {} has two gates named {}", self.id, guard.gate.name())));
            }
        }
        let mut names = BTreeSet::new();
        for hook in self.before.iter().chain(&self.after) {
            if !names.insert(hook.name.as_str()) {
                return Err(Error::invalid(format!("target {} has two hooks named {}", self.id, hook.name)));
            }
            if hook.deadline.is_zero() {
                let why =
                    format!("target {} gives hook {} zero seconds; more than zero is accepted", self.id, hook.name);
                return Err(Error::invalid(why));
            }
        }
        let limits = [("look", self.limits.look), ("shift", self.limits.shift), ("preflight", self.limits.prove)];
        for (name, limit) in limits {
            if limit.is_zero() {
                let why = format!("target {} waits zero seconds for a {name}; more than zero is accepted", self.id);
                return Err(Error::invalid(why));
            }
        }
        Ok(())
    }
}
