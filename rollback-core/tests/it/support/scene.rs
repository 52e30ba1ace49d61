//! An engine on a memory store with a test clock, and a rollout of `checkout` from `v1` to `v2` on it.

use std::time::Duration;

use rollback_core::{
    engine::{Engine, Handle, NewRollout, Outcome, Target},
    model::Revision,
    plan::Plan,
    rollout::What,
    store::Memory,
    testing::{clock::TestClock, fakes::Fake},
};

pub(crate) const MINUTE: Duration = Duration::from_secs(60);

/// An engine on a memory store, with a test clock.
pub(crate) struct Scene {
    pub(crate) store: Memory,
    pub(crate) clock: TestClock,
    pub(crate) engine: Engine,
}

impl Scene {
    pub(crate) fn new() -> Self {
        Self::on(Memory::new(), TestClock::new())
    }

    /// Another process on the same store.
    pub(crate) fn on(store: Memory, clock: TestClock) -> Self {
        let engine = Engine::builder(store.clone()).clock(clock.clone()).build().unwrap();
        Self { store, clock, engine }
    }

    pub(crate) fn target(&self, target: Target) {
        self.engine.register(target).unwrap();
    }

    pub(crate) async fn start(&self, plan: Plan) -> Handle {
        self.engine.start(deploy(plan)).await.unwrap()
    }
}

pub(crate) fn deploy(plan: Plan) -> NewRollout {
    NewRollout::new("checkout", Revision::new("v2").unwrap(), plan).unwrap().by("ana").unwrap().because("release 42")
}

pub(crate) fn canary() -> Plan {
    Plan::canary([10, 50, 100], MINUTE).unwrap()
}

pub(crate) fn checkout(fake: &Fake) -> Target {
    Target::new("checkout", fake.clone()).unwrap()
}

/// The names of the states it entered.
pub(crate) fn states(outcome: &Outcome) -> Vec<&'static str> {
    let entered = |what: &What| match what {
        What::Entered { to } => Some(to.name()),
        _ => None,
    };
    outcome.rollout.log.iter().filter_map(|entry| entered(&entry.what)).collect()
}

/// Waits until the rollout is in this state.
pub(crate) async fn until(handle: &Handle, state: &str) {
    let mut handle = handle.clone();
    while handle.status().state.name() != state {
        assert!(handle.changed().await.is_some(), "it ended as {} before it was {state}", handle.status());
    }
}

/// Waits until the rollout is over.
pub(crate) async fn until_over(handle: &Handle) {
    let mut handle = handle.clone();
    while handle.status().state.is_open() && handle.changed().await.is_some() {}
}
