//! The events of a whole rollout, as listeners get them.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use rollback_core::{
    engine::{Engine, NewRollout, Target},
    gate::{self, Evidence, Policy, Verdict},
    listener::{Listener, RolloutEvent},
    model::Revision,
    plan::Plan,
    store::Memory,
    testing::{clock::TestClock, fakes::Fake},
};

#[derive(Clone, Debug, Default)]
struct Heard(Arc<Mutex<Vec<RolloutEvent>>>);

impl Listener for Heard {
    fn on(&self, event: &RolloutEvent) {
        self.0.lock().unwrap().push(event.clone());
    }
}

/// Every event of a rollout of `v2` that is rolled back at 50 %, on a runtime that is gone by then: no channel finds the
/// paused time that it ran in.
pub(crate) fn rolled_back(target: &str) -> Vec<RolloutEvent> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    let heard = Heard::default();
    runtime.block_on(async {
        let engine = Engine::builder(Memory::new()).clock(TestClock::new()).listener(heard.clone()).build().unwrap();
        let errors = gate::from_fn("errors", |window| async move {
            let bad = window.weight.percent() >= 50;
            let evidence = Evidence::new(window.now, "37 of 1,200 requests failed; at most 12 may").fact("failed", 37);
            Ok(if bad { Verdict::Unhealthy(evidence) } else { Verdict::Healthy(evidence) })
        });
        let fake = Fake::new("v1", "v2").does_not_restore("the database schema");
        engine.register(Target::new(target, fake).unwrap().gate(errors.unwrap(), Policy::default())).unwrap();
        let plan = Plan::canary([10, 50, 100], Duration::from_secs(60)).unwrap();
        let new = NewRollout::new(target, Revision::new("v2").unwrap(), plan).unwrap();
        let handle = engine.start(new.by("ana").unwrap().because("release 42")).await.unwrap();
        handle.finished().await;
        engine.shutdown(Duration::from_secs(60)).await;
    });
    // The runtime's paused time runs past the deadline of the shutdown; the listener's thread does not.
    let is_over = || heard.0.lock().unwrap().iter().any(|event| event.rollout.state.name() == "rolled_back");
    until("the listener has heard of the end", is_over);
    heard.0.lock().unwrap().clone()
}

/// Waits until this is so.
pub(crate) fn until(what: &str, is: impl Fn() -> bool) {
    for _ in 0..3000 {
        if is() {
            return;
        }
        std::thread::park_timeout(Duration::from_millis(10));
    }
    panic!("it did not come to this in half a minute: {what}");
}
