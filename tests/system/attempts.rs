//! How attempts end: no attempt may end in nothing.

use std::time::Duration;

use switchback_common::store::{
    inspect,
    log::{self, Ended},
    reply::field_text,
};
use switchback_tests::{eventually, patience};

use crate::fixture::{Fixture, Seen, dead_letters};

async fn dead(fixture: &Fixture) -> Vec<(String, String, String)> {
    let entries = dead_letters(&fixture.store, &fixture.queue).await;
    entries
        .into_iter()
        .map(|e| {
            let fields = e.fields.unwrap();
            let get = |name| field_text(&fields, name);
            (get("dead_reason"), get("dead_error"), get("errors"))
        })
        .collect()
}

// P1: failed attempts are tried again up to the limit, then kept with every error.
#[tokio::test(flavor = "multi_thread")]
async fn a_failing_task_is_retried_and_then_a_dead_letter_with_its_chain() {
    let mut fixture = Fixture::new().await;
    let (_stop, seen) = fixture.simple(&["v1"]).await;
    fixture.enqueue_one(1, "fail").await;
    fixture.enqueue_one(2, "panic").await;
    fixture.enqueue_one(3, "reject").await;
    fixture.enqueue_one(4, "").await;
    fixture.drained().await;
    let attempts = |n| {
        seen.all()
            .iter()
            .filter(|r| r.n == n)
            .map(|r| r.attempt)
            .collect::<Vec<_>>()
    };
    assert_eq!(attempts(1), [1, 2, 3]);
    assert_eq!(attempts(2), [1, 2, 3]);
    assert_eq!(attempts(3), [1], "a rejection is not tried again");
    assert_eq!(attempts(4), [1]);
    let mut dead = dead(&fixture).await;
    dead.sort();
    let reasons: Vec<&str> = dead.iter().map(|d| d.0.as_str()).collect();
    assert_eq!(reasons, ["attempts", "attempts", "rejected"]);
    assert_eq!(dead[0].1, "asked to fail");
    assert_eq!(dead[1].1, "panicked: asked to panic");
    assert_eq!(dead[2].1, "no such customer");
    let chain: serde_json::Value = serde_json::from_str(&dead[0].2).unwrap();
    let numbers: Vec<u64> = chain
        .as_array()
        .unwrap()
        .iter()
        .map(|e| e["attempt"].as_u64().unwrap())
        .collect();
    assert_eq!(numbers, [1, 2, 3]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_hangs_times_out() {
    let mut fixture = Fixture::new().await;
    let seen = Seen::default();
    let config = fixture.config();
    let handler = seen.handler();
    fixture
        .worker(config, |t| t.version("v1", handler).timeout(Duration::from_millis(50)))
        .await;
    fixture.enqueue_one(1, "hang").await;
    fixture.drained().await;
    let dead = dead(&fixture).await;
    assert_eq!(dead[0].1, "timed out after 50ms");
    assert_eq!(seen.all().len(), 3);
}

// P7: a handler that panics takes nobody with it, and its slots come back.
#[tokio::test(flavor = "multi_thread")]
async fn panics_do_not_wear_a_worker_out() {
    let mut fixture = Fixture::new().await;
    let seen = Seen::default();
    let config = fixture.config();
    let handler = seen.handler();
    fixture
        .worker(config, |t| t.version("v1", handler).concurrency(2))
        .await;
    for n in 0..20 {
        fixture.enqueue_one(n, if n % 2 == 0 { "panic" } else { "" }).await;
    }
    fixture.drained().await;
    assert_eq!(dead(&fixture).await.len(), 10);
    assert_eq!(seen.all().len(), 10 * 3 + 10);
}

// P9's sibling for attempts: what ran is written down with version, revision and outcome.
#[tokio::test(flavor = "multi_thread")]
async fn the_log_says_what_ran() {
    let mut fixture = Fixture::new().await;
    let (_stop, _seen) = fixture.simple(&["v1"]).await;
    let id = fixture.enqueue_one(1, "reject").await;
    let ok = fixture.enqueue_one(2, "").await;
    fixture.drained().await;
    let entries = log::read(&fixture.store, &fixture.queue, None, 1_000).await.unwrap();
    let rows: Vec<_> = entries
        .iter()
        .flat_map(|e| &e.attempts)
        .flat_map(|g| {
            g.tasks
                .iter()
                .map(move |row| (row.0.to_string(), row.3, g.version.to_string(), g.rev))
        })
        .collect();
    assert!(rows.contains(&(id, Ended::Dead, "v1".to_owned(), 1)), "{rows:?}");
    assert!(rows.contains(&(ok, Ended::Done, "v1".to_owned(), 1)), "{rows:?}");
    let time = inspect::time_us(&fixture.store).await.unwrap() / 60_000_000;
    eventually("the minute's counters", patience(Duration::from_secs(5)), async || {
        let mut sum = std::collections::BTreeMap::new();
        for minute in [time - 1, time, time + 1] {
            for (name, n) in inspect::stats(&fixture.store, &fixture.queue, minute).await.unwrap() {
                *sum.entry(name).or_insert(0) += n;
            }
        }
        (sum.get("v1:done") == Some(&1) && sum.get("v1:dead") == Some(&1)).then_some(())
    })
    .await;
}
