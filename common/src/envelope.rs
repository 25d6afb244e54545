//! The envelope: what a stream entry says about a task.
//!
//! Only `payload` is required, so that `XADD <stream> * payload '{…}'` from any language is a task.
//! Fields that have their default value are left out: a plain task costs no more than its payload.
//! A field we do not know is left alone: moves copy entries inside Redis, so it survives older workers.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use crate::id::{StreamId, TaskId};

/// Field names of a stream entry. Stable: they are read by workers of other releases.
pub mod field {
    /// The task's id; absent when it is derived from the entry's own place.
    pub const ID: &str = "id";
    /// The JSON payload.
    pub const PAYLOAD: &str = "payload";
    /// What the sticky percent and pins look at: customer, order…; absent = the id.
    pub const KEY: &str = "key";
    /// Attempts already made; absent = 0.
    pub const ATTEMPT: &str = "attempt";
    /// Times its process died while the task may have been the cause; absent = 0. An attempt that ends forgets them.
    pub const DEATHS: &str = "deaths";
    /// Times a worker was lost while it held the task; absent = 0. Never forgotten.
    pub const RECOVERED: &str = "recovered";
    /// Milliseconds since 1970; absent = the milliseconds of the entry id.
    pub const ENQUEUED_AT: &str = "enqueued_at";
    /// A JSON object of strings, e.g. `traceparent`; absent = none.
    pub const HEADERS: &str = "headers";
    /// A JSON array of [`AttemptError`](super::AttemptError), oldest first; absent = none.
    pub const ERRORS: &str = "errors";
    /// When it must not be started any more: ms since 1970, or `+<ms>` counted from `enqueued_at`; absent = never.
    pub const EXPIRES: &str = "expires";
    /// `high` or `low`; absent = normal.
    pub const PRIORITY: &str = "priority";
    /// The unique key it was enqueued under.
    pub const UNIQUE: &str = "unique";
    /// How often its handler put it off; absent = 0.
    pub const SNOOZES: &str = "snoozes";
    /// The format of the entry; absent = 1. A worker that does not know it leaves the task to one that does.
    pub const FORMAT: &str = "format";
    /// The time given by the rate of its key: attempts made by then, and when it may start (ms since 1970); absent = none.
    pub const SLOT: &str = "slot";
    /// Milliseconds to keep the result; absent = it is not kept.
    pub const RESULT: &str = "result";
    /// Of dead letters: why, the last error, the version, the session, and when (ms since 1970).
    pub const DEAD_REASON: &str = "dead_reason";
    /// See [`DEAD_REASON`].
    pub const DEAD_ERROR: &str = "dead_error";
    /// See [`DEAD_REASON`].
    pub const DEAD_VERSION: &str = "dead_version";
    /// See [`DEAD_REASON`].
    pub const DEAD_SESSION: &str = "dead_session";
    /// See [`DEAD_REASON`].
    pub const DEAD_AT: &str = "dead_at";
}

/// The format of entries that this release writes, and the newest it can read.
pub const FORMAT: u32 = 1;
/// The newest format that may be told apart from nonsense.
pub const MAX_FORMAT: u32 = FORMAT + 8;
/// Longest payload by default, in bytes: 1 MiB.
pub const DEFAULT_MAX_PAYLOAD: usize = 1024 * 1024;
/// Longest `key`, in bytes.
pub const MAX_KEY_BYTES: usize = 256;
/// Longest `headers` JSON, in bytes.
pub const MAX_HEADERS_BYTES: usize = 8 * 1024;
/// Largest believable `attempt`, `deaths` or `recovered`.
pub const MAX_COUNT: u32 = 1_000_000;
/// Errors kept on a task; the oldest go first.
pub const MAX_ERRORS_KEPT: usize = 10;
/// Longest error text kept, in bytes.
pub const MAX_ERROR_BYTES: usize = 1_000;

/// The longest that a result is kept: 30 days.
pub const MAX_RESULT_KEPT: Duration = Duration::from_secs(30 * 24 * 3600);

/// Fields of one stream entry, as Redis gave them.
pub type Fields = Vec<(Vec<u8>, Vec<u8>)>;

/// One failed attempt, kept on the task.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct AttemptError {
    /// Which attempt, from 1; 0: it was given back, and does not count (`dead/chain.lua`).
    pub attempt: u32,
    /// The version it ran on.
    pub version: String,
    /// What happened.
    pub error: String,
    /// When, in ms since 1970 on Redis's clock.
    pub at_ms: u64,
}

/// What an entry says about its task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Envelope {
    /// The task's id.
    pub id: TaskId,
    /// Whether the id was written on the entry, rather than derived from its place.
    pub id_written: bool,
    /// The payload, as sent.
    pub payload: Vec<u8>,
    /// What percent and pins look at, when it is not the id.
    pub key: Option<Arc<str>>,
    /// Attempts already made.
    pub attempt: u32,
    /// Times its process died while the task may have been the cause: above 0 it is a suspect.
    pub deaths: u32,
    /// Times a worker was lost while it held the task.
    pub recovered: u32,
    /// When it was enqueued: ms since 1970, on Redis's clock unless the entry says otherwise.
    pub enqueued_at_ms: u64,
    /// When it must not be started any more, ms since 1970.
    pub expires_ms: Option<u64>,
    /// How often its handler put it off.
    pub snoozes: u32,
    /// Headers, e.g. `traceparent`.
    pub headers: BTreeMap<String, String>,
    /// The failures so far, oldest first.
    pub errors: Vec<AttemptError>,
    /// The time given by the rate of its key: attempts made by then, and when (ms since 1970).
    pub slot: Option<(u32, u64)>,
    /// How long its result is kept, in ms; 0 = not at all. At most [`MAX_RESULT_KEPT`].
    pub result_ms: u64,
}

/// An entry that is not a task. Its bytes go to the dead letters as they are.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Malformed {
    /// There is no `payload` field.
    #[error("no `payload` field")]
    NoPayload,
    /// It is of a format that a newer release wrote: not wrong, but not for us.
    #[error("format {format} is newer than this worker knows ({FORMAT})")]
    Newer {
        /// Its format.
        format: u32,
    },
    /// The payload is longer than the worker accepts.
    #[error("payload of {size} bytes, the limit is {limit}")]
    PayloadTooLarge {
        /// Its size in bytes.
        size: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// The payload is not JSON.
    #[error("payload is not JSON: {0}")]
    NotJson(String),
    /// Another field has a value it cannot have.
    #[error("field `{field}` {problem}")]
    BadField {
        /// Which.
        field: &'static str,
        /// What is wrong with it.
        problem: String,
    },
}

impl Envelope {
    /// Reads an entry. `salt` belongs to the stream it lies in (see [`crate::id::stream_salt`]).
    ///
    /// # Errors
    /// [`Malformed`] says which field is wrong. The payload's JSON is not looked at here.
    pub fn decode(salt: u32, entry: StreamId, fields: Fields, max_payload: usize) -> Result<Self, Malformed> {
        // Before anything else: the other fields may mean something else there.
        if let Some((_, value)) = fields.iter().find(|(name, _)| name == field::FORMAT.as_bytes()) {
            match number(field::FORMAT, value)? {
                format if format <= u64::from(FORMAT) => {}
                format if format <= u64::from(MAX_FORMAT) => {
                    return Err(Malformed::Newer {
                        format: u32::try_from(format).unwrap_or(MAX_FORMAT),
                    });
                }
                format => return Err(bad(field::FORMAT, format!("is {format}, more than {MAX_FORMAT}"))),
            }
        }
        let (mut payload, mut expires) = (None, None);
        let mut envelope = Self {
            id: TaskId::of_entry(salt, entry),
            id_written: false,
            payload: Vec::new(),
            key: None,
            attempt: 0,
            deaths: 0,
            recovered: 0,
            enqueued_at_ms: entry.ms,
            expires_ms: None,
            snoozes: 0,
            headers: BTreeMap::new(),
            errors: Vec::new(),
            slot: None,
            result_ms: 0,
        };
        for (name, value) in fields {
            match name.as_slice() {
                b"payload" => payload = Some(value),
                b"id" => {
                    let text = text(field::ID, &value)?;
                    envelope.id = text.parse().map_err(|e| bad(field::ID, e))?;
                    envelope.id_written = true;
                }
                b"key" => {
                    if value.len() > MAX_KEY_BYTES {
                        return Err(bad(field::KEY, format!("is longer than {MAX_KEY_BYTES} bytes")));
                    }
                    let text = text(field::KEY, &value)?;
                    envelope.key = (!text.is_empty()).then(|| Arc::from(text));
                }
                b"attempt" => envelope.attempt = count(field::ATTEMPT, &value)?,
                b"deaths" => envelope.deaths = count(field::DEATHS, &value)?,
                b"snoozes" => envelope.snoozes = count(field::SNOOZES, &value)?,
                b"expires" => expires = Some(value),
                b"recovered" => envelope.recovered = count(field::RECOVERED, &value)?,
                b"enqueued_at" => envelope.enqueued_at_ms = number(field::ENQUEUED_AT, &value)?,
                b"result" => envelope.result_ms = number(field::RESULT, &value)?.min(millis(MAX_RESULT_KEPT)),
                b"headers" => {
                    if value.len() > MAX_HEADERS_BYTES {
                        return Err(bad(field::HEADERS, format!("is longer than {MAX_HEADERS_BYTES} bytes")));
                    }
                    envelope.headers = serde_json::from_slice(&value)
                        .map_err(|e| bad(field::HEADERS, format!("is not a JSON object of strings: {e}")))?;
                }
                b"errors" => {
                    envelope.errors = serde_json::from_slice(&value)
                        .map_err(|e| bad(field::ERRORS, format!("is not a list of errors: {e}")))?;
                }
                // One that cannot be read is no time: another is given.
                b"slot" => {
                    envelope.slot = text(field::SLOT, &value)
                        .ok()
                        .and_then(|slot| slot.split_once(' '))
                        .and_then(|(attempt, due)| Some((attempt.parse().ok()?, due.parse().ok()?)));
                }
                _ => {}
            }
        }
        // Last: it may be counted from `enqueued_at`, wherever that stood.
        envelope.expires_ms = expires
            .map(|value| deadline(&value, envelope.enqueued_at_ms))
            .transpose()?;
        envelope.payload = payload.ok_or(Malformed::NoPayload)?;
        if envelope.payload.len() > max_payload {
            return Err(Malformed::PayloadTooLarge {
                size: envelope.payload.len(),
                limit: max_payload,
            });
        }
        Ok(envelope)
    }

    /// What percent and pins look at: the key, else the id.
    #[must_use]
    pub fn routing_key(&self) -> String {
        self.key.as_deref().map_or_else(|| self.id.to_string(), str::to_owned)
    }

    /// The errors so far and one more, oldest dropped past the bound, as the JSON of [`field::ERRORS`].
    #[must_use]
    pub fn errors_with(&self, mut error: AttemptError) -> String {
        error.error = clip(&error.error, MAX_ERROR_BYTES).to_owned();
        let skip = (self.errors.len() + 1).saturating_sub(MAX_ERRORS_KEPT);
        let kept: Vec<_> = self.errors.iter().skip(skip).chain([&error]).collect();
        serde_json::to_string(&kept).unwrap_or_else(|_| "[]".to_owned())
    }
}

/// `text` cut to at most `limit` bytes, at a character's border.
#[must_use]
pub fn clip(text: &str, limit: usize) -> &str {
    &text[..text.floor_char_boundary(limit)]
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn bad(field: &'static str, problem: impl std::fmt::Display) -> Malformed {
    Malformed::BadField {
        field,
        problem: clip(&problem.to_string(), 300).to_owned(),
    }
}

fn text<'a>(field: &'static str, value: &'a [u8]) -> Result<&'a str, Malformed> {
    std::str::from_utf8(value).map_err(|_| bad(field, "is not UTF-8"))
}

fn number(field: &'static str, value: &[u8]) -> Result<u64, Malformed> {
    let text = text(field, value)?;
    text.parse()
        .map_err(|_| bad(field, format!("is {:?}, not a number", clip(text, 40))))
}

fn deadline(value: &[u8], enqueued_at_ms: u64) -> Result<u64, Malformed> {
    match value.strip_prefix(b"+") {
        Some(after) => Ok(enqueued_at_ms.saturating_add(number(field::EXPIRES, after)?)),
        None => number(field::EXPIRES, value),
    }
}

fn count(field: &'static str, value: &[u8]) -> Result<u32, Malformed> {
    let number = number(field, value)?;
    u32::try_from(number)
        .ok()
        .filter(|n| *n <= MAX_COUNT)
        .ok_or_else(|| bad(field, format!("is {number}, more than {MAX_COUNT}")))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn decode(fields: &[(&str, &[u8])]) -> Result<Envelope, Malformed> {
        let fields = fields
            .iter()
            .map(|(k, v)| (k.as_bytes().to_vec(), v.to_vec()))
            .collect();
        Envelope::decode(7, StreamId { ms: 1_000, seq: 3 }, fields, 100)
    }

    #[test]
    fn a_bare_payload_is_a_task() {
        let task = decode(&[("payload", b"{}")]).unwrap();
        assert_eq!(task.id.entry(7), Some(StreamId { ms: 1_000, seq: 3 }));
        assert_eq!((task.attempt, task.deaths, task.enqueued_at_ms), (0, 0, 1_000));
        assert_eq!(task.routing_key(), task.id.to_string());
    }

    #[test]
    fn what_is_wrong_is_named() {
        type Case<'a> = (&'a [(&'a str, &'a [u8])], &'a str);
        let cases: &[Case<'_>] = &[
            (&[("pay", b"{}")], "no `payload` field"),
            (&[("payload", &[b'x'; 101])], "payload of 101 bytes, the limit is 100"),
            (
                &[("payload", b"1"), ("attempt", b"-1")],
                "field `attempt` is \"-1\", not a number",
            ),
            (
                &[("payload", b"1"), ("deaths", b"99999999")],
                "field `deaths` is 99999999, more than 1000000",
            ),
            (
                &[("payload", b"1"), ("expires", b"+soon")],
                "field `expires` is \"soon\", not a number",
            ),
            (
                &[("payload", b"1"), ("enqueued_at", b"1e400")],
                "field `enqueued_at` is \"1e400\"",
            ),
            (&[("payload", b"1"), ("id", b"a b")], "field `id` invalid task id"),
            (&[("payload", b"1"), ("key", b"\xff")], "field `key` is not UTF-8"),
            (
                &[("payload", b"1"), ("headers", b"[1]")],
                "field `headers` is not a JSON object",
            ),
        ];
        for (fields, message) in cases {
            let error = decode(fields).unwrap_err().to_string();
            assert!(error.starts_with(message), "{error}");
        }
    }

    #[test]
    fn unknown_fields_do_not_matter() {
        assert!(decode(&[("payload", b"1"), ("version", b"v99"), ("\u{1F389}", b"")]).is_ok());
    }

    #[test]
    fn a_deadline_may_be_counted_from_the_enqueue() {
        let expires = |value: &[u8]| {
            decode(&[("expires", value), ("payload", b"1"), ("enqueued_at", b"500")])
                .unwrap()
                .expires_ms
        };
        assert_eq!((expires(b"9000"), expires(b"+9000")), (Some(9_000), Some(9_500)));
        assert_eq!(decode(&[("payload", b"1")]).unwrap().expires_ms, None);
    }

    #[test]
    fn a_newer_format_is_left_alone_whatever_else_it_says() {
        let of = |format: &[u8]| decode(&[("payload2", b"\xff"), ("format", format)]).unwrap_err();
        assert_eq!(of(b"2"), Malformed::Newer { format: 2 });
        assert_eq!(of(b"1"), Malformed::NoPayload);
        assert!(matches!(of(b"10"), Malformed::BadField { field: "format", .. }));
        assert!(matches!(of(b"two"), Malformed::BadField { field: "format", .. }));
    }

    #[test]
    fn the_error_chain_is_bounded() {
        let mut task = decode(&[("payload", b"1")]).unwrap();
        for attempt in 1..=30 {
            let error = AttemptError {
                attempt,
                version: "v1".into(),
                error: "é".repeat(MAX_ERROR_BYTES),
                at_ms: 0,
            };
            task.errors = serde_json::from_str(&task.errors_with(error)).unwrap();
        }
        assert_eq!(task.errors.len(), MAX_ERRORS_KEPT);
        assert_eq!(task.errors.last().unwrap().attempt, 30);
        assert!(task.errors.iter().all(|e| e.error.len() <= MAX_ERROR_BYTES));
    }

    proptest! {
        #[test]
        fn no_entry_panics(fields in proptest::collection::vec(
            ("(id|payload|key|attempt|deaths|recovered|enqueued_at|expires|snoozes|format|headers|errors|result|x)", proptest::collection::vec(any::<u8>(), 0..40)), 0..8)) {
            let fields = fields.into_iter().map(|(k, v)| (k.into_bytes(), v)).collect();
            let _ = Envelope::decode(1, StreamId::default(), fields, 30);
        }
    }
}
