//! What a producer may ask of one task: later, before others, alone under a key, not after a deadline.

use std::time::{Duration, SystemTime};

use redis::Value;
use switchback_common::store::{
    inspect,
    log::{self, Ended},
    reply::field_text,
};
use switchback_producer::{EnqueueError, IfTaken, Priority};
use switchback_tests::{eventually, patience};

use crate::fixture::{Fixture, Job, Seen, dead_letters};

fn job(n: u64) -> Job {
    Job { n, then: String::new() }
}

const HOUR: Duration = Duration::from_secs(3_600);

async fn order(fixture: &Fixture, seen: &Seen) -> Vec<u64> {
    fixture.drained().await;
    seen.all().iter().map(|ran| ran.n).collect()
}

// By Redis's clock, from one machine to the other.
#[tokio::test(flavor = "multi_thread")]
async fn a_delayed_task_starts_when_it_is_due_and_not_before() {
    let mut fixture = Fixture::new().await;
    let (config, seen) = (fixture.config(), Seen::default());
    // One at a time: they start in the order in which they come into line.
    let _stop = fixture
        .worker(config, |t| t.version("v1", seen.handler()).concurrency(1))
        .await;
    let producer = &fixture.producer;
    let began = inspect::time_us(&fixture.store).await.unwrap() / 1_000;
    // Those that are due first are enqueued first, so that the order holds however long that takes.
    producer.enqueue(&job(3)).at(SystemTime::UNIX_EPOCH).await.unwrap();
    let at = SystemTime::UNIX_EPOCH + Duration::from_millis(began + 200);
    producer.enqueue(&job(2)).at(at).await.unwrap();
    let id = producer
        .enqueue(&job(1))
        .delay(Duration::from_millis(400))
        .await
        .unwrap();
    let far = producer.enqueue(&job(4)).delay(Duration::MAX).await.unwrap();
    eventually("three of them ran", patience(Duration::from_secs(10)), async || {
        seen.all().len() == 3
    })
    .await;
    let ran = seen.all();
    assert_eq!(ran.iter().map(|r| r.n).collect::<Vec<_>>(), [3, 2, 1]);
    assert_eq!(ran[2].id, id.to_string());
    let entries = log::read(&fixture.store, &fixture.queue, None, 1_000).await.unwrap();
    let group = entries
        .iter()
        .flat_map(|e| &e.attempts)
        .find(|group| group.tasks.iter().any(|row| row.0 == id));
    if let Some(group) = group {
        assert!(
            group.at / 1_000 >= began + 400,
            "decided at {}, enqueued at {began}",
            group.at
        );
    }
    let found = inspect::find(&fixture.store, &fixture.queue, &far)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(found.place, "delayed");
}

// P10: what is due comes in bounded steps, P1: all of it.
#[tokio::test(flavor = "multi_thread")]
async fn many_tasks_due_at_once_all_run_and_no_step_is_long() {
    let mut fixture = Fixture::new().await;
    let jobs: Vec<Job> = (0..20_000).map(job).collect();
    let ids = fixture
        .producer
        .enqueue_many(&jobs)
        .delay(Duration::from_millis(1))
        .await
        .unwrap();
    assert_eq!((ids.len(), fixture.depth().await.delayed), (20_000, 20_000));
    fixture.raw(&["CONFIG", "SET", "slowlog-log-slower-than", "0"]).await;
    fixture.raw(&["CONFIG", "SET", "slowlog-max-len", "100000"]).await;
    let (_stop, seen) = fixture.simple(&["v1"]).await;
    fixture.drained().await;
    let mut ran: Vec<u64> = seen.all().iter().map(|r| r.n).collect();
    ran.sort_unstable();
    ran.dedup();
    assert_eq!(ran.len(), 20_000);
    // Steps are counted, not timed: at most a hundred tasks each.
    let Value::Int(added) = fixture.raw(&["XLEN", "sb:stream:{test:job}"]).await else {
        panic!()
    };
    assert_eq!(added, 20_000);
    let Value::BulkString(stats) = fixture.raw(&["INFO", "commandstats"]).await else {
        panic!()
    };
    let stats = String::from_utf8(stats).unwrap();
    let zrem = stats.lines().find(|l| l.starts_with("cmdstat_zrem:")).unwrap();
    assert!(zrem.contains("calls=20000,"), "{zrem}");
    let looks = stats.lines().find(|l| l.starts_with("cmdstat_zrangebyscore:")).unwrap();
    let calls: u64 = looks
        .split("calls=")
        .nth(1)
        .and_then(|rest| rest.split(',').next()?.parse().ok())
        .unwrap();
    assert!(calls >= 200, "{looks}");
}

#[tokio::test(flavor = "multi_thread")]
async fn high_priority_comes_first_and_low_is_not_starved() {
    let mut fixture = Fixture::new().await;
    let [low, normal, high] = [0, 1_000, 2_000].map(|from| (from..from + 300).map(job).collect::<Vec<_>>());
    fixture
        .producer
        .enqueue_many(&low)
        .priority(Priority::Low)
        .await
        .unwrap();
    fixture.producer.enqueue_many(&normal).await.unwrap();
    fixture
        .producer
        .enqueue_many(&high)
        .priority(Priority::High)
        .await
        .unwrap();
    let seen = Seen::default();
    let config = fixture.config();
    let _stop = fixture
        .worker(config, |t| t.version("v1", seen.handler()).concurrency(20))
        .await;
    let order = order(&fixture, &seen).await;
    assert_eq!(order.len(), 900);
    let rank = |from: u64| -> usize {
        let ranks = (0..order.len()).filter(|&at| (from..from + 1_000).contains(&order[at]));
        ranks.sum::<usize>() / 300
    };
    let (high, normal, low) = (rank(2_000), rank(1_000), rank(0));
    assert!(high < normal && normal < low, "{high} {normal} {low}");
    let first_low = order.iter().position(|n| *n < 1_000).unwrap();
    let last_high = order.iter().rposition(|n| *n >= 2_000).unwrap();
    assert!(
        first_low < last_high,
        "low priority waited for all of high: {first_low} {last_high}"
    );
}

// P5, P1: a retry comes back to the stream of its priority.
#[tokio::test(flavor = "multi_thread")]
async fn a_retried_task_keeps_its_priority_and_its_deadline() {
    let mut fixture = Fixture::new().await;
    let (_stop, seen) = fixture.simple(&["v1"]).await;
    let failing = Job {
        n: 7,
        then: "fail".to_owned(),
    };
    fixture
        .producer
        .enqueue(&failing)
        .priority(Priority::High)
        .expires_in(HOUR)
        .await
        .unwrap();
    fixture.drained().await;
    assert_eq!(seen.all().len(), 3);
    let dead = dead_letters(&fixture.store, &fixture.queue).await;
    let fields = dead[0].fields.as_ref().unwrap();
    assert_eq!(field_text(fields, "priority"), "high");
    assert_eq!(field_text(fields, "expires"), "+3600000");
    let entries = log::read(&fixture.store, &fixture.queue, None, 1_000).await.unwrap();
    let streams: Vec<&str> = entries
        .iter()
        .flat_map(|e| &e.attempts)
        .map(|g| g.stream.as_str())
        .collect();
    assert_eq!(streams, ["high"; 3]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_unique_key_lets_one_task_in() {
    let fixture = Fixture::new().await;
    let producer = &fixture.producer;
    let first = producer.enqueue(&job(1)).unique("order-42", HOUR).await.unwrap();
    // Two at once, and one that would have been delayed: none of them.
    let (a, b) = tokio::join!(
        producer.enqueue(&job(2)).unique("order-42", HOUR),
        producer.enqueue(&job(3)).unique("order-42", HOUR).delay(HOUR),
    );
    for refused in [a, b] {
        match refused.unwrap_err() {
            EnqueueError::Taken { key, by, .. } => assert_eq!((key.as_str(), by), ("order-42", first.clone())),
            other => panic!("{other}"),
        }
    }
    let existing = producer
        .enqueue(&job(4))
        .unique("order-42", HOUR)
        .if_taken(IfTaken::Existing)
        .await
        .unwrap();
    assert_eq!(existing, first);
    // Repeating the first with its own id is no second task.
    assert_eq!(
        producer
            .enqueue(&job(1))
            .id(first.to_string())
            .unique("order-42", HOUR)
            .await
            .unwrap(),
        first
    );
    producer.enqueue(&job(5)).unique("order-43", HOUR).await.unwrap();
    let depth = fixture.depth().await;
    assert_eq!((depth.waiting(), depth.delayed), (2, 0));
    // The key is held for as long as was said, no longer.
    fixture
        .raw(&["PEXPIRE", "sb:unique:{test:job}:key:order-42", "1"])
        .await;
    eventually("the key is free", patience(Duration::from_secs(5)), async || {
        producer.enqueue(&job(6)).unique("order-42", HOUR).await.is_ok()
    })
    .await;
    let long = "x".repeat(257);
    let refused = producer.enqueue(&job(7)).unique(long, HOUR).await.unwrap_err();
    assert!(
        matches!(refused, EnqueueError::KeyTooLong { size: 257, .. }),
        "{refused}"
    );
}

// The latest wins; what runs already goes on.
#[tokio::test(flavor = "multi_thread")]
async fn a_unique_key_may_be_taken_over() {
    let mut fixture = Fixture::new().await;
    let producer = fixture.producer.clone();
    let latest = |n: u64, delay: Duration| {
        let producer = producer.clone();
        async move {
            producer
                .enqueue(&job(n))
                .unique("cart-1", HOUR)
                .if_taken(IfTaken::Replace)
                .delay(delay)
                .await
                .unwrap()
        }
    };
    // From the delayed set, from the stream, and several times.
    latest(1, HOUR).await;
    latest(2, Duration::ZERO).await;
    latest(3, Duration::ZERO).await;
    latest(4, HOUR).await;
    latest(5, Duration::ZERO).await;
    let (_stop, seen) = fixture.simple(&["v1"]).await;
    assert_eq!(order(&fixture, &seen).await, [5]);
    // One that runs is not touched; the new one comes beside it.
    let hanging = Job {
        n: 6,
        then: "hang".to_owned(),
    };
    producer.enqueue(&hanging).unique("cart-2", HOUR).await.unwrap();
    eventually("it runs", patience(Duration::from_secs(5)), async || {
        seen.all().len() == 2
    })
    .await;
    producer
        .enqueue(&job(7))
        .unique("cart-2", HOUR)
        .if_taken(IfTaken::Replace)
        .await
        .unwrap();
    eventually("the new one ran", patience(Duration::from_secs(5)), async || {
        seen.all().iter().any(|ran| ran.n == 7)
    })
    .await;
    assert_eq!(fixture.depth().await.in_flight(), 1, "the one that hangs goes on");
}

// P1: not run, and not lost either.
#[tokio::test(flavor = "multi_thread")]
async fn an_expired_task_does_not_start_and_is_a_dead_letter() {
    let mut fixture = Fixture::new().await;
    let producer = &fixture.producer;
    producer
        .enqueue(&job(1))
        .expires_in(Duration::from_millis(1))
        .await
        .unwrap();
    producer.enqueue(&job(2)).expires_in(HOUR).await.unwrap();
    producer
        .enqueue(&job(3))
        .expires_at(SystemTime::UNIX_EPOCH)
        .await
        .unwrap();
    // Also one that expires while it is delayed.
    producer
        .enqueue(&job(4))
        .delay(Duration::from_millis(300))
        .expires_in(Duration::from_millis(100))
        .await
        .unwrap();
    tokio::time::sleep(Duration::from_millis(20)).await;
    let (_stop, seen) = fixture.simple(&["v1"]).await;
    assert_eq!(order(&fixture, &seen).await, [2]);
    let dead = dead_letters(&fixture.store, &fixture.queue).await;
    let reasons: Vec<String> = dead
        .iter()
        .map(|e| field_text(e.fields.as_ref().unwrap(), "dead_reason"))
        .collect();
    assert_eq!(reasons, ["expired"; 3]);
}

// P6: put off is not failed.
#[tokio::test(flavor = "multi_thread")]
async fn a_snoozed_task_runs_again_and_no_attempt_is_burnt() {
    let mut fixture = Fixture::new().await;
    let (_stop, seen) = fixture.simple(&["v1"]).await;
    let id = fixture.enqueue_one(1, "snooze once").await;
    fixture.drained().await;
    let ran = seen.all();
    assert_eq!(ran.iter().map(|r| r.attempt).collect::<Vec<_>>(), [1, 1]);
    assert!(ran.iter().all(|r| r.id == id));
    let entries = log::read(&fixture.store, &fixture.queue, None, 1_000).await.unwrap();
    let ended: Vec<Ended> = entries
        .iter()
        .flat_map(|e| &e.attempts)
        .flat_map(|g| &g.tasks)
        .map(|row| row.3)
        .collect();
    assert_eq!(ended, [Ended::Snoozed, Ended::Done]);
}

// P6: a worker that does not know a format leaves the task, whole, to one that does.
#[tokio::test(flavor = "multi_thread")]
async fn a_task_of_a_newer_format_waits_for_a_newer_worker() {
    let mut fixture = Fixture::new().await;
    let (_stop, seen) = fixture.simple(&["v1"]).await;
    fixture
        .raw(&[
            "XADD",
            "sb:stream:{test:job}",
            "*",
            "format",
            "2",
            "body",
            "\x01\x02",
            "payload",
            "not json",
        ])
        .await;
    fixture.enqueue([1]).await;
    eventually("it is set aside", patience(Duration::from_secs(10)), async || {
        fixture.depth().await.newer == 1 && seen.all().len() == 1
    })
    .await;
    assert_eq!(fixture.depth().await.dead, 0);
    // Readable by whoever knows it: group, fields, and an id and time it can keep.
    let read = format!(
        "{:?}",
        fixture
            .raw(&[
                "XREADGROUP",
                "GROUP",
                "workers",
                "newer",
                "STREAMS",
                "sb:newer:{test:job}:2",
                ">",
            ])
            .await
    );
    for part in ["body", "not json", "id", "enqueued_at"] {
        assert!(read.contains(part), "{part}: {read}");
    }
}
