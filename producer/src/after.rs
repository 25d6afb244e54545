//! Once a task is enqueued: waiting for its result, cancelling it.

use std::time::Duration;

use serde::de::DeserializeOwned;
use switchback_common::{
    Queue, StoreError, TaskId,
    clock::Moment,
    name::InvalidName,
    store::{
        cancel::{self, CancelRequest, Cancelled},
        inspect,
        results::{self, Kept, Progress, State},
    },
};

use crate::producer::Producer;

const FIRST_LOOK: Duration = Duration::from_millis(5);
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// How often to look whether the task ended without leaving a result.
const LOOK_FOR_TASK_EVERY: Duration = Duration::from_secs(1);

/// How a wait ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Waited<R> {
    /// The handler succeeded and returned this.
    Done(R),
    /// The task is a dead letter; this was its last error.
    Dead(String),
    /// The task was cancelled.
    Cancelled,
    /// The task was not started before its deadline.
    Expired,
    /// It has not ended yet. It goes on; this is how far it said it was.
    TimedOut(Option<Progress>),
    /// It was settled and left nothing: no result was asked for, or it was kept for too short a time.
    Unknown,
}

/// Why a task could not be waited for, or cancelled.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AfterError {
    /// The task type's name is not valid.
    #[error(transparent)]
    Name(#[from] InvalidName),
    /// Redis refused, or did not answer. Waiting and cancelling may be repeated.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The task is done, and its result could not be kept.
    #[error("task {task} of {queue} is done, but {problem}")]
    NotKept {
        /// The queue.
        queue: Queue,
        /// The task.
        task: TaskId,
        /// What was wrong with it.
        problem: String,
    },
    /// The task is done, and its result is not what was expected.
    #[error("task {task} of {queue} is done, but its result is of another kind: {source}")]
    Unreadable {
        /// The queue.
        queue: Queue,
        /// The task.
        task: TaskId,
        /// The cause.
        source: serde_json::Error,
    },
}

impl Producer {
    /// Waits until a task has ended whose result is kept, at most `timeout`.
    ///
    /// It asks Redis: after 5 ms, then ever more rarely, in the end four times a second, one `GET` each; and once a
    /// second where the task is, while there is nothing. An id that is enqueued again while the result of the first
    /// is kept answers with that.
    ///
    /// # Errors
    /// [`AfterError`]: Redis does not answer, the result was too large to keep, or it does not fit `R`.
    pub async fn wait<R: DeserializeOwned>(
        &self,
        task_type: &str,
        task: &TaskId,
        timeout: Duration,
    ) -> Result<Waited<R>, AfterError> {
        let queue = self.named(task_type)?;
        let began = Moment::now();
        let mut pause = FIRST_LOOK;
        let mut look_for_task = LOOK_EVERY;
        loop {
            let kept = results::read(self.store(), &queue, task).await?;
            let progress = match kept {
                Some(kept) if kept.state != State::Running => return ended(&queue, task, kept),
                Some(kept) => kept.report.progress,
                None if began.elapsed() >= look_for_task.min(timeout) => {
                    look_for_task = began.elapsed() + LOOK_FOR_TASK_EVERY;
                    let found = inspect::find_in_place(self.store(), &queue, task).await?;
                    let settled = found.is_some_and(|found| !found.waiting && found.held_by.is_none());
                    // Read again: the result is written in the moment in which the task is settled.
                    if settled && results::read(self.store(), &queue, task).await?.is_none() {
                        return Ok(Waited::Unknown);
                    }
                    None
                }
                None => None,
            };
            let Some(left) = timeout.checked_sub(began.elapsed()).filter(|left| !left.is_zero()) else {
                return Ok(Waited::TimedOut(progress));
            };
            tokio::time::sleep(pause.min(left)).await;
            pause = (pause * 2).min(LOOK_EVERY);
        }
    }

    /// Cancels a task: waiting, delayed or running. Repeating it is harmless.
    ///
    /// Once this has returned, no gate read lets the task start; 250 ms later (`start_ttl`) nobody starts it at all. If it
    /// runs, its handler is told through `Context::cancelled`, dropped 5 s later, and not tried again; should it succeed
    /// all the same, the task is done. A handler of a worker that was lost may still be running.
    ///
    /// # Errors
    /// [`AfterError`]: Redis does not answer, or 10 000 cancelled tasks of the queue wait for a worker to meet them.
    pub async fn cancel(&self, task_type: &str, task: &TaskId) -> Result<Cancelled, AfterError> {
        let queue = self.named(task_type)?;
        Ok(cancel::cancel(self.store(), &queue, task, &CancelRequest::default()).await?)
    }

    /// Like [`cancel`](Self::cancel), but leaves a task alone of which an attempt has begun.
    ///
    /// # Errors
    /// As [`cancel`](Self::cancel).
    pub async fn cancel_unstarted(&self, task_type: &str, task: &TaskId) -> Result<Cancelled, AfterError> {
        let queue = self.named(task_type)?;
        let request = CancelRequest {
            only_unstarted: true,
            ..CancelRequest::default()
        };
        Ok(cancel::cancel(self.store(), &queue, task, &request).await?)
    }
}

fn ended<R: DeserializeOwned>(queue: &Queue, task: &TaskId, kept: Kept) -> Result<Waited<R>, AfterError> {
    let report = kept.report;
    Ok(match kept.state {
        State::Done => {
            if let Some(problem) = report.error {
                return Err(AfterError::NotKept {
                    queue: queue.clone(),
                    task: task.clone(),
                    problem,
                });
            }
            let Some(json) = report.result else {
                return Ok(Waited::Unknown);
            };
            let value = serde_json::from_str(json.get()).map_err(|source| AfterError::Unreadable {
                queue: queue.clone(),
                task: task.clone(),
                source,
            })?;
            Waited::Done(value)
        }
        State::Dead => Waited::Dead(report.error.unwrap_or_default()),
        State::Cancelled => Waited::Cancelled,
        State::Expired => Waited::Expired,
        State::Running => Waited::TimedOut(report.progress),
    })
}
