//! The gate changed by programs: change, hold, and the one seeding of a queue's life.

use std::time::Duration;

use serde_json::json;
use switchback_common::{
    ConnectOptions, SessionId, Store,
    store::{
        gate::{ChangeRequest, Changed, Found, GateStore, Hold, SealWord, Sealed},
        keyspace::Key,
        session::{Joined, SessionRecord, SessionStore},
    },
};
use switchback_gates::{GateView, Verdict};
use switchback_tests::eventually;
use tokio::task::JoinSet;

use crate::queue::{TestQueue, json, show};

/// `request("op-1", "candidate=v2 percent=10")`.
fn request(op: &str, fields: &'static str) -> ChangeRequest {
    let fields = fields.split(' ').map(|pair| pair.split_once('=').unwrap());
    ChangeRequest {
        source: "cli".into(),
        by: "alice".into(),
        why: "test".into(),
        op: op.into(),
        fields: fields.map(|(name, value)| (name, value.to_owned())).collect(),
        ..ChangeRequest::default()
    }
}

fn if_rev(rev: u64, request: ChangeRequest) -> ChangeRequest {
    ChangeRequest {
        if_rev: Some(rev),
        ..request
    }
}

#[track_caller]
fn changed(answer: Changed) -> (u64, String) {
    match answer {
        Changed::Changed(sealed) => (sealed.rev, show(&sealed.gate)),
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn held(answer: Hold) -> Sealed {
    match answer {
        Hold::Held(read) => match read.found {
            Found::Settled(sealed) => (*sealed).clone(),
            found => panic!("{found:?}"),
        },
        other => panic!("{other:?}"),
    }
}

/// Takes the gate back to what it was, as a failover to a replica that lags does.
struct Past {
    keys: Vec<(String, Vec<u8>)>,
}

impl Past {
    async fn save(q: &TestQueue) -> Self {
        let mut keys = Vec::new();
        for key in [Key::Gate, Key::GateState, Key::History] {
            let key = q.key(key);
            let dump: Vec<u8> = q.cmd(&["DUMP", &key]).await;
            keys.push((key, dump));
        }
        Self { keys }
    }

    async fn restore(&self, q: &TestQueue) {
        for (key, dump) in &self.keys {
            q.bytes_cmd::<()>(&[b"RESTORE", key.as_bytes(), b"0", dump, b"REPLACE"])
                .await;
        }
    }
}

#[tokio::test]
async fn a_change_is_sealed_signed_and_shown_to_people() {
    let q = TestQueue::seeded().await;
    let answer = q
        .gate
        .change(&request("op-1", "candidate=v2 percent=10"))
        .await
        .unwrap();
    assert_eq!(changed(answer), (2, "v1 v2@10".into()));
    assert!(matches!(q.found().await, Found::Settled(s) if s.rev == 2));
    assert_eq!(q.human().await, "active=v1 candidate=v2 paused=0 percent=10");
    let entry = &q.changes().await[0];
    let seen = (entry.source.as_str(), entry.by.as_str(), entry.why.as_str());
    assert_eq!(seen, ("cli", "alice", "test"));
}

#[tokio::test]
async fn if_rev_lets_only_the_revision_it_names_be_changed() {
    let q = TestQueue::seeded().await;
    let late = if_rev(1, request("late", "candidate=v3 percent=10"));
    changed(q.gate.change(&if_rev(1, request("a", "only=v2"))).await.unwrap());
    let answer = q.gate.change(&late).await.unwrap();
    assert!(matches!(answer, Changed::Moved(s) if s.rev == 2 && show(&s.gate) == "v2"));
    assert_eq!(q.history().await.len(), 2);
}

#[tokio::test]
async fn a_persons_pending_edit_is_sealed_first_and_wins() {
    let q = TestQueue::seeded().await;
    q.edit("candidate v2 percent 10").await;
    q.hset("only v1 by bob").await;
    let guard = if_rev(2, request("guard-1", "percent=25"));
    let answer = q.gate.change(&guard).await.unwrap();
    assert!(matches!(answer, Changed::Moved(s) if s.rev == 3 && show(&s.gate) == "v1"));
    let entry = &q.changes().await[0];
    assert_eq!((entry.source.as_str(), entry.by.as_str()), ("redis-cli", "bob"));
}

#[tokio::test]
async fn a_pending_edit_without_if_rev_is_logged_before_the_change() {
    let q = TestQueue::seeded().await;
    q.hset("paused 1 by bob").await;
    let answer = q.gate.change(&request("op", "only=v2")).await.unwrap();
    assert_eq!(changed(answer), (3, "v2 paused".into()));
    let sources: Vec<_> = q.changes().await.into_iter().map(|e| e.source).collect();
    assert_eq!(sources, ["cli", "redis-cli", "seed"]);
}

#[tokio::test]
async fn a_request_sent_again_changes_nothing_even_after_another_change() {
    let q = TestQueue::seeded().await;
    let flip = request("op-1", "only=v2");
    changed(q.gate.change(&flip).await.unwrap());
    assert_eq!(changed(q.gate.change(&flip).await.unwrap()).0, 2);
    q.edit("only v3").await;
    assert_eq!(changed(q.gate.change(&flip).await.unwrap()), (3, "v3".into()));
    assert_eq!(q.history().await.len(), 3);
}

#[tokio::test]
async fn a_request_that_changed_nothing_does_not_undo_a_later_change_when_sent_again() {
    let q = TestQueue::seeded().await;
    let nothing = request("op-1", "only=v1");
    assert!(matches!(q.gate.change(&nothing).await.unwrap(), Changed::Same(_)));
    q.edit("only v2").await;
    assert!(matches!(q.gate.change(&nothing).await.unwrap(), Changed::Same(s) if show(&s.gate) == "v2"));
    assert_eq!(show(&q.seal().await.1.gate), "v2");
}

#[tokio::test]
async fn requests_without_an_operation_id_are_not_taken_for_one_another() {
    let q = TestQueue::seeded().await;
    changed(q.gate.change(&request("", "only=v2")).await.unwrap());
    assert_eq!(
        changed(q.gate.change(&request("", "only=v3")).await.unwrap()),
        (3, "v3".into())
    );
}

#[tokio::test]
async fn an_invalid_value_is_refused_by_name_and_nothing_changes() {
    let q = TestQueue::seeded().await;
    for (fields, field, reason) in [
        ("active=v9", "active", "v9: unknown version"),
        ("active=", "active", ": empty"),
        ("only=v9", "only", "v9: unknown version"),
        ("candidate=v9", "candidate", "v9: unknown version"),
        ("percent=10", "percent", "10: there is no candidate"),
        ("candidate=v2 percent=101", "percent", "101: not a number from 0 to 100"),
        ("pins=a", "pins", "a: not key=version: a"),
        ("inflight=now", "inflight", "now: not one of: finish, cancel, revoke"),
        ("pecent=5", "pecent", "5: unknown field"),
        ("active=v9 paused=1", "active", "v9: unknown version"),
    ] {
        let answer = q.gate.change(&request(fields, fields)).await.unwrap();
        let expected = Changed::Refused {
            field: field.into(),
            reason: reason.into(),
        };
        assert_eq!(answer, expected);
    }
    assert_eq!(q.history().await.len(), 1);
    assert_eq!(q.human().await, "active=v1 paused=0");
}

#[tokio::test]
async fn a_dry_run_says_what_would_be_and_changes_nothing() {
    let q = TestQueue::seeded().await;
    let dry = |fields| ChangeRequest {
        dry_run: true,
        ..request("op-1", fields)
    };
    let answer = q.gate.change(&dry("candidate=v2 percent=10")).await.unwrap();
    assert!(
        matches!(&answer, Changed::Would(s) if s.rev == 2 && show(&s.gate) == "v1 v2@10"),
        "{answer:?}"
    );
    let answer = q.gate.change(&dry("only=v1")).await.unwrap();
    assert!(matches!(&answer, Changed::Would(s) if s.rev == 1), "{answer:?}");
    assert!(matches!(
        q.gate.change(&dry("only=v9")).await.unwrap(),
        Changed::Refused { .. }
    ));
    assert_eq!(q.history().await.len(), 1);
    assert_eq!(q.human().await, "active=v1 paused=0");
    // The same operation for real is not "already done".
    assert_eq!(changed(q.gate.change(&request("op-1", "only=v2")).await.unwrap()).0, 2);
}

#[tokio::test]
async fn who_names_the_percent_means_it() {
    let q = TestQueue::seeded().await;
    q.edit("candidate v2 percent 10").await;
    // As a raw edit this would start at 0: there the 10 could be yesterday's.
    let answer = q.gate.change(&request("a", "candidate=v3 percent=10")).await.unwrap();
    assert_eq!(changed(answer), (3, "v1 v3@10".into()));
    let answer = q.gate.change(&request("b", "candidate=v2")).await.unwrap();
    assert_eq!(changed(answer), (4, "v1 v2@0".into()));
    let answer = q.gate.change(&request("c", "candidate=")).await.unwrap();
    assert_eq!(changed(answer), (5, "v1".into()));
}

#[tokio::test]
async fn a_lost_state_begins_again_above_history_and_only_on_an_explicit_active() {
    let q = TestQueue::seeded().await;
    changed(q.gate.change(&request("op-1", "only=v2")).await.unwrap());
    q.edit("candidate v3 percent 10").await;
    let state = q.key(Key::GateState);
    q.cmd::<()>(&["DEL", &state]).await;

    for vague in ["paused=1", "candidate=v3 percent=50", "active=v9"] {
        assert_eq!(
            q.gate.change(&request("x", vague)).await.unwrap(),
            Changed::Unsealed,
            "{vague}"
        );
    }
    assert!(matches!(
        q.gate.hold_if_regressed(3, "x").await.unwrap(),
        Hold::Unsealed
    ));
    let answer = q.gate.change(&request("op-2", "active=v1")).await.unwrap();
    assert_eq!(changed(answer), (4, "v1".into()));
    assert_eq!(q.human().await, "active=v1 paused=0");
    let entry = &q.changes().await[0];
    assert_eq!(
        (entry.before.as_str(), json(&entry.after)),
        ("", json!({ "active": "v1", "paused": "0" }))
    );

    // The flip that made the lost state is wanted again, not "already done".
    q.cmd::<()>(&["DEL", &state]).await;
    assert_eq!(
        changed(q.gate.change(&request("op-1", "only=v2")).await.unwrap()),
        (5, "v2".into())
    );
    assert!(matches!(q.found().await, Found::Settled(s) if s.rev == 5));
}

#[tokio::test]
async fn a_later_revision_of_the_same_history_is_fine_even_300_back() {
    let q = TestQueue::seeded().await;
    let first = q.seal().await.1;
    for n in 0..150 {
        q.edit(&format!("candidate v2 percent {}", n % 90 + 1)).await;
        q.hset("typo 1").await;
        q.seal().await; // refusals lie between the revisions
        q.edit("only v1").await;
    }
    let answer = q.gate.hold_if_regressed(first.rev, &first.digest).await.unwrap();
    assert!(matches!(answer, Hold::Fine(read) if matches!(&read.found, Found::Settled(s) if s.rev == 301)));
    let last = q.seal().await.1;
    let same = q.gate.hold_if_regressed(last.rev, &last.digest).await.unwrap();
    assert!(matches!(same, Hold::Fine(_)));
}

#[tokio::test]
async fn a_lower_revision_is_held_above_the_one_obeyed() {
    let q = TestQueue::seeded().await;
    let past = Past::save(&q).await;
    q.edit("only v2").await;
    q.edit("only v3").await;
    let obeyed = q.seal().await.1;
    past.restore(&q).await;
    let sealed = held(q.gate.hold_if_regressed(obeyed.rev, &obeyed.digest).await.unwrap());
    assert_eq!((sealed.rev, show(&sealed.gate)), (obeyed.rev + 1, "v1 paused".into()));
    assert_eq!(q.human().await, "active=v1 paused=1");
    let entry = &q.changes().await[0];
    assert_eq!(entry.source, "regress");
    assert!(entry.why.contains("revision 3"), "{}", entry.why);
    assert_eq!(json(&entry.before), json!({ "active": "v1", "paused": "0" }));
}

#[tokio::test]
async fn the_same_revision_with_another_digest_is_held() {
    let q = TestQueue::seeded().await;
    let past = Past::save(&q).await;
    q.edit("only v2").await;
    let obeyed = q.seal().await.1;
    past.restore(&q).await;
    q.edit("only v3").await; // another revision 2
    let sealed = held(q.gate.hold_if_regressed(obeyed.rev, &obeyed.digest).await.unwrap());
    assert_eq!((sealed.rev, show(&sealed.gate)), (3, "v3 paused".into()));
}

#[tokio::test]
async fn a_higher_revision_whose_history_lacks_or_contradicts_mine_is_held() {
    for lacks in [false, true] {
        let q = TestQueue::seeded().await;
        let past = Past::save(&q).await;
        q.edit("only v2").await;
        let obeyed = q.seal().await.1;
        past.restore(&q).await;
        q.edit("only v3").await;
        q.edit("only v1").await;
        if lacks {
            let history = q.key(Key::History);
            q.cmd::<()>(&["XTRIM", &history, "MAXLEN", "1"]).await;
        }
        let sealed = held(q.gate.hold_if_regressed(obeyed.rev, &obeyed.digest).await.unwrap());
        assert_eq!(
            (sealed.rev, show(&sealed.gate)),
            (4, "v1 paused".into()),
            "lacks: {lacks}"
        );
    }
}

#[tokio::test]
async fn a_hold_makes_a_new_revision_even_of_a_paused_gate() {
    let q = TestQueue::seeded().await;
    q.edit("paused 1").await;
    let past = Past::save(&q).await;
    q.edit("only v2").await;
    let obeyed = q.seal().await.1;
    past.restore(&q).await;
    let sealed = held(q.gate.hold_if_regressed(obeyed.rev, &obeyed.digest).await.unwrap());
    assert_eq!((sealed.rev, show(&sealed.gate)), (4, "v1 paused".into()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_fleet_is_held_once_and_resumed_once() {
    let q = TestQueue::seeded().await;
    let past = Past::save(&q).await;
    q.edit("only v2").await;
    let older = q.seal().await.1;
    q.edit("only v3").await;
    let newer = q.seal().await.1;
    past.restore(&q).await;

    let mut workers = JoinSet::new();
    for _ in 0..20 {
        let store = Store::new(&ConnectOptions::new(q.server.url())).unwrap();
        let (gate, mine) = (GateStore::new(&store, &q.queue), newer.clone());
        workers.spawn(async move { gate.hold_if_regressed(mine.rev, &mine.digest).await.unwrap() });
    }
    let holds = workers.join_all().await;
    assert_eq!(holds.iter().filter(|h| matches!(h, Hold::Held(_))).count(), 1);
    assert_eq!(q.seal().await.1.rev, newer.rev + 1);

    // A worker that comes back after the person has resumed does not hold the queue again.
    assert_eq!(q.edit("paused 0").await, "v1");
    for mine in [&older, &newer] {
        let answer = q.gate.hold_if_regressed(mine.rev, &mine.digest).await.unwrap();
        assert!(matches!(answer, Hold::Fine(_)), "{answer:?}");
    }
    assert_eq!(show(&q.seal().await.1.gate), "v1");

    // But a second regress is one.
    let second = Past::save(&q).await;
    q.edit("only v2").await;
    let mine = q.seal().await.1;
    second.restore(&q).await;
    assert_eq!(
        held(q.gate.hold_if_regressed(mine.rev, &mine.digest).await.unwrap()).rev,
        mine.rev + 1
    );
}

#[tokio::test]
async fn a_worker_that_sees_the_gate_go_back_obeys_the_hold_until_a_person_resumes() {
    let q = TestQueue::seeded().await;
    let view = GateView::new(&q.store, &q.queue);
    let link = q.store.link().await.unwrap();
    let look = async || match view.obey(q.gate.read(&link, None).await.unwrap()).await.unwrap() {
        Verdict::Obey(obeyed) => (obeyed.ruling.rev, obeyed.ruling.gate.to_string()),
        Verdict::Missing => (0, String::new()),
    };
    let past = Past::save(&q).await;
    q.edit("only v2").await;
    assert_eq!(look().await, (2, "v2 active".into()));
    past.restore(&q).await;
    assert_eq!(look().await, (3, "v1 active, paused".into()));
    assert_eq!(look().await, (3, "v1 active, paused".into()));
    q.hset("paused 0").await;
    assert_eq!(look().await, (4, "v1 active".into()));
    let state = q.key(Key::GateState);
    q.cmd::<()>(&["DEL", &state]).await;
    assert_eq!(look().await, (0, String::new()));
}

#[tokio::test]
async fn a_second_worker_or_version_does_not_change_the_gate() {
    let q = TestQueue::seeded().await;
    for versions in [["v1", "v2"], ["v9", "v8"]] {
        let joined = q.join(&SessionId::random(), &versions).await;
        assert_eq!(joined, Joined::Yes { seeded: false });
    }
    let (word, sealed) = q.seal().await;
    assert_eq!((word, sealed.rev, show(&sealed.gate)), (SealWord::Same, 1, "v1".into()));
    assert_eq!(q.edit("candidate v9 percent 1").await, "v1 v9@1");
}

#[tokio::test]
async fn a_lost_gate_or_gate_state_is_not_seeded_again() {
    let q = TestQueue::seeded().await;
    q.edit("only v2").await;
    for key in [Key::Gate, Key::GateState] {
        let key = q.key(key);
        q.cmd::<()>(&["DEL", &key]).await;
        assert_eq!(
            q.join(&SessionId::random(), &["v3"]).await,
            Joined::Yes { seeded: false }
        );
    }
    assert_eq!(q.found().await, Found::Missing);
}

#[tokio::test]
async fn nothing_is_seeded_where_a_group_or_a_history_exists() {
    for (made_by_hand, expected) in [
        (
            vec![
                "XGROUP",
                "CREATE",
                "sb:stream:{shop:send_email}",
                "workers",
                "0",
                "MKSTREAM",
            ],
            false,
        ),
        (
            vec![
                "XADD",
                "sb:history:{shop:send_email}",
                "*",
                "kind",
                "change",
                "rev",
                "7",
            ],
            false,
        ),
        (vec!["XADD", "sb:stream:{shop:send_email}", "*", "payload", "1"], true),
    ] {
        let q = TestQueue::empty().await;
        q.cmd::<()>(&made_by_hand).await;
        let joined = q.join(&q.session, &["v1"]).await;
        assert_eq!(joined, Joined::Yes { seeded: expected }, "{made_by_hand:?}");
    }
}

#[tokio::test]
async fn a_gate_written_before_the_first_worker_is_judged_as_an_edit() {
    let q = TestQueue::empty().await;
    q.hset("active v2 paused 1 by alice").await;
    assert_eq!(q.join(&q.session, &["v1", "v2"]).await, Joined::Yes { seeded: true });
    assert_eq!(q.found().await, Found::Edited);
    assert_eq!(show(&q.seal().await.1.gate), "v2 paused");
    let changes = q.changes().await;
    assert_eq!((changes[0].by.as_str(), changes[1].source.as_str()), ("alice", "seed"));

    let q = TestQueue::empty().await;
    q.hset("active v2 typo 1").await;
    q.join(&q.session, &["v1", "v2"]).await;
    assert_eq!(q.seal().await.0, SealWord::Refused);
    assert_eq!(q.human().await, "active=v1 paused=0");

    let q = TestQueue::empty().await;
    let gate = q.key(Key::Gate);
    q.cmd::<()>(&["SET", &gate, "v2"]).await;
    q.join(&q.session, &["v1", "v2"]).await;
    assert_eq!(show(&q.seal().await.1.gate), "v1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn twenty_first_workers_seed_once() {
    let q = TestQueue::empty().await;
    let seeded = join_20(&q).await;
    assert_eq!(
        seeded
            .iter()
            .filter(|j| matches!(j, Joined::Yes { seeded: true }))
            .count(),
        1
    );
    assert_eq!(q.history().await.len(), 1);
    eventually("all are on record", Duration::from_secs(5), async || {
        q.sessions.list().await.unwrap().len() == 20
    })
    .await;
}

async fn join_20(q: &TestQueue) -> Vec<Joined> {
    let mut joins = JoinSet::new();
    for n in 0..20 {
        let store = Store::new(&ConnectOptions::new(q.server.url())).unwrap();
        let sessions = SessionStore::new(&store, &q.queue);
        let record = SessionRecord {
            host: "here".into(),
            pid: n,
            build: "b1".into(),
            versions: vec![format!("v{n}").parse().unwrap()],
            concurrency: 1,
            started_ms: 0,
        };
        joins.spawn(async move {
            let joined = sessions.join(&SessionId::random(), crate::queue::LEASE, &record).await;
            joined.unwrap()
        });
    }
    joins.join_all().await
}
