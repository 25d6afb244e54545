//! Listening for pushes about gates, one connection per process, re-armed when it breaks.
//!
//! A push means "stale: look again", never "the value is". Whoever relies on it alone is wrong; a look every
//! second backs it.

use std::{sync::Arc, time::Duration};

use switchback_common::{
    Store,
    clock::Moment,
    store::{
        backoff::Backoff,
        grumble::Grumble,
        push::{GatePushes, Touched},
    },
};

const RETRY: Backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(2));
const PING_EVERY: Duration = Duration::from_secs(1);
/// A connection that lasted less is no success: whatever closed it closes the next one, too.
const LASTED: Duration = Duration::from_secs(10);

/// Listens until dropped, calling `touched` for every announcement; reconnects by itself.
pub async fn listen(store: Store, touched: Arc<dyn Fn(&Touched) + Send + Sync>) {
    let (mut retry, mut lost, mut refused) = (RETRY, Grumble::default(), Grumble::default());
    loop {
        match GatePushes::subscribe(&store).await {
            Ok(mut pushes) => {
                let began = Moment::now();
                // Whatever happened while nobody listened was not announced.
                touched(&Touched::All);
                run(&mut pushes, touched.as_ref()).await;
                if began.elapsed() >= LASTED {
                    retry.reset();
                }
                if lost.is_news() {
                    tracing::warn!("lost the connection that announces gate changes; reconnecting");
                }
            }
            Err(error) if refused.is_news() => {
                tracing::warn!(%error, "no announcements of gate changes; looking every second instead");
            }
            Err(_) => {}
        }
        touched(&Touched::Disconnected);
        tokio::time::sleep(retry.next_wait()).await;
    }
}

async fn run(pushes: &mut GatePushes, touched: &(dyn Fn(&Touched) + Send + Sync)) {
    loop {
        match tokio::time::timeout(PING_EVERY, pushes.next()).await {
            Ok(Touched::Disconnected) => return,
            Ok(what) => touched(&what),
            // A half-open connection says nothing for ever: ask.
            Err(_) if pushes.ping().await.is_err() => return,
            Err(_) => {}
        }
    }
}
