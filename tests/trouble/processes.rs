//! Worker processes that block, abort, are killed before they start anything, or are told twice to stop.

use switchback_common::store::log::Ended;
use switchback_tests::{eventually, patience};

use crate::{
    fixture::Fixture,
    tools::{LONG, enqueue_probe, int, pool, probe_queue, settled},
};

// P2: a handler that blocks the only thread of its runtime for longer than its lease keeps its task, and the warning names
// it.
#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_blocks_keeps_its_lease_and_is_named() {
    let fixture = Fixture::new().await;
    let lease = ["--lease-ms", "4000"];
    let blocked = pool(&fixture.server.url(), &lease, &[("TOKIO_WORKER_THREADS", "1")]);
    blocked.process.wait_line("session begun").await;
    enqueue_probe(&fixture, "{\"n\":1,\"work_ms\":9000,\"then\":\"block\"}").await;
    eventually("it runs", patience(LONG), async || blocked.witness.starts().len() == 1).await;
    let other = pool(&fixture.server.url(), &lease, &[]);
    let warning = blocked
        .process
        .wait_line("a handler blocks the runtime's threads")
        .await;
    assert!(
        warning.contains("test/probe@v1 x1") && warning.contains("spawn_blocking"),
        "{warning}"
    );
    eventually("it has ended", patience(LONG), async || blocked.witness.ends() == [1]).await;
    eventually("it is settled", patience(LONG), async || {
        settled(&fixture, &probe_queue(), Ended::Done).await == 1
    })
    .await;
    assert!(other.witness.starts().is_empty(), "nobody else ran it");
    let warnings = blocked.process.lines();
    let warnings = warnings
        .iter()
        .filter(|line| line.contains("blocks the runtime"))
        .count();
    assert_eq!(warnings, 1, "once for each time");
}

// P1: a version that takes its whole process with it. Rolled back, its task and the neighbours of its task run.
#[tokio::test(flavor = "multi_thread")]
async fn an_abort_loses_nobody() {
    let fixture = Fixture::new().await;
    let versions = ["--versions", "v2"]; // beside v1, which seeds the gate
    let first = pool(&fixture.server.url(), &versions, &[]);
    first.process.wait_line("session begun").await;
    for n in 0..5 {
        enqueue_probe(&fixture, &format!("{{\"n\":{n},\"work_ms\":5000}}")).await;
    }
    eventually("they run", patience(LONG), async || first.witness.starts().len() == 5).await;
    enqueue_probe(&fixture, "{\"n\":9,\"then\":\"abort\",\"on\":\"v1\"}").await;
    assert!(!first.process.wait().await.success());
    fixture.raw(&["HSET", "sb:gate:{test:probe}", "only", "v2"]).await;
    let second = pool(&fixture.server.url(), &versions, &[]);
    eventually("all run elsewhere", patience(LONG), async || {
        let mut ends = second.witness.ends();
        ends.sort_unstable();
        if ends == [0, 1, 2, 3, 4, 9] {
            Ok(())
        } else {
            Err(format!("{ends:?}"))
        }
    })
    .await;
}

// P1: what a worker had claimed and not started when it was killed runs elsewhere.
#[tokio::test(flavor = "multi_thread")]
async fn a_kill_between_claim_and_start_loses_nothing() {
    let fixture = Fixture::new().await;
    let first = pool(&fixture.server.url(), &[], &[]);
    first.process.wait_line("session begun").await;
    eventually("it knows the gate", patience(LONG), async || {
        let sessions = fixture.raw(&["HKEYS", "sb:sessions:{test:probe}"]).await;
        format!("{sessions:?}").contains(":rev")
    })
    .await;
    // Claimed, but without a gate nothing starts.
    fixture
        .raw(&["RENAME", "sb:gatestate:{test:probe}", "{test:probe}aside"])
        .await;
    fixture
        .raw(&["SET", "sb:gatestate:{test:probe}", "somebody's mistake"])
        .await;
    for n in 0..5 {
        enqueue_probe(&fixture, &format!("{{\"n\":{n}}}")).await;
    }
    eventually("they are claimed", patience(LONG), async || {
        let groups = fixture.raw(&["XINFO", "GROUPS", "sb:stream:{test:probe}"]).await;
        format!("{groups:?}").contains("bulk-string('\"pending\"'), int(5)")
    })
    .await;
    first.process.kill9();
    assert!(first.witness.starts().is_empty());
    fixture
        .raw(&["RENAME", "{test:probe}aside", "sb:gatestate:{test:probe}"])
        .await;
    let second = pool(&fixture.server.url(), &[], &[]);
    eventually("all have run", patience(LONG), async || {
        let mut ends = second.witness.ends();
        ends.sort_unstable();
        if ends == [0, 1, 2, 3, 4] {
            Ok(())
        } else {
            Err(format!("{ends:?}"))
        }
    })
    .await;
}

// P6: a second SIGTERM cuts grace short: what runs is given back at once, and burns no attempt.
#[tokio::test(flavor = "multi_thread")]
async fn a_second_sigterm_gives_back_at_once() {
    let fixture = Fixture::new().await;
    let first = pool(&fixture.server.url(), &["--grace-ms", "600000"], &[]);
    first.process.wait_line("session begun").await;
    enqueue_probe(&fixture, "{\"n\":1,\"work_ms\":600000}").await;
    eventually("it runs", patience(LONG), async || first.witness.starts().len() == 1).await;
    first.process.term();
    first.process.wait_line("stopping: no more claims").await;
    first.process.term();
    assert!(first.process.wait().await.success());
    assert_eq!(
        int(&fixture, &["HLEN", "sb:sessions:{test:probe}"]).await,
        0,
        "it said goodbye"
    );
    let second = pool(&fixture.server.url(), &[], &[]);
    eventually("the next one has it", patience(LONG), async || {
        second.witness.starts().len() == 1
    })
    .await;
    assert_eq!(settled(&fixture, &probe_queue(), Ended::Released).await, 1);
    assert_eq!(second.witness.starts()[0].attempt, 1);
}
