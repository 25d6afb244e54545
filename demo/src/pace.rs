//! Enqueueing at a steady pace, so that every ramp meets new work.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use switchback_common::clock::Moment;
use switchback_producer::Producer;
use switchback_worker::examples::index_document::IndexDocument;

use crate::{Failure, corpus::Document};

const STEP: Duration = Duration::from_millis(50);

/// How long enqueueing takes. Can grow while it goes on: then the rest comes more slowly.
#[derive(Debug)]
pub(crate) struct Pace {
    planned: Duration,
    extra_ms: AtomicU64,
}

impl Pace {
    /// All within `planned`.
    pub(crate) fn new(planned: Duration) -> Self {
        Self {
            planned,
            extra_ms: AtomicU64::new(0),
        }
    }

    /// Makes it last longer: a ramp needs more time.
    pub(crate) fn stretch(&self, by: Duration) {
        let ms = u64::try_from(by.as_millis()).unwrap_or(0);
        self.extra_ms.fetch_add(ms, Ordering::Relaxed);
    }

    /// How many of `total` are due after `elapsed`.
    fn due(&self, elapsed: Duration, total: usize) -> usize {
        let extra = Duration::from_millis(self.extra_ms.load(Ordering::Relaxed));
        let whole = (self.planned + extra).as_micros().max(1);
        let due = total as u128 * elapsed.as_micros() / whole;
        usize::try_from(due).unwrap_or(total).min(total)
    }
}

/// Enqueues every document; tells how many tasks that made.
pub(crate) async fn enqueue(producer: &Producer, documents: &[Document], pace: &Pace) -> Result<usize, Failure> {
    let began = Moment::now();
    let (mut sent, mut ids) = (0, 0);
    while sent < documents.len() {
        let due = pace.due(began.elapsed(), documents.len());
        if due > sent {
            let batch: Vec<(String, IndexDocument)> =
                documents[sent..due].iter().map(|d| (d.key.clone(), d.task())).collect();
            let tasks = batch.iter().map(|(key, task)| (key.clone(), task));
            ids += producer.enqueue_many_keyed(tasks).idempotent().await?.len();
            sent = due;
        }
        tokio::time::sleep(STEP).await;
    }
    Ok(ids)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pace_is_steady_and_can_slow_down() {
        let seconds = Duration::from_secs;
        let pace = Pace::new(seconds(10));
        assert_eq!((pace.due(seconds(0), 1_000), pace.due(seconds(5), 1_000)), (0, 500));
        assert_eq!(pace.due(seconds(11), 1_000), 1_000);
        pace.stretch(seconds(10));
        assert_eq!(pace.due(seconds(5), 1_000), 250, "what was sent already stays sent");
        assert_eq!(pace.due(seconds(20), 1_000), 1_000);
    }
}
