//! Is the candidate good enough? The test of two rates, mirrored.
//!
//! Null hypothesis: the candidate fails at least `margin` more of its tasks than the active version. Not to have been
//! found guilty is not to be innocent: a step is passed by evidence *against* this. The alternative is that both fail
//! alike. The factor and why it works: see `etest`; this null is a convex set too.

use serde::{Deserialize, Serialize};

use super::{
    arms::Tally,
    etest::{Base, ln_factor},
};

/// The evidence of one step.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Promotion {
    pub(super) ln_e: f64,
    pub(super) active: Tally,
    pub(super) candidate: Tally,
}

impl Promotion {
    pub(super) fn block(&mut self, base: &Base, active: Tally, candidate: Tally, margin: f64) {
        let Some(a) = base.rate() else { return };
        if active.n == 0 || candidate.n == 0 || a + margin > 0.99 {
            return;
        }
        self.ln_e += ln_factor(active, a, candidate, a, margin);
        self.active += active;
        self.candidate += candidate;
    }

    /// How many more tasks of the candidate it may take to reach `ln_threshold`, if both fail alike.
    pub(super) fn lacks(&self, base: &Base, margin: f64, ln_threshold: f64) -> u64 {
        let a = base.rate().unwrap_or(0.01);
        let allowed = (a + margin).min(0.999);
        let per_task = a * (a / allowed).ln() + (1.0 - a) * ((1.0 - a) / (1.0 - allowed)).ln();
        let lacks = ((ln_threshold - self.ln_e) / per_task.max(1e-9))
            .ceil()
            .clamp(1.0, 1e12);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "between 1 and 1e12"
        )]
        let lacks = lacks as u64;
        lacks
    }
}
