//! The limiter: holds a queue whose dead letters are at their limit (P10). Dead-lettering itself is never refused, and
//! nothing is trimmed: nothing new starts instead, until a person has looked.

use std::{sync::Arc, time::Duration};

use switchback_common::store::limits::{self, DeadLimit};

use crate::session::Session;

/// How often it looks when this worker settles no dead letter: others may.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// And how often at most.
const AT_MOST_EVERY: Duration = Duration::from_millis(20);

/// Looks until the session is over.
pub(crate) async fn run(session: Arc<Session>) {
    let mut grumbled = false;
    while !session.closing.is_cancelled() {
        // On hold already: nothing starts, whoever held it.
        if !session.view.newest().is_some_and(|ruling| ruling.gate.paused) {
            match limits::hold_if_full(&session.store, &session.queue).await {
                Ok(DeadLimit::Held { limit }) => {
                    tracing::error!(
                        queue.name = %session.queue, dead.limit = limit,
                        "dead letters are at their limit: the queue is held. Requeue or discard some (`switchback dead`), or raise the limit (`switchback queue limits`), then `switchback gate resume`"
                    );
                    session.touched();
                    grumbled = false;
                }
                Ok(DeadLimit::Room | DeadLimit::Paused) => grumbled = false,
                Err(error) if !grumbled => {
                    grumbled = true;
                    tracing::warn!(queue.name = %session.queue, %error, "cannot tell whether dead letters are at their limit");
                }
                Err(_) => {}
            }
        }
        tokio::select! {
            () = pause(&session) => {}
            () = session.closing.cancelled() => {}
        }
    }
}

async fn pause(session: &Session) {
    tokio::time::sleep(AT_MOST_EVERY).await;
    let _ = tokio::time::timeout(LOOK_EVERY, session.died.notified()).await;
}
