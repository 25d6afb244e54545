//! `schedule …`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use switchback_common::{TaskType, schedule, schedule::ScheduleName};

const CHANGE_JSON: &str = "\
JSON: {queue, name, changed, dry_run, before: schedule|null, after: schedule|null, warnings: [text],
  next: [{at, at_us, local}]}
  where schedule is as in `schedule show`";

#[derive(Debug, Subcommand)]
pub(crate) enum ScheduleVerb {
    /// List schedules and when each fires next.
    #[command(after_long_help = "\
JSON: [schedule], each as in `schedule show`")]
    Ls {
        /// Only of this queue.
        #[arg(value_name = "TYPE")]
        task_type: Option<TaskType>,
    },
    /// Show one schedule: definition, last and next firing.
    #[command(after_long_help = "\
JSON: {queue, name, cron, time_zone, missed: skip|once|all, paused, source: code|cli, key|null, by, why, payload,
  counted_from|null, counted_from_us|null, next|null: {at, at_us, local}, broken|null}
counted_from: the last tick fired, or since when ticks are counted. broken: what is wrong with the definition; it fires
nothing then, and only queue, name, payload (the definition as it stands there) and broken are meaningful.")]
    Show {
        #[arg(value_name = "TYPE")]
        task_type: TaskType,
        #[arg(value_name = "NAME")]
        name: ScheduleName,
    },
    /// Make a schedule, or change one: what is not given stays as it is.
    ///
    /// One task is enqueued per tick, whatever the number of workers, by any live worker of the queue; a paused gate lets
    /// it wait in line. From now on no code changes this schedule, until it is removed. New times count from now on.
    #[command(after_long_help = CHANGE_JSON)]
    Set {
        #[arg(value_name = "TYPE")]
        task_type: TaskType,
        #[arg(value_name = "NAME")]
        name: ScheduleName,
        /// `minute hour day month weekday`, or six fields beginning with seconds. One time of day (`30 2 * * *`) is due
        /// once a day even when clocks change; anything else counts local times as they pass.
        #[arg(long, value_name = "EXPRESSION", allow_hyphen_values = true)]
        cron: Option<String>,
        /// A zone of the IANA database, e.g. Europe/Berlin. Defaults to UTC.
        #[arg(long, value_name = "ZONE")]
        time_zone: Option<String>,
        /// The payload of each task: JSON.
        #[arg(long, value_name = "JSON", allow_hyphen_values = true)]
        payload: Option<String>,
        /// Read the payload from a file.
        #[arg(long, value_name = "FILE", conflicts_with = "payload")]
        file: Option<PathBuf>,
        /// What percent and pins look at: customer, order… Empty: the id of each task, which is the default.
        #[arg(long, value_name = "KEY")]
        key: Option<String>,
        /// What becomes of ticks while no worker lives. Defaults to once.
        #[arg(long, value_enum, value_name = "POLICY")]
        missed: Option<Missed>,
        #[command(flatten)]
        remark: Remark,
    },
    /// Fire nothing until it is resumed. Workers that join leave it paused, too.
    #[command(after_long_help = CHANGE_JSON)]
    Pause {
        #[arg(value_name = "TYPE")]
        task_type: TaskType,
        #[arg(value_name = "NAME")]
        name: ScheduleName,
        #[command(flatten)]
        remark: Remark,
    },
    /// Fire again, from the next tick on: ticks during the pause are not made up for.
    #[command(after_long_help = CHANGE_JSON)]
    Resume {
        #[arg(value_name = "TYPE")]
        task_type: TaskType,
        #[arg(value_name = "NAME")]
        name: ScheduleName,
        #[command(flatten)]
        remark: Remark,
    },
    /// Remove a schedule. If code declares it, the next worker to join brings it back as the code has it.
    #[command(after_long_help = CHANGE_JSON)]
    Rm {
        #[arg(value_name = "TYPE")]
        task_type: TaskType,
        #[arg(value_name = "NAME")]
        name: ScheduleName,
        #[command(flatten)]
        remark: Remark,
    },
    /// The next ticks of a schedule, in its time zone.
    #[command(after_long_help = "\
JSON: [{at, at_us, local}]")]
    Next {
        #[arg(value_name = "TYPE")]
        task_type: TaskType,
        #[arg(value_name = "NAME")]
        name: ScheduleName,
        /// How many.
        #[arg(long, default_value_t = 10, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1_000))]
        count: u16,
    },
}

/// What becomes of missed ticks.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Missed {
    /// A tick older than 60 s is dropped.
    Skip,
    /// All of them make one firing.
    Once,
    /// Each is fired; of more than 100 the newest.
    All,
}

impl From<Missed> for schedule::Missed {
    fn from(missed: Missed) -> Self {
        match missed {
            Missed::Skip => Self::Skip,
            Missed::Once => Self::Once,
            Missed::All => Self::All,
        }
    }
}

/// Options of every change of a schedule.
#[derive(Debug, Args)]
pub(crate) struct Remark {
    /// Why: goes into the definition and the log.
    #[arg(long, value_name = "TEXT")]
    pub(crate) why: Option<String>,
    /// Who: goes into the definition and the log. Defaults to $USER.
    #[arg(long, value_name = "NAME")]
    pub(crate) by: Option<String>,
    /// Show what would be, change nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Accepted for scripts: no command asks a question.
    #[arg(long)]
    pub(crate) yes: bool,
}
