//! Settling: how a batch of attempts ended, in one script call.

use std::time::Duration;

use super::{
    connect::{Link, Store},
    error::StoreError,
    keyspace::Key,
    reply,
    rollout::BLOCK_TTL,
    script,
};
use crate::{
    id::{SessionId, StreamId, TaskId},
    name::{Queue, Version},
};

/// Most entries in one `done` group: well inside Lua's unpack limit.
pub const MAX_GROUP: usize = 500;

/// What becomes of one entry that is not simply done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// Into the delayed set, due at this time (ms since 1970 on Redis's clock).
    Retry {
        /// When.
        due_ms: u64,
    },
    /// To the dead letters.
    Dead,
    /// To another stream of this queue: head (released) or a lane (handed over).
    Move {
        /// Its place in [`Settler::new`]'s list.
        to: usize,
    },
    /// Done, with something to keep or a mark to take away.
    Done,
    /// Cancelled; kept like what is done. If there is no mark any more: to another stream, as it was.
    Cancelled {
        /// Its place in [`Settler::new`]'s list.
        else_to: usize,
    },
}

/// What is kept of a task that ends: see [`results`](super::results).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keep {
    /// The task.
    pub task: TaskId,
    /// For how long.
    pub ms: u64,
    /// [`Report::tail`](super::results::Report::tail).
    pub tail: String,
}

/// One entry that is not simply done.
#[derive(Debug, Clone)]
pub struct Single {
    /// The stream it was claimed from, by place.
    pub stream: usize,
    /// The entry.
    pub entry: StreamId,
    /// What becomes of it.
    pub fate: Fate,
    /// Fields that change on the way; the others are copied by Redis. An entry that carries no id needs it here:
    /// it is about to leave the place its id is derived from.
    pub fields: Vec<(&'static str, String)>,
    /// What is kept of the task, if this ends it.
    pub keep: Option<Box<Keep>>,
}

/// Entries that are done and need nothing but an acknowledgement.
#[derive(Debug, Clone, Default)]
pub struct DoneGroup {
    /// The stream they were claimed from, by place.
    pub stream: usize,
    /// The entries, at most [`MAX_GROUP`].
    pub entries: Vec<StreamId>,
}

/// A batch to settle.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    /// Of each version whose attempts have results in this batch, the lowest gate revision that decided one of those: a
    /// revoked result has no effect.
    pub results: Vec<(Version, u64)>,
    /// Plain `done`, by stream.
    pub done: Vec<DoneGroup>,
    /// Everything else.
    pub singles: Vec<Single>,
    /// JSON of the attempts for the log; empty = no log entry.
    pub attempts: String,
    /// The newest entry of the main stream known to have been delivered: where trimming may one day come to.
    pub tip: StreamId,
    /// Streams and how far they may be trimmed.
    pub floors: Vec<(usize, StreamId)>,
    /// Minute of Redis's clock the counters belong to.
    pub minute: u64,
    /// Counters of the stats hash.
    pub counters: Vec<(String, u64)>,
    /// Counters of a block, while a rollout runs: see [`rollout`](super::rollout).
    pub block: Option<(u64, Vec<(String, u64)>)>,
}

/// What Redis said to a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Settled {
    /// It took effect, as far as it had not before.
    Yes {
        /// Entries acknowledged per group.
        groups: Vec<u64>,
        /// Whether each single took effect.
        singles: Vec<bool>,
    },
    /// The lease is not there: nothing was done.
    NoLease,
    /// A flip revoked results of these versions that were decided under an earlier revision than this: nothing was done.
    Revoked(Vec<(Version, u64)>),
}

const STATS_TTL: Duration = Duration::from_secs(25 * 3600);

/// Settles for one session over a connection of its own.
#[derive(Debug)]
pub struct Settler {
    link: Link,
    store: Store,
    queue: Queue,
    session: SessionId,
    fixed: [String; 7],
    cancel: String,
    streams: Vec<String>,
}

impl Settler {
    /// Settles entries of `streams` (key texts, named by place) for `session`.
    ///
    /// # Errors
    /// When no connection can be opened.
    pub async fn new(
        store: &Store,
        queue: &Queue,
        session: &SessionId,
        streams: Vec<String>,
    ) -> Result<Self, StoreError> {
        let render = |key: Key| store.keyspace().render(&key);
        Ok(Self {
            link: store.link().await?,
            fixed: [
                render(Key::Lease(queue.clone(), session.clone())),
                render(Key::Log(queue.clone())),
                String::new(),
                render(Key::Delayed(queue.clone())),
                render(Key::Envelope(queue.clone())),
                render(Key::Dead(queue.clone())),
                render(Key::GateState(queue.clone())),
            ],
            cancel: render(Key::Cancel(queue.clone())),
            store: store.clone(),
            queue: queue.clone(),
            session: session.clone(),
            streams,
        })
    }

    /// The same connection with more streams: places already given out keep their meaning.
    #[must_use]
    pub fn with_streams(mut self, streams: Vec<String>) -> Self {
        self.streams = streams;
        self
    }

    /// Fault for tests: fences by a key that always exists instead of the lease.
    #[cfg(feature = "faults")]
    #[must_use]
    pub fn ignoring_lease(mut self) -> Self {
        self.fixed[0] = self.store.keyspace().render(&Key::GateState(self.queue.clone()));
        self
    }

    /// Settles a batch. Sending it again after a lost reply changes nothing (P2).
    ///
    /// # Errors
    /// When Redis does not answer: send it again.
    pub async fn settle(&self, batch: &Batch) -> Result<Settled, StoreError> {
        let stats = Key::Stats(self.queue.clone(), batch.minute);
        let mut call = script::SETTLE.prepare_invoke();
        for (place, key) in self.fixed.iter().enumerate() {
            if place == 2 {
                call.key(self.store.keyspace().render(&stats));
            } else {
                call.key(key);
            }
        }
        for stream in &self.streams {
            call.key(stream);
        }
        // Behind the streams, which are named by their place.
        let cancel = self.fixed.len() + self.streams.len() + 1;
        call.key(&self.cancel);
        let keeps: Vec<(usize, &Keep)> = (1..)
            .zip(&batch.singles)
            .filter_map(|(n, single)| Some((n, single.keep.as_deref()?)))
            .collect();
        for (_, keep) in &keeps {
            let result = Key::Result(self.queue.clone(), keep.task.to_string());
            call.key(self.store.keyspace().render(&result));
        }
        if let Some((n, _)) = batch.block {
            call.key(self.store.keyspace().render(&Key::Block(self.queue.clone(), n)));
        }
        call.arg(self.session.as_str())
            .arg(&batch.attempts)
            .arg(batch.tip.to_string())
            .arg(STATS_TTL.as_secs());
        call.arg(batch.results.len());
        for (version, rev) in &batch.results {
            call.arg(version.as_str()).arg(rev);
        }
        call.arg(batch.floors.len());
        for (stream, floor) in &batch.floors {
            call.arg(stream + 1).arg(floor.to_string());
        }
        call.arg(batch.done.len());
        for group in &batch.done {
            call.arg(group.stream + 1).arg(group.entries.len());
            for entry in &group.entries {
                call.arg(entry.to_string());
            }
        }
        call.arg(cancel).arg(keeps.len());
        for (n, keep) in &keeps {
            call.arg(n).arg(keep.ms.max(1)).arg(&keep.tail);
        }
        call.arg(batch.singles.len());
        for single in &batch.singles {
            let (kind, target, due) = match single.fate {
                Fate::Retry { due_ms } => ("retry", 0, due_ms),
                Fate::Dead => ("dead", 0, 0),
                Fate::Move { to } => ("move", to + 1, 0),
                Fate::Done => ("done", 0, 0),
                Fate::Cancelled { else_to } => ("cancelled", else_to + 1, 0),
            };
            call.arg(single.stream + 1)
                .arg(single.entry.to_string())
                .arg(kind)
                .arg(target)
                .arg(due)
                .arg(single.fields.len());
            for (name, value) in &single.fields {
                call.arg(*name).arg(value);
            }
        }
        call.arg(batch.counters.len());
        for (name, by) in &batch.counters {
            call.arg(name).arg(by);
        }
        if let Some((_, counters)) = &batch.block {
            call.arg(BLOCK_TTL.as_secs()).arg(counters.len());
            for (name, by) in counters {
                call.arg(name).arg(by);
            }
        }
        let (word, rest) = reply::verdict("settle", self.link.run_script(&call).await?)?;
        if word == "no_lease" {
            return Ok(Settled::NoLease);
        }
        if word == "revoked" {
            return revoked(rest).map(Settled::Revoked);
        }
        let acked = rest
            .map(|v| reply::count("settle", &v))
            .collect::<Result<Vec<u64>, _>>()?;
        let (groups, singles) = acked.split_at(batch.done.len().min(acked.len()));
        Ok(Settled::Yes {
            groups: groups.to_vec(),
            singles: singles.iter().map(|&n| n == 1).collect(),
        })
    }
}

fn revoked(mut pairs: std::vec::IntoIter<redis::Value>) -> Result<Vec<(Version, u64)>, StoreError> {
    let mut out = Vec::new();
    while let (Some(version), Some(rev)) = (pairs.next(), pairs.next()) {
        let version = reply::text("settle", version)?;
        let version = Version::new(&version).map_err(|_| reply::unexpected("settle", &redis::Value::Nil))?;
        out.push((version, reply::count("settle", &rev)?));
    }
    Ok(out)
}
