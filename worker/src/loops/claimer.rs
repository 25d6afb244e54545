//! The claimer: takes tasks from Redis when there are slots for them, and hands them to attempts.
//!
//! Two per queue, each with a connection of its own, so that Redis works on one claim while the other is being
//! unpacked. Only the first ever blocks: many blocked readers make every XADD slow.

use std::{sync::Arc, time::Duration};

use switchback_common::{
    StoreError, StreamId, TaskId,
    clock::Moment,
    envelope::{Envelope, Malformed, field},
    store::{
        backoff::Backoff,
        claim::{Claim, Claimer, Want, unblock},
        grumble::Grumble,
        reply::Entry,
        settle::Fate,
    },
};
use switchback_gates::{Gate, Obeyed, Verdict};
use tokio::sync::futures::Notified;

use crate::{
    attempt::{self, Claimed},
    ends::{self, dead_fields},
    outcome::{Message, Outcome},
    pace,
    plan::Plan,
    session::Session,
    slots::Reserved,
    streams::{HEAD, HIGH, LANES, LOW, MAIN, SUSPECT, StreamInfo},
    suspects,
};

/// How long a claim waits for a task. Short enough to notice by itself that other streams should be read.
const BLOCK: Duration = Duration::from_secs(1);
/// Most entries of one claim: XREADGROUP is one command, and Redis serves nobody else meanwhile.
const MAX_CLAIM: usize = 500;
/// How long a busy worker waits for more slots to be free before it claims for few.
const PATIENCE: Duration = Duration::from_millis(1);
const RETRY: Backoff = Backoff::new(Duration::from_millis(20), Duration::from_millis(1_500));

/// Claims until the session closes. `first`: this one waits on Redis when there is nothing to do.
pub(crate) async fn run(session: Arc<Session>, first: bool) {
    let (mut retry, mut grumble) = (RETRY, Grumble::default());
    while !session.closing.is_cancelled() {
        let keys = session.streams.own().into_iter().map(|s| s.key).collect();
        let claimer = match Claimer::new(&session.store, &session.queue, &session.id, keys).await {
            Ok(claimer) => claimer,
            Err(error) => {
                pause(&session, &error, &mut retry, &mut grumble).await;
                continue;
            }
        };
        match claim_until_broken(&session, &claimer, first, &mut retry).await {
            Ok(()) => return,
            // P8: a new session makes a group where nothing can run twice, and else holds and says so.
            Err(error @ StoreError::NoGroup { .. }) => {
                tracing::warn!(queue.name = %session.queue, %error, "cannot claim; beginning a new session");
                session.closing.cancel();
            }
            Err(error) => {
                // P1: what this connection claimed last may never have been seen.
                drop(claimer);
                session.look_for_lost.notify_one();
                session.postpone_reaping();
                pause(&session, &error, &mut retry, &mut grumble).await;
            }
        }
    }
}

async fn pause(session: &Session, error: &StoreError, retry: &mut Backoff, grumble: &mut Grumble) {
    session.pulse.trouble(error);
    let wait = retry.next_wait();
    if grumble.is_news() {
        tracing::warn!(queue.name = %session.queue, %error, "cannot claim; trying again and again");
    }
    tokio::select! {
        () = tokio::time::sleep(wait) => {}
        () = session.closing.cancelled() => {}
    }
}

async fn claim_until_broken(
    session: &Arc<Session>,
    claimer: &Claimer,
    first: bool,
    retry: &mut Backoff,
) -> Result<(), StoreError> {
    let client_id = claimer.client_id().await?;
    let mut plan = Plan::new(session.streams.own().len());
    // Streams asked in a row that had nothing.
    let mut quiet = 0;
    loop {
        if session.closing.is_cancelled() {
            return Ok(());
        }
        if !session.company.is_open() {
            // What is claimed now could not start: leave it to others.
            tokio::select! {
                () = session.company.open() => {}
                () = session.closing.cancelled() => {}
            }
            continue;
        }
        let changed = session.ruling_changed.notified();
        let turned = session.spec.circuits.turned.notified();
        let mut places = readable(session);
        if !first {
            // Two would count on the same room.
            places.retain(|place| *place != SUSPECT);
        }
        if places.is_empty() {
            // Paused, no gate, or nothing routed to a version of ours: tasks stay where they are (P6).
            tokio::select! {
                () = changed => {}
                () = turned => {}
                () = probe(session) => {}
                () = session.closing.cancelled() => {}
            }
            continue;
        }
        let idle = quiet >= places.len();
        if idle && !first {
            tokio::select! {
                () = session.busy.notified() => {}
                () = session.closing.cancelled() => {}
            }
            quiet = 0;
            continue;
        }
        let slots = reserve(session, idle).await;
        if slots.count() == 0 {
            continue;
        }
        let Some(mut slots) = pace::before_claim(session, slots, idle).await else {
            continue;
        };
        slots.shrink(most(session));
        if slots.count() == 0 {
            continue;
        }
        let sent = Moment::now();
        session.claim_sent(sent);
        let (asked, claimed) = if idle {
            let claimed = wait(session, claimer, client_id, &places, slots.count(), changed).await;
            (places.len(), claimed)
        } else {
            let mut wants = plan.split(&places, slots.count());
            plan.cap(&mut wants, SUSPECT, session.suspects.room());
            session.spec.circuits.trim(&mut wants);
            (wants.len(), claim_now(session, claimer, &wants).await)
        };
        let claimed = claimed.inspect_err(|_| session.claim_returned(sent))?;
        retry.reset();
        let count = claimed.len();
        plan.learn(&claimed);
        // A single task does not make a busy queue: wait for the next one at once.
        quiet = if count <= usize::from(first) { quiet + asked } else { 0 };
        if count > 1 && first {
            session.busy.notify_one();
        }
        take(session, claimed, slots).await;
        session.claim_returned(sent);
    }
}

/// Reserves slots for a claim: none if the session closes or another claimer was faster.
async fn reserve(session: &Session, idle: bool) -> Reserved<'_> {
    let slots = &session.slots;
    let freed = slots.freed.notified();
    if slots.free() == 0 {
        tokio::select! {
            () = freed => {}
            () = session.closing.cancelled() => {}
        }
    }
    let freed = slots.freed.notified();
    if !idle && (1..slots.share().min(MAX_CLAIM)).contains(&slots.free()) {
        // Nearly all run: a little patience makes for fewer and larger claims.
        tokio::select! {
            () = freed => {}
            () = tokio::time::sleep(PATIENCE) => {}
            () = session.closing.cancelled() => {}
        }
    }
    slots.reserve(MAX_CLAIM)
}

/// One claim without waiting, with the gate as it was after it.
async fn claim_now(session: &Session, claimer: &Claimer, wants: &[Want]) -> Result<Claim, StoreError> {
    #[cfg(feature = "faults")]
    if session.config.faults.gate_before_claim {
        let read = claimer.look().await?;
        return Ok(Claim {
            read: Some(read),
            ..claimer.claim(wants).await?
        });
    }
    let _ = session;
    claimer.claim(wants).await
}

/// Waits for a task, but not longer than the choice of streams is right.
async fn wait(
    session: &Session,
    claimer: &Claimer,
    client_id: u64,
    places: &[usize],
    free: usize,
    changed: Notified<'_>,
) -> Result<Claim, StoreError> {
    #[cfg(feature = "faults")]
    let looked = match session.config.faults.gate_before_claim {
        true => Some(claimer.look().await?),
        false => None,
    };
    // With fewer slots than streams one may come too many; `begin` gives it back.
    let count = (free / places.len()).max(1);
    let waiting = claimer.wait(places, count, BLOCK);
    tokio::pin!(waiting);
    tokio::pin!(changed);
    let claim = loop {
        tokio::select! {
            biased;
            claim = &mut waiting => break claim,
            () = &mut changed => {
                // Armed before looking, so that no change slips in between.
                changed.set(session.ruling_changed.notified());
                if readable(session) == places {
                    continue;
                }
            }
            () = session.closing.cancelled() => {}
        }
        // Never dropped half-way: a claim that was sent is always waited for, only its block is cut short.
        unblock(&session.store, client_id).await?;
        break waiting.await;
    };
    #[cfg(feature = "faults")]
    if let Some(looked) = looked {
        return claim.map(|claim| Claim {
            read: Some(looked),
            ..claim
        });
    }
    claim
}

/// The streams whose tasks the gate can route to a version we have.
pub(crate) fn readable(session: &Session) -> Vec<usize> {
    let Some(ruling) = session.view.newest() else {
        return Vec::new();
    };
    let suspects = session.suspects.room() > 0;
    #[cfg(feature = "faults")]
    if session.config.faults.start_while_paused {
        let gate = Gate {
            paused: false,
            ..ruling.gate.clone()
        };
        return readable_under(&gate, &session.spec.versions, suspects);
    }
    let places = readable_under(&ruling.gate, &session.spec.versions, suspects);
    session.spec.circuits.readable(places, &ruling.gate)
}

/// The most that the circuits let us claim at once.
fn most(session: &Session) -> usize {
    session
        .view
        .newest()
        .map_or(0, |ruling| session.spec.circuits.most(&ruling.gate))
}

/// Passes when a circuit may be probed.
async fn probe(session: &Session) {
    let ruling = session.view.newest();
    match ruling.and_then(|ruling| session.spec.circuits.probe_at(&ruling.gate)) {
        Some(at) => tokio::time::sleep(at.since(Moment::now())).await,
        None => std::future::pending().await,
    }
}

fn readable_under(gate: &Gate, versions: &[switchback_common::Version], suspects: bool) -> Vec<usize> {
    if gate.paused {
        return Vec::new();
    }
    if !versions.iter().any(|version| gate.reaches(version)) {
        return Vec::new();
    }
    // Every lane of ours: what lies in one of a withdrawn version passes the gate again, and a flip between our own
    // versions does not change what is read.
    let lanes = (0..versions.len()).map(|n| LANES + n);
    // Head first: it holds what was taken from somebody.
    let suspects = suspects.then_some(SUSPECT);
    let first = std::iter::once(HEAD).chain(suspects);
    first.chain(lanes).chain([HIGH, LOW, MAIN]).collect()
}

/// Takes what was claimed into attempts.
pub(crate) async fn take(session: &Arc<Session>, claim: Claim, mut slots: Reserved<'_>) {
    let claimed = Moment::now();
    let count = claim.len();
    let obeyed = match claim.read {
        Some(read) => {
            session.note_read(read.sent, read.time_us, read.lease);
            let lease_gone = read.lease.is_none();
            match session.obey(read).await {
                // P4: no lease, no decision; each attempt asks again and learns what became of it.
                Ok(Verdict::Obey(obeyed)) if !lease_gone => {
                    note_ruling(session, &obeyed);
                    Some(obeyed)
                }
                _ => None,
            }
        }
        None => None,
    };
    if count == 0 {
        return;
    }
    let limited = session.pacer.is_limited();
    let mut paced = Vec::new();
    for (place, entries) in claim.entries {
        let fresh = session.held.add(entries.iter().map(|e| (place, e.id)));
        session.slots.claimed(fresh.iter().filter(|fresh| **fresh).count());
        let stream = session.streams.get(place);
        if place == MAIN
            && let Some(newest) = entries.last()
        {
            session.note_tip(newest.id);
        }
        for (entry, fresh) in entries.into_iter().zip(fresh) {
            // Else found again while it was being settled: it is in good hands.
            if !fresh {
                continue;
            }
            let Some(task) = unpack(session, (place, &stream), entry, claimed, obeyed.clone()) else {
                continue;
            };
            match limited || session.pacer.by_key(session, &task) {
                true => paced.push(task),
                false => begin(session, &mut slots, task),
            }
        }
    }
    if !paced.is_empty() {
        for task in pace::give_times(session, paced, slots.count()).await {
            begin(session, &mut slots, task);
        }
    }
}

/// Begins an attempt, or gives the task back if there is no slot for it.
fn begin(session: &Arc<Session>, slots: &mut Reserved<'_>, task: Claimed) {
    if slots.fill() {
        session.attempts.spawn(attempt::run(Arc::clone(session), task));
    } else {
        // P6: one too many; back in line, ahead of the others.
        let outcome = ends::moved(&task, suspects::back(&task.envelope));
        let _ = session.outcomes.send(Message::Outcome(outcome));
    }
}

/// Makes a ruling that a claim discovered everybody's.
fn note_ruling(session: &Session, obeyed: &Obeyed) {
    if session.board.obey(obeyed.ruling.rev) {
        // The gatekeeper says that we obey, and then tells the claimers.
        session.gate_touched.notify_one();
    }
}

/// Makes a task of an entry; one that is none is on its way to where it belongs.
fn unpack(
    session: &Session,
    (place, info): (usize, &StreamInfo),
    entry: Entry,
    claimed: Moment,
    obeyed: Option<Obeyed>,
) -> Option<Claimed> {
    let Some(fields) = entry.fields else {
        // Pending, but deleted by somebody: there is nothing left to run. Acknowledge it.
        tracing::error!(queue.name = %session.queue, entry = %entry.id, "a claimed entry was deleted by somebody; nothing to run");
        finish_unrun(session, place, entry.id, 0, None);
        return None;
    };
    let bytes = fields.iter().map(|(name, value)| name.len() + value.len()).sum();
    let has = |name: &str| fields.iter().any(|(n, _)| n == name.as_bytes());
    let (has_id, has_time) = (has(field::ID), has(field::ENQUEUED_AT));
    match Envelope::decode(info.salt, entry.id, fields, session.spec.max_payload) {
        Ok(envelope) => Some(Claimed {
            place,
            entry: entry.id,
            bytes,
            envelope,
            claimed,
            obeyed,
            not_before: None,
        }),
        Err(Malformed::Newer { format }) => {
            // A release that knows it will run it; here it waits, unburnt (P6).
            tracing::error!(
                queue.name = %session.queue, entry = %entry.id, task.format = format,
                "a task is of a newer format than this worker knows; it waits for a worker of that release"
            );
            let mut fields = vec![];
            if !has_id {
                fields.push((field::ID, TaskId::of_entry(info.salt, entry.id).to_string()));
            }
            if !has_time {
                fields.push((field::ENQUEUED_AT, entry.id.ms.to_string()));
            }
            let to = session.streams.newer(format);
            finish_unrun(session, place, entry.id, bytes, Some((Fate::Move { to }, fields)));
            None
        }
        Err(malformed) => {
            // Set aside with its bytes: Redis copies the entry as it is.
            tracing::error!(queue.name = %session.queue, entry = %entry.id, "malformed task is a dead letter: {malformed}");
            let mut fields = dead_fields(session, "malformed", &malformed.to_string(), None);
            if !has_id {
                fields.push((field::ID, TaskId::of_entry(info.salt, entry.id).to_string()));
            }
            finish_unrun(session, place, entry.id, bytes, Some((Fate::Dead, fields)));
            None
        }
    }
}

fn finish_unrun(
    session: &Session,
    place: usize,
    entry: StreamId,
    bytes: usize,
    fate: Option<(Fate, Vec<(&'static str, String)>)>,
) {
    let outcome = Outcome {
        place,
        entry,
        bytes,
        ran: None,
        fate,
        keep: None,
    };
    let _ = session.outcomes.send(Message::Outcome(outcome));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_or_a_foreign_version_reads_nothing() {
        let versions = ["v1".parse().unwrap(), "v2".parse().unwrap()];
        let mut gate = Gate::new("v2".parse().unwrap());
        assert_eq!(
            readable_under(&gate, &versions, false),
            [HEAD, LANES, LANES + 1, HIGH, LOW, MAIN]
        );
        assert_eq!(
            readable_under(&gate, &versions, true),
            [HEAD, SUSPECT, LANES, LANES + 1, HIGH, LOW, MAIN]
        );
        assert!(readable_under(&gate, &versions[..1], true).is_empty());
        gate.paused = true;
        assert!(readable_under(&gate, &versions, true).is_empty());
    }
}
