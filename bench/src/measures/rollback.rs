//! A bad version, rolled back by itself: from its first bad attempt to the word of every worker that it is gone.
//!
//! 500 tasks per second, a ramp at 10 %, a version that fails 30 % of its tasks from its first task on, the guard as it is
//! by default. What counts is the time, and how many attempts failed meanwhile. No task may be lost, and none may start on
//! the version after the rollback.

use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use switchback_common::{
    clock::Moment,
    store::{
        inspect, log,
        rollout::{RolloutStore, Stepped},
    },
};
use switchback_gates::{
    Gates,
    admin::operation_id,
    certificate::Revisions,
    rollout::{Record, Setting, Spec, Status, start},
};
use switchback_producer::Producer;
use switchback_tests::RedisServer;
use switchback_worker::{Context, RetryPolicy, TaskError, Worker};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::{
    Result,
    measures::Setup,
    ours::{Load, Place},
    report::{Report, Samples},
};

const WORKERS: usize = 4;
const EVERY: Duration = Duration::from_millis(2);
const FAILS_PERCENT: u64 = 30;
/// Until the active version has a record: the rollout begins in the middle of traffic.
const BEFORE: Duration = Duration::from_secs(1);
const GIVEN_UP: Duration = Duration::from_secs(60);

/// What the handlers saw.
#[derive(Debug, Default)]
struct Seen {
    first_bad: OnceLock<Moment>,
    bad: AtomicU64,
    on_v2: AtomicU64,
    done: Mutex<HashSet<u64>>,
}

#[derive(Debug)]
struct Run {
    took: Duration,
    bad: u64,
    on_v2: u64,
    enqueued: u64,
    lost: u64,
    late: u64,
    why: String,
}

pub(crate) async fn run(setup: &Setup, report: &mut Report) -> Result<()> {
    let mut times = Samples::new()?;
    let (mut bad, mut on_v2, mut lost, mut late, mut enqueued) = (Vec::new(), Vec::new(), 0, 0, 0);
    for n in 0..setup.count(20, 3) {
        let run = Box::pin(once()).await?;
        eprintln!(
            "  {n}: {:?}, {} of {} attempts on v2 failed, {} tasks, lost {}, late starts {}; {}",
            run.took, run.bad, run.on_v2, run.enqueued, run.lost, run.late, run.why
        );
        times.add(run.took);
        bad.push(f64::from(u32::try_from(run.bad)?));
        on_v2.push(f64::from(u32::try_from(run.on_v2)?));
        lost += run.lost;
        late += run.late;
        enqueued += run.enqueued;
    }
    report.times("first bad attempt to rollback confirmed by 4 workers", &times, &[]);
    let p99 = {
        let mut sorted = bad.clone();
        sorted.sort_by(f64::total_cmp);
        // Of so few runs the 99th percentile is the worst.
        sorted.last().copied().unwrap_or_default()
    };
    report.alone("v2 failures until the rollback was confirmed", "tasks", &bad);
    report.alone("… their p99", "tasks", &[p99]);
    report.alone("attempts on v2", "attempts", &on_v2);
    if lost > 0 || late > 0 {
        return Err(format!("{lost} of {enqueued} tasks lost, {late} late starts").into());
    }
    eprintln!("  {enqueued} tasks: 0 lost, 0 late starts");
    Ok(())
}

async fn once() -> Result<Run> {
    let redis = RedisServer::start().await;
    let place = Place::new(&redis.url(), "bench")?;
    let seen = Arc::new(Seen::default());
    let (stop, mut workers) = (CancellationToken::new(), JoinSet::new());
    for _ in 0..WORKERS {
        let handler = {
            let seen = Arc::clone(&seen);
            move |load: Load, context: Context| {
                let seen = Arc::clone(&seen);
                async move { handle(&seen, load.n, &context).await }
            }
        };
        let retry = RetryPolicy::default()
            .attempts(20)
            .backoff(Duration::from_millis(100), Duration::from_millis(500));
        let worker = Worker::builder(place.config()).task::<Load>(|task| {
            let (v1, v2) = (handler.clone(), handler);
            task.version("v1", v1).version("v2", v2).concurrency(32).retry(retry)
        });
        workers.spawn(worker.run_until(stop.clone()));
    }
    place.sessions(WORKERS).await?;
    let enough = CancellationToken::new();
    let mut traffic = JoinSet::new();
    traffic.spawn(enqueue(
        Producer::connect(&place.options, place.namespace()).await?,
        enough.clone(),
    ));
    tokio::time::sleep(BEFORE).await;
    begin(&place).await?;
    let why = tokio::time::timeout(GIVEN_UP, rolled_back(&place)).await??;
    let gates = Gates::new(&place.store);
    let rev = gates.show(&place.queue).await?.rev;
    let confirmed = gates.wait(&place.queue, rev, GIVEN_UP).await?;
    let first = seen.first_bad.get().ok_or("nothing failed")?;
    let (took, bad, on_v2) = (
        first.elapsed(),
        seen.bad.load(Ordering::SeqCst),
        seen.on_v2.load(Ordering::SeqCst),
    );
    if !confirmed.missing.is_empty() {
        return Err("not every worker confirmed the rollback".into());
    }
    enough.cancel();
    let enqueued = traffic.join_next().await.ok_or("no traffic")???;
    let drained = tokio::time::timeout(GIVEN_UP, drained(&place)).await;
    drained.map_err(|_| "the queue was not drained")??;
    stop.cancel();
    while let Some(ended) = workers.join_next().await {
        ended??;
    }
    let done = seen.done.lock().unwrap_or_else(PoisonError::into_inner).len();
    Ok(Run {
        took,
        bad,
        on_v2,
        enqueued,
        lost: enqueued.abs_diff(u64::try_from(done)?),
        late: late_starts(&place).await?,
        why,
    })
}

async fn handle(seen: &Seen, n: u64, context: &Context) -> std::result::Result<(), TaskError> {
    let on_v2 = context.version.as_str() == "v2";
    if on_v2 {
        seen.on_v2.fetch_add(1, Ordering::SeqCst);
    }
    tokio::time::sleep(Duration::from_millis(5)).await;
    // Not in step with the buckets of the gate, which are of the id.
    if on_v2 && (n * 7919) % 100 < FAILS_PERCENT {
        seen.first_bad.get_or_init(Moment::now);
        seen.bad.fetch_add(1, Ordering::SeqCst);
        return Err(TaskError::failed("v2 cannot do this"));
    }
    seen.done.lock().unwrap_or_else(PoisonError::into_inner).insert(n);
    Ok(())
}

/// One task every two milliseconds until it is enough; returns how many.
async fn enqueue(producer: Producer, enough: CancellationToken) -> Result<u64> {
    let mut beat = tokio::time::interval(EVERY);
    let mut n = 0;
    while !enough.is_cancelled() {
        beat.tick().await;
        producer.enqueue(&Load::new(n)).await?;
        n += 1;
    }
    Ok(n)
}

async fn begin(place: &Place) -> Result<()> {
    let spec = Spec {
        steps: Spec::parse_steps("10,100")?,
        ..Spec::default()
    };
    let setting = Setting {
        rev: Gates::new(&place.store).show(&place.queue).await?.rev,
        op: operation_id(),
        ..Setting::default()
    };
    let step = start(&spec, &"v1".parse()?, &"v2".parse()?, &setting, false);
    match RolloutStore::new(&place.store, &place.queue).step(&step).await? {
        Stepped::Yes { .. } => Ok(()),
        other => Err(format!("the rollout did not begin: {other:?}").into()),
    }
}

async fn rolled_back(place: &Place) -> Result<String> {
    let store = RolloutStore::new(&place.store, &place.queue);
    loop {
        let record = Record::parse(&store.read().await?.0)?.ok_or("no rollout")?;
        match record.status {
            Status::RolledBack => return Ok(record.reason),
            status if status.is_live() => tokio::time::sleep(Duration::from_millis(1)).await,
            status => return Err(format!("the rollout is {status}: {}", record.reason).into()),
        }
    }
}

/// Until nothing waits, runs or is delayed; seen twice, for a task may move behind one look.
async fn drained(place: &Place) -> Result<()> {
    let mut quiet = 0;
    while quiet < 2 {
        let depth = inspect::depth(&place.store, &place.queue).await?;
        let empty = depth.waiting() + depth.in_flight() + depth.delayed == 0;
        quiet = if empty { quiet + 1 } else { 0 };
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// The certificate.
async fn late_starts(place: &Place) -> Result<u64> {
    let history = Gates::new(&place.store).history(&place.queue, None, 10_000).await?;
    let revisions = Revisions::from_history(&history);
    let (mut after, mut late) = (None, 0);
    loop {
        let entries = log::read(&place.store, &place.queue, after, 1_000).await?;
        let Some(last) = entries.last() else { return Ok(late) };
        after = Some(last.id);
        let groups = entries.iter().flat_map(|entry| &entry.attempts);
        late += u64::try_from(groups.map(|group| revisions.late(group).len()).sum::<usize>())?;
    }
}
