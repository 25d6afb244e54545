//! The trimmer: lets go of the inputs of done tasks, and of the old log.
//!
//! P1: it never names an entry to keep or drop. It remembers how far the group had read at some time; what lies
//! before that and before the oldest pending entry is settled. The settler carries the floors to Redis.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use switchback_common::{
    StoreError, StreamId,
    clock::Moment,
    store::{inspect, log, moves},
};

use crate::{outcome::Message, session::Session};

const SAMPLE_EVERY: Duration = Duration::from_millis(250);
/// And when nothing moves.
const STILL_EVERY: Duration = Duration::from_secs(2);
/// How often memory is measured and the log trimmed.
const MEASURE_EVERY: Duration = Duration::from_secs(30);
/// Most pruning steps in a row: the other streams wait.
const MAX_STEPS: usize = 20;
/// Samples remembered per stream; beyond that every second one goes.
const MAX_SAMPLES: usize = 2_048;

/// How far a group had read at one moment.
#[derive(Debug, Clone, Copy)]
struct Sample {
    at: Moment,
    tip: StreamId,
    read: u64,
}

/// What is remembered of one stream.
#[derive(Debug, Default)]
struct Watched {
    ring: VecDeque<Sample>,
    /// Memory of one entry, as last measured.
    bytes_each: u64,
    floor: Option<StreamId>,
    /// How far settled entries behind the floor were let go one by one.
    pruned: StreamId,
}

/// Trims until the session closes.
pub(crate) async fn run(session: Arc<Session>) {
    let mut streams: Vec<Watched> = session.streams.own().iter().map(|_| Watched::default()).collect();
    let mut measured: Option<Moment> = None;
    let mut sampled: Option<(Moment, StreamId)> = None;
    loop {
        tokio::select! {
            () = tokio::time::sleep(SAMPLE_EVERY) => {}
            () = session.closing.cancelled() => return,
        }
        // Nothing moves here: ask Redis less often.
        let tip = session.tip();
        if sampled.is_some_and(|(at, before)| before == tip && at.elapsed() < STILL_EVERY) {
            continue;
        }
        sampled = Some((Moment::now(), tip));
        let measure = measured.is_none_or(|at| at.elapsed() >= MEASURE_EVERY);
        if let Err(error) = sample(&session, &mut streams, measure).await {
            tracing::debug!(queue.name = %session.queue, %error, "cannot see how far streams may be trimmed");
        }
        if measure {
            measured = Some(Moment::now());
            let config = &session.config;
            if let Err(error) = log::trim(&session.store, &session.queue, config.log_retain, config.log_bytes).await {
                tracing::debug!(queue.name = %session.queue, %error, "cannot trim the log");
            }
        }
    }
}

/// Looks at every stream, and names the floors.
async fn sample(session: &Session, streams: &mut [Watched], measure: bool) -> Result<(), StoreError> {
    let config = &session.config;
    let (mut news, mut floors) = (false, Vec::new());
    for ((place, stream), watched) in session.streams.own().iter().enumerate().zip(streams) {
        let group = inspect::group(&session.store, &stream.key).await?;
        let Some(read) = group.entries_read.filter(|_| group.exists) else {
            continue;
        };
        let Watched {
            ring,
            bytes_each,
            floor,
            pruned,
        } = watched;
        // A person set the group back: what was read before is to be read again.
        if ring.back().is_some_and(|last| group.last_delivered < last.tip) {
            ring.clear();
        }
        if ring.back().is_none_or(|last| last.tip != group.last_delivered) {
            ring.push_back(Sample {
                at: Moment::now(),
                tip: group.last_delivered,
                read,
            });
        }
        if ring.len() > MAX_SAMPLES {
            thin(ring);
        }
        if measure && group.length > 0 {
            *bytes_each = inspect::memory(&session.store, &stream.key).await? / group.length;
        }
        let keep = config.retain_entries.min(config.retain_bytes / (*bytes_each).max(1));
        let Some(out) = newest_out(ring, read, keep, config.retain) else {
            continue;
        };
        let pending = inspect::first_pending(&session.store, &stream.key).await?;
        let new = pending.map_or(out, |first| first.min(out));
        news |= *floor != Some(new);
        *floor = Some(new);
        floors.push((place, new));
        if new < out {
            // P10: a long attempt holds the floor; what lies behind it goes all the same.
            *pruned = prune(session, &stream.key, (*pruned).max(new), out).await?;
        }
    }
    session.floors.set(floors);
    if news && session.slots.unsettled() == 0 {
        let _ = session.outcomes.send(Message::Trim);
    }
    Ok(())
}

/// Lets go of what is settled after `after` up to `upto`; tells how far it came.
async fn prune(session: &Session, stream: &str, mut after: StreamId, upto: StreamId) -> Result<StreamId, StoreError> {
    for _ in 0..MAX_STEPS {
        if after >= upto {
            break;
        }
        let step = moves::prune(&session.store, stream, after, upto).await?;
        after = step.last;
        if !step.more {
            break;
        }
    }
    Ok(after)
}

/// The newest sample that is out of both bounds; older samples are forgotten.
fn newest_out(ring: &mut VecDeque<Sample>, read: u64, keep: u64, retain: Duration) -> Option<StreamId> {
    let past = ring
        .iter()
        .take_while(|s| s.read + keep <= read || s.at.elapsed() >= retain)
        .count();
    // The last of them stays: it is the floor until the next one is past.
    ring.drain(..past.saturating_sub(1));
    (past > 0).then(|| ring.front().map(|s| s.tip)).flatten()
}

fn thin(ring: &mut VecDeque<Sample>) {
    let mut n = 0_usize;
    ring.retain(|_| {
        n += 1;
        n % 2 == 1
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_floor_is_the_newest_sample_out_of_bounds() {
        let id = |ms| StreamId { ms, seq: 0 };
        let mut ring: VecDeque<Sample> = (1..=10)
            .map(|n| Sample {
                at: Moment::now(),
                tip: id(n),
                read: n * 100,
            })
            .collect();
        let long = Duration::from_secs(60);
        assert_eq!(newest_out(&mut ring, 1_000, 1_000, long), None);
        assert_eq!(newest_out(&mut ring, 1_000, 450, long), Some(id(5)));
        assert_eq!(newest_out(&mut ring, 1_000, 450, long), Some(id(5)), "and stays");
        assert_eq!(newest_out(&mut ring, 1_000, 450, Duration::ZERO), Some(id(10)));
    }
}
