//! Mixed fleets: workers that do not all have every version.

use std::time::Duration;

use switchback_tests::{eventually, patience};

use switchback_worker::RetryPolicy;

use crate::fixture::{Fixture, Job, Seen};

// A worker that lacks a version passes the task on; no attempt is burnt (P6).
#[tokio::test(flavor = "multi_thread")]
async fn each_version_runs_where_it_is() {
    let mut fixture = Fixture::new().await;
    let (_one, on_v1) = fixture.simple(&["v1"]).await;
    let (_two, on_v2) = fixture.simple(&["v2"]).await;
    fixture.set(&[("candidate", "v2"), ("percent", "50")]).await;
    fixture.enqueue(0..400).await;
    fixture.drained().await;
    let (first, second) = (on_v1.all(), on_v2.all());
    assert_eq!(first.len() + second.len(), 400);
    assert!(
        first.len() > 100 && second.len() > 100,
        "{} {}",
        first.len(),
        second.len()
    );
    assert!(first.iter().all(|r| r.version == "v1") && second.iter().all(|r| r.version == "v2"));
    assert!(
        first.iter().chain(&second).all(|r| r.attempt == 1),
        "handing over burns nothing"
    );
}

// A version that nobody has parks its share and nothing else; a flip brings it back.
#[tokio::test(flavor = "multi_thread")]
async fn a_version_without_workers_parks_its_share_only() {
    let mut fixture = Fixture::new().await;
    let (two, _) = fixture.simple(&["v2"]).await;
    let (_one, seen) = fixture.simple(&["v1"]).await;
    fixture.set(&[("active", "v1")]).await;
    two.cancel();
    fixture.workers.join_next().await.unwrap().unwrap().unwrap();
    fixture.set(&[("candidate", "v2"), ("percent", "30")]).await;
    fixture.enqueue(0..300).await;
    let parked = eventually(
        "v1's share is done and v2's is parked",
        patience(Duration::from_secs(10)),
        async || {
            let depth = fixture.depth().await;
            let parked = depth
                .lanes
                .iter()
                .find(|(v, _)| v.as_str() == "v2")
                .unwrap()
                .1
                .waiting();
            (depth.main.waiting() + depth.in_flight() == 0 && parked + seen.all().len() as u64 == 300).then_some(parked)
        },
    )
    .await;
    assert!((50..150).contains(&parked), "{parked}");
    // P5: swept tasks pass the gate again.
    fixture.set(&[("only", "v1")]).await;
    fixture.drained().await;
    let all = seen.all();
    assert_eq!(all.len(), 300);
    assert!(all.iter().all(|r| r.version == "v1" && r.attempt == 1));
}

// A worker claims only what it can start: with its version withdrawn, tasks stay in the stream.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_without_the_active_version_leaves_tasks_alone() {
    let mut fixture = Fixture::new().await;
    let (two, _) = fixture.simple(&["v2"]).await;
    let (_one, seen) = fixture.simple(&["v1"]).await;
    fixture.stop(&two).await;
    fixture.enqueue(0..50).await;
    // v2 is active and gone; v1's worker must not even move the tasks.
    let depth = fixture.depth().await;
    assert_eq!((depth.main.waiting(), depth.in_flight()), (50, 0));
    fixture.set(&[("only", "v1")]).await;
    fixture.drained().await;
    assert_eq!(seen.all().len(), 50);
}

// P6: a pause stops every start, gives back what was claimed, and burns nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_pause_holds_everything_and_burns_nothing() {
    let mut fixture = Fixture::new().await;
    let (_stop, seen) = fixture.simple(&["v1"]).await;
    fixture.set(&[("paused", "1")]).await;
    fixture.enqueue(0..100).await;
    // The pause is in force for every worker: `set` has waited for that.
    assert!(seen.all().is_empty());
    assert_eq!(fixture.depth().await.waiting(), 100);
    fixture.set(&[("paused", "0")]).await;
    fixture.drained().await;
    let all = seen.all();
    assert_eq!(all.len(), 100);
    assert!(all.iter().all(|r| r.attempt == 1));
}

// P5: a retry passes the gate again. What v2 could not do, v1 does after the rollback.
#[tokio::test(flavor = "multi_thread")]
async fn what_failed_on_the_withdrawn_version_succeeds_on_the_other() {
    let mut fixture = Fixture::new().await;
    let (config, seen) = (fixture.config(), Seen::default());
    // More attempts than fail before anybody gets to flip the gate: each waits a second for the next.
    let retry = RetryPolicy::default()
        .attempts(100)
        .backoff(Duration::from_secs(1), Duration::from_secs(1));
    fixture
        .worker(config, |t| {
            t.version("v1", seen.handler())
                .version("v2", seen.handler())
                .retry(retry)
        })
        .await;
    fixture.set(&[("active", "v2")]).await;
    fixture.set(&[("paused", "1")]).await;
    for n in 0..20 {
        fixture.enqueue_one(n, "fail on v2").await;
    }
    fixture.set(&[("paused", "0")]).await;
    eventually("v2 has failed", patience(Duration::from_secs(5)), async || {
        !seen.all().is_empty()
    })
    .await;
    fixture.raw(&["HSET", "sb:gate:{test:job}", "only", "v1"]).await;
    fixture.drained().await;
    for n in 0..20 {
        let versions = seen.versions_of(n);
        assert_eq!(versions.last().map(String::as_str), Some("v1"), "{versions:?}");
        assert_eq!(versions.iter().filter(|v| *v == "v1").count(), 1, "{versions:?}");
    }
    assert!(seen.all().iter().any(|ran| ran.version == "v1" && ran.attempt > 1));
    assert_eq!(fixture.depth().await.dead, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pinned_key_goes_to_its_version() {
    let mut fixture = Fixture::new().await;
    let (_stop, seen) = fixture.simple(&["v1", "v2"]).await;
    fixture.set(&[("pins", "customer-7=v2")]).await;
    for (n, key) in [(1, "customer-7"), (2, "customer-8")] {
        let job = Job { n, then: String::new() };
        fixture.producer.enqueue(&job).key(key).await.unwrap();
    }
    fixture.drained().await;
    assert_eq!(
        (seen.versions_of(1), seen.versions_of(2)),
        (vec!["v2".to_owned()], vec!["v1".to_owned()])
    );
}

// Several task types in one worker, each with its own gate.
#[tokio::test(flavor = "multi_thread")]
async fn one_worker_serves_several_task_types() {
    #[derive(serde::Serialize, serde::Deserialize)]
    struct Other {}
    impl switchback_common::Task for Other {
        const TYPE: &'static str = "other";
    }
    let mut fixture = Fixture::new().await;
    let seen = Seen::default();
    let ran = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
    let counted = std::sync::Arc::clone(&ran);
    let stop = switchback_worker::CancellationToken::new();
    let worker = switchback_worker::Worker::builder(fixture.config())
        .task::<Job>(|t| t.version("v1", seen.handler()))
        .task::<Other>(|t| {
            t.version("a", move |_: Other, ctx| {
                let counted = std::sync::Arc::clone(&counted);
                async move {
                    assert_eq!(ctx.queue.to_string(), "test/other");
                    counted.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                    Ok(())
                }
            })
        });
    fixture.workers.spawn(worker.run_until(stop));
    fixture.producer.enqueue(&Other {}).await.unwrap();
    fixture.enqueue([1]).await;
    eventually("both have run", patience(Duration::from_secs(10)), async || {
        ran.load(std::sync::atomic::Ordering::SeqCst) == 1 && seen.all().len() == 1
    })
    .await;
}
