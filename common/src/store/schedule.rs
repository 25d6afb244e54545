//! The schedules of a queue: reading and writing definitions, firing ticks.

use std::collections::BTreeMap;

use redis::{Cmd, Pipeline, Value};
use sha1::{Digest, Sha1};

use super::{connect::Store, error::StoreError, keyspace::Key, reply, script};
use crate::{
    clock::Moment,
    id::SessionId,
    name::Queue,
    schedule::{Due, MAX_SCHEDULES, Schedule, ScheduleError, ScheduleName, Timetable},
};

/// Ticks fired by one script call: with the longest payload far below what one script may move.
pub const STEP_TICKS: usize = 20;
/// Fields of one schedule: definition, `:last`, `:alerted`.
const FIELDS_EACH: usize = 3;
/// A last tick that lies further ahead than this cannot be right: 24 h, in ms. Redis's clock may go back by less.
const MOST_AHEAD_MS: u64 = 24 * 3_600 * 1_000;

/// One field of the hash of schedules.
#[derive(Debug, Clone)]
pub struct Found {
    /// Its name as it stands there.
    pub name: String,
    /// The definition as it stands there.
    pub json: Vec<u8>,
    /// The last tick fired, ms; `None` if none was and counting has not begun.
    pub last_ms: Option<u64>,
    /// Whether the log says already that the definition is broken.
    pub alerted: bool,
}

impl Found {
    /// Identifies the definition, byte for byte.
    #[must_use]
    pub fn digest(&self) -> String {
        digest(&self.json)
    }

    /// The last tick fired, if counting has begun; a time that cannot be right is none.
    #[must_use]
    pub fn counted_from(&self, now_ms: u64) -> Option<u64> {
        self.last_ms
            .filter(|last| *last <= now_ms.saturating_add(MOST_AHEAD_MS))
    }

    /// Reads name and definition.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn parse(&self) -> Result<(ScheduleName, Schedule, Timetable), ScheduleError> {
        let name = self.name.parse()?;
        let (schedule, timetable) = Schedule::parse(&self.json)?;
        Ok((name, schedule, timetable))
    }
}

/// Every schedule of a queue, at one time.
#[derive(Debug, Clone)]
pub struct Listing {
    /// Redis's clock just before they were read, ms.
    pub now_ms: u64,
    /// When that was asked for.
    pub sent: Moment,
    /// By name.
    pub schedules: Vec<Found>,
}

/// A change of one definition.
#[derive(Debug, Clone, Copy)]
pub struct Change<'a> {
    /// Which.
    pub name: &'a ScheduleName,
    /// The definition it was judged against; `None`: there was none.
    pub before: Option<&'a Found>,
    /// The new definition; `None` removes it.
    pub after: Option<&'a Schedule>,
    /// The session whose code declares it.
    pub session: Option<&'a SessionId>,
    /// What the log says of it.
    pub text: &'a str,
}

/// How a change went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Written {
    /// It is in force: no tick fires by the old definition any more.
    Yes,
    /// Somebody else changed it in between: read and judge again.
    Moved,
    /// The queue has [`MAX_SCHEDULES`] already.
    Full,
}

/// Due ticks of one schedule.
#[derive(Debug, Clone, Copy)]
pub struct Firing<'a> {
    /// Which.
    pub name: &'a ScheduleName,
    /// The definition.
    pub schedule: &'a Schedule,
    /// The definition's digest.
    pub digest: &'a str,
    /// Its ticks.
    pub timetable: &'a Timetable,
    /// What is due.
    pub due: &'a Due,
    /// Who fires.
    pub session: &'a SessionId,
}

/// The schedules of one queue.
#[derive(Debug, Clone)]
pub struct ScheduleStore {
    store: Store,
    schedules: String,
    main: String,
    log: String,
}

impl ScheduleStore {
    /// The schedules of `queue`.
    #[must_use]
    pub fn new(store: &Store, queue: &Queue) -> Self {
        let render = |key: Key| store.keyspace().render(&key);
        Self {
            schedules: render(Key::Schedules(queue.clone())),
            main: render(Key::Stream(queue.clone())),
            log: render(Key::Log(queue.clone())),
            store: store.clone(),
        }
    }

    /// Reads every schedule. One round trip when there is none.
    ///
    /// # Errors
    /// When Redis does not answer, or the hash has grown past all bounds.
    pub async fn list(&self) -> Result<Listing, StoreError> {
        let link = self.store.warm().await?;
        let mut pipe = Pipeline::new();
        pipe.cmd("TIME");
        pipe.cmd("HLEN").arg(&self.schedules);
        let sent = Moment::now();
        let mut replies = link.run_pipe(&mut pipe).await?.into_iter();
        let mut next = || replies.next().unwrap_or(Ok(Value::Nil)).map_err(|e| link.error(e));
        let now_ms = reply::time_us(next()?)? / 1_000;
        let count = reply::count("schedules", &next()?)?;
        let mut schedules = Vec::new();
        // P10: what people write by hand knows no limit.
        if count > (MAX_SCHEDULES * FIELDS_EACH) as u64 {
            return Err(StoreError::Unexpected {
                what: "schedules",
                detail: format!(
                    "{count} fields in {}, for at most {MAX_SCHEDULES} schedules; remove some with HDEL",
                    self.schedules
                ),
            });
        }
        if count > 0 {
            let mut cmd = Cmd::new();
            cmd.arg("HGETALL").arg(&self.schedules);
            schedules = found(reply::fields("schedules", link.run(cmd).await?)?);
        }
        Ok(Listing {
            now_ms,
            sent,
            schedules,
        })
    }

    /// Writes or removes a definition, if it is still the one it was judged against. When it begins, or its times change,
    /// ticks count from now on; else missed ticks stay missed ticks.
    ///
    /// # Errors
    /// When Redis does not answer. Whether it was written then shows in [`ScheduleStore::list`].
    pub async fn write(&self, change: &Change<'_>) -> Result<Written, StoreError> {
        let link = self.store.warm().await?;
        let before = change.before.and_then(|found| found.parse().ok());
        let anew = match (&before, change.after) {
            (Some((_, before, _)), Some(after)) => {
                before.cron != after.cron || before.time_zone != after.time_zone || (before.paused && !after.paused)
            }
            _ => true,
        };
        let json = change.after.map(json).unwrap_or_default();
        let mut call = script::SCHEDULE_WRITE.prepare_invoke();
        call.key(&self.schedules).key(&self.log);
        call.arg(change.name.as_str())
            .arg(change.before.map(Found::digest).unwrap_or_default())
            .arg(json)
            .arg(if anew { "1" } else { "" })
            .arg(MAX_SCHEDULES * 2) // definition and `:last`; `:alerted` is the exception
            .arg(change.session.map_or("", SessionId::as_str))
            .arg(crate::envelope::clip(change.text, 8 * 1024));
        let (word, _) = reply::verdict("schedule write", link.run_script(&call).await?)?;
        Ok(match word.as_str() {
            "written" => Written::Yes,
            "full" => Written::Full,
            _ => Written::Moved,
        })
    }

    /// Begins to count the ticks of a definition that was written by hand.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn begin(&self, firing: &Firing<'_>) -> Result<(), StoreError> {
        self.step(firing, &[], 0, "").await.map(drop)
    }

    /// Fires what is due, in bounded steps; tells how many tasks came of it. Somebody else may have been faster, or
    /// the definition may have changed: then there is less to fire, or nothing. Safe to repeat.
    ///
    /// # Errors
    /// When Redis refuses new work or does not answer; what is still due then can be fired later.
    pub async fn fire(&self, firing: &Firing<'_>) -> Result<u64, StoreError> {
        let due = firing.due;
        let note = if due.dropped {
            " (older ticks were missed and are dropped)"
        } else {
            ""
        };
        let Some(newest) = due.newest else { return Ok(0) };
        if due.ticks.is_empty() {
            return self.step(firing, &[], newest, note).await;
        }
        let mut fired = 0;
        for (n, ticks) in due.ticks.chunks(STEP_TICKS).enumerate() {
            fired += self.step(firing, ticks, 0, if n == 0 { note } else { "" }).await?;
        }
        Ok(fired)
    }

    async fn step(&self, firing: &Firing<'_>, ticks: &[u64], newest: u64, note: &str) -> Result<u64, StoreError> {
        let link = self.store.warm().await?;
        let schedule = firing.schedule;
        let mut call = script::SCHEDULE_FIRE.prepare_invoke();
        call.key(&self.schedules).key(&self.main).key(&self.log);
        call.arg(firing.name.as_str())
            .arg(firing.digest)
            .arg(firing.session.as_str())
            .arg(schedule.payload.get())
            .arg(schedule.key.as_deref().unwrap_or_default())
            .arg(newest)
            .arg(MOST_AHEAD_MS)
            .arg(note);
        for &tick in ticks {
            let Some(id) = firing.name.task_id(tick) else { continue };
            let headers = BTreeMap::from([
                ("schedule", firing.name.as_str().to_owned()),
                ("tick", firing.timetable.local(tick)),
            ]);
            call.arg(tick)
                .arg(id.to_string())
                .arg(serde_json::to_string(&headers).unwrap_or_default());
        }
        let (word, mut rest) = reply::verdict("schedule fire", link.run_script(&call).await?)?;
        match word.as_str() {
            "fired" => reply::count("schedule fire", &rest.next().unwrap_or(Value::Nil)),
            _ => Ok(0),
        }
    }

    /// Whether nobody has said yet that this definition is broken; whoever asks first says it.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn claim_alert(&self, name: &str) -> Result<bool, StoreError> {
        let link = self.store.warm().await?;
        let mut cmd = Cmd::new();
        cmd.arg("HSETNX")
            .arg(&self.schedules)
            .arg(format!("{name}:alerted"))
            .arg(1);
        Ok(reply::number("schedules", &link.run(cmd).await?)? == 1)
    }

    /// A definition is sound again: should it break, that is news.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn clear_alert(&self, name: &str) -> Result<(), StoreError> {
        let link = self.store.warm().await?;
        let mut cmd = Cmd::new();
        cmd.arg("HDEL").arg(&self.schedules).arg(format!("{name}:alerted"));
        link.run(cmd).await?;
        Ok(())
    }
}

/// A definition as it is stored.
#[must_use]
pub fn json(schedule: &Schedule) -> Vec<u8> {
    serde_json::to_vec(schedule).unwrap_or_default()
}

/// A definition; what belongs to a schedule that is not there any more is nothing.
fn found(fields: crate::envelope::Fields) -> Vec<Found> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let fields: BTreeMap<String, Vec<u8>> = fields.into_iter().map(|(name, value)| (text(&name), value)).collect();
    let of = |name: &str, what: &str| fields.get(&format!("{name}:{what}"));
    let satellite = |name: &str| {
        name.rsplit_once(':')
            .is_some_and(|(_, what)| matches!(what, "last" | "alerted"))
    };
    let named = fields.iter().filter(|(name, _)| !satellite(name));
    named
        .map(|(name, json)| Found {
            name: name.clone(),
            json: json.clone(),
            last_ms: of(name, "last").and_then(|ms| std::str::from_utf8(ms).ok()?.parse().ok()),
            alerted: of(name, "alerted").is_some(),
        })
        .collect()
}

fn digest(json: &[u8]) -> String {
    let hex = |byte: &u8| format!("{byte:02x}");
    Sha1::digest(json).iter().map(hex).collect()
}
