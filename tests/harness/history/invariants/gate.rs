//! P8 and P9: revisions, and who made them.

use std::collections::BTreeMap;

use crate::history::{
    event::{Flip, Revision},
    index::History,
    violation::{Breach, Violation},
};

/// P9: revisions are numbered without gaps, each begins where the one before ended, and each effective change is there
/// once, with its reason. A raw edit that the next one overtook before anybody looked leaves no revision, and need not.
///
/// Does not see: whether `by` is right.
pub(super) fn every_change_explains_itself(history: &History, found: &mut Vec<Violation>) {
    let changes: Vec<&Revision> = history.revisions.iter().filter(|r| r.kind == "change").collect();
    for (n, change) in (1..).zip(&changes) {
        if change.rev != n {
            let evidence = format!("the history has revision {} in its place", change.rev);
            found.push(Violation::new(Breach::RevisionGap, format!("revision {n}"), evidence));
            break;
        }
    }
    for pair in changes.windows(2) {
        let (ended, begins, ends) = (fields(&pair[0].after), fields(&pair[1].before), fields(&pair[1].after));
        // A policy alone is a change, too.
        let nothing = begins == ends && pair[1].inflight.is_empty();
        if ended != begins || nothing || pair[0].at_us > pair[1].at_us {
            let evidence = format!("after {:?}, which ended with {}", pair[1], pair[0].after);
            found.push(Violation::new(
                Breach::RevisionBreak,
                format!("revision {}", pair[1].rev),
                evidence,
            ));
        }
    }
    for change in changes.iter().filter(|c| c.source != "seed") {
        let maker = history.flips.iter().find(|flip| flip.why == change.why);
        let again = changes.iter().filter(|other| other.why == change.why).count();
        if maker.is_none() || again > 1 {
            let evidence = format!("reason {:?}, source {}; {again} of them", change.why, change.source);
            found.push(Violation::new(
                Breach::ChangeAmiss,
                format!("revision {}", change.rev),
                evidence,
            ));
        }
    }
    let recorded = |flip: &Flip| changes.iter().any(|c| c.why == flip.why && Some(c.rev) == flip.rev);
    for flip in history
        .flips
        .iter()
        .filter(|flip| flip.rev.is_some() && !recorded(flip))
    {
        let evidence = format!("the reply said revision {:?}; the history has no such change", flip.rev);
        found.push(Violation::new(Breach::ChangeAmiss, &flip.why, evidence));
    }
}

/// Lua writes the fields in any order.
fn fields(json: &str) -> BTreeMap<String, String> {
    serde_json::from_str(json).unwrap_or_default()
}

/// P8: nobody held the queue for a gate that went backwards: in these tests Redis loses nothing, so none did.
pub(super) fn the_gate_never_goes_back(history: &History, found: &mut Vec<Violation>) {
    for held in history.revisions.iter().filter(|r| r.source == "regress") {
        found.push(Violation::new(
            Breach::HeldWithoutCause,
            format!("revision {}", held.rev),
            &held.why,
        ));
    }
}
