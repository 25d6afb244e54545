//! Enqueueing: all or nothing, once where it is asked for, and refused in words when Redis is full.

use std::time::Duration;

use switchback_common::{
    StoreError,
    store::{
        enqueue::{Added, EnqueueStore, NewTask},
        keyspace::Key,
    },
};

use crate::queue::TestQueue;

const WINDOW: Duration = Duration::from_secs(60);

fn task(id: &str) -> NewTask {
    NewTask {
        payload: format!("\"{id}\"").into_bytes(),
        id: Some(id.parse().unwrap()),
        remember: Some(WINDOW),
        ..NewTask::default()
    }
}

fn plain(n: usize) -> NewTask {
    NewTask {
        payload: n.to_string().into_bytes(),
        ..NewTask::default()
    }
}

#[tokio::test]
async fn a_task_enqueued_once_and_again_is_there_once() {
    let q = TestQueue::empty().await;
    let (enqueue, link) = (EnqueueStore::new(&q.store, &q.queue), q.store.link().await.unwrap());
    for _ in 0..3 {
        let ids = enqueue.add_special(&link, &[task("a")]).await.unwrap();
        assert_eq!(ids, [Added::Yes("a".parse().unwrap())]);
    }
    let main = q.key(Key::Stream);
    assert_eq!(q.payloads(&main).await, ["\"a\""]);
    // Even when it is settled and trimmed in between.
    q.cmd::<()>(&["XTRIM", &main, "MAXLEN", "0"]).await;
    enqueue.add_special(&link, &[task("a")]).await.unwrap();
    assert_eq!(q.len(&main).await, 0);
    let ttl: u64 = q.cmd(&["PTTL", "sb:unique:{shop:send_email}:id:a"]).await;
    assert!(ttl > 30_000 && ttl <= 60_000, "{ttl}");
}

#[tokio::test]
async fn of_a_batch_enqueued_partly_before_only_the_rest_is_added() {
    let q = TestQueue::empty().await;
    let (enqueue, link) = (EnqueueStore::new(&q.store, &q.queue), q.store.link().await.unwrap());
    enqueue.add_special(&link, &[task("b"), task("d")]).await.unwrap();
    let batch = ["a", "b", "c", "d", "a"].map(task);
    for _ in 0..2 {
        assert_eq!(enqueue.add_special(&link, &batch).await.unwrap().len(), 5);
        assert_eq!(
            q.payloads(&q.key(Key::Stream)).await,
            ["\"b\"", "\"d\"", "\"a\"", "\"c\""]
        );
    }
}

#[tokio::test]
async fn any_window_is_a_window() {
    let q = TestQueue::empty().await;
    let (enqueue, link) = (EnqueueStore::new(&q.store, &q.queue), q.store.link().await.unwrap());
    for (id, window) in [
        ("a", Duration::ZERO),
        ("b", Duration::from_nanos(1)),
        ("c", Duration::MAX),
    ] {
        let task = NewTask {
            remember: Some(window),
            ..task(id)
        };
        enqueue.add_special(&link, std::slice::from_ref(&task)).await.unwrap();
        enqueue.add_special(&link, &[task]).await.unwrap();
    }
    assert!(q.len(&q.key(Key::Stream)).await >= 3);
    assert_eq!(q.payloads(&q.key(Key::Stream)).await.last().unwrap(), "\"c\"");
}

#[tokio::test]
async fn a_full_redis_refuses_new_tasks_and_writes_nothing() {
    let q = TestQueue::empty().await;
    let (enqueue, link) = (EnqueueStore::new(&q.store, &q.queue), q.store.link().await.unwrap());
    enqueue.add_special(&link, &[task("a")]).await.unwrap();
    q.cmd::<()>(&["CONFIG", "SET", "maxmemory", "1"]).await;

    let once = enqueue
        .add_special(&link, &["a", "b", "c"].map(task))
        .await
        .unwrap_err();
    let many = enqueue.add_many(&link, &[plain(1), plain(2)]).await.unwrap_err();
    let one = enqueue.add(&link, &plain(3)).await.unwrap_err();
    for error in [once, many, one] {
        assert!(matches!(error, StoreError::OutOfMemory { .. }), "{error:?}");
        assert!(!error.is_outcome_unknown() && error.is_transient());
    }
    let keys: Vec<String> = q.cmd(&["KEYS", "*"]).await;
    assert_eq!((keys.len(), q.len(&q.key(Key::Stream)).await), (2, 1), "{keys:?}");

    q.cmd::<()>(&["CONFIG", "SET", "maxmemory", "0"]).await;
    enqueue.add_special(&link, &["a", "b", "c"].map(task)).await.unwrap();
    assert_eq!(q.payloads(&q.key(Key::Stream)).await, ["\"a\"", "\"b\"", "\"c\""]);
}

#[tokio::test]
async fn a_batch_that_fails_half_way_is_completed_by_trying_again() {
    let q = TestQueue::empty().await;
    let (enqueue, link) = (EnqueueStore::new(&q.store, &q.queue), q.store.link().await.unwrap());
    let marker = "sb:unique:{shop:send_email}:id:b";
    q.cmd::<()>(&["LPUSH", marker, "oops"]).await;
    let batch = ["a", "b", "c"].map(task);
    enqueue.add_special(&link, &batch).await.unwrap_err();
    q.cmd::<()>(&["DEL", marker]).await;
    enqueue.add_special(&link, &batch).await.unwrap();
    assert_eq!(q.payloads(&q.key(Key::Stream)).await, ["\"a\"", "\"b\"", "\"c\""]);
}

#[tokio::test]
async fn a_plain_batch_is_added_whole_and_every_id_leads_to_its_entry() {
    let q = TestQueue::empty().await;
    let (enqueue, link) = (EnqueueStore::new(&q.store, &q.queue), q.store.link().await.unwrap());
    let batch: Vec<NewTask> = (0..1_000).map(plain).collect();
    let ids = enqueue.add_many(&link, &batch).await.unwrap();
    let main = q.key(Key::Stream);
    let salt = switchback_common::id::stream_salt(&main);
    let entries = q.entries(&main).await;
    assert_eq!((ids.len(), entries.len()), (1_000, 1_000));
    for (id, (entry, _)) in ids.iter().zip(entries) {
        assert_eq!(id.entry(salt).unwrap().to_string(), entry);
    }
}
