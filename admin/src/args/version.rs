//! `version …`.

use clap::{Args, Subcommand};
use switchback_common::{TaskType, Version};

#[derive(Debug, Subcommand)]
pub(crate) enum VersionVerb {
    /// List every version that a worker of the queue ever joined with: where it is routed, who has it, how it does.
    #[command(after_long_help = "\
JSON: [{queue, version, builds: [text], refused_builds: [text], first_seen_at|null, first_seen_at_us,
  routed, routes: [active|candidate|pins|targets], percent, live_workers, running, lane_waiting|null,
  last_hour: {done, retried, dead},
  retired: {at|null, at_us, by, why}|null, rolled_back: {at|null, at_us, rev, why, build|null}|null}]
builds: newest last; empty: no worker has said. refused_builds: builds that wanted the label and did not get it.
routed: whether a task may be routed to it; routes: where the gate names it. percent: its share beside pins and targets.
lane_waiting: tasks handed to it that no worker has taken; null: Redis cannot say. last_hour: attempts by how they ended.
rolled_back.build: the build that it was then, if anybody said; as another one it may be tried again.")]
    Ls {
        #[arg(value_name = "TYPE")]
        task_type: TaskType,
    },
    /// Take a version out of use: no gate can name it any more, and its label is never given to another build.
    ///
    /// Refused while the gate names it: flip first. Refused as well while its lane holds tasks, which pass the gate again
    /// within seconds, and while live workers have it: --force passes over both. `version restore` brings it back.
    #[command(after_long_help = RETIRE_JSON)]
    Retire {
        #[arg(value_name = "TYPE")]
        task_type: TaskType,
        #[arg(value_name = "VERSION")]
        version: Version,
        /// Even if its lane holds tasks, or live workers have it.
        #[arg(long)]
        force: bool,
        /// Only if the gate is still at this revision.
        #[arg(long, value_name = "N")]
        if_rev: Option<u64>,
        #[command(flatten)]
        options: VersionChange,
    },
    /// Bring a retired version back. Nothing is routed to it by that.
    #[command(after_long_help = RETIRE_JSON)]
    Restore {
        #[arg(value_name = "TYPE")]
        task_type: TaskType,
        #[arg(value_name = "VERSION")]
        version: Version,
        #[command(flatten)]
        options: VersionChange,
    },
}

const RETIRE_JSON: &str = "\
JSON: {queue, version, changed, dry_run, retired, warnings: [text]}
retired: whether it is afterwards (with --dry-run: whether it would be).";

/// Options of every change of a version.
#[derive(Debug, Args)]
pub(crate) struct VersionChange {
    /// Why: goes into the history.
    #[arg(long, value_name = "TEXT")]
    pub(crate) why: Option<String>,
    /// Who: goes into the history. Defaults to $USER.
    #[arg(long, value_name = "NAME")]
    pub(crate) by: Option<String>,
    /// Show what would happen, change nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,
}
