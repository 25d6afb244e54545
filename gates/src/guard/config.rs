//! What the guard is asked to keep: its error budget, its margins, its patience.

use serde::{Deserialize, Serialize};

/// How many tests may each roll a candidate back by mistake, and share [`GuardConfig::alpha`] evenly: failure, p95,
/// dead, lost, burn.
pub const GUARDRAILS: f64 = 5.0;

/// What the guard is asked to keep. All of it has defaults; unknown fields are errors.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GuardConfig {
    /// Chance that a rollout of a candidate within all margins is ever rolled back. Defaults to 0.01.
    pub alpha: f64,
    /// Chance, per step, that a candidate worse than `promote_margin` passes. Defaults to 0.05.
    pub beta: f64,
    /// Length of the blocks within which versions are compared. Defaults to 10.
    pub block_secs: u64,
    /// How much more of its tasks a candidate may fail. Defaults to 0.005: half a percentage point.
    pub failure_margin: f64,
    /// How much more of its tasks may take longer than the active version's p95. Defaults to 0.05.
    pub p95_margin: f64,
    /// How much more of its tasks may take longer than the active version's median; more than that holds the rollout.
    /// Defaults to 0.1.
    pub p50_margin: f64,
    /// How much more of its tasks may end as dead letters. Defaults to 0.001.
    pub dead_margin: f64,
    /// How much more of its tasks may vanish with their process. Defaults to 0.005.
    pub lost_margin: f64,
    /// What a candidate must be shown not to exceed, in failures, before it passes a step. Defaults to 0.02.
    pub promote_margin: f64,
    /// Attempts of the active version before its quantiles are frozen; nothing passes before. Defaults to 1000.
    pub baseline_min: u64,
    /// How many attempts with one key count per version and block; whoever counts applies it. Defaults to 5.
    pub per_key_cap: u64,
    /// The fast alarm.
    pub burn: Burn,
    /// E-value at which the candidate's share of the tasks is not what was asked for. Defaults to 1000.
    pub srm_threshold: f64,
    /// Longest time, after a step begins, in which long tasks that are still running are waited for. Defaults to 600.
    pub settle_max_secs: u64,
}

/// The fast alarm: a CUSUM on the candidate's failures, at every look.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Burn {
    /// The failure rate that it looks for. Defaults to 0.5.
    pub p1: f64,
    /// The failure rate that it takes as healthy even where the active version is better. Defaults to 0.01.
    pub p0_floor: f64,
    /// Tasks between false alarms, at least, of a candidate that fails twice as often as the active version. Defaults
    /// to 1e6.
    pub arl0: f64,
    /// Attempts of the active version before the alarm may accuse the candidate. Defaults to 100.
    pub active_min: u64,
}

impl Default for GuardConfig {
    fn default() -> Self {
        Self {
            alpha: 0.01,
            beta: 0.05,
            block_secs: 10,
            failure_margin: 0.005,
            p95_margin: 0.05,
            p50_margin: 0.1,
            dead_margin: 0.001,
            lost_margin: 0.005,
            promote_margin: 0.02,
            baseline_min: 1000,
            per_key_cap: 5,
            burn: Burn::default(),
            srm_threshold: 1000.0,
            settle_max_secs: 600,
        }
    }
}

impl Default for Burn {
    fn default() -> Self {
        Self {
            p1: 0.5,
            p0_floor: 0.01,
            arl0: 1e6,
            active_min: 100,
        }
    }
}

/// A guard that could not do what it promises.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("guard: {field} is {value}, and must be {must}")]
pub struct InvalidGuard {
    /// Which field.
    pub field: &'static str,
    /// What it says.
    pub value: f64,
    /// What it must say.
    pub must: &'static str,
}

impl GuardConfig {
    /// The e-value at which one guardrail rolls back: its part of `alpha`, upside down.
    #[must_use]
    pub fn threshold(&self) -> f64 {
        GUARDRAILS / self.alpha
    }

    /// Whether the guard can do what it is asked.
    ///
    /// # Errors
    /// The first field out of its range.
    pub fn validate(&self) -> Result<(), InvalidGuard> {
        const MARGIN: &str = "from 0 to 0.5 (a share of the tasks, not percent)";
        const BUDGET: &str = "from 0.000001 to 0.2 (a chance, not percent)";
        let check = |field, value: f64, from: f64, to: f64, must| {
            // NaN is in no range.
            if (from..=to).contains(&value) {
                Ok(())
            } else {
                Err(InvalidGuard { field, value, must })
            }
        };
        check("alpha", self.alpha, 1e-6, 0.2, BUDGET)?;
        check("beta", self.beta, 1e-6, 0.2, BUDGET)?;
        check("block_secs", self.block_secs as f64, 1.0, 3600.0, "from 1 to 3600")?;
        check("failure_margin", self.failure_margin, 0.0, 0.5, MARGIN)?;
        check("p95_margin", self.p95_margin, 0.0, 0.5, MARGIN)?;
        check("p50_margin", self.p50_margin, 0.0, 0.5, MARGIN)?;
        check("dead_margin", self.dead_margin, 0.0, 0.5, MARGIN)?;
        check("lost_margin", self.lost_margin, 0.0, 0.5, MARGIN)?;
        // At 0 nothing would ever pass: that a candidate is not worse at all cannot be shown.
        check("promote_margin", self.promote_margin, 1e-4, 0.5, "from 0.0001 to 0.5")?;
        check("baseline_min", self.baseline_min as f64, 20.0, 1e9, "at least 20")?;
        check("per_key_cap", self.per_key_cap as f64, 1.0, 1e9, "at least 1")?;
        check("burn.p1", self.burn.p1, 0.1, 0.95, "from 0.1 to 0.95")?;
        check(
            "burn.p0_floor",
            self.burn.p0_floor,
            1e-4,
            self.burn.p1 / 2.0,
            "from 0.0001 to half of p1",
        )?;
        check("burn.arl0", self.burn.arl0, 1e3, 1e12, "from 1e3 to 1e12")?;
        check("burn.active_min", self.burn.active_min as f64, 20.0, 1e9, "at least 20")?;
        check("srm_threshold", self.srm_threshold, 10.0, 1e12, "from 10 to 1e12")?;
        check(
            "settle_max_secs",
            self.settle_max_secs as f64,
            0.0,
            86_400.0,
            "at most 86400",
        )?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid_and_five_guardrails_share_alpha() {
        let config = GuardConfig::default();
        config.validate().unwrap();
        assert!((config.threshold() - 500.0).abs() < 1e-9);
    }

    #[test]
    fn percent_written_as_such_is_refused() {
        let config = GuardConfig {
            failure_margin: 5.0,
            ..GuardConfig::default()
        };
        assert_eq!(config.validate().unwrap_err().field, "failure_margin");
        let config = GuardConfig {
            alpha: f64::NAN,
            ..GuardConfig::default()
        };
        assert_eq!(config.validate().unwrap_err().field, "alpha");
    }

    #[test]
    fn a_misspelt_field_is_an_error_and_a_missing_one_is_not() {
        assert!(serde_json::from_str::<GuardConfig>(r#"{"alhpa": 0.01}"#).is_err());
        assert!(serde_json::from_str::<GuardConfig>(r#"{"burn": {"p2": 0.5}}"#).is_err());
        let config: GuardConfig = serde_json::from_str(r#"{"beta": 0.1, "burn": {"p1": 0.4}}"#).unwrap();
        assert_eq!((config.beta, config.burn.p1, config.burn.arl0), (0.1, 0.4, 1e6));
    }
}
