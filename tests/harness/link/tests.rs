use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Client, Value};

use super::*;
use crate::{RedisServer, eventually};

async fn connect(link: &Link) -> redis::RedisResult<MultiplexedConnection> {
    let config = AsyncConnectionConfig::new().set_response_timeout(None);
    Client::open(link.url())?
        .get_multiplexed_async_connection_with_config(&config)
        .await
}

async fn incr(connection: &mut MultiplexedConnection) -> redis::RedisResult<i64> {
    redis::cmd("INCR").arg("n").query_async(connection).await
}

#[tokio::test]
async fn passes_and_counts() {
    let server = RedisServer::start().await;
    let link = Link::to(server.port()).await;
    let mut connection = connect(&link).await.unwrap();
    assert_eq!(incr(&mut connection).await.unwrap(), 1);
    let big = "x".repeat(3_000_000); // more than fits into the pump
    let echo: String = redis::cmd("ECHO").arg(&big).query_async(&mut connection).await.unwrap();
    assert!(echo == big);

    let counters = link.counters();
    assert_eq!(
        (counters.connections, counters.open, counters.swallowed_bytes),
        (1, 1, 0)
    );
    assert!(counters.request_bytes > 3_000_000 && counters.reply_bytes > 3_000_000);
    drop(connection);
    eventually("the connection is closed", Duration::from_secs(2), async || {
        link.counters().open == 0
    })
    .await;
}

#[tokio::test]
async fn cut_ends_open_connections_and_allows_new_ones() {
    let server = RedisServer::start().await;
    let link = Link::to(server.port()).await;
    let mut connection = connect(&link).await.unwrap();
    link.cut().await;
    assert_eq!(link.counters().open, 0);
    assert!(incr(&mut connection).await.is_err());
    assert_eq!(incr(&mut connect(&link).await.unwrap()).await.unwrap(), 1);
}

#[tokio::test]
async fn refuse_leaves_nobody_listening() {
    let server = RedisServer::start().await;
    let link = Link::to(server.port()).await;
    let mut connection = connect(&link).await.unwrap();
    link.set(Mode::Refuse).await;
    assert!(incr(&mut connection).await.is_err());
    let refused = TcpStream::connect((Ipv4Addr::LOCALHOST, link.port()))
        .await
        .unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    link.set(Mode::Pass).await;
    assert_eq!(incr(&mut connect(&link).await.unwrap()).await.unwrap(), 1);
}

#[tokio::test]
async fn a_blackhole_holds_bytes_until_it_is_gone() {
    let server = RedisServer::start().await;
    let link = Link::to(server.port()).await;
    let mut connection = connect(&link).await.unwrap();
    link.set(Mode::Blackhole).await;
    let mut answer = std::pin::pin!(incr(&mut connection));
    assert!(timeout(Duration::from_millis(50), &mut answer).await.is_err());
    assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, link.port())).await.is_ok());
    assert_eq!(server.cli(&["EXISTS", "n"]).await, Value::Int(0));
    link.set(Mode::Pass).await;
    assert_eq!(answer.await.unwrap(), 1);
}

#[tokio::test]
async fn a_delay_is_paid_each_way_but_once_per_pipeline() {
    let server = RedisServer::start().await;
    let link = Link::to(server.port()).await;
    let connection = connect(&link).await.unwrap();
    link.set(Mode::Delay(Duration::from_millis(40))).await;
    let start = Instant::now();
    let mut calls = JoinSet::new();
    for _ in 0..500 {
        let mut connection = connection.clone();
        calls.spawn(async move { incr(&mut connection).await.unwrap() });
    }
    calls.join_all().await;
    let took = start.elapsed();
    assert!(took >= Duration::from_millis(80), "{took:?}");
    assert!(took < Duration::from_secs(20), "{took:?}"); // one after the other would take 40 s
}

#[tokio::test]
async fn dropped_replies_leave_the_command_executed() {
    let server = RedisServer::start().await;
    let link = Link::to(server.port()).await;
    let mut connection = connect(&link).await.unwrap();
    link.set(Mode::DropReplies).await;
    let mut pipeline = redis::pipe();
    for _ in 0..5_000 {
        pipeline.cmd("INCR").arg("n");
    }
    assert!(pipeline.query_async::<Vec<i64>>(&mut connection).await.is_err());
    eventually("all commands are executed", Duration::from_secs(2), async || {
        server.cli(&["GET", "n"]).await == Value::BulkString(b"5000".to_vec())
    })
    .await;
    assert!(link.counters().swallowed_bytes > 0);
    link.set(Mode::Pass).await;
    assert_eq!(incr(&mut connect(&link).await.unwrap()).await.unwrap(), 5_001);
}

#[tokio::test]
async fn a_dead_server_shows_as_a_closed_connection() {
    let server = RedisServer::start().await;
    let link = Link::to(server.port()).await;
    let mut connection = connect(&link).await.unwrap();
    server.kill9();
    assert!(incr(&mut connection).await.is_err());
    assert!(connect(&link).await.is_err());
    server.restart().await;
    assert_eq!(incr(&mut connect(&link).await.unwrap()).await.unwrap(), 1);
}
