//! When a failed attempt is tried again. Pure.

use std::time::Duration;

use sha1::{Digest, Sha1};

use crate::id::TaskId;

/// How often and how soon a failed task is tried again.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct RetryPolicy {
    /// Attempts in all, the first included. Defaults to 15.
    pub max_attempts: u32,
    /// Wait after the first failure. Defaults to 2 s.
    pub first: Duration,
    /// Longest wait. Defaults to 30 min.
    pub longest: Duration,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            max_attempts: 15,
            first: Duration::from_secs(2),
            longest: Duration::from_secs(30 * 60),
        }
    }
}

impl RetryPolicy {
    /// Attempts in all, the first included; at least 1.
    #[must_use]
    pub fn attempts(mut self, attempts: u32) -> Self {
        self.max_attempts = attempts.max(1);
        self
    }

    /// Wait after the first failure, and the longest wait: each further failure doubles it.
    #[must_use]
    pub fn backoff(mut self, first: Duration, longest: Duration) -> Self {
        self.first = first;
        self.longest = longest.max(first);
        self
    }

    /// The wait after `attempt` (counted from 1) failed, or `None` when that was the last one.
    ///
    /// Doubles from [`first`](Self::first) up to [`longest`](Self::longest), times 0.8 to 1.2 by task and attempt, so that
    /// tasks that failed together do not come back together.
    #[must_use]
    pub fn next_after(&self, attempt: u32, id: &TaskId) -> Option<Duration> {
        if attempt >= self.max_attempts {
            return None;
        }
        let doublings = attempt.saturating_sub(1).min(30);
        let plain = self.first.saturating_mul(1 << doublings).min(self.longest);
        let digest = Sha1::digest(format!("{id}:{attempt}").as_bytes());
        let jitter = 0.8 + 0.4 * f64::from(u16::from_be_bytes([digest[0], digest[1]])) / 65_535.0;
        Some(plain.mul_f64(jitter))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn waits_stay_within_their_bounds(attempt in 1u32..200, max in 1u32..200, text in "[a-z]{1,8}") {
            let policy = RetryPolicy::default().attempts(max);
            let id: TaskId = text.parse().unwrap();
            match policy.next_after(attempt, &id) {
                None => prop_assert!(attempt >= max),
                Some(wait) => {
                    prop_assert!(attempt < max);
                    prop_assert!(wait >= policy.first.mul_f64(0.8));
                    prop_assert!(wait <= policy.longest.mul_f64(1.2));
                }
            }
        }
    }
}
