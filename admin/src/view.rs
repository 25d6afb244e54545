//! What several commands show alike: gates, sessions, errors.

use std::collections::BTreeMap;

use serde::Serialize;
use switchback_common::{
    Queue, Version,
    envelope::AttemptError,
    store::{gate::HistoryEntry, session::SessionInfo},
};
use switchback_gates::{Gate, Share};

use crate::text::{ago, count, plain, rfc3339};

/// The gate in a few words: `v1 only`, or `v1, v2 at 25 %, 3 pins, 1 target, paused`.
pub(crate) fn words(gate: &Gate) -> String {
    let mut out = gate.active.to_string();
    let alone = gate.candidate.is_none() && gate.pins.is_empty() && gate.targets.is_empty();
    if alone {
        out.push_str(" only");
    }
    if let Some(candidate) = &gate.candidate {
        out.push_str(&format!(", {candidate} at {} %", gate.percent));
    }
    if !gate.pins.is_empty() {
        out.push_str(&format!(", {}", count(gate.pins.len(), "pin")));
    }
    if !gate.targets.is_empty() {
        out.push_str(&format!(", {}", count(gate.targets.len(), "target")));
    }
    if gate.paused {
        out.push_str(", paused");
    }
    out
}

/// Who made a change, when and why.
#[derive(Debug, Serialize)]
pub(crate) struct Made {
    pub(crate) at: Option<String>,
    pub(crate) at_us: u64,
    pub(crate) by: String,
    pub(crate) why: String,
    pub(crate) source: String,
    pub(crate) inflight: String,
}

/// `3 m ago by alice (cli): bounces doubled`; `source` as it is to be read.
pub(crate) fn made(now_us: u64, at_us: u64, by: &str, source: &str, why: &str) -> String {
    let by = match by {
        "" => String::new(),
        by => format!(" by {}", plain(by)),
    };
    let why = match why {
        "" => String::new(),
        why => format!(": {}", plain(why)),
    };
    format!("{}{by} {source}{why}", ago(now_us, at_us))
}

/// What became of what ran on withdrawn versions.
pub(crate) fn policy(entry: &HistoryEntry) -> &str {
    match entry.inflight.as_str() {
        "" => "finish",
        policy => policy,
    }
}

impl Made {
    pub(crate) fn of(entry: &HistoryEntry) -> Self {
        Self {
            at: rfc3339(entry.at_us),
            at_us: entry.at_us,
            by: entry.by.clone(),
            why: entry.why.clone(),
            source: entry.source.clone(),
            inflight: policy(entry).to_owned(),
        }
    }

    /// `3 m ago by alice (cli): bounces doubled`
    pub(crate) fn words(&self, now_us: u64) -> String {
        let source = match self.inflight.as_str() {
            "finish" => format!("({})", plain(&self.source)),
            policy => format!("({}), {} what ran", plain(&self.source), plain(policy)),
        };
        made(now_us, self.at_us, &self.by, &source, &self.why)
    }
}

/// `host/pid`, as far as it is known.
pub(crate) fn whereabouts(session: &SessionInfo) -> String {
    match &session.record {
        Some(record) => format!("{}/{}", plain(&record.host), record.pid),
        None => "unknown host".to_owned(),
    }
}

/// One version of a queue.
#[derive(Debug, Serialize)]
pub(crate) struct VersionView {
    pub(crate) version: Version,
    /// Whether a task may be routed to it.
    pub(crate) routed: bool,
    pub(crate) live_workers: usize,
    pub(crate) running: u64,
    #[serde(skip)]
    pub(crate) share: String,
}

/// Every version that is known, routed to, or at work.
pub(crate) fn versions(known: &[Version], gate: Option<&Gate>, sessions: &[SessionInfo]) -> Vec<VersionView> {
    let live: Vec<&SessionInfo> = sessions.iter().filter(|s| s.is_live()).collect();
    let mut all: Vec<Version> = known.to_vec();
    all.extend(gate.into_iter().flat_map(Gate::reachable));
    all.extend(
        live.iter()
            .filter_map(|s| s.record.as_ref())
            .flat_map(|r| r.versions.clone()),
    );
    all.extend(live.iter().flat_map(|s| s.running().into_keys()));
    all.sort();
    all.dedup();
    all.into_iter()
        .map(|version| VersionView {
            routed: gate.is_some_and(|g| g.reaches(&version)),
            live_workers: live.iter().filter(|s| s.has(&version)).count(),
            running: live.iter().filter_map(|s| s.running().get(&version).copied()).sum(),
            share: gate.map_or_else(String::new, |g| share(g, &version)),
            version,
        })
        .collect()
}

fn share(gate: &Gate, version: &Version) -> String {
    let is_candidate = gate.candidate.as_ref() == Some(version);
    let to = |pairs: &BTreeMap<String, Version>| pairs.values().any(|v| v == version);
    let share = if is_candidate {
        format!("{} %", gate.percent)
    } else if gate.active == *version {
        match (&gate.candidate, gate.percent) {
            (Some(_), percent) if percent > Share::NONE => "the rest".to_owned(),
            _ => "all".to_owned(),
        }
    } else {
        String::new()
    };
    let rest = [("pins", to(&gate.pins)), ("targets", to(&gate.targets))];
    let mut words: Vec<&str> = rest
        .into_iter()
        .filter_map(|(word, some)| some.then_some(word))
        .collect();
    if !share.is_empty() {
        words.insert(0, &share);
    }
    if words.is_empty() {
        return "-".to_owned();
    }
    words.join(" + ")
}

/// One failed attempt.
#[derive(Debug, Serialize)]
pub(crate) struct ErrorView {
    pub(crate) attempt: u32,
    pub(crate) version: String,
    pub(crate) error: String,
    pub(crate) at: Option<String>,
    pub(crate) at_us: u64,
}

impl From<&AttemptError> for ErrorView {
    fn from(error: &AttemptError) -> Self {
        let at_us = error.at_ms.saturating_mul(1_000);
        Self {
            attempt: error.attempt,
            version: error.version.clone(),
            error: error.error.clone(),
            at: rfc3339(at_us),
            at_us,
        }
    }
}

/// The error chain, one line per attempt.
pub(crate) fn error_lines(errors: &[ErrorView], now_us: u64) -> String {
    let line = |e: &ErrorView| {
        let number = match e.attempt {
            0 => "(given back)".to_owned(),
            n => format!("{n}."),
        };
        format!(
            "  {number} {} {}: {}\n",
            plain(&e.version),
            ago(now_us, e.at_us),
            plain(&e.error)
        )
    };
    errors.iter().map(line).collect()
}

/// `namespace` and `task_type` beside the queue's name, so that scripts need not take it apart.
pub(crate) fn names(queue: &Queue) -> (String, String, String) {
    (
        queue.to_string(),
        queue.namespace.to_string(),
        queue.task_type.to_string(),
    )
}
