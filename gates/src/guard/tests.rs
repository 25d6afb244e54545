//! The guard as a whole: who is rolled back, who is held, who passes.

use std::{collections::BTreeMap, time::Duration};

use fastrand::Rng;
use proptest::prelude::*;
use switchback_common::took;

use super::*;

/// How a version behaves.
#[derive(Clone, Copy)]
struct Behaviour {
    fails: f64,
    /// Of those.
    dies: f64,
    lost: f64,
    median: Duration,
}

const FINE: Behaviour = Behaviour {
    fails: 0.01,
    dies: 0.02,
    lost: 0.0005,
    median: Duration::from_millis(20),
};

fn attempts(rng: &mut Rng, n: u64, of: Behaviour) -> Arm {
    let mut arm = Arm { n, ..Arm::default() };
    for _ in 0..n {
        if rng.f64() < of.lost {
            arm.lost += 1;
            continue;
        }
        if rng.f64() < of.fails {
            arm.failed += 1;
            arm.dead += u64::from(rng.f64() < of.dies);
        }
        // Log-uniform over two octaves either way: the p95 is 3.5 times the median.
        let took = of.median.mul_f64((rng.f64() * 4.0 - 2.0).exp2());
        ended(&mut arm, took::bucket(took));
    }
    arm
}

/// An attempt that ended, with whatever it had outlasted until then.
fn ended(arm: &mut Arm, bucket: u8) {
    *arm.took.entry(bucket).or_default() += 1;
    for outlasted in took::LONG..bucket {
        *arm.outlasted.entry(outlasted).or_default() += 1;
    }
}

/// One queue with its guard.
struct Rollout {
    config: GuardConfig,
    guard: GuardState,
    rng: Rng,
    share: f64,
    /// Tasks a second, of both versions.
    rate: u64,
}

impl Rollout {
    /// At this share, after ten minutes of the active version alone.
    fn new(seed: u64, share: f64) -> Self {
        Self::at(seed, share, 100, FINE)
    }

    fn at(seed: u64, share: f64, rate: u64, active: Behaviour) -> Self {
        let config = GuardConfig::default();
        let guard = GuardState::new(&config);
        let mut rollout = Self {
            config,
            guard,
            rng: Rng::with_seed(seed),
            share: 0.0,
            rate,
        };
        rollout.blocks(10, active, active);
        rollout.guard.begin_step();
        rollout.share = share;
        rollout
    }

    fn second(&mut self, active: Behaviour, candidate: Behaviour) -> Counts {
        let n = self.rate;
        let theirs = (0..n).filter(|_| self.rng.f64() < self.share).count() as u64;
        let counts = Counts {
            active: attempts(&mut self.rng, n - theirs, active),
            candidate: attempts(&mut self.rng, theirs, candidate),
        };
        self.guard.ticked(&self.config, &counts);
        counts
    }

    fn blocks(&mut self, blocks: u32, active: Behaviour, candidate: Behaviour) {
        for _ in 0..blocks {
            let mut block = Counts::default();
            for _ in 0..10 {
                block += &self.second(active, candidate);
            }
            self.guard.closed(&self.config, &block, self.share);
        }
    }

    fn verdict(&self) -> Verdict {
        self.guard.verdict(&self.config, 300)
    }

    fn regressed(&self) -> Option<Evidence> {
        match self.verdict() {
            Verdict::Regressed(evidence) => Some(evidence),
            Verdict::Hold(_) | Verdict::Insufficient { .. } | Verdict::Pass(_) => None,
        }
    }
}

fn failing(fails: f64) -> Behaviour {
    Behaviour { fails, ..FINE }
}

#[test]
fn a_candidate_as_good_passes_and_is_not_accused() {
    for seed in 0..20 {
        let mut rollout = Rollout::new(seed, 0.1);
        rollout.blocks(20, FINE, FINE);
        assert!(
            matches!(rollout.verdict(), Verdict::Pass(_)),
            "{seed}: {}",
            rollout.verdict()
        );
    }
}

#[test]
fn a_candidate_that_fails_a_third_is_found_within_seconds() {
    for seed in 0..20 {
        let mut rollout = Rollout::new(seed, 0.1);
        let seconds = (1..60).find(|_| {
            rollout.second(FINE, failing(0.3));
            rollout.regressed().is_some()
        });
        // Ten tasks a second.
        assert!(seconds.is_some_and(|seconds| seconds <= 10), "{seed}: {seconds:?}");
        assert_eq!(rollout.regressed().unwrap().test, Test::Burn);
    }
}

#[test]
fn a_candidate_that_fails_twice_what_is_allowed_is_found_within_minutes() {
    let mut rollout = Rollout::new(1, 0.1);
    rollout.blocks(30, FINE, failing(0.05));
    let evidence = rollout.regressed().unwrap();
    assert_eq!(evidence.test, Test::Failure, "{evidence}");
    assert!(evidence.e_value >= 500.0 && evidence.threshold == 500.0);
}

#[test]
fn evidence_against_it_is_carried_across_steps_and_for_it_is_not() {
    let mut whole = Rollout::new(5, 0.1);
    let needed = (1..100).find(|_| {
        whole.blocks(1, FINE, failing(0.04));
        whole.regressed().is_some()
    });
    let mut steps = Rollout::new(5, 0.1);
    for _ in 0..needed.unwrap() {
        steps.guard.begin_step();
        steps.blocks(1, FINE, failing(0.04));
    }
    assert_eq!(steps.regressed(), whole.regressed());

    let mut good = Rollout::new(6, 0.1);
    good.blocks(20, FINE, FINE);
    good.guard.begin_step();
    assert!(matches!(
        good.verdict(),
        Verdict::Insufficient {
            lack: Lack::Samples,
            have: 0,
            need: 300
        }
    ));
}

#[test]
fn an_outage_of_both_holds_and_lifts_and_accuses_nobody() {
    for (seed, rate) in [(1, 100), (2, 10), (3, 3), (4, 400)] {
        let mut rollout = Rollout::at(seed, 0.25, rate, FINE);
        rollout.blocks(5, FINE, FINE);
        rollout.blocks(12, failing(0.9), failing(0.9));
        let verdict = rollout.verdict();
        assert!(
            matches!(verdict, Verdict::Hold(HoldReason::BothFail(_))),
            "{rate}: {verdict}"
        );
        rollout.blocks(60, FINE, FINE);
        assert!(
            !matches!(rollout.verdict(), Verdict::Hold(_) | Verdict::Regressed(_)),
            "{}",
            rollout.verdict()
        );
    }
}

#[test]
fn an_outage_of_the_active_version_holds() {
    let mut rollout = Rollout::new(1, 0.1);
    rollout.blocks(20, FINE, FINE);
    rollout.blocks(2, failing(0.8), FINE);
    assert!(
        matches!(rollout.verdict(), Verdict::Hold(HoldReason::ActiveFails(_))),
        "{}",
        rollout.verdict()
    );
}

#[test]
fn a_candidate_that_fails_with_nothing_beside_it_is_held_not_rolled_back() {
    let config = GuardConfig::default();
    let mut guard = GuardState::new(&config);
    let all_fail = Counts {
        candidate: Arm {
            n: 50,
            failed: 50,
            ..Arm::default()
        },
        ..Counts::default()
    };
    guard.ticked(&config, &all_fail);
    guard.closed(&config, &all_fail, 0.01);
    let verdict = guard.verdict(&config, 10);
    assert!(
        matches!(verdict, Verdict::Hold(HoldReason::NothingBeside(_))),
        "{verdict}"
    );
}

#[test]
fn without_traffic_on_one_side_nothing_is_known() {
    let mut rollout = Rollout::new(1, 0.0);
    rollout.blocks(50, FINE, FINE);
    assert_eq!(
        rollout.verdict(),
        Verdict::Insufficient {
            lack: Lack::Samples,
            have: 0,
            need: 300
        }
    );

    let mut rollout = Rollout::at(1, 0.5, 10, FINE);
    rollout.share = 1.0;
    rollout.blocks(100, FINE, failing(0.03));
    let verdict = rollout.verdict();
    assert!(
        matches!(
            verdict,
            Verdict::Insufficient {
                lack: Lack::Evidence,
                ..
            }
        ),
        "{verdict}"
    );

    let config = GuardConfig::default();
    let nobody = GuardState::new(&config).verdict(&config, 0);
    assert!(
        matches!(
            nobody,
            Verdict::Insufficient {
                lack: Lack::Baseline,
                ..
            }
        ),
        "{nobody}"
    );
}

#[test]
fn all_tasks_with_one_key_hold_or_wait_and_never_roll_back() {
    for everything_to in [0.0, 1.0] {
        let mut rollout = Rollout::at(1, 0.1, 200, FINE);
        for _ in 0..60 {
            rollout.share = everything_to;
            let mut block = Counts::default();
            for _ in 0..10 {
                block += &rollout.second(FINE, FINE);
            }
            rollout.guard.closed(&rollout.config, &block, 0.1);
        }
        let verdict = rollout.verdict();
        assert!(
            matches!(verdict, Verdict::Hold(HoldReason::Share(_))),
            "{everything_to}: {verdict}"
        );
    }
}

#[test]
fn a_slow_tail_rolls_back_and_a_slow_median_holds_until_somebody_resumes() {
    let mut rollout = Rollout::new(1, 0.25);
    rollout.blocks(
        12,
        FINE,
        Behaviour {
            median: FINE.median * 2,
            ..FINE
        },
    );
    let evidence = rollout.regressed().unwrap();
    assert_eq!(evidence.test, Test::P95, "{evidence}");

    // Slower by a fifth: the tail stays within its margin.
    let mut rollout = Rollout::new(2, 0.25);
    rollout.config.p95_margin = 0.2;
    let slower = Behaviour {
        median: FINE.median.mul_f64(1.5),
        ..FINE
    };
    rollout.blocks(30, FINE, slower);
    assert!(
        matches!(rollout.verdict(), Verdict::Hold(HoldReason::Slower(_))),
        "{}",
        rollout.verdict()
    );
    rollout.guard.resumed();
    rollout.blocks(1, FINE, FINE);
    assert!(matches!(rollout.verdict(), Verdict::Pass(_)), "{}", rollout.verdict());
    rollout.blocks(30, FINE, slower);
    assert!(
        matches!(rollout.verdict(), Verdict::Hold(HoldReason::Slower(_))),
        "and it is still slower"
    );
}

#[test]
fn a_candidate_that_hangs_is_found_before_anything_of_it_ends() {
    let mut rollout = Rollout::new(23, 0.1);
    let mut blocks = 0_usize;
    while rollout.regressed().is_none() {
        blocks += 1;
        let counts = Counts {
            active: attempts(&mut rollout.rng, 900, FINE),
            // Nothing ends: two begin in each block, and in each that follows they outlast more.
            candidate: Arm {
                outlasted: (took::LONG..).take(8 * blocks).map(|age| (age, 2)).collect(),
                ..Arm::default()
            },
        };
        rollout.guard.closed(&rollout.config, &counts, 0.1);
    }
    let evidence = rollout.regressed().unwrap();
    assert_eq!(
        (evidence.test, evidence.failed_candidate),
        (Test::P95, 2 * blocks as u64)
    );
    assert_eq!(
        evidence.n_candidate,
        2 * blocks as u64,
        "each once, whatever it has outlasted"
    );
    assert!((2..=4).contains(&blocks), "{blocks}");
}

#[test]
fn a_candidate_that_hangs_with_every_place_holds_until_something_ends_beside_it() {
    let mut rollout = Rollout::new(24, 0.1);
    let hanging = Counts {
        candidate: Arm {
            outlasted: BTreeMap::from([(50, 3), (51, 8)]),
            ..Arm::default()
        },
        ..Counts::default()
    };
    rollout.guard.closed(&rollout.config, &hanging, 0.1);
    rollout.guard.closed(&rollout.config, &Counts::default(), 0.1);
    let Verdict::Hold(HoldReason::Stalled(evidence)) = rollout.verdict() else {
        panic!("{:?}", rollout.verdict())
    };
    assert_eq!((evidence.n_active, evidence.failed_candidate), (0, 8));
    assert!(
        evidence.words("v1", "v2").starts_with("p95: v2 8/8 "),
        "{}",
        evidence.words("v1", "v2")
    );
    rollout.blocks(1, FINE, FINE);
    assert!(!matches!(rollout.verdict(), Verdict::Hold(_)));
}

#[test]
fn dead_letters_count_on_their_own() {
    let mut rollout = Rollout::new(1, 0.25);
    // As many failures, but none is tried again.
    rollout.blocks(40, FINE, Behaviour { dies: 1.0, ..FINE });
    assert_eq!(rollout.regressed().unwrap().test, Test::Dead);
}

#[test]
fn a_machine_that_dies_is_one_loss_and_a_version_that_kills_is_found() {
    let mut rollout = Rollout::new(1, 0.1);
    rollout.blocks(3, FINE, FINE);
    let mut crash = rollout.second(FINE, FINE);
    crash.candidate.lost = 100;
    crash.candidate.n += 100;
    rollout.guard.ticked(&rollout.config, &crash);
    rollout.guard.closed(&rollout.config, &crash, 0.1);
    rollout.blocks(10, FINE, FINE);
    assert_eq!(rollout.regressed(), None);

    rollout.blocks(40, FINE, Behaviour { lost: 0.2, ..FINE });
    assert_eq!(rollout.regressed().unwrap().test, Test::Lost);
}

#[test]
fn quick_failures_of_long_tasks_are_not_the_rule() {
    let minute = Behaviour {
        median: Duration::from_secs(60),
        ..FINE
    };
    let mut rollout = Rollout::at(1, 0.25, 100, minute);
    assert!(rollout.guard.settling(&rollout.config));
    // Of what began in this step, only failures have ended: at first.
    rollout.blocks(10, minute, Behaviour { fails: 1.0, ..minute });
    assert_eq!(rollout.regressed(), None);
    assert!(matches!(rollout.verdict(), Verdict::Insufficient { .. }));
    rollout.blocks(90, minute, minute);
    assert!(!rollout.guard.settling(&rollout.config));
    assert!(matches!(rollout.verdict(), Verdict::Pass(_)), "{}", rollout.verdict());
    rollout.blocks(1, minute, Behaviour { fails: 1.0, ..minute });
    assert!(rollout.regressed().is_some());

    let short = Rollout::new(1, 0.1);
    assert!(
        !short.guard.settling(&short.config),
        "short tasks need no such patience"
    );
}

#[test]
fn after_promotion_ruin_is_found_and_the_usual_is_not() {
    let mut rollout = Rollout::new(1, 0.5);
    rollout.guard.freeze(&rollout.config);
    for _ in 0..600 {
        let arm = attempts(&mut rollout.rng, 100, failing(0.015));
        rollout.guard.watched(&rollout.config, &arm);
    }
    assert!(matches!(rollout.verdict(), Verdict::Pass(_)), "{}", rollout.verdict());
    let arm = attempts(&mut rollout.rng, 100, failing(0.4));
    rollout.guard.watched(&rollout.config, &arm);
    assert_eq!(rollout.regressed().unwrap().test, Test::Watch);

    // What was usual before is usual after.
    let mut rollout = Rollout::at(2, 0.5, 100, failing(0.18));
    rollout.guard.freeze(&rollout.config);
    for _ in 0..300 {
        let arm = attempts(&mut rollout.rng, 100, failing(0.2));
        rollout.guard.watched(&rollout.config, &arm);
    }
    assert_eq!(rollout.regressed(), None);
}

// Promoted at once: nobody knows what is usual. Ruin is ruin all the same.
#[test]
fn after_promotion_with_nothing_before_it_ruin_is_found_too() {
    for before in [0, 20] {
        let config = GuardConfig::default();
        let mut guard = GuardState::new(&config);
        let arm = |n, failed| Arm {
            n,
            failed,
            ..Arm::default()
        };
        guard.ticked(
            &config,
            &Counts {
                active: arm(before, 0),
                ..Counts::default()
            },
        );
        guard.freeze(&config);
        guard.watched(&config, &arm(1_000, 100));
        assert!(matches!(guard.verdict(&config, 1), Verdict::Pass(_)));
        guard.watched(&config, &arm(20, 20));
        assert!(matches!(guard.verdict(&config, 1), Verdict::Regressed(_)), "{before}");
    }
}

#[test]
fn a_stored_guard_goes_on_as_if_it_had_never_been_stored() {
    let (mut kept, mut stored) = (Rollout::new(9, 0.1), Rollout::new(9, 0.1));
    for block in 0..30 {
        let candidate = if block < 15 { FINE } else { failing(0.05) };
        kept.blocks(1, FINE, candidate);
        stored.blocks(1, FINE, candidate);
        let text = serde_json::to_string(&stored.guard).unwrap();
        assert!(text.len() < 8 * 1024, "{} bytes", text.len());
        stored.guard = serde_json::from_str(&text).unwrap();
        assert_eq!(kept.verdict().to_string(), stored.verdict().to_string());
    }
    assert!(kept.regressed().is_some());
    let of_an_older_build: GuardState = serde_json::from_str("{}").unwrap();
    assert_eq!(of_an_older_build, GuardState::new(&kept.config));
}

/// A candidate at the edge of what is allowed, with outages of both now and then.
#[test]
fn all_guardrails_together_keep_the_budget() {
    let mut config = GuardConfig {
        alpha: 0.1,
        ..GuardConfig::default()
    };
    config.burn.arl0 = 1e4;
    let (mut accused, runs) = (0, 60);
    for seed in 0..runs {
        let mut rollout = Rollout::at(seed, 0.0, 20, FINE);
        rollout.config = config.clone();
        for share in [0.05, 0.1, 0.25, 0.5] {
            rollout.guard.begin_step();
            rollout.share = share;
            for block in 0..12 {
                let p = if block % 10 == 9 { 0.04 } else { 0.01 };
                rollout.blocks(1, failing(p), failing(p + 0.005));
            }
        }
        accused += usize::from(rollout.regressed().is_some());
    }
    assert!(accused <= 6, "{accused} of {runs} at alpha 0.1");
}

// Half of the customers are tried on the candidate by name: the percent gives what it was asked for.
#[test]
fn what_pins_and_targets_send_is_no_part_of_the_share() {
    let config = GuardConfig::default();
    let arm = |n, placed| Arm {
        n,
        placed,
        ..Arm::default()
    };
    for (placed, holds) in [(9_500, false), (0, true)] {
        let mut guard = GuardState::new(&config);
        for _ in 0..5 {
            let block = Counts {
                active: arm(4_500, 0),
                candidate: arm(10_000, placed),
            };
            guard.closed(&config, &block, 0.1);
        }
        let share = |verdict| matches!(verdict, Verdict::Hold(HoldReason::Share(_)));
        assert_eq!(share(guard.verdict(&config, 300)), holds, "{placed}");
    }
    // The same the other way round: nothing but pins to the active version is no candidate that gets nothing.
    let mut guard = GuardState::new(&config);
    for _ in 0..100 {
        let block = Counts {
            active: arm(10_000, 10_000),
            candidate: arm(0, 0),
        };
        guard.closed(&config, &block, 0.1);
    }
    assert!(matches!(guard.verdict(&config, 300), Verdict::Insufficient { .. }));
}

fn arm() -> impl Strategy<Value = Arm> {
    let count = || prop_oneof![Just(0), 0u64..1000, Just(u64::MAX / 4), 0..u64::MAX / 4];
    let took = prop::collection::btree_map(any::<u8>(), count(), 0..5);
    let outlasted = prop::collection::btree_map(any::<u8>(), count(), 0..5);
    (count(), count(), count(), count(), took, outlasted).prop_map(|(n, failed, dead, lost, took, outlasted)| Arm {
        n,
        failed,
        dead,
        lost,
        took,
        outlasted,
        ..Arm::default()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn whatever_is_counted_every_number_is_finite_and_the_state_is_small(
        steps in prop::collection::vec((arm(), arm(), any::<f64>(), any::<bool>()), 1..12), promoted in any::<bool>(),
    ) {
        let config = GuardConfig { baseline_min: 20, ..GuardConfig::default() };
        let mut guard = GuardState::new(&config);
        for (active, candidate, share, begin) in steps {
            let counts = Counts { active, candidate };
            guard.ticked(&config, &counts);
            guard.closed(&config, &counts, share);
            if begin {
                guard.begin_step();
            }
            for evidence in guard.evidence(&config) {
                prop_assert!(evidence.e_value.is_finite() && evidence.allowed.is_finite(), "{evidence:?}");
            }
            let _ = guard.verdict(&config, 300).to_string();
            let text = serde_json::to_string(&guard).unwrap();
            prop_assert!(text.len() < 8 * 1024, "{}", text.len());
            // JSON has neither infinity nor NaN: they would come back as nothing, and fail.
            let back: GuardState = serde_json::from_str(&text).unwrap();
            prop_assert_eq!(back.verdict(&config, 300).to_string(), guard.verdict(&config, 300).to_string());
            if promoted {
                guard.freeze(&config);
                guard.watched(&config, &counts.candidate);
            }
        }
    }

    #[test]
    fn a_fold_knows_no_time(seed in any::<u64>(), share in 0.01..0.5f64) {
        let (mut one, mut other) = (Rollout::at(seed, share, 20, FINE), Rollout::at(seed, share, 20, FINE));
        one.blocks(3, FINE, failing(0.1));
        other.blocks(3, FINE, failing(0.1));
        prop_assert_eq!(one.guard, other.guard);
    }
}

#[test]
fn a_block_is_judged_by_what_was_before_it() {
    let config = GuardConfig::default();
    let mut guard = GuardState::new(&config);
    let bad = Counts {
        active: Arm {
            n: 1000,
            failed: 10,
            ..Arm::default()
        },
        candidate: Arm {
            n: 1000,
            failed: 900,
            ..Arm::default()
        },
    };
    guard.closed(&config, &bad, f64::NAN);
    assert_eq!(guard.evidence(&config)[0].n_candidate, 0, "nothing was before it");
    guard.closed(&config, &bad, f64::NAN);
    assert_eq!(guard.evidence(&config)[0].n_candidate, 1000);
    serde_json::from_str::<GuardState>(&serde_json::to_string(&guard).unwrap()).unwrap();
}

#[test]
fn the_block_in_which_a_step_began_has_tasks_of_two_shares() {
    let mut rollout = Rollout::new(1, 0.5);
    rollout.guard.begin_step();
    let mut block = Counts::default();
    block.active.n = 1_000_000;
    rollout.guard.closed(&rollout.config, &block, 0.5);
    assert!(!matches!(rollout.verdict(), Verdict::Hold(_)));
    rollout.guard.closed(&rollout.config, &block, 0.5);
    assert!(matches!(rollout.verdict(), Verdict::Hold(HoldReason::Share(_))));
}

#[test]
fn nothing_is_in_a_bucket_that_is_not_there() {
    let arm = Arm {
        n: 3,
        took: BTreeMap::from([(0, 1), (255, 2)]),
        ..Arm::default()
    };
    let config = GuardConfig {
        baseline_min: 3,
        ..GuardConfig::default()
    };
    let mut guard = GuardState::new(&config);
    for _ in 0..3 {
        guard.closed(
            &config,
            &Counts {
                active: arm.clone(),
                candidate: arm.clone(),
            },
            0.5,
        );
    }
    assert!(matches!(guard.verdict(&config, 1), Verdict::Insufficient { .. }));
}
