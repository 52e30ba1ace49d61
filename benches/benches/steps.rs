//! The small steps that everything is made of, and one whole trip, with criterion.

use std::{hint::black_box, sync::Arc, time::Duration};

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use rollback_benches::{Fleet, two_cores};
use rollback_core::{
    rollout::Rollout,
    state::{Cause, Event, State},
    store::Memory,
};

/// A rollout as it is while it bakes: three gates judged, two revisions of 1 KiB, nine lines of log.
fn baking() -> Arc<Rollout> {
    let runtime = two_cores();
    let rollout = runtime.block_on(async {
        let mut fleet = Fleet::new(Memory::new());
        fleet.register(1);
        fleet.start(0..1).await;
        fleet.judged(0..1).await;
        fleet.status(0)
    });
    runtime.shutdown_background();
    rollout
}

fn transition(c: &mut Criterion) {
    let rollout = baking();
    let cause = Cause::Unhealthy { gate: rollout.gates[0].name.clone(), why: "4.2 % of 4,800 requests failed".into() };
    c.bench_function("transition of the machine", |bench| {
        bench.iter_batched(
            || (rollout.state.clone(), Event::Tripped(cause.clone())),
            |(state, event)| state.next(rollout.terms(), black_box(event)).expect("a bake hears a tripped gate"),
            BatchSize::SmallInput,
        );
    });
    assert!(matches!(rollout.state, State::Baking { .. }));
}

fn record(c: &mut Criterion) {
    let rollout = baking();
    let record = rollout.to_record(None, 0).expect("a record");
    let mut group = c.benchmark_group(format!("record of {} bytes", record.body.len()));
    group.bench_function("encode", |bench| bench.iter(|| black_box(&rollout).to_record(None, 0)));
    group.bench_function("decode", |bench| bench.iter(|| Rollout::from_record(black_box(&record))));
    group.finish();
}

fn trip(c: &mut Criterion) {
    let mut group = c.benchmark_group("signal to shift, memory");
    group.sample_size(10).warm_up_time(Duration::from_millis(100)).measurement_time(Duration::from_secs(1));
    for live in [1, 1_000] {
        let runtime = two_cores();
        let mut fleet = Fleet::new(Memory::new());
        runtime.block_on(fleet.live(live));
        group.bench_function(format!("{live} live"), |bench| {
            bench.iter_custom(|times| {
                runtime.block_on(async {
                    let mut total = Duration::ZERO;
                    for _ in 0..times {
                        total += fleet.trip_oldest().await;
                    }
                    total
                })
            });
        });
        runtime.shutdown_background();
    }
    group.finish();
}

criterion_group!(benches, transition, record, trip);
criterion_main!(benches);
