//! Does the candidate get the share of the tasks that was asked for?
//!
//! The e-value is a Dirichlet-multinomial one (Lindon, Malek, arXiv 2011.03567; of two versions: beta-binomial), with
//! Jeffreys' prior, valid at every look. But a sticky percent is a share of the *keys*. With few keys, or one that has
//! most of the tasks, the share of the tasks is far off with nothing wrong, and more tasks only make it surer. So the
//! null hypothesis is a wide band, and what is left is gross: a candidate that gets next to nothing (no worker has it,
//! or no key fell to it), or more than half of what should have stayed away from it (the gate is not obeyed, or one key
//! is nearly everything). Both are reasons to hold and look; neither accuses the candidate.

use serde::{Deserialize, Serialize};

use super::arms::Tally;

/// Less than this part of its share is next to nothing.
const NOTHING: f64 = 0.01;
/// More than this part of the other share is too much.
const TOO_MUCH: f64 = 0.5;
/// More tasks than this are not told apart: the logarithms of gamma functions would lose their digits.
const COUNTABLE: u64 = 1 << 40;

/// The tasks of one step; those hit are the candidate's.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct ShareTest {
    pub(super) tasks: Tally,
    /// The share that was asked for, at the last block.
    pub(super) share: f64,
}

impl ShareTest {
    pub(super) fn block(&mut self, active: u64, candidate: u64, share: f64) {
        self.share = share;
        self.tasks += Tally::new(active.saturating_add(candidate), candidate);
    }

    /// Logarithm of the e-value: how much better any share explains the counts than the best one within the band.
    pub(super) fn ln_e(&self) -> f64 {
        if !(self.share > 0.0 && self.share < 1.0) || self.tasks.n == 0 {
            return 0.0;
        }
        let shrink = (COUNTABLE as f64 / self.tasks.n as f64).min(1.0);
        let (candidate, active) = (self.tasks.hit as f64 * shrink, self.tasks.missed() as f64 * shrink);
        let (low, high) = (self.share * NOTHING, self.share + (1.0 - self.share) * TOO_MUCH);
        let nearest = self.tasks.rate().clamp(low, high);
        let any = ln_beta(candidate + 0.5, active + 0.5) - ln_beta(0.5, 0.5);
        any - candidate * nearest.ln() - active * (-nearest).ln_1p()
    }
}

fn ln_beta(a: f64, b: f64) -> f64 {
    libm::lgamma(a) + libm::lgamma(b) - libm::lgamma(a + b)
}

#[cfg(test)]
mod tests {
    use fastrand::Rng;
    use proptest::prelude::*;

    use super::*;

    const STEPS: [f64; 5] = [0.01, 0.05, 0.1, 0.25, 0.5];

    fn test(active: u64, candidate: u64, share: f64) -> bool {
        let mut test = ShareTest::default();
        test.block(active, candidate, share);
        test.ln_e() >= 1000f64.ln()
    }

    #[test]
    fn gross_mismatches_are_found() {
        // No worker has the candidate; the gate is obeyed by nobody; one key is everything.
        assert!(test(200_000, 0, 0.01) && test(20_000, 0, 0.1) && test(3_000, 0, 0.5));
        assert!(test(100, 100_000, 0.01) && test(0, 50, 0.1) && test(0, 50, 0.5));
        assert!(!test(99_000, 1_000, 0.01) && !test(90_000, 10_000, 0.1) && !test(50_000, 50_000, 0.5));
        assert!(
            !test(0, 1_000_000, 0.0) && !test(1_000_000, 0, 1.0) && !test(9, 9, f64::NAN),
            "none is expected"
        );
    }

    #[test]
    fn fair_coins_do_not_alarm_however_often_one_looks() {
        for seed in 0..50 {
            let mut rng = Rng::with_seed(seed);
            for share in STEPS {
                let mut test = ShareTest::default();
                for _ in 0..100 {
                    let candidate = (0..50).filter(|_| rng.f64() < share).count() as u64;
                    test.block(50 - candidate, candidate, share);
                    assert!(test.ln_e() < 1000f64.ln());
                }
            }
        }
    }

    /// Tenants of very different sizes, whole ones on either side: a sticky percent. What each sends is not counted by
    /// chance but in full, so that nothing but the keys makes the share.
    fn sticky(rng: &mut Rng, keys: u32, share: f64) -> ShareTest {
        let mut test = ShareTest::default();
        let (mut active, mut candidate) = (0, 0);
        for rank in 1..=keys {
            let tasks = u64::from(1_000_000 / rank / 8);
            if rng.f64() < share {
                candidate += tasks
            } else {
                active += tasks
            }
        }
        test.block(active, candidate, share);
        test
    }

    #[test]
    fn keys_of_very_different_sizes_do_not_alarm() {
        let mut rng = Rng::with_seed(3);
        for share in STEPS {
            let (mut alarms, mut strict) = (0, 0);
            for _ in 0..300 {
                let test = sticky(&mut rng, 2000, share);
                let expected = test.tasks.n as f64 * share;
                alarms += u32::from(test.ln_e() >= 1000f64.ln());
                strict += u32::from((test.tasks.hit as f64 - expected).abs() > 5.0 * expected.sqrt());
            }
            assert_eq!(alarms, 0, "at {share}");
            assert!(
                strict > 200,
                "a test against the share itself would fire nearly always: {strict}"
            );
        }
    }

    proptest! {
        #[test]
        fn no_number_is_too_large(blocks in prop::collection::vec((counts(), counts(), any::<f64>()), 1..9)) {
            let mut test = ShareTest::default();
            for (active, candidate, share) in blocks {
                test.block(active, candidate, share);
                prop_assert!(test.ln_e().is_finite());
            }
        }
    }

    fn counts() -> impl Strategy<Value = u64> {
        prop_oneof![Just(0), 0u64..1000, Just(u64::MAX / 4), 0..u64::MAX / 4]
    }
}
