//! `config …`.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Subcommand};
use switchback_common::TaskType;

use super::InFlight;
use crate::{config::document::Syntax, text::duration};

const DOCUMENT: &str = "\
The document, TOML, YAML or JSON by the ending of its name; unknown keys are errors:
  namespace = \"shop\"
  [queues.TYPE.gate]            active, candidate (empty: none), percent, pins (table: key = version),
                                targets (table: \"header:value\" = version), paused
  [queues.TYPE.limits]          dead, waiting, concurrency, rate, rate_per_key: as in `queue limits`
  [queues.TYPE.retry]           max_attempts, first, longest (\"2s\", \"30m\"): in place of what the code says
  [queues.TYPE.rollout]         steps, bake, min_samples, extend, watch, inflight, min_workers, guard (a table): how
                                rollouts go by default
  [queues.TYPE.schedules.NAME]  cron, time_zone, missed, paused, key, payload (a value) or payload_json (JSON text)
A queue or a section that is not there is left alone, as is a field of the gate. Any other section that is there is all
there is: limits, retry and rollout fields that it does not name go back to their defaults, schedules that it does not
name are removed, but for those that code declares. A schedule that it names is no longer the code's.

Templates: a file NAME.toml.j2 (or .jinja), or any with --var, --vars or --env, is rendered as Jinja first.";

const CHANGES: &str = "\
changes: [{queue: TYPE, section: gate|limits|retry|rollout|schedules, field, before, after}]; null: it is not there
problems: [{queue: NAMESPACE/TYPE, code, text, forceable}], what speaks against applying it; warnings: [text]
Problem codes: those of `gate check`, no_queue, tasks_in_lane, queue_full, dead_limit; not forceable: gate_refused";

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigVerb {
    /// Write what Redis holds as a document: TOML, with -o yaml YAML, with -o json or jsonl JSON.
    ///
    /// Applying what was exported changes nothing. Schedules that code declares are not in it. What is more than a document
    /// may hold (1 MiB, 10 000 queues) cannot be applied, and that is said: export queues by their names then.
    #[command(after_long_help = DOCUMENT)]
    Export {
        /// Only these queues.
        #[arg(value_name = "TYPE")]
        task_types: Vec<TaskType>,
        /// Also sections that are empty: applied elsewhere, the document brings exactly this.
        #[arg(long)]
        complete: bool,
        /// What this revision left in force (all of it, as in --complete), instead of what holds now.
        #[arg(long, value_name = "N")]
        rev: Option<u64>,
    },
    /// Show what applying a document would change, field by field. Changes nothing.
    #[command(after_long_help = [DOCUMENT, "\n\nJSON: {namespace, revision, changed, changes, problems, warnings}\n", CHANGES].concat())]
    Diff {
        #[command(flatten)]
        source: DocumentSource,
        /// Exit with 10 when there is something to change.
        #[arg(long)]
        exit_code: bool,
    },
    /// Bring Redis to what a document says. Repeating it changes nothing.
    ///
    /// In each queue the gate comes last, and is changed only if it still is at the revision it was compared at: whoever
    /// changed it meanwhile wins, and the apply stops there and says what it left. Repeating it completes it. What would
    /// strand queued work is refused without --force.
    #[command(after_long_help = [DOCUMENT, "\n\n", APPLY_JSON, CHANGES].concat())]
    Apply {
        #[command(flatten)]
        source: DocumentSource,
        #[command(flatten)]
        options: ApplyOptions,
    },
    /// List revisions: what was applied when, by whom, and what it changed.
    #[command(after_long_help = "\
JSON: [{rev, at, at_us, source: apply|revert, reverts|null, by, why, state: done|stopped|unfinished, stopped|null, changed,
  changes: [{queue, section, field, before, after}], forced: [{queue, code, text, forceable}], kept}]
changed: how many fields; changes: as many as were kept. kept: whether its document was, so that it can be reverted to.
unfinished: it was cut short, or goes on at this moment. About 1000 revisions are kept, of 16 MiB in all.")]
    History {
        /// Most revisions to show.
        #[arg(long, default_value_t = 20, value_name = "N")]
        limit: usize,
    },
    /// Bring back what a revision left in force: gates, limits, policies and schedules of every queue it knew.
    ///
    /// Writes a new revision. Queues that came later are left alone.
    #[command(after_long_help = [APPLY_JSON, CHANGES].concat())]
    Revert {
        /// The revision, as `config history` numbers them.
        #[arg(long, value_name = "N")]
        to: u64,
        #[command(flatten)]
        options: ApplyOptions,
    },
    /// Show where Redis is not what a document says, and who changed it.
    ///
    /// Gates know it from their history; limits, policies and schedules from the queue's log, which does not see what is
    /// done with redis-cli. Whatever is not known is said to be so.
    #[command(after_long_help = [DOCUMENT, "\n\n\
JSON: {namespace, drifted, drift: [{queue, section, field, file, redis,
  who: {source, by, why, rev|null, at, at_us}|null, note|null}], problems, warnings}"].concat())]
    Drift {
        #[command(flatten)]
        source: DocumentSource,
        /// Exit with 10 when there is drift.
        #[arg(long)]
        exit_code: bool,
    },
}

const APPLY_JSON: &str = "\
JSON: {namespace, changed, dry_run, complete, revision, reverts|null, changes, problems, warnings,
  inflight: finish|cancel|revoke, applied: [{queue, section}], left: [{queue, section}], stopped|null, diff: {before, after}, confirmations: [{queue, rev,
  confirmed, total, took_us, running, missing}], partly: {queue, section, written}|null}
changed: whether it changed anything; in a dry run, whether it would. complete: nothing is left. revision: of the
configuration, afterwards. partly: of what is left, the section of which something was written. diff: the queues named as TOML, before and after. confirmations: with --wait.
";

/// Where the document comes from.
#[derive(Debug, Args)]
pub(crate) struct DocumentSource {
    /// The document; `-` is standard input.
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// How it is written; needed for `-` and unknown endings.
    #[arg(long, value_enum, value_name = "SYNTAX")]
    pub(crate) format: Option<Syntax>,
    /// A variable of the template, always text; over those of --vars. May be repeated.
    #[arg(long = "var", value_name = "NAME=VALUE", value_parser = variable)]
    pub(crate) variables: Vec<(String, String)>,
    /// A file of variables: TOML, YAML or JSON.
    #[arg(long, value_name = "FILE")]
    pub(crate) vars: Option<PathBuf>,
    /// The section of the file of variables that lies over its top level, e.g. `production`. It is the variable `env`, too.
    #[arg(long, value_name = "NAME", requires = "vars")]
    pub(crate) env: Option<String>,
}

/// How to apply.
#[derive(Debug, Args)]
pub(crate) struct ApplyOptions {
    /// Only if the configuration is still at this revision: the number of its last apply or revert, 0 for none.
    #[arg(long, value_name = "N")]
    pub(crate) if_rev: Option<u64>,
    /// Apply although it strands queued work. Is recorded, with the reasons.
    #[arg(long)]
    pub(crate) force: bool,
    /// What becomes of attempts that run on versions which get nothing any more from the gates that this changes. Goes into
    /// their histories.
    #[arg(long, value_enum, default_value_t = InFlight::Finish, value_name = "POLICY")]
    pub(crate) inflight: InFlight,
    /// Wait until every live worker obeys the changed gates; if not all do in time, exit with 6 and say who.
    #[arg(long)]
    pub(crate) wait: bool,
    /// How long to wait, e.g. 10s, 500ms, 2m.
    #[arg(long, default_value = "10s", requires = "wait", value_name = "DURATION", value_parser = duration)]
    pub(crate) timeout: Duration,
    /// Show what would change, change nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Why: goes into every history and log that this writes.
    #[arg(long, value_name = "TEXT")]
    pub(crate) why: Option<String>,
    /// Who: goes into every history and log that this writes. Defaults to $USER.
    #[arg(long, value_name = "NAME")]
    pub(crate) by: Option<String>,
    /// Accepted for scripts: no command asks a question.
    #[arg(long)]
    pub(crate) yes: bool,
}

fn variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("write NAME=VALUE".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use switchback_gates::rollout::Spec;

    #[test]
    fn the_help_names_every_field_of_a_rollout() {
        let spec = serde_json::to_value(Spec::default()).unwrap();
        let fields = spec.as_object().unwrap().keys().filter(|field| *field != "to");
        let missing: Vec<&String> = fields
            .filter(|field| !super::DOCUMENT.contains(field.as_str()))
            .collect();
        assert!(missing.is_empty(), "{missing:?}");
    }
}
