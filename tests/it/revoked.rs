//! settle.lua and what was revoked: a refused batch leaves everything as it is, and only a revision refuses one.

use switchback_common::store::{
    keyspace::Key,
    settle::{Batch, Fate, Keep, Settled, Single},
};

use crate::{
    inflight::{back, done, settler, version},
    queue::TestQueue,
};

// Whatever became of a task: a retry, a dead letter, a result, a mark used up. Also when one of ten results is revoked.
#[tokio::test]
async fn nothing_of_any_fate_in_a_refused_batch_takes_effect() {
    let q = TestQueue::seeded().await;
    let main = q.key(Key::Stream);
    q.edit("only v2").await;
    let fates = [
        Fate::Retry { due_ms: 1 },
        Fate::Dead,
        Fate::Done,
        Fate::Cancelled { else_to: 1 },
        Fate::Move { to: 1 },
    ];
    let mut batch = Batch {
        results: vec![(version("v1"), 9), (version("v2"), 2)],
        attempts: "[]".into(),
        counters: vec![("v2:done".into(), 1)],
        block: Some((7, vec![("v2:n".into(), 5)])),
        ..Batch::default()
    };
    q.add(&main, fates.len()).await;
    let entries = q.claim_ids(&q.session, &main, 10).await;
    for (n, fate) in fates.into_iter().enumerate() {
        let id = format!("t{n}");
        q.cmd::<()>(&["ZADD", &q.key(Key::Cancel), "99999999999999999", &id])
            .await;
        let keep = Keep {
            task: id.parse().unwrap(),
            ms: 60_000,
            tail: r#""attempt":1}"#.into(),
        };
        batch.singles.push(Single {
            fate,
            fields: vec![("id", id)],
            keep: Some(Box::new(keep)),
            ..back(entries[n]).singles.remove(0)
        });
    }
    q.edit("only v1 inflight revoke").await;
    let settler = settler(&q).await;
    let before = q.everything().await;
    let refused = Settled::Revoked(vec![(version("v2"), 3)]);
    assert_eq!(settler.settle(&batch).await.unwrap(), refused);
    assert!(q.everything().await == before);
    // What is not a result goes its way without asking for leave.
    batch.results.remove(1);
    let settled = settler.settle(&batch).await.unwrap();
    assert!(
        matches!(settled, Settled::Yes { ref singles, .. } if *singles == [true; 5]),
        "{settled:?}"
    );
    assert_eq!(q.pending(&main).await, 0);
}

// P7: what somebody wrote into the state by hand revokes nothing, and keeps no result from being settled.
#[tokio::test]
async fn a_revision_that_is_no_number_revokes_nothing() {
    let q = TestQueue::seeded().await;
    let main = q.key(Key::Stream);
    q.add(&main, 1).await;
    let ids = q.claim_ids(&q.session, &main, 10).await;
    q.cmd::<()>(&["HSET", &q.key(Key::GateState), "min_rev:v2", "oops"])
        .await;
    let settled = settler(&q).await.settle(&done(&ids, &[("v2", 1)])).await;
    assert!(matches!(settled, Ok(Settled::Yes { .. })), "{settled:?}");
}
