//! The command line: `switchback <noun> <verb>`. The long help is the reference of the JSON output.

mod blast;
mod config;
mod dead;
mod enqueue;
mod gate;
mod limits;
mod log;
mod rollout;
mod schedule;
mod version;
mod when;

use std::{path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand};
use switchback_common::{TaskId, TaskType};

pub(crate) use self::blast::{Asked, BlastArgs, Pick};
pub(crate) use self::config::{ApplyOptions, ConfigVerb, DocumentSource};
pub(crate) use self::dead::{Act, Canary, DeadVerb, Rate, Which};
pub(crate) use self::enqueue::{EnqueueOptions, IfTaken, PayloadSource};
pub(crate) use self::gate::{Change, GateVerb, HistoryFilter, InFlight};
pub(crate) use self::limits::LimitEdits;
pub(crate) use self::log::{LOG_JSON, LogFilter};
pub(crate) use self::rollout::{RolloutVerb, StartArgs};
pub(crate) use self::schedule::{Remark, ScheduleVerb};
pub(crate) use self::version::{VersionChange, VersionVerb};
pub(crate) use self::when::When;
use crate::{output::Format, text::duration};

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  failed, or interrupted; gate blast --certificate: something was started late
  2  usage or configuration: what cannot be meant, whatever Redis says
  3  Redis unreachable
  4  no such queue, task, version, dead letter or schedule
  5  refused: --if-rev moved, a value that the gate does not take, not ready (gate check, gate set, rollout start), limit; a
     canary failed
  6  committed, but not everyone confirmed (--wait, --drain); a canary or a task did not end in time; a certificate that
     cannot be decided yet
  10  config diff, config drift with --exit-code: something differs

Settings: flag > environment (SWITCHBACK_REDIS_URL, SWITCHBACK_NAMESPACE) > ./switchback.toml, else
~/.config/switchback/config.toml > default. The file holds `namespace` and `[redis]` with `url`, `url_file`, `prefix`.

JSON output is stable: fields are added, never renamed. A time is two fields: RFC 3339, and `…_us`, µs since 1970.
`<command> --help` lists the fields.";

/// Look at Switchback queues and steer them: which version runs, what waits, what died, who works.
///
/// Data goes to stdout, everything else to stderr. Nothing ever asks a question.
#[derive(Debug, Parser)]
#[command(name = "switchback", version, arg_required_else_help = true, subcommand_required = true, after_help = EXIT_CODES)]
#[command(disable_help_subcommand = true, max_term_width = 110)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) noun: Noun,
}

/// Options of every command.
#[derive(Debug, Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Global {
    /// The namespace: application or team. Environment: SWITCHBACK_NAMESPACE. Defaults to `default`.
    #[arg(short, long, global = true, value_name = "NAME")]
    pub(crate) namespace: Option<String>,
    // Not clap's `env`: its help and errors would print the value, password and all.
    /// Where Redis is, e.g. `redis://user:password@host:6379/0`. Environment: SWITCHBACK_REDIS_URL, which unlike a flag
    /// is not in the process list. Defaults to `redis://127.0.0.1:6379`.
    #[arg(long, global = true, value_name = "URL")]
    pub(crate) redis: Option<String>,
    /// A TOML file with settings. Defaults to ./switchback.toml, else ~/.config/switchback/config.toml, if they exist.
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// How to write data.
    #[arg(short, long, global = true, value_enum, default_value_t = Format::Table, value_name = "FORMAT")]
    pub(crate) output: Format,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Noun {
    /// Which version runs: show, roll back, ramp, pause.
    #[command(subcommand)]
    Gate(GateVerb),
    /// Ramp a version step by step, with a guard that rolls it back by itself.
    #[command(subcommand)]
    Rollout(RolloutVerb),
    /// What waits, what runs, what is wrong.
    #[command(subcommand)]
    Queue(QueueVerb),
    /// One task: enqueue it, find it, wait for it, cancel it.
    #[command(subcommand)]
    Task(TaskVerb),
    /// Tasks that will not be tried again by themselves.
    #[command(subcommand)]
    Dead(DeadVerb),
    /// Periodic tasks: what fires when.
    #[command(subcommand)]
    Schedule(ScheduleVerb),
    /// The versions of a queue: which build, who has it, take it out of use.
    #[command(subcommand)]
    Version(VersionVerb),
    /// Who works.
    #[command(subcommand)]
    Worker(WorkerVerb),
    /// The configuration of a namespace as a document: export, diff, apply, revert, drift.
    #[command(subcommand)]
    Config(ConfigVerb),
}

#[derive(Debug, Subcommand)]
pub(crate) enum QueueVerb {
    /// List the queues of the namespace.
    #[command(after_long_help = "\
JSON: [{queue, namespace, task_type, rev|null, gate|null, waiting, waiting_is_lower_bound, in_flight, delayed, dead,
  live_workers, hints: [{level, code, text}], error|null}]")]
    Ls,
    /// Show one queue: what lies where, its gate, its workers, and what needs attention.
    #[command(after_long_help = "\
JSON: {queue, namespace, task_type, rev|null, gate|null, changed|null,
  depth: {waiting, waiting_is_lower_bound, in_flight, delayed, dead, newer,
          streams: [{name: main|head|high|low|suspect|lane:VERSION, waiting|null, in_flight, group}]},
  versions: [{version, routed, live_workers, running}], live_workers, confirmed,
  hints: [{level: critical|warning|info, code, text}]}
Hint codes: no_gate, no_group, regressed, paused, no_workers, no_worker_for_version, parked, lost_sessions,
  unconfirmed, edit_refused, suspects, dead_letters, dead_limit, queue_full, bad_limits, bad_policy, breaker_open,
  newer_format, rollout_running, rollout_held, rollout_overruled, rollback_by_guard
newer: tasks of a newer format than this release knows, left for workers that know it.")]
    Show {
        #[arg(value_name = "TYPE")]
        task_type: TaskType,
    },
    /// Show or set the limits of a queue, beside what is used of them.
    ///
    /// Enqueueing is refused at the limit of waiting tasks; what is in the queue already moves freely. At the limit of
    /// dead letters the queue is put on hold until a person resumes it: nothing is ever trimmed. Workers keep to the others
    /// within a second; what runs goes on. By hand: HSET sb:limits:{NAMESPACE:TYPE}.
    #[command(after_long_help = "\
JSON: {queue, changed, limits: [{name: dead|waiting|concurrency|rate|rate_per_key, limit: number|\"100/s+20\"|null,
  default|null, set, in_use|null, problem|null}], problems: [text]}
limit, default: null is none. set: whether somebody set it. in_use: for concurrency what live workers said they run.
problems: what in the hash makes no sense and so does not count; problem: that of this limit.")]
    Limits {
        #[arg(value_name = "TYPE")]
        task_type: TaskType,
        #[command(flatten)]
        edits: LimitEdits,
    },
    /// What people, rollouts and workers did to one queue, newest first: changes of its gate, limits and schedules, dead
    /// letters requeued and discarded, cancellations, rollouts, alerts.
    ///
    /// The everyday of workers (joined, left, reaping, recovered, scheduled, settled) is shown when asked for: --kind.
    #[command(after_long_help = LOG_JSON)]
    Log {
        #[arg(value_name = "TYPE")]
        task_type: TaskType,
        #[command(flatten)]
        filter: LogFilter,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum TaskVerb {
    /// Enqueue one task; prints its id. Creates the queue if there is none.
    #[command(after_long_help = "\
JSON: {queue, id, existing}
existing: the id is that of another task, which has the unique key; nothing was enqueued.")]
    Enqueue {
        #[arg(value_name = "TYPE")]
        task_type: TaskType,
        #[command(flatten)]
        source: PayloadSource,
        #[command(flatten)]
        options: EnqueueOptions,
    },
    /// Wait until a task has ended, and print its result.
    ///
    /// Only for tasks whose result is kept: `task enqueue --keep-result`, or as the worker has it. Exits with 0 when it
    /// is done, 1 when it is a dead letter, expired or cancelled, 4 when it left nothing, 6 when it has not ended in time.
    #[command(after_long_help = "\
JSON: {queue, id, state: done|dead|cancelled|expired|not_ended|unknown, result|null, error|null,
  progress: {done, total, note}|null}")]
    Wait {
        #[arg(value_name = "TYPE")]
        task_type: TaskType,
        #[arg(value_name = "ID")]
        id: TaskId,
        /// How long to wait, e.g. 30s, 500ms, 2m.
        #[arg(long, default_value = "30s", value_name = "DURATION", value_parser = duration)]
        timeout: Duration,
    },
    /// Cancel tasks: what waits does not start, what is delayed is taken out, a running handler is told to end.
    ///
    /// A handler that was told has 5 s, is then dropped, and the task is not tried again. If it succeeds all the same, the
    /// task is done. Exits with 4 when a task was not found within the window that `task show` searches, with 5 when
    /// one is settled already or a dead letter. Repeating it is harmless.
    #[command(after_long_help = "\
JSON: [{queue, id, outcome: removed|waiting|running|marked|started|settled|dead|not_found, cancelled, dry_run, text}]")]
    Cancel {
        #[arg(value_name = "TYPE")]
        task_type: TaskType,
        #[arg(value_name = "ID", required = true)]
        ids: Vec<TaskId>,
        #[command(flatten)]
        options: CancelOptions,
    },
    /// Find one task: where it is, what it went through.
    ///
    /// Looks at its own place, then through the newest 10 000 entries of each stream and of the log.
    #[command(after_long_help = "\
JSON: {queue, id, state: waiting|in_flight|delayed|done|dead|cancelled|gone, place|null, entry|null, attempt, deaths, recovered,
  key|null, priority: high|low|null, unique|null, snoozes, enqueued_at|null, enqueued_at_us|null, due_at|null, due_at_us|null,
  expires_at|null, expires_at_us|null,
  held_by: {session, host|null, pid|null, live, since|null, since_us, version|null}|null, headers: {}, errors: [{attempt, version, error, at, at_us}],
  attempts: [{attempt, version, rev, stream, entry, outcome, ran_ms, session, gate_read_at, gate_read_at_us,
              settled_at, settled_at_us}],
  log_complete, dead: {entry, reason, error, version, session, at, at_us}|null,
  cancel_asked_at|null, cancel_asked_at_us|null,
  kept: {state: running|done|dead|cancelled|expired, at, at_us, attempt, version|null, result|null, error|null,
         progress: {done, total, note}|null}|null,
  payload|null, payload_encoding: utf8|escaped|null, malformed|null}
priority: null is normal. unique: the key it was enqueued under. snoozes: how often its handler put it off.
expires_at: from then on it is not started any more.
held_by.version: the one that the gate gives it, unless the gate changed since.
log_complete: whether all of the log that may speak of the task was read.")]
    Show {
        #[arg(value_name = "TYPE")]
        task_type: TaskType,
        #[arg(value_name = "ID")]
        id: TaskId,
    },
}

/// How to cancel.
#[derive(Debug, Args)]
pub(crate) struct CancelOptions {
    /// Why: goes into the log.
    #[arg(long, value_name = "TEXT")]
    pub(crate) why: Option<String>,
    /// Who: goes into the log. Defaults to $USER.
    #[arg(long, value_name = "NAME")]
    pub(crate) by: Option<String>,
    /// Leave tasks alone of which an attempt has begun.
    #[arg(long)]
    pub(crate) unstarted: bool,
    /// Show what would be met, change nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum WorkerVerb {
    /// List sessions: one per worker and queue.
    #[command(after_long_help = "\
JSON: [{queue, session, state: live|lost|recovering, host|null, pid|null, build|null, versions: [], concurrency|null,
  rev|null, behind, running: {version: attempts}, open: [version], lease_ms|null, started_at|null, started_at_us|null}]
open: versions that it holds because they fail there: their circuit breakers are open.
behind: whether it has not confirmed the gate's revision yet.")]
    Ls {
        /// Only of this queue.
        #[arg(value_name = "TYPE")]
        task_type: Option<TaskType>,
    },
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn the_commands_are_sound() {
        super::Cli::command().debug_assert();
    }
}
