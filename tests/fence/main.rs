//! P3 and P4 under fire: raw flips by the thousand, several worker processes, some of them stopped and continued at
//! random moments. Late starts are counted twice: by the harness's own witness, and by the certificate from the log.
//! The same scenario must fail when a worker misbehaves on purpose.

mod revoke;

use std::time::Duration;

use redis::{Value, aio::MultiplexedConnection};
use serde::{Deserialize, Serialize};
use switchback_common::{
    ConnectOptions, Queue, Store, StreamId, Task,
    clock::Moment,
    store::{gate::GateStore, log},
};
use switchback_gates::certificate::Revisions;
use switchback_producer::Producer;
use switchback_tests::{Flip, Process, RedisServer, Witness, eventually, patience};
use tempfile::TempDir;

const START_TTL: Duration = Duration::from_millis(250);
const LEASE: Duration = Duration::from_millis(1_500);
const GATE: &str = "sb:gate:{test:probe}";
const SESSIONS: &str = "sb:sessions:{test:probe}";
const LOG: &str = "sb:log:{test:probe}";

#[derive(Serialize, Deserialize)]
struct Probe {
    n: u64,
    work_ms: u64,
    then: String,
}

impl Task for Probe {
    const TYPE: &'static str = "probe";
}

/// A small generator of our own: the same seed gives the same schedule.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }
}

#[derive(Debug, Default)]
struct Verdict {
    flips: usize,
    starts: usize,
    tasks: u64,
    never_ended: usize,
    late_by_witness: usize,
    late_by_certificate: usize,
    settled_after_loss: usize,
    stops: usize,
    losses: usize,
    examples: Vec<String>,
}

struct Fire {
    flips: usize,
    pushes: bool,
    faults: &'static str,
    /// End as soon as something is caught.
    until_caught: bool,
}

async fn under_fire(fire: Fire) -> Verdict {
    let server = RedisServer::start().await;
    let directory = TempDir::new().unwrap();
    let mut witness = Witness::default();
    let mut pools = Vec::new();
    for (n, versions) in ["v1", "v1,v2", "v2,v1", "v2"].into_iter().enumerate() {
        let file = directory.path().join(format!("starts-{n}"));
        witness.watch(&file);
        let mut args = vec![
            "--redis".to_owned(),
            server.url(),
            "--versions".to_owned(),
            versions.to_owned(),
            "--witness".to_owned(),
            file.display().to_string(),
            "--lease-ms".to_owned(),
            LEASE.as_millis().to_string(),
            "--faults".to_owned(),
            fire.faults.to_owned(),
        ];
        if !fire.pushes {
            args.push("--no-pushes".to_owned());
        }
        let pool = Process::start("switchback-test-pool", args, [("RUST_LOG", "warn")]);
        if n == 0 {
            // The first to join seeds the gate with v1.
            joined(&server, 1).await;
        }
        pools.push(pool);
    }
    joined(&server, 4).await;

    let connect = ConnectOptions::new(server.url());
    let producer = Producer::connect(&connect, "test".parse().unwrap()).await.unwrap();
    let mut raw = server.connection().await;
    let store = Store::new(&connect).unwrap();
    let queue = Queue::new("test".parse().unwrap(), "probe".parse().unwrap());
    let mut dice = Dice(0x5eed_0001);
    let mut verdict = Verdict::default();
    let mut sent = 0;
    let mut lost: Vec<(String, StreamId)> = Vec::new();
    for flip in 0..fire.flips {
        let version = if flip % 2 == 0 { "v2" } else { "v1" };
        flip_to(&mut raw, &mut witness, version).await;
        let burst: Vec<Probe> = (0..1 + dice.roll(4))
            .map(|_| {
                let probe = Probe {
                    n: sent,
                    work_ms: if dice.roll(3) == 0 { dice.roll(40) } else { 0 },
                    then: String::new(),
                };
                witness.sending(sent);
                sent += 1;
                probe
            })
            .collect();
        for task in &burst {
            producer.enqueue(task).await.unwrap();
        }
        match dice.roll(100) {
            // A worker stands still for a moment, or for longer than a gate read may be old.
            0..=3 => {
                let pool = &pools[usize::try_from(dice.roll(4)).unwrap()];
                pool.stop();
                verdict.stops += 1;
                tokio::time::sleep(Duration::from_millis(dice.roll(30))).await;
                if dice.roll(3) == 0 {
                    tokio::time::sleep(START_TTL).await;
                }
                // It comes back into a world that was flipped meanwhile.
                let after = if version == "v1" { "v2" } else { "v1" };
                flip_to(&mut raw, &mut witness, after).await;
                tokio::time::sleep(START_TTL + Duration::from_millis(10)).await;
                pool.cont();
                // No flip before it has had time to do wrong.
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            // One is gone for longer than its lease, and its session is declared lost.
            4 if verdict.losses < 12 => {
                let pool = &pools[1 + usize::try_from(dice.roll(3)).unwrap()];
                if let Some(loss) = lose(&server, &mut raw, &producer, &mut witness, &mut sent, pool).await {
                    verdict.losses += 1;
                    lost.push(loss);
                }
            }
            5..=30 => tokio::time::sleep(Duration::from_millis(dice.roll(8))).await,
            _ => {}
        }
        if fire.until_caught && flip % 20 == 0 {
            let late = witness.late(START_TTL).count();
            if late > 0 || settled_after_loss(&store, &queue, &lost).await > 0 {
                break;
            }
        }
    }
    // Whatever was enqueued ends.
    let tasks = sent;
    if !fire.until_caught {
        eventually("every task has ended", patience(Duration::from_secs(60)), async || {
            let ended: std::collections::HashSet<u64> = witness.ends().into_iter().collect();
            let waiting = server.cli(&["XPENDING", "sb:stream:{test:probe}", "workers"]).await;
            if ended.len() as u64 == tasks {
                Ok(())
            } else {
                Err(format!("{} of {tasks} ended; pending {waiting:?}", ended.len()))
            }
        })
        .await;
    }
    for pool in &pools {
        pool.term();
    }
    for pool in &pools {
        pool.wait().await;
    }
    let late = witness.late(START_TTL);
    verdict.flips = witness.flips();
    verdict.tasks = tasks;
    verdict.starts = witness.starts().len();
    let ended: std::collections::HashSet<u64> = witness.ends().into_iter().collect();
    verdict.never_ended = usize::try_from(tasks).unwrap() - ended.len();
    verdict.late_by_witness = late.count();
    verdict.examples = late.sent_after.into_iter().chain(late.past_ttl).take(5).collect();
    let history = GateStore::new(&store, &queue).history(None, 20_000).await.unwrap();
    let revisions = Revisions::from_history(&history);
    let mut after = None;
    loop {
        let page = log::read(&store, &queue, after, 1_000).await.unwrap();
        let Some(last) = page.last() else { break };
        after = Some(last.id);
        for group in page.iter().flat_map(|entry| &entry.attempts) {
            verdict.late_by_certificate += revisions.late(group).len();
        }
    }
    verdict.settled_after_loss = settled_after_loss(&store, &queue, &lost).await;
    verdict
}

/// Flips the gate with the very bytes that a person would send.
async fn flip_to(raw: &mut MultiplexedConnection, witness: &mut Witness, version: &str) {
    let sent = Moment::now();
    let mut hset = redis::cmd("HSET");
    hset.arg(GATE).arg("only").arg(version);
    let _: i64 = hset.query_async(raw).await.unwrap();
    witness.flipped(Flip {
        sent,
        replied: Moment::now(),
        version: version.to_owned(),
    });
}

/// Stops a worker until its lease is gone and declares its session lost, as a reaper would; then lets it go on.
/// Gives the session and the log's last entry at that moment.
async fn lose(
    server: &RedisServer,
    raw: &mut MultiplexedConnection,
    producer: &Producer,
    witness: &mut Witness,
    sent: &mut u64,
    pool: &Process,
) -> Option<(String, StreamId)> {
    // Something may be under way in it: a chance, for a worker without the active version takes nothing.
    for _ in 0..20 {
        witness.sending(*sent);
        let task = Probe {
            n: *sent,
            work_ms: 60,
            then: String::new(),
        };
        producer.enqueue(&task).await.unwrap();
        *sent += 1;
    }
    tokio::time::sleep(Duration::from_millis(10)).await;
    pool.stop();
    let session = session_of(server, pool.pid()).await?;
    let lease = format!("sb:lease:{{test:probe}}:{session}");
    eventually("the lease runs out", patience(Duration::from_secs(10)), async || {
        server.cli(&["EXISTS", &lease]).await == Value::Int(0)
    })
    .await;
    // The mark and the log's position in one step: what the session settles after it, it had no right to.
    let (_, info): (i64, Vec<Value>) = redis::pipe()
        .atomic()
        .cmd("HSETNX")
        .arg(SESSIONS)
        .arg(format!("{session}:reaping"))
        .arg(1)
        .cmd("XREVRANGE")
        .arg(LOG)
        .arg("+")
        .arg("-")
        .arg("COUNT")
        .arg(1)
        .query_async(raw)
        .await
        .unwrap();
    pool.cont();
    let Some(Value::Array(entry)) = info.into_iter().next() else {
        return None;
    };
    let Some(Value::BulkString(id)) = entry.into_iter().next() else {
        return None;
    };
    Some((session, StreamId::parse(&id)?))
}

async fn session_of(server: &RedisServer, pid: u32) -> Option<String> {
    let Value::Array(flat) = server.cli(&["HGETALL", SESSIONS]).await else {
        return None;
    };
    let texts: Vec<String> = flat
        .into_iter()
        .map(|v| redis::from_redis_value(v).unwrap_or_default())
        .collect();
    let mine = format!("\"pid\":{pid},");
    texts
        .chunks(2)
        .filter(|pair| !pair[0].contains(':') && pair[1].contains(&mine))
        .map(|pair| pair[0].clone())
        .next_back()
}

async fn settled_after_loss(store: &Store, queue: &Queue, lost: &[(String, StreamId)]) -> usize {
    let mut count = 0;
    for (session, mark) in lost {
        let mut after = Some(*mark);
        loop {
            let page = log::read(store, queue, after, 1_000).await.unwrap();
            let Some(last) = page.last() else { break };
            after = Some(last.id);
            count += page
                .iter()
                .filter(|entry| entry.kind == "settled" && entry.session.as_str() == session)
                .count();
        }
    }
    count
}

async fn joined(server: &RedisServer, workers: usize) {
    eventually(
        "the workers have joined and looked at the gate",
        patience(Duration::from_secs(20)),
        async || {
            let Value::Array(names) = server.cli(&["HKEYS", SESSIONS]).await else {
                return false;
            };
            let published = names
                .into_iter()
                .filter(|name| matches!(name, Value::BulkString(b) if b.ends_with(b":rev")))
                .count();
            published == workers
        },
    )
    .await;
}

fn check(verdict: &Verdict, flips: usize) {
    println!("{verdict:?}");
    assert!(
        verdict.flips >= flips && verdict.stops > 20 && verdict.losses > 2,
        "{verdict:?}"
    );
    assert_eq!(verdict.never_ended, 0, "P1: {verdict:?}");
    assert_eq!(verdict.late_by_witness, 0, "P3: {verdict:#?}");
    assert_eq!(verdict.late_by_certificate, 0, "P3: {verdict:#?}");
    assert_eq!(verdict.settled_after_loss, 0, "P4: {verdict:#?}");
}

// P3, P4.
#[tokio::test(flavor = "multi_thread")]
async fn thousands_of_raw_flips_under_fire_and_nothing_starts_late() {
    let verdict = under_fire(Fire {
        flips: 2_000,
        pushes: true,
        faults: "",
        until_caught: false,
    })
    .await;
    check(&verdict, 2_000);
}

// P3: pushes make it fast, nothing more.
#[tokio::test(flavor = "multi_thread")]
async fn without_pushes_nothing_starts_late_either() {
    let verdict = under_fire(Fire {
        flips: 700,
        pushes: false,
        faults: "",
        until_caught: false,
    })
    .await;
    check(&verdict, 700);
}

async fn caught(faults: &'static str) -> Verdict {
    let verdict = under_fire(Fire {
        flips: 3_000,
        // A push forbids starts by older reads, and so hides some of the damage.
        pushes: false,
        faults,
        until_caught: true,
    })
    .await;
    println!("{verdict:?}");
    verdict
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gate_read_before_the_claim_is_caught() {
    let verdict = caught("gate_before_claim").await;
    assert!(verdict.late_by_witness > 0, "{verdict:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_skipped_start_check_is_caught() {
    let verdict = caught("skip_start_check").await;
    assert!(verdict.late_by_witness > 0, "{verdict:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_settle_that_ignores_the_lease_is_caught() {
    let verdict = caught("settle_ignores_lease").await;
    assert!(verdict.settled_after_loss > 0, "{verdict:#?}");
}
