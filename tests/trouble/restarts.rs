//! Redis goes away and comes back: in order, by a crash, slowly, or with older data.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use redis::Value;
use switchback_tests::{RedisServer, eventually, patience};
use tokio::{sync::Semaphore, task::JoinSet};

use crate::{
    fixture::{Fixture, Seen},
    tools::{HELLO, LONG, MAIN, distinct, error_stats, gated, kinds, numbers, reconnected, refused, started},
};

async fn with_aof() -> Fixture {
    Fixture::on(RedisServer::builder().aof(true).start().await).await
}

// P1, P2: an orderly restart loses nothing, runs nothing twice that was running, and nobody takes anybody for dead.
#[tokio::test(flavor = "multi_thread")]
async fn a_restart_loses_nothing_and_repeats_nothing() {
    let mut fixture = with_aof().await;
    let (seen, permits) = (Seen::default(), Arc::new(Semaphore::new(0)));
    for _ in 0..2 {
        let handler = gated(&seen, &permits);
        let config = fixture.config().lease(Duration::from_secs(10));
        fixture
            .worker(config, |t| t.version("v1", handler).concurrency(5))
            .await;
    }
    fixture.enqueue(0..100).await;
    started(&seen, 10).await;
    fixture.server.restart().await;
    reconnected(&fixture).await;
    fixture.enqueue(100..200).await;
    // Redis has forgotten how much was read, and is not asked to guess.
    let depth = fixture.depth().await;
    assert_eq!((depth.waiting(), depth.in_flight()), (191, 10), "{depth:?}");
    permits.add_permits(1_000);
    fixture.drained().await;
    assert_eq!(numbers(&seen), (0..200).chain([HELLO]).collect::<Vec<_>>(), "each once");
    assert!(
        !kinds(&fixture).await.contains(&"reaping".to_owned()),
        "nobody was taken for dead"
    );
}

/// The append-only file that is being written.
fn newest_aof(dir: &Path) -> PathBuf {
    let files = fs::read_dir(dir.join("appendonlydir")).unwrap();
    let mut files: Vec<PathBuf> = files.map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.to_string_lossy().ends_with(".incr.aof"));
    files.sort();
    files.pop().expect("an append-only file")
}

// P1: a crash that tears the last write out of the append-only file loses that write only.
#[tokio::test(flavor = "multi_thread")]
async fn a_crash_with_a_torn_log_loses_no_acknowledged_task() {
    let mut fixture = with_aof().await;
    let (seen, permits) = (Seen::default(), Arc::new(Semaphore::new(0)));
    let handler = gated(&seen, &permits);
    let config = fixture.config();
    fixture
        .worker(config, |t| t.version("v1", handler).concurrency(5))
        .await;
    for round in 0..3 {
        fixture.enqueue(round * 50..(round + 1) * 50).await;
        permits.add_permits(20);
        started(&seen, usize::try_from(round).unwrap() * 20 + 25).await;
        // What is torn out is the last write, and that is not a task's: all that ended is settled.
        eventually("only five run", patience(LONG), async || {
            let pending = fixture.raw(&["XPENDING", MAIN, "workers"]).await;
            match &pending {
                Value::Array(summary) if summary[0] == Value::Int(5) => Ok(()),
                _ => Err(format!("{pending:?}")),
            }
        })
        .await;
        fixture.raw(&["SET", "torn", "away"]).await;
        fixture.server.kill9();
        let file = File::options()
            .write(true)
            .open(newest_aof(fixture.server.dir()))
            .unwrap();
        let length = file.metadata().unwrap().len();
        file.set_len(length - 7).unwrap();
        fixture.server.restart().await;
        let log = fixture.server.log();
        assert!(log.contains("Truncating the AOF"), "the file was torn");
        reconnected(&fixture).await;
    }
    permits.add_permits(10_000);
    fixture.drained().await;
    assert_eq!(
        distinct(&seen),
        (0..150).chain([HELLO]).collect::<Vec<_>>(),
        "each at least once"
    );
}

// P1: while Redis loads its data nothing starts, and then everything does.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_waits_while_redis_loads() {
    let mut fixture = Fixture::new().await;
    let (_stop, seen) = fixture.simple(&["v1"]).await;
    fixture.enqueue(0..20).await;
    fixture.drained().await;
    fixture.set(&[("paused", "1")]).await;
    fixture.enqueue(20..40).await;
    fixture.set(&[("paused", "0")]).await;
    // A minute of loading, cut short below.
    fixture.raw(&["DEBUG", "POPULATE", "60000"]).await;
    fixture
        .raw(&["CONFIG", "SET", "loading-process-events-interval-bytes", "1024"])
        .await;
    fixture.raw(&["CONFIG", "SET", "key-load-delay", "1000"]).await;
    let mut reload = fixture.server.connection().await;
    let mut background = JoinSet::new();
    background.spawn(async move { redis::cmd("DEBUG").arg("RELOAD").exec_async(&mut reload).await });
    eventually("the server loads", patience(LONG), async || {
        fixture.store.check_server().await.is_err()
    })
    .await;
    let error = fixture
        .producer
        .enqueue(&crate::fixture::Job {
            n: 999,
            then: String::new(),
        })
        .await
        .unwrap_err();
    assert!(
        error.to_string().contains("still loading") && !error.is_outcome_unknown(),
        "{error}"
    );
    let before = error_stats(&fixture).await;
    refused(&fixture, &before, "LOADING", 3).await;
    fixture.raw(&["CONFIG", "SET", "key-load-delay", "0"]).await;
    eventually("it has loaded", patience(LONG), async || {
        fixture.store.check_server().await.is_ok()
    })
    .await;
    fixture.enqueue(40..60).await;
    fixture.drained().await;
    assert_eq!(distinct(&seen), (0..60).collect::<Vec<_>>());
}

// P8: a Redis that comes back with an older backup has an older gate. The fleet that obeyed the newer one holds, and
// says so in the history, until a person resumes.
#[tokio::test(flavor = "multi_thread")]
async fn an_older_backup_under_a_running_fleet_is_held() {
    let mut fixture = with_aof().await;
    let mut fleet = Vec::new();
    for _ in 0..3 {
        fleet.push(fixture.simple(&["v1", "v2"]).await.1);
    }
    let ran = || -> Vec<String> { fleet.iter().flat_map(Seen::all).map(|ran| ran.version).collect() };
    fixture.set(&[("active", "v2")]).await;
    let (live, backup) = (
        fixture.server.dir().join("appendonlydir"),
        fixture.server.dir().join("backup"),
    );
    fs::create_dir(&backup).unwrap();
    copy(&live, &backup);
    let obeyed = fixture.set(&[("only", "v1")]).await;
    fixture.server.kill9();
    fs::remove_dir_all(&live).unwrap();
    fs::rename(&backup, &live).unwrap();
    fixture.server.restart().await;
    for n in 0..20 {
        fixture
            .raw(&["XADD", MAIN, "*", "payload", &format!("{{\"n\":{n}}}")])
            .await;
    }
    let shown = eventually("the queue is held", patience(LONG), async || {
        let shown = fixture.gates.show(&fixture.queue).await.map_err(|e| e.to_string())?;
        if shown.gate.paused {
            Ok(shown)
        } else {
            Err(format!("{shown:?}"))
        }
    })
    .await;
    assert!(shown.rev > obeyed, "a number that nobody has seen before");
    let history = eventually("the history", patience(LONG), async || {
        fixture.gates.history(&fixture.queue, None, 10).await
    })
    .await;
    let holds = history.iter().filter(|entry| entry.source == "regress").count();
    assert_eq!(holds, 1, "one hold for the whole fleet: {history:#?}");
    assert!(ran().is_empty(), "nothing ran on the version that had been withdrawn");
    fixture.set(&[("only", "v1"), ("paused", "0")]).await;
    fixture.drained().await;
    assert_eq!(ran(), vec!["v1"; 20]);
}

fn copy(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
}
