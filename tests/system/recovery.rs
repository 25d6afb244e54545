//! Workers that stop, die, stand still, or lose what they were given.

use std::time::Duration;

use redis::Value;
use switchback_common::{ConnectOptions, store::log};
use switchback_tests::{Link, Mode, eventually, patience};
use switchback_worker::WorkerConfig;

use crate::{
    fixture::{Fixture, Seen},
    pool::Pool,
};

const GATE_STATE: &str = "sb:gatestate:{test:job}";

// P6: a stopping worker finishes what it can, gives the rest back with the attempt refunded, and says goodbye.
#[tokio::test(flavor = "multi_thread")]
async fn a_clean_stop_gives_everything_back_at_once() {
    let mut fixture = Fixture::new().await;
    let seen = Seen::default();
    let handler = seen.handler();
    let config = fixture.config().grace(Duration::from_millis(100));
    let stop = fixture.worker(config, |t| t.version("v1", handler)).await;
    fixture.enqueue_one(1, "hang").await;
    eventually("it hangs", patience(Duration::from_secs(5)), async || {
        seen.all().len() == 1
    })
    .await;
    fixture.stop(&stop).await;
    let depth = fixture.depth().await;
    assert_eq!((depth.head.waiting(), depth.in_flight()), (1, 0));
    assert_eq!(fixture.raw(&["HLEN", "sb:sessions:{test:job}"]).await, Value::Int(0));
    let (_stop, second) = fixture.simple(&["v1"]).await;
    eventually("the next worker has it", patience(Duration::from_secs(5)), async || {
        second.all().len() == 1
    })
    .await;
    let again = &second.all()[0];
    assert_eq!((again.attempt, again.recovered), (1, 0), "nothing was burnt");
    assert_eq!(again.id, seen.all()[0].id, "the same task");
}

/// With a lease that outlasts a machine that stands still for a moment.
fn pool(fixture: &Fixture, extra: &[&str]) -> Pool {
    Pool::start(fixture, &[&["--lease-ms", "3000"], extra].concat())
}

async fn enqueue_probe(fixture: &Fixture, json: &str) {
    fixture
        .raw(&["XADD", "sb:stream:{test:probe}", "*", "payload", json])
        .await;
}

// P1: what a killed worker held runs elsewhere, and knows that an earlier attempt vanished.
#[tokio::test(flavor = "multi_thread")]
async fn a_killed_workers_tasks_run_elsewhere() {
    let fixture = Fixture::new().await;
    let first = pool(&fixture, &[]);
    first.process.wait_line("session begun").await;
    for n in 0..5 {
        enqueue_probe(&fixture, &format!("{{\"n\":{n},\"work_ms\":60000}}")).await;
    }
    eventually("all five run", patience(Duration::from_secs(10)), async || {
        first.witness.starts().len() == 5
    })
    .await;
    first.process.kill9();
    // Any of them may have killed it: a tenth of the slots is for those.
    let second = pool(&fixture, &["--concurrency", "50"]);
    eventually(
        "all five run elsewhere",
        patience(Duration::from_secs(15)),
        async || second.witness.starts().len() == 5,
    )
    .await;
    let queue = switchback_common::Queue::new("test".parse().unwrap(), "probe".parse().unwrap());
    let entries = log::read(&fixture.store, &queue, None, 100).await.unwrap();
    let kinds: Vec<&str> = entries.iter().map(|e| e.kind.as_str()).collect();
    assert!(kinds.contains(&"reaping") && kinds.contains(&"recovered"), "{kinds:?}");
}

// SIGTERM: running tasks finish, the process ends with 0.
#[tokio::test(flavor = "multi_thread")]
async fn sigterm_finishes_what_runs() {
    let fixture = Fixture::new().await;
    let pool = pool(&fixture, &[]);
    pool.process.wait_line("session begun").await;
    enqueue_probe(&fixture, "{\"n\":1,\"work_ms\":400}").await;
    eventually("it runs", patience(Duration::from_secs(10)), async || {
        pool.witness.starts().len() == 1
    })
    .await;
    pool.process.term();
    assert!(pool.process.wait().await.success());
    assert_eq!(pool.witness.ends(), [1]);
}

// P4: a worker that stood still past its lease finds its tasks given away; its late result is refused and written down.
#[tokio::test(flavor = "multi_thread")]
async fn a_zombies_results_are_refused() {
    let fixture = Fixture::new().await;
    let zombie = pool(&fixture, &[]);
    zombie.process.wait_line("session begun").await;
    // Longer than it takes to stop it, which must come before its end.
    enqueue_probe(&fixture, "{\"n\":1,\"work_ms\":2000}").await;
    eventually("it runs", patience(Duration::from_secs(10)), async || {
        zombie.witness.starts().len() == 1
    })
    .await;
    zombie.process.stop();
    let other = pool(&fixture, &[]);
    eventually("the other ran it", patience(Duration::from_secs(15)), async || {
        other.witness.ends() == [1]
    })
    .await;
    zombie.process.cont();
    zombie.process.wait_line("this session was lost").await;
    let queue = switchback_common::Queue::new("test".parse().unwrap(), "probe".parse().unwrap());
    let settled = eventually(
        "the zombie has a new session",
        patience(Duration::from_secs(10)),
        async || {
            let entries = log::read(&fixture.store, &queue, None, 100).await.unwrap();
            let joined = entries.iter().filter(|e| e.kind == "joined").count();
            (joined == 3).then(|| {
                entries
                    .iter()
                    .flat_map(|e| &e.attempts)
                    .map(|g| g.tasks.len())
                    .sum::<usize>()
            })
        },
    )
    .await;
    assert_eq!(settled, 1, "one settle counts");
}

// A handler that takes longer than the lease runs once.
#[tokio::test(flavor = "multi_thread")]
async fn a_long_task_runs_once() {
    let fixture = Fixture::new().await;
    let (one, two) = (pool(&fixture, &[]), pool(&fixture, &[]));
    for pool in [&one, &two] {
        pool.process.wait_line("session begun").await;
    }
    enqueue_probe(&fixture, "{\"n\":1,\"work_ms\":10000}").await;
    eventually("it has ended", patience(Duration::from_secs(15)), async || {
        one.witness.ends().len() + two.witness.ends().len() == 1
    })
    .await;
    assert_eq!(one.witness.starts().len() + two.witness.starts().len(), 1);
}

// P1: a claim whose reply was lost leaves tasks with a worker that never saw them. It finds them.
#[tokio::test(flavor = "multi_thread")]
async fn a_claim_whose_reply_was_lost_runs_after_all() {
    let mut fixture = Fixture::new().await;
    let link = Link::to(fixture.server.port()).await;
    let seen = Seen::default();
    let handler = seen.handler();
    let config =
        WorkerConfig::new(ConnectOptions::new(link.url()), "test".parse().unwrap()).lease(Duration::from_secs(5));
    fixture.worker(config, |t| t.version("v1", handler)).await;
    // Before that it could not even connect, and would claim nothing.
    fixture.blocked(1).await;
    link.set(Mode::DropReplies).await;
    fixture.enqueue(0..10).await;
    eventually(
        "the tasks are claimed by somebody who never hears of it",
        patience(Duration::from_secs(5)),
        async || fixture.depth().await.in_flight() > 0,
    )
    .await;
    link.set(Mode::Pass).await;
    fixture.drained().await;
    let mut numbers: Vec<u64> = seen.all().iter().map(|r| r.n).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (0..10).collect::<Vec<_>>(), "each once");
}

// Redis away and back: nothing is lost, nothing needs a restart.
#[tokio::test(flavor = "multi_thread")]
async fn a_cut_network_heals() {
    let mut fixture = Fixture::new().await;
    let link = Link::to(fixture.server.port()).await;
    let seen = Seen::default();
    let handler = seen.handler();
    let config =
        WorkerConfig::new(ConnectOptions::new(link.url()), "test".parse().unwrap()).lease(Duration::from_secs(5));
    fixture.worker(config, |t| t.version("v1", handler)).await;
    for round in 0..5 {
        fixture.enqueue(round * 100..(round + 1) * 100).await;
        link.cut().await;
    }
    fixture.drained().await;
    let distinct: std::collections::BTreeSet<u64> = seen.all().iter().map(|r| r.n).collect();
    assert_eq!(distinct.len(), 500);
}

// P8: a group that vanished under waiting tasks is not recreated at 0; a person decides.
#[tokio::test(flavor = "multi_thread")]
async fn a_vanished_group_holds_the_queue() {
    let mut fixture = Fixture::new().await;
    let (_stop, seen) = fixture.simple(&["v1"]).await;
    fixture.enqueue(0..5).await;
    fixture.drained().await;
    fixture
        .raw(&["XGROUP", "DESTROY", "sb:stream:{test:job}", "workers"])
        .await;
    fixture.enqueue([5]).await;
    eventually(
        "the queue still knows its gate",
        patience(Duration::from_secs(5)),
        async || fixture.raw(&["EXISTS", GATE_STATE]).await == Value::Int(1),
    )
    .await;
    assert_eq!(seen.all().len(), 5, "retained tasks did not run again");
    fixture
        .raw(&["XGROUP", "CREATE", "sb:stream:{test:job}", "workers", "$"])
        .await;
    fixture.enqueue([6]).await;
    eventually(
        "it goes on where the person said",
        patience(Duration::from_secs(10)),
        async || seen.versions_of(6) == ["v1"],
    )
    .await;
    assert_eq!(seen.all().len(), 6);
}

// P8: a gate that goes back behind what was obeyed is held until a person resumes it.
#[tokio::test(flavor = "multi_thread")]
async fn a_gate_that_goes_backwards_is_held() {
    let mut fixture = Fixture::new().await;
    let (_stop, seen) = fixture.simple(&["v1", "v2"]).await;
    let keys = [GATE_STATE, "sb:gate:{test:job}", "sb:history:{test:job}"];
    let mut raw = fixture.server.connection().await;
    let mut dumps = Vec::new();
    fixture.set(&[("active", "v2")]).await;
    for key in keys {
        let dump: Vec<u8> = redis::cmd("DUMP").arg(key).query_async(&mut raw).await.unwrap();
        dumps.push(dump);
    }
    let obeyed = fixture.set(&[("only", "v1")]).await;
    // A failover that lost the rollback.
    let mut pipe = redis::pipe();
    pipe.atomic();
    for (key, dump) in keys.iter().zip(&dumps) {
        pipe.cmd("RESTORE").arg(key).arg(0).arg(dump.as_slice()).arg("REPLACE");
    }
    let _: Vec<Value> = pipe.query_async(&mut raw).await.unwrap();
    fixture.enqueue([1]).await;
    let shown = eventually("the queue is held", patience(Duration::from_secs(10)), async || {
        let shown = fixture.gates.show(&fixture.queue).await.unwrap();
        shown.gate.paused.then_some(shown)
    })
    .await;
    assert!(shown.rev > obeyed, "newcomers see the number, too");
    assert!(seen.all().is_empty(), "nothing ran on the resurrected version");
    fixture.set(&[("only", "v1"), ("paused", "0")]).await;
    fixture.drained().await;
    assert_eq!(seen.versions_of(1), ["v1"]);
}

// FLUSHALL: the tasks are gone, and the workers carry on with what comes next.
#[tokio::test(flavor = "multi_thread")]
async fn workers_survive_a_flush() {
    let mut fixture = Fixture::new().await;
    let (_stop, seen) = fixture.simple(&["v1"]).await;
    fixture.set(&[("paused", "1")]).await;
    fixture.set(&[("paused", "0")]).await;
    fixture.raw(&["FLUSHALL"]).await;
    // The new gate is younger than what was obeyed: held, until somebody looks.
    eventually("the gate is held", patience(Duration::from_secs(20)), async || {
        fixture
            .gates
            .show(&fixture.queue)
            .await
            .is_ok_and(|shown| shown.gate.paused)
    })
    .await;
    fixture.enqueue([1]).await;
    fixture.set(&[("paused", "0")]).await;
    fixture.drained().await;
    assert_eq!(seen.versions_of(1), ["v1"]);
}
