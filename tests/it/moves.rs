//! promote.lua, sweep.lua and reap.lua (who is blamed: `suspects.rs`): tasks change places, and none is lost, run twice or renamed on the way.

use std::time::Duration;

use switchback_common::{
    SessionId, StreamId, TaskId,
    id::stream_salt,
    store::{
        inspect,
        keyspace::Key,
        moves::{promote, sweep},
        session::{Lives, Reaped},
    },
};

use crate::queue::TestQueue;

/// Entry ids at the borders of what a Lua number and a task id can hold.
const BORDERS: &[(u64, u64)] = &[
    (1, 1),
    (2, (1 << 30) - 1),
    (2, 1 << 30),
    (3, (1 << 42) - 1),
    (4, 1 << 42),
    (5, (1 << 53) - 1),
    (6, (1 << 53) + 1),
    (7, 999_999_999_999_999_999),
    (8, u64::MAX),
    ((1 << 32) - 1, 7),
    (1 << 32, 7),
    ((1 << 48) - 1, 5),
    ((1 << 48) + 3, 5),
    ((1 << 53) + 1, 3),
    (u64::MAX - 1, u64::MAX - 1),
];

async fn add_borders(q: &TestQueue, stream: &str) {
    for (ms, seq) in BORDERS {
        q.cmd::<()>(&["XADD", stream, &format!("{ms}-{seq}"), "payload", "1"])
            .await;
    }
}

/// The ids that Rust derives for [`BORDERS`], and when such tasks were enqueued.
fn expected(stream: &str) -> Vec<(String, String)> {
    let salt = stream_salt(stream);
    let id = |&(ms, seq): &(u64, u64)| (TaskId::of_entry(salt, StreamId { ms, seq }).to_string(), ms.to_string());
    BORDERS.iter().map(id).collect()
}

async fn ids_and_times(q: &TestQueue, stream: &str) -> Vec<(String, String)> {
    let entries = q.entries(stream).await;
    let get = |fields: &std::collections::BTreeMap<Vec<u8>, Vec<u8>>, name: &str| {
        String::from_utf8(fields[name.as_bytes()].clone()).unwrap()
    };
    entries
        .iter()
        .map(|(_, f)| (get(f, "id"), get(f, "enqueued_at")))
        .collect()
}

fn moved(count: u64, more: bool) -> Reaped {
    Reaped::Moved {
        moved: count,
        poison: 0,
        more,
    }
}

async fn delay(q: &TestQueue, task: &str, due_ms: u64, packed: &[u8]) {
    q.cmd::<()>(&["ZADD", &q.key(Key::Delayed), &due_ms.to_string(), task])
        .await;
    let envelope = q.key(Key::Envelope);
    q.bytes_cmd::<()>(&[b"HSET", envelope.as_bytes(), task.as_bytes(), packed])
        .await;
}

/// A session that joined, claimed `count` of `stream` and lost its lease.
async fn lost(q: &TestQueue, stream: &str, count: usize) -> SessionId {
    let lost = SessionId::random();
    q.join(&lost, &["v1"]).await;
    assert_eq!(q.claim(&lost, stream, count).await.len(), count);
    q.cmd::<()>(&["DEL", &q.lease(&lost)]).await;
    lost
}

async fn consumers(q: &TestQueue, stream: &str) -> Vec<String> {
    let found = q.sessions.consumers(stream).await.unwrap();
    found.into_iter().map(|c| c.session.to_string()).collect()
}

// --- promote

#[tokio::test]
async fn only_what_is_due_is_promoted_and_the_next_wait_is_told() {
    let q = TestQueue::seeded().await;
    let now = inspect::time_us(&q.store).await.unwrap() / 1_000;
    delay(&q, "late", 1, b"7:payload1:12:id4:late").await;
    delay(&q, "now", now, b"7:payload1:22:id3:now").await;
    delay(&q, "soon", now + 60_000, b"7:payload1:32:id4:soon").await;
    let promoted = promote(&q.store, &q.queue).await.unwrap();
    let next = promoted.next.unwrap();
    assert_eq!(promoted.moved, 2);
    assert!(
        next > Duration::from_secs(30) && next <= Duration::from_secs(60),
        "{next:?}"
    );
    assert_eq!(q.payloads(&q.key(Key::Stream)).await, ["1", "2"]);
    let left: Vec<String> = q.cmd(&["HKEYS", &q.key(Key::Envelope)]).await;
    assert_eq!(left, ["soon"]);
    assert_eq!(promote(&q.store, &q.queue).await.unwrap().moved, 0);
}

#[tokio::test]
async fn nothing_delayed_means_nothing_to_wait_for() {
    let q = TestQueue::seeded().await;
    let promoted = promote(&q.store, &q.queue).await.unwrap();
    assert_eq!((promoted.moved, promoted.next), (0, None));
}

#[tokio::test]
async fn promoting_is_bounded_in_count_and_bytes() {
    let q = TestQueue::seeded().await;
    for n in 0..130 {
        delay(&q, &format!("t{n:03}"), 1 + n, b"7:payload1:1").await;
    }
    let first = promote(&q.store, &q.queue).await.unwrap();
    assert_eq!((first.moved, first.next), (100, Some(Duration::ZERO)));
    assert_eq!(promote(&q.store, &q.queue).await.unwrap().moved, 30);

    let big = format!("7:payload3000000:{}", "1".repeat(3_000_000));
    for n in 0..4 {
        delay(&q, &format!("big{n}"), 1, big.as_bytes()).await;
    }
    assert_eq!(promote(&q.store, &q.queue).await.unwrap().moved, 2);
}

#[tokio::test]
async fn an_envelope_lost_or_unreadable_blocks_nobody_and_is_not_dropped() {
    let q = TestQueue::seeded().await;
    for (n, junk) in ["", "junk", "7:payload", "1:a1:b1:c"].into_iter().enumerate() {
        delay(&q, &format!("junk{n}"), 1, junk.as_bytes()).await;
    }
    q.cmd::<()>(&["ZADD", &q.key(Key::Delayed), "1", "lost"]).await;
    delay(&q, "good", 2, b"7:payload1:1").await;
    assert_eq!(promote(&q.store, &q.queue).await.unwrap().moved, 6);
    let main = q.key(Key::Stream);
    let entries = q.entries(&main).await;
    assert_eq!(entries.len(), 6);
    let of = |id: &[u8]| {
        entries
            .iter()
            .find(|(_, f)| f.get(b"id".as_slice()).is_some_and(|v| v == id))
            .unwrap()
    };
    // Without a payload they are malformed, and a worker makes dead letters of them.
    assert_eq!(of(b"lost").1[b"envelope".as_slice()], b"");
    assert_eq!(of(b"junk3").1[b"envelope".as_slice()], b"1:a1:b1:c");
    assert_eq!(q.payloads(&main).await.iter().filter(|p| *p == "1").count(), 1);
}

// --- sweep

#[tokio::test]
async fn a_sweep_brings_waiting_tasks_back_in_order_with_the_ids_they_had() {
    let q = TestQueue::seeded().await;
    let lane = q.lane("v2");
    add_borders(&q, &lane).await;
    let swept = sweep(&q.store, &q.queue, &"v2".parse().unwrap(), &q.session)
        .await
        .unwrap();
    assert_eq!(swept, BORDERS.len() as u64);
    assert_eq!(ids_and_times(&q, &q.key(Key::Head)).await, expected(&lane));
    assert_eq!((q.len(&lane).await, q.pending(&lane).await), (0, 0));
}

#[tokio::test]
async fn a_sweep_leaves_held_and_settled_tasks_alone() {
    let q = TestQueue::seeded().await;
    let lane = q.lane("v2");
    q.add(&lane, 6).await;
    let other = SessionId::random();
    q.join(&other, &["v2"]).await;
    let ids = q.claim_ids(&other, &lane, 4).await;
    for id in &ids[..2] {
        q.cmd::<()>(&["XACK", &lane, "workers", &id.to_string()]).await; // done, and retained
    }
    // The sweeping session may itself hold some.
    let mine = q.claim_ids(&q.session, &lane, 1).await;
    let version = "v2".parse().unwrap();
    assert_eq!(sweep(&q.store, &q.queue, &version, &q.session).await.unwrap(), 1);
    assert_eq!(q.payloads(&q.key(Key::Head)).await, ["5"]);
    assert_eq!((q.len(&lane).await, q.pending(&lane).await), (5, 3));
    assert_eq!(mine.len(), 1);
    assert_eq!(sweep(&q.store, &q.queue, &version, &q.session).await.unwrap(), 0);
}

#[tokio::test]
async fn a_sweep_is_bounded_in_count_and_bytes() {
    let q = TestQueue::seeded().await;
    let lane = q.lane("v2");
    let version = "v2".parse().unwrap();
    q.add(&lane, 620).await;
    assert_eq!(sweep(&q.store, &q.queue, &version, &q.session).await.unwrap(), 500);
    assert_eq!(sweep(&q.store, &q.queue, &version, &q.session).await.unwrap(), 120);
    let big = "1".repeat(1_000_000);
    for _ in 0..30 {
        q.cmd::<()>(&["XADD", &lane, "*", "payload", &big]).await;
    }
    let swept = sweep(&q.store, &q.queue, &version, &q.session).await.unwrap();
    assert!((5..=14).contains(&swept), "{swept}");
}

#[tokio::test]
async fn a_lane_that_does_not_exist_is_swept_already() {
    let q = TestQueue::seeded().await;
    let swept = sweep(&q.store, &q.queue, &"v9".parse().unwrap(), &q.session)
        .await
        .unwrap();
    assert_eq!(swept, 0);
}

// --- reap

#[tokio::test]
async fn a_living_session_is_not_reaped() {
    let q = TestQueue::seeded().await;
    let main = q.key(Key::Stream);
    q.add(&main, 2).await;
    q.claim(&q.session, &main, 2).await;
    let reaper = SessionId::random();
    assert_eq!(
        q.sessions.reap(&q.session, &reaper, &main).await.unwrap(),
        Reaped::Alive
    );
    assert_eq!((q.pending(&main).await, q.len(&q.key(Key::Head)).await), (2, 0));
    assert!(!q.sessions.list().await.unwrap()[0].reaping);
}

#[tokio::test]
async fn a_lost_sessions_tasks_move_and_say_that_they_were_recovered() {
    let q = TestQueue::seeded().await;
    let main = q.key(Key::Stream);
    q.add(&main, 1).await;
    q.cmd::<()>(&[
        "XADD",
        &main,
        "*",
        "payload",
        "x",
        "recovered",
        "2",
        "id",
        "mine",
        "note",
        "kept",
    ])
    .await;
    q.cmd::<()>(&[
        "XADD",
        &main,
        "*",
        "payload",
        "y",
        "recovered",
        "odd",
        "id",
        "first",
        "id",
        "last",
    ])
    .await;
    let lost = lost(&q, &main, 3).await;
    assert_eq!(
        q.sessions.reap(&lost, &q.session, &main).await.unwrap(),
        moved(3, false)
    );
    assert_eq!((q.pending(&main).await, q.len(&main).await), (0, 0));

    let entries = q.entries(&q.key(Key::Suspect)).await;
    let field = |n: usize, name: &str| String::from_utf8_lossy(&entries[n].1[name.as_bytes()]).into_owned();
    assert_eq!((field(0, "payload"), field(0, "recovered")), ("0".into(), "1".into()));
    assert_eq!((field(1, "payload"), field(1, "recovered")), ("x".into(), "3".into()));
    assert_eq!((field(1, "id"), field(1, "note")), ("mine".into(), "kept".into()));
    assert_eq!((field(2, "recovered"), field(2, "id")), ("1".into(), "last".into()));

    let log = q.log().await;
    let kinds: Vec<&str> = log.iter().map(|e| e.kind.as_str()).collect();
    assert_eq!(kinds, ["joined", "joined", "reaping", "recovered"]);
    assert!(
        log[3].text.contains("mine=") && log[3].text.contains("last="),
        "{}",
        log[3].text
    );
    assert_eq!(log[3].session, lost);
}

#[tokio::test]
async fn a_recovered_task_keeps_the_id_its_first_place_gave_it() {
    let q = TestQueue::seeded().await;
    let main = q.key(Key::Stream);
    add_borders(&q, &main).await;
    let first = lost(&q, &main, BORDERS.len()).await;
    q.sessions.reap(&first, &q.session, &main).await.unwrap();
    let suspects = q.key(Key::Suspect);
    assert_eq!(ids_and_times(&q, &suspects).await, expected(&main));
    // And again, from the suspects to the suspects.
    let second = lost(&q, &suspects, BORDERS.len()).await;
    q.sessions.reap(&second, &q.session, &suspects).await.unwrap();
    assert_eq!(ids_and_times(&q, &suspects).await, expected(&main));
    let recovered = |f: &std::collections::BTreeMap<Vec<u8>, Vec<u8>>| f[b"recovered".as_slice()] == b"2";
    assert!(q.entries(&suspects).await.iter().all(|(_, f)| recovered(f)));
}

#[tokio::test]
async fn reaping_goes_in_bounded_steps_and_deletes_the_consumer_with_the_last() {
    let q = TestQueue::seeded().await;
    let main = q.key(Key::Stream);
    q.add(&main, 620).await;
    let lost = lost(&q, &main, 620).await;
    assert_eq!(
        q.sessions.reap(&lost, &q.session, &main).await.unwrap(),
        moved(500, true)
    );
    assert!(consumers(&q, &main).await.contains(&lost.to_string()));
    assert_eq!(
        q.sessions.reap(&lost, &q.session, &main).await.unwrap(),
        moved(120, false)
    );
    assert!(!consumers(&q, &main).await.contains(&lost.to_string()));
    assert_eq!(q.log().await.iter().filter(|e| e.kind == "reaping").count(), 1);

    let big = "1".repeat(3_000_000);
    for _ in 0..3 {
        q.cmd::<()>(&["XADD", &main, "*", "payload", &big]).await;
    }
    let lost = self::lost(&q, &main, 3).await;
    assert_eq!(q.sessions.reap(&lost, &q.session, &main).await.unwrap(), moved(2, true));
}

#[tokio::test]
async fn reaping_is_irrevocable() {
    let q = TestQueue::seeded().await;
    let main = q.key(Key::Stream);
    q.add(&main, 1).await;
    let lost = lost(&q, &main, 1).await;
    let link = q.store.link().await.unwrap();
    let renew = async || q.sessions.renew(&link, &lost, Duration::from_secs(60)).await.unwrap();
    assert_eq!(
        renew().await,
        Lives::Revived,
        "the lease ran out, but nobody has begun to reap"
    );
    q.cmd::<()>(&["DEL", &q.lease(&lost)]).await;
    q.sessions.reap(&lost, &q.session, &q.key(Key::Head)).await.unwrap(); // begins, and finds nothing there
    assert_eq!(renew().await, Lives::Lost);
    assert_eq!(
        q.sessions.reap(&lost, &q.session, &main).await.unwrap(),
        moved(1, false)
    );
    assert_eq!(renew().await, Lives::Lost);
    q.sessions.forget(&lost).await.unwrap();
    assert_eq!(renew().await, Lives::Lost);
    assert_eq!(q.sessions.publish(&lost, 1, "{}").await.unwrap(), Lives::Lost);
}

#[tokio::test]
async fn a_consumer_without_a_record_is_reaped_and_leaves_nothing_behind() {
    let q = TestQueue::seeded().await;
    let main = q.key(Key::Stream);
    q.add(&main, 3).await;
    q.cmd::<()>(&[
        "XREADGROUP",
        "GROUP",
        "workers",
        "bob: by hand",
        "COUNT",
        "3",
        "STREAMS",
        &main,
        ">",
    ])
    .await;
    let ghost = SessionId::from_found("bob: by hand");
    assert_eq!(
        q.sessions.reap(&ghost, &q.session, &main).await.unwrap(),
        moved(3, false)
    );
    assert_eq!(q.payloads(&q.key(Key::Head)).await, ["0", "1", "2"]);
    assert!(!consumers(&q, &main).await.contains(&ghost.to_string()));
    let fields: Vec<String> = q.cmd(&["HKEYS", &q.key(Key::Sessions)]).await;
    assert_eq!(fields, [q.session.as_str()]);
}

#[tokio::test]
async fn an_entry_that_somebody_deleted_is_only_written_down() {
    let q = TestQueue::seeded().await;
    let main = q.key(Key::Stream);
    q.add(&main, 2).await;
    let lost = lost(&q, &main, 2).await;
    let first = q.entries(&main).await[0].0.clone();
    q.cmd::<()>(&["XDEL", &main, &first]).await;
    assert_eq!(
        q.sessions.reap(&lost, &q.session, &main).await.unwrap(),
        moved(2, false)
    );
    assert_eq!(q.payloads(&q.key(Key::Suspect)).await, ["1"]);
    assert!(q.log().await.pop().unwrap().text.contains(&format!("?={first}")));
}

#[tokio::test]
async fn tasks_stay_pending_while_their_new_place_cannot_be_written() {
    let q = TestQueue::seeded().await;
    let (main, lane) = (q.key(Key::Stream), q.lane("v2"));
    let places = [q.key(Key::Head), q.key(Key::Suspect)];
    q.add(&main, 2).await;
    q.add(&lane, 2).await;
    let lost = lost(&q, &main, 2).await;
    for place in &places {
        q.cmd::<()>(&["DEL", place]).await;
        q.cmd::<()>(&["SET", place, "oops"]).await;
    }
    q.sessions.reap(&lost, &q.session, &main).await.unwrap_err();
    sweep(&q.store, &q.queue, &"v2".parse().unwrap(), &q.session)
        .await
        .unwrap_err();
    assert_eq!(
        (q.pending(&main).await, q.len(&main).await, q.len(&lane).await),
        (2, 2, 2)
    );
    q.cmd::<()>(&["DEL", &places[0], &places[1]]).await;
    assert_eq!(
        q.sessions.reap(&lost, &q.session, &main).await.unwrap(),
        moved(2, false)
    );
}

#[tokio::test]
async fn a_stream_without_a_group_keeps_nothing_else_from_being_recovered() {
    let q = TestQueue::seeded().await;
    let main = q.key(Key::Stream);
    q.add(&main, 1).await;
    let lost = lost(&q, &main, 1).await;
    q.cmd::<()>(&["DEL", &q.lane("v2")]).await;
    for (stream, expected) in [(q.lane("v2"), 0), (q.lane("v9"), 0), (main, 1)] {
        assert_eq!(
            q.sessions.reap(&lost, &q.session, &stream).await.unwrap(),
            moved(expected, false)
        );
    }
}

#[tokio::test]
async fn entries_with_thousands_of_fields_are_recovered_swept_and_promoted() {
    let q = TestQueue::seeded().await;
    let (main, lane) = (q.key(Key::Stream), q.lane("v2"));
    let names: Vec<String> = (0..6_000).map(|n| format!("f{n}")).collect();
    for stream in [&main, &lane] {
        let mut add = vec!["XADD", stream, "*", "payload", "1"];
        for name in &names {
            add.extend([name, "v"]);
        }
        q.cmd::<()>(&add).await;
    }
    let packed: String = names.iter().map(|n| format!("{}:{n}1:v", n.len())).collect();
    delay(&q, "t1", 1, format!("{packed}7:payload1:1").as_bytes()).await;

    let lost = lost(&q, &main, 1).await;
    assert_eq!(
        q.sessions.reap(&lost, &q.session, &main).await.unwrap(),
        moved(1, false)
    );
    assert_eq!(
        sweep(&q.store, &q.queue, &"v2".parse().unwrap(), &q.session)
            .await
            .unwrap(),
        1
    );
    assert_eq!(promote(&q.store, &q.queue).await.unwrap().moved, 1);
    let ends = |f: &[u8]| f.ends_with(b"5:f59991:v");
    for (stream, count) in [(q.key(Key::Suspect), 1), (q.key(Key::Head), 1), (main, 1)] {
        let entries = q.entries(&stream).await;
        assert_eq!(entries.len(), count);
        assert!(
            entries
                .iter()
                .all(|(_, f)| f[b"payload".as_slice()] == b"1" && ends(&f[b"rest".as_slice()]))
        );
    }
}

#[tokio::test]
async fn a_full_redis_still_recovers_and_sweeps() {
    let q = TestQueue::seeded().await;
    let main = q.key(Key::Stream);
    q.add(&main, 1).await;
    q.add(&q.lane("v2"), 1).await;
    let lost = lost(&q, &main, 1).await;
    q.cmd::<()>(&["CONFIG", "SET", "maxmemory", "1"]).await;
    assert_eq!(
        q.sessions.reap(&lost, &q.session, &main).await.unwrap(),
        moved(1, false)
    );
    assert_eq!(
        sweep(&q.store, &q.queue, &"v2".parse().unwrap(), &q.session)
            .await
            .unwrap(),
        1
    );
}
