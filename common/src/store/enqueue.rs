//! Enqueueing.

use std::time::Duration;

use redis::{Cmd, Pipeline, Value};

use super::{
    connect::{Link, Store},
    error::StoreError,
    keyspace::Key,
    reply, script,
};
use crate::{
    envelope::field,
    id::{StreamId, TaskId},
    name::Queue,
    priority::Priority,
};

/// When a new task may start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Start {
    /// As soon as there is a slot.
    #[default]
    Now,
    /// So long after Redis takes it.
    In(Duration),
    /// At this time, ms since 1970 on Redis's clock.
    At(u64),
}

/// A key under which one task at a time may be enqueued.
#[derive(Debug, Clone)]
pub struct Unique {
    /// The key.
    pub key: String,
    /// How long the task has it.
    pub hold: Duration,
    /// The task it may be taken from.
    pub replaces: Option<TaskId>,
}

/// A task as it goes into the stream.
#[derive(Debug, Clone, Default)]
pub struct NewTask {
    /// JSON.
    pub payload: Vec<u8>,
    /// What percent and pins look at, when it is not the id.
    pub key: Option<String>,
    /// An id of the caller's; whatever is not [plain](Self::is_plain) needs one.
    pub id: Option<TaskId>,
    /// How long the id is remembered, so that a repeat enqueues nothing. Within a day of its end at most.
    pub remember: Option<Duration>,
    /// JSON object of headers.
    pub headers: Option<String>,
    /// The field `result`, as it stands in the envelope.
    pub result: Option<String>,
    /// Which stream it goes to.
    pub priority: Priority,
    /// The field `expires`, as it stands in the envelope.
    pub expires: Option<String>,
    /// When it may start.
    pub start: Start,
    /// The key it is alone under.
    pub unique: Option<Unique>,
}

impl NewTask {
    /// Whether one `XADD` is all it takes.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        self.remember.is_none() && self.start == Start::Now && self.unique.is_none()
    }

    fn fields(&self) -> impl Iterator<Item = (&'static str, &[u8])> {
        let payload = (field::PAYLOAD, self.payload.as_slice());
        fn text<'a>(name: &'static str, value: Option<&'a str>) -> Option<(&'static str, &'a [u8])> {
            value.map(|value| (name, value.as_bytes()))
        }
        std::iter::once(payload).chain(
            [
                text(field::KEY, self.key.as_deref()),
                text(field::HEADERS, self.headers.as_deref()),
                text(field::PRIORITY, self.priority.field()),
                text(field::EXPIRES, self.expires.as_deref()),
                text(field::RESULT, self.result.as_deref()),
                text(field::UNIQUE, self.unique.as_ref().map(|unique| unique.key.as_str())),
            ]
            .into_iter()
            .flatten(),
        )
    }
}

/// What became of an enqueue that looks before it adds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Added {
    /// The task is enqueued, now or by an earlier try.
    Yes(TaskId),
    /// Another task has the unique key: nothing was enqueued.
    Taken {
        /// The task that has it.
        by: TaskId,
    },
}

impl Added {
    /// The task that is there now.
    #[must_use]
    pub fn into_id(self) -> TaskId {
        match self {
            Self::Yes(id) | Self::Taken { by: id } => id,
        }
    }
}

/// Longest expiry Redis takes without complaint, and a score that a double can hold: over a century, in ms.
const MAX_MS: u64 = 1 << 42;

/// Enqueues into one queue.
#[derive(Debug, Clone)]
pub struct EnqueueStore {
    store: Store,
    queue: Queue,
    /// Main, high, low: text and salt.
    streams: [(String, u32); 3],
}

impl EnqueueStore {
    /// The queue's streams.
    #[must_use]
    pub fn new(store: &Store, queue: &Queue) -> Self {
        let stream = |key: fn(Queue) -> Key| {
            let text = store.keyspace().render(&key(queue.clone()));
            let salt = crate::id::stream_salt(&text);
            (text, salt)
        };
        Self {
            streams: [stream(Key::Stream), stream(Key::High), stream(Key::Low)],
            store: store.clone(),
            queue: queue.clone(),
        }
    }

    fn place(priority: Priority) -> usize {
        match priority {
            Priority::Normal => 0,
            Priority::High => 1,
            Priority::Low => 2,
        }
    }

    fn xadd(&self, task: &NewTask) -> Cmd {
        let mut cmd = Cmd::with_capacity(10, task.payload.len() + 128);
        cmd.arg("XADD")
            .arg(&self.streams[Self::place(task.priority)].0)
            .arg("*");
        if let Some(id) = &task.id {
            cmd.arg(field::ID).arg(id.to_string());
        }
        for (name, value) in task.fields() {
            cmd.arg(name).arg(value);
        }
        cmd
    }

    fn id_of(&self, task: &NewTask, value: Value) -> Result<TaskId, StoreError> {
        if let Some(id) = &task.id {
            return Ok(id.clone());
        }
        let bytes = reply::bytes("XADD", value)?;
        let entry = StreamId::parse(&bytes).ok_or_else(|| reply::unexpected("XADD", &Value::BulkString(bytes)))?;
        Ok(TaskId::of_entry(self.streams[Self::place(task.priority)].1, entry))
    }

    /// Adds one plain task.
    ///
    /// # Errors
    /// When Redis refuses it or does not answer; see [`StoreError::is_outcome_unknown`].
    pub async fn add(&self, link: &Link, task: &NewTask) -> Result<TaskId, StoreError> {
        let value = link.run(self.xadd(task)).await?;
        self.id_of(task, value)
    }

    /// Adds plain tasks in one MULTI: all or none, and idle workers wake once, after the last.
    ///
    /// # Errors
    /// As [`EnqueueStore::add`], for the whole batch.
    pub async fn add_many(&self, link: &Link, tasks: &[NewTask]) -> Result<Vec<TaskId>, StoreError> {
        if tasks.is_empty() {
            return Ok(Vec::new());
        }
        let mut pipe = Pipeline::with_capacity(tasks.len());
        for task in tasks {
            pipe.add_command(self.xadd(task));
        }
        let ids = reply::array("XADD", link.run_atomic(&mut pipe).await?)?;
        tasks.iter().zip(ids).map(|(task, id)| self.id_of(task, id)).collect()
    }

    /// Adds tasks that are more than an entry, all in one script. A task without an id is given one. Repeating the call
    /// with the same ids is safe as far as they are [remembered](NewTask::remember), the task is still delayed, or it
    /// still has its unique key.
    ///
    /// # Errors
    /// When Redis refuses or does not answer.
    pub async fn add_special(&self, link: &Link, tasks: &[NewTask]) -> Result<Vec<Added>, StoreError> {
        if tasks.is_empty() {
            return Ok(Vec::new());
        }
        let queue = &self.queue;
        let key = |key: Key| self.store.keyspace().render(&key);
        let mut call = script::ENQUEUE.prepare_invoke();
        for (stream, _) in &self.streams {
            call.key(stream);
        }
        call.key(key(Key::Delayed(queue.clone())))
            .key(key(Key::Envelope(queue.clone())))
            .key(key(Key::Wake(queue.clone())));
        let mut ids = Vec::with_capacity(tasks.len());
        let mut keys = 6;
        for task in tasks {
            let id = task.id.clone().unwrap_or_else(TaskId::random);
            let (base, ms) = match task.start {
                Start::Now => ("now", 0),
                Start::In(delay) => ("in", millis(delay)),
                Start::At(ms) => ("at", ms.min(MAX_MS)),
            };
            call.arg(id.to_string()).arg(Self::place(task.priority) + 1);
            let mut marker = |marker: Option<(Key, Duration)>| {
                let Some((name, keep)) = marker else {
                    call.arg(0).arg(0);
                    return;
                };
                keys += 1;
                call.key(key(name)).arg(keys).arg(millis(keep).max(1));
            };
            // Also past the time it waits: the window begins when the task may start.
            let wait = if let Start::In(delay) = task.start {
                delay
            } else {
                Duration::ZERO
            };
            marker(
                task.remember
                    .map(|keep| (Key::UniqueId(queue.clone(), id.to_string()), keep.saturating_add(wait))),
            );
            marker(
                task.unique
                    .as_ref()
                    .map(|unique| (Key::UniqueKey(queue.clone(), unique.key.clone()), unique.hold)),
            );
            let replaces = task.unique.as_ref().and_then(|unique| unique.replaces.as_ref());
            call.arg(replaces.map_or_else(String::new, ToString::to_string));
            call.arg(base).arg(ms).arg(task.fields().count() + 1);
            call.arg(field::ID).arg(id.to_string());
            for (name, value) in task.fields() {
                call.arg(name).arg(value);
            }
            ids.push(id);
        }
        let (_, mut words) = reply::verdict("enqueue", link.run_script(&call).await?)?;
        let mut added = Vec::with_capacity(tasks.len());
        for id in ids {
            let mut next = || reply::text("enqueue", words.next().unwrap_or(Value::Nil));
            let (word, text) = (next()?, next()?);
            added.push(match word.as_str() {
                "taken" => Added::Taken {
                    by: text
                        .parse()
                        .map_err(|_| reply::unexpected("enqueue", &Value::SimpleString(text)))?,
                },
                _ => Added::Yes(id),
            });
        }
        Ok(added)
    }

    /// Puts the queue into its namespace's directory, so that `queue ls` shows it before any worker came.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn announce(&self) -> Result<(), StoreError> {
        super::session::SessionStore::new(&self.store, &self.queue)
            .announce()
            .await
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX).min(MAX_MS)
}
