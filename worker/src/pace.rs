//! Rates: how often tasks of the queue, and tasks of one key, start.
//!
//! Before a claim a worker looks how many starts the queue's rate has left, and claims no more: tasks that may not start
//! stay in line. It takes them after the claim, as many as it needs; if others were faster, a task waits for its time. A
//! key is known only after the claim; a task beyond its key's rate goes to the delayed set with a time of its own, and
//! its slot to the next task. What will never start takes no start: a queue that is behind would do nothing but let its
//! tasks expire.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use switchback_common::{
    clock::Moment,
    envelope::field,
    store::{settle::Fate, throttle},
    throttle::{Rate, Throttle},
};

use crate::{
    attempt::{self, Claimed},
    ends,
    outcome::{Message, Outcome},
    session::Session,
    slots::Reserved,
    streams::HEAD,
    suspects::back,
};

/// Throttle are looked at this often: a longer wait may be one for a rate that has changed.
const LONGEST_WAIT: Duration = Duration::from_secs(1);
const RETRY: Duration = Duration::from_millis(100);
/// How late a task of a limited key may come and still start on the time it was given.
const LATE_MS: u64 = 1_000;

/// The rates in force.
#[derive(Debug, Default)]
pub(crate) struct Pacer {
    /// Whether there is a rate; read per claim, without a lock.
    limited: AtomicBool,
    keyed: AtomicBool,
    limits: Mutex<Throttle>,
}

impl Pacer {
    pub(crate) fn set(&self, limits: Throttle) {
        *self.limits.lock().unwrap_or_else(PoisonError::into_inner) = limits;
        self.limited.store(limits.rate.is_some(), Ordering::Release);
        self.keyed.store(limits.rate_per_key.is_some(), Ordering::Release);
    }

    fn limits(&self) -> Throttle {
        *self.limits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn rate(&self) -> Option<Rate> {
        self.is_limited().then(|| self.limits().rate)?
    }

    /// Whether there is a rate of the queue.
    pub(crate) fn is_limited(&self) -> bool {
        self.limited.load(Ordering::Acquire)
    }

    /// Whether `task` must be given a time by its key's rate first.
    pub(crate) fn by_key(&self, session: &Session, task: &Claimed) -> bool {
        self.keyed.load(Ordering::Acquire) && task.envelope.key.is_some() && {
            let now_ms = session.clock.now_us() / 1_000;
            // Else all that came due in a long pause would start at once.
            let paid = |(attempt, due): (u32, u64)| attempt == task.envelope.attempt && now_ms <= due + LATE_MS;
            !task.envelope.slot.is_some_and(paid)
        }
    }
}

/// Starts taken from the queue's rate for one claim.
#[derive(Debug)]
struct Starts {
    now: usize,
    /// The first of those to come.
    next: Moment,
    every: Duration,
}

impl Starts {
    /// Uses one; tells its time, if that is to come.
    fn spend(&mut self) -> Option<Moment> {
        if self.now > 0 {
            self.now -= 1;
            return None;
        }
        let at = self.next;
        self.next = at + self.every;
        Some(at)
    }
}

/// Keeps as many of `slots` as the rate has starts left now. `None`: it had none; time has passed.
pub(crate) async fn before_claim<'a>(session: &Session, mut slots: Reserved<'a>, idle: bool) -> Option<Reserved<'a>> {
    let Some(rate) = session.pacer.rate() else {
        return Some(slots);
    };
    if idle {
        // What is left when a task comes is not known now: a single one waits for its time, if it has to.
        slots.shrink(1);
    }
    let wait = match throttle::pace(&session.store, &session.queue, rate, 0).await {
        Ok(paced) if paced.now > 0 => {
            slots.shrink(paced.now);
            return Some(slots);
        }
        Ok(paced) => paced.next.min(LONGEST_WAIT),
        Err(error) => {
            tracing::debug!(queue.name = %session.queue, %error, "cannot ask the queue's rate; claiming nothing");
            RETRY
        }
    };
    drop(slots);
    tokio::select! {
        () = tokio::time::sleep(wait) => {}
        () = session.closing.cancelled() => {}
    }
    None
}

/// Gives claimed tasks their times, by their keys, then by the queue; at most `slots` can start. Returns those that start
/// now or wait for a moment; the others are on their way.
pub(crate) async fn give_times(session: &Session, tasks: Vec<Claimed>, slots: usize) -> Vec<Claimed> {
    let over = |task: &Claimed| match attempt::over(session, task) {
        Some(outcome) => session.outcomes.send(Message::Outcome(*outcome)).is_ok(),
        None => false,
    };
    let tasks = tasks.into_iter().filter(|task| !over(task));
    let (keyed, mut tasks): (Vec<_>, Vec<_>) = tasks.partition(|task| session.pacer.by_key(session, task));
    if !keyed.is_empty() {
        tasks.extend(by_key(session, keyed).await);
    }
    let count = tasks.len().min(slots);
    if count > 0
        && let Some(mut starts) = after_claim(session, count).await
    {
        tasks
            .iter_mut()
            .take(count)
            .for_each(|task| task.not_before = starts.spend());
    }
    tasks
}

/// Takes starts for `count` tasks that are claimed. `None`: there is no rate.
async fn after_claim(session: &Session, count: usize) -> Option<Starts> {
    let rate = session.pacer.rate()?;
    let every = Duration::from_nanos(rate.interval_ns());
    loop {
        match throttle::pace(&session.store, &session.queue, rate, count).await {
            Ok(paced) => {
                return Some(Starts {
                    now: paced.now,
                    next: Moment::now() + paced.next,
                    every,
                });
            }
            Err(error) => {
                tracing::debug!(queue.name = %session.queue, %error, "cannot ask the queue's rate; claimed tasks wait");
            }
        }
        if !pause(session).await {
            // Nothing starts any more: the tasks are on their way back.
            return Some(Starts {
                now: 0,
                next: Moment::now() + LONGEST_WAIT,
                every,
            });
        }
    }
}

/// Waits a little before another try; false when the session closes.
async fn pause(session: &Session) -> bool {
    tokio::select! {
        () = tokio::time::sleep(RETRY) => !session.closing.is_cancelled(),
        () = session.closing.cancelled() => false,
    }
}

/// Waits for a start's time; false when the session closes before, or the rate changes: another may have it start sooner.
pub(crate) async fn wait_until(session: &Session, at: Moment) -> bool {
    let rate = session.pacer.rate();
    loop {
        let left = at.since(Moment::now());
        tokio::select! {
            biased;
            () = session.closing.cancelled() => return false,
            () = tokio::time::sleep(left.min(LONGEST_WAIT)) => {}
        }
        if left <= LONGEST_WAIT {
            return true;
        }
        if session.pacer.rate() != rate {
            return false;
        }
    }
}

/// Gives each task its time by its key's rate. Returns those that may start now; the others are on their way to the
/// delayed set, with no attempt burnt (P6), and pass the gate when their time has come (P5).
async fn by_key(session: &Session, tasks: Vec<Claimed>) -> Vec<Claimed> {
    let Some(rate) = session.pacer.limits().rate_per_key else {
        return tasks;
    };
    let keys: Vec<(&str, Option<u64>)> = tasks
        .iter()
        .map(|task| (task.envelope.key.as_deref().unwrap_or(""), task.envelope.expires_ms))
        .collect();
    let (waits, now_ms) = loop {
        match throttle::pace_keys(&session.store, &session.queue, rate, &keys).await {
            Ok(paced) => break paced,
            Err(error) => {
                tracing::debug!(queue.name = %session.queue, %error, "cannot ask the rate of keys; claimed tasks wait");
            }
        }
        if !pause(session).await {
            for task in tasks {
                let _ = session
                    .outcomes
                    .send(Message::Outcome(ends::moved(&task, back(&task.envelope))));
            }
            return Vec::new();
        }
    };
    let mut now = Vec::with_capacity(tasks.len());
    for (task, wait) in tasks.into_iter().zip(waits) {
        if wait == 0 {
            now.push(task);
        } else {
            let outcome = Message::Outcome(delayed(&task, now_ms + wait));
            let _ = session.outcomes.send(outcome);
        }
    }
    now
}

fn delayed(task: &Claimed, due_ms: u64) -> Outcome {
    let mut outcome = ends::moved(task, HEAD);
    if let Some((fate, fields)) = &mut outcome.fate {
        *fate = Fate::Retry { due_ms };
        // Else it comes back to expire: no time was left for it.
        if task.envelope.expires_ms.is_none_or(|at| due_ms < at) {
            fields.push((field::SLOT, format!("{} {due_ms}", task.envelope.attempt)));
        }
    }
    outcome
}
