//! What is counted: first attempts, by version, that ended within a block.

use std::{
    collections::BTreeMap,
    ops::{AddAssign, Sub},
};

use serde::{Deserialize, Serialize};
use switchback_common::took;

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
    /// Attempts that outlasted a bucket in this stretch, whether they have ended or not: bucket, from `took::LONG` on -> how many.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub outlasted: BTreeMap<u8, u64>,
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
        add(&mut self.took, &other.took);
        add(&mut self.outlasted, &other.outlasted);
    }
}

fn add(sums: &mut BTreeMap<u8, u64>, other: &BTreeMap<u8, u64>) {
    for (bucket, count) in other {
        let sum = sums.entry(*bucket).or_default();
        *sum = sum.saturating_add(*count);
    }
}

fn new(now: &BTreeMap<u8, u64>, earlier: &BTreeMap<u8, u64>) -> BTreeMap<u8, u64> {
    let new = now.iter().filter_map(|(bucket, count)| {
        let new = count.saturating_sub(earlier.get(bucket).copied().unwrap_or(0));
        (new > 0).then_some((*bucket, new))
    });
    new.collect()
}

/// What is new since an earlier look at the same block.
impl Sub<&Arm> for &Arm {
    type Output = Arm;

    fn sub(self, earlier: &Arm) -> Arm {
        Arm {
            n: self.n.saturating_sub(earlier.n),
            failed: self.failed.saturating_sub(earlier.failed),
            dead: self.dead.saturating_sub(earlier.dead),
            lost: self.lost.saturating_sub(earlier.lost),
            placed: self.placed.saturating_sub(earlier.placed),
            took: new(&self.took, &earlier.took),
            outlasted: new(&self.outlasted, &earlier.outlasted),
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
    ///
    /// An attempt counts once, at the first moment at which the answer is known: when it ends, or when it has outlasted the bucket
    /// (or the first that is counted at all) and may run on for hours.
    pub(super) fn longer_than(&self, bucket: u8) -> Tally {
        let known = bucket.max(took::LONG);
        let mut tally = Tally::default();
        for (at, count) in self.took.range(..=known) {
            tally += Tally::new(*count, if *at > bucket { *count } else { 0 });
        }
        let longer = self.outlasted.get(&known).copied().unwrap_or(0);
        tally += Tally::new(longer, longer);
        tally
    }

    /// At most how many outlasted `bucket`, or anything longer.
    pub(super) fn running_past(&self, bucket: u8) -> u64 {
        let longer = self.outlasted.range(bucket.max(took::LONG)..);
        longer.map(|(_, count)| *count).max().unwrap_or(0)
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
        let buckets = || prop::collection::btree_map(any::<u8>(), 1u64..1 << 40, 0..6);
        (
            0u64..1 << 40,
            0u64..1 << 40,
            0u64..9,
            0u64..9,
            0u64..9,
            buckets(),
            buckets(),
        )
            .prop_map(|(n, failed, dead, lost, placed, took, outlasted)| Arm {
                n,
                failed,
                dead,
                lost,
                placed,
                took,
                outlasted,
            })
    }

    proptest! {
        #[test]
        fn what_is_new_and_what_was_make_what_is(was in arm(), new in arm()) {
            let mut is = was.clone();
            is += &new;
            prop_assert_eq!(&is - &was, new);
        }

        // However often one looks while they run, and wherever the blocks end.
        #[test]
        fn each_attempt_is_longer_or_not_once(
            lengths in prop::collection::vec(0u8..=took::LAST, 0..30), looks in prop::collection::vec(0u8..=took::LAST, 0..4),
            bucket in 0u8..took::LAST,
        ) {
            let mut looks = looks;
            looks.sort_unstable();
            let mut arm = Arm::default();
            for length in &lengths {
                let mut counted = took::LONG;
                for age in looks.iter().chain([length]).map(|age| age.min(length)) {
                    for outlasted in counted..*age {
                        *arm.outlasted.entry(outlasted).or_default() += 1;
                    }
                    counted = counted.max(*age);
                }
                *arm.took.entry(*length).or_default() += 1;
            }
            let longer = lengths.iter().filter(|length| **length > bucket).count();
            prop_assert_eq!(arm.longer_than(bucket), Tally::new(lengths.len() as u64, longer as u64));
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
