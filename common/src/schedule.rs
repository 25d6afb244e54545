//! Schedules: when a periodic task is due, and what becomes of the times that nobody was there for.
//!
//! A *tick* is a moment that a cron expression names in its time zone, in whole seconds. Ticks are moments, not local
//! times: whatever the clocks of the zone do, ticks grow, and none comes twice.
//!
//! # When clocks change
//! An expression that names one time of day (`30 2 * * *`) is due once a day: at the first moment after the gap when the
//! clocks skip that time, and the first time round when it comes twice. Any other (`*/10 * * * *`, `0,30 2 * * *`) counts
//! local times as they pass: those skipped are not due, those repeated are due each time.

use std::{fmt, str::FromStr, sync::Arc, sync::LazyLock, time::Duration};

use croner::{
    Cron,
    errors::CronError,
    parser::{CronParser, Seconds, Year},
};
use jiff::{
    Timestamp, Zoned,
    tz::{TimeZone, TimeZoneDatabase},
};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::{
    envelope::MAX_KEY_BYTES,
    id::TaskId,
    name::{MAX_NAME_BYTES, is_valid_name},
};

/// Longest name of a schedule, in bytes: a task's id is the name and its tick, and ids are at most 64 bytes.
pub const MAX_SCHEDULE_NAME_BYTES: usize = 40;
/// Longest cron expression, in bytes.
pub const MAX_CRON_BYTES: usize = 200;
/// Longest payload of a schedule, in bytes: 16 KiB. Every worker of the queue reads the definitions again and again.
pub const MAX_SCHEDULE_PAYLOAD: usize = 16 * 1024;
/// Longest `by`, and longest `why`, in bytes.
pub const MAX_REMARK_BYTES: usize = 1_000;
/// Schedules of one queue.
pub const MAX_SCHEDULES: usize = 100;
/// How late a tick may be fired under [`Missed::Skip`].
pub const GRACE: Duration = Duration::from_secs(60);
/// Ticks made up for at once under [`Missed::All`]: the newest ones.
pub const MAX_CATCH_UP: usize = 100;

/// The name of a schedule, unique in its queue: 1 to 40 of the characters `A-Z a-z 0-9 . _ -`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ScheduleName(Arc<str>);

impl ScheduleName {
    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The id of the task that the tick `tick_ms` fires, e.g. `nightly-20261121T013000Z`: the same whoever fires it.
    #[must_use]
    pub fn task_id(&self, tick_ms: u64) -> Option<TaskId> {
        format!("{self}-{}", timestamp(tick_ms)?.strftime("%Y%m%dT%H%M%SZ"))
            .parse()
            .ok()
    }
}

impl FromStr for ScheduleName {
    type Err = ScheduleError;

    fn from_str(text: &str) -> Result<Self, ScheduleError> {
        if is_valid_name(text) && text.len() <= MAX_SCHEDULE_NAME_BYTES {
            Ok(Self(Arc::from(text)))
        } else {
            Err(ScheduleError::Name(text.chars().take(80).collect()))
        }
    }
}

impl fmt::Display for ScheduleName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// A schedule that was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ScheduleError {
    /// The name is not one.
    #[error("invalid schedule name {0:?}: use 1 to {MAX_SCHEDULE_NAME_BYTES} of the characters A-Z a-z 0-9 . _ -")]
    Name(String),
    /// The cron expression cannot be read.
    #[error(
        "invalid cron expression {cron:?}: {problem}; write `minute hour day month weekday`, or six fields beginning with seconds, e.g. `30 2 * * *`"
    )]
    Cron {
        /// The expression, cut.
        cron: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The expression names no date that will ever come.
    #[error("cron expression {0:?} is never due: there is no such date")]
    Never(String),
    /// There is no such time zone.
    #[error("unknown time zone {0:?}: use a name of the IANA database, e.g. `Europe/Berlin` or `UTC`")]
    TimeZone(String),
    /// The payload cannot be written as JSON.
    #[error("cannot write the payload as JSON: {0}")]
    Payload(String),
    /// Something is too long.
    #[error("its {what} is {size} bytes, the limit is {limit}")]
    TooLong {
        /// What.
        what: &'static str,
        /// Its size in bytes.
        size: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// A stored definition is not one.
    #[error("not a definition: {0}")]
    Unreadable(String),
}

/// What becomes of ticks that passed while no worker was there to fire them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Missed {
    /// A tick older than [`GRACE`] is dropped.
    Skip,
    /// All of them make one firing: the newest.
    #[default]
    Once,
    /// Each is fired, oldest first; of more than [`MAX_CATCH_UP`] the newest.
    All,
}

impl Missed {
    /// The word in definitions.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Skip => "skip",
            Self::Once => "once",
            Self::All => "all",
        }
    }
}

/// Who declared a schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// A worker's code: the next worker to join may change it.
    Code,
    /// A person, by the command line or by hand: no code changes it.
    #[default]
    Cli,
}

/// A periodic task: one field of the hash of schedules, as JSON that people can read and write.
///
/// ```
/// use switchback_common::schedule::{Missed, Schedule};
///
/// let nightly = Schedule::new("30 2 * * *", &serde_json::json!({"full": true}))
///     .time_zone("Europe/Berlin")
///     .missed(Missed::Once);
/// assert!(nightly.check().is_ok());
/// ```
#[derive(Debug, Clone, Serialize, Deserialize)]
// A misspelt `time_zone` must not fire in UTC; and what a newer release means by a new field is for it to fire.
#[serde(deny_unknown_fields)]
pub struct Schedule {
    /// `minute hour day month weekday`, or six fields that begin with seconds; at most 200 bytes.
    pub cron: String,
    /// Name of the zone in the IANA database. Defaults to `UTC`.
    #[serde(default = "utc")]
    pub time_zone: String,
    /// The payload of every task it fires: JSON, at most 16 KiB.
    pub payload: Box<RawValue>,
    /// What the sticky percent and pins look at; absent = the task's id. At most 256 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// What becomes of missed ticks. Defaults to `once`.
    #[serde(default)]
    pub missed: Missed,
    /// Whether it fires nothing at present. Defaults to false.
    #[serde(default)]
    pub paused: bool,
    /// Who declared it. Defaults to `cli`.
    #[serde(default)]
    pub source: Source,
    /// Who changed it last; may be empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub by: String,
    /// Why; may be empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub why: String,
    #[serde(skip)]
    unwritable: Option<String>,
}

fn utc() -> String {
    "UTC".to_owned()
}

impl Schedule {
    /// Fires `payload` whenever `cron` is due, in UTC. Checked where it is used.
    #[must_use]
    pub fn new(cron: impl Into<String>, payload: &impl Serialize) -> Self {
        let written = serde_json::value::to_raw_value(payload);
        let unwritable = written.as_ref().err().map(ToString::to_string);
        Self {
            cron: cron.into(),
            time_zone: utc(),
            payload: written.unwrap_or_else(|_| RawValue::NULL.to_owned()),
            key: None,
            missed: Missed::default(),
            paused: false,
            source: Source::Code,
            by: String::new(),
            why: String::new(),
            unwritable,
        }
    }

    /// The zone whose clock `cron` speaks of: a name of the IANA database. Defaults to `UTC`.
    #[must_use]
    pub fn time_zone(mut self, name: impl Into<String>) -> Self {
        self.time_zone = name.into();
        self
    }

    /// What the sticky percent and pins look at. Defaults to the id of each task.
    #[must_use]
    pub fn key(mut self, key: impl Into<String>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// What becomes of ticks that nobody was there for. Defaults to [`Missed::Once`].
    #[must_use]
    pub fn missed(mut self, missed: Missed) -> Self {
        self.missed = missed;
        self
    }

    /// Reads a stored definition.
    ///
    /// # Errors
    /// [`ScheduleError::Unreadable`], or as [`Schedule::check`].
    pub fn parse(json: &[u8]) -> Result<(Self, Timetable), ScheduleError> {
        let schedule: Self = serde_json::from_slice(json).map_err(|e| ScheduleError::Unreadable(e.to_string()))?;
        let timetable = schedule.check()?;
        Ok((schedule, timetable))
    }

    /// Checks everything, and reads cron expression and time zone.
    ///
    /// # Errors
    /// [`ScheduleError`] says what is wrong.
    pub fn check(&self) -> Result<Timetable, ScheduleError> {
        if let Some(problem) = &self.unwritable {
            return Err(ScheduleError::Payload(problem.clone()));
        }
        let limited = [
            ("payload", self.payload.get().len(), MAX_SCHEDULE_PAYLOAD),
            ("key", self.key.as_ref().map_or(0, String::len), MAX_KEY_BYTES),
            ("`by`", self.by.len(), MAX_REMARK_BYTES),
            ("`why`", self.why.len(), MAX_REMARK_BYTES),
        ];
        for (what, size, limit) in limited {
            if size > limit {
                return Err(ScheduleError::TooLong { what, size, limit });
            }
        }
        Timetable::parse(&self.cron, &self.time_zone)
    }
}

/// The ticks of a cron expression in its time zone.
#[derive(Debug, Clone)]
pub struct Timetable {
    cron: Cron,
    zone: TimeZone,
}

/// What is to be fired now.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Due {
    /// Ticks to fire, oldest first; ms since 1970.
    pub ticks: Vec<u64>,
    /// The newest tick so far that is not fired yet, to be fired or not; `None` if there is none.
    pub newest: Option<u64>,
    /// Whether there are older ticks that are never fired: too old, or too many.
    pub dropped: bool,
}

impl Timetable {
    /// Reads a cron expression and the name of its time zone.
    ///
    /// # Errors
    /// [`ScheduleError::Cron`], [`ScheduleError::Never`] or [`ScheduleError::TimeZone`].
    pub fn parse(cron: &str, time_zone: &str) -> Result<Self, ScheduleError> {
        let refused = |problem: String| ScheduleError::Cron {
            cron: cron.chars().take(MAX_CRON_BYTES).collect(),
            problem,
        };
        if cron.len() > MAX_CRON_BYTES {
            return Err(refused(format!("longer than {MAX_CRON_BYTES} bytes")));
        }
        if let Some(strange) = cron.chars().find(|c| !c.is_ascii_graphic() && *c != ' ') {
            return Err(refused(format!("contains {strange:?}")));
        }
        // Years would make schedules that end in silence.
        let parser = CronParser::builder()
            .seconds(Seconds::Optional)
            .year(Year::Disallowed)
            .build();
        let parsed = parser.parse(cron).map_err(|e| refused(problem(&e)))?;
        let zone = zone(time_zone)?;
        let timetable = Self { cron: parsed, zone };
        match timetable.next_after(0) {
            Some(_) => Ok(timetable),
            None => Err(ScheduleError::Never(cron.to_owned())),
        }
    }

    /// The first tick after `after_ms`; `None` when there is none in this millennium.
    #[must_use]
    pub fn next_after(&self, after_ms: u64) -> Option<u64> {
        let next = self.cron.find_next_occurrence(&self.at(after_ms)?, false).ok()?;
        millis(&next).filter(|tick| *tick > after_ms)
    }

    /// The last tick that is not after `until_ms`.
    fn last_until(&self, until_ms: u64) -> Option<u64> {
        let last = self.cron.find_previous_occurrence(&self.at(until_ms)?, true).ok()?;
        millis(&last).filter(|tick| *tick <= until_ms)
    }

    /// What is to be fired at `now_ms` when `fired_ms` is the last tick fired. Looks at no more than [`MAX_CATCH_UP`]
    /// ticks, however long ago that was.
    #[must_use]
    pub fn due(&self, missed: Missed, fired_ms: u64, now_ms: u64) -> Due {
        let (most, oldest_ms) = match missed {
            Missed::Skip => (MAX_CATCH_UP, now_ms.saturating_sub(as_ms(GRACE))),
            Missed::Once => (1, 0),
            Missed::All => (MAX_CATCH_UP, 0),
        };
        let mut due = Due::default();
        let mut until = now_ms;
        while let Some(tick) = self.last_until(until).filter(|tick| *tick > fired_ms) {
            due.newest.get_or_insert(tick);
            if due.ticks.len() == most || tick < oldest_ms {
                // One firing for all is what `once` means: none of them is dropped.
                due.dropped = missed != Missed::Once;
                break;
            }
            due.ticks.push(tick);
            until = tick.saturating_sub(1);
        }
        due.ticks.reverse();
        due
    }

    /// A tick as the clocks of the zone show it: `2026-11-22T02:30:00+01:00`.
    #[must_use]
    pub fn local(&self, tick_ms: u64) -> String {
        self.at(tick_ms)
            .map_or_else(String::new, |at| at.strftime("%Y-%m-%dT%H:%M:%S%:z").to_string())
    }

    /// In whole seconds, rounded down.
    fn at(&self, ms: u64) -> Option<Zoned> {
        Some(timestamp(ms)?.to_zoned(self.zone.clone()))
    }
}

/// What the parser says, without its full stop and its names of types.
fn problem(error: &CronError) -> String {
    let text = match error {
        CronError::InvalidPattern(text) | CronError::IllegalCharacters(text) | CronError::ComponentError(text) => {
            text.clone()
        }
        CronError::EmptyPattern => "it is empty".to_owned(),
        other => other.to_string(),
    };
    text.trim_end_matches('.').to_owned()
}

fn zone(name: &str) -> Result<TimeZone, ScheduleError> {
    // The bundled rules, even where a system has its own: two workers with different rules would fire a tick each.
    static ZONES: LazyLock<TimeZoneDatabase> = LazyLock::new(TimeZoneDatabase::bundled);
    let unknown = || ScheduleError::TimeZone(name.chars().take(80).collect());
    if name.len() > MAX_NAME_BYTES {
        return Err(unknown());
    }
    ZONES.get(name).map_err(|_| unknown())
}

fn timestamp(ms: u64) -> Option<Timestamp> {
    Timestamp::from_second(i64::try_from(ms / 1_000).ok()?).ok()
}

fn millis(at: &Zoned) -> Option<u64> {
    u64::try_from(at.timestamp().as_second()).ok()?.checked_mul(1_000)
}

fn as_ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
