//! P3 for results: revoking flips at random moments, while attempts end and settle in several processes, some of which stand
//! still meanwhile. Redis is the only judge of the order: each flip reads, in one transaction, the log's last entry, so what
//! stands behind that was settled after the flip.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use redis::{Value, aio::MultiplexedConnection};
use switchback_common::{
    ConnectOptions, Queue, Store, StreamId,
    store::log::{self, Ended},
};
use switchback_producer::Producer;
use switchback_tests::{Process, RedisServer, eventually, patience};
use tempfile::TempDir;

use crate::{Dice, GATE, LOG, Probe, joined};

/// What any worker would run; here it is part of the transaction that flips.
const SEAL: &str = concat!(
    include_str!("../../common/src/store/gate/core.lua"),
    include_str!("../../common/src/store/gate/seal.lua")
);

/// A flip that revoked.
struct Revoke {
    rev: u64,
    withdrawn: &'static str,
    /// The log's last entry when it committed.
    mark: StreamId,
}

#[derive(Debug, Default)]
struct Verdict {
    tasks: u64,
    /// Attempts by how they ended.
    ended: BTreeMap<&'static str, usize>,
    /// Results of revoked attempts that took effect after the flip.
    effective: usize,
    never_done: usize,
    done_twice: usize,
    /// Revoked attempts whose task was not run again.
    not_again: usize,
    examples: Vec<String>,
}

async fn race(flips: usize, pushes: bool, faults: &'static str) -> Verdict {
    let server = RedisServer::start().await;
    let directory = TempDir::new().unwrap();
    let mut pools = Vec::new();
    for (n, versions) in ["v1,v2", "v2,v1", "v1,v2"].into_iter().enumerate() {
        let witness = directory.path().join(format!("starts-{n}")).display().to_string();
        let url = server.url();
        let mut args = vec!["--redis", &url, "--versions", versions, "--witness", &witness];
        args.extend(["--faults", faults, "--backoff-ms", "5"]);
        if !pushes {
            args.push("--no-pushes");
        }
        pools.push(Process::start("switchback-test-pool", args, [("RUST_LOG", "warn")]));
        joined(&server, n + 1).await;
    }
    let connect = ConnectOptions::new(server.url());
    let producer = Producer::connect(&connect, "test".parse().unwrap()).await.unwrap();
    let mut raw = server.connection().await;
    let mut dice = Dice(0x5eed_0007);
    let mut verdict = Verdict::default();
    let mut revokes = Vec::new();
    for flip in 0..flips {
        let (to, withdrawn) = if flip % 2 == 0 { ("v2", "v1") } else { ("v1", "v2") };
        let burst = 2 + dice.roll(8);
        let tasks: Vec<Probe> = (verdict.tasks..verdict.tasks + burst)
            .map(|n| Probe {
                n,
                work_ms: dice.roll(25),
                then: if dice.roll(8) == 0 { "fail_once" } else { "" }.to_owned(),
            })
            .collect();
        verdict.tasks += burst;
        producer.enqueue_many(&tasks).await.unwrap();
        let stood_still = (dice.roll(8) == 0).then(|| usize::try_from(dice.roll(3)).unwrap());
        tokio::time::sleep(Duration::from_millis(dice.roll(20))).await;
        stood_still.inspect(|n| pools[*n].stop());
        revokes.push(revoke(&mut raw, to, withdrawn).await);
        if let Some(n) = stood_still {
            // Its handlers end in a world that has gone on.
            tokio::time::sleep(Duration::from_millis(dice.roll(40))).await;
            pools[n].cont();
        }
    }
    let (store, queue) = (
        Store::new(&connect).unwrap(),
        Queue::new("test".parse().unwrap(), "probe".parse().unwrap()),
    );
    eventually(
        "every task is done",
        patience(Duration::from_millis(60_000)),
        async || {
            let mut judged = Verdict::default();
            judge(&mut judged, &store, &queue, &revokes).await;
            let done = judged.ended.get("done").copied().unwrap_or(0);
            if done as u64 >= verdict.tasks {
                Ok(())
            } else {
                Err(format!("{done} of {} are done", verdict.tasks))
            }
        },
    )
    .await;
    for pool in &pools {
        pool.term();
    }
    for pool in &pools {
        pool.wait().await;
    }
    judge(&mut verdict, &store, &queue, &revokes).await;
    println!("pushes {pushes}, faults {faults:?}: {verdict:?}");
    verdict
}

/// Flips with the bytes that a person would send, seals as a worker would, and marks the log, in one step.
async fn revoke(raw: &mut MultiplexedConnection, to: &str, withdrawn: &'static str) -> Revoke {
    let key = |kind: &str| format!("sb:{kind}:{{test:probe}}");
    let mut pipe = redis::pipe();
    pipe.atomic();
    pipe.cmd("HSET").arg(GATE).arg(&["only", to, "inflight", "revoke"]);
    pipe.cmd("EVAL").arg(SEAL).arg(4);
    pipe.arg(&[key("gate"), key("gatestate"), key("history"), key("versions")])
        .arg("redis-cli");
    pipe.cmd("XREVRANGE").arg(LOG).arg(&["+", "-", "COUNT", "1"]);
    let (_, sealed, last): (i64, Vec<Value>, Vec<(String, Value)>) = pipe.query_async(raw).await.unwrap();
    let (word, rev): (String, u64) = (
        redis::from_redis_value(sealed[0].clone()).unwrap(),
        redis::from_redis_value(sealed[1].clone()).unwrap(),
    );
    assert_eq!(word, "sealed");
    Revoke {
        rev,
        withdrawn,
        mark: StreamId::parse(last[0].0.as_bytes()).unwrap(),
    }
}

/// Reads the log and holds it against the flips.
async fn judge(verdict: &mut Verdict, store: &Store, queue: &Queue, revokes: &[Revoke]) {
    let (mut after, mut done, mut owed, mut seen) = (None, BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    loop {
        let page = log::read(store, queue, after, 1_000).await.unwrap();
        let Some(last) = page.last() else { break };
        after = Some(last.id);
        for entry in &page {
            for group in &entry.attempts {
                for row in &group.tasks {
                    let task = row.0.to_string();
                    *verdict.ended.entry(row.3.as_str()).or_default() += 1;
                    let withdrawn = |r: &&Revoke| r.withdrawn == group.version.as_str() && group.rev < r.rev;
                    if let Some(flip) = revokes.iter().filter(withdrawn).find(|r| entry.id > r.mark)
                        && row.3.is_result()
                    {
                        verdict.effective += 1;
                        verdict.examples.push(format!(
                            "{task} {:?} on {} by revision {} at {}, revoked by {} after {}",
                            row.3, group.version, group.rev, entry.id, flip.rev, flip.mark
                        ));
                    }
                    seen.insert(task.clone());
                    match row.3 {
                        Ended::Revoked | Ended::Released => {
                            owed.insert(task);
                        }
                        Ended::Done if !done.insert(task.clone()) => verdict.done_twice += 1,
                        _ => {
                            owed.remove(&task);
                        }
                    }
                }
            }
        }
    }
    verdict.examples.truncate(3);
    verdict.never_done = usize::try_from(verdict.tasks).unwrap().saturating_sub(done.len());
    verdict.not_again = owed.len();
}

fn check(verdict: &Verdict) {
    let attempts: usize = verdict.ended.values().sum();
    let revoked = verdict.ended.get("revoked").copied().unwrap_or(0);
    assert!(attempts > 1_000 && revoked > 100, "{verdict:#?}");
    assert_eq!(verdict.effective, 0, "P3: {verdict:#?}");
    let lost = (verdict.never_done, verdict.done_twice, verdict.not_again);
    assert_eq!(lost, (0, 0, 0), "P1, P2: {verdict:#?}");
}

// P3.
#[tokio::test(flavor = "multi_thread")]
async fn no_result_of_a_revoked_attempt_counts_and_each_task_runs_again() {
    check(&race(200, true, "").await);
}

// P3: pushes make it fast, nothing more.
#[tokio::test(flavor = "multi_thread")]
async fn without_pushes_no_revoked_result_counts_either() {
    check(&race(200, false, "").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_settle_that_ignores_what_was_revoked_is_caught() {
    let verdict = race(60, false, "settle_ignores_revoke").await;
    assert!(verdict.effective > 0, "{verdict:#?}");
}
