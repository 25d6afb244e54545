//! Canaries: the first few, and how they ended, as the queue's log tells.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use serde::Serialize;
use switchback_common::{
    Queue, Store, StreamId,
    store::log::{self, Ended, LogEntry},
};
use tokio::time::Instant;

use crate::{
    args,
    exit::Failure,
    output::tell,
    text::{count, plain},
};

const LOOK_EVERY: Duration = Duration::from_millis(200);
const PAGE: usize = 200;
/// Tasks shown by name.
const SHOWN: usize = 20;

/// How it went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Verdict {
    /// All ended, and well enough.
    Passed,
    /// Too many failed or died again.
    Failed,
    /// Some have not ended.
    TimedOut,
    /// Somebody did not want to wait.
    Interrupted,
}

/// A few that go first.
#[derive(Debug)]
pub(super) struct Canary {
    size: u32,
    allowed: u32,
    timeout: Duration,
    after: StreamId,
    not_ended: BTreeSet<String>,
    ended: BTreeMap<String, &'static str>,
}

/// How they ended.
#[derive(Debug, Clone, Serialize)]
pub(super) struct CanaryView {
    pub(super) verdict: Verdict,
    size: usize,
    done: usize,
    failed: usize,
    died: usize,
    cancelled: usize,
    failures_allowed: u32,
    not_ended: Vec<String>,
    tasks: Vec<Named>,
}

#[derive(Debug, Clone, Serialize)]
struct Named {
    id: String,
    outcome: &'static str,
}

impl Canary {
    /// Before the first is put back: what the log says from here on is said of them.
    pub(super) async fn open(store: &Store, queue: &Queue, args: args::Canary) -> Result<Option<Self>, Failure> {
        let Some(size) = args.canary else { return Ok(None) };
        Ok(Some(Self {
            size,
            allowed: args.canary_failures,
            timeout: args.canary_timeout,
            after: log::extent(store, queue).await?.last,
            not_ended: BTreeSet::new(),
            ended: BTreeMap::new(),
        }))
    }

    /// How many more are needed.
    pub(super) fn missing(&self) -> usize {
        let size = usize::try_from(self.size).unwrap_or(usize::MAX);
        size.saturating_sub(self.not_ended.len())
    }

    pub(super) fn add(&mut self, tasks: impl IntoIterator<Item = String>) {
        self.not_ended.extend(tasks);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.not_ended.is_empty()
    }

    /// Waits until they have ended, too many have failed, or the time is up.
    pub(super) async fn watch(&mut self, store: &Store, queue: &Queue) -> Result<Verdict, Failure> {
        tell(format_args!(
            "canary: {} put back, waiting until they have ended",
            count(self.not_ended.len(), "task")
        ));
        let began = Instant::now();
        loop {
            let page = log::read(store, queue, Some(self.after), PAGE).await?;
            page.iter().for_each(|entry| self.read(entry));
            if let Some(last) = page.last() {
                self.after = last.id;
            }
            if self.failures() > usize::try_from(self.allowed).unwrap_or(usize::MAX) {
                return Ok(Verdict::Failed);
            }
            if self.not_ended.is_empty() {
                return Ok(Verdict::Passed);
            }
            if page.len() < PAGE {
                if began.elapsed() >= self.timeout {
                    return Ok(Verdict::TimedOut);
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
        }
    }

    fn read(&mut self, entry: &LogEntry) {
        for row in entry.attempts.iter().flat_map(|group| &group.tasks) {
            let word = match row.3 {
                Ended::Done => "done",
                Ended::Retried => "failed",
                Ended::Dead => "died",
                Ended::Cancelled => "cancelled",
                // It comes again.
                Ended::Released | Ended::Snoozed | Ended::Revoked | Ended::Other => continue,
            };
            self.end(&row.0.to_string(), word);
        }
        for (task, _) in &entry.cancelled {
            self.end(&task.to_string(), "cancelled");
        }
        match entry.kind.as_str() {
            "poison" => {
                for (task, _) in entry
                    .text
                    .split_ascii_whitespace()
                    .filter_map(|pair| pair.split_once('='))
                {
                    self.end(task, "died");
                }
            }
            "cancel" => {
                if let Some((task, "removed")) = entry.text.split_once(": ") {
                    self.end(task, "cancelled");
                }
            }
            _ => {}
        }
    }

    fn end(&mut self, task: &str, word: &'static str) {
        if self.not_ended.remove(task) {
            self.ended.insert(task.to_owned(), word);
        }
    }

    fn of(&self, word: &str) -> usize {
        self.ended.values().filter(|it| **it == word).count()
    }

    fn failures(&self) -> usize {
        self.of("failed") + self.of("died")
    }

    pub(super) fn view(&self, verdict: Verdict) -> CanaryView {
        let tasks = self.ended.iter().map(|(id, outcome)| Named {
            id: id.clone(),
            outcome,
        });
        CanaryView {
            verdict,
            size: self.ended.len() + self.not_ended.len(),
            done: self.of("done"),
            failed: self.of("failed"),
            died: self.of("died"),
            cancelled: self.of("cancelled"),
            failures_allowed: self.allowed,
            not_ended: self.not_ended.iter().cloned().collect(),
            tasks: tasks.collect(),
        }
    }
}

impl CanaryView {
    /// `canary: 9 of 10 done, 1 failed (order-7: failed)`
    pub(super) fn words(&self) -> String {
        let mut out = format!("canary: {} of {} done", self.done, self.size);
        for (n, word) in [
            (self.failed, "failed"),
            (self.died, "died"),
            (self.cancelled, "cancelled"),
            (self.not_ended.len(), "not ended"),
        ] {
            if n > 0 {
                out.push_str(&format!(", {n} {word}"));
            }
        }
        let bad = self.tasks.iter().filter(|task| task.outcome != "done");
        let bad = bad.map(|task| format!("{}: {}", plain(&task.id), task.outcome));
        let names: Vec<String> = bad
            .chain(self.not_ended.iter().map(|id| format!("{}: not ended", plain(id))))
            .take(SHOWN)
            .collect();
        if !names.is_empty() {
            out.push_str(&format!(" ({})", names.join(", ")));
        }
        out
    }
}
