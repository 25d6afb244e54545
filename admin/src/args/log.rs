//! `queue log`.

use clap::Args;

use super::When;

pub(crate) const LOG_JSON: &str = "\
JSON: [{entry, kind, at, at_us, by|null, why|null, session|null, rev|null, text, evidence|null, detail: {field: text}}]
kind: gate (a revision, or an edit that was refused: `gate history` has all of it), rollout, alert, limits, policy, version,
  schedule_changed, requeued, refunded, discarded, cancel, poison, stale, server, and whatever other releases write; when asked
  for: joined, left, reaping, recovered, scheduled, settled.
detail: what else the entry holds, as it stands there; long texts are cut.
With -o jsonl, one object per line.";

/// Which entries.
#[derive(Debug, Args)]
pub(crate) struct LogFilter {
    /// Only of these kinds, e.g. `gate,rollout,alert`.
    #[arg(long, value_name = "KINDS", value_delimiter = ',')]
    pub(crate) kind: Vec<String>,
    /// From when on: a time (2026-12-24T18:00:00Z), or how long ago (2h).
    #[arg(long, value_name = "TIME")]
    pub(crate) since: Option<When>,
    /// Until when.
    #[arg(long, value_name = "TIME")]
    pub(crate) until: Option<When>,
    /// Most entries to show.
    #[arg(long, default_value_t = 50, value_name = "N")]
    pub(crate) limit: usize,
}
