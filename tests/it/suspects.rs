//! suspects.lua and reap.lua: who is blamed when a process dies, and what becomes of it.

use std::collections::BTreeMap;

use switchback_common::{
    SessionId, StreamId,
    store::{
        keyspace::Key,
        session::{Lives, Reaped, Suspect},
    },
};

use crate::queue::TestQueue;

type Row = BTreeMap<Vec<u8>, Vec<u8>>;

fn get(row: &Row, name: &str) -> String {
    row.get(name.as_bytes())
        .map_or_else(String::new, |v| String::from_utf8(v.clone()).unwrap())
}

/// `payload`, `deaths` and `recovered` of what lies in a stream, sorted.
async fn rows(q: &TestQueue, stream: &str) -> Vec<(String, String, String)> {
    let mut rows: Vec<_> = q
        .entries(stream)
        .await
        .iter()
        .map(|(_, f)| (get(f, "payload"), get(f, "deaths"), get(f, "recovered")))
        .collect();
    rows.sort();
    rows
}

fn row(payload: &str, deaths: &str, recovered: &str) -> (String, String, String) {
    (payload.into(), deaths.into(), recovered.into())
}

async fn add(q: &TestQueue, stream: &str, payload: &str, deaths: &str) {
    q.cmd::<()>(&["XADD", stream, "*", "payload", payload, "deaths", deaths])
        .await;
}

fn beside(stream: &str, entry: StreamId) -> Suspect {
    Suspect {
        stream: stream.to_owned(),
        entry,
        alone: None,
    }
}

fn alone(stream: &str, entry: StreamId) -> Suspect {
    Suspect {
        alone: Some("v2".parse().unwrap()),
        ..beside(stream, entry)
    }
}

async fn session(q: &TestQueue) -> SessionId {
    let session = SessionId::random();
    q.join(&session, &["v1"]).await;
    session
}

async fn die(q: &TestQueue, session: &SessionId) {
    q.cmd::<()>(&["DEL", &q.lease(session)]).await;
}

async fn reap(q: &TestQueue, lost: &SessionId, stream: &str) -> Reaped {
    q.sessions.reap(lost, &q.session, stream).await.unwrap()
}

async fn name(q: &TestQueue, session: &SessionId, number: u64, names: &[Suspect]) -> Lives {
    q.sessions.name_suspects(session, number, names).await.unwrap()
}

fn moved(moved: u64, poison: u64) -> Reaped {
    Reaped::Moved {
        moved,
        poison,
        more: false,
    }
}

#[tokio::test]
async fn without_names_everything_that_may_have_started_is_a_suspect() {
    let q = TestQueue::seeded().await;
    let (main, suspects) = (q.key(Key::Stream), q.key(Key::Suspect));
    q.add(&main, 2).await;
    add(&q, &suspects, "waits", "1").await;
    add(&q, &suspects, "waits long", "7").await;
    let lost = session(&q).await;
    q.claim(&lost, &main, 9).await;
    q.claim(&lost, &suspects, 9).await;
    die(&q, &lost).await;
    assert_eq!(reap(&q, &lost, &main).await, moved(2, 0));
    assert_eq!(reap(&q, &lost, &suspects).await, moved(2, 0));
    // Suspects are named before they start: those that were not had not started.
    assert_eq!(
        rows(&q, &suspects).await,
        [
            row("0", "1", "1"),
            row("1", "1", "1"),
            row("waits", "1", "1"),
            row("waits long", "7", "1")
        ]
    );
    assert_eq!(q.len(&q.key(Key::Head)).await, 0);
}

#[tokio::test]
async fn named_suspects_are_blamed_and_nobody_else() {
    let q = TestQueue::seeded().await;
    let (main, suspects, lane) = (q.key(Key::Stream), q.key(Key::Suspect), q.lane("v2"));
    q.add(&main, 2).await;
    for payload in ["ran", "waited"] {
        add(&q, &suspects, payload, "1").await;
    }
    add(&q, &lane, "handed over", "1").await;
    let lost = session(&q).await;
    let tasks = q.claim_ids(&lost, &main, 9).await;
    let ids = q.claim_ids(&lost, &suspects, 9).await;
    let handed = q.claim_ids(&lost, &lane, 9).await;
    // An entry of another stream may have the same id.
    let names = [
        beside(&suspects, ids[0]),
        beside(&lane, handed[0]),
        beside(&lane, tasks[0]),
    ];
    assert_eq!(name(&q, &lost, 1, &names).await, Lives::Yes);
    die(&q, &lost).await;
    assert_eq!(reap(&q, &lost, &main).await, moved(2, 0));
    assert_eq!(reap(&q, &lost, &suspects).await, moved(2, 0));
    assert_eq!(reap(&q, &lost, &lane).await, moved(1, 0));
    assert_eq!(
        rows(&q, &q.key(Key::Head)).await,
        [row("0", "", "1"), row("1", "", "1")],
        "ordinary tasks are exonerated"
    );
    assert_eq!(
        rows(&q, &suspects).await,
        [
            row("handed over", "2", "1"),
            row("ran", "2", "1"),
            row("waited", "1", "1")
        ]
    );
}

#[tokio::test]
async fn only_a_death_alone_makes_a_dead_letter() {
    let q = TestQueue::seeded().await;
    let (main, suspects, dead) = (q.key(Key::Stream), q.key(Key::Suspect), q.key(Key::Dead));
    for (payload, deaths) in [("often", "7"), ("poison", "2")] {
        add(&q, &suspects, payload, deaths).await;
    }
    let first = session(&q).await;
    let ids = q.claim_ids(&first, &suspects, 9).await;
    // Beside others, however often: its third death is none of its own.
    name(&q, &first, 1, &[beside(&suspects, ids[0]), beside(&suspects, ids[1])]).await;
    die(&q, &first).await;
    assert_eq!(reap(&q, &first, &suspects).await, moved(2, 0));
    assert_eq!(
        rows(&q, &suspects).await,
        [row("often", "2", "1"), row("poison", "2", "1")]
    );

    let second = session(&q).await;
    q.add(&main, 1).await;
    q.claim(&second, &main, 1).await;
    let ids = q.claim_ids(&second, &suspects, 9).await;
    // `often` is about to run beside others and waits until the other is no longer alone.
    let names = [beside(&suspects, ids[0]), alone(&suspects, ids[1])];
    name(&q, &second, 1, &names).await;
    die(&q, &second).await;
    assert_eq!(reap(&q, &second, &suspects).await, moved(2, 1));
    assert_eq!(reap(&q, &second, &main).await, moved(1, 0));
    assert_eq!(rows(&q, &q.key(Key::Head)).await, [row("0", "", "1")]);
    assert_eq!(rows(&q, &suspects).await, [row("often", "2", "2")]);
    let letters = q.entries(&dead).await;
    assert_eq!(letters.len(), 1);
    let letter = &letters[0].1;
    let expected = [
        ("payload", "poison"),
        ("deaths", "3"),
        ("recovered", "2"),
        ("dead_reason", "poison"),
        ("dead_version", "v2"),
        ("dead_session", second.as_str()),
    ];
    for (name, value) in expected {
        assert_eq!(get(letter, name), value, "{name}");
    }
    assert!(get(letter, "dead_error").contains("died 3 times"), "{letter:?}");
    let now_ms = switchback_common::store::inspect::time_us(&q.store).await.unwrap() / 1_000;
    let at: u64 = get(letter, "dead_at").parse().unwrap();
    assert!(at <= now_ms && now_ms - at < 600_000, "{at} {now_ms}");
    let entry = q.log().await.into_iter().find(|e| e.kind == "poison").unwrap();
    assert_eq!(
        (&entry.session, &entry.text),
        (&second, &format!("{}={}", get(letter, "id"), ids[1]))
    );
}

#[tokio::test]
async fn a_poison_task_stays_pending_while_the_dead_letters_cannot_be_written() {
    let q = TestQueue::seeded().await;
    let (suspects, dead) = (q.key(Key::Suspect), q.key(Key::Dead));
    add(&q, &suspects, "poison", "2").await;
    let lost = session(&q).await;
    let ids = q.claim_ids(&lost, &suspects, 9).await;
    name(&q, &lost, 1, &[alone(&suspects, ids[0])]).await;
    die(&q, &lost).await;
    q.cmd::<()>(&["SET", &dead, "oops"]).await;
    q.sessions.reap(&lost, &q.session, &suspects).await.unwrap_err();
    assert_eq!(q.pending(&suspects).await, 1);
    q.cmd::<()>(&["DEL", &dead]).await;
    q.cmd::<()>(&["CONFIG", "SET", "maxmemory", "1"]).await;
    assert_eq!(reap(&q, &lost, &suspects).await, moved(1, 1));
    assert_eq!((q.len(&dead).await, q.len(&suspects).await), (1, 0));
    assert_eq!(reap(&q, &lost, &suspects).await, moved(0, 0), "a step sent again");
    assert_eq!(q.len(&dead).await, 1);
}

#[tokio::test]
async fn a_list_that_was_overtaken_or_comes_too_late_changes_nothing() {
    let q = TestQueue::seeded().await;
    let suspects = q.key(Key::Suspect);
    add(&q, &suspects, "poison", "2").await;
    let lost = session(&q).await;
    let ids = q.claim_ids(&lost, &suspects, 9).await;
    let it = [alone(&suspects, ids[0])];
    assert_eq!(name(&q, &lost, 9, &it).await, Lives::Yes);
    assert_eq!(name(&q, &lost, 10, &[]).await, Lives::Yes, "it has ended");
    assert_eq!(name(&q, &lost, 9, &it).await, Lives::Yes, "sent again, late");
    die(&q, &lost).await;
    assert_eq!(reap(&q, &lost, &q.key(Key::Head)).await, moved(0, 0));
    assert_eq!(name(&q, &lost, 11, &it).await, Lives::Lost, "its tasks are given away");
    assert_eq!(reap(&q, &lost, &suspects).await, moved(1, 0));
    assert_eq!(rows(&q, &suspects).await, [row("poison", "2", "1")]);
    q.sessions.forget(&lost).await.unwrap();
    assert_eq!(name(&q, &lost, 12, &it).await, Lives::Lost);
    let fields: Vec<String> = q.cmd(&["HKEYS", &q.key(Key::Sessions)]).await;
    assert_eq!(fields, [q.session.as_str()]);
}

#[tokio::test]
async fn whoever_said_goodbye_or_never_joined_leaves_no_suspects() {
    let q = TestQueue::seeded().await;
    let (main, head) = (q.key(Key::Stream), q.key(Key::Head));
    q.add(&main, 2).await;
    let left = session(&q).await;
    q.claim(&left, &main, 1).await;
    q.sessions
        .leave(&left, std::slice::from_ref(&main), "stop")
        .await
        .unwrap();
    let ghost = SessionId::random();
    q.claim(&ghost, &main, 1).await;
    for lost in [left, ghost] {
        assert_eq!(reap(&q, &lost, &main).await, moved(1, 0));
    }
    assert_eq!(rows(&q, &head).await, [row("0", "", "1"), row("1", "", "1")]);
}

#[tokio::test]
async fn a_session_that_leaves_takes_its_names_along() {
    let q = TestQueue::seeded().await;
    let it = session(&q).await;
    name(&q, &it, 1, &[]).await;
    q.sessions.leave(&it, &[q.key(Key::Stream)], "stop").await.unwrap();
    let fields: Vec<String> = q.cmd(&["HKEYS", &q.key(Key::Sessions)]).await;
    assert_eq!(fields, [q.session.as_str()]);
}
