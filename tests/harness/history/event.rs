//! What a history consists of. One event is one line of JSON.

use serde::{Deserialize, Serialize};
use switchback_common::store::log::AttemptGroup;

/// Something that somebody wrote down.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// What the fleet was set to.
    Terms(Terms),
    /// The harness enqueued.
    Enqueue(Enqueue),
    /// The harness changed the gate.
    Flip(Flip),
    /// The harness broke something.
    Fault {
        /// When, ns.
        at: u64,
        /// What.
        what: String,
    },
    /// A handler began.
    Start(Start),
    /// A handler is about to fail, reject or panic.
    Fail(Place),
    /// A handler had its effect.
    Effect {
        /// Which task, by the harness's number.
        n: u64,
        /// Which task, by its id.
        id: String,
        /// Where it was claimed from.
        place: Place,
    },
    /// An entry of the queue's log.
    Log(LogLine),
    /// An entry of the gate's history.
    Revision(Revision),
    /// A task that is still in Redis.
    Remains(Remains),
}

/// What the fleet was set to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms {
    /// The task type, on which the sticky percent depends.
    pub task_type: String,
    /// How old a gate read may be when a task starts under it, ms.
    pub start_ttl_ms: u64,
    /// Attempts in all.
    pub max_attempts: u32,
    /// Everything was healed, and then given time: nothing may wait any more.
    pub healed: bool,
}

/// One enqueue by the harness.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Enqueue {
    /// The harness's number of the task; it is in the payload.
    pub n: u64,
    /// The id that the harness gave it, or that the reply told.
    pub id: Option<String>,
    /// Its key.
    pub key: Option<String>,
    /// What its handler was asked to do.
    pub then: String,
    /// Before the first byte was sent, ns.
    pub sent: u64,
    /// What the harness knows of it.
    pub outcome: Outcome,
}

/// What the harness knows of an enqueue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It was acknowledged.
    Acknowledged,
    /// No reply came.
    Unknown,
    /// It was refused: there must be no such task.
    Refused,
}

/// One change of the gate by the harness.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flip {
    /// Before the first byte was sent, ns.
    pub sent: u64,
    /// After the reply, ns. From then on only `reach` may start.
    pub replied: u64,
    /// The versions that may start; none while paused.
    pub reach: Vec<String>,
    /// Named in the history as the reason.
    pub why: String,
    /// The revision, where the reply told one.
    pub rev: Option<u64>,
}

/// What a claim took: a stream by the log's name for it, and an entry.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Place {
    /// `main`, `head`, `lane:<version>`.
    pub stream: String,
    /// The entry's id.
    pub entry: String,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.stream, self.entry)
    }
}

/// One start of a handler, as its process wrote it down.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    /// The task, by the harness's number.
    pub n: u64,
    /// The task, by its id.
    pub id: String,
    /// The version.
    pub version: String,
    /// When the start check was passed, ns.
    pub at: u64,
    /// Which attempt.
    pub attempt: u32,
    /// How often a worker had been lost with it.
    pub deaths: u32,
    /// The revision it was decided under.
    pub rev: u64,
    /// Redis's TIME read before the gate that decided it, µs.
    pub read_us: u64,
    /// The session it ran in.
    pub session: String,
    /// What was claimed.
    pub place: Place,
}

/// One entry of the gate's history.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revision {
    /// `change`, `refused`, `note`, `restored`.
    pub kind: String,
    /// The revision.
    pub rev: u64,
    /// When it was sealed, µs on Redis's clock.
    pub at_us: u64,
    /// `cli`, `redis-cli`, `seed`, `regress`.
    pub source: String,
    /// Why.
    pub why: String,
    /// People's fields before, JSON.
    pub before: String,
    /// People's fields after, JSON.
    pub after: String,
    /// What became of what ran on withdrawn versions, if it did not just finish.
    #[serde(default)]
    pub inflight: String,
}

/// A task found in Redis at the end, and not settled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remains {
    /// `dead`, `delayed`, or the stream it waits in or is pending in.
    pub stream: String,
    /// The task.
    pub id: String,
    /// The harness's number, if the payload could be read.
    pub n: Option<u64>,
    /// Of a dead letter: why.
    pub reason: String,
    /// Attempts made.
    pub attempt: u32,
}

/// An entry of the queue's log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    /// Its id, as ms and seq: Redis's order.
    pub order: (u64, u64),
    /// The session it speaks of.
    pub session: String,
    /// What it says.
    pub what: What,
}

/// What an entry of the log says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    /// The session began.
    Joined,
    /// The session ended in good order.
    Left,
    /// Outcomes took effect: all of them if `whole`, else nobody can say which.
    Settled {
        /// The attempts.
        groups: Vec<AttemptGroup>,
        /// Whether every outcome of the batch took effect.
        whole: bool,
    },
    /// The session was declared lost, at this time (µs).
    Reaping {
        /// When, µs on Redis's clock.
        at_us: u64,
    },
    /// Entries of the session were moved to the head stream.
    Recovered {
        /// From where.
        stream: String,
        /// Task and entry of each.
        tasks: Vec<(String, String)>,
    },
    /// Anything else.
    Other {
        /// Its kind.
        kind: String,
        /// Its text.
        text: String,
    },
}
