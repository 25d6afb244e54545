//! One queue of a worker: session after session, each begun, kept and ended here.

use std::{
    sync::{Arc, Mutex, atomic::AtomicU64},
    time::Duration,
};

use switchback_common::{
    Queue, SessionId, Store, StoreError, Version,
    clock::Moment,
    store::{
        backoff::Backoff,
        grumble::Grumble,
        session::{Joined, SessionRecord, SessionStore},
    },
};
use switchback_gates::GateView;
use tokio::{
    sync::{Notify, mpsc},
    task::{AbortHandle, JoinSet},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    blocks::Blocks,
    cancel::Cancels,
    config::WorkerConfig,
    health::{Health, Pulse},
    loops::{
        claimer, driver, finder, gatekeeper, limiter,
        prober::{self, Probes},
        promoter, reaper,
        renewer::Renewer,
        reporter, scheduler, settler, throttler, trimmer, watchman,
    },
    outcome::Message,
    pace::Pacer,
    pushes::Pushes,
    reader::GateReader,
    registry::QueueSpec,
    retries::Retries,
    running::Running,
    session::{Floors, Held, RedisClock, Session},
    slots::Slots,
    starts::StartBoard,
    stops::Stops,
    streams::Streams,
    suspects::{Company, Suspects},
};

const CLAIMERS: usize = 2;
const NO_GROUP: &str = "the consumer group `workers` is gone but tasks are there: holding. Create it again with XGROUP CREATE … workers 0 (runs retained tasks again) or $ (skips what waits)";
/// How often a queue that waits for a person says so.
const SAY_EVERY: Duration = Duration::from_secs(60);
const RETRY: Backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(2));
/// A session that ended sooner than this ended for what may end the next one, too.
const SHORT: Duration = Duration::from_secs(10);

/// What every queue of a worker needs.
#[derive(Debug, Clone)]
pub(crate) struct Shared {
    pub(crate) store: Store,
    pub(crate) config: Arc<WorkerConfig>,
    pub(crate) renewer: Arc<Renewer>,
    pub(crate) pushes: Pushes,
    pub(crate) health: Arc<Health>,
    pub(crate) company: Arc<Company>,
    pub(crate) stop: CancellationToken,
    pub(crate) stop_now: CancellationToken,
}

/// Serves one queue until the worker stops.
pub(crate) async fn serve(shared: Shared, spec: Arc<QueueSpec>) {
    let queue = Queue::new(shared.config.namespace.clone(), spec.task_type.clone());
    // Outlives sessions: a gate that goes backwards is noticed by whoever obeyed the later revision.
    let view = Arc::new(GateView::new(&shared.store, &queue));
    let mut endings = JoinSet::new();
    let mut retry = RETRY;
    while !shared.stop.is_cancelled() {
        let Some((session, messages)) = begin(&shared, &spec, &queue, &view).await else {
            break;
        };
        let began = Moment::now();
        let mut loops = JoinSet::new();
        let settler = endings.spawn(settler::run(Arc::clone(&session), messages));
        let keepers = [
            endings.spawn(gatekeeper::run(Arc::clone(&session))),
            endings.spawn(throttler::run(Arc::clone(&session))),
        ];
        endings.spawn(reporter::run(Arc::clone(&session)));
        for n in 0..CLAIMERS {
            loops.spawn(claimer::run(Arc::clone(&session), n == 0));
        }
        loops.spawn(prober::run(Arc::clone(&session)));
        loops.spawn(promoter::run(Arc::clone(&session)));
        loops.spawn(reaper::run(Arc::clone(&session)));
        loops.spawn(finder::run(Arc::clone(&session)));
        loops.spawn(limiter::run(Arc::clone(&session)));
        loops.spawn(trimmer::run(Arc::clone(&session)));
        loops.spawn(scheduler::run(Arc::clone(&session)));
        loops.spawn(watchman::run(Arc::clone(&session)));
        loops.spawn(driver::run(Arc::clone(&session)));
        tokio::select! {
            biased;
            () = shared.stop.cancelled() => {}
            () = session.closing.cancelled() => {}
            // P7: a duty that ends by itself is a bug of ours; a new session has all of them again.
            Some(ended) = loops.join_next() => tracing::error!(
                queue.name = %queue, session = %session.id, ?ended, "a duty of this session broke; beginning a new session"
            ),
        }
        // A lost session winds down beside its successor; a stopping worker waits for it below.
        endings.spawn(end(shared.clone(), session, loops, keepers, settler));
        while endings.try_join_next().is_some() {} // those that are over
        if began.elapsed() >= SHORT {
            retry.reset();
            continue;
        }
        // P10: each session costs Redis a few scripts, and its log a few entries.
        tokio::select! {
            () = tokio::time::sleep(retry.next_wait()) => {}
            () = shared.stop.cancelled() => {}
        }
    }
    while endings.join_next().await.is_some() {}
}

async fn begin(
    shared: &Shared,
    spec: &Arc<QueueSpec>,
    queue: &Queue,
    view: &Arc<GateView>,
) -> Option<(Arc<Session>, mpsc::UnboundedReceiver<Message>)> {
    let (mut retry, mut grumble) = (RETRY, Grumble::default());
    let mut said: Option<(Moment, String)> = None;
    loop {
        match try_begin(shared, spec, queue, view).await {
            Ok(Ok(begun)) => return Some(begun),
            // P7: this queue waits for a person; the others of this process go on. It tries again by itself, so that
            // nobody has to find and restart every worker once that person has acted.
            Ok(Err(why)) => {
                let news = said
                    .as_ref()
                    .is_none_or(|(at, last)| *last != why || at.elapsed() >= SAY_EVERY);
                if news {
                    tracing::error!(queue.name = %queue, "{why}");
                    said = Some((Moment::now(), why.clone()));
                }
                shared.health.waiting(Some(&queue.to_string()), &why);
            }
            Err(error) => {
                if grumble.is_news() {
                    tracing::warn!(queue.name = %queue, %error, "cannot begin a session; trying again and again");
                }
                shared.health.waiting(Some(&queue.to_string()), &error.to_string());
            }
        }
        tokio::select! {
            () = tokio::time::sleep(retry.next_wait()) => {}
            () = shared.stop.cancelled() => return None,
        }
    }
}

/// `Ok(Err(why))`: not before a person has acted.
async fn try_begin(
    shared: &Shared,
    spec: &Arc<QueueSpec>,
    queue: &Queue,
    view: &Arc<GateView>,
) -> Result<Result<(Arc<Session>, mpsc::UnboundedReceiver<Message>), String>, StoreError> {
    let config = &shared.config;
    let id = SessionId::random();
    let sessions = SessionStore::new(&shared.store, queue);
    let sent = Moment::now();
    match sessions
        .join_with(&id, config.lease, &record(config, spec), config.builds)
        .await?
    {
        Joined::NoGroup => return Ok(Err(NO_GROUP.to_owned())),
        Joined::AnotherBuild {
            version,
            known,
            retired,
        } => return Ok(Err(another_build(&config.build, &version, &known, retired))),
        Joined::Yes { seeded: true } => {
            tracing::info!(queue.name = %queue, "new queue: its gate begins with {} active", spec.versions[0]);
        }
        Joined::Yes { seeded: false } => {}
    }
    let (outcomes, messages) = mpsc::unbounded_channel();
    let lease_until = sent + config.lease.saturating_sub(config.lease_margin());
    let board = StartBoard::new(config.start_ttl, lease_until);
    #[cfg(feature = "faults")]
    let board = if config.faults.skip_start_check {
        board.unchecked()
    } else {
        board
    };
    let session = Arc::new(Session {
        store: shared.store.clone(),
        sessions,
        queue: queue.clone(),
        config: Arc::clone(config),
        spec: Arc::clone(spec),
        view: Arc::clone(view),
        reader: GateReader::new(),
        board,
        streams: Streams::new(&shared.store, queue, &spec.versions),
        slots: Slots::new(spec.concurrency),
        company: Arc::clone(&shared.company),
        suspects: Suspects::new(spec.concurrency),
        pacer: Pacer::default(),
        retries: Retries::new(&spec.retry),
        held: Held::default(),
        cancels: Cancels::new(),
        stops: Stops::new(),
        blocks: Blocks::default(),
        running: Running::default(),
        reported: Notify::new(),
        clock: RedisClock::new(),
        floors: Floors::default(),
        outcomes,
        attempts: TaskTracker::new(),
        tip: (AtomicU64::new(0), AtomicU64::new(0)),
        claims_out: Mutex::default(),
        gate_touched: Notify::new(),
        ruling_changed: Notify::new(),
        busy: Notify::new(),
        retry_scheduled: Notify::new(),
        died: Notify::new(),
        look_for_lost: Notify::new(),
        probes: Probes::default(),
        lease_known: Notify::new(),
        closing: CancellationToken::new(),
        cancel_handlers: CancellationToken::new(),
        abandon: CancellationToken::new(),
        pulse: Pulse::new(),
        complained: Mutex::default(),
        reap_not_before: Mutex::new(Moment::now() + config.reap_grace()),
        id,
    });
    shared.renewer.add(&session);
    shared.health.begun(&session);
    shared.pushes.add(&session);
    tracing::info!(
        queue.name = %queue, session = %session.id, versions = ?spec.versions, concurrency = spec.concurrency,
        "session begun"
    );
    Ok(Ok((session, messages)))
}

/// What a worker says that may not bring its build under a label that has one.
fn another_build(build: &str, version: &Version, known: &str, retired: bool) -> String {
    let (build, known) = (build.escape_debug(), known.escape_debug());
    let what = match retired {
        true => format!("version {version} is retired, and was build \"{known}\", not \"{build}\""),
        false => format!("version {version} is known as build \"{known}\", and this worker brings build \"{build}\""),
    };
    let way_out = match retired {
        true => "give the new code a label of its own",
        false => "give the new code a label of its own, or set allow_another_build if it is the same code",
    };
    format!("{what}: this queue is not served. What to do: {way_out}, and start this worker again")
}

fn record(config: &WorkerConfig, spec: &QueueSpec) -> SessionRecord {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    SessionRecord {
        host,
        pid: std::process::id(),
        build: config.build.clone(),
        versions: spec.versions.clone(),
        concurrency: spec.concurrency,
        started_ms: wall_ms(),
    }
}

/// Ends a session. The order is the point: nobody claims, then everybody finishes, then all is settled, and only
/// then does the session say that it is over.
async fn end(
    shared: Shared,
    session: Arc<Session>,
    mut loops: JoinSet<()>,
    keepers: [AbortHandle; 2],
    settler: AbortHandle,
) {
    session.closing.cancel();
    let finish = async {
        while loops.join_next().await.is_some() {}
        session.attempts.close();
        session.attempts.wait().await;
    };
    let cut_short = async {
        grace(&shared, &session).await;
        session.tell_handlers_to_end();
        session.abandon.cancel();
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = finish => {}
        () = cut_short => {}
    }
    keepers.iter().for_each(AbortHandle::abort);
    let _ = session.outcomes.send(Message::Close);
    tokio::select! {
        () = session.settled() => {}
        () = given_up(&shared, &session) => settler.abort(),
    }
    if !session.board.is_lost() {
        // From here on the renewer has nothing to keep, or to bring back.
        session.board.lose();
        let keys = session.streams.own().into_iter().map(|s| s.key).collect::<Vec<_>>();
        if let Err(error) = session.sessions.leave(&session.id, &keys, "stopped").await {
            tracing::warn!(queue.name = %session.queue, %error, "cannot say goodbye; the lease will run out");
        }
    }
    tracing::info!(queue.name = %session.queue, session = %session.id, "session ended");
}

/// Passes when handlers have had time enough to end: after a stop, or after the session was lost and they were told.
async fn grace(shared: &Shared, session: &Session) {
    tokio::select! {
        () = shared.stop.cancelled() => {}
        () = session.cancel_handlers.cancelled() => {}
    }
    tokio::select! {
        () = tokio::time::sleep(session.config.grace) => {
            tracing::warn!(queue.name = %session.queue, "grace is over: what still runs is dropped, and its tasks run again");
        }
        () = shared.stop_now.cancelled() => {}
    }
}

/// P10: passes when a stopping worker need not try any longer to settle: no Redis for the length of a lease, and what it
/// holds is somebody else's.
async fn given_up(shared: &Shared, session: &Session) {
    shared.stop.cancelled().await;
    tokio::time::sleep(session.config.lease).await;
    tracing::error!(
        queue.name = %session.queue, session = %session.id, results = session.slots.unsettled(),
        "Redis does not take the last results; they are given up, and the tasks run again elsewhere"
    );
}

impl Session {
    /// Waits until the settler has nothing left.
    async fn settled(&self) {
        loop {
            let freed = self.slots.freed.notified();
            if self.slots.unsettled() == 0 {
                return;
            }
            freed.await;
        }
    }

    /// Takes note of a push.
    pub(crate) fn touched(&self) {
        // P3: what was read before the push may be stale.
        self.board.mark_stale();
        self.gate_touched.notify_one();
    }
}

/// Milliseconds since 1970, for people to read; nothing is ordered by it.
fn wall_ms() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000 + u64::try_from(now.tv_nsec).unwrap_or(0) / 1_000_000
}
