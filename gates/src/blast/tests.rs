use switchback_common::{
    SessionId, TaskType,
    store::{
        gate::HistoryEntry,
        log::{AttemptGroup, AttemptRow, Detail, LogEntry},
    },
};

use super::*;
use crate::certificate::Revisions;

fn version(name: &str) -> Version {
    name.parse().unwrap()
}

fn task_type() -> TaskType {
    "send_email".parse().unwrap()
}

/// v1; from 5000 µs a ramp of v2; from 9 000 000 µs v1 again.
fn revisions(percent: u32) -> Revisions {
    let change = |rev, at_us, after: &str| HistoryEntry {
        kind: "change".into(),
        rev,
        at_us,
        after: after.into(),
        before: if rev == 1 { String::new() } else { "{}".into() },
        ..HistoryEntry::default()
    };
    let ramp = format!(r#"{{"active":"v1","candidate":"v2","percent":"{percent}","paused":"0"}}"#);
    Revisions::from_history(&[
        change(1, 1, r#"{"active":"v1","paused":"0"}"#),
        change(2, 5_000, &ramp),
        change(3, 9_000_000, r#"{"active":"v1","paused":"0"}"#),
    ])
}

fn question() -> Question {
    Question {
        version: version("v2"),
        since_us: 5_000,
        until_us: 9_500_000,
    }
}

fn entry(ms: u64, kind: &str, session: &str, text: &str) -> LogEntry {
    LogEntry {
        id: StreamId { ms, seq: 0 },
        kind: kind.into(),
        session: SessionId::from_found(session),
        attempts: Vec::new(),
        acked: "all".into(),
        cancelled: Vec::new(),
        at_us: ms * 1_000,
        text: text.into(),
        detail: Detail::default(),
    }
}

fn settled(ms: u64, on: &str, task: &str, attempt: u32, ended: Ended) -> LogEntry {
    LogEntry {
        attempts: vec![AttemptGroup {
            at: ms * 1_000 - 500,
            rev: 2,
            version: version(on),
            stream: "main".into(),
            tasks: vec![AttemptRow(task.parse().unwrap(), format!("{ms}-0"), attempt, ended, 1)],
        }],
        ..entry(ms, "settled", "s1", "")
    }
}

fn recovered(ms: u64, session: &str, task: &str, held_ms: u64, key: Option<&str>) -> LogEntry {
    let claimed = format!("{ms}-7");
    LogEntry {
        detail: Detail {
            stream: "sb:stream:{shop:send_email}".into(),
            held_ms: vec![held_ms],
            keys: Some(key.map(|key| (claimed.clone(), key.to_owned())).into_iter().collect()),
            ..Detail::default()
        },
        ..entry(ms, "recovered", session, &format!("{task}={claimed}"))
    }
}

fn told(revisions: &Revisions, log: &[LogEntry]) -> Vec<Story> {
    let task_type = task_type();
    let mut reader = Reader::new(revisions, &task_type);
    let mut facts = Vec::new();
    for entry in log {
        reader.read(entry, |fact| {
            assert_eq!(
                Fact::of_line(fact.to_line().as_bytes()),
                Some(fact.clone()),
                "on its way"
            );
            facts.push(fact);
        });
    }
    stories(facts)
}

fn report(log: &[LogEntry]) -> Report {
    let mut report = Report::default();
    for story in told(&revisions(100), log) {
        report.add(&story, &question());
    }
    report
}

#[test]
fn every_touched_task_has_one_fate_and_the_attempts_add_up() {
    let log = [
        settled(10, "v2", "right", 1, Ended::Done),
        settled(11, "v2", "saved", 1, Ended::Retried),
        settled(12, "v2", "waits", 1, Ended::Retried),
        settled(13, "v2", "dies", 3, Ended::Dead),
        settled(14, "v2", "back", 1, Ended::Dead),
        settled(15, "v2", "worse", 1, Ended::Retried),
        settled(16, "v2", "given-back", 1, Ended::Revoked),
        settled(17, "v2", "put-off", 1, Ended::Snoozed),
        settled(18, "v1", "never", 1, Ended::Done),
        settled(20, "v1", "saved", 2, Ended::Done),
        settled(21, "v1", "worse", 2, Ended::Dead),
        entry(22, "requeued", "", "back=22-0"),
        settled(23, "v1", "put-off", 1, Ended::Done),
        entry(24, "cancel", "", "waits: marked"),
    ];
    let report = report(&log);
    let fates: Vec<_> = report.tasks.by_fate.iter().map(|(fate, n)| (*fate, *n)).collect();
    assert_eq!(
        fates,
        [
            (Fate::DoneOnIt, 1),
            (Fate::Recovered, 2),
            (Fate::Waiting, 1),
            (Fate::Dead, 1),
            (Fate::InLine, 2),
            (Fate::FailedElsewhere, 1),
        ]
    );
    assert_eq!((report.tasks.touched, report.tasks.perhaps), (8, 0));
    assert_eq!((report.attempts.total, report.outcome(Outcome::Retried)), (8, 3));
    // `saved` and `worse` ran twice; `dies` says itself that it had two attempts before. What was put off did nothing.
    assert_eq!(report.tasks.duplicated, 3);
}

#[test]
fn a_window_is_kept_at_both_ends() {
    let log = [
        settled(10, "v2", "a", 1, Ended::Done),
        settled(12, "v2", "b", 1, Ended::Done),
    ];
    let stories = told(&revisions(100), &log);
    let touched = |since_us, until_us| {
        let question = Question {
            since_us,
            until_us,
            ..question()
        };
        stories.iter().filter(|s| s.touched(&question) > Is::No).count()
    };
    assert_eq!(touched(9_500, 11_500), 2, "the gate was read at 9500 and 11500");
    assert_eq!((touched(9_501, 11_500), touched(9_500, 11_499)), (1, 1));
}

#[test]
fn a_crashed_attempt_is_decided_again() {
    let of = |percent: u32, held_ms: u64, key: Option<&str>| {
        let log = [recovered(8_000, "s1", "t", held_ms, key)];
        let story = told(&revisions(percent), &log).remove(0);
        let attempt = story.attempts.first().cloned();
        (attempt.map(|a| (a.version, a.one_of)), story.touched(&question()))
    };
    let exact = |name: &str| Some((Some(version(name)), Vec::new()));
    assert_eq!(of(100, 1_000, None), (exact("v2"), Is::Surely), "one version only");
    // Vectors: cust-1 lies at 2.577 %, order-42 at 34.362 %.
    assert_eq!(of(10, 1_000, Some("cust-1")), (exact("v2"), Is::Surely));
    assert_eq!(
        of(10, 1_000, Some("order-42")),
        (exact("v1"), Is::No),
        "its key went elsewhere"
    );
    // Claimed before the ramp began: either.
    let either = Some((None, vec![version("v1"), version("v2")]));
    assert_eq!(of(10, 7_996, Some("cust-1")), (either, Is::Perhaps));
    // Claimed before the history begins.
    assert_eq!(of(10, 9_999, Some("cust-1")), (Some((None, Vec::new())), Is::Perhaps));
}

#[test]
fn what_its_worker_lacked_a_crashed_attempt_did_not_run() {
    let mut reaping = entry(7_999, "reaping", "s1", "");
    reaping.detail.versions = vec![version("v1")];
    let log = [reaping, recovered(8_000, "s1", "t", 7_996, Some("cust-1"))];
    let story = told(&revisions(10), &log).remove(0);
    assert_eq!(story.attempts[0].version, Some(version("v1")));
    assert_eq!(story.touched(&question()), Is::No);
}

#[test]
fn without_its_key_a_crashed_attempt_ran_on_one_of_those_reachable() {
    let mut log = recovered(8_000, "s1", "t", 1_000, None);
    log.detail.keys = None;
    let story = told(&revisions(10), &[log]).remove(0);
    assert_eq!(story.attempts[0].one_of, [version("v1"), version("v2")]);
    let mut report = Report::default();
    report.add(&story, &question());
    assert_eq!((report.attempts.one_of, report.tasks.perhaps), (1, 1));
    assert_eq!(report.fate(Fate::InLine), 1);
}

#[test]
fn a_late_result_is_the_attempt_that_vanished_in_either_order() {
    let stale = |ms| entry(ms, "stale", "s1", "t@v2=done u@v1=retried cut@v");
    for log in [
        [recovered(8_000, "s1", "t", 7_000, None), stale(8_001)],
        [stale(7_999), recovered(8_000, "s1", "t", 7_000, None)],
    ] {
        let stories = told(&revisions(10), &log);
        let story = stories.iter().find(|s| s.task == "t").unwrap();
        assert_eq!(story.attempts.len(), 1, "{story:?}");
        let attempt = &story.attempts[0];
        assert_eq!(
            (attempt.outcome, attempt.refused),
            (Outcome::Stale, Some(Outcome::Done))
        );
        assert_eq!(attempt.version, Some(version("v2")), "now it is known");
        assert_eq!(story.fate(&question()), Fate::InLine, "its result does not count");
        assert_eq!(stories.len(), 2, "what was cut off is no task");
    }
    // Another session's is another attempt.
    let log = [
        recovered(8_000, "s2", "t", 10, None),
        stale(8_001),
        settled(8_002, "v1", "t", 1, Ended::Done),
    ];
    let story = told(&revisions(100), &log).remove(0);
    assert_eq!(story.attempts.len(), 3);
    assert!(story.is_duplicated(&question()));
    assert_eq!(story.fate(&question()), Fate::Recovered);
}

#[test]
fn attempts_given_back_are_part_of_the_story() {
    let mut refunded = entry(30, "refunded", "", "a=delayed b=delayed");
    refunded.detail.refunds = vec![2, 1];
    let log = [
        settled(10, "v2", "a", 1, Ended::Retried),
        settled(11, "v2", "b", 1, Ended::Retried),
        refunded,
    ];
    let stories = told(&revisions(100), &log);
    assert_eq!(stories.iter().map(|s| s.refunded).collect::<Vec<_>>(), [2, 1]);
    assert_eq!(stories[0].fate(&question()), Fate::Waiting);
    assert_eq!(report(&log).tasks.refunded, 2);
}

#[test]
fn a_batch_that_took_effect_in_part_is_not_sure() {
    let mut log = settled(10, "v2", "a", 1, Ended::Done);
    log.acked = "0".into();
    assert_eq!(report(&[log]).attempts.unsure, 1);
}
