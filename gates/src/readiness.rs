//! Whether a version is ready for what a gate is about to send there. Pure.
//!
//! A flip takes effect within milliseconds, so it is asked before: is anybody there to run it, are they enough, and can they
//! read what waits? What speaks against it is said as a whole; a person who knows better passes over it.

use std::{collections::BTreeMap, fmt};

use serde::Serialize;
use switchback_common::{
    Queue, Version,
    store::{session::SessionInfo, versions::VersionRecord},
};

use crate::gate::{Gate, Share};

/// Whole minutes of Redis's clock that the load is taken from, beside the one that runs.
pub const MINUTES: u64 = 10;
/// Attempts of a version from which its own durations are used; below, those of all versions.
const OWN_DURATIONS: u64 = 20;
/// A version that is busier than this is said to be near its limit.
const NEARLY_BUSY: f64 = 0.8;
/// A backlog that takes longer is worth a word.
const LONG_DRAIN_SECS: u64 = 600;
/// How many times too high the slots needed may be estimated: all durations of a bucket may lie at its lower end.
const DOUBT: f64 = 2.5;
/// Unreadable tasks that are named in words; the JSON has them all.
const NAMED: usize = 3;

/// Something that speaks against a flip.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Objection {
    /// Stable, for scripts: `unknown_version`, `retired`, `rolled_back`, `no_worker`, `breaker_open`, `too_few_slots`,
    /// `nearly_busy`, `cannot_read`, `malformed`, `no_answer`, `long_drain`.
    pub code: &'static str,
    /// Whether it keeps the flip from being made.
    pub level: Level,
    /// In words: what, and what to do.
    pub text: String,
}

/// How much an objection weighs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// Not without force.
    Blocks,
    /// Good to know.
    Warns,
}

/// The live workers of a version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Capacity {
    /// Live sessions that have it.
    pub sessions: usize,
    /// Of those, how many hold it because it fails: their circuit breakers are open.
    pub held: usize,
    /// Tasks that the others run at once.
    pub slots: u64,
}

impl Capacity {
    /// What live sessions offer of `version`. `limit`: what the queue is limited to, its workers cannot run.
    #[must_use]
    pub fn of<'a>(live: impl IntoIterator<Item = &'a SessionInfo>, version: &Version, limit: Option<u32>) -> Self {
        let mut out = Self::default();
        for session in live {
            let Some(record) = session.record.as_ref().filter(|r| r.versions.contains(version)) else {
                continue;
            };
            out.sessions += 1;
            match session.open.contains(version) {
                true => out.held += 1,
                false => {
                    let slots = u64::try_from(record.concurrency).unwrap_or(u64::MAX);
                    out.slots = out.slots.saturating_add(slots);
                }
            }
        }
        out.slots = limit.map_or(out.slots, |limit| out.slots.min(limit.into()));
        out
    }
}

/// What a queue has lately been doing.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Load {
    /// Attempts per second that ended in the busiest of the last minutes.
    pub rate_per_sec: f64,
    /// Attempts per second that ended in all of them, but for the one that runs.
    pub usual_per_sec: f64,
    /// How long an attempt takes on average, estimated from the histogram; `None`: none has ended lately.
    pub mean_secs: Option<f64>,
}

/// What workers of the version said of a sample of what waits.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Sample {
    /// Tasks that a worker of the version tried to read.
    pub looked_at: usize,
    /// Of those, how many it can read.
    pub readable: usize,
    /// The others.
    pub unreadable: Vec<UnreadableTask>,
    /// Tasks that waited and were too large to be looked at.
    pub left_out: u64,
}

/// A task that the version cannot read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct UnreadableTask {
    /// Its id.
    pub id: String,
    /// Where it waits.
    pub place: String,
    /// What the worker said.
    pub error: String,
    /// No version can read it: it is not even JSON.
    pub malformed: bool,
}

/// How asking the workers went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Nobody was asked, or nothing waits.
    NotAsked,
    /// A worker answered.
    Sample(Sample),
    /// Nobody answered, in words why.
    None(String),
}

/// Everything that is known before a flip.
#[derive(Debug)]
pub struct Facts<'a> {
    /// The queue.
    pub queue: &'a Queue,
    /// The version that is to get tasks.
    pub version: &'a Version,
    /// What share of the tasks it is to get, 0 to 1.
    pub share: f64,
    /// What is known of it; `None`: no session ever declared it.
    pub record: Option<&'a VersionRecord>,
    /// Its live workers.
    pub capacity: Capacity,
    /// What there is to do.
    pub load: Load,
    /// Tasks that wait.
    pub waiting: u64,
    /// Whether it can read them.
    pub answer: &'a Answer,
}

/// What speaks against the flip: what blocks it first.
#[must_use]
pub fn objections(facts: &Facts<'_>) -> Vec<Objection> {
    let mut out = Vec::new();
    of_label(facts, &mut out);
    of_workers(facts, &mut out);
    of_sample(facts, &mut out);
    if let Some(secs) = drain_secs(facts).filter(|secs| *secs > LONG_DRAIN_SECS) {
        out.push(warns(
            "long_drain",
            format!(
                "what waits ({} tasks) takes its workers about {} min",
                facts.waiting,
                secs / 60
            ),
        ));
    }
    out.sort_by_key(|objection| objection.level == Level::Warns);
    out
}

/// Whether nothing blocks the flip.
#[must_use]
pub fn is_ready(objections: &[Objection]) -> bool {
    objections.iter().all(|objection| objection.level == Level::Warns)
}

fn blocks(code: &'static str, text: String) -> Objection {
    let level = Level::Blocks;
    Objection { code, level, text }
}

fn warns(code: &'static str, text: String) -> Objection {
    let level = Level::Warns;
    Objection { code, level, text }
}

fn of_label(facts: &Facts<'_>, out: &mut Vec<Objection>) {
    let (queue, version) = (facts.queue, facts.version);
    let Some(record) = facts.record else {
        let text = format!("no worker of {queue} ever joined with {version}: is the name right?");
        out.push(blocks("unknown_version", text));
        return;
    };
    let because = |why: &str| match why {
        "" => String::new(),
        why => format!(" ({why})"),
    };
    if let Some(retired) = &record.retired {
        let (why, task_type) = (because(&retired.why), &queue.task_type);
        out.push(blocks(
            "retired",
            format!("{version} is retired{why}; bring it back first: switchback version restore {task_type} {version}"),
        ));
    }
    if let Some(rolled_back) = record.rolled_back_as_it_is() {
        let why = because(&rolled_back.why);
        out.push(blocks(
            "rolled_back",
            format!(
                "{version} was rolled back at revision {}{why}, and nobody has said that it is better now",
                rolled_back.rev
            ),
        ));
    }
}

fn of_workers(facts: &Facts<'_>, out: &mut Vec<Objection>) {
    let (queue, version, capacity) = (facts.queue, facts.version, facts.capacity);
    if capacity.sessions == 0 {
        out.push(blocks(
            "no_worker",
            format!("no live worker of {queue} has {version}: its tasks would only wait; start one first"),
        ));
        return;
    }
    if capacity.held > 0 {
        let text = format!(
            "{} of {} live workers hold {version} because it fails there",
            capacity.held, capacity.sessions
        );
        out.push(match capacity.held == capacity.sessions {
            true => blocks("breaker_open", text),
            false => warns("breaker_open", text),
        });
        if capacity.held == capacity.sessions {
            return;
        }
    }
    let slots = many(capacity.slots);
    let Some(needed) = needed_slots(facts.load, facts.share) else {
        return;
    };
    let text = || {
        format!(
            "at {:.1} tasks/s of {} each, {version} needs about {:.0} slots for its share, and its live workers have {}",
            facts.load.rate_per_sec,
            secs(facts.load.mean_secs.unwrap_or(0.0)),
            needed.ceil(),
            capacity.slots
        )
    };
    if needed > slots {
        out.push(blocks("too_few_slots", format!("{}; start more of them first", text())));
    } else if needed > slots * NEARLY_BUSY {
        out.push(warns("nearly_busy", text()));
    }
}

fn of_sample(facts: &Facts<'_>, out: &mut Vec<Objection>) {
    let version = facts.version;
    match facts.answer {
        Answer::NotAsked => {}
        Answer::None(why) => out.push(blocks(
            "no_answer",
            format!("nobody knows whether {version} can read what waits: {why}"),
        )),
        Answer::Sample(sample) => {
            let (malformed, foreign): (Vec<_>, Vec<_>) = sample.unreadable.iter().partition(|task| task.malformed);
            if let Some(first) = foreign.first() {
                out.push(blocks(
                    "cannot_read",
                    format!(
                        "{version} cannot read {} of {} waiting tasks that were looked at, such as {}: {}",
                        foreign.len(),
                        sample.looked_at,
                        names(&foreign),
                        first.error
                    ),
                ));
            }
            if !malformed.is_empty() {
                out.push(warns(
                    "malformed",
                    format!(
                        "{} of {} waiting tasks that were looked at are not JSON, and no version can read them, such as {}",
                        malformed.len(),
                        sample.looked_at,
                        names(&malformed)
                    ),
                ));
            }
        }
    }
}

fn names(tasks: &[&UnreadableTask]) -> String {
    let names: Vec<&str> = tasks.iter().take(NAMED).map(|task| task.id.as_str()).collect();
    names.join(", ")
}

fn secs(secs: f64) -> String {
    match secs {
        secs if secs < 1.0 => format!("{:.1} ms", secs * 1_000.0),
        secs => format!("{secs:.1} s"),
    }
}

/// Slots that a share of the load takes; `None` if nothing is known of the load.
#[must_use]
pub fn needed_slots(load: Load, share: f64) -> Option<f64> {
    Some(load.rate_per_sec * load.mean_secs? * share)
}

/// A share of the tasks is more than the live workers of a version can carry.
#[derive(Debug, Clone, PartialEq)]
pub struct Shortage {
    /// The version.
    pub version: Version,
    /// Its share.
    pub share: Share,
    /// What there is to do.
    pub load: Load,
    /// The slots that its share of the busiest minute takes, about.
    pub needed: f64,
    /// Those that there are.
    pub slots: u64,
}

impl Shortage {
    /// Whether `share` is more than `capacity` carries; `None` if it is not, or nothing is known of the load.
    #[must_use]
    pub fn of(version: &Version, share: Share, load: Load, capacity: Capacity) -> Option<Self> {
        let needed = needed_slots(load, part(share))?;
        let short = Self {
            version: version.clone(),
            share,
            load,
            needed,
            slots: capacity.slots,
        };
        (needed > many(short.slots)).then_some(short)
    }

    /// Whether it is so however much the estimate is off, and not for a minute only: what is not looked at by a person may rely
    /// on it.
    #[must_use]
    pub fn is_sure(&self) -> bool {
        let usual = Load {
            rate_per_sec: self.load.usual_per_sec,
            ..self.load
        };
        needed_slots(usual, part(self.share)).is_some_and(|needed| needed > many(self.slots) * DOUBT)
    }
}

#[expect(clippy::cast_precision_loss, reason = "slots are far below 2^52")]
fn many(slots: u64) -> f64 {
    slots as f64
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "for {} % of {:.1} tasks/s of {} each {} needs about {:.0} slots, and its live workers have {}",
            self.share,
            self.load.rate_per_sec,
            secs(self.load.mean_secs.unwrap_or(0.0)),
            self.version,
            self.needed.ceil(),
            self.slots
        )
    }
}

/// How long the version's workers take for what waits, at its share and with nothing else to do; `None`: nobody can say,
/// or never.
#[must_use]
pub fn drain_secs(facts: &Facts<'_>) -> Option<u64> {
    if facts.waiting == 0 {
        return Some(0);
    }
    let mean = facts.load.mean_secs.filter(|_| facts.capacity.slots > 0)?;
    #[expect(clippy::cast_precision_loss, reason = "an estimate")]
    let secs = facts.waiting as f64 * facts.share * mean / facts.capacity.slots as f64;
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "not negative, and saturates"
    )]
    let secs = secs.ceil() as u64;
    Some(secs)
}

/// The share of all tasks that a gate gives to a version, 0 to 1; what pins give is not counted, for nobody knows how
/// much that is.
#[must_use]
pub fn share(gate: &Gate, version: &Version) -> f64 {
    let candidate = part(gate.candidate.as_ref().map_or(Share::NONE, |_| gate.percent));
    if gate.candidate.as_ref() == Some(version) {
        candidate
    } else if gate.active == *version {
        1.0 - candidate
    } else {
        0.0
    }
}

/// A share as a number from 0 to 1.
#[must_use]
pub fn part(share: Share) -> f64 {
    f64::from(share.thousandths()) / f64::from(Share::ALL.thousandths())
}

impl Load {
    /// From the counters of the last minutes of Redis's clock, `(minute, [(<version>:<what>, n)])`. Durations are those of
    /// `version` if it has enough of them.
    #[must_use]
    pub fn of(minutes: &[(u64, Vec<(String, u64)>)], version: &Version, now_us: u64) -> Self {
        let mut rate_per_sec = 0.0_f64;
        let (mut whole, mut in_whole) = (0_u64, 0_u64);
        let (mut own, mut all) = (Durations::default(), Durations::default());
        for (minute, counters) in minutes {
            let mut ended = 0_u64;
            for (name, n) in counters {
                let Some((of, bound)) = name.split_once(":le_") else {
                    continue;
                };
                ended += n;
                all.add(bound, *n);
                if of == version.as_str() {
                    own.add(bound, *n);
                }
            }
            // A minute that has just begun says little: it counts as 10 s at least.
            let lasted = now_us.saturating_sub(minute * 60_000_000) / 1_000_000;
            #[expect(clippy::cast_precision_loss, reason = "an estimate")]
            let rate = ended as f64 / lasted.clamp(10, 60) as f64;
            rate_per_sec = rate_per_sec.max(rate);
            if lasted >= 60 {
                whole += 1;
                in_whole = in_whole.saturating_add(ended);
            }
        }
        #[expect(clippy::cast_precision_loss, reason = "an estimate")]
        let usual_per_sec = in_whole as f64 / (whole * 60).max(1) as f64;
        let durations = if own.n() >= OWN_DURATIONS { own } else { all };
        Self {
            rate_per_sec,
            usual_per_sec,
            mean_secs: durations.mean_secs(),
        }
    }
}

/// Bucket -> how many. A bucket is named by its upper bound, in ms.
#[derive(Debug, Default)]
struct Durations(BTreeMap<u64, u64>);

impl Durations {
    fn add(&mut self, bound: &str, n: u64) {
        // `inf`, the last: as long again as its lower bound.
        *self.0.entry(bound.parse().unwrap_or(u64::MAX)).or_default() += n;
    }

    fn n(&self) -> u64 {
        self.0.values().sum()
    }

    /// Every attempt counted in the middle of its bucket. Only what is there is known of the bounds: below a bucket with
    /// nothing below it lies a third of its bound, for the bounds are about a factor of three apart.
    fn mean_secs(&self) -> Option<f64> {
        let n = self.n();
        if n == 0 {
            return None;
        }
        let mut sum_ms = 0.0;
        for (bound, count) in &self.0 {
            #[expect(clippy::cast_precision_loss, reason = "an estimate")]
            let (bound, count) = (
                match *bound {
                    u64::MAX => 600_000.0,
                    bound => bound as f64,
                },
                *count as f64,
            );
            sum_ms += count * if bound <= 1.0 { bound / 2.0 } else { bound * 2.0 / 3.0 };
        }
        #[expect(clippy::cast_precision_loss, reason = "an estimate")]
        let mean = sum_ms / n as f64 / 1_000.0;
        Some(mean)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use switchback_common::store::versions::{Retired, RolledBack};

    use super::*;

    struct Case {
        record: Option<VersionRecord>,
        capacity: Capacity,
        load: Load,
        share: f64,
        waiting: u64,
        answer: Answer,
    }

    impl Default for Case {
        fn default() -> Self {
            Self {
                record: Some(VersionRecord::default()),
                capacity: Capacity {
                    sessions: 2,
                    held: 0,
                    slots: 20,
                },
                load: Load::default(),
                share: 1.0,
                waiting: 0,
                answer: Answer::NotAsked,
            }
        }
    }

    impl Case {
        fn with<R>(&self, look: impl FnOnce(&Facts<'_>) -> R) -> R {
            let queue = Queue::new("shop".parse().unwrap(), "mail".parse().unwrap());
            let version: Version = "v2".parse().unwrap();
            look(&Facts {
                queue: &queue,
                version: &version,
                share: self.share,
                record: self.record.as_ref(),
                capacity: self.capacity,
                load: self.load,
                waiting: self.waiting,
                answer: &self.answer,
            })
        }

        /// `code` of what blocks, `(code)` of what warns.
        fn codes(&self) -> String {
            let word = |objection: &Objection| match objection.level {
                Level::Blocks => objection.code.to_owned(),
                Level::Warns => format!("({})", objection.code),
            };
            let found = self.with(objections);
            found.iter().map(word).collect::<Vec<_>>().join(" ")
        }
    }

    fn busy(rate_per_sec: f64, mean_secs: f64) -> Load {
        Load {
            rate_per_sec,
            usual_per_sec: rate_per_sec / 2.0,
            mean_secs: Some(mean_secs),
        }
    }

    fn unreadable(malformed: bool) -> UnreadableTask {
        UnreadableTask {
            id: "t-1".into(),
            place: "main".into(),
            error: "missing field `to`".into(),
            malformed,
        }
    }

    #[test]
    fn nothing_speaks_against_a_version_with_workers() {
        assert_eq!(Case::default().codes(), "");
    }

    #[test]
    fn the_label_must_be_known_in_use_and_not_rolled_back() {
        let mut case = Case {
            record: None,
            ..Case::default()
        };
        assert_eq!(case.codes(), "unknown_version");
        case.record = Some(VersionRecord {
            retired: Some(Retired::default()),
            rolled_back: Some(RolledBack {
                rev: 12,
                why: "p95".into(),
                ..RolledBack::default()
            }),
            ..VersionRecord::default()
        });
        assert_eq!(case.codes(), "retired rolled_back");
        let texts: Vec<String> = case.with(objections).into_iter().map(|o| o.text).collect();
        assert!(texts[0].contains("switchback version restore mail v2"), "{texts:?}");
        assert!(texts[1].contains("revision 12 (p95)"), "{texts:?}");
        // ADR 13: the same build. What was built again is another try.
        let marked = |now: &str| {
            let entry = format!(r#"{{"build":"{now}","rolled_back":{{"rev":12,"build":"b1"}}}}"#);
            Some(VersionRecord::parse(entry.as_bytes()))
        };
        case.record = marked("b1");
        assert_eq!(case.codes(), "rolled_back");
        case.record = marked("b2");
        assert_eq!(case.codes(), "");
    }

    #[test]
    fn somebody_must_be_there_and_be_enough() {
        let mut case = Case {
            load: busy(100.0, 0.5),
            ..Case::default()
        };
        assert_eq!(case.codes(), "too_few_slots", "50 of 20");
        case.share = 0.25;
        assert_eq!(case.codes(), "", "12.5 of 20");
        case.share = 0.35;
        assert_eq!(case.codes(), "(nearly_busy)", "17.5 of 20");
        case.capacity.held = 1;
        assert_eq!(case.codes(), "(breaker_open) (nearly_busy)");
        case.capacity.held = 2;
        assert_eq!(case.codes(), "breaker_open");
        case.capacity = Capacity::default();
        assert_eq!(case.codes(), "no_worker");
    }

    #[test]
    fn a_share_that_nobody_could_carry_is_told_and_relied_upon_only_if_there_is_no_doubt() {
        let (v2, share): (Version, Share) = ("v2".parse().unwrap(), Share::parse("50").unwrap());
        let short = |slots, load| {
            let capacity = Capacity {
                slots,
                ..Capacity::default()
            };
            Shortage::of(&v2, share, load, capacity)
        };
        assert_eq!(short(25, busy(100.0, 0.5)), None);
        let tight = short(24, busy(100.0, 0.5)).unwrap();
        assert_eq!(
            (tight.to_string().as_str(), tight.is_sure()),
            (
                "for 50 % of 100.0 tasks/s of 500.0 ms each v2 needs about 25 slots, and its live workers have 24",
                false
            )
        );
        // Half of that is usual.
        assert!(!short(5, busy(100.0, 0.5)).unwrap().is_sure());
        assert!(short(4, busy(100.0, 0.5)).unwrap().is_sure());
        assert_eq!(short(0, Load::default()), None, "nothing is known");
    }

    #[test]
    fn long_tasks_that_end_together_are_no_load_of_every_minute() {
        let minutes: Vec<(u64, Vec<(String, u64)>)> = (0..11)
            .map(|n| {
                (
                    n,
                    if n % 5 == 2 {
                        vec![("v1:le_300000".to_owned(), 100)]
                    } else {
                        vec![]
                    },
                )
            })
            .collect();
        let load = Load::of(&minutes, &"v2".parse().unwrap(), 10 * 60_000_000 + 1);
        assert!((load.rate_per_sec - 100.0 / 60.0).abs() < 0.01, "{load:?}");
        assert!((load.usual_per_sec - 200.0 / 600.0).abs() < 0.01, "{load:?}");
        let capacity = Capacity {
            sessions: 1,
            held: 0,
            slots: 100,
        };
        let short = Shortage::of(&"v2".parse().unwrap(), Share::ALL, load, capacity).unwrap();
        assert!(!short.is_sure(), "its 100 slots carried it until now: {short}");
    }

    #[test]
    fn what_waits_must_be_readable() {
        let sample = |unreadable: Vec<UnreadableTask>| {
            Answer::Sample(Sample {
                looked_at: 4,
                readable: 4 - unreadable.len(),
                unreadable,
                left_out: 0,
            })
        };
        let mut case = Case {
            answer: sample(vec![]),
            ..Case::default()
        };
        assert_eq!(case.codes(), "");
        // What no version can read speaks against none.
        case.answer = sample(vec![unreadable(true)]);
        assert_eq!(case.codes(), "(malformed)");
        case.answer = sample(vec![unreadable(true), unreadable(false)]);
        assert_eq!(case.codes(), "cannot_read (malformed)");
        let text = &case.with(objections)[0].text;
        assert!(text.contains("1 of 4") && text.contains("missing field"), "{text}");
        case.answer = Answer::None("no worker answered".into());
        assert_eq!(case.codes(), "no_answer");
    }

    #[test]
    fn a_long_backlog_is_said() {
        let mut case = Case {
            load: busy(1.0, 1.0),
            waiting: 20_000,
            ..Case::default()
        };
        assert_eq!(case.with(drain_secs), Some(1_000));
        assert_eq!(case.codes(), "(long_drain)");
        case.share = 0.1;
        assert_eq!(case.with(drain_secs), Some(100));
        assert_eq!(case.codes(), "");
        case.capacity.slots = 0;
        assert_eq!(case.with(drain_secs), None);
        case.waiting = 0;
        assert_eq!(case.with(drain_secs), Some(0));
    }

    #[test]
    fn shares_are_those_of_the_gate() {
        let mut gate = Gate::new("v1".parse().unwrap());
        let of = |gate: &Gate, version: &str| share(gate, &version.parse().unwrap());
        assert_eq!((of(&gate, "v1"), of(&gate, "v2")), (1.0, 0.0));
        gate.candidate = Some("v2".parse().unwrap());
        gate.percent = Share::parse("25").unwrap();
        assert_eq!((of(&gate, "v1"), of(&gate, "v2")), (0.75, 0.25));
    }

    #[test]
    fn the_load_is_that_of_the_busiest_minute() {
        let counters = |n: u64| {
            vec![
                ("v1:done".to_owned(), n),
                ("v1:le_100".to_owned(), n / 2),
                ("v1:le_300".to_owned(), n / 2),
            ]
        };
        let minutes = [(10, counters(600)), (11, counters(1_200)), (12, counters(10))];
        let now = 12 * 60_000_000 + 1_000_000;
        let load = Load::of(&minutes, &"v2".parse().unwrap(), now);
        assert!((load.rate_per_sec - 20.0).abs() < 0.01, "{load:?}");
        assert!((load.mean_secs.unwrap() - 0.133).abs() < 0.01, "{load:?}");
        // Its own durations, once there are enough.
        let mut own = minutes.to_vec();
        own[1].1.push(("v2:le_3000".to_owned(), 19));
        assert!(Load::of(&own, &"v2".parse().unwrap(), now).mean_secs.unwrap() < 0.3);
        own[1].1[3].1 = 20;
        assert!((Load::of(&own, &"v2".parse().unwrap(), now).mean_secs.unwrap() - 2.0).abs() < 0.01);
        assert_eq!(Load::of(&[], &"v2".parse().unwrap(), now), Load::default());
    }

    proptest! {
        #[test]
        fn more_workers_never_make_it_less_ready(rate in 0.0..1e4, mean in 0.0..100.0, share in 0.0..=1.0, slots in 1..500_u64, more in 0..500_u64) {
            let case = |slots| Case {
                capacity: Capacity { sessions: 1, held: 0, slots },
                load: busy(rate, mean),
                share,
                ..Case::default()
            };
            let ready = |case: &Case| is_ready(&case.with(objections));
            prop_assert!(!ready(&case(slots)) || ready(&case(slots + more)));
        }

        #[test]
        fn foreign_counters_do_no_harm(names in proptest::collection::vec(("\\PC{0,12}", any::<u32>()), 0..8), minute in any::<u32>(), now in any::<u64>()) {
            let counters = names.into_iter().map(|(name, n)| (format!("{name}:le_{name}"), u64::from(n))).collect();
            let load = Load::of(&[(u64::from(minute), counters)], &"v1".parse().unwrap(), now);
            prop_assert!(load.rate_per_sec.is_finite());
        }
    }
}
