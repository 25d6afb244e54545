//! Draining a backlog, enqueueing and draining at once, and what either costs Redis.

use std::time::{Duration, Instant};

use redis::aio::MultiplexedConnection;
use switchback_producer::Producer;
use switchback_tests::RedisServer;

use crate::{
    Result,
    measures::{Setup, each, per_second},
    ours::{self, Load, Place, Tally, Workers},
    raw,
    report::{Report, Want},
    server,
};

const STREAM: &str = "bench:raw";

struct Bench {
    url: String,
    connection: MultiplexedConnection,
    place: Place,
    producer: Producer,
    total: u64,
    tasks: Vec<Load>,
    payloads: Vec<Vec<u8>>,
}

pub(crate) async fn run(setup: &Setup, report: &mut Report) -> Result<()> {
    let redis = RedisServer::start().await;
    let place = Place::new(&redis.url(), "bench")?;
    let total = setup.count(200_000, 30_000);
    let mut bench = Bench {
        url: redis.url(),
        connection: raw::connect(&redis.url()).await?,
        producer: Producer::connect(&place.options, place.namespace()).await?,
        place,
        total,
        tasks: Load::many(total),
        payloads: ours::payloads(total)?,
    };
    let [mut one, mut four, mut raw_both] = [const { Vec::new() }; 3];
    let [mut hundred, mut more, mut our_both] = [const { Vec::new() }; 3];
    let (mut raw_spent, mut our_spent) = (Spent::default(), Spent::default());
    for _ in 0..Setup::ROUNDS {
        one.push(bench.raw(1, &mut Spent::default()).await?);
        four.push(bench.raw(raw::IN_FLIGHT, &mut raw_spent).await?);
        hundred.push(bench.ours(100, &mut our_spent).await?);
        more.push(bench.ours(500, &mut Spent::default()).await?);
        raw_both.push(bench.raw_at_once().await?);
        our_both.push(bench.ours_at_once().await?);
    }
    let want = Some(Want::AtLeast(0.85));
    report.compare("drain, concurrency 100; raw: 4 loops", "tasks/s", &four, &hundred, want);
    report.compare("drain, concurrency 500; raw: 4 loops", "tasks/s", &four, &more, want);
    report.compare("drain, concurrency 100; raw: 1 loop", "tasks/s", &one, &hundred, None);
    let want = Some(Want::AtLeast(1.0));
    report.compare(
        "enqueue and drain at once; raw: 4 loops",
        "tasks/s",
        &raw_both,
        &our_both,
        want,
    );
    let (raw, ours) = (&raw_spent, &our_spent);
    let want = Some(Want::AtMost(1.1));
    report.compare(
        "Redis CPU, enqueue to settled",
        "s/million",
        &raw.redis,
        &ours.redis,
        want,
    );
    report.compare(
        "client CPU, enqueue to settled",
        "s/million",
        &raw.client,
        &ours.client,
        None,
    );
    Ok(())
}

/// Processor seconds per million tasks, round by round.
#[derive(Debug, Default)]
struct Spent {
    redis: Vec<f64>,
    client: Vec<f64>,
}

impl Bench {
    /// Processor seconds so far: of Redis, of this process.
    async fn clocks(&mut self) -> Result<[f64; 2]> {
        let own = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
        let own = Duration::new(own.tv_sec.try_into()?, own.tv_nsec.try_into()?);
        Ok([server::cpu(&mut self.connection).await?, own.as_secs_f64()])
    }

    async fn note(&mut self, before: [f64; 2], spent: &mut Spent) -> Result<()> {
        let after = self.clocks().await?;
        spent.redis.push(each(after[0] - before[0], self.total) * 1e6);
        spent.client.push(each(after[1] - before[1], self.total) * 1e6);
        Ok(())
    }

    /// Rate of the drain; time is spent from enqueue to settled.
    async fn raw(&mut self, loops: usize, spent: &mut Spent) -> Result<f64> {
        server::flush(&mut self.connection).await?;
        let before = self.clocks().await?;
        raw::bulk(&self.connection, STREAM, &self.payloads).await?;
        raw::group(&mut self.connection, STREAM).await?;
        let took = raw::drain(&self.url, STREAM, loops, self.total).await?;
        self.note(before, spent).await?;
        Ok(per_second(self.total, took))
    }

    /// The same of ours.
    async fn ours(&mut self, concurrency: usize, spent: &mut Spent) -> Result<f64> {
        server::flush(&mut self.connection).await?;
        let before = self.clocks().await?;
        self.producer.enqueue_many(&self.tasks).await?;
        let tally = Tally::default();
        let mut workers = Workers::new();
        workers.start(self.place.config(), concurrency, tally.handler());
        tally.reaches(self.total).await;
        self.place.settled(&mut self.connection).await?;
        let took = tally.since_first();
        self.note(before, spent).await?;
        workers.end().await?;
        Ok(per_second(self.total, took))
    }

    async fn raw_at_once(&mut self) -> Result<f64> {
        server::flush(&mut self.connection).await?;
        raw::group(&mut self.connection, STREAM).await?;
        let (sent, drained) = tokio::join!(
            raw::bulk(&self.connection, STREAM, &self.payloads),
            raw::drain(&self.url, STREAM, raw::IN_FLIGHT, self.total),
        );
        Ok(per_second(self.total, sent?.max(drained?)))
    }

    async fn ours_at_once(&mut self) -> Result<f64> {
        server::flush(&mut self.connection).await?;
        let tally = Tally::default();
        let mut workers = Workers::new();
        workers.start(self.place.config(), 100, tally.handler());
        self.place.sessions(1).await?;
        let began = Instant::now();
        let (sent, ()) = tokio::join!(self.producer.enqueue_many(&self.tasks), tally.reaches(self.total));
        sent?;
        self.place.settled(&mut self.connection).await?;
        let took = began.elapsed();
        workers.end().await?;
        Ok(per_second(self.total, took))
    }
}
