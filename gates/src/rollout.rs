//! Rollouts: a candidate goes up step by step as long as the guard has nothing against it. Pure.
//!
//! Whoever drives one looks, [`Record::observe`]s what was counted, asks [`next`] what to do, and writes the [`plan()`] in one
//! script call. It keeps nothing between looks: any worker can go on where another died.

mod hold;
mod mark;
mod plan;
mod record;
pub mod spec;

use crate::{
    gate::{Gate, Share},
    guard::{Evidence, Verdict},
};

use hold::{Reasons, is_refused, kind};

pub use hold::gate_refused;
pub use mark::{RolledBack, build_of, mark, rolled_back};
pub use plan::{Setting, abort, bury, maker, pause, plan, promote, resume, start, without_commands};
pub use record::{InvalidRecord, MAX_BLOCKS, Record, Status, block_us, counts};
pub use spec::{Inflight, InvalidSpec, Spec, StepSpec};

/// What a look found.
#[derive(Debug, Clone)]
pub struct Look<'a> {
    /// The gate in force.
    pub gate: &'a Gate,
    /// Who set the gate last, in words.
    pub set_by: &'a str,
    /// Live workers that have the candidate.
    pub with_to: usize,
    /// Live workers that have the version it leaves.
    pub with_from: usize,
    /// What the guard says.
    pub verdict: &'a Verdict,
    /// The next step is more than the live workers of the candidate can carry, in words; `None`: it is not, or nobody asked.
    pub short: Option<&'a str>,
    /// The task type, for commands that people may run next; empty: none is named.
    pub task_type: &'a str,
}

/// What to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Watch on.
    Nothing,
    /// Go to this step.
    Advance {
        /// The step, always the next one.
        step: usize,
    },
    /// Stay at this step, and say why.
    Hold {
        /// Why.
        reason: String,
    },
    /// What held it is over.
    Release,
    /// Back to the version before.
    Rollback {
        /// What the guard has against the candidate.
        evidence: Evidence,
    },
    /// It has been watched long enough.
    Finish,
    /// A person set the gate otherwise.
    Overruled {
        /// Who, in words.
        by: String,
    },
}

/// What to do with `record` after a look. A person wins, then safety, then patience.
#[must_use]
pub fn next(record: &Record, look: &Look<'_>) -> Action {
    if !record.status.is_live() {
        return Action::Nothing;
    }
    if !record.agrees_with(look.gate) {
        return Action::Overruled {
            by: look.set_by.to_owned(),
        };
    }
    // Also while it is paused or held: a pause keeps it from going on, not from going back.
    if let Verdict::Regressed(evidence) = look.verdict {
        return Action::Rollback {
            evidence: evidence.clone(),
        };
    }
    match record.status {
        Status::Watching if record.baked_us >= micros(record.spec.watch) => Action::Finish,
        Status::Running | Status::Held if !look.gate.paused => ramp(record, look),
        _ => Action::Nothing,
    }
}

fn ramp(record: &Record, look: &Look<'_>) -> Action {
    let held = record.status == Status::Held;
    // The same reason with other figures is no news.
    let hold = |reason: String| match held && kind(&record.reason) == kind(&reason) {
        true => Action::Nothing,
        false => Action::Hold { reason },
    };
    let release_or = |action: Action| if held { Action::Release } else { action };
    let (to, from) = (&record.to, &record.from);
    let reasons = Reasons {
        record,
        task_type: look.task_type,
    };
    if look.with_to < record.spec.min_workers {
        return hold(match look.with_to {
            0 => reasons.nobody_has(to),
            n => reasons.too_few_have(to, n, record.spec.min_workers),
        });
    }
    if look.with_from == 0 {
        return hold(reasons.no_way_back(from));
    }
    let bake = micros(record.spec.bake_of(record.step));
    match look.verdict {
        Verdict::Regressed(_) => Action::Nothing,
        Verdict::Hold(reason) => hold(reasons.of_guard(reason)),
        Verdict::Insufficient { .. } => {
            // The product of two checked numbers; what is too long for a clock is never over.
            let patience = std::time::Duration::try_from_secs_f64(
                record.spec.bake_of(record.step).as_secs_f64() * record.spec.extend,
            );
            // Of a block that is not over nothing is known.
            let blocks = BLOCKS_AT_LEAST * record::block_us(record.spec.guard.block_secs);
            match record.baked_us >= patience.map_or(u64::MAX, micros).max(blocks) {
                true => hold(reasons.too_little(look.verdict)),
                false => release_or(Action::Nothing),
            }
        }
        Verdict::Pass(_) if record.baked_us < bake => release_or(Action::Nothing),
        Verdict::Pass(_) if record.step + 1 < record.spec.steps.len() => match look.short {
            Some(short) => hold(reasons.too_weak(short)),
            None if is_refused(&record.reason) => Action::Advance { step: record.step + 1 },
            None => release_or(Action::Advance { step: record.step + 1 }),
        },
        Verdict::Pass(_) => hold(reasons.last_step()),
    }
}

/// However short the bake: so many blocks before a step may be held for knowing too little.
const BLOCKS_AT_LEAST: u64 = 2;

/// Whether this step gives everything to the candidate.
#[must_use]
pub fn is_full(spec: &Spec, step: usize) -> bool {
    spec.share_of(step) == Share::ALL
}

pub(crate) fn micros(length: std::time::Duration) -> u64 {
    u64::try_from(length.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
