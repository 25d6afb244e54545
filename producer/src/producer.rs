//! The producer: connects once, enqueues one task or many.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::StreamExt as _;
use switchback_common::{
    ConnectOptions, Namespace, Queue, Store, StoreError, Task, TaskId, TaskType,
    envelope::{DEFAULT_MAX_PAYLOAD, MAX_HEADERS_BYTES, MAX_KEY_BYTES, MAX_RESULT_KEPT},
    id::InvalidTaskId,
    name::{HeaderName, InvalidName},
    store::{
        cancel::{self, CancelRequest},
        connect::Link,
        enqueue::{Added, EnqueueStore, NewTask},
    },
    telemetry::{TRACEPARENT, current_traceparent},
};
use tokio::sync::RwLock;

use crate::{
    error::EnqueueError,
    options::{Draft, Enqueue, EnqueueMany, IfTaken, Terms},
    room::Room,
};

/// Tasks per MULTI, and batches on their way at once: enough to keep Redis busy, small enough not to hog it.
const BATCH_TASKS: usize = 100;
const BATCH_BYTES: usize = 1024 * 1024;
const BATCHES_IN_FLIGHT: usize = 4;
/// How often a unique key is taken over from somebody who was faster, before that is an error.
const TAKEOVERS: usize = 3;

/// Enqueues tasks of one namespace. Cheap to clone; clones share one connection.
#[derive(Debug, Clone)]
pub struct Producer {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    store: Store,
    namespace: Namespace,
    max_payload: usize,
    link: RwLock<Option<Link>>,
    queues: Mutex<HashMap<String, Arc<QueueHandle>>>,
    announced: Mutex<HashSet<Queue>>,
}

#[derive(Debug)]
struct QueueHandle {
    queue: Queue,
    enqueue: EnqueueStore,
    room: Room,
}

impl Producer {
    /// Connects, and checks that the server can keep the promises (7.0 or newer, `noeviction`).
    ///
    /// # Errors
    /// Why Redis cannot be used.
    pub async fn connect(options: &ConnectOptions, namespace: Namespace) -> Result<Self, StoreError> {
        let store = Store::new(options)?;
        store.check_server().await?;
        Ok(Self::new(store, namespace))
    }

    /// A producer over a store that is already there; connects on first use.
    #[must_use]
    pub fn new(store: Store, namespace: Namespace) -> Self {
        Self::with_max_payload(store, namespace, DEFAULT_MAX_PAYLOAD)
    }

    /// Like [`Producer::new`] with another limit on payloads, in bytes; workers must accept it, too. Defaults to 1 MiB.
    #[must_use]
    pub fn with_max_payload(store: Store, namespace: Namespace, max_payload: usize) -> Self {
        Self {
            shared: Arc::new(Shared {
                store,
                namespace,
                max_payload,
                link: RwLock::new(None),
                queues: Mutex::default(),
                announced: Mutex::default(),
            }),
        }
    }

    /// Enqueues one task. One `XADD`, unless it is given an id, a delay, or a unique key: then one script.
    ///
    /// Awaiting it gives the task's id.
    pub fn enqueue<T: Task>(&self, task: &T) -> Enqueue<'_> {
        self.enqueue_bytes(T::TYPE, serde_json::to_vec(task))
    }

    /// Enqueues a payload that is JSON already, into the queue of `task_type`.
    pub fn enqueue_json<'a>(&'a self, task_type: &'a TaskType, payload: &serde_json::value::RawValue) -> Enqueue<'a> {
        self.enqueue_bytes(task_type.as_str(), Ok(payload.get().as_bytes().to_vec()))
    }

    fn enqueue_bytes<'a>(&'a self, task_type: &'a str, payload: Result<Vec<u8>, serde_json::Error>) -> Enqueue<'a> {
        Enqueue {
            producer: self,
            task_type,
            payload,
            key: None,
            id: None,
            remember: false,
            unique: None,
            if_taken: IfTaken::default(),
            terms: Terms::default(),
            keep_result: None,
        }
    }

    /// Enqueues many tasks of one type, in batches of 100 that are each all or nothing.
    ///
    /// Awaiting it gives the ids in order.
    pub fn enqueue_many<'a, 't, T: Task>(&'a self, tasks: impl IntoIterator<Item = &'t T>) -> EnqueueMany<'a> {
        self.many::<T>(tasks.into_iter().map(|task| (None, serde_json::to_vec(task))).collect())
    }

    /// Like [`enqueue_many`](Self::enqueue_many), each task with its key.
    pub fn enqueue_many_keyed<'a, 't, T: Task>(
        &'a self,
        tasks: impl IntoIterator<Item = (String, &'t T)>,
    ) -> EnqueueMany<'a> {
        let tasks = tasks
            .into_iter()
            .map(|(key, task)| (Some(key), serde_json::to_vec(task)));
        self.many::<T>(tasks.collect())
    }

    fn many<T: Task>(&self, tasks: Vec<Draft>) -> EnqueueMany<'_> {
        EnqueueMany {
            producer: self,
            task_type: T::TYPE,
            tasks,
            ids: None,
            terms: Terms::default(),
        }
    }

    pub(crate) async fn send_one(self, request: Enqueue<'_>) -> Result<TaskId, EnqueueError> {
        let handle = self.queue(request.task_type)?;
        let queue = &handle.queue;
        let mut task = self.checked(
            queue,
            (request.key, request.payload),
            request.id.transpose()?,
            &request.terms,
            headers(queue, &request.terms.headers)?,
        )?;
        task.result = request.keep_result.map(result_ms);
        task.remember = request.remember.then_some(request.terms.window);
        if let Some(unique) = request.unique {
            check_key(queue, &unique.key)?;
            task.unique = Some(unique);
        }
        let plain = task.is_plain();
        if !plain {
            // Known before it is sent, so that a lost reply can name it.
            task.id.get_or_insert_with(TaskId::random);
        }
        let link = self.link(queue).await?;
        handle.room.admit(&link, 1).await?;
        let added = if plain {
            handle.enqueue.add(&link, &task).await.map(Added::Yes)
        } else {
            self.add_special(&handle, &link, &mut task, request.if_taken).await
        };
        match added {
            Ok(Added::Yes(id)) => {
                self.announce(&handle).await;
                Ok(id)
            }
            Ok(Added::Taken { by }) => match request.if_taken {
                IfTaken::Existing => Ok(by),
                // Replace: others took it again and again.
                IfTaken::Reject | IfTaken::Replace => Err(EnqueueError::Taken {
                    queue: queue.clone(),
                    key: task.unique.map(|unique| unique.key).unwrap_or_default(),
                    by,
                }),
            },
            Err(source) => Err(self.failed(queue, task.id.as_ref(), source).await),
        }
    }

    /// Sends one task that is more than an entry, and takes its unique key over where that is asked for.
    async fn add_special(
        &self,
        handle: &QueueHandle,
        link: &Link,
        task: &mut NewTask,
        if_taken: IfTaken,
    ) -> Result<Added, StoreError> {
        let mut tries = TAKEOVERS;
        loop {
            let added = handle
                .enqueue
                .add_special(link, std::slice::from_ref(task))
                .await?
                .remove(0);
            match (added, &mut task.unique) {
                (Added::Taken { by }, Some(unique)) if if_taken == IfTaken::Replace && tries > 0 => {
                    tries -= 1;
                    let request = CancelRequest {
                        only_unstarted: true,
                        why: format!("replaced under the unique key {:?}", unique.key),
                        ..CancelRequest::default()
                    };
                    // P3: from its reply on the other does not start; only then may this one come.
                    cancel::cancel(&self.shared.store, &handle.queue, &by, &request).await?;
                    unique.replaces = Some(by);
                }
                (added, _) => return Ok(added),
            }
        }
    }

    pub(crate) async fn send_many(self, request: EnqueueMany<'_>) -> Result<Vec<TaskId>, EnqueueError> {
        let handle = self.queue(request.task_type)?;
        let total = request.tasks.len();
        let once = request.ids.is_some();
        let mut ids = match request.ids {
            Some(ids) if ids.len() != total => {
                return Err(InvalidTaskId(format!("{} ids for {total} tasks", ids.len())).into());
            }
            Some(ids) => ids
                .into_iter()
                .collect::<Result<Vec<_>, _>>()?
                .into_iter()
                .map(Some)
                .collect(),
            None => vec![None; total],
        };
        let headers = headers(&handle.queue, &request.terms.headers)?;
        // Everything is checked before anything is sent.
        let mut tasks = Vec::with_capacity(total);
        for ((key, payload), id) in request.tasks.into_iter().zip(ids.drain(..)) {
            let mut task = self.checked(&handle.queue, (key, payload), id, &request.terms, headers.clone())?;
            task.remember = once.then_some(request.terms.window);
            tasks.push(task);
        }
        let plain = tasks.first().is_none_or(NewTask::is_plain);
        let link = self.link(&handle.queue).await?;
        handle.room.admit(&link, total).await?;
        let enqueue = &handle.enqueue;
        let link = &link;
        let sending = batches(tasks).into_iter().map(|batch| async move {
            let sent = if plain {
                enqueue.add_many(link, &batch).await
            } else {
                let added = enqueue.add_special(link, &batch).await;
                added.map(|added| added.into_iter().map(Added::into_id).collect())
            };
            (batch.len(), sent)
        });
        // Batches overlap on the wire, and each answers for itself.
        let mut sending = futures_util::stream::iter(sending).buffered(BATCHES_IN_FLIGHT);
        let mut enqueued: Vec<Option<TaskId>> = Vec::with_capacity(total);
        let mut failure = None;
        while let Some((count, sent)) = sending.next().await {
            match sent {
                Ok(ids) => enqueued.extend(ids.into_iter().map(Some)),
                Err(source) => {
                    enqueued.resize(enqueued.len() + count, None);
                    failure.get_or_insert(source);
                }
            }
        }
        drop(sending);
        if let Some(source) = failure {
            let source = self.failed(&handle.queue, None, source).await;
            return Err(EnqueueError::Partial {
                queue: handle.queue.clone(),
                enqueued,
                source: Box::new(source),
            });
        }
        let enqueued = enqueued.into_iter().flatten().collect();
        self.announce(&handle).await;
        Ok(enqueued)
    }

    fn checked(
        &self,
        queue: &Queue,
        (key, payload): Draft,
        id: Option<TaskId>,
        terms: &Terms,
        headers: Option<String>,
    ) -> Result<NewTask, EnqueueError> {
        let payload = payload.map_err(|source| EnqueueError::Payload {
            queue: queue.clone(),
            source,
        })?;
        if payload.len() > self.shared.max_payload {
            return Err(EnqueueError::PayloadTooLarge {
                queue: queue.clone(),
                size: payload.len(),
                limit: self.shared.max_payload,
            });
        }
        if let Some(key) = &key {
            check_key(queue, key)?;
        }
        Ok(NewTask {
            payload,
            key,
            id,
            headers,
            priority: terms.priority,
            expires: terms.expires.clone(),
            start: terms.start,
            ..NewTask::default()
        })
    }

    pub(crate) fn store(&self) -> &Store {
        &self.shared.store
    }

    /// The queue of `task_type`.
    pub(crate) fn named(&self, task_type: &str) -> Result<Queue, InvalidName> {
        Ok(Queue::new(self.shared.namespace.clone(), TaskType::new(task_type)?))
    }

    fn queue(&self, task_type: &str) -> Result<Arc<QueueHandle>, EnqueueError> {
        let mut queues = self.shared.queues.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(handle) = queues.get(task_type) {
            return Ok(Arc::clone(handle));
        }
        let queue = self.named(task_type)?;
        let handle = Arc::new(QueueHandle {
            enqueue: EnqueueStore::new(&self.shared.store, &queue),
            room: Room::new(&self.shared.store, &queue),
            queue,
        });
        queues.insert(task_type.to_owned(), Arc::clone(&handle));
        Ok(handle)
    }

    /// The shared connection, opened when there is none.
    async fn link(&self, queue: &Queue) -> Result<Link, EnqueueError> {
        if let Some(link) = &*self.shared.link.read().await {
            return Ok(link.clone());
        }
        let mut slot = self.shared.link.write().await;
        if let Some(link) = &*slot {
            return Ok(link.clone());
        }
        // Nothing was sent yet, whatever goes wrong here.
        let link = self.shared.store.link().await.map_err(|source| EnqueueError::Refused {
            queue: queue.clone(),
            source,
        })?;
        *slot = Some(link.clone());
        Ok(link)
    }

    /// Names the failure, and drops a connection that may be broken: the next enqueue opens another.
    async fn failed(&self, queue: &Queue, id: Option<&TaskId>, source: StoreError) -> EnqueueError {
        if source.is_transient() {
            *self.shared.link.write().await = None;
        }
        EnqueueError::from_store(queue, id, source)
    }

    /// Lists the queue in its namespace, once per process. The task is enqueued either way.
    async fn announce(&self, handle: &QueueHandle) {
        let first = {
            let mut announced = self.shared.announced.lock().unwrap_or_else(PoisonError::into_inner);
            announced.insert(handle.queue.clone())
        };
        if first && let Err(error) = handle.enqueue.announce().await {
            tracing::warn!(%error, queue.name = %handle.queue, "the queue is not listed yet; its workers will list it");
        }
    }
}

fn check_key(queue: &Queue, key: &str) -> Result<(), EnqueueError> {
    if key.len() > MAX_KEY_BYTES {
        return Err(EnqueueError::KeyTooLong {
            queue: queue.clone(),
            size: key.len(),
            limit: MAX_KEY_BYTES,
        });
    }
    Ok(())
}

/// Redis refuses other expiry times, and a worker would learn that only when it settles.
fn result_ms(keep: Duration) -> String {
    keep.min(MAX_RESULT_KEPT).as_millis().max(1).to_string()
}

/// The headers that go with a task, and the trace it is part of, as JSON.
fn headers(queue: &Queue, given: &BTreeMap<String, String>) -> Result<Option<String>, EnqueueError> {
    let trace = current_traceparent().filter(|_| !given.contains_key(TRACEPARENT));
    if given.is_empty() && trace.is_none() {
        return Ok(None);
    }
    for name in given.keys() {
        name.parse::<HeaderName>()?;
    }
    let trace = trace.iter().map(|parent| (TRACEPARENT, parent.as_str()));
    let all: BTreeMap<&str, &str> = given
        .iter()
        .map(|(k, v)| (k.as_str(), v.as_str()))
        .chain(trace)
        .collect();
    let json = serde_json::to_string(&all).map_err(|source| EnqueueError::Payload {
        queue: queue.clone(),
        source,
    })?;
    if json.len() > MAX_HEADERS_BYTES {
        return Err(EnqueueError::HeadersTooLong {
            queue: queue.clone(),
            size: json.len(),
            limit: MAX_HEADERS_BYTES,
        });
    }
    Ok(Some(json))
}

/// Cuts tasks into batches, by count and bytes.
fn batches(tasks: Vec<NewTask>) -> Vec<Vec<NewTask>> {
    let mut out = Vec::with_capacity(tasks.len() / BATCH_TASKS + 1);
    let (mut batch, mut bytes) = (Vec::new(), 0);
    for task in tasks {
        if batch.len() >= BATCH_TASKS || (!batch.is_empty() && bytes + task.payload.len() > BATCH_BYTES) {
            out.push(std::mem::take(&mut batch));
            bytes = 0;
        }
        bytes += task.payload.len();
        batch.push(task);
    }
    if !batch.is_empty() {
        out.push(batch);
    }
    out
}
