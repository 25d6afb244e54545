//! `queue log`.

use std::collections::BTreeMap;

use serde::Serialize;
use switchback_common::{
    Queue,
    store::{
        gate::HistoryEntry,
        notes::{self, Kinds, Note},
    },
};

use crate::{
    args::LogFilter,
    commands::gate::history,
    context::Context,
    exit::Failure,
    output::{Output, table, tell, warn},
    text::{ago, brief, count, plain, rfc3339},
};

/// What workers write all day, and people seldom look for.
const EVERYDAY: [&str; 6] = ["settled", "joined", "left", "reaping", "recovered", "scheduled"];
/// Revisions of the gate are in its history, which is kept longer.
const GATE: &str = "gate";
/// Entries of the log that one command looks at.
const MOST_LOOKED_AT: u64 = 500_000;

/// One line of the log.
#[derive(Debug, Serialize)]
struct NoteView {
    entry: String,
    kind: String,
    at: Option<String>,
    at_us: u64,
    by: Option<String>,
    why: Option<String>,
    session: Option<String>,
    rev: Option<u64>,
    text: String,
    /// What a guard went by, and what was touched.
    evidence: Option<serde_json::Value>,
    detail: BTreeMap<String, String>,
}

impl NoteView {
    fn of(note: Note) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let mut detail: BTreeMap<String, String> = note.fields.iter().map(|(k, v)| (text(k), text(v))).collect();
        detail.remove("kind");
        let mut take = |name: &str| detail.remove(name).filter(|text| !text.is_empty());
        let at_us = take("at").and_then(|at| at.parse().ok());
        let at_us = at_us.unwrap_or_else(|| note.id.ms.saturating_mul(1_000));
        let (by, why, session) = (take("by"), take("why"), take("session"));
        let (rev, said) = (take("rev").and_then(|rev| rev.parse().ok()), take("text"));
        let evidence = take("evidence").and_then(|json| serde_json::from_str(&json).ok());
        Self {
            entry: note.id.to_string(),
            at: rfc3339(at_us),
            at_us,
            text: said.unwrap_or_else(|| words(&note.kind, &detail)),
            kind: note.kind,
            by,
            why,
            session,
            rev,
            evidence,
            detail,
        }
    }

    fn of_gate(entry: HistoryEntry) -> Self {
        let given = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
        let detail = [
            ("source", &entry.source),
            ("kind", &entry.kind),
            ("op", &entry.op),
            ("forced", &entry.forced),
            ("inflight", &entry.inflight),
        ];
        let detail = detail
            .into_iter()
            .filter(|(_, text)| !text.is_empty())
            .map(|(name, text)| (name.to_owned(), text.clone()))
            .collect();
        let (rev, at_us) = (entry.rev, entry.at_us);
        let (id, by, why) = (entry.id.to_string(), given(&entry.by), given(&entry.why));
        let text = format!("revision {rev} ({}): ", plain(&entry.source)) + &history::line(entry);
        Self {
            entry: id,
            kind: GATE.to_owned(),
            at: rfc3339(at_us),
            at_us,
            by,
            why,
            session: None,
            rev: Some(rev),
            evidence: None,
            detail,
            text,
        }
    }
}

/// What happened, for entries that do not say it in words.
fn words(kind: &str, detail: &BTreeMap<String, String>) -> String {
    let get = |name: &str| detail.get(name).map_or("", String::as_str);
    let n = get("tasks").split_ascii_whitespace().count();
    // The list may be cut; the number is not.
    let total = |n: usize| get("count").parse().unwrap_or(n);
    match kind {
        "limits" | "policy" => {
            let read = |name| serde_json::from_str::<BTreeMap<String, String>>(get(name)).unwrap_or_default();
            let (before, after) = (read("before"), read("after"));
            let or_none = |text: Option<&String>| match text.map_or("", String::as_str) {
                "" => "none".to_owned(),
                text => text.to_owned(),
            };
            let changes = after
                .iter()
                .map(|(name, now)| format!("{name} {} -> {}", or_none(before.get(name)), or_none(Some(now))));
            changes.collect::<Vec<_>>().join(", ")
        }
        "requeued" | "discarded" => format!("{} {kind}", count(total(n), "dead letter")),
        "refunded" => format!(
            "{} had attempts on {} given back",
            count(total(n), "task"),
            get("version")
        ),
        "server" if get("before").is_empty() => "times are of one run of the server from here on".to_owned(),
        "server" => "times are of another run of the server from here on".to_owned(),
        "recovered" | "poison" => format!("{} {kind}", count(n, "task")),
        _ => {
            let all = detail.iter().map(|(name, text)| format!("{name}={}", brief(text, 60)));
            all.collect::<Vec<_>>().join(" ")
        }
    }
}

pub(super) async fn log(context: &Context, out: &mut Output, queue: &Queue, filter: &LogFilter) -> Result<(), Failure> {
    let now = context.now_us().await?;
    let since = filter.since.map_or(0, |when| when.us(now));
    let until = filter.until.map(|when| when.us(now));
    let limit = filter.limit.max(1);
    let asked: Vec<&str> = filter.kind.iter().map(String::as_str).collect();
    let within = |at_us: u64| at_us >= since && until.is_none_or(|until| at_us <= until);
    let mut found: Vec<NoteView> = Vec::new();
    if asked.is_empty() || asked.contains(&GATE) {
        found.extend(of_gate(context, queue, since, until, limit).await?);
    }
    if asked.is_empty() || asked.iter().any(|kind| *kind != GATE) {
        let kinds = match asked.is_empty() {
            true => Kinds::Not(&EVERYDAY),
            false => Kinds::Only(&asked),
        };
        let mut next = Some(notes::start(until.map(|us| us / 1_000 + 1)));
        let (mut n, mut looked) = (0, 0);
        while let Some(from) = next.take().filter(|_| n < limit) {
            if looked >= MOST_LOOKED_AT {
                warn(format_args!(
                    "looked at {looked} entries of the log of {queue} and went no further back; name --until to go on there"
                ));
                break;
            }
            let page = notes::page(&context.store, queue, &from, since / 1_000, notes::BRIEF, kinds).await?;
            looked += page.looked;
            let notes = page
                .notes
                .into_iter()
                .map(NoteView::of)
                .filter(|note| within(note.at_us));
            let before = found.len();
            found.extend(notes);
            n += found.len() - before;
            next = page.next;
        }
    }
    // Two streams with ids of one clock.
    found.sort_by_key(|note| std::cmp::Reverse(note.at_us));
    found.truncate(limit);
    if found.is_empty() {
        context.require(queue).await?;
        if out.is_table() {
            tell(format_args!("the log of {queue} has no such entry"));
        }
    }
    out.list(&found, |_| {
        if found.is_empty() {
            return String::new();
        }
        let rows = found.iter().map(|note| {
            vec![
                ago(now, note.at_us),
                plain(&note.kind),
                note.by.as_deref().map_or_else(String::new, |by| brief(by, 32)),
                // What a guard did, and why, is what people look for.
                brief(&note.text, if note.kind == "rollout" { 2_000 } else { 160 }),
                note.why.as_deref().map_or_else(String::new, |why| brief(why, 120)),
            ]
        });
        table(&["WHEN", "KIND", "BY", "WHAT", "WHY"], &[], rows)
    })
}

/// The newest revisions and refused edits of the gate.
async fn of_gate(
    context: &Context,
    queue: &Queue,
    since: u64,
    until: Option<u64>,
    limit: usize,
) -> Result<Vec<NoteView>, Failure> {
    let mut pages = context.gates.pages(queue).until(until.unwrap_or(u64::MAX));
    let mut found = Vec::new();
    while let Some(page) = pages.next().await? {
        let over = page.last().is_some_and(|oldest| oldest.id.ms < since / 1_000);
        let within = |entry: &HistoryEntry| entry.at_us >= since && until.is_none_or(|until| entry.at_us <= until);
        found.extend(page.into_iter().filter(within).map(NoteView::of_gate));
        if over || found.len() >= limit {
            break;
        }
    }
    Ok(found)
}
