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

#[cfg(test)]
mod tests {
    use fastrand::Rng;

    use super::*;

    fn throw(rng: &mut Rng, n: u64, p: f64) -> Tally {
        Tally::new(n, (0..n).filter(|_| rng.f64() < p).count() as u64)
    }

    /// Tasks of the candidate until it passes, if it does within 3000.
    fn passes_after(seed: u64, p: f64, q: f64) -> Option<u64> {
        let mut rng = Rng::with_seed(seed);
        let (mut promotion, mut base) = (Promotion::default(), Base::default());
        base.learn(throw(&mut rng, 2000, p));
        (0..150).find_map(|_| {
            let block = (throw(&mut rng, 180, p), throw(&mut rng, 20, q));
            promotion.block(&base, block.0, block.1, 0.02);
            base.learn(block.0);
            (promotion.ln_e >= 20.0f64.ln()).then_some(promotion.candidate.n)
        })
    }

    #[test]
    fn a_candidate_as_good_passes_in_about_the_expected_number_of_tasks() {
        let mut needed: Vec<u64> = (0..40).filter_map(|seed| passes_after(seed, 0.01, 0.01)).collect();
        assert_eq!(needed.len(), 40);
        needed.sort_unstable();
        assert!((200..=500).contains(&needed[20]), "{needed:?}: ln 20 / KL is 325");
    }

    #[test]
    fn a_candidate_too_bad_passes_seldom() {
        let passed = (0..100)
            .filter(|seed| passes_after(*seed, 0.05, 0.07).is_some())
            .count();
        assert!(passed <= 5, "{passed} of 100 at the edge, with 5 % allowed");
    }

    #[test]
    fn what_lacks_is_about_what_it_takes() {
        let mut base = Base::default();
        base.learn(Tally::new(100_000, 1000));
        let lacks = Promotion::default().lacks(&base, 0.02, 20.0f64.ln());
        assert!((320..330).contains(&lacks), "{lacks}");
        let sure = Promotion {
            ln_e: 1e300,
            ..Promotion::default()
        };
        assert_eq!(sure.lacks(&base, 0.02, 20.0f64.ln()), 1);
    }
}
