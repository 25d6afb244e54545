//! Slots: how many tasks a session runs at once.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use tokio::sync::Notify;

/// Free slots: tasks are claimed only when they can start.
#[derive(Debug)]
pub(crate) struct Slots {
    limit: usize,
    /// Cap and running in one word: whoever lowers the cap must know what runs under the old one, in the same instant.
    state: AtomicU64,
    unsettled: AtomicUsize,
    /// There are free slots where there were none, or enough for a good claim, or everything is settled.
    pub(crate) freed: Notify,
}

/// How many may run, and how many do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct State {
    cap: usize,
    running: usize,
}

impl State {
    fn of(word: u64) -> Self {
        let half = |word: u64| usize::try_from(word & u64::from(u32::MAX)).unwrap_or(usize::MAX);
        Self {
            cap: half(word >> 32),
            running: half(word),
        }
    }

    fn word(self) -> u64 {
        let half = |n: usize| u64::from(u32::try_from(n).unwrap_or(u32::MAX));
        half(self.cap) << 32 | half(self.running)
    }

    fn free(self) -> usize {
        self.cap.saturating_sub(self.running)
    }
}

impl Slots {
    /// At most `limit` slots; none until the first [`Slots::set_cap`].
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            limit,
            state: AtomicU64::new(0),
            unsettled: AtomicUsize::new(0),
            freed: Notify::new(),
        }
    }

    fn state(&self) -> State {
        State::of(self.state.load(Ordering::Acquire))
    }

    /// Changes the state unless `change` says that there is nothing to change; tells the state before.
    fn change(&self, mut change: impl FnMut(State) -> Option<State>) -> State {
        let changed = self.state.fetch_update(Ordering::AcqRel, Ordering::Acquire, |word| {
            change(State::of(word)).map(State::word)
        });
        State::of(changed.unwrap_or_else(|word| word))
    }

    /// The most slots there can be.
    pub(crate) fn limit(&self) -> usize {
        self.limit
    }

    /// How many slots there are from now on; tasks that run beyond it go on to their ends.
    pub(crate) fn set_cap(&self, cap: usize) {
        let cap = cap.min(self.limit);
        if self.change(|state| Some(State { cap, ..state })).cap < cap {
            self.freed.notify_waiters();
        }
    }

    /// Takes away the slots that nothing runs in.
    pub(crate) fn cap_to_running(&self) {
        self.change(|state| {
            Some(State {
                cap: state.running.min(state.cap),
                ..state
            })
        });
    }

    /// The most that may run from now on, until the cap is raised; and what runs of that.
    pub(crate) fn held(&self) -> (usize, usize) {
        let state = self.state();
        (state.cap.max(state.running), state.running)
    }

    /// A good claim: half of all slots, so that one half runs while the other is being claimed.
    pub(crate) fn share(&self) -> usize {
        self.state().cap.div_ceil(2)
    }

    /// P10: outcomes that Redis has not taken yet are bounded, generously.
    fn unsettled_limit(&self) -> usize {
        (self.limit * 4).max(2_000)
    }

    /// How many slots are free now.
    pub(crate) fn free(&self) -> usize {
        let by_running = self.state().free();
        by_running.min(self.unsettled_limit().saturating_sub(self.unsettled()))
    }

    /// Takes free slots, at most `most` and a [share](Self::share), before a claim is sent: two claimers must not both
    /// count on the same slot.
    pub(crate) fn reserve(&self, most: usize) -> Reserved<'_> {
        let most = most
            .min(self.share())
            .min(self.unsettled_limit().saturating_sub(self.unsettled()));
        let mut count = 0;
        self.change(|state| {
            count = most.min(state.free());
            let running = state.running + count;
            (count > 0).then_some(State { running, ..state })
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
        let before = self.change(|state| {
            let running = state.running.saturating_sub(count);
            Some(State { running, ..state })
        });
        let after = State {
            running: before.running.saturating_sub(count),
            ..before
        };
        let share = before.cap.div_ceil(2);
        if before.free() == 0 || (before.free() < share && after.free() >= share) {
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

    /// Keeps at most `most`; the others go back now.
    pub(crate) fn shrink(&mut self, most: usize) {
        if self.count > most {
            self.slots.give_back(self.count - most);
            self.count = most;
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lower_cap_lets_run_what_runs_and_nothing_more() {
        let slots = Slots::new(10);
        assert_eq!(slots.reserve(500).count(), 0, "nothing before the limits are known");
        slots.set_cap(100);
        assert_eq!((slots.free(), slots.share()), (10, 5));
        let mut reserved = slots.reserve(500);
        assert!(reserved.fill() && reserved.fill());
        slots.set_cap(1);
        assert_eq!(slots.held(), (5, 5), "reserved slots count");
        drop(reserved);
        assert_eq!(slots.held(), (2, 2));
        assert_eq!(slots.reserve(1).count(), 0);
        slots.ended();
        slots.ended();
        assert_eq!(slots.held(), (1, 0));
        slots.cap_to_running();
        assert_eq!((slots.held(), slots.free()), ((0, 0), 0));
    }

    // The sum that the fleet books is only right if nobody reserves between looking at what runs and lowering the cap.
    #[test]
    fn lowering_the_cap_and_reserving_exclude_each_other() {
        let slots = Slots::new(8);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    for _ in 0..20_000 {
                        drop(slots.reserve(8));
                    }
                });
            }
            for _ in 0..20_000 {
                slots.set_cap(8);
                slots.cap_to_running();
                let (held, _) = slots.held();
                assert!(
                    slots.held().0 <= held,
                    "what is held only falls until the cap is raised"
                );
            }
        });
    }
}
