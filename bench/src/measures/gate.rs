//! What reading the gate adds to a claim of 100.

use std::time::{Duration, Instant};

use redis::{Value, aio::MultiplexedConnection};
use switchback_common::{
    SessionId,
    store::{
        claim::{Claimer, Want as Slots},
        keyspace::Key,
        session::{SessionRecord, SessionStore},
    },
};
use switchback_tests::RedisServer;

use crate::{
    Result,
    measures::{Setup, per_second},
    ours::{self, Place},
    raw,
    report::{Report, Want},
};

const ROUNDS: usize = 5;

pub(crate) async fn run(setup: &Setup, report: &mut Report) -> Result<()> {
    let redis = RedisServer::start().await;
    let mut connection = raw::connect(&redis.url()).await?;
    let place = Place::new(&redis.url(), "bench")?;
    let session = SessionId::random();
    let record = SessionRecord {
        host: String::new(),
        pid: 1,
        build: String::new(),
        versions: vec!["v1".parse()?, "v2".parse()?],
        concurrency: raw::BATCH,
        started_ms: 0,
    };
    let sessions = SessionStore::new(&place.store, &place.queue);
    sessions.join(&session, Duration::from_secs(600), &record).await?;
    let streams = [
        place.key(Key::Stream),
        place.key(Key::Head),
        place.key(|queue| Key::Lane(queue, record.versions[0].clone())),
    ];
    let main = streams[0].clone();
    let claimer = Claimer::new(&place.store, &place.queue, &session, streams.into()).await?;

    let claims = setup.count(500, 200);
    let count = claims * u64::try_from(raw::BATCH)?;
    raw::bulk(&connection, &main, &ours::payloads(count)?).await?;
    let plain = raw::claim(&main, session.as_str(), raw::BATCH, None);
    let mut gated = redis::pipe();
    gated.add_command(plain.clone());
    gated.cmd("TIME");
    gated.cmd("HGETALL").arg(place.key(Key::Gate));
    gated
        .cmd("HMGET")
        .arg(place.key(Key::GateState))
        .arg(&["rev", "digest", "seen"]);
    gated
        .cmd("PTTL")
        .arg(place.key(|queue| Key::Lease(queue, session.clone())));
    // As many as one claim of a worker with 100 free slots asks for.
    let wants = [(1, 1), (2, 1), (0, raw::BATCH - 2)].map(|(stream, count)| Slots { stream, count });

    let [mut plainly, mut gatedly, mut ours] = [const { Vec::new() }; 3];
    for _ in 0..ROUNDS {
        rewind(&mut connection, &main).await?;
        let began = Instant::now();
        for _ in 0..claims {
            plain.query_async::<Value>(&mut connection).await?;
        }
        plainly.push(per_second(count, began.elapsed()));

        rewind(&mut connection, &main).await?;
        let began = Instant::now();
        for _ in 0..claims {
            gated.query_async::<Value>(&mut connection).await?;
        }
        gatedly.push(per_second(count, began.elapsed()));

        rewind(&mut connection, &main).await?;
        let (began, mut got) = (Instant::now(), 0);
        for _ in 0..claims {
            got += claimer.claim(&wants).await?.len();
        }
        ours.push(per_second(u64::try_from(got)?, began.elapsed()));
    }
    report.compare(
        "claim of 100 with the gate; raw: without",
        "tasks/s",
        &plainly,
        &gatedly,
        Some(Want::AtLeast(0.95)),
    );
    report.compare("claim of 100 as the worker makes it", "tasks/s", &plainly, &ours, None);
    Ok(())
}

/// As if nothing had ever been claimed.
async fn rewind(connection: &mut MultiplexedConnection, stream: &str) -> Result<()> {
    redis::cmd("XGROUP")
        .arg("DESTROY")
        .arg(stream)
        .arg("workers")
        .exec_async(connection)
        .await?;
    raw::group(connection, stream).await
}
