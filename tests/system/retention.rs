//! Inputs of done tasks stay for a while, within bounds; live work is never trimmed.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use redis::Value;
use switchback_tests::{eventually, patience};

use crate::fixture::{Fixture, Seen};

const STREAM: &str = "sb:stream:{test:job}";

async fn length(fixture: &Fixture) -> i64 {
    redis::from_redis_value(fixture.raw(&["XLEN", STREAM]).await).unwrap()
}

async fn keeping(fixture: &mut Fixture, entries: u64) -> Seen {
    let seen = Seen::default();
    let handler = seen.handler();
    let config = fixture.config().retain(Duration::from_secs(3_600), entries);
    fixture.worker(config, |t| t.version("v1", handler)).await;
    seen
}

// P10: done tasks go when there are too many of them; a margin of the newest stays for replays.
#[tokio::test(flavor = "multi_thread")]
async fn done_tasks_are_trimmed_and_waiting_ones_are_not() {
    let mut fixture = Fixture::new().await;
    let seen = keeping(&mut fixture, 100).await;
    let next = AtomicU64::new(0);
    let total = eventually(
        "older tasks are trimmed",
        patience(Duration::from_secs(20)),
        async || {
            let from = next.fetch_add(100, Ordering::SeqCst);
            fixture.enqueue(from..from + 100).await;
            fixture.drained().await;
            let (total, length) = (from + 100, length(&fixture).await);
            if total >= 2_000 && length < 1_000 {
                Ok(total)
            } else {
                Err(format!("{length} of {total}"))
            }
        },
    )
    .await;
    assert!(length(&fixture).await >= 100, "the newest are kept");
    assert_eq!(seen.all().len() as u64, total);
}

// P1: an attempt that runs on holds the floor; so do tasks that nobody has taken yet.
#[tokio::test(flavor = "multi_thread")]
async fn a_running_task_is_never_trimmed() {
    let mut fixture = Fixture::new().await;
    let seen = keeping(&mut fixture, 10).await;
    fixture.enqueue_one(1, "hang").await;
    eventually("it runs", patience(Duration::from_secs(5)), async || {
        seen.all().len() == 1
    })
    .await;
    let Value::Array(first) = fixture.raw(&["XRANGE", STREAM, "-", "+"]).await else {
        panic!("an array")
    };
    for round in 0..3 {
        fixture.enqueue(100 + round * 500..100 + (round + 1) * 500).await;
        eventually("the others are done", patience(Duration::from_secs(10)), async || {
            fixture.depth().await.in_flight() == 1 && fixture.depth().await.waiting() == 0
        })
        .await;
    }
    fixture.set(&[("paused", "1")]).await;
    fixture.enqueue(5_000..5_200).await;
    let Value::Array(oldest) = fixture.raw(&["XRANGE", STREAM, "-", "+", "COUNT", "1"]).await else {
        panic!("an array")
    };
    assert_eq!(oldest, first, "the running task is still there");
    assert_eq!(fixture.depth().await.waiting(), 200);
}
