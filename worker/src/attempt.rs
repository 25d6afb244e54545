//! One attempt: decide, start check, handler, outcome.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures_util::FutureExt as _;
use switchback_common::{
    StreamId, Version,
    clock::Moment,
    envelope::{AttemptError, Envelope, MAX_ERROR_BYTES, clip, field},
    store::{log::Ended, results::KEEP_PROGRESS, settle::Fate},
    telemetry,
};
use switchback_gates::{Decision, Obeyed, decide};
use tracing::Instrument as _;

use crate::{
    handler::{Context, ErrorKind, TaskError},
    outcome::{Message, Outcome, Ran},
    results::{self, Leaves, Returned},
    running::Reporter,
    session::Session,
    starts::Refusal,
    streams::HEAD,
};

/// A claimed task on its way to its handler.
pub(crate) struct Claimed {
    pub(crate) place: usize,
    pub(crate) entry: StreamId,
    pub(crate) bytes: usize,
    pub(crate) envelope: Envelope,
    /// When its claim's reply was in: gate reads sent later may decide it.
    pub(crate) claimed: Moment,
    /// The gate as read after the claim, if it could be read.
    pub(crate) obeyed: Option<Obeyed>,
}

const FIRST_RETRY: Duration = Duration::from_millis(5);
const LONGEST_RETRY: Duration = Duration::from_millis(500);
/// The longest wait that a handler may ask for: a score that every clock and every double can hold.
const CENTURY: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// Takes one claimed task to its outcome.
pub(crate) async fn run(session: Arc<Session>, task: Claimed) {
    let outcome = match route(&session, &task).await {
        Some(Route::Start {
            version,
            obeyed,
            started,
        }) => {
            let outcome = execute(&session, task, &version, &obeyed, started).await;
            session.board.end(&version);
            outcome
        }
        Some(Route::Elsewhere(to)) => moved(&task, to),
        Some(Route::Cancelled) => cancelled_unrun(&session, &task),
        // The session is lost: the task is somebody else's now.
        None => {
            session.slots.ended();
            session.slots.settled(1);
            session.held.remove([(task.place, task.entry)]);
            return;
        }
    };
    session.slots.ended();
    // The settler outlives every attempt.
    let _ = session.outcomes.send(Message::Outcome(outcome));
}

enum Route {
    Start {
        version: Version,
        obeyed: Obeyed,
        started: Moment,
    },
    Elsewhere(usize),
    Cancelled,
}

/// Decides under one gate read, and begins the attempt if it may begin.
fn route_under(session: &Session, task: &Claimed, read: &Obeyed) -> Result<Route, Refusal> {
    let gate = &read.ruling.gate;
    // P3: `read` came with every mark that was made before it.
    if session.cancels.forbids(&task.envelope) {
        return Ok(Route::Cancelled);
    }
    match decide(gate, &session.spec.task_type, || task.envelope.routing_key()) {
        // P6: a pause gives the task back as it was.
        Decision::Hold => Ok(Route::Elsewhere(HEAD)),
        Decision::Run(version) if !session.spec.handlers.contains_key(version) => {
            Ok(Route::Elsewhere(session.streams.lane(version)))
        }
        // P3, P4: made here, in the spawned task, right before the handler is first polled.
        Decision::Run(version) => {
            let started = session.board.begin(read.ruling.rev, read.sent, version)?;
            Ok(Route::Start {
                version: version.clone(),
                obeyed: read.clone(),
                started,
            })
        }
    }
}

/// Decides until there is an answer that may be acted on. `None`: the session is lost.
async fn route(session: &Session, task: &Claimed) -> Option<Route> {
    let refused = match task.obeyed.as_ref().map(|read| route_under(session, task, read)) {
        Some(Ok(route)) => return Some(route),
        Some(Err(refusal)) => Some(refusal),
        None => None,
    };
    // Boxed: rare, and every attempt would carry its size.
    Box::pin(route_again(session, task, refused)).await
}

/// Reads the gate again until the task can be routed.
async fn route_again(session: &Session, task: &Claimed, mut refused: Option<Refusal>) -> Option<Route> {
    let mut after = task.claimed;
    let mut wait = FIRST_RETRY;
    loop {
        match refused {
            Some(Refusal::Lost) => return None,
            Some(Refusal::Stale) => after = Moment::now(),
            Some(Refusal::LeaseUncertain) => {
                after = Moment::now();
                let _ = tokio::time::timeout(wait, session.lease_known.notified()).await;
                wait = (wait * 2).min(LONGEST_RETRY);
            }
            None => {}
        }
        if session.board.is_lost() {
            return None;
        }
        if session.abandon.is_cancelled() {
            return Some(Route::Elsewhere(HEAD));
        }
        let read = tokio::select! {
            read = session.reader.read_after(session, after) => read,
            // P10: hundreds may wait here, one behind the other, for a Redis that does not answer.
            () = session.abandon.cancelled() => return Some(Route::Elsewhere(HEAD)),
        };
        refused = match read {
            Ok(Some(read)) => match route_under(session, task, &read) {
                Err(Refusal::Stale) => {
                    session.note_slow_read(read.sent.elapsed());
                    Some(Refusal::Stale)
                }
                Ok(route) => return Some(route),
                Err(refusal) => Some(refusal),
            },
            // P8: no gate, or no Redis: start nothing, try again.
            Ok(None) | Err(_) => {
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(LONGEST_RETRY);
                None
            }
        };
    }
}

async fn execute(
    session: &Arc<Session>,
    task: Claimed,
    version: &Version,
    obeyed: &Obeyed,
    started: Moment,
) -> Outcome {
    let Claimed {
        place,
        entry,
        bytes,
        mut envelope,
        ..
    } = task;
    let attempt = envelope.attempt + 1;
    let cancelled = session.cancel_handlers.child_token();
    let kept_for = results::kept_for(&envelope, session.spec.keep_results);
    // Entered first, then looked: a mark that comes in between finds the attempt, or the attempt finds it.
    let run = session.running.add(&envelope, &cancelled);
    if session.cancels.stops(&envelope.id, envelope.enqueued_at_ms) {
        cancelled.cancel();
    }
    let context = Context {
        id: envelope.id.clone(),
        queue: session.queue.clone(),
        version: version.clone(),
        attempt,
        deaths: envelope.deaths,
        key: envelope.key.clone(),
        enqueued_at_ms: envelope.enqueued_at_ms,
        headers: std::mem::take(&mut envelope.headers),
        started,
        gate_rev: obeyed.ruling.rev,
        cancelled,
        keeps_result: kept_for.is_some(),
        reporter: Reporter {
            session: Arc::clone(session),
            run,
            keep: kept_for.unwrap_or(KEEP_PROGRESS),
        },
    };
    let span = tracing::info_span!(
        "process", otel.name = %format_args!("process {}", session.queue), otel.kind = "consumer",
        queue.name = %session.queue, task.id = %envelope.id, task.version = %version, task.attempt = attempt,
        gate.rev = obeyed.ruling.rev,
    );
    if !context.headers.is_empty() {
        telemetry::adopt_parent(&span, &context.headers);
    }
    let payload = std::mem::take(&mut envelope.payload);
    let end = drive(session, payload, context, version).instrument(span.clone()).await;
    let took = started.elapsed();
    let leaves = Leaves {
        kept_for,
        progress: session.running.remove(run),
        ran: Some((attempt, version)),
    };
    let told_to_stop = session.cancels.stops(&envelope.id, envelope.enqueued_at_ms);
    let ran = |ended| {
        Some(Ran {
            task: envelope.id.clone(),
            version: version.clone(),
            attempt,
            ended,
            took,
            rev: obeyed.ruling.rev,
            read_us: obeyed.time_us,
        })
    };
    let error = match end {
        End::Ok(returned) => {
            let keep = leaves.keep(&envelope, returned, None);
            // Done is done: of a task that was cancelled meanwhile only the mark must go.
            let apart = keep.is_some() || told_to_stop;
            return Outcome {
                place,
                entry,
                bytes,
                ran: ran(Ended::Done),
                fate: apart.then(|| (Fate::Done, kept(&envelope))),
                keep,
            };
        }
        // P5: whatever it failed with, a cancelled task is not tried again.
        End::Failed(_) | End::Abandoned | End::Overstayed if told_to_stop => {
            session.cancels.forget(&envelope.id);
            span.in_scope(|| tracing::info!("cancelled while it ran"));
            return Outcome {
                place,
                entry,
                bytes,
                ran: ran(Ended::Cancelled),
                keep: leaves.keep(&envelope, None, None),
                fate: Some((Fate::Cancelled { else_to: HEAD }, kept(&envelope))),
            };
        }
        End::Abandoned | End::Overstayed => {
            // P6: an attempt that was cut short by a shutdown is refunded, as is one whose mark was taken back.
            return Outcome {
                place,
                entry,
                bytes,
                ran: ran(Ended::Released),
                fate: Some((Fate::Move { to: HEAD }, kept(&envelope))),
                keep: None,
            };
        }
        End::Failed(error) => error,
    };
    let next = match error.kind {
        ErrorKind::Failed => session.spec.retry.next_after(attempt, &envelope.id),
        ErrorKind::RetryAfter(wait) => (attempt < session.spec.retry.max_attempts).then_some(wait.min(CENTURY)),
        ErrorKind::Rejected | ErrorKind::Malformed => None,
    };
    let now_ms = session.clock.now_us() / 1_000;
    let mut fields = kept(&envelope);
    fields.push((field::ATTEMPT, attempt.to_string()));
    let errors = envelope.errors_with(AttemptError {
        attempt,
        version: version.to_string(),
        error: error.text.clone(),
        at_ms: now_ms,
    });
    fields.push((field::ERRORS, errors));
    let (ended, fate) = match next {
        Some(wait) => {
            span.in_scope(|| tracing::warn!(retry.after_ms = millis(wait), "attempt failed: {}", error.text));
            let due_ms = now_ms + millis(wait);
            (Ended::Retried, Fate::Retry { due_ms })
        }
        None => {
            let reason = match error.kind {
                ErrorKind::Rejected => "rejected",
                ErrorKind::Malformed => "malformed",
                ErrorKind::Failed | ErrorKind::RetryAfter(_) => "attempts",
            };
            span.in_scope(|| tracing::error!(dead.reason = reason, "task is a dead letter: {}", error.text));
            fields.extend(dead_fields(session, reason, &error.text, Some(version)));
            (Ended::Dead, Fate::Dead)
        }
    };
    Outcome {
        place,
        entry,
        bytes,
        ran: ran(ended),
        fate: Some((fate, fields)),
        // Also of a retry: the script may know of a mark that we do not.
        keep: leaves.keep(&envelope, None, Some(&error.text)),
    }
}

enum End {
    Ok(Option<Returned>),
    Failed(TaskError),
    Abandoned,
    /// Its task was cancelled, and its handler did not end in time.
    Overstayed,
}

async fn drive(session: &Session, payload: Vec<u8>, context: Context, version: &Version) -> End {
    let Some(handler) = session.spec.handlers.get(version) else {
        return End::Abandoned; // `route` has checked
    };
    let cancelled = context.cancelled.clone();
    let overstayed = session.overstayed(cancelled.clone(), context.id.clone(), context.enqueued_at_ms);
    let timeout = session.spec.timeout;
    // P7: a handler that panics, while being made, while running or while dropped, fails its own task and no other.
    let guarded = AssertUnwindSafe(async {
        tokio::select! {
            biased;
            ended = tokio::time::timeout(timeout, handler(payload, context)) => match ended {
                Ok(Ok(returned)) => End::Ok(returned),
                // A handler that gave up because it was told to stop is not to blame.
                Ok(Err(_)) if session.cancel_handlers.is_cancelled() => End::Abandoned,
                Ok(Err(error)) => End::Failed(error),
                Err(_) => {
                    cancelled.cancel();
                    End::Failed(TaskError::failed(format!("timed out after {timeout:?}")))
                }
            },
            () = session.abandon.cancelled() => End::Abandoned,
            () = overstayed => End::Overstayed,
        }
    });
    match guarded.catch_unwind().await {
        Ok(end) => end,
        Err(_) if session.abandon.is_cancelled() => End::Abandoned,
        Err(panic) => End::Failed(TaskError::failed(format!("panicked: {}", panic_text(panic.as_ref())))),
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic
        .downcast_ref::<&str>()
        .map(|s| (*s).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "without a message".to_owned());
    clip(&text, MAX_ERROR_BYTES).to_owned()
}

/// What an entry's place said, written down because the task is about to leave it.
fn kept(envelope: &Envelope) -> Vec<(&'static str, String)> {
    // Always: a mark speaks of what was enqueued before it, and the next place is younger.
    let mut fields = vec![(field::ENQUEUED_AT, envelope.enqueued_at_ms.to_string())];
    if !envelope.id_written {
        fields.push((field::ID, envelope.id.to_string()));
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

/// A task that was cancelled before it started: no attempt, no handler.
fn cancelled_unrun(session: &Session, task: &Claimed) -> Outcome {
    tracing::info!(queue.name = %session.queue, task.id = %task.envelope.id, "cancelled before it started");
    let leaves = Leaves {
        kept_for: results::kept_for(&task.envelope, session.spec.keep_results),
        progress: None,
        ran: None,
    };
    Outcome {
        place: task.place,
        entry: task.entry,
        bytes: task.bytes,
        ran: None,
        keep: leaves.keep(&task.envelope, None, None),
        fate: Some((Fate::Cancelled { else_to: HEAD }, kept(&task.envelope))),
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
