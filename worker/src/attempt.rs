//! One attempt: decide, start check, handler, outcome. And the gate reads it may need on the way.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures_util::FutureExt as _;
use switchback_common::{
    StoreError, StreamId, TaskId, Version,
    clock::Moment,
    envelope::{AttemptError, Envelope, MAX_ERROR_BYTES, clip, field},
    store::{connect::Link, log::Ended, settle::Fate},
    telemetry,
};
#[cfg(feature = "faults")]
use switchback_gates::Gate;
use switchback_gates::{Decision, Obeyed, Verdict, decide};
use tokio::sync::Mutex;
use tracing::Instrument as _;

use crate::{
    handler::{Context, ErrorKind, TaskError},
    session::{HEAD, Session},
    starts::Refusal,
};

/// What a settler is told.
#[derive(Debug)]
pub(crate) enum Message {
    /// An entry's outcome.
    Outcome(Outcome),
    /// Nothing ended, but floors moved: trim.
    Trim,
    /// Every attempt has ended: nothing will follow.
    Close,
}

/// What became of one claimed entry.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) place: usize,
    pub(crate) entry: StreamId,
    /// How large the entry is, for whoever moves it.
    pub(crate) bytes: usize,
    /// The attempt, if one ran.
    pub(crate) ran: Option<Ran>,
    /// `None`: plain done.
    pub(crate) fate: Option<(Fate, Vec<(&'static str, String)>)>,
}

/// An attempt that ran.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) task: TaskId,
    pub(crate) version: Version,
    pub(crate) attempt: u32,
    pub(crate) ended: Ended,
    pub(crate) took: Duration,
    pub(crate) rev: u64,
    pub(crate) read_us: u64,
}

/// Reads the gate again for tasks whose claim's read has grown stale, one read for all who wait.
#[derive(Debug)]
pub(crate) struct GateReader {
    slot: Mutex<(Option<Link>, Option<Obeyed>)>,
}

impl GateReader {
    pub(crate) fn new() -> Self {
        Self {
            slot: Mutex::new((None, None)),
        }
    }

    /// A gate read sent after `after`.
    pub(crate) async fn read_after(&self, session: &Session, after: Moment) -> Result<Option<Obeyed>, StoreError> {
        let mut slot = self.slot.lock().await;
        // P3: a shared read serves only tasks whose claim's reply came before it was sent.
        if let Some(shared) = &slot.1
            && shared.sent > after
        {
            return Ok(Some(shared.clone()));
        }
        let link = match slot.0.take() {
            Some(link) => link,
            None => session.store.link().await?,
        };
        let read = session.view.store().read(&link, Some(&session.id)).await?;
        slot.0 = Some(link);
        session.note_read(read.sent, read.time_us, read.lease);
        match session.view.obey(read).await? {
            Verdict::Obey(obeyed) => {
                slot.1 = Some(obeyed.clone());
                Ok(Some(obeyed))
            }
            Verdict::Missing => Ok(None),
        }
    }
}

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
    let routed = route(&session, &task).await;
    #[cfg(feature = "faults")]
    if session.config.faults.bury_recovered && task.envelope.deaths > 0 {
        session.slots.ended();
        let fields = dead_fields(&session, "poison", "its worker died", None);
        let _ = session.outcomes.send(Message::Outcome(Outcome {
            fate: Some((Fate::Dead, fields)),
            ..moved(&task, HEAD)
        }));
        return;
    }
    let outcome = match routed {
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
}

/// Decides under one gate read, and begins the attempt if it may begin.
fn route_under(session: &Session, task: &Claimed, read: &Obeyed) -> Result<Route, Refusal> {
    let gate = &read.ruling.gate;
    let decision = decide(gate, &session.spec.task_type, || task.envelope.routing_key());
    #[cfg(feature = "faults")]
    let decision = misroute(session, task, gate, decision);
    match decision {
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

/// Faults for tests: a decision that is not the gate's.
#[cfg(feature = "faults")]
fn misroute<'a>(session: &'a Session, task: &Claimed, gate: &'a Gate, decision: Decision<'a>) -> Decision<'a> {
    let faults = session.config.faults;
    let failed_on = task.envelope.errors.last().map(|error| error.version.as_str());
    let earlier = session.spec.versions.iter().find(|v| Some(v.as_str()) == failed_on);
    match decision {
        Decision::Hold if faults.start_while_paused => Decision::Run(&gate.active),
        Decision::Run(_) if faults.retry_keeps_version => earlier.map_or(decision, Decision::Run),
        _ => decision,
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

async fn execute(session: &Session, task: Claimed, version: &Version, obeyed: &Obeyed, started: Moment) -> Outcome {
    let Claimed {
        place,
        entry,
        bytes,
        mut envelope,
        ..
    } = task;
    let attempt = envelope.attempt + 1;
    let cancelled = session.cancel_handlers.child_token();
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
        #[cfg(feature = "faults")]
        evidence: crate::faults::Evidence {
            session: session.id.clone(),
            stream: session.streams.get(place).label.to_string(),
            entry,
            read_us: obeyed.time_us,
        },
        cancelled: cancelled.clone(),
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
        End::Ok => {
            let fate = None;
            #[cfg(feature = "faults")]
            let fate = (session.config.faults.done_comes_back && entry.ms % 8 == 0)
                .then(|| (Fate::Move { to: HEAD }, kept(&envelope)))
                .or(fate);
            return Outcome {
                place,
                entry,
                bytes,
                ran: ran(Ended::Done),
                fate,
            };
        }
        End::Abandoned => {
            // P6: an attempt that was cut short by a shutdown is refunded.
            let fields = kept(&envelope);
            #[cfg(feature = "faults")]
            let fields = match session.config.faults.release_burns_attempt {
                true => fields
                    .into_iter()
                    .chain([(field::ATTEMPT, attempt.to_string())])
                    .collect(),
                false => fields,
            };
            return Outcome {
                place,
                entry,
                bytes,
                ran: ran(Ended::Released),
                fate: Some((Fate::Move { to: HEAD }, fields)),
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
    }
}

enum End {
    Ok,
    Failed(TaskError),
    Abandoned,
}

async fn drive(session: &Session, payload: Vec<u8>, context: Context, version: &Version) -> End {
    let Some(handler) = session.spec.handlers.get(version) else {
        return End::Abandoned; // `route` has checked
    };
    let cancelled = context.cancelled.clone();
    let timeout = session.spec.timeout;
    // P7: a handler that panics, while being made, while running or while dropped, fails its own task and no other.
    let guarded = AssertUnwindSafe(async {
        tokio::select! {
            biased;
            ended = tokio::time::timeout(timeout, handler(payload, context)) => match ended {
                Ok(Ok(())) => End::Ok,
                // A handler that gave up because it was told to stop is not to blame.
                Ok(Err(_)) if session.cancel_handlers.is_cancelled() => End::Abandoned,
                Ok(Err(error)) => End::Failed(error),
                Err(_) => {
                    cancelled.cancel();
                    End::Failed(TaskError::failed(format!("timed out after {timeout:?}")))
                }
            },
            () = session.abandon.cancelled() => End::Abandoned,
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
    if envelope.id_written {
        return Vec::new();
    }
    vec![
        (field::ID, envelope.id.to_string()),
        (field::ENQUEUED_AT, envelope.enqueued_at_ms.to_string()),
    ]
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
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
