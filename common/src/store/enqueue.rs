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
};

/// A task as it goes into the stream.
#[derive(Debug, Clone, Default)]
pub struct NewTask {
    /// JSON.
    pub payload: Vec<u8>,
    /// What percent and pins look at, when it is not the id.
    pub key: Option<String>,
    /// An id of the caller's; needed for an idempotent enqueue.
    pub id: Option<TaskId>,
    /// JSON object of headers.
    pub headers: Option<String>,
    /// How long to keep its result, in ms.
    pub result_ms: Option<u64>,
}

impl NewTask {
    fn fields(&self) -> Vec<(&'static str, Vec<u8>)> {
        let mut out = Vec::with_capacity(4);
        if let Some(id) = &self.id {
            out.push((field::ID, id.to_string().into_bytes()));
        }
        out.push((field::PAYLOAD, self.payload.clone()));
        if let Some(key) = &self.key {
            out.push((field::KEY, key.clone().into_bytes()));
        }
        if let Some(headers) = &self.headers {
            out.push((field::HEADERS, headers.clone().into_bytes()));
        }
        if let Some(ms) = self.result_ms {
            out.push((field::RESULT, ms.to_string().into_bytes()));
        }
        out
    }

    fn xadd(&self, stream: &str) -> Cmd {
        let mut cmd = Cmd::with_capacity(10, self.payload.len() + 128);
        cmd.arg("XADD").arg(stream).arg("*");
        if let Some(id) = &self.id {
            cmd.arg(field::ID).arg(id.to_string());
        }
        cmd.arg(field::PAYLOAD).arg(self.payload.as_slice());
        if let Some(key) = &self.key {
            cmd.arg(field::KEY).arg(key);
        }
        if let Some(headers) = &self.headers {
            cmd.arg(field::HEADERS).arg(headers);
        }
        if let Some(ms) = self.result_ms {
            cmd.arg(field::RESULT).arg(ms);
        }
        cmd
    }
}

/// Enqueues into one queue.
#[derive(Debug, Clone)]
pub struct EnqueueStore {
    store: Store,
    queue: Queue,
    stream: String,
    salt: u32,
}

impl EnqueueStore {
    /// The queue's main stream.
    #[must_use]
    pub fn new(store: &Store, queue: &Queue) -> Self {
        let stream = store.keyspace().render(&Key::Stream(queue.clone()));
        Self {
            salt: crate::id::stream_salt(&stream),
            stream,
            store: store.clone(),
            queue: queue.clone(),
        }
    }

    fn id_of(&self, task: &NewTask, value: Value) -> Result<TaskId, StoreError> {
        if let Some(id) = &task.id {
            return Ok(id.clone());
        }
        let bytes = reply::bytes("XADD", value)?;
        let entry = StreamId::parse(&bytes).ok_or_else(|| reply::unexpected("XADD", &Value::BulkString(bytes)))?;
        Ok(TaskId::of_entry(self.salt, entry))
    }

    /// Adds one task.
    ///
    /// # Errors
    /// When Redis refuses it or does not answer; see [`StoreError::is_outcome_unknown`].
    pub async fn add(&self, link: &Link, task: &NewTask) -> Result<TaskId, StoreError> {
        let value = link.run(task.xadd(&self.stream)).await?;
        self.id_of(task, value)
    }

    /// Adds tasks in one MULTI: all or none, and idle workers wake once, after the last.
    ///
    /// # Errors
    /// As [`EnqueueStore::add`], for the whole batch.
    pub async fn add_many(&self, link: &Link, tasks: &[NewTask]) -> Result<Vec<TaskId>, StoreError> {
        if tasks.is_empty() {
            return Ok(Vec::new());
        }
        let mut pipe = Pipeline::with_capacity(tasks.len());
        for task in tasks {
            pipe.add_command(task.xadd(&self.stream));
        }
        let ids = reply::array("XADD", link.run_atomic(&mut pipe).await?)?;
        tasks.iter().zip(ids).map(|(task, id)| self.id_of(task, id)).collect()
    }

    /// Adds tasks that have ids, each at most once within `window`. Safe to repeat.
    ///
    /// # Errors
    /// When Redis refuses or does not answer.
    pub async fn add_once(&self, link: &Link, tasks: &[NewTask], window: Duration) -> Result<Vec<TaskId>, StoreError> {
        if tasks.is_empty() {
            return Ok(Vec::new());
        }
        let ids: Vec<TaskId> = tasks
            .iter()
            .map(|task| task.id.clone().unwrap_or_else(TaskId::random))
            .collect();
        let mut call = script::ENQUEUE_ONCE.prepare_invoke();
        call.key(&self.stream);
        for id in &ids {
            let marker = Key::UniqueId(self.queue.clone(), id.to_string());
            call.key(self.store.keyspace().render(&marker));
        }
        // Redis refuses other expiry times, and the script would learn that only after its XADD.
        call.arg(u64::try_from(window.as_millis()).unwrap_or(u64::MAX).clamp(1, 1 << 42));
        for (task, id) in tasks.iter().zip(&ids) {
            let mut task = task.clone();
            task.id = Some(id.clone());
            let fields = task.fields();
            call.arg(fields.len());
            for (name, value) in fields {
                call.arg(name).arg(value);
            }
        }
        link.run_script(&call).await?;
        Ok(ids)
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
