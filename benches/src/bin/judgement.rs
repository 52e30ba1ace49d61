//! How often each way of judging is wrong, and how long it takes to be right, on simulated rollouts: the table of
//! `JUDGEMENT.md`.
//!
//! `cargo run --release -p rollback-benches --bin judgement [ROLLOUTS] > benches/JUDGEMENT.md`

use std::{env, fmt::Write as _, thread};

use fastrand::Rng;
use rollback_core::gate::{
    sequential::{OddsTest, Tolerance},
    source::{Count, Pair},
};

const ALPHA: f64 = 0.01;
const HALF_AN_HOUR: f64 = 1800.0;
const BASELINE_ERRORS: f64 = 0.005;

fn main() {
    let rollouts = env::args().nth(1).and_then(|n| n.parse().ok()).unwrap_or(5000);
    let few = rollouts.min(1000);
    let mut page = String::from(INTRODUCTION);
    let _ = writeln!(page, "## Never wrong more often than promised\n");
    let _ = writeln!(
        page,
        "Healthy rollouts that were rolled back, of {rollouts} for the gate and {few} for the others, each half an hour.\n"
    );
    let _ = writeln!(page, "| candidate | traffic | gate | fixed threshold | Mann–Whitney | Flagger's rule |");
    let _ = writeln!(page, "|---|---|---|---|---|---|");
    for cell in CELLS.into_iter().chain([HALF]) {
        for (name, nature) in NATURES {
            let world = World { cell, nature, errors: BASELINE_ERRORS };
            let share = if cell.times > 1.0 { "" } else { ", half of the traffic" };
            let mut row = format!("| {} a second{share} | {name} |", cell.rate);
            for (rule, runs) in RULES.iter().zip([rollouts, few, few, few]) {
                let times = decide(world, *rule, runs);
                let _ = write!(row, " {} |", percent(times.len(), runs));
            }
            let _ = writeln!(page, "{row}");
        }
    }
    let _ = writeln!(page, "\n## At the margin\n");
    let _ = writeln!(
        page,
        "The candidate's odds of failing are exactly the 1.5 times that are borne, the worst case of the promise: rolled \
         back, of {rollouts}. Even traffic; noise comes on top of what is promised.\n"
    );
    let _ = writeln!(page, "| candidate | even | noise 0.25 | noise 0.5 |");
    let _ = writeln!(page, "|---|---|---|---|");
    for cell in CELLS {
        let mut row = format!("| {} a second |", cell.rate);
        for (_, nature) in &NATURES[..3] {
            let odds = 1.5 * BASELINE_ERRORS / (1.0 - BASELINE_ERRORS);
            let world = World { cell, nature: *nature, errors: odds / (1.0 + odds) };
            let _ = write!(row, " {} |", percent(decide(world, Rule::Gate, rollouts).len(), rollouts));
        }
        let _ = writeln!(page, "{row}");
    }
    let _ = writeln!(page, "\n## Time to a decision\n");
    let runs = rollouts.min(2000);
    let _ = writeln!(
        page,
        "Seconds from the breach, at the start, to the decision: median (95th percentile) of {runs} rollouts for the gate \
         and {few} for the others; of those found, with their part where it is below 99.5 %. Even traffic.\n"
    );
    let _ = writeln!(page, "| candidate | its errors | gate | fixed threshold | Mann–Whitney | Flagger's rule |");
    let _ = writeln!(page, "|---|---|---|---|---|---|");
    for cell in CELLS {
        for errors in [0.02, 0.05, 0.2, 1.0] {
            let world = World { cell, nature: Nature::Even, errors };
            let mut row = format!("| {} a second | {} % |", cell.rate, errors * 100.0);
            for (rule, runs) in RULES.iter().zip([runs, few, few, few]) {
                let _ = write!(row, " {} |", spread(decide(world, *rule, runs), runs));
            }
            let _ = writeln!(page, "{row}");
        }
    }
    let _ = writeln!(page, "\n## A regression that begins late\n");
    let _ = writeln!(
        page,
        "The same, but the candidate is healthy for the first ten minutes; the seconds count from the breach, and rollouts \
         that were rolled back before it are left out.\n"
    );
    let _ = writeln!(page, "| candidate | its errors | gate | Mann–Whitney |");
    let _ = writeln!(page, "|---|---|---|---|");
    for cell in CELLS {
        for errors in [0.05, 0.2, 1.0] {
            let world = World { cell, nature: Nature::Late(600.0), errors };
            let mut row = format!("| {} a second | {} % |", cell.rate, errors * 100.0);
            for (rule, runs) in [(Rule::Gate, runs), (Rule::MannWhitney, few)] {
                let times = decide(world, rule, runs);
                let (early, late): (Vec<f64>, Vec<f64>) = times.into_iter().partition(|time| *time <= 600.0);
                let times = late.into_iter().map(|time| time - 600.0).collect();
                let _ = write!(row, " {} |", spread(times, runs - early.len()));
            }
            let _ = writeln!(page, "{row}");
        }
    }
    print!("{page}");
}

const INTRODUCTION: &str = "\
# Judgement

How often each way of judging a canary is wrong, and how long it takes to be right, on simulated rollouts: the default
`Compare` gate (`alpha` 1 %, odds of 1.5 borne), and beside it in the same run a fixed threshold, a Mann–Whitney test that
is repeated at every look, and Flagger's rule. Made by

```sh
cargo run --release -p rollback-benches --bin judgement > benches/JUDGEMENT.md
```

with a seeded generator, so it comes out the same again. The candidate has 5 % of the traffic, the baseline fails 0.5 % of
its requests, and the gate looks every 5 seconds (10 at 0.2 requests a second). The times are those of the test alone: the
platform's call and the delay of a metrics pipeline come on top.

- **even**: as many requests in every interval, each fails by itself. In the others arrivals are Poisson.
- **noise 0.25, 0.5**: the failure rate of each revision is multiplied in every interval by a lognormal factor of its own
  with this sigma.
- **diurnal**: traffic and failure rate swing together by 60 % and 50 %, once in half an hour.
- **bursty**: one interval in twenty has five times the requests, and a lognormal factor of sigma 1 hits both revisions.
- **Fixed threshold**: roll back when more than 1 % of the candidate's requests of a minute failed. **Mann–Whitney**: the
  failure rates of all intervals so far, one-sided, at every look, at p ≤ 1 %, from the fifth on. **Flagger's rule**: the
  fifth minute with more than 1 % failed, and the tick after it.

";

const CELLS: [Cell; 3] = [
    Cell { rate: 10.0, poll: 5.0, times: 19.0 },
    Cell { rate: 1.0, poll: 5.0, times: 19.0 },
    Cell { rate: 0.2, poll: 10.0, times: 19.0 },
];
/// Half of the traffic: where noise of one revision is felt most.
const HALF: Cell = Cell { rate: 100.0, poll: 5.0, times: 1.0 };
const NATURES: [(&str, Nature); 5] = [
    ("even", Nature::Even),
    ("noise 0.25", Nature::Noise(0.25)),
    ("noise 0.5", Nature::Noise(0.5)),
    ("diurnal", Nature::Diurnal),
    ("bursty", Nature::Bursty),
];
const RULES: [Rule; 4] = [Rule::Gate, Rule::Threshold, Rule::MannWhitney, Rule::Flagger];

#[derive(Clone, Copy)]
struct Cell {
    /// Requests a second of the candidate.
    rate: f64,
    poll: f64,
    /// How many times as many the baseline has.
    times: f64,
}

#[derive(Clone, Copy)]
enum Nature {
    Even,
    Noise(f64),
    Diurnal,
    Bursty,
    Late(f64),
}

#[derive(Clone, Copy)]
enum Rule {
    Gate,
    Threshold,
    MannWhitney,
    Flagger,
}

#[derive(Clone, Copy)]
struct World {
    cell: Cell,
    nature: Nature,
    errors: f64,
}

impl World {
    /// What happens in the interval that ends at this second.
    fn interval(&self, end: f64, rng: &mut Rng) -> Pair<Count> {
        let lognormal = |sigma: f64, rng: &mut Rng| (sigma * normal(rng) - 0.5 * sigma * sigma).exp();
        let (mut traffic, mut failing, mut own) = (1.0, 1.0, [1.0, 1.0]);
        let mut errors = self.errors;
        match self.nature {
            Nature::Even => {}
            Nature::Noise(sigma) => own = [lognormal(sigma, rng), lognormal(sigma, rng)],
            Nature::Diurnal => {
                let swing = (end / HALF_AN_HOUR * std::f64::consts::TAU).sin();
                (traffic, failing) = (1.0 + 0.6 * swing, 1.0 + 0.5 * swing);
            }
            Nature::Bursty => {
                traffic = if rng.f64() < 0.05 { 5.0 } else { 1.0 };
                failing = lognormal(1.0, rng);
            }
            Nature::Late(begin) => errors = if end > begin { errors } else { BASELINE_ERRORS },
        }
        let served = self.cell.rate * self.cell.poll * traffic;
        let evenly = matches!(self.nature, Nature::Even | Nature::Late(_));
        let mut arm = |times: f64, errors: f64, own: f64| {
            let mean = served * times;
            let requests = if evenly { mean.round() as u64 } else { poisson(mean, rng) };
            Count::new(requests, binomial(requests, (errors * failing * own).min(1.0), rng))
        };
        Pair { candidate: arm(1.0, errors, own[0]), baseline: arm(self.cell.times, BASELINE_ERRORS, own[1]) }
    }
}

/// When each of so many rollouts is rolled back, for those that are.
fn decide(world: World, rule: Rule, rollouts: usize) -> Vec<f64> {
    let part = |seeds: std::ops::Range<usize>| -> Vec<f64> {
        seeds.filter_map(|seed| rollout(world, rule, &mut Rng::with_seed(seed as u64 * 7919 + 1))).collect()
    };
    thread::scope(|scope| {
        let other = scope.spawn(|| part(0..rollouts / 2));
        let mut times = part(rollouts / 2..rollouts);
        times.extend(other.join().expect("a simulation does not panic"));
        times.sort_by(f64::total_cmp);
        times
    })
}

fn rollout(world: World, rule: Rule, rng: &mut Rng) -> Option<f64> {
    let poll = world.cell.poll;
    let mut intervals = (1..).map(|look| f64::from(look) * poll).take_while(|end| *end <= HALF_AN_HOUR);
    let (mut test, tolerance) = (OddsTest::default(), Tolerance::default());
    let mut minute = Count::default();
    let mut failed = 0;
    let mut rates: [Vec<f64>; 2] = Default::default();
    intervals.find(|end| {
        let seen = world.interval(*end, rng);
        if matches!(rule, Rule::Threshold | Rule::Flagger) {
            minute.requests += seen.candidate.requests;
            minute.failures += seen.candidate.failures;
            if end % 60.0 > 0.0 {
                return false;
            }
        }
        match rule {
            Rule::Gate => {
                test.add(tolerance, seen);
                test.log_e() >= -(ALPHA * 0.99).ln()
            }
            Rule::Threshold => breached(std::mem::take(&mut minute)),
            Rule::Flagger => {
                if failed >= 5 {
                    return true;
                }
                failed += i32::from(breached(std::mem::take(&mut minute)));
                false
            }
            Rule::MannWhitney => {
                for (rates, arm) in rates.iter_mut().zip([seen.candidate, seen.baseline]) {
                    if arm.requests > 0 {
                        rates.push(arm.failures as f64 / arm.requests as f64);
                    }
                }
                rates[0].len() >= 5 && mann_whitney(&rates[0], &rates[1]) >= 2.326
            }
        }
    })
}

fn breached(minute: Count) -> bool {
    minute.failures as f64 > 0.01 * minute.requests as f64
}

/// The normal score of "the first are higher", with ties and continuity corrected.
fn mann_whitney(first: &[f64], second: &[f64]) -> f64 {
    let (n, m) = (first.len() as f64, second.len() as f64);
    let mut all: Vec<(f64, bool)> =
        first.iter().map(|x| (*x, true)).chain(second.iter().map(|x| (*x, false))).collect();
    all.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
    let (mut ranks, mut ties, mut below) = (0.0, 0.0, 0.0);
    for same in all.chunk_by(|a, b| a.0 == b.0) {
        let t = same.len() as f64;
        ranks += same.iter().filter(|(_, first)| *first).count() as f64 * (below + (t + 1.0) / 2.0);
        ties += t * t * t - t;
        below += t;
    }
    let over = ranks - n * (n + 1.0) / 2.0 - n * m / 2.0;
    let variance = n * m / 12.0 * ((n + m + 1.0) - ties / ((n + m) * (n + m - 1.0)));
    if variance > 0.0 { (over - 0.5) / variance.sqrt() } else { 0.0 }
}

fn percent(part: usize, of: usize) -> String {
    format!("{:.2} %", 100.0 * part as f64 / of as f64)
}

fn spread(times: Vec<f64>, of: usize) -> String {
    let at = |part: f64| {
        times.get((part * times.len() as f64) as usize).map_or_else(|| "–".into(), |time| format!("{time:.0}"))
    };
    let all = format!("{} ({})", at(0.5), at(0.95));
    let found = times.len() as f64 / of as f64;
    if found >= 0.995 { all } else { format!("{all}, found {:.1} %", 100.0 * found) }
}

fn normal(rng: &mut Rng) -> f64 {
    (-2.0 * (1.0 - rng.f64()).ln()).sqrt() * (std::f64::consts::TAU * rng.f64()).cos()
}

fn poisson(mean: f64, rng: &mut Rng) -> u64 {
    if mean > 60.0 {
        return (mean + mean.sqrt() * normal(rng)).round().max(0.0) as u64;
    }
    let (limit, mut product, mut count) = ((-mean).exp(), 1.0 - rng.f64(), 0);
    while product > limit {
        product *= 1.0 - rng.f64();
        count += 1;
    }
    count
}

fn binomial(n: u64, p: f64, rng: &mut Rng) -> u64 {
    if p >= 1.0 {
        return n;
    }
    // From one success to the next: the time it takes is that of the successes.
    let (log_q, mut at, mut count) = ((-p).ln_1p(), 0.0, 0);
    if log_q == 0.0 {
        return 0;
    }
    loop {
        at += ((1.0 - rng.f64()).ln() / log_q).floor() + 1.0;
        if at > n as f64 {
            return count;
        }
        count += 1;
    }
}
