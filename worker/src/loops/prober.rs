//! The prober: answers whether a version of this worker can read what waits, when somebody asks before it is routed to it.
//!
//! It decodes copies, runs nothing and claims nothing. Nobody asks: it sends no command.

use std::{
    panic::AssertUnwindSafe,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use switchback_common::{
    StoreError,
    envelope::clip,
    store::probe::{self, LISTENS, Question, Taken, Unreadable},
};
use tokio::sync::Notify;

use crate::{handler::ErrorKind, session::Session};

/// How soon it is looked whether somebody else has answered, or Redis does again.
const LOOK_AGAIN: Duration = Duration::from_millis(200);
/// P10: and how often.
const LOOKS: u128 = LISTENS.as_millis() / LOOK_AGAIN.as_millis();
const MAX_ERROR_BYTES: usize = 300;

/// What a session has heard of questions.
#[derive(Debug, Default)]
pub(crate) struct Probes {
    known: AtomicU64,
    asked: Notify,
}

impl Probes {
    /// Takes in what a gate read said: `probe` is the time of the latest question, `now_us` that of the read.
    pub(crate) fn heard(&self, probe: u64, now_us: u64) {
        let news = self.known.swap(probe, Ordering::Relaxed) != probe;
        // To a session that has just begun every question is news; nobody listens to the answer of an old one.
        let listens = u64::try_from(LISTENS.as_micros()).unwrap_or(u64::MAX);
        if news && now_us.saturating_sub(probe) <= listens {
            self.asked.notify_one();
        }
    }
}

/// Answers until the session is over.
pub(crate) async fn run(session: Arc<Session>) {
    loop {
        tokio::select! {
            () = session.closing.cancelled() => return,
            () = session.probes.asked.notified() => {}
        }
        for _ in 0..LOOKS {
            match answer(&session).await {
                Ok(Looked::Over) => break,
                // Whoever has taken it may die before it answers.
                Ok(Looked::Wait) => {}
                Err(error) => {
                    tracing::debug!(queue.name = %session.queue, %error, "cannot answer a readiness question")
                }
            }
            tokio::select! {
                () = session.closing.cancelled() => return,
                () = tokio::time::sleep(LOOK_AGAIN) => {}
            }
        }
    }
}

enum Looked {
    Over,
    Wait,
}

async fn answer(session: &Session) -> Result<Looked, StoreError> {
    let question = match probe::take(&session.store, &session.queue, &session.id, &session.spec.versions).await? {
        Taken::Yours(question) => question,
        Taken::Wait => return Ok(Looked::Wait),
        Taken::None => return Ok(Looked::Over),
    };
    let unreadable = read(session, &question).await;
    tracing::info!(
        queue.name = %session.queue, task.version = %question.version, tasks = question.payloads.len(),
        unreadable = unreadable.len(), "answered whether this version reads what waits"
    );
    probe::answer(&session.store, &session.queue, &question.id, &session.id, &unreadable).await?;
    Ok(Looked::Over)
}

async fn read(session: &Session, question: &Question) -> Vec<Unreadable> {
    let Some(handler) = session.spec.handlers.get(&question.version) else {
        return Vec::new(); // taken for one of our versions only
    };
    let mut out = Vec::new();
    for (at, payload) in question.payloads.iter().enumerate() {
        // P7: the decoder is the application's; it fails its own question and nothing else.
        let read = std::panic::catch_unwind(AssertUnwindSafe(|| (handler.reads)(payload)));
        let problem = match read {
            _ if payload.len() > session.spec.max_payload => Some((
                false,
                format!(
                    "payload of {} bytes, and this version takes {} at most",
                    payload.len(),
                    session.spec.max_payload
                ),
            )),
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some((error.kind == ErrorKind::Malformed, error.text)),
            Err(_) => Some((false, "its decoder panics".to_owned())),
        };
        if let Some((malformed, error)) = problem {
            out.push(Unreadable {
                at,
                malformed,
                error: clip(&error, MAX_ERROR_BYTES).to_owned(),
            });
        }
        tokio::task::yield_now().await;
    }
    out
}
