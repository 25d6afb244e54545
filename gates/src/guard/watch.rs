//! After promotion: the promoted version against what was usual before.
//!
//! Nothing runs beside it any more, so this cannot tell the version from an outage; it is set to see ruin, not
//! nuances.

use serde::{Deserialize, Serialize};

use super::{
    arms::Tally,
    config::GuardConfig,
    cusum::{Cusum, height},
    numbers,
    verdict::{Evidence, Test},
};

/// The promoted version's CUSUM.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Watch {
    /// What is healthy: frozen at promotion.
    p0: f64,
    cusum: Cusum,
}

impl Watch {
    pub(super) fn new(p0: f64) -> Self {
        Self {
            p0,
            cusum: Cusum::default(),
        }
    }

    pub(super) fn look(&mut self, new: Tally, config: &GuardConfig) {
        self.cusum.take(new, self.p0, config);
    }

    pub(super) fn alarmed(&self, config: &GuardConfig) -> bool {
        self.cusum.alarmed(config)
    }

    pub(super) fn evidence(&self, config: &GuardConfig) -> Evidence {
        Evidence {
            e_value: numbers::exp(self.cusum.g),
            threshold: numbers::exp(height(config)),
            allowed: self.p0.min(1.0),
            ..Evidence::new(Test::Watch, Tally::default(), self.cusum.run)
        }
    }
}
