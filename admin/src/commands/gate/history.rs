//! `gate history`, and what others ask of the history.

use std::collections::BTreeMap;

use serde::Serialize;
use switchback_common::{Queue, Version, store::gate::HistoryEntry};
use switchback_gates::Gate;

use crate::{
    args::HistoryFilter,
    context::Context,
    exit::Failure,
    output::{Output, table, tell},
    text::{ago, brief, plain, rfc3339},
    view::words,
};

/// Pins or targets that one line names.
const MOST_NAMED: usize = 6;

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
    op: Option<String>,
    forced: Option<String>,
    inflight: String,
    changes: Vec<String>,
    before: Option<Gate>,
    after: Option<Gate>,
    dropped: Option<BTreeMap<String, String>>,
    refused: Option<BTreeMap<String, String>>,
}

impl HistoryView {
    fn of(entry: HistoryEntry) -> Self {
        let given = |text: String| Some(text).filter(|text| !text.is_empty());
        let (before, after) = (Gate::from_history(&entry.before), Gate::from_history(&entry.after));
        Self {
            entry: entry.id.to_string(),
            at: rfc3339(entry.at_us),
            at_us: entry.at_us,
            changes: after
                .as_ref()
                .map_or_else(Vec::new, |after| changes(before.as_ref(), after)),
            before,
            after,
            dropped: serde_json::from_str(&entry.dropped).ok(),
            refused: serde_json::from_str(&entry.refused).ok(),
            kind: entry.kind,
            rev: entry.rev,
            source: entry.source,
            by: entry.by,
            why: entry.why,
            op: given(entry.op),
            forced: given(entry.forced),
            inflight: given(entry.inflight).unwrap_or_else(|| "finish".to_owned()),
        }
    }

    fn line(&self) -> String {
        let list = |fields: &BTreeMap<String, String>| {
            let words: Vec<String> = fields
                .iter()
                .map(|(k, v)| format!("{}={}", plain(k), brief(v, 80)))
                .collect();
            words.join(" ")
        };
        let mut out = match (self.kind.as_str(), &self.after) {
            ("change", Some(_)) if self.changes.is_empty() => "(no change)".to_owned(),
            (_, Some(_)) => self.changes.join(", "),
            ("note", None) => "(no change)".to_owned(),
            (kind, None) => plain(kind).to_uppercase(),
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
        if let Some(forced) = &self.forced {
            out.push_str(&format!(" (FORCED past: {})", brief(forced, 50)));
        }
        out
    }
}

/// What one entry of the history says, in a line, as `queue log` has it.
pub(crate) fn line(entry: HistoryEntry) -> String {
    HistoryView::of(entry).line()
}

/// What is different, field by field: `percent 10 -> 25`. The first gate is told as a whole.
pub(crate) fn changes(before: Option<&Gate>, after: &Gate) -> Vec<String> {
    let Some(before) = before else {
        return vec![words(after)];
    };
    let mut out = Vec::new();
    if before.active != after.active {
        out.push(format!("active {} -> {}", before.active, after.active));
    }
    if before.candidate != after.candidate {
        let word = |gate: &Gate| match &gate.candidate {
            Some(version) => format!("{version} at {} %", gate.percent),
            None => "none".to_owned(),
        };
        out.push(format!("candidate {} -> {}", word(before), word(after)));
    } else if before.percent != after.percent {
        out.push(format!("percent {} -> {}", before.percent, after.percent));
    }
    out.extend(pairs("pins", &before.pins, &after.pins));
    out.extend(pairs("targets", &before.targets, &after.targets));
    match (before.paused, after.paused) {
        (false, true) => out.push("paused".to_owned()),
        (true, false) => out.push("resumed".to_owned()),
        _ => {}
    }
    out
}

/// `pins +cust-1=v2 -cust-7=v1`
fn pairs(what: &str, before: &BTreeMap<String, Version>, after: &BTreeMap<String, Version>) -> Option<String> {
    let missing = |sign: char, from: &BTreeMap<String, Version>, to: &BTreeMap<String, Version>| {
        let gone = from.iter().filter(|(name, version)| to.get(*name) != Some(version));
        gone.map(|(name, version)| format!("{sign}{}={version}", brief(name, 60)))
            .collect::<Vec<_>>()
    };
    let mut words = missing('-', before, after);
    words.extend(missing('+', after, before));
    let more = words.len().saturating_sub(MOST_NAMED);
    words.truncate(MOST_NAMED);
    if more > 0 {
        words.push(format!("and {more} more"));
    }
    (!words.is_empty()).then(|| format!("{what} {}", words.join(" ")))
}

pub(super) async fn history(
    context: &Context,
    out: &mut Output,
    queue: &Queue,
    filter: &HistoryFilter,
) -> Result<(), Failure> {
    let now = context.now_us().await?;
    let since = filter.since.map_or(0, |when| when.us(now));
    let until = filter.until.map_or(u64::MAX, |when| when.us(now));
    let wanted = |entry: &HistoryEntry| {
        (since..=until).contains(&entry.at_us)
            && filter.rev.is_none_or(|rev| rev == entry.rev)
            && filter.source.as_ref().is_none_or(|source| *source == entry.source)
    };
    let mut found: Vec<HistoryEntry> = Vec::new();
    let mut pages = context.gates.pages(queue).until(until);
    // Entries stand in the order of their ids, whatever the clock did.
    while let Some(page) = pages.next().await? {
        let over = page.last().is_some_and(|oldest| oldest.id.ms < since / 1_000);
        found.extend(page.into_iter().filter(wanted));
        if over || found.len() >= filter.limit.max(1) {
            break;
        }
    }
    found.truncate(filter.limit.max(1));
    if found.is_empty() {
        context.require(queue).await?;
        if out.is_table() {
            tell(match context.gates.history(queue, None, 1).await?.is_empty() {
                true => format!("{queue} has no history: no worker has joined it yet"),
                false => format!("the history of {queue} has no such entry"),
            });
        }
    }
    let entries: Vec<HistoryView> = found.into_iter().map(HistoryView::of).collect();
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
                e.line(),
                plain(&e.why),
            ]
        });
        table(&["REV", "WHEN", "BY", "SOURCE", "CHANGE", "WHY"], &["REV"], rows)
    })
}

/// The revision `rev`, if the history keeps it; else says what it keeps.
pub(super) async fn revision(context: &Context, queue: &Queue, rev: u64) -> Result<HistoryEntry, Failure> {
    let mut pages = context.gates.pages(queue);
    let (mut newest, mut oldest) = (None, None);
    while let Some(page) = pages.next().await? {
        for entry in page.into_iter().filter(|entry| entry.kind == "change") {
            if entry.rev == rev {
                return Ok(entry);
            }
            newest.get_or_insert(entry.rev);
            oldest = Some(entry.rev);
        }
    }
    Err(match (newest, oldest) {
        (Some(newest), Some(oldest)) if rev < oldest => Failure::NotFound(format!(
            "revision {rev} of {queue} is not kept any more: the oldest is {oldest}, the newest {newest}"
        )),
        (Some(newest), _) => Failure::NotFound(format!(
            "{queue} has no revision {rev}: the newest is {newest} (switchback gate history {})",
            queue.task_type
        )),
        _ => {
            context.require(queue).await?;
            Failure::NotFound(format!("{queue} has no history: no worker has joined it yet"))
        }
    })
}

/// The revision that was in force at a time, and the one that took its place.
pub(super) async fn in_force(
    context: &Context,
    queue: &Queue,
    at_us: u64,
) -> Result<(HistoryEntry, Option<HistoryEntry>), Failure> {
    let mut pages = context.gates.pages(queue);
    let mut after: Option<HistoryEntry> = None;
    while let Some(page) = pages.next().await? {
        for entry in page.into_iter().filter(|entry| entry.kind == "change") {
            if entry.at_us <= at_us {
                return Ok((entry, after));
            }
            after = Some(entry);
        }
    }
    let then = rfc3339(at_us).unwrap_or_default();
    let Some(first) = after else {
        context.require(queue).await?;
        return Err(Failure::NotFound(format!(
            "{queue} has no history: no worker has joined it yet"
        )));
    };
    let from = rfc3339(first.at_us).unwrap_or_default();
    Err(Failure::NotFound(if first.before.is_empty() {
        format!(
            "{queue} had no gate at {then}: its first, revision {}, is of {from}",
            first.rev
        )
    } else {
        format!(
            "the history of {queue} does not reach back to {then}: the oldest it keeps is revision {}, of {from}",
            first.rev
        )
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gate(json: &str) -> Gate {
        Gate::from_history(json).unwrap()
    }

    #[test]
    fn changes_are_told_field_by_field() {
        let told = |before: &str, after: &str| changes(Some(&gate(before)), &gate(after)).join(", ");
        let v1 = r#"{"active":"v1","paused":"0"}"#;
        let ramp = |percent: u32| format!(r#"{{"active":"v1","candidate":"v2","percent":"{percent}","paused":"0"}}"#);
        assert_eq!(changes(None, &gate(v1)), ["v1 only"]);
        assert_eq!(told(v1, v1), "");
        assert_eq!(told(v1, r#"{"active":"v2","paused":"1"}"#), "active v1 -> v2, paused");
        assert_eq!(told(v1, &ramp(10)), "candidate none -> v2 at 10 %");
        assert_eq!(told(&ramp(10), &ramp(25)), "percent 10 -> 25");
        assert_eq!(told(&ramp(25), v1), "candidate v2 at 25 % -> none");
        let pins = |pins: &str, targets: &str| {
            format!(r#"{{"active":"v1","paused":"0","pins":"{pins}","targets":"{targets}"}}"#)
        };
        assert_eq!(
            told(&pins("a=v1 b=v2", ""), &pins("b=v1 c=v2", "plan:beta=v2")),
            "pins -a=v1 -b=v2 +b=v1 +c=v2, targets +plan:beta=v2"
        );
        let many: Vec<String> = (0..50).map(|n| format!("k{n}=v1")).collect();
        assert!(told(v1, &pins(&many.join(" "), "")).ends_with("and 44 more"));
    }
}
