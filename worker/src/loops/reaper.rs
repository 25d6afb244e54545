//! The reaper: gives the tasks of lost sessions to the living.
//!
//! It looks at the consumers themselves, not only at known sessions: a dead worker's blocked read can recreate a
//! consumer and be given a task long after its session was forgotten.

use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError},
    time::Duration,
};

use switchback_common::{
    SessionId, StoreError,
    clock::Moment,
    store::{inspect, keyspace::Key, session::Reaped},
};

use crate::session::Session;

/// Reaps until the session closes.
pub(crate) async fn run(session: Arc<Session>) {
    let every = (session.config.lease / 8).clamp(Duration::from_millis(100), Duration::from_secs(1));
    session.postpone_reaping();
    loop {
        tokio::select! {
            () = tokio::time::sleep(every) => {}
            () = session.closing.cancelled() => return,
        }
        if !may_reap(&session) {
            continue;
        }
        if let Err(error) = reap(&session).await {
            tracing::debug!(queue.name = %session.queue, %error, "cannot look for lost sessions");
            session.postpone_reaping();
        }
    }
}

/// P2: after a Redis restart or a stall of ours every lease looks gone; the living get time to renew.
fn may_reap(session: &Session) -> bool {
    let not_before = *session.reap_not_before.lock().unwrap_or_else(PoisonError::into_inner);
    Moment::now() >= not_before && session.board.lease_alive()
}

async fn reap(session: &Session) -> Result<(), StoreError> {
    let queue = &session.queue;
    let mut streams = Vec::from(Key::fixed_streams(queue));
    for version in inspect::versions(&session.store, queue).await? {
        streams.push(Key::Lane(queue.clone(), version));
    }
    let streams: Vec<String> = streams.iter().map(|key| session.store.keyspace().render(key)).collect();

    let mut suspects: BTreeMap<SessionId, bool> = BTreeMap::new();
    let mut alive = Vec::new();
    for known in session.sessions.list().await? {
        if known.lease.is_some() {
            alive.push(known.id);
        } else {
            suspects.insert(known.id, true);
        }
    }
    for stream in &streams {
        for consumer in session.sessions.consumers(stream).await? {
            // A consumer that holds nothing and was busy a moment ago may be about to register.
            if consumer.pending > 0 || consumer.idle > session.config.lease {
                suspects.entry(consumer.session).or_insert(false);
            }
        }
    }
    if !alive.contains(&session.id) {
        // Redis has lost ours, so it may have lost them all.
        session.postpone_reaping();
    }
    // Asked again: the renewer may have come to know since.
    if !may_reap(session) {
        return Ok(());
    }
    suspects.retain(|id, _| !alive.contains(id));
    for (lost, on_record) in suspects {
        let (mut total, mut dead) = (0, 0);
        let mut whole = true;
        #[cfg(feature = "faults")]
        if session.config.faults.reap_drops {
            drop_held(session, &lost, &streams).await?;
        }
        for stream in &streams {
            loop {
                match session.sessions.reap(&lost, &session.id, stream).await? {
                    Reaped::Alive => {
                        whole = false;
                        break;
                    }
                    Reaped::Moved { moved, poison, more } => {
                        total += moved;
                        dead += poison;
                        if !more {
                            break;
                        }
                    }
                }
            }
        }
        if total > 0 {
            tracing::warn!(queue.name = %queue, session = %lost, tasks = total, "a worker was lost; its tasks are back in line");
        }
        if dead > 0 {
            tracing::error!(queue.name = %queue, session = %lost, tasks = dead, "a task killed its process once too often, the last time alone in it: it is a dead letter, `poison`");
        }
        if whole && on_record {
            session.sessions.forget(&lost).await?;
        }
    }
    Ok(())
}

/// Fault for tests: acknowledges what a lost session holds. What is acknowledged is in nobody's hands.
#[cfg(feature = "faults")]
async fn drop_held(session: &Session, lost: &SessionId, streams: &[String]) -> Result<(), StoreError> {
    use switchback_common::store::{
        claim::own_pending,
        settle::{Batch, DoneGroup, Settler},
    };
    let settler = Settler::new(&session.store, &session.queue, &session.id, streams.to_vec()).await?;
    for (stream, key) in streams.iter().enumerate() {
        let pending = own_pending(&session.store, key, lost, None, 100).await?;
        let entries = pending.into_iter().map(|(id, _)| id).collect();
        let batch = Batch {
            done: vec![DoneGroup { stream, entries }],
            ..Batch::default()
        };
        if !batch.done[0].entries.is_empty() {
            settler.settle(&batch).await?;
        }
    }
    Ok(())
}
