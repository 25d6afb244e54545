//! Tasks as they come.

use std::{f64::consts::TAU, time::Duration};

use rand::{RngExt as _, rngs::SmallRng};
use rand_distr::{Binomial, Distribution as _, Poisson};
use switchback_common::took;
use switchback_gates::guard::{Arm, Counts, GuardConfig, GuardState};

/// Tasks a second, of both versions.
pub(crate) const RATE: f64 = 500.0;
/// Of the failures, how many are dead letters; of all, how many are lost.
const DEAD: f64 = 0.05;
const LOST: f64 = 0.0005;

/// What happens to both versions alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Nature {
    Steady,
    /// A minute of four times the failures, every five.
    Outages,
    /// From a fourth of the failures to 1.75 times, and back, in twenty minutes.
    Drift,
    /// The same, with a twenty-fifth of the tasks.
    QuietOutages,
    /// Durations a third longer or shorter from block to block.
    Latency,
}

/// A queue under a rollout.
pub(crate) struct World {
    pub(crate) fails: f64,
    pub(crate) nature: Nature,
    /// How much worse the candidate is, in everything that has a margin: 0 not at all, 1 as much as is allowed.
    pub(crate) worse: f64,
    phase: f64,
    second: u32,
    /// Of the block at hand.
    slow: f64,
}

impl World {
    pub(crate) fn new(fails: f64, nature: Nature, worse: f64, rng: &mut SmallRng) -> Self {
        Self {
            fails,
            nature,
            worse,
            phase: rng.random(),
            second: 0,
            slow: 1.0,
        }
    }

    fn fails_now(&self) -> f64 {
        let at = f64::from(self.second);
        match self.nature {
            Nature::Steady | Nature::Latency => self.fails,
            Nature::Outages | Nature::QuietOutages if (at / 300.0 + self.phase).fract() < 0.2 => 4.0 * self.fails,
            Nature::Outages | Nature::QuietOutages => self.fails,
            Nature::Drift => self.fails * (1.0 + 0.75 * (TAU * (at / 1200.0 + self.phase)).sin()),
        }
    }

    /// One block of ten seconds; the guard looks after each.
    pub(crate) fn block(
        &mut self,
        rng: &mut SmallRng,
        config: &GuardConfig,
        guard: &mut GuardState,
        share: f64,
    ) -> Counts {
        let mut block = Counts::default();
        if self.nature == Nature::Latency {
            self.slow = (0.6 * (rng.random::<f64>() - 0.5)).exp();
        }
        let rate = if self.nature == Nature::QuietOutages {
            RATE / 25.0
        } else {
            RATE
        };
        for _ in 0..config.block_secs {
            let fails = self.fails_now();
            self.second += 1;
            let n = poisson(rng, rate);
            let theirs = binomial(rng, n, share);
            let new = Counts {
                active: attempts(rng, n - theirs, fails, LOST),
                candidate: attempts(
                    rng,
                    theirs,
                    fails + self.worse * config.failure_margin,
                    LOST + self.worse * config.lost_margin,
                ),
            };
            guard.ticked(config, &new);
            block += &new;
        }
        durations(rng, &mut block.active, self.slow, 0.0);
        durations(rng, &mut block.candidate, self.slow, self.worse * config.p95_margin);
        guard.closed(config, &block, share);
        block
    }
}

fn attempts(rng: &mut SmallRng, n: u64, fails: f64, lost: f64) -> Arm {
    let lost = binomial(rng, n, lost);
    let failed = binomial(rng, n - lost, fails);
    Arm {
        n,
        failed,
        dead: binomial(rng, failed, DEAD),
        lost,
        ..Arm::default()
    }
}

/// Log-logistic durations of 20 ms in the middle, in forty steps of equal chance; and a tail that is much longer.
fn durations(rng: &mut SmallRng, arm: &mut Arm, slow: f64, tail: f64) {
    const STEPS: u32 = 40;
    let ended = arm.n - arm.lost;
    let in_tail = binomial(rng, ended, tail);
    *arm.took.entry(took::bucket(Duration::from_secs(1))).or_default() += in_tail;
    let mut left = ended - in_tail;
    for step in 0..STEPS {
        let here = binomial(rng, left, 1.0 / f64::from(STEPS - step));
        let place = (f64::from(step) + 0.5) / f64::from(STEPS);
        let took = Duration::from_secs_f64(0.02 * slow * (place / (1.0 - place)).sqrt());
        *arm.took.entry(took::bucket(took)).or_default() += here;
        left -= here;
    }
}

pub(crate) fn binomial(rng: &mut SmallRng, n: u64, p: f64) -> u64 {
    if n == 0 || p <= 0.0 {
        return 0;
    }
    Binomial::new(n, p.min(1.0)).map_or(0, |binomial| binomial.sample(rng))
}

pub(crate) fn poisson(rng: &mut SmallRng, mean: f64) -> u64 {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a count, as a whole float"
    )]
    Poisson::new(mean).map_or(0, |poisson| poisson.sample(rng) as u64)
}

/// So many attempts, and so many of them failed.
pub(crate) fn arm(n: u64, failed: u64) -> Arm {
    Arm {
        n,
        failed,
        ..Arm::default()
    }
}

/// A guard that knows how much the active version usually fails.
pub(crate) fn primed(config: &GuardConfig, rng: &mut SmallRng, n: u64, fails: f64) -> GuardState {
    let mut guard = GuardState::new(config);
    let known = Counts {
        active: arm(n, binomial(rng, n, fails)),
        candidate: arm(0, 0),
    };
    guard.ticked(config, &known);
    guard.closed(config, &known, 0.0);
    guard
}
