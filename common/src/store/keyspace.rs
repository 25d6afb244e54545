//! The catalogue of every key Switchback keeps in Redis. No other file spells one.
//!
//! The kind comes first, so that a kind can be tracked or granted by prefix (`sb:gate:*`); the queue is the
//! hash tag, so that all keys of a queue share a slot and a script may touch any of them.

use std::fmt::Write as _;

use crate::{
    id::SessionId,
    name::{Namespace, Queue, Version, is_valid_name},
};

/// Renders keys under one prefix, and reads them back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keyspace {
    prefix: String,
}

/// Every key, once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Key {
    /// STREAM · per queue · the main stream: waiting, in-flight and, for a while, done tasks; group `workers` from `0`.
    /// Written by producers (and by hand), [`promote`](super::moves::promote), trimmed by the trimmer.
    Stream(Queue),
    /// STREAM · per queue · like the main stream, for tasks of high priority.
    High(Queue),
    /// STREAM · per queue · like the main stream, for tasks of low priority.
    Low(Queue),
    /// STREAM · per queue · recovered, released and swept tasks; read before the main stream.
    Head(Queue),
    /// STREAM · per queue · recovered tasks that may have killed the process that ran them; read a few at a time.
    Suspect(Queue),
    /// STREAM · per queue and version · tasks the gate gave to a version that the claiming worker lacks.
    Lane(Queue, Version),
    /// STREAM · per queue and format · tasks of a format that the workers which claimed them do not know; read by those of
    /// the release that does.
    Newer(Queue, u32),
    /// ZSET · per queue · task id by due time (ms): retrying tasks.
    Delayed(Queue),
    /// HASH · per queue · task id -> packed entry fields of a delayed task. Same life as its zset member.
    Envelope(Queue),
    /// STREAM · per queue · dead letters: the entry's own fields plus `dead_*`. Never trimmed.
    Dead(Queue),
    /// HASH · per queue · **for people**: `dead waiting`, and `concurrency rate rate_per_key`. Absent = defaults.
    /// Written by [`limits::set`](super::limits::set), and by hand.
    Limits(Queue),
    /// HASH · per queue · **for people**: `active candidate percent pins targets paused`, one-shot `only inflight by why`.
    Gate(Queue),
    /// STRING · per queue · never stays: touched so that workers, which are told of every write below `sb:gate:`, look for
    /// delayed tasks. A key of its own, because producers touch it and must not need to write gates.
    Wake(Queue),
    /// HASH · per queue · scripts only: `rev digest format prev sealed_at seen ops cancels stops probe rollout`, `cancel_rev:<version>`,
    /// `min_rev:<version>` and the sealed values.
    GateState(Queue),
    /// STREAM · per queue · every gate revision; about 10 000 entries.
    History(Queue),
    /// HASH · per queue · every version ever registered -> JSON of first seen and build. Never reaped. And `:groups`, the
    /// streams that have had their group, `:absent`, versions that the gate reaches and no live worker has, and `:run` and
    /// `:runs`, the runs of the server (`log/run.lua`).
    Versions(Queue),
    /// STRING, PX · per session · exists while the session lives.
    Lease(Queue, SessionId),
    /// HASH · per queue · session -> JSON of who it is; `<session>:rev`, `:running`, `:open`, `:grant`, `:reaping`,
    /// `:suspects` beside it.
    Sessions(Queue),
    /// STREAM · per queue · attempts (one entry per settle batch) and sessions; trimmed by age and size.
    Log(Queue),
    /// HASH · per queue and minute of Redis's clock · `<version>:<done|retried|dead|…>` counters; TTL 25 h.
    Stats(Queue, u64),
    /// STRING, PX · per queue with a rate · when its bucket is full again (µs), and the rate it was filled under.
    Rate(Queue),
    /// STRING, PX · per task key of a queue with a rate per key · as [`Key::Rate`].
    KeyRate(Queue, String),
    /// STRING, PX · per idempotent enqueue · the entry id of the first try, or `delayed`.
    UniqueId(Queue, String),
    /// STRING, PX · per unique key · the id of the task that has it.
    UniqueKey(Queue, String),
    /// HASH · per queue · **for people**: schedule -> JSON definition; beside it `<schedule>:last`, the last tick fired (ms),
    /// and `<schedule>:alerted`, when the log says that the definition is broken. Written by workers, the CLI, and by hand.
    Schedules(Queue),
    /// ZSET · per queue · id of a cancelled task by when it was marked (µs of Redis's clock; negative: only if it has not
    /// started). Written by `cancel.lua`, taken away by `settle.lua`; at most 10 000, at least 7 days.
    Cancel(Queue),
    /// STRING, PX · per task that asked for it or reports progress · JSON of how it ended, or how far it is. Written by
    /// `settle.lua`, `progress.lua`, `cancel.lua`.
    Result(Queue, String),
    /// HASH · per queue · the rollout that runs, or ran last: what was asked for, how far it is, what the guard knows. Scripts only.
    Rollout(Queue),
    /// STRING, PX · per queue with a rollout · the session that drives it.
    Driver(Queue),
    /// HASH · per queue with a rollout and 10 s of Redis's clock · `<version>:…` counters of first attempts that ended then; TTL. In block
    /// 0 the names of attempts that were counted as lost.
    Block(Queue, u64),
    /// HASH · per queue · a question to the workers of one version, whether they can read what waits, and their answer; TTL.
    Probe(Queue),
    /// HASH · per queue · **for people**: `retry` and `rollout`, JSON each: the retry policy, and how rollouts go by default.
    Policy(Queue),
    /// STREAM · per namespace · every revision of its configuration that was applied as a document.
    Config(Namespace),
    /// SET · per namespace · directory of its queues. With [`Key::Config`] the only keys outside a queue's slot.
    Queues(Namespace),
}

/// The Redis type of a key, as `TYPE` prints it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyType {
    /// A stream.
    Stream,
    /// A hash.
    Hash,
    /// A string.
    String,
    /// A set.
    Set,
    /// A sorted set.
    Zset,
}

impl KeyType {
    /// What `TYPE` prints.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stream => "stream",
            Self::Hash => "hash",
            Self::String => "string",
            Self::Set => "set",
            Self::Zset => "zset",
        }
    }
}

impl Default for Keyspace {
    fn default() -> Self {
        Self {
            prefix: "sb".to_owned(),
        }
    }
}

impl Keyspace {
    /// Keys under `prefix`, which is a name like any other. Defaults to `sb`.
    ///
    /// # Errors
    /// The prefix, when it is not a valid name.
    pub fn new(prefix: &str) -> Result<Self, String> {
        if is_valid_name(prefix) {
            Ok(Self {
                prefix: prefix.to_owned(),
            })
        } else {
            Err(prefix.to_owned())
        }
    }

    /// The one prefix that covers every gate and what wakes workers, for `CLIENT TRACKING … PREFIX`.
    #[must_use]
    pub fn gate_prefix(&self) -> String {
        format!("{}:gate:", self.prefix)
    }

    /// The key's text.
    #[must_use]
    pub fn render(&self, key: &Key) -> String {
        let mut out = String::with_capacity(64);
        let prefix = &self.prefix;
        let (kind, queue) = match key {
            Key::Stream(q) | Key::High(q) | Key::Low(q) => ("stream", q),
            Key::Head(q) => ("head", q),
            Key::Suspect(q) => ("suspect", q),
            Key::Lane(q, _) => ("lane", q),
            Key::Newer(q, _) => ("newer", q),
            Key::Delayed(q) => ("delayed", q),
            Key::Envelope(q) => ("envelope", q),
            Key::Dead(q) => ("dead", q),
            Key::Limits(q) => ("limits", q),
            Key::Gate(q) => ("gate", q),
            Key::Wake(q) => ("gate:wake", q),
            Key::GateState(q) => ("gatestate", q),
            Key::History(q) => ("history", q),
            Key::Versions(q) => ("versions", q),
            Key::Lease(q, _) => ("lease", q),
            Key::Sessions(q) => ("sessions", q),
            Key::Log(q) => ("log", q),
            Key::Stats(q, _) => ("stats", q),
            Key::Rate(q) | Key::KeyRate(q, _) => ("rate", q),
            Key::UniqueId(q, _) | Key::UniqueKey(q, _) => ("unique", q),
            Key::Schedules(q) => ("schedules", q),
            Key::Cancel(q) => ("cancel", q),
            Key::Result(q, _) => ("result", q),
            Key::Rollout(q) => ("rollout", q),
            Key::Driver(q) => ("driver", q),
            Key::Block(q, _) => ("block", q),
            Key::Probe(q) => ("probe", q),
            Key::Policy(q) => ("policy", q),
            Key::Config(namespace) => return format!("{prefix}:config:{{{namespace}}}"),
            Key::Queues(namespace) => return format!("{prefix}:queues:{{{namespace}}}"),
        };
        let _ = write!(out, "{prefix}:{kind}:{{{}:{}}}", queue.namespace, queue.task_type);
        let _ = match key {
            Key::High(_) => write!(out, ":high"),
            Key::Low(_) => write!(out, ":low"),
            Key::Lane(_, version) => write!(out, ":{version}"),
            Key::Newer(_, format) => write!(out, ":{format}"),
            Key::Lease(_, session) => write!(out, ":{session}"),
            Key::Stats(_, n) | Key::Block(_, n) => write!(out, ":{n}"),
            Key::KeyRate(_, key) => write!(out, ":{key}"),
            Key::UniqueId(_, id) => write!(out, ":id:{id}"),
            Key::UniqueKey(_, key) => write!(out, ":key:{key}"),
            Key::Result(_, id) => write!(out, ":{id}"),
            Key::Stream(_)
            | Key::Head(_)
            | Key::Suspect(_)
            | Key::Delayed(_)
            | Key::Envelope(_)
            | Key::Dead(_)
            | Key::Limits(_)
            | Key::Gate(_)
            | Key::Wake(_)
            | Key::GateState(_)
            | Key::History(_)
            | Key::Versions(_)
            | Key::Sessions(_)
            | Key::Log(_)
            | Key::Schedules(_)
            | Key::Rate(_)
            | Key::Cancel(_)
            | Key::Rollout(_)
            | Key::Driver(_)
            | Key::Probe(_)
            | Key::Policy(_)
            | Key::Config(_)
            | Key::Queues(_) => Ok(()),
        };
        out
    }

    /// The key a text stands for; `None` for a text that is none of ours.
    #[must_use]
    pub fn parse(&self, text: &str) -> Option<Key> {
        let rest = text.strip_prefix(self.prefix.as_str())?.strip_prefix(':')?;
        let (kind, rest) = rest.split_once(":{")?;
        let (tag, tail) = rest.split_once('}')?;
        if kind == "queues" {
            return tail.is_empty().then(|| Namespace::new(tag).ok().map(Key::Queues))?;
        }
        if kind == "config" {
            return tail.is_empty().then(|| Namespace::new(tag).ok().map(Key::Config))?;
        }
        let (namespace, task_type) = tag.split_once(':')?;
        let queue = Queue::new(namespace.parse().ok()?, task_type.parse().ok()?);
        let tail = match tail.strip_prefix(':') {
            Some(tail) if !tail.is_empty() => Some(tail),
            Some(_) => return None,
            None if tail.is_empty() => None,
            None => return None,
        };
        Some(match (kind, tail) {
            ("stream", None) => Key::Stream(queue),
            ("stream", Some("high")) => Key::High(queue),
            ("stream", Some("low")) => Key::Low(queue),
            ("head", None) => Key::Head(queue),
            ("suspect", None) => Key::Suspect(queue),
            ("lane", Some(version)) => Key::Lane(queue, version.parse().ok()?),
            ("newer", Some(format)) => Key::Newer(queue, number(format)?),
            ("delayed", None) => Key::Delayed(queue),
            ("envelope", None) => Key::Envelope(queue),
            ("dead", None) => Key::Dead(queue),
            ("limits", None) => Key::Limits(queue),
            ("gate", None) => Key::Gate(queue),
            ("gate:wake", None) => Key::Wake(queue),
            ("gatestate", None) => Key::GateState(queue),
            ("history", None) => Key::History(queue),
            ("versions", None) => Key::Versions(queue),
            ("lease", Some(session)) => Key::Lease(queue, SessionId::from_found(session)),
            ("sessions", None) => Key::Sessions(queue),
            ("log", None) => Key::Log(queue),
            ("schedules", None) => Key::Schedules(queue),
            ("stats", Some(minute)) => Key::Stats(queue, number(minute)?),
            ("rate", None) => Key::Rate(queue),
            ("rate", Some(key)) => Key::KeyRate(queue, key.to_owned()),
            ("unique", Some(tail)) => match tail.split_once(':')? {
                ("id", id) => Key::UniqueId(queue, id.to_owned()),
                ("key", key) => Key::UniqueKey(queue, key.to_owned()),
                _ => return None,
            },
            ("cancel", None) => Key::Cancel(queue),
            ("rollout", None) => Key::Rollout(queue),
            ("driver", None) => Key::Driver(queue),
            ("block", Some(n)) => Key::Block(queue, number(n)?),
            ("probe", None) => Key::Probe(queue),
            ("policy", None) => Key::Policy(queue),
            ("result", Some(id)) => Key::Result(queue, id.to_owned()),
            _ => return None,
        })
    }
}

/// A number in its one spelling.
fn number<N: std::str::FromStr + ToString>(text: &str) -> Option<N> {
    text.parse().ok().filter(|n: &N| n.to_string() == text)
}

impl Key {
    /// The streams that every queue has, in the order in which sessions number them; lanes come after.
    #[must_use]
    pub fn fixed_streams(queue: &Queue) -> [Self; 5] {
        [Self::Stream, Self::Head, Self::High, Self::Low, Self::Suspect].map(|key| key(queue.clone()))
    }

    /// What the log, and people, call a stream: `main`, `high`, `low`, `head`, `suspect`, `lane:<version>` or
    /// `newer:<format>`; empty for
    /// what is no stream of tasks.
    #[must_use]
    pub fn label(&self) -> String {
        match self {
            Self::Stream(_) => "main".to_owned(),
            Self::High(_) => "high".to_owned(),
            Self::Low(_) => "low".to_owned(),
            Self::Head(_) => "head".to_owned(),
            Self::Suspect(_) => "suspect".to_owned(),
            Self::Lane(_, version) => format!("lane:{version}"),
            Self::Newer(_, format) => format!("newer:{format}"),
            Self::Delayed(_)
            | Self::Envelope(_)
            | Self::Dead(_)
            | Self::Gate(_)
            | Self::Wake(_)
            | Self::GateState(_)
            | Self::History(_)
            | Self::Versions(_)
            | Self::Lease(..)
            | Self::Sessions(_)
            | Self::Log(_)
            | Self::Stats(..)
            | Self::Limits(_)
            | Self::Rate(_)
            | Self::KeyRate(..)
            | Self::UniqueId(..)
            | Self::UniqueKey(..)
            | Self::Schedules(_)
            | Self::Cancel(_)
            | Self::Result(..)
            | Self::Rollout(_)
            | Self::Driver(_)
            | Self::Block(..)
            | Self::Probe(_)
            | Self::Policy(_)
            | Self::Config(_)
            | Self::Queues(_) => String::new(),
        }
    }

    /// The type Redis must show for it.
    #[must_use]
    pub fn key_type(&self) -> KeyType {
        match self {
            Self::Stream(_)
            | Self::High(_)
            | Self::Low(_)
            | Self::Head(_)
            | Self::Suspect(_)
            | Self::Lane(..)
            | Self::Newer(..)
            | Self::Dead(_)
            | Self::History(_)
            | Self::Config(_)
            | Self::Log(_) => KeyType::Stream,
            Self::Envelope(_)
            | Self::Limits(_)
            | Self::Gate(_)
            | Self::GateState(_)
            | Self::Versions(_)
            | Self::Sessions(_)
            | Self::Schedules(_)
            | Self::Rollout(_)
            | Self::Block(..)
            | Self::Probe(_)
            | Self::Policy(_)
            | Self::Stats(..) => KeyType::Hash,
            Self::Lease(..)
            | Self::Rate(_)
            | Self::KeyRate(..)
            | Self::UniqueId(..)
            | Self::UniqueKey(..)
            | Self::Wake(_)
            | Self::Driver(_)
            | Self::Result(..) => KeyType::String,
            Self::Queues(_) => KeyType::Set,
            Self::Delayed(_) | Self::Cancel(_) => KeyType::Zset,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_key_reads_back(ns in "[A-Za-z0-9._-]{1,64}", ty in "[A-Za-z0-9._-]{1,64}",
                                tail in "[A-Za-z0-9._-]{1,64}", minute: u64, prefix in "[a-z]{1,8}", format: u32) {
            let keyspace = Keyspace::new(&prefix).unwrap();
            let q = || Queue::new(ns.parse().unwrap(), ty.parse().unwrap());
            let keys = [
                Key::Stream(q()), Key::High(q()), Key::Low(q()), Key::Head(q()), Key::Suspect(q()),
                Key::Lane(q(), tail.parse().unwrap()), Key::Delayed(q()), Key::Newer(q(), format), Key::Envelope(q()),
                Key::Dead(q()), Key::Limits(q()), Key::Gate(q()), Key::Wake(q()), Key::GateState(q()), Key::History(q()),
                Key::Versions(q()), Key::Lease(q(), SessionId::from_found(&tail)), Key::Sessions(q()), Key::Log(q()),
                Key::Stats(q(), minute), Key::UniqueId(q(), tail.clone()), Key::UniqueKey(q(), tail.clone()),
                Key::Schedules(q()), Key::Rate(q()), Key::KeyRate(q(), format!("{tail}:{{}}:é")),
                Key::Cancel(q()), Key::Result(q(), tail.clone()), Key::Rollout(q()), Key::Driver(q()),
                Key::Block(q(), minute), Key::Probe(q()), Key::Policy(q()), Key::Config(ns.parse().unwrap()),
                Key::Queues(ns.parse().unwrap()),
            ];
            for key in keys {
                let text = keyspace.render(&key);
                prop_assert_eq!(keyspace.parse(&text), Some(key), "{}", text);
            }
        }

        #[test]
        fn foreign_text_is_no_key(text in "\\PC{0,60}") {
            if let Some(key) = Keyspace::default().parse(&text) {
                prop_assert_eq!(Keyspace::default().render(&key), text);
            }
        }
    }

    #[test]
    fn the_gate_prefix_covers_gates_alone() {
        let keyspace = Keyspace::default();
        let queue = Queue::new("shop".parse().unwrap(), "send_email".parse().unwrap());
        assert_eq!(keyspace.render(&Key::Gate(queue.clone())), "sb:gate:{shop:send_email}");
        assert!(
            !keyspace
                .render(&Key::GateState(queue))
                .starts_with(&keyspace.gate_prefix())
        );
    }
}
