//! One session on one queue: what its loops share.

use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use switchback_common::{
    Queue, SessionId, Store, StreamId, Version,
    clock::Moment,
    id::stream_salt,
    store::{keyspace::Key, session::SessionStore},
};
use switchback_gates::GateView;
use tokio::sync::{Notify, mpsc};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    attempt::{GateReader, Message},
    config::WorkerConfig,
    registry::QueueSpec,
    starts::StartBoard,
};

const COMPLAIN_EVERY: Duration = Duration::from_secs(5);
/// Place of the main stream in the session's list of streams.
pub(crate) const MAIN: usize = 0;
/// Place of the head stream. Lanes of the worker's own versions follow, in their order, then any lane handed to.
pub(crate) const HEAD: usize = 1;

/// One stream the session reads or moves to.
#[derive(Debug, Clone)]
pub(crate) struct StreamInfo {
    pub(crate) key: String,
    pub(crate) salt: u32,
    /// `main`, `head` or `lane:<version>`, for the log.
    pub(crate) label: Arc<str>,
}

/// Streams by place. Places never change; lanes handed to are added at the end.
#[derive(Debug)]
pub(crate) struct Streams {
    store: Store,
    queue: Queue,
    list: RwLock<Vec<StreamInfo>>,
    own: usize,
}

impl Streams {
    pub(crate) fn new(store: &Store, queue: &Queue, versions: &[Version]) -> Self {
        let mut list = vec![
            info(store, &Key::Stream(queue.clone()), "main".to_owned()),
            info(store, &Key::Head(queue.clone()), "head".to_owned()),
        ];
        list.extend(versions.iter().map(|v| lane(store, queue, v)));
        Self {
            store: store.clone(),
            queue: queue.clone(),
            own: list.len(),
            list: RwLock::new(list),
        }
    }

    pub(crate) fn get(&self, place: usize) -> StreamInfo {
        self.list.read().unwrap_or_else(PoisonError::into_inner)[place].clone()
    }

    /// The streams this session reads.
    pub(crate) fn own(&self) -> Vec<StreamInfo> {
        self.list.read().unwrap_or_else(PoisonError::into_inner)[..self.own].to_vec()
    }

    pub(crate) fn keys(&self) -> Vec<String> {
        let list = self.list.read().unwrap_or_else(PoisonError::into_inner);
        list.iter().map(|s| s.key.clone()).collect()
    }

    /// What the log calls each stream, by place.
    pub(crate) fn labels(&self) -> Vec<Arc<str>> {
        let list = self.list.read().unwrap_or_else(PoisonError::into_inner);
        list.iter().map(|s| Arc::clone(&s.label)).collect()
    }

    pub(crate) fn len(&self) -> usize {
        self.list.read().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// The place of the lane of `version`, made if need be.
    pub(crate) fn lane(&self, version: &Version) -> usize {
        let new = lane(&self.store, &self.queue, version);
        let mut list = self.list.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = list.iter().position(|s| s.key == new.key) {
            return place;
        }
        list.push(new);
        list.len() - 1
    }
}

fn info(store: &Store, key: &Key, label: String) -> StreamInfo {
    let key = store.keyspace().render(key);
    StreamInfo {
        salt: stream_salt(&key),
        key,
        label: Arc::from(label),
    }
}

fn lane(store: &Store, queue: &Queue, version: &Version) -> StreamInfo {
    info(
        store,
        &Key::Lane(queue.clone(), version.clone()),
        format!("lane:{version}"),
    )
}

/// Free slots: tasks are claimed only when they can start.
#[derive(Debug)]
pub(crate) struct Slots {
    limit: usize,
    running: AtomicUsize,
    unsettled: AtomicUsize,
    /// There are free slots where there were none, or enough for a good claim, or everything is settled.
    pub(crate) freed: Notify,
}

impl Slots {
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            limit,
            running: AtomicUsize::new(0),
            unsettled: AtomicUsize::new(0),
            freed: Notify::new(),
        }
    }

    /// A good claim: half of all slots, so that one half runs while the other is being claimed.
    pub(crate) fn share(&self) -> usize {
        self.limit.div_ceil(2)
    }

    /// P10: outcomes that Redis has not taken yet are bounded, generously.
    fn unsettled_limit(&self) -> usize {
        (self.limit * 4).max(2_000)
    }

    /// How many slots are free now.
    pub(crate) fn free(&self) -> usize {
        let by_running = self.limit.saturating_sub(self.running.load(Ordering::Acquire));
        by_running.min(self.unsettled_limit().saturating_sub(self.unsettled()))
    }

    /// Takes free slots, at most `most` and a [share](Self::share), before a claim is sent: two claimers must not both
    /// count on the same slot.
    pub(crate) fn reserve(&self, most: usize) -> Reserved<'_> {
        let most = most
            .min(self.share())
            .min(self.unsettled_limit().saturating_sub(self.unsettled()));
        let mut count = 0;
        let _ = self
            .running
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |running| {
                count = most.min(self.limit.saturating_sub(running));
                (count > 0).then_some(running + count)
            });
        Reserved { slots: self, count }
    }

    /// Entries came in; each will have an outcome.
    pub(crate) fn claimed(&self, count: usize) {
        self.unsettled.fetch_add(count, Ordering::AcqRel);
    }

    /// A handler ended; its outcome is on its way.
    pub(crate) fn ended(&self) {
        self.give_back(1);
    }

    fn give_back(&self, count: usize) {
        let before = self
            .limit
            .saturating_sub(self.running.fetch_sub(count, Ordering::AcqRel));
        if before == 0 || (before < self.share() && before + count >= self.share()) {
            self.freed.notify_waiters();
        }
    }

    /// Redis has taken the outcomes, or they are given up.
    pub(crate) fn settled(&self, count: usize) {
        let before = self.unsettled.fetch_sub(count, Ordering::AcqRel);
        if before == count || before >= self.unsettled_limit() {
            self.freed.notify_waiters();
        }
    }

    pub(crate) fn unsettled(&self) -> usize {
        self.unsettled.load(Ordering::Acquire)
    }
}

/// Slots taken for a claim. What the claim does not fill goes back when this is dropped.
#[derive(Debug)]
pub(crate) struct Reserved<'a> {
    slots: &'a Slots,
    count: usize,
}

impl Reserved<'_> {
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// Fills one, if there is one left: its attempt gives it back with [`Slots::ended`].
    pub(crate) fn fill(&mut self) -> bool {
        let left = self.count > 0;
        self.count -= usize::from(left);
        left
    }
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        if self.count > 0 {
            self.slots.give_back(self.count);
        }
    }
}

/// Entries this session holds: from the claim to the reply of their settle.
#[derive(Debug, Default)]
pub(crate) struct Held(Mutex<HashSet<(usize, StreamId)>>);

impl Held {
    fn map(&self) -> MutexGuard<'_, HashSet<(usize, StreamId)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Holds what is not held yet, and tells which that was.
    pub(crate) fn add(&self, ids: impl IntoIterator<Item = (usize, StreamId)>) -> Vec<bool> {
        let mut map = self.map();
        ids.into_iter().map(|id| map.insert(id)).collect()
    }

    pub(crate) fn remove(&self, ids: impl IntoIterator<Item = (usize, StreamId)>) {
        let mut map = self.map();
        for id in ids {
            map.remove(&id);
        }
    }

    pub(crate) fn contains(&self, id: (usize, StreamId)) -> bool {
        self.map().contains(&id)
    }
}

/// Redis's clock as last read, carried on by ours.
#[derive(Debug)]
pub(crate) struct RedisClock(Mutex<(Moment, u64)>);

impl RedisClock {
    pub(crate) fn new() -> Self {
        Self(Mutex::new((Moment::now(), 0)))
    }

    pub(crate) fn set(&self, sent: Moment, time_us: u64) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = (sent, time_us);
    }

    pub(crate) fn now_us(&self) -> u64 {
        let (at, time_us) = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        time_us + u64::try_from(at.elapsed().as_micros()).unwrap_or(0)
    }
}

/// How far each stream may be trimmed, by place; `None` until that is known.
#[derive(Debug, Default)]
pub(crate) struct Floors(Mutex<Vec<(usize, StreamId)>>);

impl Floors {
    pub(crate) fn set(&self, floors: Vec<(usize, StreamId)>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = floors;
    }

    pub(crate) fn get(&self) -> Vec<(usize, StreamId)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// What the loops of one session share.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) id: SessionId,
    pub(crate) store: Store,
    pub(crate) sessions: SessionStore,
    pub(crate) queue: Queue,
    pub(crate) config: Arc<WorkerConfig>,
    pub(crate) spec: Arc<QueueSpec>,
    pub(crate) view: Arc<GateView>,
    pub(crate) reader: GateReader,
    pub(crate) board: StartBoard,
    pub(crate) streams: Streams,
    pub(crate) slots: Slots,
    pub(crate) held: Held,
    pub(crate) clock: RedisClock,
    pub(crate) floors: Floors,
    pub(crate) outcomes: mpsc::UnboundedSender<Message>,
    pub(crate) attempts: TaskTracker,
    /// Newest main-stream entry delivered to this session, as ms and seq.
    pub(crate) tip: (AtomicU64, AtomicU64),
    /// When the oldest claim that is still out was sent, in ns; `u64::MAX` if none is.
    pub(crate) claims_out: Mutex<Vec<Moment>>,
    /// A gate was touched, or a ruling changed: look.
    pub(crate) gate_touched: Notify,
    /// The ruling changed: claimers choose their streams anew.
    pub(crate) ruling_changed: Notify,
    /// There is more work than one claim took: a second claimer may help.
    pub(crate) busy: Notify,
    /// A retry was scheduled.
    pub(crate) retry_scheduled: Notify,
    /// Something may have been claimed and never seen: look now.
    pub(crate) look_for_lost: Notify,
    /// The renewer spoke: lease alive, or session lost.
    pub(crate) lease_known: Notify,
    /// No more claims. The session ends in good order.
    pub(crate) closing: CancellationToken,
    /// Handlers are told to end: their tokens are children of this one.
    pub(crate) cancel_handlers: CancellationToken,
    /// Whoever still runs is dropped and given back.
    pub(crate) abandon: CancellationToken,
    /// When it was last said that gate reads take too long.
    pub(crate) complained: Mutex<Option<Moment>>,
    /// Nothing may be reaped before.
    pub(crate) reap_not_before: Mutex<Moment>,
}

impl Session {
    pub(crate) fn note_tip(&self, id: StreamId) {
        // Only ever grows; a torn pair would only name an id nearby, and it is evidence, not state.
        if id.ms >= self.tip.0.load(Ordering::Relaxed) {
            self.tip.0.store(id.ms, Ordering::Relaxed);
            self.tip.1.store(id.seq, Ordering::Relaxed);
        }
    }

    pub(crate) fn tip(&self) -> StreamId {
        StreamId {
            ms: self.tip.0.load(Ordering::Relaxed),
            seq: self.tip.1.load(Ordering::Relaxed),
        }
    }

    /// Takes in what a gate read said about the lease, and about Redis's clock.
    pub(crate) fn note_read(&self, sent: Moment, time_us: u64, lease: Option<Duration>) {
        #[cfg(feature = "faults")]
        let lease = lease.or_else(|| self.config.faults.ignore_loss.then_some(self.config.lease));
        // P4: counted from sending, less a margin: never longer than Redis will have it. A lease that is gone forbids
        // starts, whatever the last renewal promised, until the renewer knows what became of the session.
        self.board.lease_until(match lease {
            Some(left) => sent + left.saturating_sub(self.config.lease_margin()),
            None => Moment::long_ago(),
        });
        self.clock.set(sent, time_us);
    }

    /// Says, now and then, that a fresh gate read was too old to start anything under: without it a slow network looks
    /// like an idle worker (P8).
    pub(crate) fn note_slow_read(&self, took: Duration) {
        if took < self.config.start_ttl {
            return;
        }
        let mut complained = self.complained.lock().unwrap_or_else(PoisonError::into_inner);
        if complained.is_none_or(|at| at.elapsed() >= COMPLAIN_EVERY) {
            *complained = Some(Moment::now());
            tracing::error!(
                queue.name = %self.queue, read.ms = took.as_millis(), start_ttl.ms = self.config.start_ttl.as_millis(),
                "gate reads take longer than start_ttl: tasks cannot start. Bring Redis nearer, or raise start_ttl"
            );
        }
    }

    /// Keeps the reaper's hands off for a while: our own view of leases may be what is wrong.
    pub(crate) fn postpone_reaping(&self) {
        *self.reap_not_before.lock().unwrap_or_else(PoisonError::into_inner) = Moment::now() + self.config.reap_grace();
    }

    /// Ends the session at once: its tasks are somebody else's.
    pub(crate) fn lose(&self) {
        #[cfg(feature = "faults")]
        if self.config.faults.ignore_loss {
            return;
        }
        if !self.board.is_lost() {
            tracing::error!(
                queue.name = %self.queue, session = %self.id,
                "this session was lost (its lease ran out and its tasks were given to others); starting a new one"
            );
        }
        self.board.lose();
        self.closing.cancel();
        self.cancel_handlers.cancel();
        self.lease_known.notify_waiters();
    }

    pub(crate) fn claim_sent(&self, at: Moment) {
        self.claims_out.lock().unwrap_or_else(PoisonError::into_inner).push(at);
    }

    pub(crate) fn claim_returned(&self, at: Moment) {
        let mut out = self.claims_out.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = out.iter().position(|m| *m == at) {
            out.swap_remove(place);
        }
    }

    /// How long the oldest claim still out has been out.
    pub(crate) fn oldest_claim(&self) -> Duration {
        let out = self.claims_out.lock().unwrap_or_else(PoisonError::into_inner);
        out.iter().min().map_or(Duration::ZERO, |m| m.elapsed())
    }
}
