//! Runs of the server: times compare only within one, so the log says where one ended and the next began.

use redis::Value;

use super::super::{connect::Store, error::StoreError, keyspace::Key, reply, script};
use crate::name::Queue;

/// Redis counts its uptime in whole seconds.
const SECOND_US: u64 = 1_000_000;

/// The run of the server that answers now, beside the last one that the queue's log knows of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerRun {
    /// Redis's time, µs.
    pub now_us: u64,
    /// Between which two moments, µs, it became another than the log knows of; `None`: it is the one the log knows of.
    pub unnoted: Option<(u64, u64)>,
}

/// Between which moments a server that was last seen at `last_us` became one that began at `since_us` and was first seen at
/// `seen_us`. `last_us` 0: nobody has seen another.
pub(super) fn between(last_us: u64, since_us: u64, seen_us: u64) -> (u64, u64) {
    // One that began before the other was last seen is another server: it took over some time until it was seen.
    let until = if since_us > last_us {
        since_us + SECOND_US
    } else {
        seen_us
    };
    (last_us.min(until), last_us.max(until))
}

struct Facts {
    run_id: String,
    uptime_s: u64,
}

fn facts(info: &Value) -> Option<Facts> {
    let text: String = redis::from_redis_value(info.clone()).ok()?;
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    Some(Facts {
        run_id: field("run_id")?.trim().to_owned(),
        uptime_s: field("uptime_in_seconds")?.trim().parse().ok()?,
    })
}

/// Writes down in the log that the server became another run, if it did. `info`: the answer to `INFO server`.
pub(super) async fn note(store: &Store, queue: &Queue, info: &Value) -> Result<(), StoreError> {
    let Some(facts) = facts(info) else { return Ok(()) };
    let mut call = script::LOG_RUN.prepare_invoke();
    for key in [Key::Versions(queue.clone()), Key::Log(queue.clone())] {
        call.key(store.keyspace().render(&key));
    }
    call.arg(facts.run_id).arg(facts.uptime_s);
    store.warm().await?.run_script(&call).await?;
    Ok(())
}

/// The run of the server that answers now.
///
/// # Errors
/// When Redis does not answer.
pub async fn server_run(store: &Store, queue: &Queue) -> Result<ServerRun, StoreError> {
    let link = store.cold().await?;
    let mut pipe = redis::pipe();
    pipe.cmd("TIME");
    pipe.cmd("INFO").arg("server");
    pipe.cmd("HGET")
        .arg(store.keyspace().render(&Key::Versions(queue.clone())))
        .arg(":run");
    let mut replies = link.run_pipe(&mut pipe).await?.into_iter();
    let mut next = || replies.next().unwrap_or(Ok(Value::Nil));
    let now_us = reply::time_us(next().map_err(|e| link.error(e))?)?;
    let info = next().ok().and_then(|info| facts(&info));
    let known = reply::text("run", next().map_err(|e| link.error(e))?)?;
    let (run, last_us) = known.split_once(' ').unwrap_or_default();
    let last_us = last_us.parse().unwrap_or(0);
    let unnoted = match info {
        Some(info) if info.run_id == run => None,
        Some(info) => Some(between(
            last_us,
            now_us.saturating_sub(info.uptime_s * SECOND_US),
            now_us,
        )),
        // Nobody may say.
        None => Some((last_us, now_us)),
    };
    Ok(ServerRun { now_us, unnoted })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_run_began_between_two_looks() {
        assert_eq!(between(100, 5_000_000, 9_000_000), (100, 6_000_000), "a restart");
        assert_eq!(
            between(7_000_000, 5_000_000, 9_000_000),
            (7_000_000, 9_000_000),
            "a replica took over"
        );
        assert_eq!(between(0, 5_000_000, 9_000_000), (0, 6_000_000), "nobody looked before");
        assert_eq!(
            between(9_000_000, 1, 4_000_000),
            (4_000_000, 9_000_000),
            "a replica whose clock is behind"
        );
    }
}
