//! Cancelled tasks: what waits never starts, what runs is told, and nothing is cancelled twice or by mistake.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use switchback_common::{
    TaskId,
    store::{
        cancel, inspect,
        log::{self, Ended},
        reply::field_number,
    },
};
use switchback_producer::{Cancelled, Waited};
use switchback_tests::{Process, Witness, eventually, patience};
use switchback_worker::{Context, TaskError};

use crate::fixture::{Fixture, Job, Seen};

async fn cancelled(fixture: &Fixture, id: &str) -> Cancelled {
    fixture.producer.cancel("job", &id.parse().unwrap()).await.unwrap()
}

async fn marks(fixture: &Fixture) -> usize {
    cancel::marks(&fixture.store, &fixture.queue, 0).await.unwrap().1.len()
}

/// How attempts ended, and which tasks were cancelled, by the log.
async fn logged(fixture: &Fixture) -> (Vec<(TaskId, Ended)>, Vec<TaskId>) {
    let entries = log::read(&fixture.store, &fixture.queue, None, 100_000).await.unwrap();
    let rows = entries.iter().flat_map(|e| &e.attempts).flat_map(|g| &g.tasks);
    (
        rows.map(|row| (row.0.clone(), row.3)).collect(),
        entries
            .iter()
            .flat_map(|e| &e.cancelled)
            .map(|(id, _)| id.clone())
            .collect(),
    )
}

// P3: what was waiting when its cancellation committed is claimed later, if at all, and whoever claims it reads the gate
// behind the claim. The reply `Waiting` is Redis's word for that order: no clock is asked.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_cancelled_while_it_waited_never_starts() {
    let mut fixture = Fixture::new().await;
    let seen = Seen::default();
    for pushes in [true, false] {
        let (config, handler) = (fixture.config().pushes(pushes), seen.handler());
        fixture
            .worker(config, |t| t.version("v1", handler).concurrency(3))
            .await;
    }
    let mut words = Vec::new();
    let mut others = Vec::new();
    for round in 0..100 {
        // A few in front keep the workers busy, more or fewer, so that cancelling meets tasks at every point of their way.
        let jobs: Vec<Job> = (0..5 + round % 20).map(|n| Job { n, then: String::new() }).collect();
        let mut ids = fixture.producer.enqueue_many(&jobs).await.unwrap();
        let wanted = ids.split_off(ids.len() - 5);
        others.extend(ids);
        let asked = wanted.iter().map(|id| fixture.producer.cancel("job", id));
        for (id, word) in wanted.iter().zip(futures_util::future::join_all(asked).await) {
            words.push((id.clone(), word.unwrap()));
        }
    }
    fixture.drained().await;
    let started: Vec<String> = seen.all().into_iter().map(|ran| ran.id).collect();
    let waited: Vec<&TaskId> = words
        .iter()
        .filter(|w| w.1 == Cancelled::Waiting)
        .map(|w| &w.0)
        .collect();
    assert!(waited.len() > 50, "{} of {} waited", waited.len(), words.len());
    for id in &waited {
        assert!(
            !started.contains(&id.to_string()),
            "{id} started after it was cancelled"
        );
    }
    for id in &others {
        assert!(
            started.contains(&id.to_string()),
            "{id} was not cancelled and did not start"
        );
    }
    // P1: each of them is either done or cancelled, once.
    let (rows, gone) = logged(&fixture).await;
    for (id, word) in &words {
        let done = rows.iter().filter(|row| row.0 == *id && row.1 == Ended::Done).count();
        let cancelled = gone.iter().filter(|gone| *gone == id).count();
        assert_eq!(done + cancelled, 1, "{id} {word:?}");
        assert!(*word != Cancelled::Waiting || cancelled == 1, "{id}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_handler_is_told_and_the_task_is_not_tried_again() {
    let mut fixture = Fixture::new().await;
    let starts = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&starts);
    let handler = move |job: Job, ctx: Context| {
        count.fetch_add(1, Ordering::SeqCst);
        async move {
            match job.then.as_str() {
                "obeys" => {
                    ctx.cancelled.cancelled().await;
                    Err(TaskError::failed("told to stop"))
                }
                "finishes" => {
                    ctx.cancelled.cancelled().await;
                    Ok(())
                }
                _ => std::future::pending().await,
            }
        }
    };
    let config = fixture.config().grace(Duration::from_millis(200));
    fixture.worker(config, |t| t.version("v1", handler)).await;
    let mut ids: Vec<TaskId> = Vec::new();
    for then in ["obeys", "finishes", "does not listen"] {
        let job = Job {
            n: 1,
            then: then.into(),
        };
        let kept = fixture.producer.enqueue(&job).keep_result(Duration::from_secs(60));
        ids.push(kept.await.unwrap());
    }
    eventually("all run", patience(Duration::from_secs(10)), async || {
        starts.load(Ordering::SeqCst) == 3
    })
    .await;
    for id in &ids {
        assert_eq!(cancelled(&fixture, &id.to_string()).await, Cancelled::Running);
    }
    fixture.drained().await;
    let ended = async |id| {
        fixture
            .producer
            .wait::<()>("job", id, Duration::from_secs(10))
            .await
            .unwrap()
    };
    assert_eq!(ended(&ids[0]).await, Waited::Cancelled);
    assert_eq!(ended(&ids[1]).await, Waited::Done(()));
    assert_eq!(ended(&ids[2]).await, Waited::Cancelled);
    assert_eq!(starts.load(Ordering::SeqCst), 3);
    assert_eq!(marks(&fixture).await, 0, "each settle took its mark away");
    let (rows, gone) = logged(&fixture).await;
    assert_eq!(gone.len(), 2);
    for (id, ended) in [
        (&ids[0], Ended::Cancelled),
        (&ids[1], Ended::Done),
        (&ids[2], Ended::Cancelled),
    ] {
        assert!(rows.contains(&(id.clone(), ended)), "{rows:?}");
    }
    assert_eq!(fixture.depth().await.dead, 0);
}

// Between two attempts a task lies in the delayed set, and goes at once; and a paused queue loses nothing by it.
#[tokio::test(flavor = "multi_thread")]
async fn delayed_and_held_tasks_are_cancelled_too() {
    let mut fixture = Fixture::new().await;
    let seen = Seen::default();
    let (config, inner) = (fixture.config(), seen.handler());
    let handler = move |job: Job, ctx| {
        let ran = inner(job, ctx);
        async move {
            let ended: Result<(), TaskError> = ran.await;
            ended.map_err(|_| TaskError::retry_after(Duration::from_secs(3600), "later"))
        }
    };
    fixture.worker(config, |t| t.version("v1", handler)).await;
    let retrying = fixture.enqueue_one(1, "fail").await;
    eventually("it is delayed", patience(Duration::from_secs(10)), async || {
        fixture.depth().await.delayed == 1
    })
    .await;
    assert_eq!(cancelled(&fixture, &retrying).await, Cancelled::Removed);
    assert_eq!(fixture.depth().await.delayed, 0);

    fixture.set(&[("paused", "1")]).await;
    let held = fixture.enqueue_one(2, "").await;
    let kept = fixture.enqueue_one(3, "").await;
    // A claim that was out when the queue was paused may have met it, and put it into the head stream.
    assert!(cancelled(&fixture, &held).await.took_effect());
    fixture.set(&[("paused", "0")]).await;
    fixture.drained().await;
    let ran: Vec<String> = seen.all().into_iter().map(|ran| ran.id).collect();
    assert_eq!(ran, [retrying, kept]);
    assert_eq!(marks(&fixture).await, 0);
}

// A worker that met a mark is not done with the id for ever: enqueued again it is a new task.
#[tokio::test(flavor = "multi_thread")]
async fn an_id_that_was_cancelled_can_be_enqueued_again() {
    let mut fixture = Fixture::new().await;
    let (_stop, seen) = fixture.simple(&["v1"]).await;
    fixture.set(&[("paused", "1")]).await;
    let job = Job {
        n: 1,
        then: String::new(),
    };
    let first = async || {
        fixture
            .producer
            .enqueue(&job)
            .id("order-1")
            .window(Duration::from_millis(1))
            .await
    };
    first().await.unwrap();
    assert!(cancelled(&fixture, "order-1").await.took_effect());
    fixture.set(&[("paused", "0")]).await;
    fixture.drained().await;
    assert!(seen.all().is_empty());
    tokio::time::sleep(Duration::from_millis(5)).await; // the window, and another millisecond than the mark's
    first().await.unwrap();
    fixture.drained().await;
    assert_eq!(seen.all().len(), 1);
    // Cancelled for nothing, and then enqueued again: the mark is older than the task.
    tokio::time::sleep(Duration::from_millis(5)).await; // the window
    assert_eq!(cancelled(&fixture, "order-1").await, Cancelled::Marked);
    tokio::time::sleep(Duration::from_millis(5)).await;
    first().await.unwrap();
    fixture.drained().await;
    assert_eq!(seen.all().len(), 2);
}

// A task that moves is as old as it was, or a mark made before its last move would not speak of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_task_with_an_id_of_its_own_keeps_its_age_when_it_moves() {
    let mut fixture = Fixture::new().await;
    let seen = Seen::default();
    let (config, handler) = (fixture.config().grace(Duration::from_millis(50)), seen.handler());
    let stop = fixture.worker(config, |t| t.version("v1", handler)).await;
    let job = Job {
        n: 1,
        then: "hang".into(),
    };
    fixture.producer.enqueue(&job).id("order-1").await.unwrap();
    eventually("it runs", patience(Duration::from_secs(10)), async || {
        seen.all().len() == 1
    })
    .await;
    let id: TaskId = "order-1".parse().unwrap();
    let found = async || {
        inspect::find(&fixture.store, &fixture.queue, &id)
            .await
            .unwrap()
            .unwrap()
    };
    let before = found().await.entry.ms;
    assert_eq!(found().await.place, "main");
    stop.cancel();
    fixture.workers.join_next().await.unwrap().unwrap().unwrap();
    let after = found().await;
    assert_eq!(
        (after.place.as_str(), field_number(&after.fields, "enqueued_at")),
        ("head", before)
    );
}

// P1, P4: the mark outlives the worker, and whoever takes over obeys it.
#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_task_of_a_killed_worker_does_not_run_elsewhere() {
    let fixture = Fixture::new().await;
    let pool = || {
        let directory = tempfile::TempDir::new().unwrap();
        let file = directory.path().join("starts");
        let mut witness = Witness::default();
        witness.watch(&file);
        let (url, file) = (fixture.server.url(), file.display().to_string());
        let args = [
            "--redis",
            &url,
            "--versions",
            "v1",
            "--witness",
            &file,
            "--lease-ms",
            "1000",
        ];
        let process = Process::start("switchback-test-pool", args, [("RUST_LOG", "info")]);
        (process, witness, directory)
    };
    let (first, witness, _one) = pool();
    first.wait_line("session begun").await;
    let probe: switchback_common::TaskType = "probe".parse().unwrap();
    let mut ids = Vec::new();
    for n in 0..4 {
        let payload = format!("{{\"n\":{n},\"work_ms\":60000}}");
        let payload = serde_json::value::RawValue::from_string(payload).unwrap();
        ids.push(fixture.producer.enqueue_json(&probe, &payload).await.unwrap());
    }
    eventually("all run", patience(Duration::from_secs(10)), async || {
        witness.starts().len() == 4
    })
    .await;
    first.kill9();
    for id in &ids[..2] {
        let word = fixture.producer.cancel("probe", id).await.unwrap();
        assert!(word.took_effect(), "{word:?}");
    }
    let (_second, witness, _two) = pool();
    eventually("the others run", patience(Duration::from_secs(20)), async || {
        let mut started: Vec<u64> = witness.starts().iter().map(|s| s.n).collect();
        started.sort_unstable();
        if started == [2, 3] {
            Ok(())
        } else {
            Err(format!("{started:?}"))
        }
    })
    .await;
    let queue = switchback_common::Queue::new("test".parse().unwrap(), probe.clone());
    eventually("the marks are used up", patience(Duration::from_secs(20)), async || {
        cancel::marks(&fixture.store, &queue, 0).await.unwrap().1.is_empty()
    })
    .await;
    assert_eq!(witness.starts().len(), 2);
}
