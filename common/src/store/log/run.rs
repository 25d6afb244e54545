//! Runs of the server: times compare only within one, so the log says where one ended and the next began.

use redis::Value;

use super::super::{connect::Store, error::StoreError, keyspace::Key, reply, script};
use crate::name::Queue;

/// Redis tells when it began in whole seconds.
const SECOND_US: u64 = 1_000_000;

/// Between which moments a server that was last seen at `last_us` became one that began at `since_us` and was first seen at
/// `seen_us`. `last_us` 0: nobody has seen another.
fn between(last_us: u64, since_us: u64, seen_us: u64) -> (u64, u64) {
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
    since_us: u64,
}

fn facts(info: &Value) -> Option<Facts> {
    let text: String = redis::from_redis_value(info.clone()).ok()?;
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let number = |name: &str| field(name)?.trim().parse::<u64>().ok();
    // Both are of one look at the clock, which may be older than `TIME`.
    let began_s = (number("server_time_usec")? / SECOND_US).saturating_sub(number("uptime_in_seconds")?);
    Some(Facts {
        run_id: field("run_id")?.trim().to_owned(),
        since_us: began_s * SECOND_US,
    })
}

/// Writes down in the log that the server became another run, if it did. `info`: the answer to `INFO server`.
pub(super) async fn note(store: &Store, queue: &Queue, info: &Value) -> Result<(), StoreError> {
    let Some(facts) = facts(info) else { return Ok(()) };
    let mut call = script::LOG_RUN.prepare_invoke();
    for key in [Key::Versions(queue.clone()), Key::Log(queue.clone())] {
        call.key(store.keyspace().render(&key));
    }
    call.arg(facts.run_id).arg(facts.since_us);
    store.warm().await?.run_script(&call).await?;
    Ok(())
}

/// Between which moments, µs, the server became another run of itself, or another server: those that workers noted, and
/// that before the one which answers now, if nobody has noted it yet.
///
/// # Errors
/// When Redis does not answer.
pub async fn gaps(store: &Store, queue: &Queue) -> Result<Vec<(u64, u64)>, StoreError> {
    let link = store.cold().await?;
    let mut pipe = redis::pipe();
    pipe.cmd("TIME");
    pipe.cmd("INFO").arg("server");
    pipe.cmd("HMGET")
        .arg(store.keyspace().render(&Key::Versions(queue.clone())))
        .arg(&[":run", ":runs"]);
    let mut replies = link.run_pipe(&mut pipe).await?.into_iter();
    let mut next = || replies.next().unwrap_or(Ok(Value::Nil));
    let now_us = reply::time_us(next().map_err(|e| link.error(e))?)?;
    let info = next().ok().and_then(|info| facts(&info));
    let mut noted = reply::array("runs", next().map_err(|e| link.error(e))?)?.into_iter();
    let mut text = || reply::text("runs", noted.next().unwrap_or(Value::Nil));
    let (known, runs) = (text()?, text()?);
    let mut gaps: Vec<(u64, u64)> = runs.split_ascii_whitespace().filter_map(gap).collect();
    let (run, last_us) = known.split_once(' ').unwrap_or_default();
    let last_us = last_us.parse().unwrap_or(0);
    match info {
        Some(info) if info.run_id == run => {}
        Some(info) => gaps.push(between(last_us, info.since_us, now_us)),
        // Nobody may say.
        None => gaps.push((last_us, now_us)),
    }
    Ok(gaps)
}

fn gap(word: &str) -> Option<(u64, u64)> {
    let mut parts = word.split('/').map(str::parse);
    let mut next = || parts.next()?.ok();
    Some(between(next()?, next()?, next()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_are_read_as_the_script_writes_them() {
        assert_eq!(gap("100/5000000/9000000"), Some((100, 6_000_000)));
        assert_eq!(
            gap("0/0/9000000"),
            Some((0, 9_000_000)),
            "nothing is known of what went"
        );
        assert_eq!(gap("0/5"), None);
    }

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
