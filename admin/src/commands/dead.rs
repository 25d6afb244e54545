//! `dead ls | show`.

use std::collections::BTreeMap;

use serde::Serialize;
use switchback_common::{
    Queue, StreamId, TaskId,
    envelope::{AttemptError, Envelope, field},
    id::stream_salt,
    store::{
        inspect::{self, FIND_WINDOW},
        keyspace::Key,
        reply::{self, Entry, field_number, field_text},
    },
};

use crate::{
    args::DeadVerb,
    context::Context,
    exit::Failure,
    output::{Output, sheet, table, tell},
    text::{ago, brief, lossless, plain, rfc3339, showable},
    view::{ErrorView, error_lines},
};

const PAGE: usize = 500;

pub(crate) async fn run(context: &Context, out: &mut Output, verb: DeadVerb) -> Result<(), Failure> {
    match verb {
        DeadVerb::Ls { task_type, limit } => ls(context, out, &context.queue(task_type), limit).await,
        DeadVerb::Show { task_type, id } => show(context, out, &context.queue(task_type), &id).await,
    }
}

/// One line of `dead ls`.
#[derive(Debug, Serialize)]
struct Row {
    queue: String,
    entry: String,
    id: Option<String>,
    at: Option<String>,
    at_us: Option<u64>,
    reason: String,
    version: String,
    attempts: u64,
    error: String,
    session: String,
}

impl Row {
    fn of(queue: &Queue, entry: &Entry) -> Self {
        let fields = entry.fields.as_deref().map(<[_]>::to_vec).unwrap_or_default();
        let at_us = dead_at_us(entry);
        Self {
            queue: queue.to_string(),
            entry: entry.id.to_string(),
            id: some(field_text(&fields, field::ID)),
            at: rfc3339(at_us),
            at_us: Some(at_us),
            reason: field_text(&fields, field::DEAD_REASON),
            version: field_text(&fields, field::DEAD_VERSION),
            attempts: field_number(&fields, field::ATTEMPT),
            error: field_text(&fields, field::DEAD_ERROR),
            session: field_text(&fields, field::DEAD_SESSION),
        }
    }
}

/// When it died; an entry that does not say died when it was written.
fn dead_at_us(entry: &Entry) -> u64 {
    let said = entry.fields.as_ref().map_or(0, |f| field_number(f, field::DEAD_AT));
    let ms = if said == 0 { entry.id.ms } else { said };
    ms.saturating_mul(1_000)
}

fn some(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

async fn ls(context: &Context, out: &mut Output, queue: &Queue, limit: usize) -> Result<(), Failure> {
    let mut entries = inspect::dead(&context.store, queue, None, limit.saturating_add(1)).await?;
    if entries.is_empty() {
        context.require(queue).await?;
        if out.is_table() {
            tell(format_args!("{queue} has no dead letters"));
        }
    }
    let more = entries.len() > limit;
    entries.truncate(limit);
    let now = context.now_us().await?;
    let rows: Vec<Row> = entries.iter().map(|entry| Row::of(queue, entry)).collect();
    out.list(&rows, |_| {
        if rows.is_empty() {
            return String::new();
        }
        let lines = rows.iter().map(|row| {
            vec![
                row.entry.clone(),
                brief(row.id.as_deref().unwrap_or("-"), 64),
                row.at_us.map_or_else(String::new, |at| ago(now, at)),
                brief(&row.reason, 24),
                brief(&row.version, 64),
                row.attempts.to_string(),
                brief(&row.error, 60),
            ]
        });
        let header = ["ENTRY", "TASK", "DIED", "REASON", "VERSION", "ATTEMPTS", "ERROR"];
        table(&header, &["ATTEMPTS"], lines)
    })?;
    if more {
        tell(format_args!("there are more: --limit {}", limit.saturating_mul(5)));
    }
    Ok(())
}

/// One dead letter.
#[derive(Debug, Serialize)]
pub(crate) struct DeadView {
    queue: String,
    entry: String,
    id: Option<String>,
    at: Option<String>,
    at_us: Option<u64>,
    reason: String,
    error: String,
    version: String,
    session: String,
    attempts: u64,
    deaths: u64,
    key: Option<String>,
    enqueued_at: Option<String>,
    enqueued_at_us: Option<u64>,
    errors: Vec<ErrorView>,
    headers: BTreeMap<String, String>,
    payload: Option<String>,
    payload_encoding: Option<&'static str>,
    malformed: Option<String>,
    fields: Option<BTreeMap<String, String>>,
}

impl DeadView {
    fn of(context: &Context, queue: &Queue, entry: &Entry) -> Self {
        let fields = entry.fields.clone().unwrap_or_default();
        let salt = stream_salt(&context.keyspace().render(&Key::Dead(queue.clone())));
        let decoded = Envelope::decode(salt, entry.id, fields.clone(), usize::MAX);
        let row = Row::of(queue, entry);
        let payload = reply::field(&fields, field::PAYLOAD).map(lossless);
        let errors: Vec<AttemptError> = reply::field(&fields, field::ERRORS)
            .and_then(|json| serde_json::from_slice(json).ok())
            .unwrap_or_default();
        let enqueued_us = some(field_text(&fields, field::ENQUEUED_AT))
            .and_then(|text| text.parse::<u64>().ok())
            .map(|ms| ms.saturating_mul(1_000));
        let all = || fields.iter().map(|(k, v)| (lossless(k).0, lossless(v).0)).collect();
        Self {
            errors: errors.iter().map(ErrorView::from).collect(),
            headers: decoded.as_ref().map(|e| e.headers.clone()).unwrap_or_default(),
            deaths: field_number(&fields, field::DEATHS),
            key: some(field_text(&fields, field::KEY)),
            enqueued_at: enqueued_us.and_then(rfc3339),
            enqueued_at_us: enqueued_us,
            payload_encoding: payload.as_ref().map(|(_, encoding)| *encoding),
            payload: payload.map(|(text, _)| text),
            fields: decoded.is_err().then(all),
            malformed: decoded.err().map(|problem| problem.to_string()),
            queue: row.queue,
            entry: row.entry,
            id: row.id,
            at: row.at,
            at_us: row.at_us,
            reason: row.reason,
            error: row.error,
            version: row.version,
            session: row.session,
            attempts: row.attempts,
        }
    }
}

async fn show(context: &Context, out: &mut Output, queue: &Queue, id: &TaskId) -> Result<(), Failure> {
    let Some(entry) = find(context, queue, id).await? else {
        context.require(queue).await?;
        return Err(Failure::NotFound(format!(
            "no dead letter {id} within the newest {FIND_WINDOW} of {queue}; the entry id of `switchback dead ls` finds any"
        )));
    };
    let now = context.now_us().await?;
    let view = DeadView::of(context, queue, &entry);
    let raw = entry
        .fields
        .as_ref()
        .and_then(|f| reply::field(f, field::PAYLOAD))
        .map(<[u8]>::to_vec);
    out.value(&view, |_| human(&view, raw.as_deref(), now))
}

fn human(view: &DeadView, payload: Option<&[u8]>, now: u64) -> String {
    let when = |us: Option<u64>, exact: &Option<String>| match (us, exact) {
        (Some(us), Some(exact)) => format!("{} ({exact})", ago(now, us)),
        _ => String::new(),
    };
    let mut text = sheet(&[
        ("QUEUE", view.queue.clone()),
        ("ENTRY", view.entry.clone()),
        ("TASK", plain(view.id.as_deref().unwrap_or_default())),
        ("DIED", when(view.at_us, &view.at)),
        ("REASON", plain(&view.reason)),
        ("ERROR", plain(&view.error)),
        ("MALFORMED", view.malformed.as_deref().map(plain).unwrap_or_default()),
        ("VERSION", plain(&view.version)),
        ("SESSION", plain(&view.session)),
        ("ATTEMPTS", view.attempts.to_string()),
        (
            "DEATHS",
            if view.deaths == 0 {
                String::new()
            } else {
                view.deaths.to_string()
            },
        ),
        ("KEY", view.key.as_deref().map(plain).unwrap_or_default()),
        ("ENQUEUED", when(view.enqueued_at_us, &view.enqueued_at)),
    ]);
    if !view.errors.is_empty() {
        text.push_str("\nERRORS\n");
        text.push_str(&error_lines(&view.errors, now));
    }
    text.push_str(&payload_lines(payload));
    if let Some(fields) = &view.fields {
        text.push_str("\nFIELDS\n");
        for (name, value) in fields.iter().filter(|(name, _)| *name != field::PAYLOAD) {
            text.push_str(&format!("  {}: {}\n", plain(name), brief(value, 1_000)));
        }
    }
    text
}

/// The payload as a block of its own.
pub(crate) fn payload_lines(payload: Option<&[u8]>) -> String {
    match payload.map(showable) {
        None => "\nPAYLOAD  none\n".to_owned(),
        Some((text, "utf8")) => format!("\nPAYLOAD\n{text}\n"),
        Some((text, _)) => format!("\nPAYLOAD, escaped\n{text}\n"),
    }
}

/// By entry id at once, else by task id through the newest letters.
async fn find(context: &Context, queue: &Queue, id: &TaskId) -> Result<Option<Entry>, Failure> {
    let text = id.to_string();
    if text.contains('-')
        && let Some(wanted) = StreamId::parse(text.as_bytes())
    {
        let after = StreamId {
            ms: wanted.ms,
            seq: wanted.seq.saturating_add(1),
        };
        let found = inspect::dead(&context.store, queue, Some(after), 1).await?;
        if let Some(entry) = found.into_iter().find(|entry| entry.id == wanted) {
            return Ok(Some(entry));
        }
    }
    let mut before = None;
    for _ in 0..FIND_WINDOW / PAGE {
        let page = inspect::dead(&context.store, queue, before, PAGE).await?;
        let Some(last) = page.last() else { break };
        before = Some(last.id);
        let is_it = |entry: &Entry| entry.fields.as_ref().is_some_and(|f| field_text(f, field::ID) == text);
        if let Some(entry) = page.into_iter().find(is_it) {
            return Ok(Some(entry));
        }
    }
    Ok(None)
}
