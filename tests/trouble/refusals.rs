//! A Redis that answers, and says no: a replica, too few replicas, other rights than before.

use std::{sync::Arc, time::Duration};

use switchback_common::{ConnectOptions, store::log::Ended};
use switchback_tests::{Process, RedisServer, eventually, patience};
use switchback_worker::WorkerConfig;
use tokio::sync::Semaphore;

use crate::{
    fixture::{Fixture, Seen},
    tools::{LONG, enqueue_probe, error_stats, gated, kinds, numbers, pool, refused, settled, started},
};

const PASSWORD: &str = "hunter2";

/// Ten tasks run, ten wait; then Redis refuses with `code` what `refuse` says, until `allow`.
async fn refused_for_a_while(code: &str, refuse: &[&[&str]], allow: &[&[&str]]) {
    let mut fixture = Fixture::new().await;
    // A user of its own, so that its rights can change while it is at work.
    let rule = format!("ACL SETUSER app on >{PASSWORD} ~* &* +@all");
    fixture.raw(&rule.split(' ').collect::<Vec<_>>()).await;
    let url = format!("redis://app:{PASSWORD}@127.0.0.1:{}", fixture.server.port());
    let (seen, permits) = (Seen::default(), Arc::new(Semaphore::new(0)));
    let handler = gated(&seen, &permits);
    let config = WorkerConfig::new(ConnectOptions::new(url), "test".parse().unwrap()).lease(Duration::from_secs(60));
    fixture
        .worker(config, |t| t.version("v1", handler).concurrency(10))
        .await;
    fixture.enqueue(0..20).await;
    started(&seen, 10).await;

    let before = error_stats(&fixture).await;
    for command in refuse {
        fixture.raw(command).await;
    }
    permits.add_permits(10);
    refused(&fixture, &before, code, 8).await;
    for command in allow {
        fixture.raw(command).await;
    }
    permits.add_permits(1_000);
    fixture.drained().await;
    assert_eq!(numbers(&seen), (0..20).collect::<Vec<_>>(), "each once");
    assert_eq!(settled(&fixture, &fixture.queue, Ended::Done).await, 20);
    let kinds = kinds(&fixture).await;
    assert!(!kinds.contains(&"reaping".to_owned()), "{kinds:?}");
    let joined = kinds.iter().filter(|kind| *kind == "joined").count();
    assert_eq!(joined, 1, "the session outlives it: {kinds:?}");
}

// P1, P2: a primary that becomes a replica while a claim waits on it, and a primary again.
#[tokio::test(flavor = "multi_thread")]
async fn a_primary_that_is_demoted_for_a_while_loses_nothing() {
    let demote: &[&str] = &["REPLICAOF", "127.0.0.1", "1"];
    refused_for_a_while("READONLY", &[demote], &[&["REPLICAOF", "NO", "ONE"]]).await;
}

// P1, P2: too few replicas: not one write is taken, outcomes neither.
#[tokio::test(flavor = "multi_thread")]
async fn too_few_replicas_for_a_while_lose_nothing() {
    let need = |n| ["CONFIG", "SET", "min-replicas-to-write", n];
    refused_for_a_while("NOREPLICAS", &[&need("1")], &[&need("0")]).await;
}

// P1, P2: rights that are taken away in the middle of everything, and given back.
#[tokio::test(flavor = "multi_thread")]
async fn rights_that_are_taken_for_a_while_lose_nothing() {
    let take = ["ACL", "SETUSER", "app", "-xreadgroup", "-evalsha", "-eval"];
    let give = ["ACL", "SETUSER", "app", "+xreadgroup", "+evalsha", "+eval"];
    refused_for_a_while("NOPERM", &[&take], &[&give]).await;
}

// P1, P2: a password that is changed: connections are cut, new ones refused, until the old one is back.
#[tokio::test(flavor = "multi_thread")]
async fn a_password_that_is_wrong_for_a_while_loses_nothing() {
    let change = ["ACL", "SETUSER", "app", "resetpass", ">other"];
    let cut = ["CLIENT", "KILL", "USER", "app"];
    let back = ["ACL", "SETUSER", "app", "resetpass", ">hunter2"];
    refused_for_a_while("WRONGPASS", &[&change, &cut], &[&back]).await;
}

// A demotion wakes whoever waits for tasks. It is told as what it is, not as a group that is gone.
#[tokio::test(flavor = "multi_thread")]
async fn a_waiting_worker_is_told_of_a_demotion() {
    let fixture = Fixture::new().await;
    let pool = pool(&fixture.server.url(), &["--lease-ms", "60000"], &[]);
    pool.process.wait_line("session begun").await;
    eventually("it waits for a task", patience(LONG), async || {
        let clients: String = redis::from_redis_value(fixture.raw(&["CLIENT", "LIST"]).await).unwrap();
        clients
            .lines()
            .any(|line| line.contains("cmd=xreadgroup") && line.contains("flags=b"))
    })
    .await;
    fixture.raw(&["REPLICAOF", "127.0.0.1", "1"]).await;
    pool.process
        .wait_line("read-only replica; point Switchback at the primary")
        .await;
    fixture.raw(&["REPLICAOF", "NO", "ONE"]).await;
    enqueue_probe(&fixture, "{\"n\":1}").await;
    eventually("it goes on", patience(LONG), async || pool.witness.ends() == [1]).await;
    let lines = pool.process.lines();
    assert!(!lines.iter().any(|line| line.contains("consumer group")), "{lines:#?}");
    assert_eq!(
        lines.iter().filter(|line| line.contains("session begun")).count(),
        1,
        "{lines:#?}"
    );
}

// A replica given by mistake is refused at the start, with an exit code of its own.
#[tokio::test]
async fn a_replica_given_by_mistake_ends_with_5() {
    let server = RedisServer::start().await;
    server.cli(&["REPLICAOF", "127.0.0.1", "1"]).await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("pool.toml");
    let toml = format!(
        "[redis]\nurl = \"{}\"\n[pool]\npatience_s = 0\nhandlers = [\"index_document@v1\"]\n[examples]\nindex_dir = \"{}\"\n",
        server.url(),
        dir.path().display()
    );
    std::fs::write(&file, toml).unwrap();
    let none: [(&str, &str); 0] = [];
    let process = Process::start("switchback-worker", ["--config", &file.display().to_string()], none);
    assert_eq!(process.wait().await.code(), Some(5));
    let said = process.lines().join("\n");
    assert!(
        said.contains("read-only replica; point Switchback at the primary"),
        "{said}"
    );
    assert!(said.contains(&server.port().to_string()), "{said}");
}
