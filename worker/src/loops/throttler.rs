//! The throttler: looks at the queue's limits and its retry policy, asks for this session's part of the fleet's concurrency, and says which
//! versions are held by their circuit breakers.

use std::{sync::Arc, time::Duration};

use switchback_common::{
    StoreError,
    store::{
        limits::Problem,
        policy,
        session::Lives,
        throttle::{self, Ask, Granted},
    },
    throttle::Throttle,
};

use crate::{loops::claimer, session::Session};

/// How soon a limit that was set, changed or removed is noticed.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often grants are exchanged when there is a limit.
const EXCHANGE_EVERY: Duration = Duration::from_millis(250);

#[derive(Default)]
struct Throttler {
    limits: Throttle,
    call: u64,
    problems: Vec<Problem>,
    bad_retry: Option<String>,
    open: String,
}

/// Looks until the session is over: while it only finishes what it runs, it gives back grant after grant.
pub(crate) async fn run(session: Arc<Session>) {
    let mut throttler = Throttler::default();
    while !session.board.is_lost() {
        if let Err(error) = throttler.look(&session).await {
            // The cap stays as it is; a session that has just begun starts nothing before it knows the limits.
            tracing::debug!(queue.name = %session.queue, %error, "cannot look at the queue's limits");
        }
        let wait = match throttler.limits.concurrency {
            Some(_) => EXCHANGE_EVERY,
            None => LOOK_EVERY,
        };
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            // What it reads has changed, and so has what it wants.
            () = session.ruling_changed.notified() => {}
        }
    }
}

impl Throttler {
    async fn look(&mut self, session: &Session) -> Result<(), StoreError> {
        let rules = policy::rules(&session.store, &session.queue, &self.limits).await?;
        let (found, problems) = (rules.limits.throttle, rules.limits.problems);
        // P8: one that makes no sense is no other policy than the last valid one.
        let bad_retry = match rules.retry {
            Ok(rule) => {
                session.retries.set(rule.as_ref());
                None
            }
            Err(problem) => Some(problem),
        };
        if bad_retry != self.bad_retry {
            if let Some(problem) = &bad_retry {
                tracing::error!(queue.name = %session.queue, "{problem}");
            }
            self.bad_retry = bad_retry;
        }
        if problems != self.problems {
            for Problem { text, .. } in &problems {
                tracing::error!(queue.name = %session.queue, "a limit is not obeyed: {text}");
            }
            self.problems = problems;
        }
        let last = std::mem::replace(&mut self.limits, found);
        session.pacer.set(found);
        match found.concurrency {
            None => session.slots.set_cap(session.slots.limit()),
            Some(limit) => {
                if last.concurrency.is_none() {
                    // Unlimited until now: what it could run is nobody's any more.
                    session.slots.cap_to_running();
                }
                self.exchange(session, limit).await?;
            }
        }
        self.say_open(session).await
    }

    /// Asks until there is nothing to give back.
    async fn exchange(&mut self, session: &Session, limit: u32) -> Result<(), StoreError> {
        loop {
            // P7: nor does it want any while a suspect has the process to itself.
            let places = match session.closing.is_cancelled() || !session.company.is_open() {
                true => Vec::new(),
                false => claimer::readable(session),
            };
            let streams: Vec<String> = places.iter().map(|&place| session.streams.get(place).key).collect();
            let ceiling = if places.is_empty() { 0 } else { session.slots.limit() };
            self.call += 1;
            // The cap is raised here only, so what is held now does not rise before the answer.
            let (held, running) = session.slots.held();
            let ask = Ask {
                call: self.call,
                limit,
                held,
                running,
                ceiling,
            };
            match throttle::grant(&session.store, &session.queue, &session.id, ask, &streams).await? {
                Granted::Cap(cap) => session.slots.set_cap(cap),
                Granted::Late => {}
                Granted::Lost => session.lose(),
            }
            if session.slots.held().0 >= held {
                return Ok(());
            }
        }
    }

    async fn say_open(&mut self, session: &Session) -> Result<(), StoreError> {
        let open = session.spec.circuits.open();
        let open: Vec<&str> = open.into_iter().map(|v| v.as_str()).collect();
        let open = open.join(" ");
        if open != self.open {
            if session.sessions.say_open(&session.id, &open).await? == Lives::Lost {
                session.lose();
            }
            self.open = open;
        }
        Ok(())
    }
}
