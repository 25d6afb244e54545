//! All tests of one rollout, as a fold over what was counted.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use switchback_common::took;

use super::{
    arms::{Arm, Counts, Tally},
    config::GuardConfig,
    cusum::{Alarm, Burns, height},
    etest::{Base, ETest},
    latency::Baseline,
    numbers,
    promote::Promotion,
    srm::ShareTest,
    verdict::{Evidence, HoldReason, Lack, Test, Verdict},
    watch::Watch,
};

/// The most that one block may say about lost tasks, as a logarithm. A process that dies takes all it runs along: one
/// event, whatever the number, and a machine may die with any version. Three blocks with losses are needed.
const LOST_PER_BLOCK: f64 = 3.0;

/// Attempts of the candidate that outlast the active version's p95 with nothing beside them, before somebody is told.
const STALLED: u64 = 5;

/// What the guard knows. A pure fold: the same counts in the same order give the same verdict, today or in a
/// post-mortem. Small; carried across steps; stored as JSON by whoever drives the rollout.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct GuardState {
    burns: Burns,
    failure: Compared,
    p95: Compared,
    p50: Compared,
    dead: Compared,
    lost: Compared,
    baseline: Baseline,
    step: Step,
    watch: Option<Watch>,
    /// The candidate's attempts that run on since nothing of the active version ends.
    stalled: u64,
    /// The first guardrail that was hit: what is true once stays true.
    regressed: Option<Evidence>,
    /// The first signal that was, until somebody resumes.
    held: Option<HoldReason>,
}

/// One rate of both versions, and the test of it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct Compared {
    base: Base,
    test: ETest,
}

/// What belongs to one step.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct Step {
    /// Blocks since it began.
    blocks: u64,
    promotion: Promotion,
    share: ShareTest,
    /// The candidate's attempts in blocks that counted.
    samples: u64,
}

impl Compared {
    /// The test first, what was learnt after: A knows earlier blocks only.
    fn block(&mut self, active: Tally, candidate: Tally, margin: f64, cap: f64, judged: bool) {
        if judged {
            self.test.block(&self.base, active, candidate, margin, cap);
        }
        self.base.learn(active);
    }

    fn evidence(&self, test: Test, margin: f64, threshold: f64) -> Evidence {
        Evidence {
            e_value: numbers::exp(self.test.ln_e()),
            threshold,
            allowed: margin,
            ..Evidence::new(test, self.test.active, self.test.candidate)
        }
    }
}

impl GuardState {
    /// Before anything was counted.
    #[must_use]
    pub fn new(_config: &GuardConfig) -> Self {
        Self::default()
    }

    /// One look, every second or so: what is new since the last. For the alarms, that wait for no block.
    pub fn ticked(&mut self, config: &GuardConfig, new: &Counts) {
        if self.watch.is_some() {
            return;
        }
        let candidate = if self.settling(config) {
            Tally::default()
        } else {
            new.candidate.failures()
        };
        self.burns.look(new.active.failures(), candidate, config);
        if self.regressed.is_none() && self.burns.alarm(config) == Alarm::Candidate {
            self.regressed = Some(self.burn_evidence(config));
        }
    }

    /// A block is over. `share` is the candidate's, between 0 and 1; what lies outside, or at either end, says that no
    /// share is expected (nothing was asked for yet), and none is tested.
    ///
    /// To be called for every block, empty ones too, and for those before the first step (with share 0): they teach
    /// what is usual.
    pub fn closed(&mut self, config: &GuardConfig, block: &Counts, share: f64) {
        if self.watch.is_some() {
            return;
        }
        let judged = !self.settling(config);
        self.step.blocks += 1;
        let (a, b) = (&block.active, &block.candidate);
        if judged {
            let margin = config.promote_margin;
            self.step
                .promotion
                .block(&self.failure.base, a.failures(), b.failures(), margin);
            self.step.samples = self.step.samples.saturating_add(b.n);
            // The block in which the step began has tasks of two shares.
            if self.step.blocks > 1 && share > 0.0 && share < 1.0 {
                // Pins and targets send what they send, whatever the percent is.
                self.step.share.block(a.by_percent(), b.by_percent(), share);
            }
        }
        let p95 = self.baseline.bounds().map_or(0, |(_, p95)| p95);
        self.stalled = match a.longer_than(p95).n {
            0 => self.stalled.max(b.running_past(p95)),
            _ => 0,
        };
        let whole = f64::INFINITY;
        let compare = |compared: &mut Compared, of: &dyn Fn(&Arm) -> Tally, margin, cap| {
            compared.block(of(a), of(b), margin, cap, judged);
        };
        compare(&mut self.failure, &Arm::failures, config.failure_margin, whole);
        compare(&mut self.dead, &Arm::deaths, config.dead_margin, whole);
        compare(&mut self.lost, &Arm::losses, config.lost_margin, LOST_PER_BLOCK);
        match self.baseline.bounds() {
            None => self.baseline.learn(&a.took, config.baseline_min),
            Some((p50, p95)) => {
                compare(&mut self.p50, &|arm| arm.longer_than(p50), config.p50_margin, whole);
                compare(&mut self.p95, &|arm| arm.longer_than(p95), config.p95_margin, whole);
            }
        }
        self.remember(config);
    }

    /// The next step begins. Evidence for the candidate is gathered anew; evidence against it stays, or the chance of a
    /// false rollback would be spent once per step.
    pub fn begin_step(&mut self) {
        self.step = Step::default();
    }

    /// Somebody looked at what holds the rollout, and goes on: the signals begin anew. What rolls back does not.
    pub fn resumed(&mut self) {
        self.held = None;
        self.p50.test = ETest::default();
        self.step.share = ShareTest::default();
    }

    /// The candidate was promoted: from now on it is alone, and watched against what was usual before.
    pub fn freeze(&mut self, config: &GuardConfig) {
        if self.watch.is_none() {
            self.watch = Some(Watch::new(self.burns.usual(config)));
        }
    }

    /// One look after promotion: what the promoted version newly did.
    pub fn watched(&mut self, config: &GuardConfig, new: &Arm) {
        let Some(watch) = &mut self.watch else { return };
        watch.look(new.failures(), config);
        if self.regressed.is_none() && watch.alarmed(config) {
            self.regressed = Some(watch.evidence(config));
        }
    }

    /// What is to be done, with at least `min_samples` attempts of the candidate in this step before it passes.
    #[must_use]
    pub fn verdict(&self, config: &GuardConfig, min_samples: u64) -> Verdict {
        if let Some(evidence) = self.regressed.clone() {
            return Verdict::Regressed(evidence);
        }
        if let Some(watch) = &self.watch {
            return Verdict::Pass(watch.evidence(config));
        }
        let held = || self.held.clone().or_else(|| self.stalling(config));
        if let Some(reason) = self.alarming(config).or_else(held) {
            return Verdict::Hold(reason);
        }
        let have = self.step.samples;
        if have < min_samples {
            return Verdict::Insufficient {
                lack: Lack::Samples,
                have,
                need: min_samples,
            };
        }
        // Nothing passes whose latency nobody could judge.
        if let Some(have) = self.baseline.counted() {
            return Verdict::Insufficient {
                lack: Lack::Baseline,
                have,
                need: config.baseline_min,
            };
        }
        let threshold = 1.0 / config.beta;
        let promotion = &self.step.promotion;
        if promotion.ln_e < threshold.ln() {
            let lacks = promotion.lacks(&self.failure.base, config.promote_margin, threshold.ln());
            return Verdict::Insufficient {
                lack: Lack::Evidence,
                have,
                need: have.saturating_add(lacks),
            };
        }
        Verdict::Pass(Evidence {
            e_value: numbers::exp(promotion.ln_e),
            threshold,
            allowed: config.promote_margin,
            ..Evidence::new(Test::Promote, promotion.active, promotion.candidate)
        })
    }

    /// How each test stands, for people.
    #[must_use]
    pub fn evidence(&self, config: &GuardConfig) -> Vec<Evidence> {
        let threshold = config.threshold();
        let mut all = vec![
            self.failure.evidence(Test::Failure, config.failure_margin, threshold),
            self.p95_evidence(config),
            self.dead.evidence(Test::Dead, config.dead_margin, threshold),
            self.lost.evidence(Test::Lost, config.lost_margin, threshold),
            self.burn_evidence(config),
            self.p50_evidence(config),
            self.share_evidence(config),
        ];
        all.extend(self.watch.as_ref().map(|watch| watch.evidence(config)));
        all
    }

    /// Whether the step is so young that only its short tasks have ended: quick failures would look like the rule.
    ///
    /// As long as nearly all of the active version's tasks take, and the rest of the block in which the step began.
    #[must_use]
    pub fn settling(&self, config: &GuardConfig) -> bool {
        let p99 = self
            .baseline
            .p99()
            .min(Duration::from_secs(config.settle_max_secs))
            .as_secs_f64();
        let block = config.block_secs.max(1) as f64;
        // A tenth of a block tips no scales.
        p99 > block / 10.0 && (self.step.blocks as f64) < (p99 / block).ceil() + 1.0
    }

    /// Keeps the first guardrail hit, and the first signal. An e-value that ever was high enough is enough.
    fn remember(&mut self, config: &GuardConfig) {
        let threshold = config.threshold();
        if self.regressed.is_none() {
            let guardrails = [
                self.failure.evidence(Test::Failure, config.failure_margin, threshold),
                self.p95_evidence(config),
                self.dead.evidence(Test::Dead, config.dead_margin, threshold),
                self.lost.evidence(Test::Lost, config.lost_margin, threshold),
            ];
            self.regressed = guardrails.into_iter().find(Evidence::suffices);
        }
        if self.held.is_none() {
            let (slower, share) = (self.p50_evidence(config), self.share_evidence(config));
            if slower.suffices() {
                self.held = Some(HoldReason::Slower(slower));
            } else if share.suffices() {
                self.held = Some(HoldReason::Share(share));
            }
        }
    }

    fn alarming(&self, config: &GuardConfig) -> Option<HoldReason> {
        match self.burns.alarm(config) {
            Alarm::None | Alarm::Candidate => None,
            Alarm::Alone => Some(HoldReason::NothingBeside(self.burn_evidence(config))),
            Alarm::Active => Some(HoldReason::ActiveFails(self.outage_evidence(config))),
            Alarm::Both => Some(HoldReason::BothFail(self.outage_evidence(config))),
        }
    }

    /// No blocks can be compared, and none ever may be: the candidate hangs, and has every place there is.
    fn stalling(&self, config: &GuardConfig) -> Option<HoldReason> {
        (self.stalled >= STALLED).then(|| {
            HoldReason::Stalled(Evidence {
                n_active: 0,
                failed_active: 0,
                n_candidate: self.stalled,
                failed_candidate: self.stalled,
                ..self.p95_evidence(config)
            })
        })
    }

    fn burn_evidence(&self, config: &GuardConfig) -> Evidence {
        self.burns.evidence(config, self.burns.beside, self.burns.candidate.g)
    }

    fn outage_evidence(&self, config: &GuardConfig) -> Evidence {
        self.burns.evidence(config, self.burns.active.run, self.burns.active.g)
    }

    fn p95_evidence(&self, config: &GuardConfig) -> Evidence {
        Evidence {
            bound_us: self.baseline.bounds().map(|(_, p95)| micros(p95)),
            ..self.p95.evidence(Test::P95, config.p95_margin, config.threshold())
        }
    }

    fn p50_evidence(&self, config: &GuardConfig) -> Evidence {
        Evidence {
            bound_us: self.baseline.bounds().map(|(p50, _)| micros(p50)),
            ..self.p50.evidence(Test::P50, config.p50_margin, config.threshold())
        }
    }

    fn share_evidence(&self, config: &GuardConfig) -> Evidence {
        let share = &self.step.share;
        Evidence {
            e_value: numbers::exp(share.ln_e()),
            threshold: config.srm_threshold,
            allowed: share.share,
            ..Evidence::new(Test::Share, Tally::default(), share.tasks)
        }
    }
}

impl Burns {
    fn evidence(&self, config: &GuardConfig, active: Tally, g: f64) -> Evidence {
        Evidence {
            e_value: numbers::exp(g),
            threshold: numbers::exp(height(config)),
            allowed: self.p0(config).min(1.0),
            ..Evidence::new(Test::Burn, active, self.candidate.run)
        }
    }
}

fn micros(bucket: u8) -> u64 {
    u64::try_from(took::bound(bucket).as_micros()).unwrap_or(u64::MAX)
}
