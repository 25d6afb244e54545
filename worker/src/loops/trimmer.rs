//! The trimmer: lets go of the inputs of done tasks, and of the old log.
//!
//! P1: it never names an entry to keep or drop. It remembers how far the group had read at some time; what lies
//! before that and before the oldest pending entry is settled. The settler carries the floors to Redis.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use switchback_common::{
    StoreError, StreamId,
    clock::Moment,
    store::{inspect, log},
};

use crate::{attempt::Message, session::Session};

const SAMPLE_EVERY: Duration = Duration::from_millis(250);
const LOG_EVERY: Duration = Duration::from_secs(30);
/// Samples remembered per stream; beyond that every second one goes.
const MAX_SAMPLES: usize = 2_048;

/// How far a group had read at one moment.
#[derive(Debug, Clone, Copy)]
struct Sample {
    at: Moment,
    tip: StreamId,
    read: u64,
}

/// Trims until the session closes.
pub(crate) async fn run(session: Arc<Session>) {
    let mut rings: Vec<VecDeque<Sample>> = vec![VecDeque::new(); session.streams.own().len()];
    let mut log_trimmed = Moment::long_ago();
    loop {
        tokio::select! {
            () = tokio::time::sleep(SAMPLE_EVERY) => {}
            () = session.closing.cancelled() => return,
        }
        if let Err(error) = sample(&session, &mut rings).await {
            tracing::debug!(queue.name = %session.queue, %error, "cannot see how far streams may be trimmed");
        }
        if log_trimmed.elapsed() >= LOG_EVERY {
            log_trimmed = Moment::now();
            let config = &session.config;
            if let Err(error) = log::trim(&session.store, &session.queue, config.log_retain, config.log_bytes).await {
                tracing::debug!(queue.name = %session.queue, %error, "cannot trim the log");
            }
        }
    }
}

async fn sample(session: &Session, rings: &mut [VecDeque<Sample>]) -> Result<(), StoreError> {
    let mut floors = Vec::new();
    for ((place, stream), ring) in session.streams.own().iter().enumerate().zip(rings) {
        let group = inspect::group(&session.store, &stream.key).await?;
        let Some(read) = group.entries_read.filter(|_| group.exists) else {
            continue;
        };
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
        // Whatever the bound on entries and bytes, at least the newest sample stays.
        let bytes_each = 256;
        let keep = session
            .config
            .retain_entries
            .min(session.config.retain_bytes / bytes_each);
        let floor = floor(ring, read, keep, session.config.retain);
        if let Some(floor) = floor {
            let pending = inspect::first_pending(&session.store, &stream.key).await?;
            floors.push((place, pending.map_or(floor, |first| first.min(floor))));
        }
    }
    let news = !floors.is_empty();
    session.floors.set(floors);
    if news && session.slots.unsettled() == 0 {
        let _ = session.outcomes.send(Message::Trim);
    }
    Ok(())
}

/// The newest sample that is out of both bounds; older samples are forgotten.
fn floor(ring: &mut VecDeque<Sample>, read: u64, keep: u64, retain: Duration) -> Option<StreamId> {
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
        assert_eq!(floor(&mut ring, 1_000, 1_000, long), None);
        assert_eq!(floor(&mut ring, 1_000, 450, long), Some(id(5)));
        assert_eq!(floor(&mut ring, 1_000, 450, long), Some(id(5)), "and stays");
        assert_eq!(floor(&mut ring, 1_000, 450, Duration::ZERO), Some(id(10)));
    }
}
