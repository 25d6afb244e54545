//! A network between a worker and Redis that is silent, or loses the answers to what was done.

use std::{sync::Arc, time::Duration};

use switchback_common::{
    ConnectOptions, Store,
    store::{gate::GateStore, log::Ended},
};
use switchback_tests::{Link, Mode, eventually, patience};
use tokio::sync::Semaphore;

use crate::{
    fixture::{Fixture, LEASE, Seen},
    tools::{GATE, LONG, config_through, distinct, gated, int, kinds, numbers, settled, started},
};

// P1, P4: connections that stay open and say nothing. The lease runs out, others run the tasks; when the network is
// back, the worker that was cut off has a new session, and its late results count for nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_half_open_network_loses_nothing_and_heals() {
    let mut fixture = Fixture::new().await;
    let link = Link::to(fixture.server.port()).await;
    let (cut_off, permits) = (Seen::default(), Arc::new(Semaphore::new(0)));
    let handler = gated(&cut_off, &permits);
    let config = config_through(&link).lease(Duration::from_secs(2));
    fixture.worker(config, |t| t.version("v1", handler)).await;
    fixture.enqueue(0..5).await;
    started(&cut_off, 5).await;
    link.set(Mode::Blackhole).await;
    let (_stop, survivor) = fixture.simple(&["v1"]).await;
    fixture.enqueue(5..10).await;
    started(&survivor, 10).await;
    assert_eq!(
        numbers(&cut_off),
        (0..5).collect::<Vec<_>>(),
        "nothing started behind the silence"
    );
    permits.add_permits(100);
    link.set(Mode::Pass).await;
    eventually("it has begun a new session", patience(LONG), async || {
        let joined = kinds(&fixture).await.iter().filter(|kind| *kind == "joined").count();
        if joined == 3 { Ok(()) } else { Err(joined) }
    })
    .await;
    fixture.drained().await;
    assert_eq!(distinct(&survivor), (0..10).collect::<Vec<_>>());
    assert_eq!(
        settled(&fixture, &fixture.queue, Ended::Done).await,
        10,
        "each counts once"
    );
}

// P2: a settle that was executed and not answered is sent again, and changes nothing the second time.
#[tokio::test(flavor = "multi_thread")]
async fn a_settle_whose_reply_was_lost_counts_once() {
    let mut fixture = Fixture::new().await;
    let link = Link::to(fixture.server.port()).await;
    let (seen, permits) = (Seen::default(), Arc::new(Semaphore::new(1)));
    let handler = gated(&seen, &permits);
    let config = config_through(&link).lease(Duration::from_secs(10));
    fixture.worker(config, |t| t.version("v1", handler)).await;
    // The first settle loads the script: a call that Redis does not know would not be executed.
    fixture.enqueue([0]).await;
    fixture.drained().await;
    fixture.enqueue(1..10).await;
    for n in 10..13 {
        fixture.enqueue_one(n, "reject").await;
    }
    started(&seen, 13).await;
    let before = fixture.depth().await.in_flight();
    link.set(Mode::DropReplies).await;
    permits.add_permits(100);
    eventually("Redis has executed it", patience(LONG), async || {
        let now = fixture.depth().await.in_flight();
        if now < before { Ok(()) } else { Err(now) }
    })
    .await;
    link.set(Mode::Pass).await;
    fixture.drained().await;
    assert_eq!(numbers(&seen), (0..13).collect::<Vec<_>>(), "each ran once");
    assert_eq!(fixture.depth().await.dead, 3, "and died once");
    let log = (
        settled(&fixture, &fixture.queue, Ended::Done).await,
        settled(&fixture, &fixture.queue, Ended::Dead).await,
    );
    assert_eq!(log, (10, 3), "and is in the log once");
}

// P2: renewals that are executed and not answered keep the lease, so nobody else runs what this worker runs.
#[tokio::test(flavor = "multi_thread")]
async fn a_renewal_whose_reply_was_lost_keeps_the_session() {
    let mut fixture = Fixture::new().await;
    let link = Link::to(fixture.server.port()).await;
    let (seen, permits) = (Seen::default(), Arc::new(Semaphore::new(0)));
    let handler = gated(&seen, &permits);
    let config = config_through(&link).lease(LEASE);
    fixture.worker(config, |t| t.version("v1", handler)).await;
    fixture.enqueue(0..10).await;
    started(&seen, 10).await;
    let (_stop, other) = fixture.simple(&["v1"]).await;
    let session = "sb:sessions:{test:job}";
    let names: Vec<String> = redis::from_redis_value(fixture.raw(&["HKEYS", session]).await).unwrap();
    assert_eq!(names.iter().filter(|name| !name.contains(':')).count(), 2);
    let keys: Vec<String> = redis::from_redis_value(fixture.raw(&["KEYS", "sb:lease:*"]).await).unwrap();
    // Three times as long as the lease, and longer: the replies to what is sent meanwhile are lost.
    let until = tokio::time::Instant::now() + LEASE * 3;
    while tokio::time::Instant::now() < until {
        let swallowed = link.counters().swallowed_bytes;
        link.set(Mode::DropReplies).await;
        eventually("replies are lost", patience(LONG), async || {
            link.counters().swallowed_bytes > swallowed
        })
        .await;
        link.set(Mode::Pass).await;
        eventually("the leases are fresh", patience(LONG), async || {
            let mut left = Vec::new();
            for key in &keys {
                left.push(int(&fixture, &["PTTL", key]).await);
            }
            // Most of it is left before the next trouble, so that a busy machine has time to make it.
            if left.iter().all(|ms| *ms > 3_500) {
                Ok(())
            } else {
                Err(format!("{left:?}"))
            }
        })
        .await;
    }
    permits.add_permits(100);
    fixture.drained().await;
    assert_eq!((numbers(&seen), other.all().len()), ((0..10).collect(), 0), "each once");
    assert!(!kinds(&fixture).await.contains(&"reaping".to_owned()));
}

// P9: a seal that was executed and not answered is one revision, with the name of whoever made the edit.
#[tokio::test(flavor = "multi_thread")]
async fn a_seal_whose_reply_was_lost_is_one_revision() {
    let mut fixture = Fixture::new().await;
    let (stop, _) = fixture.simple(&["v2", "v1"]).await;
    fixture.stop(&stop).await;
    let link = Link::to(fixture.server.port()).await;
    let store = Store::new(&ConnectOptions::new(link.url())).unwrap();
    let gate = GateStore::new(&store, &fixture.queue);
    gate.seal().await.unwrap();
    let before = int(&fixture, &["XLEN", "sb:history:{test:job}"]).await;
    fixture
        .raw(&["HSET", GATE, "only", "v1", "by", "alice", "why", "INC-42"])
        .await;
    link.set(Mode::DropReplies).await;
    let error = gate.seal().await.unwrap_err();
    assert!(error.is_outcome_unknown(), "{error}");
    assert_eq!(int(&fixture, &["HEXISTS", GATE, "only"]).await, 0, "it was executed");
    fixture.enqueue(0..5).await;
    let (_stop, seen) = fixture.simple(&["v2", "v1"]).await;
    fixture.drained().await;
    let versions: Vec<String> = seen.all().into_iter().map(|ran| ran.version).collect();
    assert_eq!(versions, ["v1"; 5]);
    assert_eq!(int(&fixture, &["XLEN", "sb:history:{test:job}"]).await, before + 1);
    let newest = fixture.gates.history(&fixture.queue, None, 1).await.unwrap().remove(0);
    assert_eq!(
        (newest.by.as_str(), newest.why.as_str(), newest.source.as_str()),
        ("alice", "INC-42", "redis-cli")
    );
}
