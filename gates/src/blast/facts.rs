//! Facts: what a log entry says, task by task. A crashed attempt's version is computed again from the gate's history.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use switchback_common::{
    SessionId, StreamId, TaskType, Version,
    store::log::{Detail, Ended, LogEntry},
};

use super::{Outcome, State};
use crate::{
    certificate::Revisions,
    decide::{Decision, decide},
    gate::Gate,
};

/// Redis tells how long an entry was held in whole milliseconds, and reads its clock once per command.
const SLACK_US: u64 = 2_000;
/// `stale` entries are cut at 64 KiB: one of nearly that size may not name all.
const STALE_CUT: usize = 63 * 1024;
/// Sessions whose versions are remembered.
const MOST_SESSIONS: usize = 100_000;

/// One thing that the log says of one task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fact {
    /// The task's id.
    pub task: String,
    /// The log entry that says it.
    pub at: StreamId,
    /// What it says.
    pub what: What,
}

/// What the log says of a task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum What {
    /// An attempt of it ended.
    #[serde(rename = "r")]
    Ran(Ran),
    /// The result of an attempt was refused, for its session had been lost.
    #[serde(rename = "s")]
    Stale {
        /// Whose.
        #[serde(rename = "s")]
        session: String,
        /// The version it ran on.
        #[serde(rename = "v")]
        version: Version,
        /// What was refused.
        #[serde(rename = "r")]
        refused: Outcome,
    },
    /// A session held it, or holds it.
    #[serde(rename = "h")]
    Held(Holding),
    /// It went somewhere else without an attempt.
    #[serde(rename = "m")]
    Moved {
        /// Where it is since.
        #[serde(rename = "t")]
        to: State,
        /// Attempts given back on the way.
        #[serde(rename = "n")]
        refunded: u64,
    },
}

/// An attempt that ended, as a row of `settled` says it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "as in `blast::Attempt`")]
pub struct Ran {
    #[serde(rename = "n")]
    pub attempt: u32,
    #[serde(rename = "v")]
    pub version: Version,
    #[serde(rename = "x")]
    pub ended: Outcome,
    #[serde(rename = "g")]
    pub rev: u64,
    #[serde(rename = "a")]
    pub read_us: u64,
    #[serde(rename = "d")]
    pub ran_ms: u64,
    #[serde(rename = "s")]
    pub session: String,
    #[serde(rename = "p")]
    pub stream: String,
    #[serde(rename = "e")]
    pub entry: String,
    #[serde(rename = "k")]
    pub sure: bool,
}

/// A task that a session held: what can be said of the attempt that may have begun there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holding {
    /// [`Outcome::Vanished`] or [`Outcome::Running`].
    #[serde(rename = "x")]
    pub ended: Outcome,
    /// Which session.
    #[serde(rename = "s")]
    pub session: String,
    /// From which stream.
    #[serde(rename = "p")]
    pub stream: String,
    /// Which entry.
    #[serde(rename = "e")]
    pub entry: String,
    /// Since when, µs.
    #[serde(rename = "f")]
    pub from_us: u64,
    /// Until when, µs.
    #[serde(rename = "u")]
    pub until_us: u64,
    /// The versions it may have run on; none: it cannot have begun. `None`: the history does not reach back.
    #[serde(rename = "v")]
    pub versions: Option<Vec<Version>>,
    /// Whether its routing key was unknown: where several versions are left, whoever finds the task can tell them apart.
    #[serde(rename = "b")]
    pub keyless: bool,
    /// Whether it is a dead letter since, `poison`.
    #[serde(rename = "d")]
    pub poison: bool,
}

impl Fact {
    /// One line, without its end: facts may be millions, and lie in a file on their way.
    #[must_use]
    pub fn to_line(&self) -> String {
        let line = (&self.task, self.at.ms, self.at.seq, &self.what);
        serde_json::to_string(&line).unwrap_or_default()
    }

    /// Reads [`Fact::to_line`] back.
    #[must_use]
    pub fn of_line(line: &[u8]) -> Option<Self> {
        let (task, ms, seq, what) = serde_json::from_slice(line).ok()?;
        Some(Self {
            task,
            at: StreamId { ms, seq },
            what,
        })
    }
}

/// The versions that a task with this routing key was given at some time from `from_us` to `until_us`.
///
/// `key` `None`: it is not known. Empty: nothing started all the while. `None`: the history does not reach back.
#[must_use]
pub fn routed(
    revisions: &Revisions,
    task_type: &TaskType,
    key: Option<&str>,
    (from_us, until_us): (u64, u64),
) -> Option<Vec<Version>> {
    let gates = revisions.in_force(from_us, until_us);
    if gates.is_empty() {
        return None;
    }
    let mut versions: Vec<Version> = gates.iter().flat_map(|r| given(&r.gate, task_type, key)).collect();
    versions.sort();
    versions.dedup();
    Some(versions)
}

/// What a gate gives to a task. Its headers are not in the log: any target may have been meant, unless a pin wins.
fn given(gate: &Gate, task_type: &TaskType, key: Option<&str>) -> Vec<Version> {
    match key {
        Some(key) => match decide(gate, task_type, &BTreeMap::new(), || key.to_owned()) {
            Decision::Run(version) if gate.pins.contains_key(key) => vec![version.clone()],
            Decision::Run(version) => [version].into_iter().chain(gate.targets.values()).cloned().collect(),
            Decision::Hold => Vec::new(),
        },
        None if gate.paused => Vec::new(),
        None => gate.reachable(),
    }
}

/// Reads a log, oldest entry first.
#[derive(Debug)]
pub struct Reader<'a> {
    revisions: &'a Revisions,
    task_type: &'a TaskType,
    /// The versions of the sessions that the log has spoken of.
    sessions: BTreeMap<SessionId, Vec<Version>>,
    /// Entries about late results that may not name all of them.
    pub stale_cut: u64,
}

impl<'a> Reader<'a> {
    /// Of the log of a queue with this history.
    #[must_use]
    pub fn new(revisions: &'a Revisions, task_type: &'a TaskType) -> Self {
        Self {
            revisions,
            task_type,
            sessions: BTreeMap::new(),
            stale_cut: 0,
        }
    }

    /// The session has these versions.
    pub fn session(&mut self, session: &SessionId, versions: &[Version]) {
        if !versions.is_empty() && self.sessions.len() < MOST_SESSIONS {
            self.sessions.insert(session.clone(), versions.to_vec());
        }
    }

    /// The versions that an attempt may have run on that `session` held from one time to the other.
    #[must_use]
    pub fn versions(&self, session: &SessionId, key: Option<&str>, between: (u64, u64)) -> Option<Vec<Version>> {
        let had = self.sessions.get(session);
        let routed = routed(self.revisions, self.task_type, key, between);
        match (routed, had) {
            // A version that its worker lacked it did not run.
            (Some(routed), Some(had)) => Some(routed.into_iter().filter(|v| had.contains(v)).collect()),
            (Some(routed), None) => Some(routed),
            (None, Some(had)) => Some(had.clone()),
            (None, None) => None,
        }
    }

    /// What `entry` says of tasks, one after the other.
    pub fn read(&mut self, entry: &LogEntry, mut each: impl FnMut(Fact)) {
        let at = entry.id;
        let mut say = |task: &str, what| {
            each(Fact {
                task: task.to_owned(),
                at,
                what,
            });
        };
        let moved = |to| What::Moved { to, refunded: 0 };
        let pairs = || {
            entry
                .text
                .split_ascii_whitespace()
                .filter_map(|pair| pair.split_once('='))
        };
        match entry.kind.as_str() {
            "joined" | "reaping" => self.session(&entry.session, &entry.detail.versions),
            "settled" => {
                let sure = entry.acked == "all";
                for (task, _) in &entry.cancelled {
                    say(&task.to_string(), moved(State::Cancelled));
                }
                for group in &entry.attempts {
                    for row in &group.tasks {
                        let ran = Ran {
                            attempt: row.2,
                            version: group.version.clone(),
                            ended: row.3.into(),
                            rev: group.rev,
                            read_us: group.at,
                            ran_ms: row.4,
                            session: entry.session.to_string(),
                            stream: group.stream.clone(),
                            entry: row.1.clone(),
                            sure,
                        };
                        say(&row.0.to_string(), What::Ran(ran));
                    }
                }
            }
            "recovered" | "poison" => {
                for (place, (task, claimed)) in pairs().enumerate() {
                    let holding = self.vanished(entry, place, task, claimed);
                    say(task, What::Held(holding));
                }
            }
            "stale" => {
                self.stale_cut += u64::from(entry.text.len() > STALE_CUT);
                for word in entry.text.split_ascii_whitespace() {
                    // Cut in the middle of a word: the rest is not there.
                    let Some((task, version, refused)) = late_result(word) else {
                        continue;
                    };
                    let session = entry.session.to_string();
                    say(
                        task,
                        What::Stale {
                            session,
                            version,
                            refused,
                        },
                    );
                }
            }
            "cancel" => {
                if let Some((task, "removed")) = entry.text.split_once(": ") {
                    say(task, moved(State::Cancelled));
                }
            }
            "requeued" | "refunded" => {
                let to = if entry.kind == "requeued" {
                    State::InLine
                } else {
                    State::Retrying
                };
                for (place, (task, _)) in pairs().enumerate() {
                    let refunded = entry.detail.refunds.get(place).map_or(0, |&n| u64::from(n));
                    say(task, What::Moved { to, refunded });
                }
            }
            "discarded" => pairs().for_each(|(task, _)| say(task, moved(State::Discarded))),
            _ => {}
        }
    }

    fn vanished(&self, entry: &LogEntry, place: usize, task: &str, claimed: &str) -> Holding {
        let Detail {
            stream, held_ms, keys, ..
        } = &entry.detail;
        // Of an older release's entry: at any time before.
        let from_us = held_ms
            .get(place)
            .map_or(0, |ms| entry.at_us.saturating_sub(ms.saturating_mul(1_000) + SLACK_US));
        let known = keys.as_ref().map(|keys| keys.get(claimed).map_or(task, String::as_str));
        Holding {
            ended: Outcome::Vanished,
            session: entry.session.to_string(),
            stream: stream.clone(),
            entry: claimed.to_owned(),
            from_us,
            until_us: entry.at_us,
            versions: self.versions(&entry.session, known, (from_us, entry.at_us)),
            keyless: known.is_none(),
            poison: entry.kind == "poison",
        }
    }
}

/// `task@version=outcome`. No part can hold `@` or `=`.
fn late_result(word: &str) -> Option<(&str, Version, Outcome)> {
    let (task, rest) = word.rsplit_once('@')?;
    let (version, ended) = rest.split_once('=')?;
    let ended: Ended = serde_json::from_value(serde_json::Value::from(ended)).ok()?;
    Some((task, version.parse().ok()?, ended.into()))
}
