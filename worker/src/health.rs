//! How this worker is, for whoever starts, restarts and routes to it: `/livez` and `/readyz`.
//!
//! The answers come from the renewer's thread: a handler that blocks the runtime cannot keep them from telling so, and
//! when that thread is gone nobody answers, which is the truth as well.

mod http;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use serde::Serialize;
use switchback_common::{StoreError, Version, clock::Moment, config::redact};
use tokio_util::sync::CancellationToken;

pub(crate) use self::http::{Door, serve};
use crate::{config::WorkerConfig, session::Session};

/// A runtime that has not ticked for this long is blocked: worth a warning, and no place to send work to.
pub(crate) const BLOCKED: Duration = Duration::from_secs(2);

/// What a session last heard from Redis.
#[derive(Debug)]
pub(crate) struct Pulse(Mutex<Heard>);

#[derive(Debug)]
struct Heard {
    answered: Moment,
    gate_known: bool,
    trouble: Option<(Moment, String)>,
}

impl Pulse {
    /// Of a session that has just begun.
    pub(crate) fn new() -> Self {
        Self(Mutex::new(Heard {
            answered: Moment::now(),
            gate_known: false,
            trouble: None,
        }))
    }

    fn heard(&self) -> MutexGuard<'_, Heard> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The lease was renewed.
    pub(crate) fn answered(&self) {
        self.heard().answered = Moment::now();
    }

    /// A gate read found a sealed gate, or none.
    pub(crate) fn gate_known(&self, known: bool) {
        self.heard().gate_known = known;
    }

    /// Redis did not do what it was asked.
    pub(crate) fn trouble(&self, error: &StoreError) {
        self.heard().trouble = Some((Moment::now(), redact(&error.to_string())));
    }
}

/// The queues of this worker, as far as their health goes.
#[derive(Debug)]
pub(crate) struct Health {
    queues: Mutex<BTreeMap<String, Place>>,
    stop: CancellationToken,
    /// A runtime that is silent for longer is as good as dead: nobody renews or settles anything by it.
    dead_after: Duration,
}

#[derive(Debug)]
struct Place {
    session: Weak<Session>,
    /// Why there is no session.
    waiting: String,
}

/// What `/livez` says.
#[derive(Debug, Serialize)]
struct Live {
    alive: bool,
    reasons: Vec<String>,
    runtime_silent_ms: u64,
}

/// What `/readyz` says.
#[derive(Debug, Serialize)]
struct Ready {
    ready: bool,
    reasons: Vec<String>,
    queues: Vec<QueueReady>,
}

#[derive(Debug, Default, Serialize)]
struct QueueReady {
    queue: String,
    ready: bool,
    reasons: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<&'static str>,
    session: Option<String>,
    revision: Option<u64>,
    paused: Option<bool>,
    lease_left_ms: u64,
    answered_ms_ago: Option<u64>,
    running: BTreeMap<Version, u32>,
    last_error: Option<LastError>,
}

#[derive(Debug, Serialize)]
struct LastError {
    ms_ago: u64,
    text: String,
}

impl Health {
    /// Of a worker that serves `queues` and has not begun.
    pub(crate) fn new(queues: impl Iterator<Item = String>, config: &WorkerConfig, stop: &CancellationToken) -> Self {
        let place = || Place {
            session: Weak::new(),
            waiting: "it has not begun yet".to_owned(),
        };
        Self {
            queues: Mutex::new(queues.map(|queue| (queue, place())).collect()),
            stop: stop.clone(),
            dead_after: config.lease,
        }
    }

    fn places(&self) -> MutexGuard<'_, BTreeMap<String, Place>> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `session` has begun.
    pub(crate) fn begun(&self, session: &Arc<Session>) {
        if let Some(place) = self.places().get_mut(&session.queue.to_string()) {
            place.session = Arc::downgrade(session);
        }
    }

    /// No session of `queue` (of any, if there is none) can begin, and why.
    pub(crate) fn waiting(&self, queue: Option<&str>, why: &str) {
        let mut places = self.places();
        let concerned = places.iter_mut().filter(|(name, _)| queue.is_none_or(|q| q == *name));
        concerned.for_each(|(_, place)| place.waiting = redact(why));
    }

    fn live(&self, silent: Duration) -> Live {
        let mut reasons = Vec::new();
        if silent > self.dead_after {
            reasons.push(format!("the runtime has not run a timer for {silent:?}"));
        }
        Live {
            alive: reasons.is_empty(),
            reasons,
            runtime_silent_ms: ms(silent),
        }
    }

    fn ready(&self, silent: Duration) -> Ready {
        let mut reasons = Vec::new();
        if self.stop.is_cancelled() {
            reasons.push("stopping".to_owned());
        }
        if silent >= BLOCKED {
            reasons.push(format!("a handler has blocked the runtime for {silent:?}"));
        }
        let queues: Vec<QueueReady> = {
            let places = self.places();
            places.iter().map(|(queue, place)| place.ready(queue)).collect()
        };
        Ready {
            ready: reasons.is_empty() && queues.iter().all(|queue| queue.ready),
            reasons,
            queues,
        }
    }
}

impl Place {
    fn ready(&self, queue: &str) -> QueueReady {
        let mut said = QueueReady {
            queue: queue.to_owned(),
            ..QueueReady::default()
        };
        let session = self.session.upgrade();
        match session.filter(|session| !session.closing.is_cancelled() && !session.board.is_lost()) {
            Some(session) => describe(&session, &mut said),
            None => said.reasons.push(format!("no session: {}", self.waiting)),
        }
        said.ready = said.reasons.is_empty();
        said
    }
}

fn describe(session: &Session, said: &mut QueueReady) {
    let recent = session.config.lease / 2;
    let (rev, running) = session.board.report();
    let lease_left = session.board.lease_left();
    let ruling = session.view.newest();
    {
        let heard = session.pulse.heard();
        if heard.answered.elapsed() > recent {
            said.reasons.push("Redis has not answered lately".to_owned());
        }
        if let Some((at, text)) = &heard.trouble {
            if at.elapsed() < recent {
                said.reasons
                    .push("Redis did not do what it was asked, see last_error".to_owned());
            }
            said.last_error = Some(LastError {
                ms_ago: ms(at.elapsed()),
                text: text.clone(),
            });
        }
        if !heard.gate_known || ruling.is_none() {
            said.reasons.push("no sealed gate is known".to_owned());
        }
        said.answered_ms_ago = Some(ms(heard.answered.elapsed()));
    }
    if lease_left.is_zero() {
        said.reasons.push("the lease may have run out".to_owned());
    }
    said.paused = ruling.map(|ruling| ruling.gate.paused);
    if said.paused == Some(true) {
        said.note = Some("paused, or held because its gate went backwards: nothing starts until a person resumes it");
    }
    said.session = Some(session.id.to_string());
    said.revision = Some(rev);
    said.lease_left_ms = ms(lease_left);
    said.running = running;
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
