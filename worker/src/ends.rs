//! Ends: what becomes of a task that did not simply succeed or fail, and the fields that change on its way.

use std::time::Duration;

use switchback_common::{
    StreamId, Version,
    envelope::{Envelope, MAX_COUNT, MAX_ERROR_BYTES, clip, field},
    store::settle::Fate,
};

use crate::{
    attempt::Claimed,
    outcome::{Outcome, Ran},
    results::{self, Leaves},
    session::Session,
    suspects::back,
};

/// The longest wait that a handler may ask for: a score that every clock and every double can hold.
pub(crate) const CENTURY: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// What changes on a task whose attempt ended while its process lives: it is no suspect any more.
pub(crate) fn ended_alive(envelope: &Envelope) -> Vec<(&'static str, String)> {
    let mut fields = kept(envelope);
    if envelope.deaths > 0 {
        fields.push((field::DEATHS, "0".to_owned()));
    }
    fields
}

/// What an entry's place said, written down because the task is about to leave it.
pub(crate) fn kept(envelope: &Envelope) -> Vec<(&'static str, String)> {
    // Always: a mark speaks of what was enqueued before it, and the next place is younger.
    let mut fields = vec![(field::ENQUEUED_AT, envelope.enqueued_at_ms.to_string())];
    if !envelope.id_written {
        fields.push((field::ID, envelope.id.to_string()));
    }
    fields
}

/// The same of a task whose attempt is over. Its id is given whether or not the entry carries one: it is the same.
pub(crate) fn given_back(ran: &Ran) -> Vec<(&'static str, String)> {
    let mut fields = vec![
        (field::ENQUEUED_AT, ran.enqueued_at_ms.to_string()),
        (field::ID, ran.task.to_string()),
    ];
    if ran.timed {
        // It has started, and the next start is given a time of its own.
        fields.push((field::SLOT, String::new()));
    }
    fields
}

/// What a dead letter carries beside its own fields.
pub(crate) fn dead_fields(
    session: &Session,
    reason: &str,
    error: &str,
    version: Option<&Version>,
) -> Vec<(&'static str, String)> {
    vec![
        (field::DEAD_REASON, reason.to_owned()),
        (field::DEAD_ERROR, clip(error, MAX_ERROR_BYTES).to_owned()),
        (
            field::DEAD_VERSION,
            version.map_or_else(String::new, ToString::to_string),
        ),
        (field::DEAD_SESSION, session.id.to_string()),
        (field::DEAD_AT, (session.clock.now_us() / 1_000).to_string()),
    ]
}

/// A task that goes to another stream without having run: nothing is burnt (P6).
pub(crate) fn moved(task: &Claimed, to: usize) -> Outcome {
    Outcome {
        place: task.place,
        entry: task.entry,
        bytes: task.bytes,
        ran: None,
        fate: Some((Fate::Move { to }, kept(&task.envelope))),
        keep: None,
    }
}

/// A task whose attempt is not to count goes back as it was (P6): it was cut short by a shutdown, its mark was taken back,
/// or its flip stopped or revoked it.
pub(crate) fn released(task: &Claimed, ran: Option<Ran>) -> Outcome {
    let mut outcome = moved(task, back(&task.envelope));
    if ran.as_ref().is_some_and(|ran| ran.timed)
        && let Some((_, fields)) = &mut outcome.fate
    {
        fields.push((field::SLOT, String::new()));
    }
    Outcome { ran, ..outcome }
}

fn without_attempt(session: &Session, task: &Claimed) -> Leaves<'static> {
    Leaves {
        kept_for: results::kept_for(&task.envelope, session.spec.keep_results),
        progress: None,
        ran: None,
    }
}

/// A task that was cancelled before it started: no attempt, no handler.
pub(crate) fn cancelled_unrun(session: &Session, task: &Claimed) -> Outcome {
    tracing::info!(queue.name = %session.queue, task.id = %task.envelope.id, "cancelled before it started");
    let leaves = without_attempt(session, task);
    Outcome {
        place: task.place,
        entry: task.entry,
        bytes: task.bytes,
        ran: None,
        keep: leaves.keep(&task.envelope, None, None),
        fate: Some((
            Fate::Cancelled {
                else_to: back(&task.envelope),
            },
            kept(&task.envelope),
        )),
    }
}

/// P6: a task that its handler puts off has not failed: it comes back when it said, with the attempt refunded.
pub(crate) fn snoozed(
    session: &Session,
    envelope: &Envelope,
    (place, entry, bytes): (usize, StreamId, usize),
    wait: Duration,
    ran: Option<Ran>,
    leaves: Leaves<'_>,
) -> Outcome {
    let due_ms = session.clock.now_us() / 1_000 + millis(wait.min(CENTURY));
    let mut fields = ended_alive(envelope);
    fields.push((
        field::SNOOZES,
        envelope.snoozes.saturating_add(1).min(MAX_COUNT).to_string(),
    ));
    if envelope.slot.is_some() {
        // It has started, and the next start is given a time of its own.
        fields.push((field::SLOT, String::new()));
    }
    Outcome {
        place,
        entry,
        bytes,
        ran,
        fate: Some((Fate::Retry { due_ms }, fields)),
        // The script may know of a mark that we do not.
        keep: leaves.keep(envelope, None, None),
    }
}

/// A task whose deadline passed before it could start.
pub(crate) fn expired(session: &Session, task: &Claimed) -> Outcome {
    let late = (session.clock.now_us() / 1_000).saturating_sub(task.envelope.expires_ms.unwrap_or(0));
    tracing::warn!(queue.name = %session.queue, task.id = %task.envelope.id, late.ms = late, "task expired before it could start; it is a dead letter");
    let mut fields = kept(&task.envelope);
    let error = format!("not started within its deadline: {late} ms late");
    fields.extend(dead_fields(session, "expired", &error, None));
    Outcome {
        place: task.place,
        entry: task.entry,
        bytes: task.bytes,
        ran: None,
        keep: without_attempt(session, task).keep(&task.envelope, None, Some(&error)),
        fate: Some((Fate::Dead, fields)),
    }
}

pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
