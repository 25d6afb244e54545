//! Where a rollback goes when nobody names a version: back along the history, never forward again. Pure.
//!
//! The command is given in a hurry, twice, or by two people at once. If it meant "the version active before",
//! the second time would bring the bad version back; so the history is read as a stack of active versions.

use std::collections::BTreeSet;

use switchback_common::{Version, store::gate::HistoryEntry};

use crate::gate::{Gate, Share};

/// Changes that are looked at, at most.
const MOST: usize = 1_000;
/// Servers that took over from each other may differ by so much, µs.
const CLOCKS_US: u64 = 3_600_000_000;

/// Where a rollback goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// Back to this version alone.
    To(Version),
    /// The last flip went back already: a repeat leaves everything as it is.
    Already {
        /// The revision that did it.
        rev: u64,
        /// When, µs of Redis's clock.
        at_us: u64,
        /// Who.
        by: String,
        /// Where one step further back would go.
        further: Option<Version>,
    },
    /// The history knows no earlier version.
    Nothing,
}

/// Where a rollback of a gate with a ramping candidate goes: nobody needs to know what was before.
#[must_use]
pub fn of_ramp(gate: &Gate) -> Option<Version> {
    ramping(gate).map(|_| gate.active.clone())
}

/// The way that a gate came, as far as its history was read: from now back.
#[derive(Debug, Default)]
pub struct Trail {
    /// Newest first.
    turns: Vec<Turn>,
    /// Whether there is nothing older.
    complete: bool,
}

/// What a change did to who gets the tasks. Pins and targets may be long, and say nothing of the way back.
#[derive(Debug)]
struct Turn {
    rev: u64,
    at_us: u64,
    by: String,
    before: Option<Place>,
    after: Place,
}

#[derive(Debug)]
struct Place {
    active: Version,
    ramping: Option<Version>,
}

impl Trail {
    /// Adds the next page of the history, newest first; without one there is nothing more.
    pub fn add(&mut self, page: Option<&[HistoryEntry]>) {
        let Some(page) = page else {
            self.complete = true;
            return;
        };
        for entry in page.iter().filter(|entry| entry.kind == "change") {
            if let Some(after) = Gate::from_history(&entry.after) {
                self.turns.push(Turn {
                    rev: entry.rev,
                    at_us: entry.at_us,
                    by: entry.by.clone(),
                    before: Gate::from_history(&entry.before).map(Place::of),
                    after: Place::of(after),
                });
            }
        }
        self.complete |= self.turns.len() >= MOST;
    }

    /// Where a rollback of `gate`, which has no candidate, goes: to the version that the active one replaced, past those to
    /// which nothing may be routed any more. `None`: more of the history must be read. `first_seen` says when a version first
    /// joined, µs of Redis's clock: none was active before it was there.
    #[must_use]
    pub fn target(
        &self,
        gate: &Gate,
        may_be: impl Fn(&Version) -> bool,
        first_seen: impl Fn(&Version) -> Option<u64>,
    ) -> Option<Target> {
        // What lies under what is known nobody knows before all was read.
        let from = self.turns.last().map_or(0, |turn| turn.at_us.saturating_add(CLOCKS_US));
        let is_new = |version: &Version| self.complete || first_seen(version).is_some_and(|seen| seen >= from);
        let (mut stack, back) = self.way(is_new);
        if stack.last() != Some(&&gate.active) {
            stack.push(&gate.active);
        }
        stack.retain(|version| **version == gate.active || may_be(version));
        let further = stack.len().checked_sub(2).map(|place| stack[place].clone());
        match (back, further) {
            (_, None) if !self.complete => None,
            (Some(turn), further) => Some(Target::Already {
                rev: turn.rev,
                at_us: turn.at_us,
                by: turn.by.clone(),
                further,
            }),
            (None, Some(version)) => Some(Target::To(version)),
            (None, None) => Some(Target::Nothing),
        }
    }

    /// The versions that were active before, in the order in which one comes back to them, as far down as it is known; and
    /// what went back last, if nothing has gone forward since. `is_new` says that a version was not active before the oldest
    /// change that was read.
    fn way(&self, is_new: impl Fn(&Version) -> bool) -> (Vec<&Version>, Option<&Turn>) {
        let mut stack: Vec<&Version> = Vec::new();
        // Whether these still lie further down nobody can tell.
        let mut lost = BTreeSet::new();
        let mut back = None;
        for turn in self.turns.iter().rev() {
            let active = &turn.after.active;
            if let (true, Some(before)) = (stack.is_empty(), &turn.before) {
                stack.push(&before.active);
            }
            if stack.last() != Some(&active) {
                match stack.iter().position(|version| *version == active) {
                    Some(place) => {
                        stack.truncate(place + 1);
                        back = Some(turn);
                    }
                    None => {
                        // Forward if it is new; else perhaps back, to below what is known.
                        if !is_new(active) || lost.contains(active) {
                            lost.extend(stack.drain(..));
                        }
                        lost.remove(active);
                        stack.push(active);
                        back = None;
                    }
                }
                continue;
            }
            let was = turn.before.as_ref().and_then(|before| before.ramping.as_ref());
            match (was, &turn.after.ramping) {
                (Some(_), None) => back = Some(turn),
                (was, Some(is)) if was != Some(is) => back = None,
                _ => {}
            }
        }
        (stack, back)
    }
}

impl Place {
    fn of(gate: Gate) -> Self {
        Self {
            ramping: ramping(&gate).cloned(),
            active: gate.active,
        }
    }
}

fn ramping(gate: &Gate) -> Option<&Version> {
    gate.candidate.as_ref().filter(|_| gate.percent > Share::NONE)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use switchback_common::StreamId;

    use super::*;

    /// A history from `active[+candidate]` words, oldest first, and what a rollback at its end does.
    fn after(words: &str) -> String {
        after_without(words, "")
    }

    const HOUR: u64 = CLOCKS_US;

    /// When the first worker with a version joined: an hour before it is named.
    fn seen(words: &str, version: &Version) -> Option<u64> {
        let named = |word: &str| word.split('+').any(|name| name == version.as_str());
        let place = words.split(' ').position(named)?;
        Some(place as u64 * 2 * HOUR + HOUR)
    }

    /// Newest first.
    fn history(words: &str) -> Vec<HistoryEntry> {
        let json = |word: &str| {
            let (active, candidate) = word.split_once('+').unwrap_or((word, ""));
            if candidate.is_empty() {
                format!(r#"{{"active":"{active}","paused":"0"}}"#)
            } else {
                format!(r#"{{"active":"{active}","candidate":"{candidate}","percent":"25","paused":"0"}}"#)
            }
        };
        let mut history = Vec::new();
        let mut before = String::new();
        for (rev, word) in (1..).zip(words.split(' ')) {
            history.insert(
                0,
                HistoryEntry {
                    id: StreamId { ms: rev, seq: 0 },
                    kind: "change".into(),
                    rev,
                    at_us: rev * 2 * HOUR,
                    source: String::new(),
                    by: String::new(),
                    why: String::new(),
                    before: before.clone(),
                    after: json(word),
                    ..HistoryEntry::default()
                },
            );
            before = json(word);
        }
        history
    }

    fn after_without(words: &str, retired: &str) -> String {
        let history = history(words);
        let gate = Gate::from_history(&history[0].after).unwrap();
        if let Some(active) = of_ramp(&gate) {
            return active.to_string();
        }
        let may_be = |version: &Version| version.as_str() != retired;
        let first_seen = |version: &Version| seen(words, version);
        let target = |size: usize| {
            let (mut trail, mut pages) = (Trail::default(), history.chunks(size));
            loop {
                match trail.target(&gate, may_be, first_seen) {
                    Some(found) => return found,
                    None => trail.add(pages.next()),
                }
            }
        };
        // Page by page, and no further than needed: the same as from the whole.
        let mut whole = Trail::default();
        whole.add(Some(&history));
        whole.add(None);
        let found = whole.target(&gate, may_be, |_| None).unwrap();
        assert_eq!(target(1), found, "{words}");
        assert_eq!(target(3), found, "{words}");
        match found {
            Target::To(version) => version.to_string(),
            Target::Already { rev, further, .. } => {
                format!(
                    "already at {rev}, further {}",
                    further.map_or_else(|| "none".to_owned(), |v| v.to_string())
                )
            }
            Target::Nothing => "nothing".to_owned(),
        }
    }

    #[test]
    fn back_and_never_forward_again() {
        assert_eq!(after("v1"), "nothing");
        assert_eq!(after("v1 v2"), "v1");
        assert_eq!(after("v1 v1+v2"), "v1", "a ramp ends at the active version");
        assert_eq!(after("v1 v2 v3"), "v2");
        // Given twice, it must not bring the bad version back, nor go two steps.
        assert_eq!(after("v1 v2 v1"), "already at 3, further none");
        assert_eq!(after("v0 v1 v2 v1"), "already at 4, further v0");
        assert_eq!(after("v0 v1 v1+v2 v1"), "already at 4, further v0");
        assert_eq!(after("v0 v1 v2 v1 v0"), "already at 5, further none");
        // A new attempt makes the rollback new.
        assert_eq!(after("v1 v2 v1 v2"), "v1");
        assert_eq!(after("v1 v2 v1 v1+v2"), "v1");
        assert_eq!(after("v1 v1+v2 v1 v3"), "v1");
        assert_eq!(after("v1 v1+v2 v2"), "v1", "promoted after the ramp");
        // What is retired is passed over, or the rollback would be refused when it is needed.
        assert_eq!(after_without("v0 v1 v2", "v1"), "v0");
        assert_eq!(after_without("v1 v2", "v1"), "nothing");
    }

    /// How many entries are read before it is known where a rollback goes.
    fn read(words: &str, first_seen: impl Fn(&Version) -> Option<u64>) -> usize {
        let history = history(words);
        let gate = Gate::from_history(&history[0].after).unwrap();
        let mut trail = Trail::default();
        let mut n = 0;
        while trail.target(&gate, |_| true, &first_seen).is_none() {
            trail.add(history.get(n..=n));
            n += 1;
        }
        n
    }

    #[test]
    fn no_more_is_read_than_decides() {
        let old = "v1 v2 v3 v4 v5 v6 v7 v8 v9";
        let after = |words: &str| {
            let words = format!("{old} {words}");
            read(&words, |version| seen(&words, version))
        };
        assert_eq!(after("n1"), 2, "one more, for clocks");
        assert_eq!(after("n1 n1+n2 n1+n2 n2"), 4);
        assert_eq!(after("n1 n2 n1"), 4);
        // A label that was there long before may have been active before: only the history knows.
        assert_eq!(after("v3"), 9, "until it is seen that it was");
        assert_eq!(read(old, |_| None), 10, "the list of versions is lost");
        let words = format!("{old} n1{}", " n1".repeat(MOST));
        assert_eq!(read(&words, |_| None), MOST, "bounded");
    }

    proptest! {
        #[test]
        fn what_is_not_read_changes_nothing(words in proptest::collection::vec("v[1-4](\\+v[1-4])?", 1..14)) {
            after(&words.join(" "));
        }
    }
}
