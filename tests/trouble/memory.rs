//! Redis at `maxmemory`: no new work, and every way out stays open.

use std::{sync::Arc, time::Duration};

use redis::Value;
use switchback_common::{StoreError, store::log::Ended};
use switchback_producer::EnqueueError;
use switchback_tests::{eventually, patience};
use tokio::sync::Semaphore;

use crate::{
    fixture::{Fixture, Job, LEASE, Seen},
    tools::{GATE, LONG, gated, kinds, settled, started},
};

const BY_HAND: &str = "#!lua flags=allow-oom\nreturn redis.call('HSET', KEYS[1], 'only', ARGV[1])";

async fn full(fixture: &Fixture, full: bool) {
    let limit = if full { "1mb" } else { "0" };
    fixture.raw(&["CONFIG", "SET", "maxmemory", limit]).await;
}

// P10: at maxmemory an enqueue is refused and says why; what is there is claimed, settled, retried, set aside and
// recovered; workers come and go.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_redis_is_drained() {
    let mut fixture = Fixture::new().await;
    let (seen, permits) = (Seen::default(), Arc::new(Semaphore::new(0)));
    let handler = gated(&seen, &permits);
    let config = fixture.config();
    fixture
        .worker(config, |t| t.version("v1", handler).concurrency(12))
        .await;
    fixture.enqueue(0..10).await;
    fixture.enqueue_one(10, "fail").await;
    fixture.enqueue_one(11, "reject").await;
    started(&seen, 12).await;
    fixture.enqueue(20..60).await;
    // Held by a worker that is no more.
    fixture
        .raw(&[
            "XREADGROUP",
            "GROUP",
            "workers",
            "ghost",
            "COUNT",
            "5",
            "STREAMS",
            crate::tools::MAIN,
            ">",
        ])
        .await;
    full(&fixture, true).await;

    let error = fixture
        .producer
        .enqueue(&Job {
            n: 99,
            then: String::new(),
        })
        .await
        .unwrap_err();
    let EnqueueError::Refused { source, .. } = &error else {
        panic!("{error:?}")
    };
    assert!(matches!(source, StoreError::OutOfMemory { .. }), "{error:?}");
    let text = error.to_string();
    assert!(
        text.contains("test/job") && text.contains("workers still drain it"),
        "{text}"
    );

    let (_stop, newcomer) = fixture.simple(&["v1"]).await;
    permits.add_permits(10_000);
    eventually("all is settled", patience(LONG), async || {
        let depth = fixture.depth().await;
        let left = depth.waiting() + depth.in_flight() + depth.delayed;
        if left == 0 && depth.dead == 2 {
            Ok(())
        } else {
            Err(format!("{depth:?}"))
        }
    })
    .await;
    // Longer than a lease: it was renewed all the while.
    tokio::time::sleep(LEASE + Duration::from_secs(1)).await;
    assert_eq!(settled(&fixture, &fixture.queue, Ended::Done).await, 50);
    assert_eq!(settled(&fixture, &fixture.queue, Ended::Retried).await, 2);
    let kinds = kinds(&fixture).await;
    assert!(kinds.contains(&"recovered".to_owned()), "{kinds:?}");
    assert_eq!(
        seen.all().len() + newcomer.all().len(),
        54,
        "each once, and the failing one three times"
    );
    full(&fixture, false).await;
    fixture.enqueue([100]).await;
    fixture.drained().await;
}

// P10, P3: a Redis at maxmemory can be rolled back: by our own means, and by hand with the script of the README. A plain
// HSET is what Redis refuses there.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_redis_can_be_rolled_back() {
    let mut fixture = Fixture::new().await;
    let (_stop, seen) = fixture.simple(&["v1", "v2"]).await;
    fixture.set(&[("active", "v2")]).await;
    fixture.set(&[("paused", "1")]).await;
    fixture.enqueue(0..10).await;
    full(&fixture, true).await;
    let refused = fixture.server.try_cli(&["HSET", GATE, "only", "v1"]).await.unwrap_err();
    assert_eq!(refused.code(), Some("OOM"), "{refused}");
    fixture.raw(&["EVAL", BY_HAND, "1", GATE, "v1"]).await;
    eventually("the edit is sealed", patience(LONG), async || {
        let shown = fixture.gates.show(&fixture.queue).await.map_err(|e| e.to_string())?;
        if shown.gate.active.as_str() == "v1" {
            Ok(())
        } else {
            Err(format!("{shown:?}"))
        }
    })
    .await;
    fixture.set(&[("active", "v2")]).await;
    fixture.set(&[("only", "v1"), ("paused", "0")]).await;
    fixture.drained().await;
    let versions: Vec<String> = seen.all().into_iter().map(|ran| ran.version).collect();
    assert_eq!(versions, ["v1"; 10]);
    assert_eq!(fixture.raw(&["HGET", GATE, "only"]).await, Value::Nil, "written back");
}
