//! A Redis that cannot write to its disk, and refuses every write until it can.

use std::{fs, sync::Arc};

use redis::Value;
use switchback_common::{StoreError, store::log::Ended};
use switchback_producer::EnqueueError;
use switchback_tests::{eventually, patience};
use tokio::sync::Semaphore;

use crate::{
    fixture::{Fixture, Job, Seen},
    tools::{LONG, error_stats, gated, kinds, numbers, refused, settled, started},
};

/// Makes background saves fail, or succeed again, and waits until Redis knows. A directory where the dump should be is a
/// disk that cannot be written to: also for root, and without a mount.
async fn broken(fixture: &Fixture, broken: bool) {
    let dump = fixture.server.dir().join("dump.rdb");
    if broken {
        fs::create_dir(&dump).unwrap();
        // Redis refuses writes only if it was told to save at all.
        fixture.raw(&["CONFIG", "SET", "save", "3600 1000000"]).await;
    } else {
        fs::remove_dir(&dump).unwrap();
    }
    let wanted = format!("rdb_last_bgsave_status:{}", if broken { "err" } else { "ok" });
    eventually(&wanted, patience(LONG), async || {
        fixture.server.try_cli(&["BGSAVE"]).await.ok();
        let info: String = redis::from_redis_value(fixture.raw(&["INFO", "persistence"]).await).unwrap();
        info.contains(&wanted)
    })
    .await;
}

// P1, P2: MISCONF. Nothing is enqueued, claimed or settled; outcomes are kept and sent when the disk is mended; nobody
// restarts anything. Leases cannot be renewed either, so this must end before they run out, or what runs runs again.
#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_is_full_for_a_while_loses_nothing() {
    let mut fixture = Fixture::new().await;
    let (seen, permits) = (Seen::default(), Arc::new(Semaphore::new(0)));
    let handler = gated(&seen, &permits);
    let config = fixture.config().lease(std::time::Duration::from_secs(60));
    fixture
        .worker(config, |t| t.version("v1", handler).concurrency(10))
        .await;
    fixture.enqueue(0..20).await;
    started(&seen, 10).await;

    broken(&fixture, true).await;
    let before = error_stats(&fixture).await;
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
    assert!(matches!(source, StoreError::WritesRefused { .. }), "{error:?}");
    let text = error.to_string();
    assert!(
        text.contains("MISCONF") && text.contains("test/job") && text.contains("mend its disk"),
        "{text}"
    );
    let script = fixture
        .producer
        .enqueue(&Job {
            n: 99,
            then: String::new(),
        })
        .idempotent()
        .await
        .unwrap_err();
    assert!(
        script.to_string().contains("MISCONF") && !script.is_outcome_unknown(),
        "{script}"
    );
    permits.add_permits(10);
    refused(&fixture, &before, "MISCONF", 8).await;
    assert_eq!(settled(&fixture, &fixture.queue, Ended::Done).await, 0);
    // What can still be done: looking. The gate cannot be changed there, and says so.
    assert!(!fixture.gates.show(&fixture.queue).await.unwrap().gate.paused);
    let hset = fixture
        .server
        .try_cli(&["HSET", crate::tools::GATE, "paused", "1"])
        .await
        .unwrap_err();
    assert_eq!(hset.code(), Some("MISCONF"));

    broken(&fixture, false).await;
    permits.add_permits(1_000);
    fixture.drained().await;
    assert_eq!(numbers(&seen), (0..20).collect::<Vec<_>>(), "each once");
    assert_eq!(settled(&fixture, &fixture.queue, Ended::Done).await, 20);
    assert!(!kinds(&fixture).await.contains(&"reaping".to_owned()));
    assert_eq!(
        fixture.raw(&["XPENDING", crate::tools::MAIN, "workers"]).await,
        no_pending()
    );
}

fn no_pending() -> Value {
    Value::Array(vec![Value::Int(0), Value::Nil, Value::Nil, Value::Nil])
}
