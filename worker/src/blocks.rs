//! Blocks: what this session counts for the rollout that runs. Where none does, a comparison is all it costs.
//!
//! First attempts that ended, by version and by block of Redis's clock, at most so many of one key: one customer with ten
//! thousand tasks is one piece of evidence, not ten thousand. And those that do not end: each length that they outlast.

use std::{
    collections::{BTreeMap, HashMap},
    hash::{BuildHasher as _, RandomState},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use switchback_common::{
    Version, clock::Moment, envelope::Envelope, store::log::Ended, store::rollout::RolloutStore, took,
};
use switchback_gates::{Decision, decide, is_placed, rollout::block_us};
use tokio::sync::Notify;

use crate::{attempt::Claimed, outcome::Ran, running::Running, session::Session};

/// P10: most keys of one block that are told apart; tasks of others are not counted.
const MAX_KEYS: usize = 100_000;

/// How much of an attempt's length is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Counted {
    /// Nothing yet.
    Nothing,
    /// All that it had outlasted: this bucket and those below.
    UpTo(u8),
    /// Nothing, ever: it is no first attempt, or there were enough of its key.
    Never,
}

/// Counters by name.
pub(crate) type Counters = Vec<(String, u64)>;

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
    /// What was outlasted earlier is not counted.
    since: Moment,
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
            since: Moment::now(),
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
    pub(crate) fn count<'a>(&self, now_us: u64, ran: impl Iterator<Item = &'a Ran>) -> Option<(u64, Counters)> {
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
            add(&format!("t{}", took::bucket(ran.took())));
            for bucket in counting.outlasted(ran.started, ran.took(), ran.counted) {
                add(&format!("o{bucket}"));
            }
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

    /// The counters of what attempts have outlasted that still run, and their block. They are counted then, whether or not the
    /// counters arrive: evidence that is lost accuses nobody, evidence that is written twice does.
    pub(crate) fn count_running(&self, now_us: u64, running: &Running) -> Option<(u64, Counters)> {
        let mut counting = self.counting();
        let counting = counting.as_mut()?;
        let block = now_us / block_us(counting.secs);
        let now = Moment::now();
        let mut counters: BTreeMap<(usize, u8), u64> = BTreeMap::new();
        running.each(|run| {
            let age = now.since(run.started);
            let Some(version) = counting.versions.iter().position(|version| *version == run.version) else {
                return;
            };
            if took::bucket(age) <= took::LONG || run.counted == Counted::Never {
                return;
            }
            if run.counted == Counted::Nothing && !counting.leave(&run.version, run.key, block) {
                run.counted = Counted::Never;
                return;
            }
            for bucket in counting.outlasted(run.started, age, run.counted) {
                *counters.entry((version, bucket)).or_default() += 1;
            }
            run.counted = Counted::UpTo(took::bucket(age) - 1);
        });
        let named = |((version, bucket), by)| (format!("{}:o{bucket}", counting.versions[version]), by);
        (!counters.is_empty()).then(|| (block, counters.into_iter().map(named).collect()))
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
        match ran.counted {
            // Its key was asked about when it had run for long.
            Counted::UpTo(_) => true,
            Counted::Never => false,
            Counted::Nothing => {
                let leave = self.leave(&ran.version, ran.key, block);
                if let Some(key) = ran.key {
                    self.added.push((ran.version == self.versions[0], key));
                }
                leave
            }
        }
    }

    /// Buckets that an attempt has outlasted since `since`, and that are not counted yet.
    fn outlasted(&self, started: Moment, age: Duration, counted: Counted) -> impl Iterator<Item = u8> + use<> {
        let first = match counted {
            Counted::Nothing => took::LONG,
            Counted::UpTo(last) => last + 1,
            Counted::Never => u8::MAX,
        };
        let since = self.since;
        (first..took::bucket(age)).filter(move |bucket| started + took::bound(*bucket) >= since)
    }

    /// Whether one more attempt with this key is evidence in this block.
    fn leave(&mut self, version: &Version, key: Option<u64>, block: u64) -> bool {
        let Some(key) = key else { return true };
        if self.block != block {
            self.block = block;
            self.seen.clear();
            self.added.clear();
        }
        let of_key = (*version == self.versions[0], key);
        if self.seen.len() >= MAX_KEYS && !self.seen.contains_key(&of_key) {
            return false;
        }
        let seen = self.seen.entry(of_key).or_default();
        *seen += 1;
        *seen <= self.cap
    }
}

/// Counts the attempt that a suspect lost with its process: once its attempt has ended in a process that lives it is none, and
/// what it lost long ago says nothing of the version that it runs on now. Before it starts again, for it may take this process
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
    use switchback_common::StreamId;
    use tokio_util::sync::CancellationToken;

    use super::*;

    const STARTED: Moment = Moment::from_nanos(1 << 40);

    fn ran(version: &str, attempt: u32, ended: Ended, key: Option<u64>) -> Ran {
        Ran {
            task: "t".parse().unwrap(),
            version: version.parse().unwrap(),
            attempt,
            recovered: 0,
            key,
            placed: false,
            timed: false,
            ended,
            started: STARTED,
            stopped: STARTED + Duration::from_millis(3),
            counted: Counted::Nothing,
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

    fn words(counted: Option<(u64, Counters)>) -> String {
        let Some((block, counters)) = counted else {
            return String::new();
        };
        let words: Vec<_> = counters.iter().map(|(name, n)| format!("{name}={n}")).collect();
        format!("{block}: {}", words.join(" "))
    }

    fn count(blocks: &Blocks, now_s: u64, ran: &[Ran]) -> String {
        words(blocks.count(now_s * 1_000_000, ran.iter()))
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

    // What hangs is evidence before it ends, each length of it once: counted while it runs, or when it ends.
    #[test]
    fn what_an_attempt_outlasts_is_counted_once() {
        let (blocks, running) = (blocks(2), Running::default());
        let now = Moment::now();
        let ago = |ms| now - Duration::from_millis(ms);
        // The counting began 1.3 s ago.
        blocks.counting().as_mut().unwrap().since = ago(1_300);
        let add = |version: &str, started, key, attempt: u32| {
            let fields = [
                ("payload", "1".to_owned()),
                ("id", "t".to_owned()),
                ("attempt", attempt.to_string()),
            ];
            let fields = fields.map(|(name, value)| (name.into(), value.into())).to_vec();
            let task = Envelope::decode(0, StreamId::default(), fields, 10).unwrap();
            let version = version.parse().unwrap();
            running.add(&task, (&version, 1), (started, key), &CancellationToken::new())
        };
        let look = || words(blocks.count_running(5_000_000, &running));
        let hanging = add("v2", ago(1_250), None, 0);
        add("v2", ago(500), None, 0);
        add("v2", ago(1_250), None, 1);
        add("v3", ago(1_250), None, 0);
        assert_eq!(
            look(),
            "0: v2:o40=1 v2:o41=1",
            "1.024 s and 1.218 s, of first attempts of versions that are compared"
        );
        assert_eq!(look(), "");
        // When it ends, only what is new: 1.448 s, and less than 1.722 s.
        let (_, counted) = running.remove(hanging);
        let end = |counted, took| Ran {
            started: ago(1_250),
            stopped: ago(1_250) + Duration::from_millis(took),
            counted,
            ..ran("v2", 1, Ended::Done, None)
        };
        assert_eq!(count(&blocks, 5, &[end(counted, 1_500)]), "0: v2:n=1 v2:o42=1 v2:t43=1");
        assert_eq!(
            count(&blocks, 5, &[end(Counted::Nothing, 1_500)]),
            "0: v2:n=1 v2:o40=1 v2:o41=1 v2:o42=1 v2:t43=1",
            "nobody looked while it ran"
        );
        // What was outlasted before the counting began is no part of it.
        add("v1", ago(2_400), None, 0);
        assert_eq!(look(), "0: v1:o41=1 v1:o42=1 v1:o43=1 v1:o44=1");
        // One key is so many pieces of evidence, running or ended.
        let of_key: Vec<_> = (0..4).map(|_| add("v1", ago(1_100), Some(7), 0)).collect();
        assert_eq!(look(), "0: v1:o40=2");
        let ends = of_key.into_iter().map(|run| Ran {
            key: Some(7),
            counted: running.remove(run).1,
            ..ran("v1", 1, Ended::Retried, None)
        });
        assert_eq!(count(&blocks, 5, &ends.collect::<Vec<_>>()), "0: v1:f=2 v1:n=2 v1:t7=2");
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
