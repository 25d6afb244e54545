//! The certificate: from the history and the log alone, whether anything started on a withdrawn version. Pure.
//!
//! Times compare only within one run of one server; the caller says nothing about others.

use std::collections::BTreeMap;

use switchback_common::{
    Version,
    store::{gate::HistoryEntry, log::AttemptGroup},
};

use crate::gate::Gate;

/// An attempt that started late.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LateStart {
    /// The task.
    pub task: String,
    /// The version it ran, withdrawn by then.
    pub version: Version,
    /// The revision it was decided under.
    pub rev: u64,
    /// The revision that was already sealed when its gate was read.
    pub sealed: u64,
}

/// The revisions of a queue with what each reaches, in the order of their sealing.
#[derive(Debug, Clone, Default)]
pub struct Revisions {
    by_time: Vec<(u64, u64, Vec<Version>)>,
}

impl Revisions {
    /// Reads the changes of a history, in any order.
    #[must_use]
    pub fn from_history(entries: &[HistoryEntry]) -> Self {
        let mut by_rev: BTreeMap<u64, (u64, Vec<Version>)> = BTreeMap::new();
        for entry in entries.iter().filter(|e| e.kind == "change") {
            let Some(gate) = Gate::from_history(&entry.after) else {
                continue;
            };
            by_rev.insert(entry.rev, (entry.at_us, gate.reachable()));
        }
        Self {
            by_time: by_rev.into_iter().map(|(rev, (at, reach))| (at, rev, reach)).collect(),
        }
    }

    /// How many revisions there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_time.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_time.is_empty()
    }

    /// The attempts of `group` that were late: their version was not reachable under a revision sealed before their gate read.
    #[must_use]
    pub fn late(&self, group: &AttemptGroup) -> Vec<LateStart> {
        let reaches = |reach: &[Version]| reach.contains(&group.version);
        // `at` is Redis's TIME read before the gate: a seal strictly before it was visible to that read.
        let in_force = self.by_time.iter().rev().find(|(at, _, _)| *at < group.at);
        let overlooked = in_force.filter(|(_, sealed, reach)| group.rev < *sealed && !reaches(reach));
        // Decided under a revision that never reached this version: the worker did not obey its own read.
        let own = self.by_time.iter().find(|(_, rev, _)| *rev == group.rev);
        let Some((_, sealed, _)) = overlooked.or_else(|| own.filter(|(_, _, reach)| !reaches(reach))) else {
            return Vec::new();
        };
        let late = group.tasks.iter().map(|row| LateStart {
            task: row.0.to_string(),
            version: group.version.clone(),
            rev: group.rev,
            sealed: *sealed,
        });
        late.collect()
    }
}

#[cfg(test)]
mod tests {
    use switchback_common::{
        StreamId,
        store::log::{AttemptRow, Ended},
    };

    use super::*;

    fn change(rev: u64, at_us: u64, after: &str) -> HistoryEntry {
        HistoryEntry {
            id: StreamId { ms: rev, seq: 0 },
            kind: "change".into(),
            rev,
            at_us,
            source: "cli".into(),
            by: String::new(),
            why: String::new(),
            before: String::new(),
            after: after.into(),
            ..HistoryEntry::default()
        }
    }

    fn attempt(version: &str, rev: u64, at: u64) -> AttemptGroup {
        AttemptGroup {
            at,
            rev,
            version: version.parse().unwrap(),
            stream: "main".into(),
            tasks: vec![AttemptRow("t".parse().unwrap(), "1-0".into(), 1, Ended::Done, 0)],
        }
    }

    #[test]
    fn late_is_what_read_its_gate_after_the_withdrawal() {
        let revisions = Revisions::from_history(&[
            change(3, 300, r#"{"active":"v1","paused":"0"}"#),
            change(1, 100, r#"{"active":"v1","paused":"0"}"#),
            change(
                2,
                200,
                r#"{"active":"v1","candidate":"v2","percent":"10","paused":"0"}"#,
            ),
        ]);
        assert_eq!(revisions.len(), 3);
        assert!(revisions.late(&attempt("v2", 2, 250)).is_empty(), "in force");
        assert!(
            revisions.late(&attempt("v2", 2, 300)).is_empty(),
            "read at the very moment: either order"
        );
        let late = revisions.late(&attempt("v2", 2, 301));
        assert_eq!(
            (late.len(), late[0].sealed),
            (1, 3),
            "read after the flip, decided under the old revision"
        );
        assert_eq!(
            revisions.late(&attempt("v2", 3, 310)).len(),
            1,
            "disobeyed what it read"
        );
        assert!(revisions.late(&attempt("v1", 2, 400)).is_empty(), "still reachable");
    }
}
