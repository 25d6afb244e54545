//! `task enqueue | show | wait | cancel`.

mod cancel;
mod enqueue;
mod wait;

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::value::RawValue;
use switchback_common::{
    Priority, Queue, StreamId, TaskId, Version,
    envelope::{AttemptError, Envelope, field},
    id::stream_salt,
    store::{
        cancel::mark_of,
        inspect::{self, FIND_WINDOW, Found},
        keyspace::Key,
        log,
        reply::{self, field_number, field_text},
        results::{self, Kept, Progress, State},
        session::SessionStore,
    },
};
use switchback_gates::{Decision, decide};

pub(crate) use self::enqueue::read_payload;
use crate::{
    args::TaskVerb,
    commands::dead::payload_lines,
    context::Context,
    exit::Failure,
    output::{Output, sheet, table},
    text::{ago, lossless, plain, rfc3339},
    view::{ErrorView, error_lines, whereabouts},
};

/// Entries of the log that a look-up reads at most, and per request.
const LOG_WINDOW: usize = 10_000;
const PAGE: usize = 500;
/// Revisions looked at for the one in force: notes and refused edits lie between.
const HISTORY_WINDOW: usize = 50;

pub(crate) async fn run(context: &Context, out: &mut Output, verb: TaskVerb) -> Result<(), Failure> {
    match verb {
        TaskVerb::Enqueue {
            task_type,
            source,
            options,
        } => enqueue::run(context, out, task_type, source, options).await,
        TaskVerb::Wait { task_type, id, timeout } => {
            wait::run(context, out, &context.queue(task_type), &id, timeout).await
        }
        TaskVerb::Cancel {
            task_type,
            ids,
            options,
        } => cancel::run(context, out, &context.queue(task_type), &ids, options).await,
        TaskVerb::Show { task_type, id } => show(context, out, &context.queue(task_type), &id).await,
    }
}

/// One task.
#[derive(Debug, Serialize)]
struct TaskView {
    queue: String,
    id: String,
    state: &'static str,
    place: Option<String>,
    entry: Option<String>,
    attempt: u64,
    deaths: u64,
    recovered: u64,
    key: Option<String>,
    priority: Option<&'static str>,
    unique: Option<String>,
    snoozes: u32,
    expires_at: Option<String>,
    expires_at_us: Option<u64>,
    enqueued_at: Option<String>,
    enqueued_at_us: Option<u64>,
    due_at: Option<String>,
    due_at_us: Option<u64>,
    held_by: Option<Holder>,
    headers: BTreeMap<String, String>,
    errors: Vec<ErrorView>,
    attempts: Vec<AttemptView>,
    log_complete: bool,
    dead: Option<DeadPart>,
    cancel_asked_at: Option<String>,
    cancel_asked_at_us: Option<u64>,
    kept: Option<KeptPart>,
    payload: Option<String>,
    payload_encoding: Option<&'static str>,
    malformed: Option<String>,
}

#[derive(Debug, Serialize)]
struct Holder {
    session: String,
    host: Option<String>,
    pid: Option<u32>,
    live: bool,
    since: Option<String>,
    since_us: u64,
    /// The version that the gate gives the task, unless the gate changed since it was claimed.
    version: Option<Version>,
    #[serde(skip)]
    words: String,
}

#[derive(Debug, Serialize)]
struct AttemptView {
    attempt: u32,
    version: Version,
    rev: u64,
    stream: String,
    entry: String,
    outcome: &'static str,
    ran_ms: u64,
    session: String,
    gate_read_at: Option<String>,
    gate_read_at_us: u64,
    settled_at: Option<String>,
    settled_at_us: u64,
}

#[derive(Debug, Serialize)]
struct DeadPart {
    entry: String,
    reason: String,
    error: String,
    version: String,
    session: String,
    at: Option<String>,
    at_us: u64,
}

/// What is kept of the task.
#[derive(Debug, Serialize)]
struct KeptPart {
    state: State,
    at: Option<String>,
    at_us: u64,
    attempt: u32,
    version: Option<Version>,
    result: Option<Box<RawValue>>,
    error: Option<String>,
    progress: Option<Progress>,
}

impl From<Kept> for KeptPart {
    fn from(kept: Kept) -> Self {
        let at_us = kept.at_ms.saturating_mul(1_000);
        let report = kept.report;
        Self {
            state: kept.state,
            at: rfc3339(at_us),
            at_us,
            attempt: report.attempt,
            version: report.version,
            result: report.result,
            error: report.error,
            progress: report.progress,
        }
    }
}

/// What the log says of a task.
#[derive(Debug, Default)]
struct Logged {
    /// Oldest first.
    attempts: Vec<AttemptView>,
    cancelled: bool,
    /// Whether nothing of the log was left unread.
    complete: bool,
}

async fn show(context: &Context, out: &mut Output, queue: &Queue, id: &TaskId) -> Result<(), Failure> {
    let found = inspect::find(&context.store, queue, id).await?;
    // A derived id says when it was enqueued: older log entries cannot speak of it.
    let main = context.keyspace().render(&Key::Stream(queue.clone()));
    let since = id.entry(stream_salt(&main)).map(|entry| entry.ms);
    let logged = logged_of(context, queue, id, since).await?;
    let kept = results::read(&context.store, queue, id).await?;
    if found.is_none() && logged.attempts.is_empty() && !logged.cancelled && kept.is_none() {
        context.require(queue).await?;
        return Err(Failure::NotFound(format!(
            "task {id} of {queue} is not within the window: neither among the newest {FIND_WINDOW} entries of each stream \
             nor of the log; it never was, or was trimmed after it was done"
        )));
    }
    let now = context.now_us().await?;
    let payload = found
        .as_ref()
        .and_then(|f| reply::field(&f.fields, field::PAYLOAD))
        .map(<[u8]>::to_vec);
    let mut view = view_of(context, queue, id, found, logged, now).await?;
    view.kept = kept.map(KeptPart::from);
    let mark = mark_of(&context.store, queue, id).await?;
    view.cancel_asked_at_us = mark.map(|mark| mark.at_us);
    view.cancel_asked_at = view.cancel_asked_at_us.and_then(rfc3339);
    out.value(&view, |_| human(&view, payload.as_deref(), now))
}

/// The attempts on record.
async fn logged_of(context: &Context, queue: &Queue, id: &TaskId, since_ms: Option<u64>) -> Result<Logged, Failure> {
    let mut out = Logged::default();
    let removed = format!("{id}: removed");
    let mut before: Option<StreamId> = None;
    for _ in 0..LOG_WINDOW / PAGE {
        let page = log::read_back(&context.store, queue, before, PAGE).await?;
        let ended = page.len() < PAGE;
        for entry in page {
            before = Some(entry.id);
            if since_ms.is_some_and(|since| entry.id.ms < since) {
                out.attempts.reverse();
                out.complete = true;
                return Ok(out);
            }
            out.cancelled |= entry.cancelled.iter().any(|(task, _)| task == id);
            out.cancelled |= entry.kind == "cancel" && entry.text == removed;
            for group in &entry.attempts {
                for row in group.tasks.iter().filter(|row| row.0 == *id) {
                    let settled_us = entry.id.ms.saturating_mul(1_000);
                    out.attempts.push(AttemptView {
                        attempt: row.2,
                        version: group.version.clone(),
                        rev: group.rev,
                        stream: group.stream.clone(),
                        entry: row.1.clone(),
                        outcome: row.3.as_str(),
                        ran_ms: row.4,
                        session: entry.session.to_string(),
                        gate_read_at: rfc3339(group.at),
                        gate_read_at_us: group.at,
                        settled_at: rfc3339(settled_us),
                        settled_at_us: settled_us,
                    });
                }
            }
        }
        if ended {
            out.complete = true;
            break;
        }
    }
    out.attempts.reverse();
    Ok(out)
}

async fn view_of(
    context: &Context,
    queue: &Queue,
    id: &TaskId,
    found: Option<Found>,
    logged: Logged,
    now: u64,
) -> Result<TaskView, Failure> {
    let attempts = logged.attempts;
    let mut view = TaskView {
        queue: queue.to_string(),
        id: id.to_string(),
        state: if logged.cancelled { "cancelled" } else { "gone" },
        place: None,
        entry: None,
        attempt: attempts.iter().map(|a| u64::from(a.attempt)).max().unwrap_or(0),
        deaths: 0,
        recovered: 0,
        key: None,
        priority: None,
        unique: None,
        snoozes: 0,
        expires_at: None,
        expires_at_us: None,
        enqueued_at: None,
        enqueued_at_us: None,
        due_at: None,
        due_at_us: None,
        held_by: None,
        headers: BTreeMap::new(),
        errors: Vec::new(),
        attempts,
        log_complete: logged.complete,
        dead: None,
        cancel_asked_at: None,
        cancel_asked_at_us: None,
        kept: None,
        payload: None,
        payload_encoding: None,
        malformed: None,
    };
    let Some(found) = found else { return Ok(view) };
    let fields = found.fields;
    let micros = |ms: u64| ms.saturating_mul(1_000);
    let mut enqueued_ms = field_number(&fields, field::ENQUEUED_AT);
    if enqueued_ms == 0 && found.place == "main" {
        enqueued_ms = found.entry.ms;
    }
    if enqueued_ms > 0 {
        view.enqueued_at_us = Some(micros(enqueued_ms));
        view.enqueued_at = rfc3339(micros(enqueued_ms));
    }
    view.state = match (found.place.as_str(), &found.held_by, found.waiting) {
        ("delayed", _, _) => "delayed",
        ("dead", _, _) => "dead",
        (_, Some(_), _) => "in_flight",
        (_, None, true) => "waiting",
        (_, None, false) if logged.cancelled => "cancelled",
        // Delivered, held by nobody, still in the stream: settled as done, and retained.
        (_, None, false) => "done",
    };
    view.attempt = view.attempt.max(field_number(&fields, field::ATTEMPT));
    view.deaths = field_number(&fields, field::DEATHS);
    view.recovered = field_number(&fields, field::RECOVERED);
    let given = |name| Some(field_text(&fields, name)).filter(|text| !text.is_empty());
    view.key = given(field::KEY);
    view.unique = given(field::UNIQUE);
    view.priority = given(field::PRIORITY).and_then(|text| text.parse::<Priority>().ok()?.field());
    view.headers = serde_json::from_str(&field_text(&fields, field::HEADERS)).unwrap_or_default();
    let errors: Vec<AttemptError> = reply::field(&fields, field::ERRORS)
        .and_then(|json| serde_json::from_slice(json).ok())
        .unwrap_or_default();
    view.errors = errors.iter().map(ErrorView::from).collect();
    if let Some((text, encoding)) = reply::field(&fields, field::PAYLOAD).map(lossless) {
        view.payload = Some(text);
        view.payload_encoding = Some(encoding);
    }
    if found.place == "delayed" {
        view.due_at_us = Some(micros(found.entry.ms));
        view.due_at = rfc3339(micros(found.entry.ms));
    } else {
        view.entry = Some(found.entry.to_string());
    }
    if found.place == "dead" {
        let at_us = micros(field_number(&fields, field::DEAD_AT));
        view.dead = Some(DeadPart {
            entry: found.entry.to_string(),
            reason: field_text(&fields, field::DEAD_REASON),
            error: field_text(&fields, field::DEAD_ERROR),
            version: field_text(&fields, field::DEAD_VERSION),
            session: field_text(&fields, field::DEAD_SESSION),
            at: rfc3339(at_us),
            at_us,
        });
    }
    if let Some(session) = found.held_by {
        let sessions = SessionStore::new(&context.store, queue).list().await?;
        let info = sessions.iter().find(|s| s.id.as_str() == session);
        let record = info.and_then(|s| s.record.as_ref());
        let live = info.is_some_and(|session| session.is_live());
        let held_us = u64::try_from(found.held_for.as_micros()).unwrap_or(u64::MAX);
        let since_us = now.saturating_sub(held_us);
        let key = view.key.clone().unwrap_or_else(|| view.id.clone());
        let version = version_since(context, queue, &view.headers, &key, since_us).await?;
        view.held_by = Some(Holder {
            words: format!(
                "{} (session {}{}) since {}{}",
                info.map_or_else(|| "unknown host".to_owned(), whereabouts),
                plain(&session),
                if live { "" } else { ", lost: another worker takes over" },
                ago(now, since_us),
                version
                    .as_ref()
                    .map_or_else(String::new, |version| format!(", {version}"))
            ),
            since: rfc3339(since_us),
            since_us,
            version,
            host: record.map(|r| r.host.clone()),
            pid: record.map(|r| r.pid),
            session,
            live,
        });
    }
    match Envelope::decode(0, found.entry, fields, usize::MAX) {
        Ok(envelope) => {
            view.snoozes = envelope.snoozes;
            view.expires_at_us = envelope.expires_ms.map(micros);
            view.expires_at = view.expires_at_us.and_then(rfc3339);
        }
        Err(problem) => view.malformed = Some(problem.to_string()),
    }
    view.place = Some(found.place);
    Ok(view)
}

/// The version that the gate gives a task, if the gate is as it was at `since_us`.
async fn version_since(
    context: &Context,
    queue: &Queue,
    headers: &BTreeMap<String, String>,
    key: &str,
    since_us: u64,
) -> Result<Option<Version>, Failure> {
    let Some(shown) = context.gate(queue).await? else {
        return Ok(None);
    };
    let history = context.gates.history(queue, None, HISTORY_WINDOW).await?;
    let sealed = history.iter().find(|e| e.kind == "change" && e.rev == shown.rev);
    if sealed.is_none_or(|e| e.at_us >= since_us) {
        return Ok(None);
    }
    Ok(
        match decide(&shown.gate, &queue.task_type, headers, || key.to_owned()) {
            Decision::Run(version) => Some(version.clone()),
            Decision::Hold => None,
        },
    )
}

fn human(view: &TaskView, payload: Option<&[u8]>, now: u64) -> String {
    let when = |us: Option<u64>, exact: &Option<String>| match (us, exact) {
        (Some(us), Some(exact)) => format!("{} ({exact})", ago(now, us)),
        _ => String::new(),
    };
    let state = match (view.state, &view.place) {
        ("done" | "cancelled", Some(_)) => format!("{} (its entry is kept for a while)", view.state),
        ("gone", _) => "gone: only the log speaks of it".to_owned(),
        (state, Some(place)) if place == "suspect" => format!(
            "{} among the suspects: its process died while it may have run",
            state.replace('_', " ")
        ),
        (state, Some(place)) => format!("{} in {place}", state.replace('_', " ")),
        (state, None) => state.to_owned(),
    };
    let dead = view.dead.as_ref();
    let kept = view.kept.as_ref();
    let result_words = |kept: &KeptPart| {
        let result = kept.result.as_ref().map(|json| plain(json.get()));
        result.or_else(|| kept.error.as_deref().map(plain)).unwrap_or_default()
    };
    let or_none = |n: u64| if n == 0 { String::new() } else { n.to_string() };
    let mut text = sheet(&[
        ("QUEUE", view.queue.clone()),
        ("TASK", view.id.clone()),
        ("STATE", state),
        ("ENTRY", view.entry.clone().unwrap_or_default()),
        ("ENQUEUED", when(view.enqueued_at_us, &view.enqueued_at)),
        ("DUE", when(view.due_at_us, &view.due_at)),
        ("EXPIRES", when(view.expires_at_us, &view.expires_at)),
        (
            "HELD BY",
            view.held_by.as_ref().map(|h| h.words.clone()).unwrap_or_default(),
        ),
        ("CANCEL ASKED", when(view.cancel_asked_at_us, &view.cancel_asked_at)),
        (
            "PROGRESS",
            kept.and_then(|k| k.progress.as_ref())
                .map(wait::words)
                .unwrap_or_default(),
        ),
        ("RESULT", kept.map(result_words).unwrap_or_default()),
        ("ATTEMPTS", view.attempt.to_string()),
        ("DEATHS", or_none(view.deaths)),
        ("RECOVERED", or_none(view.recovered)),
        ("SNOOZES", or_none(view.snoozes.into())),
        ("PRIORITY", view.priority.unwrap_or_default().to_owned()),
        ("KEY", view.key.as_deref().map(plain).unwrap_or_default()),
        ("UNIQUE KEY", view.unique.as_deref().map(plain).unwrap_or_default()),
        ("REASON", dead.map(|d| plain(&d.reason)).unwrap_or_default()),
        ("ERROR", dead.map(|d| plain(&d.error)).unwrap_or_default()),
        ("MALFORMED", view.malformed.as_deref().map(plain).unwrap_or_default()),
    ]);
    if !view.errors.is_empty() {
        text.push_str("\nERRORS\n");
        text.push_str(&error_lines(&view.errors, now));
    }
    if !view.attempts.is_empty() {
        let rows = view.attempts.iter().map(|a| {
            vec![
                a.attempt.to_string(),
                a.version.to_string(),
                a.rev.to_string(),
                a.outcome.to_owned(),
                ago(now, a.settled_at_us),
                format!("{} ms", a.ran_ms),
                plain(&a.stream),
                plain(&a.session),
            ]
        });
        let header = [
            "ATTEMPT", "VERSION", "REV", "OUTCOME", "SETTLED", "RAN", "FROM", "SESSION",
        ];
        text.push('\n');
        text.push_str(&table(&header, &["ATTEMPT", "REV", "RAN"], rows));
        text.push('\n');
    }
    if !view.log_complete {
        text.push_str(&format!(
            "\nOnly the newest {LOG_WINDOW} entries of the log were read; there may be earlier attempts.\n"
        ));
    }
    if view.place.is_some() {
        text.push_str(&payload_lines(payload));
    }
    text
}
