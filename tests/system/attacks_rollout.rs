//! Attacks on rollouts: keys that somebody edited or lost, drivers that freeze, a Redis that is full or restarts. The guard
//! rolls back all the same, a person wins, and nothing is done twice.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use futures_util::future::join_all;
use redis::Value;
use switchback_common::store::log;
use switchback_gates::{
    Gate,
    rollout::{Record, Status},
};
use switchback_tests::{Link, Mode, RedisServer, eventually, patience};

use crate::{
    fixture::Fixture,
    rollout::{LONG, Pools, QUICK, Ramp, Traffic, assert_each_step_once, becomes, begin, record, store},
};

fn v1() -> Gate {
    Gate::new("v1".parse().unwrap())
}

async fn text(fixture: &Fixture, args: &[&str]) -> String {
    redis::from_redis_value(fixture.raw(args).await).unwrap_or_default()
}

/// A good rollout that is under way, with a driver.
async fn under_way(spec: &str) -> (Ramp, Traffic) {
    let ramp = Ramp::new().await;
    let traffic = Traffic::begin(&ramp.fixture, None);
    ramp.start(spec).await;
    eventually("both versions are counted", patience(LONG), async || {
        let totals = ramp.record().await.totals;
        totals.active.n > 50 && totals.candidate.n > 5
    })
    .await;
    (ramp, traffic)
}

/// What somebody did to the keys beside the gate.
async fn vandal(fixture: &Fixture, what: &str) {
    let run = async |args: &[&str]| drop(fixture.raw(args).await);
    match what {
        "no versions" => run(&["DEL", "sb:versions:{test:job}"]).await,
        "versions of another type" => {
            run(&["DEL", "sb:versions:{test:job}"]).await;
            run(&["SET", "sb:versions:{test:job}", "x"]).await;
        }
        "an entry that is no text" => {
            let mut raw = fixture.server.connection().await;
            let entry: &[u8] = b"{\"build\":\"\xff\xfe\"}";
            let set = redis::cmd("HSET")
                .arg("sb:versions:{test:job}")
                .arg("v2")
                .arg(entry)
                .query_async::<u64>(&mut raw)
                .await;
            assert_eq!(set.unwrap(), 0);
        }
        "a driver of another type" => {
            // At once: a worker takes the lease as soon as it is gone.
            let script = "redis.call('DEL', KEYS[1]) return redis.call('HSET', KEYS[1], 'a', 'b')";
            run(&["EVAL", script, "1", "sb:driver:{test:job}"]).await;
        }
        "a driver for ever" => run(&["SET", "sb:driver:{test:job}", "bob"]).await,
        "no driver" => run(&["DEL", "sb:driver:{test:job}"]).await,
        "blocks of another type" => {
            let Value::Array(time) = fixture.raw(&["TIME"]).await else {
                panic!()
            };
            let now: u64 = redis::from_redis_value(time[0].clone()).unwrap();
            for n in now..now + 3 {
                let key = format!("sb:block:{{test:job}}:{n}");
                run(&["DEL", &key]).await;
                run(&["SET", &key, "x"]).await;
            }
        }
        "blocks of garbage" => {
            let Value::Array(time) = fixture.raw(&["TIME"]).await else {
                panic!()
            };
            let now: u64 = redis::from_redis_value(time[0].clone()).unwrap();
            for n in now..now + 3 {
                let key = format!("sb:block:{{test:job}}:{n}");
                run(&[
                    "HSET", &key, "v2:f", "many", "v1:n", "-7", "v9:n", "1", "x", "y", "v1:t999", "3",
                ])
                .await;
            }
        }
        other => panic!("{other}"),
    }
}

// P8: the way back is open whatever is wrong beside the gate. Each was a rollback that never came: a step that is refused or
// stale for ever, a look that fails, a lease that nobody holds.
#[tokio::test(flavor = "multi_thread")]
async fn the_guard_rolls_back_whatever_somebody_did_beside_the_gate() {
    let kinds = [
        "no versions",
        "versions of another type",
        "an entry that is no text",
        "a driver of another type",
        "a driver for ever",
        "no driver",
        "blocks of another type",
        "blocks of garbage",
    ];
    join_all(kinds.map(async |what| {
        let patient = QUICK.replace(r#""bake":"1s""#, r#""bake":"1h""#);
        let (ramp, _traffic) = under_way(&patient).await;
        vandal(&ramp.fixture, what).await;
        ramp.v2.set(60);
        let over = ramp.becomes(Status::RolledBack).await;
        assert_eq!(ramp.gate().await, v1(), "{what}");
        let history = ramp
            .fixture
            .gates
            .history(&ramp.fixture.queue, None, 100)
            .await
            .unwrap();
        let guards = history.iter().filter(|e| e.source == "guard").count();
        assert_eq!((guards, over.rev), (1, history[0].rev), "{what}");
        println!("{what}: rolled back");
    }))
    .await;
}

// The version that it goes back to was active when the rollout began; that a list of versions is lost does not shut the way.
// And what a flip revokes it revokes without that list.
#[tokio::test(flavor = "multi_thread")]
async fn the_way_back_from_a_promoted_version_needs_no_list_of_versions() {
    let spec = QUICK.replace(r#""watch":"1s""#, r#""watch":"1h","inflight":"revoke""#);
    let ramp = Ramp::new().await;
    let _traffic = Traffic::begin(&ramp.fixture, None);
    ramp.start(&spec).await;
    ramp.becomes(Status::Watching).await;
    vandal(&ramp.fixture, "no versions").await;
    ramp.v2.set(60);
    let over = ramp.becomes(Status::RolledBack).await;
    assert_eq!(ramp.gate().await, v1());
    let min = text(&ramp.fixture, &["HGET", "sb:gatestate:{test:job}", "min_rev:v2"]).await;
    assert_eq!(min, over.rev.to_string());
}

// P1, P9: what is wrong with a counter keeps no result out of the log.
#[tokio::test(flavor = "multi_thread")]
async fn a_counter_of_another_type_keeps_nothing_out_of_the_log() {
    let ramp = Ramp::new().await;
    ramp.start(&QUICK.replace(r#""extend":100"#, r#""extend":2"#)).await;
    eventually("it is counted for", patience(LONG), async || {
        ramp.fixture.enqueue([1]).await;
        ramp.record().await.totals.active.n > 0
    })
    .await;
    let before = done(&ramp.fixture).await;
    vandal(&ramp.fixture, "blocks of another type").await;
    ramp.fixture.raw(&["DEL", "sb:stats:{test:job}"]).await;
    ramp.fixture.raw(&["SET", "sb:stats:{test:job}", "x"]).await;
    ramp.fixture.enqueue(0..40).await;
    ramp.fixture.drained().await;
    eventually("all are in the log", patience(LONG), async || {
        let now = done(&ramp.fixture).await;
        if now >= before + 40 {
            Ok(())
        } else {
            Err(format!("{before} {now}"))
        }
    })
    .await;
}

async fn done(fixture: &Fixture) -> usize {
    let entries = log::read(&fixture.store, &fixture.queue, None, 100_000).await.unwrap();
    let rows = entries.iter().flat_map(|e| &e.attempts).flat_map(|g| &g.tasks);
    rows.filter(|row| row.3 == log::Ended::Done).count()
}

// A record that is gone: nobody counts for it any more, people are told, the gate stays, and the next one can begin.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_record_ends_the_rollout_and_says_so() {
    let (ramp, _traffic) = under_way(&QUICK.replace(r#""bake":"1s""#, r#""bake":"1h""#)).await;
    ramp.fixture.raw(&["DEL", "sb:rollout:{test:job}"]).await;
    eventually("the signal is out", patience(LONG), async || {
        text(&ramp.fixture, &["HGET", "sb:gatestate:{test:job}", "rollout"]).await == "0"
    })
    .await;
    assert_eq!(ramp.gate().await.to_string(), "v1 active, v2 at 10 %");
    let entries = log::read(&ramp.fixture.store, &ramp.fixture.queue, None, 100_000)
        .await
        .unwrap();
    let said = entries
        .iter()
        .filter(|e| e.kind == "rollout")
        .map(|e| e.text.as_str())
        .next_back();
    assert!(said.unwrap().contains("record could not be read"), "{said:?}");
    ramp.fixture.set(&[("only", "v1")]).await;
    ramp.start(QUICK).await;
    ramp.fixture.set(&[("only", "v1")]).await;
    ramp.becomes(Status::Overruled).await;
    // P10: nor is anything counted for one that is over, although the signal says that it runs.
    ramp.fixture
        .raw(&["HSET", "sb:gatestate:{test:job}", "rollout", "12345"])
        .await;
    eventually("the signal is out again", patience(LONG), async || {
        text(&ramp.fixture, &["HGET", "sb:gatestate:{test:job}", "rollout"]).await == "0"
    })
    .await;
    assert_eq!(ramp.record().await.status, Status::Overruled);
}

// P9: a driver that was frozen past its lease wakes up beside its successor: one of them steps, each step once.
#[tokio::test(flavor = "multi_thread")]
async fn a_driver_that_was_frozen_steps_no_more() {
    let pools = Pools::new(2).await;
    let _traffic = pools.traffic("");
    begin(&pools.fixture, QUICK).await;
    let first = pools.driver().await;
    pools.all[first].0.stop();
    eventually("another drives", patience(LONG), async || {
        let driver = store(&pools.fixture).driver().await.unwrap()?;
        let (process, _) = &pools.all[first];
        let began = |line: &String| line.contains("session begun") && line.contains(driver.as_str());
        (!process.lines().iter().any(began)).then_some(())
    })
    .await;
    pools.all[first].0.cont();
    let record = becomes(&pools.fixture, Status::Promoted).await;
    assert_each_step_once(&pools.fixture, &record).await;
}

// Whoever drives is killed at moments that nobody chose, the driver's lease is deleted, and Redis restarts in between.
#[tokio::test(flavor = "multi_thread")]
async fn kills_restarts_and_lost_leases_lose_no_step() {
    let fixture = Fixture::on(RedisServer::builder().aof(true).start().await).await;
    let mut pools = Pools::on(fixture, 3).await;
    let traffic = pools.traffic("");
    begin(&pools.fixture, QUICK).await;
    for moment in [130, 970, 410] {
        tokio::time::sleep(Duration::from_millis(moment)).await;
        pools.kill_driver().await;
        pools.fixture.raw(&["DEL", "sb:driver:{test:probe}"]).await;
        pools.add().await;
    }
    drop(traffic);
    pools.fixture.server.restart().await;
    let _traffic = pools.traffic("");
    let record = eventually("it is promoted", patience(LONG), async || {
        let (fields, _) = store(&pools.fixture).read().await.map_err(|e| e.to_string())?;
        let record = Record::parse(&fields).unwrap().unwrap();
        if record.status == Status::Promoted {
            Ok(record)
        } else {
            Err(format!("{:?} {}", record.events, record.verdict()))
        }
    })
    .await;
    assert_each_step_once(&pools.fixture, &record).await;
}

// P9: steps whose replies were lost, and which Redis made: whoever looks next goes on from there.
#[tokio::test(flavor = "multi_thread")]
async fn steps_whose_replies_are_lost_are_made_once() {
    let mut pools = Pools::new(0).await;
    let link = Link::to(pools.fixture.server.port()).await;
    for _ in 0..2 {
        pools.add_at(&link.url()).await;
    }
    let _traffic = pools.traffic("");
    begin(&pools.fixture, QUICK).await;
    let over = AtomicBool::new(false);
    let trouble = async {
        while !over.load(Ordering::SeqCst) {
            link.set(Mode::DropReplies).await;
            tokio::time::sleep(Duration::from_millis(60)).await;
            link.set(Mode::Pass).await;
            tokio::time::sleep(Duration::from_millis(700)).await;
        }
    };
    let watch = async {
        let record = becomes(&pools.fixture, Status::Promoted).await;
        over.store(true, Ordering::SeqCst);
        record
    };
    let ((), record) = tokio::join!(trouble, watch);
    assert!(link.counters().swallowed_bytes > 0);
    assert_each_step_once(&pools.fixture, &record).await;
}

// P10: a guard at maxmemory sees, and rolls back; its script is one that may write there.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_redis_is_rolled_back_by_the_guard() {
    let (ramp, traffic) = under_way(&QUICK.replace(r#""bake":"1s""#, r#""bake":"1h""#)).await;
    ramp.fixture.raw(&["HSET", "sb:gate:{test:job}", "paused", "1"]).await;
    ramp.fixture.enqueue(1_000..5_000).await;
    drop(traffic);
    ramp.v2.set(60);
    let before = ramp.record().await.totals;
    ramp.fixture.set(&[("paused", "0")]).await;
    ramp.fixture.raw(&["CONFIG", "SET", "maxmemory", "1mb"]).await;
    ramp.becomes(Status::RolledBack).await;
    let totals = record(&ramp.fixture).await.totals;
    assert!(totals.candidate.n > before.candidate.n, "{totals:?}");
    assert_eq!(ramp.gate().await, v1());
    ramp.fixture.drained().await;
}

/// Whoever sets the gate by hand at any moment has the last word, and the candidate never comes back by itself.
#[tokio::test(flavor = "multi_thread")]
async fn a_person_and_the_guard_at_the_same_moment() {
    let edits = [
        vec!["only", "v1"],
        vec!["candidate", "v2", "percent", "50"],
        vec!["active", "v2"],
        vec!["candidate", "", "percent", "0"],
    ];
    join_all(edits.into_iter().map(async |edit| {
        let (ramp, _traffic) = under_way(&QUICK.replace(r#""bake":"1s""#, r#""bake":"1h""#)).await;
        ramp.v2.set(100);
        let early = ramp.record().await.totals.candidate;
        eventually("it fails", patience(LONG), async || {
            ramp.record().await.totals.candidate.failed > early.failed
        })
        .await;
        let mut args = vec!["HSET", "sb:gate:{test:job}"];
        args.extend(&edit);
        args.extend(["by", "bob"]);
        ramp.fixture.raw(&args).await;
        let over = eventually("it is over", patience(LONG), async || {
            let record = ramp.record().await;
            if record.status.is_live() {
                Err(format!("{:?}", record.events))
            } else {
                Ok(record)
            }
        })
        .await;
        // Long enough for a driver to look some more times.
        tokio::time::sleep(Duration::from_secs(2)).await;
        let history = ramp
            .fixture
            .gates
            .history(&ramp.fixture.queue, None, 100)
            .await
            .unwrap();
        let made: Vec<(&str, String)> = history
            .iter()
            .filter(|e| e.kind == "change")
            .map(|e| (e.source.as_str(), Gate::from_history(&e.after).unwrap().to_string()))
            .collect();
        let (guards, people) = (
            made.iter().filter(|m| m.0 == "guard").count(),
            made.iter().filter(|m| m.0 == "redis-cli").count(),
        );
        assert!(guards <= 1 && people <= 1, "{edit:?}: {made:?}");
        match over.status {
            Status::Overruled => assert_eq!(guards, 0, "{edit:?}: {made:?}"),
            // The guard was first; then what a person wrote is judged onto what it left.
            Status::RolledBack => assert_eq!(guards, 1, "{edit:?}: {made:?}"),
            other => panic!("{edit:?}: {other} {made:?}"),
        }
        println!("{edit:?}: {} {made:?}", over.status);
    }))
    .await;
}
