//! `task enqueue`.

use std::{path::PathBuf, time::Duration};

use clap::{Args, ValueEnum};
use jiff::Timestamp;
use switchback_common::{Priority, TaskId, name::HeaderName};

use crate::text::{duration, moment};

/// Where the payload comes from.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct PayloadSource {
    /// The payload: JSON.
    #[arg(long, value_name = "JSON", allow_hyphen_values = true)]
    pub(crate) payload: Option<String>,
    /// Read the payload from a file.
    #[arg(long, value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
    /// `-`: read the payload from stdin.
    #[arg(value_name = "-", value_parser = ["-"])]
    pub(crate) stdin: Option<String>,
}

/// What is special about the task.
#[derive(Debug, Args)]
pub(crate) struct EnqueueOptions {
    /// What percent and pins look at: customer, order… Defaults to the id.
    #[arg(long, value_name = "KEY")]
    pub(crate) key: Option<String>,
    /// A header, for the handler and for the gate's targets: plan=beta. May be given more than once.
    #[arg(long = "header", value_name = "NAME=VALUE", value_parser = header)]
    pub(crate) headers: Vec<(HeaderName, String)>,
    /// Enqueue under this id, at most once within 24 h: safe to repeat.
    #[arg(long, value_name = "ID")]
    pub(crate) id: Option<TaskId>,
    /// Start it no sooner than this long after Redis took it, e.g. 60s, 2h.
    #[arg(long, value_name = "DURATION", conflicts_with = "at", value_parser = duration)]
    pub(crate) delay: Option<Duration>,
    /// Start it no sooner than at this time by Redis's clock, RFC 3339: 2026-12-24T18:00:00Z. A time that has passed
    /// means now.
    #[arg(long, value_name = "TIME", value_parser = moment)]
    pub(crate) at: Option<Timestamp>,
    /// Before or after the others of its queue: high, normal, low. Defaults to normal.
    #[arg(long, value_name = "PRIORITY")]
    pub(crate) priority: Option<Priority>,
    /// Do not start it later than this long after it was enqueued, e.g. 1h: it becomes a dead letter, `expired`.
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(crate) expires_in: Option<Duration>,
    /// Only if no other task was enqueued under this key within the last --hold.
    #[arg(long, value_name = "KEY", requires = "hold")]
    pub(crate) unique: Option<String>,
    /// How long it has the unique key, whether or not it has ended, e.g. 1h.
    #[arg(long, value_name = "DURATION", requires = "unique", value_parser = duration)]
    pub(crate) hold: Option<Duration>,
    /// What happens when another task has the unique key.
    #[arg(long, value_enum, default_value_t = IfTaken::Reject, requires = "unique", value_name = "POLICY")]
    pub(crate) if_taken: IfTaken,
    /// Keep the result this long after the task ended, for `task wait`: 60s, 1h; at most 30 days.
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(crate) keep_result: Option<Duration>,
}

/// What happens when another task has the unique key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum IfTaken {
    /// Nothing is enqueued: exit with 5 and name the other task.
    Reject,
    /// Nothing is enqueued: print the other task's id.
    Existing,
    /// The other task is cancelled, if it has not started, and this one takes its place.
    Replace,
}

/// Reads `name=value`; the value may be empty, and may have a `=` in it.
fn header(word: &str) -> Result<(HeaderName, String), String> {
    let (name, value) = word.split_once('=').ok_or("not NAME=VALUE")?;
    Ok((name.parse().map_err(|e| format!("{e}"))?, value.to_owned()))
}
