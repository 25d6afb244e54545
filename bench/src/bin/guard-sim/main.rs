//! Simulates the guard: what it does to candidates as good as the active version, and to worse ones.
//!
//! Everything goes through the guard as a rollout uses it: looks every second, blocks every ten, steps. The tables stand
//! beside what theory or earlier work expects. The same seed gives the same tables, on any number of threads.
//!
//! # Layout
//! - `world` — tasks as they come: rates, outages, drift, durations, keys
//! - `null` — rollouts of candidates that are no worse
//! - `delay` — how soon worse ones are found; by `burn`, how soon ruinous ones
//! - `promotion`, `share` — the other tests
//! - `table` — how it is printed

mod burn;
mod delay;
mod null;
mod promotion;
mod share;
mod table;
mod world;

use std::{
    io::Write as _,
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::Parser;
use rand::{SeedableRng as _, rngs::SmallRng};

/// Simulates the guard of rollouts, and prints false alarms and delays beside what is expected
#[derive(Debug, Clone, Parser)]
#[command(name = "guard-sim")]
struct Args {
    /// Rollouts per line of the first table; the other tables take a tenth
    #[arg(long, default_value_t = 10_000)]
    runs: u64,
    /// The same seed gives the same tables
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

fn main() -> ExitCode {
    let args = Args::parse();
    if cfg!(debug_assertions) {
        eprintln!("warning: this is a debug build; `make guard-sim` builds for release");
    }
    let begin = Instant::now();
    let mut over = 0;
    for table in [null::table, delay::table, burn::table, promotion::table, share::table] {
        let table = table(&args);
        over += table.over;
        if let Err(error) = writeln!(std::io::stdout(), "{table}") {
            eprintln!("guard-sim: {error}");
            return ExitCode::FAILURE;
        }
    }
    let took = Duration::from_secs(begin.elapsed().as_secs());
    eprintln!("{} runs, seed {}, {took:?}", args.runs, args.seed);
    if over > 0 {
        eprintln!("guard-sim: {over} lines are over what they may be");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

impl Args {
    /// Runs of the tables that need fewer.
    fn fewer(&self) -> u64 {
        (self.runs / 10).max(1)
    }
}

/// Runs `one` so many times on all processors; each run has its own random numbers, whatever thread it is on.
fn each<T: Send>(runs: u64, seed: u64, one: impl Fn(&mut SmallRng) -> T + Sync) -> Vec<T> {
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get) as u64;
    let mut all: Vec<(u64, T)> = std::thread::scope(|scope| {
        let one = &one;
        let handles: Vec<_> = (0..threads)
            .map(|thread| {
                scope.spawn(move || {
                    let mine = (thread..runs).step_by(usize::try_from(threads).unwrap_or(1));
                    mine.map(|run| {
                        let mut rng = SmallRng::seed_from_u64(seed ^ run.wrapping_mul(0x9E37_79B9_7F4A_7C15));
                        (run, one(&mut rng))
                    })
                    .collect::<Vec<_>>()
                })
            })
            .collect();
        handles
            .into_iter()
            .flat_map(|handle| handle.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    });
    all.sort_by_key(|(run, _)| *run);
    all.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_runs_of_everything_stay_within_their_budgets() {
        let args = Args { runs: 10, seed: 1 };
        for table in [null::table, delay::table, burn::table, promotion::table, share::table] {
            let table = table(&args);
            assert_eq!(table.over, 0, "{table}");
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_table() {
        let args = Args { runs: 20, seed: 5 };
        assert_eq!(promotion::table(&args).to_string(), promotion::table(&args).to_string());
    }
}
