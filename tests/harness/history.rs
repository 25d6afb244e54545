//! The history checker: what happened to every task, put together from sources that do not know of each other, and
//! whether the promises were kept.
//!
//! The sources: what the harness itself sent and was told ([`Enqueue`], [`Flip`], [`Event::Fault`]); what each process
//! wrote to its own files before anything of the queue's ([`Start`], [`Event::Fail`]); the ledger of effects, apart from
//! the queue; and Redis at the end (log, gate history, what is left in streams). A task's way is followed by *entries*:
//! an entry is claimed, and then either settled, or moved as a new entry by a script that says so in the log. What came
//! first is told by Redis (log ids, revisions, its TIME read before the gate). The clock of this machine serves only to
//! hold starts against flips, as for the [`Witness`](crate::Witness).
//!
//! [`check`] is pure. What an invariant cannot see stands in its documentation.

mod event;
mod index;
mod invariants;
mod load;
mod violation;

pub use self::event::{Enqueue, Event, Flip, LogLine, Outcome, Place, Remains, Revision, Start, Terms, What};
pub use self::index::{Fate, History};
pub use self::load::{load_files, load_redis, read_jsonl, write_jsonl};
pub use self::violation::{Breach, Promise, Violation};

/// Every breach of a promise in `history`.
#[must_use]
pub fn check(history: &History) -> Vec<Violation> {
    let mut found = Vec::new();
    for invariant in invariants::ALL {
        invariant(history, &mut found);
    }
    found
}

#[cfg(test)]
mod tests;
