//! Limits in the store: read leniently, changed with a trace, and the queue held once.

use std::collections::BTreeMap;

use switchback_common::{
    store::{
        keyspace::Key,
        limits::{self, DeadLimit, Fullness, Limit, Limits, Setting},
    },
    throttle::Throttle,
};

use crate::queue::{TestQueue, json};

async fn set(q: &TestQueue, settings: &[Setting], clear: &[Limit]) -> bool {
    limits::set(&q.store, &q.queue, settings, clear, "alice", "a big import")
        .await
        .unwrap()
}

async fn hold(q: &TestQueue) -> DeadLimit {
    limits::hold_if_full(&q.store, &q.queue).await.unwrap()
}

#[tokio::test]
async fn a_change_leaves_one_entry_and_a_repeat_none() {
    let q = TestQueue::empty().await;
    assert_eq!(limits::read(&q.store, &q.queue).await.unwrap(), Limits::default());
    assert!(set(&q, &[Setting::Dead(5), Setting::Waiting(0)], &[]).await);
    assert!(!set(&q, &[Setting::Dead(5)], &[]).await);
    assert!(set(&q, &[], &[Limit::Dead]).await);
    let now = limits::read(&q.store, &q.queue).await.unwrap();
    assert_eq!((now.dead, now.waiting), (Limits::default().dead, 0));
    let log: Vec<(String, BTreeMap<String, String>)> = q.cmd(&["XRANGE", &q.key(Key::Log), "-", "+"]).await;
    let said: Vec<_> = log
        .iter()
        .map(|(_, f)| {
            (
                f["by"].as_str(),
                f["why"].as_str(),
                json(&f["before"])["dead"].clone(),
                json(&f["after"])["dead"].clone(),
            )
        })
        .collect();
    assert_eq!(
        said,
        [
            ("alice", "a big import", "".into(), "5".into()),
            ("alice", "a big import", "5".into(), "".into())
        ]
    );
}

#[tokio::test]
async fn fullness_counts_what_waits_wherever_it_waits() {
    let q = TestQueue::seeded().await;
    let main = q.key(Key::Stream);
    q.add(&main, 5).await;
    q.claim(&q.session, &main, 2).await;
    q.add(&q.key(Key::Head), 1).await;
    q.add(&q.lane("v2"), 2).await;
    q.cmd::<()>(&["ZADD", &q.key(Key::Delayed), "1", "a"]).await;
    let link = q.store.link().await.unwrap();
    let full = async || limits::fullness(&link, &q.store, &q.queue).await.unwrap();
    let limit = Limits::default().waiting;
    assert_eq!(
        full().await,
        Fullness {
            limit,
            waiting: 3 + 1 + 2 + 1
        }
    );
    // Lenient: neither nonsense nor a key of another type stops a producer.
    q.cmd::<()>(&["HSET", &q.key(Key::Limits), "waiting", "lots"]).await;
    assert_eq!(full().await.limit, limit);
    q.cmd::<()>(&["DEL", &q.key(Key::Limits)]).await;
    q.cmd::<()>(&["SET", &q.key(Key::Limits), "oops"]).await;
    assert_eq!(full().await.limit, limit);
    let kept = Throttle {
        concurrency: Some(8),
        ..Throttle::default()
    };
    let found = limits::read_after(&q.store, &q.queue, &kept).await.unwrap();
    assert_eq!(
        (found.problems.len(), found.throttle),
        (1, kept),
        "nor does it stop or unleash a worker"
    );
    assert_eq!(hold(&q).await, DeadLimit::Room);
}

// P10, P9: held at the limit, with one entry, however many notice; also on a full Redis.
#[tokio::test]
async fn a_queue_at_its_limit_of_dead_letters_is_held_once() {
    let q = TestQueue::seeded().await;
    set(&q, &[Setting::Dead(3)], &[]).await;
    q.add(&q.key(Key::Dead), 2).await;
    assert_eq!(hold(&q).await, DeadLimit::Room);
    q.add(&q.key(Key::Dead), 1).await;
    q.cmd::<()>(&["CONFIG", "SET", "maxmemory", "1"]).await;
    let all = futures_util::future::join_all((0..20).map(|_| hold(&q))).await;
    assert_eq!(
        all.iter().filter(|d| **d == DeadLimit::Held { limit: 3 }).count(),
        1,
        "{all:?}"
    );
    assert!(all.iter().all(|d| *d != DeadLimit::Room), "{all:?}");
    let changes = q.changes().await;
    assert_eq!(
        (changes.len(), changes[0].source.as_str(), changes[0].rev),
        (2, "limit", 2)
    );
    assert_eq!(
        changes[0].why,
        "dead letters at their limit of 3: requeue or discard some, then resume"
    );
    assert_eq!(q.human().await, "active=v1 paused=1", "what people see");
    assert_eq!(q.len(&q.key(Key::Dead)).await, 3, "nothing is trimmed");

    q.cmd::<()>(&["CONFIG", "SET", "maxmemory", "0"]).await;
    // A person resumes and nothing has changed: held again. With a higher limit it goes on.
    assert_eq!(q.edit("paused 0").await, "v1");
    assert_eq!(hold(&q).await, DeadLimit::Held { limit: 3 });
    q.cmd::<()>(&["HSET", &q.key(Key::Limits), "dead", "4"]).await;
    assert_eq!(q.edit("paused 0").await, "v1");
    assert_eq!(hold(&q).await, DeadLimit::Room);
    q.cmd::<()>(&["HSET", &q.key(Key::Limits), "dead", "0"]).await;
    q.add(&q.key(Key::Dead), 5).await;
    assert_eq!(hold(&q).await, DeadLimit::Room, "0 is no limit");
}
