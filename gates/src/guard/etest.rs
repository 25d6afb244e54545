//! The sequential test of two rates, within blocks.
//!
//! Null hypothesis: in every block the candidate's rate is at most the active version's plus a margin. Per block, with
//! `A` learnt from *earlier* blocks and an alternative `B > A + margin`, the factor
//!
//! ```text
//! S = (A/θ)^x_a ((1-A)/(1-θ))^(n_a-x_a) · (B/(θ+m))^x_b ((1-B)/(1-θ-m))^(n_b-x_b)
//! ```
//!
//! has expectation at most 1 under every null pair of rates, if θ is where `n_a·KL(A‖θ) + n_b·KL(B‖θ+m)` is smallest
//! (Turner, Ly, Grünwald, arXiv 2106.02693 and 2203.09785). Why: the logarithm of S's expectation is a concave function
//! of the true rates, 0 at (θ, θ+m), and its gradient there is minus that of the sum above, which rises from its minimum in every direction
//! that stays within the null (a convex set). So the product over blocks is a supermartingale, whatever the rates do
//! from block to block, and by Ville's inequality it *ever* reaches 1/α with chance α at most: one may look as often as
//! one likes and stop when one likes. An outage that hits both versions moves both rates and accuses nobody.

use serde::{Deserialize, Serialize};

use super::{arms::Tally, numbers};

/// How much worse than allowed a candidate might be. Fixed, so that they cannot follow the data.
const WORSE: [f64; 7] = [0.005, 0.01, 0.02, 0.05, 0.15, 0.4, 0.8];

/// One test. The evidence is capital that is bet on each alternative, block after block.
///
/// Half of it is bet from the first block on. The other half comes in bit by bit (`1/2t(t+1)` at block t), so that a
/// candidate that turns bad after hours is not believed for long because it was good: a mixture over the time of the
/// change, and a mixture of supermartingales is one. It costs ln 2 at the start, and two ln t later.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct ETest {
    /// Blocks that counted.
    blocks: u64,
    /// Both versions, over those blocks.
    pub(super) active: Tally,
    pub(super) candidate: Tally,
    /// Logarithms of what each alternative has become.
    capital: [f64; 7],
}

impl Default for ETest {
    fn default() -> Self {
        Self {
            blocks: 0,
            active: Tally::default(),
            candidate: Tally::default(),
            capital: [(0.5 / 7.0_f64).ln(); 7],
        }
    }
}

impl ETest {
    /// Bets on one block. `base` must come from earlier blocks only. A block in which one version did nothing tells
    /// nothing.
    ///
    /// No factor exceeds `cap` (given as a logarithm): less than S, its expectation is no higher.
    pub(super) fn block(&mut self, base: &Base, active: Tally, candidate: Tally, margin: f64, cap: f64) {
        let Some(a) = base.rate() else { return };
        let allowed = a + margin;
        if active.n == 0 || candidate.n == 0 || allowed > 0.99 {
            return;
        }
        let late = self.blocks as f64;
        let coming_in = (0.5 / 7.0 / (late * (late + 1.0))).ln();
        for (worse, capital) in WORSE.iter().zip(&mut self.capital) {
            if self.blocks > 0 {
                *capital = numbers::ln_add(*capital, coming_in);
            }
            // B stays below 1, else a single success would be proof.
            let b = (allowed + worse).min(1.0 - (1.0 - allowed) / 8.0);
            *capital += ln_factor(active, a, candidate, b, margin).min(cap);
        }
        self.blocks += 1;
        self.active += active;
        self.candidate += candidate;
    }

    /// Logarithm of the e-value: all capital, and what has not come in yet.
    pub(super) fn ln_e(&self) -> f64 {
        let kept_back = (0.5 / self.blocks.max(1) as f64).ln();
        self.capital.iter().copied().fold(kept_back, numbers::ln_add)
    }
}

/// Logarithm of one block's factor for the alternative (a, b) against the null in which the candidate's rate is the
/// active version's plus `margin`.
pub(super) fn ln_factor(active: Tally, a: f64, candidate: Tally, b: f64, margin: f64) -> f64 {
    let theta = null_point(active.n as f64, a, candidate.n as f64, b, margin);
    ln_ratio(active, a, theta) + ln_ratio(candidate, b, theta + margin)
}

/// Logarithm of how much better `p` explains the outcomes than `q` does.
fn ln_ratio(tally: Tally, p: f64, q: f64) -> f64 {
    // Differences of logarithms, exact where p and q are close.
    tally.hit as f64 * ((p - q) / q).ln_1p() + tally.missed() as f64 * ((q - p) / (1.0 - q)).ln_1p()
}

/// The θ at which `n_a·KL(a‖θ) + n_b·KL(b‖θ+margin)` is smallest.
fn null_point(n_a: f64, a: f64, n_b: f64, b: f64, margin: f64) -> f64 {
    let (w_a, w_b) = (n_a / (n_a + n_b), n_b / (n_a + n_b));
    if margin == 0.0 {
        return w_a * a + w_b * b;
    }
    // The sum is convex; its slope, turned round, falls from positive to negative between the two places where one of
    // the terms is 0. Newton's steps, and halves where these leave the bracket.
    let mut low = a.min(b - margin).max(0.0);
    let mut high = a.max(b - margin).min(1.0 - margin);
    let mut theta = (w_a * a + w_b * (b - margin)).clamp(low, high);
    for _ in 0..100 {
        if !(low < theta && theta < high) {
            theta = f64::midpoint(low, high);
        }
        let (q_a, q_b) = (theta * (1.0 - theta), (theta + margin) * (1.0 - theta - margin));
        let (d_a, d_b) = (a - theta, b - margin - theta);
        let slope = w_a * d_a / q_a + w_b * d_b / q_b;
        if slope > 0.0 {
            low = theta;
        } else {
            high = theta;
        }
        let bend = w_a * (1.0 / q_a + d_a * (1.0 - 2.0 * theta) / (q_a * q_a))
            + w_b * (1.0 / q_b + d_b * (1.0 - 2.0 * (theta + margin)) / (q_b * q_b));
        let next = theta + slope / bend;
        if (next - theta).abs() <= 1e-15 || high - low <= 1e-15 {
            break;
        }
        theta = next;
    }
    theta.clamp(low, high)
}

/// The active version's rate so far.
///
/// Halved when it is large, so that it follows the hours of the day. Any rate that knows only the past keeps the test
/// valid; a good one makes it quick.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Base {
    n: f64,
    hit: f64,
}

impl Base {
    /// Tasks from which a rate is taken at all.
    const ENOUGH: f64 = 100.0;
    const MANY: f64 = 100_000.0;

    pub(super) fn learn(&mut self, tally: Tally) {
        self.n += tally.n as f64;
        self.hit += tally.hit as f64;
        if self.n > Self::MANY {
            let keep = (Self::MANY / self.n).min(0.5);
            self.n *= keep;
            self.hit *= keep;
        }
    }

    /// Half a task was added to both sides: never 0, never 1.
    pub(super) fn rate(&self) -> Option<f64> {
        (self.n >= Self::ENOUGH).then(|| (self.hit + 0.5) / (self.n + 1.0))
    }
}

#[cfg(test)]
mod tests;
