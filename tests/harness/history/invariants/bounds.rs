//! P10: what one step may take.

use switchback_common::store::session::MOVE_ENTRIES;

use crate::history::{
    event::What,
    index::History,
    violation::{Breach, Violation},
};

/// Most attempts in one entry of the log: the settler's largest batch.
const SETTLED: usize = 1_000;
/// Most revisions kept, as far as Redis trims to the node: it cuts whole nodes of 100.
const REVISIONS: usize = 10_100;

/// P10: no batch is larger than its bound. That nothing is lost at `maxmemory` is P1's to see; bytes are not seen.
pub(super) fn batches_are_bounded(history: &History, found: &mut Vec<Violation>) {
    for line in &history.log {
        let (count, limit) = match &line.what {
            What::Settled { groups, .. } => (groups.iter().map(|g| g.tasks.len()).sum(), SETTLED),
            What::Recovered { tasks, .. } => (tasks.len(), MOVE_ENTRIES),
            _ => continue,
        };
        if count > limit {
            let evidence = format!(
                "log entry {}-{}: {count}, the limit is {limit}",
                line.order.0, line.order.1
            );
            found.push(Violation::new(Breach::TooLarge, &line.session, evidence));
        }
    }
    if history.revisions.len() > REVISIONS {
        found.push(Violation::new(
            Breach::TooLarge,
            "history",
            format!("{} entries", history.revisions.len()),
        ));
    }
}
