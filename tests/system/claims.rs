//! What a claim costs.

use futures_util::StreamExt as _;

use crate::fixture::Fixture;

/// Watches every command, as `client address` -> `command`, until `done`.
pub(crate) async fn watched(fixture: &Fixture, done: impl AsyncFnOnce()) -> Vec<(String, Vec<String>)> {
    let client = redis::Client::open(fixture.server.url()).unwrap();
    let monitor = client.get_async_monitor().await.unwrap();
    let mut lines = monitor.into_on_message::<String>();
    done().await;
    fixture.raw(&["ECHO", "the end"]).await;
    let mut out = Vec::new();
    while let Some(line) = lines.next().await {
        // `1700000000.123 [0 127.0.0.1:4242] "XADD" "key" …`; scripts show `[0 lua]`.
        let (head, rest) = line.split_once("] ").unwrap();
        let from = head.split_once('[').unwrap().1.to_owned();
        let words: Vec<String> = rest.split("\" \"").map(|w| w.trim_matches('"').to_owned()).collect();
        if words.last().is_some_and(|w| w == "the end") {
            break;
        }
        // Redis 7.2 and newer, and Valkey, know what the client library says of itself on each new connection. 7.0 calls
        // it an error, which MONITOR does not show. No test is about it.
        if words.starts_with(&["CLIENT".to_owned(), "SETINFO".to_owned()]) {
            continue;
        }
        out.push((from, words));
    }
    out
}

// P3 in order and at no extra cost: claims, then TIME, gate, state, lease; one pipeline, no script.
#[tokio::test(flavor = "multi_thread")]
async fn a_claim_under_an_unchanged_gate_runs_no_script() {
    let mut fixture = Fixture::new().await;
    let (_stop, _) = fixture.simple(&["v1", "v2"]).await;
    let commands = watched(&fixture, async || {
        for n in 0..20 {
            fixture.enqueue_one(n, "").await;
        }
        fixture.enqueue(20..2_020).await;
        fixture.drained().await;
    })
    .await;
    let claimers: std::collections::BTreeSet<&String> = commands
        .iter()
        .filter(|(from, words)| from != "0 lua" && words[0] == "XREADGROUP")
        .map(|(from, _)| from)
        .collect();
    assert!(
        (1..=2).contains(&claimers.len()),
        "claims come over their own connections: {claimers:?}"
    );
    let mut claims = 0;
    for claimer in claimers {
        let mine: Vec<&Vec<String>> = commands
            .iter()
            .filter(|(from, _)| from == claimer)
            .map(|(_, w)| w)
            .collect();
        // The first may answer a wait that began before anybody watched.
        for (at, words) in mine.iter().enumerate().skip(1) {
            assert!(
                ["XREADGROUP", "TIME", "HGETALL", "HMGET", "PTTL"].contains(&words[0].as_str()),
                "a claimer sends nothing else: {words:?}"
            );
            if words[0] == "TIME" {
                claims += 1;
                assert_eq!(
                    mine[at.saturating_sub(1)][0],
                    "XREADGROUP",
                    "the gate is read after the claim"
                );
                let order: Vec<&str> = mine[at..].iter().take(4).map(|w| w[0].as_str()).collect();
                assert_eq!(order, ["TIME", "HGETALL", "HMGET", "PTTL"]);
                assert!(mine[at + 1][1].starts_with("sb:gate:") && mine[at + 2][1].starts_with("sb:gatestate:"));
            }
        }
    }
    assert!(claims >= 20, "{claims}");
    let seals = commands
        .iter()
        .filter(|(_, w)| w[0] == "EVALSHA" && w.iter().any(|k| k.starts_with("sb:gate:")));
    assert_eq!(seals.count(), 0, "an unchanged gate is not sealed");
}

// An idle worker asks Redis little: the wait, the look every second, promotion, renewal.
#[tokio::test(flavor = "multi_thread")]
async fn an_idle_worker_blocks_one_reader_per_queue() {
    let mut fixture = Fixture::new().await;
    let (_stop, _) = fixture.simple(&["v1"]).await;
    fixture.blocked(1).await;
}
