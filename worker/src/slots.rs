//! Slots: how many tasks a session runs at once.

use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;

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
