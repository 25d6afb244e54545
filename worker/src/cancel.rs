//! Cancelled tasks: the marks as this session knows them, and whom they stop.
//!
//! P3: a mark is fenced like the gate. Whoever cancels changes `cancels` of the gate state in the call that writes the mark,
//! and that value is part of every gate read. A read that shows another value than is known here decides nothing until the
//! marks were read *after* it; so no task starts under a gate read that came after its cancellation.

use std::{
    collections::HashMap,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use switchback_common::{
    StoreError, TaskId, Version,
    clock::Moment,
    envelope::Envelope,
    store::cancel::{MAX_MARKS, Mark, marks},
};
use tokio_util::sync::CancellationToken;

use crate::session::Session;

/// How long a handler that was told to end may take, unless the worker's grace is shorter.
const GRACE: Duration = Duration::from_secs(5);
/// No value was seen yet: the first gate read of a session brings the marks.
const NONE: u64 = u64::MAX;

/// The marks that this session knows.
#[derive(Debug)]
pub(crate) struct Cancels {
    /// The value of `cancels` that the marks belong to.
    known: AtomicU64,
    /// How many marks there are: a task that is not cancelled looks at nothing else.
    count: AtomicUsize,
    marks: Mutex<HashMap<TaskId, Mark>>,
    /// When the marks were last asked for. One at a time asks.
    asked: tokio::sync::Mutex<Moment>,
}

impl Cancels {
    pub(crate) fn new() -> Self {
        Self {
            known: AtomicU64::new(NONE),
            count: AtomicUsize::new(0),
            marks: Mutex::default(),
            asked: tokio::sync::Mutex::new(Moment::long_ago()),
        }
    }

    fn marks(&self) -> MutexGuard<'_, HashMap<TaskId, Mark>> {
        self.marks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The task's mark, if one speaks of it: an id that was enqueued again after the mark is a new task.
    fn mark_of(&self, id: &TaskId, enqueued_at_ms: u64) -> Option<Mark> {
        if self.count.load(Ordering::Acquire) == 0 {
            return None;
        }
        let mark = *self.marks().get(id)?;
        (enqueued_at_ms.saturating_mul(1_000) <= mark.at_us).then_some(mark)
    }

    /// Whether a claimed task must not start. Its mark is used up here: settling takes it away in Redis, or finds that it
    /// is gone already and puts the task back.
    pub(crate) fn forbids(&self, task: &Envelope) -> bool {
        let Some(mark) = self.mark_of(&task.id, task.enqueued_at_ms) else {
            return false;
        };
        let started = task.attempt > 0 || task.deaths > 0;
        !(mark.only_unstarted && started) && self.forget(&task.id)
    }

    /// Whether a running task is to end.
    pub(crate) fn stops(&self, id: &TaskId, enqueued_at_ms: u64) -> bool {
        self.mark_of(id, enqueued_at_ms)
            .is_some_and(|mark| !mark.only_unstarted)
    }

    /// Uses a mark up. Always true.
    pub(crate) fn forget(&self, id: &TaskId) -> bool {
        let mut marks = self.marks();
        marks.remove(id);
        self.count.store(marks.len(), Ordering::Release);
        true
    }

    /// Adds marks, or replaces them all.
    fn learn(&self, value: u64, whole: bool, new: Vec<(TaskId, Mark)>) {
        let mut marks = self.marks();
        if whole {
            marks.clear();
        }
        marks.extend(new);
        self.count.store(marks.len(), Ordering::Release);
        self.known.store(value, Ordering::Release);
    }
}

impl Session {
    /// Asks for the marks if the number that a gate read brought is news.
    pub(crate) async fn obey_cancels(&self, value: u64) -> Result<(), StoreError> {
        if self.cancels.known.load(Ordering::Acquire) == value {
            return Ok(());
        }
        self.learn_cancels(value).await
    }

    async fn learn_cancels(&self, value: u64) -> Result<(), StoreError> {
        // The read that showed `value` is in.
        let read = Moment::now();
        let mut asked = self.cancels.asked.lock().await;
        let known = self.cancels.known.load(Ordering::Acquire);
        // P3: shared only if it was asked for after that read.
        if known == value || *asked >= read {
            return Ok(());
        }
        // A value that went back is another Redis's; and what is done with is forgotten now and then (P10).
        let whole = known == NONE || value < known || self.cancels.count.load(Ordering::Acquire) > 2 * MAX_MARKS;
        let now = Moment::now();
        let (value, new) = marks(&self.store, &self.queue, if whole { 0 } else { known }).await?;
        *asked = now;
        self.cancels.learn(value, whole, new);
        // After the marks are known: an attempt enters itself first and looks at the marks then, so one of us sees it.
        self.running.stop(|id, enqueued| self.cancels.stops(id, enqueued));
        Ok(())
    }

    /// Passes when the handler of a cancelled task, or of one that a flip stopped, has had time enough to end after it was
    /// told. `on`: what it runs on, and the revision that said so.
    pub(crate) async fn overstayed(&self, token: &CancellationToken, task: &Envelope, on: (&Version, u64)) {
        token.cancelled().await;
        if self.cancels.stops(&task.id, task.enqueued_at_ms) || self.stops.ends(on.0, on.1) {
            // Boxed: rare, and every attempt would carry its size.
            Box::pin(tokio::time::sleep(self.config.grace.min(GRACE))).await;
        } else {
            // Told for another reason, which has its own grace.
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use switchback_common::StreamId;

    use super::*;

    fn task(id: &str, enqueued_at_ms: u64, attempt: u32) -> Envelope {
        let fields = vec![(b"payload".to_vec(), b"1".to_vec())];
        let mut task = Envelope::decode(0, StreamId::default(), fields, 10).unwrap();
        task.id = id.parse().unwrap();
        (task.enqueued_at_ms, task.attempt) = (enqueued_at_ms, attempt);
        task
    }

    fn mark(at_us: u64, only_unstarted: bool) -> Mark {
        Mark { at_us, only_unstarted }
    }

    #[test]
    fn a_mark_speaks_of_what_was_there_before_it_and_once() {
        let cancels = Cancels::new();
        let marks = vec![
            ("a".parse().unwrap(), mark(5_000, false)),
            ("b".parse().unwrap(), mark(5_000, true)),
        ];
        cancels.learn(1, true, marks);
        assert!(!cancels.forbids(&task("a", 6, 0)), "enqueued again since");
        assert!(!cancels.forbids(&task("c", 5, 0)));
        assert!(!cancels.forbids(&task("b", 5, 1)), "it has started");
        assert!(!cancels.stops(&"b".parse().unwrap(), 5));
        assert!(cancels.forbids(&task("b", 5, 0)));
        assert!(cancels.stops(&"a".parse().unwrap(), 5));
        assert!(cancels.forbids(&task("a", 5, 1)));
        assert!(!cancels.forbids(&task("a", 5, 1)), "used up");
    }
}
