//! `config history`.

use serde::Serialize;
use serde_json::Value;
use switchback_common::store::config::{self, Revision};

use crate::{
    config::diff::Change,
    context::Context,
    exit::Failure,
    output::{Output, table, tell},
    text::{ago, brief, plain, rfc3339},
};

/// Fields named in the table.
const FIELDS_SHOWN: usize = 3;

#[derive(Debug, Serialize)]
struct RevisionView {
    rev: u64,
    at: Option<String>,
    at_us: u64,
    source: String,
    reverts: Option<u64>,
    by: String,
    why: String,
    state: &'static str,
    stopped: Option<String>,
    changed: u64,
    changes: Vec<Change>,
    forced: Value,
    kept: bool,
}

impl RevisionView {
    fn of(begun: &Revision, all: &[Revision]) -> Self {
        let end = all.iter().find(|entry| entry.rev == begun.rev && entry.kind != "begun");
        Self {
            rev: begun.rev,
            at: rfc3339(begun.at_us),
            at_us: begun.at_us,
            source: begun.source.clone(),
            reverts: Some(begun.reverts).filter(|rev| *rev > 0),
            by: begun.by.clone(),
            why: begun.why.clone(),
            state: match end.map(|end| end.kind.as_str()) {
                Some("done") => "done",
                Some(_) => "stopped",
                None => "unfinished",
            },
            stopped: end.map(|end| end.text.clone()).filter(|text| !text.is_empty()),
            changed: begun.changed,
            changes: serde_json::from_str(&begun.changes).unwrap_or_default(),
            forced: serde_json::from_str(&begun.forced).unwrap_or_else(|_| Value::Array(Vec::new())),
            kept: !begun.document.is_empty(),
        }
    }

    fn fields(&self) -> String {
        let named = self.changes.iter().take(FIELDS_SHOWN);
        let named: Vec<String> = named
            .map(|c| plain(&format!("{} {}.{}", c.queue, c.section, c.field)))
            .collect();
        let more = self
            .changed
            .saturating_sub(u64::try_from(named.len()).unwrap_or(u64::MAX));
        let more = if more > 0 {
            format!(" and {more} more")
        } else {
            String::new()
        };
        format!("{}{more}", named.join(", "))
    }
}

pub(super) async fn run(context: &Context, out: &mut Output, limit: usize) -> Result<(), Failure> {
    let begun = |entries: &[Revision]| entries.iter().filter(|entry| entry.kind == "begun").count();
    let entries = config::history(&context.store, &context.namespace, |found| begun(found) >= limit).await?;
    let views: Vec<RevisionView> = entries
        .iter()
        .filter(|entry| entry.kind == "begun")
        .take(limit)
        .map(|entry| RevisionView::of(entry, &entries))
        .collect();
    if views.is_empty() && out.is_table() {
        tell(format_args!("nothing was applied to {} yet", context.namespace));
    }
    let now = context.now_us().await?;
    out.list(&views, |_| {
        if views.is_empty() {
            return String::new();
        }
        let rows = views.iter().map(|view| {
            let source = match view.reverts {
                Some(rev) => format!("{} to {rev}", plain(&view.source)),
                None => plain(&view.source),
            };
            vec![
                view.rev.to_string(),
                ago(now, view.at_us),
                brief(&view.by, 20),
                source,
                view.state.to_owned(),
                view.fields(),
                brief(&view.why, 60),
            ]
        });
        table(
            &["REV", "WHEN", "BY", "SOURCE", "STATE", "CHANGED", "WHY"],
            &["REV"],
            rows,
        )
    })
}
