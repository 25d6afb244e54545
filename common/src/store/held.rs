//! What sessions hold: delivered and not settled, and what the gate's decision needs to know of it.

use redis::Value;

use super::{
    connect::Store,
    error::StoreError,
    keyspace::Key,
    reply, script,
    session::{MOVE_BYTES, MOVE_ENTRIES},
};
use crate::{
    id::{SessionId, StreamId, stream_salt},
    name::Queue,
};

/// A task that a session holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// Where: `main`, `head`, `lane:<version>`…
    pub stream: String,
    /// Its entry there.
    pub entry: StreamId,
    /// Who.
    pub session: SessionId,
    /// Since when, µs of Redis's clock; known to the millisecond.
    pub since_us: u64,
    /// Its id.
    pub task: String,
    /// The key that its version is chosen by; `None`: its id.
    pub key: Option<String>,
    /// Attempts made before.
    pub attempts: u64,
}

/// Some tasks that sessions hold in the stream `place`, after `after`; and where to go on, if there may be more.
///
/// # Errors
/// When Redis does not answer. A stream or group that is not there holds nothing.
pub async fn scan(
    store: &Store,
    place: &Key,
    after: Option<StreamId>,
) -> Result<(Vec<Held>, Option<StreamId>), StoreError> {
    const WHAT: &str = "held tasks";
    let stream = store.keyspace().render(place);
    let mut call = script::HELD.prepare_invoke();
    call.key(&stream)
        .arg(after.map_or_else(|| "-".to_owned(), |id| format!("({id}")))
        .arg(MOVE_ENTRIES)
        .arg(MOVE_BYTES)
        .arg(stream_salt(&stream));
    let (last, mut rows) = reply::verdict(WHAT, store.warm().await?.run_script(&call).await?)?;
    let now_us = reply::count(WHAT, &rows.next().unwrap_or(Value::Nil))?;
    let label = place.label();
    let mut out = Vec::new();
    for row in rows {
        let Ok([entry, session, held, task, key, attempts]) = <[Value; 6]>::try_from(reply::array(WHAT, row)?) else {
            return Err(reply::unexpected(WHAT, &Value::Nil));
        };
        let key = reply::text(WHAT, key)?;
        out.push(Held {
            stream: label.clone(),
            entry: StreamId::parse(&reply::bytes(WHAT, entry)?).unwrap_or_default(),
            session: SessionId::from_found(&reply::text(WHAT, session)?),
            since_us: now_us.saturating_sub(reply::count(WHAT, &held)?.saturating_mul(1_000)),
            task: reply::text(WHAT, task)?,
            key: (!key.is_empty()).then_some(key),
            attempts: reply::count(WHAT, &attempts)?,
        });
    }
    Ok((out, StreamId::parse(last.as_bytes())))
}

/// The streams in which tasks of `queue` may be held.
///
/// # Errors
/// When Redis does not answer.
pub async fn places(store: &Store, queue: &Queue) -> Result<Vec<Key>, StoreError> {
    let lanes = super::inspect::versions(store, queue).await?;
    let lanes = lanes.into_iter().map(|version| Key::Lane(queue.clone(), version));
    Ok(Key::fixed_streams(queue).into_iter().chain(lanes).collect())
}
