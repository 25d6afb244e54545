//! Attempts that a flip stopped: of which versions, decided under which revisions.
//!
//! P3: a flip with the policy `cancel` or `revoke` changes `stops` of the gate state, which is part of every gate read. A read
//! that shows another value than is known here decides nothing until it is known what that flip stopped; so whatever starts
//! under a read is either not stopped by the flips before it, or is told. Whether a result counts is not decided here but in
//! `settle.lua`, in the step that would make it count: this is only what is known of that.

use std::{
    collections::HashMap,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use switchback_common::{
    StoreError, Version,
    clock::Moment,
    store::{
        log::Ended,
        settle::Fate,
        stops::{Stop, stops},
    },
};

use crate::{ends::given_back, outcome::Outcome, session::Session};

/// What flips stopped, as this session knows it.
#[derive(Debug)]
pub(crate) struct Stops {
    /// The value of `stops` that is known. 0, as in a gate that never stopped anything, needs no reading.
    known: AtomicU64,
    /// How many versions something is known of: nearly always none, and nobody looks further.
    count: AtomicUsize,
    of: Mutex<HashMap<Version, Stop>>,
    /// When it was last asked for. One at a time asks.
    asked: tokio::sync::Mutex<Moment>,
}

impl Stops {
    pub(crate) fn new() -> Self {
        Self {
            known: AtomicU64::new(0),
            count: AtomicUsize::new(0),
            of: Mutex::default(),
            asked: tokio::sync::Mutex::new(Moment::long_ago()),
        }
    }

    fn of(&self) -> MutexGuard<'_, HashMap<Version, Stop>> {
        self.of.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&self, version: &Version) -> Stop {
        if self.count.load(Ordering::Acquire) == 0 {
            return Stop::default();
        }
        self.of().get(version).copied().unwrap_or_default()
    }

    /// Whether an attempt on `version` that was decided under `rev` is to end.
    pub(crate) fn ends(&self, version: &Version, rev: u64) -> bool {
        rev < self.get(version).cancel_rev
    }

    /// Whether the result of an attempt on `version` that was decided under `rev` is refused.
    pub(crate) fn revokes(&self, version: &Version, rev: u64) -> bool {
        rev < self.get(version).min_rev
    }

    /// Never forgets: should Redis lose the flip in a failover, a result that was refused here just runs again.
    fn learn(&self, new: impl IntoIterator<Item = (Version, Stop)>) {
        let mut of = self.of();
        for (version, stop) in new {
            if stop != Stop::default() {
                let known = of.entry(version).or_default();
                known.cancel_rev = known.cancel_rev.max(stop.cancel_rev);
                known.min_rev = known.min_rev.max(stop.min_rev);
            }
        }
        self.count.store(of.len(), Ordering::Release);
    }

    /// What a refused settle told.
    pub(crate) fn learn_revoked(&self, revoked: Vec<(Version, u64)>) {
        let stop = |rev| Stop {
            cancel_rev: rev,
            min_rev: rev,
        };
        self.learn(revoked.into_iter().map(|(version, rev)| (version, stop(rev))));
    }
}

impl Session {
    /// Takes in that a gate read showed `value`: learns what was stopped, and tells the attempts that this speaks of.
    pub(crate) async fn obey_stops(&self, value: u64) -> Result<(), StoreError> {
        if self.stops.known.load(Ordering::Acquire) == value {
            return Ok(());
        }
        // The read that showed `value` is in.
        let read = Moment::now();
        let mut asked = self.stops.asked.lock().await;
        // P3: shared only if it was asked for after that read.
        if self.stops.known.load(Ordering::Acquire) == value || *asked >= read {
            return Ok(());
        }
        let now = Moment::now();
        let versions = &self.spec.versions;
        let (value, found) = stops(&self.store, &self.queue, versions).await?;
        *asked = now;
        self.stops.learn(versions.iter().cloned().zip(found));
        // After it is known: an attempt enters itself first and looks then, so one of us sees the other.
        let told = self.running.stop_decided(|version, rev| self.stops.ends(version, rev));
        self.stops.known.store(value, Ordering::Release);
        if told > 0 {
            tracing::info!(queue.name = %self.queue, attempts = told, "a flip stops what runs on withdrawn versions: handlers are told to end");
        }
        Ok(())
    }

    /// Makes outcomes that were revoked into moves back into line: nothing of such an attempt has an effect, and it does not
    /// count (P6).
    pub(crate) fn take_back_revoked(&self, outcomes: &mut [Outcome]) {
        for outcome in outcomes {
            let Some(ran) = outcome.ran.as_mut().filter(|ran| ran.ended.is_result()) else {
                continue;
            };
            if self.stops.revokes(&ran.version, ran.rev) {
                ran.ended = Ended::Revoked;
                outcome.fate = Some((Fate::Move { to: ran.back }, given_back(ran)));
                outcome.keep = None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_decision_is_not_stopped_and_nothing_is_forgotten() {
        let (v1, v2): (Version, Version) = ("v1".parse().unwrap(), "v2".parse().unwrap());
        let stops = Stops::new();
        assert!(!stops.ends(&v2, 0));
        let at = |cancel_rev, min_rev| Stop { cancel_rev, min_rev };
        stops.learn([(v1.clone(), at(0, 0)), (v2.clone(), at(7, 5))]);
        assert!(stops.ends(&v2, 6) && !stops.ends(&v2, 7));
        assert!(stops.revokes(&v2, 4) && !stops.revokes(&v2, 5));
        assert!(!stops.ends(&v1, 0) && !stops.revokes(&v1, 0));
        stops.learn([(v2.clone(), at(6, 0))]);
        assert!(stops.ends(&v2, 6) && stops.revokes(&v2, 4));
        stops.learn_revoked(vec![(v2.clone(), 9)]);
        assert!(stops.ends(&v2, 8) && stops.revokes(&v2, 8) && !stops.revokes(&v2, 9));
    }
}
