//! The promises as pure functions over a history.

mod bounds;
mod conservation;
mod fence;
mod gate;
mod once;

use super::{index::History, violation::Violation};

type Invariant = fn(&History, &mut Vec<Violation>);

/// All of them.
pub(super) const ALL: &[Invariant] = &[
    conservation::nothing_is_lost,
    conservation::nothing_comes_from_nowhere,
    conservation::every_start_is_accounted_for,
    conservation::only_the_guilty_die,
    once::an_entry_goes_one_way,
    once::a_task_ends_once,
    once::a_claim_starts_once,
    once::only_failures_count,
    fence::nothing_starts_late,
    fence::decisions_are_the_gates,
    fence::what_was_revoked_does_not_count,
    fence::zombies_do_nothing,
    gate::every_change_explains_itself,
    gate::the_gate_never_goes_back,
    bounds::batches_are_bounded,
];
