//! Sessions with nobody behind them.

use std::time::Duration;

use switchback_common::{
    Queue, SessionId, Store,
    store::session::{SessionRecord, SessionStore},
};

/// Joins `queue` for an hour, as a worker that has `versions` would.
///
/// # Panics
///
/// If the versions are no names, or Redis refuses.
pub async fn pretend(store: &Store, queue: &Queue, versions: &[&str]) -> SessionId {
    let record = SessionRecord {
        host: "test".to_owned(),
        pid: 1,
        build: String::new(),
        versions: versions
            .iter()
            .map(|version| version.parse().expect("a version"))
            .collect(),
        concurrency: 1,
        started_ms: 0,
    };
    let session = SessionId::random();
    let sessions = SessionStore::new(store, queue);
    let hour = Duration::from_secs(3_600);
    sessions.join(&session, hour, &record).await.expect("joining");
    session
}
