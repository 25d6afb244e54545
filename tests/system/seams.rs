//! Where two features meet: a promise of one must not be what the other breaks.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use switchback_common::{
    Queue,
    clock::Moment,
    schedule::{Missed, Schedule},
    store::inspect,
};
use switchback_tests::{Process, eventually, patience};
use switchback_worker::{Context, TaskError};

use crate::fixture::{Fixture, Job, Seen};

const LONG: Duration = Duration::from_secs(30);
const PROBE: &str = "sb:stream:{test:probe}";
const PROBE_SUSPECT: &str = "sb:suspect:{test:probe}";
const NEIGHBOUR: &str = "sb:stream:{test:neighbour}";
const JOB: &str = "sb:stream:{test:job}";
const LIMITS: &str = "sb:limits:{test:job}";
const HANGS: &str = r#"{"n":1,"work_ms":600000}"#;

/// A worker process that serves `probe` and `neighbour`, and the file that it writes its starts to.
fn pool(fixture: &Fixture, directory: &Path, name: &str, extra: &[&str]) -> (Process, PathBuf) {
    let file = directory.join(name);
    let (url, path) = (fixture.server.url(), file.display().to_string());
    let mut args = vec!["--redis", &url, "--versions", "v1", "--witness", &path];
    args.extend(["--lease-ms", "2000", "--grace-ms", "100", "--neighbour"]);
    args.extend(extra);
    (
        Process::start("switchback-test-pool", args, [("RUST_LOG", "info")]),
        file,
    )
}

fn started(file: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let starts = text.lines().filter_map(|line| line.strip_prefix("start "));
    starts
        .filter_map(|rest| rest.split(' ').next().map(str::to_owned))
        .collect()
}

async fn add(fixture: &Fixture, stream: &str, payload: &str, fields: &[&str]) {
    let mut args = vec!["XADD", stream, "*", "payload", payload];
    args.extend(fields);
    fixture.raw(&args).await;
}

async fn has_started(file: &Path, what: &[&str]) {
    eventually(&format!("{what:?} have started"), patience(LONG), async || {
        let started = started(file);
        if what.iter().all(|n| started.iter().any(|s| s == n)) {
            Ok(())
        } else {
            Err(format!("{started:?}"))
        }
    })
    .await;
}

/// Adds an entry to `stream` and takes all of the queue's rate `1/h` in the same moment, as a faster worker would: whoever
/// waits for tasks believes that a start is left, and has a task that must wait for its time.
async fn add_too_fast(fixture: &Fixture, queue: &str, stream: &str, payload: &str, deaths: &str) {
    let script = "local t = redis.call('TIME')
        redis.call('SET', KEYS[1], string.format('%.0f 1/h', (t[1] + 3600) * 1000000 + t[2]))
        return redis.call('XADD', KEYS[2], '*', 'payload', ARGV[1], 'deaths', ARGV[2])";
    let rate = format!("sb:rate:{{test:{queue}}}");
    let args = ["EVAL", script, "2", &rate, stream, payload, deaths];
    loop {
        fixture.raw(&args).await;
        let claimed = async || {
            let group = inspect::group(&fixture.store, stream).await.unwrap();
            group.waiting() == 0
        };
        for _ in 0..100 {
            if claimed().await {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        // Nobody waited just then. Once more.
        fixture.raw(&["DEL", &rate]).await;
        fixture.raw(&["XTRIM", stream, "MAXLEN", "0"]).await;
    }
}

// P7: a suspect that has to wait for its queue's rate does not keep the process waiting with it.
#[tokio::test(flavor = "multi_thread")]
async fn a_suspect_waits_for_its_rate_before_it_wants_to_be_alone() {
    let fixture = Fixture::new().await;
    fixture.raw(&["HSET", "sb:limits:{test:probe}", "rate", "1/h"]).await;
    let directory = tempfile::TempDir::new().unwrap();
    let (process, file) = pool(&fixture, directory.path(), "one", &[]);
    process.wait_line("session begun").await;
    add(&fixture, NEIGHBOUR, r#"{"n":1}"#, &[]).await;
    has_started(&file, &["1"]).await;
    fixture.blocked(2).await;
    add_too_fast(&fixture, "probe", PROBE_SUSPECT, r#"{"n":2}"#, "2").await;
    for n in 3..6 {
        add(&fixture, NEIGHBOUR, &format!("{{\"n\":{n}}}"), &[]).await;
    }
    has_started(&file, &["3", "4", "5"]).await;
    process.term();
    assert!(process.wait().await.success());
    let suspects = inspect::group(&fixture.store, PROBE_SUSPECT).await.unwrap();
    assert_eq!((suspects.waiting(), suspects.pending), (1, 0), "{suspects:?}");
    assert_eq!(started(&file).len(), 4, "it never started");
}

// P7: one that will never start, because it was cancelled or its deadline has passed, asks nobody to make room.
#[tokio::test(flavor = "multi_thread")]
async fn a_suspect_that_is_over_keeps_nobody_waiting() {
    let fixture = Fixture::new().await;
    let directory = tempfile::TempDir::new().unwrap();
    let (process, file) = pool(&fixture, directory.path(), "one", &[]);
    process.wait_line("session begun").await;
    // Whoever wants to be alone waits for this one.
    add(&fixture, NEIGHBOUR, HANGS, &[]).await;
    has_started(&file, &["1"]).await;
    let cancelled = "cancelled-1".parse().unwrap();
    fixture.producer.cancel("probe", &cancelled).await.unwrap();
    let two = r#"{"n":2}"#;
    add(&fixture, PROBE_SUSPECT, two, &["deaths", "2", "expires", "1"]).await;
    add(
        &fixture,
        PROBE_SUSPECT,
        two,
        &["deaths", "2", "id", "cancelled-1", "enqueued_at", "1"],
    )
    .await;
    eventually("both are over", patience(LONG), async || {
        let queue = Queue::new("test".parse().unwrap(), "probe".parse().unwrap());
        let depth = inspect::depth(&fixture.store, &queue).await.unwrap();
        if (depth.dead, depth.suspect.waiting(), depth.in_flight()) == (1, 0, 0) {
            Ok(())
        } else {
            Err(format!("{depth:?}"))
        }
    })
    .await;
    add(&fixture, PROBE, r#"{"n":3}"#, &[]).await;
    has_started(&file, &["3"]).await;
    assert_eq!(started(&file), ["1", "3"]);
}

// P7: while a suspect waits to be alone nothing starts in its process, so a cancellation or a pause ends that wait at once.
#[tokio::test(flavor = "multi_thread")]
async fn a_suspect_that_waits_to_be_alone_can_be_called_off() {
    let fixture = Fixture::new().await;
    let directory = tempfile::TempDir::new().unwrap();
    let (process, file) = pool(&fixture, directory.path(), "one", &[]);
    process.wait_line("session begun").await;
    add(&fixture, NEIGHBOUR, HANGS, &[]).await;
    has_started(&file, &["1"]).await;
    let two = r#"{"n":2}"#;
    add(&fixture, PROBE_SUSPECT, two, &["deaths", "2", "id", "called-off"]).await;
    process.wait_line("will run alone").await;
    add(&fixture, NEIGHBOUR, r#"{"n":3}"#, &[]).await;
    let called_off = "called-off".parse().unwrap();
    fixture.producer.cancel("probe", &called_off).await.unwrap();
    has_started(&file, &["3"]).await;
    let mark = process.mark();
    add(&fixture, PROBE_SUSPECT, two, &["deaths", "2"]).await;
    process.wait_line_after(mark, "will run alone").await;
    add(&fixture, NEIGHBOUR, r#"{"n":4}"#, &[]).await;
    fixture.raw(&["HSET", "sb:gate:{test:probe}", "paused", "1"]).await;
    has_started(&file, &["4"]).await;
    let suspects = inspect::group(&fixture.store, PROBE_SUSPECT).await.unwrap();
    assert_eq!(
        (suspects.waiting(), started(&file)),
        (1, vec!["1".into(), "3".into(), "4".into()])
    );
}

// What a process cannot use while a suspect has it to itself is the others' (P7).
#[tokio::test(flavor = "multi_thread")]
async fn a_suspect_that_runs_alone_does_not_hold_the_fleets_concurrency() {
    let fixture = Fixture::new().await;
    fixture
        .raw(&["HSET", "sb:limits:{test:neighbour}", "concurrency", "2"])
        .await;
    let directory = tempfile::TempDir::new().unwrap();
    let (first, alone) = pool(&fixture, directory.path(), "one", &[]);
    first.wait_line("session begun").await;
    add(&fixture, PROBE_SUSPECT, HANGS, &["deaths", "2"]).await;
    has_started(&alone, &["1"]).await;
    let (_second, others) = pool(&fixture, directory.path(), "two", &[]);
    for n in [2, 3] {
        let payload = format!("{{\"n\":{n},\"work_ms\":600000}}");
        add(&fixture, NEIGHBOUR, &payload, &[]).await;
    }
    has_started(&others, &["2", "3"]).await;
}

// A rate is for starts: what will never start takes none, or a queue that is behind would do nothing but let tasks expire.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_over_takes_no_start_of_a_rate() {
    let mut fixture = Fixture::new().await;
    fixture
        .raw(&["HSET", LIMITS, "rate", "1/h+3", "rate_per_key", "1/h+3"])
        .await;
    let (stop, _) = fixture.simple(&["v1"]).await;
    fixture.stop(&stop).await;
    for n in 0..40_u64 {
        let payload = format!("{{\"n\":{n}}}");
        let id = format!("job-{n}");
        if n % 2 == 0 {
            add(&fixture, JOB, &payload, &["key", "k", "expires", "1"]).await;
        } else {
            add(&fixture, JOB, &payload, &["key", "k", "id", &id]).await;
            fixture.producer.cancel("job", &id.parse().unwrap()).await.unwrap();
        }
    }
    for n in 100..103 {
        add(&fixture, JOB, &format!("{{\"n\":{n}}}"), &["key", "k"]).await;
    }
    let (_stop, seen) = fixture.simple(&["v1"]).await;
    eventually("those that may start have", patience(LONG), async || {
        let mut ran: Vec<u64> = seen.all().iter().map(|ran| ran.n).collect();
        ran.sort_unstable();
        if ran == [100, 101, 102] {
            Ok(())
        } else {
            Err(format!("{ran:?} {:?}", fixture.depth().await))
        }
    })
    .await;
    assert_eq!(fixture.depth().await.dead, 20);
}

// A task that waits in its worker for a time that an old rate gave it goes back when the rate changes.
#[tokio::test(flavor = "multi_thread")]
async fn a_rate_that_is_raised_lets_those_start_that_wait_for_the_old_one() {
    let mut fixture = Fixture::new().await;
    fixture.raw(&["HSET", LIMITS, "rate", "1/h"]).await;
    let (_stop, seen) = fixture.simple(&["v1"]).await;
    fixture.blocked(1).await;
    add_too_fast(&fixture, "job", JOB, r#"{"n":1}"#, "0").await;
    tokio::time::sleep(Duration::from_millis(1_200)).await;
    assert!(seen.all().is_empty(), "it waits");
    fixture.raw(&["HSET", LIMITS, "rate", "1000/s"]).await;
    fixture.drained().await;
    assert_eq!(seen.all().len(), 1);
}

// A task that its handler puts off starts again, and pays for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_snoozed_task_starts_again_at_the_rate_of_its_key() {
    let mut fixture = Fixture::new().await;
    fixture.raw(&["HSET", LIMITS, "rate_per_key", "1/s+1"]).await;
    let starts: Arc<Mutex<Vec<Moment>>> = Arc::default();
    let (config, noted) = (fixture.config(), Arc::clone(&starts));
    let handler = move |_: Job, ctx: Context| {
        noted.lock().unwrap().push(Moment::now());
        std::future::ready(match ctx.snoozes {
            0 => Err(TaskError::snooze(Duration::from_millis(10))),
            _ => Ok(()),
        })
    };
    fixture.worker(config, |t| t.version("v1", handler)).await;
    let begun = Moment::now();
    for n in 0..3 {
        add(&fixture, JOB, &format!("{{\"n\":{n}}}"), &["key", "k"]).await;
    }
    fixture.drained().await;
    let starts = starts.lock().unwrap();
    assert_eq!(starts.len(), 6);
    let took = starts[5].since(begun);
    assert!(took >= Duration::from_millis(4_900), "6 starts of one key in {took:?}");
}

// P10: a schedule adds nothing to a queue that is full; its ticks are late then, like those that nobody was there for.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_delays_schedules() {
    let mut fixture = Fixture::new().await;
    fixture.raw(&["HSET", LIMITS, "waiting", "3"]).await;
    let (config, seen) = (fixture.config(), Seen::default());
    let job = Job {
        n: 1,
        then: String::new(),
    };
    let handler = seen.handler();
    fixture
        .worker(config, |t| {
            let schedule = Schedule::new("* * * * * *", &job).missed(Missed::All);
            t.version("v1", handler).schedule("often", schedule)
        })
        .await;
    eventually("it fires", patience(LONG), async || !seen.all().is_empty()).await;
    fixture.set(&[("paused", "1")]).await;
    eventually("it is full", patience(LONG), async || {
        fixture.depth().await.waiting() >= 3
    })
    .await;
    tokio::time::sleep(Duration::from_millis(1_000)).await;
    let waiting = fixture.depth().await.waiting();
    tokio::time::sleep(Duration::from_millis(4_000)).await;
    assert_eq!(fixture.depth().await.waiting(), waiting);
    let before = seen.all().len();
    fixture.set(&[("paused", "0")]).await;
    eventually("what was late is fired", patience(LONG), async || {
        let ran = seen.all().len();
        if ran >= before + 8 { Ok(()) } else { Err(ran) }
    })
    .await;
}
