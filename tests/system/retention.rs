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

// P10: what lies behind a long attempt goes all the same; P1: the attempt itself, and what waits, stays.
#[tokio::test(flavor = "multi_thread")]
async fn a_long_attempt_does_not_pin_what_lies_behind_it() {
    let mut fixture = Fixture::new().await;
    let seen = keeping(&mut fixture, 100).await;
    fixture.enqueue_one(1, "hang").await;
    fixture.enqueue_one(2, "hang").await;
    eventually("both run", patience(Duration::from_secs(5)), async || {
        seen.all().len() == 2
    })
    .await;
    let Value::Array(first) = fixture.raw(&["XRANGE", STREAM, "-", "+"]).await else {
        panic!("an array")
    };
    let next = AtomicU64::new(10);
    eventually(
        "what is done behind them is let go",
        patience(Duration::from_secs(20)),
        async || {
            let from = next.fetch_add(200, Ordering::SeqCst);
            fixture.enqueue(from..from + 200).await;
            eventually("done", patience(Duration::from_secs(10)), async || {
                fixture.depth().await.in_flight() == 2 && fixture.depth().await.waiting() == 0
            })
            .await;
            let length = length(&fixture).await;
            if from > 2_000 && length < 1_000 {
                Ok(())
            } else {
                Err(format!("{length} of {from}"))
            }
        },
    )
    .await;
    let Value::Array(oldest) = fixture.raw(&["XRANGE", STREAM, "-", "+", "COUNT", "2"]).await else {
        panic!("an array")
    };
    assert_eq!(oldest, first, "the running tasks are still there");
    assert!(length(&fixture).await >= 100, "the newest are kept");
    assert!(fixture.depth().await.main.lag.is_some(), "Redis still knows what waits");
}

// P1: a million waiting tasks, trimming all the while; none is touched.
#[tokio::test(flavor = "multi_thread")]
async fn a_million_waiting_tasks_are_not_trimmed() {
    const BULK: &str =
        "for n = 1, 50000 do redis.call('XADD', KEYS[1], '*', 'payload', '{\"n\":' .. ARGV[1] + n .. '}') end";
    let mut fixture = Fixture::new().await;
    for chunk in 0..20_u64 {
        let from = (chunk * 50_000).to_string();
        fixture.raw(&["EVAL", BULK, "1", STREAM, &from]).await;
    }
    let seen = keeping(&mut fixture, 100).await;
    let start = |version: &'static str| [("paused", version)];
    eventually(
        "some are done, and trimmed",
        patience(Duration::from_secs(30)),
        async || {
            let (done, length) = (seen.all().len(), length(&fixture).await);
            if done > 10_000 && length < 995_000 {
                Ok(())
            } else {
                Err(format!("{done} done, {length} left"))
            }
        },
    )
    .await;
    fixture.set(&start("1")).await;
    eventually("what ran has ended", patience(Duration::from_secs(10)), async || {
        fixture.depth().await.in_flight() == 0
    })
    .await;
    // The head may hold what a pause gave back.
    let depth = fixture.depth().await;
    let done = seen.all().len() as u64;
    assert_eq!(depth.waiting() + done, 1_000_000, "{depth:?}");
    let Value::Array(newest) = fixture.raw(&["XREVRANGE", STREAM, "+", "-", "COUNT", "1"]).await else {
        panic!("an array")
    };
    assert!(format!("{newest:?}").contains("1000000"));
    assert!(length(&fixture).await as u64 >= depth.main.waiting());
}
