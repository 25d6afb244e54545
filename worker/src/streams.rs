//! The streams of one queue that a session reads or moves tasks to.

use std::sync::{Arc, PoisonError, RwLock};

use switchback_common::{Queue, Store, Version, id::stream_salt, store::keyspace::Key};

/// Place of the main stream in the session's list of streams.
pub(crate) const MAIN: usize = 0;
/// Place of the head stream.
pub(crate) const HEAD: usize = 1;
/// Place of the stream of high priority.
pub(crate) const HIGH: usize = 2;
/// Place of the stream of low priority.
pub(crate) const LOW: usize = 3;
/// Place of the suspects.
pub(crate) const SUSPECT: usize = 4;
/// Place of the first lane. Lanes of the worker's own versions come first, in their order, then any lane handed to.
pub(crate) const LANES: usize = 5;

/// One stream the session reads or moves to.
#[derive(Debug, Clone)]
pub(crate) struct StreamInfo {
    pub(crate) key: String,
    pub(crate) salt: u32,
    /// [`Key::label`], for the log.
    pub(crate) label: Arc<str>,
}

/// Streams by place. Places never change; lanes handed to are added at the end.
#[derive(Debug)]
pub(crate) struct Streams {
    store: Store,
    queue: Queue,
    list: RwLock<Vec<StreamInfo>>,
    own: usize,
}

impl Streams {
    pub(crate) fn new(store: &Store, queue: &Queue, versions: &[Version]) -> Self {
        let lanes = versions.iter().map(|v| Key::Lane(queue.clone(), v.clone()));
        let keys = Key::fixed_streams(queue).into_iter().chain(lanes);
        let list: Vec<_> = keys.map(|key| info(store, &key)).collect();
        Self {
            store: store.clone(),
            queue: queue.clone(),
            own: list.len(),
            list: RwLock::new(list),
        }
    }

    pub(crate) fn get(&self, place: usize) -> StreamInfo {
        self.list.read().unwrap_or_else(PoisonError::into_inner)[place].clone()
    }

    /// The streams this session reads.
    pub(crate) fn own(&self) -> Vec<StreamInfo> {
        self.list.read().unwrap_or_else(PoisonError::into_inner)[..self.own].to_vec()
    }

    pub(crate) fn keys(&self) -> Vec<String> {
        let list = self.list.read().unwrap_or_else(PoisonError::into_inner);
        list.iter().map(|s| s.key.clone()).collect()
    }

    /// What the log calls each stream, by place.
    pub(crate) fn labels(&self) -> Vec<Arc<str>> {
        let list = self.list.read().unwrap_or_else(PoisonError::into_inner);
        list.iter().map(|s| Arc::clone(&s.label)).collect()
    }

    pub(crate) fn len(&self) -> usize {
        self.list.read().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// The place of the lane of `version`, made if need be.
    pub(crate) fn lane(&self, version: &Version) -> usize {
        self.place(&Key::Lane(self.queue.clone(), version.clone()))
    }

    /// The place of the stream for tasks of a format that we do not know.
    pub(crate) fn newer(&self, format: u32) -> usize {
        self.place(&Key::Newer(self.queue.clone(), format))
    }

    fn place(&self, key: &Key) -> usize {
        let new = info(&self.store, key);
        let mut list = self.list.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = list.iter().position(|s| s.key == new.key) {
            return place;
        }
        list.push(new);
        list.len() - 1
    }
}

fn info(store: &Store, key: &Key) -> StreamInfo {
    let text = store.keyspace().render(key);
    StreamInfo {
        salt: stream_salt(&text),
        key: text,
        label: Arc::from(key.label()),
    }
}
