//! One Redis, one queue, workers in this process: what most of these tests begin with.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use redis::Value;
use serde::{Deserialize, Serialize};
use switchback_common::{
    ConnectOptions, Queue, Store, Task,
    store::{
        dead::{DeadStore, Order},
        gate::{ChangeRequest, Changed},
        inspect::{self, QueueDepth},
        reply::Entry,
    },
};
use switchback_gates::{Gates, admin::operation_id};
use switchback_producer::Producer;
use switchback_tests::{RedisServer, eventually, patience};
use switchback_worker::{
    CancellationToken, Context, RetryPolicy, TaskError, TaskSpec, Worker, WorkerConfig, WorkerError,
};
use tokio::task::JoinSet;

/// The task of these tests: a number and what to do with it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Job {
    pub n: u64,
    #[serde(default)]
    pub then: String,
}

impl Task for Job {
    const TYPE: &'static str = "job";
}

/// One start of a handler.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ran {
    pub n: u64,
    pub version: String,
    pub attempt: u32,
    pub recovered: u32,
    pub id: String,
}

/// What the handlers of a test saw, in order.
#[derive(Debug, Clone, Default)]
pub struct Seen(Arc<Mutex<Vec<Ran>>>);

impl Seen {
    pub fn all(&self) -> Vec<Ran> {
        self.0.lock().unwrap().clone()
    }

    pub fn versions_of(&self, n: u64) -> Vec<String> {
        self.all().into_iter().filter(|r| r.n == n).map(|r| r.version).collect()
    }

    /// A handler that writes itself down and then does as the job says.
    pub fn handler(
        &self,
    ) -> impl Fn(Job, Context) -> std::pin::Pin<Box<dyn Future<Output = Result<(), TaskError>> + Send>>
    + Send
    + Sync
    + 'static
    + use<> {
        let seen = Arc::clone(&self.0);
        move |job, ctx| {
            let seen = Arc::clone(&seen);
            Box::pin(async move {
                seen.lock().unwrap().push(Ran {
                    n: job.n,
                    version: ctx.version.to_string(),
                    attempt: ctx.attempt,
                    recovered: ctx.recovered,
                    id: ctx.id.to_string(),
                });
                match job.then.as_str() {
                    "fail" => Err(TaskError::failed("asked to fail")),
                    "fail on v2" if ctx.version.as_str() == "v2" => Err(TaskError::failed("v2 cannot do this")),
                    "snooze once" if ctx.snoozes == 0 => Err(TaskError::snooze(Duration::from_millis(50))),
                    "reject" => Err(TaskError::reject("no such customer")),
                    "panic" => panic!("asked to panic"),
                    "hang" => std::future::pending().await,
                    _ => Ok(()),
                }
            })
        }
    }
}

/// Of every worker in the process of the test that does not say otherwise. A machine may stand still for a second or two:
/// nobody is to lose his session by that.
pub const LEASE: Duration = Duration::from_secs(5);

pub struct Fixture {
    pub server: RedisServer,
    pub store: Store,
    pub queue: Queue,
    pub producer: Producer,
    pub gates: Gates,
    pub workers: JoinSet<Result<(), WorkerError>>,
}

impl Fixture {
    pub async fn new() -> Self {
        Self::on(RedisServer::start().await).await
    }

    /// On a server with settings of its own.
    pub async fn on(server: RedisServer) -> Self {
        let connect = ConnectOptions::new(server.url());
        let store = Store::new(&connect).unwrap();
        Self {
            queue: Queue::new("test".parse().unwrap(), "job".parse().unwrap()),
            producer: Producer::connect(&connect, "test".parse().unwrap()).await.unwrap(),
            gates: Gates::new(&store),
            store,
            server,
            workers: JoinSet::new(),
        }
    }

    pub fn config(&self) -> WorkerConfig {
        WorkerConfig::new(ConnectOptions::new(self.server.url()), "test".parse().unwrap()).lease(LEASE)
    }

    /// Starts a worker and waits until it has joined and said which revision it obeys.
    pub async fn worker(
        &mut self,
        config: WorkerConfig,
        describe: impl FnOnce(TaskSpec<Job>) -> TaskSpec<Job>,
    ) -> CancellationToken {
        let before = self.published().await;
        let stop = CancellationToken::new();
        let retry = RetryPolicy::default()
            .attempts(3)
            .backoff(Duration::from_millis(20), Duration::from_millis(50));
        let builder = Worker::builder(config).task::<Job>(|t| describe(t.retry(retry)));
        self.workers.spawn(builder.run_until(stop.clone()));
        eventually("the worker has joined", patience(Duration::from_secs(10)), async || {
            self.published().await > before
        })
        .await;
        stop
    }

    /// A worker that has `versions`, with handlers that write themselves down.
    pub async fn simple(&mut self, versions: &[&str]) -> (CancellationToken, Seen) {
        let seen = Seen::default();
        let config = self.config();
        let stop = self
            .worker(config, |t| {
                versions.iter().fold(t, |t, v| t.version(*v, seen.handler()))
            })
            .await;
        (stop, seen)
    }

    async fn published(&self) -> usize {
        let Value::Array(names) = self.server.cli(&["HKEYS", "sb:sessions:{test:job}"]).await else {
            return 0;
        };
        let is_rev = |name: &Value| matches!(name, Value::BulkString(b) if b.ends_with(b":rev"));
        names.iter().filter(|name| is_rev(name)).count()
    }

    pub async fn stop(&mut self, stop: &CancellationToken) {
        stop.cancel();
        self.workers.join_next().await.unwrap().unwrap().unwrap();
    }

    /// Changes the gate as the command line would, and waits until every worker obeys.
    pub async fn set(&self, fields: &[(&'static str, &str)]) -> u64 {
        let request = ChangeRequest {
            source: "cli".to_owned(),
            op: operation_id(),
            fields: fields.iter().map(|(k, v)| (*k, (*v).to_owned())).collect(),
            ..ChangeRequest::default()
        };
        let rev = match self.gates.change(&self.queue, &request).await.unwrap() {
            Changed::Changed(sealed) | Changed::Same(sealed) => sealed.rev,
            other => panic!("{other:?}"),
        };
        let confirmed = self
            .gates
            .wait(&self.queue, rev, patience(Duration::from_secs(30)))
            .await
            .unwrap();
        assert!(confirmed.missing.is_empty(), "{confirmed:?}");
        rev
    }

    pub async fn enqueue(&self, jobs: impl IntoIterator<Item = u64>) {
        let jobs: Vec<Job> = jobs.into_iter().map(|n| Job { n, then: String::new() }).collect();
        self.producer.enqueue_many(&jobs).await.unwrap();
    }

    pub async fn enqueue_one(&self, n: u64, then: &str) -> String {
        let job = Job {
            n,
            then: then.to_owned(),
        };
        self.producer.enqueue(&job).await.unwrap().to_string()
    }

    pub async fn depth(&self) -> QueueDepth {
        inspect::depth(&self.store, &self.queue).await.unwrap()
    }

    /// Waits until nothing waits, runs or is delayed. Seen twice: one look reads place after place, and a task that
    /// moves from a later place to an earlier one would slip through.
    pub async fn drained(&self) {
        let quiet = AtomicBool::new(false);
        eventually("the queue is drained", patience(Duration::from_secs(60)), async || {
            let depth = self.depth().await;
            let empty = depth.waiting() + depth.in_flight() + depth.delayed == 0;
            if quiet.swap(empty, Ordering::SeqCst) && empty {
                Ok(())
            } else {
                Err(format!("{depth:?}"))
            }
        })
        .await;
    }

    /// Waits until so many claims wait on Redis: workers that are connected, and have nothing to do.
    pub async fn blocked(&self, clients: usize) {
        eventually(
            "workers wait for tasks",
            patience(Duration::from_secs(30)),
            async || {
                let info: String = redis::from_redis_value(self.raw(&["INFO", "clients"]).await).unwrap();
                info.lines().any(|line| line == format!("blocked_clients:{clients}"))
            },
        )
        .await;
    }

    pub async fn raw(&self, args: &[&str]) -> Value {
        self.server.cli(args).await
    }
}

/// The dead letters of a queue, whole, newest first.
pub async fn dead_letters(store: &Store, queue: &Queue) -> Vec<Entry> {
    let dead = DeadStore::new(store, queue);
    let (mut out, mut after) = (Vec::new(), None);
    loop {
        let page = dead.scan(after, None, Order::NewestFirst, 500).await.unwrap();
        for letter in page.letters {
            out.extend(dead.get(letter.entry).await.unwrap());
        }
        after = page.last;
        if after.is_none() {
            return out;
        }
    }
}
