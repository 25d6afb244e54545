//! P1 and P7: what was taken in comes out, once healed; and only what deserves it is a dead letter.

use std::collections::{HashMap, HashSet};

use switchback_common::store::log::Ended;

use crate::history::{
    event::{Outcome, Place, Start},
    index::History,
    violation::{Breach, Violation},
};

/// P1: each acknowledged task ended, or is in Redis; once healed, nothing waits.
///
/// Does not see: a task whose enqueue got no reply and that then vanished before any worker saw it.
pub(super) fn nothing_is_lost(history: &History, found: &mut Vec<Violation>) {
    let ended: HashSet<&str> = history
        .fates
        .iter()
        .filter(|f| f.is_end())
        .map(|f| f.id.as_str())
        .collect();
    let there: HashSet<&str> = history.remains.iter().map(|r| r.id.as_str()).collect();
    let seen = history.starts.iter().map(|s| s.id.as_str());
    let known = history.acknowledged().filter_map(|e| e.id.as_deref());
    for id in seen.chain(known).collect::<HashSet<_>>() {
        if !ended.contains(id) && !there.contains(id) {
            let way = history.fates.iter().filter(|f| f.id == id);
            let way: Vec<String> = way.map(|f| format!("{} {:?}", f.place, f.ended)).collect();
            let evidence = format!(
                "number {:?} neither ended nor is it in Redis; its way: {way:?}",
                history.number(id)
            );
            found.push(Violation::new(Breach::Lost, id, evidence));
        }
    }
    for rest in history
        .remains
        .iter()
        .filter(|r| history.healed() && r.stream != "dead")
    {
        let evidence = format!("number {:?} is still in {}", rest.n, rest.stream);
        found.push(Violation::new(Breach::LeftBehind, &rest.id, evidence));
    }
    let buried: HashSet<&str> = history
        .remains
        .iter()
        .filter(|r| r.stream == "dead")
        .map(|r| r.id.as_str())
        .collect();
    let dead = history.fates.iter().filter(|f| f.sure && f.ended == Some(Ended::Dead));
    let dead: HashSet<&str> = dead.map(|f| f.id.as_str()).collect();
    for id in dead.difference(&buried) {
        found.push(Violation::new(
            Breach::DeadLetterAmiss,
            id,
            "the log says dead; there is no dead letter",
        ));
    }
    for rest in history.remains.iter().filter(|r| r.stream == "dead") {
        let ran = matches!(rest.reason.as_str(), "attempts" | "rejected");
        let said = history
            .fates
            .iter()
            .any(|f| f.id == rest.id && f.ended == Some(Ended::Dead));
        if rest.reason.is_empty() || (ran && !said) {
            let evidence = format!(
                "a dead letter with reason {:?} of which the log says nothing",
                rest.reason
            );
            found.push(Violation::new(Breach::DeadLetterAmiss, &rest.id, evidence));
        }
    }
}

/// P1, P2: every task was enqueued, by an enqueue that was not refused, and no enqueue made two.
///
/// Does not see: a refused or doubled task that never started and is not in Redis.
pub(super) fn nothing_comes_from_nowhere(history: &History, found: &mut Vec<Violation>) {
    let started = history.starts.iter().map(|s| (s.n, s.id.as_str()));
    let left = history.remains.iter().filter_map(|r| Some((r.n?, r.id.as_str())));
    let told = history.enqueues.values().filter_map(|e| Some((e.n, e.id.as_deref()?)));
    let mut ids: HashMap<u64, HashSet<&str>> = HashMap::new();
    for (n, id) in started.chain(left) {
        match history.enqueues.get(&n).map(|e| e.outcome) {
            None => found.push(Violation::new(
                Breach::Phantom,
                id,
                format!("nobody enqueued number {n}"),
            )),
            Some(Outcome::Refused) => {
                found.push(Violation::new(
                    Breach::Phantom,
                    id,
                    format!("the enqueue of number {n} was refused"),
                ));
            }
            Some(_) => {}
        }
        ids.entry(n).or_default().insert(id);
    }
    for (n, id) in told.filter(|(n, _)| history.enqueues[n].outcome == Outcome::Acknowledged) {
        ids.entry(n).or_default().insert(id);
    }
    for (n, ids) in ids.iter().filter(|(_, ids)| ids.len() > 1) {
        found.push(Violation::new(
            Breach::TwoTasks,
            n,
            format!("one enqueue, the tasks {ids:?}"),
        ));
    }
}

/// P1, P3: what started from an entry is followed by what the log says of it; what the log says ran was started, by the
/// same gate read; and what is done had its effect.
///
/// Before healing an attempt may still run, so a start without a word is none of our business then. Outcomes of a batch
/// that took effect in part only count as words, but not as proof.
pub(super) fn every_start_is_accounted_for(history: &History, found: &mut Vec<Violation>) {
    let fates = history.by_place();
    for start in history.starts.iter().filter(|_| history.healed()) {
        if !fates.contains_key(&start.place) {
            let evidence = format!(
                "{} started in session {}; the log is silent",
                start.place, start.session
            );
            found.push(Violation::new(Breach::Unrecorded, &start.id, evidence));
        }
    }
    let started: HashMap<&Place, &Start> = history.starts.iter().map(|start| (&start.place, start)).collect();
    for fate in history.fates.iter().filter(|f| f.ended.is_some()) {
        let by = started.get(&fate.place).map(|s| (s.read_us, s.rev, s.version.clone()));
        let breach = match &by {
            None => Breach::NeverStarted,
            Some(by) if *by != fate.ran_by => Breach::Misrecorded,
            Some(_) => continue,
        };
        let evidence = format!(
            "{} is settled as run by {:?}; it started by {by:?}",
            fate.place, fate.ran_by
        );
        found.push(Violation::new(breach, &fate.id, evidence));
    }
    let effects: HashSet<&Place> = history.effects.iter().map(|(_, _, place)| place).collect();
    for done in history.fates.iter().filter(|f| f.ended == Some(Ended::Done)) {
        if !effects.contains(&done.place) {
            let evidence = format!("{} is settled as done by session {}", done.place, done.session);
            found.push(Violation::new(Breach::DoneWithoutEffect, &done.id, evidence));
        }
    }
}

/// P7: a dead letter had it coming: its own handler was asked to fail for good, and for that reason it is there. Poison is
/// also what was taken from a lost session three times: three deaths are all that anybody can see from outside, and chaos
/// kills at random. Fewer never suffice.
pub(super) fn only_the_guilty_die(history: &History, found: &mut Vec<Violation>) {
    for rest in history.remains.iter().filter(|r| r.stream == "dead") {
        let asked = rest
            .n
            .and_then(|n| history.enqueues.get(&n))
            .map_or("", |e| e.then.as_str());
        let deserved = match asked {
            "fail" | "panic" => rest.reason == "attempts",
            "reject" => rest.reason == "rejected",
            "abort" => rest.reason == "poison",
            _ => false,
        };
        let lost = || {
            history
                .fates
                .iter()
                .filter(|f| f.id == rest.id && f.ended.is_none())
                .count()
        };
        let deserved = deserved || (rest.reason == "poison" && lost() >= 3);
        if !deserved {
            let evidence = format!("asked to {asked:?}, and a dead letter for {:?}", rest.reason);
            found.push(Violation::new(Breach::InnocentDead, &rest.id, evidence));
        }
    }
}
