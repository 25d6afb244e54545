//! Dead letters in the store: moved whole or not at all, and once.

use std::collections::BTreeMap;

use switchback_common::{
    StreamId,
    store::{
        dead::{DeadStore, Operator, Order},
        keyspace::Key,
    },
};

use crate::queue::TestQueue;

fn alice() -> Operator {
    Operator {
        by: "alice".into(),
        why: "fixed in v3".into(),
        op: "op-1".into(),
    }
}

async fn kill(q: &TestQueue, fields: &[&str]) -> StreamId {
    let dead = q.key(Key::Dead);
    let id: String = q.cmd(&[&["XADD", &dead, "*"], fields].concat()).await;
    StreamId::parse(id.as_bytes()).unwrap()
}

fn text(fields: &BTreeMap<Vec<u8>, Vec<u8>>) -> BTreeMap<String, String> {
    let text = |bytes: &Vec<u8>| String::from_utf8_lossy(bytes).into_owned();
    fields.iter().map(|(k, v)| (text(k), text(v))).collect()
}

async fn log_of(q: &TestQueue, kind: &str) -> Vec<BTreeMap<String, String>> {
    let entries = q.entries(&q.key(Key::Log)).await;
    let all = entries.iter().map(|(_, fields)| text(fields));
    all.filter(|f| f["kind"] == kind).collect()
}

const DIED: [&str; 12] = [
    "dead_reason",
    "attempts",
    "dead_error",
    "boom",
    "dead_version",
    "v2",
    "dead_session",
    "s",
    "dead_at",
    "5",
    "dead_place",
    "main",
];

// P1: what a requeue takes from the dead letters is in line, as new as before its first attempt, with its story.
#[tokio::test]
async fn a_requeued_task_is_new_and_keeps_its_story() {
    let q = TestQueue::seeded().await;
    let store = DeadStore::new(&q.store, &q.queue);
    let task = [
        "id",
        "order-7",
        "payload",
        "{}",
        "key",
        "c7",
        "attempt",
        "15",
        "deaths",
        "2",
        "snoozes",
        "4",
        "errors",
        "[1]",
        "enqueued_at",
        "9",
        "expires",
        "77",
        "newer",
        "kept",
    ];
    let one = kill(&q, &[&task[..], &DIED].concat()).await;
    let two = kill(&q, &["payload", "2", "expires", "77", "dead_reason", "expired"]).await;
    let gone = StreamId { ms: 1, seq: 1 };
    let moved = store.requeue(&[one, gone, two], &alice()).await.unwrap();
    assert_eq!(moved, 2);
    assert_eq!(
        store.requeue(&[one, two], &alice()).await.unwrap(),
        0,
        "a resend after a lost reply"
    );
    assert_eq!(store.count().await.unwrap(), 0);

    let line = q.entries(&q.key(Key::Stream)).await;
    let kept = [
        "id",
        "order-7",
        "payload",
        "{}",
        "key",
        "c7",
        "deaths",
        "2",
        "errors",
        "[1]",
        "enqueued_at",
        "9",
        "expires",
        "77",
        "newer",
        "kept",
    ];
    let kept: BTreeMap<_, _> = kept.chunks(2).map(|c| (c[0].to_owned(), c[1].to_owned())).collect();
    assert_eq!(text(&line[0].1), kept);
    let second = text(&line[1].1);
    assert_eq!(second["payload"], "2");
    assert!(
        !second.contains_key("expires"),
        "a deadline that killed it would kill it again: {second:?}"
    );
    assert_eq!(
        second["enqueued_at"],
        two.ms.to_string(),
        "its place said so, and it left that place"
    );

    let log = log_of(&q, "requeued").await;
    assert_eq!(log.len(), 1, "one entry per step that did something: {log:?}");
    let said = |name: &str| log[0][name].clone();
    assert_eq!(
        [said("by"), said("why"), said("op"), said("count")],
        ["alice", "fixed in v3", "op-1", "2"]
    );
    assert_eq!((said("first"), said("last")), (one.to_string(), two.to_string()));
    let tasks = format!("order-7={} {}={}", line[0].0, second["id"], line[1].0);
    assert_eq!(q.log().await.last().unwrap().text, tasks);
}

#[tokio::test]
async fn discarding_says_who_and_which_and_keeps_no_payload() {
    let q = TestQueue::seeded().await;
    let store = DeadStore::new(&q.store, &q.queue);
    let one = kill(&q, &["id", "order-7", "payload", "secret", "dead_error", "secret"]).await;
    let other = kill(&q, &["id", "order-8", "payload", "1"]).await;
    assert_eq!(store.discard(&[one], &alice()).await.unwrap(), 1);
    assert_eq!(store.discard(&[one], &alice()).await.unwrap(), 0);
    assert_eq!(store.newest().await.unwrap(), Some(other));
    let log = log_of(&q, "discarded").await;
    assert_eq!(log.len(), 1, "{log:?}");
    assert_eq!(
        (log[0]["tasks"].clone(), log[0]["by"].clone()),
        (format!("order-7={one}"), "alice".to_owned())
    );
    assert!(!format!("{log:?}").contains("secret"), "{log:?}");
    assert_eq!(q.len(&q.key(Key::Stream)).await, 0);
}

// P1: a script's writes are not rolled back, so what cannot be finished is not begun.
#[tokio::test]
async fn a_step_that_cannot_be_finished_moves_nothing() {
    for wrong in [Key::Log, Key::Stream] {
        let q = TestQueue::empty().await;
        let store = DeadStore::new(&q.store, &q.queue);
        let it = kill(&q, &["payload", "1"]).await;
        q.cmd::<()>(&["SET", &q.key(wrong), "oops"]).await;
        store.requeue(&[it], &alice()).await.unwrap_err();
        assert_eq!(store.count().await.unwrap(), 1);
        if q.key(wrong) == q.key(Key::Log) {
            assert_eq!(
                q.try_cmd::<u64>(&["XLEN", &q.key(Key::Stream)]).await.unwrap(),
                0,
                "not doubled"
            );
            store.discard(&[it], &alice()).await.unwrap_err();
            assert_eq!(store.count().await.unwrap(), 1, "not gone without a word");
        }
    }
}

// P10: a Redis at `maxmemory` is the very place where people must be able to clear up.
#[tokio::test]
async fn a_full_redis_lets_dead_letters_be_seen_requeued_and_discarded() {
    let q = TestQueue::seeded().await;
    let store = DeadStore::new(&q.store, &q.queue);
    let (one, two) = (kill(&q, &["payload", "1"]).await, kill(&q, &["payload", "2"]).await);
    q.cmd::<()>(&["CONFIG", "SET", "maxmemory", "1"]).await;
    assert_eq!(
        store
            .scan(None, None, Order::OldestFirst, 10)
            .await
            .unwrap()
            .letters
            .len(),
        2
    );
    assert_eq!(store.requeue(&[one], &alice()).await.unwrap(), 1);
    assert_eq!(store.discard(&[two], &alice()).await.unwrap(), 1);
}

// P10: bounded pages, without payloads, that leave nothing out.
#[tokio::test]
async fn looking_goes_page_by_page() {
    let q = TestQueue::empty().await;
    let store = DeadStore::new(&q.store, &q.queue);
    let large = "x".repeat(512 * 1024);
    let mut all = Vec::new();
    for n in 0..30 {
        let error = if n == 7 { &large } else { "boom" };
        all.push(kill(&q, &["payload", &large, "dead_error", error, "dead_at", "5"]).await);
    }
    for order in [Order::OldestFirst, Order::NewestFirst] {
        let (mut seen, mut after, mut pages) = (Vec::new(), None, 0);
        loop {
            let page = store.scan(after, None, order, 1_000).await.unwrap();
            let Some(last) = page.last else { break };
            assert!(
                page.letters.len() <= 20,
                "{} letters of half a MiB in one call",
                page.letters.len()
            );
            assert!(
                page.letters
                    .iter()
                    .all(|l| l.error.len() <= 1_000 && l.bytes > 500_000 && l.at_ms == 5)
            );
            seen.extend(page.letters.iter().map(|l| l.entry));
            (after, pages) = (Some(last), pages + 1);
        }
        if order == Order::NewestFirst {
            seen.reverse();
        }
        assert_eq!((seen, pages), (all.clone(), 3));
    }
    let page = store
        .scan(Some(all[2]), Some(all[4]), Order::OldestFirst, 1_000)
        .await
        .unwrap();
    assert_eq!(page.letters.iter().map(|l| l.entry).collect::<Vec<_>>(), all[3..=4]);
}
