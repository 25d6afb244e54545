//! How long the tasks of a worker that went away stay out of line.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use switchback_common::{clock::Moment, store::keyspace::Key};
use switchback_producer::Producer;
use switchback_tests::{Process, RedisServer};
use switchback_worker::Context;

use crate::{
    Result, child,
    measures::Setup,
    ours::{self, Load, Place, Workers},
    raw,
    report::{Report, Samples, Want},
};

/// Tasks that the worker holds when it goes away.
const HELD: u64 = 10;

/// Until the survivor waits for tasks.
const SETTLED: Duration = Duration::from_millis(50);

/// How it goes away.
#[derive(Debug, Clone, Copy)]
enum Exit {
    Stopped,
    Killed,
}

pub(crate) async fn run(setup: &Setup, report: &mut Report) -> Result<()> {
    let redis = RedisServer::start().await;
    let lease = Duration::from_secs(setup.count(10, 2));

    let mut stopped = Samples::new()?;
    for n in 0..setup.count(10, 5) {
        stopped.add(Box::pin(once(redis.url(), format!("stop-{n}"), lease, Exit::Stopped, SETTLED)).await?);
    }
    report.times(
        "clean stop to started elsewhere",
        &stopped,
        &[("p50", Want::AtMost(50.0))],
    );

    // Side by side, each in a queue of its own: this is waiting, not working. They die at different times between two
    // renewals.
    let mut killed = Samples::new()?;
    let count = u32::try_from(setup.count(6, 3))?;
    let runs = (0..count).map(|n| {
        let after = SETTLED + lease / 5 * n / count;
        Box::pin(once(redis.url(), format!("kill-{n}"), lease, Exit::Killed, after))
    });
    for took in futures_util::future::try_join_all(runs).await? {
        killed.add(took);
    }
    let limit = lease + Duration::from_secs(2);
    let wants = [("max", Want::AtMost(limit.as_secs_f64() * 1e3))];
    report.times(
        format!("kill -9 to started elsewhere, lease {lease:?}"),
        &killed,
        &wants,
    );
    Ok(())
}

/// From the signal to the start of the last task in a worker that was there all the time.
async fn once(url: String, namespace: String, lease: Duration, exit: Exit, after: Duration) -> Result<Duration> {
    let place = Place::new(&url, &namespace)?;
    let mut connection = raw::connect(&url).await?;
    let lost: Process = child::Options::new(url, &namespace, lease, usize::try_from(HELD)?).spawn()?;
    place.sessions(1).await?;
    let producer = Producer::connect(&place.options, place.namespace()).await?;
    producer.enqueue_many(&Load::many(HELD)).await?;
    let stream = place.key(Key::Stream);
    while ours::pending(&mut connection, &stream).await? < i64::try_from(HELD)? {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let (started, last) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let (counted, newest) = (Arc::clone(&started), Arc::clone(&last));
    let mut survivors = Workers::new();
    survivors.start(place.config().lease(lease), 100, move |_: Load, context: Context| {
        newest.fetch_max(context.started.as_nanos(), Ordering::Relaxed);
        counted.fetch_add(1, Ordering::Release);
        std::future::ready(Ok(()))
    });
    place.sessions(2).await?;
    // The survivor has nothing to do, and waits for a task, before anything happens.
    tokio::time::sleep(after).await;

    let went = Moment::now();
    match exit {
        Exit::Stopped => lost.term(),
        Exit::Killed => lost.kill9(),
    }
    while started.load(Ordering::Acquire) < HELD {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let took = Moment::from_nanos(last.load(Ordering::Relaxed)).since(went);
    if matches!(exit, Exit::Stopped) {
        lost.wait().await;
    }
    survivors.end().await?;
    Ok(took)
}
