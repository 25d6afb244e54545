//! A fleet that brings another build under a label that is taken: it says so, and everything else goes on.

use redis::Value;
use switchback_common::{
    Queue,
    store::log::{self, LogEntry},
};
use switchback_tests::{eventually, patience};

use crate::{
    fixture::Fixture,
    health::{readyz, telling},
    tools::{LONG, enqueue_probe},
};

async fn log_of(fixture: &Fixture, task_type: &str) -> Vec<LogEntry> {
    let queue = Queue::new("test".parse().unwrap(), task_type.parse().unwrap());
    log::read(&fixture.store, &queue, None, 10_000).await.unwrap()
}

async fn processed(fixture: &Fixture, task_type: &str) {
    eventually("the task is done", patience(LONG), async || {
        log_of(fixture, task_type).await.iter().any(|e| e.kind == "settled")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_build_waits_for_a_person_while_its_other_queue_is_served() {
    let fixture = Fixture::new().await;
    let url = fixture.server.url();
    let (first, one) = telling(&url, &["--build", "b1"], &[]).await;
    readyz(&one, 200, "test/probe").await;
    let second = ["--build", "b2", "--neighbour"];
    let (refused, two) = telling(&url, &second, &[]).await;
    let line = refused.process.wait_line("v1 is known as build").await;
    assert!(line.contains("b1") && line.contains("allow_another_build"), "{line}");
    // P7: the queue that nobody objects to is served.
    fixture
        .raw(&["XADD", "sb:stream:{test:neighbour}", "*", "payload", "{\"n\":1}"])
        .await;
    processed(&fixture, "neighbour").await;
    let body = readyz(&two, 503, "known as build").await;
    let ready = |queue: &str| {
        let queues = body["queues"].as_array().unwrap().iter();
        let found = queues.clone().find(|q| q["queue"] == queue);
        found.unwrap()["ready"].as_bool().unwrap()
    };
    assert_eq!((ready("test/probe"), ready("test/neighbour")), (false, true), "{body}");
    // It tries again and again: the log of the queue has one word of it.
    let log = log_of(&fixture, "probe").await;
    assert_eq!(log.iter().filter(|e| e.kind == "build_refused").count(), 1);
    // Somebody frees the label: nobody has to find the workers that wait for it.
    drop(first);
    fixture.raw(&["HDEL", "sb:versions:{test:probe}", "v1"]).await;
    readyz(&two, 200, "test/probe").await;
    enqueue_probe(&fixture, "{\"n\":1}").await;
    processed(&fixture, "probe").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_build_that_is_allowed_is_served_at_once() {
    let fixture = Fixture::new().await;
    let url = fixture.server.url();
    let (_first, one) = telling(&url, &["--build", "b1"], &[]).await;
    readyz(&one, 200, "test/probe").await;
    let (_second, two) = telling(&url, &["--build", "b2", "--allow-another-build"], &[]).await;
    readyz(&two, 200, "test/probe").await;
    let Value::BulkString(record) = fixture.raw(&["HGET", "sb:versions:{test:probe}", "v1"]).await else {
        panic!("a record")
    };
    let record = String::from_utf8(record).unwrap();
    assert!(record.contains(r#""builds":["b1","b2"]"#), "{record}");
}
