//! The reporter: writes down how far handlers say they are, a few times a second for all of them together.

use std::{sync::Arc, time::Duration};

use switchback_common::store::results;

use crate::session::Session;

/// Of what one attempt says within this, the latest is written.
const WRITE_EVERY: Duration = Duration::from_millis(200);

/// Writes until every attempt has ended.
pub(crate) async fn run(session: Arc<Session>) {
    loop {
        tokio::select! {
            () = session.reported.notified() => {}
            () = session.attempts.wait() => return,
        }
        loop {
            let (reports, all) = session.running.unwritten();
            if let Err(error) = results::progress(&session.store, &session.queue, &session.id, &reports).await {
                // It is only progress: the next word comes soon, and how the task ends is settled apart.
                tracing::debug!(queue.name = %session.queue, %error, "cannot write progress");
            }
            if all {
                break;
            }
        }
        tokio::select! {
            () = tokio::time::sleep(WRITE_EVERY) => {}
            () = session.attempts.wait() => return,
        }
    }
}
