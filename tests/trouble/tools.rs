//! What these tests share: handlers that wait for the test, worker processes, and looks into Redis past the product.

use std::{sync::Arc, time::Duration};

use redis::Value;
use switchback_common::{
    ConnectOptions, Queue,
    store::log::{self, Ended},
};
use switchback_tests::{Link, Process, Witness, eventually, patience};
use switchback_worker::{Context, TaskError, WorkerConfig};
use tempfile::TempDir;
use tokio::sync::Semaphore;

use crate::fixture::{Fixture, Job, Seen};

pub const MAIN: &str = "sb:stream:{test:job}";
pub const GATE: &str = "sb:gate:{test:job}";
pub const PROBES: &str = "sb:stream:{test:probe}";
/// The number of the task of [`reconnected`].
pub const HELLO: u64 = 9_999;
pub const LONG: Duration = Duration::from_secs(30);

type Running = std::pin::Pin<Box<dyn Future<Output = Result<(), TaskError>> + Send>>;

/// A handler that writes itself down and goes on when the test lets it: then it does as the job says.
pub fn gated(
    seen: &Seen,
    permits: &Arc<Semaphore>,
) -> impl Fn(Job, Context) -> Running + Send + Sync + 'static + use<> {
    let (first, permits) = (seen.handler(), Arc::clone(permits));
    move |job, ctx| {
        let (first, permits) = (first(job, ctx), Arc::clone(&permits));
        Box::pin(async move {
            let ended = first.await;
            permits.acquire().await.unwrap().forget();
            ended
        })
    }
}

pub fn config_through(link: &Link) -> WorkerConfig {
    WorkerConfig::new(ConnectOptions::new(link.url()), "test".parse().unwrap()).lease(Duration::from_secs(5))
}

pub async fn started(seen: &Seen, count: usize) {
    eventually("the handlers have started", patience(LONG), async || {
        let got = seen.all().len();
        if got == count { Ok(()) } else { Err(got) }
    })
    .await;
}

/// Every number that ran, sorted, repeats included.
pub fn numbers(seen: &Seen) -> Vec<u64> {
    let mut all: Vec<u64> = seen.all().iter().map(|ran| ran.n).collect();
    all.sort_unstable();
    all
}

/// Every number that ran, sorted, repeats left out.
pub fn distinct(seen: &Seen) -> Vec<u64> {
    let mut all = numbers(seen);
    all.dedup();
    all
}

pub async fn kinds(fixture: &Fixture) -> Vec<String> {
    let entries = log::read(&fixture.store, &fixture.queue, None, 10_000).await.unwrap();
    entries.into_iter().map(|e| e.kind).collect()
}

/// How many attempts the log has with this end.
pub async fn settled(fixture: &Fixture, queue: &Queue, ended: Ended) -> usize {
    let entries = log::read(&fixture.store, queue, None, 10_000).await.unwrap();
    let groups = entries.iter().flat_map(|e| &e.attempts);
    groups.flat_map(|g| &g.tasks).filter(|row| row.3 == ended).count()
}

/// The errors that Redis has answered with so far, as `rejected`/`errorstat` lines.
pub async fn error_stats(fixture: &Fixture) -> String {
    let info = fixture.raw(&["INFO", "errorstats"]).await;
    redis::from_redis_value(info).unwrap()
}

/// Waits until Redis has said `code` to somebody `times` more often than `before` says.
pub async fn refused(fixture: &Fixture, before: &str, code: &str, times: u64) {
    let count = |text: &str| -> u64 {
        let line = text
            .lines()
            .find_map(|l| l.strip_prefix(&format!("errorstat_{code}:count=")));
        line.map_or(0, |n| n.trim().parse().unwrap())
    };
    let before = count(before);
    eventually(&format!("Redis says {code}"), patience(LONG), async || {
        let now = count(&error_stats(fixture).await);
        if now >= before + times { Ok(()) } else { Err(now) }
    })
    .await;
}

/// Waits until the producer of the test has a connection again: what it sends on one that broke has an unknown outcome.
pub async fn reconnected(fixture: &Fixture) {
    let hello = Job {
        n: HELLO,
        then: String::new(),
    };
    eventually("the producer is connected", patience(LONG), async || {
        fixture.producer.enqueue(&hello).id("hello").await.map(drop)
    })
    .await;
}

pub fn probe_queue() -> Queue {
    Queue::new("test".parse().unwrap(), "probe".parse().unwrap())
}

pub struct Pool {
    pub process: Process,
    pub witness: Witness,
    _directory: TempDir,
}

/// A worker process with a lease of 2 s.
pub fn pool(url: &str, extra: &[&str], env: &[(&str, &str)]) -> Pool {
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("starts");
    let mut witness = Witness::default();
    witness.watch(&file);
    let file = file.display().to_string();
    let mut args = vec!["--redis", url, "--versions", "v1", "--witness", &file];
    if !extra.contains(&"--lease-ms") {
        args.extend(["--lease-ms", "2000"]);
    }
    args.extend(extra);
    let env = env.iter().copied().chain([("RUST_LOG", "info")]);
    Pool {
        process: Process::start("switchback-test-pool", args, env),
        witness,
        _directory: directory,
    }
}

pub async fn enqueue_probe(fixture: &Fixture, json: &str) {
    fixture.raw(&["XADD", PROBES, "*", "payload", json]).await;
}

pub async fn int(fixture: &Fixture, command: &[&str]) -> i64 {
    match fixture.raw(command).await {
        Value::Int(n) => n,
        other => panic!("{command:?}: {other:?}"),
    }
}
