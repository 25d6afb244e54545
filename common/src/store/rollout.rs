//! Rollouts in Redis: the record of the one that runs, who drives it, and what its versions did, block by block.
//!
//! Only `rollout.lua` writes the record, and with it the gate: a driver that dies between any two steps leaves a whole
//! state behind. What the record means is the business of `switchback-gates`.

use std::time::Duration;

use redis::{Cmd, Pipeline, Value};

use super::{
    connect::Store,
    error::StoreError,
    gate::{GateStore, Sealed, or_lost, parse_state},
    keyspace::Key,
    policy::{self, is_of_another_type},
    reply, script,
};
use crate::{
    envelope::{Fields, clip},
    id::{SessionId, TaskId},
    name::{Queue, Version},
};

/// How long a block is kept.
pub const BLOCK_TTL: Duration = Duration::from_secs(2 * 3600);
/// Block 0, of 1970, has the names of the attempts that were counted as lost.
const NAMES: u64 = 0;
/// How long they are known after the last of them.
const NAMES_TTL: Duration = Duration::from_secs(24 * 3600);
/// How long a driver outlives its last word.
pub const DRIVER_LEASE: Duration = Duration::from_secs(5);
/// Most that the log keeps of a step's words, and of its evidence.
const MAX_TEXT_BYTES: usize = 2_000;

/// What a step is made onto.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Onto {
    /// No rollout runs: this begins one.
    Nothing {
        /// Judge it, begin nothing.
        dry_run: bool,
    },
    /// This rollout, as it was.
    Rollout {
        /// Its id, as it stands in the record; `0` or empty if none does.
        id: String,
        /// Its serial, as it stands in the record.
        serial: String,
    },
}

/// A version's entry that changes with a step: what it was, and what it will be, where `@rev@` and `@at_us@` stand for the
/// revision and the time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    /// The version.
    pub version: Version,
    /// Its entry, as read.
    pub before: String,
    /// Its entry to be.
    pub after: String,
}

/// One step of a rollout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// What it is made onto.
    pub onto: Onto,
    /// Only if this is still the gate's revision.
    pub if_rev: Option<u64>,
    /// The session that drives, if a session does: it must still hold the lease.
    pub driver: Option<SessionId>,
    /// `rollout`, `guard` or `cli`.
    pub source: String,
    /// Who.
    pub by: String,
    /// Why.
    pub why: String,
    /// Names this request, so that sending it twice counts once; empty if its serial does that.
    pub op: String,
    /// The objections that were passed over (`--force`), for the history; empty if there are none.
    pub forced: String,
    /// For the log; empty: nothing to say.
    pub text: String,
    /// JSON, for the log.
    pub evidence: String,
    /// A version's entry that changes with it.
    pub mark: Option<Mark>,
    /// Fields of the human hash and their new values.
    pub gate: Vec<(&'static str, String)>,
    /// Fields of the record and their new values.
    pub record: Vec<(&'static str, String)>,
}

/// How a step went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stepped {
    /// Written (or this request had been already).
    Yes {
        /// The record's serial now.
        serial: u64,
        /// The rollout.
        id: u64,
        /// The gate in force.
        sealed: Sealed,
    },
    /// What a dry run would have written.
    Would(Sealed),
    /// The gate is at another revision: look at it again.
    Moved(Sealed),
    /// Somebody else made a step: look again.
    Stale,
    /// The lease of the driver is another's.
    NotDriver,
    /// Another rollout runs.
    Running(u64),
    /// A gate field is invalid.
    Refused {
        /// The field.
        field: String,
        /// Its value and what is wrong with it.
        reason: String,
    },
    /// The queue has no gate state.
    Unsealed,
}

/// The rollouts of one queue.
#[derive(Debug, Clone)]
pub struct RolloutStore {
    store: Store,
    queue: Queue,
    gate: GateStore,
    rollout: String,
    driver: String,
}

impl RolloutStore {
    /// The rollouts of `queue`.
    #[must_use]
    pub fn new(store: &Store, queue: &Queue) -> Self {
        let render = |key: Key| store.keyspace().render(&key);
        Self {
            gate: GateStore::new(store, queue),
            rollout: render(Key::Rollout(queue.clone())),
            driver: render(Key::Driver(queue.clone())),
            store: store.clone(),
            queue: queue.clone(),
        }
    }

    fn key(&self, key: &Key) -> String {
        self.store.keyspace().render(key)
    }

    /// The record of the rollout that runs, or ran last; empty if there was none, unreadable if somebody made another type
    /// of it. And Redis's clock, µs.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn read(&self) -> Result<(Fields, u64), StoreError> {
        let link = self.store.warm().await?;
        let mut pipe = Pipeline::new();
        pipe.cmd("HGETALL").arg(&self.rollout);
        pipe.cmd("TIME");
        let mut replies = link.run_pipe(&mut pipe).await?.into_iter();
        let mut next =
            || -> Result<Value, StoreError> { replies.next().unwrap_or(Ok(Value::Nil)).map_err(|e| link.error(e)) };
        let fields = match next() {
            Err(error) if is_of_another_type(&error) => vec![(b"of another type".to_vec(), Vec::new())],
            value => reply::fields("rollout", value?)?,
        };
        Ok((fields, reply::time_us(next()?)?))
    }

    /// Makes a step: gate, record, signal and log at once.
    ///
    /// # Errors
    /// When Redis does not answer. Sending the same step again is harmless.
    pub async fn step(&self, step: &Step) -> Result<Stepped, StoreError> {
        let link = self.store.warm().await?;
        let mut call = script::ROLLOUT.prepare_invoke();
        for key in self.gate.keys() {
            call.key(key);
        }
        call.key(&self.rollout)
            .key(self.key(&Key::Log(self.queue.clone())))
            .key(&self.driver);
        match &step.onto {
            Onto::Nothing { dry_run } => call.arg(if *dry_run { "dry" } else { "start" }).arg("").arg(""),
            Onto::Rollout { id, serial } => call.arg("go").arg(id).arg(serial),
        };
        call.arg(step.if_rev.map_or_else(String::new, |rev| rev.to_string()))
            .arg(step.driver.as_ref().map_or("", SessionId::as_str))
            .arg(&step.source)
            .arg(&step.by)
            .arg(&step.why)
            .arg(&step.op)
            .arg(clip(&step.text, MAX_TEXT_BYTES))
            .arg(&step.evidence);
        match &step.mark {
            Some(mark) => call.arg(mark.version.as_str()).arg(&mark.before).arg(&mark.after),
            None => call.arg("").arg("").arg(""),
        };
        call.arg(&step.forced).arg(step.gate.len());
        for (name, value) in step.gate.iter().chain(&step.record) {
            call.arg(*name).arg(value);
        }
        let (word, mut rest) = reply::verdict("rollout", link.run_script(&call).await?)?;
        let mut number = || reply::count("rollout", &rest.next().unwrap_or(Value::Nil));
        Ok(match word.as_str() {
            "written" | "would" => {
                let (serial, id) = (number()?, number()?);
                let sealed = parse_state("rollout", rest)?.2;
                match word.as_str() {
                    "would" => Stepped::Would(sealed),
                    _ => Stepped::Yes { serial, id, sealed },
                }
            }
            "moved" => Stepped::Moved(parse_state("rollout", rest)?.2),
            "running" => Stepped::Running(number()?),
            "not_driver" => Stepped::NotDriver,
            "stale" => Stepped::Stale,
            "refused" => Stepped::Refused {
                field: reply::text("rollout", rest.next().unwrap_or(Value::Nil))?,
                reason: reply::text("rollout", rest.next().unwrap_or(Value::Nil))?,
            },
            _ => Stepped::Unsealed,
        })
    }

    /// Takes, or keeps, the lease of the driver. Returns whether it is `session`'s.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn drive(&self, session: &SessionId) -> Result<bool, StoreError> {
        self.lease(session, DRIVER_LEASE).await
    }

    /// Gives the lease of the driver up, if it is `session`'s: another takes over at once.
    ///
    /// # Errors
    /// When Redis does not answer: the lease runs out.
    pub async fn step_down(&self, session: &SessionId) -> Result<(), StoreError> {
        self.lease(session, Duration::ZERO).await.map(drop)
    }

    async fn lease(&self, session: &SessionId, length: Duration) -> Result<bool, StoreError> {
        let link = self.store.warm().await?;
        let mut call = script::DRIVE.prepare_invoke();
        call.key(&self.driver)
            .key(self.key(&Key::Lease(self.queue.clone(), session.clone())))
            .arg(session.as_str())
            .arg(u64::try_from(length.as_millis()).unwrap_or(u64::MAX));
        let (word, _) = reply::verdict("drive", link.run_script(&call).await?)?;
        Ok(word == "mine")
    }

    /// Who drives, if anybody does.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn driver(&self) -> Result<Option<SessionId>, StoreError> {
        let link = self.store.warm().await?;
        let mut cmd = Cmd::new();
        cmd.arg("GET").arg(&self.driver);
        let holder = reply::text("driver", or_lost(link.run(cmd).await)?)?;
        Ok((!holder.is_empty()).then(|| SessionId::from_found(&holder)))
    }

    /// The counters of blocks `from` to `to`, `to` included.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn blocks(&self, from: u64, to: u64) -> Result<Vec<(u64, Fields)>, StoreError> {
        let link = self.store.warm().await?;
        let mut pipe = Pipeline::new();
        for n in from..=to {
            pipe.cmd("HGETALL").arg(self.key(&Key::Block(self.queue.clone(), n)));
        }
        let replies = link.run_pipe(&mut pipe).await?;
        let read = |(n, value): (u64, Result<Value, redis::RedisError>)| {
            Ok((n, reply::fields("block", or_lost(value.map_err(|e| link.error(e)))?)?))
        };
        (from..=to).zip(replies).map(read).collect()
    }

    /// Counts an attempt on `version` that vanished with its process; once for each time that its task was recovered. `placed`: a pin
    /// or a target sent it there.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn count_lost(
        &self,
        block: u64,
        version: &Version,
        task: &TaskId,
        recovered: u32,
        placed: bool,
    ) -> Result<(), StoreError> {
        let link = self.store.warm().await?;
        let mut call = script::LOST.prepare_invoke();
        call.key(self.key(&Key::Block(self.queue.clone(), block)))
            .key(self.key(&Key::Block(self.queue.clone(), NAMES)))
            .arg(version.as_str())
            .arg(format!("{task}@{recovered}"))
            .arg(BLOCK_TTL.as_secs())
            .arg(if placed { "1" } else { "" })
            .arg(NAMES_TTL.as_secs());
        link.run_script(&call).await?;
        Ok(())
    }

    /// Counts attempts that run for long and have not ended: counters of `block` and what to add to each.
    ///
    /// # Errors
    /// When Redis does not answer. Sending them again may count them twice.
    pub async fn count_long(&self, block: u64, counters: &[(String, u64)]) -> Result<(), StoreError> {
        let link = self.store.warm().await?;
        let mut call = script::LONG.prepare_invoke();
        call.key(self.key(&Key::Block(self.queue.clone(), block)))
            .arg(BLOCK_TTL.as_secs());
        for (name, by) in counters {
            call.arg(name).arg(by);
        }
        link.run_script(&call).await?;
        Ok(())
    }

    /// The entry of a version in the list of all that ever joined; empty if it never did.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn version_entry(&self, version: &Version) -> Result<String, StoreError> {
        let link = self.store.warm().await?;
        let mut cmd = Cmd::new();
        cmd.arg("HGET")
            .arg(self.key(&Key::Versions(self.queue.clone())))
            .arg(version.as_str());
        reply::text("version", or_lost(link.run(cmd).await)?)
    }

    /// What people wished for the rollouts of this queue: JSON, empty if nothing, or if the key is of another type.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn policy(&self) -> Result<String, StoreError> {
        Ok(policy::read(&self.store, &self.queue).await?.rollout)
    }

    /// The queue's gate, as read now; `None` if there is none.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn gate(&self) -> Result<Option<Sealed>, StoreError> {
        let Some((_, read)) = self.gate.seal().await? else {
            return Ok(None);
        };
        Ok(match read.found {
            super::gate::Found::Settled(sealed) => Some((*sealed).clone()),
            super::gate::Found::Edited | super::gate::Found::Missing => None,
        })
    }
}
