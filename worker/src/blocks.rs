//! Blocks: what this session counts for the rollout that runs. Where none does, a comparison is all it costs.
//!
//! First attempts that ended, by version and by block of Redis's clock, at most so many of one key: one customer with ten
//! thousand tasks is one piece of evidence, not ten thousand.

use std::{
    collections::{BTreeMap, HashMap},
    hash::{BuildHasher as _, RandomState},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use switchback_common::{Version, envelope::Envelope, store::log::Ended, store::rollout::RolloutStore, took};
use switchback_gates::{Decision, decide, is_placed, rollout::block_us};
use tokio::sync::Notify;

use crate::{attempt::Claimed, outcome::Ran, session::Session};

/// P10: most keys of one block that are told apart; tasks of others are not counted.
const MAX_KEYS: usize = 100_000;

/// What a session counts, and for which rollout.
#[derive(Debug, Default)]
pub(crate) struct Blocks {
    /// The rollout that the newest gate read spoke of; 0: none.
    signal: AtomicU64,
    on: AtomicBool,
    /// The signal changed.
    pub(crate) turned: Notify,
    counting: Mutex<Option<Counting>>,
    keys: RandomState,
}

#[derive(Debug)]
struct Counting {
    versions: [Version; 2],
    secs: u64,
    cap: u64,
    block: u64,
    /// Attempts of each key in this block, by version.
    seen: HashMap<(bool, u64), u64>,
    /// What the last batch added to `seen`.
    added: Vec<(bool, u64)>,
}

impl Blocks {
    /// Takes in what a gate read said.
    pub(crate) fn signalled(&self, rollout: u64) {
        if self.signal.swap(rollout, Ordering::AcqRel) != rollout {
            if rollout == 0 {
                self.stop();
            }
            self.turned.notify_one();
        }
    }

    /// The rollout that runs; 0: none.
    pub(crate) fn rollout(&self) -> u64 {
        self.signal.load(Ordering::Acquire)
    }

    pub(crate) fn is_on(&self) -> bool {
        self.on.load(Ordering::Acquire)
    }

    /// Begins to count `versions`.
    pub(crate) fn begin(&self, versions: [Version; 2], secs: u64, cap: u64) {
        *self.counting() = Some(Counting {
            versions,
            secs,
            cap,
            block: 0,
            seen: HashMap::new(),
            added: Vec::new(),
        });
        self.on.store(true, Ordering::Release);
    }

    pub(crate) fn stop(&self) {
        self.on.store(false, Ordering::Release);
        *self.counting() = None;
    }

    fn counting(&self) -> MutexGuard<'_, Option<Counting>> {
        self.counting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What tells a task's key apart, if that is needed.
    pub(crate) fn fingerprint(&self, envelope: &Envelope) -> Option<u64> {
        let key = envelope.key.as_ref().filter(|_| self.is_on())?;
        Some(self.keys.hash_one(key))
    }

    /// The counters of what ended now, and their block.
    pub(crate) fn count<'a>(
        &self,
        now_us: u64,
        ran: impl Iterator<Item = &'a Ran>,
    ) -> Option<(u64, Vec<(String, u64)>)> {
        if !self.is_on() {
            return None;
        }
        let mut counting = self.counting();
        let counting = counting.as_mut()?;
        let mut counters: BTreeMap<String, u64> = BTreeMap::new();
        let block = now_us / block_us(counting.secs);
        counting.added.clear();
        for ran in ran {
            if !counting.counts(ran, block) {
                continue;
            }
            let version = &ran.version;
            let mut add = |what: &str| *counters.entry(format!("{version}:{what}")).or_default() += 1;
            add("n");
            add(&format!("t{}", took::bucket(ran.took)));
            if ran.ended != Ended::Done {
                add("f");
            }
            if ran.ended == Ended::Dead {
                add("dead");
            }
            if ran.placed {
                add("placed");
            }
        }
        (!counters.is_empty()).then(|| (block, counters.into_iter().collect()))
    }

    /// The last batch was not settled, and comes again: its keys are counted then.
    pub(crate) fn uncount(&self) {
        if let Some(counting) = self.counting().as_mut() {
            for of_key in counting.added.drain(..) {
                if let Some(seen) = counting.seen.get_mut(&of_key) {
                    *seen = seen.saturating_sub(1);
                }
            }
        }
    }

    fn block(&self, now_us: u64) -> Option<u64> {
        Some(now_us / block_us(self.counting().as_ref()?.secs))
    }
}

impl Counting {
    /// Retries are no new evidence, and what was recovered was counted as lost when it was.
    fn counts(&mut self, ran: &Ran, block: u64) -> bool {
        let first = ran.attempt == 1 && ran.recovered == 0;
        if !first || !matches!(ran.ended, Ended::Done | Ended::Retried | Ended::Dead) {
            return false;
        }
        if !self.versions.contains(&ran.version) {
            return false;
        }
        let Some(key) = ran.key else { return true };
        if self.block != block {
            self.block = block;
            self.seen.clear();
            self.added.clear();
        }
        let of_key = (ran.version == self.versions[0], key);
        if self.seen.len() >= MAX_KEYS && !self.seen.contains_key(&of_key) {
            return false;
        }
        let seen = self.seen.entry(of_key).or_default();
        *seen += 1;
        self.added.push(of_key);
        *seen <= self.cap
    }
}

/// Counts the attempt that a recovered task lost with its process. Before it starts again, for it may take this process
/// along too; to the version that it is about to run on, which the gate gave it then unless it changed since.
pub(crate) async fn count_lost(session: &Session, task: &Claimed) {
    let envelope = &task.envelope;
    let Some(ruling) = session.view.newest().filter(|_| envelope.attempt == 0) else {
        return;
    };
    let decision = decide(&ruling.gate, &session.spec.task_type, &envelope.headers, || {
        envelope.routing_key()
    });
    let Decision::Run(version) = decision else {
        return;
    };
    let Some(block) = session.blocks.block(session.clock.now_us()) else {
        return;
    };
    if !session.spec.handlers.contains_key(version) {
        return;
    }
    let rollouts = RolloutStore::new(&session.store, &session.queue);
    let placed = is_placed(&ruling.gate, &envelope.headers, || envelope.routing_key());
    let counted = rollouts
        .count_lost(block, version, &envelope.id, envelope.recovered, placed)
        .await;
    if let Err(error) = counted {
        tracing::debug!(queue.name = %session.queue, %error, "cannot count a lost attempt");
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn ran(version: &str, attempt: u32, ended: Ended, key: Option<u64>) -> Ran {
        Ran {
            task: "t".parse().unwrap(),
            version: version.parse().unwrap(),
            attempt,
            recovered: 0,
            key,
            placed: false,
            ended,
            took: Duration::from_millis(3),
            rev: 1,
            read_us: 1,
            enqueued_at_ms: 1,
            back: 0,
        }
    }

    fn blocks(cap: u64) -> Blocks {
        let blocks = Blocks::default();
        blocks.begin(["v1".parse().unwrap(), "v2".parse().unwrap()], 10, cap);
        blocks
    }

    fn count(blocks: &Blocks, now_s: u64, ran: &[Ran]) -> String {
        let Some((block, counters)) = blocks.count(now_s * 1_000_000, ran.iter()) else {
            return String::new();
        };
        let words: Vec<_> = counters.iter().map(|(name, n)| format!("{name}={n}")).collect();
        format!("{block}: {}", words.join(" "))
    }

    #[test]
    fn first_attempts_that_ended_count_by_version() {
        let all = [
            ran("v1", 1, Ended::Done, None),
            ran("v1", 2, Ended::Done, None),
            ran("v2", 1, Ended::Retried, None),
            ran("v2", 1, Ended::Dead, None),
            ran("v2", 1, Ended::Released, None),
            ran("v2", 1, Ended::Snoozed, None),
            ran("v2", 1, Ended::Cancelled, None),
            ran("v2", 1, Ended::Revoked, None),
            ran("v3", 1, Ended::Done, None),
            Ran {
                recovered: 1,
                ..ran("v1", 1, Ended::Done, None)
            },
        ];
        assert_eq!(
            count(&blocks(5), 25, &all),
            "2: v1:n=1 v1:t7=1 v2:dead=1 v2:f=2 v2:n=2 v2:t7=2"
        );
        assert_eq!(count(&Blocks::default(), 25, &all), "", "no rollout, nothing to pay");
    }

    #[test]
    fn a_key_is_a_few_pieces_of_evidence_per_block_and_version() {
        let blocks = blocks(2);
        let one_key: Vec<Ran> = (0..10)
            .map(|n| ran(["v1", "v2"][n % 2], 1, Ended::Retried, Some(7)))
            .collect();
        assert_eq!(
            count(&blocks, 5, &one_key),
            "0: v1:f=2 v1:n=2 v1:t7=2 v2:f=2 v2:n=2 v2:t7=2"
        );
        assert_eq!(count(&blocks, 9, &one_key), "");
        assert!(count(&blocks, 10, &one_key).starts_with("1: v1:f=2 "));
        let placed = Ran {
            placed: true,
            ..ran("v2", 1, Ended::Done, None)
        };
        assert_eq!(count(&blocks, 10, &[placed]), "1: v2:n=1 v2:placed=1 v2:t7=1");
        let keyless: Vec<Ran> = (0..10).map(|_| ran("v1", 1, Ended::Done, None)).collect();
        assert!(count(&blocks, 10, &keyless).contains("v1:n=10"));
    }

    // A batch with revoked results is refused as a whole and built anew: its other tasks are still the first of their keys.
    #[test]
    fn a_batch_that_comes_again_is_counted_once() {
        let blocks = blocks(2);
        let mut batch = [ran("v2", 1, Ended::Done, Some(7)), ran("v1", 1, Ended::Done, Some(7))];
        count(&blocks, 5, &[ran("v1", 1, Ended::Done, Some(7))]);
        let first = count(&blocks, 5, &batch);
        blocks.uncount();
        blocks.uncount();
        batch[0].ended = Ended::Revoked;
        assert_eq!(
            (first, count(&blocks, 5, &batch)),
            ("0: v1:n=1 v1:t7=1 v2:n=1 v2:t7=1".into(), "0: v1:n=1 v1:t7=1".into())
        );
        assert_eq!(count(&blocks, 5, &batch), "", "the cap of v1 is used up now");
    }

    #[test]
    fn the_end_of_a_rollout_ends_the_counting() {
        let blocks = blocks(5);
        blocks.signalled(17);
        assert!(blocks.is_on() && blocks.rollout() == 17);
        blocks.signalled(0);
        assert!(!blocks.is_on());
    }
}
