//! Sessions in Redis: joining, renewing, publishing, leaving, reaping.

use std::{collections::BTreeMap, time::Duration};

use redis::{Cmd, Value};

use super::{
    connect::{Link, Store},
    error::StoreError,
    keyspace::Key,
    reply::{self, field, field_number, field_text, unexpected},
    script,
    versions::MAX_BUILD_BYTES,
};
use crate::{
    envelope::clip,
    id::{SessionId, StreamId, stream_salt},
    name::{Queue, Version},
};

/// Most entries that one script moves.
pub const MOVE_ENTRIES: usize = 500;
/// Most bytes that one script moves.
pub const MOVE_BYTES: usize = 4 * 1024 * 1024;

/// Who a session is.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub struct SessionRecord {
    /// The machine.
    pub host: String,
    /// The process.
    pub pid: u32,
    /// The build that runs there.
    pub build: String,
    /// The versions it has.
    pub versions: Vec<Version>,
    /// Tasks it runs at once.
    pub concurrency: usize,
    /// When it began, ms since 1970 (the worker's clock).
    pub started_ms: u64,
}

/// What workers of this release know beyond those of the first: a session's record names it, so that whoever changes a
/// gate can say who will not obey. `inflight`: they end what a flip cancels, and their results can be revoked.
const KNOWS: [&str; 1] = [INFLIGHT];
const INFLIGHT: &str = "inflight";

/// How joining went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Joined {
    /// The session lives.
    Yes {
        /// Whether this was the first worker ever and seeded the gate.
        seeded: bool,
    },
    /// The group is gone but tasks and gate state are there: a person must decide (P8).
    NoGroup,
    /// One of its versions is known as another build: what runs under one label must be one thing.
    AnotherBuild {
        /// The version.
        version: Version,
        /// The build that has the label.
        known: String,
        /// The version is retired: its label is never given to another build.
        retired: bool,
    },
}

/// Whether a session may bring another build under a label that has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Builds {
    /// It is refused.
    #[default]
    One,
    /// It joins, and the record of the version has both.
    Several,
}

/// Whether a session still lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lives {
    /// It does.
    Yes,
    /// It does, but its lease had run out: others' may have, too.
    Revived,
    /// Its tasks were, or are being, given to others. Irrevocable.
    Lost,
}

/// How one step of reaping went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reaped {
    /// The session lives: hands off.
    Alive,
    /// Entries moved: to the head stream, to the suspects, or to the dead letters.
    Moved {
        /// How many.
        moved: u64,
        /// How many of them are dead letters now: `poison`.
        poison: u64,
        /// Whether there are more.
        more: bool,
    },
}

/// A suspect that a session is about to run, or runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Suspect {
    /// The key of the stream it was claimed from.
    pub stream: String,
    /// Its entry there.
    pub entry: StreamId,
    /// Of one that runs alone in its process: the version it is about to run on. `None`: it runs beside others.
    pub alone: Option<Version>,
}

/// A session as found in Redis.
#[derive(Debug, Clone)]
pub struct SessionInfo {
    /// Its id.
    pub id: SessionId,
    /// Who it is; `None` if the record is unreadable.
    pub record: Option<SessionRecord>,
    /// Whether it obeys `cancel` and `revoke`: an older release does not.
    pub knows_inflight: bool,
    /// The revision it obeys, if it has published one.
    pub rev: Option<u64>,
    /// JSON: attempts running per version, as last published.
    pub running: String,
    /// The versions for which it starts nothing because they fail.
    pub open: Vec<Version>,
    /// Whether its tasks are being given away.
    pub reaping: bool,
    /// How long its lease still runs; `None` if it is gone.
    pub lease: Option<Duration>,
}

impl SessionInfo {
    /// Whether it may still start something.
    #[must_use]
    pub fn is_live(&self) -> bool {
        self.lease.is_some() && !self.reaping
    }

    /// Whether it has this version.
    #[must_use]
    pub fn has(&self, version: &Version) -> bool {
        self.record
            .as_ref()
            .is_some_and(|record| record.versions.contains(version))
    }

    /// Attempts running per version, as it last published them. What makes no sense says nothing.
    #[must_use]
    pub fn running(&self) -> BTreeMap<Version, u64> {
        serde_json::from_str(&self.running).unwrap_or_default()
    }
}

/// One consumer of one stream with something pending, or idle for long.
#[derive(Debug, Clone)]
pub struct Consumer {
    /// Its name: a session id, unless made by hand.
    pub session: SessionId,
    /// Entries it holds.
    pub pending: u64,
    /// Time since it last asked for anything.
    pub idle: Duration,
}

/// The sessions of one queue.
#[derive(Debug, Clone)]
pub struct SessionStore {
    store: Store,
    queue: Queue,
    sessions: String,
}

impl SessionStore {
    /// The sessions of `queue`.
    #[must_use]
    pub fn new(store: &Store, queue: &Queue) -> Self {
        Self {
            sessions: store.keyspace().render(&Key::Sessions(queue.clone())),
            store: store.clone(),
            queue: queue.clone(),
        }
    }

    fn key(&self, key: &Key) -> String {
        self.store.keyspace().render(key)
    }

    fn lease(&self, session: &SessionId) -> String {
        self.key(&Key::Lease(self.queue.clone(), session.clone()))
    }

    /// Begins a session: registers its versions, creates groups, seeds the first gate, takes the lease.
    ///
    /// # Errors
    /// When Redis does not answer; then the session may exist, and its lease will run out.
    pub async fn join(
        &self,
        session: &SessionId,
        lease: Duration,
        record: &SessionRecord,
    ) -> Result<Joined, StoreError> {
        self.join_with(session, lease, record, Builds::One).await
    }

    /// As [`join`](Self::join), for workers that may bring another build of a version.
    ///
    /// # Errors
    /// As [`join`](Self::join).
    pub async fn join_with(
        &self,
        session: &SessionId,
        lease: Duration,
        record: &SessionRecord,
        builds: Builds,
    ) -> Result<Joined, StoreError> {
        let link = self.store.warm().await?;
        let queue = &self.queue;
        let mut call = script::JOIN.prepare_invoke();
        for key in [
            Key::Gate(queue.clone()),
            Key::GateState(queue.clone()),
            Key::History(queue.clone()),
            Key::Versions(queue.clone()),
            Key::Sessions(queue.clone()),
            Key::Lease(queue.clone(), session.clone()),
            Key::Log(queue.clone()),
        ]
        .into_iter()
        .chain(Key::fixed_streams(queue))
        .chain(record.versions.iter().map(|v| Key::Lane(queue.clone(), v.clone())))
        {
            call.key(self.key(&key));
        }
        let mut json = serde_json::to_value(record).unwrap_or_default();
        json["knows"] = KNOWS.as_slice().into();
        call.arg(session.as_str())
            .arg(millis(lease))
            .arg(json.to_string())
            .arg(clip(&record.build, MAX_BUILD_BYTES))
            .arg(queue.to_string())
            .arg(if builds == Builds::Several { "allow" } else { "" });
        for version in &record.versions {
            call.arg(version.as_str());
        }
        let (word, mut rest) = reply::verdict("join", link.run_script(&call).await?)?;
        let mut next = || reply::text("join", rest.next().unwrap_or(Value::Nil));
        let seeded = match word.as_str() {
            "no_group" => return Ok(Joined::NoGroup),
            "build" | "retired" => {
                let version = next()?;
                return Ok(Joined::AnotherBuild {
                    version: version
                        .parse()
                        .map_err(|_| unexpected("join", &Value::SimpleString(version)))?,
                    known: next()?,
                    retired: word == "retired",
                });
            }
            _ => next()? == "seeded",
        };
        self.announce().await?;
        Ok(Joined::Yes { seeded })
    }

    /// Puts the queue into its namespace's directory. Apart from the rest: it lies in another slot, so it is repeated.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn announce(&self) -> Result<(), StoreError> {
        let link = self.store.warm().await?;
        let mut cmd = Cmd::new();
        cmd.arg("SADD")
            .arg(self.key(&Key::Queues(self.queue.namespace.clone())))
            .arg(self.queue.task_type.as_str());
        match link.run(cmd).await {
            // P10: at maxmemory the directory can wait, the session cannot.
            Ok(_) | Err(StoreError::OutOfMemory { .. }) => Ok(()),
            Err(e) => Err(e),
        }
    }

    /// Renews the lease over `link`.
    ///
    /// # Errors
    /// When Redis does not answer: the lease runs on as it is.
    pub async fn renew(&self, link: &Link, session: &SessionId, lease: Duration) -> Result<Lives, StoreError> {
        let key = self.lease(session);
        let mut cmd = Cmd::new();
        cmd.arg("PEXPIRE").arg(&key).arg(millis(lease));
        if reply::number("PEXPIRE", &link.run(cmd).await?)? == 1 {
            return Ok(Lives::Yes);
        }
        let mut call = script::RENEW.prepare_invoke();
        call.key(&key)
            .key(&self.sessions)
            .arg(session.as_str())
            .arg(millis(lease));
        let (word, _) = reply::verdict("renew", link.run_script(&call).await?)?;
        Ok(if word == "alive" { Lives::Revived } else { Lives::Lost })
    }

    /// Says which revision the session obeys and what it runs.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn publish(&self, session: &SessionId, rev: u64, running: &str) -> Result<Lives, StoreError> {
        let link = self.store.warm().await?;
        let mut call = script::PUBLISH.prepare_invoke();
        call.key(&self.sessions).arg(session.as_str()).arg(rev).arg(running);
        let (word, _) = reply::verdict("publish", link.run_script(&call).await?)?;
        Ok(if word == "ok" { Lives::Yes } else { Lives::Lost })
    }

    /// Names the suspects that the session is about to run or runs. `number` grows from list to list: one that was
    /// overtaken changes nothing.
    ///
    /// # Errors
    /// When Redis does not answer: send it again, and start none of them before.
    pub async fn name_suspects(
        &self,
        session: &SessionId,
        number: u64,
        suspects: &[Suspect],
    ) -> Result<Lives, StoreError> {
        let link = self.store.warm().await?;
        let names: Vec<String> = suspects.iter().map(Suspect::name).collect();
        let mut call = script::SUSPECTS.prepare_invoke();
        call.key(&self.sessions)
            .arg(session.as_str())
            .arg(number)
            .arg(names.join(" "));
        let (word, _) = reply::verdict("suspects", link.run_script(&call).await?)?;
        Ok(if word == "ok" { Lives::Yes } else { Lives::Lost })
    }

    /// Says for which versions the session starts nothing because their circuits are open; empty: none.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn say_open(&self, session: &SessionId, versions: &str) -> Result<Lives, StoreError> {
        let link = self.store.warm().await?;
        let mut call = script::OPEN.prepare_invoke();
        call.key(&self.sessions).arg(session.as_str()).arg(versions);
        let (word, _) = reply::verdict("open", link.run_script(&call).await?)?;
        Ok(if word == "ok" { Lives::Yes } else { Lives::Lost })
    }

    /// Ends a session. The very last command it sends.
    ///
    /// # Errors
    /// When Redis does not answer: reaping will end it.
    pub async fn leave(&self, session: &SessionId, streams: &[String], why: &str) -> Result<(), StoreError> {
        let link = self.store.warm().await?;
        let mut call = script::LEAVE.prepare_invoke();
        call.key(&self.sessions)
            .key(self.lease(session))
            .key(self.key(&Key::Log(self.queue.clone())));
        for stream in streams {
            call.key(stream);
        }
        call.arg(session.as_str()).arg(why);
        link.run_script(&call).await?;
        Ok(())
    }

    /// The consumers of `stream`, ghosts included.
    ///
    /// # Errors
    /// When Redis does not answer. A stream or group that is not there has none.
    pub async fn consumers(&self, stream: &str) -> Result<Vec<Consumer>, StoreError> {
        let link = self.store.warm().await?;
        let mut cmd = Cmd::new();
        cmd.arg("XINFO").arg("CONSUMERS").arg(stream).arg(super::GROUP);
        let value = match link.run(cmd).await {
            Err(StoreError::Redis { .. }) => return Ok(Vec::new()),
            other => other?,
        };
        let mut out = Vec::new();
        for item in reply::array("XINFO CONSUMERS", value)? {
            let fields = reply::fields("XINFO CONSUMERS", item)?;
            out.push(Consumer {
                session: SessionId::from_found(&field_text(&fields, "name")),
                pending: field_number(&fields, "pending"),
                idle: Duration::from_millis(field_number(&fields, "idle")),
            });
        }
        Ok(out)
    }

    /// Moves a bounded part of what a lost session holds in `stream` back into line.
    ///
    /// # Errors
    /// When Redis does not answer; what was moved is moved.
    pub async fn reap(&self, lost: &SessionId, by: &SessionId, stream: &str) -> Result<Reaped, StoreError> {
        let link = self.store.warm().await?;
        let mut call = script::REAP.prepare_invoke();
        call.key(&self.sessions)
            .key(self.lease(lost))
            .key(self.key(&Key::Log(self.queue.clone())))
            .key(self.key(&Key::Head(self.queue.clone())))
            .key(self.key(&Key::Suspect(self.queue.clone())))
            .key(self.key(&Key::Dead(self.queue.clone())))
            .key(stream);
        call.arg(lost.as_str())
            .arg(by.as_str())
            .arg(stream_salt(stream))
            .arg(MOVE_ENTRIES)
            .arg(MOVE_BYTES);
        let (word, mut rest) = reply::verdict("reap", link.run_script(&call).await?)?;
        if word == "alive" {
            return Ok(Reaped::Alive);
        }
        let mut next = || reply::count("reap", &rest.next().unwrap_or(Value::Nil));
        Ok(Reaped::Moved {
            moved: next()?,
            poison: next()?,
            more: next()? > 0,
        })
    }

    /// Forgets the record of a session whose every PEL is empty.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn forget(&self, session: &SessionId) -> Result<(), StoreError> {
        let link = self.store.warm().await?;
        let s = session.as_str();
        let mut cmd = Cmd::new();
        cmd.arg("HDEL").arg(&self.sessions).arg(&[
            s.to_owned(),
            format!("{s}:rev"),
            format!("{s}:running"),
            format!("{s}:open"),
            format!("{s}:grant"),
            format!("{s}:reaping"),
            format!("{s}:suspects"),
        ]);
        link.run(cmd).await?;
        Ok(())
    }

    /// Every session on record, with what is left of its lease.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn list(&self) -> Result<Vec<SessionInfo>, StoreError> {
        let link = self.store.warm().await?;
        let mut cmd = Cmd::new();
        cmd.arg("HGETALL").arg(&self.sessions);
        let fields = reply::fields("sessions", link.run(cmd).await?)?;
        let mut ids: Vec<SessionId> = fields
            .iter()
            .filter_map(|(name, _)| std::str::from_utf8(name).ok())
            .filter(|name| !name.contains(':'))
            .map(SessionId::from_found)
            .collect();
        ids.sort();
        let mut pipe = redis::pipe();
        for id in &ids {
            pipe.cmd("PTTL").arg(self.lease(id));
        }
        let ttls = if ids.is_empty() {
            Vec::new()
        } else {
            link.run_pipe(&mut pipe).await?
        };
        let sessions = ids.into_iter().zip(ttls).map(|(id, ttl)| {
            let part = |suffix: &str| field(&fields, &format!("{id}{suffix}"));
            SessionInfo {
                record: part("").and_then(|json| serde_json::from_slice(json).ok()),
                knows_inflight: part("").is_some_and(|json| knows(json, INFLIGHT)),
                rev: part(":rev").and_then(|v| std::str::from_utf8(v).ok()?.parse().ok()),
                running: field_text(&fields, &format!("{id}:running")),
                open: field_text(&fields, &format!("{id}:open"))
                    .split_whitespace()
                    .filter_map(|version| version.parse().ok())
                    .collect(),
                reaping: part(":reaping").is_some(),
                lease: ttl
                    .ok()
                    .and_then(|v| reply::number("PTTL", &v).ok())
                    .and_then(|ms| u64::try_from(ms).ok())
                    .map(Duration::from_millis),
                id,
            }
        });
        Ok(sessions.collect())
    }
}

fn knows(record: &[u8], what: &str) -> bool {
    let record: serde_json::Value = serde_json::from_slice(record).unwrap_or_default();
    let known = record["knows"].as_array();
    known.is_some_and(|known| known.iter().any(|word| word == what))
}

impl Suspect {
    /// As `reap.lua` reads it. No part can hold a space or `=`.
    fn name(&self) -> String {
        let Self { stream, entry, alone } = self;
        match alone {
            Some(version) => format!("{stream}={entry}=alone={version}"),
            None => format!("{stream}={entry}=beside="),
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
