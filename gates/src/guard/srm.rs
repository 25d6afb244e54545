//! Does the candidate get the share of the tasks that was asked for?
//!
//! The e-value is a Dirichlet-multinomial one (Lindon, Malek, arXiv 2011.03567; of two versions: beta-binomial), with
//! Jeffreys' prior, valid at every look. But a sticky percent is a share of the *keys*. With few keys, or one that has
//! most of the tasks, the share of the tasks is far off with nothing wrong, and more tasks only make it surer. So the
//! null hypothesis is a wide band, and what is left is gross: a candidate that gets next to nothing (no worker has it,
//! or no key fell to it), or more than half of what should have stayed away from it (the gate is not obeyed, or one key
//! is nearly everything). Both are reasons to hold and look; neither accuses the candidate.

use serde::{Deserialize, Serialize};

use super::arms::Tally;

/// Less than this part of its share is next to nothing.
const NOTHING: f64 = 0.01;
/// More than this part of the other share is too much.
const TOO_MUCH: f64 = 0.5;
/// More tasks than this are not told apart: the logarithms of gamma functions would lose their digits.
const COUNTABLE: u64 = 1 << 40;

/// The tasks of one step; those hit are the candidate's.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct ShareTest {
    pub(super) tasks: Tally,
    /// The share that was asked for, at the last block.
    pub(super) share: f64,
}

impl ShareTest {
    pub(super) fn block(&mut self, active: u64, candidate: u64, share: f64) {
        self.share = share;
        self.tasks += Tally::new(active.saturating_add(candidate), candidate);
    }

    /// Logarithm of the e-value: how much better any share explains the counts than the best one within the band.
    pub(super) fn ln_e(&self) -> f64 {
        if !(self.share > 0.0 && self.share < 1.0) || self.tasks.n == 0 {
            return 0.0;
        }
        let shrink = (COUNTABLE as f64 / self.tasks.n as f64).min(1.0);
        let (candidate, active) = (self.tasks.hit as f64 * shrink, self.tasks.missed() as f64 * shrink);
        let (low, high) = (self.share * NOTHING, self.share + (1.0 - self.share) * TOO_MUCH);
        let nearest = self.tasks.rate().clamp(low, high);
        let any = ln_beta(candidate + 0.5, active + 0.5) - ln_beta(0.5, 0.5);
        any - candidate * nearest.ln() - active * (-nearest).ln_1p()
    }
}

fn ln_beta(a: f64, b: f64) -> f64 {
    libm::lgamma(a) + libm::lgamma(b) - libm::lgamma(a + b)
}
