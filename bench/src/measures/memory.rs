//! What a task takes in Redis: while it waits, and after it is done.

use std::time::Duration;

use switchback_producer::Producer;
use switchback_tests::RedisServer;

use crate::{
    Result,
    measures::{Setup, each},
    ours::{self, Load, Place, Tally, Workers},
    raw,
    report::{Report, Want},
    server,
};

pub(crate) async fn run(setup: &Setup, report: &mut Report) -> Result<()> {
    let redis = RedisServer::start().await;
    let mut connection = raw::connect(&redis.url()).await?;
    let place = Place::new(&redis.url(), "bench")?;
    let producer = Producer::connect(&place.options, place.namespace()).await?;
    // Below the number of inputs that a worker keeps.
    let count = setup.count(50_000, 20_000);
    let (tasks, payloads) = (Load::many(count), ours::payloads(count)?);
    // Connections and scripts are paid for before anything is counted.
    producer.enqueue_many(&tasks).await?;
    server::flush(&mut connection).await?;

    let before = server::memory(&mut connection).await?;
    raw::bulk(&connection, "bench:raw", &payloads).await?;
    let raw = each(server::memory(&mut connection).await? - before, count);
    server::flush(&mut connection).await?;

    let before = server::memory(&mut connection).await?;
    producer.enqueue_many(&tasks).await?;
    let ours = each(server::memory(&mut connection).await? - before, count);
    let tally = Tally::default();
    let mut workers = Workers::new();
    workers.start(place.config(), 100, tally.handler());
    tally.reaches(count).await;
    place.settled(&mut connection).await?;
    workers.end().await?;
    // Closed connections give their buffers back a moment later.
    tokio::time::sleep(Duration::from_millis(200)).await;
    let done = each(server::memory(&mut connection).await? - before, count);
    report.compare(
        "memory per waiting task",
        "bytes",
        &[raw],
        &[ours],
        Some(Want::AtMost(1.1)),
    );
    report.alone("memory per done task (input and log kept)", "bytes", &[done]);
    Ok(())
}
