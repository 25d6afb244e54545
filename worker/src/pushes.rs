//! Pushes about gates, handed to the sessions they concern.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use switchback_common::store::{keyspace::Key, push::Touched};

use crate::session::Session;

/// Whom a push concerns, and what it means.
#[derive(Debug)]
enum Concern {
    /// Its gate was touched.
    Gate(Weak<Session>),
    /// A task was enqueued that is due soon.
    Wake(Weak<Session>),
}

impl Concern {
    fn tell(&self) {
        match self {
            Self::Gate(session) => session.upgrade().iter().for_each(|s| s.touched()),
            Self::Wake(session) => session.upgrade().iter().for_each(|s| s.retry_scheduled.notify_one()),
        }
    }
}

/// The sessions of this process by the keys that concern them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Pushes(Arc<Mutex<HashMap<String, Concern>>>);

impl Pushes {
    /// Tells `session` about pushes for its queue, instead of the session before it.
    pub(crate) fn add(&self, session: &Arc<Session>) {
        let mut map = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let wake = session.store.keyspace().render(&Key::Wake(session.queue.clone()));
        map.insert(wake, Concern::Wake(Arc::downgrade(session)));
        map.insert(
            session.view.store().key().to_owned(),
            Concern::Gate(Arc::downgrade(session)),
        );
    }

    /// Hands a push on. Pushes name every gate of every namespace; most are not ours.
    pub(crate) fn touched(&self, what: &Touched) {
        let map = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match what {
            Touched::Gate(key) => map.get(key).iter().for_each(|concern| concern.tell()),
            Touched::All => map.values().for_each(Concern::tell),
            // Nothing will be announced; the look every second goes on, and so does every promise.
            Touched::Disconnected => {}
        }
    }
}
