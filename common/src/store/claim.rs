//! Claiming: tasks, and the gate as it was after the claim, in one round trip.

use std::time::Duration;

use redis::{Cmd, Pipeline, RedisError, Value};

use super::{
    GROUP,
    connect::{Link, Store},
    error::StoreError,
    gate::{self, GateRead, GateStore},
    keyspace::Key,
    reply::{self, Entry},
};
use crate::{
    clock::Moment,
    id::{SessionId, StreamId},
    name::Queue,
};

/// What one claim brought.
#[derive(Debug)]
pub struct Claim {
    /// Entries by the place of their stream in [`Claimer::new`]'s list.
    pub entries: Vec<(usize, Vec<Entry>)>,
    /// The gate, read after the entries were claimed. `None` if nothing was read, or it could not be: then nothing
    /// says that the entries may start.
    pub read: Option<GateRead>,
}

impl Claim {
    /// How many entries it brought.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.iter().map(|(_, entries)| entries.len()).sum()
    }

    /// Whether it brought none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// How many to take from which stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Want {
    /// The stream's place in [`Claimer::new`]'s list.
    pub stream: usize,
    /// At most so many. XREADGROUP's COUNT is per stream, so slots must be split before.
    pub count: usize,
}

/// Claims for one session over a connection of its own.
#[derive(Debug)]
pub struct Claimer {
    link: Link,
    gate: GateStore,
    session: SessionId,
    lease_key: String,
    streams: Vec<String>,
    queue: Queue,
}

impl Claimer {
    /// Claims from `streams` (key texts) for `session`.
    ///
    /// # Errors
    /// When no connection can be opened.
    pub async fn new(
        store: &Store,
        queue: &Queue,
        session: &SessionId,
        streams: Vec<String>,
    ) -> Result<Self, StoreError> {
        let lease = Key::Lease(queue.clone(), session.clone());
        Ok(Self {
            link: store.link().await?,
            gate: GateStore::new(store, queue),
            lease_key: store.keyspace().render(&lease),
            session: session.clone(),
            streams,
            queue: queue.clone(),
        })
    }

    /// The server's id of this connection, for [`unblock`].
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn client_id(&self) -> Result<u64, StoreError> {
        let mut cmd = Cmd::new();
        cmd.arg("CLIENT").arg("ID");
        reply::count("CLIENT ID", &self.link.run(cmd).await?)
    }

    /// Takes what is there, without waiting: one round trip, no script.
    ///
    /// # Errors
    /// When Redis does not answer: entries may have been claimed all the same, and are found in the PEL later.
    pub async fn claim(&self, wants: &[Want]) -> Result<Claim, StoreError> {
        let mut pipe = Pipeline::with_capacity(wants.len() + 4);
        // COUNT 0 would mean: everything.
        let wants: Vec<&Want> = wants.iter().filter(|want| want.count > 0).collect();
        for want in &wants {
            pipe.add_command(self.readgroup(&[**want], None));
        }
        // P3: Redis executes a pipeline in order, so this gate read comes after the claims.
        self.gate.append_read(&mut pipe, Some(&self.lease_key));
        let sent = Moment::now();
        let mut replies = self.link.run_pipe(&mut pipe).await?.into_iter();
        let mut entries = Vec::with_capacity(wants.len());
        let mut failure = None;
        for _ in &wants {
            match self.claimed(replies.next()) {
                Ok(mut claimed) => entries.append(&mut claimed),
                // What the other streams gave is ours already: keep it.
                Err(e) => failure = Some(e),
            }
        }
        if let (true, Some(failure)) = (entries.is_empty(), failure) {
            return Err(failure);
        }
        let mut next = || -> Result<Value, StoreError> {
            replies.next().unwrap_or(Ok(Value::Nil)).map_err(|e| self.link.error(e))
        };
        let mut read = || {
            let (time, gate, state, ttl) = (next()?, gate::or_lost(next())?, next()?, next()?);
            self.gate.parse_read(sent, time, gate, state, Some(&ttl))
        };
        with_read(entries, read())
    }

    /// Waits up to `block` for a task, then looks at the gate. COUNT is per stream here: `count` from each.
    ///
    /// # Errors
    /// As [`Claimer::claim`].
    pub async fn wait(&self, streams: &[usize], count: usize, block: Duration) -> Result<Claim, StoreError> {
        let wants: Vec<Want> = streams.iter().map(|&stream| Want { stream, count }).collect();
        let cmd = self.readgroup(&wants, Some(block));
        // The watchdog is well past the server's own: a read that is given up is a claim that nobody sees.
        let limit = block * 2 + Duration::from_secs(5);
        let reply = self.link.run_within(cmd, limit).await;
        let entries = match reply {
            Ok(value) => self.entries(value)?,
            Err(e) => return Err(self.name_group(e)),
        };
        if entries.is_empty() {
            return Ok(Claim { entries, read: None });
        }
        // P3: sent only now; a read sent before the wait would be stale.
        with_read(entries, self.gate.read(&self.link, Some(&self.session)).await)
    }

    /// Looks at the gate without claiming.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn look(&self) -> Result<GateRead, StoreError> {
        self.gate.read(&self.link, Some(&self.session)).await
    }

    fn readgroup(&self, wants: &[Want], block: Option<Duration>) -> Cmd {
        let mut cmd = Cmd::new();
        cmd.arg("XREADGROUP").arg("GROUP").arg(GROUP).arg(self.session.as_str());
        cmd.arg("COUNT").arg(wants.first().map_or(1, |w| w.count));
        if let Some(block) = block {
            cmd.arg("BLOCK")
                .arg(u64::try_from(block.as_millis()).unwrap_or(1_000).max(1));
        }
        cmd.arg("STREAMS");
        for want in wants {
            cmd.arg(&self.streams[want.stream]);
        }
        for _ in wants {
            cmd.arg(">");
        }
        cmd
    }

    fn claimed(&self, reply: Option<Result<Value, RedisError>>) -> Result<Vec<(usize, Vec<Entry>)>, StoreError> {
        match reply {
            Some(Ok(value)) => self.entries(value),
            Some(Err(e)) => Err(self.name_group(self.link.error(e))),
            None => Ok(Vec::new()),
        }
    }

    fn entries(&self, value: Value) -> Result<Vec<(usize, Vec<Entry>)>, StoreError> {
        let mut out = Vec::new();
        let mut items = match value {
            Value::Map(pairs) => pairs,
            other => {
                let mut pairs = Vec::new();
                for item in reply::array("XREADGROUP", other)? {
                    let mut pair = reply::array("XREADGROUP", item)?.into_iter();
                    pairs.push((pair.next().unwrap_or(Value::Nil), pair.next().unwrap_or(Value::Nil)));
                }
                pairs
            }
        };
        for (stream, entries) in items.drain(..) {
            let name = reply::bytes("XREADGROUP", stream)?;
            let Some(place) = self.streams.iter().position(|s| s.as_bytes() == name) else {
                continue;
            };
            out.push((place, reply::entries("XREADGROUP", entries)?));
        }
        Ok(out)
    }

    fn name_group(&self, error: StoreError) -> StoreError {
        match error {
            // The same word for a primary that became a replica while we waited: the group is where it was.
            StoreError::Redis { source, address }
                if source.code() == Some("UNBLOCKED") && source.to_string().contains("instance state changed") =>
            {
                StoreError::ReadOnly { address }
            }
            StoreError::Redis { source, .. } if matches!(source.code(), Some("NOGROUP" | "UNBLOCKED")) => {
                StoreError::NoGroup {
                    queue: self.queue.to_string(),
                }
            }
            other => other,
        }
    }
}

/// P1: what was claimed is ours, whether or not the gate could be read after it.
fn with_read(entries: Vec<(usize, Vec<Entry>)>, read: Result<GateRead, StoreError>) -> Result<Claim, StoreError> {
    let read = match read {
        Ok(read) => Some(read),
        Err(failure) if entries.is_empty() => return Err(failure),
        Err(_) => None,
    };
    Ok(Claim { entries, read })
}

/// Wakes a blocked claim. It answers as if its time were up; nothing is lost.
///
/// # Errors
/// When Redis does not answer.
pub async fn unblock(store: &Store, client_id: u64) -> Result<(), StoreError> {
    let link = store.warm().await?;
    let mut cmd = Cmd::new();
    cmd.arg("CLIENT").arg("UNBLOCK").arg(client_id);
    link.run(cmd).await?;
    Ok(())
}

/// What a session holds in `stream`, oldest first, at most `count` from `from` on: ids and idle times.
///
/// # Errors
/// When Redis does not answer.
pub async fn own_pending(
    store: &Store,
    stream: &str,
    session: &SessionId,
    from: Option<StreamId>,
    count: usize,
) -> Result<Vec<(StreamId, Duration)>, StoreError> {
    let link = store.warm().await?;
    let mut cmd = Cmd::new();
    cmd.arg("XPENDING").arg(stream).arg(GROUP);
    cmd.arg(from.map_or_else(|| "-".to_owned(), |id| format!("({id}")));
    cmd.arg("+").arg(count).arg(session.as_str());
    let value = match link.run(cmd).await {
        Err(StoreError::Redis { .. }) => return Ok(Vec::new()),
        other => other?,
    };
    let mut out = Vec::new();
    for item in reply::array("XPENDING", value)? {
        let parts = reply::array("XPENDING", item)?;
        if let [Value::BulkString(id), _, idle, _] = parts.as_slice()
            && let Some(id) = StreamId::parse(id)
        {
            out.push((id, Duration::from_millis(reply::count("XPENDING", idle)?)));
        }
    }
    Ok(out)
}

/// Reads one entry of the session's own PEL again. `None`: it is not pending there any more.
///
/// # Errors
/// When Redis does not answer.
pub async fn reread(
    store: &Store,
    stream: &str,
    session: &SessionId,
    id: StreamId,
) -> Result<Option<Entry>, StoreError> {
    let link = store.warm().await?;
    let mut cmd = Cmd::new();
    // From the PEL, never by XRANGE: a retained entry that is settled must not run again. The id is exclusive.
    let before = StreamId {
        ms: if id.seq == 0 { id.ms.saturating_sub(1) } else { id.ms },
        seq: if id.seq == 0 { u64::MAX } else { id.seq - 1 },
    };
    cmd.arg("XREADGROUP").arg("GROUP").arg(GROUP).arg(session.as_str());
    cmd.arg("COUNT")
        .arg(1)
        .arg("STREAMS")
        .arg(stream)
        .arg(before.to_string());
    let value = link.run(cmd).await?;
    for item in reply::array("XREADGROUP", value)? {
        let mut pair = reply::array("XREADGROUP", item)?.into_iter();
        if let (Some(_), Some(entries)) = (pair.next(), pair.next()) {
            return Ok(reply::entries("XREADGROUP", entries)?.into_iter().find(|e| e.id == id));
        }
    }
    Ok(None)
}
