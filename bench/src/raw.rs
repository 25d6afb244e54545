//! The floor: plain commands over the same client library, nothing around them.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use futures_util::{StreamExt as _, TryStreamExt as _};
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionInfo, IntoConnectionInfo as _, Value, aio::MultiplexedConnection,
    io::tcp::TcpSettings,
};
use tokio::task::JoinSet;

use crate::Result;

/// Entries per pipeline and per claim.
pub(crate) const BATCH: usize = 100;
/// Pipelines in flight.
pub(crate) const IN_FLIGHT: usize = 4;
const GROUP: &str = "workers";

/// The way to a server, with the settings that the product's own connections have.
pub(crate) fn address(url: &str) -> Result<ConnectionInfo> {
    let settings = TcpSettings::default().set_nodelay(true);
    Ok(url.into_connection_info()?.set_tcp_settings(settings))
}

/// A connection of one's own.
pub(crate) async fn connect(url: &str) -> Result<MultiplexedConnection> {
    let config = AsyncConnectionConfig::new().set_response_timeout(Some(Duration::from_secs(30)));
    let client = Client::open(address(url)?)?;
    Ok(client.get_multiplexed_async_connection_with_config(&config).await?)
}

/// `XADD <stream> * payload <json>`.
pub(crate) fn xadd(stream: &str, payload: &[u8]) -> Cmd {
    let mut cmd = Cmd::with_capacity(5, payload.len() + 64);
    cmd.arg("XADD").arg(stream).arg("*").arg("payload").arg(payload);
    cmd
}

/// Pipelines of 100, 4 in flight on one connection.
pub(crate) async fn bulk(connection: &MultiplexedConnection, stream: &str, payloads: &[Vec<u8>]) -> Result<Duration> {
    let began = Instant::now();
    futures_util::stream::iter(payloads.chunks(BATCH).map(|chunk| {
        let mut connection = connection.clone();
        async move {
            let mut pipe = redis::Pipeline::with_capacity(chunk.len());
            for payload in chunk {
                pipe.add_command(xadd(stream, payload));
            }
            pipe.query_async::<Value>(&mut connection).await
        }
    }))
    .buffer_unordered(IN_FLIGHT)
    .try_for_each(|_| std::future::ready(Ok(())))
    .await?;
    Ok(began.elapsed())
}

/// One after the other.
pub(crate) async fn single(
    connection: &mut MultiplexedConnection,
    stream: &str,
    payloads: &[Vec<u8>],
) -> Result<Duration> {
    let began = Instant::now();
    for payload in payloads {
        xadd(stream, payload).query_async::<Value>(connection).await?;
    }
    Ok(began.elapsed())
}

pub(crate) async fn group(connection: &mut MultiplexedConnection, stream: &str) -> Result<()> {
    let mut cmd = redis::cmd("XGROUP");
    cmd.arg("CREATE").arg(stream).arg(GROUP).arg("0").arg("MKSTREAM");
    Ok(cmd.exec_async(connection).await?)
}

/// `XREADGROUP … COUNT <count> [BLOCK <ms>] STREAMS <stream> >`.
pub(crate) fn claim(stream: &str, consumer: &str, count: usize, block: Option<Duration>) -> Cmd {
    let mut cmd = redis::cmd("XREADGROUP");
    cmd.arg("GROUP").arg(GROUP).arg(consumer).arg("COUNT").arg(count);
    if let Some(block) = block {
        cmd.arg("BLOCK").arg(u64::try_from(block.as_millis()).unwrap_or(1));
    }
    cmd.arg("STREAMS").arg(stream).arg(">");
    cmd
}

/// XACK and XDEL of what was claimed, in one pipeline.
pub(crate) fn settle(stream: &str, ids: &[Vec<u8>]) -> redis::Pipeline {
    let mut pipe = redis::pipe();
    pipe.cmd("XACK").arg(stream).arg(GROUP).arg(ids);
    pipe.cmd("XDEL").arg(stream).arg(ids);
    pipe
}

/// Ids and payloads of what a claim on one stream brought.
pub(crate) fn entries(reply: Value) -> Vec<(Vec<u8>, Vec<u8>)> {
    let list = |value| match value {
        Value::Array(items) => items,
        _ => Vec::new(),
    };
    let stream = list(reply).into_iter().next().map(list).unwrap_or_default();
    let entries = stream.into_iter().nth(1).map(list).unwrap_or_default();
    let parts = entries.into_iter().filter_map(|entry| {
        let mut entry = list(entry).into_iter();
        let (id, fields) = (entry.next()?, entry.next()?);
        let payload = list(fields).into_iter().nth(1)?;
        match (id, payload) {
            (Value::BulkString(id), Value::BulkString(payload)) => Some((id, payload)),
            _ => None,
        }
    });
    parts.collect()
}

/// Claims and settles `total` entries in `loops` loops, each with a connection of its own.
pub(crate) async fn drain(url: &str, stream: &'static str, loops: usize, total: u64) -> Result<Duration> {
    let done = Arc::new(AtomicU64::new(0));
    let mut connections = Vec::new();
    for _ in 0..loops {
        connections.push(connect(url).await?);
    }
    let began = Instant::now();
    let mut running = JoinSet::new();
    for (n, connection) in connections.into_iter().enumerate() {
        running.spawn(drain_loop(connection, stream, n, Arc::clone(&done), total));
    }
    while let Some(ended) = running.join_next().await {
        ended??;
    }
    Ok(began.elapsed())
}

async fn drain_loop(
    mut connection: MultiplexedConnection,
    stream: &'static str,
    n: usize,
    done: Arc<AtomicU64>,
    total: u64,
) -> Result<()> {
    let claim = claim(stream, &format!("c{n}"), BATCH, Some(Duration::from_millis(10)));
    while done.load(Ordering::Relaxed) < total {
        let claimed = entries(claim.query_async(&mut connection).await?);
        if claimed.is_empty() {
            continue;
        }
        let ids: Vec<Vec<u8>> = claimed.into_iter().map(|(id, _)| id).collect();
        settle(stream, &ids).exec_async(&mut connection).await?;
        done.fetch_add(u64::try_from(ids.len())?, Ordering::Relaxed);
    }
    Ok(())
}
