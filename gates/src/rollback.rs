//! Where a rollback goes when nobody names a version: back along the history, never forward again. Pure.
//!
//! The command is given in a hurry, twice, or by two people at once. If it meant "the version active before",
//! the second time would bring the bad version back; so the history is read as a stack of active versions.

use switchback_common::{Version, store::gate::HistoryEntry};

use crate::gate::{Gate, Share};

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

/// Where a rollback of `gate` goes: with a candidate ramping, back to the active version; else to the one it replaced.
/// `history` is newest first.
#[must_use]
pub fn target(gate: &Gate, history: &[HistoryEntry]) -> Target {
    target_among(gate, history, |_| true)
}

/// As [`target`], past versions to which nothing may be routed any more.
#[must_use]
pub fn target_among(gate: &Gate, history: &[HistoryEntry], may_be: impl Fn(&Version) -> bool) -> Target {
    if gate.candidate.is_some() && gate.percent > Share::NONE {
        return Target::To(gate.active.clone());
    }
    let mut stack: Vec<Version> = Vec::new();
    let mut back: Option<&HistoryEntry> = None;
    for entry in history.iter().rev().filter(|e| e.kind == "change") {
        let Some(after) = Gate::from_history(&entry.after) else {
            continue;
        };
        let before = Gate::from_history(&entry.before);
        if let (true, Some(before)) = (stack.is_empty(), &before) {
            stack.push(before.active.clone());
        }
        if stack.last() != Some(&after.active) {
            match stack.iter().position(|version| *version == after.active) {
                Some(place) => {
                    stack.truncate(place + 1);
                    back = Some(entry);
                }
                None => {
                    stack.push(after.active.clone());
                    back = None;
                }
            }
            continue;
        }
        match (before.as_ref().and_then(ramping), ramping(&after)) {
            (Some(_), None) => back = Some(entry),
            (was, Some(is)) if was != Some(is) => back = None,
            _ => {}
        }
    }
    if stack.last() != Some(&gate.active) {
        stack.push(gate.active.clone());
    }
    stack.retain(|version| *version == gate.active || may_be(version));
    let further = stack.len().checked_sub(2).map(|place| stack[place].clone());
    match (back, further) {
        (Some(entry), further) => Target::Already {
            rev: entry.rev,
            at_us: entry.at_us,
            by: entry.by.clone(),
            further,
        },
        (None, Some(version)) => Target::To(version),
        (None, None) => Target::Nothing,
    }
}

fn ramping(gate: &Gate) -> Option<&Version> {
    gate.candidate.as_ref().filter(|_| gate.percent > Share::NONE)
}

#[cfg(test)]
mod tests {
    use switchback_common::StreamId;

    use super::*;

    /// A history from `active[+candidate]` words, oldest first, and what a rollback at its end does.
    fn after(words: &str) -> String {
        after_without(words, "")
    }

    fn after_without(words: &str, retired: &str) -> String {
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
                    at_us: rev,
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
        let gate = Gate::from_history(&before).unwrap();
        match target_among(&gate, &history, |version| version.as_str() != retired) {
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
}
