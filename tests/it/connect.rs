//! What goes wrong between us and Redis has a name, an advice, and no password in it.

use std::error::Error;
use std::time::Duration;

use switchback_common::{
    ConnectOptions, Queue, Store, StoreError,
    store::{
        enqueue::{EnqueueStore, NewTask},
        gate::GateStore,
    },
};
use switchback_tests::{Link, Mode, RedisServer, eventually};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

const SECRET: &str = "hunter2";

fn store(url: impl Into<String>) -> Store {
    Store::new(&ConnectOptions::new(url)).unwrap()
}

fn queue() -> Queue {
    Queue::new("shop".parse().unwrap(), "send_email".parse().unwrap())
}

/// All that a log or a terminal may ever show of an error.
fn shown(error: &StoreError) -> String {
    let mut out = format!("{error} {error:?} {error:#?}");
    let mut source = error.source();
    while let Some(cause) = source {
        out += &format!(" {cause} {cause:?}");
        source = cause.source();
    }
    out
}

#[tokio::test]
async fn nobody_there() {
    let server = RedisServer::start().await;
    let store = store(format!("redis://:{SECRET}@127.0.0.1:{}", server.port()));
    server.kill9();
    for error in [store.check_server().await.unwrap_err(), store.link().await.unwrap_err()] {
        assert!(matches!(error, StoreError::Unreachable { .. }), "{error:?}");
        assert!(error.is_unreachable() && error.is_transient() && !error.is_outcome_unknown());
        assert!(error.to_string().contains(&server.port().to_string()), "{error}");
        assert!(!shown(&error).contains(SECRET));
    }
}

#[tokio::test]
async fn a_connection_that_breaks_leaves_the_outcome_unknown() {
    let server = RedisServer::start().await;
    let link = Link::to(server.port()).await;
    let store = store(link.url());
    let connection = store.link().await.unwrap();
    let enqueue = EnqueueStore::new(&store, &queue());
    link.set(Mode::DropReplies).await;
    let error = enqueue.add(&connection, &NewTask::default()).await.unwrap_err();
    assert!(matches!(error, StoreError::Unreachable { .. }), "{error:?}");
    assert!(error.is_outcome_unknown() && error.is_transient());
}

#[tokio::test]
async fn a_wrong_or_missing_password_is_denied_and_shown_to_nobody() {
    let server = RedisServer::builder().arg("--requirepass", "correct").start().await;
    for url in [
        format!("redis://:{SECRET}@127.0.0.1:{}", server.port()),
        format!("redis://{SECRET}:{SECRET}@127.0.0.1:{}", server.port()),
        format!("redis://127.0.0.1:{}", server.port()),
    ] {
        let options = ConnectOptions::new(url);
        let store = Store::new(&options).unwrap();
        let error = store.check_server().await.unwrap_err();
        assert!(matches!(error, StoreError::Denied { .. }), "{error:?}");
        assert!(error.is_unreachable() && !error.is_transient() && !error.is_outcome_unknown());
        let output = format!("{} {options:?} {store:?} {}", shown(&error), store.address());
        assert!(!output.contains(SECRET), "{output}");
    }
    store(server.url()).check_server().await.unwrap();
}

#[tokio::test]
async fn a_user_without_the_right_to_a_command_is_denied() {
    let server = RedisServer::start().await;
    let rule = format!("ACL SETUSER app on >{SECRET} ~* +@all -xadd");
    server.cli(&rule.split(' ').collect::<Vec<_>>()).await;
    let store = store(format!("redis://app:{SECRET}@127.0.0.1:{}", server.port()));
    store.check_server().await.unwrap();
    let link = store.link().await.unwrap();
    let enqueue = EnqueueStore::new(&store, &queue());
    let error = enqueue.add(&link, &NewTask::default()).await.unwrap_err();
    assert!(matches!(error, StoreError::Denied { .. }), "{error:?}");
    let error = enqueue.add_many(&link, &[NewTask::default()]).await.unwrap_err();
    assert!(matches!(error, StoreError::Denied { .. }), "{error:?}");
    assert!(
        shown(&error).contains("xadd") && !shown(&error).contains(SECRET),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_bad_url_is_told_without_its_password() {
    for url in [
        "",
        "not a url",
        "http://u:hunter2@localhost",
        "redis://u:hunter2@localhost:99999",
        "redis://u:hunter2@localhost/hunter2",
        "redis://:hunter2@",
    ] {
        let options = ConnectOptions::new(url);
        let error = Store::new(&options).unwrap_err();
        assert!(matches!(error, StoreError::BadUrl(_)), "{url}: {error:?}");
        let output = format!("{} {options:?}", shown(&error));
        assert!(!output.contains(SECRET), "{output}");
        assert!(!error.is_transient());
    }
}

#[tokio::test]
async fn a_server_that_may_evict_is_refused() {
    let server = RedisServer::start().await;
    let store = store(server.url());
    let facts = store.check_server().await.unwrap();
    assert_eq!((facts.run_id.len(), facts.policy.as_str()), (40, "noeviction"));
    for policy in ["allkeys-lru", "volatile-ttl"] {
        server.cli(&["CONFIG", "SET", "maxmemory-policy", policy]).await;
        let error = store.check_server().await.unwrap_err();
        assert!(matches!(&error, StoreError::Evicting { policy: found, .. } if found == policy));
        assert!(error.to_string().contains("CONFIG SET maxmemory-policy noeviction"));
    }
}

#[tokio::test]
async fn a_replica_is_told_from_a_primary() {
    let server = RedisServer::start().await;
    let store = store(server.url());
    let link = store.link().await.unwrap();
    server.cli(&["REPLICAOF", "127.0.0.1", "1"]).await;
    let enqueue = EnqueueStore::new(&store, &queue());
    let plain = enqueue.add(&link, &NewTask::default()).await.unwrap_err();
    let batch = enqueue.add_many(&link, &[NewTask::default()]).await.unwrap_err();
    let script = GateStore::new(&store, &queue()).seal().await.unwrap_err();
    for error in [plain, batch, script] {
        assert!(matches!(error, StoreError::ReadOnly { .. }), "{error:?}");
        assert!(error.is_transient() && !error.is_outcome_unknown());
    }
}

#[tokio::test]
async fn a_server_that_loads_is_told_from_one_that_is_broken() {
    let server = RedisServer::start().await;
    // Half a minute of loading, cut short below.
    server.cli(&["DEBUG", "POPULATE", "30000"]).await;
    server
        .cli(&["CONFIG", "SET", "loading-process-events-interval-bytes", "1024"])
        .await;
    server.cli(&["CONFIG", "SET", "key-load-delay", "1000"]).await;
    let store = store(server.url());
    let gate = GateStore::new(&store, &queue());
    gate.history(None, 1).await.unwrap();

    let mut reload = server.connection().await;
    let mut background = JoinSet::new();
    background.spawn(async move { redis::cmd("DEBUG").arg("RELOAD").exec_async(&mut reload).await });
    let error = eventually("the server loads", Duration::from_secs(10), async || {
        store.check_server().await.err()
    })
    .await;
    assert!(matches!(error, StoreError::Loading { .. }), "{error:?}");
    assert!(error.is_transient() && error.is_unreachable());
    for error in [gate.history(None, 1).await.err(), gate.seal().await.err()] {
        assert!(matches!(error, Some(StoreError::Loading { .. })), "{error:?}");
    }
    server.cli(&["CONFIG", "SET", "key-load-delay", "0"]).await;
    eventually("it has loaded", Duration::from_secs(10), async || {
        store.check_server().await.is_ok()
    })
    .await;
}

#[tokio::test]
async fn a_server_without_enough_replicas_refuses_writes() {
    let server = RedisServer::start().await;
    server.cli(&["CONFIG", "SET", "min-replicas-to-write", "1"]).await;
    let store = store(server.url());
    let link = store.link().await.unwrap();
    let enqueue = EnqueueStore::new(&store, &queue());
    for error in [
        enqueue.add(&link, &NewTask::default()).await.unwrap_err(),
        enqueue.add_many(&link, &[NewTask::default()]).await.unwrap_err(),
        GateStore::new(&store, &queue()).seal().await.unwrap_err(),
    ] {
        assert!(matches!(error, StoreError::WritesRefused { .. }), "{error:?}");
    }
}

#[tokio::test]
async fn a_server_that_is_too_old_is_refused_by_its_version() {
    let mut clients = JoinSet::new();
    let old = store(server_that_says("redis_version:6.2.0", &mut clients).await);
    let error = old.check_server().await.unwrap_err();
    assert!(
        matches!(&error, StoreError::TooOld { found, .. } if found == "6.2.0"),
        "{error:?}"
    );
    assert!(!error.is_transient());
}

// Valkey names the Redis that it keeps to as well: a person wants to read what runs.
#[tokio::test]
async fn a_server_is_called_what_it_is() {
    let mut clients = JoinSet::new();
    let valkey = "redis_version:7.2.4\r\nserver_name:valkey\r\nvalkey_version:9.1.2";
    for (says, name, version) in [
        (valkey, "Valkey 9.1.2", "7.2.4"),
        ("redis_version:8.2.3", "Redis 8.2.3", "8.2.3"),
    ] {
        let store = store(server_that_says(says, &mut clients).await);
        let facts = store.check_server().await.unwrap();
        assert_eq!((facts.name.as_str(), facts.version.as_str()), (name, version));
    }
}

/// The URL of something that answers INFO with these lines.
async fn server_that_says(versions: &'static str, clients: &mut JoinSet<()>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    clients.spawn(async move {
        let mut clients = JoinSet::new();
        while let Ok((client, _)) = listener.accept().await {
            clients.spawn(act_like_redis(client, versions));
        }
    });
    format!("redis://127.0.0.1:{port}")
}

async fn act_like_redis(client: TcpStream, versions: &str) -> std::io::Result<()> {
    let info = format!("# Server\r\n{versions}\r\nrun_id:x\r\nmaxmemory_policy:noeviction\r\nloading:0\r\n");
    let mut client = BufReader::new(client);
    let mut line = String::new();
    while client.read_line(&mut line).await? > 0 {
        let parts: usize = line.trim_end()[1..].parse().expect("an array");
        let mut command = Vec::new();
        for _ in 0..parts {
            line.clear();
            client.read_line(&mut line).await?;
            let length: usize = line.trim_end()[1..].parse().expect("a length");
            let mut part = vec![0; length + 2];
            client.read_exact(&mut part).await?;
            part.truncate(length);
            command.push(String::from_utf8(part).expect("text"));
        }
        let reply = match command[0].as_str() {
            "INFO" => format!("${}\r\n{info}\r\n", info.len()),
            "PING" => match command.get(1) {
                Some(echo) => format!("${}\r\n{echo}\r\n", echo.len()),
                None => "+PONG\r\n".to_owned(),
            },
            _ => "+OK\r\n".to_owned(),
        };
        client.write_all(reply.as_bytes()).await?;
        line.clear();
    }
    Ok(())
}
