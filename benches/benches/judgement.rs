//! One update of each sequential test.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use rollback_core::gate::{
    sequential::{GaugeTest, OddsTest, QuantileTest, Tolerance},
    source::{Count, Pair},
};

fn updates(c: &mut Criterion) {
    let mut group = c.benchmark_group("one update");
    let tolerance = Tolerance::default();
    for (name, candidate, baseline) in [
        ("odds, 1,000 requests, 5 failures", (50, 1), (950, 4)),
        ("odds, 100,000 requests, 500 failures", (5_000, 25), (95_000, 475)),
        ("odds, 10,000,000 requests, 50,000 failures", (500_000, 2_500), (9_500_000, 47_500)),
    ] {
        let interval = Pair { candidate: Count::from(candidate), baseline: Count::from(baseline) };
        let mut seen = OddsTest::default();
        for _ in 0..20 {
            seen.add(tolerance, interval);
        }
        group.bench_function(name, |b| {
            b.iter(|| {
                let mut test = seen.clone();
                test.add(tolerance, black_box(interval));
                test.log_e()
            });
        });
    }
    let buckets: Vec<u64> = (0..20).map(|k| 400 / (k + 1)).collect();
    let interval = Pair { candidate: buckets.iter().map(|n| n / 10).collect(), baseline: buckets };
    let mut seen = QuantileTest::default();
    for _ in 0..20 {
        seen.add(&interval);
    }
    group.bench_function("quantile, 20 buckets", |b| {
        b.iter(|| {
            let mut test = seen.clone();
            test.add(black_box(&interval));
            test.log_e(0.99, tolerance)
        });
    });
    let mut seen = GaugeTest::default();
    for k in 0..20 {
        seen.add(1.1, Pair { candidate: 10.0 + f64::from(k % 3), baseline: 10.0 });
    }
    group.bench_function("gauge", |b| {
        b.iter(|| {
            let mut test = seen.clone();
            test.add(1.1, black_box(Pair { candidate: 11.0, baseline: 10.0 }));
            test.log_e()
        });
    });
    group.finish();
}

criterion_group!(benches, updates);
criterion_main!(benches);
