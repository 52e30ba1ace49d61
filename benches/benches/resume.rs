//! How long it takes to take up every open rollout after a restart.

use std::path::Path;

use rollback_benches::{Fleet, measures, quick, two_cores};
use rollback_core::store::{Memory, Sql, Store};
use tokio::time::{Duration, Instant};

fn main() {
    if !measures() {
        return;
    }
    let open = if quick() { 1_000 } else { 10_000 };
    println!("resume_all of {open}, memory: {:.0?}", run(async || Memory::new(), open));
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder on the disk");
    println!("resume_all of {open}, SQLite: {:.0?}", run(async || sqlite(folder.path()).await, open));
}

async fn sqlite(folder: &Path) -> Sql {
    Sql::connect(&format!("sqlite:{}", folder.join("rollouts.db").display())).await.expect("a store")
}

/// Starts so many rollouts, shuts their engine down, and lets another engine take them up.
fn run<S: Store + Clone>(store: impl AsyncFnOnce() -> S, open: usize) -> Duration {
    let runtime = two_cores();
    let took = runtime.block_on(async {
        let store = store().await;
        let mut first = Fleet::new(store.clone());
        first.register(open);
        first.start(0..open).await;
        first.judged(0..open).await;
        first.engine.shutdown(Duration::from_secs(60)).await;
        // The same platforms, seen by the process that comes after.
        let second = first.restarted(store);
        let begun = Instant::now();
        let resumed = second.engine.resume_all().await.expect("the store answers");
        let took = begun.elapsed();
        assert_eq!(resumed.handles.len(), open, "every rollout is driven again");
        took
    });
    runtime.shutdown_background();
    took
}
