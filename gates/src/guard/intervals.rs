//! Intervals and a p-value for people to read. Nothing is decided by them, but that the burn takes a rate's upper end.
//!
//! They hold for one look at a number of tasks fixed beforehand. The guard's own tests hold at every look.

use super::arms::Tally;

/// The 97.5 % point of the normal distribution: 95 % lie between it and its negative.
const Z: f64 = 1.959_963_984_540_054;

/// Wilson's 95 % interval of a rate. Of nothing: from 0 to 1.
#[must_use]
pub fn wilson(hit: f64, n: f64) -> (f64, f64) {
    if n <= 0.0 {
        return (0.0, 1.0);
    }
    let p = (hit / n).clamp(0.0, 1.0);
    let z2 = Z * Z / n;
    let middle = p + z2 / 2.0;
    let half = Z * (p * (1.0 - p) / n + z2 / (4.0 * n)).sqrt();
    let whole = 1.0 + z2;
    ((middle - half).max(0.0) / whole, ((middle + half) / whole).min(1.0))
}

/// Newcombe's 95 % interval of how much higher the candidate's rate is: between -1 and 1.
#[must_use]
pub fn newcombe(active: Tally, candidate: Tally) -> (f64, f64) {
    let (p, q) = (candidate.rate(), active.rate());
    let (p_low, p_high) = wilson(candidate.hit as f64, candidate.n as f64);
    let (q_low, q_high) = wilson(active.hit as f64, active.n as f64);
    let below = (p - p_low).hypot(q_high - q);
    let above = (p_high - p).hypot(q - q_low);
    ((p - q - below).max(-1.0), (p - q + above).min(1.0))
}

/// Fisher's exact p-value, one-sided.
///
/// The chance that the candidate has at least so many of all hits, if each task was equally likely to be one. `None`
/// beyond a trillion tasks, where its logarithms lose their digits.
#[must_use]
pub fn fisher(active: Tally, candidate: Tally) -> Option<f64> {
    let all = u128::from(active.n) + u128::from(candidate.n);
    if all > 1 << 40 {
        return None;
    }
    let (n_b, hits, n) = (candidate.n as f64, (active.hit + candidate.hit) as f64, all as f64);
    let first = candidate.hit as f64;
    let mut ln_term = ln_choose(hits, first) + ln_choose(n - hits, n_b - first) - ln_choose(n, n_b);
    let (mut sum, mut k) = (0.0, first);
    while k <= hits.min(n_b) {
        let term = ln_term.exp();
        sum += term;
        let ratio = (hits - k) * (n_b - k) / ((k + 1.0) * (n - hits - n_b + k + 1.0));
        // Past the top the terms fall ever faster.
        if ratio <= 0.0 || (ratio < 1.0 && term < sum * 1e-17) {
            break;
        }
        ln_term += ratio.ln();
        k += 1.0;
    }
    Some(sum.min(1.0))
}

fn ln_choose(n: f64, k: f64) -> f64 {
    libm::lgamma(n + 1.0) - libm::lgamma(k + 1.0) - libm::lgamma(n - k + 1.0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn close(got: f64, expected: f64) -> bool {
        (got - expected).abs() < 5e-4
    }

    #[test]
    fn what_the_books_say() {
        // Newcombe 1998, tables I and II: 81/263; 56/70 against 48/80. Fisher's tea: 3 of 4 right.
        let (low, high) = wilson(81.0, 263.0);
        assert!(close(low, 0.2553) && close(high, 0.3662), "{low} {high}");
        let (low, high) = newcombe(Tally::new(80, 48), Tally::new(70, 56));
        assert!(close(low, 0.0524) && close(high, 0.3339), "{low} {high}");
        assert!(close(fisher(Tally::new(4, 1), Tally::new(4, 3)).unwrap(), 17.0 / 70.0));
        assert!(close(wilson(0.0, 59.0).1, 0.0611) && wilson(0.0, 0.0) == (0.0, 1.0));
    }

    proptest! {
        #[test]
        fn intervals_hold_their_rates(n in 1u64..1 << 40, m in 1u64..1 << 40, x in any::<u64>(), y in any::<u64>()) {
            let (a, b) = (Tally::new(n, x % (n + 1)), Tally::new(m, y % (m + 1)));
            let (low, high) = wilson(a.hit as f64, a.n as f64);
            prop_assert!((0.0..=1.0).contains(&low) && (0.0..=1.0).contains(&high));
            prop_assert!(low <= a.rate() + 1e-12 && a.rate() <= high + 1e-12);
            let (low, high) = newcombe(a, b);
            let difference = b.rate() - a.rate();
            prop_assert!(-1.0 <= low && low <= difference + 1e-12 && difference <= high + 1e-12 && high <= 1.0);
        }

        #[test]
        fn a_p_value_is_a_chance(n in 0u64..2000, x in 0u64..2000, m in 0u64..2000, y in 0u64..2000) {
            let p = fisher(Tally::new(n, x), Tally::new(m, y)).unwrap();
            prop_assert!((0.0..=1.0).contains(&p), "{}", p);
        }
    }
}
