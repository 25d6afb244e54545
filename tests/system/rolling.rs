//! Rolling deploys: what another release wrote is read, and what it will understand is not lost on the way.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use redis::Value;
use serde::{Deserialize, Serialize};
use switchback_common::{
    ConnectOptions, Queue, Store, Task,
    store::{
        gate::{ChangeRequest, GateStore},
        log,
        reply::field_text,
        session::SessionStore,
    },
};
use switchback_gates::certificate::Revisions;
use switchback_tests::{RedisServer, eventually, patience};
use switchback_worker::{CancellationToken, Context, TaskError, Worker, WorkerConfig};
use tokio::task::JoinSet;

use crate::fixture::{Fixture, dead_letters};

/// What the corpus is made of.
#[derive(Serialize, Deserialize)]
struct Probe {
    n: u64,
}

impl Task for Probe {
    const TYPE: &'static str = "probe";
}

/// Recreates what a release left behind.
async fn load(server: &RedisServer, corpus: &str) {
    let mut connection = server.connection().await;
    for line in corpus.lines() {
        let words: Vec<String> = serde_json::from_str(line).unwrap();
        let mut cmd = redis::cmd(&words[0]);
        for word in &words[1..] {
            cmd.arg(
                word.chars()
                    .map(|c| u8::try_from(u32::from(c)).unwrap())
                    .collect::<Vec<u8>>(),
            );
        }
        let _: Value = cmd.query_async(&mut connection).await.unwrap();
    }
}

// P1, P5: old tasks in every state end; the old gate is obeyed; the old evidence is read.
#[tokio::test(flavor = "multi_thread")]
async fn workers_go_on_from_what_the_release_before_left() {
    let server = RedisServer::start().await;
    load(&server, include_str!("../corpus/format-1.jsonl")).await;
    let store = Store::new(&ConnectOptions::new(server.url())).unwrap();
    let queue = Queue::new("test".parse().unwrap(), "probe".parse().unwrap());

    let seen: Arc<Mutex<BTreeMap<u64, (String, u32)>>> = Arc::default();
    let handler = || {
        let seen = Arc::clone(&seen);
        move |probe: Probe, ctx: Context| {
            let seen = Arc::clone(&seen);
            async move {
                let before = seen
                    .lock()
                    .unwrap()
                    .insert(probe.n, (ctx.version.to_string(), ctx.attempt));
                assert!(before.is_none(), "task {} ran twice", probe.n);
                Ok::<(), TaskError>(())
            }
        }
    };
    let config = WorkerConfig::new(ConnectOptions::new(server.url()), "test".parse().unwrap());
    let config = config.lease(Duration::from_secs(2));
    let stop = CancellationToken::new();
    let worker = Worker::builder(config)
        .task::<Probe>(|t| t.version("v1", handler()).version("v2", handler()))
        .run_until(stop.clone());
    let mut workers = JoinSet::new();
    workers.spawn(worker);
    // Retrying, handed over, in flight, waiting.
    let expected: Vec<u64> = [
        vec![10],
        vec![20, 22, 24, 25, 29],
        vec![40, 41, 42, 43],
        (50..55).collect(),
    ]
    .concat();
    eventually("all that was left ran", patience(Duration::from_secs(20)), async || {
        let ran: Vec<u64> = seen.lock().unwrap().keys().copied().collect();
        if ran == expected {
            Ok(())
        } else {
            Err(format!("{ran:?}"))
        }
    })
    .await;
    let ran = seen.lock().unwrap().clone();
    assert_eq!(ran[&10].1, 2, "the attempt made then counts");
    assert_eq!(ran[&40].0, "v1", "pinned");
    assert!(ran.values().filter(|(version, _)| version == "v2").count() < 10);

    let gate = GateStore::new(&store, &queue);
    let history = gate.history(None, 100).await.unwrap();
    assert_eq!(
        history.iter().filter(|entry| entry.kind == "change").count(),
        3,
        "{history:?}"
    );
    assert_eq!(
        (history[0].rev, history[0].by.as_str()),
        (3, "bob"),
        "the edit by hand was sealed"
    );
    let revisions = Revisions::from_history(&history);
    let log = log::read(&store, &queue, None, 1_000).await.unwrap();
    let attempts: Vec<_> = log.iter().flat_map(|entry| &entry.attempts).collect();
    assert!(attempts.iter().map(|group| group.tasks.len()).sum::<usize>() >= 11 + expected.len());
    assert!(attempts.iter().all(|group| revisions.late(group).is_empty()));
    let dead = dead_letters(&store, &queue).await;
    let reasons: Vec<String> = dead
        .iter()
        .map(|entry| field_text(entry.fields.as_ref().unwrap(), "dead_reason"))
        .collect();
    assert_eq!(reasons, ["rejected", "malformed"]);
    eventually(
        "the old session is over",
        patience(Duration::from_secs(10)),
        async || SessionStore::new(&store, &queue).list().await.unwrap().len() == 1,
    )
    .await;
    stop.cancel();
    workers.join_next().await.unwrap().unwrap().unwrap();
}

// P1: fields that this release does not know survive a retry, a hand-over, a recovery and the dead letters.
#[tokio::test(flavor = "multi_thread")]
async fn fields_of_a_newer_release_survive_a_trip_through_this_one() {
    let mut fixture = Fixture::new().await;
    let (_stop, seen) = fixture.simple(&["v1"]).await;
    fixture
        .raw(&[
            "XADD",
            "sb:stream:{test:job}",
            "*",
            "payload",
            r#"{"n":1,"then":"fail"}"#,
            "colour",
            "green",
            "\u{1F389}",
            "\r\n",
        ])
        .await;
    fixture.drained().await;
    assert_eq!(seen.all().len(), 3, "retried twice");
    let dead = dead_letters(&fixture.store, &fixture.queue).await;
    let fields = dead[0].fields.as_ref().unwrap();
    assert_eq!(field_text(fields, "colour"), "green");
    assert_eq!(field_text(fields, "\u{1F389}"), "\r\n");
}

// The queue of the release before has no streams of priority: they come without a hold, whoever is first.
#[tokio::test(flavor = "multi_thread")]
async fn a_producer_may_be_newer_than_the_workers() {
    let mut fixture = Fixture::new().await;
    let (stop, _) = fixture.simple(&["v1"]).await;
    fixture.stop(&stop).await;
    // As the release before would have left it.
    for key in ["high", "low"] {
        fixture.raw(&["DEL", &format!("sb:stream:{{test:job}}:{key}")]).await;
    }
    fixture.raw(&["DEL", "sb:suspect:{test:job}"]).await;
    fixture.raw(&["HDEL", "sb:versions:{test:job}", ":groups"]).await;
    let job = crate::fixture::Job {
        n: 1,
        then: String::new(),
    };
    fixture
        .producer
        .enqueue(&job)
        .priority(switchback_producer::Priority::High)
        .await
        .unwrap();
    let (_stop, seen) = fixture.simple(&["v1"]).await;
    fixture.drained().await;
    assert_eq!(seen.all().len(), 1);
    // From now on they are known: a group that vanishes holds the queue, as for the main stream (P8).
    fixture
        .raw(&["XGROUP", "DESTROY", "sb:stream:{test:job}:high", "workers"])
        .await;
    fixture.enqueue([2, 3]).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let joined = format!(
        "{:?}",
        fixture.raw(&["XINFO", "GROUPS", "sb:stream:{test:job}:high"]).await
    );
    assert!(
        !joined.contains("workers"),
        "never created again under tasks that ran: {joined}"
    );
}

// P8: a gate state of a newer format starts nothing here, and nobody of this release overwrites it.
#[tokio::test(flavor = "multi_thread")]
async fn a_gate_state_of_a_newer_format_is_left_alone() {
    let mut fixture = Fixture::new().await;
    let (_stop, seen) = fixture.simple(&["v1"]).await;
    let state = "sb:gatestate:{test:job}";
    let before = fixture.raw(&["HGET", state, "seen"]).await;
    let Value::BulkString(before) = before else {
        panic!("{before:?}")
    };
    let before = String::from_utf8(before).unwrap();
    fixture.raw(&["HSET", state, "format", "3", "seen", "3 other"]).await;
    let written = fixture.raw(&["HGETALL", state]).await;
    fixture.enqueue([1, 2, 3]).await;
    let queue = &fixture.queue;
    let gate = GateStore::new(&fixture.store, queue);
    let refused = gate.seal().await.unwrap_err().to_string();
    assert!(refused.contains("newer format"), "{refused}");
    let request = ChangeRequest {
        source: "cli".to_owned(),
        op: "op-1".to_owned(),
        fields: vec![("active", "v1".to_owned())],
        ..ChangeRequest::default()
    };
    let refused = gate.change(&request).await.unwrap_err().to_string();
    assert!(refused.contains("newer format"), "{refused}");
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    assert_eq!(seen.all(), [], "nothing starts");
    assert_eq!(fixture.raw(&["HGETALL", state]).await, written);
    // The newer release was rolled back, with its data.
    fixture.raw(&["HDEL", state, "format"]).await;
    fixture.raw(&["HSET", state, "seen", &before]).await;
    fixture.drained().await;
    assert_eq!(seen.all().len(), 3);
}
