//! Gates for operators: look, change, roll back, wait until everyone obeys.

use std::{collections::BTreeMap, time::Duration};

use serde::Serialize;
use switchback_common::{
    Queue, Store, StoreError, StreamId, Version,
    clock::Moment,
    store::{
        gate::{ChangeRequest, Changed, Found, GateStore, HistoryEntry},
        session::{SessionInfo, SessionStore},
        versions,
    },
};

use crate::{
    drain::{Left, left},
    gate::{Gate, InvalidGate},
    history::Pages,
    rollback::{Target, Trail, of_ramp},
};

/// How long a wait asks again without pausing.
const ASK_AT_ONCE: Duration = Duration::from_millis(5);

/// Why a gate could not be read or changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GateError {
    /// Redis.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The sealed state makes no sense.
    #[error(transparent)]
    Invalid(#[from] InvalidGate),
    /// No worker ever joined this queue, or its gate state was lost.
    #[error("{0} has no gate: no worker has joined it yet, or its gate state was lost")]
    NoGate(Queue),
    /// Nobody knows which version was active before.
    #[error("{0} has no earlier active version to roll back to; name one with --to")]
    NothingBefore(Queue),
}

/// A gate and what is around it.
#[derive(Debug, Clone, Serialize)]
pub struct Shown {
    /// The revision in force.
    pub rev: u64,
    /// What it says.
    pub gate: Gate,
}

/// Who confirmed a revision, and who did not yet.
#[derive(Debug, Clone)]
pub struct Confirmation {
    /// How long it took, or how long was waited.
    pub took: Duration,
    /// Live sessions that obey the revision.
    pub confirmed: usize,
    /// Live sessions that have not said so yet.
    pub missing: Vec<SessionInfo>,
    /// Attempts that still run on each version, as last published by the confirmed sessions, summed.
    pub running: Vec<(Version, u64)>,
}

/// Whether what a flip left behind has ended.
#[derive(Debug, Clone)]
pub struct Drained {
    /// How long it took, or how long was waited.
    pub took: Duration,
    /// What may still run; empty: nothing.
    pub still: Vec<Left>,
}

/// The gates of one Redis.
#[derive(Debug, Clone)]
pub struct Gates {
    store: Store,
}

impl Gates {
    /// The gates reached through `store`.
    #[must_use]
    pub fn new(store: &Store) -> Self {
        Self { store: store.clone() }
    }

    /// The gate in force. Seals a pending edit first, so that what is shown is what workers obey.
    ///
    /// # Errors
    /// [`GateError::NoGate`], or Redis.
    pub async fn show(&self, queue: &Queue) -> Result<Shown, GateError> {
        let gate = GateStore::new(&self.store, queue);
        let link = self.store.link().await?;
        let read = gate.read(&link, None).await?;
        let found = match read.found {
            Found::Edited => match gate.seal().await? {
                Some((_, read)) => read.found,
                None => return Err(GateError::NoGate(queue.clone())),
            },
            found => found,
        };
        match found {
            Found::Settled(sealed) => Ok(Shown {
                rev: sealed.rev,
                gate: Gate::parse(&sealed.gate)?,
            }),
            Found::Edited | Found::Missing => Err(GateError::NoGate(queue.clone())),
        }
    }

    /// Changes a gate.
    ///
    /// # Errors
    /// When Redis does not answer. Sending the same request again is harmless.
    pub async fn change(&self, queue: &Queue, request: &ChangeRequest) -> Result<Changed, GateError> {
        Ok(GateStore::new(&self.store, queue).change(request).await?)
    }

    /// The newest `count` history entries older than `before`, newest first.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn history(
        &self,
        queue: &Queue,
        before: Option<StreamId>,
        count: usize,
    ) -> Result<Vec<HistoryEntry>, GateError> {
        Ok(GateStore::new(&self.store, queue).history(before, count).await?)
    }

    /// The whole history, page by page, newest first.
    #[must_use]
    pub fn pages(&self, queue: &Queue) -> Pages {
        Pages::new(&self.store, queue)
    }

    /// Where a rollback of `gate`, the one in force, goes. Reads no more of the history than decides it, and none of it for a
    /// ramp.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn rollback_target(&self, queue: &Queue, gate: &Gate) -> Result<Target, GateError> {
        if let Some(active) = of_ramp(gate) {
            return Ok(Target::To(active));
        }
        // Unknown is not retired: a look that fails must not stop a rollback.
        let records = versions::records(&self.store, queue).await.unwrap_or_default();
        let may_be = |version: &Version| records.get(version).is_none_or(|record| record.retired.is_none());
        let first_seen = |version: &Version| records.get(version).map(|record| record.first_seen_us);
        let (mut trail, mut pages) = (Trail::default(), self.pages(queue));
        loop {
            match trail.target(gate, may_be, first_seen) {
                Some(target) => return Ok(target),
                None => trail.add(pages.next().await?.as_deref()),
            }
        }
    }

    /// The live sessions that have each version, for "is anybody there to run it".
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn live_sessions(&self, queue: &Queue) -> Result<Vec<SessionInfo>, GateError> {
        let sessions = SessionStore::new(&self.store, queue).list().await?;
        Ok(sessions.into_iter().filter(SessionInfo::is_live).collect())
    }

    /// Every version that a worker ever registered.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn known_versions(&self, queue: &Queue) -> Result<Vec<Version>, GateError> {
        Ok(switchback_common::store::inspect::versions(&self.store, queue).await?)
    }

    /// Waits until every live session obeys `rev` or later, or has expired, for `limit` at most.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn wait(&self, queue: &Queue, rev: u64, limit: Duration) -> Result<Confirmation, GateError> {
        let sessions = SessionStore::new(&self.store, queue);
        let began = Moment::now();
        let mut pause = Duration::from_millis(1);
        loop {
            let live: Vec<SessionInfo> = sessions
                .list()
                .await?
                .into_iter()
                .filter(SessionInfo::is_live)
                .collect();
            let (confirmed, missing): (Vec<_>, Vec<_>) =
                live.into_iter().partition(|s| s.rev.is_some_and(|seen| seen >= rev));
            let took = began.elapsed();
            if missing.is_empty() || took >= limit {
                return Ok(Confirmation {
                    took,
                    running: sum_running(&confirmed),
                    confirmed: confirmed.len(),
                    missing,
                });
            }
            // The runtime's timers are no finer than a millisecond: at first the round trip itself is the pause.
            if took > ASK_AT_ONCE {
                tokio::time::sleep(pause).await;
                pause = (pause * 3 / 2).min(Duration::from_millis(20));
            }
        }
    }
}

impl Gates {
    /// Waits until nothing runs any more on versions of which `goes_on` does not say that they may start under `rev`, for
    /// `limit` at most. `tell` hears what is left at every look.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn drain(
        &self,
        queue: &Queue,
        rev: u64,
        goes_on: impl Fn(&Version) -> bool,
        limit: Duration,
        mut tell: impl FnMut(&[Left]),
    ) -> Result<Drained, GateError> {
        let sessions = SessionStore::new(&self.store, queue);
        let began = Moment::now();
        let mut pause = Duration::from_millis(2);
        loop {
            let still = left(&sessions.list().await?, rev, &goes_on);
            let took = began.elapsed();
            tell(&still);
            if still.is_empty() || took >= limit {
                return Ok(Drained { took, still });
            }
            tokio::time::sleep(pause.min(limit.saturating_sub(took))).await;
            pause = (pause * 3 / 2).min(Duration::from_millis(100));
        }
    }
}

fn sum_running(sessions: &[SessionInfo]) -> Vec<(Version, u64)> {
    let mut sum = BTreeMap::<Version, u64>::new();
    for (version, n) in sessions.iter().flat_map(SessionInfo::running) {
        *sum.entry(version).or_default() += n;
    }
    sum.into_iter().filter(|(_, n)| *n > 0).collect()
}

/// A new name for one request, so that repeating it is harmless.
#[must_use]
pub fn operation_id() -> String {
    uuid::Uuid::now_v7().to_string()
}
