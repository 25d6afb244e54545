//! What speaks against beginning a rollout, all of it, so that a person sees it at once. Readiness has its own: see `unready`.

use switchback_common::{
    Queue, Version,
    store::{session::SessionInfo, versions::VersionRecord},
};
use switchback_gates::{
    Share,
    admin::Shown,
    rollout::{Record, RolledBack, Spec, rolled_back},
};

use crate::text::{ago, count, plain};

/// What is known before a start.
pub(super) struct Facts<'a> {
    pub(super) queue: &'a Queue,
    pub(super) shown: &'a Shown,
    pub(super) spec: &'a Spec,
    pub(super) to: &'a Version,
    pub(super) known: &'a [Version],
    pub(super) entry: &'a str,
    pub(super) live: &'a [SessionInfo],
    pub(super) running: Option<&'a Record>,
    pub(super) now_us: u64,
    pub(super) again: bool,
}

/// An objection, and whether --force passes over it.
#[derive(Clone)]
pub(super) struct Objection {
    pub(super) text: String,
    pub(super) passable: bool,
}

pub(super) fn objections(facts: &Facts<'_>) -> Vec<Objection> {
    let mut out = Vec::new();
    let mut object = |passable: bool, text: String| out.push(Objection { text, passable });
    let Facts { to, shown, .. } = facts;
    let task_type = &facts.queue.task_type;
    if !facts.known.contains(to) {
        let known: Vec<&str> = facts.known.iter().map(Version::as_str).collect();
        object(
            false,
            format!("unknown version {to}; versions that ever joined: {}", known.join(", ")),
        );
        return out;
    }
    if is_retired(facts.entry) {
        object(
            false,
            format!("{to} is retired; bring it back first: `switchback version restore {task_type} {to}`"),
        );
    }
    if shown.gate.active == **to {
        object(false, format!("{to} is the active version already"));
    }
    if let Some(record) = facts.running.filter(|record| record.status.is_live()) {
        object(
            false,
            format!(
                "the rollout of {} is {}, {}: see `switchback rollout status {task_type}`; `switchback rollout abort {task_type}` ends it",
                record.to,
                record.status,
                begun(record, facts.now_us)
            ),
        );
    } else if let Some(candidate) = shown
        .gate
        .candidate
        .as_ref()
        .filter(|_| shown.gate.percent > Share::NONE)
    {
        object(
            true,
            format!("{candidate} ramps already, at {} %, set by hand", shown.gate.percent),
        );
    }
    if let Some(RolledBack { at_us, rev, why, .. }) = rolled_back(facts.entry).filter(|_| !facts.again) {
        object(
            false,
            format!(
                "the guard rolled this build of {to} back {}, at revision {rev} ({}); --again tries it once more",
                ago(facts.now_us, at_us),
                plain(&why)
            ),
        );
    }
    let with = |version: &Version| facts.live.iter().filter(|s| s.has(version)).count();
    match with(to) {
        0 => object(true, format!("no live worker has {to}")),
        n if n < facts.spec.min_workers => {
            object(
                true,
                format!(
                    "{} with {to}, and it needs {}",
                    count(n, "live worker"),
                    facts.spec.min_workers
                ),
            );
        }
        _ => {}
    }
    // P3: there must be somewhere to go back to.
    let from = &shown.gate.active;
    let holds = |s: &&SessionInfo| s.has(from) && s.open.contains(from);
    if with(from) == 0 {
        object(true, format!("no live worker has {from}, which a rollback would go to"));
    } else if facts.live.iter().filter(holds).count() == with(from) {
        object(
            true,
            format!("every live worker holds {from} because it fails there, and a rollback would go to it"),
        );
    }
    out
}

fn is_retired(entry: &str) -> bool {
    VersionRecord::parse(entry.as_bytes()).retired.is_some()
}

/// `begun 3 m ago by alice: release 2`, of another's: who ends it should know whose it is.
fn begun(record: &Record, now_us: u64) -> String {
    let mut out = format!("begun {}", ago(now_us, record.id));
    if !record.by.is_empty() {
        out.push_str(&format!(" by {}", plain(&record.by)));
    }
    if !record.why.is_empty() {
        out.push_str(&format!(" ({})", plain(&record.why)));
    }
    out
}
