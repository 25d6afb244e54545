//! `gate …`.

use std::time::Duration;

use clap::{Args, Subcommand};
use switchback_common::{TaskType, Version};
use switchback_gates::Share;

use super::{
    When,
    blast::{BLAST_HELP, BlastArgs},
};
use crate::text::duration;

#[derive(Debug, Subcommand)]
pub(crate) enum GateVerb {
    /// Show the gate in force, who set it, and who obeys it.
    #[command(after_long_help = "\
JSON: {queue, namespace, task_type, rev, gate: {active, candidate|null, percent, pins: {key: version},
  targets: {HEADER:VALUE: version}, paused}, changed: {at, at_us, by, why, source, inflight: finish|cancel|revoke}|null,
  versions: [{version, routed, live_workers, running}],
  live_workers, confirmed, hints: [{level: critical|warning|info, code, text}]}
with --at: {queue, namespace, task_type, at, at_us, rev, gate, changed, until: {rev, changed}|null}
until: the revision that took its place; null if it is in force still.")]
    Show {
        #[arg(value_name = "TYPE")]
        task_type: TaskType,
        /// The gate that was in force then: a time (2026-12-24T18:00:00Z), or how long ago (2h). Exits with 4 when the history
        /// does not reach so far back.
        #[arg(long, value_name = "TIME")]
        at: Option<When>,
    },
    /// Change fields of the gate in one revision.
    ///
    /// Fields: active=VERSION, candidate=VERSION (empty: none), percent=0…100, pins="KEY=VERSION …",
    /// targets="HEADER:VALUE=VERSION …" (empty: none), paused=true|false. Pins win over targets, targets over the percent.
    /// Giving a version more of the tasks is refused if it is not ready for them (`gate check`), unless with --force.
    #[command(after_long_help = CHANGE_JSON)]
    Set {
        #[arg(value_name = "TYPE")]
        task_type: TaskType,
        /// What to change, e.g. `candidate=v2 percent=10`. With --inflight it may be nothing.
        #[arg(required_unless_present = "inflight", value_name = "FIELD=VALUE", value_parser = field)]
        fields: Vec<(&'static str, String)>,
        /// Obey even if the version is not ready. What speaks against it goes into the history.
        #[arg(long)]
        force: bool,
        /// What becomes of attempts that run on versions which no task may be routed to any more, whichever change
        /// withdrew them.
        #[arg(long, value_enum, default_value_t = InFlight::Finish, value_name = "POLICY")]
        inflight: InFlight,
        #[command(flatten)]
        change: Change,
    },
    /// Is a version ready for its share of the tasks? Changes nothing; takes up to 3 s.
    ///
    /// Asks whether live workers have it and are enough for the load of the last minutes, and one of them whether it can
    /// read what waits: a sample of at most 64 tasks and 1 MiB. Exits with 5 if something blocks. `gate set` asks the same.
    #[command(after_long_help = "\
JSON: {queue, version, percent, ready, objections: [{code, level: blocks|warns, text}],
  capacity: {sessions, held, slots, needed|null, rate_per_sec, mean_ms|null},
  sample: {looked_at, readable, unreadable: [{id, place, error, malformed}], left_out},
  backlog: {waiting, drain_secs|null}}
Codes: unknown_version, retired, rolled_back, no_worker, breaker_open, too_few_slots, nearly_busy, cannot_read, malformed,
  no_answer, long_drain.
needed: slots that its share of the load takes. held: of its live workers, how many hold it because it fails.
malformed: not JSON, which no version can read. left_out: tasks too large for the sample.")]
    Check {
        #[arg(value_name = "TYPE")]
        task_type: TaskType,
        /// The version that is to get tasks.
        #[arg(long, value_name = "VERSION")]
        to: Version,
        /// How much of them, 0 to 100.
        #[arg(long, default_value = "100", value_name = "P", value_parser = percent)]
        percent: Share,
    },
    /// Roll back: one version alone, whatever was going on. Takes effect at once.
    ///
    /// Without --to: a ramp ends at the active version; else the version active before comes back. Repeating it
    /// changes nothing: it never goes forward again. It goes through even if no live worker has the version.
    #[command(after_long_help = CHANGE_JSON)]
    Rollback {
        #[arg(value_name = "TYPE")]
        task_type: TaskType,
        /// The version to go to.
        #[arg(long, value_name = "VERSION")]
        to: Option<Version>,
        /// What becomes of attempts that run on other versions, whichever change withdrew those.
        #[arg(long, value_enum, default_value_t = InFlight::Finish, value_name = "POLICY")]
        inflight: InFlight,
        #[command(flatten)]
        change: Change,
    },
    /// Start nothing in this queue until it is resumed. What runs goes on.
    #[command(after_long_help = CHANGE_JSON)]
    Pause {
        #[arg(value_name = "TYPE")]
        task_type: TaskType,
        #[command(flatten)]
        change: Change,
    },
    /// Start tasks again: after a pause, or after a gate that went backwards was checked.
    ///
    /// Refused while dead letters are at their limit, for workers would hold the queue again at once: requeue or discard
    /// some (`switchback dead`), or raise the limit (`switchback queue limits`).
    #[command(after_long_help = CHANGE_JSON)]
    Resume {
        #[arg(value_name = "TYPE")]
        task_type: TaskType,
        #[command(flatten)]
        change: Change,
    },
    /// Show what a version did to which tasks, and what became of them: after a rollback, before anything is repaired.
    ///
    /// Reads the queue's log and the gate's history; changes nothing.
    #[command(after_long_help = BLAST_HELP)]
    Blast(BlastArgs),
    /// Write the gate of an earlier revision again, as a new revision.
    ///
    /// All of it: active, candidate, percent, pins, targets, and whether it is paused. Refused when it names a version that
    /// is not known any more or retired, and, without --force, when one that gets more of the tasks is not ready for them
    /// (`gate check`). Exits with 4 when the history does not keep that revision.
    #[command(after_long_help = CHANGE_JSON)]
    Revert {
        #[arg(value_name = "TYPE")]
        task_type: TaskType,
        /// The revision whose gate is to be in force again.
        #[arg(long, value_name = "N")]
        to_rev: u64,
        /// Obey even if a version of it is not ready. What speaks against it goes into the history.
        #[arg(long)]
        force: bool,
        /// What becomes of attempts that run on versions which get nothing any more.
        #[arg(long, value_enum, value_name = "POLICY", default_value = "finish")]
        inflight: InFlight,
        #[command(flatten)]
        change: Change,
    },
    /// Every revision, newest first: what, who, why; refused and partly dropped edits too.
    #[command(after_long_help = "\
JSON: [{entry, kind: change|refused|note|restored, rev, at, at_us, source, by, why, op|null, forced|null,
  inflight: finish|cancel|revoke, changes: [text], before: gate|null, after: gate|null,
  dropped: {field: value}|null, refused: {field: problem}|null}]
source: cli, redis-cli (by hand), guard, rollout, config, seed (the first worker), limit and regress (workers held the queue).
op: the request that made it. forced: the objections that --force, or a promotion by hand, passed over. changes: what is different, field by field.")]
    History {
        #[arg(value_name = "TYPE")]
        task_type: TaskType,
        #[command(flatten)]
        filter: HistoryFilter,
    },
}

/// Which revisions.
#[derive(Debug, Args)]
pub(crate) struct HistoryFilter {
    /// Most entries to show.
    #[arg(long, default_value_t = 20, value_name = "N")]
    pub(crate) limit: usize,
    /// From when on: a time (2026-12-24T18:00:00Z), or how long ago (2h).
    #[arg(long, value_name = "TIME")]
    pub(crate) since: Option<When>,
    /// Until when.
    #[arg(long, value_name = "TIME")]
    pub(crate) until: Option<When>,
    /// Only what speaks of this revision.
    #[arg(long, value_name = "N")]
    pub(crate) rev: Option<u64>,
    /// Only what came from there, e.g. redis-cli.
    #[arg(long, value_name = "SOURCE")]
    pub(crate) source: Option<String>,
}

const CHANGE_JSON: &str = "\
JSON: {queue, changed, dry_run, rev, before: gate|null, after: gate, inflight: finish|cancel|revoke,
  dropped: {field: value}|null, warnings: [text],
  confirmation: {confirmed, total, took_us, running: {version: attempts},
                 missing: [{session, host, pid, rev|null}],
                 drain: {drained, took_us, still: [{session, host|null, pid|null, version, attempts|null,
                                                    state: running|unconfirmed|lost}]}|null}|null}
  where gate = {active, candidate|null, percent, pins: {key: version}, targets: {HEADER:VALUE: version}, paused}
attempts: at most so many; null: nobody knows. lost: its lease ran out and its tasks are not recovered yet.";

/// What becomes of attempts that run on withdrawn versions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum InFlight {
    /// They go on, and their results count.
    Finish,
    /// Their handlers are told to end and have 5 s; whoever does not succeed runs again where the gate says now, and the
    /// attempt does not count.
    Cancel,
    /// As cancel, and no result counts any more, from the moment of the change: all of them run again.
    Revoke,
}

impl InFlight {
    /// As the gate's field has it.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Finish => "finish",
            Self::Cancel => "cancel",
            Self::Revoke => "revoke",
        }
    }

    /// The field to set, if any.
    pub(crate) fn field(self) -> Option<(&'static str, String)> {
        (self != Self::Finish).then(|| ("inflight", self.word().to_owned()))
    }
}

/// Options of every change of a gate.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("waits").args(["wait", "drain"]).multiple(true))]
pub(crate) struct Change {
    /// Why: goes into the history.
    #[arg(long, value_name = "TEXT")]
    pub(crate) why: Option<String>,
    /// Who: goes into the history. Defaults to $USER.
    #[arg(long, value_name = "NAME")]
    pub(crate) by: Option<String>,
    /// Only if the gate is still at this revision.
    #[arg(long, value_name = "N")]
    pub(crate) if_rev: Option<u64>,
    /// Wait until every live worker obeys; if not all do in time, exit with 6 and say who.
    #[arg(long)]
    pub(crate) wait: bool,
    /// --wait, and then until nothing runs any more on versions that the change withdrew; after a pause, until nothing runs.
    /// If something still runs when the time is up, exit with 6 and say where.
    #[arg(long)]
    pub(crate) drain: bool,
    /// How long to wait in all, e.g. 10s, 500ms, 2m.
    #[arg(long, default_value = "10s", requires = "waits", value_name = "DURATION", value_parser = duration)]
    pub(crate) timeout: Duration,
    /// Show before and after, change nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Accepted for scripts: no command asks a question.
    #[arg(long)]
    pub(crate) yes: bool,
}

/// The fields that people set, `only` apart: that is what `gate rollback` sends.
const FIELDS: [&str; 6] = ["active", "candidate", "percent", "pins", "targets", "paused"];

fn percent(text: &str) -> Result<Share, String> {
    let number = text.trim_end_matches('%').trim();
    Share::parse(number).ok_or_else(|| "write a percentage from 0 to 100, such as 10 or 0.5".to_owned())
}

/// Reads `field=value`. What values mean is judged later.
fn field(word: &str) -> Result<(&'static str, String), String> {
    let fields = FIELDS.join(", ");
    let (name, value) = word
        .split_once('=')
        .ok_or_else(|| format!("not FIELD=VALUE; fields: {fields}"))?;
    match FIELDS.into_iter().find(|field| *field == name) {
        Some(field) => Ok((field, value.trim().to_owned())),
        None if name == "inflight" => Err("for `inflight` there is --inflight finish|cancel|revoke".to_owned()),
        None if name == "only" => Err("for `only` there is `switchback gate rollback TYPE --to VERSION`".to_owned()),
        None => Err(format!("unknown field; fields: {fields}")),
    }
}
