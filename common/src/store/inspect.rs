//! Looking: what the command line and the worker's duties read. Nothing here changes anything.

use std::time::Duration;

use redis::{Cmd, Value};

use super::{
    GROUP,
    connect::Store,
    count,
    error::StoreError,
    keyspace::Key,
    reply::{self, Entry, field_number, field_text},
};
use crate::{
    envelope::{FORMAT, Fields, MAX_FORMAT},
    id::{StreamId, TaskId, stream_salt},
    name::{Namespace, Queue, TaskType, Version},
};

/// One stream's consumer group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct GroupInfo {
    /// Entries in the stream, settled ones included.
    pub length: u64,
    /// Delivered and not settled.
    pub pending: u64,
    /// Not delivered yet; `None` if nobody can say.
    pub lag: Option<u64>,
    /// The newest entry delivered.
    pub last_delivered: StreamId,
    /// Entries ever delivered; `None` if Redis cannot say.
    pub entries_read: Option<u64>,
    /// Whether there is a group at all.
    pub exists: bool,
}

impl GroupInfo {
    /// Reads the answers to `XLEN` and `XINFO GROUPS`; `None` for a stream that does not exist: it has no groups, and
    /// XINFO calls that an error.
    pub(crate) fn of(length: &Value, groups: Option<Value>) -> Result<Self, StoreError> {
        let mut info = Self {
            length: reply::count("XLEN", length)?,
            ..Self::default()
        };
        for item in reply::array("XINFO GROUPS", groups.unwrap_or(Value::Nil))? {
            let items = reply::array("XINFO GROUPS", item)?;
            let lag_known = items
                .chunks(2)
                .any(|c| matches!(c, [Value::BulkString(k), Value::Int(_)] if k == b"lag"));
            let read_known = items
                .chunks(2)
                .any(|c| matches!(c, [Value::BulkString(k), Value::Int(_)] if k == b"entries-read"));
            let fields = reply::fields("XINFO GROUPS", Value::Array(items))?;
            if field_text(&fields, "name") != GROUP {
                continue;
            }
            info.exists = true;
            info.pending = field_number(&fields, "pending");
            info.lag = lag_known.then(|| field_number(&fields, "lag"));
            info.entries_read = read_known.then(|| field_number(&fields, "entries-read"));
            info.last_delivered =
                StreamId::parse(field_text(&fields, "last-delivered-id").as_bytes()).unwrap_or_default();
        }
        Ok(info)
    }

    /// Waiting: neither delivered nor settled.
    #[must_use]
    pub fn waiting(&self) -> u64 {
        if self.exists {
            self.lag.unwrap_or(0)
        } else {
            self.length
        }
    }
}

/// How much lies where in one queue.
#[derive(Debug, Clone, Default)]
pub struct QueueDepth {
    /// The main stream.
    pub main: GroupInfo,
    /// The head stream.
    pub head: GroupInfo,
    /// The stream of high priority.
    pub high: GroupInfo,
    /// The stream of low priority.
    pub low: GroupInfo,
    /// The suspects.
    pub suspect: GroupInfo,
    /// The lanes of every known version.
    pub lanes: Vec<(Version, GroupInfo)>,
    /// Tasks of a format newer than this release knows, left for workers that know it.
    pub newer: u64,
    /// Delayed tasks: retries not yet due.
    pub delayed: u64,
    /// Dead letters.
    pub dead: u64,
}

impl QueueDepth {
    /// Tasks waiting in streams.
    #[must_use]
    pub fn waiting(&self) -> u64 {
        self.groups().map(GroupInfo::waiting).sum()
    }

    /// Tasks delivered to workers and not settled.
    #[must_use]
    pub fn in_flight(&self) -> u64 {
        self.groups().map(|g| g.pending).sum()
    }

    fn groups(&self) -> impl Iterator<Item = &GroupInfo> {
        [&self.main, &self.head, &self.high, &self.low, &self.suspect]
            .into_iter()
            .chain(self.lanes.iter().map(|(_, g)| g))
    }
}

/// The queues of a namespace, by name.
///
/// # Errors
/// When Redis does not answer.
pub async fn queues(store: &Store, namespace: &Namespace) -> Result<Vec<Queue>, StoreError> {
    let link = store.cold().await?;
    let mut cmd = Cmd::new();
    cmd.arg("SMEMBERS")
        .arg(store.keyspace().render(&Key::Queues(namespace.clone())));
    let mut types: Vec<TaskType> = reply::array("queues", link.run(cmd).await?)?
        .into_iter()
        .filter_map(|v| reply::text("queues", v).ok()?.parse().ok())
        .collect();
    types.sort();
    Ok(types.into_iter().map(|t| Queue::new(namespace.clone(), t)).collect())
}

/// The versions ever registered in a queue, sorted.
///
/// # Errors
/// When Redis does not answer.
pub async fn versions(store: &Store, queue: &Queue) -> Result<Vec<Version>, StoreError> {
    let link = store.warm().await?;
    let mut cmd = Cmd::new();
    cmd.arg("HKEYS")
        .arg(store.keyspace().render(&Key::Versions(queue.clone())));
    let mut out: Vec<Version> = reply::array("versions", link.run(cmd).await?)?
        .into_iter()
        .filter_map(|v| reply::text("versions", v).ok()?.parse().ok())
        .collect();
    out.sort();
    Ok(out)
}

/// The consumer group of one stream.
///
/// # Errors
/// When Redis does not answer.
pub async fn group(store: &Store, stream: &str) -> Result<GroupInfo, StoreError> {
    let link = store.warm().await?;
    let mut pipe = redis::pipe();
    pipe.cmd("XLEN").arg(stream);
    pipe.cmd("XINFO").arg("GROUPS").arg(stream);
    let mut replies = link.run_pipe(&mut pipe).await?.into_iter();
    let length = match replies.next() {
        Some(Ok(length)) => length,
        Some(Err(e)) => return Err(link.error(e)),
        None => Value::Nil,
    };
    let groups = replies.next().and_then(Result::ok);
    let mut info = GroupInfo::of(&length, groups)?;
    if let (true, None, Some(read)) = (info.exists, info.lag, info.entries_read) {
        // Redis does not say how much waits while the last entry delivered is a deleted one, as after a move. What it
        // has counted tells: all that was ever added, less what was ever read.
        let mut cmd = Cmd::new();
        cmd.arg("XINFO").arg("STREAM").arg(stream);
        let items = match link.run(cmd).await? {
            Value::Map(pairs) => pairs.into_iter().flat_map(|(k, v)| [k, v]).collect(),
            other => reply::array("XINFO STREAM", other)?,
        };
        let added = items.chunks(2).find_map(|pair| match pair {
            [Value::BulkString(name), Value::Int(n)] if name == b"entries-added" => u64::try_from(*n).ok(),
            _ => None,
        });
        info.lag = added.map(|added| added.saturating_sub(read).min(info.length));
    }
    Ok(info)
}

/// What `stream` takes of memory, in bytes, estimated from a few of its nodes.
///
/// # Errors
/// When Redis does not answer.
pub async fn memory(store: &Store, stream: &str) -> Result<u64, StoreError> {
    let link = store.warm().await?;
    let mut cmd = Cmd::new();
    cmd.arg("MEMORY").arg("USAGE").arg(stream).arg("SAMPLES").arg(5);
    reply::count("MEMORY USAGE", &link.run(cmd).await?)
}

/// The oldest entry of `stream` that is delivered and not settled.
///
/// # Errors
/// When Redis does not answer.
pub async fn first_pending(store: &Store, stream: &str) -> Result<Option<StreamId>, StoreError> {
    let link = store.warm().await?;
    let mut cmd = Cmd::new();
    cmd.arg("XPENDING").arg(stream).arg(GROUP);
    let parts = match link.run(cmd).await {
        Err(StoreError::Redis { .. }) => return Ok(None),
        other => reply::array("XPENDING", other?)?,
    };
    Ok(match parts.get(1) {
        Some(Value::BulkString(id)) => StreamId::parse(id),
        _ => None,
    })
}

/// How much lies where.
///
/// # Errors
/// When Redis does not answer.
pub async fn depth(store: &Store, queue: &Queue) -> Result<QueueDepth, StoreError> {
    let key = |key: Key| store.keyspace().render(&key);
    let mut lanes = Vec::new();
    for version in versions(store, queue).await? {
        let info = waiting(store, &key(Key::Lane(queue.clone(), version.clone()))).await?;
        lanes.push((version, info));
    }
    let link = store.cold().await?;
    let mut cmd = Cmd::new();
    cmd.arg("ZCARD").arg(key(Key::Delayed(queue.clone())));
    let delayed = reply::count("ZCARD", &link.run(cmd).await?)?;
    let mut newer = redis::pipe();
    for format in FORMAT + 1..=MAX_FORMAT {
        newer.cmd("XLEN").arg(key(Key::Newer(queue.clone(), format)));
    }
    let newer = link.run_pipe(&mut newer).await?;
    let newer = newer
        .into_iter()
        .flatten()
        .map(|n| reply::count("XLEN", &n))
        .sum::<Result<u64, _>>()?;
    let mut cmd = Cmd::new();
    cmd.arg("XLEN").arg(key(Key::Dead(queue.clone())));
    let dead = reply::count("XLEN", &link.run(cmd).await?)?;
    let [main, head, high, low, suspect] = Key::fixed_streams(queue).map(key);
    Ok(QueueDepth {
        main: waiting(store, &main).await?,
        head: waiting(store, &head).await?,
        high: waiting(store, &high).await?,
        low: waiting(store, &low).await?,
        suspect: waiting(store, &suspect).await?,
        lanes,
        newer,
        delayed,
        dead,
    })
}

/// The group of `stream`, with what waits counted where Redis does not say.
async fn waiting(store: &Store, stream: &str) -> Result<GroupInfo, StoreError> {
    count::complete(store, stream, group(store, stream).await?).await
}

/// Where a task was found.
#[derive(Debug, Clone)]
pub struct Found {
    /// `main`, `head`, `lane:<version>`, `delayed`, `dead`.
    pub place: String,
    /// Its entry; for delayed tasks the time it is due, as `<ms>-0`.
    pub entry: StreamId,
    /// Its fields.
    pub fields: Fields,
    /// The session that holds it, if one does.
    pub held_by: Option<String>,
    /// How long ago it was given to that session.
    pub held_for: Duration,
    /// Whether it is past the group's last delivery: still waiting.
    pub waiting: bool,
}

/// The stream and entry that `id` was made from; `None` for an id that somebody gave.
#[must_use]
pub fn own_place(store: &Store, queue: &Queue, id: &TaskId) -> Option<(Key, StreamId)> {
    Key::fixed_streams(queue).into_iter().find_map(|place| {
        let entry = id.entry(stream_salt(&store.keyspace().render(&place)))?;
        Some((place, entry))
    })
}

/// Looks for a task where its id leads: the entry it was made from, or the one that its idempotent enqueue made. One
/// look, however much waits; a task that was moved is not found.
///
/// # Errors
/// When Redis does not answer.
pub async fn find_in_place(store: &Store, queue: &Queue, id: &TaskId) -> Result<Option<Found>, StoreError> {
    let key = |key: &Key| store.keyspace().render(key);
    let link = store.cold().await?;
    let (place, entry, given) = match own_place(store, queue, id) {
        Some((place, entry)) => (place, entry, false),
        None => {
            let mut cmd = Cmd::new();
            cmd.arg("GET").arg(key(&Key::UniqueId(queue.clone(), id.to_string())));
            let first = reply::bytes("marker", link.run(cmd).await?)?;
            match StreamId::parse(&first) {
                Some(entry) => (Key::Stream(queue.clone()), entry, true),
                None => return Ok(None),
            }
        }
    };
    let stream = key(&place);
    let mut cmd = Cmd::new();
    cmd.arg("XRANGE")
        .arg(&stream)
        .arg(entry.to_string())
        .arg(entry.to_string());
    let Some(entry) = reply::entries("task", link.run(cmd).await?)?.into_iter().next() else {
        return Ok(None);
    };
    let named = entry.fields.as_ref().map_or_else(String::new, |f| field_text(f, "id"));
    if named == id.to_string() || (named.is_empty() && !given) {
        return located(store, &place.label(), &stream, entry).await.map(Some);
    }
    Ok(None)
}

/// Entries of each stream and of the dead letters that a look-up by id reads at most.
pub const FIND_WINDOW: usize = 10_000;

/// Looks for a task by id: its own place first, then delayed, then a window of head, lanes and dead letters.
///
/// # Errors
/// When Redis does not answer. `Ok(None)`: not within the window.
pub async fn find(store: &Store, queue: &Queue, id: &TaskId) -> Result<Option<Found>, StoreError> {
    let key = |key: Key| store.keyspace().render(&key);
    if let Some(found) = find_in_place(store, queue, id).await? {
        return Ok(Some(found));
    }
    let link = store.cold().await?;
    let mut pipe = redis::pipe();
    pipe.cmd("HGET")
        .arg(key(Key::Envelope(queue.clone())))
        .arg(id.to_string());
    pipe.cmd("ZSCORE")
        .arg(key(Key::Delayed(queue.clone())))
        .arg(id.to_string());
    let replies = link.run_pipe(&mut pipe).await?;
    if let [Ok(Value::BulkString(packed)), Ok(score)] = replies.as_slice() {
        let due: f64 = reply::text("task", score.clone())?.parse().unwrap_or(0.0);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "milliseconds since 1970"
        )]
        let ms = due as u64;
        return Ok(Some(Found {
            place: "delayed".to_owned(),
            entry: StreamId { ms, seq: 0 },
            fields: unpack(packed),
            held_by: None,
            held_for: Duration::ZERO,
            waiting: true,
        }));
    }
    let lanes = versions(store, queue).await?;
    let lanes = lanes.into_iter().map(|version| Key::Lane(queue.clone(), version));
    let mut places: Vec<(String, String)> = Key::fixed_streams(queue)
        .into_iter()
        .chain(lanes)
        .map(|stream| (stream.label(), key(stream)))
        .collect();
    places.push(("dead".to_owned(), key(Key::Dead(queue.clone()))));
    for (place, stream) in places {
        let mut before = "+".to_owned();
        for _ in 0..FIND_WINDOW / 500 {
            let mut cmd = Cmd::new();
            cmd.arg("XREVRANGE")
                .arg(&stream)
                .arg(&before)
                .arg("-")
                .arg("COUNT")
                .arg(500);
            let page = reply::entries("task", link.run(cmd).await?)?;
            let Some(last) = page.last() else { break };
            before = format!("({}", last.id);
            let wanted = id.to_string();
            let hit = page
                .into_iter()
                .find(|e| e.fields.as_ref().is_some_and(|f| field_text(f, "id") == wanted));
            if let Some(entry) = hit {
                return located(store, &place, &stream, entry).await.map(Some);
            }
        }
    }
    Ok(None)
}

async fn located(store: &Store, place: &str, stream: &str, entry: Entry) -> Result<Found, StoreError> {
    let link = store.cold().await?;
    let mut cmd = Cmd::new();
    cmd.arg("XPENDING").arg(stream).arg(GROUP);
    cmd.arg(entry.id.to_string()).arg(entry.id.to_string()).arg(1);
    let pending = match link.run(cmd).await {
        Ok(value) => reply::array("XPENDING", value)?.into_iter().next(),
        Err(_) => None, // no group: the dead letters
    };
    let mut pending = match pending {
        Some(item) => reply::array("XPENDING", item)?.into_iter().skip(1),
        None => Vec::new().into_iter().skip(1),
    };
    let held_by = pending.next().map(|v| reply::text("XPENDING", v)).transpose()?;
    let idle = pending.next().map_or(Ok(0), |v| reply::count("XPENDING", &v))?;
    let info = group(store, stream).await?;
    Ok(Found {
        place: place.to_owned(),
        waiting: place != "dead" && (!info.exists || entry.id > info.last_delivered),
        entry: entry.id,
        fields: entry.fields.unwrap_or_default(),
        held_by,
        held_for: Duration::from_millis(idle),
    })
}

/// Reads fields packed by `pack` in `entry.lua`: `<length>:<bytes>` over and over.
fn unpack(mut packed: &[u8]) -> Fields {
    let mut parts = Vec::new();
    while let Some(colon) = packed.iter().position(|&b| b == b':') {
        let Some(length) = std::str::from_utf8(&packed[..colon])
            .ok()
            .and_then(|n| n.parse::<usize>().ok())
        else {
            break;
        };
        let Some(part) = packed.get(colon + 1..colon + 1 + length) else {
            break;
        };
        parts.push(part.to_vec());
        packed = &packed[colon + 1 + length..];
    }
    let mut parts = parts.into_iter();
    let mut out = Fields::new();
    while let (Some(name), Some(value)) = (parts.next(), parts.next()) {
        out.push((name, value));
    }
    out
}

/// Counters of one queue for one minute of Redis's clock.
///
/// # Errors
/// When Redis does not answer.
pub async fn stats(store: &Store, queue: &Queue, minute: u64) -> Result<Vec<(String, u64)>, StoreError> {
    let link = store.cold().await?;
    let mut cmd = Cmd::new();
    cmd.arg("HGETALL")
        .arg(store.keyspace().render(&Key::Stats(queue.clone(), minute)));
    let fields = reply::fields("stats", link.run(cmd).await?)?;
    Ok(fields
        .iter()
        .map(|(name, _)| {
            let name = String::from_utf8_lossy(name).into_owned();
            let count = field_number(&fields, &name);
            (name, count)
        })
        .collect())
}

/// Redis's clock, µs since 1970.
///
/// # Errors
/// When Redis does not answer.
pub async fn time_us(store: &Store) -> Result<u64, StoreError> {
    let link = store.cold().await?;
    let mut cmd = Cmd::new();
    cmd.arg("TIME");
    reply::time_us(link.run(cmd).await?)
}
