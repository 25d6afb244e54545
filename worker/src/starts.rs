//! The start check: the one place where an attempt is allowed to begin.
//!
//! P3 and P4 live here. Everything that may forbid a start — a newer revision, a push, a lease that runs out, a
//! lost session — is written to this board; every start reads it, under one lock, immediately before the handler
//! is first polled.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use switchback_common::{Version, clock::Moment};

/// What decides whether an attempt may begin.
#[derive(Debug)]
pub(crate) struct StartBoard {
    start_ttl: Duration,
    #[cfg(feature = "faults")]
    enforce: bool,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Starts decided under an older revision are forbidden.
    rev: u64,
    /// Gate reads sent before this are stale.
    stale_before: Moment,
    /// The session counts as alive until then.
    lease_until: Moment,
    /// The session's tasks were given to others. Irrevocable.
    lost: bool,
    /// Begun and not settled: what may still come of an attempt is in Redis when it is not counted any more.
    running: BTreeMap<Version, u32>,
    /// Somebody waits for the last of these.
    awaited: Vec<Version>,
}

/// Why an attempt may not begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The gate must be read again.
    Stale,
    /// The lease must be renewed first.
    LeaseUncertain,
    /// A suspect is alone in this process, or wants to be.
    Alone,
    /// The session is over.
    Lost,
}

impl StartBoard {
    pub(crate) fn new(start_ttl: Duration, lease_until: Moment) -> Self {
        Self {
            start_ttl,
            #[cfg(feature = "faults")]
            enforce: true,
            state: Mutex::new(State {
                rev: 0,
                stale_before: Moment::long_ago(),
                lease_until,
                lost: false,
                running: BTreeMap::new(),
                awaited: Vec::new(),
            }),
        }
    }

    /// Fault for tests: let everything start.
    #[cfg(feature = "faults")]
    pub(crate) fn unchecked(mut self) -> Self {
        self.enforce = false;
        self
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins an attempt on `version` decided under revision `rev` by a gate read sent at `sent`.
    ///
    /// # Errors
    /// Why it may not begin.
    pub(crate) fn begin(&self, rev: u64, sent: Moment, version: &Version) -> Result<Moment, Refusal> {
        let mut state = self.state();
        let now = Moment::now();
        #[cfg(feature = "faults")]
        let enforce = self.enforce;
        #[cfg(not(feature = "faults"))]
        let enforce = true;
        if enforce {
            // P4: a session that was lost starts nothing.
            if state.lost {
                return Err(Refusal::Lost);
            }
            // P3: the read must be young, newer than any push, and of a revision nobody has overtaken.
            if now.since(sent) >= self.start_ttl || sent < state.stale_before || rev < state.rev {
                return Err(Refusal::Stale);
            }
            if now >= state.lease_until {
                return Err(Refusal::LeaseUncertain);
            }
        }
        match state.running.get_mut(version) {
            Some(n) => *n += 1,
            None => {
                state.running.insert(version.clone(), 1);
            }
        }
        Ok(now)
    }

    /// Ends attempts that had begun. Returns whether one of them was the last of a version that somebody waits for.
    pub(crate) fn end<'a>(&self, versions: impl Iterator<Item = &'a Version>) -> bool {
        let mut state = self.state();
        let State { running, awaited, .. } = &mut *state;
        let mut last = false;
        for version in versions {
            if let Some(n) = running.get_mut(version) {
                *n = n.saturating_sub(1);
                last |= *n == 0 && awaited.contains(version);
            }
        }
        last
    }

    /// Waits for the last attempt of every version of which `goes_on` does not say that more may start. Returns whether
    /// one of those runs.
    pub(crate) fn await_last(&self, goes_on: impl Fn(&Version) -> bool) -> bool {
        let mut state = self.state();
        let State { running, awaited, .. } = &mut *state;
        let withdrawn = running.iter().filter(|(version, n)| **n > 0 && !goes_on(version));
        *awaited = withdrawn.map(|(version, _)| version.clone()).collect();
        !awaited.is_empty()
    }

    /// Forbids starts decided under a revision before `rev`. Returns whether that is news.
    pub(crate) fn obey(&self, rev: u64) -> bool {
        let mut state = self.state();
        let news = rev > state.rev;
        state.rev = state.rev.max(rev);
        news
    }

    /// Forbids starts by gate reads that were sent before now.
    pub(crate) fn mark_stale(&self) {
        self.state().stale_before = Moment::now();
    }

    /// The lease is known to run until `until`. Earlier knowledge is replaced.
    pub(crate) fn lease_until(&self, until: Moment) {
        self.state().lease_until = until;
    }

    /// Whether the lease counts as alive now.
    pub(crate) fn lease_alive(&self) -> bool {
        let state = self.state();
        !state.lost && Moment::now() < state.lease_until
    }

    /// How long the lease is known to run from now.
    pub(crate) fn lease_left(&self) -> Duration {
        let state = self.state();
        if state.lost {
            Duration::ZERO
        } else {
            state.lease_until.since(Moment::now())
        }
    }

    /// The session is over.
    pub(crate) fn lose(&self) {
        self.state().lost = true;
    }

    /// Whether the session is over.
    pub(crate) fn is_lost(&self) -> bool {
        self.state().lost
    }

    /// The revision in force here and what runs, for publishing: read together, so that an attempt that passed the
    /// check under an older revision is in the count.
    pub(crate) fn report(&self) -> (u64, BTreeMap<Version, u32>) {
        let state = self.state();
        let running = state.running.iter().filter(|(_, n)| **n > 0);
        (state.rev, running.map(|(v, n)| (v.clone(), *n)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn board() -> StartBoard {
        StartBoard::new(Duration::from_secs(60), Moment::now() + Duration::from_secs(60))
    }

    #[test]
    fn each_condition_alone_forbids_a_start() {
        let v1: Version = "v1".parse().unwrap();
        let now = Moment::now();
        assert!(board().begin(1, now, &v1).is_ok());

        let board_ = board();
        assert_eq!(
            board_.begin(1, now - Duration::from_secs(60), &v1),
            Err(Refusal::Stale),
            "too old"
        );
        board_.mark_stale();
        assert_eq!(board_.begin(1, now, &v1), Err(Refusal::Stale), "a push came since");
        assert!(board_.begin(1, Moment::now(), &v1).is_ok());
        assert!(board_.obey(2));
        assert_eq!(board_.begin(1, Moment::now(), &v1), Err(Refusal::Stale), "overtaken");
        assert!(board_.begin(2, Moment::now(), &v1).is_ok());
        board_.lease_until(Moment::now());
        assert_eq!(board_.begin(2, Moment::now(), &v1), Err(Refusal::LeaseUncertain));
        board_.lose();
        assert_eq!(board_.begin(2, Moment::now(), &v1), Err(Refusal::Lost));
    }

    #[test]
    fn what_runs_is_counted_per_version() {
        let (v1, v2): (Version, Version) = ("v1".parse().unwrap(), "v2".parse().unwrap());
        let board = board();
        board.begin(0, Moment::now(), &v1).unwrap();
        board.begin(0, Moment::now(), &v2).unwrap();
        board.begin(0, Moment::now(), &v2).unwrap();
        assert!(!board.end([&v1].into_iter()), "nobody waits for it");
        assert_eq!(board.report(), (0, [(v2.clone(), 2)].into()));
        assert!(board.await_last(|version| *version == v1));
        assert!(!board.end([&v2].into_iter()), "one more runs");
        assert!(board.end([&v2].into_iter()), "the last one");
        assert!(!board.await_last(|version| *version == v1));
    }
}
