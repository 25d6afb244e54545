//! Handlers: what an application writes, and what it may say about an attempt.

use std::{collections::BTreeMap, fmt, pin::Pin, sync::Arc, time::Duration};

use serde::{Serialize, de::DeserializeOwned};
use switchback_common::{Queue, TaskId, Version, clock::Moment};
use tokio_util::sync::CancellationToken;

use crate::{
    results::{Returned, returned},
    running::Reporter,
};

/// What a handler knows about its attempt.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Context {
    /// The task's id: the same at every attempt.
    pub id: TaskId,
    /// Its queue.
    pub queue: Queue,
    /// The version this is.
    pub version: Version,
    /// Which attempt this is, from 1.
    pub attempt: u32,
    /// How often a worker was lost while it held this task: above 0, an earlier attempt may have done part of the work.
    pub recovered: u32,
    /// What the sticky percent and pins look at, if the producer gave it.
    pub key: Option<Arc<str>>,
    /// How often its handler put it off with [`TaskError::snooze`].
    pub snoozes: u32,
    /// When it was enqueued, ms since 1970.
    pub enqueued_at_ms: u64,
    /// Headers, e.g. `traceparent`.
    pub headers: BTreeMap<String, String>,
    /// The moment the start check was passed.
    pub started: Moment,
    /// The gate revision it was decided under.
    pub gate_rev: u64,
    /// For the tests' own records.
    #[cfg(feature = "faults")]
    pub evidence: crate::faults::Evidence,
    /// Fires when the attempt should end: timeout, shutdown, lost session, the task was cancelled, or a flip of the gate
    /// stopped what runs on its version. A handler that ignores it is dropped at an `.await`: at once, or when the grace is
    /// over (5 s for a cancelled task, and after a flip).
    pub cancelled: CancellationToken,
    /// Whether what the handler returns is kept.
    pub(crate) keeps_result: bool,
    pub(crate) reporter: Reporter,
}

impl Context {
    /// Says how far the attempt is, for `Producer::wait` and `switchback task show`. Never waits: the latest word is
    /// written to Redis at most every 200 ms, and kept as long as the task's result, or an hour. `note` is cut to 200
    /// bytes.
    pub fn progress(&self, done: u64, total: u64, note: impl AsRef<str>) {
        self.reporter
            .say(self.attempt, &self.version, done, total, note.as_ref());
    }
}

/// Why an attempt did not succeed.
///
/// Any error converts into one that is tried again; `?` just works.
#[derive(Debug)]
pub struct TaskError {
    pub(crate) kind: ErrorKind,
    pub(crate) text: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ErrorKind {
    /// Try again by the policy.
    Failed,
    /// Try again after this long.
    RetryAfter(Duration),
    /// Later, and this does not count as an attempt.
    Snoozed(Duration),
    /// Never again.
    Rejected,
    /// Not even JSON: never again, and not the handler's doing.
    Malformed,
}

impl TaskError {
    /// A failure that is tried again by the task type's policy.
    pub fn failed(error: impl fmt::Display) -> Self {
        Self {
            kind: ErrorKind::Failed,
            text: error.to_string(),
        }
    }

    /// A failure that is tried again after `wait`, as long as there are attempts left.
    pub fn retry_after(wait: Duration, error: impl fmt::Display) -> Self {
        Self {
            kind: ErrorKind::RetryAfter(wait),
            text: error.to_string(),
        }
    }

    /// Not now: run it again after `wait`. Not a failure; the attempt does not count.
    #[must_use]
    pub fn snooze(wait: Duration) -> Self {
        Self {
            kind: ErrorKind::Snoozed(wait),
            text: String::new(),
        }
    }

    /// A failure that no repetition can mend: the task becomes a dead letter now.
    pub fn reject(reason: impl fmt::Display) -> Self {
        Self {
            kind: ErrorKind::Rejected,
            text: reason.to_string(),
        }
    }
}

impl<E: std::error::Error> From<E> for TaskError {
    fn from(error: E) -> Self {
        // The whole chain: the cause is what one looks for at night.
        let mut text = error.to_string();
        let mut cause = error.source();
        while let Some(inner) = cause {
            text.push_str(": ");
            text.push_str(&inner.to_string());
            cause = inner.source();
        }
        Self::failed(text)
    }
}

/// A running handler with its type forgotten: in the end what it returned, if that is kept.
pub(crate) type Running = Pin<Box<dyn Future<Output = Result<Option<Returned>, TaskError>> + Send>>;

/// A handler with its type forgotten.
#[derive(Clone)]
pub(crate) struct Handler {
    /// Payload and context in, attempt out.
    pub(crate) run: Arc<dyn Fn(Vec<u8>, Context) -> Running + Send + Sync>,
    /// Whether the handler could take a payload; runs nothing of it.
    pub(crate) reads: fn(&[u8]) -> Result<(), TaskError>,
}

pub(crate) fn erase<T, F, Fut, R>(handler: F) -> Handler
where
    T: DeserializeOwned + Send + 'static,
    F: Fn(T, Context) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<R, TaskError>> + Send + 'static,
    R: Serialize,
{
    let run = move |payload: Vec<u8>, context: Context| -> Running {
        match read::<T>(&payload) {
            Ok(task) => {
                let keeps_result = context.keeps_result;
                let running = handler(task, context);
                Box::pin(async move {
                    let value = running.await?;
                    Ok(keeps_result.then(|| returned(&value)))
                })
            }
            Err(error) => Box::pin(std::future::ready(Err(error))),
        }
    };
    Handler {
        run: Arc::new(run),
        reads: |payload| read::<T>(payload).map(drop),
    }
}

/// JSON of another shape may suit another version; what is not JSON suits none.
fn read<T: DeserializeOwned>(payload: &[u8]) -> Result<T, TaskError> {
    serde_json::from_slice(payload).map_err(|error| match error.classify() {
        serde_json::error::Category::Data => TaskError::failed(format!("payload does not fit this version: {error}")),
        _ => TaskError {
            kind: ErrorKind::Malformed,
            text: format!("payload is not JSON: {error}"),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_version_reads_is_known_without_running_it() {
        let handler = erase::<(u8, String), _, _, ()>(|_, _| std::future::pending());
        assert!((handler.reads)(br#"[1,"a"]"#).is_ok());
        let other = (handler.reads)(br#"{"n":1}"#).unwrap_err();
        assert_eq!(other.kind, ErrorKind::Failed);
        assert_eq!((handler.reads)(b"[1,").unwrap_err().kind, ErrorKind::Malformed);
        assert_eq!((handler.reads)(b"").unwrap_err().kind, ErrorKind::Malformed);
    }
}
