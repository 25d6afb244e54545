//! Revisions of a namespace's configuration: what was applied as a document, when, by whom, and what it left in force.
//!
//! A revision is written down before its first write to a queue, and once more when it ended: one that never ended was cut
//! short, and applying the document again completes it.

use redis::{Cmd, Value};

use super::{
    connect::Store,
    error::StoreError,
    keyspace::Key,
    reply::{self, Entry, field_number, field_text},
    script,
};
use crate::{envelope::clip, id::StreamId, name::Namespace};

/// Most entries kept: a revision has two.
const MAX_ENTRIES: usize = 2_000;
/// Most bytes kept, all entries together: 16 MiB.
const MAX_BYTES: usize = 16 * 1024 * 1024;
/// Entries read at once: with the longest documents 8 MiB.
const PAGE: usize = 8;

/// What is written down when a revision begins.
#[derive(Debug, Clone, Default)]
pub struct Begin<'a> {
    /// The revision that it was judged against.
    pub after: u64,
    /// `apply` or `revert`.
    pub source: &'a str,
    /// Who.
    pub by: &'a str,
    /// Why.
    pub why: &'a str,
    /// Names this request, so that sending it twice records once.
    pub op: &'a str,
    /// The revision that it goes back to.
    pub reverts: Option<u64>,
    /// JSON: what changes, as far as it is kept.
    pub changes: &'a str,
    /// How many fields change.
    pub changed: usize,
    /// JSON: reasons against it that were passed over; empty for none.
    pub forced: &'a str,
    /// JSON: the whole namespace as it is to be; empty if that is more than a document may hold.
    pub document: &'a str,
}

/// How it began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Begun {
    /// Under this number.
    As(u64),
    /// Not: this is the revision now.
    Moved(u64),
}

/// One entry.
#[derive(Debug, Clone)]
pub struct Revision {
    /// Its id in the stream.
    pub id: StreamId,
    /// `begun`, `done`, `stopped`.
    pub kind: String,
    /// The revision it speaks of.
    pub rev: u64,
    /// When, µs of Redis's clock.
    pub at_us: u64,
    /// As in [`Begin`].
    pub source: String,
    /// Who.
    pub by: String,
    /// Why.
    pub why: String,
    /// The revision that it goes back to; 0 for none.
    pub reverts: u64,
    /// JSON, as in [`Begin`].
    pub changes: String,
    /// How many fields change.
    pub changed: u64,
    /// JSON; empty for none.
    pub forced: String,
    /// JSON; empty if it was more than a document may hold.
    pub document: String,
    /// Of `stopped`: why.
    pub text: String,
}

fn key(store: &Store, namespace: &Namespace) -> String {
    store.keyspace().render(&Key::Config(namespace.clone()))
}

/// The newest revision; 0 if there was none.
///
/// # Errors
/// When Redis does not answer.
pub async fn revision(store: &Store, namespace: &Namespace) -> Result<u64, StoreError> {
    let newest = page(store, namespace, None, 1).await?;
    let fields = newest.first().and_then(|entry| entry.fields.as_ref());
    Ok(fields.map_or(0, |fields| field_number(fields, "rev")))
}

/// Begins a revision, if the one it was judged against is still the newest.
///
/// # Errors
/// When Redis does not answer. Sending the same again is harmless.
pub async fn begin(store: &Store, namespace: &Namespace, begin: &Begin<'_>) -> Result<Begun, StoreError> {
    let (reverts, changed) = (begin.reverts.unwrap_or(0).to_string(), begin.changed.to_string());
    let fields = [
        ("source", begin.source),
        ("by", clip(begin.by, 64)),
        ("why", clip(begin.why, 500)),
        ("reverts", &reverts),
        ("changes", begin.changes),
        ("changed", &changed),
        ("forced", begin.forced),
        ("document", begin.document),
    ];
    let (word, rev) = record(store, namespace, "begun", begin.after, begin.op, &fields).await?;
    Ok(match word.as_str() {
        "recorded" => Begun::As(rev),
        _ => Begun::Moved(rev),
    })
}

/// Says how a revision ended: with nothing to say it is done, else it stopped.
///
/// # Errors
/// When Redis does not answer. Sending the same again is harmless.
pub async fn end(store: &Store, namespace: &Namespace, rev: u64, op: &str, stopped: &str) -> Result<(), StoreError> {
    let kind = if stopped.is_empty() { "done" } else { "stopped" };
    let fields = [("text", clip(stopped, 2_000))];
    record(store, namespace, kind, rev, op, &fields).await.map(drop)
}

async fn record(
    store: &Store,
    namespace: &Namespace,
    kind: &str,
    rev: u64,
    op: &str,
    fields: &[(&str, &str)],
) -> Result<(String, u64), StoreError> {
    let mut call = script::CONFIG_RECORD.prepare_invoke();
    call.key(key(store, namespace)).arg(kind).arg(rev).arg(op);
    call.arg(MAX_ENTRIES).arg(MAX_BYTES);
    for (name, value) in fields {
        call.arg(*name).arg(*value);
    }
    let (word, mut rest) = reply::verdict("config", store.warm().await?.run_script(&call).await?)?;
    Ok((word, reply::count("config", &rest.next().unwrap_or(Value::Nil))?))
}

async fn page(
    store: &Store,
    namespace: &Namespace,
    before: Option<StreamId>,
    count: usize,
) -> Result<Vec<Entry>, StoreError> {
    let from = before.map_or_else(|| "+".to_owned(), |id| format!("({id}"));
    let mut cmd = Cmd::new();
    cmd.arg("XREVRANGE").arg(key(store, namespace)).arg(from).arg("-");
    cmd.arg("COUNT").arg(count);
    reply::entries("config", store.warm().await?.run(cmd).await?)
}

/// The newest entries, newest first, until `enough` of those so far.
///
/// # Errors
/// When Redis does not answer.
pub async fn history(
    store: &Store,
    namespace: &Namespace,
    mut enough: impl FnMut(&[Revision]) -> bool,
) -> Result<Vec<Revision>, StoreError> {
    let mut out: Vec<Revision> = Vec::new();
    while !enough(&out) {
        let entries = page(store, namespace, out.last().map(|entry| entry.id), PAGE).await?;
        if entries.is_empty() {
            break;
        }
        out.extend(entries.into_iter().map(decode));
    }
    Ok(out)
}

fn decode(entry: Entry) -> Revision {
    let fields = entry.fields.unwrap_or_default();
    let text = |name| field_text(&fields, name);
    let number = |name| field_number(&fields, name);
    Revision {
        id: entry.id,
        kind: text("kind"),
        rev: number("of"),
        at_us: number("at"),
        source: text("source"),
        by: text("by"),
        why: text("why"),
        reverts: number("reverts"),
        changes: text("changes"),
        changed: number("changed"),
        forced: text("forced"),
        document: text("document"),
        text: text("text"),
    }
}
