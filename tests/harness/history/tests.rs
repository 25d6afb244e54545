//! The checker checked: a good history passes, and each way of spoiling it is caught by the right invariant.

use switchback_common::store::log::{AttemptGroup, AttemptRow, Ended};

use super::*;

const MS: u64 = 1_000_000;

fn place(stream: &str, entry: &str) -> Place {
    Place {
        stream: stream.to_owned(),
        entry: entry.to_owned(),
    }
}

/// A history written by hand, a line at a time. `t` is the time in ms on every clock.
#[derive(Default)]
struct Book(Vec<Event>);

impl Book {
    fn enqueue(&mut self, n: u64, then: &str, outcome: Outcome) {
        self.0.push(Event::Enqueue(Enqueue {
            n,
            id: (outcome == Outcome::Acknowledged).then(|| format!("t{n}")),
            key: None,
            then: then.to_owned(),
            sent: 500 * MS,
            outcome,
        }));
    }

    fn revision(&mut self, rev: u64, t: u64, why: &str, before: &str, after: &str) {
        self.0.push(Event::Revision(Revision {
            kind: "change".to_owned(),
            rev,
            at_us: t * 1_000,
            source: if rev == 1 { "seed" } else { "redis-cli" }.to_owned(),
            why: why.to_owned(),
            before: before.to_owned(),
            after: after.to_owned(),
            inflight: if why == "revoke" { why } else { "" }.to_owned(),
        }));
    }

    fn flip(&mut self, t: u64, why: &str, reach: &[&str], rev: Option<u64>) {
        self.0.push(Event::Flip(Flip {
            sent: t * MS,
            replied: (t + 10) * MS,
            reach: reach.iter().map(|v| (*v).to_owned()).collect(),
            why: why.to_owned(),
            rev,
        }));
    }

    fn log(&mut self, t: u64, session: &str, what: What) {
        self.0.push(Event::Log(LogLine {
            order: (t, 0),
            session: session.to_owned(),
            what,
        }));
    }

    /// A start at `t`, and what became of it 20 ms later: a word and, if it was settled, how.
    #[expect(clippy::too_many_arguments, reason = "a line of the table below")]
    fn attempt(
        &mut self,
        t: u64,
        n: u64,
        (stream, entry): (&str, &str),
        attempt: u32,
        deaths: u32,
        on: (&str, u64),
        session: &str,
        ended: Option<Ended>,
    ) {
        let (id, at) = (format!("t{n}"), place(stream, entry));
        self.0.push(Event::Start(Start {
            n,
            id: id.clone(),
            version: on.0.to_owned(),
            at: t * MS,
            attempt,
            deaths,
            rev: on.1,
            read_us: t * 1_000 - 500,
            session: session.to_owned(),
            place: at.clone(),
        }));
        match ended {
            Some(Ended::Done) => self.0.push(Event::Effect {
                n,
                id: id.clone(),
                place: at,
            }),
            Some(Ended::Retried | Ended::Dead) => self.0.push(Event::Fail(at)),
            _ => {}
        }
        if let Some(ended) = ended {
            let row = AttemptRow(id.parse().unwrap(), entry.to_owned(), attempt, ended, 20);
            let group = AttemptGroup {
                at: t * 1_000 - 500,
                rev: on.1,
                version: on.0.parse().unwrap(),
                stream: stream.to_owned(),
                tasks: vec![row],
            };
            let groups = vec![group];
            self.log(t + 20, session, What::Settled { groups, whole: true });
        }
    }

    fn dead(&mut self, n: u64, reason: &str, attempt: u32) {
        self.0.push(Event::Remains(Remains {
            stream: "dead".to_owned(),
            id: format!("t{n}"),
            n: Some(n),
            reason: reason.to_owned(),
            attempt,
        }));
    }
}

const V1: &str = r#"{"active":"v1","paused":"0"}"#;
const V2: &str = r#"{"active":"v2","paused":"0"}"#;
const HELD: &str = r#"{"paused":"1","active":"v2"}"#;

/// Two sessions, one of them lost; a flip, a pause; a task of every kind.
fn good() -> Vec<Event> {
    let mut book = Book::default();
    book.0.push(Event::Terms(Terms {
        task_type: "probe".to_owned(),
        start_ttl_ms: 250,
        max_attempts: 2,
        healed: true,
    }));
    for (n, then) in [(1, ""), (2, "fail_once"), (3, ""), (4, ""), (5, "fail"), (6, "reject")] {
        book.enqueue(n, then, Outcome::Acknowledged);
    }
    book.enqueue(7, "", Outcome::Unknown);
    book.enqueue(8, "", Outcome::Refused);
    book.enqueue(9, "", Outcome::Unknown);
    book.enqueue(10, "", Outcome::Acknowledged);
    book.revision(1, 100, "first version", "", V1);
    book.revision(2, 2_005, "flip-1", V1, V2);
    book.revision(3, 3_005, "flip-2", V2, HELD);
    book.revision(4, 3_505, "flip-3", HELD, V2);
    book.revision(5, 3_705, "revoke", V2, V2);
    book.flip(2_000, "flip-1", &["v2"], Some(2));
    book.flip(3_000, "flip-2", &[], None);
    book.flip(3_500, "flip-3", &["v2"], None);
    book.flip(3_700, "revoke", &["v2"], Some(5));
    book.log(200, "s1", What::Joined);
    book.log(201, "s2", What::Joined);
    let (v1, v2, again, late) = (("v1", 1), ("v2", 2), ("v2", 4), ("v2", 5));
    book.attempt(1_000, 1, ("main", "1-0"), 1, 0, v1, "s1", Some(Ended::Done));
    book.attempt(1_050, 2, ("main", "2-0"), 1, 0, v1, "s1", Some(Ended::Retried));
    book.attempt(1_060, 3, ("main", "3-0"), 1, 0, v1, "s1", None);
    book.attempt(1_100, 5, ("main", "5-0"), 1, 0, v1, "s2", Some(Ended::Retried));
    book.attempt(1_200, 6, ("main", "6-0"), 1, 0, v1, "s2", Some(Ended::Dead));
    book.attempt(1_300, 4, ("main", "4-0"), 1, 0, v1, "s2", Some(Ended::Released));
    book.attempt(1_400, 7, ("main", "7-0"), 1, 0, v1, "s2", Some(Ended::Done));
    book.log(1_800, "s1", What::Reaping { at_us: 1_800_000 });
    let tasks = vec![("t3".to_owned(), "3-0".to_owned())];
    book.log(
        1_801,
        "s1",
        What::Recovered {
            stream: "main".to_owned(),
            tasks,
        },
    );
    book.attempt(2_100, 2, ("main", "22-0"), 2, 0, v2, "s2", Some(Ended::Done));
    book.attempt(2_200, 4, ("head", "44-0"), 1, 0, v2, "s2", Some(Ended::Done));
    book.attempt(2_300, 5, ("main", "55-0"), 2, 0, v2, "s2", Some(Ended::Dead));
    book.attempt(3_600, 3, ("head", "33-0"), 1, 1, again, "s2", Some(Ended::Done));
    // It ran all the time, and its result was refused.
    book.attempt(1_500, 10, ("main", "10-0"), 1, 0, v1, "s2", Some(Ended::Revoked));
    let Some(Event::Log(line)) = book.0.last_mut() else {
        unreachable!()
    };
    line.order = (3_800, 0);
    book.attempt(3_900, 10, ("head", "100-0"), 1, 0, late, "s2", Some(Ended::Done));
    book.log(4_000, "s2", What::Left);
    book.dead(5, "attempts", 2);
    book.dead(6, "rejected", 1);
    book.0
}

fn breaches(events: &[Event]) -> Vec<Breach> {
    check(&History::new(events)).into_iter().map(|v| v.breach).collect()
}

#[test]
fn a_good_history_has_no_violation_and_survives_its_file() {
    let good = good();
    assert_eq!(check(&History::new(&good)), []);
    let file = tempfile::NamedTempFile::new().unwrap();
    write_jsonl(file.path(), &good).unwrap();
    assert_eq!(read_jsonl(file.path()).unwrap(), good);
}

fn starts(events: &mut [Event], entry: &str) -> Start {
    find_start(events, entry).clone()
}

fn find_start<'a>(events: &'a mut [Event], entry: &str) -> &'a mut Start {
    let found = events.iter_mut().find_map(|e| match e {
        Event::Start(start) if start.place.entry == entry => Some(start),
        _ => None,
    });
    found.unwrap()
}

/// The log line that settles `entry`.
fn settle<'a>(events: &'a mut [Event], entry: &str) -> &'a mut LogLine {
    let found = events.iter_mut().find_map(|e| match e {
        Event::Log(line) => match &line.what {
            What::Settled { groups, .. } if groups[0].tasks[0].1 == entry => Some(line),
            _ => None,
        },
        _ => None,
    });
    found.unwrap()
}

fn row<'a>(events: &'a mut [Event], entry: &str) -> &'a mut AttemptRow {
    match &mut settle(events, entry).what {
        What::Settled { groups, .. } => &mut groups[0].tasks[0],
        _ => unreachable!(),
    }
}

fn revision(events: &mut [Event], rev: u64) -> &mut Revision {
    let found = events.iter_mut().find_map(|e| match e {
        Event::Revision(revision) if revision.rev == rev => Some(revision),
        _ => None,
    });
    found.unwrap()
}

fn log(events: &mut [Event], is: impl Fn(&What) -> bool) -> &mut LogLine {
    let found = events.iter_mut().find_map(|e| match e {
        Event::Log(line) if is(&line.what) => Some(line),
        _ => None,
    });
    found.unwrap()
}

fn again(events: &mut Vec<Event>, entry: &str, t: u64) {
    let line = LogLine {
        order: (t, 0),
        ..settle(events, entry).clone()
    };
    events.push(Event::Log(line));
}

fn drop_where(events: &mut Vec<Event>, is: impl Fn(&Event) -> bool) {
    let before = events.len();
    events.retain(|event| !is(event));
    assert!(events.len() < before, "nothing to drop");
}

fn settles(event: &Event, entry: &str) -> bool {
    matches!(event, Event::Log(LogLine { what: What::Settled { groups, .. }, .. }) if groups[0].tasks[0].1 == entry)
}

fn remains(n: u64, stream: &str, reason: &str) -> Event {
    Event::Remains(Remains {
        stream: stream.to_owned(),
        id: format!("t{n}"),
        n: Some(n),
        reason: reason.to_owned(),
        attempt: 1,
    })
}

type Spoil = fn(&mut Vec<Event>);

/// What is done to the good history, and what must be seen.
const SPOILT: &[(&str, Breach, Spoil)] = &[
    // Dropped.
    ("a settle is missing", Breach::Lost, |e| {
        drop_where(e, |e| settles(e, "1-0"))
    }),
    ("a settle is missing after a start", Breach::Unrecorded, |e| {
        drop_where(e, |e| settles(e, "22-0"))
    }),
    ("a recovery is missing", Breach::Unrecorded, |e| {
        drop_where(
            e,
            |e| matches!(e, Event::Log(l) if matches!(l.what, What::Recovered { .. })),
        );
    }),
    ("an effect is missing", Breach::DoneWithoutEffect, |e| {
        drop_where(e, |e| matches!(e, Event::Effect { n: 4, .. }));
    }),
    ("a dead letter is missing", Breach::DeadLetterAmiss, |e| {
        drop_where(e, |e| matches!(e, Event::Remains(r) if r.n == Some(5)));
    }),
    ("a death is missing", Breach::DeadLetterAmiss, |e| {
        drop_where(e, |e| settles(e, "6-0"))
    }),
    ("a failure is missing", Breach::AttemptBurnt, |e| {
        drop_where(e, |e| matches!(e, Event::Fail(p) if p.entry == "2-0"));
    }),
    ("an enqueue is missing", Breach::Phantom, |e| {
        drop_where(e, |e| matches!(e, Event::Enqueue(q) if q.n == 3));
    }),
    ("a revision is missing", Breach::RevisionGap, |e| {
        drop_where(e, |e| matches!(e, Event::Revision(r) if r.rev == 3));
    }),
    ("the newest revision is missing", Breach::UnknownRevision, |e| {
        drop_where(e, |e| matches!(e, Event::Revision(r) if r.rev == 4));
    }),
    ("a flip is missing", Breach::ChangeAmiss, |e| {
        drop_where(e, |e| matches!(e, Event::Flip(f) if f.why == "flip-2"));
    }),
    (
        "the mark of a lost session is missing",
        Breach::TakenFromTheLiving,
        |e| {
            drop_where(
                e,
                |e| matches!(e, Event::Log(l) if matches!(l.what, What::Reaping { .. })),
            );
        },
    ),
    ("a session that never joined", Breach::ZombieSettled, |e| {
        drop_where(
            e,
            |e| matches!(e, Event::Log(l) if l.what == What::Joined && l.session == "s2"),
        );
    }),
    // Twice.
    ("an entry settled twice", Breach::SettledTwice, |e| {
        again(e, "1-0", 1_500)
    }),
    ("a task done twice", Breach::EndedTwice, |e| {
        again(e, "1-0", 1_500);
        let Some(Event::Log(LogLine {
            what: What::Settled { groups, .. },
            ..
        })) = e.last_mut()
        else {
            unreachable!()
        };
        groups[0].tasks[0].1 = "11-0".to_owned();
    }),
    ("a claim started twice", Breach::StartedTwice, |e| {
        let start = starts(e, "1-0");
        e.push(Event::Start(start));
    }),
    ("one enqueue, two tasks", Breach::TwoTasks, |e| {
        let id = "t1-copy".to_owned();
        let start = Start {
            id,
            place: place("main", "99-0"),
            ..starts(e, "1-0")
        };
        e.push(Event::Start(start));
    }),
    ("a change recorded twice", Breach::ChangeAmiss, |e| {
        let twice = Revision {
            rev: 6,
            before: V2.to_owned(),
            after: HELD.to_owned(),
            at_us: 9_000_000,
            ..revision(e, 3).clone()
        };
        e.push(Event::Revision(twice));
    }),
    // In another order.
    ("retried after its end", Breach::CameBack, |e| {
        settle(e, "2-0").order = (2_900, 0)
    }),
    ("recovered after its end", Breach::CameBack, |e| {
        log(e, |w| matches!(w, What::Recovered { .. })).order = (3_900, 0);
    }),
    (
        "settled after the session was declared lost",
        Breach::ZombieSettled,
        |e| settle(e, "1-0").order = (1_900, 0),
    ),
    ("settled after the session had left", Breach::ZombieSettled, |e| {
        settle(e, "33-0").order = (4_001, 0)
    }),
    ("sealed in another order", Breach::RevisionBreak, |e| {
        revision(e, 3).at_us = 4_000_000
    }),
    (
        "started after the session was declared lost",
        Breach::ZombieStarted,
        |e| find_start(e, "3-0").read_us = 1_900_000,
    ),
    // Altered.
    ("an acknowledged task that nobody ever saw", Breach::Lost, |e| {
        e.iter_mut().for_each(|e| {
            if let Event::Enqueue(q) = e
                && q.n == 9
            {
                q.outcome = Outcome::Acknowledged;
                q.id = Some("t9".to_owned());
            }
        });
    }),
    ("a refused task ran", Breach::Phantom, |e| {
        e.iter_mut().for_each(|e| {
            if let Event::Enqueue(q) = e
                && q.n == 7
            {
                q.outcome = Outcome::Refused;
            }
        });
    }),
    ("still waiting", Breach::LeftBehind, |e| e.push(remains(9, "main", ""))),
    (
        "sent after the flip, started on the old version",
        Breach::StartedAfterFlip,
        |e| {
            let start = find_start(e, "22-0");
            (start.version, start.rev) = ("v1".to_owned(), 1);
            e.iter_mut().for_each(|e| {
                if let Event::Enqueue(q) = e
                    && q.n == 2
                {
                    q.sent = 2_050 * MS;
                }
            });
        },
    ),
    ("started on the old version too late", Breach::StartedPastTtl, |e| {
        let start = find_start(e, "55-0");
        (start.version, start.rev, start.at) = ("v1".to_owned(), 1, 2_300 * MS);
    }),
    (
        "a result that counts although it was revoked",
        Breach::RevokedCounts,
        |e| row(e, "10-0").3 = Ended::Done,
    ),
    (
        "a failure that counts although it was revoked",
        Breach::RevokedCounts,
        |e| row(e, "10-0").3 = Ended::Retried,
    ),
    (
        "settled only after the flip that revoked it",
        Breach::RevokedCounts,
        |e| settle(e, "1-0").order = (3_950, 0),
    ),
    ("an attempt in the log on another version", Breach::Misrecorded, |e| {
        let What::Settled { groups, .. } = &mut settle(e, "1-0").what else {
            unreachable!()
        };
        groups[0].version = "v2".parse().unwrap();
    }),
    ("a start is missing", Breach::NeverStarted, |e| {
        drop_where(e, |e| matches!(e, Event::Start(s) if s.place.entry == "1-0"));
    }),
    ("a gate read that overlooked a flip", Breach::LateByCertificate, |e| {
        let start = find_start(e, "22-0");
        (start.version, start.rev) = ("v1".to_owned(), 1);
    }),
    (
        "a first start on another version than its revision's",
        Breach::Misrouted,
        |e| find_start(e, "1-0").version = "v2".to_owned(),
    ),
    (
        "a second start on another version than its revision's",
        Breach::NotRedecided,
        |e| find_start(e, "22-0").rev = 1,
    ),
    ("a start under a paused revision", Breach::StartedPaused, |e| {
        find_start(e, "33-0").rev = 3
    }),
    (
        "a start while paused, whatever it says of itself",
        Breach::StartedPaused,
        |e| find_start(e, "33-0").at = 3_300 * MS,
    ),
    ("an attempt number too high", Breach::WrongAttempt, |e| {
        find_start(e, "44-0").attempt = 2
    }),
    ("settled as another attempt", Breach::WrongAttempt, |e| {
        row(e, "22-0").2 = 1
    }),
    ("retried, although it did not fail", Breach::AttemptBurnt, |e| {
        row(e, "4-0").3 = Ended::Retried
    }),
    ("done, although it never ended", Breach::DoneWithoutEffect, |e| {
        row(e, "4-0").3 = Ended::Done
    }),
    ("given up too early", Breach::GaveUpEarly, |e| {
        e.iter_mut().for_each(|e| {
            if let Event::Remains(r) = e
                && r.n == Some(5)
            {
                r.attempt = 1;
            }
        });
    }),
    ("a neighbour among the dead letters", Breach::InnocentDead, |e| {
        e.push(remains(3, "dead", "poison"))
    }),
    ("a dead letter without a reason", Breach::DeadLetterAmiss, |e| {
        e.iter_mut().for_each(|e| {
            if let Event::Remains(r) = e
                && r.n == Some(6)
            {
                r.reason = String::new();
            }
        });
    }),
    ("a change that nobody made", Breach::ChangeAmiss, |e| {
        revision(e, 3).why = "a ghost".to_owned()
    }),
    ("a reply that named another revision", Breach::ChangeAmiss, |e| {
        e.iter_mut().for_each(|e| {
            if let Event::Flip(f) = e
                && f.why == "flip-1"
            {
                f.rev = Some(3);
            }
        });
    }),
    (
        "a revision that does not follow from the one before",
        Breach::RevisionBreak,
        |e| revision(e, 3).before = V1.to_owned(),
    ),
    ("a queue held for nothing", Breach::HeldWithoutCause, |e| {
        revision(e, 3).source = "regress".to_owned()
    }),
    ("a batch beyond its bound", Breach::TooLarge, |e| {
        let What::Settled { groups, .. } = &mut settle(e, "1-0").what else {
            unreachable!()
        };
        let row = groups[0].tasks[0].clone();
        groups[0].tasks = vec![row; 1_001];
    }),
];

#[test]
fn every_way_of_spoiling_it_is_caught_by_the_right_invariant() {
    for (what, breach, spoil) in SPOILT {
        let mut events = good();
        spoil(&mut events);
        let seen = breaches(&events);
        assert!(seen.contains(breach), "{what}: wanted {breach:?}, seen {seen:?}");
    }
}

#[test]
fn every_breach_has_been_seen() {
    let seen: std::collections::BTreeSet<Breach> = SPOILT.iter().map(|(_, breach, _)| *breach).collect();
    assert_eq!(
        seen.len(),
        Breach::TooLarge as usize + 1,
        "a breach that no test provokes: {seen:?}"
    );
}

#[test]
fn what_nobody_can_know_is_no_violation() {
    // Before healing, tasks wait and attempts run.
    let mut events = good();
    events.iter_mut().for_each(|e| {
        if let Event::Terms(terms) = e {
            terms.healed = false;
        }
    });
    drop_where(&mut events, |e| settles(e, "1-0"));
    events.push(remains(1, "main", ""));
    assert_eq!(breaches(&events), []);
    // Of a batch that took effect in part, nobody can say which outcome did.
    let mut events = good();
    again(&mut events, "1-0", 1_500);
    if let Some(Event::Log(LogLine {
        what: What::Settled { whole, .. },
        ..
    })) = events.last_mut()
    {
        *whole = false;
    }
    assert_eq!(breaches(&events), []);
    // The next change was on its way.
    let mut events = good();
    let back = Flip {
        sent: 3_590 * MS,
        replied: 3_700 * MS,
        reach: vec!["v1".to_owned(), "v2".to_owned()],
        why: "flip-4".to_owned(),
        rev: None,
    };
    events.push(Event::Flip(back));
    find_start(&mut events, "33-0").at = 3_650 * MS;
    assert_eq!(breaches(&events), []);
}

/// Nothing that happened can be left out unnoticed, except what a good history can do without.
#[test]
fn whatever_is_dropped_is_missed() {
    let good = good();
    let mut dispensable = 0;
    for n in 0..good.len() {
        let mut events = good.clone();
        let dropped = events.remove(n);
        let missed = match &dropped {
            // Refused, or without a reply and never seen: there is no task.
            Event::Enqueue(enqueue) => enqueue.n < 8 || enqueue.n == 10,
            // Recovered: nobody says that it had started.
            Event::Start(start) => start.place.entry != "3-0",
            Event::Log(line) => line.what != What::Left,
            _ => true,
        };
        dispensable += usize::from(!missed);
        assert_eq!(!breaches(&events).is_empty(), missed, "{dropped:?}");
    }
    assert_eq!(dispensable, 4);
}
