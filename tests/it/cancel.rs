//! cancel.lua, progress.lua, and what settle.lua makes of marks and results.

use std::time::Duration;

use switchback_common::{
    Store, StoreError, StreamId, TaskId,
    id::stream_salt,
    store::{
        cancel::{self, CancelRequest, Cancelled, MAX_MARKS},
        enqueue::{EnqueueStore, NewTask},
        gate::SealWord,
        keyspace::Key,
        log::Ended,
        push::{GatePushes, Touched},
        results::{self, ProgressReport, Report, State},
        settle::{Batch, DoneGroup, Fate, Keep, Settled, Settler, Single},
    },
};
use switchback_tests::patience;

use crate::queue::{TestQueue, json};

const MAIN: usize = 0;
const HEAD: usize = 1;

async fn cancel(q: &TestQueue, task: &TaskId) -> Cancelled {
    cancel::cancel(&q.store, &q.queue, task, &CancelRequest::default())
        .await
        .unwrap()
}

async fn cancel_unstarted(q: &TestQueue, task: &TaskId) -> Cancelled {
    let request = CancelRequest {
        only_unstarted: true,
        ..CancelRequest::default()
    };
    cancel::cancel(&q.store, &q.queue, task, &request).await.unwrap()
}

/// Adds tasks and tells their ids.
async fn add(q: &TestQueue, count: usize) -> Vec<TaskId> {
    let stream = q.key(Key::Stream);
    let mut out = Vec::new();
    for _ in 0..count {
        let entry: String = q.cmd(&["XADD", &stream, "*", "payload", "1"]).await;
        out.push(TaskId::of_entry(
            stream_salt(&stream),
            StreamId::parse(entry.as_bytes()).unwrap(),
        ));
    }
    out
}

async fn marks(q: &TestQueue) -> usize {
    cancel::marks(&q.store, &q.queue, 0).await.unwrap().1.len()
}

fn single(entry: StreamId, task: &TaskId, fate: Fate) -> Single {
    Single {
        stream: MAIN,
        entry,
        fate,
        fields: vec![("id", task.to_string())],
        keep: Some(Box::new(Keep {
            task: task.clone(),
            ms: 60_000,
            tail: Report {
                attempt: 1,
                error: Some("it failed".into()),
                ..Report::default()
            }
            .tail(),
        })),
    }
}

async fn settle(q: &TestQueue, batch: &Batch) -> Settled {
    let streams = vec![q.key(Key::Stream), q.key(Key::Head)];
    let settler = Settler::new(&q.store, &q.queue, &q.session, streams).await.unwrap();
    settler.settle(batch).await.unwrap()
}

async fn state(q: &TestQueue, task: &TaskId) -> Option<State> {
    let kept = results::read(&q.store, &q.queue, task).await.unwrap();
    kept.map(|kept| kept.state)
}

#[tokio::test]
async fn the_reply_tells_where_the_task_was() {
    let q = TestQueue::seeded().await;
    let main = q.key(Key::Stream);
    let ids = add(&q, 3).await;
    let entries = q.claim_ids(&q.session, &main, 2).await;
    settle(
        &q,
        &Batch {
            done: vec![DoneGroup {
                stream: MAIN,
                entries: vec![entries[0]],
            }],
            ..Batch::default()
        },
    )
    .await;
    assert_eq!(cancel(&q, &ids[0]).await, Cancelled::Settled);
    assert_eq!(marks(&q).await, 0, "there is nothing to cancel");
    assert_eq!(cancel_unstarted(&q, &ids[1]).await, Cancelled::Started);
    assert_eq!(marks(&q).await, 0, "a worker holds it");
    assert_eq!(cancel(&q, &ids[1]).await, Cancelled::Running);
    assert_eq!(cancel_unstarted(&q, &ids[2]).await, Cancelled::Waiting);
    assert_eq!(cancel(&q, &"elsewhere".parse().unwrap()).await, Cancelled::Marked);
    assert_eq!(cancel(&q, &"elsewhere".parse().unwrap()).await, Cancelled::Marked);
    assert_eq!(marks(&q).await, 3);

    // A given id leads to its entry, too.
    let link = q.store.link().await.unwrap();
    let task = NewTask {
        payload: b"1".to_vec(),
        id: Some("order-1".parse().unwrap()),
        remember: Some(Duration::from_secs(60)),
        ..NewTask::default()
    };
    let enqueue = EnqueueStore::new(&q.store, &q.queue);
    enqueue.add_special(&link, &[task]).await.unwrap();
    assert_eq!(cancel(&q, &"order-1".parse().unwrap()).await, Cancelled::Waiting);
    let log = q.log().await;
    assert!(
        log.iter().any(|e| e.kind == "cancel" && e.text == "order-1: waiting"),
        "{log:?}"
    );
}

#[tokio::test]
async fn a_delayed_task_is_gone_at_once_and_says_so_to_whoever_waits() {
    let q = TestQueue::seeded().await;
    let main = q.key(Key::Stream);
    for id in ["a", "b"] {
        q.cmd::<()>(&["XADD", &main, "*", "payload", "1", "id", id, "result", "60000"])
            .await;
    }
    let entries = q.claim_ids(&q.session, &main, 2).await;
    let tasks: [TaskId; 2] = ["a".parse().unwrap(), "b".parse().unwrap()];
    let mut retries: Vec<Single> = Vec::new();
    for (entry, task) in entries.iter().zip(&tasks) {
        let mut retry = single(*entry, task, Fate::Retry { due_ms: 1 << 50 });
        retry.fields.push(("attempt", "1".into()));
        retries.push(retry);
    }
    settle(
        &q,
        &Batch {
            singles: retries,
            ..Batch::default()
        },
    )
    .await;
    assert_eq!(state(&q, &tasks[0]).await, None, "a retry is not the end");
    assert_eq!(cancel_unstarted(&q, &tasks[0]).await, Cancelled::Started);
    assert_eq!(cancel(&q, &tasks[0]).await, Cancelled::Removed);
    assert_eq!(q.cmd::<u64>(&["ZCARD", &q.key(Key::Delayed)]).await, 1);
    assert_eq!(q.cmd::<u64>(&["HLEN", &q.key(Key::Envelope)]).await, 1);
    assert_eq!(state(&q, &tasks[0]).await, Some(State::Cancelled));
    assert_eq!(marks(&q).await, 0);
}

// P3: the value that every claim reads changes with the mark, workers are woken, and the gate is as it was.
#[tokio::test]
async fn a_mark_is_announced_and_leaves_the_gate_alone() {
    let q = TestQueue::seeded().await;
    let ids = add(&q, 4).await;
    let gate = q.key(Key::Gate);
    let mut pushes = GatePushes::subscribe(&q.store).await.unwrap();
    let before = (q.human().await, q.found().await);
    let mut seen = read(&q.store, &q).await;
    for (n, id) in ids.iter().enumerate() {
        match n {
            2 => q.cmd::<()>(&["DEL", &gate]).await,
            3 => q.cmd::<()>(&["SET", &gate, "typo"]).await,
            _ => {}
        }
        if n >= 2 {
            tokio::time::timeout(patience(Duration::from_secs(5)), pushes.next())
                .await
                .unwrap();
        }
        cancel(&q, id).await;
        let now = read(&q.store, &q).await;
        assert!(now > seen, "{n}: {now} after {seen}");
        seen = now;
        if n < 3 {
            let push = tokio::time::timeout(patience(Duration::from_secs(5)), pushes.next()).await;
            assert_eq!(push.unwrap(), Touched::Gate(gate.clone()), "{n}");
        }
        if n < 2 {
            assert_eq!((q.human().await, q.found().await), before, "{n}");
            assert_eq!(q.seal().await.0, SealWord::Same);
        }
    }
    assert_eq!(q.cmd::<String>(&["TYPE", &gate]).await, "string");
    assert_eq!(q.seal().await.0, SealWord::Restored);
    assert_eq!(q.human().await, before.0);
    assert_eq!(q.changes().await.len(), 1, "no revision was made");
    // The answer of a seal is a gate read as well.
    let (_, sealed) = q.gate.seal().await.unwrap().unwrap();
    assert_eq!(sealed.signals.cancels, seen);
}

async fn read(store: &Store, q: &TestQueue) -> u64 {
    let link = store.link().await.unwrap();
    q.gate.read(&link, None).await.unwrap().signals.cancels
}

#[tokio::test]
async fn a_queue_that_nobody_joined_is_seeded_all_the_same() {
    let q = TestQueue::empty().await;
    let id = add(&q, 1).await.remove(0);
    assert_eq!(cancel(&q, &id).await, Cancelled::Waiting);
    assert_eq!(
        q.cmd::<u64>(&["EXISTS", &q.key(Key::GateState), &q.key(Key::Gate)])
            .await,
        0
    );
    q.join(&q.session, &["v1"]).await;
    assert!(
        read(&q.store, &q).await > 0,
        "a new state tells everyone to read the marks"
    );
    assert_eq!(marks(&q).await, 1);
}

// P10: marks are bounded, and old ones make room.
#[tokio::test]
async fn marks_have_a_limit_that_only_the_forgotten_do_not_count_for() {
    let q = TestQueue::seeded().await;
    let fill = "for i = 1, tonumber(ARGV[2]) do redis.call('ZADD', KEYS[1], ARGV[1], 't' .. i) end";
    let now_us: u64 = q.cmd::<(u64, u64)>(&["TIME"]).await.0 * 1_000_000;
    let week_us = 7 * 24 * 3600 * 1_000_000;
    let key = q.key(Key::Cancel);
    let full = MAX_MARKS.to_string();
    let eval = async |score: String| q.cmd::<()>(&["EVAL", fill, "1", &key, &score, &full]).await;
    eval((now_us - week_us / 2).to_string()).await;
    let refused = cancel::cancel(&q.store, &q.queue, &"x".parse().unwrap(), &CancelRequest::default()).await;
    let Err(error @ StoreError::CancelsFull { .. }) = refused else {
        panic!("{refused:?}")
    };
    assert!(
        error.to_string().starts_with("shop/send_email has 10000 cancellations"),
        "{error}"
    );
    assert_eq!(
        cancel(&q, &"t7".parse().unwrap()).await,
        Cancelled::Marked,
        "it has its place"
    );
    eval(format!("-{}", now_us - week_us - 1)).await;
    assert_eq!(cancel(&q, &"x".parse().unwrap()).await, Cancelled::Marked);
    assert_eq!(marks(&q).await, 1, "the forgotten are gone");
}

// P2, P5: a failing attempt of a cancelled task is its last, even if its worker never saw the mark.
#[tokio::test]
async fn failing_attempts_of_cancelled_tasks_are_the_last_and_settle_once() {
    let q = TestQueue::seeded().await;
    let main = q.key(Key::Stream);
    let ids = add(&q, 5).await;
    let entries = q.claim_ids(&q.session, &main, 5).await;
    for id in &ids[..4] {
        assert_eq!(cancel(&q, id).await, Cancelled::Running);
    }
    let fates = [
        Fate::Retry { due_ms: 1 },
        Fate::Dead,
        Fate::Cancelled { else_to: HEAD },
        Fate::Done,
        Fate::Cancelled { else_to: HEAD },
    ];
    let rows: Vec<String> = ids[..2]
        .iter()
        .zip(&entries)
        .map(|(id, entry)| format!("[\"{id}\",\"{entry}\",1,\"retried\",5]"))
        .collect();
    let batch = Batch {
        singles: (0..5).map(|n| single(entries[n], &ids[n], fates[n].clone())).collect(),
        attempts: format!(
            "[{{\"at\":1,\"rev\":1,\"version\":\"v1\",\"stream\":\"main\",\"tasks\":[{}]}}]",
            rows.join(",")
        ),
        ..Batch::default()
    };
    let all = Settled::Yes {
        groups: vec![],
        singles: vec![true; 5],
    };
    assert_eq!(settle(&q, &batch).await, all);
    assert_eq!(marks(&q).await, 0);
    for (id, expected) in ids.iter().zip([
        Some(State::Cancelled),
        Some(State::Cancelled),
        Some(State::Cancelled),
        Some(State::Done),
        None,
    ]) {
        assert_eq!(state(&q, id).await, expected, "{id}");
    }
    assert_eq!(q.len(&main).await, 4, "kept like what is done");
    assert_eq!(q.len(&q.key(Key::Head)).await, 1, "not cancelled by anybody: as it was");
    assert_eq!(
        q.cmd::<u64>(&["EXISTS", &q.key(Key::Delayed), &q.key(Key::Dead)]).await,
        0
    );
    let entry = q.log().await.pop().unwrap();
    let cancelled: Vec<&TaskId> = entry.cancelled.iter().map(|(task, _)| task).collect();
    assert_eq!(cancelled, [&ids[0], &ids[1], &ids[2]]);
    assert!(
        entry.attempts[0].tasks.iter().all(|row| row.3 == Ended::Cancelled),
        "{entry:?}"
    );

    // Sent again after a lost reply.
    let length = q.log().await.len();
    cancel::lift(&q.store, &q.queue, &ids[0]).await.unwrap();
    settle(&q, &batch).await;
    assert_eq!((q.log().await.len(), q.len(&main).await), (length, 4));
}

#[tokio::test]
async fn a_mark_does_not_speak_of_what_came_later_or_had_started() {
    let q = TestQueue::seeded().await;
    let main = q.key(Key::Stream);
    cancel(&q, &"again".parse().unwrap()).await;
    tokio::time::sleep(Duration::from_millis(5)).await;
    q.cmd::<()>(&["XADD", &main, "*", "payload", "1", "id", "again"]).await;
    q.cmd::<()>(&["XADD", &main, "*", "payload", "1", "id", "started"])
        .await;
    cancel_unstarted(&q, &"started".parse().unwrap()).await;
    let entries = q.claim_ids(&q.session, &main, 2).await;
    let retry = |n: usize, id: &str| single(entries[n], &id.parse().unwrap(), Fate::Retry { due_ms: 1 });
    settle(
        &q,
        &Batch {
            singles: vec![retry(0, "again"), retry(1, "started")],
            ..Batch::default()
        },
    )
    .await;
    assert_eq!(q.cmd::<u64>(&["ZCARD", &q.key(Key::Delayed)]).await, 2);
}

// P4, P2: progress is written under a lease only, and never over an end.
#[tokio::test]
async fn progress_is_fenced_by_lease_and_end() {
    let q = TestQueue::seeded().await;
    let id = add(&q, 1).await.remove(0);
    let entry = q.claim_ids(&q.session, &q.key(Key::Stream), 1).await[0];
    let report = |done: u64| {
        [ProgressReport {
            task: id.clone(),
            keep: Duration::from_secs(60),
            tail: Report {
                attempt: 1,
                progress: Some(results::Progress {
                    done,
                    total: 10,
                    note: "halfway".into(),
                }),
                ..Report::default()
            }
            .tail(),
        }]
    };
    let told = async || {
        let kept = results::read(&q.store, &q.queue, &id).await.unwrap().unwrap();
        (kept.state, kept.report.progress.map(|p| p.done))
    };
    results::progress(&q.store, &q.queue, &q.session, &report(1))
        .await
        .unwrap();
    results::progress(&q.store, &q.queue, &q.session, &report(2))
        .await
        .unwrap();
    assert_eq!(told().await, (State::Running, Some(2)));
    let zombie = switchback_common::SessionId::random();
    results::progress(&q.store, &q.queue, &zombie, &report(3))
        .await
        .unwrap();
    assert_eq!(told().await, (State::Running, Some(2)));
    settle(
        &q,
        &Batch {
            singles: vec![single(entry, &id, Fate::Dead)],
            ..Batch::default()
        },
    )
    .await;
    results::progress(&q.store, &q.queue, &q.session, &report(4))
        .await
        .unwrap();
    assert_eq!(told().await, (State::Dead, None));
    let key = q.store.keyspace().render(&Key::Result(q.queue.clone(), id.to_string()));
    let raw: String = q.cmd(&["GET", &key]).await;
    assert_eq!(json(&raw)["error"], "it failed");
    assert!(q.cmd::<i64>(&["PTTL", &key]).await > 0);
}
