//! Moves between the streams of a queue, and out of them: promoting, sweeping, pruning. Each a bounded step.

use std::time::Duration;

use redis::Value;

use super::{connect::Store, error::StoreError, keyspace::Key, reply, script};
use crate::{
    id::{SessionId, StreamId},
    name::Queue,
};

/// What a batch of moves did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Promoted {
    /// Tasks put into the streams.
    pub moved: u64,
    /// Time until the next one is due; `None` if there is none.
    pub next: Option<Duration>,
}

/// Puts delayed tasks that are due into the stream of their priority, a bounded step.
///
/// # Errors
/// When Redis does not answer.
pub async fn promote(store: &Store, queue: &Queue) -> Result<Promoted, StoreError> {
    let link = store.warm().await?;
    let mut call = script::PROMOTE.prepare_invoke();
    for key in [
        Key::Delayed(queue.clone()),
        Key::Envelope(queue.clone()),
        Key::Stream(queue.clone()),
        Key::High(queue.clone()),
        Key::Low(queue.clone()),
        Key::Head(queue.clone()),
    ] {
        call.key(store.keyspace().render(&key));
    }
    call.arg(100).arg(super::session::MOVE_BYTES);
    let (_, mut rest) = reply::verdict("promote", link.run_script(&call).await?)?;
    let moved = reply::count("promote", &rest.next().unwrap_or(Value::Nil))?;
    let next = reply::number("promote", &rest.next().unwrap_or(Value::Int(-1)))?;
    Ok(Promoted {
        moved,
        next: u64::try_from(next).ok().map(Duration::from_millis),
    })
}

/// Brings back up to [`MOVE_ENTRIES`](super::session::MOVE_ENTRIES) tasks from a lane that is no longer routed to.
///
/// # Errors
/// When Redis does not answer.
pub async fn sweep(
    store: &Store,
    queue: &Queue,
    lane: &crate::name::Version,
    session: &SessionId,
) -> Result<u64, StoreError> {
    let link = store.warm().await?;
    let lane = store.keyspace().render(&Key::Lane(queue.clone(), lane.clone()));
    let mut call = script::SWEEP.prepare_invoke();
    call.key(&lane).key(store.keyspace().render(&Key::Head(queue.clone())));
    call.arg(session.as_str())
        .arg(super::session::MOVE_ENTRIES)
        .arg(super::session::MOVE_BYTES)
        .arg(crate::id::stream_salt(&lane));
    let (_, mut rest) = reply::verdict("sweep", link.run_script(&call).await?)?;
    reply::count("sweep", &rest.next().unwrap_or(Value::Nil))
}

/// How one step of pruning went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pruned {
    /// Entries let go.
    pub gone: u64,
    /// The last entry looked at: go on after it.
    pub last: StreamId,
    /// Whether there is more to look at.
    pub more: bool,
}

/// Lets go of up to [`MOVE_ENTRIES`](super::session::MOVE_ENTRIES) settled entries of `stream` between two places,
/// whatever is pending before, between or after them.
///
/// # Errors
/// When Redis does not answer.
pub async fn prune(store: &Store, stream: &str, after: StreamId, upto: StreamId) -> Result<Pruned, StoreError> {
    let link = store.warm().await?;
    let mut call = script::PRUNE.prepare_invoke();
    call.key(stream)
        .arg(after.to_string())
        .arg(upto.to_string())
        .arg(super::session::MOVE_ENTRIES);
    let (_, mut rest) = reply::verdict("prune", link.run_script(&call).await?)?;
    let mut next = || rest.next().unwrap_or(Value::Nil);
    Ok(Pruned {
        gone: reply::count("prune", &next())?,
        last: StreamId::parse(reply::text("prune", next())?.as_bytes()).unwrap_or(upto),
        more: reply::count("prune", &next())? == 1,
    })
}
