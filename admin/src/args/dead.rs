//! `switchback dead …`.

use std::time::Duration;

use clap::{Args, Subcommand};
use switchback_common::{StreamId, TaskId, TaskType, Version};

use crate::text::duration;

#[derive(Debug, Subcommand)]
pub(crate) enum DeadVerb {
    /// List dead letters, newest first.
    #[command(after_long_help = "\
JSON: [{queue, entry, id|null, at|null, at_us|null, reason, version, attempts, error, session}]")]
    Ls {
        #[arg(value_name = "TYPE")]
        task_type: TaskType,
        #[command(flatten)]
        which: Which,
        /// Most dead letters to show.
        #[arg(long, default_value_t = 20, value_name = "N")]
        limit: usize,
    },
    /// Show one dead letter: reason, errors, payload.
    ///
    /// A payload that is not UTF-8 is shown with escapes (\xff, \n, \\), nothing lost: `printf %b` brings it back.
    #[command(after_long_help = "\
JSON: {queue, entry, id|null, at|null, at_us|null, reason, error, version, session, attempts, deaths, key|null,
  enqueued_at|null, enqueued_at_us|null, errors: [{attempt, version, error, at, at_us}], headers: {},
  payload|null, payload_encoding: utf8|escaped|null, malformed|null, fields: {name: value}|null}
fields: all fields as they lie in Redis, escaped, when the entry is malformed.")]
    Show {
        #[arg(value_name = "TYPE")]
        task_type: TaskType,
        /// The task's id, or the entry id that `dead ls` shows.
        #[arg(value_name = "ID")]
        id: TaskId,
    },
    /// Put dead letters back into line, with all their attempts before them.
    ///
    /// They go to the end of the line and pass the gate again; they keep their id and the errors so far. What is malformed
    /// is left where it is, for it would only die again, unless --force. Oldest first, up to the newest dead letter there
    /// is at the beginning: what dies again meanwhile is not requeued again. Stopping at any point, even with kill -9,
    /// loses and doubles nothing: repeat the command.
    #[command(after_long_help = ACT_JSON)]
    Requeue {
        #[command(flatten)]
        act: Act,
        /// Requeue what is malformed, too: for instance after workers were told to accept larger payloads.
        #[arg(long)]
        force: bool,
    },
    /// Delete dead letters for good. The queue's log keeps who, why and which ids; of the payloads nothing is kept.
    #[command(after_long_help = ACT_JSON)]
    Discard {
        #[command(flatten)]
        act: Act,
    },
}

const ACT_JSON: &str = "\
JSON: {queue, action: requeue|discard, done, looked_at, refused: {count, first: [{entry, id|null, reason, version}]},
  missing: [id], cursor|null, until|null, finished}
With --dry-run: {queue, action, dry_run: true, matching, bytes, refused: {…}, missing: [id], until|null,
  groups: [{reason, version, count}], first: [{entry, id|null, reason, version}]}
refused: malformed. missing: ids that are no dead letters (any more). cursor: the last entry that was dealt with.";

/// Which dead letters are meant; everything given must fit.
#[derive(Debug, Args)]
#[command(next_help_heading = "Filters")]
pub(crate) struct Which {
    /// Died on this version.
    #[arg(long, value_name = "VERSION")]
    pub(crate) version: Option<Version>,
    /// Died for this reason: attempts, rejected, malformed, poison, expired.
    #[arg(long, value_name = "REASON")]
    pub(crate) reason: Option<String>,
    /// The last error contains this text, in upper or lower case.
    #[arg(long, value_name = "TEXT")]
    pub(crate) error: Option<String>,
    /// Died longer ago than this, e.g. 2h.
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(crate) older_than: Option<Duration>,
    /// Died within this time, e.g. 10m.
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(crate) newer_than: Option<Duration>,
}

/// What to act on, and how.
#[derive(Debug, Args)]
pub(crate) struct Act {
    #[arg(value_name = "TYPE")]
    pub(crate) task_type: TaskType,
    /// Task ids, or entry ids as `dead ls` shows them.
    #[arg(value_name = "ID", required_unless_present = "all")]
    #[arg(conflicts_with_all = ["all", "version", "reason", "error", "older_than", "newer_than", "after", "until"])]
    pub(crate) ids: Vec<TaskId>,
    /// All dead letters that fit the filters. Needs --yes, or --dry-run.
    #[arg(long)]
    pub(crate) all: bool,
    #[command(flatten)]
    pub(crate) which: Which,
    /// Show what would be done, do nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Yes, all of them.
    #[arg(long)]
    pub(crate) yes: bool,
    /// No faster than this, e.g. 100/s, 600/m.
    #[arg(long, value_name = "N/UNIT")]
    pub(crate) rate: Option<Rate>,
    /// Begin after this entry: the cursor that an interrupted run prints.
    #[arg(long, value_name = "ENTRY", value_parser = entry)]
    pub(crate) after: Option<StreamId>,
    /// Not beyond this entry. Defaults to the newest at the beginning.
    #[arg(long, value_name = "ENTRY", value_parser = entry)]
    pub(crate) until: Option<StreamId>,
    /// Why: goes into the queue's log.
    #[arg(long, value_name = "TEXT")]
    pub(crate) why: Option<String>,
    /// Who: goes into the queue's log. Defaults to $USER.
    #[arg(long, value_name = "NAME")]
    pub(crate) by: Option<String>,
}

fn entry(text: &str) -> Result<StreamId, String> {
    StreamId::parse(text.as_bytes()).ok_or_else(|| "not an entry id like 1700000000000-0".to_owned())
}

/// So many a second.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Rate(pub(crate) f64);

impl std::str::FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || "not a rate: write 100/s, 600/m or 50/h".to_owned();
        let (number, unit) = text.split_once('/').ok_or_else(wrong)?;
        let number: u32 = number.trim().parse().map_err(|_| wrong())?;
        let seconds = match unit.trim() {
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3_600.0,
            _ => return Err(wrong()),
        };
        if number == 0 {
            Err(wrong())
        } else {
            Ok(Self(f64::from(number) / seconds))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_have_a_unit() {
        assert_eq!("600/m".parse(), Ok(Rate(10.0)));
        for wrong in ["", "100", "0/s", "-1/s", "1/d", "x/s"] {
            assert!(wrong.parse::<Rate>().is_err(), "{wrong}");
        }
    }
}
