//! What can go wrong when enqueueing.

use switchback_common::{Queue, StoreError, TaskId, id::InvalidTaskId, name::InvalidName};

/// A task that was not enqueued, or of which nobody knows.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EnqueueError {
    /// The task type's name is not valid.
    #[error(transparent)]
    Name(#[from] InvalidName),
    /// The id is not valid.
    #[error(transparent)]
    Id(#[from] InvalidTaskId),
    /// The payload cannot be written as JSON.
    #[error("cannot write the payload for {queue} as JSON: {source}")]
    Payload {
        /// The queue.
        queue: Queue,
        /// The cause.
        source: serde_json::Error,
    },
    /// The payload is too long.
    #[error(
        "payload for {queue} is {size} bytes, the limit is {limit}; put large data elsewhere and enqueue a reference"
    )]
    PayloadTooLarge {
        /// The queue.
        queue: Queue,
        /// Its size in bytes.
        size: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// The key is too long.
    #[error("key for {queue} is {size} bytes, the limit is {limit}")]
    KeyTooLong {
        /// The queue.
        queue: Queue,
        /// Its size in bytes.
        size: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// The headers are too long.
    #[error("headers for {queue} are {size} bytes of JSON, the limit is {limit}")]
    HeadersTooLong {
        /// The queue.
        queue: Queue,
        /// Their size in bytes.
        size: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// Another task has the unique key: nothing was enqueued.
    #[error(
        "task {by} has the unique key {key:?} of {queue}: nothing was enqueued; wait for it, or use .if_taken(IfTaken::Existing)"
    )]
    Taken {
        /// The queue.
        queue: Queue,
        /// The key.
        key: String,
        /// The task that has it.
        by: TaskId,
    },
    /// The queue is at its limit. Nothing was sent.
    #[error(
        "{queue} is full: {waiting} in line, the limit is {limit}; try again when its workers have caught up, or raise the limit: switchback queue limits {} --waiting N",
        queue.task_type
    )]
    QueueFull {
        /// The queue.
        queue: Queue,
        /// Waiting and delayed tasks, this producer's own counted to the last.
        waiting: u64,
        /// The limit.
        limit: u64,
    },
    /// The request was sent and no reply came: the task may or may not be enqueued.
    #[error(
        "no reply to the enqueue into {queue}: it may have happened; repeat it only if running twice is harmless, or use .id(…) / .idempotent() ({source})"
    )]
    OutcomeUnknown {
        /// The queue.
        queue: Queue,
        /// The id, when the enqueue had one: repeating it with the same id is safe.
        /// `None` for a plain enqueue: a plain task's id is its place in the stream, which the reply would have told.
        id: Option<TaskId>,
        /// The cause.
        source: StoreError,
    },
    /// Redis refused it, or could not be reached: it is not enqueued.
    #[error("cannot enqueue into {queue}: {source}")]
    Refused {
        /// The queue.
        queue: Queue,
        /// The cause.
        source: StoreError,
    },
    /// Part of a large batch failed.
    #[error("enqueued {} of {} tasks into {queue}, then: {source}", enqueued.iter().flatten().count(), enqueued.len())]
    Partial {
        /// The queue.
        queue: Queue,
        /// The tasks' ids, in order; `None` for those whose batch failed.
        enqueued: Vec<Option<TaskId>>,
        /// The first failure.
        source: Box<Self>,
    },
}

impl EnqueueError {
    pub(crate) fn from_store(queue: &Queue, id: Option<&TaskId>, source: StoreError) -> Self {
        let queue = queue.clone();
        if source.is_outcome_unknown() {
            Self::OutcomeUnknown {
                queue,
                id: id.cloned(),
                source,
            }
        } else {
            Self::Refused { queue, source }
        }
    }

    /// Whether the task may have been enqueued although this is an error.
    #[must_use]
    pub fn is_outcome_unknown(&self) -> bool {
        match self {
            Self::OutcomeUnknown { .. } => true,
            Self::Partial { source, .. } => source.is_outcome_unknown(),
            Self::Name(_)
            | Self::Id(_)
            | Self::Payload { .. }
            | Self::PayloadTooLarge { .. }
            | Self::KeyTooLong { .. }
            | Self::HeadersTooLong { .. }
            | Self::Taken { .. }
            | Self::QueueFull { .. }
            | Self::Refused { .. } => false,
        }
    }
}
