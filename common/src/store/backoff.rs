//! How long to wait before Redis is asked again. Pure, but for where its jitter begins.

use std::{
    hash::{BuildHasher, Hasher, RandomState},
    time::Duration,
};

/// Waits that double from a first to a longest, each shortened by up to a half at random: whoever lost Redis at the same
/// moment does not come back to it at the same moment.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    step: Duration,
    /// The state of the jitter; 0 before its first use.
    dice: u64,
}

impl Backoff {
    /// Waits from `first` up to `longest`.
    #[must_use]
    pub const fn new(first: Duration, longest: Duration) -> Self {
        Self {
            first,
            longest,
            step: first,
            dice: 0,
        }
    }

    /// The next wait: between a half and the whole of a step, and the step after it is twice as long.
    pub fn next_wait(&mut self) -> Duration {
        let step = self.step.min(self.longest);
        self.step = step.saturating_mul(2).min(self.longest);
        step.mul_f64(0.5 + 0.5 * self.roll())
    }

    /// It went well: the next trouble begins with the first wait again.
    pub const fn reset(&mut self) {
        self.step = self.first;
    }

    /// A number from 0 to 1 (xorshift: chance, not secrecy).
    fn roll(&mut self) -> f64 {
        if self.dice == 0 {
            // The one source of chance in the standard library: every hasher begins elsewhere.
            self.dice = RandomState::new().build_hasher().finish().max(1);
        }
        self.dice ^= self.dice << 13;
        self.dice ^= self.dice >> 7;
        self.dice ^= self.dice << 17;
        f64::from(u16::from_be_bytes([
            self.dice.to_be_bytes()[0],
            self.dice.to_be_bytes()[1],
        ])) / 65_535.0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn waits_double_up_to_the_longest_and_never_leave_their_step(first_ms in 1u64..1_000, times in 1u64..1_000) {
            let (first, longest) = (Duration::from_millis(first_ms), Duration::from_millis(first_ms * times));
            let mut backoff = Backoff::new(first, longest);
            for round in 0..2 {
                let mut step = first;
                for n in 0..40 {
                    let wait = backoff.next_wait();
                    prop_assert!(wait >= step / 2 && wait <= step, "round {round}, {n}: {wait:?} for {step:?}");
                    step = (step * 2).min(longest);
                }
                backoff.reset();
            }
        }
    }

    #[test]
    fn a_fleet_does_not_come_back_as_one() {
        let wait = || Backoff::new(Duration::from_secs(1), Duration::from_secs(1)).next_wait();
        let waits: std::collections::BTreeSet<Duration> = (0..100).map(|_| wait()).collect();
        assert!(waits.len() > 50, "{} different waits of 100", waits.len());
    }
}
