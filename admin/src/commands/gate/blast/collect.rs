//! Collecting: what sessions hold, then the log once, page by page, into facts and the certificate.

use std::time::Duration;

use serde::Serialize;
use switchback_common::{
    StreamId, Version,
    envelope::field,
    store::{
        held, inspect,
        log::{self, Extent},
        reply::field_text,
        session::SessionStore,
    },
};
use switchback_gates::{
    blast::{
        Fact, Outcome, Reader, What,
        facts::{Holding, routed},
    },
    certificate::{Certificate, Runs},
};
use tokio::time::Instant;

use super::{Ask, spill::Spill, temporary};
use crate::{context::Context, exit::Failure, output::tell, text::count};

/// Attempts that one page of the log should bring: an entry may have one or a thousand.
const PAGE_ATTEMPTS: usize = 20_000;
const MOST_ENTRIES: usize = 1_000;
/// Held tasks looked at.
const MOST_HELD: usize = 10_000;
/// Tasks looked for because a log entry of an older release does not name their key.
const MOST_FOUND: usize = 200;
/// Redis tells how long an entry was held in whole milliseconds.
const SLACK_US: u64 = 2_000;
/// A word for who waits, this often.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// What runs now.
#[derive(Debug, Clone, Default, Serialize)]
pub(super) struct Running {
    /// What live workers said they run on the version.
    pub(super) published: u64,
    /// Tasks held whose version it is, or may be.
    pub(super) held: u64,
    pub(super) held_complete: bool,
}

impl Running {
    pub(super) fn words(&self, version: &Version) -> String {
        match (self.published, self.held) {
            (0, 0) => format!("nothing on {version}"),
            (published, held) => format!(
                "{} on {version} as its workers said last; {} held that may run on it",
                count(published, "attempt"),
                count(held, "task")
            ),
        }
    }
}

/// Everything that was read.
#[derive(Debug)]
pub(super) struct Collected {
    pub(super) facts: Option<Spill>,
    pub(super) extent: Extent,
    pub(super) certificate: Certificate,
    pub(super) running: Running,
    pub(super) stale_cut: u64,
    pub(super) unknown_keys: u64,
    looked_for: usize,
}

pub(super) async fn collect(context: &Context, ask: &Ask<'_>) -> Result<Collected, Failure> {
    let mut reader = Reader::new(ask.revisions, &ask.queue.task_type);
    let mut spill = Spill::new();
    // Before the log: what ends in between is in both, and the log knows better.
    let running = hold(context, ask, &mut reader, &mut spill).await?;
    let extent = log::extent(&context.store, ask.queue).await?;
    let mut runs = Runs::default();
    for gap in log::gaps(&context.store, ask.queue).await? {
        runs.add(gap);
    }
    let mut collected = Collected {
        facts: None,
        extent,
        certificate: Certificate::new(ask.question.version.clone()),
        running,
        stale_cut: 0,
        unknown_keys: 0,
        looked_for: 0,
    };
    let (mut said, mut entries) = (Instant::now(), 0_u64);
    let mut failed = None;
    let mut after = Some(before(ask.from_us));
    let mut most = 100;
    'pages: loop {
        let page = log::read(&context.store, ask.queue, after, most).await?;
        let Some(last) = page.last() else { break };
        after = Some(last.id);
        let attempts: usize = page.iter().flat_map(|e| &e.attempts).map(|g| g.tasks.len()).sum();
        most = (page.len() * PAGE_ATTEMPTS / attempts.max(1)).clamp(20, MOST_ENTRIES);
        for entry in &page {
            // What is written from here on would never end.
            if entry.id > extent.last {
                break 'pages;
            }
            for group in &entry.attempts {
                collected.certificate.add(group, ask.revisions, &runs);
            }
            reader.read(entry, |fact| {
                if let Err(error) = spill.add(&fact) {
                    failed.get_or_insert(error);
                }
            });
        }
        if let Some(error) = failed {
            return Err(temporary(&error));
        }
        entries += page.len() as u64;
        if said.elapsed() >= LINE_EVERY {
            said = Instant::now();
            tell(format_args!("{entries} entries of the log read so far"));
        }
    }
    collected.stale_cut = reader.stale_cut;
    collected.facts = Some(spill);
    Ok(collected)
}

/// The place in the log behind which everything lies that was written at `us` or later.
fn before(us: u64) -> StreamId {
    StreamId {
        ms: (us / 1_000).saturating_sub(1),
        seq: u64::MAX,
    }
}

/// What sessions hold now: facts of tasks that run, or are about to; and of what nobody has recovered yet.
async fn hold(
    context: &Context,
    ask: &Ask<'_>,
    reader: &mut Reader<'_>,
    spill: &mut Spill,
) -> Result<Running, Failure> {
    let version = &ask.question.version;
    let sessions = SessionStore::new(&context.store, ask.queue).list().await?;
    for session in &sessions {
        if let Some(record) = &session.record {
            reader.session(&session.id, &record.versions);
        }
    }
    let live = || sessions.iter().filter(|s| s.is_live());
    let mut out = Running {
        published: live().filter_map(|s| s.running().get(version).copied()).sum(),
        held: 0,
        held_complete: true,
    };
    let mut looked_at = 0;
    for place in held::places(&context.store, ask.queue).await? {
        let mut after = None;
        loop {
            let (page, last) = held::scan(&context.store, &place, after).await?;
            let Some(last) = last else { break };
            after = Some(last);
            looked_at += page.len();
            for it in page {
                let now_us = ask.now_us.max(it.since_us);
                let key = it.key.as_deref().unwrap_or(&it.task);
                let versions = reader.versions(&it.session, Some(key), (it.since_us.saturating_sub(SLACK_US), now_us));
                let runs = live().any(|s| s.id == it.session);
                let on_it = versions.as_ref().is_none_or(|versions| versions.contains(version));
                out.held += u64::from(runs && on_it);
                let holding = Holding {
                    ended: if runs { Outcome::Running } else { Outcome::Vanished },
                    session: it.session.to_string(),
                    stream: it.stream,
                    entry: it.entry.to_string(),
                    from_us: it.since_us,
                    until_us: now_us,
                    versions,
                    keyless: false,
                    poison: false,
                };
                let fact = Fact {
                    task: it.task,
                    at: StreamId {
                        ms: now_us / 1_000,
                        seq: 0,
                    },
                    what: What::Held(holding),
                };
                spill.add(&fact).map_err(|error| temporary(&error))?;
            }
            // P10.
            if looked_at >= MOST_HELD {
                out.held_complete = false;
                return Ok(out);
            }
        }
    }
    Ok(out)
}

impl Collected {
    /// Looks for tasks whose key the log does not name, and which may have run on one of several versions. Where a task
    /// lies now its key is.
    pub(super) async fn find_keys(
        &mut self,
        context: &Context,
        ask: &Ask<'_>,
        facts: &mut [Fact],
    ) -> Result<(), Failure> {
        for fact in facts {
            let What::Held(holding) = &mut fact.what else { continue };
            let Some(versions) = holding.versions.as_mut().filter(|v| holding.keyless && v.len() > 1) else {
                continue;
            };
            if !versions.contains(&ask.question.version) {
                continue;
            }
            let id = fact.task.parse().ok().filter(|_| self.looked_for < MOST_FOUND);
            let found = match id {
                Some(id) => inspect::find(&context.store, ask.queue, &id).await?,
                None => None,
            };
            self.looked_for += 1;
            let Some(found) = found else {
                self.unknown_keys += 1;
                continue;
            };
            let key = Some(field_text(&found.fields, field::KEY)).filter(|key| !key.is_empty());
            let key = key.as_deref().unwrap_or(&fact.task);
            let between = (holding.from_us, holding.until_us);
            if let Some(routed) = routed(ask.revisions, &ask.queue.task_type, Some(key), between) {
                versions.retain(|version| routed.contains(version));
            }
        }
        Ok(())
    }
}
