//! The fast alarm: a CUSUM on the candidate's failures, beside one on the active version's.
//!
//! `G = max(0, G + ln(p1/p0))` at a failure, `max(0, G + ln((1-p1)/(1-p0)))` at a success, alarm at `G >= ln(arl0)`. With
//! p0 1 % and p1 50 % four failures in a row are enough. It does not wait for a block, and it is not a comparison, so it
//! needs care not to accuse a candidate of what befalls both:
//!
//! - p0 is twice what the active version fails, over all time (upper end of Wilson's interval) and lately (last ten looks
//!   or so), the look at hand included. While that is more than p1, nobody is accused.
//! - While the active version's own CUSUM is in alarm, the rollout holds; what the candidate did meanwhile is forgotten.
//! - Without a baseline of the active version, or with nothing from it meanwhile, the rollout holds.

use serde::{Deserialize, Serialize};

use super::{arms::Tally, config::GuardConfig, intervals::wilson};

/// How much of the past the next look keeps of "lately".
const FADE: f64 = 0.9;
/// How many tasks of the long-term rate are mixed into "lately", so that one failure among few is not an outage.
const SHRINK: f64 = 20.0;
/// What counts as healthy while nothing is known.
const BLIND: f64 = 0.1;
/// What the active version must have done meanwhile, for a candidate to be accused.
const BESIDE: u64 = 5;

fn unknown(config: &GuardConfig) -> f64 {
    BLIND.max(config.burn.p0_floor)
}

/// One CUSUM.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Cusum {
    pub(super) g: f64,
    /// What it has seen since it was last 0.
    pub(super) run: Tally,
}

impl Cusum {
    /// Takes what is new since the last look, in an order unknown.
    ///
    /// The sum of all steps, cut at 0 once, is at most what the steps in *any* order, cut at 0 each, lead to: an exact
    /// CUSUM ends at the largest of all sums over the last so many outcomes, and all of them is one such sum. So it
    /// alarms no sooner than it should; late by a look at most, when a look begins well and ends badly.
    pub(super) fn take(&mut self, tally: Tally, p0: f64, config: &GuardConfig) {
        let Some((worse, better)) = steps(p0, config) else {
            *self = Self::default();
            return;
        };
        let sum = self.g + tally.hit as f64 * worse - tally.missed() as f64 * better;
        // Capped, so that an alarm ends soon after its reason.
        self.g = sum.clamp(0.0, 2.0 * height(config));
        if self.g > 0.0 {
            self.run += tally;
        } else {
            self.run = Tally::default();
        }
    }

    pub(super) fn alarmed(&self, config: &GuardConfig) -> bool {
        self.g >= height(config)
    }
}

/// Where the alarm is: by Lorden's bound, `arl0` tasks between false ones at p0.
pub(super) fn height(config: &GuardConfig) -> f64 {
    config.burn.arl0.ln()
}

/// What a failure adds and what a success takes, or nothing where p0 leaves no room below p1.
pub(super) fn steps(p0: f64, config: &GuardConfig) -> Option<(f64, f64)> {
    let p1 = config.burn.p1;
    (p0 > 0.0 && p0 < 0.9 * p1).then(|| ((p1 / p0).ln(), ((1.0 - p0) / (1.0 - p1)).ln()))
}

/// Failures over all time, or lately.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Seen {
    pub(super) n: f64,
    pub(super) hit: f64,
}

impl Seen {
    fn add(&mut self, tally: Tally) {
        self.n += tally.n as f64;
        self.hit += tally.hit as f64;
    }

    fn fade(&mut self, keep: f64) {
        self.n *= keep;
        self.hit *= keep;
    }

    /// Twice what is believable at most.
    pub(super) fn healthy(&self, config: &GuardConfig) -> f64 {
        (2.0 * wilson(self.hit, self.n).1).max(config.burn.p0_floor)
    }

    fn rate(&self) -> f64 {
        if self.n > 0.0 { self.hit / self.n } else { 0.0 }
    }
}

/// Against what the candidate is judged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Mode {
    /// The active version has not done enough yet.
    #[default]
    Blind,
    /// The active version fails too.
    BothMayFail,
    /// The active version is there to compare with.
    Judging,
}

/// Both CUSUMs, and what p0 is made of.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Burns {
    pub(super) ever: Seen,
    lately: Seen,
    pub(super) active: Cusum,
    pub(super) candidate: Cusum,
    /// What the active version did since the candidate's CUSUM was last 0.
    pub(super) beside: Tally,
    mode: Mode,
}

/// What the alarms say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Alarm {
    None,
    /// The candidate's alone.
    Candidate,
    /// The candidate's, and nothing to compare with.
    Alone,
    /// The active version's.
    Active,
    Both,
}

impl Burns {
    /// What is healthy, as far as the active version has shown it.
    pub(super) fn usual(&self, config: &GuardConfig) -> f64 {
        match self.is_blind(config) {
            true => unknown(config),
            false => self.ever.healthy(config),
        }
    }

    /// Whether the active version has done too little to compare with.
    fn is_blind(&self, config: &GuardConfig) -> bool {
        self.ever.n < config.burn.active_min as f64
    }

    /// One look.
    pub(super) fn look(&mut self, active: Tally, candidate: Tally, config: &GuardConfig) {
        let blind = self.is_blind(config);
        // An outage is found against what was before it, and is no part of what is usual.
        self.active.take(active, self.usual(config), config);
        // The active version comes first: what befell both in this look must be known before anyone is accused.
        if blind || !self.active.alarmed(config) {
            self.ever.add(active);
        }
        self.lately.fade(FADE);
        self.lately.add(active);
        let mode = if self.active.alarmed(config) {
            Mode::BothMayFail
        } else if self.is_blind(config) {
            Mode::Blind
        } else {
            Mode::Judging
        };
        if mode != self.mode {
            // What was gathered under other rules is no evidence under these.
            self.candidate = Cusum::default();
            self.beside = Tally::default();
            self.mode = mode;
        }
        let p0 = match mode {
            Mode::Judging => self.p0(config),
            Mode::Blind | Mode::BothMayFail => unknown(config),
        };
        self.candidate.take(candidate, p0, config);
        if self.candidate.g > 0.0 {
            self.beside += active;
        } else {
            self.beside = Tally::default();
        }
    }

    /// What a healthy candidate fails at most, now.
    pub(super) fn p0(&self, config: &GuardConfig) -> f64 {
        let lately = (self.lately.hit + SHRINK * self.ever.rate()) / (self.lately.n + SHRINK);
        self.ever.healthy(config).max(2.0 * lately)
    }

    pub(super) fn alarm(&self, config: &GuardConfig) -> Alarm {
        let candidate = self.candidate.alarmed(config);
        match (self.mode, candidate) {
            (Mode::BothMayFail, true) => Alarm::Both,
            (Mode::BothMayFail, false) => Alarm::Active,
            (Mode::Judging, true) if self.beside.n >= BESIDE => Alarm::Candidate,
            (Mode::Judging | Mode::Blind, true) => Alarm::Alone,
            (Mode::Judging | Mode::Blind, false) => Alarm::None,
        }
    }
}

#[cfg(test)]
mod tests {
    use fastrand::Rng;
    use proptest::prelude::*;

    use super::*;

    /// The CUSUM as the books have it: outcome by outcome.
    fn exact(mut g: f64, outcomes: &[bool], p0: f64, config: &GuardConfig) -> f64 {
        let (worse, better) = steps(p0, config).unwrap();
        for failed in outcomes {
            g = (g + if *failed { worse } else { -better }).max(0.0);
        }
        g
    }

    proptest! {
        #[test]
        fn a_look_never_says_more_than_any_order_of_its_outcomes(
            looks in prop::collection::vec(prop::collection::vec(prop::bool::weighted(0.3), 0..40), 1..20),
            p0 in 0.001..0.4f64,
        ) {
            // Generated in an order; every order is generated.
            let config = GuardConfig::default();
            let (mut cusum, mut known) = (Cusum::default(), 0.0);
            for look in &looks {
                known = exact(known, look, p0, &config);
                let failed = look.iter().filter(|failed| **failed).count() as u64;
                cusum.take(Tally::new(look.len() as u64, failed), p0, &config);
                prop_assert!(cusum.g <= known + 1e-9, "{} > {known}", cusum.g);
            }
        }

        #[test]
        fn no_number_is_too_large(
            looks in prop::collection::vec((counts(), counts(), counts(), counts()), 1..20),
        ) {
            let config = GuardConfig::default();
            let mut burns = Burns::default();
            for (n, x, m, y) in looks {
                burns.look(Tally::new(n, x), Tally::new(m, y), &config);
                prop_assert!(burns.candidate.g.is_finite() && burns.active.g.is_finite());
                prop_assert!((0.0..=4.0).contains(&burns.p0(&config)));
            }
        }
    }

    fn counts() -> impl Strategy<Value = u64> {
        prop_oneof![Just(0), 0u64..1000, Just(u64::MAX / 4), 0..u64::MAX / 4]
    }

    #[test]
    fn one_by_one_it_is_the_cusum_of_the_books() {
        let config = GuardConfig::default();
        let mut rng = Rng::with_seed(7);
        let (mut cusum, mut known) = (Cusum::default(), 0.0);
        for _ in 0..10_000 {
            let failed = rng.f64() < 0.02;
            known = exact(known, &[failed], 0.01, &config).min(2.0 * height(&config));
            cusum.take(Tally::new(1, u64::from(failed)), 0.01, &config);
            assert!((cusum.g - known).abs() < 1e-12);
        }
    }

    #[test]
    fn four_failures_in_a_row_are_enough_at_one_percent_and_nine_at_ten() {
        let config = GuardConfig::default();
        let needed = |p0| {
            let mut cusum = Cusum::default();
            (1..20).find(|_| {
                cusum.take(Tally::new(1, 1), p0, &config);
                cusum.alarmed(&config)
            })
        };
        assert_eq!(needed(0.01), Some(4));
        assert_eq!(needed(0.1), Some(9));
        assert_eq!(needed(0.46), None, "where p0 leaves no room below p1 nobody is accused");
    }

    fn after(looks: &[(Tally, Tally)]) -> Alarm {
        let config = GuardConfig::default();
        let mut burns = Burns::default();
        for (active, candidate) in looks {
            burns.look(*active, *candidate, &config);
        }
        burns.alarm(&config)
    }

    const USUAL: (Tally, Tally) = (Tally { n: 450, hit: 4 }, Tally { n: 50, hit: 0 });

    #[test]
    fn who_is_accused() {
        let fails = Tally { n: 50, hit: 40 };
        assert_eq!(after(&[USUAL, USUAL]), Alarm::None);
        assert_eq!(after(&[USUAL, (USUAL.0, fails)]), Alarm::Candidate);
        let outage = Tally { n: 450, hit: 300 };
        assert_eq!(after(&[USUAL, (outage, fails)]), Alarm::Both);
        assert_eq!(after(&[USUAL, (outage, USUAL.1)]), Alarm::Active);
        // Nothing is known of the active version, or nothing since the candidate began to fail.
        assert_eq!(after(&[(Tally::default(), fails)]), Alarm::Alone);
        assert_eq!(after(&[USUAL, (Tally::default(), fails)]), Alarm::Alone);
        assert_eq!(
            after(&[USUAL, (Tally::default(), fails), (Tally::new(5, 0), fails)]),
            Alarm::Candidate
        );
    }

    #[test]
    fn an_outage_is_not_usual_however_long_it_lasts_and_leaves_no_suspicion() {
        let outage = (Tally { n: 450, hit: 440 }, Tally { n: 5, hit: 5 });
        let mut looks = vec![USUAL; 20];
        looks.extend([outage; 600]);
        assert_eq!(after(&looks), Alarm::Both);
        // The active version is seen to recover first: it has more tasks.
        for _ in 0..30 {
            looks.push((USUAL.0, Tally::new(1, 0)));
            assert!(matches!(after(&looks), Alarm::None | Alarm::Active | Alarm::Both));
        }
        assert_eq!(after(&looks), Alarm::None);
    }

    #[test]
    fn an_outage_too_small_for_an_alarm_accuses_nobody() {
        // Eight times the usual failures, on both, after weeks of the usual. Breaks if p0 ignores what is lately.
        let config = GuardConfig::default();
        let mut accused = 0;
        for run in 0..60 {
            let mut rng = Rng::with_seed(run);
            let mut throw = |n: u64, p: f64| Tally::new(n, (0..n).filter(|_| rng.f64() < p).count() as u64);
            let mut burns = Burns::default();
            burns.look(Tally::new(10_000_000, 100_000), Tally::default(), &config);
            for _ in 0..200 {
                burns.look(throw(12, 0.01), throw(4, 0.01), &config);
            }
            for _ in 0..300 {
                burns.look(throw(12, 0.08), throw(4, 0.08), &config);
                if burns.alarm(&config) == Alarm::Candidate {
                    accused += 1;
                    break;
                }
            }
        }
        assert_eq!(accused, 0);
    }
    #[test]
    fn one_failure_among_few_is_no_outage() {
        let config = GuardConfig::default();
        let mut burns = Burns::default();
        burns.look(Tally::new(10_000, 100), Tally::default(), &config);
        for _ in 0..150 {
            burns.look(Tally::default(), Tally::default(), &config);
        }
        // A quiet queue: every other second a task of the active version, one of which fails.
        let accused = (1..30).find(|second| {
            let active = Tally::new(second % 2, u64::from(*second == 5));
            burns.look(active, Tally::new(1, 1), &config);
            burns.alarm(&config) == Alarm::Candidate
        });
        assert!(accused.is_some_and(|seconds| seconds <= 12), "{accused:?}");
    }
}
