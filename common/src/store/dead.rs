//! Dead letters: finding them, putting them back into line, deleting them. Nothing here ends a dead letter by itself.
//!
//! Whoever acts on many goes page by page in entry-id order ([`DeadStore::scan`]), cuts what matches ([`Filter`]) into
//! [`steps`], and gives each step to [`DeadStore::requeue`] or [`DeadStore::discard`]. Every step is one script: it
//! happens whole or not at all, and sent again it does nothing, so that stopping anywhere loses and doubles nothing.

mod refund;

use redis::{Cmd, Value};

pub use self::refund::{Looked, Waiting};
use super::{
    connect::Store,
    error::StoreError,
    keyspace::Key,
    reply::{self, Entry},
    script,
    session::{MOVE_BYTES, MOVE_ENTRIES},
};
use crate::{
    id::{StreamId, TaskId, stream_salt},
    name::{Queue, Version},
};

/// Most dead letters of one step.
pub const STEP_ENTRIES: usize = 100;
/// Most bytes of one step; a single larger letter is a step of its own.
pub const STEP_BYTES: u64 = 1024 * 1024;
/// The reason of what never was a task.
pub const MALFORMED: &str = "malformed";

/// A dead letter without its payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    /// Its entry.
    pub entry: StreamId,
    /// The task's id as written; empty if none was.
    pub id: String,
    /// Why it died: `attempts`, `rejected`, `malformed`, `poison`, `expired`.
    pub reason: String,
    /// The last error, at most 1000 bytes.
    pub error: String,
    /// The version it died on, or empty.
    pub version: String,
    /// The session that gave it up.
    pub session: String,
    /// When, ms since 1970 on Redis's clock. A letter that does not say died when it was written.
    pub at_ms: u64,
    /// Attempts made.
    pub attempts: u64,
    /// Bytes of all its fields.
    pub bytes: u64,
    /// Whether it has a payload at all.
    pub has_payload: bool,
    /// Attempts that can be given back: those that its error chain tells of, on the version of
    /// [`DeadStore::refunding`].
    pub refund: u64,
    /// Attempts that the chain, which holds the last 10, does not tell of.
    pub untold: u64,
}

impl DeadLetter {
    /// Whether it never was a task: put back into line it would only die again.
    #[must_use]
    pub fn is_malformed(&self) -> bool {
        self.reason == MALFORMED || !self.has_payload || !(self.id.is_empty() || self.id.parse::<TaskId>().is_ok())
    }
}

/// Which dead letters are meant. Everything that is given must fit; the default fits all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// Died on this version.
    pub version: Option<String>,
    /// Died for this reason.
    pub reason: Option<String>,
    /// The last error contains this text, in upper or lower case.
    pub error: Option<String>,
    /// Died at this time or before, ms since 1970 on Redis's clock.
    pub until_ms: Option<u64>,
    /// Died at this time or after, ms since 1970 on Redis's clock.
    pub since_ms: Option<u64>,
}

impl Filter {
    /// Whether `letter` is meant.
    #[must_use]
    pub fn fits(&self, letter: &DeadLetter) -> bool {
        let equal = |wanted: &Option<String>, found: &str| wanted.as_deref().is_none_or(|wanted| wanted == found);
        let error = self
            .error
            .as_ref()
            .is_none_or(|text| letter.error.to_lowercase().contains(&text.to_lowercase()));
        equal(&self.version, &letter.version)
            && equal(&self.reason, &letter.reason)
            && error
            && self.until_ms.is_none_or(|until| letter.at_ms <= until)
            && self.since_ms.is_none_or(|since| letter.at_ms >= since)
    }
}

/// Which way to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// In entry-id order.
    OldestFirst,
    /// Against it.
    NewestFirst,
}

/// What one look brought.
#[derive(Debug, Clone, Default)]
pub struct Page {
    /// Letters, in the order asked for.
    pub letters: Vec<DeadLetter>,
    /// The last one looked at: where the next page begins; `None` when there is nothing more.
    pub last: Option<StreamId>,
}

/// Whose hand it is, for the queue's log.
#[derive(Debug, Clone, Default)]
pub struct Operator {
    /// Who; at most 64 bytes count.
    pub by: String,
    /// Why; at most 500 bytes count.
    pub why: String,
    /// Names the whole action, so that its steps can be told from another's.
    pub op: String,
}

/// Cuts letters into steps that one script may take: [`STEP_BYTES`], and `most` or [`STEP_ENTRIES`], whichever is less.
#[must_use]
pub fn steps(letters: &[DeadLetter], most: usize) -> Vec<Vec<StreamId>> {
    let most = most.clamp(1, STEP_ENTRIES);
    let mut out: Vec<Vec<StreamId>> = Vec::new();
    let mut bytes = 0;
    for letter in letters {
        match out.last_mut() {
            Some(step) if step.len() < most && bytes + letter.bytes <= STEP_BYTES => step.push(letter.entry),
            _ => {
                bytes = 0;
                out.push(vec![letter.entry]);
            }
        }
        bytes += letter.bytes;
    }
    out
}

/// The dead letters of one queue.
#[derive(Debug, Clone)]
pub struct DeadStore {
    store: Store,
    queue: Queue,
    key: String,
    /// The version whose attempts a requeue gives back.
    refund: Option<Version>,
}

impl DeadStore {
    /// The dead letters of `queue`.
    #[must_use]
    pub fn new(store: &Store, queue: &Queue) -> Self {
        Self {
            key: store.keyspace().render(&Key::Dead(queue.clone())),
            store: store.clone(),
            queue: queue.clone(),
            refund: None,
        }
    }

    /// Whoever requeues gives back the attempts made on `version`, and no others; every look says how many.
    ///
    /// Without it a requeued task is as new as before its first attempt, whatever versions it failed on.
    #[must_use]
    pub fn refunding(mut self, version: Option<Version>) -> Self {
        self.refund = version;
        self
    }

    /// The id of a letter's task: as written, else the one that follows from its place.
    #[must_use]
    pub fn task_of(&self, letter: &DeadLetter) -> String {
        match letter.id.as_str() {
            "" => TaskId::of_entry(stream_salt(&self.key), letter.entry).to_string(),
            id => id.to_owned(),
        }
    }

    /// How many there are.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn count(&self) -> Result<u64, StoreError> {
        let mut cmd = Cmd::new();
        cmd.arg("XLEN").arg(&self.key);
        reply::count("XLEN", &self.store.warm().await?.run(cmd).await?)
    }

    /// The newest one's entry.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn newest(&self) -> Result<Option<StreamId>, StoreError> {
        let page = self.scan(None, None, Order::NewestFirst, 1).await?;
        Ok(page.letters.first().map(|letter| letter.entry))
    }

    /// One dead letter without its payload.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn at(&self, entry: StreamId) -> Result<Option<DeadLetter>, StoreError> {
        let found = self.range(&entry.to_string(), &entry.to_string(), "up", 1).await?;
        Ok(found.letters.into_iter().next())
    }

    /// One dead letter with everything it holds.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn get(&self, entry: StreamId) -> Result<Option<Entry>, StoreError> {
        let mut cmd = Cmd::new();
        cmd.arg("XRANGE")
            .arg(&self.key)
            .arg(entry.to_string())
            .arg(entry.to_string());
        let found = self.store.cold().await?.run(cmd).await?;
        Ok(reply::entries("dead letter", found)?.into_iter().next())
    }

    /// Up to `most` letters beyond `after` and not beyond `end`; fewer when they are large.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn scan(
        &self,
        after: Option<StreamId>,
        end: Option<StreamId>,
        order: Order,
        most: usize,
    ) -> Result<Page, StoreError> {
        let (first, last, way) = match order {
            Order::OldestFirst => ("-", "+", "up"),
            Order::NewestFirst => ("+", "-", "down"),
        };
        let from = after.map_or_else(|| first.to_owned(), |id| format!("({id}"));
        let to = end.map_or_else(|| last.to_owned(), |id| id.to_string());
        self.range(&from, &to, way, most).await
    }

    async fn range(&self, from: &str, to: &str, way: &str, most: usize) -> Result<Page, StoreError> {
        let mut call = script::DEAD_SCAN.prepare_invoke();
        call.key(&self.key);
        call.arg(from)
            .arg(to)
            .arg(way)
            .arg(most.min(MOVE_ENTRIES))
            .arg(MOVE_BYTES)
            .arg(self.refunded());
        let found = self.store.warm().await?.run_script(&call).await?;
        let (last, rows) = reply::verdict("dead letters", found)?;
        Ok(Page {
            letters: rows.map(letter).collect::<Result<_, _>>()?,
            last: StreamId::parse(last.as_bytes()),
        })
    }

    fn refunded(&self) -> &str {
        self.refund.as_ref().map_or("", Version::as_str)
    }

    /// Puts letters at the end of the line, with no attempt made (or as [`DeadStore::refunding`] has it) and their errors
    /// and ids kept. Those that are not there
    /// (any more) are passed over. Says how many there were. At most [`STEP_ENTRIES`], see [`steps`].
    ///
    /// # Errors
    /// When Redis does not answer; doing it again is harmless.
    pub async fn requeue(&self, entries: &[StreamId], operator: &Operator) -> Result<u64, StoreError> {
        let mut call = script::DEAD_REQUEUE.prepare_invoke();
        self.keys(&mut call);
        for key in [Key::Stream, Key::High, Key::Low, Key::Cancel] {
            call.key(self.store.keyspace().render(&key(self.queue.clone())));
        }
        self.act("requeue", call, Some(self.refunded()), entries, operator)
            .await
    }

    /// Deletes letters; nothing of their payloads is kept. Those that are not there (any more) are passed over. Says how
    /// many there were. At most [`STEP_ENTRIES`], see [`steps`].
    ///
    /// # Errors
    /// When Redis does not answer; doing it again is harmless.
    pub async fn discard(&self, entries: &[StreamId], operator: &Operator) -> Result<u64, StoreError> {
        let mut call = script::DEAD_DISCARD.prepare_invoke();
        self.keys(&mut call);
        self.act("discard", call, None, entries, operator).await
    }

    fn keys(&self, call: &mut redis::ScriptInvocation<'_>) {
        call.key(&self.key)
            .key(self.store.keyspace().render(&Key::Log(self.queue.clone())));
    }

    async fn act(
        &self,
        what: &'static str,
        mut call: redis::ScriptInvocation<'_>,
        more: Option<&str>,
        entries: &[StreamId],
        operator: &Operator,
    ) -> Result<u64, StoreError> {
        call.arg(crate::envelope::clip(&operator.by, 64))
            .arg(crate::envelope::clip(&operator.why, 500))
            .arg(&operator.op)
            .arg(stream_salt(&self.key));
        if let Some(more) = more {
            call.arg(more);
        }
        // P10: bounded here, whatever the caller gives.
        for entry in entries.iter().take(STEP_ENTRIES) {
            call.arg(entry.to_string());
        }
        let (_, mut rest) = reply::verdict(what, self.store.warm().await?.run_script(&call).await?)?;
        reply::count(what, &rest.next().unwrap_or(Value::Nil))
    }
}

fn letter(row: Value) -> Result<DeadLetter, StoreError> {
    const WHAT: &str = "dead letters";
    let items = reply::array(WHAT, row)?;
    let Ok(
        [
            entry,
            bytes,
            payload,
            id,
            reason,
            error,
            version,
            session,
            at,
            attempts,
            refund,
            untold,
        ],
    ) = <[Value; 12]>::try_from(items)
    else {
        return Err(reply::unexpected(WHAT, &Value::Nil));
    };
    let text = |value| reply::text(WHAT, value);
    let entry = StreamId::parse(&reply::bytes(WHAT, entry)?).ok_or_else(|| reply::unexpected(WHAT, &Value::Nil))?;
    let said: u64 = text(at)?.parse().unwrap_or(0);
    Ok(DeadLetter {
        entry,
        id: text(id)?,
        reason: text(reason)?,
        error: text(error)?,
        version: text(version)?,
        session: text(session)?,
        at_ms: if said == 0 { entry.ms } else { said },
        attempts: text(attempts)?.parse().unwrap_or(0),
        bytes: reply::count(WHAT, &bytes)?,
        has_payload: reply::count(WHAT, &payload)? == 1,
        refund: reply::count(WHAT, &refund)?,
        untold: reply::count(WHAT, &untold)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn letter(ms: u64, bytes: u64) -> DeadLetter {
        DeadLetter {
            entry: StreamId { ms, seq: 0 },
            id: "order-7".to_owned(),
            reason: "attempts".to_owned(),
            error: "Connection refused by smtp-2".to_owned(),
            version: "v2".to_owned(),
            session: "s".to_owned(),
            at_ms: ms,
            attempts: 15,
            bytes,
            has_payload: true,
            refund: 0,
            untold: 0,
        }
    }

    #[test]
    fn each_part_of_a_filter_must_fit() {
        let text = |t: &str| Some(t.to_owned());
        let all = Filter {
            version: text("v2"),
            reason: text("attempts"),
            error: text("REFUSED BY"),
            until_ms: Some(1_000),
            since_ms: Some(1_000),
        };
        let it = letter(1_000, 1);
        assert!(all.fits(&it) && Filter::default().fits(&it));
        let misfits = [
            Filter {
                version: text("v"),
                ..all.clone()
            },
            Filter {
                reason: text("rejected"),
                ..all.clone()
            },
            Filter {
                error: text("accepted"),
                ..all.clone()
            },
            Filter {
                until_ms: Some(999),
                ..all.clone()
            },
            Filter {
                since_ms: Some(1_001),
                ..all
            },
        ];
        for filter in misfits {
            assert!(!filter.fits(&it), "{filter:?}");
        }
    }

    #[test]
    fn steps_are_bounded_and_leave_nothing_out() {
        let letters: Vec<_> = (0..250)
            .map(|ms| letter(ms, if ms == 120 { STEP_BYTES * 2 } else { 10 }))
            .collect();
        let cut = steps(&letters, usize::MAX);
        let lengths: Vec<_> = cut.iter().map(Vec::len).collect();
        assert_eq!(lengths, [100, 20, 1, 100, 29], "the large one alone");
        let all: Vec<_> = cut.into_iter().flatten().collect();
        assert_eq!(all, letters.iter().map(|l| l.entry).collect::<Vec<_>>());
        assert!(steps(&letters, 0).iter().all(|step| step.len() == 1));
    }

    #[test]
    fn what_never_was_a_task_is_malformed() {
        let good = letter(1, 1);
        assert!(
            !good.is_malformed()
                && !DeadLetter {
                    id: String::new(),
                    ..good.clone()
                }
                .is_malformed()
        );
        let bad = [
            DeadLetter {
                reason: MALFORMED.to_owned(),
                ..good.clone()
            },
            DeadLetter {
                has_payload: false,
                ..good.clone()
            },
            DeadLetter {
                id: "a b".to_owned(),
                ..good
            },
        ];
        assert!(bad.iter().all(DeadLetter::is_malformed));
    }
}
