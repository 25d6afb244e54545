//! One enqueue before it is sent: what is special about it.

use std::{
    future::{Future, IntoFuture},
    pin::Pin,
    time::Duration,
};

use switchback_common::{TaskId, id::InvalidTaskId};

use crate::{error::EnqueueError, producer::Producer};

/// How long an id is remembered, so that repeating an enqueue is safe. 24 h.
pub const DEFAULT_WINDOW: Duration = Duration::from_secs(24 * 3600);

/// A future that an enqueue turns into.
pub type Sending<'a, T> = Pin<Box<dyn Future<Output = Result<T, EnqueueError>> + Send + 'a>>;

/// One task on its way. Await it to send it.
#[derive(Debug)]
#[must_use = "nothing is enqueued until it is awaited"]
pub struct Enqueue<'a> {
    pub(crate) producer: &'a Producer,
    pub(crate) task_type: &'a str,
    pub(crate) payload: Result<Vec<u8>, serde_json::Error>,
    pub(crate) key: Option<String>,
    pub(crate) id: Option<Result<TaskId, InvalidTaskId>>,
    pub(crate) window: Duration,
    pub(crate) keep_result: Option<Duration>,
}

impl<'a> Enqueue<'a> {
    /// What the sticky percent and pins look at: customer, order… Defaults to the task's id. At most 256 bytes.
    pub fn key(mut self, key: impl Into<String>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// Enqueue under this id, at most once within the [window](Self::window): safe to repeat. Matches `[A-Za-z0-9._-]{1,64}`.
    pub fn id(mut self, id: impl AsRef<str>) -> Self {
        self.id = Some(id.as_ref().parse());
        self
    }

    /// Like [`id`](Self::id) with a new random id. [`EnqueueError::OutcomeUnknown`] carries it for the repeat.
    pub fn idempotent(mut self) -> Self {
        self.id.get_or_insert_with(|| Ok(TaskId::random()));
        self
    }

    /// How long the id is remembered. Defaults to 24 h.
    pub fn window(mut self, window: Duration) -> Self {
        self.window = window;
        self
    }

    /// Keeps how the task ends, and what its handler returns, for `ttl` after that: for [`Producer::wait`]. At most 30
    /// days. By default nothing is kept, unless the worker keeps the results of the whole type.
    pub fn keep_result(mut self, ttl: Duration) -> Self {
        self.keep_result = Some(ttl);
        self
    }
}

impl<'a> IntoFuture for Enqueue<'a> {
    type Output = Result<TaskId, EnqueueError>;
    type IntoFuture = Sending<'a, TaskId>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.producer.clone().send_one(self))
    }
}

/// One task of many: its key, and its payload if it could be written.
pub(crate) type Draft = (Option<String>, Result<Vec<u8>, serde_json::Error>);

/// Many tasks of one type on their way. Await it to send them.
#[derive(Debug)]
#[must_use = "nothing is enqueued until it is awaited"]
pub struct EnqueueMany<'a> {
    pub(crate) producer: &'a Producer,
    pub(crate) task_type: &'a str,
    pub(crate) tasks: Vec<Draft>,
    pub(crate) ids: Option<Vec<Result<TaskId, InvalidTaskId>>>,
    pub(crate) window: Duration,
}

impl<'a> EnqueueMany<'a> {
    /// Gives every task a new random id and enqueues it at most once: safe to repeat within this call's own retries.
    pub fn idempotent(mut self) -> Self {
        self.ids = Some(self.tasks.iter().map(|_| Ok(TaskId::random())).collect());
        self
    }

    /// Gives the tasks these ids, in order: repeating the call with the same ids enqueues nothing twice.
    /// There must be as many ids as tasks.
    pub fn ids<I: AsRef<str>>(mut self, ids: impl IntoIterator<Item = I>) -> Self {
        self.ids = Some(ids.into_iter().map(|id| id.as_ref().parse()).collect());
        self
    }

    /// How long the ids are remembered. Defaults to 24 h.
    pub fn window(mut self, window: Duration) -> Self {
        self.window = window;
        self
    }
}

impl<'a> IntoFuture for EnqueueMany<'a> {
    type Output = Result<Vec<TaskId>, EnqueueError>;
    type IntoFuture = Sending<'a, Vec<TaskId>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.producer.clone().send_many(self))
    }
}
