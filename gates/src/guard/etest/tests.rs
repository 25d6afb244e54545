//! Why the test may be trusted: an exact property, then coins, then coins thrown at tests that are wrong on purpose.

use fastrand::Rng;
use proptest::prelude::*;

use super::*;

/// E[S] if the true rates are `p` and `q`: exact, as the outcomes are independent.
fn ln_expectation(n_a: u32, a: f64, n_b: u32, b: f64, margin: f64, p: f64, q: f64) -> f64 {
    let theta = null_point(f64::from(n_a), a, f64::from(n_b), b, margin);
    let one = |rate: f64, alternative: f64, null: f64| {
        (rate * alternative / null + (1.0 - rate) * (1.0 - alternative) / (1.0 - null)).ln()
    };
    f64::from(n_a) * one(p, a, theta) + f64::from(n_b) * one(q, b, theta + margin)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, ..ProptestConfig::default() })]

    #[test]
    fn no_block_favours_the_alternative_under_the_null(
        n_a in 1u32..5000, n_b in 1u32..5000, a in 5e-6..0.9f64, worse in 1e-4..0.8f64,
        margin in prop_oneof![Just(0.0), 1e-3..0.1f64], p in 0.0..=1.0f64, lower in 0.0..=1.0f64, edge in any::<bool>(),
    ) {
        let allowed = a + margin;
        prop_assume!(allowed <= 0.99);
        let b = (allowed + worse).min(1.0 - (1.0 - allowed) / 8.0);
        // Any pair of rates within the null, and often the edge.
        let most = (p + margin).min(1.0);
        let q = if edge { most } else { most * lower };
        let ln = ln_expectation(n_a, a, n_b, b, margin, p, q);
        prop_assert!(ln <= 1e-9, "ln E[S] = {ln}");
    }

    #[test]
    fn no_block_favours_promotion_of_a_worse_candidate(
        n_a in 1u32..5000, n_b in 1u32..5000, a in 5e-6..0.9f64, margin in 1e-3..0.09f64, p in 0.0..=1.0f64,
        more in 0.0..=1.0f64, edge in any::<bool>(),
    ) {
        // The null is mirrored: at least `margin` worse.
        prop_assume!(p + margin <= 1.0);
        let q = if edge { p + margin } else { p + margin + (1.0 - p - margin) * more };
        let ln = ln_expectation(n_a, a, n_b, a, margin, p, q);
        prop_assert!(ln <= 1e-9, "ln E[S] = {ln}");
    }

    #[test]
    fn no_number_is_too_large(
        blocks in prop::collection::vec((counts(), counts(), counts(), counts()), 1..20), margin in 0.0..0.5f64,
    ) {
        let (mut test, mut base) = (ETest::default(), Base::default());
        for (n_a, x_a, n_b, x_b) in blocks {
            let (active, candidate) = (Tally::new(n_a, x_a), Tally::new(n_b, x_b));
            test.block(&base, active, candidate, margin, f64::INFINITY);
            base.learn(active);
            prop_assert!(test.ln_e().is_finite() && test.capital.iter().all(|capital| capital.is_finite()));
            prop_assert!(base.rate().is_none_or(|rate| rate > 0.0 && rate < 1.0));
        }
    }
}

fn counts() -> impl Strategy<Value = u64> {
    prop_oneof![Just(0), 0u64..1000, Just(u64::MAX / 4), 0..u64::MAX / 4]
}

#[test]
fn a_version_that_did_nothing_is_no_evidence() {
    let (mut test, mut base) = (ETest::default(), Base::default());
    base.learn(Tally::new(1000, 10));
    let before = test.clone();
    test.block(&base, Tally::new(0, 0), Tally::new(100, 100), 0.0, f64::INFINITY);
    test.block(&base, Tally::new(900, 9), Tally::new(0, 0), 0.0, f64::INFINITY);
    assert_eq!(test, before);
    test.block(
        &Base::default(),
        Tally::new(900, 9),
        Tally::new(100, 100),
        0.0,
        f64::INFINITY,
    );
    assert_eq!(test, before, "and without a baseline there is no alternative");
}

#[test]
fn a_candidate_that_turns_bad_late_is_found_soon() {
    let (mut test, mut base) = (ETest::default(), Base::default());
    let mut rng = Rng::with_seed(1);
    for _ in 0..1500 {
        let block = (throw(&mut rng, 100, 0.01), throw(&mut rng, 100, 0.01));
        test.block(&base, block.0, block.1, 0.005, f64::INFINITY);
        base.learn(block.0);
    }
    let found = (0..100).find(|_| {
        test.block(
            &base,
            throw(&mut rng, 100, 0.01),
            throw(&mut rng, 100, 0.3),
            0.005,
            f64::INFINITY,
        );
        test.ln_e() > 500.0f64.ln()
    });
    // Breaks where all capital is bet at the start: 15,000 good tasks would be held against 30 % of failures.
    assert!(found.is_some_and(|blocks| blocks < 2), "{found:?}");
}

fn throw(rng: &mut Rng, n: u64, p: f64) -> Tally {
    Tally::new(n, (0..n).filter(|_| rng.f64() < p).count() as u64)
}

/// How a test looks at one more block and says whether it alarms. The baseline is of earlier blocks.
type Look<'a> = dyn FnMut(&Base, Tally, Tally) -> bool + 'a;

/// Rollouts of a candidate exactly as bad as allowed, half of the tasks each, that alarm at any of their looks.
fn false_alarms(runs: u64, mut fresh: impl FnMut() -> Box<Look<'static>>) -> u64 {
    const MARGIN: f64 = 0.01;
    let mut alarms = 0;
    for run in 0..runs {
        let mut rng = Rng::with_seed(run);
        let (mut look, mut base) = (fresh(), Base::default());
        base.learn(throw(&mut rng, 1000, 0.05));
        for block in 0..150 {
            // Outages that hit both.
            let p = if block % 30 > 25 { 0.2 } else { 0.05 };
            let (active, candidate) = (throw(&mut rng, 30, p), throw(&mut rng, 30, p + MARGIN));
            if look(&base, active, candidate) {
                alarms += 1;
                break;
            }
            base.learn(active);
        }
    }
    alarms
}

const ALPHA: f64 = 0.05;
const RUNS: u64 = 400;
/// Five percent of the runs.
const BUDGET: u64 = 20;

#[test]
fn looking_at_every_block_keeps_the_budget() {
    let alarms = false_alarms(RUNS, || {
        let mut test = ETest::default();
        Box::new(move |base, active, candidate| {
            test.block(base, active, candidate, 0.01, f64::INFINITY);
            test.ln_e() >= (1.0 / ALPHA).ln()
        })
    });
    assert!(alarms <= BUDGET, "{alarms} of {RUNS}");
}

#[test]
fn peeking_with_a_test_for_one_look_does_not() {
    let alarms = false_alarms(RUNS, || {
        let (mut a, mut b) = (Tally::default(), Tally::default());
        Box::new(move |_, active, candidate| {
            a += active;
            b += candidate;
            let spread = |t: Tally| t.rate() * (1.0 - t.rate()) / t.n as f64;
            let deviation = (spread(a) + spread(b)).sqrt();
            deviation > 0.0 && (b.rate() - a.rate() - 0.01) / deviation > 1.645
        })
    });
    assert!(
        alarms > 3 * BUDGET,
        "{alarms} of {RUNS}: then this harness would not see a broken test"
    );
}

#[test]
fn learning_from_the_block_that_is_judged_does_not() {
    let alarms = false_alarms(RUNS, || {
        let mut test = ETest::default();
        Box::new(move |_, active, candidate| {
            let mut base = Base::default();
            base.learn(Tally::new(active.n * 10, active.hit * 10));
            test.block(&base, active, candidate, 0.01, f64::INFINITY);
            test.ln_e() >= (1.0 / ALPHA).ln()
        })
    });
    assert!(
        alarms > 3 * BUDGET,
        "{alarms} of {RUNS}: then this harness would not see a broken test"
    );
}

#[test]
fn a_null_point_that_is_not_the_nearest_does_not() {
    // θ at the alternative's own A: the first thing one would write.
    let alarms = false_alarms(RUNS, || {
        let mut ln = [0.0; 7];
        Box::new(move |base, active, candidate| {
            let Some(a) = base.rate() else { return false };
            let _ = active;
            for (worse, ln) in WORSE.iter().zip(&mut ln) {
                *ln += ln_ratio(candidate, (a + 0.01 + worse).min(0.98), a + 0.01);
            }
            ln.iter().copied().fold(f64::MIN, numbers::ln_add) - 7.0f64.ln() >= (1.0 / ALPHA).ln()
        })
    });
    assert!(
        alarms > 3 * BUDGET,
        "{alarms} of {RUNS}: an outage that hits both would accuse the candidate"
    );
}
