//! P2 and P6: an outcome takes effect once, a task runs again only for a reason, and only failures count as attempts.

use std::collections::{BTreeSet, HashMap};

use switchback_common::store::log::Ended;

use crate::history::{
    event::Place,
    index::{Fate, History},
    violation::{Breach, Violation},
};

/// P2: an entry is settled once or moved once.
///
/// Outcomes of a batch that took effect in part are not counted: nobody can say which of them did.
pub(super) fn an_entry_goes_one_way(history: &History, found: &mut Vec<Violation>) {
    for (place, fates) in history.by_place() {
        let sure: Vec<&&Fate> = fates.iter().filter(|f| f.sure).collect();
        if let [first, second, ..] = sure.as_slice() {
            let evidence = format!(
                "{place}: {:?} by session {}, then {:?} by session {}",
                first.ended, first.session, second.ended, second.session
            );
            found.push(Violation::new(Breach::SettledTwice, &first.id, evidence));
        }
    }
}

/// P2: a task ends once, and nothing becomes of it after that.
pub(super) fn a_task_ends_once(history: &History, found: &mut Vec<Violation>) {
    for (id, fates) in history.by_task() {
        let mut end: Option<&Fate> = None;
        for fate in fates.into_iter().filter(|f| f.sure) {
            if let Some(end) = end {
                let breach = if fate.is_end() {
                    Breach::EndedTwice
                } else {
                    Breach::CameBack
                };
                let evidence = format!(
                    "{:?} at {}, then {:?} at {}",
                    end.ended, end.place, fate.ended, fate.place
                );
                found.push(Violation::new(breach, id, evidence));
                break;
            }
            end = fate.is_end().then_some(fate);
        }
    }
}

/// P2: one claim starts once. A second start needs a second claim, and that needs an entry of its own, which only a
/// recovery, a retry or a release makes; that each of those is in the log, `every_start_is_accounted_for` sees to.
///
/// Does not see: a start whose process was killed before its first line was written.
pub(super) fn a_claim_starts_once(history: &History, found: &mut Vec<Violation>) {
    let mut by_place: HashMap<&Place, &str> = HashMap::new();
    for start in &history.starts {
        if let Some(session) = by_place.insert(&start.place, &start.session) {
            let evidence = format!(
                "{} by session {session}, then by session {}",
                start.place, start.session
            );
            found.push(Violation::new(Breach::StartedTwice, &start.id, evidence));
        }
    }
}

/// P6: an attempt counts if and only if its handler failed: pauses, hand-overs, recoveries and releases cost nothing.
///
/// Does not see: timeouts (these handlers have none), nor failures of a process killed before it wrote them down.
pub(super) fn only_failures_count(history: &History, found: &mut Vec<Violation>) {
    let counted = |f: &&Fate| matches!(f.ended, Some(Ended::Retried | Ended::Dead));
    for fate in history.fates.iter().filter(counted) {
        if !history.failed.contains(&fate.place) {
            let evidence = format!(
                "attempt {} at {} counts; its handler did not fail",
                fate.attempt, fate.place
            );
            found.push(Violation::new(Breach::AttemptBurnt, &fate.id, evidence));
        }
    }
    let mut failures: HashMap<&str, BTreeSet<u32>> = HashMap::new();
    for fate in history.fates.iter().filter(|f| f.ended == Some(Ended::Retried)) {
        if !failures.entry(&fate.id).or_default().insert(fate.attempt) && fate.sure {
            let evidence = format!("attempt {} was retried twice", fate.attempt);
            found.push(Violation::new(Breach::WrongAttempt, &fate.id, evidence));
        }
    }
    let mut numbers: HashMap<&Place, u32> = HashMap::new();
    for start in &history.starts {
        numbers.insert(&start.place, start.attempt);
        let before = failures.get(start.id.as_str());
        if (1..start.attempt).any(|n| !before.is_some_and(|b| b.contains(&n))) {
            let evidence = format!(
                "{} is attempt {}; those retried: {before:?}",
                start.place, start.attempt
            );
            found.push(Violation::new(Breach::WrongAttempt, &start.id, evidence));
        }
    }
    for fate in history.fates.iter().filter(|f| f.ended.is_some()) {
        let started = numbers.get(&fate.place);
        if started.is_some_and(|n| *n != fate.attempt) {
            let evidence = format!(
                "{} started as {started:?} and settled as attempt {}",
                fate.place, fate.attempt
            );
            found.push(Violation::new(Breach::WrongAttempt, &fate.id, evidence));
        }
    }
    let limit = history.terms.as_ref().map_or(0, |terms| terms.max_attempts);
    for rest in history
        .remains
        .iter()
        .filter(|r| r.reason == "attempts" && r.attempt != limit)
    {
        let evidence = format!("dead after {} attempts of {limit}", rest.attempt);
        found.push(Violation::new(Breach::GaveUpEarly, &rest.id, evidence));
    }
}
