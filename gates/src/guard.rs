//! The guard: is the candidate worse than the active version? Pure.
//!
//! It is told what both versions did, look by look and block by block, and says [`Verdict::Regressed`],
//! [`Verdict::Hold`], [`Verdict::Insufficient`] or [`Verdict::Pass`]. It may be asked as often as one likes: each of its
//! tests is valid at every look, so looking costs nothing of `alpha`. `docs/guard.md` has the promises and how they were
//! measured.
//!
//! ```
//! use switchback_gates::guard::{Arm, Counts, GuardConfig, GuardState, Verdict};
//!
//! let arm = |n, failed| Arm { n, failed, ..Arm::default() };
//! let config = GuardConfig::default();
//! let mut guard = GuardState::new(&config);
//! guard.closed(&config, &Counts { active: arm(1000, 10), candidate: arm(0, 0) }, 0.0);
//! for _ in 0..3 {
//!     guard.closed(&config, &Counts { active: arm(900, 9), candidate: arm(100, 30) }, 0.1);
//! }
//! assert!(matches!(guard.verdict(&config, 300), Verdict::Regressed(_)));
//! ```
//!
//! # Layout
//! - `config` — margins, error budget, patience
//! - `arms` — what is counted
//! - `etest` — two rates, within blocks, at any time: failures, dead letters, lost, and by `latency` too long
//! - `cusum` — the fast alarm
//! - `promote` — the same test mirrored: no worse than allowed
//! - `srm` — the share of the tasks
//! - `watch` — after promotion
//! - `state` — all of it, as a fold
//! - `verdict` — what it says, and on what evidence
//! - `intervals` — for display

mod arms;
mod config;
mod cusum;
mod etest;
mod intervals;
mod latency;
mod numbers;
mod promote;
mod srm;
mod state;
mod verdict;
mod watch;

#[cfg(test)]
mod tests;

pub use arms::{Arm, Counts, Tally};
pub use config::{Burn, GUARDRAILS, GuardConfig, InvalidGuard};
pub use intervals::{fisher, newcombe, wilson};
pub use state::GuardState;
pub use verdict::{Evidence, HoldReason, Lack, Test, Verdict};
