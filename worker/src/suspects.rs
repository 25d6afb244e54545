//! Suspects: tasks whose process died while they may have been the cause.
//!
//! Without this file one task that kills its process would take its neighbours along, over and over (P7). A suspect is
//! named in the session's record before it starts, so that of a process that dies only those it had named are blamed.
//! With one death a suspect runs beside ordinary tasks, a few at a time; with two it runs alone in its process, whatever
//! queues that serves; only a death alone makes it a dead letter (`reap.lua`).

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use switchback_common::{
    Version,
    clock::Moment,
    envelope::Envelope,
    store::session::{Lives, Suspect},
};
use switchback_gates::{Decision, Gate, decide};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::{
    attempt::{self, Claimed},
    outcome::Outcome,
    session::Session,
    streams::{HEAD, SUSPECT},
};

/// From so many deaths on a suspect runs alone.
const ALONE: u32 = 2;
/// P10: most suspects of one session at once; their names are one field of its record.
const MOST: usize = 100;
/// How long a session leaves the suspects to others when it could not start one: they go round no faster than this.
const REST: Duration = Duration::from_secs(1);
/// How long a suspect that has the process to itself may take to start: others wait.
pub(crate) const TO_START: Duration = Duration::from_secs(5);
/// How often names are sent before they are given up, some 4 s in all.
const TRIES: usize = 8;
const FIRST_RETRY: Duration = Duration::from_millis(20);
const LONGEST_RETRY: Duration = Duration::from_millis(1_500);

/// Where a task goes back to that was not settled: a suspect stays one.
pub(crate) fn back(envelope: &Envelope) -> usize {
    if envelope.deaths > 0 { SUSPECT } else { HEAD }
}

/// Who runs in this process, over all its queues: many beside each other, or one alone. While one waits to be alone, for
/// as long as the longest attempt that runs may take, nothing else starts.
#[derive(Debug)]
pub(crate) struct Company {
    /// How many run beside each other, and [`CLOSED`]: one word, so that whoever closes it knows who got in before.
    beside: AtomicUsize,
    /// The last one left while it was closed.
    left: Notify,
    /// Whose turn it is to be alone.
    turn: tokio::sync::Mutex<()>,
    /// How many want to be alone, or are.
    solos: watch::Sender<usize>,
}

/// Somebody is alone, or wants to be.
const CLOSED: usize = 1 << (usize::BITS - 1);

impl Company {
    pub(crate) fn new() -> Self {
        Self {
            beside: AtomicUsize::new(0),
            left: Notify::new(),
            turn: tokio::sync::Mutex::new(()),
            solos: watch::Sender::new(0),
        }
    }

    /// A place beside others; `None` if somebody is alone or wants to be. One atomic operation.
    pub(crate) fn beside(&self) -> Option<Beside<'_>> {
        let open = |word: usize| (word & CLOSED == 0).then_some(word + 1);
        let entered = self.beside.fetch_update(Ordering::AcqRel, Ordering::Acquire, open);
        entered.ok().map(|_| Beside(self))
    }

    /// Whether nobody is alone or wants to be: what is claimed now can start.
    pub(crate) fn is_open(&self) -> bool {
        self.beside.load(Ordering::Acquire) & CLOSED == 0
    }

    /// Waits until nobody is alone or wants to be.
    pub(crate) async fn open(&self) {
        // The sender is ours: it cannot be gone.
        let _ = self.solos.subscribe().wait_for(|solos| *solos == 0).await;
    }

    async fn alone(&self) -> Alone<'_> {
        // The bit follows the number under the number's lock.
        self.solos.send_modify(|solos| {
            *solos += 1;
            self.beside.fetch_or(CLOSED, Ordering::AcqRel);
        });
        // Counted down also if this is dropped while it waits.
        let mut alone = Alone {
            company: self,
            turn: None,
        };
        alone.turn = Some(self.turn.lock().await);
        while self.beside.load(Ordering::Acquire) != CLOSED {
            self.left.notified().await;
        }
        alone
    }
}

/// A place beside others.
#[derive(Debug)]
pub(crate) struct Beside<'a>(&'a Company);

impl Drop for Beside<'_> {
    fn drop(&mut self) {
        if self.0.beside.fetch_sub(1, Ordering::AcqRel) == CLOSED + 1 {
            // Kept for whoever looks later: one at a time waits for it.
            self.0.left.notify_one();
        }
    }
}

#[derive(Debug)]
struct Alone<'a> {
    company: &'a Company,
    turn: Option<tokio::sync::MutexGuard<'a, ()>>,
}

impl Drop for Alone<'_> {
    fn drop(&mut self) {
        self.turn = None;
        self.company.solos.send_modify(|solos| {
            *solos -= 1;
            if *solos == 0 {
                self.company.beside.fetch_and(!CLOSED, Ordering::AcqRel);
            }
        });
    }
}

/// The suspects of one session.
#[derive(Debug)]
pub(crate) struct Suspects {
    limit: usize,
    state: Mutex<State>,
    /// Number of the last list of names that Redis is known to have.
    written: tokio::sync::Mutex<u64>,
}

#[derive(Debug)]
struct State {
    /// Suspects that wait to be alone, run, or are not forgotten yet.
    inside: usize,
    names: Vec<Suspect>,
    /// Number of the list of names.
    number: u64,
    rest_until: Moment,
}

/// One of the few places for suspects.
#[derive(Debug)]
struct Ticket<'a>(&'a Session);

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        let suspects = &self.0.suspects;
        let was_full = {
            let mut state = suspects.state();
            state.inside -= 1;
            state.inside + 1 == suspects.limit
        };
        if was_full {
            // The suspects may be read again.
            self.0.ruling_changed.notify_waiters();
        }
    }
}

impl Suspects {
    /// Of a session that runs `concurrency` tasks at once: a tenth of them may be suspects.
    pub(crate) fn new(concurrency: usize) -> Self {
        Self {
            limit: (concurrency / 10).clamp(1, MOST),
            state: Mutex::new(State {
                inside: 0,
                names: Vec::new(),
                number: 0,
                rest_until: Moment::long_ago(),
            }),
            written: tokio::sync::Mutex::new(0),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many may be claimed now.
    pub(crate) fn room(&self) -> usize {
        let state = self.state();
        match Moment::now() >= state.rest_until {
            true => self.limit.saturating_sub(state.inside),
            false => 0,
        }
    }

    /// Leaves the suspects to others for a while.
    pub(crate) fn rest(&self) {
        self.state().rest_until = Moment::now() + REST;
    }

    fn enter<'a>(&self, session: &'a Session) -> Option<Ticket<'a>> {
        let mut state = self.state();
        let enters = state.inside < self.limit;
        state.inside += usize::from(enters);
        enters.then(|| Ticket(session))
    }

    fn change(&self, change: impl FnOnce(&mut Vec<Suspect>)) {
        let mut state = self.state();
        change(&mut state.names);
        state.number += 1;
    }

    /// Writes the names as they are now, whatever changed meanwhile in one go. Returns whether Redis has them.
    async fn write(&self, session: &Session, stop: &CancellationToken) -> bool {
        let mine = self.state().number;
        let mut written = self.written.lock().await;
        let mut wait = FIRST_RETRY;
        for _ in 0..TRIES {
            if *written >= mine {
                return true;
            }
            if session.board.is_lost() || stop.is_cancelled() {
                return false;
            }
            let (number, names) = {
                let state = self.state();
                (state.number, state.names.clone())
            };
            match session.sessions.name_suspects(&session.id, number, &names).await {
                Ok(Lives::Lost) => session.lose(),
                Ok(Lives::Yes | Lives::Revived) => *written = number,
                Err(error) => {
                    tracing::warn!(queue.name = %session.queue, %error, "cannot name the suspects that run here");
                    let _ = tokio::time::timeout(wait, stop.cancelled()).await;
                    wait = (wait * 2).min(LONGEST_RETRY);
                }
            }
        }
        *written >= mine
    }
}

/// What a suspect holds from before its start check until it has ended: its name in the session's record, and the
/// process, if it runs alone there.
#[derive(Debug)]
pub(crate) struct Pass<'a> {
    ticket: Ticket<'a>,
    name: Suspect,
    alone: Option<Alone<'a>>,
}

/// Why a suspect gets no pass.
#[derive(Debug)]
pub(crate) enum Barred {
    /// It goes to the stream at this place.
    Elsewhere(usize),
    /// It will never start.
    Over(Box<Outcome>),
    /// The session is lost: the task is somebody else's.
    Lost,
}

/// Waits until a suspect may be started, as far as its company is concerned.
///
/// # Errors
/// Where it goes instead.
pub(crate) async fn admit<'a>(session: &'a Session, task: &Claimed) -> Result<Pass<'a>, Barred> {
    // Decided first: to be handed over, to end without a start, or to wait for a gate that cannot be read, it needs nobody
    // out of its way.
    let gate = task.obeyed.as_ref().map(|read| &read.ruling.gate);
    let version = version(session, task, gate)?;
    let ticket = session.suspects.enter(session);
    let ticket = ticket.ok_or(Barred::Elsewhere(SUSPECT))?;
    let mut alone = None;
    if task.envelope.deaths < ALONE {
        tokio::select! {
            biased;
            () = session.company.open() => {}
            () = session.closing.cancelled() => return Err(barred(session)),
        }
    } else {
        tracing::warn!(
            queue.name = %session.queue, task.id = %task.envelope.id, task.deaths = task.envelope.deaths,
            "this task may have killed its process: it will run alone in this one; nothing else starts until it has ended"
        );
        tokio::select! {
            biased;
            // Given up when the session stops, and when it is lost.
            place = session.company.alone() => alone = Some(place),
            () = session.closing.cancelled() => return Err(barred(session)),
            why = turned_away(session, task) => return Err(why),
        }
    }
    let name = Suspect {
        stream: session.streams.get(task.place).key,
        entry: task.entry,
        alone: alone.is_some().then_some(version),
    };
    session.suspects.change(|names| names.push(name.clone()));
    let pass = Pass { ticket, name, alone };
    if session.suspects.write(session, &session.closing).await {
        return Ok(pass);
    }
    pass.end().await;
    session.suspects.rest();
    Err(barred(session))
}

impl Pass<'_> {
    pub(crate) fn is_alone(&self) -> bool {
        self.alone.is_some()
    }

    /// The attempt has ended.
    pub(crate) async fn end(self) {
        let session = self.ticket.0;
        session.suspects.change(|names| names.retain(|name| *name != self.name));
        // P7: before anything else starts here: of a later death it is not the cause.
        session.suspects.write(session, &session.abandon).await;
    }
}

/// Passes when a suspect that waits to be alone could not start any more.
async fn turned_away(session: &Session, task: &Claimed) -> Barred {
    loop {
        let changed = session.ruling_changed.notified();
        let ruling = session.view.newest();
        if let Err(why) = version(session, task, ruling.as_ref().map(|ruling| &ruling.gate)) {
            return why;
        }
        // P7: a pause, a flip or a cancellation ends the wait of all others, too.
        let _ = tokio::time::timeout(REST, changed).await;
    }
}

/// The version that `task` will run on, if the gate stays as it is.
fn version(session: &Session, task: &Claimed, gate: Option<&Gate>) -> Result<Version, Barred> {
    if let Some(outcome) = attempt::over(session, task) {
        return Err(Barred::Over(outcome));
    }
    let elsewhere = |place| {
        session.suspects.rest();
        Err(Barred::Elsewhere(place))
    };
    let Some(gate) = gate else {
        return elsewhere(SUSPECT);
    };
    let circuits = &session.spec.circuits;
    let envelope = &task.envelope;
    match decide(gate, &session.spec.task_type, &envelope.headers, || {
        envelope.routing_key()
    }) {
        Decision::Hold => elsewhere(SUSPECT),
        Decision::Run(version) if !session.spec.handlers.contains_key(version) || circuits.holds(version) => {
            elsewhere(session.streams.lane(version))
        }
        Decision::Run(version) => Ok(version.clone()),
    }
}

/// P6: back as it was, if it is still ours to give back.
fn barred(session: &Session) -> Barred {
    match session.board.is_lost() {
        true => Barred::Lost,
        false => Barred::Elsewhere(SUSPECT),
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{FutureExt as _, poll};

    use super::*;

    #[tokio::test]
    async fn one_is_alone_and_nobody_gets_in_before() {
        let company = Company::new();
        let (one, two) = (company.beside().unwrap(), company.beside().unwrap());
        let mut first = Box::pin(company.alone());
        let mut second = Box::pin(company.alone());
        assert!(poll!(&mut first).is_pending() && poll!(&mut second).is_pending());
        assert!(
            company.beside().is_none() && !company.is_open(),
            "one waits to be alone"
        );
        drop(one);
        assert!(poll!(&mut first).is_pending(), "two runs");
        drop(two);
        let alone = first.await;
        assert!(poll!(&mut second).is_pending(), "not two of them at once");
        drop(alone);
        assert!(company.beside().is_none(), "another one's turn");
        drop(second.await);
        assert!(company.open().now_or_never().is_some() && company.beside().is_some());
    }

    #[tokio::test]
    async fn whoever_gives_up_waiting_lets_the_others_in() {
        let company = Company::new();
        let _one = company.beside();
        let mut gone = Box::pin(company.alone());
        assert!(poll!(&mut gone).is_pending());
        drop(gone);
        assert!(company.is_open() && company.beside().is_some());
    }
}
