//! The finder: looks for tasks that were given to this session but that it never saw.
//!
//! A claim that Redis executed and whose reply was lost leaves entries pending with a session that lives happily
//! on; nobody reaps them. P1 needs this loop.

use std::{sync::Arc, time::Duration};

use switchback_common::{
    StoreError,
    store::claim::{Claim, own_pending, reread},
};

use crate::{loops::claimer, session::Session};

const LOOK_EVERY: Duration = Duration::from_secs(10);
const PAGE: usize = 100;

/// Looks until the session closes.
pub(crate) async fn run(session: Arc<Session>) {
    #[cfg(feature = "faults")]
    if session.config.faults.never_find {
        return session.closing.cancelled().await;
    }
    loop {
        let asked = tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY.min(session.config.lease)) => false,
            () = session.look_for_lost.notified() => true,
            () = session.closing.cancelled() => return,
        };
        if asked {
            // What the broken connection claimed must be older than the oldest claim that is still out.
            tokio::select! {
                () = tokio::time::sleep(Duration::from_millis(1_500)) => {}
                () = session.closing.cancelled() => return,
            }
        }
        if let Err(error) = look(&session).await {
            tracing::debug!(queue.name = %session.queue, %error, "cannot look for tasks that were never seen");
        }
    }
}

async fn look(session: &Arc<Session>) -> Result<(), StoreError> {
    for (place, stream) in session.streams.own().iter().enumerate() {
        let mut from = None;
        loop {
            let page = own_pending(&session.store, &stream.key, &session.id, from, PAGE).await?;
            let Some((last, _)) = page.last() else { break };
            from = Some(*last);
            let full = page.len() == PAGE;
            for (id, idle) in page {
                if session.held.contains((place, id)) || idle < session.oldest_claim() + Duration::from_secs(1) {
                    continue;
                }
                let Some(entry) = reread(&session.store, &stream.key, &session.id, id).await? else {
                    continue;
                };
                tracing::warn!(queue.name = %session.queue, entry = %id, "found a task that was given to this worker and never seen; running it");
                let claim = Claim {
                    entries: vec![(place, vec![entry])],
                    read: None,
                };
                claimer::take(session, claim, session.slots.reserve(1)).await;
            }
            if !full {
                break;
            }
        }
    }
    Ok(())
}
