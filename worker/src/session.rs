//! One session on one queue: what its loops share.

use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use switchback_common::{
    Queue, SessionId, Store, StoreError, StreamId,
    clock::Moment,
    store::{gate::GateRead, session::SessionStore},
};
use switchback_gates::{GateView, Verdict};
use tokio::sync::{Notify, mpsc};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    blocks::Blocks,
    cancel::Cancels,
    config::WorkerConfig,
    health::Pulse,
    loops::prober::Probes,
    outcome::Message,
    pace::Pacer,
    reader::GateReader,
    registry::QueueSpec,
    retries::Retries,
    running::Running,
    slots::Slots,
    starts::StartBoard,
    stops::Stops,
    streams::Streams,
    suspects::{Company, Suspects},
};

const COMPLAIN_EVERY: Duration = Duration::from_secs(5);

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
    /// Shared with every session of this process.
    pub(crate) company: Arc<Company>,
    pub(crate) suspects: Suspects,
    pub(crate) pacer: Pacer,
    pub(crate) retries: Retries,
    pub(crate) held: Held,
    pub(crate) cancels: Cancels,
    pub(crate) stops: Stops,
    /// What is counted for the rollout that runs.
    pub(crate) blocks: Blocks,
    pub(crate) running: Running,
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
    /// The ruling changed, or there is room for suspects again: claimers choose their streams anew.
    pub(crate) ruling_changed: Notify,
    /// There is more work than one claim took: a second claimer may help.
    pub(crate) busy: Notify,
    /// An attempt said how far it is.
    pub(crate) reported: Notify,
    /// A retry was scheduled, or a task enqueued that is due soon: look at what is delayed.
    pub(crate) retry_scheduled: Notify,
    /// A dead letter was settled: there may be too many now.
    pub(crate) died: Notify,
    /// Something may have been claimed and never seen: look now.
    pub(crate) look_for_lost: Notify,
    /// Somebody asks whether one of our versions can read what waits.
    pub(crate) probes: Probes,
    /// The renewer spoke: lease alive, or session lost.
    pub(crate) lease_known: Notify,
    /// No more claims. The session ends in good order.
    pub(crate) closing: CancellationToken,
    /// Handlers are told to end: see [`Session::tell_handlers_to_end`].
    pub(crate) cancel_handlers: CancellationToken,
    /// Whoever still runs is dropped and given back.
    pub(crate) abandon: CancellationToken,
    /// What it last heard from Redis.
    pub(crate) pulse: Pulse,
    /// When it was last said that gate reads take too long.
    pub(crate) complained: Mutex<Option<Moment>>,
    /// Nothing may be reaped before.
    pub(crate) reap_not_before: Mutex<Moment>,
}

impl Session {
    /// Takes a gate read in, and the marks and flips that it speaks of. Without news it costs two comparisons.
    ///
    /// # Errors
    /// When Redis was needed and did not answer: start nothing.
    pub(crate) async fn obey(&self, read: GateRead) -> Result<Verdict, StoreError> {
        let verdict = self.view.obey(read).await?;
        if let Verdict::Obey(obeyed) = &verdict {
            self.blocks.signalled(obeyed.signals.rollout);
            self.obey_cancels(obeyed.signals.cancels).await?;
            self.obey_stops(obeyed.signals.stops).await?;
        }
        Ok(verdict)
    }

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
        self.tell_handlers_to_end();
        self.lease_known.notify_waiters();
    }

    /// Cancels the tokens of all handlers. The tokens are not children of one: a tree of them is locked as a whole
    /// whenever one begins or ends.
    pub(crate) fn tell_handlers_to_end(&self) {
        self.cancel_handlers.cancel();
        self.running.stop_all();
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
