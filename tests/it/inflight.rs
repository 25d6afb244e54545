//! In-flight policies in Redis: what sealing makes of `inflight`, and settle.lua, which refuses what was revoked.

use std::collections::BTreeMap;

use serde_json::json;
use switchback_common::{
    StreamId, Version,
    store::{
        gate::{ChangeRequest, Changed, SealWord},
        keyspace::Key,
        log::Ended,
        settle::{Batch, DoneGroup, Fate, Settled, Settler, Single},
        stops::{Stop, stops},
    },
};

use crate::queue::{TestQueue, json};

pub(crate) fn version(name: &str) -> Version {
    name.parse().unwrap()
}

/// `stops`, and what was stopped of v1, v2 and v3, as `cancel_rev/min_rev`.
async fn stopped(q: &TestQueue) -> (u64, [String; 3]) {
    let versions = ["v1", "v2", "v3"].map(version);
    let (value, found) = stops(&q.store, &q.queue, &versions).await.unwrap();
    let words: Vec<String> = found
        .iter()
        .map(|Stop { cancel_rev, min_rev }| format!("{cancel_rev}/{min_rev}"))
        .collect();
    (value, words.try_into().unwrap())
}

fn words(v1: &str, v2: &str, v3: &str) -> [String; 3] {
    [v1, v2, v3].map(str::to_owned)
}

// --- sealing

#[tokio::test]
async fn a_flip_stops_every_version_that_it_withdraws_and_no_other() {
    let q = TestQueue::seeded().await;
    assert_eq!(q.edit("candidate v2 percent 10").await, "v1 v2@10");
    assert_eq!(stopped(&q).await, (0, words("0/0", "0/0", "0/0")));
    assert_eq!(q.edit("only v1 inflight cancel by alice why INC-42").await, "v1");
    assert_eq!(stopped(&q).await, (3, words("0/0", "3/0", "3/0")));
    let entry = &q.changes().await[0];
    let seen = (
        entry.rev,
        entry.inflight.as_str(),
        entry.by.as_str(),
        entry.why.as_str(),
    );
    assert_eq!(seen, (3, "cancel", "alice", "INC-42"));
    assert_eq!(q.human().await, "active=v1 paused=0", "it is said once");

    // What is reached again starts anew: only what was decided before stays stopped.
    assert_eq!(q.edit("active v2 inflight revoke").await, "v2");
    assert_eq!(stopped(&q).await, (4, words("4/4", "3/0", "4/4")));
    // A pin and a share of any size reach a version.
    let gate = q.key(Key::Gate);
    q.cmd::<()>(&["HSET", &gate, "pins", "a=v1", "inflight", "revoke"])
        .await;
    q.seal().await;
    assert_eq!(stopped(&q).await, (5, words("4/4", "3/0", "5/5")));
    assert_eq!(
        q.edit("candidate v3 percent 100 inflight cancel").await,
        "v2 v3@100 pins[a=v1]"
    );
    assert_eq!(
        stopped(&q).await,
        (6, words("4/4", "6/0", "5/5")),
        "at 100 % the active version is not reached"
    );
}

#[tokio::test]
async fn finish_stops_nothing_and_what_still_runs_can_be_revoked_later() {
    let q = TestQueue::seeded().await;
    q.edit("only v2").await;
    q.edit("only v1 inflight finish").await;
    assert_eq!(stopped(&q).await, (0, words("0/0", "0/0", "0/0")));
    assert!(q.changes().await.iter().all(|e| e.inflight.is_empty()));
    // Routing is what it was: a revision of its own all the same, with one entry.
    for (n, edit) in (4..).zip([
        "inflight revoke",
        "only v1 inflight revoke",
        "active v1 inflight cancel",
    ]) {
        assert_eq!(q.edit(edit).await, "v1", "{edit}");
        let entry = &q.history().await[0];
        assert_eq!((entry.kind.as_str(), entry.rev), ("change", n), "{edit}");
        assert_eq!(entry.before, entry.after);
        assert_eq!(stopped(&q).await.0, n);
    }
    assert_eq!(q.seal().await.0, SealWord::Same);
    assert_eq!(q.history().await.len(), 6);
    assert_eq!(stopped(&q).await.1, words("0/0", "6/5", "6/5"));
}

#[tokio::test]
async fn a_pause_withdraws_nothing() {
    let q = TestQueue::seeded().await;
    assert_eq!(q.edit("candidate v2 percent 10").await, "v1 v2@10");
    assert_eq!(q.edit("paused 1 inflight revoke").await, "v1 v2@10 paused");
    assert_eq!(stopped(&q).await, (3, words("0/0", "0/0", "3/3")));
}

#[tokio::test]
async fn a_policy_that_nobody_knows_stops_nothing_but_a_valid_only_goes_through() {
    let q = TestQueue::seeded().await;
    assert_eq!(q.edit("only v2 inflight now").await, "v2");
    let entry = &q.changes().await[0];
    assert_eq!(
        (json(&entry.dropped), entry.inflight.as_str()),
        (json!({ "inflight": "now" }), "")
    );
    assert_eq!(q.edit("active v1 inflight Revoke").await, "v2");
    let refused = &q.history().await[0];
    assert_eq!(refused.kind, "refused");
    let said = json!({ "inflight": "Revoke: not one of: finish, cancel, revoke" });
    assert_eq!(json(&refused.refused), said);
    // Nor does a policy whose edit is refused for something else, though its pause is obeyed.
    assert_eq!(q.edit("active v9 paused 1 inflight revoke").await, "v2 paused");
    assert_eq!(stopped(&q).await, (0, words("0/0", "0/0", "0/0")));
    assert_eq!(q.human().await, "active=v2 paused=1");
}

// P9: an operation id counts once.
#[tokio::test]
async fn a_request_sent_again_revokes_once() {
    let q = TestQueue::seeded().await;
    let revoke = |op: &str, dry_run| ChangeRequest {
        source: "cli".into(),
        op: op.into(),
        dry_run,
        fields: vec![("inflight", "revoke".to_owned())],
        ..ChangeRequest::default()
    };
    let answer = q.gate.change(&revoke("op-1", true)).await.unwrap();
    assert!(matches!(answer, Changed::Would(s) if s.rev == 2));
    assert_eq!((q.history().await.len(), stopped(&q).await.0), (1, 0));
    for _ in 0..2 {
        let answer = q.gate.change(&revoke("op-1", false)).await.unwrap();
        assert!(matches!(answer, Changed::Changed(s) if s.rev == 2));
    }
    q.edit("only v3").await;
    let late = q.gate.change(&revoke("op-1", false)).await.unwrap();
    assert!(
        matches!(late, Changed::Changed(s) if s.rev == 3),
        "it changes nothing any more"
    );
    assert_eq!(stopped(&q).await, (2, words("0/0", "2/2", "2/2")));
}

#[tokio::test]
async fn as_many_versions_as_ever_joined_are_stopped() {
    let q = TestQueue::seeded().await;
    let versions = q.key(Key::Versions);
    for n in 0..2_500 {
        q.cmd::<()>(&["HSET", &versions, &format!("build-{n}"), "{}"]).await;
    }
    q.edit("only v1 inflight revoke").await;
    let state: BTreeMap<String, String> = q.cmd(&["HGETALL", &q.key(Key::GateState)]).await;
    let count = |prefix: &str| state.iter().filter(|(k, v)| k.starts_with(prefix) && *v == "2").count();
    assert_eq!((count("min_rev:"), count("cancel_rev:")), (2_502, 2_502));
    assert!(!state.contains_key("min_rev:v1") && !state.contains_key("min_rev::groups"));
}

// P10.
#[tokio::test]
async fn a_full_redis_still_revokes_and_refuses() {
    let q = TestQueue::seeded().await;
    let main = q.key(Key::Stream);
    q.edit("only v2").await;
    q.add(&main, 1).await;
    let ids = q.claim_ids(&q.session, &main, 1).await;
    q.cmd::<()>(&["CONFIG", "SET", "maxmemory", "1"]).await;
    let gate = q.key(Key::Gate);
    let script = "#!lua flags=allow-oom\nreturn redis.call('HSET', KEYS[1], 'only', 'v1', 'inflight', 'revoke')";
    q.cmd::<()>(&["EVAL", script, "1", &gate]).await;
    q.seal().await;
    let settler = settler(&q).await;
    let refused = settler.settle(&done(&ids, &[("v2", 2)])).await.unwrap();
    assert_eq!(refused, Settled::Revoked(vec![(version("v2"), 3)]));
    let moved = settler.settle(&back(ids[0])).await.unwrap();
    assert_eq!(
        moved,
        Settled::Yes {
            groups: vec![],
            singles: vec![true]
        }
    );
    assert_eq!(q.len(&q.key(Key::Head)).await, 1);
}

// --- settling

pub(crate) async fn settler(q: &TestQueue) -> Settler {
    let streams = vec![q.key(Key::Stream), q.key(Key::Head)];
    Settler::new(&q.store, &q.queue, &q.session, streams).await.unwrap()
}

pub(crate) fn done(entries: &[StreamId], results: &[(&str, u64)]) -> Batch {
    Batch {
        results: results.iter().map(|(v, rev)| (version(v), *rev)).collect(),
        done: vec![DoneGroup {
            stream: 0,
            entries: entries.to_vec(),
        }],
        attempts: "[]".into(),
        counters: vec![("v2:done".into(), entries.len() as u64)],
        ..Batch::default()
    }
}

pub(crate) fn back(entry: StreamId) -> Batch {
    Batch {
        singles: vec![Single {
            stream: 0,
            entry,
            fate: Fate::Move { to: 1 },
            fields: vec![("id", "t".to_owned())],
            keep: None,
        }],
        ..Batch::default()
    }
}

#[tokio::test]
async fn a_batch_with_a_revoked_result_does_nothing_at_all() {
    let q = TestQueue::seeded().await;
    let main = q.key(Key::Stream);
    q.edit("only v2").await;
    q.add(&main, 4).await;
    let ids = q.claim_ids(&q.session, &main, 10).await;
    q.edit("only v1 inflight revoke").await;
    let settler = settler(&q).await;
    let mut batch = done(&ids, &[("v1", 3), ("v2", 2), ("v3", 1)]);
    batch.floors = vec![(0, StreamId { ms: u64::MAX, seq: 0 })];
    let before = q.everything().await;
    let refused = Settled::Revoked(vec![(version("v2"), 3), (version("v3"), 3)]);
    assert_eq!(settler.settle(&batch).await.unwrap(), refused);
    assert!(q.everything().await == before);
    // Decided under the flip itself or later, or on what it reaches: counts.
    let counts = done(&ids[..1], &[("v1", 1), ("v2", 3)]);
    assert!(matches!(settler.settle(&counts).await.unwrap(), Settled::Yes { .. }));
    // P4: a session that is lost hears of that first.
    q.cmd::<()>(&["DEL", &q.lease(&q.session)]).await;
    assert_eq!(settler.settle(&batch).await.unwrap(), Settled::NoLease);
}

// P2: the first call took effect and its reply was lost; then the flip.
#[tokio::test]
async fn a_batch_that_had_settled_is_refused_when_sent_again_and_its_way_back_changes_nothing() {
    let q = TestQueue::seeded().await;
    let main = q.key(Key::Stream);
    q.edit("only v2").await;
    q.add(&main, 1).await;
    let ids = q.claim_ids(&q.session, &main, 10).await;
    let settler = settler(&q).await;
    let batch = done(&ids, &[("v2", 2)]);
    assert!(matches!(settler.settle(&batch).await.unwrap(), Settled::Yes { .. }));
    q.edit("only v1 inflight revoke").await;
    let before = q.everything().await;
    assert!(matches!(settler.settle(&batch).await.unwrap(), Settled::Revoked(_)));
    let moved = settler.settle(&back(ids[0])).await.unwrap();
    assert_eq!(
        moved,
        Settled::Yes {
            groups: vec![],
            singles: vec![false]
        }
    );
    assert!(
        q.everything().await == before,
        "it was done before the flip, and stays done"
    );
}

#[test]
fn what_can_be_revoked_is_what_became_of_the_task() {
    let results = [Ended::Done, Ended::Retried, Ended::Dead, Ended::Snoozed];
    assert!(results.into_iter().all(Ended::is_result));
    // Given back, or ended by a person's word.
    let others = [Ended::Released, Ended::Cancelled, Ended::Revoked, Ended::Other];
    assert!(!others.into_iter().any(Ended::is_result));
}
