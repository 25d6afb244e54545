//! `rollout`.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Subcommand};
use switchback_common::{TaskType, Version};
use switchback_gates::rollout::{Inflight, Spec, StepSpec};

use super::Change;
use crate::text::duration;

const VIEW: &str = "\
JSON: {queue, id, status: running|paused|held|watching|promoted|rolled_back|aborted|overruled, from, to, build, rev, by, why, reason,
  step, steps: [{percent, bake_us, min_samples}], percent, began_at, began_at_us, step_since, step_since_us, baked_us, bake_left_us,
  watch_left_us|null, short: {percent, needed, slots}|null, counts: {active: {n, failed, dead, lost}, candidate: {…}}, verdict: {verdict: regressed|hold|insufficient|pass, …},
  tests: [{test, n_active, failed_active, n_candidate, failed_candidate, e_value, threshold, allowed}], driver|null,
  evidence|null, events: [{at, at_us, text}], dry_run}
  short: the step it is at, or the next, is more than live workers of the version have slots for.
  step counts from 1. counts: first attempts since it began, of one key a few per block; retries are not in it.";

#[derive(Debug, Subcommand)]
pub(crate) enum RolloutVerb {
    /// Ramp a version step by step; the guard rolls it back by itself if it is worse than the active one.
    ///
    /// Workers drive it: it goes on whoever dies, you included. Whoever sets the gate by hand ends it. Refused, with the
    /// reasons, for a version that is not ready (as `gate check` has it, for the share of the first step; up to 3 s), that was
    /// rolled back before (--again), that would have nobody to go back to, and while another rollout runs. Steps that the live
    /// workers have too few slots for are said; if it is far too few, the rollout is held before them until there are more.
    #[command(after_long_help = VIEW)]
    Start(Box<StartArgs>),
    /// Show the rollout that runs, or ran last: step, time, samples, tests, what happened.
    #[command(after_long_help = VIEW)]
    Status {
        #[arg(value_name = "TYPE")]
        task_type: TaskType,
    },
    /// Stay at this step until it is resumed. The guard watches on, and rolls back if it must.
    #[command(after_long_help = VIEW)]
    Pause {
        #[arg(value_name = "TYPE")]
        task_type: TaskType,
        #[command(flatten)]
        change: Change,
    },
    /// Go on after a pause; a step that was held has its whole time again.
    #[command(after_long_help = VIEW)]
    Resume {
        #[arg(value_name = "TYPE")]
        task_type: TaskType,
        #[command(flatten)]
        change: Change,
    },
    /// Go to the next step now, whatever its time and samples; with --all to 100 %. That the guard had not passed it is recorded.
    #[command(after_long_help = VIEW)]
    Promote {
        #[arg(value_name = "TYPE")]
        task_type: TaskType,
        /// To 100 % at once.
        #[arg(long)]
        all: bool,
        #[command(flatten)]
        change: Change,
    },
    /// End it: back to the version before.
    #[command(after_long_help = VIEW)]
    Abort {
        #[arg(value_name = "TYPE")]
        task_type: TaskType,
        /// Leave the gate as it is.
        #[arg(long)]
        keep: bool,
        #[command(flatten)]
        change: Change,
    },
}

/// What to ramp, and how.
#[derive(Debug, Args)]
pub(crate) struct StartArgs {
    #[arg(value_name = "TYPE")]
    pub(crate) task_type: TaskType,
    /// The version to try; the file may name it instead.
    #[arg(long, value_name = "VERSION")]
    pub(crate) to: Option<Version>,
    /// A TOML or YAML file: to, steps, bake, min_samples, extend, watch, inflight, min_workers, guard. Flags win over it; it
    /// wins over the queue's policy.
    #[arg(long, value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
    /// Shares of the version, going up. Defaults to 1,5,10,25,50,100.
    #[arg(long, value_name = "PERCENT,…", value_parser = steps)]
    pub(crate) steps: Option<Steps>,
    /// How long each step is watched at least. Defaults to 2m.
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(crate) bake: Option<Duration>,
    /// First attempts of the version that each step needs at least. Defaults to 300.
    #[arg(long, value_name = "N")]
    pub(crate) min_samples: Option<u64>,
    /// How long the guard watches on after 100 %. Defaults to 24h.
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    pub(crate) watch: Option<Duration>,
    /// What becomes of attempts that run on the version when it is rolled back: finish, cancel or revoke. Defaults to finish.
    #[arg(long, value_name = "POLICY", value_parser = inflight)]
    pub(crate) inflight: Option<Inflight>,
    /// How much more of its tasks the version may fail, in percentage points. Defaults to 0.5.
    #[arg(long, value_name = "POINTS")]
    pub(crate) margin: Option<f64>,
    /// Although the guard rolled this build of the version back before.
    #[arg(long)]
    pub(crate) again: bool,
    /// Although it is not ready, no live worker has one of the versions, or a candidate ramps already. Goes into the history.
    #[arg(long)]
    pub(crate) force: bool,
    #[command(flatten)]
    pub(crate) change: Change,
}

/// The steps of a flag.
#[derive(Debug, Clone)]
pub(crate) struct Steps(pub(crate) Vec<StepSpec>);

fn steps(text: &str) -> Result<Steps, String> {
    Spec::parse_steps(text).map(Steps).map_err(|e| e.to_string())
}

fn inflight(word: &str) -> Result<Inflight, String> {
    let all = [Inflight::Finish, Inflight::Cancel, Inflight::Revoke];
    let found = all.into_iter().find(|policy| policy.as_str() == word);
    found.ok_or_else(|| "write finish, cancel or revoke".to_owned())
}
