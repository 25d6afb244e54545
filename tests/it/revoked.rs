//! settle.lua and what was revoked: a refused batch leaves everything as it is, and only a revision refuses one.

use switchback_common::store::{keyspace::Key, settle::Settled};

use crate::{
    inflight::{done, settler},
    queue::TestQueue,
};

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
