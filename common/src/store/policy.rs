//! Policies of a queue that people set: how failures are retried, and how rollouts go by default.
//!
//! JSON in two fields of one hash: [`set`], or `HSET` by hand. A retry policy here takes the place of the one in the code.

use redis::{Cmd, Value};

use super::{
    connect::Store,
    error::StoreError,
    keyspace::Key,
    limits::{self, Edit, Limits, Put},
    reply::{self, field_text},
};
use crate::{name::Queue, retry::RetryRule, throttle::Throttle};

/// Longest policy, in bytes of JSON: every worker reads them again and again.
pub const MAX_POLICY_BYTES: usize = 16 * 1024;

/// A field of the hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Policy {
    /// When a failed task is tried again: [`RetryRule`].
    Retry,
    /// How a rollout goes when nobody says otherwise.
    Rollout,
}

impl Policy {
    /// Its field.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Retry => "retry",
            Self::Rollout => "rollout",
        }
    }
}

/// The hash, as it lies there. Empty is absent.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Policies {
    /// Of [`Policy::Retry`]; JSON if somebody was careful.
    pub retry: String,
    /// Of [`Policy::Rollout`].
    pub rollout: String,
    /// What else lies there, and does not count.
    pub problems: Vec<String>,
}

impl Policies {
    /// One of them.
    #[must_use]
    pub fn get(&self, policy: Policy) -> &str {
        match policy {
            Policy::Retry => &self.retry,
            Policy::Rollout => &self.rollout,
        }
    }

    /// The retry rule; `None`: there is none.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn retry(&self) -> Result<Option<RetryRule>, String> {
        if self.retry.is_empty() {
            return Ok(None);
        }
        RetryRule::parse(self.retry.as_bytes()).map(Some).map_err(|problem| {
            format!("the retry policy makes no sense ({problem}): workers keep to the last valid one")
        })
    }
}

/// What a worker obeys beside the gate.
#[derive(Debug, Clone)]
pub struct Rules {
    /// Limits.
    pub limits: Limits,
    /// The retry rule, or what is wrong with it.
    pub retry: Result<Option<RetryRule>, String>,
}

fn key(store: &Store, queue: &Queue) -> String {
    store.keyspace().render(&Key::Policy(queue.clone()))
}

/// The policies of a queue. A key of another type is reported, like any value without sense.
///
/// # Errors
/// When Redis does not answer.
pub async fn read(store: &Store, queue: &Queue) -> Result<Policies, StoreError> {
    let key = key(store, queue);
    let mut cmd = Cmd::new();
    cmd.arg("HGETALL").arg(&key);
    let found = match store.warm().await?.run(cmd).await {
        Err(error) if is_of_another_type(&error) => {
            let text = format!("{key} is not a hash: none of it counts; delete it");
            return Ok(Policies {
                problems: vec![text],
                ..Policies::default()
            });
        }
        found => reply::fields("policy", found?)?,
    };
    let known = [Policy::Retry, Policy::Rollout].map(Policy::name);
    let unknown = found.iter().map(|(name, _)| String::from_utf8_lossy(name));
    let unknown = unknown.filter(|name| !known.contains(&name.as_ref())).take(20);
    Ok(Policies {
        retry: field_text(&found, Policy::Retry.name()),
        rollout: field_text(&found, Policy::Rollout.name()),
        problems: unknown
            .map(|name| format!("there is no policy {:?}", crate::envelope::clip(&name, 40)))
            .collect(),
    })
}

/// Limits and retry rule, in one round trip, for a worker that has kept to `last` so far.
///
/// # Errors
/// When Redis does not answer.
pub async fn rules(store: &Store, queue: &Queue, last: &Throttle) -> Result<Rules, StoreError> {
    let link = store.warm().await?;
    let mut pipe = redis::pipe();
    pipe.cmd("HGETALL").arg(limits::key(store, queue));
    pipe.cmd("HGET").arg(key(store, queue)).arg(Policy::Retry.name());
    let mut replies = link.run_pipe(&mut pipe).await?.into_iter();
    let mut next = || replies.next().unwrap_or(Ok(Value::Nil)).map_err(|e| link.error(e));
    let limits = limits::understood(store, queue, next(), last)?;
    let retry = match next() {
        // P8: `SET` for `HSET` is no other policy than the last one.
        Err(error) if is_of_another_type(&error) => Err("the policies are no hash: delete the key".to_owned()),
        found => Policies {
            retry: reply::text("policy", found?)?,
            ..Policies::default()
        }
        .retry(),
    };
    Ok(Rules { limits, retry })
}

/// Sets a policy, or removes it (empty), if it is still `expected`; a change leaves one entry in the log.
///
/// # Errors
/// When Redis does not answer; doing it again is harmless.
pub async fn set(
    store: &Store,
    queue: &Queue,
    policy: Policy,
    expected: &str,
    json: &str,
    by: &str,
    why: &str,
) -> Result<Put, StoreError> {
    let edit = Edit {
        field: policy.name().to_owned(),
        expected: Some(expected.to_owned()),
        value: json.to_owned(),
    };
    limits::put(store, queue, &key(store, queue), "policy", &[edit], by, why).await
}

pub(crate) fn is_of_another_type(error: &StoreError) -> bool {
    matches!(error, StoreError::Redis { source, .. } if source.code() == Some("WRONGTYPE"))
}
