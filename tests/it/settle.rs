//! settle.lua: a batch of outcomes takes effect once, whole, and under a live lease only.

use std::collections::BTreeMap;

use switchback_common::{
    SessionId, StreamId,
    store::{
        inspect,
        keyspace::Key,
        settle::{Batch, DoneGroup, Fate, Settled, Settler, Single},
    },
};

use crate::queue::TestQueue;

const MAIN: usize = 0;
const HEAD: usize = 1;
const LANE: usize = 2;

async fn settler(q: &TestQueue, session: &SessionId) -> Settler {
    let streams = vec![q.key(Key::Stream), q.key(Key::Head), q.lane("v2")];
    Settler::new(&q.store, &q.queue, session, streams).await.unwrap()
}

fn done(stream: usize, entries: &[StreamId]) -> Batch {
    Batch {
        done: vec![DoneGroup {
            stream,
            entries: entries.to_vec(),
        }],
        attempts: "[]".into(),
        counters: vec![("v1:done".into(), entries.len() as u64)],
        ..Batch::default()
    }
}

fn single(entry: StreamId, fate: Fate, fields: &[(&'static str, &str)]) -> Batch {
    Batch {
        singles: vec![Single {
            stream: MAIN,
            entry,
            fate,
            fields: fields
                .iter()
                .map(|(name, value)| (*name, (*value).to_owned()))
                .collect(),
            keep: None,
        }],
        ..Batch::default()
    }
}

fn yes(groups: &[u64], singles: &[bool]) -> Settled {
    Settled::Yes {
        groups: groups.to_vec(),
        singles: singles.to_vec(),
    }
}

#[tokio::test]
async fn done_is_acknowledged_logged_counted_and_retained() {
    let q = TestQueue::seeded().await;
    let main = q.key(Key::Stream);
    q.add(&main, 3).await;
    let ids = q.claim_ids(&q.session, &main, 10).await;
    let settler = settler(&q, &q.session).await;
    assert_eq!(settler.settle(&done(MAIN, &ids)).await.unwrap(), yes(&[3], &[]));
    assert_eq!((q.pending(&main).await, q.len(&main).await), (0, 3));
    let entry = q.log().await.pop().unwrap();
    assert_eq!((entry.kind.as_str(), entry.acked.as_str()), ("settled", "all"));
    assert_eq!(
        inspect::stats(&q.store, &q.queue, 0).await.unwrap(),
        [("v1:done".to_owned(), 3)]
    );
}

#[tokio::test]
async fn a_batch_sent_again_changes_nothing_not_even_log_or_stats() {
    let q = TestQueue::seeded().await;
    let main = q.key(Key::Stream);
    q.add(&main, 6).await;
    let ids = q.claim_ids(&q.session, &main, 10).await;
    let mut batch = done(MAIN, &ids[..3]);
    for (n, fate) in [Fate::Retry { due_ms: 5 }, Fate::Dead, Fate::Move { to: HEAD }]
        .into_iter()
        .enumerate()
    {
        let id = format!("t{n}");
        batch.singles.extend(single(ids[3 + n], fate, &[("id", &id)]).singles);
    }
    let settler = settler(&q, &q.session).await;
    assert_eq!(settler.settle(&batch).await.unwrap(), yes(&[3], &[true; 3]));
    let before = q.everything().await;
    assert_eq!(settler.settle(&batch).await.unwrap(), yes(&[0], &[false; 3]));
    assert!(q.everything().await == before);
}

#[tokio::test]
async fn of_a_batch_half_settled_already_the_other_half_takes_effect_uncounted() {
    let q = TestQueue::seeded().await;
    let main = q.key(Key::Stream);
    q.add(&main, 4).await;
    let ids = q.claim_ids(&q.session, &main, 10).await;
    let settler = settler(&q, &q.session).await;
    settler.settle(&done(MAIN, &ids[..2])).await.unwrap();
    assert_eq!(settler.settle(&done(MAIN, &ids)).await.unwrap(), yes(&[2], &[]));
    assert_eq!(q.pending(&main).await, 0);
    // Which two is not known, so they are not attributed to anything.
    assert_eq!(q.log().await.pop().unwrap().acked, "2");
    assert_eq!(
        inspect::stats(&q.store, &q.queue, 0).await.unwrap(),
        [("v1:done".to_owned(), 2)]
    );
}

#[tokio::test]
async fn without_the_lease_nothing_is_touched() {
    let q = TestQueue::seeded().await;
    let main = q.key(Key::Stream);
    q.add(&main, 4).await;
    let ids = q.claim_ids(&q.session, &main, 10).await;
    let mut batch = done(MAIN, &ids[..2]);
    batch.singles = single(ids[2], Fate::Dead, &[]).singles;
    batch.floors = vec![(MAIN, StreamId { ms: u64::MAX, seq: 0 })];
    let settler = settler(&q, &q.session).await;
    q.cmd::<()>(&["DEL", &q.lease(&q.session)]).await;
    let before = q.everything().await;
    assert_eq!(settler.settle(&batch).await.unwrap(), Settled::NoLease);
    assert!(q.everything().await == before);
}

#[tokio::test]
async fn a_retry_waits_with_every_field_it_had_whatever_the_bytes() {
    let q = TestQueue::seeded().await;
    let main = q.key(Key::Stream);
    let (name, value) = (b"\xff\x00:7:".as_slice(), b"\r\n\x00\xfe".as_slice());
    q.bytes_cmd::<()>(&[
        b"XADD",
        main.as_bytes(),
        b"*",
        b"payload",
        b"1",
        name,
        value,
        b"",
        b"",
        b"attempt",
        b"0",
        b"big",
        &[b'x'; 100_000],
    ])
    .await;
    let ids = q.claim_ids(&q.session, &main, 1).await;
    let settler = settler(&q, &q.session).await;
    let batch = single(ids[0], Fate::Retry { due_ms: 1 }, &[("id", "t1"), ("attempt", "1")]);
    settler.settle(&batch).await.unwrap();
    assert_eq!((q.len(&main).await, q.pending(&main).await), (0, 0));
    let due: Vec<(String, u64)> = q.cmd(&["ZRANGE", &q.key(Key::Delayed), "0", "-1", "WITHSCORES"]).await;
    assert_eq!(due, [("t1".to_owned(), 1)]);
    let found = inspect::find(&q.store, &q.queue, &"t1".parse().unwrap())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(found.place, "delayed");

    switchback_common::store::moves::promote(&q.store, &q.queue)
        .await
        .unwrap();
    let (_, fields) = q.entries(&main).await.pop().unwrap();
    let expected: BTreeMap<Vec<u8>, Vec<u8>> = [
        (b"payload".to_vec(), b"1".to_vec()),
        (name.to_vec(), value.to_vec()),
        (vec![], vec![]),
        (b"attempt".to_vec(), b"1".to_vec()),
        (b"big".to_vec(), vec![b'x'; 100_000]),
        (b"id".to_vec(), b"t1".to_vec()),
    ]
    .into();
    assert!(fields == expected);
}

#[tokio::test]
async fn two_tasks_with_one_id_do_not_replace_each_other_while_they_wait() {
    let q = TestQueue::seeded().await;
    let main = q.key(Key::Stream);
    for payload in ["1", "2"] {
        q.cmd::<()>(&["XADD", &main, "*", "payload", payload, "id", "same"])
            .await;
    }
    let ids = q.claim_ids(&q.session, &main, 2).await;
    let settler = settler(&q, &q.session).await;
    for id in ids {
        let batch = single(id, Fate::Retry { due_ms: 1 }, &[("id", "same")]);
        assert_eq!(settler.settle(&batch).await.unwrap(), yes(&[], &[true]));
    }
    let promoted = switchback_common::store::moves::promote(&q.store, &q.queue)
        .await
        .unwrap();
    assert_eq!(promoted.moved, 2);
    let mut payloads = q.payloads(&main).await;
    payloads.sort();
    assert_eq!(payloads, ["1", "2"]);
}

#[tokio::test]
async fn dead_and_moved_tasks_leave_their_stream_for_the_right_one() {
    let q = TestQueue::seeded().await;
    let main = q.key(Key::Stream);
    q.add(&main, 4).await;
    let ids = q.claim_ids(&q.session, &main, 4).await;
    let settler = settler(&q, &q.session).await;
    let fates = [
        (Fate::Dead, "dead"),
        (Fate::Move { to: HEAD }, "head"),
        (Fate::Move { to: LANE }, "lane"),
    ];
    for (id, (fate, word)) in ids.iter().zip(fates) {
        let batch = single(*id, fate, &[("dead_reason", word), ("id", word)]);
        assert_eq!(settler.settle(&batch).await.unwrap(), yes(&[], &[true]));
    }
    for (stream, payload, word) in [
        (q.key(Key::Dead), "0", "dead"),
        (q.key(Key::Head), "1", "head"),
        (q.lane("v2"), "2", "lane"),
    ] {
        let entries = q.entries(&stream).await;
        assert_eq!(entries.len(), 1, "{word}");
        assert_eq!(entries[0].1[b"payload".as_slice()], payload.as_bytes());
        assert_eq!(entries[0].1[b"id".as_slice()], word.as_bytes());
    }
    assert_eq!(q.payloads(&main).await, ["3"]);
}

#[tokio::test]
async fn an_entry_that_somebody_deleted_is_acknowledged_and_goes_nowhere() {
    let q = TestQueue::seeded().await;
    let main = q.key(Key::Stream);
    q.add(&main, 2).await;
    let ids = q.claim_ids(&q.session, &main, 2).await;
    q.cmd::<()>(&["XDEL", &main, &ids[0].to_string(), &ids[1].to_string()])
        .await;
    let settler = settler(&q, &q.session).await;
    for (id, fate) in [(ids[0], Fate::Dead), (ids[1], Fate::Retry { due_ms: 1 })] {
        assert_eq!(
            settler.settle(&single(id, fate, &[("id", "t")])).await.unwrap(),
            yes(&[], &[true])
        );
    }
    assert_eq!((q.pending(&main).await, q.len(&q.key(Key::Dead)).await), (0, 0));
    assert_eq!(inspect::depth(&q.store, &q.queue).await.unwrap().delayed, 0);
}

#[tokio::test]
async fn a_task_stays_pending_while_its_goal_cannot_be_written() {
    for (goal, fate) in [
        (Key::Dead as fn(_) -> _, Fate::Dead),
        (Key::Delayed, Fate::Retry { due_ms: 1 }),
        (Key::Envelope, Fate::Retry { due_ms: 1 }),
        (Key::Head, Fate::Move { to: HEAD }),
    ] {
        let q = TestQueue::seeded().await;
        let main = q.key(Key::Stream);
        q.add(&main, 1).await;
        let ids = q.claim_ids(&q.session, &main, 1).await;
        let settler = settler(&q, &q.session).await;
        let batch = single(ids[0], fate, &[("id", "t1")]);
        q.cmd::<()>(&["SET", &q.key(goal), "oops"]).await;
        settler.settle(&batch).await.unwrap_err();
        assert_eq!((q.pending(&main).await, q.len(&main).await), (1, 1), "{}", q.key(goal));
        q.cmd::<()>(&["DEL", &q.key(goal)]).await;
        assert_eq!(settler.settle(&batch).await.unwrap(), yes(&[], &[true]));
        assert_eq!((q.pending(&main).await, q.len(&main).await), (0, 0));
    }
}

#[tokio::test]
async fn an_entry_with_thousands_of_fields_is_moved_with_all_its_bytes() {
    let q = TestQueue::seeded().await;
    let main = q.key(Key::Stream);
    let names: Vec<String> = (0..9_000).map(|n| format!("field-{n}")).collect();
    let mut add = vec!["XADD", &main, "*", "payload", "first", "payload", "1"];
    for name in &names {
        add.extend([name, "value"]);
    }
    q.cmd::<()>(&add).await;
    let ids = q.claim_ids(&q.session, &main, 1).await;
    let settler = settler(&q, &q.session).await;
    let batch = single(ids[0], Fate::Dead, &[("id", "t1"), ("dead_reason", "malformed")]);
    assert_eq!(settler.settle(&batch).await.unwrap(), yes(&[], &[true]));
    let (_, fields) = q.entries(&q.key(Key::Dead)).await.pop().unwrap();
    assert_eq!(fields[b"payload".as_slice()], b"1");
    assert_eq!(fields[b"dead_reason".as_slice()], b"malformed");
    let rest = String::from_utf8(fields[b"rest".as_slice()].clone()).unwrap();
    assert!(
        rest.starts_with("7:payload5:first") && rest.ends_with("10:field-89995:value"),
        "{}",
        rest.len()
    );
}

#[tokio::test]
async fn a_full_group_and_a_large_batch_fit_into_one_call() {
    let q = TestQueue::seeded().await;
    let main = q.key(Key::Stream);
    q.add(&main, 1_200).await;
    let ids = q.claim_ids(&q.session, &main, 1_200).await;
    let settler = settler(&q, &q.session).await;
    let mut batch = done(MAIN, &ids[..500]);
    for (n, id) in ids[500..].iter().enumerate() {
        let id_text = format!("t{n}");
        batch
            .singles
            .extend(single(*id, Fate::Dead, &[("id", &id_text)]).singles);
    }
    assert_eq!(settler.settle(&batch).await.unwrap(), yes(&[500], &[true; 700]));
    assert_eq!((q.pending(&main).await, q.len(&q.key(Key::Dead)).await), (0, 700));
}

#[tokio::test]
async fn trimming_never_passes_its_floor() {
    let q = TestQueue::seeded().await;
    let main = q.key(Key::Stream);
    q.add(&main, 1_000).await;
    let ids = q.claim_ids(&q.session, &main, 950).await;
    let settler = settler(&q, &q.session).await;
    let mut batch = done(MAIN, &ids[..900]);
    batch.done = ids[..900]
        .chunks(450)
        .map(|c| DoneGroup {
            stream: MAIN,
            entries: c.to_vec(),
        })
        .collect();
    batch.floors = vec![(MAIN, ids[850]), (LANE, ids[850])];
    settler.settle(&batch).await.unwrap();
    let left: Vec<String> = q.entries(&main).await.into_iter().map(|(id, _)| id).collect();
    let first = StreamId::parse(left[0].as_bytes()).unwrap();
    assert!(first <= ids[850], "{first} passed {}", ids[850]);
    assert!(left.len() < 400, "nothing was trimmed: {}", left.len());
    assert_eq!(q.pending(&main).await, 50);
    let info = inspect::group(&q.store, &main).await.unwrap();
    assert_eq!(info.lag, Some(50));
}

#[tokio::test]
async fn a_full_redis_still_settles() {
    let q = TestQueue::seeded().await;
    let main = q.key(Key::Stream);
    q.add(&main, 3).await;
    let ids = q.claim_ids(&q.session, &main, 3).await;
    q.cmd::<()>(&["CONFIG", "SET", "maxmemory", "1"]).await;
    let settler = settler(&q, &q.session).await;
    let mut batch = done(MAIN, &ids[..1]);
    batch.singles = single(ids[1], Fate::Dead, &[("id", "a")]).singles;
    batch
        .singles
        .extend(single(ids[2], Fate::Retry { due_ms: 1 }, &[("id", "b")]).singles);
    assert_eq!(settler.settle(&batch).await.unwrap(), yes(&[1], &[true, true]));
    assert_eq!(
        switchback_common::store::moves::promote(&q.store, &q.queue)
            .await
            .unwrap()
            .moved,
        1
    );
}
