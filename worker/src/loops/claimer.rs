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

use crate::{
    attempt::{self, Claimed, Message, Outcome, dead_fields},
    session::{HEAD, MAIN, Session},
};

/// How long a claim waits for a task. Short enough to notice by itself that other streams should be read.
const BLOCK: Duration = Duration::from_secs(1);
/// Most entries of one claim: XREADGROUP is one command, and Redis serves nobody else meanwhile.
const MAX_CLAIM: usize = 500;
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
    let mut idle = false;
    loop {
        if session.closing.is_cancelled() {
            return Ok(());
        }
        let freed = session.slots.freed.notified();
        let free = session.slots.free();
        if free == 0 {
            tokio::select! {
                () = freed => {}
                () = session.closing.cancelled() => {}
            }
            continue;
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
        if idle && !first {
            tokio::select! {
                () = session.busy.notified() => {}
                () = session.closing.cancelled() => {}
            }
            idle = false;
            continue;
        }
        let sent = Moment::now();
        session.claim_sent(sent);
        let claimed = if idle {
            wait(session, claimer, client_id, &places, free, changed).await
        } else {
            claim_now(session, claimer, &plan.split(&places, free.min(MAX_CLAIM))).await
        };
        let claimed = claimed.inspect_err(|_| session.claim_returned(sent))?;
        *retry = FIRST_RETRY;
        let count = claimed.len();
        plan.learn(&claimed);
        idle = count == 0;
        if count > 1 && first {
            session.busy.notify_one();
        }
        take(session, claimed).await;
        session.claim_returned(sent);
    }
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
    changed: impl Future<Output = ()>,
) -> Result<Claim, StoreError> {
    #[cfg(feature = "faults")]
    let looked = match session.config.faults.gate_before_claim {
        true => Some(claimer.look().await?),
        false => None,
    };
    let count = (free.min(MAX_CLAIM) / places.len()).max(1);
    let waiting = claimer.wait(places, count, BLOCK);
    tokio::pin!(waiting);
    let claim = tokio::select! {
        claim = &mut waiting => claim,
        // Never dropped half-way: a claim that was sent is always waited for, only its block is cut short.
        () = changed => {
            unblock(&session.store, client_id).await?;
            waiting.await
        }
        () = session.closing.cancelled() => {
            unblock(&session.store, client_id).await?;
            waiting.await
        }
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
    let lanes = versions
        .iter()
        .enumerate()
        .filter(|(_, version)| gate.reaches(version))
        .map(|(n, _)| HEAD + 1 + n);
    let lanes: Vec<usize> = lanes.collect();
    if lanes.is_empty() {
        return Vec::new();
    }
    // Head first: it holds what was taken from somebody.
    std::iter::once(HEAD).chain(lanes).chain([MAIN]).collect()
}

/// How slots are split among streams: COUNT is per stream, so they are never summed.
#[derive(Debug)]
struct Plan {
    /// Whether a stream gave all it was asked for last time.
    hot: Vec<bool>,
    asked: Vec<usize>,
    turn: usize,
}

impl Plan {
    fn new(streams: usize) -> Self {
        Self {
            hot: vec![false; streams],
            asked: vec![0; streams],
            turn: 0,
        }
    }

    /// Splits `free` slots: side streams get one each while they are quiet, an equal part while they are not; the
    /// main stream, last in `places`, gets the rest.
    fn split(&mut self, places: &[usize], free: usize) -> Vec<Want> {
        self.asked.fill(0);
        let mut wants = Vec::with_capacity(places.len());
        if free < places.len() {
            // Fewer slots than streams: take turns, so that none waits for ever.
            self.turn = self.turn.wrapping_add(1);
            for n in 0..free {
                let stream = places[(self.turn + n) % places.len()];
                wants.push(Want { stream, count: 1 });
            }
        } else {
            let sides = &places[..places.len() - 1];
            let hot = sides.iter().filter(|&&s| self.hot[s]).count();
            let part = (free / (hot + 1)).max(1);
            let mut left = free;
            for &stream in sides {
                let count = if self.hot[stream] {
                    part.min(left.saturating_sub(1)).max(1)
                } else {
                    1
                };
                left = left.saturating_sub(count);
                wants.push(Want { stream, count });
            }
            if let Some(&stream) = places.last()
                && left > 0
            {
                wants.push(Want { stream, count: left });
            }
        }
        for want in &wants {
            self.asked[want.stream] = want.count;
        }
        wants
    }

    fn learn(&mut self, claim: &Claim) {
        for (stream, asked) in self.asked.iter().enumerate().filter(|(_, asked)| **asked > 0) {
            let got = claim
                .entries
                .iter()
                .find(|(s, _)| *s == stream)
                .map_or(0, |(_, e)| e.len());
            self.hot[stream] = got >= *asked;
        }
    }
}

/// Takes what was claimed into attempts.
pub(crate) async fn take(session: &Arc<Session>, claim: Claim) {
    let claimed = Moment::now();
    let count = claim.len();
    let obeyed = match claim.read {
        Some(read) => {
            session.note_read(read.sent, read.time_us, read.lease);
            let lease_gone = read.lease.is_none();
            match session.view.obey(read).await {
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
    session.slots.take(count);
    for (place, entries) in claim.entries {
        let fresh = session.held.add(entries.iter().map(|e| (place, e.id)));
        for (entry, fresh) in entries.into_iter().zip(fresh) {
            if fresh {
                dispatch(session, place, entry, claimed, obeyed.clone());
            } else {
                // Found again while it was being settled: it is in good hands.
                session.slots.ended();
                session.slots.settled(1);
            }
        }
    }
}

/// Makes a ruling that a claim discovered everybody's.
fn note_ruling(session: &Session, obeyed: &Obeyed) {
    if session.board.obey(obeyed.ruling.rev) {
        session.gate_touched.notify_one();
        session.ruling_changed.notify_waiters();
    }
}

fn dispatch(session: &Arc<Session>, place: usize, entry: Entry, claimed: Moment, obeyed: Option<Obeyed>) {
    let info = session.streams.get(place);
    if place == MAIN {
        session.note_tip(entry.id);
    }
    let Some(fields) = entry.fields else {
        // Pending, but deleted by somebody: there is nothing left to run. Acknowledge it.
        tracing::error!(queue.name = %session.queue, entry = %entry.id, "a claimed entry was deleted by somebody; nothing to run");
        finish_unrun(session, place, entry.id, None);
        return;
    };
    let has_id = fields.iter().any(|(name, _)| name == field::ID.as_bytes());
    match Envelope::decode(info.salt, entry.id, fields, session.spec.max_payload) {
        Ok(envelope) => {
            let task = Claimed {
                place,
                entry: entry.id,
                envelope,
                claimed,
                obeyed,
            };
            session.attempts.spawn(attempt::run(Arc::clone(session), task));
        }
        Err(malformed) => {
            // Set aside with its bytes: Redis copies the entry as it is.
            tracing::error!(queue.name = %session.queue, entry = %entry.id, "malformed task is a dead letter: {malformed}");
            let mut fields = dead_fields(session, "malformed", &malformed.to_string(), None);
            if !has_id {
                fields.push((field::ID, TaskId::of_entry(info.salt, entry.id).to_string()));
            }
            finish_unrun(session, place, entry.id, Some((Fate::Dead, fields)));
        }
    }
}

fn finish_unrun(session: &Session, place: usize, entry: StreamId, fate: Option<(Fate, Vec<(&'static str, String)>)>) {
    session.slots.ended();
    let outcome = Outcome {
        place,
        entry,
        ran: None,
        fate,
    };
    let _ = session.outcomes.send(Message::Outcome(outcome));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_split_and_never_summed() {
        let mut plan = Plan::new(4);
        for free in 1..50 {
            for hot in 0..16_u32 {
                plan.hot = (0..4).map(|n| hot & (1 << n) != 0).collect();
                let wants = plan.split(&[1, 2, 3, 0], free);
                let total: usize = wants.iter().map(|w| w.count).sum();
                assert!(
                    total <= free && wants.iter().all(|w| w.count > 0),
                    "{free} {hot} {wants:?}"
                );
                assert!(total > 0);
            }
        }
    }

    #[test]
    fn few_slots_take_turns() {
        let mut plan = Plan::new(4);
        let mut seen = [0; 4];
        for _ in 0..4 {
            for want in plan.split(&[1, 2, 3, 0], 1) {
                seen[want.stream] += 1;
            }
        }
        assert_eq!(seen, [1; 4]);
    }

    #[test]
    fn a_pause_or_a_foreign_version_reads_nothing() {
        let versions = ["v1".parse().unwrap(), "v2".parse().unwrap()];
        let mut gate = Gate::new("v2".parse().unwrap());
        assert_eq!(readable_under(&gate, &versions), [HEAD, HEAD + 2, MAIN]);
        assert!(readable_under(&gate, &versions[..1]).is_empty());
        gate.paused = true;
        assert!(readable_under(&gate, &versions).is_empty());
    }
}
