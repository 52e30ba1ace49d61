//! What a live rollout costs in memory: allocated bytes, and what the process has from the system.

use std::{alloc::System, process::Command};

use rollback_benches::{Fleet, measures, quick, two_cores};
use rollback_core::store::Memory;
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};
use tokio::time::{Duration, sleep};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Two cores cannot ask 300,000 gates every 10 seconds; how often they are asked changes nothing that is kept.
const INTERVAL: Duration = Duration::from_secs(60);
/// Gate memory is saved every 15 seconds; after that nothing new is kept.
const SETTLES: Duration = Duration::from_secs(20);

fn main() {
    if !measures() {
        return;
    }
    // Each in a process of its own: an allocator keeps what was freed.
    if let Some(live) = std::env::args().find_map(|arg| arg.strip_prefix("--live=").and_then(|n| n.parse().ok())) {
        return measure(live);
    }
    let most = if quick() { 10_000 } else { 100_000 };
    for live in [10_000, 100_000].into_iter().filter(|live| *live <= most) {
        let program = std::env::current_exe().expect("this program");
        let status = Command::new(program).args(["--bench", &format!("--live={live}")]).status().expect("it runs");
        assert!(status.success(), "measuring {live} live rollouts: {status}");
    }
}

fn measure(live: usize) {
    let runtime = two_cores();
    runtime.block_on(async {
        let mut fleet = Fleet::new(Memory::new()).asked_every(INTERVAL);
        fleet.register(1);
        fleet.start(0..1).await;
        let empty = Used::now();
        fleet.register(live);
        let registered = Used::now();
        fleet.start(1..live + 1).await;
        fleet.judged(1..live + 1).await;
        sleep(SETTLES).await;
        let running = Used::now();
        println!("memory of a registered target with three gates, {live}: {}", registered.since(empty, live));
        println!("memory of a live rollout beside that, {live}: {}", running.since(registered, live));
    });
    runtime.shutdown_background();
}

#[derive(Clone, Copy)]
struct Used {
    /// Bytes that were asked for and not given back.
    allocated: usize,
    /// Bytes of this process in memory.
    resident: usize,
}

impl Used {
    fn now() -> Self {
        let stats = ALLOCATOR.stats();
        Self { allocated: stats.bytes_allocated.saturating_sub(stats.bytes_deallocated), resident: resident() }
    }

    fn since(self, before: Self, live: usize) -> String {
        let each = |now: usize, before: usize| now.saturating_sub(before) / live;
        format!(
            "{} bytes allocated, {} resident",
            each(self.allocated, before.allocated),
            each(self.resident, before.resident)
        )
    }
}

/// From /proc/self/statm, in pages; 0 where there is none.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    statm.split(' ').nth(1).and_then(|pages| pages.parse::<usize>().ok()).unwrap_or_default() * 4096
}
