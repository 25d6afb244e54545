//! Ours: the task that is measured, and workers in this process.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use redis::{Value, aio::MultiplexedConnection};
use serde::{Deserialize, Serialize};
use switchback_common::{
    Keyspace, Namespace, Queue, Store, Task, TaskType,
    clock::Moment,
    store::{keyspace::Key, session::SessionInfo},
};
use switchback_gates::Gates;
use switchback_worker::{CancellationToken, ConnectOptions, Context, TaskError, Worker, WorkerConfig, WorkerError};
use tokio::task::JoinSet;

use crate::Result;

/// JSON of every payload, in bytes.
const PAYLOAD: usize = 200;

/// What the workers have to do: nothing.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Load {
    pub(crate) n: u64,
    pad: String,
}

impl Task for Load {
    const TYPE: &'static str = "load";
}

impl Load {
    pub(crate) fn new(n: u64) -> Self {
        let around = r#"{"n":,"pad":""}"#.len() + n.to_string().len();
        Self {
            n,
            pad: "x".repeat(PAYLOAD.saturating_sub(around)),
        }
    }

    pub(crate) fn many(count: u64) -> Vec<Self> {
        (0..count).map(Self::new).collect()
    }
}

/// The same tasks as the floor sends them.
pub(crate) fn payloads(count: u64) -> Result<Vec<Vec<u8>>> {
    Load::many(count)
        .iter()
        .map(|load| Ok(serde_json::to_vec(load)?))
        .collect()
}

/// One queue on one server.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub(crate) options: ConnectOptions,
    pub(crate) store: Store,
    pub(crate) queue: Queue,
}

impl Place {
    pub(crate) fn new(url: &str, namespace: &str) -> Result<Self> {
        let options = ConnectOptions::new(url);
        Ok(Self {
            store: Store::new(&options)?,
            queue: Queue::new(namespace.parse()?, TaskType::new(Load::TYPE)?),
            options,
        })
    }

    pub(crate) fn namespace(&self) -> Namespace {
        self.queue.namespace.clone()
    }

    pub(crate) fn key(&self, key: impl FnOnce(Queue) -> Key) -> String {
        Keyspace::default().render(&key(self.queue.clone()))
    }

    pub(crate) fn config(&self) -> WorkerConfig {
        WorkerConfig::new(self.options.clone(), self.namespace())
    }

    /// Waits until `count` sessions are there and obey a gate; returns them.
    pub(crate) async fn sessions(&self, count: usize) -> Result<Vec<SessionInfo>> {
        let gates = Gates::new(&self.store);
        loop {
            let live = gates.live_sessions(&self.queue).await?;
            if live.len() >= count && live.iter().all(|session| session.rev.is_some()) {
                return Ok(live);
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Waits until nothing is in flight in the main stream.
    pub(crate) async fn settled(&self, connection: &mut MultiplexedConnection) -> Result<()> {
        let stream = self.key(Key::Stream);
        while pending(connection, &stream).await? > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Ok(())
    }
}

/// Entries that were claimed and not settled.
pub(crate) async fn pending(connection: &mut MultiplexedConnection, stream: &str) -> Result<i64> {
    let reply: Value = redis::cmd("XPENDING")
        .arg(stream)
        .arg("workers")
        .query_async(connection)
        .await?;
    match reply {
        Value::Array(items) => match items.first() {
            Some(Value::Int(count)) => Ok(*count),
            _ => Ok(0),
        },
        _ => Ok(0),
    }
}

/// Workers in this process, each a session of its own.
#[derive(Debug)]
pub(crate) struct Workers {
    stop: CancellationToken,
    running: JoinSet<std::result::Result<(), WorkerError>>,
}

impl Workers {
    pub(crate) fn new() -> Self {
        Self {
            stop: CancellationToken::new(),
            running: JoinSet::new(),
        }
    }

    /// Starts one that runs both versions with `handler`.
    pub(crate) fn start<F, Fut>(&mut self, config: WorkerConfig, concurrency: usize, handler: F)
    where
        F: Fn(Load, Context) -> Fut + Clone + Send + Sync + 'static,
        Fut: Future<Output = std::result::Result<(), TaskError>> + Send + 'static,
    {
        let worker = Worker::builder(config).task::<Load>(|task| {
            let (first, second) = (handler.clone(), handler);
            task.version("v1", first).version("v2", second).concurrency(concurrency)
        });
        self.running.spawn(worker.run_until(self.stop.clone()));
    }

    /// Ends them all in good order.
    pub(crate) async fn end(mut self) -> Result<()> {
        self.stop.cancel();
        while let Some(ended) = self.running.join_next().await {
            ended??;
        }
        Ok(())
    }
}

/// Counts handlers, and knows when the first one ran.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tally(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    done: AtomicU64,
    first: OnceLock<Moment>,
}

impl Tally {
    pub(crate) fn hit(&self) {
        self.0.first.get_or_init(Moment::now);
        self.0.done.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) async fn reaches(&self, count: u64) {
        while self.0.done.load(Ordering::Relaxed) < count {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Time since the first handler ran.
    pub(crate) fn since_first(&self) -> Duration {
        self.0.first.get().map_or(Duration::ZERO, |first| first.elapsed())
    }

    /// A handler that does nothing but count.
    pub(crate) fn handler(
        &self,
    ) -> impl Fn(Load, Context) -> std::future::Ready<std::result::Result<(), TaskError>> + Clone + Send + Sync + 'static
    {
        let tally = self.clone();
        move |_, _| {
            tally.hit();
            std::future::ready(Ok(()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_payload_has_the_same_size() {
        for n in [0, 9, 10, 123_456] {
            assert_eq!(serde_json::to_vec(&Load::new(n)).unwrap().len(), PAYLOAD);
        }
    }
}
