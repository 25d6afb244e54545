//! Faults for tests: each breaks one promise on purpose, so that the test of that promise can be seen to fail.

/// Which promises to break.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Faults {
    /// P3: decide by a gate that was read before the claim.
    pub gate_before_claim: bool,
    /// P3: start without the start check.
    pub skip_start_check: bool,
    /// P4: settle whether or not the lease is there.
    pub settle_ignores_lease: bool,
}

impl Faults {
    /// Reads a comma-separated list of the field names.
    ///
    /// # Errors
    /// A name that is none of them.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut faults = Self::default();
        for name in text.split(',').filter(|name| !name.is_empty()) {
            match name {
                "gate_before_claim" => faults.gate_before_claim = true,
                "skip_start_check" => faults.skip_start_check = true,
                "settle_ignores_lease" => faults.settle_ignores_lease = true,
                other => return Err(other.to_owned()),
            }
        }
        Ok(faults)
    }
}
