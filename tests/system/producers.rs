//! Producers: limits, lost replies, repeats, traces.

use std::time::Duration;

use switchback_common::{ConnectOptions, Task};
use switchback_producer::{EnqueueError, Producer};
use switchback_tests::{Link, Mode};

use crate::fixture::{Fixture, Job};

fn job(n: u64) -> Job {
    Job { n, then: String::new() }
}

#[derive(serde::Serialize, serde::Deserialize)]
struct BadType {}
impl Task for BadType {
    const TYPE: &'static str = "bad type";
}

#[tokio::test]
async fn what_cannot_be_a_task_is_refused_before_it_is_sent() {
    let fixture = Fixture::new().await;
    let producer = &fixture.producer;
    assert!(matches!(
        producer.enqueue(&BadType {}).await,
        Err(EnqueueError::Name(_))
    ));
    assert!(matches!(
        producer.enqueue(&job(1)).id("a b").await,
        Err(EnqueueError::Id(_))
    ));
    let error = producer.enqueue(&job(1)).key("k".repeat(257)).await.unwrap_err();
    assert_eq!(error.to_string(), "key for test/job is 257 bytes, the limit is 256");
    let big = Job {
        n: 1,
        then: "x".repeat(1024 * 1024),
    };
    let error = producer.enqueue(&big).await.unwrap_err();
    assert!(
        matches!(error, EnqueueError::PayloadTooLarge { limit: 1_048_576, .. }),
        "{error}"
    );
    let error = producer.enqueue_many(&[job(1), big]).await.unwrap_err();
    assert!(
        matches!(error, EnqueueError::PayloadTooLarge { .. }),
        "all are checked before any is sent"
    );
    assert_eq!(fixture.depth().await.waiting(), 0);
    assert!("a/b".parse::<switchback_common::Namespace>().is_err());
}

// P2: a plain enqueue says that it does not know; with an id, repeating is safe.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_reply_is_not_a_failure_and_an_id_makes_repeating_safe() {
    let fixture = Fixture::new().await;
    let link = Link::to(fixture.server.port()).await;
    let options = ConnectOptions::new(link.url());
    let producer = Producer::connect(&options, "test".parse().unwrap()).await.unwrap();
    producer.enqueue(&job(0)).await.unwrap();

    link.set(Mode::DropReplies).await;
    let error = producer.enqueue(&job(1)).await.unwrap_err();
    assert!(
        matches!(error, EnqueueError::OutcomeUnknown { id: None, .. }),
        "{error}"
    );
    link.set(Mode::Pass).await;
    assert_eq!(fixture.depth().await.waiting(), 2, "it had happened");

    // The first try opens a connection and loads the script; then the reply is lost.
    producer.enqueue(&job(2)).id("order-2").await.unwrap();
    link.set(Mode::DropReplies).await;
    let error = producer.enqueue(&job(3)).id("order-3").await.unwrap_err();
    assert!(error.is_outcome_unknown(), "{error}");
    link.set(Mode::Pass).await;
    let again = producer.enqueue(&job(3)).id("order-3").await.unwrap();
    assert_eq!(again.to_string(), "order-3");
    assert_eq!(fixture.depth().await.waiting(), 4, "once");

    let many: Vec<Job> = (10..260).map(job).collect();
    let ids: Vec<String> = many.iter().map(|j| format!("many-{}", j.n)).collect();
    producer.enqueue_many(&many[..100]).ids(&ids[..100]).await.unwrap();
    producer.enqueue_many(&many).ids(&ids).await.unwrap();
    assert_eq!(fixture.depth().await.waiting(), 254);
}

#[tokio::test]
async fn idempotent_errors_carry_the_id_for_the_repeat() {
    let fixture = Fixture::new().await;
    let link = Link::to(fixture.server.port()).await;
    let producer = Producer::connect(&ConnectOptions::new(link.url()), "test".parse().unwrap())
        .await
        .unwrap();
    producer.enqueue(&job(0)).idempotent().await.unwrap();
    link.set(Mode::DropReplies).await;
    let Err(EnqueueError::OutcomeUnknown { id: Some(id), .. }) = producer.enqueue(&job(1)).idempotent().await else {
        panic!("it carries the id")
    };
    link.set(Mode::Pass).await;
    producer.enqueue(&job(1)).id(id.to_string()).await.unwrap();
    assert_eq!(fixture.depth().await.waiting(), 2);
}

#[tokio::test]
async fn a_refused_connection_is_a_plain_no() {
    let fixture = Fixture::new().await;
    let link = Link::to(fixture.server.port()).await;
    let producer = Producer::connect(&ConnectOptions::new(link.url()), "test".parse().unwrap())
        .await
        .unwrap();
    link.set(Mode::Refuse).await;
    let error = producer.enqueue(&job(1)).await.unwrap_err();
    assert!(!error.is_outcome_unknown(), "nothing was sent: {error}");
}

// A plain task carries nothing but its payload, and its id leads back to it.
#[tokio::test]
async fn a_plain_task_costs_its_payload_and_can_be_found() {
    let fixture = Fixture::new().await;
    let id = fixture.producer.enqueue(&job(5)).await.unwrap();
    let entries = fixture.raw(&["XRANGE", "sb:stream:{test:job}", "-", "+"]).await;
    let text = format!("{entries:?}");
    assert!(
        text.contains("payload") && !text.contains("enqueued_at") && !text.contains("'id'"),
        "{text}"
    );
    let found = switchback_common::store::inspect::find(&fixture.store, &fixture.queue, &id)
        .await
        .unwrap()
        .unwrap();
    assert_eq!((found.place.as_str(), found.waiting), ("main", true));
}

#[tokio::test]
async fn at_maxmemory_new_tasks_are_refused_whole() {
    let fixture = Fixture::new().await;
    fixture.raw(&["CONFIG", "SET", "maxmemory", "1"]).await;
    let error = fixture.producer.enqueue(&job(1)).await.unwrap_err();
    assert!(error.to_string().contains("out of memory"), "{error}");
    let jobs: Vec<Job> = (0..10).map(job).collect();
    let error = fixture.producer.enqueue_many(&jobs).await.unwrap_err();
    assert!(error.to_string().contains("enqueued 0 of 10"), "{error}");
    fixture.raw(&["CONFIG", "SET", "maxmemory", "0"]).await;
    assert_eq!(fixture.depth().await.waiting(), 0);
    tokio::time::timeout(Duration::from_secs(5), fixture.producer.enqueue(&job(1)).into_future())
        .await
        .unwrap()
        .unwrap();
}
