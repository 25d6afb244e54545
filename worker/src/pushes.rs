//! Pushes about gates, handed to the sessions they concern.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use switchback_common::store::push::Touched;

use crate::session::Session;

/// The sessions of this process by the key of their gate.
#[derive(Debug, Clone, Default)]
pub(crate) struct Pushes(Arc<Mutex<HashMap<String, Weak<Session>>>>);

impl Pushes {
    /// Tells `session` about pushes for `gate_key`, instead of the session before it.
    pub(crate) fn add(&self, gate_key: &str, session: &Arc<Session>) {
        let mut map = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        map.insert(gate_key.to_owned(), Arc::downgrade(session));
    }

    /// Hands a push on. Pushes name every gate of every namespace; most are not ours.
    pub(crate) fn touched(&self, what: &Touched) {
        let map = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match what {
            Touched::Gate(key) => {
                if let Some(session) = map.get(key).and_then(Weak::upgrade) {
                    session.touched();
                }
            }
            Touched::All => map.values().filter_map(Weak::upgrade).for_each(|s| s.touched()),
            // Nothing will be announced; the look every second goes on, and so does every promise.
            Touched::Disconnected => {}
        }
    }
}
