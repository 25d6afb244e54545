//! `gate history`.

use serde::Serialize;
use switchback_common::{Queue, store::gate::HistoryEntry};
use switchback_gates::Gate;

use crate::{
    context::Context,
    exit::Failure,
    output::{Output, table, tell},
    text::{ago, brief, plain, rfc3339},
    view::{policy, words},
};

/// One line of the history.
#[derive(Debug, Serialize)]
struct HistoryView {
    entry: String,
    kind: String,
    rev: u64,
    at: Option<String>,
    at_us: u64,
    source: String,
    by: String,
    why: String,
    inflight: String,
    before: Option<Gate>,
    after: Option<Gate>,
    dropped: Option<std::collections::BTreeMap<String, String>>,
    refused: Option<std::collections::BTreeMap<String, String>>,
}

impl HistoryView {
    fn of(entry: HistoryEntry) -> Self {
        Self {
            entry: entry.id.to_string(),
            at: rfc3339(entry.at_us),
            at_us: entry.at_us,
            before: Gate::from_history(&entry.before),
            after: Gate::from_history(&entry.after),
            dropped: serde_json::from_str(&entry.dropped).ok(),
            refused: serde_json::from_str(&entry.refused).ok(),
            inflight: policy(&entry).to_owned(),
            kind: entry.kind,
            rev: entry.rev,
            source: entry.source,
            by: entry.by,
            why: entry.why,
        }
    }

    fn change(&self) -> String {
        let list = |fields: &std::collections::BTreeMap<String, String>| {
            let words: Vec<String> = fields.iter().map(|(k, v)| format!("{k}={}", brief(v, 80))).collect();
            words.join(" ")
        };
        let mut out = match (&self.before, &self.after) {
            (Some(before), Some(after)) => format!("{} -> {}", words(before), words(after)),
            (None, Some(after)) => words(after),
            _ if self.kind == "note" => "(no change)".to_owned(),
            _ => self.kind.to_uppercase(),
        };
        if self.inflight != "finish" {
            out.push_str(&format!(", {} what ran", brief(&self.inflight, 16)));
        }
        if let Some(refused) = &self.refused {
            out.push_str(&format!(" {}", list(refused)));
        }
        if let Some(dropped) = &self.dropped {
            out.push_str(&format!(" (dropped {})", list(dropped)));
        }
        out
    }
}

pub(super) async fn history(context: &Context, out: &mut Output, queue: &Queue, limit: usize) -> Result<(), Failure> {
    let entries = context.gates.history(queue, None, limit.max(1)).await?;
    if entries.is_empty() {
        context.require(queue).await?;
        if out.is_table() {
            tell(format_args!("{queue} has no history: no worker has joined it yet"));
        }
    }
    let now = context.now_us().await?;
    let entries: Vec<HistoryView> = entries.into_iter().map(HistoryView::of).collect();
    out.list(&entries, |_| {
        if entries.is_empty() {
            return String::new();
        }
        let rows = entries.iter().map(|e| {
            vec![
                e.rev.to_string(),
                ago(now, e.at_us),
                brief(&e.by, 32),
                plain(&e.source),
                e.change(),
                plain(&e.why),
            ]
        });
        table(&["REV", "WHEN", "BY", "SOURCE", "CHANGE", "WHY"], &["REV"], rows)
    })
}
