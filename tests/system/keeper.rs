//! What lasts costs little: no state that a queue can be in for long has a worker ask Redis more often than now and then.

use std::time::Duration;

use redis::Value;
use switchback_common::{ConnectOptions, clock::Moment, store::log};
use switchback_tests::{Link, Mode, eventually, patience};
use switchback_worker::WorkerConfig;
use tokio::net::TcpListener;

use crate::{
    claims::watched,
    fixture::{Fixture, Seen},
    pool::Pool,
};

const LONG: Duration = Duration::from_secs(30);
/// A sweep comes every 5 s: a state that lasts so long has met one.
const PAST_A_SWEEP: u64 = 8;
const GATE_STATE: &str = "sb:gatestate:{test:job}";

/// Redis's clock, µs.
async fn clock(fixture: &Fixture) -> u64 {
    let (s, us): (u64, u64) = redis::from_redis_value(fixture.raw(&["TIME"]).await).unwrap();
    s * 1_000_000 + us
}

/// How often `command` was executed.
async fn calls(fixture: &Fixture, command: &str) -> u64 {
    let info: String = redis::from_redis_value(fixture.raw(&["INFO", "commandstats"]).await).unwrap();
    let line = info
        .lines()
        .find_map(|line| line.strip_prefix(&format!("cmdstat_{command}:calls=")));
    line.map_or(0, |line| line.split(',').next().unwrap().parse().unwrap())
}

/// Waits for `seconds` of Redis's clock; tells how often the gate was read in that time, and the time in s.
async fn gate_reads(fixture: &Fixture, seconds: u64) -> (u64, u64) {
    let began = clock(fixture).await;
    let before = calls(fixture, "hmget").await;
    let after = eventually("time passes", LONG, async || {
        let after = calls(fixture, "hmget").await;
        (clock(fixture).await >= began + seconds * 1_000_000).then_some(after)
    })
    .await;
    let took = (clock(fixture).await - began).div_ceil(1_000_000);
    (after - before, took)
}

/// As [`gate_reads`], which are a handful per second at most, and not none.
async fn at_ease(fixture: &Fixture, seconds: u64) {
    let (reads, took) = gate_reads(fixture, seconds).await;
    assert!((1..=took * 8 + 40).contains(&reads), "{reads} gate reads in {took} s");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_finishes_what_it_runs_looks_at_the_gate_now_and_then() {
    let mut fixture = Fixture::new().await;
    let (stop, seen) = fixture.simple(&["v1", "v2"]).await;
    fixture.enqueue_one(1, "hang").await;
    eventually("it hangs", LONG, async || seen.all().len() == 1).await;
    stop.cancel();
    // It still says what it obeys; the sweep that a flip brings is for those that stay.
    fixture.set(&[("active", "v2")]).await;
    at_ease(&fixture, 3).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_gate_state_is_looked_for_now_and_then() {
    let mut fixture = Fixture::new().await;
    let (_stop, _) = fixture.simple(&["v1"]).await;
    fixture.raw(&["DEL", GATE_STATE]).await;
    at_ease(&fixture, PAST_A_SWEEP).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_refuses_connections_is_tried_now_and_then() {
    let mut fixture = Fixture::new().await;
    let link = Link::to(fixture.server.port()).await;
    let config = WorkerConfig::new(ConnectOptions::new(link.url()), "test".parse().unwrap());
    let handler = Seen::default().handler();
    fixture.worker(config, |t| t.version("v1", handler)).await;
    link.set(Mode::Refuse).await;
    let listener = eventually("the port is free", LONG, async || {
        TcpListener::bind(("127.0.0.1", link.port())).await
    })
    .await;
    let (began, mut connections) = (Moment::now(), 0);
    while began.elapsed() < Duration::from_secs(PAST_A_SWEEP) {
        // Accepted and closed: a failure at once, as a refusal is, and one that can be counted.
        if tokio::time::timeout(Duration::from_millis(100), listener.accept())
            .await
            .is_ok()
        {
            connections += 1;
        }
    }
    // A dozen duties, each of which asks once or twice a second.
    let most = (began.elapsed().as_secs() + 1) * 20;
    assert!(
        connections > 0 && connections < most,
        "{connections} connections, at most {most}"
    );
}

// P5: what is wrong with one lane keeps nothing in the others, and is said in its own words, once.
#[tokio::test(flavor = "multi_thread")]
async fn a_broken_lane_keeps_no_other_from_being_swept() {
    let fixture = Fixture::new().await;
    let lane = |version: &str| format!("sb:lane:{{test:probe}}:{version}");
    let raw = async |args: &[&str]| fixture.raw(args).await;
    for version in ["v2", "v3", "v4"] {
        raw(&[
            "HSET",
            "sb:versions:{test:probe}",
            version,
            "{\"first_seen_us\":1,\"build\":\"\"}",
        ])
        .await;
    }
    raw(&["SET", &lane("v2"), "no stream"]).await;
    raw(&["XADD", &lane("v3"), "*", "payload", "{\"n\":3}"]).await;
    raw(&["XADD", &lane("v4"), "*", "payload", "{\"n\":4}"]).await;
    raw(&["XGROUP", "CREATE", &lane("v4"), "workers", "0"]).await;
    let pool = Pool::start(&fixture, &[]);
    eventually("the last lane is swept", patience(LONG), async || {
        pool.witness.ends() == [4]
    })
    .await;
    at_ease(&fixture, PAST_A_SWEEP).await;
    assert_eq!(
        pool.said("the lane of v2 cannot be swept"),
        1,
        "{:?}",
        pool.process.lines()
    );
    assert_eq!(pool.said("the lane of v3 cannot be swept"), 1);
    assert_eq!(pool.said("cannot look at the gate"), 0, "it can");
    raw(&["XGROUP", "CREATE", &lane("v3"), "workers", "0"]).await;
    eventually("what was mended is swept", patience(LONG), async || {
        pool.witness.ends().len() == 2
    })
    .await;
}

// The word that a flip is obeyed does not wait for a long sweep, and a sweep is not gone on with under a gate of the past.
#[tokio::test(flavor = "multi_thread")]
async fn a_look_comes_between_any_two_steps_of_a_sweep() {
    let mut fixture = Fixture::new().await;
    let (_stop, _) = fixture.simple(&["v1"]).await;
    let lane = "sb:lane:{test:job}:v2";
    let swept = async || {
        eventually("the lane is empty", LONG, async || {
            fixture.raw(&["XLEN", lane]).await == Value::Int(0)
        })
        .await;
    };
    fixture
        .raw(&[
            "HSET",
            "sb:versions:{test:job}",
            "v2",
            "{\"first_seen_us\":1,\"build\":\"\"}",
        ])
        .await;
    fixture
        .raw(&["XGROUP", "CREATE", lane, "workers", "0", "MKSTREAM"])
        .await;
    // The first step is sent twice: Redis does not know the script.
    fixture.raw(&["XADD", lane, "*", "payload", "{\"n\":0}"]).await;
    swept().await;
    // Nothing is claimed: who reads the gate is the gatekeeper.
    fixture.set(&[("paused", "1"), ("active", "v2")]).await;
    let fill = "for n = 1, 3000 do redis.call('XADD', KEYS[1], '*', 'payload', '{\"n\":' .. n .. '}') end";
    fixture.raw(&["EVAL", fill, "1", lane]).await;
    let commands = watched(&fixture, async || {
        fixture.set(&[("active", "v1")]).await;
        swept().await;
    })
    .await;
    let (mut steps, mut looked) = (0, true);
    for (from, words) in &commands {
        match words[0].as_str() {
            "HMGET" if from != "0 lua" && words[1] == GATE_STATE => looked = true,
            "EVALSHA" if words[2..4] == ["2", lane] => {
                assert!(looked, "step {steps} of the sweep followed the one before it");
                (steps, looked) = (steps + 1, false);
            }
            _ => {}
        }
    }
    assert!(steps >= 6, "{steps} steps of at most 500");
}

#[tokio::test(flavor = "multi_thread")]
async fn tasks_that_wait_for_a_lost_gate_share_what_they_read() {
    let mut fixture = Fixture::new().await;
    let seen = Seen::default();
    let (config, handler) = (fixture.config(), seen.handler());
    fixture
        .worker(config, |t| t.version("v1", handler).concurrency(200))
        .await;
    let Value::Array(state) = fixture.raw(&["HGETALL", GATE_STATE]).await else {
        panic!("an array")
    };
    fixture.raw(&["DEL", GATE_STATE]).await;
    fixture.enqueue(0..200).await;
    eventually("all are claimed", LONG, async || {
        fixture.depth().await.in_flight() == 200
    })
    .await;
    let (reads, took) = gate_reads(&fixture, 3).await;
    assert!((1..=took * 40 + 60).contains(&reads), "{reads} gate reads in {took} s");
    assert!(seen.all().is_empty(), "nothing starts");
    // And all start when it is there again.
    let mut back: Vec<String> = vec!["HSET".to_owned(), GATE_STATE.to_owned()];
    back.extend(state.into_iter().map(|part| redis::from_redis_value(part).unwrap()));
    let back: Vec<&str> = back.iter().map(String::as_str).collect();
    fixture.raw(&back).await;
    fixture.drained().await;
    assert_eq!(seen.all().len(), 200);
}

// P8 without a flood: what does not work is said when it begins, and now and then while it lasts.
#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_is_away_is_said_once() {
    let fixture = Fixture::new().await;
    let pool = Pool::start(&fixture, &["--lease-ms", "1000"]);
    pool.process.wait_line("session begun").await;
    fixture
        .raw(&[
            "XADD",
            "sb:stream:{test:probe}",
            "*",
            "payload",
            "{\"n\":1,\"work_ms\":500}",
        ])
        .await;
    eventually("it runs", LONG, async || pool.witness.starts().len() == 1).await;
    fixture.server.kill9();
    let began = Moment::now();
    eventually("all have tried a few times", LONG, async || {
        pool.witness.ends() == [1] && began.elapsed() >= Duration::from_secs(6)
    })
    .await;
    // Two claimers, and nobody else twice. Once more per minute, should this take as long.
    let minutes = usize::try_from(began.elapsed().as_secs() / 60).unwrap() + 1;
    for (what, who) in [
        ("lost the connection that announces", 1),
        ("no announcements", 1),
        ("cannot claim", 2),
        ("cannot settle", 1),
        ("cannot renew", 1),
        ("cannot look at the gate", 1),
    ] {
        let said = pool.said(what);
        assert!((1..=who * minutes).contains(&said), "{what}: {said} times");
    }
}

// What ends a session at once may end the next one, too.
#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_cannot_last_is_not_begun_again_at_once() {
    let mut fixture = Fixture::new().await;
    let (_stop, _) = fixture.simple(&["v1"]).await;
    // Whoever asks for its part of this, or says what it obeys, finds that it is not on record.
    fixture
        .raw(&["HSET", "sb:limits:{test:job}", "concurrency", "50"])
        .await;
    let began = clock(&fixture).await;
    eventually("time passes", LONG, async || {
        for _ in 0..100 {
            fixture.raw(&["DEL", "sb:sessions:{test:job}"]).await;
        }
        clock(&fixture).await >= began + 5_000_000
    })
    .await;
    let took = (clock(&fixture).await - began).div_ceil(1_000_000);
    let entries = log::read(&fixture.store, &fixture.queue, None, 1_000).await.unwrap();
    let joined = entries.iter().filter(|e| e.kind == "joined").count() as u64;
    assert!((2..=took + 12).contains(&joined), "{joined} sessions in {took} s");
}

// What is said in the log and cannot be written is no reason to say it at every look.
#[tokio::test(flavor = "multi_thread")]
async fn a_broken_schedule_is_said_once_on_a_full_redis() {
    let fixture = Fixture::new().await;
    let hash = "sb:schedules:{test:probe}";
    fixture.raw(&["HSET", hash, "nightly", "{\"cron\":\"never\"}"]).await;
    fixture.raw(&["CONFIG", "SET", "maxmemory", "1"]).await;
    let pool = Pool::start(&fixture, &[]);
    pool.process.wait_line("this schedule is broken").await;
    let began = clock(&fixture).await;
    eventually("it was looked at again", LONG, async || {
        clock(&fixture).await >= began + 4_000_000
    })
    .await;
    assert_eq!(pool.said("this schedule is broken"), 1);
    // With room again, people are told.
    fixture.raw(&["CONFIG", "SET", "maxmemory", "0"]).await;
    eventually("it is in the log", LONG, async || {
        fixture.raw(&["HEXISTS", hash, "nightly:alerted"]).await == Value::Int(1)
    })
    .await;
    assert_eq!(pool.said("this schedule is broken"), 1);
}

// Each one has every session look at its gate.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_for_announcements_that_cannot_last_is_not_made_again_at_once() {
    let mut fixture = Fixture::new().await;
    let (_stop, _) = fixture.simple(&["v1"]).await;
    let (began, before) = (clock(&fixture).await, calls(&fixture, "client|tracking").await);
    eventually("time passes", LONG, async || {
        let list: String = redis::from_redis_value(fixture.raw(&["CLIENT", "LIST"]).await).unwrap();
        for line in list.lines() {
            let field = |name: &str| line.split(' ').find_map(|field| field.strip_prefix(name)).unwrap();
            if field("flags=").contains('t') {
                // It may be gone already.
                let _ = fixture.server.try_cli(&["CLIENT", "KILL", "ID", field("id=")]).await;
            }
        }
        clock(&fixture).await >= began + 5_000_000
    })
    .await;
    let made = calls(&fixture, "client|tracking").await - before;
    let took = (clock(&fixture).await - began).div_ceil(1_000_000);
    assert!((2..=took + 12).contains(&made), "{made} connections in {took} s");
}
