//! Tests that stay valid however often they are looked at. Pure functions, natural logarithms, no state.
//!
//! An **e-value** is what a bet against the null hypothesis has become: it starts at 1, and while the null is true it is
//! not expected to grow. So the chance that it *ever* reaches `1/alpha` is at most `alpha` (Ville 1939), and looking
//! after every scrape costs nothing. All functions return logarithms, since e-values overflow.
//!
//! | question | function | needs |
//! |---|---|---|
//! | do more of the candidate's requests fail? | [`odds`] | counts of both revisions in the same interval |
//! | the same, against a known rate or share | [`share`] | counts; the rate |
//! | is it higher, interval by interval? | [`sign`], [`self_normalised`] | one value of each revision, symmetric noise |
//! | is the quantile higher? | [`quantile`] | cumulated buckets, no drift |
//! | do two streams differ at all? | [`streams`] | counts, a guess of both rates |
//! | do two means differ? | [`msprt`], [`mean_radius`] | many independent values |
//!
//! Sources: Lindon, Sanden, Shirikian 2022 (conditional test); Howard, Ramdas, McAuliffe, Sekhon 2021 (mixtures,
//! empirical distribution); Howard, Ramdas 2022 (quantiles); Turner, Ly, Grünwald 2024 (streams); de la Peña 1999
//! (self-normalised); Johari, Koomen, Pekelis, Walsh 2017 (mSPRT); Waudby-Smith and others 2024 (asymptotic means).

use std::f64::consts::PI;

/// The conditional e-value of one interval: given that `e` of `n1 + n0` requests failed in it, were `x1` of them the
/// candidate's because the odds ratio is `psi` rather than `psi0`? Logarithm.
///
/// For `psi > psi0` the null is "the odds of failing are at most `psi0` times the baseline's", for `psi < psi0` "at
/// least". It is exact for every size, holds whatever the common rate of failures does, and for every split of the
/// traffic that was settled before the outcomes. An interval without failures tells nothing.
///
/// Takes time with the square root of `e`. `x1` beyond what the margins allow is taken as the nearest that they do.
pub fn odds(x1: u64, e: u64, n1: u64, n0: u64, psi: f64, psi0: f64) -> f64 {
    let margins = Margins::new(e, n1, n0);
    let x1 = x1.clamp(margins.least, margins.most);
    (x1 - margins.least) as f64 * (psi / psi0).ln() - (margins.log_sum(psi) - margins.log_sum(psi0))
}

/// The margins of a two by two table: all that [`odds`] needs to know of an interval besides its outcome.
#[derive(Clone, Copy, Debug)]
pub struct Margins {
    e: f64,
    n1: f64,
    n0: f64,
    /// The fewest failures the candidate can have had.
    pub least: u64,
    /// The most.
    pub most: u64,
}

impl Margins {
    /// `e` failures among `n1` requests of the candidate and `n0` of the baseline; at most `n1 + n0`.
    pub const fn new(e: u64, n1: u64, n0: u64) -> Self {
        let all = n1.saturating_add(n0);
        let e = if e > all { all } else { e };
        let most = if e < n1 { e } else { n1 };
        Self { e: e as f64, n1: n1 as f64, n0: n0 as f64, least: e.saturating_sub(n0), most }
    }

    /// The logarithm of `Σ C(n1,k) C(n0,e−k) s^(k−least)` over all `k`, less that of `C(n1,least) C(n0,e−least)`, which
    /// cancels wherever two of these are compared.
    pub fn log_sum(&self, s: f64) -> f64 {
        let Self { e, n1, n0, least, most } = *self;
        if least == most {
            return 0.0;
        }
        // How a term follows from the one before; they rise to one peak and fall from there.
        let step = |k: f64| (n1 - k) * (e - k) / ((k + 1.0) * (n0 - e + k + 1.0)) * s;
        let (least, most) = (least as f64, most as f64);
        let b = s * (n1 + e) + n0 - e + 2.0;
        let c = s * n1 * e - (n0 - e + 1.0);
        let root = 2.0 * c / (b + (b * b - 4.0 * (s - 1.0) * c).max(0.0).sqrt());
        let peak = (root.floor() + 1.0).clamp(least, most);
        let (mut sum, mut term, mut k) = (1.0, 1.0, peak);
        while k < most && term > sum * NOTHING {
            term *= step(k);
            sum += term;
            k += 1.0;
        }
        (term, k) = (1.0, peak);
        while k > least && term > sum * NOTHING {
            k -= 1.0;
            term /= step(k);
            sum += term;
        }
        let table = |k: f64| ln_choose(n1, k) + ln_choose(n0, e - k);
        let to_peak = if peak - least <= NEAR {
            let mut product = 0.0;
            let mut k = least;
            while k < peak {
                product += step(k).ln();
                k += 1.0;
            }
            product
        } else {
            table(peak) - table(least) + (peak - least) * s.ln()
        };
        to_peak + sum.ln()
    }
}

/// Terms of a sum below this part of it are left out.
const NOTHING: f64 = 1e-18;
/// Up to here a product of few ratios is taken rather than a difference of big logarithms.
const NEAR: f64 = 8.0;

/// The share test: `x` of `n` were the candidate's (or failed), is that more than the share `w`? Null: it is at most `w`.
/// Logarithm.
///
/// A mixture over all shares above `w`, weighted by Beta(`a`, `b`); `a = b = 1` knows nothing, and
/// `a = 1, b = (1−w)/w` looks close above a small `w`. For a fixed `w`; `x` and `n` may be fractions where counts were
/// tempered.
pub fn share(x: f64, n: f64, w: f64, a: f64, b: f64) -> f64 {
    let above = |a, b| ln_beta(a, b) + ln_beta_above(w, a, b);
    above(a + x, b + n - x) - above(a, b) - x * w.ln() - (n - x) * (-w).ln_1p()
}

/// The share `w` when the odds of it are raised `r` times: the margin of [`share`].
pub const fn raised(w: f64, r: f64) -> f64 {
    w * r / (w * r + 1.0 - w)
}

/// The sign test: the candidate was higher in `k` of `n` intervals. Null: higher and lower are equally likely, whatever
/// came before. Logarithm. Seven of seven reach 20, nine of nine 100.
pub fn sign(k: f64, n: f64) -> f64 {
    share(k, n, 0.5, 1.0, 1.0)
}

/// The self-normalised test: `s` is the sum of differences, each on a scale that was settled before it, `v` the sum of
/// their squares. Null: the differences are symmetric about zero, or lower. Logarithm. Asks for no variance at all.
pub fn self_normalised(s: f64, v: f64, rho: f64) -> f64 {
    0.5 * (4.0 * rho / (v + rho)).ln() + s * s / (2.0 * (v + rho)) + ln_phi(s / (v + rho).sqrt())
}

/// The `rho` with which a one-sided normal mixture is tightest at variance `v`, for this `alpha`.
pub fn tightest_rho(v: f64, alpha: f64) -> f64 {
    let twice = -2.0 * (2.0 * alpha).ln();
    v / (twice + twice.ln_1p())
}

/// The quantile test: is the candidate's `p`-quantile higher? Null: it is not, up to odds of `psi0` of being above the
/// baseline's quantile. Logarithm.
///
/// The counts are cumulated since the start, each bucket alone, the last one open; both have the same bounds. Buckets
/// cost power: the candidate's quantile has to leave the baseline's bucket. Each revision's latencies must come from one
/// distribution, so a drift common to both can mislead it, unlike [`odds`].
pub fn quantile(p: f64, psi0: f64, candidate: &[u64], baseline: &[u64]) -> f64 {
    let total = |counts: &[u64]| counts.iter().sum::<u64>() as f64;
    let (n1, n0) = (total(candidate), total(baseline));
    let w = raised(1.0 - p, psi0);
    // If the null is true there is a bucket j, that of the baseline's quantile, with two true nulls: the candidate is
    // rarely above bucket j, and the baseline is rarely below it. So the lowest product over all j is an e-value.
    let (mut above, mut below, mut lowest) = (n1, 0.0, f64::INFINITY);
    for (&of_candidate, &of_baseline) in candidate.iter().zip(baseline) {
        above -= of_candidate as f64;
        let higher = share(above, n1, w, 1.0, (1.0 - w) / w);
        let lower = share(below, n0, p, p / (1.0 - p), 1.0);
        lowest = f64::min(lowest, higher + lower);
        below += of_baseline as f64;
    }
    if lowest.is_finite() { lowest } else { 0.0 }
}

/// One block of two streams: `y1` of `n1` and `y0` of `n0` failed; guessed before were the rates `t1` and `t0`. Null: both
/// have the same rate, whichever. Logarithm.
pub fn streams((y1, n1): (u64, u64), (y0, n0): (u64, u64), t1: f64, t0: f64) -> f64 {
    let (y1, n1, y0, n0) = (y1 as f64, n1 as f64, y0 as f64, n0 as f64);
    let same = (n1 * t1 + n0 * t0) / (n1 + n0);
    let gain = |y: f64, n: f64, t: f64| y * (t / same).ln() + (n - y) * ((1.0 - t) / (1.0 - same)).ln();
    gain(y1, n1, t1) + gain(y0, n0, t0)
}

/// The mixture sequential probability ratio of `n` pairs with mean difference `d`, of values with standard deviation
/// `sigma`, mixed over N(0, `tau2`). Null: no difference. Logarithm. Only for many pairs where the values are not normal.
pub fn msprt(n: f64, d: f64, sigma: f64, tau2: f64) -> f64 {
    let v = 2.0 * sigma * sigma;
    let wide = v + n * tau2;
    0.5 * (v / wide).ln() + n * n * tau2 * d * d / (2.0 * v * wide)
}

/// How far the mean of `n` values may be from the truth, at all times at once with chance `1 − alpha`, for many values.
pub fn mean_radius(n: f64, sigma: f64, rho: f64, alpha: f64) -> f64 {
    let m = n * rho * rho + 1.0;
    sigma * (2.0 * m / (n * n * rho * rho) * (m.sqrt() / alpha).ln()).sqrt()
}

/// How far an empirical distribution of `t` values may be from the truth anywhere, at all times at once with chance
/// `1 − alpha`.
pub fn distribution_radius(t: f64, alpha: f64) -> f64 {
    0.85 * ((t.ln().ln_1p() + 0.8 * (1612.0 / alpha).ln()) / t).sqrt()
}

/// The rates that `k` of `n` leave possible, at all times at once with chance `1 − alpha`: for evidence, and the upper
/// end as a bound on the baseline.
pub fn rates(k: f64, n: f64, alpha: f64) -> (f64, f64) {
    if n <= 0.0 {
        return (0.0, 1.0);
    }
    let limit = -alpha.ln();
    let mixed = ln_beta(0.5 + k, 0.5 + n - k) - ln_beta(0.5, 0.5);
    let against = |p: f64| {
        let fit = if k > 0.0 { k * p.ln() } else { 0.0 } + if k < n { (n - k) * (-p).ln_1p() } else { 0.0 };
        mixed - fit
    };
    let best = k / n;
    // Between a rate that is possible and one that is not.
    let edge = |mut out: f64, mut inside: f64| {
        if against(out) < limit {
            return out;
        }
        for _ in 0..60 {
            let middle = 0.5 * (out + inside);
            if against(middle) < limit { inside = middle } else { out = middle }
        }
        out
    };
    (edge(0.0, best), edge(1.0, best))
}

/// The logarithm of a weighted sum of exponentials. Weighted averages of e-values are e-values, however they depend on
/// each other; products only of independent ones.
pub fn log_mix(parts: impl Iterator<Item = (f64, f64)> + Clone) -> f64 {
    let top = parts.clone().filter(|(weight, _)| *weight > 0.0).map(|(_, log)| log).fold(f64::NEG_INFINITY, f64::max);
    if !top.is_finite() {
        return top;
    }
    top + parts.map(|(weight, log)| weight * (log - top).exp()).sum::<f64>().ln()
}

/// The logarithm of the gamma function of `x > 0`.
pub fn ln_gamma(mut x: f64) -> f64 {
    // Stirling's series is exact to the last bit from here on; below, the argument is raised to it.
    let mut shift = 1.0;
    while x < 15.0 {
        shift *= x;
        x += 1.0;
    }
    let z = 1.0 / (x * x);
    let series = (1.0 / 12.0
        + z * (-1.0 / 360.0
            + z * (1.0 / 1260.0 + z * (-1.0 / 1680.0 + z * (1.0 / 1188.0 + z * (-691.0 / 360_360.0 + z / 156.0))))))
        / x;
    (x - 0.5) * x.ln() - x + 0.5 * (2.0 * PI).ln() + series - shift.ln()
}

/// The logarithm of the beta function of `a, b > 0`.
pub fn ln_beta(a: f64, b: f64) -> f64 {
    ln_gamma(a) + ln_gamma(b) - ln_gamma(a + b)
}

fn ln_choose(n: f64, k: f64) -> f64 {
    ln_gamma(n + 1.0) - ln_gamma(k + 1.0) - ln_gamma(n - k + 1.0)
}

/// The logarithm of the chance that a Beta(`a`, `b`) variable is above `w`, accurate where that is tiny.
pub fn ln_beta_above(w: f64, a: f64, b: f64) -> f64 {
    if w <= 0.0 {
        0.0
    } else if w >= 1.0 {
        f64::NEG_INFINITY
    } else if w > (a + 1.0) / (a + b + 2.0) {
        ln_beta_tail(1.0 - w, b, a)
    } else {
        (-ln_beta_tail(w, a, b).exp()).ln_1p()
    }
}

/// The logarithm of the regularised incomplete beta function, for `x` left of its bulk: Lentz' continued fraction.
fn ln_beta_tail(x: f64, a: f64, b: f64) -> f64 {
    const TINY: f64 = 1e-300;
    let keep = |v: f64| if v.abs() < TINY { TINY } else { v };
    let mut c = 1.0;
    let mut d = 1.0 / keep(1.0 - (a + b) * x / (a + 1.0));
    let mut fraction = d;
    for m in 1..20_000 {
        let m = f64::from(m);
        for term in [
            m * (b - m) * x / ((a + 2.0 * m - 1.0) * (a + 2.0 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2.0 * m) * (a + 2.0 * m + 1.0)),
        ] {
            d = 1.0 / keep(1.0 + term * d);
            c = keep(1.0 + term / c);
            fraction *= c * d;
        }
        if (c * d - 1.0).abs() < 1e-16 {
            break;
        }
    }
    a * x.ln() + b * (-x).ln_1p() - a.ln() - ln_beta(a, b) + fraction.ln()
}

/// The logarithm of the standard normal distribution function.
pub fn ln_phi(x: f64) -> f64 {
    let ln_density = -0.5 * x * x - 0.5 * (2.0 * PI).ln();
    if x < -4.0 {
        // Mills' ratio as a continued fraction, from its far end.
        let x = -x;
        let fraction = (1..=60).rev().fold(x, |below, k| x + f64::from(k) / below);
        return ln_density - fraction.ln();
    }
    if x > 1.0 {
        return (-ln_phi(-x).exp()).ln_1p();
    }
    let (mut sum, mut term, mut k) = (x, x, 1.0);
    while term.abs() > 1e-18 * sum.abs() {
        k += 2.0;
        term *= x * x / k;
        sum += term;
    }
    (ln_density.exp().mul_add(sum, 0.5)).ln()
}

#[cfg(test)]
mod tests {
    use std::f64::consts::LN_2;

    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn near(found: f64, known: f64) {
        assert!((found - known).abs() < 1e-9, "{found} is not {known}");
    }

    // The known values were each found by a second method: a noncentral hypergeometric law, quadrature, or enumeration.

    #[test]
    fn the_conditional_test_has_its_known_values() {
        near(odds(5, 8, 100, 900, 2.0, 1.0), 2.705_334_132_7);
        near(odds(0, 8, 100, 900, 2.0, 1.0), -0.760_401_770_1);
        near(odds(3, 40, 50, 950, 3.0, 1.25), -0.572_965_713_6);
        near(odds(12, 12, 1000, 9000, 10.0, 1.0), 19.942_098_343_8);
    }

    #[test]
    fn the_share_test_has_its_known_values() {
        near(share(5.0, 20.0, 0.05, 1.0, 1.0), 3.105_536_682_0);
        near(share(1.0, 20.0, 0.05, 1.0, 1.0), -2.351_375_257_2);
        near(share(30.0, 100.0, 0.1, 1.0, 1.0), 13.300_933_235_8);
        near(share(0.0, 10.0, 0.1, 1.0, 1.0), -2.397_895_272_8);
    }

    #[test]
    fn the_test_of_two_streams_has_its_known_values() {
        near(streams((2, 5), (1, 45), 0.05, 0.01), 2.276_013_900_1);
        let expected = |theta: f64| -> f64 {
            let chance = |y: u64, n: u64| {
                (ln_choose(n as f64, y as f64) + y as f64 * theta.ln() + (n - y) as f64 * (-theta).ln_1p()).exp()
            };
            let cells = (0..=5).flat_map(|y1| (0..=45).map(move |y0| (y1, y0)));
            cells.map(|(y1, y0)| chance(y1, 5) * chance(y0, 45) * streams((y1, 5), (y0, 45), 0.05, 0.01).exp()).sum()
        };
        for (theta, known) in [(0.005, 0.998_449_23), (0.01, 0.999_695_88), (0.3, 0.330_639_27)] {
            let found = expected(theta);
            assert!((found - known).abs() < 1e-8, "{found} is not {known}");
        }
    }

    #[test]
    fn tests_and_bounds_of_means_have_their_known_values() {
        near(msprt(100.0, 0.3, 1.0, 0.1), 0.979_120_265_4);
        near(self_normalised(12.0, 40.0, 3.0), 1.002_067_254_7);
        near(tightest_rho(40.0, 0.05), 6.320_253_962_7);
        near(mean_radius(1000.0, 1.0, 0.05, 0.05), 0.100_707_092_7);
        near(distribution_radius(1000.0, 0.05), 0.086_569_128_4);
    }

    #[test]
    fn the_sign_test_has_its_known_values() {
        near(sign(7.0, 7.0), 31.875_f64.ln());
        near(sign(7.0, 7.0), 3.461_822_003_5);
        near(sign(9.0, 10.0), 2.918_262_011_9);
        near(sign(20.0, 30.0), 0.799_349_349_0);
    }

    #[test]
    fn special_functions_have_their_known_values() {
        near(ln_gamma(0.5), 0.5 * PI.ln());
        near(ln_gamma(1.0), 0.0);
        near(ln_gamma(171.0), 706.573_062_245_787_4);
        near(ln_gamma(0.001), 6.907_178_885_383_853);
        near(ln_phi(0.0), -LN_2);
        near(ln_phi(1.0), -0.172_753_779_023_449_9);
        near(ln_phi(-3.9), -9.942304391691);
        near(ln_phi(-10.0), -53.231_285_150_512_47);
        assert!((ln_phi(9.0) / -1.128_588_4e-19 - 1.0).abs() < 1e-6, "{}", ln_phi(9.0));
    }

    #[test]
    fn normal_tails_meet_where_the_method_changes() {
        for x in [-4.0, 1.0] {
            let (left, right): (f64, f64) = (ln_phi(x - 1e-12), ln_phi(x + 1e-12));
            assert!((left / right - 1.0).abs() < 1e-9, "{left} and {right} at {x}");
        }
    }

    #[test]
    fn a_big_table_is_summed_as_well_as_a_small_one() {
        // Where the traffic is much more than the failures, the share of the failures is binomial.
        let (n1, n0) = (50_000_000_u64, 950_000_000_u64);
        let binomial = |psi: f64| 2000.0 * (1.0 - 0.05 + 0.05 * psi).ln();
        let found = odds(150, 2000, n1, n0, 2.0, 1.0);
        let known = 150.0 * LN_2 - (binomial(2.0) - binomial(1.0));
        assert!((found - known).abs() < 1e-3, "{found} is not {known}");
        // And failures among failures: both ways of counting are one.
        let e = 400_000;
        let (failed, passed) =
            (odds(200_500, e, 500_000, 500_000, 1.5, 1.0), odds(299_500, 600_000, 500_000, 500_000, 1.0 / 1.5, 1.0));
        assert!((failed - passed).abs() < 1e-5, "{failed} is not {passed}");
    }

    #[test]
    fn an_interval_in_which_nothing_or_everything_failed_tells_nothing() {
        assert_eq!(odds(0, 0, 100, 900, 3.0, 1.5), 0.0);
        assert_eq!(odds(100, 1000, 100, 900, 3.0, 1.5), 0.0);
        assert_eq!(odds(7, 7, 100, 0, 3.0, 1.5), 0.0, "and one with nothing to compare with");
        assert_eq!(odds(0, 0, 0, 0, 3.0, 1.5), 0.0);
    }

    #[test]
    fn rates_that_stay_possible_enclose_what_was_seen() {
        let (low, high) = rates(5.0, 1000.0, 0.05);
        assert!((0.0005..0.005).contains(&low) && (0.0085..0.02).contains(&high), "{low} to {high}");
        assert_eq!(rates(0.0, 50.0, 0.05).0, 0.0);
        assert_eq!(rates(50.0, 50.0, 0.05).1, 1.0);
        assert_eq!(rates(0.0, 0.0, 0.05), (0.0, 1.0));
    }

    #[test]
    fn a_quantile_that_leaves_its_bucket_is_seen_and_one_that_does_not_is_not() {
        let baseline = [0, 9000, 950, 50];
        assert!(quantile(0.95, 1.5, &[0, 500, 450, 50], &baseline) < 0.0, "still in the same bucket");
        assert!(quantile(0.95, 1.5, &[0, 500, 200, 300], &baseline) > 100_f64.ln());
        assert!(quantile(0.95, 1.5, &[0, 900, 95, 5], &baseline) < 0.0);
        assert!(quantile(0.95, 1.5, &[900, 95, 5, 0], &baseline) < 0.0, "faster is not slower");
        assert_eq!(quantile(0.95, 1.5, &[], &[]), 0.0);
    }

    /// The chance of each outcome of a table under an odds ratio.
    fn law(e: u64, n1: u64, n0: u64, psi: f64) -> Vec<(u64, f64)> {
        let terms: Vec<(u64, f64)> = (e.saturating_sub(n0)..=e.min(n1))
            .map(|k| {
                let table = ln_choose(n1 as f64, k as f64) + ln_choose(n0 as f64, (e - k) as f64);
                (k, (table + k as f64 * psi.ln()).exp())
            })
            .collect();
        let sum: f64 = terms.iter().map(|(_, term)| term).sum();
        terms.into_iter().map(|(k, term)| (k, term / sum)).collect()
    }

    proptest! {
        #[test]
        fn a_bet_on_the_odds_is_fair_at_the_margin_and_loses_below_it(
            n1 in 0..40u64, n0 in 0..60u64, part in 0.0..1.0f64, psi0 in 0.5..3.0f64, more in 1.05..30.0f64,
        ) {
            let e = (part * (n1 + n0) as f64).round() as u64;
            let expected = |truth: f64| -> f64 {
                law(e, n1, n0, truth).iter().map(|(x1, p)| p * odds(*x1, e, n1, n0, psi0 * more, psi0).exp()).sum()
            };
            prop_assert!((expected(psi0) - 1.0).abs() < 1e-9, "{}", expected(psi0));
            prop_assert!(expected(psi0 * 0.7) <= 1.0 + 1e-9);
            let passing = |truth: f64| -> f64 {
                law(e, n1, n0, truth).iter().map(|(x1, p)| p * odds(*x1, e, n1, n0, 1.0, psi0 * more).exp()).sum()
            };
            if psi0 * more > 1.0 {
                prop_assert!((passing(psi0 * more) - 1.0).abs() < 1e-9);
                prop_assert!(passing(psi0 * more * 1.5) <= 1.0 + 1e-9);
            }
        }

        #[test]
        fn a_bet_on_the_share_is_fair_at_the_margin_and_loses_below_it(n in 0..40u32, w in 0.01..0.9f64, a in 0.3..5.0f64) {
            let n = f64::from(n);
            let expected = |truth: f64| -> f64 {
                (0..=n as u32).map(f64::from).map(|x| {
                    let chance = ln_choose(n, x) + x * truth.ln() + (n - x) * (-truth).ln_1p();
                    (chance + share(x, n, w, a, 1.0)).exp()
                }).sum()
            };
            prop_assert!((expected(w) - 1.0).abs() < 1e-8, "{}", expected(w));
            prop_assert!(expected(w * 0.7) <= 1.0 + 1e-8);
        }
    }
}
