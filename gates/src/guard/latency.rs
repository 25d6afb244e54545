//! Longer than the active version's median, or than its p95?
//!
//! The bounds are frozen once, from the active version; from then on "longer than the bound" is a yes or no of each
//! attempt, and two rates are compared like failures. No assumption about how long tasks take, and no mean of
//! quantiles: the bounds are bounds of buckets, so the counts are exact.

use std::{collections::BTreeMap, time::Duration};

use serde::{Deserialize, Serialize};
use switchback_common::took;

/// How long the active version takes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Baseline {
    /// Still counting.
    Counting(BTreeMap<u8, u64>),
    /// Buckets that half, 5 % and 1 % of the attempts took longer than, at most.
    Frozen {
        /// The median.
        p50: u8,
        /// The p95.
        p95: u8,
        /// The p99.
        p99: u8,
    },
}

impl Default for Baseline {
    fn default() -> Self {
        Self::Counting(BTreeMap::new())
    }
}

impl Baseline {
    /// Counts until `enough`, then freezes.
    pub(super) fn learn(&mut self, took: &BTreeMap<u8, u64>, enough: u64) {
        let Self::Counting(counts) = self else { return };
        for (bucket, count) in took {
            let sum = counts.entry((*bucket).min(took::LAST)).or_default();
            *sum = sum.saturating_add(*count);
        }
        if total(counts) >= u128::from(enough) {
            *self = Self::Frozen {
                p50: quantile(counts, 50),
                p95: quantile(counts, 5),
                p99: quantile(counts, 1),
            };
        }
    }

    /// The bounds, as buckets, once there are any.
    pub(super) fn bounds(&self) -> Option<(u8, u8)> {
        match self {
            Self::Counting(_) => None,
            Self::Frozen { p50, p95, .. } => Some((*p50, *p95)),
        }
    }

    /// How many attempts have been counted, until it is frozen.
    pub(super) fn counted(&self) -> Option<u64> {
        match self {
            Self::Counting(counts) => Some(u64::try_from(total(counts)).unwrap_or(u64::MAX)),
            Self::Frozen { .. } => None,
        }
    }

    /// How long nearly all attempts take, as far as is known.
    pub(super) fn p99(&self) -> Duration {
        match self {
            Self::Counting(counts) if counts.is_empty() => Duration::ZERO,
            Self::Counting(counts) => took::bound(quantile(counts, 1)),
            Self::Frozen { p99, .. } => took::bound(*p99),
        }
    }
}

fn total(counts: &BTreeMap<u8, u64>) -> u128 {
    counts.values().map(|count| u128::from(*count)).sum()
}

/// The lowest bucket that at most `percent` of the attempts lie above.
fn quantile(counts: &BTreeMap<u8, u64>, percent: u128) -> u8 {
    let all = total(counts);
    let mut above = 0;
    for (bucket, count) in counts.iter().rev() {
        above += u128::from(*count);
        if above * 100 > all * percent {
            return *bucket;
        }
    }
    0
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn at_most_that_many_take_longer_and_one_bucket_less_would_be_more(
            counts in prop::collection::btree_map(0u8..=took::LAST, 1u64..1000, 1..40), percent in 1u128..60,
        ) {
            let bucket = quantile(&counts, percent);
            let above = |bucket: u8| counts.range(bucket + 1..).map(|(_, count)| u128::from(*count)).sum::<u128>();
            prop_assert!(above(bucket) * 100 <= total(&counts) * percent);
            prop_assert!(bucket == 0 || above(bucket - 1) * 100 > total(&counts) * percent);
        }

        #[test]
        fn no_number_is_too_large(blocks in prop::collection::vec(
            prop::collection::btree_map(any::<u8>(), prop_oneof![Just(u64::MAX / 4), 1u64..100], 0..9), 1..9,
        )) {
            let mut baseline = Baseline::default();
            for block in &blocks {
                baseline.learn(block, 1 << 60);
                let p99 = baseline.p99();
                prop_assert!(baseline.bounds().is_none_or(|(p50, p95)| p50 <= p95 && took::bound(p95) <= p99));
            }
        }
    }

    #[test]
    fn bounds_are_frozen_once() {
        let mut baseline = Baseline::default();
        baseline.learn(&BTreeMap::from([(10, 60), (20, 38)]), 100);
        assert_eq!((baseline.bounds(), baseline.counted()), (None, Some(98)));
        baseline.learn(&BTreeMap::from([(30, 2)]), 100);
        assert_eq!(
            baseline,
            Baseline::Frozen {
                p50: 10,
                p95: 20,
                p99: 30
            }
        );
        baseline.learn(&BTreeMap::from([(90, 1_000_000)]), 100);
        assert_eq!(baseline.bounds(), Some((10, 20)));
    }
}
