//! Limits of a queue (P10): how many tasks may wait, how many dead letters may lie there.
//!
//! People set them: with [`set`], or with `HSET` by hand. Reading is lenient: what makes no sense is reported, and the
//! default holds in its place.

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
};

/// A limit that people set. 0 means none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Limit {
    /// Dead letters: at the limit the queue is put on hold. Defaults to 100 000.
    Dead,
    /// Waiting and delayed tasks: at the limit enqueueing is refused. Defaults to 10 000 000: ten times what a queue is
    /// tested with, and for small tasks about what a Redis of a few GB holds. It is there to stop one runaway producer
    /// before `maxmemory` stops every queue.
    Waiting,
}

/// Largest limit that is believed.
const LARGEST: u64 = 1_000_000_000_000;
/// Fields of the hash that other duties read.
const OTHERS: [&str; 3] = ["concurrency", "rate", "rate_per_key"];

impl Limit {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Dead, Self::Waiting];

    /// Its field in the hash.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Dead => "dead",
            Self::Waiting => "waiting",
        }
    }

    /// What holds when nobody says.
    #[must_use]
    pub fn default_value(self) -> u64 {
        match self {
            Self::Dead => 100_000,
            Self::Waiting => 10_000_000,
        }
    }

    /// The limit that a field's text means; `""` is the default.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(self, text: &str) -> Result<u64, String> {
        if text.is_empty() {
            return Ok(self.default_value());
        }
        match text.trim().parse() {
            Ok(number) if number <= LARGEST => Ok(number),
            _ => Err(format!(
                "{} is {:?}, not a number from 0 (no limit) to {LARGEST}",
                self.name(),
                clip(text, 40)
            )),
        }
    }
}

/// The limits in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Most dead letters; 0 = no limit.
    pub dead: u64,
    /// Most waiting and delayed tasks; 0 = no limit.
    pub waiting: u64,
    /// Which of them somebody set, validly.
    pub set: Vec<Limit>,
    /// What makes no sense in the hash, and so does not count.
    pub problems: Vec<String>,
}

impl Default for Limits {
    fn default() -> Self {
        Self::of(&Fields::new())
    }
}

impl Limits {
    /// One of them.
    #[must_use]
    pub fn value(&self, limit: Limit) -> u64 {
        match limit {
            Limit::Dead => self.dead,
            Limit::Waiting => self.waiting,
        }
    }

    /// Reads the hash.
    #[must_use]
    pub fn of(fields: &Fields) -> Self {
        let mut out = Self {
            dead: Limit::Dead.default_value(),
            waiting: Limit::Waiting.default_value(),
            set: Vec::new(),
            problems: Vec::new(),
        };
        for (name, value) in fields {
            let name = String::from_utf8_lossy(name);
            let Some(limit) = Limit::ALL.into_iter().find(|limit| limit.name() == name) else {
                if !OTHERS.contains(&&*name) {
                    out.problems.push(format!("there is no limit {:?}", clip(&name, 40)));
                }
                continue;
            };
            match limit.parse(&String::from_utf8_lossy(value)) {
                Ok(number) => {
                    *match limit {
                        Limit::Dead => &mut out.dead,
                        Limit::Waiting => &mut out.waiting,
                    } = number;
                    out.set.push(limit);
                }
                Err(problem) => {
                    let holds = limit.default_value();
                    out.problems.push(format!("{problem}: the default of {holds} holds"));
                }
            }
        }
        out
    }
}

fn key(store: &Store, queue: &Queue) -> String {
    store.keyspace().render(&Key::Limits(queue.clone()))
}

/// The limits of a queue. A key of another type (`SET` for `HSET`) is reported like any other value without sense.
///
/// # Errors
/// When Redis does not answer.
pub async fn read(store: &Store, queue: &Queue) -> Result<Limits, StoreError> {
    let mut cmd = Cmd::new();
    cmd.arg("HGETALL").arg(key(store, queue));
    match store.warm().await?.run(cmd).await {
        Ok(fields) => Ok(Limits::of(&reply::fields("limits", fields)?)),
        Err(StoreError::Redis { source, .. }) if source.code() == Some("WRONGTYPE") => Ok(Limits {
            problems: vec![format!(
                "{} is not a hash: the defaults hold; delete it",
                key(store, queue)
            )],
            ..Limits::default()
        }),
        Err(error) => Err(error),
    }
}

/// Sets limits; `None` brings the default back. Says whether anything changed; a change leaves one entry in the log.
///
/// # Errors
/// When Redis does not answer; doing it again is harmless.
pub async fn set(
    store: &Store,
    queue: &Queue,
    edits: &[(Limit, Option<u64>)],
    by: &str,
    why: &str,
) -> Result<bool, StoreError> {
    let mut call = script::LIMITS_SET.prepare_invoke();
    call.key(key(store, queue))
        .key(store.keyspace().render(&Key::Log(queue.clone())));
    call.arg(clip(by, 64)).arg(clip(why, 500));
    for (limit, value) in edits {
        call.arg(limit.name())
            .arg(value.map_or_else(String::new, |n| n.min(LARGEST).to_string()));
    }
    let (word, _) = reply::verdict("limits", store.warm().await?.run_script(&call).await?)?;
    Ok(word == "set")
}

/// One field as it lies there; a key of another type has none.
fn raw(found: Result<Value, StoreError>) -> Result<Vec<u8>, StoreError> {
    match found {
        Err(StoreError::Redis { .. }) => Ok(Vec::new()),
        found => reply::bytes("limits", found?),
    }
}

/// P8: a limit without sense is no other limit than the default.
fn in_force(limit: Limit, raw: &[u8]) -> u64 {
    let parsed = limit.parse(&String::from_utf8_lossy(raw));
    parsed.unwrap_or_else(|_| limit.default_value())
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
    let limit = in_force(Limit::Waiting, &raw(next())?);
    let mut sum = reply::count("ZCARD", &next()?)?;
    let versions = reply::array("versions", next()?)?;
    for _ in fixed {
        sum += waiting(&GroupInfo::of(&next()?, next().ok())?);
    }
    if limit > 0 && !versions.is_empty() {
        let mut pipe = redis::pipe();
        for version in versions {
            if let Ok(version) = reply::text("versions", version)?.parse::<Version>() {
                append_group(&mut pipe, &render(Key::Lane(queue.clone(), version)));
            }
        }
        let mut replies = link.run_pipe(&mut pipe).await?.into_iter();
        while let Some(length) = replies.next() {
            let groups = replies.next().and_then(Result::ok);
            sum += waiting(&GroupInfo::of(&length.map_err(|e| link.error(e))?, groups)?);
        }
    }
    Ok(Fullness { limit, waiting: sum })
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
    let limit = in_force(Limit::Dead, &raw);
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

    #[test]
    fn what_makes_no_sense_is_named_and_the_default_holds() {
        let fields = [("dead", "5"), ("waiting", "lots"), ("rate", "100/s"), ("deed", "1")];
        let fields = fields.map(|(k, v)| (k.as_bytes().to_vec(), v.as_bytes().to_vec()));
        let limits = Limits::of(&fields.to_vec());
        assert_eq!((limits.dead, limits.waiting), (5, Limit::Waiting.default_value()));
        assert_eq!(limits.set, [Limit::Dead]);
        assert_eq!(limits.problems.len(), 2, "{limits:?}");
        assert!(limits.problems[0].contains("\"lots\"") && limits.problems[1].contains("\"deed\""));
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
