//! What is counted: first attempts, by version, that ended within a block.

use std::{
    collections::BTreeMap,
    ops::{AddAssign, Sub},
};

use serde::{Deserialize, Serialize};

/// The first attempts of one version that ended in a stretch of time.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Arm {
    /// All of them.
    pub n: u64,
    /// … that failed: an error, a panic, a timeout, a dead letter. Not those lost.
    pub failed: u64,
    /// … that failed and became dead letters.
    pub dead: u64,
    /// … that vanished with their process.
    pub lost: u64,
    /// … that pins or targets sent there, so that they say nothing about the share of the percent.
    pub placed: u64,
    /// How long they took: bucket of `switchback_common::took` -> how many. Those lost are in none.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub took: BTreeMap<u8, u64>,
}

/// What both versions did in the same stretch of time.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Counts {
    /// The active version.
    pub active: Arm,
    /// The candidate.
    pub candidate: Arm,
}

// Counts come from Redis, where people can write anything: sums saturate.
impl AddAssign<&Self> for Arm {
    fn add_assign(&mut self, other: &Self) {
        self.n = self.n.saturating_add(other.n);
        self.failed = self.failed.saturating_add(other.failed);
        self.dead = self.dead.saturating_add(other.dead);
        self.lost = self.lost.saturating_add(other.lost);
        self.placed = self.placed.saturating_add(other.placed);
        for (bucket, count) in &other.took {
            let sum = self.took.entry(*bucket).or_default();
            *sum = sum.saturating_add(*count);
        }
    }
}

/// What is new since an earlier look at the same block.
impl Sub<&Arm> for &Arm {
    type Output = Arm;

    fn sub(self, earlier: &Arm) -> Arm {
        let took = self.took.iter().filter_map(|(bucket, count)| {
            let new = count.saturating_sub(earlier.took.get(bucket).copied().unwrap_or(0));
            (new > 0).then_some((*bucket, new))
        });
        Arm {
            n: self.n.saturating_sub(earlier.n),
            failed: self.failed.saturating_sub(earlier.failed),
            dead: self.dead.saturating_sub(earlier.dead),
            lost: self.lost.saturating_sub(earlier.lost),
            placed: self.placed.saturating_sub(earlier.placed),
            took: took.collect(),
        }
    }
}

impl AddAssign<&Self> for Counts {
    fn add_assign(&mut self, other: &Self) {
        self.active += &other.active;
        self.candidate += &other.candidate;
    }
}

impl Sub<&Counts> for &Counts {
    type Output = Counts;

    fn sub(self, earlier: &Counts) -> Counts {
        Counts {
            active: &self.active - &earlier.active,
            candidate: &self.candidate - &earlier.candidate,
        }
    }
}

impl Arm {
    pub(super) fn failures(&self) -> Tally {
        Tally::new(self.n, self.failed.max(self.dead))
    }

    /// Those that the percent sent.
    pub(super) fn by_percent(&self) -> u64 {
        self.n.saturating_sub(self.placed)
    }

    pub(super) fn deaths(&self) -> Tally {
        Tally::new(self.n, self.dead)
    }

    pub(super) fn losses(&self) -> Tally {
        Tally::new(self.n, self.lost)
    }

    /// How many took longer than all of `bucket` does.
    pub(super) fn longer_than(&self, bucket: u8) -> Tally {
        let mut tally = Tally::default();
        for (at, count) in &self.took {
            tally += Tally::new(*count, if *at > bucket { *count } else { 0 });
        }
        tally
    }
}

/// Tasks, and those among them that something is true of. Never more of the latter.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// Tasks.
    pub n: u64,
    /// Those among them.
    pub hit: u64,
}

impl Tally {
    /// `hit` among `n`; what contradicts itself is cut.
    #[must_use]
    pub fn new(n: u64, hit: u64) -> Self {
        Self { n, hit: hit.min(n) }
    }

    /// The others.
    #[must_use]
    pub fn missed(self) -> u64 {
        self.n.saturating_sub(self.hit)
    }

    /// The share, 0 of nothing.
    #[must_use]
    pub fn rate(self) -> f64 {
        if self.n == 0 {
            0.0
        } else {
            self.hit as f64 / self.n as f64
        }
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        // Where the sum saturates, so does the part: still no more than the whole.
        self.n = self.n.saturating_add(other.n);
        self.hit = self.hit.saturating_add(other.hit).min(self.n);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn arm() -> impl Strategy<Value = Arm> {
        let took = prop::collection::btree_map(any::<u8>(), 1u64..1 << 40, 0..6);
        (0u64..1 << 40, 0u64..1 << 40, 0u64..9, 0u64..9, 0u64..9, took).prop_map(
            |(n, failed, dead, lost, placed, took)| Arm {
                n,
                failed,
                dead,
                lost,
                placed,
                took,
            },
        )
    }

    proptest! {
        #[test]
        fn what_is_new_and_what_was_make_what_is(was in arm(), new in arm()) {
            let mut is = was.clone();
            is += &new;
            prop_assert_eq!(&is - &was, new);
        }

        #[test]
        fn counts_survive_their_text(arm in arm()) {
            let text = serde_json::to_string(&arm).unwrap();
            prop_assert_eq!(serde_json::from_str::<Arm>(&text).unwrap(), arm);
        }

        #[test]
        fn no_part_exceeds_its_whole(n in any::<u64>(), hit in any::<u64>(), m in any::<u64>(), part in any::<u64>()) {
            let mut tally = Tally::new(n, hit);
            tally += Tally::new(m, part);
            prop_assert!(tally.hit <= tally.n);
            prop_assert!((0.0..=1.0).contains(&tally.rate()));
        }
    }
}
