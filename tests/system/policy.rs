//! Retry policies that people set, at work.

use std::time::Duration;

use redis::Value;
use switchback_common::store::dead::DeadStore;
use switchback_tests::{eventually, patience};

use crate::fixture::{Fixture, Seen};

const KEY: &str = "sb:policy:{test:job}";

/// Fails one task for good, and tells after how many attempts.
async fn attempts(fixture: &Fixture, seen: &Seen, n: u64) -> usize {
    let dead = DeadStore::new(&fixture.store, &fixture.queue);
    let before = dead.count().await.unwrap();
    fixture.enqueue_one(n, "fail").await;
    eventually("it is a dead letter", patience(Duration::from_secs(10)), async || {
        dead.count().await.unwrap() > before
    })
    .await;
    seen.versions_of(n).len()
}

/// Until tasks get so many attempts.
async fn until(fixture: &Fixture, seen: &Seen, from: u64, wanted: usize) {
    let next = std::sync::atomic::AtomicU64::new(from);
    eventually("the policy holds", patience(Duration::from_secs(20)), async || {
        let n = next.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        match attempts(fixture, seen, n).await {
            found if found == wanted => Ok(()),
            found => Err(format!("{found} attempts")),
        }
    })
    .await;
}

// Set by hand it takes the place of the one in the code, and without it that holds again. P8: one that makes no sense changes
// nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_retry_policy_in_redis_is_obeyed_instead_of_the_one_in_the_code() {
    let mut fixture = Fixture::new().await;
    let (_stop, seen) = fixture.simple(&["v1"]).await;
    assert_eq!(attempts(&fixture, &seen, 0).await, 3, "as the code has it");
    fixture.raw(&["HSET", KEY, "retry", r#"{"max_attempts": 1}"#]).await;
    until(&fixture, &seen, 100, 1).await;
    let five = r#"{"max_attempts": 5, "first": "10ms", "longest": "20ms"}"#;
    fixture.raw(&["HSET", KEY, "retry", five]).await;
    until(&fixture, &seen, 200, 5).await;

    for (n, nonsense) in [r#"{"max_attempts": 0}"#, r#"{"attempts": 2}"#, "two"]
        .into_iter()
        .enumerate()
    {
        fixture.raw(&["HSET", KEY, "retry", nonsense]).await;
        looked(&fixture).await;
        assert_eq!(attempts(&fixture, &seen, 300 + n as u64).await, 5, "{nonsense}");
    }
    fixture.raw(&["DEL", KEY]).await;
    fixture.raw(&["SET", KEY, "a string"]).await;
    looked(&fixture).await;
    assert_eq!(attempts(&fixture, &seen, 310).await, 5, "no hash");
    fixture.raw(&["DEL", KEY]).await;
    until(&fixture, &seen, 400, 3).await;
}

/// Until every worker has read limits and policy anew: a limit set now shows in what they say.
async fn looked(fixture: &Fixture) {
    let grants = async || {
        let Value::Array(names) = fixture.raw(&["HKEYS", "sb:sessions:{test:job}"]).await else {
            panic!("an array")
        };
        let grant = names
            .into_iter()
            .find(|name| matches!(name, Value::BulkString(b) if b.ends_with(b":grant")));
        let name: String = redis::from_redis_value(grant?).unwrap();
        Some(name)
    };
    if let Some(name) = grants().await {
        fixture.raw(&["HDEL", "sb:sessions:{test:job}", &name]).await;
    }
    fixture.raw(&["HSET", "sb:limits:{test:job}", "concurrency", "5"]).await;
    eventually(
        "a worker asks for its part",
        patience(Duration::from_secs(10)),
        async || grants().await.is_some(),
    )
    .await;
    fixture.raw(&["DEL", "sb:limits:{test:job}"]).await;
}
