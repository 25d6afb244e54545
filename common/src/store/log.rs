//! The log of a queue: which attempts ran, on which version, under which gate read. Evidence, not state.

use std::{collections::BTreeMap, time::Duration};

use redis::{Cmd, Value};

use super::{
    connect::Store,
    error::StoreError,
    keyspace::Key,
    notes::{self, Kinds},
    reply::{self, field_number, field_text},
};
use crate::{
    id::{SessionId, StreamId, TaskId},
    name::{Queue, Version},
};

mod run;

pub use self::run::gaps;

/// How an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub enum Ended {
    /// The handler returned `Ok`.
    #[serde(rename = "done")]
    Done,
    /// It failed and is tried again.
    #[serde(rename = "retried")]
    Retried,
    /// It failed for the last time.
    #[serde(rename = "dead")]
    Dead,
    /// It was given back; the attempt does not count.
    #[serde(rename = "released")]
    Released,
    /// The task was cancelled while it ran, and did not succeed all the same.
    #[serde(rename = "cancelled")]
    Cancelled,
    /// Its handler put it off; the attempt does not count.
    #[serde(rename = "snoozed")]
    Snoozed,
    /// Its flip had said that its result must not count: refused. The task runs again; the attempt does not count.
    #[serde(rename = "revoked")]
    Revoked,
    /// A word of a newer release.
    #[serde(other, rename = "other")]
    Other,
}

impl Ended {
    /// Whether something became of the task that the attempt brought about: what a flip can revoke.
    #[must_use]
    pub fn is_result(self) -> bool {
        matches!(self, Self::Done | Self::Retried | Self::Dead | Self::Snoozed)
    }

    /// The word in counters and logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Retried => "retried",
            Self::Dead => "dead",
            Self::Released => "released",
            Self::Cancelled => "cancelled",
            Self::Snoozed => "snoozed",
            Self::Revoked => "revoked",
            Self::Other => "other",
        }
    }
}

/// Attempts that started under the same gate read and settled together.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct AttemptGroup {
    /// Redis's TIME read just before the gate that decided them, µs.
    pub at: u64,
    /// The revision they were decided under.
    pub rev: u64,
    /// The version they ran.
    pub version: Version,
    /// Where they were claimed from: `main`, `head` or `lane:<version>`.
    pub stream: String,
    /// The attempts.
    pub tasks: Vec<AttemptRow>,
}

/// One attempt: task id, stream entry, attempt number, how it ended, how long it ran (ms).
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct AttemptRow(pub TaskId, pub String, pub u32, pub Ended, pub u64);

/// An entry of the log.
#[derive(Debug, Clone)]
pub struct LogEntry {
    /// Its id: orders it against every other entry of the queue's log.
    pub id: StreamId,
    /// `settled`, `joined`, `left`, `reaping`, `recovered`, `poison`, `cancel`, `stale`, `alert`, `scheduled`,
    /// `schedule_changed`, `requeued`, `refunded`, `discarded`, `limits`, `policy`, `version`, `build_refused`, `server`,
    /// `rollout`.
    pub kind: String,
    /// The session it speaks of.
    pub session: SessionId,
    /// Of `settled`: the attempts.
    pub attempts: Vec<AttemptGroup>,
    /// Of `settled`: `all`, or the acknowledgements one by one.
    pub acked: String,
    /// Of `settled`: the tasks that were cancelled, whether or not an attempt ran, each with its entry.
    pub cancelled: Vec<(TaskId, String)>,
    /// Of `reaping`, `recovered`, `poison`, `server` and `rollout`: when, µs.
    pub at_us: u64,
    /// Of `recovered`, `poison`, `requeued` (the new entry) and `discarded`: `task=entry …`; of `refunded`: `task=delayed …`;
    /// of `scheduled`: `<schedule>: <task ids>`; else the text.
    pub text: String,
    /// What only some kinds say.
    pub detail: Detail,
}

/// What only some kinds of entries say; empty in the others.
#[derive(Debug, Clone, Default)]
pub struct Detail {
    /// Of `recovered` and `poison`: the key of the stream the tasks were taken from.
    pub stream: String,
    /// Of `recovered` and `poison`, per task: how long the lost session had held it, ms. Older releases wrote none.
    pub held_ms: Vec<u64>,
    /// Of `recovered` and `poison`: entry -> the key that its version was chosen by, for tasks that have one. `None`: the
    /// release that wrote the entry did not say.
    pub keys: Option<BTreeMap<String, String>>,
    /// Of `joined` and `reaping`: the versions that the session has.
    pub versions: Vec<Version>,
    /// Of `requeued` and `refunded` with attempts given back: those on which version.
    pub version: String,
    /// Of the same, per task: how many attempts were given back.
    pub refunds: Vec<u32>,
    /// Of `rollout`: JSON of what the guard went by, and of what was touched; empty unless it rolled back.
    pub evidence: String,
}

impl Detail {
    fn of(kind: &str, fields: &crate::envelope::Fields) -> Self {
        #[derive(serde::Deserialize)]
        struct Record {
            versions: Vec<Version>,
        }
        let numbers = |name: &str| field_text(fields, name);
        let mut detail = Self::default();
        match kind {
            "recovered" | "poison" => {
                detail.stream = field_text(fields, "stream");
                let held = numbers("held");
                detail.held_ms = held.split_ascii_whitespace().map(|n| n.parse().unwrap_or(0)).collect();
                detail.keys = reply::field(fields, "keys")
                    .and_then(|json| serde_json::from_str(&String::from_utf8_lossy(json)).ok());
            }
            "joined" | "reaping" => {
                let record = reply::field(fields, "record").and_then(|json| serde_json::from_slice(json).ok());
                detail.versions = record.map_or_else(Vec::new, |record: Record| record.versions);
            }
            "requeued" | "refunded" => {
                detail.version = field_text(fields, "version");
                let given = numbers("refunds");
                detail.refunds = given.split_ascii_whitespace().map(|n| n.parse().unwrap_or(0)).collect();
            }
            "rollout" => detail.evidence = field_text(fields, "evidence"),
            _ => {}
        }
        detail
    }
}

/// How far the log reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// The oldest entry; `None`: there is none.
    pub first: Option<StreamId>,
    /// The newest entry there ever was.
    pub last: StreamId,
    /// Whether older entries were let go.
    pub trimmed: bool,
}

impl Extent {
    /// From when on, µs, everything that was written is there; `None`: nothing was ever let go.
    #[must_use]
    pub fn complete_from_us(&self) -> Option<u64> {
        let first = self.first.map_or(self.last.ms + 1, |first| first.ms);
        self.trimmed.then(|| first.saturating_mul(1_000))
    }
}

/// How far the log reaches.
///
/// # Errors
/// When Redis does not answer.
pub async fn extent(store: &Store, queue: &Queue) -> Result<Extent, StoreError> {
    let first = read(store, queue, None, 1).await?.first().map(|entry| entry.id);
    let mut cmd = Cmd::new();
    cmd.arg("XINFO").arg("STREAM").arg(key(store, queue));
    let info = match store.cold().await?.run(cmd).await {
        // There is no log yet.
        Err(StoreError::Redis { .. }) => Vec::new(),
        Ok(Value::Map(pairs)) => pairs.into_iter().flat_map(|(k, v)| [k, v]).collect(),
        other => reply::array("XINFO STREAM", other?)?,
    };
    let named = |wanted: &[u8]| {
        info.chunks(2).find_map(|pair| match pair {
            [Value::BulkString(name), value] if name == wanted => Some(value),
            _ => None,
        })
    };
    let number = |name: &[u8]| named(name).map_or(Ok(0), |value| reply::count("XINFO STREAM", value));
    let last = match named(b"last-generated-id") {
        Some(Value::BulkString(id)) => StreamId::parse(id).unwrap_or_default(),
        _ => StreamId::default(),
    };
    Ok(Extent {
        first,
        last,
        trimmed: number(b"entries-added")? > number(b"length")?,
    })
}

fn key(store: &Store, queue: &Queue) -> String {
    store.keyspace().render(&Key::Log(queue.clone()))
}

/// Up to `count` entries after `after`, oldest first.
///
/// # Errors
/// When Redis does not answer.
pub async fn read(
    store: &Store,
    queue: &Queue,
    after: Option<StreamId>,
    count: usize,
) -> Result<Vec<LogEntry>, StoreError> {
    let link = store.cold().await?;
    let from = after.map_or_else(|| "-".to_owned(), |id| format!("({id}"));
    let mut cmd = Cmd::new();
    cmd.arg("XRANGE")
        .arg(key(store, queue))
        .arg(from)
        .arg("+")
        .arg("COUNT")
        .arg(count);
    let entries = reply::entries("log", link.run(cmd).await?)?;
    Ok(entries.into_iter().map(decode).collect())
}

/// Up to `count` entries before `before`, newest first.
///
/// # Errors
/// When Redis does not answer.
pub async fn read_back(
    store: &Store,
    queue: &Queue,
    before: Option<StreamId>,
    count: usize,
) -> Result<Vec<LogEntry>, StoreError> {
    let link = store.cold().await?;
    let from = before.map_or_else(|| "+".to_owned(), |id| format!("({id}"));
    let mut cmd = Cmd::new();
    cmd.arg("XREVRANGE")
        .arg(key(store, queue))
        .arg(from)
        .arg("-")
        .arg("COUNT")
        .arg(count);
    let entries = reply::entries("log", link.run(cmd).await?)?;
    Ok(entries.into_iter().map(decode).collect())
}

fn decode(entry: reply::Entry) -> LogEntry {
    let fields = entry.fields.unwrap_or_default();
    let kind = field_text(&fields, "kind");
    let text = match kind.as_str() {
        "recovered" | "poison" | "requeued" | "refunded" | "discarded" => field_text(&fields, "tasks"),
        _ => field_text(&fields, "text"),
    };
    // A group we cannot read is another release's: the entry still counts as one.
    let mut attempts: Vec<AttemptGroup> = reply::field(&fields, "attempts")
        .and_then(|json| serde_json::from_slice(json).ok())
        .unwrap_or_default();
    let cancelled: Vec<(TaskId, String)> = field_text(&fields, "cancelled")
        .split_ascii_whitespace()
        .filter_map(|pair| pair.split_once('='))
        .filter_map(|(task, entry)| Some((task.parse().ok()?, entry.to_owned())))
        .collect();
    // The worker wrote `retried` or `dead`; the script knew of a mark that the worker had not seen.
    for row in attempts.iter_mut().flat_map(|group| &mut group.tasks) {
        if cancelled.iter().any(|(task, entry)| *task == row.0 && *entry == row.1) {
            row.3 = Ended::Cancelled;
        }
    }
    LogEntry {
        detail: Detail::of(&kind, &fields),
        id: entry.id,
        session: SessionId::from_found(&field_text(&fields, "session")),
        attempts,
        cancelled,
        acked: field_text(&fields, "acked"),
        at_us: field_number(&fields, "at"),
        text,
        kind,
    }
}

/// Writes down something a person should see: `alert`, or `stale` for results that came too late (P4).
///
/// # Errors
/// When Redis does not answer.
pub async fn write(
    store: &Store,
    queue: &Queue,
    kind: &str,
    session: &SessionId,
    text: &str,
) -> Result<(), StoreError> {
    let link = store.cold().await?;
    let mut cmd = Cmd::new();
    cmd.arg("XADD").arg(key(store, queue)).arg("*");
    cmd.arg("kind").arg(kind).arg("session").arg(session.as_str());
    cmd.arg("text").arg(crate::envelope::clip(text, 64 * 1024));
    link.run(cmd).await?;
    Ok(())
}

/// Cuts the log to `retain` of age and `max_bytes` of memory, whole stream nodes at a time; and writes down when the server
/// became another run: see [`gaps`].
///
/// # Errors
/// When Redis does not answer.
pub async fn trim(store: &Store, queue: &Queue, retain: Duration, max_bytes: u64) -> Result<(), StoreError> {
    let link = store.cold().await?;
    let key = key(store, queue);
    let mut pipe = redis::pipe();
    pipe.cmd("TIME");
    pipe.cmd("MEMORY").arg("USAGE").arg(&key).arg("SAMPLES").arg(5);
    pipe.cmd("XLEN").arg(&key);
    pipe.cmd("INFO").arg("server");
    let mut replies = link
        .run_pipe(&mut pipe)
        .await?
        .into_iter()
        .map(|r| r.map_err(|e| link.error(e)));
    let mut next = || replies.next().unwrap_or(Ok(Value::Nil));
    let now_ms = reply::time_us(next()?)? / 1_000;
    let bytes = reply::count("MEMORY USAGE", &next()?)?;
    let length = reply::count("XLEN", &next()?)?;
    let info = next();
    let oldest = now_ms.saturating_sub(u64::try_from(retain.as_millis()).unwrap_or(u64::MAX));
    let mut cmd = Cmd::new();
    cmd.arg("XTRIM").arg(&key).arg("MINID").arg("~").arg(oldest);
    link.run(cmd).await?;
    if bytes > max_bytes {
        let keep = u128::from(length) * u128::from(max_bytes) * 9 / 10 / u128::from(bytes.max(1));
        let mut cmd = Cmd::new();
        cmd.arg("XTRIM")
            .arg(&key)
            .arg("MAXLEN")
            .arg("~")
            .arg(u64::try_from(keep).unwrap_or(0));
        link.run(cmd).await?;
    }
    // Last: who may not ask for it, or cannot write it down, trims all the same.
    match info {
        Ok(info) => run::note(store, queue, &info).await,
        Err(_) => Ok(()),
    }
}

/// Who changed something beside the gate, as the log has it.
#[derive(Debug, Clone)]
pub struct Remark {
    /// Its id: when it was.
    pub id: StreamId,
    /// `limits`, `policy`, `schedule_changed`.
    pub kind: String,
    /// Of `limits` and `policy`: who.
    pub by: String,
    /// Why.
    pub why: String,
    /// JSON: field -> value, empty where there is none, after the change.
    pub after: String,
    /// Of `schedule_changed`: `<schedule>: …`.
    pub text: String,
}

/// The changes of limits, policies and schedules among the newest `most` entries, newest first.
///
/// # Errors
/// When Redis does not answer.
pub async fn remarks(store: &Store, queue: &Queue, most: u64) -> Result<Vec<Remark>, StoreError> {
    let kinds = Kinds::Only(&["limits", "policy", "schedule_changed"]);
    let (mut out, mut looked) = (Vec::new(), 0);
    let mut from = Some(notes::start(None));
    // P10: attempts, of which an entry may hold a thousand, stay where they are.
    while let Some(start) = from.filter(|_| looked < most) {
        let page = notes::page(store, queue, &start, 0, notes::WHOLE, kinds).await?;
        looked += page.looked;
        from = page.next;
        out.extend(page.notes.into_iter().map(|note| {
            let text = |name| field_text(&note.fields, name);
            Remark {
                id: note.id,
                by: text("by"),
                why: text("why"),
                after: text("after"),
                text: text("text"),
                kind: note.kind,
            }
        }));
    }
    Ok(out)
}
