//! When a failed attempt is tried again. Pure.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha1::{Digest, Sha1};

use crate::{id::TaskId, span};

/// Most attempts that a rule may name.
pub const MAX_ATTEMPTS: u32 = 10_000;
/// Longest wait that a rule may name: 30 days.
pub const MAX_WAIT: Duration = Duration::from_secs(30 * 24 * 3_600);
/// Longest rule, in bytes of JSON.
const MAX_RULE_BYTES: usize = 4 * 1024;

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

/// What people set of a queue's retry policy; what is absent is as the worker's code has it.
///
/// JSON in a field of the queue's policy hash, so that `HSET` by hand is enough: `{"max_attempts":5,"first":"2s"}`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
// A misspelt field must not leave a queue with the code's policy in silence.
#[serde(deny_unknown_fields)]
pub struct RetryRule {
    /// Attempts in all, the first included: 1 to 10 000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_attempts: Option<u32>,
    /// Wait after the first failure, at most 30 days.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "spelled")]
    pub first: Option<Duration>,
    /// Longest wait, at most 30 days.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "spelled")]
    pub longest: Option<Duration>,
}

impl RetryRule {
    /// Reads what lies in the hash.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(json: &[u8]) -> Result<Self, String> {
        if json.len() > MAX_RULE_BYTES {
            return Err(format!("it is {} bytes, the limit is {MAX_RULE_BYTES}", json.len()));
        }
        let rule: Self = serde_json::from_slice(json).map_err(|e| e.to_string())?;
        rule.check()?;
        Ok(rule)
    }

    /// Checks the values.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn check(&self) -> Result<(), String> {
        if let Some(attempts) = self.max_attempts.filter(|n| !(1..=MAX_ATTEMPTS).contains(n)) {
            return Err(format!(
                "max_attempts is {attempts}, not a number from 1 to {MAX_ATTEMPTS}"
            ));
        }
        for (name, wait) in [("first", self.first), ("longest", self.longest)] {
            if let Some(wait) = wait.filter(|wait| *wait > MAX_WAIT) {
                return Err(format!("{name} is {}, the limit is 30 days", span::words(wait)));
            }
        }
        match (self.first, self.longest) {
            (Some(first), Some(longest)) if first > longest => Err(format!(
                "first is {}, more than longest, {}",
                span::words(first),
                span::words(longest)
            )),
            _ => Ok(()),
        }
    }

    /// `code` with what the rule says in its place.
    #[must_use]
    pub fn over(&self, code: &RetryPolicy) -> RetryPolicy {
        let (first, longest) = match (self.first, self.longest) {
            (None, Some(longest)) => (code.first.min(longest), longest),
            (first, longest) => (first.unwrap_or(code.first), longest.unwrap_or(code.longest)),
        };
        RetryPolicy::default()
            .attempts(self.max_attempts.unwrap_or(code.max_attempts))
            .backoff(first, longest)
    }
}

/// Lengths of time as text.
mod spelled {
    use std::time::Duration;

    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    use crate::span;

    pub(super) fn serialize<S: Serializer>(wait: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
        match wait {
            Some(wait) => serializer.serialize_str(&span::words(*wait)),
            None => serializer.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
        let text = String::deserialize(deserializer)?;
        span::parse(&text).map(Some).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_rule_overrides_what_it_names() {
        let code = RetryPolicy::default();
        let rule = |json: &str| RetryRule::parse(json.as_bytes());
        assert_eq!(rule("{}").unwrap().over(&code), code);
        let few = rule(r#"{"max_attempts": 3}"#).unwrap().over(&code);
        assert_eq!(
            (few.max_attempts, few.first, few.longest),
            (3, code.first, code.longest)
        );
        let short = rule(r#"{"longest": "1s"}"#).unwrap().over(&code);
        assert_eq!(
            (short.first, short.longest),
            (Duration::from_secs(1), Duration::from_secs(1))
        );
        let slow = rule(r#"{"first": "2h"}"#).unwrap().over(&code);
        assert_eq!(
            (slow.first, slow.longest),
            (Duration::from_secs(7_200), Duration::from_secs(7_200))
        );
        for wrong in [
            "",
            "3",
            r#"{"max_attempts": 0}"#,
            r#"{"max_attempt": 3}"#,
            r#"{"first": 2}"#,
            r#"{"first": "soon"}"#,
            r#"{"first": "2m", "longest": "1m"}"#,
            r#"{"longest": "31d"}"#,
        ] {
            assert!(rule(wrong).is_err(), "{wrong}");
        }
    }

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
