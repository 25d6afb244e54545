//! How many commands a task costs Redis, end to end.

use std::{collections::BTreeMap, time::Duration};

use switchback_producer::Producer;
use switchback_tests::RedisServer;
use tokio::time::interval;

use crate::{
    Result,
    measures::{Setup, each},
    ours::{Load, Place, Tally, Workers},
    raw,
    report::Report,
    server,
};

pub(crate) async fn run(setup: &Setup, report: &mut Report) -> Result<()> {
    let redis = RedisServer::start().await;
    let mut connection = raw::connect(&redis.url()).await?;
    let place = Place::new(&redis.url(), "bench")?;
    let producer = Producer::connect(&place.options, place.namespace()).await?;
    let tally = Tally::default();
    let mut workers = Workers::new();
    workers.start(place.config(), 100, tally.handler());
    place.sessions(1).await?;

    let (few, many) = (setup.count(1_000, 400), setup.count(100_000, 20_000));
    let mut ticks = interval(Duration::from_millis(5));
    for n in 0..100 {
        ticks.tick().await;
        producer.enqueue(&Load::new(n)).await?;
    }
    tally.reaches(100).await;
    // One gentle load.
    server::forget_commands(&mut connection).await?;
    for n in 0..few {
        ticks.tick().await;
        producer.enqueue(&Load::new(n)).await?;
    }
    tally.reaches(100 + few).await;
    let idle = server::commands(&mut connection).await?;
    // A worker that waits.
    let seconds = setup.count(4, 2);
    server::forget_commands(&mut connection).await?;
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    let waiting = server::commands(&mut connection).await?;
    // All at once.
    let tasks = Load::many(many);
    server::forget_commands(&mut connection).await?;
    producer.enqueue_many(&tasks).await?;
    tally.reaches(100 + few + many).await;
    let load = server::commands(&mut connection).await?;
    workers.end().await?;

    let parts = [(&idle, few), (&load, many), (&waiting, seconds)];
    let figure = |name: &str| parts.map(|(calls, n)| each(calls.get(name).copied().unwrap_or(0.0), n));
    let all = parts.map(|(calls, n)| each(calls.values().sum(), n));
    report.command("all".to_owned(), all[0], all[1], all[2]);
    let names: BTreeMap<&String, ()> = parts
        .iter()
        .flat_map(|(calls, _)| calls.keys())
        .map(|n| (n, ()))
        .collect();
    let mut rows: Vec<(&String, [f64; 3])> = names.into_keys().map(|name| (name, figure(name))).collect();
    rows.sort_by(|a, b| b.1[0].total_cmp(&a.1[0]));
    for (name, [idle, load, waiting]) in rows {
        if idle >= 0.01 || load >= 0.01 || waiting >= 0.5 {
            report.command(name.clone(), idle, load, waiting);
        }
    }
    Ok(())
}
