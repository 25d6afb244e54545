//! Results: who asked for one gets it, in the moment in which the outcome took effect.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use redis::Value;
use switchback_common::{ConnectOptions, TaskId, store::results::MAX_RESULT_BYTES};
use switchback_producer::{AfterError, Progress, Waited};
use switchback_tests::{Link, Mode, eventually, patience};
use switchback_worker::{Context, TaskError, WorkerConfig};
use tokio::sync::Notify;

use crate::fixture::{Fixture, Job};

const MINUTE: Duration = Duration::from_secs(60);

/// Returns what the job says, in as many letters as it counts.
async fn letters(job: Job, ctx: Context) -> Result<String, TaskError> {
    match job.then.as_str() {
        "reject" => Err(TaskError::reject("no such letter")),
        "hang" => std::future::pending().await,
        "progress" => {
            for n in 1..=job.n {
                ctx.progress(n, job.n, format!("letter {n}"));
                tokio::task::yield_now().await;
            }
            ctx.cancelled.cancelled().await;
            Err(TaskError::failed("told to stop"))
        }
        then => Ok(then.repeat(usize::try_from(job.n).unwrap())),
    }
}

async fn enqueue(fixture: &Fixture, n: u64, then: &str) -> TaskId {
    let job = Job { n, then: then.into() };
    fixture.producer.enqueue(&job).keep_result(MINUTE).await.unwrap()
}

async fn wait(fixture: &Fixture, id: &TaskId) -> Result<Waited<String>, AfterError> {
    fixture
        .producer
        .wait("job", id, patience(Duration::from_secs(20)))
        .await
}

fn key(id: &TaskId) -> String {
    format!("sb:result:{{test:job}}:{id}")
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asked_gets_the_result_and_nobody_else_pays_for_it() {
    let mut fixture = Fixture::new().await;
    let config = fixture.config();
    fixture.worker(config, |t| t.version("v1", letters)).await;
    let done = enqueue(&fixture, 3, "ab").await;
    assert_eq!(wait(&fixture, &done).await.unwrap(), Waited::Done("ababab".to_owned()));
    let ttl: i64 = redis::from_redis_value(fixture.raw(&["PTTL", &key(&done)]).await).unwrap();
    assert!((1..=60_000).contains(&ttl), "{ttl}");
    let dead = enqueue(&fixture, 1, "reject").await;
    assert_eq!(
        wait(&fixture, &dead).await.unwrap(),
        Waited::Dead("no such letter".to_owned())
    );
    let wrong = fixture.producer.wait::<u64>("job", &done, MINUTE).await.unwrap_err();
    assert!(wrong.to_string().contains("its result is of another kind"), "{wrong}");

    let big = enqueue(&fixture, MAX_RESULT_BYTES as u64, "x").await;
    let error = wait(&fixture, &big).await.unwrap_err().to_string();
    assert!(
        error.contains("is done, but the result is 61442 bytes, the limit is 61440"),
        "{error}"
    );

    let plain: TaskId = fixture.enqueue_one(1, "x").await.parse().unwrap();
    assert_eq!(wait(&fixture, &plain).await.unwrap(), Waited::Unknown);
    assert_eq!(fixture.raw(&["EXISTS", &key(&plain)]).await, Value::Int(0));

    let hangs = enqueue(&fixture, 1, "hang").await;
    let waited = fixture
        .producer
        .wait::<String>("job", &hangs, Duration::from_millis(300))
        .await
        .unwrap();
    assert_eq!(waited, Waited::TimedOut(None));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_type_may_keep_all_its_results() {
    let mut fixture = Fixture::new().await;
    let config = fixture.config();
    fixture
        .worker(config, |t| t.version("v1", letters).keep_results(MINUTE))
        .await;
    let id: TaskId = fixture.enqueue_one(2, "x").await.parse().unwrap();
    assert_eq!(wait(&fixture, &id).await.unwrap(), Waited::Done("xx".to_owned()));
}

// Whoever waits sees the latest word; a cancelled task keeps it, and nothing says any more that it runs.
#[tokio::test(flavor = "multi_thread")]
async fn progress_is_seen_while_it_runs_and_ends_with_the_task() {
    let mut fixture = Fixture::new().await;
    let config = fixture.config();
    fixture.worker(config, |t| t.version("v1", letters)).await;
    let job = Job {
        n: 1_000,
        then: "progress".into(),
    };
    let id = fixture.producer.enqueue(&job).await.unwrap();
    eventually("the last word", patience(Duration::from_secs(20)), async || {
        let waited = fixture
            .producer
            .wait::<String>("job", &id, Duration::from_millis(1))
            .await
            .unwrap();
        let last = Progress {
            done: 1_000,
            total: 1_000,
            note: "letter 1000".into(),
        };
        match waited {
            Waited::TimedOut(Some(progress)) if progress == last => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    fixture.producer.cancel("job", &id).await.unwrap();
    assert_eq!(wait(&fixture, &id).await.unwrap(), Waited::Cancelled);
}

// P2: a settle whose reply was lost is sent again, and the result is not written again.
#[tokio::test(flavor = "multi_thread")]
async fn a_result_is_written_once_though_replies_are_lost() {
    let mut fixture = Fixture::new().await;
    let link = Link::to(fixture.server.port()).await;
    let config = WorkerConfig::new(ConnectOptions::new(link.url()), "test".parse().unwrap())
        .lease(Duration::from_secs(60))
        .pushes(false);
    let (go, running) = (Arc::new(Notify::new()), Arc::new(AtomicBool::new(false)));
    let (inner, flag) = (Arc::clone(&go), Arc::clone(&running));
    let handler = move |job: Job, _ctx| {
        let (go, flag) = (Arc::clone(&inner), Arc::clone(&flag));
        async move {
            if job.n == 1 {
                flag.store(true, Ordering::SeqCst);
                go.notified().await;
            }
            Ok(job.n)
        }
    };
    fixture.worker(config, |t| t.version("v1", handler)).await;
    // The settler has its connection and its script.
    let warm = enqueue(&fixture, 0, "").await;
    assert_eq!(
        fixture.producer.wait("job", &warm, MINUTE).await.unwrap(),
        Waited::Done(0_u64)
    );
    let id = enqueue(&fixture, 1, "").await;
    eventually("it runs", patience(Duration::from_secs(10)), async || {
        running.load(Ordering::SeqCst)
    })
    .await;
    link.set(Mode::DropReplies).await;
    go.notify_one();
    assert_eq!(
        fixture.producer.wait("job", &id, MINUTE).await.unwrap(),
        Waited::Done(1_u64)
    );
    fixture.raw(&["SET", &key(&id), "written once"]).await;
    link.set(Mode::Pass).await;
    // Settled after it, so the lost one has been sent again before.
    let last = enqueue(&fixture, 2, "").await;
    assert_eq!(
        fixture.producer.wait("job", &last, MINUTE).await.unwrap(),
        Waited::Done(2_u64)
    );
    let kept = fixture.raw(&["GET", &key(&id)]).await;
    assert_eq!(kept, Value::BulkString(b"written once".to_vec()));
}
