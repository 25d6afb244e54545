//! The watchman: raises an alert when the gate sends tasks to a version that no live worker has. They are parked, burn no
//! attempt and block nobody, so nothing else would tell.

use std::{sync::Arc, time::Duration};

use switchback_common::{
    StoreError, Version,
    store::absence::{self, Noted},
};

use crate::session::Session;

/// How often it looks.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// And when something was missing just now.
const LOOK_AGAIN: Duration = Duration::from_millis(1_000);
/// How long a version must be missing: a worker that is replaced is no reason for an alert.
const GRACE: Duration = Duration::from_secs(2);
/// Every look reads every session. Beyond so many each worker looks less often, so that a large fleet looks no more often
/// than a small one.
const FLEET: u32 = 50;

/// Looks until the session is over.
pub(crate) async fn run(session: Arc<Session>) {
    loop {
        let wait = match look(&session).await {
            Ok(wait) => wait,
            Err(error) => {
                tracing::debug!(queue.name = %session.queue, %error, "cannot tell whether every version has a worker");
                LOOK_EVERY
            }
        };
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = session.ruling_changed.notified() => {}
            () = session.closing.cancelled() => return,
        }
    }
}

async fn look(session: &Session) -> Result<Duration, StoreError> {
    let Some(ruling) = session.view.newest() else {
        return Ok(LOOK_AGAIN);
    };
    let reached = ruling.gate.reachable();
    // What this worker has is there: in a fleet of equals nobody reads sessions.
    let lacked: Vec<&Version> = reached
        .iter()
        .filter(|v| !session.spec.handlers.contains_key(*v))
        .collect();
    if lacked.is_empty() && !absence::is_noted(&session.store, &session.queue).await? {
        return Ok(LOOK_EVERY);
    }
    let sessions = session.sessions.list().await?;
    let has = |version: &Version| sessions.iter().any(|s| s.is_live() && s.has(version));
    let absent: Vec<Version> = lacked.into_iter().filter(|v| !has(v)).cloned().collect();
    let fleet = u32::try_from(sessions.len()).unwrap_or(u32::MAX) / FLEET + 1;
    if absent.is_empty() && !absence::is_noted(&session.store, &session.queue).await? {
        return Ok(LOOK_EVERY * fleet);
    }
    let (store, queue) = (&session.store, &session.queue);
    let Noted { pending, began } = absence::note(store, queue, &session.id, GRACE, &reached, &absent).await?;
    for version in began {
        tracing::warn!(
            queue.name = %queue, task.version = %version, gate.rev = ruling.rev,
            "no live worker has {version}, and the gate sends tasks to it: they wait until one joins, or `switchback gate rollback {}`",
            queue.task_type
        );
    }
    Ok(if pending > 0 { LOOK_AGAIN } else { LOOK_EVERY } * fleet)
}
