//! When a version was reachable: what a withdrawal, and everything that asks about one, goes by.

use serde::Serialize;
use switchback_common::{Queue, Version, store::gate::HistoryEntry};
use switchback_gates::certificate::{Revision, Revisions, Spell};

use crate::{
    context::Context,
    exit::Failure,
    text::{plain, rfc3339},
    view::made,
};

/// All revisions that the history keeps.
pub(crate) async fn revisions(context: &Context, queue: &Queue) -> Result<Revisions, Failure> {
    let mut all: Vec<HistoryEntry> = Vec::new();
    let mut pages = context.gates.pages(queue);
    while let Some(page) = pages.next().await? {
        // Whether there was anything before is asked, not what: pins may be long.
        all.extend(page.into_iter().map(|entry| HistoryEntry {
            before: if entry.before.is_empty() { "" } else { "{}" }.to_owned(),
            ..entry
        }));
    }
    Ok(Revisions::from_history(&all))
}

/// Fails, with the names there are, if no worker of the queue ever had `version`.
pub(crate) async fn require_version(
    context: &Context,
    queue: &Queue,
    revisions: &Revisions,
    version: &Version,
) -> Result<(), Failure> {
    context.require(queue).await?;
    let known = context.gates.known_versions(queue).await?;
    if known.contains(version) || !revisions.spells(version).is_empty() {
        return Ok(());
    }
    let known: Vec<&str> = known.iter().map(Version::as_str).collect();
    Err(Failure::NotFound(format!(
        "no worker of {queue} ever had {version}; versions that ever joined: {}",
        if known.is_empty() {
            "none".to_owned()
        } else {
            known.join(", ")
        }
    )))
}

/// The last time that `version` was reachable and was then withdrawn. Refused while it is reachable.
pub(crate) fn withdrawn<'a>(
    queue: &Queue,
    revisions: &'a Revisions,
    version: &Version,
) -> Result<(Spell<'a>, &'a Revision), Failure> {
    let task_type = &queue.task_type;
    match revisions.spells(version).pop() {
        Some(
            spell @ Spell {
                until: Some(revision), ..
            },
        ) => Ok((spell, revision)),
        Some(_) => Err(Failure::Refused(format!(
            "{version} was not withdrawn: the gate of {queue} still routes tasks to it (switchback gate show {task_type})"
        ))),
        None => Err(Failure::Refused(format!(
            "{version} was never withdrawn: no revision that the history of {queue} keeps routed tasks to it (switchback gate \
             history {task_type})"
        ))),
    }
}

/// A revision, as it is shown.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct RevisionView {
    rev: u64,
    at: Option<String>,
    at_us: u64,
    by: String,
    why: String,
    source: String,
}

impl RevisionView {
    pub(crate) fn of(revision: &Revision) -> Self {
        Self {
            rev: revision.rev,
            at: rfc3339(revision.at_us),
            at_us: revision.at_us,
            by: revision.by.clone(),
            why: revision.why.clone(),
            source: revision.source.clone(),
        }
    }

    /// When, µs of Redis's clock.
    pub(crate) fn at_us(&self) -> u64 {
        self.at_us
    }

    /// `revision 18, 2 m ago by alice (cli): bounces doubled`
    pub(crate) fn words(&self, now_us: u64) -> String {
        let source = format!("({})", plain(&self.source));
        let made = made(now_us, self.at_us, &self.by, &source, &self.why);
        format!("revision {}, {made}", self.rev)
    }
}
