//! Throttle in Redis: grants of a fleet's concurrency, and rates.

use std::time::Duration;

use redis::Value;

use super::{connect::Store, error::StoreError, keyspace::Key, reply, script};
use crate::{id::SessionId, name::Queue, throttle::Rate};

/// What a session says when it asks for its part of the fleet's concurrency.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ask {
    /// Grows with every call of the session: a call that arrives late changes nothing.
    pub call: u64,
    /// Tasks at once in the fleet.
    pub limit: u32,
    /// The most it may run now: its cap, or what runs, whichever is more. It must not rise before the answer.
    pub held: usize,
    /// What it runs.
    pub running: usize,
    /// The most it would run; 0: it wants none.
    pub ceiling: usize,
}

/// What a session may run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Granted {
    /// So many at once. Below what it holds: let tasks end, then say so.
    Cap(usize),
    /// A later call was answered: this one changed nothing.
    Late,
    /// The session's tasks were, or are being, given to others.
    Lost,
}

/// Asks for a part of the fleet's concurrency. `streams`: what the session reads now; whether there is anything in them
/// decides how urgent its wish is.
///
/// # Errors
/// When Redis does not answer: the session keeps to what it holds.
pub async fn grant(
    store: &Store,
    queue: &Queue,
    session: &SessionId,
    ask: Ask,
    streams: &[String],
) -> Result<Granted, StoreError> {
    let link = store.warm().await?;
    let mut call = script::GRANT.prepare_invoke();
    call.key(store.keyspace().render(&Key::Sessions(queue.clone())));
    for stream in streams {
        call.key(stream);
    }
    call.arg(session.as_str())
        .arg(ask.call)
        .arg(ask.limit)
        .arg(ask.held)
        .arg(ask.running)
        .arg(ask.ceiling);
    let (word, mut rest) = reply::verdict("grant", link.run_script(&call).await?)?;
    Ok(match word.as_str() {
        "lost" => Granted::Lost,
        "late" => Granted::Late,
        _ => {
            let cap = reply::count("grant", &rest.next().unwrap_or(Value::Nil))?;
            Granted::Cap(usize::try_from(cap).unwrap_or(usize::MAX))
        }
    })
}

/// Starts of a rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Paced {
    /// So many may begin now: of those taken, or, if none were, of all.
    pub now: usize,
    /// Time until the next one may. Those taken beyond `now` follow from there, an interval apart.
    pub next: Duration,
}

/// Takes `want` starts from the queue's rate: some for now, the others for later. None: only looks.
///
/// # Errors
/// When Redis does not answer: starts may have been taken, and are lost.
pub async fn pace(store: &Store, queue: &Queue, rate: Rate, want: usize) -> Result<Paced, StoreError> {
    let link = store.warm().await?;
    let mut call = script::RATE.prepare_invoke();
    call.key(store.keyspace().render(&Key::Rate(queue.clone())));
    call.arg(rate.to_string())
        .arg(rate.interval_ns())
        .arg(rate.burst())
        .arg(want);
    let (_, mut rest) = reply::verdict("rate", link.run_script(&call).await?)?;
    let mut next = || reply::count("rate", &rest.next().unwrap_or(Value::Nil));
    Ok(Paced {
        now: usize::try_from(next()?).unwrap_or(0),
        next: Duration::from_micros(next()?),
    })
}

/// When each task of a batch may start by the rate of its key: ms from now, in the order of `keys`; and Redis's time, in
/// ms since 1970.
///
/// Beside each key stands the deadline of its task, in ms since 1970: whatever could only start after it is told that
/// moment, and takes no start.
///
/// # Errors
/// When Redis does not answer: times may have been given, and are lost.
pub async fn pace_keys(
    store: &Store,
    queue: &Queue,
    rate: Rate,
    keys: &[(&str, Option<u64>)],
) -> Result<(Vec<u64>, u64), StoreError> {
    let link = store.warm().await?;
    let mut call = script::KEY_RATES.prepare_invoke();
    call.arg(rate.to_string()).arg(rate.interval_ns()).arg(rate.burst());
    for (key, expires) in keys {
        call.key(store.keyspace().render(&Key::KeyRate(queue.clone(), (*key).to_owned())));
        call.arg(expires.unwrap_or(0));
    }
    let (_, rest) = reply::verdict("keys", link.run_script(&call).await?)?;
    let mut waits = rest
        .map(|v| reply::count("keys", &v))
        .collect::<Result<Vec<u64>, _>>()?;
    let now = waits.pop().unwrap_or(0);
    waits.resize(keys.len(), 0);
    Ok((waits, now))
}
