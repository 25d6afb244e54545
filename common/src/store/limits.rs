//! Limits of a queue (P10): how many tasks may wait, how many dead letters may lie there, how much runs and how often it
//! starts.
//!
//! People set them: with [`set`], or with `HSET` by hand. Reading is lenient: what makes no sense is reported; in its
//! place the default holds, or, of what workers keep to, the last valid one.

use std::fmt;

use redis::{Cmd, Value};

use super::{
    connect::{Link, Store},
    error::StoreError,
    gate::GateStore,
    inspect::GroupInfo,
    keyspace::Key,
    reply, script,
};
use crate::{
    envelope::{Fields, clip},
    name::{Queue, Version},
    throttle::{self, Throttle, field},
};

/// A limit that people set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Limit {
    /// Dead letters: at the limit the queue is put on hold; 0 is none. Defaults to 100 000.
    Dead,
    /// Waiting and delayed tasks: at the limit enqueueing is refused; 0 is none. Defaults to 10 000 000: ten times what a
    /// queue is tested with, and for small tasks about what a Redis of a few GB holds. It is there to stop one runaway
    /// producer before `maxmemory` stops every queue.
    Waiting,
    /// Tasks that run at once in the whole fleet. Defaults to none, as do the others.
    Concurrency,
    /// How often tasks start, all together.
    Rate,
    /// How often tasks with one and the same key start.
    RatePerKey,
}

/// Largest limit that is believed.
const LARGEST: u64 = 1_000_000_000_000;

impl Limit {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Dead,
        Self::Waiting,
        Self::Concurrency,
        Self::Rate,
        Self::RatePerKey,
    ];

    /// Its field in the hash.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Dead => "dead",
            Self::Waiting => "waiting",
            Self::Concurrency => field::CONCURRENCY,
            Self::Rate => field::RATE,
            Self::RatePerKey => field::RATE_PER_KEY,
        }
    }

    /// The limit of that name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|limit| limit.name() == name)
    }

    /// Reads what a field says.
    ///
    /// # Errors
    /// What is wrong with it, and what a valid one looks like.
    pub fn parse(self, text: &str) -> Result<Setting, String> {
        let name = self.name();
        let throttle = Throttle::parse_field(name, text).map_err(|error| format!("{name}: {error}"))?;
        if let Some(limit) = throttle {
            return Ok(Setting::Throttle(limit));
        }
        let number = text.trim().parse().ok().filter(|number| *number <= LARGEST);
        let number = number.ok_or_else(|| {
            let text = clip(text, 40);
            format!("{name} is {text:?}, not a number from 0 (no limit) to {LARGEST}")
        })?;
        Ok(match self {
            Self::Dead => Setting::Dead(number),
            _ => Setting::Waiting(number),
        })
    }
}

/// A limit with its value. Displayed as it is written to the hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Setting {
    /// [`Limit::Dead`]; 0 is none.
    Dead(u64),
    /// [`Limit::Waiting`]; 0 is none.
    Waiting(u64),
    /// The others.
    Throttle(throttle::Limit),
}

impl Setting {
    /// Which limit it sets.
    #[must_use]
    pub fn limit(self) -> Limit {
        match self {
            Self::Dead(_) => Limit::Dead,
            Self::Waiting(_) => Limit::Waiting,
            Self::Throttle(throttle::Limit::Concurrency(_)) => Limit::Concurrency,
            Self::Throttle(throttle::Limit::Rate(_)) => Limit::Rate,
            Self::Throttle(throttle::Limit::RatePerKey(_)) => Limit::RatePerKey,
        }
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dead(number) | Self::Waiting(number) => write!(f, "{}", number.min(&LARGEST)),
            Self::Throttle(limit) => write!(f, "{limit}"),
        }
    }
}

/// What makes no sense in the hash, and so does not count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Of which limit; `None`: there is none like it.
    pub limit: Option<Limit>,
    /// What is wrong, and what holds in its place.
    pub text: String,
}

/// The limits in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Most dead letters; 0 = no limit.
    pub dead: u64,
    /// Most waiting and delayed tasks; 0 = no limit.
    pub waiting: u64,
    /// What workers keep to.
    pub throttle: Throttle,
    /// Which of them somebody set, validly.
    pub set: Vec<Limit>,
    /// What does not count.
    pub problems: Vec<Problem>,
    /// The fields of the limits there are, as they lie there.
    pub raw: Vec<(Limit, String)>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            dead: 100_000,
            waiting: 10_000_000,
            throttle: Throttle::default(),
            set: Vec::new(),
            problems: Vec::new(),
            raw: Vec::new(),
        }
    }
}

impl Limits {
    /// One of them; `None`: there is no limit.
    #[must_use]
    pub fn get(&self, limit: Limit) -> Option<Setting> {
        let throttle = &self.throttle;
        let found = match limit {
            Limit::Dead => return (self.dead > 0).then_some(Setting::Dead(self.dead)),
            Limit::Waiting => return (self.waiting > 0).then_some(Setting::Waiting(self.waiting)),
            Limit::Concurrency => throttle.concurrency.map(throttle::Limit::Concurrency),
            Limit::Rate => throttle.rate.map(throttle::Limit::Rate),
            Limit::RatePerKey => throttle.rate_per_key.map(throttle::Limit::RatePerKey),
        };
        found.map(Setting::Throttle)
    }

    /// Reads the hash. What workers keep to and cannot be read stays as it is in `last`.
    #[must_use]
    pub fn of(fields: &Fields, last: &Throttle) -> Self {
        let mut out = Self::default();
        for (name, value) in fields {
            let name = String::from_utf8_lossy(name);
            let Some(limit) = Limit::named(&name) else {
                let text = format!("there is no limit {:?}", clip(&name, 40));
                out.problems.push(Problem { limit: None, text });
                continue;
            };
            let value = String::from_utf8_lossy(value);
            out.raw.push((limit, value.clone().into_owned()));
            match limit.parse(&value) {
                Ok(setting) => {
                    match setting {
                        Setting::Dead(number) => out.dead = number,
                        Setting::Waiting(number) => out.waiting = number,
                        Setting::Throttle(limit) => out.throttle.set(limit),
                    }
                    out.set.push(limit);
                }
                Err(problem) => {
                    let holds = match limit {
                        Limit::Dead => format!("the default of {} holds", out.dead),
                        Limit::Waiting => format!("the default of {} holds", out.waiting),
                        _ => "workers keep to the last valid one".to_owned(),
                    };
                    match limit {
                        Limit::Dead | Limit::Waiting => {}
                        Limit::Concurrency => out.throttle.concurrency = last.concurrency,
                        Limit::Rate => out.throttle.rate = last.rate,
                        Limit::RatePerKey => out.throttle.rate_per_key = last.rate_per_key,
                    }
                    out.problems.push(Problem {
                        limit: Some(limit),
                        text: format!("{problem}: {holds}"),
                    });
                }
            }
        }
        out
    }

    /// P8: a limit without sense is no other limit than the default.
    fn alone(limit: Limit, raw: &[u8]) -> Self {
        let fields = vec![(limit.name().as_bytes().to_vec(), raw.to_vec())];
        Self::of(&fields, &Throttle::default())
    }
}

pub(super) fn key(store: &Store, queue: &Queue) -> String {
    store.keyspace().render(&Key::Limits(queue.clone()))
}

/// The limits of a queue. A key of another type (`SET` for `HSET`) is reported like any other value without sense.
///
/// # Errors
/// When Redis does not answer.
pub async fn read(store: &Store, queue: &Queue) -> Result<Limits, StoreError> {
    read_after(store, queue, &Throttle::default()).await
}

/// [`read`], for a worker that has kept to `last` so far.
///
/// # Errors
/// When Redis does not answer.
pub async fn read_after(store: &Store, queue: &Queue, last: &Throttle) -> Result<Limits, StoreError> {
    let mut cmd = Cmd::new();
    cmd.arg("HGETALL").arg(key(store, queue));
    understood(store, queue, store.warm().await?.run(cmd).await, last)
}

/// What `HGETALL` brought.
pub(super) fn understood(
    store: &Store,
    queue: &Queue,
    found: Result<Value, StoreError>,
    last: &Throttle,
) -> Result<Limits, StoreError> {
    match found {
        Ok(fields) => Ok(Limits::of(&reply::fields("limits", fields)?, last)),
        Err(StoreError::Redis { source, .. }) if source.code() == Some("WRONGTYPE") => Ok(Limits {
            throttle: *last,
            problems: vec![Problem {
                limit: None,
                text: format!(
                    "{} is not a hash: the defaults hold, workers keep to what was valid last; delete it",
                    key(store, queue)
                ),
            }],
            ..Limits::default()
        }),
        Err(error) => Err(error),
    }
}

/// Sets limits, and brings the defaults of others back. Says whether anything changed; a change leaves one entry in the
/// log.
///
/// # Errors
/// When Redis does not answer; doing it again is harmless.
pub async fn set(
    store: &Store,
    queue: &Queue,
    settings: &[Setting],
    clear: &[Limit],
    by: &str,
    why: &str,
) -> Result<bool, StoreError> {
    let set = settings
        .iter()
        .map(|setting| Edit::any(setting.limit().name(), &setting.to_string()));
    let edits: Vec<Edit> = set
        .chain(clear.iter().map(|limit| Edit::any(limit.name(), "")))
        .collect();
    Ok(replace(store, queue, &edits, by, why).await? == Put::Set)
}

/// One field of a hash that people set, and what it is to become.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edit {
    /// The field.
    pub field: String,
    /// What it must be still, as it lies there; empty is absent. `None`: whatever it is.
    pub expected: Option<String>,
    /// What it becomes; empty removes it.
    pub value: String,
}

impl Edit {
    fn any(field: &str, value: &str) -> Self {
        Self {
            field: field.to_owned(),
            expected: None,
            value: value.to_owned(),
        }
    }
}

/// How an edit went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Put {
    /// Done, with an entry in the log.
    Set,
    /// It was so already.
    Same,
    /// Somebody else changed this field in between; nothing was written.
    Moved(String),
}

/// Changes fields of the limits, all or none: none if one of them is not what it was expected to be.
///
/// # Errors
/// When Redis does not answer; doing it again is harmless.
pub async fn replace(store: &Store, queue: &Queue, edits: &[Edit], by: &str, why: &str) -> Result<Put, StoreError> {
    put(store, queue, &key(store, queue), "limits", edits, by, why).await
}

pub(super) async fn put(
    store: &Store,
    queue: &Queue,
    hash: &str,
    kind: &'static str,
    edits: &[Edit],
    by: &str,
    why: &str,
) -> Result<Put, StoreError> {
    let mut call = script::LIMITS_SET.prepare_invoke();
    call.key(hash).key(store.keyspace().render(&Key::Log(queue.clone())));
    call.arg(kind).arg(clip(by, 64)).arg(clip(why, 500));
    for edit in edits {
        let expected = edit.expected.as_ref().map_or_else(String::new, |was| format!("={was}"));
        call.arg(&edit.field).arg(expected).arg(&edit.value);
    }
    let (word, mut rest) = reply::verdict(kind, store.warm().await?.run_script(&call).await?)?;
    Ok(match word.as_str() {
        "set" => Put::Set,
        "same" => Put::Same,
        _ => Put::Moved(reply::text(kind, rest.next().unwrap_or(Value::Nil))?),
    })
}

/// One field as it lies there; a key of another type has none.
fn raw(found: Result<Value, StoreError>) -> Result<Vec<u8>, StoreError> {
    match found {
        Err(StoreError::Redis { .. }) => Ok(Vec::new()),
        found => reply::bytes("limits", found?),
    }
}

/// How full a queue is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fullness {
    /// The limit on waiting tasks; 0 = none.
    pub limit: u64,
    /// Waiting and delayed tasks. Where Redis cannot say, as few as there must be.
    pub waiting: u64,
}

/// Settled tasks that a stream may retain: where Redis has lost count of what was not delivered, they cannot be told from
/// tasks that wait.
const RETAINED: u64 = 100_000;

fn waiting(info: &GroupInfo) -> u64 {
    match info.lag {
        None if info.exists => info.length.saturating_sub(info.pending + RETAINED),
        _ => info.waiting(),
    }
}

/// How full a queue is, in one round trip over `link`; in two if any version has a lane.
///
/// # Errors
/// When Redis does not answer.
pub async fn fullness(link: &Link, store: &Store, queue: &Queue) -> Result<Fullness, StoreError> {
    let render = |key: Key| store.keyspace().render(&key);
    let mut pipe = redis::pipe();
    pipe.cmd("HGET").arg(key(store, queue)).arg(Limit::Waiting.name());
    pipe.cmd("ZCARD").arg(render(Key::Delayed(queue.clone())));
    pipe.cmd("HKEYS").arg(render(Key::Versions(queue.clone())));
    let fixed = Key::fixed_streams(queue);
    for stream in fixed.clone() {
        append_group(&mut pipe, &render(stream));
    }
    let mut replies = link.run_pipe(&mut pipe).await?.into_iter();
    let mut next = || replies.next().unwrap_or(Ok(Value::Nil)).map_err(|e| link.error(e));
    let limit = Limits::alone(Limit::Waiting, &raw(next())?).waiting;
    let mut sum = reply::count("ZCARD", &next()?)?;
    // Notes among them are no versions, and have no lanes.
    let versions: Vec<Version> = reply::array("versions", next()?)?
        .into_iter()
        .filter_map(|v| reply::text("versions", v).ok()?.parse().ok())
        .collect();
    for _ in fixed {
        sum += waiting(&GroupInfo::of(&next()?, next().ok())?);
    }
    if limit > 0 && !versions.is_empty() {
        let mut pipe = redis::pipe();
        for version in versions {
            append_group(&mut pipe, &render(Key::Lane(queue.clone(), version)));
        }
        let mut replies = link.run_pipe(&mut pipe).await?.into_iter();
        while let Some(length) = replies.next() {
            let groups = replies.next().and_then(Result::ok);
            sum += waiting(&GroupInfo::of(&length.map_err(|e| link.error(e))?, groups)?);
        }
    }
    Ok(Fullness { limit, waiting: sum })
}

/// Whether a queue has no room for another task.
///
/// # Errors
/// When Redis does not answer.
pub async fn is_full(store: &Store, queue: &Queue) -> Result<bool, StoreError> {
    let link = store.warm().await?;
    let Fullness { limit, waiting } = fullness(&link, store, queue).await?;
    Ok(limit > 0 && waiting >= limit)
}

fn append_group(pipe: &mut redis::Pipeline, stream: &str) {
    pipe.cmd("XLEN").arg(stream);
    pipe.cmd("XINFO").arg("GROUPS").arg(stream);
}

/// What keeping a queue within its limit of dead letters found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeadLimit {
    /// There is room.
    Room,
    /// At the limit, and now on hold until a person resumes it.
    Held {
        /// The limit.
        limit: u64,
    },
    /// At the limit, and paused already.
    Paused,
}

/// Puts a queue on hold if its dead letters are at their limit (P10). Any number of workers may do so at once: the gate
/// changes once (P9).
///
/// # Errors
/// When Redis does not answer.
pub async fn hold_if_full(store: &Store, queue: &Queue) -> Result<DeadLimit, StoreError> {
    let link = store.warm().await?;
    let dead = store.keyspace().render(&Key::Dead(queue.clone()));
    let mut pipe = redis::pipe();
    pipe.cmd("XLEN").arg(&dead);
    pipe.cmd("HGET").arg(key(store, queue)).arg(Limit::Dead.name());
    let mut replies = link.run_pipe(&mut pipe).await?.into_iter();
    let mut next = || replies.next().unwrap_or(Ok(Value::Nil)).map_err(|e| link.error(e));
    let count = reply::count("XLEN", &next()?)?;
    let raw = raw(next())?;
    let limit = Limits::alone(Limit::Dead, &raw).dead;
    if limit == 0 || count < limit {
        return Ok(DeadLimit::Room);
    }
    let mut call = script::HOLD_FULL.prepare_invoke();
    for key in GateStore::new(store, queue).keys() {
        call.key(key);
    }
    call.key(dead).key(key(store, queue)).arg(limit).arg(raw);
    let (word, _) = reply::verdict("dead letter limit", link.run_script(&call).await?)?;
    Ok(match word.as_str() {
        "held" => DeadLimit::Held { limit },
        "paused" => DeadLimit::Paused,
        _ => DeadLimit::Room,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(fields: &[(&str, &str)], last: &Throttle) -> Limits {
        let bytes = |text: &str| text.as_bytes().to_vec();
        Limits::of(&fields.iter().map(|(k, v)| (bytes(k), bytes(v))).collect(), last)
    }

    #[test]
    fn what_makes_no_sense_is_named_and_the_default_holds() {
        let fields = [("dead", "5"), ("waiting", "lots"), ("rate", "100/s"), ("deed", "1")];
        let limits = read(&fields, &Throttle::default());
        assert_eq!((limits.dead, limits.waiting), (5, Limits::default().waiting));
        assert_eq!(limits.set, [Limit::Dead, Limit::Rate]);
        let problems: Vec<_> = limits.problems.iter().map(|p| (p.limit, p.text.as_str())).collect();
        let [(Some(Limit::Waiting), waiting), (None, unknown)] = problems[..] else {
            panic!("{limits:?}")
        };
        assert!(waiting.contains("\"lots\"") && waiting.ends_with("the default of 10000000 holds"));
        assert!(unknown.contains("\"deed\""));
    }

    #[test]
    fn what_workers_keep_to_stays_when_it_cannot_be_read() {
        let last = read(&[("rate", "100/s+20"), ("concurrency", "8")], &Throttle::default()).throttle;
        let limits = read(&[("rate", "fast"), ("rate_per_key", "slow")], &last);
        assert_eq!(limits.throttle.rate, last.rate);
        assert_eq!(limits.throttle.concurrency, None, "removed, not broken");
        assert_eq!(limits.throttle.rate_per_key, None, "never valid");
        assert_eq!(limits.problems.len(), 2, "{limits:?}");
    }

    #[test]
    fn every_setting_is_written_as_it_is_read() {
        let texts = ["5", "0", "64", "100/s+20", "5/s"];
        for (limit, text) in Limit::ALL.into_iter().zip(texts) {
            let setting = limit.parse(text).unwrap();
            assert_eq!((setting.limit(), setting.to_string().as_str()), (limit, text));
            assert_eq!(Limit::named(limit.name()), Some(limit));
            let shown = read(&[(limit.name(), text)], &Throttle::default()).get(limit);
            assert_eq!(shown, (text != "0").then_some(setting), "0 is no limit");
        }
    }

    #[test]
    fn a_stream_without_a_count_waits_for_what_it_must() {
        let lost = |length, pending| GroupInfo {
            length,
            pending,
            lag: None,
            exists: true,
            ..GroupInfo::default()
        };
        assert_eq!(waiting(&lost(250_000, 50_000)), 100_000);
        assert_eq!(waiting(&lost(50_000, 0)), 0);
        assert_eq!(
            waiting(&GroupInfo {
                length: 7,
                ..GroupInfo::default()
            }),
            7,
            "nobody has read it yet"
        );
    }
}
