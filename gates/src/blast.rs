//! The blast radius of a version: what it did to which tasks, and what became of them. Pure: log and history in, words out.
//!
//! The log is read once ([`facts`]), its facts are sorted by task, and each task's facts make a [`Story`]. A [`Report`]
//! counts stories. Nothing here holds more than one task at a time: the log may be larger than memory.

pub mod facts;
pub mod report;

use serde::Serialize;
use switchback_common::{StreamId, Version, store::log::Ended};

pub use self::{
    facts::{Fact, Reader, What},
    report::Report,
};

/// What is asked: a version, and a time in which an attempt on it read its gate (µs of Redis's clock, both ends included).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// The version.
    pub version: Version,
    /// From then on.
    pub since_us: u64,
    /// Until then.
    pub until_us: u64,
}

/// How an attempt ended, as far as the log knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Its handler returned `Ok`.
    Done,
    /// It failed and is tried again.
    Retried,
    /// It failed for the last time.
    Dead,
    /// It was given back.
    Released,
    /// Its handler put it off.
    Snoozed,
    /// Its task was cancelled while it ran.
    Cancelled,
    /// A flip had said that its result must not count.
    Revoked,
    /// Its result came after its session was lost, and was refused.
    Stale,
    /// Its session was lost with it. It may have begun; nobody knows.
    Vanished,
    /// A session holds it: it runs, or is about to.
    Running,
    /// A word of a newer release.
    Other,
}

impl Outcome {
    /// The word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Retried => "retried",
            Self::Dead => "dead",
            Self::Released => "released",
            Self::Snoozed => "snoozed",
            Self::Cancelled => "cancelled",
            Self::Revoked => "revoked",
            Self::Stale => "stale",
            Self::Vanished => "vanished",
            Self::Running => "running",
            Self::Other => "other",
        }
    }

    /// Whether the handler may have had effects: it began, and did not itself say that the work is still to be done.
    #[must_use]
    pub fn may_have_effects(self) -> bool {
        self != Self::Snoozed
    }
}

impl From<Ended> for Outcome {
    fn from(ended: Ended) -> Self {
        match ended {
            Ended::Done => Self::Done,
            Ended::Retried => Self::Retried,
            Ended::Dead => Self::Dead,
            Ended::Released => Self::Released,
            Ended::Snoozed => Self::Snoozed,
            Ended::Cancelled => Self::Cancelled,
            Ended::Revoked => Self::Revoked,
            Ended::Other => Self::Other,
        }
    }
}

/// One attempt of a task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Attempt {
    /// Which, from 1; `None`: the log does not say.
    pub attempt: Option<u32>,
    /// The version it ran on; `None`: one of several.
    pub version: Option<Version>,
    /// Which versions it may have run on; empty when that is known, or when it may have been any.
    pub one_of: Vec<Version>,
    /// How it ended.
    pub outcome: Outcome,
    /// Of `stale`: the outcome that was refused.
    pub refused: Option<Outcome>,
    /// The revision it was decided under.
    pub rev: Option<u64>,
    /// When its gate was read, µs of Redis's clock.
    pub gate_read_at_us: Option<u64>,
    /// Of `vanished` and `running`: when it was claimed, at the earliest.
    pub claimed_at_us: Option<u64>,
    /// When the log learned of its end.
    pub settled_at_us: Option<u64>,
    /// How long it ran.
    pub ran_ms: Option<u64>,
    /// Whose attempt it was.
    pub session: String,
    /// Where it was claimed from.
    pub stream: String,
    /// The entry that was claimed.
    pub entry: String,
    /// Whether its outcome surely took effect. (Part of its batch did not: the entry was not its any more.)
    pub sure: bool,
}

/// Whether something is so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Is {
    /// It is not.
    No,
    /// Nobody can tell.
    Perhaps,
    /// It is.
    Surely,
}

impl Attempt {
    /// Whether it ran on `version`.
    #[must_use]
    pub fn on(&self, version: &Version) -> Is {
        match &self.version {
            Some(it) if it == version => Is::Surely,
            Some(_) => Is::No,
            None if self.one_of.is_empty() || self.one_of.contains(version) => Is::Perhaps,
            None => Is::No,
        }
    }

    /// Whether it is one that was asked for.
    #[must_use]
    pub fn fits(&self, question: &Question) -> Is {
        let end = self.gate_read_at_us.or(self.settled_at_us).unwrap_or(u64::MAX);
        let begin = self.gate_read_at_us.or(self.claimed_at_us).unwrap_or(end);
        if begin > question.until_us || end < question.since_us {
            return Is::No;
        }
        self.on(&question.version)
    }
}

/// Where a task is now, as far as the log tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Done.
    Done,
    /// It failed, and waits for its next attempt (or is in line for it).
    Retrying,
    /// A dead letter.
    Dead,
    /// Cancelled.
    Cancelled,
    /// A dead letter that was deleted.
    Discarded,
    /// In line: given back, recovered, requeued or put off.
    InLine,
    /// A session holds it.
    Running,
    /// The log says nothing that tells.
    Unknown,
}

/// What became of a task that a version touched: exactly one of these.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fate {
    /// It was done on the version: perhaps wrongly, a candidate for compensation.
    DoneOnIt,
    /// It did not end on the version, and was done on another one.
    Recovered,
    /// It failed on the version, last, and waits to be tried again.
    Waiting,
    /// It died on the version, and still is a dead letter.
    Dead,
    /// A session holds it.
    Running,
    /// It is in line: given back, recovered, revoked, requeued or put off.
    InLine,
    /// After the version it failed on another one too, and waits, or is a dead letter.
    FailedElsewhere,
    /// It was cancelled.
    Cancelled,
    /// It was a dead letter, and was deleted.
    Discarded,
    /// The log says nothing that tells.
    Unknown,
}

/// What the log says of one task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Story {
    /// Its id.
    pub task: String,
    /// Its attempts, in the order in which the log learned of them.
    pub attempts: Vec<Attempt>,
    /// Where it is now.
    pub state: State,
    /// Attempts that were given back.
    pub refunded: u64,
}

impl Story {
    /// Puts together what the log says of one task. `facts`: in the log's order.
    #[must_use]
    pub fn of(task: String, facts: impl IntoIterator<Item = Fact>) -> Self {
        let mut story = Self {
            task,
            attempts: Vec::new(),
            state: State::Unknown,
            refunded: 0,
        };
        for fact in facts {
            story.add(fact);
        }
        story
    }

    fn add(&mut self, fact: Fact) {
        let settled = Some(fact.at.ms.saturating_mul(1_000));
        match fact.what {
            What::Ran(ran) => {
                // It was held when that was looked at, and has ended since.
                let ended = |a: &Attempt| a.session == ran.session && a.entry == ran.entry && a.stream == ran.stream;
                self.attempts.retain(|a| a.outcome != Outcome::Running || !ended(a));
                self.state = match ran.ended {
                    Outcome::Done => State::Done,
                    Outcome::Retried => State::Retrying,
                    Outcome::Dead => State::Dead,
                    Outcome::Cancelled => State::Cancelled,
                    Outcome::Released | Outcome::Snoozed | Outcome::Revoked => State::InLine,
                    Outcome::Stale | Outcome::Vanished | Outcome::Running | Outcome::Other => State::Unknown,
                };
                self.attempts.push(Attempt {
                    attempt: Some(ran.attempt),
                    version: Some(ran.version),
                    one_of: Vec::new(),
                    outcome: ran.ended,
                    refused: None,
                    rev: Some(ran.rev),
                    gate_read_at_us: Some(ran.read_us),
                    claimed_at_us: None,
                    settled_at_us: settled,
                    ran_ms: Some(ran.ran_ms),
                    session: ran.session,
                    stream: ran.stream,
                    entry: ran.entry,
                    sure: ran.sure,
                });
            }
            What::Stale {
                session,
                version,
                refused,
            } => {
                let same = |a: &&mut Attempt| a.outcome == Outcome::Vanished && a.session == session;
                if let Some(vanished) = self.attempts.iter_mut().rev().find(same) {
                    // It had not died after all: now the log knows how that attempt ended, and where it ran.
                    vanished.version = Some(version);
                    vanished.one_of.clear();
                    vanished.outcome = Outcome::Stale;
                    vanished.refused = Some(refused);
                } else {
                    self.attempts.push(Attempt {
                        version: Some(version),
                        outcome: Outcome::Stale,
                        refused: Some(refused),
                        settled_at_us: settled,
                        ..blank(session)
                    });
                }
            }
            What::Held(held) => {
                let same = |a: &Attempt| a.session == held.session && a.entry == held.entry;
                match held.ended {
                    Outcome::Running if self.attempts.iter().any(same) => return,
                    _ => self.attempts.retain(|a| a.outcome != Outcome::Running || !same(a)),
                }
                self.state = match (held.ended, held.poison) {
                    (Outcome::Running, _) => State::Running,
                    (_, true) => State::Dead,
                    _ => State::InLine,
                };
                let same =
                    |a: &&mut Attempt| a.outcome == Outcome::Stale && a.session == held.session && a.entry.is_empty();
                if let Some(stale) = self.attempts.iter_mut().rev().find(same) {
                    (stale.stream, stale.entry) = (held.stream, held.entry);
                    stale.claimed_at_us = Some(held.from_us);
                    return;
                }
                let (version, one_of) = match held.versions {
                    // Nothing that it could have run on: it was never started.
                    Some(versions) if versions.is_empty() => return,
                    Some(mut versions) if versions.len() == 1 => (versions.pop(), Vec::new()),
                    Some(versions) => (None, versions),
                    None => (None, Vec::new()),
                };
                self.attempts.push(Attempt {
                    version,
                    one_of,
                    outcome: held.ended,
                    claimed_at_us: Some(held.from_us),
                    settled_at_us: (held.ended != Outcome::Running).then_some(held.until_us),
                    stream: held.stream,
                    entry: held.entry,
                    ..blank(held.session)
                });
            }
            What::Moved { to, refunded } => {
                self.state = to;
                self.refunded += refunded;
            }
        }
    }

    /// Whether the version asked for touched it.
    #[must_use]
    pub fn touched(&self, question: &Question) -> Is {
        let all = self.attempts.iter().map(|a| a.fits(question));
        all.max().unwrap_or(Is::No)
    }

    /// The attempts asked for, those of which it is not certain included.
    pub fn asked<'a>(&'a self, question: &'a Question) -> impl Iterator<Item = &'a Attempt> {
        self.attempts.iter().filter(|a| a.fits(question) > Is::No)
    }

    /// Whether more than one attempt of it may have had effects, at least one of them among those asked for.
    ///
    /// An attempt may have had effects if its handler began, however that ended, and did not put the task off itself. One
    /// with a number above 1 tells of an earlier one that failed, whether or not the log still knows of it.
    #[must_use]
    pub fn is_duplicated(&self, question: &Question) -> bool {
        let effective = |a: &&Attempt| a.outcome.may_have_effects();
        let any = self.attempts.iter().filter(effective).count();
        let mut asked = self.asked(question).filter(effective).peekable();
        asked.peek().is_some() && (any > 1 || asked.any(|a| a.attempt.is_some_and(|n| n > 1)))
    }

    /// What became of it, seen from the version asked for.
    #[must_use]
    pub fn fate(&self, question: &Question) -> Fate {
        let last_on_it = self.attempts.last().is_some_and(|a| a.on(&question.version) > Is::No);
        match self.state {
            State::Done => {
                let done = self.attempts.iter().rev().find(|a| a.outcome == Outcome::Done);
                match done.is_some_and(|a| a.on(&question.version) == Is::Surely) {
                    true => Fate::DoneOnIt,
                    false => Fate::Recovered,
                }
            }
            State::Retrying if last_on_it => Fate::Waiting,
            State::Dead if last_on_it => Fate::Dead,
            State::Retrying | State::Dead => Fate::FailedElsewhere,
            State::Cancelled => Fate::Cancelled,
            State::Discarded => Fate::Discarded,
            State::InLine => Fate::InLine,
            State::Running => Fate::Running,
            State::Unknown => Fate::Unknown,
        }
    }

    /// The entry by which it is known best: the latest one asked for.
    #[must_use]
    pub fn entry<'a>(&'a self, question: &'a Question) -> Option<&'a str> {
        let last = self.asked(question).last()?;
        Some(last.entry.as_str()).filter(|entry| !entry.is_empty())
    }
}

fn blank(session: String) -> Attempt {
    Attempt {
        attempt: None,
        version: None,
        one_of: Vec::new(),
        outcome: Outcome::Other,
        refused: None,
        rev: None,
        gate_read_at_us: None,
        claimed_at_us: None,
        settled_at_us: None,
        ran_ms: None,
        session,
        stream: String::new(),
        entry: String::new(),
        sure: true,
    }
}

/// Sorts the facts of several tasks, and gives each task's story. In the order of their first facts.
#[must_use]
pub fn stories(mut facts: Vec<Fact>) -> Vec<Story> {
    facts.sort_by(|a, b| (&a.task, a.at).cmp(&(&b.task, b.at)));
    let mut out: Vec<(StreamId, Story)> = Vec::new();
    let mut facts = facts.into_iter().peekable();
    while let Some(first) = facts.next() {
        let (task, at) = (first.task.clone(), first.at);
        let mut story = Story::of(task, [first]);
        while let Some(next) = facts.next_if(|f| f.task == story.task) {
            story.add(next);
        }
        out.push((at, story));
    }
    out.sort_by_key(|(at, _)| *at);
    out.into_iter().map(|(_, story)| story).collect()
}

#[cfg(test)]
mod tests;
