//! Enqueueing: in bulk, and one at a time.

use std::time::Instant;

use switchback_common::store::keyspace::Key;
use switchback_producer::Producer;
use switchback_tests::RedisServer;

use crate::{
    Result,
    measures::{Setup, per_second},
    ours::{self, Load, Place},
    raw,
    report::{Report, Want},
    server,
};

pub(crate) async fn run(setup: &Setup, report: &mut Report) -> Result<()> {
    let redis = RedisServer::start().await;
    let mut connection = raw::connect(&redis.url()).await?;
    let place = Place::new(&redis.url(), "bench")?;
    let producer = Producer::connect(&place.options, place.namespace()).await?;
    let stream = place.key(Key::Stream);

    let (many, few) = (setup.count(200_000, 30_000), setup.count(10_000, 2_000));
    let (tasks, payloads) = (Load::many(many), ours::payloads(many)?);
    let short = usize::try_from(few)?;
    let (mut raw_bulk, mut our_bulk) = (Vec::new(), Vec::new());
    let (mut raw_single, mut our_single) = (Vec::new(), Vec::new());
    for _ in 0..Setup::ROUNDS {
        server::flush(&mut connection).await?;
        raw_bulk.push(per_second(many, raw::bulk(&connection, &stream, &payloads).await?));

        server::flush(&mut connection).await?;
        let began = Instant::now();
        producer.enqueue_many(&tasks).await?;
        our_bulk.push(per_second(many, began.elapsed()));

        server::flush(&mut connection).await?;
        let took = raw::single(&mut connection, &stream, &payloads[..short]).await?;
        raw_single.push(per_second(few, took));

        server::flush(&mut connection).await?;
        let began = Instant::now();
        for task in &tasks[..short] {
            producer.enqueue(task).await?;
        }
        our_single.push(per_second(few, began.elapsed()));
    }
    report.compare(
        "bulk enqueue, 4 batches in flight",
        "tasks/s",
        &raw_bulk,
        &our_bulk,
        Some(Want::AtLeast(0.9)),
    );
    report.compare(
        "single enqueue, one after the other",
        "tasks/s",
        &raw_single,
        &our_single,
        None,
    );
    Ok(())
}
