//! What became of a claimed entry: from an attempt to the settler.

use std::time::Duration;

use switchback_common::{
    StreamId, TaskId, Version,
    clock::Moment,
    store::{
        log::Ended,
        settle::{Fate, Keep},
    },
};

use crate::blocks::Counted;

/// What a settler is told.
#[derive(Debug)]
pub(crate) enum Message {
    /// An entry's outcome.
    Outcome(Outcome),
    /// Nothing ended, but floors moved: trim.
    Trim,
    /// Every attempt has ended: nothing will follow.
    Close,
}

/// What became of one claimed entry.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) place: usize,
    pub(crate) entry: StreamId,
    /// How large the entry is, for whoever moves it.
    pub(crate) bytes: usize,
    /// The attempt, if one ran.
    pub(crate) ran: Option<Ran>,
    /// `None`: plain done.
    pub(crate) fate: Option<(Fate, Vec<(&'static str, String)>)>,
    /// What is kept of the task, if this ends it; only with a fate.
    pub(crate) keep: Option<Box<Keep>>,
}

/// An attempt that ran.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) task: TaskId,
    pub(crate) version: Version,
    pub(crate) attempt: u32,
    /// How often the task was taken from a worker that died.
    pub(crate) recovered: u32,
    /// Of a task with a key, while its block is counted: the key's fingerprint.
    pub(crate) key: Option<u64>,
    /// A pin or a target sent it to its version; only known while its block is counted.
    pub(crate) placed: bool,
    /// The rate of its key had given it its time: used now, whether or not the attempt counts.
    pub(crate) timed: bool,
    pub(crate) ended: Ended,
    pub(crate) started: Moment,
    pub(crate) stopped: Moment,
    /// How much of its length was counted while it ran.
    pub(crate) counted: Counted,
    pub(crate) rev: u64,
    pub(crate) read_us: u64,
    /// Where the task goes if the attempt is not to count, and since when it is known (ms).
    pub(crate) back: usize,
    pub(crate) enqueued_at_ms: u64,
}

impl Ran {
    /// How long it ran.
    pub(crate) fn took(&self) -> Duration {
        self.stopped.since(self.started)
    }
}
