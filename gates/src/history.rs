//! The history of a gate in pages, newest first.
//!
//! An entry holds the gate before and after it, with all pins and targets: 80 KiB at most. A page is as long as a slow link
//! carries well within the time that a reply may take.

use switchback_common::{
    Queue, Store, StoreError, StreamId,
    store::gate::{GateStore, HistoryEntry},
};

/// Entries of the first page: nobody knows yet how long they are, and the newest is often enough.
const FIRST: usize = 1;
/// Most entries of a page.
const MOST: usize = 200;
/// About so many bytes are asked for at once.
const BYTES: usize = 256 * 1024;

/// A walk through the history.
#[derive(Debug)]
pub struct Pages {
    gate: GateStore,
    before: Option<StreamId>,
    count: usize,
    over: bool,
}

impl Pages {
    /// From the newest entry on.
    #[must_use]
    pub fn new(store: &Store, queue: &Queue) -> Self {
        Self {
            gate: GateStore::new(store, queue),
            before: None,
            count: FIRST,
            over: false,
        }
    }

    /// From the newest entry on that was written until `until_us`, or hardly later.
    #[must_use]
    pub fn until(mut self, until_us: u64) -> Self {
        // A second more: an entry's own time is read before its id is given, and a busy server takes its time.
        self.before = (until_us < u64::MAX).then(|| StreamId {
            ms: (until_us / 1_000).saturating_add(1_000),
            seq: 0,
        });
        self
    }

    /// The next page; `None` at the end.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn next(&mut self) -> Result<Option<Vec<HistoryEntry>>, StoreError> {
        if self.over {
            return Ok(None);
        }
        let page = self.gate.history(self.before, self.count).await?;
        self.over = page.len() < self.count;
        self.before = page.last().map(|entry| entry.id);
        let length: usize = page.iter().map(HistoryEntry::length).sum();
        // P10: bounded in bytes, too.
        self.count = (BYTES * page.len() / length.max(1)).clamp(1, MOST);
        Ok((!page.is_empty()).then_some(page))
    }
}
