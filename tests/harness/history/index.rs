//! A history with the questions that invariants ask of it answered once.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use switchback_common::store::{
    gate::HistoryEntry,
    log::{AttemptGroup, Ended},
};
use switchback_gates::{Gate, certificate::Revisions};

use super::event::{Enqueue, Event, Flip, LogLine, Outcome, Place, Remains, Revision, Start, Terms, What};

/// What the log says became of an entry.
#[derive(Debug, Clone)]
pub struct Fate {
    /// Redis's order.
    pub order: (u64, u64),
    /// The task.
    pub id: String,
    /// The entry.
    pub place: Place,
    /// The session that had it.
    pub session: String,
    /// How its attempt ended; `None`: it was recovered from a lost session.
    pub ended: Option<Ended>,
    /// Which attempt; 0 if recovered.
    pub attempt: u32,
    /// The gate read and the version it ran by: TIME (µs), revision, version; empty if recovered.
    pub ran_by: (u64, u64, String),
    /// Whether it surely took effect: its batch did as a whole.
    pub sure: bool,
}

impl Fate {
    /// Whether the task's way ends here.
    #[must_use]
    pub fn is_end(&self) -> bool {
        matches!(self.ended, Some(Ended::Done | Ended::Dead | Ended::Cancelled))
    }
}

/// What happened, arranged.
#[derive(Debug, Default)]
pub struct History {
    /// What the fleet was set to.
    pub terms: Option<Terms>,
    /// Enqueues by the harness's number.
    pub enqueues: BTreeMap<u64, Enqueue>,
    /// Changes of the gate, in the order they were made.
    pub flips: Vec<Flip>,
    /// What was broken.
    pub faults: Vec<String>,
    /// Starts.
    pub starts: Vec<Start>,
    /// Claims whose handler failed.
    pub failed: BTreeSet<Place>,
    /// Claims whose handler had its effect, and which task that was.
    pub effects: Vec<(u64, String, Place)>,
    /// The log, in Redis's order.
    pub log: Vec<LogLine>,
    /// What became of entries, in Redis's order.
    pub fates: Vec<Fate>,
    /// The gate's history, in the order of revisions.
    pub revisions: Vec<Revision>,
    /// The gate of each revision.
    pub gates: BTreeMap<u64, Gate>,
    /// For the certificate.
    pub certificate: Revisions,
    /// What is still in Redis.
    pub remains: Vec<Remains>,
    numbers: HashMap<String, u64>,
}

impl History {
    /// Arranges events, in any order.
    #[must_use]
    pub fn new(events: &[Event]) -> Self {
        let mut history = Self::default();
        for event in events.iter().cloned() {
            match event {
                Event::Terms(terms) => history.terms = Some(terms),
                Event::Enqueue(enqueue) => {
                    if let Some(id) = &enqueue.id {
                        history.numbers.insert(id.clone(), enqueue.n);
                    }
                    history.enqueues.insert(enqueue.n, enqueue);
                }
                Event::Flip(flip) => history.flips.push(flip),
                Event::Fault { what, .. } => history.faults.push(what),
                Event::Start(start) => history.starts.push(start),
                Event::Fail(place) => {
                    history.failed.insert(place);
                }
                Event::Effect { n, id, place } => history.effects.push((n, id, place)),
                Event::Log(line) => history.log.push(line),
                Event::Revision(revision) => history.revisions.push(revision),
                Event::Remains(remains) => history.remains.push(remains),
            }
        }
        // A plain task whose enqueue got no reply has an id that only others have seen.
        let seen = history.starts.iter().map(|s| (s.id.clone(), s.n));
        let left = history.remains.iter().filter_map(|r| Some((r.id.clone(), r.n?)));
        let seen: Vec<_> = seen.chain(left).collect();
        history.numbers.extend(seen);
        history.flips.sort_by_key(|flip| flip.sent);
        history.log.sort_by_key(|line| line.order);
        history.revisions.sort_by_key(|revision| revision.rev);
        history.fates = history.log.iter().flat_map(fates).collect();
        let changes = || history.revisions.iter().filter(|r| r.kind == "change");
        let gates = changes().filter_map(|r| Some((r.rev, Gate::from_history(&r.after)?)));
        history.gates = gates.collect();
        history.certificate = Revisions::from_history(&changes().map(entry).collect::<Vec<_>>());
        history
    }

    /// The harness's number of a task.
    #[must_use]
    pub fn number(&self, id: &str) -> Option<u64> {
        self.numbers.get(id).copied()
    }

    /// The enqueue of a task.
    #[must_use]
    pub fn enqueue(&self, id: &str) -> Option<&Enqueue> {
        self.enqueues.get(&self.number(id)?)
    }

    /// What was enqueued and acknowledged.
    pub fn acknowledged(&self) -> impl Iterator<Item = &Enqueue> {
        let acknowledged = |e: &&Enqueue| e.outcome == Outcome::Acknowledged;
        self.enqueues.values().filter(acknowledged)
    }

    /// What became of entries, by entry.
    #[must_use]
    pub fn by_place(&self) -> HashMap<&Place, Vec<&Fate>> {
        let mut out: HashMap<&Place, Vec<&Fate>> = HashMap::new();
        for fate in &self.fates {
            out.entry(&fate.place).or_default().push(fate);
        }
        out
    }

    /// What became of entries, by task.
    #[must_use]
    pub fn by_task(&self) -> HashMap<&str, Vec<&Fate>> {
        let mut out: HashMap<&str, Vec<&Fate>> = HashMap::new();
        for fate in &self.fates {
            out.entry(&fate.id).or_default().push(fate);
        }
        out
    }

    /// Whether everything was healed and given time.
    #[must_use]
    pub fn healed(&self) -> bool {
        self.terms.as_ref().is_some_and(|terms| terms.healed)
    }
}

fn fates(line: &LogLine) -> Vec<Fate> {
    let fate = |id: &str, stream: &str, entry: &str| Fate {
        order: line.order,
        id: id.to_owned(),
        place: Place {
            stream: stream.to_owned(),
            entry: entry.to_owned(),
        },
        session: line.session.clone(),
        ended: None,
        attempt: 0,
        ran_by: (0, 0, String::new()),
        sure: true,
    };
    match &line.what {
        What::Settled { groups, whole } => {
            let settled = |group: &AttemptGroup| {
                let rows = group.tasks.iter().map(|row| Fate {
                    ended: Some(row.3),
                    attempt: row.2,
                    ran_by: (group.at, group.rev, group.version.to_string()),
                    sure: *whole,
                    ..fate(&row.0.to_string(), &group.stream, &row.1)
                });
                rows.collect::<Vec<_>>()
            };
            groups.iter().flat_map(settled).collect()
        }
        What::Recovered { stream, tasks } => tasks.iter().map(|(id, entry)| fate(id, stream, entry)).collect(),
        _ => Vec::new(),
    }
}

fn entry(revision: &Revision) -> HistoryEntry {
    HistoryEntry {
        id: switchback_common::StreamId::default(),
        kind: revision.kind.clone(),
        rev: revision.rev,
        at_us: revision.at_us,
        source: revision.source.clone(),
        why: revision.why.clone(),
        before: revision.before.clone(),
        after: revision.after.clone(),
        ..HistoryEntry::default()
    }
}
