//! Cancelling tasks: marks that claims obey, fenced like the gate.
//!
//! A mark costs nothing where there is none: the gate state, which every claim reads anyway, has a value that changes with
//! every mark, and only whoever sees another value than it knows reads the marks.

use std::time::Duration;

use redis::Value;

use super::{
    connect::Store,
    error::StoreError,
    inspect,
    keyspace::Key,
    reply::{self, unexpected},
    script,
};
use crate::{envelope::clip, id::TaskId, name::Queue};

/// Most marks of one queue that nobody has met yet.
pub const MAX_MARKS: usize = 10_000;
/// How long a mark is kept for a task that nobody meets.
pub const KEEP_MARKS: Duration = Duration::from_secs(7 * 24 * 3600);

const MAX_BY_BYTES: usize = 64;
const MAX_WHY_BYTES: usize = 500;

/// A cancellation to ask for.
#[derive(Debug, Clone, Default)]
pub struct CancelRequest {
    /// Only if no attempt of the task has begun.
    pub only_unstarted: bool,
    /// Who: goes into the log.
    pub by: String,
    /// Why: goes into the log.
    pub why: String,
}

/// What a cancellation met.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Cancelled {
    /// It was delayed, or between two attempts: it is gone.
    Removed,
    /// It waits: it will not start.
    Waiting,
    /// A worker holds it: it does not start any more, or its handler is told to end. If the handler succeeds all the
    /// same, the task is done.
    Running,
    /// It is not where its id leads: wherever it waits it will not start, and if it runs its handler is told.
    Marked,
    /// It has started, and was to be cancelled only if it had not: nothing was changed.
    Started,
    /// It was settled before: there is nothing to cancel.
    Settled,
}

impl Cancelled {
    /// Whether the task is, or will be, cancelled if it has not been settled before.
    #[must_use]
    pub fn took_effect(self) -> bool {
        !matches!(self, Self::Started | Self::Settled)
    }
}

/// Cancels one task. Repeating it is harmless.
///
/// From its reply on no gate read lets the task start (P3). A mark speaks of tasks that were enqueued before it: an id
/// that is enqueued again later is a new task.
///
/// # Errors
/// [`StoreError::CancelsFull`] past [`MAX_MARKS`]; or when Redis does not answer.
pub async fn cancel(
    store: &Store,
    queue: &Queue,
    task: &TaskId,
    request: &CancelRequest,
) -> Result<Cancelled, StoreError> {
    let key = |key: Key| store.keyspace().render(&key);
    let (stream, entry) = match inspect::own_place(store, queue, task) {
        Some((place, entry)) => (place, entry.to_string()),
        None => (Key::Stream(queue.clone()), String::new()),
    };
    let mut call = script::CANCEL.prepare_invoke();
    for name in [
        Key::Gate(queue.clone()),
        Key::GateState(queue.clone()),
        Key::Cancel(queue.clone()),
        Key::Delayed(queue.clone()),
        Key::Envelope(queue.clone()),
        Key::Log(queue.clone()),
        Key::Result(queue.clone(), task.to_string()),
        Key::UniqueId(queue.clone(), task.to_string()),
        stream,
    ] {
        call.key(key(name));
    }
    call.arg(task.to_string())
        .arg(if request.only_unstarted { "unstarted" } else { "" })
        .arg(entry)
        .arg(MAX_MARKS)
        .arg(u64::try_from(KEEP_MARKS.as_micros()).unwrap_or(u64::MAX))
        .arg(clip(&request.by, MAX_BY_BYTES))
        .arg(clip(&request.why, MAX_WHY_BYTES));
    let link = store.warm().await?;
    let (word, _) = reply::verdict("cancel", link.run_script(&call).await?)?;
    match word.as_str() {
        "removed" => Ok(Cancelled::Removed),
        "waiting" => Ok(Cancelled::Waiting),
        "running" => Ok(Cancelled::Running),
        "marked" => Ok(Cancelled::Marked),
        "started" => Ok(Cancelled::Started),
        "settled" => Ok(Cancelled::Settled),
        "full" => Err(StoreError::CancelsFull {
            queue: queue.to_string(),
            limit: MAX_MARKS,
        }),
        _ => Err(unexpected("cancel", &Value::SimpleString(word))),
    }
}

/// Takes a mark back.
///
/// # Errors
/// When Redis does not answer.
pub async fn lift(store: &Store, queue: &Queue, task: &TaskId) -> Result<(), StoreError> {
    let link = store.warm().await?;
    let mut cmd = redis::Cmd::new();
    cmd.arg("ZREM")
        .arg(store.keyspace().render(&Key::Cancel(queue.clone())))
        .arg(task.to_string());
    link.run(cmd).await?;
    Ok(())
}

/// One task's mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// When it was made, µs of Redis's clock: it speaks of tasks enqueued before.
    pub at_us: u64,
    /// It speaks of the task only as long as no attempt has begun.
    pub only_unstarted: bool,
}

impl Mark {
    fn of_score(score: f64) -> Self {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "microseconds since 1970, far below 2^53"
        )]
        let at_us = score.abs() as u64;
        Self {
            at_us,
            only_unstarted: score < 0.0,
        }
    }
}

/// The marks made after the value `after` of the gate state's `cancels`, and the value that they belong to: every mark up
/// to it is among them, or was before.
///
/// # Errors
/// When Redis does not answer.
pub async fn marks(store: &Store, queue: &Queue, after: u64) -> Result<(u64, Vec<(TaskId, Mark)>), StoreError> {
    let key = |key: Key| store.keyspace().render(&key);
    let marks = key(Key::Cancel(queue.clone()));
    let mut pipe = redis::pipe();
    // P3: the value first, so that no mark up to it can be missed.
    pipe.cmd("HGET").arg(key(Key::GateState(queue.clone()))).arg("cancels");
    pipe.cmd("ZRANGEBYSCORE")
        .arg(&marks)
        .arg(format!("({after}"))
        .arg("+inf")
        .arg("WITHSCORES");
    pipe.cmd("ZRANGEBYSCORE")
        .arg(&marks)
        .arg("-inf")
        .arg(format!("(-{after}"))
        .arg("WITHSCORES");
    let link = store.warm().await?;
    let mut replies = link.run_pipe(&mut pipe).await?.into_iter();
    let mut next =
        || -> Result<Value, StoreError> { replies.next().unwrap_or(Ok(Value::Nil)).map_err(|e| link.error(e)) };
    let value = reply::count("cancels", &next()?)?;
    let mut out = Vec::new();
    for scored in [next()?, next()?] {
        read_scored(scored, &mut out)?;
    }
    Ok((value, out))
}

/// One task's mark, if it has one.
///
/// # Errors
/// When Redis does not answer.
pub async fn mark_of(store: &Store, queue: &Queue, task: &TaskId) -> Result<Option<Mark>, StoreError> {
    let link = store.warm().await?;
    let mut cmd = redis::Cmd::new();
    cmd.arg("ZSCORE")
        .arg(store.keyspace().render(&Key::Cancel(queue.clone())))
        .arg(task.to_string());
    Ok(score(&link.run(cmd).await?).map(Mark::of_score))
}

/// Pairs of member and score, flat or nested as the protocol has it.
fn read_scored(value: Value, out: &mut Vec<(TaskId, Mark)>) -> Result<(), StoreError> {
    let mut flat = Vec::new();
    for item in reply::array("marks", value)? {
        match item {
            Value::Array(pair) => flat.extend(pair),
            other => flat.push(other),
        }
    }
    let mut flat = flat.into_iter();
    while let (Some(task), Some(value)) = (flat.next(), flat.next()) {
        // What is no id was put there by hand, and no task can have it.
        if let (Ok(task), Some(score)) = (reply::text("marks", task)?.parse(), score(&value)) {
            out.push((task, Mark::of_score(score)));
        }
    }
    Ok(())
}

fn score(value: &Value) -> Option<f64> {
    match value {
        Value::Double(score) => Some(*score),
        Value::BulkString(bytes) => std::str::from_utf8(bytes).ok()?.parse().ok(),
        _ => None,
    }
}
