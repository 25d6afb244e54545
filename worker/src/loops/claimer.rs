//! The claimer: takes tasks from Redis when there are slots for them, and hands them to attempts.
//!
//! Two per queue, each with a connection of its own, so that Redis works on one claim while the other is being
//! unpacked. Only the first ever blocks: many blocked readers make every XADD slow.

use std::{sync::Arc, time::Duration};

use switchback_common::{
    StoreError, StreamId, TaskId,
    clock::Moment,
    envelope::{Envelope, field},
    store::{
        claim::{Claim, Claimer, Want, unblock},
        reply::Entry,
        settle::Fate,
    },
};
use switchback_gates::{Gate, Obeyed, Verdict};
use tokio::sync::futures::Notified;

use crate::{
    attempt::{self, Claimed, dead_fields},
    outcome::{Message, Outcome},
    plan::Plan,
    session::Session,
    slots::Reserved,
    streams::{HEAD, HIGH, LANES, LOW, MAIN, StreamInfo},
};

/// How long a claim waits for a task. Short enough to notice by itself that other streams should be read.
const BLOCK: Duration = Duration::from_secs(1);
/// Most entries of one claim: XREADGROUP is one command, and Redis serves nobody else meanwhile.
const MAX_CLAIM: usize = 500;
/// How long a busy worker waits for more slots to be free before it claims for few.
const PATIENCE: Duration = Duration::from_millis(1);
const FIRST_RETRY: Duration = Duration::from_millis(20);
const LONGEST_RETRY: Duration = Duration::from_millis(1_500);

/// Claims until the session closes. `first`: this one waits on Redis when there is nothing to do.
pub(crate) async fn run(session: Arc<Session>, first: bool) {
    let mut retry = FIRST_RETRY;
    while !session.closing.is_cancelled() {
        let keys = session.streams.own().into_iter().map(|s| s.key).collect();
        let claimer = match Claimer::new(&session.store, &session.queue, &session.id, keys).await {
            Ok(claimer) => claimer,
            Err(error) => {
                pause(&session, &error, &mut retry).await;
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
                pause(&session, &error, &mut retry).await;
            }
        }
    }
}

async fn pause(session: &Session, error: &StoreError, retry: &mut Duration) {
    tracing::warn!(queue.name = %session.queue, %error, retry.after_ms = retry.as_millis(), "cannot claim");
    tokio::select! {
        () = tokio::time::sleep(*retry) => {}
        () = session.closing.cancelled() => {}
    }
    *retry = (*retry * 2).min(LONGEST_RETRY);
}

async fn claim_until_broken(
    session: &Arc<Session>,
    claimer: &Claimer,
    first: bool,
    retry: &mut Duration,
) -> Result<(), StoreError> {
    let client_id = claimer.client_id().await?;
    let mut plan = Plan::new(session.streams.own().len());
    // Streams asked in a row that had nothing.
    let mut quiet = 0;
    loop {
        if session.closing.is_cancelled() {
            return Ok(());
        }
        let changed = session.ruling_changed.notified();
        let places = readable(session);
        if places.is_empty() {
            // Paused, no gate, or nothing routed to a version of ours: tasks stay where they are (P6).
            tokio::select! {
                () = changed => {}
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
        let sent = Moment::now();
        session.claim_sent(sent);
        let (asked, claimed) = if idle {
            let claimed = wait(session, claimer, client_id, &places, slots.count(), changed).await;
            (places.len(), claimed)
        } else {
            let wants = plan.split(&places, slots.count());
            (wants.len(), claim_now(session, claimer, &wants).await)
        };
        let claimed = claimed.inspect_err(|_| session.claim_returned(sent))?;
        *retry = FIRST_RETRY;
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
    let free = slots.free();
    if free == 0 {
        tokio::select! {
            () = freed => {}
            () = session.closing.cancelled() => {}
        }
    } else if !idle && free < slots.share().min(MAX_CLAIM) {
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
    // With fewer slots than streams one may come too many; `dispatch` gives it back.
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
fn readable(session: &Session) -> Vec<usize> {
    let Some(ruling) = session.view.newest() else {
        return Vec::new();
    };
    readable_under(&ruling.gate, &session.spec.versions)
}

fn readable_under(gate: &Gate, versions: &[switchback_common::Version]) -> Vec<usize> {
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
    std::iter::once(HEAD).chain(lanes).chain([HIGH, LOW, MAIN]).collect()
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
            if fresh {
                dispatch(session, &mut slots, (place, &stream), entry, claimed, obeyed.clone());
            }
        }
    }
}

/// Makes a ruling that a claim discovered everybody's.
fn note_ruling(session: &Session, obeyed: &Obeyed) {
    if session.board.obey(obeyed.ruling.rev) {
        // The gatekeeper says that we obey, and then tells the claimers.
        session.gate_touched.notify_one();
    }
}

fn dispatch(
    session: &Arc<Session>,
    slots: &mut Reserved<'_>,
    (place, info): (usize, &StreamInfo),
    entry: Entry,
    claimed: Moment,
    obeyed: Option<Obeyed>,
) {
    let Some(fields) = entry.fields else {
        // Pending, but deleted by somebody: there is nothing left to run. Acknowledge it.
        tracing::error!(queue.name = %session.queue, entry = %entry.id, "a claimed entry was deleted by somebody; nothing to run");
        finish_unrun(session, place, entry.id, 0, None);
        return;
    };
    let bytes = fields.iter().map(|(name, value)| name.len() + value.len()).sum();
    let has_id = fields.iter().any(|(name, _)| name == field::ID.as_bytes());
    match Envelope::decode(info.salt, entry.id, fields, session.spec.max_payload) {
        Ok(envelope) => {
            let task = Claimed {
                place,
                entry: entry.id,
                bytes,
                envelope,
                claimed,
                obeyed,
            };
            if slots.fill() {
                session.attempts.spawn(attempt::run(Arc::clone(session), task));
            } else {
                // P6: one too many; back in line, ahead of the others.
                let _ = session.outcomes.send(Message::Outcome(attempt::moved(&task, HEAD)));
            }
        }
        Err(malformed) => {
            // Set aside with its bytes: Redis copies the entry as it is.
            tracing::error!(queue.name = %session.queue, entry = %entry.id, "malformed task is a dead letter: {malformed}");
            let mut fields = dead_fields(session, "malformed", &malformed.to_string(), None);
            if !has_id {
                fields.push((field::ID, TaskId::of_entry(info.salt, entry.id).to_string()));
            }
            finish_unrun(session, place, entry.id, bytes, Some((Fate::Dead, fields)));
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
            readable_under(&gate, &versions),
            [HEAD, LANES, LANES + 1, HIGH, LOW, MAIN]
        );
        assert!(readable_under(&gate, &versions[..1]).is_empty());
        gate.paused = true;
        assert!(readable_under(&gate, &versions).is_empty());
    }
}
