//! `dead ls | show | requeue | discard`.

mod act;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use serde::Serialize;
use switchback_common::{
    Queue, StreamId, TaskId,
    envelope::{AttemptError, Envelope, field},
    id::stream_salt,
    store::{
        dead::{DeadLetter, DeadStore, Filter, Order},
        inspect::FIND_WINDOW,
        keyspace::Key,
        reply::{self, Entry, field_number, field_text},
    },
};

use self::act::Action;
use crate::{
    args::{DeadVerb, Which},
    commands::gate::spell::{self, RevisionView},
    context::Context,
    exit::Failure,
    output::{Output, sheet, table, tell},
    text::{ago, brief, lossless, plain, rfc3339, showable},
    view::{ErrorView, error_lines},
};

const PAGE: usize = 500;

pub(crate) async fn run(context: &Context, out: &mut Output, verb: DeadVerb) -> Result<(), Failure> {
    match verb {
        DeadVerb::Ls {
            task_type,
            which,
            limit,
        } => ls(context, out, &context.queue(task_type), &which, limit).await,
        DeadVerb::Show { task_type, id } => show(context, out, &context.queue(task_type), &id).await,
        DeadVerb::Requeue {
            act,
            force,
            refund,
            canary,
        } => act::run(context, out, Action::Requeue { force, refund }, &act, Some(canary)).await,
        DeadVerb::Discard { act } => act::run(context, out, Action::Discard, &act, None).await,
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
    fn of(queue: &Queue, letter: &DeadLetter) -> Self {
        let at_us = letter.at_ms.saturating_mul(1_000);
        Self {
            queue: queue.to_string(),
            entry: letter.entry.to_string(),
            id: some(letter.id.clone()),
            at: rfc3339(at_us),
            at_us: Some(at_us),
            reason: letter.reason.clone(),
            version: letter.version.clone(),
            attempts: letter.attempts,
            error: letter.error.clone(),
            session: letter.session.clone(),
        }
    }
}

fn some(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

/// What `--since-flip` stands for.
#[derive(Debug, Clone, Serialize)]
struct Window {
    since: Option<String>,
    since_us: u64,
    made_reachable: Option<RevisionView>,
    withdrawn: RevisionView,
}

/// The filter as the store takes it; ages count back from `now_us` on Redis's clock.
async fn filter(
    context: &Context,
    queue: &Queue,
    which: &Which,
    now_us: u64,
) -> Result<(Filter, Option<Window>), Failure> {
    let ago = |age: Duration| {
        let age_us = u64::try_from(age.as_micros()).unwrap_or(0);
        now_us.saturating_sub(age_us) / 1_000
    };
    let window = match &which.version {
        Some(version) if which.since_flip => {
            let revisions = spell::revisions(context, queue).await?;
            spell::require_version(context, queue, &revisions, version).await?;
            let (since, withdrawn) = spell::withdrawn(queue, &revisions, version)?;
            let since_us = since.since.map_or(0, |revision| revision.at_us);
            Some(Window {
                since: rfc3339(since_us),
                since_us,
                made_reachable: since.since.map(RevisionView::of),
                withdrawn: RevisionView::of(withdrawn),
            })
        }
        _ => None,
    };
    let newer = which.newer_than.map(ago);
    let filter = Filter {
        version: which.version.as_ref().map(ToString::to_string),
        reason: which.reason.clone(),
        error: which.error.clone(),
        until_ms: which.older_than.map(ago),
        // No end: what died on it after its withdrawal was in flight then.
        since_ms: newer.max(window.as_ref().map(|window| window.since_us / 1_000)),
    };
    if let (Some(window), Some(version)) = (&window, &which.version) {
        let became = window.made_reachable.as_ref().map_or_else(
            || "before the history begins".to_owned(),
            |revision| revision.words(now_us),
        );
        tell(format_args!(
            "{version} became reachable: {became}; was withdrawn: {}",
            window.withdrawn.words(now_us)
        ));
    }
    Ok((filter, window))
}

async fn ls(context: &Context, out: &mut Output, queue: &Queue, which: &Which, limit: usize) -> Result<(), Failure> {
    let store = DeadStore::new(&context.store, queue);
    let now = context.now_us().await?;
    let (filter, _) = filter(context, queue, which, now).await?;
    let (mut rows, mut after, mut any, mut more) = (Vec::new(), None, false, false);
    while !more {
        let page = store.scan(after, None, Order::NewestFirst, PAGE).await?;
        if page.last.is_none() {
            break;
        }
        (after, any) = (page.last, true);
        for letter in page.letters.iter().filter(|letter| filter.fits(letter)) {
            more = rows.len() >= limit;
            if more {
                break;
            }
            rows.push(Row::of(queue, letter));
        }
    }
    if rows.is_empty() && !more {
        context.require(queue).await?;
        if out.is_table() {
            let what = if any { "no such dead letter" } else { "no dead letters" };
            tell(format_args!("{queue} has {what}"));
        }
    }
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
        let died_us = match field_number(&fields, field::DEAD_AT) {
            0 => entry.id.ms, // one that does not say died when it was written
            said => said,
        }
        .saturating_mul(1_000);
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
            queue: queue.to_string(),
            entry: entry.id.to_string(),
            id: some(field_text(&fields, field::ID)),
            at: rfc3339(died_us),
            at_us: Some(died_us),
            reason: field_text(&fields, field::DEAD_REASON),
            error: field_text(&fields, field::DEAD_ERROR),
            version: field_text(&fields, field::DEAD_VERSION),
            session: field_text(&fields, field::DEAD_SESSION),
            attempts: field_number(&fields, field::ATTEMPT),
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

async fn find(context: &Context, queue: &Queue, id: &TaskId) -> Result<Option<Entry>, Failure> {
    let store = DeadStore::new(&context.store, queue);
    let (found, _) = find_all(&store, std::slice::from_ref(id)).await?;
    match found.first() {
        Some(letter) => Ok(store.get(letter.entry).await?),
        None => Ok(None),
    }
}

/// The letters with these ids, by entry id at once, by task id through the newest; and the ids that were not found. In
/// entry-id order.
async fn find_all(store: &DeadStore, ids: &[TaskId]) -> Result<(Vec<DeadLetter>, Vec<String>), Failure> {
    let mut found: Vec<DeadLetter> = Vec::new();
    let mut wanted = BTreeSet::new();
    for id in ids.iter().map(ToString::to_string) {
        let entry = StreamId::parse(id.as_bytes()).filter(|_| id.contains('-'));
        let letter = match entry {
            Some(entry) => store.at(entry).await?,
            None => None,
        };
        match letter {
            Some(letter) => found.push(letter),
            None => {
                wanted.insert(id);
            }
        }
    }
    let (mut after, mut looked_at) = (None, 0);
    while !wanted.is_empty() && looked_at < FIND_WINDOW {
        let page = store.scan(after, None, Order::NewestFirst, PAGE).await?;
        if page.last.is_none() {
            break;
        }
        (after, looked_at) = (page.last, looked_at + page.letters.len());
        found.extend(page.letters.into_iter().filter(|letter| wanted.remove(&letter.id)));
    }
    found.sort_by_key(|letter| letter.entry);
    found.dedup_by_key(|letter| letter.entry);
    Ok((found, wanted.into_iter().collect()))
}
