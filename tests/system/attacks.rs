//! What a hostile world, or a hostile reader of the code, would try. Every test here has failed once, but
//! `flushed_scripts_are_no_trouble`, which never did.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use redis::Value;
use switchback_common::{ConnectOptions, Task, store::log};
use switchback_tests::{Link, Mode, Process, eventually, patience};
use switchback_worker::{CancellationToken, Context, TaskError, Worker, WorkerConfig};
use tokio::sync::Semaphore;

use crate::fixture::{Fixture, Job, LEASE, Seen};

const MAIN: &str = "sb:stream:{test:job}";
const HEAD: &str = "sb:head:{test:job}";
const LANE: &str = "sb:lane:{test:job}:v1";
const SESSIONS: &str = "sb:sessions:{test:job}";

fn config_through(link: &Link) -> WorkerConfig {
    WorkerConfig::new(ConnectOptions::new(link.url()), "test".parse().unwrap()).lease(Duration::from_secs(2))
}

/// The keys of all leases of the queue.
async fn leases(fixture: &Fixture) -> Vec<String> {
    let keys = fixture.raw(&["KEYS", "sb:lease:{test:job}:*"]).await;
    redis::from_redis_value(keys).unwrap()
}

async fn kinds(fixture: &Fixture) -> Vec<String> {
    let entries = log::read(&fixture.store, &fixture.queue, None, 10_000).await.unwrap();
    entries.into_iter().map(|e| e.kind).collect()
}

async fn started(seen: &Seen, count: usize) {
    eventually(
        "the handlers have started",
        patience(Duration::from_secs(10)),
        async || {
            let got = seen.all().len();
            if got == count { Ok(()) } else { Err(got) }
        },
    )
    .await;
}

/// A handler that writes itself down and ends when the test lets it.
fn gated(
    seen: &Seen,
    permits: &Arc<Semaphore>,
) -> impl Fn(Job, Context) -> std::pin::Pin<Box<dyn Future<Output = Result<(), TaskError>> + Send>>
+ Send
+ Sync
+ 'static
+ use<> {
    let (first, permits) = (seen.handler(), Arc::clone(permits));
    move |job, ctx| {
        let (first, permits) = (first(job, ctx), Arc::clone(&permits));
        Box::pin(async move {
            first.await?;
            permits.acquire().await.unwrap().forget();
            Ok(())
        })
    }
}

async fn stops_without_redis(mode: Mode) {
    let mut fixture = Fixture::new().await;
    let link = Link::to(fixture.server.port()).await;
    let (seen, permits) = (Seen::default(), Arc::new(Semaphore::new(0)));
    let handler = gated(&seen, &permits);
    let config = config_through(&link).grace(Duration::from_millis(200));
    let stop = fixture.worker(config, |t| t.version("v1", handler)).await;
    fixture.enqueue_one(1, "").await;
    started(&seen, 1).await;
    link.set(mode).await;
    permits.add_permits(1);
    stop.cancel();
    eventually("the worker has ended", patience(Duration::from_secs(15)), async || {
        fixture.workers.try_join_next().is_some()
    })
    .await;
    link.set(Mode::Refuse).await;
    let (_stop, second) = fixture.simple(&["v1"]).await;
    started(&second, 1).await;
    fixture.drained().await;
}

// A worker that is told to stop while Redis is gone ends in bounded time; what it could not record runs again (P1).
#[tokio::test(flavor = "multi_thread")]
async fn a_stop_ends_though_redis_refuses() {
    stops_without_redis(Mode::Refuse).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_ends_though_redis_is_silent() {
    stops_without_redis(Mode::Blackhole).await;
}

// P4: a claim that finds its lease gone starts nothing, whatever the last renewal promised.
#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_is_gone_forbids_starts_at_once() {
    let mut fixture = Fixture::new().await;
    let seen = Seen::default();
    let handler = seen.handler();
    let config = fixture.config().lease(Duration::from_secs(5));
    fixture.worker(config, |t| t.version("v1", handler)).await;
    let lease = leases(&fixture).await.remove(0);
    let session = lease.rsplit(':').next().unwrap().to_owned();
    // What a reaper does when the server has lost the lease, and then a task: the claim comes after the loss.
    let mut raw = fixture.server.connection().await;
    let mut pipe = redis::pipe();
    pipe.atomic();
    pipe.cmd("DEL").arg(&lease);
    pipe.cmd("HSET").arg(SESSIONS).arg(format!("{session}:reaping")).arg(1);
    pipe.cmd("XADD").arg(MAIN).arg("*").arg("payload").arg("{\"n\":1}");
    let _: Vec<Value> = pipe.query_async(&mut raw).await.unwrap();
    fixture.drained().await;
    assert_eq!(seen.all().len(), 1, "the lost session started nothing");
    assert!(!kinds(&fixture).await.contains(&"stale".to_owned()));
}

/// Runs `tasks` short tasks, some in the head stream, and gives the most that ran at once.
async fn most_at_once(concurrency: usize, tasks: u64) -> usize {
    let mut fixture = Fixture::new().await;
    let (now, most, ended) = (
        Arc::new(AtomicUsize::new(0)),
        Arc::new(AtomicUsize::new(0)),
        Arc::new(AtomicUsize::new(0)),
    );
    let counters = (Arc::clone(&now), Arc::clone(&most), Arc::clone(&ended));
    let handler = move |_: Job, _: Context| {
        let (now, most, ended) = counters.clone();
        async move {
            most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(5)).await;
            now.fetch_sub(1, Ordering::SeqCst);
            ended.fetch_add(1, Ordering::SeqCst);
            Ok(())
        }
    };
    let config = fixture.config();
    fixture
        .worker(config, |t| t.version("v1", handler).concurrency(concurrency))
        .await;
    fixture.set(&[("paused", "1")]).await;
    for n in 0..tasks {
        let stream = [MAIN, HEAD, LANE][usize::try_from(n % 3).unwrap()];
        fixture.raw(&["XADD", stream, "*", "payload", "{\"n\":1}"]).await;
    }
    fixture.set(&[("paused", "0")]).await;
    fixture.drained().await;
    assert_eq!(ended.load(Ordering::SeqCst) as u64, tasks);
    most.load(Ordering::SeqCst)
}

// A worker never runs more at once than it was told: not with several streams to claim from, not with two claimers.
#[tokio::test(flavor = "multi_thread")]
async fn one_at_a_time_means_one() {
    assert_eq!(most_at_once(1, 60).await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_claimers_share_the_slots() {
    assert_eq!(most_at_once(8, 900).await, 8);
}

struct PanicsWhenDropped;

impl Drop for PanicsWhenDropped {
    fn drop(&mut self) {
        assert!(std::thread::panicking(), "dropped half-way");
    }
}

// P1, P7: a handler that panics while it is dropped fails its own task, and nothing is left behind.
#[tokio::test(flavor = "multi_thread")]
async fn a_panic_while_a_handler_is_dropped_is_a_failure_like_any_other() {
    let mut fixture = Fixture::new().await;
    let config = fixture.config().grace(Duration::from_millis(100));
    let handler = |_: Job, _: Context| async {
        let _guard = PanicsWhenDropped;
        std::future::pending::<Result<(), TaskError>>().await
    };
    let stop = fixture
        .worker(config, |t| {
            t.version("v1", handler)
                .timeout(Duration::from_millis(50))
                .concurrency(1)
        })
        .await;
    fixture.enqueue(0..2).await;
    fixture.drained().await;
    assert_eq!(fixture.depth().await.dead, 2);
    fixture.stop(&stop).await;
}

// P6: cut short by a shutdown, it is given back all the same.
#[tokio::test(flavor = "multi_thread")]
async fn a_panic_while_a_handler_is_dropped_by_a_shutdown_burns_nothing() {
    let mut fixture = Fixture::new().await;
    let config = fixture.config().grace(Duration::from_millis(100));
    let seen = Seen::default();
    let first = seen.handler();
    let handler = move |job: Job, ctx: Context| {
        let first = first(job, ctx);
        async move {
            let _guard = PanicsWhenDropped;
            first.await?;
            std::future::pending::<Result<(), TaskError>>().await
        }
    };
    let stop = fixture.worker(config, |t| t.version("v1", handler)).await;
    fixture.enqueue_one(1, "").await;
    started(&seen, 1).await;
    fixture.stop(&stop).await;
    let (_stop, second) = fixture.simple(&["v1"]).await;
    fixture.drained().await;
    assert_eq!(second.all()[0].attempt, 1);
}

// P8, P10: while the gate cannot be read nothing starts, and no more is taken than there are slots.
#[tokio::test(flavor = "multi_thread")]
async fn an_unreadable_gate_does_not_hoard_tasks() {
    let mut fixture = Fixture::new().await;
    let seen = Seen::default();
    let handler = seen.handler();
    let config = fixture.config();
    fixture
        .worker(config, |t| t.version("v1", handler).concurrency(4))
        .await;
    let state = "sb:gatestate:{test:job}";
    fixture.raw(&["RENAME", state, "{test:job}aside"]).await;
    fixture.raw(&["SET", state, "somebody's mistake"]).await;
    fixture.enqueue(0..200).await;
    eventually("tasks are taken", patience(Duration::from_secs(10)), async || {
        fixture.depth().await.in_flight() > 0
    })
    .await;
    // Long enough for several claims, and for a look for tasks that were never seen.
    let until = tokio::time::Instant::now() + Duration::from_secs(4);
    while tokio::time::Instant::now() < until {
        let taken = fixture.depth().await.in_flight();
        assert!(taken <= 4, "{taken} tasks taken for 4 slots");
        assert!(seen.all().is_empty(), "nothing starts");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    fixture.raw(&["RENAME", "{test:job}aside", state]).await;
    fixture.drained().await;
    assert_eq!(seen.all().len(), 200);
}

// P1: "try again in the year 500 billion" is a strange wish, not a crash, and not "at once".
#[tokio::test(flavor = "multi_thread")]
async fn a_retry_after_for_ever_waits() {
    let mut fixture = Fixture::new().await;
    let seen = Seen::default();
    let first = seen.handler();
    let handler = move |job: Job, ctx: Context| {
        let first = first(job, ctx);
        async move {
            first.await?;
            Err::<(), _>(TaskError::retry_after(Duration::MAX, "never mind"))
        }
    };
    let config = fixture.config();
    let stop = fixture.worker(config, |t| t.version("v1", handler)).await;
    fixture.enqueue_one(1, "").await;
    eventually("it is delayed", patience(Duration::from_secs(5)), async || {
        fixture.depth().await.delayed == 1
    })
    .await;
    fixture.stop(&stop).await;
    assert_eq!((seen.all().len(), fixture.depth().await.delayed), (1, 1));
}

// `Duration::MAX` is how one says "no timeout".
#[tokio::test(flavor = "multi_thread")]
async fn no_timeout_at_all_is_possible() {
    let mut fixture = Fixture::new().await;
    let seen = Seen::default();
    let handler = seen.handler();
    let config = fixture.config();
    let stop = fixture
        .worker(config, |t| t.version("v1", handler).timeout(Duration::MAX))
        .await;
    fixture.enqueue_one(1, "").await;
    fixture.drained().await;
    assert_eq!(seen.all().len(), 1);
    fixture.stop(&stop).await;
}

// A worker that finishes what it runs before it stops still says which gate it obeys: deploys and rollbacks coincide.
#[tokio::test(flavor = "multi_thread")]
async fn a_stopping_worker_confirms_a_rollback() {
    let mut fixture = Fixture::new().await;
    let (seen, permits) = (Seen::default(), Arc::new(Semaphore::new(0)));
    let (v1, v2) = (gated(&seen, &permits), gated(&seen, &permits));
    let config = fixture.config().grace(Duration::from_secs(60));
    let stop = fixture.worker(config, |t| t.version("v2", v2).version("v1", v1)).await;
    fixture.enqueue_one(1, "").await;
    started(&seen, 1).await;
    stop.cancel();
    fixture.set(&[("only", "v1")]).await;
    permits.add_permits(1);
    fixture.workers.join_next().await.unwrap().unwrap().unwrap();
    assert_eq!(fixture.raw(&["HLEN", SESSIONS]).await, Value::Int(0));
}

// P2: when the server loses every lease at once (a clock step, a restart), the living get time to renew.
#[tokio::test(flavor = "multi_thread")]
async fn leases_that_vanish_all_at_once_lose_nobody() {
    let mut fixture = Fixture::new().await;
    for _ in 0..3 {
        fixture.simple(&["v1"]).await;
    }
    let all = leases(&fixture).await;
    // Past the time in which newcomers reap nobody anyway, and a while after which whoever did not know better would reap.
    let hands_off = LEASE / 2 + Duration::from_millis(100);
    tokio::time::sleep(hands_off).await;
    for _ in 0..4 {
        let mut del = vec!["DEL"];
        del.extend(all.iter().map(String::as_str));
        fixture.raw(&del).await;
        eventually("all are renewed", patience(Duration::from_secs(10)), async || {
            let now = leases(&fixture).await;
            if all.iter().all(|lease| now.contains(lease)) {
                Ok(())
            } else {
                Err(format!("{now:?}"))
            }
        })
        .await;
        tokio::time::sleep(hands_off).await;
    }
    assert!(!kinds(&fixture).await.contains(&"reaping".to_owned()));
}

struct TellsWhenDropped(Arc<AtomicUsize>);

impl Drop for TellsWhenDropped {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

// P10: a lost session's handlers are told to end, and those that do not listen are dropped: they may not pile up.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_sessions_handlers_do_not_stay() {
    let mut fixture = Fixture::new().await;
    let (seen, dropped) = (Seen::default(), Arc::new(AtomicUsize::new(0)));
    let (first, tell) = (seen.handler(), Arc::clone(&dropped));
    let handler = move |job: Job, ctx: Context| {
        let (first, tell) = (first(job, ctx), TellsWhenDropped(Arc::clone(&tell)));
        async move {
            let _tell = tell;
            first.await
        }
    };
    let config = fixture.config().grace(Duration::from_millis(200));
    fixture.worker(config, |t| t.version("v1", handler)).await;
    fixture.enqueue_one(1, "hang").await;
    started(&seen, 1).await;
    let lease = leases(&fixture).await.remove(0);
    let session = lease.rsplit(':').next().unwrap().to_owned();
    let mut raw = fixture.server.connection().await;
    let mut pipe = redis::pipe();
    pipe.atomic().cmd("DEL").arg(&lease);
    pipe.cmd("HSET").arg(SESSIONS).arg(format!("{session}:reaping")).arg(1);
    let _: Vec<Value> = pipe.query_async(&mut raw).await.unwrap();
    eventually(
        "the handler is dropped",
        patience(Duration::from_secs(10)),
        async || dropped.load(Ordering::SeqCst) >= 1,
    )
    .await;
}

// P1: a lane that somebody deleted comes back, and does not keep the queue from recovering what others lost.
#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_lane_comes_back() {
    let mut fixture = Fixture::new().await;
    let (_stop, seen) = fixture.simple(&["v1"]).await;
    fixture.set(&[("paused", "1")]).await;
    fixture.enqueue([1]).await;
    fixture
        .raw(&[
            "XREADGROUP",
            "GROUP",
            "workers",
            "ghost",
            "COUNT",
            "1",
            "STREAMS",
            MAIN,
            ">",
        ])
        .await;
    fixture.raw(&["DEL", LANE]).await;
    fixture.set(&[("paused", "0")]).await;
    fixture.drained().await;
    assert_eq!(seen.versions_of(1), ["v1"]);
    eventually("the lane is there", patience(Duration::from_secs(10)), async || {
        fixture.raw(&["EXISTS", LANE]).await == Value::Int(1)
    })
    .await;
}

const KINDS: [&str; 24] = [
    "k0", "k1", "k2", "k3", "k4", "k5", "k6", "k7", "k8", "k9", "k10", "k11", "k12", "k13", "k14", "k15", "k16", "k17",
    "k18", "k19", "k20", "k21", "k22", "k23",
];

#[derive(serde::Serialize, serde::Deserialize)]
struct Kind<const N: usize>;

impl<const N: usize> Task for Kind<N> {
    const TYPE: &'static str = KINDS[N];
}

// P7: the lease of one queue does not wait for the round trips of the others'.
#[tokio::test(flavor = "multi_thread")]
async fn many_queues_far_away_keep_their_leases() {
    let mut fixture = Fixture::new().await;
    let link = Link::to(fixture.server.port()).await;
    let mut worker = Worker::builder(config_through(&link).lease(Duration::from_secs(6)));
    macro_rules! add {
        ($($n:literal)*) => { $(
            worker = worker.task::<Kind<$n>>(|t| t.version("v1", |_: Kind<$n>, _| async { Ok(()) }));
        )* };
    }
    add!(0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23);
    let stop = CancellationToken::new();
    fixture.workers.spawn(worker.run_until(stop.clone()));
    let leases = async || {
        let keys = fixture.raw(&["KEYS", "sb:lease:{test:k*"]).await;
        let mut keys: Vec<String> = redis::from_redis_value(keys).unwrap();
        keys.sort();
        keys
    };
    let all = eventually("all have joined", patience(Duration::from_secs(20)), async || {
        let keys = leases().await;
        (keys.len() == KINDS.len()).then_some(keys)
    })
    .await;
    // 300 ms there and back: 24 of them in a row take 7.2 s, longer than the lease; and so long that the last of them would be
    // late, whenever it was renewed last.
    link.set(Mode::Delay(Duration::from_millis(150))).await;
    let until = tokio::time::Instant::now() + Duration::from_secs(15);
    while tokio::time::Instant::now() < until {
        let now = leases().await;
        assert_eq!(now, all, "every lease is alive");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    link.set(Mode::Pass).await;
    fixture.stop(&stop).await;
}

// P10: however large the payloads, one script moves a bounded number of bytes.
#[tokio::test(flavor = "multi_thread")]
async fn a_settle_moves_a_bounded_number_of_bytes() {
    let mut fixture = Fixture::new().await;
    let (seen, permits) = (Seen::default(), Arc::new(Semaphore::new(0)));
    let first = gated(&seen, &permits);
    let handler = move |job: Job, ctx: Context| {
        let first = first(job, ctx);
        async move {
            first.await?;
            Err::<(), _>(TaskError::reject("all at once"))
        }
    };
    let config = fixture.config();
    fixture
        .worker(config, |t| t.version("v1", handler).concurrency(40))
        .await;
    let large = "x".repeat(1_000_000);
    for n in 0..40 {
        fixture.enqueue_one(n, &large).await;
    }
    started(&seen, 40).await;
    permits.add_permits(40);
    eventually("all are dead", patience(Duration::from_secs(20)), async || {
        fixture.depth().await.dead == 40
    })
    .await;
    let entries = log::read(&fixture.store, &fixture.queue, None, 1_000).await.unwrap();
    let batches = entries
        .iter()
        .map(|e| e.attempts.iter().map(|g| g.tasks.len()).sum::<usize>());
    assert!(batches.clone().all(|n| n <= 5), "{:?}", batches.collect::<Vec<_>>());
}

// Scripts are loaded again when somebody flushes them, in the middle of anything.
#[tokio::test(flavor = "multi_thread")]
async fn flushed_scripts_are_no_trouble() {
    let mut fixture = Fixture::new().await;
    let (_stop, seen) = fixture.simple(&["v1"]).await;
    for round in 0..20 {
        fixture.enqueue(round * 50..(round + 1) * 50).await;
        fixture.raw(&["SCRIPT", "FLUSH"]).await;
    }
    fixture.drained().await;
    assert_eq!(seen.all().len(), 1_000);
}

// P8: a network slower than `start_ttl` starts nothing, and says why.
#[tokio::test(flavor = "multi_thread")]
async fn a_network_slower_than_start_ttl_says_so() {
    let fixture = Fixture::new().await;
    let link = Link::to(fixture.server.port()).await;
    let directory = tempfile::TempDir::new().unwrap();
    let (url, witness) = (link.url(), directory.path().join("starts").display().to_string());
    let args = [
        "--redis",
        &url,
        "--versions",
        "v1",
        "--witness",
        &witness,
        "--start-ttl-ms",
        "20",
    ];
    let pool = Process::start("switchback-test-pool", args, [("RUST_LOG", "info")]);
    pool.wait_line("session begun").await;
    link.set(Mode::Delay(Duration::from_millis(40))).await;
    fixture
        .raw(&["XADD", "sb:stream:{test:probe}", "*", "payload", "{\"n\":1}"])
        .await;
    pool.wait_line("gate reads take longer than start_ttl").await;
    link.set(Mode::Pass).await;
    eventually(
        "it runs once the network is fast again",
        patience(Duration::from_secs(10)),
        async || std::fs::read_to_string(&witness).is_ok_and(|text| text.contains("end 1")),
    )
    .await;
}
