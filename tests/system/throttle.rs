//! Throttle over a fleet: how much runs at once, how often tasks start, and versions that are held because they fail.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use redis::Value;
use switchback_common::clock::Moment;
use switchback_tests::{Process, Witness, eventually, patience};
use switchback_worker::{Breaker, CancellationToken, Context, RetryPolicy, TaskError, WorkerError};

use crate::fixture::{Fixture, Job, Seen};

const LIMITS: &str = "sb:limits:{test:job}";

/// What the handlers of a whole fleet do at once.
#[derive(Clone, Default)]
struct Gauge(Arc<Inner>);

#[derive(Default)]
struct Inner {
    now: AtomicUsize,
    most: AtomicUsize,
    ran: AtomicUsize,
    starts: Mutex<Vec<(u64, Moment)>>,
}

/// Also counts a handler that is dropped.
struct Running(Arc<Inner>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.now.fetch_sub(1, Ordering::SeqCst);
        self.0.ran.fetch_add(1, Ordering::SeqCst);
    }
}

type Handled = std::pin::Pin<Box<dyn Future<Output = Result<(), TaskError>> + Send>>;

impl Gauge {
    fn handler(&self, work: Duration) -> impl Fn(Job, Context) -> Handled + Send + Sync + 'static + use<> {
        let inner = Arc::clone(&self.0);
        move |job, _| {
            let inner = Arc::clone(&inner);
            Box::pin(async move {
                let now = inner.now.fetch_add(1, Ordering::SeqCst) + 1;
                inner.most.fetch_max(now, Ordering::SeqCst);
                inner.starts.lock().unwrap().push((job.n, Moment::now()));
                let _running = Running(inner);
                tokio::time::sleep(work).await;
                Ok(())
            })
        }
    }

    fn most(&self) -> usize {
        self.0.most.load(Ordering::SeqCst)
    }

    /// Forgets the most so far.
    fn reset(&self) {
        self.0.most.store(self.0.now.load(Ordering::SeqCst), Ordering::SeqCst);
    }

    fn ran(&self) -> usize {
        self.0.ran.load(Ordering::SeqCst)
    }

    /// When tasks that `pick` picks started, in order.
    fn starts(&self, pick: impl Fn(u64) -> bool) -> Vec<Moment> {
        let starts = self.0.starts.lock().unwrap();
        let mut starts: Vec<Moment> = starts.iter().filter(|(n, _)| pick(*n)).map(|(_, at)| *at).collect();
        starts.sort();
        starts
    }
}

impl Fixture {
    async fn limit(&self, field: &str, value: &str) {
        self.raw(&["HSET", LIMITS, field, value]).await;
    }

    /// How many tasks the fleet may run at once, by what is booked for its sessions: never less than they hold.
    async fn booked(&self) -> u64 {
        let records: BTreeMap<String, String> =
            redis::from_redis_value(self.raw(&["HGETALL", "sb:sessions:{test:job}"]).await).unwrap();
        let grants = records.iter().filter(|(name, _)| name.ends_with(":grant"));
        grants
            .map(|(_, grant)| grant.split(' ').next().unwrap().parse::<u64>().unwrap())
            .sum()
    }

    /// A worker whose tasks take `work` and are seen by `gauge`.
    async fn gauged(&mut self, versions: &[&str], gauge: &Gauge, work: u64) -> CancellationToken {
        let config = self.config();
        self.worker(config, |t| {
            let t = t.concurrency(10);
            let work = Duration::from_millis(work);
            versions.iter().fold(t, |t, v| t.version(*v, gauge.handler(work)))
        })
        .await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fleet_never_runs_more_than_its_limit() {
    let mut fixture = Fixture::new().await;
    fixture.limit("concurrency", "6").await;
    let gauge = Gauge::default();
    fixture.enqueue(0..150).await;
    let mut stops = Vec::new();
    for _ in 0..3 {
        stops.push(fixture.gauged(&["v1"], &gauge, 20).await);
    }
    fixture.drained().await;
    assert_eq!((gauge.most(), gauge.ran()), (6, 150), "no more, and no less");
    // Lowered while it is used: what runs goes on, what is beyond is not replaced.
    fixture.enqueue(150..2_000).await;
    fixture.limit("concurrency", "2").await;
    eventually("two run", patience(Duration::from_secs(20)), async || {
        match fixture.booked().await {
            0..=2 => Ok(()),
            booked => Err(booked),
        }
    })
    .await;
    gauge.reset();
    let ran = gauge.ran();
    eventually("it goes on", patience(Duration::from_secs(20)), async || {
        gauge.ran() > ran + 50
    })
    .await;
    assert_eq!(gauge.most(), 2);
    // A member stops in good order: its part is the others' at once.
    fixture.stop(&stops[0]).await;
    // Removed: everybody runs what he can.
    fixture.raw(&["HDEL", LIMITS, "concurrency"]).await;
    eventually("more run", patience(Duration::from_secs(20)), async || gauge.most() > 6).await;
    fixture.drained().await;
    assert_eq!(gauge.ran(), 2_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_at_a_time_and_everybody_has_a_turn() {
    let mut fixture = Fixture::new().await;
    fixture.limit("concurrency", "1").await;
    fixture.enqueue(0..1_500).await;
    let gauges = [Gauge::default(), Gauge::default(), Gauge::default()];
    let all = Arc::new(Inner::default());
    for gauge in &gauges {
        let config = fixture.config();
        let (own, all) = (gauge.handler(Duration::from_millis(5)), Arc::clone(&all));
        let handler = move |job, ctx| {
            let (running, all) = (own(job, ctx), Arc::clone(&all));
            Box::pin(async move {
                all.most
                    .fetch_max(all.now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                let _running = Running(all);
                running.await
            }) as Handled
        };
        fixture.worker(config, |t| t.version("v1", handler)).await;
    }
    eventually("each has had its turn", patience(Duration::from_secs(30)), async || {
        let ran: Vec<usize> = gauges.iter().map(Gauge::ran).collect();
        if ran.iter().all(|n| *n > 0) {
            Ok(())
        } else {
            Err(format!("{ran:?}"))
        }
    })
    .await;
    assert_eq!(all.most.load(Ordering::SeqCst), 1);
    fixture.raw(&["DEL", LIMITS]).await;
    fixture.drained().await;
}

// A worker that has a task of its own version in its lane gets the one grant although others could use it.
#[tokio::test(flavor = "multi_thread")]
async fn a_mixed_fleet_shares_one_grant() {
    let mut fixture = Fixture::new().await;
    fixture.limit("concurrency", "1").await;
    let gauge = Gauge::default();
    fixture.gauged(&["v1"], &gauge, 2).await;
    fixture.gauged(&["v2"], &gauge, 2).await;
    fixture.set(&[("candidate", "v2"), ("percent", "50")]).await;
    fixture.enqueue(0..60).await;
    fixture.drained().await;
    assert_eq!((gauge.most(), gauge.ran()), (1, 60));
}

// P8: what makes no sense limits nothing; a worker that begins does not wait for a person to notice.
#[tokio::test(flavor = "multi_thread")]
async fn limits_that_make_no_sense_stop_nobody() {
    let mut fixture = Fixture::new().await;
    fixture.raw(&["SET", LIMITS, "concurrency 5"]).await;
    let (stop, _seen) = fixture.simple(&["v1"]).await;
    fixture.enqueue(0..5).await;
    fixture.drained().await;
    fixture.stop(&stop).await;
    fixture.raw(&["DEL", LIMITS]).await;
    fixture
        .raw(&["HSET", LIMITS, "concurrency", "many", "rate", "fast", "speed", "1"])
        .await;
    let (_stop, _seen) = fixture.simple(&["v1"]).await;
    fixture.enqueue(5..10).await;
    fixture.drained().await;
}

// P4: the grant of a killed worker comes back when its session cannot.
#[tokio::test(flavor = "multi_thread")]
async fn a_killed_holder_gives_its_grant_back() {
    let fixture = Fixture::new().await;
    fixture
        .raw(&["HSET", "sb:limits:{test:probe}", "concurrency", "1"])
        .await;
    let directory = tempfile::TempDir::new().unwrap();
    let pool = |name: &str| {
        let file = directory.path().join(name);
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
            "4000",
        ];
        let process = Process::start("switchback-test-pool", args, [("RUST_LOG", "info")]);
        (process, witness)
    };
    let enqueue = async |json: &str| {
        fixture
            .raw(&["XADD", "sb:stream:{test:probe}", "*", "payload", json])
            .await;
    };
    let (first, seen) = pool("first");
    enqueue(r#"{"n":1,"work_ms":600000}"#).await;
    eventually("it holds the grant", patience(Duration::from_secs(10)), async || {
        seen.starts().len() == 1
    })
    .await;
    let (second, others) = pool("second");
    second.wait_line("session begun").await;
    enqueue(r#"{"n":2}"#).await;
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    assert!(others.starts().is_empty(), "one at a time");
    first.kill9();
    eventually(
        "the other has the grant",
        patience(Duration::from_secs(15)),
        async || !others.starts().is_empty(),
    )
    .await;
}

/// No start comes before the rate had it: `burst` at once, then one by one.
fn assert_paced(since: Moment, starts: &[Moment], per_second: f64, burst: usize) {
    for (n, at) in starts.iter().enumerate() {
        let earliest = (n + 1).saturating_sub(burst) as f64 / per_second;
        let came = at.since(since).as_secs_f64() + 0.002;
        assert!(came >= earliest, "start {n} came after {came} s, not {earliest} s");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rate_holds_over_the_fleet() {
    let mut fixture = Fixture::new().await;
    fixture.limit("rate", "100/s+5").await;
    let gauge = Gauge::default();
    for _ in 0..3 {
        fixture.gauged(&["v1"], &gauge, 1).await;
    }
    let since = Moment::now();
    // A backlog, and tasks that wake idle workers.
    fixture.enqueue(0..150).await;
    fixture.drained().await;
    assert_paced(since, &gauge.starts(|_| true), 100.0, 5);
    // Whoever still claims without waiting has taken starts just before.
    fixture.blocked(3).await;
    let since = Moment::now();
    for n in 150..200 {
        fixture.enqueue_one(n, "").await;
    }
    fixture.drained().await;
    assert_paced(since, &gauge.starts(|n| n >= 150), 100.0, 5);
    assert_eq!(gauge.ran(), 200);
}

// Tasks beyond the rate stay in line: a worker holds one at most, and gives it back when it stops.
#[tokio::test(flavor = "multi_thread")]
async fn what_may_not_start_is_not_claimed() {
    let mut fixture = Fixture::new().await;
    fixture.limit("rate", "1/h").await;
    let gauge = Gauge::default();
    let stop = fixture.gauged(&["v1"], &gauge, 1).await;
    fixture.enqueue(0..100).await;
    eventually("one has run", patience(Duration::from_secs(10)), async || {
        gauge.ran() == 1
    })
    .await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let depth = fixture.depth().await;
    assert!(gauge.ran() == 1 && depth.in_flight() <= 1, "{depth:?}");
    fixture.stop(&stop).await;
    let depth = fixture.depth().await;
    assert_eq!((depth.waiting(), depth.in_flight(), depth.delayed), (99, 0, 0));
    // A typo changes nothing, and a limit that is removed is none.
    let _stop = fixture.gauged(&["v1"], &gauge, 1).await;
    fixture.limit("rate", "1 per second").await;
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    assert_eq!(gauge.ran(), 1);
    fixture.raw(&["HDEL", LIMITS, "rate"]).await;
    fixture.drained().await;
    assert_eq!(gauge.ran(), 100);
}

// P6: a task beyond its key's rate waits without burning an attempt, and keeps no other from running.
#[tokio::test(flavor = "multi_thread")]
async fn a_hot_key_blocks_nobody() {
    let mut fixture = Fixture::new().await;
    fixture.limit("rate_per_key", "10/s+1").await;
    let gauge = Gauge::default();
    let seen = Seen::default();
    let config = fixture.config();
    let handler = seen.handler();
    fixture
        .worker(config, |t| t.version("v1", handler).concurrency(4))
        .await;
    fixture.gauged(&["v1"], &gauge, 1).await;
    let since = Moment::now();
    let job = |n| Job { n, then: String::new() };
    for n in 0..30 {
        fixture.producer.enqueue(&job(n)).key("hot").await.unwrap();
    }
    for n in 100..130 {
        fixture
            .producer
            .enqueue(&job(n))
            .key(format!("cold-{n}"))
            .await
            .unwrap();
    }
    fixture.enqueue(200..230).await;
    let others = || {
        let mine = seen.all().iter().filter(|r| r.n >= 100).count();
        mine + gauge.starts(|n| n >= 100).len()
    };
    let hot = || seen.all().iter().filter(|r| r.n < 100).count() + gauge.starts(|n| n < 100).len();
    eventually("the others have run", patience(Duration::from_secs(20)), async || {
        others() == 60
    })
    .await;
    let waits = hot();
    let took = since.elapsed().as_secs_f64(); // asked second: more cannot have started in it
    assert!(waits as f64 <= 2.0 + took * 10.0, "{waits} of the hot key in {took} s");
    fixture.drained().await;
    assert_eq!((hot(), others()), (30, 60), "each once");
    assert!(
        since.elapsed() >= Duration::from_millis(2_890),
        "29 intervals of 100 ms"
    );
    assert!(
        seen.all().iter().all(|r| r.attempt == 1 && r.recovered == 0),
        "{:?}",
        seen.all()
    );
}

/// A dependency that can be down.
#[derive(Clone, Default)]
struct Dependency {
    down: Arc<AtomicBool>,
    failed: Arc<AtomicUsize>,
}

impl Dependency {
    /// Fails while it is down; writes every start down.
    fn handler(&self, seen: &Seen) -> impl Fn(Job, Context) -> Handled + Send + Sync + 'static + use<> {
        let (dependency, write) = (self.clone(), seen.handler());
        move |job, ctx| {
            let (dependency, written) = (dependency.clone(), write(job, ctx));
            Box::pin(async move {
                written.await?;
                tokio::time::sleep(Duration::from_millis(5)).await;
                if dependency.down.load(Ordering::SeqCst) {
                    dependency.failed.fetch_add(1, Ordering::SeqCst);
                    return Err(TaskError::failed("connection refused"));
                }
                Ok(())
            })
        }
    }

    fn failed(&self) -> usize {
        self.failed.load(Ordering::SeqCst)
    }
}

fn breaker() -> Breaker {
    Breaker::new(0.5, 5, Duration::from_secs(10), Duration::from_millis(400))
}

fn patient() -> RetryPolicy {
    RetryPolicy::default().backoff(Duration::from_millis(20), Duration::from_millis(50))
}

async fn open(fixture: &Fixture) -> Vec<String> {
    let Value::Array(fields) = fixture.raw(&["HGETALL", "sb:sessions:{test:job}"]).await else {
        panic!("an array")
    };
    let fields: Vec<String> = fields
        .into_iter()
        .map(|v| redis::from_redis_value(v).unwrap())
        .collect();
    let open = fields.chunks(2).filter(|pair| pair[0].ends_with(":open"));
    open.map(|pair| pair[1].clone()).collect()
}

// While its dependency is down, a version burns a probe now and then, and no more.
#[tokio::test(flavor = "multi_thread")]
async fn a_breaker_holds_the_line() {
    let mut fixture = Fixture::new().await;
    let (dependency, seen) = (Dependency::default(), Seen::default());
    let config = fixture.config();
    let handler = dependency.handler(&seen);
    fixture
        .worker(config, |t| {
            t.version("v1", handler)
                .concurrency(8)
                .retry(patient())
                .breaker(breaker())
        })
        .await;
    dependency.down.store(true, Ordering::SeqCst);
    let since = Moment::now();
    fixture.enqueue(0..300).await;
    eventually("people are told", patience(Duration::from_secs(10)), async || {
        open(&fixture).await == ["v1"]
    })
    .await;
    eventually("it has been probed", patience(Duration::from_secs(20)), async || {
        dependency.failed() >= 16 && since.elapsed() >= Duration::from_secs(4)
    })
    .await;
    dependency.down.store(false, Ordering::SeqCst);
    let burnt = dependency.failed();
    let probes = since.elapsed().as_millis() / 400; // asked last: more cannot have been made in it
    // The fifth failure opens: until then 4 ended, and the 8 places were taken again.
    assert!(
        burnt as u128 <= 4 + 8 + probes,
        "{burnt} attempts burnt, {probes} probes"
    );
    let untouched = fixture.depth().await.waiting();
    assert!(untouched >= 200, "{untouched} wait");
    fixture.drained().await;
    let starts = seen.all();
    assert_eq!(
        starts.len(),
        300 + dependency.failed(),
        "all of them succeeded in the end"
    );
    assert_eq!(fixture.depth().await.dead, 0);
    let most = starts.iter().map(|r| r.attempt).max();
    assert!(most <= Some(8), "{most:?} attempts of one task");
    eventually("people are told", patience(Duration::from_secs(10)), async || {
        open(&fixture).await.is_empty()
    })
    .await;
}

// A candidate that fails holds its own share and nobody else's; a rollback runs what it held on the other version.
#[tokio::test(flavor = "multi_thread")]
async fn a_failing_candidate_holds_only_its_own() {
    let mut fixture = Fixture::new().await;
    let (dependency, seen) = (Dependency::default(), Seen::default());
    let config = fixture.config();
    let (sound, failing) = (seen.handler(), dependency.handler(&seen));
    fixture
        .worker(config, |t| {
            let t = t.version("v1", sound).version("v2", failing).concurrency(8);
            t.retry(patient())
                .breaker(Breaker::new(0.5, 5, Duration::from_secs(10), Duration::from_secs(600)))
        })
        .await;
    fixture.set(&[("candidate", "v2"), ("percent", "50")]).await;
    dependency.down.store(true, Ordering::SeqCst);
    fixture.enqueue(0..300).await;
    let v1 = || seen.all().iter().filter(|r| r.version == "v1").count();
    eventually("v1 has run its share", patience(Duration::from_secs(20)), async || {
        let depth = fixture.depth().await;
        let lane = depth
            .lanes
            .iter()
            .find(|(v, _)| v.as_str() == "v2")
            .map_or(0, |(_, g)| g.waiting());
        let rest = depth.waiting() - lane + depth.in_flight() + depth.delayed;
        if rest == 0 && lane > 0 {
            Ok(())
        } else {
            Err(format!("{depth:?}"))
        }
    })
    .await;
    let (ran, burnt) = (v1(), dependency.failed());
    assert!(ran > 50 && burnt <= 16, "{ran} ran on v1, {burnt} burnt on v2");
    fixture.set(&[("only", "v1")]).await;
    fixture.drained().await;
    assert_eq!((v1(), dependency.failed()), (300, burnt), "the rest ran on v1");
    assert_eq!(fixture.depth().await.dead, 0);
}

#[tokio::test]
async fn a_breaker_that_cannot_work_is_refused() {
    let fixture = Fixture::new().await;
    let second = Duration::from_secs(1);
    for breaker in [
        Breaker::new(0.0, 1, second, second),
        Breaker::new(f64::NAN, 1, second, second),
        Breaker::new(0.5, 0, second, second),
        Breaker::new(0.5, 1, Duration::ZERO, second),
        Breaker::new(0.5, 1, second, Duration::from_secs(86_400)),
    ] {
        let seen = Seen::default();
        let worker = switchback_worker::Worker::builder(fixture.config())
            .task::<Job>(|t| t.version("v1", seen.handler()).breaker(breaker));
        let refused = worker.run_until(CancellationToken::new()).await;
        assert!(matches!(refused, Err(WorkerError::BadSetting(_))), "{refused:?}");
    }
}
