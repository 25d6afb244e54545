//! One attempt: decide, start check, handler, outcome.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures_util::FutureExt as _;
use switchback_common::{
    StreamId, Version,
    clock::Moment,
    envelope::{AttemptError, Envelope, MAX_ERROR_BYTES, clip, field},
    store::{backoff::Backoff, log::Ended, results::KEEP_PROGRESS, settle::Fate},
    telemetry,
};
#[cfg(feature = "faults")]
use switchback_gates::Gate;
use switchback_gates::{Decision, Obeyed, decide, is_placed};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument as _, Span};

use crate::{
    blocks,
    circuits::Permit,
    ends::{CENTURY, cancelled_unrun, dead_fields, ended_alive, expired, kept, millis, moved, released, snoozed},
    handler::{Context, ErrorKind, Handler, Running, TaskError},
    outcome::{Message, Outcome, Ran},
    pace,
    results::{self, Leaves, Returned},
    running::{Reporter, RunId},
    session::Session,
    starts::Refusal,
    suspects::{self, Barred, Beside, Pass, back},
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
    /// The time that the queue's rate gave it, if it has to wait.
    pub(crate) not_before: Option<Moment>,
}

/// How long a task waits for a suspect that this process runs alone, before it is left to other workers.
const WHILE_ALONE: Duration = Duration::from_millis(100);
const RETRY: Backoff = Backoff::new(Duration::from_millis(5), Duration::from_millis(500));

/// Takes one claimed task to its outcome.
#[expect(
    clippy::manual_async_fn,
    reason = "the future of an async fn would hold the task twice"
)]
pub(crate) fn run(session: Arc<Session>, mut task: Claimed) -> impl Future<Output = ()> + Send {
    // Thousands may run, and what is rare on the way is boxed: every attempt would carry its size.
    async move {
        let (mut pass, mut barred) = (None, None);
        if let Some(at) = task.not_before
            && !Box::pin(pace::wait_until(&session, at)).await
        {
            barred = Some(Barred::Elsewhere(back(&task.envelope)));
        } else if task.envelope.deaths > 0 {
            // P7: not before its time has come, for it may keep the whole process waiting.
            match Box::pin(suspects::admit(&session, &task)).await {
                Ok(admitted) => pass = Some(Box::new(admitted)),
                Err(why) => barred = Some(why),
            }
        }
        if task.envelope.deaths > 0 && barred.is_none() && session.blocks.is_on() {
            Box::pin(blocks::count_lost(&session, &task)).await;
        }
        let routed = match barred {
            None => match route_now(&session, &task, pass.as_deref()) {
                Some(route) => Some(route),
                None => Box::pin(route(&session, &task, pass.as_deref())).await,
            },
            Some(Barred::Elsewhere(to)) => Some(Route::Elsewhere(to)),
            Some(Barred::Over(outcome)) => Some(Route::Over(outcome)),
            Some(Barred::Lost) => None,
        };
        #[cfg(feature = "faults")]
        if session.config.faults.bury_recovered && task.envelope.recovered > 0 {
            session.slots.ended();
            let fields = dead_fields(&session, "poison", "its worker died", None);
            let _ = session.outcomes.send(Message::Outcome(Outcome {
                fate: Some((Fate::Dead, fields)),
                ..moved(&task, crate::streams::HEAD)
            }));
            return;
        }
        let outcome = match routed {
            Some(Route::Start(mut start)) => {
                let beside = start.beside.take();
                let (begun, handler) = begin(&session, &mut task, start);
                let end = match handler {
                    Ok(handler) => {
                        let on = (begun.start.version, begun.start.rev);
                        let driven = drive(&session, handler, &begun.cancelled, &task.envelope, on);
                        driven.instrument(begun.span.clone()).await
                    }
                    Err(end) => end,
                };
                let outcome = finish(&session, &task, begun, end);
                drop(beside);
                outcome
            }
            Some(Route::Elsewhere(to)) => moved(&task, to),
            Some(Route::Over(outcome)) => *outcome,
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
        if let Some(pass) = pass {
            Box::pin(pass.end()).await;
        }
    }
}

enum Route<'a> {
    Start(Start<'a>),
    Elsewhere(usize),
    Over(Box<Outcome>),
}

/// The end of a task that may not start whatever the gate says: it was cancelled, or its deadline has passed.
pub(crate) fn over(session: &Session, task: &Claimed) -> Option<Box<Outcome>> {
    if session.cancels.forbids(&task.envelope) {
        return Some(Box::new(cancelled_unrun(session, task)));
    }
    let at = task.envelope.expires_ms?;
    (session.clock.now_us() / 1_000 >= at).then(|| Box::new(expired(session, task)))
}

/// Leave to start an attempt, counted on the board.
struct Start<'a> {
    version: &'a Version,
    handler: &'a Handler,
    rev: u64,
    read_us: u64,
    placed: bool,
    started: Moment,
    /// Its place beside others; `None` if it runs alone.
    beside: Option<Beside<'a>>,
    permit: Permit<'a>,
}

/// Decides under one gate read, and begins the attempt if it may begin.
fn route_under<'a>(session: &'a Session, task: &Claimed, alone: bool, read: &Obeyed) -> Result<Route<'a>, Refusal> {
    let gate = &read.ruling.gate;
    // P3: `read` came with every mark that was made before it.
    if let Some(outcome) = over(session, task) {
        return Ok(Route::Over(outcome));
    }
    let envelope = &task.envelope;
    let decision = decide(gate, &session.spec.task_type, &envelope.headers, || {
        envelope.routing_key()
    });
    #[cfg(feature = "faults")]
    let decision = misroute(session, task, gate, decision);
    match decision {
        // P6: a pause gives the task back as it was.
        Decision::Hold => Ok(Route::Elsewhere(back(&task.envelope))),
        Decision::Run(version) => {
            let Some((version, handler)) = session.spec.handlers.get_key_value(version) else {
                return Ok(Route::Elsewhere(session.streams.lane(version)));
            };
            let Some(permit) = session.spec.circuits.ask(version) else {
                // P6: its version fails; it waits in its lane, where others may take it.
                return Ok(Route::Elsewhere(session.streams.lane(version)));
            };
            // P3, P4: made here, in the spawned task, right before the handler is first polled.
            let beside = match alone {
                true => None,
                false => Some(session.company.beside().ok_or(Refusal::Alone)?),
            };
            let started = session.board.begin(read.ruling.rev, read.sent, version)?;
            Ok(Route::Start(Start {
                version,
                handler,
                rev: read.ruling.rev,
                read_us: read.time_us,
                placed: session.blocks.is_on() && is_placed(gate, &envelope.headers, || envelope.routing_key()),
                started,
                beside,
                permit,
            }))
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

/// The plain way: decides under the gate as read after the claim. `None`: it takes longer.
fn route_now<'a>(session: &'a Session, task: &Claimed, pass: Option<&Pass<'_>>) -> Option<Route<'a>> {
    let read = task.obeyed.as_ref()?;
    route_under(session, task, pass.is_some_and(Pass::is_alone), read).ok()
}

/// Decides until there is an answer that may be acted on. `None`: the session is lost.
async fn route<'a>(session: &'a Session, task: &Claimed, pass: Option<&Pass<'_>>) -> Option<Route<'a>> {
    let alone = pass.is_some_and(Pass::is_alone);
    let read = task.obeyed.as_ref();
    let refused = match read.map(|read| route_under(session, task, alone, read)) {
        Some(Ok(route)) => return Some(route),
        Some(Err(refusal)) => Some(refusal),
        None => None,
    };
    let again = Box::pin(route_again(session, task, alone, refused));
    if !alone {
        return again.await;
    }
    // P7: the whole process waits for it.
    let started = tokio::time::timeout(suspects::TO_START, again).await;
    started.unwrap_or_else(|_| {
        session.suspects.rest();
        Some(Route::Elsewhere(back(&task.envelope)))
    })
}

/// Reads the gate again until the task can be routed.
async fn route_again<'a>(
    session: &'a Session,
    task: &Claimed,
    alone: bool,
    mut refused: Option<Refusal>,
) -> Option<Route<'a>> {
    let away = || Some(Route::Elsewhere(back(&task.envelope)));
    let mut after = task.claimed;
    let mut retry = RETRY;
    loop {
        match refused {
            Some(Refusal::Lost) => return None,
            Some(Refusal::Stale) => after = Moment::now(),
            Some(Refusal::LeaseUncertain) => {
                after = Moment::now();
                let _ = tokio::time::timeout(retry.next_wait(), session.lease_known.notified()).await;
            }
            // P3: the gate may change while it waits; nothing is held meanwhile.
            Some(Refusal::Alone) => {
                tokio::select! {
                    () = session.company.open() => {}
                    () = session.closing.cancelled() => {}
                    // P7: a claim that was waiting when it began brought it here; others can start it at once.
                    () = tokio::time::sleep(WHILE_ALONE) => return away(),
                }
                after = Moment::now();
            }
            None => {}
        }
        if session.board.is_lost() {
            return None;
        }
        let kept_waiting = refused == Some(Refusal::Alone) && session.closing.is_cancelled();
        if session.abandon.is_cancelled() || kept_waiting {
            return away();
        }
        let read = tokio::select! {
            read = session.reader.read_after(session, after) => read,
            // P10: hundreds may wait here, one behind the other, for a Redis that does not answer.
            () = session.abandon.cancelled() => return away(),
        };
        refused = match read {
            Ok(Some(read)) => match route_under(session, task, alone, &read) {
                Err(Refusal::Stale) => {
                    session.note_slow_read(read.sent.elapsed());
                    Some(Refusal::Stale)
                }
                Ok(route) => return Some(route),
                Err(refusal) => Some(refusal),
            },
            // P8: no gate, or no Redis: start nothing, try again.
            Ok(None) | Err(_) => {
                tokio::time::sleep(retry.next_wait()).await;
                None
            }
        };
    }
}

/// An attempt that has begun.
struct Begun<'a> {
    start: Start<'a>,
    attempt: u32,
    cancelled: CancellationToken,
    run: RunId,
    /// How long the task's result is kept, if that was asked for.
    kept_for: Option<Duration>,
    span: Span,
}

/// Makes the handler's future; `Err`: that is how the attempt ended.
fn begin<'a>(session: &Arc<Session>, task: &mut Claimed, start: Start<'a>) -> (Begun<'a>, Result<Running, End>) {
    let envelope = &mut task.envelope;
    let attempt = envelope.attempt + 1;
    let cancelled = CancellationToken::new();
    let kept_for = results::kept_for(envelope, session.spec.keep_results);
    // Entered first, then looked: a mark or a flip that comes in between finds the attempt, or the attempt finds it.
    let on = (start.version, start.rev);
    let clocked = (start.started, session.blocks.fingerprint(envelope));
    let run = session.running.add(envelope, on, clocked, &cancelled);
    if session.cancels.stops(&envelope.id, envelope.enqueued_at_ms) || session.stops.ends(on.0, on.1) {
        cancelled.cancel();
    }
    let context = Context {
        id: envelope.id.clone(),
        queue: session.queue.clone(),
        version: start.version.clone(),
        attempt,
        recovered: envelope.recovered,
        key: envelope.key.clone(),
        snoozes: envelope.snoozes,
        enqueued_at_ms: envelope.enqueued_at_ms,
        headers: std::mem::take(&mut envelope.headers),
        started: start.started,
        gate_rev: start.rev,
        #[cfg(feature = "faults")]
        evidence: crate::faults::Evidence {
            session: session.id.clone(),
            stream: session.streams.get(task.place).label.to_string(),
            entry: task.entry,
            read_us: start.read_us,
        },
        cancelled: cancelled.clone(),
        keeps_result: kept_for.is_some(),
        reporter: Reporter {
            session: Arc::clone(session),
            run,
            keep: kept_for.unwrap_or(KEEP_PROGRESS),
        },
    };
    let span = tracing::info_span!(
        "process", otel.name = %format_args!("process {}", session.queue), otel.kind = "consumer",
        queue.name = %session.queue, task.id = %envelope.id, task.version = %start.version, task.attempt = attempt,
        gate.rev = start.rev,
    );
    if !context.headers.is_empty() {
        telemetry::adopt_parent(&span, &context.headers);
    }
    let payload = std::mem::take(&mut envelope.payload);
    // P7: a handler that panics while it is made fails its own task and no other.
    let made = AssertUnwindSafe(|| span.in_scope(|| (start.handler.run)(payload, context)));
    let made = std::panic::catch_unwind(made).map_err(|panic| panicked(session, panic.as_ref()));
    let begun = Begun {
        start,
        attempt,
        cancelled,
        run,
        kept_for,
        span,
    };
    (begun, made)
}

/// What becomes of the task now that its attempt has ended.
fn finish(session: &Session, task: &Claimed, begun: Begun<'_>, end: End) -> Outcome {
    let &Claimed {
        place,
        entry,
        bytes,
        ref envelope,
        ..
    } = task;
    let Begun {
        start,
        attempt,
        run,
        kept_for,
        span,
        ..
    } = begun;
    let (version, permit) = (start.version, start.permit);
    let stopped = Moment::now();
    let (progress, counted) = session.running.remove(run);
    let leaves = Leaves {
        kept_for,
        progress,
        ran: Some((attempt, version)),
    };
    let told_to_stop = session.cancels.stops(&envelope.id, envelope.enqueued_at_ms);
    let ran = |ended| {
        Some(Ran {
            task: envelope.id.clone(),
            version: version.clone(),
            attempt,
            recovered: envelope.recovered,
            key: session.blocks.fingerprint(envelope),
            placed: start.placed,
            timed: envelope.slot.is_some(),
            ended,
            started: start.started,
            stopped,
            counted,
            rev: start.rev,
            read_us: start.read_us,
            back: back(envelope),
            enqueued_at_ms: envelope.enqueued_at_ms,
        })
    };
    // Its flip stopped it. Then a failure is none, and if its results are revoked an `Ok` is none either.
    let stopped = session.stops.ends(version, start.rev);
    let revoked = stopped && session.stops.revokes(version, start.rev);
    let error = match end {
        End::Ok(_) if revoked => return released(task, ran(Ended::Revoked)),
        End::Ok(returned) => {
            permit.ended(session, None);
            let keep = leaves.keep(envelope, returned, None);
            // Done is done: of a task that was cancelled meanwhile only the mark must go.
            let apart = keep.is_some() || told_to_stop;
            let fate = apart.then(|| (Fate::Done, kept(envelope)));
            #[cfg(feature = "faults")]
            let fate = (session.config.faults.done_comes_back && entry.ms % 8 == 0)
                .then(|| {
                    (
                        Fate::Move {
                            to: crate::streams::HEAD,
                        },
                        kept(envelope),
                    )
                })
                .or(fate);
            return Outcome {
                place,
                entry,
                bytes,
                ran: ran(Ended::Done),
                fate,
                keep,
            };
        }
        // P5: whatever it failed with, a cancelled task is not tried again.
        End::Failed(_) | End::Abandoned | End::Overstayed if told_to_stop => {
            session.cancels.forget(&envelope.id);
            span.in_scope(|| tracing::info!("cancelled while it ran"));
            let else_to = back(envelope);
            return Outcome {
                place,
                entry,
                bytes,
                ran: ran(Ended::Cancelled),
                keep: leaves.keep(envelope, None, None),
                fate: Some((Fate::Cancelled { else_to }, kept(envelope))),
            };
        }
        End::Failed(_) if revoked => return released(task, ran(Ended::Revoked)),
        End::Failed(_) if stopped => return released(task, ran(Ended::Released)),
        End::Abandoned | End::Overstayed => {
            let outcome = released(task, ran(Ended::Released));
            #[cfg(feature = "faults")]
            let outcome = match session.config.faults.release_burns_attempt {
                true => burnt(outcome, attempt),
                false => outcome,
            };
            return outcome;
        }
        End::Failed(error) => error,
    };
    if let ErrorKind::Snoozed(wait) = error.kind {
        return snoozed(
            session,
            envelope,
            (place, entry, bytes),
            wait,
            ran(Ended::Snoozed),
            leaves,
        );
    }
    permit.ended(session, Some(&error));
    let retry = session.retries.get();
    let next = match error.kind {
        ErrorKind::Failed => retry.next_after(attempt, &envelope.id),
        ErrorKind::RetryAfter(wait) => (attempt < retry.max_attempts).then_some(wait.min(CENTURY)),
        ErrorKind::Rejected | ErrorKind::Malformed | ErrorKind::Snoozed(_) => None,
    };
    let now_ms = session.clock.now_us() / 1_000;
    let mut fields = ended_alive(envelope);
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
                ErrorKind::Failed | ErrorKind::RetryAfter(_) | ErrorKind::Snoozed(_) => "attempts",
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
        keep: leaves.keep(envelope, None, Some(&error.text)),
    }
}

/// Fault for tests: counts an attempt that was given back.
#[cfg(feature = "faults")]
fn burnt(mut outcome: Outcome, attempt: u32) -> Outcome {
    if let Some((_, fields)) = &mut outcome.fate {
        fields.push((field::ATTEMPT, attempt.to_string()));
    }
    outcome
}

enum End {
    Ok(Option<Returned>),
    Failed(TaskError),
    Abandoned,
    /// Its task was cancelled or its flip stopped it, and its handler did not end in time.
    Overstayed,
}

/// Polls the handler until it ends, or is ended.
fn drive<'a>(
    session: &'a Session,
    handler: Running,
    cancelled: &'a CancellationToken,
    task: &'a Envelope,
    on: (&'a Version, u64),
) -> impl Future<Output = End> + Send + 'a {
    let timeout = session.spec.timeout;
    // P7: nor does one that panics while running, or while dropped.
    let guarded = AssertUnwindSafe(async move {
        tokio::select! {
            biased;
            ended = tokio::time::timeout(timeout, handler) => match ended {
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
            () = session.overstayed(cancelled, task, on) => End::Overstayed,
        }
    });
    let ended = guarded.catch_unwind();
    ended.map(|ended| ended.unwrap_or_else(|panic| panicked(session, panic.as_ref())))
}

fn panicked(session: &Session, panic: &(dyn std::any::Any + Send)) -> End {
    match session.abandon.is_cancelled() {
        true => End::Abandoned,
        false => End::Failed(TaskError::failed(format!("panicked: {}", panic_text(panic)))),
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
