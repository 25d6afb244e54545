//! The promoter: puts delayed tasks into the main stream when they are due.

use std::{sync::Arc, time::Duration};

use switchback_common::store::moves;

use crate::session::Session;

/// Other workers schedule retries, too: look at least this often.
const LONGEST_WAIT: Duration = Duration::from_millis(500);

/// Promotes until the session closes.
pub(crate) async fn run(session: Arc<Session>) {
    loop {
        let wait = match moves::promote(&session.store, &session.queue).await {
            // A full step: there may be more. Redis serves others between the steps.
            Ok(promoted) if promoted.moved > 0 => Duration::ZERO,
            Ok(promoted) => promoted.next.unwrap_or(LONGEST_WAIT).min(LONGEST_WAIT),
            Err(error) => {
                tracing::debug!(queue.name = %session.queue, %error, "cannot promote delayed tasks");
                LONGEST_WAIT
            }
        };
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = session.retry_scheduled.notified() => {}
            () = session.closing.cancelled() => return,
        }
    }
}
