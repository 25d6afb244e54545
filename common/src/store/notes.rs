//! What the log of a queue tells people: what was done to the queue, beside the attempts that ran in it.

use super::{
    connect::Store,
    error::StoreError,
    keyspace::Key,
    reply::{self, field_text},
    script,
};
use crate::{envelope::Fields, id::StreamId, name::Queue};
use redis::Value;

/// Entries that one call looks at, and gives, at most.
const LOOKED_AT: usize = 1_000;
const GIVEN: usize = 200;
/// Bytes to which a value is cut, as people read it.
pub const BRIEF: usize = 2_000;
/// The same where it is compared: no value that a command wrote beside the attempts is longer.
pub const WHOLE: usize = 64 * 1024;

/// Which entries are wanted.
#[derive(Debug, Clone, Copy)]
pub enum Kinds<'a> {
    /// Of these kinds.
    Only(&'a [&'a str]),
    /// Of all others.
    Not(&'a [&'a str]),
}

/// An entry, as it stands there; values that are too long are cut.
#[derive(Debug, Clone)]
pub struct Note {
    /// Its id.
    pub id: StreamId,
    /// What it speaks of.
    pub kind: String,
    /// All its fields.
    pub fields: Fields,
}

/// Part of the log, newest first.
#[derive(Debug, Clone)]
pub struct Page {
    /// What was found.
    pub notes: Vec<Note>,
    /// Where to go on; `None` at the end.
    pub next: Option<String>,
    /// Entries that were looked at.
    pub looked: u64,
}

/// Where a walk through the log begins: at its newest entry, or at the newest that is not younger than `until_ms`.
#[must_use]
pub fn start(until_ms: Option<u64>) -> String {
    until_ms.map_or_else(|| "+".to_owned(), |ms| ms.to_string())
}

/// A page of entries from `from` on, none older than `since_ms`, values cut to `value` bytes.
///
/// # Errors
/// When Redis does not answer.
pub async fn page(
    store: &Store,
    queue: &Queue,
    from: &str,
    since_ms: u64,
    value: usize,
    kinds: Kinds<'_>,
) -> Result<Page, StoreError> {
    let link = store.cold().await?;
    let mut call = script::NOTES_PAGE.prepare_invoke();
    call.key(store.keyspace().render(&Key::Log(queue.clone())));
    call.arg(from).arg(since_ms).arg(LOOKED_AT).arg(GIVEN).arg(value);
    let (word, kinds) = match kinds {
        Kinds::Only(kinds) => ("only", kinds),
        Kinds::Not(kinds) => ("not", kinds),
    };
    call.arg(word);
    for kind in kinds {
        call.arg(*kind);
    }
    let (_, mut rest) = reply::verdict("log", link.run_script(&call).await?)?;
    let next = reply::text("log", rest.next().unwrap_or(Value::Nil))?;
    let looked = reply::count("log", &rest.next().unwrap_or(Value::Nil))?;
    let entries = reply::entries("log", Value::Array(rest.collect()))?;
    let notes = entries.into_iter().map(|entry| {
        let fields = entry.fields.unwrap_or_default();
        Note {
            id: entry.id,
            kind: field_text(&fields, "kind"),
            fields,
        }
    });
    Ok(Page {
        notes: notes.collect(),
        next: Some(next).filter(|next| !next.is_empty()),
        looked,
    })
}
