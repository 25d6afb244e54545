//! What the guard says, and on what evidence.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

use super::arms::Tally;

/// What the guard says of the candidate, the gravest first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "verdict")]
pub enum Verdict {
    /// It is worse than allowed: roll back. Stays.
    Regressed(Evidence),
    /// Something is wrong that is not, or not surely, the candidate's fault: go no further, and tell somebody.
    Hold(HoldReason),
    /// Not enough is known yet.
    Insufficient {
        /// Of what.
        lack: Lack,
        /// How much there is.
        have: u64,
        /// How much it takes; an estimate where it is evidence that lacks.
        need: u64,
    },
    /// Shown to be no worse than allowed.
    Pass(Evidence),
}

/// What there is too little of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Lack {
    /// Attempts of the active version, to learn what is usual.
    Baseline,
    /// Attempts of the candidate in this step.
    Samples,
    /// Attempts of the candidate in this step, to show that it is no worse.
    Evidence,
}

/// Why the rollout goes no further.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "reason")]
pub enum HoldReason {
    /// Both versions fail: an outage, most likely. Lifts by itself.
    BothFail(Evidence),
    /// The active version fails, and the candidate does not. Lifts by itself.
    ActiveFails(Evidence),
    /// The candidate fails, and the active version did too little to compare with. Lifts by itself.
    NothingBeside(Evidence),
    /// Attempts of the candidate run on, and nothing of the active version ends beside them: they may hold all places. Lifts by
    /// itself.
    Stalled(Evidence),
    /// The candidate's median is longer than allowed. Stays, until somebody resumes the rollout.
    Slower(Evidence),
    /// The candidate's share of the tasks is not what was asked for. Stays, until somebody resumes the rollout.
    Share(Evidence),
}

impl HoldReason {
    /// Whether it lifts by itself; else a person looks and resumes the rollout.
    #[must_use]
    pub fn lifts(&self) -> bool {
        match self {
            Self::BothFail(_) | Self::ActiveFails(_) | Self::NothingBeside(_) | Self::Stalled(_) => true,
            Self::Slower(_) | Self::Share(_) => false,
        }
    }

    /// What it was seen in.
    #[must_use]
    pub fn evidence(&self) -> &Evidence {
        match self {
            Self::BothFail(evidence)
            | Self::ActiveFails(evidence)
            | Self::NothingBeside(evidence)
            | Self::Stalled(evidence)
            | Self::Slower(evidence)
            | Self::Share(evidence) => evidence,
        }
    }
}

/// Which test.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Test {
    /// Failures.
    Failure,
    /// Failures, quickly.
    Burn,
    /// Longer than the active version's p95.
    P95,
    /// Longer than the active version's median.
    P50,
    /// Dead letters.
    Dead,
    /// Lost with their process.
    Lost,
    /// Failures, for promotion: the e-value speaks for the candidate.
    Promote,
    /// Share of the tasks.
    Share,
    /// Failures after promotion, against what was usual before.
    Watch,
}

impl Test {
    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Failure => "failure",
            Self::Burn => "burn",
            Self::P95 => "p95",
            Self::P50 => "p50",
            Self::Dead => "dead",
            Self::Lost => "lost",
            Self::Promote => "promote",
            Self::Share => "share",
            Self::Watch => "watch",
        }
    }
}

/// The counts that a verdict rests on. Written as one line for people; version names come from whoever knows them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Evidence {
    /// Which test.
    pub test: Test,
    /// Attempts of the active version.
    pub n_active: u64,
    /// … that failed, or were too long, or whatever the test counts.
    pub failed_active: u64,
    /// Attempts of the candidate.
    pub n_candidate: u64,
    /// … that failed.
    pub failed_candidate: u64,
    /// How much more likely this is if the candidate is worse (for `promote`: if it is as good). For the alarms,
    /// `burn` and `watch`: a likelihood ratio since they last began anew.
    pub e_value: f64,
    /// What the e-value must reach.
    pub threshold: f64,
    /// What the test compares with: an allowed difference, a rate (alarms), or a share.
    pub allowed: f64,
    /// Too long is longer than this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bound_us: Option<u64>,
}

impl Evidence {
    pub(super) fn new(test: Test, active: Tally, candidate: Tally) -> Self {
        Self {
            test,
            n_active: active.n,
            failed_active: active.hit,
            n_candidate: candidate.n,
            failed_candidate: candidate.hit,
            e_value: 1.0,
            threshold: 1.0,
            allowed: 0.0,
            bound_us: None,
        }
    }

    /// Whether it is enough.
    #[must_use]
    pub fn suffices(&self) -> bool {
        self.e_value >= self.threshold
    }

    /// In one line, with the names of the versions.
    #[must_use]
    pub fn words(&self, active: &str, candidate: &str) -> String {
        let theirs = Share(self.failed_candidate, self.n_candidate);
        let ours = Share(self.failed_active, self.n_active);
        let test = self.test.name();
        let value = Number(self.e_value);
        let threshold = Number(self.threshold);
        match self.test {
            Test::Failure | Test::Dead | Test::Lost | Test::Promote => format!(
                "{test}: {candidate} {theirs} against {active} {ours} in the same blocks; e-value {value}, threshold \
                 {threshold}"
            ),
            Test::P95 | Test::P50 => format!(
                "{test}: {candidate} {theirs} against {active} {ours} longer than {:?}, in the same blocks; e-value \
                 {value}, threshold {threshold}",
                Duration::from_micros(self.bound_us.unwrap_or(0))
            ),
            Test::Burn => format!(
                "{test}: {candidate} {theirs} against {active} {ours} meanwhile, {} being healthy; likelihood ratio \
                 {value}, threshold {threshold}",
                Percent(self.allowed)
            ),
            Test::Watch => format!(
                "{test}: {candidate} {theirs}, {} having been healthy for {active}; likelihood ratio {value}, threshold \
                 {threshold}",
                Percent(self.allowed)
            ),
            Test::Share => format!(
                "{test}: {candidate} has {theirs} of the tasks at {}; e-value {value}, threshold {threshold}",
                Percent(self.allowed)
            ),
        }
    }
}

impl fmt::Display for Evidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.words("active", "candidate"))
    }
}

impl fmt::Display for HoldReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let why = match self {
            Self::BothFail(_) => "both versions fail",
            Self::ActiveFails(_) => "the active version fails",
            Self::NothingBeside(_) => "the candidate fails, with too little of the active version to compare with",
            Self::Stalled(_) => {
                "attempts of the candidate run on and nothing of the active version ends beside them: they may hold all places"
            }
            Self::Slower(_) => "the candidate is slower",
            Self::Share(_) => "the candidate's share of the tasks is not what was asked for",
        };
        write!(f, "{why} ({})", self.evidence())
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Regressed(evidence) => write!(f, "regressed: {evidence}"),
            Self::Hold(reason) => write!(f, "hold: {reason}"),
            Self::Insufficient { lack, have, need } => match lack {
                Lack::Baseline => write!(
                    f,
                    "insufficient: {have} of {need} attempts of the active version in whole blocks"
                ),
                Lack::Samples => write!(
                    f,
                    "insufficient: {have} of {need} attempts of the candidate in whole blocks"
                ),
                Lack::Evidence => write!(f, "insufficient: {have} of about {need} attempts of the candidate"),
            },
            Self::Pass(evidence) => write!(f, "pass: {evidence}"),
        }
    }
}

/// `38/122 (31.1 %)`.
struct Share(u64, u64);

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(hit, n) = *self;
        write!(f, "{hit}/{n} ({})", Percent(Tally::new(n, hit).rate()))
    }
}

/// `31.1 %`, and `0.03 %`: two digits where one would say nothing.
struct Percent(f64);

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = self.0 * 100.0;
        if percent > 0.0 && percent < 0.95 {
            write!(f, "{percent:.2} %")
        } else {
            write!(f, "{percent:.1} %")
        }
    }
}

/// `500`, `0.31`, `4.1e9`.
struct Number(f64);

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            small if small < 0.01 => write!(f, "{small:.1e}"),
            small if small < 10.0 => write!(f, "{small:.2}"),
            middle if middle < 100_000.0 => write!(f, "{middle:.0}"),
            large => write!(f, "{large:.1e}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn evidence(test: Test) -> Evidence {
        Evidence {
            e_value: 4.1e9,
            threshold: 500.0,
            allowed: 0.005,
            bound_us: Some(1_414_214),
            ..Evidence::new(test, Tally::new(1093, 11), Tally::new(122, 38))
        }
    }

    #[test]
    fn evidence_is_one_line_of_words() {
        assert_eq!(
            evidence(Test::Failure).words("v1", "v2"),
            "failure: v2 38/122 (31.1 %) against v1 11/1093 (1.0 %) in the same blocks; e-value 4.1e9, threshold 500"
        );
        assert_eq!(
            evidence(Test::P95).to_string(),
            "p95: candidate 38/122 (31.1 %) against active 11/1093 (1.0 %) longer than 1.414214s, in the same blocks; \
             e-value 4.1e9, threshold 500"
        );
        assert_eq!(
            evidence(Test::Burn).words("v1", "v2"),
            "burn: v2 38/122 (31.1 %) against v1 11/1093 (1.0 %) meanwhile, 0.50 % being healthy; likelihood ratio \
             4.1e9, threshold 500"
        );
        assert_eq!(
            evidence(Test::Share).words("v1", "v2"),
            "share: v2 has 38/122 (31.1 %) of the tasks at 0.50 %; e-value 4.1e9, threshold 500"
        );
    }

    #[test]
    fn programs_read_it_too() {
        for verdict in [
            Verdict::Regressed(evidence(Test::Failure)),
            Verdict::Hold(HoldReason::Slower(evidence(Test::P50))),
            Verdict::Insufficient {
                lack: Lack::Samples,
                have: 12,
                need: 300,
            },
            Verdict::Pass(evidence(Test::Promote)),
        ] {
            let text = serde_json::to_string(&verdict).unwrap();
            assert_eq!(serde_json::from_str::<Verdict>(&text).unwrap(), verdict, "{text}");
        }
        let text = serde_json::to_value(Verdict::Hold(HoldReason::Slower(evidence(Test::P50)))).unwrap();
        assert_eq!(
            (&text["verdict"], &text["reason"], &text["test"]),
            (&"hold".into(), &"slower".into(), &"p50".into())
        );
    }
}
