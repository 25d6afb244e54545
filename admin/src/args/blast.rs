//! `switchback gate blast`.

use clap::{Args, ValueEnum};
use switchback_common::{TaskType, Version};
use switchback_gates::blast::{Fate, Outcome};

use super::When;

pub(crate) const BLAST_HELP: &str = "\
What is counted
  attempts    every attempt on the version whose gate was read within the window, by how it ended: done; retried (failed, and
              is tried again); dead (failed for the last time); released, snoozed, cancelled, revoked; stale (its result came
              after its session was lost, and was refused); vanished (its session was lost with it: whether it began nobody
              knows); running (a session holds it now).
  tasks       each once, by what became of it: done_on_it (a candidate for compensation if it was done wrongly), recovered
              (did not end on the version and was done on another one), waiting (failed on it last and waits for a retry),
              dead (died on it and still is a dead letter), running, in_line (given back, recovered, revoked, requeued or put
              off), failed_elsewhere (failed on another version afterwards), cancelled, discarded, unknown.
  duplicated  effects possibly duplicated: more than one attempt of the task, on any version, may have had effects, and at
              least one of them is counted here. An attempt may have had effects if its handler began and did not put the
              task off itself. Attempts before the window are told by the attempt's number.

How exact it is
  What ended is exact as far back as the log reaches: `complete` and `complete_from` say so. Where a vanished attempt ran is
  computed again from the gate's history, its key and the time for which it was held: exact if one version was possible all
  the while, else it is `one_of` several and its task is touched `perhaps`. `notes` says whatever else is not exact.

Certificate
  Proves from the log that nothing started on the version after it was withdrawn: attempts on it whose gate was read after
  the flip must be 0. Verdicts: none; late (exit code 1); undecidable (the server became another between the two times) and
  incomplete (the log begins after the flip, or attempts still run and are not in the log yet): exit code 6. Attempts that
  vanished never come into the log: not_in_log.

JSON: {queue, version, since, since_us, until, until_us, reachable,
  made_reachable: {rev, at, at_us, by, why, source}|null, withdrawn: {…}|null,
  attempts: {total, by_outcome: {OUTCOME: n}, one_of, unsure},
  tasks: {touched, perhaps, by_fate: {FATE: n}, duplicated, refunded},
  running: {published, held, held_complete}, complete, complete_from|null, complete_from_us|null, notes: [text],
  certificate: {verdict: none|late|undecidable|incomplete, flip: {rev, …}, attempts, late, late_starts: [{task, version, rev,
    sealed}], undecidable, last_gate_read|null, last_gate_read_us|null, from, from_us, until, until_us, complete,
    not_in_log: {running, vanished, stale}}|null}
published: what live workers said they run on the version; held: tasks held whose version it is, or may be.
unsure: attempts of batches that took effect in part only.
With -o jsonl, one object per task instead: {id, entry|null, fate, state, perhaps, duplicated, refunded,
  attempts: [{attempt|null, version|null, one_of: [version], outcome, refused|null, rev|null, gate_read_at|null,
              gate_read_at_us|null, claimed_at|null, claimed_at_us|null, settled_at|null, settled_at_us|null, ran_ms|null,
              session, stream, entry, sure}]}; all its attempts since the window began, in no order of the tasks.";

/// What of which version.
#[derive(Debug, Args)]
pub(crate) struct BlastArgs {
    #[arg(value_name = "TYPE")]
    pub(crate) task_type: TaskType,
    /// The version.
    #[arg(long, value_name = "VERSION")]
    pub(crate) version: Version,
    /// From when on: a time (2026-12-24T18:00:00Z), or how long ago (2h). Defaults to when it last became reachable.
    #[arg(long, value_name = "TIME")]
    pub(crate) since: Option<When>,
    /// Until when. Defaults to now.
    #[arg(long, value_name = "TIME")]
    pub(crate) until: Option<When>,
    /// Only tasks with an attempt on it that ended so, or that this became of; for --ids and -o jsonl.
    #[arg(long, value_name = "WORD", value_enum)]
    pub(crate) outcome: Option<Pick>,
    /// Write the ids of the tasks, one a line.
    #[arg(long)]
    pub(crate) ids: bool,
    /// Prove that nothing started on it after it was withdrawn.
    #[arg(long)]
    pub(crate) certificate: bool,
}

/// Which tasks to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Pick {
    Done,
    Retried,
    Dead,
    Released,
    Snoozed,
    Cancelled,
    Revoked,
    Stale,
    Vanished,
    Running,
    /// Did not end on it, and was done on another version.
    Recovered,
    /// Failed on it, last, and waits for a retry.
    Waiting,
    /// More than one attempt may have had effects.
    Duplicated,
}

/// What [`Pick`] asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asked {
    Outcome(Outcome),
    Fate(Fate),
    Duplicated,
}

impl Pick {
    pub(crate) fn asked(self) -> Asked {
        match self {
            Self::Done => Asked::Outcome(Outcome::Done),
            Self::Retried => Asked::Outcome(Outcome::Retried),
            Self::Dead => Asked::Outcome(Outcome::Dead),
            Self::Released => Asked::Outcome(Outcome::Released),
            Self::Snoozed => Asked::Outcome(Outcome::Snoozed),
            Self::Cancelled => Asked::Outcome(Outcome::Cancelled),
            Self::Revoked => Asked::Outcome(Outcome::Revoked),
            Self::Stale => Asked::Outcome(Outcome::Stale),
            Self::Vanished => Asked::Outcome(Outcome::Vanished),
            Self::Running => Asked::Outcome(Outcome::Running),
            Self::Recovered => Asked::Fate(Fate::Recovered),
            Self::Waiting => Asked::Fate(Fate::Waiting),
            Self::Duplicated => Asked::Duplicated,
        }
    }
}
