//! How long an attempt took, as one of a few numbers that add up. Pure.
//!
//! Workers count attempts by bucket, and counts of different workers add. Whether an attempt took longer than a bound
//! is then an exact yes or no, which no mean or quantile of means is.

use std::time::Duration;

/// The last bucket: everything from 24 days on.
pub const LAST: u8 = 125;

/// From this bucket on (it ends at 1.024 s) an attempt is counted as soon as it has outlasted one, ended or not: what hangs may
/// not end for hours. Workers that share a rollout must agree on it.
pub const LONG: u8 = 40;

/// The quarters of the octave that begins at 1 ms, in nanoseconds.
const QUARTERS: [u64; 4] = [1_000_000, 1_189_207, 1_414_214, 1_681_793];

/// The bucket of a duration: 0 below 1 ms, then four to each doubling.
#[must_use]
pub fn bucket(took: Duration) -> u8 {
    let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
    let Some(octave) = (nanos / QUARTERS[0]).checked_ilog2() else {
        return 0;
    };
    let quarters = QUARTERS
        .iter()
        .filter(|quarter| u128::from(**quarter) << octave <= u128::from(nanos))
        .count();
    u8::try_from(4 * octave as usize + quarters).map_or(LAST, |bucket| bucket.min(LAST))
}

/// What every duration of a bucket is below. The last bucket has no such bound: it is [`Duration::MAX`].
#[must_use]
pub fn bound(bucket: u8) -> Duration {
    if bucket >= LAST {
        return Duration::MAX;
    }
    Duration::from_nanos(QUARTERS[usize::from(bucket % 4)] << (bucket / 4))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn buckets_are_what_anyone_can_compute() {
        for (micros, expected) in [
            (0, 0),
            (999, 0),
            (1_000, 1),
            (1_189, 1),
            (1_190, 2),
            (1_415, 3),
            (1_682, 4),
            (2_000, 5),
            (1_000_000, 40),
            (60_000_000, 64),
        ] {
            assert_eq!(bucket(Duration::from_micros(micros)), expected, "{micros} µs");
        }
        assert_eq!(bucket(Duration::MAX), LAST);
        assert_eq!(bound(0), Duration::from_millis(1));
        assert_eq!(bound(4), Duration::from_millis(2));
        assert_eq!(bound(LAST - 1), Duration::from_millis(1 << 31));
    }

    proptest! {
        #[test]
        fn a_duration_lies_between_the_bounds_of_its_bucket(nanos in prop_oneof![0u64..1 << 24, any::<u64>()]) {
            let took = Duration::from_nanos(nanos);
            let bucket = bucket(took);
            prop_assert!(bucket == LAST || took < bound(bucket));
            prop_assert!(bucket == 0 || took >= bound(bucket - 1));
        }

        #[test]
        fn longer_is_never_a_lower_bucket(a in any::<u64>(), b in any::<u64>(), shift in 0u32..64) {
            let (a, b) = (a >> shift, b >> shift);
            let (low, high) = (Duration::from_nanos(a.min(b)), Duration::from_nanos(a.max(b)));
            prop_assert!(bucket(low) <= bucket(high));
        }

        #[test]
        fn bounds_rise(bucket in 0u8..LAST) {
            prop_assert!(bound(bucket) < bound(bucket + 1));
        }
    }
}
