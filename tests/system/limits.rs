//! Limits of a queue, at work (P10).

use std::time::Duration;

use switchback_common::store::limits::{self, Setting};
use switchback_producer::EnqueueError;
use switchback_tests::{eventually, patience};

use crate::{
    claims::watched,
    fixture::{Fixture, Job},
};

async fn limit(fixture: &Fixture, setting: Setting) {
    limits::set(&fixture.store, &fixture.queue, &[setting], &[], "test", "")
        .await
        .unwrap();
}

async fn holds(fixture: &Fixture) -> usize {
    let history = fixture.gates.history(&fixture.queue, None, 100).await.unwrap();
    history.iter().filter(|e| e.source == "limit").count()
}

// P10: at the limit of dead letters nothing more starts; nothing is refused, trimmed or lost, and one entry says why.
#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_at_their_limit_hold_the_queue_until_a_person_resumes() {
    let mut fixture = Fixture::new().await;
    limit(&fixture, Setting::Dead(5)).await;
    let _workers = [fixture.simple(&["v1"]).await, fixture.simple(&["v1"]).await];
    for n in 0..5 {
        fixture.enqueue_one(n, "reject").await;
    }
    eventually("the queue is held", patience(Duration::from_secs(10)), async || {
        fixture.gates.show(&fixture.queue).await.unwrap().gate.paused
    })
    .await;
    fixture.set(&[("paused", "1")]).await; // nothing changes: everybody obeys it by now
    fixture.enqueue(100..110).await;
    assert_eq!(holds(&fixture).await, 1, "one entry, however many workers");
    let depth = fixture.depth().await;
    assert_eq!((depth.dead, depth.waiting(), depth.in_flight()), (5, 10, 0));

    // Resumed and still at the limit: held again. With room it goes on.
    fixture.set(&[("paused", "0")]).await;
    eventually(
        "the queue is held again",
        patience(Duration::from_secs(10)),
        async || holds(&fixture).await == 2,
    )
    .await;
    limit(&fixture, Setting::Dead(6)).await;
    fixture.set(&[("paused", "0")]).await;
    fixture.drained().await;
    assert_eq!(fixture.depth().await.dead, 5);
    assert_eq!(holds(&fixture).await, 2);
}

// P10: refused at enqueue, with what to do; moves go on.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_refuses_new_tasks_until_there_is_room() {
    let mut fixture = Fixture::new().await;
    limit(&fixture, Setting::Waiting(10)).await;
    fixture.enqueue(0..8).await;
    let job = |n| Job { n, then: String::new() };
    let many = [job(8), job(9), job(10)];
    let error = fixture.producer.enqueue_many(&many).await.unwrap_err();
    assert!(
        matches!(
            error,
            EnqueueError::QueueFull {
                waiting: 8,
                limit: 10,
                ..
            }
        ),
        "{error:?}"
    );
    assert!(!error.is_outcome_unknown());
    let text = error.to_string();
    assert!(
        text.contains("test/job is full") && text.contains("switchback queue limits job --waiting"),
        "{text}"
    );
    assert_eq!(fixture.depth().await.waiting(), 8, "all or nothing");
    fixture.enqueue(8..10).await;
    let once = fixture.producer.enqueue(&job(10)).id("once").await.unwrap_err();
    assert!(matches!(once, EnqueueError::QueueFull { waiting: 10, .. }), "{once:?}");

    let (_stop, seen) = fixture.simple(&["v1"]).await;
    eventually("there is room again", patience(Duration::from_secs(10)), async || {
        fixture.producer.enqueue(&job(10)).id("once").await
    })
    .await;
    fixture.drained().await;
    let mut ran: Vec<u64> = seen.all().iter().map(|r| r.n).collect();
    ran.sort_unstable();
    assert_eq!(ran, (0..11).collect::<Vec<_>>());

    // By hand, too: a producer that is at work finds out by itself.
    let gates = [("0", true), ("1", false), ("0", true)];
    fixture.set(&[("paused", "1")]).await;
    let jobs: Vec<Job> = (0..20).map(job).collect();
    for (limit, passes) in gates {
        fixture.raw(&["HSET", "sb:limits:{test:job}", "waiting", limit]).await;
        eventually("the new limit holds", patience(Duration::from_secs(10)), async || {
            // More than the limit was: to pass, it must know that there is none. To be refused, it must look while it passes.
            let sent = fixture.producer.enqueue_many(&jobs).await;
            assert!(matches!(sent, Ok(_) | Err(EnqueueError::QueueFull { .. })), "{sent:?}");
            sent.is_ok() == passes
        })
        .await;
    }
}

// The plain path stays one command per task: what is known of the queue is looked up once a second.
#[tokio::test(flavor = "multi_thread")]
async fn a_plain_enqueue_is_one_command() {
    let fixture = Fixture::new().await;
    let began = std::time::Instant::now();
    let commands = watched(&fixture, async || {
        for n in 0..1_000 {
            fixture.enqueue_one(n, "").await;
        }
    })
    .await;
    let seconds = usize::try_from(began.elapsed().as_secs()).unwrap();
    let (adds, others): (Vec<_>, Vec<_>) = commands.iter().partition(|(_, words)| words[0] == "XADD");
    assert_eq!(adds.len(), 1_000);
    // Connecting, the directory, and a look of seven commands at first and each second.
    let looks = others
        .iter()
        .filter(|(_, words)| words[1].starts_with("sb:limits"))
        .count();
    assert!((1..=seconds + 2).contains(&looks), "{looks} looks in {seconds} s");
    assert!(others.len() <= 10 + 7 * looks, "{others:?}");
}
