//! What a worker obeys: gate reads go in, the ruling in force comes out.
//!
//! Pending edits are sealed on the way, and a gate that went backwards puts the queue on hold (P8).

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use switchback_common::{
    Queue, Store, StoreError,
    clock::Moment,
    store::gate::{Found, GateRead, GateStore, Hold, SealWord, Sealed, Signals},
};

use crate::gate::Gate;

const COMPLAIN_EVERY: Duration = Duration::from_secs(5);

/// A revision in force, understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ruling {
    /// Its number.
    pub rev: u64,
    /// Digest of its routing fields.
    pub digest: String,
    /// What it says.
    pub gate: Gate,
}

/// A gate read and the ruling it found.
#[derive(Debug, Clone)]
pub struct Obeyed {
    /// The ruling.
    pub ruling: Arc<Ruling>,
    /// When the read was sent: its age counts from here.
    pub sent: Moment,
    /// Redis's TIME of the read, µs: goes into the certificate.
    pub time_us: u64,
    /// What the read said of the lease, if it asked.
    pub lease: Option<Duration>,
    /// What the read said of things beside the gate: another value means that there is news.
    pub signals: Signals,
}

/// What a gate read means for a worker.
#[derive(Debug, Clone)]
pub enum Verdict {
    /// Obey this.
    Obey(Obeyed),
    /// There is no gate state: start nothing, say so (P8).
    Missing,
}

/// The gate as one worker sees it.
#[derive(Debug)]
pub struct GateView {
    store: GateStore,
    queue: Queue,
    newest: Mutex<Option<Arc<Ruling>>>,
    /// When it was last said that the gate state is missing.
    complained: Mutex<Option<Moment>>,
}

impl GateView {
    /// The gate of `queue`, nothing seen yet.
    #[must_use]
    pub fn new(store: &Store, queue: &Queue) -> Self {
        Self {
            store: GateStore::new(store, queue),
            queue: queue.clone(),
            newest: Mutex::new(None),
            complained: Mutex::new(None),
        }
    }

    /// Where the gate is.
    #[must_use]
    pub fn store(&self) -> &GateStore {
        &self.store
    }

    /// The newest ruling obeyed.
    #[must_use]
    pub fn newest(&self) -> Option<Arc<Ruling>> {
        self.newest.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes a read in. An unchanged gate costs a comparison and nothing else.
    ///
    /// # Errors
    /// When sealing or checking needed Redis and it did not answer: start nothing.
    pub async fn obey(&self, read: GateRead) -> Result<Verdict, StoreError> {
        let lease = read.lease;
        let read = match read.found {
            Found::Missing => return Ok(self.missing()),
            // P3: the seal's own answer is obeyed; it read the gate later than the claim did.
            Found::Edited => match self.seal().await? {
                Some(sealed) => sealed,
                None => return Ok(self.missing()),
            },
            Found::Settled(_) => read,
        };
        let Found::Settled(sealed) = &read.found else {
            return Ok(self.missing());
        };
        let obeyed = |ruling, read: &GateRead| {
            Verdict::Obey(Obeyed {
                ruling,
                sent: read.sent,
                time_us: read.time_us,
                lease,
                signals: read.signals,
            })
        };
        let before = self.newest();
        match before {
            Some(ruling) if ruling.rev == sealed.rev && ruling.digest == sealed.digest => Ok(obeyed(ruling, &read)),
            Some(ruling) if !self.follows(&ruling, sealed).await? => {
                match self.store.hold_if_regressed(ruling.rev, &ruling.digest).await? {
                    Hold::Unsealed => Ok(self.missing()),
                    Hold::Held(read) => {
                        tracing::error!(
                            queue.name = %self.queue, gate.rev = ruling.rev,
                            "the gate went backwards (a lost failover write?): the queue is held until somebody checks it and runs `switchback gate resume`"
                        );
                        let ruling = self.adopt(&read)?;
                        Ok(obeyed(ruling, &read))
                    }
                    // Only this read was old: another of ours had overtaken it.
                    Hold::Fine(read) => {
                        let ruling = self.adopt(&read)?;
                        Ok(obeyed(ruling, &read))
                    }
                }
            }
            _ => {
                let ruling = self.adopt(&read)?;
                Ok(obeyed(ruling, &read))
            }
        }
    }

    /// Whether `sealed` is a later revision of a history that contains `ruling`.
    async fn follows(&self, ruling: &Ruling, sealed: &Sealed) -> Result<bool, StoreError> {
        if sealed.rev <= ruling.rev {
            return Ok(false);
        }
        if sealed.prev == format!("{}:{}", ruling.rev, ruling.digest) {
            return Ok(true);
        }
        // A few entries cover the usual step of one; the script searches further back.
        let recent = self.store.history(None, 8).await?;
        Ok(recent
            .iter()
            .any(|e| e.kind == "change" && e.rev == ruling.rev && e.digest == ruling.digest))
    }

    fn adopt(&self, read: &GateRead) -> Result<Arc<Ruling>, StoreError> {
        let Found::Settled(sealed) = &read.found else {
            return Err(self.unreadable(&"nothing sealed"));
        };
        let gate = Gate::parse(&sealed.gate).map_err(|e| self.unreadable(&e))?;
        let ruling = Arc::new(Ruling {
            rev: sealed.rev,
            digest: sealed.digest.clone(),
            gate,
        });
        let mut newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        match &*newest {
            // Another read of ours was first.
            Some(current) if current.rev > ruling.rev || **current == *ruling => Ok(Arc::clone(current)),
            _ => {
                tracing::info!(queue.name = %self.queue, gate.rev = ruling.rev, "gate: {}", ruling.gate);
                *newest = Some(Arc::clone(&ruling));
                Ok(ruling)
            }
        }
    }

    async fn seal(&self) -> Result<Option<GateRead>, StoreError> {
        let Some((word, read)) = self.store.seal().await? else {
            return Ok(None);
        };
        match word {
            SealWord::Refused => tracing::warn!(
                queue.name = %self.queue,
                "an edit of the gate was refused; the sealed state stays: see `switchback gate history`"
            ),
            SealWord::Restored => tracing::error!(
                queue.name = %self.queue,
                "the gate hash was missing; the sealed state stays in force and was written back"
            ),
            SealWord::Same | SealWord::Sealed => {}
        }
        Ok(Some(read))
    }

    fn missing(&self) -> Verdict {
        let mut complained = self.complained.lock().unwrap_or_else(PoisonError::into_inner);
        // Loudly, but not once per waiting task.
        if complained.is_some_and(|at| at.elapsed() < COMPLAIN_EVERY) {
            return Verdict::Missing;
        }
        *complained = Some(Moment::now());
        tracing::error!(
            queue.name = %self.queue,
            "the gate state is missing: nothing starts. If this is a new Redis, restart the workers; else `switchback gate set … active=<version>`"
        );
        Verdict::Missing
    }

    fn unreadable(&self, detail: &dyn ToString) -> StoreError {
        StoreError::Unexpected {
            what: "gate state",
            detail: format!("{}: {}", self.queue, detail.to_string()),
        }
    }
}
