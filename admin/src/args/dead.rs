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
    ///
    /// After a rollback: `dead requeue TYPE --version v2 --since-flip --refund --canary 10`. With --refund only the attempts
    /// made on that version are given back, those made on others keep counting; and tasks that failed on it and wait for
    /// a retry are given them back, too, where they wait, and are retried at once. Those that are in line already run with
    /// what they have.
    #[command(after_long_help = REQUEUE_HELP)]
    Requeue {
        #[command(flatten)]
        act: Act,
        /// Requeue what is malformed, too: for instance after workers were told to accept larger payloads.
        #[arg(long)]
        force: bool,
        /// Give back the attempts made on --version, and no others; also to tasks that wait for a retry, unless --reason is
        /// given.
        #[arg(long, requires = "version")]
        refund: bool,
        #[command(flatten)]
        canary: Canary,
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
  missing: [id], cursor|null, until|null, finished, window: {since, since_us, made_reachable: {rev, …}|null,
  withdrawn: {rev, at, at_us, by, why, source}}|null}
With --dry-run: {queue, action, dry_run: true, matching, bytes, refused: {…}, missing: [id], until|null, window,
  groups: [{reason, version, count}], first: [{entry, id|null, reason, version}]}
refused: malformed. missing: ids that are no dead letters (any more). cursor: the last entry that was dealt with.
window: what --since-flip stands for.";

const REQUEUE_HELP: &str = "\
JSON: {queue, action: requeue, done, looked_at, refused: {count, first: [{entry, id|null, reason, version}]}, missing: [id],
  cursor|null, until|null, finished, window: {since, since_us, made_reachable: {rev, …}|null,
  withdrawn: {rev, at, at_us, by, why, source}}|null,
  refund: {version, attempts, untold, waiting, at_once}|null,
  canary: {verdict: passed|failed|timed_out|interrupted, size, done, failed, died, cancelled, failures_allowed,
           not_ended: [id], tasks: [{id, outcome}]}|null}
With --dry-run: {queue, action, dry_run: true, matching, bytes, refused: {…}, missing: [id], until|null, window, refund,
  groups: [{reason, version, count, place: dead|delayed, refund, untold}], first: [{entry, id|null, reason, version}]}
refused: malformed. missing: ids that are no dead letters (any more). cursor: the last entry that was dealt with.
window: what --since-flip stands for.
refund: attempts given back; untold: attempts of these tasks that their error chains, which hold the last 10, do not tell of:
they keep counting; waiting: tasks that waited for a retry; at_once: of these, how many are retried at once. A task that
waits for the rate of its key, or was ever put off by its handler, keeps its time.

A plain requeue begins a new life: no attempt made, whatever versions it failed on. With --refund a task that made 3 attempts,
2 of them on --version, goes on with 1; its error chain is kept, and errors whose attempts were given back have number 0.
Given back is given back once: repeating the command gives nothing more.

Canary: the first N are put back, then the command waits until they have ended, and goes on if no more than
--canary-failures failed or died again; else it stops with exit code 5, and after --canary-timeout with 6, and says how to go
on. Put back is put back: it stays so.";

/// A few first.
#[derive(Debug, Clone, Copy, Args)]
#[command(next_help_heading = "Canary")]
pub(crate) struct Canary {
    /// Put so many back first, and go on only if they end well.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=MOST_CANARIES))]
    pub(crate) canary: Option<u32>,
    /// So many of them may fail or die again.
    #[arg(long, value_name = "M", default_value_t = 0, requires = "canary")]
    pub(crate) canary_failures: u32,
    /// How long to wait for them.
    #[arg(long, value_name = "DURATION", default_value = "5m", requires = "canary", value_parser = duration)]
    pub(crate) canary_timeout: Duration,
}

/// More are no canary, and their ids are remembered (P10).
const MOST_CANARIES: i64 = 10_000;

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
    /// Died since --version last became reachable, up to its withdrawal and what was still in flight then. Refused while
    /// tasks are routed to it. Stands for --all, and for --yes of a requeue.
    #[arg(long, requires = "version")]
    pub(crate) since_flip: bool,
}

/// What to act on, and how.
#[derive(Debug, Args)]
pub(crate) struct Act {
    #[arg(value_name = "TYPE")]
    pub(crate) task_type: TaskType,
    /// Task ids, or entry ids as `dead ls` shows them.
    #[arg(value_name = "ID", required_unless_present_any = ["all", "since_flip"])]
    #[arg(conflicts_with_all = ["all", "version", "reason", "error", "older_than", "newer_than", "since_flip", "after", "until"])]
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
