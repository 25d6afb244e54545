//! The certificate: from the history and the log alone, whether anything started on a withdrawn version. Pure.
//!
//! Two proofs, and no third. An attempt decided under a revision that does not reach its version is late whatever the
//! clocks say. And times compare within one run of one server: an attempt whose gate was read after the withdrawal was
//! sealed is late whatever revision it names. Across runs ([`Runs`]) the order may be unknown: then it is *undecidable*.

use std::{cmp::Ordering, collections::BTreeMap};

use serde::Serialize;
use switchback_common::{
    Version,
    store::{gate::HistoryEntry, log::AttemptGroup},
};

use crate::gate::Gate;

/// An attempt that started late.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
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

/// One revision: who sealed it when, and what it says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revision {
    /// Its number.
    pub rev: u64,
    /// When it was sealed, µs of Redis's clock.
    pub at_us: u64,
    /// Who.
    pub by: String,
    /// Why.
    pub why: String,
    /// `cli`, `redis-cli`, `guard`…
    pub source: String,
    /// What it says.
    pub gate: Gate,
    reach: Vec<Version>,
    /// Whether there was none before it.
    first: bool,
}

/// A time during which a version was reachable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spell<'a> {
    /// The revision that made it reachable; `None`: it was when the history that is kept begins.
    pub since: Option<&'a Revision>,
    /// The revision that withdrew it; `None`: it still is reachable.
    pub until: Option<&'a Revision>,
}

/// The revisions of a queue with what each reaches, in the order of their sealing.
#[derive(Debug, Clone, Default)]
pub struct Revisions {
    by_rev: Vec<Revision>,
}

/// How an attempt stands to the withdrawals of its version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing<'a> {
    /// Its gate was read while its version was reachable, or before the withdrawal.
    InTime,
    /// Its gate was read after this revision had withdrawn its version.
    Late(&'a Revision),
    /// Whether its gate was read before or after this revision nobody can tell.
    Undecidable(&'a Revision),
}

impl Revisions {
    /// Reads the changes of a history, in any order.
    #[must_use]
    pub fn from_history(entries: &[HistoryEntry]) -> Self {
        let mut by_rev: BTreeMap<u64, Revision> = BTreeMap::new();
        for entry in entries.iter().filter(|e| e.kind == "change") {
            let Some(gate) = Gate::from_history(&entry.after) else {
                continue;
            };
            let revision = Revision {
                rev: entry.rev,
                at_us: entry.at_us,
                by: entry.by.clone(),
                why: entry.why.clone(),
                source: entry.source.clone(),
                reach: gate.reachable(),
                gate,
                first: entry.before.is_empty(),
            };
            by_rev.insert(entry.rev, revision);
        }
        Self {
            by_rev: by_rev.into_values().collect(),
        }
    }

    /// How many revisions there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_rev.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_rev.is_empty()
    }

    /// The gates that were in force at some time from `from_us` to `until_us`, oldest first. Empty when the history that is
    /// kept begins later than `from_us`: what was in force before it is not known.
    #[must_use]
    pub fn in_force(&self, from_us: u64, until_us: u64) -> &[Revision] {
        let first = self.by_rev.partition_point(|r| r.at_us <= from_us);
        let last = self.by_rev.partition_point(|r| r.at_us <= until_us);
        match first.checked_sub(1) {
            Some(first) => &self.by_rev[first..last.max(first + 1)],
            None => &[],
        }
    }

    /// The times during which `version` was reachable, oldest first.
    #[must_use]
    pub fn spells(&self, version: &Version) -> Vec<Spell<'_>> {
        let mut out: Vec<Spell<'_>> = Vec::new();
        let mut reachable = false;
        for (place, revision) in self.by_rev.iter().enumerate() {
            let reaches = revision.reach.contains(version);
            if reaches && !reachable {
                let known = place > 0 || revision.first;
                out.push(Spell {
                    since: known.then_some(revision),
                    until: None,
                });
            } else if reachable
                && !reaches
                && let Some(spell) = out.last_mut()
            {
                spell.until = Some(revision);
            }
            reachable = reaches;
        }
        out
    }

    /// The attempts of `group` that were late: their version was not reachable under a revision sealed before their gate read.
    #[must_use]
    pub fn late(&self, group: &AttemptGroup) -> Vec<LateStart> {
        match self.standing(group, &Runs::default()) {
            Standing::Late(sealed) => late_starts(group, sealed),
            Standing::InTime | Standing::Undecidable(_) => Vec::new(),
        }
    }

    /// How the attempts of `group`, which share a gate read, stand to the withdrawals of their version.
    #[must_use]
    pub fn standing(&self, group: &AttemptGroup, runs: &Runs) -> Standing<'_> {
        // Decided under a revision that never reached this version: the worker did not obey its own read.
        let own = self.by_rev.iter().find(|r| r.rev == group.rev);
        let mut standing = match own.filter(|r| !r.reach.contains(&group.version)) {
            Some(own) => return Standing::Late(own),
            None => Standing::InTime,
        };
        // Newest first: what was in force is what the read had to see. `at` is Redis's TIME read before the gate: a seal
        // strictly before it was visible to that read.
        for revision in self.by_rev.iter().rev().take_while(|r| r.rev > group.rev) {
            let withdrawn = !revision.reach.contains(&group.version);
            match runs.order(revision.at_us, group.at) {
                Some(Ordering::Less) if withdrawn => return Standing::Late(revision),
                Some(Ordering::Less) => return standing,
                None if withdrawn => standing = Standing::Undecidable(revision),
                None | Some(Ordering::Equal | Ordering::Greater) => {}
            }
        }
        standing
    }
}

fn late_starts(group: &AttemptGroup, sealed: &Revision) -> Vec<LateStart> {
    let late = group.tasks.iter().map(|row| LateStart {
        task: row.0.to_string(),
        version: group.version.clone(),
        rev: group.rev,
        sealed: sealed.rev,
    });
    late.collect()
}

/// When the server became another run of itself, or another server: the order of two times in such a gap is unknown.
#[derive(Debug, Clone, Default)]
pub struct Runs {
    gaps: Vec<(u64, u64)>,
}

impl Runs {
    /// Between these two moments, µs, it became another.
    pub fn add(&mut self, gap: (u64, u64)) {
        self.gaps.push(gap);
    }

    /// The gaps.
    #[must_use]
    pub fn gaps(&self) -> &[(u64, u64)] {
        &self.gaps
    }

    /// The order of two times; `None` when both lie where the server became another.
    #[must_use]
    pub fn order(&self, a: u64, b: u64) -> Option<Ordering> {
        let within = |at: u64, (from, until): (u64, u64)| from <= at && at <= until;
        let doubtful = self.gaps.iter().any(|&gap| within(a, gap) && within(b, gap));
        (!doubtful).then(|| a.cmp(&b))
    }
}

/// Late starts shown one by one.
const SHOWN: usize = 100;

/// What the log says of the attempts on a version that was withdrawn.
#[derive(Debug, Clone)]
pub struct Certificate {
    version: Version,
    /// Attempts looked at.
    pub attempts: u64,
    /// Attempts whose gate was read after a withdrawal: must be 0.
    pub late: u64,
    /// The first of them.
    pub late_starts: Vec<LateStart>,
    /// Attempts of which that cannot be told.
    pub undecidable: u64,
    /// The last gate read of an attempt on the version, µs of Redis's clock.
    pub last_read_us: Option<u64>,
}

impl Certificate {
    /// Nothing looked at yet.
    #[must_use]
    pub fn new(version: Version) -> Self {
        Self {
            version,
            attempts: 0,
            late: 0,
            late_starts: Vec::new(),
            undecidable: 0,
            last_read_us: None,
        }
    }

    /// Looks at the attempts of one gate read.
    pub fn add(&mut self, group: &AttemptGroup, revisions: &Revisions, runs: &Runs) {
        if group.version != self.version {
            return;
        }
        let n = group.tasks.len() as u64;
        self.attempts += n;
        self.last_read_us = self.last_read_us.max(Some(group.at));
        match revisions.standing(group, runs) {
            Standing::InTime => {}
            Standing::Late(sealed) => {
                self.late += n;
                let room = SHOWN.saturating_sub(self.late_starts.len());
                self.late_starts
                    .extend(late_starts(group, sealed).into_iter().take(room));
            }
            Standing::Undecidable(_) => self.undecidable += n,
        }
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
            before: if rev == 1 { String::new() } else { "{}".into() },
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

    const V1: &str = r#"{"active":"v1","paused":"0"}"#;
    const RAMP: &str = r#"{"active":"v1","candidate":"v2","percent":"10","paused":"0"}"#;

    fn ramped_and_back() -> Revisions {
        Revisions::from_history(&[change(3, 300, V1), change(1, 100, V1), change(2, 200, RAMP)])
    }

    #[test]
    fn late_is_what_read_its_gate_after_the_withdrawal() {
        let revisions = ramped_and_back();
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

    #[test]
    fn across_runs_of_the_server_revisions_decide_or_nobody_can() {
        let revisions = ramped_and_back();
        let mut runs = Runs::default();
        runs.add((290, 350));
        let standing = |group: &AttemptGroup| match revisions.standing(group, &runs) {
            Standing::InTime => "in time".to_owned(),
            Standing::Late(r) => format!("late by {}", r.rev),
            Standing::Undecidable(r) => format!("undecidable by {}", r.rev),
        };
        assert_eq!(standing(&attempt("v2", 2, 310)), "undecidable by 3");
        assert_eq!(
            standing(&attempt("v2", 2, 295)),
            "undecidable by 3",
            "nor the other way"
        );
        assert_eq!(
            standing(&attempt("v2", 3, 310)),
            "late by 3",
            "its own revision says so"
        );
        assert_eq!(
            standing(&attempt("v2", 2, 351)),
            "late by 3",
            "a later run had loaded the flip"
        );
        assert_eq!(standing(&attempt("v2", 2, 250)), "in time", "an earlier run");
        assert_eq!(standing(&attempt("v1", 2, 310)), "in time");

        let mut certificate = Certificate::new("v2".parse().unwrap());
        for at in [250, 310, 351] {
            certificate.add(&attempt("v2", 2, at), &revisions, &runs);
        }
        certificate.add(&attempt("v1", 2, 400), &revisions, &runs);
        let found = (certificate.attempts, certificate.late, certificate.undecidable);
        assert_eq!((found, certificate.last_read_us), ((3, 1, 1), Some(351)));
    }

    #[test]
    fn spells_are_the_times_a_version_was_reachable() {
        let v2: Version = "v2".parse().unwrap();
        let ends = |revisions: &Revisions, version: &Version| -> Vec<(Option<u64>, Option<u64>)> {
            let spells = revisions.spells(version);
            spells
                .iter()
                .map(|s| (s.since.map(|r| r.rev), s.until.map(|r| r.rev)))
                .collect()
        };
        let mut history = vec![change(1, 100, V1), change(2, 200, RAMP), change(3, 300, V1)];
        assert_eq!(ends(&Revisions::from_history(&history), &v2), [(Some(2), Some(3))]);
        history.push(change(4, 400, RAMP));
        let all = Revisions::from_history(&history);
        assert_eq!(ends(&all, &v2), [(Some(2), Some(3)), (Some(4), None)]);
        assert_eq!(ends(&all, &"v1".parse().unwrap()), [(Some(1), None)]);
        assert!(ends(&all, &"v9".parse().unwrap()).is_empty());
        let late = Revisions::from_history(&history[1..]);
        assert_eq!(ends(&late, &v2)[0], (None, Some(3)), "it was when the history begins");

        let revs = |from, until| -> Vec<u64> { all.in_force(from, until).iter().map(|r| r.rev).collect() };
        assert_eq!(revs(250, 299), [2]);
        assert_eq!(revs(250, 400), [2, 3, 4]);
        assert_eq!(revs(300, 300), [3]);
        assert!(revs(99, 400).is_empty(), "nobody knows what was before");
    }
}
