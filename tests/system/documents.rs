//! The documents are true: every `redis-cli` line of the README does what it says.

use redis::Value;
use switchback_common::{
    ConnectOptions, Queue, Store,
    store::{gate::GateStore, inspect},
};
use switchback_gates::Gates;
use switchback_tests::{RedisServer, pretend, words};

const README: &str = include_str!("../../README.md");

/// The lines of the blocks that follow the marker.
fn commands() -> Vec<Vec<String>> {
    README
        .split("<!-- run by tests/system/documents.rs -->\n```sh\n")
        .skip(1)
        .flat_map(|rest| rest.split("```").next().unwrap_or_default().lines())
        .map(words)
        .collect()
}

#[tokio::test]
async fn every_redis_cli_line_of_the_readme_does_what_it_says() {
    let server = RedisServer::start().await;
    let store = Store::new(&ConnectOptions::new(server.url())).unwrap();
    let queue = Queue::new("shop".parse().unwrap(), "send_email".parse().unwrap());
    pretend(&store, &queue, &["v1", "v2"]).await;
    let gates = Gates::new(&store);
    let gate = GateStore::new(&store, &queue);
    let expected = [
        ("only v1", "v1 active"),
        ("only v1 by alice", "v1 active"),
        ("only v1 inflight revoke", "v1 active"),
        ("candidate v2 percent 10", "v1 active, v2 at 10 %"),
        ("percent 25", "v1 active, v2 at 25 %"),
        ("active v2", "v2 active"),
        ("pins", "v2 active, 2 pinned"),
        ("targets", "v2 active, 2 pinned, 1 targeted"),
        ("paused 1", "v2 active, 2 pinned, 1 targeted, paused"),
        ("paused 0", "v2 active, 2 pinned, 1 targeted"),
        ("HGETALL", "v2 active, 2 pinned, 1 targeted"),
        ("XREVRANGE", "v2 active, 2 pinned, 1 targeted"),
        ("EVAL", "v1 active, 2 pinned"),
        ("XADD", "v1 active, 2 pinned"),
    ];
    let commands = commands();
    assert_eq!(
        commands.len(),
        expected.len(),
        "a line was added: say here what it does"
    );
    for (command, (about, after)) in commands.iter().zip(expected) {
        let line = command.join(" ");
        assert!(line.starts_with("redis-cli ") && line.contains(about), "{line}");
        let arguments: Vec<&str> = command[1..].iter().map(String::as_str).collect();
        if about == "EVAL" {
            server.cli(&["CONFIG", "SET", "maxmemory", "1"]).await;
            server
                .try_cli(&["HSET", gate.key(), "only", "v1"])
                .await
                .expect_err("a plain HSET is refused");
        }
        let reply = server.cli(&arguments).await;
        assert_ne!(reply, Value::Nil, "{line}");
        gate.seal().await.unwrap();
        server.cli(&["CONFIG", "SET", "maxmemory", "0"]).await;
        assert_eq!(gates.show(&queue).await.unwrap().gate.to_string(), after, "{line}");
    }
    assert_eq!(inspect::depth(&store, &queue).await.unwrap().waiting(), 1);
}
