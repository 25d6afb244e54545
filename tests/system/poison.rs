//! P7: tasks that kill their process, and those who were in it.

use std::{collections::BTreeSet, path::PathBuf, time::Duration};

use switchback_common::{
    Queue,
    store::{
        inspect::{self, QueueDepth},
        reply::{Entry, field_number, field_text},
    },
};
use switchback_tests::{Process, eventually, patience};

use crate::fixture::{Fixture, dead_letters};

const LONG: Duration = Duration::from_secs(60);

/// A worker process that serves `probe` and `neighbour`, started again whenever it dies. All its lives write to one
/// file.
struct Pool {
    fixture: Fixture,
    directory: tempfile::TempDir,
}

/// What a process wrote: a start or an end of a task.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Line {
    Start { n: u64, attempt: u32, recovered: u32 },
    End { n: u64 },
}

impl Pool {
    async fn new() -> Self {
        Self {
            fixture: Fixture::new().await,
            directory: tempfile::TempDir::new().unwrap(),
        }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn start(&self, extra: &[&str]) -> Process {
        self.start_as("starts", extra)
    }

    fn start_as(&self, file: &str, extra: &[&str]) -> Process {
        let (url, file) = (self.fixture.server.url(), self.file(file).display().to_string());
        let mut args = vec!["--redis", &url, "--witness", &file, "--neighbour"];
        if !extra.contains(&"--lease-ms") {
            args.extend(["--lease-ms", "2000"]);
        }
        if !extra.contains(&"--versions") {
            args.extend(["--versions", "v1"]);
        }
        args.extend(extra);
        Process::start("switchback-test-pool", args, [("RUST_LOG", "info")])
    }

    /// Starts the process again and again until nothing is left to do, and counts how often it died.
    async fn live_until_done(&self, extra: &[&str], most: usize) -> usize {
        let mut deaths = 0;
        loop {
            let process = self.start(extra);
            let what = format!("it dies, or everything is done, after {deaths} deaths");
            let mut quiet = false;
            let died = eventually(&what, patience(LONG), async || {
                if !process.is_running() {
                    return Ok(true);
                }
                let mut left = 0;
                for queue in ["probe", "neighbour"] {
                    let depth = self.depth(queue).await;
                    left += depth.waiting() + depth.in_flight() + depth.delayed;
                }
                // Seen twice: one look reads place after place.
                let done = std::mem::replace(&mut quiet, left == 0) && left == 0;
                if done { Ok(false) } else { Err(format!("{left} left")) }
            })
            .await;
            if !died {
                return deaths;
            }
            deaths += 1;
            assert!(deaths <= most, "it dies and dies: {:?}", self.dead("probe").await);
        }
    }

    async fn depth(&self, queue: &str) -> QueueDepth {
        inspect::depth(&self.fixture.store, &named(queue)).await.unwrap()
    }

    async fn dead(&self, queue: &str) -> Vec<Entry> {
        dead_letters(&self.fixture.store, &named(queue)).await
    }

    async fn add(&self, stream: &str, n: u64, rest: &str, fields: &[&str]) {
        let payload = format!("{{\"n\":{n}{rest}}}");
        let mut args = vec!["XADD", stream, "*", "payload", &payload];
        args.extend(fields);
        self.fixture.raw(&args).await;
    }

    fn lines(&self, file: &str) -> Vec<Line> {
        let text = std::fs::read_to_string(self.file(file)).unwrap_or_default();
        let number = |part: Option<&str>| part.unwrap().parse().unwrap();
        text.lines()
            .filter_map(|line| {
                let mut parts = line.split(' ');
                Some(match parts.next()? {
                    "start" => Line::Start {
                        n: number(parts.next()),
                        attempt: number(parts.nth(2)).try_into().unwrap(),
                        recovered: number(parts.nth(2)).try_into().unwrap(),
                    },
                    "end" => Line::End {
                        n: number(parts.next()),
                    },
                    _ => return None,
                })
            })
            .collect()
    }

    fn ended(&self) -> BTreeSet<u64> {
        self.lines("starts")
            .iter()
            .filter_map(|line| match line {
                Line::End { n } => Some(*n),
                Line::Start { .. } => None,
            })
            .collect()
    }

    /// None of `innocent` was lost, set aside, or lost an attempt; each of `poison` is a dead letter that says why.
    async fn check(&self, innocent: impl IntoIterator<Item = u64>, poison: &[u64]) {
        assert_eq!(self.ended(), innocent.into_iter().collect::<BTreeSet<_>>());
        for line in self.lines("starts") {
            if let Line::Start { n, attempt, .. } = line {
                assert_eq!(attempt, 1, "nothing was burnt of {n}");
            }
        }
        assert!(self.dead("neighbour").await.is_empty());
        let mut found = BTreeSet::new();
        for letter in self.dead("probe").await {
            let fields = letter.fields.unwrap();
            let payload: serde_json::Value = serde_json::from_str(&field_text(&fields, "payload")).unwrap();
            found.insert(payload["n"].as_u64().unwrap());
            let words = ["dead_reason", "dead_version"].map(|name| field_text(&fields, name));
            assert_eq!(words, ["poison", "v1"], "{payload}");
            assert_eq!(field_number(&fields, "deaths"), 3, "{payload}");
        }
        assert_eq!(found, poison.iter().copied().collect());
    }
}

fn named(queue: &str) -> Queue {
    Queue::new("test".parse().unwrap(), queue.parse().unwrap())
}

/// The most that ran at once.
fn most_at_once(lines: &[Line]) -> usize {
    let (mut running, mut most) = (0_usize, 0);
    for line in lines {
        match line {
            Line::Start { .. } => running += 1,
            Line::End { .. } => running = running.saturating_sub(1),
        }
        most = most.max(running);
    }
    most
}

const MAIN: &str = "sb:stream:{test:probe}";
const NEIGHBOUR: &str = "sb:stream:{test:neighbour}";
const SUSPECT: &str = "sb:suspect:{test:probe}";
const ABORT: &str = ",\"then\":\"abort\",\"work_ms\":50";
const WORK: &str = ",\"work_ms\":300";

#[tokio::test(flavor = "multi_thread")]
async fn a_poison_task_is_set_aside_and_its_neighbours_lose_nothing() {
    let pool = Pool::new().await;
    for n in 0..51 {
        pool.add(MAIN, n, if n == 25 { ABORT } else { WORK }, &[]).await;
    }
    let deaths = pool.live_until_done(&["--concurrency", "64"], 4).await;
    // Beside others, as a suspect, and alone; fewer if the machine was so slow that a lease ran out by itself.
    assert!(deaths <= 3, "{deaths}");
    pool.check((0..51).filter(|n| *n != 25), &[25]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_poison_tasks_at_once_are_both_set_aside() {
    let pool = Pool::new().await;
    for n in 0..32 {
        pool.add(MAIN, n, if n % 20 == 5 { ABORT } else { WORK }, &[]).await;
    }
    let deaths = pool.live_until_done(&["--concurrency", "64"], 6).await;
    assert!(deaths <= 6, "{deaths}");
    pool.check((0..32).filter(|n| n % 20 != 5), &[5, 25]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_poison_task_sets_nothing_aside_in_the_other_queues_of_its_process() {
    let pool = Pool::new().await;
    pool.add(MAIN, 0, ABORT, &[]).await;
    for n in 1..41 {
        pool.add(NEIGHBOUR, n, WORK, &[]).await;
    }
    let deaths = pool.live_until_done(&["--concurrency", "20"], 4).await;
    assert!(deaths <= 3, "{deaths}");
    pool.check(1..41, &[0]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_worker_ran_is_done_and_not_one_by_one() {
    let pool = Pool::new().await;
    for n in 0..40 {
        pool.add(MAIN, n, ",\"work_ms\":2000", &[]).await;
    }
    let first = pool.start(&["--concurrency", "100"]);
    // All have started, and none of them has been at it for long.
    eventually("all run", patience(LONG), async || {
        let lines = pool.lines("starts");
        let starts = lines.iter().filter(|l| matches!(l, Line::Start { .. })).count();
        if starts == 40 {
            Ok(())
        } else {
            Err(format!("{lines:?}"))
        }
    })
    .await;
    first.kill9();
    let before = pool.lines("starts").len();
    assert_eq!(pool.live_until_done(&["--concurrency", "100"], 0).await, 0);
    pool.check(0..40, &[]).await;
    let after = &pool.lines("starts")[before..];
    assert!(most_at_once(after) > 1, "{after:?}");
    let told = |line: &Line| !matches!(line, Line::Start { recovered: 0, .. });
    assert!(after.iter().all(told), "they know that an attempt vanished: {after:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn after_two_deaths_a_task_runs_alone_in_its_process_and_its_success_is_all_there_is() {
    let pool = Pool::new().await;
    for n in 1..200 {
        let stream = if n % 2 == 0 { MAIN } else { NEIGHBOUR };
        pool.add(stream, n, ",\"work_ms\":150", &[]).await;
    }
    let process = pool.start(&["--concurrency", "8"]);
    eventually("it is busy", patience(LONG), async || pool.lines("starts").len() > 20).await;
    pool.add(SUSPECT, 0, ",\"work_ms\":400", &["deaths", "2"]).await;
    pool.add(SUSPECT, 1_000, ",\"work_ms\":100,\"then\":\"reject\"", &["deaths", "2"])
        .await;
    eventually("they are over", patience(LONG), async || {
        pool.ended().contains(&0) && pool.dead("probe").await.len() == 1
    })
    .await;
    for n in 2_000..2_020 {
        pool.add(MAIN, n, "", &[]).await;
    }
    eventually("all is done", patience(LONG), async || pool.ended().len() == 220).await;
    let lines = pool.lines("starts");
    let at = lines
        .iter()
        .position(|l| matches!(l, Line::Start { n: 0, .. }))
        .unwrap();
    let ran = lines[..at].iter().filter(|l| matches!(l, Line::Start { .. })).count();
    assert_eq!(at, 2 * ran, "whatever had started had ended: {:?}", &lines[..=at]);
    assert_eq!(lines[at + 1], Line::End { n: 0 }, "nothing started beside it");
    assert!(lines.len() > at + 10, "and life went on");
    let letter = pool.dead("probe").await.remove(0).fields.unwrap();
    let says = ["dead_reason", "deaths"].map(|name| field_text(&letter, name));
    assert_eq!(says, ["rejected", "0"], "an attempt that ends forgets the deaths");
    // Or a death that is none of their doing would be theirs, if it comes before their settle.
    eventually("nobody is named any more", patience(LONG), async || {
        let record = pool.fixture.raw(&["HVALS", "sb:sessions:{test:probe}"]).await;
        let record = format!("{record:?}");
        if record.contains("=alone=") {
            Err(record)
        } else {
            Ok(())
        }
    })
    .await;
    process.term();
    assert!(process.wait().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_gives_suspects_back_as_suspects_also_those_that_wait_to_be_alone() {
    let pool = Pool::new().await;
    let process = pool.start(&["--grace-ms", "500"]);
    process.wait_line("session begun").await;
    pool.add(MAIN, 1, ",\"work_ms\":600000", &[]).await;
    pool.add(SUSPECT, 2, ",\"work_ms\":600000", &["deaths", "1"]).await;
    eventually("both run", patience(LONG), async || pool.lines("starts").len() == 2).await;
    pool.add(SUSPECT, 3, "", &["deaths", "2"]).await;
    process.wait_line("will run alone").await;
    process.term();
    assert!(process.wait().await.success());
    let depth = pool.depth("probe").await;
    assert_eq!(
        (depth.suspect.waiting(), depth.head.waiting(), depth.in_flight()),
        (2, 1, 0)
    );
    let entries = pool.fixture.raw(&["XRANGE", SUSPECT, "-", "+"]).await;
    let text = format!("{entries:?}");
    assert_eq!(pool.lines("starts").len(), 2, "the third never ran");
    for deaths in ["1", "2"] {
        let kept = format!("bulk-string('\"deaths\"'), bulk-string('\"{deaths}\"')");
        assert!(text.contains(&kept), "{text}");
    }
}

// A suspect that the gate gives to a version that a worker lacks stays one, and does not go round and round.
#[tokio::test(flavor = "multi_thread")]
async fn suspects_for_a_version_that_a_worker_lacks_wait_for_one_that_has_it() {
    let pool = Pool::new().await;
    // Nobody dies here, nor may anybody be taken for dead.
    let common = ["--lease-ms", "20000", "--versions"];
    let lacks = pool.start_as("v1", &[&common[..], &["v1", "--concurrency", "40"]].concat());
    lacks.wait_line("session begun").await;
    let has = pool.start_as("v2", &[&common[..], &["v2", "--concurrency", "10"]].concat());
    has.wait_line("session begun").await;
    pool.fixture
        .raw(&["HSET", "sb:gate:{test:probe}", "pins", "k=v2"])
        .await;
    for process in [&lacks, &has] {
        process.wait_line("test/probe gate.rev=2").await;
    }
    pool.add(SUSPECT, 0, ",\"work_ms\":3000", &["deaths", "1", "key", "k"])
        .await;
    eventually("it runs", patience(LONG), async || pool.lines("v2").len() == 1).await;
    let moves = async || {
        let mut sum = 0;
        for stream in [SUSPECT, "sb:lane:{test:probe}:v2"] {
            sum += inspect::group(&pool.fixture.store, stream)
                .await
                .unwrap()
                .entries_read
                .unwrap_or(0);
        }
        (inspect::time_us(&pool.fixture.store).await.unwrap(), sum)
    };
    let before = moves().await;
    for n in 1..6 {
        pool.add(SUSPECT, n, "", &["deaths", "1", "key", "k"]).await;
    }
    eventually("all have run on v2", patience(LONG), async || {
        pool.lines("v2").len() == 12
    })
    .await;
    let after = moves().await;
    assert_eq!(most_at_once(&pool.lines("v2")), 1, "one of ten at once");
    assert!(pool.lines("v1").is_empty());
    // Four a second may be handed over, and each comes back once: unbounded it would be thousands.
    let seconds = (after.0 - before.0).div_ceil(1_000_000) + 1;
    assert!(after.1 - before.1 <= seconds * 12 + 24, "{before:?} {after:?}");
}
