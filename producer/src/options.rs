//! One enqueue before it is sent: what is special about it.

use std::{
    collections::BTreeMap,
    future::{Future, IntoFuture},
    pin::Pin,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use switchback_common::{
    Priority, TaskId,
    id::InvalidTaskId,
    store::enqueue::{Start, Unique},
};

use crate::{error::EnqueueError, producer::Producer};

/// How long an id is remembered, so that repeating an enqueue is safe. 24 h.
pub const DEFAULT_WINDOW: Duration = Duration::from_secs(24 * 3600);

/// A future that an enqueue turns into.
pub type Sending<'a, T> = Pin<Box<dyn Future<Output = Result<T, EnqueueError>> + Send + 'a>>;

/// What holds for every task of one call.
#[derive(Debug)]
pub(crate) struct Terms {
    pub(crate) window: Duration,
    pub(crate) priority: Priority,
    pub(crate) start: Start,
    pub(crate) expires: Option<String>,
    pub(crate) headers: BTreeMap<String, String>,
}

impl Default for Terms {
    fn default() -> Self {
        Self {
            window: DEFAULT_WINDOW,
            priority: Priority::Normal,
            start: Start::Now,
            expires: None,
            headers: BTreeMap::new(),
        }
    }
}

/// What an enqueue does when another task has its unique key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum IfTaken {
    /// It fails with [`EnqueueError::Taken`], which names the other task.
    #[default]
    Reject,
    /// It enqueues nothing and gives the other task's id.
    Existing,
    /// It cancels the other task if that has not started, and takes its place: the latest wins. What runs already goes on.
    ///
    /// Two steps: if the second fails, the other task is cancelled and none is enqueued; the error says so, and repeating
    /// it is right.
    Replace,
}

/// Options that one enqueue and many have alike.
macro_rules! terms {
    () => {
        /// Start it no sooner than this long after Redis took it.
        pub fn delay(mut self, delay: Duration) -> Self {
            self.terms.start = Start::In(delay);
            self
        }

        /// Start it no sooner than at this time, by Redis's clock. A time that has passed means: now.
        pub fn at(mut self, time: SystemTime) -> Self {
            self.terms.start = Start::At(ms_since_1970(time));
            self
        }

        /// Before or after the others of its queue. Defaults to [`Priority::Normal`].
        pub fn priority(mut self, priority: Priority) -> Self {
            self.terms.priority = priority;
            self
        }

        /// Do not start it later than this long after it was enqueued: it becomes a dead letter, `expired`. By Redis's
        /// clock; also holds for its later attempts.
        pub fn expires_in(mut self, after: Duration) -> Self {
            self.terms.expires = Some(format!("+{}", millis(after)));
            self
        }

        /// Like [`expires_in`](Self::expires_in), at a time.
        pub fn expires_at(mut self, time: SystemTime) -> Self {
            self.terms.expires = Some(ms_since_1970(time).to_string());
            self
        }

        /// Sends a header along: for the handler, and for the gate's targets (`plan:beta=v2`). The name matches
        /// `[A-Za-z0-9._-]{1,64}`; all headers together take 8 KiB of JSON at most. A later value of a name replaces an
        /// earlier one.
        pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
            self.terms.headers.insert(name.into(), value.into());
            self
        }
    };
}

fn ms_since_1970(time: SystemTime) -> u64 {
    millis(time.duration_since(UNIX_EPOCH).unwrap_or_default())
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// One task on its way. Await it to send it.
#[derive(Debug)]
#[must_use = "nothing is enqueued until it is awaited"]
pub struct Enqueue<'a> {
    pub(crate) producer: &'a Producer,
    pub(crate) task_type: &'a str,
    pub(crate) payload: Result<Vec<u8>, serde_json::Error>,
    pub(crate) key: Option<String>,
    pub(crate) id: Option<Result<TaskId, InvalidTaskId>>,
    pub(crate) remember: bool,
    pub(crate) unique: Option<Unique>,
    pub(crate) if_taken: IfTaken,
    pub(crate) terms: Terms,
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
        self.remember = true;
        self
    }

    /// Like [`id`](Self::id) with a new random id. [`EnqueueError::OutcomeUnknown`] carries it for the repeat.
    pub fn idempotent(mut self) -> Self {
        self.id.get_or_insert_with(|| Ok(TaskId::random()));
        self.remember = true;
        self
    }

    /// How long the id is remembered, counted from when the task may start. Defaults to 24 h.
    pub fn window(mut self, window: Duration) -> Self {
        self.terms.window = window;
        self
    }

    /// Enqueue it only if no other task was enqueued under this key within the last `hold`: one task per order, one
    /// refresh per customer and minute… The key is held for all of `hold`, whether or not its task has ended. At most 256
    /// bytes. What happens when the key is taken: see [`if_taken`](Self::if_taken).
    pub fn unique(mut self, key: impl Into<String>, hold: Duration) -> Self {
        self.unique = Some(Unique {
            key: key.into(),
            hold,
            replaces: None,
        });
        self
    }

    /// What happens when another task has the unique key. Defaults to [`IfTaken::Reject`].
    pub fn if_taken(mut self, policy: IfTaken) -> Self {
        self.if_taken = policy;
        self
    }

    /// Keeps how the task ends, and what its handler returns, for `ttl` after that: for [`Producer::wait`]. At most 30
    /// days. By default nothing is kept, unless the worker keeps the results of the whole type.
    pub fn keep_result(mut self, ttl: Duration) -> Self {
        self.keep_result = Some(ttl);
        self
    }

    terms!();
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
    pub(crate) terms: Terms,
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

    /// How long the ids are remembered, counted from when the tasks may start. Defaults to 24 h.
    pub fn window(mut self, window: Duration) -> Self {
        self.terms.window = window;
        self
    }

    terms!();
}

impl<'a> IntoFuture for EnqueueMany<'a> {
    type Output = Result<Vec<TaskId>, EnqueueError>;
    type IntoFuture = Sending<'a, Vec<TaskId>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.producer.clone().send_many(self))
    }
}
