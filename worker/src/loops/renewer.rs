//! The renewer: keeps the leases of this process alive, from a thread that a blocked runtime cannot starve.
//!
//! It also answers for the worker's [`health`]. It stops renewing when the runtime has not ticked for longer than any handler may take: a deadlocked worker must not keep
//! its tasks for ever.

use std::{
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use futures_util::future::join_all;
use switchback_common::{
    Store, StoreError,
    clock::Moment,
    store::{connect::Link, grumble::Grumble, session::Lives},
};
use tokio_util::sync::CancellationToken;

use crate::{
    health::{self, BLOCKED, Door},
    session::Session,
};

/// The thread, and the sessions it renews.
#[derive(Debug)]
pub(crate) struct Renewer {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    sessions: Mutex<Vec<Weak<Session>>>,
    /// When the main runtime last ran a timer, ns.
    ticked: AtomicU64,
    stop: CancellationToken,
}

impl Shared {
    /// How long the main runtime has not run a timer.
    fn silent(&self) -> Duration {
        Moment::from_nanos(self.ticked.load(Ordering::Acquire)).elapsed()
    }
}

/// Tells the renewer that the runtime lives. Runs until dropped.
pub(crate) async fn tick(ticks: Ticks) {
    loop {
        ticks.0.ticked.store(Moment::now().as_nanos(), Ordering::Release);
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}

/// The handle of [`tick`].
#[derive(Debug)]
pub(crate) struct Ticks(Arc<Shared>);

impl Renewer {
    /// Starts the thread. `give_up`: how long the runtime may be silent. `door`: where to tell how the worker is.
    pub(crate) fn start(
        store: &Store,
        every: Duration,
        give_up: Duration,
        door: Option<Door>,
    ) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            sessions: Mutex::default(),
            ticked: AtomicU64::new(Moment::now().as_nanos()),
            stop: CancellationToken::new(),
        });
        // A runtime of its own: its timers and sockets run whatever the handlers do to theirs.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let thread = {
            let (shared, store) = (Arc::clone(&shared), store.clone());
            std::thread::Builder::new()
                .name("switchback-renewer".to_owned())
                .spawn(move || {
                    // Ends at once, also in the middle of a renewal that Redis does not answer.
                    let renewing = renew_all(&shared, &store, every, give_up);
                    let of_ticks = Arc::clone(&shared);
                    let answering = async {
                        if let Some(door) = door {
                            health::serve(door, move || of_ticks.silent()).await;
                        }
                    };
                    let both = futures_util::future::join(renewing, answering);
                    runtime.block_on(shared.stop.run_until_cancelled(both));
                })?
        };
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    pub(crate) fn ticks(&self) -> Ticks {
        Ticks(Arc::clone(&self.shared))
    }

    /// Renews `session` for as long as it exists.
    pub(crate) fn add(&self, session: &Arc<Session>) {
        self.list().push(Arc::downgrade(session));
    }

    fn list(&self) -> std::sync::MutexGuard<'_, Vec<Weak<Session>>> {
        self.shared.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Renewer {
    fn drop(&mut self) {
        self.shared.stop.cancel();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn renew_all(shared: &Shared, store: &Store, every: Duration, give_up: Duration) {
    let mut link: Option<Link> = None;
    let mut due = Moment::now() + every;
    let (mut warned, mut grumble) = (false, Grumble::default());
    loop {
        tokio::time::sleep(every.min(Duration::from_millis(100))).await;
        if Moment::now() < due {
            continue;
        }
        due = Moment::now() + every;
        let silent = shared.silent();
        let mut sessions: Vec<Arc<Session>> = {
            let mut list = shared.sessions.lock().unwrap_or_else(PoisonError::into_inner);
            list.retain(|s| s.strong_count() > 0);
            list.iter().filter_map(Weak::upgrade).collect()
        };
        sessions.retain(|session| !session.board.is_lost());
        if silent >= BLOCKED && !warned {
            tracing::warn!(
                silent_ms = silent.as_millis(),
                running = running(&sessions),
                "a handler blocks the runtime's threads: use spawn_blocking. Leases are still renewed"
            );
        }
        warned = silent >= BLOCKED;
        if silent >= give_up || sessions.is_empty() {
            continue;
        }
        let current = match link.take() {
            Some(current) => current,
            None => {
                sessions.iter().for_each(|session| session.postpone_reaping());
                match store.link().await {
                    Ok(new) => new,
                    Err(error) => {
                        sessions.iter().for_each(|session| session.pulse.trouble(&error));
                        if grumble.is_news() {
                            tracing::warn!(%error, "cannot renew leases; trying again and again");
                        }
                        continue;
                    }
                }
            }
        };
        // P7: all at once, so that no queue waits for the round trips of the others.
        let answered = join_all(sessions.iter().map(|session| renew(session, &current))).await;
        match answered.into_iter().find_map(Result::err) {
            None => link = Some(current),
            Some(error) if grumble.is_news() => {
                tracing::warn!(%error, "cannot renew leases; trying again and again");
            }
            Some(_) => {}
        }
    }
}

/// What runs now, as `shop/send_email@v2 x3`: the one that blocks is among them. Only the board knows while the runtime
/// stands still.
fn running(sessions: &[Arc<Session>]) -> String {
    let of = |session: &Arc<Session>| {
        let versions = session.board.report().1.into_iter();
        versions
            .map(|(version, n)| format!("{}@{version} x{n}", session.queue))
            .collect::<Vec<_>>()
    };
    sessions.iter().flat_map(of).collect::<Vec<_>>().join(", ")
}

/// Renews one lease, unless Redis does not answer.
async fn renew(session: &Session, link: &Link) -> Result<(), StoreError> {
    let sent = Moment::now();
    let lease = session.config.lease;
    match session.sessions.renew(link, &session.id, lease).await {
        Ok(lives @ (Lives::Yes | Lives::Revived)) => {
            if lives == Lives::Revived || sent.elapsed() >= Duration::from_secs(2) {
                session.postpone_reaping();
            }
            // P4: counted from sending, less a margin.
            session
                .board
                .lease_until(sent + lease.saturating_sub(session.config.lease_margin()));
            session.pulse.answered();
            session.lease_known.notify_waiters();
            Ok(())
        }
        Ok(Lives::Lost) => {
            session.lose();
            Ok(())
        }
        Err(error) => {
            session.postpone_reaping();
            session.pulse.trouble(&error);
            Err(error)
        }
    }
}
