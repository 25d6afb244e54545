//! The retry policy in force: the one in the code, or what people set of it in Redis.

use std::sync::{Mutex, PoisonError};

use switchback_common::retry::{RetryPolicy, RetryRule};

/// Read per failed attempt, set when a look brought something else.
#[derive(Debug)]
pub(crate) struct Retries {
    code: RetryPolicy,
    now: Mutex<RetryPolicy>,
}

impl Retries {
    pub(crate) fn new(code: &RetryPolicy) -> Self {
        Self {
            code: code.clone(),
            now: Mutex::new(code.clone()),
        }
    }

    pub(crate) fn get(&self) -> RetryPolicy {
        self.now.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What people set; without it the code's policy holds again.
    pub(crate) fn set(&self, rule: Option<&RetryRule>) {
        let policy = rule.map_or_else(|| self.code.clone(), |rule| rule.over(&self.code));
        *self.now.lock().unwrap_or_else(PoisonError::into_inner) = policy;
    }
}
