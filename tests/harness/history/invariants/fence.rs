//! P3, P4, P5 and the starting part of P8: what may start, by whom, on which version.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    time::Duration,
};

use switchback_common::{
    TaskType,
    clock::Moment,
    store::log::{AttemptGroup, AttemptRow, Ended},
};
use switchback_gates::{Decision, decide};

use crate::history::{
    event::{Start, What},
    index::History,
    violation::{Breach, Violation},
};

/// P3, and P8 for pauses: by the harness's own record of flips, and by the certificate.
///
/// Between the sending of a change and its reply, what was allowed before and what is allowed after may both start. Does
/// not see: a version that a change of the harness would have allowed, but that Redis dropped from the edit.
pub(super) fn nothing_starts_late(history: &History, found: &mut Vec<Violation>) {
    let ttl = history
        .terms
        .as_ref()
        .map_or(Duration::MAX, |t| Duration::from_millis(t.start_ttl_ms));
    for start in &history.starts {
        witnessed(history, start, ttl, found);
        if let Some(group) = as_group(start) {
            for late in history.certificate.late(&group) {
                let evidence = format!(
                    "{} on {} by revision {}, its gate read after revision {} was sealed",
                    start.place, start.version, late.rev, late.sealed
                );
                found.push(Violation::new(Breach::LateByCertificate, &start.id, evidence));
            }
        }
    }
}

fn witnessed(history: &History, start: &Start, ttl: Duration, found: &mut Vec<Violation>) {
    let flips = &history.flips;
    let allows = |n: usize| flips[n].reach.contains(&start.version);
    // Flips whose reply had arrived, the newest last; then those on their way.
    let replied = flips.partition_point(|flip| flip.replied < start.at);
    let on_their_way = flips[replied..].iter().take_while(|flip| flip.sent <= start.at).count();
    if (replied..replied + on_their_way).any(allows) {
        return;
    }
    // Since when it has been forbidden.
    let Some(first) = (0..replied).rev().take_while(|n| !allows(*n)).last() else {
        return;
    };
    let newest = &flips[replied - 1];
    let paused = newest.reach.is_empty();
    let sent = history.enqueues.get(&start.n).map_or(0, |e| e.sent);
    let since = Moment::from_nanos(start.at).since(Moment::from_nanos(flips[first].replied));
    let evidence = format!(
        "attempt {} at {} on {}, {since:?} after the reply to {:?} which allows {:?}",
        start.attempt, start.place, start.version, flips[first].why, flips[first].reach
    );
    // No clock needed: the claim came after the send, and the gate read after the claim.
    let breach = if sent > flips[first].replied {
        if paused {
            Breach::StartedPaused
        } else {
            Breach::StartedAfterFlip
        }
    } else if since > ttl {
        if paused {
            Breach::StartedPaused
        } else {
            Breach::StartedPastTtl
        }
    } else {
        return;
    };
    found.push(Violation::new(breach, &start.id, evidence));
}

fn as_group(start: &Start) -> Option<AttemptGroup> {
    let row = AttemptRow(
        start.id.parse().ok()?,
        start.place.entry.clone(),
        start.attempt,
        Ended::Done,
        0,
    );
    Some(AttemptGroup {
        at: start.read_us,
        rev: start.rev,
        version: start.version.parse().ok()?,
        stream: start.place.stream.clone(),
        tasks: vec![row],
    })
}

/// P3, P5, P8: each start ran on the version that the revision it names gives to it; computed again from the history.
pub(super) fn decisions_are_the_gates(history: &History, found: &mut Vec<Violation>) {
    let Some(terms) = &history.terms else { return };
    let task_type: TaskType = terms.task_type.parse().expect("a task type");
    for start in &history.starts {
        let Some(gate) = history.gates.get(&start.rev) else {
            let evidence = format!("{} started under revision {}", start.place, start.rev);
            found.push(Violation::new(Breach::UnknownRevision, &start.id, evidence));
            continue;
        };
        let key = history.enqueue(&start.id).and_then(|e| e.key.clone());
        let decision = decide(gate, &task_type, &BTreeMap::new(), || {
            key.unwrap_or_else(|| start.id.clone())
        });
        let breach = match decision {
            Decision::Run(version) if version.as_str() == start.version => continue,
            Decision::Hold => Breach::StartedPaused,
            Decision::Run(_) if start.attempt > 1 || start.deaths > 0 || start.place.stream != "main" => {
                Breach::NotRedecided
            }
            Decision::Run(_) => Breach::Misrouted,
        };
        let evidence = format!(
            "attempt {} at {} ran on {}; revision {} says {decision:?}",
            start.attempt, start.place, start.version, start.rev
        );
        found.push(Violation::new(breach, &start.id, evidence));
    }
}

/// P3: no result of an attempt took effect after a flip had revoked it. Both are judged by Redis's clock.
///
/// Does not see: what was settled within the flip's own millisecond; `tests/fence` orders those.
pub(super) fn what_was_revoked_does_not_count(history: &History, found: &mut Vec<Violation>) {
    let revokes = || {
        history
            .revisions
            .iter()
            .filter(|r| r.kind == "change" && r.inflight == "revoke")
    };
    let results = history
        .fates
        .iter()
        .filter(|f| f.sure && f.ended.is_some_and(Ended::is_result));
    for fate in results {
        let (_, rev, version) = &fate.ran_by;
        let withdraws = |rev| {
            let gate = history.gates.get(&rev);
            gate.is_some_and(|gate| version.parse().is_ok_and(|version| !gate.reaches(&version)))
        };
        let mut earlier = revokes().filter(|r| *rev < r.rev && r.at_us / 1_000 < fate.order.0);
        if let Some(flip) = earlier.find(|r| withdraws(r.rev)) {
            let evidence = format!(
                "{} settled as {:?} on {version} by revision {rev} at {} ms; revision {} had revoked it at {} µs",
                fate.place, fate.ended, fate.order.0, flip.rev, flip.at_us
            );
            found.push(Violation::new(Breach::RevokedCounts, &fate.id, evidence));
        }
    }
}

/// P4: after the mark `reaping`, or after it has left, a session settles nothing and starts nothing; and nobody's entries
/// are taken without that mark.
///
/// Does not see: a handler that a lost session goes on running, which is allowed.
pub(super) fn zombies_do_nothing(history: &History, found: &mut Vec<Violation>) {
    let (mut joined, mut over) = (HashSet::new(), HashMap::new());
    for line in &history.log {
        let session = line.session.as_str();
        match &line.what {
            What::Joined => {
                joined.insert(session);
            }
            What::Reaping { at_us } => {
                over.insert(session, *at_us);
            }
            What::Left => {
                over.insert(session, u64::MAX);
            }
            What::Settled { groups, .. } if over.contains_key(session) => {
                let tasks: Vec<String> = groups.iter().flat_map(|g| &g.tasks).map(|r| r.0.to_string()).collect();
                let evidence = format!(
                    "entry {}-{} settles {tasks:?} after its end",
                    line.order.0, line.order.1
                );
                found.push(Violation::new(Breach::ZombieSettled, session, evidence));
            }
            What::Settled { .. } if !joined.contains(session) => {
                found.push(Violation::new(Breach::ZombieSettled, session, "it never joined"));
            }
            What::Recovered { tasks, .. } if joined.contains(session) && !over.contains_key(session) => {
                found.push(Violation::new(
                    Breach::TakenFromTheLiving,
                    session,
                    format!("{tasks:?}"),
                ));
            }
            _ => {}
        }
    }
    for start in &history.starts {
        if over
            .get(start.session.as_str())
            .is_some_and(|at_us| start.read_us > *at_us)
        {
            let evidence = format!(
                "{} started in session {} by a later gate read",
                start.place, start.session
            );
            found.push(Violation::new(Breach::ZombieStarted, &start.id, evidence));
        }
    }
}
