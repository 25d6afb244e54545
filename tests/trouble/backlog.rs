//! Much more than anybody can work off at once, and much larger than anybody should send.

use switchback_tests::{Link, Process, eventually, patience};

use crate::{
    fixture::Fixture,
    tools::{GATE, LONG, MAIN, int, started},
};

const MILLION: i64 = 1_000_000;

// P10: with a million waiting, looking at the queue is as cheap as with none, a newcomer starts at once, and claims take
// no more than there are slots for.
#[tokio::test(flavor = "multi_thread")]
async fn a_million_waiting_are_no_burden() {
    let mut fixture = Fixture::new().await;
    let (stop, seen) = fixture.simple(&["v1"]).await;
    fixture.set(&[("paused", "1")]).await;
    let link = Link::to(fixture.server.port()).await;
    let look = async || {
        let before = link.counters().reply_bytes;
        let url = link.url();
        let show = ["--redis", &url, "-n", "test", "queue", "show", "job"];
        let none: [(&str, &str); 0] = [];
        let process = Process::start("switchback", show, none);
        assert!(process.wait().await.success(), "{:#?}", process.lines());
        (link.counters().reply_bytes - before, process.lines().join("\n"))
    };
    let (empty, _) = look().await;
    let many = "for i = 1, 50000 do redis.call('XADD', KEYS[1], '*', 'payload', '{\"n\":' .. i .. '}') end";
    for _ in 0..MILLION / 50_000 {
        fixture.raw(&["EVAL", many, "1", MAIN]).await;
    }
    let (full, shown) = look().await;
    assert!(shown.contains("1000000"), "{shown}");
    assert!(
        full < empty + 1_000,
        "{full} bytes with a million waiting, {empty} with none"
    );
    fixture.raw(&["HSET", GATE, "paused", "0"]).await;
    eventually("some have run", patience(LONG), async || seen.all().len() > 2_000).await;
    let pending = fixture.depth().await.in_flight();
    // Slots, and outcomes on their way.
    assert!(pending <= 100 + 2_000, "{pending} taken");
    fixture.stop(&stop).await;
    let depth = fixture.depth().await;
    assert_eq!(depth.in_flight(), 0);
    let ran = seen.all().len() as u64;
    assert_eq!(depth.waiting() + ran, 1_000_000, "each waits or has run: {depth:?}");
    assert_eq!(int(&fixture, &["XLEN", "sb:dead:{test:job}"]).await, 0);
}

// P10: entries that are much larger than any payload may be, put there by hand, go to the dead letters one script at a
// time, and what is behind them runs.
#[tokio::test(flavor = "multi_thread")]
async fn giants_are_set_aside() {
    let mut fixture = Fixture::new().await;
    let (_stop, seen) = fixture.simple(&["v1"]).await;
    let giant = format!("\"{}\"", "x".repeat(60_000_000));
    for _ in 0..3 {
        fixture.raw(&["XADD", MAIN, "*", "payload", &giant]).await;
    }
    fixture.enqueue([7]).await;
    started(&seen, 1).await;
    fixture.drained().await;
    assert_eq!(fixture.depth().await.dead, 3);
}
