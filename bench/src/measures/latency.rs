//! From the call of enqueue to the start of the handler, under a gentle load.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use redis::aio::MultiplexedConnection;
use switchback_common::clock::Moment;
use switchback_producer::Producer;
use switchback_tests::RedisServer;
use tokio::{
    task::JoinSet,
    time::{MissedTickBehavior, interval},
};

use crate::{
    Result,
    measures::Setup,
    ours::{Load, Place, Workers},
    raw,
    report::{Report, Samples, Want},
    server,
};

const STREAM: &str = "bench:raw";
const EVERY: Duration = Duration::from_millis(5);
/// The first ones warm up, and are not counted.
const DROPPED: usize = 50;

/// When each task was sent and started.
#[derive(Debug, Clone)]
struct Clocked(Arc<Mutex<Vec<Times>>>);

/// Sent, and started if it has been.
type Times = (Moment, Option<Moment>);

impl Clocked {
    fn new(count: u64) -> Self {
        let blank = (Moment::long_ago(), None);
        Self(Arc::new(Mutex::new((0..count).map(|_| blank).collect())))
    }

    fn note(&self, n: u64, change: impl FnOnce(&mut Times)) {
        let mut list = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(one) = usize::try_from(n).ok().and_then(|n| list.get_mut(n)) {
            change(one);
        }
    }

    fn sent(&self, n: u64) {
        self.note(n, |one| one.0 = Moment::now());
    }

    fn started(&self, n: u64) {
        let now = Moment::now();
        self.note(n, |one| one.1 = Some(now));
    }

    /// Waits for the last, then adds all but the first to `samples`.
    async fn collect(&self, samples: &mut Samples) {
        let missing = || {
            let list = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            list.iter().any(|(_, started)| started.is_none())
        };
        while missing() {
            tokio::time::sleep(EVERY).await;
        }
        let list = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (sent, started) in list.iter().skip(DROPPED) {
            samples.add(started.map_or(Duration::ZERO, |started| started.since(*sent)));
        }
    }
}

pub(crate) async fn run(setup: &Setup, report: &mut Report) -> Result<()> {
    let redis = RedisServer::start().await;
    let mut connection = raw::connect(&redis.url()).await?;
    let place = Place::new(&redis.url(), "bench")?;
    let producer = Producer::connect(&place.options, place.namespace()).await?;
    let count = u64::try_from(DROPPED)? + setup.count(800, 200);
    let (mut raw_samples, mut our_samples) = (Samples::new()?, Samples::new()?);
    for _ in 0..Setup::ROUNDS {
        server::flush(&mut connection).await?;
        floor(&redis.url(), &mut connection, count, &mut raw_samples).await?;
        server::flush(&mut connection).await?;
        ours(&place, &producer, count, &mut our_samples).await?;
    }
    report.times("enqueue to start at 200/s, raw", &raw_samples, &[]);
    let wants = [("p50", Want::AtMost(0.4)), ("p99", Want::AtMost(1.0))];
    report.times("enqueue to start at 200/s, ours", &our_samples, &wants);
    Ok(())
}

async fn floor(url: &str, connection: &mut MultiplexedConnection, count: u64, samples: &mut Samples) -> Result<()> {
    let clocked = Clocked::new(count);
    raw::group(connection, STREAM).await?;
    let mut reading = JoinSet::new();
    reading.spawn(read(raw::connect(url).await?, clocked.clone()));
    let mut ticks = ticks();
    for n in 0..count {
        ticks.tick().await;
        clocked.sent(n);
        let payload = serde_json::to_vec(&Load::new(n))?;
        raw::xadd(STREAM, &payload).exec_async(connection).await?;
    }
    clocked.collect(samples).await;
    reading.shutdown().await;
    Ok(())
}

async fn read(mut connection: MultiplexedConnection, clocked: Clocked) -> Result<()> {
    let claim = raw::claim(STREAM, "c", raw::BATCH, Some(Duration::from_secs(1)));
    loop {
        let claimed = raw::entries(claim.query_async(&mut connection).await?);
        let mut ids = Vec::with_capacity(claimed.len());
        for (id, payload) in claimed {
            clocked.started(serde_json::from_slice::<Load>(&payload)?.n);
            ids.push(id);
        }
        if !ids.is_empty() {
            raw::settle(STREAM, &ids).exec_async(&mut connection).await?;
        }
    }
}

async fn ours(place: &Place, producer: &Producer, count: u64, samples: &mut Samples) -> Result<()> {
    let clocked = Clocked::new(count);
    let mut workers = Workers::new();
    let noted = clocked.clone();
    workers.start(place.config(), 100, move |task: Load, _| {
        noted.started(task.n);
        std::future::ready(Ok(()))
    });
    place.sessions(1).await?;
    let mut ticks = ticks();
    for n in 0..count {
        ticks.tick().await;
        clocked.sent(n);
        producer.enqueue(&Load::new(n)).await?;
    }
    clocked.collect(samples).await;
    workers.end().await
}

fn ticks() -> tokio::time::Interval {
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}
