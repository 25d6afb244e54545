//! Whether a queue has room for more (P10). A plain enqueue stays one command: what is known of the queue is looked up
//! once a second at most, beside the enqueues and not before them, and counted on in between.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use switchback_common::{
    Queue, Store,
    clock::Moment,
    store::{
        connect::Link,
        limits::{self, Fullness},
    },
};
use tokio::task::JoinSet;

use crate::error::EnqueueError;

/// What is known is looked up again when it is older than this,
const FRESH: Duration = Duration::from_secs(1);
/// or when this producer has enqueued so many since.
const LOOK_AFTER: u64 = 10_000;
/// A full queue is looked at again before it is called full, but not more often than this.
const LOOK_WHEN_FULL: Duration = Duration::from_millis(100);
/// How long an enqueue waits for a look.
const PATIENCE: Duration = Duration::from_secs(1);

/// What one producer knows of the room in one queue.
#[derive(Debug, Clone)]
pub(crate) struct Room {
    store: Store,
    queue: Queue,
    known: Arc<Known>,
    /// Held by whoever looks: two looks would take the same tasks off the count.
    looking: Arc<tokio::sync::Mutex<()>>,
    /// Looks beside the enqueues.
    aside: Arc<Mutex<JoinSet<()>>>,
}

#[derive(Debug, Default)]
struct Known {
    seen: Mutex<Option<(Moment, Fullness)>>,
    /// Enqueued by this producer since then.
    since: AtomicU64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// Go on.
    Room,
    /// Go on, and look.
    Stale,
    /// Look first.
    Look,
    /// No room, as far as is freshly known.
    Full(Fullness),
}

impl Known {
    /// Counts `tasks` in, if there is room for them as far as is known.
    fn admit(&self, tasks: u64, just_looked: bool) -> Verdict {
        let Some((at, fullness)) = *self.seen.lock().unwrap_or_else(PoisonError::into_inner) else {
            return Verdict::Look;
        };
        let since = self.since.fetch_add(tasks, Ordering::Relaxed).saturating_add(tasks);
        let waiting = fullness.waiting.saturating_add(since);
        let age = at.elapsed();
        if fullness.limit > 0 && waiting > fullness.limit {
            self.since.fetch_sub(tasks, Ordering::Relaxed);
            return if just_looked || age < LOOK_WHEN_FULL {
                Verdict::Full(Fullness {
                    waiting: waiting - tasks,
                    ..fullness
                })
            } else {
                Verdict::Look
            };
        }
        if age >= FRESH || since >= LOOK_AFTER {
            Verdict::Stale
        } else {
            Verdict::Room
        }
    }

    async fn look(&self, link: &Link, store: &Store, queue: &Queue) {
        let (asked, counted) = (Moment::now(), self.since.load(Ordering::Relaxed));
        let found = match tokio::time::timeout(PATIENCE, limits::fullness(link, store, queue)).await {
            Ok(Ok(found)) => found,
            // The limit guards Redis's memory; a Redis that cannot say answers the enqueue itself with what is wrong.
            Ok(Err(error)) => {
                tracing::debug!(%error, queue.name = %queue, "cannot tell how full the queue is");
                Fullness { limit: 0, waiting: 0 }
            }
            Err(_) => Fullness { limit: 0, waiting: 0 },
        };
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = Some((asked, found));
        // What was enqueued since the question may be in the answer or not: it counts.
        self.since.fetch_sub(counted, Ordering::Relaxed);
    }
}

impl Room {
    pub(crate) fn new(store: &Store, queue: &Queue) -> Self {
        Self {
            store: store.clone(),
            queue: queue.clone(),
            known: Arc::default(),
            looking: Arc::default(),
            aside: Arc::default(),
        }
    }

    /// Lets `tasks` pass, or says that the queue is full: nothing was sent then.
    pub(crate) async fn admit(&self, link: &Link, tasks: usize) -> Result<(), EnqueueError> {
        let tasks = u64::try_from(tasks).unwrap_or(u64::MAX);
        let mut verdict = self.known.admit(tasks, false);
        if verdict == Verdict::Look {
            let _mine = self.looking.lock().await;
            // Whoever waited here may find that another has looked.
            verdict = self.known.admit(tasks, false);
            if verdict == Verdict::Look {
                self.known.look(link, &self.store, &self.queue).await;
                verdict = self.known.admit(tasks, true);
            }
        }
        match verdict {
            Verdict::Full(fullness) => Err(EnqueueError::QueueFull {
                queue: self.queue.clone(),
                waiting: fullness.waiting,
                limit: fullness.limit,
            }),
            Verdict::Stale => {
                self.look_aside(link);
                Ok(())
            }
            Verdict::Room | Verdict::Look => Ok(()),
        }
    }

    /// Looks while the enqueues go on, unless somebody does already.
    fn look_aside(&self, link: &Link) {
        let Ok(mine) = Arc::clone(&self.looking).try_lock_owned() else {
            return;
        };
        let (room, link) = (self.clone(), link.clone());
        let mut aside = self.aside.lock().unwrap_or_else(PoisonError::into_inner);
        while aside.try_join_next().is_some() {} // those that are over
        aside.spawn(async move {
            room.known.look(&link, &room.store, &room.queue).await;
            drop(mine);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn knowing(at: Moment, limit: u64, waiting: u64) -> Known {
        Known {
            seen: Mutex::new(Some((at, Fullness { limit, waiting }))),
            since: AtomicU64::new(0),
        }
    }

    #[test]
    fn own_tasks_count_at_once() {
        let known = knowing(Moment::now() + Duration::from_secs(60), 10, 7);
        assert_eq!(known.admit(2, false), Verdict::Room);
        assert_eq!(
            known.admit(2, false),
            Verdict::Full(Fullness { limit: 10, waiting: 9 }),
            "all or nothing"
        );
        assert_eq!(known.admit(1, false), Verdict::Room, "what was refused does not count");
        assert_eq!(
            known.admit(1, false),
            Verdict::Full(Fullness { limit: 10, waiting: 10 })
        );
    }

    #[test]
    fn what_is_old_is_looked_up_again() {
        assert_eq!(Known::default().admit(1, false), Verdict::Look, "never looked");
        let old = Moment::long_ago();
        assert_eq!(knowing(old, 10, 3).admit(1, false), Verdict::Stale);
        assert_eq!(
            knowing(old, 10, 10).admit(1, false),
            Verdict::Look,
            "nothing is refused for what was once"
        );
        let busy = knowing(Moment::now() + Duration::from_secs(60), 0, 0);
        assert_eq!(busy.admit(LOOK_AFTER - 1, false), Verdict::Room);
        assert_eq!(busy.admit(1, false), Verdict::Stale);
        assert_eq!(
            knowing(Moment::now(), 0, u64::MAX).admit(1, false),
            Verdict::Room,
            "0 is no limit"
        );
    }
}
