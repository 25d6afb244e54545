//! Measures Switchback beside the raw floor of Redis: the same payload, the same client library, nothing around it.
//!
//! Both sides run in turns against the same server, so what counts is the ratio; absolute numbers move from machine
//! to machine, and from hour to hour.
//!
//! # Layout
//! - `measures` — one file per question
//! - `raw` — the floor: plain commands
//! - `ours` — the task, workers in this process
//! - `server` — what Redis says about itself
//! - `report` — figures, ratios, budgets; as tables or JSON
//! - `child` — a worker process that can be stopped and killed

mod child;
mod measures;
mod ours;
mod raw;
mod report;
mod server;

use std::{io::Write as _, process::ExitCode};

use clap::{Parser, Subcommand};
use switchback_tests::RedisServer;

use crate::{
    measures::{Measure, Setup},
    report::{Machine, Report},
};

/// What goes wrong ends the run: a benchmark that carries on measures something else.
type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Switchback beside the raw floor of Redis, side by side in one run.
#[derive(Debug, Parser)]
#[command(name = "switchback-bench", version, args_conflicts_with_subcommands = true)]
struct Args {
    /// Print everything as JSON
    #[arg(long)]
    json: bool,
    /// Less of everything: under a minute, and noisier
    #[arg(long)]
    quick: bool,
    /// Only these measures
    #[arg(long, value_enum, value_delimiter = ',', value_name = "NAME,…")]
    only: Vec<Measure>,
    #[command(subcommand)]
    role: Option<Role>,
}

#[derive(Debug, Subcommand)]
enum Role {
    /// A worker that holds on to whatever it is given
    #[command(hide = true)]
    Worker(child::Options),
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    let ended = match args.role {
        Some(Role::Worker(options)) => child::run(options).await,
        None => bench(&args).await,
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("switchback-bench: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn bench(args: &Args) -> Result<()> {
    if cfg!(debug_assertions) {
        eprintln!("warning: this is a debug build; `make bench` measures a release build");
    }
    let setup = Setup { quick: args.quick };
    let machine = Machine::look(&RedisServer::start().await, args.quick).await?;
    let mut report = Report::new(machine);
    if !args.json {
        writeln!(std::io::stdout(), "{}\n", report.machine)?;
    }
    for measure in Measure::ALL {
        if args.only.is_empty() || args.only.contains(&measure) {
            eprintln!("measuring {} …", measure.name());
            measure.run(&setup, &mut report).await?;
        }
    }
    let text = if args.json {
        report.to_json()?
    } else {
        report.to_tables()
    };
    writeln!(std::io::stdout(), "{text}")?;
    Ok(())
}
