//! join, renew, publish and leave: how a session begins, lives and ends.

use std::time::Duration;

use switchback_common::{
    SessionId,
    store::{
        gate::Found,
        inspect,
        keyspace::Key,
        session::{Joined, Lives, Reaped},
    },
};
use switchback_tests::eventually;

use crate::queue::TestQueue;

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test]
async fn joining_registers_versions_groups_record_lease_and_queue() {
    let q = TestQueue::seeded().await;
    for stream in [q.key(Key::Stream), q.key(Key::Head), q.lane("v1"), q.lane("v3")] {
        assert_eq!(q.pending(&stream).await, 0, "a group on {stream}");
    }
    let versions = inspect::versions(&q.store, &q.queue).await.unwrap();
    assert_eq!(versions.len(), 3);
    let found = &q.sessions.list().await.unwrap()[0];
    assert_eq!((&found.id, found.reaping, found.rev), (&q.session, false, None));
    assert_eq!(found.record.as_ref().unwrap().build, "b1");
    assert!(found.lease.unwrap() > Duration::from_secs(500));
    let directory: Vec<String> = q.cmd(&["SMEMBERS", "sb:queues:{shop}"]).await;
    assert_eq!(directory, ["send_email"]);
}

#[tokio::test]
async fn every_key_has_the_type_that_the_catalogue_says() {
    let q = TestQueue::seeded().await;
    q.edit("only v2").await;
    let keys: Vec<String> = q.cmd(&["KEYS", "*"]).await;
    assert!(keys.len() >= 11, "{keys:?}");
    for text in keys {
        let key = q
            .store
            .keyspace()
            .parse(&text)
            .unwrap_or_else(|| panic!("{text} is not catalogued"));
        let found: String = q.cmd(&["TYPE", &text]).await;
        assert_eq!(found, key.key_type().as_str(), "{text}");
    }
}

#[tokio::test]
async fn tasks_from_before_the_first_worker_are_delivered() {
    let q = TestQueue::empty().await;
    let main = q.key(Key::Stream);
    q.add(&main, 3).await;
    q.join(&q.session, &["v1"]).await;
    assert_eq!(q.claim(&q.session, &main, 10).await.len(), 3);
}

#[tokio::test]
async fn joining_again_after_a_lost_reply_is_harmless() {
    let q = TestQueue::seeded().await;
    let main = q.key(Key::Stream);
    q.add(&main, 1).await;
    q.claim(&q.session, &main, 1).await;
    assert_eq!(q.join(&q.session, &["v1"]).await, Joined::Yes { seeded: false });
    assert_eq!(q.pending(&main).await, 1);
    assert_eq!(q.sessions.list().await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_group_is_never_made_again_under_tasks_that_are_retained() {
    // Done tasks stay in their stream, lanes included: a group from 0 would run them again.
    for stream in [Key::Stream as fn(_) -> _, Key::Head, |q| {
        Key::Lane(q, "v2".parse().unwrap())
    }] {
        let q = TestQueue::seeded().await;
        let stream = q.key(stream);
        q.add(&stream, 1).await;
        q.cmd::<()>(&["XGROUP", "DESTROY", &stream, "workers"]).await;
        for gone in ["", &q.key(Key::GateState)] {
            q.cmd::<()>(&["DEL", gone]).await;
            let joined = q.join(&SessionId::random(), &["v1", "v2"]).await;
            assert_eq!(joined, Joined::NoGroup, "{stream} without {gone:?}");
        }
        assert_eq!(q.sessions.list().await.unwrap().len(), 1);
        q.cmd::<()>(&["XGROUP", "CREATE", &stream, "workers", "$"]).await;
        assert_eq!(
            q.join(&SessionId::random(), &["v1", "v2"]).await,
            Joined::Yes { seeded: false }
        );
    }
}

#[tokio::test]
async fn an_empty_stream_gets_its_group_back() {
    let q = TestQueue::seeded().await;
    let keys = [q.key(Key::Stream), q.key(Key::Head), q.lane("v2")];
    q.cmd::<()>(&["DEL", &keys[0], &keys[1], &keys[2]]).await;
    assert_eq!(
        q.join(&SessionId::random(), &["v1", "v2"]).await,
        Joined::Yes { seeded: false }
    );
    for stream in keys {
        assert_eq!(q.pending(&stream).await, 0);
    }
}

#[tokio::test]
async fn a_full_redis_still_lets_workers_join_renew_publish_and_leave() {
    let q = TestQueue::empty().await;
    q.cmd::<()>(&["CONFIG", "SET", "maxmemory", "1"]).await;
    assert_eq!(q.join(&q.session, &["v1"]).await, Joined::Yes { seeded: true });
    let link = q.store.link().await.unwrap();
    assert_eq!(
        q.sessions.renew(&link, &q.session, SECOND * 60).await.unwrap(),
        Lives::Yes
    );
    q.cmd::<()>(&["DEL", &q.lease(&q.session)]).await;
    assert_eq!(
        q.sessions.renew(&link, &q.session, SECOND * 60).await.unwrap(),
        Lives::Revived
    );
    assert_eq!(q.sessions.publish(&q.session, 1, "{}").await.unwrap(), Lives::Yes);
    q.sessions
        .leave(&q.session, &[q.key(Key::Stream)], "test")
        .await
        .unwrap();
    assert!(q.sessions.list().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_lease_runs_out_by_itself_and_comes_back_while_nobody_reaps() {
    let q = TestQueue::seeded().await;
    let link = q.store.link().await.unwrap();
    let lease = Duration::from_millis(20);
    assert_eq!(q.sessions.renew(&link, &q.session, lease).await.unwrap(), Lives::Yes);
    eventually("the lease runs out", SECOND * 5, async || {
        q.gate.read(&link, Some(&q.session)).await.unwrap().lease.is_none()
    })
    .await;
    assert!(q.sessions.list().await.unwrap()[0].lease.is_none());
    assert_eq!(
        q.sessions.renew(&link, &q.session, SECOND * 60).await.unwrap(),
        Lives::Revived
    );
    let read = q.gate.read(&link, Some(&q.session)).await.unwrap();
    assert!(read.lease.unwrap() > SECOND * 30);
    assert!(matches!(read.found, Found::Settled(_)));
}

#[tokio::test]
async fn a_session_that_never_joined_is_lost() {
    let q = TestQueue::seeded().await;
    let stranger = SessionId::random();
    let link = q.store.link().await.unwrap();
    assert_eq!(q.sessions.renew(&link, &stranger, SECOND).await.unwrap(), Lives::Lost);
    assert_eq!(q.sessions.publish(&stranger, 1, "{}").await.unwrap(), Lives::Lost);
    assert_eq!(q.sessions.list().await.unwrap().len(), 1);
    assert!(!q.cmd::<bool>(&["EXISTS", &q.lease(&stranger)]).await);
}

#[tokio::test]
async fn what_a_session_publishes_is_listed() {
    let q = TestQueue::seeded().await;
    q.sessions.publish(&q.session, 7, r#"{"v1":3}"#).await.unwrap();
    let found = &q.sessions.list().await.unwrap()[0];
    assert_eq!((found.rev, found.running.as_str()), (Some(7), r#"{"v1":3}"#));
}

#[tokio::test]
async fn a_session_that_holds_nothing_leaves_without_a_trace_but_the_log() {
    let q = TestQueue::seeded().await;
    let streams = [q.key(Key::Stream), q.key(Key::Head), q.lane("v9")];
    q.claim(&q.session, &streams[0], 1).await; // makes a consumer
    q.sessions.publish(&q.session, 1, "{}").await.unwrap();
    q.sessions.leave(&q.session, &streams, "deploy").await.unwrap();
    assert!(q.sessions.consumers(&streams[0]).await.unwrap().is_empty());
    let sessions: bool = q.cmd(&["EXISTS", &q.key(Key::Sessions)]).await;
    let lease: bool = q.cmd(&["EXISTS", &q.lease(&q.session)]).await;
    assert_eq!((sessions, lease), (false, false));
    assert_eq!(q.log().await.pop().unwrap().kind, "left");
}

#[tokio::test]
async fn a_session_that_still_holds_tasks_leaves_them_to_reaping() {
    let q = TestQueue::seeded().await;
    let main = q.key(Key::Stream);
    q.add(&main, 2).await;
    q.claim(&q.session, &main, 2).await;
    q.sessions
        .leave(&q.session, std::slice::from_ref(&main), "crash")
        .await
        .unwrap();
    assert_eq!(q.pending(&main).await, 2);
    let found = &q.sessions.list().await.unwrap()[0];
    assert!(found.lease.is_none());
    let reaper = SessionId::random();
    let reaped = q.sessions.reap(&q.session, &reaper, &main).await.unwrap();
    assert_eq!(
        reaped,
        Reaped::Moved {
            moved: 2,
            poison: 0,
            more: false
        }
    );
    // Its process said goodbye: none of them killed it.
    assert_eq!(q.payloads(&q.key(Key::Head)).await, ["0", "1"]);
}
