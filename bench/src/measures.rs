//! What is measured: one file per question.

mod commands;
mod drain;
mod enqueue;
mod flip;
mod gate;
mod latency;
mod memory;
mod recovery;
mod rollback;

use std::time::Duration;

use crate::{Result, report::Report};

/// A measure by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Measure {
    /// Bulk and single enqueue
    Enqueue,
    /// Drain, enqueue and drain at once, Redis's processor time
    Drain,
    /// What reading the gate adds to a claim
    Gate,
    /// Enqueue to start
    Latency,
    /// Flip to confirmed, flip to first decision
    Flip,
    /// Bytes per waiting and per done task
    Memory,
    /// Clean stop and kill -9
    Recovery,
    /// A bad version rolled back by itself: time, failures, losses
    Rollback,
    /// Commands per task
    Commands,
}

impl Measure {
    pub(crate) const ALL: [Self; 9] = [
        Self::Enqueue,
        Self::Drain,
        Self::Gate,
        Self::Memory,
        Self::Latency,
        Self::Flip,
        Self::Recovery,
        Self::Rollback,
        Self::Commands,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Enqueue => "enqueue",
            Self::Drain => "drain",
            Self::Gate => "gate",
            Self::Latency => "latency",
            Self::Flip => "flip",
            Self::Memory => "memory",
            Self::Recovery => "recovery",
            Self::Rollback => "rollback",
            Self::Commands => "commands",
        }
    }

    pub(crate) async fn run(self, setup: &Setup, report: &mut Report) -> Result<()> {
        match self {
            Self::Enqueue => Box::pin(enqueue::run(setup, report)).await,
            Self::Drain => Box::pin(drain::run(setup, report)).await,
            Self::Gate => Box::pin(gate::run(setup, report)).await,
            Self::Latency => Box::pin(latency::run(setup, report)).await,
            Self::Flip => Box::pin(flip::run(setup, report)).await,
            Self::Memory => Box::pin(memory::run(setup, report)).await,
            Self::Recovery => Box::pin(recovery::run(setup, report)).await,
            Self::Rollback => Box::pin(rollback::run(setup, report)).await,
            Self::Commands => Box::pin(commands::run(setup, report)).await,
        }
    }
}

/// How much of everything.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Setup {
    pub(crate) quick: bool,
}

impl Setup {
    /// Rounds of raw and ours in turns.
    pub(crate) const ROUNDS: usize = 3;

    pub(crate) fn count(self, full: u64, quick: u64) -> u64 {
        if self.quick { quick } else { full }
    }
}

/// Things per second.
#[expect(clippy::cast_precision_loss, reason = "counts of a benchmark are far below 2^52")]
pub(crate) fn per_second(count: u64, time: Duration) -> f64 {
    count as f64 / time.as_secs_f64()
}

/// So much of something for each of `count`.
#[expect(clippy::cast_precision_loss, reason = "counts of a benchmark are far below 2^52")]
pub(crate) fn each(amount: f64, count: u64) -> f64 {
    amount / count as f64
}
