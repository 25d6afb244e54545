//! Faults for tests: each breaks one promise on purpose, so that the test of that promise can be seen to fail.

use switchback_common::{SessionId, StreamId};

/// Which promises to break.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Faults {
    /// P3: decide by a gate that was read before the claim.
    pub gate_before_claim: bool,
    /// P3: start without the start check.
    pub skip_start_check: bool,
    /// P4: settle whether or not the lease is there.
    pub settle_ignores_lease: bool,
    /// P3: settle whether or not a flip revoked the results.
    pub settle_ignores_revoke: bool,
    /// P1: acknowledge what a lost session held, and put it nowhere.
    pub reap_drops: bool,
    /// P1: never look for a claim whose reply was lost.
    pub never_find: bool,
    /// P2: forget a batch of outcomes when its settle fails, instead of sending it again.
    pub drop_outcomes: bool,
    /// P2: put every eighth done task back in line.
    pub done_comes_back: bool,
    /// P4: go on with a session that was declared lost.
    pub ignore_loss: bool,
    /// P5: run a retried task on the version that it failed on, whatever the gate says now.
    pub retry_keeps_version: bool,
    /// P6: count an attempt that a shutdown cut short.
    pub release_burns_attempt: bool,
    /// P7: bury every task whose worker died.
    pub bury_recovered: bool,
    /// P8: claim and start while the gate is paused.
    pub start_while_paused: bool,
}

impl Faults {
    /// Reads a comma-separated list of the field names.
    ///
    /// # Errors
    /// A name that is none of them.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut faults = Self::default();
        for name in text.split(',').filter(|name| !name.is_empty()) {
            let fault = match name {
                "gate_before_claim" => &mut faults.gate_before_claim,
                "skip_start_check" => &mut faults.skip_start_check,
                "settle_ignores_lease" => &mut faults.settle_ignores_lease,
                "settle_ignores_revoke" => &mut faults.settle_ignores_revoke,
                "reap_drops" => &mut faults.reap_drops,
                "never_find" => &mut faults.never_find,
                "drop_outcomes" => &mut faults.drop_outcomes,
                "done_comes_back" => &mut faults.done_comes_back,
                "ignore_loss" => &mut faults.ignore_loss,
                "retry_keeps_version" => &mut faults.retry_keeps_version,
                "release_burns_attempt" => &mut faults.release_burns_attempt,
                "bury_recovered" => &mut faults.bury_recovered,
                "start_while_paused" => &mut faults.start_while_paused,
                other => return Err(other.to_owned()),
            };
            *fault = true;
        }
        Ok(faults)
    }
}

/// What a test's handler may know of its attempt beyond its context, to write it down.
#[derive(Debug, Clone)]
pub struct Evidence {
    /// The session it runs in.
    pub session: SessionId,
    /// Where it was claimed from: `main`, `head` or `lane:<version>`.
    pub stream: String,
    /// The entry that was claimed.
    pub entry: StreamId,
    /// Redis's TIME read just before the gate that decided it, in µs.
    pub read_us: u64,
}
