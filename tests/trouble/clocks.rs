//! Workers whose clocks are an hour apart: every time that two of them share is Redis's.

use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicU64, Ordering},
};

use switchback_common::{Queue, store::log::Ended};
use switchback_tests::{eventually, patience};

use crate::{
    fixture::Fixture,
    tools::{LONG, Pool, enqueue_probe, pool, probe_queue, settled},
};

const AN_HOUR: [&str; 2] = ["--clock-ahead-ms", "3600000"];
/// Beside v1, which seeds the gate; with room for ten suspects at once.
const BOTH: [&str; 4] = ["--versions", "v2", "--concurrency", "100"];

async fn two(fixture: &Fixture, lease_ms: &str) -> [Pool; 2] {
    let url = fixture.server.url();
    let both = [&BOTH[..], &["--lease-ms", lease_ms]].concat();
    let pools = [pool(&url, &both, &[]), pool(&url, &[&both[..], &AN_HOUR].concat(), &[])];
    for pool in &pools {
        pool.process.wait_line("session begun").await;
    }
    pools
}

fn started(pools: &[Pool]) -> BTreeSet<u64> {
    pools
        .iter()
        .flat_map(|pool| pool.witness.starts())
        .map(|s| s.n)
        .collect()
}

async fn all_done(fixture: &Fixture, queue: &Queue, tasks: usize) {
    eventually("all are done", patience(LONG), async || {
        let done = settled(fixture, queue, Ended::Done).await;
        if done == tasks { Ok(()) } else { Err(done) }
    })
    .await;
}

// P1, P5: what one puts off the other takes up when Redis's clock says so; and neither recovers the other's tasks, whose
// leases would have run out by its own clock.
#[tokio::test(flavor = "multi_thread")]
async fn retries_and_leases_go_by_rediss_clock() {
    let fixture = Fixture::new().await;
    // Far less than an hour, and more than any machine stands still.
    let pools = two(&fixture, "20000").await;
    for n in 0..40 {
        enqueue_probe(
            &fixture,
            &format!("{{\"n\":{n},\"work_ms\":20,\"then\":\"fail_once\"}}"),
        )
        .await;
    }
    all_done(&fixture, &probe_queue(), 40).await;
    assert_eq!(started(&pools).len(), 40);
    assert!(pools.iter().all(|pool| pool.process.is_running()));
    let starts: usize = pools.iter().map(|pool| pool.witness.starts().len()).sum();
    assert_eq!(starts, 80, "once failed and once done each: nobody's lease had run out");
}

// P1, P3: a flip holds for both at once, and what dies with the one that is ahead comes back by the other.
#[tokio::test(flavor = "multi_thread")]
async fn a_flip_and_a_death_are_seen_by_both() {
    let fixture = Fixture::new().await;
    let [behind, ahead] = two(&fixture, "2000").await;
    let next = AtomicU64::new(0);
    eventually("some run where the clock is ahead", patience(LONG), async || {
        // Whoever waits first gets it.
        let n = next.fetch_add(1, Ordering::SeqCst);
        enqueue_probe(&fixture, &format!("{{\"n\":{n},\"work_ms\":600000}}")).await;
        !ahead.witness.starts().is_empty()
    })
    .await;
    fixture.raw(&["HSET", "sb:gate:{test:probe}", "only", "v2"]).await;
    let lost: BTreeSet<u64> = ahead.witness.starts().iter().map(|s| s.n).collect();
    ahead.process.kill9();
    eventually("they run on the other", patience(LONG), async || {
        let again = behind.witness.starts();
        let again: BTreeSet<u64> = again.iter().filter(|s| s.version == "v2").map(|s| s.n).collect();
        if lost.is_subset(&again) {
            Ok(())
        } else {
            Err(format!("{lost:?} {again:?}"))
        }
    })
    .await;
}
